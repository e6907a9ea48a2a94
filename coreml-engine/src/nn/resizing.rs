//! Layers that resize the last two dimensions.

use coreml_proto::proto as spec;
use spec::box_coordinates_mode::Coordinates;
use spec::sampling_mode::Method;
use spec::upsample_layer_params::{InterpolationMode, LinearUpsampleMode};

use super::LayerDef;
use super::context::{Arg, Blob, Context, int, invalid, sizes, unsupported};
use super::convolution::pair;
use crate::error::OpError;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("cropResize", CropResize, crop_resize),
    layer!("resizeBilinear", ResizeBilinear, resize_bilinear),
    layer!("upsample", Upsample, upsample),
];

/// `x` sampled bilinearly at other last two dimensions.
fn to_size(cx: &mut Context<'_>, x: &Blob, [height, width]: [usize; 2], mode: &str) -> Result<Blob, OpError> {
    let (h, w) = (int(height)?, int(width)?);
    cx.on_rank4(x, |cx, x| {
        let mut dims = x.dims.clone();
        (dims[2], dims[3]) = (Some(height), Some(width));
        let arguments = [
            ("x", x.into()),
            ("target_size_height", h.into()),
            ("target_size_width", w.into()),
            ("sampling_mode", mode.into()),
        ];
        Ok(cx.op("resize_bilinear", arguments, dims))
    })
}

fn resize_bilinear(cx: &mut Context<'_>, p: &spec::ResizeBilinearLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let target = pair(&p.target_size, 1)?;
    to_size(cx, &x, target, sampling(p.mode.as_ref())?)
}

/// The ops' word for a way to sample: coremltools, `backend/nn/op_mapping.py`.
fn sampling(mode: Option<&spec::SamplingMode>) -> Result<&'static str, OpError> {
    let number = mode.map_or(0, |mode| mode.sampling_method);
    Ok(match Method::try_from(number) {
        Ok(Method::StrictAlignEndpointsMode) => "STRICT_ALIGN_CORNERS",
        Ok(Method::AlignEndpointsMode) => "ALIGN_CORNERS",
        Ok(Method::UpsampleMode) => "DEFAULT",
        Ok(Method::RoiAlignMode) => "OFFSET_CORNERS",
        Err(_) => return Err(invalid(format!("unknown sampling {number}"))),
    })
}

/// The scaled size of a dimension, rounded down.
fn scaled(n: Option<usize>, factor: f64) -> Result<Option<usize>, OpError> {
    let Some(n) = n else { return Ok(None) };
    let size = (n as f64 * factor).floor();
    if size < 1.0 || size > f64::from(i32::MAX) {
        return Err(invalid(format!("{n} elements scaled by {factor}")));
    }
    Ok(Some(size as usize))
}

fn upsample(cx: &mut Context<'_>, p: &spec::UpsampleLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(3)?;
    let mode =
        InterpolationMode::try_from(p.mode).map_err(|_| invalid(format!("unknown mode {}", p.mode)))?;
    let factors = match (&p.scaling_factor[..], &p.fractional_scaling_factor[..]) {
        (factors, []) => pair(factors, 1)?.map(|factor| factor as f64),
        ([], &[height, width]) => [f64::from(height), f64::from(width)],
        (whole, fractional) => {
            return Err(invalid(format!("the scaling factors {whole:?} and {fractional:?}")));
        }
    };
    if mode == InterpolationMode::Nn {
        return by_factors(cx, &x, "upsample_nearest_neighbor", factors, None);
    }
    match LinearUpsampleMode::try_from(p.linear_upsample_mode) {
        Ok(LinearUpsampleMode::AlignCornersTrue) => {
            by_factors(cx, &x, "upsample_bilinear", factors, Some(true))
        }
        Ok(LinearUpsampleMode::AlignCornersFalse) => {
            by_factors(cx, &x, "upsample_bilinear", factors, Some(false))
        }
        // The op has no word for this mode before iOS 16, and the one that has it takes a size.
        Ok(LinearUpsampleMode::Default) => {
            let (h, w) = (x.dims[x.rank() - 2], x.dims[x.rank() - 1]);
            match (scaled(h, factors[0])?, scaled(w, factors[1])?) {
                (Some(height), Some(width)) => to_size(cx, &x, [height, width], "DEFAULT"),
                _ => Err(unsupported(format!("a resampling of {} in the mode DEFAULT", x.words()))),
            }
        }
        Err(_) => Err(invalid(format!("unknown mode {}", p.linear_upsample_mode))),
    }
}

/// `x` with its last two dimensions scaled; their sizes may be known only when the network runs.
fn by_factors(
    cx: &mut Context<'_>,
    x: &Blob,
    kind: &str,
    factors: [f64; 2],
    align: Option<bool>,
) -> Result<Blob, OpError> {
    cx.on_rank4(x, |cx, x| {
        let mut dims = x.dims.clone();
        (dims[2], dims[3]) = (scaled(dims[2], factors[0])?, scaled(dims[3], factors[1])?);
        let mut arguments: Vec<(&str, Arg)> = vec![
            ("x", x.into()),
            ("scale_factor_height", (factors[0] as f32).into()),
            ("scale_factor_width", (factors[1] as f32).into()),
        ];
        arguments.extend(align.map(|align| ("align_corners", align.into())));
        Ok(cx.op(kind, arguments, dims))
    })
}

fn crop_resize(cx: &mut Context<'_>, p: &spec::CropResizeLayerParams) -> Result<Blob, OpError> {
    let [x, boxes] = cx.exactly()?;
    let target = match &p.target_size[..] {
        [] => vec![1, 1],
        target => sizes(target)?,
    };
    let &[height, width] = &target[..] else { return Err(invalid(format!("the target size {target:?}"))) };
    let number = p.box_indices_mode.as_ref().map_or(0, |mode| mode.box_mode);
    let coordinates = match Coordinates::try_from(number) {
        Ok(Coordinates::CornersHeightFirst) => "CORNERS_HEIGHT_FIRST",
        Ok(Coordinates::CornersWidthFirst) => "CORNERS_WIDTH_FIRST",
        Ok(Coordinates::CenterSizeHeightFirst) => "CENTER_SIZE_HEIGHT_FIRST",
        Ok(Coordinates::CenterSizeWidthFirst) => "CENTER_SIZE_WIDTH_FIRST",
        Err(_) => return Err(invalid(format!("unknown box coordinates {number}"))),
    };
    let (&[_, batch, channels, _, _], &[count, _, fields, _, _]) = (&x.dims[..], &boxes.dims[..]) else {
        return Err(invalid(format!("{} and {}, expected rank 5", x.words(), boxes.words())));
    };
    let batch = match fields {
        Some(4) => batch,
        Some(5) => Some(1),
        _ => return Err(invalid(format!("boxes of shape {}", boxes.words()))),
    };
    // The layer's first dimension is 1; the op (before iOS 17) does not have it.
    let x = cx.squeeze(&x, &[0])?;
    let arguments = [
        ("x", (&x).into()),
        ("roi", (&boxes).into()),
        ("target_height", int(height)?.into()),
        ("target_width", int(width)?.into()),
        ("normalized_coordinates", p.normalized_coordinates.into()),
        ("spatial_scale", p.spatial_scale.into()),
        ("box_coordinate_mode", coordinates.into()),
        ("sampling_mode", sampling(p.mode.as_ref())?.into()),
    ];
    Ok(cx.op("crop_resize", arguments, vec![count, batch, channels, Some(height), Some(width)]))
}
