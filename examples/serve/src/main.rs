//! A web server that answers with a Core ML model, is watched by Prometheus, and leaves nobody without an answer when it
//! is told to stop.
//!
//! ```text
//! cargo run --release -p coreml-example-serve -- --monitor 127.0.0.1:9800
//! curl localhost:8080/predict --json "[$(printf '0.5,%.0s' {1..63})0.5]"
//! curl localhost:8080/metrics
//! cargo run --release --bin coreml -- top 127.0.0.1:9800
//! ```
//!
//! `grafana.json` beside this is a dashboard of these metrics: import it in Grafana and choose the Prometheus that scrapes
//! `/metrics`.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use coreml_client::monitor::{Address, Monitor};
use coreml_client::{Error, Features, InferenceRequest, ModelClient, ModelRef, Report, Shutdown, Tensor};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::net::TcpListener;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// How long requests may take to finish once the server is to stop. Kubernetes gives 30 s.
const GRACE: Duration = Duration::from_secs(20);
/// After which nobody waits for an answer any more.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reads handwritten digits over HTTP.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// An endpoint for `coreml top`: HOST:PORT, or the path of a socket.
    #[arg(long)]
    monitor: Option<Address>,
    /// The model of digits.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/digits/digits.mlpackage"))]
    model: PathBuf,
}

#[derive(Clone)]
struct App {
    client: ModelClient,
    model_ref: ModelRef,
    prometheus: PrometheusHandle,
}

#[derive(Serialize)]
struct Answer {
    digit: usize,
    probabilities: Vec<f32>,
    /// Which version of the model said so.
    version: u64,
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let Arguments { listen, monitor, model } = Arguments::parse();
    // Before the first model is loaded: histograms keep the recorder that they find.
    let prometheus = recorder()?.install_recorder()?;
    let client = ModelClient::builder().max_queued(256).default_timeout(TIMEOUT).build();
    let model_ref = client.load(model).await?;
    // Closes when it is dropped, at the end of this function.
    let _monitor = monitor.map(|address| Monitor::start(&client, &address)).transpose()?;

    let listener = TcpListener::bind(listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let app = App { client: client.clone(), model_ref, prometheus };
    let report = serve(listener, app, told_to_stop()).await?;
    println!(
        "{} requests answered, {} turned away at the end, {} threads left behind",
        client.stats().outcomes.ok,
        report.closed,
        report.abandoned_threads
    );
    Ok(())
}

/// Serves until `stop`, then finishes what has begun: first no connection is taken any more, then the requests under way get
/// their answers, then the models' threads end.
async fn serve(
    listener: TcpListener,
    app: App,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<Report, AnyError> {
    let client = app.client.clone();
    let upkeep = tokio::spawn(upkeep(app.prometheus.clone()));
    let router = Router::new()
        .route("/predict", post(predict))
        .route("/metrics", get(metrics))
        .route("/health", get(async || "ok"))
        .with_state(app);
    let (stopping, is_stopping) = tokio::sync::oneshot::channel();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        stop.await;
        // Nobody else listens: the server has ended by itself.
        let _ = stopping.send(Instant::now() + GRACE);
    });
    let server = async { server.await };
    let overdue = async {
        match is_stopping.await {
            Ok(deadline) => tokio::time::sleep_until(deadline.into()).await,
            Err(_) => std::future::pending().await,
        }
    };
    let left = tokio::select! {
        result = server => { result?; GRACE }
        // Somebody holds his connection open. What is queued still gets its time, but no more.
        () = overdue => TIMEOUT,
    };
    let deadline = Instant::now() + left;
    let report = client.shutdown(Shutdown::Drain { deadline }).await;
    upkeep.abort();
    Ok(report)
}

/// What the system says when it wants the program to end.
async fn told_to_stop() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! { () = interrupt => {}, _ = terminate.recv() => {} },
            Err(_) => interrupt.await,
        }
    }
    #[cfg(not(unix))]
    interrupt.await;
}

/// Histograms with bounds, which Prometheus can add up over machines; quantiles it could not.
fn recorder() -> Result<PrometheusBuilder, AnyError> {
    const BOUNDS: [f64; 16] = [
        50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5,
        10.0,
    ];
    let durations = Matcher::Suffix("_duration_seconds".to_owned());
    Ok(PrometheusBuilder::new().set_buckets_for_metric(durations, &BOUNDS)?)
}

/// The exporter keeps every duration until somebody scrapes, unless it is told to sort them in.
async fn upkeep(prometheus: PrometheusHandle) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        prometheus.run_upkeep();
    }
}

async fn metrics(State(app): State<App>) -> String {
    app.prometheus.render()
}

async fn predict(
    State(app): State<App>,
    Json(pixels): Json<Vec<f32>>,
) -> Result<Json<Answer>, (StatusCode, String)> {
    let words = |code: StatusCode, error: &dyn std::error::Error| {
        let mut words = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            words += &format!(": {error}");
            cause = error.source();
        }
        (code, words)
    };
    let image =
        Tensor::from_vec(&[1, 1, 8, 8], pixels).map_err(|error| words(StatusCode::BAD_REQUEST, &error))?;
    let request = InferenceRequest::new(app.model_ref, Features::new().with("image", image));
    // Refused when the queue is full: whoever is told so at once can ask another machine. If the caller hangs up, this
    // future is dropped, and the prediction is not made.
    let result = match app.client.try_enqueue(request) {
        Ok(inference) => inference.await,
        Err(refused) => Err(refused.source),
    };
    let result = result.map_err(|error| {
        let code = match error {
            Error::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            Error::DeadlineExceeded { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::ShutDown => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        words(code, &error)
    })?;
    let internal = |error: &dyn std::error::Error| words(StatusCode::INTERNAL_SERVER_ERROR, error);
    let probabilities = result.outputs.tensor("probabilities").map_err(|error| internal(&error))?;
    let probabilities = probabilities.to_vec::<f32>().map_err(|error| internal(&error))?;
    let best = (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
    Ok(Json(Answer { digit: best.unwrap_or_default(), probabilities, version: result.version }))
}

#[cfg(test)]
mod tests;
