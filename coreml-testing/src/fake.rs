//! What a test sees of the fake: how to make one, how to make it misbehave, what it counted.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use coreml_bridge::{Bridge, Dtype, Features, ModelDescription, Tensor, Value};
use coreml_sys::CmlBridge;

use crate::{
    gate::Gate,
    log::Log,
    objects::{Objects, Rule},
    slots,
};

/// What a slot does when it is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// What it should.
    #[default]
    Normal,
    /// Fails, with an error four deep: [`REFUSAL`].
    Refuse,
    /// Fails, and leaves the error null.
    RefuseWithoutError,
    /// Panics inside; the panic is caught at the table, as the rules want it.
    Panic,
    /// Answers `CML_BUSY`, as if another call were running.
    Busy,
    /// Answers `CML_UNSUPPORTED`, as an old OS would.
    Unsupported,
    /// Says that it succeeded, and makes nothing: a defect of the bridge.
    SucceedWithNothing,
}

/// The messages of an error that a slot refuses with, outermost first.
pub const REFUSAL: [&str; 4] =
    ["the fake refuses", "its compiler refused", "its validator refused", "the test said so"];

/// What becomes of output backings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backings {
    /// Outputs are written into them.
    #[default]
    Use,
    /// They are ignored, and the fake says so.
    Ignore,
    /// They are ignored, and the fake says that they were used: a defect of the bridge.
    Lie,
}

/// How the fake behaves; may be changed at any time with [`FakeBridge::behave`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Behaviour {
    /// What `model_load`, `model_load_memory` and `model_load_async` do.
    pub load: Outcome,
    /// How long `model_load` takes.
    pub load_delay: Duration,
    /// What `model_describe` does.
    pub describe: Outcome,
    /// What `model_structure` and `compute_plan` do.
    pub structure: Outcome,
    /// What `model_predict` does.
    pub predict: Outcome,
    /// How long `model_predict` takes.
    pub predict_delay: Duration,
    /// What the slots that make values do.
    pub make_value: Outcome,
    /// What `tensor_read` does.
    pub read: Outcome,
    /// What `state_new` does.
    pub state: Outcome,
    /// Rows of outputs and states are padded to this many bytes, and rubbish is between them; 0 = dense.
    pub row_alignment: usize,
    /// How long inputs are kept after `model_predict` returned, to be released on another thread.
    pub keep_inputs: Duration,
    /// What becomes of output backings.
    pub backings: Backings,
    /// Behaves like an old OS: no states, no int8, no choice of function, no asynchronous predictions, no
    /// structures, no models in memory.
    pub old_system: bool,
}

/// What the fake counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Models that are loaded.
    pub live_models: usize,
    /// States that are alive.
    pub live_states: usize,
    /// Values that are alive.
    pub live_values: usize,
    /// Results that are alive.
    pub live_results: usize,
    /// Errors that are alive.
    pub live_errors: usize,
    /// Blobs that are alive.
    pub live_blobs: usize,
    /// Requests that are alive.
    pub live_requests: usize,
    /// Memory of tensors that was wrapped and not given back yet.
    pub live_wraps: usize,
    /// Models that were ever loaded.
    pub loads: usize,
    /// Predictions, failed ones included; each row of a batch is one.
    pub predictions: usize,
    /// Tensors that were ever wrapped.
    pub wraps: usize,
    /// Handles that were released twice, used after their release, or never handed out.
    pub dead_handles: usize,
    /// Handles that were given to a slot of another kind.
    pub wrong_handles: usize,
    /// Calls that met another call on the same handle (rule 1), and were answered `CML_BUSY`; but for those that met an
    /// asynchronous one, of which a caller may not know that it is still running.
    pub overlaps: usize,
    /// Calls on a model, or a state, from another thread than the one that made it. The table allows them; a confined
    /// handle does not make them.
    pub wrong_thread_calls: usize,
}

/// Computes the outputs from the inputs, and may change the states.
pub(crate) type Compute = dyn Fn(&Features, &mut Features) -> Result<Features, String> + Send + Sync;
/// Decides what the n-th call of `model_predict`, from 0, does.
pub(crate) type Plan = dyn Fn(u64) -> Outcome + Send + Sync;
/// Compiles the model at a path into a folder; gives the path.
pub(crate) type Compile = dyn Fn(&Path, &Path) -> Result<PathBuf, String> + Send + Sync;
/// Knows the description of the model at a path, if there is a model.
pub(crate) type Describe = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Everything behind one fake table; lives as long as the process, as tables do.
pub(crate) struct Fake {
    pub(crate) objects: Objects,
    /// Set once, when the fake is made.
    table: OnceLock<CmlBridge>,
    pub(crate) behaviour: Mutex<Behaviour>,
    pub(crate) plan: Mutex<Option<Arc<Plan>>>,
    pub(crate) describe: Box<Describe>,
    pub(crate) compile: Box<Compile>,
    pub(crate) compute: Box<Compute>,
    pub(crate) load_gate: Gate,
    pub(crate) predict_gate: Gate,
    pub(crate) predictions: AtomicU64,
    pub(crate) live_wraps: AtomicUsize,
    pub(crate) wraps: AtomicUsize,
    /// Where the tensors of the last prediction lay.
    pub(crate) addresses: Mutex<Vec<usize>>,
    /// Threads of asynchronous calls that have not come to their end.
    pub(crate) background: AtomicUsize,
    pub(crate) log: Log,
}

impl Fake {
    pub(crate) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fake bridge. Cheap to clone; clones are the same fake.
#[derive(Clone, Copy)]
pub struct FakeBridge {
    fake: &'static Fake,
    table: &'static CmlBridge,
}

/// How a fake is made; see [`FakeBridge::builder`].
pub struct Builder {
    describe: Box<Describe>,
    compile: Box<Compile>,
    compute: Box<Compute>,
    behaviour: Behaviour,
    table: Box<dyn FnOnce(&mut CmlBridge)>,
}

/// One tensor in, `x`; one tensor out, `y`; any shape, float32.
const DOUBLER: &str = r#"{
    "inputs": [{ "name": "x", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [] } }],
    "outputs": [{ "name": "y", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [] } }],
    "functions": ["main"], "function": "main"
}"#;

impl FakeBridge {
    /// A fake whose only model computes `y = 2 x` on float32 tensors of any shape.
    #[must_use]
    pub fn new() -> FakeBridge {
        Self::builder().build()
    }

    /// A fake to be told what its models are and how it behaves. Without a word it is [`FakeBridge::new`].
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            describe: Box::new(|_| Some(DOUBLER.to_owned())),
            compile: Box::new(|_, folder| Ok(folder.join("compiled.mlmodelc"))),
            compute: Box::new(|inputs, _| {
                let x = inputs.tensor("x").map_err(|error| error.to_string())?;
                let doubled = x.iter::<f32>().map_err(|error| error.to_string())?.map(|x| 2.0 * x);
                let y = Tensor::from_vec(x.shape(), doubled.collect()).map_err(|error| error.to_string())?;
                Ok(Features::new().with("y", y))
            }),
            behaviour: Behaviour::default(),
            table: Box::new(|_| ()),
        }
    }

    /// The fake, as `coreml-bridge` sees it.
    ///
    /// # Panics
    /// If the table was spoilt with [`Builder::table`].
    #[must_use]
    pub fn bridge(self) -> Bridge {
        // SAFETY: the table is never freed, and its slots keep the rules, but for what a test asks them to break within them.
        unsafe { Bridge::from_table(self.table) }.expect("a test that spoils the table uses `table()`")
    }

    /// The fake's table itself.
    #[must_use]
    pub fn table(self) -> &'static CmlBridge {
        self.table
    }

    /// Changes how the fake behaves, from the next call on.
    pub fn behave(self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.fake.behaviour());
    }

    /// Decides what each call of `model_predict` does, by its number from 0, in place of [`Behaviour::predict`].
    pub fn plan_predictions(self, plan: impl Fn(u64) -> Outcome + Send + Sync + 'static) {
        *self.fake.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(plan));
    }

    /// The gate in front of `model_load`.
    #[must_use]
    pub fn load_gate(self) -> &'static Gate {
        &self.fake.load_gate
    }

    /// The gate in front of `model_predict`.
    #[must_use]
    pub fn predict_gate(self) -> &'static Gate {
        &self.fake.predict_gate
    }

    /// What the fake counted so far.
    #[must_use]
    pub fn counts(self) -> Counts {
        let Fake { objects, predictions, live_wraps, wraps, .. } = self.fake;
        let live = objects.live();
        Counts {
            live_models: live.models,
            live_states: live.states,
            live_values: live.values,
            live_results: live.results,
            live_errors: live.errors,
            live_blobs: live.blobs,
            live_requests: live.requests,
            live_wraps: live_wraps.load(Ordering::Acquire),
            loads: objects.loads(),
            predictions: usize::try_from(predictions.load(Ordering::Acquire)).unwrap_or(usize::MAX),
            wraps: wraps.load(Ordering::Acquire),
            dead_handles: objects.broken(Rule::DeadHandle),
            wrong_handles: objects.broken(Rule::WrongHandle),
            overlaps: objects.broken(Rule::Overlap),
            wrong_thread_calls: objects.broken(Rule::WrongThread),
        }
    }

    /// Where the tensors lay that went into the last prediction, in the order of its inputs.
    #[must_use]
    pub fn input_addresses(self) -> Vec<usize> {
        self.fake.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all wrapped memory has been given back.
    ///
    /// # Panics
    /// If that has not happened after 30 seconds.
    pub fn await_no_wraps(self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.fake.live_wraps.load(Ordering::Acquire) != 0 {
            assert!(Instant::now() < deadline, "wrapped memory was never given back: {:#?}", self.counts());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Shows that nothing is alive any more and no rule was broken. Waits for inputs that are released late, and for
    /// asynchronous calls that nobody waits for.
    ///
    /// # Panics
    /// If something is still alive, or a rule was broken.
    #[track_caller]
    pub fn assert_clean(self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.fake.background.load(Ordering::Acquire) != 0 {
            assert!(Instant::now() < deadline, "an asynchronous call never ended: {:#?}", self.counts());
            thread::sleep(Duration::from_millis(1));
        }
        self.await_no_wraps();
        let counts = self.counts();
        let Counts { loads, predictions, wraps, .. } = counts;
        assert_eq!(
            counts,
            Counts { loads, predictions, wraps, ..Counts::default() },
            "the fake is not clean"
        );
    }
}

impl Default for FakeBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeBridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeBridge").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Builder {
    /// The description of every model, as the JSON of `docs/abi.md`.
    #[must_use]
    pub fn description(self, json: impl Into<String>) -> Builder {
        let json = json.into();
        self.describe(move |_| Some(json.clone()))
    }

    /// The description of the model at a path; none = there is no such model. The specification of a model in memory is, to
    /// the fake, the text of such a path.
    #[must_use]
    pub fn describe(mut self, describe: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Builder {
        self.describe = Box::new(describe);
        self
    }

    /// What `model_compile` does with the model at a path and a folder; gives the path of what it made, or the reason why it
    /// made nothing. Without a word it makes no file, and says that it made `compiled.mlmodelc`.
    #[must_use]
    pub fn compile(
        mut self,
        compile: impl Fn(&Path, &Path) -> Result<PathBuf, String> + Send + Sync + 'static,
    ) -> Builder {
        self.compile = Box::new(compile);
        self
    }

    /// How models compute. An error is what `model_predict` fails with.
    #[must_use]
    pub fn compute(
        self,
        compute: impl Fn(&Features) -> Result<Features, String> + Send + Sync + 'static,
    ) -> Builder {
        self.compute_with_states(move |inputs, _| compute(inputs))
    }

    /// How models with states compute: the second argument holds them, and may be changed.
    #[must_use]
    pub fn compute_with_states(
        mut self,
        compute: impl Fn(&Features, &mut Features) -> Result<Features, String> + Send + Sync + 'static,
    ) -> Builder {
        self.compute = Box::new(compute);
        self
    }

    /// How the fake behaves at first.
    #[must_use]
    pub fn behave(mut self, change: impl FnOnce(&mut Behaviour)) -> Builder {
        change(&mut self.behaviour);
        self
    }

    /// Changes the table itself, for example takes a slot out.
    #[must_use]
    pub fn table(mut self, change: impl FnOnce(&mut CmlBridge) + 'static) -> Builder {
        self.table = Box::new(change);
        self
    }

    /// Makes the fake. It lives as long as the process, for so do tables.
    #[must_use]
    pub fn build(self) -> FakeBridge {
        let Builder { describe, compile, compute, behaviour, table: change } = self;
        let fake: &'static Fake = Objects::install(|objects| Fake {
            objects,
            table: OnceLock::new(),
            behaviour: Mutex::new(behaviour),
            plan: Mutex::new(None),
            describe,
            compile,
            compute,
            load_gate: Gate::default(),
            predict_gate: Gate::default(),
            predictions: AtomicU64::new(0),
            live_wraps: AtomicUsize::new(0),
            wraps: AtomicUsize::new(0),
            addresses: Mutex::new(Vec::new()),
            background: AtomicUsize::new(0),
            log: Log::default(),
        });
        let mut table = slots::table(fake);
        change(&mut table);
        FakeBridge { fake, table: fake.table.get_or_init(|| table) }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("behaviour", &self.behaviour).finish_non_exhaustive()
    }
}

/// The states of a new model, all zero.
pub(crate) fn zero_states(description: &ModelDescription) -> Result<Features, String> {
    let zero = |feature: &coreml_bridge::Feature| {
        let (dtype, shape) = match feature.kind.tensor() {
            Some(spec) => (spec.dtype, spec.shape.clone()),
            None => (Dtype::Float16, vec![]),
        };
        let tensor = Tensor::zeros(dtype, &shape).map_err(|error| error.to_string())?;
        Ok((feature.name.clone(), Value::Tensor(tensor)))
    };
    description.states.iter().map(zero).collect()
}
