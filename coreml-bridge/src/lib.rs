//! Safe, thread-confined access to Core ML models.

mod config;
mod description;
mod dtype;
mod error;
mod features;
mod image;
mod layout;
mod tensor;
mod value;

pub use config::{ComputeUnits, Config};
pub use description::{
    ClassLabel, Color, DictionarySpec, Feature, FeatureKind, Flexibility, ImageSpec, Metadata, Mismatch,
    ModelDescription, Range, SequenceSpec, TensorSpec,
};
pub use dtype::{Dtype, Element};
pub use error::{BridgeError, Error, NativeError, Role, Status};
pub use features::{FeatureError, Features};
pub use half::f16;
pub use image::{Image, ImageError, PixelFormat};
pub use tensor::{Elements, Tensor, TensorError};
pub use value::{Dictionary, KeyKind, Kind, Sequence, Value};
