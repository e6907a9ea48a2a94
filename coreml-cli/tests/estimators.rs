//! `coreml inspect` and `coreml predict` on estimators and pipelines: features of every kind, from files to JSON, through the
//! portable table. The cases are those of the engine's tests.
#![cfg(not(target_vendor = "apple"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../coreml-engine/tests/fixtures/estimators")
}

/// What the command prints as JSON, or its words.
fn coreml(arguments: &[String]) -> Result<Value, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_coreml")).args(arguments).output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// A flat list as nested lists of that shape.
fn nested(list: &[Value], shape: &[usize]) -> Value {
    match shape {
        [] | [_] => list.to_vec().into(),
        [_, rest @ ..] => {
            let size = rest.iter().product();
            list.chunks(size).map(|part| nested(part, rest)).collect()
        }
    }
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.iter().any(has_null),
        Value::Object(members) => members.values().any(has_null),
        _ => false,
    }
}

fn same(found: &Value, expected: &Value, tolerance: f64) -> bool {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, x)| b.get(k).is_some_and(|y| same(x, y, tolerance)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, tolerance))
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= tolerance * (1.0 + b.abs())
        }
        (a, b) => a == b,
    }
}

#[test]
fn every_case_predicts_from_files() {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let files = std::env::temp_dir().join(format!("coreml-cli-estimators-{}", std::process::id()));
    std::fs::create_dir_all(&files).unwrap();
    let mut predicted = 0;
    let mut failed = Vec::new();
    for (name, case) in &cases {
        let model = folder().join(format!("{name}.mlmodel")).to_str().unwrap().to_owned();
        let inspected = coreml(&["inspect".into(), model.clone(), "--json".into()]).unwrap();
        assert_eq!(inspected["runs"], json!(true), "{name}: {inspected}");
        let shape = |input: &str| -> Vec<usize> {
            let inputs = inspected["inputs"].as_array().unwrap();
            let feature = inputs.iter().find(|feature| feature["name"] == input).unwrap();
            let shape = feature["shape"].as_array().cloned().unwrap_or_default();
            shape.iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap()).collect()
        };
        let rows = case["rows"].as_array().unwrap();
        // JSON has no NaN. One answer and one error of each case are enough: the engine's tests have all.
        let answer = rows.iter().find(|row| row[1].is_object() && !has_null(&row[0]));
        let error = rows.iter().find(|row| row[1].is_string());
        for row in answer.into_iter().chain(error) {
            let mut arguments = vec!["predict".into(), model.clone(), "--json".into()];
            for (input, value) in row[0].as_object().unwrap() {
                let value = match value {
                    Value::Array(list) => nested(list, &shape(input)),
                    other => other.clone(),
                };
                let path = files.join(format!("{input}.json"));
                std::fs::write(&path, value.to_string()).unwrap();
                arguments.extend(["--input".into(), format!("{input}={}", path.display())]);
            }
            match (coreml(&arguments), row[1].as_str()) {
                (Err(found), Some(expected)) if found.contains(expected) => predicted += 1,
                (Ok(Value::Object(found)), None) => {
                    predicted += 1;
                    // A tensor comes with its type and shape.
                    let bare = |value: &Value| value.get("data").unwrap_or(value).clone();
                    let found = found.iter().map(|(name, value)| (name.clone(), bare(value))).collect();
                    if !same(&Value::Object(found), &row[1], case["tolerance"].as_f64().unwrap()) {
                        failed.push(format!("{name}: expected {}", row[1]));
                    }
                }
                (found, _) => failed.push(format!("{name}: {found:?}, expected {}", row[1])),
            }
        }
    }
    std::fs::remove_dir_all(&files).unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(predicted >= cases.len(), "{predicted} of {}", cases.len());
}
