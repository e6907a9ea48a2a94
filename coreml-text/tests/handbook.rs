//! The committed language model on the portable engine writes what PyTorch writes with the same weights
//! (`models/handbook/reference.py`).
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use coreml_client::{Error, ModelClient};
use coreml_text::{
    Completion, FinishReason, Generation, Message, PromptRequest, TextError, TextModel, Tokenizer,
    TokenizerError,
};
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

/// As it is published, with the token that ends a text.
async fn loaded() -> (ModelClient, TextModel) {
    let client = ModelClient::builder().threads(1).build();
    let model = TextModel::load(&client, handbook().join("handbook.mlpackage")).await.unwrap();
    (client, model)
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

#[tokio::test]
async fn a_prompt_is_answered_as_the_model_itself_answers_it() {
    let (client, model) = loaded().await;
    let text = &texts()[0];
    let generation = Generation { most: 24, ..Generation::default() };
    let request = PromptRequest { generation, ..PromptRequest::new(model.model_ref(), &text.prompt) };
    let result = client.enqueue_inference(request.clone()).await.unwrap();
    assert_eq!(result.tokens, text.tokens[..24]);
    assert_eq!((result.finish, result.timings.tokens), (FinishReason::Length, 24));
    assert_eq!(model.tokenizer().decode(&result.tokens).unwrap(), result.text);

    // Many at once.
    let all = (0..3).map(|_| client.enqueue_inference(request.clone()));
    for again in futures_util::future::join_all(all).await {
        assert_eq!(again.unwrap().tokens, result.tokens);
    }
    let stats = model.stats();
    assert_eq!((stats.texts, stats.finished, stats.tokens), (4, 4, 96), "{stats}");
    assert_eq!((stats.first_token.count(), stats.token_time.count()), (4, 92));
    assert!(
        stats.first_token.max() >= stats.token_time.quantile(0.0) && stats.tokens_per_second() > 0.0,
        "{stats}"
    );

    // One that is given up on its way stops within one token: the one under way, and one that came between the two looks.
    let mut long = request.clone();
    long.generation.most = 900;
    let given_up = tokio::time::timeout(Duration::from_millis(200), client.enqueue_inference(long)).await;
    assert!(given_up.is_err());
    let then = model.stats().tokens;
    while client.stats().models[0].running > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stats = model.stats();
    assert!(stats.tokens <= then + 2, "{} tokens, {then} when it was given up", stats.tokens);
    assert_eq!((stats.texts, stats.finished), (5, 4));

    // Through a swap the tokenizer stays with the model; when it is unloaded there is nothing to find.
    client.swap(model.model_ref(), handbook().join("handbook.mlpackage").as_path()).await.unwrap();
    assert_eq!(client.enqueue_inference(request.clone()).await.unwrap().tokens, result.tokens);
    client.unload(model.model_ref()).unwrap();
    let error = client.enqueue_inference(request).await.unwrap_err();
    assert!(matches!(error, TextError::Client(Error::Unloaded { .. })), "{error:?}");
}

#[tokio::test]
async fn a_fork_goes_its_own_way_from_a_copy_of_what_was_read() {
    let (_client, model) = loaded().await;
    let some = || Generation { most: 12, ..Generation::default() };
    let mut session = model.session();
    session
        .push("The default value of this parameter is the name of the operating system user that runs the")
        .unwrap();
    let first = session.complete(some()).await.unwrap();
    let mut fork = session.clone();
    session.push(" The server").unwrap();
    fork.push(" In Python").unwrap();
    let (ours, theirs) = (session.complete(some()).await.unwrap(), fork.complete(some()).await.unwrap());
    // What was read before the fork is not read again, in either.
    for turn in [&ours, &theirs] {
        let known = first.timings.prompt_tokens + first.tokens.len() - 1;
        assert!(turn.timings.reused_tokens >= known, "{:?} of {known}", turn.timings);
    }
    // And each is what it would be alone.
    for (session, turn) in [(&session, &ours), (&fork, &theirs)] {
        let (_client, alone) = loaded().await;
        let before = session.tokens().len() - turn.tokens.len();
        let text =
            alone.start(session.tokens()[..before].to_vec(), some()).unwrap().complete().await.unwrap();
        assert_eq!(text.tokens, turn.tokens);
    }
    assert_ne!(session.tokens(), fork.tokens());
}

#[tokio::test]
async fn a_conversation_has_a_token_before_each_turn() {
    let (_client, model) = loaded().await;
    let turns = [Message::user("Hi"), Message::assistant("Hello"), Message::user("Bye")];
    let text = model.template().unwrap().render(&turns, true).unwrap();
    // As jinja2 3.1.6 renders it.
    assert_eq!(text, "<|user|>Hi\n<|assistant|>Hello\n<|user|>Bye\n<|assistant|>");
    let tokens = model.tokenizer().encode_bare(&text).unwrap();
    let special: Vec<u32> =
        tokens.iter().copied().filter(|&token| model.tokenizer().is_special(token)).collect();
    let [user, assistant] = ["<|user|>", "<|assistant|>"].map(|role| model.tokenizer().token(role).unwrap());
    assert_eq!(special, [user, assistant, user, assistant]);
    let few = Generation { most: 2, ..Generation::default() };
    let answer = model.chat(&turns, few).unwrap().complete().await.unwrap();
    assert_eq!((answer.timings.prompt_tokens, answer.tokens.len()), (tokens.len(), 2));
}

/// Sets out the files of a text model as they are published: links, for the model is large.
fn published(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
    let model = folder.join("model.mlpackage");
    std::os::unix::fs::symlink(handbook().canonicalize().unwrap().join("handbook.mlpackage"), &model)
        .unwrap();
    for (name, content) in files {
        std::fs::write(folder.join(name), content).unwrap();
    }
    model
}

#[tokio::test]
async fn what_is_wrong_with_the_files_beside_a_model_is_said() {
    let client = ModelClient::builder().threads(1).build();
    let tokenizer = std::fs::read_to_string(handbook().join("tokenizer.json")).unwrap();
    let load = async |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        TextModel::load(&client, published(folder.path(), files).as_path()).await
    };
    let missing = load(&[]).await.unwrap_err();
    assert!(matches!(missing, TextError::Tokenizer(TokenizerError::Read { .. })), "{missing:?}");
    assert!(missing.to_string().contains("tokenizer.json"), "{missing}");
    let broken = load(&[("tokenizer.json", "{}")]).await.unwrap_err();
    assert!(matches!(broken, TextError::Tokenizer(TokenizerError::File { .. })), "{broken:?}");
    assert!(broken.to_string().contains("tokenizer.json is not"), "{broken}");
    let config = load(&[("tokenizer.json", &tokenizer), ("tokenizer_config.json", "[1")]).await.unwrap_err();
    assert!(matches!(config, TextError::TokenizerConfig { .. }), "{config:?}");
    let unknown = r#"{"eos_token": {"content": "</s>", "special": true}}"#;
    let unknown =
        load(&[("tokenizer.json", &tokenizer), ("tokenizer_config.json", unknown)]).await.unwrap_err();
    assert!(matches!(&unknown, TextError::UnknownToken { token } if token == "</s>"), "{unknown:?}");
    let template =
        load(&[("tokenizer.json", &tokenizer), ("chat_template.jinja", "{% for %}")]).await.unwrap_err();
    assert!(matches!(template, TextError::Template(_)), "{template:?}");

    // And what is right is used: the template of the configuration, with the tokens that it names.
    let config = r#"{"eos_token": "<|end|>", "bos_token": null,
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}]}"#;
    let model = load(&[("tokenizer.json", &tokenizer), ("tokenizer_config.json", config)]).await.unwrap();
    let few = Generation { most: 2, ..Generation::default() };
    let answer = model.chat(&[Message::user("Hi")], few).unwrap().complete().await.unwrap();
    let prompt = model.tokenizer().encode_bare("Hi<|end|>").unwrap().len();
    assert_eq!(answer.timings.prompt_tokens, prompt);

    // No tokenizer, no prompts; and a prompt that leaves no room.
    let bare = ModelClient::builder().threads(1).build();
    let model_ref = bare.load(handbook().join("handbook.mlpackage")).await.unwrap();
    let error = bare.enqueue_inference(PromptRequest::new(model_ref, "Hi")).await.unwrap_err();
    assert!(matches!(error, TextError::NotText { .. }), "{error:?}");
    let long = PromptRequest::new(model.model_ref(), "word ".repeat(2000));
    let error = client.enqueue_inference(long).await.unwrap_err();
    assert!(matches!(error, TextError::PromptTooLong { most: 1023, .. }), "{error:?}");
}
