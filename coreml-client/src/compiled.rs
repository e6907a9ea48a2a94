//! Compiled models, kept on disk: Core ML compiles a model at each load, for minutes with a large one, unless it is given a
//! compiled one.
//!
//! An entry is a folder, named by a digest of what it was compiled from and by what. It comes into being by one rename, and
//! goes by one: nobody sees half an entry, whatever dies when. Locks of the system, which end with their process, say who
//! makes an entry and who uses it:
//!
//! ```text
//! KEY/entry, KEY/model/NAME.mlmodelc   an entry: its digest, and what the compiler made
//! KEY.make                             locked while somebody compiles it, so that nobody else does
//! KEY.use                              locked, shared, by all who use it; its time says when it was last taken
//!                                      (both are empty, and stay: to delete a lock that others wait for undoes it)
//! tmp-KEY/                             being made, under `KEY.make`; without that lock, left by a process that died
//! gone-KEY-ID/                         on its way out
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use coreml_bridge::{Config, Features, ModelDescription, ModelRef, Timings};
use sha2::{Digest, Sha256};

use crate::InferenceRequest;
use crate::backend::{Backend, Instance};
use crate::files::{Files, hex};
use crate::source::LoadStage;
use crate::telemetry;

/// A folder in which compiled models are kept, for all processes that name it.
///
/// A model is compiled once for its content and the build of the system, whoever asks and however many at once. What is in
/// use is never evicted. An entry is read whole and compared with its digest when a process begins to use it; one that is
/// spoilt is made again. Whatever fails in the cache's way (a full disk, a model that names files beside itself), the model
/// is loaded as without it.
///
/// Who can write to the folder can make the program run other models, so let it be the user's own.
///
/// ```
/// use coreml_client::{CompiledCache, ModelClient};
///
/// # let folder = std::env::temp_dir().join(format!("coreml-doc-{}", std::process::id()));
/// let cache = CompiledCache::new(&folder).capacity(4 << 30);
/// let client = ModelClient::builder().compiled_cache(cache).build();
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// let model_ref = client.load_model(path)?;
/// # assert!(folder.read_dir().unwrap().count() > 0);
/// # drop((client, std::fs::remove_dir_all(folder)));
/// # Ok::<(), coreml_client::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CompiledCache {
    folder: PathBuf,
    capacity: u64,
}

impl CompiledCache {
    /// Uses a folder, which is made when it is needed. It must be the cache's alone: what looks like an old entry is deleted.
    ///
    /// ```
    /// let cache = coreml_client::CompiledCache::new("/var/cache/my-program/models");
    /// # drop(cache);
    /// ```
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), capacity: 8 << 30 }
    }

    /// How many bytes the entries may have together, by default 8 GiB. Beyond it those go that were not used for longest;
    /// while all are in use it may be exceeded.
    ///
    /// ```
    /// let cache = coreml_client::CompiledCache::new("/var/cache/my-program/models").capacity(2 << 30);
    /// # drop(cache);
    /// ```
    #[must_use]
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.capacity = bytes;
        self
    }
}

/// A bridge whose models go through a cache.
pub(crate) struct Cached {
    inner: Arc<dyn Backend>,
    store: Option<Store>,
}

impl Cached {
    pub(crate) fn new(inner: Arc<dyn Backend>, cache: CompiledCache) -> Self {
        let CompiledCache { folder, capacity } = cache;
        let store = inner.identity().map(|compiler| Store {
            folder,
            capacity,
            compiler,
            keys: Mutex::default(),
            leases: Mutex::default(),
        });
        Self { inner, store }
    }

    fn lease(&self, source: &Path, progress: &dyn Fn(LoadStage)) -> Option<Arc<Lease>> {
        let store = self.store.as_ref()?;
        let compiled = source.extension().is_some_and(|extension| extension == "mlmodelc");
        if compiled || !source.exists() {
            return None;
        }
        let compiling = || progress(LoadStage::Compiling);
        match store.lease(source, compiling, |folder| self.inner.compile(source, folder)) {
            Ok(lease) => lease,
            Err(error) => {
                telemetry::cache_failed(source, &error);
                None
            }
        }
    }
}

impl Backend for Cached {
    fn takes_threads(&self) -> bool {
        self.inner.takes_threads()
    }

    fn instantiate(
        &self,
        model_ref: ModelRef,
        path: &Path,
        config: &Config,
        progress: &dyn Fn(LoadStage),
    ) -> Result<Box<dyn Instance>, coreml_bridge::Error> {
        let Some(lease) = self.lease(path, progress) else {
            return self.inner.instantiate(model_ref, path, config, progress);
        };
        match self.inner.instantiate(model_ref, &lease.path, config, progress) {
            Ok(inner) => Ok(Box::new(Leased { inner, _lease: lease })),
            Err(_) => {
                let instance = self.inner.instantiate(model_ref, path, config, progress)?;
                // So it was the entry.
                if let (Some(store), Some(lease)) = (&self.store, Arc::into_inner(lease)) {
                    let key = lease.key.clone();
                    drop(lease);
                    // If somebody else uses it after all, it stays for now.
                    let _ = store.remove(&key);
                }
                Ok(instance)
            }
        }
    }
}

/// An instance whose files stay.
struct Leased {
    inner: Box<dyn Instance>,
    /// Dropped after the instance.
    _lease: Arc<Lease>,
}

impl Instance for Leased {
    fn description(&self) -> Arc<ModelDescription> {
        self.inner.description()
    }

    fn predict(&mut self, request: &InferenceRequest) -> Result<(Features, Timings), coreml_bridge::Error> {
        self.inner.predict(request)
    }
}

struct Store {
    folder: PathBuf,
    capacity: u64,
    /// Who compiles, on which build of the system.
    compiler: String,
    /// What is known of sources, while their files are as they were.
    keys: Mutex<HashMap<PathBuf, (String, String)>>,
    /// What this process uses.
    leases: Mutex<HashMap<String, Weak<Lease>>>,
}

/// The use of an entry: for as long as it lives, the entry stays.
struct Lease {
    key: String,
    path: PathBuf,
    /// Locked, shared.
    _lock: File,
}

/// Somebody may have put anything into the folder.
fn spoilt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Store {
    /// The entry of a source, after compiling it if need be. `None`: somebody holds on to an entry that is spoilt.
    fn lease(
        &self,
        source: &Path,
        compiling: impl Fn(),
        compile: impl Fn(&Path) -> Result<PathBuf, coreml_bridge::Error>,
    ) -> io::Result<Option<Arc<Lease>>> {
        /// A fresh entry can be evicted before it is taken; more often than this it is not chance.
        const TRIES: usize = 3;
        let key = self.key(source)?;
        if let Some(lease) = self.leases().get(&key).and_then(Weak::upgrade) {
            return Ok(Some(lease));
        }
        let mut made = false;
        for _ in 0..TRIES {
            if let Some(lease) = self.take(&key)? {
                telemetry::compiled(source, if made { "made" } else { "found" });
                let lease = Arc::new(lease);
                self.leases().insert(key, Arc::downgrade(&lease));
                self.trim();
                return Ok(Some(lease));
            }
            compiling();
            let _making = self.locked(&key, "make")?;
            // Whoever made it meanwhile has made it for this caller, too.
            if self.verify(&key).is_ok() {
                continue;
            }
            if self.folder.join(&key).symlink_metadata().is_ok() && !self.remove(&key)? {
                return Ok(None);
            }
            self.make(&key, source, &compile)?;
            made = true;
        }
        Ok(None)
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<Lease>>> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|_, lease| lease.strong_count() > 0);
        leases
    }

    /// The name of the entry of a source; its files are read once for as long as they do not change.
    fn key(&self, source: &Path) -> io::Result<String> {
        let files = Files::of(source)?;
        let condition = files.condition();
        let keys = || self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, key)) = keys().get(source)
            && *known == condition
        {
            return Ok(key.clone());
        }
        // Without the lock: the next model's files may be on a disk that answers.
        let mut digest = Sha256::new();
        // The first number changes when entries do.
        for part in ["1", &self.compiler, &files.digest()?] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        // The name goes into what the compiler makes.
        digest.update(source.file_name().unwrap_or_default().as_encoded_bytes());
        let key = hex(&digest.finalize());
        keys().insert(source.to_owned(), (condition, key.clone()));
        Ok(key)
    }

    fn open(&self, key: &str, what: &str) -> io::Result<File> {
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join(format!("{key}.{what}"));
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
    }

    fn locked(&self, key: &str, what: &str) -> io::Result<File> {
        let file = self.open(key, what)?;
        file.lock()?;
        Ok(file)
    }

    /// Begins to use an entry, if there is a sound one.
    fn take(&self, key: &str) -> io::Result<Option<Lease>> {
        let lock = self.open(key, "use")?;
        lock.lock_shared()?;
        let Ok(path) = self.verify(key) else { return Ok(None) };
        lock.set_modified(SystemTime::now())?;
        Ok(Some(Lease { key: key.to_owned(), path, _lock: lock }))
    }

    /// The path of what an entry holds, if it holds what was put there.
    fn verify(&self, key: &str) -> io::Result<PathBuf> {
        let entry = self.folder.join(key);
        let (name, digest, _) = read_entry(&entry)?;
        let path = entry.join("model").join(name);
        if Files::of(&path)?.digest()? != digest {
            return Err(spoilt("an entry is not what was put there"));
        }
        Ok(path)
    }

    /// Makes an entry, under its lock.
    fn make(
        &self,
        key: &str,
        source: &Path,
        compile: impl Fn(&Path) -> Result<PathBuf, coreml_bridge::Error>,
    ) -> io::Result<()> {
        let workshop = self.folder.join(format!("tmp-{key}"));
        // From a process that died at it.
        remove_folder(&workshop)?;
        let made = (|| {
            let model = workshop.join("model");
            fs::create_dir_all(&model)?;
            let path = compile(&model).map_err(io::Error::other)?;
            // If the source changed meanwhile, nobody knows what was compiled.
            if self.key(source)? != key {
                return Err(io::Error::other("the model changed while it was compiled"));
            }
            let inside = path.strip_prefix(&model).map_err(|_| io::Error::other("compiled elsewhere"))?;
            let name = inside.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
            let files = Files::of(&path)?;
            let text = format!("{name}\n{}\n{}\n", files.digest()?, files.bytes());
            fs::write(workshop.join("entry"), text)?;
            fs::rename(&workshop, self.folder.join(key))
        })();
        if made.is_err() {
            let _ = remove_folder(&workshop);
        }
        made
    }

    /// Removes an entry, unless somebody uses it; `false` then.
    fn remove(&self, key: &str) -> io::Result<bool> {
        let lock = self.open(key, "use")?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let gone = self.folder.join(format!("gone-{key}-{}", uuid::Uuid::new_v4().simple()));
        match fs::rename(self.folder.join(key), &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        drop(lock);
        // Nobody can find it any more; this may take its time, and what is left over the next one removes.
        let _ = remove_folder(&gone);
        Ok(true)
    }

    /// Evicts what exceeds the capacity, and clears up after processes that died. Its failures are nobody's.
    fn trim(&self) {
        let Ok(list) = fs::read_dir(&self.folder) else { return };
        let mut entries = Vec::new();
        for item in list.flatten() {
            let name = item.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(key) = name.strip_prefix("tmp-")
                && is_key(key)
            {
                // Under its lock it is at work.
                if let Ok(lock) = self.open(key, "make")
                    && lock.try_lock().is_ok()
                {
                    let _ = remove_folder(&item.path());
                }
            } else if let Some(rest) = name.strip_prefix("gone-") {
                if rest.split('-').next().is_some_and(is_key) {
                    let _ = remove_folder(&item.path());
                }
            } else if is_key(name) {
                // What is spoilt cannot say how much it takes, and is the first to go.
                let bytes = read_entry(&item.path()).map(|(_, _, bytes)| bytes);
                let used = fs::metadata(self.folder.join(format!("{name}.use")))
                    .and_then(|metadata| metadata.modified())
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                entries.push((bytes.is_ok(), used, bytes.unwrap_or(0), name.to_owned()));
            }
        }
        entries.sort();
        let mut total = entries.iter().fold(0_u64, |total, (_, _, bytes, _)| total.saturating_add(*bytes));
        for (is_sound, _, bytes, key) in entries {
            if is_sound && total <= self.capacity {
                break;
            }
            if self.remove(&key).unwrap_or(false) {
                total = total.saturating_sub(bytes);
            }
        }
    }
}

fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Name, digest and bytes of what an entry holds.
fn read_entry(entry: &Path) -> io::Result<(String, String, u64)> {
    const LONGEST: u64 = 4096;
    let mut text = String::new();
    File::open(entry.join("entry"))?.take(LONGEST).read_to_string(&mut text)?;
    let mut lines = text.lines();
    let (Some(name), Some(digest), Some(bytes)) = (lines.next(), lines.next(), lines.next()) else {
        return Err(spoilt("an entry does not say what it holds"));
    };
    let mut components = Path::new(name).components();
    if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
        return Err(spoilt("an entry names something outside itself"));
    }
    let bytes = bytes.parse().map_err(|_| spoilt("an entry does not say how large it is"))?;
    Ok((name.to_owned(), digest.to_owned(), bytes))
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        // Somebody else may be at it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
