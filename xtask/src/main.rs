//! Development tasks; `cargo xtask --help` lists them.

mod bindings;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Development tasks of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Regenerate coreml-sys/src/bindings.rs from the C header (needs libclang).
    Bindings {
        /// Compare with the committed file instead of writing it.
        #[arg(long)]
        check: bool,
    },
}

/// The repository's root.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Bindings { check } => bindings::run(&root(), check),
    }
}
