//! Exported snapshots: what several sessions read as one moment (manual: "Snapshot Synchronization Functions").

use millrace_model::Lsn;
use millrace_model::spec::PostgresSource;

use crate::error::{Error, Step};
use crate::quoting::quote_identifier;
use crate::wire::{Purpose, Wire};

/// A session that keeps a snapshot for others to import. The snapshot is gone when it ends.
#[derive(Debug)]
pub struct SnapshotSession {
    wire: Wire,
    name: String,
}

/// What becomes of a slot after the session that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// It stays.
    Lasting,
    /// It stays and is synchronised to standbys (PostgreSQL 17 and later; manual: "Logical Replication Failover").
    Synchronised,
    /// It ends with the session. What it is good for is its making: that waits for every transaction which a plain snapshot would neither see nor know to be
    /// decoded under the present publication.
    Temporary,
}

impl SnapshotSession {
    /// Makes a logical slot for pgoutput and exports the snapshot at its consistent point: the stream brings everything that the snapshot does not see, and
    /// nothing that it does.
    ///
    /// # Errors
    /// The slot exists already, none is free, or the connection fails.
    pub async fn with_slot(
        source: &PostgresSource,
        application_name: &str,
        slot_name: &str,
        kind: SlotKind,
    ) -> Result<(Self, Lsn), Error> {
        let mut wire = Wire::connect(source, Purpose::Replication, application_name).await?;
        let name = quote_identifier(slot_name);
        // The form without parentheses is understood by every version from 14 on; that with a failover slot from 17 on.
        let sql = match kind {
            SlotKind::Lasting => {
                format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput EXPORT_SNAPSHOT")
            }
            SlotKind::Synchronised => {
                format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)")
            }
            SlotKind::Temporary => {
                format!("CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT")
            }
        };
        let rows = wire.simple_query(Step::CreateSlot, &sql).await?;
        let field = |index: usize| {
            let field = rows.first().and_then(|row| row.get(index)).cloned().flatten();
            field.ok_or_else(|| Error::Protocol("a slot was made without telling where it begins".to_owned()))
        };
        let point = field(1)?;
        let point = point.parse().map_err(|error| Error::Protocol(format!("{error}")))?;
        let name = field(2)?;
        Ok((Self { wire, name }, point))
    }

    /// Exports a snapshot of this moment. Works on a standby, and without logical WAL.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn plain(source: &PostgresSource, application_name: &str) -> Result<Self, Error> {
        let mut wire = Wire::connect(source, Purpose::Session, application_name).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        wire.simple_query(Step::Begin, begin).await?;
        let rows = wire.simple_query(Step::ExportSnapshot, "SELECT pg_export_snapshot()").await?;
        let name = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        let name = name.ok_or_else(|| Error::Protocol("a snapshot without a name".to_owned()))?;
        Ok(Self { wire, name })
    }

    /// What others import.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the session ends by somebody else's doing; says why. Dropping ends it, too.
    pub async fn wait_closed(&mut self) -> Error {
        self.wire.closed().await
    }
}
