//! What can go wrong, one enum per culprit: the file ([`LoadError`]), one op of it ([`OpError`]), the caller's inputs
//! and the run ([`PredictError`]), one kernel at work ([`KernelError`]).

use std::io;
use std::path::PathBuf;

/// A model could not be loaded. Nothing was loaded, nothing already loaded is harmed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file of the model could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is neither an `.mlmodel` file nor an `.mlpackage` or `.mlmodelc` folder.
    #[error("{} is not a Core ML model: {reason}", path.display())]
    NotAModel {
        /// What was asked for.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The package's manifest is damaged.
    #[error("{} is not a package manifest: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a compiled model (`.mlmodelc`) is damaged.
    #[error("{} is damaged", path.display())]
    Compiled {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        source: crate::compiled::CompiledError,
    },
    /// The specification is not the protobuf message it should be.
    #[error("the specification of {model} does not decode")]
    Decode {
        /// The model's path.
        model: String,
        /// The decoder's words.
        source: prost::DecodeError,
    },
    /// The specification decodes, but says something that cannot be.
    #[error("{model} is damaged: {at}: {reason}")]
    Corrupt {
        /// The model's path.
        model: String,
        /// Where in it.
        at: String,
        /// What is wrong.
        reason: String,
    },
    /// A kind of model, or a feature of one, that this engine does not run.
    #[error("{model}: {what} is not supported")]
    Unsupported {
        /// The model's path.
        model: String,
        /// What.
        what: String,
    },
    /// The model has no function of that name.
    #[error("{model} has no function `{function}`; it has {}", known.join(", "))]
    NoFunction {
        /// The model's path.
        model: String,
        /// The name asked for.
        function: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// One op or layer cannot be prepared.
    #[error("{model}: op `{op}` that makes `{output}` cannot be prepared")]
    Op {
        /// The model's path.
        model: String,
        /// The op's or layer's type.
        op: String,
        /// The name of its first output.
        output: String,
        /// Why.
        #[source]
        source: OpError,
    },
}

/// One op (or neural-network layer) cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// No such op in the opset.
    #[error("unknown op in opset {opset}")]
    Unknown {
        /// The opset of the function.
        opset: String,
    },
    /// A required parameter is absent.
    #[error("parameter `{0}` is missing")]
    Missing(&'static str),
    /// A parameter that this op does not have in the opset.
    #[error("unknown parameter `{parameter}` in opset {opset}")]
    UnknownParameter {
        /// Its name.
        parameter: String,
        /// The opset of the function.
        opset: String,
    },
    /// A parameter that must be known at load is computed by the program.
    #[error("parameter `{0}` must be a constant")]
    NotConstant(&'static str),
    /// A parameter has the wrong type, rank or value.
    #[error("parameter `{parameter}`: {reason}")]
    Parameter {
        /// Its name.
        parameter: &'static str,
        /// What is wrong, with what was expected and found.
        reason: String,
    },
    /// Inputs or outputs do not go together.
    #[error("{0}")]
    Invalid(String),
    /// The shapes of a layer's inputs do not go together.
    #[error("{0}")]
    Shapes(String),
    /// Understood, but not implemented: a gap of ours.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A custom layer of a class that nobody registered; see [`CustomLayers`](crate::CustomLayers).
    #[error("the custom layer `{layer}` is of class `{class}`, which is not registered")]
    Unregistered {
        /// The class.
        class: String,
        /// The layer.
        layer: String,
    },
    /// A custom layer refused its parameters or the shapes of its inputs.
    #[error("the custom layer of class `{class}` refuses")]
    Custom {
        /// The class.
        class: String,
        /// What it said.
        source: crate::CustomError,
    },
    /// Evaluating the op on its constants failed.
    #[error("on its constants")]
    Fold(#[source] KernelError),
}

/// A prediction failed. The model is as usable as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictError {
    /// A required input was not given.
    #[error("{model}: input `{feature}` is missing; expected {expected}")]
    MissingInput {
        /// The model's path.
        model: String,
        /// The feature.
        feature: String,
        /// Its type.
        expected: String,
    },
    /// An input or output of that name does not exist.
    #[error("{model} has no {what} `{feature}`; it has {}", known.join(", "))]
    UnknownFeature {
        /// The model's path.
        model: String,
        /// `input`, `output` or `state`.
        what: &'static str,
        /// The name given.
        feature: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// An input has the wrong kind, dtype, rank or shape.
    #[error("{model}: input `{feature}`: expected {expected}, found {found}")]
    WrongInput {
        /// The model's path.
        model: String,
        /// The feature.
        feature: String,
        /// What the model takes.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The model has states and none was given, or a state of another model was.
    #[error("{model}: {reason}")]
    State {
        /// The model's path.
        model: String,
        /// Why.
        reason: String,
    },
    /// A network that is planned for each shape of its inputs cannot be planned for these.
    #[error("{model} cannot be planned for inputs of the shapes {shapes:?}")]
    Plan {
        /// The model's path.
        model: String,
        /// Of each flexible input that is given, in the order of the description.
        shapes: Vec<Vec<usize>>,
        /// Why.
        source: Box<LoadError>,
    },
    /// An op failed.
    #[error("{model}: op `{op}` that makes `{output}` failed")]
    Op {
        /// The model's path.
        model: String,
        /// The op's type.
        op: String,
        /// The name of its first output.
        output: String,
        /// Why.
        #[source]
        source: KernelError,
    },
}

/// A kernel refused what it was given. A wrong answer is worse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Shapes do not go together.
    #[error("{0}")]
    Shape(String),
    /// A value (an index, a count, an axis) is out of its range.
    #[error("{0}")]
    Value(String),
    /// A value is of another type than the program declares.
    #[error("expected {expected}, found {found}")]
    Type {
        /// The declared type.
        expected: String,
        /// What came.
        found: String,
    },
    /// A tensor would be larger than [`Limits`](crate::Limits) allow.
    #[error("with a tensor of shape {shape:?} the model is over its limit of {limit} elements")]
    TooLarge {
        /// Its shape.
        shape: Vec<usize>,
        /// The limit.
        limit: usize,
    },
    /// The loops of one prediction ran more often than [`Limits`](crate::Limits) allow.
    #[error("the model's loops are over their limit of {limit} iterations")]
    Endless {
        /// The limit.
        limit: usize,
    },
    /// An op in a block of the op failed.
    #[error("op `{op}` that makes `{output}` failed")]
    Inner {
        /// The inner op's type.
        op: String,
        /// The name of its first output.
        output: String,
        /// Why.
        source: Box<KernelError>,
    },
    /// A custom layer refused.
    #[error("the custom layer of class `{class}` refuses")]
    Custom {
        /// The class.
        class: String,
        /// What it said.
        source: crate::CustomError,
    },
    /// The arithmetic library refused.
    #[error("arithmetic: {0}")]
    Library(String),
}

impl KernelError {
    /// A shape error with a formatted text.
    pub(crate) fn shape(text: impl Into<String>) -> Self {
        Self::Shape(text.into())
    }

    /// A value error with a formatted text.
    pub(crate) fn value(text: impl Into<String>) -> Self {
        Self::Value(text.into())
    }

    /// What the arithmetic library said.
    pub(crate) fn library(error: impl std::fmt::Debug) -> Self {
        Self::Library(format!("{error:?}"))
    }
}
