//! The committed language model on the portable engine writes what PyTorch writes with the same weights
//! (`models/handbook/reference.py`).
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::path::{Path, PathBuf};

use coreml_client::ModelClient;
use coreml_text::{Completion, Generation, TextModel, Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Text {
    prompt: String,
    tokens: Vec<u32>,
}

fn handbook() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/handbook")
}

fn texts() -> Vec<Text> {
    serde_json::from_slice(&std::fs::read(handbook().join("greedy.json")).unwrap()).unwrap()
}

async fn model(client: &ModelClient) -> TextModel {
    let model_ref = client.load_model_async(handbook().join("handbook.mlpackage")).await.unwrap();
    let tokenizer = Tokenizer::from_file(handbook().join("tokenizer.json")).unwrap();
    // No token ends a text: the reference has 64 of each, whatever they are.
    TextModel::new(client, model_ref, tokenizer, &[]).unwrap()
}

async fn greedy(model: &TextModel, text: &Text) -> Completion {
    let generation = Generation { most: text.tokens.len(), ..Generation::default() };
    model.generate(&text.prompt, generation).unwrap().complete().await.unwrap()
}

#[tokio::test]
async fn twenty_texts_of_64_tokens_are_those_of_pytorch() {
    let client = ModelClient::builder().threads(1).build();
    let model = model(&client).await;
    let texts = texts();
    assert_eq!(texts.iter().filter(|text| text.tokens.len() == 64).count(), 20);
    for text in &texts {
        let found = greedy(&model, text).await;
        assert_eq!(found.tokens, text.tokens, "{}: {}", text.prompt, found.text);
    }
}

#[tokio::test]
async fn four_texts_at_once_on_one_model_do_not_mix() {
    let client = ModelClient::builder().threads(1).build();
    let model = model(&client).await;
    let texts = texts();
    let all = texts[..4].iter().map(|text| greedy(&model, text));
    for (found, text) in futures_util::future::join_all(all).await.iter().zip(&texts) {
        assert_eq!(found.tokens, text.tokens, "{}: {}", text.prompt, found.text);
    }
}
