//! The bare sides: what PostgreSQL gives and ClickHouse takes when nothing is done in between.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use millrace_clickhouse::{Destination, TableRef};
use millrace_mapping::EncodedBlock;
use millrace_model::spec::PostgresSource;
use millrace_model::{Lsn, PageRange};
use millrace_postgres::{CopyEvent, CopyReader, ReplicationEvent, ReplicationStream, StreamForm};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::report::number;
use super::testbed::Testbed;

/// Connections of a bare copy and of a bare insert: as many as there are workers.
const CONNECTIONS: u32 = 2;
/// Bytes of a block, as the product's copy makes them.
const BLOCK_BYTES: u64 = 16 << 20;

/// Reads a table by binary COPY over two connections and drops what comes.
pub(super) async fn copy(testbed: &Testbed, table: &str) -> anyhow::Result<Duration> {
    let sql = "SELECT pg_relation_size($1::text::regclass) / 8192";
    let pages: i64 = testbed.source.query_one(sql, &[&table]).await?.get(0);
    let middle = u32::try_from(pages / 2)?;
    let halves = [PageRange { first: 0, end: Some(middle) }, PageRange { first: middle, end: None }];
    let began = Instant::now();
    let mut readers = JoinSet::new();
    for range in halves {
        let source = testbed.postgres_source();
        let end = range.end.map_or(String::new(), |end| format!("AND ctid < '({end},0)'::tid"));
        let sql = format!(
            "COPY (SELECT * FROM ONLY {table} WHERE ctid >= '({},0)'::tid {end}) TO STDOUT (FORMAT binary)",
            range.first
        );
        readers.spawn(async move { copy_range(&source, &sql).await });
    }
    while let Some(read) = readers.join_next().await {
        read??;
    }
    Ok(began.elapsed())
}

async fn copy_range(source: &PostgresSource, sql: &str) -> anyhow::Result<()> {
    let mut reader = CopyReader::connect(source, "bench").await?;
    reader.start(sql).await?;
    loop {
        match reader.next_row()? {
            CopyEvent::Row(row) => drop(std::hint::black_box(row)),
            CopyEvent::NeedMore => reader.fill().await?,
            CopyEvent::End => return Ok(()),
        }
    }
}

/// All rows of a destination table as Native blocks of about 16 MiB, read back from ClickHouse. Ids must be dense from 1.
pub(super) async fn blocks(
    testbed: &Testbed,
    table: &TableRef,
    rows: u32,
) -> anyhow::Result<Vec<EncodedBlock>> {
    let bytes = testbed
        .number(&format!(
            "SELECT toUInt64(sum(data_uncompressed_bytes)) FROM system.parts WHERE active AND database = '{}' AND table = '{}'",
            table.database, table.name
        ))
        .await?;
    let each = (u64::from(rows) * BLOCK_BYTES / bytes.max(1)).clamp(1, 10_000_000);
    let mut blocks = Vec::new();
    for first in (1..=u64::from(rows)).step_by(usize::try_from(each)?) {
        let last = (first + each - 1).min(u64::from(rows));
        // Sorted anew, so that the rows come as one block however they lie in the table.
        let sql = format!(
            "SELECT * FROM {table} WHERE id BETWEEN {first} AND {last} ORDER BY id \
             SETTINGS max_block_size = 10000000, preferred_block_size_bytes = 0, optimize_read_in_order = 0, max_threads = 1"
        );
        let native = testbed.native(&sql).await?;
        let expected = last - first + 1;
        if rows_of_first_block(&native) != Some(expected) {
            bail!("rows {first} to {last} of {table} did not come as one block");
        }
        blocks.push(EncodedBlock {
            rows: usize::try_from(expected)?,
            pieces: vec![native],
            altered: Vec::new(),
        });
    }
    Ok(blocks)
}

/// How many rows the head of a Native block announces: after the number of columns, as an unsigned LEB128 number.
fn rows_of_first_block(native: &Bytes) -> Option<u64> {
    let mut numbers = [0u64; 2];
    let mut bytes = native.iter();
    for number in &mut numbers {
        for shift in (0..63).step_by(7) {
            let byte = bytes.next()?;
            *number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    Some(numbers[1])
}

/// Inserts blocks over two connections, with the client and the settings of the product.
pub(super) async fn insert(
    destination: &Destination,
    table: &TableRef,
    blocks: &[EncodedBlock],
) -> anyhow::Result<Duration> {
    let waiting: VecDeque<(usize, EncodedBlock)> = blocks.iter().cloned().enumerate().collect();
    let waiting = Arc::new(Mutex::new(waiting));
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (destination, table, waiting) = (destination.clone(), table.clone(), waiting.clone());
        writers.spawn(async move {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((place, block)) = next else { return anyhow::Ok(()) };
                destination.insert(&table, &block, &format!("bench-{place}")).await?;
            }
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(began.elapsed())
}

/// A slot that is read without a pipe.
pub(super) struct Slot<'a> {
    testbed: &'a Testbed,
    name: &'static str,
    publication: String,
}

impl<'a> Slot<'a> {
    /// Makes a slot that begins now.
    pub(super) async fn make(
        testbed: &'a Testbed,
        name: &'static str,
        publication: &str,
    ) -> anyhow::Result<Self> {
        let sql = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
        testbed.source.execute(sql, &[&name]).await?;
        Ok(Self { testbed, name, publication: publication.to_owned() })
    }

    /// Begins to receive; `changes` inserts, updates and deletes later the receiver ends. Says when it is attached.
    ///
    /// On a worker thread of the runtime, as the product's tasks are: the main thread would be woken from another one for every read.
    pub(super) async fn receive(
        &self,
        changes: u64,
    ) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<()>>> {
        let (attached, is_attached) = oneshot::channel();
        let (source, name, publication) =
            (self.testbed.postgres_source(), self.name, self.publication.clone());
        let receiver =
            tokio::spawn(async move { receive(&source, name, publication, changes, attached).await });
        // An error of the receiver comes out of its handle.
        let _ = is_attached.await;
        Ok(receiver)
    }

    /// Drops the slot.
    pub(super) async fn remove(self) -> anyhow::Result<()> {
        self.testbed.source.execute("SELECT pg_drop_replication_slot($1)", &[&self.name]).await?;
        Ok(())
    }
}

/// Receives so many changes from the slot and drops them, in the form that the product asks for.
async fn receive(
    source: &PostgresSource,
    slot: &str,
    publication: String,
    changes: u64,
    attached: oneshot::Sender<()>,
) -> anyhow::Result<()> {
    let form = StreamForm { binary: true, in_progress: true };
    let mut stream = ReplicationStream::start(source, "bench", slot, Lsn::ZERO, &[publication], form).await?;
    // Nobody may be waiting.
    let _ = attached.send(());
    let mut seen = 0;
    while seen < changes {
        stream.fill().await?;
        let mut asked = false;
        while let Some(event) = stream.next_event()? {
            match event {
                ReplicationEvent::XLogData { payload, .. } => {
                    seen += u64::from(matches!(payload.first(), Some(b'I' | b'U' | b'D')));
                }
                ReplicationEvent::Keepalive { reply_requested, .. } => asked |= reply_requested,
            }
        }
        if asked {
            // A sign of life; position 0 lets the slot forget nothing.
            stream.send_status(Lsn::ZERO, Lsn::ZERO, Lsn::ZERO, false).await?;
        }
    }
    stream.finish().await?;
    Ok(())
}

/// The time in which the CPU of bare copy and bare insert could be spent if every core were busy all the time: nobody on this machine moves the rows in less.
pub(super) fn computed_limit(copy: Duration, insert: Duration) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (copy + insert).as_secs_f64() / number(cores as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_block_says_its_rows() {
        assert_eq!(rows_of_first_block(&Bytes::from_static(&[7, 0x80, 0x02, 1])), Some(256));
        assert_eq!(rows_of_first_block(&Bytes::from_static(&[7])), None);
    }
}
