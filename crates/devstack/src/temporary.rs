//! Folders for test data.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use crate::{Error, Result};

/// Makes an empty folder that is removed when the value is dropped, and below which PostgreSQL can be run.
///
/// Where the caller's umask is strict, a plain temporary folder may be entered by its owner only, and PostgreSQL runs
/// under another user when the caller is root. So this one may be entered by everybody.
pub fn temporary_dir() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("millrace-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .map_err(|source| Error::Folder { path: std::env::temp_dir(), source })
}
