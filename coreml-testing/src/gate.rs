//! A gate that calls wait at, so that tests need no sleeping.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A gate in front of a slot. Open at first; while it is closed, calls block at it until it opens.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    waiting: usize,
    /// How many calls may pass although the gate is closed.
    tickets: usize,
}

impl Gate {
    /// From now on calls block.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Lets all pass that wait, and all that come.
    pub fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    /// Lets one call pass a closed gate.
    pub fn pass_one(&self) {
        self.lock().tickets += 1;
        self.changed.notify_all();
    }

    /// How many calls wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Waits until this many calls wait at the gate.
    ///
    /// # Panics
    /// If that has not happened after 30 seconds.
    pub fn await_waiting(&self, calls: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut state = self.lock();
        while state.waiting < calls {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} calls wait at the gate, not {calls}", state.waiting);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits while the gate is closed.
    pub(crate) fn enter(&self) {
        let mut state = self.lock();
        if !state.closed {
            return;
        }
        state.waiting += 1;
        self.changed.notify_all();
        while state.closed && state.tickets == 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.tickets = state.tickets.saturating_sub(1);
        state.waiting -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
