//! What every bridge must do, written once; `mount!` makes tests of it for one bridge.

use std::{
    error::Error as _,
    num::NonZeroU64,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use coreml_bridge::{
    Bridge, ComputeUnits, Config, CoreMlHandle, Dictionary, Dtype, Error, Feature, Features, Image, Kind,
    LogLevel, PredictOptions, ReshapeFrequency, Role, Sequence, Specialization, State, Status, Tensor, Value,
    f16, get_model_handle, register_model, register_model_as, unload_model,
};

/// A bridge, and a model of it with one tensor as input and at least one tensor among its outputs.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) bridge: Bridge,
    pub(crate) path: String,
    /// The model's specification, and the files that it names.
    pub(crate) specification: Vec<u8>,
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    pub(crate) input: &'static str,
    pub(crate) output: &'static str,
    /// What goes in; `f32`, of at least two dimensions that differ from one.
    pub(crate) given: Tensor,
    /// What comes out, and how far off it may be.
    pub(crate) expected: Tensor,
    pub(crate) tolerance: f32,
    /// A model with one state, `sum`: `y = sum = sum + x`, each three numbers in float16.
    pub(crate) counter: String,
    /// A model that gives back what it is given: one feature of each kind, those of [`one_of_each_kind`].
    pub(crate) every_kind: String,
    /// Shown when everything is released.
    pub(crate) assert_clean: fn(),
}

impl Subject {
    fn load(&self) -> CoreMlHandle {
        self.bridge.load(&self.path, &Config::default()).expect("the model loads")
    }

    fn files(&self) -> Vec<(&str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect()
    }

    fn inputs(&self) -> Features {
        Features::new().with(self.input, self.given.clone())
    }

    #[track_caller]
    fn assert_expected(&self, outputs: &Features) {
        let found = outputs.tensor(self.output).expect("the output is a tensor");
        assert_eq!((found.dtype(), found.shape()), (self.expected.dtype(), self.expected.shape()));
        let (found, expected) = (found.cast(Dtype::Float32), self.expected.cast(Dtype::Float32));
        let pairs = found.iter::<f32>().unwrap().zip(expected.iter::<f32>().unwrap());
        for (found, expected) in pairs {
            assert!((found - expected).abs() <= self.tolerance, "{found} is not {expected}");
        }
    }
}

/// Waits until nobody but the test holds the tensor's memory.
#[track_caller]
pub(crate) fn await_unshared(tensor: &Tensor) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while tensor.shared_by() > 1 {
        assert!(Instant::now() < deadline, "the memory is still shared by {}", tensor.shared_by());
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn the_bridge_says_what_it_is(subject: &Subject) {
    let info = subject.bridge.info().unwrap();
    assert!(!info.name.is_empty());
    assert!(info.dtypes.contains(&Dtype::Float32));
    assert!(info.devices.iter().any(|device| device.kind == "cpu"));
}

pub(crate) fn a_missing_model_is_an_error_that_names_it(subject: &Subject) {
    let error = subject.bridge.load("no/such/model.mlpackage", &Config::default()).unwrap_err();
    let Error::Load { path, source } = &error else { panic!("{error:?}") };
    assert_eq!(&**path, "no/such/model.mlpackage");
    assert_eq!(source.status, Status::NotFound);
    assert!(error.source().is_some() && error.to_string().contains("no/such/model.mlpackage"));
}

pub(crate) fn a_model_describes_itself_and_predicts(subject: &Subject) {
    let model = subject.load();
    let spec = model.description().input(subject.input).and_then(|input| input.kind.tensor());
    spec.expect("a tensor").accepts(Dtype::Float32, subject.given.shape()).unwrap();
    assert!(model.description().output(subject.output).is_some());
    subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
    subject.assert_expected(&model.clone().predict(&subject.inputs()).unwrap());
}

pub(crate) fn outputs_outlive_the_model_and_its_thread(subject: &Subject) {
    let on_thread = subject.clone();
    let outputs =
        thread::spawn(move || on_thread.load().predict(&on_thread.inputs()).unwrap()).join().unwrap();
    subject.assert_expected(&outputs);
}

pub(crate) fn an_input_is_not_copied_and_given_back(subject: &Subject) {
    let model = subject.load();
    let given = Tensor::from_vec(subject.given.shape(), subject.given.to_vec::<f32>().unwrap()).unwrap();
    let inputs = Features::new().with(subject.input, given.clone());
    assert_eq!(given.shared_by(), 2);
    model.predict(&inputs).unwrap();
    drop(inputs);
    await_unshared(&given);
    assert_eq!(given, subject.given, "and nobody wrote it");
}

pub(crate) fn a_strided_input_counts_by_its_strides(subject: &Subject) {
    let (shape, rank) = (subject.given.shape(), subject.given.rank());
    // The same numbers with the dimensions stored the other way round, and seen the right way round again.
    let reversed: Vec<usize> = (0..rank).rev().collect();
    let turned = subject.given.permute(&reversed).unwrap().to_dense().permute(&reversed).unwrap();
    assert!(!turned.is_contiguous());
    assert_eq!(turned, subject.given);
    // And with gaps between the rows.
    let (row, size) = (*shape.last().unwrap(), 4);
    let mut padded_shape = shape.to_vec();
    *padded_shape.last_mut().unwrap() = row + 3;
    let mut elements = Vec::new();
    for line in subject.given.to_vec::<f32>().unwrap().chunks(row) {
        elements.extend_from_slice(line);
        elements.extend([f32::NAN; 3]);
    }
    let padded = Tensor::from_vec(&padded_shape, elements).unwrap().narrow(rank - 1, 0..row).unwrap();
    assert_eq!(padded.byte_len(), subject.given.len() * size);

    let model = subject.load();
    for tensor in [turned, padded] {
        let inputs = Features::new().with(subject.input, tensor);
        subject.assert_expected(&model.predict(&inputs).unwrap());
    }
}

pub(crate) fn a_missing_input_is_named_with_what_it_takes(subject: &Subject) {
    let model = subject.load();
    let error = model.predict(&Features::new()).unwrap_err();
    let Error::MissingInput { model: path, feature, expected } = &error else { panic!("{error:?}") };
    assert_eq!((&**path, &**feature), (&*subject.path, subject.input));
    assert!(expected.contains("tensor of float32"), "{expected}");
}

pub(crate) fn an_unknown_input_is_refused_with_the_known_ones(subject: &Subject) {
    let model = subject.load();
    let error = model.predict(&subject.inputs().with("not an input", 1.0)).unwrap_err();
    let Error::UnknownFeature { role: Role::Input, feature, known, .. } = &error else { panic!("{error:?}") };
    assert_eq!((&**feature, &known[..]), ("not an input", &[subject.input.to_owned()][..]));
}

pub(crate) fn a_wrong_kind_or_dtype_is_refused_before_it_crosses(subject: &Subject) {
    let model = subject.load();
    let error = model.predict(&Features::new().with(subject.input, "text")).unwrap_err();
    assert!(
        matches!(&error, Error::WrongKind { expected: Kind::Tensor, found: Kind::String, feature, .. }
            if &**feature == subject.input),
        "{error:?}"
    );
    let ints = subject.given.cast(Dtype::Int32);
    let error = model.predict(&Features::new().with(subject.input, ints)).unwrap_err();
    assert!(
        matches!(&error, Error::WrongDtype { expected: Dtype::Float32, found: Dtype::Int32, .. }),
        "{error:?}"
    );
    // The model is none the worse for it.
    subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
}

pub(crate) fn only_the_wanted_outputs_come_and_only_known_ones(subject: &Subject) {
    let model = subject.load();
    let wanted = [subject.output];
    let options = PredictOptions { wanted: Some(&wanted), ..PredictOptions::default() };
    let outputs = model.predict_with(&subject.inputs(), options).unwrap().outputs;
    assert_eq!(outputs.names().collect::<Vec<_>>(), [subject.output]);
    subject.assert_expected(&outputs);

    let options = PredictOptions { wanted: Some(&["not an output"]), ..PredictOptions::default() };
    let error = model.predict_with(&subject.inputs(), options).unwrap_err();
    assert!(matches!(&error, Error::UnknownFeature { role: Role::Output, .. }), "{error:?}");
}

/// The subject's input with every number negated: it must not be answered with another row's outputs.
fn negated(subject: &Subject) -> Tensor {
    let numbers: Vec<f32> = subject.given.iter::<f32>().unwrap().map(|x| -x - 1.0).collect();
    Tensor::from_vec(subject.given.shape(), numbers).unwrap()
}

pub(crate) fn a_batch_gives_each_row_what_it_gives_alone(subject: &Subject) {
    let model = subject.load();
    let other = Features::new().with(subject.input, negated(subject));
    let alone = model.predict(&other).unwrap();
    assert_ne!(alone.tensor(subject.output).unwrap(), &subject.expected, "the rows can be told apart");
    let rows = [subject.inputs(), other, subject.inputs()];
    for wanted in [None, Some(&[subject.output][..])] {
        let predictions = model.predict_batch(&rows, wanted).unwrap();
        assert_eq!(predictions.len(), 3);
        subject.assert_expected(&predictions[0].outputs);
        subject.assert_expected(&predictions[2].outputs);
        assert_eq!(
            predictions[1].outputs.tensor(subject.output).unwrap(),
            alone.tensor(subject.output).unwrap()
        );
        assert!(wanted.is_none() || predictions.iter().all(|row| row.outputs.len() == 1));
    }
    await_unshared_but_for(&subject.given, 3);
}

/// Waits until the other side has let go of the tensor; `mine` are the holders that the test knows of.
#[track_caller]
fn await_unshared_but_for(tensor: &Tensor, mine: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while tensor.shared_by() > mine {
        assert!(Instant::now() < deadline, "the memory is still shared by {}", tensor.shared_by());
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn a_batch_with_a_wrong_row_gives_nothing(subject: &Subject) {
    let model = subject.load();
    assert!(model.predict_batch(&[], None).unwrap().is_empty());
    let wrong = Features::new().with(subject.input, Value::from(1_i64));
    let error = model.predict_batch(&[subject.inputs(), wrong], None).unwrap_err();
    assert!(matches!(&error, Error::WrongKind { .. }), "{error:?}");
    let error = model.predict_batch(&[subject.inputs(), Features::new()], None).unwrap_err();
    assert!(matches!(&error, Error::MissingInput { .. }), "{error:?}");
    let error = model.predict_batch(&[subject.inputs()], Some(&["no such output"])).unwrap_err();
    assert!(matches!(&error, Error::UnknownFeature { role: Role::Output, .. }), "{error:?}");
    // And the model serves on.
    subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
}

pub(crate) fn the_functions_of_a_model_are_those_of_its_description(subject: &Subject) {
    let functions = subject.bridge.functions(&subject.path).unwrap();
    assert!(!functions.is_empty());
    assert_eq!(functions, subject.load().description().functions);
    let error = subject.bridge.functions("no/such/model.mlpackage").unwrap_err();
    assert!(matches!(&error, Error::Load { source, .. } if source.status == Status::NotFound), "{error:?}");
}

pub(crate) fn the_structure_of_a_model_names_what_it_computes(subject: &Subject) {
    let structure = subject.bridge.structure(&subject.path).unwrap();
    let functions = subject.bridge.functions(&subject.path).unwrap();
    assert_eq!(structure.functions.keys().collect::<Vec<_>>(), functions.iter().collect::<Vec<_>>());
    let main = &structure.functions[&functions[0]];
    assert!(main.inputs.iter().any(|input| input.name == subject.input));
    assert!(main.outputs.iter().any(|output| output == subject.output));
    let made = main.ops.iter().flat_map(|op| &op.outputs);
    assert_eq!(made.filter(|value| value.name == subject.output).count(), 1);
    assert!(main.ops.iter().any(|op| op.inputs.values().flatten().any(|name| name == subject.input)));
    assert!(main.ops.iter().all(|op| op.devices.is_none() && op.weight.is_none()), "it is no plan");
    let error = subject.bridge.structure("no/such/model.mlpackage").unwrap_err();
    assert!(matches!(&error, Error::Load { source, .. } if source.status == Status::NotFound), "{error:?}");
}

pub(crate) fn a_compute_plan_is_the_structure_with_places(subject: &Subject) {
    let mut plan = subject.bridge.compute_plan(&subject.path, &Config::default()).unwrap();
    let mut weight = 0.0;
    for op in plan.functions.values_mut().flat_map(|function| &mut function.ops) {
        let devices = op.devices.take().unwrap();
        assert!(devices.supported.contains(devices.preferred.as_ref().unwrap()), "{devices:?}");
        weight += op.weight.take().unwrap_or(0.0);
    }
    assert!((weight - 1.0).abs() < 1e-6, "{weight}");
    let mut structure = subject.bridge.structure(&subject.path).unwrap();
    assert_eq!(plan, structure);
    let config = Config { function: Some("main".to_owned()), ..Config::default() };
    structure = subject.bridge.compute_plan(&subject.path, &config).unwrap();
    assert!(structure.functions["main"].ops.iter().all(|op| op.devices.is_some()));
    let config = Config { function: Some("no such function".to_owned()), ..Config::default() };
    let error = subject.bridge.compute_plan(&subject.path, &config).unwrap_err();
    assert!(matches!(&error, Error::Load { source, .. } if source.status == Status::NotFound), "{error:?}");
}

pub(crate) fn hints_change_no_answer(subject: &Subject) {
    let config = Config {
        reshape_frequency: ReshapeFrequency::Infrequent,
        specialization: Specialization::FastPrediction,
        ..Config::default()
    };
    let model = subject.bridge.load(&subject.path, &config).unwrap();
    subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
    subject.bridge.compute_plan(&subject.path, &config).unwrap();
}

pub(crate) fn a_preferred_device_is_used_or_refused(subject: &Subject) {
    let devices = subject.bridge.info().unwrap().devices;
    let load = |id, compute_units| {
        let config = Config { preferred_device: Some(id), compute_units, ..Config::default() };
        subject.bridge.load(&subject.path, &config)
    };
    for id in devices.iter().filter_map(|device| device.registry_id) {
        for units in [ComputeUnits::All, ComputeUnits::CpuAndGpu] {
            subject.assert_expected(&load(id, units).unwrap().predict(&subject.inputs()).unwrap());
        }
        let error = load(id, ComputeUnits::CpuAndNeuralEngine).unwrap_err();
        assert!(
            matches!(&error, Error::Load { source, .. } if source.status == Status::InvalidArgument),
            "{error:?}"
        );
    }
    let nobody = NonZeroU64::new(u64::MAX - 6).unwrap();
    let error = load(nobody, ComputeUnits::All).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { .. }), "{error:?}");
    let config = Config { preferred_device: Some(nobody), ..Config::default() };
    let refused = [
        subject.bridge.compute_plan(&subject.path, &config).map(|_| ()).unwrap_err(),
        subject
            .bridge
            .load_memory(&subject.specification, &subject.files(), &config)
            .map(|_| ())
            .unwrap_err(),
        subject
            .bridge
            .load_async(&subject.path, &config)
            .and_then(|load| load.wait())
            .map(|_| ())
            .unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(&error, Error::Unsupported { .. }), "{error:?}");
    }
}

pub(crate) fn an_output_into_given_memory_is_the_same_output(subject: &Subject) {
    let model = subject.load();
    let backing = Tensor::zeros(subject.expected.dtype(), subject.expected.shape()).unwrap();
    let address = backing.as_bytes().unwrap().as_ptr();
    let backings = vec![(subject.output.to_owned(), backing)];
    let prediction = model
        .predict_with(&subject.inputs(), PredictOptions { backings, ..PredictOptions::default() })
        .unwrap();
    subject.assert_expected(&prediction.outputs);
    let output = prediction.outputs.tensor(subject.output).unwrap();
    if prediction.backings_used.iter().any(|name| name == subject.output) {
        assert_eq!(output.as_bytes().unwrap().as_ptr(), address);
    }

    let wrong = vec![(subject.output.to_owned(), Tensor::scalar(1_i8))];
    let error = model
        .predict_with(&subject.inputs(), PredictOptions { backings: wrong, ..PredictOptions::default() })
        .unwrap_err();
    assert!(matches!(&error, Error::WrongDtype { .. }), "{error:?}");
}

pub(crate) fn shared_memory_given_for_an_output_is_never_written(subject: &Subject) {
    let model = subject.load();
    let backing = Tensor::zeros(subject.expected.dtype(), subject.expected.shape()).unwrap();
    let kept = backing.clone();
    let before = kept.clone();
    let backings = vec![(subject.output.to_owned(), backing)];
    let prediction = model
        .predict_with(&subject.inputs(), PredictOptions { backings, ..PredictOptions::default() })
        .unwrap();
    subject.assert_expected(&prediction.outputs);
    assert_eq!(kept, before);
    assert!(kept.as_bytes().unwrap().iter().all(|&byte| byte == 0));
}

pub(crate) fn a_registered_model_is_found_on_its_thread_only(subject: &Subject) {
    let model_ref = register_model(subject.load());
    let handle = get_model_handle(model_ref).expect("registered on this thread");
    subject.assert_expected(&handle.predict(&subject.inputs()).unwrap());
    drop(handle);

    let on_thread = subject.clone();
    thread::spawn(move || {
        assert!(get_model_handle(model_ref).is_none(), "another thread's registry is another registry");
        // Its own instance, under the same name.
        assert!(register_model_as(model_ref, on_thread.load()).is_none());
        let handle = get_model_handle(model_ref).expect("registered here, too");
        on_thread.assert_expected(&handle.predict(&on_thread.inputs()).unwrap());
        // Left to the thread's end to release.
    })
    .join()
    .unwrap();

    assert!(get_model_handle(model_ref).is_some());
    assert!(unload_model(model_ref).is_some());
    assert!(unload_model(model_ref).is_none() && get_model_handle(model_ref).is_none());
}

pub(crate) fn a_handle_outlives_its_place_in_the_registry(subject: &Subject) {
    let model_ref = register_model(subject.load());
    let handle = get_model_handle(model_ref).unwrap();
    drop(unload_model(model_ref));
    subject.assert_expected(&handle.predict(&subject.inputs()).unwrap());
}

pub(crate) fn threads_with_instances_of_their_own_agree(subject: &Subject) {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let subject = subject.clone();
            thread::spawn(move || {
                let model = subject.load();
                for _ in 0..8 {
                    subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

pub(crate) fn the_state_of_a_model_without_states_is_empty(subject: &Subject) {
    let model = subject.load();
    assert!(model.description().states.is_empty());
    let mut state = model.new_state().unwrap();
    assert!(matches!(state.read("anything"), Err(Error::UnknownFeature { role: Role::State, .. })));
    let options = PredictOptions { state: Some(&mut state), ..PredictOptions::default() };
    subject.assert_expected(&model.predict_with(&subject.inputs(), options).unwrap().outputs);
    state.fork().unwrap();
}

pub(crate) fn a_state_carries_what_a_prediction_leaves(subject: &Subject) {
    let model = subject.bridge.load(&subject.counter, &Config::default()).unwrap();
    let sum = &model.description().states[0];
    assert_eq!((&*sum.name, sum.kind.tensor().unwrap().dtype), ("sum", Dtype::Float16));
    let halves = |numbers: [f32; 3]| Tensor::from_vec(&[3], numbers.map(f16::from_f32).to_vec()).unwrap();
    let inputs = Features::new().with("x", halves([1.0, -2.0, 0.5]));
    let step = |state: &mut State, waits: bool| {
        let options = PredictOptions { state: Some(state), ..PredictOptions::default() };
        let prediction = if waits {
            model.predict_with(&inputs, options)
        } else {
            model.predict_async(&inputs, options).and_then(block_on)
        };
        prediction.unwrap().outputs.tensor("y").unwrap().clone()
    };
    // It outlives the handle that it came from.
    let (mut one, mut other) = (model.clone().new_state().unwrap(), model.new_state().unwrap());
    assert_eq!(step(&mut one, true), halves([1.0, -2.0, 0.5]), "a state begins with zeros");
    assert_eq!(step(&mut one, false), halves([2.0, -4.0, 1.0]), "and goes on, whichever way it is asked");
    assert_eq!(step(&mut other, true), halves([1.0, -2.0, 0.5]), "whatever became of another");
    assert_eq!(one.read("sum").unwrap(), halves([2.0, -4.0, 1.0]));

    let mut fork = one.fork().unwrap();
    assert_eq!(step(&mut fork, true), halves([3.0, -6.0, 1.5]));
    assert_eq!(one.read("sum").unwrap(), halves([2.0, -4.0, 1.0]));
    one.write("sum", &halves([8.0, 16.0, 32.0])).unwrap();
    assert_eq!(step(&mut one, true), halves([9.0, 14.0, 32.5]));
    let error = one.write("sum", &Tensor::zeros(Dtype::Float16, &[4]).unwrap()).unwrap_err();
    assert!(matches!(&error, Error::WrongShape { .. }), "{error:?}");
}

/// A value of each kind, of an array's every element type, and of the lengths that are easily lost.
fn one_of_each_kind() -> Features {
    let numbers = [0.0, -1.5, 2.25, 1e3, -0.125, 6.0_f32];
    let tensor = |dtype| Tensor::from_slice(&[2, 3], &numbers).unwrap().cast(dtype);
    let colours: Vec<u8> = (0..24).map(|at| 10 * at + 1).collect();
    Features::new()
        .with("tensor_float16", tensor(Dtype::Float16))
        .with("tensor_float32", tensor(Dtype::Float32))
        .with("tensor_double", tensor(Dtype::Float64))
        .with("tensor_int32", tensor(Dtype::Int32))
        .with("image", Image::from_rgb(4, 2, &colours).unwrap())
        .with("gray", Image::from_gray(4, 2, colours[..8].to_vec()).unwrap())
        .with("int64", (1_i64 << 53) + 1)
        .with("double", -0.1_f64)
        .with("string", "na\u{ef}ve \u{1f600}")
        .with("by_name", Dictionary::from_iter([("b".to_owned(), 0.25), (String::new(), -1.0)]))
        .with("by_number", Dictionary::from_iter([(-7_i64, 0.5), (1 << 40, 1e-300)]))
        .with("names", Sequence::from_iter(["z".to_owned(), String::new(), "a".to_owned()]))
        .with("numbers", Sequence::from_iter([3, i64::MIN, i64::MAX]))
}

pub(crate) fn every_kind_of_value_crosses_both_ways(subject: &Subject) {
    let model = subject.bridge.load(&subject.every_kind, &Config::default()).unwrap();
    let inputs = one_of_each_kind();
    let kinds = |features: &[Feature]| features.iter().map(|feature| feature.kind.kind()).collect::<Vec<_>>();
    let described = model.description();
    assert_eq!(kinds(&described.inputs), kinds(&described.outputs));
    assert_eq!(described.inputs.len(), inputs.len());
    let mut ways = vec![model.predict(&inputs).unwrap()];
    ways.push(block_on(model.predict_async(&inputs, PredictOptions::default()).unwrap()).unwrap().outputs);
    let rows = model.predict_batch(&[inputs.clone(), inputs.clone()], None).unwrap();
    ways.extend(rows.into_iter().map(|row| row.outputs));
    for outputs in ways {
        assert_eq!(outputs.len(), inputs.len());
        for (name, given) in inputs.iter() {
            assert_eq!(outputs.get(name), Some(given), "{name}");
        }
    }
    for (name, _) in inputs.iter() {
        let mut less = inputs.clone();
        less.remove(name);
        let error = model.predict(&less).unwrap_err();
        assert!(matches!(&error, Error::MissingInput { feature, .. } if &**feature == name), "{error:?}");
    }
}

pub(crate) fn an_unknown_function_is_refused(subject: &Subject) {
    let config = Config { function: Some("no such function".to_owned()), ..Config::default() };
    let error = subject.bridge.load(&subject.path, &config).map(|_| ()).unwrap_err();
    assert!(error.native().is_some(), "{error:?}");
}

pub(crate) fn a_value_has_one_type_whatever_made_it(subject: &Subject) {
    let outputs = subject.load().predict(&subject.inputs()).unwrap();
    for (_, value) in outputs.iter() {
        if let Value::Tensor(tensor) = value {
            assert!(tensor.is_contiguous(), "outputs are dense");
        }
    }
}

/// What a future gives, polled on this thread whenever it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
        assert!(Instant::now() < deadline, "the future was never woken");
    }
}

pub(crate) fn a_prediction_without_waiting_gives_the_same(subject: &Subject) {
    let model = subject.load();
    let given = Tensor::from_vec(subject.given.shape(), subject.given.to_vec::<f32>().unwrap()).unwrap();
    let inputs = Features::new().with(subject.input, given.clone());
    for wanted in [None, Some(&[subject.output][..])] {
        let options = || PredictOptions { wanted, ..PredictOptions::default() };
        let pending = model.predict_async(&inputs, options()).unwrap();
        subject.assert_expected(&pending.wait().unwrap().outputs);
        let prediction = block_on(model.predict_async(&inputs, options()).unwrap()).unwrap();
        subject.assert_expected(&prediction.outputs);
        assert!(wanted.is_none() || prediction.outputs.len() == 1);
    }
    // With a state; afterwards it is free again.
    let mut state = model.new_state().unwrap();
    for _ in 0..2 {
        let options = PredictOptions { state: Some(&mut state), ..PredictOptions::default() };
        subject.assert_expected(&block_on(model.predict_async(&inputs, options).unwrap()).unwrap().outputs);
    }
    drop(inputs);
    await_unshared(&given);
}

pub(crate) fn a_prediction_without_waiting_keeps_what_it_uses(subject: &Subject) {
    let pending = {
        let model = subject.load();
        let given = Tensor::from_vec(subject.given.shape(), subject.given.to_vec::<f32>().unwrap()).unwrap();
        let inputs = Features::new().with(subject.input, given);
        model.predict_async(&inputs, PredictOptions::default()).unwrap()
    };
    subject.assert_expected(&pending.wait().unwrap().outputs);
}

pub(crate) fn a_prediction_that_nobody_waits_for_is_let_go(subject: &Subject) {
    let model = subject.load();
    for _ in 0..8 {
        drop(model.predict_async(&subject.inputs(), PredictOptions::default()).unwrap());
        // Taken until the framework has let go of it.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match model.predict(&subject.inputs()) {
                Ok(outputs) => break subject.assert_expected(&outputs),
                Err(Error::Busy { .. }) => thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("{error:?}"),
            }
            assert!(Instant::now() < deadline, "the model is still taken");
        }
    }
}

pub(crate) fn a_cancelled_prediction_ends_once(subject: &Subject) {
    let model = subject.load();
    for _ in 0..8 {
        let pending = model.predict_async(&subject.inputs(), PredictOptions::default()).unwrap();
        pending.cancel();
        pending.cancel();
        match pending.wait() {
            // It was there already.
            Ok(prediction) => subject.assert_expected(&prediction.outputs),
            Err(error) => {
                assert!(
                    matches!(&error, Error::Predict { source, .. } if source.status == Status::Cancelled)
                );
            }
        }
        subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
    }
}

pub(crate) fn a_prediction_that_cannot_begin_is_an_error_at_once(subject: &Subject) {
    let model = subject.load();
    let error = model.predict_async(&Features::new(), PredictOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::MissingInput { .. }), "{error:?}");
    let backings = vec![(subject.output.to_owned(), Tensor::scalar(1_i8))];
    let options = PredictOptions { backings, ..PredictOptions::default() };
    let error = model.predict_async(&subject.inputs(), options).unwrap_err();
    assert!(matches!(&error, Error::WrongDtype { .. }), "{error:?}");
    subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
}

pub(crate) fn a_prediction_without_waiting_writes_into_given_memory(subject: &Subject) {
    let model = subject.load();
    let memory = || Tensor::zeros(subject.expected.dtype(), subject.expected.shape()).unwrap();
    let options = |backing: Tensor| PredictOptions {
        backings: vec![(subject.output.to_owned(), backing)],
        ..PredictOptions::default()
    };
    let backing = memory();
    let address = backing.as_bytes().unwrap().as_ptr();
    let prediction = model.predict_async(&subject.inputs(), options(backing)).unwrap().wait().unwrap();
    subject.assert_expected(&prediction.outputs);
    if !prediction.backings_used.is_empty() {
        assert_eq!(prediction.outputs.tensor(subject.output).unwrap().as_bytes().unwrap().as_ptr(), address);
    }
    // Memory that somebody else has is not written, and nobody waits for the last.
    let kept = memory();
    let pending = model.predict_async(&subject.inputs(), options(kept.clone())).unwrap();
    subject.assert_expected(&block_on(pending).unwrap().outputs);
    assert!(kept.as_bytes().unwrap().iter().all(|&byte| byte == 0));
    drop(model.predict_async(&subject.inputs(), options(memory())).unwrap());
}

pub(crate) fn a_model_loaded_without_waiting_is_the_same_model(subject: &Subject) {
    let model = subject.bridge.load_async(&subject.path, &Config::default()).unwrap().wait().unwrap();
    subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
    let again = block_on(subject.bridge.load_async(&subject.path, &Config::default()).unwrap()).unwrap();
    assert_eq!(again.description(), subject.load().description());
    let missing = subject.bridge.load_async("no/such/model.mlpackage", &Config::default()).unwrap();
    let error = block_on(missing).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Load { source, .. } if source.status == Status::NotFound), "{error:?}");
}

pub(crate) fn a_model_in_memory_is_the_same_model(subject: &Subject) {
    let (bridge, files) = (subject.bridge, subject.files());
    let model = bridge.load_memory(&subject.specification, &files, &Config::default()).unwrap();
    assert_eq!(model.description(), subject.load().description());
    assert_eq!(&**model.path(), "<memory>");
    // The caller's memory may go, and the bridge keeps none of it.
    let again = {
        let (specification, files) = (subject.specification.clone(), subject.files.clone());
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &**bytes)).collect();
        let config = Config { display_name: Some("mine".to_owned()), ..Config::default() };
        bridge.load_memory(&specification, &files, &config).unwrap()
    };
    assert_eq!(&**again.path(), "mine");
    for model in [model, again] {
        subject.assert_expected(&model.predict(&subject.inputs()).unwrap());
    }
}

pub(crate) fn a_model_in_memory_lacks_nothing_or_is_refused(subject: &Subject) {
    let refused = |specification: &[u8], files: &[(&str, &[u8])], config: &Config| {
        let error = subject.bridge.load_memory(specification, files, config).unwrap_err();
        let Error::Load { path, source } = &error else { panic!("{error:?}") };
        assert_eq!(&**path, "<memory>");
        source.status
    };
    let (whole, default) = (&*subject.specification, Config::default());
    assert_eq!(refused(&[], &subject.files(), &default), Status::InvalidArgument);
    let status = refused(b"\xff\xff\xff\xff", &subject.files(), &default);
    assert!(matches!(status, Status::Corrupt | Status::Framework), "{status:?}");
    for wrong in ["weights.bin", "@model_path/", ""] {
        assert_eq!(refused(whole, &[(wrong, b"bytes")], &default), Status::InvalidArgument, "{wrong:?}");
    }
    let twice: [(&str, &[u8]); 2] = [("@model_path/a", b"1"), ("@model_path/a", b"2")];
    assert_eq!(refused(whole, &twice, &default), Status::InvalidArgument);
    let function = Config { function: Some("no_such_function".to_owned()), ..Config::default() };
    assert_eq!(refused(whole, &subject.files(), &function), Status::NotFound);
    // Bridges that read the files miss them.
    if !subject.files.is_empty() {
        let status = refused(whole, &[], &default);
        assert!(matches!(status, Status::Corrupt | Status::Framework), "{status:?}");
    }
}

pub(crate) fn the_log_tells_of_loads_and_of_backings_that_are_not_used(subject: &Subject) {
    let bridge = subject.bridge;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mine = Arc::clone(&heard);
    bridge
        .set_log(move |level, message| {
            // It may use the bridge, but not wait for itself.
            assert!(bridge.info().is_ok());
            let error = bridge.unset_log().unwrap_err();
            assert!(matches!(&error, Error::Log { source } if source.status == Status::Busy), "{error:?}");
            mine.lock().unwrap().push((level, message.to_owned()));
        })
        .unwrap();
    let model = subject.load();
    let loaded = std::mem::take(&mut *heard.lock().unwrap());
    let [(LogLevel::Info, message)] = &loaded[..] else { panic!("{loaded:?}") };
    assert!(message.contains("loaded") && message.contains(&subject.path), "{message}");
    let memory = Tensor::zeros(subject.expected.dtype(), subject.expected.shape()).unwrap();
    let backings = vec![(subject.output.to_owned(), memory)];
    let options = PredictOptions { backings, ..PredictOptions::default() };
    let prediction = model.predict_with(&subject.inputs(), options).unwrap();
    let told = std::mem::take(&mut *heard.lock().unwrap());
    assert_eq!(told.is_empty(), !prediction.backings_used.is_empty(), "{told:?}");
    for (level, message) in told {
        assert!(level == LogLevel::Warning && message.contains(subject.output), "{message}");
    }
    // A panic in it ends there.
    bridge.set_log(|_, _| panic!("the log panics")).unwrap();
    subject.assert_expected(&subject.load().predict(&subject.inputs()).unwrap());
    bridge.unset_log().unwrap();
    assert_eq!(Arc::strong_count(&heard), 1, "what was replaced was dropped");
    subject.load();
    assert!(heard.lock().unwrap().is_empty());
}

pub(crate) fn a_log_that_was_unset_is_never_told_again(subject: &Subject) {
    let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let loaders: Vec<_> = (0..3)
        .map(|_| {
            let (subject, stop) = (subject.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    subject.load();
                }
            })
        })
        .collect();
    let mut logs = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while logs.len() < 10 || (told.load(Ordering::Acquire) == 0 && Instant::now() < deadline) {
        let (closed, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (sees, counts, counted) = (Arc::clone(&closed), Arc::clone(&late), Arc::clone(&told));
        let log = move |_: LogLevel, _: &str| {
            thread::sleep(Duration::from_millis(2));
            counted.fetch_add(1, Ordering::AcqRel);
            counts.fetch_add(usize::from(sees.load(Ordering::Acquire)), Ordering::AcqRel);
        };
        subject.bridge.set_log(log).unwrap();
        thread::sleep(Duration::from_millis(5));
        subject.bridge.unset_log().unwrap();
        closed.store(true, Ordering::Release);
        assert_eq!(Arc::strong_count(&closed), 1, "the function was dropped");
        logs.push(late);
    }
    stop.store(true, Ordering::Release);
    loaders.into_iter().for_each(|loader| loader.join().unwrap());
    assert!(told.load(Ordering::Acquire) > 0);
    assert!(logs.iter().all(|late| late.load(Ordering::Acquire) == 0));
}

pub(crate) fn a_cancelled_load_ends_once(subject: &Subject) {
    for _ in 0..4 {
        drop(subject.bridge.load_async(&subject.path, &Config::default()).unwrap());
        let pending = subject.bridge.load_async(&subject.path, &Config::default()).unwrap();
        pending.cancel();
        match pending.wait() {
            Ok(model) => subject.assert_expected(&model.predict(&subject.inputs()).unwrap()),
            Err(error) => {
                assert!(matches!(&error, Error::Load { source, .. } if source.status == Status::Cancelled));
            }
        }
    }
}

/// One test of each function above for a bridge.
macro_rules! mount {
    ($subject:path: $($(#[$meta:meta])* $test:ident)*) => {
        $(
            $(#[$meta])*
            #[test]
            fn $test() {
                let subject = $subject();
                suite::$test(&subject);
                (subject.assert_clean)();
            }
        )*
    };
    ($subject:path) => {
        mount! { $subject:
            the_bridge_says_what_it_is
            a_missing_model_is_an_error_that_names_it
            a_model_describes_itself_and_predicts
            outputs_outlive_the_model_and_its_thread
            an_input_is_not_copied_and_given_back
            a_strided_input_counts_by_its_strides
            a_missing_input_is_named_with_what_it_takes
            an_unknown_input_is_refused_with_the_known_ones
            a_wrong_kind_or_dtype_is_refused_before_it_crosses
            only_the_wanted_outputs_come_and_only_known_ones
            a_batch_gives_each_row_what_it_gives_alone
            a_batch_with_a_wrong_row_gives_nothing
            the_functions_of_a_model_are_those_of_its_description
            the_structure_of_a_model_names_what_it_computes
            a_compute_plan_is_the_structure_with_places
            hints_change_no_answer
            a_preferred_device_is_used_or_refused
            an_output_into_given_memory_is_the_same_output
            shared_memory_given_for_an_output_is_never_written
            a_registered_model_is_found_on_its_thread_only
            a_handle_outlives_its_place_in_the_registry
            threads_with_instances_of_their_own_agree
            the_state_of_a_model_without_states_is_empty
            a_state_carries_what_a_prediction_leaves
            every_kind_of_value_crosses_both_ways
            an_unknown_function_is_refused
            a_value_has_one_type_whatever_made_it
            a_prediction_without_waiting_gives_the_same
            a_prediction_without_waiting_keeps_what_it_uses
            a_prediction_that_nobody_waits_for_is_let_go
            a_cancelled_prediction_ends_once
            a_prediction_that_cannot_begin_is_an_error_at_once
            a_prediction_without_waiting_writes_into_given_memory
            a_model_loaded_without_waiting_is_the_same_model
            a_model_in_memory_is_the_same_model
            a_model_in_memory_lacks_nothing_or_is_refused
            the_log_tells_of_loads_and_of_backings_that_are_not_used
            a_log_that_was_unset_is_never_told_again
            a_cancelled_load_ends_once
        }
    };
}
pub(crate) use mount;
