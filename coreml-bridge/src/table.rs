//! The table, parsed: every slot is there, so nothing above checks again.

use core::ffi::c_void;

use coreml_sys::*;

use crate::BridgeError;

/// Declares [`Table`] and how it is parsed. Both name every member of [`CmlBridge`], so that a slot that is added to the
/// header does not compile until it is added here.
macro_rules! table {
    ($($slot:ident: fn($($argument:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// A table whose version, size and slots were checked.
        #[expect(dead_code, reason = "all slots are checked; a few ways to make values are not needed by the safe layer")]
        pub(crate) struct Table {
            /// The table as it was given: its address is the identity of the bridge.
            pub(crate) raw: &'static CmlBridge,
            $(pub(crate) $slot: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Table {
            fn parse(raw: &'static CmlBridge) -> Result<Table, BridgeError> {
                let &CmlBridge { abi_version: _, struct_size: _, self_: _, $($slot),* } = raw;
                Ok(Table {
                    raw,
                    $($slot: $slot.ok_or(BridgeError::Slot { slot: stringify!($slot) })?,)*
                })
            }
        }
    };
}

table! {
    backend_info: fn(*mut c_void, *mut *mut CmlBlob, *mut *mut CmlError) -> CmlStatus;
    error_view: fn(*const CmlError, u32, *mut CmlErrorView);
    error_free: fn(*mut CmlError);
    blob_bytes: fn(*const CmlBlob) -> CmlStr;
    blob_free: fn(*mut CmlBlob);
    model_compile: fn(*mut c_void, CmlStr, CmlStr, *mut *mut CmlBlob, *mut *mut CmlError) -> CmlStatus;
    model_load: fn(*mut c_void, CmlStr, *const CmlConfig, *mut *mut CmlModel, *mut *mut CmlError) -> CmlStatus;
    model_describe: fn(*mut CmlModel, *mut *mut CmlBlob, *mut *mut CmlError) -> CmlStatus;
    model_predict: fn(
        *mut CmlModel,
        *mut CmlState,
        *const CmlStr,
        *const *mut CmlValue,
        usize,
        *const CmlPredictOptions,
        *mut *mut CmlResult,
        *mut *mut CmlError,
    ) -> CmlStatus;
    model_release: fn(*mut CmlModel);
    result_view: fn(*const CmlResult, *mut CmlResultView);
    result_free: fn(*mut CmlResult);
    value_kind: fn(*const CmlValue) -> CmlKind;
    value_retain: fn(*mut CmlValue);
    value_release: fn(*mut CmlValue);
    tensor_new: fn(*mut c_void, *const CmlTensorDesc, *mut *mut CmlValue, *mut *mut CmlError) -> CmlStatus;
    tensor_copy: fn(
        *mut c_void,
        *const CmlTensorDesc,
        *const c_void,
        usize,
        *mut *mut CmlValue,
        *mut *mut CmlError,
    ) -> CmlStatus;
    tensor_wrap: fn(
        *mut c_void,
        *const CmlTensorDesc,
        *mut c_void,
        usize,
        CmlReleaseFn,
        *mut c_void,
        *mut *mut CmlValue,
        *mut *mut CmlError,
    ) -> CmlStatus;
    tensor_desc: fn(*const CmlValue, *mut CmlTensorDesc, *mut *mut CmlError) -> CmlStatus;
    tensor_with_bytes: fn(*mut CmlValue, i32, CmlTensorBytesFn, *mut c_void, *mut *mut CmlError) -> CmlStatus;
    tensor_read: fn(*mut CmlValue, CmlDtype, *mut c_void, usize, *mut *mut CmlError) -> CmlStatus;
    scalar_new: fn(*mut c_void, *const CmlScalarView, *mut *mut CmlValue, *mut *mut CmlError) -> CmlStatus;
    scalar_view: fn(*const CmlValue, *mut CmlScalarView, *mut *mut CmlError) -> CmlStatus;
    dictionary_new: fn(*mut c_void, *const CmlEntries, *mut *mut CmlValue, *mut *mut CmlError) -> CmlStatus;
    sequence_new: fn(*mut c_void, *const CmlEntries, *mut *mut CmlValue, *mut *mut CmlError) -> CmlStatus;
    entries_view: fn(*const CmlValue, *mut CmlEntries, *mut *mut CmlError) -> CmlStatus;
    image_new: fn(
        *mut c_void,
        *const CmlImageDesc,
        *const c_void,
        usize,
        *mut *mut CmlValue,
        *mut *mut CmlError,
    ) -> CmlStatus;
    image_with_bytes: fn(*mut CmlValue, i32, CmlImageBytesFn, *mut c_void, *mut *mut CmlError) -> CmlStatus;
    state_new: fn(*mut CmlModel, *mut *mut CmlState, *mut *mut CmlError) -> CmlStatus;
    state_with_bytes: fn(
        *mut CmlState,
        CmlStr,
        i32,
        CmlTensorBytesFn,
        *mut c_void,
        *mut *mut CmlError,
    ) -> CmlStatus;
    state_release: fn(*mut CmlState);
    function_names: fn(*mut c_void, CmlStr, *mut *mut CmlBlob, *mut *mut CmlError) -> CmlStatus;
    model_predict_batch: fn(
        *mut CmlModel,
        usize,
        *const CmlStr,
        *const *mut CmlValue,
        usize,
        *const CmlPredictOptions,
        *mut *mut CmlResult,
        *mut *mut CmlError,
    ) -> CmlStatus;
    model_predict_async: fn(
        *mut CmlModel,
        *mut CmlState,
        *const CmlStr,
        *const *mut CmlValue,
        usize,
        *const CmlPredictOptions,
        CmlPredictedFn,
        *mut c_void,
        *mut *mut CmlRequest,
        *mut *mut CmlError,
    ) -> CmlStatus;
    model_load_async: fn(
        *mut c_void,
        CmlStr,
        *const CmlConfig,
        CmlLoadedFn,
        *mut c_void,
        *mut *mut CmlRequest,
        *mut *mut CmlError,
    ) -> CmlStatus;
    request_cancel: fn(*mut CmlRequest);
    request_release: fn(*mut CmlRequest);
    model_structure: fn(*mut c_void, CmlStr, *mut *mut CmlBlob, *mut *mut CmlError) -> CmlStatus;
    compute_plan: fn(
        *mut c_void,
        CmlStr,
        *const CmlConfig,
        *mut *mut CmlBlob,
        *mut *mut CmlError,
    ) -> CmlStatus;
    model_load_memory: fn(
        *mut c_void,
        *const c_void,
        usize,
        *const CmlFile,
        usize,
        *const CmlConfig,
        *mut *mut CmlModel,
        *mut *mut CmlError,
    ) -> CmlStatus;
    log_set: fn(*mut c_void, CmlLogFn, *mut c_void, *mut *mut CmlError) -> CmlStatus;
}

impl Table {
    /// Checks what is at `table` and keeps it for the life of the process.
    ///
    /// # Safety
    /// As [`Bridge::from_table`](crate::Bridge::from_table).
    pub(crate) unsafe fn check(table: *const CmlBridge) -> Result<Table, BridgeError> {
        if table.is_null() {
            return Err(BridgeError::Null);
        }
        // The version and the size stand first, and are read alone: a table of another version may be shorter.
        // SAFETY: the caller vouches for the head of the table, and it is not null.
        let found = unsafe { (*table).abi_version };
        if found != CML_ABI_VERSION {
            return Err(BridgeError::Version { expected: CML_ABI_VERSION, found });
        }
        // SAFETY: as above.
        let found = unsafe { (*table).struct_size } as usize;
        if found < size_of::<CmlBridge>() {
            return Err(BridgeError::Size { expected: size_of::<CmlBridge>(), found });
        }
        // SAFETY: the caller vouches that the table is as long as it says, lives for ever and does not change.
        Table::parse(unsafe { &*table })
    }

    /// The first argument of the slots that make things.
    pub(crate) fn own(&self) -> *mut c_void {
        self.raw.self_
    }
}
