//! A window into a running program: an endpoint on this machine that hands a picture of the runtime to whoever connects.
//!
//! Off unless [`Monitor::start`] is called. `coreml top ADDRESS` shows what it tells; other programs read it with
//! [`Snapshot::read`], or connect and read one JSON document up to the end.
//!
//! The endpoint is a thread of its own that only ever writes. It reads nothing from its callers, so there is nothing to
//! parse and nothing to attack but the writing: there it keeps a bounded number of callers, each for a bounded time, and
//! takes at most ten pictures a second however many ask, so requests for predictions do not notice.
//!
//! ```
//! use std::time::Duration;
//!
//! use coreml_client::ModelClient;
//! use coreml_client::monitor::{Monitor, Snapshot};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = ModelClient::builder().memory_budget(64 << 20).build();
//! let monitor = Monitor::start(&client, &"127.0.0.1:0".parse()?)?;
//!
//! let snapshot = Snapshot::read(monitor.address(), Duration::from_secs(5))?;
//! assert_eq!(snapshot.pid, std::process::id());
//! assert_eq!(snapshot.memory_budget, Some(64 << 20));
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{self, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use mio::event::Source;
use mio::{Events, Interest, Poll, Token, Waker};
use serde::{Deserialize, Serialize};

use crate::runtime::Runtime;
use crate::stats::Latencies;
use crate::{ModelClient, ModelStats, Outcomes, Stats, WorkerState};

/// Callers at a time; the one who has been slow for longest makes room for the next.
const CALLERS: usize = 16;
/// How long a caller may take to read the document.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pictures are not taken more often: each copies the distributions, under the locks that record them.
const FRESH: Duration = Duration::from_millis(100);
/// The pause after a round of callers: a flood of them costs a small share of one core, and delays only watchers.
const PAUSE: Duration = Duration::from_millis(20);

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);

/// Where an endpoint listens.
///
/// As text it is `HOST:PORT`, with a numeric host, or the path of a socket, which must have a `/` in it.
///
/// ```
/// use coreml_client::monitor::Address;
///
/// let address: Address = "127.0.0.1:9800".parse().unwrap();
/// assert!(matches!(address, Address::Tcp(_)));
/// let address: Address = "./my-program.sock".parse().unwrap();
/// assert!(matches!(address, Address::Unix(_)));
/// assert!("my-program".parse::<Address>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A port of this machine. Every user of the machine can connect. Port 0 is one that is free.
    Tcp(SocketAddr),
    /// A Unix domain socket. Only the user whom the program runs as can connect.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Text that is not an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a numeric HOST:PORT nor a path with a `/`")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.parse() {
            Ok(address) => Ok(Self::Tcp(address)),
            Err(_) if text.contains('/') => Ok(Self::Unix(PathBuf::from(text))),
            Err(_) => Err(AddressError(text.to_owned())),
        }
    }
}

// ---- what it tells ----

/// What an endpoint tells of its program.
///
/// See the [module's documentation](self) for an example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The name of the program's file.
    pub program: String,
    /// Its process.
    pub pid: u32,
    /// When the picture was taken, in seconds since 1970.
    pub time: f64,
    /// Seconds since the endpoint was started.
    pub uptime: f64,
    /// What became of all requests, as [`Stats::outcomes`].
    pub outcomes: Outcomes,
    /// Bytes of the memory budget in use.
    pub memory: u64,
    /// The budget, if there is one.
    pub memory_budget: Option<u64>,
    /// The models that are loaded, or still finishing their last requests; in the order of loading.
    pub models: Vec<ModelSnapshot>,
}

/// One version of a model, as an endpoint tells it; see [`ModelStats`].
///
/// ```
/// # use coreml_client::monitor::Snapshot;
/// # fn show(snapshot: &Snapshot) {
/// for model in &snapshot.models {
///     println!("{} version {}: {} queued", model.model, model.version, model.depth.iter().sum::<u64>());
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelSnapshot {
    /// The name of its file and the number of its reference, as in the labels of the metrics.
    pub model: String,
    /// Which version of it.
    pub version: u64,
    /// Where it was loaded from.
    pub path: String,
    /// Whether it was taken out of memory to make room.
    pub evicted: bool,
    /// Bytes of the memory budget that it takes.
    pub memory: u64,
    /// What became of its requests.
    pub outcomes: Outcomes,
    /// Predictions that finished with nobody waiting any more.
    pub detached: u64,
    /// Requests admitted and not started: high, normal, low.
    pub depth: [u64; 3],
    /// Input bytes of these, and of the places that callers hold.
    pub bytes: u64,
    /// Callers that wait for admission.
    pub waiting: u64,
    /// Predictions under way.
    pub running: u64,
    /// From the call to the start of the prediction.
    pub queue_time: Durations,
    /// The prediction.
    pub predict_time: Durations,
    /// Both together.
    pub total_time: Durations,
    /// The inference threads.
    pub workers: Vec<WorkerSnapshot>,
}

/// One inference thread, as an endpoint tells it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// What it is doing.
    pub state: WorkerState,
    /// Seconds spent in predictions that have returned.
    pub busy: f64,
    /// Instances that it lost to panics.
    pub restarts: u64,
}

/// A distribution of durations since the model was loaded: how many fell between a bound and the one before it. The
/// bounds are at most a sixteenth apart.
///
/// ```
/// use coreml_client::monitor::Durations;
///
/// let durations = Durations { buckets: vec![(1_000, 98), (2_000_000, 2)] }; // nanoseconds, count
/// assert_eq!(durations.count(), 100);
/// assert_eq!(durations.quantile(0.5).unwrap().as_micros(), 1);
/// assert_eq!(durations.quantile(0.99).unwrap().as_millis(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durations {
    /// Upper bounds in nanoseconds, rising, with their counts; no count is zero.
    pub buckets: Vec<(u64, u64)>,
}

impl Durations {
    fn of(latencies: &Latencies) -> Self {
        Self { buckets: latencies.buckets() }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The bound that `quantile` (0 to 1) of all do not exceed; `None` if there are none.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0);
        let mut below = 0_u64;
        let found = self.buckets.iter().find(|(_, count)| {
            below = below.saturating_add(*count);
            below as f64 >= rank
        });
        found.or(self.buckets.last()).map(|(bound, _)| Duration::from_nanos(*bound))
    }

    /// Those that came after `earlier`, a picture of the same version.
    ///
    /// ```
    /// use coreml_client::monitor::Durations;
    ///
    /// let before = Durations { buckets: vec![(10, 1)] };
    /// let after = Durations { buckets: vec![(10, 1), (20, 3)] };
    /// assert_eq!(after.since(&before), Durations { buckets: vec![(20, 3)] });
    /// ```
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: &u64| {
            let found = earlier.buckets.binary_search_by_key(bound, |(bound, _)| *bound);
            found.map_or(0, |index| earlier.buckets[index].1)
        };
        let new = self.buckets.iter().map(|(bound, count)| (*bound, count.saturating_sub(before(bound))));
        Self { buckets: new.filter(|(_, count)| *count > 0).collect() }
    }
}

impl Snapshot {
    fn new(stats: &Stats, memory_budget: Option<usize>, since: Instant) -> Self {
        let program = std::env::current_exe().ok();
        let program = program.as_ref().and_then(|path| path.file_name());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            program: program.map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            pid: std::process::id(),
            time: now.as_secs_f64(),
            uptime: since.elapsed().as_secs_f64(),
            outcomes: stats.outcomes,
            memory: stats.models_total.memory as u64,
            memory_budget: memory_budget.map(|bytes| bytes as u64),
            models: stats.models.iter().map(ModelSnapshot::new).collect(),
        }
    }

    /// Asks an endpoint. Blocks until it has answered, at most for `timeout`.
    ///
    /// # Errors
    /// What the system says of the connection; [`TimedOut`](io::ErrorKind::TimedOut);
    /// [`InvalidData`](io::ErrorKind::InvalidData) if the answer is none of an endpoint's, or larger than 16 MiB.
    ///
    /// See the [module's documentation](self) for an example.
    pub fn read(address: &Address, timeout: Duration) -> io::Result<Self> {
        let deadline = Instant::now().checked_add(timeout);
        let text = match address {
            Address::Tcp(address) => {
                let stream = net::TcpStream::connect_timeout(address, timeout.max(Duration::from_millis(1)))?;
                receive(&stream, deadline, |left| stream.set_read_timeout(left))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = std::os::unix::net::UnixStream::connect(path)?;
                receive(&stream, deadline, |left| stream.set_read_timeout(left))
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }?;
        if text.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the endpoint says nothing: its runtime is gone",
            ));
        }
        serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// All that comes until the end.
fn receive(
    mut stream: impl Read,
    deadline: Option<Instant>,
    set_timeout: impl Fn(Option<Duration>) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    const LARGEST: usize = 16 << 20;
    let mut text = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_timeout(left)?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(text),
            Ok(count) if text.len() + count > LARGEST => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "more than an endpoint says"));
            }
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
}

impl ModelSnapshot {
    fn new(stats: &ModelStats) -> Self {
        Self {
            model: stats.name(),
            version: stats.version,
            path: stats.path.to_string_lossy().into_owned(),
            evicted: stats.evicted,
            memory: stats.memory as u64,
            outcomes: stats.outcomes.iter().copied().sum(),
            detached: stats.detached,
            depth: stats.depth.map(|depth| depth as u64),
            bytes: stats.bytes as u64,
            waiting: stats.waiting as u64,
            running: stats.running as u64,
            queue_time: Durations::of(&stats.queue_time),
            predict_time: Durations::of(&stats.predict_time),
            total_time: Durations::of(&stats.total_time),
            workers: stats
                .workers
                .iter()
                .map(|worker| WorkerSnapshot {
                    state: worker.state,
                    busy: worker.busy.as_secs_f64(),
                    restarts: worker.restarts,
                })
                .collect(),
        }
    }
}

// ---- the endpoint ----

/// An endpoint; it closes when this is dropped. It does not keep its runtime: when the last client is gone it tells
/// nothing any more.
///
/// See the [module's documentation](self) for an example.
#[must_use = "the endpoint closes when this is dropped"]
pub struct Monitor {
    address: Address,
    stop: Waker,
    thread: Option<thread::JoinHandle<()>>,
    /// The socket's file, to be removed if it is still this one.
    #[cfg(unix)]
    file: Option<(PathBuf, u64, u64)>,
}

impl Monitor {
    /// Starts an endpoint for the runtime of a client.
    ///
    /// A Unix socket that nobody listens to any more, left by a program that died, is replaced; the socket is readable by
    /// the program's user alone.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a TCP address that other machines could reach;
    /// [`AddrInUse`](io::ErrorKind::AddrInUse); [`Unsupported`](io::ErrorKind::Unsupported) for a Unix socket where there
    /// are none; else what the system says.
    ///
    /// ```
    /// use coreml_client::ModelClient;
    /// use coreml_client::monitor::Monitor;
    ///
    /// let client = ModelClient::builder().build();
    /// let everywhere = "0.0.0.0:0".parse().unwrap();
    /// assert!(Monitor::start(&client, &everywhere).is_err());
    /// ```
    pub fn start(client: &ModelClient, address: &Address) -> io::Result<Self> {
        let poll = Poll::new()?;
        let stop = Waker::new(poll.registry(), STOP)?;
        let runtime = Arc::downgrade(client.runtime());
        let monitor = |address, thread| Self {
            address,
            stop,
            thread: Some(thread),
            #[cfg(unix)]
            file: None,
        };
        match address {
            Address::Tcp(address) if !address.ip().is_loopback() => {
                let message = format!("{address} could be reached from other machines");
                Err(io::Error::new(io::ErrorKind::InvalidInput, message))
            }
            Address::Tcp(address) => {
                let mut listener = mio::net::TcpListener::bind(*address)?;
                let address = listener.local_addr()?;
                poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
                let accept = move || listener.accept().map(|(stream, _)| stream);
                Ok(monitor(Address::Tcp(address), serve(poll, runtime, accept)?))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                use std::os::unix::fs::MetadataExt;
                let mut listener = unix::bind(path)?;
                let metadata = std::fs::symlink_metadata(path)?;
                poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
                let accept = move || listener.accept().map(|(stream, _)| stream);
                let mut monitor = monitor(Address::Unix(path.clone()), serve(poll, runtime, accept)?);
                monitor.file = Some((path.clone(), metadata.dev(), metadata.ino()));
                Ok(monitor)
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Where it listens: with the port that was free, if any was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Waits for a round at most, whose calls do not block. Where it cannot be woken it ends with the process.
        if self.stop.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        #[cfg(unix)]
        if let Some((path, device, inode)) = &self.file {
            use std::os::unix::fs::MetadataExt;
            let is_this =
                |metadata: &std::fs::Metadata| metadata.dev() == *device && metadata.ino() == *inode;
            if std::fs::symlink_metadata(path).is_ok_and(|metadata| is_this(&metadata)) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(unix)]
mod unix {
    use std::fs::{self, Permissions};
    use std::io;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    /// In the place of a socket that nobody listens to, if there is one.
    pub(super) fn bind(path: &Path) -> io::Result<mio::net::UnixListener> {
        let listener = match mio::net::UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                fs::remove_file(path)?;
                mio::net::UnixListener::bind(path)?
            }
            listener => listener?,
        };
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        // Who came in before that may be anybody.
        while listener.accept().is_ok() {}
        Ok(listener)
    }

    fn is_dead(path: &Path) -> bool {
        let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        is_socket && UnixStream::connect(path).is_err_and(refused)
    }
}

/// A caller who has not read everything yet.
struct Caller<S> {
    token: Token,
    stream: S,
    text: Arc<[u8]>,
    written: usize,
    deadline: Instant,
}

impl<S: Write> Caller<S> {
    /// Writes what the system takes; `true` when nothing is left to do for him.
    fn write(&mut self) -> bool {
        while self.written < self.text.len() {
            match self.stream.write(&self.text[self.written..]) {
                Ok(0) => return true,
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

fn serve<S: Source + Write + 'static>(
    poll: Poll,
    runtime: Weak<Runtime>,
    accept: impl FnMut() -> io::Result<S> + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("coreml-monitor".to_owned()).spawn(move || {
        // What goes wrong with the selector ends the endpoint, and nothing else.
        let _ = rounds(poll, &runtime, accept);
    })
}

fn rounds<S: Source + Write>(
    mut poll: Poll,
    runtime: &Weak<Runtime>,
    mut accept: impl FnMut() -> io::Result<S>,
) -> io::Result<()> {
    let since = Instant::now();
    let mut picture: Option<(Instant, Arc<[u8]>)> = None;
    let mut events = Events::with_capacity(2 * CALLERS);
    let mut callers: VecDeque<Caller<S>> = VecDeque::with_capacity(CALLERS);
    let mut tokens = 0;
    let mut more = false;
    loop {
        let timeout = match callers.front() {
            _ if more => Some(PAUSE),
            Some(caller) => Some(caller.deadline.saturating_duration_since(Instant::now()).max(PAUSE)),
            None => None,
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        if events.iter().any(|event| event.token() == STOP) {
            return Ok(());
        }
        for event in &events {
            let found = callers.iter().position(|caller| caller.token == event.token());
            if let Some(index) = found
                && callers[index].write()
            {
                callers.remove(index);
            }
        }
        let now = Instant::now();
        callers.retain(|caller| caller.deadline > now);
        if !more && !events.iter().any(|event| event.token() == LISTENER) {
            continue;
        }
        more = false;
        for _ in 0..CALLERS {
            let mut stream = match accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A caller who has gone, or no file descriptor left: the next round tries again.
                Err(_) => {
                    more = true;
                    break;
                }
            };
            more = true;
            let text = match &picture {
                Some((taken, text)) if taken.elapsed() < FRESH => Arc::clone(text),
                _ => {
                    let Some(runtime) = runtime.upgrade() else { return Ok(()) };
                    let snapshot = Snapshot::new(&runtime.stats(), runtime.settings().memory_budget, since);
                    drop(runtime);
                    let mut text = serde_json::to_vec(&snapshot)?;
                    text.push(b'\n');
                    Arc::clone(&picture.insert((Instant::now(), text.into())).1)
                }
            };
            tokens = (tokens + 1) % (usize::MAX / 2);
            let token = Token(tokens);
            if poll.registry().register(&mut stream, token, Interest::WRITABLE).is_err() {
                continue;
            }
            let mut caller = Caller { token, stream, text, written: 0, deadline: Instant::now() + PATIENCE };
            if !caller.write() {
                if callers.len() == CALLERS {
                    callers.pop_front();
                }
                callers.push_back(caller);
            }
        }
        // At most `CALLERS` of them a pause, if they come without one.
        thread::sleep(PAUSE);
    }
}
