//! Custom layers: what a model leaves to code of its user, by the name of a class.
//!
//! Core ML asks the app for a class that conforms to `MLCustomLayer`; this engine asks the [`CustomLayers`] that a model is
//! loaded with. The steps are the same: the layer is made from the parameters and weights in the file, says the shapes of its
//! outputs, and computes them.
//!
//! ```
//! use coreml_engine::{CustomLayer, CustomLayers, CustomSpec, CustomTensor, LoadOptions};
//!
//! /// `y = x ^ exponent`
//! struct Power(f32);
//!
//! impl CustomLayer for Power {
//!     fn output_shapes(
//!         &self,
//!         inputs: &[Vec<Option<usize>>],
//!     ) -> Result<Vec<Vec<Option<usize>>>, coreml_engine::CustomError> {
//!         Ok(inputs.to_vec())
//!     }
//!
//!     fn evaluate(
//!         &self,
//!         inputs: &[CustomTensor<'_>],
//!         outputs: &mut [&mut [f32]],
//!     ) -> Result<(), coreml_engine::CustomError> {
//!         for (y, x) in outputs[0].iter_mut().zip(inputs[0].data) {
//!             *y = x.powf(self.0);
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let layers = CustomLayers::new().with("Power", |spec: &CustomSpec| {
//!     let exponent = spec.parameters.get("exponent").and_then(|p| p.as_f64()).ok_or("no exponent")?;
//!     Ok(Box::new(Power(exponent as f32)))
//! });
//! let options = LoadOptions::default().custom_layers(&layers);
//! # let _ = options;
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// Why a custom layer refused.
pub type CustomError = Box<dyn std::error::Error + Send + Sync>;

/// A layer that the user of the engine supplies.
///
/// One is made per layer of a model, and all sessions of the model share it; of a network that is planned for each shape of its
/// inputs, one per layer and shape, also while it predicts. It must not panic: a panic goes through the
/// engine to the caller of the prediction.
pub trait CustomLayer: Send + Sync {
    /// The shapes of the outputs for inputs of these shapes, `None` for a dimension that is not known. Asked when the
    /// model is planned with what is known then, and before each evaluation with all of it, when all of the answer must be known.
    ///
    /// # Errors
    /// If the layer does not take such inputs.
    fn output_shapes(&self, inputs: &[Vec<Option<usize>>]) -> Result<Vec<Vec<Option<usize>>>, CustomError>;

    /// Computes the outputs, which are of the shapes that [`output_shapes`](Self::output_shapes) said, dense, row-major, and
    /// zero. May run on several threads at once, for several sessions.
    ///
    /// # Errors
    /// If it cannot; the prediction fails with it.
    fn evaluate(&self, inputs: &[CustomTensor<'_>], outputs: &mut [&mut [f32]]) -> Result<(), CustomError>;
}

/// An input of a custom layer: dense, row-major.
#[derive(Clone, Copy, Debug)]
pub struct CustomTensor<'a> {
    /// The shape that the layer sees; in the older array mapping, of rank 5.
    pub shape: &'a [usize],
    /// The elements.
    pub data: &'a [f32],
}

/// A parameter of a custom layer in a model.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "they are what they hold")]
pub enum CustomParameter {
    Double(f64),
    String(String),
    Int(i64),
    Bool(bool),
}

impl CustomParameter {
    /// The number, of either kind.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Double(x) => Some(*x),
            Self::Int(x) => Some(*x as f64),
            Self::String(_) | Self::Bool(_) => None,
        }
    }
}

/// Weights of a custom layer in a model.
#[derive(Clone, Debug, PartialEq)]
pub enum CustomWeights {
    /// In single or half precision.
    Floats(Vec<f32>),
    /// Of a format that only the layer knows.
    Bytes(Vec<u8>),
}

/// What a model says of one of its custom layers.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CustomSpec {
    /// The name of the layer.
    pub name: String,
    /// The class that computes it.
    pub class: String,
    /// For people.
    pub description: String,
    /// Parameters by name.
    pub parameters: BTreeMap<String, CustomParameter>,
    /// Weights in the order of the file.
    pub weights: Vec<CustomWeights>,
}

type Make = dyn Fn(&CustomSpec) -> Result<Box<dyn CustomLayer>, CustomError> + Send + Sync;

/// The classes of custom layers that models may ask for.
#[derive(Clone, Default)]
pub struct CustomLayers {
    classes: HashMap<String, Arc<Make>>,
}

impl CustomLayers {
    /// No classes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a class: `make` makes a layer of it as a model describes it. A class of that name that is there is replaced.
    #[must_use]
    pub fn with(
        mut self,
        class: impl Into<String>,
        make: impl Fn(&CustomSpec) -> Result<Box<dyn CustomLayer>, CustomError> + Send + Sync + 'static,
    ) -> Self {
        self.classes.insert(class.into(), Arc::new(make));
        self
    }

    /// The layer that a model describes; `None` if nobody registered its class.
    pub(crate) fn make(&self, spec: &CustomSpec) -> Option<Result<Box<dyn CustomLayer>, CustomError>> {
        self.classes.get(&spec.class).map(|make| make(spec))
    }
}

impl fmt::Debug for CustomLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.classes.keys()).finish()
    }
}

/// A custom layer of a program.
#[derive(Clone)]
pub(crate) struct Custom {
    pub(crate) class: Arc<str>,
    pub(crate) layer: Arc<dyn CustomLayer>,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Custom").field(&self.class).finish()
    }
}
