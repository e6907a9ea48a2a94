//! `cargo xtask apple-check`: the Rust side type-checked for Apple's targets, on Debian.
//!
//! The standard library for those targets is not to be had without rustup's servers, so it is checked from source, with a compiler
//! that comes with its source: Debian's `rustc-web`. Its packages are downloaded and unpacked below `target`, not installed, for they
//! conflict with other Rust compilers. What needs Apple's SDK, the C compiler and the linker, is left out: nothing is built.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::run::{output, visible};

const TARGETS: [&str; 2] = ["aarch64-apple-darwin", "aarch64-apple-ios"];
/// Everything up to the client that a Mac or an iPhone would build.
const CRATES: [&str; 6] =
    ["coreml-sys", "coreml-bridge", "coreml-client", "coreml-portable", "coreml-capi", "coreml-testing"];
/// What has places for Apple alone in its tests and examples: these too, with Core ML and the engine side by side.
const WHOLE: [&str; 2] = ["coreml-bridge", "coreml-testing"];
const FEATURES: &str = "coreml-bridge/portable,coreml-testing/portable";
/// The compiler, its source and its library for this machine; [`names`] adds those with a version in their name.
const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "libstd-rust-web-dev"];

/// Downloads what is missing, and checks the crates for every target.
///
/// # Errors
/// When a crate does not check, `apt-get` has no such packages, or there is no nightly cargo.
pub(crate) fn run(root: &Path) -> Result<()> {
    let work = root.join("target/apple-check");
    let compiler = compiler(root, &work)?;
    let whole: &[&str] = &["--tests", "--examples", "--features", FEATURES];
    for (target, (crates, more)) in TARGETS
        .into_iter()
        .flat_map(|target| [(&CRATES[..], &[][..]), (&WHOLE[..], whole)].map(|what| (target, what)))
    {
        println!("apple-check: {target}: {} {}", crates.join(" "), more.join(" "));
        let mut command = Command::new("cargo");
        command.current_dir(root).args([
            "+nightly",
            "check",
            "-Zbuild-std=std,panic_abort",
            "--target",
            target,
        ]);
        for name in crates {
            command.args(["--package", name]);
        }
        command
            .args(more)
            .env("RUSTC", compiler.join("bin/rustc"))
            .env("LD_LIBRARY_PATH", compiler.join("lib/x86_64-linux-gnu"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("COREML_SYS_NO_SHIM", "1")
            .env("CARGO_TARGET_DIR", work.join("build"))
            .env_remove("RUSTUP_TOOLCHAIN");
        visible(&mut command)?;
    }
    Ok(())
}

/// Where the compiler is, unpacked: its `usr`.
fn compiler(root: &Path, work: &Path) -> Result<PathBuf> {
    let compiler = work.join("compiler");
    let done = compiler.join("complete");
    if !done.exists() {
        let packages = work.join("packages");
        for folder in [&packages, &compiler] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder)?;
        }
        let names = names(root)?;
        visible(Command::new("apt-get").current_dir(&packages).arg("download").args(&names))
            .context("Debian 12's packages with a Rust compiler cannot be downloaded")?;
        for package in fs::read_dir(&packages)? {
            visible(Command::new("dpkg-deb").arg("-x").arg(package?.path()).arg(&compiler))?;
        }
        fs::remove_dir_all(&packages)?;
        fs::write(&done, names.join("\n"))?;
    }
    let compiler = compiler.join("usr");
    let source = compiler.join("lib/rustlib/src/rust/library/std/Cargo.toml");
    ensure!(
        source.is_file(),
        "{} is missing: the package with the source looks different now",
        source.display()
    );
    Ok(compiler)
}

/// The packages to download: the versions of Rust and LLVM are in the names of some.
fn names(root: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = PACKAGES.map(str::to_owned).to_vec();
    // What is found may bring more: the compiler its library, and that LLVM.
    for next in 0.. {
        let Some(package) = names.get(next) else { break };
        let depends = output(root, "apt-cache", &["depends", "--no-recommends", "--no-suggests", package])?;
        let found = versioned(&depends).into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>();
        names.extend(found);
    }
    ensure!(
        names.iter().any(|name| name.starts_with("libllvm")),
        "no LLVM among the packages of the compiler: {names:?}"
    );
    Ok(names)
}

/// The packages among `apt-cache depends`' lines whose names carry a version: the compiler's library and LLVM.
fn versioned(depends: &str) -> Vec<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let carries = |name: &&str| {
        ["libstd-rust-web-", "libllvm"].iter().any(|stem| {
            name.strip_prefix(stem).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    names.filter(carries).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::versioned;

    #[test]
    fn only_packages_with_a_version_in_their_name_are_found() {
        let depends = "rustc-web\n  Depends: libc6\n  Depends: libstd-rust-web-dev\n  Depends: libstd-rust-web-1.96\n  \
                       Depends: libllvm22\n  Conflicts: libllvm19\n";
        assert_eq!(versioned(depends), ["libstd-rust-web-1.96", "libllvm22"]);
    }
}
