//! What a runtime has done, counted and measured.

use std::fmt;
use std::ops::{Add, AddAssign};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coreml_bridge::ModelRef;
use hdrhistogram::Histogram;

use crate::Priority;

/// What became of the requests, from their callers' point of view: each is counted once as submitted and once as
/// what its caller was told.
///
/// The law `submitted = ok + error + cancelled + expired + rejected + closed` holds exactly when no request is under
/// way; otherwise the difference is [`in_flight`](Self::in_flight).
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// # let client = coreml_client::ModelClient::builder().build();
/// # let model_ref = client.load(path).await?;
/// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
/// # let inputs = coreml_client::Features::new().with("image", image);
/// use coreml_client::InferenceRequest;
///
/// client.enqueue_inference(InferenceRequest::new(model_ref, inputs)).await?;
/// let outcomes = client.stats().outcomes;
/// assert_eq!((outcomes.submitted, outcomes.ok), (1, 1));
/// assert_eq!((outcomes.settled(), outcomes.in_flight()), (1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Outcomes {
    /// Requests that were handed in.
    pub submitted: u64,
    /// Answered with outputs.
    pub ok: u64,
    /// Answered with an error of the prediction, a contained panic included.
    pub error: u64,
    /// Given up by the caller before the answer.
    pub cancelled: u64,
    /// Past their deadline before the answer.
    pub expired: u64,
    /// Not let in: the queue was full, the inputs too large, or the model never heard of.
    pub rejected: u64,
    /// Answered that the model was unloaded, had failed, or the runtime was shut down.
    pub closed: u64,
}

impl Outcomes {
    /// Requests whose callers have had their answer, or have gone.
    ///
    /// ```
    /// let mut outcomes = coreml_client::Outcomes::default();
    /// (outcomes.submitted, outcomes.ok, outcomes.expired) = (5, 3, 1);
    /// assert_eq!(outcomes.settled(), 4);
    /// ```
    pub fn settled(&self) -> u64 {
        let Self { submitted: _, ok, error, cancelled, expired, rejected, closed } = self;
        ok + error + cancelled + expired + rejected + closed
    }

    /// Requests that somebody waits for.
    ///
    /// ```
    /// let mut outcomes = coreml_client::Outcomes::default();
    /// (outcomes.submitted, outcomes.ok) = (5, 3);
    /// assert_eq!(outcomes.in_flight(), 2);
    /// ```
    pub fn in_flight(&self) -> u64 {
        // Whoever looks for a mistake in the counts prints them: that must not fail on the mistake.
        self.submitted.saturating_sub(self.settled())
    }
}

impl AddAssign for Outcomes {
    fn add_assign(&mut self, other: Self) {
        let Self { submitted, ok, error, cancelled, expired, rejected, closed } = other;
        self.submitted += submitted;
        self.ok += ok;
        self.error += error;
        self.cancelled += cancelled;
        self.expired += expired;
        self.rejected += rejected;
        self.closed += closed;
    }
}

impl Add for Outcomes {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl std::iter::Sum for Outcomes {
    fn sum<I: Iterator<Item = Self>>(outcomes: I) -> Self {
        outcomes.fold(Self::default(), Self::add)
    }
}

/// A distribution of durations up to 1 h, to three digits or a nanosecond. Its size does not depend on how many it holds.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// # let client = coreml_client::ModelClient::builder().build();
/// # let model_ref = client.load(path).await?;
/// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
/// # let inputs = coreml_client::Features::new().with("image", image);
/// use std::time::Duration;
///
/// use coreml_client::{InferenceRequest, Latencies};
///
/// for _ in 0..10 {
///     client.enqueue_inference(InferenceRequest::new(model_ref, inputs.clone())).await?;
/// }
/// let mut latencies = client.stats().models[0].total_time.clone();
/// assert_eq!(latencies.count(), 10);
/// assert!(latencies.quantile(0.5) <= latencies.quantile(0.99) && latencies.mean() <= latencies.max());
/// latencies.merge(&client.stats().models[0].queue_time);
/// assert_eq!(latencies.count(), 20);
///
/// let mut others = Latencies::new();
/// others.record(Duration::from_millis(3));
/// assert!(others.quantile(0.5) >= Duration::from_millis(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, PartialEq)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    /// In nanoseconds: with a coarser unit, the three digits would begin only well above a microsecond.
    const LOW: u64 = 1;
    const HIGH: u64 = 3_600_000_000_000;

    /// None so far.
    ///
    /// ```
    /// assert!(coreml_client::Latencies::new().is_empty());
    /// ```
    pub fn new() -> Self {
        match Histogram::new_with_bounds(Self::LOW, Self::HIGH, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("the bounds are constants and valid: {error}"),
        }
    }

    /// Adds one; what is shorter than a nanosecond or longer than an hour counts as that.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut latencies = coreml_client::Latencies::new();
    /// latencies.record(Duration::from_millis(3));
    /// assert_eq!(latencies.count(), 1);
    /// ```
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(Self::HIGH);
        self.0.saturating_record(nanos.clamp(Self::LOW, Self::HIGH));
    }

    /// How many durations were recorded.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut latencies = coreml_client::Latencies::new();
    /// for millis in 1..=100 {
    ///     latencies.record(Duration::from_millis(millis));
    /// }
    /// assert_eq!(latencies.count(), 100);
    /// ```
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Whether none was recorded.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut latencies = coreml_client::Latencies::new();
    /// latencies.record(Duration::from_millis(3));
    /// assert!(!latencies.is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The duration that `quantile` (0 to 1) of all do not exceed; zero when nothing was recorded.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut latencies = coreml_client::Latencies::new();
    /// for millis in 1..=100 {
    ///     latencies.record(Duration::from_millis(millis));
    /// }
    /// let median = latencies.quantile(0.5).as_secs_f64();
    /// assert!((median - 0.050).abs() < 0.0001);
    /// ```
    pub fn quantile(&self, quantile: f64) -> Duration {
        if self.is_empty() {
            Duration::ZERO
        } else {
            Duration::from_nanos(self.0.value_at_quantile(quantile))
        }
    }

    /// The mean; zero when nothing was recorded.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut latencies = coreml_client::Latencies::new();
    /// for millis in 1..=100 {
    ///     latencies.record(Duration::from_millis(millis));
    /// }
    /// assert!((latencies.mean().as_secs_f64() - 0.0505).abs() < 0.0001);
    /// ```
    pub fn mean(&self) -> Duration {
        if self.is_empty() { Duration::ZERO } else { Duration::from_nanos(self.0.mean() as u64) }
    }

    /// The longest; zero when nothing was recorded.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut latencies = coreml_client::Latencies::new();
    /// for millis in 1..=100 {
    ///     latencies.record(Duration::from_millis(millis));
    /// }
    /// assert!(latencies.max() >= Duration::from_millis(100));
    /// ```
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Counts by upper bounds in nanoseconds, the bounds at most a sixteenth apart: so there are at most 31 below
    /// 32 ns and 16 for each of the 37 octaves above, however the durations lie.
    #[cfg(feature = "monitor")]
    pub(crate) fn buckets(&self) -> Vec<(u64, u64)> {
        let mut buckets: Vec<(u64, u64)> = Vec::new();
        for step in self.0.iter_recorded() {
            let (value, count) = (step.value_iterated_to().max(1), step.count_at_value());
            // All bits below the five highest are set.
            let bound = value | ((1 << value.ilog2().saturating_sub(4)) - 1);
            match buckets.last_mut() {
                Some((last, total)) if *last == bound => *total += count,
                _ => buckets.push((bound, count)),
            }
        }
        buckets
    }

    /// Adds all of `other`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut latencies = coreml_client::Latencies::new();
    /// for millis in 1..=100 {
    ///     latencies.record(Duration::from_millis(millis));
    /// }
    /// let mut all = latencies.clone();
    /// all.merge(&latencies);
    /// assert_eq!(all.count(), 200);
    /// ```
    pub fn merge(&mut self, other: &Self) {
        self.0 += &other.0;
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Latencies {
    /// As count, and mean, p50, p90, p99, p99.9 and max in seconds.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut out = serializer.serialize_struct("Latencies", 7)?;
        out.serialize_field("count", &self.count())?;
        out.serialize_field("mean", &self.mean().as_secs_f64())?;
        out.serialize_field("p50", &self.quantile(0.5).as_secs_f64())?;
        out.serialize_field("p90", &self.quantile(0.9).as_secs_f64())?;
        out.serialize_field("p99", &self.quantile(0.99).as_secs_f64())?;
        out.serialize_field("p999", &self.quantile(0.999).as_secs_f64())?;
        out.serialize_field("max", &self.max().as_secs_f64())?;
        out.end()
    }
}

/// The three distributions of one model, over the requests that were answered by a thread.
pub(crate) struct Recorder(Mutex<Recorded>);

#[derive(Clone)]
pub(crate) struct Recorded {
    pub(crate) queue: Latencies,
    pub(crate) predict: Latencies,
    pub(crate) total: Latencies,
}

impl Recorded {
    /// Small: it is not recorded to.
    #[cfg(feature = "metrics")]
    pub(crate) fn empty() -> Self {
        let empty = || match Histogram::new_with_bounds(1, 2, 0) {
            Ok(histogram) => Latencies(histogram),
            Err(error) => unreachable!("the bounds are constants and valid: {error}"),
        };
        Self { queue: empty(), predict: empty(), total: empty() }
    }
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Recorded {
            queue: Latencies::new(),
            predict: Latencies::new(),
            total: Latencies::new(),
        }))
    }

    pub(crate) fn record(&self, queue: Duration, predict: Duration) {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.queue.record(queue);
        recorded.predict.record(predict);
        recorded.total.record(queue + predict);
    }

    pub(crate) fn snapshot(&self) -> Recorded {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a thread of a model is doing.
///
/// See [`WorkerStats`] for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum WorkerState {
    /// Not started: there was never enough to do.
    Unstarted,
    /// Building its instance of the model, or waiting to try again.
    Building,
    /// Waiting for a request.
    Idle,
    /// Running a prediction.
    Running,
    /// Ended.
    Stopped,
}

impl WorkerState {
    pub(crate) const ALL: [Self; 5] =
        [Self::Unstarted, Self::Building, Self::Idle, Self::Running, Self::Stopped];
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unstarted => "unstarted",
            Self::Building => "building",
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

/// One inference thread.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// # let client = coreml_client::ModelClient::builder().build();
/// # let model_ref = client.load(path).await?;
/// use coreml_client::WorkerState;
///
/// let stats = client.stats();
/// let started = stats.models[0].workers.iter().filter(|worker| worker.state != WorkerState::Unstarted);
/// assert_eq!(started.count(), 1); // the one that loaded the model
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WorkerStats {
    /// What it is doing.
    pub state: WorkerState,
    /// Time spent in predictions that have returned.
    pub busy: Duration,
    /// Instances that it lost to panics.
    pub restarts: u64,
}

/// One model.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// # let client = coreml_client::ModelClient::builder().build();
/// # let model_ref = client.load(path).await?;
/// let model = &client.stats().models[0];
/// assert_eq!((model.model_ref, model.version, model.evicted), (model_ref, 1, false));
/// assert_eq!(model.depth, [0; 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ModelStats {
    /// The model.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_string"))]
    pub model_ref: ModelRef,
    /// Which version of it, counted from 1; more than one may be alive around a [swap](crate::ModelClient::swap).
    pub version: u64,
    /// Where it was loaded from.
    pub path: PathBuf,
    /// Bytes of the memory budget that it takes; 0 when its instances are gone.
    pub memory: usize,
    /// Whether it was taken out of memory to make room.
    pub evicted: bool,
    /// What became of its requests, by [`Priority`] in the order of [`Priority::ALL`].
    pub outcomes: [Outcomes; 3],
    /// Predictions that finished with nobody waiting any more; their requests count as cancelled or expired.
    pub detached: u64,
    /// Requests admitted and not started, by [`Priority`] in the order of [`Priority::ALL`].
    pub depth: [usize; 3],
    /// Places in the queue that callers hold for requests to come.
    pub reserved: usize,
    /// Input bytes of both.
    pub bytes: usize,
    /// Callers that wait for admission.
    pub waiting: usize,
    /// Predictions under way.
    pub running: usize,
    /// From the call to the start of the prediction.
    pub queue_time: Latencies,
    /// The prediction.
    pub predict_time: Latencies,
    /// Both together.
    pub total_time: Latencies,
    /// The inference threads.
    pub workers: Vec<WorkerStats>,
}

#[cfg(any(feature = "metrics", feature = "monitor"))]
impl ModelStats {
    /// The name of the file tells people which model it is, and the number tells apart those of one name.
    pub(crate) fn name(&self) -> String {
        model_name(self.model_ref, &self.path)
    }
}

#[cfg(any(feature = "metrics", feature = "monitor"))]
pub(crate) fn model_name(model_ref: ModelRef, path: &std::path::Path) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
    format!("{stem}#{}", model_ref.as_u64())
}

#[cfg(feature = "serde")]
fn as_string<S: serde::Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Loads, swaps and evictions of a runtime.
///
/// See [`ModelClient::stats`](crate::ModelClient::stats) for an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ModelCounts {
    /// Models that were loaded.
    pub loads_ok: u64,
    /// Loads that failed.
    pub loads_failed: u64,
    /// Evicted models that were asked for again before they were gone.
    pub revived: u64,
    /// Versions that were swapped in.
    pub swaps_ok: u64,
    /// Swaps that failed; the old version went on.
    pub swaps_failed: u64,
    /// Versions that were rolled back.
    pub rollbacks: u64,
    /// Models evicted to make room for others.
    pub evicted_for_room: u64,
    /// Models evicted under memory pressure.
    pub evicted_under_pressure: u64,
    /// Bytes of the memory budget in use, loads under way included.
    pub memory: usize,
}

/// A picture of a runtime; prints itself as a table.
///
/// ```
/// let stats = coreml_client::ModelClient::builder().build().stats();
/// assert_eq!(stats.outcomes.submitted, stats.outcomes.settled());
/// println!("{stats}");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// What became of all requests, those for unknown and for unloaded models included.
    pub outcomes: Outcomes,
    /// What became of loads and swaps, and of the memory budget.
    pub models_total: ModelCounts,
    /// The models that are loaded, or still finishing their last requests; in the order of loading.
    pub models: Vec<ModelStats>,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        outcomes_header(f, "requests")?;
        outcomes_row(f, "all", &self.outcomes)?;
        let ModelCounts {
            loads_ok,
            loads_failed,
            revived,
            swaps_ok,
            swaps_failed,
            rollbacks,
            evicted_for_room,
            evicted_under_pressure,
            memory,
        } = self.models_total;
        writeln!(
            f,
            "loads {loads_ok} ok, {loads_failed} failed, {revived} revived; swaps {swaps_ok} ok, {swaps_failed} failed, \
             {rollbacks} rolled back; evicted {evicted_for_room} for room, {evicted_under_pressure} under pressure; \
             memory {memory} bytes"
        )?;
        for model in &self.models {
            let state = if model.evicted { ", evicted" } else { "" };
            writeln!(
                f,
                "\n{} version {}{state} {} ({} bytes)",
                model.model_ref,
                model.version,
                model.path.display(),
                model.memory
            )?;
            outcomes_header(f, "  requests")?;
            for (priority, outcomes) in Priority::ALL.iter().zip(&model.outcomes) {
                if outcomes.submitted > 0 {
                    outcomes_row(f, &format!("  {priority}"), outcomes)?;
                }
            }
            let [high, normal, low] = model.depth;
            writeln!(
                f,
                "  queued {} (high {high}, normal {normal}, low {low}), reserved {}, {} bytes; waiting {}; running {}; detached {}",
                high + normal + low,
                model.reserved,
                model.bytes,
                model.waiting,
                model.running,
                model.detached
            )?;
            writeln!(
                f,
                "  {:<10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "latency", "count", "mean", "p50", "p90", "p99", "max"
            )?;
            for (name, latencies) in
                [("queue", &model.queue_time), ("predict", &model.predict_time), ("total", &model.total_time)]
            {
                writeln!(
                    f,
                    "  {name:<10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                    latencies.count(),
                    readable(latencies.mean()),
                    readable(latencies.quantile(0.5)),
                    readable(latencies.quantile(0.9)),
                    readable(latencies.quantile(0.99)),
                    readable(latencies.max())
                )?;
            }
            writeln!(f, "  {:<10} {:>10} {:>10} {:>10}", "worker", "state", "busy", "restarts")?;
            for (index, worker) in model.workers.iter().enumerate() {
                let WorkerStats { state, busy, restarts } = worker;
                writeln!(f, "  {index:<10} {state:>10} {:>10} {restarts:>10}", readable(*busy))?;
            }
        }
        Ok(())
    }
}

fn outcomes_header(f: &mut fmt::Formatter<'_>, title: &str) -> fmt::Result {
    writeln!(
        f,
        "{title:<12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "submitted", "ok", "error", "cancelled", "expired", "rejected", "closed", "in flight"
    )
}

fn outcomes_row(f: &mut fmt::Formatter<'_>, title: &str, outcomes: &Outcomes) -> fmt::Result {
    let Outcomes { submitted, ok, error, cancelled, expired, rejected, closed } = outcomes;
    writeln!(
        f,
        "{title:<12} {submitted:>10} {ok:>10} {error:>10} {cancelled:>10} {expired:>10} {rejected:>10} {closed:>10} {:>10}",
        outcomes.in_flight()
    )
}

/// Four digits and a unit.
fn readable(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_keep_three_digits_from_a_microsecond_to_an_hour() {
        for micros in [1_u64, 2, 10, 999, 12_345, 60_000_000, 3_600_000_000] {
            let mut latencies = Latencies::new();
            latencies.record(Duration::from_micros(micros));
            let error = latencies.quantile(0.5).as_secs_f64() / (micros as f64 * 1e-6) - 1.0;
            assert!(error.abs() <= 1e-3, "{micros} µs came back off by {error}");
        }
    }

    #[cfg(feature = "monitor")]
    #[test]
    fn buckets_hold_everything_within_a_sixteenth() {
        let mut latencies = Latencies::new();
        let mut value = 1_u64;
        while value < Latencies::HIGH {
            latencies.record(Duration::from_nanos(value));
            value += value.div_ceil(100);
        }
        let buckets = latencies.buckets();
        assert!(buckets.len() <= 31 + 37 * 16, "{} buckets", buckets.len());
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0), "{buckets:?}");
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), latencies.count());
        for value in [1, 15, 16, 17, 1_000, 123_456_789] {
            let mut one = Latencies::new();
            one.record(Duration::from_nanos(value));
            let [(bound, 1)] = one.buckets()[..] else { panic!("one bucket") };
            // The histogram itself rounds up to three digits.
            assert!(bound >= value && bound as f64 <= value as f64 * 1.064, "{value} is below {bound}");
        }
    }

    #[test]
    fn latencies_outside_the_range_count_as_its_bounds() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::MAX);
        assert_eq!(latencies.count(), 2);
        assert_eq!(latencies.quantile(0.0), Duration::from_nanos(1));
        assert!(latencies.max() >= Duration::from_secs(3_600));
        assert!(latencies.max() < Duration::from_secs(3_610));
    }

    #[test]
    fn durations_are_printed_with_a_unit_that_fits() {
        assert_eq!(readable(Duration::from_nanos(1_500)), "1.50 µs");
        assert_eq!(readable(Duration::from_micros(15_300)), "15.3 ms");
        assert_eq!(readable(Duration::from_secs(200)), "200 s");
    }
}
