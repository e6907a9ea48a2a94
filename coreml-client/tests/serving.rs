//! Models come, go, share memory and exclude each other: what the client does beyond a queue, on a bridge that obeys the test.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coreml_client::{
    Batching, ComputeUnit, Error, Features, InferenceRequest, LoadStage, MemoryPressure, ModelClient,
    ModelRef, ModelSource, ModelStats, Priority, Procedure, Serial, Shutdown, Stage, Tensor, WorkerState,
};
use coreml_testing::{FakeBridge, Outcome};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

fn request(model_ref: ModelRef, x: f32) -> InferenceRequest {
    InferenceRequest::new(model_ref, features(&[x]))
}

fn features(x: &[f32]) -> Features {
    Features::new().with("x", Tensor::from_vec(&[x.len()], x.to_vec()).unwrap())
}

fn client(fake: FakeBridge) -> ModelClient {
    ModelClient::builder().bridge(fake.bridge()).threads(1).build()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} never happened");
        sleep(Duration::from_millis(1)).await;
    }
}

async fn patiently<F: IntoFuture>(future: F) -> F::Output {
    timeout(PATIENCE, future.into_future()).await.expect("it hangs")
}

async fn finish(client: ModelClient, fake: FakeBridge) {
    let deadline = Instant::now() + PATIENCE;
    let report = client.shutdown(Shutdown::Drain { deadline }).await;
    assert_eq!(report.abandoned_threads, 0);
    let outcomes = client.stats().outcomes;
    assert_eq!(outcomes.submitted, outcomes.settled(), "{}", client.stats());
    assert_eq!(client.stats().models_total.memory, 0, "all memory was given back");
    fake.assert_clean();
}

fn spawned<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(future)
}

// ---- swap ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_takes_over_for_new_requests_and_the_old_version_serves_its_own() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let model_ref = client.load_model_async("old").await.unwrap();
    fake.predict_gate().close();
    let old = client.try_enqueue(request(model_ref, 1.0)).unwrap();
    let queued = client.try_enqueue(request(model_ref, 2.0)).unwrap();
    fake.predict_gate().await_waiting(1);
    assert_eq!(patiently(client.swap(model_ref, "new")).await.unwrap(), 2);
    let new = client.try_enqueue(request(model_ref, 3.0)).unwrap();
    fake.predict_gate().open();
    let versions = [patiently(old).await, patiently(queued).await, patiently(new).await];
    assert_eq!(versions.map(|result| result.unwrap().version), [1, 1, 2]);
    assert_eq!(fake.counts().live_models, 2, "the old one is kept");
    finish(client, fake).await;
}

#[tokio::test]
async fn a_rollback_goes_back_once_and_says_so_when_it_cannot() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let model_ref = client.load_model_async("old").await.unwrap();
    assert!(matches!(client.rollback(model_ref), Err(Error::NoRollback { .. })));
    assert_eq!(client.swap(model_ref, "new").await.unwrap(), 2);
    assert_eq!(client.rollback(model_ref).unwrap(), 1);
    assert_eq!(client.enqueue_inference(request(model_ref, 1.0)).await.unwrap().version, 1);
    assert_eq!(fake.counts().loads, 2, "the kept version was there");
    assert!(matches!(client.rollback(model_ref), Err(Error::NoRollback { .. })));
    assert_eq!(client.swap(model_ref, "newer").forget_old().await.unwrap(), 3);
    assert!(matches!(client.rollback(model_ref), Err(Error::NoRollback { .. })));
    eventually("the end of the old versions", || fake.counts().live_models == 1).await;
    finish(client, fake).await;
}

#[tokio::test]
async fn whatever_goes_wrong_in_a_swap_the_old_version_serves_on() {
    let fake = FakeBridge::builder().describe(|path| (path != "broken").then(|| DOUBLER.to_owned())).build();
    let client = client(fake);
    let model_ref = client.load_model_async("old").await.unwrap();
    let error = client.swap(model_ref, "broken").await.unwrap_err();
    assert!(matches!(&error, Error::Load { path, .. } if path.to_str() == Some("broken")), "{error}");
    let error = client.swap(model_ref, "new").check(|_| Err::<(), _>("worse than before")).await.unwrap_err();
    let Error::SwapRefused { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.to_string(), "worse than before");
    let panics = client.swap(model_ref, "new").check(|_| -> Result<(), &str> { panic!("in the check") });
    assert!(matches!(panics.await, Err(Error::WorkerPanicked { .. })));
    let cold = ModelSource::new("new").warm_up(Features::new().with("unknown", 1_i64));
    assert!(matches!(client.swap(model_ref, cold).await, Err(Error::SwapRefused { .. })));
    let foreign = ModelClient::builder().bridge(fake.bridge()).build();
    assert!(matches!(foreign.swap(model_ref, "new").await, Err(Error::ModelNotFound { .. })));
    assert_eq!(client.enqueue_inference(request(model_ref, 1.0)).await.unwrap().version, 1);
    let counts = client.stats().models_total;
    assert_eq!((counts.swaps_ok, counts.swaps_failed), (0, 4));
    eventually("the end of the refused versions", || fake.counts().live_models == 1).await;
    let passed = client.swap(model_ref, "new").check(|trial| {
        let y = trial.predict(features(&[4.0])).map_err(|error| error.to_string())?;
        let right = y.tensor("y").is_ok_and(|y| y.as_slice::<f32>().is_ok_and(|y| y == [8.0]));
        if right { Ok(()) } else { Err("wrong".to_owned()) }
    });
    // Refused versions have numbers, too: a number never stands for two.
    assert_eq!(passed.await.unwrap(), 6);
    finish(client, fake).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_swap_of_a_model_at_a_time_and_one_hung_swap_delays_no_other_model() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let a = client.load_model_async("a").await.unwrap();
    let b = client.load_model_async("b").await.unwrap();
    fake.predict_gate().close();
    let stuck = client.try_enqueue(request(a, 1.0)).unwrap();
    fake.predict_gate().await_waiting(1);
    assert_eq!(patiently(client.swap(a, "a2")).await.unwrap(), 2, "the stuck version is kept");
    let waiting = spawned(client.swap(a, "a3").into_future());
    eventually("the second swap's start", || {
        // It waits for the stuck version to end: two are alive at most.
        client.stats().models.iter().filter(|model| model.model_ref == a).count() == 2
    })
    .await;
    sleep(Duration::from_millis(20)).await;
    assert!(matches!(client.swap(a, "a4").await, Err(Error::SwapInProgress { .. })));
    assert_eq!(patiently(client.swap(b, "b2")).await.unwrap(), 2);
    assert!(fake.counts().live_models <= 4);
    fake.predict_gate().open();
    assert_eq!(patiently(waiting).await.unwrap().unwrap(), 3);
    patiently(stuck).await.unwrap();
    finish(client, fake).await;
}

#[tokio::test]
async fn a_swapped_model_is_found_by_its_new_source_and_not_by_its_old_one() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let model_ref = client.load_model_async("old").await.unwrap();
    client.swap(model_ref, "new").await.unwrap();
    assert_eq!(client.load("new").await.unwrap(), model_ref);
    assert_ne!(client.load("old").await.unwrap(), model_ref);
    finish(client, fake).await;
}

// ---- memory ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_recently_used_idle_model_makes_room_and_comes_back_under_its_reference() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(2).build();
    let load = |name: &'static str| client.load(ModelSource::new(name).memory(1));
    let (a, b) = (load("a").await.unwrap(), load("b").await.unwrap());
    let is_idle = |model: &ModelStats| model.workers[0].state == WorkerState::Idle;
    eventually("idleness", || client.stats().models.iter().all(is_idle)).await;
    client.enqueue_inference(request(a, 1.0)).await.unwrap();
    eventually("idleness", || client.stats().models.iter().all(is_idle)).await;
    let c = patiently(load("c")).await.unwrap();
    assert!(matches!(client.enqueue_inference(request(b, 1.0)).await, Err(Error::Evicted { .. })));
    for model_ref in [a, c] {
        client.enqueue_inference(request(model_ref, 1.0)).await.unwrap();
    }
    assert_eq!(patiently(load("b")).await.unwrap(), b);
    client.enqueue_inference(request(b, 1.0)).await.unwrap();
    assert_eq!(client.stats().models_total.evicted_for_room, 2);
    assert!(fake.counts().live_models <= 2);
    finish(client, fake).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_or_at_work_stays_and_the_load_waits_or_is_refused() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(2).build();
    let source = |name: &str| ModelSource::new(name).memory(1);
    let pinned = client.load_pinned(source("pinned")).await.unwrap();
    let busy = client.load(source("busy")).await.unwrap();
    fake.predict_gate().close();
    let stuck = client.try_enqueue(request(busy, 1.0)).unwrap();
    fake.predict_gate().await_waiting(1);
    let error = patiently(client.load(source("third").refuse_over_budget())).await.unwrap_err();
    assert!(matches!(error, Error::OverBudget { bytes: 1, budget: 2, .. }), "{error}");
    let load = client.load(source("third"));
    let stages = load.stages();
    let waiting = spawned(load);
    eventually("the wait for memory", || *stages.borrow() == LoadStage::Waiting).await;
    let error = client.load(ModelSource::new("giant").memory(3)).await.unwrap_err();
    assert!(matches!(error, Error::OverBudget { bytes: 3, .. }), "{error}");
    assert_eq!(fake.counts().live_models, 2);
    fake.predict_gate().open();
    patiently(stuck).await.unwrap();
    let third = patiently(waiting).await.unwrap().unwrap();
    assert!(matches!(client.pin(busy), Err(Error::Evicted { .. })));
    drop(client.pin(third).unwrap());
    client.enqueue_inference(request(pinned.model_ref(), 1.0)).await.unwrap();
    drop(pinned);
    finish(client, fake).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_pressure_evicts_half_or_all_and_refuses_loads_while_it_is_critical() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let mut models = Vec::new();
    for name in ["a", "b", "c", "d"] {
        models.push(client.load(ModelSource::new(name).memory(10)).await.unwrap());
    }
    let pinned = client.pin(models[0]).unwrap();
    let alive = || client.stats().models.iter().filter(|model| !model.evicted).count();
    eventually("idleness", || {
        client.stats().models.iter().all(|model| model.workers[0].state == WorkerState::Idle)
    })
    .await;
    client.set_memory_pressure(MemoryPressure::Warning);
    eventually("eviction", || alive() == 2 && fake.counts().live_models == 2).await;
    client.set_memory_pressure(MemoryPressure::Critical);
    eventually("eviction", || alive() == 1 && fake.counts().live_models == 1).await;
    assert!(matches!(client.load("e").await, Err(Error::MemoryPressure { .. })));
    client.enqueue_inference(request(pinned.model_ref(), 1.0)).await.unwrap();
    client.set_memory_pressure(MemoryPressure::Normal);
    assert_eq!(client.load(ModelSource::new("d").memory(10)).await.unwrap(), models[3]);
    assert_eq!(client.stats().models_total.evicted_under_pressure, 3);
    drop(pinned);
    finish(client, fake).await;
}

#[tokio::test]
async fn a_corrected_size_counts_from_then_on() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(10).build();
    let a = client.load(ModelSource::new("a").memory(4)).await.unwrap();
    let b = client.load(ModelSource::new("b").memory(4)).await.unwrap();
    eventually("idleness", || {
        client.stats().models.iter().all(|model| model.workers[0].state == WorkerState::Idle)
    })
    .await;
    let pinned = client.pin(b).unwrap();
    client.set_memory(b, 8).unwrap();
    eventually("eviction", || client.stats().models_total.memory == 8).await;
    assert!(matches!(client.enqueue_inference(request(a, 1.0)).await, Err(Error::Evicted { .. })));
    drop(pinned);
    finish(client, fake).await;
}

/// Until every thread of every model has nothing to do.
async fn at_rest(client: &ModelClient) {
    let at_rest =
        |model: &ModelStats| !matches!(model.workers[0].state, WorkerState::Building | WorkerState::Running);
    eventually("rest", || client.stats().models.iter().all(at_rest)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_under_a_budget_never_evicts_what_it_replaces() {
    let fake = FakeBridge::builder().describe(|path| (path != "broken").then(|| DOUBLER.to_owned())).build();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(4).build();
    let model_ref = client.load(ModelSource::new("old").memory(2)).await.unwrap();
    let other = client.load(ModelSource::new("other").memory(2)).await.unwrap();
    at_rest(&client).await;
    // It was used last, so the old version would go first.
    client.enqueue_inference(request(other, 1.0)).await.unwrap();
    at_rest(&client).await;
    let serves = async |version: u64| {
        let result = client.enqueue_inference(request(model_ref, 1.0)).await;
        assert_eq!(result.expect("it serves on").version, version);
        at_rest(&client).await;
    };
    // Old and new would never fit together, whoever else goes.
    let giant = patiently(client.swap(model_ref, ModelSource::new("giant").memory(3))).await;
    assert!(matches!(giant, Err(Error::OverBudget { bytes: 3, budget: 4, .. })), "{giant:?}");
    serves(1).await;
    let broken = patiently(client.swap(model_ref, ModelSource::new("broken").memory(2))).await;
    assert!(matches!(broken, Err(Error::Load { .. })), "{broken:?}");
    serves(1).await;
    assert!(matches!(client.enqueue_inference(request(other, 1.0)).await, Err(Error::Evicted { .. })));
    let swapped = patiently(client.swap(model_ref, ModelSource::new("new").memory(2))).await;
    assert_eq!(swapped.unwrap(), 3);
    serves(3).await;
    assert!(client.stats().models_total.memory <= 4);
    finish(client, fake).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_swaps_that_need_each_others_room_do_not_wait_for_each_other() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(4).build();
    let a = client.load(ModelSource::new("a").memory(2)).await.unwrap();
    let b = client.load(ModelSource::new("b").memory(2)).await.unwrap();
    at_rest(&client).await;
    let swaps = [(a, "a2"), (b, "b2")].map(|(model_ref, name)| {
        spawned(client.swap(model_ref, ModelSource::new(name).memory(1)).into_future())
    });
    for swap in swaps {
        assert_eq!(patiently(swap).await.unwrap().unwrap(), 2);
    }
    finish(client, fake).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_rather_be_refused_takes_the_room_that_those_in_the_line_cannot_use() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(4).build();
    let pinned = client.load_pinned(ModelSource::new("pinned").memory(2)).await.unwrap();
    let large = client.load(ModelSource::new("large").memory(3));
    let stages = large.stages();
    let waiting = spawned(large);
    eventually("the wait for memory", || *stages.borrow() == LoadStage::Waiting).await;
    sleep(Duration::from_millis(20)).await;
    // Pinned: the one in the line takes what is idle.
    let small = |name: &str| client.load_pinned(ModelSource::new(name).memory(1).refuse_over_budget());
    let pins = [patiently(small("one")).await.unwrap(), patiently(small("two")).await.unwrap()];
    assert!(matches!(small("three").await, Err(Error::OverBudget { .. })));
    drop((pinned, pins));
    patiently(waiting).await.unwrap().unwrap();
    finish(client, fake).await;
}

#[tokio::test]
async fn a_model_that_takes_no_memory_lives_like_any_other() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(10).build();
    let model_ref = client.load(ModelSource::new("a").memory(0)).await.unwrap();
    client.set_memory(model_ref, 3).unwrap();
    client.set_memory(model_ref, 0).unwrap();
    assert_eq!(client.stats().models_total.memory, 0);
    client.enqueue_inference(request(model_ref, 1.0)).await.unwrap();
    at_rest(&client).await;
    client.set_memory_pressure(MemoryPressure::Critical);
    eventually("eviction", || fake.counts().live_models == 0).await;
    assert!(matches!(client.set_memory(model_ref, 1), Err(Error::Evicted { .. })));
    finish(client, fake).await;
}

#[tokio::test]
async fn a_rollback_that_comes_too_late_loses_no_version() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let model_ref = client.load("old").await.unwrap();
    client.enqueue_inference(request(model_ref, 1.0)).await.unwrap();
    client.swap(model_ref, "new").await.unwrap();
    client.shutdown(Shutdown::Abort).await;
    let versions = client.stats().models.len();
    assert!(matches!(client.rollback(model_ref), Err(Error::ShutDown)));
    assert_eq!((client.stats().models.len(), client.stats().outcomes.ok), (versions, 1));
    finish(client, fake).await;
}

// ---- reservations, deadlines ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_is_a_place_in_the_line_and_survives_a_swap() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).max_queued(1).build();
    let model_ref = client.load_model_async("model").await.unwrap();
    let permit = client.reserve(model_ref, Priority::Normal, 8).await.unwrap();
    assert!(
        matches!(client.try_enqueue(request(model_ref, 1.0)), Err(refused) if matches!(refused.source, Error::QueueFull { .. }))
    );
    assert!(
        timeout(Duration::from_millis(20), client.reserve(model_ref, Priority::Normal, 8)).await.is_err()
    );
    let result = permit.enqueue(request(model_ref, 2.0)).unwrap().await.unwrap();
    assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [4.0]);

    let small = client.reserve(model_ref, Priority::High, 3).await.unwrap();
    let refused = small.enqueue(request(model_ref, 1.0)).unwrap_err();
    assert!(matches!(refused.source, Error::TooLarge { bytes: 4, limit: 3, .. }));

    let permit = client.reserve(model_ref, Priority::Normal, 8).await.unwrap();
    client.swap(model_ref, "new").forget_old().await.unwrap();
    assert_eq!(permit.enqueue(request(model_ref, 1.0)).unwrap().await.unwrap().version, 2);
    let permit = client.reserve(model_ref, Priority::Normal, 8).await.unwrap();
    client.unload(model_ref).unwrap();
    assert!(matches!(permit.enqueue(request(model_ref, 1.0)).unwrap().await, Err(Error::Unloaded { .. })));
    assert!(matches!(client.reserve(model_ref, Priority::Low, 1).await, Err(Error::Unloaded { .. })));
    finish(client, fake).await;
}

#[tokio::test]
async fn an_unload_serves_who_is_in_the_line_and_takes_back_what_is_only_reserved() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).max_queued(2).build();
    let model_ref = client.load("model").await.unwrap();
    fake.predict_gate().close();
    let running = client.try_enqueue(request(model_ref, 1.0)).unwrap();
    fake.predict_gate().await_waiting(1);
    let queued = client.try_enqueue(request(model_ref, 2.0)).unwrap();
    let permit = client.reserve(model_ref, Priority::Normal, 64).await.unwrap();
    let waiting = spawned(client.enqueue_inference(request(model_ref, 3.0)));
    let reserving = spawned(client.reserve(model_ref, Priority::Normal, 4));
    eventually("two wait for room", || client.stats().models[0].waiting == 2).await;
    client.unload(model_ref).unwrap();
    let late = client.enqueue_inference(request(model_ref, 4.0)).await;
    assert!(matches!(late, Err(Error::Unloaded { .. })), "{late:?}");
    let used = patiently(async { permit.enqueue(request(model_ref, 5.0)).unwrap().await }).await;
    assert!(matches!(used, Err(Error::Unloaded { .. })), "{used:?}");
    fake.predict_gate().open();
    assert!(patiently(running).await.is_ok());
    assert!(patiently(queued).await.is_ok());
    assert!(patiently(waiting).await.unwrap().is_ok(), "handed in before");
    let reserved = patiently(reserving).await.unwrap();
    assert!(matches!(reserved, Err(Error::Unloaded { .. })), "{reserved:?}");
    finish(client, fake).await;
}

#[tokio::test]
async fn the_models_own_timeout_goes_before_the_runtimes() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder()
        .bridge(fake.bridge())
        .threads(1)
        .default_timeout(Duration::from_secs(60))
        .build();
    let source = ModelSource::new("model").default_timeout(Duration::from_millis(5));
    let model_ref = client.load(source).await.unwrap();
    fake.predict_gate().close();
    let error = patiently(client.enqueue_inference(request(model_ref, 1.0))).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Running | Stage::Queued }), "{error}");
    fake.predict_gate().open();
    finish(client, fake).await;
}

#[tokio::test]
async fn a_hopeless_deadline_is_refused_at_admission_if_asked() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).refuse_hopeless().build();
    let model_ref = client.load_model_async("model").await.unwrap();
    fake.behave(|behaviour| behaviour.predict_delay = Duration::from_millis(30));
    client.enqueue_inference(request(model_ref, 1.0)).await.unwrap();
    fake.predict_gate().close();
    let ahead: Vec<_> = (0..4).map(|_| client.try_enqueue(request(model_ref, 1.0)).unwrap()).collect();
    fake.predict_gate().await_waiting(1);
    let refused = client.try_enqueue(request(model_ref, 1.0).timeout(Duration::from_millis(60))).unwrap_err();
    assert!(matches!(refused.source, Error::DeadlineExceeded { stage: Stage::Admission }));
    drop(client.try_enqueue(request(model_ref, 1.0).timeout(PATIENCE)).unwrap());
    fake.predict_gate().open();
    for future in ahead {
        patiently(future).await.unwrap();
    }
    finish(client, fake).await;
}

// ---- who predicts at the same time ----

/// A fake that counts how many predictions are under way at once, and the most there ever were.
fn crowd() -> (FakeBridge, Arc<AtomicUsize>) {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let fake = FakeBridge::builder().compute(move |_| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(3));
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(Features::new().with("y", Tensor::from_vec(&[1], vec![0.0_f32]).unwrap()))
    });
    (fake.build(), most)
}

async fn crowded(builder: coreml_client::ModelClientBuilder) -> usize {
    let (fake, most) = crowd();
    let client = builder.bridge(fake.bridge()).threads(2).build();
    let models = [client.load("a").await.unwrap(), client.load("b").await.unwrap()];
    let requests: Vec<_> =
        (0..40).map(|n| spawned(client.enqueue_inference(request(models[n % 2], 1.0)))).collect();
    for answer in requests {
        patiently(answer).await.unwrap().unwrap();
    }
    finish(client, fake).await;
    most.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_predictions_at_once_than_tokens() {
    assert!(crowded(ModelClient::builder()).await > 2, "without a limit they crowd");
    assert_eq!(crowded(ModelClient::builder().max_concurrent(ComputeUnit::NeuralEngine, 2)).await, 2);
    assert_eq!(crowded(ModelClient::builder().serialize(Serial::PerModel)).await, 2);
    assert_eq!(crowded(ModelClient::builder().serialize(Serial::PerProcess)).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_wait_for_a_token_end_with_their_model() {
    let fake = FakeBridge::new();
    let client =
        ModelClient::builder().bridge(fake.bridge()).threads(1).max_concurrent(ComputeUnit::Cpu, 1).build();
    let (a, b) = (client.load("a").await.unwrap(), client.load("b").await.unwrap());
    fake.predict_gate().close();
    let stuck = client.try_enqueue(request(a, 1.0)).unwrap();
    fake.predict_gate().await_waiting(1);
    let behind = client.try_enqueue(request(b, 1.0)).unwrap();
    let report = patiently(client.shutdown(Shutdown::Abort)).await;
    assert_eq!((report.abandoned_threads, report.closed), (1, 1));
    assert!(matches!(behind.await, Err(Error::ShutDown)));
    fake.predict_gate().open();
    patiently(stuck).await.unwrap();
    eventually("the end of the thread", || fake.counts().live_models == 0).await;
}

// ---- batches ----

#[tokio::test]
async fn a_batch_is_one_prediction_and_everybody_gets_his_own_rows() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let batching = Batching { max_batch: 4, max_delay: Duration::ZERO };
    let model_ref = client.load(ModelSource::new("model").batching(batching)).await.unwrap();
    fake.predict_gate().close();
    let first = client.try_enqueue(request(model_ref, 0.0)).unwrap();
    fake.predict_gate().await_waiting(1);
    let same: Vec<_> = (1..=5).map(|n| client.try_enqueue(request(model_ref, n as f32)).unwrap()).collect();
    let pair = client.try_enqueue(InferenceRequest::new(model_ref, features(&[6.0, 7.0]))).unwrap();
    fake.predict_gate().open();
    patiently(first).await.unwrap();
    for (n, answer) in same.into_iter().enumerate() {
        let result = patiently(answer).await.unwrap();
        assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [2.0 * (n + 1) as f32]);
    }
    let result = patiently(pair).await.unwrap();
    assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [12.0, 14.0]);
    // The first alone, four together, the fifth and the pair of another shape alone.
    assert_eq!(fake.counts().predictions, 4);
    finish(client, fake).await;
}

#[tokio::test]
async fn a_batch_that_fails_is_made_again_one_by_one() {
    let fake = FakeBridge::builder().compute(|inputs| {
        let x = inputs.tensor("x").unwrap().to_vec::<f32>().unwrap();
        if x.contains(&13.0) {
            return Err("thirteen".to_owned());
        }
        Ok(Features::new().with("y", Tensor::from_vec(&[x.len()], x).unwrap()))
    });
    let fake = fake.build();
    let client = client(fake);
    let batching = Batching { max_batch: 3, max_delay: PATIENCE };
    let model_ref = client.load(ModelSource::new("model").batching(batching)).await.unwrap();
    let answers: Vec<_> =
        [12.0, 13.0, 14.0].map(|x| client.try_enqueue(request(model_ref, x)).unwrap()).into_iter().collect();
    let mut ok = Vec::new();
    for answer in answers {
        ok.push(patiently(answer).await.is_ok());
    }
    assert_eq!(ok, [true, false, true]);
    finish(client, fake).await;
}

#[tokio::test]
async fn outputs_that_are_not_as_long_as_the_batch_are_not_parted() {
    // A sum over the first axis: a batch of it would be wrong.
    let fake = FakeBridge::builder().compute(|inputs| {
        let sum: f32 = inputs.tensor("x").unwrap().to_vec::<f32>().unwrap().iter().sum();
        Ok(Features::new().with("y", Tensor::from_vec(&[1], vec![sum]).unwrap()))
    });
    let fake = fake.build();
    let client = client(fake);
    let batching = Batching { max_batch: 2, max_delay: PATIENCE };
    let model_ref = client.load(ModelSource::new("model").batching(batching)).await.unwrap();
    let answers = [1.0, 2.0].map(|x| client.try_enqueue(request(model_ref, x)).unwrap());
    for (answer, x) in answers.into_iter().zip([1.0_f32, 2.0]) {
        let result = patiently(answer).await.unwrap();
        assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [x]);
    }
    finish(client, fake).await;
}

#[tokio::test]
async fn a_procedure_never_joins_a_batch() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let batching = Batching { max_batch: 2, max_delay: Duration::from_millis(20) };
    let model_ref = client.load(ModelSource::new("model").batching(batching)).await.unwrap();
    let mine = Procedure::new(|_, inputs| Ok(inputs.clone()));
    let answers = [request(model_ref, 1.0), request(model_ref, 2.0).procedure(mine), request(model_ref, 3.0)]
        .map(|request| client.try_enqueue(request).unwrap());
    let mut outputs = Vec::new();
    for answer in answers {
        let result = patiently(answer).await.unwrap().outputs;
        let (name, _) = result.iter().next().unwrap();
        outputs.push((name.to_owned(), result.tensor(name).unwrap().to_vec::<f32>().unwrap()[0]));
    }
    assert_eq!(outputs, [("y".to_owned(), 2.0), ("x".to_owned(), 2.0), ("y".to_owned(), 6.0)]);
    finish(client, fake).await;
}

// ---- after the end ----

#[tokio::test]
async fn after_a_shutdown_everything_says_so_of_every_model() {
    let fake = FakeBridge::new();
    let client = client(fake);
    let model_ref = client.load("model").await.unwrap();
    let gone = client.load("gone").await.unwrap();
    client.unload(gone).unwrap();
    client.shutdown(Shutdown::Drain { deadline: Instant::now() + PATIENCE }).await;
    for model_ref in [model_ref, gone, ModelRef::new()] {
        let told: [Result<(), Error>; 10] = [
            client.pin(model_ref).map(drop),
            client.description(model_ref).map(drop),
            client.attach(model_ref, Arc::new(1_u8)),
            client.attached::<u8>(model_ref).map(drop),
            client.set_memory(model_ref, 1),
            client.unload(model_ref),
            client.rollback(model_ref).map(drop),
            client.swap(model_ref, "new").await.map(drop),
            client.enqueue_inference(request(model_ref, 1.0)).await.map(drop),
            client.reserve(model_ref, Priority::Normal, 4).await.map(drop),
        ];
        assert!(told.iter().all(|told| matches!(told, Err(Error::ShutDown))), "{told:?}");
    }
    finish(client, fake).await;
}

#[tokio::test]
async fn unknown_unloaded_evicted_and_failed_models_are_told_apart() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let breaks = Arc::clone(&broken);
    let fake = FakeBridge::builder()
        .describe(move |_| (!breaks.load(Ordering::SeqCst)).then(|| DOUBLER.to_owned()))
        .build();
    let client = client(fake);
    let [unloaded, evicted, failed] =
        [client.load("a").await.unwrap(), client.load("b").await.unwrap(), client.load("c").await.unwrap()];
    client.unload(unloaded).unwrap();
    at_rest(&client).await;
    let pinned = client.pin(failed).unwrap();
    client.set_memory_pressure(MemoryPressure::Critical);
    drop(pinned);
    broken.store(true, Ordering::SeqCst);
    let bomb = request(failed, 1.0).procedure(Procedure::new(|_, _| panic!("injected")));
    drop(client.enqueue_inference(bomb).await);
    let ask = |model_ref| patiently(client.enqueue_inference(request(model_ref, 1.0)));
    assert!(matches!(ask(ModelRef::new()).await, Err(Error::ModelNotFound { .. })));
    assert!(matches!(ask(unloaded).await, Err(Error::Unloaded { .. })));
    assert!(matches!(ask(evicted).await, Err(Error::Evicted { .. })));
    assert!(matches!(ask(failed).await, Err(Error::ModelFailed { .. })));
    client.set_memory_pressure(MemoryPressure::Normal);
    finish(client, fake).await;
}

// ---- loads ----

#[tokio::test]
async fn a_load_tells_its_stages_to_everybody_who_waits() {
    let fake = FakeBridge::new();
    let client = client(fake);
    fake.load_gate().close();
    let source = ModelSource::new("model").warm_up(features(&[1.0]));
    let (first, second) = (client.load(source.clone()), client.load(source));
    let mut stages = [first.stages(), second.stages()];
    let loads = [spawned(first), spawned(second)];
    for stages in &mut stages {
        patiently(stages.wait_for(|stage| *stage == LoadStage::Loading)).await.unwrap();
    }
    fake.predict_gate().close();
    fake.load_gate().open();
    for stages in &mut stages {
        patiently(stages.wait_for(|stage| *stage == LoadStage::WarmingUp)).await.unwrap();
    }
    fake.predict_gate().open();
    for (load, stages) in loads.into_iter().zip(stages) {
        patiently(load).await.unwrap().unwrap();
        assert_eq!(*stages.borrow(), LoadStage::Ready);
    }
    assert_eq!((fake.counts().loads, fake.counts().predictions), (1, 1));
    finish(client, fake).await;
}

/// A machine that gives no more threads, in a process of its own: its threads ask for a larger stack than there is memory.
#[test]
fn without_a_thread_a_load_fails_and_the_next_one_may_try_again() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_threads", "--ignored", "--nocapture", "--test-threads=1"])
        .env("RUST_MIN_STACK", (1_u64 << 50).to_string())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
#[ignore = "the process of the test above"]
fn without_threads() {
    let fake = FakeBridge::new();
    let client = client(fake);
    for _ in 0..2 {
        let error = client.load_model("model").unwrap_err();
        let Error::Thread { source } = &error else { panic!("{error:?}") };
        assert!(source.raw_os_error().is_some(), "{source}");
    }
    let stats = client.stats();
    assert_eq!((stats.models.len(), stats.models_total.loads_failed, fake.counts().loads), (0, 2, 0));
    let report = pollster::block_on(client.shutdown(Shutdown::Abort));
    assert_eq!(report.abandoned_threads, 0);
}

#[tokio::test]
async fn a_warm_up_that_fails_fails_the_load_and_frees_it() {
    let fake = FakeBridge::builder().behave(|behaviour| behaviour.predict = Outcome::Panic).build();
    let client = client(fake);
    let error = client.load(ModelSource::new("model").warm_up(features(&[1.0]))).await.unwrap_err();
    assert!(matches!(error, Error::Predict { .. } | Error::WorkerPanicked { .. }), "{error}");
    eventually("the end of the model", || fake.counts().live_models == 0).await;
    finish(client, fake).await;
}

const DOUBLER: &str = r#"{
    "inputs": [{ "name": "x", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [] } }],
    "outputs": [{ "name": "y", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [] } }],
    "functions": ["main"], "function": "main"
}"#;
