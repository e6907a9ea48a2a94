//! Neural networks (`NeuralNetwork`, `…Classifier`, `…Regressor`), lowered layer by layer to the ops of ML programs.

use coreml_proto::proto::model::Type as ModelType;

use crate::decode::{DecodeError, mil::Decoded};
use crate::description::ModelDescription;

/// The program that a model of another kind than an ML program stands for.
pub(crate) fn decode(
    kind: &ModelType,
    specification_version: i32,
    description: &ModelDescription,
) -> Result<Decoded, DecodeError> {
    let _ = (kind, specification_version, description);
    Err(DecodeError::Unsupported("this kind of model".into()))
}
