//! `bridge-objc/examples/predict.c`, built with the C compiler against the libraries of this crate, and run on a real model.
#![cfg(target_os = "linux")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// What `cargo xtask install-c` installs with.
#[path = "../../xtask/src/install_c.rs"]
mod install_c;

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

/// Compiles the example: `how` it finds the headers, and what it is `link`ed with.
fn build_with(name: &str, how: &[String], link: &[String]) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut compiler = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]).args(how);
    compiler.arg(repository().join("bridge-objc/examples/predict.c")).arg("-o").arg(&program).args(link);
    let output = compiler.output().expect("there is a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn build(name: &str, link: &[&str]) -> PathBuf {
    let path = |flag: &str, folder: PathBuf| format!("{flag}{}", folder.display());
    let include = [path("-I", repository().join("bridge-objc/include"))];
    let link =
        [&[path("-L", libraries())], &link.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()[..]];
    build_with(name, &include, &link.concat())
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

/// What pkg-config says of a library that was installed in `prefix`.
fn pkg_config(prefix: &Path, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).args(arguments);
    let output = command.output().expect("there is a pkg-config");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("pkg-config answers in UTF-8");
    said.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn an_installed_library_is_found_by_pkg_config() {
    if Command::new("pkg-config").arg("--version").output().is_err() {
        eprintln!("skipped: there is no pkg-config");
        return;
    }
    let before = Path::new(env!("CARGO_TARGET_TMPDIR")).join("install-before");
    let prefix = before.with_file_name("install-after");
    for folder in [&before, &prefix] {
        let _ = fs::remove_dir_all(folder);
    }
    let version = env!("CARGO_PKG_VERSION");
    let written = install_c::install(&repository(), &libraries(), &before, version).expect("it installs");
    assert_eq!(written.len(), 6, "{written:?}");
    // What is installed may be moved.
    fs::rename(&before, &prefix).expect("the folder moves");
    for name in ["coreml-portable", "coreml-portable-static"] {
        let headers = pkg_config(&prefix, &["--cflags", name]);
        let link = pkg_config(&prefix, &["--libs", name]);
        let program = build_with(&format!("predict-{name}"), &headers, &link);
        assert_eq!(pkg_config(&prefix, &["--modversion", name]), [version]);
        let needed = Command::new("ldd").arg(&program).output().expect("there is an ldd").stdout;
        let shared = String::from_utf8_lossy(&needed).contains("coreml_portable_c");
        assert_eq!(shared, name == "coreml-portable", "the other library was linked");
        predicts(&program);
    }
    let error = install_c::install(&repository(), &prefix.join("no"), &prefix, version).unwrap_err();
    assert!(error.to_string().contains("libcoreml_portable_c.a"), "{error}");
    fs::remove_dir_all(&prefix).expect("it is the test's own");
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
