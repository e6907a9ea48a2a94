//! The suite of all bridges, for the portable engine on a real model.
#![cfg(not(target_vendor = "apple"))]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod suite;

use std::{
    cell::RefCell,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use coreml_bridge::{Bridge, Tensor};
use suite::{Subject, mount};

fn digits(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(file)
}

/// The first numbers of a `.npy` file of little-endian float32.
fn numbers(file: &str, count: usize) -> Vec<f32> {
    let bytes = std::fs::read(digits(file)).expect("the model's data is committed");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (numbers, _) = bytes[10 + header..].as_chunks::<4>();
    numbers.iter().take(count).map(|&number| f32::from_le_bytes(number)).collect()
}

/// The engine's counters are the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    /// Held from `subject` to the end of the test.
    static TURN: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

fn subject() -> Subject {
    TURN.set(Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner)));
    Subject {
        bridge: Bridge::portable(),
        path: digits("digits-f32.mlpackage").to_str().expect("the repository's path is UTF-8").to_owned(),
        input: "image",
        output: "probabilities",
        given: Tensor::from_vec(&[1, 1, 8, 8], numbers("test_images.npy", 64)).unwrap(),
        expected: Tensor::from_vec(&[1, 10], numbers("reference_probabilities.npy", 10)).unwrap(),
        tolerance: 1e-3,
        assert_clean: || {
            let live = coreml_portable::live_objects();
            assert_eq!(live.total(), 0, "{live:?}");
            TURN.take();
        },
    }
}

mount!(subject);
