/*
 * A work-alike of the part of Core ML that the shim uses, on GNUstep: test code.
 *
 * It runs no model itself: a delegate, which is another bridge behind the same C table, does. So a shim that answers
 * right here has translated everything there and back. On demand it is as hostile as the real framework can be, and
 * more (cml_workalike.h).
 *
 * Every public method begins with `entry` (or `entry_fails`, if it may fail by returning nil), where a test can make it
 * throw or fail; what the methods share is in C functions that have no such entry.
 */
#import <CoreML/CoreML.h>

#include <Block.h>
#include <objc/message.h>
#include <objc/runtime.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cml_workalike.h"

NSString *const MLModelErrorDomain = @"com.apple.CoreML";
MLModelMetadataKey const MLModelDescriptionKey = @"MLModelDescriptionKey";
MLModelMetadataKey const MLModelVersionStringKey = @"MLModelVersionStringKey";
MLModelMetadataKey const MLModelAuthorKey = @"MLModelAuthorKey";
MLModelMetadataKey const MLModelLicenseKey = @"MLModelLicenseKey";
MLModelMetadataKey const MLModelCreatorDefinedKey = @"MLModelCreatorDefinedKey";
const CFStringRef kCVPixelBufferIOSurfacePropertiesKey = @"IOSurfaceProperties";

static NSString *const wa_marker = @"workalike-source.txt"; /* in a compiled model: the name of what it was made from */

/* ---- steering ---- */

static _Atomic(const CmlBridge *) wa_delegate;
static atomic_uint wa_modes;
static atomic_uint wa_late_ms = 1000;
static atomic_long wa_live, wa_faults;
static atomic_int wa_inject;
static atomic_long wa_countdown;
static _Atomic(const char *) wa_went_off;
static _Atomic(uint64_t) wa_preferred;

void cml_workalike_set_delegate(const CmlBridge *delegate) { atomic_store(&wa_delegate, delegate); }
void cml_workalike_set_hostile(uint32_t modes) { atomic_store(&wa_modes, modes); }
void cml_workalike_set_late_release_ms(uint32_t milliseconds) { atomic_store(&wa_late_ms, milliseconds); }
long cml_workalike_live_objects(void) { return atomic_load(&wa_live); }
uint64_t cml_workalike_preferred(void) { return atomic_load(&wa_preferred); }
long cml_workalike_faults(void) { return atomic_load(&wa_faults); }
const char *cml_workalike_injected(void) { return atomic_load(&wa_went_off); }

void cml_workalike_inject(int what, long nth) {
  atomic_store(&wa_inject, CML_INJECT_NOTHING);
  atomic_store(&wa_went_off, NULL);
  atomic_store(&wa_countdown, nth);
  atomic_store(&wa_inject, what);
}

/* GNUstep takes the first thread it meets for the main one, and ends the process, with success, when that one ends. So
   it must meet the real main thread, before a test thread comes along. In plain calls of the runtime: this may run
   before the selectors of this file are registered. */
__attribute__((constructor)) static void wa_meet_main_thread(void) {
  Class threads = objc_getClass("NSThread");
  SEL current = sel_registerName("currentThread");
  IMP method = threads != Nil ? objc_msg_lookup((id)threads, current) : NULL;
  if (method == NULL || ((id(*)(id, SEL))method)((id)threads, current) == nil) {
    fprintf(stderr, "work-alike: GNUstep does not know the main thread\n");
    abort();
  }
}

__attribute__((constructor)) static void wa_read_environment(void) {
  static const char *const names[] = {"padded",        "ignore-backings", "alias-backings", "nil-error",
                                      "nested-errors", "late-release",    "short-bytes",    "eager-free",
                                      "lose-row",      "late-answer",     "early-answer",   "stuck-load",
                                      "throw-after"};
  const char *list = getenv("CML_WORKALIKE_HOSTILE");
  unsigned modes = 0;
  while (list != NULL && *list != 0) {
    size_t length = strcspn(list, ",");
    bool known = length == 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
      if (strlen(names[i]) == length && strncmp(list, names[i], length) == 0) {
        modes |= 1u << i;
        known = true;
      }
    }
    if (!known) {
      fprintf(stderr, "CML_WORKALIKE_HOSTILE: no such mode: %.*s\n", (int)length, list);
      abort();
    }
    list += length;
    if (*list == ',') list++;
  }
  atomic_store(&wa_modes, modes);
}

static bool hostile(unsigned mode) { return (atomic_load(&wa_modes) & mode) != 0; }
static void born(void) { atomic_fetch_add(&wa_live, 1); }
static void died(void) { atomic_fetch_sub(&wa_live, 1); }

static void fault(const char *rule) {
  fprintf(stderr, "work-alike: broken rule: %s\n", rule);
  atomic_fetch_add(&wa_faults, 1);
}

/* Is it the turn of this call? */
static bool its_turn(const char *where, bool failure) {
  int what = atomic_load(&wa_inject);
  if (what == CML_INJECT_NOTHING || (what == CML_INJECT_FAILURE) != failure) return false;
  if (atomic_fetch_sub(&wa_countdown, 1) != 1) return false;
  atomic_store(&wa_went_off, where);
  return true;
}

static void entry(const char *where) {
  if (!its_turn(where, false)) return;
  switch (atomic_load(&wa_inject)) {
    case CML_INJECT_NSEXCEPTION:
      [NSException raise:NSInternalInconsistencyException format:@"injected at %s", where];
      break;
    case CML_INJECT_TWOFOLD: {
      NSDictionary *numbers = [NSDictionary dictionaryWithObject:[NSNumber numberWithInt:7]
                                                          forKey:NSLocalizedDescriptionKey];
      NSError *cause = [NSError errorWithDomain:MLModelErrorDomain code:7 userInfo:numbers];
      @throw [NSException exceptionWithName:NSInternalInconsistencyException
                                     reason:[NSString stringWithFormat:@"injected at %s", where]
                                   userInfo:[NSDictionary dictionaryWithObject:cause forKey:NSUnderlyingErrorKey]];
    }
    default: @throw @"an object that is no exception";
  }
}

/* The end of a method that took a completion. */
static void accepted(const char *where) {
  if (!hostile(CML_HOSTILE_THROW_AFTER)) return;
  [NSException raise:NSInternalInconsistencyException format:@"thrown by %s, which answers all the same", where];
}

static NSError *error_of(NSInteger code, NSString *message, NSError *below) {
  NSMutableDictionary *info = [NSMutableDictionary dictionary];
  [info setObject:message forKey:NSLocalizedDescriptionKey];
  if (below != nil) [info setObject:below forKey:NSUnderlyingErrorKey];
  return [NSError errorWithDomain:MLModelErrorDomain code:code userInfo:info];
}

/* Hands out an error in the way of the current mode. Always nil, to be returned. */
static id fail(NSError **error, NSError *cause) {
  if (hostile(CML_HOSTILE_NESTED_ERRORS)) {
    for (int depth = 3; depth > 0; depth--) {
      cause = error_of(100 + depth, [NSString stringWithFormat:@"nested, %d above the cause", depth], cause);
    }
  }
  if (error != NULL) *error = hostile(CML_HOSTILE_NIL_ERROR) ? nil : cause;
  return nil;
}

static bool entry_fails(const char *where, NSError **error) {
  entry(where);
  if (!its_turn(where, true)) return false;
  fail(error, error_of(MLModelErrorGeneric, [NSString stringWithFormat:@"injected at %s", where], nil));
  return true;
}

/* ---- to and from the delegate ---- */

static const CmlBridge *delegate(void) {
  const CmlBridge *bridge = atomic_load(&wa_delegate);
  if (bridge == NULL) {
    fprintf(stderr, "work-alike: no delegate is set\n");
    abort();
  }
  return bridge;
}

static NSString *text_of(CmlStr s) {
  if (s.len == 0) return @"";
  return [[[NSString alloc] initWithBytes:s.ptr length:s.len encoding:NSUTF8StringEncoding] autorelease];
}

/* Borrowed from the autorelease pool. */
static CmlStr str_of(NSString *string) {
  NSData *data = [string dataUsingEncoding:NSUTF8StringEncoding];
  CmlStr s = {data.length > 0 ? data.bytes : "", data.length};
  return s;
}

/* The delegate's error, as Core ML would wrap it: an error of its own domain above, the cause below. Frees `from`. */
static NSError *error_from(const CmlBridge *bridge, CmlStatus status, CmlError *from) {
  CmlErrorView view;
  memset(&view, 0, sizeof view);
  view.size = sizeof view;
  bridge->error_view(from, 0, &view);
  NSError *below = nil;
  if (from != NULL) {
    for (uint32_t depth = view.depth_left + 1; depth-- > 0;) {
      bridge->error_view(from, depth, &view);
      NSMutableDictionary *info = [NSMutableDictionary dictionary];
      [info setObject:text_of(view.message) forKey:NSLocalizedDescriptionKey];
      if (view.reason.len > 0) [info setObject:text_of(view.reason) forKey:NSLocalizedFailureReasonErrorKey];
      if (below != nil) [info setObject:below forKey:NSUnderlyingErrorKey];
      below = [NSError errorWithDomain:text_of(view.domain) code:(NSInteger)view.code userInfo:info];
    }
  }
  bridge->error_free(from);
  NSInteger code = status == CML_TYPE_MISMATCH ? MLModelErrorFeatureType
                   : status == CML_NOT_FOUND   ? MLModelErrorIO
                                               : MLModelErrorGeneric;
  NSString *message = below != nil ? below.localizedDescription : @"the delegate failed without an error";
  return error_of(code, message, below);
}

static size_t item_size(MLMultiArrayDataType type) { return ((size_t)type & 0xFFFF) / 8; }

static NSArray<NSNumber *> *dense_strides(NSArray<NSNumber *> *shape) {
  NSMutableArray<NSNumber *> *strides = [NSMutableArray array];
  long long stride = 1;
  for (NSUInteger i = shape.count; i-- > 0;) {
    [strides insertObject:[NSNumber numberWithLongLong:stride] atIndex:0];
    long long size = [[shape objectAtIndex:i] longLongValue];
    if (size > 1) stride *= size;
  }
  return strides;
}

/* ---- pixel buffers ---- */

struct CmlTwinPixelBuffer {
  atomic_int count, locks;
  size_t width, height, stride;
  OSType format;
  unsigned char *bytes;
};

static size_t pixel_size(OSType format) {
  return format == kCVPixelFormatType_32BGRA ? 4 : format == kCVPixelFormatType_OneComponent16Half ? 2 : 1;
}

CVReturn CVPixelBufferCreate(CFAllocatorRef allocator, size_t width, size_t height, OSType format,
                             CFDictionaryRef attributes, CVPixelBufferRef *out) {
  (void)allocator;
  entry("CVPixelBufferCreate");
  if (its_turn("CVPixelBufferCreate", true)) return kCVReturnAllocationFailed;
  if ([(NSDictionary *)(id)attributes objectForKey:kCVPixelBufferIOSurfacePropertiesKey] == nil) {
    fault("a pixel buffer without an IOSurface");
  }
  CVPixelBufferRef made = calloc(1, sizeof *made);
  made->count = 1;
  made->width = width;
  made->height = height;
  made->format = format;
  made->stride = (width * pixel_size(format) + 63) / 64 * 64 + 64; /* always padded */
  made->bytes = malloc(made->stride * height);
  memset(made->bytes, 0xA5, made->stride * height);
  born();
  *out = made;
  return kCVReturnSuccess;
}

CVPixelBufferRef CVPixelBufferRetain(CVPixelBufferRef buffer) {
  if (buffer != NULL) atomic_fetch_add(&buffer->count, 1);
  return buffer;
}

void CVPixelBufferRelease(CVPixelBufferRef buffer) {
  if (buffer == NULL || atomic_fetch_sub(&buffer->count, 1) != 1) return;
  if (buffer->locks != 0) fault("a pixel buffer freed while locked");
  free(buffer->bytes);
  free(buffer);
  died();
}

CVReturn CVPixelBufferLockBaseAddress(CVPixelBufferRef buffer, CVPixelBufferLockFlags flags) {
  (void)flags;
  if (its_turn("CVPixelBufferLockBaseAddress", true)) return kCVReturnInvalidArgument;
  atomic_fetch_add(&buffer->locks, 1);
  return kCVReturnSuccess;
}

CVReturn CVPixelBufferUnlockBaseAddress(CVPixelBufferRef buffer, CVPixelBufferLockFlags flags) {
  (void)flags;
  if (atomic_fetch_sub(&buffer->locks, 1) < 1) fault("a pixel buffer unlocked that was not locked");
  return kCVReturnSuccess;
}

void *CVPixelBufferGetBaseAddress(CVPixelBufferRef buffer) {
  if (buffer->locks == 0) fault("the pixels of a buffer that is not locked");
  return buffer->locks > 0 ? buffer->bytes : NULL;
}
size_t CVPixelBufferGetBytesPerRow(CVPixelBufferRef buffer) { return buffer->stride; }
size_t CVPixelBufferGetWidth(CVPixelBufferRef buffer) { return buffer->width; }
size_t CVPixelBufferGetHeight(CVPixelBufferRef buffer) { return buffer->height; }
OSType CVPixelBufferGetPixelFormatType(CVPixelBufferRef buffer) { return buffer->format; }

/* ---- multi-arrays ---- */

/* Without an entry. `keeps` is retained as long as the array lives. */
static MLMultiArray *array_on(MLMultiArray *self, void *bytes, NSArray *shape, MLMultiArrayDataType type,
                              NSArray *strides, void (^deallocator)(void *), id keeps) {
  self->_bytes = bytes;
  self->_shape = [shape copy];
  self->_strides = [strides copy];
  self->_type = type;
  self->_deallocator = deallocator != nil ? Block_copy(deallocator) : NULL;
  self->_keeps = [keeps retain];
  size_t last = 1;
  bool empty = false;
  for (NSUInteger i = 0; i < shape.count; i++) {
    long long size = [[shape objectAtIndex:i] longLongValue];
    if (size == 0) empty = true;
    last += (size_t)(size - 1) * (size_t)[[strides objectAtIndex:i] longLongValue];
  }
  self->_size = empty ? 0 : (NSInteger)(last * item_size(type));
  return self;
}

static MLMultiArray *array_alloc(void) {
  MLMultiArray *array = [[MLMultiArray alloc] init];
  born();
  return [array autorelease];
}

static NSInteger announced(MLMultiArray *array) {
  return hostile(CML_HOSTILE_SHORT_BYTES) ? array->_size - 1 : array->_size;
}

@implementation MLMultiArray
- (nullable instancetype)initWithDataPointer:(void *)bytes
                                       shape:(NSArray<NSNumber *> *)shape
                                    dataType:(MLMultiArrayDataType)type
                                     strides:(NSArray<NSNumber *> *)strides
                                 deallocator:(void (^)(void *bytes))deallocator
                                       error:(NSError **)error {
  bool injected = false;
  @try {
    injected = entry_fails("-[MLMultiArray initWithDataPointer:...]", error);
  } @catch (...) {
    born();
    [self release]; /* `alloc` gave it to us, and nobody else will */
    @throw;
  }
  bool bad = bytes == NULL || shape.count != strides.count || item_size(type) == 0;
  self = [super init];
  born();
  if (injected || bad) {
    if (hostile(CML_HOSTILE_EAGER_FREE) && deallocator != nil) deallocator(bytes);
    if (!injected) fail(error, error_of(MLModelErrorGeneric, @"a bad pointer, shape or data type", nil));
    [self release];
    return nil;
  }
  return array_on(self, bytes, shape, type, strides, deallocator, nil);
}
- (void)dealloc {
  if (_deallocator != NULL) {
    _deallocator(_bytes);
    Block_release(_deallocator);
  }
  [_shape release];
  [_strides release];
  [_keeps release];
  died();
  [super dealloc];
}
- (MLMultiArrayDataType)dataType {
  entry("-[MLMultiArray dataType]");
  return _type;
}
- (NSArray<NSNumber *> *)shape {
  entry("-[MLMultiArray shape]");
  return [[_shape retain] autorelease];
}
- (NSArray<NSNumber *> *)strides {
  entry("-[MLMultiArray strides]");
  return [[_strides retain] autorelease];
}
- (void *)dataPointer {
  entry("-[MLMultiArray dataPointer]");
  return _bytes;
}
- (void)getBytesWithHandler:(void(NS_NOESCAPE ^)(const void *, NSInteger))handler {
  entry("-[MLMultiArray getBytesWithHandler:]");
  handler(_bytes, announced(self));
}
- (void)getMutableBytesWithHandler:(void(NS_NOESCAPE ^)(void *, NSInteger, NSArray<NSNumber *> *))handler {
  entry("-[MLMultiArray getMutableBytesWithHandler:]");
  handler(_bytes, announced(self), _strides);
}
@end

/* Scatters dense elements over an array's strides. */
static void array_write(MLMultiArray *array, const unsigned char *dense) {
  size_t rank = array->_shape.count, item = item_size(array->_type);
  size_t count = 1;
  for (NSNumber *size in array->_shape) count *= (size_t)size.longLongValue;
  for (size_t k = 0; k < count; k++) {
    size_t rest = k, offset = 0;
    for (size_t i = rank; i-- > 0;) {
      size_t size = (size_t)[[array->_shape objectAtIndex:i] longLongValue];
      offset += rest % size * (size_t)[[array->_strides objectAtIndex:i] longLongValue];
      rest /= size;
    }
    memcpy((unsigned char *)array->_bytes + offset * item, dense + k * item, item);
  }
}

/* A fresh array of the framework's own, padded if the mode says so. */
static MLMultiArray *array_fresh(NSArray<NSNumber *> *shape, MLMultiArrayDataType type) {
  NSArray<NSNumber *> *strides = dense_strides(shape);
  size_t item = item_size(type);
  if (hostile(CML_HOSTILE_PADDED) && shape.count > 0) {
    long long row = [[shape lastObject] longLongValue];
    long long padded = (row * (long long)item + 63) / 64 * 64 / (long long)item + (long long)(64 / item);
    NSMutableArray<NSNumber *> *wide = [NSMutableArray arrayWithObject:[NSNumber numberWithLongLong:1]];
    long long stride = padded;
    for (NSUInteger i = shape.count - 1; i-- > 0;) {
      [wide insertObject:[NSNumber numberWithLongLong:stride] atIndex:0];
      stride *= [[shape objectAtIndex:i] longLongValue];
    }
    strides = wide;
  }
  size_t last = 1;
  for (NSUInteger i = 0; i < shape.count; i++) {
    long long size = [[shape objectAtIndex:i] longLongValue];
    last += (size_t)(size > 0 ? size - 1 : 0) * (size_t)[[strides objectAtIndex:i] longLongValue];
  }
  void *bytes = malloc(last * item);
  memset(bytes, 0xA5, last * item);
  return array_on(
      array_alloc(), bytes, shape, type, strides,
      ^(void *memory) {
        free(memory);
      },
      nil);
}

/* ---- sequences and feature values ---- */

static MLSequence *sequence_of(MLFeatureType type, NSArray *values) {
  MLSequence *sequence = [[[MLSequence alloc] init] autorelease];
  born();
  sequence->_type = type;
  sequence->_values = [values copy];
  return sequence;
}

@implementation MLSequence
+ (instancetype)sequenceWithStringArray:(NSArray<NSString *> *)values {
  entry("+[MLSequence sequenceWithStringArray:]");
  return (id)sequence_of(MLFeatureTypeString, values);
}
+ (instancetype)sequenceWithInt64Array:(NSArray<NSNumber *> *)values {
  entry("+[MLSequence sequenceWithInt64Array:]");
  return (id)sequence_of(MLFeatureTypeInt64, values);
}
- (void)dealloc {
  [_values release];
  died();
  [super dealloc];
}
- (MLFeatureType)type {
  entry("-[MLSequence type]");
  return _type;
}
- (NSArray<NSString *> *)stringValues {
  entry("-[MLSequence stringValues]");
  return _type == MLFeatureTypeString ? [[_values retain] autorelease] : [NSArray array];
}
- (NSArray<NSNumber *> *)int64Values {
  entry("-[MLSequence int64Values]");
  return _type == MLFeatureTypeInt64 ? [[_values retain] autorelease] : [NSArray array];
}
@end

static MLFeatureValue *feature_of(MLFeatureType type, id object) {
  MLFeatureValue *value = [[[MLFeatureValue alloc] init] autorelease];
  born();
  value->_type = type;
  value->_object = [object retain];
  return value;
}

@implementation MLFeatureValue
+ (instancetype)featureValueWithInt64:(int64_t)number {
  entry("+[MLFeatureValue featureValueWithInt64:]");
  MLFeatureValue *value = feature_of(MLFeatureTypeInt64, nil);
  value->_int64 = number;
  return (id)value;
}
+ (instancetype)featureValueWithDouble:(double)number {
  entry("+[MLFeatureValue featureValueWithDouble:]");
  MLFeatureValue *value = feature_of(MLFeatureTypeDouble, nil);
  value->_double = number;
  return (id)value;
}
+ (instancetype)featureValueWithString:(NSString *)string {
  entry("+[MLFeatureValue featureValueWithString:]");
  return (id)feature_of(MLFeatureTypeString, string);
}
+ (instancetype)featureValueWithMultiArray:(MLMultiArray *)array {
  entry("+[MLFeatureValue featureValueWithMultiArray:]");
  return (id)feature_of(MLFeatureTypeMultiArray, array);
}
+ (instancetype)featureValueWithPixelBuffer:(CVPixelBufferRef)pixels {
  entry("+[MLFeatureValue featureValueWithPixelBuffer:]");
  MLFeatureValue *value = feature_of(MLFeatureTypeImage, nil);
  value->_pixels = CVPixelBufferRetain(pixels);
  return (id)value;
}
+ (instancetype)featureValueWithSequence:(MLSequence *)sequence {
  entry("+[MLFeatureValue featureValueWithSequence:]");
  return (id)feature_of(MLFeatureTypeSequence, sequence);
}
+ (nullable instancetype)featureValueWithDictionary:(NSDictionary<id<NSCopying>, NSNumber *> *)dictionary
                                              error:(NSError **)error {
  if (entry_fails("+[MLFeatureValue featureValueWithDictionary:error:]", error)) return nil;
  return (id)feature_of(MLFeatureTypeDictionary, dictionary);
}
- (void)dealloc {
  [_object release];
  CVPixelBufferRelease(_pixels);
  died();
  [super dealloc];
}
- (MLFeatureType)type {
  entry("-[MLFeatureValue type]");
  return _type;
}
- (BOOL)isUndefined {
  entry("-[MLFeatureValue isUndefined]");
  return NO;
}
- (int64_t)int64Value {
  entry("-[MLFeatureValue int64Value]");
  return _int64;
}
- (double)doubleValue {
  entry("-[MLFeatureValue doubleValue]");
  return _double;
}
- (NSString *)stringValue {
  entry("-[MLFeatureValue stringValue]");
  return _type == MLFeatureTypeString ? [[_object retain] autorelease] : @"";
}
- (MLMultiArray *)multiArrayValue {
  entry("-[MLFeatureValue multiArrayValue]");
  return _type == MLFeatureTypeMultiArray ? [[_object retain] autorelease] : nil;
}
- (NSDictionary<id<NSCopying>, NSNumber *> *)dictionaryValue {
  entry("-[MLFeatureValue dictionaryValue]");
  return _type == MLFeatureTypeDictionary ? [[_object retain] autorelease] : [NSDictionary dictionary];
}
- (CVPixelBufferRef)imageBufferValue {
  entry("-[MLFeatureValue imageBufferValue]");
  return _pixels;
}
- (MLSequence *)sequenceValue {
  entry("-[MLFeatureValue sequenceValue]");
  return _type == MLFeatureTypeSequence ? [[_object retain] autorelease] : nil;
}
@end

static MLDictionaryFeatureProvider *provider_of(NSDictionary *values) {
  MLDictionaryFeatureProvider *provider = [[[MLDictionaryFeatureProvider alloc] init] autorelease];
  born();
  provider->_values = [values copy];
  return provider;
}

@implementation MLDictionaryFeatureProvider
- (nullable instancetype)initWithDictionary:(NSDictionary<NSString *, id> *)dictionary error:(NSError **)error {
  bool injected = false;
  @try {
    injected = entry_fails("-[MLDictionaryFeatureProvider initWithDictionary:error:]", error);
  } @catch (...) {
    born();
    [self release];
    @throw;
  }
  self = [super init];
  born();
  for (NSString *name in dictionary) {
    if (![[dictionary objectForKey:name] isKindOfClass:[MLFeatureValue class]]) fault("a feature that is no value");
  }
  if (injected) {
    [self release];
    return nil;
  }
  _values = [dictionary copy];
  return self;
}
- (void)dealloc {
  [_values release];
  died();
  [super dealloc];
}
- (NSSet<NSString *> *)featureNames {
  entry("-[MLDictionaryFeatureProvider featureNames]");
  return [NSSet setWithArray:_values.allKeys];
}
- (MLFeatureValue *)featureValueForName:(NSString *)name {
  entry("-[MLDictionaryFeatureProvider featureValueForName:]");
  return [[[_values objectForKey:name] retain] autorelease];
}
@end

/* ---- batches ---- */

@implementation MLArrayBatchProvider
- (instancetype)initWithFeatureProviderArray:(NSArray<id<MLFeatureProvider>> *)array {
  self = [super init];
  born();
  @try {
    entry("-[MLArrayBatchProvider initWithFeatureProviderArray:]");
  } @catch (...) {
    [self release];
    @throw;
  }
  _rows = [array copy];
  return self;
}
- (void)dealloc {
  [_rows release];
  died();
  [super dealloc];
}
- (NSInteger)count {
  entry("-[MLArrayBatchProvider count]");
  return (NSInteger)_rows.count;
}
- (id<MLFeatureProvider>)featuresAtIndex:(NSInteger)index {
  entry("-[MLArrayBatchProvider featuresAtIndex:]");
  return [[(id)[_rows objectAtIndex:(NSUInteger)index] retain] autorelease];
}
@end

/* ---- descriptions ---- */

#define GETTER(type, name, ivar) \
  -(type)name {                  \
    entry("-" #name);            \
    return ivar;                 \
  }
#define OBJECT_GETTER(type, name, ivar) \
  -(type)name {                         \
    entry("-" #name);                   \
    return [[ivar retain] autorelease]; \
  }

@implementation MLMultiArrayShapeConstraint
- (void)dealloc {
  [_ranges release];
  [_shapes release];
  died();
  [super dealloc];
}
GETTER(MLMultiArrayShapeConstraintType, type, _type)
OBJECT_GETTER(NSArray<NSValue *> *, sizeRangeForDimension, _ranges)
OBJECT_GETTER(NSArray<NSArray<NSNumber *> *> *, enumeratedShapes, _shapes)
@end

@implementation MLMultiArrayConstraint
- (void)dealloc {
  [_shape release];
  [_flexible release];
  died();
  [super dealloc];
}
GETTER(MLMultiArrayDataType, dataType, _type)
OBJECT_GETTER(NSArray<NSNumber *> *, shape, _shape)
OBJECT_GETTER(MLMultiArrayShapeConstraint *, shapeConstraint, _flexible)
@end

@implementation MLStateConstraint
- (void)dealloc {
  [_shape release];
  died();
  [super dealloc];
}
GETTER(MLMultiArrayDataType, dataType, _type)
OBJECT_GETTER(NSArray<NSNumber *> *, bufferShape, _shape)
@end

@implementation MLImageSize
- (void)dealloc {
  died();
  [super dealloc];
}
GETTER(NSInteger, pixelsWide, _wide)
GETTER(NSInteger, pixelsHigh, _high)
@end

@implementation MLImageSizeConstraint
- (void)dealloc {
  [_sizes release];
  died();
  [super dealloc];
}
GETTER(MLImageSizeConstraintType, type, _type)
GETTER(NSRange, pixelsWideRange, _wide)
GETTER(NSRange, pixelsHighRange, _high)
OBJECT_GETTER(NSArray<MLImageSize *> *, enumeratedImageSizes, _sizes)
@end

@implementation MLImageConstraint
- (void)dealloc {
  [_flexible release];
  died();
  [super dealloc];
}
GETTER(NSInteger, pixelsWide, _wide)
GETTER(NSInteger, pixelsHigh, _high)
GETTER(OSType, pixelFormatType, _format)
OBJECT_GETTER(MLImageSizeConstraint *, sizeConstraint, _flexible)
@end

@implementation MLDictionaryConstraint
- (void)dealloc {
  died();
  [super dealloc];
}
GETTER(MLFeatureType, keyType, _key)
@end

@implementation MLSequenceConstraint
- (void)dealloc {
  [_element release];
  died();
  [super dealloc];
}
GETTER(NSRange, countRange, _count)
OBJECT_GETTER(MLFeatureDescription *, valueDescription, _element)
@end

@implementation MLFeatureDescription
- (void)dealloc {
  [_name release];
  [_constraint release];
  died();
  [super dealloc];
}
GETTER(MLFeatureType, type, _type)
GETTER(BOOL, isOptional, _optional)
OBJECT_GETTER(NSString *, name, _name)
- (id)constraintOf:(Class)wanted at:(const char *)where {
  entry(where);
  return [_constraint isKindOfClass:wanted] ? [[_constraint retain] autorelease] : nil;
}
- (MLMultiArrayConstraint *)multiArrayConstraint {
  return [self constraintOf:[MLMultiArrayConstraint class] at:"-multiArrayConstraint"];
}
- (MLImageConstraint *)imageConstraint {
  return [self constraintOf:[MLImageConstraint class] at:"-imageConstraint"];
}
- (MLDictionaryConstraint *)dictionaryConstraint {
  return [self constraintOf:[MLDictionaryConstraint class] at:"-dictionaryConstraint"];
}
- (MLSequenceConstraint *)sequenceConstraint {
  return [self constraintOf:[MLSequenceConstraint class] at:"-sequenceConstraint"];
}
- (MLStateConstraint *)stateConstraint {
  return [self constraintOf:[MLStateConstraint class] at:"-stateConstraint"];
}
@end

@implementation MLModelDescription
- (void)dealloc {
  [_inputs release];
  [_outputs release];
  [_states release];
  [_predicted release];
  [_probabilities release];
  [_metadata release];
  [_labels release];
  died();
  [super dealloc];
}
OBJECT_GETTER(NSDictionary *, inputDescriptionsByName, _inputs)
OBJECT_GETTER(NSDictionary *, outputDescriptionsByName, _outputs)
OBJECT_GETTER(NSDictionary *, stateDescriptionsByName, _states)
OBJECT_GETTER(NSString *, predictedFeatureName, _predicted)
OBJECT_GETTER(NSString *, predictedProbabilitiesName, _probabilities)
OBJECT_GETTER(NSDictionary *, metadata, _metadata)
OBJECT_GETTER(NSArray *, classLabels, _labels)
@end

/* ---- descriptions, from the delegate's JSON ---- */

#define MAKE(class)                                    \
  ({                                                   \
    class *made_ = [[[class alloc] init] autorelease]; \
    born();                                            \
    made_;                                             \
  })

static MLMultiArrayDataType type_named(NSString *name) {
  if ([name isEqual:@"float16"]) return MLMultiArrayDataTypeFloat16;
  if ([name isEqual:@"float32"]) return MLMultiArrayDataTypeFloat32;
  if ([name isEqual:@"float64"]) return MLMultiArrayDataTypeDouble;
  if ([name isEqual:@"int8"]) return (MLMultiArrayDataType)CML_DTYPE_INT8;
  return MLMultiArrayDataTypeInt32;
}

static MLFeatureType kind_named(NSString *name) {
  NSArray *names = [NSArray arrayWithObjects:@"invalid", @"int64", @"double", @"string", @"image", @"tensor",
                                             @"dictionary", @"sequence", nil];
  NSUInteger index = [names indexOfObject:name];
  return index == NSNotFound ? MLFeatureTypeInvalid : (MLFeatureType)index;
}

/* [least, most], -1 or absent = no bound, as Core ML's half-open range. */
static NSRange range_of(NSArray<NSNumber *> *pair) {
  long long least = [[pair objectAtIndex:0] longLongValue];
  long long most = pair.count > 1 ? [[pair objectAtIndex:1] longLongValue] : -1;
  return NSMakeRange((NSUInteger)least, most < 0 ? (NSUInteger)NSIntegerMax : (NSUInteger)(most - least + 1));
}

static id constraint_of(MLFeatureType type, NSDictionary *feature) {
  switch (type) {
    case MLFeatureTypeMultiArray: {
      NSDictionary *tensor = [feature objectForKey:@"tensor"], *flexible = [tensor objectForKey:@"flexible"];
      MLMultiArrayConstraint *constraint = MAKE(MLMultiArrayConstraint);
      constraint->_shape = [[tensor objectForKey:@"shape"] retain];
      constraint->_type = type_named([tensor objectForKey:@"dtype"]);
      MLMultiArrayShapeConstraint *shapes = MAKE(MLMultiArrayShapeConstraint);
      constraint->_flexible = [shapes retain];
      NSMutableArray *ranges = [NSMutableArray array];
      if ([flexible objectForKey:@"enumerated"] != nil) {
        shapes->_type = MLMultiArrayShapeConstraintTypeEnumerated;
        shapes->_shapes = [[flexible objectForKey:@"enumerated"] retain];
      } else if ([flexible objectForKey:@"ranges"] != nil) {
        shapes->_type = MLMultiArrayShapeConstraintTypeRange;
        for (NSArray *pair in [flexible objectForKey:@"ranges"])
          [ranges addObject:[NSValue valueWithRange:range_of(pair)]];
      } else { /* a fixed shape: Core ML enumerates the one */
        shapes->_type = MLMultiArrayShapeConstraintTypeEnumerated;
        shapes->_shapes = [[NSArray alloc] initWithObjects:constraint->_shape, nil];
      }
      shapes->_ranges = [ranges copy];
      return constraint;
    }
    case MLFeatureTypeImage: {
      NSDictionary *image = [feature objectForKey:@"image"], *flexible = [image objectForKey:@"flexible"];
      NSString *color = [image objectForKey:@"color"];
      MLImageConstraint *constraint = MAKE(MLImageConstraint);
      constraint->_wide = [[image objectForKey:@"width"] integerValue];
      constraint->_high = [[image objectForKey:@"height"] integerValue];
      constraint->_format = [color isEqual:@"gray"]           ? kCVPixelFormatType_OneComponent8
                            : [color isEqual:@"gray_float16"] ? kCVPixelFormatType_OneComponent16Half
                                                              : kCVPixelFormatType_32BGRA;
      MLImageSizeConstraint *sizes = MAKE(MLImageSizeConstraint);
      constraint->_flexible = [sizes retain];
      NSArray *ranges = [flexible objectForKey:@"ranges"];
      if ([flexible objectForKey:@"enumerated"] != nil) {
        NSMutableArray *all = [NSMutableArray array];
        for (NSArray *pair in [flexible objectForKey:@"enumerated"]) {
          MLImageSize *size = MAKE(MLImageSize);
          size->_high = [[pair objectAtIndex:0] integerValue];
          size->_wide = [[pair objectAtIndex:1] integerValue];
          [all addObject:size];
        }
        sizes->_type = MLImageSizeConstraintTypeEnumerated;
        sizes->_sizes = [all copy];
      } else if (ranges.count == 2) {
        sizes->_type = MLImageSizeConstraintTypeRange;
        sizes->_high = range_of([ranges objectAtIndex:0]);
        sizes->_wide = range_of([ranges objectAtIndex:1]);
      }
      return constraint;
    }
    case MLFeatureTypeDictionary: {
      MLDictionaryConstraint *constraint = MAKE(MLDictionaryConstraint);
      constraint->_key = kind_named([[feature objectForKey:@"dictionary"] objectForKey:@"key"]);
      return constraint;
    }
    case MLFeatureTypeSequence: {
      NSDictionary *sequence = [feature objectForKey:@"sequence"];
      MLSequenceConstraint *constraint = MAKE(MLSequenceConstraint);
      MLFeatureDescription *element = MAKE(MLFeatureDescription);
      element->_type = kind_named([sequence objectForKey:@"element"]);
      constraint->_element = [element retain];
      constraint->_count = range_of([sequence objectForKey:@"count"]);
      return constraint;
    }
    case MLFeatureTypeState: {
      NSDictionary *tensor = [feature objectForKey:@"tensor"];
      MLStateConstraint *constraint = MAKE(MLStateConstraint);
      constraint->_shape = [[tensor objectForKey:@"shape"] retain];
      constraint->_type = type_named([tensor objectForKey:@"dtype"]);
      return constraint;
    }
    default: return nil;
  }
}

static NSDictionary *features_of(NSArray *features, bool states) {
  NSMutableDictionary *all = [NSMutableDictionary dictionary];
  for (NSDictionary *feature in features) {
    MLFeatureDescription *description = MAKE(MLFeatureDescription);
    description->_name = [[feature objectForKey:@"name"] retain];
    description->_type = states ? MLFeatureTypeState : kind_named([feature objectForKey:@"kind"]);
    description->_optional = [[feature objectForKey:@"optional"] boolValue];
    description->_constraint = [constraint_of(description->_type, feature) retain];
    [all setObject:description forKey:description->_name];
  }
  return all;
}

static MLModelDescription *description_of(NSDictionary *json) {
  MLModelDescription *description = MAKE(MLModelDescription);
  NSDictionary *metadata = [json objectForKey:@"metadata"];
  NSMutableDictionary *renamed = [NSMutableDictionary dictionary];
  NSDictionary *names =
      [NSDictionary dictionaryWithObjectsAndKeys:MLModelAuthorKey, @"author", MLModelLicenseKey, @"license",
                                                 MLModelVersionStringKey, @"version", MLModelDescriptionKey,
                                                 @"description", MLModelCreatorDefinedKey, @"user", nil];
  for (NSString *name in names) {
    id value = [metadata objectForKey:name];
    if (value != nil) [renamed setObject:value forKey:[names objectForKey:name]];
  }
  description->_inputs = [features_of([json objectForKey:@"inputs"], false) copy];
  description->_outputs = [features_of([json objectForKey:@"outputs"], false) copy];
  description->_states = [features_of([json objectForKey:@"states"], true) copy];
  description->_predicted = [[json objectForKey:@"predicted_feature"] retain];
  description->_probabilities = [[json objectForKey:@"predicted_probabilities"] retain];
  description->_labels = [[json objectForKey:@"class_labels"] retain];
  description->_metadata = [renamed copy];
  return description;
}

/* What the delegate answered, parsed; nil and an error. */
static NSDictionary *json_in(const CmlBridge *bridge, CmlStatus status, CmlBlob *blob, CmlError *error,
                             NSError **cause) {
  if (status != CML_OK) {
    *cause = error_from(bridge, status, error);
    return nil;
  }
  CmlStr text = bridge->blob_bytes(blob);
  NSData *data = [NSData dataWithBytes:text.ptr length:text.len];
  bridge->blob_free(blob);
  return [NSJSONSerialization JSONObjectWithData:data options:0 error:cause];
}

/* The delegate's description of a model. */
static NSDictionary *json_of(const CmlBridge *bridge, CmlModel *model, NSError **cause) {
  CmlBlob *blob = NULL;
  CmlError *error = NULL;
  CmlStatus status = bridge->model_describe(model, &blob, &error);
  return json_in(bridge, status, blob, error, cause);
}

/* ---- configuration and options ---- */

@implementation MLOptimizationHints
- (id)init {
  if ((self = [super init]) != nil) born();
  return self;
}
- (id)copyWithZone:(NSZone *)zone {
  MLOptimizationHints *copy = [[MLOptimizationHints allocWithZone:zone] init];
  copy->_reshape = _reshape;
  copy->_strategy = _strategy;
  return copy;
}
- (void)dealloc {
  died();
  [super dealloc];
}
GETTER(MLReshapeFrequencyHint, reshapeFrequency, _reshape)
GETTER(MLSpecializationStrategy, specializationStrategy, _strategy)
- (void)setReshapeFrequency:(MLReshapeFrequencyHint)reshape {
  entry("-setReshapeFrequency:");
  _reshape = reshape;
}
- (void)setSpecializationStrategy:(MLSpecializationStrategy)strategy {
  entry("-setSpecializationStrategy:");
  _strategy = strategy;
}
@end

@implementation MLModelConfiguration
- (id)init {
  if ((self = [super init]) != nil) {
    born();
    _units = MLComputeUnitsAll;
  }
  return self;
}
- (void)dealloc {
  [_function release];
  [_display release];
  [_hints release];
  [_device release];
  died();
  [super dealloc];
}
GETTER(MLComputeUnits, computeUnits, _units)
GETTER(BOOL, allowLowPrecisionAccumulationOnGPU, _low_precision)
OBJECT_GETTER(NSString *, functionName, _function)
OBJECT_GETTER(NSString *, modelDisplayName, _display)
- (void)setComputeUnits:(MLComputeUnits)units {
  entry("-setComputeUnits:");
  _units = units;
}
- (void)setAllowLowPrecisionAccumulationOnGPU:(BOOL)allow {
  entry("-setAllowLowPrecisionAccumulationOnGPU:");
  _low_precision = allow;
}
- (void)setFunctionName:(NSString *)name {
  entry("-setFunctionName:");
  [_function autorelease];
  _function = [name copy];
}
OBJECT_GETTER(MLOptimizationHints *, optimizationHints, _hints)
OBJECT_GETTER(id<MTLDevice>, preferredMetalDevice, _device)
- (void)setPreferredMetalDevice:(id<MTLDevice>)device {
  entry("-setPreferredMetalDevice:");
  [_device autorelease];
  _device = [device retain];
}
- (void)setOptimizationHints:(MLOptimizationHints *)hints {
  entry("-setOptimizationHints:");
  [_hints autorelease];
  _hints = [hints copy];
}
- (void)setModelDisplayName:(NSString *)name {
  entry("-setModelDisplayName:");
  [_display autorelease];
  _display = [name copy];
}
@end

@implementation MLPredictionOptions
- (id)init {
  if ((self = [super init]) != nil) born();
  return self;
}
- (void)dealloc {
  [_backings release];
  died();
  [super dealloc];
}
OBJECT_GETTER(NSDictionary *, outputBackings, _backings)
- (void)setOutputBackings:(NSDictionary *)backings {
  entry("-setOutputBackings:");
  [_backings autorelease];
  _backings = [backings copy];
}
@end

/* ---- states ---- */

typedef struct StateVisit {
  void (^handler)(MLMultiArray *buffer);
  id thrown; /* retained */
} StateVisit;

/* The delegate's frames lie between: nothing may unwind through them. */
static void state_visited(void *context, void *bytes, const CmlTensorDesc *desc) {
  StateVisit *visit = context;
  @autoreleasepool {
    @try {
      NSMutableArray *shape = [NSMutableArray array], *strides = [NSMutableArray array];
      for (uint32_t i = 0; i < desc->rank; i++) {
        [shape addObject:[NSNumber numberWithLongLong:desc->shape[i]]];
        [strides addObject:[NSNumber numberWithLongLong:desc->strides[i]]];
      }
      visit->handler(array_on(array_alloc(), bytes, shape, (MLMultiArrayDataType)desc->dtype, strides, nil, nil));
    } @catch (id thrown) {
      visit->thrown = [thrown retain];
    }
  }
}

@implementation MLState
- (void)getMultiArrayForStateNamed:(NSString *)name handler:(void(NS_NOESCAPE ^)(MLMultiArray *))handler {
  entry("-[MLState getMultiArrayForStateNamed:handler:]");
  if (![_names containsObject:name]) {
    [NSException raise:NSInvalidArgumentException format:@"there is no state named %@", name];
  }
  StateVisit visit = {handler, nil};
  CmlError *error = NULL;
  CmlStatus status = _bridge->state_with_bytes(_state, str_of(name), 1, state_visited, &visit, &error);
  if (visit.thrown != nil) @throw [visit.thrown autorelease];
  if (status != CML_OK) {
    [NSException raise:NSInternalInconsistencyException
                format:@"%@", [error_from(_bridge, status, error) localizedDescription]];
  }
}
- (void)dealloc {
  if (_state != NULL) _bridge->state_release(_state);
  [_names release];
  died();
  [super dealloc];
}
@end

/* ---- values to the delegate ---- */

static CmlStatus entries_to(const CmlBridge *bridge, CmlKind kind, NSArray *keys, NSDictionary *numbers,
                            CmlValue **value, CmlError **error) {
  size_t n = keys.count;
  CmlStr *strings = calloc(n + 1, sizeof *strings);
  int64_t *int64s = calloc(n + 1, sizeof *int64s);
  double *values = calloc(n + 1, sizeof *values);
  bool text = n > 0 && [[keys objectAtIndex:0] isKindOfClass:[NSString class]];
  for (size_t i = 0; i < n; i++) {
    id key = [keys objectAtIndex:i];
    if (text) strings[i] = str_of(key);
    if (!text) int64s[i] = [(NSNumber *)key longLongValue];
    values[i] = [[numbers objectForKey:key] doubleValue];
  }
  CmlEntries entries = {sizeof entries,        text ? CML_KIND_STRING : CML_KIND_INT64, n, text ? NULL : int64s,
                        text ? strings : NULL, numbers != nil ? values : NULL};
  CmlStatus status = kind == CML_KIND_DICTIONARY ? bridge->dictionary_new(bridge->self, &entries, value, error)
                                                 : bridge->sequence_new(bridge->self, &entries, value, error);
  free(strings);
  free(int64s);
  free(values);
  return status;
}

static CmlStatus value_to(const CmlBridge *bridge, MLFeatureValue *feature, CmlValue **value, CmlError **error) {
  CmlScalarView scalar;
  memset(&scalar, 0, sizeof scalar);
  scalar.size = sizeof scalar;
  scalar.kind = (CmlKind)feature->_type;
  switch (feature->_type) {
    case MLFeatureTypeInt64:
      scalar.int64 = feature->_int64;
      return bridge->scalar_new(bridge->self, &scalar, value, error);
    case MLFeatureTypeDouble:
      scalar.float64 = feature->_double;
      return bridge->scalar_new(bridge->self, &scalar, value, error);
    case MLFeatureTypeString:
      scalar.string = str_of(feature->_object);
      return bridge->scalar_new(bridge->self, &scalar, value, error);
    case MLFeatureTypeMultiArray: {
      MLMultiArray *array = feature->_object;
      int64_t shape[32], strides[32];
      for (NSUInteger i = 0; i < array->_shape.count; i++) {
        shape[i] = [[array->_shape objectAtIndex:i] longLongValue];
        strides[i] = [[array->_strides objectAtIndex:i] longLongValue];
      }
      CmlTensorDesc desc = {sizeof desc, (CmlDtype)array->_type, (uint32_t)array->_shape.count, shape, strides, 0};
      return bridge->tensor_copy(bridge->self, &desc, array->_bytes, (size_t)array->_size, value, error);
    }
    case MLFeatureTypeImage: {
      CVPixelBufferRef p = feature->_pixels;
      CmlImageDesc desc = {sizeof desc, p->format, (uint32_t)p->width, (uint32_t)p->height, p->stride};
      return bridge->image_new(bridge->self, &desc, p->bytes, p->stride * p->height, value, error);
    }
    case MLFeatureTypeDictionary:
      return entries_to(bridge, CML_KIND_DICTIONARY, [feature->_object allKeys], feature -> _object, value, error);
    case MLFeatureTypeSequence:
      return entries_to(bridge, CML_KIND_SEQUENCE, ((MLSequence *)feature->_object)->_values, nil, value, error);
    default: return CML_TYPE_MISMATCH;
  }
}

/* ---- values from the delegate ---- */

static void image_copied(void *context, void *pixels, const CmlImageDesc *desc) {
  CVPixelBufferRef made = calloc(1, sizeof *made);
  size_t row = desc->width * pixel_size(desc->format);
  made->count = 1;
  made->width = desc->width;
  made->height = desc->height;
  made->format = desc->format;
  made->stride = (row + 63) / 64 * 64 + 64;
  made->bytes = malloc(made->stride * made->height);
  memset(made->bytes, 0xA5, made->stride * made->height);
  for (size_t y = 0; y < made->height; y++) {
    memcpy(made->bytes + y * made->stride, (unsigned char *)pixels + y * desc->row_bytes, row);
  }
  born();
  *(CVPixelBufferRef *)context = made;
}

static MLFeatureValue *tensor_from(const CmlBridge *bridge, CmlValue *value, id backing, CmlStatus *status,
                                   CmlError **error) {
  CmlTensorDesc desc;
  memset(&desc, 0, sizeof desc);
  desc.size = sizeof desc;
  *status = bridge->tensor_desc(value, &desc, error);
  if (*status != CML_OK) return nil;
  NSMutableArray<NSNumber *> *shape = [NSMutableArray array];
  size_t count = 1;
  for (uint32_t i = 0; i < desc.rank; i++) {
    [shape addObject:[NSNumber numberWithLongLong:desc.shape[i]]];
    count *= (size_t)desc.shape[i];
  }
  MLMultiArrayDataType type = (MLMultiArrayDataType)desc.dtype;
  MLMultiArray *array = nil, *answer = nil;
  if (backing != nil && !hostile(CML_HOSTILE_IGNORE_BACKINGS)) {
    array = backing;
    if (array->_type != type || ![array->_shape isEqual:shape]) {
      fault("an output backing of the wrong type or shape");
      array = nil;
    } else if (hostile(CML_HOSTILE_ALIAS_BACKINGS)) {
      answer = array_on(array_alloc(), array->_bytes, shape, type, array->_strides, nil, array);
    }
  }
  if (array == nil) array = array_fresh(shape, type);
  NSMutableData *dense = [NSMutableData dataWithLength:count * item_size(type) + 1];
  *status = bridge->tensor_read(value, desc.dtype, dense.mutableBytes, count * item_size(type), error);
  if (*status != CML_OK) return nil;
  array_write(array, dense.bytes);
  return feature_of(MLFeatureTypeMultiArray, answer != nil ? answer : array);
}

static MLFeatureValue *value_from(const CmlBridge *bridge, CmlValue *value, id backing, CmlStatus *status,
                                  CmlError **error) {
  CmlKind kind = bridge->value_kind(value);
  switch (kind) {
    case CML_KIND_INT64:
    case CML_KIND_DOUBLE:
    case CML_KIND_STRING: {
      CmlScalarView view;
      memset(&view, 0, sizeof view);
      view.size = sizeof view;
      *status = bridge->scalar_view(value, &view, error);
      if (*status != CML_OK) return nil;
      MLFeatureValue *feature = feature_of((MLFeatureType)kind, kind == CML_KIND_STRING ? text_of(view.string) : nil);
      feature->_int64 = view.int64;
      feature->_double = view.float64;
      return feature;
    }
    case CML_KIND_TENSOR: return tensor_from(bridge, value, backing, status, error);
    case CML_KIND_IMAGE: {
      CVPixelBufferRef pixels = NULL;
      *status = bridge->image_with_bytes(value, 0, image_copied, &pixels, error);
      if (*status != CML_OK) return nil;
      MLFeatureValue *feature = feature_of(MLFeatureTypeImage, nil);
      feature->_pixels = pixels;
      return feature;
    }
    case CML_KIND_DICTIONARY:
    case CML_KIND_SEQUENCE: {
      CmlEntries view;
      memset(&view, 0, sizeof view);
      view.size = sizeof view;
      *status = bridge->entries_view(value, &view, error);
      if (*status != CML_OK) return nil;
      NSMutableArray *keys = [NSMutableArray array];
      NSMutableDictionary *numbers = [NSMutableDictionary dictionary];
      for (size_t i = 0; i < view.n; i++) {
        id key = view.key_kind == CML_KIND_STRING ? (id)text_of(view.string_keys[i])
                                                  : (id)[NSNumber numberWithLongLong:view.int64_keys[i]];
        [keys addObject:key];
        if (view.values != NULL) [numbers setObject:[NSNumber numberWithDouble:view.values[i]] forKey:key];
      }
      if (kind == CML_KIND_DICTIONARY) return feature_of(MLFeatureTypeDictionary, numbers);
      return feature_of(MLFeatureTypeSequence, sequence_of((MLFeatureType)view.key_kind, keys));
    }
    default: *status = CML_TYPE_MISMATCH; return nil;
  }
}

/* ---- models ---- */

/* Keeps something for a while, and lets go of it on a thread of its own. */
@interface WorkalikeKeeper : NSObject
+ (void)keep:(id)object;
@end
@implementation WorkalikeKeeper
+ (void)keep:(id)object { /* detachNewThread... retains it until this returns */
  (void)object;
  usleep(atomic_load(&wa_late_ms) * 1000);
}
@end

static NSString *source_of(NSString *compiled) {
  NSString *marker = [compiled stringByAppendingPathComponent:wa_marker];
  NSString *name = [NSString stringWithContentsOfFile:marker encoding:NSUTF8StringEncoding error:NULL];
  return name != nil ? [compiled stringByAppendingPathComponent:name] : compiled;
}

static CmlConfig config_of(MLModelConfiguration *configuration) {
  CmlConfig config;
  memset(&config, 0, sizeof config);
  config.size = sizeof config;
  config.compute_units = CML_COMPUTE_CPU_ONLY;
  if (configuration != nil) {
    config.compute_units = (CmlComputeUnits)configuration->_units;
    config.flags = configuration->_low_precision ? CML_CONFIG_LOW_PRECISION_ACCUMULATION : 0;
    /* Not the delegate's: it has no GPU, or another. */
    atomic_store(&wa_preferred, configuration->_device != nil ? CML_WORKALIKE_GPU : 0);
    if (configuration->_function != nil) config.function_name = str_of(configuration->_function);
    if (configuration->_display != nil) config.display_name = str_of(configuration->_display);
    if (configuration->_hints != nil) {
      config.reshape_frequency = (CmlReshapeFrequency)configuration->_hints->_reshape;
      config.specialization = (CmlSpecialization)configuration->_hints->_strategy;
    }
  }
  return config;
}

static CmlModel *load_with(const CmlBridge *bridge, NSString *path, MLModelConfiguration *configuration,
                           NSError **cause) {
  CmlConfig config = config_of(configuration);
  CmlModel *model = NULL;
  CmlError *error = NULL;
  CmlStatus status = bridge->model_load(bridge->self, str_of(path), &config, &model, &error);
  if (status != CML_OK) *cause = error_from(bridge, status, error);
  return model;
}

/* The name of a file as the specification has it: Core ML knows its URL by the path below the model's. */
static NSString *name_of(NSURL *url) {
  NSString *here = [[[NSFileManager defaultManager] currentDirectoryPath] stringByAppendingString:@"/"];
  NSString *path = url.path;
  if ([path hasPrefix:here]) path = [path substringFromIndex:here.length];
  return [@"@model_path/" stringByAppendingString:path];
}

static CmlModel *load_asset(const CmlBridge *bridge, MLModelAsset *asset, MLModelConfiguration *configuration,
                            NSError **cause) {
  NSArray *urls = asset->_files.allKeys;
  size_t n = urls.count;
  CmlFile *files = calloc(n + 1, sizeof *files);
  for (size_t i = 0; i < n; i++) {
    NSData *data = [asset->_files objectForKey:[urls objectAtIndex:i]];
    files[i] = (CmlFile){str_of(name_of([urls objectAtIndex:i])), data.bytes, data.length};
  }
  CmlConfig config = config_of(configuration);
  CmlModel *model = NULL;
  CmlError *error = NULL;
  NSData *specification = asset->_specification;
  CmlStatus status = bridge->model_load_memory(bridge->self, specification.bytes, specification.length, files, n,
                                               &config, &model, &error);
  free(files);
  if (status != CML_OK) *cause = error_from(bridge, status, error);
  return model;
}

static NSDictionary *json_at(NSString *path, NSError **cause) {
  const CmlBridge *bridge = delegate();
  CmlModel *model = load_with(bridge, path, nil, cause);
  if (model == NULL) return nil;
  NSDictionary *json = json_of(bridge, model, cause);
  bridge->model_release(model);
  return json;
}

static id<MLFeatureProvider> predict(MLModel *self, id<MLFeatureProvider> features, CmlState *state,
                                     MLPredictionOptions *options, NSError **error) {
  const CmlBridge *bridge = self->_bridge;
  NSDictionary *values = ((MLDictionaryFeatureProvider *)features)->_values;
  NSArray *keys = values.allKeys;
  size_t n = keys.count;
  if (hostile(CML_HOSTILE_LATE_RELEASE)) {
    [NSThread detachNewThreadSelector:@selector(keep:) toTarget:[WorkalikeKeeper class] withObject:values];
  }
  CmlStr *names = calloc(n + 1, sizeof *names);
  CmlValue **inputs = calloc(n + 1, sizeof *inputs);
  CmlResult *result = NULL;
  CmlError *cause = NULL;
  CmlStatus status = CML_OK;
  for (size_t i = 0; i < n && status == CML_OK; i++) {
    names[i] = str_of([keys objectAtIndex:i]);
    status = value_to(bridge, [values objectForKey:[keys objectAtIndex:i]], &inputs[i], &cause);
  }
  if (status == CML_OK) {
    status = bridge->model_predict(self->_model, state, names, inputs, n, NULL, &result, &cause);
  }
  NSMutableDictionary *outputs = [NSMutableDictionary dictionary];
  if (status == CML_OK) {
    CmlResultView view;
    memset(&view, 0, sizeof view);
    view.size = sizeof view;
    bridge->result_view(result, &view);
    for (size_t i = 0; i < view.n_outputs && status == CML_OK; i++) {
      NSString *name = text_of(view.outputs[i].name);
      MLFeatureValue *value =
          value_from(bridge, view.outputs[i].value, [options != nil ? options->_backings : nil objectForKey:name],
                     &status, &cause);
      if (value != nil) [outputs setObject:value forKey:name];
    }
  }
  bridge->result_free(result);
  for (size_t i = 0; i < n; i++) bridge->value_release(inputs[i]);
  free(inputs);
  free(names);
  return status == CML_OK ? provider_of(outputs) : fail(error, error_from(bridge, status, cause));
}

/* A prediction whose answer is given later, on a thread of its own. */
@interface WorkalikePrediction : NSObject {
 @public
  MLModel *_model;
  id<MLFeatureProvider> _input;
  MLState *_state;
  MLPredictionOptions *_options;
  BOOL _fails;
  NSError *_cause;
  void (^_handler)(id<MLFeatureProvider>, NSError *);
}
- (void)run:(id)unused;
@end
@implementation WorkalikePrediction
- (void)run:(id)unused {
  (void)unused;
  @autoreleasepool {
    NSError *cause = _cause;
    id<MLFeatureProvider> given = nil;
    if (!_fails) given = predict(_model, _input, _state != nil ? _state->_state : NULL, _options, &cause);
    if (hostile(CML_HOSTILE_LATE_ANSWER)) usleep(atomic_load(&wa_late_ms) * 1000);
    _handler(given, given == nil ? cause : nil);
  }
}
- (void)dealloc {
  [_model release];
  [(id)_input release];
  [_state release];
  [_options release];
  [_cause release];
  Block_release(_handler);
  died();
  [super dealloc];
}
@end

static void predict_later(MLModel *model, id<MLFeatureProvider> input, MLState *state, MLPredictionOptions *options,
                          void (^handler)(id<MLFeatureProvider>, NSError *), BOOL fails, NSError *cause) {
  WorkalikePrediction *job = [[[WorkalikePrediction alloc] init] autorelease];
  born();
  job->_model = [model retain];
  job->_input = [(id)input retain];
  job->_state = [state retain];
  job->_options = [options retain];
  job->_fails = fails;
  job->_cause = [cause retain];
  job->_handler = Block_copy(handler);
  if (hostile(CML_HOSTILE_EARLY_ANSWER)) {
    [job run:nil];
  } else {
    [NSThread detachNewThreadSelector:@selector(run:) toTarget:job withObject:nil];
  }
  accepted("a prediction");
}

/* Without an entry. Takes the delegate's model. */
static id model_on(const CmlBridge *bridge, CmlModel *loaded, NSError **error) {
  NSError *cause = nil;
  MLModel *model = MAKE(MLModel);
  model->_bridge = bridge;
  model->_model = loaded;
  NSDictionary *json = json_of(bridge, loaded, &cause);
  if (json == nil) return fail(error, cause);
  model->_description = [description_of(json) retain];
  return model;
}

static void answer(id given, NSError *cause, void (^handler)(id, NSError *));

@implementation MLModel
+ (nullable instancetype)modelWithContentsOfURL:(NSURL *)url
                                  configuration:(MLModelConfiguration *)configuration
                                          error:(NSError **)error {
  if (entry_fails("+[MLModel modelWithContentsOfURL:configuration:error:]", error)) return nil;
  while (hostile(CML_HOSTILE_STUCK_LOAD)) usleep(1000);
  const CmlBridge *bridge = delegate();
  NSError *cause = nil;
  if (![url.path.pathExtension isEqual:@"mlmodelc"]) fault("loading what is not compiled");
  CmlModel *loaded = load_with(bridge, source_of(url.path), configuration, &cause);
  return loaded != NULL ? model_on(bridge, loaded, error) : fail(error, cause);
}
+ (nullable NSURL *)compileModelAtURL:(NSURL *)url error:(NSError **)error {
  if (entry_fails("+[MLModel compileModelAtURL:error:]", error)) return nil;
  NSFileManager *files = [NSFileManager defaultManager];
  NSString *name = url.path.lastPathComponent;
  NSError *cause = nil;
  if (json_at(url.path, &cause) == nil) return fail(error, cause); /* a compiler refuses what is no model */
  NSString *unique = [[NSProcessInfo processInfo] globallyUniqueString];
  NSString *compiled =
      [[NSTemporaryDirectory() stringByAppendingPathComponent:unique] stringByAppendingPathExtension:@"mlmodelc"];
  if (![files createDirectoryAtPath:compiled withIntermediateDirectories:YES attributes:nil error:&cause] ||
      ![files copyItemAtPath:url.path toPath:[compiled stringByAppendingPathComponent:name] error:&cause] ||
      ![name writeToFile:[compiled stringByAppendingPathComponent:wa_marker]
              atomically:YES
                encoding:NSUTF8StringEncoding
                   error:&cause]) {
    [files removeItemAtPath:compiled error:NULL];
    return fail(error, cause);
  }
  return [NSURL fileURLWithPath:compiled];
}
- (void)dealloc {
  if (_model != NULL) _bridge->model_release(_model);
  [_description release];
  died();
  [super dealloc];
}
OBJECT_GETTER(MLModelDescription *, modelDescription, _description)
- (nullable id<MLFeatureProvider>)predictionFromFeatures:(id<MLFeatureProvider>)input
                                                 options:(MLPredictionOptions *)options
                                                   error:(NSError **)error {
  if (entry_fails("-[MLModel predictionFromFeatures:options:error:]", error)) return nil;
  return predict(self, input, NULL, options, error);
}
- (nullable id<MLFeatureProvider>)predictionFromFeatures:(id<MLFeatureProvider>)input
                                              usingState:(MLState *)state
                                                 options:(MLPredictionOptions *)options
                                                   error:(NSError **)error {
  if (entry_fails("-[MLModel predictionFromFeatures:usingState:options:error:]", error)) return nil;
  return predict(self, input, state->_state, options, error);
}
- (void)predictionFromFeatures:(id<MLFeatureProvider>)input
                       options:(MLPredictionOptions *)options
             completionHandler:(void (^)(id<MLFeatureProvider>, NSError *))handler {
  NSError *cause = nil;
  BOOL fails = entry_fails("-[MLModel predictionFromFeatures:options:completionHandler:]", &cause);
  predict_later(self, input, nil, options, handler, fails, cause);
}
- (void)predictionFromFeatures:(id<MLFeatureProvider>)input
                    usingState:(MLState *)state
                       options:(MLPredictionOptions *)options
             completionHandler:(void (^)(id<MLFeatureProvider>, NSError *))handler {
  NSError *cause = nil;
  BOOL fails = entry_fails("-[MLModel predictionFromFeatures:usingState:options:completionHandler:]", &cause);
  predict_later(self, input, state, options, handler, fails, cause);
}
- (nullable id<MLBatchProvider>)predictionsFromBatch:(id<MLBatchProvider>)batch
                                             options:(MLPredictionOptions *)options
                                               error:(NSError **)error {
  if (entry_fails("-[MLModel predictionsFromBatch:options:error:]", error)) return nil;
  NSArray *rows = ((MLArrayBatchProvider *)batch)->_rows;
  NSMutableArray *outputs = [NSMutableArray array];
  for (id<MLFeatureProvider> row in rows) {
    id<MLFeatureProvider> given = predict(self, row, NULL, options, error);
    if (given == nil) return nil;
    [outputs addObject:given];
  }
  if (hostile(CML_HOSTILE_LOSE_ROW) && outputs.count > 0) [outputs removeLastObject];
  return [[[MLArrayBatchProvider alloc] initWithFeatureProviderArray:outputs] autorelease];
}
+ (void)loadModelAsset:(MLModelAsset *)asset
         configuration:(MLModelConfiguration *)configuration
     completionHandler:(void (^)(MLModel *, NSError *))handler {
  NSError *cause = nil;
  MLModel *model = nil;
  if (!entry_fails("+[MLModel loadModelAsset:configuration:completionHandler:]", &cause)) {
    const CmlBridge *bridge = delegate();
    if (asset->_specification == nil) fault("loading an asset that is not in memory");
    CmlModel *loaded = load_asset(bridge, asset, configuration, &cause);
    model = loaded != NULL ? model_on(bridge, loaded, &cause) : fail(&cause, cause);
  }
  answer(model, cause, (void (^)(id, NSError *))handler);
}
- (MLState *)newState {
  if (entry_fails("-[MLModel newState]", NULL)) return (MLState *)nil;
  CmlState *made = NULL;
  CmlError *error = NULL;
  CmlStatus status = _bridge->state_new(_model, &made, &error);
  if (status != CML_OK) {
    NSError *cause = error_from(_bridge, status, error);
    [NSException raise:NSInternalInconsistencyException format:@"%@", cause.localizedDescription];
  }
  MLState *state = [[MLState alloc] init];
  born();
  state->_bridge = _bridge;
  state->_state = made;
  state->_names = [[NSSet alloc] initWithArray:_description->_states.allKeys];
  return state;
}
@end

/* ---- assets ---- */

@interface WorkalikeAnswer : NSObject {
 @public
  id _given;
  NSError *_cause;
  void (^_handler)(id, NSError *);
}
- (void)give:(id)unused;
@end
@implementation WorkalikeAnswer
- (void)give:(id)unused {
  (void)unused;
  @autoreleasepool {
    if (hostile(CML_HOSTILE_LATE_ANSWER)) usleep(atomic_load(&wa_late_ms) * 1000);
    while ([_given isKindOfClass:[MLModel class]] && hostile(CML_HOSTILE_STUCK_LOAD)) usleep(1000);
    _handler(_given, _given == nil ? _cause : nil);
  }
}
- (void)dealloc {
  [_given release];
  [_cause release];
  Block_release(_handler);
  died();
  [super dealloc];
}
@end

/* On a thread of its own, as Core ML does it, or in the way of the current mode. */
static void answer(id given, NSError *cause, void (^handler)(id, NSError *)) {
  WorkalikeAnswer *answer = [[[WorkalikeAnswer alloc] init] autorelease];
  born();
  answer->_given = [given retain];
  answer->_cause = [cause retain];
  answer->_handler = Block_copy(handler);
  if (hostile(CML_HOSTILE_EARLY_ANSWER)) {
    [answer give:nil];
  } else {
    [NSThread detachNewThreadSelector:@selector(give:) toTarget:answer withObject:nil];
  }
  accepted("a question");
}

/* Without an entry. */
static id asset_on(NSData *specification, NSDictionary<NSURL *, NSData *> *files, NSError **error) {
  const CmlBridge *bridge = delegate();
  NSError *cause = nil;
  MLModelAsset *asset = MAKE(MLModelAsset);
  asset->_specification = [specification copy];
  asset->_files = [files copy];
  CmlModel *model = load_asset(bridge, asset, nil, &cause);
  if (model == NULL) return fail(error, cause);
  NSDictionary *json = json_of(bridge, model, &cause);
  bridge->model_release(model);
  if (json == nil) return fail(error, cause);
  NSArray *functions = [json objectForKey:@"functions"];
  asset->_functions = functions != nil ? [functions copy] : [[NSArray alloc] init];
  return asset;
}

@implementation MLModelAsset
+ (nullable instancetype)modelAssetWithURL:(NSURL *)url error:(NSError **)error {
  if (entry_fails("+[MLModelAsset modelAssetWithURL:error:]", error)) return nil;
  NSError *cause = nil;
  NSDictionary *json = json_at(source_of(url.path), &cause);
  if (json == nil) return fail(error, cause);
  MLModelAsset *asset = MAKE(MLModelAsset);
  NSArray *functions = [json objectForKey:@"functions"];
  asset->_functions = functions != nil ? [functions copy] : [[NSArray alloc] init];
  return (id)asset;
}
+ (nullable instancetype)modelAssetWithSpecificationData:(NSData *)specification error:(NSError **)error {
  if (entry_fails("+[MLModelAsset modelAssetWithSpecificationData:error:]", error)) return nil;
  return asset_on(specification, [NSDictionary dictionary], error);
}
+ (nullable instancetype)modelAssetWithSpecificationData:(NSData *)specification
                                             blobMapping:(NSDictionary<NSURL *, NSData *> *)files
                                                   error:(NSError **)error {
  if (entry_fails("+[MLModelAsset modelAssetWithSpecificationData:blobMapping:error:]", error)) return nil;
  return asset_on(specification, files, error);
}
- (void)functionNamesWithCompletionHandler:(void (^)(NSArray<NSString *> *, NSError *))handler {
  entry("-[MLModelAsset functionNamesWithCompletionHandler:]");
  answer(_functions, nil, (void (^)(id, NSError *))handler);
}
- (void)dealloc {
  [_functions release];
  [_specification release];
  [_files release];
  died();
  [super dealloc];
}
@end

/* ---- devices ---- */

@interface WorkalikeMetal : NSObject <MTLDevice>
@end
@implementation WorkalikeMetal
- (void)dealloc {
  died();
  [super dealloc];
}
GETTER(NSString *, name, @"Work-alike GPU")
GETTER(uint64_t, registryID, CML_WORKALIKE_GPU)
@end

@implementation MLCPUComputeDevice
@end
@implementation MLGPUComputeDevice
GETTER(id<MTLDevice>, metalDevice, MAKE(WorkalikeMetal))
@end
@implementation MLNeuralEngineComputeDevice
GETTER(NSInteger, totalCoreCount, 16)
@end

static id device_named(NSString *kind) {
  Class class = [kind isEqual:@"gpu"]             ? [MLGPUComputeDevice class]
                : [kind isEqual:@"neural_engine"] ? [MLNeuralEngineComputeDevice class]
                                                  : [MLCPUComputeDevice class];
  return [[[class alloc] init] autorelease];
}

NSArray<id<MLComputeDeviceProtocol>> *MLAllComputeDevices(void) {
  entry("MLAllComputeDevices");
  return [NSArray arrayWithObjects:device_named(@"cpu"), device_named(@"gpu"), device_named(@"neural_engine"), nil];
}

/* ---- structures and plans ---- */

/* A part on what the delegate says of it. */
#define PART(class, json_)                         \
  ({                                               \
    class *part_ = MAKE(class);                    \
    part_->_json = [(NSDictionary *)json_ retain]; \
    part_;                                         \
  })
#define PARTS(class, list)                                                           \
  ({                                                                                 \
    NSMutableArray *parts_ = [NSMutableArray array];                                 \
    for (NSDictionary *one_ in (list)) [parts_ addObject:(id)PART(class, one_)];     \
    parts_;                                                                          \
  })
#define PART_BEGINS(class) \
  @implementation class    \
  -(void)dealloc {         \
    [_json release];       \
    died();                \
    [super dealloc];       \
  }
#define PART_GETTER(type, name, value) \
  -(type)name {                        \
    entry("-" #name);                  \
    return (type)(value);              \
  }
#define OF(key) [_json objectForKey:@key]

/* As Core ML writes them: with the version of the op set, and constants as ops. */
static NSArray *operations_of(NSArray *ops) {
  NSDictionary *none = [NSDictionary dictionary];
  NSDictionary *constant = [NSDictionary dictionaryWithObjectsAndKeys:@"const", @"operator", none, @"inputs", nil];
  NSMutableArray *made = [NSMutableArray array];
  if (ops.count > 0) [made addObject:(id)PART(MLModelStructureProgramOperation, constant)];
  for (NSDictionary *op in ops) {
    NSMutableDictionary *named = [NSMutableDictionary dictionaryWithDictionary:op];
    [named setObject:[@"ios17." stringByAppendingString:[op objectForKey:@"kind"]] forKey:@"operator"];
    [made addObject:(id)PART(MLModelStructureProgramOperation, named)];
  }
  return made;
}

PART_BEGINS(MLModelStructureProgramNamedValueType)
PART_GETTER(NSString *, name, OF("name"))
@end

@implementation MLModelStructureProgramValue
- (void)dealloc {
  died();
  [super dealloc];
}
@end

PART_BEGINS(MLModelStructureProgramBinding)
- (BOOL)isConstant {
  return [OF("name") hasPrefix:@"constant"];
}
PART_GETTER(NSString *, name, [self isConstant] ? nil : OF("name"))
PART_GETTER(MLModelStructureProgramValue *, value, [self isConstant] ? MAKE(MLModelStructureProgramValue) : nil)
@end

PART_BEGINS(MLModelStructureProgramArgument)
- (NSArray *)bindings {
  entry("-bindings");
  NSMutableArray *made = [NSMutableArray array];
  for (NSString *name in OF("names")) {
    NSDictionary *json = [NSDictionary dictionaryWithObject:name forKey:@"name"];
    [made addObject:(id)PART(MLModelStructureProgramBinding, json)];
  }
  return made;
}
@end

PART_BEGINS(MLModelStructureProgramOperation)
PART_GETTER(NSString *, operatorName, OF("operator"))
- (NSDictionary *)inputs {
  entry("-inputs");
  NSDictionary *inputs = OF("inputs");
  NSMutableDictionary *made = [NSMutableDictionary dictionary];
  for (NSString *parameter in inputs) {
    NSDictionary *json = [NSDictionary dictionaryWithObject:[inputs objectForKey:parameter] forKey:@"names"];
    [made setObject:(id)PART(MLModelStructureProgramArgument, json) forKey:parameter];
  }
  return made;
}
PART_GETTER(NSArray *, outputs, PARTS(MLModelStructureProgramNamedValueType, OF("outputs")))
PART_GETTER(NSArray *, blocks, PARTS(MLModelStructureProgramBlock, OF("blocks")))
@end

PART_BEGINS(MLModelStructureProgramBlock)
PART_GETTER(NSArray *, inputs, PARTS(MLModelStructureProgramNamedValueType, OF("inputs")))
PART_GETTER(NSArray *, outputNames, OF("outputs"))
PART_GETTER(NSArray *, operations, operations_of(OF("ops")))
@end

PART_BEGINS(MLModelStructureProgramFunction)
PART_GETTER(NSArray *, inputs, PARTS(MLModelStructureProgramNamedValueType, OF("inputs")))
PART_GETTER(MLModelStructureProgramBlock *, block, PART(MLModelStructureProgramBlock, _json))
@end

PART_BEGINS(MLModelStructureProgram)
- (NSDictionary *)functions {
  entry("-functions");
  NSDictionary *functions = OF("functions");
  NSMutableDictionary *made = [NSMutableDictionary dictionary];
  for (NSString *name in functions) {
    [made setObject:(id)PART(MLModelStructureProgramFunction, [functions objectForKey:name]) forKey:name];
  }
  return made;
}
@end

PART_BEGINS(MLModelStructureNeuralNetworkLayer)
PART_GETTER(NSString *, name, OF("name") != nil ? OF("name") : @"a layer")
PART_GETTER(NSString *, type, OF("kind"))
PART_GETTER(NSArray *, inputNames, [OF("inputs") objectForKey:@""])
PART_GETTER(NSArray *, outputNames, [OF("outputs") valueForKey:@"name"])
@end

PART_BEGINS(MLModelStructureNeuralNetwork)
PART_GETTER(NSArray *, layers, PARTS(MLModelStructureNeuralNetworkLayer,
                                     [[OF("functions") objectForKey:@"main"] objectForKey:@"ops"]))
@end

PART_BEGINS(MLModelStructurePipeline)
PART_GETTER(NSArray *, subModels, PARTS(MLModelStructure, OF("models")))
@end

typedef CmlStatus (^WorkalikeQuestion)(const CmlBridge *bridge, CmlBlob **json, CmlError **error);

static NSDictionary *asked(NS_NOESCAPE WorkalikeQuestion ask, NSError **cause) {
  const CmlBridge *bridge = delegate();
  CmlBlob *blob = NULL;
  CmlError *error = NULL;
  CmlStatus status = ask(bridge, &blob, &error);
  return json_in(bridge, status, blob, error, cause);
}

PART_BEGINS(MLModelStructure)
+ (void)loadContentsOfURL:(NSURL *)url completionHandler:(void (^)(MLModelStructure *, NSError *))handler {
  NSError *cause = nil;
  NSDictionary *json = nil;
  if (!entry_fails("+[MLModelStructure loadContentsOfURL:completionHandler:]", &cause)) {
    CmlStr path = str_of(source_of(url.path));
    json = asked(
        ^CmlStatus(const CmlBridge *bridge, CmlBlob **blob, CmlError **error) {
          return bridge->model_structure(bridge->self, path, blob, error);
        },
        &cause);
    if (json == nil) fail(&cause, cause);
  }
  answer(json != nil ? PART(MLModelStructure, json) : nil, cause, (void (^)(id, NSError *))handler);
}
- (BOOL)is:(NSString *)kind {
  return [OF("kind") hasPrefix:kind];
}
PART_GETTER(MLModelStructureProgram *, program,
            [self is:@"ML program"] ? PART(MLModelStructureProgram, _json) : nil)
PART_GETTER(MLModelStructureNeuralNetwork *, neuralNetwork,
            [self is:@"neural network"] ? PART(MLModelStructureNeuralNetwork, _json) : nil)
PART_GETTER(MLModelStructurePipeline *, pipeline,
            [self is:@"pipeline"] ? PART(MLModelStructurePipeline, _json) : nil)
@end

PART_BEGINS(MLComputePlanDeviceUsage)
PART_GETTER(id, preferredComputeDevice, device_named(OF("preferred")))
- (NSArray *)supportedComputeDevices {
  entry("-supportedComputeDevices");
  NSMutableArray *made = [NSMutableArray array];
  for (NSString *kind in OF("supported")) [made addObject:device_named(kind)];
  return made;
}
@end

PART_BEGINS(MLComputePlanCost)
PART_GETTER(double, weight, [OF("weight") doubleValue])
@end

PART_BEGINS(MLComputePlan)
+ (void)loadContentsOfURL:(NSURL *)url
            configuration:(MLModelConfiguration *)configuration
        completionHandler:(void (^)(MLComputePlan *, NSError *))handler {
  NSError *cause = nil;
  NSDictionary *json = nil;
  if (!entry_fails("+[MLComputePlan loadContentsOfURL:configuration:completionHandler:]", &cause)) {
    CmlStr path = str_of(source_of(url.path));
    CmlConfig config = config_of(configuration);
    json = asked(
        ^CmlStatus(const CmlBridge *bridge, CmlBlob **blob, CmlError **error) {
          return bridge->compute_plan(bridge->self, path, &config, blob, error);
        },
        &cause);
    if (json == nil) fail(&cause, cause);
  }
  answer(json != nil ? PART(MLComputePlan, json) : nil, cause, (void (^)(id, NSError *))handler);
}
PART_GETTER(MLModelStructure *, modelStructure, PART(MLModelStructure, _json))
- (MLComputePlanDeviceUsage *)usageOf:(NSDictionary *)json {
  NSDictionary *devices = [json objectForKey:@"devices"];
  return devices != nil ? PART(MLComputePlanDeviceUsage, devices) : (MLComputePlanDeviceUsage *)nil;
}
- (MLComputePlanDeviceUsage *)computeDeviceUsageForMLProgramOperation:(MLModelStructureProgramOperation *)op {
  entry("-computeDeviceUsageForMLProgramOperation:");
  return [self usageOf:op->_json];
}
- (MLComputePlanDeviceUsage *)computeDeviceUsageForNeuralNetworkLayer:(MLModelStructureNeuralNetworkLayer *)layer {
  entry("-computeDeviceUsageForNeuralNetworkLayer:");
  return [self usageOf:layer->_json];
}
- (MLComputePlanCost *)estimatedCostOfMLProgramOperation:(MLModelStructureProgramOperation *)op {
  entry("-estimatedCostOfMLProgramOperation:");
  if ([op->_json objectForKey:@"weight"] == nil) return (MLComputePlanCost *)nil;
  return PART(MLComputePlanCost, op->_json);
}
@end
