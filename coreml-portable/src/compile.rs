//! `model_compile`. An ML program becomes a folder as Apple's compiler lays it out. The engine has nothing to compile of any other
//! model; that becomes a package which is called `.mlmodelc`, and which it loads. (`docs/decisions/0004`.)

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use coreml_engine::compiled::{self, Compiled};
use coreml_engine::package::root_model;
use coreml_sys::CML_FRAMEWORK;

use crate::error::Failure;

/// A package is three folders deep; more is a mistake, or a link to itself.
const MAX_DEPTH: usize = 16;

/// What the compiled form of a program has beside its weights, or must not have.
const NAMES: [&str; 3] = ["coremldata.bin", "model.mil", "Manifest.json"];

/// What a package of one bare `.mlmodel` says.
const MANIFEST: &str = r#"{
    "fileFormatVersion": "1.0.0",
    "itemInfoEntries": {
        "model": {
            "author": "com.apple.CoreML",
            "description": "CoreML Model Specification",
            "name": "model.mlmodel",
            "path": "com.apple.CoreML/model.mlmodel"
        }
    },
    "rootModelIdentifier": "model"
}
"#;

/// A folder that is removed unless it is kept.
struct Unfinished(PathBuf);

impl Unfinished {
    /// A new folder in `parent`; nobody else has it.
    fn new(parent: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!(".coreml-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn keep(self) -> PathBuf {
        let mut kept = std::mem::ManuallyDrop::new(self);
        std::mem::take(&mut kept.0)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the model at `source`, which is known to load, into `folder`, in the place of an older one; into a new temporary
/// folder if there is none. Gives the path.
pub(crate) fn write(source: &Path, folder: Option<&Path>) -> Result<PathBuf, Failure> {
    let wrong =
        |error: io::Error| Failure::new(CML_FRAMEWORK, format!("writing the compiled model: {error}"));
    let name = source.file_stem().ok_or_else(|| Failure::invalid("the path has no name"))?;
    let mut name = name.to_owned();
    name.push(".mlmodelc");
    match folder {
        None => {
            let home = Unfinished::new(&std::env::temp_dir()).map_err(wrong)?;
            let target = home.0.join(name);
            compile(source, &target).map_err(wrong)?;
            home.keep();
            Ok(target)
        }
        Some(folder) => {
            if !folder.is_dir() {
                return Err(Failure::invalid(format!("{} is not a folder", folder.display())));
            }
            let target = folder.join(&name);
            // In the same folder, so that moving copies nothing; what was there stays until the new one is whole.
            let workshop = Unfinished::new(folder).map_err(wrong)?;
            let (made, aside) = (workshop.0.join("made"), workshop.0.join("aside"));
            compile(source, &made).map_err(wrong)?;
            let replaced = target.symlink_metadata().is_ok();
            if replaced {
                fs::rename(&target, &aside).map_err(wrong)?;
            }
            if let Err(error) = fs::rename(&made, &target) {
                if replaced {
                    let _ = fs::rename(&aside, &target);
                }
                return Err(wrong(error));
            }
            Ok(target)
        }
    }
}

/// The compiled form, or if there is none a package.
fn compile(source: &Path, target: &Path) -> io::Result<()> {
    let package = source.is_dir();
    let file = if package {
        let manifest = fs::read(source.join("Manifest.json"))?;
        source.join("Data").join(root_model(&manifest).map_err(io::Error::other)?)
    } else {
        source.to_owned()
    };
    let compiled =
        compiled::compile(&fs::read(&file)?).ok().filter(|compiled| !package || fits(&file, compiled));
    if let Some(Compiled { data, program, .. }) = compiled {
        match file.parent() {
            Some(folder) if package => copy_folder(folder, target, &|path| path != file, 0)?,
            _ => fs::create_dir(target)?,
        }
        fs::write(target.join("coremldata.bin"), data)?;
        return fs::write(target.join("model.mil"), program);
    }
    if package {
        return copy_folder(source, target, &|_| true, 0);
    }
    let data = target.join("Data").join("com.apple.CoreML");
    fs::create_dir_all(&data)?;
    fs::copy(source, data.join("model.mlmodel"))?;
    fs::write(target.join("Manifest.json"), MANIFEST)
}

/// Whether nothing beside the specification in its package has a name of the compiled form, and the program does not read the
/// specification itself.
fn fits(specification: &Path, compiled: &Compiled) -> bool {
    let free = |name: &&str| !specification.with_file_name(name).exists();
    let name = specification.file_name().unwrap_or_default().to_string_lossy();
    NAMES.iter().all(free) && !compiled.program.contains(&format!("@model_path/{name}"))
}

/// Copies what `wanted` says of a folder.
fn copy_folder(source: &Path, target: &Path, wanted: &dyn Fn(&Path) -> bool, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{} is too deep for a package", source.display())));
    }
    fs::create_dir(target)?;
    for entry in fs::read_dir(source)? {
        let (from, to) = {
            let entry = entry?;
            (entry.path(), target.join(entry.file_name()))
        };
        if !wanted(&from) {
            continue;
        }
        // Model caches keep files behind links.
        if fs::metadata(&from)?.is_dir() {
            copy_folder(&from, &to, wanted, depth + 1)?;
        } else {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}
