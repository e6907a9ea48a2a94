//! A constitutional judge: models say whether a piece of work keeps to a set of rules.
//!
//! A [`Constitution`] is a list of rules. A [`Tribunal`] holds a [`Task`], that is a work and what it answers to, against each rule: it asks
//! its [`Judge`]s, all at the same time, and makes a [`Verdict`] of their opinions. A judge is a language model ([`LanguageJudge`]), a
//! small model that was trained for a few rules ([`TrainedJudge`]), or anything else with an opinion. [`MistralJudge`] is a tribunal of one
//! language model.
//!
//! What holds: probabilities are a model's own, never read from its text; a rule that the probabilities do not decide is
//! [`Unclear`](Finding::Unclear), never guessed; a quote is a part of the work, byte for byte; a verdict has every opinion that was asked
//! for, or is an error; and nothing in a work reaches a model as anything but a quotation.

#![forbid(unsafe_code)]

mod constitution;
mod document;
mod judge;
mod language;
mod prompt;
mod task;
#[cfg(test)]
mod tests;
mod trained;
mod tribunal;
mod verdict;

pub use constitution::{Constitution, ConstitutionError, Fault, Rule, Severity};
pub use futures_core::future::BoxFuture;
pub use judge::{Answer, Case, Judge, JudgeError, Opinion};
pub use language::{LanguageJudge, MistralJudge};
pub use task::{Evidence, Passage, Task};
pub use trained::{TrainedJudge, UnknownHead};
pub use tribunal::{Deliberation, Tribunal};
pub use verdict::{Decision, Distribution, Finding, GivenOpinion, Quote, RuleVerdict, Verdict};
