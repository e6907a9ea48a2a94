//! What the features `metrics` and `tracing` tell, by name. One test: the recorder of `metrics` belongs to the process.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coreml_client::{CompiledCache, Features, InferenceRequest, ModelClient, ModelSource, Procedure, Tensor};
use coreml_testing::FakeBridge;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

const NAMES: [&str; 17] = [
    "coreml_requests_total",
    "coreml_queue_duration_seconds",
    "coreml_predict_duration_seconds",
    "coreml_request_duration_seconds",
    "coreml_queue_depth",
    "coreml_queue_bytes",
    "coreml_inflight",
    "coreml_worker_busy_seconds",
    "coreml_workers",
    "coreml_worker_restarts_total",
    "coreml_model_loads_total",
    "coreml_model_load_duration_seconds",
    "coreml_model_memory_bytes",
    "coreml_cache_evictions_total",
    "coreml_memory_pressure_level",
    "coreml_swaps_total",
    "coreml_compiled_models_total",
];

/// Remembers each prediction's span with the name of the one above it.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Spans {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map_or("nobody", |parent| parent.name());
        self.0.lock().unwrap().push(format!("{parent}/{}", span.name()));
    }
}

#[test]
fn every_metric_is_there_under_its_name_and_spans_travel_with_their_requests() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let spans = Spans::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(spans.clone())).unwrap();

    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).build();
    let model_ref = client.load_model("folder/doubler.mlpackage").unwrap();
    let request = || {
        let x = Tensor::from_vec(&[1], vec![1.0_f32]).unwrap();
        InferenceRequest::new(model_ref, Features::new().with("x", x))
    };
    pollster::block_on(async {
        for _ in 0..3 {
            let future = tracing::info_span!("mine").in_scope(|| client.try_enqueue(request()).unwrap());
            future.await.unwrap();
        }
        let panics = request().procedure(Procedure::new(|_, _| panic!("injected")));
        assert!(client.enqueue_inference(panics).await.is_err());
        client.swap(model_ref, ModelSource::new("doubler.mlpackage")).await.unwrap();
    });

    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.mlmodel");
    std::fs::write(&model, b"content").unwrap();
    let compiling = FakeBridge::builder()
        .compile(|source, folder| {
            let made = folder.join("model.mlmodelc");
            std::fs::copy(source, &made).map_err(|error| error.to_string())?;
            Ok(made)
        })
        .build();
    for _ in 0..2 {
        let cache = CompiledCache::new(folder.path().join("cache"));
        let client = ModelClient::builder().bridge(compiling.bridge()).compiled_cache(cache).build();
        client.load_model(&model).unwrap();
    }

    let mut seen: BTreeMap<String, f64> = BTreeMap::new();
    let mut labels = BTreeSet::new();
    let start = Instant::now();
    let ok = |version: &str| {
        format!(
            "coreml_requests_total model=doubler#{} version={version} outcome=ok priority=normal",
            model_ref.as_u64()
        )
    };
    // Published once a second.
    while seen.get(&ok("1")) != Some(&3.0) || !seen.contains_key(&ok("2")) {
        assert!(start.elapsed() < Duration::from_secs(30), "never published: {seen:#?}");
        std::thread::sleep(Duration::from_millis(50));
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let key = key.key();
            let mut name = key.name().to_owned();
            for label in key.labels() {
                labels.insert(label.key().to_owned());
                name += &format!(" {}={}", label.key(), label.value());
            }
            let value = match value {
                // The recorder forgets what it has told of.
                DebugValue::Counter(count) => (count as f64).max(seen.get(&name).copied().unwrap_or(0.0)),
                DebugValue::Gauge(value) => value.into_inner(),
                DebugValue::Histogram(values) => {
                    values.len() as f64 + seen.get(&name).copied().unwrap_or(0.0)
                }
            };
            seen.insert(name, value);
        }
    }
    let documented = include_str!("../../docs/monitoring.md");
    for name in NAMES {
        assert!(documented.contains(&format!("| `{name}` |")), "{name} is not in docs/monitoring.md");
        assert!(seen.keys().any(|key| key.split(' ').next() == Some(name)), "{name} is missing: {seen:#?}");
    }
    let known = ["model", "version", "outcome", "priority", "state", "worker", "cause", "kind", "reason"];
    assert!(labels.iter().all(|label| known.contains(&label.as_str())), "{labels:?}");
    let one = format!("model=doubler#{} version=1", model_ref.as_u64());
    assert_eq!(seen[&format!("coreml_predict_duration_seconds {one}")], 4.0);
    assert_eq!(seen[&format!("coreml_worker_restarts_total {one} cause=panic")], 1.0);
    assert_eq!(seen["coreml_swaps_total outcome=ok"], 1.0);
    let compiled =
        ["made", "found"].map(|outcome| seen[&format!("coreml_compiled_models_total outcome={outcome}")]);
    assert_eq!(compiled, [1.0, 1.0]);
    let spans = spans.0.lock().unwrap();
    assert_eq!(spans.iter().filter(|span| *span == "mine/coreml_predict").count(), 3, "{spans:?}");
}
