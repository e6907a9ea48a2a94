//! Puts the C library where C programs look for it: libraries, headers, and files for pkg-config, which stay right if the
//! folder moves.
//!
//! Needs the standard library only: the test of `coreml-capi` includes this file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const HEADERS: [&str; 2] = ["bridge-objc/include/coreml_bridge.h", "coreml-capi/include/coreml_portable.h"];
const STATIC: &str = "libcoreml_portable_c.a";
/// What Rust's standard library needs where the static library is linked (`rustc --print native-static-libs`).
const STATIC_NEEDS: &str = if cfg!(target_vendor = "apple") {
    "-framework CoreFoundation -lSystem -liconv -lm"
} else {
    "-lgcc_s -lpthread -ldl -lm"
};

/// The shared library's file.
fn shared() -> String {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    format!("{prefix}coreml_portable_c{suffix}")
}

/// What a file of pkg-config says.
fn pkg_config(name: &str, what: &str, libraries: &str, version: &str) -> String {
    format!(
        "prefix=${{pcfiledir}}/../..\n\
         libdir=${{prefix}}/lib\n\
         includedir=${{prefix}}/include/coreml\n\
         \n\
         Name: {name}\n\
         Description: Runs Core ML models on the CPU, anywhere ({what})\n\
         Version: {version}\n\
         Cflags: -I${{includedir}}\n\
         Libs: {libraries}\n"
    )
}

/// Copies the libraries in `built`, and the headers, to `prefix`, and returns what was written.
pub(crate) fn install(root: &Path, built: &Path, prefix: &Path, version: &str) -> io::Result<Vec<PathBuf>> {
    let libraries = prefix.join("lib");
    let described = libraries.join("pkgconfig");
    let headers = prefix.join("include/coreml");
    fs::create_dir_all(&described)?;
    fs::create_dir_all(&headers)?;
    let mut written = Vec::new();
    let mut copy = |from: PathBuf, folder: &Path| {
        let to = folder.join(from.file_name().unwrap_or_default());
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", from.display()));
        fs::copy(&from, &to).map_err(named)?;
        written.push(to);
        io::Result::Ok(())
    };
    for library in [STATIC, &shared()] {
        copy(built.join(library), &libraries)?;
    }
    for header in HEADERS {
        copy(root.join(header), &headers)?;
    }
    let by_name = "-L${libdir} -lcoreml_portable_c".to_owned();
    let by_path = format!("${{libdir}}/{STATIC} {STATIC_NEEDS}");
    let files = [
        ("coreml-portable", "shared library", by_name),
        ("coreml-portable-static", "static library", by_path),
    ];
    for (name, what, libraries) in files {
        let path = described.join(name).with_extension("pc");
        fs::write(&path, pkg_config(name, what, &libraries, version))?;
        written.push(path);
    }
    Ok(written)
}
