//! `quantization` ops: floats to 8-bit integers and back, by a scale and a zero point for all, or for each place along an axis.
//!
//! Semantics: coremltools, `iOS17/quantization_ops.py` and the formulas of `optimize/_utils.py`: rounds half to even, then saturates.

use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::{Axis, Kernel, OpBuilder, OpDef, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios17;
use crate::types::DType;
use crate::value::one;

pub(crate) const OPS: &[OpDef] =
    &[OpDef::new("dequantize", &[Ios17], dequantize), OpDef::new("quantize", &[Ios17], quantize)];

/// A scale and a zero point for all elements, or for each place along an axis.
struct Affine {
    scale: Vec<f32>,
    zero: Vec<f32>,
    axis: Option<Axis>,
}

impl Affine {
    fn new(op: &mut OpBuilder<'_>, rank: Option<usize>) -> Result<Self, OpError> {
        let scale = op.constant("scale")?;
        let zero = op.constant_opt("zero_point")?;
        let axis = op.int_opt("axis")?;
        let axis = match (scale.shape(), axis) {
            ([], _) => None,
            ([_], Some(axis)) => Some(Axis::new("axis", axis, rank)?),
            ([_], None) => return Err(OpError::Missing("axis")),
            (found, _) => {
                return Err(parameter("scale", format!("expected a scalar or a vector, found {found:?}")));
            }
        };
        if let Some(zero) = &zero
            && zero.shape() != scale.shape()
        {
            return Err(parameter(
                "zero_point",
                format!("expected the shape of `scale`, {:?}", scale.shape()),
            ));
        }
        let scale = scale.to_f32()?;
        let zero = zero.map_or_else(|| Ok(vec![0.0; scale.len()]), |zero| zero.to_f32())?;
        Ok(Self { scale, zero, axis })
    }

    /// Applies `f(element, scale, zero point)` in row-major order.
    fn map<T, U>(
        &self,
        shape: &[usize],
        elements: impl Iterator<Item = T>,
        f: impl Fn(T, f32, f32) -> U,
    ) -> Result<Vec<U>, KernelError> {
        let (places, inner) = match self.axis {
            None => (1, 1),
            Some(axis) => {
                let axis = axis.of(shape.len())?;
                (shape[axis], shape[axis + 1..].iter().product::<usize>().max(1))
            }
        };
        if places != self.scale.len() && !shape.contains(&0) {
            return Err(KernelError::shape(format!(
                "{} scales for a tensor of shape {shape:?}",
                self.scale.len()
            )));
        }
        let place = |i: usize| i / inner % places.max(1);
        Ok(elements.enumerate().map(|(i, x)| f(x, self.scale[place(i)], self.zero[place(i)])).collect())
    }
}

fn quantize(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let input = op.float_input("input", 0..=5)?;
    let affine = Affine::new(op, input.rank())?;
    let dtype = op.string_opt("output_dtype")?.ok_or(OpError::Missing("output_dtype"))?;
    let (least, most) = match dtype.as_str() {
        "int8" => (-128.0, 127.0),
        "uint8" => (0.0, 255.0),
        other => return Err(parameter("output_dtype", format!("expected int8 or uint8, found {other}"))),
    };
    if affine.scale.contains(&0.0) {
        return Err(parameter("scale", "a scale of 0"));
    }
    Ok(Box::new(move |run| {
        let view = run.f32(input.slot)?;
        let shape = view.shape().to_vec();
        let out = affine.map(&shape, view.iter(), |x, scale, zero| {
            ((x / scale).round_ties_even() + zero).clamp(least, most) as i32
        })?;
        Ok(one(Tensor::from_data(&shape, out)))
    }))
}

fn dequantize(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let input = op.input("input")?;
    if !matches!(input.ty.dtype, DType::I8 | DType::U8) {
        return Err(parameter("input", format!("expected int8 or uint8, found {}", input.ty)));
    }
    let affine = Affine::new(op, input.rank())?;
    Ok(Box::new(move |run| {
        let view = run.i32(input.slot)?;
        let shape = view.shape().to_vec();
        let out = affine.map(&shape, view.iter(), |&x, scale, zero| scale * (x as f32 - zero))?;
        Ok(one(Tensor::from_data(&shape, out)))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ir::{Constant, ConstantData, Opset};
    use crate::ops::testing::{Case, assert_close};
    use crate::types::DType;

    fn case(kind: &'static str) -> Case {
        Case::in_opset(kind, Opset::Ios17)
    }

    fn int8(shape: &[usize], data: &[i8]) -> Constant {
        let bytes: Vec<u8> = data.iter().map(|x| x.cast_unsigned()).collect();
        Constant::new(DType::I8, shape.to_vec(), ConstantData::Raw(bytes.into())).unwrap()
    }

    #[test]
    fn quantize_rounds_half_to_even_and_saturates() {
        let x = [0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, f32::NAN];
        let found = case("quantize")
            .input("input", &[8], &x)
            .float("scale", 1.0)
            .constant("zero_point", int8(&[], &[1]))
            .string("output_dtype", "int8")
            .i32();
        assert_eq!(found.1, [1, 3, 3, 1, -1, 127, -128, 0]);
    }

    #[test]
    fn each_place_along_an_axis_has_its_own_scale() {
        let quantized = case("quantize")
            .input("input", &[2, 2], &[1.0, 1.0, -2.0, 4.0])
            .floats("scale", &[2], &[0.5, 2.0])
            .int("axis", 1)
            .string("output_dtype", "int8")
            .i32();
        assert_eq!(quantized, (vec![2, 2], vec![2, 0, -4, 2]));
        let found = case("dequantize")
            .constant("input", int8(&[2, 2], &[2, 0, -4, 2]))
            .floats("scale", &[2], &[0.5, 2.0])
            .constant("zero_point", int8(&[2], &[1, -1]))
            .int("axis", -1)
            .f32();
        assert_close(&found.1, &[0.5, 2.0, -2.5, 6.0], 1e-6);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let x = |case: Case| case.input("input", &[2, 2], &[0.0; 4]).string("output_dtype", "int8");
        assert_eq!(x(case("quantize")).float("scale", 0.0).error(), "parameter `scale`: a scale of 0");
        let error = x(case("quantize")).floats("scale", &[3], &[1.0; 3]).int("axis", 0).error();
        assert_eq!(error, "3 scales for a tensor of shape [2, 2]");
        let error = case("dequantize").input_i32("input", &[1], &[0]).float("scale", 1.0).error();
        assert_eq!(error, "parameter `input`: expected int8 or uint8, found int32[1]");
    }
}
