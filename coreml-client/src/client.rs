use std::any::TypeId;
use std::fmt;
use std::future::Future;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use coreml_bridge::{Bridge, Config, ModelDescription, ModelRef};

use crate::backend::Backend;
use crate::compiled::Cached;
use crate::inference;
use crate::limits::Limit;
use crate::memory::PressureSource;
use crate::runtime::{IntraOp, Loaded, Runtime, Settings};
use crate::tokens::Tokens;
use crate::version::{Denied, Retry, Service};
use crate::{
    CompiledCache, ComputeUnit, Error, Inference, InferenceMessage, InferenceRequest, Limits, Load,
    MemoryPressure, ModelSource, Permit, Pinned, Priority, Refused, Report, Request, Result, Serial,
    Shutdown, Stats, Swap,
};

/// Runs Core ML models for any number of tasks and threads.
///
/// A client is a cheap handle on a runtime: clones share it, and so do all that [`new`](Self::new) makes. When the last
/// client of a runtime is dropped, requests that have not started are answered [`Error::ShutDown`]; nothing is waited for.
/// (The default runtime keeps a client of its own, so it ends with the process.)
///
/// See the [crate's documentation](crate) for an example.
#[derive(Clone)]
pub struct ModelClient {
    owner: Arc<Owner>,
}

/// Ends the runtime when the last client goes.
struct Owner(Arc<Runtime>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl ModelClient {
    /// A client of the process-wide default runtime, on the bridge of this platform. No thread is started before the
    /// first model is loaded.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::new();
    /// assert_eq!(client.stats(), coreml_client::ModelClient::new().stats());
    /// ```
    pub fn new() -> Self {
        static DEFAULT: OnceLock<ModelClient> = OnceLock::new();
        DEFAULT.get_or_init(|| Self::builder().build()).clone()
    }

    /// Configures a runtime of its own.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().threads(2).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn builder() -> ModelClientBuilder {
        ModelClientBuilder::new()
    }

    pub(crate) fn runtime(&self) -> &Arc<Runtime> {
        &self.owner.0
    }

    /// Loads a model (`.mlmodel`, `.mlpackage`, `.mlmodelc`), and blocks until that is done. May be called on any thread; on
    /// a thread that runs async tasks, [`load_model_async`](Self::load_model_async) is the better choice.
    ///
    /// A model that is loaded is not loaded again, and callers that ask for the same one at the same time share one load:
    /// the same file, in the same condition, with the same configuration, is the same model and has the same `ModelRef`.
    /// A failure is told to all who wait for it, and not remembered.
    ///
    /// # Errors
    /// [`Error::Load`] with what the bridge says; [`Error::LoadPanicked`], [`Error::Thread`], [`Error::ShutDown`].
    ///
    /// ```
    /// use coreml_client::ModelClient;
    ///
    /// let client = ModelClient::builder().build();
    /// let error = client.load_model("no/such.mlpackage").unwrap_err();
    /// assert!(error.to_string().contains("no/such.mlpackage"));
    /// ```
    pub fn load_model(&self, path: impl AsRef<Path>) -> Result<ModelRef> {
        self.load_model_with(path, Config::default())
    }

    /// As [`load_model`](Self::load_model), with a configuration.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    ///
    /// ```
    /// use coreml_client::{ComputeUnits, Config, ModelClient};
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// let client = ModelClient::builder().build();
    /// let on_cpu = Config { compute_units: ComputeUnits::CpuOnly, ..Config::default() };
    /// let model_ref = client.load_model_with(path, on_cpu)?;
    /// assert_ne!(client.load_model(path)?, model_ref); // another configuration is another model
    /// # Ok::<(), coreml_client::Error>(())
    /// ```
    pub fn load_model_with(&self, path: impl AsRef<Path>, config: Config) -> Result<ModelRef> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = Box::new(move |result| {
            // The receiver waits below.
            let _ = sender.send(result);
        });
        let source = ModelSource::new(path.as_ref()).config(config);
        self.runtime().load(source, Loaded { done, stage: None });
        receiver.recv().unwrap_or(Err(Error::ShutDown))
    }

    /// As [`load_model`](Self::load_model), for async callers; nothing of it runs on the caller's thread.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    ///
    /// # Cancel safety
    /// Dropping the future neither stops the load nor restarts it.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// let client = coreml_client::ModelClient::builder().build();
    /// let (first, second) = tokio::join!(client.load_model_async(path), client.load_model_async(path));
    /// assert_eq!(first?, second?); // one load
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn load_model_async<P: Into<PathBuf>>(
        &self,
        path: P,
    ) -> impl Future<Output = Result<ModelRef>> + Send + 'static + use<P> {
        self.load_model_with_async(path, Config::default())
    }

    /// As [`load_model_async`](Self::load_model_async), with a configuration.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    ///
    /// # Cancel safety
    /// Dropping the future neither stops the load nor restarts it.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// use coreml_client::{Config, ModelClient};
    ///
    /// let client = ModelClient::builder().build();
    /// let main = Config { function: Some("main".to_owned()), ..Config::default() };
    /// let model_ref = client.load_model_with_async(path, main).await?;
    /// # drop(model_ref);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn load_model_with_async<P: Into<PathBuf>>(
        &self,
        path: P,
        config: Config,
    ) -> impl Future<Output = Result<ModelRef>> + Send + 'static + use<P> {
        self.load(ModelSource::new(path).config(config))
    }

    /// As [`load_model_async`](Self::load_model_async), with everything that can be said about how the model is to be served;
    /// tells how far it has come.
    ///
    /// Under a [memory budget](ModelClientBuilder::memory_budget) it waits for room, unless the source
    /// [says otherwise](ModelSource::refuse_over_budget).
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model); [`Error::OverBudget`], [`Error::MemoryPressure`]; [`Error::Predict`] if a
    /// [warm-up](ModelSource::warm_up) fails.
    ///
    /// See [`ModelSource`] and [`Load::stages`] for examples.
    pub fn load(&self, source: impl Into<ModelSource>) -> Load {
        Load::new(Arc::clone(self.runtime()), source.into())
    }

    /// As [`load`](Self::load), and keeps the model from being evicted for as long as the result lives.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// ```
    /// use coreml_client::{Features, InferenceRequest, ModelClient, Tensor};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// let client = ModelClient::builder().memory_budget(64 << 20).build();
    /// let pinned = client.load_pinned(path).await?;
    /// # let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64]).unwrap();
    /// let request = InferenceRequest::new(pinned.model_ref(), Features::new().with("image", image));
    /// client.enqueue_inference(request).await?;
    /// drop(pinned); // now it may go when another needs the room
    /// # Ok::<(), coreml_client::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn load_pinned<P: Into<ModelSource>>(
        &self,
        source: P,
    ) -> impl Future<Output = Result<Pinned>> + Send + 'static + use<P> {
        let (runtime, source) = (Arc::clone(self.runtime()), source.into());
        async move {
            loop {
                let model_ref = Load::new(Arc::clone(&runtime), source.clone()).await?;
                match Pinned::new(Arc::clone(&runtime), model_ref) {
                    // Somebody else's load came between.
                    Err(Error::Evicted { .. }) => {}
                    pinned => return pinned,
                }
            }
        }
    }

    /// Keeps a model that is loaded from being evicted.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::Evicted`], [`Error::ShutDown`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let pinned = client.pin(model_ref)?;
    /// assert_eq!(pinned.model_ref(), model_ref);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn pin(&self, model_ref: ModelRef) -> Result<Pinned> {
        Pinned::new(Arc::clone(self.runtime()), model_ref)
    }

    /// Corrects what a model takes of the [memory budget](ModelClientBuilder::memory_budget); models that are idle make room
    /// if need be.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::Evicted`], [`Error::ShutDown`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// client.set_memory(model_ref, 12 << 20)?; // measured by other means
    /// assert_eq!(client.stats().models_total.memory, 12 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn set_memory(&self, model_ref: ModelRef, bytes: usize) -> Result<()> {
        self.runtime().set_memory(model_ref, bytes)
    }

    /// Tells how short of memory the system is. On Apple's systems that is for the program to hear (it has the dispatch
    /// source, or the app's delegate); for Linux see [`MemoryPressure::of_system`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// use coreml_client::MemoryPressure;
    ///
    /// client.set_memory_pressure(MemoryPressure::Critical);
    /// assert!(client.load("another.mlpackage").await.is_err());
    /// client.set_memory_pressure(MemoryPressure::Normal);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn set_memory_pressure(&self, pressure: MemoryPressure) {
        self.runtime().set_pressure(pressure);
    }

    /// Brings another version of a model, without a gap: it is loaded, warmed up and checked beside the old one, then takes
    /// over by one store. A request is served by the version that was current when it was handed in, and the
    /// [result says which](crate::InferenceResult::version). Gives the new version's number.
    ///
    /// The old version is kept for a [`rollback`](Self::rollback), until the next swap, or until its memory is needed. A swap
    /// waits for the version before the old one to finish what it has: at most two are alive.
    ///
    /// # Errors
    /// Whatever fails, the old version goes on: as [`load`](Self::load); [`Error::SwapRefused`] if the warm-up or the
    /// [check](Swap::check) fails; [`Error::SwapInProgress`], [`Error::ModelNotFound`], [`Error::Unloaded`]; [`Error::OverBudget`] if
    /// both would never fit side by side.
    ///
    /// # Cancel safety
    /// Dropping the future once it was polled does not stop the swap.
    ///
    /// ```
    /// use coreml_client::{Features, ModelClient, Tensor};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits");
    /// # let (old, new) = (format!("{folder}/digits.mlpackage"), format!("{folder}/digits-f32.mlpackage"));
    /// # let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// let client = ModelClient::builder().build();
    /// let model_ref = client.load(&old).await?;
    /// let sample = Features::new().with("image", image);
    /// let version = client
    ///     .swap(model_ref, &new)
    ///     .check(move |trial| {
    ///         let sum: f32 = trial.predict(sample)?.tensor("probabilities")?.to_vec::<f32>()?.iter().sum();
    ///         let sound = (sum - 1.0).abs() < 1e-3;
    ///         if sound { Ok(()) } else { Err(Box::<dyn std::error::Error + Send + Sync>::from("no probabilities")) }
    ///     })
    ///     .await?;
    /// assert_eq!(version, 2);
    /// assert_eq!(client.rollback(model_ref)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn swap(&self, model_ref: ModelRef, source: impl Into<ModelSource>) -> Swap {
        Swap::new(Arc::clone(self.runtime()), model_ref, source.into())
    }

    /// Goes back to the version before the last swap; gives its number. The version that it replaces is not kept.
    ///
    /// # Errors
    /// [`Error::NoRollback`] if there was none, or it had to go; [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::ShutDown`].
    ///
    /// See [`swap`](Self::swap) for an example.
    pub fn rollback(&self, model_ref: ModelRef) -> Result<u64> {
        self.runtime().rollback(model_ref)
    }

    /// Waits for a place in the model's queue, for inputs of so many bytes: those who would only wait with them in hand need
    /// not build them before. In the same line as [`enqueue_inference`](Self::enqueue_inference).
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::Evicted`], [`Error::ModelFailed`],
    /// [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line.
    ///
    /// ```
    /// use coreml_client::{Features, InferenceRequest, ModelClient, Priority, Tensor};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// let client = ModelClient::builder().build();
    /// let model_ref = client.load(path).await?;
    /// let permit = client.reserve(model_ref, Priority::Normal, 256).await?;
    /// let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?; // built when there is room for it
    /// let request = InferenceRequest::new(model_ref, Features::new().with("image", image));
    /// let result = permit.enqueue(request)?.await?;
    /// # drop(result);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn reserve(
        &self,
        model_ref: ModelRef,
        priority: Priority,
        bytes: usize,
    ) -> impl Future<Output = Result<Permit>> + Send + 'static + use<> {
        Permit::reserve(Arc::clone(self.runtime()), model_ref, priority, bytes)
    }

    /// Unloads a model for all clients of the runtime, without waiting: new requests find it gone, those handed in before
    /// are still served, and then each thread frees its instance.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::ShutDown`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// client.unload(model_ref)?;
    /// assert!(client.unload(model_ref).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn unload(&self, model_ref: ModelRef) -> Result<()> {
        self.runtime().unload(model_ref)
    }

    /// What a model takes and gives.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::ShutDown`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let description = client.description(model_ref)?;
    /// assert_eq!(description.inputs[0].name, "image");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn description(&self, model_ref: ModelRef) -> Result<Arc<ModelDescription>> {
        let version = self.runtime().version(model_ref)?;
        // A model is not published before its first instance has described itself.
        version.description().map(Arc::clone).ok_or(Error::ModelNotFound { model_ref })
    }

    /// Puts a value beside a model, for crates that know more of it than the client does: its tokenizer, its labels. It stays
    /// until the model is unloaded, through swaps and evictions; a second one of a type replaces the first.
    ///
    /// The value must not own a client of the same runtime, which could never end then.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::ShutDown`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// struct Labels(Vec<String>);
    ///
    /// let labels = (0..10).map(|digit| digit.to_string()).collect();
    /// client.attach(model_ref, std::sync::Arc::new(Labels(labels)))?;
    /// let labels = client.attached::<Labels>(model_ref)?.expect("put there above");
    /// assert_eq!(labels.0[7], "7");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn attach<T: Send + Sync + 'static>(&self, model_ref: ModelRef, value: Arc<T>) -> Result<()> {
        self.runtime().attach(model_ref, TypeId::of::<T>(), value)
    }

    /// What was [attached](Self::attach) to a model, by its type.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::ShutDown`].
    ///
    /// See [`attach`](Self::attach) for an example.
    pub fn attached<T: Send + Sync + 'static>(&self, model_ref: ModelRef) -> Result<Option<Arc<T>>> {
        let found = self.runtime().attached(model_ref, TypeId::of::<T>())?;
        // By its type it was put there.
        Ok(found.and_then(|value| value.downcast().ok()))
    }

    /// Makes a prediction: waits for room in the model's queue if that is full, for its turn, and for the result.
    ///
    /// The future borrows nothing, may be awaited on any executor, and hands the request in when it is first polled.
    /// Other crates can have [requests of their own](Request), such as prompts for language models; what follows is of
    /// [`InferenceRequest`], whose answer is an [`Inference`].
    ///
    /// # Errors
    /// The future resolves to
    /// * [`Error::Predict`] when the prediction fails: wrong inputs, or what the bridge says;
    /// * [`Error::WorkerPanicked`] when it panics;
    /// * [`Error::DeadlineExceeded`] at the deadline, even if all threads are stuck;
    /// * [`Error::TooLarge`] when the inputs exceed what the queue can hold;
    /// * [`Error::ModelNotFound`], [`Error::Unloaded`], [`Error::ModelFailed`], [`Error::ShutDown`] when there is nobody to
    ///   make it.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up, see [`Inference`].
    ///
    /// See the [crate's documentation](crate) for an example.
    pub fn enqueue_inference<R: Request>(&self, request: R) -> R::Answer {
        request.ask(self)
    }

    pub(crate) fn inference(&self, request: InferenceRequest) -> Inference {
        Inference::new(Arc::clone(self.runtime()), request)
    }

    /// As [`enqueue_inference`](Self::enqueue_inference), but hands the request in at once and does not wait for room.
    ///
    /// # Errors
    /// [`Refused`], with the request, for [`Error::QueueFull`] and all other reasons not to take it in.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// use coreml_client::{Error, InferenceRequest};
    ///
    /// match client.try_enqueue(InferenceRequest::new(model_ref, inputs)) {
    ///     Ok(inference) => drop(inference.await?),
    ///     Err(refused) if matches!(refused.source, Error::QueueFull { .. }) => {
    ///         println!("later, or elsewhere: {:?}", refused.request);
    ///     }
    ///     Err(refused) => return Err(refused.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[allow(
        clippy::result_large_err,
        reason = "the request goes back by value: under overload an allocation hurts most"
    )]
    pub fn try_enqueue(&self, request: InferenceRequest) -> Result<Inference, Refused> {
        Inference::try_start(self.runtime(), request)
    }

    /// Hands a message in whose answer goes to its own channel. Does not wait for room. A deadline is kept as that of
    /// a future is.
    ///
    /// # Errors
    /// The message, for [`Error::QueueFull`] and all other reasons not to take it in.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// use coreml_client::{InferenceMessage, InferenceRequest};
    ///
    /// let (message, answer) = InferenceMessage::new(InferenceRequest::new(model_ref, inputs));
    /// client.try_send(message).map_err(|(error, _message)| error)?;
    /// let result = answer.await??;
    /// assert_eq!(result.model_ref, model_ref);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[allow(
        clippy::result_large_err,
        reason = "the message goes back by value: under overload an allocation hurts most"
    )]
    pub fn try_send(&self, message: InferenceMessage) -> Result<(), (Error, InferenceMessage)> {
        let runtime = self.runtime();
        let submitted = std::time::Instant::now();
        let mut message = message;
        loop {
            let version = match runtime.route(message.model_ref, message.request.priority) {
                Ok(version) => version,
                Err(error) => return Err((error, message)),
            };
            let deadline = inference::deadline(runtime, &version, &message.request, submitted);
            match version.post(message, submitted, deadline) {
                Ok(()) => return Ok(()),
                Err((Denied::For(error), message)) => return Err((error, message)),
                Err((Denied::Superseded, back)) => message = back,
            }
        }
    }

    /// What the runtime has done.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let stats = client.stats();
    /// assert_eq!(stats.models_total.loads_ok, 1);
    /// println!("{stats}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn stats(&self) -> Stats {
        self.runtime().stats()
    }

    /// Shuts the runtime down, for all its clients and for good; resolves when all its threads have ended, or with a
    /// report of those that did not. The shutdown of a runtime that is down gives the same report again; an abort overtakes
    /// a drain.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown once it was polled.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// use coreml_client::{ModelClient, Shutdown};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let client = ModelClient::builder().build();
    /// let deadline = Instant::now() + Duration::from_secs(5);
    /// let report = client.shutdown(Shutdown::Drain { deadline }).await;
    /// assert_eq!(report.abandoned_threads, 0);
    /// # });
    /// ```
    pub fn shutdown(&self, how: Shutdown) -> impl Future<Output = Report> + Send + 'static + use<> {
        // Holds a client, else the last one's drop would abort a drain that is awaited.
        let client = self.clone();
        async move {
            let receiver = client.runtime().shut_down(how);
            match receiver.await {
                Ok(report) => report,
                Err(_) => unreachable!("the runtime keeps the sender until it has reported"),
            }
        }
    }
}

/// [`ModelClient::new`]
impl Default for ModelClient {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ModelClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelClient").finish_non_exhaustive()
    }
}

/// Configures a runtime.
///
/// ```
/// use std::time::Duration;
///
/// use coreml_client::{Bridge, ComputeUnit, ModelClient, Priority, Serial};
///
/// let client = ModelClient::builder()
///     .bridge(Bridge::platform())
///     .threads(2)
///     .intra_op_threads(1)
///     .max_queued(128)
///     .max_queued_bytes(32 << 20)
///     .max_queued_of(Priority::Low, 32, 16 << 20)
///     .fairness(8)
///     .default_timeout(Duration::from_secs(2))
///     .refuse_hopeless()
///     .memory_budget(512 << 20)
///     .max_concurrent(ComputeUnit::NeuralEngine, 1)
///     .serialize(Serial::PerModel)
///     .stop_grace(Duration::from_secs(5))
///     .build();
/// # drop(client);
/// ```
#[derive(Clone)]
#[must_use = "`build` makes the client"]
pub struct ModelClientBuilder {
    backend: Option<Arc<dyn Backend>>,
    compiled_cache: Option<CompiledCache>,
    threads: Option<usize>,
    intra_op_threads: IntraOp,
    total: Limit,
    classes: [Option<Limit>; Priority::COUNT],
    fairness: u32,
    default_timeout: Option<Duration>,
    stop_grace: Duration,
    retry: Retry,
    refuse_hopeless: bool,
    memory_budget: Option<usize>,
    pressure: Option<PressureSource>,
    serial: Serial,
    units: [Option<usize>; 3],
}

impl ModelClientBuilder {
    fn new() -> Self {
        Self {
            backend: None,
            compiled_cache: None,
            threads: None,
            intra_op_threads: IntraOp::Share,
            total: Limit { jobs: Limits::DEFAULT_JOBS, bytes: Limits::DEFAULT_BYTES },
            classes: [None; Priority::COUNT],
            fairness: Limits::DEFAULT_FAIRNESS,
            default_timeout: None,
            stop_grace: Duration::from_secs(1),
            retry: Retry::default(),
            refuse_hopeless: false,
            memory_budget: None,
            pressure: None,
            serial: Serial::Free,
            units: [None; 3],
        }
    }

    /// Who runs the models; by default [`Bridge::platform`].
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().bridge(coreml_client::Bridge::platform()).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn bridge(mut self, bridge: Bridge) -> Self {
        self.backend = Some(Arc::new(bridge));
        self
    }

    /// Keeps what the bridge compiles on disk, so that a model is compiled once and not at each load. By default nothing is
    /// kept. Worth it with Core ML only: the portable engine has nothing to compile.
    ///
    /// ```
    /// let cache = coreml_client::CompiledCache::new(std::env::temp_dir().join("compiled-models"));
    /// let client = coreml_client::ModelClient::builder().compiled_cache(cache).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn compiled_cache(mut self, cache: CompiledCache) -> Self {
        self.compiled_cache = Some(cache);
        self
    }

    #[cfg(all(test, not(coreml_loom)))]
    pub(crate) fn backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.backend = Some(backend);
        self
    }

    #[cfg(all(test, not(coreml_loom)))]
    pub(crate) fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The most inference threads of a model, each with an instance of its own; 0 is taken as 1. By default as many as there
    /// are cores, but at most 4. The first one loads the model, the others start when there is more to do than it can.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let client = coreml_client::ModelClient::builder().threads(2).build();
    /// client.load(path).await?;
    /// assert_eq!(client.stats().models[0].workers.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// CPU threads inside one prediction, for models that are loaded without
    /// [`Config::threads`](coreml_bridge::Config::threads); 0 leaves it to the bridge. By default the number of cores divided
    /// by the inference threads, where the bridge can be told.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().threads(2).intra_op_threads(2).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn intra_op_threads(mut self, threads: u32) -> Self {
        self.intra_op_threads = NonZeroU32::new(threads).map_or(IntraOp::Bridge, IntraOp::Exactly);
        self
    }

    /// The most requests in a model's queue, by default 64; 0 is taken as 1. Those that run do not count.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().max_queued(128).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn max_queued(mut self, requests: usize) -> Self {
        self.total.jobs = requests;
        self
    }

    /// The most bytes of inputs in a model's queue, by default 64 MiB. Those of requests that run come on top, one request
    /// per thread.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// let client = coreml_client::ModelClient::builder().max_queued_bytes(16).build();
    /// let model_ref = client.load(path).await?;
    /// let refused = client.try_enqueue(coreml_client::InferenceRequest::new(model_ref, inputs)).unwrap_err();
    /// assert!(matches!(refused.source, coreml_client::Error::TooLarge { bytes: 256, limit: 16, .. }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn max_queued_bytes(mut self, bytes: usize) -> Self {
        self.total.bytes = bytes;
        self
    }

    /// The most requests of a priority, and of bytes of their inputs, in a model's queue: so that a flood of one class
    /// leaves room for the others. By default each class may fill the queue.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().max_queued_of(coreml_client::Priority::Low, 16, 8 << 20).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn max_queued_of(mut self, priority: Priority, requests: usize, bytes: usize) -> Self {
        self.classes[priority.index()] = Some(Limit { jobs: requests, bytes });
        self
    }

    /// On every how many occasions the oldest request goes before the most urgent, by default 8; 0 = never.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().fairness(4).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn fairness(mut self, every: u32) -> Self {
        self.fairness = every;
        self
    }

    /// The deadline of requests that have none, counted from their hand-in. By default they wait for as long as it takes.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().default_timeout(std::time::Duration::from_secs(2)).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = Some(timeout);
        self
    }

    /// Refuses a request at once, with [`Error::DeadlineExceeded`], when those before it will take beyond its deadline, going
    /// by what predictions took so far. By default it waits for its luck.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().refuse_hopeless().build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn refuse_hopeless(mut self) -> Self {
        self.refuse_hopeless = true;
        self
    }

    /// How many bytes all models together may take, by what their [sources say](ModelSource::memory); by default as many as
    /// they like. Loads evict idle models, the least recently used first, or wait until one is idle.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// use coreml_client::{Error, ModelClient, ModelSource};
    ///
    /// let client = ModelClient::builder().memory_budget(64 << 20).build();
    /// let giant = client.load(ModelSource::new(path).memory(65 << 20)).await;
    /// assert!(matches!(giant, Err(Error::OverBudget { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.memory_budget = Some(bytes);
        self
    }

    /// Looks once a second how short of memory the system is, and [acts on it](ModelClient::set_memory_pressure), from the
    /// first load on. By default the program tells. Where [nobody can say](MemoryPressure::of_system) it does nothing.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().follow_memory_pressure().build();
    /// # drop(client);
    /// ```
    pub fn follow_memory_pressure(mut self) -> Self {
        self.pressure = Some(Arc::new(MemoryPressure::of_system));
        self
    }

    #[cfg(all(test, not(coreml_loom)))]
    pub(crate) fn pressure(mut self, source: PressureSource) -> Self {
        self.pressure = Some(source);
        self
    }

    /// How many predictions may use a compute unit at the same time, over all models of the runtime; by default as many as
    /// there are threads. 0 is taken as 1.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().max_concurrent(coreml_client::ComputeUnit::NeuralEngine, 1).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn max_concurrent(mut self, unit: ComputeUnit, predictions: usize) -> Self {
        self.units[unit as usize] = Some(predictions);
        self
    }

    /// Lets predictions exclude each other.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().serialize(coreml_client::Serial::PerModel).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn serialize(mut self, serial: Serial) -> Self {
        self.serial = serial;
        self
    }

    /// How long [`ModelClient::shutdown`] waits for predictions under way once nothing is queued any more, by default one
    /// second; threads that take longer are reported.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().stop_grace(std::time::Duration::from_secs(5)).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = grace;
        self
    }

    /// The first client of a new runtime. No thread is started before the first model is loaded.
    ///
    /// ```
    /// let client = coreml_client::ModelClient::builder().threads(1).build();
    /// assert!(client.stats().models.is_empty());
    /// ```
    pub fn build(self) -> ModelClient {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = self.threads.unwrap_or(cores.min(4));
        let backend = self.backend.unwrap_or_else(|| Arc::new(Bridge::platform()));
        let backend = match self.compiled_cache {
            Some(cache) => Arc::new(Cached::new(backend, cache)),
            None => backend,
        };
        let settings = Settings {
            backend,
            service: Service {
                threads,
                limits: Limits::new(self.total, self.classes, self.fairness),
                retry: self.retry,
                refuse_hopeless: self.refuse_hopeless,
            },
            intra_op_threads: self.intra_op_threads,
            default_timeout: self.default_timeout,
            stop_grace: self.stop_grace,
            memory_budget: self.memory_budget,
            pressure: self.pressure,
            serial: self.serial,
            units: self.units.iter().any(Option::is_some).then(|| Tokens::new(self.units)),
        };
        ModelClient { owner: Arc::new(Owner(Runtime::new(settings))) }
    }
}

impl fmt::Debug for ModelClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            backend: _,
            compiled_cache,
            threads,
            intra_op_threads,
            total,
            classes,
            fairness,
            default_timeout,
            stop_grace,
            retry,
            refuse_hopeless,
            memory_budget,
            pressure,
            serial,
            units,
        } = self;
        f.debug_struct("ModelClientBuilder")
            .field("compiled_cache", compiled_cache)
            .field("threads", threads)
            .field("intra_op_threads", intra_op_threads)
            .field("total", total)
            .field("classes", classes)
            .field("fairness", fairness)
            .field("default_timeout", default_timeout)
            .field("stop_grace", stop_grace)
            .field("retry", retry)
            .field("refuse_hopeless", refuse_hopeless)
            .field("memory_budget", memory_budget)
            .field("follow_memory_pressure", &pressure.is_some())
            .field("serial", serial)
            .field("units", units)
            .finish_non_exhaustive()
    }
}

/// Loads a model into the default runtime; see [`ModelClient::load_model`].
///
/// # Errors
/// As [`ModelClient::load_model`].
///
/// See the [crate's documentation](crate) for an example.
pub fn load_model(path: impl AsRef<Path>) -> Result<ModelRef> {
    ModelClient::new().load_model(path)
}

/// Loads a model into the default runtime; see [`ModelClient::load_model_async`].
///
/// # Errors
/// As [`ModelClient::load_model`].
///
/// # Cancel safety
/// Dropping the future neither stops the load nor restarts it.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// let model_ref = coreml_client::load_model_async(path).await?;
/// # drop(model_ref);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub fn load_model_async<P: Into<PathBuf>>(
    path: P,
) -> impl Future<Output = Result<ModelRef>> + Send + 'static + use<P> {
    ModelClient::new().load_model_async(path)
}
