//! `cargo xtask conformance`: coremltools' own tests against the portable engine.

mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::python::LIBRARY;
use crate::run::{make_python, ready_python, target, visible};

/// The parts of coremltools whose tests predict.
const SUITES: &[&str] = &[
    "converters/mil/frontend/milproto",
    "converters/mil/mil/ops/tests",
    "converters/mil/frontend/torch/test",
    "test/ml_program",
    "test/modelpackage",
    "test/neural_network",
    "test/optimize/coreml",
    "test/pipeline",
    "test/sklearn_tests",
    "test/xgboost_tests",
];

/// Below the suites: tests of tools that ask another device, on a cable.
const LEFT_OUT: &str = "experimental";

/// The wrong engines of the plug-in.
const PLANTED: [&str; 2] = ["skewed", "zeros"];

/// Something else than to run and to judge.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Task {
    /// Keep the cases that pass in conformance/corpus, which `cargo test` replays; skips the planted engines.
    Record,
    /// Judge the last run once more, after a change of the expected failures; an engine that did not run is run.
    Again,
}

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Something else than to run and to judge.
    task: Option<Task>,
    /// Keep K of N tests, by a stable hash of their names.
    #[arg(long, default_value = "1/40", value_name = "K/N", conflicts_with = "full")]
    sample: String,
    /// Run all 60,000 tests; takes hours.
    #[arg(long)]
    full: bool,
    /// Only files or folders of coremltools whose path has this in it.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Skip the runs with planted wrong engines, which show what a pass is worth.
    #[arg(long)]
    no_planted: bool,
    /// Run the planted wrong engines on K of N tests only; if not given, on all that the sample keeps.
    #[arg(long, value_name = "K/N", conflicts_with = "no_planted")]
    planted_sample: Option<String>,
    /// Write the rows of the files that ran to docs/conformance.md.
    #[arg(long, conflicts_with = "no_planted")]
    ledger: bool,
    /// Worker processes.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// An environment with the packages of conformance/requirements.txt; made in models/cache if none.
    #[arg(long, value_name = "FOLDER")]
    environment: Option<PathBuf>,
}

/// One line of the plug-in's log.
#[derive(Deserialize)]
struct Case {
    id: String,
    outcome: String,
    seconds: f64,
    why: String,
    predictions: u64,
    errors: Vec<String>,
}

impl Case {
    fn file(&self) -> &str {
        file_of(&self.id)
    }
}

/// The file of tests that a case is from.
fn file_of(id: &str) -> &str {
    id.split("::").next().unwrap_or(id).trim_start_matches("coremltools/")
}

/// What became of the tests of one file.
#[derive(Default)]
struct Tally {
    /// Cases of the file that the sample left out are not among them.
    collected: u64,
    predicted: u64,
    passed: u64,
    vacuous: u64,
    refused: BTreeMap<String, u64>,
    failed: u64,
    skipped: u64,
    seconds: f64,
}

impl Tally {
    fn add(&mut self, case: &Case) {
        self.collected += 1;
        self.predicted += u64::from(case.predictions > 0);
        self.seconds += case.seconds;
        match case.outcome.as_str() {
            "passed" if case.predictions > 0 => self.passed += 1,
            "passed" => self.vacuous += 1,
            "skipped" | "xfail" => self.skipped += 1,
            _ => match refusal(case) {
                Some(op) => *self.refused.entry(op).or_default() += 1,
                None => self.failed += 1,
            },
        }
    }

    fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// The tallies of the files, and of all.
    fn of(cases: &[Case]) -> (BTreeMap<&str, Self>, Self) {
        let (mut files, mut all) = (BTreeMap::<&str, Self>::new(), Self::default());
        for case in cases {
            files.entry(case.file()).or_default().add(case);
            all.add(case);
        }
        (files, all)
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<58} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7.0}",
            self.collected,
            self.predicted,
            self.passed,
            self.vacuous,
            self.refusals(),
            self.failed,
            self.skipped,
            self.seconds
        );
    }
}

/// What the engine says it cannot do, if that is why the test failed.
fn refusal(case: &Case) -> Option<String> {
    let error =
        case.errors.iter().find(|error| error.contains("unknown op") || error.contains("not supported"))?;
    let op = error.split("op `").nth(1).and_then(|rest| rest.split('`').next());
    Some(op.map_or_else(|| error.chars().take(80).collect(), str::to_owned))
}

/// The shared library, built for speed.
fn library(root: &Path) -> anyhow::Result<PathBuf> {
    visible(Command::new("cargo").current_dir(root).args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "coreml-capi",
    ]))?;
    Ok(target(root).join("release").join(LIBRARY))
}

/// The environment in which the suite runs; made on first use.
fn environment(root: &Path, chosen: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(chosen) = chosen {
        return Ok(chosen.to_owned());
    }
    let environment = root.join("models/cache/conformance");
    let requirements = root.join("conformance/requirements.txt");
    if ready_python(&environment, &requirements)?.is_none() {
        println!("bringing Python packages to {}", environment.display());
        make_python(root, &environment, &requirements)?;
    }
    Ok(environment)
}

/// Where coremltools lies in an environment.
fn site(environment: &Path) -> anyhow::Result<PathBuf> {
    std::fs::read_dir(environment.join("lib"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("site-packages"))
        .find(|site| site.join("coremltools").exists())
        .with_context(|| format!("{} has no coremltools", environment.display()))
}

/// Runs the suite and judges it.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let expected = expected(&root.join("conformance/expected_failures.toml"))?;
    let suite = Suite::new(root, arguments)?;
    let sample = (!arguments.full).then_some(arguments.sample.as_str());
    let cases = suite.cases("portable", sample)?;
    ensure!(cases.iter().any(|case| case.predictions > 0), "no test predicted: the suite proves nothing");

    println!(
        "{:<58} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7}",
        "file", "cases", "pred.", "pass", "vacu.", "refus.", "fail", "skip", "s"
    );
    let (files, all) = Tally::of(&cases);
    for (file, tally) in &files {
        tally.print(file);
    }
    all.print("all");
    for (op, times) in &all.refused {
        println!("refused: {op} ({times})");
    }

    if arguments.task == Some(Task::Record) {
        record(&suite.folder("portable").join("corpus"), &root.join("conformance/corpus"), CORPUS_BYTES)?;
    } else if !arguments.no_planted {
        let mut planted = Vec::new();
        for engine in PLANTED {
            let wrong = suite.cases(engine, arguments.planted_sample.as_deref().or(sample))?;
            planted.push(Planted::of(&wrong, &cases, engine));
        }
        if arguments.ledger {
            ledger::write(&root.join("docs/conformance.md"), sample.unwrap_or("all"), &files, &planted)?;
        }
        // A few tests do not look at numbers, and a part of the suite may have many of these.
        let one_in = if arguments.only.is_some() { 4 } else { 20 };
        planted.iter().try_for_each(|planted| planted.must_be_rare(one_in))?;
    }
    judge(&cases, &expected)
}

/// How many tests of each file pass although the engine is wrong.
struct Planted {
    engine: &'static str,
    passed: BTreeMap<String, u64>,
    /// Of so many that pass with the right engine.
    of: BTreeMap<String, u64>,
}

impl Planted {
    /// The cases with a wrong engine beside the same cases with the right one.
    fn of(wrong: &[Case], right: &[Case], engine: &'static str) -> Self {
        let real = |case: &&Case| case.outcome == "passed" && case.predictions > 0;
        let ran: BTreeSet<&str> = wrong.iter().map(|case| case.id.as_str()).collect();
        let count = |cases: &mut dyn Iterator<Item = &Case>| {
            let mut files = BTreeMap::new();
            for case in cases {
                *files.entry(case.file().to_owned()).or_default() += 1;
            }
            files
        };
        let planted = Self {
            engine,
            passed: count(&mut wrong.iter().filter(real)),
            of: count(&mut right.iter().filter(real).filter(|case| ran.contains(case.id.as_str()))),
        };
        let (passed, of) = planted.sums();
        println!("planted wrong engine: {engine} passes {passed} of {of}");
        planted
    }

    fn sums(&self) -> (u64, u64) {
        (self.passed.values().sum(), self.of.values().sum())
    }

    /// At most one test in so many passes with the wrong engine.
    fn must_be_rare(&self, one_in: u64) -> anyhow::Result<()> {
        let (passed, of) = self.sums();
        let engine = self.engine;
        ensure!(
            passed * one_in <= of,
            "the tests pass {passed} of {of} with {engine} outputs: they prove nothing"
        );
        Ok(())
    }
}

/// Tests, the Python that runs them, and the library that they judge.
struct Suite<'a> {
    root: &'a Path,
    arguments: &'a Arguments,
    environment: PathBuf,
    site: PathBuf,
    library: PathBuf,
    paths: Vec<PathBuf>,
}

impl<'a> Suite<'a> {
    fn new(root: &'a Path, arguments: &'a Arguments) -> anyhow::Result<Self> {
        let environment = environment(root, arguments.environment.as_deref())?;
        let site = site(&environment)?;
        let mut paths = Vec::new();
        for suite in SUITES {
            collect(&site.join("coremltools").join(suite), arguments.only.as_deref(), &mut paths)?;
        }
        ensure!(!paths.is_empty(), "no file of the suite matches {:?}", arguments.only);
        Ok(Self { root, arguments, environment, site, library: library(root)?, paths })
    }

    /// Where a run with an engine leaves its log.
    fn folder(&self, engine: &str) -> PathBuf {
        self.root.join("target/conformance").join(engine)
    }

    /// What became of the tests with an engine, which runs them unless the last run is to be judged again.
    fn cases(&self, engine: &str, sample: Option<&str>) -> anyhow::Result<Vec<Case>> {
        let folder = self.folder(engine);
        if self.arguments.task != Some(Task::Again) || !folder.exists() {
            self.pytest(engine, sample, &folder)?;
        }
        let mut cases: BTreeMap<String, Case> = BTreeMap::new();
        for line in log_lines(&folder)? {
            let case: Case =
                serde_json::from_str(&line).with_context(|| format!("a line of {}", folder.display()))?;
            cases.insert(case.id.clone(), case);
        }
        Ok(cases.into_values().collect())
    }

    /// Runs pytest with the plug-in, which writes its log to the folder.
    fn pytest(&self, engine: &str, sample: Option<&str>, folder: &Path) -> anyhow::Result<()> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        let text = folder.join("pytest.txt");
        let printed = std::fs::File::create(&text)?;
        let mut command = Command::new(self.root.join(&self.environment).join("bin/python"));
        command
            // Some tests leave files where they run.
            .current_dir(folder)
            .env("COREML_PORTABLE_LIBRARY", &self.library)
            .env(
                "PYTHONPATH",
                std::env::join_paths([self.root.join("python/src"), self.root.join("conformance")])?,
            )
            .env("CONFORMANCE_ENGINE", engine)
            .env("CONFORMANCE_LOG", folder.join("log."))
            .env("OMP_NUM_THREADS", "1")
            // The tests' right answers are NumPy's, whose `argsort` orders ties as the vector unit does that it finds.
            .env("NPY_DISABLE_CPU_FEATURES", "AVX2 AVX512F AVX512_SKX")
            .args(["-m", "pytest", "-p", "plugin", "-q", "--no-header", "-p", "no:cacheprovider"])
            .args(["--tb", "short", "--timeout", "300", "--timeout-method", "thread", "-n"])
            .arg(self.arguments.workers.to_string())
            .arg("--rootdir")
            .arg(&self.site)
            .args(&self.paths)
            .stdout(printed.try_clone()?)
            .stderr(printed);
        if self.arguments.task == Some(Task::Record) {
            command.env("CONFORMANCE_CORPUS", folder.join("corpus"));
        }
        if let Some(sample) = sample {
            command.env("CONFORMANCE_SAMPLE", sample);
        }
        let mut child = command.spawn().context("pytest does not start")?;
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            bar.set_message(format!("{engine}: {} tests", log_lines(folder)?.len()));
            std::thread::sleep(std::time::Duration::from_secs(1));
        };
        bar.finish_and_clear();
        match status.code() {
            // "All passed", "some failed", and "the sample chose none of the tests".
            Some(0 | 1 | 5) => Ok(()),
            // Anything else means that the suite did not run; 4 that pytest lacks a plug-in, or a file does not import.
            _ => {
                bail!("pytest failed ({status}), see {}:\n{}", text.display(), end_of(&std::fs::read(&text)?))
            }
        }
    }
}

/// The lines that the workers have written to their logs. One that is still being written is not among them.
fn log_lines(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder).context("there is no run to judge")? {
        let path = entry?.path();
        if path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("log.")) {
            let text = std::fs::read_to_string(path)?;
            lines.extend(
                text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned),
            );
        }
    }
    Ok(lines)
}

/// The last lines of what a program printed.
fn end_of(printed: &[u8]) -> String {
    const LINES: usize = 12;
    let text = String::from_utf8_lossy(printed);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The most that the corpus may hold.
const CORPUS_BYTES: usize = 25 << 20;

/// The cases that are kept of each stratum.
const EACH: usize = 2;

/// The bytes of a case beyond which only one is kept.
const SMALL: usize = 8 << 10;

/// Chooses from what the workers recorded, and what is there, and writes one file for each folder of tests, in the order of the
/// tests' names.
fn record(recorded: &Path, corpus: &Path, most: usize) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Recorded {
        id: String,
        strata: Vec<String>,
    }

    std::fs::create_dir_all(corpus)?;
    // What earlier runs recorded takes part: samples add up. A case that ran again is replaced.
    let mut cases: BTreeMap<String, (Vec<String>, String)> = BTreeMap::new();
    let mut old = Vec::new();
    for source in [corpus, recorded] {
        for entry in std::fs::read_dir(source).context("nothing was recorded")? {
            let path = entry?.path();
            if path.extension() != Some("jsonl".as_ref()) {
                continue;
            }
            for line in std::fs::read_to_string(&path)?.lines() {
                let Recorded { id, strata } =
                    serde_json::from_str(line).with_context(|| format!("a line of {}", path.display()))?;
                cases.insert(id, (strata, line.to_owned()));
            }
            if source == corpus {
                old.push(path);
            }
        }
    }
    let chosen = choose(&cases);
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for id in &chosen {
        let file = file_of(id);
        let folder = file.rsplit_once('/').map_or(file, |(folder, _)| folder).replace('/', "-");
        let text = files.entry(folder).or_default();
        text.push_str(&cases[*id].1);
        text.push('\n');
    }
    let bytes: usize = files.values().map(String::len).sum();
    ensure!(bytes <= most, "{bytes} bytes were recorded, more than {most}: take a smaller sample");
    for path in old {
        std::fs::remove_file(path)?;
    }
    for (folder, text) in &files {
        std::fs::write(corpus.join(format!("{folder}.jsonl")), text)?;
    }
    println!("recorded {} of {} cases, {bytes} bytes", chosen.len(), cases.len());
    Ok(())
}

/// The smallest cases of each stratum, by name. What is chosen from the chosen of two samples is what is chosen from both.
fn choose(cases: &BTreeMap<String, (Vec<String>, String)>) -> BTreeSet<&str> {
    let mut strata: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    for (id, (of, line)) in cases {
        for stratum in of {
            strata.entry(stratum).or_default().push((line.len(), id));
        }
    }
    let mut chosen = BTreeSet::new();
    for mut of in strata.into_values() {
        of.sort_unstable();
        let kept = of.iter().enumerate().take(EACH).filter(|(nth, (bytes, _))| *nth == 0 || *bytes <= SMALL);
        chosen.extend(kept.map(|(_, (_, id))| *id));
    }
    chosen
}

/// The test files below a folder whose path has `only` in it.
fn collect(folder: &Path, only: Option<&str>, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("{} is missing", folder.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if path.is_dir() {
            if name != LEFT_OUT {
                collect(&path, only, paths)?;
            }
        } else if name.starts_with("test_")
            && name.ends_with(".py")
            && only.is_none_or(|only| path.to_string_lossy().contains(only))
        {
            paths.push(path);
        }
    }
    Ok(())
}

/// The failures that are known, with the reason of each: a pattern is a part of the test's name, or with `$` its end.
fn expected(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} is missing", path.display()))?;
    let expected: BTreeMap<String, String> = toml::from_str(&text)
        .with_context(|| format!("{} is not \"pattern\" = \"reason\"", path.display()))?;
    for (pattern, reason) in &expected {
        ensure!(!reason.is_empty(), "\"{pattern}\" has no reason");
    }
    Ok(expected)
}

/// Compares what failed with what was expected to: both kinds of surprise are failures.
fn judge(cases: &[Case], expected: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut surprises = 0;
    for case in cases {
        let pattern = expected.keys().find(|pattern| match pattern.strip_suffix('$') {
            Some(end) => case.id.ends_with(end),
            None => case.id.contains(pattern.as_str()),
        });
        match (case.outcome.as_str(), pattern) {
            ("failed", None) => {
                surprises += 1;
                let why = case.errors.first().unwrap_or(&case.why);
                println!("FAILED {}\n       {}", case.id, why.chars().take(300).collect::<String>());
            }
            ("passed", Some(pattern)) => {
                surprises += 1;
                println!("PASSED unexpectedly {} (\"{pattern}\")", case.id);
            }
            _ => {}
        }
    }
    ensure!(surprises == 0, "{surprises} tests did not end as conformance/expected_failures.toml says");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(id: &str, outcome: &str, errors: &[&str]) -> Case {
        Case {
            id: id.to_owned(),
            outcome: outcome.to_owned(),
            seconds: 0.0,
            why: String::new(),
            predictions: 1,
            errors: errors.iter().map(|error| (*error).to_owned()).collect(),
        }
    }

    #[test]
    fn unexpected_failures_and_unexpected_passes_are_both_refused() {
        let expected = BTreeMap::from([("bad".to_owned(), "known".to_owned())]);
        judge(&[case("good", "passed", &[]), case("bad", "failed", &[])], &expected).unwrap();
        judge(&[case("good", "failed", &[])], &expected).unwrap_err();
        judge(&[case("bad", "passed", &[])], &expected).unwrap_err();
    }

    #[test]
    fn a_refusal_names_the_op() {
        let text = "x.mlmodel: op `lstm` that makes `y` cannot be prepared: unknown op in opset iOS18";
        assert_eq!(refusal(&case("a", "failed", &[text])).as_deref(), Some("lstm"));
        assert_eq!(refusal(&case("a", "failed", &["out of range"])), None);
    }

    #[test]
    fn recording_keeps_the_smallest_of_each_stratum_of_all_runs() {
        let folder = std::env::temp_dir().join(format!("coreml-record-{}", std::process::id()));
        let (recorded, corpus) = (folder.join("recorded"), folder.join("corpus"));
        std::fs::create_dir_all(&recorded).unwrap();
        let line = |id: &str, strata: &str, spec: &str| {
            format!("{{\"id\": \"coremltools/{id}\", \"strata\": [{strata}], \"spec\": \"{spec}\"}}\n")
        };
        let run = |lines: &[String]| {
            std::fs::write(recorded.join("main.jsonl"), lines.concat()).unwrap();
            record(&recorded, &corpus, 1000).unwrap();
        };
        let (large, small) = (line("a/b/t.py::large", "\"s\"", "111"), line("a/b/t.py::y", "\"s\"", "1"));
        let other = line("c/u.py::alone", "\"s\", \"t\"", "11111");
        run(&[large.clone(), other.clone()]);
        assert_eq!(std::fs::read_to_string(corpus.join("a-b.jsonl")).unwrap(), large);
        // A case that ran again is replaced, and the third of a stratum is not kept.
        let again = line("a/b/t.py::large", "\"s\"", "11");
        let third = line("a/b/t.py::third", "\"s\"", "1111");
        run(&[third, small.clone(), again.clone()]);
        assert_eq!(std::fs::read_to_string(corpus.join("a-b.jsonl")).unwrap(), again + &small);
        assert_eq!(std::fs::read_to_string(corpus.join("c.jsonl")).unwrap(), other);
        record(&recorded, &corpus, 10).unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_committed_list_of_expected_failures_reads() {
        expected(&crate::root().join("conformance/expected_failures.toml")).unwrap();
    }
}
