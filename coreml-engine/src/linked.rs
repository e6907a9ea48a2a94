//! Linked models: finding the file that a `LinkedModel` names.
//!
//! A link is a file name and a search path, `:` between its parts, each relative to the folder of the linking model. A
//! link may not leave that folder: absolute paths, `..`, bundles (`$BUNDLE_…`) and symbolic links that lead out are refused.
//! What a compiled app links to is a `.mlmodelc`; the model that it was compiled from serves as well.

use std::path::{Component, Path, PathBuf};

use coreml_proto::proto::{LinkedModelFile, StringParameter};

use crate::decode::DecodeError;

/// The model, as a path without links in it.
pub(crate) fn find(folder: &Path, file: &LinkedModelFile) -> Result<PathBuf, DecodeError> {
    let text = |parameter: &Option<StringParameter>| {
        parameter.as_ref().map(|parameter| parameter.default_value.clone()).unwrap_or_default()
    };
    let (name, search) = (text(&file.linked_model_file_name), text(&file.linked_model_search_path));
    let corrupt = |reason: String| DecodeError::corrupt("linked model", reason);
    if name.is_empty() {
        return Err(corrupt("it names no file".into()));
    }
    let root = folder.canonicalize().map_err(|error| corrupt(error.to_string()))?;
    for place in search.split(':') {
        if place.starts_with('$') {
            return Err(DecodeError::Unsupported(format!("a linked model in `{place}`")));
        }
        let place = Path::new(place).join(&name);
        let below = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !place.components().all(below) {
            return Err(corrupt(format!("`{}` leaves the model's folder", place.display())));
        }
        let as_named = root.join(&place);
        let others = ["mlpackage", "mlmodel"].map(|ending| as_named.with_extension(ending));
        let compiled = as_named.extension().is_some_and(|ending| ending == "mlmodelc");
        let others = if compiled { &others[..] } else { &[] };
        if let Some(found) = std::iter::once(&as_named).chain(others).find(|path| path.exists()) {
            let found = found.canonicalize().map_err(|error| corrupt(error.to_string()))?;
            if !found.starts_with(&root) {
                return Err(corrupt(format!("`{}` leaves the model's folder", place.display())));
            }
            return Ok(found);
        }
    }
    Err(corrupt(format!("no `{name}` in `{search}`, next to the model")))
}
