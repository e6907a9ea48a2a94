//! What is inside a model: functions, ops and layers with their types, and what each costs. For people and tools; a model
//! need not be one that the engine can run.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use coreml_proto::proto::{Model as ModelProto, mil_spec as mil, model::Type as ModelType};
use coreml_proto::proto::{NeuralNetworkLayer, neural_network_layer::Layer};
use mil::argument::binding::Binding;
use serde::Serialize;

use crate::CustomLayers;
use crate::decode::mil::value_type;
use crate::description::{self, Labels, ModelDescription};
use crate::error::LoadError;
use crate::ir::{self, Function, Opset, Type};
use crate::package::{Package, read_file};
use crate::types::{TensorType, element_count};

/// The inside of a model.
///
/// ```
/// use coreml_engine::structure::Structure;
/// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
/// let structure = Structure::read(model)?;
/// assert_eq!(structure.kind, "ML program");
/// let main = &structure.functions["main"];
/// assert_eq!(main.histogram()["conv"], 2);
/// assert!(main.cost().multiply_adds.unwrap() > 10_000);
/// # Ok::<(), coreml_engine::LoadError>(())
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Structure {
    /// `ML program`, `neural network`, `pipeline`, and so on.
    pub kind: &'static str,
    /// Version of the format.
    pub specification_version: i32,
    /// What the model takes and gives; of a model with several functions, that of the default one.
    pub description: ModelDescription,
    /// The functions of an ML program; the layers of a neural network are one function, `main`.
    pub functions: BTreeMap<String, Block>,
    /// The models of a pipeline, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Structure>,
}

/// A function, or a block or network inside an op or a layer.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Block {
    /// The opset of a function: `iOS17`; empty elsewhere.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub opset: String,
    /// What it takes.
    pub inputs: Vec<Value>,
    /// Its ops or layers in their order; constants are none.
    pub ops: Vec<Op>,
    /// The names of what it gives.
    pub outputs: Vec<String>,
}

/// A value with a name.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Value {
    /// Its name.
    pub name: String,
    /// `fp16[1, ?, 8]`; empty where the file does not say it.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub ty: String,
}

/// An op or a layer.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Op {
    /// `conv`, `innerProduct`, …
    pub kind: String,
    /// The name of a layer; ops of programs have none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The values of each parameter, by name; inputs of layers have no parameter.
    pub inputs: BTreeMap<String, Vec<String>>,
    /// What it makes.
    pub outputs: Vec<Value>,
    /// Blocks inside it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
    /// What it costs, without its blocks.
    pub cost: Cost,
}

/// An estimate from the declared shapes. Absent is what they do not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cost {
    /// Multiply-adds; for an op without products one for each element that it reads or makes, and none for an op that only
    /// moves them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiply_adds: Option<u64>,
    /// Bytes read and written, weights as wide as the op takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Whether some dimension is known only to a prediction. It was counted as 1, so that the cost is for a batch of one, or
    /// too low.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
}

impl Block {
    /// How often each kind is there, in blocks inside as well.
    #[must_use]
    pub fn histogram(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        self.visit(&mut |op| *counts.entry(op.kind.clone()).or_insert(0) += 1);
        counts
    }

    /// The sum over all ops whose cost can be said, with each block inside counted once.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let mut sum = Cost::default();
        let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        self.visit(&mut |op| {
            sum.multiply_adds = add(sum.multiply_adds, op.cost.multiply_adds);
            sum.bytes = add(sum.bytes, op.cost.bytes);
            sum.at_least |= op.cost.at_least;
        });
        sum
    }

    /// Calls `f` for every op, in blocks inside as well.
    pub fn visit<'a>(&'a self, f: &mut impl FnMut(&'a Op)) {
        for op in &self.ops {
            f(op);
            op.blocks.iter().for_each(|block| block.visit(f));
        }
    }
}

impl Structure {
    /// Reads the model at `path` (`.mlmodel`, `.mlpackage` or `.mlmodelc`), but not its weights.
    ///
    /// # Errors
    /// If its specification cannot be read, or says what cannot be. Ops and layers need not be known.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let package = Package::open(path.as_ref(), &read_file)?;
        let name = package.path.display().to_string();
        Self::of(&package.specification, &name)
    }

    fn of(proto: &ModelProto, model: &str) -> Result<Self, LoadError> {
        let corrupt = |(at, reason)| LoadError::Corrupt { model: model.into(), at, reason };
        let described = proto.description.clone().unwrap_or_default();
        let multi = !described.functions.is_empty();
        let function = multi.then_some(described.default_function_name.as_str());
        let mut description = description::decode(&described, function).map_err(corrupt)?;
        let mut functions = BTreeMap::new();
        let mut models = Vec::new();
        let kind = match &proto.r#type {
            Some(ModelType::MlProgram(program)) => {
                for (name, function) in &program.functions {
                    functions.insert(name.clone(), program_function(function));
                }
                if !multi {
                    description.functions = functions.keys().cloned().collect();
                }
                "ML program"
            }
            Some(ModelType::Pipeline(pipeline)) => {
                models = pipelined(&pipeline.models, model)?;
                "pipeline"
            }
            Some(ModelType::PipelineClassifier(pipeline)) => {
                models = pipelined(pipeline.pipeline.as_ref().map_or(&[], |p| &p.models), model)?;
                "pipeline classifier"
            }
            Some(ModelType::PipelineRegressor(pipeline)) => {
                models = pipelined(pipeline.pipeline.as_ref().map_or(&[], |p| &p.models), model)?;
                "pipeline regressor"
            }
            Some(kind) => {
                if let Some(layers) = crate::nn::layers(kind) {
                    // Costs of layers are those of the ops that they stand for, for the default shapes if need be.
                    let lower = |description: &_| {
                        let version = proto.specification_version;
                        crate::nn::decode(kind, version, description, &CustomLayers::default()).ok()
                    };
                    let lowered = lower(&description).or_else(|| lower(&description.fixed(&[])));
                    description.class_labels = lowered.as_ref().and_then(|l| l.class_labels.clone());
                    let costs = lowered.map(|lowered| layer_costs(&lowered.function)).unwrap_or_default();
                    let mut block = network(layers, &costs);
                    let value = |f: &description::Feature| Value { name: f.name.clone(), ty: f.kind.words() };
                    block.inputs = description.inputs.iter().map(value).collect();
                    block.outputs = description.outputs.iter().map(|f| f.name.clone()).collect();
                    functions.insert("main".to_owned(), block);
                }
                kind_name(kind)
            }
            None => {
                return Err(corrupt((
                    "specification".into(),
                    "it says no kind of model that is known".into(),
                )));
            }
        };
        let specification_version = proto.specification_version;
        Ok(Self { kind, specification_version, description, functions, models })
    }

    /// The labels of a classifier, if the structure tells them.
    #[must_use]
    pub fn class_labels(&self) -> Option<&Labels> {
        self.description.class_labels.as_ref()
    }
}

fn pipelined(models: &[ModelProto], model: &str) -> Result<Vec<Structure>, LoadError> {
    models.iter().enumerate().map(|(i, proto)| Structure::of(proto, &format!("{model}, model {i}"))).collect()
}

/// The kind of a model in words.
fn kind_name(kind: &ModelType) -> &'static str {
    match kind {
        ModelType::PipelineClassifier(_) => "pipeline classifier",
        ModelType::PipelineRegressor(_) => "pipeline regressor",
        ModelType::Pipeline(_) => "pipeline",
        ModelType::GlmRegressor(_) => "generalized linear regressor",
        ModelType::SupportVectorRegressor(_) => "support vector regressor",
        ModelType::TreeEnsembleRegressor(_) => "tree ensemble regressor",
        ModelType::NeuralNetworkRegressor(_) => "neural network regressor",
        ModelType::BayesianProbitRegressor(_) => "Bayesian probit regressor",
        ModelType::GlmClassifier(_) => "generalized linear classifier",
        ModelType::SupportVectorClassifier(_) => "support vector classifier",
        ModelType::TreeEnsembleClassifier(_) => "tree ensemble classifier",
        ModelType::NeuralNetworkClassifier(_) => "neural network classifier",
        ModelType::KNearestNeighborsClassifier(_) => "nearest neighbours classifier",
        ModelType::NeuralNetwork(_) => "neural network",
        ModelType::ItemSimilarityRecommender(_) => "item similarity recommender",
        ModelType::MlProgram(_) => "ML program",
        ModelType::CustomModel(_) => "custom model",
        ModelType::LinkedModel(_) => "linked model",
        ModelType::ClassConfidenceThresholding(_) => "class confidence thresholding",
        ModelType::OneHotEncoder(_) => "one-hot encoder",
        ModelType::Imputer(_) => "imputer",
        ModelType::FeatureVectorizer(_) => "feature vectorizer",
        ModelType::DictVectorizer(_) => "dictionary vectorizer",
        ModelType::Scaler(_) => "scaler",
        ModelType::CategoricalMapping(_) => "categorical mapping",
        ModelType::Normalizer(_) => "normalizer",
        ModelType::ArrayFeatureExtractor(_) => "array feature extractor",
        ModelType::NonMaximumSuppression(_) => "non-maximum suppression",
        ModelType::Identity(_) => "identity",
        ModelType::TextClassifier(_) => "text classifier",
        ModelType::WordTagger(_) => "word tagger",
        ModelType::VisionFeaturePrint(_) => "vision feature print",
        ModelType::SoundAnalysisPreprocessing(_) => "sound analysis preprocessing",
        ModelType::Gazetteer(_) => "gazetteer",
        ModelType::WordEmbedding(_) => "word embedding",
        ModelType::AudioFeaturePrint(_) => "audio feature print",
        ModelType::SerializedModel(_) => "serialized model",
    }
}

/// Types by name; inner blocks see those of the blocks around them, and no name is there twice in a valid program.
type Types<'a> = HashMap<&'a str, TensorType>;

fn program_function(function: &mil::Function) -> Block {
    let mut types = Types::new();
    let inputs = function.inputs.iter().map(|input| value(input, &mut types)).collect();
    let Some(block) = function.block_specializations.get(&function.opset) else { return Block::default() };
    let block = program_block(block, &mut types);
    let opset = match Opset::from_name(&function.opset) {
        Some(opset) => opset.name().to_owned(),
        None => function.opset.clone(),
    };
    Block { opset, inputs, ..block }
}

fn value<'a>(named: &'a mil::NamedValueType, types: &mut Types<'a>) -> Value {
    let ty = value_type(named.r#type.as_ref()).ok();
    let words = match &ty {
        Some(Type::Tensor(ty)) => ty.to_string(),
        Some(Type::List(ty)) => format!("list of {ty}"),
        Some(Type::State(ty)) => format!("state of {ty}"),
        None => String::new(),
    };
    if let Some(Type::Tensor(ty) | Type::State(ty)) = ty {
        types.insert(&named.name, ty);
    }
    Value { name: named.name.clone(), ty: words }
}

fn program_block<'a>(block: &'a mil::Block, types: &mut Types<'a>) -> Block {
    let inputs = block.inputs.iter().map(|input| value(input, types)).collect();
    let mut ops = Vec::new();
    for op in &block.operations {
        let outputs: Vec<_> = op.outputs.iter().map(|output| value(output, types)).collect();
        if op.r#type != "const" {
            ops.push(program_op(op, outputs, types));
        }
    }
    Block { opset: String::new(), inputs, ops, outputs: block.outputs.clone() }
}

fn program_op<'a>(op: &'a mil::Operation, outputs: Vec<Value>, types: &mut Types<'a>) -> Op {
    let mut inputs = BTreeMap::new();
    let mut found: HashMap<&str, Vec<Option<TensorType>>> = HashMap::new();
    for (parameter, argument) in &op.inputs {
        let bindings = argument.arguments.iter().filter_map(|argument| argument.binding.as_ref());
        let names = bindings.map(|binding| {
            let (name, ty) = match binding {
                Binding::Name(name) => (name.clone(), types.get(name.as_str()).cloned()),
                Binding::Value(constant) => {
                    let ty = value_type(constant.r#type.as_ref()).ok().map(|ty| ty.tensor().clone());
                    (ty.as_ref().map_or_else(|| "constant".into(), |ty| format!("constant {ty}")), ty)
                }
            };
            found.entry(parameter).or_default().push(ty);
            name
        });
        inputs.insert(parameter.clone(), names.collect());
    }
    let made = op.outputs.iter().map(|output| types.get(output.name.as_str()).cloned());
    let made: Vec<Option<TensorType>> = made.collect();
    let first = |types: &[Option<TensorType>]| least_shape(types.first()?.as_ref()?);
    let multiply_adds = first(&made)
        .or_else(|| op.outputs.is_empty().then(Vec::new))
        .and_then(|out| multiply_adds(&op.r#type, &out, &|parameter| first(found.get(parameter)?)));
    let values = || found.values().flatten().chain(&made);
    let moved = values().map(|ty| bytes(ty.as_ref()?)).try_fold(0_u64, |sum, bytes| sum.checked_add(bytes?));
    let cost = Cost {
        // What an op with blocks costs is what they cost.
        multiply_adds: if op.blocks.is_empty() { multiply_adds } else { Some(0) },
        bytes: moved,
        at_least: values().flatten().any(|ty| ty.fixed_shape().is_none()),
    };
    let blocks = op.blocks.iter().map(|block| program_block(block, types)).collect();
    Op { kind: op.r#type.clone(), name: String::new(), inputs, outputs, blocks, cost }
}

/// The shape, with 1 for every dimension that is not known.
fn least_shape(ty: &TensorType) -> Option<Vec<usize>> {
    Some(ty.shape.as_ref()?.iter().map(|dim| dim.unwrap_or(1)).collect())
}

fn bytes(ty: &TensorType) -> Option<u64> {
    let bits = element_count(&least_shape(ty)?)?.checked_mul(ty.dtype.bits().unwrap_or(0))?;
    u64::try_from(bits.div_ceil(8)).ok()
}

/// Ops that move elements, or take some of them, and compute nothing.
const MOVES: &[&str] = &[
    "band_part",
    "batch_to_space",
    "concat",
    "crop",
    "depth_to_space",
    "expand_dims",
    "fill",
    "fill_like",
    "flatten2d",
    "gather",
    "gather_along_axis",
    "gather_nd",
    "identity",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "read_state",
    "reshape",
    "reshape_like",
    "reverse",
    "reverse_sequence",
    "shape",
    "slice_by_index",
    "slice_by_size",
    "slice_update",
    "sliding_windows",
    "space_to_batch",
    "space_to_depth",
    "split",
    "squeeze",
    "stack",
    "tile",
    "transpose",
    "write_state",
];

/// Multiply-adds of an op that makes a tensor of shape `out`, from the shapes of its parameters. `None`: they do not tell.
pub(crate) fn multiply_adds(
    kind: &str,
    out: &[usize],
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Option<u64> {
    let count = |shape: &[usize]| u64::try_from(element_count(shape)?).ok();
    let made = count(out)?;
    // Elements of a weight for each of its outputs.
    let row = |weight: &str| count(shape(weight)?.get(1..)?);
    match kind {
        "conv" | "linear" => made.checked_mul(row("weight")?),
        // Each element of the input meets each filter.
        "conv_transpose" => count(&shape("x")?)?.checked_mul(row("weight")?),
        "matmul" => {
            let x = shape("x")?;
            // Whether or not it is transposed, the last two dimensions are those of the rows and of the inner product.
            let inner = match (&x[..], out) {
                ([.., m, k], [.., rows, _]) if *rows > 0 && x.len() >= 2 => m.checked_mul(*k)? / rows,
                ([.., k], _) => *k,
                ([], _) => return None,
            };
            made.checked_mul(u64::try_from(inner).ok()?)
        }
        "scaled_dot_product_attention" => {
            let (query, key, value) = (shape("query")?, shape("key")?, shape("value")?);
            let (&width, &length, &depth) =
                (query.last()?, key.get(key.len().checked_sub(2)?)?, value.last()?);
            let rows = count(query.get(..query.len() - 1)?)?;
            let inner = u64::try_from(width.checked_add(depth)?).ok()?;
            rows.checked_mul(u64::try_from(length).ok()?)?.checked_mul(inner)
        }
        "lstm" | "gru" | "rnn" => {
            let steps = count(shape("x")?.get(..2)?)?;
            let mut weights = 0_u64;
            for weight in ["weight_ih", "weight_hh", "weight_ih_back", "weight_hh_back"] {
                weights = weights.checked_add(shape(weight).and_then(|shape| count(&shape)).unwrap_or(0))?;
            }
            steps.checked_mul(weights)
        }
        "einsum" => None,
        moves if MOVES.contains(&moves) => Some(0),
        _ => Some(made.max(shape("x").and_then(|shape| count(&shape)).unwrap_or(0))),
    }
}

/// The same of an op that is decoded; a dimension that is not known counts as one.
pub(crate) fn multiply_adds_of(function: &Function, op: &ir::Op) -> u64 {
    let shape = |id: &ir::ValueId| least_shape(function.value(*id).ty.tensor());
    let out = op.outputs.first().and_then(shape).unwrap_or_default();
    let find = |name: &str| shape(op.arguments.iter().find(|(key, _)| &**key == name)?.1.ids().first()?);
    multiply_adds(&op.kind, &out, &find)
        .or_else(|| u64::try_from(element_count(&out)?).ok())
        .unwrap_or(u64::MAX)
}

/// Costs by the name of a layer's first output, which all ops of the layer have as well.
fn layer_costs(function: &Function) -> HashMap<String, Cost> {
    let mut costs: HashMap<String, Cost> = HashMap::new();
    let fixed = |id: &ir::ValueId| function.value(*id).ty.tensor().fixed_shape().is_some();
    for op in &function.body.ops {
        let Some(name) = op.outputs.first().map(|id| function.value(*id).name.to_string()) else { continue };
        let values = || op.arguments.iter().flat_map(|(_, argument)| argument.ids()).chain(&op.outputs);
        let moved: Option<u64> = values()
            .map(|id| bytes(function.value(*id).ty.tensor()))
            .try_fold(0_u64, |sum, bytes| sum.checked_add(bytes?));
        let cost =
            costs.entry(name).or_insert(Cost { multiply_adds: Some(0), bytes: Some(0), at_least: false });
        let adds = op.blocks.is_empty().then(|| multiply_adds_of(function, op));
        cost.multiply_adds = cost.multiply_adds.zip(adds).map(|(sum, adds)| sum.saturating_add(adds));
        cost.bytes = cost.bytes.zip(moved).map(|(sum, bytes)| sum.saturating_add(bytes));
        cost.at_least |= !values().all(fixed);
    }
    costs
}

fn network(layers: &[NeuralNetworkLayer], costs: &HashMap<String, Cost>) -> Block {
    let inner = |network: Option<&coreml_proto::proto::NeuralNetwork>| {
        // Layers of two branches may make blobs of one name, so their costs are not told apart.
        network.map(|network| network_without_costs(&network.layers))
    };
    let ops = layers.iter().map(|layer| {
        let blocks = match &layer.layer {
            Some(Layer::Loop(p)) => [inner(p.condition_network.as_ref()), inner(p.body_network.as_ref())],
            Some(Layer::Branch(p)) => [inner(p.if_branch.as_ref()), inner(p.else_branch.as_ref())],
            _ => [None, None],
        };
        let cost = layer.output.first().and_then(|name| costs.get(name)).copied().unwrap_or_default();
        let inputs = BTreeMap::from([(String::new(), layer.input.clone())]);
        let outputs = layer.output.iter().map(|name| Value { name: name.clone(), ty: String::new() });
        Op {
            kind: layer.layer.as_ref().map_or("unknown", crate::nn::name).to_owned(),
            name: layer.name.clone(),
            inputs,
            outputs: outputs.collect(),
            blocks: blocks.into_iter().flatten().collect(),
            cost,
        }
    });
    Block { ops: ops.collect(), ..Block::default() }
}

fn network_without_costs(layers: &[NeuralNetworkLayer]) -> Block {
    network(layers, &HashMap::new())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(path: &str) -> Structure {
        Structure::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
    }

    fn cost(kind: &str, out: &[usize], shapes: &[(&str, &[usize])]) -> Option<u64> {
        let find = |name: &str| shapes.iter().find(|(key, _)| *key == name).map(|(_, shape)| shape.to_vec());
        multiply_adds(kind, out, &find)
    }

    #[test]
    fn multiply_adds_are_those_of_the_textbook() {
        let weight: &[usize] = &[16, 3, 5, 5];
        assert_eq!(cost("conv", &[1, 16, 10, 10], &[("weight", weight)]), Some(16 * 100 * 75));
        let shapes: [(&str, &[usize]); 2] = [("x", &[1, 4, 6, 6]), ("weight", &[4, 8, 2, 2])];
        assert_eq!(cost("conv_transpose", &[1, 8, 12, 12], &shapes), Some(4 * 36 * 32));
        assert_eq!(cost("linear", &[7, 5], &[("weight", &[5, 9])]), Some(7 * 5 * 9));
        // [2, 3, 4] by [2, 4, 5]; transposed or not.
        assert_eq!(cost("matmul", &[2, 3, 5], &[("x", &[2, 3, 4])]), Some(2 * 3 * 5 * 4));
        assert_eq!(cost("matmul", &[2, 3, 5], &[("x", &[2, 4, 3])]), Some(2 * 3 * 5 * 4));
        assert_eq!(cost("matmul", &[5], &[("x", &[4])]), Some(20));
        let shapes: [(&str, &[usize]); 3] =
            [("query", &[2, 8, 10, 64]), ("key", &[2, 8, 20, 64]), ("value", &[2, 8, 20, 32])];
        let out = cost("scaled_dot_product_attention", &[2, 8, 10, 32], &shapes);
        assert_eq!(out, Some(16 * 10 * 20 * (64 + 32)));
        let shapes: [(&str, &[usize]); 3] =
            [("x", &[9, 2, 3]), ("weight_ih", &[20, 3]), ("weight_hh", &[20, 5])];
        assert_eq!(cost("lstm", &[9, 2, 5], &shapes), Some(18 * (60 + 100)));
        assert_eq!(cost("add", &[2, 3], &[("x", &[2, 3])]), Some(6));
        assert_eq!(cost("reduce_sum", &[2], &[("x", &[2, 30])]), Some(60));
        assert_eq!(cost("reshape", &[6], &[("x", &[2, 3])]), Some(0));
        assert_eq!(cost("linear", &[7, 5], &[]), None);
        assert_eq!(cost("linear", &[usize::MAX, 2], &[("weight", &[2, 9])]), None);
    }

    #[test]
    fn a_program_is_listed_with_types_and_costs() {
        let structure = read("models/digits/digits-f32.mlpackage");
        let main = &structure.functions["main"];
        assert_eq!((main.inputs[0].name.as_str(), main.inputs[0].ty.as_str()), ("image", "fp32[1, 1, 8, 8]"));
        assert_eq!(main.outputs, ["logits", "probabilities"]);
        let conv = main.ops.iter().find(|op| op.kind == "conv").unwrap();
        // 16 filters of one 3x3 plane over 8x8 pixels.
        assert_eq!(conv.outputs[0].ty, "fp32[1, 16, 8, 8]");
        assert_eq!(conv.cost.multiply_adds, Some(16 * 64 * 9));
        // Input, weight, bias, output, and what says how: strides, dilations, pads, groups.
        let how = conv.inputs.keys().filter(|key| !["x", "weight", "bias"].contains(&key.as_str())).count();
        let least = (64 + 16 * 9 + 16 + 16 * 64) * 4;
        assert!(conv.cost.bytes.unwrap() >= least && conv.cost.bytes.unwrap() < least + 40 * how as u64);
        assert!(main.ops.iter().all(|op| op.kind != "const"));
    }

    #[test]
    fn a_network_is_listed_by_layers_with_the_costs_of_its_program() {
        let network = read("models/digits/digits.mlmodel");
        let program = read("models/digits/digits-f32.mlpackage");
        let convolutions = |structure: &Structure, kind: &str| -> Vec<_> {
            let ops = structure.functions["main"].ops.iter().filter(|op| op.kind == kind);
            ops.map(|op| op.cost.multiply_adds.unwrap()).collect()
        };
        assert_eq!(network.kind, "neural network");
        let names: BTreeSet<_> = network.functions["main"].ops.iter().map(|op| op.name.as_str()).collect();
        assert!(names.len() == network.functions["main"].ops.len() && !names.contains(""));
        let of_program = convolutions(&program, "conv");
        assert!(of_program.len() == 2);
        let of_network = convolutions(&network, "convolution");
        // A layer may do more than its product: an addition of the bias, a reshape.
        for (layer, op) in of_network.iter().zip(&of_program) {
            assert!(layer >= op && *layer < op + op / 10, "{layer} against {op}");
        }
        assert_eq!(of_network.len(), of_program.len());
    }

    #[test]
    fn blocks_and_unknown_ops_are_listed() {
        let text = br#"program(1.3)
{
    func main<ios18>(int32 n, tensor<fp32, [?]> x, state<tensor<fp16, [4]>> m) {
        tensor<fp32, [?]> y = frobnicate(x = x, y = fp32(1));
        int32 end = while_loop(loop_vars = (n))
            (int32 i) {
                bool go = less(x = i, y = n);
            } -> (go)
            (int32 i) {
                int32 next = add(x = i, y = int32(1));
            } -> (next);
    } -> (y);
}"#;
        let program = crate::mil_text::parse(text, "").unwrap();
        let main = program_function(&program.functions["main"]);
        assert_eq!(main.opset, "iOS18");
        assert_eq!(main.inputs[2].ty, "state of fp16[4]");
        let counts = main.histogram();
        let counts: Vec<_> = counts.iter().map(|(kind, &count)| (kind.as_str(), count)).collect();
        assert_eq!(counts, [("add", 1), ("frobnicate", 1), ("less", 1), ("while_loop", 1)]);
        assert_eq!(main.ops[0].cost, Cost { multiply_adds: Some(1), bytes: Some(12), at_least: true });
        assert_eq!(main.ops[0].inputs["y"], ["constant fp32[]"]);
        assert_eq!(
            main.ops[1].blocks[1].ops[0].cost,
            Cost { multiply_adds: Some(1), bytes: Some(12), at_least: false }
        );
        assert_eq!((main.cost().multiply_adds, main.cost().at_least), (Some(3), true));
    }
}
