//! Between the caller's features and the values of a program: checks every input against the description.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rten::BufferPool;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use crate::description::{ArrayDtype, Color, FeatureKind, ImageSpec, KeyType, Labels, TensorSpec};
use crate::feature::{Array, ArrayRef, Elements, ImageRef, Input, Key, Output, PixelFormat};
use crate::types::{DType, TensorType, element_count};
use crate::value::{Value, ValueView};

/// An input as a program's value: borrowed where the bytes are what the program takes.
pub(crate) enum Entry<'a> {
    View(ValueView<'a>),
    Owned(Value),
}

/// Why an input does not fit.
pub(crate) type Mismatch = String;

/// One input, checked and in the program's form.
pub(crate) fn input<'a>(
    given: &Input<'a>,
    kind: &FeatureKind,
    ty: &TensorType,
    pool: &BufferPool,
) -> Result<Entry<'a>, Mismatch> {
    match (given, kind) {
        (Input::Array(array), FeatureKind::Tensor { tensor }) => {
            let sequence = rank5(array.shape, tensor, ty);
            if array.dtype != tensor.dtype
                || !(tensor.admits(array.shape) || ty.shape.is_none() || sequence.is_some())
            {
                return Err(given.words());
            }
            let entry = array_input(array, ty.dtype, pool)?;
            Ok(match entry {
                Entry::View(view) if !ty.admits(view.shape()) => {
                    reshape_entry(view.to_owned_in(pool), sequence, ty)?
                }
                Entry::Owned(value) if !ty.admits(value.shape()) => reshape_entry(value, sequence, ty)?,
                entry => entry,
            })
        }
        (Input::Image(image), FeatureKind::Image { image: spec }) => {
            let pixels = image_input(image, spec, ty, pool)?;
            Ok(Entry::Owned(match (ty.dtype.is_float(), image.format) {
                (true, _) => Value::F32(pixels),
                (false, PixelFormat::Bgra8 | PixelFormat::Gray8) => Value::I32(pixels.map(|&x| x as i32)),
                (false, PixelFormat::Gray16F) => {
                    return Err(format!("{}, where the program takes {ty}", given.words()));
                }
            }))
        }
        (Input::Int64(x), FeatureKind::Int64) => scalar(*x as f64, ty),
        (Input::Double(x), FeatureKind::Double) => scalar(*x, ty),
        _ => Err(given.words()),
    }
}

fn scalar<'a>(x: f64, ty: &TensorType) -> Result<Entry<'a>, Mismatch> {
    let shape = vec![1; ty.rank().unwrap_or(0)];
    let value = if ty.dtype.is_float() {
        Value::F32(Tensor::from_data(&shape, vec![x as f32]))
    } else {
        Value::I32(Tensor::from_data(&shape, vec![x as i32]))
    };
    Ok(Entry::Owned(value))
}

/// The shape under which a network of the older mapping sees an array: `[sequence, batch, channel, height, width]`, of
/// which the description has the last three or the channel alone. A prediction may give the first two as well.
pub(crate) fn rank5(given: &[usize], tensor: &TensorSpec, ty: &TensorType) -> Option<Vec<usize>> {
    if ty.rank() != Some(5) || tensor.shape.len() == 5 {
        return None;
    }
    let shape = match (tensor.shape.len(), given) {
        (_, &[s, b, c, h, w]) => [s, b, c, h, w],
        (1, &[c]) => [1, 1, c, 1, 1],
        (1, &[s, b, c]) => [s, b, c, 1, 1],
        (3, &[c, h, w]) => [1, 1, c, h, w],
        _ => return None,
    };
    // Where only the description limits a dimension, it counts.
    (ty.admits(&shape) && tensor.admits(&without_lead(given, tensor))).then(|| shape.to_vec())
}

/// A shape without the dimensions that only a network of the older mapping sees: as the description has it.
fn without_lead(given: &[usize], tensor: &TensorSpec) -> Vec<usize> {
    match (tensor.shape.len(), given) {
        (1, &[_, _, c, _, _] | &[_, _, c]) => vec![c],
        (3, &[_, _, c, h, w]) => vec![c, h, w],
        (_, given) => given.to_vec(),
    }
}

/// The shape of an input as its description has it; of an image its height and width.
pub(crate) fn described(given: &Input<'_>, kind: &FeatureKind) -> Option<Vec<usize>> {
    match (given, kind) {
        (Input::Image(image), FeatureKind::Image { .. }) => Some(vec![image.height, image.width]),
        (Input::Array(array), FeatureKind::Tensor { tensor }) => Some(without_lead(array.shape, tensor)),
        _ => None,
    }
}

/// The same elements under the shape that the program takes.
fn reshape_entry<'a>(
    value: Value,
    shape: Option<Vec<usize>>,
    ty: &TensorType,
) -> Result<Entry<'a>, Mismatch> {
    let found = format!("shape {:?}", value.shape());
    let count: usize = value.shape().iter().product();
    let shape = shape
        .or_else(|| ty.fixed_shape())
        .filter(|shape| element_count(shape) == Some(count))
        .ok_or(found)?;
    Ok(Entry::Owned(match value {
        Value::F32(mut t) => {
            t.reshape(&shape);
            Value::F32(t)
        }
        Value::I32(mut t) => {
            t.reshape(&shape);
            Value::I32(t)
        }
    }))
}

fn array_input<'a>(array: &ArrayRef<'a>, dtype: DType, pool: &BufferPool) -> Result<Entry<'a>, Mismatch> {
    let float = dtype.is_float();
    match array.dtype {
        ArrayDtype::Float32 if float => match typed::<f32>(array)? {
            Typed::Borrowed(view) => Ok(Entry::View(ValueView::F32(view))),
            Typed::Copied(tensor) => Ok(Entry::Owned(Value::F32(tensor))),
        },
        ArrayDtype::Int32 if !float => match typed::<i32>(array)? {
            Typed::Borrowed(view) => Ok(Entry::View(ValueView::I32(view))),
            Typed::Copied(tensor) => Ok(Entry::Owned(Value::I32(tensor))),
        },
        ArrayDtype::Float32 => converted::<f32, i32>(array, pool, each(|x| x as i32)),
        ArrayDtype::Int32 => converted::<i32, f32>(array, pool, each(|x| x as f32)),
        ArrayDtype::Float16 if float => converted::<f16, f32>(array, pool, widen),
        ArrayDtype::Float16 => converted::<f16, i32>(array, pool, each(|x: f16| x.to_f32() as i32)),
        ArrayDtype::Float64 if float => converted::<f64, f32>(array, pool, each(|x| x as f32)),
        ArrayDtype::Float64 => converted::<f64, i32>(array, pool, each(|x| x as i32)),
        ArrayDtype::Int8 if float => converted::<i8, f32>(array, pool, each(f32::from)),
        ArrayDtype::Int8 => converted::<i8, i32>(array, pool, each(i32::from)),
    }
}

enum Typed<'a, T> {
    Borrowed(TensorView<'a, T>),
    Copied(Tensor<T>),
}

/// The bytes as elements: borrowed if they are aligned, else copied.
fn typed<'a, T: bytemuck::AnyBitPattern>(array: &ArrayRef<'a>) -> Result<Typed<'a, T>, Mismatch> {
    let strides = array.strides.map_or_else(|| dense_strides(array.shape), <[usize]>::to_vec);
    let bad = || format!("{} bytes for shape {:?} with strides {strides:?}", array.bytes.len(), array.shape);
    let span = span(array.shape, &strides).ok_or_else(bad)?;
    let wanted = span.checked_mul(size_of::<T>()).ok_or_else(bad)?;
    let bytes = array.bytes.get(..wanted).ok_or_else(bad)?;
    match bytemuck::try_cast_slice::<u8, T>(bytes) {
        Ok(data) => TensorView::from_slice_with_strides(array.shape, data, &strides)
            .map(Typed::Borrowed)
            .map_err(|error| format!("{}: {error:?}", bad())),
        Err(_) => {
            let data: Vec<T> = bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
            TensorView::from_slice_with_strides(array.shape, &data, &strides)
                .map(|view| Typed::Copied(view.to_tensor()))
                .map_err(|error| format!("{}: {error:?}", bad()))
        }
    }
}

fn each<T: Copy, U>(f: impl Fn(T) -> U) -> impl Fn(&mut Vec<U>, &[T]) {
    move |out, all| out.extend(all.iter().map(|&x| f(x)))
}

/// A block at a time, for the processor converts several at once.
fn widen(out: &mut Vec<f32>, halves: &[f16]) {
    let begin = out.len();
    out.resize(begin + halves.len(), 0.0);
    halves.convert_to_f32_slice(&mut out[begin..]);
}

/// An input of another type than the program's; `append` converts elements.
fn converted<'a, T, U>(
    array: &ArrayRef<'a>,
    pool: &BufferPool,
    append: impl Fn(&mut Vec<U>, &[T]),
) -> Result<Entry<'a>, Mismatch>
where
    T: bytemuck::AnyBitPattern,
    Value: From<Tensor<U>>,
{
    let convert = |view: TensorView<'_, T>| {
        let mut data = pool.alloc::<U>(view.len());
        match view.data() {
            Some(dense) => append(&mut data, dense),
            None => append(&mut data, &view.to_vec()),
        }
        Tensor::from_data(array.shape, data)
    };
    let tensor = match typed::<T>(array)? {
        Typed::Borrowed(view) => convert(view),
        Typed::Copied(tensor) => convert(tensor.view()),
    };
    Ok(Entry::Owned(tensor.into()))
}

fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

/// Elements from the first to the end of the last.
fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.len() != strides.len() {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(0_usize, |sum, (&n, &stride)| sum.checked_add((n - 1).checked_mul(stride)?))?;
    last.checked_add(1)
}

/// Pixels as planes: `[1, C, H, W]` (or without the leading dimensions, as the program's type has it), values 0 to 255.
fn image_input(
    image: &ImageRef<'_>,
    spec: &ImageSpec,
    ty: &TensorType,
    pool: &BufferPool,
) -> Result<Tensor<f32>, Mismatch> {
    let found = || format!("image {:?} {}x{}", image.format, image.width, image.height);
    if !spec.admits(image.height, image.width) {
        return Err(found());
    }
    let row = image.width.checked_mul(image.format.size()).ok_or_else(found)?;
    let rows = image.height.saturating_sub(1).checked_mul(image.row_bytes);
    let wanted = rows.and_then(|n| n.checked_add(row)).ok_or_else(found)?;
    if image.row_bytes < row || image.pixels.len() < wanted {
        return Err(format!("{} with {} bytes, {} a row", found(), image.pixels.len(), image.row_bytes));
    }
    let channels: &[usize] = match (spec.color, image.format) {
        (Color::Rgb, PixelFormat::Bgra8) => &[2, 1, 0],
        (Color::Bgr, PixelFormat::Bgra8) => &[0, 1, 2],
        (Color::Gray, PixelFormat::Gray8) | (Color::GrayFloat16, PixelFormat::Gray16F) => &[0],
        _ => return Err(found()),
    };
    let mut data = pool.alloc::<f32>(channels.len() * image.height * image.width);
    for &channel in channels {
        for line in image.pixels.chunks(image.row_bytes).take(image.height) {
            let pixels = line[..row].chunks_exact(image.format.size());
            match image.format {
                PixelFormat::Bgra8 | PixelFormat::Gray8 => data.extend(pixels.map(|p| f32::from(p[channel]))),
                PixelFormat::Gray16F => {
                    data.extend(pixels.map(|p| f16::from_ne_bytes([p[0], p[1]]).to_f32()))
                }
            }
        }
    }
    let mut shape = vec![1; ty.rank().unwrap_or(4).saturating_sub(3)];
    shape.extend([channels.len(), image.height, image.width]);
    if !ty.admits(&shape) {
        return Err(format!("{}, which the program sees as {shape:?} where it takes {ty}", found()));
    }
    Ok(Tensor::from_data(&shape, data))
}

/// All elements of an array, in row-major order, as doubles.
pub(crate) fn numbers(array: &ArrayRef<'_>) -> Result<Vec<f64>, Mismatch> {
    fn all<T: bytemuck::AnyBitPattern>(
        array: &ArrayRef<'_>,
        f: impl Fn(T) -> f64,
    ) -> Result<Vec<f64>, Mismatch> {
        Ok(match typed::<T>(array)? {
            Typed::Borrowed(view) => view.iter().map(|&x| f(x)).collect(),
            Typed::Copied(tensor) => tensor.iter().map(|&x| f(x)).collect(),
        })
    }
    match array.dtype {
        ArrayDtype::Float16 => all::<f16>(array, f16::to_f64),
        ArrayDtype::Float32 => all::<f32>(array, f64::from),
        ArrayDtype::Float64 => all::<f64>(array, |x| x),
        ArrayDtype::Int8 => all::<i8>(array, f64::from),
        ArrayDtype::Int32 => all::<i32>(array, f64::from),
    }
}

/// Doubles as elements of that type. Integers must be integers, and fit.
pub(crate) fn elements_of(numbers: &[f64], dtype: ArrayDtype) -> Result<Elements, Mismatch> {
    let exact = |x: f64, least: f64, most: f64| {
        if x.fract() == 0.0 && (least..=most).contains(&x) {
            Ok(x)
        } else {
            Err(format!("{x}, which is no {dtype:?}").to_lowercase())
        }
    };
    let numbers = numbers.iter().copied();
    Ok(match dtype {
        ArrayDtype::Float16 => Elements::Float16(numbers.map(f16::from_f64).collect()),
        ArrayDtype::Float32 => Elements::Float32(numbers.map(|x| x as f32).collect()),
        ArrayDtype::Float64 => Elements::Float64(numbers.collect()),
        ArrayDtype::Int8 => Elements::Int8(
            numbers
                .map(|x| exact(x, i8::MIN.into(), i8::MAX.into()).map(|x| x as i8))
                .collect::<Result<_, _>>()?,
        ),
        ArrayDtype::Int32 => Elements::Int32(
            numbers
                .map(|x| exact(x, i32::MIN.into(), i32::MAX.into()).map(|x| x as i32))
                .collect::<Result<_, _>>()?,
        ),
    })
}

/// A double as an integer, if it is one.
pub(crate) fn integer(x: f64) -> Result<i64, Mismatch> {
    // 2^63 itself is a double, and no i64.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if x.fract() == 0.0 && (-LIMIT..LIMIT).contains(&x) {
        Ok(x as i64)
    } else {
        Err(format!("{x}, which is no int64"))
    }
}

/// A feature whose kind is not the caller's choice, in the kind that the description announces: what a model of a pipeline
/// made for the next one, or an estimator for its output. `None` if it has that kind already.
pub(crate) fn fit(given: &Input<'_>, kind: &FeatureKind) -> Result<Option<Output>, Mismatch> {
    let key = |key: &Key| match key {
        Key::Int64(_) => KeyType::Int64,
        Key::String(_) => KeyType::String,
    };
    match (given, kind) {
        (Input::Array(array), FeatureKind::Tensor { tensor }) => {
            let shape = if tensor.shape.is_empty() || tensor.admits(array.shape) {
                array.shape
            } else if element_count(array.shape) == element_count(&tensor.shape) {
                &tensor.shape
            } else {
                return Err(given.words());
            };
            if array.dtype == tensor.dtype && shape == array.shape {
                return Ok(None);
            }
            let elements = elements_of(&numbers(array)?, tensor.dtype)?;
            Ok(Some(Output::Array(Array { shape: shape.to_vec(), elements })))
        }
        (Input::Array(array), FeatureKind::Double | FeatureKind::Int64) => match numbers(array)?[..] {
            [x] if matches!(kind, FeatureKind::Double) => Ok(Some(Output::Double(x))),
            [x] => Ok(Some(Output::Key(Key::Int64(integer(x)?)))),
            _ => Err(given.words()),
        },
        (Input::Int64(_) | Input::Double(_), FeatureKind::Tensor { tensor }) => {
            let x = match *given {
                Input::Int64(x) => x as f64,
                Input::Double(x) => x,
                _ => return Err(given.words()),
            };
            if !tensor.shape.is_empty() && element_count(&tensor.shape) != Some(1) {
                return Err(given.words());
            }
            let shape = if tensor.shape.is_empty() { vec![1] } else { tensor.shape.clone() };
            Ok(Some(Output::Array(Array { shape, elements: elements_of(&[x], tensor.dtype)? })))
        }
        (Input::Double(x), FeatureKind::Int64) => Ok(Some(Output::Key(Key::Int64(integer(*x)?)))),
        (Input::Int64(x), FeatureKind::Double) => Ok(Some(Output::Double(*x as f64))),
        (Input::Int64(_), FeatureKind::Int64)
        | (Input::Double(_), FeatureKind::Double)
        | (Input::String(_), FeatureKind::String) => Ok(None),
        (Input::Image(image), FeatureKind::Image { image: spec })
            if spec.admits(image.height, image.width) =>
        {
            Ok(None)
        }
        (Input::Dictionary(entries), FeatureKind::Dictionary { dictionary })
            if entries.iter().all(|(k, _)| key(k) == dictionary.key) =>
        {
            Ok(None)
        }
        (Input::Sequence(keys), FeatureKind::Sequence { sequence })
            if keys.iter().all(|k| key(k) == sequence.element) && sequence.admits(keys.len()) =>
        {
            Ok(None)
        }
        _ => Err(given.words()),
    }
}

/// Whether an input that the caller gives has the kind that the description announces; nothing is converted.
pub(crate) fn check(given: &Input<'_>, kind: &FeatureKind) -> Result<(), Mismatch> {
    let same = match (given, kind) {
        (Input::Array(array), FeatureKind::Tensor { tensor }) => {
            array.dtype == tensor.dtype && (tensor.shape.is_empty() || tensor.admits(array.shape))
        }
        (Input::Array(_), _) | (_, FeatureKind::Tensor { .. }) => false,
        _ => fit(given, kind)?.is_none(),
    };
    if same { Ok(()) } else { Err(given.words()) }
}

/// One output in the form that the description announces; `labels` are those of a classifier's label or dictionary.
pub(crate) fn output(
    view: &ValueView<'_>,
    kind: &FeatureKind,
    labels: Option<&Labels>,
) -> Result<Output, String> {
    if let Some(labels) = labels {
        return classified(view, kind, labels);
    }
    match kind {
        FeatureKind::Tensor { tensor } => {
            let same = |shape: &[usize]| {
                element_count(&tensor.shape).is_some()
                    && element_count(&tensor.shape) == element_count(shape)
                    && tensor.flexible.is_none()
                    && !tensor.shape.is_empty()
            };
            let shape = match view.shape() {
                shape if same(shape) => tensor.shape.clone(),
                // Core ML has no multi-array without dimensions (coremltools, `converters/mil/testing_utils.py`).
                [] => vec![1],
                shape => shape.to_vec(),
            };
            Ok(Output::Array(Array { shape, elements: elements(view, tensor.dtype) }))
        }
        FeatureKind::Image { image } => image_output(view, image),
        FeatureKind::Double => match view {
            ValueView::F32(t) if t.len() == 1 => {
                Ok(Output::Double(f64::from(*t.iter().next().unwrap_or(&0.0))))
            }
            _ => Err(format!("expected one number, found shape {:?}", view.shape())),
        },
        FeatureKind::Int64 => match view {
            ValueView::I32(t) if t.len() == 1 => {
                Ok(Output::Key(crate::feature::Key::Int64(i64::from(*t.iter().next().unwrap_or(&0)))))
            }
            _ => Err(format!("expected one integer, found shape {:?}", view.shape())),
        },
        other => Err(format!("an output of kind {} is not made by this kind of model", other.words())),
    }
}

/// Whether an output of that kind can be a classifier's label or dictionary of probabilities.
pub(crate) fn is_labelled(kind: &FeatureKind, labels: &Labels) -> bool {
    match (kind, labels) {
        (FeatureKind::String, Labels::Strings(_)) | (FeatureKind::Int64, Labels::Ints(_)) => true,
        (FeatureKind::Dictionary { dictionary }, Labels::Strings(_)) => dictionary.key == KeyType::String,
        (FeatureKind::Dictionary { dictionary }, Labels::Ints(_)) => dictionary.key == KeyType::Int64,
        _ => false,
    }
}

/// A classifier's answer: the label of the largest probability (the first of equals), or all by label.
fn classified(view: &ValueView<'_>, kind: &FeatureKind, labels: &Labels) -> Result<Output, String> {
    let ValueView::F32(probabilities) = view else { return Err("expected floats for probabilities".into()) };
    if probabilities.len() != labels.len() {
        return Err(format!("{} labels for probabilities of shape {:?}", labels.len(), view.shape()));
    }
    let key = |i: usize| match labels {
        Labels::Strings(labels) => labels.get(i).cloned().map(Key::String),
        Labels::Ints(labels) => labels.get(i).copied().map(Key::Int64),
    };
    if matches!(kind, FeatureKind::Dictionary { .. }) {
        let entries = probabilities.iter().enumerate().filter_map(|(i, &p)| Some((key(i)?, f64::from(p))));
        return Ok(Output::Dictionary(entries.collect()));
    }
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &p) in probabilities.iter().enumerate() {
        if p > best.1 {
            best = (i, p);
        }
    }
    key(best.0).map(Output::Key).ok_or_else(|| "a classifier without labels".into())
}

fn elements(view: &ValueView<'_>, dtype: ArrayDtype) -> Elements {
    match view {
        ValueView::F32(t) => match dtype {
            ArrayDtype::Float32 => Elements::Float32(t.to_vec()),
            ArrayDtype::Float16 => {
                let mut halves = vec![f16::ZERO; t.len()];
                halves[..].convert_from_f32_slice(t.to_contiguous().data());
                Elements::Float16(halves)
            }
            ArrayDtype::Float64 => Elements::Float64(t.iter().map(|&x| f64::from(x)).collect()),
            ArrayDtype::Int32 => Elements::Int32(t.iter().map(|&x| x as i32).collect()),
            ArrayDtype::Int8 => Elements::Int8(t.iter().map(|&x| x as i8).collect()),
        },
        ValueView::I32(t) => match dtype {
            ArrayDtype::Float32 => Elements::Float32(t.iter().map(|&x| x as f32).collect()),
            ArrayDtype::Float16 => Elements::Float16(t.iter().map(|&x| f16::from_f32(x as f32)).collect()),
            ArrayDtype::Float64 => Elements::Float64(t.iter().map(|&x| f64::from(x)).collect()),
            ArrayDtype::Int32 => Elements::Int32(t.to_vec()),
            ArrayDtype::Int8 => Elements::Int8(t.iter().map(|&x| x as i8).collect()),
        },
    }
}

/// Planes of 0 to 255 as pixels; values are rounded and clamped.
fn image_output(view: &ValueView<'_>, spec: &ImageSpec) -> Result<Output, String> {
    let converted;
    let tensor = match view {
        ValueView::F32(tensor) => tensor.view(),
        ValueView::I32(tensor) => {
            converted = tensor.map(|&x| x as f32);
            converted.view()
        }
    };
    let shape = tensor.shape();
    let channels = if matches!(spec.color, Color::Rgb | Color::Bgr) { 3 } else { 1 };
    let (lead, planes) = shape.split_at(shape.len().saturating_sub(3));
    let &[c, height, width] = planes else { return Err(format!("expected an image, found shape {shape:?}")) };
    if c != channels || lead.iter().any(|&n| n != 1) {
        return Err(format!("expected an image of {channels} channels, found shape {shape:?}"));
    }
    let data = tensor.to_contiguous();
    let data = data.data();
    let byte = |x: f32| x.round_ties_even().clamp(0.0, 255.0) as u8;
    let area = height * width;
    let (format, pixels) = match spec.color {
        Color::Gray => (PixelFormat::Gray8, data.iter().map(|&x| byte(x)).collect()),
        Color::GrayFloat16 => {
            (PixelFormat::Gray16F, data.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect())
        }
        Color::Rgb | Color::Bgr => {
            let order = if spec.color == Color::Rgb { [2, 1, 0] } else { [0, 1, 2] };
            let mut pixels = Vec::with_capacity(area * 4);
            for i in 0..area {
                pixels.extend(order.map(|plane| byte(data[plane * area + i])));
                pixels.push(255);
            }
            (PixelFormat::Bgra8, pixels)
        }
    };
    Ok(Output::Image { format, width, height, pixels })
}
