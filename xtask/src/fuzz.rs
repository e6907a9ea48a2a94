//! `cargo xtask fuzz`: runs the fuzz targets (needs a nightly compiler and `cargo-fuzz`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value as Json;

use crate::run::visible;

const TARGETS: &[&str] = &["manifest", "weights", "compiled", "model"];

/// Runs one target, or all, for that many seconds each; `keep` adds what was found to what is committed.
pub(crate) fn run(root: &Path, target: Option<&str>, seconds: u32, keep: bool) -> anyhow::Result<()> {
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
        let seeds = seeds(root, target)?;
        for (i, input) in seeds.iter().chain(&found(root, target)?).enumerate() {
            fs::write(root.join(&corpus).join(format!("seed-{i}")), input)?;
        }
        let time = format!("-max_total_time={seconds}");
        let mut command = cargo_fuzz(root, "run", target);
        command.args([&corpus, "--", &time]);
        // A hang is a finding, and so is memory that no file of this size justifies.
        command.args(["-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=512", "-print_final_stats=1"]);
        visible(&mut command)?;
        if keep {
            // The fewest inputs that reach all branches that these reach, however often.
            visible(cargo_fuzz(root, "cmin", target).args([&corpus, "--", "-use_counters=0"]))?;
            let kept = files(&root.join(&corpus))?;
            let lines: BTreeSet<String> =
                kept.difference(&seeds).map(|input| BASE64_STANDARD.encode(input) + "\n").collect();
            fs::write(found_in(root, target), lines.into_iter().collect::<String>())?;
        }
    }
    Ok(())
}

fn cargo_fuzz(root: &Path, verb: &str, target: &str) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root).args(["+nightly", "fuzz", verb, target]);
    // Another toolchain's cargo may have set these for the program that runs this.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTFLAGS");
    command
}

/// Where the inputs are that earlier runs found and kept, one a line, in base64.
fn found_in(root: &Path, target: &str) -> PathBuf {
    root.join("fuzz/seeds").join(target).with_extension("base64")
}

fn found(root: &Path, target: &str) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    let path = found_in(root, target);
    let lines = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
    lines
        .lines()
        .map(|line| BASE64_STANDARD.decode(line).with_context(|| path.display().to_string()))
        .collect()
}

/// What else is committed for a target to start from.
fn seeds(root: &Path, target: &str) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    let mut seeds = files(&root.join("fuzz/seeds").join(target))?;
    if target == "model" {
        seeds.extend(files(&root.join("coreml-engine/tests/fixtures/nn"))?);
        seeds.extend(files(&root.join("coreml-engine/tests/fixtures/estimators"))?);
        seeds.extend(recorded_specifications(root)?);
    }
    Ok(seeds)
}

fn files(folder: &Path) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    let mut contents = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_file() {
            contents.insert(fs::read(&path)?);
        }
    }
    Ok(contents)
}

/// The specifications of the recorded conformance cases, so that mutations start from every op.
fn recorded_specifications(root: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut specifications = Vec::new();
    for entry in fs::read_dir(root.join("conformance/corpus"))? {
        let path = entry?.path();
        for (i, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let what = || format!("{}, line {}", path.display(), i + 1);
            let case: Json = serde_json::from_str(line).with_context(what)?;
            let specification = case["spec"].as_str().with_context(what)?;
            specifications.push(BASE64_STANDARD.decode(specification).with_context(what)?);
        }
    }
    Ok(specifications)
}
