//! Runs one op as a program of its own, for the tests of the op files.

use rten::BufferPool;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use crate::Limits;
use crate::decode::DecodeError;
use crate::ir::{Argument, Constant, ConstantData, Function, Op, Opset, Type, ValueId};
use crate::plan::Plan;
use crate::types::{DType, TensorType};
use crate::value::Value;

/// One op under test.
pub(crate) struct Case {
    function: Function,
    kind: &'static str,
    arguments: Vec<(&'static str, Argument)>,
    inputs: Vec<(String, ValueId, Value)>,
}

impl Case {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self::in_opset(kind, Opset::Ios17)
    }

    pub(crate) fn in_opset(kind: &'static str, opset: Opset) -> Self {
        let function = Function { opset, ..Function::default() };
        Self { function, kind, arguments: Vec::new(), inputs: Vec::new() }
    }

    fn add_input(&mut self, name: &'static str, dtype: DType, value: Value) -> ValueId {
        let ty = Type::Tensor(TensorType::fixed(dtype, value.shape()));
        let id = self.function.new_value(name, ty);
        self.function.body.inputs.push(id);
        self.inputs.push((format!("{name}{}", self.inputs.len()), id, value));
        id
    }

    /// A tensor that is only known at run time.
    pub(crate) fn input(mut self, name: &'static str, shape: &[usize], data: &[f32]) -> Self {
        let value = Value::F32(Tensor::from_data(shape, data.to_vec()));
        let id = self.add_input(name, DType::F32, value);
        self.arguments.push((name, Argument::One(id)));
        self
    }

    /// Integers that are only known at run time.
    pub(crate) fn input_i32(mut self, name: &'static str, shape: &[usize], data: &[i32]) -> Self {
        let value = Value::I32(Tensor::from_data(shape, data.to_vec()));
        let id = self.add_input(name, DType::I32, value);
        self.arguments.push((name, Argument::One(id)));
        self
    }

    /// Booleans that are only known at run time.
    pub(crate) fn input_bool(mut self, name: &'static str, shape: &[usize], data: &[i32]) -> Self {
        let value = Value::I32(Tensor::from_data(shape, data.to_vec()));
        let id = self.add_input(name, DType::Bool, value);
        self.arguments.push((name, Argument::One(id)));
        self
    }

    /// Several tensors under one name.
    pub(crate) fn inputs(mut self, name: &'static str, tensors: &[(&[usize], &[f32])]) -> Self {
        let ids = tensors
            .iter()
            .map(|(shape, data)| {
                self.add_input(name, DType::F32, Value::F32(Tensor::from_data(shape, data.to_vec())))
            })
            .collect();
        self.arguments.push((name, Argument::Many(ids)));
        self
    }

    /// Several tensors of integers under one name.
    pub(crate) fn inputs_i32(mut self, name: &'static str, tensors: &[(&[usize], &[i32])]) -> Self {
        let ids = tensors
            .iter()
            .map(|(shape, data)| {
                self.add_input(name, DType::I32, Value::I32(Tensor::from_data(shape, data.to_vec())))
            })
            .collect();
        self.arguments.push((name, Argument::Many(ids)));
        self
    }

    pub(crate) fn constant(mut self, name: &'static str, constant: Constant) -> Self {
        let id = self.function.new_constant(name, constant);
        self.arguments.push((name, Argument::One(id)));
        self
    }

    /// Several constants under one name.
    pub(crate) fn constants(mut self, name: &'static str, constants: &[Constant]) -> Self {
        let add = |constant: &Constant| self.function.new_constant(name, constant.clone());
        let ids = constants.iter().map(add).collect();
        self.arguments.push((name, Argument::Many(ids)));
        self
    }

    pub(crate) fn floats(self, name: &'static str, shape: &[usize], data: &[f32]) -> Self {
        self.constant(name, Constant::f32(shape, data.to_vec()).unwrap())
    }

    pub(crate) fn ints(self, name: &'static str, data: &[i32]) -> Self {
        self.constant(name, Constant::i32(&[data.len()], data.to_vec()).unwrap())
    }

    pub(crate) fn bools(self, name: &'static str, data: &[bool]) -> Self {
        let ints = data.iter().map(|&x| i32::from(x)).collect();
        self.constant(name, Constant::new(DType::Bool, vec![data.len()], ConstantData::I32(ints)).unwrap())
    }

    pub(crate) fn float(self, name: &'static str, x: f32) -> Self {
        self.constant(name, Constant::scalar(x))
    }

    pub(crate) fn int(self, name: &'static str, x: i32) -> Self {
        self.constant(name, Constant::int(x))
    }

    pub(crate) fn bool(self, name: &'static str, x: bool) -> Self {
        self.constant(name, Constant::bool(x))
    }

    pub(crate) fn string(self, name: &'static str, x: &str) -> Self {
        self.constant(name, Constant::string(x))
    }

    /// Builds and runs; the outputs' shapes are left to the op.
    pub(crate) fn run(mut self, outputs: &[DType]) -> Result<Vec<Value>, String> {
        let outputs: Vec<_> = outputs
            .iter()
            .enumerate()
            .map(|(i, &dtype)| {
                let ty = Type::Tensor(TensorType { dtype, shape: None });
                (format!("out{i}"), self.function.new_value(format!("out{i}"), ty))
            })
            .collect();
        self.function.body.ops.push(Op {
            kind: self.kind.into(),
            arguments: self.arguments.into_iter().map(|(name, a)| (name.into(), a)).collect(),
            outputs: outputs.iter().map(|(_, id)| *id).collect(),
            blocks: vec![],
        });
        let ports = self.inputs.iter().map(|(name, id, _)| (name.clone(), *id)).collect();
        let count = outputs.len();
        let plan = Plan::compile(self.function, ports, outputs, &Limits::default()).map_err(|e| match e {
            DecodeError::Op { source, .. } => source.to_string(),
            other => format!("{other:?}"),
        })?;
        let pool = BufferPool::new();
        let values: Vec<Value> = self.inputs.into_iter().map(|(_, _, value)| value).collect();
        plan.run(values.iter().map(Value::view), &mut [], &pool, |value| {
            (0..count).map(|i| value(plan.outputs[i].place).unwrap().to_owned_in(&pool)).collect()
        })
        .map_err(|e| e.source.to_string())
    }

    /// Runs an op of one float output: its shape and elements.
    pub(crate) fn f32(self) -> (Vec<usize>, Vec<f32>) {
        match self.run(&[DType::F32]).unwrap().remove(0) {
            Value::F32(t) => (t.shape().to_vec(), t.to_vec()),
            Value::I32(_) => panic!("integers"),
        }
    }

    /// Runs an op of one integer or boolean output: its shape and elements.
    pub(crate) fn i32(self) -> (Vec<usize>, Vec<i32>) {
        match self.run(&[DType::I32]).unwrap().remove(0) {
            Value::I32(t) => (t.shape().to_vec(), t.to_vec()),
            Value::F32(_) => panic!("floats"),
        }
    }

    /// The error of an op that must be refused, at load or at run time.
    pub(crate) fn error(self) -> String {
        self.run(&[DType::F32]).map(|_| ()).unwrap_err()
    }
}

/// Asserts that two lists of floats agree within `tolerance` (absolute and relative).
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{found:?} against {expected:?}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let same = f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= tolerance * (1.0 + e.abs());
        assert!(same, "element {i}: {f} against {e}\n{found:?}\n{expected:?}");
    }
}
