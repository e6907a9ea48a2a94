//! Compiles the Objective-C shim on Apple platforms. Elsewhere there is nothing to compile.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=COREML_SYS_NO_SHIM");
    let vendor = std::env::var("CARGO_CFG_TARGET_VENDOR").unwrap_or_default();
    // `COREML_SYS_NO_SHIM=1` type-checks the Rust side where there is no Apple SDK.
    if vendor != "apple" || std::env::var_os("COREML_SYS_NO_SHIM").is_some() {
        return;
    }
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bridge-objc");
    println!("cargo::rerun-if-changed={}", shim.display());
    let sources = std::fs::read_dir(shim.join("src")).expect("the shim's sources lie beside this crate");
    let sources = sources.filter_map(|entry| {
        let path = entry.expect("the shim's sources can be listed").path();
        path.extension().is_some_and(|extension| extension == "m").then_some(path)
    });
    cc::Build::new()
        .files(sources)
        .include(shim.join("include"))
        .flag("-fno-objc-arc")
        .flag("-fobjc-exceptions")
        .flag("-fblocks")
        .flag("-Wall")
        .flag("-Wextra")
        .compile("coreml_bridge");
    for framework in ["Foundation", "CoreML", "CoreVideo"] {
        println!("cargo::rustc-link-lib=framework={framework}");
    }
}
