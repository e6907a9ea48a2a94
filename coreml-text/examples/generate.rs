//! Goes on with a text, as it is made: by default with the small language model of the repository.
//!
//! ```text
//! cargo run --release -p coreml-text --example generate -- "The function returns"
//! cargo run --release -p coreml-text --example generate -- --temperature 0.8 --most 100 "In Debian, packages are"
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use coreml_client::ModelClient;
use coreml_text::{Generation, Sampling, TextModel};
use futures_util::StreamExt;

/// Goes on with a text.
#[derive(Parser)]
struct Arguments {
    /// How it begins.
    prompt: String,
    /// A causal language model, with its tokenizer.json and tokenizer_config.json beside it.
    #[arg(long, default_value_os_t = repository("models/handbook/handbook.mlpackage"))]
    model: PathBuf,
    /// How much chance there is in it; 0: always the likeliest token.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// The most tokens to make.
    #[arg(long, default_value_t = 200)]
    most: usize,
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { prompt, model, temperature, most } = Arguments::parse();
    let client = ModelClient::builder().threads(1).build();
    let model = TextModel::load(&client, model).await?;

    let sampling = Sampling { temperature, top_p: 0.95, ..Sampling::default() };
    let mut stream = model.generate(&prompt, Generation { most, sampling, ..Generation::default() })?;
    print!("{prompt}");
    while let Some(piece) = stream.next().await {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    if let Some((reason, _)) = stream.finish() {
        println!("\n\n{reason:?}\n{}", model.stats());
    }
    Ok(())
}
