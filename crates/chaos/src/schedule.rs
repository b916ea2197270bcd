//! Which faults come when: the same seed gives the same schedule.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Workers of the fleet.
pub const WORKERS: usize = 3;
/// Coordinators on one catalog.
pub const COORDINATORS: usize = 2;

/// Time before the first fault, and between the last one and a quiet moment.
const SETTLE: Duration = Duration::from_secs(3);
/// Faults between two quiet moments.
const BETWEEN_QUIET: usize = 8;

/// Something that goes wrong, or that somebody does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, started again at its end.
    WorkerKilled(usize),
    /// SIGSTOP, SIGCONT at its end.
    WorkerStopped(usize),
    /// SIGTERM, started again once it has left.
    WorkerLeaves(usize),
    /// `kill -9`, started again at its end.
    CoordinatorKilled(usize),
    /// SIGSTOP, SIGCONT at its end.
    CoordinatorStopped(usize),
    /// SIGTERM, started again once it has left.
    CoordinatorLeaves(usize),
    /// Workers and the other coordinator lose their connections to it, and get no new ones.
    CoordinatorCut(usize),
    /// Nothing passes between it and them, and nobody is told.
    CoordinatorSilent(usize),
    /// What they say arrives, and nothing comes back: the network is cut one way.
    CoordinatorMute(usize),
    /// A clean restart, with the catalog that it holds.
    PostgresRestarted,
    /// Its postmaster is killed, and started again.
    PostgresKilled,
    /// Killed and started again.
    ClickHouseKilled,
    /// `pg_terminate_backend` on every session of Millrace.
    SessionsEnded,
    /// Connections to the source are cut and refused.
    SourceCut,
    /// Nothing passes to or from the source, and nobody is told.
    SourceSilent,
    /// Connections to the destination are cut and refused.
    DestinationCut,
    /// Nothing passes to or from the destination, and nobody is told.
    DestinationSilent,
    /// What is sent to the destination arrives and takes effect, but no answer comes back; then the connections are cut.
    AnswersLost,
    /// Inserts find no room on ClickHouse's disk.
    DestinationFull,
    /// Inserts find more parts than ClickHouse allows.
    TooManyParts,
    /// Whatever ClickHouse is asked for takes more memory than it has.
    OutOfMemory,
    /// PostgreSQL and its processes get no more memory than they have, so that statements fail, and no process can be added.
    SourceOutOfMemory,
    /// The wall clock of PostgreSQL jumps by hours, and back at its end.
    SourceClock(i64),
    /// Nothing more can be written on the disk of the source, which holds the catalog too; it is started again at its end.
    SourceFull,
    /// The source takes no connections, and those of Millrace are ended.
    SourceRefuses,
    /// The catalog can be read but not written.
    CatalogReadOnly,
    /// The wall clock of a worker jumps by hours, and back at its end.
    WorkerClock(usize, i64),
    /// The wall clock of a coordinator jumps by hours, and back at its end.
    CoordinatorClock(usize, i64),
    /// A user drains a worker, which is started again at its end.
    WorkerDrained(usize),
    /// A worker's cable is pulled: nothing passes, nobody is told.
    WorkerUnplugged(usize),
    /// A worker hears and is not heard.
    WorkerMute(usize),
    /// A worker is heard and does not hear.
    WorkerDeaf(usize),
    /// A user pauses the pipe, and resumes it at its end.
    Paused,
    /// A user has a table copied anew.
    Resynced,
}

impl Fault {
    /// One word for it, without which of several it strikes.
    pub fn kind(self) -> &'static str {
        match self {
            Self::WorkerKilled(_) => "worker killed",
            Self::WorkerStopped(_) => "worker stopped",
            Self::WorkerLeaves(_) => "worker leaves",
            Self::CoordinatorKilled(_) => "coordinator killed",
            Self::CoordinatorStopped(_) => "coordinator stopped",
            Self::CoordinatorLeaves(_) => "coordinator leaves",
            Self::CoordinatorCut(_) => "coordinator cut off",
            Self::CoordinatorSilent(_) => "coordinator silent",
            Self::CoordinatorMute(_) => "coordinator mute",
            Self::PostgresRestarted => "PostgreSQL restarted",
            Self::PostgresKilled => "PostgreSQL killed",
            Self::ClickHouseKilled => "ClickHouse killed",
            Self::SessionsEnded => "source sessions ended",
            Self::SourceCut => "source cut off",
            Self::SourceSilent => "source silent",
            Self::DestinationCut => "destination cut off",
            Self::DestinationSilent => "destination silent",
            Self::AnswersLost => "answers lost",
            Self::DestinationFull => "ClickHouse's disk full",
            Self::TooManyParts => "too many parts",
            Self::OutOfMemory => "ClickHouse out of memory",
            Self::SourceOutOfMemory => "PostgreSQL out of memory",
            Self::SourceClock(_) => "PostgreSQL's clock jumps",
            Self::SourceFull => "source's disk full",
            Self::SourceRefuses => "source refuses",
            Self::CatalogReadOnly => "catalog read-only",
            Self::WorkerClock(..) => "worker's clock jumps",
            Self::CoordinatorClock(..) => "coordinator's clock jumps",
            Self::WorkerDrained(_) => "worker drained",
            Self::WorkerUnplugged(_) => "worker unplugged",
            Self::WorkerMute(_) => "worker not heard",
            Self::WorkerDeaf(_) => "worker does not hear",
            Self::Paused => "pipe paused",
            Self::Resynced => "table copied anew",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkerKilled(which)
            | Self::WorkerStopped(which)
            | Self::WorkerLeaves(which)
            | Self::WorkerDrained(which)
            | Self::WorkerUnplugged(which)
            | Self::WorkerMute(which)
            | Self::WorkerDeaf(which)
            | Self::CoordinatorKilled(which)
            | Self::CoordinatorStopped(which)
            | Self::CoordinatorCut(which)
            | Self::CoordinatorSilent(which)
            | Self::CoordinatorMute(which)
            | Self::CoordinatorLeaves(which) => {
                write!(f, "{} ({which})", self.kind())
            }
            Self::WorkerClock(which, hours) | Self::CoordinatorClock(which, hours) => {
                write!(f, "{} ({which}, {hours:+} h)", self.kind())
            }
            Self::SourceClock(hours) => write!(f, "{} ({hours:+} h)", self.kind()),
            other => f.write_str(other.kind()),
        }
    }
}

/// One entry of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A fault that begins so long after the one before began, and lasts so long. It may begin while another lasts.
    Fault {
        /// Since the entry before began.
        after: Duration,
        /// Which.
        fault: Fault,
        /// How long.
        lasts: Duration,
    },
    /// All faults end; once everything has settled both sides are compared.
    Quiet,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { after, fault, lasts } => {
                write!(f, "+{:.1} s  {fault}, for {:.1} s", after.as_secs_f64(), lasts.as_secs_f64())
            }
            Self::Quiet => f.write_str("quiet"),
        }
    }
}

/// Faults for about so long; ends with a quiet moment.
pub fn schedule(seed: u64, length: Duration) -> Vec<Entry> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut entries = Vec::new();
    let (mut at, mut since_quiet) = (SETTLE, 0);
    loop {
        let after =
            if since_quiet == 0 { SETTLE } else { Duration::from_millis(random.random_range(500..6_000)) };
        let fault = fault(&mut random);
        let lasts = match fault {
            // Around the leases: of a worker 10 s, of a leader 8 s.
            Fault::WorkerStopped(_)
            | Fault::CoordinatorStopped(_)
            | Fault::CoordinatorCut(_)
            | Fault::CoordinatorSilent(_)
            | Fault::CoordinatorMute(_)
            | Fault::WorkerUnplugged(_)
            | Fault::WorkerMute(_)
            | Fault::WorkerDeaf(_)
            | Fault::WorkerClock(..)
            | Fault::CoordinatorClock(..)
            | Fault::SourceClock(_) => random.random_range(1_000..14_000),
            Fault::DestinationSilent | Fault::SourceSilent => random.random_range(500..6_000),
            Fault::Resynced | Fault::SessionsEnded => 0,
            _ => random.random_range(200..4_000),
        };
        let lasts = Duration::from_millis(lasts);
        at += after;
        if at + lasts > length {
            break;
        }
        entries.push(Entry::Fault { after, fault, lasts });
        since_quiet += 1;
        if since_quiet == BETWEEN_QUIET {
            entries.push(Entry::Quiet);
            since_quiet = 0;
        }
    }
    if since_quiet > 0 || entries.is_empty() {
        entries.push(Entry::Quiet);
    }
    entries
}

fn fault(random: &mut StdRng) -> Fault {
    let worker = random.random_range(0..WORKERS);
    let coordinator = random.random_range(0..COORDINATORS);
    let hours = if random.random_bool(0.5) { 30 } else { -30 };
    match random.random_range(0..41) {
        0..=2 => Fault::WorkerKilled(worker),
        3..=4 => Fault::WorkerStopped(worker),
        5 => Fault::WorkerLeaves(worker),
        6..=7 => Fault::CoordinatorKilled(coordinator),
        8..=9 => Fault::CoordinatorStopped(coordinator),
        10 => Fault::CoordinatorLeaves(coordinator),
        11 => Fault::PostgresRestarted,
        12 => Fault::PostgresKilled,
        13..=14 => Fault::ClickHouseKilled,
        15 => Fault::SessionsEnded,
        16 => Fault::SourceCut,
        17 => Fault::SourceSilent,
        18 => Fault::DestinationCut,
        19 => Fault::DestinationSilent,
        20..=21 => Fault::AnswersLost,
        22 => Fault::Paused,
        23 => Fault::CoordinatorCut(coordinator),
        24 => Fault::CoordinatorSilent(coordinator),
        25 => Fault::CoordinatorMute(coordinator),
        26 => Fault::DestinationFull,
        27 => Fault::TooManyParts,
        28 => Fault::OutOfMemory,
        29 => Fault::SourceRefuses,
        30 => Fault::CatalogReadOnly,
        31 => Fault::WorkerClock(worker, hours),
        32 => Fault::CoordinatorClock(coordinator, hours),
        33 => Fault::WorkerDrained(worker),
        34 => Fault::WorkerUnplugged(worker),
        35 => Fault::WorkerMute(worker),
        36 => Fault::WorkerDeaf(worker),
        37 => Fault::SourceFull,
        38 => Fault::SourceOutOfMemory,
        39 => Fault::SourceClock(hours),
        _ => Fault::Resynced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_schedule_and_another_seed_another() {
        let minutes = Duration::from_secs(300);
        assert_eq!(schedule(7, minutes), schedule(7, minutes));
        assert_ne!(schedule(7, minutes), schedule(8, minutes));
        for seed in 0..50 {
            let entries = schedule(seed, minutes);
            assert_eq!(entries.last(), Some(&Entry::Quiet));
            let faults = entries.iter().filter(|entry| matches!(entry, Entry::Fault { .. })).count();
            assert!(faults > 40, "seed {seed}: {faults}");
        }
        assert_eq!(schedule(1, Duration::ZERO), [Entry::Quiet]);
    }

    #[test]
    fn every_kind_comes_in_time() {
        let kinds: std::collections::BTreeSet<&str> = (0..20)
            .flat_map(|seed| schedule(seed, Duration::from_secs(600)))
            .filter_map(|entry| match entry {
                Entry::Fault { fault, .. } => Some(fault.kind()),
                Entry::Quiet => None,
            })
            .collect();
        assert_eq!(kinds.len(), 34, "{kinds:?}");
    }
}
