//! One loaded model: its queue, and the threads that serve it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use coreml_bridge::{Config, ModelDescription, ModelRef};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::backend::{Backend, Instance};
use crate::error::panic_message;
use crate::queue::{Ending, Job, Key, Next, Offer, Pushed, Queue, Refusal, Removed, Reply, Taken, WhenFull};
use crate::runtime::{Runtime, thread_name};
use crate::stats::{ModelStats, Recorder, WorkerState, WorkerStats};
use crate::{
    Error, InferenceMessage, InferenceRequest, InferenceResult, InferenceTimings, Limits, Outcomes, Result,
};

/// What comes back for a request.
pub(crate) type Answer = Result<InferenceResult>;

/// The jobs of a model's queue.
pub(crate) struct Inferences;

impl Job for Inferences {
    type Payload = Request;
    type Reply = oneshot::Sender<Answer>;
    type Cause = Error;
    type Wake = Sender<()>;
}

impl Reply for oneshot::Sender<Answer> {
    fn is_abandoned(&self) -> bool {
        self.is_closed()
    }
}

/// A message without its way back.
pub(crate) struct Request {
    id: Uuid,
    submitted: Instant,
    request: InferenceRequest,
}

/// How a version is served.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) threads: usize,
    pub(crate) limits: Limits,
    pub(crate) retry: Retry,
}

/// How often a thread tries to get an instance that works.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    /// Pauses before the first, second, ... try in a row; the last one repeats.
    pub(crate) pauses: &'static [Duration],
    /// This many failures ...
    pub(crate) failures: usize,
    /// ... within this time are too many.
    pub(crate) within: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        const PAUSES: [Duration; 6] = [
            Duration::ZERO,
            Duration::from_secs(1),
            Duration::from_secs(2),
            Duration::from_secs(5),
            Duration::from_secs(10),
            Duration::from_secs(30),
        ];
        Self { pauses: &PAUSES, failures: 5, within: Duration::from_secs(60) }
    }
}

pub(crate) struct Version {
    pub(crate) model_ref: ModelRef,
    path: PathBuf,
    config: Config,
    backend: Arc<dyn Backend>,
    retry: Retry,
    queue: Queue<Inferences>,
    seats: Box<[Seat]>,
    /// Seats that have been taken; they are taken in order.
    started: AtomicUsize,
    recorder: Recorder,
    description: OnceLock<Arc<ModelDescription>>,
    failures: Mutex<VecDeque<Instant>>,
    runtime: Weak<Runtime>,
}

/// The place of one thread.
struct Seat {
    signals: Receiver<()>,
    state: AtomicU8,
    busy_nanos: AtomicU64,
    restarts: AtomicU64,
}

impl Seat {
    const STATES: [WorkerState; 5] = [
        WorkerState::Unstarted,
        WorkerState::Building,
        WorkerState::Idle,
        WorkerState::Running,
        WorkerState::Stopped,
    ];

    fn new(signals: Receiver<()>) -> Self {
        Self { signals, state: AtomicU8::new(0), busy_nanos: AtomicU64::new(0), restarts: AtomicU64::new(0) }
    }

    fn set(&self, state: WorkerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn stats(&self) -> WorkerStats {
        WorkerStats {
            state: Self::STATES[usize::from(self.state.load(Ordering::Relaxed))],
            busy: Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed)),
            restarts: self.restarts.load(Ordering::Relaxed),
        }
    }
}

impl Version {
    pub(crate) fn new(
        model_ref: ModelRef,
        path: PathBuf,
        config: Config,
        backend: Arc<dyn Backend>,
        service: &Service,
        runtime: Weak<Runtime>,
    ) -> Self {
        let (wakes, seats): (Vec<_>, Vec<_>) = (0..service.threads.max(1))
            .map(|_| {
                let (wake, signals) = crossbeam_channel::bounded(1);
                (wake, Seat::new(signals))
            })
            .unzip();
        Self {
            model_ref,
            path,
            config,
            backend,
            retry: service.retry.clone(),
            queue: Queue::new(service.limits, wakes.into()),
            seats: seats.into(),
            started: AtomicUsize::new(1),
            recorder: Recorder::new(),
            description: OnceLock::new(),
            failures: Mutex::default(),
            runtime,
        }
    }

    /// Hands a request in. `Err` gives the message back, counted and unanswered.
    #[allow(clippy::result_large_err, reason = "a refused message goes back by value, not by allocation")]
    pub(crate) fn submit(
        self: &Arc<Self>,
        message: InferenceMessage,
        submitted: Instant,
        deadline: Option<Instant>,
        when_full: WhenFull,
    ) -> Result<Key, (Error, InferenceMessage)> {
        let InferenceMessage { id, model_ref, request, response_sender } = message;
        let bytes = request.features.byte_len();
        let offer = Offer {
            priority: request.priority,
            bytes,
            submitted,
            deadline,
            payload: Request { id, submitted, request },
            reply: response_sender,
        };
        match self.queue.push(offer, when_full) {
            Ok(Pushed { key, all_busy }) => {
                if all_busy {
                    self.start_one_more();
                }
                Ok(key)
            }
            Err(refused) => {
                let error = match refused.refusal {
                    Refusal::Full => Error::QueueFull { model_ref },
                    Refusal::TooLarge { limit } => Error::TooLarge { model_ref, bytes, limit },
                    Refusal::Expired => Error::DeadlineExceeded { stage: crate::Stage::Admission },
                    Refusal::Closed(cause) => cause,
                };
                let Request { id, submitted: _, request } = refused.payload;
                Err((error, InferenceMessage { id, model_ref, request, response_sender: refused.reply }))
            }
        }
    }

    /// The caller went away.
    pub(crate) fn cancel(&self, key: Key) {
        drop(self.queue.cancel(key));
    }

    /// The deadline passed: the caller is told, and what is queued is freed.
    pub(crate) fn expire(&self, key: Key) {
        if let Some(removed) = self.queue.expire(key) {
            expired(removed);
        }
    }

    /// Lets nothing more in, serves what is in, and ends the threads.
    pub(crate) fn drain(&self, cause: Error) {
        self.queue.drain(cause);
    }

    /// Lets nothing more in, tells everyone who waits in the queue why, and ends the threads.
    pub(crate) fn close(&self, cause: Error) {
        for removed in self.queue.close(cause.clone()) {
            contain(|| drop(removed.payload));
            answer(removed.reply, Err(cause.clone()));
        }
    }

    pub(crate) fn description(&self) -> Option<&Arc<ModelDescription>> {
        self.description.get()
    }

    /// All priorities together, and the predictions that finished detached.
    pub(crate) fn outcomes(&self) -> (Outcomes, u64) {
        let snapshot = self.queue.snapshot();
        (snapshot.outcomes.into_iter().sum(), snapshot.detached)
    }

    pub(crate) fn stats(&self) -> ModelStats {
        let snapshot = self.queue.snapshot();
        let recorded = self.recorder.snapshot();
        ModelStats {
            model_ref: self.model_ref,
            path: self.path.clone(),
            outcomes: snapshot.outcomes,
            detached: snapshot.detached,
            depth: snapshot.depth,
            bytes: snapshot.bytes,
            waiting: snapshot.waiting,
            running: snapshot.running,
            queue_time: recorded.queue,
            predict_time: recorded.predict,
            total_time: recorded.total,
            workers: self.seats.iter().map(Seat::stats).collect(),
        }
    }

    /// Starts the next thread, if there is one left. It serves nobody before it has its instance, so no request waits
    /// for it that another thread could take.
    fn start_one_more(self: &Arc<Self>) {
        if self.started.load(Ordering::Relaxed) >= self.seats.len() {
            return;
        }
        let claim = |started| (started < self.seats.len()).then_some(started + 1);
        let Ok(worker) = self.started.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim) else {
            return;
        };
        let Some(runtime) = self.runtime.upgrade() else { return };
        let version = Arc::clone(self);
        let spawned = runtime.spawn(thread_name(&self.path, worker), move || version.serve(worker, None));
        if spawned.is_err() {
            // The threads there are go on. A later request tries again, unless a higher seat was claimed meanwhile.
            let _ = self.started.compare_exchange(worker + 1, worker, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Builds the first instance, on the thread that will be worker 0.
    pub(crate) fn first_instance(&self) -> Result<Box<dyn Instance>> {
        self.instantiate(0)
    }

    fn instantiate(&self, worker: usize) -> Result<Box<dyn Instance>> {
        self.seats[worker].set(WorkerState::Building);
        let path = || self.path.clone();
        let built = catch_unwind(AssertUnwindSafe(|| {
            let instance = self.backend.instantiate(self.model_ref, &self.path, &self.config)?;
            self.description.get_or_init(|| instance.description());
            Ok(instance)
        }));
        match built {
            Ok(Ok(instance)) => Ok(instance),
            Ok(Err(source)) => Err(Error::Load { path: path(), source: Arc::new(source) }),
            Err(panic) => Err(Error::LoadPanicked { path: path(), message: panic_message(panic) }),
        }
    }

    /// The life of an inference thread.
    pub(crate) fn serve(&self, worker: usize, first: Option<Box<dyn Instance>>) {
        let seat = &self.seats[worker];
        let mut instance = first;
        let mut in_a_row = 0;
        loop {
            let current = match instance.take() {
                Some(current) => current,
                None => match self.instantiate(worker) {
                    Ok(current) => current,
                    Err(error) => {
                        if !self.note_failure(error) || !self.pause(worker, &mut in_a_row) {
                            break;
                        }
                        continue;
                    }
                },
            };
            let mut lease = Lease { version: self, worker, served: 0, current: None };
            match lease.run(current) {
                Leave::Stop => break,
                Leave::Panicked(error) => {
                    seat.restarts.fetch_add(1, Ordering::Relaxed);
                    // An instance that has served is sound until proved otherwise; one that never did is a failure.
                    if lease.served > 0 {
                        in_a_row = 0;
                    } else if !self.note_failure(error) {
                        break;
                    }
                    if !self.pause(worker, &mut in_a_row) {
                        break;
                    }
                }
            }
        }
        seat.set(WorkerState::Stopped);
        self.queue.leave(worker);
    }

    /// Whether to go on: too many failures close the queue.
    fn note_failure(&self, error: Error) -> bool {
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.push_back(now);
        while failures.front().is_some_and(|&first| now.duration_since(first) > self.retry.within) {
            failures.pop_front();
        }
        let too_many = failures.len() >= self.retry.failures;
        drop(failures);
        if too_many {
            if let Some(runtime) = self.runtime.upgrade() {
                runtime.forget_source(self.model_ref);
            }
            self.close(Error::ModelFailed { model_ref: self.model_ref, source: Arc::new(error) });
        }
        !too_many
    }

    /// Waits before the next try; `false` if there is nothing left to serve.
    fn pause(&self, worker: usize, in_a_row: &mut usize) -> bool {
        let seat = &self.seats[worker];
        seat.set(WorkerState::Building);
        let pauses = self.retry.pauses;
        let until = Instant::now() + pauses[(*in_a_row).min(pauses.len() - 1)];
        *in_a_row += 1;
        loop {
            if self.queue.is_finished() {
                return false;
            }
            match seat.signals.recv_deadline(until) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

/// Why a thread let go of its instance.
enum Leave {
    Stop,
    Panicked(Error),
}

/// One thread with one instance.
struct Lease<'a> {
    version: &'a Version,
    worker: usize,
    served: u64,
    /// The job under way.
    current: Option<Key>,
}

impl Lease<'_> {
    fn run(&mut self, mut instance: Box<dyn Instance>) -> Leave {
        let version = self.version;
        let seat = &version.seats[self.worker];
        let mut done: Option<(Key, Ending, Answer)> = None;
        let mut now = Instant::now();
        loop {
            let finished = done.as_ref().map(|(key, ending, _)| (*key, *ending));
            let turn = version.queue.turn(self.worker, finished, now);
            if let Next::Run(job) = &turn.next {
                self.current = Some(job.key);
            }
            if let Some((_, _, result)) = done.take() {
                answer(turn.reply, result);
            }
            turn.expired.into_iter().for_each(expired);
            turn.abandoned.into_iter().for_each(|removed| contain(|| drop(removed)));
            let job = match turn.next {
                Next::Run(job) => job,
                Next::Idle => {
                    seat.set(WorkerState::Idle);
                    // The queue owns the sender, so there always is one.
                    let _ = seat.signals.recv();
                    now = Instant::now();
                    continue;
                }
                Next::Stop => {
                    contain(|| drop(instance));
                    return Leave::Stop;
                }
            };
            seat.set(WorkerState::Running);
            let key = job.key;
            let (end, result) = self.predict(&mut instance, job, now);
            self.current = None;
            now = end;
            match result {
                Ok(result) => {
                    self.served += 1;
                    let ending = if result.is_ok() { Ending::Ok } else { Ending::Error };
                    done = Some((key, ending, result));
                }
                Err(error) => {
                    let reply = version.queue.finish(key, Ending::Error);
                    answer(reply, Err(error.clone()));
                    contain(|| drop(instance));
                    return Leave::Panicked(error);
                }
            }
        }
    }

    /// One prediction; the inputs are freed before it returns. The outer `Err` is a panic.
    fn predict(
        &self,
        instance: &mut Box<dyn Instance>,
        job: Taken<Inferences>,
        start: Instant,
    ) -> (Instant, Result<Answer>) {
        let version = self.version;
        let model_ref = version.model_ref;
        let Request { id, submitted, request } = job.payload;
        let predicted = catch_unwind(AssertUnwindSafe(|| {
            let predicted = instance.predict(&request);
            drop(request);
            predicted
        }));
        let end = Instant::now();
        let queue = start.saturating_duration_since(submitted);
        let predict = end - start;
        version.recorder.record(queue, predict);
        let nanos = u64::try_from(predict.as_nanos()).unwrap_or(u64::MAX);
        version.seats[self.worker].busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        let result = match predicted {
            Ok(Ok((outputs, bridge))) => Ok(Ok(InferenceResult {
                id,
                model_ref,
                outputs,
                timings: InferenceTimings { queue, predict, bridge },
                worker: self.worker,
            })),
            Ok(Err(source)) => Ok(Err(Error::Predict { model_ref, source: Arc::new(source) })),
            Err(panic) => Err(Error::WorkerPanicked { model_ref, message: panic_message(panic) }),
        };
        (end, result)
    }
}

impl Drop for Lease<'_> {
    /// Whatever ends the thread's work with a job in hand, its caller hears of it.
    fn drop(&mut self) {
        if let Some(key) = self.current.take() {
            let error = Error::WorkerPanicked {
                model_ref: self.version.model_ref,
                message: Arc::from("the inference thread ended"),
            };
            answer(self.version.queue.finish(key, Ending::Error), Err(error));
        }
    }
}

fn answer(reply: Option<oneshot::Sender<Answer>>, result: Answer) {
    if let Some(reply) = reply {
        // A reply nobody waits for is dropped here, on the thread that made it.
        contain(|| drop(reply.send(result)));
    }
}

fn expired(removed: Removed<Inferences>) {
    contain(|| drop(removed.payload));
    answer(removed.reply, Err(Error::DeadlineExceeded { stage: removed.stage }));
}

/// Runs code of others that has no say in what happens next: wakers, and destructors of inputs, outputs and instances.
fn contain(code: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(code)) {
        panic_message(panic);
    }
}
