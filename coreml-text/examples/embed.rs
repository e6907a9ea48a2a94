//! Which of some sentences are nearest to a question. `cargo xtask models` brings the model.
//!
//! ```text
//! cargo run --release -p coreml-text --example embed -- "Where is the seat of France's government?"
//! cargo run --release -p coreml-text --example embed -- --json "Where is the seat of France's government?" < sentences.txt
//! ```
//!
//! The sentences are the lines of the standard input, or those that the repository tests the model with if that is a terminal.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Parser;
use coreml_client::ModelClient;
use coreml_text::{Embedder, Tokenizer};

/// Prints sentences by their likeness to a question, the likest first.
#[derive(Parser)]
struct Arguments {
    /// What to look for.
    question: String,
    /// A sentence encoder.
    #[arg(long, default_value_os_t = repository("models/cache/minilm/minilm-f32.mlpackage"))]
    model: PathBuf,
    /// Its tokenizer.
    #[arg(long, default_value_os_t = repository("models/cache/minilm/minilm.tokenizer.json"))]
    tokenizer: PathBuf,
    /// Print JSON instead of bars.
    #[arg(long)]
    json: bool,
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn sentences() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut input = std::io::stdin();
    if input.is_terminal() {
        return Ok(serde_json::from_slice(&std::fs::read(repository("models/minilm/sentences.json"))?)?);
    }
    let mut text = String::new();
    input.read_to_string(&mut text)?;
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let client = ModelClient::new();
    let model_ref = client.load_model_async(&arguments.model).await?;
    let embedder = Embedder::new(&client, model_ref, &Tokenizer::from_file(&arguments.tokenizer)?)?;

    let question = embedder.embed(&arguments.question).await?;
    let sentences = sentences()?;
    let embeddings = embedder.embed_all(&sentences).await?;
    let likeness = embeddings.iter().map(|embedding| question.similarity(embedding));
    let mut found: Vec<(f32, &String)> = likeness.zip(&sentences).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    if arguments.json {
        let found: Vec<_> = found
            .iter()
            .map(|(similarity, sentence)| serde_json::json!({"similarity": similarity, "sentence": sentence}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        for (similarity, sentence) in found {
            let bar = "█".repeat((similarity.max(0.0) * 20.0).round() as usize);
            println!("{similarity:5.2} {bar:20} {sentence}");
        }
    }
    Ok(())
}
