//! `cargo xtask fuzz`: runs the fuzz targets (needs a nightly compiler and `cargo-fuzz`).

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value as Json;

use crate::run::visible;

const TARGETS: &[&str] = &["manifest", "weights", "compiled", "model"];

/// Runs one target, or all, for that many seconds each.
pub(crate) fn run(root: &Path, target: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    let targets: Vec<&str> = match target {
        Some(target) => {
            anyhow::ensure!(TARGETS.contains(&target), "no fuzz target `{target}`; there are {TARGETS:?}");
            vec![target]
        }
        None => TARGETS.to_vec(),
    };
    for target in targets {
        let corpus = format!("fuzz/corpus/{target}");
        fs::create_dir_all(root.join(&corpus))?;
        let time = format!("-max_total_time={seconds}");
        let seeds = format!("fuzz/seeds/{target}");
        let mut command = Command::new("cargo");
        command.current_dir(root).args(["+nightly", "fuzz", "run", target, &corpus, &seeds]);
        if target == "model" {
            recorded_specifications(root, &root.join(&corpus))?;
            command.args(["coreml-engine/tests/fixtures/nn", "coreml-engine/tests/fixtures/estimators"]);
        }
        command.args(["--", &time]);
        // A hang is a finding, and so is memory that no file of this size justifies.
        command.args(["-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=512", "-print_final_stats=1"]);
        // Another toolchain's cargo may have set these for the program that runs this.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTFLAGS");
        visible(&mut command)?;
    }
    Ok(())
}

/// Puts the specifications of the recorded conformance cases among the inputs, so that mutations start from every op.
fn recorded_specifications(root: &Path, corpus: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(root.join("conformance/corpus"))? {
        let path = entry?.path();
        let name = path.file_stem().context("a file of cases has a name")?.to_string_lossy().into_owned();
        for (i, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let case: Json = serde_json::from_str(line).with_context(|| format!("{name}, line {}", i + 1))?;
            let specification =
                BASE64_STANDARD.decode(case["spec"].as_str().context("a case has a spec")?)?;
            fs::write(corpus.join(format!("{name}-{i}")), specification)?;
        }
    }
    Ok(())
}
