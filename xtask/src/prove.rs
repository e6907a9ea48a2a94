//! `cargo xtask prove`: the eleven proofs of what the client promises, and the planted mistakes that each must catch.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::run::visible;

/// Each proof, as the test is called, with the mistake that it must catch, as `coreml-client` calls it.
const PROOFS: [(&str, &str); 11] = [
    ("worker_death", "panic-forgets-its-caller"),
    ("stuck_worker", "deadlines-at-dequeue-only"),
    ("cancel", "cancel-at-dequeue-only"),
    ("overload", "no-limits"),
    ("starvation", "never-the-oldest"),
    ("load_storm", "a-load-for-each"),
    ("swap", "swap-closes-the-old"),
    ("cache", "cache-without-budget"),
    ("shutdown", "drain-aborts"),
    ("overhead", "slow-hand-over"),
    ("soak", "counts-twice"),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which proof, for example `worker-death`; all if none.
    name: Option<String>,
    /// Show instead that each proof fails when its mistake is planted.
    #[arg(long)]
    mutants: bool,
    /// The short forms that `cargo test` runs, with generous bounds on time.
    #[arg(long)]
    short: bool,
    /// How long the soak runs, in seconds.
    #[arg(long, default_value_t = 600)]
    soak: u32,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { name, mutants, short, soak } = arguments;
    let wanted: Vec<_> = match name {
        None => PROOFS.to_vec(),
        Some(name) => {
            let test = name.replace('-', "_");
            let proof = PROOFS.iter().find(|(proof, _)| *proof == test);
            let names = PROOFS.map(|(proof, _)| proof.replace('_', "-")).join(", ");
            vec![*proof.with_context(|| format!("no proof is called {name}; there are {names}"))?]
        }
    };
    if *mutants {
        return plant(root, &wanted);
    }
    let mut failed = Vec::new();
    for (proof, _) in wanted {
        // With everything on: the bounds hold for who watches, too.
        let mut command = command(root, proof, &["--release", "--features", "metrics,tracing,monitor"]);
        command.env("COREML_SOAK_SECONDS", soak.to_string());
        if !short {
            command.env("COREML_PROOFS", "full");
        }
        if visible(&mut command).is_err() {
            failed.push(proof);
        }
    }
    ensure!(failed.is_empty(), "these do not hold: {}", failed.join(", "));
    Ok(())
}

/// A proof, alone in its process. Where there is `taskset`, the overhead is measured on one core, for both sides: where the
/// threads lie decides more than what they do.
fn command(root: &Path, proof: &str, options: &[&str]) -> Command {
    let pinned = proof == "overhead" && Command::new("taskset").arg("--version").output().is_ok();
    let mut command = if pinned {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0", env!("CARGO")]);
        command
    } else {
        Command::new(env!("CARGO"))
    };
    command.current_dir(root).args(["test", "--quiet", "--package", "coreml-client", "--test", "proofs"]);
    command.args(options).args(["--", "--exact", proof, "--nocapture"]);
    command
}

fn plant(root: &Path, wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let options = ["--features", "mutants"];
    for (proof, mutant) in wanted {
        // Without the mistake it must hold, else its failure would say nothing.
        let sound = command(root, proof, &options).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(sound.success(), "{proof} does not hold even without a mistake");
        let mut planted = command(root, proof, &options);
        planted.env("COREML_MUTANT", mutant);
        let status = planted.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        if status.success() {
            bail!("{proof} does not notice {mutant}");
        }
        println!("{proof}: notices {mutant}");
    }
    Ok(())
}

/// The queue's model has a target folder of its own: its flag would make Cargo build everything anew each time.
pub(crate) fn loom(root: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root).env("RUSTFLAGS", "--cfg coreml_loom").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    command.args(["test", "--package", "coreml-client", "--lib", "--target-dir", "target/loom"]);
    visible(command.args(["--", "queue::model"]))
}
