//! Asynchronous calls: futures that stay on the thread that began them.
//!
//! The completion comes on a thread of the other side's. It leaves there what was made, and wakes whoever waits; what was made is
//! looked at, and becomes something of Rust's, on the thread of the future.

use core::{
    ffi::c_void,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    ptr,
    task::{Context, Poll, Waker},
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use coreml_sys::*;

use crate::{
    Bridge, CoreMlHandle, Error, Prediction, State,
    crossing::{Backing, shield},
    native::{Failure, Native, Owned},
    table::Table,
};

/// What a completion is told.
struct End<T: Native> {
    status: CmlStatus,
    made: Option<Owned<T>>,
    error: Option<Owned<CmlError>>,
}

// SAFETY: what a completion was given belongs to whoever takes it, alone; and the slots that release it are of class [F].
unsafe impl<T: Native> Send for End<T> {}

enum Progress<T: Native> {
    Running(Option<Waker>),
    Ended(End<T>),
    Taken,
}

/// What the completion and the future share.
struct Shared<T: Native> {
    bridge: Bridge,
    progress: Mutex<Progress<T>>,
    ended: Condvar,
}

impl<T: Native> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        // Nothing panics under the lock, so that a poisoned one is as good.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, status: CmlStatus, made: *mut T, error: *mut CmlError) {
        let (made, error) = (Owned::adopt(self.bridge, made), Owned::adopt(self.bridge, error));
        let before = core::mem::replace(&mut *self.lock(), Progress::Ended(End { status, made, error }));
        self.ended.notify_all();
        if let Progress::Running(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// Ends a call.
///
/// # Safety
/// `context` is what [`Waiting::begin`] gave the table, which passes it on once; the handles are +1.
unsafe fn end<T: Native>(context: *mut c_void, status: CmlStatus, made: *mut T, error: *mut CmlError) {
    // SAFETY: `begin` made the pointer with `Arc::into_raw`, and gave its count away.
    let shared = unsafe { Arc::from_raw(context.cast_const().cast::<Shared<T>>()) };
    // A waker is somebody else's code.
    shield(|| shared.end(status, made, error));
}

unsafe extern "C" fn predicted(
    context: *mut c_void,
    status: CmlStatus,
    result: *mut CmlResult,
    error: *mut CmlError,
) {
    // SAFETY: the table's contract on completions.
    unsafe { end(context, status, result, error) };
}

unsafe extern "C" fn loaded(
    context: *mut c_void,
    status: CmlStatus,
    model: *mut CmlModel,
    error: *mut CmlError,
) {
    // SAFETY: the table's contract on completions.
    unsafe { end(context, status, model, error) };
}

/// What asynchronous calls make.
pub(crate) trait Made: Native + Sized {
    /// The type of the completion.
    type Done;
    const DONE: Self::Done;
    const SLOT: &'static str;
}

impl Made for CmlResult {
    type Done = CmlPredictedFn;
    const DONE: CmlPredictedFn = Some(predicted);
    const SLOT: &'static str = "model_predict_async";
}

impl Made for CmlModel {
    type Done = CmlLoadedFn;
    const DONE: CmlLoadedFn = Some(loaded);
    const SLOT: &'static str = "model_load_async";
}

/// An asynchronous call that has begun.
pub(crate) struct Waiting<T: Made> {
    request: Owned<CmlRequest>,
    shared: Arc<Shared<T>>,
}

impl<T: Made> Waiting<T> {
    /// Runs a slot that begins a call.
    pub(crate) fn begin(
        bridge: Bridge,
        slot: impl FnOnce(
            &'static Table,
            T::Done,
            *mut c_void,
            *mut *mut CmlRequest,
            *mut *mut CmlError,
        ) -> CmlStatus,
    ) -> Result<Self, Failure> {
        let progress = Mutex::new(Progress::Running(None));
        let shared = Arc::new(Shared { bridge, progress, ended: Condvar::new() });
        let context = Arc::into_raw(Arc::clone(&shared));
        let mut request = ptr::null_mut();
        let begun =
            bridge.call(|table, error| slot(table, T::DONE, context.cast_mut().cast(), &mut request, error));
        let request = Owned::adopt(bridge, request);
        if let Err(failure) = begun {
            // SAFETY: what did not begin has no end, so the count of the context is still ours.
            drop(unsafe { Arc::from_raw(context) });
            return Err(failure);
        }
        let request = request.ok_or(Failure::contract(T::SLOT, "it succeeded and made no request"))?;
        Ok(Self { request, shared })
    }

    fn cancel(&self) {
        let request_cancel = self.shared.bridge.table().request_cancel;
        // SAFETY: the request is alive.
        unsafe { request_cancel(self.request.as_ptr()) };
    }

    fn has_ended(&self) -> bool {
        matches!(*self.shared.lock(), Progress::Ended(_))
    }

    fn read(&self, end: End<T>) -> Result<Owned<T>, Failure> {
        let End { status, made, error } = end;
        self.shared.bridge.outcome(T::SLOT, status, made, error.as_ref())
    }

    fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Owned<T>, Failure>> {
        // Cloned, and the last one dropped, without the lock: a waker is somebody else's code.
        let waker = context.waker().clone();
        let mut progress = self.shared.lock();
        match core::mem::replace(&mut *progress, Progress::Taken) {
            Progress::Running(last) => {
                *progress = Progress::Running(Some(waker));
                drop(progress);
                drop(last);
                Poll::Pending
            }
            Progress::Ended(end) => {
                drop(progress);
                Poll::Ready(self.read(end))
            }
            Progress::Taken => {
                drop(progress);
                panic!("a future was polled after it was ready")
            }
        }
    }

    fn wait(&mut self) -> Result<Owned<T>, Failure> {
        let mut progress = self.shared.lock();
        loop {
            match core::mem::replace(&mut *progress, Progress::Taken) {
                Progress::Running(waker) => {
                    *progress = Progress::Running(waker);
                    progress = self.shared.ended.wait(progress).unwrap_or_else(PoisonError::into_inner);
                }
                Progress::Ended(end) => {
                    drop(progress);
                    return self.read(end);
                }
                Progress::Taken => {
                    drop(progress);
                    panic!("a future was waited for after it was ready")
                }
            }
        }
    }
}

/// Nobody waits for the end any more; what comes of the call is let go.
impl<T: Made> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.cancel();
        // Here and not on the thread of the completion, if it is there already.
        let left = core::mem::replace(&mut *self.shared.lock(), Progress::Running(None));
        drop(left);
    }
}

/// A prediction that was begun with [`CoreMlHandle::predict_async`]: a future of what it gives.
///
/// Stays on the thread of its model. The prediction itself runs whether or not the future is polled.
///
/// # Cancel safety
/// Dropping it cancels the prediction: what comes of it is let go, and a state may or may not have been changed. The model is
/// taken ([`Error::Busy`]) until the framework has let go of it.
///
/// # Panics
/// If it is polled after it was ready.
#[must_use = "dropping it cancels the prediction"]
pub struct PendingPrediction<'state> {
    waiting: Waiting<CmlResult>,
    model: CoreMlHandle,
    backings: Vec<Backing>,
    /// The state is written until the end.
    _state: PhantomData<&'state mut State>,
}

impl<'state> PendingPrediction<'state> {
    pub(crate) fn new(
        waiting: Waiting<CmlResult>,
        model: CoreMlHandle,
        backings: Vec<Backing>,
    ) -> PendingPrediction<'state> {
        PendingPrediction { waiting, model, backings, _state: PhantomData }
    }

    /// Asks for an early end. The prediction still ends once: with an [`Error::Predict`] of status
    /// [`Cancelled`](crate::Status::Cancelled), when the framework has let go of its inputs, or with what it gave, if that
    /// was there already.
    pub fn cancel(&self) {
        self.waiting.cancel();
    }

    /// Whether the end has come, so that [`wait`](Self::wait) would not block.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.waiting.has_ended()
    }

    /// Blocks until the end.
    ///
    /// # Errors
    /// As [`CoreMlHandle::predict_with`], and [`Error::Predict`] of status [`Cancelled`](crate::Status::Cancelled).
    pub fn wait(mut self) -> Result<Prediction, Error> {
        let end = self.waiting.wait();
        self.finish(end)
    }

    fn finish(&mut self, end: Result<Owned<CmlResult>, Failure>) -> Result<Prediction, Error> {
        let wrong = |failure: Failure| {
            failure.about(self.model.path(), |model, source| Error::Predict { model, source })
        };
        let result = end.map_err(wrong)?;
        self.model.collect(&result, core::mem::take(&mut self.backings))
    }
}

impl Future for PendingPrediction<'_> {
    type Output = Result<Prediction, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.waiting.poll(context).map(|end| self.finish(end))
    }
}

impl fmt::Debug for PendingPrediction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingPrediction")
            .field("model", &self.model)
            .field("has_ended", &self.has_ended())
            .finish_non_exhaustive()
    }
}

/// A load that was begun with [`Bridge::load_async`]: a future of the model, which will belong to the thread that holds it.
///
/// # Cancel safety
/// Dropping it cancels the load; a model that is loaded after all is released.
///
/// # Panics
/// If it is polled after it was ready.
#[must_use = "dropping it cancels the load"]
pub struct PendingModel {
    waiting: Waiting<CmlModel>,
    bridge: Bridge,
    path: Arc<str>,
}

impl PendingModel {
    pub(crate) fn new(waiting: Waiting<CmlModel>, bridge: Bridge, path: Arc<str>) -> PendingModel {
        PendingModel { waiting, bridge, path }
    }

    /// Ends the load at once, with an [`Error::Load`] of status [`Cancelled`](crate::Status::Cancelled), unless it had ended.
    pub fn cancel(&self) {
        self.waiting.cancel();
    }

    /// Whether the end has come, so that [`wait`](Self::wait) would not block.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.waiting.has_ended()
    }

    /// Blocks until the end.
    ///
    /// # Errors
    /// As [`Bridge::load`], and [`Error::Load`] of status [`Cancelled`](crate::Status::Cancelled).
    pub fn wait(mut self) -> Result<CoreMlHandle, Error> {
        let end = self.waiting.wait();
        self.finish(end)
    }

    fn finish(&self, end: Result<Owned<CmlModel>, Failure>) -> Result<CoreMlHandle, Error> {
        let native =
            end.map_err(|failure| failure.about(&self.path, |path, source| Error::Load { path, source }))?;
        CoreMlHandle::adopt(self.bridge, Arc::clone(&self.path), native)
    }
}

impl Future for PendingModel {
    type Output = Result<CoreMlHandle, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.waiting.poll(context).map(|end| self.finish(end))
    }
}

impl fmt::Debug for PendingModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingModel")
            .field("path", &self.path)
            .field("has_ended", &self.has_ended())
            .finish_non_exhaustive()
    }
}
