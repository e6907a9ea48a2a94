//! Requests by prompt: the client's own words for a text model.

use coreml_client::{ModelClient, ModelRef, Request};
use futures_util::future::BoxFuture;

use crate::{Completion, Generation, TextError, TextModel};

/// A prompt for a text model, for [`ModelClient::enqueue_inference`].
///
/// The model is one for which a [`TextModel`] was made with this client, or that [`load_model`](crate::load_model) loaded; the
/// client keeps its tokenizer with it. The answer is the whole text with its tokens, the reason why it ended, and timings; for the
/// pieces as they come there is [`TextModel::generate`].
///
/// # Cancel safety
/// Dropping the future ends the text within one token, or one chunk of the prompt (64 tokens).
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
/// use coreml_client::ModelClient;
/// use coreml_text::{FinishReason, Generation, PromptRequest, load_model_async};
///
/// let model_ref = load_model_async(path).await?;
/// let client = ModelClient::new();
/// let result = client
///     .enqueue_inference(PromptRequest {
///         model_ref,
///         prompt: "The function returns".to_string(),
///         generation: Generation { most: 8, ..Generation::default() },
///     })
///     .await?;
/// println!("{}: {:.0} tokens/s", result.text, result.timings.tokens_per_second());
/// assert_eq!((result.tokens.len(), result.finish), (8, FinishReason::Length));
/// # Ok::<(), coreml_text::TextError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRequest {
    /// Which model is to go on with it.
    pub model_ref: ModelRef,
    /// How the text begins.
    pub prompt: String,
    /// How it is to go on; priority and deadline are here, too.
    pub generation: Generation,
}

impl PromptRequest {
    /// A prompt, to go on with by default.
    #[must_use]
    pub fn new(model_ref: ModelRef, prompt: impl Into<String>) -> Self {
        Self { model_ref, prompt: prompt.into(), generation: Generation::default() }
    }
}

impl Request for PromptRequest {
    /// Resolves to the errors of [`TextModel::find`], [`TextModel::generate`] and [`TextStream::complete`](crate::TextStream::complete).
    type Answer = BoxFuture<'static, Result<Completion, TextError>>;

    fn ask(self, client: &ModelClient) -> Self::Answer {
        let client = client.clone();
        Box::pin(async move {
            TextModel::find(&client, self.model_ref)?
                .generate(&self.prompt, self.generation)?
                .complete()
                .await
        })
    }
}
