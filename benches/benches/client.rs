//! What the client adds: a round trip against a bare channel. Both sides do the same prediction on the same bridge, so the ratio is
//! the price of the client.

use std::path::Path;

use benches::{bare_workers, inputs};
use coreml_client::{InferenceRequest, ModelClient};
use coreml_testing::FakeBridge;
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::sync::oneshot;

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

criterion_group!(benches, round_trip);
criterion_main!(benches);
