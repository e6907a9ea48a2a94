//! What a kernel sees while it runs: its inputs, the pool to take memory from, and the limits.

use rten::BufferPool;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use crate::Limits;
use crate::error::KernelError;
use crate::ops::{BlockInput, Ints};
use crate::plan::{Context, Used};
use crate::types::element_count;
use crate::value::{Outputs, Value, ValueView};

/// Where a value is kept during a prediction.
#[derive(Debug, Default)]
pub(crate) enum Slot<'a> {
    /// Not yet made, or dropped after its last use.
    #[default]
    Empty,
    /// Made by a kernel.
    Owned(Value),
    /// The caller's input.
    Borrowed(ValueView<'a>),
}

impl Slot<'_> {
    /// The value, if there is one.
    pub(crate) fn view(&self) -> Option<ValueView<'_>> {
        match self {
            Self::Owned(value) => Some(value.view()),
            Self::Borrowed(view) => Some(view.clone()),
            Self::Empty => None,
        }
    }
}

/// Where a kernel finds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A slot of the prediction (or, for a state, its index).
    Slot(usize),
    /// A constant of the plan.
    Constant(usize),
}

/// One value that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) source: Source,
    /// Nobody reads it afterwards, so the kernel may take it.
    pub(crate) last: bool,
}

/// One run of one kernel.
pub(crate) struct Run<'r, 'v> {
    pub(crate) slots: &'r mut [Slot<'v>],
    pub(crate) constants: &'r [Value],
    pub(crate) reads: &'r [Read],
    pub(crate) states: &'r mut [Value],
    pub(crate) pool: &'r BufferPool,
    pub(crate) limits: &'r Limits,
    pub(crate) used: &'r mut Used,
}

impl<'r> Run<'r, '_> {
    fn value(&self, slot: usize) -> Result<ValueView<'_>, KernelError> {
        let unmade = || KernelError::value("a value is read before it is made");
        match self.reads.get(slot).ok_or_else(unmade)?.source {
            Source::Constant(i) => self.constants.get(i).map(Value::view).ok_or_else(unmade),
            Source::Slot(i) => self.slots.get(i).and_then(Slot::view).ok_or_else(unmade),
        }
    }

    /// Input `slot`, of either kind.
    pub(crate) fn any(&self, slot: usize) -> Result<ValueView<'_>, KernelError> {
        self.value(slot)
    }

    /// Input `slot`, which must hold floats.
    pub(crate) fn f32(&self, slot: usize) -> Result<TensorView<'_, f32>, KernelError> {
        match self.value(slot)? {
            ValueView::F32(view) => Ok(view),
            ValueView::I32(_) => Err(wrong_type("floats", "integers")),
        }
    }

    /// Input `slot`, which must hold integers or booleans.
    pub(crate) fn i32(&self, slot: usize) -> Result<TensorView<'_, i32>, KernelError> {
        match self.value(slot)? {
            ValueView::I32(view) => Ok(view),
            ValueView::F32(_) => Err(wrong_type("integers", "floats")),
        }
    }

    /// Input `slot` as an owned value: the value itself where this is its last use, else a dense copy.
    pub(crate) fn take(&mut self, slot: usize) -> Result<Value, KernelError> {
        if let Some(&Read { source: Source::Slot(index), last: true }) = self.reads.get(slot)
            && let Some(place @ Slot::Owned(_)) = self.slots.get_mut(index)
            && let Slot::Owned(value) = std::mem::take(place)
        {
            return Ok(value);
        }
        Ok(self.value(slot)?.to_owned_in(self.pool))
    }

    /// Whether [`Run::take`] would hand over the value itself.
    pub(crate) fn takes(&self, slot: usize) -> bool {
        match self.reads.get(slot) {
            Some(&Read { source: Source::Slot(index), last: true }) => {
                matches!(self.slots.get(index), Some(Slot::Owned(_)))
            }
            Some(_) | None => false,
        }
    }

    /// Runs a block of the op on `inputs`. Its outputs are not counted as alive.
    pub(crate) fn block<'b>(
        &mut self,
        block: &BlockInput,
        inputs: impl IntoIterator<Item = Slot<'b>>,
    ) -> Result<Outputs, KernelError> {
        let (slots, constants) = (&*self.slots, self.constants);
        let captured = self.reads.get(block.captured.clone()).unwrap_or_default().iter();
        let captured = captured
            .map(|read| match read.source {
                Source::Constant(i) => constants.get(i).map(Value::view),
                Source::Slot(i) => slots.get(i).and_then(Slot::view),
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| KernelError::value("a value is read before it is made"))?;
        let mut context = Context {
            constants,
            states: &mut *self.states,
            pool: self.pool,
            limits: self.limits,
            used: &mut *self.used,
        };
        block.body.run(inputs, &captured, &mut context)
    }

    /// As [`Run::take`], for floats.
    pub(crate) fn take_f32(&mut self, slot: usize) -> Result<Tensor<f32>, KernelError> {
        match self.take(slot)? {
            Value::F32(tensor) => Ok(tensor),
            Value::I32(_) => Err(wrong_type("floats", "integers")),
        }
    }

    /// As [`Run::take`], for integers.
    pub(crate) fn take_i32(&mut self, slot: usize) -> Result<Tensor<i32>, KernelError> {
        match self.take(slot)? {
            Value::I32(tensor) => Ok(tensor),
            Value::F32(_) => Err(wrong_type("integers", "floats")),
        }
    }

    /// A list of integers that was known at load or is computed.
    pub(crate) fn ints(&self, ints: &Ints) -> Result<Vec<i32>, KernelError> {
        match ints {
            Ints::Const(values) => Ok(values.clone()),
            Ints::Input(slot) => {
                let view = self.i32(*slot)?;
                if view.ndim() > 1 {
                    return Err(KernelError::shape(format!(
                        "expected a list of integers, found shape {:?}",
                        view.shape()
                    )));
                }
                Ok(view.iter().copied().collect())
            }
        }
    }

    /// Memory for tensors; give it to the `_in` functions of `rten`.
    pub(crate) fn pool(&self) -> &'r BufferPool {
        self.pool
    }

    /// An error if a tensor of `shape` would be over the limit, else its number of elements. Ask before allocating anything
    /// whose size the program decides.
    pub(crate) fn check_size(&self, shape: &[usize]) -> Result<usize, KernelError> {
        // Strides are products of dimensions, so those must fit even where a dimension of 0 makes the tensor empty.
        let strides_fit = shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim.max(1))).is_some();
        match element_count(shape) {
            Some(count) if strides_fit && count <= self.limits.tensor_elements => Ok(count),
            _ => Err(KernelError::TooLarge { shape: shape.to_vec(), limit: self.limits.tensor_elements }),
        }
    }

    /// A zeroed tensor of `shape`, if the limits allow it.
    pub(crate) fn zeros<T: Clone + Default>(&self, shape: &[usize]) -> Result<Tensor<T>, KernelError> {
        self.filled(shape, T::default())
    }

    /// A tensor of `shape` that holds `value` everywhere, if the limits allow it.
    pub(crate) fn filled<T: Clone>(&self, shape: &[usize], value: T) -> Result<Tensor<T>, KernelError> {
        let count = self.check_size(shape)?;
        let mut data = self.pool.alloc::<T>(count);
        data.resize(count, value);
        Ok(Tensor::from_data(shape, data))
    }

    /// An empty vector with room for a tensor of `shape`, if the limits allow it. Fill it and call [`Tensor::from_data`].
    pub(crate) fn buffer<T>(&self, shape: &[usize]) -> Result<Vec<T>, KernelError> {
        Ok(self.pool.alloc(self.check_size(shape)?))
    }

    /// Gives memory back early.
    pub(crate) fn recycle(&self, value: impl Into<Value>) {
        value.into().recycle(self.pool);
    }

    /// The state at input `slot`.
    pub(crate) fn state(&mut self, slot: usize) -> Result<&mut Value, KernelError> {
        match self.reads.get(slot) {
            Some(Read { source: Source::Slot(index), .. }) => self.states.get_mut(*index),
            _ => None,
        }
        .ok_or_else(|| KernelError::value("the prediction has no state"))
    }
}

fn wrong_type(expected: &str, found: &str) -> KernelError {
    KernelError::Type { expected: expected.into(), found: found.into() }
}
