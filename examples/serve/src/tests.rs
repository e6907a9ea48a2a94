//! The server as its callers see it, over connections of their own.

use std::collections::BTreeSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;

/// One request on a connection that ends with it; gives status and body.
async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn pixels(count: usize) -> String {
    serde_json::to_string(&vec![0.5_f32; count]).unwrap()
}

/// The names that start with `coreml_`, as Prometheus stores them.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("coreml_")).map(str::to_owned).collect()
}

/// Without the endings of a histogram's series.
fn metric(name: &str) -> &str {
    let ending = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
    ending.filter(|stem| stem.ends_with("_duration_seconds")).unwrap_or(name)
}

// One test: the recorder belongs to the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_answers_is_watched_and_stops_without_losing_anybody() {
    let prometheus = recorder().unwrap().install_recorder().unwrap();
    let client = ModelClient::builder().threads(1).default_timeout(Duration::from_secs(60)).build();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/digits/digits.mlpackage");
    let model_ref = client.load(path).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let app = App { client: client.clone(), model_ref, prometheus };
    let server = tokio::spawn(serve(listener, app, async { stopped.await.unwrap() }));

    let (status, body) = ask(address, "POST", "/predict", &pixels(64)).await;
    assert_eq!(status, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let sum: f64 =
        answer["probabilities"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-3, "{answer}");
    assert!(answer["digit"].as_u64().unwrap() < 10);
    assert_eq!(ask(address, "POST", "/predict", &pixels(63)).await.0, 400);
    assert_eq!(ask(address, "GET", "/health", "").await, (200, "ok".to_owned()));

    the_dashboard_shows_what_is_exported(address).await;

    // Requests that are under way when the server is told to stop.
    let askers: Vec<_> = (0..40)
        .map(|_| tokio::spawn(async move { ask(address, "POST", "/predict", &pixels(64)).await }))
        .collect();
    let start = Instant::now();
    while client.stats().outcomes.submitted < 41 {
        assert!(start.elapsed() < Duration::from_secs(60), "they never arrive");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(()).unwrap();
    for asker in askers {
        let (status, body) = asker.await.unwrap();
        assert_eq!(status, 200, "{body}");
    }
    let report = tokio::time::timeout(Duration::from_secs(60), server).await.unwrap().unwrap().unwrap();
    assert_eq!((report.closed, report.abandoned_threads), (0, 0));
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    let outcomes = client.stats().outcomes;
    assert_eq!((outcomes.ok, outcomes.submitted), (41, 41));
}

/// Every name in the dashboard is exported, and everything that is exported is in the dashboard.
async fn the_dashboard_shows_what_is_exported(address: SocketAddr) {
    // Published once a second.
    let start = Instant::now();
    let exported = loop {
        let (status, text) = ask(address, "GET", "/metrics", "").await;
        assert_eq!(status, 200);
        if text.contains("coreml_requests_total{") {
            break text;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "never published: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let exported = names(&exported);
    let dashboard: serde_json::Value = serde_json::from_str(include_str!("../grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut shown = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{} shows nothing", panel["title"]);
        for target in targets {
            shown.append(&mut names(target["expr"].as_str().unwrap()));
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    shown.extend(variables.iter().flat_map(|variable| names(variable["query"].as_str().unwrap_or_default())));
    let unknown: Vec<_> = shown.difference(&exported).collect();
    assert!(unknown.is_empty(), "not exported: {unknown:?}");
    let metrics = |names: &BTreeSet<String>| -> BTreeSet<String> {
        names.iter().map(|name| metric(name).to_owned()).collect()
    };
    assert_eq!(metrics(&shown), metrics(&exported));
}
