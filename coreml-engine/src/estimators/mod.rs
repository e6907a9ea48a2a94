//! Everything that is neither a program nor a network: linear models, support vectors, trees, neighbours, and the steps
//! that prepare features for them. What each computes is said in the comments of the format's `.proto` files, and their
//! formulas are cited in the files of this folder.
//!
//! One kind of model is one entry of `Estimator::new`'s match, which has no wildcard: a kind that the format adds does
//! not compile before somebody decides about it. All arithmetic is in double precision.

use coreml_proto::proto as spec;
use spec::model::Type as ModelType;

use crate::convert;
use crate::decode::DecodeError;
use crate::description::{Feature, FeatureKind, Labels, ModelDescription};
use crate::error::KernelError;
use crate::feature::{Array, Elements, Input, Key, Output};
use crate::model::Limits;

mod encoding;
mod linear;
mod mapping;
mod neighbors;
mod recommender;
mod scaling;
mod suppression;
mod thresholding;
mod trees;
mod vectors;

/// The kinds of models of this module, by their names in the format.
///
/// ```
/// assert!(coreml_engine::estimators::KINDS.contains(&"treeEnsembleClassifier"));
/// ```
pub static KINDS: &[&str] = &[
    "glmRegressor",
    "supportVectorRegressor",
    "treeEnsembleRegressor",
    "glmClassifier",
    "supportVectorClassifier",
    "treeEnsembleClassifier",
    "kNearestNeighborsClassifier",
    "itemSimilarityRecommender",
    "oneHotEncoder",
    "imputer",
    "featureVectorizer",
    "dictVectorizer",
    "scaler",
    "categoricalMapping",
    "normalizer",
    "arrayFeatureExtractor",
    "nonMaximumSuppression",
    "classConfidenceThresholding",
    "identity",
];

/// What a computation gives.
pub(crate) enum Answer {
    /// The value of the one output.
    One(Output),
    /// A class by its place among the labels, and the probabilities of all, if there are any.
    Class { best: usize, probabilities: Vec<f64> },
    /// Outputs by name.
    Named(Vec<(String, Output)>),
}

impl Answer {
    /// The one output as a number, or as a list of numbers if there are several.
    pub(crate) fn numbers(numbers: Vec<f64>) -> Self {
        Self::One(match numbers[..] {
            [x] => Output::Double(x),
            _ => array(vec![numbers.len()], numbers),
        })
    }

    /// The class of the greatest probability; of equals the first.
    pub(crate) fn probabilities(probabilities: Vec<f64>) -> Self {
        Self::Class { best: greatest(&probabilities), probabilities }
    }
}

/// The place of the greatest number; of equals the first.
pub(crate) fn greatest(numbers: &[f64]) -> usize {
    let mut best = 0;
    for (i, x) in numbers.iter().enumerate() {
        if numbers.get(best).is_none_or(|most| x > most || most.is_nan()) {
            best = i;
        }
    }
    best
}

/// A multi-array of doubles.
pub(crate) fn array(shape: Vec<usize>, numbers: Vec<f64>) -> Output {
    Output::Array(Array { shape, elements: Elements::Float64(numbers) })
}

/// One kind of model, ready to run.
pub(crate) trait Compute: Send + Sync {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError>;
}

/// Who makes the outputs of a description.
pub(crate) enum Makes {
    /// One value: the predicted feature, or the only output.
    One,
    /// A class; with probabilities or without.
    Class { labels: Labels, probabilities: bool },
    /// Outputs of these names.
    Named(Vec<String>),
}

/// A computation and what it makes.
pub(crate) struct Built {
    pub(crate) compute: Box<dyn Compute>,
    pub(crate) makes: Makes,
}

impl Built {
    pub(crate) fn one(compute: impl Compute + 'static) -> Self {
        Self { compute: Box::new(compute), makes: Makes::One }
    }
}

/// The inputs of one prediction, of the kinds that the description announces.
pub(crate) struct Features<'a> {
    described: &'a [Feature],
    given: &'a [(&'a str, Input<'a>)],
}

impl<'a> Features<'a> {
    pub(crate) fn new(description: &'a ModelDescription, given: &'a [(&'a str, Input<'a>)]) -> Self {
        Self { described: &description.inputs, given }
    }

    /// The input of that name, if it was given.
    pub(crate) fn find(&self, name: &str) -> Option<Input<'a>> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, input)| *input)
    }

    /// The input of that name.
    pub(crate) fn required(&self, name: &str) -> Result<Input<'a>, KernelError> {
        self.find(name).ok_or_else(|| KernelError::value(format!("the input `{name}` is missing")))
    }

    /// The only input; `None` if it was left out.
    pub(crate) fn only(&self) -> Result<Option<Input<'a>>, KernelError> {
        match self.described {
            [feature] => Ok(self.find(&feature.name)),
            others => Err(KernelError::value(format!("one input is expected, not {}", others.len()))),
        }
    }

    /// All inputs as one list of numbers, in the order of the description; what was left out is NaN if it has no default.
    pub(crate) fn numbers(&self) -> Result<Vec<f64>, KernelError> {
        let mut all = Vec::new();
        for feature in self.described {
            match self.find(&feature.name) {
                Some(input) => all.extend(numbers(&input)?),
                None => {
                    let (count, x) = match &feature.kind {
                        FeatureKind::Tensor { tensor } => {
                            let count = crate::types::element_count(&tensor.shape);
                            (count.filter(|n| *n <= 1 << 20), tensor.default.unwrap_or(f64::NAN))
                        }
                        _ => (Some(1), f64::NAN),
                    };
                    let count = count.ok_or_else(|| KernelError::value("an absent input is too large"))?;
                    all.extend(std::iter::repeat_n(x, count));
                }
            }
        }
        Ok(all)
    }
}

/// An array or a scalar as numbers.
pub(crate) fn numbers(input: &Input<'_>) -> Result<Vec<f64>, KernelError> {
    match input {
        Input::Array(array) => convert::numbers(array).map_err(KernelError::Value),
        Input::Int64(x) => Ok(vec![*x as f64]),
        Input::Double(x) => Ok(vec![*x]),
        other => Err(wrong("numbers", other)),
    }
}

/// An input is of a kind that the computation does not take.
pub(crate) fn wrong(expected: &str, found: &Input<'_>) -> KernelError {
    KernelError::Type { expected: expected.to_owned(), found: found.words() }
}

/// Checks a number of features.
pub(crate) fn check_count(expected: usize, found: usize) -> Result<(), KernelError> {
    if expected == found {
        Ok(())
    } else {
        Err(KernelError::shape(format!("the model takes {expected} features, found {found}")))
    }
}

/// The labels of a classifier: at least one, none twice.
macro_rules! labels {
    ($classes:expr, $kind:path) => {{
        use $kind as Classes;
        match $classes {
            Some(Classes::StringClassLabels(labels)) => $crate::estimators::checked_labels(
                $crate::description::Labels::Strings(labels.vector.clone()),
            ),
            Some(Classes::Int64ClassLabels(labels)) => {
                $crate::estimators::checked_labels($crate::description::Labels::Ints(labels.vector.clone()))
            }
            None => Err($crate::decode::DecodeError::corrupt("classifier", "it has no class labels")),
        }
    }};
}
pub(crate) use labels;

pub(crate) fn checked_labels(labels: Labels) -> Result<Labels, DecodeError> {
    let distinct = match &labels {
        Labels::Strings(labels) => labels.iter().collect::<std::collections::HashSet<_>>().len(),
        Labels::Ints(labels) => labels.iter().collect::<std::collections::HashSet<_>>().len(),
    };
    if labels.is_empty() || distinct != labels.len() {
        return Err(DecodeError::corrupt("classifier", "it has no class labels, or one of them twice"));
    }
    Ok(labels)
}

/// The label at that place.
fn label(labels: &Labels, i: usize) -> Option<Key> {
    match labels {
        Labels::Strings(labels) => labels.get(i).cloned().map(Key::String),
        Labels::Ints(labels) => labels.get(i).copied().map(Key::Int64),
    }
}

/// A model of one of the kinds of this module.
pub(crate) struct Estimator {
    kind: &'static str,
    built: Built,
}

impl Estimator {
    /// Reads and checks the model. What the description says against the model's own data is mended.
    pub(crate) fn new(
        kind: &ModelType,
        description: &mut ModelDescription,
        limits: &Limits,
    ) -> Result<Self, DecodeError> {
        let apple = |name: &str, what: &str| {
            let what =
                format!("a model of kind {name} (its {what} are part of Apple's systems, not of the file)");
            Err(DecodeError::Unsupported(what))
        };
        let (kind, built) = match kind {
            ModelType::GlmRegressor(model) => ("glmRegressor", linear::regressor(model)?),
            ModelType::GlmClassifier(model) => ("glmClassifier", linear::classifier(model)?),
            ModelType::SupportVectorRegressor(model) => {
                ("supportVectorRegressor", vectors::regressor(model)?)
            }
            ModelType::SupportVectorClassifier(model) => {
                ("supportVectorClassifier", vectors::classifier(model)?)
            }
            ModelType::TreeEnsembleRegressor(model) => ("treeEnsembleRegressor", trees::regressor(model)?),
            ModelType::TreeEnsembleClassifier(model) => ("treeEnsembleClassifier", trees::classifier(model)?),
            ModelType::KNearestNeighborsClassifier(model) => {
                ("kNearestNeighborsClassifier", neighbors::classifier(model)?)
            }
            ModelType::ItemSimilarityRecommender(model) => {
                ("itemSimilarityRecommender", recommender::recommender(model)?)
            }
            ModelType::OneHotEncoder(model) => ("oneHotEncoder", encoding::one_hot(model, description)?),
            ModelType::FeatureVectorizer(model) => {
                ("featureVectorizer", encoding::feature_vectorizer(model, description, limits)?)
            }
            ModelType::DictVectorizer(model) => {
                encoding::dictionary_keys(model, description);
                ("dictVectorizer", encoding::dictionary_vectorizer(model, description)?)
            }
            ModelType::Imputer(model) => ("imputer", scaling::imputer(model)?),
            ModelType::Scaler(model) => ("scaler", scaling::scaler(model)),
            ModelType::Normalizer(model) => ("normalizer", scaling::normalizer(model)?),
            ModelType::CategoricalMapping(model) => ("categoricalMapping", mapping::categorical(model)?),
            ModelType::ArrayFeatureExtractor(model) => ("arrayFeatureExtractor", mapping::extractor(model)?),
            ModelType::Identity(spec::Identity {}) => ("identity", mapping::identity(description)?),
            ModelType::NonMaximumSuppression(model) => {
                ("nonMaximumSuppression", suppression::suppression(model, description)?)
            }
            ModelType::ClassConfidenceThresholding(model) => {
                ("classConfidenceThresholding", thresholding::thresholding(model, description)?)
            }
            ModelType::VisionFeaturePrint(_) => return apple("visionFeaturePrint", "networks"),
            ModelType::AudioFeaturePrint(_) => return apple("audioFeaturePrint", "networks"),
            ModelType::SoundAnalysisPreprocessing(_) => {
                return apple("soundAnalysisPreprocessing", "preprocessing steps");
            }
            ModelType::TextClassifier(_) => return apple("textClassifier", "language models"),
            ModelType::WordTagger(_) => return apple("wordTagger", "language models"),
            ModelType::Gazetteer(_) => return apple("gazetteer", "reader and its tables"),
            ModelType::WordEmbedding(_) => return apple("wordEmbedding", "reader and its tables"),
            ModelType::CustomModel(custom) => {
                let what = format!(
                    "a custom model (its class `{}` is code of an app, not part of the file)",
                    custom.class_name
                );
                return Err(DecodeError::Unsupported(what));
            }
            ModelType::SerializedModel(_) => {
                let what = "a model of kind serializedModel (private to Apple, of no published form)";
                return Err(DecodeError::Unsupported(what.into()));
            }
            ModelType::BayesianProbitRegressor(_) => {
                let what =
                    "a model of kind bayesianProbitRegressor (the \u{3b2} of its formula is not in the file)";
                return Err(DecodeError::Unsupported(what.into()));
            }
            ModelType::PipelineClassifier(_)
            | ModelType::PipelineRegressor(_)
            | ModelType::Pipeline(_)
            | ModelType::LinkedModel(_)
            | ModelType::NeuralNetwork(_)
            | ModelType::NeuralNetworkRegressor(_)
            | ModelType::NeuralNetworkClassifier(_)
            | ModelType::MlProgram(_) => {
                return Err(DecodeError::Unsupported("this kind of model in this place".into()));
            }
        };
        let estimator = Self { kind, built };
        estimator.check(description)?;
        Ok(estimator)
    }

    /// Fails if the description has an output that the model does not make.
    fn check(&self, description: &ModelDescription) -> Result<(), DecodeError> {
        let corrupt = |feature: &str, reason: &str| {
            Err(DecodeError::corrupt(format!("output `{feature}`"), format!("a {} {reason}", self.kind)))
        };
        if !description.states.is_empty() {
            return Err(DecodeError::corrupt("description", format!("a {} has no states", self.kind)));
        }
        match &self.built.makes {
            Makes::One => match &description.outputs[..] {
                [_] => Ok(()),
                others => corrupt(others.get(1).map_or("", |f| &f.name), "has one output"),
            },
            Makes::Class { labels: _, probabilities } => {
                for feature in &description.outputs {
                    let label = feature.name == description.predicted_feature;
                    let all = feature.name == description.predicted_probabilities;
                    if !label && !all {
                        return corrupt(&feature.name, "gives a label and probabilities by label");
                    }
                    let dictionary = matches!(feature.kind, FeatureKind::Dictionary { .. });
                    if dictionary != all {
                        return corrupt(&feature.name, "gives a label, and a dictionary of probabilities");
                    }
                    if all && !probabilities {
                        return corrupt(&feature.name, "of this form has no probabilities");
                    }
                }
                Ok(())
            }
            Makes::Named(names) => match description.outputs.iter().find(|f| !names.contains(&f.name)) {
                Some(feature) => corrupt(&feature.name, "does not make it"),
                None => Ok(()),
            },
        }
    }

    /// Its name in the format.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Of a classifier: its labels.
    pub(crate) fn labels(&self) -> Option<&Labels> {
        match &self.built.makes {
            Makes::Class { labels, probabilities: _ } => Some(labels),
            Makes::One | Makes::Named(_) => None,
        }
    }

    /// The wanted outputs (all, if none is named), in the order and of the kinds of the description.
    pub(crate) fn predict(
        &self,
        features: &Features<'_>,
        description: &ModelDescription,
        wanted: &[&str],
    ) -> Result<Vec<(String, Output)>, KernelError> {
        let answer = self.built.compute.run(features)?;
        let mut outputs = Vec::with_capacity(description.outputs.len());
        for feature in &description.outputs {
            if !wanted.is_empty() && !wanted.contains(&feature.name.as_str()) {
                continue;
            }
            let output = match &answer {
                Answer::One(output) => Some(output.clone()),
                Answer::Named(named) => {
                    named.iter().find(|(name, _)| *name == feature.name).map(|(_, output)| output.clone())
                }
                Answer::Class { best, probabilities } => {
                    self.labels().and_then(|labels| match feature.kind {
                        FeatureKind::Dictionary { .. } => {
                            let all = probabilities.iter().enumerate();
                            let all: Option<_> = all.map(|(i, &p)| Some((label(labels, i)?, p))).collect();
                            all.map(Output::Dictionary)
                        }
                        _ => label(labels, *best).map(Output::Key),
                    })
                }
            };
            let output = output
                .ok_or_else(|| KernelError::value(format!("the output `{}` was not made", feature.name)))?;
            let fitted =
                convert::fit(&output.as_input(), &feature.kind).map_err(|found| KernelError::Type {
                    expected: format!("output `{}` as {}", feature.name, feature.kind.words()),
                    found,
                })?;
            outputs.push((feature.name.clone(), fitted.unwrap_or(output)));
        }
        Ok(outputs)
    }
}
