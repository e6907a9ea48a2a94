//! `cargo xtask prove`: the eleven proofs of what the client promises, and the planted mistakes that each must catch.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::run::{cargo, has_taskset, visible};

/// Each proof, as the test is called, with the mistakes that it must catch, as `coreml-client` calls them.
const PROOFS: [Proof; 11] = [
    ("worker_death", &["panic-forgets-its-caller"]),
    ("stuck_worker", &["deadlines-at-dequeue-only"]),
    ("cancel", &["cancel-at-dequeue-only"]),
    ("overload", &["no-limits"]),
    ("starvation", &["never-the-oldest"]),
    ("load_storm", &["a-load-for-each"]),
    ("swap", &["swap-closes-the-old"]),
    ("cache", &["cache-without-budget"]),
    ("shutdown", &["drain-aborts", CLOSE_OUTSIDE]),
    ("overhead", &["slow-hand-over"]),
    ("soak", &["counts-twice"]),
];

/// The mistake that loom must catch as well.
const CLOSE_OUTSIDE: &str = "close-outside-the-lock";

/// The test, and its mistakes.
type Proof = (&'static str, &'static [&'static str]);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which proof, for example `worker-death`; all if none.
    name: Option<String>,
    /// Show instead that each proof, and loom, fails when its mistake is planted.
    #[arg(long)]
    mutants: bool,
    /// What takes a night: all proofs at full length, loom, and then the planted mistakes; one that fails stops no other.
    #[arg(long, conflicts_with_all = ["name", "mutants", "short"])]
    nightly: bool,
    /// The short forms that `cargo test` runs, with generous bounds on time.
    #[arg(long)]
    short: bool,
    /// How long the soak runs, in seconds.
    #[arg(long, default_value_t = 600)]
    soak: u32,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { name, mutants, nightly, short, soak } = arguments;
    if *nightly {
        let steps = [
            ("proofs", prove(root, &PROOFS, false, *soak)),
            ("loom", loom(root)),
            ("mutants", plant(root, &PROOFS, true)),
        ];
        let failed: Vec<_> = steps
            .iter()
            .filter_map(|(step, result)| Some(format!("{step}: {:#}", result.as_ref().err()?)))
            .collect();
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        return Ok(());
    }
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
        return plant(root, &wanted, name.is_none());
    }
    prove(root, &wanted, *short, *soak)
}

fn prove(root: &Path, wanted: &[Proof], short: bool, soak: u32) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for (proof, _) in wanted {
        // With everything on: the bounds hold for who watches, too.
        let mut command = command(root, proof, &["--release", "--features", "metrics,tracing,monitor"]);
        command.env("COREML_SOAK_SECONDS", soak.to_string());
        if !short {
            command.env("COREML_PROOFS", "full");
        }
        let verdict = Verdict::of(command.stderr(Stdio::inherit()))?;
        print!("{}", verdict.told);
        // One that did not run proves nothing.
        if !verdict.holds {
            failed.push(*proof);
        }
    }
    ensure!(failed.is_empty(), "these do not hold: {}", failed.join(", "));
    Ok(())
}

/// What a run of one test says.
struct Verdict {
    told: String,
    /// And on its other channel, if that is not for whoever watches.
    panics: String,
    /// It ran and passed.
    holds: bool,
    /// It ran and failed at an assertion of its own: not at a compiler's error, nor as a process that died.
    refuted: bool,
}

impl Verdict {
    fn of(command: &mut Command) -> anyhow::Result<Self> {
        let output = command.stdout(Stdio::piped()).spawn().and_then(|child| child.wait_with_output());
        let output = output.with_context(|| format!("{command:?} does not start"))?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let panics = String::from_utf8_lossy(&output.stderr).into_owned();
        let ended = |how: &str| told.lines().any(|line| line.starts_with(how));
        let asserted = |source: &str| told.contains(source) || panics.contains(source);
        Ok(Self {
            holds: output.status.success() && ended("test result: ok. 1 passed; 0 failed"),
            refuted: !output.status.success()
                && ended("test result: FAILED. 0 passed; 1 failed")
                && (asserted("coreml-client/tests/proofs.rs:")
                    || asserted("coreml-client/src/queue/model.rs:")),
            told,
            panics,
        })
    }
}

/// A proof, alone in its process. Where there is `taskset`, the overhead is measured on one core, for both sides: where the
/// threads lie decides more than what they do.
fn command(root: &Path, proof: &str, options: &[&str]) -> Command {
    let pinned = proof == "overhead" && has_taskset();
    let mut command = cargo(root, pinned);
    command.args(["test", "--quiet", "--package", "coreml-client", "--test", "proofs"]);
    command.args(options).args(["--", "--exact", proof, "--nocapture"]);
    command
}

fn plant(root: &Path, wanted: &[Proof], with_loom: bool) -> anyhow::Result<()> {
    let options = ["--features", "mutants"];
    let mut plants: Vec<(&str, &[&str], Command)> =
        wanted.iter().map(|(proof, mutants)| (*proof, *mutants, command(root, proof, &options))).collect();
    if with_loom {
        let model = "queue::model::a_worker_that_closes_its_queue_and_dies_forgets_nobody";
        let mut command = loom_command(root);
        command.args(["--quiet", "--features", "mutants", "--", "--exact", model]);
        plants.push(("loom", &[CLOSE_OUTSIDE], command));
    }
    for (proof, mutants, mut command) in plants {
        command.stderr(Stdio::piped());
        // Without the mistake it must hold, else its failure would say nothing.
        let sound = Verdict::of(&mut command)?;
        ensure!(sound.holds, "{proof} does not hold even without a mistake:\n{}{}", sound.told, sound.panics);
        for mutant in mutants {
            let verdict = Verdict::of(command.env("COREML_MUTANT", mutant))?;
            ensure!(!verdict.holds, "{proof} does not notice {mutant}");
            ensure!(
                verdict.refuted,
                "{proof} fails with {mutant}, but at no assertion of its own:\n{}{}",
                verdict.told,
                verdict.panics
            );
            println!("{proof}: notices {mutant}");
        }
    }
    Ok(())
}

/// The queue's model has a target folder of its own: its flag would make Cargo build everything anew each time.
fn loom_command(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root).env("RUSTFLAGS", "--cfg coreml_loom").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    command.args(["test", "--package", "coreml-client", "--lib", "--target-dir", "target/loom"]);
    command
}

pub(crate) fn loom(root: &Path) -> anyhow::Result<()> {
    visible(loom_command(root).args(["--", "queue::model"]))
}
