use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use coreml_bridge::{Features, ModelDescription, ModelRef};
use tokio::sync::oneshot;

use crate::backend::Instance;
use crate::runtime::Runtime;
use crate::source::ModelSource;
use crate::{Error, InferenceRequest, Result};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Says whether a new version will do.
pub(crate) type Check = Box<dyn FnOnce(&mut Trial<'_>) -> Result<(), BoxError> + Send>;

/// A swap to be made, see [`ModelClient::swap`](crate::ModelClient::swap). It begins when it is awaited.
///
/// See [`ModelClient::swap`](crate::ModelClient::swap) for an example.
#[must_use = "a swap begins when it is awaited"]
pub struct Swap {
    runtime: Arc<Runtime>,
    model_ref: ModelRef,
    source: ModelSource,
    check: Option<Check>,
    keep: bool,
}

impl Swap {
    pub(crate) fn new(runtime: Arc<Runtime>, model_ref: ModelRef, source: ModelSource) -> Self {
        Self { runtime, model_ref, source, check: None, keep: true }
    }

    /// Asks `check` before the new version is published; what it refuses is not. It runs on the thread that has the new
    /// instance, and may make predictions with it.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let swap = client.swap(model_ref, path).check(|_| Err("not on a Friday"));
    /// assert!(matches!(swap.await, Err(coreml_client::Error::SwapRefused { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn check<E: Into<BoxError>>(
        mut self,
        check: impl FnOnce(&mut Trial<'_>) -> Result<(), E> + Send + 'static,
    ) -> Self {
        self.check = Some(Box::new(move |trial| check(trial).map_err(Into::into)));
        self
    }

    /// Does not keep the old version for a [rollback](crate::ModelClient::rollback): it goes as soon as it has served its
    /// requests.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// client.swap(model_ref, path).forget_old().await?;
    /// assert!(client.rollback(model_ref).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn forget_old(mut self) -> Self {
        self.keep = false;
        self
    }
}

impl IntoFuture for Swap {
    type Output = Result<u64>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<u64>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { runtime, model_ref, source, check, keep } = self;
        Box::pin(async move {
            let (done, receiver) = oneshot::channel();
            runtime.swap(model_ref, source, check, keep, done);
            drop(runtime);
            receiver.await.unwrap_or(Err(Error::ShutDown))
        })
    }
}

/// An instance of a version that is not published yet.
///
/// See [`ModelClient::swap`](crate::ModelClient::swap) for an example.
pub struct Trial<'a> {
    model_ref: ModelRef,
    instance: &'a mut dyn Instance,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(model_ref: ModelRef, instance: &'a mut dyn Instance) -> Self {
        Self { model_ref, instance }
    }

    /// What it takes and gives.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let swap = client.swap(model_ref, path).check(|trial| {
    ///     let takes = trial.description().inputs.first().map(|input| input.name.clone());
    ///     if takes.as_deref() == Some("image") { Ok(()) } else { Err("it takes something else") }
    /// });
    /// assert_eq!(swap.await?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn description(&self) -> Arc<ModelDescription> {
        self.instance.description()
    }

    /// Makes a prediction.
    ///
    /// # Errors
    /// What the bridge says.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// # let image = coreml_client::Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
    /// # let inputs = coreml_client::Features::new().with("image", image);
    /// let swap = client.swap(model_ref, path).check(move |trial| trial.predict(inputs).map(drop));
    /// assert_eq!(swap.await?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn predict(&mut self, features: Features) -> Result<Features, coreml_bridge::Error> {
        let request = InferenceRequest::new(self.model_ref, features);
        self.instance.predict(&request).map(|(outputs, _)| outputs)
    }
}
