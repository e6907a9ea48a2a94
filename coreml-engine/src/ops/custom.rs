//! The op that a custom layer becomes. No file can name it: a function's custom layers come from its user.

use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::{Kernel, OpBuilder, OpDef};
use crate::custom::CustomTensor;
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::types::element_count;
use crate::value::{Outputs, Value};

/// Its name is none that an ML program can have a use for: there, the function has no custom layers, and it is refused.
pub(crate) const CUSTOM: OpDef = OpDef::new("#custom", &[Ios13], custom);

fn custom(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let custom = op.custom("layer")?;
    let inputs = if op.has("inputs") { op.inputs("inputs")? } else { Vec::new() };
    let count = op.output_count();
    Ok(Box::new(move |run| {
        let refused = |source| KernelError::Custom { class: custom.class.to_string(), source };
        let pool = run.pool();
        let dense = inputs.iter().map(|input| run.f32(input.slot).map(|view| view.to_contiguous_in(pool)));
        let dense = dense.collect::<Result<Vec<_>, _>>()?;
        let known: Vec<Vec<_>> =
            dense.iter().map(|x| x.shape().iter().copied().map(Some).collect()).collect();
        let shapes = custom.layer.output_shapes(&known).map_err(refused)?;
        let shapes: Option<Vec<Vec<usize>>> =
            shapes.into_iter().map(|shape| shape.into_iter().collect()).collect();
        let shapes = shapes.filter(|shapes| shapes.len() == count).ok_or_else(|| {
            KernelError::shape(format!("`{}` does not say its {count} shapes", custom.class))
        })?;
        let mut buffers = Vec::with_capacity(count);
        for shape in &shapes {
            let mut buffer = run.buffer::<f32>(shape)?;
            buffer.resize(element_count(shape).unwrap_or(0), 0.0);
            buffers.push(buffer);
        }
        let tensors: Vec<_> =
            dense.iter().map(|x| CustomTensor { shape: x.shape(), data: x.data() }).collect();
        let mut outputs: Vec<&mut [f32]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        custom.layer.evaluate(&tensors, &mut outputs).map_err(refused)?;
        let values =
            shapes.iter().zip(buffers).map(|(shape, data)| Value::F32(Tensor::from_data(shape, data)));
        Ok(values.collect::<Outputs>())
    }))
}
