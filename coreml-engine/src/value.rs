//! Values while a program runs.

use rten::{BufferPool, ExtractBuffer};
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};
use smallvec::SmallVec;

/// A tensor while a program runs: every float type as `f32`, every integer and boolean type as `i32`.
///
/// Tensors may be strided (a transpose moves no element); [`TensorView::to_contiguous_in`] makes them dense.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// fp16, fp32, fp64.
    F32(Tensor<f32>),
    /// Integers and booleans (0 or 1).
    I32(Tensor<i32>),
}

/// A borrowed [`Value`].
#[derive(Clone, Debug)]
pub(crate) enum ValueView<'a> {
    /// fp16, fp32, fp64.
    F32(TensorView<'a, f32>),
    /// Integers and booleans (0 or 1).
    I32(TensorView<'a, i32>),
}

impl Value {
    /// The shape.
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::F32(t) => t.shape(),
            Self::I32(t) => t.shape(),
        }
    }

    /// Borrows.
    pub(crate) fn view(&self) -> ValueView<'_> {
        match self {
            Self::F32(t) => ValueView::F32(t.view()),
            Self::I32(t) => ValueView::I32(t.view()),
        }
    }

    /// Whether it holds floats.
    pub(crate) fn is_float(&self) -> bool {
        matches!(self, Self::F32(_))
    }

    /// Gives the memory back to the pool.
    pub(crate) fn recycle(self, pool: &BufferPool) {
        let buffer = match self {
            Self::F32(t) => t.extract_buffer(),
            Self::I32(t) => t.extract_buffer(),
        };
        if let Some(buffer) = buffer {
            pool.add(buffer);
        }
    }
}

impl<'a> ValueView<'a> {
    /// The shape.
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::F32(t) => t.shape(),
            Self::I32(t) => t.shape(),
        }
    }

    /// Whether it holds floats.
    pub(crate) fn is_float(&self) -> bool {
        matches!(self, Self::F32(_))
    }

    /// A dense copy in memory of the pool.
    pub(crate) fn to_owned_in(&self, pool: &BufferPool) -> Value {
        match self {
            Self::F32(t) => Value::F32(t.to_tensor_in(pool)),
            Self::I32(t) => Value::I32(t.to_tensor_in(pool)),
        }
    }
}

impl From<Tensor<f32>> for Value {
    fn from(tensor: Tensor<f32>) -> Self {
        Self::F32(tensor)
    }
}

impl From<Tensor<i32>> for Value {
    fn from(tensor: Tensor<i32>) -> Self {
        Self::I32(tensor)
    }
}

/// What one kernel run makes: most make one value.
pub(crate) type Outputs = SmallVec<[Value; 1]>;

/// One output.
pub(crate) fn one(value: impl Into<Value>) -> Outputs {
    let mut outputs = Outputs::new();
    outputs.push(value.into());
    outputs
}
