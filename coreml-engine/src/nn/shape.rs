//! Layers that give the same elements another shape or order.

use coreml_proto::proto as spec;
use spec::flatten_layer_params::FlattenOrder;
use spec::reorganize_data_layer_params::ReorganizationType;
use spec::reshape_layer_params::ReshapeOrder;

use super::LayerDef;
use super::context::{
    Arg, Blob, Context, Dim, Dims, MAX_RANK, axis_of, int, ints, invalid, size, sizes, unsupported,
};
use crate::error::OpError;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("copy", Copy, |cx, _| cx.one()),
    layer!("expandDims", ExpandDims, expand_dims),
    layer!("flatten", Flatten, flatten),
    layer!("flattenTo2D", FlattenTo2D, flatten_to_2d),
    layer!("permute", Permute, permute),
    layer!("rankPreservingReshape", RankPreservingReshape, rank_preserving_reshape),
    layer!("reorganizeData", ReorganizeData, reorganize_data),
    layer!("reshape", Reshape, reshape),
    layer!("reshapeDynamic", ReshapeDynamic, reshape_dynamic),
    layer!("reshapeLike", ReshapeLike, reshape_like),
    layer!("reshapeStatic", ReshapeStatic, reshape_static),
    layer!("squeeze", Squeeze, squeeze),
    layer!("transpose", Transpose, transpose),
];

/// The axes of all dimensions, with the last three in that order.
fn last_three(rank: usize, order: [usize; 3]) -> Vec<usize> {
    (0..rank - 3).chain(order.map(|axis| rank - 3 + axis)).collect()
}

fn flatten(cx: &mut Context<'_>, p: &spec::FlattenLayerParams) -> Result<Blob, OpError> {
    let mut x = cx.one()?;
    x.at_least(3)?;
    let rank = x.rank();
    match FlattenOrder::try_from(p.mode) {
        Ok(FlattenOrder::ChannelFirst) => {}
        Ok(FlattenOrder::ChannelLast) => x = cx.transpose(&x, &last_three(rank, [1, 2, 0]))?,
        Err(_) => return Err(invalid(format!("unknown order {}", p.mode))),
    }
    let mut dims: Vec<_> = (0..rank - 3).map(|axis| Dim::Of(&x, axis)).collect();
    dims.extend([Dim::Rest, Dim::Known(1), Dim::Known(1)]);
    cx.reshape(&x, &dims)
}

fn reshape(cx: &mut Context<'_>, p: &spec::ReshapeLayerParams) -> Result<Blob, OpError> {
    let mut x = cx.one()?;
    x.at_least(4)?;
    let rank = x.rank();
    let last = match ReshapeOrder::try_from(p.mode) {
        Ok(ReshapeOrder::ChannelFirst) => false,
        Ok(ReshapeOrder::ChannelLast) => true,
        Err(_) => return Err(invalid(format!("unknown order {}", p.mode))),
    };
    if last {
        x = cx.transpose(&x, &last_three(rank, [1, 2, 0]))?;
    }
    let target = |n: i64| if n == -1 { Ok(Dim::Rest) } else { size(n).map(Dim::Known) };
    let (mut dims, chw) = match (&p.target_shape[..], rank) {
        (&[c, h, w], _) => ((0..rank - 3).map(|axis| Dim::Of(&x, axis)).collect(), [c, h, w]),
        (&[n, c, h, w], 5) => (vec![target(n)?, Dim::Of(&x, 1)], [c, h, w]),
        (&[n, c, h, w], 4) => (vec![target(n)?], [c, h, w]),
        (shape, _) => return Err(invalid(format!("the target shape {shape:?} for {}", x.words()))),
    };
    let [c, h, w] = chw;
    for n in if last { [h, w, c] } else { [c, h, w] } {
        dims.push(target(n)?);
    }
    if dims.iter().filter(|dim| matches!(dim, Dim::Rest)).count() > 1 {
        return Err(invalid(format!("the target shape {:?} has several -1", p.target_shape)));
    }
    let y = cx.reshape(&x, &dims)?;
    if last { cx.transpose(&y, &last_three(rank, [2, 0, 1])) } else { Ok(y) }
}

/// The four numbers permute sequence, channel, height and width; the batch stays.
fn permute(cx: &mut Context<'_>, p: &spec::PermuteLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axes: Vec<usize> = p.axis.iter().map(|&axis| usize::try_from(axis).unwrap_or(usize::MAX)).collect();
    let axes = match axes[..] {
        [] => [0, 1, 2, 3],
        [a, b, c, d] if axes.iter().all(|&axis| axis < 4) => [a, b, c, d],
        _ => return Err(invalid(format!("the axes {:?}", p.axis))),
    };
    match (x.rank(), axes) {
        (5, [seq, c, h, w]) => {
            let place = |axis: usize| if axis == 0 { 0 } else { axis + 1 };
            cx.transpose(&x, &[place(seq), 1, place(c), place(h), place(w)])
        }
        (rank @ 3..=4, [0, c @ 1..=3, h @ 1..=3, w @ 1..=3]) => {
            cx.transpose(&x, &last_three(rank, [c - 1, h - 1, w - 1]))
        }
        _ => Err(invalid(format!("the axes {:?} of {}, expected rank 5", p.axis, x.words()))),
    }
}

fn transpose(cx: &mut Context<'_>, p: &spec::TransposeLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axes: Vec<usize> = p.axes.iter().map(|&axis| usize::try_from(axis).unwrap_or(usize::MAX)).collect();
    // coremltools writes these three for an image, whose batch of one it does not count (`make_image_input`, NHWC).
    if axes == [1, 2, 0] && x.rank() == 4 && x.dims[0] == Some(1) {
        let x = cx.squeeze(&x, &[0])?;
        return cx.transpose(&x, &axes);
    }
    cx.transpose(&x, &axes)
}

fn reorganize_data(cx: &mut Context<'_>, p: &spec::ReorganizeDataLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let block = size(p.block_size)?;
    let area = block.checked_mul(block).ok_or_else(|| invalid("the block size overflows"))?;
    let mode =
        ReorganizationType::try_from(p.mode).map_err(|_| invalid(format!("unknown mode {}", p.mode)))?;
    let word = int(block)?;
    cx.on_rank4(&x, |cx, x| {
        let divide = |n: Option<usize>, by: usize| match n {
            Some(n) if n % by != 0 => Err(invalid(format!("blocks of {block} in {}", x.words()))),
            n => Ok(n.map(|n| n / by)),
        };
        let times = |n: Option<usize>, by: usize| {
            n.map(|n| n.checked_mul(by).ok_or_else(|| invalid("the size overflows"))).transpose()
        };
        let [n, c, h, w] = x.dims[..] else { return Err(invalid("rank 4 is needed")) };
        let (kind, parameter, dims) = match mode {
            ReorganizationType::SpaceToDepth => {
                ("space_to_depth", "block_size", [times(c, area)?, divide(h, block)?, divide(w, block)?])
            }
            ReorganizationType::DepthToSpace => {
                ("depth_to_space", "block_size", [divide(c, area)?, times(h, block)?, times(w, block)?])
            }
            ReorganizationType::PixelShuffle => {
                ("pixel_shuffle", "upscale_factor", [divide(c, area)?, times(h, block)?, times(w, block)?])
            }
        };
        Ok(cx.op(kind, [("x", x.into()), (parameter, word.into())], [&[n], &dims[..]].concat()))
    })
}

fn expand_dims(cx: &mut Context<'_>, p: &spec::ExpandDimsLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let rank = x.rank() + p.axes.len();
    let mut axes = p.axes.iter().map(|&axis| axis_of(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    axes.sort_unstable();
    if axes.is_empty() || axes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(invalid(format!("the axes {:?}", p.axes)));
    }
    cx.expand(&x, &axes)
}

/// A blob of rank 1 or more: `x`, or if it is a scalar, the same as a list of one element.
pub(super) fn not_scalar(cx: &mut Context<'_>, x: Blob) -> Result<Blob, OpError> {
    if x.rank() == 0 { cx.expand(&x, &[0]) } else { Ok(x) }
}

fn squeeze(cx: &mut Context<'_>, p: &spec::SqueezeLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let mut axes: Vec<usize> = if p.squeeze_all {
        let kept: Vec<usize> = (0..x.rank()).filter(|&axis| x.dims[axis] != Some(1)).collect();
        // A dimension of unknown size is kept if it is the only one: were it 1 as well, one would be kept all the same.
        if kept.len() > 1 && kept.iter().any(|&axis| x.dims[axis].is_none()) {
            return Err(unsupported(format!("the removal of all dimensions of 1 from {}", x.words())));
        }
        (0..x.rank()).filter(|axis| !kept.contains(axis)).collect()
    } else {
        p.axes.iter().map(|&axis| x.axis(axis)).collect::<Result<_, _>>()?
    };
    axes.sort_unstable();
    axes.dedup();
    // A blob of rank 0 does not exist: what would be one is a list of one element.
    if axes.len() == x.rank() {
        axes.pop();
    }
    if axes.is_empty() { Ok(x) } else { cx.squeeze(&x, &axes) }
}

fn flatten_to_2d(cx: &mut Context<'_>, p: &spec::FlattenTo2DLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    // The axis may be the rank: everything is in front of it.
    let axis = if usize::try_from(p.axis) == Ok(x.rank()) { x.rank() } else { x.axis(p.axis)? };
    let product = |dims: &[Option<usize>]| {
        let dims: Option<Vec<_>> = dims.iter().copied().collect();
        dims.map(|dims| crate::types::element_count(&dims).ok_or_else(|| invalid("the size overflows")))
            .transpose()
    };
    let dims = match (product(&x.dims[..axis])?, product(&x.dims[axis..])?) {
        (Some(rows), _) => [Dim::Known(rows), Dim::Rest],
        (None, Some(cols)) => [Dim::Rest, Dim::Known(cols)],
        (None, None) => return Err(unsupported(format!("{} as two dimensions", x.words()))),
    };
    cx.reshape(&x, &dims)
}

fn reshape_static(cx: &mut Context<'_>, p: &spec::ReshapeStaticLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    reshape_to(cx, &x, &p.target_shape, false)
}

fn rank_preserving_reshape(
    cx: &mut Context<'_>,
    p: &spec::RankPreservingReshapeLayerParams,
) -> Result<Blob, OpError> {
    let x = cx.one()?;
    if p.target_shape.len() != x.rank() {
        return Err(invalid(format!("the target shape {:?} for {}", p.target_shape, x.words())));
    }
    reshape_to(cx, &x, &p.target_shape, true)
}

/// Reshapes; -1 is what is left, and 0 (if `zeros`) the dimension that the input has there.
fn reshape_to(cx: &mut Context<'_>, x: &Blob, target: &[i64], zeros: bool) -> Result<Blob, OpError> {
    let dims = target.iter().enumerate().map(|(axis, &n)| match n {
        -1 => Ok(Dim::Rest),
        0 if zeros => Ok(Dim::Of(x, axis)),
        n => size(n).map(Dim::Known),
    });
    let dims = dims.collect::<Result<Vec<_>, _>>()?;
    if dims.iter().filter(|dim| matches!(dim, Dim::Rest)).count() > 1 {
        return Err(invalid(format!("the target shape {target:?} has several -1")));
    }
    cx.reshape(x, &dims)
}

fn reshape_like(cx: &mut Context<'_>, _: &spec::ReshapeLikeLayerParams) -> Result<Blob, OpError> {
    let [x, like] = cx.exactly()?;
    let dims: Vec<_> = (0..like.rank()).map(|axis| Dim::Of(&like, axis)).collect();
    cx.reshape(&x, &dims)
}

fn reshape_dynamic(cx: &mut Context<'_>, _: &spec::ReshapeDynamicLayerParams) -> Result<Blob, OpError> {
    let [x, shape] = cx.exactly()?;
    if let Ok(shape) = cx.known_ints(&shape, "a shape") {
        let shape: Vec<i64> = shape.into_iter().map(i64::from).collect();
        return reshape_to(cx, &x, &shape, shape.len() == x.rank());
    }
    let (shape, dims) = shape_in(cx, shape)?;
    Ok(cx.op("reshape", [("x", (&x).into()), ("shape", shape)], dims))
}

/// The shape that is in a blob, and what is known of it: all of it, or how many dimensions there are.
pub(super) fn shape_in(cx: &mut Context<'_>, shape: Blob) -> Result<(Arg, Dims), OpError> {
    if let Ok(known) = cx.known_ints(&shape, "a shape") {
        let known = sizes(&known)?;
        return Ok((ints(&known)?.into(), known.into_iter().map(Some).collect()));
    }
    let shape = cx.at_most(shape, 1)?;
    match shape.dims[..] {
        [Some(rank)] if rank <= MAX_RANK => Ok((cx.integers(&shape).into(), vec![None; rank])),
        _ => Err(unsupported(format!("a shape of shape {}", shape.words()))),
    }
}
