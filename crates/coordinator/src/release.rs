//! Which releases work together.

/// The coordinator's own release.
pub(crate) const OURS: &str = env!("CARGO_PKG_VERSION");

/// Whether two releases, `MAJOR.MINOR.PATCH`, work together: those of one major number whose minor ones are the same or neighbours, so that a fleet is upgraded one
/// process at a time. What is no release works with none.
pub(crate) fn work_together(one: &str, other: &str) -> bool {
    match (numbers(one), numbers(other)) {
        (Some((major, minor)), Some((other_major, other_minor))) => {
            major == other_major && minor.abs_diff(other_minor) <= 1
        }
        _ => false,
    }
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split('.');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().map(|_| (major, minor))
}

#[cfg(test)]
mod tests {
    use super::{OURS, work_together};

    #[test]
    fn neighbours_work_together() {
        assert!(work_together(OURS, OURS));
        for other in ["0.3.0", "0.2.9", "0.4.1-rc.1"] {
            assert!(work_together("0.3.4", other) && work_together(other, "0.3.4"), "{other}");
        }
        for other in ["0.1.0", "0.5.0", "1.3.4", "", "0.3", "three", "-1.0.0", "0.99999999999.0"] {
            assert!(!work_together("0.3.4", other) && !work_together(other, "0.3.4"), "{other}");
        }
    }
}
