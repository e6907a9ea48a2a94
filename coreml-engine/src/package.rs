//! Finding the parts of a model on disk: `.mlmodel` (one file), `.mlpackage` (a folder with a manifest) and `.mlmodelc` (a
//! folder that [`compiled`] reads).

use std::collections::HashMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use coreml_proto::proto::Model as ModelProto;
use prost::Message;
use serde::Deserialize;

use crate::SharedBytes;
use crate::compiled;
use crate::error::LoadError;

/// How files are read: whole into memory, or mapped by a caller that answers for the mapping.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<SharedBytes>;

/// Reads a file into memory.
///
/// # Errors
/// As [`std::fs::read`].
pub fn read_file(path: &Path) -> io::Result<SharedBytes> {
    std::fs::read(path).map(SharedBytes::from)
}

/// The files of a model.
#[derive(Debug)]
pub(crate) struct Package {
    /// What the caller asked for.
    pub(crate) path: PathBuf,
    /// The specification.
    pub(crate) specification: ModelProto,
    /// The folder that a program calls `@model_path`; none for a bare `.mlmodel`.
    root: PathBuf,
}

/// The file at the top of a package.
pub(crate) const MANIFEST: &str = "Manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    item_info_entries: HashMap<String, Item>,
    root_model_identifier: String,
}

#[derive(Deserialize)]
struct Item {
    path: String,
}

impl Package {
    pub(crate) fn open(path: &Path, read: ReadFile<'_>) -> Result<Self, LoadError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| LoadError::Io { path, source }
        };
        let metadata = std::fs::metadata(path).map_err(io(path))?;
        if compiled::is_compiled(path) {
            let specification = compiled::open(path, read)?;
            return Ok(Self { path: path.to_owned(), specification, root: path.to_owned() });
        }
        let file = if metadata.is_dir() { model_of_folder(path, read)? } else { path.to_owned() };
        let bytes = read(&file).map_err(io(&file))?;
        if bytes.is_empty() {
            return Err(LoadError::NotAModel { path: path.to_owned(), reason: "the file is empty".into() });
        }
        let specification = ModelProto::decode(&*bytes)
            .map_err(|source| LoadError::Decode { model: path.display().to_string(), source })?;
        let root = file.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self { path: path.to_owned(), specification, root })
    }

    /// The file that a program names `@model_path/…`; nothing outside the model's own folder.
    pub(crate) fn file(&self, name: &str, read: ReadFile<'_>) -> Result<SharedBytes, LoadError> {
        let relative =
            name.strip_prefix("@model_path/").and_then(inside).ok_or_else(|| LoadError::Corrupt {
                model: self.path.display().to_string(),
                at: format!("weight file `{name}`"),
                reason: "expected a path below @model_path".into(),
            })?;
        let path = self.root.join(relative);
        read(&path).map_err(|source| LoadError::Io { path, source })
    }
}

/// The path, if it stays below where it starts.
fn inside(path: &str) -> Option<&Path> {
    let path = Path::new(path);
    path.components().all(|part| matches!(part, Component::Normal(_))).then_some(path)
}

fn model_of_folder(path: &Path, read: ReadFile<'_>) -> Result<PathBuf, LoadError> {
    let manifest = path.join(MANIFEST);
    if !manifest.is_file() {
        let reason = "the folder has neither a Manifest.json nor a coremldata.bin";
        return Err(LoadError::NotAModel { path: path.to_owned(), reason: reason.into() });
    }
    let bytes = read(&manifest).map_err(|source| LoadError::Io { path: manifest.clone(), source })?;
    let file = root_model(&bytes).map_err(|reason| LoadError::Manifest { path: manifest, reason })?;
    Ok(path.join("Data").join(file))
}

/// The root model's path below `Data`, from the bytes of a manifest.
///
/// # Errors
/// A text, if it is not a manifest or names a path outside the package.
///
/// ```
/// let json = br#"{"fileFormatVersion": "1.0.0", "rootModelIdentifier": "A",
///     "itemInfoEntries": {"A": {"path": "com.apple.CoreML/model.mlmodel"}}}"#;
/// let path = coreml_engine::package::root_model(json).unwrap();
/// assert_eq!(path.to_str(), Some("com.apple.CoreML/model.mlmodel"));
/// ```
pub fn root_model(manifest: &[u8]) -> Result<PathBuf, String> {
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|error| error.to_string())?;
    let id = &manifest.root_model_identifier;
    let item = manifest.item_info_entries.get(id).ok_or_else(|| format!("no item `{id}`, the root model"))?;
    inside(&item.path)
        .map(Path::to_owned)
        .ok_or_else(|| format!("the path `{}` leaves the package", item.path))
}
