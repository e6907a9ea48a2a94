//! What text costs: streaming against a bare loop of predictions, a token late in a text against an early one, and four texts at once
//! against the same one after another. On the language model of the repository, always the likeliest token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coreml_bridge::{Bridge, Config, CoreMlHandle, Features, PredictOptions, State, Tensor};
use coreml_client::ModelClient;
use coreml_text::{Generation, TextModel, TextStream};
use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::{StreamExt, future};

const TOKENS: usize = 64;

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/handbook/handbook.mlpackage")
}

/// Some beginning of a text, `count` tokens long; texts with different numbers share nothing.
fn prompt(count: usize, number: usize) -> Vec<u32> {
    (0..count).map(|i| u32::try_from(300 + (i * 37 + number * 611) % 3_500).expect("small")).collect()
}

fn generation(most: usize) -> Generation {
    Generation { most, ..Generation::default() }
}

/// Reads tokens and gives the likeliest next one, by one call of the bridge.
fn step(model: &CoreMlHandle, state: &mut State, tokens: &[u32], before: usize) -> u32 {
    let count = tokens.len();
    let all = before + count;
    let ids = tokens.iter().map(|token| token.cast_signed()).collect();
    let hidden = half::f16::MIN;
    let row = |i: usize| (0..all).map(move |j| if j <= before + i { half::f16::ZERO } else { hidden });
    let mask: Vec<half::f16> = (0..count).flat_map(row).collect();
    let inputs = Features::new()
        .with("inputIds", Tensor::from_vec(&[1, count], ids).expect("as many"))
        .with("causalMask", Tensor::from_vec(&[1, 1, count, all], mask).expect("as many"));
    let options = PredictOptions { state: Some(state), ..PredictOptions::default() };
    let outputs = model.predict_with(&inputs, options).expect("it predicts").outputs;
    let logits = outputs.tensor("logits").expect("the output");
    let vocabulary = *logits.shape().last().expect("a vector for each token");
    let logits = logits.to_vec::<f32>().expect("float32");
    let last = &logits[logits.len() - vocabulary..];
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a vocabulary");
    u32::try_from(best).expect("small")
}

fn direct(model: &CoreMlHandle, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut state = model.new_state().expect("it has states");
    let mut made = vec![step(model, &mut state, prompt, 0)];
    while made.len() < count {
        let before = prompt.len() + made.len() - 1;
        made.push(step(model, &mut state, &made[made.len() - 1..], before));
    }
    made
}

async fn streamed(mut stream: TextStream) -> Vec<u32> {
    let mut made = Vec::new();
    while let Some(piece) = stream.next().await {
        made.push(piece.expect("it goes on").token);
    }
    made
}

fn text(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let client = ModelClient::builder().threads(1).intra_op_threads(1).build();
    let model = runtime.block_on(TextModel::load(&client, package())).expect("it loads");
    let config = Config { threads: std::num::NonZeroU32::new(1), ..Config::default() };
    let handle = Bridge::platform().load(package(), &config).expect("it loads");
    // Less than what a memory is copied for, so that each text is read from its beginning on both sides.
    let short = prompt(8, 0);
    let stream = |prompt: &[u32], most| model.start(prompt.to_vec(), generation(most)).expect("it starts");
    assert_eq!(runtime.block_on(streamed(stream(&short, TOKENS))), direct(&handle, &short, TOKENS));

    let mut group = criterion.benchmark_group(format!("{TOKENS} tokens"));
    group.sample_size(20);
    group.bench_function("direct", |bencher| bencher.iter(|| direct(&handle, &short, TOKENS)));
    group.bench_function("streamed", |bencher| {
        bencher.iter(|| runtime.block_on(streamed(stream(&short, TOKENS))));
    });
    group.finish();

    // The same text: what it took until the last piece had arrived, against what the inference thread spent on it.
    let mut group = criterion.benchmark_group("streaming");
    group.sample_size(20);
    let complete = || runtime.block_on(stream(&short, TOKENS).complete()).expect("it goes on").timings;
    group.bench_function("bare", |bencher| {
        bencher.iter_custom(|rounds| {
            (0..rounds).map(|_| complete()).map(|timings| timings.prompt + timings.decode).sum()
        });
    });
    group.bench_function("streamed", |bencher| bencher.iter(complete));
    group.finish();

    // The inference thread's own time in making tokens, not in reading the prompt.
    let mut group = criterion.benchmark_group("a token");
    group.sample_size(20);
    for count in [16, 512] {
        let prompt = prompt(count, 1);
        group.bench_function(format!("after {count}"), |bencher| {
            bencher.iter_custom(|rounds| {
                const EACH: u32 = 16;
                let spent: Duration = (0..rounds)
                    .map(|_| {
                        let text = stream(&prompt, 1 + EACH as usize).complete();
                        runtime.block_on(text).expect("it goes on").timings.decode
                    })
                    .sum();
                spent / EACH
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("four texts");
    group.sample_size(20);
    let prompts: Vec<_> = (2..6).map(|number| prompt(8, number)).collect();
    group.bench_function("one after another", |bencher| {
        bencher.iter(|| {
            for prompt in &prompts {
                runtime.block_on(streamed(stream(prompt, TOKENS)));
            }
        });
    });
    group.bench_function("at once", |bencher| {
        bencher
            .iter(|| runtime.block_on(future::join_all(prompts.iter().map(|p| streamed(stream(p, TOKENS))))));
    });
    group.finish();
}

criterion_group!(benches, text);
criterion_main!(benches);
