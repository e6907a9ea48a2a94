/*
 * cml_internal.h: what the files of the shim share. Nothing outside bridge-objc/src includes it.
 *
 * One source for two worlds: Apple's Core ML, and the work-alike of bridge-objc/workalike on GNUstep. Hence manual
 * retain/release, no classes or categories of our own, no subscripting, and blocks that escape capture C pointers only.
 *
 * The shape of every slot:  check the arguments -> enter the handles (BUSY) -> CML_TRY body CML_CATCH -> leave the
 * handles. The body is a function of its own that leaks nothing when it is unwound: what it makes is autoreleased, or
 * hangs on a handle that the slot made before and frees after.
 */
#ifndef CML_INTERNAL_H
#define CML_INTERNAL_H

#if __has_feature(objc_arc)
#error "the shim does its own retain and release: build it with -fno-objc-arc"
#endif

#import <CoreML/CoreML.h>
#import <CoreVideo/CoreVideo.h>
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coreml_bridge.h"

/* ---- the OS underneath ---- */

/* CML_IF_OS(15, 0, 18.0) { needs macOS 15.0, iOS or tvOS 18.0 }: without an `else`, so that the path of an older OS is
   whatever follows. Test builds can pretend to be older (CML_TEST_HOOKS), for `@available` is constant off Apple. */
#ifdef CML_TEST_HOOKS
extern _Atomic int cml_test_macos; /* e.g. 1203 = pretend to be macOS 12.3; 0 = do not pretend */
extern _Atomic int cml_test_wait_ms; /* how long an answer is waited for; 0 = as long as in life */
long cml_test_live_handles(void);  /* handles given out and not yet released */
#define CML_OS_PRETENDS(major, minor) (cml_test_macos == 0 || cml_test_macos >= (major)*100 + (minor))
#else
#define CML_OS_PRETENDS(major, minor) true
#endif
#define CML_IF_OS(major, minor, ios) \
  if (CML_OS_PRETENDS(major, minor)) \
    if (@available(macOS major##.##minor, iOS ios, tvOS ios, *))

/* MLMultiArrayDataTypeInt8, which SDKs before macOS 26 do not declare. */
#define CML_ARRAY_INT8 ((MLMultiArrayDataType)CML_DTYPE_INT8)

/* ---- handles ---- */

/* First member of every handle. `tag` says what it is and that it is ours; `user` is the address of a token of the
   call that is using it, or 0. */
typedef struct CmlHead {
  const void *tag;
  _Atomic(uintptr_t) user;
  atomic_size_t count;
} CmlHead;

extern const char cml_tag_model, cml_tag_state, cml_tag_value, cml_tag_result, cml_tag_request;

/* Zeroed memory with an initialised head and a count of 1, or NULL. */
void *cml_handle_new(size_t size, const void *tag);
/* True when the count fell to zero: the caller tears down, then calls cml_handle_delete. */
bool cml_handle_drop(void *handle);
void cml_handle_delete(void *handle);
void cml_handle_retain(void *handle);
bool cml_is(const void *handle, const void *tag);
/* Serial use. Entering twice with the same token succeeds (one call may name a value twice). */
bool cml_enter(const void *handle, const void *token);
void cml_leave(const void *handle, const void *token);

struct CmlValue {
  CmlHead head;
  CmlKind kind;
  MLFeatureValue *feature; /* retained */
  /* TENSOR */
  MLMultiArray *array; /* retained */
  CmlDtype dtype;
  uint32_t rank;
  int64_t *shape; /* rank sizes, then rank strides */
  uint64_t bytes;
  /* IMAGE */
  CVPixelBufferRef pixels; /* retained */
  /* INT64, DOUBLE, STRING */
  CmlScalarView scalar; /* the string is ours */
  /* DICTIONARY, SEQUENCE */
  CmlEntries entries; /* the arrays and strings are ours */
};

struct CmlModel {
  CmlHead head;
  MLModel *model;                                           /* retained, as all of these */
  NSDictionary<NSString *, MLFeatureDescription *> *inputs; /* by name */
  NSDictionary<NSString *, MLFeatureDescription *> *outputs;
  NSDictionary<NSString *, MLFeatureDescription *> *states; /* nil: this OS has none */
  NSArray<NSString *> *functions;                           /* nil: not known */
  NSString *function;                                       /* nil: the default one */
  NSString *compiled;                                       /* where the compiled model is; nil: in memory */
  bool owns_compiled;                                       /* ... and whether it goes with the handle */
};

struct CmlState {
  CmlHead head;
  CmlModel *model; /* counted: a state keeps its model, and that its folder */
  id state;        /* MLState, retained */
};

/* First member of every request. Counted: by the caller, and by the answer that is to come. */
struct CmlRequest {
  CmlHead head;
  atomic_bool cancelled;
  atomic_bool ended;               /* of a load: whoever sets it calls the completion */
  void (*cancel)(CmlRequest *);    /* what else cancelling does; may be NULL */
  void (*tear_down)(CmlRequest *); /* gives back what the request holds; may be NULL */
};

/* ---- errors ---- */

/* Each makes the error (if `error` is not NULL), replacing one that is there, and returns the status. */
CmlStatus cml_fail(CmlError **error, CmlStatus status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The chain of `cause`; nil is a failure that the framework did not explain. `what` names the call. */
CmlStatus cml_fail_nserror(CmlError **error, CmlStatus status, NSError *cause, const char *what);
CmlStatus cml_fail_exception(CmlError **error, NSException *exception);
CmlStatus cml_fail_foreign(CmlError **error);
CmlStatus cml_fail_busy(CmlError **error, const char *what);
CmlStatus cml_fail_memory(CmlError **error);
CmlStatus cml_fail_os(CmlError **error, const char *what, const char *needs);

#ifdef __clang_analyzer__ /* it cannot look into cml_error.m: a failure is never CML_OK */
#define cml_fail(error, status, ...) (cml_fail((error), (status), __VA_ARGS__), (status))
#endif

/* Nothing unwinds into the caller, and nothing autoreleased outlives the call. */
#define CML_TRY      \
  @autoreleasepool { \
    @try {
#define CML_CATCH(status, error)                        \
  }                                                     \
  @catch (NSException * exception_) {                   \
    (status) = cml_fail_exception((error), exception_); \
  }                                                     \
  @catch (...) {                                        \
    (status) = cml_fail_foreign((error));               \
  }                                                     \
  }

/* First line of a slot: the error is clear whatever happens. */
#define CML_CLEAR(error)                  \
  do {                                    \
    if ((error) != NULL) *(error) = NULL; \
  } while (0)

/* Does the caller's struct, which carries its size first, reach beyond `field`? */
#define CML_REACHES(type, pointer, field) \
  ((pointer)->size >= offsetof(type, field) + sizeof(((const type *)NULL)->field))

void cml_error_view(const CmlError *error, uint32_t depth, CmlErrorView *view);
void cml_error_free(CmlError *error);

/* ---- strings and blobs ---- */

/* nil when it is not UTF-8; an empty string for "none". */
NSString *cml_string(CmlStr string);
/* An owned, NUL-terminated copy as UTF-8 (what cannot be encoded is replaced); {NULL, 0} when out of memory. */
CmlStr cml_string_copy(NSString *string);
const char *cml_utf8(NSString *string); /* borrowed from the pool, never NULL; for messages */
void cml_string_free(CmlStr string);
/* Takes `bytes` (from malloc), frees them on failure. */
CmlStatus cml_blob_take(char *bytes, size_t length, CmlBlob **blob, CmlError **error);
CmlStr cml_blob_bytes(const CmlBlob *blob);
void cml_blob_free(CmlBlob *blob);

/* ---- JSON, written by hand: no exceptions on NaN, no order of NSDictionary ---- */

typedef struct CmlJson {
  char *bytes;
  size_t length, capacity;
  bool comma, failed;
} CmlJson;

void cml_json_open(CmlJson *json, char bracket);  /* '{' or '[' */
void cml_json_close(CmlJson *json, char bracket); /* '}' or ']' */
void cml_json_key(CmlJson *json, const char *key);
void cml_json_string(CmlJson *json, NSString *string);
void cml_json_strings(CmlJson *json, NSArray<NSString *> *strings);
void cml_json_text(CmlJson *json, const char *text);
void cml_json_int64(CmlJson *json, int64_t number);
void cml_json_uint64(CmlJson *json, uint64_t number);
void cml_json_bool(CmlJson *json, bool value);
void cml_json_double(CmlJson *json, double number); /* null if it is not finite */
void cml_json_name(CmlJson *json, NSString *key); /* a key that is data */
/* The whole of a slot that answers JSON: `write` fills it in. Nothing unwinds, and nothing is left on failure. */
typedef CmlStatus (^CmlJsonWriter)(CmlJson *json);
CmlStatus cml_json_answer(CmlBlob **blob, CmlError **error, NS_NOESCAPE CmlJsonWriter write);

/* ---- layouts of tensors ---- */

enum { CML_MAX_RANK = 32 };

typedef struct CmlLayout {
  CmlDtype dtype;
  size_t item; /* bytes of an element */
  uint32_t rank;
  int64_t shape[CML_MAX_RANK];
  int64_t strides[CML_MAX_RANK];
  uint64_t count; /* elements */
  uint64_t bytes; /* from the first element to the end of the last */
} CmlLayout;

size_t cml_dtype_size(CmlDtype dtype); /* 0: not a dtype */
const char *cml_dtype_name(CmlDtype dtype);
/* Checks everything about a description that came in: sizes, signs, overflow, and that this OS has the dtype. */
CmlStatus cml_layout_parse(const CmlTensorDesc *desc, CmlLayout *layout, CmlError **error);
/* The layout of an array of the framework; `strides` overrides the array's own if not nil. */
CmlStatus cml_layout_of(MLMultiArray *array, NSArray<NSNumber *> *strides, CmlLayout *layout, CmlError **error);
void cml_layout_densify(CmlLayout *layout);
bool cml_layout_same_shape(const CmlLayout *a, const CmlLayout *b);
bool cml_layout_overlaps_itself(const CmlLayout *layout);
void cml_layout_desc(const CmlLayout *layout, CmlTensorDesc *desc); /* borrows from the layout */
/* Element by element by both layouts, which have one shape; converts where the dtypes differ. */
void cml_copy(const CmlLayout *to, void *destination, const CmlLayout *from, const void *source);
void cml_layout_text(const CmlLayout *layout, char *text, size_t capacity); /* "float32 [1, 8]" */

/* Runs `visit` with the memory of an array and its layout there; what it returns is returned. */
typedef CmlStatus (^CmlArrayVisitor)(void *bytes, const CmlLayout *layout);
CmlStatus cml_array_visit(MLMultiArray *array, bool writable, CmlError **error, NS_NOESCAPE CmlArrayVisitor visit);

/* ---- slots, by file ---- */

/* cml_value.m */
CmlValue *cml_value_new(CmlKind kind);
/* A value that holds an output of the framework. */
CmlStatus cml_value_from_feature(MLFeatureValue *feature, MLFeatureDescription *description, NSString *name,
                                 CmlValue **value, CmlError **error);
const char *cml_kind_name(CmlKind kind);
CmlKind cml_value_kind(const CmlValue *value);
void cml_value_retain(CmlValue *value);
void cml_value_release(CmlValue *value);
CmlStatus cml_scalar_new(void *self, const CmlScalarView *scalar, CmlValue **value, CmlError **error);
CmlStatus cml_scalar_view(const CmlValue *value, CmlScalarView *scalar, CmlError **error);
CmlStatus cml_dictionary_new(void *self, const CmlEntries *entries, CmlValue **value, CmlError **error);
CmlStatus cml_sequence_new(void *self, const CmlEntries *entries, CmlValue **value, CmlError **error);
CmlStatus cml_entries_view(const CmlValue *value, CmlEntries *entries, CmlError **error);

/* cml_tensor.m */
CmlStatus cml_tensor_adopt(CmlValue *value, MLMultiArray *array, CmlError **error);
CmlStatus cml_tensor_new(void *self, const CmlTensorDesc *desc, CmlValue **value, CmlError **error);
CmlStatus cml_tensor_copy(void *self, const CmlTensorDesc *desc, const void *source, size_t length, CmlValue **value,
                          CmlError **error);
CmlStatus cml_tensor_wrap(void *self, const CmlTensorDesc *desc, void *data, size_t length, CmlReleaseFn release,
                          void *owner, CmlValue **value, CmlError **error);
CmlStatus cml_tensor_desc(const CmlValue *value, CmlTensorDesc *desc, CmlError **error);
CmlStatus cml_tensor_with_bytes(CmlValue *value, int32_t writable, CmlTensorBytesFn visit, void *context,
                                CmlError **error);
CmlStatus cml_tensor_read(CmlValue *value, CmlDtype dtype, void *destination, size_t length, CmlError **error);

/* cml_image.m */
CmlStatus cml_image_new(void *self, const CmlImageDesc *desc, const void *pixels, size_t length, CmlValue **value,
                        CmlError **error);
CmlStatus cml_image_with_bytes(CmlValue *value, int32_t writable, CmlImageBytesFn visit, void *context,
                               CmlError **error);

/* cml_model.m */
CmlStatus cml_model_compile(void *self, CmlStr source, CmlStr folder, CmlBlob **path, CmlError **error);
CmlStatus cml_model_load(void *self, CmlStr path, const CmlConfig *config, CmlModel **model, CmlError **error);
void cml_model_release(CmlModel *model);
/* What `config` says, for Core ML; *function is the one that it chooses, if it does. */
CmlStatus cml_configure(const CmlConfig *config, MLModelConfiguration *settings, NSString **function,
                        CmlError **error);
/* Runs `visit` with the compiled form of what is at `path`; what was compiled for it is deleted afterwards. */
typedef CmlStatus (^CmlCompiledVisitor)(NSString *compiled);
CmlStatus cml_with_compiled(CmlStr path, CmlError **error, NS_NOESCAPE CmlCompiledVisitor visit);
/* What Core ML answers through a completion: `ask` begins the call, whose completion must lead to cml_answer_give. nil,
   and perhaps *cause, when it fails or does not answer in time: a call that never ends must not hang us. */
typedef struct CmlAnswer CmlAnswer;
typedef void (^CmlAsk)(CmlAnswer *answer);
enum { CML_ANSWER_SECONDS = 20 };
id cml_answer_await(unsigned seconds, NSError **cause, NS_NOESCAPE CmlAsk ask);
void cml_answer_give(CmlAnswer *answer, id given, NSError *cause);
/* Fills the handle of a model that Core ML has just loaded. */
void cml_model_adopt(CmlModel *model, MLModel *loaded);
/* NOT_FOUND unless `functions`, which may be nil for not known, has `function`. */
CmlStatus cml_require_function(NSArray<NSString *> *functions, NSString *function, CmlError **error);
/* NOT_FOUND unless the compiled model has `function`, as far as this OS can tell; *functions are all, or nil. */
CmlStatus cml_choose_function(NSString *compiled, NSString *function, NSArray<NSString *> **functions,
                              CmlError **error);
/* The functions of an MLModelAsset; nil, and perhaps *cause, when the OS cannot tell. `cause` may be NULL. */
NSArray<NSString *> *cml_functions_in(id asset, NSError **cause);
/* The same of a compiled model; nil of none, which is a model from memory. */
NSArray<NSString *> *cml_functions_of(NSString *compiled, NSError **cause);
CmlStatus cml_function_names(void *self, CmlStr path, CmlBlob **json, CmlError **error);

/* cml_log.m */
/* Tells whoever listens, if anybody does. It does not throw. */
void cml_log(CmlLogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));
CmlStatus cml_log_set(void *self, CmlLogFn log, void *context, CmlError **error);

/* cml_memory.m */
CmlStatus cml_model_load_memory(void *self, const void *specification, size_t length, const CmlFile *files,
                                size_t n_files, const CmlConfig *config, CmlModel **model, CmlError **error);

/* cml_structure.m */
CmlStatus cml_model_structure(void *self, CmlStr path, CmlBlob **json, CmlError **error);
CmlStatus cml_compute_plan(void *self, CmlStr path, const CmlConfig *config, CmlBlob **json, CmlError **error);

/* cml_table.m */
const char *cml_device_kind(id device); /* NULL: a kind that we do not know */

/* cml_describe.m */
CmlStatus cml_model_describe(CmlModel *model, CmlBlob **json, CmlError **error);

/* cml_predict.m */
CmlStatus cml_model_predict(CmlModel *model, CmlState *state, const CmlStr *names, CmlValue *const *inputs,
                            size_t n_inputs, const CmlPredictOptions *options, CmlResult **result, CmlError **error);
CmlStatus cml_model_predict_batch(CmlModel *model, size_t n_rows, const CmlStr *names, CmlValue *const *inputs,
                                  size_t n_inputs, const CmlPredictOptions *options, CmlResult **results,
                                  CmlError **error);
void cml_result_view(const CmlResult *result, CmlResultView *view);
void cml_result_free(CmlResult *result);

/* cml_state.m */
CmlStatus cml_state_new(CmlModel *model, CmlState **state, CmlError **error);
CmlStatus cml_state_with_bytes(CmlState *state, CmlStr name, int32_t writable, CmlTensorBytesFn visit, void *context,
                               CmlError **error);
void cml_state_release(CmlState *state);

CmlStatus cml_model_predict_async(CmlModel *model, CmlState *state, const CmlStr *names, CmlValue *const *inputs,
                                  size_t n_inputs, const CmlPredictOptions *options, CmlPredictedFn done,
                                  void *context, CmlRequest **request, CmlError **error);

/* cml_request.m */
CmlStatus cml_model_load_async(void *self, CmlStr path, const CmlConfig *config, CmlLoadedFn done, void *context,
                               CmlRequest **request, CmlError **error);
void cml_request_cancel(CmlRequest *request);
void cml_request_release(CmlRequest *request);

#endif /* CML_INTERNAL_H */
