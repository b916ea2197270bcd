//! Whom PostgreSQL runs as, and whether that user can get at its files.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use nix::unistd::{User, geteuid};
use tokio::process::Command;

use crate::{Error, Result};

/// Who owns nothing, on systems that do not name such a user.
const NOBODY: u32 = 65534;

/// Another user than the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// `None` if the caller can run PostgreSQL, else `nobody`.
    pub(crate) fn other_than_root() -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let nobody = User::from_name("nobody").ok().flatten();
        Some(nobody.map_or(Self { uid: NOBODY, gid: NOBODY }, |user| Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }

    /// Makes a command run as this user.
    pub(crate) fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives a file or an empty folder to this user.
    pub(crate) fn own(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    /// Checks that this user may enter all parents of a path.
    pub(crate) fn check_reach(self, path: &Path) -> Result<()> {
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            let metadata = fs::metadata(parent)
                .map_err(|source| Error::Folder { path: parent.to_path_buf(), source })?;
            if !self.may_enter(metadata.mode(), metadata.uid(), metadata.gid()) {
                let (path, blocked) = (path.to_path_buf(), parent.to_path_buf());
                return Err(Error::NotTraversable { path, blocked, uid: self.uid });
            }
        }
        Ok(())
    }

    /// The first class that fits decides, as the system does it.
    fn may_enter(self, mode: u32, owner: u32, group: u32) -> bool {
        let bit = match () {
            () if owner == self.uid => 0o100,
            () if group == self.gid => 0o010,
            () => 0o001,
        };
        mode & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_fits_decides() {
        let account = Account { uid: 5, gid: 6 };
        assert!(account.may_enter(0o755, 0, 0));
        assert!(!account.may_enter(0o750, 0, 0));
        assert!(account.may_enter(0o750, 0, 6));
        assert!(account.may_enter(0o700, 5, 0));
        assert!(!account.may_enter(0o055, 5, 6));
    }
}
