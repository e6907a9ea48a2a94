/* Images: pixel buffers, locked while somebody looks at them. */
#include <string.h>

#include "cml_internal.h"

_Static_assert(kCVPixelFormatType_32BGRA == CML_PIXEL_BGRA8, "rule 10");
_Static_assert(kCVPixelFormatType_OneComponent8 == CML_PIXEL_GRAY8, "rule 10");
_Static_assert(kCVPixelFormatType_OneComponent16Half == CML_PIXEL_GRAY16F, "rule 10");

/* Bytes of a pixel; 0: not a format of the contract. */
static size_t cml_pixel_size(CmlPixelFormat format) {
  switch (format) {
    case CML_PIXEL_BGRA8: return 4;
    case CML_PIXEL_GRAY8: return 1;
    case CML_PIXEL_GRAY16F: return 2;
    default: return 0;
  }
}

static CmlStatus cml_image_check(const CmlImageDesc *desc, const void *pixels, size_t length, CmlError **error) {
  if (desc == NULL || !CML_REACHES(CmlImageDesc, desc, row_bytes)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the image description is NULL or its size is too small");
  }
  size_t pixel = cml_pixel_size(desc->format), row, needed;
  if (pixel == 0) return cml_fail(error, CML_INVALID_ARGUMENT, "0x%08x is not a pixel format", desc->format);
  if (desc->width == 0 || desc->height == 0) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "an image of %u x %u has no pixels", desc->width, desc->height);
  }
  if (pixels == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "the pixels are NULL");
  if (__builtin_mul_overflow((size_t)desc->width, pixel, &row) || desc->row_bytes < row) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "a row of %u pixels does not fit in %zu bytes", desc->width,
                    desc->row_bytes);
  }
  if (__builtin_mul_overflow(desc->row_bytes, (size_t)desc->height - 1, &needed) ||
      __builtin_add_overflow(needed, row, &needed) || needed > length) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "%zu bytes are given for %u rows of %zu bytes", length, desc->height,
                    desc->row_bytes);
  }
  if (desc->format == CML_PIXEL_GRAY16F) {
    CML_IF_OS(13, 0, 16.0) return CML_OK;
    return cml_fail_os(error, "a float16 image", "macOS 13 or iOS 16");
  }
  return CML_OK;
}

static CmlStatus cml_image_make(CmlValue *value, const CmlImageDesc *desc, const void *pixels, CmlError **error) {
  /* Backed by an IOSurface, so that the GPU and the Neural Engine need no copy. */
  NSDictionary *attributes = [NSDictionary dictionaryWithObject:[NSDictionary dictionary]
                                                         forKey:(NSString *)kCVPixelBufferIOSurfacePropertiesKey];
  CVReturn made = CVPixelBufferCreate(kCFAllocatorDefault, desc->width, desc->height, desc->format,
                                      (CFDictionaryRef)attributes, &value->pixels);
  if (made != kCVReturnSuccess || value->pixels == NULL) {
    value->pixels = NULL;
    return cml_fail(error, CML_FRAMEWORK, "making a pixel buffer of %u x %u failed with CVReturn %d", desc->width,
                    desc->height, (int)made);
  }
  CVReturn locked = CVPixelBufferLockBaseAddress(value->pixels, 0);
  if (locked != kCVReturnSuccess) {
    return cml_fail(error, CML_FRAMEWORK, "locking a pixel buffer failed with CVReturn %d", (int)locked);
  }
  size_t row = (size_t)desc->width * cml_pixel_size(desc->format);
  size_t stride = CVPixelBufferGetBytesPerRow(value->pixels);
  unsigned char *to = CVPixelBufferGetBaseAddress(value->pixels);
  bool fits = to != NULL && stride >= row;
  for (uint32_t y = 0; fits && y < desc->height; y++) {
    memcpy(to + y * stride, (const unsigned char *)pixels + y * desc->row_bytes, row);
    memset(to + y * stride + row, 0, stride - row);
  }
  CVPixelBufferUnlockBaseAddress(value->pixels, 0);
  if (!fits) return cml_fail(error, CML_FRAMEWORK, "Core Video made a pixel buffer with rows of %zu bytes", stride);
  MLFeatureValue *feature = [MLFeatureValue featureValueWithPixelBuffer:value->pixels];
  if (feature == nil) return cml_fail(error, CML_FRAMEWORK, "Core ML made no feature value of the image");
  value->feature = [feature retain];
  return CML_OK;
}

CmlStatus cml_image_new(void *self, const CmlImageDesc *desc, const void *pixels, size_t length, CmlValue **out,
                        CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (out == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the value");
  *out = NULL;
  CmlStatus status = cml_image_check(desc, pixels, length, error);
  if (status != CML_OK) return status;
  CmlValue *value = cml_value_new(CML_KIND_IMAGE);
  if (value == NULL) return cml_fail_memory(error);
  CML_TRY
  status = cml_image_make(value, desc, pixels, error);
  CML_CATCH(status, error)
  if (status == CML_OK) {
    *out = value;
  } else {
    cml_value_release(value);
  }
  return status;
}

static CmlStatus cml_image_visit(CmlValue *value, bool writable, CmlImageBytesFn visit, void *context,
                                 CmlError **error) {
  CVPixelBufferLockFlags flags = writable ? 0 : kCVPixelBufferLock_ReadOnly;
  CmlImageDesc desc;
  memset(&desc, 0, sizeof desc);
  desc.size = sizeof desc;
  desc.format = CVPixelBufferGetPixelFormatType(value->pixels);
  size_t width = CVPixelBufferGetWidth(value->pixels), height = CVPixelBufferGetHeight(value->pixels);
  if (cml_pixel_size(desc.format) == 0 || width > UINT32_MAX || height > UINT32_MAX) {
    return cml_fail(error, CML_UNSUPPORTED, "the image has the pixel format 0x%08x, which this bridge cannot show",
                    desc.format);
  }
  desc.width = (uint32_t)width;
  desc.height = (uint32_t)height;
  CVReturn locked = CVPixelBufferLockBaseAddress(value->pixels, flags);
  if (locked != kCVReturnSuccess) {
    return cml_fail(error, CML_FRAMEWORK, "locking a pixel buffer failed with CVReturn %d", (int)locked);
  }
  @try {
    desc.row_bytes = CVPixelBufferGetBytesPerRow(value->pixels);
    visit(context, CVPixelBufferGetBaseAddress(value->pixels), &desc);
  } @finally {
    CVPixelBufferUnlockBaseAddress(value->pixels, flags);
  }
  return CML_OK;
}

CmlStatus cml_image_with_bytes(CmlValue *value, int32_t writable, CmlImageBytesFn visit, void *context,
                               CmlError **error) {
  CML_CLEAR(error);
  if (visit == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no function to show the pixels to");
  if (!cml_is(value, &cml_tag_value)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a value of this bridge");
  if (value->kind != CML_KIND_IMAGE) {
    return cml_fail(error, CML_TYPE_MISMATCH, "the value is a %s, not an image", cml_kind_name(value->kind));
  }
  CmlStatus status = CML_OK;
  if (!cml_enter(value, &status)) return cml_fail_busy(error, "value");
  CML_TRY
  status = cml_image_visit(value, writable != 0, visit, context, error);
  CML_CATCH(status, error)
  cml_leave(value, &status);
  return status;
}
