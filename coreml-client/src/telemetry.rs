//! What the features `metrics` and `tracing` add. Without them the types here are empty and do nothing.
//!
//! Durations are recorded as they happen. Counters and gauges are published once a second, from the figures that are kept
//! anyway: so the way of a request is no longer for them, and what a scrape sees is consistent.

use std::time::Duration;

use coreml_bridge::ModelRef;

#[cfg(feature = "metrics")]
pub(crate) use on::{Told, VersionMetrics, begin, contained, loaded};

#[cfg(not(feature = "metrics"))]
pub(crate) use off::{VersionMetrics, begin, loaded};

#[cfg(not(feature = "metrics"))]
mod off {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::runtime::Runtime;

    pub(crate) struct VersionMetrics;

    impl VersionMetrics {
        pub(crate) fn new(_: ModelRef, _: u64, _: &Path) -> Self {
            Self
        }

        pub(crate) fn record(&self, _: Duration, _: Duration) {}
    }

    pub(crate) fn begin(_: &Arc<Runtime>) {}

    pub(crate) fn loaded(_: Duration) {}
}

#[cfg(feature = "metrics")]
mod on {
    use std::path::Path;
    use std::sync::{Arc, Weak};
    use std::time::Instant;

    use metrics::{Histogram, Label, counter, gauge, histogram};

    use super::*;
    use crate::runtime::Runtime;
    use crate::stats::{ModelCounts, ModelStats, WorkerState, model_name};
    use crate::timer::Timer;
    use crate::{MemoryPressure, Outcomes, Priority};

    const PERIOD: Duration = Duration::from_secs(1);

    fn labels(model: String, version: u64) -> [Label; 2] {
        [Label::new("model", model), Label::new("version", version.to_string())]
    }

    fn with(labels: &[Label; 2], key: &'static str, value: impl Into<metrics::SharedString>) -> Vec<Label> {
        let mut all = labels.to_vec();
        all.push(Label::new(key, value));
        all
    }

    /// The distributions of one version.
    pub(crate) struct VersionMetrics {
        queue: Histogram,
        predict: Histogram,
        request: Histogram,
    }

    impl VersionMetrics {
        pub(crate) fn new(model_ref: ModelRef, version: u64, path: &Path) -> Self {
            let labels = labels(model_name(model_ref, path), version).to_vec();
            Self {
                queue: histogram!("coreml_queue_duration_seconds", labels.clone()),
                predict: histogram!("coreml_predict_duration_seconds", labels.clone()),
                request: histogram!("coreml_request_duration_seconds", labels),
            }
        }

        pub(crate) fn record(&self, queue: Duration, predict: Duration) {
            self.queue.record(queue.as_secs_f64());
            self.predict.record(predict.as_secs_f64());
            self.request.record((queue + predict).as_secs_f64());
        }
    }

    pub(crate) fn loaded(took: Duration) {
        histogram!("coreml_model_load_duration_seconds").record(took.as_secs_f64());
    }

    /// Publishes once a second for as long as the runtime is there.
    pub(crate) fn begin(runtime: &Arc<Runtime>) {
        again(Arc::downgrade(runtime));
    }

    fn again(runtime: Weak<Runtime>) {
        let publish = move || {
            if let Some(strong) = runtime.upgrade() {
                contained(|| strong.publish_metrics());
                drop(strong);
                again(runtime);
            }
        };
        // Without a thread for the timer nothing is published; requests are served all the same.
        let _ = Timer::global().set(Instant::now() + PERIOD, Box::new(publish));
    }

    /// A recorder is code of others, and the timer's thread keeps the deadlines.
    pub(crate) fn contained(code: impl FnOnce()) {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(code)) {
            crate::error::panic_message(panic);
        }
    }

    /// What was published of a runtime's own figures: they have no label of the runtime, so several add up.
    #[derive(Default)]
    pub(crate) struct Told {
        models: ModelCounts,
        strays: [Outcomes; Priority::COUNT],
    }

    pub(crate) fn publish(
        told: &mut Told,
        counts: &ModelCounts,
        strays: &[Outcomes; Priority::COUNT],
        pressure: MemoryPressure,
        models: &[ModelStats],
        ended: &[ModelStats],
    ) {
        let ModelCounts {
            loads_ok,
            loads_failed,
            revived,
            swaps_ok,
            swaps_failed,
            rollbacks,
            evicted_for_room,
            evicted_under_pressure,
            memory: _,
        } = *counts;
        let before = std::mem::replace(&mut told.models, *counts);
        for (outcome, count, before) in [
            ("ok", loads_ok, before.loads_ok),
            ("error", loads_failed, before.loads_failed),
            ("revived", revived, before.revived),
        ] {
            counter!("coreml_model_loads_total", "outcome" => outcome).increment(count - before);
        }
        for (outcome, count, before) in [
            ("ok", swaps_ok, before.swaps_ok),
            ("error", swaps_failed, before.swaps_failed),
            ("rollback", rollbacks, before.rollbacks),
        ] {
            counter!("coreml_swaps_total", "outcome" => outcome).increment(count - before);
        }
        for (reason, count, before) in [
            ("room", evicted_for_room, before.evicted_for_room),
            ("pressure", evicted_under_pressure, before.evicted_under_pressure),
        ] {
            counter!("coreml_cache_evictions_total", "reason" => reason).increment(count - before);
        }
        let nowhere = labels("none".to_owned(), 0);
        for (priority, (now, before)) in Priority::ALL.into_iter().zip(strays.iter().zip(&mut told.strays)) {
            for (outcome, count, before) in
                [("rejected", now.rejected, before.rejected), ("closed", now.closed, before.closed)]
            {
                requests(&nowhere, outcome, priority).increment(count - before);
            }
            *before = *now;
        }
        gauge!("coreml_memory_pressure_level").set(f64::from(pressure as u8));
        for model in models {
            publish_model(model);
        }
        for model in ended {
            publish_model(model);
            silence(model);
        }
    }

    fn requests(labels: &[Label; 2], outcome: &'static str, priority: Priority) -> metrics::Counter {
        let mut all = with(labels, "outcome", outcome);
        all.push(Label::new("priority", priority.to_string()));
        counter!("coreml_requests_total", all)
    }

    /// Nothing is left of it that could go up or down; its counters keep what they say.
    fn silence(model: &ModelStats) {
        let labels = labels(model.name(), model.version);
        for priority in Priority::ALL {
            gauge!("coreml_queue_depth", with(&labels, "priority", priority.to_string())).set(0.0);
        }
        for name in ["coreml_queue_bytes", "coreml_inflight"] {
            gauge!(name, labels.to_vec()).set(0.0);
        }
        gauge!("coreml_model_memory_bytes", with(&labels, "kind", "budgeted")).set(0.0);
        for state in WorkerState::ALL {
            gauge!("coreml_workers", with(&labels, "state", state.to_string())).set(0.0);
        }
    }

    fn publish_model(model: &ModelStats) {
        let labels = labels(model.name(), model.version);
        for priority in Priority::ALL {
            let Outcomes { submitted: _, ok, error, cancelled, expired, rejected, closed } =
                model.outcomes[priority.index()];
            for (outcome, count) in [
                ("ok", ok),
                ("error", error),
                ("cancelled", cancelled),
                ("expired", expired),
                ("rejected", rejected),
                ("closed", closed),
            ] {
                requests(&labels, outcome, priority).absolute(count);
            }
            let depth = model.depth[priority.index()];
            gauge!("coreml_queue_depth", with(&labels, "priority", priority.to_string())).set(depth as f64);
        }
        gauge!("coreml_queue_bytes", labels.to_vec()).set(model.bytes as f64);
        gauge!("coreml_inflight", labels.to_vec()).set(model.running as f64);
        gauge!("coreml_model_memory_bytes", with(&labels, "kind", "budgeted")).set(model.memory as f64);
        let mut restarts = 0;
        for (index, worker) in model.workers.iter().enumerate() {
            restarts += worker.restarts;
            // Seconds have fractions, which the facade's counters cannot hold.
            gauge!("coreml_worker_busy_seconds", with(&labels, "worker", index.to_string()))
                .set(worker.busy.as_secs_f64());
        }
        counter!("coreml_worker_restarts_total", with(&labels, "cause", "panic")).absolute(restarts);
        for state in WorkerState::ALL {
            let count = model.workers.iter().filter(|worker| worker.state == state).count();
            gauge!("coreml_workers", with(&labels, "state", state.to_string())).set(count as f64);
        }
    }
}

#[cfg(feature = "metrics")]
pub(crate) use on::publish;

/// The span in which a request was made; it travels with the request.
#[derive(Clone)]
pub(crate) struct Context {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Context {
    pub(crate) fn current() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::Span::current(),
        }
    }

    /// Runs a prediction in a span below the request's.
    #[allow(unused_variables, reason = "without tracing nobody is told")]
    pub(crate) fn predict<T>(
        &self,
        model_ref: ModelRef,
        version: u64,
        worker: usize,
        batch: usize,
        code: impl FnOnce() -> T,
    ) -> T {
        #[cfg(feature = "tracing")]
        let _entered = tracing::info_span!(
            parent: &self.span,
            "coreml_predict",
            model = %model_ref,
            version,
            worker,
            batch
        )
        .entered();
        code()
    }
}

/// Something that happens to a model, for the log.
#[allow(unused_variables, reason = "without tracing nobody is told")]
pub(crate) fn event(what: &'static str, model_ref: ModelRef, error: Option<&crate::Error>) {
    #[cfg(feature = "tracing")]
    match error {
        None => tracing::info!(model = %model_ref, "{what}"),
        Some(error) => tracing::warn!(model = %model_ref, error = error as &dyn std::error::Error, "{what}"),
    }
}

/// A compiled model is used for the first time in this process: `"made"` for it, or `"found"` in the cache.
#[allow(unused_variables, reason = "without features nobody is told")]
pub(crate) fn compiled(source: &std::path::Path, outcome: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!("coreml_compiled_models_total", "outcome" => outcome).increment(1);
    #[cfg(feature = "tracing")]
    tracing::info!(path = %source.display(), "compiled model {outcome}");
}

/// The cache of compiled models could not be used; the model is loaded without it.
#[allow(unused_variables, reason = "without features nobody is told")]
pub(crate) fn cache_failed(source: &std::path::Path, error: &std::io::Error) {
    #[cfg(feature = "metrics")]
    metrics::counter!("coreml_compiled_models_total", "outcome" => "error").increment(1);
    #[cfg(feature = "tracing")]
    tracing::warn!(path = %source.display(), error = error as &dyn std::error::Error, "no cached model");
}
