//! `control_flow` ops of lists: sequences of tensors of one shape that grow when they are written past their end.
//!
//! A list is kept packed: one tensor with the elements along its first dimension, so that `list_gather` and `list_scatter`
//! are copies of rows and a list that a loop carries is written in place. Elements that nobody wrote are zeros, as in
//! coremltools' own lowering of lists (`backend/nn/op_mapping.py`). Where an element's shape is only known at run time, it is
//! that of the first element written; until then its unknown dimensions are 0.
//!
//! Semantics: coremltools, `iOS15/control_flow.py`.

use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use super::{Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::ir::Type;
use crate::types::{DType, TensorType, element_count};
use crate::value::{Value, ValueView, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("list_gather", &[Ios13], list_gather),
    OpDef::new("list_length", &[Ios13], list_length),
    OpDef::new("list_read", &[Ios13], list_read),
    OpDef::new("list_scatter", &[Ios13], list_scatter),
    OpDef::new("list_write", &[Ios13], list_write),
    OpDef::new("make_list", &[Ios13], make_list),
];

fn list_output<'a>(op: &mut OpBuilder<'a>) -> Result<&'a TensorType, OpError> {
    match op.output_kind(0)? {
        Type::List(ty) => Ok(ty),
        Type::Tensor(ty) | Type::State(ty) => {
            Err(OpError::Invalid(format!("it makes a list, and is declared to make {ty}")))
        }
    }
}

/// A list of `init_length` zeros. Whether its length is fixed matters to nobody: writes past the end make it longer.
fn make_list(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let length = op.input_opt("init_length")?;
    op.bool("dynamic_length", true)?;
    let dtype = op.string("dtype", "fp32")?;
    let ty = list_output(op)?;
    if DType::from_name(&dtype) != Some(ty.dtype) {
        return Err(parameter("dtype", format!("{dtype}, where the list is declared to hold {ty}")));
    }
    let dims = ty.shape.as_ref().ok_or_else(|| OpError::Unsupported("elements of unknown rank".into()))?;
    // The shape is the tuple of one constant a dimension: a number, or the name of what is known at run time. The declared
    // type says the same.
    if op.has("elem_shape") {
        let given = op.constants("elem_shape")?;
        let agree =
            |(given, dim): (&std::sync::Arc<crate::ir::Constant>, &Option<usize>)| match given.strings() {
                Some(_) => true,
                None => given.to_i32().is_ok_and(
                    |n| matches!((&n[..], dim), (&[n], &Some(dim)) if usize::try_from(n) == Ok(dim)),
                ),
            };
        if given.len() != dims.len() || !given.iter().zip(dims).all(agree) {
            return Err(parameter("elem_shape", format!("the list is declared to hold {ty}")));
        }
    }
    let element: Vec<usize> = dims.iter().map(|dim| dim.unwrap_or(0)).collect();
    let is_float = ty.dtype.is_float();
    Ok(Box::new(move |run| {
        let length = match &length {
            Some(input) => scalar(&run.i32(input.slot)?)?,
            None => 1,
        };
        let length =
            usize::try_from(length).map_err(|_| KernelError::value(format!("a list of length {length}")))?;
        let mut shape = vec![length];
        shape.extend(&element);
        Ok(if is_float { one(run.zeros::<f32>(&shape)?) } else { one(run.zeros::<i32>(&shape)?) })
    }))
}

fn list_length(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let list = op.list("ls")?;
    Ok(Box::new(move |run| {
        let (length, _) = split(run.any(list.slot)?.shape())?;
        let length =
            i32::try_from(length).map_err(|_| KernelError::value("the length does not fit 32 bits"))?;
        Ok(one(Tensor::from(length)))
    }))
}

fn list_read(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let list = op.list("ls")?;
    let index = op.input("index")?;
    Ok(Box::new(move |run| {
        let view = run.any(list.slot)?;
        let (length, element) = split(view.shape())?;
        let index = place(scalar(&run.i32(index.slot)?)?, length)?;
        let shape = element.to_vec();
        Ok(match &view {
            ValueView::F32(list) => one(rows(run, list, &[index], shape)?),
            ValueView::I32(list) => one(rows(run, list, &[index], shape)?),
        })
    }))
}

fn list_gather(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let list = op.list("ls")?;
    let indices = op.input("indices")?;
    Ok(Box::new(move |run| {
        let view = run.any(list.slot)?;
        let (length, element) = split(view.shape())?;
        let places = places(&run.i32(indices.slot)?)?;
        let places = places.into_iter().map(|i| place(i, length)).collect::<Result<Vec<_>, _>>()?;
        let mut shape = vec![places.len()];
        shape.extend(element);
        Ok(match &view {
            ValueView::F32(list) => one(rows(run, list, &places, shape)?),
            ValueView::I32(list) => one(rows(run, list, &places, shape)?),
        })
    }))
}

fn list_write(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let list = op.list("ls")?;
    let index = op.input("index")?;
    let value = op.input("value")?;
    check_elements(op, &list.ty, value.ty.dtype)?;
    Ok(Box::new(move |run| {
        let index = scalar(&run.i32(index.slot)?)?;
        write(run, list.slot, &[index], value.slot, false)
    }))
}

/// Writes each of the elements that lie along the first dimension of `value`; of several for one place the last stays.
fn list_scatter(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let list = op.list("ls")?;
    let indices = op.input("indices")?;
    let value = op.input("value")?;
    check_elements(op, &list.ty, value.ty.dtype)?;
    Ok(Box::new(move |run| {
        let indices = places(&run.i32(indices.slot)?)?;
        write(run, list.slot, &indices, value.slot, true)
    }))
}

fn check_elements(op: &mut OpBuilder<'_>, list: &TensorType, value: DType) -> Result<(), OpError> {
    let made = list_output(op)?;
    if value != list.dtype || made.dtype != list.dtype {
        return Err(OpError::Invalid(format!("{value} into a list of {list} that becomes one of {made}")));
    }
    Ok(())
}

/// Length and shape of the elements.
fn split(shape: &[usize]) -> Result<(usize, &[usize]), KernelError> {
    match shape {
        [length, element @ ..] => Ok((*length, element)),
        [] => Err(KernelError::shape("a list that is not packed")),
    }
}

fn scalar(view: &TensorView<'_, i32>) -> Result<i32, KernelError> {
    let mut elements = view.iter();
    match (elements.next(), elements.next()) {
        (Some(&x), None) => Ok(x),
        _ => Err(KernelError::shape(format!("one integer is needed, found shape {:?}", view.shape()))),
    }
}

fn places(view: &TensorView<'_, i32>) -> Result<Vec<i32>, KernelError> {
    if view.ndim() > 1 {
        return Err(KernelError::shape(format!("expected a list of places, found shape {:?}", view.shape())));
    }
    Ok(view.iter().copied().collect())
}

/// A place in a list, or an error.
fn place(index: i32, length: usize) -> Result<usize, KernelError> {
    usize::try_from(index)
        .ok()
        .filter(|&index| index < length)
        .ok_or_else(|| KernelError::value(format!("place {index} of a list of length {length}")))
}

/// The rows at `places`, as a tensor of `shape`.
fn rows<T: Copy>(
    run: &Run<'_, '_>,
    list: &TensorView<'_, T>,
    places: &[usize],
    shape: Vec<usize>,
) -> Result<Tensor<T>, KernelError> {
    let (_, element) = split(list.shape())?;
    let size = element_count(element).unwrap_or(0);
    let mut data = run.buffer::<T>(&shape)?;
    let dense = list.to_contiguous_in(run.pool());
    let elements = dense.data();
    for &place in places {
        data.extend_from_slice(elements.get(place * size..(place + 1) * size).unwrap_or_default());
    }
    if element_count(&shape) != Some(data.len()) {
        return Err(KernelError::shape("the list is shorter than it says"));
    }
    Ok(Tensor::from_data(&shape, data))
}

/// The list with the elements of `value` at `indices`; `packed` if they lie along a first dimension.
fn write(
    run: &mut Run<'_, '_>,
    list: usize,
    indices: &[i32],
    value: usize,
    packed: bool,
) -> Result<crate::value::Outputs, KernelError> {
    // Taking the list is last: what is read of it must not be gone.
    let shape = run.any(value)?.shape().to_vec();
    let element = match (packed, &shape[..]) {
        (false, element) => element,
        (true, [count, element @ ..]) if *count == indices.len() => element,
        (true, _) => {
            let reason = format!("{} places for values of shape {shape:?}", indices.len());
            return Err(KernelError::shape(reason));
        }
    };
    let (length, old) = {
        let view = run.any(list)?;
        let (length, old) = split(view.shape())?;
        // Of an element of unknown shape that nobody wrote, each unknown dimension is 0.
        let fits = old.len() == element.len()
            && (old == element || old.iter().zip(element).all(|(&old, &new)| old == 0 || old == new));
        if !fits {
            return Err(KernelError::shape(format!("an element {element:?} for a list of {old:?}")));
        }
        (length, old.to_vec())
    };
    let places = indices
        .iter()
        .map(|&i| usize::try_from(i).map_err(|_| KernelError::value(format!("place {i} of a list"))))
        .collect::<Result<Vec<_>, _>>()?;
    let longest = places.iter().map(|&place| place.saturating_add(1)).fold(length, usize::max);
    let mut new_shape = vec![longest];
    new_shape.extend(element);
    run.check_size(&new_shape)?;
    let same = old == element;
    let value = run.any(value)?.to_owned_in(run.pool());
    Ok(match (run.take(list)?, value) {
        (Value::F32(list), Value::F32(value)) => one(write_rows(list, same, new_shape, &places, value)?),
        (Value::I32(list), Value::I32(value)) => one(write_rows(list, same, new_shape, &places, value)?),
        (Value::F32(_), Value::I32(_)) | (Value::I32(_), Value::F32(_)) => {
            return Err(KernelError::value("floats and integers in one list"));
        }
    })
}

fn write_rows<T: Copy + Default>(
    list: Tensor<T>,
    same: bool,
    shape: Vec<usize>,
    places: &[usize],
    value: Tensor<T>,
) -> Result<Tensor<T>, KernelError> {
    let size = shape.get(1..).and_then(element_count).unwrap_or(0);
    let mut data = if same { list.into_data() } else { Vec::new() };
    data.resize(element_count(&shape).unwrap_or(0), T::default());
    let value = value.into_data();
    for (i, &place) in places.iter().enumerate() {
        let (row, new) = (place * size..(place + 1) * size, i * size..(i + 1) * size);
        match (data.get_mut(row), value.get(new)) {
            (Some(row), Some(new)) => row.copy_from_slice(new),
            _ => return Err(KernelError::shape("the list is shorter than it says")),
        }
    }
    Ok(Tensor::from_data(&shape, data))
}
