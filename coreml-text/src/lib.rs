//! Text models through `coreml-client`: generation with or without a key-value cache, constrained output, embeddings.
//!
//! [`load_model`] loads a causal language model with its tokenizer, and a [`PromptRequest`] asks a client to go on with a prompt:
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/handbook/handbook.mlpackage");
//! use coreml_client::ModelClient;
//! use coreml_text::{PromptRequest, load_model_async};
//!
//! let model_ref = load_model_async(path).await?;
//! let client = ModelClient::new();
//! let result = client.enqueue_inference(PromptRequest::new(model_ref, "Hello world")).await?;
//! println!("{} ({:?})", result.text, result.finish);
//! # Ok::<(), coreml_text::TextError>(())
//! # }).unwrap();
//! ```
//!
//! A [`TextModel`] is such a model for those who want more: [`TextModel::generate`] gives a
//! [`TextStream`] of pieces as they are made; [`TextStream::complete`] waits for all of it. [`Sampling`] says how tokens are chosen,
//! [`Constraint`] which form the text must have, and [`TextModel::choose`] asks how likely each of a few answers is, by the model's
//! own probabilities. A [`Session`] is a text in turns, which can be forked; [`TextStats`] tells what a model has done.
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
mod load;
mod model;
mod prompt;
mod question;
mod reader;
mod sampling;
mod session;
mod stats;
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
pub use load::{load_model, load_model_async};
pub use model::{TextModel, TextStream};
pub use prompt::PromptRequest;
pub use sampling::Sampling;
pub use session::Session;
pub use stats::TextStats;
pub use tokenizer::{Tokenizer, TokenizerError};
