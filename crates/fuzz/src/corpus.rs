//! The kept inputs: files under `corpus/<target>/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where a target's inputs are kept.
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// A target's inputs with their names, ordered by name so that a seed means the same everywhere.
///
/// # Errors
/// The folder or a file in it cannot be read.
pub fn load(target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(folder(target))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        inputs.push((name, fs::read(&path)?));
    }
    inputs.sort();
    Ok(inputs)
}

/// Keeps an input; gives where.
///
/// # Errors
/// The file cannot be written.
pub fn keep(target: &str, name: &str, input: &[u8]) -> io::Result<PathBuf> {
    let folder = folder(target);
    fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    fs::write(&path, input)?;
    Ok(path)
}
