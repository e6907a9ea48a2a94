//! What the client adds: a round trip against a bare channel, and N threads of predictions against direct calls on N threads.
//!
//! Both sides do the same prediction on the same bridge, so the ratio is the price of the client.

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use coreml_bridge::{Bridge, Config, Features, Tensor};
use coreml_client::{InferenceRequest, ModelClient};
use coreml_testing::FakeBridge;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tokio::sync::oneshot;

type Job = (Features, oneshot::Sender<Features>);

fn inputs() -> Features {
    Features::new().with("x", Tensor::from_vec(&[4], vec![1.0_f32, 2.0, 3.0, 4.0]).expect("four elements"))
}

/// Threads that each own the model and answer over a bare crossbeam channel.
fn bare_workers(bridge: Bridge, path: &Path, threads: usize) -> crossbeam_channel::Sender<Job> {
    let (sender, receiver) = crossbeam_channel::unbounded::<Job>();
    let config = Config { threads: std::num::NonZeroU32::new(1), ..Config::default() };
    for _ in 0..threads {
        let (receiver, path, config) = (receiver.clone(), path.to_owned(), config.clone());
        std::thread::spawn(move || {
            let handle = bridge.load(path, &config).expect("the model loads");
            for (features, reply) in receiver {
                // Nobody may be waiting any more.
                drop(reply.send(handle.predict(&features).expect("it predicts")));
            }
        });
    }
    sender
}

fn round_trip(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let fake = FakeBridge::new();
    let mut group = criterion.benchmark_group("round trip");

    let sender = bare_workers(fake.bridge(), Path::new("fake.mlmodel"), 1);
    group.bench_function("bare", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let (reply, answer) = oneshot::channel();
                sender.send((inputs(), reply)).expect("the worker lives");
                answer.await.expect("the worker answers")
            })
        });
    });

    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).build();
    let model_ref = client.load_model("fake.mlmodel").expect("the fake loads anything");
    group.bench_function("client", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let request = InferenceRequest::new(model_ref, inputs());
                client.enqueue_inference(request).await.expect("it predicts")
            })
        });
    });
    group.finish();
}

/// As many predictions as N threads can do: of a real model that takes a few hundredths of a millisecond, where every microsecond
/// of a hand-over shows, of arithmetic that takes about one, as small models do, and of a sentence encoder, where
/// `cargo xtask models` has brought it.
fn throughput(criterion: &mut Criterion) {
    let image = || Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64]).expect("64 pixels");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/digits-f32.mlpackage");
    let features = move || Features::new().with("image", image());
    compare(criterion, "throughput of 20 us", Bridge::platform(), &path, 64, &features);

    let arithmetic = FakeBridge::builder().compute(|_| {
        let sum = (0..200_000).fold(0.5_f32, |x, _| black_box(x.mul_add(0.999, 0.001)));
        Ok(Features::new().with("y", Tensor::from_vec(&[1], vec![sum]).expect("one element")))
    });
    let fake = arithmetic.build();
    compare(criterion, "throughput of 1 ms", fake.bridge(), Path::new("fake.mlmodel"), 8, &inputs);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/cache/minilm/minilm-f32.mlpackage");
    if path.exists() {
        let tokens = |first: i32| {
            Tensor::from_vec(&[1, 128], (0..128).map(|i| first + i).collect()).expect("128 tokens")
        };
        let ones = || Tensor::from_vec(&[1, 128], vec![1_i32; 128]).expect("128 ones");
        let features = move || Features::new().with("input_ids", tokens(2000)).with("attention_mask", ones());
        compare(criterion, "throughput of MiniLM", Bridge::platform(), &path, 4, &features);
    }
}

/// Direct calls on N threads, a bare channel with N threads, and the client with N threads.
fn compare(
    criterion: &mut Criterion,
    name: &str,
    bridge: Bridge,
    path: &Path,
    each: u64,
    features: &(impl Fn() -> Features + Sync),
) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut group = criterion.benchmark_group(name);
    for threads in [1_usize, 2] {
        group.bench_function(BenchmarkId::new("direct", threads), |bencher| {
            bencher.iter_custom(|rounds| direct(bridge, path, threads, rounds * each, features));
        });

        let sender = bare_workers(bridge, path, threads);
        group.bench_function(BenchmarkId::new("channel", threads), |bencher| {
            bencher.iter_custom(|rounds| {
                in_flight(&runtime, threads, rounds * each, || {
                    let (reply, answer) = oneshot::channel();
                    sender.send((features(), reply)).expect("the workers live");
                    async { drop(answer.await.expect("a worker answers")) }
                })
            });
        });

        let client = ModelClient::builder().bridge(bridge).threads(threads).intra_op_threads(1).build();
        let model_ref = client.load_model(path).expect("the model loads");
        group.bench_function(BenchmarkId::new("client", threads), |bencher| {
            bencher.iter_custom(|rounds| {
                in_flight(&runtime, threads, rounds * each, || {
                    let request = InferenceRequest::new(model_ref, features());
                    let answer = client.try_enqueue(request).expect("the queue has room");
                    async { drop(answer.await.expect("it predicts")) }
                })
            });
        });
    }
    group.finish();
}

/// The time of `count` jobs, with so many of them under way that no thread ever waits for the next. Whoever asks sleeps until half of
/// them are done and hands in as many again, as a program with a backlog would: on a machine without a core to spare for it, waking it
/// for each answer takes the time of predictions.
fn in_flight<F: Future<Output = ()>>(
    runtime: &tokio::runtime::Runtime,
    threads: usize,
    count: u64,
    mut start: impl FnMut() -> F,
) -> Duration {
    let most = 16 * threads;
    let begin = Instant::now();
    runtime.block_on(async {
        let mut waiting = VecDeque::new();
        for _ in 0..count {
            if waiting.len() == most {
                let mut oldest: Vec<F> = waiting.drain(..most / 2).collect();
                // The last first: when it is done, so are the others, or nearly.
                while let Some(job) = oldest.pop() {
                    job.await;
                }
            }
            waiting.push_back(start());
        }
        for job in waiting {
            job.await;
        }
    });
    begin.elapsed()
}

/// The same number of predictions, shared out among threads that do nothing else.
fn direct(
    bridge: Bridge,
    path: &Path,
    threads: usize,
    count: u64,
    features: &(impl Fn() -> Features + Sync),
) -> Duration {
    let ready = std::sync::Barrier::new(threads + 1);
    let config = Config { threads: std::num::NonZeroU32::new(1), ..Config::default() };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64)
            .map(|thread| {
                let (ready, config) = (&ready, &config);
                scope.spawn(move || {
                    let handle = bridge.load(path, config).expect("the model loads");
                    handle.predict(&features()).expect("it predicts");
                    ready.wait();
                    for _ in (thread..count).step_by(threads) {
                        handle.predict(&features()).expect("it predicts");
                    }
                })
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        for worker in workers {
            worker.join().expect("no worker panics");
        }
        start.elapsed()
    })
}

criterion_group!(benches, round_trip, throughput);
criterion_main!(benches);
