//! Whole texts, on a model whose next token depends on every token before it: whoever mixes up two texts, or forgets a token,
//! gets another text.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use coreml_bridge::{Features, Tensor};
use coreml_client::{ModelClient, ModelRef, Procedure};
use coreml_testing::FakeBridge;
use futures_util::StreamExt;
use futures_util::future::join_all;

use crate::model::{MEMORY, MOST_MEMORIES};
use crate::tokenizer::tests::bytes;
use crate::{
    Completion, Constraint, Embedder, FinishReason, Generation, Pooling, Sampling, TextError, TextModel,
};

const CONTEXT: usize = 256;
const VOCABULARY: usize = 257;

/// Logits after these tokens: mostly a letter, by a hash of all of them.
fn logits(tokens: &[i32]) -> Vec<f32> {
    let hash = tokens.iter().fold(7_u32, |h, &t| (h ^ t.cast_unsigned()).wrapping_mul(0x0100_0193));
    let favourite = b'a' as usize + (hash >> 8) as usize % 26;
    let mut logits: Vec<f32> =
        (0..VOCABULARY).map(|i| ((hash as usize + i * 31) % 97) as f32 / 97.0).collect();
    logits[favourite] = 8.0;
    logits
}

/// What the rule says the model goes on with.
fn expected(prompt: &str, count: usize) -> String {
    let mut tokens: Vec<i32> = prompt.bytes().map(i32::from).collect();
    for _ in 0..count {
        let logits = logits(&tokens);
        let best = (0..VOCABULARY).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        tokens.push(best as i32);
    }
    String::from_utf8(tokens[prompt.len()..].iter().map(|&t| t as u8).collect()).unwrap()
}

fn tensor(shape: &[usize], elements: Vec<f32>) -> Tensor {
    Tensor::from_vec(shape, elements).unwrap()
}

fn feature(name: &str, dtype: &str, shape: &[usize], ranges: Option<&[[i64; 2]]>) -> String {
    let flexible =
        ranges.map(|ranges| format!(r#", "flexible": {{"ranges": {ranges:?}}}"#)).unwrap_or_default();
    format!(
        r#"{{"name": "{name}", "kind": "tensor", "tensor": {{"dtype": "{dtype}", "shape": {shape:?}{flexible}}}}}"#
    )
}

fn description(inputs: &[String], outputs: &[String], states: &[String]) -> String {
    let [inputs, outputs, states] = [inputs, outputs, states].map(|list| list.join(", "));
    format!(r#"{{"inputs": [{inputs}], "outputs": [{outputs}], "states": [{states}]}}"#)
}

/// As Apple exports language models.
pub(crate) fn stateful() -> FakeBridge {
    let most = CONTEXT as i64;
    let json = description(
        &[
            feature("inputIds", "int32", &[1, 1], Some(&[[1, 1], [1, most]])),
            feature("causalMask", "float16", &[1, 1, 1, 1], Some(&[[1, 1], [1, 1], [1, most], [1, most]])),
        ],
        &[feature("logits", "float32", &[], None)],
        &[feature("keyCache", "float32", &[1, 1, 1, CONTEXT, 1], None)],
    );
    let compute = |inputs: &Features, states: &mut Features| {
        let ids = inputs.tensor("inputIds").map_err(|e| e.to_string())?.to_vec::<i32>().unwrap();
        let mask = inputs.tensor("causalMask").map_err(|e| e.to_string())?;
        let [_, _, rows, all] = *mask.shape() else { return Err("a mask of rank 4".into()) };
        let start = all - ids.len();
        let hidden = mask.cast(coreml_bridge::Dtype::Float32).to_vec::<f32>().unwrap();
        for (row, hidden) in hidden.chunks(all).enumerate() {
            let seen = hidden.iter().take_while(|&&x| x == 0.0).count();
            let rest = hidden.iter().skip(seen).all(|&x| x < -60_000.0);
            if rows != ids.len() || seen != start + row + 1 || !rest {
                return Err(format!("row {row} of the mask sees {seen} of {all}"));
            }
        }
        let mut cache = states.tensor("keyCache").map_err(|e| e.to_string())?.to_vec::<f32>().unwrap();
        for (slot, &id) in cache[start..].iter_mut().zip(&ids) {
            *slot = id as f32;
        }
        let read: Vec<i32> = cache[..all].iter().map(|&x| x as i32).collect();
        states.insert("keyCache", tensor(&[1, 1, 1, CONTEXT, 1], cache));
        Ok(Features::new().with("logits", tensor(&[1, 1, VOCABULARY], logits(&read))))
    };
    FakeBridge::builder().description(json).compute_with_states(compute).build()
}

/// A cache that goes in and out, and positions.
fn explicit() -> FakeBridge {
    let json = description(
        &[
            feature("input_ids", "int32", &[1, 1], Some(&[[1, 1], [1, 32]])),
            feature("position_ids", "int32", &[1, 1], Some(&[[1, 1], [1, 32]])),
            feature("k_cache_in", "float32", &[1, 1, CONTEXT, 1], None),
        ],
        &[
            feature("logits", "float32", &[], None),
            feature("k_cache_out", "float32", &[1, 1, CONTEXT, 1], None),
        ],
        &[],
    );
    let compute = |inputs: &Features| {
        let ids = inputs.tensor("input_ids").map_err(|e| e.to_string())?.to_vec::<i32>().unwrap();
        let positions = inputs.tensor("position_ids").map_err(|e| e.to_string())?.to_vec::<i32>().unwrap();
        let mut cache = inputs.tensor("k_cache_in").map_err(|e| e.to_string())?.to_vec::<f32>().unwrap();
        let mut rows = Vec::new();
        for (&id, &position) in ids.iter().zip(&positions) {
            cache[position as usize] = id as f32;
            let read: Vec<i32> = cache[..=position as usize].iter().map(|&x| x as i32).collect();
            rows.extend(logits(&read));
        }
        Ok(Features::new()
            .with("logits", tensor(&[1, ids.len(), VOCABULARY], rows))
            .with("k_cache_out", tensor(&[1, 1, CONTEXT, 1], cache)))
    };
    FakeBridge::builder().description(json).compute(compute).build()
}

/// All tokens every time, in a fixed length.
fn forgetful() -> FakeBridge {
    let json = description(
        &[
            feature("tokens", "int32", &[1, CONTEXT], None),
            feature("attention_mask", "int32", &[1, CONTEXT], None),
        ],
        &[feature("scores", "float32", &[], None)],
        &[],
    );
    let compute = |inputs: &Features| {
        let ids = inputs.tensor("tokens").map_err(|e| e.to_string())?.to_vec::<i32>().unwrap();
        let mask = inputs.tensor("attention_mask").map_err(|e| e.to_string())?.to_vec::<i32>().unwrap();
        let count = mask.iter().filter(|&&x| x == 1).count();
        let mut rows = vec![0.0; CONTEXT * VOCABULARY];
        rows[(count - 1) * VOCABULARY..count * VOCABULARY].copy_from_slice(&logits(&ids[..count]));
        Ok(Features::new().with("scores", tensor(&[1, CONTEXT, VOCABULARY], rows)))
    };
    FakeBridge::builder().description(json).compute(compute).build()
}

async fn model(fake: FakeBridge, threads: usize) -> (ModelClient, ModelRef, TextModel) {
    let client = ModelClient::builder().bridge(fake.bridge()).threads(threads).build();
    let model_ref = client.load_model_async("fake.mlpackage").await.unwrap();
    let text = TextModel::new(&client, model_ref, bytes(), &["<|end|>"]).unwrap();
    (client, model_ref, text)
}

fn most(most: usize) -> Generation {
    Generation { most, ..Generation::default() }
}

async fn complete(model: &TextModel, prompt: &str, generation: Generation) -> Completion {
    model.generate(prompt, generation).unwrap().complete().await.unwrap()
}

const PROMPT: &str = "A prompt of more than one chunk, so that it has to be read in pieces: a hundred characters and a few more.";

#[tokio::test]
async fn every_layout_gives_the_text_that_the_model_means() {
    for fake in [stateful(), explicit(), forgetful()] {
        let (_client, _, model) = model(fake, 1).await;
        let found = complete(&model, PROMPT, most(50)).await;
        assert_eq!(found.text, expected(PROMPT, 50), "{model:?}");
        assert_eq!((found.finish, found.tokens.len()), (FinishReason::Length, 50));
        assert_eq!((found.timings.prompt_tokens, found.timings.tokens), (PROMPT.len(), 50));
    }
}

#[tokio::test]
async fn texts_on_one_model_do_not_mix() {
    for threads in [1, 3] {
        let (_client, _, model) = model(stateful(), threads).await;
        let prompts = ["One", "Two", "One and more", "On"];
        let texts = join_all(prompts.map(|prompt| complete(&model, prompt, most(80)))).await;
        for (prompt, found) in prompts.iter().zip(texts) {
            assert_eq!(found.text, expected(prompt, 80), "{prompt} on {threads}");
        }
    }
}

#[tokio::test]
async fn what_was_read_is_not_read_again() {
    let fake = stateful();
    let (_client, _, model) = model(fake, 1).await;
    let first = complete(&model, PROMPT, most(10)).await;
    assert_eq!(first.timings.reused_tokens, 0);
    let other = format!("{} And on.", &PROMPT[..60]);
    let second = complete(&model, &other, most(10)).await;
    assert_eq!((second.timings.reused_tokens, second.text), (60, expected(&other, 10)));
    // The first text's memory is its own still.
    let longer = format!("{PROMPT}{}!", first.text);
    let third = complete(&model, &longer, most(10)).await;
    assert_eq!((third.timings.reused_tokens, third.text), (PROMPT.len() + 9, expected(&longer, 10)));
}

#[tokio::test]
async fn a_text_survives_the_loss_of_its_models_instance() {
    let (client, model_ref, model) = model(stateful(), 1).await;
    let mut stream = model.generate(PROMPT, most(60)).unwrap();
    let mut text = stream.next().await.unwrap().unwrap().text;
    let panics = Procedure::new(|_, _| panic!("on purpose"));
    let request = coreml_client::InferenceRequest::new(model_ref, Features::new()).procedure(panics);
    client.enqueue_inference(request).await.unwrap_err();
    while let Some(piece) = stream.next().await {
        text.push_str(&piece.unwrap().text);
    }
    assert_eq!(text, expected(PROMPT, 60));
}

#[tokio::test]
async fn a_stream_that_is_dropped_stops_within_one_token() {
    let fake = forgetful();
    let (client, _, model) = model(fake, 1).await;
    fake.behave(|behaviour| behaviour.predict_delay = Duration::from_millis(5));
    let mut stream = model.generate("Go on", most(200)).unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let then = fake.counts().predictions;
    tokio::time::sleep(Duration::from_millis(80)).await;
    assert!(fake.counts().predictions <= then + 1, "{} after {then}", fake.counts().predictions);
    assert_eq!(client.stats().models[0].running, 0);
}

#[tokio::test]
async fn a_text_ends_for_each_of_the_reasons() {
    let (_client, _, model) = model(stateful(), 1).await;
    let whole = expected("Why", 40);

    let stop = Generation { stop: vec![whole[10..13].into()], ..most(40) };
    let found = complete(&model, "Why", stop).await;
    let at = whole.find(&whole[10..13]).unwrap();
    assert_eq!((found.text.as_str(), found.finish), (&whole[..at], FinishReason::Stop));

    let token = u32::from(whole.as_bytes()[5]);
    let found = complete(&model, "Why", Generation { stop_tokens: vec![token], ..most(40) }).await;
    let at = whole.bytes().position(|b| u32::from(b) == token).unwrap();
    assert_eq!((found.text.as_str(), found.finish), (&whole[..at], FinishReason::Stop));

    let long = "x".repeat(CONTEXT - 5);
    let found = complete(&model, &long, most(40)).await;
    assert_eq!((found.text, found.finish), (expected(&long, 5), FinishReason::Context));

    let late = Generation { deadline: Some(Instant::now()), ..most(40) };
    let found = complete(&model, "Why", late).await;
    assert_eq!((found.text.as_str(), found.finish), ("", FinishReason::Deadline));

    let found = complete(&model, "Why", most(0)).await;
    assert_eq!((found.text.as_str(), found.finish), ("", FinishReason::Length));
}

#[tokio::test]
async fn a_constraint_is_kept_and_ends_the_text() {
    let (_client, _, model) = model(stateful(), 1).await;
    for seed in 0..20 {
        let generation = Generation {
            constraint: Some(Constraint::choice(["kept", "broken", "unclear"])),
            sampling: Sampling { seed: Some(seed), top_k: NonZeroUsize::new(50), ..Sampling::default() },
            ..most(40)
        };
        let found = complete(&model, "Verdict: ", generation).await;
        assert!(["kept", "broken", "unclear"].contains(&found.text.as_str()), "{found:?}");
        assert_eq!(found.finish, FinishReason::End);
    }
}

#[tokio::test]
async fn choices_have_the_models_own_probabilities() {
    let (_client, _, model) = model(stateful(), 1).await;
    let choices = ["yes", "no", "maybe"];
    let found = model.choose("Is it? ", &choices, &Generation::default()).await.unwrap();
    let score = |choice: &str| {
        let mut tokens: Vec<i32> = "Is it? ".bytes().map(i32::from).collect();
        choice.bytes().fold(0.0_f64, |sum, byte| {
            let logits = logits(&tokens);
            tokens.push(byte.into());
            let all: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            sum + f64::from(logits[byte as usize]) - all.ln()
        })
    };
    let weights = choices.map(|choice| score(choice).exp());
    let sum: f64 = weights.iter().sum();
    for (found, weight) in found.iter().zip(weights) {
        assert!((f64::from(*found) - weight / sum).abs() < 1e-4, "{found} for {}", weight / sum);
    }
}

#[tokio::test]
async fn choices_are_scored_alike_in_every_layout_and_the_prompt_is_read_once() {
    let long = "and so on ".repeat(4);
    let choices = ["1,", "10,", "11,", "a", "", long.as_str()];
    let mut answers = Vec::new();
    for (fake, chunk) in [(stateful(), 64), (explicit(), 32), (forgetful(), CONTEXT)] {
        let (_client, _, model) = model(fake, 1).await;
        answers.push(model.choose(PROMPT, &choices, &Generation::default()).await.unwrap());
        let again = choices.iter().map(|choice| choice.len().saturating_sub(1)).sum::<usize>();
        assert_eq!(fake.counts().predictions, PROMPT.len().div_ceil(chunk) + again, "{model:?}");
        // Not one copy of the memory: the one that there is goes back and forth.
        assert!(fake.counts().live_states <= 1, "{:?}", fake.counts());
        if chunk == 64 {
            // And whoever goes on from the prompt has it.
            let next = complete(&model, &format!("{PROMPT}10, and"), most(1)).await;
            assert_eq!(next.timings.reused_tokens, PROMPT.len() - 1);
            assert_eq!(fake.counts().live_states, 1);
        }
    }
    for other in &answers[1..] {
        assert!(answers[0].iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-6), "{answers:?}");
    }
    let (_client, _, model) = model(stateful(), 1).await;
    let nothing = model.choose("", &["yes"], &Generation::default()).await.unwrap_err();
    assert!(matches!(nothing, TextError::EmptyPrompt), "{nothing:?}");
}

#[tokio::test]
async fn a_choice_that_is_dropped_stops_within_one_token() {
    let fake = stateful();
    let (client, _, model) = model(fake, 1).await;
    fake.behave(|behaviour| behaviour.predict_delay = Duration::from_millis(5));
    let long = "x".repeat(100);
    let (options, choices) = (Generation::default(), [long.as_str(), "y"]);
    let dropped =
        tokio::time::timeout(Duration::from_millis(60), model.choose("Is it? ", &choices, &options)).await;
    assert!(dropped.is_err());
    let then = fake.counts().predictions;
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(fake.counts().predictions <= then + 1, "{} after {then}", fake.counts().predictions);
    assert_eq!(client.stats().models[0].running, 0);
}

#[tokio::test]
async fn a_long_choice_gives_others_their_turn() {
    let fake = stateful();
    let (_client, _, model) = model(fake, 1).await;
    fake.behave(|behaviour| behaviour.predict_delay = Duration::from_millis(2));
    let long = "x".repeat(200);
    let (options, choices) = (Generation::default(), [long.as_str(), "y"]);
    let mut choice = std::pin::pin!(model.choose("Is it? ", &choices, &options));
    let text = tokio::select! {
        biased;
        found = &mut choice => panic!("{found:?} before anyone else"),
        text = complete(&model, "A", most(2)) => text.text,
    };
    assert_eq!(text, expected("A", 2));
    assert!(choice.await.unwrap()[1] > 0.5);
}

#[tokio::test]
async fn texts_that_take_turns_keep_their_memories_as_far_as_there_is_room() {
    // A memory of the fake takes a kibibyte.
    let one = CONTEXT * size_of::<f32>();
    for (texts, bytes, reused) in
        [(12, MEMORY, true), (12, 12 * one, true), (12, 11 * one, false), (1, 0, true)]
    {
        let fake = stateful();
        let (_client, _, model) = model(fake, 1).await;
        let model = model.with_memory(bytes).unwrap();
        let prompts: Vec<String> =
            (b'a'..).map(|c| char::from(c).to_string().repeat(20)).take(texts).collect();
        for prompt in &prompts {
            complete(&model, prompt, most(1)).await;
        }
        assert!(fake.counts().live_states <= (bytes / one).clamp(1, MOST_MEMORIES), "{:?}", fake.counts());
        for prompt in &prompts {
            let again = complete(&model, prompt, most(1)).await;
            assert_eq!(again.timings.reused_tokens, if reused { 19 } else { 0 }, "{texts} in {bytes}");
            assert_eq!(again.text, expected(prompt, 1));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_runs() {
    let fake = stateful();
    let (client, model_ref, model) = model(fake, 1).await;
    let refused = |prompt: &str, generation| model.generate(prompt, generation).err();
    let error = refused(&"x".repeat(CONTEXT), most(1));
    assert!(matches!(error, Some(TextError::PromptTooLong { found: 256, most: 255 })), "{error:?}");
    assert!(matches!(refused("", most(1)), Some(TextError::EmptyPrompt)));
    let cold = Sampling { temperature: -1.0, ..Sampling::default() };
    let error = refused("x", Generation { sampling: cold, ..most(1) });
    assert!(matches!(error, Some(TextError::Sampling { .. })), "{error:?}");
    let regex = Generation { constraint: Some(Constraint::Regex("(".into())), ..most(1) };
    assert!(matches!(refused("x", regex), Some(TextError::Constraint(_))));
    assert!(matches!(model.chat(&[], most(1)).err(), Some(TextError::NoTemplate)));
    let error = TextModel::new(&client, model_ref, bytes(), &["</s>"]).unwrap_err();
    assert_eq!(error.to_string(), "the tokenizer knows no token `</s>`");
    assert_eq!(fake.counts().predictions, 0);
}

#[tokio::test]
async fn an_unknown_layout_says_what_is_missing() {
    let ids = || feature("ids", "int32", &[1, 1], Some(&[[1, 1], [1, 9]]));
    let logits = || feature("logits", "float32", &[], None);
    let cases = [
        (
            description(&[r#"{"name": "prompt", "kind": "string"}"#.to_owned()], &[logits()], &[]),
            "`prompt` is no tensor",
        ),
        (description(&[feature("x", "float32", &[1, 4], None)], &[logits()], &[]), "no input of tokens"),
        (description(&[feature("ids", "int32", &[4, 9], None)], &[logits()], &[]), "`ids` is a batch"),
        (
            description(
                &[ids()],
                &[feature("a", "float32", &[], None), feature("b", "float32", &[], None)],
                &[],
            ),
            "no output `logits`",
        ),
        (
            description(&[ids(), feature("style", "float32", &[1, 2, 3], None)], &[logits()], &[]),
            "no output replaces `style`",
        ),
        (
            description(&[ids()], &[logits()], &[feature("keyCache", "float32", &[1, 1, 1, 9, 1], None)]),
            "no input says how much has been read",
        ),
        (
            description(
                &[ids(), feature("attention_mask", "int32", &[1, 9], None)],
                &[logits()],
                &[feature("keyCache", "float32", &[1, 1, 1, 9, 1], None)],
            ),
            "nobody knows what `attention_mask` (int32 [1, 9]) hides of a memory",
        ),
    ];
    for (json, reason) in cases {
        let fake = FakeBridge::builder().description(json).build();
        let client = ModelClient::builder().bridge(fake.bridge()).build();
        let model_ref = client.load_model_async("fake.mlpackage").await.unwrap();
        let error = TextModel::new(&client, model_ref, bytes(), &[]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} does not say {reason}");
    }
}

/// A sentence encoder whose vector of a token is `[token, place]`, padding included, and as it is where `pooled`.
fn encoder(pooled: bool) -> FakeBridge {
    const LENGTH: usize = 8;
    let port = |name| feature(name, "int32", &[1, LENGTH], None);
    let output = if pooled { "sentence_embedding" } else { "last_hidden_state" };
    let shape: &[usize] = if pooled { &[1, 2] } else { &[1, LENGTH, 2] };
    let json = description(
        &[port("input_ids"), port("attention_mask"), port("token_type_ids")],
        &[feature(output, "float32", shape, None), feature("other", "float32", &[1], None)],
        &[],
    );
    let compute = move |inputs: &Features| {
        let get = |name| inputs.tensor(name).map(|t| t.to_vec::<i32>().unwrap()).map_err(|e| e.to_string());
        let (ids, mask, types) = (get("input_ids")?, get("attention_mask")?, get("token_type_ids")?);
        assert!(types.iter().all(|&of| of == 0) && mask.is_sorted_by(|a, b| a >= b));
        let rows: Vec<f32> = ids.iter().enumerate().flat_map(|(i, &id)| [id as f32, i as f32]).collect();
        let answer = if pooled { tensor(&[1, 2], vec![3.0, 4.0]) } else { tensor(&[1, LENGTH, 2], rows) };
        Ok(Features::new().with(output, answer).with("other", tensor(&[1], vec![0.0])))
    };
    FakeBridge::builder().description(json).compute(compute).build()
}

#[tokio::test]
async fn vectors_of_tokens_are_pooled_and_padding_does_not_count() {
    for (pooled, pooling, expected) in [
        (false, Pooling::Mean, vec![f32::from(b'b'), 1.0]),
        (false, Pooling::First, vec![f32::from(b'a'), 0.0]),
        (true, Pooling::Mean, vec![3.0, 4.0]),
    ] {
        let client = ModelClient::builder().bridge(encoder(pooled).bridge()).build();
        let model_ref = client.load_model_async("fake.mlpackage").await.unwrap();
        let embedder = Embedder::new(&client, model_ref, &bytes()).unwrap().pooling(pooling);
        let plain = embedder.clone().normalised(false).embed("abc").await.unwrap();
        assert_eq!((plain.vector.clone(), plain.tokens, plain.truncated), (expected, 3, false));
        let unit = embedder.embed("abc").await.unwrap();
        assert!((unit.similarity(&plain) - 1.0).abs() < 1e-6);
        assert!((unit.vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
        let long = embedder.embed("abcdefghijk").await.unwrap();
        assert_eq!((long.tokens, long.truncated), (8, true));
    }
}

#[tokio::test]
async fn what_is_no_sentence_encoder_says_what_is_missing() {
    let ids = || feature("ids", "int32", &[1, 8], None);
    let mask = || feature("mask", "int32", &[1, 8], None);
    let output = |name| feature(name, "float32", &[1, 2], None);
    for (inputs, outputs, part) in [
        (vec![feature("x", "float32", &[1, 8], None)], vec![output("y")], "no input of tokens"),
        (vec![ids()], vec![output("y")], "no mask says where"),
        (vec![ids(), mask(), feature("style", "float32", &[3], None)], vec![output("y")], "what `style`"),
        (vec![ids(), mask()], vec![output("y"), output("z")], "no output is known"),
    ] {
        let fake = FakeBridge::builder().description(description(&inputs, &outputs, &[])).build();
        let client = ModelClient::builder().bridge(fake.bridge()).build();
        let model_ref = client.load_model_async("fake.mlpackage").await.unwrap();
        let error = Embedder::new(&client, model_ref, &bytes()).unwrap_err();
        assert!(matches!(error, TextError::UnknownLayout(_)), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_vector_is_refused() {
    let json = description(
        &[feature("ids", "int32", &[1, 8], None), feature("mask", "int32", &[1, 8], None)],
        &[feature("y", "float32", &[], None)],
        &[],
    );
    let compute = |_: &Features| Ok(Features::new().with("y", tensor(&[2, 3], vec![0.0; 6])));
    let fake = FakeBridge::builder().description(json).compute(compute).build();
    let client = ModelClient::builder().bridge(fake.bridge()).build();
    let model_ref = client.load_model_async("fake.mlpackage").await.unwrap();
    let error = Embedder::new(&client, model_ref, &bytes()).unwrap().embed("abc").await.unwrap_err();
    assert_eq!(error.to_string(), "no embedding: `y` has the shape [2, 3], for 3 tokens");
}
