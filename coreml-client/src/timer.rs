//! One thread that wakes up at given times: deadlines must fire even if every inference thread is stuck, and without
//! the timer of any executor.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use crate::error::panic_message;

/// What is done at its time, on the timer's thread: must be short and must not block.
pub(crate) type Action = Box<dyn FnOnce() + Send>;

/// Names an action that has been set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alarm {
    at: Instant,
    serial: u64,
}

/// An alarm that is cancelled when this is dropped.
pub(crate) struct Set(Alarm);

impl Drop for Set {
    fn drop(&mut self) {
        Timer::global().cancel(self.0);
    }
}

pub(crate) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    actions: BTreeMap<Alarm, Action>,
    serials: u64,
    thread_runs: bool,
}

impl Timer {
    /// The timer of the process. Its thread starts with the first alarm and sleeps while there is none.
    pub(crate) fn global() -> &'static Self {
        static TIMER: OnceLock<Timer> = OnceLock::new();
        TIMER.get_or_init(|| Self { state: Mutex::default(), changed: Condvar::new() })
    }

    /// Calls `action` at `at`, or at once if that has passed.
    ///
    /// # Errors
    /// When the thread cannot be started; the action is dropped.
    pub(crate) fn set(&'static self, at: Instant, action: Action) -> io::Result<Alarm> {
        let mut state = self.lock();
        if !state.thread_runs {
            thread::Builder::new().name("coreml-timer".into()).spawn(|| self.run())?;
            state.thread_runs = true;
        }
        state.serials += 1;
        let alarm = Alarm { at, serial: state.serials };
        let is_first = state.actions.keys().next().is_none_or(|first| alarm < *first);
        state.actions.insert(alarm, action);
        drop(state);
        if is_first {
            self.changed.notify_one();
        }
        Ok(alarm)
    }

    /// As [`set`](Self::set), until the result is dropped. `None`: without a thread for it there is no alarm.
    pub(crate) fn hold(at: Instant, action: impl FnOnce() + Send + 'static) -> Option<Set> {
        Self::global().set(at, Box::new(action)).ok().map(Set)
    }

    /// Forgets an alarm; nothing happens if it has gone off. Its action is dropped before this returns, unless it runs.
    pub(crate) fn cancel(&self, alarm: Alarm) {
        let action = self.lock().actions.remove(&alarm);
        drop(action);
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state = match state.actions.first_entry() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(first) if first.key().at > now => {
                    let pause = first.key().at - now;
                    self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(first) => {
                    let action = first.remove();
                    drop(state);
                    // Code of others may be at the end of it: wakers, destructors. The next deadline does not depend on them.
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(action)) {
                        panic_message(panic);
                    }
                    self.lock()
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Actions run outside the lock, so a poisoned one guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn actions_run_in_the_order_of_their_times_and_not_before() {
        let (sender, receiver) = mpsc::channel();
        let start = Instant::now();
        for millis in [30, 10, 20] {
            let sender = sender.clone();
            Timer::global()
                .set(
                    start + Duration::from_millis(millis),
                    Box::new(move || sender.send((millis, Instant::now())).unwrap()),
                )
                .unwrap();
        }
        for millis in [10, 20, 30] {
            let (which, when) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(which, millis);
            assert!(when >= start + Duration::from_millis(millis));
        }
    }

    #[test]
    fn an_action_that_panics_costs_no_other() {
        let (sender, receiver) = mpsc::channel();
        let now = Instant::now();
        Timer::global().set(now, Box::new(|| panic!("injected"))).unwrap();
        Timer::global()
            .set(now + Duration::from_millis(5), Box::new(move || sender.send(()).unwrap()))
            .unwrap();
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_cancelled_action_is_dropped_and_never_runs() {
        let token = Arc::new(());
        let held = Arc::clone(&token);
        let alarm = Timer::global()
            .set(
                Instant::now() + Duration::from_secs(3_600),
                Box::new(move || panic!("{}", Arc::strong_count(&held))),
            )
            .unwrap();
        assert_eq!(Arc::strong_count(&token), 2);
        Timer::global().cancel(alarm);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}
