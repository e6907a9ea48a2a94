//! Text, integers, dictionaries and sequences cross the portable table in both directions.
#![cfg(not(target_vendor = "apple"))]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::path::Path;

use coreml_bridge::{Bridge, Config, CoreMlHandle, Dictionary, Features, Sequence, Tensor, Value};

fn load(name: &str) -> CoreMlHandle {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../coreml-engine/tests/fixtures/estimators");
    Bridge::portable().load(folder.join(format!("{name}.mlmodel")), &Config::default()).unwrap()
}

fn dictionary<K>(entries: impl IntoIterator<Item = (K, f64)>) -> Value
where
    Dictionary: FromIterator<(K, f64)>,
{
    Value::Dictionary(entries.into_iter().collect())
}

#[test]
fn every_kind_of_feature_crosses_both_ways() {
    let sequence: Sequence = [3_i64, 1 << 60].into_iter().collect();
    let tensor = Tensor::from_vec(&[2], vec![1.0_f32, 2.0]).unwrap();
    let given = Features::new()
        .with("x", tensor.clone())
        .with("s", Value::String("ä".into()))
        .with("q", Value::Sequence(sequence.clone()));
    let made = load("identity").predict(&given).unwrap();
    assert_eq!(made.get("s"), Some(&Value::String("ä".into())));
    assert_eq!(made.get("q"), Some(&Value::Sequence(sequence)));
    assert_eq!(made.tensor("x").unwrap().to_vec::<f32>().unwrap(), tensor.to_vec::<f32>().unwrap());

    let given = Features::new().with("x", dictionary([("a".to_owned(), 0.0), ("c".to_owned(), 4.0)]));
    let made = load("imputer_dictionary").predict(&given).unwrap();
    assert_eq!(made.get("y"), Some(&dictionary([("a".to_owned(), 1.5), ("c".to_owned(), 4.0)])));

    let given = Features::new().with("x", dictionary([(-7_i64, 3.0), (2, 4.0)]));
    let made = load("dict_vectorizer_int64").predict(&given).unwrap();
    assert_eq!(made.tensor("y").unwrap().to_vec::<f64>().unwrap(), [0.0, 3.0, 4.0]);

    let made = load("imputer_int64").predict(&Features::new().with("x", Value::Int64(-1))).unwrap();
    assert_eq!(made.get("y"), Some(&Value::Int64((1 << 60) + 1)));
    let made = load("imputer_int64").predict(&Features::new()).unwrap();
    assert_eq!(made.get("y"), Some(&Value::Int64((1 << 60) + 1)));
}

#[test]
fn an_empty_dictionary_keeps_the_type_of_its_keys() {
    let model = load("one_hot_sparse");
    let made = model.predict(&Features::new().with("x", Value::String("pink".into()))).unwrap();
    let Some(Value::Dictionary(found)) = made.get("y") else { panic!("{made:?}") };
    assert!(found.is_empty());
    assert_eq!(found.key_kind(), coreml_bridge::KeyKind::Int64);
    let made = model.predict(&Features::new().with("x", Value::String("green".into()))).unwrap();
    assert_eq!(made.get("y"), Some(&dictionary([(1_i64, 1.0)])));
}

#[test]
fn a_pipeline_classifies() {
    let model = load("pipeline_classifier");
    let inputs = [("a", 5.1), ("b", 3.5), ("c", 1.4), ("d", 0.2)];
    let given = inputs.iter().fold(Features::new(), |all, (name, x)| all.with(*name, Value::Double(*x)));
    let made = model.predict(&given).unwrap();
    assert_eq!(made.get("label"), Some(&Value::String("setosa".into())));
    let Some(Value::Dictionary(Dictionary::String(p))) = made.get("p") else { panic!("{made:?}") };
    assert!((p.values().sum::<f64>() - 1.0).abs() < 1e-9 && p["setosa"] > 0.9, "{p:?}");
}

#[test]
fn keys_of_the_wrong_type_are_refused() {
    let given = Features::new().with("x", dictionary([(1_i64, 0.0)]));
    let text = load("imputer_dictionary").predict(&given).unwrap_err().to_string();
    assert!(text.contains("`x`") && text.contains("string"), "{text}");
}
