//! ML programs: MIL's protobuf to [`Function`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coreml_proto::proto::mil_spec as mil;
use mil::argument::binding::Binding;
use mil::tensor_value::Value as Immediate;
use mil::value::{Value as Contents, immediate_value};

use super::{DecodeError, MAX_DEPTH};
use crate::SharedBytes;
use crate::description::Labels;
use crate::error::{LoadError, OpError};
use crate::ir::{Argument, Block, Constant, ConstantData, Function, Op, Opset, Type, ValueId};
use crate::types::{DType, TensorType, element_count};
use crate::weights::WeightFile;

/// Where the bytes of `@model_path/…` come from.
pub(crate) type OpenFile<'a> = &'a dyn Fn(&str) -> Result<SharedBytes, LoadError>;

/// Names, shapes and places of a function's inputs, states and outputs, beside its ops.
pub(crate) struct Decoded {
    pub(crate) function: Function,
    /// Inputs and states in the order of the declaration.
    pub(crate) inputs: Vec<(String, ValueId)>,
    /// Outputs in the order of the block. A classifier's label and dictionary are both the probabilities.
    pub(crate) outputs: Vec<(String, ValueId)>,
    /// Of a classifier: the labels of the probabilities.
    pub(crate) class_labels: Option<Labels>,
}

/// Decodes the function of that name.
pub(crate) fn function(proto: &mil::Function, open: OpenFile<'_>) -> Result<Decoded, DecodeError> {
    let opset = Opset::from_name(&proto.opset)
        .ok_or_else(|| DecodeError::Unsupported(format!("the opset `{}`", proto.opset)))?;
    let block = proto.block_specializations.get(&proto.opset).ok_or_else(|| {
        DecodeError::corrupt("function", format!("it has no block for its opset {}", proto.opset))
    })?;
    let mut decoder = Decoder {
        function: Function { opset, ..Function::default() },
        open,
        files: HashMap::new(),
        scope: Scope::default(),
        class_labels: None,
    };
    let mut inputs = Vec::new();
    for input in &proto.inputs {
        let ty = value_type(input.r#type.as_ref()).map_err(|why| at_value(&input.name, why))?;
        let id = decoder.define(&input.name, ty)?;
        decoder.function.body.inputs.push(id);
        inputs.push((input.name.clone(), id));
    }
    let body = decoder.block(block, 0)?;
    let outputs = block.outputs.iter().cloned().zip(body.outputs.iter().copied()).collect();
    let function_inputs = std::mem::take(&mut decoder.function.body.inputs);
    decoder.function.body = Block { inputs: function_inputs, ..body };
    Ok(Decoded { function: decoder.function, inputs, outputs, class_labels: decoder.class_labels })
}

/// Names in sight, innermost last; a block's names end with it.
#[derive(Default)]
struct Scope {
    names: HashMap<Arc<str>, ValueId>,
    /// The same in the order of their definition, to forget a block's when it ends. No block hides an outer name.
    order: Vec<Arc<str>>,
    /// The outputs of `classify`: the function may return them, no op may read them.
    labels: HashSet<String>,
}

struct Decoder<'a> {
    function: Function,
    open: OpenFile<'a>,
    files: HashMap<String, WeightFile>,
    scope: Scope,
    /// What `classify` says.
    class_labels: Option<Labels>,
}

fn at_value(name: &str, why: impl Into<String>) -> DecodeError {
    DecodeError::corrupt(format!("value `{name}`"), why.into())
}

impl Decoder<'_> {
    fn define(&mut self, name: &str, ty: Type) -> Result<ValueId, DecodeError> {
        let name: Arc<str> = name.into();
        let id = self.function.new_value(Arc::clone(&name), ty);
        self.bind(name, id)
    }

    fn bind(&mut self, name: Arc<str>, id: ValueId) -> Result<ValueId, DecodeError> {
        if self.scope.names.insert(Arc::clone(&name), id).is_some() {
            return Err(at_value(&name, "defined twice"));
        }
        self.scope.order.push(name);
        Ok(id)
    }

    fn block(&mut self, block: &mil::Block, depth: usize) -> Result<Block, DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::corrupt("block", format!("blocks are nested deeper than {MAX_DEPTH}")));
        }
        let outer = self.scope.order.len();
        let mut out = Block::default();
        for input in &block.inputs {
            let ty = value_type(input.r#type.as_ref()).map_err(|why| at_value(&input.name, why))?;
            out.inputs.push(self.define(&input.name, ty)?);
        }
        for op in &block.operations {
            if op.r#type == "const" {
                self.constant(op)?;
            } else if op.r#type == "classify" {
                self.classify(op, depth)?;
            } else {
                let op = self.op(op, depth)?;
                out.ops.push(op);
            }
        }
        for name in &block.outputs {
            if depth > 0 && self.scope.labels.contains(name) {
                return Err(at_value(name, "a block reads the output of `classify`"));
            }
            out.outputs.push(self.lookup(name)?);
        }
        for name in self.scope.order.drain(outer..) {
            self.scope.names.remove(&name);
        }
        Ok(out)
    }

    fn lookup(&self, name: &str) -> Result<ValueId, DecodeError> {
        let id = self.scope.names.get(name).copied();
        id.ok_or_else(|| at_value(name, "used before it is defined, or never defined"))
    }

    fn constant(&mut self, op: &mil::Operation) -> Result<(), DecodeError> {
        let [output] = &op.outputs[..] else {
            return Err(DecodeError::corrupt("a const op", "it must have one output"));
        };
        let value =
            op.attributes.get("val").ok_or_else(|| at_value(&output.name, "a const without `val`"))?;
        let constant = self.value(value).map_err(|why| at_value(&output.name, why))?;
        let name: Arc<str> = output.name.as_str().into();
        let id = self.function.new_constant(Arc::clone(&name), constant);
        self.bind(name, id)?;
        Ok(())
    }

    /// `classify` makes no tensor: it says that the function is a classifier, and which labels its probabilities have.
    /// Both its outputs are bound to the probabilities; the description tells which of them is the label.
    fn classify(&mut self, op: &mil::Operation, depth: usize) -> Result<(), DecodeError> {
        let output = op.outputs.first().map(|o| o.name.clone()).unwrap_or_default();
        let wrong = |reason: String| DecodeError::Op {
            op: op.r#type.clone(),
            output: output.clone(),
            source: OpError::Invalid(reason),
        };
        if depth > 0 || self.class_labels.is_some() {
            return Err(wrong("it may be there once, outside of inner blocks".into()));
        }
        if let Some(name) =
            op.inputs.keys().find(|name| !matches!(name.as_str(), "probabilities" | "classes"))
        {
            let opset = self.function.opset.name().into();
            let source = OpError::UnknownParameter { parameter: name.clone(), opset };
            return Err(DecodeError::Op { op: op.r#type.clone(), output, source });
        }
        let argument = |name: &str| match op.inputs.get(name).map(|input| &input.arguments[..]) {
            Some([argument]) => argument.binding.as_ref().ok_or_else(|| wrong(format!("`{name}` is empty"))),
            _ => Err(wrong(format!("`{name}` must have one argument"))),
        };
        let Binding::Name(probabilities) = argument("probabilities")? else {
            return Err(wrong("the probabilities are a constant".into()));
        };
        let id = self.lookup(probabilities)?;
        let labels = match argument("classes")? {
            Binding::Value(value) => labels(value).map_err(wrong)?,
            Binding::Name(_) => return Err(wrong("the classes are not a constant".into())),
        };
        let ty = self.function.value(id).ty.tensor();
        let count = ty.fixed_shape().and_then(|shape| element_count(&shape));
        if !ty.dtype.is_float() || labels.is_empty() || count.is_some_and(|count| count != labels.len()) {
            return Err(wrong(format!("{} classes for probabilities {ty}", labels.len())));
        }
        self.class_labels = Some(labels);
        for output in &op.outputs {
            self.bind(output.name.as_str().into(), id)?;
            self.scope.labels.insert(output.name.clone());
        }
        Ok(())
    }

    fn op(&mut self, op: &mil::Operation, depth: usize) -> Result<Op, DecodeError> {
        let output = op.outputs.first().map(|o| o.name.clone()).unwrap_or_default();
        // The names of ops that only the engine's own lowering makes.
        if op.r#type.starts_with('#') {
            let source = OpError::Unknown { opset: self.function.opset.name().into() };
            return Err(DecodeError::Op { op: op.r#type.clone(), output, source });
        }
        let mut arguments = Vec::with_capacity(op.inputs.len());
        let mut names: Vec<_> = op.inputs.keys().collect();
        names.sort();
        for name in names {
            let mut ids = Vec::new();
            for binding in &op.inputs[name].arguments {
                let id = match &binding.binding {
                    Some(Binding::Name(value)) if self.scope.labels.contains(value) => {
                        return Err(at_value(value, "an op reads the output of `classify`"));
                    }
                    Some(Binding::Name(value)) => self.lookup(value)?,
                    Some(Binding::Value(value)) => {
                        let constant =
                            self.value(value).map_err(|why| at_value(&output, format!("{name}: {why}")))?;
                        self.function.new_constant(name.as_str(), constant)
                    }
                    None => return Err(at_value(&output, format!("the argument `{name}` is empty"))),
                };
                ids.push(id);
            }
            let argument = match ids[..] {
                // The shape of elements of rank 0: a tuple of no dimensions.
                [] if op.r#type == "make_list" && name == "elem_shape" => continue,
                [] => return Err(at_value(&output, format!("the argument `{name}` is empty"))),
                [id] => Argument::One(id),
                _ => Argument::Many(ids),
            };
            arguments.push((name.as_str().into(), argument));
        }
        // Some ops keep a constant among their attributes (`constexpr_*` of iOS 16).
        let mut attributes: Vec<_> =
            op.attributes.iter().filter(|(name, _)| name.as_str() != "name").collect();
        attributes.sort_by_key(|(name, _)| name.as_str());
        for (name, value) in attributes {
            if op.inputs.contains_key(name) {
                return Err(at_value(&output, format!("`{name}` is an input and an attribute")));
            }
            let constant = self.value(value).map_err(|why| at_value(&output, format!("{name}: {why}")))?;
            let id = self.function.new_constant(name.as_str(), constant);
            arguments.push((name.as_str().into(), Argument::One(id)));
        }
        let blocks = op.blocks.iter().map(|b| self.block(b, depth + 1)).collect::<Result<_, _>>()?;
        let mut outputs = Vec::with_capacity(op.outputs.len());
        for output in &op.outputs {
            let ty = value_type(output.r#type.as_ref()).map_err(|why| at_value(&output.name, why))?;
            outputs.push(self.define(&output.name, ty)?);
        }
        if outputs.is_empty() && op.r#type != "write_state" {
            let source = OpError::Invalid("it has no output".into());
            return Err(DecodeError::Op { op: op.r#type.clone(), output, source });
        }
        Ok(Op { kind: op.r#type.as_str().into(), arguments, outputs, blocks })
    }

    fn value(&mut self, value: &mil::Value) -> Result<Constant, String> {
        let Type::Tensor(ty) = value_type(value.r#type.as_ref())? else {
            return Err("expected a tensor".into());
        };
        let shape = ty.fixed_shape().ok_or("a constant of unknown shape")?;
        match value.value.as_ref().ok_or("a constant without contents")? {
            Contents::ImmediateValue(immediate) => match immediate.value.as_ref() {
                Some(immediate_value::Value::Tensor(tensor)) => immediate_constant(ty.dtype, shape, tensor),
                _ => Err("expected a tensor".into()),
            },
            Contents::BlobFileValue(blob) => {
                let file = match self.files.get(&blob.file_name) {
                    Some(file) => file.clone(),
                    None => {
                        let bytes = (self.open)(&blob.file_name).map_err(|error| chain(&error))?;
                        let file = WeightFile::new(bytes).map_err(|error| error.to_string())?;
                        self.files.insert(blob.file_name.clone(), file.clone());
                        file
                    }
                };
                let bytes = file.blob(blob.offset, ty.dtype).map_err(|error| error.to_string())?;
                Constant::new(ty.dtype, shape, ConstantData::Raw(bytes))
            }
        }
    }
}

/// The list of labels in `classes` of `classify`.
fn labels(value: &mil::Value) -> Result<Labels, String> {
    let Some(Contents::ImmediateValue(immediate)) = &value.value else {
        return Err("the classes are not in the program".into());
    };
    let Some(immediate_value::Value::List(list)) = &immediate.value else {
        return Err("the classes are not a list".into());
    };
    let (mut strings, mut ints) = (Vec::new(), Vec::new());
    for value in &list.values {
        let tensor = match &value.value {
            Some(Contents::ImmediateValue(immediate)) => match &immediate.value {
                Some(immediate_value::Value::Tensor(tensor)) => tensor.value.as_ref(),
                _ => None,
            },
            _ => None,
        };
        match tensor {
            Some(Immediate::Strings(v)) if v.values.len() == 1 => strings.extend(v.values.iter().cloned()),
            Some(Immediate::LongInts(v)) if v.values.len() == 1 => ints.extend(v.values.iter().copied()),
            Some(Immediate::Ints(v)) if v.values.len() == 1 => {
                ints.extend(v.values.iter().map(|&x| i64::from(x)))
            }
            _ => return Err("a class is neither a string nor an integer".into()),
        }
    }
    match (strings.is_empty(), ints.is_empty()) {
        (false, true) => Ok(Labels::Strings(strings)),
        (true, _) => Ok(Labels::Ints(ints)),
        (false, false) => Err("classes of both kinds".into()),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

pub(crate) fn immediate_constant(
    dtype: DType,
    shape: Vec<usize>,
    tensor: &mil::TensorValue,
) -> Result<Constant, String> {
    let count = element_count(&shape).ok_or_else(|| format!("the shape {shape:?} overflows"))?;
    let ints = |values: &[i64]| -> Result<ConstantData, String> {
        let values = values.iter().map(|&x| i32::try_from(x)).collect::<Result<Vec<_>, _>>();
        values.map(ConstantData::I32).map_err(|_| "an integer does not fit 32 bits".to_owned())
    };
    let data = match tensor.value.as_ref() {
        Some(Immediate::Floats(v)) if dtype.is_float() => ConstantData::F32(v.values.clone()),
        Some(Immediate::Doubles(v)) if dtype.is_float() => {
            ConstantData::F32(v.values.iter().map(|&x| x as f32).collect())
        }
        Some(Immediate::Ints(v)) if !dtype.is_float() && dtype != DType::String => {
            ConstantData::I32(v.values.clone())
        }
        Some(Immediate::LongInts(v)) if !dtype.is_float() && dtype != DType::String => ints(&v.values)?,
        Some(Immediate::Bools(v)) if dtype == DType::Bool => {
            ConstantData::I32(v.values.iter().map(|&x| i32::from(x)).collect())
        }
        Some(Immediate::Strings(v)) if dtype == DType::String => ConstantData::Strings(v.values.clone()),
        Some(Immediate::Bytes(v)) if dtype != DType::String => {
            ConstantData::Raw(SharedBytes::from(v.values.clone()))
        }
        Some(_) => return Err(format!("the contents are not of type {dtype}")),
        // An empty message: no elements.
        None if count == 0 => ConstantData::I32(Vec::new()),
        None => return Err("a constant without contents".into()),
    };
    Constant::new(dtype, shape, data)
}

pub(crate) fn value_type(ty: Option<&mil::ValueType>) -> Result<Type, String> {
    use mil::value_type::Type as T;
    match ty.and_then(|ty| ty.r#type.as_ref()) {
        Some(T::TensorType(tensor)) => tensor_type(tensor).map(Type::Tensor),
        Some(T::ListType(list)) => match value_type(list.r#type.as_deref())? {
            Type::Tensor(element) => Ok(Type::List(element)),
            _ => Err("a list of something else than tensors".into()),
        },
        Some(T::StateType(state)) => match value_type(state.wrapped_type.as_deref())? {
            Type::Tensor(tensor) => Ok(Type::State(tensor)),
            _ => Err("a state of something else than a tensor".into()),
        },
        Some(T::TupleType(_)) => Err("tuples are not supported".into()),
        Some(T::DictionaryType(_)) => Err("dictionaries are not supported".into()),
        None => Err("it has no type".into()),
    }
}

fn tensor_type(ty: &mil::TensorType) -> Result<TensorType, String> {
    use mil::dimension::Dimension as D;
    let dtype =
        DType::from_proto(ty.data_type).ok_or_else(|| format!("unknown element type {}", ty.data_type))?;
    // Where one dimension stands for any number of them, the rank is as unknown as where the file says so.
    let variadic = |d: &mil::Dimension| matches!(&d.dimension, Some(D::Unknown(u)) if u.variadic);
    if ty.rank < 0 || ty.dimensions.iter().any(variadic) {
        return Ok(TensorType { dtype, shape: None });
    }
    let dims = ty
        .dimensions
        .iter()
        .map(|d| match d.dimension {
            Some(D::Constant(c)) => usize::try_from(c.size)
                .map(Some)
                .map_err(|_| format!("a dimension of {} does not fit this machine", c.size)),
            Some(D::Unknown(_)) | None => Ok(None),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if usize::try_from(ty.rank) != Ok(dims.len()) {
        return Err(format!("rank {} with {} dimensions", ty.rank, dims.len()));
    }
    Ok(TensorType { dtype, shape: Some(dims) })
}
