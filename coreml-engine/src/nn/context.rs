//! What the lowering of one layer works with: the layer's blobs, and ops to make new ones.

use std::sync::Arc;

use rten_tensor::Tensor;

use crate::error::OpError;
use crate::ir::{Argument, Constant, Function, Op, Type, ValueId};
use crate::ops::integers::{INTEGERS, integer};
use crate::types::{DType, TensorType, element_count};
use crate::value::Value;

/// Dimensions as far as they are known at load; the rank always is.
pub(super) type Dims = Vec<Option<usize>>;

/// Most dimensions of a blob. Core ML's networks have five; some layers add one.
pub(super) const MAX_RANK: usize = 8;

/// A tensor of a network. Between layers all are floats.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) id: ValueId,
    pub(super) dims: Dims,
    /// The integers or booleans that this blob is the floats of, so that a layer that wants integers need not convert back.
    source: Option<(ValueId, DType)>,
}

impl Blob {
    pub(super) fn new(id: ValueId, dims: Dims) -> Self {
        Self { id, dims, source: None }
    }

    pub(super) fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The shape, if all of it is known.
    pub(super) fn fixed(&self) -> Option<Vec<usize>> {
        self.dims.iter().copied().collect()
    }

    /// An axis of this blob as an index.
    pub(super) fn axis(&self, axis: i64) -> Result<usize, OpError> {
        axis_of(axis, self.rank())
    }

    /// An error if the rank is less than `least`.
    pub(super) fn at_least(&self, least: usize) -> Result<(), OpError> {
        if self.rank() < least {
            return Err(invalid(format!("rank {least} or more is needed, found {}", self.words())));
        }
        Ok(())
    }

    /// The shape in words.
    pub(super) fn words(&self) -> String {
        TensorType { dtype: DType::F32, shape: Some(self.dims.clone()) }.to_string()
    }
}

impl From<Blob> for Vec<Blob> {
    fn from(blob: Blob) -> Self {
        vec![blob]
    }
}

/// `axis` in `-rank..rank` as an index.
pub(super) fn axis_of(axis: i64, rank: usize) -> Result<usize, OpError> {
    let signed =
        i64::try_from(rank).ok().and_then(|rank| if axis < 0 { axis.checked_add(rank) } else { Some(axis) });
    signed
        .and_then(|axis| usize::try_from(axis).ok())
        .filter(|&axis| axis < rank)
        .ok_or_else(|| invalid(format!("axis {axis} of a blob of rank {rank}")))
}

/// Shapes of blobs that do not go together.
pub(super) fn apart(text: impl Into<String>) -> OpError {
    OpError::Shapes(text.into())
}

pub(super) fn invalid(text: impl Into<String>) -> OpError {
    OpError::Invalid(text.into())
}

pub(super) fn unsupported(text: impl Into<String>) -> OpError {
    OpError::Unsupported(text.into())
}

/// A number of the file as the 32-bit integer that ops take.
pub(super) fn int(x: impl TryInto<i32> + Copy + std::fmt::Display) -> Result<i32, OpError> {
    x.try_into().map_err(|_| invalid(format!("{x} does not fit 32 bits")))
}

/// Numbers of the file as the 32-bit integers that ops take.
pub(super) fn ints<T: TryInto<i32> + Copy + std::fmt::Display>(values: &[T]) -> Result<Vec<i32>, OpError> {
    values.iter().map(|&x| int(x)).collect()
}

/// A size of the file; must be positive.
pub(super) fn size(x: impl TryInto<usize> + Copy + std::fmt::Display) -> Result<usize, OpError> {
    x.try_into()
        .ok()
        .filter(|&x| x > 0)
        .ok_or_else(|| invalid(format!("{x} where a positive size is expected")))
}

/// Sizes of the file; must be positive.
pub(super) fn sizes<T: TryInto<usize> + Copy + std::fmt::Display>(
    values: &[T],
) -> Result<Vec<usize>, OpError> {
    values.iter().map(|&x| size(x)).collect()
}

/// The shape of two blobs broadcast together, as NumPy does.
pub(super) fn broadcast(a: &[Option<usize>], b: &[Option<usize>]) -> Result<Dims, OpError> {
    let rank = a.len().max(b.len());
    let at = |dims: &[Option<usize>], i: usize| match (i + dims.len()).checked_sub(rank) {
        Some(i) => dims[i],
        None => Some(1),
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (Some(1), other) | (other, Some(1)) => Ok(other),
            (Some(x), Some(y)) if x != y => Err(apart(format!("shapes {a:?} and {b:?} do not go together"))),
            (Some(x), _) | (_, Some(x)) => Ok(Some(x)),
            (None, None) => Ok(None),
        })
        .collect()
}

/// An argument of an op.
pub(super) enum Arg {
    Id(ValueId),
    Ids(Vec<ValueId>),
    Constant(Constant),
}

impl From<&Blob> for Arg {
    fn from(blob: &Blob) -> Self {
        Self::Id(blob.id)
    }
}

impl From<&[Blob]> for Arg {
    fn from(blobs: &[Blob]) -> Self {
        Self::Ids(blobs.iter().map(|blob| blob.id).collect())
    }
}

impl From<ValueId> for Arg {
    fn from(id: ValueId) -> Self {
        Self::Id(id)
    }
}

impl From<Constant> for Arg {
    fn from(constant: Constant) -> Self {
        Self::Constant(constant)
    }
}

impl From<f32> for Arg {
    fn from(x: f32) -> Self {
        Self::Constant(Constant::scalar(x))
    }
}

impl From<i32> for Arg {
    fn from(x: i32) -> Self {
        Self::Constant(Constant::int(x))
    }
}

impl From<bool> for Arg {
    fn from(x: bool) -> Self {
        Self::Constant(Constant::bool(x))
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Constant(Constant::string(text))
    }
}

impl From<Vec<i32>> for Arg {
    fn from(values: Vec<i32>) -> Self {
        Self::Constant(list(DType::I32, values))
    }
}

impl From<Vec<bool>> for Arg {
    fn from(values: Vec<bool>) -> Self {
        Self::Constant(list(DType::Bool, values.into_iter().map(i32::from).collect()))
    }
}

fn list(dtype: DType, values: Vec<i32>) -> Constant {
    Constant::from_value(dtype, Value::I32(Tensor::from_data(&[values.len()], values)))
}

/// One dimension of a shape to come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dim<'b> {
    Known(usize),
    /// That dimension of that blob, whatever it turns out to be.
    Of(&'b Blob, usize),
    /// What is left; at most once in a shape.
    Rest,
}

/// The layer that is being lowered.
pub(super) struct Context<'a> {
    pub(super) function: &'a mut Function,
    /// Of the layer's first output; every value that the layer makes bears it, for error texts.
    pub(super) name: Arc<str>,
    pub(super) inputs: Vec<Blob>,
    /// How many outputs the layer names.
    pub(super) outputs: usize,
}

impl Context<'_> {
    /// The layer's only input.
    pub(super) fn one(&self) -> Result<Blob, OpError> {
        self.exactly::<1>().map(|[x]| x)
    }

    /// The layer's inputs, which must be that many.
    pub(super) fn exactly<const N: usize>(&self) -> Result<[Blob; N], OpError> {
        self.inputs
            .clone()
            .try_into()
            .map_err(|_| invalid(format!("{} inputs, expected {N}", self.inputs.len())))
    }

    /// An error if the layer does not have a number of inputs in `range`.
    pub(super) fn count(&self, range: std::ops::RangeInclusive<usize>) -> Result<(), OpError> {
        if !range.contains(&self.inputs.len()) {
            return Err(invalid(format!("{} inputs, expected {range:?}", self.inputs.len())));
        }
        Ok(())
    }

    /// The first of the layer's inputs, of which there may be any number but none.
    pub(super) fn first(&self) -> Result<Blob, OpError> {
        self.inputs.first().cloned().ok_or_else(|| invalid("no inputs"))
    }

    /// Adds an op that makes values which are there already.
    pub(super) fn push(
        &mut self,
        kind: &str,
        arguments: impl IntoIterator<Item = (&'static str, Arg)>,
        outputs: Vec<ValueId>,
    ) {
        let mut args = Vec::new();
        for (name, argument) in arguments {
            let argument = match argument {
                Arg::Id(id) => Argument::One(id),
                Arg::Ids(ids) => Argument::Many(ids),
                Arg::Constant(constant) => Argument::One(self.function.new_constant(name, constant)),
            };
            args.push((Arc::from(name), argument));
        }
        self.function.body.ops.push(Op { kind: kind.into(), arguments: args, outputs, blocks: Vec::new() });
    }

    fn value(&mut self, dtype: DType, dims: Dims) -> ValueId {
        let ty = Type::Tensor(TensorType { dtype, shape: Some(dims) });
        self.function.new_value(Arc::clone(&self.name), ty)
    }

    /// Adds an op of several outputs, in the types given.
    pub(super) fn ops(
        &mut self,
        kind: &str,
        arguments: impl IntoIterator<Item = (&'static str, Arg)>,
        outputs: Vec<(DType, Dims)>,
    ) -> Vec<Blob> {
        let ids: Vec<_> = outputs.iter().map(|(dtype, dims)| self.value(*dtype, dims.clone())).collect();
        self.push(kind, arguments, ids.clone());
        let blobs = ids.into_iter().zip(outputs);
        let blobs =
            blobs.map(
                |(id, (dtype, dims))| {
                    if dtype.is_float() { Blob::new(id, dims) } else { self.floats_of(id, dtype, dims) }
                },
            );
        blobs.collect()
    }

    /// Adds an op that makes one value.
    pub(super) fn op1(
        &mut self,
        kind: &str,
        arguments: impl IntoIterator<Item = (&'static str, Arg)>,
        dtype: DType,
        dims: Dims,
    ) -> ValueId {
        let id = self.value(dtype, dims);
        self.push(kind, arguments, vec![id]);
        id
    }

    /// Adds an op that makes floats.
    pub(super) fn op(
        &mut self,
        kind: &str,
        arguments: impl IntoIterator<Item = (&'static str, Arg)>,
        dims: Dims,
    ) -> Blob {
        let id = self.op1(kind, arguments, DType::F32, dims.clone());
        Blob::new(id, dims)
    }

    /// Adds an op that makes integers or booleans, and converts them to floats.
    pub(super) fn discrete(
        &mut self,
        kind: &str,
        arguments: impl IntoIterator<Item = (&'static str, Arg)>,
        dtype: DType,
        dims: Dims,
    ) -> Blob {
        let id = self.op1(kind, arguments, dtype, dims.clone());
        self.floats_of(id, dtype, dims)
    }

    /// Integers or booleans as a blob.
    pub(super) fn floats_of(&mut self, id: ValueId, dtype: DType, dims: Dims) -> Blob {
        let mut blob = self.op("cast", [("x", id.into()), ("dtype", "fp32".into())], dims);
        blob.source = Some((id, dtype));
        blob
    }

    /// A blob as integers (towards zero). What is none, NaN first of all, fails the prediction: it would index something wrong.
    pub(super) fn integers(&mut self, x: &Blob) -> ValueId {
        match x.source {
            Some((id, DType::I32)) => id,
            _ => self.op1(INTEGERS.name, [("x", x.into())], DType::I32, x.dims.clone()),
        }
    }

    /// As [`Context::integers`], for the bounds of a slice: one beyond 32 bits means the end, as converters write it.
    pub(super) fn bounds(&mut self, x: &Blob) -> ValueId {
        if let Some((id, DType::I32)) = x.source {
            return id;
        }
        // The greatest float below 2^31. Clipping keeps NaN.
        let arguments =
            [("x", x.into()), ("alpha", (i32::MIN as f32).into()), ("beta", 2_147_483_520.0.into())];
        let x = self.op("clip", arguments, x.dims.clone());
        self.integers(&x)
    }

    /// A blob as booleans: whether it is not 0.
    pub(super) fn booleans(&mut self, x: &Blob) -> ValueId {
        match x.source {
            Some((id, DType::Bool)) => id,
            _ => self.op1("not_equal", [("x", x.into()), ("y", 0.0.into())], DType::Bool, x.dims.clone()),
        }
    }

    /// What a blob holds, if it is a constant of the network.
    pub(super) fn constant_of(&self, x: &Blob) -> Option<Vec<f32>> {
        self.function.value(x.id).constant.as_ref()?.to_f32().ok()
    }

    /// The constant integers of a blob that must be known at load.
    pub(super) fn known_ints(&self, x: &Blob, what: &str) -> Result<Vec<i32>, OpError> {
        let values =
            self.constant_of(x).ok_or_else(|| unsupported(format!("{what} that the network computes")))?;
        let wrong = |why| invalid(format!("{what} that is {why}"));
        values.into_iter().map(|x| integer(x).map_err(wrong)).collect()
    }

    /// As [`Context::known_ints`], for the bounds of a slice.
    pub(super) fn known_bounds(&self, x: &Blob) -> Result<Vec<i32>, OpError> {
        let values = self.constant_of(x).ok_or_else(|| unsupported("a bound that the network computes"))?;
        if values.iter().any(|x| x.is_nan()) {
            return Err(invalid("a bound that is NaN"));
        }
        Ok(values.into_iter().map(|x| x as i32).collect())
    }

    /// A constant blob.
    pub(super) fn constant(&mut self, shape: &[usize], data: Vec<f32>) -> Result<Blob, OpError> {
        let constant = Constant::f32(shape, data).map_err(OpError::Invalid)?;
        let id = self.function.new_constant(Arc::clone(&self.name), constant);
        Ok(Blob::new(id, shape.iter().copied().map(Some).collect()))
    }

    /// A scalar blob.
    pub(super) fn scalar(&mut self, x: f32) -> Blob {
        let id = self.function.new_constant(Arc::clone(&self.name), Constant::scalar(x));
        Blob::new(id, Vec::new())
    }

    /// An op of one argument `x` that keeps the shape.
    pub(super) fn unary(&mut self, kind: &str, x: &Blob) -> Blob {
        self.op(kind, [("x", x.into())], x.dims.clone())
    }

    /// An op of `x` and `y`, broadcast.
    pub(super) fn binary(&mut self, kind: &str, x: &Blob, y: &Blob) -> Result<Blob, OpError> {
        let dims = broadcast(&x.dims, &y.dims)?;
        Ok(self.op(kind, [("x", x.into()), ("y", y.into())], dims))
    }

    /// An op of `x` and a number.
    pub(super) fn with(&mut self, kind: &str, x: &Blob, y: f32) -> Blob {
        self.op(kind, [("x", x.into()), ("y", y.into())], x.dims.clone())
    }

    /// A reduction over `axes` (indices).
    pub(super) fn reduce(
        &mut self,
        kind: &str,
        x: &Blob,
        axes: &[usize],
        keep: bool,
    ) -> Result<Blob, OpError> {
        let dims = x.dims.iter().enumerate().filter_map(|(i, &dim)| match (axes.contains(&i), keep) {
            (false, _) => Some(dim),
            (true, true) => Some(Some(1)),
            (true, false) => None,
        });
        let dims = dims.collect();
        Ok(self.op(kind, [("x", x.into()), ("axes", ints(axes)?.into()), ("keep_dims", keep.into())], dims))
    }

    pub(super) fn transpose(&mut self, x: &Blob, perm: &[usize]) -> Result<Blob, OpError> {
        let mut seen = vec![false; x.rank()];
        for &axis in perm {
            match seen.get_mut(axis) {
                Some(seen) if !*seen => *seen = true,
                Some(_) | None => return Err(invalid(format!("{perm:?} permutes no {}", x.words()))),
            }
        }
        if perm.len() != x.rank() {
            return Err(invalid(format!("{perm:?} permutes no {}", x.words())));
        }
        let dims = perm.iter().map(|&axis| x.dims[axis]).collect();
        Ok(self.op("transpose", [("x", x.into()), ("perm", ints(perm)?.into())], dims))
    }

    /// Inserts dimensions of 1 at `axes` (indices into the result, ascending).
    pub(super) fn expand(&mut self, x: &Blob, axes: &[usize]) -> Result<Blob, OpError> {
        if x.rank() + axes.len() > MAX_RANK {
            return Err(unsupported(format!("blobs of rank {}", x.rank() + axes.len())));
        }
        let mut dims = x.dims.clone();
        for &axis in axes {
            if axis > dims.len() {
                return Err(invalid(format!("axis {axis} of a blob of rank {}", dims.len() + 1)));
            }
            dims.insert(axis, Some(1));
        }
        Ok(self.op("expand_dims", [("x", x.into()), ("axes", ints(axes)?.into())], dims))
    }

    /// Removes dimensions of 1 at `axes` (indices).
    pub(super) fn squeeze(&mut self, x: &Blob, axes: &[usize]) -> Result<Blob, OpError> {
        if let Some(&axis) =
            axes.iter().find(|&&axis| x.dims.get(axis).is_none_or(|dim| dim.is_some_and(|dim| dim != 1)))
        {
            return Err(invalid(format!("dimension {axis} of {} is not 1", x.words())));
        }
        let dims =
            x.dims.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &dim)| dim).collect();
        Ok(self.op("squeeze", [("x", x.into()), ("axes", ints(axes)?.into())], dims))
    }

    /// A blob without dimensions of 1 in front of the last `rank`.
    ///
    /// A number is a list of one element. Where coremltools' converter takes it for a scalar and makes a list of it (`expandDims`), there
    /// is a dimension in front that its reader does not expect; the converter's tests demand that it does not count.
    pub(super) fn at_most(&mut self, x: Blob, rank: usize) -> Result<Blob, OpError> {
        let extra: Vec<usize> = (0..x.rank().saturating_sub(rank)).collect();
        let ones = extra.iter().all(|&axis| x.dims[axis] == Some(1));
        if extra.is_empty() || !ones { Ok(x) } else { self.squeeze(&x, &extra) }
    }

    /// `x[begin:end:stride]` along one axis; `end` may be left out, and negative indices count from the end.
    pub(super) fn slice(
        &mut self,
        x: &Blob,
        axis: usize,
        begin: i64,
        end: Option<i64>,
        stride: i64,
    ) -> Result<Blob, OpError> {
        let rank = x.rank();
        let at = |value: i64, other: i32| -> Result<Vec<i32>, OpError> {
            let value = int(value)?;
            Ok((0..rank).map(|i| if i == axis { value } else { other }).collect())
        };
        let mut dims = x.dims.clone();
        dims[axis] = dims[axis].map(|n| slice_length(n, Some(begin), end, stride)).transpose()?;
        let others = |own: bool| -> Vec<bool> { (0..rank).map(|i| i != axis || own).collect() };
        Ok(self.op(
            "slice_by_index",
            [
                ("x", x.into()),
                ("begin", at(begin, 0)?.into()),
                ("end", at(end.unwrap_or(0), 0)?.into()),
                ("stride", at(stride, 1)?.into()),
                ("begin_mask", others(false).into()),
                ("end_mask", others(end.is_none()).into()),
            ],
            dims,
        ))
    }

    pub(super) fn concat(&mut self, blobs: &[Blob], axis: usize, interleave: bool) -> Result<Blob, OpError> {
        let [first, rest @ ..] = blobs else { return Err(invalid("nothing to concatenate")) };
        let mut dims = first.dims.clone();
        for blob in rest {
            if blob.rank() != first.rank() {
                return Err(apart(format!("{} and {} cannot be concatenated", first.words(), blob.words())));
            }
            for (i, (dim, &other)) in dims.iter_mut().zip(&blob.dims).enumerate() {
                *dim = match (*dim, other) {
                    (Some(a), Some(b)) if i == axis => {
                        Some(a.checked_add(b).ok_or_else(|| invalid("the concatenated size overflows"))?)
                    }
                    _ if i == axis => None,
                    (Some(a), Some(b)) if a != b => {
                        let words = (first.words(), blob.words());
                        return Err(apart(format!("{} and {} cannot be concatenated", words.0, words.1)));
                    }
                    (a, b) => a.or(b),
                };
            }
        }
        if rest.is_empty() {
            return Ok(first.clone());
        }
        let axis = int(axis)?;
        Ok(self.op(
            "concat",
            [("values", blobs.into()), ("axis", axis.into()), ("interleave", interleave.into())],
            dims,
        ))
    }

    /// The shape of a blob, as a blob of integers (rank 1).
    pub(super) fn shape(&mut self, x: &Blob) -> ValueId {
        match x.fixed().map(|shape| ints(&shape)) {
            Some(Ok(shape)) => self.function.new_constant("shape", list(DType::I32, shape)),
            _ => self.op1("shape", [("x", x.into())], DType::I32, vec![Some(x.rank())]),
        }
    }

    /// A shape that is put together while the network runs, as integers.
    pub(super) fn shape_of_dims(&mut self, dims: &[Dim<'_>]) -> Result<ValueId, OpError> {
        let mut parts = Vec::with_capacity(dims.len());
        for dim in dims {
            let fixed = match *dim {
                Dim::Known(n) => Some(int(n)?),
                Dim::Rest => Some(-1),
                Dim::Of(blob, axis) => blob.dims[axis].map(int).transpose()?,
            };
            parts.push(match (fixed, *dim) {
                (None, Dim::Of(blob, axis)) => {
                    let shape = self.shape(blob);
                    let axis = int(axis)?;
                    let arguments =
                        [("x", shape.into()), ("begin", vec![axis].into()), ("end", vec![axis + 1].into())];
                    self.op1("slice_by_index", arguments, DType::I32, vec![Some(1)])
                }
                (fixed, _) => {
                    self.function.new_constant("shape", list(DType::I32, vec![fixed.unwrap_or(-1)]))
                }
            });
        }
        let arguments = [("values", Arg::Ids(parts)), ("axis", 0.into()), ("interleave", false.into())];
        Ok(self.op1("concat", arguments, DType::I32, vec![Some(dims.len())]))
    }

    /// A list of `length` integers: `value` (a list of one) at `place`, elsewhere `other`.
    pub(super) fn list_of(
        &mut self,
        length: usize,
        place: usize,
        value: ValueId,
        other: i32,
    ) -> Result<ValueId, OpError> {
        let mut parts = Vec::new();
        for (count, is_value) in [(place, false), (1, true), (length.saturating_sub(place + 1), false)] {
            if is_value {
                parts.push(value);
            } else if count > 0 {
                parts.push(self.function.new_constant("list", list(DType::I32, vec![other; count])));
            }
        }
        let arguments = [("values", Arg::Ids(parts)), ("axis", 0.into()), ("interleave", false.into())];
        Ok(self.op1("concat", arguments, DType::I32, vec![Some(length)]))
    }

    /// The same elements in another shape.
    pub(super) fn reshape(&mut self, x: &Blob, dims: &[Dim<'_>]) -> Result<Blob, OpError> {
        let mut known: Dims = dims
            .iter()
            .map(|dim| match *dim {
                Dim::Known(n) => Some(n),
                Dim::Of(blob, axis) => blob.dims[axis],
                Dim::Rest => None,
            })
            .collect();
        if known.contains(&Some(0)) {
            return Err(unsupported("a blob without elements"));
        }
        let open = known.iter().filter(|dim| dim.is_none()).count();
        let total = x.fixed().map(|shape| element_count(&shape).ok_or_else(|| invalid("the size overflows")));
        if let Some(total) = total.transpose()? {
            let given: Vec<usize> = known.iter().copied().flatten().collect();
            let product = element_count(&given).filter(|&product| product > 0);
            let fits = product.is_some_and(|product| total % product == 0 && (open > 0 || total == product));
            if !fits {
                return Err(invalid(format!("{} cannot take the shape {known:?}", x.words())));
            }
            if open == 1 {
                known
                    .iter_mut()
                    .filter(|dim| dim.is_none())
                    .for_each(|dim| *dim = product.map(|p| total / p));
            }
        }
        let shape = if open <= 1 {
            let shape = known.iter().map(|dim| dim.map_or(Ok(-1), int)).collect::<Result<Vec<_>, _>>()?;
            shape.into()
        } else {
            self.shape_of_dims(dims)?.into()
        };
        Ok(self.op("reshape", [("x", x.into()), ("shape", shape)], known))
    }

    /// Runs `f` on the blob as `[batch, C, H, W]`: all dimensions before the last three are the batch.
    pub(super) fn on_rank4(
        &mut self,
        x: &Blob,
        f: impl FnOnce(&mut Self, &Blob) -> Result<Blob, OpError>,
    ) -> Result<Blob, OpError> {
        x.at_least(3)?;
        let lead = x.rank() - 3;
        let one = x.dims[..lead].iter().position(|&dim| dim == Some(1));
        match (lead, one) {
            (0, _) => {
                let x = self.expand(x, &[0])?;
                let y = f(self, &x)?;
                self.squeeze(&y, &[0])
            }
            (1, _) => f(self, x),
            (2, Some(axis)) => {
                let x = self.squeeze(x, &[axis])?;
                let y = f(self, &x)?;
                self.expand(&y, &[axis])
            }
            _ => {
                let mut flat = vec![Dim::Rest];
                flat.extend((lead..x.rank()).map(|axis| Dim::Of(x, axis)));
                let flat = self.reshape(x, &flat)?;
                let y = f(self, &flat)?;
                let mut back: Vec<_> = (0..lead).map(|axis| Dim::Of(x, axis)).collect();
                back.extend((1..4).map(|axis| Dim::Of(&y, axis)));
                self.reshape(&y, &back)
            }
        }
    }
}

/// The length of `0..n` sliced as Python does.
pub(super) fn slice_length(
    n: usize,
    begin: Option<i64>,
    end: Option<i64>,
    stride: i64,
) -> Result<usize, OpError> {
    let n = i64::try_from(n).map_err(|_| invalid("the size overflows"))?;
    if stride == 0 {
        return Err(invalid("a slice of stride 0"));
    }
    let (low, high) = if stride > 0 { (0, n) } else { (-1, n - 1) };
    let place = |index: Option<i64>, default: i64| match index {
        None => default,
        Some(i) => (if i < 0 { i.saturating_add(n) } else { i }).clamp(low, high),
    };
    let (begin, end) =
        if stride > 0 { (place(begin, 0), place(end, n)) } else { (place(begin, n - 1), place(end, -1)) };
    let span = if stride > 0 { end - begin } else { begin - end };
    if span <= 0 {
        return Ok(0);
    }
    let step = stride.unsigned_abs();
    usize::try_from(span.unsigned_abs().div_ceil(step)).map_err(|_| invalid("the size overflows"))
}
