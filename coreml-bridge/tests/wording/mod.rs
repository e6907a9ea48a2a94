//! Programs that must not compile, whatever words a compiler has for it.

use std::io::Write;
use std::path::Path;
use std::process::Command;

/// The compiler whose words the `.stderr` files hold.
const RECORDED_WITH: &str = "1.95.0";

/// No program of `tests/<folder>` compiles; with the compiler of the recorded words, it fails for the recorded reason.
pub fn refused(folder: &str) {
    let programs = Path::new("tests").join(folder);
    let found = compiler();
    let cases = trybuild::TestCases::new();
    if found == RECORDED_WITH || std::env::var_os("TRYBUILD").is_some() {
        cases.compile_fail(programs.join("*.rs"));
        return;
    }
    // Not captured by the test harness: whoever reads along must know what was not looked at.
    let words = "only that these programs fail to compile is checked: the reasons are recorded with rustc";
    writeln!(std::io::stderr(), "{words} {RECORDED_WITH}, this is {found}").unwrap();
    let copies = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(&copies).unwrap();
    for entry in std::fs::read_dir(programs).unwrap() {
        let program = entry.unwrap().path();
        if program.extension() == Some("rs".as_ref()) {
            std::fs::copy(&program, copies.join(program.file_name().unwrap())).unwrap();
        }
    }
    cases.compile_fail(copies.join("*.rs"));
}

/// Its version, as in `rustc 1.95.0 (59807616e 2026-04-14)`.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().nth(1).unwrap().to_owned()
}
