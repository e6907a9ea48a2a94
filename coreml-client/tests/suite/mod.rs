//! What the client must do on every bridge, written once; `mount!` makes tests of it for one bridge.
//!
//! A test that wants an inference thread to be busy keeps it so with a [`Procedure`], which every bridge runs, so nothing here waits
//! for chance.

use std::future::IntoFuture;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use coreml_client::{
    Batching, Bridge, Config, Error, Features, Inference, InferenceRequest, ModelClient, ModelClientBuilder,
    ModelRef, ModelSource, Priority, Procedure, Shutdown, Stage, Tensor,
};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);

/// A bridge, and two models of it that answer the same: one tensor as input, and a tensor among the outputs.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) bridge: Bridge,
    pub(crate) path: String,
    pub(crate) other: String,
    pub(crate) input: &'static str,
    pub(crate) output: &'static str,
    pub(crate) given: Tensor,
    pub(crate) expected: Tensor,
    pub(crate) tolerance: f32,
    /// While it is true no load of the bridge ends.
    pub(crate) stick: fn(bool),
    /// Shown when everything is released.
    pub(crate) assert_clean: fn(),
}

impl Subject {
    fn builder(&self, threads: usize) -> ModelClientBuilder {
        ModelClient::builder().bridge(self.bridge).threads(threads)
    }

    fn features(&self) -> Features {
        Features::new().with(self.input, self.given.clone())
    }

    fn request(&self, model_ref: ModelRef) -> InferenceRequest {
        InferenceRequest::new(model_ref, self.features())
    }

    /// The input with every number negated: it must not be answered with another request's outputs.
    fn negated(&self) -> Features {
        let numbers: Vec<f32> = self.given.iter::<f32>().unwrap().map(|x| -x - 1.0).collect();
        Features::new().with(self.input, Tensor::from_vec(self.given.shape(), numbers).unwrap())
    }

    #[track_caller]
    fn assert_expected(&self, outputs: &Features) {
        let found = outputs.tensor(self.output).expect("the output is a tensor");
        assert_eq!(found.shape(), self.expected.shape());
        self.assert_near(found, &self.expected);
    }

    #[track_caller]
    fn assert_near(&self, found: &Tensor, expected: &Tensor) {
        let numbers = |tensor: &Tensor| tensor.cast(coreml_client::Dtype::Float32).to_vec::<f32>().unwrap();
        for (found, expected) in numbers(found).into_iter().zip(numbers(expected)) {
            assert!((found - expected).abs() <= self.tolerance, "{found} is not {expected}");
        }
    }
}

async fn patiently<F: IntoFuture>(future: F) -> F::Output {
    timeout(PATIENCE, future.into_future()).await.expect("it hangs")
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} never happened");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Everything is answered, and no thread was left behind.
async fn finish(client: ModelClient) {
    let report = client.shutdown(Shutdown::Drain { deadline: Instant::now() + PATIENCE }).await;
    assert_eq!(report.abandoned_threads, 0);
    let outcomes = client.stats().outcomes;
    assert_eq!(outcomes.submitted, outcomes.settled(), "{}", client.stats());
}

/// Keeps inference threads busy until it is opened.
#[derive(Clone, Default)]
struct Hold(Arc<(Mutex<(usize, bool)>, Condvar)>);

impl Hold {
    /// A request that a thread is in when this returns.
    async fn take(&self, subject: &Subject, client: &ModelClient, model_ref: ModelRef) -> Inference {
        let (before, hold) = (self.entered(), self.clone());
        let procedure = Procedure::new(move |model, inputs| {
            let (state, changed) = &*hold.0;
            let mut state = state.lock().unwrap();
            state.0 += 1;
            drop(changed.wait_timeout_while(state, PATIENCE, |(_, open)| !*open).unwrap());
            model.predict(inputs)
        });
        let held = client.try_enqueue(subject.request(model_ref).procedure(procedure)).unwrap();
        eventually("the held request's start", || self.entered() > before).await;
        held
    }

    fn entered(&self) -> usize {
        self.0.0.lock().unwrap().0
    }

    fn open(&self) {
        self.0.0.lock().unwrap().1 = true;
        self.0.1.notify_all();
    }
}

pub(crate) async fn a_model_is_loaded_describes_itself_and_answers(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let description = client.description(model_ref).unwrap();
    assert!(description.input(subject.input).is_some() && description.output(subject.output).is_some());
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    subject.assert_expected(&result.outputs);
    assert_eq!((result.model_ref, result.version, result.worker), (model_ref, 1, 0));
    finish(client).await;
}

pub(crate) async fn a_missing_model_is_an_error_that_names_it(subject: &Subject) {
    let client = subject.builder(1).build();
    for _ in 0..2 {
        let error = patiently(client.load("no/such.mlpackage")).await.unwrap_err();
        let Error::Load { path, source } = &error else { panic!("{error:?}") };
        assert_eq!(path.to_str(), Some("no/such.mlpackage"));
        assert!(source.to_string().contains("no/such.mlpackage"), "{source}");
    }
    finish(client).await;
}

pub(crate) async fn loads_of_one_model_at_once_are_one(subject: &Subject) {
    let client = subject.builder(1).build();
    let loads: Vec<_> = (0..20).map(|_| tokio::spawn(client.load(&subject.path))).collect();
    let mut found = Vec::new();
    for load in loads {
        found.push(patiently(load).await.unwrap().unwrap());
    }
    found.dedup();
    assert_eq!((found.len(), client.stats().models.len()), (1, 1));
    finish(client).await;
}

pub(crate) async fn concurrent_requests_are_each_given_their_own_answer(subject: &Subject) {
    let client = subject.builder(3).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let alone = client.enqueue_inference(InferenceRequest::new(model_ref, subject.negated()));
    let alone = patiently(alone).await.unwrap().outputs.tensor(subject.output).unwrap().clone();
    assert_ne!(alone, subject.expected, "the answers can be told apart");
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (client, subject, alone) = (client.clone(), subject.clone(), alone.clone());
            tokio::spawn(async move {
                for n in 0..10 {
                    if (task + n) % 2 == 0 {
                        let result = client.enqueue_inference(subject.request(model_ref)).await.unwrap();
                        subject.assert_expected(&result.outputs);
                    } else {
                        let request = InferenceRequest::new(model_ref, subject.negated());
                        let result = client.enqueue_inference(request).await.unwrap();
                        subject.assert_near(result.outputs.tensor(subject.output).unwrap(), &alone);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        patiently(task).await.unwrap();
    }
    assert_eq!(client.stats().outcomes.ok, 81);
    finish(client).await;
}

pub(crate) async fn requests_that_are_joined_are_parted_again(subject: &Subject) {
    let client = subject.builder(1).build();
    let batching = Batching { max_batch: 4, max_delay: Duration::from_millis(5) };
    let source = ModelSource::new(&subject.path).batching(batching);
    let model_ref = patiently(client.load(source)).await.unwrap();
    let hold = Hold::default();
    let held = hold.take(subject, &client, model_ref).await;
    let queued: Vec<_> = (0..8).map(|_| client.try_enqueue(subject.request(model_ref)).unwrap()).collect();
    hold.open();
    for answer in queued {
        subject.assert_expected(&patiently(answer).await.unwrap().outputs);
    }
    patiently(held).await.unwrap();
    finish(client).await;
}

pub(crate) async fn a_wrong_input_costs_its_own_request(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    for wrong in [
        Features::new(),
        Features::new().with(subject.input, "text"),
        subject.features().with("not an input", 1_i64),
    ] {
        let answer = client.enqueue_inference(InferenceRequest::new(model_ref, wrong));
        let error = patiently(answer).await.unwrap_err();
        assert!(matches!(&error, Error::Predict { .. }), "{error:?}");
    }
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    subject.assert_expected(&result.outputs);
    assert_eq!(result.worker, 0);
    finish(client).await;
}

pub(crate) async fn only_the_wanted_outputs_come(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let request = subject.request(model_ref).wanted([subject.output]);
    let result = patiently(client.enqueue_inference(request)).await.unwrap();
    assert_eq!(result.outputs.names().collect::<Vec<_>>(), [subject.output]);
    subject.assert_expected(&result.outputs);
    let request = subject.request(model_ref).wanted(["not an output"]);
    let error = patiently(client.enqueue_inference(request)).await.unwrap_err();
    assert!(matches!(&error, Error::Predict { .. }), "{error:?}");
    finish(client).await;
}

pub(crate) async fn an_input_is_given_back(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let given = Tensor::from_vec(subject.given.shape(), subject.given.to_vec::<f32>().unwrap()).unwrap();
    let request = InferenceRequest::new(model_ref, Features::new().with(subject.input, given.clone()));
    patiently(client.enqueue_inference(request)).await.unwrap();
    eventually("the end of its use", || given.shared_by() == 1).await;
    assert_eq!(given, subject.given, "and nobody wrote it");
    finish(client).await;
}

pub(crate) async fn a_deadline_is_kept_while_the_thread_is_busy(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let hold = Hold::default();
    let held = hold.take(subject, &client, model_ref).await;
    let late: Vec<_> = (0..20)
        .map(|_| subject.request(model_ref).timeout(Duration::from_millis(20)))
        .map(|request| client.try_enqueue(request).unwrap())
        .collect();
    for answer in late {
        let error = patiently(answer).await.unwrap_err();
        assert!(matches!(&error, Error::DeadlineExceeded { stage: Stage::Queued }), "{error:?}");
    }
    hold.open();
    subject.assert_expected(&patiently(held).await.unwrap().outputs);
    finish(client).await;
}

pub(crate) async fn a_running_prediction_outlives_its_deadline_alone(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let slow = Procedure::new(|model, inputs| {
        std::thread::sleep(Duration::from_millis(150));
        model.predict(inputs)
    });
    let request = subject.request(model_ref).procedure(slow).timeout(Duration::from_millis(50));
    let error = patiently(client.enqueue_inference(request)).await.unwrap_err();
    assert!(matches!(&error, Error::DeadlineExceeded { .. }), "{error:?}");
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    subject.assert_expected(&result.outputs);
    finish(client).await;
}

pub(crate) async fn a_request_that_is_given_up_is_freed_at_once(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let hold = Hold::default();
    let held = hold.take(subject, &client, model_ref).await;
    let given = Tensor::from_vec(subject.given.shape(), subject.given.to_vec::<f32>().unwrap()).unwrap();
    let request = InferenceRequest::new(model_ref, Features::new().with(subject.input, given.clone()));
    let queued: Vec<_> = (0..10).map(|_| client.try_enqueue(request.clone()).unwrap()).collect();
    drop((queued, request));
    assert_eq!(given.shared_by(), 1);
    hold.open();
    patiently(held).await.unwrap();
    assert_eq!(client.stats().outcomes.ok, 1);
    finish(client).await;
}

pub(crate) async fn a_request_that_is_given_up_while_it_runs_harms_nobody(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let hold = Hold::default();
    drop(hold.take(subject, &client, model_ref).await);
    hold.open();
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    subject.assert_expected(&result.outputs);
    finish(client).await;
}

pub(crate) async fn an_urgent_request_overtakes(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let hold = Hold::default();
    let held = hold.take(subject, &client, model_ref).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str| {
        let order = Arc::clone(&order);
        Procedure::new(move |model, inputs| {
            order.lock().unwrap().push(name);
            model.predict(inputs)
        })
    };
    let low = subject.request(model_ref).priority(Priority::Low).procedure(note("low"));
    let low = client.try_enqueue(low).unwrap();
    let high = subject.request(model_ref).priority(Priority::High).procedure(note("high"));
    let high = client.try_enqueue(high).unwrap();
    hold.open();
    for answer in [held, low, high] {
        subject.assert_expected(&patiently(answer).await.unwrap().outputs);
    }
    assert_eq!(*order.lock().unwrap(), ["high", "low"]);
    finish(client).await;
}

pub(crate) async fn a_panic_costs_its_own_request(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let panics = Procedure::new(|model, inputs| {
        model.predict(inputs)?;
        panic!("on purpose")
    });
    let error = patiently(client.enqueue_inference(subject.request(model_ref).procedure(panics))).await;
    assert!(matches!(&error, Err(Error::WorkerPanicked { .. })), "{error:?}");
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    subject.assert_expected(&result.outputs);
    finish(client).await;
}

pub(crate) async fn a_procedure_makes_several_predictions_with_a_state(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let thrice = Procedure::new(|model, inputs| {
        let mut state = model.new_state()?;
        model.predict(inputs)?;
        for _ in 0..2 {
            let options = coreml_bridge::PredictOptions { state: Some(&mut state), ..Default::default() };
            model.predict_with(inputs, options)?;
        }
        let options = coreml_bridge::PredictOptions { state: Some(&mut state), ..Default::default() };
        Ok(model.predict_with(inputs, options)?.outputs)
    });
    let request = subject.request(model_ref).procedure(thrice);
    subject.assert_expected(&patiently(client.enqueue_inference(request)).await.unwrap().outputs);
    finish(client).await;
}

pub(crate) async fn a_swap_takes_over_and_is_taken_back(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let hold = Hold::default();
    let held = hold.take(subject, &client, model_ref).await;
    let queued = client.try_enqueue(subject.request(model_ref)).unwrap();
    let (input, output, given) = (subject.input, subject.output, subject.given.clone());
    let swap = client.swap(model_ref, &subject.other).check(move |trial| {
        let outputs = trial.predict(Features::new().with(input, given)).map_err(|error| error.to_string())?;
        outputs.tensor(output).map(drop).map_err(|error| error.to_string())
    });
    assert_eq!(patiently(swap).await.unwrap(), 2);
    let new = client.try_enqueue(subject.request(model_ref)).unwrap();
    hold.open();
    for (answer, version) in [(held, 1), (queued, 1), (new, 2)] {
        let result = patiently(answer).await.unwrap();
        assert_eq!(result.version, version);
        subject.assert_expected(&result.outputs);
    }
    assert_eq!(client.rollback(model_ref).unwrap(), 1);
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    assert_eq!(result.version, 1);
    subject.assert_expected(&result.outputs);
    finish(client).await;
}

pub(crate) async fn a_swap_that_fails_leaves_the_old_version(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let error = patiently(client.swap(model_ref, "no/such.mlpackage")).await.unwrap_err();
    assert!(matches!(&error, Error::Load { .. }), "{error:?}");
    let swap = client.swap(model_ref, &subject.other).check(|_| Err::<(), _>("worse than before"));
    assert!(matches!(patiently(swap).await, Err(Error::SwapRefused { .. })));
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    assert_eq!(result.version, 1);
    subject.assert_expected(&result.outputs);
    finish(client).await;
}

pub(crate) async fn a_warm_up_that_fails_fails_the_load(subject: &Subject) {
    let client = subject.builder(1).build();
    let wrong = ModelSource::new(&subject.path).warm_up(Features::new());
    patiently(client.load(wrong)).await.unwrap_err();
    let right = ModelSource::new(&subject.path).warm_up(subject.features());
    let model_ref = patiently(client.load(right)).await.unwrap();
    let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    subject.assert_expected(&result.outputs);
    finish(client).await;
}

pub(crate) async fn an_unknown_function_is_refused(subject: &Subject) {
    let client = subject.builder(1).build();
    let config = Config { function: Some("no such function".to_owned()), ..Config::default() };
    let error = patiently(client.load(ModelSource::new(&subject.path).config(config))).await.unwrap_err();
    assert!(matches!(&error, Error::Load { .. }), "{error:?}");
    finish(client).await;
}

pub(crate) async fn an_unloaded_model_is_gone(subject: &Subject) {
    let client = subject.builder(2).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
    client.unload(model_ref).unwrap();
    let error = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap_err();
    assert!(matches!(&error, Error::Unloaded { .. }), "{error:?}");
    // Not when the client ends, but now.
    (subject.assert_clean)();
    finish(client).await;
}

pub(crate) async fn a_stuck_load_delays_nobody_else(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    (subject.stick)(true);
    let mut stuck = tokio::spawn(client.load(&subject.other));
    for _ in 0..5 {
        let result = patiently(client.enqueue_inference(subject.request(model_ref))).await.unwrap();
        subject.assert_expected(&result.outputs);
    }
    assert!(timeout(Duration::from_millis(50), &mut stuck).await.is_err(), "the load was not stuck");
    (subject.stick)(false);
    let other = patiently(stuck).await.unwrap().unwrap();
    let result = patiently(client.enqueue_inference(subject.request(other))).await.unwrap();
    subject.assert_expected(&result.outputs);
    finish(client).await;
}

pub(crate) async fn a_shutdown_does_not_wait_for_a_stuck_load(subject: &Subject) {
    let client = subject.builder(1).stop_grace(Duration::from_millis(50)).build();
    (subject.stick)(true);
    let stuck = tokio::spawn(client.load(&subject.path));
    sleep(Duration::from_millis(50)).await;
    let report = patiently(client.shutdown(Shutdown::Abort)).await;
    let error = patiently(stuck).await.unwrap();
    assert!(matches!(&error, Err(Error::ShutDown)), "{error:?}, {report:?}");
    (subject.stick)(false);
}

pub(crate) async fn a_drain_serves_what_was_handed_in(subject: &Subject) {
    let client = subject.builder(1).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let hold = Hold::default();
    let held = hold.take(subject, &client, model_ref).await;
    let queued: Vec<_> = (0..5).map(|_| client.try_enqueue(subject.request(model_ref)).unwrap()).collect();
    let drain = tokio::spawn(client.shutdown(Shutdown::Drain { deadline: Instant::now() + PATIENCE }));
    hold.open();
    for answer in queued.into_iter().chain([held]) {
        subject.assert_expected(&patiently(answer).await.unwrap().outputs);
    }
    assert_eq!(patiently(drain).await.unwrap().abandoned_threads, 0);
}

pub(crate) async fn an_abort_closes_what_has_not_started(subject: &Subject) {
    let client = subject.builder(1).stop_grace(Duration::from_millis(50)).build();
    let model_ref = patiently(client.load(&subject.path)).await.unwrap();
    let hold = Hold::default();
    let held = hold.take(subject, &client, model_ref).await;
    let queued: Vec<_> = (0..5).map(|_| client.try_enqueue(subject.request(model_ref)).unwrap()).collect();
    let report = patiently(client.shutdown(Shutdown::Abort)).await;
    assert_eq!((report.closed, report.abandoned_threads), (5, 1));
    for answer in queued {
        assert!(matches!(patiently(answer).await, Err(Error::ShutDown)));
    }
    hold.open();
    subject.assert_expected(&patiently(held).await.unwrap().outputs);
}

/// One test of each function above for a bridge. The clients' threads are their own: one of tokio's is enough, and is the test's.
macro_rules! mount {
    ($subject:path: $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                let subject = $subject();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(suite::$test(&subject));
                drop(runtime);
                (subject.assert_clean)();
            }
        )*
    };
    ($subject:path) => {
        mount! { $subject:
            a_model_is_loaded_describes_itself_and_answers
            a_missing_model_is_an_error_that_names_it
            loads_of_one_model_at_once_are_one
            concurrent_requests_are_each_given_their_own_answer
            requests_that_are_joined_are_parted_again
            a_wrong_input_costs_its_own_request
            only_the_wanted_outputs_come
            an_input_is_given_back
            a_deadline_is_kept_while_the_thread_is_busy
            a_running_prediction_outlives_its_deadline_alone
            a_request_that_is_given_up_is_freed_at_once
            a_request_that_is_given_up_while_it_runs_harms_nobody
            an_urgent_request_overtakes
            a_panic_costs_its_own_request
            a_procedure_makes_several_predictions_with_a_state
            a_swap_takes_over_and_is_taken_back
            a_swap_that_fails_leaves_the_old_version
            a_warm_up_that_fails_fails_the_load
            an_unknown_function_is_refused
            an_unloaded_model_is_gone
            a_stuck_load_delays_nobody_else
            a_shutdown_does_not_wait_for_a_stuck_load
            a_drain_serves_what_was_handed_in
            an_abort_closes_what_has_not_started
        }
    };
}
pub(crate) use mount;
