//! The suite of all bridges, for the portable engine on a real model.
#![cfg(not(target_vendor = "apple"))]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

#[path = "suite/digits.rs"]
mod digits;
mod suite;

use std::{
    cell::RefCell,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use coreml_bridge::{Bridge, Tensor};
use suite::{Subject, mount};

/// The engine's counters are the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    /// Held from `subject` to the end of the test.
    static TURN: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

fn subject() -> Subject {
    TURN.set(Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner)));
    digits::subject(Bridge::portable(), 1e-3, || {
        // Threads of cancelled loads end in their own time.
        let deadline = Instant::now() + Duration::from_secs(30);
        while coreml_portable::live_objects().total() > 0 {
            assert!(Instant::now() < deadline, "{:?}", coreml_portable::live_objects());
            thread::sleep(Duration::from_millis(1));
        }
        TURN.take();
    })
}

mount!(subject);

/// The greatest probability of the first image.
fn first_digit(path: &Path) -> f32 {
    let handle = Bridge::portable().load(path, &coreml_bridge::Config::default()).unwrap();
    let mut features = coreml_bridge::Features::new();
    let image = Tensor::from_vec(&[1, 1, 8, 8], digits::numbers("test_images.npy", 64)).unwrap();
    features.insert("image", coreml_bridge::Value::Tensor(image));
    let outputs = handle.predict(&features).unwrap();
    let Some(coreml_bridge::Value::Tensor(found)) = outputs.get("probabilities") else { panic!("a tensor") };
    found.to_vec::<f32>().unwrap().into_iter().fold(0.0, f32::max)
}

#[test]
fn a_compiled_model_loads_and_takes_the_place_of_an_older_one() {
    let _turn = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = std::env::temp_dir().join(format!("coreml-compile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let expected = digits::numbers("reference_probabilities.npy", 10).into_iter().fold(0.0, f32::max);
    for file in ["digits-f32.mlpackage", "digits.mlmodel"] {
        let name = Path::new(file).with_extension("mlmodelc");
        // The second time it replaces the first.
        for _ in 0..2 {
            let made = Bridge::portable().compile(&digits::path(file), Some(&folder)).unwrap();
            assert_eq!(made, folder.join(&name));
            let program = made.join("model.mil").is_file() && made.join("coremldata.bin").is_file();
            assert_eq!(program, file == "digits-f32.mlpackage");
            assert_eq!(made.join("Manifest.json").is_file(), !program);
            assert_eq!(made.join("weights/weight.bin").is_file(), program);
            assert!(!made.join("model.mlmodel").exists());
            assert!((first_digit(&made) - expected).abs() < 1e-3, "{file}");
        }
        let made = Bridge::portable().compile(&digits::path(file), None).unwrap();
        assert_eq!(made.file_name(), Some(name.as_os_str()));
        assert!((first_digit(&made) - expected).abs() < 1e-3, "{file}");
        std::fs::remove_dir_all(made.parent().unwrap()).unwrap();
    }
    // A file that has a name of the compiled form stays what it is: the model is written as a package.
    let package = folder.join("taken.mlpackage");
    let data = package.join("Data/com.apple.CoreML");
    std::fs::create_dir_all(data.join("weights")).unwrap();
    for file in
        ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"]
    {
        std::fs::copy(digits::path("digits-f32.mlpackage").join(file), package.join(file)).unwrap();
    }
    std::fs::write(data.join("model.mil"), "mine").unwrap();
    let made = Bridge::portable().compile(&package, Some(&folder)).unwrap();
    assert_eq!(std::fs::read_to_string(made.join("Data/com.apple.CoreML/model.mil")).unwrap(), "mine");
    assert!((first_digit(&made) - expected).abs() < 1e-3);
    for path in [&package, &made] {
        std::fs::remove_dir_all(path).unwrap();
    }
    let compiled = folder.join("digits.mlmodelc");
    let error = Bridge::portable().compile(&compiled, Some(&folder)).unwrap_err();
    assert!(format!("{error:#} {error:?}").contains("compiled already"), "{error:?}");
    std::fs::write(folder.join("broken.mlmodel"), b"nonsense").unwrap();
    assert!(Bridge::portable().compile(&folder.join("broken.mlmodel"), Some(&folder)).is_err());
    assert!(
        Bridge::portable().compile(&digits::path("digits.mlmodel"), Some(&folder.join("absent"))).is_err()
    );
    let mut left: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(
        left,
        ["broken.mlmodel", "digits-f32.mlmodelc", "digits.mlmodelc"],
        "nothing half done is left"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
