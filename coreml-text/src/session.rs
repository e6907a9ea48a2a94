//! Texts that go on in turns.

use crate::{Completion, Generation, TextError, TextModel, TextStream};

/// A text that is written in turns, by the program and by the model; a conversation, for example.
///
/// It is its tokens. What the model has read of them stays in a memory on the inference thread for as long as that is among those
/// used last, and is read again if not; so many sessions can share one model, and a clone is a fork that costs nothing before the two
/// go different ways.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
/// use coreml_client::ModelClient;
/// use coreml_text::{Generation, TextModel};
///
/// let client = ModelClient::builder().threads(1).build();
/// let model = TextModel::load(&client, path).await?;
/// let short = || Generation { most: 8, ..Generation::default() };
/// let mut session = model.session();
/// session.push("The default value of this parameter is the name of the operating system user that runs the")?;
/// let mut fork = session.clone();
/// let first = session.complete(short()).await?;
/// fork.push(" In Python")?;
/// let second = fork.complete(short()).await?;
/// assert!(second.timings.reused_tokens > 0 && first.tokens != second.tokens);
/// session.push(" Also")?; // goes on behind what the model has written
/// assert!(session.tokens().len() > 8);
/// # Ok::<(), coreml_text::TextError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    model: TextModel,
    tokens: Vec<u32>,
}

impl Session {
    pub(crate) fn new(model: TextModel) -> Self {
        Self { model, tokens: Vec::new() }
    }

    /// What was said so far.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The program's turn. At the beginning of a session come the tokens that the tokenizer adds by itself.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn push(&mut self, text: &str) -> Result<(), TextError> {
        let tokenizer = self.model.tokenizer();
        let tokens =
            if self.tokens.is_empty() { tokenizer.encode(text) } else { tokenizer.encode_more(text) };
        self.tokens.extend(tokens?);
        Ok(())
    }

    /// The same in tokens, for example those of a [`stream`](Self::stream).
    pub fn extend(&mut self, tokens: impl IntoIterator<Item = u32>) {
        self.tokens.extend(tokens);
    }

    /// The model's turn: what it writes becomes a part of the session.
    ///
    /// # Errors
    /// As [`TextModel::generate`] and [`TextStream::complete`].
    ///
    /// # Cancel safety
    /// If the future is dropped the session is as it was.
    pub async fn complete(&mut self, generation: Generation) -> Result<Completion, TextError> {
        let completion = self.stream(generation)?.complete().await?;
        self.tokens.extend_from_slice(&completion.tokens);
        Ok(completion)
    }

    /// The model's turn, piece by piece. What becomes a part of the session is for the caller to [say](Self::extend).
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    pub fn stream(&self, generation: Generation) -> Result<TextStream, TextError> {
        self.model.start(self.tokens.clone(), generation)
    }
}
