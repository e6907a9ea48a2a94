//! Running other programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The folder that cargo builds into.
pub(crate) fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Whether a program can be held on one core here.
pub(crate) fn has_taskset() -> bool {
    Command::new("taskset").arg("--version").output().is_ok()
}

/// Cargo in `root`, held on one core if it is to be, for which there must be `taskset`.
pub(crate) fn cargo(root: &Path, on_one_core: bool) -> Command {
    let mut command = Command::new(if on_one_core { "taskset" } else { env!("CARGO") });
    if on_one_core {
        command.args(["--cpu-list", "0", env!("CARGO")]);
    }
    command.current_dir(root);
    command
}

/// Runs a program in `root` and returns what it printed.
pub(crate) fn output(root: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .current_dir(root)
        .args(arguments)
        .output()
        .with_context(|| format!("`{program}` does not start"))?;
    ensure!(
        output.status.success(),
        "`{program} {}` failed:\n{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a program whose output is for whoever watches.
pub(crate) fn visible(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?} does not start"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Runs a program that is only heard of if it fails.
pub(crate) fn quiet(program: impl AsRef<OsStr>, arguments: &[&OsStr], root: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(program.as_ref());
    let output = command
        .current_dir(root)
        .args(arguments)
        .output()
        .with_context(|| format!("{command:?} does not start"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The Python of a virtual environment in `folder` that has what `requirements` lists, or nothing if that has to be brought first.
pub(crate) fn ready_python(folder: &Path, requirements: &Path) -> anyhow::Result<Option<PathBuf>> {
    let wanted = std::fs::read_to_string(requirements)?;
    let ready = std::fs::read_to_string(folder.join(READY)).is_ok_and(|found| found == wanted);
    Ok(ready.then(|| folder.join(PYTHON)))
}

/// Makes such an environment and returns its Python.
pub(crate) fn make_python(root: &Path, folder: &Path, requirements: &Path) -> anyhow::Result<PathBuf> {
    let python = folder.join(PYTHON);
    quiet("python3", &["-m".as_ref(), "venv".as_ref(), folder.as_os_str()], root)?;
    let arguments: [&OsStr; 6] = [
        "-m".as_ref(),
        "pip".as_ref(),
        "install".as_ref(),
        "--quiet".as_ref(),
        "--requirement".as_ref(),
        requirements.as_ref(),
    ];
    quiet(&python, &arguments, root)?;
    // Last, so that an environment that was interrupted is made again.
    std::fs::copy(requirements, folder.join(READY))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    Ok(python)
}

const PYTHON: &str = "bin/python";
/// Holds the requirements that the environment meets.
const READY: &str = ".ready";
