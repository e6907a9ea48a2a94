//! `cargo xtask layers`: the arrows between the crates point down, and the lower layers know nothing of the upper ones.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::run::output;

/// What each crate may not depend on, even indirectly. `ARCHITECTURE.md` draws the arrows; this proves them.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("coreml-sys", &["coreml-engine", "coreml-portable", "coreml-bridge", "coreml-client", "tokio"]),
    ("coreml-engine", &["coreml-sys", "coreml-portable", "coreml-bridge", "coreml-client", "tokio"]),
    ("coreml-portable", &["coreml-bridge", "coreml-client", "tokio"]),
    ("coreml-capi", &["coreml-bridge", "coreml-client", "tokio"]),
    ("coreml-bridge", &["coreml-client", "tokio", "crossbeam-channel"]),
    ("coreml-client", &["clap", "image", "coreml-cli", "coreml-text", "coreml-judge"]),
    ("coreml-text", &["coreml-judge", "coreml-cli"]),
    ("coreml-judge", &["coreml-cli"]),
    ("coreml-cli", &["coreml-text", "coreml-judge"]),
];

/// What each crate must have, so that a misspelt name above cannot pass.
const REQUIRED: &[(&str, &[&str])] = &[
    ("coreml-engine", &["coreml-proto", "rten-gemm"]),
    ("coreml-portable", &["coreml-sys", "coreml-engine"]),
    ("coreml-capi", &["coreml-portable"]),
    ("coreml-bridge", &["coreml-sys", "coreml-portable"]),
    ("coreml-client", &["coreml-bridge", "crossbeam-channel", "tokio"]),
    ("coreml-text", &["coreml-client", "tokenizers"]),
    ("coreml-judge", &["coreml-text", "coreml-client"]),
];

/// Asks `cargo tree` and compares.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    for (name, forbidden) in FORBIDDEN {
        let found = dependencies(root, name)?;
        for other in *forbidden {
            ensure!(!found.contains(&(*other).to_owned()), "{name} depends on {other}: an arrow points up");
        }
    }
    for (name, required) in REQUIRED {
        let found = dependencies(root, name)?;
        for other in *required {
            ensure!(found.contains(&(*other).to_owned()), "{name} does not depend on {other}");
        }
    }
    println!("layers: every arrow points down");
    Ok(())
}

fn dependencies(root: &Path, name: &str) -> anyhow::Result<Vec<String>> {
    // With every feature and for every system: an arrow that only one of them draws points up all the same.
    let arguments = [
        "tree",
        "--all-features",
        "--target",
        "all",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--package",
        name,
    ];
    let text = output(root, env!("CARGO"), &arguments)?;
    let mut names: Vec<String> =
        text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    let first = names.first().context("cargo tree printed nothing")?;
    ensure!(first == name, "cargo tree printed {first} for {name}");
    names.remove(0);
    Ok(names)
}
