//! Pooling layers.

use coreml_proto::proto as spec;
use spec::global_pooling3_d_layer_params::GlobalPoolingType3D;
use spec::pooling_layer_params::{PoolingPaddingType, PoolingType};
use spec::pooling3_d_layer_params::{Pooling3DPaddingType, PoolingType3D};

use super::LayerDef;
use super::context::{Arg, Blob, Context, Dims, int, ints, invalid, sizes};
use super::convolution::{Pad, pad3d, pair, windows};
use crate::error::OpError;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("globalPooling3d", GlobalPooling3d, global_pooling3d),
    layer!("pooling", Pooling, pooling),
    layer!("pooling3d", Pooling3d, pooling3d),
];

/// A pooling of any number of dimensions.
struct Pooling {
    kind: &'static str,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    pad: Pad,
    /// Rounds the number of windows up.
    ceil: bool,
    exclude_padding: bool,
}

impl Pooling {
    fn lower(&self, cx: &mut Context<'_>, x: &Blob) -> Result<Blob, OpError> {
        let mut dims: Dims = x.dims[..2].to_vec();
        for (axis, &input) in x.dims[2..].iter().enumerate() {
            let (kernel, stride) = (self.kernel[axis], self.strides[axis]);
            dims.push(match (&self.pad, self.ceil) {
                (Pad::Custom(pads), true) => complete(input, kernel, stride, pads[2 * axis])?,
                _ => windows(input, kernel, stride, &self.pad, axis)?,
            });
        }
        let mut arguments: Vec<(&str, Arg)> = vec![
            ("x", x.into()),
            ("kernel_sizes", ints(&self.kernel)?.into()),
            ("strides", ints(&self.strides)?.into()),
            ("pad_type", self.pad.word().into()),
            ("ceil_mode", self.ceil.into()),
        ];
        if let Pad::Custom(pad) = &self.pad {
            arguments.push(("pad", pad.clone().into()));
        }
        if self.kind == "avg_pool" {
            arguments.push(("exclude_padding_from_average", self.exclude_padding.into()));
        }
        Ok(cx.op(self.kind, arguments, dims))
    }
}

/// `ValidCompletePadding`: windows that reach the last element; with padding, none that begins beyond it.
fn complete(input: Option<usize>, kernel: usize, stride: usize, pad: i32) -> Result<Option<usize>, OpError> {
    let Some(input) = input else { return Ok(None) };
    let bad = || invalid(format!("a kernel of {kernel} on {input} elements and their padding"));
    let pad = usize::try_from(pad).map_err(|_| bad())?;
    let padded = pad.checked_mul(2).and_then(|pads| pads.checked_add(input)).ok_or_else(bad)?;
    let count = padded.checked_sub(kernel).ok_or_else(bad)?.div_ceil(stride) + 1;
    let beyond = pad > 0 && (count - 1).checked_mul(stride).ok_or_else(bad)? >= input + pad;
    Ok(Some(if beyond { count - 1 } else { count }))
}

fn pooling(cx: &mut Context<'_>, p: &spec::PoolingLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(4)?;
    let ty = PoolingType::try_from(p.r#type).map_err(|_| invalid(format!("unknown pooling {}", p.r#type)))?;
    if p.global_pooling {
        let spatial = [x.rank() - 2, x.rank() - 1];
        let kind = match ty {
            PoolingType::Max => "reduce_max",
            PoolingType::Average => "reduce_mean",
            PoolingType::L2 => "reduce_l2_norm",
        };
        return cx.reduce(kind, &x, &spatial, true);
    }
    let (pad, ceil) = match &p.pooling_padding_type {
        None => (Pad::Custom(vec![0; 4]), false),
        Some(PoolingPaddingType::Valid(padding)) => (Pad::valid(padding)?, false),
        Some(PoolingPaddingType::Same(padding)) => (Pad::same(*padding)?, false),
        Some(PoolingPaddingType::IncludeLastPixel(padding)) => {
            let (h, w) = match padding.padding_amounts[..] {
                [] => (0, 0),
                [h, w] => (int(h)?, int(w)?),
                _ => return Err(invalid("padding amounts that are not two")),
            };
            (Pad::Custom(vec![h, h, w, w]), true)
        }
    };
    let pooling = Pooling {
        kind: match ty {
            PoolingType::Max => "max_pool",
            PoolingType::Average => "avg_pool",
            PoolingType::L2 => "l2_pool",
        },
        kernel: pair(&p.kernel_size, 3)?.to_vec(),
        strides: pair(&p.stride, 1)?.to_vec(),
        pad,
        ceil,
        exclude_padding: p.avg_pool_exclude_padding,
    };
    cx.on_rank4(&x, |cx, x| pooling.lower(cx, x))
}

/// The input of a three-dimensional pooling: `[batch, channels, depth, height, width]`.
fn rank5(cx: &Context<'_>) -> Result<Blob, OpError> {
    let x = cx.one()?;
    if x.rank() != 5 {
        return Err(invalid(format!("rank 5 is needed, found {}", x.words())));
    }
    Ok(x)
}

fn pooling3d(cx: &mut Context<'_>, p: &spec::Pooling3DLayerParams) -> Result<Blob, OpError> {
    let x = rank5(cx)?;
    let kind = match PoolingType3D::try_from(p.r#type) {
        Ok(PoolingType3D::Max) => "max_pool",
        Ok(PoolingType3D::Average) => "avg_pool",
        Err(_) => return Err(invalid(format!("unknown pooling {}", p.r#type))),
    };
    let pad = match Pooling3DPaddingType::try_from(p.padding_type) {
        Ok(Pooling3DPaddingType::Custom) => pad3d([
            p.custom_padding_front,
            p.custom_padding_back,
            p.custom_padding_top,
            p.custom_padding_bottom,
            p.custom_padding_left,
            p.custom_padding_right,
        ])?,
        Ok(Pooling3DPaddingType::Valid) => Pad::Custom(vec![0; 6]),
        Ok(Pooling3DPaddingType::Same) => Pad::Same,
        Err(_) => return Err(invalid(format!("unknown padding {}", p.padding_type))),
    };
    let pooling = Pooling {
        kind,
        kernel: sizes(&[p.kernel_depth, p.kernel_height, p.kernel_width])?,
        strides: sizes(&[p.stride_depth, p.stride_height, p.stride_width])?,
        pad,
        ceil: false,
        exclude_padding: p.count_exclude_padding,
    };
    pooling.lower(cx, &x)
}

fn global_pooling3d(cx: &mut Context<'_>, p: &spec::GlobalPooling3DLayerParams) -> Result<Blob, OpError> {
    let x = rank5(cx)?;
    let kind = match GlobalPoolingType3D::try_from(p.r#type) {
        Ok(GlobalPoolingType3D::Max) => "reduce_max",
        Ok(GlobalPoolingType3D::Average) => "reduce_mean",
        Err(_) => return Err(invalid(format!("unknown pooling {}", p.r#type))),
    };
    cx.reduce(kind, &x, &[2, 3, 4], true)
}
