//! Texts in the making: what is asked, what comes back, and one slice of the work on the inference thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coreml_bridge::CoreMlHandle;
use coreml_client::{ModelRef, Priority};
use tokio::sync::mpsc::UnboundedSender;

use crate::constraint::Guide;
use crate::layout::Causal;
use crate::reader::Reader;
use crate::sampling::Sampler;
use crate::stats::Recorder;
use crate::stop::{Passed, StopStrings};
use crate::tokenizer::Decoder;
use crate::{Constraint, Sampling, TextError};

/// How a text is to be made.
///
/// ```
/// use coreml_text::{Constraint, Generation, Sampling};
///
/// let generation = Generation {
///     most: 200,
///     sampling: Sampling { temperature: 0.7, seed: Some(1), ..Sampling::default() },
///     stop: vec!["\n\n".into()],
///     constraint: Some(Constraint::choice(["yes", "no"])),
///     ..Generation::default()
/// };
/// # let _ = generation;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The most tokens to make, by default 256.
    pub most: usize,
    /// How tokens are chosen; by default always the likeliest.
    pub sampling: Sampling,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the text, beside the model's own.
    pub stop_tokens: Vec<u32>,
    /// The form that the text must have.
    pub constraint: Option<Constraint>,
    /// How urgent it is.
    pub priority: Priority,
    /// When the text is of no use any more: what there is then is returned.
    pub deadline: Option<Instant>,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            most: 256,
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            constraint: None,
            priority: Priority::Normal,
            deadline: None,
        }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it, or the constraint was fulfilled.
    End,
    /// A stop string or stop token came.
    Stop,
    /// It has as many tokens as were allowed.
    Length,
    /// The model can have no more tokens before it.
    Context,
    /// The deadline passed.
    Deadline,
}

/// A token and the text that it completes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Piece {
    /// The token.
    pub token: u32,
    /// The text that became certain with it; often empty or several characters.
    pub text: String,
    /// The natural logarithm of the token's probability: the model's own, over the tokens that the constraint allowed.
    pub log_probability: f32,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Its tokens, with one that ended it.
    pub tokens: Vec<u32>,
    /// The natural logarithm of each token's probability.
    pub log_probabilities: Vec<f32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Where the time went.
    pub timings: TextTimings,
}

/// Where the time of a text went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextTimings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those that a memory had, so that they were not read.
    pub reused_tokens: usize,
    /// Reading the prompt, on the inference thread.
    pub prompt: Duration,
    /// Making tokens, on the inference thread.
    pub decode: Duration,
    /// Tokens made.
    pub tokens: usize,
}

impl TextTimings {
    /// Tokens made per second, without the time for the prompt.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.decode.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// What the inference thread tells the stream.
pub(crate) enum Event {
    Piece(Piece),
    Finish(FinishReason, TextTimings),
}

/// Tokens that are read before another request may have its turn; a chunk of a prompt may be more, and is a slice alone.
pub(crate) const SLICE: usize = 16;

/// A text in the making. Belongs to its stream; a slice of work borrows it.
pub(crate) struct Text {
    pub(crate) model_ref: ModelRef,
    pub(crate) layout: Arc<Causal>,
    /// Memories that the thread keeps.
    pub(crate) kept: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt: usize,
    pub(crate) most: usize,
    pub(crate) ends: Vec<u32>,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) sampler: Sampler,
    pub(crate) guide: Option<Guide>,
    pub(crate) decoder: Decoder,
    pub(crate) stops: StopStrings,
    pub(crate) deadline: Option<Instant>,
    pub(crate) timings: TextTimings,
    /// When the first slice was asked for.
    pub(crate) asked: Option<Instant>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) over: bool,
    pub(crate) reason: Option<FinishReason>,
    pub(crate) failed: Option<TextError>,
}

impl Text {
    /// A slice is about to be asked for.
    pub(crate) fn ask(&mut self) {
        if self.asked.is_none() {
            self.asked = Some(Instant::now());
            self.recorder.record(|stats| stats.texts += 1);
        }
    }

    /// Goes on for a slice. An error of the model is the request's; one of ours is kept in `failed`.
    pub(crate) fn slice(&mut self, model: &CoreMlHandle) -> Result<(), coreml_bridge::Error> {
        let begin = Instant::now();
        let mut reader = Reader::open(model, self.model_ref, &self.layout, &self.tokens)?;
        if self.tokens.len() == self.prompt && self.timings == TextTimings::default() {
            self.timings.prompt_tokens = self.prompt;
            self.timings.reused_tokens = reader.len();
            self.recorder.record(|stats| {
                stats.prompt_tokens += self.prompt as u64;
                stats.reused_tokens += reader.len() as u64;
            });
        }
        let mut clock = begin;
        while reader.worked() < SLICE && !self.over && !self.events.is_closed() {
            let logits = reader.advance(model, &self.layout, &self.tokens)?;
            let is_prompt = self.tokens.len() == self.prompt;
            let is_token = logits.is_some();
            if let Some(logits) = logits
                && let Err(error) = self.token(&logits)
            {
                self.failed = Some(error);
                self.over = true;
            }
            let now = Instant::now();
            let took = now - clock;
            clock = now;
            self.record(is_prompt, is_token, took, now);
            if !self.over && is_prompt && self.is_late() {
                self.over = true;
                self.reason = Some(FinishReason::Deadline);
            }
        }
        reader.keep(self.kept);
        if let Some(reason) = self.reason.take() {
            self.recorder.record(|stats| stats.finished += 1);
            let _ = self.events.send(Event::Finish(reason, self.timings));
        }
        Ok(())
    }

    /// After a chunk of the prompt, or after a token.
    fn record(&mut self, is_prompt: bool, is_token: bool, took: Duration, now: Instant) {
        let (timings, asked) = (&mut self.timings, self.asked);
        self.recorder.record(|stats| {
            stats.tokens += u64::from(is_token);
            let (of_text, of_all) = if is_prompt {
                (&mut timings.prompt, &mut stats.prompt_time)
            } else {
                (&mut timings.decode, &mut stats.decode_time)
            };
            *of_text += took;
            *of_all += took;
            match (is_token, is_prompt, asked) {
                (true, true, Some(asked)) => stats.first_token.record(now - asked),
                (true, false, _) => stats.token_time.record(took),
                // A chunk of the prompt, or of what was lost and is read again.
                _ => {}
            }
        });
    }

    /// Chooses a token and tells of it.
    fn token(&mut self, logits: &[f32]) -> Result<(), TextError> {
        let guide = &self.guide;
        let allowed = |token| guide.as_ref().is_none_or(|guide| guide.allows(token));
        let Some((token, log_probability)) = self.sampler.next(logits, &self.tokens, allowed) else {
            return Err(TextError::NoToken);
        };
        self.tokens.push(token);
        self.timings.tokens += 1;
        let ended = self.ends.contains(&token);
        let stopped = self.stop_tokens.contains(&token);
        let complete = match &mut self.guide {
            Some(guide) if !ended => guide.push(token)?,
            _ => false,
        };
        let mut text = String::new();
        let mut found = false;
        if !ended && !stopped {
            match self.stops.push(&self.decoder.push(token)?) {
                Passed::Text(passed) => text = passed,
                Passed::Stop(passed) => {
                    text = passed;
                    found = true;
                }
            }
        }
        let reason = if ended || complete {
            Some(FinishReason::End)
        } else if stopped || found {
            Some(FinishReason::Stop)
        } else if self.timings.tokens >= self.most {
            Some(FinishReason::Length)
        } else if self.tokens.len() >= self.layout.context {
            Some(FinishReason::Context)
        } else if self.is_late() {
            Some(FinishReason::Deadline)
        } else {
            None
        };
        if reason.is_some() && !found {
            text.push_str(&self.held_back()?);
        }
        // Nobody may be listening any more.
        let _ = self.events.send(Event::Piece(Piece { token, text, log_probability }));
        self.over = reason.is_some();
        self.reason = reason;
        Ok(())
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// At the end: an unfinished character, and what might have become a stop string.
    fn held_back(&mut self) -> Result<String, TextError> {
        let tail = self.decoder.finish()?;
        Ok(match self.stops.push(&tail) {
            Passed::Text(text) => text + &self.stops.finish(),
            Passed::Stop(text) => text,
        })
    }
}
