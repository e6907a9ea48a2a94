//! `coreml inspect`.

use std::io::Write;

use coreml_bridge::{CoreMlHandle, Feature, FeatureKind, ModelDescription};
use serde_json::Value as Json;

pub(crate) fn run(handle: &CoreMlHandle, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{:#}", to_json(handle.description()))?;
        return Ok(());
    }
    print(&mut out, handle.description())?;
    Ok(())
}

/// The description as JSON: names, types in words, and for tensors dtype and default shape.
fn to_json(description: &ModelDescription) -> Json {
    let features = |features: &[Feature]| -> Vec<Json> {
        features
            .iter()
            .map(|feature| {
                let mut json = serde_json::json!({
                    "name": feature.name,
                    "description": feature.description,
                    "optional": feature.optional,
                    "kind": feature.kind.kind().to_string(),
                    "type": words(&feature.kind),
                });
                if let FeatureKind::Tensor(spec) = &feature.kind {
                    json["dtype"] = spec.dtype.name().into();
                    json["shape"] = spec.shape.clone().into();
                }
                json
            })
            .collect()
    };
    let metadata = &description.metadata;
    serde_json::json!({
        "inputs": features(&description.inputs),
        "outputs": features(&description.outputs),
        "states": features(&description.states),
        "functions": description.functions,
        "classes": description.class_labels.len(),
        "metadata": {
            "author": metadata.author, "license": metadata.license, "version": metadata.version,
            "description": metadata.description, "user": metadata.user,
        },
    })
}

fn print(out: &mut impl Write, description: &ModelDescription) -> std::io::Result<()> {
    let metadata = &description.metadata;
    let words = [
        ("description", &metadata.description),
        ("author", &metadata.author),
        ("version", &metadata.version),
        ("license", &metadata.license),
    ];
    for (name, text) in words.iter().filter(|(_, text)| !text.is_empty()) {
        writeln!(out, "{name:<12} {text}")?;
    }
    for (key, value) in &metadata.user {
        writeln!(out, "{key:<12} {value}")?;
    }
    if description.functions.len() > 1 {
        writeln!(out, "{:<12} {}", "functions", description.functions.join(", "))?;
    }
    if !description.class_labels.is_empty() {
        writeln!(out, "{:<12} {}", "classes", description.class_labels.len())?;
    }
    for (title, features) in
        [("inputs", &description.inputs), ("outputs", &description.outputs), ("states", &description.states)]
    {
        if !features.is_empty() {
            writeln!(out, "\n{title}")?;
            print_features(out, features)?;
        }
    }
    Ok(())
}

fn print_features(out: &mut impl Write, features: &[Feature]) -> std::io::Result<()> {
    let width = features.iter().map(|feature| feature.name.len()).max().unwrap_or(0);
    for feature in features {
        let optional = if feature.optional { " (optional)" } else { "" };
        write!(out, "  {:<width$}  {}{optional}", feature.name, words(&feature.kind))?;
        if !feature.description.is_empty() {
            write!(out, "  {}", feature.description)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// A feature's type in a few words: `float32 [1, 3]`, `image ...`.
pub(crate) fn words(kind: &FeatureKind) -> String {
    match kind {
        FeatureKind::Tensor(spec) => spec.to_string(),
        FeatureKind::Image(spec) => format!("image {spec}"),
        other => other.kind().to_string(),
    }
}
