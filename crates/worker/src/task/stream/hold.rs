//! Tables that cannot be written for now: their changes are held at the source while the others go on.
//!
//! The slot does not pass the first change that a held table lacks. The insert that failed is tried again by itself; once it succeeds the stream is opened
//! anew and reads what was held, for all tables, which does no harm to those that have it. A table that holds back too much, or for too long, is set aside.

use std::time::Duration;

use millrace_apply::TableIndex;
use millrace_clickhouse::classify;
use millrace_mapping::EncodedBlock;
use millrace_model::{Lsn, Problem};
use tokio::time::Instant;

use super::Pump;
use super::claim::CLAIM_LOST;
use crate::budget::Reservation;
use crate::fence::{self, LEASE_LOST};

/// The longest that a table may hold the slot back.
const LONGEST: Duration = Duration::from_secs(600);
/// Pauses between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Trouble that concerns the destination as a whole: to hold one table would help nobody.
const OF_ALL: [&str; 10] = [
    CLAIM_LOST,
    LEASE_LOST,
    "DESTINATION_UNREACHABLE",
    "DESTINATION_UNAVAILABLE",
    "DESTINATION_TLS_FAILED",
    "DESTINATION_AUTHENTICATION_FAILED",
    "DESTINATION_NOT_CLICKHOUSE",
    "DESTINATION_PROTOCOL",
    "DESTINATION_DATABASE_MISSING",
    "DESTINATION_DISK_FULL",
];

/// An insert that failed.
pub(super) struct Refused {
    pub(super) index: usize,
    pub(super) problem: Problem,
    pub(super) insert: HeldInsert,
}

/// What is tried again.
pub(super) struct HeldInsert {
    pub(super) block: EncodedBlock,
    pub(super) token: String,
    /// Memory of the block.
    pub(super) reserved: Option<Reservation>,
}

/// A table that is held.
pub(super) struct Struggle {
    pub(super) problem: Problem,
    since: Instant,
    /// Everything before is in the table.
    pub(super) held_at: Lsn,
    pause: Duration,
}

/// A try is over.
pub(super) struct Tried {
    index: usize,
    insert: HeldInsert,
    result: Result<(), Problem>,
}

impl Pump<'_> {
    /// Holds tables whose inserts failed.
    ///
    /// # Errors
    /// The trouble is not of one table.
    pub(super) fn hold(&mut self, refused: Vec<Refused>) -> Result<(), Vec<Problem>> {
        if let Some(of_all) = refused.iter().find(|refused| OF_ALL.contains(&refused.problem.code.as_str())) {
            return Err(vec![Problem { table: None, ..of_all.problem.clone() }]);
        }
        for Refused { index, problem, insert } in refused {
            if self.struggling.contains_key(&index) || !self.applier.is_active(TableIndex(index)) {
                // One that was on its way with the first.
                continue;
            }
            let name = &self.planned[index].definition.name;
            tracing::warn!(table.name = %name, %problem, "its changes are held at the source; the others go on");
            self.applier.set_aside(TableIndex(index));
            let (since, held_at) = (Instant::now(), self.durable);
            let problem = problem.of_table(name);
            self.struggling.insert(index, Struggle { problem, since, held_at, pause: FIRST_PAUSE });
            self.try_again(index, insert);
        }
        Ok(())
    }

    fn try_again(&mut self, index: usize, insert: HeldInsert) {
        let Some(struggle) = self.struggling.get_mut(&index) else { return };
        let pause = struggle.pause;
        struggle.pause = (pause * 2).min(LONGEST_PAUSE);
        let (destination, table) = (self.destination.clone(), self.planned[index].target.table.clone());
        let (claim, watch) = (self.claim_on(index), self.watch.clone());
        self.trying.spawn(async move {
            tokio::time::sleep(pause).await;
            let claimed = match claim {
                _ if !watch.awake() => Err(fence::lost()),
                Some(claim) => claim.stands().await,
                None => Ok(()),
            };
            let result = match claimed {
                Ok(()) => {
                    let inserted = destination.insert(&table, &insert.block, &insert.token).await;
                    inserted.map_err(|error| classify(&error))
                }
                Err(problem) => Err(problem),
            };
            Tried { index, insert, result }
        });
    }

    /// Draws the conclusion from a try.
    ///
    /// # Errors
    /// It succeeded, so that the stream is to be opened anew.
    pub(super) async fn tried(&mut self, tried: Tried) -> Result<(), Vec<Problem>> {
        let Tried { index, insert, result } = tried;
        let Some(struggle) = self.struggling.get_mut(&index) else { return Ok(()) };
        let name = &self.planned[index].definition.name;
        match result {
            Ok(()) => {
                let message = format!("{name} can be written again; what was held for it is read now");
                return Err(vec![Problem::transient(
                    "STREAM_REOPENED",
                    message,
                    "it is opened again by itself",
                )]);
            }
            // Another stream may be at it already.
            Err(problem) if [CLAIM_LOST, LEASE_LOST].contains(&problem.code.as_str()) => {
                return Err(vec![problem]);
            }
            Err(problem) => struggle.problem = problem.of_table(name),
        }
        self.give_up_held().await;
        // Unless it was just given up.
        self.try_again(index, insert);
        Ok(())
    }

    /// Sets tables aside that hold back too much.
    pub(super) async fn give_up_held(&mut self) {
        let limit = self.stream.spec.settings.max_held_wal;
        let end = self.source.max(self.log_end);
        let too_much = |struggle: &Struggle| {
            struggle.since.elapsed() > LONGEST || end.0.saturating_sub(struggle.held_at.0) > limit
        };
        let given_up: Vec<(TableIndex, Problem)> = self
            .struggling
            .iter()
            .filter(|(_, struggle)| too_much(struggle))
            .map(|(index, struggle)| (TableIndex(*index), explained(struggle, limit)))
            .collect();
        // The slot passes nothing before this is in the catalog.
        self.set_aside(given_up).await;
    }
}

/// Why a table is not waited for any longer. It can only be mended by a copy, but not before somebody has seen to the cause.
fn explained(struggle: &Struggle, limit: u64) -> Problem {
    let seconds = struggle.since.elapsed().as_secs();
    let message = format!(
        "{}; it was tried for {seconds} s, and more of the source's log than that (or than maxHeldWal, {} MiB) is not held for one table",
        struggle.problem.message,
        limit >> 20
    );
    let remedy = format!("{}; then run `millrace pipe retry`", struggle.problem.remedy);
    Problem::operator(struggle.problem.code.clone(), message, remedy)
}
