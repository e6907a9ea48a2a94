//! The eleven proofs of what the client promises, on the fake bridge. Each prints its figures and fails on its bound.
//!
//! As tests they are short and their bounds on time are generous; `cargo xtask prove` runs them at full length with the real
//! bounds, and `cargo xtask prove --mutants` shows that each fails when its mistake is planted.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::fs;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coreml_client::{
    Config, Error, Features, Inference, InferenceRequest, MemoryPressure, ModelClient, ModelRef, ModelSource,
    Priority, Procedure, Shutdown, Tensor, WorkerState,
};
use coreml_testing::FakeBridge;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Whether the real thing was asked for.
fn full() -> bool {
    std::env::var_os("COREML_PROOFS").is_some_and(|value| value == "full")
}

fn scaled<T>(short: T, long: T) -> T {
    if full() { long } else { short }
}

/// One proof at a time: they measure.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn features(len: usize) -> Features {
    Features::new().with("x", Tensor::from_vec(&[len], vec![1.0_f32; len]).unwrap())
}

fn request(model_ref: ModelRef) -> InferenceRequest {
    InferenceRequest::new(model_ref, features(1))
}

fn client(fake: FakeBridge) -> coreml_client::ModelClientBuilder {
    ModelClient::builder().bridge(fake.bridge()).threads(1)
}

/// Only what a test expects to panic panics quietly.
fn quiet_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().downcast_ref::<&str>().is_some_and(|text| text.contains("injected")) {
            before(info);
        }
    }));
}

fn bomb() -> Procedure {
    Procedure::new(|_, _| panic!("injected"))
}

/// Resident memory, where the system says.
/// `None` where it cannot be had, or says nothing: AddressSanitizer keeps what is freed.
fn rss() -> Option<usize> {
    if std::env::var_os("ASAN_OPTIONS").is_some() {
        return None;
    }
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    statm.split_whitespace().nth(1)?.parse::<usize>().ok().map(|pages| pages * 4096)
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

fn assert_settled(client: &ModelClient) {
    let stats = client.stats();
    assert_eq!(stats.outcomes.submitted, stats.outcomes.settled(), "{stats}");
    for model in &stats.models {
        assert_eq!((model.depth, model.bytes, model.waiting, model.reserved), ([0; 3], 0, 0, 0), "{stats}");
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

async fn patiently<F: IntoFuture>(future: F) -> F::Output {
    timeout(PATIENCE, future.into_future()).await.expect("a future hangs")
}

#[test]
fn worker_death() {
    let _alone = alone();
    quiet_panics();
    let rounds = scaled(100, 10_000);
    let fake = FakeBridge::new();
    let client = client(fake).max_queued(65).build();
    let model_ref = client.load_model("model").unwrap();
    let slowest = runtime().block_on(async {
        let mut slowest = Duration::ZERO;
        for _ in 0..rounds {
            let doomed = client.try_enqueue(request(model_ref).procedure(bomb())).unwrap();
            let queued: Vec<Inference> =
                (0..64).map(|_| client.try_enqueue(request(model_ref)).unwrap()).collect();
            let start = Instant::now();
            let all = async {
                assert!(matches!(doomed.await, Err(Error::WorkerPanicked { .. })));
                for future in queued {
                    future.await.expect("only the running job errs");
                }
            };
            timeout(scaled(PATIENCE / 10, Duration::from_secs(1)), all).await.expect("a future is pending");
            slowest = slowest.max(start.elapsed());
        }
        slowest
    });
    assert_settled(&client);
    println!(
        "worker death: {rounds} panics with 64 jobs queued, 0 futures pending, slowest round {slowest:.1?}"
    );
}

#[test]
fn stuck_worker() {
    let _alone = alone();
    let (stuck_for, bound) = scaled((300, 2_000), (10_000, 10));
    let (stuck_for, bound) = (Duration::from_millis(stuck_for), Duration::from_millis(bound));
    let fake = FakeBridge::new();
    let client = client(fake).max_queued(1_000).build();
    let model_ref = client.load_model("model").unwrap();
    fake.predict_gate().close();
    let stuck = client.try_enqueue(request(model_ref)).unwrap();
    fake.predict_gate().await_waiting(1);
    let start = Instant::now();
    let mut late = runtime().block_on(async {
        let mut jobs = JoinSet::new();
        for _ in 0..1_000 {
            let deadline = Instant::now() + Duration::from_millis(50);
            let future = client.try_enqueue(request(model_ref).deadline(deadline)).unwrap();
            jobs.spawn(async move {
                let error = future.await.unwrap_err();
                let late = deadline.elapsed();
                assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
                late
            });
        }
        let late = timeout(Duration::from_secs(5), jobs.join_all()).await.expect("deadlines while stuck");
        tokio::time::sleep(stuck_for.saturating_sub(start.elapsed())).await;
        late
    });
    late.sort_unstable();
    fake.predict_gate().open();
    runtime().block_on(patiently(stuck)).unwrap();
    let p99 = percentile(&late, 99);
    println!(
        "stuck worker: 1000 deadlines of 50 ms while stuck for {:.1?}: p99 late by {p99:.2?}",
        start.elapsed()
    );
    assert!(p99 <= bound, "p99 late by {p99:?}");
    assert_eq!(fake.counts().predictions, 1, "none may run later");
    assert_settled(&client);
}

#[test]
fn cancel() {
    let _alone = alone();
    let jobs = scaled(100, 1_000);
    let fake = FakeBridge::new();
    let client = client(fake).max_queued(jobs).max_queued_bytes((jobs + 1) * MIB).build();
    let model_ref = client.load_model("model").unwrap();
    fake.predict_gate().close();
    let stuck = client.try_enqueue(request(model_ref)).unwrap();
    fake.predict_gate().await_waiting(1);
    let before = rss();
    let futures: Vec<_> = (0..jobs)
        .map(|_| client.try_enqueue(InferenceRequest::new(model_ref, features(MIB / 4))).unwrap())
        .collect();
    assert_eq!(client.stats().models[0].bytes, jobs * MIB);
    let full_rss = rss();
    drop(futures);
    let model = &client.stats().models[0];
    assert_eq!((model.bytes, model.depth), (0, [0; 3]), "when drop returns");
    let after = rss();
    fake.predict_gate().open();
    runtime().block_on(patiently(stuck)).unwrap();
    assert_eq!(fake.counts().predictions, 1, "none may run");
    assert_settled(&client);
    let mib = |bytes: Option<usize>| bytes.map_or(0, |bytes| bytes / MIB);
    println!(
        "cancel: {jobs} jobs of 1 MiB: RSS {} MiB before, {} MiB queued, {} MiB after; 0 ran",
        mib(before),
        mib(full_rss),
        mib(after)
    );
    if let (Some(before), Some(after)) = (before, after) {
        assert!(after <= before + 10 * MIB, "RSS is not back");
    }
}

#[test]
fn overload() {
    let _alone = alone();
    const BYTES: usize = 4 * MIB;
    let (length, share, drift) = scaled((1_000, 0.2, 0.8), (20_000, 0.95, 0.1));
    let length = Duration::from_millis(length);
    let fake =
        FakeBridge::builder().behave(|behaviour| behaviour.predict_delay = Duration::from_millis(2)).build();
    let client = client(fake).max_queued(1_000).max_queued_bytes(BYTES).build();
    let model_ref = client.load_model("model").unwrap();
    let big = features(16_384);
    let offer = || InferenceRequest::new(model_ref, big.clone());
    let (most, goodput, after, refused, growth) = runtime().block_on(async {
        // As many as it can: always a few in the queue.
        let closed = async || {
            let before = client.stats().outcomes.ok;
            let start = Instant::now();
            let mut jobs = JoinSet::new();
            while start.elapsed() < length / 4 {
                while jobs.len() < 4 {
                    jobs.spawn(client.enqueue_inference(offer()));
                }
                jobs.join_next().await.unwrap().unwrap().unwrap();
            }
            (client.stats().outcomes.ok - before) as f64 / start.elapsed().as_secs_f64()
        };
        let most = closed().await;
        let memory = rss();
        let mut peak = memory;
        let before = client.stats().outcomes.ok;
        let start = Instant::now();
        let (mut offered, mut refused) = (0_u64, 0_u64);
        let mut jobs = JoinSet::new();
        while start.elapsed() < length {
            let due = (start.elapsed().as_secs_f64() * 10.0 * most) as u64;
            while offered < due {
                offered += 1;
                // A payload of its own, as from a network.
                let own = InferenceRequest::new(model_ref, features(16_384));
                match client.try_enqueue(own) {
                    Ok(future) => drop(jobs.spawn(future)),
                    Err(refusal) => {
                        assert!(matches!(refusal.source, Error::QueueFull { .. }));
                        refused += 1;
                    }
                }
            }
            peak = peak.max(rss());
            while jobs.try_join_next().is_some() {}
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let goodput = (client.stats().outcomes.ok - before) as f64 / start.elapsed().as_secs_f64();
        drop(jobs);
        let after = closed().await;
        (most, goodput, after, refused, peak.zip(memory).map(|(peak, before)| peak.saturating_sub(before)))
    });
    println!(
        "overload: 10 times {most:.0}/s for {length:.0?}: goodput {:.1} % of the maximum before ({after:.0}/s after), \
         {refused} refused, RSS grew {} MiB",
        100.0 * goodput / most,
        growth.unwrap_or(0) / MIB
    );
    // On a machine that changes its pace meanwhile the share would mean nothing.
    assert!((after / most - 1.0).abs() <= drift, "unloaded it did {most}/s before and {after}/s after");
    assert!(refused > 0 && goodput >= share * most, "goodput {goodput} of {most}");
    assert!(growth.unwrap_or(0) <= BYTES + 16 * MIB, "RSS grew by {growth:?}");
}

#[test]
fn starvation() {
    let _alone = alone();
    let dequeues = scaled(1_600, 16_000);
    let fake = FakeBridge::new();
    let client = client(fake).max_queued(96).max_queued_of(Priority::High, 32, MIB).max_queued_of(
        Priority::Low,
        32,
        MIB,
    );
    let client = client.build();
    let model_ref = client.load_model("model").unwrap();
    // What is offered is paced by what is served: two of High for each dequeue, one of Low for every fourth.
    let flood = Arc::new(Flood {
        client: client.clone(),
        model_ref,
        order: Mutex::default(),
        offered: [const { AtomicU64::new(0) }; 2],
        futures: Mutex::default(),
    });
    flood.offer(Priority::High);
    let start = Instant::now();
    while flood.order.lock().unwrap().len() < dequeues + 400 {
        assert!(start.elapsed() < PATIENCE, "it stands still");
        thread::sleep(Duration::from_millis(1));
    }
    // Both at one moment: nobody is served meanwhile, so nothing is offered.
    let (order, offered) = {
        let mut order = flood.order.lock().unwrap();
        let offered = flood.offered.each_ref().map(|count| count.load(Ordering::SeqCst) as f64);
        (std::mem::take(&mut *order), offered)
    };
    flood.futures.lock().unwrap().clear();
    let low = order[400..400 + dequeues].iter().filter(|priority| **priority == Priority::Low).count();
    let share = 100.0 * low as f64 / dequeues as f64;
    let [high, low] = offered.map(|offered| 100.0 * offered / order.len() as f64);
    println!(
        "starvation: Low got {share:.2} % of {dequeues} dequeues; offered were High {high:.0} % and Low {low:.0} % of capacity"
    );
    assert!((high - 200.0).abs() <= 2.0 && (low - 25.0).abs() <= 2.0, "offered High {high} %, Low {low} %");
    assert!((share - 12.5).abs() <= 1.0, "{share} %");
}

/// Whoever is served offers what comes next.
struct Flood {
    client: ModelClient,
    model_ref: ModelRef,
    order: Mutex<Vec<Priority>>,
    /// Of High and of Low, refused ones among them.
    offered: [AtomicU64; 2],
    futures: Mutex<Vec<Inference>>,
}

impl Flood {
    fn offer(self: &Arc<Self>, priority: Priority) {
        let flood = Arc::downgrade(self);
        let procedure = Procedure::new(move |_, _| {
            if let Some(flood) = flood.upgrade() {
                let served = {
                    let mut order = flood.order.lock().unwrap();
                    order.push(priority);
                    order.len()
                };
                flood.offer(Priority::High);
                flood.offer(Priority::High);
                if served.is_multiple_of(4) {
                    flood.offer(Priority::Low);
                }
            }
            Ok(Features::new())
        });
        self.offered[usize::from(priority == Priority::Low)].fetch_add(1, Ordering::SeqCst);
        let request = request(self.model_ref).priority(priority).procedure(procedure);
        // More than it can do: most of High is refused. The last few find the runtime gone.
        if let Ok(future) = self.client.try_enqueue(request) {
            self.futures.lock().unwrap().push(future);
        }
    }
}

#[test]
fn load_storm() {
    let _alone = alone();
    let attempts = Arc::new(AtomicU64::new(0));
    let fails = Arc::new(AtomicBool::new(false));
    let (count, failing) = (Arc::clone(&attempts), Arc::clone(&fails));
    let fake = FakeBridge::builder().describe(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        assert!(!failing.load(Ordering::SeqCst), "injected");
        Some(DOUBLER.to_owned())
    });
    let fake = fake.build();
    quiet_panics();
    let client = client(fake).build();
    let storm = async |half_way: bool| {
        fake.load_gate().close();
        let mut callers = JoinSet::new();
        let mut first = None;
        for n in 0..1_000 {
            let mut caller = Box::pin(client.load("model"));
            // All have asked before the load goes on.
            assert!(timeout(Duration::ZERO, &mut caller).await.is_err());
            if n == 0 {
                first = Some(caller);
                continue;
            }
            if n == 500 && half_way {
                drop(first.take());
            }
            callers.spawn(caller);
        }
        // Who was not dropped is awaited.
        if let Some(first) = first {
            callers.spawn(first);
        }
        fake.load_gate().await_waiting(1);
        fake.load_gate().open();
        patiently(callers.join_all()).await
    };
    runtime().block_on(async {
        let results = storm(true).await;
        let loaded: Vec<_> = results.into_iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(loaded.len(), 999, "all but the one that was dropped");
        assert!(loaded.iter().all(|model_ref| *model_ref == loaded[0]));
        let loads = fake.counts().loads;
        assert_eq!(loads, 1);
        attempts.store(0, Ordering::SeqCst);
        client.unload(loaded[0]).unwrap();
        fails.store(true, Ordering::SeqCst);
        let results = storm(false).await;
        let told = |result: &&Result<_, Error>| matches!(result, Err(Error::Load { .. } | Error::LoadPanicked { .. }));
        let errors = results.iter().filter(told).count();
        assert_eq!((errors, results.len()), (1_000, 1_000));
        let failed = attempts.swap(0, Ordering::SeqCst);
        assert_eq!(failed, 1);
        fails.store(false, Ordering::SeqCst);
        patiently(client.load("model")).await.unwrap();
        assert_eq!(fake.counts().loads, 2, "a failure is not remembered");
        println!(
            "load storm: 1000 callers, {loads} load, the first dropped, {} served; panicking: {failed} load, {errors} errors, \
             then loaded",
            loaded.len()
        );
    });
}

#[test]
fn swap() {
    let _alone = alone();
    let (swaps, bound) = scaled((50, 2_000), (1_000, 10));
    let fake = FakeBridge::new();
    let client = client(fake).build();
    let model_ref = client.load_model("model").unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let watching = Arc::clone(&over);
    let watch = thread::spawn(move || {
        let (mut most, mut samples) = (0, 0_u64);
        while !watching.load(Ordering::SeqCst) {
            most = most.max(fake.counts().live_models);
            samples += 1;
            thread::sleep(Duration::from_micros(20));
        }
        (most, samples)
    });
    runtime().block_on(async {
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            let (client, over) = (client.clone(), Arc::clone(&over));
            callers.spawn(async move {
                let (mut served, mut last) = (0_u64, 0);
                while !over.load(Ordering::SeqCst) {
                    let future = client.try_enqueue(request(model_ref)).expect("no request is refused by a swap");
                    let version = future.await.expect("no request fails by a swap").version;
                    assert!(version >= last, "{version} after {last}");
                    last = version;
                    served += 1;
                }
                served
            });
        }
        let mut strict = 0;
        let mut number = 1;
        for _ in 0..swaps {
            // While one stands at the gate, whatever was handed in behind it before the swap has yet to be served.
            let gate = Arc::new(AtomicBool::new(false));
            let held = Arc::clone(&gate);
            let stands = Procedure::new(move |_, inputs| {
                while !held.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_micros(20));
                }
                Ok(inputs.clone())
            });
            let hand_in = |request: InferenceRequest| client.try_enqueue(request).expect("there is room");
            let mut handed_in = vec![(number, hand_in(request(model_ref).procedure(stands)))];
            handed_in.extend((0..4).map(|_| (number, hand_in(request(model_ref)))));
            number = patiently(client.swap(model_ref, "model")).await.unwrap();
            handed_in.extend((0..4).map(|_| (number, hand_in(request(model_ref)))));
            gate.store(true, Ordering::SeqCst);
            for (submitted, future) in handed_in {
                let served = patiently(future).await.expect("no request fails by a swap").version;
                assert_eq!(served, submitted, "the version is chosen at the hand-in");
                strict += 1;
            }
        }
        over.store(true, Ordering::SeqCst);
        let served: u64 = patiently(callers.join_all()).await.into_iter().sum();
        let (most, samples) = watch.join().unwrap();
        assert_settled(&client);
        assert!(most <= 2, "{most} versions lived");

        let other = client.load("other").await.unwrap();
        let time = async || {
            let mut times = Vec::new();
            for _ in 0..10 {
                let start = Instant::now();
                patiently(client.swap(other, "other")).await.unwrap();
                times.push(start.elapsed());
            }
            times.into_iter().max().unwrap()
        };
        let free = time().await;
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let held = Arc::clone(&gate);
        let stuck = Procedure::new(move |_, inputs| {
            while held.available_permits() == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(inputs.clone())
        });
        let stuck = client.try_enqueue(request(model_ref).procedure(stuck)).unwrap();
        patiently(client.swap(model_ref, "model")).await.unwrap();
        let blocked = time().await;
        gate.add_permits(1);
        patiently(stuck).await.unwrap();
        println!(
            "swap: {swaps} swaps, {served} requests, 0 errors, {strict} of {strict} served by the version they were handed in to, \
             at most {most} alive in {samples} samples; with a job stuck on A the slowest of 10 swaps of B took {blocked:.1?} \
             (free {free:.1?})"
        );
        assert!(blocked <= free + Duration::from_millis(bound), "{blocked:?} against {free:?}");
    });
}

#[test]
fn cache() {
    let _alone = alone();
    let fake = FakeBridge::new();
    let client = client(fake).memory_budget(4).build();
    let over = Arc::new(AtomicBool::new(false));
    let watching = Arc::clone(&over);
    let counts = client.clone();
    let watch = thread::spawn(move || {
        let (mut most, mut reserved, mut samples) = (0, 0, 0_u64);
        while !watching.load(Ordering::SeqCst) {
            most = most.max(fake.counts().live_models);
            // Each takes one byte, from the moment in which its load begins.
            reserved = reserved.max(counts.stats().models_total.memory);
            samples += 1;
            thread::yield_now();
        }
        (most, reserved, samples)
    });
    runtime().block_on(async {
        let mut tasks = JoinSet::new();
        for n in 0..16 {
            let client = client.clone();
            tasks.spawn(async move {
                let source = ModelSource::new(format!("model-{n}")).memory(1);
                let pinned = client.load_pinned(source).await.unwrap();
                client.enqueue_inference(request(pinned.model_ref())).await.unwrap();
                pinned
            });
        }
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(patiently(tasks.join_next()).await.unwrap().unwrap());
        }
        assert!(timeout(Duration::from_millis(100), tasks.join_next()).await.is_err(), "12 must wait");
        let refused = client.load(ModelSource::new("another").memory(1).refuse_over_budget()).await;
        assert!(matches!(refused, Err(Error::OverBudget { .. })));
        // One by one the others get their turn.
        for _ in 0..12 {
            drop(held.pop());
            held.push(patiently(tasks.join_next()).await.unwrap().unwrap());
        }
    });
    over.store(true, Ordering::SeqCst);
    let (most, reserved, samples) = watch.join().unwrap();
    println!(
        "cache: budget 4, 16 holders: 4 held, 12 waited, at most {most} alive and {reserved} alive or loading in {samples} samples"
    );
    assert!(most <= 4 && reserved <= 4, "{most} models were alive, {reserved} with those that were loading");
}

#[test]
fn shutdown() {
    let _alone = alone();
    let bound = Duration::from_millis(scaled(2_000, 10));
    let slow = || {
        FakeBridge::builder().behave(|behaviour| behaviour.predict_delay = Duration::from_millis(2)).build()
    };
    runtime().block_on(async {
        let fake = slow();
        let draining = client(fake).max_queued(500).build();
        let model_ref = draining.load("model").await.unwrap();
        let jobs: Vec<_> = (0..500).map(|_| draining.try_enqueue(request(model_ref)).unwrap()).collect();
        let report = draining.shutdown(Shutdown::Drain { deadline: Instant::now() + PATIENCE }).await;
        let mut ok = 0;
        for job in jobs {
            ok += u64::from(job.await.is_ok());
        }
        assert_eq!((ok, report.closed, report.abandoned_threads), (500, 0, 0), "a drain serves all");

        let fake = slow();
        let aborted = client(fake).max_queued(500).stop_grace(Duration::from_millis(50)).build();
        let model_ref = aborted.load("model").await.unwrap();
        fake.predict_gate().close();
        let stuck = aborted.try_enqueue(request(model_ref)).unwrap();
        fake.predict_gate().await_waiting(1);
        let jobs: Vec<_> = (0..399).map(|_| aborted.try_enqueue(request(model_ref)).unwrap()).collect();
        // One hands in without end: whatever is let in before the end hears of the end.
        let busy = aborted.clone();
        let (begun, begins) = oneshot::channel();
        let late = thread::spawn(move || {
            let mut begun = Some(begun);
            let mut handed_in = std::collections::VecDeque::new();
            loop {
                match busy.try_enqueue(request(model_ref)) {
                    Ok(future) => handed_in.push_back(future),
                    Err(refused) if matches!(refused.source, Error::ShutDown) => return handed_in,
                    Err(_) => drop(handed_in.pop_front()),
                }
                if handed_in.len() >= 100 {
                    begun.take().map(|begun| begun.send(()));
                    drop(handed_in.pop_front());
                }
            }
        });
        patiently(begins).await.unwrap();
        let start = Instant::now();
        let report = tokio::spawn(aborted.shutdown(Shutdown::Abort));
        for job in jobs {
            assert!(matches!(patiently(job).await, Err(Error::ShutDown)));
        }
        let closed_in = start.elapsed();
        let late = late.join().unwrap();
        let closed = 399 + late.len() as u64;
        for job in late {
            let told = timeout(Duration::from_secs(5), job).await.expect("a request was let in and forgotten");
            assert!(matches!(told, Err(Error::ShutDown)));
        }
        let report = patiently(report).await.unwrap();
        fake.predict_gate().open();
        patiently(stuck).await.unwrap();
        println!(
            "shutdown: drained {ok} of 500 x 2 ms; abort closed {} queued in {closed_in:.2?} and reported {} stuck",
            report.closed, report.abandoned_threads
        );
        // One was refused, and one may have been closed and then given up by who handed it in.
        assert!((closed..=closed + 2).contains(&report.closed), "{} of {closed}", report.closed);
        assert_eq!(report.abandoned_threads, 1);
        assert!(closed_in <= bound, "{closed_in:?}");
        assert!(matches!(aborted.load("again").await, Err(Error::ShutDown)), "it stays down");
    });
}

/// Everything that can watch a runtime and was compiled in; told of for as long as this lives.
struct Watched(String, #[allow(dead_code, reason = "it listens while it lives")] Vec<Box<dyn std::any::Any>>);

fn watch(client: &ModelClient) -> Watched {
    let (mut names, mut watchers) = (Vec::<&str>::new(), Vec::<Box<dyn std::any::Any>>::new());
    #[cfg(feature = "metrics")]
    {
        // The process has one; a second proof finds it there.
        let _ = metrics::set_global_recorder(Adding);
        names.push("a recorder");
    }
    #[cfg(feature = "tracing")]
    {
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        names.push("a subscriber");
    }
    #[cfg(feature = "monitor")]
    {
        let address = "127.0.0.1:0".parse().unwrap();
        watchers.push(Box::new(coreml_client::monitor::Monitor::start(client, &address).unwrap()));
        names.push("a monitor");
    }
    let _ = (client, &mut names, &mut watchers);
    Watched(if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }, watchers)
}

/// A recorder that adds up: what an exporter must do at least, and with memory that does not grow.
#[cfg(feature = "metrics")]
struct Adding;

#[cfg(feature = "metrics")]
mod adding {
    use metrics::{
        Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
        atomics::AtomicU64,
    };

    use super::{Adding, Arc, Ordering};

    #[derive(Default)]
    struct Sum {
        count: AtomicU64,
        nanos: AtomicU64,
    }

    impl HistogramFn for Sum {
        fn record(&self, value: f64) {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.nanos.fetch_add((value * 1e9) as u64, Ordering::Relaxed);
        }
    }

    impl Recorder for Adding {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(Arc::new(AtomicU64::new(0)))
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(Arc::new(AtomicU64::new(0)))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(Arc::new(Sum::default()))
        }
    }
}

#[test]
fn overhead() {
    let _alone = alone();
    let (rounds, trips, bound, share) = scaled((5, 500, 4.0, 0.2), (20, 5_000, 1.3, 0.99));
    let fake = FakeBridge::new();
    let bridge = fake.bridge();
    let (sender, receiver) = crossbeam_channel::bounded::<(Features, oneshot::Sender<_>)>(64);
    thread::spawn(move || {
        let handle = bridge.load("model", &Config::default()).unwrap();
        for (features, reply) in receiver {
            let _ = reply.send(handle.predict(&features));
        }
    });
    let one = client(fake).build();
    let watched = watch(&one);
    let model_ref = one.load_model("model").unwrap();
    let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut bare, mut through) = (Vec::new(), Vec::new());
    let mut least = f64::INFINITY;
    for round in 0..rounds {
        for _ in 0..trips {
            let start = Instant::now();
            let answer = executor.block_on(async {
                let (reply, answer) = oneshot::channel();
                sender.send((features(1), reply)).unwrap();
                answer.await
            });
            answer.unwrap().unwrap();
            bare.push(start.elapsed());
        }
        for _ in 0..trips {
            let start = Instant::now();
            executor.block_on(one.enqueue_inference(request(model_ref))).unwrap();
            through.push(start.elapsed());
        }
        let p50 = |all: &[Duration]| {
            let mut round = all[round * trips..].to_vec();
            round.sort_unstable();
            percentile(&round, 50).as_secs_f64()
        };
        least = least.min(p50(&through) / p50(&bare));
    }
    bare.sort_unstable();
    through.sort_unstable();
    let (bare, through) = (percentile(&bare, 50), percentile(&through, 50));
    // The short form takes the best round: the threads lie where they lie, and other programs run.
    let ratio = if full() { through.as_secs_f64() / bare.as_secs_f64() } else { least };
    println!(
        "overhead: round trip p50 bare {bare:.2?}, client {through:.2?} (watched by {}), ratio {ratio:.2}",
        watched.0
    );

    // Throughput: predictions that take a while on a clock, so that other programs on the machine count on neither side.
    const THREADS: usize = 2;
    let each = scaled(30, 300);
    let fake =
        FakeBridge::builder().behave(|behaviour| behaviour.predict_delay = Duration::from_millis(2)).build();
    let many = client(fake).threads(THREADS).build();
    let model_ref = many.load_model("model").unwrap();
    let bridge = fake.bridge();
    let direct = || {
        let (ready, go) =
            (Arc::new(std::sync::Barrier::new(THREADS + 1)), Arc::new(std::sync::Barrier::new(THREADS + 1)));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (ready, go) = (Arc::clone(&ready), Arc::clone(&go));
                thread::spawn(move || {
                    let handle = bridge.load("model", &Config::default()).unwrap();
                    ready.wait();
                    go.wait();
                    for _ in 0..each {
                        handle.predict(&features(1)).unwrap();
                    }
                })
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        go.wait();
        for thread in threads {
            thread.join().unwrap();
        }
        start.elapsed()
    };
    let client_takes = || {
        let start = Instant::now();
        executor.block_on(async {
            // Whoever asks sleeps until half of what is under way is done, as a program with a backlog would: the last of it is
            // waited for first. Waking it for each answer would take the threads' time where no core is to spare.
            const MOST: usize = 8 * THREADS;
            let mut jobs = std::collections::VecDeque::new();
            for _ in 0..each * THREADS {
                if jobs.len() == MOST {
                    let mut oldest: Vec<Inference> = jobs.drain(..MOST / 2).collect();
                    while let Some(job) = oldest.pop() {
                        job.await.unwrap();
                    }
                }
                jobs.push_back(many.try_enqueue(request(model_ref)).unwrap());
            }
            for job in jobs {
                job.await.unwrap();
            }
        });
        start.elapsed()
    };
    client_takes();
    let (mut by_hand, mut by_client) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        by_hand = by_hand.min(direct());
        by_client = by_client.min(client_takes());
    }
    let throughput = by_hand.as_secs_f64() / by_client.as_secs_f64();
    println!("overhead: {THREADS} threads: client does {:.1} % of direct calls", 100.0 * throughput);
    assert!(ratio <= bound, "round trip {ratio:.2} times a bare one");
    assert!(throughput >= share, "throughput {throughput:.3} of direct calls");
}

#[test]
fn soak() {
    let _alone = alone();
    quiet_panics();
    let seconds = std::env::var("COREML_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(scaled(3, 600)));
    let pause = (length / 10).min(Duration::from_secs(5));
    let fake = FakeBridge::builder().describe(|path| (path != "broken").then(|| DOUBLER.to_owned())).build();
    let client = client(fake).threads(2).build();
    let model_ref = client.load_model("model").unwrap();
    let pinned = client.pin(model_ref).unwrap();
    // Goes with the pressure, and comes back without it.
    let idle = || ModelSource::new("idle").memory(MIB);
    let start = Instant::now();
    let mut samples: Vec<(f64, f64)> = Vec::new();
    let mut rests = Vec::new();
    // What was asked: panics, loads that fail, requests that are given up, tight deadlines, plain ones.
    let asked: [Arc<AtomicU64>; 5] = std::array::from_fn(|_| Arc::default());
    // Callers pause while somebody takes stock.
    let stock = Arc::new(tokio::sync::RwLock::new(()));
    let mut flips = 0;
    runtime().block_on(async {
        let mut callers = JoinSet::new();
        for caller in 0..4_u64 {
            let (client, asked, stock) = (client.clone(), asked.clone(), Arc::clone(&stock));
            callers.spawn(async move {
                // A generator of its own: the mix is the same in each run.
                let mut dice = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(caller + 1) | 1;
                while start.elapsed() < length {
                    let _at_work = stock.read().await;
                    dice ^= dice << 13;
                    dice ^= dice >> 7;
                    dice ^= dice << 17;
                    let roll = dice % 1_000;
                    let kind = match roll {
                        0 => 0,
                        1..=10 => 1,
                        11..=210 => 2,
                        211..=260 => 3,
                        _ => 4,
                    };
                    asked[kind].fetch_add(1, Ordering::SeqCst);
                    let request = request(model_ref).priority(Priority::ALL[(dice >> 20) as usize % 3]);
                    match kind {
                        0 => drop(client.enqueue_inference(request.procedure(bomb())).await.unwrap_err()),
                        1 => drop(client.load("broken").await.unwrap_err()),
                        2 => {
                            let future = client.try_enqueue(request).expect("four callers fill no queue");
                            if roll.is_multiple_of(2) {
                                tokio::task::yield_now().await;
                            }
                            drop(future);
                        }
                        3 => {
                            let tight = request.timeout(Duration::from_micros(roll));
                            drop(client.enqueue_inference(tight).await);
                        }
                        _ => drop(client.enqueue_inference(request).await.expect("nothing is wrong with it")),
                    }
                }
            });
        }
        let mut next = pause;
        let mut level = MemoryPressure::Normal;
        while start.elapsed() < length {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Some(bytes) = rss() {
                samples.push((start.elapsed().as_secs_f64(), bytes as f64));
            }
            if start.elapsed() >= next {
                next += pause;
                let _nobody_works = patiently(stock.write()).await;
                client.set_memory_pressure(MemoryPressure::Normal);
                patiently(client.swap(model_ref, "model").forget_old()).await.unwrap();
                patiently(client.load(idle())).await.unwrap();
                // One thread each of the two models, for nothing has been asked of these versions.
                let at_rest = || {
                    let stats = client.stats();
                    let idle = |worker: &coreml_client::WorkerStats| worker.state == WorkerState::Idle;
                    stats.models.len() == 2
                        && stats
                            .models
                            .iter()
                            .all(|model| model.workers.iter().filter(|worker| idle(worker)).count() == 1)
                };
                let counts = || (entries("/proc/self/task"), entries("/proc/self/fd"));
                let expected = rests.first().copied();
                let begun = Instant::now();
                // Threads that have let go of their instance take a moment to end.
                let mut now = counts();
                while begun.elapsed() < Duration::from_secs(10)
                    && (!at_rest() || expected.is_some_and(|then| now != then))
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    now = counts();
                }
                assert!(at_rest(), "{}", client.stats());
                if expected.is_none() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    now = counts();
                }
                rests.push(now);
                level = match level {
                    MemoryPressure::Warning => MemoryPressure::Critical,
                    _ => MemoryPressure::Warning,
                };
                let before = client.stats().models_total.evicted_under_pressure;
                client.set_memory_pressure(level);
                assert_eq!(
                    client.stats().models_total.evicted_under_pressure,
                    before + 1,
                    "{level} evicts the idle one"
                );
                flips += 1;
            }
        }
        client.set_memory_pressure(MemoryPressure::Normal);
        patiently(callers.join_all()).await;
    });
    assert_settled(&client);
    let stats = client.stats();
    let outcomes = stats.outcomes;
    drop(pinned);
    let slope = slope(&samples[samples.len() / 4..]) * length.as_secs_f64();
    let asked = asked.map(|count| count.load(Ordering::SeqCst));
    let total: u64 = asked.iter().sum();
    let shares = asked.map(|count| 100.0 * count as f64 / total as f64);
    let [panics, failures, given_up, ..] = shares;
    println!(
        "soak: {length:.0?}, {total} calls ({given_up:.1} % given up, {failures:.2} % failing loads, {panics:.2} % panics), \
         {} requests ({} ok, {} error, {} cancelled, {} expired), {} swaps, {flips} flips of pressure; RSS slope {:.2} MiB over the \
         run; at rest (threads, fds) {:?} of {} samples",
        outcomes.submitted,
        outcomes.ok,
        outcomes.error,
        outcomes.cancelled,
        outcomes.expired,
        stats.models_total.swaps_ok,
        slope / MIB as f64,
        rests.first(),
        rests.len(),
    );
    for (share, wanted) in [(given_up, 20.0), (failures, 1.0), (panics, 0.1)] {
        assert!((share / wanted - 1.0).abs() <= scaled(0.9, 0.2), "{share} % where {wanted} % were to be");
    }
    assert_eq!(outcomes.error, asked[0], "each panic is one error, and there is no other");
    // The rest of them had their answer before they were given up.
    assert!(
        outcomes.cancelled <= asked[2] && outcomes.cancelled >= asked[2] / 4,
        "{} cancelled",
        outcomes.cancelled
    );
    assert!(stats.models_total.loads_failed > 0 && stats.models_total.loads_failed <= asked[1]);
    assert_eq!((stats.models_total.swaps_ok, stats.models_total.swaps_failed), (flips, 0));
    // The short one is over before the allocator has what it needs.
    assert!(slope <= scaled(32.0, 8.0) * MIB as f64, "RSS grows by {slope:.0} bytes over the run");
    assert!(
        rests.len() >= 2 && rests.iter().all(|counts| *counts == rests[0]),
        "threads and descriptors {rests:?}"
    );
}

/// Of the straight line with the least squares: what the second grows by as the first grows by one.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let rise: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let run: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if run == 0.0 { 0.0 } else { rise / run }
}

const DOUBLER: &str = r#"{
    "inputs": [{ "name": "x", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [] } }],
    "outputs": [{ "name": "y", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [] } }],
    "functions": ["main"], "function": "main"
}"#;
