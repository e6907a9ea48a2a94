/* Errors, handles, strings and blobs: what every other file stands on. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cml_internal.h"

#undef cml_fail /* see there */

static NSString *const cml_domain = @"coreml.objc"; /* errors that the shim finds itself */

/* ---- handles ---- */

const char cml_tag_model = 0, cml_tag_state = 0, cml_tag_value = 0, cml_tag_result = 0, cml_tag_request = 0;

#ifdef CML_TEST_HOOKS
_Atomic int cml_test_macos;
static atomic_long cml_live;
long cml_test_live_handles(void) { return atomic_load(&cml_live); }
#define CML_LIVE(change) ((void)atomic_fetch_add(&cml_live, (change)))
#else
#define CML_LIVE(change) ((void)0)
#endif

void *cml_handle_new(size_t size, const void *tag) {
  CmlHead *head = calloc(1, size);
  if (head == NULL) return NULL;
  head->tag = tag;
  atomic_init(&head->user, 0);
  atomic_init(&head->count, 1);
  CML_LIVE(1);
  return head;
}

void cml_handle_retain(void *handle) {
  atomic_fetch_add_explicit(&((CmlHead *)handle)->count, 1, memory_order_relaxed);
}

bool cml_handle_drop(void *handle) {
  return atomic_fetch_sub_explicit(&((CmlHead *)handle)->count, 1, memory_order_acq_rel) == 1;
}

void cml_handle_delete(void *handle) {
  ((CmlHead *)handle)->tag = NULL;
  free(handle);
  CML_LIVE(-1);
}

bool cml_is(const void *handle, const void *tag) { return handle != NULL && ((const CmlHead *)handle)->tag == tag; }

bool cml_enter(const void *handle, const void *token) {
  CmlHead *head = (CmlHead *)handle; /* the flag is not part of what `const` promises */
  uintptr_t seen = 0;
  if (atomic_compare_exchange_strong_explicit(&head->user, &seen, (uintptr_t)token, memory_order_acquire,
                                              memory_order_relaxed)) {
    return true;
  }
  return seen == (uintptr_t)token;
}

void cml_leave(const void *handle, const void *token) {
  CmlHead *head = (CmlHead *)handle;
  uintptr_t mine = (uintptr_t)token;
  /* Only the call that entered leaves; a value that was named twice is left twice. */
  (void)atomic_compare_exchange_strong_explicit(&head->user, &mine, 0, memory_order_release, memory_order_relaxed);
}

/* ---- strings ---- */

static bool cml_is_utf8(const unsigned char *p, size_t n) {
  for (size_t i = 0; i < n;) {
    unsigned char c = p[i];
    size_t more = c < 0x80 ? 0 : c >= 0xC2 && c <= 0xDF ? 1 : (c & 0xF0) == 0xE0 ? 2 : c >= 0xF0 && c <= 0xF4 ? 3 : 9;
    if (more > n - i - 1) return false;
    for (size_t k = 1; k <= more; k++) {
      if ((p[i + k] & 0xC0) != 0x80) return false;
    }
    if (c == 0xE0 && p[i + 1] < 0xA0) return false; /* overlong */
    if (c == 0xED && p[i + 1] > 0x9F) return false; /* surrogate */
    if (c == 0xF0 && p[i + 1] < 0x90) return false; /* overlong */
    if (c == 0xF4 && p[i + 1] > 0x8F) return false; /* beyond U+10FFFF */
    i += more + 1;
  }
  return true;
}

NSString *cml_string(CmlStr string) {
  if (string.len == 0) return @"";
  if (string.ptr == NULL || !cml_is_utf8((const unsigned char *)string.ptr, string.len)) return nil;
  return [[[NSString alloc] initWithBytes:string.ptr length:string.len encoding:NSUTF8StringEncoding] autorelease];
}

static CmlStr cml_bytes_copy(const void *bytes, size_t length) {
  CmlStr copy = {NULL, 0};
  char *memory = length == SIZE_MAX ? NULL : malloc(length + 1);
  if (memory == NULL) return copy;
  if (length > 0) memcpy(memory, bytes, length);
  memory[length] = 0;
  copy.ptr = memory;
  copy.len = length;
  return copy;
}

CmlStr cml_string_copy(NSString *string) {
  NSData *data = [string dataUsingEncoding:NSUTF8StringEncoding allowLossyConversion:YES];
  return cml_bytes_copy(data.bytes, data.length);
}

const char *cml_utf8(NSString *string) {
  const char *text = string.UTF8String;
  return text != NULL ? text : "";
}

void cml_string_free(CmlStr string) { free((void *)string.ptr); }

/* ---- errors ---- */

enum { CML_CHAIN_MAX = 64 }; /* no chain is longer, even if it bites its own tail */

typedef struct CmlErrorNode {
  CmlStatus status;
  int64_t code;
  CmlStr domain, message, reason;
} CmlErrorNode;

struct CmlError {
  uint32_t count;
  CmlErrorNode nodes[];
};

/* Given out when there is no memory for an error; never freed. */
typedef struct CmlStaticError {
  uint32_t count;
  CmlErrorNode node;
} CmlStaticError;
_Static_assert(offsetof(CmlStaticError, node) == offsetof(CmlError, nodes), "the static error is an error");
static const CmlStaticError cml_no_memory = {
    .count = 1,
    .node = {.status = CML_OUT_OF_MEMORY, .domain = {"coreml.objc", 11}, .message = {"out of memory", 13}},
};

static CmlError *cml_error_new(uint32_t count) {
  CmlError *error = calloc(1, sizeof *error + count * sizeof(CmlErrorNode));
  if (error == NULL) return (CmlError *)&cml_no_memory;
  error->count = count;
  CML_LIVE(1);
  return error;
}

void cml_error_free(CmlError *error) {
  if (error == NULL || error == (const CmlError *)&cml_no_memory) return;
  for (uint32_t i = 0; i < error->count; i++) {
    cml_string_free(error->nodes[i].domain);
    cml_string_free(error->nodes[i].message);
    cml_string_free(error->nodes[i].reason);
  }
  free(error);
  CML_LIVE(-1);
}

void cml_error_view(const CmlError *error, uint32_t depth, CmlErrorView *view) {
  if (view == NULL) return;
  CmlErrorView full;
  memset(&full, 0, sizeof full);
  if (error != NULL && depth < error->count) {
    const CmlErrorNode *node = &error->nodes[depth];
    full.depth_left = error->count - depth - 1;
    full.status = node->status;
    full.code = node->code;
    full.domain = node->domain;
    full.message = node->message;
    full.reason = node->reason;
  }
  full.size = view->size;
  memcpy(view, &full, full.size < sizeof full ? full.size : sizeof full);
}

static void cml_error_put(CmlError **error, CmlError *made) {
  cml_error_free(*error);
  *error = made;
}

static void cml_node_fill(CmlErrorNode *node, CmlStatus status, int64_t code, NSString *domain, NSString *message,
                          NSString *reason) {
  node->status = status;
  node->code = code;
  if (domain != nil) node->domain = cml_string_copy(domain);
  if (message != nil) node->message = cml_string_copy(message);
  if (reason != nil) node->reason = cml_string_copy(reason);
}

CmlStatus cml_fail(CmlError **error, CmlStatus status, const char *format, ...) {
  if (error == NULL) return status;
  CmlError *made = cml_error_new(1);
  if (made != (const CmlError *)&cml_no_memory) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    size_t length = wanted < 0 ? 0 : (size_t)wanted < sizeof text ? (size_t)wanted : sizeof text - 1;
    while (length > 0 && !cml_is_utf8((const unsigned char *)text, length)) length--; /* cut inside a character */
    made->nodes[0].status = status;
    made->nodes[0].domain = cml_bytes_copy("coreml.objc", 11);
    made->nodes[0].message = cml_bytes_copy(text, length);
  }
  cml_error_put(error, made);
  return status;
}

/* The error below, following the one key that Foundation has always had and then the newer plural one. */
static NSError *cml_underlying(NSDictionary *info) {
  id below = [info objectForKey:NSUnderlyingErrorKey];
  if (below == nil) {
    id several = [info objectForKey:@"NSMultipleUnderlyingErrorsKey"];
    if ([several isKindOfClass:[NSArray class]]) below = [(NSArray *)several firstObject];
  }
  return [below isKindOfClass:[NSError class]] ? below : nil;
}

/* May throw: what a dictionary names a description need not be a string. */
static void cml_chain_fill(CmlError *made, uint32_t from, CmlStatus status, NSError *cause) {
  for (uint32_t i = from; i < made->count && cause != nil; i++) {
    cml_node_fill(&made->nodes[i], status, cause.code, cause.domain, cause.localizedDescription,
                  cause.localizedFailureReason);
    cause = cml_underlying(cause.userInfo);
  }
}

static uint32_t cml_chain_length(NSError *cause) {
  uint32_t count = 0;
  while (cause != nil && count < CML_CHAIN_MAX) {
    count++;
    cause = cml_underlying(cause.userInfo);
  }
  return count;
}

CmlStatus cml_fail_nserror(CmlError **error, CmlStatus status, NSError *cause, const char *what) {
  if (cause == nil) return cml_fail(error, status, "%s failed, and Core ML did not say why", what);
  if (error == NULL) return status;
  CmlError *made = cml_error_new(cml_chain_length(cause));
  cml_error_put(error, made); /* before it is filled in, which may throw */
  if (made != (const CmlError *)&cml_no_memory) cml_chain_fill(made, 0, status, cause);
  return status;
}

CmlStatus cml_fail_exception(CmlError **error, NSException *exception) {
  if (error == NULL) return CML_OBJC_EXCEPTION;
  CmlError *made = NULL;
  @try {
    NSError *cause = cml_underlying(exception.userInfo);
    made = cml_error_new(1 + cml_chain_length(cause));
    cml_error_put(error, made);
    if (made == (const CmlError *)&cml_no_memory) return CML_OBJC_EXCEPTION;
    cml_node_fill(&made->nodes[0], CML_OBJC_EXCEPTION, 0, exception.name != nil ? exception.name : cml_domain,
                  exception.reason != nil ? exception.reason : @"an exception without a reason", nil);
    cml_chain_fill(made, 1, CML_FRAMEWORK, cause);
  } @catch (...) { /* so does reading it, where nobody else would catch that; what was read counts */
    if (made == NULL || made->nodes[0].message.ptr == NULL) {
      return cml_fail(error, CML_OBJC_EXCEPTION, "an exception was thrown, and another one by reading it");
    }
    while (made->count > 1 && made->nodes[made->count - 1].message.ptr == NULL) {
      cml_string_free(made->nodes[--made->count].domain);
    }
  }
  return CML_OBJC_EXCEPTION;
}

CmlStatus cml_fail_foreign(CmlError **error) {
  return cml_fail(error, CML_FOREIGN_EXCEPTION, "something that is not an NSException was thrown and caught");
}

CmlStatus cml_fail_busy(CmlError **error, const char *what) {
  return cml_fail(error, CML_BUSY, "the %s is in use by another call", what);
}

CmlStatus cml_fail_memory(CmlError **error) {
  if (error != NULL) cml_error_put(error, (CmlError *)&cml_no_memory);
  return CML_OUT_OF_MEMORY;
}

CmlStatus cml_fail_os(CmlError **error, const char *what, const char *needs) {
  return cml_fail(error, CML_UNSUPPORTED, "%s needs %s", what, needs);
}

/* ---- blobs ---- */

struct CmlBlob {
  CmlStr bytes;
};

CmlStatus cml_blob_take(char *bytes, size_t length, CmlBlob **blob, CmlError **error) {
  CmlBlob *made = bytes != NULL ? calloc(1, sizeof *made) : NULL;
  if (made == NULL) {
    free(bytes);
    return cml_fail_memory(error);
  }
  made->bytes.ptr = bytes;
  made->bytes.len = length;
  CML_LIVE(1);
  *blob = made;
  return CML_OK;
}

CmlStr cml_blob_bytes(const CmlBlob *blob) {
  CmlStr none = {NULL, 0};
  return blob != NULL ? blob->bytes : none;
}

void cml_blob_free(CmlBlob *blob) {
  if (blob == NULL) return;
  cml_string_free(blob->bytes);
  free(blob);
  CML_LIVE(-1);
}
