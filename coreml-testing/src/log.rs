//! Who is told what no status says.

use std::{
    cell::Cell,
    ffi::c_void,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use coreml_sys::{CmlLogLevel, CmlStr};

/// A function, and what it wants back.
#[derive(Clone, Copy)]
pub(crate) struct Listener {
    pub(crate) log: unsafe extern "C" fn(*mut c_void, CmlLogLevel, CmlStr),
    pub(crate) context: *mut c_void,
}

// SAFETY: the table lets the function be called on any thread, with its context.
unsafe impl Send for Listener {}

#[derive(Default)]
struct State {
    listener: Option<Listener>,
    running: usize,
    changing: bool,
}

/// The log of one fake.
#[derive(Default)]
pub(crate) struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

thread_local! {
    /// Whether this thread is inside a listener.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, until: fn(&State) -> bool) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_while(state, |state| !until(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the listener, if there is one, and this thread is not inside one.
    pub(crate) fn tell(&self, level: CmlLogLevel, message: &str) {
        if INSIDE.get() {
            return;
        }
        let listener = {
            let mut state = self.lock();
            let Some(listener) = state.listener else { return };
            state.running += 1;
            listener
        };
        INSIDE.set(true);
        // SAFETY: function and context belong together until `replace` returns, which waits for this call; the message lives
        // for the call.
        unsafe { (listener.log)(listener.context, level, message.into()) };
        INSIDE.set(false);
        self.lock().running -= 1;
        self.changed.notify_all();
    }

    /// Lets go of the listener, and takes another; false from within one, which would wait for itself.
    pub(crate) fn replace(&self, listener: Option<Listener>) -> bool {
        if INSIDE.get() {
            return false;
        }
        let mut state = self.wait(self.lock(), |state| !state.changing);
        state.changing = true;
        state.listener = None;
        state = self.wait(state, |state| state.running == 0);
        state.listener = listener;
        state.changing = false;
        self.changed.notify_all();
        true
    }
}
