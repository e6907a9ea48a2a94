// Generated from bridge-objc/include/coreml_bridge.h by `cargo xtask bindings`: do not edit.

pub const CML_ABI_VERSION: u32 = 1;
#[doc = " What became of a call."]
pub type CmlStatus = i32;
pub const CML_OK: CmlStatus = 0;
#[doc = " the call itself is wrong: NULL, bad UTF-8, unknown number, foreign handle"]
pub const CML_INVALID_ARGUMENT: CmlStatus = 1;
#[doc = " no such file, function, feature or state"]
pub const CML_NOT_FOUND: CmlStatus = 2;
#[doc = " understood, but not possible with this bridge or this OS"]
pub const CML_UNSUPPORTED: CmlStatus = 3;
#[doc = " the framework (or the engine) reported an error"]
pub const CML_FRAMEWORK: CmlStatus = 4;
#[doc = " an NSException was caught"]
pub const CML_OBJC_EXCEPTION: CmlStatus = 5;
#[doc = " something else was thrown and caught, a Rust panic included"]
pub const CML_FOREIGN_EXCEPTION: CmlStatus = 6;
pub const CML_OUT_OF_MEMORY: CmlStatus = 7;
pub const CML_CANCELLED: CmlStatus = 8;
#[doc = " rule 1 was broken; the call did nothing"]
pub const CML_BUSY: CmlStatus = 9;
#[doc = " wrong kind, dtype, rank or shape of a value"]
pub const CML_TYPE_MISMATCH: CmlStatus = 10;
#[doc = " the model file is damaged or not a model"]
pub const CML_CORRUPT: CmlStatus = 11;
#[doc = " Element types; the numbers are MLMultiArrayDataType's."]
pub type CmlDtype = i32;
pub const CML_DTYPE_FLOAT16: CmlDtype = 65552;
pub const CML_DTYPE_FLOAT32: CmlDtype = 65568;
pub const CML_DTYPE_FLOAT64: CmlDtype = 65600;
pub const CML_DTYPE_INT8: CmlDtype = 131080;
pub const CML_DTYPE_INT32: CmlDtype = 131104;
#[doc = " Kinds of a value; the numbers are MLFeatureType's."]
pub type CmlKind = i32;
pub const CML_KIND_INVALID: CmlKind = 0;
pub const CML_KIND_INT64: CmlKind = 1;
pub const CML_KIND_DOUBLE: CmlKind = 2;
pub const CML_KIND_STRING: CmlKind = 3;
pub const CML_KIND_IMAGE: CmlKind = 4;
pub const CML_KIND_TENSOR: CmlKind = 5;
pub const CML_KIND_DICTIONARY: CmlKind = 6;
pub const CML_KIND_SEQUENCE: CmlKind = 7;
#[doc = " Where a model may run; the numbers are MLComputeUnits'."]
pub type CmlComputeUnits = i32;
pub const CML_COMPUTE_CPU_ONLY: CmlComputeUnits = 0;
pub const CML_COMPUTE_CPU_AND_GPU: CmlComputeUnits = 1;
pub const CML_COMPUTE_ALL: CmlComputeUnits = 2;
pub const CML_COMPUTE_CPU_AND_NEURAL_ENGINE: CmlComputeUnits = 3;
#[doc = " Pixel formats of images; the numbers are CoreVideo's four-character codes."]
pub type CmlPixelFormat = u32;
#[doc = " 'BGRA'"]
pub const CML_PIXEL_BGRA8: CmlPixelFormat = 1111970369;
#[doc = " 'L008'"]
pub const CML_PIXEL_GRAY8: CmlPixelFormat = 1278226488;
#[doc = " 'L00h'"]
pub const CML_PIXEL_GRAY16F: CmlPixelFormat = 1278226536;
#[doc = " How often the shapes of the inputs will change; the numbers are MLReshapeFrequencyHint's."]
pub type CmlReshapeFrequency = i32;
#[doc = " new shapes should be quick: the default"]
pub const CML_RESHAPE_FREQUENT: CmlStatus = 0;
#[doc = " shapes that were seen before should be quick"]
pub const CML_RESHAPE_INFREQUENT: CmlStatus = 1;
#[doc = " What a model is specialized for on its devices; the numbers are MLSpecializationStrategy's."]
pub type CmlSpecialization = i32;
pub const CML_SPECIALIZATION_DEFAULT: CmlStatus = 0;
#[doc = " even if loading takes longer"]
pub const CML_SPECIALIZATION_FAST_PREDICTION: CmlStatus = 1;
#[doc = " What a message of a bridge is about."]
pub type CmlLogLevel = i32;
#[doc = " a call succeeded, but did not do all as it was asked"]
pub const CML_LOG_WARNING: CmlLogLevel = 1;
#[doc = " something was done that takes long or much memory"]
pub const CML_LOG_INFO: CmlLogLevel = 2;
pub const CML_CONFIG_LOW_PRECISION_ACCUMULATION: u32 = 1;
#[repr(C)]
#[derive(Debug)]
pub struct CmlError {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct CmlBlob {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct CmlModel {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct CmlState {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct CmlValue {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct CmlResult {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct CmlRequest {
    _unused: [u8; 0],
}
#[doc = " UTF-8, borrowed, not NUL-terminated; {NULL, 0} is \"none\"."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlStr {
    pub ptr: *const ::core::ffi::c_char,
    pub len: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlStr"][::core::mem::size_of::<CmlStr>() - 16usize];
    ["Alignment of CmlStr"][::core::mem::align_of::<CmlStr>() - 8usize];
    ["Offset of field: CmlStr::ptr"][::core::mem::offset_of!(CmlStr, ptr) - 0usize];
    ["Offset of field: CmlStr::len"][::core::mem::offset_of!(CmlStr, len) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlConfig {
    #[doc = " sizeof(CmlConfig)"]
    pub size: u32,
    pub compute_units: CmlComputeUnits,
    #[doc = " CML_CONFIG_*"]
    pub flags: u32,
    #[doc = " CPU threads inside one prediction, 0 = the bridge's choice; Core ML chooses itself"]
    pub threads: u32,
    #[doc = " none = the model's default function"]
    pub function_name: CmlStr,
    #[doc = " none = the file's name"]
    pub display_name: CmlStr,
    pub reshape_frequency: CmlReshapeFrequency,
    pub specialization: CmlSpecialization,
    #[doc = " \"registry_id\" of a GPU that backend_info lists, to run on if on a GPU; 0 = any"]
    pub preferred_device: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlConfig"][::core::mem::size_of::<CmlConfig>() - 64usize];
    ["Alignment of CmlConfig"][::core::mem::align_of::<CmlConfig>() - 8usize];
    ["Offset of field: CmlConfig::size"][::core::mem::offset_of!(CmlConfig, size) - 0usize];
    ["Offset of field: CmlConfig::compute_units"][::core::mem::offset_of!(CmlConfig, compute_units) - 4usize];
    ["Offset of field: CmlConfig::flags"][::core::mem::offset_of!(CmlConfig, flags) - 8usize];
    ["Offset of field: CmlConfig::threads"][::core::mem::offset_of!(CmlConfig, threads) - 12usize];
    ["Offset of field: CmlConfig::function_name"]
        [::core::mem::offset_of!(CmlConfig, function_name) - 16usize];
    ["Offset of field: CmlConfig::display_name"][::core::mem::offset_of!(CmlConfig, display_name) - 32usize];
    ["Offset of field: CmlConfig::reshape_frequency"]
        [::core::mem::offset_of!(CmlConfig, reshape_frequency) - 48usize];
    ["Offset of field: CmlConfig::specialization"]
        [::core::mem::offset_of!(CmlConfig, specialization) - 52usize];
    ["Offset of field: CmlConfig::preferred_device"]
        [::core::mem::offset_of!(CmlConfig, preferred_device) - 56usize];
};
#[doc = " A file in memory."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlFile {
    #[doc = " as the specification has it, e.g. \"@model_path/weights/weight.bin\""]
    pub name: CmlStr,
    pub bytes: *const ::core::ffi::c_void,
    pub length: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlFile"][::core::mem::size_of::<CmlFile>() - 32usize];
    ["Alignment of CmlFile"][::core::mem::align_of::<CmlFile>() - 8usize];
    ["Offset of field: CmlFile::name"][::core::mem::offset_of!(CmlFile, name) - 0usize];
    ["Offset of field: CmlFile::bytes"][::core::mem::offset_of!(CmlFile, bytes) - 16usize];
    ["Offset of field: CmlFile::length"][::core::mem::offset_of!(CmlFile, length) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlTensorDesc {
    #[doc = " sizeof(CmlTensorDesc)"]
    pub size: u32,
    pub dtype: CmlDtype,
    pub rank: u32,
    pub shape: *const i64,
    #[doc = " in elements, outermost first; NULL when passed in = row-major, dense"]
    pub strides: *const i64,
    #[doc = " bytes from the first element to the end of the last; out only"]
    pub byte_len: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlTensorDesc"][::core::mem::size_of::<CmlTensorDesc>() - 40usize];
    ["Alignment of CmlTensorDesc"][::core::mem::align_of::<CmlTensorDesc>() - 8usize];
    ["Offset of field: CmlTensorDesc::size"][::core::mem::offset_of!(CmlTensorDesc, size) - 0usize];
    ["Offset of field: CmlTensorDesc::dtype"][::core::mem::offset_of!(CmlTensorDesc, dtype) - 4usize];
    ["Offset of field: CmlTensorDesc::rank"][::core::mem::offset_of!(CmlTensorDesc, rank) - 8usize];
    ["Offset of field: CmlTensorDesc::shape"][::core::mem::offset_of!(CmlTensorDesc, shape) - 16usize];
    ["Offset of field: CmlTensorDesc::strides"][::core::mem::offset_of!(CmlTensorDesc, strides) - 24usize];
    ["Offset of field: CmlTensorDesc::byte_len"][::core::mem::offset_of!(CmlTensorDesc, byte_len) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlErrorView {
    #[doc = " sizeof(CmlErrorView), set by the caller"]
    pub size: u32,
    #[doc = " how many underlying errors lie below this one"]
    pub depth_left: u32,
    pub status: CmlStatus,
    pub code: i64,
    #[doc = " e.g. \"com.apple.CoreML\", \"coreml.portable\""]
    pub domain: CmlStr,
    #[doc = " what happened"]
    pub message: CmlStr,
    #[doc = " why, if known"]
    pub reason: CmlStr,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlErrorView"][::core::mem::size_of::<CmlErrorView>() - 72usize];
    ["Alignment of CmlErrorView"][::core::mem::align_of::<CmlErrorView>() - 8usize];
    ["Offset of field: CmlErrorView::size"][::core::mem::offset_of!(CmlErrorView, size) - 0usize];
    ["Offset of field: CmlErrorView::depth_left"][::core::mem::offset_of!(CmlErrorView, depth_left) - 4usize];
    ["Offset of field: CmlErrorView::status"][::core::mem::offset_of!(CmlErrorView, status) - 8usize];
    ["Offset of field: CmlErrorView::code"][::core::mem::offset_of!(CmlErrorView, code) - 16usize];
    ["Offset of field: CmlErrorView::domain"][::core::mem::offset_of!(CmlErrorView, domain) - 24usize];
    ["Offset of field: CmlErrorView::message"][::core::mem::offset_of!(CmlErrorView, message) - 40usize];
    ["Offset of field: CmlErrorView::reason"][::core::mem::offset_of!(CmlErrorView, reason) - 56usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlPredictOptions {
    #[doc = " sizeof(CmlPredictOptions)"]
    pub size: u32,
    pub reserved: u32,
    #[doc = " outputs to return; n_wanted 0 = all"]
    pub wanted: *const CmlStr,
    pub n_wanted: usize,
    #[doc = " outputs that should be written into these tensors"]
    pub backing_names: *const CmlStr,
    pub backings: *const *mut CmlValue,
    pub n_backings: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlPredictOptions"][::core::mem::size_of::<CmlPredictOptions>() - 48usize];
    ["Alignment of CmlPredictOptions"][::core::mem::align_of::<CmlPredictOptions>() - 8usize];
    ["Offset of field: CmlPredictOptions::size"][::core::mem::offset_of!(CmlPredictOptions, size) - 0usize];
    ["Offset of field: CmlPredictOptions::reserved"]
        [::core::mem::offset_of!(CmlPredictOptions, reserved) - 4usize];
    ["Offset of field: CmlPredictOptions::wanted"]
        [::core::mem::offset_of!(CmlPredictOptions, wanted) - 8usize];
    ["Offset of field: CmlPredictOptions::n_wanted"]
        [::core::mem::offset_of!(CmlPredictOptions, n_wanted) - 16usize];
    ["Offset of field: CmlPredictOptions::backing_names"]
        [::core::mem::offset_of!(CmlPredictOptions, backing_names) - 24usize];
    ["Offset of field: CmlPredictOptions::backings"]
        [::core::mem::offset_of!(CmlPredictOptions, backings) - 32usize];
    ["Offset of field: CmlPredictOptions::n_backings"]
        [::core::mem::offset_of!(CmlPredictOptions, n_backings) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlOutput {
    pub name: CmlStr,
    #[doc = " borrowed from the result; value_retain to keep"]
    pub value: *mut CmlValue,
    pub backing_used: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlOutput"][::core::mem::size_of::<CmlOutput>() - 32usize];
    ["Alignment of CmlOutput"][::core::mem::align_of::<CmlOutput>() - 8usize];
    ["Offset of field: CmlOutput::name"][::core::mem::offset_of!(CmlOutput, name) - 0usize];
    ["Offset of field: CmlOutput::value"][::core::mem::offset_of!(CmlOutput, value) - 16usize];
    ["Offset of field: CmlOutput::backing_used"][::core::mem::offset_of!(CmlOutput, backing_used) - 24usize];
    ["Offset of field: CmlOutput::reserved"][::core::mem::offset_of!(CmlOutput, reserved) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlResultView {
    #[doc = " sizeof(CmlResultView), set by the caller"]
    pub size: u32,
    pub reserved: u32,
    #[doc = " inputs to the framework's form"]
    pub prepare_ns: u64,
    #[doc = " the prediction itself"]
    pub run_ns: u64,
    #[doc = " outputs back"]
    pub collect_ns: u64,
    pub n_outputs: usize,
    pub outputs: *const CmlOutput,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlResultView"][::core::mem::size_of::<CmlResultView>() - 48usize];
    ["Alignment of CmlResultView"][::core::mem::align_of::<CmlResultView>() - 8usize];
    ["Offset of field: CmlResultView::size"][::core::mem::offset_of!(CmlResultView, size) - 0usize];
    ["Offset of field: CmlResultView::reserved"][::core::mem::offset_of!(CmlResultView, reserved) - 4usize];
    ["Offset of field: CmlResultView::prepare_ns"]
        [::core::mem::offset_of!(CmlResultView, prepare_ns) - 8usize];
    ["Offset of field: CmlResultView::run_ns"][::core::mem::offset_of!(CmlResultView, run_ns) - 16usize];
    ["Offset of field: CmlResultView::collect_ns"]
        [::core::mem::offset_of!(CmlResultView, collect_ns) - 24usize];
    ["Offset of field: CmlResultView::n_outputs"]
        [::core::mem::offset_of!(CmlResultView, n_outputs) - 32usize];
    ["Offset of field: CmlResultView::outputs"][::core::mem::offset_of!(CmlResultView, outputs) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlScalarView {
    #[doc = " sizeof(CmlScalarView), set by the caller"]
    pub size: u32,
    #[doc = " INT64, DOUBLE or STRING"]
    pub kind: CmlKind,
    pub int64: i64,
    pub float64: f64,
    #[doc = " borrowed from the value"]
    pub string: CmlStr,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlScalarView"][::core::mem::size_of::<CmlScalarView>() - 40usize];
    ["Alignment of CmlScalarView"][::core::mem::align_of::<CmlScalarView>() - 8usize];
    ["Offset of field: CmlScalarView::size"][::core::mem::offset_of!(CmlScalarView, size) - 0usize];
    ["Offset of field: CmlScalarView::kind"][::core::mem::offset_of!(CmlScalarView, kind) - 4usize];
    ["Offset of field: CmlScalarView::int64"][::core::mem::offset_of!(CmlScalarView, int64) - 8usize];
    ["Offset of field: CmlScalarView::float64"][::core::mem::offset_of!(CmlScalarView, float64) - 16usize];
    ["Offset of field: CmlScalarView::string"][::core::mem::offset_of!(CmlScalarView, string) - 24usize];
};
#[doc = " A dictionary {key: double} or a sequence \\[key\\]; exactly one of the key arrays is set, `values` only for a\ndictionary. Arrays are borrowed: from the caller on the way in, from the value on the way out."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlEntries {
    #[doc = " sizeof(CmlEntries)"]
    pub size: u32,
    #[doc = " INT64 or STRING"]
    pub key_kind: CmlKind,
    pub n: usize,
    pub int64_keys: *const i64,
    pub string_keys: *const CmlStr,
    pub values: *const f64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlEntries"][::core::mem::size_of::<CmlEntries>() - 40usize];
    ["Alignment of CmlEntries"][::core::mem::align_of::<CmlEntries>() - 8usize];
    ["Offset of field: CmlEntries::size"][::core::mem::offset_of!(CmlEntries, size) - 0usize];
    ["Offset of field: CmlEntries::key_kind"][::core::mem::offset_of!(CmlEntries, key_kind) - 4usize];
    ["Offset of field: CmlEntries::n"][::core::mem::offset_of!(CmlEntries, n) - 8usize];
    ["Offset of field: CmlEntries::int64_keys"][::core::mem::offset_of!(CmlEntries, int64_keys) - 16usize];
    ["Offset of field: CmlEntries::string_keys"][::core::mem::offset_of!(CmlEntries, string_keys) - 24usize];
    ["Offset of field: CmlEntries::values"][::core::mem::offset_of!(CmlEntries, values) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlImageDesc {
    #[doc = " sizeof(CmlImageDesc)"]
    pub size: u32,
    pub format: CmlPixelFormat,
    pub width: u32,
    pub height: u32,
    pub row_bytes: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlImageDesc"][::core::mem::size_of::<CmlImageDesc>() - 24usize];
    ["Alignment of CmlImageDesc"][::core::mem::align_of::<CmlImageDesc>() - 8usize];
    ["Offset of field: CmlImageDesc::size"][::core::mem::offset_of!(CmlImageDesc, size) - 0usize];
    ["Offset of field: CmlImageDesc::format"][::core::mem::offset_of!(CmlImageDesc, format) - 4usize];
    ["Offset of field: CmlImageDesc::width"][::core::mem::offset_of!(CmlImageDesc, width) - 8usize];
    ["Offset of field: CmlImageDesc::height"][::core::mem::offset_of!(CmlImageDesc, height) - 12usize];
    ["Offset of field: CmlImageDesc::row_bytes"][::core::mem::offset_of!(CmlImageDesc, row_bytes) - 16usize];
};
#[doc = " Gives back the memory of tensor_wrap: exactly once, on any thread; must not unwind."]
pub type CmlReleaseFn = ::core::option::Option<unsafe extern "C" fn(owner: *mut ::core::ffi::c_void)>;
#[doc = " Sees a tensor's memory; valid only until it returns; must not unwind."]
pub type CmlTensorBytesFn = ::core::option::Option<
    unsafe extern "C" fn(
        context: *mut ::core::ffi::c_void,
        bytes: *mut ::core::ffi::c_void,
        desc: *const CmlTensorDesc,
    ),
>;
#[doc = " Sees an image's pixels; valid only until it returns; must not unwind."]
pub type CmlImageBytesFn = ::core::option::Option<
    unsafe extern "C" fn(
        context: *mut ::core::ffi::c_void,
        pixels: *mut ::core::ffi::c_void,
        desc: *const CmlImageDesc,
    ),
>;
#[doc = " The end of an asynchronous call whose slot answered CML_OK: exactly once, on any thread, perhaps before the slot\nreturns; must not unwind. What was made, or else the error, is +1 and the receiver's to release."]
pub type CmlPredictedFn = ::core::option::Option<
    unsafe extern "C" fn(
        context: *mut ::core::ffi::c_void,
        status: CmlStatus,
        result: *mut CmlResult,
        error: *mut CmlError,
    ),
>;
pub type CmlLoadedFn = ::core::option::Option<
    unsafe extern "C" fn(
        context: *mut ::core::ffi::c_void,
        status: CmlStatus,
        model: *mut CmlModel,
        error: *mut CmlError,
    ),
>;
#[doc = " A message, which lives until the function returns. On any thread, on several at once; must not unwind."]
pub type CmlLogFn = ::core::option::Option<
    unsafe extern "C" fn(context: *mut ::core::ffi::c_void, level: CmlLogLevel, message: CmlStr),
>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CmlBridge {
    #[doc = " CML_ABI_VERSION"]
    pub abi_version: u32,
    #[doc = " sizeof(CmlBridge) as the bridge was compiled"]
    pub struct_size: u32,
    #[doc = " the bridge's own; first argument of the slots that make things"]
    pub self_: *mut ::core::ffi::c_void,
    #[doc = " JSON: {\"name\", \"version\", \"system\", \"dtypes\": \\[..\\], \"features\": \\[..\\], \"devices\": \\[..\\]}. A device is {\"kind\"} and, as\nfar as the system tells, \"name\", \"registry_id\" and \"cores\"."]
    pub backend_info: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            json: *mut *mut CmlBlob,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " Depth 0 is the error itself; beyond the chain the view is all zero. Strings borrow from the error."]
    pub error_view: ::core::option::Option<
        unsafe extern "C" fn(error: *const CmlError, depth: u32, view: *mut CmlErrorView),
    >,
    #[doc = " NULL is allowed, as in every release"]
    pub error_free: ::core::option::Option<unsafe extern "C" fn(error: *mut CmlError)>,
    pub blob_bytes: ::core::option::Option<unsafe extern "C" fn(blob: *const CmlBlob) -> CmlStr>,
    pub blob_free: ::core::option::Option<unsafe extern "C" fn(blob: *mut CmlBlob)>,
    #[doc = " \\[F\\] Compile `source` (.mlmodel, .mlpackage) into `folder`; returns the path of the result. With no folder\nthe result is in a temporary one, which the caller then owns. Nothing is left behind on failure."]
    pub model_compile: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            source: CmlStr,
            folder: CmlStr,
            path: *mut *mut CmlBlob,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[F\\] Load .mlmodel, .mlpackage or .mlmodelc; what needs compiling is compiled, see rule 9."]
    pub model_load: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            path: CmlStr,
            config: *const CmlConfig,
            model: *mut *mut CmlModel,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[S\\] JSON, see docs/abi.md, \"Description\"."]
    pub model_describe: ::core::option::Option<
        unsafe extern "C" fn(
            model: *mut CmlModel,
            json: *mut *mut CmlBlob,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[S\\] One prediction. `names[i]` names `inputs[i]`. `state` is NULL or \\[S\\] too."]
    pub model_predict: ::core::option::Option<
        unsafe extern "C" fn(
            model: *mut CmlModel,
            state: *mut CmlState,
            names: *const CmlStr,
            inputs: *const *mut CmlValue,
            n_inputs: usize,
            options: *const CmlPredictOptions,
            result: *mut *mut CmlResult,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[F\\]"]
    pub model_release: ::core::option::Option<unsafe extern "C" fn(model: *mut CmlModel)>,
    pub result_view:
        ::core::option::Option<unsafe extern "C" fn(result: *const CmlResult, view: *mut CmlResultView)>,
    pub result_free: ::core::option::Option<unsafe extern "C" fn(result: *mut CmlResult)>,
    pub value_kind: ::core::option::Option<unsafe extern "C" fn(value: *const CmlValue) -> CmlKind>,
    pub value_retain: ::core::option::Option<unsafe extern "C" fn(value: *mut CmlValue)>,
    pub value_release: ::core::option::Option<unsafe extern "C" fn(value: *mut CmlValue)>,
    #[doc = " A zeroed tensor."]
    pub tensor_new: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            desc: *const CmlTensorDesc,
            value: *mut *mut CmlValue,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " A dense copy of `length` bytes at `source`, which has the layout of `desc`; the length is checked."]
    pub tensor_copy: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            desc: *const CmlTensorDesc,
            source: *const ::core::ffi::c_void,
            length: usize,
            value: *mut *mut CmlValue,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " A tensor on caller memory, kept alive by `owner`. On failure the owner is NOT released."]
    pub tensor_wrap: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            desc: *const CmlTensorDesc,
            data: *mut ::core::ffi::c_void,
            length: usize,
            release: CmlReleaseFn,
            owner: *mut ::core::ffi::c_void,
            value: *mut *mut CmlValue,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " dtype, shape and strides, borrowed from the value."]
    pub tensor_desc: ::core::option::Option<
        unsafe extern "C" fn(
            value: *const CmlValue,
            desc: *mut CmlTensorDesc,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub tensor_with_bytes: ::core::option::Option<
        unsafe extern "C" fn(
            value: *mut CmlValue,
            writable: i32,
            visit: CmlTensorBytesFn,
            context: *mut ::core::ffi::c_void,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " Dense, row-major, converted to `dtype`; `length` must be exact."]
    pub tensor_read: ::core::option::Option<
        unsafe extern "C" fn(
            value: *mut CmlValue,
            dtype: CmlDtype,
            destination: *mut ::core::ffi::c_void,
            length: usize,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub scalar_new: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            scalar: *const CmlScalarView,
            value: *mut *mut CmlValue,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub scalar_view: ::core::option::Option<
        unsafe extern "C" fn(
            value: *const CmlValue,
            scalar: *mut CmlScalarView,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub dictionary_new: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            entries: *const CmlEntries,
            value: *mut *mut CmlValue,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub sequence_new: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            entries: *const CmlEntries,
            value: *mut *mut CmlValue,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " Of a dictionary or a sequence."]
    pub entries_view: ::core::option::Option<
        unsafe extern "C" fn(
            value: *const CmlValue,
            entries: *mut CmlEntries,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " A copy of the pixels; `length` >= row_bytes * (height - 1) + the bytes of one row."]
    pub image_new: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            desc: *const CmlImageDesc,
            pixels: *const ::core::ffi::c_void,
            length: usize,
            value: *mut *mut CmlValue,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub image_with_bytes: ::core::option::Option<
        unsafe extern "C" fn(
            value: *mut CmlValue,
            writable: i32,
            visit: CmlImageBytesFn,
            context: *mut ::core::ffi::c_void,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub state_new: ::core::option::Option<
        unsafe extern "C" fn(
            model: *mut CmlModel,
            state: *mut *mut CmlState,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub state_with_bytes: ::core::option::Option<
        unsafe extern "C" fn(
            state: *mut CmlState,
            name: CmlStr,
            writable: i32,
            visit: CmlTensorBytesFn,
            context: *mut ::core::ffi::c_void,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    pub state_release: ::core::option::Option<unsafe extern "C" fn(state: *mut CmlState)>,
    #[doc = " \\[F\\] The names of the functions of .mlmodel, .mlpackage or .mlmodelc, as a JSON array of strings."]
    pub function_names: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            path: CmlStr,
            json: *mut *mut CmlBlob,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[S\\] One prediction for each of `n_rows` rows: `names[i]` names `inputs[row * n_inputs + i]`. `results` has room for\n`n_rows` results, and afterwards holds one for each row, or NULL only. `options` may choose outputs, but give no\nbackings. A bridge whose framework runs the rows as one reports the times of the whole in every result."]
    pub model_predict_batch: ::core::option::Option<
        unsafe extern "C" fn(
            model: *mut CmlModel,
            n_rows: usize,
            names: *const CmlStr,
            inputs: *const *mut CmlValue,
            n_inputs: usize,
            options: *const CmlPredictOptions,
            results: *mut *mut CmlResult,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[S\\] One prediction, without waiting: answers as soon as the arguments are read, and model, state and values are\ntaken until `done` is called. A failure to begin is the slot's answer, and `done` is then never called.\nBackings are written until then. `request` may be NULL if the caller will not cancel."]
    pub model_predict_async: ::core::option::Option<
        unsafe extern "C" fn(
            model: *mut CmlModel,
            state: *mut CmlState,
            names: *const CmlStr,
            inputs: *const *mut CmlValue,
            n_inputs: usize,
            options: *const CmlPredictOptions,
            done: CmlPredictedFn,
            context: *mut ::core::ffi::c_void,
            request: *mut *mut CmlRequest,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[F\\] As model_load, without waiting; the rest as model_predict_async."]
    pub model_load_async: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            path: CmlStr,
            config: *const CmlConfig,
            done: CmlLoadedFn,
            context: *mut ::core::ffi::c_void,
            request: *mut *mut CmlRequest,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[F\\] Asks for an early end: the completion gets CML_CANCELLED, unless it was called, or is about to be. A load ends\nat once, even one that would never end, perhaps within this call; a prediction when the framework has let go of\nthe inputs."]
    pub request_cancel: ::core::option::Option<unsafe extern "C" fn(request: *mut CmlRequest)>,
    #[doc = " \\[F\\] Cancels nothing."]
    pub request_release: ::core::option::Option<unsafe extern "C" fn(request: *mut CmlRequest)>,
    #[doc = " \\[F\\] What is inside .mlmodel, .mlpackage or .mlmodelc: functions and ops, or layers. JSON, see docs/abi.md,\n\"Structure\"."]
    pub model_structure: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            path: CmlStr,
            json: *mut *mut CmlBlob,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[F\\] The same, and for each op of the function that `config` chooses where it would run and what part of the work it\nis. `config` as in model_load."]
    pub compute_plan: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            path: CmlStr,
            config: *const CmlConfig,
            json: *mut *mut CmlBlob,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[F\\] Load a model that is in memory: the `length` bytes of its specification (what a .mlmodel holds), and the files\nthat it names, each once and each below \"@model_path/\". All is copied. Nothing is written to the disk."]
    pub model_load_memory: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            specification: *const ::core::ffi::c_void,
            length: usize,
            files: *const CmlFile,
            n_files: usize,
            config: *const CmlConfig,
            model: *mut *mut CmlModel,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
    #[doc = " \\[F\\] From now on `log` is told what no status says: decisions that were taken silently, such as a backing that was not\nused (WARNING), and models that were loaded (INFO). NULL: nobody is told, which is so to begin with. There is one\nfor a table. When the slot returns, the function that was set before is not running, and is never called again; what\nhappens while it is replaced is told to nobody. `log` may call other slots, whose messages are then dropped; from\nwithin it this slot answers CML_BUSY, for it would wait for itself."]
    pub log_set: ::core::option::Option<
        unsafe extern "C" fn(
            self_: *mut ::core::ffi::c_void,
            log: CmlLogFn,
            context: *mut ::core::ffi::c_void,
            error: *mut *mut CmlError,
        ) -> CmlStatus,
    >,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CmlBridge"][::core::mem::size_of::<CmlBridge>() - 344usize];
    ["Alignment of CmlBridge"][::core::mem::align_of::<CmlBridge>() - 8usize];
    ["Offset of field: CmlBridge::abi_version"][::core::mem::offset_of!(CmlBridge, abi_version) - 0usize];
    ["Offset of field: CmlBridge::struct_size"][::core::mem::offset_of!(CmlBridge, struct_size) - 4usize];
    ["Offset of field: CmlBridge::self_"][::core::mem::offset_of!(CmlBridge, self_) - 8usize];
    ["Offset of field: CmlBridge::backend_info"][::core::mem::offset_of!(CmlBridge, backend_info) - 16usize];
    ["Offset of field: CmlBridge::error_view"][::core::mem::offset_of!(CmlBridge, error_view) - 24usize];
    ["Offset of field: CmlBridge::error_free"][::core::mem::offset_of!(CmlBridge, error_free) - 32usize];
    ["Offset of field: CmlBridge::blob_bytes"][::core::mem::offset_of!(CmlBridge, blob_bytes) - 40usize];
    ["Offset of field: CmlBridge::blob_free"][::core::mem::offset_of!(CmlBridge, blob_free) - 48usize];
    ["Offset of field: CmlBridge::model_compile"]
        [::core::mem::offset_of!(CmlBridge, model_compile) - 56usize];
    ["Offset of field: CmlBridge::model_load"][::core::mem::offset_of!(CmlBridge, model_load) - 64usize];
    ["Offset of field: CmlBridge::model_describe"]
        [::core::mem::offset_of!(CmlBridge, model_describe) - 72usize];
    ["Offset of field: CmlBridge::model_predict"]
        [::core::mem::offset_of!(CmlBridge, model_predict) - 80usize];
    ["Offset of field: CmlBridge::model_release"]
        [::core::mem::offset_of!(CmlBridge, model_release) - 88usize];
    ["Offset of field: CmlBridge::result_view"][::core::mem::offset_of!(CmlBridge, result_view) - 96usize];
    ["Offset of field: CmlBridge::result_free"][::core::mem::offset_of!(CmlBridge, result_free) - 104usize];
    ["Offset of field: CmlBridge::value_kind"][::core::mem::offset_of!(CmlBridge, value_kind) - 112usize];
    ["Offset of field: CmlBridge::value_retain"][::core::mem::offset_of!(CmlBridge, value_retain) - 120usize];
    ["Offset of field: CmlBridge::value_release"]
        [::core::mem::offset_of!(CmlBridge, value_release) - 128usize];
    ["Offset of field: CmlBridge::tensor_new"][::core::mem::offset_of!(CmlBridge, tensor_new) - 136usize];
    ["Offset of field: CmlBridge::tensor_copy"][::core::mem::offset_of!(CmlBridge, tensor_copy) - 144usize];
    ["Offset of field: CmlBridge::tensor_wrap"][::core::mem::offset_of!(CmlBridge, tensor_wrap) - 152usize];
    ["Offset of field: CmlBridge::tensor_desc"][::core::mem::offset_of!(CmlBridge, tensor_desc) - 160usize];
    ["Offset of field: CmlBridge::tensor_with_bytes"]
        [::core::mem::offset_of!(CmlBridge, tensor_with_bytes) - 168usize];
    ["Offset of field: CmlBridge::tensor_read"][::core::mem::offset_of!(CmlBridge, tensor_read) - 176usize];
    ["Offset of field: CmlBridge::scalar_new"][::core::mem::offset_of!(CmlBridge, scalar_new) - 184usize];
    ["Offset of field: CmlBridge::scalar_view"][::core::mem::offset_of!(CmlBridge, scalar_view) - 192usize];
    ["Offset of field: CmlBridge::dictionary_new"]
        [::core::mem::offset_of!(CmlBridge, dictionary_new) - 200usize];
    ["Offset of field: CmlBridge::sequence_new"][::core::mem::offset_of!(CmlBridge, sequence_new) - 208usize];
    ["Offset of field: CmlBridge::entries_view"][::core::mem::offset_of!(CmlBridge, entries_view) - 216usize];
    ["Offset of field: CmlBridge::image_new"][::core::mem::offset_of!(CmlBridge, image_new) - 224usize];
    ["Offset of field: CmlBridge::image_with_bytes"]
        [::core::mem::offset_of!(CmlBridge, image_with_bytes) - 232usize];
    ["Offset of field: CmlBridge::state_new"][::core::mem::offset_of!(CmlBridge, state_new) - 240usize];
    ["Offset of field: CmlBridge::state_with_bytes"]
        [::core::mem::offset_of!(CmlBridge, state_with_bytes) - 248usize];
    ["Offset of field: CmlBridge::state_release"]
        [::core::mem::offset_of!(CmlBridge, state_release) - 256usize];
    ["Offset of field: CmlBridge::function_names"]
        [::core::mem::offset_of!(CmlBridge, function_names) - 264usize];
    ["Offset of field: CmlBridge::model_predict_batch"]
        [::core::mem::offset_of!(CmlBridge, model_predict_batch) - 272usize];
    ["Offset of field: CmlBridge::model_predict_async"]
        [::core::mem::offset_of!(CmlBridge, model_predict_async) - 280usize];
    ["Offset of field: CmlBridge::model_load_async"]
        [::core::mem::offset_of!(CmlBridge, model_load_async) - 288usize];
    ["Offset of field: CmlBridge::request_cancel"]
        [::core::mem::offset_of!(CmlBridge, request_cancel) - 296usize];
    ["Offset of field: CmlBridge::request_release"]
        [::core::mem::offset_of!(CmlBridge, request_release) - 304usize];
    ["Offset of field: CmlBridge::model_structure"]
        [::core::mem::offset_of!(CmlBridge, model_structure) - 312usize];
    ["Offset of field: CmlBridge::compute_plan"][::core::mem::offset_of!(CmlBridge, compute_plan) - 320usize];
    ["Offset of field: CmlBridge::model_load_memory"]
        [::core::mem::offset_of!(CmlBridge, model_load_memory) - 328usize];
    ["Offset of field: CmlBridge::log_set"][::core::mem::offset_of!(CmlBridge, log_set) - 336usize];
};
unsafe extern "C" {
    #[doc = " Apple's Core ML through the Objective-C shim."]
    pub fn cml_bridge_coreml() -> *const CmlBridge;
}
unsafe extern "C" {
    #[doc = " The portable engine, in Rust."]
    pub fn cml_bridge_portable() -> *const CmlBridge;
}
