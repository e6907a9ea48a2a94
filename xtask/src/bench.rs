//! `cargo xtask bench`: runs the benches and prints ratios, each within one run and against a named reference.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value as Json;

use crate::models;
use crate::run::{output, visible};

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
#[derive(Serialize)]
struct Row {
    name: String,
    nanoseconds: f64,
    reference: Option<String>,
    ratio: Option<f64>,
}

/// Most that a ratio may be; what is over it fails the run. Through the client N threads do at least 0.99 of what they do by
/// direct calls.
const BOUNDS: &[(&str, f64)] = &[
    ("round trip/client", 1.3),
    ("throughput of 1 ms/client/1", 1.0 / 0.99),
    ("throughput of 1 ms/client/2", 1.0 / 0.99),
    ("streaming/streamed", 1.05),
];

/// Runs the benches.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    // Where two threads are placed decides a round trip more than anything else (one core: microseconds, two: ten times that),
    // so both sides of that comparison are held on one core. The others have the machine to themselves.
    let taskset = |arguments: &[&str]| {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", env!("CARGO")]).args(arguments);
        command
    };
    let plain = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(arguments);
        command
    };
    let build = ["bench", "--quiet", "--package", "benches", "--no-run"];
    visible(plain(&build).current_dir(root))?;
    let of_client = |group| ["bench", "--quiet", "--package", "benches", "--bench", "client", "--", group];
    let others = [
        "bench",
        "--quiet",
        "--package",
        "benches",
        "--bench",
        "registry",
        "--bench",
        "engine",
        "--bench",
        "text",
        "--",
    ];
    for mut command in [taskset(&of_client("round trip")), plain(&of_client("throughput")), plain(&others)] {
        command.current_dir(root);
        if arguments.quick {
            command.args(["--warm-up-time", "0.5", "--measurement-time", "2", "--sample-size", "20"]);
        }
        command.stdout(std::process::Stdio::null());
        visible(&mut command)?;
    }
    let mut rows = criterion(root)?;
    if arguments.against.is_some() {
        rows.extend(against_onnxruntime(root, arguments)?);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
        println!("\nplots: {}", root.join("target/criterion/report/index.html").display());
    }
    for (name, bound) in BOUNDS {
        let row = rows.iter().find(|row| row.name == *name).with_context(|| format!("no bench `{name}`"))?;
        let ratio = row.ratio.with_context(|| format!("`{name}` has no reference"))?;
        ensure!(ratio <= *bound, "{name} is {ratio:.2} times its reference, more than {bound}");
    }
    Ok(())
}

/// What the other benches of a group are compared with, by its name.
const REFERENCES: [&str; 4] = ["bare", "direct", "after 16", "one after another"];

/// Medians that criterion left, each with the reference of its group that has the same parameter.
fn criterion(root: &Path) -> anyhow::Result<Vec<Row>> {
    let mut medians: BTreeMap<String, f64> = BTreeMap::new();
    let mut folders = vec![root.join("target/criterion")];
    while let Some(folder) = folders.pop() {
        let estimates = folder.join("new/estimates.json");
        if estimates.exists() {
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
    REFERENCES.iter().find_map(|base| {
        let mut candidate = vec![*group, *base];
        candidate.extend(rest.iter().skip(1));
        let candidate = candidate.join("/");
        (candidate != name && medians.contains_key(&candidate)).then_some(candidate)
    })
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
    fn a_bench_finds_the_reference_with_its_parameter() {
        let names = ["g/bare/1", "g/bare/2", "g/registry/1", "g/registry/2", "h/client", "h/bare"];
        let medians: BTreeMap<String, f64> = names.iter().map(|name| ((*name).to_owned(), 1.0)).collect();
        assert_eq!(reference("g/registry/2", &medians).as_deref(), Some("g/bare/2"));
        assert_eq!(reference("h/client", &medians).as_deref(), Some("h/bare"));
        assert_eq!(reference("h/bare", &medians), None);
    }
}
