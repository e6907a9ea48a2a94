//! The client's suite for the Objective-C shim on a work-alike of Core ML.
#![cfg(all(feature = "objc", not(target_vendor = "apple")))]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

#[path = "suite/digits.rs"]
mod digits;
mod suite;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coreml_client::Bridge;
use coreml_sys::workalike;
use suite::{Subject, mount};

/// The work-alike's modes and counters are the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());
static HOSTILE: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Held from `subject` to the end of the test.
    static TURN: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

fn subject_with(hostile: u32) -> Subject {
    TURN.set(Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner)));
    HOSTILE.store(hostile, Ordering::Relaxed);
    workalike::cml_workalike_set_late_release_ms(50);
    workalike::cml_workalike_set_hostile(hostile);
    // SAFETY: the engine's table is static, and every call names the same.
    unsafe { workalike::cml_workalike_set_delegate(coreml_portable::bridge()) };
    // SAFETY: the function takes nothing and may be called at any time.
    let table = unsafe { coreml_sys::cml_bridge_coreml() };
    // SAFETY: the shim's table is static and keeps the rules.
    let bridge = unsafe { Bridge::from_table(table) }.expect("the shim fills its table");
    digits::subject(
        bridge,
        |stuck| {
            let stuck = if stuck { workalike::CML_HOSTILE_STUCK_LOAD } else { 0 };
            workalike::cml_workalike_set_hostile(HOSTILE.load(Ordering::Relaxed) | stuck);
        },
        || {
            let alive = || (workalike::cml_workalike_live_objects(), workalike::cml_test_live_handles());
            let deadline = Instant::now() + Duration::from_secs(30);
            while alive() != (0, 0) {
                assert!(Instant::now() < deadline, "(objects, handles) = {:?} are left", alive());
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(workalike::cml_workalike_faults(), 0);
        },
    )
}

mod well_behaved {
    use super::*;

    fn subject() -> Subject {
        subject_with(0)
    }

    mount!(subject);
}

mod difficult {
    use super::*;

    fn subject() -> Subject {
        subject_with(
            workalike::CML_HOSTILE_PADDED
                | workalike::CML_HOSTILE_LATE_RELEASE
                | workalike::CML_HOSTILE_IGNORE_BACKINGS,
        )
    }

    mount!(subject);
}
