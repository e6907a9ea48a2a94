//! What the compiler must refuse: the confinement of models to their threads, and of states to one prediction.
//!
//! After a change of the compiler's wording: `TRYBUILD=overwrite cargo test -p coreml-bridge --test compile_fail`, and the same for
//! the client's `compile`; the compiler's version goes to `wording/mod.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod wording;

#[test]
fn the_compiler_refuses_what_would_be_unsound() {
    wording::refused("compile-fail");
}
