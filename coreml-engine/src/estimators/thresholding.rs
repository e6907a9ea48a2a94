//! Class confidence thresholding (`ClassConfidenceThresholding.proto`).

use coreml_proto::proto as spec;

use super::{Answer, Built, Compute, Features, array, numbers};
use crate::decode::DecodeError;
use crate::description::{FeatureKind, ModelDescription};
use crate::error::KernelError;

/// Confidences, and whether each class is taken, which all are: thresholds are the app's to choose, from the curves that the
/// file carries for it.
struct Thresholding;

pub(super) fn thresholding(
    model: &spec::ClassConfidenceThresholding,
    description: &ModelDescription,
) -> Result<Built, DecodeError> {
    let spec::ClassConfidenceThresholding { precision_recall_curves: curves } = model;
    let corrupt = |reason: String| DecodeError::corrupt("class confidence thresholding", reason);
    let classes = match &description.inputs[..] {
        [input] => match &input.kind {
            FeatureKind::Tensor { tensor } if tensor.flexible.is_none() => {
                crate::types::element_count(&tensor.shape).filter(|_| !tensor.shape.is_empty())
            }
            _ => None,
        },
        inputs => return Err(corrupt(format!("{} inputs, expected 1", inputs.len()))),
    };
    if let Some(classes) = classes.filter(|&classes| !curves.is_empty() && curves.len() != classes) {
        return Err(corrupt(format!("{} curves for {classes} classes", curves.len())));
    }
    for (class, curve) in curves.iter().enumerate() {
        let spec::PrecisionRecallCurve {
            precision_values,
            precision_confidence_thresholds,
            recall_values,
            recall_confidence_thresholds,
        } = curve;
        for (what, values, thresholds) in [
            ("precision", precision_values, precision_confidence_thresholds),
            ("recall", recall_values, recall_confidence_thresholds),
        ] {
            let [values, thresholds] =
                [values, thresholds].map(|list| list.as_ref().map_or(&[][..], |list| &list.vector));
            if values.len() != thresholds.len() {
                let reason = format!("{} values and {} thresholds", values.len(), thresholds.len());
                return Err(corrupt(format!("the {what} of class {class} has {reason}")));
            }
            if values.iter().chain(thresholds).any(|x| !x.is_finite() || *x < 0.0) {
                return Err(corrupt(format!("the {what} of class {class} has what is no number from 0 on")));
            }
        }
    }
    Ok(Built::one(Thresholding))
}

impl Compute for Thresholding {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let input = features.only()?.ok_or_else(|| KernelError::value("the input is missing"))?;
        let mut rows = numbers(&input)?;
        let classes = rows.len();
        rows.resize(classes.saturating_mul(2), 1.0);
        Ok(Answer::One(array(vec![2, classes], rows)))
    }
}
