//! The client on a whole bridge: through the registry, the handles and the C table, with everything counted that crosses.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use coreml_bridge::{Bridge, Config, Features, Tensor};
use coreml_client::{Error, InferenceRequest, ModelClient, ModelRef, Procedure, Shutdown, Stage};
use coreml_testing::{FakeBridge, Outcome, REFUSAL};

const PATIENCE: Duration = Duration::from_secs(30);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An executor that knows nothing of tokio.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(PATIENCE);
        assert!(start.elapsed() < PATIENCE, "a future hangs");
    }
}

/// A future that has been polled once, so that its request is handed in; it may have been answered in that instant.
enum Started<F: Future> {
    Pending(Pin<Box<F>>),
    Ready(Option<F::Output>),
}

impl<F: Future> Unpin for Started<F> {}

impl<F: Future> Future for Started<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        match &mut *self {
            Self::Pending(future) => future.as_mut().poll(context),
            Self::Ready(output) => Poll::Ready(output.take().expect("polled after its output was taken")),
        }
    }
}

fn start<F: Future>(future: F) -> Started<F> {
    let mut future = Box::pin(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Started::Ready(Some(output)),
        Poll::Pending => Started::Pending(future),
    }
}

fn model(fake: FakeBridge) -> (ModelClient, ModelRef) {
    let client =
        ModelClient::builder().bridge(fake.bridge()).threads(1).stop_grace(Duration::from_millis(50)).build();
    let model_ref = client.load_model("fake.mlpackage").unwrap();
    (client, model_ref)
}

fn request(model_ref: ModelRef, x: f32) -> InferenceRequest {
    InferenceRequest::new(model_ref, Features::new().with("x", Tensor::from_vec(&[1], vec![x]).unwrap()))
}

fn drain(client: &ModelClient, fake: FakeBridge) {
    let report = block_on(client.shutdown(Shutdown::Drain { deadline: Instant::now() + PATIENCE }));
    assert_eq!(report.abandoned_threads, 0);
    let outcomes = client.stats().outcomes;
    assert_eq!(outcomes.submitted, outcomes.settled());
    fake.assert_clean();
}

#[test]
fn three_threads_answer_concurrent_tasks_and_every_handle_stays_on_its_thread() {
    let fake =
        FakeBridge::builder().behave(|behaviour| behaviour.keep_inputs = Duration::from_millis(50)).build();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(3).build();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let model_ref = client.load_model_async("fake.mlpackage").await.unwrap();
        let tasks = (0..16).map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    let x = (task * 1_000 + n) as f32;
                    let result = client.enqueue_inference(request(model_ref, x)).await.unwrap();
                    assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [2.0 * x]);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
    assert_eq!(client.stats().outcomes.ok, 800);
    drain(&client, fake);
}

#[test]
fn wrong_inputs_name_model_and_feature_and_never_reach_the_bridge() {
    let fake = FakeBridge::new();
    let (client, model_ref) = model(fake);
    let wrong = InferenceRequest::new(model_ref, Features::new().with("z", 1_i64));
    let error = block_on(client.enqueue_inference(wrong)).unwrap_err();
    let Error::Predict { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains('z') || source.to_string().contains('x'), "{source}");
    assert_eq!(fake.counts().predictions, 0);
    assert!(block_on(client.enqueue_inference(request(model_ref, 1.0))).is_ok());
    drain(&client, fake);
}

#[test]
fn failures_and_panics_behind_the_table_cost_their_own_request_and_keep_the_chain_of_causes() {
    let fake = FakeBridge::new();
    fake.plan_predictions(|n| match n {
        1 => Outcome::Refuse,
        2 => Outcome::Panic,
        3 => Outcome::SucceedWithNothing,
        _ => Outcome::Normal,
    });
    let (client, model_ref) = model(fake);
    let results =
        (0..6).map(|n| block_on(client.enqueue_inference(request(model_ref, n as f32)))).collect::<Vec<_>>();
    assert_eq!(
        results.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, false, false, true, true]
    );
    let mut causes = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(results[1].as_ref().unwrap_err());
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    for message in REFUSAL {
        assert!(causes.iter().any(|cause| cause.contains(message)), "{message:?} is not among {causes:#?}");
    }
    // The instance was not at fault.
    assert_eq!(fake.counts().loads, 1);
    let outcomes = client.stats().outcomes;
    assert_eq!((outcomes.ok, outcomes.error), (3, 3));
    drain(&client, fake);
}

#[test]
fn only_wanted_outputs_come_back_and_an_unknown_one_is_an_error() {
    let fake = FakeBridge::new();
    let (client, model_ref) = model(fake);
    let result = block_on(client.enqueue_inference(request(model_ref, 1.0).wanted(["y"]))).unwrap();
    assert_eq!(result.outputs.len(), 1);
    let error = block_on(client.enqueue_inference(request(model_ref, 1.0).wanted(["nothing"]))).unwrap_err();
    assert!(matches!(error, Error::Predict { .. }), "{error}");
    drain(&client, fake);
}

#[test]
fn a_stuck_prediction_neither_delays_deadlines_nor_keeps_cancelled_inputs() {
    let fake = FakeBridge::new();
    let (client, model_ref) = model(fake);
    fake.predict_gate().close();
    let stuck = start(client.enqueue_inference(request(model_ref, 0.0)));
    fake.predict_gate().await_waiting(1);
    let given_up =
        (0..50).map(|n| start(client.enqueue_inference(request(model_ref, n as f32)))).collect::<Vec<_>>();
    assert!(client.stats().models[0].bytes > 0);
    drop(given_up);
    assert_eq!(client.stats().models[0].bytes, 0);
    let late = (0..200)
        .map(|n| {
            start(client.enqueue_inference(request(model_ref, n as f32).timeout(Duration::from_millis(20))))
        })
        .collect::<Vec<_>>();
    for future in late {
        let error = block_on(future).unwrap_err();
        assert!(
            matches!(error, Error::DeadlineExceeded { stage: Stage::Queued | Stage::Admission }),
            "{error}"
        );
    }
    fake.predict_gate().open();
    block_on(stuck).unwrap();
    assert_eq!(fake.counts().predictions, 1);
    drain(&client, fake);
}

#[test]
fn a_stuck_thread_is_reported_and_frees_its_model_when_it_comes_back() {
    let fake = FakeBridge::new();
    let (client, model_ref) = model(fake);
    fake.predict_gate().close();
    let stuck = start(client.enqueue_inference(request(model_ref, 1.0)));
    fake.predict_gate().await_waiting(1);
    let queued = start(client.enqueue_inference(request(model_ref, 2.0)));
    let report = block_on(client.shutdown(Shutdown::Abort));
    assert_eq!((report.closed, report.abandoned_threads), (1, 1));
    assert!(matches!(block_on(queued), Err(Error::ShutDown)));
    fake.predict_gate().open();
    assert!(block_on(stuck).is_ok());
    let start = Instant::now();
    while fake.counts().live_models > 0 {
        assert!(start.elapsed() < PATIENCE, "the model was never freed");
        thread::sleep(Duration::from_millis(1));
    }
    fake.assert_clean();
}

#[test]
fn a_thousand_loads_are_one_and_a_refused_one_keeps_its_reason_for_everybody() {
    let fake = FakeBridge::new();
    fake.behave(|behaviour| behaviour.load = Outcome::Refuse);
    fake.load_gate().close();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).build();
    let loads = (0..1_000).map(|_| start(client.load_model_async("fake.mlpackage"))).collect::<Vec<_>>();
    fake.load_gate().await_waiting(1);
    fake.load_gate().open();
    for load in loads {
        let Err(Error::Load { path, source }) = block_on(load) else { panic!("it was refused") };
        assert_eq!(path.to_str(), Some("fake.mlpackage"));
        assert!(source.to_string().contains("fake.mlpackage"), "{source}");
    }
    fake.behave(|behaviour| behaviour.load = Outcome::Normal);
    let model_ref = client.load_model("fake.mlpackage").unwrap();
    assert_eq!(fake.counts().live_models, 1);
    assert!(client.description(model_ref).unwrap().input("x").is_some());
    drain(&client, fake);
}

#[test]
fn the_digits_model_answers_through_the_client_what_it_answers_directly() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    let features = Features::new()
        .with("image", Tensor::from_vec(&[1, 1, 8, 8], (0..64).map(|n| n as f32 / 64.0).collect()).unwrap());
    let direct = Bridge::platform().load(path, &Config::default()).unwrap().predict(&features).unwrap();
    let client = ModelClient::builder().threads(2).build();
    let model_ref = client.load_model(path).unwrap();
    let answers = (0..20)
        .map(|_| Box::pin(client.enqueue_inference(InferenceRequest::new(model_ref, features.clone()))))
        .collect::<Vec<_>>();
    for answer in answers {
        assert_eq!(block_on(answer).unwrap().outputs, direct);
    }
}

#[test]
fn a_missing_model_is_an_error_that_names_its_path() {
    let client = ModelClient::builder().build();
    let error = client.load_model("no/such.mlpackage").unwrap_err();
    assert!(
        matches!(&error, Error::Load { path, .. } if path.to_str() == Some("no/such.mlpackage")),
        "{error}"
    );
}

#[test]
fn a_procedure_makes_several_predictions_on_the_inference_thread() {
    let fake = FakeBridge::new();
    let (client, model_ref) = model(fake);
    let fourfold = Procedure::new(|model, inputs| {
        assert!(thread::current().name().unwrap().starts_with("fake"));
        let once = model.predict(inputs)?;
        model.predict(&Features::new().with("x", once.tensor("y").unwrap().clone()))
    });
    let result = block_on(client.enqueue_inference(request(model_ref, 3.0).procedure(fourfold))).unwrap();
    assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [12.0]);
    drain(&client, fake);
}

#[test]
fn a_procedure_that_fails_or_panics_takes_nobody_with_it() {
    let fake = FakeBridge::new();
    let (client, model_ref) = model(fake);
    let wrong = Procedure::new(|model, _| model.predict(&Features::new()));
    let result = block_on(client.enqueue_inference(request(model_ref, 1.0).procedure(wrong)));
    assert!(matches!(result, Err(Error::Predict { .. })), "{result:?}");
    let panics = Procedure::new(|_, _| panic!("on purpose"));
    let result = block_on(client.enqueue_inference(request(model_ref, 1.0).procedure(panics)));
    assert!(matches!(result, Err(Error::WorkerPanicked { .. })), "{result:?}");
    let result = block_on(client.enqueue_inference(request(model_ref, 1.0))).unwrap();
    assert_eq!(result.outputs.tensor("y").unwrap().as_slice::<f32>().unwrap(), [2.0]);
    drain(&client, fake);
}
