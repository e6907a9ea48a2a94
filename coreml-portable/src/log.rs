//! `log_set`: who is told what no status says.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use coreml_sys::{CML_BUSY, CmlError, CmlLogFn, CmlLogLevel, CmlStatus, CmlStr};

use crate::error::{Failure, slot};

/// A function that is set, with its context.
#[derive(Clone, Copy)]
struct Listener {
    log: unsafe extern "C" fn(*mut c_void, CmlLogLevel, CmlStr),
    context: *mut c_void,
}

// SAFETY: the table's contract lets the function be called on any thread, with its context.
unsafe impl Send for Listener {}

struct State {
    listener: Option<Listener>,
    /// Calls that are under way.
    running: usize,
    changing: bool,
}

/// Not held while a listener runs: it may wait for other threads, which log too.
static STATE: Mutex<State> = Mutex::new(State { listener: None, running: 0, changing: false });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    /// Whether this thread is inside a listener.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells whoever listens; the message is made only if somebody does.
pub(crate) fn log(level: CmlLogLevel, message: impl FnOnce() -> String) {
    if INSIDE.get() {
        return;
    }
    let listener = {
        let mut state = lock();
        let Some(listener) = state.listener else { return };
        state.running += 1;
        listener
    };
    let message = message();
    INSIDE.set(true);
    // SAFETY: function and context belong together, and `log_set` does not return before the call is counted off; the message
    // is borrowed for the call. It does not unwind, by the table's contract.
    unsafe { (listener.log)(listener.context, level, CmlStr::from(message.as_str())) };
    INSIDE.set(false);
    lock().running -= 1;
    CHANGED.notify_all();
}

pub(crate) unsafe extern "C" fn log_set(
    _self: *mut c_void,
    log: CmlLogFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        if INSIDE.get() {
            return Err(Failure::new(CML_BUSY, "the log would wait for itself"));
        }
        let wait = |state, until: fn(&mut State) -> bool| {
            CHANGED.wait_while(state, |state| !until(state)).unwrap_or_else(PoisonError::into_inner)
        };
        let mut state = wait(lock(), |state| !state.changing);
        state.changing = true;
        // Nobody begins any more, so that this ends.
        state.listener = None;
        state = wait(state, |state| state.running == 0);
        state.listener = log.map(|log| Listener { log, context });
        state.changing = false;
        CHANGED.notify_all();
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}
