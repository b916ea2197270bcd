//! Values that updates leave out: looked for in the destination as it was before the batch, then at the source.

use millrace_apply::problem::source_schema_changed;
use millrace_apply::{Found, TableIndex};
use millrace_clickhouse::Keys;
use millrace_mapping::ChType;
use millrace_model::work::Report;
use millrace_model::{Lsn, Problem};
use millrace_postgres::classify;

use super::{BATCH_BYTES, Pump, now};
use crate::delivery::Patience;
use crate::task::source;
use crate::task::source::RowFinder;

/// Rows of a batch that may lack values, at most: they are looked for by statements that name them all.
const INCOMPLETE_ROWS: usize = 2_000;

impl Pump<'_> {
    /// Looks for the values that updates left out: in the destination as it was before this batch, then at the source.
    pub(super) async fn find_values(&mut self) -> Result<(), Vec<Problem>> {
        self.arrive_sent().await?;
        for (table, _) in self.applier.incomplete_tables() {
            self.find_values_of(table).await?;
        }
        Ok(())
    }

    /// Looks for a table's values. Where they are more than fits into a batch, rows are completed and sent portion by portion; what is left goes with the batch.
    async fn find_values_of(&mut self, table: TableIndex) -> Result<(), Vec<Problem>> {
        loop {
            let waiting = self.applier.sought_rows(table);
            let mut portion = self.portion(table, waiting).await?;
            // Without memory for more it is one row at a time.
            let memory = self.shared.budget.try_reserve(BATCH_BYTES as u64);
            if memory.is_none() {
                portion = portion.min(1);
            }
            if !self.find_in_destination(table, portion).await? {
                continue;
            }
            portion = self.find_at_source(table, portion).await?;
            if portion >= waiting {
                if let Some(memory) = memory {
                    self.reserved.merge(memory);
                }
                return Ok(());
            }
            match self.applier.complete_first(table, portion, now()) {
                Ok(block) => {
                    let blocks = block.filter(|block| block.rows > 0).map(|block| (table, block));
                    let reserved = memory.unwrap_or_else(|| self.shared.budget.empty());
                    self.send_blocks(blocks.into_iter().collect(), Lsn::ZERO, None, reserved);
                }
                Err(problem) => {
                    self.set_aside(vec![(table, *problem)]).await;
                    return Ok(());
                }
            }
            self.arrive_sent().await?;
        }
    }

    /// How many of a table's rows, from the first, can be looked for at a time.
    async fn portion(&mut self, table: TableIndex, waiting: usize) -> Result<usize, Vec<Problem>> {
        let most = BATCH_BYTES as u64;
        if self.largest.get(&table).is_some_and(|largest| largest.saturating_mul(waiting as u64) <= most) {
            return Ok(waiting);
        }
        let planned = &self.planned[table.0];
        let (target, columns) = (planned.target.clone(), planned.columns.clone());
        let destination = self.destination.clone();
        let mut sizes = Vec::new();
        for sought in self.applier.sought_of(table, waiting) {
            let columns: Vec<&str> =
                sought.columns.iter().map(|column| columns[*column].name.as_str()).collect();
            let mut patience = Patience::new(&target.source);
            sizes.extend(loop {
                let keys = Keys { block: &sought.places, columns: &sought.place };
                let asked = destination.current_sizes(&target, keys, &columns);
                match self.meanwhile(asked).await? {
                    Ok(sizes) => break sizes,
                    Err(error) => {
                        self.meanwhile(patience.wait(&error)).await?.map_err(|problem| vec![problem])?;
                    }
                }
            });
        }
        self.largest.insert(table, sizes.iter().map(|(_, size)| *size).max().unwrap_or(0));
        Ok(self.applier.portion(table, &sizes, most))
    }

    /// Looks for a table's first rows in the destination. Where they are larger than was thought nothing is found.
    async fn find_in_destination(&mut self, table: TableIndex, rows: usize) -> Result<bool, Vec<Problem>> {
        let planned = &self.planned[table.0];
        let (target, columns) = (planned.target.clone(), planned.columns.clone());
        let destination = self.destination.clone();
        // One row may be as large as it likes.
        let limit = if rows > 1 { 2 * BATCH_BYTES } else { usize::MAX };
        let (mut found_rows, mut found_bytes, mut largest) = (0, 0, 0);
        for sought in self.applier.sought_of(table, rows) {
            let columns: Vec<(&str, &ChType)> = sought
                .columns
                .iter()
                .map(|column| (columns[*column].name.as_str(), &columns[*column].target))
                .collect();
            let mut patience = Patience::new(&target.source);
            let found = loop {
                let keys = Keys { block: &sought.places, columns: &sought.place };
                let limit = limit.saturating_sub(found_bytes);
                let asked = destination.current_rows(&target, keys, &columns, limit);
                match self.meanwhile(asked).await? {
                    Ok(found) => break found,
                    Err(error) => {
                        self.meanwhile(patience.wait(&error)).await?.map_err(|problem| vec![problem])?;
                    }
                }
            };
            let Some(found) = found else {
                self.largest.remove(&table);
                return Ok(false);
            };
            for row in found {
                found_rows += 1;
                let bytes = row.values.iter().map(Vec::len).sum::<usize>();
                found_bytes += bytes;
                largest = largest.max(bytes as u64);
                let found = Found { version: row.version, is_deleted: row.is_deleted, values: row.values };
                self.applier.supply(table, row.ordinal, found);
            }
        }
        self.largest.insert(table, largest);
        if let Some(each) = found_bytes.checked_div(found_rows) {
            self.incomplete_rows = (BATCH_BYTES / each.max(1)).clamp(1, INCOMPLETE_ROWS);
        }
        Ok(true)
    }

    /// Looks at the source for what the destination lacks of a table's first rows. Gives how many are done: fewer where their values are more than fits into a batch.
    async fn find_at_source(&mut self, table: TableIndex, rows: usize) -> Result<usize, Vec<Problem>> {
        let sought = self.applier.still_sought_of(table, rows);
        if sought.is_empty() {
            return Ok(rows);
        }
        let session = source::connect(&self.stream.spec).await?;
        let stream_table = self.planned[table.0].stream_table();
        let Some(finder) = RowFinder::of_table(&session, &stream_table).await? else {
            let reason =
                "a column was dropped whose values an earlier update left out, and the destination lacks them".to_owned();
            let problem = source_schema_changed(&stream_table.definition.name, &[reason]);
            self.give_up(table, problem).await?;
            return Ok(rows);
        };
        let (mut found, mut bytes, mut done) = (Vec::new(), 0, rows);
        for (number, place) in sought {
            if bytes >= BATCH_BYTES {
                done = number;
                break;
            }
            let values = self.meanwhile(finder.find(&place)).await??;
            bytes += values.iter().flatten().flatten().map(Vec::len).sum::<usize>();
            found.extend(values.map(|values| (number, values)));
        }
        // Only now, so that it is not before what was read.
        let end = session.log_end().await.map_err(|error| vec![classify(&error)])?;
        for (number, values) in found {
            self.applier.supply_from_source(table, number, values);
        }
        self.applier.distrust_until(table, end);
        let planned = &mut self.planned[table.0];
        planned.definition.distrusted_until = planned.definition.distrusted_until.max(end);
        let id = planned.id;
        let definition = planned.ahead.as_deref_mut().unwrap_or(&mut planned.definition);
        // Said only where it is news: what was said reaches further already.
        if self.said_until.insert(id, end).is_some_and(|said| said >= end) {
            return Ok(done);
        }
        definition.distrusted_until = definition.distrusted_until.max(end);
        let definition = Box::new(definition.clone());
        self.say(id, Report::TableChanged(id, definition)).await;
        Ok(done)
    }
}
