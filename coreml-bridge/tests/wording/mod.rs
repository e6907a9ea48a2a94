//! Programs that must not compile, whatever words a compiler has for it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler whose words the `.stderr` files hold.
const RECORDED_WITH: &str = "1.95.0";

/// Where copies of the programs are, whose words nobody has recorded.
const COPIES: &str = "COMPILE_FAIL_COPIES";

/// No program of `tests/<folder>` compiles; with the compiler of the recorded words, it fails for the recorded reason.
pub(crate) fn refused(folder: &str) {
    let copies = std::env::var_os(COPIES);
    let programs = copies.as_ref().map_or_else(|| Path::new("tests").join(folder), PathBuf::from);
    let found = compiler();
    if found == RECORDED_WITH || copies.is_some() {
        trybuild::TestCases::new().compile_fail(programs.join("*.rs"));
        return;
    }
    // Not captured by the test harness: whoever reads along must know what was not looked at.
    let words = "only that these programs fail to compile is checked: the reasons are recorded with rustc";
    #[allow(clippy::explicit_write, reason = "the test harness captures what `eprintln` writes")]
    writeln!(std::io::stderr(), "{words} {RECORDED_WITH}, this is {found}").unwrap();
    let copies = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(&copies).unwrap();
    for entry in std::fs::read_dir(programs).unwrap() {
        let program = entry.unwrap().path();
        if program.extension() == Some("rs".as_ref()) {
            std::fs::copy(&program, copies.join(program.file_name().unwrap())).unwrap();
        }
    }
    // Words that are written anew cannot differ, and a program that compiles has none. It takes a variable of the environment,
    // and so a process of its own.
    let test = std::thread::current().name().map(str::to_owned).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([test.as_str(), "--exact"]).env(COPIES, copies).env("TRYBUILD", "overwrite");
    assert!(again.status().unwrap().success(), "a program of {folder} compiles");
}

/// Its version, as in `rustc 1.95.0 (59807616e 2026-04-14)`.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().nth(1).unwrap().to_owned()
}
