//! Non-maximum suppression of boxes (`NonMaximumSuppression.proto`).

use coreml_proto::proto as spec;
use spec::non_maximum_suppression::SuppressionMethod;

use super::{Answer, Built, Compute, Features, Makes, array, greatest, numbers, wrong};
use crate::convert;
use crate::decode::DecodeError;
use crate::description::{FeatureKind, Flexible, ModelDescription};
use crate::error::KernelError;
use crate::feature::Input;

struct Suppression {
    confidence: String,
    coordinates: String,
    outputs: [String; 2],
    /// Threshold, and the input that overrides it.
    iou: (f64, String),
    least: (f64, String),
    per_class: bool,
    /// Least and most rows of the outputs.
    rows: (usize, Option<usize>),
}

/// The least and most rows that a description says of an output.
fn rows_of(kind: &FeatureKind) -> Option<(usize, Option<usize>)> {
    let FeatureKind::Tensor { tensor } = kind else { return None };
    match &tensor.flexible {
        Some(Flexible::Ranges(ranges)) => {
            let &(least, most) = ranges.first()?;
            Some((usize::try_from(least).ok()?, usize::try_from(most).ok()))
        }
        Some(Flexible::Enumerated(shapes)) => match &shapes[..] {
            [shape] => shape.first().map(|&n| (n, Some(n))),
            _ => None,
        },
        // A shape without rows says nothing.
        None => tensor.shape.first().filter(|&&n| n > 0).map(|&n| (n, Some(n))),
    }
}

pub(super) fn suppression(
    model: &spec::NonMaximumSuppression,
    description: &ModelDescription,
) -> Result<Built, DecodeError> {
    let corrupt = |reason: &str| DecodeError::corrupt("non-maximum suppression", reason);
    let spec::NonMaximumSuppression {
        iou_threshold,
        confidence_threshold,
        confidence_input_feature_name,
        coordinates_input_feature_name,
        iou_threshold_input_feature_name,
        confidence_threshold_input_feature_name,
        confidence_output_feature_name,
        coordinates_output_feature_name,
        suppression_method,
        // Names of the columns of the confidence, for those who read the answer.
        class_labels: _,
    } = model;
    let per_class = match suppression_method {
        Some(SuppressionMethod::PickTop(method)) => method.per_class,
        None => return Err(corrupt("it has no method")),
    };
    if confidence_threshold.is_nan() || *confidence_threshold < 0.0 || iou_threshold.is_nan() {
        return Err(corrupt("the thresholds are no numbers, or negative"));
    }
    let needed = [confidence_input_feature_name, coordinates_input_feature_name];
    let thresholds = [iou_threshold_input_feature_name, confidence_threshold_input_feature_name];
    for name in needed.into_iter().chain(thresholds.into_iter().filter(|name| !name.is_empty())) {
        if !description.inputs.iter().any(|f| f.name == *name) {
            return Err(corrupt(&format!("the description has no input `{name}`")));
        }
    }
    let outputs = [confidence_output_feature_name.clone(), coordinates_output_feature_name.clone()];
    let mut rows = (0, None::<usize>);
    for feature in description.outputs.iter().filter(|f| outputs.contains(&f.name)) {
        if let Some((least, most)) = rows_of(&feature.kind) {
            rows.0 = rows.0.max(least);
            rows.1 = [rows.1, most].into_iter().flatten().min();
        }
    }
    if rows.1.is_some_and(|most| most < rows.0) || rows.0 > 1 << 24 {
        return Err(corrupt("the outputs do not agree on the number of boxes, or it is too large"));
    }
    let compute = Suppression {
        confidence: confidence_input_feature_name.clone(),
        coordinates: coordinates_input_feature_name.clone(),
        outputs: outputs.clone(),
        iou: (*iou_threshold, iou_threshold_input_feature_name.clone()),
        least: (*confidence_threshold, confidence_threshold_input_feature_name.clone()),
        per_class,
        rows,
    };
    Ok(Built { compute: Box::new(compute), makes: Makes::Named(outputs.to_vec()) })
}

/// A matrix of `width` columns (of any number, if it is not given); leading dimensions of 1 do not count.
fn matrix(input: &Input<'_>, width: Option<usize>) -> Result<(usize, usize, Vec<f64>), KernelError> {
    let Input::Array(array) = input else { return Err(wrong("an array", input)) };
    let (columns, lead) = array.shape.split_last().ok_or_else(|| wrong("a matrix", input))?;
    let (rows, lead) = lead.split_last().ok_or_else(|| wrong("a matrix", input))?;
    if lead.iter().any(|&n| n != 1) || width.is_some_and(|width| width != *columns) {
        return Err(wrong("a matrix", input));
    }
    Ok((*rows, *columns, convert::numbers(array).map_err(KernelError::Value)?))
}

/// Intersection over union of two boxes (centre, size).
fn overlap(a: &[f64], b: &[f64]) -> f64 {
    let (&[ax, ay, aw, ah], &[bx, by, bw, bh]) = (a, b) else { return 0.0 };
    let side = |a: f64, wa: f64, b: f64, wb: f64| {
        ((a + wa / 2.0).min(b + wb / 2.0) - (a - wa / 2.0).max(b - wb / 2.0)).max(0.0)
    };
    let both = side(ax, aw, bx, bw) * side(ay, ah, by, bh);
    let either = aw * ah + bw * bh - both;
    if either > 0.0 { both / either } else { 0.0 }
}

impl Suppression {
    fn threshold(&self, features: &Features<'_>, (value, name): &(f64, String)) -> Result<f64, KernelError> {
        match features.find(name).filter(|_| !name.is_empty()) {
            None => Ok(*value),
            Some(input) => match numbers(&input)?[..] {
                [x] if x >= 0.0 => Ok(x),
                _ => Err(wrong("one number that is not negative", &input)),
            },
        }
    }
}

impl Compute for Suppression {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let (count, classes, confidence) = matrix(&features.required(&self.confidence)?, None)?;
        let (boxes, _, coordinates) = matrix(&features.required(&self.coordinates)?, Some(4))?;
        if boxes != count || classes == 0 {
            return Err(KernelError::shape(format!(
                "{boxes} boxes for {count} confidences of {classes} classes"
            )));
        }
        let iou = self.threshold(features, &self.iou)?;
        let least = self.threshold(features, &self.least)?;
        let row = |i: usize| &confidence[i * classes..][..classes];
        let place = |i: usize| &coordinates[i * 4..][..4];
        let mut candidates: Vec<(usize, usize, f64)> = (0..count)
            .map(|i| {
                let class = greatest(row(i));
                (i, class, row(i)[class])
            })
            .filter(|&(_, _, score)| score >= least)
            .collect();
        // Stable: of equal scores the first box counts.
        candidates.sort_by(|a, b| b.2.total_cmp(&a.2));
        let mut kept: Vec<(usize, usize)> = Vec::new();
        for (i, class, _) in candidates {
            if self.rows.1.is_some_and(|most| kept.len() >= most) {
                break;
            }
            let suppressed = kept.iter().any(|&(other, of)| {
                (!self.per_class || of == class) && overlap(place(i), place(other)) > iou
            });
            if !suppressed {
                kept.push((i, class));
            }
        }
        let rows = kept.len().max(self.rows.0);
        let cells = rows.checked_mul(classes.max(4)).filter(|&n| n <= 1 << 28);
        cells.ok_or_else(|| KernelError::shape(format!("{rows} boxes of {classes} classes are too many")))?;
        let gather = |width: usize, from: &[f64]| {
            let mut made = Vec::with_capacity(rows * width);
            for &(i, _) in &kept {
                made.extend_from_slice(&from[i * width..][..width]);
            }
            made.resize(rows * width, 0.0);
            array(vec![rows, width], made)
        };
        let [name, places] = self.outputs.clone();
        Ok(Answer::Named(vec![(name, gather(classes, &confidence)), (places, gather(4, &coordinates))]))
    }
}
