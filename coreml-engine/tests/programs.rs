//! Programs that nobody wrote, made from the recorded ones (`models/ops`): moved into branches and loops they must answer as
//! before; damaged in any part (shapes, dtypes, contents, references, opset, order, nesting) they must answer or be refused,
//! within limits, and never panic or hang. `PROPTEST_CASES` says how many are made.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coreml_engine::description::FeatureKind;
use coreml_engine::{Array, ArrayRef, Elements, Input, Limits, LoadOptions, Model, Output, ops};
use coreml_proto::proto::mil_spec as mil;
use coreml_proto::proto::{Model as Proto, model::Type as Kind};
use mil::argument::{Binding, binding};
use mil::dimension::{ConstantDimension, Dimension as Dim, UnknownDimension};
use mil::tensor_value::Value as Immediate;
use mil::value::{Value as Contents, immediate_value};
use proptest::prelude::*;
use prost::Message;
use serde::Deserialize;

use common::{report, repository};

#[derive(Deserialize)]
struct File {
    op: String,
    cases: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    spec: String,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    data: String,
}

impl Tensor {
    fn elements(&self) -> Elements {
        let bytes = BASE64_STANDARD.decode(&self.data).unwrap();
        let words = bytes.as_chunks::<4>().0.iter();
        match self.dtype.as_str() {
            "float32" => Elements::Float32(words.map(|&b| f32::from_le_bytes(b)).collect()),
            "int32" => Elements::Int32(words.map(|&b| i32::from_le_bytes(b)).collect()),
            other => panic!("{other}"),
        }
    }
}

struct Case {
    op: String,
    inputs: Vec<(String, Vec<usize>, Elements)>,
    outputs: Vec<(String, Vec<usize>, Elements)>,
    proto: Proto,
}

/// The recorded programs of ops that the engine has.
static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let known: Vec<&str> = op_names();
    let mut paths: Vec<_> =
        std::fs::read_dir(repository("models/ops")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut cases = Vec::new();
    for path in paths.into_iter().filter(|path| path.extension() == Some("json".as_ref())) {
        let file: File = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        if !known.contains(&file.op.as_str()) {
            continue;
        }
        for case in &file.cases {
            let tensors = |tensors: &[Tensor]| -> Vec<_> {
                tensors.iter().map(|t| (t.name.clone(), t.shape.clone(), t.elements())).collect()
            };
            let proto = Proto::decode(&BASE64_STANDARD.decode(&case.spec).unwrap()[..]).unwrap();
            let (inputs, outputs) = (tensors(&case.inputs), tensors(&case.outputs));
            cases.push(Case { op: file.op.clone(), inputs, outputs, proto });
        }
    }
    assert!(cases.len() > 500);
    cases
});

fn op_names() -> Vec<&'static str> {
    ops::FAMILIES.iter().flat_map(|family| family.ops).map(|op| op.name).collect()
}

/// Decisions that a program is made by: a sequence that ends in zeros, so that shorter ones mean simpler programs.
struct Choices<'a>(std::slice::Iter<'a, u16>);

impl Choices<'_> {
    fn below(&mut self, n: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % n.max(1)
    }

    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())].clone()
    }
}

fn function(proto: &mut Proto) -> &mut mil::Function {
    let Some(Kind::MlProgram(program)) = &mut proto.r#type else { panic!("no program") };
    program.functions.get_mut("main").unwrap()
}

fn body(proto: &mut Proto) -> &mut mil::Block {
    function(proto).block_specializations.values_mut().next().unwrap()
}

fn scalar(value: Immediate, dtype: mil::DataType) -> mil::Argument {
    let tensor = mil::TensorValue { value: Some(value) };
    let immediate = mil::value::ImmediateValue { value: Some(immediate_value::Value::Tensor(tensor)) };
    let value = mil::Value {
        r#type: Some(scalar_type(dtype)),
        value: Some(Contents::ImmediateValue(immediate)),
        ..Default::default()
    };
    mil::Argument { arguments: vec![Binding { binding: Some(binding::Binding::Value(value)) }] }
}

fn scalar_type(dtype: mil::DataType) -> mil::ValueType {
    let tensor = mil::TensorType { data_type: dtype.into(), ..Default::default() };
    mil::ValueType { r#type: Some(mil::value_type::Type::TensorType(tensor)) }
}

fn int(x: i32) -> mil::Argument {
    let values = mil::tensor_value::RepeatedInts { values: vec![x] };
    scalar(Immediate::Ints(values), mil::DataType::Int32)
}

fn boolean(x: bool) -> mil::Argument {
    let values = mil::tensor_value::RepeatedBools { values: vec![x] };
    scalar(Immediate::Bools(values), mil::DataType::Bool)
}

fn named(names: &[String]) -> mil::Argument {
    let binding = |name: &String| Binding { binding: Some(binding::Binding::Name(name.clone())) };
    mil::Argument { arguments: names.iter().map(binding).collect() }
}

fn operation(
    kind: &str,
    inputs: Vec<(&str, mil::Argument)>,
    outputs: Vec<mil::NamedValueType>,
    blocks: Vec<mil::Block>,
) -> mil::Operation {
    let inputs = inputs.into_iter().map(|(name, argument)| (name.to_owned(), argument)).collect();
    mil::Operation { r#type: kind.into(), inputs, outputs, blocks, ..Default::default() }
}

fn renamed(outputs: &[mil::NamedValueType], suffix: &str) -> Vec<mil::NamedValueType> {
    outputs.iter().map(|o| mil::NamedValueType { name: format!("{}{suffix}", o.name), ..o.clone() }).collect()
}

fn names(outputs: &[mil::NamedValueType]) -> Vec<String> {
    outputs.iter().map(|o| o.name.clone()).collect()
}

/// The op, and `depth` branches in each other, the innermost of which runs it once more.
fn in_branches(op: &mil::Operation, depth: usize, taken: bool, tag: usize) -> Vec<mil::Operation> {
    let first = mil::Operation { outputs: renamed(&op.outputs, &format!("_first{tag}")), ..op.clone() };
    let mut inner = inner_names(op, &format!("_again{tag}"));
    for level in (0..depth).rev() {
        let outputs =
            if level == 0 { op.outputs.clone() } else { renamed(&op.outputs, &format!("_at{level}_{tag}")) };
        let yes =
            mil::Block { outputs: names(&inner.outputs), operations: vec![inner], ..Default::default() };
        let no = mil::Block { outputs: names(&first.outputs), ..Default::default() };
        inner = operation("cond", vec![("pred", boolean(taken))], outputs, vec![yes, no]);
    }
    vec![first, inner]
}

/// A copy of the op for an inner block: its outputs, and whatever its own blocks define, have names of their own.
fn inner_names(op: &mil::Operation, suffix: &str) -> mil::Operation {
    fn rename(block: &mut mil::Block, suffix: &str, seen: &mut Vec<String>) {
        let depth = seen.len();
        for input in &mut block.inputs {
            seen.push(input.name.clone());
            input.name.push_str(suffix);
        }
        for op in &mut block.operations {
            for argument in op.inputs.values_mut().flat_map(|argument| &mut argument.arguments) {
                if let Some(binding::Binding::Name(name)) = &mut argument.binding
                    && seen.contains(name)
                {
                    name.push_str(suffix);
                }
            }
            op.blocks.iter_mut().for_each(|block| rename(block, suffix, seen));
            for output in &mut op.outputs {
                seen.push(output.name.clone());
                output.name.push_str(suffix);
            }
        }
        block.outputs.iter_mut().filter(|name| seen.contains(name)).for_each(|name| name.push_str(suffix));
        seen.truncate(depth);
    }
    let mut op = op.clone();
    op.blocks.iter_mut().for_each(|block| rename(block, suffix, &mut Vec::new()));
    op.outputs = renamed(&op.outputs, suffix);
    op
}

/// The op, and a loop that runs it `count` times more.
fn in_loop(op: &mil::Operation, count: i32, tag: usize) -> Vec<mil::Operation> {
    let first = mil::Operation { outputs: renamed(&op.outputs, &format!("_first{tag}")), ..op.clone() };
    let number = |name: &str| mil::NamedValueType {
        name: format!("{}{name}{tag}", op.outputs[0].name),
        r#type: Some(scalar_type(mil::DataType::Int32)),
    };
    let less = mil::NamedValueType { r#type: Some(scalar_type(mil::DataType::Bool)), ..number("_less") };
    let inputs: Vec<_> =
        std::iter::once(number("_i")).chain(renamed(&op.outputs, &format!("_before{tag}"))).collect();
    let i = || named(&[number("_i").name]);
    let condition = mil::Block {
        inputs: inputs.clone(),
        operations: vec![operation("less", vec![("x", i()), ("y", int(count))], vec![less.clone()], vec![])],
        outputs: vec![less.name],
        ..Default::default()
    };
    let again = inner_names(op, &format!("_again{tag}"));
    let mut outputs = vec![number("_next").name];
    outputs.extend(names(&again.outputs));
    let add = operation("add", vec![("x", i()), ("y", int(1))], vec![number("_next")], vec![]);
    let body = mil::Block { inputs, operations: vec![again, add], outputs, ..Default::default() };
    let mut vars = int(0);
    vars.arguments.extend(named(&names(&first.outputs)).arguments);
    let outputs = std::iter::once(number("_count")).chain(op.outputs.clone()).collect();
    vec![first, operation("while_loop", vec![("loop_vars", vars)], outputs, vec![condition, body])]
}

/// Places of the ops that compute something.
fn computing(block: &mil::Block) -> Vec<usize> {
    let computes = |op: &mil::Operation| {
        !matches!(op.r#type.as_str(), "const" | "classify")
            && !op.r#type.starts_with("constexpr")
            && !op.outputs.is_empty()
    };
    (0..block.operations.len()).filter(|&i| computes(&block.operations[i])).collect()
}

/// Moves one op into blocks.
fn wrap(proto: &mut Proto, choices: &mut Choices<'_>, deepest: usize, tag: usize) {
    let block = body(proto);
    let places = computing(block);
    if places.is_empty() {
        return;
    }
    let at = choices.of(&places);
    let op = &block.operations[at];
    let ops = match choices.below(3) {
        0 => in_branches(op, 1 + choices.below(deepest), true, tag),
        1 => in_branches(op, 1 + choices.below(deepest), false, tag),
        _ => in_loop(op, i32::try_from(choices.below(4)).unwrap(), tag),
    };
    block.operations.splice(at..=at, ops);
}

/// Every type of a block and of the blocks inside, with those of constants.
fn types<'a>(block: &'a mut mil::Block, found: &mut Vec<&'a mut mil::TensorType>) {
    fn tensor<'a>(ty: Option<&'a mut mil::ValueType>, found: &mut Vec<&'a mut mil::TensorType>) {
        match ty.and_then(|ty| ty.r#type.as_mut()) {
            Some(mil::value_type::Type::TensorType(tensor)) => found.push(tensor),
            Some(mil::value_type::Type::ListType(list)) => self::types_of_list(list, found),
            _ => {}
        }
    }
    for input in &mut block.inputs {
        tensor(input.r#type.as_mut(), found);
    }
    for op in &mut block.operations {
        for output in &mut op.outputs {
            tensor(output.r#type.as_mut(), found);
        }
        if let Some(value) = op.attributes.get_mut("val") {
            tensor(value.r#type.as_mut(), found);
        }
        op.blocks.iter_mut().for_each(|block| types(block, found));
    }
}

fn types_of_list<'a>(list: &'a mut mil::ListType, found: &mut Vec<&'a mut mil::TensorType>) {
    if let Some(ty) = list.r#type.as_mut()
        && let Some(mil::value_type::Type::TensorType(tensor)) = ty.r#type.as_mut()
    {
        found.push(tensor);
    }
}

/// Changes one thing to something that may make no sense.
fn damage(proto: &mut Proto, choices: &mut Choices<'_>) {
    const SIZES: &[u64] = &[0, 1, 2, 3, 5, 64, 1 << 16, 1 << 20, 1 << 40, u64::MAX];
    let any_op = op_names();
    let constant = |size| Some(Dim::Constant(ConstantDimension { size }));
    match choices.below(12) {
        // A shape.
        0 | 1 => {
            let mut inputs: Vec<mil::NamedValueType> = std::mem::take(&mut function(proto).inputs);
            let mut found = Vec::new();
            for input in &mut inputs {
                if let Some(mil::value_type::Type::TensorType(ty)) =
                    input.r#type.as_mut().and_then(|ty| ty.r#type.as_mut())
                {
                    found.push(ty);
                }
            }
            types(body(proto), &mut found);
            let at = choices.below(found.len());
            if let Some(ty) = found.get_mut(at) {
                let at = choices.below(ty.dimensions.len());
                match choices.below(6) {
                    0 | 1 if !ty.dimensions.is_empty() => {
                        ty.dimensions[at].dimension = constant(choices.of(SIZES));
                    }
                    2 if !ty.dimensions.is_empty() => {
                        let variadic = choices.below(8) == 1;
                        ty.dimensions[at].dimension = Some(Dim::Unknown(UnknownDimension { variadic }));
                    }
                    3 if !ty.dimensions.is_empty() => {
                        ty.dimensions.remove(at);
                        ty.rank = ty.rank.wrapping_sub(1);
                    }
                    4 => ty.rank = choices.of(&[-1, 0, 7, i64::MAX, i64::MIN]),
                    _ => {
                        ty.dimensions.insert(at, mil::Dimension { dimension: constant(choices.of(SIZES)) });
                        ty.rank = ty.rank.wrapping_add(1);
                    }
                }
            }
            function(proto).inputs = inputs;
        }
        // An element type.
        2 => {
            let mut found = Vec::new();
            types(body(proto), &mut found);
            let at = choices.below(found.len());
            if let Some(ty) = found.get_mut(at) {
                ty.data_type = i32::try_from(choices.below(45)).unwrap();
            }
        }
        // The contents of a constant.
        3..=6 => {
            let mut values: Vec<&mut Immediate> = Vec::new();
            for op in &mut body(proto).operations {
                if let Some(value) = op.attributes.get_mut("val")
                    && let Some(Contents::ImmediateValue(immediate)) = &mut value.value
                    && let Some(immediate_value::Value::Tensor(tensor)) = &mut immediate.value
                    && let Some(value) = &mut tensor.value
                {
                    values.push(value);
                }
            }
            let at = choices.below(values.len());
            let Some(value) = values.get_mut(at) else { return };
            match value {
                Immediate::Ints(v) if !v.values.is_empty() => {
                    let at = choices.below(v.values.len());
                    v.values[at] = choices.of(&[0, -1, 1, 2, 3, 7, -2, -3, 100, 1 << 16, i32::MAX, i32::MIN]);
                }
                Immediate::Floats(v) if !v.values.is_empty() => {
                    let at = choices.below(v.values.len());
                    v.values[at] = choices.of(&[0.0, -0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, 1e30, -1e-40]);
                }
                Immediate::Bools(v) if !v.values.is_empty() => {
                    let at = choices.below(v.values.len());
                    v.values[at] = !v.values[at];
                }
                Immediate::Strings(v) if !v.values.is_empty() => {
                    let texts = [
                        "",
                        "same",
                        "valid",
                        "custom",
                        "fp16",
                        "int32",
                        "bool",
                        "NEAREST_NEIGHBOR",
                        "ijk,k->ij",
                    ];
                    v.values[0] = choices.of(&texts).to_owned();
                }
                Immediate::Bytes(v) => {
                    let cut = choices.below(v.values.len() + 1);
                    v.values.truncate(cut);
                }
                _ => {}
            }
        }
        // A reference: to anything, to nothing, to itself.
        7 | 8 => {
            let block = body(proto);
            let places = computing(block);
            if places.is_empty() {
                return;
            }
            let at = choices.of(&places);
            let mut known: Vec<String> = block.operations.iter().flat_map(|op| names(&op.outputs)).collect();
            known.push("nobody".into());
            let name = choices.of(&known);
            let op = &mut block.operations[at];
            let mut keys: Vec<String> = op.inputs.keys().cloned().collect();
            keys.sort();
            if keys.is_empty() {
                return;
            }
            let key = choices.of(&keys);
            let argument = op.inputs.get_mut(&key).unwrap();
            let at = choices.below(argument.arguments.len());
            match choices.below(5) {
                0 => {
                    op.inputs.remove(&key);
                }
                1 => argument.arguments.push(named(&[name]).arguments.remove(0)),
                2 => {
                    op.inputs.insert("surprise".into(), named(&[name]));
                }
                _ => {
                    if let Some(binding) = argument.arguments.get_mut(at) {
                        binding.binding = Some(binding::Binding::Name(name));
                    }
                }
            }
        }
        // Another op, or another opset.
        9 => {
            let block = body(proto);
            let places = computing(block);
            if !places.is_empty() {
                let at = choices.of(&places);
                block.operations[at].r#type = choices.of(&any_op).to_owned();
            }
        }
        10 => {
            let to =
                choices.of(&["CoreML5", "CoreML6", "CoreML7", "CoreML8", "CoreML9", "CoreML1"]).to_owned();
            let function = function(proto);
            let block = function.block_specializations.drain().next().unwrap().1;
            function.block_specializations.insert(to.clone(), block);
            function.opset = to;
        }
        // The order, or an op twice.
        _ => {
            let block = body(proto);
            let n = block.operations.len();
            let (a, b) = (choices.below(n), choices.below(n));
            match choices.below(3) {
                0 => block.operations.swap(a, b),
                1 => block.operations.insert(a, block.operations[b].clone()),
                _ => {
                    block.operations.remove(a);
                }
            }
        }
    }
}

type Answer = Vec<(String, Output)>;

fn answer(
    proto: &Proto,
    inputs: &[(String, Vec<usize>, Elements)],
    limits: Limits,
) -> Result<Answer, String> {
    let options = LoadOptions::default().limits(limits);
    let model = Model::from_memory("program", &proto.encode_to_vec(), &HashMap::new(), &options)
        .map_err(|e| report(&e))?;
    let inputs: Vec<_> = inputs
        .iter()
        .map(|(name, shape, elements)| {
            let (dtype, bytes) = (elements.dtype(), elements.bytes());
            (name.as_str(), Input::Array(ArrayRef { dtype, shape, strides: None, bytes }))
        })
        .collect();
    let found = model.session(NonZeroUsize::MIN).predict(&inputs, None, &[]).map_err(|e| report(&e))?;
    let declared = &model.description().outputs;
    assert_eq!(found.len(), declared.len(), "an answer has every output");
    for ((name, output), feature) in found.iter().zip(declared) {
        assert_eq!(*name, feature.name);
        if let (Output::Array(array), FeatureKind::Tensor { tensor }) = (output, &feature.kind) {
            assert_eq!(array.elements.dtype(), tensor.dtype, "{name} has the type that the model declares");
            let is_open = tensor.shape.is_empty() || tensor.flexible.is_some();
            assert!(
                is_open || array.shape == tensor.shape,
                "{name} {:?} is declared {tensor:?}",
                array.shape
            );
        }
    }
    Ok(found)
}

fn same(found: &Output, shape: &[usize], expected: &Elements) -> bool {
    let Output::Array(Array { shape: found_shape, elements }) = found else { return false };
    found_shape == shape
        && match (elements, expected) {
            (Elements::Float32(found), Elements::Float32(right)) => {
                let near = |(f, r): (&f32, &f32)| {
                    f == r || (f.is_nan() && r.is_nan()) || (f - r).abs() <= 1e-4 * (1.0 + r.abs())
                };
                found.len() == right.len() && found.iter().zip(right).all(near)
            }
            (Elements::Int32(found), Elements::Int32(right)) => found == right,
            _ => false,
        }
}

fn small() -> Limits {
    let mut limits = Limits::default();
    limits.tensor_elements = 1 << 16;
    limits.total_elements = 1 << 18;
    limits.loop_iterations = 100;
    limits
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn what_runs_in_blocks_answers_as_it_does_outside(which: usize, choices in prop::collection::vec(any::<u16>(), 0..30)) {
        let case = &CASES[which % CASES.len()];
        // Random numbers are others each time.
        prop_assume!(!case.op.starts_with("random"));
        let mut proto = case.proto.clone();
        let mut choices = Choices(choices.iter());
        for tag in 0..=choices.below(3) {
            wrap(&mut proto, &mut choices, 6, tag);
        }
        let found = answer(&proto, &case.inputs, Limits::default());
        let found = found.map_err(|e| TestCaseError::fail(format!("{}: {e}", case.op)))?;
        for (name, shape, expected) in &case.outputs {
            let output = found.iter().find(|(found, _)| found == name).map(|(_, output)| output);
            prop_assert!(output.is_some_and(|output| same(output, shape, expected)), "{} {name}: {output:?}", case.op);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_damaged_program_answers_or_is_refused(which: usize, choices in prop::collection::vec(any::<u16>(), 0..60)) {
        let case = &CASES[which % CASES.len()];
        let mut proto = case.proto.clone();
        let mut choices = Choices(choices.iter());
        for tag in 0..choices.below(3) {
            wrap(&mut proto, &mut choices, 3, tag);
        }
        for _ in 0..=choices.below(4) {
            damage(&mut proto, &mut choices);
        }
        // An answer is as the model declares it, which `answer` sees to; what the ops make is compared with their types as they run.
        let _ = answer(&proto, &case.inputs, small());
    }
}

/// The property above proves nothing if nearly all programs are refused, or nearly none.
#[test]
fn damage_both_kills_and_spares() {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::try_from(state >> 48).unwrap()
    };
    let (mut answered, mut refused_at_load, mut refused_later) = (0, 0, 0);
    for case in CASES.iter() {
        let sequence: Vec<u16> = (0..60).map(|_| next()).collect();
        let mut proto = case.proto.clone();
        damage(&mut proto, &mut Choices(sequence.iter()));
        match answer(&proto, &case.inputs, small()) {
            Ok(_) => answered += 1,
            Err(error) if error.contains("failed") || error.contains("input `") => refused_later += 1,
            Err(_) => refused_at_load += 1,
        }
    }
    println!("{answered} answered, {refused_at_load} refused at load, {refused_later} later");
    assert!(
        answered > 100 && refused_at_load > 100 && refused_later > 10,
        "{answered} {refused_at_load} {refused_later}"
    );
}

#[test]
fn blocks_nested_too_deep_are_refused_and_the_deepest_allowed_run() {
    let case = CASES.iter().find(|case| case.op == "exp").unwrap();
    for (depth, fits) in [(30, true), (32, true), (33, false), (45, false), (400, false)] {
        let mut proto = case.proto.clone();
        let block = body(&mut proto);
        let at = computing(block)[0];
        let ops = in_branches(&block.operations[at], depth, true, 0);
        block.operations.splice(at..=at, ops);
        let result = answer(&proto, &case.inputs, Limits::default());
        assert_eq!(result.is_ok(), fits, "{depth}: {result:?}");
        // Protocol buffers have a limit of their own, which deep files meet first.
        if let Err(error) = result {
            assert!(error.contains("nested deeper") || error.contains("does not decode"), "{error}");
        }
    }
}
