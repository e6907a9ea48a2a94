//! Holds Core ML (or, off Apple and with the feature `objc`, the Objective-C shim on its work-alike) against the portable
//! engine, on every model of the repository. `cargo xtask differential` runs it, and `cargo xtask shim` on what is committed
//! (`--committed`); another argument chooses models by their path.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use coreml_bridge::Bridge;
use coreml_testing::differential::{Verdict, compare};

/// Where models are committed; below them, all that there are.
const COMMITTED: [&str; 4] =
    ["models/digits", "models/handbook", "models/judge", "coreml-engine/tests/fixtures"];
/// Where `cargo xtask models` brings others, whose predictions take longer.
const BROUGHT: &str = "models/cache";
/// Models whose answers are chance: no document says which numbers come.
const CHANCE: &str = "random";

fn subject() -> Result<Bridge, String> {
    #[cfg(target_vendor = "apple")]
    {
        Ok(Bridge::coreml())
    }
    #[cfg(all(feature = "objc", not(target_vendor = "apple")))]
    {
        // SAFETY: the engine's table is static, and every call names the same.
        unsafe { coreml_sys::workalike::cml_workalike_set_delegate(coreml_portable::bridge()) };
        // SAFETY: the function takes nothing and may be called at any time.
        let table = unsafe { coreml_sys::cml_bridge_coreml() };
        // SAFETY: the shim's table is static and keeps the rules.
        unsafe { Bridge::from_table(table) }.map_err(|error| error.to_string())
    }
    #[cfg(not(any(feature = "objc", target_vendor = "apple")))]
    Err("there is no Core ML here; `--workalike` compares the shim on its work-alike".to_owned())
}

/// Every model below a folder, compiled ones not: Apple's compiler made none of them.
fn models(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("mlmodel" | "mlpackage") => found.push(path),
            Some("mlmodelc") => {}
            _ if path.is_dir() => models(&path, found),
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    let subject = match subject() {
        Ok(subject) => subject,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let kept = root.join("target/differential");
    // Answers of another run would mislead.
    let _ = fs::remove_dir_all(&kept);
    let only = std::env::args().nth(1).unwrap_or_default();
    let mut found = Vec::new();
    COMMITTED.iter().for_each(|folder| models(&root.join(folder), &mut found));
    let only = if only == "--committed" {
        ""
    } else {
        models(&root.join(BROUGHT), &mut found);
        &only
    };
    found.sort();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut count = |what| *counts.entry(what).or_default() += 1;
    for path in &found {
        let name = path.strip_prefix(&root).unwrap_or(path).display().to_string();
        if !name.contains(only) {
            continue;
        }
        let is_chance = path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(CHANCE));
        if is_chance {
            count("left to chance");
            continue;
        }
        match compare(subject, Bridge::portable(), path) {
            Verdict::Same(_) => count("the same"),
            Verdict::NeitherRuns(why) => {
                count("run by neither");
                println!("neither    {name}: {why}");
            }
            Verdict::Different(difference) => {
                count("different");
                println!("DIFFERENT  {name}: {}", difference.what);
                match difference.keep(&kept.join(name.replace(['/', '\\'], "_"))) {
                    Ok(files) => files.iter().for_each(|file| println!("           {}", file.display())),
                    Err(error) => println!("           the answers are lost: {error}"),
                }
            }
        }
    }
    let same = counts.get("the same").copied().unwrap_or(0);
    let words: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!("{}", words.join(", "));
    if same > 0 && !counts.contains_key("different") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
