//! Who judges: anything that has an opinion on whether a work keeps to a rule.

use std::time::Instant;

use coreml_client::Priority;
use futures_core::future::BoxFuture;

use crate::trained::UnknownHead;
use crate::{Distribution, Passage, Rule, Task};

/// One question to one judge.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Case<'a> {
    /// What is judged.
    pub task: &'a Task,
    /// The parts of the work; at least one.
    pub passages: &'a [Passage<'a>],
    /// What judges are told before the rules.
    pub preamble: &'a str,
    /// What the work is held to.
    pub rule: &'a Rule,
    /// The how manieth time this judge is asked for this rule, from 0.
    pub sample: u32,
    /// Where chance begins: the same number, the same opinion. `None`: another one each time.
    pub seed: Option<u64>,
    /// How urgent it is.
    pub priority: Priority,
    /// When the opinion is of no use any more.
    pub deadline: Option<Instant>,
}

/// What a judge says to a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// What it thinks.
    Opinion(Opinion),
    /// It does not know this rule, or cannot read this work.
    Abstains {
        /// Why.
        reason: String,
    },
}

/// What a judge thinks of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Opinion {
    /// How likely each finding is.
    pub distribution: Distribution,
    /// Why.
    pub reason: String,
    /// The passage that it rests on, by its place in [`Case::passages`].
    pub passage: Option<usize>,
}

/// Anything that judges: a language model ([`LanguageJudge`](crate::LanguageJudge)), a trained head
/// ([`TrainedJudge`](crate::TrainedJudge)), or what a program brings.
///
/// ```
/// use coreml_judge::{Answer, BoxFuture, Case, Distribution, Judge, JudgeError, Opinion};
///
/// /// Finds that works are short.
/// struct Length;
///
/// impl Judge for Length {
///     fn name(&self) -> &str {
///         "length"
///     }
///
///     fn consider<'a>(&'a self, case: Case<'a>) -> BoxFuture<'a, Result<Answer, JudgeError>> {
///         let kept = if case.task.work.len() < 1_000 { 1.0 } else { 0.0 };
///         let opinion = Distribution::new(kept, 1.0 - kept, 0.0).map(|distribution| {
///             Answer::Opinion(Opinion { distribution, reason: "counted".into(), passage: None })
///         });
///         Box::pin(async move { Ok(opinion.unwrap_or(Answer::Abstains { reason: "no number".into() })) })
///     }
///
///     fn samples(&self, _: u32) -> u32 {
///         1
///     }
/// }
/// ```
pub trait Judge: Send + Sync {
    /// What it is called in verdicts.
    fn name(&self) -> &str;

    /// What it thinks.
    ///
    /// # Errors
    /// If it could not be asked. A judge that was asked and does not know abstains.
    ///
    /// # Cancel safety
    /// Dropping the future must give the question up.
    fn consider<'a>(&'a self, case: Case<'a>) -> BoxFuture<'a, Result<Answer, JudgeError>>;

    /// How often it is worth asking, of so many times that are wanted: once, if it always says the same.
    fn samples(&self, wanted: u32) -> u32 {
        wanted
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// There is nothing to judge.
    #[error("the work is empty")]
    EmptyWork,
    /// There is nobody to judge.
    #[error("the tribunal has no judge")]
    NoJudge,
    /// More opinions than can be asked for.
    #[error("{found} opinions are asked for, and {most} are the most")]
    TooMany {
        /// How many.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// A judge could not be asked.
    #[error("{judge} has no opinion on `{rule}`")]
    Failed {
        /// The judge.
        judge: String,
        /// The rule's id.
        rule: String,
        /// What happened.
        source: Box<JudgeError>,
    },
    /// The deadline passed before there was a verdict.
    #[error("the deadline passed")]
    Deadline,
    /// A text that the model is given, or its answer.
    #[error(transparent)]
    Text(coreml_text::TextError),
    /// What became of a request.
    #[error("the model could not be asked")]
    Client(#[source] coreml_client::Error),
    /// The model is not a judging head.
    #[error(transparent)]
    UnknownHead(#[from] UnknownHead),
    /// A model answered with what is no probability.
    #[error("the model's probabilities are {found}")]
    Probabilities {
        /// What it answered.
        found: String,
    },
    /// A template that loses or repeats what it is to show.
    #[error("the chat template does not show every part of the prompt once")]
    Template,
    /// The work spells a token that only the model's own texts may have, in a way that the tokenizer cannot tell apart.
    #[error("a text of the task has the special token {token}")]
    SpecialToken {
        /// Its number.
        token: u32,
    },
    /// What a judge of a program's own met with.
    #[error("the judge failed")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl JudgeError {
    /// Whether the deadline passed, whoever noticed.
    #[must_use]
    pub fn is_deadline(&self) -> bool {
        match self {
            Self::Deadline => true,
            Self::Failed { source, .. } => source.is_deadline(),
            _ => false,
        }
    }
}

impl From<coreml_client::Error> for JudgeError {
    fn from(error: coreml_client::Error) -> Self {
        match error {
            coreml_client::Error::DeadlineExceeded { .. } => Self::Deadline,
            error => Self::Client(error),
        }
    }
}

impl From<coreml_text::TextError> for JudgeError {
    fn from(error: coreml_text::TextError) -> Self {
        match error {
            coreml_text::TextError::Client(error) => error.into(),
            error => Self::Text(error),
        }
    }
}
