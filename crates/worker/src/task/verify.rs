//! Comparing a table of a running pipe with its source.
//!
//! 1. Both sides are read once: the source in a snapshot, the destination once the stream has made everything durable that the snapshot sees. Sums of digests by buckets of
//!    keys tell where they do not agree.
//! 2. What changed meanwhile does not agree either. So the rows of those buckets are read once more, and tell the keys.
//! 3. Each of these rows is looked at by itself until it stood still from one look to the next ([`compare::judge`]); then a difference is one.
//!
//! Rows are compared as ClickHouse holds them: the source's go through the encoder that copies and streams go through.

mod compare;
mod show;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use millrace_clickhouse::{Destination, Keys};
use millrace_mapping::{BlockBuilder, ChType, ColumnPlan};
use millrace_model::spec::{TableEngine, TruncatePolicy};
use millrace_model::work::{
    DestinationFacts, DifferenceKind, KeyRange, Outcome, Progress, RowDifference, TableWork, Verified,
};
use millrace_model::{Epoch, Lsn, PageRange, PipeId, PipeSpec, Problem, SourceColumn, Timestamp};
use millrace_postgres::{
    CopyEvent, CopyReader, Session, classify, copy_query, copy_query_of_key_range, copy_query_of_keys,
};
use tokio::time::Instant;

use self::compare::{DestinationRow, SourceRow, Suspects, Tally, Verdict, digest, judge};
use super::tables::{self, PlannedTable};
use super::{Ending, Shared};
use crate::desk::Reporter;

/// Rows of a bucket, about, and how many buckets there are at most: where much changes meanwhile, small ones keep the second reading small.
const ROWS_PER_BUCKET: u64 = 4;
const BUCKETS: u64 = 1 << 19;
/// A table of twice as many rows is compared range by range, about so many rows each, in at most [`PARTS`]: ranges go to whoever has room, and one that is done stays done
/// whoever dies.
const ROWS_PER_PART: u64 = 500_000;
const PARTS: usize = 100;
/// Rows that are held in memory at a time in the second reading.
const SUSPECTS: usize = 100_000;
/// Rows that are looked at by themselves, of each part of the second reading.
const CANDIDATES: usize = 10_000;
/// How often a row is looked at that does not stand still.
const LOOKS: usize = 6;
/// Differences that are counted; beyond, more do not tell more.
const DIFFERENCES: u64 = 10_000;
/// Keys of one question to the destination.
const KEYS: usize = 1_000;
/// How long the stream may stand still while it is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the slot is looked at.
const POLL: Duration = Duration::from_millis(100);
/// An idle source is given something to stream after so long.
const NUDGE: Duration = Duration::from_secs(2);

/// One table to compare.
pub(crate) struct Verify {
    pub(crate) epoch: Epoch,
    pub(crate) pipe: PipeId,
    pub(crate) spec: PipeSpec,
    pub(crate) table: TableWork,
    /// Which rows; `None` leaves it to this worker whether to divide the table.
    pub(crate) range: Option<KeyRange>,
    pub(crate) slot_name: String,
    /// Whether other sources feed the same table.
    pub(crate) shared_target: bool,
    pub(crate) destination: DestinationFacts,
}

/// Compares; differences are a result, not a failure.
pub(crate) async fn run(verify: Verify, shared: &Shared, reporter: &Reporter) -> Ending {
    let destination = tables::destination(&verify.spec)?;
    let planned = tables::plan(
        &verify.spec,
        &verify.table.spec,
        &verify.table.definition,
        &destination,
        verify.destination,
    )?;
    if planned.target.engine != TableEngine::ReplacingMergeTree {
        let message = "only tables of the engine ReplacingMergeTree can be compared row by row: others keep every change, or nothing";
        let problem = Problem::operator("VERIFY_UNFIT", message, "compare it by queries of your own");
        let problem = problem.of_table(&planned.definition.name);
        return Ok(Outcome::Verified(Verified { problem: Some(problem), ..Verified::default() }));
    }
    let integer_key = integer_key(&planned);
    let mut rows = verify.table.definition.estimated_rows;
    if let (None, Some(column)) = (verify.range, &integer_key) {
        let session = super::source::connect(&verify.spec).await?;
        let spread = session.spread(&planned.definition, column).await;
        let spread = spread.map_err(|error| vec![classify(&error).of_table(&planned.definition.name)])?;
        rows = rows.max(spread.estimated_rows);
        let bounds = spread.cut(parts(rows));
        if !bounds.is_empty() {
            return Ok(Outcome::Divided { bounds });
        }
    }
    if verify.range.is_some() {
        if integer_key.is_none() {
            let message = "its key became another one while it was compared";
            let problem = Problem::operator("VERIFY_ABANDONED", message, "ask for the comparison again");
            let problem = problem.of_table(&planned.definition.name);
            return Ok(Outcome::Verified(Verified { problem: Some(problem), ..Verified::default() }));
        }
        rows = (rows / PARTS as u64).max(ROWS_PER_PART);
    }
    let buckets = (rows / ROWS_PER_BUCKET).clamp(1 << 10, BUCKETS);
    // The sums, what is held in the second reading, and a row on its way.
    let memory = buckets * Tally::BUCKET_BYTES + (16 << 20);
    let reserved = shared.budget.reserve(memory).await;
    let comparison = Comparison::new(&verify, &planned, &destination, integer_key, reporter).await?;
    let verified = comparison.run(buckets as usize).await?;
    drop(reserved);
    tracing::info!(
        table.name = %planned.definition.name,
        rows = verified.source_rows,
        differences = verified.differences,
        unsettled = verified.unsettled,
        "table compared with its source"
    );
    Ok(Outcome::Verified(verified))
}

/// How many ranges a table of so many rows is divided into.
fn parts(rows: u64) -> usize {
    usize::try_from(rows / ROWS_PER_PART).unwrap_or(usize::MAX).clamp(1, PARTS)
}

/// The source's column that rows can be asked for by, on both sides by an index: an integer that begins the key here and the sorting key there.
fn integer_key(planned: &PlannedTable) -> Option<String> {
    let first = planned.target.sorting_key.first()?;
    let column = planned.columns.iter().find(|column| column.name == *first)?;
    let integer = matches!(column.target, ChType::Int16 | ChType::Int32 | ChType::Int64);
    (integer && planned.definition.key.first() == Some(first)).then(|| first.clone())
}

/// Reads both sides of one table.
struct Comparison<'a> {
    verify: &'a Verify,
    planned: &'a PlannedTable,
    destination: &'a Destination,
    reporter: &'a Reporter,
    session: Session,
    reader: CopyReader,
    encoder: BlockBuilder,
    /// Places and types of the columns that tell rows apart.
    key: Vec<usize>,
    key_types: Vec<ChType>,
    /// The source's column that rows can be asked for by.
    integer_key: Option<String>,
    /// Rows read so far, of both sides.
    rows_read: u64,
    pace: Pace,
    verified: Verified,
}

/// Keeps a reading to so many rows a second; 0 is without limit.
struct Pace {
    rows_per_second: u32,
    began: Instant,
    rows: u64,
}

impl Pace {
    fn new(rows_per_second: u32) -> Self {
        Self { rows_per_second, began: Instant::now(), rows: 0 }
    }

    /// Another reading begins.
    fn begin(&mut self) {
        (self.began, self.rows) = (Instant::now(), 0);
    }

    /// When the rows that were read so far may have been read at the earliest.
    fn due(&self) -> Option<Instant> {
        let second = u64::from(self.rows_per_second);
        (second > 0).then(|| self.began + Duration::from_millis(self.rows.saturating_mul(1_000) / second))
    }

    async fn keep(&self) {
        if let Some(due) = self.due() {
            tokio::time::sleep_until(due).await;
        }
    }
}

impl<'a> Comparison<'a> {
    async fn new(
        verify: &'a Verify,
        planned: &'a PlannedTable,
        destination: &'a Destination,
        integer_key: Option<String>,
        reporter: &'a Reporter,
    ) -> Result<Self, Vec<Problem>> {
        let place = |name: &String| planned.columns.iter().position(|column| column.name == *name);
        let key: Vec<usize> = planned.target.sorting_key.iter().filter_map(place).collect();
        let key_types: Vec<ChType> = key.iter().map(|at| planned.columns[*at].target.clone()).collect();
        let session = super::source::connect(&verify.spec).await?;
        let application = super::source::application_name(&verify.pipe, verify.epoch);
        let reader = CopyReader::connect(&verify.spec.source, &application);
        let reader = reader.await.map_err(|error| vec![classify(&error)])?;
        let encoder = BlockBuilder::new(&planned.columns, &planned.target.metadata);
        let verified = Verified::default();
        Ok(Self {
            verify,
            planned,
            destination,
            reporter,
            session,
            reader,
            encoder,
            key,
            key_types,
            integer_key,
            rows_read: 0,
            pace: Pace::new(verify.spec.settings.verify_rows_per_second),
            verified,
        })
    }

    async fn run(mut self, buckets: usize) -> Result<Verified, Vec<Problem>> {
        let mut tally = Tally::new(buckets);
        let seen = self.read_source(None, |key, row, _| tally.source(digest(key), digest(row))).await?;
        self.until_durable(seen).await?;
        self.read_destination(|key, row| tally.destination(digest(key), digest(row))).await?;
        self.verified.source_rows = tally.source_rows;
        self.verified.destination_rows = tally.destination_rows;
        let differing = tally.differing();
        let rows_each = (tally.source_rows.max(tally.destination_rows) as usize / buckets).max(1) * 2;
        for part in differing.chunks((SUSPECTS / rows_each).max(1)) {
            if self.verified.differences >= DIFFERENCES {
                self.verified.more = true;
                break;
            }
            let part: BTreeSet<usize> = part.iter().copied().collect();
            self.look_into(&tally, &part).await?;
        }
        Ok(self.verified)
    }

    /// Finds the rows of some buckets that differ.
    async fn look_into(&mut self, tally: &Tally, part: &BTreeSet<usize>) -> Result<(), Vec<Problem>> {
        let mut suspects = Suspects::default();
        let seen = self
            .read_source(None, |key, row, _| {
                let key_digest = digest(key);
                if suspects.len() < SUSPECTS && part.contains(&tally.bucket(key_digest)) {
                    suspects.source(key_digest, key, digest(row));
                }
            })
            .await?;
        self.until_durable(seen).await?;
        self.read_destination(|key, row| {
            let key_digest = digest(key);
            if suspects.len() < 2 * SUSPECTS && part.contains(&tally.bucket(key_digest)) {
                suspects.destination(key_digest, key, digest(row));
            }
        })
        .await?;
        let mut candidates = suspects.keys();
        if candidates.len() > CANDIDATES {
            self.verified.more = true;
            let kept: Vec<u128> = candidates.keys().copied().take(CANDIDATES).collect();
            candidates.retain(|digest, _| kept.contains(digest));
        }
        self.settle(candidates).await
    }

    /// Looks at each row until it stands still.
    async fn settle(&mut self, mut candidates: HashMap<u128, Vec<u8>>) -> Result<(), Vec<Problem>> {
        let mut before = self.look(&candidates).await?;
        for _ in 0..LOOKS {
            if candidates.is_empty() {
                return Ok(());
            }
            let mut source: HashMap<u128, SourceRow> = HashMap::new();
            let seen = self
                .read_source(Some(&candidates), |key, row, ends| {
                    let key_digest = digest(key);
                    if candidates.contains_key(&key_digest) {
                        source.insert(key_digest, SourceRow { columns: columns_of(row, ends) });
                    }
                })
                .await?;
            self.until_durable(seen).await?;
            let after = self.look(&candidates).await?;
            let mut open = HashMap::new();
            for (key_digest, key) in candidates {
                match judge(before.get(&key_digest), source.get(&key_digest), after.get(&key_digest)) {
                    Verdict::Equal => {}
                    Verdict::Open => {
                        open.insert(key_digest, key);
                    }
                    Verdict::Differs(kind, columns) => self.found(kind, &key, &columns),
                }
            }
            candidates = open;
            before = after;
        }
        self.verified.unsettled += candidates.len() as u64;
        Ok(())
    }

    fn found(&mut self, kind: DifferenceKind, key: &[u8], columns: &[usize]) {
        let keeps_more =
            self.verify.shared_target || self.verify.spec.settings.truncate == TruncatePolicy::Ignore;
        if kind == DifferenceKind::Extra && keeps_more {
            // Another source's, or one that the source has truncated.
            return;
        }
        self.verified.differences += 1;
        if self.verified.samples.len() < Verified::SAMPLES {
            let name = |at: &usize| self.planned.columns[*at].name.clone();
            self.verified.samples.push(RowDifference {
                kind,
                key: show::key(&self.key_types, key),
                columns: columns.iter().map(name).collect(),
            });
        }
    }

    /// Reads the source in a snapshot of its own, whole or about the rows of some keys; gives a position of the log after everything that it sees. `on_row` is given the key, the row, and
    /// where its values end.
    async fn read_source(
        &mut self,
        keys: Option<&HashMap<u128, Vec<u8>>>,
        mut on_row: impl FnMut(&[u8], &[u8], &[usize]),
    ) -> Result<Lsn, Vec<Problem>> {
        let table = &self.planned.definition;
        let of_table = |error: millrace_postgres::Error| vec![classify(&error).of_table(&table.name)];
        let as_text = |column: &SourceColumn| {
            self.planned.columns.iter().any(|planned| planned.name == column.name && planned.as_text)
        };
        let integers = keys.zip(self.integer_key.as_ref()).and_then(|(keys, column)| {
            let first = self.key_types.first()?;
            let integer = |key: &Vec<u8>| {
                let mut rest = key.as_slice();
                show::integer(first, millrace_mapping::row_binary::take_value(first, &mut rest)?)
            };
            Some((column, keys.values().map(integer).collect::<Option<Vec<i64>>>()?))
        });
        let sql = match integers {
            Some((column, values)) => copy_query_of_keys(table, column, &values, &as_text),
            None => match self.range() {
                Some((column, range)) => copy_query_of_key_range(table, column, range, &as_text),
                None => copy_query(table, PageRange::ALL, &as_text),
            },
        };
        self.pace.begin();
        let seen = self.reader.begin_now().await.map_err(of_table)?;
        self.reader.start(&sql).await.map_err(of_table)?;
        let (mut values, mut ends, mut key) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let ended = loop {
                match self.reader.next_row().map_err(of_table)? {
                    CopyEvent::Row(tuple) => {
                        self.rows_read += u64::from(keys.is_none());
                        self.pace.rows += 1;
                        let encoded = self.encoder.row_binary_of_copy_tuple(tuple, &mut values, &mut ends);
                        encoded.map_err(|error| {
                            let message = format!("a row of the source cannot be carried over: {error}");
                            let remedy = "name the column under excludedColumns or mend the row";
                            vec![
                                Problem::operator("VALUE_NOT_CARRIED", message, remedy).of_table(&table.name),
                            ]
                        })?;
                        key_of(&self.key, &values, &ends, &mut key);
                        on_row(&key, &values, &ends);
                    }
                    CopyEvent::NeedMore => break false,
                    CopyEvent::End => break true,
                }
            };
            self.reporter.progress(Progress::Verify { rows: self.rows_read });
            if ended {
                break;
            }
            self.pace.keep().await;
            self.reader.fill().await.map_err(of_table)?;
        }
        self.reader.end().await.map_err(of_table)?;
        Ok(seen)
    }

    async fn read_destination(&mut self, mut on_row: impl FnMut(&[u8], &[u8])) -> Result<(), Vec<Problem>> {
        let failed = |error: millrace_clickhouse::Error| {
            vec![millrace_clickhouse::classify(&error).of_table(&self.planned.definition.name)]
        };
        let target = &self.planned.target;
        let columns = self.columns();
        let scan = self.destination.scan(&target.table, &target.metadata, &columns, self.range());
        let mut scan = scan.await.map_err(failed)?;
        let mut key = Vec::new();
        self.pace.begin();
        while let Some(row) = scan.next().await.map_err(failed)? {
            key_of(&self.key, row.values, row.ends, &mut key);
            on_row(&key, row.values);
            self.rows_read += 1;
            self.pace.rows += 1;
            if self.pace.rows.is_multiple_of(1_000) {
                self.pace.keep().await;
            }
            if self.rows_read.is_multiple_of(10_000) {
                self.reporter.progress(Progress::Verify { rows: self.rows_read });
            }
        }
        Ok(())
    }

    fn range(&self) -> Option<(&str, KeyRange)> {
        Some((self.integer_key.as_deref()?, self.verify.range?))
    }

    fn columns(&self) -> Vec<(&'a str, &'a ChType)> {
        self.planned.columns.iter().map(|column| (column.name.as_str(), &column.target)).collect()
    }

    /// The newest versions of some rows at the destination, tombstones included.
    async fn look(
        &self,
        keys: &HashMap<u128, Vec<u8>>,
    ) -> Result<HashMap<u128, DestinationRow>, Vec<Problem>> {
        let target = &self.planned.target;
        let failed = |error: millrace_clickhouse::Error| {
            vec![millrace_clickhouse::classify(&error).of_table(&self.planned.definition.name)]
        };
        let plans: Vec<ColumnPlan> = self.key.iter().map(|at| self.planned.columns[*at].clone()).collect();
        let columns = self.columns();
        let keys: Vec<(&u128, &Vec<u8>)> = keys.iter().collect();
        let mut found = HashMap::new();
        for part in keys.chunks(KEYS) {
            let mut block = BlockBuilder::new(&plans, &target.metadata);
            for (ordinal, (_, key)) in part.iter().enumerate() {
                let mut rest = key.as_slice();
                for (column, column_type) in self.key_types.iter().enumerate() {
                    let value = millrace_mapping::row_binary::take_value(column_type, &mut rest);
                    let appended = block.append_row_binary(column, value.unwrap_or_default());
                    appended.map_err(|error| vec![unreadable(&error)])?;
                }
                block.end_row(ordinal as u64, false).map_err(|error| vec![unreadable(&error)])?;
            }
            let block = block.finish(Timestamp(0));
            let sought = Keys { block: &block, columns: &target.sorting_key };
            let rows = self.destination.current_rows(target, sought, &columns, usize::MAX);
            for row in rows.await.map_err(failed)?.unwrap_or_default() {
                let Some((key_digest, _)) = part.get(row.ordinal as usize) else { continue };
                let columns = row.values.iter().map(|value| digest(value)).collect();
                let row = DestinationRow { version: row.version, is_deleted: row.is_deleted, columns };
                found.insert(**key_digest, row);
            }
        }
        Ok(found)
    }

    /// Waits until the destination has everything that was committed before this position.
    async fn until_durable(&self, position: Lsn) -> Result<(), Vec<Problem>> {
        let failed = |error: millrace_postgres::Error| vec![classify(&error)];
        let (mut moved, mut furthest, mut nudged) = (Instant::now(), Lsn::ZERO, Instant::now());
        loop {
            let state = self.session.slot_state(&self.verify.slot_name).await.map_err(failed)?;
            let confirmed = state.map_or(Lsn::ZERO, |state| state.confirmed_flush);
            if confirmed >= position {
                return Ok(());
            }
            if confirmed > furthest {
                (furthest, moved) = (confirmed, Instant::now());
            }
            if moved.elapsed() > PATIENCE {
                let message = format!(
                    "the stream has not got beyond {furthest} for {} s, so that both sides cannot be compared",
                    PATIENCE.as_secs()
                );
                let remedy = "see `millrace pipe get` for what holds it back; it is tried again by itself";
                return Err(vec![Problem::transient("VERIFY_STREAM_BEHIND", message, remedy)]);
            }
            if nudged.elapsed() > NUDGE {
                // Not every role may; then the source's own traffic moves the slot.
                let _ = self.session.nudge().await;
                nudged = Instant::now();
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The values that tell a row apart, one after another.
fn key_of(places: &[usize], values: &[u8], ends: &[usize], key: &mut Vec<u8>) {
    key.clear();
    for place in places {
        let begin = place.checked_sub(1).map_or(0, |before| ends[before]);
        key.extend_from_slice(&values[begin..ends[*place]]);
    }
}

fn columns_of(values: &[u8], ends: &[usize]) -> Vec<u128> {
    let begins = std::iter::once(0).chain(ends.iter().copied());
    begins.zip(ends).map(|(begin, end)| digest(&values[begin..*end])).collect()
}

fn unreadable(error: &dyn std::fmt::Display) -> Problem {
    let message = format!("a key that was read cannot be asked for: {error}");
    Problem::operator("WORKER_FAULT", message, "report it with the worker's log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_keeps_to_its_rate() {
        let mut pace = Pace::new(1_000);
        pace.begin();
        pace.rows = 2_500;
        assert_eq!(pace.due(), Some(pace.began + Duration::from_millis(2_500)));
        assert_eq!(Pace::new(0).due(), None);
    }
}
