//! A handle cannot be used across an await point of a task that may move between threads.

use std::future::Future;

use coreml_client::{Bridge, Config, Features};

/// As `tokio::spawn` wants it.
fn spawn(_task: impl Future + Send + 'static) {}

fn main() {
    let handle = Bridge::platform().load("model.mlpackage", &Config::default()).unwrap();
    spawn(async move {
        std::future::ready(()).await;
        drop(handle.predict(&Features::new()));
    });
}
