//! `elementwise_unary` ops: one tensor in, one of the same shape out.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/elementwise_unary.py` and `iOS17/elementwise_unary.py`.

use rten_tensor::Tensor;

use super::{Kernel, OpBuilder, OpDef, Run};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::value::{Outputs, Value, one};

pub(crate) const OPS: &[OpDef] =
    &[OpDef::new("abs", &[Ios13], abs), OpDef::new("exp", &[Ios13], |op| float_unary(op, f32::exp))];

/// Applies `f` to every element, in place where this is the value's last use.
pub(crate) fn map_in_place<T: Copy>(tensor: &mut Tensor<T>, f: impl Fn(T) -> T) {
    match tensor.data_mut() {
        Some(data) => data.iter_mut().for_each(|x| *x = f(*x)),
        None => tensor.iter_mut().for_each(|x| *x = f(*x)),
    }
}

/// An op on floats that is `f` on each element.
pub(crate) fn float_unary(
    op: &mut OpBuilder<'_>,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 0..=5)?;
    Ok(Box::new(move |run| unary(run, x.slot, &f)))
}

fn unary(run: &mut Run<'_, '_>, slot: usize, f: &impl Fn(f32) -> f32) -> Result<Outputs, KernelError> {
    let mut tensor = run.take_f32(slot)?;
    map_in_place(&mut tensor, f);
    Ok(one(tensor))
}

fn abs(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    Ok(Box::new(move |run| {
        Ok(one(match run.take(x.slot)? {
            Value::F32(mut t) => {
                map_in_place(&mut t, f32::abs);
                Value::F32(t)
            }
            Value::I32(mut t) => {
                map_in_place(&mut t, i32::wrapping_abs);
                Value::I32(t)
            }
        }))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;

    #[test]
    fn abs_keeps_the_type_of_its_input() {
        assert_eq!(Case::new("abs").input("x", &[2], &[-1.5, 2.0]).f32(), (vec![2], vec![1.5, 2.0]));
        assert_eq!(Case::new("abs").input_i32("x", &[2], &[-1, 2]).i32(), (vec![2], vec![1, 2]));
    }

    #[test]
    fn a_parameter_that_the_op_does_not_have_is_refused() {
        let error = Case::new("abs").input("x", &[1], &[1.0]).float("alpha", 1.0).error();
        assert_eq!(error, "unknown parameter `alpha`");
    }
}
