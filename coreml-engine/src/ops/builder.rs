//! What an op's `build` sees: its parameters, checked as they are read.

use std::collections::HashSet;
use std::sync::Arc;

use crate::Limits;
use crate::custom::Custom;
use crate::error::OpError;
use crate::ir::{Argument, Constant, Function, Op, Opset, Type, ValueId};
use crate::plan::Body;
use crate::types::{DType, TensorType};

/// A parameter that the kernel reads while it runs: `slot` is its place among the kernel's inputs.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) slot: usize,
    pub(crate) ty: TensorType,
    /// Its contents, where they are known at load (for packing weights).
    pub(crate) constant: Option<Arc<Constant>>,
}

impl Input {
    pub(crate) fn rank(&self) -> Option<usize> {
        self.ty.rank()
    }
}

/// A list of integers that is known at load, or computed by the program.
#[derive(Clone, Debug)]
pub(crate) enum Ints {
    Const(Vec<i32>),
    Input(usize),
}

/// Reads one op. Every parameter that `build` does not ask for is an error afterwards ([`OpBuilder::finish`]).
pub(crate) struct OpBuilder<'a> {
    function: &'a Function,
    op: &'a Op,
    limits: &'a Limits,
    inputs: Vec<ValueId>,
    asked: HashSet<&'static str>,
    /// The op's blocks, with what each captures; taken by [`OpBuilder::block`].
    bodies: std::vec::IntoIter<(Body, Vec<ValueId>)>,
    /// Whether the op may define what is not a tensor.
    lists: bool,
}

/// A block of the op, and where the op finds what the block captures: a range of the kernel's inputs.
pub(crate) struct BlockInput {
    pub(crate) body: Body,
    pub(crate) captured: std::ops::Range<usize>,
}

impl<'a> OpBuilder<'a> {
    pub(crate) fn new(
        function: &'a Function,
        op: &'a Op,
        limits: &'a Limits,
        bodies: Vec<(Body, Vec<ValueId>)>,
    ) -> Self {
        let (inputs, asked) = (Vec::new(), HashSet::new());
        Self { function, op, limits, inputs, asked, bodies: bodies.into_iter(), lists: false }
    }

    /// The opset of the function, for ops whose meaning it changes.
    pub(crate) fn opset(&self) -> Opset {
        self.function.opset
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.limits
    }

    /// Number of values the op defines.
    pub(crate) fn output_count(&self) -> usize {
        self.op.outputs.len()
    }

    /// Declared type of output `i`.
    pub(crate) fn output_type(&self, i: usize) -> Result<&'a TensorType, OpError> {
        let id = self.op.outputs.get(i).ok_or_else(|| OpError::Invalid(format!("no output {i}")))?;
        Ok(self.function.value(*id).ty.tensor())
    }

    /// Type of output `i`, tensor or list.
    pub(crate) fn output_kind(&mut self, i: usize) -> Result<&'a Type, OpError> {
        self.lists = true;
        let id = self.op.outputs.get(i).ok_or_else(|| OpError::Invalid(format!("no output {i}")))?;
        Ok(&self.function.value(*id).ty)
    }

    /// The custom layer of the function that the parameter numbers.
    pub(crate) fn custom(&mut self, name: &'static str) -> Result<Custom, OpError> {
        let number = self.int_opt(name)?.ok_or(OpError::Missing(name))?;
        let custom = usize::try_from(number).ok().and_then(|i| self.function.customs.get(i));
        custom.cloned().ok_or_else(|| parameter(name, "there is no such custom layer"))
    }

    /// The next of the op's blocks.
    pub(crate) fn block(&mut self) -> Result<BlockInput, OpError> {
        let (body, ids) = self.bodies.next().ok_or_else(|| OpError::Invalid("a block is missing".into()))?;
        let first = self.inputs.len();
        self.inputs.extend(ids);
        Ok(BlockInput { body, captured: first..self.inputs.len() })
    }

    /// Type of output `output` of block `block`, by their indices.
    pub(crate) fn block_output(&self, block: usize, output: usize) -> Result<&'a Type, OpError> {
        let id = self.op.blocks.get(block).and_then(|block| block.outputs.get(output));
        let id = id.ok_or_else(|| OpError::Invalid(format!("block {block} has no output {output}")))?;
        Ok(&self.function.value(*id).ty)
    }

    /// Type of input `input` of block `block`, by their indices.
    pub(crate) fn block_input(&self, block: usize, input: usize) -> Result<&'a Type, OpError> {
        let id = self.op.blocks.get(block).and_then(|block| block.inputs.get(input));
        let id = id.ok_or_else(|| OpError::Invalid(format!("block {block} has no input {input}")))?;
        Ok(&self.function.value(*id).ty)
    }

    /// Number of inputs and outputs of block `block`.
    pub(crate) fn block_arity(&self, block: usize) -> Result<(usize, usize), OpError> {
        let block = self.op.blocks.get(block);
        let block = block.ok_or_else(|| OpError::Invalid("a block is missing".into()))?;
        Ok((block.inputs.len(), block.outputs.len()))
    }

    /// Several values, tensors or lists (`loop_vars` of `while_loop`), with their types.
    pub(crate) fn values(&mut self, name: &'static str) -> Result<Vec<(Input, &'a Type)>, OpError> {
        let argument = self.argument(name).ok_or(OpError::Missing(name))?;
        let values = argument.ids().iter().map(|&id| (self.register(id), &self.function.value(id).ty));
        Ok(values.collect())
    }

    /// A list, packed along a first dimension; the type is that of its elements.
    pub(crate) fn list(&mut self, name: &'static str) -> Result<Input, OpError> {
        let id = self.single(name)?.ok_or(OpError::Missing(name))?;
        if !matches!(self.function.value(id).ty, Type::List(_)) {
            return Err(parameter(name, "expected a list"));
        }
        Ok(self.register(id))
    }

    fn argument(&mut self, name: &'static str) -> Option<&'a Argument> {
        self.asked.insert(name);
        self.op.arguments.iter().find(|(key, _)| &**key == name).map(|(_, argument)| argument)
    }

    fn single(&mut self, name: &'static str) -> Result<Option<ValueId>, OpError> {
        match self.argument(name) {
            None => Ok(None),
            Some(Argument::One(id)) => Ok(Some(*id)),
            Some(Argument::Many(ids)) => match ids[..] {
                [id] => Ok(Some(id)),
                _ => Err(parameter(name, "expected one value, found several")),
            },
        }
    }

    fn register(&mut self, id: ValueId) -> Input {
        let info = self.function.value(id);
        self.inputs.push(id);
        Input { slot: self.inputs.len() - 1, ty: info.ty.tensor().clone(), constant: info.constant.clone() }
    }

    /// Whether the parameter is given.
    pub(crate) fn has(&mut self, name: &'static str) -> bool {
        self.argument(name).is_some()
    }

    /// A required tensor that the kernel reads while it runs.
    pub(crate) fn input(&mut self, name: &'static str) -> Result<Input, OpError> {
        self.input_opt(name)?.ok_or(OpError::Missing(name))
    }

    /// An optional tensor that the kernel reads while it runs.
    pub(crate) fn input_opt(&mut self, name: &'static str) -> Result<Option<Input>, OpError> {
        let Some(id) = self.single(name)? else { return Ok(None) };
        if !matches!(self.function.value(id).ty, Type::Tensor(_)) {
            return Err(parameter(name, "expected a tensor"));
        }
        Ok(Some(self.register(id)))
    }

    /// A tensor of floats; its rank must be in `ranks` where it is known.
    pub(crate) fn float_input(
        &mut self,
        name: &'static str,
        ranks: std::ops::RangeInclusive<usize>,
    ) -> Result<Input, OpError> {
        let input = self.input(name)?;
        if !input.ty.dtype.is_float() {
            return Err(parameter(name, format!("expected floats, found {}", input.ty)));
        }
        if input.rank().is_some_and(|rank| !ranks.contains(&rank)) {
            return Err(parameter(name, format!("expected rank {ranks:?}, found {}", input.ty)));
        }
        Ok(input)
    }

    /// Several tensors (`values` of `concat` and `stack`).
    pub(crate) fn inputs(&mut self, name: &'static str) -> Result<Vec<Input>, OpError> {
        let argument = self.argument(name).ok_or(OpError::Missing(name))?;
        if argument.ids().iter().any(|&id| !matches!(self.function.value(id).ty, Type::Tensor(_))) {
            return Err(parameter(name, "expected tensors"));
        }
        Ok(argument.ids().iter().map(|&id| self.register(id)).collect())
    }

    /// The state that the op reads or writes, as its index among the function's states.
    pub(crate) fn state(&mut self, name: &'static str) -> Result<Input, OpError> {
        let id = self.single(name)?.ok_or(OpError::Missing(name))?;
        if !matches!(self.function.value(id).ty, Type::State(_)) {
            return Err(parameter(name, "expected a state"));
        }
        Ok(self.register(id))
    }

    /// A parameter that must be known at load, or `None` if absent.
    pub(crate) fn constant_opt(&mut self, name: &'static str) -> Result<Option<Arc<Constant>>, OpError> {
        let Some(id) = self.single(name)? else { return Ok(None) };
        self.function.value(id).constant.clone().map(Some).ok_or(OpError::NotConstant(name))
    }

    /// A parameter that must be known at load.
    pub(crate) fn constant(&mut self, name: &'static str) -> Result<Arc<Constant>, OpError> {
        self.constant_opt(name)?.ok_or(OpError::Missing(name))
    }

    /// Several parameters under one name that must be known at load (`begins` of `reshape_like`).
    pub(crate) fn constants(&mut self, name: &'static str) -> Result<Vec<Arc<Constant>>, OpError> {
        let argument = self.argument(name).ok_or(OpError::Missing(name))?;
        let constant = |&id: &ValueId| self.function.value(id).constant.clone();
        argument.ids().iter().map(|id| constant(id).ok_or(OpError::NotConstant(name))).collect()
    }

    /// Type of a required tensor whose contents the kernel does not need. If that is all it needs, it reads nothing, and
    /// the op is a constant.
    pub(crate) fn input_type(&mut self, name: &'static str) -> Result<&'a TensorType, OpError> {
        let id = self.single(name)?.ok_or(OpError::Missing(name))?;
        match &self.function.value(id).ty {
            Type::Tensor(ty) => Ok(ty),
            Type::List(_) | Type::State(_) => Err(parameter(name, "expected a tensor")),
        }
    }

    /// A constant float.
    pub(crate) fn float_opt(&mut self, name: &'static str) -> Result<Option<f32>, OpError> {
        let Some(constant) = self.constant_opt(name)? else { return Ok(None) };
        match constant.to_f32()?[..] {
            [x] => Ok(Some(x)),
            _ => Err(parameter(name, format!("expected a scalar, found shape {:?}", constant.shape()))),
        }
    }

    /// A constant float with a default.
    pub(crate) fn float(&mut self, name: &'static str, default: f32) -> Result<f32, OpError> {
        Ok(self.float_opt(name)?.unwrap_or(default))
    }

    /// A constant integer.
    pub(crate) fn int_opt(&mut self, name: &'static str) -> Result<Option<i32>, OpError> {
        let Some(constant) = self.constant_opt(name)? else { return Ok(None) };
        match constant.to_i32()?[..] {
            [x] => Ok(Some(x)),
            _ => Err(parameter(name, format!("expected a scalar, found shape {:?}", constant.shape()))),
        }
    }

    /// A constant integer with a default.
    pub(crate) fn int(&mut self, name: &'static str, default: i32) -> Result<i32, OpError> {
        Ok(self.int_opt(name)?.unwrap_or(default))
    }

    /// A constant boolean with a default.
    pub(crate) fn bool(&mut self, name: &'static str, default: bool) -> Result<bool, OpError> {
        let Some(constant) = self.constant_opt(name)? else { return Ok(default) };
        if constant.dtype() != DType::Bool {
            return Err(parameter(name, format!("expected a boolean, found {}", constant.dtype())));
        }
        Ok(self.int_opt(name)?.map_or(default, |x| x != 0))
    }

    /// Constant integers of rank 0 or 1.
    pub(crate) fn ints_opt(&mut self, name: &'static str) -> Result<Option<Vec<i32>>, OpError> {
        let Some(constant) = self.constant_opt(name)? else { return Ok(None) };
        if constant.shape().len() > 1 {
            return Err(parameter(name, format!("expected a list, found shape {:?}", constant.shape())));
        }
        constant.to_i32().map(Some)
    }

    /// Constant booleans of rank 0 or 1.
    pub(crate) fn bools_opt(&mut self, name: &'static str) -> Result<Option<Vec<bool>>, OpError> {
        Ok(self.ints_opt(name)?.map(|v| v.into_iter().map(|x| x != 0).collect()))
    }

    /// Constant floats of any shape, flattened.
    pub(crate) fn floats_opt(&mut self, name: &'static str) -> Result<Option<Vec<f32>>, OpError> {
        self.constant_opt(name)?.map(|constant| constant.to_f32()).transpose()
    }

    /// Integers that may be computed by the program (`shape` of `reshape`, `begin` of `slice_by_index`).
    pub(crate) fn ints_or_input_opt(&mut self, name: &'static str) -> Result<Option<Ints>, OpError> {
        let Some(id) = self.single(name)? else { return Ok(None) };
        if self.function.value(id).constant.is_some() {
            return Ok(self.ints_opt(name)?.map(Ints::Const));
        }
        if self.function.value(id).ty.tensor().dtype.is_float() {
            return Err(parameter(name, "expected integers"));
        }
        Ok(Some(Ints::Input(self.register(id).slot)))
    }

    /// As [`OpBuilder::ints_or_input_opt`], required.
    pub(crate) fn ints_or_input(&mut self, name: &'static str) -> Result<Ints, OpError> {
        self.ints_or_input_opt(name)?.ok_or(OpError::Missing(name))
    }

    /// A constant string.
    pub(crate) fn string_opt(&mut self, name: &'static str) -> Result<Option<String>, OpError> {
        let Some(constant) = self.constant_opt(name)? else { return Ok(None) };
        match constant.strings() {
            Some([text]) => Ok(Some(text.clone())),
            _ => Err(parameter(name, format!("expected one string, found {}", constant.dtype()))),
        }
    }

    /// A constant string with a default.
    pub(crate) fn string(&mut self, name: &'static str, default: &str) -> Result<String, OpError> {
        Ok(self.string_opt(name)?.unwrap_or_else(|| default.to_owned()))
    }

    /// A constant axis of a tensor of `rank`, made non-negative.
    pub(crate) fn axis(
        &mut self,
        name: &'static str,
        default: Option<i32>,
        rank: Option<usize>,
    ) -> Result<Axis, OpError> {
        let axis = self.int_opt(name)?.or(default).ok_or(OpError::Missing(name))?;
        Axis::new(name, axis, rank)
    }

    /// Ends reading: the values the kernel reads, in the order of their slots.
    ///
    /// # Errors
    /// If the op has a parameter or a block that was not asked for, or an output that it cannot make.
    pub(crate) fn finish(mut self) -> Result<Vec<ValueId>, OpError> {
        if self.bodies.next().is_some() {
            return Err(OpError::Invalid("it does not take so many blocks".into()));
        }
        let is_tensor = |id: &ValueId| matches!(self.function.value(*id).ty, Type::Tensor(_));
        if !self.lists && !self.op.outputs.iter().all(is_tensor) {
            return Err(OpError::Invalid("it makes tensors, and is declared to make something else".into()));
        }
        match self.op.arguments.iter().find(|(key, _)| !self.asked.contains(&**key)) {
            Some((key, _)) => Err(OpError::UnknownParameter {
                parameter: key.to_string(),
                opset: self.function.opset.name().into(),
            }),
            None => Ok(self.inputs),
        }
    }
}

/// An axis as written (maybe negative), checked against the rank where that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis(i32);

impl Axis {
    pub(crate) fn new(name: &'static str, axis: i32, rank: Option<usize>) -> Result<Self, OpError> {
        if let Some(rank) = rank {
            resolve_axis(axis, rank).map_err(|e| parameter(name, e.to_string()))?;
        }
        Ok(Self(axis))
    }

    /// The axis in a tensor of `rank`.
    pub(crate) fn of(self, rank: usize) -> Result<usize, crate::error::KernelError> {
        resolve_axis(self.0, rank)
    }
}

/// `axis` in `-rank..rank` as an index.
pub(crate) fn resolve_axis(axis: i32, rank: usize) -> Result<usize, crate::error::KernelError> {
    let signed = i64::from(axis);
    let rank_signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let resolved = if signed < 0 { signed + rank_signed } else { signed };
    usize::try_from(resolved)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| crate::error::KernelError::value(format!("axis {axis} of a tensor of rank {rank}")))
}

/// An error about one parameter.
pub(crate) fn parameter(name: &'static str, reason: impl Into<String>) -> OpError {
    OpError::Parameter { parameter: name, reason: reason.into() }
}
