//! Holds files against a constitution.
//!
//! ```text
//! cargo run --release -p coreml-judge --example judge -- README.md docs/testing.md
//! cargo run --release -p coreml-judge --example judge -- --json README.md
//! cargo run --release -p coreml-judge --example judge -- --panel --samples 3 --timeout 600 docs/testing.md
//! ```
//!
//! Without `--panel` the trained head of the repository judges, which knows two rules. With it a language model sits beside it and is
//! asked for every rule: by default the repository's own, which has read manuals and follows no instructions, so what it says shows how a
//! panel works and no more. `--model` takes a better one.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use coreml_client::{ModelClient, Priority};
use coreml_judge::{
    Constitution, Deliberation, Finding, LanguageJudge, Task, TrainedJudge, Tribunal, Verdict,
};
use coreml_text::TextModel;

/// Holds files against a constitution.
#[derive(Parser)]
struct Arguments {
    /// What is to be judged, each file for itself.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The rules, in TOML or YAML.
    #[arg(long, default_value_os_t = repository("coreml-judge/examples/documentation.toml"))]
    constitution: PathBuf,
    /// A language model judges, too.
    #[arg(long)]
    panel: bool,
    /// Which one: with its tokenizer's files beside it.
    #[arg(long, default_value_os_t = repository("models/handbook/handbook.mlpackage"))]
    model: PathBuf,
    /// The most characters of a reason of the language model.
    #[arg(long, default_value_t = 24)]
    reason: usize,
    /// How often the language model is asked for each rule.
    #[arg(long, default_value_t = 1)]
    samples: u32,
    /// The seconds that the verdict on a file may take.
    #[arg(long)]
    timeout: Option<f64>,
    /// One line of JSON for each file.
    #[arg(long)]
    json: bool,
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { files, constitution, panel, model, reason, samples, timeout, json } = Arguments::parse();
    // One thread a model: so a language model keeps what it has read.
    let client = ModelClient::builder().threads(1).build();
    let head = client.load_model_async(repository("models/judge/judge.mlpackage")).await?;
    let mut tribunal =
        Tribunal::new(Constitution::from_file(constitution)?).with(TrainedJudge::new(&client, head)?);
    if panel {
        let model = TextModel::load(&client, model).await?;
        tribunal = tribunal.with(LanguageJudge::new("language model", model).longest_reason(reason));
    }
    // A report can wait for whatever else the program does.
    let timeout = timeout.map(Duration::try_from_secs_f64).transpose()?;
    let tribunal = tribunal.deliberation(Deliberation {
        samples,
        seed: Some(1),
        priority: Priority::Low,
        timeout,
        ..Deliberation::default()
    });
    for file in files {
        let verdict = tribunal.deliberate(&Task::new("", std::fs::read_to_string(&file)?)).await?;
        if json {
            println!("{}", serde_json::json!({ "file": file, "verdict": verdict }));
        } else {
            print(&file, &verdict);
        }
    }
    Ok(())
}

fn print(file: &Path, verdict: &Verdict) {
    let colour = std::io::stdout().is_terminal();
    println!("{}: {:?}", file.display(), verdict.decision);
    for rule in &verdict.rules {
        let code = match rule.finding {
            Finding::Kept => 32,
            Finding::Broken => 31,
            Finding::Unclear => 33,
        };
        let bar = "#".repeat((rule.confidence * 20.0).round() as usize);
        let line = format!(
            "{:8} {:12} [{bar:20}] {:3.0} %",
            rule.finding.name(),
            rule.rule,
            100.0 * rule.confidence
        );
        println!("  {}", if colour { format!("\u{1b}[{code}m{line}\u{1b}[0m") } else { line });
        // What a model writes, and what a file holds, may be what a terminal obeys.
        println!("    {}", rule.reason.escape_debug());
        if let Some(quote) = &rule.quote {
            println!("    line {}: {:?}", quote.line, quote.text);
        }
        for dissent in rule.dissent() {
            println!("    dissent of the {}: {:?}", dissent.judge, dissent.reason);
        }
    }
}
