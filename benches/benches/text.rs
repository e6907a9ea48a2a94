//! What text costs: a token late in a text against an early one, and four texts at once against the same one after another. On the
//! language model of the repository, always the likeliest token.

use std::path::{Path, PathBuf};
use std::time::Duration;

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
    let stream = |prompt: &[u32], most| model.start(prompt.to_vec(), generation(most)).expect("it starts");
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
