//! The same requests under any executor: nothing here needs one in particular, nor its timer.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::future::Future;
use std::time::{Duration, Instant};

use coreml_client::{Error, Features, InferenceRequest, ModelClient, ModelRef, Priority, Shutdown, Tensor};
use coreml_testing::FakeBridge;

fn request(model_ref: ModelRef, x: f32) -> InferenceRequest {
    InferenceRequest::new(model_ref, Features::new().with("x", Tensor::from_vec(&[1], vec![x]).unwrap()))
}

/// Everything a client does that waits.
async fn everything() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).max_queued(2).build();
    let model_ref = client.load("model").await.unwrap();
    let result = client.enqueue_inference(request(model_ref, 1.0)).await.unwrap();
    assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [2.0]);
    let permit = client.reserve(model_ref, Priority::High, 16).await.unwrap();
    permit.enqueue(request(model_ref, 2.0)).unwrap().await.unwrap();
    assert_eq!(client.swap(model_ref, "new").await.unwrap(), 2);

    fake.predict_gate().close();
    let stuck = client.try_enqueue(request(model_ref, 3.0)).unwrap();
    fake.predict_gate().await_waiting(1);
    let start = Instant::now();
    let late = client.enqueue_inference(request(model_ref, 4.0).timeout(Duration::from_millis(20)));
    assert!(matches!(late.await, Err(Error::DeadlineExceeded { .. })));
    assert!(start.elapsed() >= Duration::from_millis(20));
    fake.predict_gate().open();
    stuck.await.unwrap();

    let deadline = Instant::now() + Duration::from_secs(30);
    let report = client.shutdown(Shutdown::Drain { deadline }).await;
    assert_eq!(report.abandoned_threads, 0);
    fake.assert_clean();
}

/// Fails rather than hangs.
fn within_a_minute(run: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        run();
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("it hangs, or has panicked");
}

fn is_send<F: Future + Send>(future: F) -> F {
    future
}

#[test]
fn tokio_on_several_threads() {
    within_a_minute(|| {
        // No timer, no I/O.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async { tokio::spawn(is_send(everything())).await.unwrap() });
    });
}

#[test]
fn tokio_on_one_thread() {
    within_a_minute(|| {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(everything());
    });
}

#[test]
fn smol() {
    within_a_minute(|| smol::block_on(smol::spawn(everything())));
}

#[test]
fn pollster() {
    within_a_minute(|| pollster::block_on(everything()));
}
