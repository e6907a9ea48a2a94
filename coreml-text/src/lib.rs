//! Text models through `coreml-client`: generation with or without a key-value cache, constrained output, embeddings.
//!
//! A [`TextModel`] is a causal language model that a client has loaded, with its tokenizer. [`TextModel::generate`] gives a
//! [`TextStream`] of pieces as they are made; [`TextStream::complete`] waits for all of it. [`Sampling`] says how tokens are chosen,
//! [`Constraint`] which form the text must have, and [`TextModel::choose`] asks how likely each of a few answers is, by the model's
//! own probabilities.
//!
//! An [`Embedder`] is a sentence encoder with its tokenizer; [`Embedder::embed`] gives a text as a vector.
//!
//! # Layouts
//!
//! How a model is asked is found in its description:
//!
//! * **stateful**, as Apple's exports of Llama and Mistral: `inputIds` (int32 `[1, n]`), `causalMask` (`[1, 1, n, all]`), states,
//!   `logits`;
//! * **explicit caches**: inputs of fixed shape that outputs of like names replace, with positions or a mask;
//! * **no memory**: tokens in, logits out; padded on the right where the length is fixed.
//!
//! Anything else is an [`UnknownLayout`], which says what is missing.

#![forbid(unsafe_code)]

mod chat;
mod constraint;
mod embedding;
mod error;
mod generation;
mod layout;
mod model;
mod reader;
mod sampling;
mod stop;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use chat::{ChatTemplate, ChatTemplateError, Message, Role};
pub use constraint::{Constraint, ConstraintError};
pub use embedding::{Embedder, Embedding, Pooling};
pub use error::TextError;
pub use generation::{Completion, FinishReason, Generation, Piece, TextTimings};
pub use layout::UnknownLayout;
pub use model::{TextModel, TextStream};
pub use sampling::Sampling;
pub use tokenizer::{Tokenizer, TokenizerError};
