//! `coreml inspect`.

use std::fmt::Display;
use std::io::Write;

use anyhow::Context;
use coreml_bridge::{Feature, FeatureKind, Flexibility, ModelDescription, Range};
use coreml_engine::structure::{Block, Cost, Structure};
use serde_json::{Value as Json, json};

use crate::ModelArguments;

/// What is known of a model: what it says of itself, what is in its file, and whether it runs here.
struct Inspected {
    description: ModelDescription,
    /// Absent if only Apple's Core ML can read the file.
    structure: Option<Structure>,
    /// Absent if it runs; else the reason.
    refused: Option<String>,
}

impl Inspected {
    fn of(model: &ModelArguments) -> anyhow::Result<Self> {
        let structure = Structure::read(&model.model);
        match (model.load(), structure) {
            (Ok(handle), structure) => Ok(Self {
                description: handle.description().clone(),
                structure: structure.ok(),
                refused: None,
            }),
            (Err(error), Ok(structure)) => {
                let json = serde_json::to_vec(&structure.description)?;
                Ok(Self {
                    description: ModelDescription::from_json(&json).context("the description")?,
                    structure: Some(structure),
                    refused: Some(format!("{error:#}")),
                })
            }
            (Err(error), Err(_)) => Err(error),
        }
    }
}

pub(crate) fn run(model: &ModelArguments, ops: bool, as_json: bool) -> anyhow::Result<()> {
    let inspected = Inspected::of(model)?;
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{:#}", to_json(&inspected, ops)?)?;
        return Ok(());
    }
    print(&mut out, &inspected, ops)?;
    Ok(())
}

/// All of it as JSON; every op only if `ops` are wanted.
fn to_json(inspected: &Inspected, ops: bool) -> anyhow::Result<Json> {
    let Inspected { description, structure, refused } = inspected;
    let features = |features: &[Feature]| features.iter().map(feature_json).collect::<Vec<_>>();
    let metadata = &description.metadata;
    let mut out = json!({
        "inputs": features(&description.inputs),
        "outputs": features(&description.outputs),
        "states": features(&description.states),
        "functions": description.functions,
        "classes": description.class_labels.len(),
        "metadata": {
            "author": metadata.author, "license": metadata.license, "version": metadata.version,
            "description": metadata.description, "user": metadata.user,
        },
        "runs": refused.is_none(),
    });
    if let Some(reason) = refused {
        out["refused"] = reason.as_str().into();
    }
    if let Some(structure) = structure {
        out["kind"] = structure.kind.into();
        out["specification_version"] = structure.specification_version.into();
        let functions = structure.functions.iter().map(|(name, block)| {
            let summary =
                json!({ "opset": block.opset, "histogram": block.histogram(), "cost": block.cost() });
            (name.clone(), summary)
        });
        out["summary"] = Json::Object(functions.collect());
        if ops {
            out["structure"] = serde_json::to_value(structure)?;
        }
    }
    Ok(out)
}

/// Name, type in words, and every constraint.
fn feature_json(feature: &Feature) -> Json {
    let mut json = json!({
        "name": feature.name,
        "description": feature.description,
        "optional": feature.optional,
        "kind": feature.kind.kind().to_string(),
        "type": words(&feature.kind),
    });
    let range = |range: &Range| json!({ "least": range.least, "most": range.most });
    let flexible = |json: &mut Json, flexible: &Flexibility| match flexible {
        Flexibility::Fixed => {}
        Flexibility::Enumerated(shapes) => json["enumerated"] = json!(shapes),
        Flexibility::Ranges(ranges) => json["ranges"] = ranges.iter().map(range).collect(),
    };
    match &feature.kind {
        FeatureKind::Tensor(spec) => {
            json["dtype"] = spec.dtype.name().into();
            json["shape"] = spec.shape.clone().into();
            flexible(&mut json, &spec.flexible);
            if let Some(default) = spec.default {
                json["default"] = default.into();
            }
        }
        FeatureKind::Image(spec) => {
            json["width"] = spec.width.into();
            json["height"] = spec.height.into();
            json["color"] = spec.color.name().into();
            // Of an image the dimensions are height and width.
            flexible(&mut json, &spec.flexible);
        }
        FeatureKind::Dictionary(spec) => json["key"] = spec.key.to_string().into(),
        FeatureKind::Sequence(spec) => {
            json["element"] = spec.element.to_string().into();
            json["count"] = range(&spec.count);
        }
        _ => {}
    }
    json
}

fn line(out: &mut impl Write, name: &str, text: impl Display) -> std::io::Result<()> {
    writeln!(out, "{name:<12} {text}")
}

fn print(out: &mut impl Write, inspected: &Inspected, ops: bool) -> std::io::Result<()> {
    let Inspected { description, structure, refused } = inspected;
    let metadata = &description.metadata;
    let words = [
        ("description", &metadata.description),
        ("author", &metadata.author),
        ("version", &metadata.version),
        ("license", &metadata.license),
    ];
    for (name, text) in words.iter().filter(|(_, text)| !text.is_empty()) {
        line(out, name, text)?;
    }
    for (key, value) in &metadata.user {
        line(out, key, value)?;
    }
    if let Some(structure) = structure {
        let version = structure.specification_version;
        line(out, "kind", format_args!("{}, specification {version}", structure.kind))?;
    }
    match refused {
        None => line(out, "runs here", "yes")?,
        Some(reason) => line(out, "runs here", format_args!("no: {reason}"))?,
    }
    if description.functions.len() > 1 {
        line(out, "functions", description.functions.join(", "))?;
    }
    if !description.class_labels.is_empty() {
        line(out, "classes", description.class_labels.len())?;
    }
    for (title, features) in
        [("inputs", &description.inputs), ("outputs", &description.outputs), ("states", &description.states)]
    {
        if !features.is_empty() {
            writeln!(out, "\n{title}")?;
            print_features(out, features)?;
        }
    }
    match structure {
        Some(structure) => print_structure(out, structure, "", ops),
        None => Ok(()),
    }
}

fn print_structure(
    out: &mut impl Write,
    structure: &Structure,
    model: &str,
    ops: bool,
) -> std::io::Result<()> {
    for (name, block) in &structure.functions {
        let opset = if block.opset.is_empty() { String::new() } else { format!(", {}", block.opset) };
        writeln!(out, "\n{model}function {name}{opset}: {}", cost_words(&block.cost()))?;
        if ops {
            print_ops(out, block, 1)?;
            continue;
        }
        let mut kinds: Vec<_> = block.histogram().into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (kind, count) in kinds {
            writeln!(out, "  {count:>6}  {kind}")?;
        }
    }
    for (i, inner) in structure.models.iter().enumerate() {
        writeln!(out, "\n{model}model {i}: {}", inner.kind)?;
        print_structure(out, inner, &format!("{model}model {i}, "), ops)?;
    }
    Ok(())
}

fn print_ops(out: &mut impl Write, block: &Block, depth: usize) -> std::io::Result<()> {
    let indent = "  ".repeat(depth);
    for op in &block.ops {
        let made: Vec<_> = op.outputs.iter().map(|value| format!("{} {}", value.name, value.ty)).collect();
        let made: Vec<_> = made.iter().map(|text| text.trim_end()).collect();
        let (kind, cost) = (&op.kind, cost_words(&op.cost));
        writeln!(out, "{indent}{kind:<24} {:<48} {cost}", made.join(", "))?;
        for inner in &op.blocks {
            writeln!(out, "{indent}  block -> {}", inner.outputs.join(", "))?;
            print_ops(out, inner, depth + 2)?;
        }
    }
    Ok(())
}

/// `1.2 M multiply-adds, 3.4 MB`.
fn cost_words(cost: &Cost) -> String {
    let short = |number: Option<u64>| {
        let Some(number) = number else { return "- ".to_owned() };
        let mut x = number as f64;
        for unit in ["", "k", "M", "G"] {
            if x < 1000.0 {
                return if unit.is_empty() { format!("{x} ") } else { format!("{x:.1} {unit}") };
            }
            x /= 1000.0;
        }
        format!("{x:.1} T")
    };
    let adds = short(cost.multiply_adds);
    let least = if cost.at_least { "at least " } else { "" };
    format!("{least}{} multiply-adds, {}B", adds.trim_end(), short(cost.bytes))
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn inspect(model: &str, ops: bool) -> (String, Json) {
        let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(model);
        let inspected = Inspected::of(&ModelArguments { model, function: None }).unwrap();
        let mut text = Vec::new();
        print(&mut text, &inspected, ops).unwrap();
        (String::from_utf8(text).unwrap(), to_json(&inspected, ops).unwrap())
    }

    #[test]
    fn a_program_shows_its_features_its_ops_and_that_it_runs() {
        let (text, json) = inspect("models/digits/digits-f32.mlpackage", false);
        for wanted in
            ["kind         ML program", "runs here    yes", "function main, iOS15: ", "     2  conv\n"]
        {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
        assert_eq!(json["summary"]["main"]["histogram"]["conv"], 2);
        assert_eq!((&json["runs"], json.get("structure")), (&Json::Bool(true), None));
        let (text, json) = inspect("models/digits/digits-f32.mlpackage", true);
        assert!(text.contains("conv ") && text.contains("multiply-adds"), "{text}");
        assert!(json["structure"]["functions"]["main"]["ops"].as_array().unwrap().len() > 5);
    }

    #[test]
    fn a_shape_that_the_model_does_not_say_is_not_shown_as_a_scalar() {
        let (text, _) = inspect("models/digits/digits.mlmodel", false);
        assert!(text.contains("logits         float32 of a shape that the model does not say"), "{text}");
    }

    #[test]
    fn every_constraint_is_in_the_json() {
        let features = "coreml-engine/tests/fixtures/features";
        let (_, json) = inspect(&format!("{features}/image_range.mlmodel"), false);
        let ranges = json!([{ "least": 2, "most": 4 }, { "least": 3, "most": 6 }]);
        let image = &json["inputs"][0];
        assert_eq!((&image["ranges"], &image["color"], &image["width"]), (&ranges, &json!("rgb"), &json!(3)));
        let (_, json) = inspect(&format!("{features}/shape_enumerated.mlmodel"), false);
        let mut shapes = json["inputs"][0]["enumerated"].as_array().unwrap().clone();
        shapes.sort_by_key(ToString::to_string);
        assert_eq!(shapes, [json!([1, 4]), json!([2, 3]), json!([5, 3])]);
        let (_, json) = inspect(&format!("{features}/optional.mlmodel"), false);
        assert_eq!(
            (&json["inputs"][1]["default"], &json["inputs"][1]["optional"]),
            (&json!(2.5), &json!(true))
        );
    }

    #[test]
    fn a_model_that_does_not_run_is_shown_with_the_reason() {
        let original = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../coreml-engine/tests/fixtures/mlmodelc/test_linear.mlmodelc");
        let folder = std::env::temp_dir().join(format!("coreml-inspect-{}.mlmodelc", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(original.join("coremldata.bin"), folder.join("coremldata.bin")).unwrap();
        let text = std::fs::read_to_string(original.join("model.mil")).unwrap();
        std::fs::write(folder.join("model.mil"), text.replace(" mul(", " frobnicate(")).unwrap();
        let inspected = Inspected::of(&ModelArguments { model: folder.clone(), function: None });
        std::fs::remove_dir_all(&folder).unwrap();
        let inspected = inspected.unwrap();
        let reason = inspected.refused.as_deref().unwrap_or_default();
        assert!(reason.contains("frobnicate"), "{reason}");
        let json = to_json(&inspected, false).unwrap();
        assert_eq!((&json["runs"], &json["inputs"][0]["name"]), (&json!(false), &json!("input")));
        assert_eq!(json["summary"]["main"]["histogram"]["frobnicate"], 1);
    }
}
