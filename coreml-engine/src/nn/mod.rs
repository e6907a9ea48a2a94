//! Neural networks (`NeuralNetwork`, `…Classifier`, `…Regressor`), lowered layer by layer to the ops of ML programs.
//!
//! One layer is one [`LayerDef`] in the file of its family: its name, and a function that adds the ops it stands for.
//! What a layer means is said in the comments of `NeuralNetwork.proto`; which ops coremltools takes it for is in its
//! `converters/mil/backend/nn/op_mapping.py`, read backwards. All blobs are floats; a layer that counts or compares casts.
//! There are no blobs of rank 0: what would be one is a list of one element.
//!
//! The list of layers ([`FAMILIES`]), the gap ([`unsupported`]) and the dispatch are derived from the entries, and the
//! format's own list (`layers!` below) is matched without a wildcard, so that a layer added to the format does not
//! compile before somebody decides about it.

use std::collections::HashMap;
use std::sync::LazyLock;

use coreml_proto::proto as spec;
use spec::model::Type as ModelType;
use spec::neural_network_layer::Layer;
use spec::{
    NeuralNetworkImageShapeMapping as ImageMapping, NeuralNetworkMultiArrayShapeMapping as ArrayMapping,
};

use crate::custom::CustomLayers;
use crate::decode::{DecodeError, mil::Decoded};
use crate::description::{Feature, FeatureKind, Flexible, Labels, ModelDescription};
use crate::error::OpError;
use crate::ir::{Function, Opset, Type};
use crate::types::{DType, TensorType};

use context::{Blob, Context, Dims};
use control_flow::Lowering;

/// One entry of a family: the layer's name in the format, its variant there, and what lowers it.
macro_rules! layer {
    ($name:literal, $variant:ident, $lower:expr) => {
        LayerDef {
            name: $name,
            lower: crate::nn::Lower::Layer(|cx, layer| match layer {
                coreml_proto::proto::neural_network_layer::Layer::$variant(parameters) => {
                    crate::nn::call(cx, parameters, $lower)
                }
                other => Err(crate::nn::misrouted($name, other)),
            }),
        }
    };
}

mod activation;
mod context;
mod control_flow;
mod convolution;
mod custom;
mod elementwise;
mod linear;
mod normalization;
mod pooling;
mod preprocessing;
mod random;
mod recurrent;
mod reduction;
mod resizing;
mod shape;
mod slicing;
mod tensor;
mod weights;

/// One neural-network layer that the engine runs.
#[derive(Clone, Copy)]
pub struct LayerDef {
    /// Its name in the format: the field of `NeuralNetworkLayer`.
    pub name: &'static str,
    lower: Lower,
}

/// What adds the ops of a layer.
#[derive(Clone, Copy)]
enum Lower {
    /// From its parameters and inputs alone.
    Layer(fn(&mut Context<'_>, &Layer) -> Result<Vec<Blob>, OpError>),
    /// With the network around it: what has networks inside, leaves a loop, or asks the user.
    Flow(for<'a> fn(&mut Lowering<'a, '_>, &'a spec::NeuralNetworkLayer) -> Result<(), DecodeError>),
}

/// A group of layers.
#[derive(Clone, Copy)]
pub struct Family {
    /// The name of its file.
    pub name: &'static str,
    /// Its layers.
    pub layers: &'static [LayerDef],
}

/// Every layer that the engine runs.
pub static FAMILIES: &[Family] = &[
    Family { name: "activation", layers: activation::LAYERS },
    Family { name: "control_flow", layers: control_flow::LAYERS },
    Family { name: "convolution", layers: convolution::LAYERS },
    Family { name: "custom", layers: custom::LAYERS },
    Family { name: "elementwise", layers: elementwise::LAYERS },
    Family { name: "linear", layers: linear::LAYERS },
    Family { name: "normalization", layers: normalization::LAYERS },
    Family { name: "pooling", layers: pooling::LAYERS },
    Family { name: "random", layers: random::LAYERS },
    Family { name: "recurrent", layers: recurrent::LAYERS },
    Family { name: "reduction", layers: reduction::LAYERS },
    Family { name: "resizing", layers: resizing::LAYERS },
    Family { name: "shape", layers: shape::LAYERS },
    Family { name: "slicing", layers: slicing::LAYERS },
    Family { name: "tensor", layers: tensor::LAYERS },
];

macro_rules! layers {
    ($($variant:ident = $name:literal,)*) => {
        /// Every layer of the format, in its order.
        pub static LAYERS: &[&str] = &[$($name),*];

        /// The name of a layer in the format.
        pub(crate) fn name(layer: &Layer) -> &'static str {
            match layer {
                $(Layer::$variant(_) => $name,)*
            }
        }
    };
}

layers! {
    Convolution = "convolution",
    Pooling = "pooling",
    Activation = "activation",
    InnerProduct = "innerProduct",
    Embedding = "embedding",
    Batchnorm = "batchnorm",
    Mvn = "mvn",
    L2normalize = "l2normalize",
    Softmax = "softmax",
    Lrn = "lrn",
    Crop = "crop",
    Padding = "padding",
    Upsample = "upsample",
    ResizeBilinear = "resizeBilinear",
    CropResize = "cropResize",
    Unary = "unary",
    Add = "add",
    Multiply = "multiply",
    Average = "average",
    Scale = "scale",
    Bias = "bias",
    Max = "max",
    Min = "min",
    Dot = "dot",
    Reduce = "reduce",
    LoadConstant = "loadConstant",
    Reshape = "reshape",
    Flatten = "flatten",
    Permute = "permute",
    Concat = "concat",
    Split = "split",
    SequenceRepeat = "sequenceRepeat",
    ReorganizeData = "reorganizeData",
    Slice = "slice",
    SimpleRecurrent = "simpleRecurrent",
    Gru = "gru",
    UniDirectionalLstm = "uniDirectionalLSTM",
    BiDirectionalLstm = "biDirectionalLSTM",
    Custom = "custom",
    Copy = "copy",
    Branch = "branch",
    Loop = "loop",
    LoopBreak = "loopBreak",
    LoopContinue = "loopContinue",
    RangeStatic = "rangeStatic",
    RangeDynamic = "rangeDynamic",
    Clip = "clip",
    Ceil = "ceil",
    Floor = "floor",
    Sign = "sign",
    Round = "round",
    Exp2 = "exp2",
    Sin = "sin",
    Cos = "cos",
    Tan = "tan",
    Asin = "asin",
    Acos = "acos",
    Atan = "atan",
    Sinh = "sinh",
    Cosh = "cosh",
    Tanh = "tanh",
    Asinh = "asinh",
    Acosh = "acosh",
    Atanh = "atanh",
    Erf = "erf",
    Gelu = "gelu",
    Equal = "equal",
    NotEqual = "notEqual",
    LessThan = "lessThan",
    LessEqual = "lessEqual",
    GreaterThan = "greaterThan",
    GreaterEqual = "greaterEqual",
    LogicalOr = "logicalOr",
    LogicalXor = "logicalXor",
    LogicalNot = "logicalNot",
    LogicalAnd = "logicalAnd",
    ModBroadcastable = "modBroadcastable",
    MinBroadcastable = "minBroadcastable",
    MaxBroadcastable = "maxBroadcastable",
    AddBroadcastable = "addBroadcastable",
    PowBroadcastable = "powBroadcastable",
    DivideBroadcastable = "divideBroadcastable",
    FloorDivBroadcastable = "floorDivBroadcastable",
    MultiplyBroadcastable = "multiplyBroadcastable",
    SubtractBroadcastable = "subtractBroadcastable",
    Tile = "tile",
    Stack = "stack",
    Gather = "gather",
    Scatter = "scatter",
    GatherNd = "gatherND",
    ScatterNd = "scatterND",
    SoftmaxNd = "softmaxND",
    GatherAlongAxis = "gatherAlongAxis",
    ScatterAlongAxis = "scatterAlongAxis",
    Reverse = "reverse",
    ReverseSeq = "reverseSeq",
    SplitNd = "splitND",
    ConcatNd = "concatND",
    Transpose = "transpose",
    SliceStatic = "sliceStatic",
    SliceDynamic = "sliceDynamic",
    SlidingWindows = "slidingWindows",
    TopK = "topK",
    ArgMin = "argMin",
    ArgMax = "argMax",
    EmbeddingNd = "embeddingND",
    BatchedMatmul = "batchedMatmul",
    GetShape = "getShape",
    LoadConstantNd = "loadConstantND",
    FillLike = "fillLike",
    FillStatic = "fillStatic",
    FillDynamic = "fillDynamic",
    BroadcastToLike = "broadcastToLike",
    BroadcastToStatic = "broadcastToStatic",
    BroadcastToDynamic = "broadcastToDynamic",
    Squeeze = "squeeze",
    ExpandDims = "expandDims",
    FlattenTo2D = "flattenTo2D",
    ReshapeLike = "reshapeLike",
    ReshapeStatic = "reshapeStatic",
    ReshapeDynamic = "reshapeDynamic",
    RankPreservingReshape = "rankPreservingReshape",
    ConstantPad = "constantPad",
    RandomNormalLike = "randomNormalLike",
    RandomNormalStatic = "randomNormalStatic",
    RandomNormalDynamic = "randomNormalDynamic",
    RandomUniformLike = "randomUniformLike",
    RandomUniformStatic = "randomUniformStatic",
    RandomUniformDynamic = "randomUniformDynamic",
    RandomBernoulliLike = "randomBernoulliLike",
    RandomBernoulliStatic = "randomBernoulliStatic",
    RandomBernoulliDynamic = "randomBernoulliDynamic",
    CategoricalDistribution = "categoricalDistribution",
    ReduceL1 = "reduceL1",
    ReduceL2 = "reduceL2",
    ReduceMax = "reduceMax",
    ReduceMin = "reduceMin",
    ReduceSum = "reduceSum",
    ReduceProd = "reduceProd",
    ReduceMean = "reduceMean",
    ReduceLogSum = "reduceLogSum",
    ReduceSumSquare = "reduceSumSquare",
    ReduceLogSumExp = "reduceLogSumExp",
    WhereNonZero = "whereNonZero",
    MatrixBandPart = "matrixBandPart",
    LowerTriangular = "lowerTriangular",
    UpperTriangular = "upperTriangular",
    WhereBroadcastable = "whereBroadcastable",
    LayerNormalization = "layerNormalization",
    NonMaximumSuppression = "NonMaximumSuppression",
    OneHot = "oneHot",
    CumSum = "cumSum",
    ClampedReLu = "clampedReLU",
    ArgSort = "argSort",
    Pooling3d = "pooling3d",
    GlobalPooling3d = "globalPooling3d",
    SliceBySize = "sliceBySize",
    Convolution3d = "convolution3d",
}

static BY_NAME: LazyLock<HashMap<&'static str, &'static LayerDef>> =
    LazyLock::new(|| FAMILIES.iter().flat_map(|f| f.layers).map(|layer| (layer.name, layer)).collect());

/// The layers of the format that the engine does not run, in the format's order.
///
/// ```
/// let gap = coreml_engine::nn::unsupported();
/// assert!(!gap.contains(&"custom") && !gap.contains(&"convolution"));
/// ```
#[must_use]
pub fn unsupported() -> Vec<&'static str> {
    LAYERS.iter().copied().filter(|name| !BY_NAME.contains_key(name)).collect()
}

/// Lowers with the parameters of one variant; some layers make one blob, some several.
fn call<P, M: Into<Vec<Blob>>>(
    cx: &mut Context<'_>,
    parameters: &P,
    lower: impl FnOnce(&mut Context<'_>, &P) -> Result<M, OpError>,
) -> Result<Vec<Blob>, OpError> {
    lower(cx, parameters).map(Into::into)
}

/// An entry whose name and variant do not go together; the tests see to it that there is none.
fn misrouted(entry: &str, found: &Layer) -> OpError {
    OpError::Invalid(format!("the entry {entry} was given a layer {}", name(found)))
}

/// As [`misrouted`], where the layer is looked at again.
fn misrouted_layer(entry: &str) -> OpError {
    OpError::Invalid(format!("the entry {entry} was given another layer"))
}

/// What the three kinds of network have in common.
struct Network<'a> {
    layers: &'a [spec::NeuralNetworkLayer],
    preprocessing: &'a [spec::NeuralNetworkPreprocessing],
    arrays: i32,
    images: i32,
    /// Of a classifier: the blob of the probabilities (may be empty), and the labels.
    classes: Option<(&'a str, Labels)>,
}

impl<'a> Network<'a> {
    /// The network in a model; other kinds are not supported. How a network is trained does not matter here.
    fn of(kind: &'a ModelType) -> Result<Self, DecodeError> {
        use spec::neural_network_classifier::ClassLabels;
        match kind {
            ModelType::NeuralNetwork(spec::NeuralNetwork {
                layers,
                preprocessing,
                array_input_shape_mapping,
                image_input_shape_mapping,
                update_params: _,
            })
            | ModelType::NeuralNetworkRegressor(spec::NeuralNetworkRegressor {
                layers,
                preprocessing,
                array_input_shape_mapping,
                image_input_shape_mapping,
                update_params: _,
            }) => Ok(Self {
                layers,
                preprocessing,
                arrays: *array_input_shape_mapping,
                images: *image_input_shape_mapping,
                classes: None,
            }),
            ModelType::NeuralNetworkClassifier(spec::NeuralNetworkClassifier {
                layers,
                preprocessing,
                array_input_shape_mapping,
                image_input_shape_mapping,
                update_params: _,
                label_probability_layer_name,
                class_labels,
            }) => {
                let labels = match class_labels {
                    Some(ClassLabels::StringClassLabels(labels)) => Labels::Strings(labels.vector.clone()),
                    Some(ClassLabels::Int64ClassLabels(labels)) => Labels::Ints(labels.vector.clone()),
                    None => return Err(DecodeError::corrupt("classifier", "it has no class labels")),
                };
                Ok(Self {
                    layers,
                    preprocessing,
                    arrays: *array_input_shape_mapping,
                    images: *image_input_shape_mapping,
                    classes: Some((label_probability_layer_name, labels)),
                })
            }
            _ => Err(DecodeError::Unsupported("this kind of model".into())),
        }
    }

    /// Whether a layer works along the sequence, so that an input may have one.
    fn has_sequences(&self) -> bool {
        let along = |layer: &Layer| {
            matches!(
                layer,
                Layer::SimpleRecurrent(_)
                    | Layer::Gru(_)
                    | Layer::UniDirectionalLstm(_)
                    | Layer::BiDirectionalLstm(_)
                    | Layer::Embedding(_)
                    | Layer::SequenceRepeat(_)
            )
        };
        self.layers.iter().any(|layer| control_flow::any_layer(layer, &along))
    }
}

/// The layers of a model, if it is a network.
pub(crate) fn layers(kind: &ModelType) -> Option<&[spec::NeuralNetworkLayer]> {
    Network::of(kind).ok().map(|network| network.layers)
}

/// The program that a model of another kind than an ML program stands for.
pub(crate) fn decode(
    kind: &ModelType,
    specification_version: i32,
    description: &ModelDescription,
    custom: &CustomLayers,
) -> Result<Decoded, DecodeError> {
    let network = Network::of(kind)?;
    // Version 4 (iOS 13) brought the exact mappings; before it, the fields do not exist.
    let (arrays, images) = if specification_version < 4 { (0, 0) } else { (network.arrays, network.images) };
    let arrays = ArrayMapping::try_from(arrays)
        .map_err(|_| DecodeError::corrupt("network", format!("unknown array mapping {arrays}")))?;
    let images = ImageMapping::try_from(images)
        .map_err(|_| DecodeError::corrupt("network", format!("unknown image mapping {images}")))?;

    let mut function = Function { opset: Opset::Ios13, ..Function::default() };
    let mut blobs: HashMap<&str, Blob> = HashMap::new();
    let mut inputs = Vec::new();
    for feature in &description.inputs {
        let dims = input_dims(feature, arrays, images, network.has_sequences())
            .map_err(|what| DecodeError::Unsupported(format!("the input `{}` ({what})", feature.name)))?;
        let ty = Type::Tensor(TensorType { dtype: DType::F32, shape: Some(dims.clone()) });
        let id = function.new_value(feature.name.as_str(), ty);
        function.body.inputs.push(id);
        if dims.len() > context::MAX_RANK {
            return Err(DecodeError::Unsupported(format!(
                "the input `{}` (rank {})",
                feature.name,
                dims.len()
            )));
        }
        inputs.push((feature.name.clone(), id));
        blobs.insert(&feature.name, Blob::new(id, dims));
    }
    for preprocessing in network.preprocessing {
        preprocessing::apply(&mut function, &mut blobs, &description.inputs, preprocessing)?;
    }
    let classes = network.classes.map(|(name, labels)| {
        let last = network.layers.last().and_then(|layer| layer.output.first());
        (if name.is_empty() { last.map_or("", String::as_str) } else { name }, labels)
    });
    let read = description.outputs.iter().map(|feature| feature.name.as_str());
    let read = read.chain(classes.as_ref().map(|(name, _)| *name));
    let mut lowering = Lowering::new(&mut function, blobs, network.layers, read, custom);
    lowering.layers(network.layers)?;

    let mut outputs = Vec::new();
    let mut class_labels = None;
    if let Some((name, labels)) = classes {
        let blob = lowering.blob(name).ok_or_else(|| {
            DecodeError::corrupt("classifier", format!("no layer makes the probabilities `{name}`"))
        })?;
        let count = blob.fixed().map(|shape| shape.iter().product::<usize>());
        if labels.is_empty() || count.is_some_and(|count| count != labels.len()) {
            let reason = format!("{} labels for probabilities {}", labels.len(), blob.words());
            return Err(DecodeError::corrupt("classifier", reason));
        }
        for name in [&description.predicted_feature, &description.predicted_probabilities] {
            if description.outputs.iter().any(|feature| feature.name == *name) {
                outputs.push((name.clone(), blob.id));
            }
        }
        class_labels = Some(labels);
    }
    for feature in &description.outputs {
        if outputs.iter().any(|(name, _)| *name == feature.name) {
            continue;
        }
        let blob = lowering
            .blob(&feature.name)
            .ok_or_else(|| DecodeError::corrupt(format!("output `{}`", feature.name), "no layer makes it"))?;
        outputs.push((feature.name.clone(), blob.id));
    }
    Ok(Decoded { function, inputs, outputs, class_labels })
}

/// The shape that the layers see of an input, or what of it is not supported.
fn input_dims(
    feature: &Feature,
    arrays: ArrayMapping,
    images: ImageMapping,
    sequences: bool,
) -> Result<Dims, String> {
    match &feature.kind {
        FeatureKind::Tensor { tensor } => {
            let dims = flexible_dims(&tensor.shape, tensor.flexible.as_ref())?;
            if arrays == ArrayMapping::ExactArrayMapping {
                return if dims.is_empty() { Err("an array without a shape".into()) } else { Ok(dims) };
            }
            let lead = if sequences { None } else { Some(1) };
            match dims[..] {
                [c] => Ok(vec![lead, lead, c, Some(1), Some(1)]),
                [c, h, w] => Ok(vec![lead, lead, c, h, w]),
                _ => Err(format!("shape {:?} where one or three dimensions are expected", tensor.shape)),
            }
        }
        FeatureKind::Image { image } => {
            use crate::description::Color;
            let channels = match image.color {
                Color::Rgb | Color::Bgr => 3,
                Color::Gray | Color::GrayFloat16 => 1,
            };
            let size = flexible_dims(&[image.height, image.width], image.flexible.as_ref())?;
            let mut dims = match images {
                ImageMapping::Rank5ImageMapping => vec![Some(1), Some(1), Some(channels)],
                ImageMapping::Rank4ImageMapping => vec![Some(1), Some(channels)],
            };
            dims.extend(size);
            Ok(dims)
        }
        FeatureKind::Double | FeatureKind::Int64 => Ok(match arrays {
            ArrayMapping::Rank5ArrayMapping => vec![Some(1); 5],
            ArrayMapping::ExactArrayMapping => vec![Some(1)],
        }),
        FeatureKind::String | FeatureKind::Dictionary { .. } | FeatureKind::Sequence { .. } => {
            Err(feature.kind.words())
        }
    }
}

/// The dimensions that are the same for all allowed shapes.
fn flexible_dims(shape: &[usize], flexible: Option<&Flexible>) -> Result<Dims, String> {
    let rank = |n: usize| {
        if n == shape.len() { Ok(()) } else { Err(format!("shapes of ranks {n} and {}", shape.len())) }
    };
    let mut dims: Dims = shape.iter().copied().map(Some).collect();
    match flexible {
        None => {}
        Some(Flexible::Enumerated(shapes)) => {
            for other in shapes {
                rank(other.len())?;
                dims.iter_mut().zip(other).for_each(|(dim, other)| *dim = dim.filter(|dim| dim == other));
            }
        }
        Some(Flexible::Ranges(ranges)) => {
            rank(ranges.len())?;
            for (dim, &(least, most)) in dims.iter_mut().zip(ranges) {
                *dim = dim.filter(|_| least == most);
            }
        }
    }
    Ok(dims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_a_layer_of_the_format_and_there_once() {
        let mut seen = std::collections::HashSet::new();
        for layer in FAMILIES.iter().flat_map(|family| family.layers) {
            assert!(LAYERS.contains(&layer.name), "{} is no layer of the format", layer.name);
            assert!(seen.insert(layer.name), "{} twice", layer.name);
        }
        assert_eq!(LAYERS.len(), 158);
        assert_eq!(seen.len() + unsupported().len(), LAYERS.len());
    }

    #[test]
    fn every_entry_takes_the_variant_of_its_name() {
        // A layer without parameters encodes as its tag alone; the entry of another name must refuse it.
        for (def, layer) in sample_layers() {
            let mut function = Function::default();
            let mut cx = Context { function: &mut function, name: "y".into(), inputs: vec![], outputs: 1 };
            let Lower::Layer(lower) = def.lower else { continue };
            let error = lower(&mut cx, &layer).err().map(|error| error.to_string());
            assert!(!error.clone().unwrap_or_default().contains("was given"), "{}: {error:?}", def.name);
        }
    }

    /// Every entry with an empty layer of its name.
    fn sample_layers() -> Vec<(&'static LayerDef, Layer)> {
        use prost::Message;
        let named = |wanted: &str| {
            (100_u32..1500).find_map(|tag| {
                let mut bytes = Vec::new();
                prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut bytes);
                bytes.push(0);
                let layer = spec::NeuralNetworkLayer::decode(&bytes[..]).ok()?.layer?;
                (name(&layer) == wanted).then_some(layer)
            })
        };
        FAMILIES.iter().flat_map(|f| f.layers).map(|def| (def, named(def.name).expect(def.name))).collect()
    }
}
