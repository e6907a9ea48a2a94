//! Sentences through the whole stack, tokenizer to vector, against the original's embeddings (`models/minilm_reference.py`).
//! `cargo xtask models` brings the model; without it there is nothing to test, unless `COREML_REQUIRE_MODELS` is set.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::path::{Path, PathBuf};

use coreml_client::ModelClient;
use coreml_text::{Embedder, Pooling, Tokenizer};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// The model and its tokenizer, if they are there.
fn brought() -> Option<(PathBuf, Tokenizer)> {
    let folder = models().join("cache/minilm");
    let tokenizer = folder.join("minilm.tokenizer.json");
    if !tokenizer.exists() {
        assert!(std::env::var_os("COREML_REQUIRE_MODELS").is_none(), "`cargo xtask models` brings MiniLM");
        eprintln!("skipped: `cargo xtask models` brings MiniLM");
        return None;
    }
    Some((folder.join("minilm-f32.mlpackage"), Tokenizer::from_file(tokenizer).unwrap()))
}

fn sentences() -> Vec<String> {
    serde_json::from_slice(&std::fs::read(models().join("minilm/sentences.json")).unwrap()).unwrap()
}

#[tokio::test]
async fn sixteen_sentences_have_the_originals_embeddings() {
    let Some((path, tokenizer)) = brought() else { return };
    let client = ModelClient::builder().threads(2).intra_op_threads(1).build();
    let model_ref = client.load_model_async(path).await.unwrap();
    let embedder = Embedder::new(&client, model_ref, &tokenizer).unwrap();
    assert_eq!(embedder.length(), Some(128));
    let found = embedder.embed_all(sentences()).await.unwrap();
    let file = std::fs::File::open(models().join("minilm/embeddings.npy")).unwrap();
    let expected: Vec<f32> = npyz::NpyFile::new(file).unwrap().into_vec().unwrap();
    assert_eq!((found.len(), expected.len()), (16, 16 * 384));
    for (found, expected) in found.iter().zip(expected.chunks_exact(384)) {
        let cosine: f32 = found.vector.iter().zip(expected).map(|(a, b)| a * b).sum();
        assert!(cosine >= 0.9999, "{cosine}");
    }
    // Eating food and eating bread are alike; eating and the borrow checker are not.
    assert!(found[0].similarity(&found[1]) > 0.7 && found[0].similarity(&found[5]) < 0.2);
}

#[tokio::test]
async fn a_text_that_is_too_long_loses_its_end_and_says_so() {
    let Some((path, tokenizer)) = brought() else { return };
    let client = ModelClient::builder().threads(1).build();
    let model_ref = client.load_model_async(path).await.unwrap();
    let embedder = Embedder::new(&client, model_ref, &tokenizer).unwrap().pooling(Pooling::Mean);
    let words = |count: usize| vec!["word"; count].join(" ");
    let [fits, longer] = [words(126), words(200)];
    let found = embedder.embed_all([fits, longer]).await.unwrap();
    assert_eq!((found[0].tokens, found[0].truncated), (128, false));
    assert_eq!((found[1].tokens, found[1].truncated), (128, true));
    assert_eq!(found[0].vector, found[1].vector);
}
