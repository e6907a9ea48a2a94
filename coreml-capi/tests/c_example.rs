//! `bridge-objc/examples/predict.c`, built with the C compiler against the libraries of this crate, and run on a real model.
#![cfg(target_os = "linux")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of the libraries: this test lies in `deps` beside them or below.
fn libraries() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its path");
    let deps = test.parent().expect("a test lies in a folder");
    let folder = deps.ancestors().take(2).find(|folder| folder.join("libcoreml_portable_c.so").is_file());
    folder.unwrap_or_else(|| panic!("no library in or above {}", deps.display())).to_owned()
}

fn build(name: &str, link: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = folder.join(name);
    let include = repository().join("bridge-objc/include");
    let mut compiler = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]).arg(include);
    compiler.arg(repository().join("bridge-objc/examples/predict.c")).arg("-o").arg(&program);
    compiler.arg("-L").arg(libraries()).args(link);
    let output = compiler.output().expect("there is a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn run(program: &Path, arguments: &[&str], numbers: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", libraries())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example starts");
    // It may end without reading them.
    let _ = child.stdin.take().expect("piped").write_all(numbers.as_bytes());
    child.wait_with_output().expect("the example ends")
}

/// The first numbers of a `.npy` file of little-endian float32.
fn numbers(file: &str, count: usize) -> Vec<f32> {
    let bytes =
        fs::read(repository().join("models/digits").join(file)).expect("the model's data is committed");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (numbers, _) = bytes[10 + header..].as_chunks::<4>();
    numbers.iter().take(count).map(|&number| f32::from_le_bytes(number)).collect()
}

fn text(numbers: &[f32]) -> String {
    numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")
}

fn predicts(program: &Path) {
    let model = repository().join("models/digits/digits-f32.mlpackage");
    let model = model.to_str().expect("the repository's path is UTF-8");
    let image = text(&numbers("test_images.npy", 64));

    let output = run(program, &[model, "image", "1", "1", "8", "8"], &image);
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && complaint.is_empty(), "{complaint}");
    let line =
        said.lines().find_map(|line| line.strip_prefix("probabilities:")).expect("the output is named");
    let found: Vec<f32> = line.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    let expected = numbers("reference_probabilities.npy", 10);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
    }

    // What fails is said, and by whom.
    let refusals: [(&[&str], &str); 4] = [
        (&["no/such.mlpackage", "image", "1", "1", "8", "8"], "loading the model failed\n  status 2"),
        (&[model, "picture", "1", "1", "8", "8"], "the prediction failed\n  status 2"),
        (&[model, "image", "64"], "the prediction failed\n  status 10"),
        (&[model, "image", "1", "1", "8", "9"], "72 numbers are needed, but number 65 is missing"),
    ];
    for (arguments, why) in refusals {
        let output = run(program, arguments, &image);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && complaint.contains(why), "{arguments:?}: {complaint}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_c_example_predicts_with_the_shared_library() {
    predicts(&build("predict-shared", &["-lcoreml_portable_c"]));
}

#[test]
fn the_c_example_predicts_with_the_static_library() {
    let link = ["-l:libcoreml_portable_c.a", "-lpthread", "-ldl", "-lm", "-lgcc_s"];
    predicts(&build("predict-static", &link));
}
