//! Support vector machines (`SVM.proto`), as libsvm evaluates them (`svm.cpp`: `svm_predict_values`,
//! `svm_predict_probability`, `sigmoid_predict`, `multiclass_probability`).

use coreml_proto::proto as spec;
use spec::kernel::Kernel as KernelKind;

use super::{Answer, Built, Compute, Features, Makes, check_count, greatest, labels};
use crate::decode::DecodeError;
use crate::error::KernelError;

enum Kernel {
    Linear,
    Rbf { gamma: f64 },
    Poly { degree: i32, c: f64, gamma: f64 },
    Sigmoid { gamma: f64, c: f64 },
}

impl Kernel {
    fn new(kernel: Option<&spec::Kernel>) -> Result<Self, DecodeError> {
        match kernel.and_then(|kernel| kernel.kernel.as_ref()) {
            None => Err(DecodeError::corrupt("support vectors", "no kernel")),
            Some(KernelKind::LinearKernel(spec::LinearKernel {})) => Ok(Self::Linear),
            Some(&KernelKind::RbfKernel(spec::RbfKernel { gamma })) => Ok(Self::Rbf { gamma }),
            Some(&KernelKind::PolyKernel(spec::PolyKernel { degree, c, gamma })) if degree >= 0 => {
                Ok(Self::Poly { degree, c, gamma })
            }
            Some(KernelKind::PolyKernel(kernel)) => {
                Err(DecodeError::corrupt("support vectors", format!("a degree of {}", kernel.degree)))
            }
            Some(&KernelKind::SigmoidKernel(spec::SigmoidKernel { gamma, c })) => {
                Ok(Self::Sigmoid { gamma, c })
            }
        }
    }

    fn apply(&self, vector: Vector<'_>, x: &[f64]) -> f64 {
        match *self {
            Self::Linear => vector.dot(x),
            Self::Rbf { gamma } => (-gamma * vector.distance(x)).exp(),
            Self::Poly { degree, c, gamma } => (gamma * vector.dot(x) + c).powi(degree),
            Self::Sigmoid { gamma, c } => (gamma * vector.dot(x) + c).tanh(),
        }
    }
}

#[derive(Clone, Copy)]
enum Vector<'a> {
    Dense(&'a [f64]),
    /// Places from 0, ascending.
    Sparse(&'a [(usize, f64)]),
}

impl Vector<'_> {
    fn dot(self, x: &[f64]) -> f64 {
        match self {
            Self::Dense(v) => v.iter().zip(x).map(|(v, x)| v * x).sum(),
            Self::Sparse(v) => v.iter().map(|&(i, v)| x.get(i).map_or(0.0, |x| v * x)).sum(),
        }
    }

    /// The square of the distance.
    fn distance(self, x: &[f64]) -> f64 {
        match self {
            Self::Dense(v) => v.iter().zip(x).map(|(v, x)| (v - x) * (v - x)).sum(),
            Self::Sparse(v) => {
                let mut sum = 0.0;
                let mut done = 0;
                for &(i, v) in v {
                    // What the vector leaves out is 0, and so is what lies beyond the input.
                    sum += x.get(done..i.min(x.len())).unwrap_or_default().iter().map(|x| x * x).sum::<f64>();
                    let d = v - x.get(i).copied().unwrap_or(0.0);
                    sum += d * d;
                    done = i + 1;
                }
                sum + x.get(done..).unwrap_or_default().iter().map(|x| x * x).sum::<f64>()
            }
        }
    }
}

enum Vectors {
    Dense { width: usize, rows: Vec<f64> },
    Sparse(Vec<Vec<(usize, f64)>>),
}

impl Vectors {
    fn dense(vectors: &spec::DenseSupportVectors) -> Result<Self, DecodeError> {
        let width = vectors.vectors.first().map_or(0, |v| v.values.len());
        if width == 0 || vectors.vectors.iter().any(|v| v.values.len() != width) {
            return Err(DecodeError::corrupt(
                "support vectors",
                "expected vectors of the same length, at least 1",
            ));
        }
        let rows = vectors.vectors.iter().flat_map(|v| v.values.iter().copied()).collect();
        Ok(Self::Dense { width, rows })
    }

    fn sparse(vectors: &spec::SparseSupportVectors) -> Result<Self, DecodeError> {
        let rows = vectors.vectors.iter().map(|vector| {
            let mut row = Vec::with_capacity(vector.nodes.len());
            for node in &vector.nodes {
                // The places count from 1, as libsvm's do.
                let place = usize::try_from(node.index).ok().and_then(|i| i.checked_sub(1));
                let after = |place: &usize| row.last().is_none_or(|(last, _)| last < place);
                let place = place.filter(after).ok_or_else(|| {
                    let reason = format!("index {}, where they start at 1 and ascend", node.index);
                    DecodeError::corrupt("support vectors", reason)
                })?;
                row.push((place, node.value));
            }
            Ok(row)
        });
        Ok(Self::Sparse(rows.collect::<Result<_, DecodeError>>()?))
    }

    fn len(&self) -> usize {
        match self {
            Self::Dense { width, rows } => rows.len() / width,
            Self::Sparse(rows) => rows.len(),
        }
    }

    /// The kernel's value for every vector.
    fn apply(&self, kernel: &Kernel, features: &Features<'_>) -> Result<Vec<f64>, KernelError> {
        let x = features.numbers()?;
        Ok(match self {
            Self::Dense { width, rows } => {
                check_count(*width, x.len())?;
                rows.chunks_exact(*width).map(|row| kernel.apply(Vector::Dense(row), &x)).collect()
            }
            Self::Sparse(rows) => rows.iter().map(|row| kernel.apply(Vector::Sparse(row), &x)).collect(),
        })
    }
}

struct Regressor {
    kernel: Kernel,
    vectors: Vectors,
    coefficients: Vec<f64>,
    rho: f64,
}

pub(super) fn regressor(model: &spec::SupportVectorRegressor) -> Result<Built, DecodeError> {
    use spec::support_vector_regressor::SupportVectors as S;
    let spec::SupportVectorRegressor { kernel, coefficients, rho, support_vectors } = model;
    let vectors = match support_vectors {
        Some(S::DenseSupportVectors(vectors)) => Vectors::dense(vectors)?,
        Some(S::SparseSupportVectors(vectors)) => Vectors::sparse(vectors)?,
        None => return Err(DecodeError::corrupt("support vectors", "there are none")),
    };
    let coefficients = coefficients.as_ref().map(|c| c.alpha.clone()).unwrap_or_default();
    if coefficients.len() != vectors.len() {
        let reason = format!("{} coefficients for {} vectors", coefficients.len(), vectors.len());
        return Err(DecodeError::corrupt("support vectors", reason));
    }
    Ok(Built::one(Regressor { kernel: Kernel::new(kernel.as_ref())?, vectors, coefficients, rho: *rho }))
}

impl Compute for Regressor {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let values = self.vectors.apply(&self.kernel, features)?;
        let sum: f64 = values.iter().zip(&self.coefficients).map(|(value, alpha)| value * alpha).sum();
        Ok(Answer::numbers(vec![sum - self.rho]))
    }
}

struct Classifier {
    kernel: Kernel,
    vectors: Vectors,
    /// Where the vectors of each class start; one more for the end.
    starts: Vec<usize>,
    /// `classes - 1` rows, one coefficient for every vector.
    coefficients: Vec<Vec<f64>>,
    /// For every pair of classes.
    rho: Vec<f64>,
    /// For every pair: A and B of the sigmoid, if the model has probabilities.
    sigmoids: Option<Vec<(f64, f64)>>,
}

pub(super) fn classifier(model: &spec::SupportVectorClassifier) -> Result<Built, DecodeError> {
    use spec::support_vector_classifier::SupportVectors as S;
    let spec::SupportVectorClassifier {
        kernel,
        number_of_support_vectors_per_class,
        coefficients,
        rho,
        prob_a,
        prob_b,
        support_vectors,
        class_labels,
    } = model;
    let corrupt = |reason: String| Err(DecodeError::corrupt("support vectors", reason));
    let labels = labels!(class_labels, spec::support_vector_classifier::ClassLabels)?;
    let vectors = match support_vectors {
        Some(S::DenseSupportVectors(vectors)) => Vectors::dense(vectors)?,
        Some(S::SparseSupportVectors(vectors)) => Vectors::sparse(vectors)?,
        None => return corrupt("there are none".into()),
    };
    let classes = labels.len();
    if classes < 2 || number_of_support_vectors_per_class.len() != classes {
        let counts = number_of_support_vectors_per_class.len();
        return corrupt(format!("counts of vectors for {counts} classes, and {classes} labels"));
    }
    let mut starts = vec![0_usize];
    for &count in number_of_support_vectors_per_class {
        let last = starts.last().copied().unwrap_or(0);
        match usize::try_from(count).ok().and_then(|count| last.checked_add(count)) {
            Some(next) => starts.push(next),
            None => return corrupt(format!("{count} vectors of a class")),
        }
    }
    if starts.last() != Some(&vectors.len()) {
        return corrupt(format!("{} vectors, where the classes have {:?}", vectors.len(), starts.last()));
    }
    let rows: Vec<Vec<f64>> = coefficients.iter().map(|row| row.alpha.clone()).collect();
    if rows.len() != classes - 1 || rows.iter().any(|row| row.len() != vectors.len()) {
        return corrupt(format!("expected {} rows of {} coefficients", classes - 1, vectors.len()));
    }
    // The rows above are in the file, so the square of the classes is not much more than the file.
    let pairs = classes * (classes - 1) / 2;
    if rho.len() != pairs {
        return corrupt(format!("{} constants rho for {pairs} pairs of classes", rho.len()));
    }
    let sigmoids = match (prob_a.len(), prob_b.len()) {
        (0, 0) => None,
        (a, b) if a == pairs && b == pairs => {
            Some(prob_a.iter().copied().zip(prob_b.iter().copied()).collect())
        }
        (a, b) => return corrupt(format!("{a} and {b} sigmoids for {pairs} pairs of classes")),
    };
    let makes = Makes::Class { labels, probabilities: sigmoids.is_some() };
    let kernel = Kernel::new(kernel.as_ref())?;
    let compute = Classifier { kernel, vectors, starts, coefficients: rows, rho: rho.clone(), sigmoids };
    Ok(Built { compute: Box::new(compute), makes })
}

impl Classifier {
    /// The decision value of every pair of classes.
    fn decisions(&self, values: &[f64]) -> Vec<f64> {
        let classes = self.starts.len() - 1;
        let part = |class: usize, row: usize| -> f64 {
            let range = self.starts[class]..self.starts[class + 1];
            values[range.clone()].iter().zip(&self.coefficients[row][range]).map(|(k, alpha)| k * alpha).sum()
        };
        let pairs = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
        pairs.zip(&self.rho).map(|((i, j), rho)| part(i, j - 1) + part(j, i) - rho).collect()
    }
}

impl Compute for Classifier {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let values = self.vectors.apply(&self.kernel, features)?;
        let decisions = self.decisions(&values);
        let classes = self.starts.len() - 1;
        let pairs = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
        let Some(sigmoids) = &self.sigmoids else {
            let mut votes = vec![0.0_f64; classes];
            for ((i, j), decision) in pairs.zip(&decisions) {
                votes[if *decision > 0.0 { i } else { j }] += 1.0;
            }
            return Ok(Answer::Class { best: greatest(&votes), probabilities: Vec::new() });
        };
        let mut pairwise = vec![vec![0.0; classes]; classes];
        for (((i, j), decision), &(a, b)) in pairs.zip(&decisions).zip(sigmoids) {
            let p = super::linear::logistic(-(decision * a + b));
            // libsvm's bounds make the least of a decision that is no number.
            let p = if p.is_nan() { 1e-7 } else { p.clamp(1e-7, 1.0 - 1e-7) };
            pairwise[i][j] = p;
            pairwise[j][i] = 1.0 - p;
        }
        Ok(Answer::probabilities(coupled(&pairwise)))
    }
}

/// Probabilities of all classes from those of all pairs: method 2 of Wu, Lin and Weng, "Probability Estimates for
/// Multi-class Classification by Pairwise Coupling", iterated as libsvm does. Two classes need no iteration.
fn coupled(r: &[Vec<f64>]) -> Vec<f64> {
    let k = r.len();
    if k == 2 {
        return vec![r[0][1], r[1][0]];
    }
    let mut q = vec![vec![0.0; k]; k];
    for t in 0..k {
        for j in (0..k).filter(|&j| j != t) {
            q[t][t] += r[j][t] * r[j][t];
            q[t][j] = -r[j][t] * r[t][j];
        }
    }
    let mut p = vec![1.0 / k as f64; k];
    let epsilon = 0.005 / k as f64;
    for _ in 0..k.max(100) {
        // Computed anew in every round, so that errors do not add up.
        let mut qp: Vec<f64> = q.iter().map(|row| row.iter().zip(&p).map(|(q, p)| q * p).sum()).collect();
        let mut pqp: f64 = p.iter().zip(&qp).map(|(p, qp)| p * qp).sum();
        let error = qp.iter().map(|qp| (qp - pqp).abs()).fold(0.0, f64::max);
        if error < epsilon {
            break;
        }
        for t in 0..k {
            let diff = (pqp - qp[t]) / q[t][t];
            p[t] += diff;
            pqp = (pqp + diff * (diff * q[t][t] + 2.0 * qp[t])) / ((1.0 + diff) * (1.0 + diff));
            for j in 0..k {
                qp[j] = (qp[j] + diff * q[t][j]) / (1.0 + diff);
                p[j] /= 1.0 + diff;
            }
        }
    }
    p
}
