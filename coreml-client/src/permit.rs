use std::fmt;
use std::sync::Arc;

use coreml_bridge::ModelRef;

use crate::queue::Key;
use crate::runtime::Runtime;
use crate::version::{Denied, Version};
use crate::{Inference, InferenceRequest, Priority, Refused, Result};

/// A place in a model's queue, from [`ModelClient::reserve`](crate::ModelClient::reserve).
///
/// It counts as a request that was handed in; dropping it gives the place back, and counts as a cancelled one. When the
/// model is swapped or unloaded the place is lost, and the request is treated as one that comes without.
///
/// See [`ModelClient::reserve`](crate::ModelClient::reserve) for an example.
#[must_use = "dropping it gives the place back"]
pub struct Permit {
    runtime: Arc<Runtime>,
    place: Place,
    model_ref: ModelRef,
    priority: Priority,
    bytes: usize,
}

impl Permit {
    pub(crate) async fn reserve(
        runtime: Arc<Runtime>,
        model_ref: ModelRef,
        priority: Priority,
        bytes: usize,
    ) -> Result<Self> {
        loop {
            let version = runtime.route(model_ref, priority)?;
            let (key, granted) = match version.reserve(priority, bytes) {
                Ok(reserved) => reserved,
                Err(Denied::Superseded) => continue,
                Err(Denied::For(error)) => return Err(error),
            };
            // Cancelled with this future, too.
            let place = Place { version, key: Some(key) };
            if granted.await.is_ok() {
                return Ok(Self { runtime, place, model_ref, priority, bytes });
            }
            // The queue has closed: the next round says why, or finds the one that took over.
        }
    }

    /// The bytes of inputs that there is room for.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let permit = client.reserve(model_ref, coreml_client::Priority::Low, 256).await?;
    /// assert_eq!(permit.bytes(), 256);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Hands the request in, to the reserved place, without waiting. It goes to the permit's model with the permit's priority,
    /// whatever it says itself.
    ///
    /// # Errors
    /// [`Refused`] with [`Error::TooLarge`](crate::Error::TooLarge) if its inputs are larger than what was reserved; the
    /// place is given back.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// use coreml_client::{InferenceRequest, Priority};
    ///
    /// let permit = client.reserve(model_ref, Priority::High, 256).await?;
    /// permit.enqueue(InferenceRequest::new(model_ref, inputs))?.await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[allow(clippy::result_large_err, reason = "the request goes back by value")]
    pub fn enqueue(mut self, mut request: InferenceRequest) -> Result<Inference, Refused> {
        request.model_ref = self.model_ref;
        request.priority = self.priority;
        let bytes = request.features.byte_len();
        if bytes > self.bytes {
            let source = crate::Error::TooLarge { model_ref: self.model_ref, bytes, limit: self.bytes };
            return Err(Refused { request, source });
        }
        let Some(key) = self.place.key.take() else {
            unreachable!("a permit has its place until it is used")
        };
        Ok(Inference::fill(Arc::clone(&self.runtime), Arc::clone(&self.place.version), key, request))
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("model_ref", &self.model_ref)
            .field("priority", &self.priority)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A place, or a wait for one.
struct Place {
    version: Arc<Version>,
    key: Option<Key>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.version.cancel(key);
        }
    }
}

/// Keeps a model in memory: it is not evicted while this lives.
///
/// See [`ModelClient::load_pinned`](crate::ModelClient::load_pinned) for an example.
#[must_use = "dropping it lets the model be evicted"]
pub struct Pinned {
    runtime: Arc<Runtime>,
    model_ref: ModelRef,
}

impl Pinned {
    pub(crate) fn new(runtime: Arc<Runtime>, model_ref: ModelRef) -> Result<Self> {
        runtime.pin(model_ref)?;
        Ok(Self { runtime, model_ref })
    }

    /// The model.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// assert_eq!(client.pin(model_ref)?.model_ref(), model_ref);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn model_ref(&self) -> ModelRef {
        self.model_ref
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.runtime.unpin(self.model_ref);
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("model_ref", &self.model_ref).finish_non_exhaustive()
    }
}
