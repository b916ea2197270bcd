//! Another wall clock for a process, by libfaketime where it is installed. The monotonic clock stays as it is: it is what leases
//! are measured by, and no administrator can set it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where Debian and Fedora put it.
const PLACES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];

/// The library, where it is installed.
pub(crate) fn library() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Writes into the file how many hours its readers are away from the time that it is.
pub(crate) fn set(file: &Path, hours: i64) -> anyhow::Result<()> {
    Ok(std::fs::write(file, format!("{:+}", hours * 3_600))?)
}

/// What a process needs in its environment to follow the clock in the file.
pub(crate) fn environment(library: &Path, file: &Path) -> Vec<(&'static str, OsString)> {
    vec![
        ("LD_PRELOAD", library.into()),
        ("FAKETIME_TIMESTAMP_FILE", file.into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
        // Seconds until a change of the file is seen.
        ("FAKETIME_CACHE_DURATION", "1".into()),
    ]
}
