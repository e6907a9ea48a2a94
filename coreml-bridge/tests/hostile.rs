//! A bridge that misbehaves: nothing leaks, nothing is used after its release, and every failure is a typed error.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{error::Error as _, sync::Arc, thread, time::Duration};

use coreml_bridge::{
    Bridge, BridgeError, Config, Dictionary, Dtype, Error, Features, Image, PixelFormat, PredictOptions,
    ReshapeFrequency, Sequence, Specialization, Status, Tensor, Value, f16, register_model,
};
use coreml_testing::{Backings, Behaviour, Builder, FakeBridge, Outcome, REFUSAL, messages};

fn vector(numbers: &[f32]) -> Tensor {
    Tensor::from_slice(&[numbers.len()], numbers).unwrap()
}

fn inputs() -> Features {
    Features::new().with("x", vector(&[1.0, 2.0, 3.0]))
}

/// Loads a model of `fake` and runs `test` with it; then everything must be released.
fn with_model(fake: FakeBridge, test: impl FnOnce(&coreml_bridge::CoreMlHandle)) {
    let model = fake.bridge().load("model", &Config::default()).unwrap();
    test(&model);
    drop(model);
    fake.assert_clean();
}

fn predict_error(outcome: Outcome) -> Error {
    let fake = FakeBridge::builder().behave(|behaviour| behaviour.predict = outcome).build();
    let mut error = None;
    with_model(fake, |model| error = model.predict(&inputs()).err());
    error.expect("the prediction fails")
}

fn load_error(change: impl FnOnce(&mut Behaviour)) -> Error {
    let fake = FakeBridge::builder().behave(change).build();
    let error = fake.bridge().load("the/path", &Config::default()).map(|_| ()).unwrap_err();
    fake.assert_clean();
    error
}

#[test]
fn an_error_keeps_its_whole_chain_four_deep() {
    for error in [load_error(|behaviour| behaviour.load = Outcome::Refuse), predict_error(Outcome::Refuse)] {
        let messages = messages(&error);
        assert_eq!(messages.len(), 1 + REFUSAL.len(), "{messages:#?}");
        for (message, (refusal, code)) in messages[1..].iter().zip(REFUSAL.iter().zip(1..)) {
            assert!(message.starts_with(refusal), "{message}");
            assert!(message.contains(&format!("coreml.fake {code}")), "{message}");
        }
        assert!(messages[4].contains("it is the deepest"), "the reason is kept: {}", messages[4]);
        let native = error.native().unwrap();
        assert_eq!((native.status, native.code, &*native.domain), (Status::Framework, 1, "coreml.fake"));
        assert!(native.source().is_some());
    }
}

#[test]
fn a_failed_load_names_its_path() {
    let error = load_error(|behaviour| behaviour.load = Outcome::Refuse);
    assert!(matches!(&error, Error::Load { path, .. } if &**path == "the/path"), "{error:?}");
}

#[test]
fn a_failure_without_an_error_is_still_an_error() {
    let error = predict_error(Outcome::RefuseWithoutError);
    let Error::Predict { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.status, Status::Framework);
    assert!(!source.message.is_empty() && source.source.is_none());
}

#[test]
fn a_panic_inside_the_bridge_costs_one_prediction() {
    let fake = FakeBridge::new();
    fake.plan_predictions(|call| if call == 0 { Outcome::Panic } else { Outcome::Normal });
    with_model(fake, |model| {
        let error = model.predict(&inputs()).unwrap_err();
        assert_eq!(error.status(), Some(Status::ForeignException), "{error:?}");
        let outputs = model.predict(&inputs()).unwrap();
        assert_eq!(outputs.tensor("y").unwrap(), &vector(&[2.0, 4.0, 6.0]));
    });
}

#[test]
fn busy_and_unsupported_have_errors_of_their_own() {
    assert!(matches!(predict_error(Outcome::Busy), Error::Busy { .. }));
    assert!(matches!(predict_error(Outcome::Unsupported), Error::Unsupported { .. }));
    assert!(matches!(
        load_error(|behaviour| behaviour.load = Outcome::Unsupported),
        Error::Unsupported { .. }
    ));
}

#[test]
fn success_that_makes_nothing_is_a_broken_contract() {
    let slot = |error| match error {
        Error::Contract { slot, .. } => slot,
        other => panic!("{other:?}"),
    };
    assert_eq!(slot(predict_error(Outcome::SucceedWithNothing)), "model_predict");
    assert_eq!(slot(load_error(|behaviour| behaviour.load = Outcome::SucceedWithNothing)), "model_load");
    assert_eq!(
        slot(load_error(|behaviour| behaviour.describe = Outcome::SucceedWithNothing)),
        "model_describe"
    );
}

#[test]
fn a_model_that_cannot_be_described_is_released() {
    let error = load_error(|behaviour| behaviour.describe = Outcome::Refuse);
    assert!(matches!(&error, Error::Describe { .. }), "{error:?}");

    let fake = FakeBridge::builder().description("{ \"inputs\": 7 }").build();
    let error = fake.bridge().load("model", &Config::default()).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Description { subject, .. } if &**subject == "model"), "{error:?}");
    assert!(error.source().is_some());
    fake.assert_clean();
}

#[test]
fn memory_that_the_bridge_refuses_to_take_is_given_back() {
    for outcome in [Outcome::Refuse, Outcome::RefuseWithoutError, Outcome::Panic, Outcome::Unsupported] {
        let fake = FakeBridge::builder().behave(|behaviour| behaviour.make_value = outcome).build();
        with_model(fake, |model| {
            let x = vector(&[1.0]);
            let error = model.predict(&Features::new().with("x", x.clone())).unwrap_err();
            assert!(
                matches!(&error, Error::Value { feature, .. } if &**feature == "x")
                    || matches!(&error, Error::Unsupported { .. }),
                "{error:?}"
            );
            assert_eq!(x.shared_by(), 1, "{outcome:?}");
        });
    }
}

#[test]
fn an_output_that_cannot_be_read_is_named_and_everything_is_released() {
    let fake = FakeBridge::builder().behave(|behaviour| behaviour.read = Outcome::Refuse).build();
    with_model(fake, |model| {
        let error = model.predict(&inputs()).unwrap_err();
        assert!(matches!(&error, Error::Value { feature, .. } if &**feature == "y"), "{error:?}");
    });
}

#[test]
fn an_input_kept_after_the_return_is_not_freed_under_the_bridge() {
    let fake =
        FakeBridge::builder().behave(|behaviour| behaviour.keep_inputs = Duration::from_millis(200)).build();
    with_model(fake, |model| {
        let mut x = vector(&[1.0, 2.0]);
        model.predict(&Features::new().with("x", x.clone())).unwrap();
        assert_eq!(x.shared_by(), 2, "the bridge still holds the memory");
        // Writing must not write what the bridge still reads: it copies first.
        let address = x.as_slice::<f32>().unwrap().as_ptr();
        x.make_mut::<f32>().unwrap()[0] = 9.0;
        assert_ne!(x.as_slice::<f32>().unwrap().as_ptr(), address);
        assert_eq!(x.shared_by(), 1);
    });
    assert_eq!(fake.counts().wraps, 1);
}

#[test]
fn an_input_kept_by_the_bridge_outlives_its_tensor_and_its_model_and_comes_back_from_another_thread() {
    let fake =
        FakeBridge::builder().behave(|behaviour| behaviour.keep_inputs = Duration::from_millis(100)).build();
    let x = vector(&[1.0, 2.0]);
    let kept = x.clone();
    thread::spawn(move || {
        let model = fake.bridge().load("model", &Config::default()).unwrap();
        model.predict(&Features::new().with("x", x)).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!((kept.shared_by(), fake.counts().live_models), (2, 0));
    fake.assert_clean();
    assert_eq!(kept.shared_by(), 1);
}

#[test]
fn inputs_are_not_copied() {
    let fake = FakeBridge::new();
    with_model(fake, |model| {
        let x = vector(&[1.0, 2.0]);
        model.predict(&Features::new().with("x", x.clone())).unwrap();
        assert_eq!(fake.input_addresses(), [x.as_slice::<f32>().unwrap().as_ptr().addr()]);
    });
}

#[test]
fn padded_rows_are_read_by_their_strides() {
    for dtype in Dtype::ALL {
        let json = format!(
            r#"{{ "inputs": [{{ "name": "x", "kind": "tensor", "tensor": {{ "dtype": "{dtype}", "shape": [] }} }}],
                  "outputs": [{{ "name": "y", "kind": "tensor", "tensor": {{ "dtype": "{dtype}", "shape": [] }} }}] }}"#
        );
        let fake = FakeBridge::builder()
            .description(json)
            .compute(|inputs| Ok(Features::new().with("y", inputs.get("x").cloned().ok_or("no x")?)))
            .behave(|behaviour| behaviour.row_alignment = 64)
            .build();
        with_model(fake, |model| {
            for shape in [&[2, 3, 5][..], &[7, 1], &[4], &[], &[3, 0], &[1, 1, 17]] {
                let count = shape.iter().product();
                let numbers: Vec<f32> = (0..count).map(|n: usize| n as f32 - 3.0).collect();
                let x = Tensor::from_vec(shape, numbers).unwrap().cast(dtype);
                let outputs = model.predict(&Features::new().with("x", x.clone())).unwrap();
                assert_eq!(outputs.tensor("y").unwrap(), &x, "{dtype} {shape:?}");
            }
        });
    }
}

fn predict_into(fake: FakeBridge, backing: Tensor) -> (Tensor, bool) {
    let mut answer = None;
    with_model(fake, |model| {
        let backings = vec![("y".to_owned(), backing)];
        let prediction =
            model.predict_with(&inputs(), PredictOptions { backings, ..PredictOptions::default() }).unwrap();
        let used = prediction.backings_used == ["y"];
        answer = Some((prediction.outputs.tensor("y").unwrap().clone(), used));
    });
    answer.unwrap()
}

fn backed(backings: Backings) -> FakeBridge {
    FakeBridge::builder().behave(|behaviour| behaviour.backings = backings).build()
}

#[test]
fn a_backing_that_is_used_is_the_output() {
    let backing = vector(&[0.0; 3]);
    let address = backing.as_slice::<f32>().unwrap().as_ptr();
    let (output, used) = predict_into(backed(Backings::Use), backing);
    assert!(used);
    assert_eq!(output, vector(&[2.0, 4.0, 6.0]));
    assert_eq!((output.as_slice::<f32>().unwrap().as_ptr(), output.shared_by()), (address, 1));
}

#[test]
fn a_backing_that_is_ignored_is_reported_and_filled_by_a_copy() {
    let backing = vector(&[0.0; 3]);
    let address = backing.as_slice::<f32>().unwrap().as_ptr();
    let (output, used) = predict_into(backed(Backings::Ignore), backing);
    assert!(!used);
    assert_eq!(output, vector(&[2.0, 4.0, 6.0]));
    assert_eq!(output.as_slice::<f32>().unwrap().as_ptr(), address, "its memory serves all the same");
}

#[test]
fn a_bridge_that_claims_to_have_used_a_backing_is_not_believed() {
    let (output, used) = predict_into(backed(Backings::Lie), vector(&[0.0; 3]));
    assert!(!used);
    assert_eq!(output, vector(&[2.0, 4.0, 6.0]));
}

#[test]
fn a_backing_can_be_used_again_and_again() {
    let fake = backed(Backings::Use);
    with_model(fake, |model| {
        let mut backing = vector(&[0.0; 3]);
        let address = backing.as_slice::<f32>().unwrap().as_ptr();
        for _ in 0..5 {
            let backings = vec![("y".to_owned(), backing)];
            let options = PredictOptions { backings, ..PredictOptions::default() };
            let mut outputs = model.predict_with(&inputs(), options).unwrap().outputs;
            let Some(Value::Tensor(output)) = outputs.remove("y") else { panic!("no tensor") };
            assert_eq!(output, vector(&[2.0, 4.0, 6.0]));
            backing = output;
            assert_eq!(backing.as_slice::<f32>().unwrap().as_ptr(), address);
        }
    });
}

#[test]
fn a_backing_survives_a_prediction_that_fails() {
    let fake = backed(Backings::Use);
    fake.plan_predictions(|_| Outcome::Panic);
    with_model(fake, |model| {
        let backings = vec![("y".to_owned(), vector(&[0.0; 3]))];
        let options = PredictOptions { backings, ..PredictOptions::default() };
        assert!(model.predict_with(&inputs(), options).is_err());
    });
}

/// Every kind of value in, and the same out.
fn echo() -> Builder {
    let feature = |name: &str, kind: &str, member: &str| {
        format!(r#"{{ "name": "{name}", "optional": true, "kind": "{kind}"{member} }}"#)
    };
    let features = [
        feature("tensor", "tensor", r#", "tensor": { "dtype": "float16", "shape": [2] }"#),
        feature("colour", "image", r#", "image": { "width": 3, "height": 2, "color": "bgr" }"#),
        feature("gray", "image", r#", "image": { "width": 3, "height": 2, "color": "gray" }"#),
        feature("half", "image", r#", "image": { "width": 3, "height": 2, "color": "gray_float16" }"#),
        feature("int64", "int64", ""),
        feature("double", "double", ""),
        feature("string", "string", ""),
        feature("by_number", "dictionary", r#", "dictionary": { "key": "int64" }"#),
        feature("by_name", "dictionary", r#", "dictionary": { "key": "string" }"#),
        feature("numbers", "sequence", r#", "sequence": { "element": "int64", "count": [0] }"#),
        feature("words", "sequence", r#", "sequence": { "element": "string", "count": [0, 4] }"#),
    ]
    .join(",");
    FakeBridge::builder()
        .description(format!(r#"{{ "inputs": [{features}], "outputs": [{features}] }}"#))
        .compute(|inputs| Ok(inputs.clone()))
}

#[test]
fn every_kind_of_value_crosses_there_and_back() {
    let halves = [0.0, 0.25, 0.5, 0.75, 1.0, -1.0].map(f16::from_f32);
    let values = Features::new()
        .with("tensor", Tensor::from_vec(&[2], vec![f16::from_f32(1.5), f16::INFINITY]).unwrap())
        .with("colour", Image::from_rgb(3, 2, &(0..18).collect::<Vec<u8>>()).unwrap())
        .with("gray", Image::from_gray(3, 2, vec![1, 2, 3, 4, 5, 6]).unwrap())
        .with("half", Image::from_gray16f(3, 2, &halves).unwrap())
        .with("int64", i64::MIN)
        .with("double", -0.5)
        .with("string", "Grüße, 世界\0!")
        .with("by_number", [(3, 0.25), (-7, 0.75)].into_iter().collect::<Dictionary>())
        .with("by_name", [("Hund".to_owned(), 1.0), (String::new(), 0.0)].into_iter().collect::<Dictionary>())
        .with("numbers", [3_i64, 1, 2].into_iter().collect::<Sequence>())
        .with("words", ["a", "", "世界"].map(str::to_owned).into_iter().collect::<Sequence>());
    for alignment in [0, 64] {
        let fake = echo().behave(|behaviour| behaviour.row_alignment = alignment).build();
        with_model(fake, |model| assert_eq!(model.predict(&values).unwrap(), values));
    }
}

#[test]
fn empty_collections_and_texts_cross() {
    let values = Features::new()
        .with("string", "")
        .with("by_name", Vec::<(String, f64)>::new().into_iter().collect::<Dictionary>())
        .with("numbers", Vec::<i64>::new().into_iter().collect::<Sequence>());
    with_model(echo().build(), |model| assert_eq!(model.predict(&values).unwrap(), values));
}

#[test]
fn values_that_do_not_suit_are_refused_by_name_before_they_cross() {
    let fake = echo().build();
    let before = fake.counts().wraps;
    with_model(fake, |model| {
        let refused = |name: &'static str, value: Value| {
            model.predict(&Features::new().with(name, value)).expect_err("it does not suit")
        };
        let gray = Image::from_gray(3, 2, vec![0; 6]).unwrap();
        assert!(matches!(
            refused("colour", gray.into()),
            Error::WrongPixelFormat { expected: PixelFormat::Bgra8, found: PixelFormat::Gray8, .. }
        ));
        let turned = Image::from_gray(2, 3, vec![0; 6]).unwrap();
        let error = refused("gray", turned.into());
        assert!(matches!(&error, Error::WrongShape { found, .. } if found == &[3, 2]), "{error:?}");
        let by_name: Dictionary = [("a".to_owned(), 1.0)].into_iter().collect();
        assert!(matches!(refused("by_number", by_name.into()), Error::WrongKey { .. }));
        let words: Sequence = (0..5).map(|n| n.to_string()).collect();
        let error = refused("words", words.into());
        assert!(matches!(&error, Error::WrongCount { found: 5, .. }), "{error:?}");
        let error = refused("tensor", Tensor::zeros(Dtype::Float16, &[3]).unwrap().into());
        let text = error.to_string();
        assert!(
            text.contains("tensor") && text.contains("model") && text.contains("[2]") && text.contains("[3]")
        );
        assert_eq!(fake.counts().predictions, 0);
    });
    assert_eq!(fake.counts().wraps, before);
}

fn accumulator() -> Builder {
    let tensor = |name: &str| {
        format!(
            r#"{{ "name": "{name}", "kind": "tensor", "tensor": {{ "dtype": "float32", "shape": [2, 3] }} }}"#
        )
    };
    FakeBridge::builder()
        .description(format!(
            r#"{{ "inputs": [{}], "outputs": [{}], "states": [{}] }}"#,
            tensor("x"),
            tensor("sum"),
            tensor("memory")
        ))
        .compute_with_states(|inputs, states| {
            let add = || -> Result<Tensor, Box<dyn std::error::Error>> {
                let (x, memory) = (inputs.tensor("x")?, states.tensor("memory")?);
                let sum = x.iter::<f32>()?.zip(memory.iter::<f32>()?).map(|(x, memory)| x + memory);
                Ok(Tensor::from_vec(x.shape(), sum.collect())?)
            };
            let sum = add().map_err(|error| error.to_string())?;
            states.insert("memory", sum.clone());
            Ok(Features::new().with("sum", sum))
        })
}

fn filled(number: f32) -> Tensor {
    Tensor::from_vec(&[2, 3], vec![number; 6]).unwrap()
}

#[test]
fn a_state_remembers_forks_and_is_read_and_written_by_its_strides() {
    for alignment in [0, 64] {
        let fake = accumulator().behave(|behaviour| behaviour.row_alignment = alignment).build();
        with_model(fake, |model| {
            let x = Features::new().with("x", filled(1.0));
            let step = |state: &mut coreml_bridge::State| {
                let options = PredictOptions { state: Some(state), ..PredictOptions::default() };
                model.predict_with(&x, options).unwrap().outputs.tensor("sum").unwrap().clone()
            };
            let mut state = model.new_state().unwrap();
            assert_eq!(state.read("memory").unwrap(), filled(0.0));
            assert_eq!((step(&mut state), step(&mut state)), (filled(1.0), filled(2.0)));

            let mut fork = state.fork().unwrap();
            let ramp = Tensor::from_vec(&[2, 3], vec![0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
            fork.write("memory", &ramp.permute(&[1, 0]).unwrap().to_dense().permute(&[1, 0]).unwrap())
                .unwrap();
            assert_eq!(fork.read("memory").unwrap(), ramp);
            assert_eq!(step(&mut state), filled(3.0), "the fork is another memory");

            assert!(matches!(state.read("nothing"), Err(Error::UnknownFeature { .. })));
            assert!(matches!(state.write("memory", &vector(&[1.0])), Err(Error::WrongShape { .. })));
        });
    }
}

#[test]
fn a_state_keeps_its_model_alive_and_serves_no_other() {
    let fake = accumulator().build();
    let first = fake.bridge().load("first", &Config::default()).unwrap();
    let second = fake.bridge().load("second", &Config::default()).unwrap();
    let mut state = first.new_state().unwrap();
    let options = PredictOptions { state: Some(&mut state), ..PredictOptions::default() };
    let error = second.predict_with(&Features::new().with("x", filled(1.0)), options).unwrap_err();
    let Error::ForeignState { model, owner } = &error else { panic!("{error:?}") };
    assert_eq!((&**model, &**owner), ("second", "first"));
    drop((first, second));
    assert_eq!(fake.counts().live_models, 1, "the state's model");
    assert_eq!(state.read("memory").unwrap(), filled(0.0));
    drop(state);
    fake.assert_clean();
}

#[test]
fn an_old_system_knows_no_states_no_functions_and_no_int8() {
    let fake = accumulator().behave(|behaviour| behaviour.old_system = true).build();
    with_model(fake, |model| assert!(matches!(model.new_state(), Err(Error::Unsupported { .. }))));
    let config = Config { function: Some("decode".to_owned()), ..Config::default() };
    assert!(matches!(fake.bridge().load("model", &config), Err(Error::Unsupported { .. })));
    assert!(!fake.bridge().info().unwrap().dtypes.contains(&Dtype::Int8));
    assert!(matches!(fake.bridge().structure("model"), Err(Error::Unsupported { .. })));
    let plan = fake.bridge().compute_plan("model", &Config::default());
    assert!(matches!(plan, Err(Error::Unsupported { .. })));
}

#[test]
fn a_structure_that_fails_or_is_none_is_an_error() {
    for (outcome, part) in [
        (Outcome::Refuse, REFUSAL[0]),
        (Outcome::RefuseWithoutError, "no details"),
        (Outcome::Panic, "the test said so"),
        (Outcome::SucceedWithNothing, "made nothing"),
    ] {
        let fake = accumulator().behave(|behaviour| behaviour.structure = outcome).build();
        for answer in
            [fake.bridge().structure("model"), fake.bridge().compute_plan("model", &Config::default())]
        {
            let said = format!("{:?}", answer.unwrap_err());
            assert!(said.contains(part), "{outcome:?}: {said}");
        }
        fake.assert_clean();
    }
}

#[test]
fn tables_that_are_not_whole_are_refused() {
    let refused = |change: fn(&mut coreml_sys::CmlBridge)| {
        let fake = FakeBridge::builder().table(change).build();
        // SAFETY: the table is never freed; what is wrong with it is found before it is used.
        unsafe { Bridge::from_table(fake.table()) }.unwrap_err()
    };
    assert_eq!(refused(|table| table.abi_version = 2), BridgeError::Version { expected: 1, found: 2 });
    assert!(matches!(refused(|table| table.struct_size -= 8), BridgeError::Size { .. }));
    assert_eq!(refused(|table| table.model_predict = None), BridgeError::Slot { slot: "model_predict" });
    assert_eq!(refused(|table| table.state_release = None), BridgeError::Slot { slot: "state_release" });
}

#[test]
fn a_longer_table_of_the_same_version_is_taken() {
    let fake = FakeBridge::builder().table(|table| table.struct_size += 64).build();
    assert_eq!(fake.bridge().info().unwrap().name, "fake");
}

#[test]
fn bridges_are_told_apart_and_live_side_by_side() {
    let triple = FakeBridge::builder()
        .compute(|inputs| {
            let x = inputs.tensor("x").map_err(|error| error.to_string())?;
            let tripled = x.iter::<f32>().map_err(|error| error.to_string())?.map(|x| 3.0 * x).collect();
            Tensor::from_vec(x.shape(), tripled)
                .map(|y| Features::new().with("y", y))
                .map_err(|error| error.to_string())
        })
        .build();
    let double = FakeBridge::new();
    assert_ne!(double.bridge(), triple.bridge());
    assert_eq!(double.bridge(), double.bridge());
    let load = |fake: FakeBridge| fake.bridge().load("model", &Config::default()).unwrap();
    let (twice, thrice) = (load(double), load(triple));
    assert_eq!(twice.predict(&inputs()).unwrap().tensor("y").unwrap(), &vector(&[2.0, 4.0, 6.0]));
    assert_eq!(thrice.predict(&inputs()).unwrap().tensor("y").unwrap(), &vector(&[3.0, 6.0, 9.0]));
    assert_eq!(thrice.bridge(), triple.bridge());
    drop((twice, thrice));
    double.assert_clean();
    triple.assert_clean();
}

#[test]
fn a_thread_that_ends_releases_its_models_on_that_thread() {
    let fake = FakeBridge::new();
    thread::spawn(move || {
        for _ in 0..3 {
            let handle = fake.bridge().load("model", &Config::default()).unwrap();
            let clone = handle.clone();
            register_model(handle);
            drop(clone);
        }
        assert_eq!(fake.counts().live_models, 3);
    })
    .join()
    .unwrap();
    // `assert_clean` also shows that no call came from another thread.
    fake.assert_clean();
}

#[test]
fn a_thread_that_panics_releases_its_models_too() {
    let fake = FakeBridge::new();
    let panicked = thread::spawn(move || {
        register_model(fake.bridge().load("model", &Config::default()).unwrap());
        panic!("the test says so");
    })
    .join();
    assert!(panicked.is_err());
    fake.assert_clean();
}

#[test]
fn clones_of_a_handle_are_one_model_released_with_the_last() {
    let fake = FakeBridge::new();
    let first = fake.bridge().load("model", &Config::default()).unwrap();
    let second = first.clone();
    assert!(std::ptr::eq(first.description(), second.description()));
    drop(first);
    assert_eq!(fake.counts().live_models, 1);
    drop(second);
    assert_eq!((fake.counts().live_models, fake.counts().loads), (0, 1));
    fake.assert_clean();
}

#[test]
fn compiling_answers_with_the_path_of_the_result() {
    let fake =
        FakeBridge::builder().describe(|path| path.ends_with(".mlmodel").then(|| "{}".to_owned())).build();
    let compile = |path: &str| fake.bridge().compile(path.as_ref(), Some("folder".as_ref()));
    assert_eq!(compile("a.mlmodel").unwrap().to_str(), Some("folder/compiled.mlmodelc"));
    let error = compile("a.txt").unwrap_err();
    assert!(matches!(&error, Error::Compile { path, .. } if &**path == "a.txt"), "{error:?}");
    assert_eq!(error.status(), Some(Status::NotFound));
    fake.assert_clean();
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;

    let path = std::ffi::OsStr::from_bytes(b"model-\xFF");
    let error = FakeBridge::new().bridge().load(path, &Config::default()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Path { .. }));
}

#[test]
fn the_configuration_crosses_whole() {
    use std::{
        num::{NonZeroU32, NonZeroU64},
        sync::Mutex,
    };

    use coreml_bridge::ComputeUnits;
    use coreml_sys::{CmlBridge, CmlConfig, CmlError, CmlModel, CmlStatus, CmlStr};

    static SEEN: Mutex<Option<(u32, i32, u32, u32, String, String, [i32; 2])>> = Mutex::new(None);

    unsafe extern "C" fn model_load(
        _: *mut std::ffi::c_void,
        _: CmlStr,
        config: *const CmlConfig,
        _: *mut *mut CmlModel,
        _: *mut *mut CmlError,
    ) -> CmlStatus {
        // SAFETY: the configuration is alive during the call.
        let config = unsafe { &*config };
        let text = |string: CmlStr| {
            // SAFETY: and so are its strings.
            String::from_utf8_lossy(unsafe { string.as_bytes() }).into_owned()
        };
        let CmlConfig { size, compute_units, flags, threads, function_name, display_name, .. } = *config;
        let hints = [config.reshape_frequency, config.specialization];
        assert_eq!(config.preferred_device, u64::MAX);
        let seen = (size, compute_units, flags, threads, text(function_name), text(display_name), hints);
        *SEEN.lock().unwrap() = Some(seen);
        coreml_sys::CML_UNSUPPORTED
    }

    let fake =
        FakeBridge::builder().table(|table: &mut CmlBridge| table.model_load = Some(model_load)).build();
    let config = Config {
        compute_units: ComputeUnits::CpuAndNeuralEngine,
        function: Some("decode".to_owned()),
        threads: NonZeroU32::new(3),
        low_precision_accumulation: true,
        display_name: Some("Größe".to_owned()),
        reshape_frequency: ReshapeFrequency::Infrequent,
        specialization: Specialization::FastPrediction,
        preferred_device: NonZeroU64::new(u64::MAX),
    };
    assert!(fake.bridge().load("model", &config).is_err());
    let size = size_of::<CmlConfig>() as u32;
    let expected = (size, 3, 1, 3, "decode".to_owned(), "Größe".to_owned(), [1, 1]);
    assert_eq!(SEEN.lock().unwrap().take(), Some(expected));
}

#[test]
fn errors_travel_between_threads_and_can_be_shared() {
    let error = Arc::new(predict_error(Outcome::Refuse));
    let there = Arc::clone(&error);
    let text = thread::spawn(move || messages(&*there).join(": ")).join().unwrap();
    assert_eq!(text, messages(&*error).join(": "));
}

#[test]
fn a_prediction_is_cancelled_while_it_runs_and_the_model_is_taken_until_its_end() {
    let fake = FakeBridge::new();
    with_model(fake, |model| {
        fake.predict_gate().close();
        let pending = model.predict_async(&inputs(), PredictOptions::default()).unwrap();
        fake.predict_gate().await_waiting(1);
        let error = model.predict(&inputs()).unwrap_err();
        assert!(matches!(&error, Error::Busy { .. }), "{error:?}");
        let error = model.predict_async(&inputs(), PredictOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::Busy { .. }), "{error:?}");
        pending.cancel();
        assert!(!pending.has_ended(), "the inputs are still in use");
        fake.predict_gate().open();
        let error = pending.wait().unwrap_err();
        let Error::Predict { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.status, Status::Cancelled);
        assert_eq!(model.predict(&inputs()).unwrap().len(), 1);
    });
}

#[test]
fn a_load_that_does_not_end_is_cancelled_at_once() {
    let fake = FakeBridge::new();
    fake.load_gate().close();
    let pending = fake.bridge().load_async("model", &Config::default()).unwrap();
    let dropped = fake.bridge().load_async("model", &Config::default()).unwrap();
    fake.load_gate().await_waiting(2);
    assert!(!pending.has_ended());
    pending.cancel();
    assert!(pending.has_ended());
    drop(dropped);
    let error = pending.wait().map(|_| ()).unwrap_err();
    let Error::Load { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.status, Status::Cancelled);
    fake.load_gate().open();
    fake.assert_clean();
}

#[test]
fn failures_of_an_asynchronous_call_arrive_whole() {
    let wait = |outcome| {
        let fake = FakeBridge::builder().behave(|behaviour| behaviour.predict = outcome).build();
        let mut error = None;
        with_model(fake, |model| {
            error = model.predict_async(&inputs(), PredictOptions::default()).unwrap().wait().err();
        });
        error.expect("the prediction fails")
    };
    assert_eq!(messages(&wait(Outcome::Refuse)).len(), 1 + REFUSAL.len());
    let silent = wait(Outcome::RefuseWithoutError);
    assert!(
        matches!(&silent, Error::Predict { source, .. } if source.status == Status::Framework),
        "{silent:?}"
    );
    let panicked = wait(Outcome::Panic);
    assert!(messages(&panicked).concat().contains("the test said so"), "{panicked:?}");
    let nothing = wait(Outcome::SucceedWithNothing);
    assert!(matches!(&nothing, Error::Contract { slot: "model_predict_async", .. }), "{nothing:?}");

    let fake = FakeBridge::builder().behave(|behaviour| behaviour.old_system = true).build();
    with_model(fake, |model| {
        let error = model.predict_async(&inputs(), PredictOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { .. }), "{error:?}");
    });
}

#[test]
fn a_waker_that_panics_does_not_unwind_into_the_bridge() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker of somebody else's");
        }
    }

    let fake = FakeBridge::new();
    with_model(fake, |model| {
        fake.predict_gate().close();
        let mut pending = model.predict_async(&inputs(), PredictOptions::default()).unwrap();
        let waker = Arc::new(Panics).into();
        let mut context = std::task::Context::from_waker(&waker);
        assert!(std::pin::Pin::new(&mut pending).as_mut().poll(&mut context).is_pending());
        fake.predict_gate().open();
        assert_eq!(pending.wait().unwrap().outputs.len(), 1);
    });
}
