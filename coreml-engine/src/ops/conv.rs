//! `conv` ops: convolution and its transpose, over one, two or three spatial axes. A constant weight is packed once, at load.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/conv.py` and `iOS17/conv.py`.

use std::sync::Arc;

use rten::ExtractBuffer;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};
use smallvec::SmallVec;

use super::{Input, Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Constant;
use crate::ir::Opset::{Ios13, Ios17};
use crate::kernels::conv::{Columns, scatter_columns};
use crate::kernels::gemm::{PackedRows, panel_width};
use crate::kernels::planes::{Planes, Weighted};
use crate::kernels::window::{Axis, Padding, PerShape, Step, positive};
use crate::types::{DType, element_count};
use crate::value::one;

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("conv", &[Ios13, Ios17], conv),
    OpDef::new("conv_quantized", &[Ios13], conv_quantized),
    OpDef::new("conv_transpose", &[Ios13, Ios17], conv_transpose),
];

/// More output channels per input channel than this are better made by a matrix product.
const DEPTHWISE_MULTIPLIER: usize = 4;

/// A tensor of floats that is known at load, or read at run time.
enum Operand {
    Constant(Arc<Constant>),
    Input(Input),
}

impl Operand {
    fn read(op: &mut OpBuilder<'_>, name: &'static str) -> Result<Option<Self>, OpError> {
        // A constant is not registered as an input: its packed form is all that is kept.
        let operand = match op.constant_opt(name) {
            Ok(constant) => constant.map(Self::Constant),
            Err(OpError::NotConstant(_)) => op.input_opt(name)?.map(Self::Input),
            Err(error) => return Err(error),
        };
        if let Some(operand) = &operand
            && !operand.is_float()
        {
            return Err(parameter(name, "expected floats"));
        }
        Ok(operand)
    }

    fn is_float(&self) -> bool {
        match self {
            Self::Constant(constant) => constant.dtype().is_float(),
            Self::Input(input) => input.ty.dtype.is_float(),
        }
    }

    fn shape(&self, name: &'static str) -> Result<Vec<usize>, OpError> {
        match self {
            Self::Constant(constant) => Ok(constant.shape().to_vec()),
            Self::Input(input) => input
                .ty
                .fixed_shape()
                .ok_or_else(|| parameter(name, format!("expected a known shape, found {}", input.ty))),
        }
    }
}

/// A bias, one number per output channel.
enum Bias {
    Constant(Vec<f32>),
    Input(usize),
}

impl Bias {
    fn read(op: &mut OpBuilder<'_>, channels: usize) -> Result<Option<Self>, OpError> {
        let Some(operand) = Operand::read(op, "bias")? else { return Ok(None) };
        let shape = operand.shape("bias")?;
        if shape != [channels] {
            return Err(parameter("bias", format!("expected shape [{channels}], found {shape:?}")));
        }
        Ok(Some(match operand {
            Operand::Constant(constant) => Self::Constant(constant.to_f32()?),
            Operand::Input(input) => Self::Input(input.slot),
        }))
    }

    /// The numbers, where they are dense already.
    fn values<'a>(
        bias: Option<&'a Self>,
        run: &'a Run<'_, '_>,
        channels: usize,
    ) -> Result<Option<std::borrow::Cow<'a, [f32]>>, KernelError> {
        let Some(bias) = bias else { return Ok(None) };
        let values = match bias {
            Self::Constant(values) => values.as_slice().into(),
            Self::Input(slot) => {
                let view = run.f32(*slot)?;
                match view.data() {
                    Some(data) => std::borrow::Cow::Borrowed(data),
                    None => view.to_vec().into(),
                }
            }
        };
        if values.len() != channels {
            return Err(KernelError::shape(format!(
                "the bias has {} elements, not {channels}",
                values.len()
            )));
        }
        Ok(Some(values))
    }
}

/// What the parameters say, apart from the weight's contents.
struct Parameters {
    /// Input channels.
    inputs: usize,
    /// Output channels.
    outputs: usize,
    groups: usize,
    /// Depth, height, width: absent axes are [`Step::ONE`].
    steps: [Step; 3],
    padding: Padding,
    rank: usize,
}

impl Parameters {
    /// `weight` is `[outputs, inputs / groups, ..]`, transposed `[inputs, outputs / groups, ..]`.
    fn read(op: &mut OpBuilder<'_>, weight: &[usize], transposed: bool) -> Result<Self, OpError> {
        let &[first, second, ref kernel @ ..] = weight else {
            return Err(parameter("weight", format!("expected rank 3 to 5, found shape {weight:?}")));
        };
        let rank = kernel.len();
        if !(1..=3).contains(&rank) || kernel.contains(&0) {
            return Err(parameter("weight", format!("expected 1 to 3 spatial axes, found shape {weight:?}")));
        }
        let groups = op.int("groups", 1)?;
        let groups = usize::try_from(groups)
            .ok()
            .filter(|&groups| groups > 0 && first % groups == 0 && groups <= first.max(1))
            .ok_or_else(|| parameter("groups", format!("{groups} groups do not divide {first} channels")))?;
        let other = second
            .checked_mul(groups)
            .ok_or_else(|| parameter("weight", format!("shape {weight:?} overflows")))?;
        let (inputs, outputs) = if transposed { (first, other) } else { (other, first) };
        // Sizes that are computed from these fit a usize, even where a dimension of 0 makes the weight itself empty.
        let largest: Vec<usize> = [inputs, outputs].iter().chain(kernel).map(|&size| size.max(1)).collect();
        if element_count(&largest).is_none() {
            return Err(parameter("weight", format!("shape {weight:?} overflows")));
        }
        if element_count(weight).is_none_or(|count| count > op.limits().tensor_elements) {
            return Err(parameter("weight", format!("shape {weight:?} is over its limit of elements")));
        }
        let strides = positive(op, "strides", rank)?.unwrap_or_else(|| vec![1; rank]);
        let dilations = positive(op, "dilations", rank)?.unwrap_or_else(|| vec![1; rank]);
        let padding = Padding::read(op, "valid", rank)?;
        let mut steps = [Step::ONE; 3];
        for (i, step) in steps.iter_mut().skip(3 - rank).enumerate() {
            *step = Step { kernel: kernel[i], stride: strides[i], dilation: dilations[i] };
        }
        Ok(Self { inputs, outputs, groups, steps, padding, rank })
    }

    fn taps(&self) -> usize {
        self.steps.iter().map(|step| step.kernel).product()
    }

    /// Elements of the inner product of one output.
    fn depth(&self) -> usize {
        self.inputs / self.groups * self.taps()
    }

    /// Checks what is known of x.
    fn check_input(&self, x: &Input) -> Result<(), OpError> {
        let fits = x.ty.shape.as_ref().is_none_or(|shape| {
            shape.len() == self.rank + 2 && shape[1].is_none_or(|channels| channels == self.inputs)
        });
        if fits {
            return Ok(());
        }
        Err(parameter(
            "x",
            format!("expected {} channels and {} spatial axes, found {}", self.inputs, self.rank, x.ty),
        ))
    }

    /// Batch and spatial axes of an input.
    fn input_axes(&self, shape: &[usize]) -> Result<(usize, [usize; 3]), KernelError> {
        match shape {
            &[batch, channels, ref spatial @ ..] if channels == self.inputs && spatial.len() == self.rank => {
                let mut axes = [1; 3];
                axes[3 - self.rank..].copy_from_slice(spatial);
                Ok((batch, axes))
            }
            _ => Err(KernelError::shape(format!(
                "x of shape {shape:?} does not have {} channels and {} spatial axes",
                self.inputs, self.rank
            ))),
        }
    }

    /// The windows over an input.
    fn windows(&self, input: [usize; 3]) -> Result<[Axis; 3], KernelError> {
        let mut axes = [Axis::ONE; 3];
        for i in 0..self.rank {
            let place = 3 - self.rank + i;
            axes[place] = Axis::new(&self.padding, i, input[place], self.steps[place], false)?;
        }
        Ok(axes)
    }

    fn output_shape(&self, batch: usize, spatial: [usize; 3]) -> SmallVec<[usize; 5]> {
        let mut shape = SmallVec::from_slice(&[batch, self.outputs]);
        shape.extend_from_slice(&spatial[3 - self.rank..]);
        shape
    }
}

/// The weight as the kernel reads it.
enum Weight {
    /// As it is: `[channels, taps]`.
    Depthwise(Vec<f32>),
    /// One matrix per group.
    Product(Vec<PackedRows>),
}

/// An op that is ready to run but for a weight that is computed.
struct Convolution {
    parameters: Parameters,
    transposed: bool,
    places: PerShape<Places>,
}

/// What depends on the shape of the input.
struct Places {
    axes: [Axis; 3],
    planes: Option<Planes>,
}

impl Convolution {
    fn is_depthwise(&self) -> bool {
        let Parameters { inputs, outputs, groups, .. } = self.parameters;
        !self.transposed && groups == inputs && outputs <= inputs.saturating_mul(DEPTHWISE_MULTIPLIER)
    }

    /// Packs a weight; `memory` gives room for so many elements.
    fn pack(&self, weight: &[f32], mut memory: impl FnMut(usize) -> Vec<f32>) -> Weight {
        let Parameters { inputs, outputs, groups, .. } = self.parameters;
        if self.is_depthwise() {
            let mut copy = memory(weight.len());
            copy.extend_from_slice(weight);
            return Weight::Depthwise(copy);
        }
        let taps = self.parameters.taps();
        // Transposed: the rows are what one input element adds to the output, per output channel and tap.
        let (rows, depth, row_step, step) = if self.transposed {
            let rows = outputs / groups * taps;
            (rows, inputs / groups, 1, rows)
        } else {
            let depth = self.parameters.depth();
            (outputs / groups, depth, depth, 1)
        };
        Weight::Product(
            (0..groups)
                .map(|group| {
                    let source = &weight[group * rows * depth..][..rows * depth];
                    let memory = memory(PackedRows::len(rows, depth));
                    PackedRows::new(memory, source, rows, depth, row_step, step)
                })
                .collect(),
        )
    }

    fn recycle(weight: Weight, run: &Run<'_, '_>) {
        match weight {
            Weight::Depthwise(memory) => run.pool().add(memory),
            Weight::Product(groups) => groups.into_iter().for_each(|rows| run.pool().add(rows.into_memory())),
        }
    }

    fn run(
        &self,
        run: &Run<'_, '_>,
        x: TensorView<'_, f32>,
        weight: &Weight,
        bias: Option<&[f32]>,
    ) -> Result<Tensor<f32>, KernelError> {
        let parameters = &self.parameters;
        let (batch, input) = parameters.input_axes(x.shape())?;
        let places = self.places.of(&x.shape()[2..], || {
            let axes = parameters.windows(input)?;
            let planes = if self.is_depthwise() {
                Some(Planes::banded(run, axes)?)
            } else if axes.iter().all(Axis::is_identity) {
                None
            } else {
                let planes = Planes::whole(run, axes)?;
                run.check_size(&[parameters.inputs / parameters.groups, planes.padded_len()])?;
                Some(planes)
            };
            if !self.is_depthwise() {
                run.check_size(&[parameters.depth(), panel_width()])?;
            }
            Ok(Places { axes, planes })
        })?;
        let axes = &places.axes;
        let mut out: Tensor<f32> =
            run.zeros(&parameters.output_shape(batch, axes.map(|axis| axis.output)))?;
        let image: usize = axes.iter().map(|axis| axis.input).product();
        let windows: usize = axes.iter().map(|axis| axis.output).product();
        let dense = x.to_contiguous_in(run.pool());
        if let Some(data) = out.data_mut().filter(|data| !data.is_empty()) {
            match (weight, &places.planes) {
                (Weight::Depthwise(weight), Some(planes)) => {
                    let multiplier = parameters.outputs / parameters.inputs.max(1);
                    let (channels, taps) = (parameters.outputs, parameters.taps());
                    planes.fold(dense.data(), data, multiplier, 0.0, |i| {
                        let channel = i % channels;
                        let start = bias.map_or(0.0, |bias| bias[channel]);
                        (start, Weighted(&weight[channel * taps..][..taps]))
                    });
                }
                (Weight::Product(groups), _) => {
                    let channels = parameters.inputs / parameters.groups;
                    let rows = parameters.outputs / parameters.groups;
                    for (i, out) in data.chunks_exact_mut(rows * windows).enumerate() {
                        let group = i % parameters.groups;
                        let image = &dense.data()[i * channels * image..][..channels * image];
                        let bias = bias.map(|bias| &bias[group * rows..][..rows]);
                        let planes = places.planes.as_ref();
                        Columns { planes, channels, count: windows, image }.product(
                            &groups[group],
                            bias,
                            out,
                        );
                    }
                }
                (Weight::Depthwise(_), None) => {
                    return Err(KernelError::value("a depthwise weight without planes"));
                }
            }
        }
        if let Some(buffer) = dense.into_inner().extract_buffer() {
            run.pool().add(buffer);
        }
        Ok(out)
    }
}

/// Convolution.
fn conv(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let weight = Operand::read(op, "weight")?.ok_or(OpError::Missing("weight"))?;
    let shape = weight.shape("weight")?;
    let parameters = Parameters::read(op, &shape, false)?;
    parameters.check_input(&x)?;
    let bias = Bias::read(op, parameters.outputs)?;
    convolved(&x, weight, shape, parameters, bias)
}

fn convolved(
    x: &Input,
    weight: Operand,
    shape: Vec<usize>,
    parameters: Parameters,
    bias: Option<Bias>,
) -> Result<Kernel, OpError> {
    let convolution = Convolution { parameters, transposed: false, places: PerShape::new() };
    let slot = x.slot;
    with_weight(weight, shape, convolution, move |run, convolution, weight| {
        let bias = Bias::values(bias.as_ref(), run, convolution.parameters.outputs)?;
        convolution.run(run, run.f32(slot)?, weight, bias.as_deref())
    })
}

/// A kernel with its weight packed at load, or at every run if the weight is computed.
fn with_weight(
    weight: Operand,
    shape: Vec<usize>,
    convolution: Convolution,
    kernel: impl Fn(&Run<'_, '_>, &Convolution, &Weight) -> Result<Tensor<f32>, KernelError>
    + Send
    + Sync
    + 'static,
) -> Result<Kernel, OpError> {
    match weight {
        Operand::Constant(constant) => {
            let packed = convolution.pack(&constant.to_f32()?, Vec::with_capacity);
            Ok(Box::new(move |run| kernel(run, &convolution, &packed).map(one)))
        }
        Operand::Input(Input { slot, .. }) => Ok(Box::new(move |run| {
            let view = run.f32(slot)?;
            if view.shape() != &shape[..] {
                return Err(KernelError::shape(format!(
                    "the weight has shape {:?}, not {shape:?}",
                    view.shape()
                )));
            }
            let dense = view.to_contiguous_in(run.pool());
            let packed = convolution.pack(dense.data(), |count| run.pool().alloc(count));
            if let Some(buffer) = dense.into_inner().extract_buffer() {
                run.pool().add(buffer);
            }
            let out = kernel(run, &convolution, &packed);
            Convolution::recycle(packed, run);
            out.map(one)
        })),
    }
}

/// Convolution by `weight * quant_scale + quant_bias`. The op has a byte for each element of the weight whatever `nbits` says, and takes
/// `bias` as it is: coremltools' `backend/nn/op_mapping.py` packs the bits only when it writes a layer of it.
fn conv_quantized(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let quantized = op.constant("weight")?;
    let shape = quantized.shape().to_vec();
    let parameters = Parameters::read(op, &shape, false)?;
    parameters.check_input(&x)?;
    match op.string_opt("quantization_type")?.ok_or(OpError::Missing("quantization_type"))?.as_str() {
        "linear" => {}
        "lut" => {
            return Err(OpError::Unsupported("a table of weights, for which the op has no parameter".into()));
        }
        other => {
            let reason = format!("expected `linear` or `lut`, found `{other}`");
            return Err(parameter("quantization_type", reason));
        }
    }
    if quantized.dtype() != DType::U8 {
        return Err(parameter("weight", format!("expected uint8, found {}", quantized.dtype())));
    }
    let bits = op.int("nbits", 8)?;
    if !(1..=8).contains(&bits) {
        return Err(parameter("nbits", format!("expected 1 to 8, found {bits}")));
    }
    let quantized = quantized.to_i32()?;
    if let Some(wide) = quantized.iter().find(|&x| x >> bits != 0) {
        return Err(parameter("weight", format!("expected numbers of {bits} bits, found {wide}")));
    }
    let outputs = parameters.outputs;
    let [scale, offset] = ["quant_scale", "quant_bias"].map(|name| per_channel(op, name, outputs));
    let (scale, offset) = (scale?, offset?);
    let row = quantized.len().checked_div(outputs).unwrap_or(0).max(1);
    let of_row = |(row, (scale, offset)): (&[i32], (&f32, &f32))| {
        row.iter().map(|&x| x as f32 * scale + offset).collect::<Vec<_>>()
    };
    let weight = quantized.chunks(row).zip(scale.iter().zip(&offset)).flat_map(of_row).collect();
    let weight = Operand::Constant(Arc::new(Constant::f32(&shape, weight).map_err(OpError::Invalid)?));
    let bias = op.floats_opt("bias")?;
    if bias.as_ref().is_some_and(|bias| bias.len() != outputs) {
        return Err(parameter("bias", format!("expected {outputs} elements, one per output channel")));
    }
    convolved(&x, weight, shape, parameters, bias.map(Bias::Constant))
}

/// A number for each output channel, or one for all.
fn per_channel(op: &mut OpBuilder<'_>, name: &'static str, channels: usize) -> Result<Vec<f32>, OpError> {
    match &op.floats_opt(name)?.ok_or(OpError::Missing(name))?[..] {
        &[one] => Ok(vec![one; channels]),
        each if each.len() == channels => Ok(each.to_vec()),
        other => Err(parameter(name, format!("expected one element or {channels}, found {}", other.len()))),
    }
}

/// Convolution transposed: each input element adds its window to the output.
fn conv_transpose(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let weight = Operand::read(op, "weight")?.ok_or(OpError::Missing("weight"))?;
    let shape = weight.shape("weight")?;
    let parameters = Parameters::read(op, &shape, true)?;
    parameters.check_input(&x)?;
    if parameters.padding == Padding::SameLower {
        return Err(parameter("pad_type", "expected `valid`, `same` or `custom`, found `same_lower`"));
    }
    let bias = Bias::read(op, parameters.outputs)?;
    let wanted = match op.ints_opt("output_shape")? {
        None => None,
        Some(wanted) => Some(spatial_output(&wanted, &parameters, &x)?),
    };
    let convolution = Convolution { parameters, transposed: true, places: PerShape::new() };
    let slot = x.slot;
    with_weight(weight, shape, convolution, move |run, convolution, weight| {
        let bias = Bias::values(bias.as_ref(), run, convolution.parameters.outputs)?;
        convolution.run_transposed(run, run.f32(slot)?, weight, bias.as_deref(), wanted)
    })
}

/// The spatial part of `output_shape`, after a check of the rest.
fn spatial_output(wanted: &[i32], parameters: &Parameters, x: &Input) -> Result<[usize; 3], OpError> {
    let wrong = || {
        let Parameters { outputs, rank, .. } = parameters;
        parameter(
            "output_shape",
            format!("expected [batch, {outputs}] and {rank} sizes for x {}, found {wanted:?}", x.ty),
        )
    };
    let sizes: Vec<usize> =
        wanted.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>().map_err(|_| wrong())?;
    match &sizes[..] {
        &[batch, channels, ref spatial @ ..]
            if channels == parameters.outputs && spatial.len() == parameters.rank =>
        {
            let known = x.ty.shape.as_ref().and_then(|shape| *shape.first()?);
            if known.is_some_and(|known| known != batch) {
                return Err(wrong());
            }
            let mut axes = [1; 3];
            axes[3 - parameters.rank..].copy_from_slice(spatial);
            Ok(axes)
        }
        _ => Err(wrong()),
    }
}

impl Parameters {
    /// The axes of the convolution of which this is the transpose: its windows are our input elements, its input our output.
    fn transposed_windows(
        &self,
        input: [usize; 3],
        wanted: Option<[usize; 3]>,
    ) -> Result<[Axis; 3], KernelError> {
        let mut axes = [Axis::ONE; 3];
        for i in 0..self.rank {
            let place = 3 - self.rank + i;
            let (windows, step) = (input[place], self.steps[place]);
            let wanted = wanted.map(|wanted| wanted[place]);
            axes[place] = self.transposed_axis(i, windows, step, wanted).ok_or_else(|| {
                KernelError::shape(format!(
                    "{windows} elements with {step:?} and {:?} do not come from a convolution of {}",
                    self.padding,
                    wanted.map_or_else(|| "any size".into(), |size| size.to_string())
                ))
            })?;
        }
        Ok(axes)
    }

    fn transposed_axis(
        &self,
        index: usize,
        windows: usize,
        step: Step,
        wanted: Option<usize>,
    ) -> Option<Axis> {
        let Step { kernel, stride, dilation } = step;
        let last = windows.checked_sub(1)?;
        let full = last.checked_mul(stride)?.checked_add(step.extent()?)?;
        let (before, size) = match &self.padding {
            Padding::Valid => (0, wanted.unwrap_or(full)),
            Padding::Same => {
                let size = wanted.map_or_else(|| windows.checked_mul(stride), Some)?;
                (full.saturating_sub(size) / 2, size)
            }
            Padding::SameLower => return None,
            Padding::Custom(amounts) => {
                let &(before, after) = amounts.get(index)?;
                let size = wanted.map_or_else(|| full.checked_sub(before)?.checked_sub(after), Some)?;
                (before, size)
            }
        };
        // The convolution of an output of that size must have as many windows as x has elements. Without a wanted size it has by
        // definition, but for padding that eats more than the output.
        let windows_of_size = match &self.padding {
            Padding::Same => size.div_ceil(stride),
            padding => {
                let total = match padding {
                    Padding::Custom(amounts) => amounts.get(index).map(|&(before, after)| before + after)?,
                    _ => 0,
                };
                size.checked_add(total)?.checked_sub(step.extent()?)? / stride + 1
            }
        };
        (size > 0 && windows_of_size == windows).then_some(Axis {
            input: size,
            output: windows,
            kernel,
            stride,
            dilation,
            before,
            after: 0,
        })
    }
}

impl Convolution {
    fn run_transposed(
        &self,
        run: &Run<'_, '_>,
        x: TensorView<'_, f32>,
        weight: &Weight,
        bias: Option<&[f32]>,
        wanted: Option<[usize; 3]>,
    ) -> Result<Tensor<f32>, KernelError> {
        let parameters = &self.parameters;
        let (batch, input) = parameters.input_axes(x.shape())?;
        let axes = parameters.transposed_windows(input, wanted)?;
        let mut out: Tensor<f32> = run.zeros(&parameters.output_shape(batch, axes.map(|axis| axis.input)))?;
        let Weight::Product(groups) = weight else {
            return Err(KernelError::value("a transposed convolution with a depthwise weight"));
        };
        let (channels, rows) =
            (parameters.inputs / parameters.groups, parameters.outputs / parameters.groups);
        let windows = element_count(&input).unwrap_or(0);
        let plane: usize = axes.iter().map(|axis| axis.input).product();
        let Some(data) = out.data_mut().filter(|data| !data.is_empty()) else { return Ok(out) };
        if let Some(bias) = bias {
            for (plane, &bias) in data.chunks_exact_mut(plane).zip(bias.iter().cycle()) {
                plane.fill(bias);
            }
        }
        // Without input channels there is nothing to add.
        if channels == 0 {
            return Ok(out);
        }
        let dense = x.to_contiguous_in(run.pool());
        let mut columns: Tensor<f32> = run.zeros(&[rows, parameters.taps(), windows])?;
        for (i, out) in data.chunks_exact_mut(rows * plane).enumerate() {
            let image = &dense.data()[i * channels * windows..][..channels * windows];
            let Some(columns) = columns.data_mut() else { continue };
            Columns { planes: None, channels, count: windows, image }.product(
                &groups[i % parameters.groups],
                None,
                columns,
            );
            scatter_columns(&axes, columns, out);
        }
        run.recycle(columns);
        if let Some(buffer) = dense.into_inner().extract_buffer() {
            run.pool().add(buffer);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::ConstantData;
    use crate::ops::testing::{Case, assert_close};
    use proptest::prelude::*;
    use rten::BufferPool;

    /// A convolution to check, with every parameter.
    #[derive(Clone, Debug)]
    struct Problem {
        batch: usize,
        groups: usize,
        /// Per group.
        inputs: usize,
        /// Per group.
        outputs: usize,
        /// Size, kernel, stride, dilation, before, after, for each axis.
        axes: Vec<[usize; 6]>,
        bias: bool,
        seed: u32,
    }

    impl Problem {
        fn shape(&self, first: usize, second: usize, field: usize) -> Vec<usize> {
            [first, second].into_iter().chain(self.axes.iter().map(|axis| axis[field])).collect()
        }

        fn numbers(&self, count: usize, salt: u32) -> Vec<f32> {
            let number = |i: usize| {
                let bits = (i as u32).wrapping_add(salt).wrapping_mul(2_654_435_761).wrapping_add(self.seed);
                (bits.wrapping_mul(bits | 1) >> 20) as f32 / 2048.0 - 1.0
            };
            (0..count).map(number).collect()
        }

        fn case(
            &self,
            kind: &'static str,
            x: (&[usize], &[f32]),
            weight: (&[usize], &[f32]),
            constant: bool,
        ) -> Case {
            let field = |i: usize| self.axes.iter().map(|axis| axis[i] as i32).collect::<Vec<_>>();
            let pad: Vec<i32> = self.axes.iter().flat_map(|axis| [axis[4] as i32, axis[5] as i32]).collect();
            let case = Case::new(kind).input("x", x.0, x.1);
            let case = if constant {
                case.floats("weight", weight.0, weight.1)
            } else {
                case.input("weight", weight.0, weight.1)
            };
            let case = case
                .ints("strides", &field(2))
                .ints("dilations", &field(3))
                .string("pad_type", "custom")
                .ints("pad", &pad)
                .int("groups", self.groups as i32);
            if self.bias { case.floats("bias", &[self.groups * self.outputs], &self.biases()) } else { case }
        }

        fn biases(&self) -> Vec<f32> {
            let count = self.groups * self.outputs;
            if self.bias { self.numbers(count, 99) } else { vec![0.0; count] }
        }

        /// Calls `f` with (window, tap, element) for every element of every window, of all axes.
        fn each_product(&self, windows: &[usize], sizes: &[usize], mut f: impl FnMut(usize, usize, usize)) {
            let kernel: Vec<usize> = self.axes.iter().map(|axis| axis[1]).collect();
            for window in 0..windows.iter().product() {
                for tap in 0..kernel.iter().product() {
                    let (mut w, mut t, mut element, mut scale) = (window, tap, 0_usize, 1);
                    let mut inside = true;
                    for i in (0..sizes.len()).rev() {
                        let [_, _, stride, dilation, before, _] = self.axes[i];
                        let at = (w % windows[i]) * stride + (t % kernel[i]) * dilation;
                        inside &= (before..before + sizes[i]).contains(&at);
                        element = element.wrapping_add(at.wrapping_sub(before).wrapping_mul(scale));
                        scale *= sizes[i];
                        w /= windows[i];
                        t /= kernel[i];
                    }
                    if inside {
                        f(window, tap, element);
                    }
                }
            }
        }

        fn windows(&self) -> Option<Vec<usize>> {
            let windows = |axis: &[usize; 6]| {
                let &[size, kernel, stride, dilation, before, after] = axis;
                Some((size + before + after).checked_sub((kernel - 1) * dilation + 1)? / stride + 1)
            };
            self.axes.iter().map(windows).collect()
        }
    }

    fn problem() -> impl Strategy<Value = Problem> {
        let axis = (1..14_usize, 1..5_usize, 1..4_usize, 1..4_usize, 0..4_usize, 0..4_usize).prop_map(
            |(size, kernel, stride, dilation, before, after)| [size, kernel, stride, dilation, before, after],
        );
        let channels = prop_oneof![
            (Just(1_usize), 1..20_usize, 1..20_usize),
            (2..7_usize, 1..4_usize, 1..4_usize),
            (2..20_usize, Just(1_usize), 1..3_usize),
        ];
        (1..3_usize, channels, prop::collection::vec(axis, 1..4), any::<bool>(), any::<u32>()).prop_map(
            |(batch, (groups, inputs, outputs), axes, bias, seed)| Problem {
                batch,
                groups,
                inputs,
                outputs,
                axes,
                bias,
                seed,
            },
        )
    }

    /// The definition, in double precision.
    fn direct(p: &Problem, windows: &[usize], x: &[f32], weight: &[f32]) -> Vec<f32> {
        let sizes: Vec<usize> = p.axes.iter().map(|axis| axis[0]).collect();
        let (plane, count): (usize, usize) = (sizes.iter().product(), windows.iter().product());
        let taps: usize = p.axes.iter().map(|axis| axis[1]).product();
        let outputs = p.groups * p.outputs;
        let mut out = vec![0.0_f64; p.batch * outputs * count];
        for (i, bias) in out.chunks_mut(count).zip(p.biases().iter().cycle()) {
            i.fill(f64::from(*bias));
        }
        p.each_product(windows, &sizes, |window, tap, element| {
            for n in 0..p.batch {
                for o in 0..outputs {
                    for c in 0..p.inputs {
                        let channel = o / p.outputs * p.inputs + c;
                        let a = x[(n * p.groups * p.inputs + channel) * plane + element];
                        let b = weight[(o * p.inputs + c) * taps + tap];
                        out[(n * outputs + o) * count + window] += f64::from(a) * f64::from(b);
                    }
                }
            }
        });
        out.into_iter().map(|x| x as f32).collect()
    }

    fn direct_transposed(p: &Problem, sizes: &[usize], x: &[f32], weight: &[f32]) -> Vec<f32> {
        let windows: Vec<usize> = p.axes.iter().map(|axis| axis[0]).collect();
        let (plane, count): (usize, usize) = (sizes.iter().product(), windows.iter().product());
        let taps: usize = p.axes.iter().map(|axis| axis[1]).product();
        let (inputs, outputs) = (p.groups * p.inputs, p.groups * p.outputs);
        let mut out = vec![0.0_f64; p.batch * outputs * plane];
        for (i, bias) in out.chunks_mut(plane).zip(p.biases().iter().cycle()) {
            i.fill(f64::from(*bias));
        }
        p.each_product(&windows, sizes, |window, tap, element| {
            for n in 0..p.batch {
                for c in 0..inputs {
                    for o in 0..p.outputs {
                        let channel = c / p.inputs * p.outputs + o;
                        let a = x[(n * inputs + c) * count + window];
                        let b = weight[(c * p.outputs + o) * taps + tap];
                        out[(n * outputs + channel) * plane + element] += f64::from(a) * f64::from(b);
                    }
                }
            }
        });
        out.into_iter().map(|x| x as f32).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn conv_is_its_definition(p in problem(), constant: bool) {
            let Some(windows) = p.windows() else { return Ok(()) };
            let x_shape = p.shape(p.batch, p.groups * p.inputs, 0);
            let w_shape = p.shape(p.groups * p.outputs, p.inputs, 1);
            let x = p.numbers(x_shape.iter().product(), 1);
            let w = p.numbers(w_shape.iter().product(), 2);
            let (shape, found) = p.case("conv", (&x_shape, &x), (&w_shape, &w), constant).f32();
            let expected_shape: Vec<usize> =
                [p.batch, p.groups * p.outputs].into_iter().chain(windows.iter().copied()).collect();
            prop_assert_eq!(shape, expected_shape);
            assert_close(&found, &direct(&p, &windows, &x, &w), 1e-4);
        }

        #[test]
        fn conv_transpose_is_its_definition(p in problem(), constant: bool) {
            let size = |axis: &[usize; 6]| {
                let &[size, kernel, stride, dilation, before, after] = axis;
                let full = (size - 1) * stride + (kernel - 1) * dilation + 1;
                full.checked_sub(before + after).filter(|&size| size > 0)
            };
            let Some(sizes) = p.axes.iter().map(size).collect::<Option<Vec<_>>>() else { return Ok(()) };
            let x_shape = p.shape(p.batch, p.groups * p.inputs, 0);
            let w_shape = p.shape(p.groups * p.inputs, p.outputs, 1);
            let x = p.numbers(x_shape.iter().product(), 1);
            let w = p.numbers(w_shape.iter().product(), 2);
            let (shape, found) = p.case("conv_transpose", (&x_shape, &x), (&w_shape, &w), constant).f32();
            prop_assert_eq!(&shape[2..], &sizes[..]);
            assert_close(&found, &direct_transposed(&p, &sizes, &x, &w), 1e-4);
        }

        #[test]
        fn conv_agrees_with_the_library(p in problem()) {
            let mut p = p;
            p.axes.truncate(2);
            let Some(windows) = p.windows() else { return Ok(()) };
            prop_assume!(p.axes.len() == 2);
            let x_shape = p.shape(p.batch, p.groups * p.inputs, 0);
            let w_shape = p.shape(p.groups * p.outputs, p.inputs, 1);
            let x = Tensor::from_data(&x_shape, p.numbers(x_shape.iter().product(), 1));
            let w = Tensor::from_data(&w_shape, p.numbers(w_shape.iter().product(), 2));
            let found = direct(&p, &windows, x.data().unwrap(), w.data().unwrap());
            let bias = Tensor::from_data(&[p.groups * p.outputs], p.biases());
            let [[_, _, sy, dy, top, bottom], [_, _, sx, dx, left, right]] = p.axes[..] else { unreachable!() };
            let library = rten::ops::conv::<f32, f32, f32>(
                &BufferPool::new(),
                x.view(),
                w.view(),
                Some(bias.nd_view()),
                [top, left, bottom, right].into(),
                p.groups,
                &[sy, sx],
                &[dy, dx],
            )
            .unwrap();
            assert_close(&library.to_vec(), &found, 1e-4);
        }
    }

    #[test]
    fn large_layers_are_right_on_one_thread_and_on_two() {
        let layers = [
            (1, 40, 70, [[29, 3, 1, 1, 1, 1], [31, 3, 1, 1, 1, 1]]),
            (1, 3, 64, [[61, 7, 2, 1, 3, 3], [63, 7, 2, 1, 3, 3]]),
            (1, 520, 40, [[7, 1, 1, 1, 0, 0], [7, 1, 1, 1, 0, 0]]),
            (6, 1, 1, [[130, 3, 1, 1, 1, 1], [120, 5, 1, 2, 4, 4]]),
            (5, 1, 2, [[251, 3, 2, 1, 1, 1], [140, 3, 2, 1, 0, 1]]),
            (48, 1, 1, [[57, 3, 2, 1, 0, 1], [56, 3, 2, 1, 0, 1]]),
        ];
        for (groups, inputs, outputs, axes) in layers {
            let axes = axes.to_vec();
            let p = Problem { batch: 1, groups, inputs, outputs, axes, bias: true, seed: 3 };
            let x_shape = p.shape(1, groups * inputs, 0);
            let w_shape = p.shape(groups * outputs, inputs, 1);
            let x = p.numbers(x_shape.iter().product(), 1);
            let w = p.numbers(w_shape.iter().product(), 2);
            let expected = direct(&p, &p.windows().unwrap(), &x, &w);
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let case = p.case("conv", (&x_shape, &x), (&w_shape, &w), true);
                let (_, found) = pool.install(|| case.f32());
                assert_close(&found, &expected, 1e-4);
            }
        }
    }

    /// 5x5 input, 2x2 kernel of ones and 10s.
    fn small(pad_type: &str, stride: i32) -> (Vec<usize>, Vec<f32>) {
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        Case::new("conv")
            .input("x", &[1, 1, 4, 4], &x)
            .floats("weight", &[1, 1, 2, 2], &[1.0, 10.0, 100.0, 1000.0])
            .string("pad_type", pad_type)
            .ints("strides", &[stride, stride])
            .f32()
    }

    #[test]
    fn pad_types_place_the_odd_element() {
        assert_eq!(small("valid", 2), (vec![1, 1, 2, 2], vec![5410.0, 7632.0, 14298.0, 16520.0]));
        // The first row of windows: columns (0, 1), (1, 2), (2, 3), (3, pad).
        assert_eq!(small("same", 1).1[..4], [5410.0, 6521.0, 7632.0, 703.0]);
        // (pad, 0) of row -1 and 0.
        assert_eq!(small("same_lower", 1).1[..4], [0.0, 1000.0, 2100.0, 3200.0]);
    }

    #[test]
    fn pad_is_only_heeded_by_custom() {
        let case = |pad_type: &str| {
            Case::new("conv")
                .input("x", &[1, 1, 3], &[1.0, 2.0, 3.0])
                .floats("weight", &[1, 1, 1], &[2.0])
                .string("pad_type", pad_type)
                .ints("pad", &[1, 2])
                .f32()
        };
        assert_eq!(case("valid"), (vec![1, 1, 3], vec![2.0, 4.0, 6.0]));
        assert_eq!(case("custom"), (vec![1, 1, 6], vec![0.0, 2.0, 4.0, 6.0, 0.0, 0.0]));
    }

    #[test]
    fn empty_tensors_are_no_error() {
        let case = |shape: &[usize], weight: &[usize]| {
            let count = weight.iter().product();
            Case::new("conv")
                .input("x", shape, &vec![1.0; shape.iter().product()])
                .floats("weight", weight, &vec![1.0; count])
                .floats("bias", &weight[..1], &vec![3.0; weight[0]])
                .string("pad_type", "custom")
                .ints("pad", &[1, 1])
        };
        assert_eq!(case(&[0, 2, 5], &[4, 2, 3]).f32(), (vec![0, 4, 5], vec![]));
        assert_eq!(case(&[1, 0, 2], &[2, 0, 1]).f32(), (vec![1, 2, 4], vec![3.0; 8]));
        assert_eq!(case(&[1, 1, 0], &[1, 1, 1]).f32(), (vec![1, 1, 2], vec![3.0; 2]));
        assert_eq!(case(&[1, 2, 5], &[0, 2, 3]).f32(), (vec![1, 0, 5], vec![]));
    }

    #[test]
    fn conv_refuses_what_it_cannot_do() {
        let case = || Case::new("conv").input("x", &[1, 4, 5, 5], &[0.0; 100]);
        let weight =
            |case: Case, shape: &[usize]| case.floats("weight", shape, &vec![0.0; shape.iter().product()]);
        assert_eq!(
            weight(case(), &[2, 3, 1, 1]).error(),
            "parameter `x`: expected 3 channels and 2 spatial axes, found fp32[1, 4, 5, 5]"
        );
        assert_eq!(
            weight(case(), &[3, 2, 1, 1]).int("groups", 2).error(),
            "parameter `groups`: 2 groups do not divide 3 channels"
        );
        assert_eq!(
            weight(case(), &[2, 4, 1, 1]).string("pad_type", "full").error(),
            "parameter `pad_type`: expected `valid`, `same`, `same_lower` or `custom`, found `full`"
        );
        assert_eq!(
            weight(case(), &[2, 4, 1, 1]).ints("strides", &[1, 0]).error(),
            "parameter `strides`: expected 1 or more, found [1, 0]"
        );
        assert_eq!(
            weight(case(), &[2, 4, 1, 1]).string("pad_type", "custom").ints("pad", &[1, -1, 0, 0]).error(),
            "parameter `pad`: expected no negative amount, found [1, -1, 0, 0]"
        );
        assert_eq!(
            weight(case(), &[2, 4, 1, 1]).floats("bias", &[3], &[0.0; 3]).error(),
            "parameter `bias`: expected shape [2], found [3]"
        );
        assert!(weight(case(), &[2, 4, 6, 1]).error().starts_with("no window of 6 elements"));
        let error =
            weight(case(), &[2, 4, 1, 1]).string("pad_type", "custom").ints("pad", &[i32::MAX; 4]).error();
        assert!(error.contains("over its limit of"), "{error}");
    }

    /// Two output channels, of two weights each, of an input of one channel and three places.
    fn quantized(weight: [i32; 4], bits: i32) -> Case {
        let weight = Constant::new(DType::U8, vec![2, 1, 2], ConstantData::I32(weight.to_vec())).unwrap();
        let case = Case::new("conv_quantized").input("x", &[1, 1, 3], &[1.0, 10.0, 100.0]);
        case.constant("weight", weight).int("nbits", bits)
    }

    #[test]
    fn conv_quantized_scales_and_shifts_its_weight() {
        let linear = |case: Case| case.string("quantization_type", "linear");
        let one = linear(quantized([0, 3, 1, 2], 2)).floats("quant_scale", &[1], &[0.5]);
        // Weights [-1, 0.5] and [-0.5, 0].
        let one = one.floats("quant_bias", &[1], &[-1.0]);
        assert_eq!(one.f32(), (vec![1, 2, 2], vec![4.0, 40.0, -0.5, -5.0]));
        let bias = Constant::new(DType::U8, vec![2], ConstantData::I32(vec![1, 200])).unwrap();
        let each = linear(quantized([0, 255, 1, 2], 8)).floats("quant_scale", &[2], &[1.0, -2.0]);
        // Weights [10, 265] and [-2, -4].
        let each = each.floats("quant_bias", &[2], &[10.0, 0.0]).constant("bias", bias);
        assert_eq!(each.f32().1, [2661.0, 26601.0, 158.0, -220.0]);
    }

    #[test]
    fn conv_quantized_refuses_what_it_cannot_know() {
        let case = |kind: &str, bits: i32, scale: &[f32]| {
            let case = quantized([0, 3, 1, 2], bits).string("quantization_type", kind);
            case.floats("quant_scale", &[scale.len()], scale).floats("quant_bias", &[1], &[0.0])
        };
        let errors = [
            (case("lut", 2, &[1.0]), "not supported: a table of weights, for which the op has no parameter"),
            (
                case("log", 2, &[1.0]),
                "parameter `quantization_type`: expected `linear` or `lut`, found `log`",
            ),
            (case("linear", 1, &[1.0]), "parameter `weight`: expected numbers of 1 bits, found 3"),
            (case("linear", 9, &[1.0]), "parameter `nbits`: expected 1 to 8, found 9"),
            (case("linear", 2, &[1.0; 3]), "parameter `quant_scale`: expected one element or 2, found 3"),
            (
                case("linear", 2, &[1.0]).ints("bias", &[1]),
                "parameter `bias`: expected 2 elements, one per output channel",
            ),
        ];
        for (case, expected) in errors {
            assert_eq!(case.error(), expected);
        }
    }

    #[test]
    fn huge_strides_and_dilations_are_numbers_like_others() {
        for channels in [1, 2] {
            let case = Case::new("conv")
                .input("x", &[1, channels, 3], &vec![1.0; channels * 3])
                .floats("weight", &[channels, 1, 2], &vec![1.0; channels * 2])
                .int("groups", channels as i32)
                .ints("strides", &[i32::MAX]);
            assert_eq!(case.f32().1, vec![2.0; channels]);
            let dilated = Case::new("conv")
                .input("x", &[1, channels, 3], &vec![1.0; channels * 3])
                .floats("weight", &[channels, 1, 2], &vec![1.0; channels * 2])
                .int("groups", channels as i32)
                .ints("dilations", &[i32::MAX])
                .string("pad_type", "same");
            // Taps fall so far outside that only padding is read by one of them, or by both.
            assert!(dilated.run(&[crate::DType::F32]).map_or(true, |out| out[0].shape() == [1, channels, 3]));
        }
    }

    /// x = [1, 2, 3], weight = [1, 10, 100], stride 2.
    fn transposed(pad_type: &str) -> Case {
        Case::new("conv_transpose")
            .input("x", &[1, 1, 3], &[1.0, 2.0, 3.0])
            .floats("weight", &[1, 1, 3], &[1.0, 10.0, 100.0])
            .ints("strides", &[2])
            .string("pad_type", pad_type)
    }

    #[test]
    fn conv_transpose_shapes_follow_pad_type_and_output_shape() {
        // Full: 1, 10, 100 + 2, 20, 200 + 3, 30, 300.
        let full = [1.0, 10.0, 102.0, 20.0, 203.0, 30.0, 300.0];
        assert_eq!(transposed("valid").f32(), (vec![1, 1, 7], full.to_vec()));
        assert_eq!(transposed("same").f32(), (vec![1, 1, 6], full[..6].to_vec()));
        assert_eq!(transposed("custom").ints("pad", &[1, 2]).f32(), (vec![1, 1, 4], full[1..5].to_vec()));
        let shaped = |size: i32| transposed("same").ints("output_shape", &[1, 1, size]);
        assert_eq!(shaped(5).f32(), (vec![1, 1, 5], full[1..6].to_vec()));
        let longer = transposed("valid").ints("output_shape", &[1, 1, 8]).floats("bias", &[1], &[0.5]);
        let mut expected: Vec<f32> = full.iter().map(|x| x + 0.5).collect();
        expected.push(0.5);
        assert_eq!(longer.f32(), (vec![1, 1, 8], expected));
        assert!(shaped(7).error().contains("do not come from a convolution of 7"));
        assert_eq!(
            transposed("same").ints("output_shape", &[1, 2, 5]).error(),
            "parameter `output_shape`: expected [batch, 1] and 1 sizes for x fp32[1, 1, 3], found [1, 2, 5]"
        );
        assert_eq!(
            transposed("same_lower").error(),
            "parameter `pad_type`: expected `valid`, `same` or `custom`, found `same_lower`"
        );
        assert!(transposed("custom").ints("pad", &[4, 4]).error().contains("do not come from"));
    }

    #[test]
    fn conv_transpose_same_with_a_kernel_shorter_than_the_stride_fills_with_the_bias() {
        let case = Case::new("conv_transpose")
            .input("x", &[1, 1, 2], &[1.0, 2.0])
            .floats("weight", &[1, 1, 1], &[5.0])
            .ints("strides", &[3])
            .string("pad_type", "same")
            .floats("bias", &[1], &[0.25]);
        assert_eq!(case.f32(), (vec![1, 1, 6], vec![5.25, 0.25, 0.25, 10.25, 0.25, 0.25]));
    }
}
