//! `cargo xtask python`: the tests of the Python package.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::models;
use crate::run::{target, visible};

/// The file name of the shared library.
pub(crate) const LIBRARY: &str =
    if cfg!(target_os = "macos") { "libcoreml_portable_c.dylib" } else { "libcoreml_portable_c.so" };

/// Runs them, in the environment of the models unless another is `chosen`.
pub(crate) fn run(root: &Path, chosen: Option<&Path>) -> anyhow::Result<()> {
    let python = match chosen {
        Some(environment) => environment.join("bin/python"),
        None => models::python(root)?,
    };
    visible(
        Command::new(python)
            .current_dir(root)
            .env("COREML_PORTABLE_LIBRARY", library(root)?)
            .env("PYTHONPATH", root.join("python/src"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "python/tests"]),
    )
}

/// The shared library as the tests of the workspace have it, so that after `cargo test --workspace` nothing is left to build.
fn library(root: &Path) -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).args(["test", "--quiet", "--workspace", "--test", "c_example", "--no-run"]);
    visible(&mut cargo)?;
    Ok(target(root).join("debug/deps").join(LIBRARY))
}
