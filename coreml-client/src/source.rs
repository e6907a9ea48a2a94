use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coreml_bridge::{Config, Features};

/// A model to be loaded, and how it is to be served.
///
/// What names the model is the file, in its condition, with the [`Config`]; the rest only says how it is served, and
/// the first load decides.
///
/// ```
/// use std::time::Duration;
///
/// use coreml_client::{ModelClient, ModelSource};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// let client = ModelClient::builder().build();
/// let source = ModelSource::new(path).default_timeout(Duration::from_secs(2)).memory(4 << 20);
/// assert_eq!(source.path().file_name().unwrap(), "digits.mlpackage");
/// let model_ref = client.load(source).await?;
/// assert_eq!(client.stats().models[0].memory, 4 << 20);
/// # drop(model_ref);
/// # Ok::<(), coreml_client::Error>(())
/// # }).unwrap();
/// ```
///
/// Everything that can be said:
///
/// ```
/// use std::time::Duration;
///
/// use coreml_client::{Batching, ComputeUnits, Config, Features, ModelSource, Tensor};
///
/// let sample = Features::new().with("image", Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?);
/// let source = ModelSource::new("model.mlpackage")
///     .config(Config { compute_units: ComputeUnits::CpuAndNeuralEngine, ..Config::default() })
///     .default_timeout(Duration::from_secs(2))
///     .memory(64 << 20)
///     .warm_up(sample)
///     .batching(Batching { max_batch: 8, max_delay: Duration::ZERO })
///     .refuse_over_budget();
/// # drop(source);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ModelSource {
    pub(crate) path: PathBuf,
    pub(crate) config: Config,
    pub(crate) options: Options,
}

/// What does not name a model.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) default_timeout: Option<Duration>,
    pub(crate) memory: Option<usize>,
    pub(crate) warm_up: Vec<Features>,
    pub(crate) batching: Option<Batching>,
    pub(crate) refuse_over_budget: bool,
}

impl ModelSource {
    /// The model at a path (`.mlmodel`, `.mlpackage`, `.mlmodelc`), with the default configuration.
    ///
    /// ```
    /// let source = coreml_client::ModelSource::new("model.mlpackage");
    /// # drop(source);
    /// ```
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), config: Config::default(), options: Options::default() }
    }

    /// Where the model lies.
    ///
    /// ```
    /// let source = coreml_client::ModelSource::new("model.mlpackage");
    /// assert_eq!(source.path().to_str(), Some("model.mlpackage"));
    /// ```
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets where it runs, and which of its functions.
    ///
    /// ```
    /// use coreml_client::{ComputeUnits, Config, ModelSource};
    ///
    /// let on_cpu = Config { compute_units: ComputeUnits::CpuOnly, ..Config::default() };
    /// let source = ModelSource::new("model.mlpackage").config(on_cpu);
    /// # drop(source);
    /// ```
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The deadline of requests to this model that have none, counted from their hand-in; goes before the
    /// [runtime's](crate::ModelClientBuilder::default_timeout).
    ///
    /// ```
    /// use coreml_client::ModelSource;
    ///
    /// let source = ModelSource::new("model.mlpackage").default_timeout(std::time::Duration::from_secs(2));
    /// assert!(format!("{source:?}").contains("default_timeout: Some(2s)"));
    /// ```
    #[must_use]
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.options.default_timeout = Some(timeout);
        self
    }

    /// How much of the [memory budget](crate::ModelClientBuilder::memory_budget) it takes, in bytes, all threads together.
    /// Without a word it is the size of its files: Core ML's memory may belong to another process, so the system cannot
    /// be asked.
    ///
    /// ```
    /// use coreml_client::ModelSource;
    ///
    /// let source = ModelSource::new("model.mlpackage").memory(64 << 20);
    /// assert!(format!("{source:?}").contains("memory: Some(67108864)"));
    /// ```
    #[must_use]
    pub fn memory(mut self, bytes: usize) -> Self {
        self.options.memory = Some(bytes);
        self
    }

    /// Makes a prediction with these inputs before the model is published; the load fails if it fails. Once for each.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// let source = coreml_client::ModelSource::new(path).warm_up(inputs);
    /// client.load(source).await?; // and the first request finds it warm
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn warm_up(mut self, features: Features) -> Self {
        self.options.warm_up.push(features);
        self
    }

    /// Lets threads make several predictions in one.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use coreml_client::{Batching, ModelSource};
    ///
    /// let batching = Batching { max_batch: 8, max_delay: Duration::ZERO };
    /// let source = ModelSource::new("model.mlpackage").batching(batching);
    /// # drop(source);
    /// ```
    #[must_use]
    pub fn batching(mut self, batching: Batching) -> Self {
        self.options.batching = Some(batching);
        self
    }

    /// Fails with [`Error::OverBudget`](crate::Error::OverBudget) when there is no room and nothing idle to evict; by
    /// default the load waits until there is, behind those that wait already. This one stands in no line: it may take room that
    /// is not enough for them.
    ///
    /// ```
    /// use coreml_client::ModelSource;
    ///
    /// let source = ModelSource::new("model.mlpackage").refuse_over_budget();
    /// assert!(format!("{source:?}").contains("refuse_over_budget: true"));
    /// ```
    #[must_use]
    pub fn refuse_over_budget(mut self) -> Self {
        self.options.refuse_over_budget = true;
        self
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for ModelSource {
    fn from(path: &P) -> Self {
        Self::new(path.as_ref())
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::new(path)
    }
}

impl fmt::Debug for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, config, options } = self;
        let Options { default_timeout, memory, warm_up, batching, refuse_over_budget } = options;
        f.debug_struct("ModelSource")
            .field("path", path)
            .field("config", config)
            .field("default_timeout", default_timeout)
            .field("memory", memory)
            .field("warm_up", &warm_up.len())
            .field("batching", batching)
            .field("refuse_over_budget", refuse_over_budget)
            .finish()
    }
}

/// Several requests made into one prediction: their inputs, of equal shapes, are joined along the first axis, and the
/// outputs parted along it.
///
/// Only for models whose first axis, in every input and output, is the batch. A batch that the model refuses, or whose
/// outputs do not have the length of the batch, is made again one by one, so each request gets its own outputs or
/// its own error; a panic fails all requests of the batch. Requests join those of their own priority only, and those of
/// [`Priority::High`](crate::Priority::High) are never delayed.
///
/// ```
/// use std::time::Duration;
///
/// use coreml_client::{Batching, ModelSource};
///
/// let batching = Batching { max_batch: 16, max_delay: Duration::from_millis(2) };
/// let source = ModelSource::new("model.mlpackage").batching(batching);
/// # drop(source);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// The most requests in one prediction; 0 is taken as 1.
    pub max_batch: usize,
    /// How long the first request waits for company; zero takes what is queued.
    pub max_delay: Duration,
}

/// How far a load has come; see [`Load::stage`](crate::Load::stage).
///
/// See [`Load::stages`](crate::Load::stages) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LoadStage {
    /// Looking at the files.
    Reading,
    /// Waiting for room in the memory budget.
    Waiting,
    /// The bridge compiles the model, or another thread or process that has begun does it for this load, too. Told of where
    /// there is a [cache](crate::ModelClientBuilder::compiled_cache) of compiled models that has not this one; without a
    /// cache it is a part of loading.
    Compiling,
    /// Building the first instance.
    Loading,
    /// Making the first predictions.
    WarmingUp,
    /// Done.
    Ready,
}

impl fmt::Display for LoadStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reading => "reading",
            Self::Waiting => "waiting for memory",
            Self::Compiling => "compiling",
            Self::Loading => "loading",
            Self::WarmingUp => "warming up",
            Self::Ready => "ready",
        })
    }
}

/// Told of each stage; shared by a load and those who wait for it.
pub(crate) type StageCell = Arc<tokio::sync::watch::Sender<LoadStage>>;
