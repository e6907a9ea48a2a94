//! Safe, thread-confined access to Core ML models.
//!
//! Core ML hands out Objective-C objects that must not cross threads. This crate makes the compiler prove that they do not:
//!
//! * a [`Bridge`] is whoever can run models: Core ML on Apple platforms, the portable engine elsewhere, a double in a test;
//! * a [`CoreMlHandle`] owns a loaded model on the thread that loaded it, and is neither `Send` nor `Sync`;
//! * a [`ModelRef`] is a number that travels instead; each thread's registry says which handle it stands for there
//!   ([`register_model`], [`get_model_handle`]);
//! * a [`Tensor`], and every other [`Value`], owns its memory and is `Send + Sync + 'static`: a framework that keeps an input
//!   after a prediction has returned keeps the memory, not a dangling pointer.
//!
//! Calls block, but for [`CoreMlHandle::predict_async`] and [`Bridge::load_async`], whose futures stay on their thread.
//! `coreml-client` puts threads and queues on top, for async code.
//!
//! Two calls that block never meet on one native model: handles do not leave their thread, a call runs nothing that could
//! call back, and a [`State`] is borrowed mutably while a prediction uses it. A call that meets an asynchronous one is
//! answered [`Error::Busy`]. Inputs are checked against the [`ModelDescription`]
//! before they cross; errors name model, feature and expectation, and keep the other side's whole chain of causes.

mod bridge;
mod config;
mod crossing;
mod description;
mod dtype;
mod error;
mod features;
mod handle;
mod image;
mod layout;
mod log;
mod native;
#[cfg(feature = "ndarray")]
mod ndarray;
mod pending;
mod registry;
mod structure;
mod table;
mod tensor;
mod value;

pub use bridge::{BackendInfo, Bridge, Device};
pub use config::{ComputeUnits, Config, ReshapeFrequency, Specialization};
pub use description::{
    ClassLabel, Color, DictionarySpec, Feature, FeatureKind, Flexibility, ImageSpec, Metadata, Mismatch,
    ModelDescription, Range, SequenceSpec, TensorSpec,
};
pub use dtype::{Dtype, Element};
pub use error::{BridgeError, Error, NativeError, Role, Status};
pub use features::{FeatureError, Features};
pub use half::f16;
pub use handle::{CoreMlHandle, PredictOptions, Prediction, State, Timings};
pub use image::{Image, ImageError, PixelFormat};
pub use log::LogLevel;
pub use pending::{PendingModel, PendingPrediction};
pub use registry::{ModelRef, get_model_handle, load_model, register_model, register_model_as, unload_model};
pub use structure::{Block, ModelStructure, NamedValue, Op, OpDevices};
pub use tensor::{Elements, Tensor, TensorError};
pub use value::{Dictionary, KeyKind, Kind, Sequence, Value};
