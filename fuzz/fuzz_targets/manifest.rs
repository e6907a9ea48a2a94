//! A package's manifest never panics, and never names a path outside the package.
#![no_main]

use std::path::Component;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(path) = coreml_engine::package::root_model(data) {
        assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{}", path.display());
    }
});
