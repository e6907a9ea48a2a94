//! `coreml predict`.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use coreml_bridge::{CoreMlHandle, Features, PredictOptions};

use crate::inspect::words;
use crate::values;

pub(crate) fn run(
    handle: &CoreMlHandle,
    inputs: &[String],
    output: Option<&Path>,
    json: bool,
) -> anyhow::Result<()> {
    let features = read(handle, inputs)?;
    let start = Instant::now();
    // One prediction from the beginning: a stateful model's memory starts empty.
    let mut state = match handle.description().states[..] {
        [] => None,
        [..] => Some(handle.new_state()?),
    };
    let options = PredictOptions { state: state.as_mut(), ..PredictOptions::default() };
    let outputs = handle.predict_with(&features, options)?.outputs;
    let elapsed = start.elapsed();
    if let Some(folder) = output {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (name, value) in outputs.iter() {
            values::write(folder, name, value)?;
        }
    }
    let mut out = std::io::stdout().lock();
    if json {
        let members = outputs
            .iter()
            .map(|(name, value)| Ok((name.to_owned(), values::to_json(value)?)))
            .collect::<anyhow::Result<serde_json::Map<_, _>>>()?;
        writeln!(out, "{:#}", serde_json::Value::Object(members))?;
        return Ok(());
    }
    for (name, value) in outputs.iter() {
        writeln!(out, "{name}: {}", values::summary(value)?)?;
    }
    writeln!(out, "in {:.3} ms", elapsed.as_secs_f64() * 1e3)?;
    Ok(())
}

/// The inputs that `NAME=FILE` arguments name.
fn read(handle: &CoreMlHandle, inputs: &[String]) -> anyhow::Result<Features> {
    let description = handle.description();
    let known = || {
        let list: Vec<String> =
            description.inputs.iter().map(|f| format!("  {}  {}", f.name, words(&f.kind))).collect();
        list.join("\n")
    };
    let mut features = Features::new();
    for argument in inputs {
        let (name, file) = argument
            .split_once('=')
            .with_context(|| format!("`{argument}` is not NAME=FILE; the model takes\n{}", known()))?;
        let Some(feature) = description.input(name) else {
            bail!("the model has no input `{name}`; it takes\n{}", known());
        };
        let value = values::read(Path::new(file), &feature.kind)
            .with_context(|| format!("input `{name}` from {file}, as {}", words(&feature.kind)))?;
        features.insert(name, value);
    }
    if let Some(missing) = description.inputs.iter().find(|f| !f.optional && features.get(&f.name).is_none())
    {
        bail!("the input `{}` is missing; the model takes\n{}", missing.name, known());
    }
    Ok(features)
}
