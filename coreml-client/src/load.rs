use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use coreml_bridge::ModelRef;
use tokio::sync::{oneshot, watch};

use crate::runtime::{Loaded, Runtime};
use crate::source::{LoadStage, ModelSource};
use crate::{Error, Result};

/// A load, see [`ModelClient::load`](crate::ModelClient::load); a future of the model's reference.
///
/// # Cancel safety
/// Dropping it neither stops the load nor restarts it.
///
/// See [`stages`](Self::stages) for an example.
#[must_use = "a load begins when it is polled"]
pub struct Load {
    begun: Option<(Arc<Runtime>, ModelSource)>,
    stage: watch::Receiver<LoadStage>,
    sender: Option<watch::Sender<LoadStage>>,
    result: Option<oneshot::Receiver<Result<ModelRef>>>,
}

impl Load {
    pub(crate) fn new(runtime: Arc<Runtime>, source: ModelSource) -> Self {
        let (sender, stage) = watch::channel(LoadStage::Reading);
        Self { begun: Some((runtime, source)), stage, sender: Some(sender), result: None }
    }

    /// How far it has come.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// # let client = coreml_client::ModelClient::builder().build();
    /// # let model_ref = client.load(path).await?;
    /// let load = client.load(path);
    /// assert_eq!(load.stage(), coreml_client::LoadStage::Reading);
    /// load.await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn stage(&self) -> LoadStage {
        *self.stage.borrow()
    }

    /// Tells of each stage as it begins; may be sent anywhere.
    ///
    /// ```
    /// use coreml_client::{LoadStage, ModelClient};
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
    /// let client = ModelClient::builder().build();
    /// let load = client.load(path);
    /// let mut stages = load.stages();
    /// let printer = tokio::spawn(async move {
    ///     while stages.changed().await.is_ok() {
    ///         println!("{}", *stages.borrow_and_update());
    ///     }
    ///     *stages.borrow()
    /// });
    /// load.await?;
    /// assert_eq!(printer.await.unwrap(), LoadStage::Ready);
    /// # Ok::<(), coreml_client::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn stages(&self) -> watch::Receiver<LoadStage> {
        self.stage.clone()
    }
}

impl Future for Load {
    type Output = Result<ModelRef>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some((runtime, source)) = self.begun.take() {
            let (sender, receiver) = oneshot::channel();
            self.result = Some(receiver);
            let done = Box::new(move |result| {
                // Who asked may have gone.
                let _ = sender.send(result);
            });
            runtime.load(source, Loaded { done, stage: self.sender.take().map(Arc::new) });
        }
        match &mut self.result {
            Some(receiver) => {
                Pin::new(receiver).poll(context).map(|result| result.unwrap_or(Err(Error::ShutDown)))
            }
            None => panic!("polled after its result was taken"),
        }
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("stage", &self.stage()).finish_non_exhaustive()
    }
}
