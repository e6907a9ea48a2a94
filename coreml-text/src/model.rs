//! Causal language models through the client.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use coreml_bridge::Features;
use coreml_client::{Inference, InferenceRequest, ModelClient, ModelRef, Procedure};
use futures_core::Stream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::constraint::Grammars;
use crate::generation::{Event, Text};
use crate::layout::Causal;
use crate::question::Question;
use crate::sampling::{Sampler, log_sum_exp};
use crate::stats::Recorder;
use crate::stop::StopStrings;
use crate::tokenizer::Decoder;
use crate::{
    ChatTemplate, Completion, FinishReason, Generation, Message, Piece, Session, TextError, TextStats,
    TextTimings, Tokenizer,
};

/// A causal language model with its tokenizer: prompts in, text out.
///
/// The model is loaded through the client like any other; what kind of language model it is, stateful or with explicit caches or
/// without memory, is found in its description. Texts run in slices of a few tokens on the model's inference threads, with the
/// priority of their [`Generation`]; a text whose memory is on another thread is read again there, so one thread
/// ([`threads(1)`](coreml_client::ModelClientBuilder::threads)) is best for models with memory.
///
/// Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct TextModel {
    client: ModelClient,
    model_ref: ModelRef,
    parts: Arc<Parts>,
}

/// What a client keeps beside a model that takes prompts; it must not own the client.
#[derive(Clone, Debug)]
struct Parts {
    layout: Arc<Causal>,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    ends: Vec<u32>,
    grammars: Arc<Grammars>,
    recorder: Arc<Recorder>,
    /// For memories, in bytes.
    memory: usize,
}

/// Four memories of Apple's Mistral with a context of 2,048, or hundreds of a small model.
pub(crate) const MEMORY: usize = 1 << 30;

/// Every slice of a text looks through all of them for its own.
pub(crate) const MOST_MEMORIES: usize = 64;

impl Parts {
    /// How many memories a thread keeps: at least one, or a text would be read anew with every slice; none of a model without any.
    fn kept(&self) -> usize {
        match self.layout.memory_bytes {
            0 => 0,
            bytes => (self.memory / bytes).clamp(1, MOST_MEMORIES),
        }
    }
}

impl TextModel {
    /// A model that `client` has loaded. `end` are the tokens that end a text, by their text, such as `</s>`.
    ///
    /// The client keeps all this beside the model, so [`PromptRequest`](crate::PromptRequest)s find it by the model's reference: what
    /// was said last, until the model is unloaded. What constrained text needs is made with the first of it, unless
    /// [`prepare`](Self::prepare) has made it.
    ///
    /// # Errors
    /// [`TextError::UnknownLayout`]; [`TextError::UnknownToken`] for an end that the tokenizer does not know;
    /// [`TextError::Client`] if the model is not loaded.
    pub fn new(
        client: &ModelClient,
        model_ref: ModelRef,
        tokenizer: Tokenizer,
        end: &[&str],
    ) -> Result<Self, TextError> {
        Self::with_grammars(client, model_ref, tokenizer, end, Arc::default())
    }

    pub(crate) fn with_grammars(
        client: &ModelClient,
        model_ref: ModelRef,
        tokenizer: Tokenizer,
        end: &[&str],
        grammars: Arc<Grammars>,
    ) -> Result<Self, TextError> {
        let description = client.description(model_ref)?;
        let layout = Causal::find(&name(client, model_ref), &description)?;
        let token = |text: &&str| {
            tokenizer.token(text).ok_or_else(|| TextError::UnknownToken { token: (*text).to_owned() })
        };
        let ends = end.iter().map(token).collect::<Result<_, _>>()?;
        let before = client.attached::<Parts>(model_ref)?;
        let parts = Parts {
            layout: Arc::new(layout),
            tokenizer,
            template: None,
            ends,
            grammars,
            recorder: before.map_or_else(Arc::default, |before| Arc::clone(&before.recorder)),
            memory: MEMORY,
        };
        Self::with_parts(client.clone(), model_ref, parts)
    }

    /// Makes what constrained text, and text that is not trusted, need of the tokenizer, which else the first of them makes: it looks at
    /// every token, so async code has this done on a thread that may block. [`load`](Self::load) has done it.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`]; [`TextError::Constraint`] if the bytes of the tokens cannot be known, so that no text can be constrained.
    pub fn prepare(&self) -> Result<(), TextError> {
        let Parts { tokenizer, ends, grammars, .. } = &*self.parts;
        tokenizer.prepare()?;
        if let Some(&end) = ends.first() {
            grammars.prepare(tokenizer, end)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn is_prepared(&self) -> bool {
        self.parts.tokenizer.is_prepared() && self.parts.grammars.is_prepared()
    }

    fn with_parts(client: ModelClient, model_ref: ModelRef, parts: Parts) -> Result<Self, TextError> {
        let parts = Arc::new(parts);
        client.attach(model_ref, Arc::clone(&parts))?;
        Ok(Self { client, model_ref, parts })
    }

    /// The text model that was made last of a model, with this client or another of its runtime.
    ///
    /// # Errors
    /// [`TextError::NotText`] if none was; [`TextError::Client`] if the model is not loaded.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
    /// use coreml_client::ModelClient;
    /// use coreml_text::TextModel;
    ///
    /// let client = ModelClient::builder().threads(1).build();
    /// let model_ref = client.load(path).await?;
    /// assert!(TextModel::find(&client, model_ref).is_err());
    /// let model_ref = TextModel::load(&client, path).await?.model_ref();
    /// assert_eq!(TextModel::find(&client, model_ref)?.context(), 1024);
    /// # Ok::<(), coreml_text::TextError>(())
    /// # }).unwrap();
    /// ```
    pub fn find(client: &ModelClient, model_ref: ModelRef) -> Result<Self, TextError> {
        let parts = client.attached::<Parts>(model_ref)?.ok_or(TextError::NotText { model_ref })?;
        Ok(Self { client: client.clone(), model_ref, parts })
    }

    /// With a template for conversations.
    ///
    /// # Errors
    /// [`TextError::Client`] if the model is not loaded any more.
    pub fn with_template(self, template: ChatTemplate) -> Result<Self, TextError> {
        let parts = Parts { template: Some(template), ..(*self.parts).clone() };
        Self::with_parts(self.client, self.model_ref, parts)
    }

    /// With another bound for what each inference thread keeps of texts that it has read, in bytes; by default a gibibyte.
    ///
    /// A memory, the key-value cache of one text, always takes the room for a whole context: what the description says of states or
    /// caches. As many are kept as fit, but always one and never more than 64; when more texts than that take turns, each is read anew in
    /// every turn.
    ///
    /// # Errors
    /// [`TextError::Client`] if the model is not loaded any more.
    pub fn with_memory(self, bytes: usize) -> Result<Self, TextError> {
        let parts = Parts { memory: bytes, ..(*self.parts).clone() };
        Self::with_parts(self.client, self.model_ref, parts)
    }

    /// The template for conversations, if it was given one.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.parts.template.as_ref()
    }

    /// What the model has done, see [`TextStats`].
    #[must_use]
    pub fn stats(&self) -> TextStats {
        self.parts.recorder.snapshot()
    }

    /// A text in turns, empty at first.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// The model.
    #[must_use]
    pub fn model_ref(&self) -> ModelRef {
        self.model_ref
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.parts.tokenizer
    }

    /// The most tokens, prompt and answer together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.parts.layout.context
    }

    /// Goes on with a text.
    ///
    /// # Errors
    /// [`TextError::PromptTooLong`], [`TextError::EmptyPrompt`]; [`TextError::Sampling`] and [`TextError::Constraint`] if the
    /// settings are wrong; [`TextError::Tokenizer`].
    pub fn generate(&self, prompt: &str, generation: Generation) -> Result<TextStream, TextError> {
        self.start(self.parts.tokenizer.encode(prompt)?, generation)
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); [`TextError::NoTemplate`], [`TextError::Template`].
    pub fn chat(&self, messages: &[Message], generation: Generation) -> Result<TextStream, TextError> {
        let template = self.parts.template.as_ref().ok_or(TextError::NoTemplate)?;
        // The template has put special tokens where they belong.
        self.start(self.parts.tokenizer.encode_bare(&template.render(messages, true)?)?, generation)
    }

    /// Goes on with tokens.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn start(&self, prompt: Vec<u32>, generation: Generation) -> Result<TextStream, TextError> {
        self.check_prompt(prompt.len())?;
        let Parts { layout, tokenizer, ends, grammars, recorder, template: _, memory: _ } = &*self.parts;
        generation.sampling.check().map_err(|reason| TextError::Sampling { reason })?;
        let guide = match &generation.constraint {
            Some(constraint) => {
                let end = *ends.first().ok_or(TextError::NoEnd)?;
                Some(grammars.guide(constraint, tokenizer, end)?)
            }
            None => None,
        };
        let decoder = Decoder::after(tokenizer.clone(), &prompt)?;
        let (events, receiver) = unbounded_channel();
        let text = Text {
            model_ref: self.model_ref,
            layout: Arc::clone(layout),
            kept: self.parts.kept(),
            prompt: prompt.len(),
            tokens: prompt,
            most: generation.most,
            ends: ends.clone(),
            stop_tokens: generation.stop_tokens,
            sampler: Sampler::new(generation.sampling),
            guide,
            decoder,
            stops: StopStrings::new(generation.stop),
            deadline: generation.deadline,
            timings: TextTimings::default(),
            asked: None,
            recorder: Arc::clone(recorder),
            events,
            over: generation.most == 0,
            reason: None,
            failed: None,
        };
        Ok(TextStream {
            client: self.client.clone(),
            priority: generation.priority,
            deadline: generation.deadline,
            model_ref: self.model_ref,
            text: Arc::new(Mutex::new(text)),
            receiver,
            slice: None,
            finish: (generation.most == 0).then(|| (FinishReason::Length, TextTimings::default())),
            over: generation.most == 0,
        })
    }

    fn check_prompt(&self, found: usize) -> Result<(), TextError> {
        let most = self.context();
        match found {
            0 => Err(TextError::EmptyPrompt),
            _ if found >= most => Err(TextError::PromptTooLong { found, most: most.saturating_sub(1) }),
            _ => Ok(()),
        }
    }

    /// How likely the model is to go on with each of the texts, as probabilities that sum to 1 over them: from its own logits,
    /// without a word being made. The prompt is read once, and then what each choice adds to it, in slices as texts are made.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); [`TextError::Client`] with what happened to the request.
    ///
    /// # Cancel safety
    /// Dropping the future ends the question within one token, or one chunk of the prompt (64 tokens).
    pub async fn choose(
        &self,
        prompt: &str,
        choices: &[&str],
        options: &Generation,
    ) -> Result<Vec<f32>, TextError> {
        self.choose_after(self.tokenizer().encode(prompt)?, choices, options).await
    }

    /// As [`choose`](Self::choose), after tokens.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    ///
    /// # Cancel safety
    /// As [`choose`](Self::choose).
    pub async fn choose_after(
        &self,
        prompt: Vec<u32>,
        choices: &[&str],
        options: &Generation,
    ) -> Result<Vec<f32>, TextError> {
        let choices =
            choices.iter().map(|text| self.tokenizer().encode_more(text)).collect::<Result<Vec<_>, _>>()?;
        let longest = choices.iter().map(Vec::len).max().unwrap_or(0);
        if prompt.is_empty() {
            return Err(TextError::EmptyPrompt);
        }
        self.check_prompt(prompt.len() + longest)?;
        // Ends with this future.
        let asker = Arc::new(());
        let (layout, alive) = (Arc::clone(&self.parts.layout), Arc::downgrade(&asker));
        let question = Question::new(self.model_ref, layout, self.parts.kept(), prompt, choices, alive);
        let question = Arc::new(Mutex::new(question));
        let scores = loop {
            let under_way = Arc::clone(&question);
            let slice = Procedure::new(move |model, _| {
                under_way.lock().unwrap_or_else(PoisonError::into_inner).slice(model)?;
                Ok(Features::new())
            });
            let mut request = InferenceRequest::new(self.model_ref, Features::new()).procedure(slice);
            request.priority = options.priority;
            request.deadline = options.deadline;
            self.client.enqueue_inference(request).await?;
            if let Some(scores) = question.lock().unwrap_or_else(PoisonError::into_inner).answer() {
                break scores;
            }
        };
        let sum = log_sum_exp(scores.iter().copied());
        Ok(scores.into_iter().map(|score| (score - sum).exp()).collect())
    }
}

/// Where a model was loaded from, for whoever reads an error; its number, if it is gone.
pub(crate) fn name(client: &ModelClient, model_ref: ModelRef) -> String {
    let models = client.stats().models;
    let model = models.iter().rfind(|model| model.model_ref == model_ref);
    model.map_or_else(|| model_ref.to_string(), |model| model.path.display().to_string())
}

/// A text as it is made, piece by piece.
///
/// # Cancel safety
/// Dropping it ends the text within one token, or one chunk of the prompt (64 tokens), and gives up what is queued.
#[must_use = "nothing is made before the stream is polled"]
pub struct TextStream {
    client: ModelClient,
    priority: coreml_client::Priority,
    deadline: Option<std::time::Instant>,
    model_ref: ModelRef,
    text: Arc<Mutex<Text>>,
    receiver: UnboundedReceiver<Event>,
    slice: Option<Inference>,
    finish: Option<(FinishReason, TextTimings)>,
    over: bool,
}

impl TextStream {
    /// Why the text ended and where its time went; `None` before its end.
    #[must_use]
    pub fn finish(&self) -> Option<(FinishReason, TextTimings)> {
        self.finish
    }

    /// The whole text at once.
    ///
    /// # Errors
    /// [`TextError::Client`] with what happened to a request; [`TextError::NoToken`], [`TextError::Constraint`].
    pub async fn complete(mut self) -> Result<Completion, TextError> {
        let (mut text, mut tokens, mut log_probabilities) = (String::new(), Vec::new(), Vec::new());
        while let Some(piece) = std::future::poll_fn(|context| Pin::new(&mut self).poll_next(context)).await {
            let piece = piece?;
            text.push_str(&piece.text);
            tokens.push(piece.token);
            log_probabilities.push(piece.log_probability);
        }
        let (finish, timings) = self.finish.unwrap_or((FinishReason::End, TextTimings::default()));
        Ok(Completion { text, tokens, log_probabilities, finish, timings })
    }

    fn next_slice(&self) -> Inference {
        let text = Arc::clone(&self.text);
        text.lock().unwrap_or_else(PoisonError::into_inner).ask();
        let slice = Procedure::new(move |model, _| {
            // A slice that panicked has left the text as it was between two tokens.
            text.lock().unwrap_or_else(PoisonError::into_inner).slice(model)?;
            Ok(Features::new())
        });
        let mut request = InferenceRequest::new(self.model_ref, Features::new()).procedure(slice);
        request.priority = self.priority;
        request.deadline = self.deadline;
        self.client.enqueue_inference(request)
    }
}

impl Stream for TextStream {
    type Item = Result<Piece, TextError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Before the end of the slice that made it.
            match self.receiver.poll_recv(context) {
                Poll::Ready(Some(Event::Piece(piece))) => return Poll::Ready(Some(Ok(piece))),
                Poll::Ready(Some(Event::Finish(reason, timings))) => {
                    self.finish = Some((reason, timings));
                    self.over = true;
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            if self.over {
                return Poll::Ready(None);
            }
            let this = &mut *self;
            if this.slice.is_none() {
                this.slice = Some(this.next_slice());
            }
            let Some(slice) = &mut this.slice else { continue };
            let result = ready!(Pin::new(slice).poll(context));
            this.slice = None;
            let error = match result {
                // The slice may still run, and have the text.
                Err(coreml_client::Error::DeadlineExceeded { .. }) => {
                    let timings = this.text.try_lock().map_or(TextTimings::default(), |text| text.timings);
                    this.finish = Some((FinishReason::Deadline, timings));
                    this.over = true;
                    continue;
                }
                Err(error) => Some(TextError::Client(error)),
                Ok(_) => this.text.lock().unwrap_or_else(PoisonError::into_inner).failed.take(),
            };
            if let Some(error) = error {
                this.over = true;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}
