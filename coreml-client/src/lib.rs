//! Core ML models for async Rust.
//!
//! Core ML hands out objects that must stay on one thread, and its calls block. A [`ModelClient`] is `Send + Sync` and
//! its calls are futures: each model has a queue and a few inference threads, and each thread owns an instance of the model
//! that never leaves it. What travels is a [`ModelRef`], a number.
//! # Basic usage
//!
//! ```
//! use coreml_client::{Error, Features, InferenceRequest, ModelClient, Tensor, load_model};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
//! // Load the model, on any thread. (In async code `load_model_async(path).await?` does not block.)
//! let model_ref = load_model(path)?;
//!
//! // Create a client: cheap, `Send + Sync + Clone`.
//! let client = ModelClient::new();
//!
//! // Use it in an async context.
//! let image = Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?;
//! let request = InferenceRequest::new(model_ref, Features::new().with("image", image));
//! let result = client.enqueue_inference(request).await?;
//!
//! let probabilities = result.outputs.tensor("probabilities")?.to_vec::<f32>()?;
//! assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-3);
//! # Ok(())
//! # }
//! ```
//!
//! # Coming from direct use of Core ML
//!
//! Before, the handle in the future made it `!Send`, and `tokio::spawn` refused it:
//!
//! ```compile_fail
//! # use coreml_client::{Bridge, Config, Features};
//! # async fn input() -> Features { Features::new() }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let handle = Bridge::platform().load("model.mlmodel", &Config::default())?;
//! tokio::spawn(async move { handle.predict(&input().await) }); // `CoreMlHandle` cannot be sent between threads
//! # Ok(())
//! # }
//! ```
//!
//! After, a number travels in its place:
//!
//! ```
//! # use coreml_client::{Features, InferenceRequest, ModelClient, Tensor, load_model};
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlpackage");
//! # let input_data = Features::new().with("image", Tensor::from_vec(&[1, 1, 8, 8], vec![0.5_f32; 64])?);
//! let model_ref = load_model(path)?;
//! let client = ModelClient::new();
//! let task = tokio::spawn(async move {
//!     client.enqueue_inference(InferenceRequest::new(model_ref, input_data)).await
//! });
//! let result = task.await??;
//! # assert!(result.outputs.get("probabilities").is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! * Every future resolves, whatever dies: a panic costs the one request that it concerns, a stuck prediction costs its
//!   thread, a [deadline](InferenceRequest::deadline) is kept even if all threads are stuck.
//! * Dropping a future gives its request up; what has not started never will, and its inputs are freed at once.
//! * Memory is bounded: a queue takes so many requests and bytes, and then callers wait, or are
//!   [refused](ModelClient::try_enqueue).
//! * [Priorities](Priority) do not starve anybody.
//! * Nothing blocks a thread of the executor, and no particular executor is needed.
//!
//! A crash inside Core ML is beyond this: it takes the process with it.
//!
//! # Everything on one page
//!
//! | to | there is |
//! |---|---|
//! | make a client | [`ModelClient::new`] for the process's runtime, [`ModelClient::builder`] ([`ModelClientBuilder`]) for one with limits of its own |
//! | load a model | [`load`](ModelClient::load) ([`Load`], [`LoadStage`], [`ModelSource`]), in short [`load_model`], [`load_model_async`] and their forms [`with`](ModelClient::load_model_with_async) a [`Config`]; [`unload`](ModelClient::unload), [`description`](ModelClient::description) |
//! | ask it | [`enqueue_inference`](ModelClient::enqueue_inference) ([`InferenceRequest`] in, [`Inference`] to await, [`InferenceResult`] out, or a [`Request`] of another crate's); [`Priority`], [`deadline`](InferenceRequest::deadline) |
//! | ask without waiting for room | [`try_enqueue`](ModelClient::try_enqueue) ([`Refused`]), [`try_send`](ModelClient::try_send) ([`InferenceMessage`]) |
//! | take a place first, build the inputs then | [`reserve`](ModelClient::reserve) ([`Permit`]) |
//! | make several predictions in a row, or many in one | [`Procedure`]; [`Batching`] |
//! | replace a model under load | [`swap`](ModelClient::swap) ([`Swap`], [`Trial`]), [`rollback`](ModelClient::rollback) |
//! | bound memory | [`memory_budget`](ModelClientBuilder::memory_budget), [`pin`](ModelClient::pin) and [`load_pinned`](ModelClient::load_pinned) ([`Pinned`]), [`set_memory`](ModelClient::set_memory), [`set_memory_pressure`](ModelClient::set_memory_pressure) ([`MemoryPressure`]) or [`follow_memory_pressure`](ModelClientBuilder::follow_memory_pressure) |
//! | bound what runs at once | [`threads`](ModelClientBuilder::threads), [`max_concurrent`](ModelClientBuilder::max_concurrent) ([`ComputeUnit`]), [`serialize`](ModelClientBuilder::serialize) ([`Serial`]) |
//! | let crates above know a model by its reference | [`attach`](ModelClient::attach), [`attached`](ModelClient::attached) |
//! | compile once | [`compiled_cache`](ModelClientBuilder::compiled_cache) ([`CompiledCache`]) |
//! | watch | [`stats`](ModelClient::stats) ([`Stats`], [`ModelStats`], [`WorkerStats`], [`Outcomes`], [`Latencies`], [`ModelCounts`]); features `metrics`, `tracing`, `serde`, and `monitor` for `coreml top` |
//! | stop | [`shutdown`](ModelClient::shutdown) ([`Shutdown`], [`Report`]) |
//! | know what went wrong | [`Error`], and [`Stage`] for a deadline |
#![forbid(unsafe_code)]

mod backend;
mod batch;
mod client;
mod compiled;
mod error;
mod files;
mod inference;
mod limits;
mod load;
mod memory;
#[cfg(feature = "monitor")]
pub mod monitor;
mod mutants;
mod permit;
mod priority;
mod queue;
mod request;
mod runtime;
mod shutdown;
mod source;
mod stats;
mod swap;
mod telemetry;
#[cfg(test)]
#[cfg(not(coreml_loom))]
mod tests;
mod timer;
mod tokens;
mod version;

pub use client::{ModelClient, ModelClientBuilder, load_model, load_model_async};
pub use compiled::CompiledCache;
#[doc(no_inline)]
pub use coreml_bridge::{
    Bridge, ComputeUnits, Config, Dtype, Features, Image, ModelDescription, ModelRef, Tensor, Value,
};
pub use error::{Error, Refused, Result, Stage};
pub use inference::Inference;
pub(crate) use limits::Limits;
pub use load::Load;
pub use memory::MemoryPressure;
pub(crate) use mutants::mutant;
pub use permit::{Permit, Pinned};
pub use priority::Priority;
pub use request::{
    InferenceMessage, InferenceRequest, InferenceResult, InferenceTimings, Procedure, Request,
};
pub use shutdown::{Report, Shutdown};
pub use source::{Batching, LoadStage, ModelSource};
pub use stats::{Latencies, ModelCounts, ModelStats, Outcomes, Stats, WorkerState, WorkerStats};
pub use swap::{Swap, Trial};
pub use tokens::{ComputeUnit, Serial};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
