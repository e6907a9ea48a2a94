//! Ownership of what crosses the table: handles that release themselves, errors read to the end of their chain.

use core::{
    ptr::{self, NonNull},
    slice,
};
use std::sync::Arc;

use coreml_sys::*;

use crate::{Bridge, Error, NativeError, Status, TensorError, table::Table};

/// What the table hands out by count.
pub(crate) trait Native {
    /// The slot that gives one count back.
    fn release(table: &Table) -> unsafe extern "C" fn(*mut Self);
}

macro_rules! native {
    ($($handle:ty => $release:ident;)*) => {
        $(impl Native for $handle {
            fn release(table: &Table) -> unsafe extern "C" fn(*mut Self) {
                table.$release
            }
        })*
    };
}

native! {
    CmlBlob => blob_free;
    CmlError => error_free;
    CmlModel => model_release;
    CmlRequest => request_release;
    CmlResult => result_free;
    CmlState => state_release;
    CmlValue => value_release;
}

/// One count of a handle. Neither `Send` nor `Sync`, for `NonNull` is not.
pub(crate) struct Owned<T: Native> {
    bridge: Bridge,
    /// A handle of `bridge`, of which this is the only owner of one count.
    handle: NonNull<T>,
}

impl<T: Native> Owned<T> {
    /// Takes over one count of `handle`, which must be `bridge`'s; null is nothing.
    pub(crate) fn adopt(bridge: Bridge, handle: *mut T) -> Option<Self> {
        NonNull::new(handle).map(|handle| Self { bridge, handle })
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.handle.as_ptr()
    }
}

impl<T: Native> Drop for Owned<T> {
    fn drop(&mut self) {
        let release = T::release(self.bridge.table());
        // SAFETY: this is the one owner of the count, as `adopt` demands, and no call on the handle is running: every
        // call borrows the owner, which is not shared between threads.
        unsafe { release(self.handle.as_ptr()) };
    }
}

/// Why a call through the table failed, before it is known what the call was for.
pub(crate) enum Failure {
    /// The other side says so.
    Native(NativeError),
    /// The other side breaks the contract.
    Contract { slot: &'static str, what: &'static str },
    /// What came back is not a tensor that can be.
    Tensor(TensorError),
}

impl Failure {
    pub(crate) fn contract(slot: &'static str, what: &'static str) -> Failure {
        Failure::Contract { slot, what }
    }

    /// The error of a call about `model`; `wrap` says what the call was for.
    pub(crate) fn about(self, model: &Arc<str>, wrap: impl FnOnce(Arc<str>, NativeError) -> Error) -> Error {
        let model = Arc::clone(model);
        match self {
            Failure::Native(source) if source.status == Status::Busy => Error::Busy { model, source },
            Failure::Native(source) if source.status == Status::Unsupported => {
                Error::Unsupported { model, source }
            }
            Failure::Native(source) => wrap(model, source),
            Failure::Contract { slot, what } => Error::Contract { slot, what },
            Failure::Tensor(source) => Error::Tensor { model, feature: Arc::from("?"), source },
        }
    }

    /// The error of passing the value of `feature`.
    pub(crate) fn about_feature(self, model: &Arc<str>, feature: &str) -> Error {
        let feature: Arc<str> = feature.into();
        match self {
            Failure::Tensor(source) => Error::Tensor { model: Arc::clone(model), feature, source },
            other => other.about(model, |model, source| Error::Value { model, feature, source }),
        }
    }
}

impl Bridge {
    /// Runs a slot that can fail, and reads its error.
    pub(crate) fn call(
        self,
        slot: impl FnOnce(&'static Table, *mut *mut CmlError) -> CmlStatus,
    ) -> Result<(), Failure> {
        let mut error = ptr::null_mut();
        let status = slot(self.table(), &mut error);
        // Owned in any case: it is freed also if a bridge reports an error along with a success.
        let error = Owned::adopt(self, error);
        self.check(status, error.as_ref())
    }

    /// Runs a slot that makes a handle.
    pub(crate) fn make<T: Native>(
        self,
        name: &'static str,
        slot: impl FnOnce(&'static Table, *mut *mut T, *mut *mut CmlError) -> CmlStatus,
    ) -> Result<Owned<T>, Failure> {
        let mut handle = ptr::null_mut();
        self.call(|table, error| slot(table, &mut handle, error))?;
        self.outcome(name, CML_OK, Owned::adopt(self, handle), None)
    }

    /// What the end of a call says: what it made, or its error read.
    pub(crate) fn outcome<T: Native>(
        self,
        name: &'static str,
        status: CmlStatus,
        made: Option<Owned<T>>,
        error: Option<&Owned<CmlError>>,
    ) -> Result<Owned<T>, Failure> {
        self.check(status, error)?;
        made.ok_or(Failure::contract(name, "it succeeded and made nothing"))
    }

    fn check(self, status: CmlStatus, error: Option<&Owned<CmlError>>) -> Result<(), Failure> {
        if status == CML_OK {
            return Ok(());
        }
        Err(Failure::Native(self.read_error(Status::from_native(status), error)))
    }

    /// The whole chain of an error, outermost first.
    fn read_error(self, status: Status, error: Option<&Owned<CmlError>>) -> NativeError {
        /// More than any framework nests; what lies below is left out rather than trusted.
        const DEEPEST: u32 = 64;

        let Some(error) = error else {
            return NativeError {
                status,
                code: 0,
                domain: Box::default(),
                message: "the bridge gave no details".into(),
                reason: None,
                source: None,
            };
        };
        let (outermost, below) = self.read_level(error, 0, status);
        let mut source = None;
        for depth in (1..=below.min(DEEPEST)).rev() {
            let (level, _) = self.read_level(error, depth, status);
            source = Some(Box::new(NativeError { source, ..level }));
        }
        NativeError { status, source, ..outermost }
    }

    /// One level of an error, and how many lie below it. `status` is the call's, for levels that have none of their own.
    fn read_level(self, error: &Owned<CmlError>, depth: u32, status: Status) -> (NativeError, u32) {
        let mut view = CmlErrorView {
            size: size_of::<CmlErrorView>() as u32,
            depth_left: 0,
            status: CML_OK,
            code: 0,
            domain: CmlStr::NONE,
            message: CmlStr::NONE,
            reason: CmlStr::NONE,
        };
        let error_view = self.table().error_view;
        // SAFETY: the error is alive, the view is ours and says its size.
        unsafe { error_view(error.as_ptr(), depth, &mut view) };
        let text = |string: CmlStr| -> Box<str> {
            // SAFETY: the strings of a view live as long as the error, which is borrowed here.
            let bytes = unsafe { string.as_bytes() };
            // An error is there to be read: bad UTF-8 in it must not hide it.
            Box::from(String::from_utf8_lossy(bytes))
        };
        let reason = text(view.reason);
        let level = NativeError {
            status: if view.status == CML_OK { status } else { Status::from_native(view.status) },
            code: view.code,
            domain: text(view.domain),
            message: text(view.message),
            reason: (!reason.is_empty()).then_some(reason),
            source: None,
        };
        (level, view.depth_left)
    }
}

impl Owned<CmlBlob> {
    /// The bytes, which live as long as the blob.
    pub(crate) fn bytes(&self) -> &[u8] {
        let blob_bytes = self.bridge.table().blob_bytes;
        // SAFETY: the blob is alive while `self` is.
        let string = unsafe { blob_bytes(self.as_ptr()) };
        // SAFETY: the bytes are the blob's, immutable, and borrowed for as long as `self` is.
        unsafe { string.as_bytes() }
    }
}

/// Text that the other side lends, which must be UTF-8.
///
/// # Safety
/// The string's bytes live and do not change for `'a`.
pub(crate) unsafe fn text<'a>(slot: &'static str, string: CmlStr) -> Result<&'a str, Failure> {
    // SAFETY: the caller promises it.
    let bytes = unsafe { string.as_bytes() };
    core::str::from_utf8(bytes).map_err(|_| Failure::contract(slot, "it gave text that is not UTF-8"))
}

/// An array that the other side lends; null only if it is empty.
///
/// # Safety
/// `first` is null or points at `count` elements that live and do not change for `'a`.
pub(crate) unsafe fn array<'a, T>(
    slot: &'static str,
    first: *const T,
    count: usize,
) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if first.is_null() {
        return Err(Failure::contract(slot, "it gave a null array that is not empty"));
    }
    // SAFETY: not null, and the caller promises the rest.
    Ok(unsafe { slice::from_raw_parts(first, count) })
}
