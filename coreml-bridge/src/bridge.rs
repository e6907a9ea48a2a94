//! A bridge: whoever can run models, as one table of C functions.

use std::{
    fmt,
    hash::{Hash, Hasher},
    num::NonZeroU64,
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use coreml_sys::{CmlBlob, CmlBridge, CmlError, CmlFile, CmlStatus, CmlStr};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    BridgeError, Config, CoreMlHandle, Dtype, Error, ModelStructure, PendingModel, pending::Waiting,
    table::Table,
};

/// Whoever can run models: Apple's Core ML, the portable engine, a double in a test.
///
/// A copyable reference to a table of functions that was checked once. Two bridges live side by side in one process; every
/// handle carries the one that made it.
///
/// ```no_run
/// use coreml_bridge::{Bridge, Config, Features, Tensor};
///
/// let model = Bridge::platform().load("digits.mlpackage", &Config::default())?;
/// let image = Tensor::zeros(coreml_bridge::Dtype::Float32, &[1, 1, 8, 8])?;
/// let outputs = model.predict(&Features::new().with("image", image))?;
/// println!("{:?}", outputs.tensor("probabilities")?.as_slice::<f32>()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub struct Bridge {
    table: &'static Table,
}

impl Bridge {
    /// A bridge on a table of functions.
    ///
    /// # Errors
    /// [`BridgeError`] if the table is null, has another version, is too short, or lacks a slot.
    ///
    /// # Safety
    /// `table` is null, or points at a [`CmlBridge`] that is as long as its `struct_size` says (when its `abi_version` is
    /// this crate's), lives for ever, does not change, and whose functions keep the rules of `coreml_bridge.h`.
    ///
    /// ```
    /// use coreml_bridge::{Bridge, BridgeError};
    ///
    /// // SAFETY: null is allowed.
    /// assert_eq!(unsafe { Bridge::from_table(std::ptr::null()) }.unwrap_err(), BridgeError::Null);
    /// ```
    pub unsafe fn from_table(table: *const CmlBridge) -> Result<Bridge, BridgeError> {
        /// Every table that was ever checked: a table lives for ever, so its parsed form may, too.
        static TABLES: Mutex<Vec<&'static Table>> = Mutex::new(Vec::new());

        // Nothing panics under the lock, so that a poisoned one is as good.
        let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tables.iter().find(|known| ptr::eq(known.raw, table)) {
            return Ok(Bridge { table: known });
        }
        // SAFETY: the caller promises what `check` demands.
        let table = Box::leak(Box::new(unsafe { Table::check(table) }?));
        tables.push(table);
        Ok(Bridge { table })
    }

    /// The bridge of this platform: Core ML on Apple's, the portable engine elsewhere.
    ///
    /// ```
    /// assert!(!coreml_bridge::Bridge::platform().info()?.name.is_empty());
    /// # Ok::<(), coreml_bridge::Error>(())
    /// ```
    #[must_use]
    pub fn platform() -> Bridge {
        #[cfg(target_vendor = "apple")]
        return Bridge::coreml();
        #[cfg(not(target_vendor = "apple"))]
        return Bridge::portable();
    }

    /// Apple's Core ML.
    ///
    /// # Panics
    /// If the shim was compiled from another header than this crate, which one build cannot bring about.
    #[cfg(target_vendor = "apple")]
    #[must_use]
    pub fn coreml() -> Bridge {
        static BRIDGE: OnceLock<Bridge> = OnceLock::new();
        *BRIDGE.get_or_init(|| {
            // SAFETY: the function takes nothing and may be called at any time.
            let table = unsafe { coreml_sys::cml_bridge_coreml() };
            // SAFETY: the shim's table is static and keeps the rules.
            unsafe { Bridge::from_table(table) }.expect("the shim fills the table of its own header")
        })
    }

    /// The portable engine.
    ///
    /// # Panics
    /// If the engine's table was made for another version of this crate, which one build cannot bring about.
    #[cfg(any(not(target_vendor = "apple"), feature = "portable"))]
    #[must_use]
    pub fn portable() -> Bridge {
        static BRIDGE: OnceLock<Bridge> = OnceLock::new();
        *BRIDGE.get_or_init(|| {
            // SAFETY: the engine's table is static and keeps the rules.
            unsafe { Bridge::from_table(coreml_portable::bridge()) }
                .expect("the engine fills the whole table")
        })
    }

    pub(crate) fn table(self) -> &'static Table {
        self.table
    }

    /// What the bridge says of itself.
    ///
    /// # Errors
    /// [`Error::Info`], or [`Error::Description`] if its answer is not understood.
    pub fn info(self) -> Result<BackendInfo, Error> {
        let subject: Arc<str> = Arc::from("the bridge");
        let json = self
            .make("backend_info", |table, json, error| {
                // SAFETY: the out-pointers are ours.
                unsafe { (table.backend_info)(table.own(), json, error) }
            })
            .map_err(|failure| failure.about(&subject, |_, source| Error::Info { source }))?;
        serde_json::from_slice(json.bytes())
            .map_err(|source| Error::Description { subject, source: Arc::new(source) })
    }

    /// Compiles a model (`.mlmodel`, `.mlpackage`) into `folder`, and returns the path of the result. With no folder the
    /// result is in a temporary one, which is the caller's to delete. Nothing is left behind on failure.
    ///
    /// Blocks for as long as it takes, which for Core ML may be minutes.
    ///
    /// # Errors
    /// [`Error::Compile`] with the reason, [`Error::Unsupported`] if this bridge does not compile, [`Error::Path`] if a path
    /// is not UTF-8.
    pub fn compile(self, source: &Path, folder: Option<&Path>) -> Result<PathBuf, Error> {
        let path = utf8(source)?;
        let folder = folder.map(utf8).transpose()?;
        let subject: Arc<str> = path.into();
        let wrong = |failure: crate::native::Failure| {
            failure.about(&subject, |path, source| Error::Compile { path, source })
        };
        let result = self
            .make("model_compile", |table, result, error| {
                let folder = folder.map_or(CmlStr::NONE, CmlStr::from);
                // SAFETY: the strings are borrowed for the call, the out-pointers are ours.
                unsafe { (table.model_compile)(table.own(), path.into(), folder, result, error) }
            })
            .map_err(wrong)?;
        let bytes = core::str::from_utf8(result.bytes()).map_err(|_| Error::Contract {
            slot: "model_compile",
            what: "it gave a path that is not UTF-8",
        })?;
        Ok(PathBuf::from(bytes))
    }

    /// The names of the functions of a model (`.mlmodel`, `.mlpackage`, `.mlmodelc`), any of which
    /// [`Config::function`] may choose.
    ///
    /// ```
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// # #[cfg(not(target_vendor = "apple"))]
    /// assert_eq!(coreml_bridge::Bridge::platform().functions(path)?, ["main"]);
    /// # Ok::<(), coreml_bridge::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Load`] with the reason, [`Error::Unsupported`] if the system cannot tell, [`Error::Path`] if the path is not
    /// UTF-8, [`Error::Description`] if the answer is not understood.
    pub fn functions(self, path: impl AsRef<Path>) -> Result<Vec<String>, Error> {
        self.ask("function_names", path.as_ref(), |table, path, json, error| {
            // SAFETY: the path is borrowed for the call, the out-pointers are ours.
            unsafe { (table.function_names)(table.own(), path, json, error) }
        })
    }

    /// What is inside a model (`.mlmodel`, `.mlpackage`, `.mlmodelc`): its functions and their ops, or its layers. The model need
    /// not be one that this bridge can run.
    ///
    /// ```
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// let structure = coreml_bridge::Bridge::platform().structure(path)?;
    /// let main = &structure.functions["main"];
    /// assert_eq!(main.ops.iter().filter(|op| op.kind == "conv").count(), 2);
    /// # Ok::<(), coreml_bridge::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Load`] with the reason, [`Error::Unsupported`] if the system cannot tell, [`Error::Path`] if the path is not
    /// UTF-8, [`Error::Description`] if the answer is not understood.
    pub fn structure(self, path: impl AsRef<Path>) -> Result<ModelStructure, Error> {
        self.ask("model_structure", path.as_ref(), |table, path, json, error| {
            // SAFETY: the path is borrowed for the call, the out-pointers are ours.
            unsafe { (table.model_structure)(table.own(), path, json, error) }
        })
    }

    /// The structure of a model, and for each op of the function that `config` chooses on which devices it can run, on which it
    /// will, and what part of the work it is. For Core ML it takes as long as loading the model.
    ///
    /// ```
    /// # use coreml_bridge::{Bridge, Config};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// let plan = Bridge::platform().compute_plan(path, &Config::default())?;
    /// let on_cpu = |op: &&coreml_bridge::Op| op.devices.as_ref().is_some_and(|d| d.preferred.as_deref() == Some("cpu"));
    /// let weight: f64 = plan.functions["main"].ops.iter().filter(on_cpu).filter_map(|op| op.weight).sum();
    /// assert!(weight > 0.99, "the portable engine has but a CPU");
    /// # Ok::<(), coreml_bridge::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Bridge::structure`], and [`Error::Unsupported`] if this bridge cannot do what `config` asks.
    pub fn compute_plan(self, path: impl AsRef<Path>, config: &Config) -> Result<ModelStructure, Error> {
        self.ask("compute_plan", path.as_ref(), |table, path, json, error| {
            let config = config.to_native();
            // SAFETY: path and configuration are borrowed for the call, the out-pointers are ours.
            unsafe { (table.compute_plan)(table.own(), path, &config, json, error) }
        })
    }

    /// A question about the model at a path, answered in JSON.
    fn ask<T: DeserializeOwned>(
        self,
        name: &'static str,
        path: &Path,
        slot: impl FnOnce(&'static Table, CmlStr, *mut *mut CmlBlob, *mut *mut CmlError) -> CmlStatus,
    ) -> Result<T, Error> {
        let path = utf8(path)?;
        let subject: Arc<str> = path.into();
        let json = self
            .make(name, |table, json, error| slot(table, path.into(), json, error))
            .map_err(|failure| failure.about(&subject, |path, source| Error::Load { path, source }))?;
        serde_json::from_slice(json.bytes())
            .map_err(|source| Error::Description { subject, source: Arc::new(source) })
    }

    /// Loads a model (`.mlmodel`, `.mlpackage`, `.mlmodelc`) for this thread, and reads its description.
    ///
    /// Blocks for as long as it takes, which for Core ML may be minutes.
    ///
    /// # Errors
    /// [`Error::Load`] with the reason, [`Error::Unsupported`] if this bridge cannot do what `config` asks, [`Error::Describe`]
    /// and [`Error::Description`] if the model does not say what it takes, [`Error::Path`] if the path is not UTF-8.
    pub fn load(self, path: impl AsRef<Path>, config: &Config) -> Result<CoreMlHandle, Error> {
        CoreMlHandle::load(self, utf8(path.as_ref())?, config)
    }

    /// Loads a model that is in memory for this thread, and reads its description: `specification` is what a `.mlmodel` holds, and
    /// `files` are the files that it names, each by that name. Nothing is written to the disk; the bytes are copied, and may go
    /// as soon as this returns.
    ///
    /// Errors, and [`CoreMlHandle::path`], name the model by [`Config::display_name`], or else `<memory>`.
    ///
    /// ```
    /// # use coreml_bridge::{Bridge, Config};
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// # let package = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// let folder = std::path::Path::new(package).join("Data/com.apple.CoreML");
    /// let specification = std::fs::read(folder.join("model.mlmodel"))?;
    /// let weights = std::fs::read(folder.join("weights/weight.bin"))?;
    /// let files = [("@model_path/weights/weight.bin", &*weights)];
    /// let model = Bridge::platform().load_memory(&specification, &files, &Config::default())?;
    /// assert!(model.description().input("image").is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Bridge::load`]: [`Error::Load`] also if a file is missing, given twice, or not below `@model_path/`;
    /// [`Error::Unsupported`] also before macOS 13 or iOS 16, and with files before macOS 15 or iOS 18.
    pub fn load_memory(
        self,
        specification: &[u8],
        files: &[(&str, &[u8])],
        config: &Config,
    ) -> Result<CoreMlHandle, Error> {
        let name: Arc<str> = config.display_name.as_deref().unwrap_or("<memory>").into();
        let native: Vec<CmlFile> = files
            .iter()
            .map(|&(name, bytes)| CmlFile {
                name: name.into(),
                bytes: bytes.as_ptr().cast(),
                length: bytes.len(),
            })
            .collect();
        CoreMlHandle::load_with("model_load_memory", self, name, |table, model, error| {
            let (slot, config) = (table.model_load_memory, config.to_native());
            let (bytes, length) = (specification.as_ptr().cast(), specification.len());
            // SAFETY: specification, files and configuration are borrowed for the call, and as long as is said; the
            // out-pointers are ours.
            unsafe { slot(table.own(), bytes, length, native.as_ptr(), native.len(), &config, model, error) }
        })
    }

    /// Begins to load a model, and does not wait: the result is a future, which also can be waited for. The model belongs to the
    /// thread that holds the future, which does not leave it either.
    ///
    /// A load that is cancelled, or whose future is dropped, ends at once, even if the framework never answers.
    ///
    /// ```
    /// # use coreml_bridge::{Bridge, Config};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// let pending = Bridge::platform().load_async(path, &Config::default())?;
    /// // .. something else ..
    /// assert!(pending.wait()?.description().input("image").is_some());
    /// # Ok::<(), coreml_bridge::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Bridge::load`], if the load cannot begin.
    pub fn load_async(self, path: impl AsRef<Path>, config: &Config) -> Result<PendingModel, Error> {
        let path = utf8(path.as_ref())?;
        let name: Arc<str> = path.into();
        let begun = Waiting::begin(self, |table, done, context, request, error| {
            let config = config.to_native();
            let slot = table.model_load_async;
            // SAFETY: path and configuration are borrowed for the call; completion and context belong together.
            unsafe { slot(table.own(), path.into(), &config, done, context, request, error) }
        });
        let waiting =
            begun.map_err(|failure| failure.about(&name, |path, source| Error::Load { path, source }))?;
        Ok(PendingModel::new(waiting, self, name))
    }
}

/// Paths cross the table as UTF-8.
fn utf8(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::Path { path: path.to_owned() })
}

/// The same table.
impl PartialEq for Bridge {
    fn eq(&self, other: &Bridge) -> bool {
        ptr::eq(self.table.raw, other.table.raw)
    }
}

impl Eq for Bridge {}

impl Hash for Bridge {
    fn hash<H: Hasher>(&self, state: &mut H) {
        ptr::hash(self.table.raw, state);
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bridge({:p})", self.table.raw)
    }
}

/// What a bridge says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct BackendInfo {
    /// Who runs models, for example `portable`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The system it runs on.
    #[serde(default)]
    pub system: String,
    /// The element types that it takes.
    #[serde(default)]
    pub dtypes: Vec<Dtype>,
    /// What else it can do.
    #[serde(default)]
    pub features: Vec<String>,
    /// Where it can run models.
    #[serde(default)]
    pub devices: Vec<Device>,
}

/// Something that computes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "DeviceForm")]
#[non_exhaustive]
pub struct Device {
    /// What it is: `cpu`, `gpu`, `neural_engine`.
    pub kind: String,
    /// What it is called, if that is known.
    pub name: Option<String>,
    /// What the system knows it by, if it can be preferred: see [`Config::preferred_device`].
    pub registry_id: Option<NonZeroU64>,
    /// How many cores it has, if that is known.
    pub cores: Option<u32>,
}

/// A device is an object, or just its kind.
#[derive(Deserialize)]
#[serde(untagged)]
enum DeviceForm {
    Kind(String),
    Object { kind: String, name: Option<String>, registry_id: Option<NonZeroU64>, cores: Option<u32> },
}

impl From<DeviceForm> for Device {
    fn from(form: DeviceForm) -> Self {
        match form {
            DeviceForm::Kind(kind) => Device { kind, name: None, registry_id: None, cores: None },
            DeviceForm::Object { kind, name, registry_id, cores } => {
                Device { kind, name, registry_id, cores }
            }
        }
    }
}
