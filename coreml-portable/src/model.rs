//! Models, predictions and states of the table.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use coreml_engine::compiled::is_compiled;
use coreml_engine::description::ModelDescription;
use coreml_engine::{
    ArrayRef, Input, LoadError, LoadOptions, Model, Output, Session, SharedBytes, State, WeakModel,
};
use coreml_sys::{
    CML_COMPUTE_ALL, CML_COMPUTE_CPU_AND_NEURAL_ENGINE, CML_COMPUTE_CPU_ONLY,
    CML_CONFIG_LOW_PRECISION_ACCUMULATION, CML_LOG_INFO, CML_LOG_WARNING, CML_RESHAPE_FREQUENT,
    CML_RESHAPE_INFREQUENT, CML_SPECIALIZATION_DEFAULT, CML_SPECIALIZATION_FAST_PREDICTION, CmlBlob,
    CmlConfig, CmlError, CmlFile, CmlModel, CmlOutput, CmlPredictOptions, CmlResult, CmlResultView, CmlState,
    CmlStatus, CmlStr, CmlTensorBytesFn, CmlValue,
};

use crate::arguments::{self, out, place};
use crate::blob;
use crate::compile;
use crate::error::{Failure, slot};
use crate::live::{Kind, Live};
use crate::log;
use crate::serial::Serial;
use crate::settings;
use crate::value::{self, Value};

/// What a `CmlModel` handle points to: an instance of a model that all instances share.
pub(crate) struct ModelObject {
    pub(crate) model: Model,
    pub(crate) session: Arc<Serial<Session>>,
    _live: Live,
}

/// What a `CmlState` handle points to.
pub(crate) struct StateObject {
    pub(crate) state: Arc<Serial<State>>,
    _live: Live,
}

/// Which files a loaded model came from, as far as the file system can tell.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Origin {
    path: PathBuf,
    function: Option<String>,
    /// Which settings it was loaded with.
    settings: u64,
    /// Name, length and time of every file: a package folder's own time does not change when a weight file does.
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
}

/// More files than any package has: such a folder is loaded, but not shared.
const MAX_FILES: usize = 256;

impl Origin {
    fn of(path: &Path, function: Option<&str>, settings: u64) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let mut files = Vec::new();
        let mut folders = vec![path.clone()];
        while let Some(next) = folders.pop() {
            let metadata = std::fs::symlink_metadata(&next).ok()?;
            if metadata.is_dir() {
                for entry in std::fs::read_dir(&next).ok()? {
                    folders.push(entry.ok()?.path());
                }
            } else {
                files.push((next, metadata.len(), metadata.modified().ok()));
            }
            if files.len() + folders.len() > MAX_FILES {
                return None;
            }
        }
        files.sort();
        Some(Self { path, function: function.map(str::to_owned), settings, files })
    }
}

/// Loads a model, or finds it already loaded: N inference threads share one copy of the weights.
pub(crate) fn load(path: &Path, function: Option<&str>) -> Result<Model, LoadError> {
    settings::with_options(function, |options, settings| load_shared(path, options, settings))
}

fn load_shared(path: &Path, options: &LoadOptions<'_>, settings: u64) -> Result<Model, LoadError> {
    static SHARED: LazyLock<Mutex<HashMap<Origin, WeakModel>>> = LazyLock::new(Mutex::default);
    let find = |origin: &Origin| {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|_, model| model.upgrade().is_some());
        shared.get(origin).and_then(WeakModel::upgrade)
    };
    let origin = Origin::of(path, options.function, settings);
    if let Some(model) = origin.as_ref().and_then(find) {
        return Ok(model);
    }
    // Not under the lock: a long load must not hold up others.
    let model = Model::load(path, options)?;
    // Only if no file changed meanwhile.
    if origin.is_some() && origin == Origin::of(path, options.function, settings) {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.extend(origin.map(|origin| (origin, model.downgrade())));
    }
    Ok(model)
}

/// A model handle of +1.
pub(crate) fn load_handle(
    path: &str,
    function: Option<&str>,
    threads: NonZeroUsize,
) -> Result<*mut CmlModel, Failure> {
    let handle = into_handle(load(Path::new(path), function)?, threads);
    log::log(CML_LOG_INFO, || format!("loaded {path}"));
    Ok(handle)
}

fn into_handle(model: Model, threads: NonZeroUsize) -> *mut CmlModel {
    let session = Arc::new(Serial::new("model", model.session(threads)));
    let object = Box::new(ModelObject { model, session, _live: Live::new(Kind::Model) });
    Box::into_raw(object).cast()
}

/// The configuration, as far as the caller's reaches: what an older header has not is the default. `None` for NULL.
///
/// # Safety
/// `config` must be NULL or point to as many bytes as its `size` says.
unsafe fn read_configuration(config: *const CmlConfig) -> Result<Option<CmlConfig>, Failure> {
    /// Where each field ends, in their order: half a field is none.
    const ENDS: [usize; 9] = [
        offset_of!(CmlConfig, compute_units),
        offset_of!(CmlConfig, flags),
        offset_of!(CmlConfig, threads),
        offset_of!(CmlConfig, function_name),
        offset_of!(CmlConfig, display_name),
        offset_of!(CmlConfig, reshape_frequency),
        offset_of!(CmlConfig, specialization),
        offset_of!(CmlConfig, preferred_device),
        size_of::<CmlConfig>(),
    ];
    if config.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and `size` comes first.
    let size = unsafe { config.cast::<u32>().read() };
    let given = ENDS.into_iter().rfind(|&end| end <= size as usize);
    let given =
        given.ok_or_else(|| Failure::invalid(format!("a configuration of {size} bytes is too small")))?;
    let mut whole = CmlConfig {
        size,
        compute_units: CML_COMPUTE_CPU_ONLY,
        flags: 0,
        threads: 0,
        function_name: CmlStr::NONE,
        display_name: CmlStr::NONE,
        reshape_frequency: CML_RESHAPE_FREQUENT,
        specialization: CML_SPECIALIZATION_DEFAULT,
        preferred_device: 0,
    };
    // SAFETY: the caller's struct has `given` bytes, ours has no fewer, and they are plain data of which each field is whole.
    unsafe { std::ptr::copy_nonoverlapping(config.cast::<u8>(), (&raw mut whole).cast::<u8>(), given) };
    Ok(Some(whole))
}

/// # Safety
/// `config` must be NULL or valid, its strings too.
pub(crate) unsafe fn configuration<'a>(
    config: *const CmlConfig,
) -> Result<(Option<&'a str>, NonZeroUsize), Failure> {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    // SAFETY: the caller's promise.
    let config = unsafe { read_configuration(config) }?;
    let Some(config) = config else { return Ok((None, cores)) };
    // The engine packs weights when it loads, and plans shapes when they change: each hint asks for no less.
    if !(CML_RESHAPE_FREQUENT..=CML_RESHAPE_INFREQUENT).contains(&config.reshape_frequency) {
        return Err(Failure::invalid(format!("{} is no frequency of reshapes", config.reshape_frequency)));
    }
    let specializations = CML_SPECIALIZATION_DEFAULT..=CML_SPECIALIZATION_FAST_PREDICTION;
    if !specializations.contains(&config.specialization) {
        return Err(Failure::invalid(format!("{} is no specialization", config.specialization)));
    }
    if config.preferred_device != 0 {
        let id = config.preferred_device;
        return Err(Failure::unsupported(format!(
            "there is no GPU here, and so none with the registry id {id}"
        )));
    }
    // Every unit that a caller may allow includes the CPU, so all are honoured.
    let units = CML_COMPUTE_CPU_ONLY..=CML_COMPUTE_CPU_AND_NEURAL_ENGINE;
    debug_assert!(units.contains(&CML_COMPUTE_ALL));
    if !units.contains(&config.compute_units) {
        return Err(Failure::invalid(format!("{} is not a set of compute units", config.compute_units)));
    }
    // Low precision is a permission, and accumulating in float32 keeps to it.
    let unknown = config.flags & !CML_CONFIG_LOW_PRECISION_ACCUMULATION;
    if unknown != 0 {
        return Err(Failure::unsupported(format!("configuration flags {unknown:#x}")));
    }
    let function = if config.function_name.ptr.is_null() {
        None
    } else {
        // SAFETY: borrowed for the call.
        Some(unsafe { arguments::text(config.function_name, "the function's name") }?)
    };
    let threads = NonZeroUsize::new(config.threads as usize).unwrap_or(cores);
    Ok((function, threads))
}

pub(crate) unsafe extern "C" fn model_compile(
    _self: *mut c_void,
    source: CmlStr,
    folder: CmlStr,
    path: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `path`.
        let mut path = unsafe { out(path, "path") }?;
        // SAFETY: borrowed for the call.
        let source = Path::new(unsafe { arguments::text(source, "the path") }?);
        let folder = if folder.ptr.is_null() || folder.len == 0 {
            None
        } else {
            // SAFETY: as above.
            Some(unsafe { arguments::text(folder, "the folder") }?)
        };
        if source.extension().is_some_and(|extension| extension == "mlmodelc") || is_compiled(source) {
            return Err(Failure::invalid(format!("{} is compiled already", source.display())));
        }
        // What does not load does not compile.
        load(source, None)?;
        let made = compile::write(source, folder.map(Path::new))?;
        let text = made.into_os_string().into_string();
        let text = text.map_err(|_| Failure::invalid("the temporary folder's path is not UTF-8"))?;
        path.set(blob::into_handle(text.into_bytes()));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn model_load(
    _self: *mut c_void,
    path: CmlStr,
    config: *const CmlConfig,
    model: *mut *mut CmlModel,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `model`.
        let mut handle = unsafe { out(model, "model") }?;
        // SAFETY: the path is borrowed for the call.
        let path = unsafe { arguments::text(path, "the path") }?;
        // SAFETY: the table's contract on `config`.
        let (function, threads) = unsafe { configuration(config) }?;
        handle.set(load_handle(path, function, threads)?);
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

/// The files of a model in memory, copied, by the names that its specification has.
///
/// # Safety
/// `files` must be NULL or point to `n_files` files, whose names and bytes live and do not change during the call.
unsafe fn read_files(files: *const CmlFile, n_files: usize) -> Result<HashMap<String, SharedBytes>, Failure> {
    // SAFETY: the caller's promise.
    let files = unsafe { arguments::slice(files, n_files, "the files") }?;
    let mut found = HashMap::with_capacity(files.len());
    for &CmlFile { name, bytes, length } in files {
        // SAFETY: the caller's promise.
        let name = unsafe { arguments::text(name, "the name of a file below @model_path/") }?;
        if name.strip_prefix("@model_path/").is_none_or(str::is_empty) || name.contains('\0') {
            return Err(Failure::invalid(format!("'{name}' does not name a file below @model_path/")));
        }
        // SAFETY: the caller's promise.
        let bytes = unsafe { arguments::slice(bytes.cast::<u8>(), length, "the bytes of a file") }?;
        if found.insert(name.to_owned(), SharedBytes::from(bytes.to_vec())).is_some() {
            return Err(Failure::invalid(format!("the file '{name}' is given twice")));
        }
    }
    Ok(found)
}

pub(crate) unsafe extern "C" fn model_load_memory(
    _self: *mut c_void,
    specification: *const c_void,
    length: usize,
    files: *const CmlFile,
    n_files: usize,
    config: *const CmlConfig,
    model: *mut *mut CmlModel,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `model`.
        let mut handle = unsafe { out(model, "model") }?;
        // SAFETY: the specification is borrowed for the call.
        let specification = unsafe { arguments::slice(specification.cast::<u8>(), length, "specification") }?;
        if specification.is_empty() {
            return Err(Failure::invalid("there is no specification"));
        }
        // SAFETY: the table's contract on `config`.
        let (function, threads) = unsafe { configuration(config) }?;
        // SAFETY: the files are borrowed for the call.
        let files = unsafe { read_files(files, n_files) }?;
        let model = settings::with_options(function, |options, _| {
            Model::from_memory("the model in memory", specification, &files, options)
        })?;
        handle.set(into_handle(model, threads));
        log::log(CML_LOG_INFO, || "loaded a model from memory".to_owned());
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

/// # Safety
/// `model` must be NULL or a live handle of this bridge.
pub(crate) unsafe fn borrow_model<'a>(model: *mut CmlModel) -> Result<&'a ModelObject, Failure> {
    // SAFETY: handles come from `model_load`; the caller does not release one while a call runs.
    unsafe { model.cast::<ModelObject>().as_ref() }.ok_or_else(|| Failure::null("the model"))
}

/// # Safety
/// `state` must be NULL or a live handle of this bridge.
pub(crate) unsafe fn borrow_state<'a>(state: *mut CmlState) -> Option<&'a StateObject> {
    // SAFETY: handles come from `state_new`; the caller does not release one while a call runs.
    unsafe { state.cast::<StateObject>().as_ref() }
}

pub(crate) unsafe extern "C" fn model_describe(
    model: *mut CmlModel,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `json`.
        let mut json = unsafe { out(json, "json") }?;
        // SAFETY: the table's contract on `model`.
        let description: &ModelDescription = unsafe { borrow_model(model) }?.model.description();
        let text = serde_json::to_vec(description).map_err(|error| Failure::invalid(error.to_string()))?;
        json.set(blob::into_handle(text));
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn model_release(model: *mut CmlModel) {
    if !model.is_null() {
        // SAFETY: the caller gives back the handle of `model_load`, once.
        drop(unsafe { Box::from_raw(model.cast::<ModelObject>()) });
    }
}

/// What a `CmlResult` handle points to.
pub(crate) struct ResultObject {
    /// Each counts its value, and its name is a view of the string at the same place in `_names`.
    outputs: Vec<CmlOutput>,
    nanoseconds: [u64; 3],
    _names: Vec<String>,
    _live: Live,
}

impl Drop for ResultObject {
    fn drop(&mut self) {
        for output in &self.outputs {
            // SAFETY: the count that `model_predict` put there.
            unsafe { value::value_release(output.value) };
        }
    }
}

/// The caller's options, read once.
#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) wanted: Vec<&'a str>,
    pub(crate) backings: Vec<(&'a str, Arc<Value>)>,
}

impl ResultObject {
    /// A handle of +1.
    pub(crate) fn into_handle(self) -> *mut CmlResult {
        Box::into_raw(Box::new(self)).cast()
    }

    /// Counts what came before the inputs were brought into the engine's form.
    pub(crate) fn prepared_in(&mut self, more: u64) {
        self.nanoseconds[0] += more;
    }
}

/// # Safety
/// `options` must be NULL or valid, its arrays and handles too.
pub(crate) unsafe fn options<'a>(options: *const CmlPredictOptions) -> Result<Options<'a>, Failure> {
    // SAFETY: NULL is checked, the rest is the caller's promise.
    let Some(options) = (unsafe { options.as_ref() }) else { return Ok(Options::default()) };
    if options.size < arguments::size_of_struct::<CmlPredictOptions>() {
        return Err(Failure::invalid(format!("options of {} bytes are too small", options.size)));
    }
    // SAFETY: the caller's arrays have the announced lengths.
    let wanted = unsafe { texts(options.wanted, options.n_wanted, "the wanted outputs") }?;
    // SAFETY: as above.
    let names = unsafe { texts(options.backing_names, options.n_backings, "the names of the backings") }?;
    // SAFETY: as above.
    let values = unsafe { arguments::slice(options.backings, options.n_backings, "the backings") }?;
    let mut backings = Vec::with_capacity(names.len());
    for (name, &handle) in names.into_iter().zip(values) {
        // SAFETY: live handles by the table's contract.
        backings.push((name, unsafe { value::share(handle) }?));
    }
    Ok(Options { wanted, backings })
}

/// # Safety
/// `strings` must be NULL or have `n` valid strings.
pub(crate) unsafe fn texts<'a>(
    strings: *const CmlStr,
    n: usize,
    what: &str,
) -> Result<Vec<&'a str>, Failure> {
    // SAFETY: the caller's promise.
    let strings = unsafe { arguments::slice(strings, n, what) }?;
    // SAFETY: each is valid by the caller's promise.
    strings.iter().map(|&string| unsafe { arguments::text(string, what) }).collect()
}

pub(crate) fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The values behind handles.
///
/// # Safety
/// The handles must be NULL or live handles of this bridge, and stay alive for `'a`.
unsafe fn borrow_values<'a>(handles: &[*mut CmlValue]) -> Result<Vec<&'a Value>, Failure> {
    // SAFETY: the caller's promise.
    handles.iter().map(|&handle| unsafe { value::borrow(handle) }).collect()
}

/// Runs a model once: what [`model_predict`] does with its arguments when they are read.
pub(crate) fn predict(
    model: &Model,
    session: &mut Session,
    state: Option<&mut State>,
    names: &[&str],
    values: &[&Value],
    options: &Options<'_>,
) -> Result<ResultObject, Failure> {
    let start = Instant::now();
    let mut lent = Vec::with_capacity(names.len());
    for (name, value) in names.iter().zip(values) {
        lent.push((*name, value.lend()?));
    }
    if let Some(twice) = names.iter().enumerate().find_map(|(i, n)| names[..i].contains(n).then_some(n)) {
        return Err(Failure::invalid(format!("the input `{twice}` is given twice")));
    }
    let known = &model.description().outputs;
    if let Some((name, _)) = options.backings.iter().find(|(name, _)| !known.iter().any(|f| f.name == *name))
    {
        return Err(Failure::new(coreml_sys::CML_NOT_FOUND, format!("no output `{name}` to back")));
    }
    let inputs: Vec<_> = lent.iter().map(|(name, value)| (*name, value.input())).collect();
    let prepared = nanoseconds(start);
    let running = Instant::now();
    let outputs = session.predict(&inputs, state, &options.wanted)?;
    let ran = nanoseconds(running);
    let collecting = Instant::now();
    let mut made = ResultObject {
        outputs: Vec::with_capacity(outputs.len()),
        nanoseconds: [prepared, ran, 0],
        _names: Vec::with_capacity(outputs.len()),
        _live: Live::new(Kind::Result),
    };
    for (name, output) in outputs {
        let backing = options.backings.iter().find(|(backed, _)| *backed == name);
        let (value, used) = match (backing, output) {
            (Some((_, backing)), Output::Array(array)) if backing.take(&array)? => (Arc::clone(backing), 1),
            (backing, output) => {
                if backing.is_some() {
                    log::log(CML_LOG_WARNING, || {
                        format!(
                            "the backing of output '{name}' was not used: the output is a value of its own"
                        )
                    });
                }
                let kind = known.iter().find(|f| f.name == name).map(|f| &f.kind);
                (Value::of_output(output, kind)?, 0)
            }
        };
        made.outputs.push(CmlOutput {
            name: CmlStr::from(name.as_str()),
            value: value::into_handle(value),
            backing_used: used,
            reserved: 0,
        });
        // A moved `String` keeps its heap memory, so the view stays good.
        made._names.push(name);
    }
    made.nanoseconds[2] = nanoseconds(collecting);
    Ok(made)
}

pub(crate) unsafe extern "C" fn model_predict(
    model: *mut CmlModel,
    state: *mut CmlState,
    names: *const CmlStr,
    inputs: *const *mut CmlValue,
    n_inputs: usize,
    predict_options: *const CmlPredictOptions,
    result: *mut *mut CmlResult,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        let start = Instant::now();
        // SAFETY: the table's contract on `result`.
        let mut result = unsafe { out(result, "result") }?;
        // SAFETY: the table's contract on `model`.
        let object = unsafe { borrow_model(model) }?;
        // SAFETY: the table's contract on `state`.
        let state = unsafe { borrow_state(state) };
        let mut session = object.session.write()?;
        let mut state = state.map(|object| object.state.write()).transpose()?;
        // SAFETY: the table's contract on the arrays.
        let names = unsafe { texts(names, n_inputs, "the names of the inputs") }?;
        // SAFETY: as above.
        let handles = unsafe { arguments::slice(inputs, n_inputs, "the inputs") }?;
        // SAFETY: the table's contract on `predict_options`.
        let options = unsafe { options(predict_options) }?;
        // SAFETY: live handles by the table's contract.
        let values = unsafe { borrow_values(handles) }?;
        let read = nanoseconds(start);
        let mut made = predict(&object.model, &mut session, state.as_deref_mut(), &names, &values, &options)?;
        made.prepared_in(read);
        result.set(made.into_handle());
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn model_predict_batch(
    model: *mut CmlModel,
    n_rows: usize,
    names: *const CmlStr,
    inputs: *const *mut CmlValue,
    n_inputs: usize,
    predict_options: *const CmlPredictOptions,
    results: *mut *mut CmlResult,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `results`, which nobody else uses during the call.
        let results = unsafe { arguments::slice_mut(results, n_rows, "the place for the results") }?;
        results.fill(std::ptr::null_mut());
        // SAFETY: the table's contract on `model`.
        let object = unsafe { borrow_model(model) }?;
        let total = n_rows.checked_mul(n_inputs);
        let total = total
            .ok_or_else(|| Failure::invalid(format!("{n_rows} rows of {n_inputs} inputs are too many")))?;
        let mut session = object.session.write()?;
        // SAFETY: the table's contract on the arrays.
        let names = unsafe { texts(names, n_inputs, "the names of the inputs") }?;
        // SAFETY: as above.
        let handles = unsafe { arguments::slice(inputs, total, "the inputs") }?;
        // SAFETY: the table's contract on `predict_options`.
        let options = unsafe { options(predict_options) }?;
        if !options.backings.is_empty() {
            let why = "output backings belong to one prediction, not to a batch";
            return Err(Failure::unsupported(why));
        }
        let mut made = Vec::with_capacity(n_rows);
        for row in 0..n_rows {
            let handles = &handles[row * n_inputs..][..n_inputs];
            // SAFETY: live handles by the table's contract.
            let values = unsafe { borrow_values(handles) }?;
            made.push(predict(&object.model, &mut session, None, &names, &values, &options)?);
        }
        // All or none.
        for (place, row) in results.iter_mut().zip(made) {
            *place = row.into_handle();
        }
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn result_view(result: *const CmlResult, view: *mut CmlResultView) {
    // SAFETY: NULL or a handle of `model_predict`, borrowed for the call.
    let object = unsafe { result.cast::<ResultObject>().as_ref() };
    let outputs: &[CmlOutput] = object.map_or(&[], |object| &object.outputs);
    let [prepare_ns, run_ns, collect_ns] = object.map_or([0; 3], |object| object.nanoseconds);
    let filled = CmlResultView {
        size: arguments::size_of_struct::<CmlResultView>(),
        reserved: 0,
        prepare_ns,
        run_ns,
        collect_ns,
        n_outputs: outputs.len(),
        outputs: outputs.as_ptr(),
    };
    // SAFETY: NULL or valid for a write by the table's contract.
    if let Ok(mut view) = unsafe { place(view, "view") } {
        view.set(filled);
    }
}

pub(crate) unsafe extern "C" fn result_free(result: *mut CmlResult) {
    if !result.is_null() {
        // SAFETY: the caller gives back the handle of `model_predict`, once.
        drop(unsafe { Box::from_raw(result.cast::<ResultObject>()) });
    }
}

pub(crate) unsafe extern "C" fn state_new(
    model: *mut CmlModel,
    state: *mut *mut CmlState,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `state`.
        let mut handle = unsafe { out(state, "state") }?;
        // SAFETY: the table's contract on `model`.
        let object = unsafe { borrow_model(model) }?;
        let state = Arc::new(Serial::new("state", object.model.new_state()));
        let object = Box::new(StateObject { state, _live: Live::new(Kind::State) });
        handle.set(Box::into_raw(object).cast());
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn state_with_bytes(
    state: *mut CmlState,
    name: CmlStr,
    writable: i32,
    visit: CmlTensorBytesFn,
    context: *mut c_void,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let body = || {
        // SAFETY: the table's contract on `state`.
        let object = unsafe { borrow_state(state) }.ok_or_else(|| Failure::null("the state"))?;
        // SAFETY: borrowed for the call.
        let name = unsafe { arguments::text(name, "the state's name") }?;
        let mut state = object.state.write()?;
        // The engine computes in float32, so the caller sees a copy in the declared type, which is written back.
        let array = state.read(name)?;
        let shape = array.shape.clone();
        let copy = value::into_handle(Value::of_array(array));
        // SAFETY: a handle of our own, and the caller's visitor.
        let visited = unsafe { value::visit_bytes(copy, writable, visit, context) };
        // SAFETY: the handle is still ours.
        let copied = unsafe { value::share(copy) };
        // SAFETY: the count of `into_handle`.
        unsafe { value::value_release(copy) };
        visited?;
        if writable != 0 {
            let copied = copied?;
            let lent = copied.lend()?;
            if let Input::Array(array) = lent.input() {
                state.write(name, &ArrayRef { shape: &shape, ..array })?;
            }
        }
        Ok(())
    };
    // SAFETY: the table's contract on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn state_release(state: *mut CmlState) {
    if !state.is_null() {
        // SAFETY: the caller gives back the handle of `state_new`, once.
        drop(unsafe { Box::from_raw(state.cast::<StateObject>()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_as_far_as_it_reaches() {
        let mut config = CmlConfig {
            size: 0,
            compute_units: CML_COMPUTE_CPU_ONLY,
            flags: 0,
            threads: 3,
            function_name: CmlStr::from("decode"),
            display_name: CmlStr::NONE,
            reshape_frequency: 9,
            specialization: CML_SPECIALIZATION_FAST_PREDICTION,
            preferred_device: 5,
        };
        let mut read = |size: usize, reshape_frequency: i32| {
            config.size = u32::try_from(size).unwrap();
            config.reshape_frequency = reshape_frequency;
            // SAFETY: the struct is whole, whatever size it says, and its string is static.
            unsafe { configuration(&config) }
                .map(|(function, threads)| (function.map(str::to_owned), threads.get()))
        };
        let whole = (Some("decode".to_owned()), 3);
        // A header without preferred devices, and one with.
        let hinted = offset_of!(CmlConfig, preferred_device);
        assert!(read(size_of::<CmlConfig>(), CML_RESHAPE_INFREQUENT).is_err());
        // The first header ended before the hints.
        assert_eq!(read(offset_of!(CmlConfig, reshape_frequency), 9).unwrap(), whole);
        assert_eq!(read(offset_of!(CmlConfig, reshape_frequency) + 1, 9).unwrap(), whole);
        assert_eq!(read(hinted, CML_RESHAPE_INFREQUENT).unwrap(), whole);
        assert!(read(hinted, 9).is_err());
        assert_eq!(read(offset_of!(CmlConfig, function_name) + 8, 9).unwrap(), (None, 3));
        assert_eq!(read(offset_of!(CmlConfig, compute_units), 9).unwrap().0, None);
        assert!(read(3, 0).is_err() && read(0, 0).is_err());
    }
}
