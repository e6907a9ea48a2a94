//! Layers that cut and pad.

use coreml_proto::proto as spec;
use spec::padding_layer_params::PaddingType;
use spec::slice_layer_params::SliceAxis;

use super::LayerDef;
use super::context::{Arg, Blob, Context, Dims, int, ints, invalid, size, slice_length, unsupported};
use super::convolution::border;
use crate::error::OpError;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("constantPad", ConstantPad, constant_pad),
    layer!("crop", Crop, crop),
    layer!("padding", Padding, padding),
    layer!("slice", Slice, slice),
    layer!("sliceBySize", SliceBySize, slice_by_size),
    layer!("sliceDynamic", SliceDynamic, slice_dynamic),
    layer!("sliceStatic", SliceStatic, slice_static),
];

fn slice(cx: &mut Context<'_>, p: &spec::SliceLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axis = match SliceAxis::try_from(p.axis) {
        Ok(SliceAxis::ChannelAxis) => -3,
        Ok(SliceAxis::HeightAxis) => -2,
        Ok(SliceAxis::WidthAxis) => -1,
        Err(_) => return Err(invalid(format!("unknown axis {}", p.axis))),
    };
    let stride = i64::from(int(size(p.stride)?)?);
    cx.slice(&x, x.axis(axis)?, p.start_index, Some(p.end_index), stride)
}

/// The parameters of a general slice; every list is as long as the rank.
struct Slice<'a> {
    /// Known at load, or computed by the network.
    begin: Result<Vec<i32>, Arg>,
    end: Result<Vec<i32>, Arg>,
    strides: Vec<i32>,
    begin_masks: &'a [bool],
    end_masks: &'a [bool],
    squeeze_masks: &'a [bool],
}

impl Slice<'_> {
    fn lower(self, cx: &mut Context<'_>, x: &Blob) -> Result<Blob, OpError> {
        let rank = x.rank();
        let length = |list: &Result<Vec<i32>, Arg>| list.as_ref().map_or(rank, Vec::len);
        let mask = |mask: &[bool]| if mask.is_empty() { vec![false; rank] } else { mask.to_vec() };
        let begin_mask = mask(self.begin_masks);
        let end_mask = mask(self.end_masks);
        let squeeze_mask = mask(self.squeeze_masks);
        let strides = if self.strides.is_empty() { vec![1; rank] } else { self.strides };
        let lengths = [length(&self.begin), length(&self.end), strides.len()];
        let masks = [begin_mask.len(), end_mask.len(), squeeze_mask.len()];
        if lengths.iter().chain(&masks).any(|&length| length != rank) {
            return Err(invalid(format!("slice parameters that do not have {rank} elements, the rank")));
        }
        let mut dims: Dims = Vec::new();
        for (axis, &dim) in x.dims.iter().enumerate() {
            if squeeze_mask[axis] {
                continue;
            }
            let bound = |list: &Result<Vec<i32>, Arg>, mask: bool| match (list, mask) {
                (_, true) => Some(None),
                (Ok(list), false) => Some(Some(i64::from(list[axis]))),
                (Err(_), false) => None,
            };
            let bounds = (bound(&self.begin, begin_mask[axis]), bound(&self.end, end_mask[axis]));
            dims.push(match (dim, bounds) {
                (Some(n), (Some(begin), Some(end))) => {
                    Some(slice_length(n, begin, end, i64::from(strides[axis]))?)
                }
                _ => None,
            });
        }
        // A blob of rank 0 does not exist: what would be one is a list of one element.
        let scalar = dims.is_empty();
        let sliced = cx.op(
            "slice_by_index",
            [
                ("x", x.into()),
                ("begin", self.begin.map_or_else(|arg| arg, Arg::from)),
                ("end", self.end.map_or_else(|arg| arg, Arg::from)),
                ("stride", strides.into()),
                ("begin_mask", begin_mask.into()),
                ("end_mask", end_mask.into()),
                ("squeeze_mask", squeeze_mask.into()),
            ],
            dims,
        );
        if scalar { cx.expand(&sliced, &[0]) } else { Ok(sliced) }
    }
}

fn slice_static(cx: &mut Context<'_>, p: &spec::SliceStaticLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    // coremltools writes the largest integer for "to the end".
    let fit = |values: &[i64]| -> Vec<i32> {
        values.iter().map(|&n| i32::try_from(n).unwrap_or(if n < 0 { i32::MIN } else { i32::MAX })).collect()
    };
    let slice = Slice {
        begin: Ok(fit(&p.begin_ids)),
        end: Ok(fit(&p.end_ids)),
        strides: ints(&p.strides)?,
        begin_masks: &p.begin_masks,
        end_masks: &p.end_masks,
        squeeze_masks: &p.squeeze_masks,
    };
    slice.lower(cx, &x)
}

fn slice_dynamic(cx: &mut Context<'_>, p: &spec::SliceDynamicLayerParams) -> Result<Blob, OpError> {
    cx.count(2..=7)?;
    let inputs = cx.inputs.clone();
    let x = &inputs[0];
    // coremltools writes five elements where none are given, whatever the rank; the first ones count.
    fn leading<T>(list: &[T], rank: usize) -> &[T] {
        &list[..rank.min(list.len())]
    }
    let bound = |cx: &mut Context<'_>, blob: &Blob| match cx.known_bounds(blob) {
        Ok(known) => Ok::<_, OpError>(Ok(known)),
        Err(_) => {
            let list = cx.at_most(blob.clone(), 1)?;
            Ok(Err(Arg::Id(cx.bounds(&list))))
        }
    };
    let begin = bound(cx, &inputs[1])?;
    let end = match inputs.get(2) {
        Some(end) => bound(cx, end)?,
        None if p.end_ids.is_empty() && p.end_masks.iter().all(|&mask| mask) => Ok(vec![0; x.rank()]),
        None => Ok(ints(leading(&p.end_ids, x.rank()))?),
    };
    let strides = match inputs.get(3) {
        Some(strides) => cx.known_ints(strides, "a stride")?,
        None => ints(leading(&p.strides, x.rank()))?,
    };
    let mask = |input: usize, own: &[bool]| match inputs.get(input) {
        Some(blob) => Ok(cx.known_ints(blob, "a mask")?.into_iter().map(|x| x != 0).collect()),
        None => Ok::<_, OpError>(leading(own, x.rank()).to_vec()),
    };
    let (begin_masks, end_masks) = (mask(4, &p.begin_masks)?, mask(5, &p.end_masks)?);
    let squeeze_masks = mask(6, &p.squeeze_masks)?;
    let slice = Slice {
        begin,
        end,
        strides,
        begin_masks: &begin_masks,
        end_masks: &end_masks,
        squeeze_masks: &squeeze_masks,
    };
    slice.lower(cx, x)
}

fn slice_by_size(cx: &mut Context<'_>, p: &spec::SliceBySizeLayerParams) -> Result<Blob, OpError> {
    let [x, begin] = cx.exactly()?;
    let axis = x.axis(p.axis)?;
    let length = size(p.size)?;
    if begin.fixed().is_none_or(|shape| shape.iter().product::<usize>() != 1) {
        return Err(invalid(format!("a first index of shape {}", begin.words())));
    }
    let begin = if begin.rank() == 1 { begin } else { cx.reshape(&begin, &[super::context::Dim::Known(1)])? };
    let begin = cx.integers(&begin);
    let start = if x.rank() == 1 { begin.into() } else { cx.list_of(x.rank(), axis, begin, 0)?.into() };
    let sizes: Vec<i32> =
        (0..x.rank()).map(|i| if i == axis { int(length) } else { Ok(-1) }).collect::<Result<_, _>>()?;
    let mut dims = x.dims.clone();
    dims[axis] = Some(length);
    Ok(cx.op("slice_by_size", [("x", (&x).into()), ("begin", start), ("size", sizes.into())], dims))
}

fn crop(cx: &mut Context<'_>, p: &spec::CropLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    let x = cx.inputs[0].clone();
    x.at_least(3)?;
    let (h, w) = (x.rank() - 2, x.rank() - 1);
    if let Some(like) = cx.inputs.get(1) {
        let offset = match p.offset[..] {
            [] => [0, 0],
            [top, left] => [int(top)?, int(left)?],
            _ => return Err(invalid(format!("the offset {:?}", p.offset))),
        };
        if like.rank() != x.rank() {
            return Err(invalid(format!("{} cropped to {}", x.words(), like.words())));
        }
        let (Some(height), Some(width)) = (like.dims[h], like.dims[w]) else {
            return Err(unsupported(format!("a crop to {}", like.words())));
        };
        let end = |offset: i32, size: usize| {
            i64::from(offset).saturating_add(i64::try_from(size).unwrap_or(i64::MAX))
        };
        let y = cx.slice(&x, h, offset[0].into(), Some(end(offset[0], height)), 1)?;
        let y = cx.slice(&y, w, offset[1].into(), Some(end(offset[1], width)), 1)?;
        if (y.dims[h], y.dims[w]) != (Some(height), Some(width)) {
            return Err(invalid(format!("{} cropped to {height} x {width} at {offset:?}", x.words())));
        }
        return Ok(y);
    }
    let amounts = border(p.crop_amounts.as_ref())?;
    let mut y = x;
    for (axis, amounts) in [(h, &amounts[..2]), (w, &amounts[2..])] {
        let (begin, end) = (amounts[0], amounts[1]);
        if (begin, end) != (0, 0) {
            y = cx.slice(&y, axis, begin.into(), (end > 0).then_some(-i64::from(end)), 1)?;
        }
    }
    if y.dims.contains(&Some(0)) {
        return Err(invalid("nothing is left"));
    }
    Ok(y)
}

/// Adds an op that pads all dimensions: before and after each.
fn pad(cx: &mut Context<'_>, x: &Blob, amounts: Vec<i32>, mode: &str, value: f32) -> Result<Blob, OpError> {
    let mut dims = x.dims.clone();
    for (dim, amounts) in dims.iter_mut().zip(amounts.chunks(2)) {
        let sum = amounts.iter().try_fold(0_usize, |sum, &n| sum.checked_add(usize::try_from(n).ok()?));
        let sum = sum.ok_or_else(|| invalid(format!("the padding {amounts:?}")))?;
        *dim =
            dim.map(|dim| dim.checked_add(sum).ok_or_else(|| invalid("the size overflows"))).transpose()?;
    }
    let arguments =
        [("x", x.into()), ("pad", amounts.into()), ("mode", mode.into()), ("constant_val", value.into())];
    Ok(cx.op("pad", arguments, dims))
}

fn padding(cx: &mut Context<'_>, p: &spec::PaddingLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(2)?;
    let mut amounts = vec![0; 2 * (x.rank() - 2)];
    amounts.extend(border(p.padding_amounts.as_ref())?);
    match &p.padding_type {
        Some(PaddingType::Constant(constant)) => pad(cx, &x, amounts, "constant", constant.value),
        Some(PaddingType::Reflection(_)) => pad(cx, &x, amounts, "reflect", 0.0),
        Some(PaddingType::Replication(_)) => pad(cx, &x, amounts, "replicate", 0.0),
        None => Err(invalid("a type of padding that is not known")),
    }
}

fn constant_pad(cx: &mut Context<'_>, p: &spec::ConstantPaddingLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    let x = cx.inputs[0].clone();
    let mut amounts = match cx.inputs.get(1).cloned() {
        None => ints(&p.pad_amounts)?,
        Some(input) => match cx.known_ints(&input, "padding") {
            Ok(amounts) => amounts,
            Err(_) if p.pad_to_given_output_size_mode => {
                return Err(unsupported("an output size that the network computes"));
            }
            Err(_) => {
                if input.fixed() != Some(vec![2 * x.rank()]) {
                    return Err(invalid(format!("padding of shape {} for {}", input.words(), x.words())));
                }
                let amounts = cx.integers(&input);
                let arguments = [
                    ("x", (&x).into()),
                    ("pad", amounts.into()),
                    ("mode", "constant".into()),
                    ("constant_val", p.value.into()),
                ];
                return Ok(cx.op("pad", arguments, vec![None; x.rank()]));
            }
        },
    };
    if amounts.len() != 2 * x.rank() || amounts.iter().any(|&n| n < 0) {
        return Err(invalid(format!("the padding {amounts:?} for {}", x.words())));
    }
    if p.pad_to_given_output_size_mode {
        for (pair, dim) in amounts.chunks_mut(2).zip(&x.dims) {
            let [before, after] = pair else { continue };
            if *before > 0 && *after > 0 {
                return Err(invalid(format!("the output sizes {before} and {after} for one dimension")));
            }
            let dim = dim.ok_or_else(|| unsupported(format!("an output size for {}", x.words())))?;
            let dim = int(dim)?;
            *before = (*before - dim).max(0);
            *after = (*after - dim).max(0);
        }
    }
    pad(cx, &x, amounts, "constant", p.value)
}
