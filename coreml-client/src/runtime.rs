//! What the clients of one runtime share: the models, the loads under way, and the end of it all.

use std::any::{Any, TypeId};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::mem;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use coreml_bridge::{Config, ModelRef};
use tokio::sync::oneshot;

use crate::backend::{Backend, Instance};
use crate::files::Files;
use crate::memory::{MemoryPressure, PressureSource};
use crate::shutdown::{Report, Shutdown};
use crate::source::{LoadStage, ModelSource, Options, StageCell};
#[cfg(feature = "metrics")]
use crate::stats::ModelStats;
use crate::stats::{ModelCounts, Stats};
use crate::swap::{Check, Trial};
use crate::telemetry;
use crate::timer::Timer;
use crate::tokens::{Gates, Mask, Serial, Tokens};
use crate::version::{Origin, Service, Serving, Version};
use crate::{Error, Outcomes, Priority, Result};

/// What a runtime is made of.
pub(crate) struct Settings {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) service: Service,
    pub(crate) intra_op_threads: IntraOp,
    pub(crate) default_timeout: Option<Duration>,
    /// How long a shutdown waits for predictions under way once nothing is queued any more.
    pub(crate) stop_grace: Duration,
    /// Bytes that all models together may take.
    pub(crate) memory_budget: Option<usize>,
    /// Asked once a second, if anybody is.
    pub(crate) pressure: Option<PressureSource>,
    pub(crate) serial: Serial,
    /// Limits by compute unit, if there are any.
    pub(crate) units: Option<Arc<Tokens>>,
}

/// What idle versions tell, and in which order.
#[derive(Default)]
pub(crate) struct Clock {
    ticks: AtomicU64,
    /// Threads that wait for some version to become idle.
    waiting: AtomicUsize,
}

impl Clock {
    pub(crate) fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    /// A version has become idle: somebody may be waiting for just that.
    pub(crate) fn idle(&self, runtime: &Weak<Runtime>) {
        // The queue's lock orders this load after the waiter's store, or its look at the queue after this thread's turn.
        if self.waiting.load(Ordering::Relaxed) > 0
            && let Some(runtime) = runtime.upgrade()
        {
            drop(runtime.lock());
            runtime.changed.notify_all();
        }
    }
}

/// Threads inside one prediction, for models whose configuration does not say.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IntraOp {
    /// The cores divided by the inference threads, where the bridge can be told.
    Share,
    /// The bridge's choice.
    Bridge,
    Exactly(NonZeroU32),
}

impl Settings {
    fn threads_inside(&self, configured: Option<NonZeroU32>) -> Option<NonZeroU32> {
        configured.or_else(|| match self.intra_op_threads {
            IntraOp::Exactly(threads) => Some(threads),
            IntraOp::Bridge => None,
            IntraOp::Share if !self.backend.takes_threads() => None,
            IntraOp::Share => {
                let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
                let share = (cores / self.service.threads.max(1)).max(1);
                u32::try_from(share).ok().and_then(NonZeroU32::new)
            }
        })
    }
}

/// Somebody who waits for a load.
pub(crate) struct Loaded {
    /// Called once with the result.
    pub(crate) done: Box<dyn FnOnce(Result<ModelRef>) + Send>,
    pub(crate) stage: Option<StageCell>,
}

pub(crate) struct Runtime {
    settings: Settings,
    /// Read for each request; written, under `state`, when a model comes or goes.
    versions: RwLock<HashMap<ModelRef, Arc<Version>>>,
    state: Mutex<State>,
    /// Something that a load waits for may have happened: memory was given back, a model became idle, the end.
    changed: Condvar,
    /// What is done once a second begins with the first load.
    telemetry: Once,
    clock: Arc<Clock>,
    /// Requests for models that are not there, by priority.
    strays: [Strays; Priority::COUNT],
    /// What the metrics say already.
    #[cfg(feature = "metrics")]
    told: Mutex<telemetry::Told>,
}

/// Requests that came to no queue.
#[derive(Default)]
struct Strays {
    rejected: AtomicU64,
    closed: AtomicU64,
}

impl Strays {
    fn count(&self, error: &Error) {
        let counter = match error {
            Error::ShutDown | Error::Unloaded { .. } => &self.closed,
            _ => &self.rejected,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn outcomes(&self) -> Outcomes {
        let [rejected, closed] = [&self.rejected, &self.closed].map(|count| count.load(Ordering::Relaxed));
        Outcomes { submitted: rejected + closed, rejected, closed, ..Outcomes::default() }
    }
}

struct State {
    phase: Phase,
    /// Loads by the path as it was given, until their source is known or they end.
    requested: HashMap<(PathBuf, Config), Requested>,
    /// Loads under way by what they load.
    loading: HashMap<Source, Loading>,
    loaded: HashMap<Source, ModelRef>,
    /// What is known of a model beside its current version.
    models: HashMap<ModelRef, Model>,
    memory: Ledger,
    unloaded: Tombstones,
    counts: ModelCounts,
    /// Versions that are unloaded and may still be at work.
    retiring: Vec<Arc<Version>>,
    /// What the versions did that are gone.
    retired: (Outcomes, u64),
    /// The last words of those among them that the metrics have not told of.
    #[cfg(feature = "metrics")]
    last_words: Vec<ModelStats>,
    /// Loading and inference threads.
    live_threads: usize,
}

/// A load under way.
#[derive(Default)]
struct Loading {
    /// How far it has come, for those who join.
    stage: Option<LoadStage>,
    waiting: Vec<Loaded>,
}

struct Model {
    /// The number of the version that was made last.
    numbers: u64,
    /// The version before the current one, ready to serve.
    kept: Option<Arc<Version>>,
    swapping: bool,
    /// The swap stands in the line for memory.
    swap_waits: bool,
    pins: usize,
    /// What crates above have put there, by its type.
    attached: HashMap<TypeId, Attachment>,
    /// For predictions that exclude each other.
    one: Arc<Tokens>,
}

type Attachment = Arc<dyn Any + Send + Sync>;

impl Model {
    fn new() -> Self {
        Self {
            numbers: 0,
            kept: None,
            swapping: false,
            swap_waits: false,
            pins: 0,
            attached: HashMap::new(),
            one: Tokens::one(),
        }
    }
}

/// The memory budget.
#[derive(Default)]
struct Ledger {
    /// By versions that live and loads under way.
    used: usize,
    /// The part of it that evicted versions are about to give back.
    leaving: usize,
    /// Loads that wait, in order: else a large one would wait for ever.
    line: VecDeque<u64>,
    tickets: u64,
    pressure: MemoryPressure,
}

/// The models that were unloaded last: who asks for one hears that it was there. Older ones are forgotten, for a runtime
/// that loads and unloads for months must not grow.
#[derive(Default)]
pub(crate) struct Tombstones(VecDeque<ModelRef>);

impl Tombstones {
    pub(crate) const MOST: usize = 1024;

    fn add(&mut self, model_ref: ModelRef) {
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(model_ref);
    }
}

enum Phase {
    Open,
    Stopping { since: (Outcomes, u64), waiting: Vec<oneshot::Sender<Report>> },
    Stopped(Report),
}

enum Requested {
    /// Its source is being looked up.
    Resolving(Vec<Loaded>),
    Found(Source),
}

/// What is loaded: which file, in which condition, and how.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    path: PathBuf,
    condition: String,
    config: Config,
}

impl Source {
    /// A path that cannot be resolved stays as it is.
    pub(crate) fn find(path: &Path, config: &Config) -> (Self, usize) {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        // The bridge will say what is wrong with what cannot be read.
        let files = Files::readable(&path);
        let source = Self { path, condition: files.condition(), config: config.clone() };
        (source, usize::try_from(files.bytes()).unwrap_or(usize::MAX))
    }
}

impl Runtime {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            versions: RwLock::default(),
            state: Mutex::new(State {
                phase: Phase::Open,
                requested: HashMap::new(),
                loading: HashMap::new(),
                loaded: HashMap::new(),
                models: HashMap::new(),
                memory: Ledger::default(),
                unloaded: Tombstones::default(),
                counts: ModelCounts::default(),
                retiring: Vec::new(),
                retired: Default::default(),
                #[cfg(feature = "metrics")]
                last_words: Vec::new(),
                live_threads: 0,
            }),
            changed: Condvar::new(),
            telemetry: Once::new(),
            clock: Arc::default(),
            strays: Default::default(),
            #[cfg(feature = "metrics")]
            told: Mutex::default(),
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    // ---- models ----

    /// The model for a request; its absence is counted as the end of the request.
    pub(crate) fn route(&self, model_ref: ModelRef, priority: Priority) -> Result<Arc<Version>> {
        if let Some(version) = self.versions().get(&model_ref) {
            return Ok(Arc::clone(version));
        }
        let error = self.absent(model_ref);
        self.strays[priority.index()].count(&error);
        Err(error)
    }

    pub(crate) fn version(&self, model_ref: ModelRef) -> Result<Arc<Version>> {
        self.present(&self.lock(), model_ref)
    }

    fn absent(&self, model_ref: ModelRef) -> Error {
        self.lock().absent(model_ref)
    }

    /// The model, while the runtime runs.
    fn present(&self, state: &State, model_ref: ModelRef) -> Result<Arc<Version>> {
        let version = self.versions().get(&model_ref).map(Arc::clone);
        match &state.phase {
            Phase::Open => version.ok_or_else(|| state.absent(model_ref)),
            Phase::Stopping { .. } | Phase::Stopped(_) => Err(Error::ShutDown),
        }
    }

    pub(crate) fn unload(&self, model_ref: ModelRef) -> Result<()> {
        let versions = {
            let mut state = self.lock();
            let version = self.present(&state, model_ref)?;
            self.versions.write().unwrap_or_else(PoisonError::into_inner).remove(&model_ref);
            state.unloaded.add(model_ref);
            state.loaded.retain(|_, loaded| *loaded != model_ref);
            let model = state.models.remove(&model_ref);
            let (kept, attached) = model.map_or_else(Default::default, |model| (model.kept, model.attached));
            let versions: Vec<_> = std::iter::once(version).chain(kept).collect();
            state.retiring.extend(versions.iter().map(Arc::clone));
            drop(state);
            // Code of others, without the lock.
            drop(attached);
            versions
        };
        for version in versions {
            version.drain(Error::Unloaded { model_ref });
        }
        self.lock().retire();
        Ok(())
    }

    /// The next load of the same source will be a new one.
    pub(crate) fn forget_source(&self, model_ref: ModelRef) {
        self.lock().loaded.retain(|_, loaded| *loaded != model_ref);
    }

    /// Keeps a model from being evicted, until as many unpins as pins.
    pub(crate) fn pin(&self, model_ref: ModelRef) -> Result<()> {
        let mut state = self.lock();
        let version = self.present(&state, model_ref)?;
        if version.evicted.load(Ordering::Relaxed) && !state.revive(&version) {
            return Err(Error::Evicted { model_ref });
        }
        state.models.entry(model_ref).or_insert_with(Model::new).pins += 1;
        Ok(())
    }

    pub(crate) fn unpin(&self, model_ref: ModelRef) {
        if let Some(model) = self.lock().models.get_mut(&model_ref) {
            model.pins = model.pins.saturating_sub(1);
        }
        self.changed.notify_all();
    }

    /// Puts a value beside a model, in the place of an earlier one of its type.
    pub(crate) fn attach(&self, model_ref: ModelRef, kind: TypeId, value: Attachment) -> Result<()> {
        let mut state = self.lock_with(model_ref)?;
        let before = state.models.entry(model_ref).or_insert_with(Model::new).attached.insert(kind, value);
        drop(state);
        drop(before);
        Ok(())
    }

    pub(crate) fn attached(&self, model_ref: ModelRef, kind: TypeId) -> Result<Option<Attachment>> {
        let state = self.lock_with(model_ref)?;
        Ok(state.models.get(&model_ref).and_then(|model| model.attached.get(&kind)).map(Arc::clone))
    }

    /// The state, while the model is there.
    fn lock_with(&self, model_ref: ModelRef) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        self.present(&state, model_ref)?;
        Ok(state)
    }

    /// How many models something is kept of.
    #[cfg(test)]
    pub(crate) fn kept_models(&self) -> usize {
        self.lock().models.len()
    }

    // ---- loading ----

    /// Loads a model, once for all who ask for it at the same time, on a thread that none of them can stop.
    pub(crate) fn load(self: &Arc<Self>, source: ModelSource, loaded: Loaded) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open) {
            drop(state);
            return (loaded.done)(Err(Error::ShutDown));
        }
        let ModelSource { path, config, options } = source;
        let request = (path, config);
        self.telemetry.call_once(|| {
            telemetry::begin(self);
            if let Some(source) = &self.settings.pressure {
                follow(Arc::downgrade(self), Arc::clone(source), MemoryPressure::Normal, Instant::now());
            }
        });
        match state.requested.get_mut(&request) {
            Some(_) if crate::mutant!("a-load-for-each") => {}
            Some(Requested::Resolving(waiting)) => return waiting.push(loaded),
            Some(Requested::Found(source)) => {
                let source = source.clone();
                if let Some(loading) = state.loading.get_mut(&source) {
                    let cell = loaded.stage.clone().zip(loading.stage);
                    loading.waiting.push(loaded);
                    drop(state);
                    if let Some((cell, stage)) = cell {
                        cell.send_replace(stage);
                    }
                    return;
                }
            }
            None => {}
        }
        state.requested.insert(request.clone(), Requested::Resolving(vec![loaded]));
        drop(state);

        let runtime = Arc::downgrade(self);
        let load = request.clone();
        // It goes on as the first inference thread.
        let name = thread_name(&request.0, 0);
        if let Err(error) = self.spawn(name, move || load_thread(&runtime, load, options)) {
            let source = Arc::new(error);
            let mut state = self.lock();
            let requested = state.requested.remove(&request);
            state.counts.loads_failed += 1;
            drop(state);
            if let Some(Requested::Resolving(waiting)) = requested {
                tell(waiting, &Err(Error::Thread { source }));
            }
        }
    }

    /// Takes the load on, unless the model is loaded or another thread is at it. Gives the reference to load it under.
    fn claim(&self, request: &(PathBuf, Config), source: &Source) -> Option<ModelRef> {
        let mut state = self.lock();
        // If there is none, a shutdown has told them.
        let Some(Requested::Resolving(waiting)) = state.requested.remove(request) else { return None };
        let mut known = None;
        if let Some(&model_ref) = state.loaded.get(source) {
            let version = self.versions().get(&model_ref).map(Arc::clone);
            let lives = version.is_some_and(|version| {
                version.touch();
                !version.evicted.load(Ordering::Relaxed) || state.revive(&version)
            });
            if lives {
                drop(state);
                tell(waiting, &Ok(model_ref));
                return None;
            }
            // Evicted and gone: it comes back under the reference that everybody knows.
            known = Some(model_ref);
        }
        state.requested.insert(request.clone(), Requested::Found(source.clone()));
        let is_first = !state.loading.contains_key(source);
        let loading = state.loading.entry(source.clone()).or_default();
        loading.waiting.extend(waiting);
        let stage = loading.stage;
        drop(state);
        if let Some(stage) = stage {
            self.progress(source, stage);
        }
        is_first.then(|| known.unwrap_or_else(ModelRef::new))
    }

    /// Publishes a model, or the failure to load it. `false`: nobody wants it any more.
    fn conclude(&self, model_ref: ModelRef, source: &Source, result: Result<Arc<Version>>) -> bool {
        let mut state = self.lock();
        state
            .requested
            .retain(|_, requested| !matches!(requested, Requested::Found(found) if found == source));
        let Some(Loading { stage: _, waiting }) = state.loading.remove(source) else { return false };
        let result = result.map(|version| {
            let model_ref = version.model_ref;
            state.loaded.insert(source.clone(), model_ref);
            let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(before) = versions.insert(model_ref, version) {
                state.retiring.push(before);
            }
            model_ref
        });
        match &result {
            Ok(_) => state.counts.loads_ok += 1,
            Err(_) => {
                state.counts.loads_failed += 1;
                // Of a model that was never there nothing stays; one that was evicted may come back under its reference.
                let known = state.loaded.values().any(|loaded| *loaded == model_ref);
                if !known && !self.versions().contains_key(&model_ref) {
                    state.models.remove(&model_ref);
                }
            }
        }
        state.retire();
        drop(state);
        let published = result.is_ok();
        if let Ok(model_ref) = result {
            telemetry::event("model loaded", model_ref, None);
        }
        tell(waiting, &result);
        published
    }

    /// Tells all who wait for a load how far it has come.
    fn progress(&self, source: &Source, stage: LoadStage) {
        let cells: Vec<StageCell> = match self.lock().loading.get_mut(source) {
            // Somebody who joined late may tell of a stage that is over.
            Some(loading) if loading.stage <= Some(stage) => {
                loading.stage = Some(stage);
                loading.waiting.iter().filter_map(|loaded| loaded.stage.clone()).collect()
            }
            _ => return,
        };
        // Outside the lock: it wakes tasks of others.
        for cell in cells {
            cell.send_replace(stage);
        }
    }

    /// A new version of a model, with its memory reserved; waits for room. In a swap the old one stays beside it.
    fn prepare(
        self: &Arc<Self>,
        model_ref: ModelRef,
        source: &Source,
        size: usize,
        request: (PathBuf, Config),
        options: Options,
        swaps: bool,
    ) -> Result<Arc<Version>> {
        let (path, config) = request;
        let memory = options.memory.unwrap_or(size);
        let beside = swaps.then_some(model_ref);
        self.reserve_memory(&path, memory, options.refuse_over_budget, beside)?;
        let (number, one) = {
            let mut state = self.lock();
            let model = state.models.entry(model_ref).or_insert_with(Model::new);
            model.numbers += 1;
            (model.numbers, Arc::clone(&model.one))
        };
        let gates = Gates::new(
            self.settings.serial,
            &one,
            self.settings.units.as_ref(),
            Mask::of(config.compute_units),
        );
        let config = Config { threads: self.settings.threads_inside(config.threads), ..config };
        let origin =
            Origin { model_ref, number, source: source.clone(), path, config, options, gates, memory };
        let backend = Arc::clone(&self.settings.backend);
        let (runtime, clock) = (Arc::downgrade(self), Arc::clone(&self.clock));
        Ok(Arc::new(Version::new(origin, backend, &self.settings.service, runtime, clock)))
    }

    // ---- memory ----

    /// Takes bytes of the budget, after evicting what is idle, in the order of asking. Who would rather be refused than wait
    /// stands in no line: it takes what room there is. The current version of the model `beside` stays where it is.
    fn reserve_memory(
        &self,
        path: &Path,
        bytes: usize,
        refuse: bool,
        beside: Option<ModelRef>,
    ) -> Result<()> {
        let budget = self.settings.memory_budget.unwrap_or(usize::MAX);
        let over = || Error::OverBudget { path: path.to_owned(), bytes, budget };
        let mut state = self.lock();
        state.memory.tickets += 1;
        let ticket = state.memory.tickets;
        if !refuse {
            state.memory.line.push_back(ticket);
        }
        self.clock.waiting.fetch_add(1, Ordering::Relaxed);
        let result = loop {
            if !matches!(state.phase, Phase::Open) {
                break Err(Error::ShutDown);
            }
            if state.memory.pressure == MemoryPressure::Critical {
                break Err(Error::MemoryPressure { path: path.to_owned() });
            }
            let stays = beside.map_or(0, |model_ref| self.held_by(model_ref));
            if bytes > budget.saturating_sub(stays) {
                break Err(over());
            }
            let is_first = state.memory.line.front() == Some(&ticket);
            if is_first || refuse {
                let free = budget.saturating_sub(state.memory.used);
                if bytes <= free || crate::mutant!("cache-without-budget") {
                    state.memory.used = state.memory.used.saturating_add(bytes);
                    break Ok(());
                }
                // Before it is at work again, or the one that waits would evict what it replaces.
                state.swap_waits(beside, false);
                let short = (bytes - free).saturating_sub(state.memory.leaving);
                let evicted = self.evict(&mut state, short);
                state.counts.evicted_for_room += evicted;
                if refuse && evicted == 0 && state.memory.leaving == 0 {
                    break Err(over());
                }
            } else {
                // Those before it may need what it replaces; if nobody could have it, two swaps would wait for each other.
                state.swap_waits(beside, true);
            }
            // A model whose last caller leaves while its threads are between instances tells nobody, hence the time-out.
            const LOOK_AGAIN: Duration = Duration::from_millis(50);
            state = self.changed.wait_timeout(state, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.clock.waiting.fetch_sub(1, Ordering::Relaxed);
        state.memory.line.retain(|&other| other != ticket);
        state.swap_waits(beside, false);
        drop(state);
        self.changed.notify_all();
        result
    }

    /// What the current version of a model takes, and will not give back.
    fn held_by(&self, model_ref: ModelRef) -> usize {
        self.versions()
            .get(&model_ref)
            .filter(|version| !version.evicted.load(Ordering::Relaxed))
            .map_or(0, |version| version.memory.load(Ordering::Relaxed))
    }

    /// Evicts idle versions, kept ones first and then the least recently used, until that gives back as many bytes.
    fn evict(&self, state: &mut State, bytes: usize) -> u64 {
        let mut candidates: Vec<(bool, u64, Arc<Version>)> = Vec::new();
        let kept = state.models.values().filter_map(|model| model.kept.as_ref());
        candidates.extend(kept.map(|version| (false, 0, Arc::clone(version))));
        for version in self.versions().values() {
            // What a swap replaces serves on until the new one is there.
            let stays = |model: &Model| model.pins > 0 || (model.swapping && !model.swap_waits);
            if !state.models.get(&version.model_ref).is_some_and(stays) {
                candidates.push((true, version.last_used.load(Ordering::Relaxed), Arc::clone(version)));
            }
        }
        candidates.sort_by_key(|(is_current, used, _)| (*is_current, *used));
        let (mut freed, mut evicted) = (0, 0);
        for (is_current, _, version) in candidates {
            let memory = version.memory.load(Ordering::Relaxed);
            if freed >= bytes {
                break;
            }
            // One that takes nothing makes no room; it goes when all have to.
            let is_vain = memory == 0 && bytes != usize::MAX;
            if is_vain || !version.is_served() || version.evicted.load(Ordering::Relaxed) {
                continue;
            }
            let model_ref = version.model_ref;
            if !version.close_if_idle(Error::Evicted { model_ref }) {
                continue;
            }
            version.evicted.store(true, Ordering::Relaxed);
            state.memory.leaving += memory;
            freed = freed.saturating_add(memory);
            evicted += 1;
            if !is_current {
                if let Some(model) = state.models.get_mut(&model_ref) {
                    model.kept = None;
                }
                state.retiring.push(version);
            }
        }
        evicted
    }

    /// The last thread of a version has let go of its instance.
    pub(crate) fn version_ended(&self, version: &Version) {
        let mut state = self.lock();
        let memory = version.memory.swap(0, Ordering::Relaxed);
        state.memory.used -= memory;
        let evicted = version.evicted.load(Ordering::Relaxed);
        if evicted {
            state.memory.leaving -= memory;
        }
        drop(state);
        if evicted {
            telemetry::event("model evicted", version.model_ref, None);
        }
        self.changed.notify_all();
    }

    /// Corrects what a model takes of the budget.
    pub(crate) fn set_memory(&self, model_ref: ModelRef, bytes: usize) -> Result<()> {
        let mut state = self.lock();
        let version = self.present(&state, model_ref)?;
        if version.evicted.load(Ordering::Relaxed) || !version.is_served() {
            return Err(Error::Evicted { model_ref });
        }
        let before = version.memory.swap(bytes, Ordering::Relaxed);
        state.memory.used = (state.memory.used - before).saturating_add(bytes);
        let over = state.memory.used.saturating_sub(self.settings.memory_budget.unwrap_or(usize::MAX));
        let evicted = self.evict(&mut state, over);
        state.counts.evicted_for_room += evicted;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    pub(crate) fn set_pressure(&self, pressure: MemoryPressure) {
        let mut state = self.lock();
        state.memory.pressure = pressure;
        let goal = match pressure {
            MemoryPressure::Normal => 0,
            MemoryPressure::Warning => {
                let staying = state.memory.used - state.memory.leaving;
                staying.div_ceil(2)
            }
            MemoryPressure::Critical => usize::MAX,
        };
        let evicted = self.evict(&mut state, goal);
        state.counts.evicted_under_pressure += evicted;
        drop(state);
        self.changed.notify_all();
    }

    // ---- swapping ----

    /// Brings a new version of a model, on a thread of its own.
    pub(crate) fn swap(
        self: &Arc<Self>,
        model_ref: ModelRef,
        source: ModelSource,
        check: Option<Check>,
        keep: bool,
        done: oneshot::Sender<Result<u64>>,
    ) {
        let begun = self.lock_with(model_ref).and_then(|mut state| {
            let model = state.models.entry(model_ref).or_insert_with(Model::new);
            if mem::replace(&mut model.swapping, true) {
                return Err(Error::SwapInProgress { model_ref });
            }
            Ok(())
        });
        if let Err(error) = begun {
            // Who asked may have gone.
            let _ = done.send(Err(error));
            return;
        }
        let runtime = Arc::downgrade(self);
        let name = thread_name(&source.path, 0);
        let swap = Swapping { runtime: Weak::clone(&runtime), model_ref, done: Some(done) };
        let body = move || swap_thread(&runtime, swap, source, check, keep);
        // If the thread cannot be started the closure is dropped, and the swap with it.
        let _ = self.spawn(name, body);
    }

    /// The version before the last gives its place, and its memory, to the one to come.
    fn retire_kept(&self, model_ref: ModelRef) -> Result<()> {
        let mut state = self.lock();
        let Some(kept) = state.models.get_mut(&model_ref).and_then(|model| model.kept.take()) else {
            drop(state);
            return self.await_gone(model_ref);
        };
        state.retiring.push(Arc::clone(&kept));
        drop(state);
        kept.supersede();
        drop(kept);
        self.await_gone(model_ref)
    }

    /// Waits until no version of the model but the current one has an instance.
    fn await_gone(&self, model_ref: ModelRef) -> Result<()> {
        let mut state = self.lock();
        loop {
            if !matches!(state.phase, Phase::Open) {
                return Err(Error::ShutDown);
            }
            state.retire();
            let is_there = |version: &Arc<Version>| version.model_ref == model_ref && version.is_served();
            if !state.retiring.iter().any(is_there) {
                return Ok(());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets a version take over.
    fn publish(&self, version: &Arc<Version>, keep: bool) -> Result<()> {
        let mut state = self.lock();
        let replaced = self.replace(&mut state, version, keep)?;
        drop(state);
        replaced.leave();
        Ok(())
    }

    /// Goes back to the version before the current one.
    pub(crate) fn rollback(&self, model_ref: ModelRef) -> Result<u64> {
        let mut state = self.lock_with(model_ref)?;
        // It stays where it is until it has taken over: a version that is in no list is lost, with what it counted.
        let kept = state.models.get(&model_ref).and_then(|model| model.kept.as_ref()).map(Arc::clone);
        let Some(kept) = kept.filter(|kept| kept.is_served()) else {
            return Err(Error::NoRollback { model_ref });
        };
        let replaced = self.replace(&mut state, &kept, false)?;
        if let Some(model) = state.models.get_mut(&model_ref) {
            model.kept = None;
        }
        state.counts.rollbacks += 1;
        drop(state);
        replaced.leave();
        Ok(kept.number)
    }

    /// Puts a version in the place of the current one of its model, or changes nothing.
    fn replace(&self, state: &mut State, version: &Arc<Version>, keep: bool) -> Result<Replaced> {
        let model_ref = version.model_ref;
        if !matches!(state.phase, Phase::Open) {
            return Err(Error::ShutDown);
        }
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        let Some(current) = versions.get_mut(&model_ref) else {
            return Err(state.absent(model_ref));
        };
        let before = mem::replace(current, Arc::clone(version));
        drop(versions);
        state.loaded.retain(|_, loaded| *loaded != model_ref);
        state.loaded.entry(version.source.clone()).or_insert(model_ref);
        let kept = keep && before.is_served() && !before.evicted.load(Ordering::Relaxed);
        match state.models.get_mut(&model_ref) {
            Some(model) if kept => model.kept = Some(Arc::clone(&before)),
            _ => state.retiring.push(Arc::clone(&before)),
        }
        Ok(Replaced { version: before, kept })
    }

    // ---- threads ----

    /// Starts a thread that counts as one of this runtime for as long as it runs; on Linux the first 15 bytes of the
    /// name show.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.lock().live_threads += 1;
        let presence = Presence(Arc::downgrade(self));
        // When the thread cannot be started, the closure is dropped, and the presence with it.
        thread::Builder::new().name(name).spawn(move || {
            let _presence = presence;
            body();
        })?;
        Ok(())
    }

    fn thread_ended(&self) {
        let is_last = {
            let mut state = self.lock();
            state.live_threads -= 1;
            state.retire();
            state.live_threads == 0
        };
        if is_last {
            self.finish_shutdown();
        }
    }

    // ---- the end ----

    /// Begins to shut down, if that has not begun; an abort overtakes a drain.
    pub(crate) fn shut_down(self: &Arc<Self>, how: Shutdown) -> oneshot::Receiver<Report> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        let since = self.tally(&state);
        match &mut state.phase {
            Phase::Stopped(report) => {
                // The receiver is in this function's hand.
                let _ = sender.send(report.clone());
                return receiver;
            }
            Phase::Stopping { waiting, .. } => waiting.push(sender),
            Phase::Open => state.phase = Phase::Stopping { since, waiting: vec![sender] },
        }
        let loads = state.abandon_loads();
        self.changed.notify_all();
        let nothing_runs = state.live_threads == 0;
        drop(state);
        tell(loads, &Err(Error::ShutDown));
        match how {
            Shutdown::Drain { deadline } => {
                for version in self.all_versions() {
                    version.drain(Error::ShutDown);
                }
                self.at(deadline, |runtime| runtime.abort());
            }
            Shutdown::Abort => self.abort(),
        }
        if nothing_runs {
            self.finish_shutdown();
        }
        receiver
    }

    /// Shuts down with nobody waiting for the report.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        if let Phase::Open = state.phase {
            state.phase = Phase::Stopping { since: Default::default(), waiting: Vec::new() };
        }
        let loads = state.abandon_loads();
        self.changed.notify_all();
        drop(state);
        tell(loads, &Err(Error::ShutDown));
        self.close_queues();
    }

    fn abort(self: &Arc<Self>) {
        self.close_queues();
        if let Some(patience) = Instant::now().checked_add(self.settings.stop_grace) {
            self.at(patience, |runtime| runtime.finish_shutdown());
        }
    }

    fn close_queues(&self) {
        for version in self.all_versions() {
            version.close(Error::ShutDown);
        }
    }

    /// Writes the report, with the threads that still run as abandoned.
    fn finish_shutdown(&self) {
        let mut state = self.lock();
        let (outcomes, detached) = self.tally(&state);
        let Phase::Stopping { since, waiting } = &mut state.phase else { return };
        let waiting = mem::take(waiting);
        let (before, detached_before) = since;
        let completed = outcomes.ok + outcomes.error + detached - before.ok - before.error - *detached_before;
        let closed = outcomes.closed - before.closed;
        let report = Report { completed, closed, abandoned_threads: state.live_threads };
        state.phase = Phase::Stopped(report.clone());
        drop(state);
        for sender in waiting {
            // Who asked may have gone.
            let _ = sender.send(report.clone());
        }
    }

    fn at(self: &Arc<Self>, when: Instant, what: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let runtime = Arc::downgrade(self);
        let action = move || {
            if let Some(runtime) = runtime.upgrade() {
                what(&runtime);
            }
        };
        if Timer::global().set(when, Box::new(action)).is_err() {
            // No thread to wait with: what would have to be done later is done now, for a shutdown must end.
            self.close_queues();
            self.finish_shutdown();
        }
    }

    // ---- figures ----

    pub(crate) fn stats(&self) -> Stats {
        let mut state = self.lock();
        state.retire();
        let (outcomes, _) = self.tally(&state);
        let models_total = ModelCounts { memory: state.memory.used, ..state.counts };
        drop(state);
        let mut models = self.all_versions().iter().map(|version| version.stats()).collect::<Vec<_>>();
        models.sort_by_key(|model| (model.model_ref, model.version));
        Stats { outcomes, models_total, models }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn publish_metrics(&self) {
        // One at a time: what is told is what is new since the last time.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (counts, pressure, ended, versions) = {
            let mut state = self.lock();
            state.retire();
            let versions: Vec<_> = self.versions().values().chain(state.hidden()).map(Arc::clone).collect();
            (state.counts, state.memory.pressure, mem::take(&mut state.last_words), versions)
        };
        let models: Vec<_> = versions.iter().map(|version| version.figures()).collect();
        drop(versions);
        let strays = [0, 1, 2].map(|class: usize| self.strays[class].outcomes());
        telemetry::publish(&mut told, &counts, &strays, pressure, &models, &ended);
    }

    /// Everything that was ever asked of this runtime.
    fn tally(&self, state: &State) -> (Outcomes, u64) {
        let (mut outcomes, mut detached) = state.retired;
        outcomes += self.strays.iter().map(Strays::outcomes).sum();
        for version in self.versions().values().chain(state.hidden()) {
            let (version_outcomes, version_detached) = version.outcomes();
            outcomes += version_outcomes;
            detached += version_detached;
        }
        (outcomes, detached)
    }

    fn all_versions(&self) -> Vec<Arc<Version>> {
        let state = self.lock();
        self.versions().values().chain(state.hidden()).map(Arc::clone).collect()
    }

    fn versions(&self) -> std::sync::RwLockReadGuard<'_, HashMap<ModelRef, Arc<Version>>> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of others runs under the lock, so a poisoned one guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "metrics")]
impl Drop for Runtime {
    /// Nobody will publish any more, so the last word is spoken now: what is left of its models has ended, or is about to.
    fn drop(&mut self) {
        let versions = mem::take(self.versions.get_mut().unwrap_or_else(PoisonError::into_inner));
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let kept = state.models.values_mut().filter_map(|model| model.kept.take());
        let left: Vec<_> = versions.into_values().chain(kept).chain(state.retiring.drain(..)).collect();
        state.last_words.extend(left.iter().map(|version| version.figures()));
        if self.telemetry.is_completed() {
            telemetry::contained(|| self.publish_metrics());
        }
    }
}

/// A version that another has taken the place of.
#[must_use = "it serves those it has, and then it goes"]
struct Replaced {
    version: Arc<Version>,
    kept: bool,
}

impl Replaced {
    /// To be called without the runtime's lock.
    fn leave(self) {
        let Self { version, kept } = self;
        if crate::mutant!("swap-closes-the-old") {
            version.close(Error::Unloaded { model_ref: version.model_ref });
        } else if !kept {
            version.supersede();
        }
    }
}

impl State {
    /// Why a model is not there.
    fn absent(&self, model_ref: ModelRef) -> Error {
        match self.phase {
            Phase::Open if self.unloaded.0.contains(&model_ref) => Error::Unloaded { model_ref },
            Phase::Open => Error::ModelNotFound { model_ref },
            Phase::Stopping { .. } | Phase::Stopped(_) => Error::ShutDown,
        }
    }

    /// Versions that no request is routed to any more.
    fn hidden(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.retiring.iter().chain(self.models.values().filter_map(|model| model.kept.as_ref()))
    }

    /// Whether the swap of a model waits for its turn.
    fn swap_waits(&mut self, beside: Option<ModelRef>, waits: bool) {
        if let Some(model) = beside.and_then(|model_ref| self.models.get_mut(&model_ref)) {
            model.swap_waits = waits;
        }
    }

    /// Takes an eviction back, if no thread of the version has let go of its instance.
    fn revive(&mut self, version: &Version) -> bool {
        let revived = version.reopen();
        if revived {
            version.evicted.store(false, Ordering::Relaxed);
            self.memory.leaving -= version.memory.load(Ordering::Relaxed);
            self.counts.revived += 1;
        }
        revived
    }

    /// Adds up the versions that nobody can reach any more and frees them.
    fn retire(&mut self) {
        let retired = &mut self.retired;
        self.retiring.retain(|version| {
            // Nobody can get a new reference: the version is in no map. So this one stays the only one.
            let is_last = Arc::strong_count(version) == 1;
            if is_last {
                let (outcomes, detached) = version.outcomes();
                retired.0 += outcomes;
                retired.1 += detached;
                #[cfg(feature = "metrics")]
                self.last_words.push(version.figures());
            }
            !is_last
        });
    }

    fn abandon_loads(&mut self) -> Vec<Loaded> {
        let resolving =
            mem::take(&mut self.requested).into_values().filter_map(|requested| match requested {
                Requested::Resolving(waiting) => Some(waiting),
                Requested::Found(_) => None,
            });
        resolving
            .chain(mem::take(&mut self.loading).into_values().map(|loading| loading.waiting))
            .flatten()
            .collect()
    }
}

/// Hears once a second how short of memory the system is, for as long as the runtime is there and somebody can say.
fn follow(runtime: Weak<Runtime>, source: PressureSource, before: MemoryPressure, at: Instant) {
    const PERIOD: Duration = Duration::from_secs(1);
    let look = move || {
        let Some(strong) = runtime.upgrade() else { return };
        let Some(now) = source() else { return };
        // A warning halves once; while it is critical, whatever has become idle goes.
        if now != before || now == MemoryPressure::Critical {
            strong.set_pressure(now);
        }
        drop(strong);
        follow(runtime, source, now, Instant::now() + PERIOD);
    };
    // Without a thread for the timer nobody looks; requests are served all the same.
    let _ = Timer::global().set(at, Box::new(look));
}

/// A thread of a runtime.
struct Presence(Weak<Runtime>);

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.upgrade() {
            runtime.thread_ended();
        }
    }
}

/// The model's name and the worker's number.
pub(crate) fn thread_name(path: &Path, worker: usize) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
    // A thread's name cannot hold a zero byte.
    format!("{}/{worker}", stem.replace('\0', "?"))
}

fn tell(waiting: Vec<Loaded>, result: &Result<ModelRef>) {
    for Loaded { done, stage } in waiting {
        if let (Some(stage), Ok(_)) = (stage, result) {
            stage.send_replace(LoadStage::Ready);
        }
        done(result.clone());
    }
}

/// Loads a model and goes on as its first inference thread: the instance cannot move to another.
fn load_thread(runtime: &Weak<Runtime>, request: (PathBuf, Config), options: Options) {
    let Some(strong) = runtime.upgrade() else { return };
    let (source, size) = Source::find(&request.0, &request.1);
    let Some(model_ref) = strong.claim(&request, &source) else { return };
    strong.progress(&source, LoadStage::Waiting);
    let version = match strong.prepare(model_ref, &source, size, request, options, false) {
        Ok(version) => version,
        Err(error) => {
            strong.conclude(model_ref, &source, Err(error));
            return;
        }
    };
    let _serving = Serving::first(&version);
    // A load may take minutes; meanwhile it keeps no runtime alive that nobody uses.
    drop(strong);
    let progress = |stage| {
        if let Some(runtime) = runtime.upgrade() {
            runtime.progress(&source, stage);
        }
    };
    let start = Instant::now();
    let first = version.first_instance(&progress);
    telemetry::loaded(start.elapsed());
    let Some(strong) = runtime.upgrade() else { return };
    match first {
        Ok(instance) => {
            let published = strong.conclude(model_ref, &source, Ok(Arc::clone(&version)));
            drop(strong);
            if published {
                version.serve(0, Some(instance));
            }
        }
        Err(error) => {
            strong.conclude(model_ref, &source, Err(error));
        }
    }
}

/// A swap under way; its end is told and counted whatever happens.
struct Swapping {
    runtime: Weak<Runtime>,
    model_ref: ModelRef,
    done: Option<oneshot::Sender<Result<u64>>>,
}

impl Swapping {
    fn end(&mut self, result: Result<u64>) {
        let Some(done) = self.done.take() else { return };
        if let Some(runtime) = self.runtime.upgrade() {
            telemetry::event("model swapped", self.model_ref, result.as_ref().err());
            let mut state = runtime.lock();
            if let Some(model) = state.models.get_mut(&self.model_ref) {
                model.swapping = false;
            }
            match result {
                Ok(_) => state.counts.swaps_ok += 1,
                Err(_) => state.counts.swaps_failed += 1,
            }
        }
        // Who asked may have gone.
        let _ = done.send(result);
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        self.end(Err(Error::Thread { source: Arc::new(io::Error::other("the swap's thread did not run")) }));
    }
}

/// Makes a new version and goes on as its first inference thread.
fn swap_thread(
    runtime: &Weak<Runtime>,
    mut swap: Swapping,
    source: ModelSource,
    check: Option<Check>,
    keep: bool,
) {
    let model_ref = swap.model_ref;
    let made = (|| {
        let strong = runtime.upgrade().ok_or(Error::ShutDown)?;
        strong.retire_kept(model_ref)?;
        let ModelSource { path, config, options } = source;
        let (source, size) = Source::find(&path, &config);
        let version = strong.prepare(model_ref, &source, size, (path, config), options, true)?;
        let serving = Serving::first(&version);
        drop(strong);
        let mut instance = version.first_instance(&|_| ()).map_err(|error| match error {
            // It loads, but does not predict.
            Error::Predict { source, .. } => Error::SwapRefused { model_ref, source },
            other => other,
        })?;
        if let Some(check) = check {
            examine(model_ref, &mut instance, check)?;
        }
        runtime.upgrade().ok_or(Error::ShutDown)?.publish(&version, keep)?;
        Ok((version, serving, instance))
    })();
    match made {
        Ok((version, _serving, instance)) => {
            swap.end(Ok(version.number));
            drop(swap);
            version.serve(0, Some(instance));
        }
        Err(error) => swap.end(Err(error)),
    }
}

/// Asks the caller whether an instance will do.
fn examine(model_ref: ModelRef, instance: &mut Box<dyn Instance>, check: Check) -> Result<()> {
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        check(&mut Trial::new(model_ref, instance.as_mut()))
    }));
    match checked {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(Error::SwapRefused { model_ref, source: source.into() }),
        Err(panic) => Err(Error::WorkerPanicked { model_ref, message: crate::error::panic_message(panic) }),
    }
}
