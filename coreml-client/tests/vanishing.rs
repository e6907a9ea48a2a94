//! Callers who vanish: every future of the client is polled k times and dropped, for all k, with the model idle, busy, and
//! stuck while it loads. Whatever they leave behind must add up, and others must notice nothing.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use coreml_client::{
    Config, Error, Features, InferenceRequest, ModelClient, ModelRef, Priority, Shutdown, Stats, Tensor,
};
use coreml_testing::FakeBridge;

/// More polls than any future of these needs.
const POLLS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(30);

/// When a future is polled again.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// At once, woken or not.
    Spurious,
    /// When it was woken, or after a moment.
    Woken,
}

#[derive(Default)]
struct Alarm {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// Polls at most so many times, and drops the future; whether it was done.
fn vanish(future: impl Future<Output = ()>, polls: usize, pace: Pace) -> bool {
    let mut future = Box::pin(future);
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    for _ in 0..polls {
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return true;
        }
        if matches!(pace, Pace::Woken) {
            let rung = alarm.rung.lock().unwrap();
            let moment = Duration::from_millis(5);
            *alarm.changed.wait_timeout_while(rung, moment, |rung| !*rung).unwrap().0 = false;
        }
    }
    false
}

struct World {
    fake: FakeBridge,
    client: ModelClient,
    model_ref: ModelRef,
    names: AtomicUsize,
}

impl World {
    fn new() -> Self {
        let fake = FakeBridge::new();
        let client = ModelClient::builder().bridge(fake.bridge()).threads(1).max_queued(2).build();
        let model_ref = client.load_model("model").unwrap();
        Self { fake, client, model_ref, names: AtomicUsize::new(0) }
    }

    fn request(&self) -> InferenceRequest {
        request(self.model_ref)
    }

    /// A source that was never loaded.
    fn source(&self) -> String {
        format!("model-{}", self.names.fetch_add(1, Ordering::SeqCst))
    }

    /// Unloads what the entries loaded, once everything under way has ended.
    fn settle(&self, what: &str, begun: (u64, u64)) -> Stats {
        let start = Instant::now();
        loop {
            let stats = self.client.stats();
            let counts = stats.models_total;
            let loads = counts.loads_ok + counts.loads_failed;
            let swaps = counts.swaps_ok + counts.swaps_failed;
            let at_rest = |model: &coreml_client::ModelStats| {
                (model.depth, model.reserved, model.bytes, model.waiting, model.running)
                    == ([0; 3], 0, 0, 0, 0)
            };
            if stats.outcomes.in_flight() == 0
                && stats.models.iter().all(at_rest)
                && loads >= begun.0
                && swaps >= begun.1
            {
                for model in &stats.models {
                    if model.model_ref != self.model_ref {
                        // It may be on its way out.
                        let _ = self.client.unload(model.model_ref);
                    }
                }
                return stats;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: never at rest: {stats}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Somebody who has vanished must not be noticed by the next one.
    fn serves(&self, what: &str) {
        let before = self.client.stats().outcomes;
        pollster::block_on(self.client.enqueue_inference(self.request()))
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let after = self.client.stats().outcomes;
        assert_eq!((after.ok, after.submitted), (before.ok + 1, before.submitted + 1), "{what}");
    }
}

fn request(model_ref: ModelRef) -> InferenceRequest {
    InferenceRequest::new(
        model_ref,
        Features::new().with("x", Tensor::from_vec(&[1], vec![1.0_f32]).unwrap()),
    )
}

type Future0 = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a future leaves behind once it was polled.
#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    Request,
    Load,
    Swap,
}

/// Every call of a client that waits, but `shutdown`.
const ENTRIES: [(&str, Leaves, fn(&World) -> Future0); 11] = [
    ("enqueue_inference", Leaves::Request, |world| {
        let future = world.client.enqueue_inference(world.request());
        Box::pin(async move { drop(future.await) })
    }),
    ("with a deadline", Leaves::Request, |world| {
        let request = world.request().timeout(Duration::from_millis(8));
        let future = world.client.enqueue_inference(request);
        Box::pin(async move { drop(future.await) })
    }),
    ("try_enqueue", Leaves::Request, |world| {
        let client = world.client.clone();
        let request = world.request();
        Box::pin(async move {
            if let Ok(future) = client.try_enqueue(request) {
                drop(future.await);
            }
        })
    }),
    ("reserve", Leaves::Request, |world| {
        let future = world.client.reserve(world.model_ref, Priority::Low, 4);
        Box::pin(async move { drop(future.await) })
    }),
    ("reserve and enqueue", Leaves::Request, |world| {
        let future = world.client.reserve(world.model_ref, Priority::High, 4);
        let request = world.request().priority(Priority::High);
        Box::pin(async move {
            let permit = future.await.unwrap();
            tokio::task::yield_now().await;
            drop(permit.enqueue(request).unwrap().await);
        })
    }),
    ("load", Leaves::Load, |world| {
        let future = world.client.load(&world.source());
        Box::pin(async move { drop(future.await) })
    }),
    ("load_model_async", Leaves::Load, |world| {
        let future = world.client.load_model_async(world.source());
        Box::pin(async move { drop(future.await) })
    }),
    ("load_model_with_async", Leaves::Load, |world| {
        let future = world.client.load_model_with_async(world.source(), Config::default());
        Box::pin(async move { drop(future.await) })
    }),
    ("load_pinned", Leaves::Load, |world| {
        let future = world.client.load_pinned(&world.source());
        Box::pin(async move {
            let pinned = future.await;
            tokio::task::yield_now().await;
            drop(pinned);
        })
    }),
    ("swap", Leaves::Swap, |world| {
        let future = world.client.swap(world.model_ref, &world.source());
        Box::pin(async move { drop(future.await) })
    }),
    ("swap with a check", Leaves::Swap, |world| {
        let check =
            |_: &mut coreml_client::Trial<'_>| Err(Box::<dyn std::error::Error + Send + Sync>::from("no"));
        let future = world.client.swap(world.model_ref, &world.source()).check(check);
        Box::pin(async move { drop(future.await) })
    }),
];

/// What the model is doing meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    Idle,
    /// Its thread is stuck in a prediction, and its queue is full.
    Full,
    /// Loads are stuck.
    Loading,
}

fn try_all(meanwhile: Meanwhile) {
    let mut unfinished = [0; ENTRIES.len()];
    for (entry, (name, leaves, make)) in ENTRIES.into_iter().enumerate() {
        let world = World::new();
        let (mut loads, mut swaps) = (1, 0);
        for (polls, pace) in (0..=POLLS).flat_map(|polls| [(polls, Pace::Spurious), (polls, Pace::Woken)]) {
            let what = format!("{name}, {polls} polls ({pace:?}), model {meanwhile:?}");
            let mut others = Vec::new();
            match meanwhile {
                Meanwhile::Idle => {}
                Meanwhile::Full => {
                    world.fake.predict_gate().close();
                    others.push(world.client.try_enqueue(world.request()).unwrap());
                    world.fake.predict_gate().await_waiting(1);
                    others.extend((0..2).map(|_| world.client.try_enqueue(world.request()).unwrap()));
                }
                Meanwhile::Loading => world.fake.load_gate().close(),
            }
            let before = world.client.stats().outcomes;
            let finished = vanish(make(&world), polls, pace);
            unfinished[entry] += usize::from(!finished);
            // Whoever waited for admission has left the line, and whoever was queued his place, before `drop` returned.
            let here = world.client.stats().models[0].clone();
            if meanwhile == Meanwhile::Full && leaves == Leaves::Request {
                assert_eq!((here.depth.iter().sum(), here.waiting, here.reserved), (2, 0, 0), "{what}");
                assert_eq!(here.bytes, 8, "{what}");
            }
            let begun = u64::from(polls > 0);
            match leaves {
                Leaves::Request => {}
                Leaves::Load => loads += begun,
                Leaves::Swap => swaps += begun,
            }
            world.fake.predict_gate().open();
            world.fake.load_gate().open();
            let stats = world.settle(&what, (loads, swaps));
            let submitted = if leaves == Leaves::Request { begun } else { 0 };
            assert_eq!(stats.outcomes.submitted, before.submitted + submitted, "{what}");
            assert_eq!(stats.models_total.loads_ok, loads, "{what}: a load goes on without its caller");
            for other in others {
                pollster::block_on(other).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            world.serves(&what);
        }
        let report = pollster::block_on(
            world.client.shutdown(Shutdown::Drain { deadline: Instant::now() + PATIENCE }),
        );
        assert_eq!(report.abandoned_threads, 0, "{name}");
        world.fake.assert_clean();
    }
    assert!(unfinished.iter().all(|count| *count > 0), "nobody vanished from some: {unfinished:?}");
}

#[test]
fn from_an_idle_model() {
    try_all(Meanwhile::Idle);
}

#[test]
fn from_a_model_whose_queue_is_full() {
    try_all(Meanwhile::Full);
}

#[test]
fn while_loads_are_stuck() {
    try_all(Meanwhile::Loading);
}

#[test]
fn from_a_shutdown() {
    for polls in 0..=POLLS {
        for abort in [false, true] {
            let world = World::new();
            world.fake.predict_gate().close();
            let running = world.client.try_enqueue(world.request()).unwrap();
            world.fake.predict_gate().await_waiting(1);
            let how = || match abort {
                true => Shutdown::Abort,
                false => Shutdown::Drain { deadline: Instant::now() + PATIENCE },
            };
            let finished = vanish(
                {
                    let future = world.client.shutdown(how());
                    async move {
                        future.await;
                    }
                },
                polls,
                Pace::Woken,
            );
            assert!(!finished || abort, "the prediction is still running");
            // Begun or not, that is seen at once.
            let late = world.client.load_model("another");
            assert_eq!(matches!(late, Err(Error::ShutDown)), polls > 0, "{polls} polls: {late:?}");
            world.fake.predict_gate().open();
            drop(pollster::block_on(running));
            let report = pollster::block_on(world.client.shutdown(how()));
            assert_eq!(report.abandoned_threads, 0);
            let outcomes = world.client.stats().outcomes;
            assert_eq!((outcomes.in_flight(), outcomes.submitted), (0, 1));
            world.fake.assert_clean();
        }
    }
}

#[test]
fn polled_again_after_its_answer_a_request_panics_rather_than_hangs() {
    let world = World::new();
    let mut future = world.client.enqueue_inference(world.request());
    pollster::block_on(&mut future).unwrap();
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let waker = Waker::noop();
        matches!(Pin::new(&mut future).poll(&mut Context::from_waker(waker)), Poll::Pending)
    }));
    assert!(again.is_err(), "nobody would wake it");
    drop(future);
    world.serves("after the panic");
}
