//! Nearest neighbours (`NearestNeighbors.proto`).
//!
//! Both kinds of index hold the same points and find the same neighbours; a kd-tree is only faster on many points of few
//! dimensions, so both are searched point by point. Of equally near points the first counts; of equally good classes the
//! first in the order of the labels, as scikit-learn has it. The inverse distance is that of the Euclidean distance, which
//! is what coremltools takes scikit-learn's `weights="distance"` for.

use std::collections::BTreeMap;

use coreml_proto::proto as spec;
use spec::k_nearest_neighbors_classifier::{ClassLabels, DefaultClassLabel, WeightingScheme};
use spec::nearest_neighbors_index::{DistanceFunction, IndexType};

use super::{Answer, Built, Compute, Features, Makes, check_count};
use crate::decode::DecodeError;
use crate::description::Labels;
use crate::error::KernelError;

struct Classifier {
    width: usize,
    /// All points, one after the other.
    points: Vec<f32>,
    /// For every point its place among the labels.
    classes: Vec<usize>,
    labels: usize,
    neighbors: usize,
    inverse: bool,
}

/// The labels of all points as places among the different ones, in their order.
fn places<T: Ord + Clone>(labels: &[T]) -> (Vec<T>, Vec<usize>) {
    let mut order: BTreeMap<&T, usize> = labels.iter().map(|label| (label, 0)).collect();
    order.values_mut().enumerate().for_each(|(i, place)| *place = i);
    let places = labels.iter().map(|label| order[label]).collect();
    (order.into_keys().cloned().collect(), places)
}

pub(super) fn classifier(model: &spec::KNearestNeighborsClassifier) -> Result<Built, DecodeError> {
    let spec::KNearestNeighborsClassifier {
        nearest_neighbors_index,
        number_of_neighbors,
        class_labels,
        default_class_label,
        weighting_scheme,
    } = model;
    let corrupt = |reason: String| DecodeError::corrupt("nearest neighbours", reason);
    let index = nearest_neighbors_index.as_ref().ok_or_else(|| corrupt("there is no index".into()))?;
    let spec::NearestNeighborsIndex { number_of_dimensions, float_samples, index_type, distance_function } =
        index;
    match index_type {
        Some(IndexType::LinearIndex(_) | IndexType::SingleKdTreeIndex(_)) => {}
        None => return Err(corrupt("the index has no type".into())),
    }
    match distance_function {
        Some(DistanceFunction::SquaredEuclideanDistance(_)) => {}
        None => return Err(corrupt("the index has no distance function".into())),
    }
    let inverse = match weighting_scheme {
        Some(WeightingScheme::UniformWeighting(_)) | None => false,
        Some(WeightingScheme::InverseDistanceWeighting(_)) => true,
    };
    let width = usize::try_from(*number_of_dimensions).ok().filter(|&n| n > 0);
    let width = width.ok_or_else(|| corrupt(format!("{number_of_dimensions} dimensions")))?;
    if let Some(point) = float_samples.iter().find(|point| point.vector.len() != width) {
        return Err(corrupt(format!("a point of {} dimensions, not {width}", point.vector.len())));
    }
    let neighbors = number_of_neighbors.as_ref().map_or(0, |n| n.default_value);
    let neighbors = usize::try_from(neighbors).ok().filter(|&n| n > 0);
    let neighbors = neighbors.ok_or_else(|| corrupt("the number of neighbours is not positive".into()))?;
    let (mut labels, classes) = match class_labels {
        Some(ClassLabels::StringClassLabels(labels)) => {
            let (labels, places) = places(&labels.vector);
            (Labels::Strings(labels), places)
        }
        Some(ClassLabels::Int64ClassLabels(labels)) => {
            let (labels, places) = places(&labels.vector);
            (Labels::Ints(labels), places)
        }
        None => return Err(corrupt("there are no class labels".into())),
    };
    if classes.len() != float_samples.len() {
        return Err(corrupt(format!("{} labels for {} points", classes.len(), float_samples.len())));
    }
    if labels.is_empty() {
        // Nothing learned yet: the default is the answer.
        labels = match default_class_label {
            Some(DefaultClassLabel::DefaultStringLabel(label)) => Labels::Strings(vec![label.clone()]),
            Some(DefaultClassLabel::DefaultInt64Label(label)) => Labels::Ints(vec![*label]),
            None => return Err(corrupt("there are no points and no default label".into())),
        };
    }
    let points = float_samples.iter().flat_map(|point| point.vector.iter().copied()).collect();
    let compute = Classifier { width, points, classes, labels: labels.len(), neighbors, inverse };
    Ok(Built { compute: Box::new(compute), makes: Makes::Class { labels, probabilities: true } })
}

impl Compute for Classifier {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let x = features.numbers()?;
        check_count(self.width, x.len())?;
        if self.classes.is_empty() {
            return Ok(Answer::probabilities(vec![1.0]));
        }
        let distance = |point: &[f32]| {
            point.iter().zip(&x).map(|(p, x)| (f64::from(*p) - x) * (f64::from(*p) - x)).sum::<f64>()
        };
        let mut found: Vec<(f64, usize)> =
            self.points.chunks_exact(self.width).map(distance).zip(self.classes.iter().copied()).collect();
        // Stable, so that of equally near points the first comes first.
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.truncate(self.neighbors);
        let exact = found.iter().any(|(distance, _)| *distance == 0.0);
        let mut votes = vec![0.0; self.labels];
        for (distance, class) in found {
            votes[class] += match (self.inverse, exact) {
                (false, _) => 1.0,
                (true, false) => 1.0 / distance.sqrt(),
                // Infinitely many votes for a point that is the same.
                (true, true) => f64::from(u8::from(distance == 0.0)),
            };
        }
        let sum: f64 = votes.iter().sum();
        votes.iter_mut().for_each(|vote| *vote /= sum);
        Ok(Answer::probabilities(votes))
    }
}
