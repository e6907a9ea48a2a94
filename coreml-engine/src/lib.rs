//! Runs Core ML models on the CPU, in safe Rust, on any platform.
//!
//! The way of a model through this crate:
//!
//! 1. **package**: find the files of an `.mlmodel`, `.mlpackage` or `.mlmodelc` ([`compiled`]); read the weight file
//!    ([`weights`]).
//! 2. **decode**: protobuf to a typed program in SSA form (`ir`). Neural networks are lowered to the same program.
//! 3. **plan**: build every op (which validates it), fold constants, drop dead ops, give every value a place.
//! 4. **run**: kernel after kernel; memory comes from a pool that the next prediction uses again.
//!
//! What Core ML means by an op is ours; the arithmetic is that of the `rten` family. One op is one entry in one file
//! ([`ops`]). An unknown op, parameter or layer is an error at load that names it, never a wrong answer. Nothing here
//! is unsafe, and nothing knows a C type.
#![forbid(unsafe_code)]

mod bytes;
pub mod compiled;
mod convert;
mod custom;
mod decode;
pub mod description;
mod error;
pub mod estimators;
mod feature;
mod ir;
mod kernels;
mod linked;
mod mil_text;
mod model;
pub mod nn;
pub mod ops;
pub mod package;
mod plan;
mod shaped;
pub mod structure;
mod threads;
mod types;
mod value;
pub mod weights;

pub use bytes::SharedBytes;
pub use custom::{
    CustomError, CustomLayer, CustomLayers, CustomParameter, CustomSpec, CustomTensor, CustomWeights,
};
pub use error::{KernelError, LoadError, OpError, PredictError};
pub use feature::{Array, ArrayRef, Elements, ImageRef, Input, Key, Output, PixelFormat};
pub use ir::Opset;
pub use model::{Limits, LoadOptions, Model, Session, State, WeakModel};
pub use types::{DType, TensorType};
