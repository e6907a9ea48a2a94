//! Goes on with a text, as it is made.
//!
//! ```text
//! cargo run --release -p coreml-text --example generate -- MODEL.mlpackage tokenizer.json "The function returns" 0.8
//! ```
//!
//! The last argument is the temperature; 0, and always the likeliest token, without it.

use std::io::Write;

use coreml_client::ModelClient;
use coreml_text::{Generation, Sampling, TextModel, Tokenizer};
use futures_util::StreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(tokenizer), Some(prompt)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("expected a model, a tokenizer.json and a prompt".into());
    };
    let client = ModelClient::builder().threads(1).build();
    let model_ref = client.load_model_async(path).await?;
    let model = TextModel::new(&client, model_ref, Tokenizer::from_file(tokenizer)?, &["<|end|>"])?;

    let temperature = arguments.next().map_or(Ok(0.0), |text| text.parse())?;
    let sampling = Sampling { temperature, top_p: 0.95, ..Sampling::default() };
    let mut stream = model.generate(&prompt, Generation { most: 200, sampling, ..Generation::default() })?;
    print!("{prompt}");
    while let Some(piece) = stream.next().await {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    if let Some((reason, timings)) = stream.finish() {
        println!("\n\n{reason:?}: {} tokens, {:.0} per second", timings.tokens, timings.tokens_per_second());
    }
    Ok(())
}
