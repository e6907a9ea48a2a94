//! Holds files against the rules that the committed head was trained for.
//!
//! ```text
//! cargo run -p coreml-judge --example judge -- README.md docs/testing.md
//! cargo run -p coreml-judge --example judge -- --json README.md
//! ```

use std::io::IsTerminal;

use coreml_client::ModelClient;
use coreml_judge::{Constitution, Finding, Task, TrainedJudge, Tribunal, Verdict};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (flags, files): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|one| one == "--json");
    if files.is_empty() {
        return Err("expected the names of files".into());
    }
    let client = ModelClient::new();
    let package = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/judge/judge.mlpackage");
    let judge = TrainedJudge::new(&client, client.load_model_async(package).await?)?;
    let constitution = Constitution::new("Documentation", judge.rules().to_vec())?;
    let tribunal = Tribunal::new(constitution).with(judge);
    for file in files {
        let verdict = tribunal.deliberate(&Task::new("", std::fs::read_to_string(&file)?)).await?;
        if flags.is_empty() {
            print(&file, &verdict);
        } else {
            println!("{}", serde_json::json!({ "file": file, "verdict": verdict }));
        }
    }
    Ok(())
}

fn print(file: &str, verdict: &Verdict) {
    let colour = std::io::stdout().is_terminal();
    println!("{file}: {:?}", verdict.decision);
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
        println!("    {}", rule.reason);
        if let Some(quote) = &rule.quote {
            // A file may hold what a terminal obeys.
            println!("    line {}: {:?}", quote.line, quote.text);
        }
    }
}
