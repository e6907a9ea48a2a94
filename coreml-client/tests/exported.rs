//! What the metrics say adds up to what the statistics say, of versions that came and went between two publications, too.
//! One test: the recorder belongs to the process.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coreml_client::{Features, InferenceMessage, InferenceRequest, ModelClient, ModelRef, Procedure, Tensor};
use coreml_testing::FakeBridge;
use metrics::atomics::AtomicU64;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

type Cells = Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>;

/// Keeps counters and gauges by name and labels.
#[derive(Clone, Default)]
struct Kept {
    counters: Cells,
    gauges: Cells,
}

fn cell(cells: &Cells, key: &Key) -> Arc<AtomicU64> {
    let mut name = key.name().to_owned();
    for label in key.labels() {
        name += &format!(" {}={}", label.key(), label.value());
    }
    Arc::clone(cells.lock().unwrap().entry(name).or_default())
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(cell(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(cell(&self.gauges, key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

impl Kept {
    /// Over all keys that contain all of these.
    fn sum(&self, parts: &[&str]) -> u64 {
        let counters = self.counters.lock().unwrap();
        let chosen = counters.iter().filter(|(name, _)| parts.iter().all(|part| name.contains(part)));
        chosen.map(|(_, cell)| cell.load(std::sync::atomic::Ordering::Relaxed)).sum()
    }

    fn outcomes(&self) -> [u64; 6] {
        ["ok", "error", "cancelled", "expired", "rejected", "closed"]
            .map(|outcome| self.sum(&["coreml_requests_total", &format!("outcome={outcome} ")]))
    }

    /// Gauges that are not 0, but for those that only rise.
    fn raised(&self) -> Vec<String> {
        let gauges = self.gauges.lock().unwrap();
        let raised = gauges.iter().filter(|(name, cell)| {
            let value = f64::from_bits(cell.load(std::sync::atomic::Ordering::Relaxed));
            value != 0.0 && !name.starts_with("coreml_worker_busy_seconds")
        });
        raised.map(|(name, _)| name.clone()).collect()
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} never happened");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn request(model_ref: ModelRef) -> InferenceRequest {
    let x = Tensor::from_vec(&[1], vec![1.0_f32]).unwrap();
    InferenceRequest::new(model_ref, Features::new().with("x", x))
}

/// A runtime's life, as short as it gets; what it counted.
fn live(fake: FakeBridge) -> [u64; 6] {
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).max_queued(2).build();
    let a = client.load_model("a").unwrap();
    let b = client.load_model("b").unwrap();
    pollster::block_on(async {
        for _ in 0..3 {
            client.enqueue_inference(request(a)).await.unwrap();
        }
        client.swap(a, "a2").forget_old().await.unwrap();
        let bomb = request(a).procedure(Procedure::new(|_, _| panic!("injected")));
        assert!(client.enqueue_inference(bomb).await.is_err());
        assert!(client.enqueue_inference(request(a).deadline(Instant::now())).await.is_err());
        assert!(client.enqueue_inference(request(ModelRef::new())).await.is_err());
        fake.predict_gate().close();
        let running = client.try_enqueue(request(b)).unwrap();
        fake.predict_gate().await_waiting(1);
        let queued = [(); 2].map(|()| client.try_enqueue(request(b)).unwrap());
        assert!(client.try_enqueue(request(b)).is_err());
        drop(queued);
        fake.predict_gate().open();
        running.await.unwrap();
        client.unload(b).unwrap();
        let (message, _) = InferenceMessage::new(request(b));
        assert!(client.try_send(message).is_err());
    });
    let outcomes = client.stats().outcomes;
    assert_eq!(outcomes.in_flight(), 0);
    drop(client);
    eventually("the end of the models", || fake.counts().live_models == 0);
    let coreml_client::Outcomes { ok, error, cancelled, expired, rejected, closed, .. } = outcomes;
    [ok, error, cancelled, expired, rejected, closed]
}

#[test]
fn the_counters_add_up_to_the_statistics_and_the_gauges_of_what_is_gone_are_zero() {
    let kept = Kept::default();
    metrics::set_global_recorder(kept.clone()).unwrap();
    let mut all = [0; 6];
    for _ in 0..2 {
        let one = live(FakeBridge::new());
        assert!(one.iter().all(|count| *count > 0), "{one:?}");
        all = std::array::from_fn(|n| all[n] + one[n]);
    }
    eventually("the last word", || kept.outcomes() == all);
    eventually("the silence", || kept.raised().is_empty());
    assert_eq!(kept.sum(&["coreml_model_loads_total", "outcome=ok"]), 4, "two runtimes add up");
    assert_eq!(kept.sum(&["coreml_swaps_total", "outcome=ok"]), 2);

    // While a runtime lives on, what was unloaded falls silent with the next publication.
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).build();
    let model_ref = client.load_model("c").unwrap();
    let name = format!("model=c#{}", model_ref.as_u64());
    let raised = || kept.raised().iter().any(|gauge| gauge.contains(&name));
    eventually("a publication", raised);
    client.unload(model_ref).unwrap();
    eventually("the silence", || !raised());
}
