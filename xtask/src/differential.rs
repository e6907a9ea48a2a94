//! `cargo xtask differential`: Core ML against the portable engine, on every model there is.
//!
//! The comparison is `coreml_testing::differential`; it runs in an example of that crate, so that this one stays small.

use std::path::Path;
use std::process::Command;

use clap::Args;

use crate::run;

/// What is compared.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only models whose path contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Off Apple: the Objective-C shim on its work-alike in the place of Core ML (needs clang and GNUstep).
    #[arg(long)]
    workalike: bool,
}

/// Builds the comparison and runs it.
///
/// # Errors
///
/// If a model is answered differently, or there is no Core ML here.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let features = if arguments.workalike { "objc" } else { "portable" };
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root);
    cargo.args(["run", "--quiet", "--package", "coreml-testing", "--features", features]);
    cargo.args(["--example", "differential", "--"]);
    run::visible(cargo.args(arguments.only.as_deref()))
}
