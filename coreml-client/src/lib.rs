//! Core ML models for async Rust.
//!
//! Core ML hands out objects that must stay on one thread, and its calls block. A [`ModelClient`] is `Send + Sync` and
//! its calls are futures: each model has a queue and a few inference threads, and each thread owns an instance of the model
//! that never leaves it. What travels is a [`ModelRef`], a number.
//!
#![cfg_attr(doctest, doc = "")]
#![forbid(unsafe_code)]

mod backend;
mod client;
mod error;
mod inference;
mod limits;
mod priority;
mod queue;
mod request;
mod runtime;
mod shutdown;
mod stats;
#[cfg(test)]
mod tests;
mod timer;
mod version;

pub use client::{ModelClient, ModelClientBuilder, load_model, load_model_async};
#[doc(no_inline)]
pub use coreml_bridge::{
    Bridge, ComputeUnits, Config, Dtype, Features, Image, ModelDescription, ModelRef, Tensor, Value,
};
pub use error::{Error, Refused, Result, Stage};
pub use inference::Inference;
pub(crate) use limits::Limits;
pub use priority::Priority;
pub use request::{InferenceMessage, InferenceRequest, InferenceResult, InferenceTimings};
pub use shutdown::{Report, Shutdown};
pub use stats::{Latencies, ModelStats, Outcomes, Stats, WorkerState, WorkerStats};
