//! Values on their way through the table.
//!
//! In: a tensor is wrapped, not copied; the native array holds a count of its memory, which any thread may give back at any
//! later time. Everything else is copied. Out: everything is copied into memory of ours, tensors by their strides.

use core::{
    ffi::c_void,
    panic::AssertUnwindSafe,
    ptr::{self, NonNull},
    slice,
};
use std::{panic::catch_unwind, sync::Arc};

use coreml_sys::*;

use crate::{
    Bridge, Dictionary, Dtype, Image, Kind, PixelFormat, Sequence, Tensor, Value,
    layout::{self, Offsets},
    native::{Failure, Owned, array, text},
    tensor::Storage,
};

/// No framework has more; a bridge that says so is broken.
const MOST_DIMENSIONS: u32 = 64;

/// The shape (or strides) in the table's form.
fn dimensions(list: &[usize]) -> Vec<i64> {
    // Every dimension and stride of a tensor counts elements in memory, so it fits.
    list.iter().map(|&dimension| dimension as i64).collect()
}

/// Borrows both lists: the result must not outlive them.
fn tensor_desc(dtype: Dtype, shape: &[i64], strides: &[i64]) -> CmlTensorDesc {
    CmlTensorDesc {
        size: size_of::<CmlTensorDesc>() as u32,
        dtype: dtype.to_native(),
        rank: shape.len() as u32,
        shape: shape.as_ptr(),
        strides: strides.as_ptr(),
        byte_len: 0,
    }
}

/// Gives back the count that [`Bridge::wrap`] put in the native array's keeping.
unsafe extern "C" fn release_storage(owner: *mut c_void) {
    // SAFETY: `wrap` made the pointer with `Arc::into_raw` and gave its count to the table, which calls this exactly once
    // (rule 4). Any thread will do: the storage is `Send + Sync`.
    drop(unsafe { Arc::from_raw(owner.cast_const().cast::<Storage>()) });
}

const fn _storage_may_be_released_anywhere<T: Send + Sync + 'static>() {}
const _: () = _storage_may_be_released_anywhere::<Storage>();

impl Bridge {
    /// A native tensor on `length` bytes at `data`, which lie within the heap memory of `storage` and are kept alive by a
    /// count of it.
    ///
    /// # Safety
    /// Until the returned value, and whatever the bridge keeps of it, is gone, the other side may read the bytes; it may
    /// write them while it is a backing of a running prediction. The caller makes sure that no reference in Rust conflicts
    /// with that.
    unsafe fn wrap(
        self,
        storage: &Arc<Storage>,
        shape: &[usize],
        strides: &[usize],
        data: *mut u8,
        length: usize,
    ) -> Result<Owned<CmlValue>, Failure> {
        let (shape, strides) = (dimensions(shape), dimensions(strides));
        let desc = tensor_desc(storage.dtype(), &shape, &strides);
        let owner = Arc::into_raw(Arc::clone(storage));
        let result = self.make("tensor_wrap", |table, value, error| {
            let release: CmlReleaseFn = Some(release_storage);
            let owner = owner.cast_mut().cast();
            // SAFETY: the desc and its lists are borrowed for the call; `length` bytes at `data` live as long as the owner;
            // the caller upholds the rest.
            unsafe {
                (table.tensor_wrap)(table.own(), &desc, data.cast(), length, release, owner, value, error)
            }
        });
        if result.is_err() {
            // SAFETY: on failure the table did not take the owner (header, `tensor_wrap`), so its count is still ours.
            drop(unsafe { Arc::from_raw(owner) });
        }
        result
    }

    /// The native form of a value.
    pub(crate) fn lend(self, value: &Value) -> Result<Owned<CmlValue>, Failure> {
        match value {
            Value::Tensor(tensor) => self.lend_tensor(tensor),
            Value::Image(image) => self.lend_image(image),
            Value::Int64(number) => self.lend_scalar(Kind::Int64, *number, 0.0, CmlStr::NONE),
            Value::Double(number) => self.lend_scalar(Kind::Double, 0, *number, CmlStr::NONE),
            Value::String(text) => self.lend_scalar(Kind::String, 0, 0.0, (&**text).into()),
            Value::Dictionary(Dictionary::Int64(entries)) => {
                let keys: Vec<i64> = entries.keys().copied().collect();
                let values: Vec<f64> = entries.values().copied().collect();
                self.lend_entries(Keys::Int64(&keys), Some(&values))
            }
            Value::Dictionary(Dictionary::String(entries)) => {
                let keys: Vec<CmlStr> = entries.keys().map(|key| key.as_str().into()).collect();
                let values: Vec<f64> = entries.values().copied().collect();
                self.lend_entries(Keys::String(&keys), Some(&values))
            }
            Value::Sequence(Sequence::Int64(elements)) => self.lend_entries(Keys::Int64(elements), None),
            Value::Sequence(Sequence::String(elements)) => {
                let elements: Vec<CmlStr> = elements.iter().map(|text| text.as_str().into()).collect();
                self.lend_entries(Keys::String(&elements), None)
            }
        }
    }

    fn lend_tensor(self, tensor: &Tensor) -> Result<Owned<CmlValue>, Failure> {
        let bytes = tensor.span_bytes();
        let data = bytes.as_ptr().cast_mut();
        // SAFETY: an input is only read (rule 4), and the memory is shared: writing it in Rust (`make_mut`) copies it first for
        // as long as the native array holds its count.
        unsafe { self.wrap(tensor.storage(), tensor.shape(), tensor.strides(), data, bytes.len()) }
    }

    fn lend_image(self, image: &Image) -> Result<Owned<CmlValue>, Failure> {
        let desc = CmlImageDesc {
            size: size_of::<CmlImageDesc>() as u32,
            format: image.format().to_native(),
            width: image.width(),
            height: image.height(),
            row_bytes: image.row_bytes(),
        };
        let pixels = image.bytes();
        self.make("image_new", |table, value, error| {
            // SAFETY: desc and pixels are borrowed for the call; the pixels are `height` rows of `row_bytes`.
            unsafe {
                let slot = table.image_new;
                slot(table.own(), &desc, pixels.as_ptr().cast(), pixels.len(), value, error)
            }
        })
    }

    fn lend_scalar(
        self,
        kind: Kind,
        int64: i64,
        float64: f64,
        string: CmlStr,
    ) -> Result<Owned<CmlValue>, Failure> {
        let size = size_of::<CmlScalarView>() as u32;
        let scalar = CmlScalarView { size, kind: kind.to_native(), int64, float64, string };
        self.make("scalar_new", |table, value, error| {
            // SAFETY: the view and its string are borrowed for the call.
            unsafe { (table.scalar_new)(table.own(), &scalar, value, error) }
        })
    }

    /// A dictionary if there are values, else a sequence.
    fn lend_entries(self, keys: Keys<'_>, values: Option<&[f64]>) -> Result<Owned<CmlValue>, Failure> {
        let size = size_of::<CmlEntries>() as u32;
        let values_at = values.map_or(ptr::null(), <[f64]>::as_ptr);
        let entries = match keys {
            Keys::Int64(keys) => CmlEntries {
                size,
                key_kind: CML_KIND_INT64,
                n: keys.len(),
                int64_keys: keys.as_ptr(),
                string_keys: ptr::null(),
                values: values_at,
            },
            Keys::String(keys) => CmlEntries {
                size,
                key_kind: CML_KIND_STRING,
                n: keys.len(),
                int64_keys: ptr::null(),
                string_keys: keys.as_ptr(),
                values: values_at,
            },
        };
        let name = if values.is_some() { "dictionary_new" } else { "sequence_new" };
        self.make(name, |table, value, error| {
            let slot = if values.is_some() { table.dictionary_new } else { table.sequence_new };
            // SAFETY: the arrays are borrowed for the call and have `n` elements each.
            unsafe { slot(table.own(), &entries, value, error) }
        })
    }

    /// A copy of a native value. The value must be alive, this bridge's, and nobody else may be using its contents.
    pub(crate) fn collect(self, value: NonNull<CmlValue>) -> Result<Value, Failure> {
        let value_kind = self.table().value_kind;
        // SAFETY: the caller vouches for the value.
        let number = unsafe { value_kind(value.as_ptr()) };
        match Kind::from_native(number) {
            Some(Kind::Tensor) => self.collect_tensor(value).map(Value::Tensor),
            Some(Kind::Image) => self.collect_image(value).map(Value::Image),
            Some(Kind::Int64) => Ok(Value::Int64(self.scalar(value)?.int64)),
            Some(Kind::Double) => Ok(Value::Double(self.scalar(value)?.float64)),
            Some(Kind::String) => {
                let scalar = self.scalar(value)?;
                // SAFETY: the string lives as long as the value, which is alive.
                Ok(Value::from(unsafe { text("scalar_view", scalar.string) }?))
            }
            Some(kind @ (Kind::Dictionary | Kind::Sequence)) => self.collect_entries(value, kind),
            None => Err(Failure::contract("value_kind", "it gave a number that is no kind")),
        }
    }

    fn scalar(self, value: NonNull<CmlValue>) -> Result<CmlScalarView, Failure> {
        let mut scalar = CmlScalarView {
            size: size_of::<CmlScalarView>() as u32,
            kind: CML_KIND_INVALID,
            int64: 0,
            float64: 0.0,
            string: CmlStr::NONE,
        };
        self.call(|table, error| {
            // SAFETY: the value is alive, the view is ours and says its size.
            unsafe { (table.scalar_view)(value.as_ptr(), &mut scalar, error) }
        })?;
        Ok(scalar)
    }

    fn collect_tensor(self, value: NonNull<CmlValue>) -> Result<Tensor, Failure> {
        let (dtype, shape) = self.tensor_form(value)?;
        let mut tensor = Tensor::zeros(dtype, &shape).map_err(Failure::Tensor)?;
        let storage = tensor.storage_mut().ok_or(Failure::contract("tensor_read", "its memory is shared"))?;
        self.read_tensor(value, storage)?;
        Ok(tensor)
    }

    /// Copies a native tensor, dense, into memory of exactly its size.
    pub(crate) fn read_tensor(self, value: NonNull<CmlValue>, storage: &mut Storage) -> Result<(), Failure> {
        let dtype = storage.dtype().to_native();
        let bytes = storage.bytes_mut();
        self.call(|table, error| {
            let destination = bytes.as_mut_ptr().cast();
            // SAFETY: the value is alive; the bytes are borrowed mutably for the call, and their number is said.
            unsafe { (table.tensor_read)(value.as_ptr(), dtype, destination, bytes.len(), error) }
        })
    }

    /// Element type and shape of a native tensor.
    pub(crate) fn tensor_form(self, value: NonNull<CmlValue>) -> Result<(Dtype, Vec<usize>), Failure> {
        const SLOT: &str = "tensor_desc";
        let mut desc = CmlTensorDesc {
            size: size_of::<CmlTensorDesc>() as u32,
            dtype: 0,
            rank: 0,
            shape: ptr::null(),
            strides: ptr::null(),
            byte_len: 0,
        };
        self.call(|table, error| {
            // SAFETY: the value is alive, the desc is ours and says its size.
            unsafe { (table.tensor_desc)(value.as_ptr(), &mut desc, error) }
        })?;
        let dtype = Dtype::from_native(desc.dtype)
            .ok_or(Failure::contract(SLOT, "it gave a number that is no element type"))?;
        // SAFETY: shape and strides live as long as the value, which is alive.
        Ok((dtype, unsafe { counts(SLOT, desc.rank, desc.shape) }?))
    }

    /// Whether a native tensor's elements lie densely at `data`.
    pub(crate) fn is_at(self, value: NonNull<CmlValue>, data: *const u8) -> Result<bool, Failure> {
        let mut is_at = false;
        visit_bytes(
            "tensor_with_bytes",
            |view| {
                is_at =
                    ptr::eq(view.bytes.as_ptr(), data) && layout::is_row_major(&view.shape, &view.strides);
                Ok(())
            },
            |visit, context| {
                self.call(|table, error| {
                    // SAFETY: the value is alive; the context is the visit's own, borrowed for the call.
                    unsafe { (table.tensor_with_bytes)(value.as_ptr(), 0, visit, context, error) }
                })
            },
        )?;
        Ok(is_at)
    }

    /// A copy of a state's memory.
    pub(crate) fn read_state(self, state: &Owned<CmlState>, name: &str) -> Result<Tensor, Failure> {
        let mut tensor = None;
        visit_bytes(
            "state_with_bytes",
            |view| {
                let TensorView { bytes, dtype, shape, strides, .. } = &view;
                // SAFETY: within the visit the bytes are there to be read; the view checked their number.
                let bytes = unsafe { slice::from_raw_parts(bytes.as_ptr(), view.byte_len()) };
                let mut result = Tensor::zeros(*dtype, shape).map_err(Failure::Tensor)?;
                if let Some(storage) = result.storage_mut() {
                    gather(*dtype, bytes, Offsets::new(shape, strides, 0), storage.bytes_mut());
                }
                tensor = Some(result);
                Ok(())
            },
            |visit, context| {
                self.call(|table, error| {
                    // SAFETY: the state is alive; name and context are borrowed for the call.
                    unsafe { (table.state_with_bytes)(state.as_ptr(), name.into(), 0, visit, context, error) }
                })
            },
        )?;
        tensor.ok_or(Failure::contract("state_with_bytes", "it succeeded without a visit"))
    }

    /// Writes a state's memory; element type and shape must be the state's.
    pub(crate) fn write_state(
        self,
        state: &Owned<CmlState>,
        name: &str,
        tensor: &Tensor,
    ) -> Result<(), Failure> {
        let dense = tensor.to_dense();
        let source = dense.as_bytes().map_err(Failure::Tensor)?;
        visit_bytes(
            "state_with_bytes",
            |view| {
                let TensorView { bytes, dtype, shape, strides, .. } = &view;
                if *dtype != dense.dtype() || shape != dense.shape() {
                    return Err(Failure::contract("state_with_bytes", "the state is not as described"));
                }
                if !layout::is_injective(shape, strides) {
                    return Err(Failure::contract("state_with_bytes", "the state's elements overlap"));
                }
                // SAFETY: within a writable visit the bytes are ours alone; the view checked their number.
                let bytes = unsafe { slice::from_raw_parts_mut(bytes.as_ptr(), view.byte_len()) };
                scatter(*dtype, source, Offsets::new(shape, strides, 0), bytes);
                Ok(())
            },
            |visit, context| {
                self.call(|table, error| {
                    // SAFETY: the state is alive; name and context are borrowed for the call.
                    unsafe { (table.state_with_bytes)(state.as_ptr(), name.into(), 1, visit, context, error) }
                })
            },
        )
    }

    fn collect_image(self, value: NonNull<CmlValue>) -> Result<Image, Failure> {
        const SLOT: &str = "image_with_bytes";
        let mut image: Option<Result<Image, Failure>> = None;
        self.call(|table, error| {
            let context = ptr::from_mut(&mut image).cast();
            // SAFETY: the value is alive; the context is `image`, as `show_image` wants it, borrowed for the call.
            unsafe { (table.image_with_bytes)(value.as_ptr(), 0, Some(show_image), context, error) }
        })?;
        image.unwrap_or(Err(Failure::contract(SLOT, "it succeeded without a visit")))
    }

    fn collect_entries(self, value: NonNull<CmlValue>, kind: Kind) -> Result<Value, Failure> {
        const SLOT: &str = "entries_view";
        let mut view = CmlEntries {
            size: size_of::<CmlEntries>() as u32,
            key_kind: CML_KIND_INVALID,
            n: 0,
            int64_keys: ptr::null(),
            string_keys: ptr::null(),
            values: ptr::null(),
        };
        self.call(|table, error| {
            // SAFETY: the value is alive, the view is ours and says its size.
            unsafe { (table.entries_view)(value.as_ptr(), &mut view, error) }
        })?;
        let values = if kind == Kind::Dictionary {
            // SAFETY: the arrays of a view live as long as the value, and have `n` elements.
            unsafe { array(SLOT, view.values, view.n) }?
        } else {
            &[]
        };
        match view.key_kind {
            CML_KIND_INT64 => {
                // SAFETY: as above.
                let keys = unsafe { array(SLOT, view.int64_keys, view.n) }?;
                Ok(match kind {
                    Kind::Dictionary => {
                        keys.iter().copied().zip(values.iter().copied()).collect::<Dictionary>().into()
                    }
                    _ => keys.iter().copied().collect::<Sequence>().into(),
                })
            }
            CML_KIND_STRING => {
                // SAFETY: as above.
                let keys = unsafe { array(SLOT, view.string_keys, view.n) }?;
                // SAFETY: the strings live as long as the value.
                let keys = keys.iter().map(|key| unsafe { text(SLOT, *key) }.map(str::to_owned));
                Ok(match kind {
                    Kind::Dictionary => {
                        let entries = keys.zip(values).map(|(key, value)| Ok((key?, *value)));
                        entries
                            .collect::<Result<Vec<_>, Failure>>()?
                            .into_iter()
                            .collect::<Dictionary>()
                            .into()
                    }
                    _ => keys.collect::<Result<Vec<_>, Failure>>()?.into_iter().collect::<Sequence>().into(),
                })
            }
            _ => Err(Failure::contract(SLOT, "it gave a number that is no kind of key")),
        }
    }
}

enum Keys<'a> {
    Int64(&'a [i64]),
    String(&'a [CmlStr]),
}

/// A list of dimensions that the other side lends, as counts.
///
/// # Safety
/// `first` is null or points at `rank` numbers that are alive.
unsafe fn counts(slot: &'static str, rank: u32, first: *const i64) -> Result<Vec<usize>, Failure> {
    if rank > MOST_DIMENSIONS {
        return Err(Failure::contract(slot, "it gave more dimensions than there can be"));
    }
    // SAFETY: the caller promises it.
    let numbers = unsafe { array(slot, first, rank as usize) }?;
    let counts = numbers.iter().map(|&number| usize::try_from(number));
    counts.collect::<Result<_, _>>().map_err(|_| Failure::contract(slot, "it gave a negative dimension"))
}

/// A tensor's memory as the other side shows it: the elements were checked to lie within it.
struct TensorView {
    bytes: NonNull<u8>,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// Elements from the first to the end of the last.
    span: usize,
}

impl TensorView {
    /// # Safety
    /// The lists of `desc` are alive.
    unsafe fn check(slot: &'static str, bytes: *mut c_void, desc: &CmlTensorDesc) -> Result<Self, Failure> {
        let dtype = Dtype::from_native(desc.dtype)
            .ok_or(Failure::contract(slot, "it gave a number that is no element type"))?;
        // SAFETY: the caller promises it.
        let shape = unsafe { counts(slot, desc.rank, desc.shape) }?;
        // SAFETY: as above.
        let strides = unsafe { counts(slot, desc.rank, desc.strides) }?;
        let span = layout::span(&shape, &strides)
            .filter(|span| span.checked_mul(dtype.size()).is_some_and(|bytes| bytes as u64 <= desc.byte_len))
            .ok_or(Failure::contract(slot, "its strides reach beyond its memory"))?;
        let bytes = match NonNull::new(bytes.cast::<u8>()) {
            Some(bytes) => bytes,
            None if span == 0 => NonNull::dangling(),
            None => return Err(Failure::contract(slot, "it gave null memory")),
        };
        Ok(TensorView { bytes, dtype, shape, strides, span })
    }

    fn byte_len(&self) -> usize {
        self.span * self.dtype.size()
    }
}

/// Runs what C called; a panic does not leave.
fn contain<R>(slot: &'static str, visit: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    let mut answer = None;
    shield(|| answer = Some(visit()));
    answer.unwrap_or_else(|| Err(Failure::contract(slot, "what it showed made the visit panic")))
}

/// Runs somebody else's code within a call from C. Its panic, which the hook has reported, does not leave, and what the panic carries
/// is dropped; should that panic, too, what it carries is given up.
pub(crate) fn shield(code: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(code))
        && let Err(of_a_drop) = catch_unwind(AssertUnwindSafe(|| drop(panic)))
    {
        core::mem::forget(of_a_drop);
    }
}

/// A closure on its way through C, and what it answered.
struct Visit<F> {
    slot: &'static str,
    call: Option<F>,
    result: Option<Result<(), Failure>>,
}

/// Runs `call` with a C function that shows the memory of a tensor to `visit`.
fn visit_bytes<F>(
    slot: &'static str,
    visit: F,
    call: impl FnOnce(CmlTensorBytesFn, *mut c_void) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    F: FnOnce(TensorView) -> Result<(), Failure>,
{
    unsafe extern "C" fn show<F>(context: *mut c_void, bytes: *mut c_void, desc: *const CmlTensorDesc)
    where
        F: FnOnce(TensorView) -> Result<(), Failure>,
    {
        // SAFETY: the context is the visit that was given along with this function, alive and borrowed for the call.
        let visit = unsafe { &mut *context.cast::<Visit<F>>() };
        let slot = visit.slot;
        let call = visit.call.take();
        visit.result = Some(contain(slot, || {
            let call = call.ok_or(Failure::contract(slot, "it visits twice"))?;
            // SAFETY: the other side shows a desc that is alive during the visit, or null.
            let desc = unsafe { desc.as_ref() }.ok_or(Failure::contract(slot, "it gave no desc"))?;
            // SAFETY: and so are the lists of the desc.
            call(unsafe { TensorView::check(slot, bytes, desc) }?)
        }));
    }

    let mut visit = Visit { slot, call: Some(visit), result: None };
    call(Some(show::<F>), ptr::from_mut(&mut visit).cast())?;
    visit.result.unwrap_or(Err(Failure::contract(slot, "it succeeded without a visit")))
}

/// Copies the pixels that the other side shows into the context.
unsafe extern "C" fn show_image(context: *mut c_void, pixels: *mut c_void, desc: *const CmlImageDesc) {
    const SLOT: &str = "image_with_bytes";
    // SAFETY: `collect_image` gives this function along with such a context, alive and borrowed for the call.
    let image = unsafe { &mut *context.cast::<Option<Result<Image, Failure>>>() };
    *image = Some(contain(SLOT, || {
        // SAFETY: the other side shows a desc that is alive during the visit, or null.
        let desc = unsafe { desc.as_ref() }.ok_or(Failure::contract(SLOT, "it gave no desc"))?;
        // SAFETY: during the visit the other side shows the pixels that the desc describes.
        unsafe { copy_image(pixels, desc) }
    }));
}

/// Pixels that the other side shows, row by row, without padding.
///
/// # Safety
/// `pixels` is null or points at the rows that `desc` describes, of which the last may be short.
unsafe fn copy_image(pixels: *mut c_void, desc: &CmlImageDesc) -> Result<Image, Failure> {
    const SLOT: &str = "image_with_bytes";
    let format = PixelFormat::from_native(desc.format)
        .ok_or(Failure::contract(SLOT, "it gave a number that is no pixel format"))?;
    let (width, height) = (desc.width as usize, desc.height as usize);
    let row = width.checked_mul(format.size()).filter(|&row| row > 0 && row <= desc.row_bytes);
    let row = row.ok_or(Failure::contract(SLOT, "its rows are longer than their distance"))?;
    let length = height.checked_sub(1).and_then(|rows| rows.checked_mul(desc.row_bytes)?.checked_add(row));
    let length = length
        .filter(|&length| isize::try_from(length).is_ok() && !pixels.is_null())
        .ok_or(Failure::contract(SLOT, "it gave no pixels"))?;
    // SAFETY: not null, and the caller promises `height` rows, `row_bytes` apart, of which the last may be short.
    let pixels = unsafe { slice::from_raw_parts(pixels.cast_const().cast::<u8>(), length) };
    let bytes: Vec<u8> = pixels.chunks(desc.row_bytes).flat_map(|chunk| &chunk[..row]).copied().collect();
    Image::on(format, desc.width, desc.height, bytes)
        .map_err(|_| Failure::contract(SLOT, "its size and its pixels do not agree"))
}

/// Copies elements from where `offsets` say to one after the other.
fn gather(dtype: Dtype, source: &[u8], offsets: Offsets<'_>, destination: &mut [u8]) {
    let size = dtype.size();
    for (offset, element) in offsets.zip(destination.chunks_exact_mut(size)) {
        element.copy_from_slice(&source[offset * size..(offset + 1) * size]);
    }
}

/// Copies elements that lie one after the other to where `offsets` say.
fn scatter(dtype: Dtype, source: &[u8], offsets: Offsets<'_>, destination: &mut [u8]) {
    let size = dtype.size();
    for (offset, element) in offsets.zip(source.chunks_exact(size)) {
        destination[offset * size..(offset + 1) * size].copy_from_slice(element);
    }
}

/// Memory that an output may be written into: a dense tensor that is Rust's alone until the prediction runs.
pub(crate) struct Backing {
    name: String,
    storage: Arc<Storage>,
    shape: Arc<[usize]>,
    /// Where the elements are; may be written through while a prediction runs.
    data: *mut u8,
    /// Ours to release as soon as the prediction is over.
    value: Owned<CmlValue>,
}

impl Backing {
    /// Takes the tensor's memory, if it is the tensor's alone and dense; else memory of the same form.
    pub(crate) fn new(bridge: Bridge, name: String, tensor: Tensor) -> Result<Backing, Failure> {
        let (dtype, shape) = (tensor.dtype(), Arc::clone(tensor.shared_shape()));
        let mut storage = match tensor.into_whole_storage() {
            Some(storage) => storage,
            None => Arc::clone(Tensor::zeros(dtype, &shape).map_err(Failure::Tensor)?.storage()),
        };
        let memory = Arc::get_mut(&mut storage)
            .ok_or(Failure::contract("tensor_wrap", "a new tensor's memory is shared"))?
            .bytes_mut();
        let (data, length) = (memory.as_mut_ptr(), memory.len());
        let strides = layout::row_major(&shape);
        // SAFETY: `data` comes from an exclusive borrow of memory that nobody else shares, and until `finish` no reference
        // to the elements is made. After the prediction the other side only reads (rule 6).
        let value = unsafe { bridge.wrap(&storage, &shape, &strides, data, length) }?;
        Ok(Backing { name, storage, shape, data, value })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn as_ptr(&self) -> *mut CmlValue {
        self.value.as_ptr()
    }

    /// The output, after the prediction, and whether it was written into this memory. `claimed` says whether the other side
    /// says so; it is believed only if the output lies there.
    pub(crate) fn finish(
        self,
        bridge: Bridge,
        output: NonNull<CmlValue>,
        claimed: bool,
    ) -> Result<(Tensor, bool), Failure> {
        let Backing { name: _, mut storage, shape, data, value } = self;
        let (dtype, found) = bridge.tensor_form(output)?;
        let same_form = dtype == storage.dtype() && *found == *shape;
        if claimed && same_form && bridge.is_at(output, data)? {
            return Ok((Tensor::on(storage, shape), true));
        }
        drop(value);
        // A bridge that ignores the backing may have given its count back by now; then the memory serves all the same.
        if same_form && let Some(memory) = Arc::get_mut(&mut storage) {
            bridge.read_tensor(output, memory)?;
            return Ok((Tensor::on(storage, shape), false));
        }
        bridge.collect_tensor(output).map(|tensor| (tensor, false))
    }
}
