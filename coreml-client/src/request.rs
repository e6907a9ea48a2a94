use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coreml_bridge::{CoreMlHandle, Features, ModelRef};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{ModelClient, Priority, Result};

/// One prediction to be made.
///
/// It owns its inputs: a prediction may outlive the call that asked for it, so nothing borrowed can get in.
///
/// ```
/// use std::time::Duration;
///
/// use coreml_bridge::{Features, ModelRef, Tensor};
/// use coreml_client::{InferenceRequest, Priority};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let model_ref = ModelRef::new();
/// let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.0_f32; 64])?;
/// let request = InferenceRequest::new(model_ref, Features::new().with("image", image))
///     .priority(Priority::High)
///     .timeout(Duration::from_millis(50))
///     .wanted(["probabilities"]);
/// assert_eq!(request.priority, Priority::High);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InferenceRequest {
    /// Which model is to make it.
    pub model_ref: ModelRef,
    /// The inputs.
    pub features: Features,
    /// How urgent it is.
    pub priority: Priority,
    /// When its answer is of no use any more; none = the runtime's default.
    pub deadline: Option<Instant>,
    /// The outputs to return; empty = all. A procedure may do as it likes.
    pub wanted: Vec<String>,
    /// What to do with the inputs in place of one prediction.
    pub procedure: Option<Procedure>,
}

impl InferenceRequest {
    /// A request of normal priority for all outputs, with the runtime's default deadline.
    ///
    /// ```
    /// use coreml_client::{Features, InferenceRequest, ModelRef};
    ///
    /// let request = InferenceRequest::new(ModelRef::new(), Features::new());
    /// assert!(request.deadline.is_none() && request.wanted.is_empty());
    /// ```
    pub fn new(model_ref: ModelRef, features: Features) -> Self {
        Self {
            model_ref,
            features,
            priority: Priority::Normal,
            deadline: None,
            wanted: Vec::new(),
            procedure: None,
        }
    }

    /// Has the inference thread run this in place of one prediction, see [`Procedure`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// use coreml_client::{InferenceRequest, Procedure};
    ///
    /// let second = Procedure::new(|model, inputs| {
    ///     model.predict(inputs)?;
    ///     model.predict(inputs)
    /// });
    /// client.enqueue_inference(InferenceRequest::new(model_ref, inputs).procedure(second)).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn procedure(mut self, procedure: Procedure) -> Self {
        self.procedure = Some(procedure);
        self
    }

    /// Sets how urgent it is.
    ///
    /// ```
    /// use coreml_client::{Features, InferenceRequest, ModelRef, Priority};
    ///
    /// let request = InferenceRequest::new(ModelRef::new(), Features::new()).priority(Priority::Low);
    /// assert_eq!(request.priority, Priority::Low);
    /// ```
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the time after which the answer is of no use.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// use coreml_client::{Features, InferenceRequest, ModelRef};
    ///
    /// let deadline = Instant::now() + Duration::from_secs(1);
    /// let request = InferenceRequest::new(ModelRef::new(), Features::new()).deadline(deadline);
    /// assert_eq!(request.deadline, Some(deadline));
    /// ```
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the deadline `timeout` from now: from this call, not from the hand-in.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// use coreml_client::{Features, InferenceRequest, ModelRef};
    ///
    /// let request = InferenceRequest::new(ModelRef::new(), Features::new()).timeout(Duration::from_secs(1));
    /// assert!(request.deadline > Some(Instant::now()));
    /// ```
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Instant::now().checked_add(timeout);
        self
    }

    /// Asks for these outputs only.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// let request = coreml_client::InferenceRequest::new(model_ref, inputs).wanted(["probabilities"]);
    /// let outputs = client.enqueue_inference(request).await?.outputs;
    /// assert_eq!(outputs.iter().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn wanted<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.wanted = names.into_iter().map(Into::into).collect();
        self
    }
}

/// What a client can be asked, see [`ModelClient::enqueue_inference`]: one prediction, or what another crate makes of several.
///
/// ```
/// use std::pin::Pin;
///
/// use coreml_client::{Error, Features, InferenceRequest, ModelClient, ModelRef, Request, Tensor};
///
/// /// A drawing, to be read as a digit.
/// struct Read {
///     model_ref: ModelRef,
///     pixels: Vec<f32>,
/// }
///
/// impl Request for Read {
///     type Answer = Pin<Box<dyn Future<Output = Result<usize, Error>> + Send>>;
///
///     fn ask(self, client: &ModelClient) -> Self::Answer {
///         let image = Tensor::from_vec(&[1, 1, 8, 8], self.pixels).expect("64 pixels");
///         let request = InferenceRequest::new(self.model_ref, Features::new().with("image", image));
///         let inference = client.enqueue_inference(request);
///         Box::pin(async move {
///             let outputs = inference.await?.outputs;
///             let likely = outputs.tensor("probabilities").unwrap().to_vec::<f32>().unwrap();
///             Ok((0..likely.len()).max_by(|&a, &b| likely[a].total_cmp(&likely[b])).unwrap())
///         })
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// let client = ModelClient::builder().build();
/// let model_ref = client.load(path).await?;
/// let digit = client.enqueue_inference(Read { model_ref, pixels: vec![0.5; 64] }).await?;
/// assert!(digit < 10);
/// # Ok::<(), Error>(())
/// # }).unwrap();
/// ```
pub trait Request {
    /// The future of the answer. Like [`Inference`](crate::Inference) it should borrow nothing, do nothing before it is polled, and
    /// give the request up when it is dropped.
    type Answer: Future;

    /// Begins to ask.
    fn ask(self, client: &ModelClient) -> Self::Answer;
}

impl Request for InferenceRequest {
    type Answer = crate::Inference;

    fn ask(self, client: &ModelClient) -> Self::Answer {
        client.inference(self)
    }
}

/// Code that runs on an inference thread with that thread's own instance of the model: several predictions in a row, with a
/// state or without, and no way back and forth between them.
///
/// To the queue it is one prediction, whatever it does: it has the request's priority and deadline, and nothing stops it once it
/// runs. So it should be short, or look now and then whether anybody still wants its answer.
///
/// ```
/// use coreml_bridge::{Features, Tensor};
/// use coreml_client::{InferenceRequest, ModelClient, Procedure, load_model_async};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// let model_ref = load_model_async(format!("{root}/models/digits/digits.mlpackage")).await?;
/// let twice = Procedure::new(|model, inputs| {
///     model.predict(inputs)?;
///     model.predict(inputs)
/// });
/// let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
/// let request = InferenceRequest::new(model_ref, Features::new().with("image", image)).procedure(twice);
/// let result = ModelClient::new().enqueue_inference(request).await?;
/// assert!(result.outputs.get("probabilities").is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Procedure(Arc<Run>);

type Run =
    dyn Fn(&CoreMlHandle, &Features) -> std::result::Result<Features, coreml_bridge::Error> + Send + Sync;

impl Procedure {
    /// From a closure that is given the instance and the request's inputs, and makes the outputs of the result.
    ///
    /// ```
    /// let procedure = coreml_client::Procedure::new(|model, inputs| model.predict(inputs));
    /// # drop(procedure);
    /// ```
    pub fn new(
        run: impl Fn(&CoreMlHandle, &Features) -> std::result::Result<Features, coreml_bridge::Error>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(run))
    }

    pub(crate) fn run(
        &self,
        model: &CoreMlHandle,
        inputs: &Features,
    ) -> std::result::Result<Features, coreml_bridge::Error> {
        (self.0)(model, inputs)
    }
}

impl fmt::Debug for Procedure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Procedure").finish_non_exhaustive()
    }
}

/// What a prediction gave.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
/// # let client = coreml_client::ModelClient::builder().build();
/// # let model_ref = client.load(path).await?;
/// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
/// # let inputs = coreml_client::Features::new().with("image", image);
/// use coreml_client::InferenceRequest;
///
/// let result = client.enqueue_inference(InferenceRequest::new(model_ref, inputs)).await?;
/// let probabilities = result.outputs.tensor("probabilities")?;
/// assert_eq!((probabilities.shape(), result.version), (&[1, 10][..], 1));
/// println!("waited {:?}, took {:?}", result.timings.queue, result.timings.predict);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct InferenceResult {
    /// The request's id.
    pub id: Uuid,
    /// The model that made it.
    pub model_ref: ModelRef,
    /// The version that made it: the one that was current when the request was handed in.
    pub version: u64,
    /// The outputs.
    pub outputs: Features,
    /// Where the time went.
    pub timings: InferenceTimings,
    /// Which of the model's inference threads made it, from 0.
    pub worker: usize,
}

/// Where the time of a request went.
///
/// See [`InferenceResult`] for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InferenceTimings {
    /// From the hand-in to the start of the prediction.
    pub queue: Duration,
    /// The prediction, as the inference thread saw it.
    pub predict: Duration,
    /// The prediction, as the bridge measured it from within.
    pub bridge: coreml_bridge::Timings,
}

/// A request on its way, with the way back for its answer: what [`ModelClient::try_send`](crate::ModelClient::try_send)
/// takes, for those who have a channel rather than a future to wait with.
///
/// See [`ModelClient::try_send`](crate::ModelClient::try_send) for an example.
#[derive(Debug)]
pub struct InferenceMessage {
    /// Comes back in the result.
    pub id: Uuid,
    /// Which model the message goes to.
    pub model_ref: ModelRef,
    /// What is to be done.
    pub request: InferenceRequest,
    /// Where the answer goes. When the receiver is gone, a message that is still queued will not run.
    pub response_sender: oneshot::Sender<Result<InferenceResult>>,
}

impl InferenceMessage {
    /// A message with a fresh id, and the end where its answer will arrive.
    ///
    /// ```
    /// use coreml_client::{Features, InferenceMessage, InferenceRequest, ModelRef};
    ///
    /// let request = InferenceRequest::new(ModelRef::new(), Features::new());
    /// let (message, mut answer) = InferenceMessage::new(request);
    /// drop(message); // nobody will answer
    /// assert!(answer.try_recv().is_err());
    /// ```
    pub fn new(request: InferenceRequest) -> (Self, oneshot::Receiver<Result<InferenceResult>>) {
        let (response_sender, response_receiver) = oneshot::channel();
        let message = Self { id: Uuid::new_v4(), model_ref: request.model_ref, request, response_sender };
        (message, response_receiver)
    }
}
