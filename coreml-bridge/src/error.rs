//! What can go wrong between Rust and a model.

use core::fmt;
use std::{path::PathBuf, sync::Arc};

use coreml_sys::{
    CML_BUSY, CML_CANCELLED, CML_CORRUPT, CML_FOREIGN_EXCEPTION, CML_FRAMEWORK, CML_INVALID_ARGUMENT,
    CML_NOT_FOUND, CML_OBJC_EXCEPTION, CML_OUT_OF_MEMORY, CML_TYPE_MISMATCH, CML_UNSUPPORTED, CmlStatus,
};
use thiserror::Error;

use crate::{Dtype, KeyKind, Kind, Mismatch, PixelFormat, Range, TensorError};

/// What became of a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The call itself is wrong.
    InvalidArgument,
    /// There is no such file, function, feature or state.
    NotFound,
    /// Understood, but not possible with this bridge or this OS.
    Unsupported,
    /// The framework (or the engine) reported an error.
    Framework,
    /// An Objective-C exception was caught.
    ObjcException,
    /// Something else was thrown and caught, a Rust panic included.
    ForeignException,
    /// There is not enough memory.
    OutOfMemory,
    /// The call was cancelled.
    Cancelled,
    /// Two calls met on a handle that takes one at a time; this one did nothing.
    Busy,
    /// A value has the wrong kind, element type, rank or shape.
    TypeMismatch,
    /// The model file is damaged, or not a model.
    Corrupt,
    /// A number that this version does not know.
    Unknown(i32),
}

impl Status {
    /// The status that a number other than `CML_OK` stands for.
    #[must_use]
    pub const fn from_native(number: CmlStatus) -> Status {
        match number {
            CML_INVALID_ARGUMENT => Status::InvalidArgument,
            CML_NOT_FOUND => Status::NotFound,
            CML_UNSUPPORTED => Status::Unsupported,
            CML_FRAMEWORK => Status::Framework,
            CML_OBJC_EXCEPTION => Status::ObjcException,
            CML_FOREIGN_EXCEPTION => Status::ForeignException,
            CML_OUT_OF_MEMORY => Status::OutOfMemory,
            CML_CANCELLED => Status::Cancelled,
            CML_BUSY => Status::Busy,
            CML_TYPE_MISMATCH => Status::TypeMismatch,
            CML_CORRUPT => Status::Corrupt,
            other => Status::Unknown(other),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::InvalidArgument => "invalid argument",
            Status::NotFound => "not found",
            Status::Unsupported => "not supported",
            Status::Framework => "reported by the framework",
            Status::ObjcException => "Objective-C exception",
            Status::ForeignException => "exception or panic",
            Status::OutOfMemory => "out of memory",
            Status::Cancelled => "cancelled",
            Status::Busy => "busy",
            Status::TypeMismatch => "type mismatch",
            Status::Corrupt => "damaged",
            Status::Unknown(number) => return write!(f, "status {number}"),
        })
    }
}

/// An error as the other side of the table reported it, with what caused it.
///
/// [`source`](core::error::Error::source) walks the chain: for Core ML, the underlying errors of an `NSError`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NativeError {
    /// What became of the call.
    pub status: Status,
    /// The number within the domain.
    pub code: i64,
    /// Who numbers the errors, for example `com.apple.CoreML`; empty if the bridge gave no details.
    pub domain: Box<str>,
    /// What happened.
    pub message: Box<str>,
    /// Why, if that is known.
    pub reason: Option<Box<str>>,
    /// What caused it.
    pub source: Option<Box<NativeError>>,
}

impl fmt::Display for NativeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        if self.domain.is_empty() {
            write!(f, " ({})", self.status)
        } else {
            write!(f, " ({} {}, {})", self.domain, self.code, self.status)
        }
    }
}

impl core::error::Error for NativeError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Why a table cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// There is no table: this bridge is not available here.
    #[error("there is no bridge here: its table is null")]
    Null,
    /// The table keeps another contract.
    #[error("the bridge's table has version {found}, not {expected}")]
    Version {
        /// The version that this crate was made for.
        expected: u32,
        /// The table's.
        found: u32,
    },
    /// The table is shorter than the contract that it claims to keep.
    #[error("the bridge's table has {found} bytes, fewer than {expected}")]
    Size {
        /// The size that this crate was made for.
        expected: usize,
        /// The table's.
        found: usize,
    },
    /// A slot is not filled.
    #[error("the slot `{slot}` of the bridge's table is null")]
    Slot {
        /// The slot's name.
        slot: &'static str,
    },
}

/// What went wrong with a model, and where. Names the model by its path, the feature, and what was expected of it.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The bridge does not change who is told of its messages.
    #[error("the bridge keeps its log")]
    Log {
        /// What the other side says.
        source: NativeError,
    },
    /// The bridge does not say what it is.
    #[error("the bridge cannot describe itself")]
    Info {
        /// What the other side says.
        source: NativeError,
    },
    /// A path cannot cross the table.
    #[error("the path {path:?} is not UTF-8")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A model cannot be compiled.
    #[error("cannot compile `{path}`")]
    Compile {
        /// The model's source.
        path: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// A model cannot be loaded.
    #[error("cannot load `{path}`")]
    Load {
        /// The model's path.
        path: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// A loaded model does not say what its features are.
    #[error("`{model}` cannot be described")]
    Describe {
        /// The model's path.
        model: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// What a model, or the bridge, says of itself cannot be understood.
    #[error("the description of `{subject}` is not understood")]
    Description {
        /// The model's path, or "the bridge".
        subject: Arc<str>,
        /// What is wrong with the JSON.
        source: Arc<serde_json::Error>,
    },
    /// A prediction failed.
    #[error("prediction with `{model}` failed")]
    Predict {
        /// The model's path.
        model: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// The rows of a batch must give the same features.
    #[error("row {row} of a batch for `{model}` does not give the features of row 0: {features:?}")]
    UnevenBatch {
        /// The model's path.
        model: Arc<str>,
        /// The first row that differs.
        row: usize,
        /// What row 0 gives.
        features: Vec<String>,
    },
    /// A value cannot cross the table.
    #[error("the value of `{feature}` cannot be passed between Rust and `{model}`")]
    Value {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// An output, or a state, is not a tensor that can be.
    #[error("`{feature}` of `{model}` is not a valid tensor")]
    Tensor {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// What is wrong with it.
        source: TensorError,
    },
    /// A state cannot be made, read or written.
    #[error("the state of `{model}` cannot be used")]
    State {
        /// The model's path.
        model: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// The bridge, or the OS, cannot do what was asked.
    #[error("`{model}`: not supported here")]
    Unsupported {
        /// The model's path.
        model: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// Two calls met on one native model or state. The types of this crate do not let that happen within one thread.
    #[error("`{model}` is busy with another call")]
    Busy {
        /// The model's path.
        model: Arc<str>,
        /// What the other side says.
        source: NativeError,
    },
    /// An input that the model needs is not there.
    #[error("`{model}` needs the input `{feature}`: {expected}")]
    MissingInput {
        /// The model's path.
        model: Arc<str>,
        /// The input's name.
        feature: Arc<str>,
        /// What it takes.
        expected: String,
    },
    /// The model has no feature (input, output or state) of this name.
    #[error("`{model}` has no {role} `{feature}`, only {known:?}")]
    UnknownFeature {
        /// The model's path.
        model: Arc<str>,
        /// Which features were searched.
        role: Role,
        /// The name.
        feature: Arc<str>,
        /// The names there are.
        known: Vec<String>,
    },
    /// A value is of another kind than the feature.
    #[error("`{feature}` of `{model}` is of kind {expected}, not {found}")]
    WrongKind {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// The feature's kind.
        expected: Kind,
        /// The value's.
        found: Kind,
    },
    /// A tensor has another element type than the feature. [`Tensor::cast`](crate::Tensor::cast) converts it.
    #[error("`{feature}` of `{model}` has elements of {expected}, not {found}")]
    WrongDtype {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// The feature's element type.
        expected: Dtype,
        /// The tensor's.
        found: Dtype,
    },
    /// A tensor, or an image (as `[height, width]`), has a shape that the feature does not take.
    #[error("`{feature}` of `{model}` has the shape {expected}, not {found:?}")]
    WrongShape {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// The shapes that the feature takes, in words.
        expected: String,
        /// The value's shape.
        found: Vec<usize>,
    },
    /// An image has another pixel format than the feature.
    #[error("`{feature}` of `{model}` has pixels in {expected}, not {found}")]
    WrongPixelFormat {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// The feature's format.
        expected: PixelFormat,
        /// The image's.
        found: PixelFormat,
    },
    /// A dictionary has other keys, or a sequence other elements, than the feature.
    #[error("`{feature}` of `{model}` has {expected} as key or element, not {found}")]
    WrongKey {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// The feature's kind of key.
        expected: KeyKind,
        /// The value's.
        found: KeyKind,
    },
    /// A sequence is too short or too long.
    #[error("`{feature}` of `{model}` has {expected} elements, not {found}")]
    WrongCount {
        /// The model's path.
        model: Arc<str>,
        /// The feature's name.
        feature: Arc<str>,
        /// How many there may be.
        expected: Range,
        /// How many there are.
        found: usize,
    },
    /// A state was used with a model that did not make it.
    #[error("the state given to `{model}` was made by `{owner}`, another instance")]
    ForeignState {
        /// The path of the model that was called.
        model: Arc<str>,
        /// The path of the model that made the state.
        owner: Arc<str>,
    },
    /// The other side of the table does not keep the contract: a defect of the bridge, not of its caller.
    #[error("the bridge breaks its contract in `{slot}`: {what}")]
    Contract {
        /// The slot of the table.
        slot: &'static str,
        /// What it did.
        what: &'static str,
    },
}

/// What a feature is to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It goes in.
    Input,
    /// It comes out.
    Output,
    /// It is remembered between predictions.
    State,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Input => "input",
            Role::Output => "output",
            Role::State => "state",
        })
    }
}

impl Error {
    /// What the other side of the table says, if the error comes from there.
    #[must_use]
    pub fn native(&self) -> Option<&NativeError> {
        match self {
            Error::Info { source }
            | Error::Log { source }
            | Error::Compile { source, .. }
            | Error::Load { source, .. }
            | Error::Describe { source, .. }
            | Error::Predict { source, .. }
            | Error::Value { source, .. }
            | Error::State { source, .. }
            | Error::Unsupported { source, .. }
            | Error::Busy { source, .. } => Some(source),
            Error::Path { .. }
            | Error::Description { .. }
            | Error::Tensor { .. }
            | Error::UnevenBatch { .. }
            | Error::MissingInput { .. }
            | Error::UnknownFeature { .. }
            | Error::WrongKind { .. }
            | Error::WrongDtype { .. }
            | Error::WrongShape { .. }
            | Error::WrongPixelFormat { .. }
            | Error::WrongKey { .. }
            | Error::WrongCount { .. }
            | Error::ForeignState { .. }
            | Error::Contract { .. } => None,
        }
    }

    /// What became of the call on the other side of the table, if the error comes from there.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        self.native().map(|native| native.status)
    }

    /// A value does not suit a feature of a model.
    pub(crate) fn mismatch(model: &Arc<str>, feature: &str, mismatch: Mismatch) -> Error {
        let (model, feature) = (Arc::clone(model), Arc::from(feature));
        match mismatch {
            Mismatch::Kind { expected, found } => Error::WrongKind { model, feature, expected, found },
            Mismatch::Dtype { expected, found } => Error::WrongDtype { model, feature, expected, found },
            Mismatch::Shape { expected, found } => Error::WrongShape { model, feature, expected, found },
            Mismatch::PixelFormat { expected, found } => {
                Error::WrongPixelFormat { model, feature, expected, found }
            }
            Mismatch::Key { expected, found } => Error::WrongKey { model, feature, expected, found },
            Mismatch::Count { expected, found } => Error::WrongCount { model, feature, expected, found },
        }
    }
}
