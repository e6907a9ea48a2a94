//! The slots of the fake's table.
//!
//! Every slot that can fail runs inside [`guarded`]: nothing unwinds, a failure becomes an error of the fake's own.

use std::{
    collections::HashSet,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use coreml_bridge::{
    Dictionary, Dtype, Features, Image, Kind, ModelDescription, PixelFormat, Sequence, Tensor, Value,
};
use coreml_sys::*;

use crate::{
    fake::{Backings, Fake, Outcome, REFUSAL, zero_states},
    log::Listener,
    objects::{Entry, Handle, Running, find, hand_out, hand_out_to, let_go, release, retain},
};

/// Why a slot fails.
enum Failure {
    /// With an error of one message.
    Status(CmlStatus, String),
    /// With the error of a refusal.
    Refused,
    /// With no error at all.
    Silent,
    /// Not at all, but it makes nothing.
    Nothing,
}

type Answer<T> = Result<T, Failure>;

fn invalid(message: impl Into<String>) -> Failure {
    Failure::Status(CML_INVALID_ARGUMENT, message.into())
}

fn mismatch(message: impl Into<String>) -> Failure {
    Failure::Status(CML_TYPE_MISMATCH, message.into())
}

/// One level of an error.
struct Level {
    status: CmlStatus,
    code: i64,
    domain: &'static str,
    message: String,
    reason: &'static str,
}

/// Plain data of C that is shared, for it points at what lives as long, and is not changed.
struct Shared<T>(T);

// SAFETY: only for lists whose pointers point into the object that holds them, which is immutable and `Send + Sync`.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

/// Runs a slot, and turns what becomes of it into a status and an error.
fn guarded(
    fake: Option<&'static Fake>,
    error: *mut *mut CmlError,
    slot: impl FnOnce() -> Answer<()>,
) -> CmlStatus {
    // SAFETY: the caller gives null or its own out-pointer.
    unsafe { set(error, ptr::null_mut()) };
    let outcome = catch_unwind(AssertUnwindSafe(slot)).unwrap_or_else(|payload| {
        let message = payload.downcast_ref::<&str>().map_or("a panic", |message| message);
        Err(Failure::Status(CML_FOREIGN_EXCEPTION, format!("caught a panic: {message}")))
    });
    let level = |status, code, message: &str| Level {
        status,
        code,
        domain: "coreml.fake",
        message: message.to_owned(),
        reason: "",
    };
    let (status, levels) = match outcome {
        Ok(()) | Err(Failure::Nothing) => return CML_OK,
        Err(Failure::Silent) => return CML_FRAMEWORK,
        Err(Failure::Status(status, message)) => (status, vec![level(status, i64::from(status), &message)]),
        Err(Failure::Refused) => {
            let levels = REFUSAL.iter().zip(1..).map(|(message, code)| Level {
                reason: if code == 4 { "it is the deepest" } else { "" },
                ..level(CML_FRAMEWORK, code, message)
            });
            (CML_FRAMEWORK, levels.collect())
        }
    };
    if let Some(fake) = fake
        && !error.is_null()
    {
        let handle = hand_out::<CmlError>(fake, levels);
        // SAFETY: as above.
        unsafe { set(error, handle) };
    }
    status
}

/// Does what an outcome says, unless that is what the slot should do anyway.
fn play(outcome: Outcome) -> Answer<()> {
    match outcome {
        Outcome::Normal => Ok(()),
        Outcome::Refuse => Err(Failure::Refused),
        Outcome::RefuseWithoutError => Err(Failure::Silent),
        Outcome::Panic => panic!("the test said so"),
        Outcome::Busy => Err(Failure::Status(CML_BUSY, "another call is running".to_owned())),
        Outcome::Unsupported => Err(Failure::Status(CML_UNSUPPORTED, "this system is too old".to_owned())),
        Outcome::SucceedWithNothing => Err(Failure::Nothing),
    }
}

/// Writes through an out-pointer that may be null.
///
/// # Safety
/// `out` is null or may be written.
unsafe fn set<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not null, and the caller promises the rest.
        unsafe { out.write(value) };
    }
}

/// # Safety
/// The string's bytes live for `'a`.
unsafe fn text<'a>(string: CmlStr) -> Answer<&'a str> {
    // SAFETY: the caller promises it.
    let bytes = unsafe { string.as_bytes() };
    std::str::from_utf8(bytes).map_err(|_| invalid("not UTF-8"))
}

/// # Safety
/// `first` points at `count` elements that live for `'a`, or `count` is 0.
unsafe fn list<'a, T>(first: *const T, count: usize) -> Answer<&'a [T]> {
    match (count, first.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(invalid("a null list that is not empty")),
        // SAFETY: not null, and the caller promises the rest.
        (_, false) => Ok(unsafe { slice::from_raw_parts(first, count) }),
    }
}

/// # Safety
/// `desc` is null or lives for `'a`.
unsafe fn borrowed<'a, T>(desc: *const T) -> Answer<&'a T> {
    // SAFETY: the caller promises it.
    unsafe { desc.as_ref() }.ok_or_else(|| invalid("a null struct"))
}

/// The fake whose table is called.
fn own(this: *mut c_void) -> Option<&'static Fake> {
    // SAFETY: the table's `self` is the leaked fake, and callers pass it unchanged.
    unsafe { this.cast_const().cast::<Fake>().as_ref() }
}

fn known<H: Handle>(handle: *const H) -> Answer<Arc<Entry>> {
    find(handle).ok_or_else(|| invalid("a handle that is not alive"))
}

fn object<T: 'static>(entry: &Entry) -> Answer<&T> {
    entry.object().ok_or_else(|| invalid("a handle of another kind"))
}

fn running(entry: &Arc<Entry>) -> Answer<Running> {
    entry.enter().ok_or_else(busy)
}

fn busy() -> Failure {
    Failure::Status(CML_BUSY, "another call is running on this handle".to_owned())
}

// ---- memory of tensors ----

/// Eight-byte aligned memory, or memory of the caller's.
enum Memory {
    Owned(Mutex<Vec<u64>>),
    Wrapped(Wrapped),
}

struct Wrapped {
    fake: &'static Fake,
    data: *mut u8,
    release: unsafe extern "C" fn(*mut c_void),
    owner: *mut c_void,
}

// SAFETY: the owner keeps the memory alive and may be released on any thread (rule 4); the memory is only read, except
// within a prediction that it is a backing of, while nobody else uses it.
unsafe impl Send for Wrapped {}
// SAFETY: as above.
unsafe impl Sync for Wrapped {}

impl Drop for Wrapped {
    fn drop(&mut self) {
        let release = self.release;
        // SAFETY: this is the one owner, and it is dropped once.
        unsafe { release(self.owner) };
        self.fake.live_wraps.fetch_sub(1, Ordering::AcqRel);
    }
}

struct FakeTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    c_shape: Vec<i64>,
    c_strides: Vec<i64>,
    /// Bytes from the first element to the end of the last.
    length: usize,
    memory: Memory,
}

/// What rubbish between rows looks like.
const RUBBISH: u64 = 0xABAB_ABAB_ABAB_ABAB;

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

/// Strides with rows of a multiple of `alignment` bytes.
fn padded(shape: &[usize], size: usize, alignment: usize) -> Vec<usize> {
    let (Some(&row), true) = (shape.last(), alignment >= size && shape.len() > 1) else {
        return row_major(shape);
    };
    let mut padded_shape = shape.to_vec();
    if let Some(last) = padded_shape.last_mut() {
        *last = (row * size).next_multiple_of(alignment) / size;
    }
    row_major(&padded_shape)
}

fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let last = shape.iter().zip(strides).try_fold(0_usize, |last, (dimension, stride)| {
        last.checked_add(stride.checked_mul(dimension - 1)?)
    })?;
    last.checked_add(1)
}

/// Offsets of all elements, in row-major order of their indices.
fn offsets(shape: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    for (&dimension, &stride) in shape.iter().zip(strides) {
        offsets = offsets.iter().flat_map(|&start| (0..dimension).map(move |i| start + i * stride)).collect();
    }
    offsets
}

impl FakeTensor {
    fn new(dtype: Dtype, shape: &[usize], strides: Vec<usize>, length: usize, memory: Memory) -> FakeTensor {
        let in_c = |list: &[usize]| list.iter().map(|&number| number as i64).collect();
        FakeTensor {
            dtype,
            c_shape: in_c(shape),
            c_strides: in_c(&strides),
            shape: shape.to_vec(),
            strides,
            length,
            memory,
        }
    }

    /// Memory of the fake's own, zero or a copy, its rows padded.
    fn owned(dtype: Dtype, shape: &[usize], alignment: usize, tensor: Option<&Tensor>) -> Answer<FakeTensor> {
        let strides = padded(shape, dtype.size(), alignment);
        let length = span(shape, &strides)
            .and_then(|span| span.checked_mul(dtype.size()))
            .filter(|&length| length < 1 << 40)
            .ok_or_else(|| Failure::Status(CML_OUT_OF_MEMORY, "too large".to_owned()))?;
        let fill = if tensor.is_some() { RUBBISH } else { 0 };
        let memory = Memory::Owned(Mutex::new(vec![fill; length.div_ceil(8)]));
        let made = FakeTensor::new(dtype, shape, strides, length, memory);
        if let Some(tensor) = tensor {
            made.write(tensor)?;
        }
        Ok(made)
    }

    /// Shows the memory.
    fn with<R>(&self, visit: impl FnOnce(*mut u8) -> R) -> R {
        match &self.memory {
            Memory::Owned(words) => {
                visit(words.lock().unwrap_or_else(PoisonError::into_inner).as_mut_ptr().cast())
            }
            Memory::Wrapped(wrapped) => visit(wrapped.data),
        }
    }

    /// A dense copy.
    fn read(&self) -> Answer<Tensor> {
        self.with(|data| {
            // SAFETY: the memory has `length` bytes, and nobody writes them meanwhile: owned memory is locked, wrapped memory
            // is an input, or a backing whose prediction is over.
            let bytes = unsafe { slice::from_raw_parts(data, self.length) };
            let strided = Tensor::from_bytes(self.dtype, &self.shape, Some(&self.strides), bytes);
            strided.map(|tensor| tensor.to_dense()).map_err(|error| invalid(error.to_string()))
        })
    }

    /// Writes all elements and nothing between them.
    fn write(&self, tensor: &Tensor) -> Answer<()> {
        if tensor.dtype() != self.dtype || tensor.shape() != self.shape {
            return Err(mismatch("another form than the output's"));
        }
        let dense = tensor.to_dense();
        let source = dense.as_bytes().map_err(|error| invalid(error.to_string()))?;
        let size = self.dtype.size();
        self.with(|data| {
            // SAFETY: the memory has `length` bytes, and is ours alone: owned memory is locked, wrapped memory is a backing
            // of the prediction that is running.
            let bytes = unsafe { slice::from_raw_parts_mut(data, self.length) };
            for (offset, element) in
                offsets(&self.shape, &self.strides).into_iter().zip(source.chunks_exact(size))
            {
                bytes[offset * size..(offset + 1) * size].copy_from_slice(element);
            }
        });
        Ok(())
    }

    fn desc(&self) -> CmlTensorDesc {
        CmlTensorDesc {
            size: size_of::<CmlTensorDesc>() as u32,
            dtype: self.dtype.to_native(),
            rank: self.shape.len() as u32,
            shape: self.c_shape.as_ptr(),
            strides: self.c_strides.as_ptr(),
            byte_len: self.length as u64,
        }
    }

    fn show(&self, visit: CmlTensorBytesFn, context: *mut c_void) -> Answer<()> {
        let visit = visit.ok_or_else(|| invalid("a null function"))?;
        let desc = self.desc();
        self.with(|data| {
            // SAFETY: the caller's function and context belong together; memory and desc are alive for the call.
            unsafe { visit(context, data.cast(), &desc) }
        });
        Ok(())
    }
}

/// What is behind a value.
struct FakeValue {
    kind: Kind,
    contents: Contents,
}

enum Contents {
    Tensor(Arc<FakeTensor>),
    Image { image: Image, row_bytes: usize, pixels: Mutex<Vec<u8>> },
    Scalar(Value),
    Entries { value: Value, int64_keys: Vec<i64>, string_keys: Shared<Vec<CmlStr>>, numbers: Vec<f64> },
}

impl FakeValue {
    fn tensor(tensor: Arc<FakeTensor>) -> FakeValue {
        FakeValue { kind: Kind::Tensor, contents: Contents::Tensor(tensor) }
    }

    /// A copy of a value of Rust's, tensors and images with padded rows.
    fn of(value: &Value, alignment: usize) -> Answer<FakeValue> {
        let contents = match value {
            Value::Tensor(tensor) => {
                let made = FakeTensor::owned(tensor.dtype(), tensor.shape(), alignment, Some(tensor))?;
                Contents::Tensor(Arc::new(made))
            }
            Value::Image(image) => {
                let row_bytes = image.row_bytes().next_multiple_of(alignment.max(1));
                let rows = image.bytes().chunks(image.row_bytes());
                let pixels = rows.flat_map(|row| {
                    row.iter().copied().chain(std::iter::repeat_n(RUBBISH as u8, row_bytes - row.len()))
                });
                Contents::Image { image: image.clone(), row_bytes, pixels: Mutex::new(pixels.collect()) }
            }
            Value::Int64(_) | Value::Double(_) | Value::String(_) => Contents::Scalar(value.clone()),
            Value::Dictionary(dictionary) => {
                Self::entries(value, |int64_keys, string_keys, numbers| match dictionary {
                    Dictionary::Int64(entries) => {
                        int64_keys.extend(entries.keys());
                        numbers.extend(entries.values());
                    }
                    Dictionary::String(entries) => {
                        string_keys.extend(entries.keys().map(|key| CmlStr::from(key.as_str())));
                        numbers.extend(entries.values());
                    }
                })
            }
            Value::Sequence(sequence) => Self::entries(value, |int64_keys, string_keys, _| match sequence {
                Sequence::Int64(elements) => int64_keys.extend_from_slice(elements),
                Sequence::String(elements) => {
                    string_keys.extend(elements.iter().map(|text| CmlStr::from(text.as_str())));
                }
            }),
            _ => return Err(invalid("a value of a new kind")),
        };
        Ok(FakeValue { kind: value.kind(), contents })
    }

    /// The C lists point into the value's own counted memory, which the clone keeps.
    fn entries(value: &Value, fill: impl FnOnce(&mut Vec<i64>, &mut Vec<CmlStr>, &mut Vec<f64>)) -> Contents {
        let (mut int64_keys, mut string_keys, mut numbers) = (vec![], vec![], vec![]);
        fill(&mut int64_keys, &mut string_keys, &mut numbers);
        Contents::Entries { value: value.clone(), int64_keys, string_keys: Shared(string_keys), numbers }
    }

    /// What the model sees of it.
    fn to_rust(&self) -> Answer<Value> {
        Ok(match &self.contents {
            Contents::Tensor(tensor) => Value::Tensor(tensor.read()?),
            Contents::Image { image, .. } => Value::Image(image.clone()),
            Contents::Scalar(value) | Contents::Entries { value, .. } => value.clone(),
        })
    }

    fn as_tensor(&self) -> Answer<&Arc<FakeTensor>> {
        match &self.contents {
            Contents::Tensor(tensor) => Ok(tensor),
            _ => Err(mismatch("not a tensor")),
        }
    }
}

// ---- models, states and results ----

struct FakeModel {
    json: String,
    description: ModelDescription,
    /// Tells models apart: a state belongs to one.
    number: usize,
}

struct FakeState {
    model: usize,
    memory: Vec<(String, FakeTensor)>,
}

/// Names point into the texts; both are never changed.
struct FakeResult {
    outputs: Shared<Vec<CmlOutput>>,
    _names: Vec<Box<str>>,
    times: [u64; 3],
}

impl Drop for FakeResult {
    fn drop(&mut self) {
        for output in &self.outputs.0 {
            release(output.value);
        }
    }
}

/// The table of a fake.
pub(crate) fn table(fake: &'static Fake) -> CmlBridge {
    CmlBridge {
        abi_version: CML_ABI_VERSION,
        struct_size: size_of::<CmlBridge>() as u32,
        self_: ptr::from_ref(fake).cast_mut().cast(),
        backend_info: Some(backend_info),
        error_view: Some(error_view),
        error_free: Some(error_free),
        blob_bytes: Some(blob_bytes),
        blob_free: Some(blob_free),
        model_compile: Some(model_compile),
        model_load: Some(model_load),
        model_describe: Some(model_describe),
        model_predict: Some(model_predict),
        model_release: Some(model_release),
        result_view: Some(result_view),
        result_free: Some(result_free),
        value_kind: Some(value_kind),
        value_retain: Some(value_retain),
        value_release: Some(value_release),
        tensor_new: Some(tensor_new),
        tensor_copy: Some(tensor_copy),
        tensor_wrap: Some(tensor_wrap),
        tensor_desc: Some(tensor_desc),
        tensor_with_bytes: Some(tensor_with_bytes),
        tensor_read: Some(tensor_read),
        scalar_new: Some(scalar_new),
        scalar_view: Some(scalar_view),
        dictionary_new: Some(dictionary_new),
        sequence_new: Some(sequence_new),
        entries_view: Some(entries_view),
        image_new: Some(image_new),
        image_with_bytes: Some(image_with_bytes),
        state_new: Some(state_new),
        state_with_bytes: Some(state_with_bytes),
        state_release: Some(state_release),
        function_names: Some(function_names),
        model_predict_batch: Some(model_predict_batch),
        model_predict_async: Some(model_predict_async),
        model_load_async: Some(model_load_async),
        request_cancel: Some(request_cancel),
        request_release: Some(request_release),
        model_structure: Some(model_structure),
        compute_plan: Some(compute_plan),
        model_load_memory: Some(model_load_memory),
        log_set: Some(log_set),
    }
}

/// The registry id of the one GPU.
const GPU: u64 = 4_294_967_303;

/// Refuses a GPU that there is not, or that the compute units leave out.
fn check_device(config: &CmlConfig) -> Answer<()> {
    let CmlConfig { preferred_device, compute_units, .. } = *config;
    if preferred_device == 0 {
        return Ok(());
    }
    if compute_units != CML_COMPUTE_ALL && compute_units != CML_COMPUTE_CPU_AND_GPU {
        return Err(invalid("a GPU is preferred, but the compute units leave none"));
    }
    if preferred_device != GPU {
        let why = format!("there is no GPU with the registry id {preferred_device}");
        return Err(Failure::Status(CML_UNSUPPORTED, why));
    }
    Ok(())
}

/// The fake of an entry, where a slot has no `self`.
fn fake_of<H: Handle>(handle: *const H) -> Option<(&'static Fake, Arc<Entry>)> {
    find(handle).map(|entry| (entry.fake, entry))
}

unsafe extern "C" fn backend_info(
    this: *mut c_void,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    guarded(own(this), error, || {
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        let dtypes: &[Dtype] = if fake.behaviour().old_system {
            &[Dtype::Float32, Dtype::Float64, Dtype::Int32]
        } else {
            &Dtype::ALL
        };
        let info = serde_json::json!({
            "name": "fake",
            "version": env!("CARGO_PKG_VERSION"),
            "system": "test",
            "dtypes": dtypes,
            "features": [],
            "devices": [
                "cpu",
                { "kind": "gpu", "name": "a fake GPU", "registry_id": GPU },
                { "kind": "neural_engine", "cores": 16 },
            ],
        });
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(json, hand_out::<CmlBlob>(fake, info.to_string().into_bytes())) };
        Ok(())
    })
}

unsafe extern "C" fn error_view(error: *const CmlError, depth: u32, view: *mut CmlErrorView) {
    let entry = find(error);
    let levels = entry.as_deref().and_then(|entry| entry.object::<Vec<Level>>());
    let level = levels.and_then(|levels| levels.get(depth as usize));
    let below = levels.map_or(0, |levels| levels.len().saturating_sub(depth as usize + 1));
    let size = size_of::<CmlErrorView>() as u32;
    let filled = match level {
        Some(Level { status, code, domain, message, reason }) => CmlErrorView {
            size,
            depth_left: below as u32,
            status: *status,
            code: *code,
            domain: (*domain).into(),
            message: message.as_str().into(),
            reason: if reason.is_empty() { CmlStr::NONE } else { (*reason).into() },
        },
        None => CmlErrorView {
            size,
            depth_left: 0,
            status: CML_OK,
            code: 0,
            domain: CmlStr::NONE,
            message: CmlStr::NONE,
            reason: CmlStr::NONE,
        },
    };
    // SAFETY: the caller gives its own view. Its strings point into the entry, which lives until the error is freed.
    unsafe { set(view, filled) };
}

unsafe extern "C" fn error_free(error: *mut CmlError) {
    release(error);
}

unsafe extern "C" fn blob_bytes(blob: *const CmlBlob) -> CmlStr {
    let entry = find(blob);
    let bytes = entry.as_deref().and_then(|entry| entry.object::<Vec<u8>>());
    // The bytes live in the entry until the blob is freed.
    bytes.map_or(CmlStr::NONE, |bytes| CmlStr { ptr: bytes.as_ptr().cast(), len: bytes.len() })
}

unsafe extern "C" fn blob_free(blob: *mut CmlBlob) {
    release(blob);
}

unsafe extern "C" fn model_compile(
    this: *mut c_void,
    source: CmlStr,
    folder: CmlStr,
    path: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    guarded(own(this), error, || {
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        // SAFETY: the caller's strings live for the call.
        let source = unsafe { text(source) }?;
        // SAFETY: as above.
        let folder = unsafe { text(folder) }?;
        if (fake.describe)(source).is_none() {
            return Err(Failure::Status(CML_NOT_FOUND, format!("there is no model at {source}")));
        }
        let folder = if folder.is_empty() { "fake-temporary" } else { folder };
        let result = (fake.compile)(source.as_ref(), folder.as_ref());
        let result = result.map_err(|reason| Failure::Status(CML_FRAMEWORK, reason))?;
        let result = result.to_str().ok_or_else(|| invalid("the path is not UTF-8"))?.to_owned();
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(path, hand_out::<CmlBlob>(fake, result.into_bytes())) };
        Ok(())
    })
}

unsafe extern "C" fn model_load(
    this: *mut c_void,
    path: CmlStr,
    config: *const CmlConfig,
    model: *mut *mut CmlModel,
    error: *mut *mut CmlError,
) -> CmlStatus {
    guarded(own(this), error, || {
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(model, ptr::null_mut()) };
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        // SAFETY: path and configuration live for the call.
        let path = unsafe { text(path) }?;
        // SAFETY: as above.
        let config = unsafe { borrowed(config) }?;
        // SAFETY: and so does the function's name.
        let function = unsafe { text(config.function_name) }?;
        check_device(config)?;
        let made = load(fake, path, function)?;
        // SAFETY: as above.
        unsafe { set(model, hand_out::<CmlModel>(fake, made)) };
        Ok(())
    })
}

/// A model in memory is the one at the path that its specification, as text, names.
unsafe extern "C" fn model_load_memory(
    this: *mut c_void,
    specification: *const c_void,
    length: usize,
    files: *const CmlFile,
    n_files: usize,
    config: *const CmlConfig,
    model: *mut *mut CmlModel,
    error: *mut *mut CmlError,
) -> CmlStatus {
    guarded(own(this), error, || {
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(model, ptr::null_mut()) };
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        // SAFETY: the specification lives for the call, and is as long as is said.
        let specification = unsafe { list(specification.cast::<u8>(), length) }?;
        // SAFETY: and so do the files.
        let files = unsafe { list(files, n_files) }?;
        // SAFETY: and so does the configuration.
        let config = unsafe { borrowed(config) }?;
        // SAFETY: and so does the function's name.
        let function = unsafe { text(config.function_name) }?;
        let mut names = HashSet::new();
        for &CmlFile { name, bytes, length } in files {
            // SAFETY: and so do the files' names,
            let name = unsafe { text(name) }?;
            // SAFETY: and their bytes.
            unsafe { list(bytes.cast::<u8>(), length) }?;
            if name.strip_prefix("@model_path/").is_none_or(str::is_empty) || !names.insert(name) {
                return Err(invalid(format!("'{name}' is no file below @model_path/, or was given before")));
            }
        }
        if specification.is_empty() {
            return Err(invalid("no specification"));
        }
        if fake.behaviour().old_system {
            let why = "this system loads no models from memory";
            return Err(Failure::Status(CML_UNSUPPORTED, why.to_owned()));
        }
        let path = std::str::from_utf8(specification);
        let path = path.map_err(|_| Failure::Status(CML_CORRUPT, "the model is damaged".to_owned()))?;
        check_device(config)?;
        let made = load(fake, path, function)?;
        // SAFETY: as above.
        unsafe { set(model, hand_out::<CmlModel>(fake, made)) };
        Ok(())
    })
}

/// Loads a model, however it was asked for.
fn load(fake: &Fake, path: &str, function: &str) -> Answer<FakeModel> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);

    fake.load_gate.enter();
    let behaviour = fake.behaviour().clone();
    thread::sleep(behaviour.load_delay);
    play(behaviour.load)?;
    if behaviour.old_system && !function.is_empty() {
        return Err(Failure::Status(CML_UNSUPPORTED, "this system knows no functions".to_owned()));
    }
    let json = (fake.describe)(path);
    let json = json.ok_or_else(|| Failure::Status(CML_NOT_FOUND, format!("there is no model at {path}")))?;
    // A description that is no JSON is a test's, too: it loads, and is found out when it is read.
    let description = ModelDescription::from_json(json.as_bytes()).unwrap_or_default();
    if !function.is_empty() && !description.functions.iter().any(|known| known == function) {
        return Err(Failure::Status(CML_NOT_FOUND, format!("the model has no function {function}")));
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    fake.log.tell(CML_LOG_INFO, &format!("loaded {path}"));
    Ok(FakeModel { json, description, number })
}

unsafe extern "C" fn log_set(
    this: *mut c_void,
    log: CmlLogFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    guarded(own(this), error, || {
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        match fake.log.replace(log.map(|log| Listener { log, context })) {
            true => Ok(()),
            false => Err(Failure::Status(CML_BUSY, "the log would wait for itself".to_owned())),
        }
    })
}

unsafe extern "C" fn model_describe(
    model: *mut CmlModel,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(model);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (fake, entry) = found.as_ref().ok_or_else(|| invalid("a model that is not alive"))?;
        entry.check_thread();
        let _running = running(entry)?;
        play(fake.behaviour().describe)?;
        let bytes = object::<FakeModel>(entry)?.json.clone().into_bytes();
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(json, hand_out::<CmlBlob>(fake, bytes)) };
        Ok(())
    })
}

/// One prediction, by the arguments of `model_predict`; the caller has entered the model.
///
/// # Safety
/// The lists and the options live for the call, and are as long as is said.
unsafe fn predict(
    fake: &'static Fake,
    entry: &Arc<Entry>,
    state: *mut CmlState,
    names: *const CmlStr,
    inputs: *const *mut CmlValue,
    n_inputs: usize,
    options: *const CmlPredictOptions,
) -> Answer<FakeResult> {
    let number = fake.predictions.fetch_add(1, Ordering::AcqRel);
    fake.predict_gate.enter();
    let behaviour = fake.behaviour().clone();
    thread::sleep(behaviour.predict_delay);
    let plan = fake.plan.lock().unwrap_or_else(PoisonError::into_inner).clone();
    play(plan.map_or(behaviour.predict, |plan| plan(number)))?;

    let start = Instant::now();
    let model = object::<FakeModel>(entry)?;
    // SAFETY: the lists live for the call, and are as long as is said.
    let (names, inputs) = (unsafe { list(names, n_inputs) }?, unsafe { list(inputs, n_inputs) }?);
    // SAFETY: the options live for the call.
    let options = unsafe { borrowed(options) }?;
    let call = Call::read(names, inputs, options)?;
    *fake.addresses.lock().unwrap_or_else(PoisonError::into_inner) = call.addresses();

    let state = if state.is_null() { None } else { Some(known(state.cast_const())?) };
    let _state_running = state.as_ref().map(running).transpose()?;
    let state = state.as_deref().map(object::<FakeState>).transpose()?;
    let mut states = Features::new();
    if let Some(state) = state {
        if state.model != model.number {
            return Err(invalid("the state of another model"));
        }
        for (name, memory) in &state.memory {
            states.insert(name.as_str(), memory.read()?);
        }
    }
    let prepared = start.elapsed();

    let outputs = (fake.compute)(&call.features()?, &mut states);
    let outputs = outputs.map_err(|message| Failure::Status(CML_FRAMEWORK, message))?;
    let ran = start.elapsed();

    for (name, memory) in state.map_or(&[][..], |state| &state.memory) {
        let tensor = states.tensor(name).map_err(|error| invalid(error.to_string()))?;
        memory.write(tensor)?;
    }
    let times = [prepared, ran - prepared, start.elapsed() - ran].map(|time| time.as_nanos() as u64);
    let made = call.answer(fake, &outputs, behaviour.backings, behaviour.row_alignment, times)?;
    if !behaviour.keep_inputs.is_zero() {
        let kept: Vec<Arc<FakeTensor>> = call.tensors;
        let delay = behaviour.keep_inputs;
        // Like the framework: a queue of its own, some time later.
        thread::spawn(move || {
            thread::sleep(delay);
            drop(kept);
        });
    }
    Ok(made)
}

unsafe extern "C" fn model_predict(
    model: *mut CmlModel,
    state: *mut CmlState,
    names: *const CmlStr,
    inputs: *const *mut CmlValue,
    n_inputs: usize,
    options: *const CmlPredictOptions,
    result: *mut *mut CmlResult,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(model);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(result, ptr::null_mut()) };
        let (fake, entry) = found.as_ref().ok_or_else(|| invalid("a model that is not alive"))?;
        entry.check_thread();
        let _running = running(entry)?;
        // SAFETY: the caller's promise.
        let made = unsafe { predict(fake, entry, state, names, inputs, n_inputs, options) }?;
        // SAFETY: as above.
        unsafe { set(result, hand_out::<CmlResult>(fake, made)) };
        Ok(())
    })
}

unsafe extern "C" fn model_predict_batch(
    model: *mut CmlModel,
    n_rows: usize,
    names: *const CmlStr,
    inputs: *const *mut CmlValue,
    n_inputs: usize,
    options: *const CmlPredictOptions,
    results: *mut *mut CmlResult,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(model);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        for row in 0..n_rows {
            // SAFETY: the caller gives as many out-pointers as rows.
            let place = unsafe { results.add(row) };
            // SAFETY: as above.
            unsafe { set(place, ptr::null_mut()) };
        }
        let (fake, entry) = found.as_ref().ok_or_else(|| invalid("a model that is not alive"))?;
        entry.check_thread();
        let _running = running(entry)?;
        // SAFETY: the options live for the call.
        if unsafe { borrowed(options) }?.n_backings > 0 {
            return Err(Failure::Status(CML_UNSUPPORTED, "backings of a batch".to_owned()));
        }
        let mut made = Vec::with_capacity(n_rows);
        for row in 0..n_rows {
            // SAFETY: the caller gives `n_inputs` inputs for each row.
            let inputs = unsafe { inputs.add(row * n_inputs) };
            // SAFETY: the caller's promise.
            let row = unsafe { predict(fake, entry, ptr::null_mut(), names, inputs, n_inputs, options) };
            made.push(row?);
        }
        for (row, made) in made.into_iter().enumerate() {
            // SAFETY: the caller gives as many out-pointers as rows.
            let place = unsafe { results.add(row) };
            // SAFETY: as above.
            unsafe { set(place, hand_out::<CmlResult>(fake, made)) };
        }
        Ok(())
    })
}

// ---- asynchronous calls ----

/// What is behind a request.
struct FakeRequest {
    cancelled: AtomicBool,
    /// Whoever sets it calls the completion.
    ended: AtomicBool,
    /// Of a load, which ends when it is cancelled.
    load: Option<Ending<CmlModel>>,
}

/// A completion, which is told of a `T`, and what it wants back.
struct Ending<T> {
    done: unsafe extern "C" fn(*mut c_void, CmlStatus, *mut T, *mut CmlError),
    context: *mut c_void,
}

// SAFETY: the table lets completions be called on any thread, with their context.
unsafe impl<T> Send for Ending<T> {}
// SAFETY: as above; it is called once, whoever holds it.
unsafe impl<T> Sync for Ending<T> {}

impl<T> Ending<T> {
    fn call(&self, status: CmlStatus, made: *mut T, error: *mut CmlError) {
        // SAFETY: function and context belong together; the handles become the caller's.
        unsafe { (self.done)(self.context, status, made, error) };
    }
}

impl FakeRequest {
    fn new(load: Option<Ending<CmlModel>>) -> Arc<FakeRequest> {
        Arc::new(FakeRequest { cancelled: AtomicBool::new(false), ended: AtomicBool::new(false), load })
    }

    /// True for the first who asks.
    fn ends(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }

    fn check(&self) -> Answer<()> {
        match self.cancelled.load(Ordering::Acquire) {
            true => Err(Failure::Status(CML_CANCELLED, "the call was cancelled".to_owned())),
            false => Ok(()),
        }
    }
}

/// Handles that a thread keeps; they are numbers, which nobody follows.
struct Kept {
    model: *mut CmlModel,
    state: *mut CmlState,
    inputs: Vec<*mut CmlValue>,
    backings: Vec<*mut CmlValue>,
}

// SAFETY: the handles are numbers.
unsafe impl Send for Kept {}

impl Kept {
    fn new(
        model: *mut CmlModel,
        state: *mut CmlState,
        inputs: &[*mut CmlValue],
        backings: &[*mut CmlValue],
    ) -> Kept {
        retain(model.cast_const());
        if !state.is_null() {
            retain(state.cast_const());
        }
        inputs.iter().chain(backings).for_each(|value| retain(value.cast_const()));
        Kept { model, state, inputs: inputs.to_vec(), backings: backings.to_vec() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.inputs.iter().chain(&self.backings).for_each(|value| let_go(value.cast_const()));
        if !self.state.is_null() {
            let_go(self.state.cast_const());
        }
        let_go(self.model.cast_const());
    }
}

unsafe extern "C" fn model_predict_async(
    model: *mut CmlModel,
    state: *mut CmlState,
    names: *const CmlStr,
    inputs: *const *mut CmlValue,
    n_inputs: usize,
    options: *const CmlPredictOptions,
    done: CmlPredictedFn,
    context: *mut c_void,
    request: *mut *mut CmlRequest,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(model);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        // SAFETY: the caller gives its own out-pointer, or null.
        unsafe { set(request, ptr::null_mut()) };
        let (fake, entry) = found.as_ref().ok_or_else(|| invalid("a model that is not alive"))?;
        let fake: &'static Fake = fake;
        entry.check_thread();
        let ending = Ending { done: done.ok_or_else(|| invalid("a null function"))?, context };
        if fake.behaviour().old_system {
            let why = "this system predicts only while one waits";
            return Err(Failure::Status(CML_UNSUPPORTED, why.to_owned()));
        }
        // SAFETY: the options live for the call.
        let options = unsafe { borrowed(options) }?;
        let owned = |strings: &[CmlStr]| {
            // SAFETY: the strings live for the call.
            strings.iter().map(|string| unsafe { text(*string) }.map(str::to_owned)).collect::<Answer<_>>()
        };
        // SAFETY: the lists live for the call, and are as long as is said.
        let names: Vec<String> = owned(unsafe { list(names, n_inputs) }?)?;
        // SAFETY: as above.
        let wanted: Vec<String> = owned(unsafe { list(options.wanted, options.n_wanted) }?)?;
        // SAFETY: as above.
        let backed: Vec<String> = owned(unsafe { list(options.backing_names, options.n_backings) }?)?;
        // SAFETY: as above.
        let inputs = unsafe { list(inputs, n_inputs) }?;
        // SAFETY: as above.
        let backings = unsafe { list(options.backings, options.n_backings) }?;
        let kept = Kept::new(model, state, inputs, backings);
        let running = entry.enter_for_long().ok_or_else(busy)?;
        let made = FakeRequest::new(None);
        let mine = Arc::clone(&made);
        let entry = Arc::clone(entry);
        fake.background.fetch_add(1, Ordering::AcqRel);
        thread::spawn(move || {
            let mut result = ptr::null_mut();
            let mut error = ptr::null_mut();
            let status = guarded(Some(fake), &mut error, || {
                let names: Vec<CmlStr> = names.iter().map(|name| name.as_str().into()).collect();
                let wanted: Vec<CmlStr> = wanted.iter().map(|name| name.as_str().into()).collect();
                let backed: Vec<CmlStr> = backed.iter().map(|name| name.as_str().into()).collect();
                let options = CmlPredictOptions {
                    size: size_of::<CmlPredictOptions>() as u32,
                    reserved: 0,
                    wanted: wanted.as_ptr(),
                    n_wanted: wanted.len(),
                    backing_names: backed.as_ptr(),
                    backings: kept.backings.as_ptr(),
                    n_backings: backed.len(),
                };
                let (first, inputs) = (names.as_ptr(), &kept.inputs);
                // SAFETY: the lists are this thread's own, and as long as is said.
                let made = unsafe {
                    predict(fake, &entry, kept.state, first, inputs.as_ptr(), inputs.len(), &options)
                };
                mine.check()?;
                result = hand_out::<CmlResult>(fake, made?);
                Ok(())
            });
            // The caller's handles are free again before he hears of the end.
            drop(running);
            drop(entry);
            drop(kept);
            ending.call(status, result, error);
            fake.background.fetch_sub(1, Ordering::AcqRel);
        });
        // SAFETY: as above.
        unsafe { offer(request, fake, made) };
        Ok(())
    })
}

unsafe extern "C" fn model_load_async(
    this: *mut c_void,
    path: CmlStr,
    config: *const CmlConfig,
    done: CmlLoadedFn,
    context: *mut c_void,
    request: *mut *mut CmlRequest,
    error: *mut *mut CmlError,
) -> CmlStatus {
    guarded(own(this), error, || {
        // SAFETY: the caller gives its own out-pointer, or null.
        unsafe { set(request, ptr::null_mut()) };
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        let ending = Ending { done: done.ok_or_else(|| invalid("a null function"))?, context };
        // SAFETY: path and configuration live for the call.
        let path = unsafe { text(path) }?.to_owned();
        // SAFETY: as above.
        let config = unsafe { borrowed(config) }?;
        // SAFETY: and so does the function's name.
        let function = unsafe { text(config.function_name) }?.to_owned();
        check_device(config)?;
        let made = FakeRequest::new(Some(ending));
        let mine = Arc::clone(&made);
        let home = thread::current().id();
        fake.background.fetch_add(1, Ordering::AcqRel);
        thread::spawn(move || {
            let mut model = ptr::null_mut();
            let mut error = ptr::null_mut();
            let status = guarded(Some(fake), &mut error, || {
                let loaded = load(fake, &path, &function)?;
                mine.check()?;
                model = hand_out_to::<CmlModel>(fake, home, loaded);
                Ok(())
            });
            match &mine.load {
                Some(ending) if mine.ends() => ending.call(status, model, error),
                // Nobody waits for it any more.
                _ => {
                    release(error);
                    if !model.is_null() {
                        let_go(model.cast_const());
                    }
                }
            }
            fake.background.fetch_sub(1, Ordering::AcqRel);
        });
        // SAFETY: as above.
        unsafe { offer(request, fake, made) };
        Ok(())
    })
}

/// Gives the caller a handle of the request, if he wants one.
///
/// # Safety
/// `place` is null or may be written.
unsafe fn offer(place: *mut *mut CmlRequest, fake: &'static Fake, request: Arc<FakeRequest>) {
    if !place.is_null() {
        // SAFETY: the caller promises it.
        unsafe { set(place, hand_out::<CmlRequest>(fake, request)) };
    }
}

unsafe extern "C" fn request_cancel(request: *mut CmlRequest) {
    if request.is_null() {
        return;
    }
    let Some((fake, entry)) = fake_of(request.cast_const()) else { return };
    let Some(found) = entry.object::<Arc<FakeRequest>>() else { return };
    found.cancelled.store(true, Ordering::Release);
    if let Some(ending) = &found.load
        && found.ends()
    {
        let mut error = ptr::null_mut();
        let status = guarded(Some(fake), &mut error, || found.check());
        ending.call(status, ptr::null_mut(), error);
    }
}

unsafe extern "C" fn request_release(request: *mut CmlRequest) {
    release(request);
}

unsafe extern "C" fn function_names(
    this: *mut c_void,
    path: CmlStr,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let names = |fake: &Fake, path: &str| {
        if fake.behaviour().old_system {
            return Err(Failure::Status(CML_UNSUPPORTED, "this system knows no functions".to_owned()));
        }
        Ok(serde_json::json!(described(fake, path)?.functions))
    };
    // SAFETY: the path lives for the call, and the caller gives its own out-pointers.
    unsafe { answer(this, path, json, error, names) }
}

/// Runs a slot that answers JSON about the model at a path.
///
/// # Safety
/// As of the slots that it serves.
unsafe fn answer(
    this: *mut c_void,
    path: CmlStr,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
    about: impl FnOnce(&Fake, &str) -> Answer<serde_json::Value>,
) -> CmlStatus {
    guarded(own(this), error, || {
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(json, ptr::null_mut()) };
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        // SAFETY: the path lives for the call.
        let path = unsafe { text(path) }?;
        let answer = about(fake, path)?.to_string().into_bytes();
        // SAFETY: as above.
        unsafe { set(json, hand_out::<CmlBlob>(fake, answer)) };
        Ok(())
    })
}

/// The description of the model at a path.
fn described(fake: &Fake, path: &str) -> Answer<ModelDescription> {
    let description = (fake.describe)(path)
        .ok_or_else(|| Failure::Status(CML_NOT_FOUND, format!("there is no model at {path}")))?;
    Ok(ModelDescription::from_json(description.as_bytes()).unwrap_or_default())
}

/// What a fake model is: in each function one op, which makes all outputs of all inputs.
fn listing(description: &ModelDescription, planned: impl Fn(&str) -> bool) -> serde_json::Value {
    let values = |features: &[coreml_bridge::Feature]| -> Vec<serde_json::Value> {
        features.iter().map(|feature| serde_json::json!({ "name": feature.name })).collect()
    };
    let names = |features: &[coreml_bridge::Feature]| -> Vec<String> {
        features.iter().map(|feature| feature.name.clone()).collect()
    };
    let (inputs, outputs) = (&description.inputs, &description.outputs);
    let functions = description.functions.iter().map(|name| {
        let mut op =
            serde_json::json!({ "kind": "fake", "inputs": { "": names(inputs) }, "outputs": values(outputs) });
        if planned(name) {
            op["devices"] = serde_json::json!({ "preferred": "cpu", "supported": ["cpu"] });
            op["weight"] = 1.0.into();
        }
        let block =
            serde_json::json!({ "inputs": values(inputs), "ops": [op], "outputs": names(outputs) });
        (name.clone(), block)
    });
    let functions: serde_json::Map<String, serde_json::Value> = functions.collect();
    serde_json::json!({ "kind": "fake", "functions": functions })
}

unsafe extern "C" fn model_structure(
    this: *mut c_void,
    path: CmlStr,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let structure = |fake: &Fake, path: &str| Ok(listing(&listed(fake, path)?, |_| false));
    // SAFETY: the path lives for the call, and the caller gives its own out-pointers.
    unsafe { answer(this, path, json, error, structure) }
}

unsafe extern "C" fn compute_plan(
    this: *mut c_void,
    path: CmlStr,
    config: *const CmlConfig,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let plan = |fake: &Fake, path: &str| {
        let description = listed(fake, path)?;
        // SAFETY: the configuration and its names live for the call, or it is null.
        let function = match unsafe { config.as_ref() } {
            Some(config) => {
                check_device(config)?;
                // SAFETY: as above.
                unsafe { text(config.function_name) }?
            }
            None => "",
        };
        let known = description.functions.iter().any(|name| name == function);
        if !function.is_empty() && !known {
            return Err(Failure::Status(CML_NOT_FOUND, format!("there is no function {function}")));
        }
        let default = description.function.as_deref().unwrap_or_default();
        let chosen = if function.is_empty() { default } else { function };
        Ok(listing(&description, |name| name == chosen))
    };
    // SAFETY: as above.
    unsafe { answer(this, path, json, error, plan) }
}

/// The description of the model at a path, from a fake that is to tell what is inside it.
fn listed(fake: &Fake, path: &str) -> Answer<ModelDescription> {
    let (outcome, old) = {
        let behaviour = fake.behaviour();
        (behaviour.structure, behaviour.old_system)
    };
    if old {
        return Err(Failure::Status(CML_UNSUPPORTED, "this system knows no structures".to_owned()));
    }
    play(outcome)?;
    described(fake, path)
}

/// The arguments of one prediction.
struct Call<'a> {
    inputs: Vec<(&'a str, Arc<Entry>)>,
    tensors: Vec<Arc<FakeTensor>>,
    wanted: Vec<&'a str>,
    backings: Vec<(&'a str, *mut CmlValue, Arc<FakeTensor>)>,
}

impl<'a> Call<'a> {
    fn read(
        names: &'a [CmlStr],
        inputs: &[*mut CmlValue],
        options: &'a CmlPredictOptions,
    ) -> Answer<Call<'a>> {
        let strings = |strings: &'a [CmlStr]| {
            // SAFETY: the strings live as long as their list.
            strings.iter().map(|string| unsafe { text(*string) }).collect::<Answer<Vec<&'a str>>>()
        };
        let mut call = Call { inputs: vec![], tensors: vec![], wanted: vec![], backings: vec![] };
        for (name, &input) in strings(names)?.into_iter().zip(inputs) {
            let entry = known(input.cast_const())?;
            if let Contents::Tensor(tensor) = &object::<FakeValue>(&entry)?.contents {
                call.tensors.push(Arc::clone(tensor));
            }
            call.inputs.push((name, entry));
        }
        // SAFETY: the lists of the options live as long as they do.
        call.wanted = strings(unsafe { list(options.wanted, options.n_wanted) }?)?;
        // SAFETY: as above.
        let backing_names = strings(unsafe { list(options.backing_names, options.n_backings) }?)?;
        // SAFETY: as above.
        let backings = unsafe { list(options.backings, options.n_backings) }?;
        for (name, &backing) in backing_names.into_iter().zip(backings) {
            let entry = known(backing.cast_const())?;
            let tensor = Arc::clone(object::<FakeValue>(&entry)?.as_tensor()?);
            call.backings.push((name, backing, tensor));
        }
        Ok(call)
    }

    fn addresses(&self) -> Vec<usize> {
        self.tensors.iter().map(|tensor| tensor.with(|data| data.addr())).collect()
    }

    fn features(&self) -> Answer<Features> {
        let rust = |(name, entry): &(&str, Arc<Entry>)| {
            Ok(((*name).to_owned(), object::<FakeValue>(entry)?.to_rust()?))
        };
        self.inputs.iter().map(rust).collect()
    }

    fn answer(
        &self,
        fake: &'static Fake,
        outputs: &Features,
        backings: Backings,
        alignment: usize,
        times: [u64; 3],
    ) -> Answer<FakeResult> {
        // Holds the outputs from the start: they are released also if a later one fails.
        let mut made = FakeResult { outputs: Shared(vec![]), _names: vec![], times };
        for (name, value) in
            outputs.iter().filter(|(name, _)| self.wanted.is_empty() || self.wanted.contains(name))
        {
            let backing = self.backings.iter().find(|(backed, ..)| *backed == name);
            let (handle, used) = match (backing, value, backings) {
                (Some((_, handle, memory)), Value::Tensor(tensor), Backings::Use) => {
                    memory.write(tensor)?;
                    retain(handle.cast_const());
                    (*handle, 1)
                }
                (backing, value, behaviour) => {
                    let lies = backing.is_some() && behaviour == Backings::Lie;
                    if backing.is_some() && !lies {
                        let message = format!("the backing of output '{name}' was not used");
                        fake.log.tell(CML_LOG_WARNING, &message);
                    }
                    (hand_out::<CmlValue>(fake, FakeValue::of(value, alignment)?), u32::from(lies))
                }
            };
            let name: Box<str> = name.into();
            let output = CmlOutput { name: (&*name).into(), value: handle, backing_used: used, reserved: 0 };
            made.outputs.0.push(output);
            made._names.push(name);
        }
        Ok(made)
    }
}

unsafe extern "C" fn model_release(model: *mut CmlModel) {
    release(model);
}

unsafe extern "C" fn result_view(result: *const CmlResult, view: *mut CmlResultView) {
    let entry = find(result);
    let Some(made) = entry.as_deref().and_then(|entry| entry.object::<FakeResult>()) else { return };
    let [prepare_ns, run_ns, collect_ns] = made.times;
    let filled = CmlResultView {
        size: size_of::<CmlResultView>() as u32,
        reserved: 0,
        prepare_ns,
        run_ns,
        collect_ns,
        n_outputs: made.outputs.0.len(),
        outputs: made.outputs.0.as_ptr(),
    };
    // SAFETY: the caller gives its own view. The list lives in the entry until the result is freed.
    unsafe { set(view, filled) };
}

unsafe extern "C" fn result_free(result: *mut CmlResult) {
    release(result);
}

unsafe extern "C" fn value_kind(value: *const CmlValue) -> CmlKind {
    let entry = find(value);
    let value = entry.as_deref().and_then(|entry| entry.object::<FakeValue>());
    value.map_or(CML_KIND_INVALID, |value| value.kind.to_native())
}

unsafe extern "C" fn value_retain(value: *mut CmlValue) {
    retain(value.cast_const());
}

unsafe extern "C" fn value_release(value: *mut CmlValue) {
    release(value);
}

/// Runs a slot that makes a value.
fn make_value(
    this: *mut c_void,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
    make: impl FnOnce(&'static Fake) -> Answer<FakeValue>,
) -> CmlStatus {
    guarded(own(this), error, || {
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(value, ptr::null_mut()) };
        let fake = own(this).ok_or_else(|| invalid("a null self"))?;
        let outcome = fake.behaviour().make_value;
        play(outcome)?;
        let made = make(fake)?;
        // SAFETY: as above.
        unsafe { set(value, hand_out::<CmlValue>(fake, made)) };
        Ok(())
    })
}

/// Element type, shape and strides of a desc that was passed in.
///
/// # Safety
/// The desc and its lists live for the call.
unsafe fn form(fake: &Fake, desc: *const CmlTensorDesc) -> Answer<(Dtype, Vec<usize>, Vec<usize>)> {
    // SAFETY: the caller promises it.
    let desc = unsafe { borrowed(desc) }?;
    let dtype = Dtype::from_native(desc.dtype).ok_or_else(|| invalid("not an element type"))?;
    if fake.behaviour().old_system && dtype == Dtype::Int8 {
        return Err(Failure::Status(CML_UNSUPPORTED, "this system knows no int8".to_owned()));
    }
    let counts = |numbers: &[i64]| {
        let counts = numbers.iter().map(|&number| usize::try_from(number));
        counts.collect::<Result<Vec<usize>, _>>().map_err(|_| invalid("a negative dimension"))
    };
    // SAFETY: as above.
    let shape = counts(unsafe { list(desc.shape, desc.rank as usize) }?)?;
    let strides = if desc.strides.is_null() {
        row_major(&shape)
    } else {
        // SAFETY: as above.
        counts(unsafe { list(desc.strides, desc.rank as usize) }?)?
    };
    Ok((dtype, shape, strides))
}

/// The bytes of a tensor, if `length` holds them.
fn checked_length(dtype: Dtype, shape: &[usize], strides: &[usize], length: usize) -> Answer<usize> {
    let needed = span(shape, strides).and_then(|span| span.checked_mul(dtype.size()));
    needed.filter(|&needed| needed <= length).ok_or_else(|| invalid("the memory is too short"))
}

unsafe extern "C" fn tensor_new(
    this: *mut c_void,
    desc: *const CmlTensorDesc,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    make_value(this, value, error, |fake| {
        // SAFETY: the desc lives for the call.
        let (dtype, shape, _) = unsafe { form(fake, desc) }?;
        Ok(FakeValue::tensor(Arc::new(FakeTensor::owned(dtype, &shape, 0, None)?)))
    })
}

unsafe extern "C" fn tensor_copy(
    this: *mut c_void,
    desc: *const CmlTensorDesc,
    source: *const c_void,
    length: usize,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    make_value(this, value, error, |fake| {
        // SAFETY: the desc lives for the call.
        let (dtype, shape, strides) = unsafe { form(fake, desc) }?;
        let needed = checked_length(dtype, &shape, &strides, length)?;
        // SAFETY: the caller lends `length` bytes, of which these are some.
        let bytes = unsafe { list(source.cast::<u8>(), needed) }?;
        let tensor = Tensor::from_bytes(dtype, &shape, Some(&strides), bytes);
        let tensor = tensor.map_err(|error| invalid(error.to_string()))?;
        Ok(FakeValue::tensor(Arc::new(FakeTensor::owned(dtype, &shape, 0, Some(&tensor))?)))
    })
}

unsafe extern "C" fn tensor_wrap(
    this: *mut c_void,
    desc: *const CmlTensorDesc,
    data: *mut c_void,
    length: usize,
    release: CmlReleaseFn,
    owner: *mut c_void,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    make_value(this, value, error, |fake| {
        // SAFETY: the desc lives for the call.
        let (dtype, shape, strides) = unsafe { form(fake, desc) }?;
        let length = checked_length(dtype, &shape, &strides, length)?;
        let release = release.ok_or_else(|| invalid("a null release function"))?;
        if data.is_null() {
            return Err(invalid("null memory"));
        }
        fake.live_wraps.fetch_add(1, Ordering::AcqRel);
        fake.wraps.fetch_add(1, Ordering::AcqRel);
        // From here on nothing fails: on failure the owner would not be ours to release.
        let memory = Memory::Wrapped(Wrapped { fake, data: data.cast(), release, owner });
        Ok(FakeValue::tensor(Arc::new(FakeTensor::new(dtype, &shape, strides, length, memory))))
    })
}

unsafe extern "C" fn tensor_desc(
    value: *const CmlValue,
    desc: *mut CmlTensorDesc,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(value);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (_, entry) = found.as_ref().ok_or_else(|| invalid("a value that is not alive"))?;
        let filled = object::<FakeValue>(entry)?.as_tensor()?.desc();
        // SAFETY: the caller gives its own desc. Its lists live in the entry until the value is released.
        unsafe { set(desc, filled) };
        Ok(())
    })
}

unsafe extern "C" fn tensor_with_bytes(
    value: *mut CmlValue,
    _writable: i32,
    visit: CmlTensorBytesFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(value.cast_const());
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (_, entry) = found.as_ref().ok_or_else(|| invalid("a value that is not alive"))?;
        let _running = running(entry)?;
        object::<FakeValue>(entry)?.as_tensor()?.show(visit, context)
    })
}

unsafe extern "C" fn tensor_read(
    value: *mut CmlValue,
    dtype: CmlDtype,
    destination: *mut c_void,
    length: usize,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(value.cast_const());
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (fake, entry) = found.as_ref().ok_or_else(|| invalid("a value that is not alive"))?;
        let _running = running(entry)?;
        play(fake.behaviour().read)?;
        let dtype = Dtype::from_native(dtype).ok_or_else(|| invalid("not an element type"))?;
        let tensor = object::<FakeValue>(entry)?.as_tensor()?.read()?.cast(dtype);
        let bytes = tensor.as_bytes().map_err(|error| invalid(error.to_string()))?;
        if bytes.len() != length {
            return Err(invalid("the length is not exact"));
        }
        // SAFETY: the caller lends `length` bytes to write, which are not ours.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), destination.cast(), length) };
        Ok(())
    })
}

unsafe extern "C" fn scalar_new(
    this: *mut c_void,
    scalar: *const CmlScalarView,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    make_value(this, value, error, |_| {
        // SAFETY: the view lives for the call.
        let scalar = unsafe { borrowed(scalar) }?;
        let value = match scalar.kind {
            CML_KIND_INT64 => Value::from(scalar.int64),
            CML_KIND_DOUBLE => Value::from(scalar.float64),
            // SAFETY: and so does its string.
            CML_KIND_STRING => Value::from(unsafe { text(scalar.string) }?),
            _ => return Err(invalid("not the kind of a scalar")),
        };
        FakeValue::of(&value, 0)
    })
}

unsafe extern "C" fn scalar_view(
    value: *const CmlValue,
    scalar: *mut CmlScalarView,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(value);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (_, entry) = found.as_ref().ok_or_else(|| invalid("a value that is not alive"))?;
        let Contents::Scalar(value) = &object::<FakeValue>(entry)?.contents else {
            return Err(mismatch("not a scalar"));
        };
        let mut filled = CmlScalarView {
            size: size_of::<CmlScalarView>() as u32,
            kind: value.kind().to_native(),
            int64: 0,
            float64: 0.0,
            string: CmlStr::NONE,
        };
        match value {
            Value::Int64(number) => filled.int64 = *number,
            Value::Double(number) => filled.float64 = *number,
            Value::String(text) => filled.string = (&**text).into(),
            _ => return Err(mismatch("not a scalar")),
        }
        // SAFETY: the caller gives its own view. Its string lives in the entry until the value is released.
        unsafe { set(scalar, filled) };
        Ok(())
    })
}

/// The keys of entries that were passed in.
enum Keys<'a> {
    Int64(&'a [i64]),
    String(Vec<String>),
}

/// # Safety
/// The lists of `entries` live for `'a`.
unsafe fn keys<'a>(entries: &CmlEntries) -> Answer<Keys<'a>> {
    match entries.key_kind {
        // SAFETY: the caller promises it.
        CML_KIND_INT64 => Ok(Keys::Int64(unsafe { list(entries.int64_keys, entries.n) }?)),
        CML_KIND_STRING => {
            // SAFETY: as above.
            let strings = unsafe { list(entries.string_keys, entries.n) }?;
            // SAFETY: and so do the strings.
            let strings = strings.iter().map(|string| unsafe { text(*string) }.map(str::to_owned));
            Ok(Keys::String(strings.collect::<Answer<_>>()?))
        }
        _ => Err(invalid("not the kind of a key")),
    }
}

unsafe extern "C" fn dictionary_new(
    this: *mut c_void,
    entries: *const CmlEntries,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    make_value(this, value, error, |_| {
        // SAFETY: the entries live for the call.
        let entries = unsafe { borrowed(entries) }?;
        // SAFETY: and so do their lists.
        let values = unsafe { list(entries.values, entries.n) }?.iter().copied();
        // SAFETY: as above.
        let dictionary: Dictionary = match unsafe { keys(entries) }? {
            Keys::Int64(keys) => keys.iter().copied().zip(values).collect(),
            Keys::String(keys) => keys.into_iter().zip(values).collect(),
        };
        FakeValue::of(&dictionary.into(), 0)
    })
}

unsafe extern "C" fn sequence_new(
    this: *mut c_void,
    entries: *const CmlEntries,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    make_value(this, value, error, |_| {
        // SAFETY: the entries live for the call.
        let entries = unsafe { borrowed(entries) }?;
        // SAFETY: and so do their lists.
        let sequence: Sequence = match unsafe { keys(entries) }? {
            Keys::Int64(keys) => keys.iter().copied().collect(),
            Keys::String(keys) => keys.into_iter().collect(),
        };
        FakeValue::of(&sequence.into(), 0)
    })
}

unsafe extern "C" fn entries_view(
    value: *const CmlValue,
    entries: *mut CmlEntries,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(value);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (_, entry) = found.as_ref().ok_or_else(|| invalid("a value that is not alive"))?;
        let Contents::Entries { value, int64_keys, string_keys, numbers } =
            &object::<FakeValue>(entry)?.contents
        else {
            return Err(mismatch("neither a dictionary nor a sequence"));
        };
        let of_texts =
            matches!(value, Value::Dictionary(Dictionary::String(_)) | Value::Sequence(Sequence::String(_)));
        let filled = CmlEntries {
            size: size_of::<CmlEntries>() as u32,
            key_kind: if of_texts { CML_KIND_STRING } else { CML_KIND_INT64 },
            n: if of_texts { string_keys.0.len() } else { int64_keys.len() },
            int64_keys: if of_texts { ptr::null() } else { int64_keys.as_ptr() },
            string_keys: if of_texts { string_keys.0.as_ptr() } else { ptr::null() },
            values: if matches!(value, Value::Dictionary(_)) { numbers.as_ptr() } else { ptr::null() },
        };
        // SAFETY: the caller gives its own view. Its lists live in the entry until the value is released.
        unsafe { set(entries, filled) };
        Ok(())
    })
}

unsafe extern "C" fn image_new(
    this: *mut c_void,
    desc: *const CmlImageDesc,
    pixels: *const c_void,
    length: usize,
    value: *mut *mut CmlValue,
    error: *mut *mut CmlError,
) -> CmlStatus {
    make_value(this, value, error, |_| {
        // SAFETY: the desc lives for the call.
        let desc = unsafe { borrowed(desc) }?;
        let format = PixelFormat::from_native(desc.format).ok_or_else(|| invalid("not a pixel format"))?;
        let row = desc.width as usize * format.size();
        let needed = (desc.height as usize).checked_sub(1).map(|rows| rows * desc.row_bytes + row);
        let needed = needed.filter(|&needed| needed <= length && row <= desc.row_bytes && row > 0);
        let needed = needed.ok_or_else(|| invalid("the pixels are too few"))?;
        // SAFETY: the caller lends `length` bytes, of which these are some.
        let bytes = unsafe { list(pixels.cast::<u8>(), needed) }?;
        let bytes = bytes.chunks(desc.row_bytes).flat_map(|chunk| &chunk[..row]).copied().collect();
        let image = Image::on(format, desc.width, desc.height, bytes);
        FakeValue::of(&image.map_err(|error| invalid(error.to_string()))?.into(), 0)
    })
}

unsafe extern "C" fn image_with_bytes(
    value: *mut CmlValue,
    _writable: i32,
    visit: CmlImageBytesFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(value.cast_const());
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (_, entry) = found.as_ref().ok_or_else(|| invalid("a value that is not alive"))?;
        let _running = running(entry)?;
        let Contents::Image { image, row_bytes, pixels } = &object::<FakeValue>(entry)?.contents else {
            return Err(mismatch("not an image"));
        };
        let desc = CmlImageDesc {
            size: size_of::<CmlImageDesc>() as u32,
            format: image.format().to_native(),
            width: image.width(),
            height: image.height(),
            row_bytes: *row_bytes,
        };
        let visit = visit.ok_or_else(|| invalid("a null function"))?;
        let mut pixels = pixels.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's function and context belong together; pixels and desc are alive for the call.
        unsafe { visit(context, pixels.as_mut_ptr().cast(), &desc) };
        Ok(())
    })
}

unsafe extern "C" fn state_new(
    model: *mut CmlModel,
    state: *mut *mut CmlState,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(model);
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        // SAFETY: the caller gives its own out-pointer.
        unsafe { set(state, ptr::null_mut()) };
        let (fake, entry) = found.as_ref().ok_or_else(|| invalid("a model that is not alive"))?;
        entry.check_thread();
        let _running = running(entry)?;
        let behaviour = fake.behaviour().clone();
        play(behaviour.state)?;
        if behaviour.old_system {
            return Err(Failure::Status(CML_UNSUPPORTED, "this system knows no states".to_owned()));
        }
        let model = object::<FakeModel>(entry)?;
        let mut memory = vec![];
        for (name, value) in zero_states(&model.description).map_err(invalid)?.iter() {
            let Value::Tensor(zeros) = value else { continue };
            let alignment = behaviour.row_alignment;
            let made = FakeTensor::owned(zeros.dtype(), zeros.shape(), alignment, Some(zeros))?;
            memory.push((name.to_owned(), made));
        }
        let made = FakeState { model: model.number, memory };
        // SAFETY: as above.
        unsafe { set(state, hand_out::<CmlState>(fake, made)) };
        Ok(())
    })
}

unsafe extern "C" fn state_with_bytes(
    state: *mut CmlState,
    name: CmlStr,
    _writable: i32,
    visit: CmlTensorBytesFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let found = fake_of(state.cast_const());
    guarded(found.as_ref().map(|(fake, _)| *fake), error, || {
        let (_, entry) = found.as_ref().ok_or_else(|| invalid("a state that is not alive"))?;
        entry.check_thread();
        let _running = running(entry)?;
        // SAFETY: the name lives for the call.
        let name = unsafe { text(name) }?;
        let memory = object::<FakeState>(entry)?.memory.iter().find(|(known, _)| known == name);
        let (_, tensor) =
            memory.ok_or_else(|| Failure::Status(CML_NOT_FOUND, format!("there is no state {name}")))?;
        tensor.show(visit, context)
    })
}

unsafe extern "C" fn state_release(state: *mut CmlState) {
    release(state);
}
