//! A loaded model, confined to its thread.

use core::{fmt, marker::PhantomData, ptr, ptr::NonNull, time::Duration};
use std::{rc::Rc, sync::Arc};

use coreml_sys::*;

use crate::{
    Bridge, Config, Error, Features, ModelDescription, Role, Tensor, Value,
    crossing::Backing,
    description::Feature,
    native::{Failure, Owned, array, text},
    pending::{PendingPrediction, Waiting},
    table::Table,
};

/// A loaded model.
///
/// Neither `Send` nor `Sync`: it stays on the thread that loaded it, and the compiler proves it. Cloning counts references;
/// the model is released, on its thread, when the last clone and the last [`State`] are gone. What travels between threads
/// is a [`ModelRef`](crate::ModelRef).
///
/// ```compile_fail
/// # fn model() -> coreml_bridge::CoreMlHandle { unimplemented!() }
/// let model = model();
/// std::thread::spawn(move || model.description().inputs.len());
/// ```
#[derive(Clone)]
pub struct CoreMlHandle {
    model: Rc<Model>,
    /// `Rc` is neither `Send` nor `Sync` already; this says that it is on purpose.
    _confined: PhantomData<*mut ()>,
}

/// What all clones of a handle share.
struct Model {
    bridge: Bridge,
    /// One native instance, used by one call at a time: calls take `&self` of a type that does not leave its thread, and
    /// nothing that a call runs comes back here.
    native: Owned<CmlModel>,
    path: Arc<str>,
    description: ModelDescription,
}

/// The arguments of one prediction in the table's form, all borrowed for the call.
struct Arguments<'a> {
    state: *mut CmlState,
    names: *const CmlStr,
    values: *const *mut CmlValue,
    n_inputs: usize,
    options: &'a CmlPredictOptions,
}

impl CoreMlHandle {
    pub(crate) fn load(bridge: Bridge, path: &str, config: &Config) -> Result<CoreMlHandle, Error> {
        CoreMlHandle::load_with("model_load", bridge, path.into(), |table, model, error| {
            let config = config.to_native();
            // SAFETY: path and configuration are borrowed for the call, the out-pointers are ours.
            unsafe { (table.model_load)(table.own(), path.into(), &config, model, error) }
        })
    }

    /// Loads with the slot of that name, whatever the model comes from.
    pub(crate) fn load_with(
        slot: &'static str,
        bridge: Bridge,
        name: Arc<str>,
        load: impl FnOnce(&'static Table, *mut *mut CmlModel, *mut *mut CmlError) -> CmlStatus,
    ) -> Result<CoreMlHandle, Error> {
        let native = bridge
            .make(slot, load)
            .map_err(|failure| failure.about(&name, |path, source| Error::Load { path, source }))?;
        CoreMlHandle::adopt(bridge, name, native)
    }

    /// The handle of a model that was just loaded; reads its description.
    pub(crate) fn adopt(
        bridge: Bridge,
        name: Arc<str>,
        native: Owned<CmlModel>,
    ) -> Result<CoreMlHandle, Error> {
        let json = bridge
            .make("model_describe", |table, json, error| {
                // SAFETY: the model is alive, and no other call on it runs.
                unsafe { (table.model_describe)(native.as_ptr(), json, error) }
            })
            .map_err(|failure| failure.about(&name, |model, source| Error::Describe { model, source }))?;
        let description = ModelDescription::from_json(json.bytes())
            .map_err(|source| Error::Description { subject: Arc::clone(&name), source: Arc::new(source) })?;
        let model = Rc::new(Model { bridge, native, path: name, description });
        Ok(CoreMlHandle { model, _confined: PhantomData })
    }

    /// The bridge that loaded the model.
    #[must_use]
    pub fn bridge(&self) -> Bridge {
        self.model.bridge
    }

    /// The path that the model was loaded from, or the name of one that was in memory.
    #[must_use]
    pub fn path(&self) -> &Arc<str> {
        &self.model.path
    }

    /// What the model takes and gives; read once, when it was loaded.
    #[must_use]
    pub fn description(&self) -> &ModelDescription {
        &self.model.description
    }

    /// Runs the model once.
    ///
    /// The inputs are checked against the description before anything crosses to the other side. Tensors are lent without a
    /// copy; the other side may keep their memory alive for a while after the return.
    ///
    /// # Errors
    /// [`Error::MissingInput`], [`Error::UnknownFeature`], [`Error::WrongKind`], [`Error::WrongDtype`],
    /// [`Error::WrongShape`], [`Error::WrongPixelFormat`], [`Error::WrongKey`], [`Error::WrongCount`] if the inputs do not
    /// suit; [`Error::Value`] if one cannot be passed; [`Error::Predict`] if the model fails; [`Error::Contract`] if
    /// the bridge is defect.
    pub fn predict(&self, inputs: &Features) -> Result<Features, Error> {
        self.predict_with(inputs, PredictOptions::default()).map(|prediction| prediction.outputs)
    }

    /// Runs the model once, with a state, for some of the outputs, or into given memory.
    ///
    /// # Errors
    /// As [`CoreMlHandle::predict`]; also [`Error::ForeignState`] if another model instance made the state,
    /// [`Error::Unsupported`] if the bridge knows no states, and [`Error::UnknownFeature`] and the `Wrong..` errors for an
    /// output that is wanted or backed.
    pub fn predict_with(&self, inputs: &Features, options: PredictOptions<'_>) -> Result<Prediction, Error> {
        let (result, backings) = self.call(inputs, options, |model, arguments| {
            model.bridge.make("model_predict", |table, result, error| {
                let slot = table.model_predict;
                let (native, Arguments { state, names, values, n_inputs, options }) =
                    (model.native.as_ptr(), arguments);
                // SAFETY: model, state and values are alive, this bridge's, and used by no other call, or else the bridge
                // says so; the lists are borrowed for the call and as long as is said.
                unsafe { slot(native, *state, *names, *values, *n_inputs, *options, result, error) }
            })
        })?;
        self.collect(&result, backings)
    }

    /// Begins to run the model once, and does not wait for the end: the result is a future, which also can be waited for.
    ///
    /// Until it ends, the model and the state that it uses are taken: other calls on them answer [`Error::Busy`]. The inputs are
    /// kept as long as they are needed. Dropping the future cancels the prediction; the model is taken until the framework has
    /// let go of it even so.
    ///
    /// ```
    /// # use coreml_bridge::{Bridge, Config, Dtype, Features, PredictOptions, Tensor};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// let model = Bridge::platform().load(path, &Config::default())?;
    /// let inputs = Features::new().with("image", Tensor::zeros(Dtype::Float32, &[1, 1, 8, 8])?);
    /// let pending = model.predict_async(&inputs, PredictOptions::default())?;
    /// // .. something else ..
    /// assert_eq!(pending.wait()?.outputs.tensor("probabilities")?.shape(), [1, 10]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`CoreMlHandle::predict_with`], if the prediction cannot begin; [`Error::Unsupported`] on a system that predicts only
    /// while one waits.
    pub fn predict_async<'state>(
        &self,
        inputs: &Features,
        options: PredictOptions<'state>,
    ) -> Result<PendingPrediction<'state>, Error> {
        let (waiting, backings) = self.call(inputs, options, |model, arguments| {
            Waiting::begin(model.bridge, |table, done, context, request, error| {
                let slot = table.model_predict_async;
                let (native, Arguments { state, names, values, n_inputs, options }) =
                    (model.native.as_ptr(), arguments);
                // SAFETY: model, state and values are alive and this bridge's, and it keeps what it uses; the lists are
                // borrowed for the call and as long as is said; completion and context belong together.
                unsafe {
                    slot(native, *state, *names, *values, *n_inputs, *options, done, context, request, error)
                }
            })
        })?;
        Ok(PendingPrediction::new(waiting, self.clone(), backings))
    }

    /// Checks what a prediction is given, brings it into the table's form, and runs `slot` with it. Also returns the backings,
    /// which the outputs are collected with.
    fn call<R>(
        &self,
        inputs: &Features,
        options: PredictOptions<'_>,
        slot: impl FnOnce(&Model, &Arguments<'_>) -> Result<R, Failure>,
    ) -> Result<(R, Vec<Backing>), Error> {
        let PredictOptions { state, wanted, backings } = options;
        let model = &*self.model;
        self.check_inputs(inputs)?;
        let state = state.map(|state| self.check_state(state)).transpose()?;
        for name in wanted.unwrap_or_default() {
            self.known(Role::Output, name)?;
        }
        let backings = self.check_backings(backings)?;

        let mut names = Vec::with_capacity(inputs.len());
        let mut owned = Vec::with_capacity(inputs.len());
        for (name, value) in inputs.iter() {
            let value = model.bridge.lend(value);
            owned.push(value.map_err(|failure| failure.about_feature(&model.path, name))?);
            names.push(CmlStr::from(name));
        }
        let values: Vec<*mut CmlValue> = owned.iter().map(Owned::as_ptr).collect();
        let wanted: Vec<CmlStr> = wanted.unwrap_or_default().iter().map(|&name| name.into()).collect();
        let backing_names: Vec<CmlStr> = backings.iter().map(|backing| backing.name().into()).collect();
        let backing_values: Vec<*mut CmlValue> = backings.iter().map(Backing::as_ptr).collect();
        let options = CmlPredictOptions {
            size: size_of::<CmlPredictOptions>() as u32,
            reserved: 0,
            wanted: wanted.as_ptr(),
            n_wanted: wanted.len(),
            backing_names: backing_names.as_ptr(),
            backings: backing_values.as_ptr(),
            n_backings: backing_values.len(),
        };
        let arguments = Arguments {
            state: state.map_or(ptr::null_mut(), |state| state.native.as_ptr()),
            names: names.as_ptr(),
            values: values.as_ptr(),
            n_inputs: values.len(),
            options: &options,
        };
        let result = slot(model, &arguments);
        // The inputs go back before the outputs are read: a bridge that is done with them frees what it held.
        drop(owned);
        let result = result.map_err(|failure| {
            failure.about(&model.path, |model, source| Error::Predict { model, source })
        })?;
        Ok((result, backings))
    }

    /// Runs the model once for each row, in one call, and returns what each row gave, in order; for some of the outputs if
    /// `wanted` names them. All rows give the same features. Without a state: one state cannot serve rows that may run at once.
    ///
    /// Core ML may run rows together; then the [`timings`](Prediction::timings) of every row are those of the whole batch.
    ///
    /// ```
    /// # use coreml_bridge::{Bridge, Config, Dtype, Features, Tensor};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// let model = Bridge::platform().load(path, &Config::default())?;
    /// let image = Tensor::zeros(Dtype::Float32, &[1, 1, 8, 8])?;
    /// let rows = vec![Features::new().with("image", image); 3];
    /// let predictions = model.predict_batch(&rows, None)?;
    /// assert_eq!(predictions.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`CoreMlHandle::predict`], for the first row that is wrong; [`Error::UnevenBatch`] if rows differ in their features;
    /// [`Error::UnknownFeature`] for an output that is wanted. If one row fails, all do.
    pub fn predict_batch(
        &self,
        rows: &[Features],
        wanted: Option<&[&str]>,
    ) -> Result<Vec<Prediction>, Error> {
        let model = &*self.model;
        let Some(first) = rows.first() else { return Ok(Vec::new()) };
        for (row, inputs) in rows.iter().enumerate() {
            self.check_inputs(inputs)?;
            if inputs.len() != first.len() || first.iter().any(|(name, _)| inputs.get(name).is_none()) {
                let features = first.iter().map(|(name, _)| name.to_owned()).collect();
                return Err(Error::UnevenBatch { model: Arc::clone(&model.path), row, features });
            }
        }
        for name in wanted.unwrap_or_default() {
            self.known(Role::Output, name)?;
        }

        let names: Vec<CmlStr> = first.iter().map(|(name, _)| name.into()).collect();
        let mut owned = Vec::with_capacity(rows.len() * names.len());
        for inputs in rows {
            // In the order of the first row.
            for value in first.iter().filter_map(|(name, _)| inputs.get(name).map(|value| (name, value))) {
                let (name, value) = value;
                let value = model.bridge.lend(value);
                owned.push(value.map_err(|failure| failure.about_feature(&model.path, name))?);
            }
        }
        let values: Vec<*mut CmlValue> = owned.iter().map(Owned::as_ptr).collect();
        let wanted: Vec<CmlStr> = wanted.unwrap_or_default().iter().map(|&name| name.into()).collect();
        let options = CmlPredictOptions {
            size: size_of::<CmlPredictOptions>() as u32,
            reserved: 0,
            wanted: wanted.as_ptr(),
            n_wanted: wanted.len(),
            backing_names: ptr::null(),
            backings: ptr::null(),
            n_backings: 0,
        };
        let mut results = vec![ptr::null_mut(); rows.len()];
        let done = model.bridge.call(|table, error| {
            let slot = table.model_predict_batch;
            let (native, results) = (model.native.as_ptr(), results.as_mut_ptr());
            // SAFETY: model and values are alive, this bridge's, and used by no other call; the lists are borrowed for the
            // call and as long as is said: `names.len()` values, and one place for a result, for each row.
            unsafe {
                slot(
                    native,
                    rows.len(),
                    names.as_ptr(),
                    values.as_ptr(),
                    names.len(),
                    &options,
                    results,
                    error,
                )
            }
        });
        // Owned in any case, also if a bridge leaves results along with a failure.
        let results: Vec<_> = results.into_iter().map(|result| Owned::adopt(model.bridge, result)).collect();
        // The inputs go back before the outputs are read: a bridge that is done with them frees what it held.
        drop(owned);
        done.map_err(|failure| failure.about(&model.path, |model, source| Error::Predict { model, source }))?;
        let collect = |result: Option<Owned<CmlResult>>| match result {
            Some(result) => self.collect(&result, Vec::new()),
            None => {
                Err(Error::Contract { slot: "model_predict_batch", what: "it succeeded and left a row out" })
            }
        };
        results.into_iter().map(collect).collect()
    }

    /// A state of its own for a stateful model: what it remembers between predictions, zero at first. The state of a model
    /// that declares none is empty.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the bridge knows no states, [`Error::State`] if it cannot be made.
    pub fn new_state(&self) -> Result<State, Error> {
        let native = self.model.bridge.make("state_new", |table, state, error| {
            // SAFETY: the model is alive, and no other call on it runs.
            unsafe { (table.state_new)(self.model.native.as_ptr(), state, error) }
        });
        let native = native.map_err(|failure| self.state_error(failure))?;
        Ok(State { native, model: self.clone() })
    }

    fn state_error(&self, failure: Failure) -> Error {
        failure.about(&self.model.path, |model, source| Error::State { model, source })
    }

    /// Names, kinds, element types and shapes of the inputs.
    fn check_inputs(&self, inputs: &Features) -> Result<(), Error> {
        for (name, value) in inputs.iter() {
            let feature = self.known(Role::Input, name)?;
            let accepted = feature.kind.accepts(value);
            accepted.map_err(|mismatch| Error::mismatch(&self.model.path, name, mismatch))?;
        }
        let mut needed = self.model.description.inputs.iter().filter(|feature| !feature.optional);
        match needed.find(|feature| inputs.get(&feature.name).is_none()) {
            None => Ok(()),
            Some(missing) => Err(Error::MissingInput {
                model: Arc::clone(&self.model.path),
                feature: missing.name.as_str().into(),
                expected: missing.kind.to_string(),
            }),
        }
    }

    /// The feature of this name and role.
    fn known(&self, role: Role, name: &str) -> Result<&Feature, Error> {
        let ModelDescription { inputs, outputs, states, .. } = &self.model.description;
        let features = match role {
            Role::Input => inputs,
            Role::Output => outputs,
            Role::State => states,
        };
        features.iter().find(|feature| feature.name == name).ok_or_else(|| Error::UnknownFeature {
            model: Arc::clone(&self.model.path),
            role,
            feature: name.into(),
            known: features.iter().map(|feature| feature.name.clone()).collect(),
        })
    }

    fn check_state<'a>(&self, state: &'a mut State) -> Result<&'a mut State, Error> {
        if Rc::ptr_eq(&self.model, &state.model.model) {
            return Ok(state);
        }
        let owner = Arc::clone(&state.model.model.path);
        Err(Error::ForeignState { model: Arc::clone(&self.model.path), owner })
    }

    fn check_backings(&self, backings: Vec<(String, Tensor)>) -> Result<Vec<Backing>, Error> {
        let path = &self.model.path;
        let mut checked: Vec<Backing> = Vec::with_capacity(backings.len());
        for (name, tensor) in backings {
            let feature = self.known(Role::Output, &name)?;
            let value = Value::Tensor(tensor);
            feature.kind.accepts(&value).map_err(|mismatch| Error::mismatch(path, &name, mismatch))?;
            let Value::Tensor(tensor) = value else { continue };
            // The last one given for an output counts, as with features.
            checked.retain(|backing| backing.name() != name);
            let backing = Backing::new(self.model.bridge, name.clone(), tensor);
            checked.push(backing.map_err(|failure| failure.about_feature(path, &name))?);
        }
        Ok(checked)
    }

    /// Copies the outputs.
    pub(crate) fn collect(
        &self,
        result: &Owned<CmlResult>,
        mut backings: Vec<Backing>,
    ) -> Result<Prediction, Error> {
        const SLOT: &str = "result_view";
        let Model { bridge, path, .. } = &*self.model;
        let mut view = CmlResultView {
            size: size_of::<CmlResultView>() as u32,
            reserved: 0,
            prepare_ns: 0,
            run_ns: 0,
            collect_ns: 0,
            n_outputs: 0,
            outputs: ptr::null(),
        };
        let result_view = bridge.table().result_view;
        // SAFETY: the result is alive, the view is ours and says its size.
        unsafe { result_view(result.as_ptr(), &mut view) };
        // SAFETY: the outputs live as long as the result.
        let list = unsafe { array(SLOT, view.outputs, view.n_outputs) };
        let list = list.map_err(|failure| failure.about_feature(path, "outputs"))?;

        let mut outputs = Features::new();
        let mut backings_used = Vec::new();
        for output in list {
            // SAFETY: the names live as long as the result.
            let name = unsafe { text(SLOT, output.name) };
            let name = name.map_err(|failure| failure.about_feature(path, "outputs"))?;
            let value = NonNull::new(output.value)
                .ok_or(Error::Contract { slot: SLOT, what: "it gave an output without a value" })?;
            let backing = backings.iter().position(|backing| backing.name() == name);
            let value = match backing.map(|position| backings.swap_remove(position)) {
                None => bridge.collect(value),
                Some(backing) => {
                    backing.finish(*bridge, value, output.backing_used != 0).map(|(tensor, used)| {
                        if used {
                            backings_used.push(name.to_owned());
                        }
                        Value::Tensor(tensor)
                    })
                }
            };
            outputs.insert(name, value.map_err(|failure| failure.about_feature(path, name))?);
        }
        let CmlResultView { prepare_ns, run_ns, collect_ns, .. } = view;
        let timings = Timings {
            prepare: Duration::from_nanos(prepare_ns),
            run: Duration::from_nanos(run_ns),
            collect: Duration::from_nanos(collect_ns),
        };
        Ok(Prediction { outputs, timings, backings_used })
    }
}

impl fmt::Debug for CoreMlHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoreMlHandle")
            .field("path", &self.model.path)
            .field("bridge", &self.model.bridge)
            .finish_non_exhaustive()
    }
}

/// How one prediction is to be run.
#[derive(Debug, Default)]
pub struct PredictOptions<'a> {
    /// What a stateful model remembers: read and written by the prediction.
    pub state: Option<&'a mut State>,
    /// The outputs to return; none = all.
    pub wanted: Option<&'a [&'a str]>,
    /// Memory for outputs, by name. A tensor is moved in, and the output comes back on its memory if the bridge took the hint;
    /// see [`Prediction::backings_used`]. Memory that is shared, or not dense, is not used: a new one of its form is.
    pub backings: Vec<(String, Tensor)>,
}

/// What a prediction gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Prediction {
    /// The outputs.
    pub outputs: Features,
    /// How long it took.
    pub timings: Timings,
    /// The outputs that the bridge wrote into the memory given; the others were copied.
    pub backings_used: Vec<String>,
}

/// How long the parts of a prediction took on the other side of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// Bringing the inputs into the framework's form.
    pub prepare: Duration,
    /// The prediction itself.
    pub run: Duration,
    /// Bringing the outputs back.
    pub collect: Duration,
}

/// What a stateful model remembers between predictions, for example the key-value cache of a language model.
///
/// Belongs to the model instance that made it and keeps it alive; stays on its thread. A prediction borrows it mutably, so
/// that no two can use it at once.
pub struct State {
    // Released before the model: fields drop in order.
    native: Owned<CmlState>,
    model: CoreMlHandle,
}

impl State {
    /// The model that the state belongs to.
    #[must_use]
    pub fn model(&self) -> &CoreMlHandle {
        &self.model
    }

    /// A copy of what one of the model's states holds.
    ///
    /// # Errors
    /// [`Error::UnknownFeature`] if the model has no such state, [`Error::State`] if it cannot be read.
    pub fn read(&self, name: &str) -> Result<Tensor, Error> {
        self.model.known(Role::State, name)?;
        let tensor = self.model.bridge().read_state(&self.native, name);
        tensor.map_err(|failure| self.model.state_error(failure))
    }

    /// Overwrites what one of the model's states holds.
    ///
    /// # Errors
    /// [`Error::UnknownFeature`] if the model has no such state, [`Error::WrongDtype`] or [`Error::WrongShape`] if the tensor
    /// does not suit it, [`Error::State`] if it cannot be written.
    pub fn write(&mut self, name: &str, tensor: &Tensor) -> Result<(), Error> {
        let feature = self.model.known(Role::State, name)?;
        let accepted = feature.kind.accepts(&Value::Tensor(tensor.clone()));
        accepted.map_err(|mismatch| Error::mismatch(self.model.path(), name, mismatch))?;
        let written = self.model.bridge().write_state(&self.native, name, tensor);
        written.map_err(|failure| self.model.state_error(failure))
    }

    /// A second state that holds the same: predictions with either do not change the other.
    ///
    /// # Errors
    /// [`Error::State`] or [`Error::Unsupported`] if a state cannot be made, read or written.
    pub fn fork(&self) -> Result<State, Error> {
        let mut fork = self.model.new_state()?;
        for feature in &self.model.description().states {
            fork.write(&feature.name, &self.read(&feature.name)?)?;
        }
        Ok(fork)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("model", &self.model).finish_non_exhaustive()
    }
}
