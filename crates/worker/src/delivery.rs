//! Getting a block into the destination in spite of passing trouble.

use std::time::Duration;

use millrace_clickhouse::{Destination, TableRef, classify};
use millrace_mapping::EncodedBlock;
use millrace_model::{Problem, Recovery, TableName};
use tokio::time::Instant;

use crate::fence::{self, Fence};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After so long the task is given up, for the coordinator to show and to try again: a worker does not sit on trouble in silence.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Inserts a block and answers when ClickHouse has. Trouble that passes is waited out for as long as `patience` with growing pauses; the repeated insert is the same block under
/// the same token, so one whose answer was lost does no harm.
///
/// Where there is a fence, nothing is sent once the lease may have ended.
///
/// Cancel by dropping.
pub(crate) async fn deliver(
    destination: &Destination,
    source: &TableName,
    table: &TableRef,
    block: &EncodedBlock,
    token: &str,
    patience: Duration,
    fence: Option<&Fence>,
) -> Result<(), Problem> {
    let mut patience = Patience::of(source, patience);
    loop {
        if fence.is_some_and(|fence| !fence.stands()) {
            return Err(fence::lost());
        }
        match destination.insert(table, block, token).await {
            Ok(()) => return Ok(()),
            Err(error) => patience.wait(&error).await?,
        }
    }
}

/// How trouble at the destination is waited out: with growing pauses, not for ever.
pub(crate) struct Patience<'a> {
    source: &'a TableName,
    began: Instant,
    pause: Duration,
    longest: Duration,
}

impl<'a> Patience<'a> {
    /// For work on the destination of a source table.
    pub(crate) fn new(source: &'a TableName) -> Self {
        Self { source, began: Instant::now(), pause: FIRST_PAUSE, longest: PATIENCE }
    }

    /// As [`Patience::new`], for so long.
    pub(crate) fn of(source: &'a TableName, longest: Duration) -> Self {
        Self { longest, ..Self::new(source) }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// Trying again is of no use, or was of none for long enough.
    pub(crate) async fn wait(&mut self, error: &millrace_clickhouse::Error) -> Result<(), Problem> {
        let problem = classify(error);
        if problem.recovery != Recovery::Retry {
            return Err(problem.of_table(self.source));
        }
        if self.began.elapsed() > self.longest {
            return Err(problem);
        }
        tracing::warn!(table.name = %self.source, %problem, "will be repeated");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}
