//! Errors of the table, and the wall that no panic passes.

use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};

use coreml_engine::{LoadError, PredictError};
use coreml_sys::{
    CML_BUSY, CML_CORRUPT, CML_FOREIGN_EXCEPTION, CML_FRAMEWORK, CML_INVALID_ARGUMENT, CML_NOT_FOUND, CML_OK,
    CML_TYPE_MISMATCH, CML_UNSUPPORTED, CmlError, CmlErrorView, CmlStatus, CmlStr,
};

use crate::live::{Kind, Live};

const DOMAIN: &str = "coreml.portable";

/// An error and the chain of what caused it, outermost first.
#[derive(Debug)]
pub(crate) struct Failure {
    status: CmlStatus,
    messages: Vec<String>,
}

impl Failure {
    pub(crate) fn new(status: CmlStatus, message: impl Into<String>) -> Self {
        Self { status, messages: vec![message.into()] }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(CML_INVALID_ARGUMENT, message)
    }

    pub(crate) fn null(what: &str) -> Self {
        Self::invalid(format!("{what} is NULL"))
    }

    pub(crate) fn busy(what: &str) -> Self {
        Self::new(CML_BUSY, format!("the {what} is in use by another call"))
    }

    pub(crate) fn mismatch(message: impl Into<String>) -> Self {
        Self::new(CML_TYPE_MISMATCH, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(CML_UNSUPPORTED, message)
    }

    fn chain(status: CmlStatus, error: &dyn StdError) -> Self {
        let mut messages = vec![error.to_string()];
        let mut source = error.source();
        while let Some(error) = source {
            messages.push(error.to_string());
            source = error.source();
        }
        Self { status, messages }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::chain(status_of(&error), &error)
    }
}

fn status_of(error: &LoadError) -> CmlStatus {
    match error {
        LoadError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => CML_NOT_FOUND,
        LoadError::NoFunction { .. } => CML_NOT_FOUND,
        LoadError::Io { .. } => CML_FRAMEWORK,
        LoadError::Unsupported { .. } => CML_UNSUPPORTED,
        LoadError::Op { source: coreml_engine::OpError::Unknown { .. }, .. } => CML_UNSUPPORTED,
        LoadError::Op { source: coreml_engine::OpError::Unsupported(_), .. } => CML_UNSUPPORTED,
        _ => CML_CORRUPT,
    }
}

impl From<PredictError> for Failure {
    fn from(error: PredictError) -> Self {
        let status = match &error {
            PredictError::MissingInput { .. } | PredictError::UnknownFeature { .. } => CML_NOT_FOUND,
            PredictError::WrongInput { .. } => CML_TYPE_MISMATCH,
            PredictError::State { .. } => CML_INVALID_ARGUMENT,
            PredictError::Plan { source, .. } if status_of(source) == CML_UNSUPPORTED => CML_UNSUPPORTED,
            _ => CML_FRAMEWORK,
        };
        Self::chain(status, &error)
    }
}

/// What a `CmlError` handle points to.
struct ErrorObject {
    failure: Failure,
    _live: Live,
}

/// Runs a body, and makes a failure of a panic.
fn caught<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // A panic leaves the objects of the call behind it: whoever holds one of them finds it busy or unchanged, never broken.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without words".to_owned());
        Err(Failure::new(CML_FOREIGN_EXCEPTION, format!("the engine panicked: {message}")))
    })
}

/// An error handle of +1.
fn into_handle(failure: Failure) -> *mut CmlError {
    Box::into_raw(Box::new(ErrorObject { failure, _live: Live::new(Kind::Error) })).cast()
}

/// Runs the body of an asynchronous call: what its completion is told. The error is +1.
pub(crate) fn completion<T>(
    body: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, (CmlStatus, *mut CmlError)> {
    caught(body).map_err(|failure| (failure.status, into_handle(failure)))
}

/// Runs the body of a slot. A failure goes to `*error` (if the caller wants it), a panic becomes one.
///
/// # Safety
/// `error` must be NULL or valid for a write.
pub(crate) unsafe fn slot(
    error: *mut *mut CmlError,
    body: impl FnOnce() -> Result<(), Failure>,
) -> CmlStatus {
    if !error.is_null() {
        // SAFETY: not NULL, and valid by this function's contract.
        unsafe { error.write(std::ptr::null_mut()) };
    }
    match caught(body) {
        Ok(()) => CML_OK,
        Err(failure) => {
            let status = failure.status;
            if !error.is_null() {
                // SAFETY: as above.
                unsafe { error.write(into_handle(failure)) };
            }
            status
        }
    }
}

pub(crate) unsafe extern "C" fn error_view(error: *const CmlError, depth: u32, view: *mut CmlErrorView) {
    if view.is_null() {
        return;
    }
    // SAFETY: an error handle comes from `slot` and is borrowed for the call.
    let object = unsafe { error.cast::<ErrorObject>().as_ref() };
    let depth = depth as usize;
    let found = object.and_then(|object| Some((object, object.failure.messages.get(depth)?)));
    let size = u32::try_from(size_of::<CmlErrorView>()).unwrap_or(u32::MAX);
    let filled = match found {
        Some((object, message)) => CmlErrorView {
            size,
            depth_left: u32::try_from(object.failure.messages.len() - depth - 1).unwrap_or(u32::MAX),
            status: object.failure.status,
            code: i64::from(object.failure.status),
            domain: CmlStr::from(DOMAIN),
            message: CmlStr::from(message.as_str()),
            reason: CmlStr::NONE,
        },
        None => CmlErrorView {
            size,
            depth_left: 0,
            status: 0,
            code: 0,
            domain: CmlStr::NONE,
            message: CmlStr::NONE,
            reason: CmlStr::NONE,
        },
    };
    // SAFETY: the caller passes a view of at least the size of this version, the first there is.
    unsafe { view.write(filled) };
}

pub(crate) unsafe extern "C" fn error_free(error: *mut CmlError) {
    if !error.is_null() {
        // SAFETY: a handle of `slot`, +1 to the caller, who gives it back once.
        drop(unsafe { Box::from_raw(error.cast::<ErrorObject>()) });
    }
}
