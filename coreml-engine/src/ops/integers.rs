//! How a network's floats become integers where those index or count. No file can name the op: the lowering of layers does.
//!
//! The `cast` of a program makes 0 of a NaN, as NumPy does on most machines; as an index that would be the first row, a wrong answer.

use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::{Kernel, OpBuilder, OpDef};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::value::one;

/// Its name is none that the decoder of programs lets pass.
pub(crate) const INTEGERS: OpDef = OpDef::new("#integers", &[Ios13], integers);

/// A float as an integer (towards zero), or what is wrong with it.
pub(crate) fn integer(x: f32) -> Result<i32, String> {
    // 2^31 itself is a float and no i32; -2^31 is both.
    const END: f32 = 2_147_483_648.0;
    if (-END..END).contains(&x) {
        Ok(x as i32)
    } else {
        Err(format!("{x} where a 32-bit integer is expected"))
    }
}

fn integers(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 0..=8)?;
    Ok(Box::new(move |run| {
        let tensor = run.take_f32(x.slot)?;
        let mut data = run.buffer::<i32>(tensor.shape())?;
        for (at, &x) in tensor.iter().enumerate() {
            data.push(integer(x).map_err(|why| KernelError::value(format!("element {at} is {why}")))?);
        }
        let made = Tensor::from_data(tensor.shape(), data);
        run.recycle(tensor);
        Ok(one(made))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::types::DType;

    #[test]
    fn what_is_no_integer_of_32_bits_is_refused_with_its_place() {
        let x = [-1.9, 1.9, -2_147_483_648.0, 2_147_483_520.0];
        assert_eq!(Case::new("#integers").input("x", &[4], &x).i32().1, [-1, 1, i32::MIN, 2_147_483_520]);
        let wrong = [
            (f32::NAN, "NaN"),
            (f32::INFINITY, "inf"),
            (2_147_483_648.0, "2147483600"),
            (-3e9, "-3000000000"),
        ];
        for (wrong, name) in wrong {
            let error =
                Case::new("#integers").input("x", &[2], &[0.0, wrong]).run(&[DType::I32]).unwrap_err();
            assert_eq!(error, format!("element 1 is {name} where a 32-bit integer is expected"));
        }
    }
}
