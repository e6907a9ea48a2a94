//! What the clients of one runtime share: the models, the loads under way, and the end of it all.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::mem;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use coreml_bridge::{Config, ModelRef};
use tokio::sync::oneshot;

use crate::backend::Backend;
use crate::shutdown::{Report, Shutdown};
use crate::stats::Stats;
use crate::timer::Timer;
use crate::version::{Service, Version};
use crate::{Error, Outcomes, Result};

/// What a runtime is made of.
pub(crate) struct Settings {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) service: Service,
    pub(crate) intra_op_threads: IntraOp,
    pub(crate) default_timeout: Option<Duration>,
    /// How long a shutdown waits for predictions under way once nothing is queued any more.
    pub(crate) stop_grace: Duration,
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

/// Called once with the result of a load.
pub(crate) type Loaded = Box<dyn FnOnce(Result<ModelRef>) + Send>;

pub(crate) struct Runtime {
    settings: Settings,
    /// Read for each request; written, under `state`, when a model comes or goes.
    versions: RwLock<HashMap<ModelRef, Arc<Version>>>,
    state: Mutex<State>,
    /// Requests for models that are not there.
    strays: AtomicU64,
    strays_closed: AtomicU64,
}

struct State {
    phase: Phase,
    /// Loads by the path as it was given, until their source is known or they end.
    requested: HashMap<(PathBuf, Config), Requested>,
    /// Loads under way by what they load.
    loading: HashMap<Source, Vec<Loaded>>,
    loaded: HashMap<Source, ModelRef>,
    /// Versions that are unloaded and may still be at work.
    retiring: Vec<Arc<Version>>,
    /// What the versions did that are gone.
    retired: (Outcomes, u64),
    /// Loading and inference threads.
    live_threads: usize,
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
struct Source {
    path: PathBuf,
    condition: u64,
    config: Config,
}

impl Source {
    /// A path that cannot be resolved stays as it is: the bridge will say what is wrong with it.
    fn find(path: &Path, config: &Config) -> Self {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut hasher = DefaultHasher::new();
        // What cannot be read has the condition of an empty file.
        let _ = condition(&path, &mut hasher, 0);
        Self { path, condition: hasher.finish(), config: config.clone() }
    }
}

/// Names, lengths and times of the file, or of all files of a package: a model that was replaced is another model.
fn condition(path: &Path, hasher: &mut DefaultHasher, depth: u32) -> io::Result<()> {
    /// A package is four levels deep; whatever is deeper is none.
    const DEPTH: u32 = 8;
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        if depth == DEPTH {
            return Ok(());
        }
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            entry.file_name().hash(hasher);
            condition(&entry.path(), hasher, depth + 1)?;
        }
    } else {
        metadata.len().hash(hasher);
        metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH).hash(hasher);
    }
    Ok(())
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
                retiring: Vec::new(),
                retired: Default::default(),
                live_threads: 0,
            }),
            strays: AtomicU64::new(0),
            strays_closed: AtomicU64::new(0),
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    // ---- models ----

    /// The model for a request; its absence is counted as the end of the request.
    pub(crate) fn route(&self, model_ref: ModelRef) -> Result<Arc<Version>> {
        if let Some(version) = self.versions().get(&model_ref) {
            return Ok(Arc::clone(version));
        }
        let error = self.absent(model_ref);
        let counter = if matches!(error, Error::ShutDown) { &self.strays_closed } else { &self.strays };
        counter.fetch_add(1, Ordering::Relaxed);
        Err(error)
    }

    pub(crate) fn version(&self, model_ref: ModelRef) -> Result<Arc<Version>> {
        let version = self.versions().get(&model_ref).map(Arc::clone);
        version.ok_or_else(|| self.absent(model_ref))
    }

    fn absent(&self, model_ref: ModelRef) -> Error {
        match self.lock().phase {
            Phase::Open => Error::ModelNotFound { model_ref },
            Phase::Stopping { .. } | Phase::Stopped(_) => Error::ShutDown,
        }
    }

    pub(crate) fn unload(&self, model_ref: ModelRef) -> Result<()> {
        let version = {
            let mut state = self.lock();
            let removed = self.versions.write().unwrap_or_else(PoisonError::into_inner).remove(&model_ref);
            let Some(version) = removed else {
                drop(state);
                return Err(self.absent(model_ref));
            };
            state.loaded.retain(|_, loaded| *loaded != model_ref);
            state.retiring.push(Arc::clone(&version));
            version
        };
        version.drain(Error::Unloaded { model_ref });
        drop(version);
        self.lock().retire();
        Ok(())
    }

    /// The next load of the same source will be a new one.
    pub(crate) fn forget_source(&self, model_ref: ModelRef) {
        self.lock().loaded.retain(|_, loaded| *loaded != model_ref);
    }

    // ---- loading ----

    /// Loads a model, once for all who ask for it at the same time, on a thread that none of them can stop.
    pub(crate) fn load(self: &Arc<Self>, path: PathBuf, config: Config, loaded: Loaded) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open) {
            drop(state);
            return loaded(Err(Error::ShutDown));
        }
        let request = (path, config);
        match state.requested.get_mut(&request) {
            Some(Requested::Resolving(waiting)) => return waiting.push(loaded),
            Some(Requested::Found(source)) => {
                let source = source.clone();
                if let Some(waiting) = state.loading.get_mut(&source) {
                    return waiting.push(loaded);
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
        if let Err(error) = self.spawn(name, move || load_thread(&runtime, load)) {
            let source = Arc::new(error);
            let requested = self.lock().requested.remove(&request);
            if let Some(Requested::Resolving(waiting)) = requested {
                tell(waiting, &Err(Error::Thread { source }));
            }
        }
    }

    /// Takes the load on, unless the model is loaded or another thread is at it.
    fn claim(&self, request: &(PathBuf, Config), source: &Source) -> bool {
        let mut state = self.lock();
        let Some(Requested::Resolving(waiting)) = state.requested.remove(request) else {
            // A shutdown has told them.
            return false;
        };
        if let Some(&model_ref) = state.loaded.get(source) {
            drop(state);
            tell(waiting, &Ok(model_ref));
            return false;
        }
        state.requested.insert(request.clone(), Requested::Found(source.clone()));
        let is_first = !state.loading.contains_key(source);
        state.loading.entry(source.clone()).or_default().extend(waiting);
        is_first
    }

    /// Publishes a model, or the failure to load it. `false`: nobody wants it any more.
    fn conclude(&self, source: &Source, result: Result<Arc<Version>>) -> bool {
        let mut state = self.lock();
        state
            .requested
            .retain(|_, requested| !matches!(requested, Requested::Found(found) if found == source));
        let Some(waiting) = state.loading.remove(source) else { return false };
        let result = result.map(|version| {
            let model_ref = version.model_ref;
            state.loaded.insert(source.clone(), model_ref);
            self.versions.write().unwrap_or_else(PoisonError::into_inner).insert(model_ref, version);
            model_ref
        });
        state.retire();
        drop(state);
        let published = result.is_ok();
        tell(waiting, &result);
        published
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
        drop(state);
        let mut models = self.all_versions().iter().map(|version| version.stats()).collect::<Vec<_>>();
        models.sort_by_key(|model| model.model_ref);
        Stats { outcomes, models }
    }

    /// Everything that was ever asked of this runtime.
    fn tally(&self, state: &State) -> (Outcomes, u64) {
        let strays = self.strays.load(Ordering::Relaxed);
        let closed = self.strays_closed.load(Ordering::Relaxed);
        let (mut outcomes, mut detached) = state.retired;
        outcomes += Outcomes { submitted: strays + closed, rejected: strays, closed, ..Outcomes::default() };
        for version in self.versions().values().chain(&state.retiring) {
            let (version_outcomes, version_detached) = version.outcomes();
            outcomes += version_outcomes;
            detached += version_detached;
        }
        (outcomes, detached)
    }

    fn all_versions(&self) -> Vec<Arc<Version>> {
        let state = self.lock();
        self.versions().values().chain(&state.retiring).map(Arc::clone).collect()
    }

    fn versions(&self) -> std::sync::RwLockReadGuard<'_, HashMap<ModelRef, Arc<Version>>> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of others runs under the lock, so a poisoned one guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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
        resolving.chain(mem::take(&mut self.loading).into_values()).flatten().collect()
    }
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
    for loaded in waiting {
        loaded(result.clone());
    }
}

/// Loads a model and goes on as its first inference thread: the instance cannot move to another.
fn load_thread(runtime: &Weak<Runtime>, request: (PathBuf, Config)) {
    let Some(strong) = runtime.upgrade() else { return };
    let source = Source::find(&request.0, &request.1);
    if !strong.claim(&request, &source) {
        return;
    }
    let (path, config) = request;
    let config = Config { threads: strong.settings.threads_inside(config.threads), ..config };
    let model_ref = ModelRef::new();
    let backend = Arc::clone(&strong.settings.backend);
    let version = Version::new(
        model_ref,
        path.clone(),
        config,
        backend,
        &strong.settings.service,
        Weak::clone(runtime),
    );
    let version = Arc::new(version);
    // A load may take minutes; meanwhile it keeps no runtime alive that nobody uses.
    drop(strong);
    let first = version.first_instance();
    let Some(strong) = runtime.upgrade() else { return };
    match first {
        Ok(instance) => {
            let published = strong.conclude(&source, Ok(Arc::clone(&version)));
            drop(strong);
            if published {
                version.serve(0, Some(instance));
            }
        }
        Err(error) => {
            strong.conclude(&source, Err(error));
        }
    }
}
