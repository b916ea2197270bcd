//! Getting a block into the destination in spite of passing trouble.

use std::time::Duration;

use millrace_clickhouse::{Destination, TableRef, classify};
use millrace_mapping::EncodedBlock;
use millrace_model::{Problem, Recovery, TableName};
use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After so long the task is given up, for the coordinator to show and to try again: a worker does not sit on trouble in silence.
const PATIENCE: Duration = Duration::from_secs(20);

/// Inserts a block and answers when ClickHouse has. Trouble that passes is waited out for a while with growing pauses; the repeated insert is the same block under
/// the same token, so one whose answer was lost does no harm.
///
/// Cancel by dropping.
pub(crate) async fn deliver(
    destination: &Destination,
    source: &TableName,
    table: &TableRef,
    block: &EncodedBlock,
    token: &str,
) -> Result<(), Problem> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let Err(error) = destination.insert(table, block, token, None).await else { return Ok(()) };
        let problem = classify(&error);
        if problem.recovery != Recovery::Retry {
            return Err(problem.of_table(source));
        }
        if began.elapsed() > PATIENCE {
            return Err(problem);
        }
        tracing::warn!(table.name = %source, %problem, "insert will be repeated");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
