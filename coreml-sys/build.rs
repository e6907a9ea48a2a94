//! Compiles the Objective-C shim on Apple targets and links what it needs; elsewhere there is nothing to compile.
//!
//! With the feature `objc`, off Apple, the same shim is compiled against the Core ML work-alike on GNUstep, for tests; that
//! needs clang and the packages that `bridge-objc/README.md` names.
//!
//! `COREML_SYS_NO_SHIM=1` skips the compiler, so that the Rust side can be type-checked for an Apple target on a machine
//! without its SDK; such a build does not link.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-env-changed=COREML_SYS_NO_SHIM");
    println!("cargo:rerun-if-changed=build.rs");
    let apple = env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
    let skipped = env::var("COREML_SYS_NO_SHIM").is_ok_and(|value| !value.is_empty() && value != "0");
    if apple && !skipped {
        compile_shim();
    } else if !apple && env::var_os("CARGO_FEATURE_OBJC").is_some() {
        compile_shim_on_workalike();
    }
}

/// `bridge-objc`, beside this crate.
fn bridge_objc() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    PathBuf::from(manifest).join("../bridge-objc")
}

/// The Objective-C files of a folder, in the order of their names.
fn objective_c_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("there are no sources at {}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "m"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no Objective-C source in {}", folder.display());
    files
}

/// The shim on GNUstep, with the work-alike in the place of Core ML. Test code.
fn compile_shim_on_workalike() {
    let shim = bridge_objc();
    for folder in ["include", "src", "workalike"] {
        println!("cargo:rerun-if-changed={}", shim.join(folder).display());
    }
    println!("cargo:rerun-if-env-changed=COREML_SYS_CLANG");
    let named = env::var("COREML_SYS_CLANG").ok();
    let clang =
        named.into_iter().chain(["clang", "clang-19", "clang-16", "clang-14"].map(String::from)).find(
            |clang| Command::new(clang).arg("--version").output().is_ok_and(|output| output.status.success()),
        );
    let clang = clang.expect("the feature `objc` needs clang; COREML_SYS_CLANG can name it");

    // Only `objc/` of GCC's headers: its other headers would come before clang's own.
    let output = Command::new("cc").arg("-print-file-name=include").output().expect("cc runs");
    let gcc = PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim());
    let headers = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("gcc");
    fs::create_dir_all(headers.join("objc")).expect("OUT_DIR can be written to");
    let objc =
        fs::read_dir(gcc.join("objc")).expect("GCC's Objective-C headers are installed (libobjc-12-dev)");
    for header in objc {
        let header = header.expect("the folder can be listed");
        fs::copy(header.path(), headers.join("objc").join(header.file_name()))
            .expect("OUT_DIR can be written to");
    }

    let mut build = cc::Build::new();
    build.compiler(clang).warnings(false).files(objective_c_files(&shim.join("src")));
    build.files(objective_c_files(&shim.join("workalike")));
    let flags = fs::read_to_string(shim.join("workalike/flags.txt")).expect("workalike/flags.txt is there");
    for flag in flags.lines().filter(|line| !line.starts_with('#')) {
        match flag.strip_prefix("-I") {
            Some(folder) => build.include(shim.join(folder)),
            None => build.flag(flag),
        };
    }
    build.flag("-isystem").flag(headers.to_str().expect("a path in UTF-8")).compile("coreml_bridge_objc");
    // BlocksRuntime before GNUstep, which exports a `_Block_copy` that does not work.
    for library in ["BlocksRuntime", "gnustep-base", "objc"] {
        println!("cargo:rustc-link-lib={library}");
    }
}

/// The shim, against Apple's own frameworks.
fn compile_shim() {
    let shim = bridge_objc();
    let (include, source) = (shim.join("include"), shim.join("src"));
    println!("cargo:rerun-if-changed={}", include.display());
    println!("cargo:rerun-if-changed={}", source.display());

    cc::Build::new()
        .files(objective_c_files(&source))
        .include(include)
        .include(source)
        .std("gnu11")
        .flag("-fno-objc-arc")
        .flag("-fobjc-exceptions")
        .flag("-fblocks")
        .flag("-Wall")
        .flag("-Wextra")
        .compile("coreml_bridge_objc");
    for framework in ["Foundation", "CoreML", "CoreVideo"] {
        println!("cargo:rustc-link-lib=framework={framework}");
    }
}
