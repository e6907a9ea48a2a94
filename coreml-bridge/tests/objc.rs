//! Real models through the whole stack of Apple's platforms, off Apple: Rust, the C table, the Objective-C shim, a work-alike
//! of Core ML, and at its bottom the portable engine, to whose answers these must be equal.
#![cfg(all(feature = "objc", not(target_vendor = "apple")))]

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use coreml_bridge::{
    Bridge, ComputeUnits, Config, CoreMlHandle, Error, Features, NativeError, PredictOptions, Status, Tensor,
};
use coreml_sys::workalike;

/// The modes of the work-alike and its counters are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    workalike::cml_workalike_set_hostile(0);
    guard
}

fn objc() -> Bridge {
    // SAFETY: the engine's table is static, and every call names the same.
    unsafe { workalike::cml_workalike_set_delegate(coreml_portable::bridge()) };
    // SAFETY: the function takes nothing and may be called at any time.
    let table = unsafe { coreml_sys::cml_bridge_coreml() };
    // SAFETY: the shim's table is static and keeps the rules.
    unsafe { Bridge::from_table(table) }.expect("the shim fills its table")
}

fn digits(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(file)
}

/// The first `n` held-out images, as the inputs of a model with one tensor input.
fn images(model: &CoreMlHandle, n: usize) -> Vec<Features> {
    let file = std::fs::read(digits("test_images.npy")).expect("the images are committed");
    let header = usize::from(u16::from_le_bytes([file[8], file[9]]));
    let pixels: Vec<f32> = file[10 + header..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect();
    let input = &model.description().inputs[0].name;
    let image = |pixels: &[f32]| Tensor::from_vec(&[1, 1, 8, 8], pixels.to_vec()).expect("64 pixels");
    pixels
        .chunks_exact(64)
        .take(n)
        .map(|pixels| Features::new().with(input.as_str(), image(pixels)))
        .collect()
}

/// Everything given back, possibly a little later: the work-alike lets go of things on threads of its own.
fn assert_nothing_is_left() {
    let alive = || (workalike::cml_workalike_live_objects(), workalike::cml_test_live_handles());
    for _ in 0..300 {
        if alive() == (0, 0) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(alive(), (0, 0), "objects of the work-alike, handles of the shim");
    assert_eq!(workalike::cml_workalike_faults(), 0);
}

fn assert_equal_answers(file: &str) {
    let config = Config { compute_units: ComputeUnits::CpuOnly, ..Config::default() };
    let (shim, engine) = (objc().load(digits(file), &config), Bridge::portable().load(digits(file), &config));
    let (shim, engine) = (shim.expect("the shim loads it"), engine.expect("the engine loads it"));
    let names = |model: &CoreMlHandle| {
        let mut names: Vec<String> = model
            .description()
            .outputs
            .iter()
            .map(|output| format!("{} {:?}", output.name, output.kind))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&shim), names(&engine));
    for image in images(&engine, 20) {
        let (got, wanted) =
            (shim.predict(&image).expect("answers"), engine.predict(&image).expect("answers"));
        assert_eq!(got.len(), wanted.len());
        for (name, value) in wanted.iter() {
            assert_eq!(got.get(name), Some(value), "{file}: {name}");
        }
    }
}

#[test]
fn real_models_answer_through_objective_c_as_they_do_without() {
    let _alone = alone();
    for file in ["digits.mlpackage", "digits-f32.mlpackage", "digits.mlmodel"] {
        assert_equal_answers(file);
    }
    assert_nothing_is_left();
}

#[test]
fn a_hostile_framework_changes_no_answer() {
    let _alone = alone();
    workalike::cml_workalike_set_late_release_ms(100);
    for modes in [
        workalike::CML_HOSTILE_PADDED,
        workalike::CML_HOSTILE_LATE_RELEASE,
        workalike::CML_HOSTILE_PADDED
            | workalike::CML_HOSTILE_IGNORE_BACKINGS
            | workalike::CML_HOSTILE_LATE_RELEASE,
    ] {
        workalike::cml_workalike_set_hostile(modes);
        assert_equal_answers("digits.mlpackage");
    }
    workalike::cml_workalike_set_hostile(0);
    assert_nothing_is_left();
}

#[test]
fn an_output_backing_holds_the_answer_whether_the_framework_took_it_or_not() {
    let _alone = alone();
    {
        let model = objc().load(digits("digits.mlpackage"), &Config::default()).expect("loads");
        let image = &images(&model, 1)[0];
        let wanted = model.predict(image).expect("answers");
        let (name, tensor) = wanted
            .iter()
            .find_map(|(name, value)| match value {
                coreml_bridge::Value::Tensor(tensor) => Some((name.to_owned(), tensor.clone())),
                _ => None,
            })
            .expect("one output is a tensor");
        for (modes, taken) in [
            (0, true),
            (workalike::CML_HOSTILE_ALIAS_BACKINGS, true),
            (workalike::CML_HOSTILE_IGNORE_BACKINGS, false),
            (workalike::CML_HOSTILE_IGNORE_BACKINGS | workalike::CML_HOSTILE_PADDED, false),
        ] {
            workalike::cml_workalike_set_hostile(modes);
            let backing = Tensor::zeros(tensor.dtype(), tensor.shape()).expect("it fits");
            let options =
                PredictOptions { backings: vec![(name.clone(), backing)], ..PredictOptions::default() };
            let prediction = model.predict_with(image, options).expect("answers");
            assert_eq!(prediction.outputs.tensor(&name).expect("a tensor"), &tensor, "modes {modes:#x}");
            assert_eq!(prediction.backings_used.contains(&name), taken, "modes {modes:#x}");
        }
        workalike::cml_workalike_set_hostile(0);
    }
    assert_nothing_is_left();
}

fn native(error: Error) -> NativeError {
    match error {
        Error::Load { source, .. } | Error::Predict { source, .. } => source,
        other => panic!("not an error of the framework: {other:?}"),
    }
}

#[test]
fn failures_keep_their_chain_and_exceptions_stay_inside() {
    let _alone = alone();
    {
        let bridge = objc();
        let damaged = std::env::temp_dir().join(format!("coreml-objc-{}.mlmodel", std::process::id()));
        std::fs::write(&damaged, b"not a model").expect("can write");
        let error = native(bridge.load(&damaged, &Config::default()).expect_err("it is no model"));
        std::fs::remove_file(&damaged).expect("was written");
        assert_eq!((error.status, error.domain.as_ref()), (Status::Framework, "com.apple.CoreML"));
        let cause = error.source.as_ref().expect("the engine's own error is below");
        assert_ne!(cause.domain.as_ref() as &str, "com.apple.CoreML");

        let model = bridge.load(digits("digits.mlpackage"), &Config::default()).expect("loads");
        let image = &images(&model, 1)[0];
        let wanted = model.predict(image).expect("answers");
        let mut caught = 0;
        for nth in 1.. {
            workalike::cml_workalike_inject(workalike::CML_INJECT_NSEXCEPTION, nth);
            let outcome = model.predict(image);
            let went_off = !workalike::cml_workalike_injected().is_null();
            workalike::cml_workalike_inject(workalike::CML_INJECT_NOTHING, 0);
            if !went_off {
                assert_eq!(outcome.expect("nothing was injected"), wanted);
                break;
            }
            assert!(outcome.is_err(), "exception {nth} was swallowed");
            caught += 1;
        }
        assert!(caught > 10, "only {caught} places");
    }
    assert_nothing_is_left();
}
