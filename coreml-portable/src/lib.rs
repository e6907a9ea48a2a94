//! Fills the Core ML bridge table from the portable engine, so that models run where there is no Core ML.
//!
//! This crate is the thin, unsafe layer between C and `coreml-engine`, which is safe and knows no C type: it checks pointers and
//! text, counts handles, detects calls that overlap, and catches panics. What the slots promise stands in
//! `bridge-objc/include/coreml_bridge.h`.
//!
//! All instances of one model share its weights: a model file that is already loaded in the process is not read again, unless it
//! changed.
//!
//! Two things that Core ML has no call for are said to this crate: the classes of custom layers ([`register_custom_layer`]), and
//! what models may use ([`set_limits`]).
//!
//! ```
//! let table = coreml_portable::bridge();
//! assert_eq!(table.abi_version, coreml_sys::CML_ABI_VERSION);
//! ```

mod arguments;
mod blob;
mod compile;
mod error;
mod live;
mod log;
mod model;
mod request;
mod serial;
mod settings;
mod structure;
mod value;

pub use coreml_engine::{
    CustomError, CustomLayer, CustomParameter, CustomSpec, CustomTensor, CustomWeights, Limits,
};
pub use live::{LiveObjects, live_objects};
pub use settings::{register_custom_layer, set_limits};

use coreml_sys::{CML_ABI_VERSION, CmlBridge};

/// The table of the portable engine; it lives as long as the process.
#[must_use]
pub fn bridge() -> &'static CmlBridge {
    static TABLE: CmlBridge = CmlBridge {
        abi_version: CML_ABI_VERSION,
        struct_size: size_of::<CmlBridge>() as u32,
        self_: std::ptr::null_mut(),
        backend_info: Some(blob::backend_info),
        error_view: Some(error::error_view),
        error_free: Some(error::error_free),
        blob_bytes: Some(blob::blob_bytes),
        blob_free: Some(blob::blob_free),
        model_compile: Some(model::model_compile),
        model_load: Some(model::model_load),
        model_describe: Some(model::model_describe),
        model_predict: Some(model::model_predict),
        model_release: Some(model::model_release),
        result_view: Some(model::result_view),
        result_free: Some(model::result_free),
        value_kind: Some(value::value_kind),
        value_retain: Some(value::value_retain),
        value_release: Some(value::value_release),
        tensor_new: Some(value::tensor_new),
        tensor_copy: Some(value::tensor_copy),
        tensor_wrap: Some(value::tensor_wrap),
        tensor_desc: Some(value::tensor_desc),
        tensor_with_bytes: Some(value::tensor_with_bytes),
        tensor_read: Some(value::tensor_read),
        scalar_new: Some(value::scalar_new),
        scalar_view: Some(value::scalar_view),
        dictionary_new: Some(value::dictionary_new),
        sequence_new: Some(value::sequence_new),
        entries_view: Some(value::entries_view),
        image_new: Some(value::image_new),
        image_with_bytes: Some(value::image_with_bytes),
        state_new: Some(model::state_new),
        state_with_bytes: Some(model::state_with_bytes),
        state_release: Some(model::state_release),
        function_names: Some(structure::function_names),
        model_predict_batch: Some(model::model_predict_batch),
        model_predict_async: Some(request::model_predict_async),
        model_load_async: Some(request::model_load_async),
        request_cancel: Some(request::request_cancel),
        request_release: Some(request::request_release),
        model_structure: Some(structure::model_structure),
        compute_plan: Some(structure::compute_plan),
        model_load_memory: Some(model::model_load_memory),
        log_set: Some(log::log_set),
    };
    &TABLE
}

/// The same table for C callers, as `coreml_bridge.h` declares it.
#[unsafe(no_mangle)]
pub extern "C" fn cml_bridge_portable() -> *const CmlBridge {
    bridge()
}
