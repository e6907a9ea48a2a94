//! The client on a stand-in for the bridge that panics, sticks and fails at will. What needs none of that is tested on
//! bridges, in `tests/`.

use std::future::{Future, IntoFuture};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use coreml_bridge::{Config, Features, ModelDescription, ModelRef, Tensor, Timings};
use tokio::sync::oneshot;

use crate::backend::{Backend, Instance};
use crate::queue::WhenFull;
use crate::source::LoadStage;
use crate::version::{Denied, Retry};
use crate::{
    Error, InferenceMessage, InferenceRequest, InferenceResult, ModelClient, Priority, Result, Shutdown,
    Stage,
};

/// Far beyond anything that should happen.
const PATIENCE: Duration = Duration::from_secs(30);

// ---- the stand-in ----

type BridgeResult<T> = std::result::Result<T, coreml_bridge::Error>;

type Predict = dyn Fn(&InferenceRequest) -> BridgeResult<Features> + Send + Sync;

struct Double {
    loads: AtomicUsize,
    live: AtomicUsize,
    predictions: AtomicUsize,
    /// Told how many loads there were before.
    load: Box<dyn Fn(usize) -> BridgeResult<()> + Send + Sync>,
    predict: Box<Predict>,
}

impl Double {
    fn new(predict: impl Fn(&InferenceRequest) -> Features + Send + Sync + 'static) -> Arc<Self> {
        Self::with_load(|_| Ok(()), predict)
    }

    fn with_load(
        load: impl Fn(usize) -> BridgeResult<()> + Send + Sync + 'static,
        predict: impl Fn(&InferenceRequest) -> Features + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            loads: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            predictions: AtomicUsize::new(0),
            load: Box::new(load),
            predict: Box::new(move |request| Ok(predict(request))),
        })
    }

    fn echo() -> Arc<Self> {
        Self::new(|request| request.features.clone())
    }

    /// Echoes, once the door is open.
    fn behind_a_door() -> (Arc<Self>, Door) {
        let door = Door::default();
        let behind = door.clone();
        let double = Self::new(move |request| {
            behind.pass();
            request.features.clone()
        });
        (double, door)
    }

    /// Echoes, and loads once the door is open.
    fn loading_behind_a_door() -> (Arc<Self>, Door) {
        let door = Door::default();
        let behind = door.clone();
        let load = move |_| {
            behind.pass();
            Ok(())
        };
        (Self::with_load(load, |request| request.features.clone()), door)
    }

    fn predictions(&self) -> usize {
        self.predictions.load(Ordering::SeqCst)
    }
}

/// Orphan rules: the trait is for the shared stand-in.
struct Shared(Arc<Double>);

impl Backend for Shared {
    fn takes_threads(&self) -> bool {
        true
    }

    fn instantiate(
        &self,
        _: ModelRef,
        _: &Path,
        _: &Config,
        _: &dyn Fn(LoadStage),
    ) -> BridgeResult<Box<dyn Instance>> {
        (self.0.load)(self.0.loads.fetch_add(1, Ordering::SeqCst))?;
        self.0.live.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(DoubleInstance { double: Arc::clone(&self.0), thread: thread::current().id() }))
    }
}

struct DoubleInstance {
    double: Arc<Double>,
    thread: ThreadId,
}

impl Instance for DoubleInstance {
    fn description(&self) -> Arc<ModelDescription> {
        Arc::new(ModelDescription::default())
    }

    fn predict(&mut self, request: &InferenceRequest) -> BridgeResult<(Features, Timings)> {
        assert_eq!(thread::current().id(), self.thread, "an instance never leaves its thread");
        self.double.predictions.fetch_add(1, Ordering::SeqCst);
        Ok(((self.double.predict)(request)?, Timings::default()))
    }
}

impl Drop for DoubleInstance {
    fn drop(&mut self) {
        self.double.live.fetch_sub(1, Ordering::SeqCst);
    }
}

const QUICK: Retry = Retry { pauses: &[Duration::ZERO], failures: 5, within: PATIENCE };

/// One thread, on the stand-in.
fn client(double: &Arc<Double>) -> ModelClient {
    ModelClient::builder().backend(Arc::new(Shared(Arc::clone(double)))).threads(1).retry(QUICK).build()
}

fn model(double: &Arc<Double>) -> (ModelClient, ModelRef) {
    let client = client(double);
    let model_ref = client.load_model("model").unwrap();
    (client, model_ref)
}

fn number(value: i32) -> Features {
    Features::new().with("number", Tensor::from_vec(&[1], vec![value]).unwrap())
}

fn read(features: &Features) -> i32 {
    features.tensor("number").unwrap().as_slice::<i32>().unwrap()[0]
}

fn bytes(len: usize) -> Features {
    Features::new().with("bytes", Tensor::from_vec(&[len], vec![0_i8; len]).unwrap())
}

fn gone() -> coreml_bridge::Error {
    coreml_bridge::Error::Path { path: "gone".into() }
}

/// A door that predictions stand before until it is opened.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Door {
    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.1 += 1;
        changed.notify_all();
        while !state.0 {
            state = changed.wait(state).unwrap();
        }
    }

    fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().0 = true;
        changed.notify_all();
    }

    /// Until `n` have come to the door.
    fn wait_for(&self, n: usize) {
        let (state, changed) = &*self.0;
        let state = state.lock().unwrap();
        let (_state, timeout) = changed.wait_timeout_while(state, PATIENCE, |state| state.1 < n).unwrap();
        assert!(!timeout.timed_out(), "nobody came");
    }
}

// ---- an executor that knows nothing of tokio ----

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(PATIENCE);
        assert!(start.elapsed() < PATIENCE, "a future hangs");
    }
}

/// A future that has been polled once, so that its request is handed in; it may have been answered in that instant.
enum Started<F: Future> {
    Pending(Pin<Box<F>>),
    Ready(Option<F::Output>),
}

impl<F: Future> Unpin for Started<F> {}

impl<F: Future> Future for Started<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        match &mut *self {
            Self::Pending(future) => future.as_mut().poll(context),
            Self::Ready(output) => Poll::Ready(output.take().expect("polled after its output was taken")),
        }
    }
}

fn start<F: Future>(future: F) -> Started<F> {
    let mut future = Box::pin(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Started::Ready(Some(output)),
        Poll::Pending => Started::Pending(future),
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} never happened");
        thread::sleep(Duration::from_millis(1));
    }
}

fn assert_settled(client: &ModelClient) {
    let stats = client.stats();
    assert_eq!(stats.outcomes.submitted, stats.outcomes.settled(), "{stats}");
    for model in &stats.models {
        assert_eq!((model.depth, model.bytes, model.waiting), ([0; 3], 0, 0), "{stats}");
    }
}

// ---- the plain case ----

#[test]
fn a_request_is_answered_with_its_outputs_on_an_executor_without_tokio() {
    let double = Double::echo();
    let (client, model_ref) = model(&double);
    let future = client.enqueue_inference(InferenceRequest::new(model_ref, number(7)));
    let id = future.id();
    let result = block_on(future).unwrap();
    assert_eq!((read(&result.outputs), result.id, result.model_ref, result.worker), (7, id, model_ref, 0));
    assert_eq!(client.stats().outcomes.ok, 1);
    assert_eq!(client.stats().models[0].total_time.count(), 1);
}

#[test]
fn a_future_may_be_polled_by_one_thread_and_awaited_by_another_without_its_client() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let future = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(7))));
    let thread = thread::spawn(move || block_on(future));
    door.wait_for(1);
    door.open();
    assert_eq!(read(&thread.join().unwrap().unwrap().outputs), 7);
}

#[test]
fn nothing_is_handed_in_before_the_future_is_polled() {
    let double = Double::echo();
    let (client, model_ref) = model(&double);
    drop(client.enqueue_inference(InferenceRequest::new(model_ref, number(7))));
    assert_eq!(client.stats().outcomes.submitted, 0);
}

#[test]
fn more_threads_start_when_all_are_busy_and_work_at_the_same_time() {
    let (double, door) = Double::behind_a_door();
    let client = ModelClient::builder().backend(Arc::new(Shared(Arc::clone(&double)))).threads(3).build();
    let model_ref = client.load_model("model").unwrap();
    assert_eq!(double.loads.load(Ordering::SeqCst), 1);
    let futures = (0..3)
        .map(|n| start(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)))))
        .collect::<Vec<_>>();
    door.wait_for(3);
    door.open();
    let mut workers = futures.into_iter().map(|future| block_on(future).unwrap().worker).collect::<Vec<_>>();
    workers.sort_unstable();
    assert_eq!(workers, [0, 1, 2]);
    assert_eq!(double.live.load(Ordering::SeqCst), 3);
}

#[test]
fn an_error_of_the_bridge_keeps_its_source_and_costs_only_its_request() {
    let double = Arc::new(Double {
        loads: AtomicUsize::new(0),
        live: AtomicUsize::new(0),
        predictions: AtomicUsize::new(0),
        load: Box::new(|_| Ok(())),
        predict: Box::new(|request| {
            if read(&request.features) < 0 { Err(gone()) } else { Ok(request.features.clone()) }
        }),
    });
    let (client, model_ref) = model(&double);
    let error = block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(-1)))).unwrap_err();
    assert!(matches!(error, Error::Predict { model_ref: named, .. } if named == model_ref));
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), gone().to_string());
    assert!(block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1)))).is_ok());
    assert_eq!(double.loads.load(Ordering::SeqCst), 1);
    let outcomes = client.stats().outcomes;
    assert_eq!((outcomes.submitted, outcomes.ok, outcomes.error), (2, 1, 1));
}

// ---- panics ----

#[test]
fn a_panic_with_64_jobs_queued_fails_its_own_request_and_nobody_hangs() {
    let double = Double::new(|request| {
        assert!(read(&request.features) >= 0, "negative");
        request.features.clone()
    });
    let (client, model_ref) = model(&double);
    const ROUNDS: usize = 50;
    for _ in 0..ROUNDS {
        let values = (0..65).map(|n| if n == 20 { -1 } else { n });
        let futures = values
            .map(|n| (n, start(client.enqueue_inference(InferenceRequest::new(model_ref, number(n))))))
            .collect::<Vec<_>>();
        for (n, future) in futures {
            match block_on(future) {
                Ok(result) => assert_eq!(read(&result.outputs), n),
                Err(Error::WorkerPanicked { message, .. }) => {
                    assert_eq!(n, -1);
                    assert!(message.contains("negative"));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(double.live.load(Ordering::SeqCst), 1);
    assert_eq!(double.loads.load(Ordering::SeqCst), 1 + ROUNDS);
    let stats = client.stats();
    assert_eq!((stats.outcomes.ok, stats.outcomes.error), (64 * ROUNDS as u64, ROUNDS as u64));
    assert_eq!(stats.models[0].workers[0].restarts, ROUNDS as u64);
    assert_settled(&client);
}

#[test]
fn a_model_that_only_panics_fails_and_closes_its_queue_with_the_cause_until_it_is_loaded_again() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let double = Double::new(move |request| {
        assert!(!is_broken.load(Ordering::SeqCst), "broken");
        request.features.clone()
    });
    let (client, model_ref) = model(&double);
    let futures = (0..20)
        .map(|n| Box::pin(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)))))
        .collect::<Vec<_>>();
    let errors = futures.into_iter().map(|future| block_on(future).unwrap_err()).collect::<Vec<_>>();
    let panics = errors.iter().filter(|error| matches!(error, Error::WorkerPanicked { .. })).count();
    assert_eq!(panics, 5);
    let Error::ModelFailed { source, .. } = &errors[19] else { panic!("{}", errors[19]) };
    assert!(matches!(**source, Error::WorkerPanicked { .. }));
    assert_settled(&client);

    broken.store(false, Ordering::SeqCst);
    let again = client.load_model("model").unwrap();
    assert_ne!(again, model_ref);
    assert!(block_on(client.enqueue_inference(InferenceRequest::new(again, number(1)))).is_ok());
    eventually("the instance's end", || double.live.load(Ordering::SeqCst) == 1);
}

#[test]
fn queued_jobs_survive_until_an_instance_can_be_built_again() {
    let double = Double::with_load(
        |loads| if (1..4).contains(&loads) { Err(gone()) } else { Ok(()) },
        |request| {
            assert!(read(&request.features) >= 0, "negative");
            request.features.clone()
        },
    );
    let (client, model_ref) = model(&double);
    // The instance must have proved itself, else its panic counts as a failure.
    block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1)))).unwrap();
    let bad = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(-1))));
    let good =
        (0..10).map(|n| Box::pin(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)))));
    let good = good.collect::<Vec<_>>();
    assert!(matches!(block_on(bad), Err(Error::WorkerPanicked { .. })));
    for future in good {
        block_on(future).unwrap();
    }
    assert_eq!(double.loads.load(Ordering::SeqCst), 5);
}

#[test]
fn a_panic_of_a_waker_does_not_stop_the_thread() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a waker of somebody else");
        }
    }
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let mut bomb = Box::pin(client.enqueue_inference(InferenceRequest::new(model_ref, number(1))));
    assert!(bomb.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Bomb)))).is_pending());
    let next = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(2))));
    door.open();
    assert!(block_on(next).is_ok());
    assert!(block_on(bomb).is_ok());
}

// ---- deadlines ----

#[test]
fn deadlines_fire_while_the_only_thread_is_stuck_and_nothing_of_it_runs_later() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let stuck = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(0))));
    door.wait_for(1);
    let deadline = Instant::now() + Duration::from_millis(50);
    let futures = (0..1_000)
        .map(|n| {
            start(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)).deadline(deadline)))
        })
        .collect::<Vec<_>>();
    for future in futures {
        match block_on(future) {
            Err(Error::DeadlineExceeded { stage: Stage::Queued | Stage::Admission }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(Instant::now() >= deadline);
    assert_eq!(client.stats().outcomes.expired, 1_000);
    door.open();
    block_on(stuck).unwrap();
    block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1)))).unwrap();
    assert_eq!(double.predictions(), 2);
    assert_settled(&client);
}

#[test]
fn the_deadline_of_a_running_request_answers_its_caller_and_the_result_is_dropped_and_counted() {
    let (double, door) = Double::behind_a_door();
    let client = ModelClient::builder()
        .backend(Arc::new(Shared(Arc::clone(&double))))
        .threads(1)
        .default_timeout(Duration::from_millis(20))
        .build();
    let model_ref = client.load_model("model").unwrap();
    let error = block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(0)))).unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Running }), "{error}");
    let stats = client.stats();
    assert_eq!((stats.outcomes.expired, stats.models[0].running, stats.models[0].detached), (1, 1, 0));
    door.open();
    eventually("the end of the prediction", || client.stats().models[0].detached == 1);
    assert_eq!(client.stats().outcomes.ok, 0);
    assert_settled(&client);
}

#[test]
fn a_deadline_in_the_past_is_refused_at_admission() {
    let double = Double::echo();
    let (client, model_ref) = model(&double);
    let request = InferenceRequest::new(model_ref, number(0)).deadline(Instant::now());
    let error = block_on(client.enqueue_inference(request)).unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Admission }));
    assert_eq!((double.predictions(), client.stats().outcomes.expired), (0, 1));
}

// ---- cancellation and back-pressure ----

#[test]
fn dropping_queued_futures_frees_bytes_and_slots_before_drop_returns_and_they_never_run() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let stuck = start(client.enqueue_inference(InferenceRequest::new(model_ref, bytes(1))));
    door.wait_for(1);
    // 32 of these fill the 64 MiB, the others wait.
    const SIZE: usize = 2 << 20;
    let futures = (0..100)
        .map(|_| start(client.enqueue_inference(InferenceRequest::new(model_ref, bytes(SIZE)))))
        .collect::<Vec<_>>();
    let stats = &client.stats().models[0];
    assert_eq!((stats.depth, stats.bytes, stats.waiting), ([0, 32, 0], 64 << 20, 68));
    for (n, future) in futures.into_iter().enumerate() {
        drop(future);
        let stats = &client.stats().models[0];
        let left = 99 - n;
        let queued = left.min(32);
        assert_eq!((stats.depth, stats.bytes, stats.waiting), ([0, queued, 0], queued * SIZE, left - queued));
    }
    door.open();
    block_on(stuck).unwrap();
    assert_eq!(double.predictions(), 1);
    assert_eq!(client.stats().outcomes.cancelled, 100);
    assert_settled(&client);
}

#[test]
fn dropping_a_running_future_lets_the_prediction_finish_detached() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let running = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(1))));
    door.wait_for(1);
    drop(running);
    assert_eq!(client.stats().outcomes.cancelled, 1);
    door.open();
    eventually("the end of the prediction", || client.stats().models[0].detached == 1);
    assert_settled(&client);
}

#[test]
fn a_full_queue_gives_the_request_back_and_waiters_get_in_later() {
    let (double, door) = Double::behind_a_door();
    let backend = Arc::new(Shared(Arc::clone(&double)));
    let client =
        ModelClient::builder().backend(backend).threads(1).max_queued(2).max_queued_bytes(100).build();
    let model_ref = client.load_model("model").unwrap();
    let mut futures = vec![client.try_enqueue(InferenceRequest::new(model_ref, number(0))).unwrap()];
    door.wait_for(1);
    for n in 1..3 {
        futures.push(client.try_enqueue(InferenceRequest::new(model_ref, number(n))).unwrap());
    }
    let refused = client.try_enqueue(InferenceRequest::new(model_ref, number(3))).unwrap_err();
    assert!(matches!(refused.source, Error::QueueFull { .. }));
    assert_eq!(read(&refused.request.features), 3);
    let waiting = start(client.enqueue_inference(refused.request));
    let refused = client.try_enqueue(InferenceRequest::new(model_ref, bytes(101))).unwrap_err();
    assert!(matches!(refused.source, Error::TooLarge { bytes: 101, limit: 100, .. }));
    let error = block_on(client.enqueue_inference(refused.request)).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }));
    door.open();
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(read(&block_on(future).unwrap().outputs), n as i32);
    }
    assert_eq!(read(&block_on(waiting).unwrap().outputs), 3);
    let outcomes = client.stats().outcomes;
    assert_eq!((outcomes.submitted, outcomes.ok, outcomes.rejected), (7, 4, 3));
}

#[test]
fn high_goes_first_and_the_oldest_on_every_eighth_occasion() {
    let door = Door::default();
    let behind = door.clone();
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let double = Double::new(move |request| {
        behind.pass();
        seen.lock().unwrap().push(read(&request.features));
        Features::new()
    });
    let (client, model_ref) = model(&double);
    let mut futures = vec![start(client.enqueue_inference(InferenceRequest::new(model_ref, number(0))))];
    door.wait_for(1);
    for n in 1..=20 {
        let priority = if n <= 10 { Priority::Low } else { Priority::High };
        futures.push(start(
            client.enqueue_inference(InferenceRequest::new(model_ref, number(n)).priority(priority)),
        ));
    }
    door.open();
    for future in futures {
        block_on(future).unwrap();
    }
    let order = order.lock().unwrap();
    // The first one is dequeue number 1, so number 8 is the seventh after it.
    assert_eq!(order[..9], [0, 11, 12, 13, 14, 15, 16, 1, 17]);
}

#[test]
fn a_message_is_answered_through_its_own_channel_and_does_not_run_when_that_is_gone() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let (message, answer) = InferenceMessage::new(InferenceRequest::new(model_ref, number(5)));
    let id = message.id;
    client.try_send(message).unwrap();
    door.wait_for(1);
    let (message, nobody) = InferenceMessage::new(InferenceRequest::new(model_ref, number(6)));
    client.try_send(message).unwrap();
    drop(nobody);
    door.open();
    let result = block_on(answer).unwrap().unwrap();
    assert_eq!((read(&result.outputs), result.id), (5, id));
    eventually("the dequeue", || client.stats().outcomes.cancelled == 1);
    assert_eq!(double.predictions(), 1);
    let (message, _answer) = InferenceMessage::new(InferenceRequest::new(ModelRef::new(), number(6)));
    let (error, message) = client.try_send(message).unwrap_err();
    assert!(matches!(error, Error::ModelNotFound { model_ref } if model_ref == message.model_ref));
}

// ---- models ----

#[test]
fn a_model_of_another_runtime_is_not_found_and_counts_as_rejected() {
    let double = Double::echo();
    let (_owner, foreign) = model(&double);
    let (client, own) = model(&double);
    let error = block_on(client.enqueue_inference(InferenceRequest::new(foreign, number(1)))).unwrap_err();
    assert!(matches!(error, Error::ModelNotFound { model_ref } if model_ref == foreign));
    assert!(matches!(client.unload(foreign), Err(Error::ModelNotFound { .. })));
    assert!(matches!(client.description(foreign), Err(Error::ModelNotFound { .. })));
    assert!(client.description(own).is_ok());
    let outcomes = client.stats().outcomes;
    assert_eq!((outcomes.submitted, outcomes.rejected), (1, 1));
}

#[test]
fn unloading_serves_what_was_handed_in_then_frees_the_instances_and_keeps_the_counts() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let futures = (0..10)
        .map(|n| start(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)))))
        .collect::<Vec<_>>();
    door.wait_for(1);
    client.unload(model_ref).unwrap();
    let error = block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1)))).unwrap_err();
    assert!(matches!(error, Error::Unloaded { .. }));
    assert!(matches!(client.unload(model_ref), Err(Error::Unloaded { .. })));
    door.open();
    for future in futures {
        block_on(future).unwrap();
    }
    eventually("the end of the instance", || double.live.load(Ordering::SeqCst) == 0);
    eventually("the end of the model", || client.stats().models.is_empty());
    let outcomes = client.stats().outcomes;
    assert_eq!((outcomes.submitted, outcomes.ok, outcomes.closed), (11, 10, 1));
    assert_ne!(client.load_model("model").unwrap(), model_ref);
}

#[test]
fn a_request_that_meets_an_unload_half_way_is_told_so_and_counted() {
    let (client, model_ref) = model(&Double::echo());
    // It has found its model, and is about to stand in the queue.
    let version = client.runtime().route(model_ref, Priority::Normal).unwrap();
    client.unload(model_ref).unwrap();
    let (response_sender, _response) = oneshot::channel();
    let request = InferenceRequest::new(model_ref, number(1));
    let message = InferenceMessage { id: uuid::Uuid::new_v4(), model_ref, request, response_sender };
    let refused = version.submit(message, Instant::now(), None, WhenFull::Refuse);
    let Err((Denied::For(Error::Unloaded { model_ref: told }), _)) = refused else {
        panic!("it was taken in, or refused for another reason")
    };
    assert_eq!(told, model_ref);
    drop(version);
    assert_settled(&client);
    assert_eq!(client.stats().outcomes.closed, 1);
}

#[test]
fn the_same_source_is_one_model_and_another_configuration_is_another() {
    let double = Double::echo();
    let client = client(&double);
    let first = client.load_model("model").unwrap();
    assert_eq!(client.load_model("model").unwrap(), first);
    let other = Config { function: Some("other".into()), ..Config::default() };
    assert_ne!(client.load_model_with("model", other).unwrap(), first);
    assert_eq!(double.loads.load(Ordering::SeqCst), 2);
}

#[test]
fn a_file_that_was_replaced_is_another_model() {
    let path = std::env::temp_dir().join(format!("coreml-client-{}.mlmodel", uuid::Uuid::new_v4()));
    let double = Double::echo();
    let client = client(&double);
    std::fs::write(&path, "one").unwrap();
    let first = client.load_model(&path).unwrap();
    assert_eq!(client.load_model(&path).unwrap(), first);
    std::fs::write(&path, "the other").unwrap();
    assert_ne!(client.load_model(&path).unwrap(), first);
    std::fs::remove_file(path).unwrap();
}

/// Shared stores keep a model's files elsewhere, and a package of links to them.
#[cfg(unix)]
#[test]
fn a_package_of_links_takes_the_memory_of_what_they_lead_to() {
    let folder = std::env::temp_dir().join(format!("coreml-client-{}", uuid::Uuid::new_v4()));
    let (weights, package) = (folder.join("weights"), folder.join("model.mlpackage"));
    std::fs::create_dir_all(&package).unwrap();
    std::fs::write(&weights, vec![0; 10_000]).unwrap();
    std::os::unix::fs::symlink(&weights, package.join("weight.bin")).unwrap();
    let client = client(&Double::echo());
    client.load_model(&package).unwrap();
    assert_eq!(client.stats().models[0].memory, 10_000);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_thousand_callers_share_one_load_and_dropping_the_first_of_them_changes_nothing() {
    let (double, door) = Double::loading_behind_a_door();
    let client = client(&double);
    let first = start(client.load_model_async("model"));
    let others = (0..999).map(|_| start(client.load_model_async("model"))).collect::<Vec<_>>();
    door.wait_for(1);
    drop(first);
    door.open();
    let refs = others.into_iter().map(|load| block_on(load).unwrap()).collect::<Vec<_>>();
    assert!(refs.iter().all(|model_ref| *model_ref == refs[0]));
    assert_eq!(double.loads.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_or_panicking_load_is_told_to_all_once_and_not_remembered() {
    let door = Door::default();
    let behind = door.clone();
    let double = Double::with_load(
        move |loads| {
            behind.pass();
            match loads {
                0 => panic!("no such luck"),
                1 => Err(gone()),
                _ => Ok(()),
            }
        },
        |request| request.features.clone(),
    );
    let client = client(&double);
    let loads = (0..1_000).map(|_| start(client.load_model_async("model"))).collect::<Vec<_>>();
    door.wait_for(1);
    door.open();
    for load in loads {
        match block_on(load) {
            Err(Error::LoadPanicked { message, .. }) => assert!(message.contains("no such luck")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(double.loads.load(Ordering::SeqCst), 1);
    assert!(matches!(client.load_model("model"), Err(Error::Load { .. })));
    assert!(client.load_model("model").is_ok());
}

#[test]
fn a_hung_load_blocks_no_other() {
    let door = Door::default();
    let behind = door.clone();
    let double = Double::with_load(
        move |loads| {
            if loads == 0 {
                behind.pass();
            }
            Ok(())
        },
        |request| request.features.clone(),
    );
    let client = client(&double);
    let hung = start(client.load_model_async("one"));
    door.wait_for(1);
    let other = client.load_model("other").unwrap();
    assert!(block_on(client.enqueue_inference(InferenceRequest::new(other, number(1)))).is_ok());
    door.open();
    block_on(hung).unwrap();
}

#[test]
fn loading_may_block_inside_a_task_of_tokio() {
    let double = Double::echo();
    let client = client(&double);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { client.load_model("model") }).unwrap();
}

// ---- the end ----

#[test]
fn draining_serves_everything_and_reports_it() {
    let double = Double::new(|request| {
        thread::sleep(Duration::from_millis(1));
        request.features.clone()
    });
    let (client, model_ref) = model(&double);
    let futures = (0..100)
        .map(|n| start(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)))))
        .collect::<Vec<_>>();
    let before = client.stats().outcomes.ok;
    let report = block_on(client.shutdown(Shutdown::Drain { deadline: Instant::now() + PATIENCE }));
    assert!(report.completed <= 100 && report.completed >= 100 - before - 64);
    assert_eq!((report.closed, report.abandoned_threads), (0, 0));
    for future in futures {
        block_on(future).unwrap();
    }
    assert_eq!(double.live.load(Ordering::SeqCst), 0);
    assert!(matches!(
        block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1)))),
        Err(Error::ShutDown)
    ));
    assert!(matches!(client.load_model("model"), Err(Error::ShutDown)));
    assert!(matches!(client.unload(ModelRef::new()), Err(Error::ShutDown)));
    assert_eq!(block_on(client.shutdown(Shutdown::Abort)), report);
    assert_settled(&client);
}

#[test]
fn an_abort_closes_what_is_queued_at_once_and_reports_a_stuck_thread() {
    let (double, door) = Double::behind_a_door();
    let backend = Arc::new(Shared(Arc::clone(&double)));
    let client =
        ModelClient::builder().backend(backend).threads(1).stop_grace(Duration::from_millis(20)).build();
    let model_ref = client.load_model("model").unwrap();
    let stuck = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(0))));
    door.wait_for(1);
    let queued = (0..100)
        .map(|n| start(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)))))
        .collect::<Vec<_>>();
    // Cancel-safe: the shutdown goes on.
    drop(start(client.shutdown(Shutdown::Abort)));
    for future in queued {
        assert!(matches!(block_on(future), Err(Error::ShutDown)));
    }
    let report = block_on(client.shutdown(Shutdown::Abort));
    assert_eq!((report.completed, report.closed, report.abandoned_threads), (0, 100, 1));
    door.open();
    assert!(block_on(stuck).is_ok(), "what runs is still answered");
    eventually("the end of the thread", || double.live.load(Ordering::SeqCst) == 0);
    assert_settled(&client);
}

#[test]
fn a_drain_turns_into_an_abort_at_its_deadline() {
    let (double, door) = Double::behind_a_door();
    let backend = Arc::new(Shared(Arc::clone(&double)));
    let client =
        ModelClient::builder().backend(backend).threads(1).stop_grace(Duration::from_millis(20)).build();
    let model_ref = client.load_model("model").unwrap();
    let futures = (0..10)
        .map(|n| start(client.enqueue_inference(InferenceRequest::new(model_ref, number(n)))))
        .collect::<Vec<_>>();
    door.wait_for(1);
    let deadline = Instant::now() + Duration::from_millis(30);
    let report = block_on(client.shutdown(Shutdown::Drain { deadline }));
    assert!(Instant::now() >= deadline);
    assert_eq!((report.closed, report.abandoned_threads), (9, 1));
    door.open();
    assert_eq!(futures.into_iter().map(block_on).filter(Result::is_ok).count(), 1);
}

#[test]
fn a_load_under_way_is_told_of_the_shutdown_and_counted_as_abandoned() {
    let (double, door) = Double::loading_behind_a_door();
    let backend = Arc::new(Shared(Arc::clone(&double)));
    let client =
        ModelClient::builder().backend(backend).threads(1).stop_grace(Duration::from_millis(20)).build();
    let load = start(client.load_model_async("model"));
    door.wait_for(1);
    let report = block_on(client.shutdown(Shutdown::Abort));
    assert_eq!(report.abandoned_threads, 1);
    assert!(matches!(block_on(load), Err(Error::ShutDown)));
    door.open();
    eventually("the end of the instance", || {
        double.loads.load(Ordering::SeqCst) == 1 && double.live.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn the_drop_of_the_last_client_answers_whoever_waits_and_does_not_wait_itself() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let clone = client.clone();
    let running = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(0))));
    door.wait_for(1);
    let queued = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(1))));
    let unpolled = client.enqueue_inference(InferenceRequest::new(model_ref, number(2)));
    drop(client);
    let mut queued = queued;
    assert!(Pin::new(&mut queued).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(clone);
    assert!(matches!(block_on(queued), Err(Error::ShutDown)));
    assert!(matches!(block_on(unpolled), Err(Error::ShutDown)));
    door.open();
    assert!(block_on(running).is_ok());
    eventually("the end of the instance", || double.live.load(Ordering::SeqCst) == 0);
}

// ---- everything at once ----

#[test]
fn the_conservation_law_is_exact_after_a_random_mix() {
    let asked = Arc::new(AtomicUsize::new(0));
    let double = Double::new(|request| {
        let n = read(&request.features);
        if n % 7 == 0 {
            thread::sleep(Duration::from_micros(200));
        }
        assert!(n % 101 != 100, "unlucky");
        request.features.clone()
    });
    let backend = Arc::new(Shared(Arc::clone(&double)));
    let client = ModelClient::builder()
        .backend(backend)
        .threads(2)
        .max_queued(8)
        .retry(Retry { failures: 1_000, ..QUICK })
        .build();
    let model_ref = client.load_model("model").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    const TASKS: i32 = 8;
    const REQUESTS: i32 = 400;
    let seen = runtime.block_on(async {
        let tasks = (0..TASKS).map(|task| {
            let (client, asked) = (client.clone(), Arc::clone(&asked));
            tokio::spawn(async move {
                let mut seen = crate::Outcomes::default();
                for n in 0..REQUESTS {
                    let n = n * TASKS + task;
                    let mut request =
                        InferenceRequest::new(model_ref, number(n)).priority(Priority::ALL[(n % 3) as usize]);
                    if n % 5 == 0 {
                        request = request.timeout(Duration::from_micros((n % 500) as u64));
                    }
                    if n % 97 == 0 {
                        request.model_ref = ModelRef::new();
                    }
                    seen.submitted += 1;
                    let answer: Option<Result<InferenceResult>> = if n % 4 == 0 {
                        match client.try_enqueue(request) {
                            Ok(future) => Some(future.await),
                            Err(refused) => Some(Err(refused.source)),
                        }
                    } else if n % 11 == 0 {
                        let mut future = Box::pin(client.enqueue_inference(request));
                        std::future::poll_fn(|context| match future.as_mut().poll(context) {
                            Poll::Ready(answer) => Poll::Ready(Some(answer)),
                            Poll::Pending => Poll::Ready(None),
                        })
                        .await
                    } else {
                        Some(client.enqueue_inference(request).await)
                    };
                    match answer {
                        None => seen.cancelled += 1,
                        Some(Ok(result)) => {
                            assert_eq!(read(&result.outputs), n);
                            seen.ok += 1;
                        }
                        Some(Err(Error::WorkerPanicked { .. })) => seen.error += 1,
                        Some(Err(Error::DeadlineExceeded { .. })) => seen.expired += 1,
                        Some(Err(Error::QueueFull { .. } | Error::ModelNotFound { .. })) => {
                            seen.rejected += 1
                        }
                        Some(Err(Error::ShutDown)) => seen.closed += 1,
                        Some(Err(error)) => panic!("{error}"),
                    }
                    if asked.fetch_add(1, Ordering::Relaxed) == (TASKS * REQUESTS * 9 / 10) as usize {
                        let _ = client.shutdown(Shutdown::Abort).await;
                    }
                }
                seen
            })
        });
        let mut seen = crate::Outcomes::default();
        for task in tasks.collect::<Vec<_>>() {
            seen += task.await.unwrap();
        }
        seen
    });
    let stats = client.stats().outcomes;
    assert_eq!(seen.submitted, (TASKS * REQUESTS) as u64);
    assert_eq!(seen.settled(), seen.submitted);
    assert_eq!((stats.submitted, stats.rejected), (seen.submitted, seen.rejected));
    // A request may end in the instant in which its caller gives it up; nothing else may differ.
    let strays = seen.cancelled - stats.cancelled;
    let others =
        |outcomes: &crate::Outcomes| outcomes.ok + outcomes.error + outcomes.expired + outcomes.closed;
    assert_eq!(others(&stats), others(&seen) + strays);
    assert!(stats.ok >= seen.ok && stats.error >= seen.error && stats.expired >= seen.expired);
    let crate::Outcomes { submitted: _, ok, error, cancelled, expired, rejected, closed } = seen;
    assert!([ok, error, cancelled, expired, rejected, closed].iter().all(|&count| count > 0), "{seen:?}");
    assert_settled(&client);
    eventually("the end of the instances", || double.live.load(Ordering::SeqCst) == 0);
}

#[test]
fn stats_print_as_a_table() {
    let double = Double::echo();
    let (client, model_ref) = model(&double);
    block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1)))).unwrap();
    let table = client.stats().to_string();
    for word in ["submitted", "latency", "p99", "predict", "worker", "model"] {
        assert!(table.contains(word), "{table}");
    }
}

#[cfg(feature = "serde")]
#[test]
fn stats_serialize_with_model_names_and_seconds() {
    let double = Double::echo();
    let (client, model_ref) = model(&double);
    block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1)))).unwrap();
    let json = serde_json::to_value(client.stats()).unwrap();
    assert_eq!(json["outcomes"]["ok"], 1);
    assert_eq!(json["models"][0]["model_ref"], model_ref.to_string());
    assert_eq!(json["models"][0]["total_time"]["count"], 1);
    assert!(json["models"][0]["total_time"]["p50"].as_f64().unwrap() < PATIENCE.as_secs_f64());
}

#[test]
fn everything_that_travels_may_travel() {
    fn sendable<T: Send + 'static>(_: &T) {}
    fn shareable<T: Send + Sync + 'static>(_: &T) {}
    let double = Double::echo();
    let (client, model_ref) = model(&double);
    shareable(&client);
    shareable(&model_ref);
    shareable(&number(1));
    shareable(&Tensor::from_vec(&[1], vec![1]).unwrap());
    sendable(&client.enqueue_inference(InferenceRequest::new(model_ref, number(1))));
    sendable(&client.load_model_async("model"));
    sendable(&client.load("model"));
    sendable(&client.load_pinned("model"));
    sendable(&client.swap(model_ref, "new"));
    sendable(&client.swap(model_ref, "new").check(|_| Ok::<_, String>(())).into_future());
    sendable(&client.reserve(model_ref, Priority::Normal, 4));
    sendable(&block_on(client.reserve(model_ref, Priority::Normal, 4)).unwrap());
    shareable(&client.pin(model_ref).unwrap());
    sendable(&client.shutdown(Shutdown::Abort));
    sendable(&oneshot::channel::<Result<InferenceResult>>());
    shareable(&client.stats());
    shareable(&Error::ShutDown);
}

#[test]
fn only_so_many_unloaded_models_are_remembered() {
    let double = Double::echo();
    let client = client(&double);
    let unload = |name: String| {
        let model_ref = client.load_model(name).unwrap();
        client.unload(model_ref).unwrap();
        model_ref
    };
    let first = unload("first".to_owned());
    let ask = |model_ref| block_on(client.enqueue_inference(InferenceRequest::new(model_ref, number(1))));
    assert!(matches!(ask(first), Err(Error::Unloaded { .. })));
    let others: Vec<_> = (0..crate::runtime::Tombstones::MOST).map(|n| unload(n.to_string())).collect();
    let last = others[others.len() - 1];
    assert!(matches!(ask(last), Err(Error::Unloaded { .. })));
    assert!(matches!(ask(first), Err(Error::ModelNotFound { .. })));
    assert_eq!((client.stats().outcomes.closed, client.stats().outcomes.rejected), (2, 1));
}

#[test]
fn a_message_that_nobody_holds_a_future_of_expires_while_all_threads_are_stuck() {
    let (double, door) = Double::behind_a_door();
    let (client, model_ref) = model(&double);
    let stuck = start(client.enqueue_inference(InferenceRequest::new(model_ref, number(0))));
    door.wait_for(1);
    let send = |timeout| {
        let request = InferenceRequest::new(model_ref, number(1)).timeout(timeout);
        let (message, answer) = InferenceMessage::new(request);
        client.try_send(message).unwrap();
        answer
    };
    for timeout in [20, 5].map(Duration::from_millis) {
        let answer = block_on(send(timeout)).unwrap();
        assert!(matches!(answer, Err(Error::DeadlineExceeded { stage: Stage::Queued })), "{answer:?}");
    }
    assert_eq!(client.stats().models[0].depth, [0; 3]);
    drop(send(PATIENCE));
    door.open();
    block_on(stuck).unwrap();
    assert_eq!(client.stats().outcomes.expired, 2);
}

#[test]
fn the_systems_pressure_is_followed_if_asked() {
    use crate::MemoryPressure;

    let level = Arc::new(Mutex::new(Some(MemoryPressure::Normal)));
    let told = Arc::clone(&level);
    let double = Double::echo();
    let client = ModelClient::builder()
        .backend(Arc::new(Shared(Arc::clone(&double))))
        .threads(1)
        .pressure(Arc::new(move || *told.lock().unwrap()))
        .build();
    client.load_model("model").unwrap();
    *level.lock().unwrap() = Some(MemoryPressure::Critical);
    eventually("the eviction", || double.live.load(Ordering::SeqCst) == 0);
    assert!(matches!(client.load_model("model"), Err(Error::MemoryPressure { .. })));
    *level.lock().unwrap() = Some(MemoryPressure::Normal);
    eventually("the end of the shortage", || client.load_model("model").is_ok());
}

#[test]
fn a_load_that_fails_leaves_nothing_behind() {
    let double = Double::with_load(|_| panic!("injected"), |request| request.features.clone());
    let client = client(&double);
    for _ in 0..3 {
        assert!(matches!(client.load_model("model").unwrap_err(), Error::LoadPanicked { .. }));
    }
    assert_eq!(client.runtime().kept_models(), 0);
}
