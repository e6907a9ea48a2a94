//! A handle cannot be used across an await point of a task that may move between threads.

use coreml_client::{Bridge, Config, Features};

fn main() {
    let handle = Bridge::platform().load("model.mlpackage", &Config::default()).unwrap();
    tokio::spawn(async move {
        tokio::task::yield_now().await;
        drop(handle.predict(&Features::new()));
    });
}
