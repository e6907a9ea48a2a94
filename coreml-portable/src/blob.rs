//! Immutable bytes that the table gives out.

use std::ffi::c_void;

use coreml_sys::{CmlBlob, CmlError, CmlStatus, CmlStr};

use crate::arguments::out;
use crate::error::{Failure, slot};
use crate::live::{Kind, Live};

struct BlobObject {
    bytes: Vec<u8>,
    _live: Live,
}

/// A handle of +1.
pub(crate) fn into_handle(bytes: Vec<u8>) -> *mut CmlBlob {
    Box::into_raw(Box::new(BlobObject { bytes, _live: Live::new(Kind::Blob) })).cast()
}

pub(crate) unsafe extern "C" fn blob_bytes(blob: *const CmlBlob) -> CmlStr {
    // SAFETY: NULL or a live handle of this bridge.
    match unsafe { blob.cast::<BlobObject>().as_ref() } {
        Some(object) => CmlStr { ptr: object.bytes.as_ptr().cast(), len: object.bytes.len() },
        None => CmlStr::NONE,
    }
}

pub(crate) unsafe extern "C" fn blob_free(blob: *mut CmlBlob) {
    if !blob.is_null() {
        // SAFETY: the caller gives back the handle of `into_handle`, once.
        drop(unsafe { Box::from_raw(blob.cast::<BlobObject>()) });
    }
}

pub(crate) unsafe extern "C" fn backend_info(
    _self: *mut c_void,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `json`.
        let mut json = unsafe { out(json, "json") }?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let info = serde_json::json!({
            "name": "portable",
            "version": env!("CARGO_PKG_VERSION"),
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "dtypes": ["float16", "float32", "float64", "int8", "int32"],
            "features": ["mlmodel", "mlpackage", "functions", "state", "backings", "image", "threads", "batch", "async", "structure", "plan", "reshape_frequency", "specialization", "memory", "memory_files", "log"],
            "devices": [{ "kind": "cpu", "cores": cores }],
        });
        json.set(into_handle(
            serde_json::to_vec(&info).map_err(|error| Failure::invalid(error.to_string()))?,
        ));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}
