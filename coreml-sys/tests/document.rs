//! `docs/abi.md` says per slot what the header cannot: the header must not change without it.

use std::{fs, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// C without its comments, its words one space apart.
fn code(header: &str) -> String {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        code.push(' ');
        rest = comment.split_once("*/").expect("a comment ends").1;
    }
    code.push_str(rest);
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A slot as the header declares it.
#[derive(Debug, PartialEq)]
struct Slot {
    name: String,
    /// All but `error`.
    parameters: Vec<String>,
}

fn slots(code: &str) -> Vec<Slot> {
    let table = code.split_once("typedef struct CmlBridge {").expect("the header declares the table").1;
    let table = table.split_once("} CmlBridge;").expect("the table ends").0;
    let declarations = table.split(';').filter_map(|declaration| declaration.split_once("(*"));
    declarations
        .map(|(_, declaration)| {
            let (name, parameters) = declaration.split_once(")(").expect("a pointer to a function");
            let parameters = parameters.trim_end_matches(')').split(',').map(|parameter| {
                let word = parameter.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
                word.expect("a parameter has a name").to_owned()
            });
            let reports = name != "error_view" && name != "error_free";
            let parameters = parameters.filter(|parameter| !(reports && parameter == "error")).collect();
            Slot { name: name.to_owned(), parameters }
        })
        .collect()
}

/// What is wrong with the document, one line each.
fn complaints(header: &str, document: &str) -> Vec<String> {
    let code = code(header);
    let slots = slots(&code);
    let mut wrong = Vec::new();
    let section = document.split_once("## Slots").map_or("", |(_, section)| section);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let named: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let declared: Vec<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    if named != declared {
        wrong.push(format!("the rows are {named:?}, the slots {declared:?}"));
    }
    for (slot, row) in slots.iter().zip(&rows) {
        let [_, threads, arguments, owned, answers, needs] = row[..] else {
            wrong.push(format!("{}: {} columns", slot.name, row.len()));
            continue;
        };
        if !threads.starts_with('F') && !threads.starts_with("S: `") {
            wrong.push(format!("{}: {threads:?} is no class of threads", slot.name));
        }
        for parameter in &slot.parameters {
            if !arguments.contains(&format!("`{parameter}`")) {
                wrong.push(format!("{}: nothing is said of `{parameter}`", slot.name));
            }
        }
        if owned.is_empty() || answers.is_empty() || needs.is_empty() {
            wrong.push(format!("{}: an empty column", slot.name));
        }
    }
    // FNV-1a, 64 bits: structs, numbers and types are in it, comments and layout are not.
    let fingerprint = code.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let line = format!("Header fingerprint: `{fingerprint:016x}`");
    if document.lines().next_back() != Some(&line) {
        wrong.push(format!("the header changed; read docs/abi.md again, and let its last line be: {line}"));
    }
    wrong
}

#[test]
fn the_document_says_everything_of_every_slot_of_this_header() {
    let wrong = complaints(&read("bridge-objc/include/coreml_bridge.h"), &read("docs/abi.md"));
    assert!(wrong.is_empty(), "docs/abi.md:\n{}", wrong.join("\n"));
}

#[test]
fn a_changed_header_or_a_gap_in_the_document_is_seen() {
    let (header, document) = (read("bridge-objc/include/coreml_bridge.h"), read("docs/abi.md"));
    let changed = |from: &str, to: &str| {
        assert!(header.contains(from), "{from}");
        complaints(&header.replacen(from, to, 1), &document).join("\n")
    };
    // A new slot, a new parameter, and a field that no slot names.
    let slot = changed("} CmlBridge;", "void (*model_dance)(CmlModel *model); } CmlBridge;");
    assert!(slot.contains("model_dance"), "{slot}");
    let parameter = changed("(*state_new)(CmlModel *model,", "(*state_new)(CmlModel *model, int32_t tempo,");
    assert!(parameter.contains("state_new: nothing is said of `tempo`"), "{parameter}");
    let field = changed("uint32_t threads;", "uint64_t threads;");
    assert!(field.contains("the header changed"), "{field}");
    // A comment is no change.
    assert_eq!(changed("/* NULL is allowed, as in every release */", "/* NULL may be */"), "");
    let gap = complaints(&header, &document.replacen("| `state_new` | S: `model` |", "| `state_new` | |", 1));
    assert!(gap.join("\n").contains("state_new"), "{gap:?}");
    let lost = complaints(&header, &document.replacen("`destination` of exactly", "a place of exactly", 1));
    assert_eq!(lost, ["tensor_read: nothing is said of `destination`"]);
}

#[test]
fn declarations_are_read_as_c_has_them() {
    let code = code(
        "typedef struct CmlBridge { /* a; b */ void *self;\n CmlStr (*one)(const CmlBlob *blob);\n \
                     CmlStatus (*two)(void *self, CmlValue *const *inputs,\n size_t n, CmlError **error); } CmlBridge;",
    );
    let slot = |name: &str, parameters: &[&str]| Slot {
        name: name.to_owned(),
        parameters: parameters.iter().map(|&parameter| parameter.to_owned()).collect(),
    };
    assert_eq!(slots(&code), [slot("one", &["blob"]), slot("two", &["self", "inputs", "n"])]);
}
