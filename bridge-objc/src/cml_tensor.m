/* Tensors: layouts, the arithmetic on them, strided copies with conversion, and the tensor slots. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cml_internal.h"

/* ---- element types ---- */

size_t cml_dtype_size(CmlDtype dtype) {
  switch (dtype) {
    case CML_DTYPE_INT8: return 1;
    case CML_DTYPE_FLOAT16: return 2;
    case CML_DTYPE_FLOAT32:
    case CML_DTYPE_INT32: return 4;
    case CML_DTYPE_FLOAT64: return 8;
    default: return 0;
  }
}

const char *cml_dtype_name(CmlDtype dtype) {
  switch (dtype) {
    case CML_DTYPE_FLOAT16: return "float16";
    case CML_DTYPE_FLOAT32: return "float32";
    case CML_DTYPE_FLOAT64: return "float64";
    case CML_DTYPE_INT8: return "int8";
    case CML_DTYPE_INT32: return "int32";
    default: return "an unknown element type";
  }
}

_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE 754");
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunguarded-availability-new" /* a number is there on every OS */
_Static_assert((int)MLMultiArrayDataTypeFloat16 == CML_DTYPE_FLOAT16, "rule 10");
#pragma clang diagnostic pop
_Static_assert((int)MLMultiArrayDataTypeFloat32 == CML_DTYPE_FLOAT32, "rule 10");
_Static_assert((int)MLMultiArrayDataTypeDouble == CML_DTYPE_FLOAT64, "rule 10");
_Static_assert((int)MLMultiArrayDataTypeInt32 == CML_DTYPE_INT32, "rule 10");

/* Is this element type known to this OS? */
static CmlStatus cml_dtype_gate(CmlDtype dtype, CmlError **error) {
  if (dtype == CML_DTYPE_FLOAT16) {
    CML_IF_OS(12, 0, 16.0) return CML_OK;
    return cml_fail_os(error, "float16", "macOS 12 or iOS 16");
  }
  if (dtype == CML_DTYPE_INT8) {
    CML_IF_OS(26, 0, 26.0) return CML_OK;
    return cml_fail_os(error, "int8", "macOS 26 or iOS 26");
  }
  return CML_OK;
}

static double cml_half_to_double(uint16_t half) {
  int exponent = (half >> 10) & 31;
  int fraction = half & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = fraction != 0 ? (double)NAN : (double)INFINITY;
  } else if (exponent == 0) {
    magnitude = ldexp(fraction, -24);
  } else {
    uint64_t bits = ((uint64_t)(exponent - 15 + 1023) << 52) | ((uint64_t)fraction << 42);
    memcpy(&magnitude, &bits, sizeof magnitude);
  }
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

/* To nearest, ties to even; beyond the range to infinity. */
static uint16_t cml_half_from_double(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint16_t sign = (uint16_t)((bits >> 48) & 0x8000);
  int exponent = (int)((bits >> 52) & 2047) - 1023;
  uint64_t fraction = bits & 0xFFFFFFFFFFFFFu;
  if (exponent == 1024) return (uint16_t)(sign | 0x7C00 | (fraction != 0 ? 0x200 : 0));
  if (exponent > 15) return (uint16_t)(sign | 0x7C00);
  if (exponent < -25) return sign; /* also every double that is zero or subnormal */
  /* 1.fraction as 53 bits, to be shifted to 10 bits behind the point, or fewer for a subnormal half. */
  uint64_t mantissa = fraction | (UINT64_C(1) << 52);
  int shift = exponent >= -14 ? 42 : 42 + (-14 - exponent);
  uint64_t kept = mantissa >> shift;
  uint64_t rest = mantissa & ((UINT64_C(1) << shift) - 1);
  uint64_t half_way = UINT64_C(1) << (shift - 1);
  if (rest > half_way || (rest == half_way && (kept & 1) != 0)) kept++;
  /* `kept` carries the hidden bit, which adds 1 to the exponent field; a carry does the same once more. */
  uint64_t field = exponent >= -14 ? (uint64_t)(exponent + 14) << 10 : 0;
  return (uint16_t)(sign | (field + kept));
}

/* Every element type fits in a double without loss. */
static double cml_load(CmlDtype dtype, const unsigned char *at) {
  switch (dtype) {
    case CML_DTYPE_FLOAT16: {
      uint16_t bits;
      memcpy(&bits, at, sizeof bits);
      return cml_half_to_double(bits);
    }
    case CML_DTYPE_FLOAT32: {
      float value;
      memcpy(&value, at, sizeof value);
      return value;
    }
    case CML_DTYPE_FLOAT64: {
      double value;
      memcpy(&value, at, sizeof value);
      return value;
    }
    case CML_DTYPE_INT8: return (int8_t)*at;
    default: {
      int32_t value;
      memcpy(&value, at, sizeof value);
      return value;
    }
  }
}

/* To integers: towards zero, saturating, NaN is 0 (as Rust's `as`). */
static double cml_clamp(double value, double least, double most) {
  return isnan(value) ? 0 : value < least ? least : value > most ? most : value;
}

static void cml_store(CmlDtype dtype, unsigned char *at, double value) {
  switch (dtype) {
    case CML_DTYPE_FLOAT16: {
      uint16_t bits = cml_half_from_double(value);
      memcpy(at, &bits, sizeof bits);
      return;
    }
    case CML_DTYPE_FLOAT32: {
      float narrow = (float)value;
      memcpy(at, &narrow, sizeof narrow);
      return;
    }
    case CML_DTYPE_FLOAT64: memcpy(at, &value, sizeof value); return;
    case CML_DTYPE_INT8: {
      int8_t narrow = (int8_t)cml_clamp(value, INT8_MIN, INT8_MAX);
      memcpy(at, &narrow, sizeof narrow);
      return;
    }
    default: {
      int32_t narrow = (int32_t)cml_clamp(value, INT32_MIN, INT32_MAX);
      memcpy(at, &narrow, sizeof narrow);
      return;
    }
  }
}

/* ---- layouts ---- */

/* Fills count and bytes from dtype, rank, shape and strides; false on overflow. */
static bool cml_layout_measure(CmlLayout *layout) {
  uint64_t count = 1, last = 0;
  bool empty = false;
  for (uint32_t i = 0; i < layout->rank; i++) {
    uint64_t size = (uint64_t)layout->shape[i], reach;
    if (size == 0) {
      empty = true;
      continue;
    }
    if (__builtin_mul_overflow(count, size, &count)) return false;
    if (__builtin_mul_overflow(size - 1, (uint64_t)layout->strides[i], &reach)) return false;
    if (__builtin_add_overflow(last, reach, &last)) return false;
  }
  uint64_t dense;
  if (__builtin_mul_overflow(count, (uint64_t)layout->item, &dense)) return false;
  if (__builtin_add_overflow(last, 1, &last)) return false;
  if (__builtin_mul_overflow(last, (uint64_t)layout->item, &last)) return false;
  if (dense > PTRDIFF_MAX || last > PTRDIFF_MAX) return false;
  layout->count = empty ? 0 : count;
  layout->bytes = empty ? 0 : last;
  return true;
}

/* Row-major strides; false on overflow. */
static bool cml_layout_dense_strides(CmlLayout *layout) {
  int64_t stride = 1;
  for (uint32_t i = layout->rank; i-- > 0;) {
    layout->strides[i] = stride;
    if (layout->shape[i] > 1 && __builtin_mul_overflow(stride, layout->shape[i], &stride)) return false;
  }
  return true;
}

void cml_layout_densify(CmlLayout *layout) {
  (void)cml_layout_dense_strides(layout); /* the layout was measured: count * item does not overflow */
  layout->bytes = layout->count * layout->item;
}

CmlStatus cml_layout_parse(const CmlTensorDesc *desc, CmlLayout *layout, CmlError **error) {
  memset(layout, 0, sizeof *layout);
  if (desc == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "the tensor description is NULL");
  if (!CML_REACHES(CmlTensorDesc, desc, shape)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the tensor description has size %u, which is too small", desc->size);
  }
  layout->dtype = desc->dtype;
  layout->item = cml_dtype_size(desc->dtype);
  layout->rank = desc->rank;
  if (layout->item == 0) return cml_fail(error, CML_INVALID_ARGUMENT, "%d is not an element type", desc->dtype);
  if (desc->rank > CML_MAX_RANK) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "rank %u is above %d", desc->rank, CML_MAX_RANK);
  }
  if (desc->rank > 0 && desc->shape == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "the shape is NULL");
  const int64_t *strides = CML_REACHES(CmlTensorDesc, desc, strides) ? desc->strides : NULL;
  for (uint32_t i = 0; i < desc->rank; i++) {
    layout->shape[i] = desc->shape[i];
    if (desc->shape[i] < 0) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "dimension %u is %lld", i, (long long)desc->shape[i]);
    }
    if (strides != NULL) {
      layout->strides[i] = strides[i];
      if (strides[i] < 0) {
        return cml_fail(error, CML_INVALID_ARGUMENT, "stride %u is %lld", i, (long long)strides[i]);
      }
    }
  }
  if ((strides == NULL && !cml_layout_dense_strides(layout)) || !cml_layout_measure(layout)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the shape and strides reach beyond what memory can hold");
  }
  return cml_dtype_gate(desc->dtype, error);
}

CmlStatus cml_layout_of(MLMultiArray *array, NSArray<NSNumber *> *strides, CmlLayout *layout, CmlError **error) {
  memset(layout, 0, sizeof *layout);
  NSArray<NSNumber *> *shape = array.shape;
  if (strides == nil) strides = array.strides;
  layout->dtype = (CmlDtype)array.dataType;
  layout->item = cml_dtype_size(layout->dtype);
  if (layout->item == 0) {
    return cml_fail(error, CML_UNSUPPORTED, "Core ML gave a tensor of the unknown element type %ld",
                    (long)array.dataType);
  }
  if (shape.count > CML_MAX_RANK || strides.count != shape.count) {
    return cml_fail(error, CML_FRAMEWORK, "Core ML gave a tensor with %lu sizes and %lu strides",
                    (unsigned long)shape.count, (unsigned long)strides.count);
  }
  layout->rank = (uint32_t)shape.count;
  for (uint32_t i = 0; i < layout->rank; i++) {
    layout->shape[i] = [[shape objectAtIndex:i] longLongValue];
    layout->strides[i] = [[strides objectAtIndex:i] longLongValue];
    if (layout->shape[i] < 0 || layout->strides[i] < 0) {
      return cml_fail(error, CML_FRAMEWORK, "Core ML gave a tensor with the size %lld and the stride %lld",
                      (long long)layout->shape[i], (long long)layout->strides[i]);
    }
  }
  if (!cml_layout_measure(layout)) return cml_fail(error, CML_FRAMEWORK, "Core ML gave a tensor beyond memory");
  return CML_OK;
}

bool cml_layout_same_shape(const CmlLayout *a, const CmlLayout *b) {
  return a->rank == b->rank && memcmp(a->shape, b->shape, a->rank * sizeof a->shape[0]) == 0;
}

bool cml_layout_overlaps_itself(const CmlLayout *layout) {
  /* Dimensions by growing stride: each must step over everything the smaller ones reach. */
  bool taken[CML_MAX_RANK] = {false};
  uint64_t reach = 0;
  for (uint32_t step = 0; step < layout->rank; step++) {
    uint32_t least = CML_MAX_RANK;
    for (uint32_t i = 0; i < layout->rank; i++) {
      if (!taken[i] && (least == CML_MAX_RANK || layout->strides[i] < layout->strides[least])) least = i;
    }
    taken[least] = true;
    if (layout->shape[least] <= 1) continue;
    if ((uint64_t)layout->strides[least] <= reach) return true;
    reach += (uint64_t)(layout->shape[least] - 1) * (uint64_t)layout->strides[least];
  }
  return false;
}

void cml_layout_desc(const CmlLayout *layout, CmlTensorDesc *desc) {
  desc->size = sizeof *desc;
  desc->dtype = layout->dtype;
  desc->rank = layout->rank;
  desc->shape = layout->shape;
  desc->strides = layout->strides;
  desc->byte_len = layout->bytes;
}

void cml_layout_text(const CmlLayout *layout, char *text, size_t capacity) {
  size_t used = (size_t)snprintf(text, capacity, "%s [", cml_dtype_name(layout->dtype));
  for (uint32_t i = 0; i < layout->rank && used < capacity; i++) {
    used += (size_t)snprintf(text + used, capacity - used, i == 0 ? "%lld" : ", %lld", (long long)layout->shape[i]);
  }
  if (used < capacity) snprintf(text + used, capacity - used, "]");
}

void cml_copy(const CmlLayout *to, void *destination, const CmlLayout *from, const void *source) {
  if (to->count == 0) return;
  bool convert = to->dtype != from->dtype;
  uint32_t rank = to->rank;
  /* The trailing dimensions that are dense on both sides are one run. */
  uint64_t run = 1;
  uint32_t outer = rank;
  while (outer > 0) {
    uint32_t i = outer - 1;
    if (to->shape[i] != 1 && (to->strides[i] != (int64_t)run || from->strides[i] != (int64_t)run)) break;
    run *= (uint64_t)to->shape[i];
    outer--;
  }
  uint64_t index[CML_MAX_RANK] = {0};
  unsigned char *d = destination;
  const unsigned char *s = source;
  for (;;) {
    if (!convert) {
      memmove(d, s, run * to->item);
    } else {
      for (uint64_t k = 0; k < run; k++)
        cml_store(to->dtype, d + k * to->item, cml_load(from->dtype, s + k * from->item));
    }
    uint32_t i = outer;
    for (;;) {
      if (i == 0) return;
      i--;
      if (++index[i] < (uint64_t)to->shape[i]) {
        d += (uint64_t)to->strides[i] * to->item;
        s += (uint64_t)from->strides[i] * from->item;
        break;
      }
      index[i] = 0;
      d -= (uint64_t)(to->shape[i] - 1) * (uint64_t)to->strides[i] * to->item;
      s -= (uint64_t)(from->shape[i] - 1) * (uint64_t)from->strides[i] * from->item;
    }
  }
}

/* ---- arrays of the framework ---- */

/* Runs `visit` if the memory, of `size` bytes (negative: not known), holds the layout. */
static CmlStatus cml_array_visit_bytes(MLMultiArray *array, void *bytes, NSInteger size, NSArray<NSNumber *> *strides,
                                       CmlError **error, NS_NOESCAPE CmlArrayVisitor visit) {
  CmlLayout layout;
  CmlStatus status = cml_layout_of(array, strides, &layout, error);
  if (status != CML_OK) return status;
  if (layout.bytes > 0 && bytes == NULL) return cml_fail(error, CML_FRAMEWORK, "Core ML gave a tensor without memory");
  if (size >= 0 && (uint64_t)size < layout.bytes) {
    return cml_fail(error, CML_FRAMEWORK, "Core ML gave %ld bytes for a tensor that reaches over %llu", (long)size,
                    (unsigned long long)layout.bytes);
  }
  return visit(bytes, &layout);
}

CmlStatus cml_array_visit(MLMultiArray *array, bool writable, CmlError **error, NS_NOESCAPE CmlArrayVisitor visit) {
  CML_IF_OS(12, 3, 15.4) {
    __block CmlStatus status = CML_FRAMEWORK;
    __block bool visited = false;
    if (writable) {
      [array getMutableBytesWithHandler:^(void *bytes, NSInteger size, NSArray<NSNumber *> *strides) {
        visited = true;
        status = cml_array_visit_bytes(array, bytes, size, strides, error, visit);
      }];
    } else {
      [array getBytesWithHandler:^(const void *bytes, NSInteger size) {
        visited = true;
        status = cml_array_visit_bytes(array, (void *)bytes, size, nil, error, visit);
      }];
    }
    if (!visited) return cml_fail(error, CML_FRAMEWORK, "Core ML did not give access to the tensor");
    return status;
  }
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"
  return cml_array_visit_bytes(array, array.dataPointer, -1, nil, error, visit);
#pragma clang diagnostic pop
}

static NSArray<NSNumber *> *cml_numbers(const int64_t *numbers, uint32_t count) {
  NSMutableArray<NSNumber *> *array = [NSMutableArray arrayWithCapacity:count];
  for (uint32_t i = 0; i < count; i++) [array addObject:[NSNumber numberWithLongLong:numbers[i]]];
  return array;
}

/* ---- who owns the memory of an array ---- */

/* Core ML calls the deallocator when it is done with an array, on any thread, maybe seconds later. It may also call it
   when it refuses to make one, and then (rule of tensor_wrap) the owner must stay untouched: so the deallocator acts
   only once `armed`. Two hold the lease: the deallocator, and the call that makes the array. */
typedef struct CmlLease {
  atomic_int holders;
  atomic_bool armed;
  CmlReleaseFn release;
  void *owner;
} CmlLease;

static void cml_lease_drop(CmlLease *lease) {
  if (atomic_fetch_sub_explicit(&lease->holders, 1, memory_order_acq_rel) == 1) free(lease);
}

static void cml_lease_end(CmlLease *lease) {
  if (atomic_load_explicit(&lease->armed, memory_order_acquire)) lease->release(lease->owner);
  cml_lease_drop(lease);
}

/* Makes `value` a tensor on `memory`. From success on, the array's deallocator calls `release(owner)`. */
static CmlStatus cml_tensor_on(CmlValue *value, const CmlLayout *layout, void *memory, CmlLease *lease,
                               CmlError **error) {
  NSError *cause = nil;
  MLMultiArray *array = [[[MLMultiArray alloc] initWithDataPointer:memory
                                                             shape:cml_numbers(layout->shape, layout->rank)
                                                          dataType:(MLMultiArrayDataType)layout->dtype
                                                           strides:cml_numbers(layout->strides, layout->rank)
                                                       deallocator:^(void *bytes) {
                                                         (void)bytes;
                                                         cml_lease_end(lease);
                                                       }
                                                             error:&cause] autorelease];
  if (array == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "making a tensor");
  return cml_tensor_adopt(value, array, error);
}

/* The common end of the slots that make tensors. On failure `release` is not called. */
static CmlStatus cml_tensor_make(const CmlLayout *layout, void *memory, CmlReleaseFn release, void *owner,
                                 CmlValue **out, CmlError **error) {
  CmlStatus status = CML_OK;
  CmlLease *lease = calloc(1, sizeof *lease);
  CmlValue *value = lease != NULL ? cml_value_new(CML_KIND_TENSOR) : NULL;
  if (value == NULL) {
    free(lease);
    return cml_fail_memory(error);
  }
  atomic_init(&lease->holders, 2);
  atomic_init(&lease->armed, false);
  lease->release = release;
  lease->owner = owner;
  CML_TRY
  status = cml_tensor_on(value, layout, memory, lease, error);
  if (status == CML_OK) atomic_store_explicit(&lease->armed, true, memory_order_release);
  CML_CATCH(status, error)
  /* After a failure nobody can tell whether the deallocator is still to come: its share (a few bytes) stays. */
  cml_lease_drop(lease);
  if (status == CML_OK) {
    *out = value;
  } else {
    cml_value_release(value);
  }
  return status;
}

CmlStatus cml_tensor_adopt(CmlValue *value, MLMultiArray *array, CmlError **error) {
  CmlLayout layout;
  CmlStatus status = cml_layout_of(array, nil, &layout, error);
  if (status != CML_OK) return status;
  value->shape = calloc(layout.rank > 0 ? 2 * layout.rank : 1, sizeof value->shape[0]);
  if (value->shape == NULL) return cml_fail_memory(error);
  memcpy(value->shape, layout.shape, layout.rank * sizeof layout.shape[0]);
  memcpy(value->shape + layout.rank, layout.strides, layout.rank * sizeof layout.strides[0]);
  value->dtype = layout.dtype;
  value->rank = layout.rank;
  value->bytes = layout.bytes;
  value->array = [array retain];
  if (value->feature == nil) value->feature = [[MLFeatureValue featureValueWithMultiArray:array] retain];
  if (value->feature == nil) return cml_fail(error, CML_FRAMEWORK, "Core ML made no feature value of the tensor");
  return CML_OK;
}

/* ---- slots ---- */

static CmlStatus cml_tensor_allocate(CmlLayout *layout, CmlValue **value, void **bytes, CmlError **error) {
  void *memory = calloc(1, layout->bytes > 0 ? layout->bytes : 1);
  if (memory == NULL) return cml_fail_memory(error);
  CmlStatus status = cml_tensor_make(layout, memory, free, memory, value, error);
  if (status != CML_OK) free(memory);
  *bytes = memory;
  return status;
}

CmlStatus cml_tensor_new(void *self, const CmlTensorDesc *desc, CmlValue **value, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (value == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the value");
  *value = NULL;
  CmlLayout layout;
  CmlStatus status = cml_layout_parse(desc, &layout, error);
  void *memory;
  return status != CML_OK ? status : cml_tensor_allocate(&layout, value, &memory, error);
}

static CmlStatus cml_check_source(const CmlLayout *layout, const void *memory, size_t length, CmlError **error) {
  if (layout->bytes > length) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "%zu bytes are given for a tensor that reaches over %llu", length,
                    (unsigned long long)layout->bytes);
  }
  if (layout->bytes > 0 && memory == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "the memory is NULL");
  return CML_OK;
}

CmlStatus cml_tensor_copy(void *self, const CmlTensorDesc *desc, const void *source, size_t length, CmlValue **value,
                          CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (value == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the value");
  *value = NULL;
  CmlLayout from, to;
  CmlStatus status = cml_layout_parse(desc, &from, error);
  if (status == CML_OK) status = cml_check_source(&from, source, length, error);
  if (status != CML_OK) return status;
  to = from;
  cml_layout_densify(&to);
  void *memory = NULL;
  status = cml_tensor_allocate(&to, value, &memory, error);
  if (status == CML_OK) cml_copy(&to, memory, &from, source);
  return status;
}

CmlStatus cml_tensor_wrap(void *self, const CmlTensorDesc *desc, void *data, size_t length, CmlReleaseFn release,
                          void *owner, CmlValue **value, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (value == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the value");
  *value = NULL;
  CmlLayout layout;
  CmlStatus status = cml_layout_parse(desc, &layout, error);
  if (status == CML_OK) status = cml_check_source(&layout, data, length, error);
  if (status != CML_OK) return status;
  if (release == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "the memory has no release function");
  if ((uintptr_t)data % layout.item != 0) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the memory is not aligned for %s", cml_dtype_name(layout.dtype));
  }
  static uint64_t nothing; /* an empty tensor may come without memory, but Core ML wants a pointer */
  return cml_tensor_make(&layout, data != NULL ? data : &nothing, release, owner, value, error);
}

static CmlStatus cml_tensor_check(const CmlValue *value, CmlError **error) {
  if (!cml_is(value, &cml_tag_value)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a value of this bridge");
  if (value->kind != CML_KIND_TENSOR) {
    return cml_fail(error, CML_TYPE_MISMATCH, "the value is a %s, not a tensor", cml_kind_name(value->kind));
  }
  return CML_OK;
}

CmlStatus cml_tensor_desc(const CmlValue *value, CmlTensorDesc *desc, CmlError **error) {
  CML_CLEAR(error);
  if (desc == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the description");
  CmlStatus status = cml_tensor_check(value, error);
  if (status != CML_OK) return status;
  CmlTensorDesc full;
  memset(&full, 0, sizeof full);
  full.size = desc->size;
  full.dtype = value->dtype;
  full.rank = value->rank;
  full.shape = value->shape;
  full.strides = value->shape + value->rank;
  full.byte_len = value->bytes;
  memcpy(desc, &full, full.size < sizeof full ? full.size : sizeof full);
  return CML_OK;
}

CmlStatus cml_tensor_with_bytes(CmlValue *value, int32_t writable, CmlTensorBytesFn visit, void *context,
                                CmlError **error) {
  CML_CLEAR(error);
  if (visit == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no function to show the memory to");
  CmlStatus status = cml_tensor_check(value, error);
  if (status != CML_OK) return status;
  if (!cml_enter(value, &status)) return cml_fail_busy(error, "value");
  CML_TRY
  status = cml_array_visit(value->array, writable != 0, error, ^CmlStatus(void *bytes, const CmlLayout *layout) {
    CmlTensorDesc desc;
    cml_layout_desc(layout, &desc);
    visit(context, bytes, &desc);
    return CML_OK;
  });
  CML_CATCH(status, error)
  cml_leave(value, &status);
  return status;
}

CmlStatus cml_tensor_read(CmlValue *value, CmlDtype dtype, void *destination, size_t length, CmlError **error) {
  CML_CLEAR(error);
  CmlStatus status = cml_tensor_check(value, error);
  if (status != CML_OK) return status;
  if (cml_dtype_size(dtype) == 0) return cml_fail(error, CML_INVALID_ARGUMENT, "%d is not an element type", dtype);
  if (!cml_enter(value, &status)) return cml_fail_busy(error, "value");
  CML_TRY
  status = cml_array_visit(value->array, false, error, ^CmlStatus(void *bytes, const CmlLayout *from) {
    CmlLayout to = *from;
    to.dtype = dtype;
    to.item = cml_dtype_size(dtype);
    uint64_t wanted;
    if (__builtin_mul_overflow(to.count, (uint64_t)to.item, &wanted) || wanted != length) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "%zu bytes are given for %llu elements of %s", length,
                      (unsigned long long)to.count, cml_dtype_name(dtype));
    }
    if (wanted > 0 && destination == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "the destination is NULL");
    cml_layout_densify(&to);
    cml_copy(&to, destination, from, bytes);
    return CML_OK;
  });
  CML_CATCH(status, error)
  cml_leave(value, &status);
  return status;
}
