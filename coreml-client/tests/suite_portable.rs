//! The client's suite for the portable engine on real models.
#![cfg(not(target_vendor = "apple"))]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

#[path = "suite/digits.rs"]
mod digits;
mod suite;

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coreml_client::Bridge;
use coreml_sys::{CmlBridge, CmlConfig, CmlError, CmlModel, CmlStatus, CmlStr};
use suite::{Subject, mount};

/// The engine's counters are the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());
static STUCK: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Held from `subject` to the end of the test.
    static TURN: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// The engine's, once it may.
unsafe extern "C" fn load_when_free(
    this: *mut c_void,
    path: CmlStr,
    config: *const CmlConfig,
    model: *mut *mut CmlModel,
    error: *mut *mut CmlError,
) -> CmlStatus {
    while STUCK.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
    let load = coreml_portable::bridge().model_load.expect("the engine loads models");
    // SAFETY: the arguments are the caller's, who keeps the rules of this slot.
    unsafe { load(this, path, config, model, error) }
}

/// The engine, but for loads that can be made to hang.
fn bridge() -> Bridge {
    static BRIDGE: OnceLock<Bridge> = OnceLock::new();
    *BRIDGE.get_or_init(|| {
        let table = CmlBridge { model_load: Some(load_when_free), ..*coreml_portable::bridge() };
        // SAFETY: the table lives for ever, and all its functions but one are the engine's, which keep the rules; so does that one.
        unsafe { Bridge::from_table(Box::leak(Box::new(table))) }.expect("the engine fills its table")
    })
}

fn subject() -> Subject {
    TURN.set(Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner)));
    STUCK.store(false, Ordering::Relaxed);
    digits::subject(
        bridge(),
        |stuck| STUCK.store(stuck, Ordering::Relaxed),
        || {
            // Threads that a shutdown did not wait for end in their own time.
            let deadline = Instant::now() + Duration::from_secs(30);
            while coreml_portable::live_objects().total() > 0 {
                assert!(Instant::now() < deadline, "{:?}", coreml_portable::live_objects());
                thread::sleep(Duration::from_millis(1));
            }
        },
    )
}

mount!(subject);
