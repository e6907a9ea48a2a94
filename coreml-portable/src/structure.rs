//! What is in a model, and what each part of it costs here: answers in JSON, the form of which `docs/abi.md` has.

use std::ffi::c_void;
use std::path::Path;

use coreml_engine::structure::Structure;
use coreml_sys::{CmlBlob, CmlConfig, CmlError, CmlStatus, CmlStr};
use serde_json::Value;

use crate::arguments::{self, out};
use crate::blob;
use crate::error::{Failure, slot};
use crate::model;

/// Runs a slot that answers JSON about the model at a path.
///
/// # Safety
/// As the table has it: `path` is borrowed for the call, `json` and `error` are NULL or valid for a write.
unsafe fn answer(
    path: CmlStr,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
    about: impl FnOnce(&Path) -> Result<Value, Failure>,
) -> CmlStatus {
    let body = || {
        // SAFETY: the caller's promise on `json`.
        let mut json = unsafe { out(json, "json") }?;
        // SAFETY: the caller's promise on `path`.
        let path = unsafe { arguments::text(path, "the path") }?;
        json.set(blob::into_handle(about(Path::new(path))?.to_string().into_bytes()));
        Ok(())
    };
    // SAFETY: the caller's promise on `error`.
    unsafe { slot(error, body) }
}

pub(crate) unsafe extern "C" fn function_names(
    _self: *mut c_void,
    path: CmlStr,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    // Of the specification only: neither weights nor plans are needed to name functions.
    let about = |path: &Path| Ok(Structure::read(path)?.description.functions.into());
    // SAFETY: the table's contract.
    unsafe { answer(path, json, error, about) }
}

pub(crate) unsafe extern "C" fn model_structure(
    _self: *mut c_void,
    path: CmlStr,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    // SAFETY: the table's contract.
    unsafe { answer(path, json, error, |path| listing(&Structure::read(path)?)) }
}

pub(crate) unsafe extern "C" fn compute_plan(
    _self: *mut c_void,
    path: CmlStr,
    config: *const CmlConfig,
    json: *mut *mut CmlBlob,
    error: *mut *mut CmlError,
) -> CmlStatus {
    let about = |path: &Path| {
        // SAFETY: the table's contract on `config`.
        let (function, _) = unsafe { model::configuration(config) }?;
        let structure = Structure::read(path)?;
        // An op that the engine has not runs nowhere: only what loads has a plan.
        let loaded = model::load(path, function)?;
        let chosen = &loaded.description().function;
        let mut listing = listing(&structure)?;
        let mut whole = 0;
        visit(&mut listing, chosen, &mut |op| whole += multiply_adds(op).unwrap_or(0));
        visit(&mut listing, chosen, &mut |op| place(op, whole));
        Ok(listing)
    };
    // SAFETY: the table's contract.
    unsafe { answer(path, json, error, about) }
}

/// The structure as it crosses the table: descriptions have a slot of their own.
fn listing(structure: &Structure) -> Result<Value, Failure> {
    let mut listing = serde_json::to_value(structure).map_err(|error| Failure::invalid(error.to_string()))?;
    undescribe(&mut listing);
    Ok(listing)
}

fn undescribe(model: &mut Value) {
    if let Some(members) = model.as_object_mut() {
        members.remove("description");
    }
    each(model, "models", &mut undescribe);
}

/// Calls `f` for every element of a list, if it is there.
fn each(of: &mut Value, key: &str, f: &mut impl FnMut(&mut Value)) {
    for element in of.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
        f(element);
    }
}

/// Calls `f` for every op that a prediction with `function` may run; all models of a pipeline have one function each.
fn visit(model: &mut Value, function: &str, f: &mut dyn FnMut(&mut Value)) {
    let functions = model.get_mut("functions").and_then(Value::as_object_mut);
    for (name, block) in functions.into_iter().flatten() {
        if function.is_empty() || name == function {
            visit_block(block, f);
        }
    }
    each(model, "models", &mut |model| visit(model, "", &mut *f));
}

fn visit_block(block: &mut Value, f: &mut dyn FnMut(&mut Value)) {
    each(block, "ops", &mut |op| {
        f(op);
        each(op, "blocks", &mut |block| visit_block(block, &mut *f));
    });
}

fn multiply_adds(op: &Value) -> Option<u128> {
    op.get("cost")?.get("multiply_adds")?.as_u64().map(u128::from)
}

/// Everything runs on the CPU; the weight of an op is its share of the multiply-adds, where the shapes tell them.
fn place(op: &mut Value, whole: u128) {
    let share = multiply_adds(op).filter(|_| whole > 0).map(|part| part as f64 / whole as f64);
    let Some(members) = op.as_object_mut() else { return };
    members.insert("devices".to_owned(), serde_json::json!({ "preferred": "cpu", "supported": ["cpu"] }));
    if let Some(share) = share {
        members.insert("weight".to_owned(), share.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ops_of_the_chosen_function_are_placed_and_share_the_work() {
        let op = |adds: u64| serde_json::json!({ "kind": "conv", "cost": { "multiply_adds": adds } });
        let mut model = serde_json::json!({
            "functions": {
                "main": { "ops": [op(1), { "kind": "cond", "cost": {}, "blocks": [{ "ops": [op(3)] }] }] },
                "other": { "ops": [op(100)] },
            },
        });
        let mut whole = 0;
        visit(&mut model, "main", &mut |op| whole += multiply_adds(op).unwrap_or(0));
        visit(&mut model, "main", &mut |op| place(op, whole));
        let main = &model["functions"]["main"]["ops"];
        assert_eq!(main[0]["weight"], 0.25);
        assert_eq!(main[1]["devices"]["preferred"], "cpu");
        assert!(main[1].get("weight").is_none(), "nobody knows what it costs");
        assert_eq!(main[1]["blocks"][0]["ops"][0]["weight"], 0.75);
        assert!(model["functions"]["other"]["ops"][0].get("devices").is_none());
    }
}
