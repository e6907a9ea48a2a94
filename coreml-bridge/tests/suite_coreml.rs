//! The suite of all bridges, for Apple's Core ML on a real model: only a Mac runs it.
#![cfg(target_vendor = "apple")]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

#[path = "suite/digits.rs"]
mod digits;
mod suite;

use coreml_bridge::Bridge;
use suite::{Subject, mount};

fn subject() -> Subject {
    // Core ML may compute in float16. It counts nothing for us; leaks are shown on the work-alike.
    digits::subject(Bridge::coreml(), 1e-2, || ())
}

mount!(subject);
