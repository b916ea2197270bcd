//! Making the slot and holding the snapshot under which partitions are read.

use millrace_model::work::{Progress, Report, SlotRequest, TableSize};
use millrace_model::{Epoch, Lsn, PipeId, PipeSpec, Problem, TableDefinition};
use millrace_postgres::{SlotKind, SnapshotSession, classify};

use super::{Ending, source};
use crate::desk::Reporter;
use crate::fence::Fence;

/// Slots that are made before one is taken although tables changed meanwhile. PostgreSQL (14 to 18) does not always track a transaction that begins and commits while a slot is
/// being made: where that truncated or altered a table, the slot may decode its changes wrongly, or fail for ever with "could not map filenumber". So a slot in
/// whose making no table changed is worth a few tries; a source that makes tables all the time must not keep the pipe from beginning.
const SLOT_TRIES: u32 = 6;

/// Opens the snapshot, says so, and holds it until its session ends or this is cancelled.
pub(crate) async fn run(
    spec: &PipeSpec,
    pipe: &PipeId,
    epoch: Epoch,
    slot: SlotRequest,
    tables: &[TableDefinition],
    reporter: &Reporter,
    fence: &Fence,
) -> Ending {
    let failed = |error: millrace_postgres::Error| vec![classify(&error)];
    let application = source::application_name(pipe, epoch);
    let session = source::connect(spec).await?;
    let (mut snapshot, consistent_point) = match slot {
        SlotRequest::Create { name, failover } => {
            let kind = if failover { SlotKind::Synchronised } else { SlotKind::Lasting };
            // One that is there is left from a try that nobody recorded: had it been, it would not be asked for again.
            fence.require()?;
            session.drop_slot(&name).await.map_err(failed)?;
            let mut tries = 1;
            loop {
                let horizon = session.horizon().await.map_err(failed)?;
                let made = SnapshotSession::with_slot(&spec.source, &application, &name, kind)
                    .await
                    .map_err(failed)?;
                if tries == SLOT_TRIES || !session.catalog_changed_since(&horizon).await.map_err(failed)? {
                    break made;
                }
                tries += 1;
                drop(made);
                fence.require()?;
                session.release_slot(&name).await.map_err(failed)?;
                session.drop_slot(&name).await.map_err(failed)?;
            }
        }
        SlotRequest::Existing { name } => {
            session.require_usable_slot(&name).await.map_err(failed)?;
            let snapshot = SnapshotSession::plain(&spec.source, &application).await.map_err(failed)?;
            (snapshot, session.log_end().await.map_err(failed)?)
        }
        SlotRequest::Temporary => {
            let name = format!("{}_{epoch}", pipe.slot_name());
            let made =
                SnapshotSession::with_slot(&spec.source, &application, &name, SlotKind::Temporary).await;
            made.map_err(failed)?
        }
        SlotRequest::None => {
            (SnapshotSession::plain(&spec.source, &application).await.map_err(failed)?, Lsn::ZERO)
        }
    };
    let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
    let sizes: Vec<TableSize> = session.table_sizes(&names).await.map_err(failed)?;
    let snapshot_name = snapshot.name().to_owned();
    tracing::info!(snapshot = snapshot_name, %consistent_point, "snapshot is open");
    let ready = Progress::SnapshotReady { snapshot_name, consistent_point, sizes };
    reporter.must_say(Report::Progress(ready)).await;
    drop(session);
    let ended = snapshot.wait_closed().await;
    let message = format!("the session that held the snapshot ended: {}", classify(&ended).message);
    Err(vec![Problem::transient("SNAPSHOT_LOST", message, "the copy goes on under a new snapshot by itself")])
}
