//! Planted mistakes: `cargo xtask prove --mutants` shows that each proof fails on one. Without the feature `mutants`, which
//! is for that alone, there are none.

/// Whether the named mistake is to be made.
macro_rules! mutant {
    ($name:literal) => {{
        #[cfg(feature = "mutants")]
        let made = $crate::mutants::is($name);
        #[cfg(not(feature = "mutants"))]
        let made = false;
        made
    }};
}
pub(crate) use mutant;

#[cfg(feature = "mutants")]
pub(crate) fn is(name: &str) -> bool {
    use std::sync::OnceLock;

    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("COREML_MUTANT").ok()).as_deref() == Some(name)
}
