//! Convolution layers.

use coreml_proto::proto as spec;
use spec::convolution_layer_params::ConvolutionPaddingType;
use spec::convolution3_d_layer_params::PaddingType as Padding3d;

use super::context::{Arg, Blob, Context, Dims, int, ints, invalid, size, sizes, unsupported};
use super::{LayerDef, weights};
use crate::error::OpError;
use crate::ir::Constant;

pub(super) const LAYERS: &[LayerDef] =
    &[layer!("convolution", Convolution, convolution), layer!("convolution3d", Convolution3d, convolution3d)];

/// How the border of the input is treated, as the ops say it.
#[derive(Debug)]
pub(super) enum Pad {
    Custom(Vec<i32>),
    Same,
    SameLower,
}

impl Pad {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Custom(_) => "custom",
            Self::Same => "same",
            Self::SameLower => "same_lower",
        }
    }

    /// The op's parameter `pad`; zeros where the word says all.
    pub(super) fn amounts(&self, spatial: usize) -> Vec<i32> {
        match self {
            Self::Custom(amounts) => amounts.clone(),
            Self::Same | Self::SameLower => vec![0; 2 * spatial],
        }
    }

    pub(super) fn valid(padding: &spec::ValidPadding) -> Result<Self, OpError> {
        Ok(Self::Custom(border(padding.padding_amounts.as_ref())?))
    }

    pub(super) fn same(padding: spec::SamePadding) -> Result<Self, OpError> {
        use spec::same_padding::SamePaddingMode as M;
        match M::try_from(padding.asymmetry_mode) {
            Ok(M::BottomRightHeavy) => Ok(Self::Same),
            Ok(M::TopLeftHeavy) => Ok(Self::SameLower),
            Err(_) => Err(invalid(format!("unknown asymmetry {}", padding.asymmetry_mode))),
        }
    }
}

/// Top, bottom, left, right; zeros if not set.
pub(super) fn border(amounts: Option<&spec::BorderAmounts>) -> Result<Vec<i32>, OpError> {
    match amounts.map_or(&[][..], |amounts| &amounts.border_amounts) {
        [] => Ok(vec![0; 4]),
        [h, w] => ints(&[h.start_edge_size, h.end_edge_size, w.start_edge_size, w.end_edge_size]),
        other => Err(invalid(format!("border amounts of {} dimensions, expected 2", other.len()))),
    }
}

/// Two numbers for height and width, or the default.
pub(super) fn pair(values: &[u64], default: usize) -> Result<[usize; 2], OpError> {
    match values {
        [] => Ok([default; 2]),
        [h, w] => Ok([size(*h)?, size(*w)?]),
        _ => Err(invalid(format!("{values:?} where two sizes are expected"))),
    }
}

/// The size of an output dimension of a convolution or pooling; `kernel` with its dilation.
pub(super) fn windows(
    input: Option<usize>,
    kernel: usize,
    stride: usize,
    pad: &Pad,
    axis: usize,
) -> Result<Option<usize>, OpError> {
    let Some(input) = input else { return Ok(None) };
    match pad {
        Pad::Same | Pad::SameLower => Ok(Some(input.div_ceil(stride))),
        Pad::Custom(pads) => {
            let pads = pads[2 * axis..2 * axis + 2].iter().map(|&pad| usize::try_from(pad).ok());
            let padded = pads.into_iter().try_fold(input, |sum, pad| sum.checked_add(pad?));
            let span = padded.and_then(|padded| padded.checked_sub(kernel));
            span.map(|span| Some(span / stride + 1))
                .ok_or_else(|| invalid(format!("a kernel of {kernel} on {input} elements and their padding")))
        }
    }
}

/// The size of a kernel with its dilation.
fn dilated(kernel: usize, dilation: usize) -> Result<usize, OpError> {
    (kernel - 1)
        .checked_mul(dilation)
        .and_then(|n| n.checked_add(1))
        .ok_or_else(|| invalid("the kernel's size overflows"))
}

/// What a convolution of either number of dimensions has.
struct Convolution {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    groups: usize,
    outputs: usize,
    pad: Pad,
    bias: Option<Vec<f32>>,
}

impl Convolution {
    fn common(&self) -> Result<Vec<(&'static str, Arg)>, OpError> {
        let mut arguments = vec![
            ("strides", ints(&self.strides)?.into()),
            ("pad_type", self.pad.word().into()),
            ("dilations", ints(&self.dilations)?.into()),
            ("groups", int(self.groups)?.into()),
        ];
        if let Pad::Custom(pad) = &self.pad {
            arguments.push(("pad", pad.clone().into()));
        }
        if let Some(bias) = &self.bias {
            let bias = Constant::f32(&[self.outputs], bias.clone()).map_err(OpError::Invalid)?;
            arguments.push(("bias", bias.into()));
        }
        Ok(arguments)
    }

    fn forward(&self, cx: &mut Context<'_>, x: &Blob, weight: Arg) -> Result<Blob, OpError> {
        let mut dims: Dims = vec![x.dims[0], Some(self.outputs)];
        for (axis, &input) in x.dims[2..].iter().enumerate() {
            let kernel = dilated(self.kernel[axis], self.dilations[axis])?;
            dims.push(windows(input, kernel, self.strides[axis], &self.pad, axis)?);
        }
        let mut arguments = self.common()?;
        arguments.extend([("x", x.into()), ("weight", weight)]);
        Ok(cx.op("conv", arguments, dims))
    }

    /// `H_out = (H_in - 1) * stride + (kernel - 1) * dilation + 1 - padding`, or `H_in * stride` for "same".
    fn transposed(
        &mut self,
        cx: &mut Context<'_>,
        x: &Blob,
        weight: Arg,
        wanted: &[usize],
    ) -> Result<Blob, OpError> {
        let overflow = || invalid("the output's size overflows");
        let spatial = self.kernel.len();
        let kernel = self.kernel.iter().zip(&self.dilations).map(|(&kernel, &by)| dilated(kernel, by));
        let kernel = kernel.collect::<Result<Vec<_>, _>>()?;
        let full = |axis: usize, input: usize| {
            input.saturating_sub(1).checked_mul(self.strides[axis]).and_then(|n| n.checked_add(kernel[axis]))
        };
        if !wanted.is_empty() {
            // The type of padding is ignored; amounts that lead to the wanted shape say where to cut.
            let mut amounts = self.pad.amounts(spatial);
            for (axis, &input) in x.dims[2..].iter().enumerate() {
                let input =
                    input.ok_or_else(|| unsupported("an output shape for an input of unknown shape"))?;
                let cut = full(axis, input).and_then(|full| full.checked_sub(wanted[axis]));
                let cut =
                    cut.ok_or_else(|| unsupported(format!("the output shape {wanted:?} of {}", x.words())))?;
                let cut = int(cut)?;
                if amounts[2 * axis].checked_add(amounts[2 * axis + 1]) != Some(cut) {
                    amounts[2 * axis] = cut / 2;
                    amounts[2 * axis + 1] = cut - cut / 2;
                }
            }
            self.pad = Pad::Custom(amounts);
        }
        let mut dims: Dims = vec![x.dims[0], Some(self.outputs)];
        for (axis, &input) in x.dims[2..].iter().enumerate() {
            dims.push(match (input, &self.pad) {
                (None, _) => None,
                (Some(input), Pad::Same | Pad::SameLower) => {
                    Some(input.checked_mul(self.strides[axis]).ok_or_else(overflow)?)
                }
                (Some(input), Pad::Custom(pads)) => {
                    let full = full(axis, input).ok_or_else(overflow)?;
                    let cut = usize::try_from(i64::from(pads[2 * axis]) + i64::from(pads[2 * axis + 1]));
                    let rest = cut.ok().and_then(|cut| full.checked_sub(cut)).filter(|&rest| rest > 0);
                    Some(rest.ok_or_else(|| invalid("padding that leaves nothing of the output"))?)
                }
            });
        }
        if matches!(self.pad, Pad::SameLower) {
            return Err(unsupported("a transposed convolution that pads the top and left more"));
        }
        let mut arguments = self.common()?;
        arguments.extend([("x", x.into()), ("weight", weight)]);
        Ok(cx.op("conv_transpose", arguments, dims))
    }
}

fn convolution(cx: &mut Context<'_>, p: &spec::ConvolutionLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    let x = cx.inputs[0].clone();
    x.at_least(4)?;
    let kernel = pair(&p.kernel_size, 3)?;
    let outputs = size(p.output_channels)?;
    let groups = usize::try_from(p.n_groups).map_err(|_| invalid("too many groups"))?.max(1);
    let mut convolution = Convolution {
        kernel: kernel.to_vec(),
        strides: pair(&p.stride, 1)?.to_vec(),
        dilations: pair(&p.dilation_factor, 1)?.to_vec(),
        groups,
        outputs,
        pad: match &p.convolution_padding_type {
            None => Pad::Custom(vec![0; 4]),
            Some(ConvolutionPaddingType::Valid(padding)) => Pad::valid(padding)?,
            Some(ConvolutionPaddingType::Same(padding)) => Pad::same(*padding)?,
        },
        bias: p.has_bias.then(|| weights::floats("bias", p.bias.as_ref(), &[outputs])).transpose()?,
    };
    if outputs % groups != 0 {
        return Err(invalid(format!("{outputs} output channels in {groups} groups")));
    }
    let second = cx.inputs.get(1).cloned();
    if let Some(weight) = &second {
        if p.is_deconvolution {
            return Err(invalid("a transposed convolution with two inputs"));
        }
        if weight.rank() != 4 {
            return Err(invalid(format!("weights of shape {}, expected rank 4", weight.words())));
        }
    }
    let inputs = size(p.kernel_channels)?;
    let shape = if p.is_deconvolution {
        [inputs, outputs / groups, kernel[0], kernel[1]]
    } else {
        [outputs, inputs, kernel[0], kernel[1]]
    };
    let weight: Arg = match &second {
        Some(weight) => weight.into(),
        None => {
            // coremltools quantises transposed convolutions per output channel, which is dimension 1 there.
            let channel = usize::from(p.is_deconvolution);
            let data = weights::floats_by_channel("weights", p.weights.as_ref(), &shape, channel)?;
            Constant::f32(&shape, data).map_err(OpError::Invalid)?.into()
        }
    };
    let wanted = match (&p.output_shape[..], p.is_deconvolution) {
        ([], _) | (_, false) => Vec::new(),
        (shape, true) => pair(shape, 1)?.to_vec(),
    };
    cx.on_rank4(&x, |cx, x| {
        if p.is_deconvolution {
            convolution.transposed(cx, x, weight, &wanted)
        } else {
            convolution.forward(cx, x, weight)
        }
    })
}

fn convolution3d(cx: &mut Context<'_>, p: &spec::Convolution3DLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    if x.rank() != 5 {
        return Err(invalid(format!("rank 5 is needed, found {}", x.words())));
    }
    let kernel = sizes(&[p.kernel_depth, p.kernel_height, p.kernel_width])?;
    let outputs = size(p.output_channels)?;
    let inputs = size(p.input_channels)?;
    let groups = size(p.n_groups.max(1))?;
    if outputs % groups != 0 || inputs % groups != 0 {
        return Err(invalid(format!("{inputs} and {outputs} channels in {groups} groups")));
    }
    let amounts = [
        p.custom_padding_front,
        p.custom_padding_back,
        p.custom_padding_top,
        p.custom_padding_bottom,
        p.custom_padding_left,
        p.custom_padding_right,
    ];
    let mut convolution = Convolution {
        strides: sizes(&[p.stride_depth, p.stride_height, p.stride_width])?,
        dilations: sizes(&[p.dilation_depth, p.dilation_height, p.dilation_width])?,
        groups,
        outputs,
        pad: match Padding3d::try_from(p.padding_type) {
            Ok(Padding3d::Custom) => pad3d(amounts)?,
            Ok(Padding3d::Valid) => Pad::Custom(vec![0; 6]),
            Ok(Padding3d::Same) => Pad::Same,
            Err(_) => return Err(invalid(format!("unknown padding {}", p.padding_type))),
        },
        bias: p.has_bias.then(|| weights::floats("bias", p.bias.as_ref(), &[outputs])).transpose()?,
        kernel: kernel.clone(),
    };
    if !p.is_deconvolution {
        let shape = [&[outputs, inputs / groups], &kernel[..]].concat();
        let data = weights::floats("weights", p.weights.as_ref(), &shape)?;
        let weight = Constant::f32(&shape, data).map_err(OpError::Invalid)?;
        return convolution.forward(cx, &x, weight.into());
    }
    // The format's comment has the first two dimensions the other way round; coremltools, whose models Core ML runs, writes
    // them so (`NeuralNetworkBuilder.add_convolution3d`), as for two dimensions.
    let shape = [&[inputs, outputs / groups], &kernel[..]].concat();
    let data = weights::floats_by_channel("weights", p.weights.as_ref(), &shape, 1)?;
    let weight = Constant::f32(&shape, data).map_err(OpError::Invalid)?;
    let wanted = sizes(&p.output_shape)?;
    if !(wanted.is_empty() || wanted.len() == 3) {
        return Err(invalid(format!("the output shape {wanted:?}, expected three sizes")));
    }
    convolution.transposed(cx, &x, weight.into(), &wanted)
}

/// Amounts of padding of three dimensions; none may be negative.
pub(super) fn pad3d(amounts: [i32; 6]) -> Result<Pad, OpError> {
    if amounts.iter().any(|&amount| amount < 0) {
        return Err(invalid(format!("negative padding {amounts:?}")));
    }
    Ok(Pad::Custom(amounts.to_vec()))
}
