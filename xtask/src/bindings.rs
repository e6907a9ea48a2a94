//! `cargo xtask bindings`: `coreml-sys/src/bindings.rs` from the C header.
//!
//! The generated file is committed, so that a plain build needs no libclang. This module is compiled only with the feature
//! `bindings`; without it the verb runs itself again with the feature on.

use std::path::Path;

/// What must be in the file: a wrong allow list silently gives an empty one.
#[cfg(feature = "bindings")]
const CANARIES: &[&str] =
    &["pub struct CmlBridge", "pub model_predict:", "fn cml_bridge_coreml", "CML_KIND_TENSOR"];

/// Regenerates the bindings, or with `check` compares them with the committed ones.
#[cfg(feature = "bindings")]
pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<()> {
    use anyhow::{Context, bail, ensure};

    let header = root.join("bridge-objc/include/coreml_bridge.h");
    let target = root.join("coreml-sys/src/bindings.rs");
    let generated = bindgen::Builder::default()
        .header(header.to_str().context("the repository's path is not UTF-8")?)
        .allowlist_item("(Cml|CML_|cml_).*")
        .generate_comments(true)
        .clang_arg("-fparse-all-comments")
        .default_macro_constant_type(bindgen::MacroTypeVariation::Unsigned)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .translate_enum_integer_types(true)
        .prepend_enum_name(false)
        .derive_default(false)
        .layout_tests(true)
        .parse_callbacks(Box::new(Comments))
        .use_core()
        .raw_line(
            "// Generated from bridge-objc/include/coreml_bridge.h by `cargo xtask bindings`: do not edit.",
        )
        .disable_header_comment()
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|error| anyhow::anyhow!("{error:?}"))?)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .formatter(bindgen::Formatter::Rustfmt)
        .generate()
        .context("bindgen failed on the header")?
        .to_string();
    let generated = name_constant_types(&generated)?;
    for canary in CANARIES {
        ensure!(generated.contains(canary), "the bindings lack `{canary}`");
    }
    if !check {
        std::fs::write(&target, generated)?;
        println!("wrote {}", target.display());
        return Ok(());
    }
    let committed = std::fs::read_to_string(&target)?;
    if committed != generated {
        bail!("coreml-sys/src/bindings.rs differs from the header; run `cargo xtask bindings` and commit it");
    }
    println!("bindings: as the header has it");
    Ok(())
}

/// Which type the constants of a prefix have; the first match counts. C gives an anonymous `enum` no name of its own, so
/// bindgen invents one that fits no field of the table.
#[cfg(feature = "bindings")]
const CONSTANT_TYPES: &[(&str, &str)] = &[
    ("CML_DTYPE_", "CmlDtype"),
    ("CML_KIND_", "CmlKind"),
    ("CML_COMPUTE_", "CmlComputeUnits"),
    ("CML_PIXEL_", "CmlPixelFormat"),
    ("CML_CONFIG_", "u32"),
    ("CML_LOG_", "CmlLogLevel"),
    ("CML_", "CmlStatus"),
];

/// Gives each constant of an anonymous `enum` the type that the table's fields have, and drops the invented ones.
#[cfg(feature = "bindings")]
fn name_constant_types(generated: &str) -> anyhow::Result<String> {
    use anyhow::Context;

    const INVENTED: &str = "_bindgen_ty_";
    let mut lines: Vec<String> = Vec::new();
    for line in generated.lines() {
        if line.starts_with("pub type _bindgen_ty_") {
            while lines.last().is_some_and(|above| above.starts_with("#[doc")) {
                lines.pop();
            }
            continue;
        }
        let Some((head, tail)) = line.split_once(INVENTED) else {
            lines.push(line.to_owned());
            continue;
        };
        let name = head.strip_prefix("pub const ").context("bindgen's anonymous enums look different now")?;
        let (_, constant_type) = CONSTANT_TYPES
            .iter()
            .find(|(prefix, _)| name.starts_with(prefix))
            .with_context(|| format!("no type is known for the constant {name}"))?;
        lines.push(format!("{head}{constant_type}{}", tail.trim_start_matches(|c: char| c.is_ascii_digit())));
    }
    lines.push(String::new());
    Ok(lines.join("\n"))
}

/// Turns the header's comments into Markdown: one block comment may follow another, and slots are named with backquotes.
#[cfg(feature = "bindings")]
#[derive(Debug)]
struct Comments;

#[cfg(feature = "bindings")]
impl bindgen::callbacks::ParseCallbacks for Comments {
    fn process_comment(&self, comment: &str) -> Option<String> {
        let lines: Vec<&str> = comment
            .lines()
            .map(|line| line.trim().trim_start_matches("/*").trim_end_matches("*/").trim())
            .filter(|line| !line.starts_with("----"))
            .collect();
        // Rustdoc would take `[..]` for a link, but not inside backquotes: the odd pieces.
        let text = lines.join("\n");
        let text = text.split('`').enumerate().map(|(i, piece)| match i % 2 {
            0 => piece.replace('[', "\\[").replace(']', "\\]"),
            _ => piece.to_owned(),
        });
        let text = text.collect::<Vec<_>>().join("`");
        Some(if text.is_empty() { text } else { format!(" {text}") })
    }
}

/// Runs the verb again with bindgen compiled in.
#[cfg(not(feature = "bindings"))]
pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.current_dir(root).args([
        "run",
        "--quiet",
        "--package",
        "xtask",
        "--features",
        "bindings",
        "--",
        "bindings",
    ]);
    if check {
        command.arg("--check");
    }
    anyhow::ensure!(command.status()?.success(), "`cargo xtask bindings` failed");
    Ok(())
}
