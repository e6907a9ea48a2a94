/*
 * coreml_bridge.h: the one contract between Rust and whatever can run a Core ML model.
 *
 * Whoever runs models fills one table of functions, `CmlBridge`: the Objective-C shim on Apple platforms
 * (`cml_bridge_coreml`), the portable engine elsewhere (`cml_bridge_portable`), a double in tests.
 * Plain C11; also valid C++17 and Objective-C. Nothing in it names an Apple class.
 *
 * RULES
 *  1. Threads. Every slot says its class:
 *       [F] free:    any thread, at any time.
 *       [S] serial:  any thread, but one call at a time per handle. A breach is detected and answered
 *                    CML_BUSY; it is never undefined behaviour.
 *     Releasing a handle while a call on it runs is the one thing the caller must not do. An asynchronous call is
 *     running until its completion is called; but it keeps what it uses, so that those handles may be released early.
 *  2. Ownership. An out-handle is +1 and the caller's to release; an in-pointer is borrowed for the call; strings
 *     are copied. On failure every out-handle is NULL and `*error` (if `error` is not NULL) owns the full chain.
 *  3. Nothing unwinds across the table, in either direction: no C++ or Objective-C exception, no Rust panic.
 *  4. No slot keeps caller memory past its return, but for `tensor_wrap`, which takes a counted owner whose
 *     release function runs exactly once, on ANY thread, possibly a second or more after the last call returned.
 *     Wrapped memory is only read, unless it is a backing (rule 6).
 *  5. Tensors have strides, in elements. Read through `tensor_read` or inside `tensor_with_bytes`.
 *  6. Output backings are a hint; CmlOutput.backing_used reports whether the hint was taken. A backing is written only
 *     until model_predict returns, or the completion is called; after that whoever still holds it only reads.
 *  7. A state belongs to the model that made it; one prediction at a time may use it.
 *  8. What this bridge or this OS cannot do answers CML_UNSUPPORTED; no option is ever silently ignored.
 *  9. A compiled model in a temporary folder is deleted when the last handle on it is released.
 * 10. The numbers below are the contract. They equal Apple's where Apple has a number.
 *
 * VERSIONS. `abi_version` changes only when an existing slot does. New slots are appended, and a caller must check
 * `struct_size` before it reads a slot that its own header has and an older bridge may not. Structs passed in carry
 * `size` for the same reason: a bridge reads no field beyond it.
 */
#ifndef COREML_BRIDGE_H
#define COREML_BRIDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CML_ABI_VERSION 1u

/* What became of a call. */
typedef int32_t CmlStatus;
enum {
  CML_OK = 0,
  CML_INVALID_ARGUMENT = 1,   /* the call itself is wrong: NULL, bad UTF-8, unknown number, foreign handle */
  CML_NOT_FOUND = 2,          /* no such file, function, feature or state */
  CML_UNSUPPORTED = 3,        /* understood, but not possible with this bridge or this OS */
  CML_FRAMEWORK = 4,          /* the framework (or the engine) reported an error */
  CML_OBJC_EXCEPTION = 5,     /* an NSException was caught */
  CML_FOREIGN_EXCEPTION = 6,  /* something else was thrown and caught, a Rust panic included */
  CML_OUT_OF_MEMORY = 7,
  CML_CANCELLED = 8,
  CML_BUSY = 9,               /* rule 1 was broken; the call did nothing */
  CML_TYPE_MISMATCH = 10,     /* wrong kind, dtype, rank or shape of a value */
  CML_CORRUPT = 11            /* the model file is damaged or not a model */
};

/* Element types; the numbers are MLMultiArrayDataType's. */
typedef int32_t CmlDtype;
enum {
  CML_DTYPE_FLOAT16 = 0x10010,
  CML_DTYPE_FLOAT32 = 0x10020,
  CML_DTYPE_FLOAT64 = 0x10040,
  CML_DTYPE_INT8 = 0x20008,
  CML_DTYPE_INT32 = 0x20020
};

/* Kinds of a value; the numbers are MLFeatureType's. */
typedef int32_t CmlKind;
enum {
  CML_KIND_INVALID = 0,
  CML_KIND_INT64 = 1,
  CML_KIND_DOUBLE = 2,
  CML_KIND_STRING = 3,
  CML_KIND_IMAGE = 4,
  CML_KIND_TENSOR = 5,
  CML_KIND_DICTIONARY = 6,
  CML_KIND_SEQUENCE = 7
};

/* Where a model may run; the numbers are MLComputeUnits'. */
typedef int32_t CmlComputeUnits;
enum {
  CML_COMPUTE_CPU_ONLY = 0,
  CML_COMPUTE_CPU_AND_GPU = 1,
  CML_COMPUTE_ALL = 2,
  CML_COMPUTE_CPU_AND_NEURAL_ENGINE = 3
};

/* Pixel formats of images; the numbers are CoreVideo's four-character codes. */
typedef uint32_t CmlPixelFormat;
enum {
  CML_PIXEL_BGRA8 = 0x42475241,  /* 'BGRA' */
  CML_PIXEL_GRAY8 = 0x4C303038,  /* 'L008' */
  CML_PIXEL_GRAY16F = 0x4C303068 /* 'L00h' */
};

/* How often the shapes of the inputs will change; the numbers are MLReshapeFrequencyHint's. */
typedef int32_t CmlReshapeFrequency;
enum {
  CML_RESHAPE_FREQUENT = 0,  /* new shapes should be quick: the default */
  CML_RESHAPE_INFREQUENT = 1 /* shapes that were seen before should be quick */
};

/* What a model is specialized for on its devices; the numbers are MLSpecializationStrategy's. */
typedef int32_t CmlSpecialization;
enum {
  CML_SPECIALIZATION_DEFAULT = 0,
  CML_SPECIALIZATION_FAST_PREDICTION = 1 /* even if loading takes longer */
};

/* What a message of a bridge is about. */
typedef int32_t CmlLogLevel;
enum {
  CML_LOG_WARNING = 1, /* a call succeeded, but did not do all as it was asked */
  CML_LOG_INFO = 2     /* something was done that takes long or much memory */
};

/* Configuration flags. */
enum { CML_CONFIG_LOW_PRECISION_ACCUMULATION = 1u };

typedef struct CmlError CmlError;   /* an error and the chain of what caused it */
typedef struct CmlBlob CmlBlob;     /* immutable bytes */
typedef struct CmlModel CmlModel;   /* a loaded model */
typedef struct CmlState CmlState;   /* the memory of a stateful model */
typedef struct CmlValue CmlValue;   /* a feature value, counted */
typedef struct CmlResult CmlResult; /* the outputs of one prediction */
typedef struct CmlRequest CmlRequest; /* an asynchronous call, under way or done */

/* UTF-8, borrowed, not NUL-terminated; {NULL, 0} is "none". */
typedef struct CmlStr {
  const char *ptr;
  size_t len;
} CmlStr;

typedef struct CmlConfig {
  uint32_t size; /* sizeof(CmlConfig) */
  CmlComputeUnits compute_units;
  uint32_t flags;       /* CML_CONFIG_* */
  uint32_t threads;     /* CPU threads inside one prediction, 0 = the bridge's choice; Core ML chooses itself */
  CmlStr function_name; /* none = the model's default function */
  CmlStr display_name;  /* none = the file's name */
  CmlReshapeFrequency reshape_frequency;
  CmlSpecialization specialization;
  uint64_t preferred_device; /* "registry_id" of a GPU that backend_info lists, to run on if on a GPU; 0 = any */
} CmlConfig;

/* A file in memory. */
typedef struct CmlFile {
  CmlStr name; /* as the specification has it, e.g. "@model_path/weights/weight.bin" */
  const void *bytes;
  size_t length;
} CmlFile;

typedef struct CmlTensorDesc {
  uint32_t size; /* sizeof(CmlTensorDesc) */
  CmlDtype dtype;
  uint32_t rank;
  const int64_t *shape;
  const int64_t *strides; /* in elements, outermost first; NULL when passed in = row-major, dense */
  uint64_t byte_len;      /* bytes from the first element to the end of the last; out only */
} CmlTensorDesc;

typedef struct CmlErrorView {
  uint32_t size;       /* sizeof(CmlErrorView), set by the caller */
  uint32_t depth_left; /* how many underlying errors lie below this one */
  CmlStatus status;
  int64_t code;
  CmlStr domain;  /* e.g. "com.apple.CoreML", "coreml.portable" */
  CmlStr message; /* what happened */
  CmlStr reason;  /* why, if known */
} CmlErrorView;

typedef struct CmlPredictOptions {
  uint32_t size; /* sizeof(CmlPredictOptions) */
  uint32_t reserved;
  const CmlStr *wanted; /* outputs to return; n_wanted 0 = all */
  size_t n_wanted;
  const CmlStr *backing_names; /* outputs that should be written into these tensors */
  CmlValue *const *backings;
  size_t n_backings;
} CmlPredictOptions;

typedef struct CmlOutput {
  CmlStr name;
  CmlValue *value; /* borrowed from the result; value_retain to keep */
  uint32_t backing_used;
  uint32_t reserved;
} CmlOutput;

typedef struct CmlResultView {
  uint32_t size; /* sizeof(CmlResultView), set by the caller */
  uint32_t reserved;
  uint64_t prepare_ns; /* inputs to the framework's form */
  uint64_t run_ns;     /* the prediction itself */
  uint64_t collect_ns; /* outputs back */
  size_t n_outputs;
  const CmlOutput *outputs;
} CmlResultView;

typedef struct CmlScalarView {
  uint32_t size; /* sizeof(CmlScalarView), set by the caller */
  CmlKind kind;  /* INT64, DOUBLE or STRING */
  int64_t int64;
  double float64;
  CmlStr string; /* borrowed from the value */
} CmlScalarView;

/* A dictionary {key: double} or a sequence [key]; exactly one of the key arrays is set, `values` only for a
   dictionary. Arrays are borrowed: from the caller on the way in, from the value on the way out. */
typedef struct CmlEntries {
  uint32_t size;    /* sizeof(CmlEntries) */
  CmlKind key_kind; /* INT64 or STRING */
  size_t n;
  const int64_t *int64_keys;
  const CmlStr *string_keys;
  const double *values;
} CmlEntries;

typedef struct CmlImageDesc {
  uint32_t size; /* sizeof(CmlImageDesc) */
  CmlPixelFormat format;
  uint32_t width;
  uint32_t height;
  size_t row_bytes;
} CmlImageDesc;

/* Gives back the memory of tensor_wrap: exactly once, on any thread; must not unwind. */
typedef void (*CmlReleaseFn)(void *owner);
/* Sees a tensor's memory; valid only until it returns; must not unwind. */
typedef void (*CmlTensorBytesFn)(void *context, void *bytes, const CmlTensorDesc *desc);
/* Sees an image's pixels; valid only until it returns; must not unwind. */
typedef void (*CmlImageBytesFn)(void *context, void *pixels, const CmlImageDesc *desc);
/* The end of an asynchronous call whose slot answered CML_OK: exactly once, on any thread, perhaps before the slot
   returns; must not unwind. What was made, or else the error, is +1 and the receiver's to release. */
typedef void (*CmlPredictedFn)(void *context, CmlStatus status, CmlResult *result, CmlError *error);
typedef void (*CmlLoadedFn)(void *context, CmlStatus status, CmlModel *model, CmlError *error);

/* A message, which lives until the function returns. On any thread, on several at once; must not unwind. */
typedef void (*CmlLogFn)(void *context, CmlLogLevel level, CmlStr message);

typedef struct CmlBridge {
  uint32_t abi_version; /* CML_ABI_VERSION */
  uint32_t struct_size; /* sizeof(CmlBridge) as the bridge was compiled */
  void *self;           /* the bridge's own; first argument of the slots that make things */

  /* ---- the bridge [F] ---- */
  /* JSON: {"name", "version", "system", "dtypes": [..], "features": [..], "devices": [..]}. A device is {"kind"} and, as
     far as the system tells, "name", "registry_id" and "cores". */
  CmlStatus (*backend_info)(void *self, CmlBlob **json, CmlError **error);

  /* ---- errors and blobs [F] ---- */
  /* Depth 0 is the error itself; beyond the chain the view is all zero. Strings borrow from the error. */
  void (*error_view)(const CmlError *error, uint32_t depth, CmlErrorView *view);
  void (*error_free)(CmlError *error); /* NULL is allowed, as in every release */
  CmlStr (*blob_bytes)(const CmlBlob *blob);
  void (*blob_free)(CmlBlob *blob);

  /* ---- models ---- */
  /* [F] Compile `source` (.mlmodel, .mlpackage) into `folder`; returns the path of the result. With no folder
     the result is in a temporary one, which the caller then owns. Nothing is left behind on failure. */
  CmlStatus (*model_compile)(void *self, CmlStr source, CmlStr folder, CmlBlob **path, CmlError **error);
  /* [F] Load .mlmodel, .mlpackage or .mlmodelc; what needs compiling is compiled, see rule 9. */
  CmlStatus (*model_load)(void *self, CmlStr path, const CmlConfig *config, CmlModel **model, CmlError **error);
  /* [S] JSON, see docs/abi.md, "Description". */
  CmlStatus (*model_describe)(CmlModel *model, CmlBlob **json, CmlError **error);
  /* [S] One prediction. `names[i]` names `inputs[i]`. `state` is NULL or [S] too. */
  CmlStatus (*model_predict)(CmlModel *model, CmlState *state, const CmlStr *names, CmlValue *const *inputs,
                             size_t n_inputs, const CmlPredictOptions *options, CmlResult **result, CmlError **error);
  /* [F] */
  void (*model_release)(CmlModel *model);

  /* ---- results [F] ---- */
  void (*result_view)(const CmlResult *result, CmlResultView *view);
  void (*result_free)(CmlResult *result);

  /* ---- values: the count is [F], the contents [S] ---- */
  CmlKind (*value_kind)(const CmlValue *value);
  void (*value_retain)(CmlValue *value);
  void (*value_release)(CmlValue *value);

  /* A zeroed tensor. */
  CmlStatus (*tensor_new)(void *self, const CmlTensorDesc *desc, CmlValue **value, CmlError **error);
  /* A dense copy of `length` bytes at `source`, which has the layout of `desc`; the length is checked. */
  CmlStatus (*tensor_copy)(void *self, const CmlTensorDesc *desc, const void *source, size_t length, CmlValue **value,
                           CmlError **error);
  /* A tensor on caller memory, kept alive by `owner`. On failure the owner is NOT released. */
  CmlStatus (*tensor_wrap)(void *self, const CmlTensorDesc *desc, void *data, size_t length, CmlReleaseFn release,
                           void *owner, CmlValue **value, CmlError **error);
  /* dtype, shape and strides, borrowed from the value. */
  CmlStatus (*tensor_desc)(const CmlValue *value, CmlTensorDesc *desc, CmlError **error);
  CmlStatus (*tensor_with_bytes)(CmlValue *value, int32_t writable, CmlTensorBytesFn visit, void *context,
                                 CmlError **error);
  /* Dense, row-major, converted to `dtype`; `length` must be exact. */
  CmlStatus (*tensor_read)(CmlValue *value, CmlDtype dtype, void *destination, size_t length, CmlError **error);

  CmlStatus (*scalar_new)(void *self, const CmlScalarView *scalar, CmlValue **value, CmlError **error);
  CmlStatus (*scalar_view)(const CmlValue *value, CmlScalarView *scalar, CmlError **error);
  CmlStatus (*dictionary_new)(void *self, const CmlEntries *entries, CmlValue **value, CmlError **error);
  CmlStatus (*sequence_new)(void *self, const CmlEntries *entries, CmlValue **value, CmlError **error);
  /* Of a dictionary or a sequence. */
  CmlStatus (*entries_view)(const CmlValue *value, CmlEntries *entries, CmlError **error);
  /* A copy of the pixels; `length` >= row_bytes * (height - 1) + the bytes of one row. */
  CmlStatus (*image_new)(void *self, const CmlImageDesc *desc, const void *pixels, size_t length, CmlValue **value,
                         CmlError **error);
  CmlStatus (*image_with_bytes)(CmlValue *value, int32_t writable, CmlImageBytesFn visit, void *context,
                                CmlError **error);

  /* ---- states [S] ---- */
  CmlStatus (*state_new)(CmlModel *model, CmlState **state, CmlError **error);
  CmlStatus (*state_with_bytes)(CmlState *state, CmlStr name, int32_t writable, CmlTensorBytesFn visit, void *context,
                                CmlError **error);
  void (*state_release)(CmlState *state);

  /* ---- appended ---- */
  /* [F] The names of the functions of .mlmodel, .mlpackage or .mlmodelc, as a JSON array of strings. */
  CmlStatus (*function_names)(void *self, CmlStr path, CmlBlob **json, CmlError **error);
  /* [S] One prediction for each of `n_rows` rows: `names[i]` names `inputs[row * n_inputs + i]`. `results` has room for
     `n_rows` results, and afterwards holds one for each row, or NULL only. `options` may choose outputs, but give no
     backings. A bridge whose framework runs the rows as one reports the times of the whole in every result. */
  CmlStatus (*model_predict_batch)(CmlModel *model, size_t n_rows, const CmlStr *names, CmlValue *const *inputs,
                                   size_t n_inputs, const CmlPredictOptions *options, CmlResult **results,
                                   CmlError **error);
  /* [S] One prediction, without waiting: answers as soon as the arguments are read, and model, state and values are
     taken until `done` is called. A failure to begin is the slot's answer, and `done` is then never called.
     Backings are written until then. `request` may be NULL if the caller will not cancel. */
  CmlStatus (*model_predict_async)(CmlModel *model, CmlState *state, const CmlStr *names, CmlValue *const *inputs,
                                   size_t n_inputs, const CmlPredictOptions *options, CmlPredictedFn done,
                                   void *context, CmlRequest **request, CmlError **error);
  /* [F] As model_load, without waiting; the rest as model_predict_async. */
  CmlStatus (*model_load_async)(void *self, CmlStr path, const CmlConfig *config, CmlLoadedFn done, void *context,
                                CmlRequest **request, CmlError **error);
  /* [F] Asks for an early end: the completion gets CML_CANCELLED, unless it was called, or is about to be. A load ends
     at once, even one that would never end, perhaps within this call; a prediction when the framework has let go of
     the inputs. */
  void (*request_cancel)(CmlRequest *request);
  /* [F] Cancels nothing. */
  void (*request_release)(CmlRequest *request);
  /* [F] What is inside .mlmodel, .mlpackage or .mlmodelc: functions and ops, or layers. JSON, see docs/abi.md,
     "Structure". */
  CmlStatus (*model_structure)(void *self, CmlStr path, CmlBlob **json, CmlError **error);
  /* [F] The same, and for each op of the function that `config` chooses where it would run and what part of the work it
     is. `config` as in model_load. */
  CmlStatus (*compute_plan)(void *self, CmlStr path, const CmlConfig *config, CmlBlob **json, CmlError **error);
  /* [F] Load a model that is in memory: the `length` bytes of its specification (what a .mlmodel holds), and the files
     that it names, each once and each below "@model_path/". All is copied. Nothing is written to the disk. */
  CmlStatus (*model_load_memory)(void *self, const void *specification, size_t length, const CmlFile *files,
                                 size_t n_files, const CmlConfig *config, CmlModel **model, CmlError **error);
  /* [F] From now on `log` is told what no status says: decisions that were taken silently, such as a backing that was not
     used (WARNING), and models that were loaded (INFO). NULL: nobody is told, which is so to begin with. There is one
     for a table. When the slot returns, the function that was set before is not running, and is never called again; what
     happens while it is replaced is told to nobody. `log` may call other slots, whose messages are then dropped; from
     within it this slot answers CML_BUSY, for it would wait for itself. */
  CmlStatus (*log_set)(void *self, CmlLogFn log, void *context, CmlError **error);
} CmlBridge;

/* Apple's Core ML through the Objective-C shim. */
const CmlBridge *cml_bridge_coreml(void);
/* The portable engine, in Rust. */
const CmlBridge *cml_bridge_portable(void);

#ifdef __cplusplus
}
#endif

#endif /* COREML_BRIDGE_H */
