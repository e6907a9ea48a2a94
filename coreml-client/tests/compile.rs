//! What the compiler must refuse. What it must accept is in `everything_that_travels_may_travel`.

#[test]
fn what_must_not_compile_does_not() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
