//! `cargo xtask bench`: runs the benches and prints ratios, each within one run and against a named reference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::models;
use crate::run::{cargo, has_taskset, output, target, visible};

/// What is to be run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Short runs: enough to see that everything works, and for coarse ratios.
    #[arg(long)]
    quick: bool,
    /// Also time the engine against ONNX Runtime on generated models (brings Python packages; takes minutes).
    #[arg(long, value_name = "ENGINE", value_parser = ["onnxruntime"])]
    against: Option<String>,
    /// Models for --against, separated by commas.
    #[arg(long, default_value = "minilm,resnet50,mobilenetv2")]
    models: String,
    /// Threads for --against.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

/// One line of the table.
#[derive(Deserialize, Serialize)]
struct Row {
    name: String,
    nanoseconds: f64,
    reference: Option<String>,
    ratio: Option<f64>,
}

/// Most that a ratio may be; what is over it fails the run. Through the client N threads do at least 0.99 of what they do by
/// direct calls. Attention to 512 tokens is part of a token's time, and texts that share a thread cost little more than texts in turn.
const BOUNDS: &[(&str, f64)] = &[
    ("round trip/client", 1.3),
    ("throughput of 1 ms/client/1", 1.0 / 0.99),
    ("throughput of 1 ms/client/2", 1.0 / 0.99),
    ("streaming/until the last piece", 1.05),
    ("a token/after 512", 1.25),
    ("four texts/at once", 1.1),
];

/// The same, of benches that run where `cargo xtask models` has brought the sentence encoder.
const BOUNDS_OF_MINILM: &[(&str, f64)] =
    &[("throughput of MiniLM/client/1", 1.0 / 0.99), ("throughput of MiniLM/client/2", 1.0 / 0.99)];

/// Most that MiniLM may take, against ONNX Runtime.
const BOUND_AGAINST_ONNXRUNTIME: f64 = 1.5;

/// The bounds of the benches that were asked for.
fn bounds(root: &Path, arguments: &Arguments) -> Vec<(String, f64)> {
    let mut bounds = BOUNDS.to_vec();
    if root.join("models/cache/minilm/minilm-f32.mlpackage").exists() {
        bounds.extend(BOUNDS_OF_MINILM);
    }
    let mut bounds: Vec<_> = bounds.into_iter().map(|(name, bound)| (name.to_owned(), bound)).collect();
    if arguments.against.is_some() && arguments.models.split(',').any(|model| model == "minilm") {
        bounds.push((format!("engine/minilm, {} threads", arguments.threads), BOUND_AGAINST_ONNXRUNTIME));
    }
    bounds
}

/// Where the benches leave their figures.
fn figures(root: &Path) -> PathBuf {
    target(root).join("criterion")
}

/// Runs the benches.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    // Where two threads are placed decides a round trip more than anything else (one core: microseconds, two: ten times that),
    // so both sides of that comparison are held on one core. The others have the machine to themselves.
    let on_one_core = has_taskset();
    if !on_one_core {
        println!("no `taskset` here: the round trip is not held on one core, and its ratio says less");
    }
    let began = SystemTime::now();
    visible(bench(root, &[], false).arg("--no-run"))?;
    for mut command in [bench(root, &["client"], on_one_core), bench(root, &["registry", "engine"], false)] {
        command.arg("--");
        if arguments.quick {
            command.args(["--warm-up-time", "0.5", "--measurement-time", "2", "--sample-size", "20"]);
        }
        command.stdout(std::process::Stdio::null());
        visible(&mut command)?;
    }
    let mut rows = criterion(&figures(root), began)?;
    rows.extend(in_turn(root, arguments.quick)?);
    if arguments.against.is_some() {
        rows.extend(against_onnxruntime(root, arguments)?);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
        println!("\nplots: {}", figures(root).join("report/index.html").display());
    }
    for (name, bound) in bounds(root, arguments) {
        let row = rows.iter().find(|row| row.name == name).with_context(|| format!("no bench `{name}`"))?;
        let ratio = row.ratio.with_context(|| format!("`{name}` has no reference"))?;
        ensure!(ratio <= bound, "{name} is {ratio:.2} times its reference, more than {bound}");
    }
    Ok(())
}

/// `cargo bench` with these benches, or with all if none is named.
fn bench(root: &Path, names: &[&str], on_one_core: bool) -> Command {
    let mut command = cargo(root, on_one_core);
    command.args(["bench", "--quiet", "--package", "benches"]);
    command.args(names.iter().flat_map(|name| ["--bench", name]));
    command
}

/// What is timed in turn, and not by criterion.
fn in_turn(root: &Path, quick: bool) -> anyhow::Result<Vec<Row>> {
    let mut command = bench(root, &["in_turn"], false);
    command.args(["--", "--json"]).args(quick.then_some("--quick")).stderr(std::process::Stdio::inherit());
    let output = command.output().context("cargo does not start")?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What the other benches of a group of criterion's are compared with, by its name.
const REFERENCE: &str = "bare";

/// Medians that criterion left since `began`, each with the reference of its group that has the same parameter. A ratio is of one run,
/// so what an earlier one left is not looked at.
fn criterion(figures: &Path, began: SystemTime) -> anyhow::Result<Vec<Row>> {
    let mut medians: BTreeMap<String, f64> = BTreeMap::new();
    let mut folders = vec![figures.to_owned()];
    while let Some(folder) = folders.pop() {
        let estimates = folder.join("new/estimates.json");
        let written = std::fs::metadata(&estimates).and_then(|metadata| metadata.modified());
        if written.is_ok_and(|written| written >= began) {
            let json: Json = serde_json::from_slice(&std::fs::read(&estimates)?)?;
            let about: Json = serde_json::from_slice(&std::fs::read(folder.join("new/benchmark.json"))?)?;
            let name = about["title"].as_str().context("criterion names its benches")?.to_owned();
            medians.insert(name, json["median"]["point_estimate"].as_f64().context("a median")?);
        }
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() && path.file_name() != Some("report".as_ref()) {
                folders.push(path);
            }
        }
    }
    Ok(medians
        .iter()
        .map(|(name, &nanoseconds)| {
            let reference = reference(name, &medians);
            let ratio = reference.as_ref().and_then(|r| medians.get(r)).map(|r| nanoseconds / r);
            Row { name: name.clone(), nanoseconds, reference, ratio }
        })
        .collect())
}

fn reference(name: &str, medians: &BTreeMap<String, f64>) -> Option<String> {
    let parts: Vec<&str> = name.split('/').collect();
    let (group, rest) = parts.split_first()?;
    let mut candidate = vec![*group, REFERENCE];
    candidate.extend(rest.iter().skip(1));
    let candidate = candidate.join("/");
    (candidate != name && medians.contains_key(&candidate)).then_some(candidate)
}

/// The engine and ONNX Runtime take turns, and the least of each counts: what other programs take away is noise, and noise only adds.
fn against_onnxruntime(root: &Path, arguments: &Arguments) -> anyhow::Result<Vec<Row>> {
    const TURNS: usize = 4;
    let python = models::python(root)?;
    let python = python.to_str().context("the repository's path is not UTF-8")?;
    let folder = root.join("models/cache/bench");
    let folder = folder.to_str().context("the repository's path is not UTF-8")?;
    let missing: Vec<&str> = arguments
        .models
        .split(',')
        .filter(|name| !Path::new(folder).join(format!("{name}-f32.mlpackage/Manifest.json")).exists())
        .collect();
    if !missing.is_empty() {
        let list = missing.join(",");
        output(root, python, &["models/bench.py", "--out", folder, "--models", &list, "--kinds", "f32"])?;
    }
    let threads = arguments.threads.to_string();
    let rounds = if arguments.quick { "5" } else { "15" };
    let mut engine_arguments =
        vec!["run", "--release", "--quiet", "--package", "coreml-engine", "--example", "time", "--"];
    engine_arguments.extend([folder, "--threads", &threads, "--rounds", rounds]);
    engine_arguments.extend(arguments.models.split(','));
    let script = "models/bench_onnxruntime.py";
    let theirs =
        [script, folder, "--models", &arguments.models, "--threads", &threads, "--rounds", rounds, "--json"];
    let mut least: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for _ in 0..TURNS {
        let ours: Json = serde_json::from_str(&output(root, env!("CARGO"), &engine_arguments)?)?;
        let theirs: Json = serde_json::from_str(&output(root, python, &theirs)?)?;
        for name in arguments.models.split(',') {
            let read =
                |json: &Json| json[name]["min_ms"].as_f64().with_context(|| format!("no time for {name}"));
            let entry = least.entry(name.to_owned()).or_insert((f64::INFINITY, f64::INFINITY));
            *entry = (entry.0.min(read(&ours)?), entry.1.min(read(&theirs)?));
        }
    }
    Ok(least
        .into_iter()
        .flat_map(|(name, (ours, theirs))| {
            let reference = format!("onnxruntime/{name}, {threads} threads");
            [
                Row {
                    name: format!("engine/{name}, {threads} threads"),
                    nanoseconds: ours * 1e6,
                    reference: Some(reference.clone()),
                    ratio: Some(ours / theirs),
                },
                Row { name: reference, nanoseconds: theirs * 1e6, reference: None, ratio: None },
            ]
        })
        .collect())
}

fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    println!("{:<width$}  {:>12}  {:>6}  against", "bench", "median", "ratio");
    for row in rows {
        let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let reference = row.reference.as_deref().unwrap_or_default();
        println!("{:<width$}  {:>12}  {ratio:>6}  {reference}", row.name, readable(row.nanoseconds));
    }
}

fn readable(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n < 1e3 => format!("{n:.1} ns"),
        n if n < 1e6 => format!("{:.2} us", n / 1e3),
        n => format!("{:.2} ms", n / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_an_earlier_run_do_not_count() {
        let folder = std::env::temp_dir().join(format!("coreml-bench-{}", std::process::id()));
        let new = folder.join("group/bare/new");
        std::fs::create_dir_all(&new).unwrap();
        std::fs::write(new.join("estimates.json"), r#"{"median": {"point_estimate": 2.0}}"#).unwrap();
        std::fs::write(new.join("benchmark.json"), r#"{"title": "group/bare"}"#).unwrap();
        let minute = std::time::Duration::from_secs(60);
        let rows = |began| criterion(&folder, began).unwrap();
        assert_eq!(rows(SystemTime::now() - minute)[0].nanoseconds, 2.0);
        assert!(rows(SystemTime::now() + minute).is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_bench_finds_the_reference_with_its_parameter() {
        let names = ["g/bare/1", "g/bare/2", "g/registry/1", "g/registry/2", "h/client", "h/bare"];
        let medians: BTreeMap<String, f64> = names.iter().map(|name| ((*name).to_owned(), 1.0)).collect();
        assert_eq!(reference("g/registry/2", &medians).as_deref(), Some("g/bare/2"));
        assert_eq!(reference("h/client", &medians).as_deref(), Some("h/bare"));
        assert_eq!(reference("h/bare", &medians), None);
    }
}
