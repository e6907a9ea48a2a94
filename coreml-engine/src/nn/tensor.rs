//! Layers that make, join, split, repeat and index blobs.

use coreml_proto::proto as spec;

use super::context::{
    Arg, Blob, Context, Dims, apart, broadcast, int, ints, invalid, size, sizes, unsupported,
};
use super::shape::shape_in;
use super::{LayerDef, weights};
use crate::error::OpError;
use crate::types::DType;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("broadcastToDynamic", BroadcastToDynamic, broadcast_to_dynamic),
    layer!("broadcastToLike", BroadcastToLike, broadcast_to_like),
    layer!("broadcastToStatic", BroadcastToStatic, broadcast_to_static),
    layer!("concat", Concat, concat),
    layer!("concatND", ConcatNd, concat_nd),
    layer!("cumSum", CumSum, cum_sum),
    layer!("dot", Dot, dot),
    layer!("fillDynamic", FillDynamic, fill_dynamic),
    layer!("fillLike", FillLike, fill_like),
    layer!("fillStatic", FillStatic, fill_static),
    layer!("gather", Gather, gather),
    layer!("gatherAlongAxis", GatherAlongAxis, gather_along_axis),
    layer!("gatherND", GatherNd, gather_nd),
    layer!("getShape", GetShape, get_shape),
    layer!("loadConstant", LoadConstant, load_constant),
    layer!("loadConstantND", LoadConstantNd, load_constant_nd),
    layer!("lowerTriangular", LowerTriangular, |cx, p| triangle(
        cx,
        [-1, p.k],
        [p.k.saturating_neg().saturating_sub(1), -1]
    )),
    layer!("matrixBandPart", MatrixBandPart, matrix_band_part),
    layer!("NonMaximumSuppression", NonMaximumSuppression, non_maximum_suppression),
    layer!("oneHot", OneHot, one_hot),
    layer!("rangeDynamic", RangeDynamic, range_dynamic),
    layer!("rangeStatic", RangeStatic, range_static),
    layer!("reverse", Reverse, reverse),
    layer!("reverseSeq", ReverseSeq, reverse_seq),
    layer!("scatter", Scatter, scatter),
    layer!("scatterAlongAxis", ScatterAlongAxis, scatter_along_axis),
    layer!("scatterND", ScatterNd, scatter_nd),
    layer!("sequenceRepeat", SequenceRepeat, sequence_repeat),
    layer!("slidingWindows", SlidingWindows, sliding_windows),
    layer!("split", Split, |cx, p| split_evenly(cx, -3, p.n_outputs)),
    layer!("splitND", SplitNd, split_nd),
    layer!("stack", Stack, stack),
    layer!("tile", Tile, tile),
    layer!("upperTriangular", UpperTriangular, |cx, p| triangle(
        cx,
        [p.k.saturating_neg(), -1],
        [-1, p.k.saturating_sub(1)]
    )),
    layer!("whereNonZero", WhereNonZero, where_non_zero),
];

fn overflow() -> OpError {
    invalid("the size overflows")
}

fn load_constant(cx: &mut Context<'_>, p: &spec::LoadConstantLayerParams) -> Result<Blob, OpError> {
    cx.count(0..=0)?;
    let shape = sizes(&p.shape)?;
    if shape.len() != 3 {
        return Err(invalid(format!("the shape {shape:?}, expected three dimensions")));
    }
    let data = weights::floats("data", p.data.as_ref(), &shape)?;
    cx.constant(&[&[1, 1], &shape[..]].concat(), data)
}

fn load_constant_nd(cx: &mut Context<'_>, p: &spec::LoadConstantNdLayerParams) -> Result<Blob, OpError> {
    cx.count(0..=0)?;
    let shape = sizes(&p.shape)?;
    let data = weights::floats("data", p.data.as_ref(), &shape)?;
    cx.constant(&shape, data)
}

fn concat(cx: &mut Context<'_>, p: &spec::ConcatLayerParams) -> Result<Blob, OpError> {
    let axis = cx.first()?.axis(if p.sequence_concat { -5 } else { -3 })?;
    cx.concat(&cx.inputs.clone(), axis, false)
}

/// The format demands inputs of one rank.
fn concat_nd(cx: &mut Context<'_>, p: &spec::ConcatNdLayerParams) -> Result<Blob, OpError> {
    let inputs = cx.inputs.clone();
    let rank = inputs.iter().map(Blob::rank).min().unwrap_or(0);
    let inputs = inputs.into_iter().map(|blob| cx.at_most(blob, rank)).collect::<Result<Vec<_>, _>>()?;
    let axis = super::context::axis_of(p.axis, rank)?;
    cx.concat(&inputs, axis, p.interleave)
}

fn stack(cx: &mut Context<'_>, p: &spec::StackLayerParams) -> Result<Blob, OpError> {
    let first = cx.first()?;
    let inputs = cx.inputs.clone();
    let rank = first.rank();
    let axis = super::context::axis_of(p.axis, rank + 1)?;
    let mut dims = first.dims.clone();
    for other in &inputs[1..] {
        if other.rank() != rank
            || dims.iter().zip(&other.dims).any(|(a, b)| a.zip(*b).is_some_and(|(a, b)| a != b))
        {
            return Err(apart(format!("{} and {} cannot be stacked", first.words(), other.words())));
        }
        dims.iter_mut().zip(&other.dims).for_each(|(dim, other)| *dim = dim.or(*other));
    }
    dims.insert(axis, Some(inputs.len()));
    Ok(cx.op("stack", [("values", inputs[..].into()), ("axis", int(axis)?.into())], dims))
}

fn split_evenly(cx: &mut Context<'_>, axis: i64, count: u64) -> Result<Vec<Blob>, OpError> {
    let x = cx.one()?;
    let axis = x.axis(axis)?;
    let count = size(count)?;
    if count != cx.outputs {
        return Err(invalid(format!("{count} parts and {} outputs", cx.outputs)));
    }
    let part = match x.dims[axis] {
        Some(n) if n % count != 0 => return Err(invalid(format!("{} in {count} parts", x.words()))),
        n => n.map(|n| n / count),
    };
    let mut dims = x.dims.clone();
    dims[axis] = part;
    let arguments = [("x", (&x).into()), ("num_splits", int(count)?.into()), ("axis", int(axis)?.into())];
    Ok(cx.ops("split", arguments, vec![(DType::F32, dims); count]))
}

fn split_nd(cx: &mut Context<'_>, p: &spec::SplitNdLayerParams) -> Result<Vec<Blob>, OpError> {
    let x = cx.one()?;
    let axis = x.axis(p.axis)?;
    let parts = match (&p.split_sizes[..], x.dims[axis]) {
        // As `numpy.array_split`: the first parts are longer by one where the parts cannot be equal.
        ([], Some(n)) => {
            let count = size(p.num_splits)?;
            if count != cx.outputs {
                return Err(invalid(format!("{count} parts and {} outputs", cx.outputs)));
            }
            if count > n {
                return Err(invalid(format!("{} in {count} parts", x.words())));
            }
            (0..count).map(|i| n / count + usize::from(i < n % count)).collect()
        }
        ([], None) => return split_evenly(cx, p.axis, p.num_splits),
        (parts, _) => sizes(parts)?,
    };
    if parts.len() != cx.outputs {
        return Err(invalid(format!("{} parts and {} outputs", parts.len(), cx.outputs)));
    }
    let sum = parts.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n)).ok_or_else(overflow)?;
    if x.dims[axis].is_some_and(|n| n != sum) {
        return Err(invalid(format!("{} in parts of {parts:?}", x.words())));
    }
    let outputs = parts.iter().map(|&n| {
        let mut dims = x.dims.clone();
        dims[axis] = Some(n);
        (DType::F32, dims)
    });
    let outputs = outputs.collect();
    let arguments = [("x", (&x).into()), ("split_sizes", ints(&parts)?.into()), ("axis", int(axis)?.into())];
    Ok(cx.ops("split", arguments, outputs))
}

/// Repeats each dimension as often as `reps` says.
fn repeat(cx: &mut Context<'_>, x: &Blob, reps: &[usize]) -> Result<Blob, OpError> {
    let times = |(&dim, &n): (&Option<usize>, &usize)| {
        dim.map(|dim| dim.checked_mul(n).ok_or_else(overflow)).transpose()
    };
    let dims = x.dims.iter().zip(reps).map(times).collect::<Result<Dims, _>>()?;
    Ok(cx.op("tile", [("x", x.into()), ("reps", ints(reps)?.into())], dims))
}

fn tile(cx: &mut Context<'_>, p: &spec::TileLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    let x = cx.inputs[0].clone();
    let reps = match cx.inputs.get(1).cloned() {
        None => sizes(&p.reps)?,
        Some(input) => match cx.known_ints(&input, "repetitions") {
            Ok(reps) => sizes(&reps)?,
            Err(_) => {
                let input = cx.at_most(input, 1)?;
                let Some(missing) = (match input.fixed().as_deref() {
                    Some(&[count]) if count > 0 => x.rank().checked_sub(count),
                    _ => None,
                }) else {
                    return Err(invalid(format!("repetitions of shape {} for {}", input.words(), x.words())));
                };
                // As in NumPy, the repetitions are those of the last dimensions.
                let input = if missing == 0 {
                    input
                } else {
                    let once = cx.constant(&[missing], vec![1.0; missing])?;
                    cx.concat(&[once, input], 0, false)?
                };
                let reps = cx.integers(&input);
                return Ok(cx.op("tile", [("x", (&x).into()), ("reps", reps.into())], vec![None; x.rank()]));
            }
        },
    };
    if reps.is_empty() || reps.len() > x.rank() {
        return Err(invalid(format!("the repetitions {reps:?} of {}", x.words())));
    }
    let mut all = vec![1; x.rank() - reps.len()];
    all.extend(reps);
    repeat(cx, &x, &all)
}

fn sequence_repeat(cx: &mut Context<'_>, p: &spec::SequenceRepeatLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axis = x.axis(-5)?;
    let count = size(p.n_repetitions.max(1))?;
    let reps: Vec<_> = (0..x.rank()).map(|i| if i == axis { count } else { 1 }).collect();
    repeat(cx, &x, &reps)
}

fn gather(cx: &mut Context<'_>, p: &spec::GatherLayerParams) -> Result<Blob, OpError> {
    let [x, indices] = cx.exactly()?;
    let axis = x.axis(p.axis)?;
    let dims = [&x.dims[..axis], &indices.dims[..], &x.dims[axis + 1..]].concat();
    let indices = cx.integers(&indices);
    Ok(cx.op("gather", [("x", (&x).into()), ("indices", indices.into()), ("axis", int(axis)?.into())], dims))
}

fn gather_nd(cx: &mut Context<'_>, _: &spec::GatherNdLayerParams) -> Result<Blob, OpError> {
    let [x, indices] = cx.exactly()?;
    let depth = index_depth(&x, &indices)?;
    let dims = [&indices.dims[..indices.rank() - 1], &x.dims[depth..]].concat();
    let indices = cx.integers(&indices);
    let y = cx.op("gather_nd", [("x", (&x).into()), ("indices", indices.into())], dims);
    super::shape::not_scalar(cx, y)
}

/// How many leading dimensions the last dimension of `indices` names.
fn index_depth(x: &Blob, indices: &Blob) -> Result<usize, OpError> {
    match indices.dims.last() {
        Some(&Some(depth)) if depth <= x.rank() => Ok(depth),
        _ => Err(invalid(format!("indices of shape {} into {}", indices.words(), x.words()))),
    }
}

fn gather_along_axis(cx: &mut Context<'_>, p: &spec::GatherAlongAxisLayerParams) -> Result<Blob, OpError> {
    let [x, indices] = cx.exactly()?;
    let axis = x.axis(p.axis)?;
    if indices.rank() != x.rank() {
        return Err(invalid(format!("indices of shape {} into {}", indices.words(), x.words())));
    }
    let dims = indices.dims.clone();
    let indices = cx.integers(&indices);
    let arguments = [("x", (&x).into()), ("indices", indices.into()), ("axis", int(axis)?.into())];
    Ok(cx.op("gather_along_axis", arguments, dims))
}

fn scatter_mode(mode: i32) -> Result<&'static str, OpError> {
    use spec::ScatterMode as M;
    Ok(match M::try_from(mode) {
        Ok(M::ScatterUpdate) => "update",
        Ok(M::ScatterAdd) => "add",
        Ok(M::ScatterSub) => "sub",
        Ok(M::ScatterMul) => "mul",
        Ok(M::ScatterDiv) => "div",
        Ok(M::ScatterMax) => "max",
        Ok(M::ScatterMin) => "min",
        Err(_) => return Err(invalid(format!("unknown mode {mode}"))),
    })
}

fn scatter_op(cx: &mut Context<'_>, kind: &str, axis: Option<i64>, mode: i32) -> Result<Blob, OpError> {
    let [container, indices, updates] = cx.exactly()?;
    let indices = cx.integers(&indices);
    let mut arguments: Vec<(&str, Arg)> = vec![
        ("data", (&container).into()),
        ("indices", indices.into()),
        ("updates", (&updates).into()),
        ("mode", scatter_mode(mode)?.into()),
    ];
    if let Some(axis) = axis {
        arguments.push(("axis", int(container.axis(axis)?)?.into()));
    }
    Ok(cx.op(kind, arguments, container.dims))
}

fn scatter(cx: &mut Context<'_>, p: &spec::ScatterLayerParams) -> Result<Blob, OpError> {
    scatter_op(cx, "scatter", Some(p.axis), p.mode)
}

fn scatter_along_axis(cx: &mut Context<'_>, p: &spec::ScatterAlongAxisLayerParams) -> Result<Blob, OpError> {
    scatter_op(cx, "scatter_along_axis", Some(p.axis), p.mode)
}

fn scatter_nd(cx: &mut Context<'_>, p: &spec::ScatterNdLayerParams) -> Result<Blob, OpError> {
    scatter_op(cx, "scatter_nd", None, p.mode)
}

fn reverse(cx: &mut Context<'_>, p: &spec::ReverseLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    if p.reverse_dim.len() != x.rank() {
        return Err(invalid(format!("{} flags for {}", p.reverse_dim.len(), x.words())));
    }
    let axes: Vec<usize> = (0..x.rank()).filter(|&axis| p.reverse_dim[axis]).collect();
    if axes.is_empty() {
        return Ok(x);
    }
    Ok(cx.op("reverse", [("x", (&x).into()), ("axes", ints(&axes)?.into())], x.dims.clone()))
}

fn reverse_seq(cx: &mut Context<'_>, p: &spec::ReverseSeqLayerParams) -> Result<Blob, OpError> {
    let [x, lengths] = cx.exactly()?;
    let (sequence, batch) = (int(x.axis(p.sequence_axis)?)?, int(x.axis(p.batch_axis)?)?);
    let lengths = cx.integers(&lengths);
    let arguments = [
        ("x", (&x).into()),
        ("lengths", lengths.into()),
        ("seq_axis", sequence.into()),
        ("batch_axis", batch.into()),
    ];
    Ok(cx.op("reverse_sequence", arguments, x.dims.clone()))
}

fn sliding_windows(cx: &mut Context<'_>, p: &spec::SlidingWindowsLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axis = x.axis(p.axis)?;
    let (window, step) = (size(p.window_size)?, size(p.step)?);
    let count = match x.dims[axis] {
        None => None,
        Some(n) => {
            let rest = n.checked_sub(window);
            Some(rest.ok_or_else(|| invalid(format!("windows of {window} in {}", x.words())))? / step + 1)
        }
    };
    let dims = [&x.dims[..axis], &[count, Some(window)], &x.dims[axis + 1..]].concat();
    let arguments = [
        ("x", (&x).into()),
        ("axis", int(axis)?.into()),
        ("size", int(window)?.into()),
        ("stride", int(step)?.into()),
    ];
    Ok(cx.op("sliding_windows", arguments, dims))
}

fn cum_sum(cx: &mut Context<'_>, p: &spec::CumSumLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    let x = cx.inputs[0].clone();
    let axis = match cx.inputs.get(1) {
        None => p.axis,
        Some(input) => match cx.known_ints(input, "an axis")?[..] {
            [axis] => axis.into(),
            _ => return Err(invalid(format!("an axis of shape {}", input.words()))),
        },
    };
    let arguments = [
        ("x", (&x).into()),
        ("axis", int(x.axis(axis)?)?.into()),
        ("exclusive", p.exclude_final_sum.into()),
        ("reverse", p.reverse.into()),
    ];
    Ok(cx.op("cumsum", arguments, x.dims.clone()))
}

fn one_hot(cx: &mut Context<'_>, p: &spec::OneHotLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    let indices = cx.inputs[0].clone();
    let (length, known): (Arg, _) = match cx.inputs.get(1).cloned() {
        None => (int(p.one_hot_vector_size)?.into(), Some(size(p.one_hot_vector_size)?)),
        Some(input) => match cx.known_ints(&input, "a vector size").as_deref() {
            Ok(&[n]) => (n.into(), Some(size(n)?)),
            Err(_) if input.fixed().is_some_and(|shape| shape.iter().product::<usize>() == 1) => {
                (cx.integers(&input).into(), None)
            }
            _ => return Err(invalid(format!("a vector size of shape {}", input.words()))),
        },
    };
    let axis = super::context::axis_of(p.axis, indices.rank() + 1)?;
    let mut dims = indices.dims.clone();
    dims.insert(axis, known);
    let indices = cx.integers(&indices);
    let arguments = [
        ("indices", indices.into()),
        ("one_hot_vector_size", length),
        ("axis", int(axis)?.into()),
        ("on_value", p.on_value.into()),
        ("off_value", p.off_value.into()),
    ];
    Ok(cx.op("one_hot", arguments, dims))
}

fn range(cx: &mut Context<'_>, end: Arg, start: Arg, step: Arg) -> Blob {
    cx.op("range_1d", [("end", end), ("start", start), ("step", step)], vec![None])
}

fn range_static(cx: &mut Context<'_>, p: &spec::RangeStaticLayerParams) -> Result<Blob, OpError> {
    cx.count(0..=0)?;
    Ok(range(cx, p.end_value.into(), p.start_value.into(), p.step_size_value.into()))
}

fn range_dynamic(cx: &mut Context<'_>, p: &spec::RangeDynamicLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=3)?;
    let mut scalars = Vec::new();
    for input in cx.inputs.clone() {
        // A scalar, or a list of one element.
        scalars.push(if input.rank() == 0 {
            input
        } else {
            cx.squeeze(&input, &(0..input.rank()).collect::<Vec<_>>())?
        });
    }
    let start = scalars.get(1).map_or(p.start_value.into(), Arg::from);
    let step = scalars.get(2).map_or(p.step_size_value.into(), Arg::from);
    Ok(range(cx, (&scalars[0]).into(), start, step))
}

fn fill(cx: &mut Context<'_>, shape: Arg, dims: Dims, value: f32) -> Blob {
    cx.op("fill", [("shape", shape), ("value", value.into())], dims)
}

fn fill_like(cx: &mut Context<'_>, p: &spec::FillLikeLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let shape = cx.shape(&x);
    Ok(fill(cx, shape.into(), x.dims, p.value))
}

fn fill_static(cx: &mut Context<'_>, p: &spec::FillStaticLayerParams) -> Result<Blob, OpError> {
    cx.count(0..=0)?;
    let shape = sizes(&p.target_shape)?;
    Ok(fill(cx, ints(&shape)?.into(), shape.into_iter().map(Some).collect(), p.value))
}

fn fill_dynamic(cx: &mut Context<'_>, p: &spec::FillDynamicLayerParams) -> Result<Blob, OpError> {
    let shape = cx.one()?;
    let (shape, dims) = shape_in(cx, shape)?;
    Ok(fill(cx, shape, dims, p.value))
}

/// `x` broadcast to a shape: `x` times ones of that shape.
fn broadcast_to(cx: &mut Context<'_>, x: &Blob, shape: Arg, dims: Dims) -> Result<Blob, OpError> {
    let together = broadcast(&x.dims, &dims)?;
    if together.len() != dims.len() || together.iter().zip(&dims).any(|(a, b)| b.is_some() && a != b) {
        return Err(invalid(format!("{} broadcast to {dims:?}", x.words())));
    }
    let ones = fill(cx, shape, dims, 1.0);
    Ok(cx.op("mul", [("x", x.into()), ("y", (&ones).into())], ones.dims.clone()))
}

fn broadcast_to_like(cx: &mut Context<'_>, _: &spec::BroadcastToLikeLayerParams) -> Result<Blob, OpError> {
    let [x, like] = cx.exactly()?;
    let shape = cx.shape(&like);
    broadcast_to(cx, &x, shape.into(), like.dims)
}

fn broadcast_to_static(
    cx: &mut Context<'_>,
    p: &spec::BroadcastToStaticLayerParams,
) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let shape = sizes(&p.target_shape)?;
    broadcast_to(cx, &x, ints(&shape)?.into(), shape.into_iter().map(Some).collect())
}

fn broadcast_to_dynamic(
    cx: &mut Context<'_>,
    _: &spec::BroadcastToDynamicLayerParams,
) -> Result<Blob, OpError> {
    let [x, shape] = cx.exactly()?;
    let (shape, dims) = shape_in(cx, shape)?;
    broadcast_to(cx, &x, shape, dims)
}

fn get_shape(cx: &mut Context<'_>, _: &spec::GetShapeLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let shape = cx.shape(&x);
    Ok(cx.floats_of(shape, DType::I32, vec![Some(x.rank())]))
}

fn where_non_zero(cx: &mut Context<'_>, _: &spec::WhereNonZeroLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let rank = x.rank();
    Ok(cx.discrete("non_zero", [("x", (&x).into())], DType::I32, vec![None, Some(rank)]))
}

fn matrix_band_part(cx: &mut Context<'_>, p: &spec::MatrixBandPartLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(2)?;
    let arguments =
        [("x", (&x).into()), ("lower", int(p.num_lower)?.into()), ("upper", int(p.num_upper)?.into())];
    Ok(cx.op("band_part", arguments, x.dims.clone()))
}

/// The elements of each matrix within the band `[lower, upper]`, or if that is not one (a negative number would mean no
/// bound), those outside of the band `others`; zeros elsewhere.
fn triangle(cx: &mut Context<'_>, band: [i64; 2], others: [i64; 2]) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(2)?;
    let part = |cx: &mut Context<'_>, x: &Blob, [lower, upper]: [i64; 2]| {
        let arguments = [("x", x.into()), ("lower", int(lower)?.into()), ("upper", int(upper)?.into())];
        Ok::<_, OpError>(cx.op("band_part", arguments, x.dims.clone()))
    };
    // Of the two numbers one is -1, for no bound, and the other the bound.
    if band.into_iter().any(|bound| bound >= 0) {
        return part(cx, &x, band);
    }
    let shape = cx.shape(&x);
    let ones = fill(cx, shape.into(), x.dims.clone(), 1.0);
    let outside = part(cx, &ones, others)?;
    let outside = cx.booleans(&outside);
    Ok(cx.op("select", [("cond", outside.into()), ("a", 0.0.into()), ("b", (&x).into())], x.dims.clone()))
}

/// The product of vectors of channels, or the cosine of the angle between them.
fn dot(cx: &mut Context<'_>, p: &spec::DotProductLayerParams) -> Result<Blob, OpError> {
    let [x, y] = cx.exactly()?;
    x.at_least(3)?;
    let product = cx.binary("mul", &x, &y)?;
    let axis = product.axis(-3)?;
    let sum = cx.reduce("reduce_sum", &product, &[axis], true)?;
    if !p.cosine_similarity {
        return Ok(sum);
    }
    let x_norm = cx.reduce("reduce_l2_norm", &x, &[x.axis(-3)?], true)?;
    let y_norm = cx.reduce("reduce_l2_norm", &y, &[y.axis(-3)?], true)?;
    let norms = cx.binary("mul", &x_norm, &y_norm)?;
    cx.binary("real_div", &sum, &norms)
}

fn non_maximum_suppression(
    cx: &mut Context<'_>,
    p: &spec::NonMaximumSuppressionLayerParams,
) -> Result<Vec<Blob>, OpError> {
    cx.count(2..=5)?;
    let inputs = cx.inputs.clone();
    let (&[batch, _, _], &[_, _, classes]) = (&inputs[0].dims[..], &inputs[1].dims[..]) else {
        return Err(invalid(format!("{} and {}, expected rank 3", inputs[0].words(), inputs[1].words())));
    };
    let known = |input: usize, own: f32| match inputs.get(input) {
        None => Ok(own),
        Some(blob) => match cx.constant_of(blob).as_deref() {
            Some(&[x]) => Ok(x),
            Some(_) => Err(invalid(format!("a threshold of shape {}", blob.words()))),
            None => Err(unsupported("a threshold that the network computes")),
        },
    };
    let (iou, score) = (known(2, p.iou_threshold)?, known(3, p.score_threshold)?);
    let most = size(known(4, int(p.max_boxes)? as f32)? as i64)?;
    let arguments = [
        ("boxes", (&inputs[0]).into()),
        ("scores", (&inputs[1]).into()),
        ("iou_threshold", iou.into()),
        ("score_threshold", score.into()),
        ("max_boxes", int(most)?.into()),
        ("per_class_suppression", p.per_class_suppression.into()),
    ];
    let most = Some(most);
    let outputs = vec![
        (DType::F32, vec![batch, most, Some(4)]),
        (DType::F32, vec![batch, most, classes]),
        (DType::I32, vec![batch, most]),
        (DType::I32, vec![batch]),
    ];
    Ok(cx.ops("non_maximum_suppression", arguments, outputs))
}
