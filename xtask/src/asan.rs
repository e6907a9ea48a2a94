//! `cargo xtask asan`: the tests of the unsafe crates under AddressSanitizer (needs a nightly compiler).

use std::path::Path;
use std::process::Command;

use crate::run::visible;

/// The crates with unsafe code, and the one that drives them hardest.
const PACKAGES: &[&str] = &["coreml-portable", "coreml-bridge", "coreml-client"];

/// Runs their tests, leaks included, in a target folder of their own.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(root).args(["+nightly", "test", "--target", "x86_64-unknown-linux-gnu", "--tests"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    // Compile-time proofs need the pinned compiler's words, and prove nothing about memory.
    command.args(["--", "--skip", "what_must_not_compile_does_not"]);
    command.args(["--skip", "the_compiler_refuses_what_would_be_unsound"]);
    command
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root.join("target/asan"))
        .env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1")
        .env("LSAN_OPTIONS", format!("suppressions={}", root.join("xtask/src/lsan.supp").display()))
        .env_remove("RUSTUP_TOOLCHAIN");
    visible(&mut command)
}
