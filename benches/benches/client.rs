//! What the client adds: a round trip against a bare channel, and N threads of predictions against direct calls on N threads.
//!
//! Both sides do the same prediction on the same bridge, so the ratio is the price of the client.

use std::path::{Path, PathBuf};
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

/// A thread that owns the model and answers over a bare crossbeam channel.
fn bare_worker(bridge: Bridge, path: PathBuf) -> crossbeam_channel::Sender<Job> {
    let (sender, receiver) = crossbeam_channel::unbounded::<Job>();
    std::thread::spawn(move || {
        let handle = bridge.load(path, &Config::default()).expect("the model loads");
        for (features, reply) in receiver {
            // Nobody may be waiting any more.
            drop(reply.send(handle.predict(&features).expect("it predicts")));
        }
    });
    sender
}

fn round_trip(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let fake = FakeBridge::new();
    let mut group = criterion.benchmark_group("round trip");

    let sender = bare_worker(fake.bridge(), "fake.mlmodel".into());
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

/// Predictions of a real model, as many as N threads can do.
fn throughput(criterion: &mut Criterion) {
    const EACH: u64 = 64;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/digits-f32.mlpackage");
    let image = || Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64]).expect("64 pixels");
    let features = move || Features::new().with("image", image());
    let bridge = Bridge::platform();
    let mut group = criterion.benchmark_group("throughput");
    for threads in [1_usize, 2] {
        group.bench_function(BenchmarkId::new("direct", threads), |bencher| {
            bencher.iter_custom(|rounds| direct(bridge, &path, threads, rounds * EACH, &features));
        });
        let client = ModelClient::builder().bridge(bridge).threads(threads).intra_op_threads(1).build();
        let model_ref = client.load_model(&path).expect("a committed model loads");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        group.bench_function(BenchmarkId::new("client", threads), |bencher| {
            bencher.iter_custom(|rounds| {
                let start = Instant::now();
                runtime.block_on(async {
                    let mut waiting = std::collections::VecDeque::new();
                    for _ in 0..rounds * EACH {
                        // Enough in the queue that no thread ever waits for this one.
                        if waiting.len() == 16 * threads {
                            let oldest: coreml_client::Inference = waiting.pop_front().expect("not empty");
                            oldest.await.expect("it predicts");
                        }
                        let request = InferenceRequest::new(model_ref, features());
                        waiting.push_back(client.try_enqueue(request).expect("the queue has room"));
                    }
                    for job in waiting {
                        job.await.expect("it predicts");
                    }
                });
                start.elapsed()
            });
        });
    }
    group.finish();
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
                    let handle = bridge.load(path, config).expect("a committed model loads");
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
