//! Compiles the Objective-C shim on Apple targets and links what it needs; elsewhere there is nothing to compile.
//!
//! `COREML_SYS_NO_SHIM=1` skips the compiler, so that the Rust side can be type-checked for an Apple target on a machine
//! without its SDK; such a build does not link.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=COREML_SYS_NO_SHIM");
    println!("cargo:rerun-if-changed=build.rs");
    let apple = env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
    let skipped = env::var("COREML_SYS_NO_SHIM").is_ok_and(|value| !value.is_empty() && value != "0");
    if apple && !skipped {
        compile_shim();
    }
}

/// The shim, against Apple's own frameworks.
fn compile_shim() {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let shim = PathBuf::from(manifest).join("../bridge-objc");
    let (include, source) = (shim.join("include"), shim.join("src"));
    println!("cargo:rerun-if-changed={}", include.display());
    println!("cargo:rerun-if-changed={}", source.display());

    let mut files: Vec<PathBuf> = fs::read_dir(&source)
        .unwrap_or_else(|error| panic!("the shim's sources are not at {}: {error}", source.display()))
        .map(|entry| entry.expect("the shim's folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "m"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no Objective-C source in {}", source.display());

    cc::Build::new()
        .files(files)
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
