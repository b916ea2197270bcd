//! CPU time and memory of processes, as `/proc` tells them (proc(5)).

use std::fs;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::time::Duration;

use anyhow::Context as _;

/// `/proc` counts CPU time in hundredths of a second, on every machine that Linux runs on.
const TICK: Duration = Duration::from_millis(10);

/// Where the numbers stand in `/proc/<id>/stat` once the name, which may contain anything, is cut off with all before it.
const PARENT: usize = 1;
const USER_TIME: usize = 11;

/// CPU time, as processes spend it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    /// In their own code.
    pub(super) user: Duration,
    /// In the kernel on their behalf.
    pub(super) system: Duration,
}

impl Cpu {
    /// Both.
    pub(super) fn total(self) -> Duration {
        self.user + self.system
    }
}

impl Add for Cpu {
    type Output = Cpu;

    fn add(self, other: Cpu) -> Cpu {
        Cpu { user: self.user + other.user, system: self.system + other.system }
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, earlier: Cpu) -> Cpu {
        Cpu {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

impl Sum for Cpu {
    fn sum<I: Iterator<Item = Cpu>>(all: I) -> Cpu {
        all.fold(Cpu::default(), Add::add)
    }
}

/// CPU time of everybody in the bench since they started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// Millrace's workers together.
    pub(super) workers: Cpu,
    /// PostgreSQL: the postmaster and every process it has or had.
    pub(super) postgres: Cpu,
    /// ClickHouse, with the HTTP interface around it.
    pub(super) clickhouse: Cpu,
    /// This program: the client of whatever is bare, and the writer of workloads.
    pub(super) bench: Cpu,
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, earlier: Usage) -> Usage {
        Usage {
            workers: self.workers - earlier.workers,
            postgres: self.postgres - earlier.postgres,
            clickhouse: self.clickhouse - earlier.clickhouse,
            bench: self.bench - earlier.bench,
        }
    }
}

struct Stat {
    parent: u32,
    own: Cpu,
    /// Of children that have ended and were waited for.
    ended_children: Cpu,
}

/// A process' times. One that is gone has none.
fn stat(id: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
    let time = |at: usize| Some(TICK * number(at)?);
    Some(Stat {
        parent: number(PARENT)?,
        own: Cpu { user: time(USER_TIME)?, system: time(USER_TIME + 1)? },
        ended_children: Cpu { user: time(USER_TIME + 2)?, system: time(USER_TIME + 3)? },
    })
}

/// CPU time of one process.
pub(super) fn of_process(id: u32) -> Cpu {
    stat(id).map(|stat| stat.own).unwrap_or_default()
}

/// CPU time of a process, its children, and those it had.
pub(super) fn of_family(id: u32) -> Cpu {
    let mut family = Cpu::default();
    // A child that ends while the others are read would count twice or not at all, so the reading is then repeated.
    for _ in 0..5 {
        let before = stat(id).map(|stat| stat.ended_children).unwrap_or_default();
        let children: Cpu = processes()
            .filter_map(stat)
            .filter(|process| process.parent == id)
            .map(|process| process.own)
            .sum();
        let Some(head) = stat(id) else { return family };
        family = head.own + head.ended_children + children;
        if head.ended_children == before {
            break;
        }
    }
    family
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The most memory that a process held at a time, in bytes, since it started or since [`reset_peak`].
///
/// # Errors
/// The process is gone.
pub(super) fn peak(id: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{id}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kilobytes = line.split_whitespace().next().with_context(|| format!("{path} tells no VmHWM"))?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// Begins the peak anew.
///
/// # Errors
/// The process is gone, or this is not permitted.
pub(super) fn reset_peak(id: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{id}/clear_refs");
    fs::write(&path, "5").with_context(|| path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_times_a_parent_and_a_peak() {
        let own = stat(std::process::id()).unwrap();
        assert_ne!(own.parent, 0);
        assert!(peak(std::process::id()).unwrap() > 1 << 20);
    }

    #[test]
    fn a_family_has_what_its_children_spent() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"])
            .spawn()
            .unwrap();
        child.wait().unwrap();
        let own = of_process(std::process::id());
        assert!(of_family(std::process::id()).total() > own.total());
    }
}
