//! `coreml top` on a program that runs: this one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

use coreml_client::monitor::Monitor;
use coreml_client::{Features, InferenceRequest, ModelClient, Tensor};
use coreml_testing::FakeBridge;
use serde_json::Value;

fn top(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coreml")).arg("top").args(arguments).output().unwrap()
}

#[test]
fn it_shows_the_models_of_a_program() {
    let client = ModelClient::builder().bridge(FakeBridge::new().bridge()).threads(1).build();
    let model_ref = client.load_model("folder/doubler.mlpackage").unwrap();
    let monitor = Monitor::start(&client, &"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = monitor.address().to_string();
    let ask = || {
        let features = Features::new().with("x", Tensor::from_vec(&[1], vec![1.0_f32]).unwrap());
        let request = InferenceRequest::new(model_ref, features);
        pollster::block_on(client.enqueue_inference(request)).unwrap();
    };
    for _ in 0..5 {
        ask();
    }

    let life = top(&[&address, "--once", "--json", "--interval", "0"]);
    assert!(life.status.success(), "{}", String::from_utf8_lossy(&life.stderr));
    let life: Value = serde_json::from_slice(&life.stdout).unwrap();
    assert_eq!(life["pid"], std::process::id());
    let model = &life["models"][0];
    assert_eq!(model["outcomes"]["ok"], 5);
    assert!(model["p99"].as_f64().unwrap() >= model["p50"].as_f64().unwrap());
    assert!(model["throughput"].as_f64().unwrap() > 0.0);
    assert_eq!(model["depth"], serde_json::json!([0, 0, 0]));
    assert_eq!(model["workers"].as_array().unwrap().len(), 1);

    // Nobody asks meanwhile: these are rates of the interval.
    let quiet = top(&[&address, "--once", "--json", "--interval", "0.2"]);
    let quiet: Value = serde_json::from_slice(&quiet.stdout).unwrap();
    assert_eq!((&quiet["models"][0]["throughput"], &quiet["models"][0]["p50"]), (&0.0.into(), &Value::Null));

    let table = top(&[&address, "--once", "--interval", "0"]);
    let table = String::from_utf8(table.stdout).unwrap();
    let name = format!("doubler#{} v1", model_ref.as_u64());
    assert!(table.lines().any(|line| line.starts_with(&name)), "{table}");

    drop(monitor);
    let gone = top(&[&address, "--once"]);
    assert!(!gone.status.success());
    let words = String::from_utf8(gone.stderr).unwrap();
    assert!(words.contains(&address), "{words}");
}

#[test]
fn what_is_no_address_is_said() {
    for arguments in [&["nowhere"][..], &["127.0.0.1:1", "--interval", "-1"], &["127.0.0.1:1", "-n", "NaN"]] {
        let output = top(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
