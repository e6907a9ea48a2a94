//! Asynchronous calls: a thread each while they run, and one end exactly.
//!
//! The threads are kept. A thread that predicts becomes a pool of one for the arithmetic library, whose record of it stays for ever;
//! a new thread for each call would leak one each time.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use coreml_sys::{
    CML_CANCELLED, CML_OK, CML_OUT_OF_MEMORY, CmlConfig, CmlError, CmlLoadedFn, CmlModel, CmlPredictOptions,
    CmlPredictedFn, CmlRequest, CmlState, CmlStatus, CmlStr, CmlValue,
};

use crate::arguments::{self, place};
use crate::error::{Failure, completion, slot};
use crate::live::{Kind, Live};
use crate::model::{self, Options};
use crate::value::{self, Value};

/// What a `CmlRequest` handle points to; the thread that answers counts it, too.
struct RequestObject {
    cancelled: AtomicBool,
    /// Whoever sets it calls the completion.
    ended: AtomicBool,
    /// Of a load: cancelling it is its end. A prediction ends when it has let go of its inputs.
    load: Option<Completion<CmlModel>>,
    _live: Live,
}

impl RequestObject {
    fn new(load: Option<Completion<CmlModel>>) -> Arc<Self> {
        Arc::new(Self {
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            load,
            _live: Live::new(Kind::Request),
        })
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// True for the first who asks.
    fn ends(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }

    /// A failure once the caller has cancelled.
    fn check(&self, what: &str) -> Result<(), Failure> {
        let cancelled = || Failure::new(CML_CANCELLED, format!("the {what} was cancelled"));
        if self.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }
}

/// A completion, which is told of a `T`, with the context that its caller wants back.
struct Completion<T> {
    done: unsafe extern "C" fn(*mut c_void, CmlStatus, *mut T, *mut CmlError),
    context: *mut c_void,
}

// SAFETY: the table's contract lets the completion be called on any thread, with its context.
unsafe impl<T> Send for Completion<T> {}
// SAFETY: as above; it is called once, whoever holds it.
unsafe impl<T> Sync for Completion<T> {}

impl<T> Completion<T> {
    fn call(&self, outcome: Result<*mut T, (CmlStatus, *mut CmlError)>) {
        let (status, made, error) = match outcome {
            Ok(made) => (CML_OK, made, std::ptr::null_mut()),
            Err((status, error)) => (status, std::ptr::null_mut(), error),
        };
        // SAFETY: function and context belong together; the handles are +1 and become the caller's.
        unsafe { (self.done)(self.context, status, made, error) };
    }
}

/// What a call does on its thread.
type Body = Box<dyn FnOnce() + Send>;

/// The threads that wait for a body, the last to finish first. There are never more threads than calls ran at once.
static IDLE: Mutex<Vec<mpsc::Sender<Body>>> = Mutex::new(Vec::new());

fn idle<R>(with: impl FnOnce(&mut Vec<mpsc::Sender<Body>>) -> R) -> R {
    with(&mut IDLE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `body` on a thread that waits, or on a new one.
fn start(body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let mut body: Body = Box::new(body);
    while let Some(thread) = idle(Vec::pop) {
        match thread.send(body) {
            Ok(()) => return Ok(()),
            Err(mpsc::SendError(unsent)) => body = unsent,
        }
    }
    let serve = move || {
        let (thread, bodies) = mpsc::channel();
        let mut next = body;
        loop {
            next();
            idle(|idle| idle.push(thread.clone()));
            // `thread` keeps the channel open, so this waits for ever if nobody calls any more.
            let Ok(body) = bodies.recv() else { return };
            next = body;
        }
    };
    let started = thread::Builder::new().name("coreml-call".to_owned()).spawn(serve);
    let started = started.map_err(|error| {
        Failure::new(CML_OUT_OF_MEMORY, format!("no thread can be started for the call: {error}"))
    });
    started.map(drop)
}

/// Gives the caller a count of the request, if he wants one.
///
/// # Safety
/// `place` must be NULL or valid for a write.
unsafe fn hand_out(place: *mut *mut CmlRequest, request: &Arc<RequestObject>) {
    if !place.is_null() {
        // SAFETY: not NULL; the rest is the caller's promise.
        unsafe { place.write(Arc::into_raw(Arc::clone(request)).cast_mut().cast()) };
    }
}

pub(crate) unsafe extern "C" fn model_predict_async(
    model: *mut CmlModel,
    state: *mut CmlState,
    names: *const CmlStr,
    inputs: *const *mut CmlValue,
    n_inputs: usize,
    predict_options: *const CmlPredictOptions,
    done: CmlPredictedFn,
    context: *mut c_void,
    request: *mut *mut CmlRequest,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        let began = Instant::now();
        // SAFETY: the table's contract on `request`.
        if let Ok(mut request) = unsafe { place(request, "request") } {
            request.set(std::ptr::null_mut());
        }
        let completion_of =
            Completion { done: done.ok_or_else(|| Failure::null("the completion"))?, context };
        // SAFETY: the table's contract on `model`.
        let object = unsafe { model::borrow_model(model) }?;
        // SAFETY: the table's contract on `state`.
        let state = unsafe { model::borrow_state(state) };
        // SAFETY: the table's contract on the arrays.
        let names = unsafe { model::texts(names, n_inputs, "the names of the inputs") }?;
        // SAFETY: as above.
        let handles = unsafe { arguments::slice(inputs, n_inputs, "the inputs") }?;
        // SAFETY: the table's contract on `predict_options`.
        let options = unsafe { model::options(predict_options) }?;
        // SAFETY: live handles by the table's contract.
        let values = handles.iter().map(|&handle| unsafe { value::share(handle) });
        let values = values.collect::<Result<Vec<Arc<Value>>, _>>()?;
        // What cannot begin is the slot's answer.
        for value in &values {
            drop(value.lend()?);
        }
        let mut session = object.session.write_shared()?;
        let mut state = state.map(|object| object.state.write_shared()).transpose()?;
        let model = object.model.clone();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let wanted: Vec<String> = options.wanted.into_iter().map(str::to_owned).collect();
        let backings = options.backings.into_iter().map(|(name, backing)| (name.to_owned(), backing));
        let backings: Vec<(String, Arc<Value>)> = backings.collect();
        let made = RequestObject::new(None);
        // Before the thread starts: the completion may be called before this slot returns.
        let running = Arc::clone(&made);
        let read = model::nanoseconds(began);
        start(move || {
            let outcome = completion(|| {
                running.check("prediction")?;
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let borrowed: Vec<&Value> = values.iter().map(|value| &**value).collect();
                let wanted = wanted.iter().map(String::as_str).collect();
                let backings = backings.iter().map(|(name, backing)| (name.as_str(), Arc::clone(backing)));
                let options = Options { wanted, backings: backings.collect() };
                let made =
                    model::predict(&model, &mut session, state.as_deref_mut(), &names, &borrowed, &options);
                running.check("prediction")?;
                let mut made = made?;
                made.prepared_in(read);
                Ok(made)
            });
            // The caller's handles are free again before he hears of the end.
            drop((session, state, values, backings, model));
            if running.ends() {
                completion_of.call(outcome.map(model::ResultObject::into_handle));
            }
        })?;
        // SAFETY: the table's contract on `request`.
        unsafe { hand_out(request, &made) };
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn model_load_async(
    _self: *mut c_void,
    path: CmlStr,
    config: *const CmlConfig,
    done: CmlLoadedFn,
    context: *mut c_void,
    request: *mut *mut CmlRequest,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `request`.
        if let Ok(mut request) = unsafe { place(request, "request") } {
            request.set(std::ptr::null_mut());
        }
        let completion_of =
            Completion { done: done.ok_or_else(|| Failure::null("the completion"))?, context };
        // SAFETY: the path is borrowed for the call.
        let path = unsafe { arguments::text(path, "the path") }?.to_owned();
        // SAFETY: the table's contract on `config`.
        let (function, threads) = unsafe { model::configuration(config) }?;
        let function = function.map(str::to_owned);
        let made = RequestObject::new(Some(completion_of));
        let running = Arc::clone(&made);
        start(move || {
            let outcome = completion(|| {
                running.check("load")?;
                model::load_handle(&path, function.as_deref(), threads)
            });
            match &running.load {
                Some(loaded) if running.ends() => loaded.call(outcome),
                // Nobody waits for it any more.
                _ => match outcome {
                    // SAFETY: the handle was just made, and nobody else has it.
                    Ok(model) => unsafe { model::model_release(model) },
                    // SAFETY: as above.
                    Err((_, error)) => unsafe { crate::error::error_free(error) },
                },
            }
        })?;
        // SAFETY: the table's contract on `request`.
        unsafe { hand_out(request, &made) };
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn request_cancel(request: *mut CmlRequest) {
    // SAFETY: NULL or a live handle of this bridge.
    let Some(object) = (unsafe { request.cast::<RequestObject>().as_ref() }) else { return };
    object.cancelled.store(true, Ordering::Release);
    if let Some(loaded) = &object.load
        && object.ends()
    {
        loaded.call(completion(|| object.check("load").map(|()| std::ptr::null_mut())));
    }
}

pub(crate) unsafe extern "C" fn request_release(request: *mut CmlRequest) {
    if !request.is_null() {
        // SAFETY: the caller gives back the count of `hand_out`, once.
        drop(unsafe { Arc::from_raw(request.cast::<RequestObject>()) });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn calls_one_after_another_share_threads_and_calls_at_once_have_their_own() {
        let (tell, told) = mpsc::channel();
        let mut threads = HashSet::new();
        for _ in 0..500 {
            let tell = tell.clone();
            start(move || tell.send(thread::current().id()).unwrap()).unwrap();
            threads.insert(told.recv().unwrap());
        }
        // A thread waits again a moment after its call has ended, so now and then the next call finds none.
        assert!(threads.len() <= 20, "{} threads for 500 calls", threads.len());

        let gates: Vec<_> = (0..8)
            .map(|_| {
                let (open, opened) = mpsc::channel::<()>();
                let tell = tell.clone();
                let body = move || {
                    tell.send(thread::current().id()).unwrap();
                    opened.recv().unwrap_err();
                };
                start(body).unwrap();
                open
            })
            .collect();
        let at_once: HashSet<_> = gates.iter().map(|_| told.recv().unwrap()).collect();
        assert_eq!(at_once.len(), gates.len());
    }
}
