use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::queue::{Key, WhenFull};
use crate::runtime::Runtime;
use crate::timer::{Alarm, Timer};
use crate::version::{Answer, Denied, Version};
use crate::{Error, InferenceMessage, InferenceRequest, Refused, Result};

/// The future of an [`InferenceResult`](crate::InferenceResult); see
/// [`ModelClient::enqueue_inference`](crate::ModelClient::enqueue_inference).
///
/// # Cancel safety
/// Dropping it gives the request up. If the request has not started, it never will: when `drop` returns, its inputs
/// are freed and its place in the queue is another's. A prediction under way finishes, and its outputs are dropped on the
/// inference thread.
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
/// let inference = client.enqueue_inference(InferenceRequest::new(model_ref, inputs));
/// let id = inference.id();
/// assert_eq!(inference.await?.id, id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[must_use = "nothing is handed in before the future is polled, and dropping it gives the request up"]
pub struct Inference {
    id: Uuid,
    state: State,
}

enum State {
    New { runtime: Arc<Runtime>, request: InferenceRequest },
    Pending(Pending),
    Over,
}

impl Inference {
    pub(crate) fn new(runtime: Arc<Runtime>, request: InferenceRequest) -> Self {
        Self { id: Uuid::new_v4(), state: State::New { runtime, request } }
    }

    /// Hands the request in at once, if it does not have to wait for that.
    pub(crate) fn try_start(runtime: &Runtime, request: InferenceRequest) -> Result<Self, Refused> {
        let id = Uuid::new_v4();
        let pending = Pending::submit(runtime, id, request, WhenFull::Refuse)?;
        Ok(Self { id, state: State::Pending(pending) })
    }

    /// Hands the request in to the place that was reserved for it; if that is lost, as one that comes without.
    pub(crate) fn fill(
        runtime: Arc<Runtime>,
        version: Arc<Version>,
        key: Key,
        request: InferenceRequest,
    ) -> Self {
        let id = Uuid::new_v4();
        let state = match Pending::fill(&runtime, id, version, key, request) {
            Ok(pending) => State::Pending(pending),
            Err(request) => State::New { runtime, request },
        };
        Self { id, state }
    }

    /// The request's id, which the result will carry.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// let inference = client.enqueue_inference(coreml_client::InferenceRequest::new(model_ref, inputs));
    /// println!("asked as {}", inference.id());
    /// inference.await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn id(&self) -> Uuid {
        self.id
    }
}

impl Future for Inference {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        if let State::New { .. } = self.state
            && let State::New { runtime, request } = mem::replace(&mut self.state, State::Over)
        {
            match Pending::submit(&runtime, self.id, request, WhenFull::Wait) {
                Ok(pending) => self.state = State::Pending(pending),
                Err(Refused { request: _, source }) => return Poll::Ready(Err(source)),
            }
        }
        match &mut self.state {
            State::Pending(pending) => {
                let answer = ready!(pending.poll_answer(context));
                self.state = State::Over;
                Poll::Ready(answer)
            }
            State::New { .. } | State::Over => panic!("polled after its result was taken"),
        }
    }
}

impl fmt::Debug for Inference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inference").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The request's own, the model's, or the runtime's.
pub(crate) fn deadline(
    runtime: &Runtime,
    version: &Version,
    request: &InferenceRequest,
    submitted: Instant,
) -> Option<Instant> {
    request.deadline.or_else(|| {
        let timeout = version.default_timeout().or(runtime.settings().default_timeout)?;
        submitted.checked_add(timeout)
    })
}

/// A request that has been handed in.
struct Pending {
    version: Arc<Version>,
    key: Key,
    answer: oneshot::Receiver<Answer>,
    answered: bool,
    alarm: Option<Alarm>,
}

impl Pending {
    fn submit(
        runtime: &Runtime,
        id: Uuid,
        request: InferenceRequest,
        when_full: WhenFull,
    ) -> Result<Self, Refused> {
        let model_ref = request.model_ref;
        let submitted = Instant::now();
        let (response_sender, answer) = oneshot::channel();
        let mut message = InferenceMessage { id, model_ref, request, response_sender };
        loop {
            let version = match runtime.route(model_ref, message.request.priority) {
                Ok(version) => version,
                Err(source) => return Err(Refused { request: message.request, source }),
            };
            let deadline = deadline(runtime, &version, &message.request, submitted);
            match version.submit(message, submitted, deadline, when_full) {
                Ok(key) => return Ok(Self::new(version, key, answer, deadline)),
                Err((Denied::For(source), message)) => {
                    return Err(Refused { request: message.request, source });
                }
                // A swap came between: the model has another version now.
                Err((Denied::Superseded, back)) => message = back,
            }
        }
    }

    fn fill(
        runtime: &Runtime,
        id: Uuid,
        version: Arc<Version>,
        key: Key,
        request: InferenceRequest,
    ) -> Result<Self, InferenceRequest> {
        let submitted = Instant::now();
        let deadline = deadline(runtime, &version, &request, submitted);
        let (response_sender, answer) = oneshot::channel();
        let message = InferenceMessage { id, model_ref: request.model_ref, request, response_sender };
        match version.fill(key, message, submitted, deadline) {
            Ok(key) => Ok(Self::new(version, key, answer, deadline)),
            Err(message) => Err(message.request),
        }
    }

    fn new(
        version: Arc<Version>,
        key: Key,
        answer: oneshot::Receiver<Answer>,
        deadline: Option<Instant>,
    ) -> Self {
        let mut pending = Self { version, key, answer, answered: false, alarm: None };
        if let Some(deadline) = deadline
            && !crate::mutant!("deadlines-at-dequeue-only")
        {
            let version = Arc::downgrade(&pending.version);
            let expire = move || {
                if let Some(version) = version.upgrade() {
                    version.expire(key);
                }
            };
            // Without a timer the deadline still holds at the dequeue.
            pending.alarm = Timer::global().set(deadline, Box::new(expire)).ok();
        }
        pending
    }

    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        self.answered = true;
        // The queue answers whatever it takes in; this only keeps a mistake there from becoming a panic here.
        Poll::Ready(answer.unwrap_or(Err(Error::ShutDown)))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm {
            Timer::global().cancel(alarm);
        }
        if !self.answered && !crate::mutant!("cancel-at-dequeue-only") {
            self.version.cancel(self.key);
        }
    }
}
