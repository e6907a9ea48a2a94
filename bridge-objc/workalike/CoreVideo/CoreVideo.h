/* The part of Core Video that the shim uses, for GNUstep: test code. Names, types and numbers follow Apple's public
   documentation; a pixel buffer here is a plain counted struct, not an object. */
#ifndef WORKALIKE_COREVIDEO_H
#define WORKALIKE_COREVIDEO_H

#import <Foundation/Foundation.h>
#include <stddef.h>
#include <stdint.h>

typedef const struct CmlTwinAllocator *CFAllocatorRef;
typedef const struct CmlTwinDictionary *CFDictionaryRef;
typedef NSString *CFStringRef;
typedef uint32_t OSType;
typedef int32_t CVReturn;
typedef uint64_t CVOptionFlags;
typedef CVOptionFlags CVPixelBufferLockFlags;
typedef struct CmlTwinPixelBuffer *CVPixelBufferRef;

#define kCFAllocatorDefault ((CFAllocatorRef)0)
extern const CFStringRef kCVPixelBufferIOSurfacePropertiesKey;

enum { kCVReturnSuccess = 0, kCVReturnInvalidArgument = -6661, kCVReturnAllocationFailed = -6662 };
enum { kCVPixelBufferLock_ReadOnly = 1 };
enum {
  kCVPixelFormatType_32BGRA = 0x42475241,
  kCVPixelFormatType_OneComponent8 = 0x4C303038,
  kCVPixelFormatType_OneComponent16Half = 0x4C303068
};

CVReturn CVPixelBufferCreate(CFAllocatorRef allocator, size_t width, size_t height, OSType format,
                             CFDictionaryRef attributes, CVPixelBufferRef *out);
CVPixelBufferRef CVPixelBufferRetain(CVPixelBufferRef buffer);
void CVPixelBufferRelease(CVPixelBufferRef buffer);
CVReturn CVPixelBufferLockBaseAddress(CVPixelBufferRef buffer, CVPixelBufferLockFlags flags);
CVReturn CVPixelBufferUnlockBaseAddress(CVPixelBufferRef buffer, CVPixelBufferLockFlags flags);
void *CVPixelBufferGetBaseAddress(CVPixelBufferRef buffer); /* NULL unless locked */
size_t CVPixelBufferGetBytesPerRow(CVPixelBufferRef buffer);
size_t CVPixelBufferGetWidth(CVPixelBufferRef buffer);
size_t CVPixelBufferGetHeight(CVPixelBufferRef buffer);
OSType CVPixelBufferGetPixelFormatType(CVPixelBufferRef buffer);

#endif
