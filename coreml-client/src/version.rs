//! One loaded model: its queue, and the threads that serve it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use coreml_bridge::{Config, ModelDescription, ModelRef};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use smallvec::SmallVec;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::backend::{Backend, Instance};
use crate::batch;
use crate::error::panic_message;
use crate::queue::{
    Ending, Gather, Grant, Job, Key, Next, Offer, Pushed, Queue, Refusal, Removed, Reply, Taken, WhenFull,
};
use crate::runtime::{Runtime, Source, thread_name};
use crate::source::{LoadStage, Options};
use crate::stats::{ModelStats, Recorder, WorkerState, WorkerStats};
use crate::telemetry::{Context, VersionMetrics};
use crate::timer::{Set, Timer};
use crate::tokens::Gates;
use crate::{
    Error, InferenceMessage, InferenceRequest, InferenceResult, InferenceTimings, Limits, Outcomes, Priority,
    Result,
};

/// What comes back for a request.
pub(crate) type Answer = Result<InferenceResult>;

/// The jobs of a model's queue.
pub(crate) struct Inferences;

impl Job for Inferences {
    type Payload = Request;
    type Reply = WayBack;
    type Cause = Error;
    type Wake = Sender<()>;
    type Grant = Granted;

    fn joins(first: &Request, other: &Request) -> bool {
        batch::joins(&first.request, &other.request)
    }
}

/// Tells a caller that its reservation is there.
pub(crate) struct Granted(pub(crate) oneshot::Sender<()>);

impl Grant for Granted {
    fn grant(self) {
        // Who asked may have gone; then its reservation is about to be cancelled.
        contain(|| {
            let _ = self.0.send(());
        });
    }
}

/// Where an answer goes.
pub(crate) struct WayBack {
    sender: oneshot::Sender<Answer>,
    /// Of a request whose caller holds no future that could keep it.
    _alarm: Option<Set>,
}

impl Reply for WayBack {
    fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }
}

/// A message without its way back.
pub(crate) struct Request {
    id: Uuid,
    submitted: Instant,
    context: Context,
    request: InferenceRequest,
}

/// How a version is served.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) threads: usize,
    pub(crate) limits: Limits,
    pub(crate) retry: Retry,
    /// Whether requests are refused whose deadlines cannot be kept.
    pub(crate) refuse_hopeless: bool,
}

/// What a version is made from.
pub(crate) struct Origin {
    pub(crate) model_ref: ModelRef,
    /// Counts the versions of a model from 1.
    pub(crate) number: u64,
    pub(crate) source: Source,
    /// As it was given.
    pub(crate) path: PathBuf,
    pub(crate) config: Config,
    pub(crate) options: Options,
    pub(crate) gates: Gates,
    /// Bytes of the memory budget.
    pub(crate) memory: usize,
}

/// Why a request was not taken in.
#[derive(Debug)]
pub(crate) enum Denied {
    /// Another version has taken over.
    Superseded,
    For(Error),
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
    pub(crate) number: u64,
    pub(crate) source: Source,
    path: PathBuf,
    config: Config,
    options: Options,
    gates: Gates,
    backend: Arc<dyn Backend>,
    retry: Retry,
    queue: Queue<Inferences>,
    seats: Box<[Seat]>,
    /// Seats that have been taken; they are taken in order.
    started: AtomicUsize,
    recorder: Recorder,
    metrics: VersionMetrics,
    description: OnceLock<Arc<ModelDescription>>,
    failures: Mutex<VecDeque<Instant>>,
    /// Moving mean of what a prediction takes; kept only if deadlines are checked against it.
    expected_nanos: Option<AtomicU64>,
    /// What it takes of the budget; nothing once its instances are gone. Written under the runtime's lock.
    pub(crate) memory: AtomicUsize,
    /// Closed to make room. Written under the runtime's lock.
    pub(crate) evicted: AtomicBool,
    /// When it was last idle or asked for, in the runtime's count.
    pub(crate) last_used: AtomicU64,
    /// Threads that have an instance, or are about to.
    serving: AtomicUsize,
    runtime: Weak<Runtime>,
    clock: Arc<crate::runtime::Clock>,
}

/// A thread of a version, for as long as it may have an instance.
pub(crate) struct Serving(Arc<Version>);

impl Serving {
    /// The thread that loads the version.
    pub(crate) fn first(version: &Arc<Version>) -> Self {
        version.serving.store(1, Ordering::Relaxed);
        Self(Arc::clone(version))
    }

    /// One more thread, unless all have ended.
    fn another(version: &Arc<Version>) -> Option<Self> {
        let more = |serving| (serving > 0).then_some(serving + 1);
        version.serving.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(version)))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.0.serving.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(runtime) = self.0.runtime.upgrade()
        {
            runtime.version_ended(&self.0);
        }
    }
}

/// The place of one thread.
struct Seat {
    wake: Sender<()>,
    signals: Receiver<()>,
    state: AtomicU8,
    busy_nanos: AtomicU64,
    restarts: AtomicU64,
}

impl Seat {
    fn new(wake: Sender<()>, signals: Receiver<()>) -> Self {
        let (busy_nanos, restarts) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { wake, signals, state: AtomicU8::new(0), busy_nanos, restarts }
    }

    fn set(&self, state: WorkerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn stats(&self) -> WorkerStats {
        WorkerStats {
            state: WorkerState::ALL[usize::from(self.state.load(Ordering::Relaxed))],
            busy: Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed)),
            restarts: self.restarts.load(Ordering::Relaxed),
        }
    }
}

impl Version {
    pub(crate) fn new(
        origin: Origin,
        backend: Arc<dyn Backend>,
        service: &Service,
        runtime: Weak<Runtime>,
        clock: Arc<crate::runtime::Clock>,
    ) -> Self {
        let Origin { model_ref, number, source, path, config, options, gates, memory } = origin;
        let (wakes, seats): (Vec<_>, Vec<_>) = (0..service.threads.max(1))
            .map(|_| {
                let (wake, signals) = crossbeam_channel::bounded(1);
                (wake.clone(), Seat::new(wake, signals))
            })
            .unzip();
        let gather = options
            .batching
            .map(|batching| Gather { most: batching.max_batch.max(1), delay: batching.max_delay })
            .filter(|gather| gather.most > 1);
        let last_used = AtomicU64::new(clock.tick());
        let metrics = VersionMetrics::new(model_ref, number, &path);
        Self {
            model_ref,
            number,
            source,
            path,
            config,
            options,
            gates,
            backend,
            retry: service.retry.clone(),
            queue: Queue::new(service.limits, gather, wakes.into()),
            seats: seats.into(),
            started: AtomicUsize::new(1),
            recorder: Recorder::new(),
            metrics,
            description: OnceLock::new(),
            failures: Mutex::default(),
            expected_nanos: service.refuse_hopeless.then(AtomicU64::default),
            memory: AtomicUsize::new(memory),
            evicted: AtomicBool::new(false),
            last_used,
            serving: AtomicUsize::new(0),
            runtime,
            clock,
        }
    }

    /// When a request that says nothing expires.
    pub(crate) fn default_timeout(&self) -> Option<Duration> {
        self.options.default_timeout
    }

    fn expected(&self) -> Option<Duration> {
        let nanos = self.expected_nanos.as_ref()?.load(Ordering::Relaxed);
        Some(Duration::from_nanos(nanos))
    }

    /// Hands a request in. `Err` gives the message back, counted and unanswered.
    #[allow(clippy::result_large_err, reason = "a refused message goes back by value, not by allocation")]
    pub(crate) fn submit(
        self: &Arc<Self>,
        message: InferenceMessage,
        submitted: Instant,
        deadline: Option<Instant>,
        when_full: WhenFull,
    ) -> Result<Key, (Denied, InferenceMessage)> {
        self.submit_with(message, submitted, deadline, when_full, None)
    }

    /// As [`submit`](Self::submit) without waiting, for a message that nobody holds a future of: the queue keeps its alarm.
    #[allow(clippy::result_large_err, reason = "a refused message goes back by value, not by allocation")]
    pub(crate) fn post(
        self: &Arc<Self>,
        message: InferenceMessage,
        submitted: Instant,
        deadline: Option<Instant>,
    ) -> Result<(), (Denied, InferenceMessage)> {
        let key: Arc<OnceLock<Key>> = Arc::default();
        let alarm = deadline.filter(|deadline| *deadline > submitted).and_then(|deadline| {
            let (version, key) = (Arc::downgrade(self), Arc::clone(&key));
            Timer::hold(deadline, move || {
                if let (Some(version), Some(key)) = (version.upgrade(), key.get()) {
                    version.expire(*key);
                }
            })
        });
        let admitted = self.submit_with(message, submitted, deadline, WhenFull::Refuse, alarm)?;
        key.get_or_init(|| admitted);
        // The alarm may have gone off before it knew what for.
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.expire(admitted);
        }
        Ok(())
    }

    #[allow(clippy::result_large_err, reason = "a refused message goes back by value, not by allocation")]
    fn submit_with(
        self: &Arc<Self>,
        message: InferenceMessage,
        submitted: Instant,
        deadline: Option<Instant>,
        when_full: WhenFull,
        alarm: Option<Set>,
    ) -> Result<Key, (Denied, InferenceMessage)> {
        let (offer, bytes) = self.offer(message, submitted, deadline, alarm);
        let model_ref = self.model_ref;
        match self.queue.push(offer, when_full) {
            Ok(Pushed { key, all_busy }) => {
                if all_busy {
                    self.start_one_more();
                }
                Ok(key)
            }
            Err(refused) => {
                let denied = self.denied(refused.refusal, bytes);
                let Request { id, submitted: _, context: _, request } = refused.payload;
                Err((
                    denied,
                    InferenceMessage { id, model_ref, request, response_sender: refused.reply.sender },
                ))
            }
        }
    }

    fn offer(
        &self,
        message: InferenceMessage,
        submitted: Instant,
        deadline: Option<Instant>,
        alarm: Option<Set>,
    ) -> (Offer<Inferences>, usize) {
        let InferenceMessage { id, model_ref: _, request, response_sender } = message;
        let bytes = request.features.byte_len();
        let offer = Offer {
            priority: request.priority,
            bytes,
            submitted,
            deadline,
            expected: self.expected(),
            payload: Request { id, submitted, context: Context::current(), request },
            reply: WayBack { sender: response_sender, _alarm: alarm },
        };
        (offer, bytes)
    }

    fn denied(&self, refusal: Refusal<Error>, bytes: usize) -> Denied {
        let model_ref = self.model_ref;
        Denied::For(match refusal {
            Refusal::Full => Error::QueueFull { model_ref },
            Refusal::TooLarge { limit } => Error::TooLarge { model_ref, bytes, limit },
            Refusal::Expired => Error::DeadlineExceeded { stage: crate::Stage::Admission },
            Refusal::Closed(cause) => cause,
            Refusal::Superseded => return Denied::Superseded,
        })
    }

    /// Asks for a place in the queue. Told through the receiver; if that is dropped untold, the queue has closed.
    pub(crate) fn reserve(
        &self,
        priority: Priority,
        bytes: usize,
    ) -> Result<(Key, oneshot::Receiver<()>), Denied> {
        let (sender, receiver) = oneshot::channel();
        match self.queue.reserve(priority, bytes, Instant::now(), Granted(sender)) {
            Ok(key) => Ok((key, receiver)),
            Err(refusal) => Err(self.denied(refusal, bytes)),
        }
    }

    /// Puts a request into its reserved place. `Err` gives the message back: the place was lost.
    pub(crate) fn fill(
        self: &Arc<Self>,
        key: Key,
        message: InferenceMessage,
        submitted: Instant,
        deadline: Option<Instant>,
    ) -> Result<Key, InferenceMessage> {
        let (offer, _) = self.offer(message, submitted, deadline, None);
        match self.queue.fill(key, offer) {
            Ok(Pushed { key, all_busy }) => {
                if all_busy {
                    self.start_one_more();
                }
                Ok(key)
            }
            Err(Offer { payload: Request { id, submitted: _, context: _, request }, reply, .. }) => {
                Err(InferenceMessage {
                    id,
                    model_ref: self.model_ref,
                    request,
                    response_sender: reply.sender,
                })
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
        if crate::mutant!("drain-aborts") {
            return self.close(cause);
        }
        revoke(self.queue.drain(cause));
    }

    /// Another version takes over: as a drain, but who comes late is sent there.
    pub(crate) fn supersede(&self) {
        revoke(self.queue.supersede());
    }

    /// Ends the threads if they have nothing to do.
    pub(crate) fn close_if_idle(&self, cause: Error) -> bool {
        self.queue.close_if_idle(cause)
    }

    /// Opens the queue again, if no thread has let go of its instance.
    pub(crate) fn reopen(&self) -> bool {
        self.queue.reopen()
    }

    /// Whether some thread has an instance.
    pub(crate) fn is_served(&self) -> bool {
        self.serving.load(Ordering::Acquire) > 0
    }

    /// It was asked for: others are evicted first.
    pub(crate) fn touch(&self) {
        self.last_used.store(self.clock.tick(), Ordering::Relaxed);
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
        self.picture(self.recorder.snapshot())
    }

    /// Without the distributions, which are large.
    #[cfg(feature = "metrics")]
    pub(crate) fn figures(&self) -> ModelStats {
        self.picture(crate::stats::Recorded::empty())
    }

    fn picture(&self, recorded: crate::stats::Recorded) -> ModelStats {
        let snapshot = self.queue.snapshot();
        ModelStats {
            model_ref: self.model_ref,
            version: self.number,
            path: self.path.clone(),
            memory: self.memory.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            outcomes: snapshot.outcomes,
            detached: snapshot.detached,
            depth: snapshot.depth,
            reserved: snapshot.reserved,
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
        let Some(serving) = Serving::another(self) else { return };
        let spawned = runtime.spawn(thread_name(&self.path, worker), move || serving.0.serve(worker, None));
        if spawned.is_err() {
            // The threads there are go on. A later request tries again, unless a higher seat was claimed meanwhile.
            let _ = self.started.compare_exchange(worker + 1, worker, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Builds the first instance, on the thread that will be worker 0.
    pub(crate) fn first_instance(&self, progress: &dyn Fn(LoadStage)) -> Result<Box<dyn Instance>> {
        let mut instance = self.instantiate(0, progress)?;
        let model_ref = self.model_ref;
        if !self.options.warm_up.is_empty() {
            progress(LoadStage::WarmingUp);
        }
        for features in &self.options.warm_up {
            let request = InferenceRequest::new(model_ref, features.clone());
            match catch_unwind(AssertUnwindSafe(|| instance.predict(&request).map(drop))) {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(Error::Predict { model_ref, source: Arc::new(source) }),
                Err(panic) => return Err(Error::WorkerPanicked { model_ref, message: panic_message(panic) }),
            }
        }
        Ok(instance)
    }

    fn instantiate(&self, worker: usize, progress: &dyn Fn(LoadStage)) -> Result<Box<dyn Instance>> {
        self.seats[worker].set(WorkerState::Building);
        let path = || self.path.clone();
        let built = catch_unwind(AssertUnwindSafe(|| {
            let instance = self.backend.instantiate(self.model_ref, &self.path, &self.config, progress)?;
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
                None if self.queue.stop_if_finished() => break,
                None => match self.instantiate(worker, &|_| ()) {
                    Ok(current) => current,
                    Err(error) => {
                        if !self.note_failure(error) || !self.pause(worker, &mut in_a_row) {
                            break;
                        }
                        continue;
                    }
                },
            };
            let mut lease = Lease { version: self, worker, served: 0, current: SmallVec::new() };
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
            if self.queue.stop_if_finished() {
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
    /// The jobs under way: several only in a batch.
    current: SmallVec<[Key; 1]>,
}

impl Lease<'_> {
    fn run(&mut self, mut instance: Box<dyn Instance>) -> Leave {
        let version = self.version;
        let seat = &version.seats[self.worker];
        let mut done: Option<(Key, Ending, Answer)> = None;
        let mut now = Instant::now();
        let mut passage = None;
        loop {
            if !version.gates.is_empty() {
                // The answer does not wait for a token, and nobody else for this thread's.
                drop(passage.take());
                if let Some((key, ending, result)) = done.take() {
                    answer(version.queue.finish(key, ending), result);
                }
                passage = version.gates.pass(&seat.wake, &seat.signals, || version.queue.stop_if_finished());
                if passage.is_none() {
                    contain(|| drop(instance));
                    return Leave::Stop;
                }
                now = Instant::now();
            }
            let finished = done.as_ref().map(|(key, ending, _)| (*key, *ending));
            if crate::mutant!("slow-hand-over") {
                std::thread::sleep(Duration::from_micros(200));
            }
            let turn = version.queue.turn(self.worker, finished, now);
            if let Next::Run(job) = &turn.next {
                self.current.push(job.key);
            }
            if let Some((_, _, result)) = done.take() {
                answer(turn.reply, result);
            }
            turn.expired.into_iter().for_each(expired);
            turn.abandoned.into_iter().for_each(|removed| contain(|| drop(removed)));
            let job = match turn.next {
                Next::Run(job) => job,
                Next::Idle => {
                    drop(passage.take());
                    version.touch();
                    seat.set(WorkerState::Idle);
                    version.clock.idle(&version.runtime);
                    // The seat owns a sender, so there always is one.
                    let _ = seat.signals.recv();
                    now = Instant::now();
                    continue;
                }
                Next::Hold(until) => {
                    drop(passage.take());
                    seat.set(WorkerState::Idle);
                    let _ = seat.signals.recv_deadline(until);
                    now = Instant::now();
                    continue;
                }
                Next::Stop => {
                    drop(passage.take());
                    contain(|| drop(instance));
                    return Leave::Stop;
                }
            };
            seat.set(WorkerState::Running);
            let mut jobs: SmallVec<[Taken<Inferences>; 1]> = SmallVec::new();
            if version.options.batching.is_some() {
                let others = version.queue.gather(&job, now);
                self.current.extend(others.iter().map(|job| job.key));
                jobs.push(job);
                jobs.extend(others);
            } else {
                jobs.push(job);
            }
            let (end, ended) = self.predict(&mut instance, jobs, now);
            self.current.clear();
            now = end;
            match ended {
                Ok(mut results) => {
                    self.served += 1;
                    // The last one is finished with the next turn: one visit to the lock for both.
                    done = results.pop().map(|(key, result)| (key, ending(&result), result));
                    for (key, result) in results {
                        answer(version.queue.finish(key, ending(&result)), result);
                    }
                }
                Err((keys, error)) => {
                    for key in keys {
                        let reply = version.queue.finish(key, Ending::Error);
                        if crate::mutant!("panic-forgets-its-caller") {
                            std::mem::forget(reply);
                            continue;
                        }
                        answer(reply, Err(error.clone()));
                    }
                    drop(passage.take());
                    contain(|| drop(instance));
                    return Leave::Panicked(error);
                }
            }
        }
    }

    /// One prediction, of one job or of a batch; the inputs are freed before it returns. `Err` is a panic.
    fn predict(
        &self,
        instance: &mut Box<dyn Instance>,
        jobs: SmallVec<[Taken<Inferences>; 1]>,
        start: Instant,
    ) -> (Instant, Predicted) {
        let version = self.version;
        let model_ref = version.model_ref;
        let mut keys: SmallVec<[(Key, Uuid, Instant); 1]> = SmallVec::new();
        keys.extend(jobs.iter().map(|job| (job.key, job.payload.id, job.payload.submitted)));
        let context = jobs[0].payload.context.clone();
        let predict = || {
            let mut outputs: Outputs = SmallVec::new();
            match joined(instance, &jobs) {
                Some(all) => outputs.extend(all),
                None => outputs.extend(jobs.iter().map(|job| instance.predict(&job.payload.request))),
            }
            drop(jobs);
            outputs
        };
        let predicted = catch_unwind(AssertUnwindSafe(|| {
            context.predict(model_ref, version.number, self.worker, keys.len(), predict)
        }));
        let end = Instant::now();
        let predict = end - start;
        version.took(self.worker, predict, keys.len());
        for (_, _, submitted) in &keys {
            let queue = start.saturating_duration_since(*submitted);
            version.recorder.record(queue, predict);
            version.metrics.record(queue, predict);
        }
        let outputs = match predicted {
            Ok(outputs) => outputs,
            Err(panic) => {
                let error = Error::WorkerPanicked { model_ref, message: panic_message(panic) };
                return (end, Err((keys.into_iter().map(|(key, ..)| key).collect(), error)));
            }
        };
        let results = keys.into_iter().zip(outputs).map(|((key, id, submitted), output)| {
            let queue = start.saturating_duration_since(submitted);
            let result = match output {
                Ok((outputs, bridge)) => Ok(InferenceResult {
                    id,
                    model_ref,
                    version: version.number,
                    outputs,
                    timings: InferenceTimings { queue, predict, bridge },
                    worker: self.worker,
                }),
                Err(source) => Err(Error::Predict { model_ref, source: Arc::new(source) }),
            };
            (key, result)
        });
        (end, Ok(results.collect()))
    }
}

impl Version {
    fn took(&self, worker: usize, predict: Duration, jobs: usize) {
        let nanos = u64::try_from(predict.as_nanos()).unwrap_or(u64::MAX);
        self.seats[worker].busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        if let Some(expected) = &self.expected_nanos {
            let each = nanos / jobs.max(1) as u64;
            // Threads may overwrite each other's: it is an estimate.
            let mean = expected.load(Ordering::Relaxed);
            let mean = if mean == 0 { each } else { mean - mean / 8 + each / 8 };
            expected.store(mean, Ordering::Relaxed);
        }
    }
}

type Output = std::result::Result<(coreml_bridge::Features, coreml_bridge::Timings), coreml_bridge::Error>;
type Outputs = SmallVec<[Output; 1]>;
type Predicted = std::result::Result<SmallVec<[(Key, Answer); 1]>, (SmallVec<[Key; 1]>, Error)>;

/// All jobs in one prediction; `None` if they cannot be joined, or the model does not take them so.
fn joined(instance: &mut Box<dyn Instance>, jobs: &[Taken<Inferences>]) -> Option<Vec<Output>> {
    let (first, rest) = jobs.split_first()?;
    if rest.is_empty() {
        return None;
    }
    let rows = batch::rows(&first.payload.request.features)?;
    let members: Vec<_> = jobs.iter().map(|job| &job.payload.request.features).collect();
    let request = InferenceRequest {
        features: batch::join(&members)?,
        wanted: first.payload.request.wanted.clone(),
        ..InferenceRequest::new(first.payload.request.model_ref, coreml_bridge::Features::new())
    };
    let (outputs, timings) = instance.predict(&request).ok()?;
    let parts = batch::part(&outputs, jobs.len(), rows)?;
    Some(parts.into_iter().map(|part| Ok((part, timings))).collect())
}

fn ending(result: &Answer) -> Ending {
    if result.is_ok() { Ending::Ok } else { Ending::Error }
}

fn revoke(removed: Vec<Removed<Inferences>>) {
    removed.into_iter().for_each(|removed| contain(|| drop(removed)));
}

impl Drop for Lease<'_> {
    /// Whatever ends the thread's work with a job in hand, its caller hears of it.
    fn drop(&mut self) {
        for key in self.current.drain(..) {
            let error = Error::WorkerPanicked {
                model_ref: self.version.model_ref,
                message: Arc::from("the inference thread ended"),
            };
            answer(self.version.queue.finish(key, Ending::Error), Err(error));
        }
    }
}

fn answer(reply: Option<WayBack>, result: Answer) {
    if let Some(WayBack { sender, _alarm }) = reply {
        // A reply nobody waits for is dropped here, on the thread that made it.
        contain(|| drop(sender.send(result)));
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
