//! Values of the table: tensors, images, scalars, dictionaries and sequences, each behind a count.

use std::ffi::c_void;
use std::sync::Arc;

use coreml_engine::description::{ArrayDtype, FeatureKind, KeyType};
use coreml_engine::{Array, ArrayRef, Elements, ImageRef, Input, Key, Output, PixelFormat};
use coreml_sys::{
    CML_DTYPE_FLOAT16, CML_DTYPE_FLOAT32, CML_DTYPE_FLOAT64, CML_DTYPE_INT8, CML_DTYPE_INT32,
    CML_KIND_DICTIONARY, CML_KIND_DOUBLE, CML_KIND_IMAGE, CML_KIND_INT64, CML_KIND_INVALID,
    CML_KIND_SEQUENCE, CML_KIND_STRING, CML_KIND_TENSOR, CML_PIXEL_BGRA8, CML_PIXEL_GRAY8, CML_PIXEL_GRAY16F,
    CmlDtype, CmlEntries, CmlError, CmlImageBytesFn, CmlImageDesc, CmlKind, CmlReleaseFn, CmlScalarView,
    CmlStatus, CmlStr, CmlTensorBytesFn, CmlTensorDesc, CmlValue,
};
use half::f16;

use crate::arguments::{self, out};
use crate::error::{Failure, slot};
use crate::live::{Kind, Live};
use crate::serial::{Reading, Serial};

/// What a `CmlValue` handle points to.
#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) content: Content,
    _live: Live,
}

#[derive(Debug)]
pub(crate) enum Content {
    Tensor(Tensor),
    Image(Image),
    Int64(i64),
    Double(f64),
    String(String),
    Entries(Entries),
}

/// A tensor: its layout never changes, its memory is [S].
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) dtype: ArrayDtype,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
    /// Elements from the first to the end of the last.
    span: usize,
    memory: Serial<Memory>,
}

#[derive(Debug)]
pub(crate) enum Memory {
    Owned(Elements),
    Foreign(Foreign),
}

/// Memory of the caller, given back exactly once.
#[derive(Debug)]
pub(crate) struct Foreign {
    data: *mut u8,
    length: usize,
    release: unsafe extern "C" fn(*mut c_void),
    owner: *mut c_void,
}

// SAFETY: the contract of `tensor_wrap` is that the memory may be used and the owner released on any thread.
unsafe impl Send for Foreign {}
// SAFETY: reading the memory from several threads is fine by the same contract; writing needs `&mut`.
unsafe impl Sync for Foreign {}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: `release` and `owner` come from one `tensor_wrap`, and this is the only call: nothing clones a `Foreign`.
        unsafe { (self.release)(self.owner) };
    }
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(elements) => elements.bytes(),
            // SAFETY: `tensor_wrap` was given `length` bytes at `data` that live until `release`, which `Drop` calls; nobody
            // writes them while a reader of the surrounding `Serial` exists.
            Self::Foreign(f) => unsafe { std::slice::from_raw_parts(f.data, f.length) },
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Owned(elements) => elements.bytes_mut(),
            // SAFETY: as in `bytes`, and `&mut self` is exclusive among the calls of this value.
            Self::Foreign(f) => unsafe { std::slice::from_raw_parts_mut(f.data, f.length) },
        }
    }
}

/// An image: rows without gaps.
#[derive(Debug)]
pub(crate) struct Image {
    format: PixelFormat,
    width: usize,
    height: usize,
    pixels: Serial<Vec<u8>>,
}

/// A dictionary or a sequence, with its keys ready to be borrowed as C strings.
#[derive(Debug)]
pub(crate) struct Entries {
    ints: Vec<i64>,
    strings: Vec<String>,
    /// Views of `strings`, which never change.
    views: Vec<CmlStr>,
    /// Of a dictionary.
    values: Option<Vec<f64>>,
    key_kind: CmlKind,
}

// SAFETY: `views` point into `strings`, which are owned beside them and never change.
unsafe impl Send for Entries {}
// SAFETY: as above.
unsafe impl Sync for Entries {}

impl Entries {
    fn new(keys: Vec<Key>, key_kind: CmlKind, values: Option<Vec<f64>>) -> Self {
        let mut ints = Vec::new();
        let mut strings = Vec::new();
        for key in keys {
            match key {
                Key::Int64(key) => ints.push(key),
                Key::String(key) => strings.push(key),
            }
        }
        let views = strings.iter().map(|key: &String| CmlStr::from(key.as_str())).collect();
        Self { ints, strings, views, values, key_kind }
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let ints = self.ints.iter().copied().map(Key::Int64);
        ints.chain(self.strings.iter().cloned().map(Key::String))
    }
}

impl Value {
    pub(crate) fn new(content: Content) -> Arc<Self> {
        Arc::new(Self { content, _live: Live::new(Kind::Value) })
    }

    pub(crate) fn of_array(array: Array) -> Arc<Self> {
        let shape: Vec<i64> = array.shape.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
        let strides = dense_strides(&shape);
        let dtype = array.elements.dtype();
        let span = array.elements.bytes().len() / dtype.size();
        let memory = Serial::new("tensor", Memory::Owned(array.elements));
        Self::new(Content::Tensor(Tensor { dtype, shape, strides, span, memory }))
    }

    /// `kind` is what the model's description says of the output: an empty dictionary does not know its keys.
    pub(crate) fn of_output(output: Output, kind: Option<&FeatureKind>) -> Result<Arc<Self>, Failure> {
        let key_kind = |first: Option<&Key>| match (first, kind) {
            (Some(Key::Int64(_)), _) => CML_KIND_INT64,
            (None, Some(FeatureKind::Dictionary { dictionary })) if dictionary.key == KeyType::Int64 => {
                CML_KIND_INT64
            }
            (None, Some(FeatureKind::Sequence { sequence })) if sequence.element == KeyType::Int64 => {
                CML_KIND_INT64
            }
            _ => CML_KIND_STRING,
        };
        Ok(match output {
            Output::Array(array) => Self::of_array(array),
            Output::Image { format, width, height, pixels } => {
                let pixels = Serial::new("image", pixels);
                Self::new(Content::Image(Image { format, width, height, pixels }))
            }
            Output::Key(Key::Int64(x)) => Self::new(Content::Int64(x)),
            Output::Key(Key::String(text)) => Self::new(Content::String(text)),
            Output::Double(x) => Self::new(Content::Double(x)),
            Output::Dictionary(entries) => {
                let kind = key_kind(entries.first().map(|(key, _)| key));
                let (keys, values) = entries.into_iter().unzip();
                Self::new(Content::Entries(Entries::new(keys, kind, Some(values))))
            }
            Output::Sequence(keys) => {
                let kind = key_kind(keys.first());
                Self::new(Content::Entries(Entries::new(keys, kind, None)))
            }
            _ => return Err(Failure::unsupported("an output of a kind that this bridge does not know")),
        })
    }

    fn kind(&self) -> CmlKind {
        match &self.content {
            Content::Tensor(_) => CML_KIND_TENSOR,
            Content::Image(_) => CML_KIND_IMAGE,
            Content::Int64(_) => CML_KIND_INT64,
            Content::Double(_) => CML_KIND_DOUBLE,
            Content::String(_) => CML_KIND_STRING,
            Content::Entries(e) if e.values.is_some() => CML_KIND_DICTIONARY,
            Content::Entries(_) => CML_KIND_SEQUENCE,
        }
    }

    fn tensor(&self) -> Result<&Tensor, Failure> {
        match &self.content {
            Content::Tensor(tensor) => Ok(tensor),
            _ => Err(Failure::mismatch(format!("expected a tensor, found a value of kind {}", self.kind()))),
        }
    }

    fn image(&self) -> Result<&Image, Failure> {
        match &self.content {
            Content::Image(image) => Ok(image),
            _ => Err(Failure::mismatch(format!("expected an image, found a value of kind {}", self.kind()))),
        }
    }

    /// Lends the value to the engine; nobody changes it meanwhile.
    pub(crate) fn lend(&self) -> Result<Lent<'_>, Failure> {
        Ok(match &self.content {
            Content::Tensor(tensor) => {
                let sizes =
                    |list: &[i64]| list.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect::<Vec<_>>();
                Lent::Tensor {
                    dtype: tensor.dtype,
                    shape: sizes(&tensor.shape),
                    strides: sizes(&tensor.strides),
                    memory: tensor.memory.read()?,
                }
            }
            Content::Image(image) => Lent::Image { image, pixels: image.pixels.read()? },
            Content::Int64(x) => Lent::Scalar(Input::Int64(*x)),
            Content::Double(x) => Lent::Scalar(Input::Double(*x)),
            Content::String(text) => Lent::Scalar(Input::String(text)),
            Content::Entries(entries) => match &entries.values {
                Some(values) => Lent::Dictionary(entries.keys().zip(values.iter().copied()).collect()),
                None => Lent::Sequence(entries.keys().collect()),
            },
        })
    }

    /// Writes the array into this tensor, if it has that dtype and shape; else says no and changes nothing.
    pub(crate) fn take(&self, array: &Array) -> Result<bool, Failure> {
        let Content::Tensor(tensor) = &self.content else { return Ok(false) };
        let same = tensor.shape.len() == array.shape.len()
            && tensor.shape.iter().zip(&array.shape).all(|(&a, &b)| usize::try_from(a) == Ok(b));
        if !same || tensor.dtype != array.elements.dtype() {
            return Ok(false);
        }
        let mut memory = tensor.memory.write()?;
        let size = tensor.dtype.size();
        let source = array.elements.bytes();
        let destination = memory.bytes_mut();
        let mut from = 0;
        tensor.for_runs(|to, run| {
            destination[to * size..][..run * size].copy_from_slice(&source[from..][..run * size]);
            from += run * size;
        });
        Ok(true)
    }
}

/// A value that is lent to the engine for one call.
pub(crate) enum Lent<'a> {
    Tensor { dtype: ArrayDtype, shape: Vec<usize>, strides: Vec<usize>, memory: Reading<'a, Memory> },
    Image { image: &'a Image, pixels: Reading<'a, Vec<u8>> },
    Scalar(Input<'a>),
    Dictionary(Vec<(Key, f64)>),
    Sequence(Vec<Key>),
}

impl Lent<'_> {
    pub(crate) fn input(&self) -> Input<'_> {
        match self {
            Self::Tensor { dtype, shape, strides, memory } => {
                Input::Array(ArrayRef { dtype: *dtype, shape, strides: Some(strides), bytes: memory.bytes() })
            }
            Self::Image { image, pixels } => Input::Image(ImageRef {
                format: image.format,
                width: image.width,
                height: image.height,
                row_bytes: image.width * image.format.size(),
                pixels,
            }),
            Self::Scalar(input) => *input,
            Self::Dictionary(entries) => Input::Dictionary(entries),
            Self::Sequence(keys) => Input::Sequence(keys),
        }
    }
}

fn dense_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1_i64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

impl Tensor {
    /// Checks a description: known dtype, no negative number, nothing that overflows.
    ///
    /// # Safety
    /// `desc` must be NULL or valid, its arrays too.
    unsafe fn layout(desc: *const CmlTensorDesc) -> Result<(ArrayDtype, Vec<i64>, Vec<i64>, usize), Failure> {
        // SAFETY: NULL is checked, the rest is the caller's promise.
        let desc = unsafe { desc.as_ref() }.ok_or_else(|| Failure::null("the tensor's description"))?;
        let dtype = dtype_of(desc.dtype)?;
        let rank = desc.rank as usize;
        if rank > 64 {
            return Err(Failure::invalid(format!("rank {rank} is more than any tensor has")));
        }
        // SAFETY: the caller's arrays have `rank` elements.
        let shape = unsafe { arguments::slice(desc.shape, rank, "the shape") }?.to_vec();
        let strides = if desc.strides.is_null() {
            dense_strides(&shape)
        } else {
            // SAFETY: as above.
            unsafe { arguments::slice(desc.strides, rank, "the strides") }?.to_vec()
        };
        let bad = || Failure::invalid(format!("no tensor has shape {shape:?} and strides {strides:?}"));
        if shape.iter().chain(&strides).any(|&n| n < 0) {
            return Err(bad());
        }
        let span = if shape.contains(&0) {
            0
        } else {
            let last = shape
                .iter()
                .zip(&strides)
                .try_fold(0_i64, |sum, (&n, &stride)| sum.checked_add((n - 1).checked_mul(stride)?));
            last.and_then(|last| usize::try_from(last.checked_add(1)?).ok()).ok_or_else(bad)?
        };
        span.checked_mul(dtype.size()).filter(|&n| isize::try_from(n).is_ok()).ok_or_else(bad)?;
        Ok((dtype, shape, strides, span))
    }

    fn count(&self) -> usize {
        self.shape.iter().map(|&n| usize::try_from(n).unwrap_or(0)).product()
    }

    fn describe(&self) -> CmlTensorDesc {
        CmlTensorDesc {
            size: arguments::size_of_struct::<CmlTensorDesc>(),
            dtype: dtype_number(self.dtype),
            rank: u32::try_from(self.shape.len()).unwrap_or(u32::MAX),
            shape: self.shape.as_ptr(),
            strides: self.strides.as_ptr(),
            byte_len: (self.span * self.dtype.size()) as u64,
        }
    }

    /// Calls `f(offset, length)` for every run of elements that lie side by side, in row-major order; both in elements.
    fn for_runs(&self, mut f: impl FnMut(usize, usize)) {
        for_runs(&self.shape, &self.strides, &mut f);
    }
}

fn for_runs(shape: &[i64], strides: &[i64], f: &mut dyn FnMut(usize, usize)) {
    if shape.contains(&0) {
        return;
    }
    // The longest dense tail.
    let mut run = 1_i64;
    let mut outer = shape.len();
    while outer > 0 && (strides[outer - 1] == run || shape[outer - 1] == 1) {
        run *= shape[outer - 1];
        outer -= 1;
    }
    let mut index = vec![0_i64; outer];
    loop {
        let offset: i64 = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        f(usize::try_from(offset).unwrap_or(0), usize::try_from(run).unwrap_or(0));
        let Some(axis) = (0..outer).rev().find(|&axis| index[axis] + 1 < shape[axis]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

fn dtype_of(number: CmlDtype) -> Result<ArrayDtype, Failure> {
    Ok(match number {
        CML_DTYPE_FLOAT16 => ArrayDtype::Float16,
        CML_DTYPE_FLOAT32 => ArrayDtype::Float32,
        CML_DTYPE_FLOAT64 => ArrayDtype::Float64,
        CML_DTYPE_INT8 => ArrayDtype::Int8,
        CML_DTYPE_INT32 => ArrayDtype::Int32,
        other => return Err(Failure::invalid(format!("{other:#x} is not an element type"))),
    })
}

fn dtype_number(dtype: ArrayDtype) -> CmlDtype {
    match dtype {
        ArrayDtype::Float16 => CML_DTYPE_FLOAT16,
        ArrayDtype::Float32 => CML_DTYPE_FLOAT32,
        ArrayDtype::Float64 => CML_DTYPE_FLOAT64,
        ArrayDtype::Int8 => CML_DTYPE_INT8,
        ArrayDtype::Int32 => CML_DTYPE_INT32,
    }
}

fn format_of(number: u32) -> Result<PixelFormat, Failure> {
    match number {
        CML_PIXEL_BGRA8 => Ok(PixelFormat::Bgra8),
        CML_PIXEL_GRAY8 => Ok(PixelFormat::Gray8),
        CML_PIXEL_GRAY16F => Ok(PixelFormat::Gray16F),
        other => Err(Failure::invalid(format!("{other:#x} is not a pixel format"))),
    }
}

fn format_number(format: PixelFormat) -> u32 {
    match format {
        PixelFormat::Bgra8 => CML_PIXEL_BGRA8,
        PixelFormat::Gray8 => CML_PIXEL_GRAY8,
        PixelFormat::Gray16F => CML_PIXEL_GRAY16F,
    }
}

/// One element as a double: exact for every type the table has.
fn load(bytes: &[u8], dtype: ArrayDtype, index: usize) -> f64 {
    let at = index * dtype.size();
    match (dtype, &bytes[at..at + dtype.size()]) {
        (ArrayDtype::Int8, &[a]) => f64::from(a.cast_signed()),
        (ArrayDtype::Float16, &[a, b]) => f16::from_ne_bytes([a, b]).to_f64(),
        (ArrayDtype::Float32, &[a, b, c, d]) => f64::from(f32::from_ne_bytes([a, b, c, d])),
        (ArrayDtype::Int32, &[a, b, c, d]) => f64::from(i32::from_ne_bytes([a, b, c, d])),
        (_, bytes) => bytes.try_into().map_or(f64::NAN, f64::from_ne_bytes),
    }
}

/// Converts as Rust's `as` does: rounding to nearest for floats, toward zero and saturating for integers.
fn store(bytes: &mut [u8], dtype: ArrayDtype, x: f64) {
    match dtype {
        ArrayDtype::Int8 => bytes.copy_from_slice(&(x as i8).to_ne_bytes()),
        ArrayDtype::Float16 => bytes.copy_from_slice(&f16::from_f64(x).to_ne_bytes()),
        ArrayDtype::Float32 => bytes.copy_from_slice(&(x as f32).to_ne_bytes()),
        ArrayDtype::Int32 => bytes.copy_from_slice(&(x as i32).to_ne_bytes()),
        ArrayDtype::Float64 => bytes.copy_from_slice(&x.to_ne_bytes()),
    }
}

/// Borrows a value handle for the call.
///
/// # Safety
/// `value` must be NULL or a live handle of this bridge.
pub(crate) unsafe fn borrow<'a>(value: *const CmlValue) -> Result<&'a Value, Failure> {
    // SAFETY: handles are made by `Arc::into_raw` of a `Value`; the caller holds a count during the call.
    unsafe { value.cast::<Value>().as_ref() }.ok_or_else(|| Failure::null("the value"))
}

/// A handle of +1.
pub(crate) fn into_handle(value: Arc<Value>) -> *mut CmlValue {
    Arc::into_raw(value).cast_mut().cast()
}

/// Another count on a borrowed handle.
///
/// # Safety
/// As [`borrow`].
pub(crate) unsafe fn share(value: *const CmlValue) -> Result<Arc<Value>, Failure> {
    if value.is_null() {
        return Err(Failure::null("the value"));
    }
    // SAFETY: a live handle, so its `Arc` has a count to add to.
    unsafe { Arc::increment_strong_count(value.cast::<Value>()) };
    // SAFETY: the count was just added, and is this `Arc`'s.
    Ok(unsafe { Arc::from_raw(value.cast::<Value>()) })
}

pub(crate) unsafe extern "C" fn value_kind(value: *const CmlValue) -> CmlKind {
    // SAFETY: the table's contract: NULL or a live handle.
    unsafe { borrow(value) }.map_or(CML_KIND_INVALID, Value::kind)
}

pub(crate) unsafe extern "C" fn value_retain(value: *mut CmlValue) {
    if !value.is_null() {
        // SAFETY: a live handle by the table's contract.
        unsafe { Arc::increment_strong_count(value.cast_const().cast::<Value>()) };
    }
}

pub(crate) unsafe extern "C" fn value_release(value: *mut CmlValue) {
    if !value.is_null() {
        // SAFETY: the caller gives back a count it has.
        drop(unsafe { Arc::from_raw(value.cast_const().cast::<Value>()) });
    }
}

pub(crate) unsafe extern "C" fn tensor_new(
    _self: *mut c_void,
    desc: *const CmlTensorDesc,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let mut value = unsafe { out(value, "value") }?;
        // SAFETY: the table's contract on `desc`.
        let (dtype, shape, strides, span) = unsafe { Tensor::layout(desc) }?;
        let memory = Serial::new("tensor", Memory::Owned(Elements::zeros(dtype, span)));
        value.set(into_handle(Value::new(Content::Tensor(Tensor { dtype, shape, strides, span, memory }))));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn tensor_copy(
    _self: *mut c_void,
    desc: *const CmlTensorDesc,
    source: *const c_void,
    length: usize,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let mut value = unsafe { out(value, "value") }?;
        // SAFETY: the table's contract on `desc`.
        let (dtype, shape, strides, span) = unsafe { Tensor::layout(desc) }?;
        let size = dtype.size();
        check_length(length, span * size)?;
        // SAFETY: `source` has `length` bytes by the table's contract.
        let bytes = unsafe { arguments::slice(source.cast::<u8>(), length, "the source") }?;
        let count = shape.iter().map(|&n| usize::try_from(n).unwrap_or(0)).product();
        if count > span {
            return Err(Failure::invalid(
                "the tensor's elements overlap; a copy would be larger than its source",
            ));
        }
        let mut elements = Elements::zeros(dtype, count);
        let mut to = 0;
        let destination = elements.bytes_mut();
        for_runs(&shape, &strides, &mut |from, run| {
            destination[to..][..run * size].copy_from_slice(&bytes[from * size..][..run * size]);
            to += run * size;
        });
        let strides = dense_strides(&shape);
        let memory = Serial::new("tensor", Memory::Owned(elements));
        let tensor = Tensor { dtype, shape, strides, span: count, memory };
        value.set(into_handle(Value::new(Content::Tensor(tensor))));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

fn check_length(found: usize, needed: usize) -> Result<(), Failure> {
    if found >= needed {
        return Ok(());
    }
    Err(Failure::invalid(format!("the description needs {needed} bytes, the memory has {found}")))
}

pub(crate) unsafe extern "C" fn tensor_wrap(
    _self: *mut c_void,
    desc: *const CmlTensorDesc,
    data: *mut c_void,
    length: usize,
    release: CmlReleaseFn,
    owner: *mut c_void,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let mut value = unsafe { out(value, "value") }?;
        // SAFETY: the table's contract on `desc`.
        let (dtype, shape, strides, span) = unsafe { Tensor::layout(desc) }?;
        check_length(length, span * dtype.size())?;
        let release = release.ok_or_else(|| Failure::null("the release function"))?;
        let empty = span == 0;
        if data.is_null() && !empty {
            return Err(Failure::null("the tensor's memory"));
        }
        let data = if empty { std::ptr::NonNull::dangling().as_ptr() } else { data.cast() };
        let length = span * dtype.size();
        // From here nothing fails, so the owner is released by `Foreign` and only by it.
        let memory = Serial::new("tensor", Memory::Foreign(Foreign { data, length, release, owner }));
        value.set(into_handle(Value::new(Content::Tensor(Tensor { dtype, shape, strides, span, memory }))));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn tensor_desc(
    value: *const CmlValue,
    desc: *mut CmlTensorDesc,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `desc`.
        let mut desc = unsafe { arguments::place(desc, "the description") }?;
        // SAFETY: the table's contract on `value`.
        desc.set(unsafe { borrow(value) }?.tensor()?.describe());
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn tensor_with_bytes(
    value: *mut CmlValue,
    writable: i32,
    visit: CmlTensorBytesFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    // SAFETY: the table's contracts on `value` and `visit` are the function's.
    let body = || unsafe { visit_bytes(value, writable, visit, context) };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

/// Shows a tensor's memory to a visitor.
///
/// # Safety
/// `value` must be NULL or a live handle of this bridge; the visitor, if there is one, takes `context`, and writes only what is
/// `writable`.
pub(crate) unsafe fn visit_bytes(
    value: *mut CmlValue,
    writable: i32,
    visit: CmlTensorBytesFn,
    context: *mut c_void,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let tensor = unsafe { borrow(value) }?.tensor()?;
    let visit = visit.ok_or_else(|| Failure::null("the visitor"))?;
    let desc = tensor.describe();
    if writable == 0 {
        let memory = tensor.memory.read()?;
        // SAFETY: the visitor is the caller's; the memory outlives the call, and a reader does not write.
        unsafe { visit(context, memory.bytes().as_ptr().cast_mut().cast(), &raw const desc) };
    } else {
        let mut memory = tensor.memory.write()?;
        // SAFETY: as above; `memory` is exclusive.
        unsafe { visit(context, memory.bytes_mut().as_mut_ptr().cast(), &raw const desc) };
    }
    Ok(())
}

pub(crate) unsafe extern "C" fn tensor_read(
    value: *mut CmlValue,
    dtype: CmlDtype,
    destination: *mut c_void,
    length: usize,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let tensor = unsafe { borrow(value) }?.tensor()?;
        let dtype = dtype_of(dtype)?;
        let needed = tensor.count().checked_mul(dtype.size());
        if needed != Some(length) {
            return Err(Failure::invalid(format!(
                "the tensor has {needed:?} bytes, the destination {length}"
            )));
        }
        // SAFETY: `destination` has `length` bytes by the table's contract.
        let destination =
            unsafe { arguments::slice_mut(destination.cast::<u8>(), length, "the destination") }?;
        let memory = tensor.memory.read()?;
        let bytes = memory.bytes();
        let mut to = 0;
        tensor.for_runs(|from, run| {
            let size = dtype.size();
            let chunk = &mut destination[to..][..run * size];
            if dtype == tensor.dtype {
                chunk.copy_from_slice(&bytes[from * size..][..run * size]);
            } else {
                for (i, element) in chunk.chunks_exact_mut(size).enumerate() {
                    store(element, dtype, load(bytes, tensor.dtype, from + i));
                }
            }
            to += run * size;
        });
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn scalar_new(
    _self: *mut c_void,
    scalar: *const CmlScalarView,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let mut value = unsafe { out(value, "value") }?;
        // SAFETY: the table's contract on `scalar`.
        let scalar = unsafe { scalar.as_ref() }.ok_or_else(|| Failure::null("the scalar"))?;
        let content = match scalar.kind {
            CML_KIND_INT64 => Content::Int64(scalar.int64),
            CML_KIND_DOUBLE => Content::Double(scalar.float64),
            CML_KIND_STRING => {
                // SAFETY: the string is borrowed for the call.
                let text = unsafe { arguments::text(scalar.string, "the string") }?;
                Content::String(text.to_owned())
            }
            kind => return Err(Failure::invalid(format!("kind {kind} is not a scalar"))),
        };
        value.set(into_handle(Value::new(content)));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn scalar_view(
    value: *const CmlValue,
    scalar: *mut CmlScalarView,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `scalar`.
        let mut scalar = unsafe { arguments::place(scalar, "the scalar") }?;
        // SAFETY: the table's contract on `value`.
        let value = unsafe { borrow(value) }?;
        let mut view = CmlScalarView {
            size: arguments::size_of_struct::<CmlScalarView>(),
            kind: value.kind(),
            int64: 0,
            float64: 0.0,
            string: CmlStr::NONE,
        };
        match &value.content {
            Content::Int64(x) => view.int64 = *x,
            Content::Double(x) => view.float64 = *x,
            Content::String(text) => view.string = CmlStr::from(text.as_str()),
            _ => return Err(Failure::mismatch(format!("a value of kind {} is not a scalar", value.kind()))),
        }
        scalar.set(view);
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

/// # Safety
/// `entries` must be NULL or valid, its arrays too.
unsafe fn entries_of(entries: *const CmlEntries, dictionary: bool) -> Result<Entries, Failure> {
    // SAFETY: NULL is checked, the rest is the caller's promise.
    let entries = unsafe { entries.as_ref() }.ok_or_else(|| Failure::null("the entries"))?;
    let keys: Vec<Key> = match entries.key_kind {
        CML_KIND_INT64 => {
            // SAFETY: `n` keys by the caller's promise.
            let keys = unsafe { arguments::slice(entries.int64_keys, entries.n, "the keys") }?;
            keys.iter().copied().map(Key::Int64).collect()
        }
        CML_KIND_STRING => {
            // SAFETY: as above.
            let keys = unsafe { arguments::slice(entries.string_keys, entries.n, "the keys") }?;
            keys.iter()
                // SAFETY: each string is borrowed for the call.
                .map(|key| unsafe { arguments::text(*key, "a key") }.map(|key| Key::String(key.to_owned())))
                .collect::<Result<_, _>>()?
        }
        kind => return Err(Failure::invalid(format!("kind {kind} is not a key"))),
    };
    let values = if dictionary {
        // SAFETY: as above.
        Some(unsafe { arguments::slice(entries.values, entries.n, "the values") }?.to_vec())
    } else {
        None
    };
    Ok(Entries::new(keys, entries.key_kind, values))
}

pub(crate) unsafe extern "C" fn dictionary_new(
    _self: *mut c_void,
    entries: *const CmlEntries,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let mut value = unsafe { out(value, "value") }?;
        // SAFETY: the table's contract on `entries`.
        let entries = unsafe { entries_of(entries, true) }?;
        value.set(into_handle(Value::new(Content::Entries(entries))));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn sequence_new(
    _self: *mut c_void,
    entries: *const CmlEntries,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let mut value = unsafe { out(value, "value") }?;
        // SAFETY: the table's contract on `entries`.
        let entries = unsafe { entries_of(entries, false) }?;
        value.set(into_handle(Value::new(Content::Entries(entries))));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn entries_view(
    value: *const CmlValue,
    entries: *mut CmlEntries,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `entries`.
        let mut view = unsafe { arguments::place(entries, "the entries") }?;
        // SAFETY: the table's contract on `value`.
        let value = unsafe { borrow(value) }?;
        let Content::Entries(found) = &value.content else {
            return Err(Failure::mismatch(format!("a value of kind {} has no entries", value.kind())));
        };
        let text = found.key_kind == CML_KIND_STRING;
        view.set(CmlEntries {
            size: arguments::size_of_struct::<CmlEntries>(),
            key_kind: found.key_kind,
            n: if text { found.strings.len() } else { found.ints.len() },
            int64_keys: if text { std::ptr::null() } else { found.ints.as_ptr() },
            string_keys: if text { found.views.as_ptr() } else { std::ptr::null() },
            values: found.values.as_ref().map_or(std::ptr::null(), |values| values.as_ptr()),
        });
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn image_new(
    _self: *mut c_void,
    desc: *const CmlImageDesc,
    pixels: *const c_void,
    length: usize,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let mut value = unsafe { out(value, "value") }?;
        // SAFETY: the table's contract on `desc`.
        let desc = unsafe { desc.as_ref() }.ok_or_else(|| Failure::null("the image's description"))?;
        let format = format_of(desc.format)?;
        let (width, height) = (desc.width as usize, desc.height as usize);
        let bad = || Failure::invalid(format!("no image has {width}x{height} pixels in {length} bytes"));
        let row = width.checked_mul(format.size()).ok_or_else(bad)?;
        if width == 0 || height == 0 || desc.row_bytes < row {
            return Err(bad());
        }
        let needed =
            desc.row_bytes.checked_mul(height - 1).and_then(|n| n.checked_add(row)).ok_or_else(bad)?;
        if length < needed {
            return Err(bad());
        }
        // SAFETY: `pixels` has `length` bytes by the table's contract.
        let bytes = unsafe { arguments::slice(pixels.cast::<u8>(), length, "the pixels") }?;
        let rows = bytes.chunks(desc.row_bytes).take(height);
        let pixels: Vec<u8> = rows.flat_map(|line| &line[..row]).copied().collect();
        let pixels = Serial::new("image", pixels);
        value.set(into_handle(Value::new(Content::Image(Image { format, width, height, pixels }))));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn image_with_bytes(
    value: *mut CmlValue,
    writable: i32,
    visit: CmlImageBytesFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `value`.
        let image = unsafe { borrow(value) }?.image()?;
        let visit = visit.ok_or_else(|| Failure::null("the visitor"))?;
        let desc = CmlImageDesc {
            size: arguments::size_of_struct::<CmlImageDesc>(),
            format: format_number(image.format),
            width: u32::try_from(image.width).unwrap_or(u32::MAX),
            height: u32::try_from(image.height).unwrap_or(u32::MAX),
            row_bytes: image.width * image.format.size(),
        };
        if writable == 0 {
            let pixels = image.pixels.read()?;
            // SAFETY: the visitor is the caller's; the pixels outlive the call, and a reader must not write.
            unsafe { visit(context, pixels.as_ptr().cast_mut().cast(), &raw const desc) };
        } else {
            let mut pixels = image.pixels.write()?;
            // SAFETY: as above; `pixels` is exclusive.
            unsafe { visit(context, pixels.as_mut_ptr().cast(), &raw const desc) };
        }
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}
