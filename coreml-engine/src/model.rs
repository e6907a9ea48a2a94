//! Models and sessions: what a user of the engine holds.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use coreml_proto::proto::{Model as ModelProto, model::Type as ModelType};
use prost::Message;
use rten::BufferPool;
use rten_tensor::Tensor;

use crate::CustomLayers;
use crate::convert::{self, Entry};
use crate::decode::{DecodeError, mil};
use crate::description::{self, Feature, FeatureKind, Labels, ModelDescription};
use crate::error::{LoadError, PredictError};
use crate::feature::{Array, Input, Output};
use crate::package::{Package, ReadFile, read_file};
use crate::plan::Plan;
use crate::threads::Threads;
use crate::types::{TensorType, element_count};
use crate::value::{Value, ValueView};

/// What a model may use. A file cannot ask for more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Most elements of one tensor; `2^28` (1 GiB of `f32`) by default.
    pub tensor_elements: usize,
    /// Most elements of all tensors that are alive at one time; `2^29` (2 GiB of `f32`) by default.
    pub total_elements: usize,
    /// Most iterations of all loops of one prediction together; `2^24` by default. A loop that never ends fails when it
    /// gets there.
    pub loop_iterations: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tensor_elements: 1 << 28, total_elements: 1 << 29, loop_iterations: 1 << 24 }
    }
}

/// How a model is loaded.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions<'a> {
    /// Which function; the default one if `None`.
    pub function: Option<&'a str>,
    /// How files are read; into memory if `None`.
    pub read: Option<ReadFile<'a>>,
    /// What the model may use.
    pub limits: Limits,
    /// The custom layers that a neural network may have.
    pub custom_layers: Option<&'a CustomLayers>,
}

impl<'a> LoadOptions<'a> {
    /// Loads that function.
    #[must_use]
    pub fn function(mut self, name: &'a str) -> Self {
        self.function = Some(name);
        self
    }

    /// Reads files in that way, for example by mapping them.
    #[must_use]
    pub fn read(mut self, read: ReadFile<'a>) -> Self {
        self.read = Some(read);
        self
    }

    /// Lets neural networks have custom layers of those classes.
    #[must_use]
    pub fn custom_layers(mut self, layers: &'a CustomLayers) -> Self {
        self.custom_layers = Some(layers);
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

/// A loaded model: validated, planned, its weights packed. Cloning it copies nothing, and all sessions share it.
///
/// ```no_run
/// use coreml_engine::{LoadOptions, Model};
/// let model = Model::load("model.mlpackage", &LoadOptions::default())?;
/// let mut session = model.session(std::num::NonZeroUsize::MIN);
/// # Ok::<(), coreml_engine::LoadError>(())
/// ```
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    /// Unique in the process, so that a state knows its model.
    id: u64,
    path: String,
    description: ModelDescription,
    plan: Plan,
    /// For every input of the plan its feature, by index.
    inputs: Vec<usize>,
    /// For every output of the description the index of the plan's.
    outputs: Vec<usize>,
}

impl Inner {
    /// The labels that an output of a classifier is made of.
    fn labels_of(&self, feature: &Feature) -> Option<&Labels> {
        let description = &self.description;
        let names = [&description.predicted_feature, &description.predicted_probabilities];
        description.class_labels.as_ref().filter(|_| names.contains(&&feature.name))
    }
}

impl Model {
    /// Reads, validates and plans the model at `path` (`.mlmodel`, `.mlpackage` or `.mlmodelc`).
    ///
    /// # Errors
    /// [`LoadError`], which names the model and what in it is wrong.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions<'_>) -> Result<Self, LoadError> {
        let read = options.read.unwrap_or(&read_file);
        let package = Package::open(path.as_ref(), read)?;
        let name = package.path.display().to_string();
        Self::of_specification(&name, &package.specification, options, &|file| package.file(file, read))
    }

    /// As [`Model::load`], from the bytes of a specification and of the files it names (`@model_path/…`).
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_memory(
        name: &str,
        specification: &[u8],
        files: &HashMap<String, crate::SharedBytes>,
        options: &LoadOptions<'_>,
    ) -> Result<Self, LoadError> {
        let proto = ModelProto::decode(specification)
            .map_err(|source| LoadError::Decode { model: name.to_owned(), source })?;
        Self::of_specification(name, &proto, options, &|file| {
            files.get(file).cloned().ok_or_else(|| LoadError::Io {
                path: file.into(),
                source: std::io::ErrorKind::NotFound.into(),
            })
        })
    }

    fn of_specification(
        name: &str,
        proto: &ModelProto,
        options: &LoadOptions<'_>,
        open: mil::OpenFile<'_>,
    ) -> Result<Self, LoadError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let unsupported = |what: String| LoadError::Unsupported { model: name.into(), what };
        let corrupt = |(at, reason)| LoadError::Corrupt { model: name.into(), at, reason };
        let kind = proto.r#type.as_ref().ok_or_else(|| {
            corrupt(("specification".into(), "it says no kind of model, or one that is not known".into()))
        })?;
        let described = proto
            .description
            .as_ref()
            .ok_or_else(|| corrupt(("specification".into(), "it has no description".into())))?;
        let (mut description, decoded) = match kind {
            ModelType::MlProgram(program) => {
                let multi = !described.functions.is_empty();
                let function = match options.function {
                    Some(function) => function,
                    None if multi => &described.default_function_name,
                    None => "main",
                };
                let proto = program.functions.get(function).ok_or_else(|| {
                    let mut known: Vec<_> = program.functions.keys().cloned().collect();
                    known.sort();
                    LoadError::NoFunction { model: name.into(), function: function.into(), known }
                })?;
                let mut description =
                    description::decode(described, multi.then_some(function)).map_err(corrupt)?;
                if !multi {
                    description.functions = vec![function.to_owned()];
                    description.function = function.to_owned();
                }
                (description, mil::function(proto, open).map_err(|e| e.of(name))?)
            }
            other => {
                if options.function.is_some_and(|f| f != "main") {
                    return Err(unsupported("a function of a model that is not an ML program".into()));
                }
                let description = description::decode(described, None).map_err(corrupt)?;
                let decoded = crate::nn::decode(
                    other,
                    proto.specification_version,
                    &description,
                    options.custom_layers,
                )
                .map_err(|e| e.of(name))?;
                (description, decoded)
            }
        };
        description.class_labels = decoded.class_labels;
        if let Some(labels) = &description.class_labels {
            let names = [&description.predicted_feature, &description.predicted_probabilities];
            let mut made = description.outputs.iter().filter(|feature| names.contains(&&feature.name));
            if let Some(feature) = made.find(|feature| !convert::is_labelled(&feature.kind, labels)) {
                let reason = format!("{} does not go with the classifier's labels", feature.kind.words());
                return Err(corrupt((format!("output `{}`", feature.name), reason)));
            }
        }
        let plan = Plan::compile(decoded.function, decoded.inputs, decoded.outputs, &options.limits)
            .map_err(|e| e.of(name))?;
        Self::assemble(name, description, plan, NEXT.fetch_add(1, Ordering::Relaxed)).map_err(|e| e.of(name))
    }

    fn assemble(name: &str, description: ModelDescription, plan: Plan, id: u64) -> Result<Self, DecodeError> {
        let find = |features: &[Feature], name: &str, what: &str| {
            features.iter().position(|f| f.name == name).ok_or_else(|| {
                DecodeError::corrupt(format!("{what} `{name}`"), "the description does not have it")
            })
        };
        let inputs = plan
            .inputs
            .iter()
            .map(|port| find(&description.inputs, &port.name, "input"))
            .collect::<Result<Vec<_>, _>>()?;
        for state in &plan.states {
            find(&description.states, &state.name, "state")?;
        }
        let outputs = description
            .outputs
            .iter()
            .map(|feature| {
                plan.outputs.iter().position(|port| port.name == feature.name).ok_or_else(|| {
                    DecodeError::corrupt(format!("output `{}`", feature.name), "the program does not make it")
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let path = name.to_owned();
        Ok(Self { inner: Arc::new(Inner { id, path, description, plan, inputs, outputs }) })
    }

    /// What the model takes and gives.
    #[must_use]
    pub fn description(&self) -> &ModelDescription {
        &self.inner.description
    }

    /// Where it was loaded from.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.inner.path
    }

    /// Steps of one prediction, and its multiply-adds as estimated from the declared shapes.
    #[must_use]
    pub fn plan_size(&self) -> (usize, usize) {
        self.inner.plan.size()
    }

    /// Bytes of constants that are kept beside the packed weights.
    #[must_use]
    pub fn constant_bytes(&self) -> usize {
        self.inner.plan.constant_bytes()
    }

    /// A reference that does not keep the model alive, for tables of shared models.
    #[must_use]
    pub fn downgrade(&self) -> WeakModel {
        WeakModel { inner: Arc::downgrade(&self.inner) }
    }

    /// An instance that predicts with up to `threads` threads.
    #[must_use]
    pub fn session(&self, threads: NonZeroUsize) -> Session {
        let threads = if self.inner.plan.is_parallel() { Threads::new(threads) } else { Threads::Caller };
        Session { model: self.clone(), pool: BufferPool::new(), threads }
    }

    /// Memory for the model's states, all zero.
    #[must_use]
    pub fn new_state(&self) -> State {
        let values = self.inner.plan.states.iter().map(|port| {
            let shape = port.ty.fixed_shape().unwrap_or_default();
            if port.ty.dtype.is_float() {
                Value::F32(Tensor::zeros(&shape))
            } else {
                Value::I32(Tensor::zeros(&shape))
            }
        });
        State { model: self.clone(), values: values.collect() }
    }
}

/// A [`Model`] that may be gone.
#[derive(Clone)]
pub struct WeakModel {
    inner: Weak<Inner>,
}

impl WeakModel {
    /// The model, if anybody still has it.
    #[must_use]
    pub fn upgrade(&self) -> Option<Model> {
        self.inner.upgrade().map(|inner| Model { inner })
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

/// The memory of a stateful model between predictions.
#[derive(Debug)]
pub struct State {
    model: Model,
    values: Vec<Value>,
}

impl State {
    fn position(&self, name: &str) -> Result<(usize, &Feature), PredictError> {
        let inner = &self.model.inner;
        let position = inner.plan.states.iter().position(|port| port.name == name);
        let feature = inner.description.states.iter().find(|f| f.name == name);
        position.zip(feature).ok_or_else(|| PredictError::UnknownFeature {
            model: inner.path.clone(),
            what: "state",
            feature: name.to_owned(),
            known: inner.description.states.iter().map(|f| f.name.clone()).collect(),
        })
    }

    /// A copy of the state of that name.
    ///
    /// # Errors
    /// If the model has no such state.
    pub fn read(&self, name: &str) -> Result<Array, PredictError> {
        let (position, feature) = self.position(name)?;
        match convert::output(&self.values[position].view(), &feature.kind, None) {
            Ok(Output::Array(array)) => Ok(array),
            Ok(_) | Err(_) => Err(PredictError::State {
                model: self.model.inner.path.clone(),
                reason: format!("the state `{name}` is not a tensor"),
            }),
        }
    }

    /// Overwrites the state of that name.
    ///
    /// # Errors
    /// If the model has no such state, or it has another dtype or shape.
    pub fn write(&mut self, name: &str, array: &crate::ArrayRef<'_>) -> Result<(), PredictError> {
        let (position, feature) = self.position(name)?;
        let inner = &self.model.inner;
        let pool = BufferPool::new();
        let given = Input::Array(*array);
        let entry = convert::input(&given, &feature.kind, &inner.plan.states[position].ty, &pool)
            .map_err(|found| wrong_input(&inner.path, feature, found))?;
        self.values[position] = match entry {
            Entry::View(view) => view.to_owned_in(&pool),
            Entry::Owned(value) => value,
        };
        Ok(())
    }
}

fn wrong_input(model: &str, feature: &Feature, found: String) -> PredictError {
    PredictError::WrongInput {
        model: model.to_owned(),
        feature: feature.name.clone(),
        expected: feature.kind.words(),
        found,
    }
}

/// One instance of a model: the shared plan, and memory of its own that predictions reuse.
pub struct Session {
    model: Model,
    pool: BufferPool,
    threads: Threads,
}

impl Session {
    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Predicts. `wanted` names the outputs to return, all if empty; they come in the order of the description.
    ///
    /// # Errors
    /// [`PredictError`], which names the feature or the op. The session stays usable.
    pub fn predict(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        state: Option<&mut State>,
        wanted: &[&str],
    ) -> Result<Vec<(String, Output)>, PredictError> {
        let inner = &*self.model.inner;
        let states = states_of(inner, state)?;
        known(inner, "input", &inner.description.inputs, inputs.iter().map(|(name, _)| *name))?;
        known(inner, "output", &inner.description.outputs, wanted.iter().copied())?;
        let entries = inner
            .plan
            .inputs
            .iter()
            .zip(&inner.inputs)
            .map(|(port, &feature)| {
                let feature = &inner.description.inputs[feature];
                match inputs.iter().find(|(name, _)| *name == feature.name) {
                    Some((_, given)) => convert::input(given, &feature.kind, &port.ty, &self.pool)
                        .map_err(|found| wrong_input(&inner.path, feature, found)),
                    None => default_input(inner, feature, &port.ty),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let pool = &self.pool;
        let result = self.threads.run(|| {
            let views = entries.iter().map(|entry| match entry {
                Entry::View(view) => view.clone(),
                Entry::Owned(value) => value.view(),
            });
            inner.plan.run(views, states, pool, |value| collect(inner, wanted, value))
        });
        for entry in entries {
            if let Entry::Owned(value) = entry {
                value.recycle(pool);
            }
        }
        result.unwrap_or_else(|error| {
            Err(PredictError::Op {
                model: inner.path.clone(),
                op: error.op,
                output: error.output,
                source: error.source,
            })
        })
    }
}

fn states_of<'a>(inner: &Inner, state: Option<&'a mut State>) -> Result<&'a mut [Value], PredictError> {
    let error = |reason: &str| PredictError::State { model: inner.path.clone(), reason: reason.to_owned() };
    match state {
        Some(state) if state.model.inner.id != inner.id => Err(error("the state belongs to another model")),
        Some(state) => Ok(&mut state.values),
        None if inner.plan.states.is_empty() => Ok(&mut []),
        None => Err(error("the model has states; a prediction needs one")),
    }
}

fn known<'a>(
    inner: &Inner,
    what: &'static str,
    features: &[Feature],
    mut names: impl Iterator<Item = &'a str>,
) -> Result<(), PredictError> {
    match names.find(|name| !features.iter().any(|f| f.name == *name)) {
        None => Ok(()),
        Some(name) => Err(PredictError::UnknownFeature {
            model: inner.path.clone(),
            what,
            feature: name.to_owned(),
            known: features.iter().map(|f| f.name.clone()).collect(),
        }),
    }
}

fn default_input<'a>(inner: &Inner, feature: &Feature, ty: &TensorType) -> Result<Entry<'a>, PredictError> {
    match &feature.kind {
        FeatureKind::Tensor { tensor } if feature.optional => {
            let x = tensor.default.unwrap_or(0.0);
            let shape = convert::rank5(&tensor.shape, tensor, ty).unwrap_or_else(|| tensor.shape.clone());
            let count = element_count(&shape).unwrap_or(0);
            Ok(Entry::Owned(if ty.dtype.is_float() {
                Value::F32(Tensor::from_data(&shape, vec![x as f32; count]))
            } else {
                Value::I32(Tensor::from_data(&shape, vec![x as i32; count]))
            }))
        }
        kind => Err(PredictError::MissingInput {
            model: inner.path.clone(),
            feature: feature.name.clone(),
            expected: kind.words(),
        }),
    }
}

fn collect<'v>(
    inner: &Inner,
    wanted: &[&str],
    value: &'v dyn Fn(crate::ops::Source) -> Option<ValueView<'v>>,
) -> Result<Vec<(String, Output)>, PredictError> {
    let mut outputs = Vec::with_capacity(inner.outputs.len());
    for (feature, &port) in inner.description.outputs.iter().zip(&inner.outputs) {
        if !wanted.is_empty() && !wanted.contains(&feature.name.as_str()) {
            continue;
        }
        let output = value(inner.plan.outputs[port].place)
            .ok_or_else(|| "no op made it".to_owned())
            .and_then(|view| convert::output(&view, &feature.kind, inner.labels_of(feature)))
            .map_err(|reason| PredictError::State {
                model: inner.path.clone(),
                reason: format!("output `{}`: {reason}", feature.name),
            })?;
        outputs.push((feature.name.clone(), output));
    }
    Ok(outputs)
}
