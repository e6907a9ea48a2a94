//! Generalized linear models (`GLMRegressor.proto`, `GLMClassifier.proto`).

use coreml_proto::proto as spec;
use spec::glm_classifier::{ClassEncoding, PostEvaluationTransform as ClassTransform};
use spec::glm_regressor::PostEvaluationTransform as Transform;

use super::{Answer, Built, Compute, Features, Makes, check_count, labels};
use crate::decode::DecodeError;
use crate::error::KernelError;

/// Rows of weights, an offset for each.
struct Rows {
    weights: Vec<Vec<f64>>,
    offsets: Vec<f64>,
}

impl Rows {
    fn new<'a>(rows: impl Iterator<Item = &'a Vec<f64>>, offsets: &[f64]) -> Result<Self, DecodeError> {
        let weights: Vec<Vec<f64>> = rows.cloned().collect();
        let width = weights.first().map_or(0, Vec::len);
        if width == 0 || weights.iter().any(|row| row.len() != width) {
            return Err(DecodeError::corrupt(
                "weights",
                "expected rows of the same length, at least one weight",
            ));
        }
        let offsets = if offsets.is_empty() { vec![0.0; weights.len()] } else { offsets.to_vec() };
        if offsets.len() != weights.len() {
            let reason = format!("{} offsets for {} rows of weights", offsets.len(), weights.len());
            return Err(DecodeError::corrupt("weights", reason));
        }
        Ok(Self { weights, offsets })
    }

    fn len(&self) -> usize {
        self.weights.len()
    }

    fn apply(&self, features: &Features<'_>) -> Result<Vec<f64>, KernelError> {
        let x = features.numbers()?;
        check_count(self.weights.first().map_or(0, Vec::len), x.len())?;
        let dot = |row: &[f64]| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
        Ok(self.weights.iter().zip(&self.offsets).map(|(row, offset)| dot(row) + offset).collect())
    }
}

/// The logistic function, without overflow.
pub(super) fn logistic(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// The distribution function of the normal distribution.
fn probit(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// Exponentials that sum to 1, without overflow.
pub(super) fn softmax(mut x: Vec<f64>) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
    x
}

struct Regressor {
    rows: Rows,
    transform: Transform,
}

pub(super) fn regressor(model: &spec::GlmRegressor) -> Result<Built, DecodeError> {
    let spec::GlmRegressor { weights, offset, post_evaluation_transform } = model;
    let transform = Transform::try_from(*post_evaluation_transform)
        .map_err(|_| DecodeError::corrupt("glmRegressor", "unknown post-evaluation transform"))?;
    let rows = Rows::new(weights.iter().map(|row| &row.value), offset)?;
    Ok(Built::one(Regressor { rows, transform }))
}

impl Compute for Regressor {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let mut values = self.rows.apply(features)?;
        match self.transform {
            Transform::NoTransform => {}
            Transform::Logit => values.iter_mut().for_each(|x| *x = logistic(*x)),
            Transform::Probit => values.iter_mut().for_each(|x| *x = probit(*x)),
        }
        Ok(Answer::numbers(values))
    }
}

/// How the rows become probabilities.
enum Classes {
    /// One row, which says how much the second of two classes is like.
    Two(ClassTransform),
    /// A row for every class but the first, whose score is 0.
    Reference,
    /// A row for every class, each against all others.
    OneVsRest,
}

struct Classifier {
    rows: Rows,
    classes: Classes,
}

pub(super) fn classifier(model: &spec::GlmClassifier) -> Result<Built, DecodeError> {
    let spec::GlmClassifier { weights, offset, post_evaluation_transform, class_encoding, class_labels } =
        model;
    let transform = ClassTransform::try_from(*post_evaluation_transform)
        .map_err(|_| DecodeError::corrupt("glmClassifier", "unknown post-evaluation transform"))?;
    let encoding = ClassEncoding::try_from(*class_encoding)
        .map_err(|_| DecodeError::corrupt("glmClassifier", "unknown class encoding"))?;
    let labels = labels!(class_labels, spec::glm_classifier::ClassLabels)?;
    let rows = Rows::new(weights.iter().map(|row| &row.value), offset)?;
    let classes = match (rows.len(), labels.len(), encoding, transform) {
        (1, 2, _, transform) => Classes::Two(transform),
        (_, _, _, ClassTransform::Probit) => {
            return Err(DecodeError::corrupt(
                "glmClassifier",
                "probit is for two classes with one row of weights",
            ));
        }
        (rows, labels, ClassEncoding::ReferenceClass, ClassTransform::Logit) if rows + 1 == labels => {
            Classes::Reference
        }
        (rows, labels, ClassEncoding::OneVsRest, ClassTransform::Logit) if rows == labels => {
            Classes::OneVsRest
        }
        (rows, labels, encoding, _) => {
            let reason =
                format!("{rows} rows of weights for {labels} labels with {}", encoding.as_str_name());
            return Err(DecodeError::corrupt("glmClassifier", reason));
        }
    };
    let compute = Box::new(Classifier { rows, classes });
    Ok(Built { compute, makes: Makes::Class { labels, probabilities: true } })
}

impl Compute for Classifier {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let mut scores = self.rows.apply(features)?;
        let probabilities = match &self.classes {
            Classes::Two(transform) => {
                let score = scores.first().copied().unwrap_or(0.0);
                match transform {
                    ClassTransform::Logit => vec![logistic(-score), logistic(score)],
                    ClassTransform::Probit => vec![probit(-score), probit(score)],
                }
            }
            Classes::Reference => {
                scores.insert(0, 0.0);
                softmax(scores)
            }
            Classes::OneVsRest => {
                let mut p: Vec<f64> = scores.into_iter().map(logistic).collect();
                let sum: f64 = p.iter().sum();
                p.iter_mut().for_each(|p| *p /= sum);
                p
            }
        };
        Ok(Answer::probabilities(probabilities))
    }
}
