//! What the compiler must refuse. What it must accept is in `everything_that_travels_may_travel`.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "../../coreml-bridge/tests/wording/mod.rs"]
mod wording;

#[test]
fn what_must_not_compile_does_not() {
    wording::refused("compile_fail");
}
