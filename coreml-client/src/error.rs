use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use coreml_bridge::ModelRef;

use crate::InferenceRequest;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request has no outputs, or a model could not be loaded.
///
/// Cheap to clone: one failed load answers everyone who waited for it.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// use coreml_client::{Error, InferenceRequest};
///
/// let client = coreml_client::ModelClient::builder().build();
/// let model_ref = client.load(path).await?;
/// let nothing = coreml_client::Features::new();
/// match client.enqueue_inference(InferenceRequest::new(model_ref, nothing)).await {
///     Err(Error::Predict { source, .. }) => println!("the inputs are wrong: {source}"),
///     Err(Error::QueueFull { .. } | Error::DeadlineExceeded { .. }) => println!("too much to do"),
///     other => unreachable!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This runtime has no such model: it was loaded by another runtime, or unloaded long ago.
    #[error("{model_ref} is not loaded in this runtime")]
    ModelNotFound {
        /// What was asked for.
        model_ref: ModelRef,
    },

    /// The model was unloaded. The last thousand or so are remembered; older ones are not found.
    #[error("{model_ref} was unloaded")]
    Unloaded {
        /// The model.
        model_ref: ModelRef,
    },

    /// The model could not be loaded.
    #[error("cannot load {}", path.display())]
    Load {
        /// Its path, as it was given.
        path: PathBuf,
        /// What the bridge said.
        source: Arc<coreml_bridge::Error>,
    },

    /// Loading the model panicked.
    #[error("loading {} panicked: {message}", path.display())]
    LoadPanicked {
        /// Its path, as it was given.
        path: PathBuf,
        /// The panic's message.
        message: Arc<str>,
    },

    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread {
        /// What the system said.
        source: Arc<io::Error>,
    },

    /// The prediction failed; wrong inputs come here too.
    #[error("prediction of {model_ref} failed")]
    Predict {
        /// The model.
        model_ref: ModelRef,
        /// What the bridge said.
        source: Arc<coreml_bridge::Error>,
    },

    /// The prediction panicked. Only this request is concerned: the thread builds itself a new instance.
    #[error("prediction of {model_ref} panicked: {message}")]
    WorkerPanicked {
        /// The model.
        model_ref: ModelRef,
        /// The panic's message.
        message: Arc<str>,
    },

    /// The model cannot be served any more: its instances kept failing. Load it again to try again.
    #[error("{model_ref} has failed")]
    ModelFailed {
        /// The model.
        model_ref: ModelRef,
        /// The last failure.
        source: Arc<Error>,
    },

    /// The model was taken out of memory to make room. Load it again.
    #[error("{model_ref} was evicted")]
    Evicted {
        /// The model.
        model_ref: ModelRef,
    },

    /// The model would take more than the whole memory budget, or there is no room and the load was not to wait.
    #[error("{bytes} bytes for {} exceed what is left of the memory budget of {budget} bytes", path.display())]
    OverBudget {
        /// Its path, as it was given.
        path: PathBuf,
        /// What it would take.
        bytes: usize,
        /// The whole budget.
        budget: usize,
    },

    /// The system is critically short of memory, so nothing is loaded.
    #[error("no memory to load {}", path.display())]
    MemoryPressure {
        /// Its path, as it was given.
        path: PathBuf,
    },

    /// A swap of this model is under way.
    #[error("{model_ref} is being swapped")]
    SwapInProgress {
        /// The model.
        model_ref: ModelRef,
    },

    /// The version to be swapped in did not pass: its warm-up failed, or the check.
    #[error("the new version of {model_ref} was refused")]
    SwapRefused {
        /// The model; its old version goes on.
        model_ref: ModelRef,
        /// Why.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },

    /// No earlier version is kept.
    #[error("{model_ref} has no version to go back to")]
    NoRollback {
        /// The model.
        model_ref: ModelRef,
    },

    /// The queue is full, and the caller did not want to wait.
    #[error("the queue of {model_ref} is full")]
    QueueFull {
        /// The model.
        model_ref: ModelRef,
    },

    /// The inputs would not fit into the empty queue, so waiting is no use.
    #[error("inputs of {bytes} bytes for {model_ref} exceed the queue's limit of {limit} bytes")]
    TooLarge {
        /// The model.
        model_ref: ModelRef,
        /// Payload of the inputs.
        bytes: usize,
        /// The limit, see [`ModelClientBuilder::max_queued_bytes`](crate::ModelClientBuilder::max_queued_bytes).
        limit: usize,
    },

    /// The deadline passed before the answer.
    #[error("deadline exceeded: {stage}")]
    DeadlineExceeded {
        /// How far the request had come.
        stage: Stage,
    },

    /// The runtime was shut down, or its last client dropped.
    #[error("the runtime was shut down")]
    ShutDown,
}

/// How far a request had come.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// # let client = coreml_client::ModelClient::builder().build();
/// # let model_ref = client.load(path).await?;
/// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
/// # let inputs = coreml_client::Features::new().with("image", image);
/// use std::time::Instant;
///
/// use coreml_client::{Error, InferenceRequest, Stage};
///
/// let request = InferenceRequest::new(model_ref, inputs).deadline(Instant::now());
/// let error = client.enqueue_inference(request).await.unwrap_err();
/// assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Admission }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// It was not in the queue yet: there was no room, or its deadline had passed before.
    Admission,
    /// It was in the queue; its inputs have been freed, it never ran.
    Queued,
    /// It was running. Core ML cannot abort a prediction, so it runs on; its outputs will be dropped.
    Running,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Admission => "not admitted to the queue",
            Self::Queued => "queued",
            Self::Running => "running",
        })
    }
}

/// A request that was not let in, with the request, inputs and all, for another try.
///
/// See [`ModelClient::try_enqueue`](crate::ModelClient::try_enqueue) for an example.
#[derive(Clone, Debug, thiserror::Error)]
#[error("request refused")]
pub struct Refused {
    /// The request, unchanged.
    pub request: InferenceRequest,
    /// Why.
    pub source: Error,
}

/// What a panic said.
pub(crate) fn panic_message(payload: Box<dyn std::any::Any + Send>) -> Arc<str> {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(message), _) => Arc::from(*message),
        (None, Some(message)) => Arc::from(message.as_str()),
        (None, None) => Arc::from("(no message)"),
    };
    // A payload may panic in turn when it is dropped; one such is enough.
    if let Err(second) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    message
}
