//! Models and sessions: what a user of the engine holds.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use coreml_proto::proto::{
    LinkedModelFile, Model as ModelProto, Pipeline as PipelineProto, linked_model::LinkType,
    model::Type as ModelType,
};
use prost::Message;
use rten::BufferPool;
use rten_tensor::Tensor;

use crate::CustomLayers;
use crate::convert::{self, Entry};
use crate::decode::{DecodeError, mil};
use crate::description::{self, Feature, FeatureKind, Labels, ModelDescription};
use crate::error::{LoadError, PredictError};
use crate::estimators::{Estimator, Features};
use crate::feature::{Array, Input, Output};
use crate::linked;
use crate::package::{Package, ReadFile, read_file};
use crate::plan::{Plan, Port};
use crate::shaped::{Network, Shaped};
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
    body: Body,
}

/// What a model is made of: features in, features out.
enum Body {
    /// An ML program or a neural network.
    Program(Program),
    /// One computation on features.
    Estimator(Estimator),
    /// Models that see the inputs and what those before them made. A linked model is a pipeline of one.
    Pipeline(Vec<Model>),
    /// A network that has a plan for each shape that it was given.
    Shaped(Box<Shaped>),
}

/// A plan, and where its ports stand in the description.
struct Program {
    plan: Plan,
    /// For every input of the plan its feature, by index.
    inputs: Vec<usize>,
    /// For every output of the description the index of the plan's.
    outputs: Vec<usize>,
}

impl Inner {
    fn program(&self) -> Option<&Program> {
        match &self.body {
            Body::Program(program) => Some(program),
            Body::Estimator(_) | Body::Pipeline(_) | Body::Shaped(_) => None,
        }
    }

    /// The models of a pipeline.
    fn parts(&self) -> &[Model] {
        match &self.body {
            Body::Pipeline(parts) => parts,
            Body::Program(_) | Body::Estimator(_) | Body::Shaped(_) => &[],
        }
    }

    fn states(&self) -> &[Port<()>] {
        self.program().map_or(&[], |program| &program.plan.states)
    }

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
        Self::load_linked(path.as_ref(), options, &[])
    }

    /// As [`Model::load`], for a model that others, outermost first, link to.
    fn load_linked(path: &Path, options: &LoadOptions<'_>, chain: &[PathBuf]) -> Result<Self, LoadError> {
        let read = options.read.unwrap_or(&read_file);
        let package = Package::open(path, read)?;
        let name = package.path.display().to_string();
        let link = |file: &LinkedModelFile| {
            let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
            let here = path.canonicalize().map_err(|source| LoadError::Io { path: path.into(), source })?;
            let linked = linked::find(folder, file).map_err(|error| error.of(&name))?;
            let chain: Vec<_> = chain.iter().cloned().chain([here]).collect();
            if chain.contains(&linked) || chain.len() > MAX_DEPTH {
                let reason = "its links lead back to itself, or are too many";
                return Err(DecodeError::corrupt("linked model", reason).of(&name));
            }
            Self::load_linked(&linked, options, &chain)
        };
        let source =
            Source { name: &name, options, open: &|file| package.file(file, read), link: &link, depth: 0 };
        source.load(&package.specification, options.function)
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
        let open = |file: &str| {
            files.get(file).cloned().ok_or_else(|| LoadError::Io {
                path: file.into(),
                source: std::io::ErrorKind::NotFound.into(),
            })
        };
        let link = |_: &LinkedModelFile| {
            Err(DecodeError::Unsupported("a linked model in a model that was not read from a file".into())
                .of(name))
        };
        Source { name, options, open: &open, link: &link, depth: 0 }.load(&proto, options.function)
    }

    fn new(name: &str, description: ModelDescription, body: Body) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { inner: Arc::new(Inner { id, path: name.to_owned(), description, body }) }
    }

    /// Of a program that is decoded.
    pub(crate) fn of_program(
        name: &str,
        mut description: ModelDescription,
        decoded: mil::Decoded,
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        description.class_labels = decoded.class_labels;
        labelled(name, &description)?;
        let plan = Plan::compile(decoded.function, decoded.inputs, decoded.outputs, limits)
            .map_err(|e| e.of(name))?;
        let program = Program::new(plan, &description).map_err(|e| e.of(name))?;
        Ok(Self::new(name, description, Body::Program(program)))
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
        match &self.inner.body {
            Body::Program(program) => program.plan.size(),
            Body::Estimator(_) => (1, 0),
            Body::Pipeline(parts) => parts.iter().map(Self::plan_size).fold((0, 0), |all, part| {
                (usize::saturating_add(all.0, part.0), usize::saturating_add(all.1, part.1))
            }),
            Body::Shaped(network) => network.size,
        }
    }

    /// Bytes of constants that are kept beside the packed weights.
    #[must_use]
    pub fn constant_bytes(&self) -> usize {
        match &self.inner.body {
            Body::Program(program) => program.plan.constant_bytes(),
            Body::Estimator(_) => 0,
            Body::Pipeline(parts) => parts.iter().map(Self::constant_bytes).fold(0, usize::saturating_add),
            Body::Shaped(network) => network.constant_bytes(),
        }
    }

    /// A reference that does not keep the model alive, for tables of shared models.
    #[must_use]
    pub fn downgrade(&self) -> WeakModel {
        WeakModel { inner: Arc::downgrade(&self.inner) }
    }

    /// An instance that predicts with up to `threads` threads.
    #[must_use]
    pub fn session(&self, threads: NonZeroUsize) -> Session {
        let parallel = match &self.inner.body {
            Body::Program(program) => program.plan.is_parallel(),
            // Its plans may be.
            Body::Shaped(_) => true,
            Body::Estimator(_) | Body::Pipeline(_) => false,
        };
        let parts = self.inner.parts().iter().map(|part| part.session(threads)).collect();
        let threads = if parallel { Threads::new(threads) } else { Threads::Caller };
        Session { model: self.clone(), pool: BufferPool::new(), threads, parts }
    }

    /// Memory for the model's states, all zero.
    #[must_use]
    pub fn new_state(&self) -> State {
        let values = self.inner.states().iter().map(|port| {
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

/// Models in models, and models that link to models; deeper is not a model but an attack on the stack.
const MAX_DEPTH: usize = 16;

/// Loads the model that a link names.
type Link<'a> = &'a dyn Fn(&LinkedModelFile) -> Result<Model, LoadError>;

/// Where a specification comes from.
#[derive(Clone, Copy)]
struct Source<'a> {
    name: &'a str,
    options: &'a LoadOptions<'a>,
    open: mil::OpenFile<'a>,
    link: Link<'a>,
    /// How many pipelines it is inside of.
    depth: usize,
}

impl Source<'_> {
    fn load(&self, proto: &ModelProto, function: Option<&str>) -> Result<Model, LoadError> {
        let name = self.name;
        let unsupported = |what: String| LoadError::Unsupported { model: name.into(), what };
        let corrupt = |(at, reason)| LoadError::Corrupt { model: name.into(), at, reason };
        let kind = proto.r#type.as_ref().ok_or_else(|| {
            corrupt(("specification".into(), "it says no kind of model, or one that is not known".into()))
        })?;
        let described = proto
            .description
            .as_ref()
            .ok_or_else(|| corrupt(("specification".into(), "it has no description".into())))?;
        if let ModelType::MlProgram(program) = kind {
            let multi = !described.functions.is_empty();
            let function = match function {
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
            let decoded = mil::function(proto, self.open).map_err(|e| e.of(name))?;
            return Model::of_program(name, description, decoded, &self.options.limits);
        }
        if function.is_some_and(|f| f != "main") {
            return Err(unsupported("a function of a model that is not an ML program".into()));
        }
        let mut description = description::decode(described, None).map_err(corrupt)?;
        match kind {
            ModelType::NeuralNetwork(_)
            | ModelType::NeuralNetworkClassifier(_)
            | ModelType::NeuralNetworkRegressor(_) => {
                self.network(kind, proto.specification_version, description)
            }
            ModelType::Pipeline(pipeline) => self.pipeline(description, Some(pipeline)),
            ModelType::PipelineClassifier(outer) => self.pipeline(description, outer.pipeline.as_ref()),
            ModelType::PipelineRegressor(outer) => self.pipeline(description, outer.pipeline.as_ref()),
            ModelType::LinkedModel(linked) => {
                let file = match &linked.link_type {
                    Some(LinkType::LinkedModelFile(file)) => file,
                    None => return Err(corrupt(("linked model".into(), "it links to nothing".into()))),
                };
                let model = (self.link)(file)?;
                self.chain(description, vec![model])
            }
            _ => {
                let estimator =
                    Estimator::new(kind, &mut description, &self.options.limits).map_err(|e| e.of(name))?;
                description.class_labels = estimator.labels().cloned();
                labelled(name, &description)?;
                Ok(Model::new(name, description, Body::Estimator(estimator)))
            }
        }
    }

    fn pipeline(
        &self,
        description: ModelDescription,
        pipeline: Option<&PipelineProto>,
    ) -> Result<Model, LoadError> {
        let pipeline = pipeline.filter(|pipeline| !pipeline.models.is_empty());
        let corrupt = |reason: &str| DecodeError::corrupt("pipeline", reason).of(self.name);
        let pipeline = pipeline.ok_or_else(|| corrupt("it has no models"))?;
        if self.depth >= MAX_DEPTH {
            return Err(corrupt("too many pipelines inside each other"));
        }
        let mut parts = Vec::with_capacity(pipeline.models.len());
        for (i, model) in pipeline.models.iter().enumerate() {
            let given = pipeline.names.get(i).filter(|given| !given.is_empty());
            let name = format!("{}: {}", self.name, given.cloned().unwrap_or_else(|| format!("model{i}")));
            parts.push(Source { name: &name, depth: self.depth + 1, ..*self }.load(model, None)?);
        }
        self.chain(description, parts)
    }

    /// A model of models: everything that one of them needs must have been made before.
    fn chain(&self, mut description: ModelDescription, parts: Vec<Model>) -> Result<Model, LoadError> {
        let corrupt = |at: String, reason: String| DecodeError::corrupt(at, reason).of(self.name);
        for input in &mut description.inputs {
            let FeatureKind::Dictionary { dictionary } = &mut input.kind else { continue };
            // The model that takes it knows the keys.
            let mut takers = parts.iter().flat_map(|part| &part.description().inputs);
            if let Some(FeatureKind::Dictionary { dictionary: inner }) =
                takers.find(|taken| taken.name == input.name).map(|taken| &taken.kind)
            {
                dictionary.clone_from(inner);
            }
        }
        let mut known: HashSet<&str> = description.inputs.iter().map(|f| f.name.as_str()).collect();
        let mut made = HashSet::new();
        for part in &parts {
            let inner = &part.inner;
            if !inner.states().is_empty() || !description.states.is_empty() {
                return Err(DecodeError::Unsupported("a pipeline with a state".into()).of(self.name));
            }
            if let Some(feature) =
                inner.description.inputs.iter().find(|f| !f.optional && !known.contains(&*f.name))
            {
                let reason = format!("no model before {} makes it", inner.path);
                return Err(corrupt(format!("input `{}`", feature.name), reason));
            }
            known.extend(inner.description.outputs.iter().map(|f| f.name.as_str()));
            made.extend(inner.description.outputs.iter().map(|f| f.name.as_str()));
        }
        if let Some(feature) = description.outputs.iter().find(|f| !made.contains(&*f.name)) {
            return Err(corrupt(format!("output `{}`", feature.name), "no model of it makes it".into()));
        }
        description.class_labels = parts
            .iter()
            .rev()
            .find(|part| {
                let label = &part.description().predicted_feature;
                part.description().class_labels.is_some()
                    && (*label == description.predicted_feature || description.predicted_feature.is_empty())
            })
            .and_then(|part| part.description().class_labels.clone());
        Ok(Model::new(self.name, description, Body::Pipeline(parts)))
    }

    /// A network: planned once if that can be done for all its shapes, else for each.
    fn network(
        &self,
        kind: &ModelType,
        specification_version: i32,
        mut description: ModelDescription,
    ) -> Result<Model, LoadError> {
        let network = Network {
            kind: Cow::Borrowed(kind),
            specification_version,
            custom: self.options.custom_layers.map_or_else(Cow::default, Cow::Borrowed),
            limits: self.options.limits.clone(),
        };
        match network.plan(self.name, description.clone()) {
            // The default shapes tell more of what is wrong than shapes that are left open.
            Err(_) if description.inputs.iter().any(|input| input.kind.is_flexible()) => {
                let (network, plan) = Shaped::new(network, self.name, &description)?;
                description.class_labels.clone_from(&plan.description().class_labels);
                Ok(Model::new(self.name, description, Body::Shaped(Box::new(network))))
            }
            result => result,
        }
    }
}

/// Fails if what the description makes of a classifier's answer does not go with its labels.
fn labelled(model: &str, description: &ModelDescription) -> Result<(), LoadError> {
    let Some(labels) = &description.class_labels else { return Ok(()) };
    let names = [&description.predicted_feature, &description.predicted_probabilities];
    let mut made = description.outputs.iter().filter(|feature| names.contains(&&feature.name));
    match made.find(|feature| !convert::is_labelled(&feature.kind, labels)) {
        None => Ok(()),
        Some(feature) => {
            let reason = format!("{} does not go with the classifier's labels", feature.kind.words());
            Err(DecodeError::corrupt(format!("output `{}`", feature.name), reason).of(model))
        }
    }
}

impl Program {
    fn new(plan: Plan, description: &ModelDescription) -> Result<Self, DecodeError> {
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
        Ok(Self { plan, inputs, outputs })
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
        let position = inner.states().iter().position(|port| port.name == name);
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
        let entry = convert::input(&given, &feature.kind, &inner.states()[position].ty, &pool)
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
    /// Of a pipeline: a session of each of its models.
    parts: Vec<Session>,
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
        let inner = Arc::clone(&self.model.inner);
        let states = states_of(&inner, state)?;
        known(&inner, "input", &inner.description.inputs, inputs.iter().map(|(name, _)| *name))?;
        known(&inner, "output", &inner.description.outputs, wanted.iter().copied())?;
        self.answer(&inner, inputs, states, wanted)
    }

    fn answer(
        &mut self,
        inner: &Inner,
        inputs: &[(&str, Input<'_>)],
        states: &mut [Value],
        wanted: &[&str],
    ) -> Result<Vec<(String, Output)>, PredictError> {
        match &inner.body {
            Body::Program(program) => self.run(inner, program, inputs, states, wanted),
            Body::Estimator(estimator) => {
                let given = checked(inner, inputs)?;
                let features = Features::new(&inner.description, &given);
                let result = estimator.predict(&features, &inner.description, wanted);
                result.map_err(|source| PredictError::Op {
                    model: inner.path.clone(),
                    op: estimator.kind().to_owned(),
                    output: inner.description.outputs.first().map(|f| f.name.clone()).unwrap_or_default(),
                    source,
                })
            }
            Body::Pipeline(_) => self.pass(inner, &checked(inner, inputs)?, wanted),
            Body::Shaped(network) => {
                let plan = planned(inner, network, inputs)?;
                self.answer(&plan.inner, inputs, states, wanted)
            }
        }
    }

    /// Runs the models of a pipeline one after the other. What one makes hides an earlier feature of the same name.
    fn pass(
        &mut self,
        inner: &Inner,
        inputs: &[(&str, Input<'_>)],
        wanted: &[&str],
    ) -> Result<Vec<(String, Output)>, PredictError> {
        let mut made: HashMap<String, Output> = HashMap::new();
        for part in &mut self.parts {
            let outputs = {
                let model = part.model.clone();
                let description = model.description();
                let mut fitted = Vec::with_capacity(description.inputs.len());
                for feature in &description.inputs {
                    let given =
                        inputs.iter().find(|(name, _)| *name == feature.name).map(|(_, given)| *given);
                    let Some(given) = made.get(&feature.name).map(Output::as_input).or(given) else {
                        // The model itself says whether it can do without.
                        continue;
                    };
                    let other = convert::fit(&given, &feature.kind)
                        .map_err(|found| wrong_input(&part.model.inner.path, feature, found))?;
                    fitted.push((feature.name.as_str(), given, other));
                }
                let given: Vec<_> = fitted
                    .iter()
                    .map(|(name, given, other)| (*name, other.as_ref().map_or(*given, Output::as_input)))
                    .collect();
                part.predict(&given, None, &[])?
            };
            made.extend(outputs);
        }
        let mut outputs = Vec::with_capacity(inner.description.outputs.len());
        for feature in &inner.description.outputs {
            if !wanted.is_empty() && !wanted.contains(&feature.name.as_str()) {
                continue;
            }
            let wrong = |reason: String| PredictError::State {
                model: inner.path.clone(),
                reason: format!("output `{}`: {reason}", feature.name),
            };
            let output = made.remove(&feature.name).ok_or_else(|| wrong("no model made it".into()))?;
            let fitted = convert::fit(&output.as_input(), &feature.kind).map_err(wrong)?;
            outputs.push((feature.name.clone(), fitted.unwrap_or(output)));
        }
        Ok(outputs)
    }

    fn run(
        &mut self,
        inner: &Inner,
        program: &Program,
        inputs: &[(&str, Input<'_>)],
        states: &mut [Value],
        wanted: &[&str],
    ) -> Result<Vec<(String, Output)>, PredictError> {
        let entries = program
            .plan
            .inputs
            .iter()
            .zip(&program.inputs)
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
            program.plan.run(views, states, pool, |value| collect(inner, program, wanted, value))
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

/// The plan of a network for the shapes of its inputs.
fn planned(inner: &Inner, network: &Shaped, inputs: &[(&str, Input<'_>)]) -> Result<Model, PredictError> {
    let flexible = inner.description.inputs.iter().map(|feature| {
        let given =
            inputs.iter().find(|(name, _)| *name == feature.name).filter(|_| feature.kind.is_flexible());
        let shape = given.and_then(|(_, given)| convert::described(given, &feature.kind));
        match (shape, given) {
            (Some(shape), _) if feature.kind.admits(&shape) => Ok(Some(shape)),
            (_, None) => Ok(None),
            (_, Some((_, given))) => Err(wrong_input(&inner.path, feature, given.words())),
        }
    });
    let shapes = flexible.collect::<Result<Vec<_>, _>>()?;
    network.plan(&inner.path, &inner.description, &shapes).map_err(|source| PredictError::Plan {
        model: inner.path.clone(),
        shapes: shapes.iter().flatten().cloned().collect(),
        source: source.into(),
    })
}

/// The inputs of an estimator or a pipeline, of the announced kinds; those with a default that are left out have it.
fn checked<'a>(
    inner: &Inner,
    inputs: &[(&'a str, Input<'a>)],
) -> Result<Vec<(&'a str, Input<'a>)>, PredictError> {
    for feature in &inner.description.inputs {
        match inputs.iter().find(|(name, _)| *name == feature.name) {
            Some((_, given)) => convert::check(given, &feature.kind)
                .map_err(|found| wrong_input(&inner.path, feature, found))?,
            None if feature.optional => {}
            None => {
                return Err(PredictError::MissingInput {
                    model: inner.path.clone(),
                    feature: feature.name.clone(),
                    expected: feature.kind.words(),
                });
            }
        }
    }
    Ok(inputs.to_vec())
}

fn states_of<'a>(inner: &Inner, state: Option<&'a mut State>) -> Result<&'a mut [Value], PredictError> {
    let error = |reason: &str| PredictError::State { model: inner.path.clone(), reason: reason.to_owned() };
    match state {
        Some(state) if state.model.inner.id != inner.id => Err(error("the state belongs to another model")),
        Some(state) => Ok(&mut state.values),
        None if inner.states().is_empty() => Ok(&mut []),
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
    program: &Program,
    wanted: &[&str],
    value: &'v dyn Fn(crate::ops::Source) -> Option<ValueView<'v>>,
) -> Result<Vec<(String, Output)>, PredictError> {
    let mut outputs = Vec::with_capacity(program.outputs.len());
    for (feature, &port) in inner.description.outputs.iter().zip(&program.outputs) {
        if !wanted.is_empty() && !wanted.contains(&feature.name.as_str()) {
            continue;
        }
        let output = value(program.plan.outputs[port].place)
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
