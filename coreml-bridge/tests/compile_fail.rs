//! What the compiler must refuse: the confinement of models to their threads, and of states to one prediction.
//!
//! After a change of the compiler's wording: `TRYBUILD=overwrite cargo test -p coreml-bridge --test compile_fail`.

#[test]
fn the_compiler_refuses_what_would_be_unsound() {
    trybuild::TestCases::new().compile_fail("tests/compile-fail/*.rs");
}
