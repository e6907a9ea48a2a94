//! Cases of coremltools' own tests, replayed: `cargo xtask conformance record` keeps whole small models with the inputs and
//! the outputs that those tests found right (`docs/conformance.md`).
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coreml_engine::compiled::{self, CompileError, Compiled};
use coreml_engine::{
    Array, ArrayRef, Elements, Input, Key, LoadOptions, Model, Output, PixelFormat, SharedBytes, estimators,
    nn, ops,
};
use coreml_proto::proto::mil_spec as mil;
use coreml_proto::proto::neural_network_layer::Layer;
use coreml_proto::proto::{Model as Proto, NeuralNetworkLayer, model::Type as Kind};
use prost::Message;
use serde::Deserialize;

use common::{corpus, report, repository};

#[derive(Deserialize)]
struct Case {
    id: String,
    spec: String,
    /// By their paths beside the specification.
    #[serde(default)]
    files: BTreeMap<String, String>,
    function: Option<String>,
    /// Whether the calls are made on one state.
    #[serde(default)]
    state: bool,
    calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    inputs: BTreeMap<String, Value>,
    outputs: BTreeMap<String, Value>,
    /// What is written to the state before the call.
    #[serde(default)]
    written: BTreeMap<String, Value>,
    /// What the state is after it.
    #[serde(default)]
    read: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Array { dtype: String, shape: Vec<usize>, data: String },
    Image { pixels: Layout, width: usize, height: usize, data: String },
    Dictionary { keys: Keys, values: Vec<Number> },
    Sequence { sequence: Keys },
    Int64 { int64: i64 },
    Double { double: Number },
    String { string: String },
}

#[derive(Clone, Copy, Deserialize)]
enum Layout {
    Bgra8,
    Gray8,
    Gray16F,
}

impl Layout {
    fn format(self) -> PixelFormat {
        match self {
            Self::Bgra8 => PixelFormat::Bgra8,
            Self::Gray8 => PixelFormat::Gray8,
            Self::Gray16F => PixelFormat::Gray16F,
        }
    }
}

/// JSON has no numbers that are not finite: those are text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Text(String),
}

impl Number {
    fn value(&self) -> f64 {
        match self {
            Self::Finite(number) => *number,
            Self::Text(text) => text.parse().unwrap(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Keys {
    Strings(Vec<String>),
    Integers(Vec<i64>),
}

impl Keys {
    fn keys(&self) -> Vec<Key> {
        match self {
            Self::Strings(keys) => keys.iter().cloned().map(Key::String).collect(),
            Self::Integers(keys) => keys.iter().copied().map(Key::Int64).collect(),
        }
    }
}

impl Value {
    /// What was recorded, as the engine gives it; [`Output::as_input`] makes an input of it.
    fn output(&self) -> Output {
        match self {
            Self::Array { dtype, shape, data } => {
                Output::Array(Array { shape: shape.clone(), elements: elements(dtype, data) })
            }
            Self::Image { pixels, width, height, data } => Output::Image {
                format: pixels.format(),
                width: *width,
                height: *height,
                pixels: BASE64_STANDARD.decode(data).unwrap(),
            },
            Self::Dictionary { keys, values } => {
                Output::Dictionary(keys.keys().into_iter().zip(values.iter().map(Number::value)).collect())
            }
            Self::Sequence { sequence } => Output::Sequence(sequence.keys()),
            Self::Int64 { int64 } => Output::Key(Key::Int64(*int64)),
            Self::Double { double } => Output::Double(double.value()),
            Self::String { string } => Output::Key(Key::String(string.clone())),
        }
    }

    /// What it is, with the type of its elements or keys.
    fn kind(&self) -> String {
        let of = |keys: &Keys| match keys {
            Keys::Strings(_) => "string",
            Keys::Integers(_) => "int64",
        };
        match self {
            Self::Array { dtype, .. } => format!("array {dtype}"),
            Self::Image { pixels, .. } => format!("image {:?}", pixels.format()),
            Self::Dictionary { keys, .. } => format!("dictionary {}", of(keys)),
            Self::Sequence { sequence } => format!("sequence {}", of(sequence)),
            Self::Int64 { .. } => "int64".into(),
            Self::Double { .. } => "double".into(),
            Self::String { .. } => "string".into(),
        }
    }
}

fn elements(dtype: &str, data: &str) -> Elements {
    let bytes = BASE64_STANDARD.decode(data).unwrap();
    match dtype {
        "float16" => {
            Elements::Float16(bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b)).collect())
        }
        "float32" => Elements::Float32(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        "float64" => Elements::Float64(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()),
        "int8" => Elements::Int8(bytes.iter().map(|&b| i8::from_le_bytes([b])).collect()),
        "int32" => Elements::Int32(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect()),
        other => panic!("{other}"),
    }
}

/// The elements as numbers, and whether they are whole.
fn numbers(elements: &Elements) -> (Vec<f64>, bool) {
    match elements {
        Elements::Float16(all) => (all.iter().map(|x| x.to_f64()).collect(), false),
        Elements::Float32(all) => (all.iter().map(|&x| x.into()).collect(), false),
        Elements::Float64(all) => (all.clone(), false),
        Elements::Int8(all) => (all.iter().map(|&x| x.into()).collect(), true),
        Elements::Int32(all) => (all.iter().map(|&x| x.into()).collect(), true),
    }
}

/// Within 2e-3, absolute and relative: a step of float16 and what another order of additions makes of it.
fn close(found: f64, right: f64) -> bool {
    found == right
        || (found.is_nan() && right.is_nan())
        || (found - right).abs() <= 2e-3 * (1.0 + right.abs())
}

fn compare(found: &Output, right: &Output) -> Result<(), String> {
    let same = match (found, right) {
        (Output::Array(found), Output::Array(right)) => {
            // Both forms of a scalar are right.
            let product = |shape: &[usize]| shape.iter().product::<usize>();
            if found.shape != right.shape && (product(&right.shape) != 1 || product(&found.shape) != 1) {
                return Err(format!("shape {:?} where {:?} is right", found.shape, right.shape));
            }
            let (dtype, wanted) = (found.elements.dtype(), right.elements.dtype());
            if dtype != wanted {
                return Err(format!("{dtype:?} where {wanted:?} is right"));
            }
            let ((found, _), (right, whole)) = (numbers(&found.elements), numbers(&right.elements));
            found.len() == right.len()
                && found.iter().zip(&right).all(|(&f, &r)| if whole { f == r } else { close(f, r) })
        }
        (
            Output::Image { format, width, height, pixels },
            Output::Image { format: f, width: w, height: h, pixels: right },
        ) => {
            let near = |(&found, &right): (&u8, &u8)| found.abs_diff(right) <= 1;
            (format, width, height) == (f, w, h)
                && pixels.len() == right.len()
                && pixels.iter().zip(right).all(near)
        }
        (Output::Double(found), Output::Double(right)) => close(*found, *right),
        (Output::Dictionary(found), Output::Dictionary(right)) => {
            let near = |(key, number): &(Key, f64)| found.iter().any(|(k, n)| k == key && close(*n, *number));
            found.len() == right.len() && right.iter().all(near)
        }
        (found, right) => found == right,
    };
    if same { Ok(()) } else { Err(format!("{found:?} differs")) }
}

/// What an engine that is a little wrong would answer: numbers times 1.1 plus 0.05, integers one more, another text.
fn spoil(output: &mut Output) {
    let wrong = |number: f64| number * 1.1 + 0.05;
    let other = |key: &mut Key| match key {
        Key::Int64(number) => *number = number.wrapping_add(1),
        Key::String(text) => text.push('?'),
    };
    match output {
        Output::Array(array) => match &mut array.elements {
            Elements::Float16(all) => {
                all.iter_mut().for_each(|x| *x = half::f16::from_f64(wrong(x.to_f64())));
            }
            Elements::Float32(all) => all.iter_mut().for_each(|x| *x = wrong((*x).into()) as f32),
            Elements::Float64(all) => all.iter_mut().for_each(|x| *x = wrong(*x)),
            Elements::Int8(all) => all.iter_mut().for_each(|x| *x = x.wrapping_add(1)),
            Elements::Int32(all) => all.iter_mut().for_each(|x| *x = x.wrapping_add(1)),
        },
        Output::Image { pixels, .. } => pixels.iter_mut().for_each(|x| *x = x.wrapping_add(5)),
        Output::Key(key) => other(key),
        Output::Double(number) => *number = wrong(*number),
        Output::Dictionary(entries) => entries.iter_mut().for_each(|(_, number)| *number = wrong(*number)),
        Output::Sequence(keys) => keys.iter_mut().for_each(other),
        _ => {}
    }
}

/// The features by name, as the engine gives them.
fn features(values: &BTreeMap<String, Value>) -> Vec<(&str, Output)> {
    values.iter().map(|(name, value)| (name.as_str(), value.output())).collect()
}

fn array_of(output: &Output) -> ArrayRef<'_> {
    match output.as_input() {
        Input::Array(array) => array,
        other => panic!("a state cannot be {other:?}"),
    }
}

impl Case {
    fn specification(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(&self.spec).unwrap()
    }
}

/// Runs a case with its model as it was recorded or in another form. Outputs whose kind `spoilt` holds for are spoilt before they are
/// compared.
fn check(case: &Case, specification: &[u8], spoilt: &dyn Fn(&Value) -> bool) -> Result<(), String> {
    let file = |(path, data): (&String, &String)| {
        (format!("@model_path/{path}"), SharedBytes::new(BASE64_STANDARD.decode(data).unwrap()))
    };
    let files = case.files.iter().map(file).collect();
    let mut options = LoadOptions::default();
    options.function = case.function.as_deref();
    let model =
        Model::from_memory("case", specification, &files, &options).map_err(|error| report(&error))?;
    let mut session = model.session(NonZeroUsize::MIN);
    let mut state = case.state.then(|| model.new_state());
    for call in &case.calls {
        if let Some(state) = &mut state {
            for (name, value) in features(&call.written) {
                state.write(name, &array_of(&value)).map_err(|error| report(&error))?;
            }
        }
        let given = features(&call.inputs);
        let inputs: Vec<_> = given.iter().map(|(name, value)| (*name, value.as_input())).collect();
        let mut found = session.predict(&inputs, state.as_mut(), &[]).map_err(|error| report(&error))?;
        if let Some(state) = &state {
            for name in call.read.keys() {
                let array = state.read(name).map_err(|error| report(&error))?;
                found.push((name.clone(), Output::Array(array)));
            }
        }
        for (name, right) in call.outputs.iter().chain(&call.read) {
            let output = found.iter_mut().find(|(found, _)| *found == *name).map(|(_, output)| output);
            let output = output.ok_or_else(|| format!("no output `{name}`"))?;
            if spoilt(right) {
                spoil(output);
            }
            compare(output, &right.output())
                .map_err(|error| format!("`{name}`: {}", error.chars().take(300).collect::<String>()))?;
        }
    }
    Ok(())
}

static CORPUS: LazyLock<Vec<Case>> = LazyLock::new(corpus);

#[test]
fn recorded_cases_of_coremltools_tests_give_the_verified_outputs() {
    let failures: Vec<String> = CORPUS
        .iter()
        .filter_map(|case| {
            check(case, &case.specification(), &|_| false).err().map(|error| format!("{}: {error}", case.id))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let tests: BTreeSet<&str> = CORPUS.iter().map(|case| case.id.split(['[', '#']).next().unwrap()).collect();
    println!("{} cases of {} tests", CORPUS.len(), tests.len());
    assert!(tests.len() >= 450, "only {} tests are recorded", tests.len());
}

/// Compiled programs are what is printed of them (`model.mil`), read again.
#[test]
fn compiled_programs_give_the_verified_outputs() {
    let mut programs = 0;
    let mut failures = Vec::new();
    for case in CORPUS.iter() {
        let Compiled { data, program, .. } = match compiled::compile(&case.specification()) {
            Ok(compiled) => compiled,
            Err(CompileError::NoProgram) => continue,
            Err(error) => {
                failures.push(format!("{}: {}", case.id, report(&error)));
                continue;
            }
        };
        programs += 1;
        let again = compiled::specification(&data, program.as_bytes()).map_err(|error| report(&error));
        let result = again.and_then(|specification| check(case, &specification, &|_| false));
        failures.extend(result.err().map(|error| format!("{}: {error}", case.id)));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(programs >= 440, "{programs} programs in {} cases", CORPUS.len());
}

const RANDOM: &str = "what it makes is random: no answer is the right one";
const UNTESTED: &str = "no test of coremltools predicts with it";
const TENSORFLOW: &str = "coremltools' tests of it need TensorFlow";
/// A recording of the whole suite leaves no entry with this reason.
const WAITS: &str = "its tests are not in the sample that was recorded";

/// Ops without a case here or in `models/ops`, with the reason. Their tests are in the engine's own files.
const OPS_NOT_RECORDED: &[(&str, &str)] = &[
    ("non_maximum_suppression", "recorded as the layer that becomes it"),
    ("random_bernoulli", RANDOM),
    ("random_categorical", RANDOM),
    ("random_normal", RANDOM),
    ("random_uniform", RANDOM),
];

/// Layers without a case here, with the reason. `tests/nn.rs` has a network with each.
const LAYERS_NOT_RECORDED: &[(&str, &str)] = &[
    ("average", UNTESTED),
    ("categoricalDistribution", RANDOM),
    ("constantPad", TENSORFLOW),
    ("custom", "the caller computes it, not the engine"),
    ("dot", UNTESTED),
    ("loopContinue", UNTESTED),
    ("randomBernoulliDynamic", RANDOM),
    ("randomBernoulliLike", RANDOM),
    ("randomBernoulliStatic", RANDOM),
    ("randomNormalDynamic", RANDOM),
    ("randomNormalLike", RANDOM),
    ("randomNormalStatic", RANDOM),
    ("randomUniformDynamic", RANDOM),
    ("randomUniformLike", RANDOM),
    ("randomUniformStatic", RANDOM),
    ("resizeBilinear", TENSORFLOW),
    ("sequenceRepeat", UNTESTED),
    ("softmax", WAITS),
];

/// Kinds of models without a case here, with the reason. `tests/estimators.rs`, `tests/estimators_bad_input.rs` and
/// `tests/nn.rs` have a model of each.
const KINDS_NOT_RECORDED: &[(&str, &str)] = &[
    ("categoricalMapping", UNTESTED),
    ("classConfidenceThresholding", UNTESTED),
    ("identity", UNTESTED),
    ("itemSimilarityRecommender", UNTESTED),
    ("kNearestNeighborsClassifier", UNTESTED),
    ("linkedModel", UNTESTED),
    ("neuralNetworkRegressor", UNTESTED),
    ("nonMaximumSuppression", UNTESTED),
];

/// Types of inputs that no case here has, with the reason. `tests/features.rs` and `tests/estimators.rs` have them.
const INPUTS_NOT_RECORDED: &[(&str, &str)] =
    &[("int64", UNTESTED), ("sequence int64", UNTESTED), ("sequence string", UNTESTED), ("string", UNTESTED)];
/// The same of outputs.
const OUTPUTS_NOT_RECORDED: &[(&str, &str)] = &[("sequence int64", UNTESTED), ("sequence string", UNTESTED)];

/// What the models of the corpus are made of.
#[derive(Default)]
struct Made {
    kinds: BTreeSet<String>,
    layers: BTreeSet<String>,
    ops: BTreeSet<String>,
    opsets: BTreeSet<String>,
}

impl Made {
    fn of(cases: &[Case]) -> Self {
        let mut made = Self::default();
        for case in cases {
            made.add(&Proto::decode(&case.specification()[..]).unwrap());
        }
        made
    }

    fn add(&mut self, model: &Proto) {
        let kind = model.r#type.as_ref().unwrap();
        self.kinds.insert(variant(kind));
        match kind {
            Kind::MlProgram(program) => {
                for function in program.functions.values() {
                    self.opsets.insert(function.opset.clone());
                    function.block_specializations.values().for_each(|block| self.add_ops(block));
                }
            }
            Kind::NeuralNetwork(network) => self.add_layers(&network.layers),
            Kind::NeuralNetworkClassifier(network) => self.add_layers(&network.layers),
            Kind::NeuralNetworkRegressor(network) => self.add_layers(&network.layers),
            Kind::Pipeline(pipeline) => pipeline.models.iter().for_each(|model| self.add(model)),
            Kind::PipelineClassifier(outer) => {
                outer.pipeline.iter().flat_map(|inner| &inner.models).for_each(|model| self.add(model));
            }
            Kind::PipelineRegressor(outer) => {
                outer.pipeline.iter().flat_map(|inner| &inner.models).for_each(|model| self.add(model));
            }
            _ => {}
        }
    }

    /// The ops of a block of a program, and of the blocks inside.
    fn add_ops(&mut self, block: &mil::Block) {
        for op in &block.operations {
            self.ops.insert(op.r#type.clone());
            op.blocks.iter().for_each(|block| self.add_ops(block));
        }
    }

    /// The layers of a network, and of the networks inside.
    fn add_layers(&mut self, layers: &[NeuralNetworkLayer]) {
        for layer in layers.iter().filter_map(|layer| layer.layer.as_ref()) {
            self.layers.insert(variant(layer));
            let inside = match layer {
                Layer::Branch(branch) => vec![&branch.if_branch, &branch.else_branch],
                Layer::Loop(inner) => vec![&inner.condition_network, &inner.body_network],
                _ => continue,
            };
            inside.into_iter().flatten().for_each(|network| self.add_layers(&network.layers));
        }
    }
}

/// The name of a variant in small letters, which `Debug` writes before what is in it.
fn variant(value: &impl fmt::Debug) -> String {
    struct Name(String);
    impl fmt::Write for Name {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            if text.starts_with('(') {
                return Err(fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut name = Name(String::new());
    // It ends with the error above.
    let _ = write!(name, "{value:?}");
    name.0.to_lowercase()
}

/// Whatever is wanted was found, or is listed; and nothing that was found is listed.
fn found_or_listed<'a>(
    what: &str,
    wanted: impl IntoIterator<Item = &'a str>,
    found: &BTreeSet<String>,
    listed: &[(&str, &str)],
) {
    let missing: BTreeSet<&str> =
        wanted.into_iter().filter(|name| !found.contains(&name.to_lowercase())).collect();
    let listed: BTreeSet<&str> = listed.iter().map(|(name, _)| *name).collect();
    let unlisted: Vec<_> = missing.difference(&listed).collect();
    assert!(unlisted.is_empty(), "{} {what} are not recorded: {unlisted:?}", unlisted.len());
    let superfluous: Vec<_> = listed.difference(&missing).collect();
    assert!(superfluous.is_empty(), "{what} that are recorded or unknown, but listed: {superfluous:?}");
}

/// An op that is new to the engine is recorded, here or in `models/ops` (`tests/ops.rs` replays that), or is listed with a reason.
#[test]
fn every_op_is_recorded_or_listed() {
    let ops: Vec<&str> = ops::FAMILIES.iter().flat_map(|family| family.ops).map(|op| op.name).collect();
    let mut found = Made::of(&CORPUS).ops;
    let elsewhere: Vec<&str> = ops
        .iter()
        .copied()
        .filter(|op| !found.contains(*op) && repository("models/ops").join(format!("{op}.json")).exists())
        .collect();
    println!("in models/ops only: {elsewhere:?}");
    assert!(elsewhere.len() * 20 <= ops.len(), "coremltools' tests have more than is here: {elsewhere:?}");
    found.extend(elsewhere.into_iter().map(str::to_owned));
    found_or_listed("ops", ops, &found, OPS_NOT_RECORDED);
    let sources: Vec<String> = std::fs::read_dir(repository("coreml-engine/src/ops"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    let tests: Vec<&str> =
        sources.iter().filter_map(|text| Some(text.split_once("#[cfg(test)]")?.1)).collect();
    let untested: Vec<_> = OPS_NOT_RECORDED
        .iter()
        .filter(|(op, _)| !tests.iter().any(|text| text.contains(&format!("\"{op}\""))))
        .collect();
    assert!(untested.is_empty(), "no test in the engine's own files: {untested:?}");
}

#[test]
fn every_layer_is_recorded_or_listed() {
    let layers = nn::FAMILIES.iter().flat_map(|family| family.layers).map(|layer| layer.name);
    found_or_listed("layers", layers, &Made::of(&CORPUS).layers, LAYERS_NOT_RECORDED);
}

#[test]
fn every_kind_of_model_and_every_opset_is_recorded_or_listed() {
    let made = Made::of(&CORPUS);
    let others = [
        "linkedModel",
        "mlProgram",
        "neuralNetwork",
        "neuralNetworkClassifier",
        "neuralNetworkRegressor",
        "pipeline",
        "pipelineClassifier",
        "pipelineRegressor",
    ];
    let kinds = estimators::KINDS.iter().copied().chain(others);
    found_or_listed("kinds of models", kinds, &made.kinds, KINDS_NOT_RECORDED);
    let opsets: Vec<&str> = made.opsets.iter().map(String::as_str).collect();
    // Programs begin with iOS 15.
    assert_eq!(opsets, ["CoreML5", "CoreML6", "CoreML7", "CoreML8", "CoreML9"]);
}

/// The types of features, as [`Value::kind`] says them.
const TYPES: [&str; 15] = [
    "array float16",
    "array float32",
    "array float64",
    "array int32",
    "array int8",
    "dictionary int64",
    "dictionary string",
    "double",
    "image Bgra8",
    "image Gray16F",
    "image Gray8",
    "int64",
    "sequence int64",
    "sequence string",
    "string",
];

#[test]
fn every_type_of_feature_is_recorded_or_listed() {
    type Side = fn(&Call) -> &BTreeMap<String, Value>;
    let sides: [(&str, Side, _); 2] = [
        ("types of inputs", |call| &call.inputs, INPUTS_NOT_RECORDED),
        ("types of outputs", |call| &call.outputs, OUTPUTS_NOT_RECORDED),
    ];
    for (what, side, listed) in sides {
        let values = CORPUS.iter().flat_map(|case| &case.calls).flat_map(|call| side(call).values());
        let found = values.map(|value| value.kind().to_lowercase()).collect();
        found_or_listed(what, TYPES, &found, listed);
    }
}

/// What the replay is worth: of each kind of model, and of each type of output, at most one case in twenty has outputs (infinite
/// numbers, or one that is its own wrong answer) that [`spoil`] leaves right.
#[test]
fn spoilt_outputs_are_noticed() {
    let mut passed: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for case in CORPUS.iter() {
        let mut count = |what: String, unnoticed: bool| {
            let entry = passed.entry(what).or_default();
            *entry = (entry.0 + usize::from(unnoticed), entry.1 + 1);
        };
        let specification = case.specification();
        let model = Proto::decode(&specification[..]).unwrap();
        let all = check(case, &specification, &|_| true).is_ok();
        count(variant(model.r#type.as_ref().unwrap()), all);
        let outputs = case.calls.iter().flat_map(|call| call.outputs.values());
        let types: BTreeSet<String> = outputs.map(Value::kind).collect();
        for kind in &types {
            let alone = types.len() == 1;
            count(
                kind.clone(),
                if alone { all } else { check(case, &specification, &|value| value.kind() == *kind).is_ok() },
            );
        }
    }
    let unnoticed: Vec<_> = passed.iter().filter(|(_, (passed, all))| passed * 20 > *all).collect();
    assert!(unnoticed.is_empty(), "(passed with wrong outputs, all): {unnoticed:?}");
}
