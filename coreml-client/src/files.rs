//! The files of a model: which there are, how large, in which condition.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

/// The file, or all files of a package, in the order of their names.
#[derive(Default)]
pub(crate) struct Files(Vec<Item>);

struct Item {
    /// Below the model.
    name: PathBuf,
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
}

impl Files {
    /// All of them.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let mut files = Self::default();
        files.walk(path, Path::new(""), 0)?;
        Ok(files)
    }

    /// Those that can be looked at.
    pub(crate) fn readable(path: &Path) -> Self {
        let mut files = Self::default();
        let _ = files.walk(path, Path::new(""), 0);
        files
    }

    /// Goes on after an error, and returns the first.
    fn walk(&mut self, path: &Path, name: &Path, depth: u32) -> io::Result<()> {
        /// A package is four levels deep; whatever is deeper is none.
        const DEPTH: u32 = 8;
        let own = fs::symlink_metadata(path)?;
        // Shared stores have their files elsewhere, and links to them in the package.
        let metadata = fs::metadata(path).ok();
        if let Some(metadata) = metadata.as_ref().filter(|metadata| metadata.is_file()) {
            self.push(path, name, metadata);
            return Ok(());
        }
        // A link to a folder may lead in a circle.
        let is_folder =
            metadata.is_some_and(|metadata| metadata.is_dir()) && (depth == 0 || !own.is_symlink());
        if !is_folder || depth == DEPTH {
            self.push(path, name, &own);
            return Err(io::Error::other(format!("{} is no part of a model", path.display())));
        }
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let parts =
            entries.iter().map(|entry| self.walk(&entry.path(), &name.join(entry.file_name()), depth + 1));
        parts.fold(Ok(()), Result::and)
    }

    fn push(&mut self, path: &Path, name: &Path, metadata: &Metadata) {
        self.0.push(Item {
            name: name.to_owned(),
            path: path.to_owned(),
            bytes: metadata.len(),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        });
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().fold(0, |sum, item| sum.saturating_add(item.bytes))
    }

    /// Changes when a file does, going by its name, length and time: a model that was replaced is another model.
    pub(crate) fn condition(&self) -> String {
        let mut digest = Sha256::new();
        for Item { name, path: _, bytes, modified } in &self.0 {
            let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            update_name(&mut digest, name);
            digest.update(bytes.to_le_bytes());
            digest.update(since.as_nanos().to_le_bytes());
        }
        hex(&digest.finalize())
    }

    /// Of names and contents.
    pub(crate) fn digest(&self) -> io::Result<String> {
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        for Item { name, path, bytes, modified: _ } in &self.0 {
            update_name(&mut digest, name);
            digest.update(bytes.to_le_bytes());
            let mut file = File::open(path)?;
            let mut left = *bytes;
            loop {
                let count = file.read(&mut buffer)?;
                digest.update(&buffer[..count]);
                left = left.wrapping_sub(count as u64);
                if count == 0 {
                    break;
                }
            }
            if left != 0 {
                return Err(io::Error::other(format!("{} changes while it is read", path.display())));
            }
        }
        Ok(hex(&digest.finalize()))
    }
}

fn update_name(digest: &mut Sha256, name: &Path) {
    let name = name.as_os_str().as_encoded_bytes();
    digest.update((name.len() as u64).to_le_bytes());
    digest.update(name);
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
