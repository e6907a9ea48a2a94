//! Neural networks give what NumPy computes from the formulas of `NeuralNetwork.proto`. `fixtures/make_nn.py` makes the
//! models and the expected outputs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use common::{array, report};
use coreml_engine::description::ArrayDtype;
use coreml_engine::{Array, Elements, ImageRef, Input, Key, Limits, LoadOptions, Model, Output, PixelFormat};
use coreml_engine::{
    CustomError, CustomLayer, CustomLayers, CustomParameter, CustomSpec, CustomTensor, CustomWeights,
};
use coreml_proto::proto::{self as spec, neural_network_layer::Layer};
use prost::Message;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nn")
}

fn cases() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    match serde_json::from_str(&text).unwrap() {
        Value::Object(cases) => cases,
        other => panic!("{other}"),
    }
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| usize::try_from(x.as_u64().unwrap()).unwrap()).collect()
}

/// An input in memory of its own.
enum Given {
    Array(Vec<usize>, Elements),
    Image(PixelFormat, usize, usize, Vec<u8>),
}

impl Given {
    fn of(value: &Value) -> Self {
        for (key, format) in [("bgra", PixelFormat::Bgra8), ("gray", PixelFormat::Gray8)] {
            if let Some(pixels) = value.get(key) {
                let size = |key: &str| usize::try_from(value[key].as_u64().unwrap()).unwrap();
                let pixels = pixels.as_array().unwrap().iter();
                let pixels = pixels.map(|x| u8::try_from(x.as_u64().unwrap()).unwrap()).collect();
                return Self::Image(format, size("width"), size("height"), pixels);
            }
        }
        let elements = match (value.get("float32"), value.get("float64")) {
            (Some(data), _) => Elements::Float32(floats(data)),
            (None, Some(data)) => {
                Elements::Float64(data.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect())
            }
            (None, None) => panic!("{value}"),
        };
        Self::Array(sizes(&value["shape"]), elements)
    }

    fn input(&self) -> Input<'_> {
        match self {
            Self::Array(shape, elements) => array(shape, elements),
            Self::Image(format, width, height, pixels) => Input::Image(ImageRef {
                format: *format,
                width: *width,
                height: *height,
                row_bytes: width * format.size(),
                pixels,
            }),
        }
    }
}

/// The custom layers of the fixtures: `y = scale x^exponent`, and its sums over the last dimension.
struct PowerAndSum {
    exponent: f32,
    scale: Vec<f32>,
}

impl PowerAndSum {
    fn make(spec: &CustomSpec) -> Result<Box<dyn CustomLayer>, CustomError> {
        let expected = [
            ("note", CustomParameter::String("power".into())),
            ("keep", CustomParameter::Bool(true)),
            ("big", CustomParameter::Int(1 << 40)),
        ];
        let same = |(name, value): &(&str, _)| spec.parameters.get(*name) == Some(value);
        if spec.description != "for the tests" || !expected.iter().all(same) {
            return Err(format!("{spec:?}").into());
        }
        let exponent =
            spec.parameters.get("exponent").and_then(CustomParameter::as_f64).ok_or("no exponent")?;
        match &spec.weights[..] {
            [CustomWeights::Floats(scale), CustomWeights::Bytes(raw)] if raw == b"raw bytes" => {
                Ok(Box::new(Self { exponent: exponent as f32, scale: scale.clone() }))
            }
            other => Err(format!("{other:?}").into()),
        }
    }
}

impl CustomLayer for PowerAndSum {
    fn output_shapes(&self, inputs: &[Vec<Option<usize>>]) -> Result<Vec<Vec<Option<usize>>>, CustomError> {
        match inputs {
            [x] if x.last() == Some(&Some(self.scale.len())) => {
                let mut sums = x.clone();
                *sums.last_mut().ok_or("rank 0")? = Some(1);
                Ok(vec![x.clone(), sums])
            }
            _ => Err(format!("inputs {inputs:?}").into()),
        }
    }

    fn evaluate(&self, inputs: &[CustomTensor<'_>], outputs: &mut [&mut [f32]]) -> Result<(), CustomError> {
        let ([x], [y, sums]) = (inputs, outputs) else { return Err("arity".into()) };
        let width = self.scale.len();
        if width == 0 {
            return Err("no weights".into());
        }
        for (i, &x) in x.data.iter().enumerate() {
            if x < 0.0 {
                return Err("a negative number".into());
            }
            y[i] = self.scale[i % width] * x.powf(self.exponent);
            sums[i / width] += y[i];
        }
        Ok(())
    }
}

fn custom_layers() -> CustomLayers {
    CustomLayers::new().with("PowerAndSum", PowerAndSum::make)
}

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    found == expected || (found - expected).abs() <= tolerance * (1.0 + expected.abs())
}

/// What is wrong with an output, if anything.
fn compare(found: &Output, expected: &Value, tolerance: f64) -> Result<(), String> {
    let wrong = || Err(format!("{found:?} against {expected}"));
    if let Some(key) = expected.get("key") {
        let same = match found {
            Output::Key(Key::String(label)) => key.as_str() == Some(label),
            Output::Key(Key::Int64(label)) => key.as_i64() == Some(*label),
            _ => false,
        };
        return if same { Ok(()) } else { wrong() };
    }
    if let Some(number) = expected.get("double") {
        return match found {
            Output::Double(x) if close(*x, number.as_f64().unwrap(), tolerance) => Ok(()),
            _ => wrong(),
        };
    }
    for (kind, integers) in [("dictionary", false), ("integers", true)] {
        let Some(entries) = expected.get(kind) else { continue };
        let Output::Dictionary(found) = found else { return wrong() };
        let entries = entries.as_object().unwrap();
        let same = found.len() == entries.len()
            && found.iter().all(|(key, p)| {
                let name = match key {
                    Key::String(name) if !integers => name.clone(),
                    Key::Int64(number) if integers => number.to_string(),
                    _ => return false,
                };
                entries.get(&name).is_some_and(|e| close(*p, e.as_f64().unwrap(), tolerance))
            });
        return if same { Ok(()) } else { Err(format!("{found:?} against {expected}")) };
    }
    let Output::Array(Array { shape, elements: Elements::Float32(data) }) = found else { return wrong() };
    let expected_data = floats(&expected["float32"]);
    if *shape != sizes(&expected["shape"]) {
        return Err(format!("shape {shape:?} against {}", expected["shape"]));
    }
    let off = data.iter().zip(&expected_data).position(|(f, e)| !close((*f).into(), (*e).into(), tolerance));
    match off {
        Some(i) => Err(format!("element {i}: {data:?} against {expected_data:?}")),
        None if data.len() != expected_data.len() => Err(format!("{} elements", data.len())),
        None => Ok(()),
    }
}

fn run(name: &str, case: &Value) -> Result<(), String> {
    let path = folder().join(format!("{name}.mlmodel"));
    let custom = custom_layers();
    let options = LoadOptions::default().custom_layers(&custom);
    let model = Model::load(&path, &options).map_err(|error| report(&error))?;
    let given: Vec<_> =
        case["inputs"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), Given::of(v))).collect();
    let inputs: Vec<_> = given.iter().map(|(name, given)| (*name, given.input())).collect();
    let mut session = model.session(NonZeroUsize::MIN);
    let outputs = session.predict(&inputs, None, &[]).map_err(|error| report(&error))?;
    let tolerance = case["tolerance"].as_f64().unwrap();
    let expected = case["outputs"].as_object().unwrap();
    if outputs.len() != expected.len() {
        return Err(format!("{} outputs against {}", outputs.len(), expected.len()));
    }
    for (name, found) in &outputs {
        let expected = expected.get(name).ok_or_else(|| format!("no output `{name}` is expected"))?;
        compare(found, expected, tolerance).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

#[test]
fn every_network_equals_its_reference() {
    let failures: Vec<_> = cases()
        .iter()
        .filter_map(|(name, case)| Some(format!("{name}: {}", run(name, case).err()?)))
        .collect();
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_layer_that_the_engine_runs_has_a_case() {
    let cases = cases();
    let covered: BTreeSet<_> = cases
        .values()
        .flat_map(|case| case["layers"].as_array().unwrap())
        .map(|l| l.as_str().unwrap())
        .collect();
    let uncovered: Vec<_> = coreml_engine::nn::FAMILIES
        .iter()
        .flat_map(|family| family.layers)
        .filter(|layer| !covered.contains(layer.name))
        .map(|layer| layer.name)
        .collect();
    assert!(uncovered.is_empty(), "{uncovered:?}");
}

/// The old mapping: what the description calls `[C]` is `[sequence, batch, C, 1, 1]`, and may be given so.
#[test]
fn an_array_of_the_older_mapping_may_be_given_in_all_its_dimensions() {
    let model =
        Model::load(folder().join("innerProduct_older_mapping.mlmodel"), &LoadOptions::default()).unwrap();
    let case = &cases()["innerProduct_older_mapping"];
    let x = Elements::Float32(floats(&case["inputs"]["x"]["float32"]));
    let mut session = model.session(NonZeroUsize::MIN);
    let outputs = session.predict(&[("x", array(&[1, 1, 4, 1, 1], &x))], None, &[]).unwrap();
    compare(&outputs[0].1, &case["outputs"]["y"], 1e-5).unwrap();
    for shape in [&[1, 4][..], &[1, 1, 1, 4, 1], &[2, 2]] {
        let error = session.predict(&[("x", array(shape, &x))], None, &[]).unwrap_err().to_string();
        assert!(error.contains("tensor float32 [4]"), "{shape:?}: {error}");
    }
}

#[test]
fn a_classifier_is_described_with_its_labels() {
    for (name, labels) in
        [("classifier_of_rgb_images", r#"["cat","dog","eel"]"#), ("classify_integers", "[7,8,9]")]
    {
        let model = Model::load(folder().join(format!("{name}.mlmodel")), &LoadOptions::default()).unwrap();
        let description = serde_json::to_value(model.description()).unwrap();
        assert_eq!(description["class_labels"].to_string(), labels);
    }
}

#[test]
fn wanted_outputs_of_a_classifier_come_alone() {
    let case = &cases()["classify_strings"];
    let model = Model::load(folder().join("classify_strings.mlmodel"), &LoadOptions::default()).unwrap();
    let x = Elements::Float32(floats(&case["inputs"]["x"]["float32"]));
    let mut session = model.session(NonZeroUsize::MIN);
    let outputs = session.predict(&[("x", array(&[1, 4], &x))], None, &["classLabel"]).unwrap();
    assert_eq!(outputs.len(), 1);
    compare(&outputs[0].1, &case["outputs"]["classLabel"], 0.0).unwrap();
    assert_eq!(x.dtype(), ArrayDtype::Float32);
}

fn array_type(shape: &[i64], lengths: Option<u64>) -> spec::ArrayFeatureType {
    use spec::array_feature_type::{ArrayDataType, ShapeFlexibility, ShapeRange};
    let lengths = lengths.map(|lower_bound| spec::SizeRange { lower_bound, upper_bound: 20 });
    spec::ArrayFeatureType {
        shape: shape.to_vec(),
        data_type: ArrayDataType::Float32.into(),
        shape_flexibility: lengths
            .map(|lengths| ShapeFlexibility::ShapeRange(ShapeRange { size_ranges: vec![lengths] })),
        ..Default::default()
    }
}

fn feature((name, array): (&str, spec::ArrayFeatureType)) -> spec::FeatureDescription {
    let kind = spec::feature_type::Type::MultiArrayType(array);
    spec::FeatureDescription {
        name: name.into(),
        r#type: Some(spec::FeatureType { r#type: Some(kind), ..Default::default() }),
        ..Default::default()
    }
}

fn layer(inputs: &[&str], output: &str, layer: Layer) -> spec::NeuralNetworkLayer {
    spec::NeuralNetworkLayer {
        name: output.into(),
        input: inputs.iter().map(|&input| input.into()).collect(),
        output: vec![output.into()],
        layer: Some(layer),
        ..Default::default()
    }
}

/// A network whose outputs are of any shape.
fn network<const N: usize>(
    inputs: [(&str, spec::ArrayFeatureType); N],
    layers: Vec<spec::NeuralNetworkLayer>,
    outputs: &[&str],
) -> Vec<u8> {
    let network = spec::NeuralNetwork {
        layers,
        array_input_shape_mapping: spec::NeuralNetworkMultiArrayShapeMapping::ExactArrayMapping.into(),
        ..Default::default()
    };
    let description = spec::ModelDescription {
        input: inputs.into_iter().map(feature).collect(),
        output: outputs.iter().map(|&output| feature((output, array_type(&[], None)))).collect(),
        ..Default::default()
    };
    let model = spec::Model {
        specification_version: 4,
        description: Some(description),
        r#type: Some(spec::model::Type::NeuralNetwork(network)),
        ..Default::default()
    };
    model.encode_to_vec()
}

/// What coremltools' converter makes of a list of numbers, some of which it takes for scalars.
#[test]
fn a_dimension_of_one_in_front_does_not_count_where_lists_are_joined() {
    let expand = Layer::ExpandDims(spec::ExpandDimsLayerParams { axes: vec![0] });
    let concat = |axis| Layer::ConcatNd(spec::ConcatNdLayerParams { axis, ..Default::default() });
    let proto = |axis, length| {
        let inputs = [("x", array_type(&[1], None)), ("y", array_type(&[length], None))];
        let layers = vec![
            layer(&["y"], "expanded", expand.clone()),
            layer(&["x", "expanded", "x"], "z", concat(axis)),
        ];
        network(inputs, layers, &["z"])
    };
    let files = std::collections::HashMap::new();
    let (x, y) = (Elements::Float32(vec![1.0]), Elements::Float32(vec![2.0, 3.0]));
    for axis in [0, -1] {
        let model = Model::from_memory("m", &proto(axis, 2), &files, &LoadOptions::default()).unwrap();
        let inputs = [("x", array(&[1], &x)), ("y", array(&[2], &y))];
        let outputs = model.session(NonZeroUsize::MIN).predict(&inputs, None, &[]).unwrap();
        let elements = Elements::Float32(vec![1.0, 2.0, 3.0, 1.0]);
        assert_eq!(outputs[0].1, Output::Array(Array { shape: vec![4], elements }));
    }
    let error = Model::from_memory("m", &proto(1, 2), &files, &LoadOptions::default()).unwrap_err();
    assert!(report(&error).contains("axis 1 of a blob of rank 1"), "{}", report(&error));
}

/// coremltools' converter of lists writes a branch for lists that must grow, in which blobs do not go together.
#[test]
fn a_branch_in_which_blobs_do_not_go_together_fails_when_it_is_taken() {
    let copy = Layer::Copy(spec::CopyLayerParams {});
    let wrong = [
        layer(&["x", "matrix"], "joined", Layer::ConcatNd(spec::ConcatNdLayerParams::default())),
        layer(&["joined"], "y", copy.clone()),
    ];
    let right = [layer(&["x"], "y", copy.clone())];
    let arms = |yes: &[spec::NeuralNetworkLayer], no: &[spec::NeuralNetworkLayer]| {
        let arm = |layers: &[_]| Some(spec::NeuralNetwork { layers: layers.to_vec(), ..Default::default() });
        let branch = spec::BranchLayerParams { if_branch: arm(yes), else_branch: arm(no) };
        let branch = layer(&["go"], "choose", Layer::Branch(branch));
        let layers =
            vec![layer(&["x"], "y", copy.clone()), spec::NeuralNetworkLayer { output: vec![], ..branch }];
        let inputs = [("x", &[2][..]), ("matrix", &[2, 2]), ("go", &[1])];
        let inputs = inputs.map(|(name, shape)| (name, array_type(shape, None)));
        let model = network(inputs, layers, &["y"]);
        Model::from_memory("m", &model, &std::collections::HashMap::new(), &LoadOptions::default())
    };
    let x = Elements::Float32(vec![1.0, 2.0]);
    let matrix = Elements::Float32(vec![0.0; 4]);
    for (yes, no, taken) in [(&wrong[..], &right[..], 1.0), (&right, &wrong, 0.0), (&wrong, &[], 1.0)] {
        let model = arms(yes, no).unwrap();
        let mut session = model.session(NonZeroUsize::MIN);
        let mut predict = |go: f32| {
            let go = Elements::Float32(vec![go]);
            let inputs =
                [("x", array(&[2], &x)), ("matrix", array(&[2, 2], &matrix)), ("go", array(&[1], &go))];
            session.predict(&inputs, None, &[])
        };
        let outputs = predict(1.0 - taken).unwrap();
        assert_eq!(outputs[0].1, Output::Array(Array { shape: vec![2], elements: x.clone() }));
        let error = report(&predict(taken).unwrap_err());
        let wanted =
            "the branch has an op `concatND` that makes `joined` and cannot run: fp32[2] and fp32[2, 2]";
        assert!(error.contains(wanted), "{error}");
    }
    let error = arms(&wrong, &wrong).unwrap_err();
    assert!(report(&error).contains("cannot be concatenated"), "{}", report(&error));
    // What the engine does not know is an error at load.
    let unknown = [spec::NeuralNetworkLayer { layer: None, ..right[0].clone() }];
    assert!(report(&arms(&unknown, &right).unwrap_err()).contains("a kind of layer that is not known"));
}

/// A network that fills a tensor whose shape is an input: of what rank, is known when the input is.
#[test]
fn a_network_of_open_rank_is_planned_for_each_shape_of_its_inputs() {
    let fill = Layer::FillDynamic(spec::FillDynamicLayerParams { value: 7.0 });
    let copy = Layer::Copy(spec::CopyLayerParams {});
    let inputs = [("shape", array_type(&[1], Some(1))), ("x", array_type(&[1], Some(1)))];
    let layers = vec![layer(&["shape"], "filled", fill), layer(&["x"], "same", copy)];
    let proto = network(inputs, layers, &["filled", "same"]);
    let files = std::collections::HashMap::new();
    let model = Model::from_memory("m", &proto, &files, &LoadOptions::default()).unwrap();
    let mut sessions = [(); 2].map(|()| model.session(NonZeroUsize::MIN));
    let array_of = |shape: Vec<usize>, elements| Output::Array(Array { shape, elements });
    // More shapes than there are plans kept, twice: they are made, found, dropped and made again.
    for i in [0, 1, 0] {
        let session = &mut sessions[i];
        for shape in [vec![3.0], vec![3.0, 2.0], vec![2.0, 3.0, 1.0], vec![1.0, 2.0, 1.0, 1.0, 2.0]] {
            for length in 1..=4 {
                let x = Elements::Float32(vec![0.5; length]);
                let given = Elements::Float32(shape.clone());
                let sizes = [[shape.len()], [length]];
                let inputs = [("shape", array(&sizes[0], &given)), ("x", array(&sizes[1], &x))];
                let outputs = session.predict(&inputs, None, &[]).unwrap();
                let shape: Vec<_> = shape.iter().map(|&size| size as usize).collect();
                let sevens = Elements::Float32(vec![7.0; shape.iter().product()]);
                assert_eq!(outputs[0], ("filled".into(), array_of(shape, sevens)));
                assert_eq!(outputs[1], ("same".into(), array_of(vec![length], x)));
            }
        }
        // Too many dimensions for any blob; more than the description allows; none; nothing.
        let one = Elements::Float32(vec![1.0]);
        let mut error = |count: usize| {
            let shape = Elements::Float32(vec![1.0; count]);
            let size = [count];
            let inputs = [("shape", array(&size, &shape)), ("x", array(&[1], &one))];
            report(&session.predict(&inputs, None, &[]).unwrap_err())
        };
        assert!(
            error(12).contains("cannot be planned for inputs of the shapes [[12], [1]]"),
            "{}",
            error(12)
        );
        assert!(error(21).contains("input `shape`: expected"), "{}", error(21));
        assert!(error(0).contains("input `shape`: expected"), "{}", error(0));
        let missing = report(&session.predict(&[("x", array(&[1], &one))], None, &[]).unwrap_err());
        assert!(missing.contains("input `shape` is missing"), "{missing}");
    }
    // Several threads that ask for the same shapes at once share a plan; what is kept does not grow with them.
    let kept = model.constant_bytes();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let mut session = model.session(NonZeroUsize::MIN);
            scope.spawn(move || {
                for round in 0..50 {
                    let length = 1 + (i + round) % 5;
                    let (shape, x) = (Elements::Float32(vec![2.0; length]), Elements::Float32(vec![0.5]));
                    let sizes = [[length], [1]];
                    let inputs = [("shape", array(&sizes[0], &shape)), ("x", array(&sizes[1], &x))];
                    let outputs = session.predict(&inputs, None, &["filled"]).unwrap();
                    let sevens = Elements::Float32(vec![7.0; 1 << length]);
                    assert_eq!(
                        outputs[0].1,
                        Output::Array(Array { shape: vec![2; length], elements: sevens })
                    );
                }
            });
        }
    });
    assert_eq!(model.constant_bytes(), kept);
}

/// A model that is one layer of the fixtures, changed, must be refused with words that say where and why.
#[test]
fn a_layer_that_cannot_be_is_refused_at_load() {
    use coreml_proto::proto::{Model as Proto, model::Type};
    let load = |name: &str, change: &dyn Fn(&mut Vec<coreml_proto::proto::NeuralNetworkLayer>)| {
        let bytes = std::fs::read(folder().join(format!("{name}.mlmodel"))).unwrap();
        let mut proto = Proto::decode(&bytes[..]).unwrap();
        let Some(Type::NeuralNetwork(network)) = &mut proto.r#type else { panic!("{name}") };
        change(&mut network.layers);
        let files = std::collections::HashMap::new();
        let bytes = proto.encode_to_vec();
        let error = Model::from_memory("m", &bytes, &files, &LoadOptions::default()).map(|_| ()).unwrap_err();
        report(&error)
    };
    let custom = |layers: &mut Vec<_>| -> () {
        let layer: &mut coreml_proto::proto::NeuralNetworkLayer = &mut layers[0];
        layer.layer = Some(Layer::Custom(Default::default()));
    };
    let error = load("tanh", &custom);
    assert!(error.contains("op `custom` that makes `y`"), "{error}");
    assert!(error.ends_with("is of class ``, which is not registered"), "{error}");
    let error = load("custom_single", &|_| ());
    assert!(
        error.ends_with("the custom layer `l` is of class `PowerAndSum`, which is not registered"),
        "{error}"
    );
    let error = load("tanh", &|layers| layers[0].layer = None);
    assert!(error.contains("a kind of layer that is not known"), "{error}");
    let error = load("tanh", &|layers| layers[0].input[0] = "z".into());
    assert!(error.contains("the input `z` is used before it is made"), "{error}");
    let error = load("tanh", &|layers| layers[0].output[0] = "x".into());
    assert!(error.contains("the blob `x` is made twice"), "{error}");
    let error = load("tanh", &|layers| layers[0].output.push("second".into()));
    assert!(error.contains("2 outputs, expected 1"), "{error}");
    let error = load("tanh", &|layers| layers.clear());
    assert!(error.contains("output `y`: no layer makes it"), "{error}");
    let error = load("innerProduct_rank2", &|layers| {
        let Some(Layer::InnerProduct(p)) = &mut layers[0].layer else { panic!() };
        p.input_channels = 5;
    });
    assert!(error.contains("[3, 5] needs 15 elements, the file has 12 floats"), "{error}");
    let error = load("innerProduct_rank2", &|layers| {
        let Some(Layer::InnerProduct(p)) = &mut layers[0].layer else { panic!() };
        p.output_channels = u64::MAX;
    });
    assert!(error.contains("overflows") || error.contains("expected"), "{error}");
    let error = load("convolution_valid", &|layers| {
        let Some(Layer::Convolution(p)) = &mut layers[0].layer else { panic!() };
        p.n_groups = 3;
    });
    assert!(error.contains("4 output channels in 3 groups"), "{error}");
    let error = load("concatND", &|layers| {
        let Some(Layer::ConcatNd(p)) = &mut layers[0].layer else { panic!() };
        p.axis = 1;
    });
    assert!(error.contains("cannot be concatenated"), "{error}");
    let error = load("reshapeStatic", &|layers| {
        let Some(Layer::ReshapeStatic(p)) = &mut layers[0].layer else { panic!() };
        p.target_shape = vec![5, -1];
    });
    assert!(error.contains("fp32[2, 3, 2, 4] cannot take the shape"), "{error}");
    let error = load("transpose", &|layers| {
        let Some(Layer::Transpose(p)) = &mut layers[0].layer else { panic!() };
        p.axes = vec![0, 0, 1, u64::MAX];
    });
    assert!(error.contains("permutes no"), "{error}");
}

/// Blobs are floats, so an index may be one that is no integer. As 0 it would name the first row: a wrong answer.
#[test]
fn an_index_that_is_no_integer_is_refused_and_the_session_stays_usable() {
    let cases = cases();
    for (name, index) in [
        ("embedding", "x"),
        ("embeddingND", "x"),
        ("gather", "x1"),
        ("gatherND", "x1"),
        ("gatherAlongAxis", "x1"),
        ("scatter_update", "x1"),
        ("scatterND", "x1"),
        ("scatterAlongAxis", "x1"),
        ("oneHot", "x"),
        ("reverseSeq", "x1"),
        ("sliceBySize", "x1"),
        ("tile_computed", "x1"),
        ("topK_computed", "x1"),
    ] {
        let model = Model::load(folder().join(format!("{name}.mlmodel")), &LoadOptions::default()).unwrap();
        let mut session = model.session(NonZeroUsize::MIN);
        let inputs = cases[name]["inputs"].as_object().unwrap();
        for (wrong, words) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf"), (1e10, "10000000000")] {
            let mut given: Vec<_> = inputs.iter().map(|(k, v)| (k.as_str(), Given::of(v))).collect();
            let at = given.iter().position(|(name, _)| *name == index);
            let at = at.unwrap_or_else(|| panic!("{name} has {:?}", inputs.keys()));
            match &mut given[at].1 {
                Given::Array(_, Elements::Float32(data)) => data[0] = wrong,
                Given::Array(_, Elements::Float64(data)) => data[0] = wrong.into(),
                _ => panic!("{name}"),
            }
            let inputs: Vec<_> = given.iter().map(|(name, given)| (*name, given.input())).collect();
            let answer = session.predict(&inputs, None, &[]);
            let error = answer.map_err(|error| report(&error)).expect_err(name);
            let expected = format!("element 0 is {words} where a 32-bit integer is expected");
            assert!(error.ends_with(&expected), "{name}: {error}");
        }
        let given: Vec<_> = inputs.iter().map(|(k, v)| (k.as_str(), Given::of(v))).collect();
        let inputs: Vec<_> = given.iter().map(|(name, given)| (*name, given.input())).collect();
        assert!(session.predict(&inputs, None, &[]).is_ok(), "{name}");
    }
}

/// A bound beyond every dimension means the end, as converters write it; NaN means nothing.
#[test]
fn a_bound_of_a_slice_may_be_too_large_but_not_nan() {
    let case = &cases()["sliceDynamic"];
    let model = Model::load(folder().join("sliceDynamic.mlmodel"), &LoadOptions::default()).unwrap();
    let mut session = model.session(NonZeroUsize::MIN);
    let mut answer = |end: f32| {
        let inputs = case["inputs"].as_object().unwrap();
        let mut given: Vec<_> = inputs.iter().map(|(k, v)| (k.as_str(), Given::of(v))).collect();
        let end_of = given.iter_mut().find(|(name, _)| *name == "x2");
        let Some((_, Given::Array(_, Elements::Float32(data)))) = end_of else {
            panic!("{:?}", inputs.keys())
        };
        data[0] = end;
        let inputs: Vec<_> = given.iter().map(|(name, given)| (*name, given.input())).collect();
        session.predict(&inputs, None, &[]).map_err(|error| report(&error))
    };
    assert_eq!(answer(2_147_483_648.0).unwrap()[0].1, answer(1000.0).unwrap()[0].1);
    let error = answer(f32::NAN).unwrap_err();
    assert!(error.ends_with("element 0 is NaN where a 32-bit integer is expected"), "{error}");
}

/// A condition is lowered twice for each loop, so loops in conditions double; so do shapes that change at every level. Both must
/// be refused long before they take the memory.
#[test]
fn loops_that_multiply_are_refused() {
    use coreml_proto::proto::model::Type;
    use coreml_proto::proto::{LoopLayerParams, Model as Proto, NeuralNetwork, NeuralNetworkLayer};
    let bytes = std::fs::read(folder().join("loop_while.mlmodel")).unwrap();
    let mut proto = Proto::decode(&bytes[..]).unwrap();
    let Some(Type::NeuralNetwork(network)) = &mut proto.r#type else { panic!() };
    let at = network.layers.iter().position(|layer| matches!(layer.layer, Some(Layer::Loop(_)))).unwrap();
    let original = network.layers[at].clone();
    for (depth, fits) in [(5, true), (20, false)] {
        let mut nested = original.clone();
        for level in 0..depth {
            let Some(Layer::Loop(inner)) = &original.layer else { panic!() };
            let mut layers = vec![nested];
            layers.extend(inner.condition_network.as_ref().unwrap().layers.iter().cloned().map(
                |mut layer| {
                    layer.output = vec![format!("small{level}")];
                    layer
                },
            ));
            let parameters = LoopLayerParams {
                condition_var: format!("small{level}"),
                condition_network: Some(NeuralNetwork { layers, ..Default::default() }),
                body_network: inner.body_network.clone(),
                ..Default::default()
            };
            nested = NeuralNetworkLayer {
                name: format!("l{level}"),
                layer: Some(Layer::Loop(parameters)),
                ..Default::default()
            };
        }
        let Some(Type::NeuralNetwork(network)) = &mut proto.r#type else { panic!() };
        network.layers[at] = nested;
        let files = std::collections::HashMap::new();
        let model = Model::from_memory("m", &proto.encode_to_vec(), &files, &LoadOptions::default());
        match model {
            Ok(_) => assert!(fits, "{depth}"),
            Err(error) => {
                assert!(!fits, "{depth}: {}", report(&error));
                assert!(report(&error).contains("so many more layers"), "{}", report(&error));
            }
        }
    }
}

/// What a custom layer says is wrong comes out, at load and in a prediction; the session stays usable.
#[test]
fn a_custom_layer_refuses_with_its_own_words() {
    let path = folder().join("custom_single.mlmodel");
    let refusing = CustomLayers::new().with("PowerAndSum", |_| Err("not today".into()));
    let error = Model::load(&path, &LoadOptions::default().custom_layers(&refusing)).unwrap_err();
    assert!(report(&error).ends_with("class `PowerAndSum` refuses: not today"), "{}", report(&error));

    let custom = custom_layers();
    let model = Model::load(&path, &LoadOptions::default().custom_layers(&custom)).unwrap();
    let mut session = model.session(NonZeroUsize::MIN);
    let negative = Elements::Float32(vec![1.0, 2.0, -1.0, 1.0, 1.0, 1.0]);
    let error = session.predict(&[("x", array(&[2, 3], &negative))], None, &[]).unwrap_err();
    assert!(report(&error).ends_with("refuses: a negative number"), "{}", report(&error));
    let positive = Elements::Float32(vec![1.0; 6]);
    assert!(session.predict(&[("x", array(&[2, 3], &positive))], None, &[]).is_ok());
}

/// Every fixture with bytes changed, at places and to values of a fixed sequence. What comes out may be a refusal or an
/// answer; a panic or a hang is a bug.
#[test]
fn a_damaged_network_is_refused_or_runs_but_never_panics() {
    let mut limits = Limits::default();
    limits.tensor_elements = 1 << 16;
    limits.total_elements = 1 << 18;
    limits.loop_iterations = 1 << 10;
    let custom = custom_layers();
    let options = LoadOptions::default().limits(limits).custom_layers(&custom);
    let files = std::collections::HashMap::new();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut refused, mut ran) = (0, 0);
    for (name, case) in &cases() {
        let bytes = std::fs::read(folder().join(format!("{name}.mlmodel"))).unwrap();
        let inputs = case["inputs"].as_object().unwrap();
        let given: Vec<_> = inputs.iter().map(|(k, v)| (k.as_str(), Given::of(v))).collect();
        let inputs: Vec<_> = given.iter().map(|(name, given)| (*name, given.input())).collect();
        for _ in 0..ROUNDS {
            let mut bytes = bytes.clone();
            for _ in 0..=random(2) {
                let at = random(bytes.len());
                bytes[at] = match random(5) {
                    0 => 0,
                    1 => 0x7F,
                    2 => 0xFF,
                    3 => bytes[at] ^ (1 << random(8)),
                    _ => u8::try_from(random(256)).unwrap(),
                };
            }
            let model = Model::from_memory(name, &bytes, &files, &options);
            let answer = model.is_ok_and(|model| {
                let mut session = model.session(NonZeroUsize::MIN);
                session.predict(&inputs, None, &[]).is_ok()
            });
            *(if answer { &mut ran } else { &mut refused }) += 1;
        }
    }
    // Both must happen, or the changes are of the wrong kind.
    assert!(refused > 1000 && ran > 1000, "{refused} refused, {ran} ran");
}

/// Changed copies of each fixture.
const ROUNDS: usize = 100;
