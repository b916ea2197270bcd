//! A stream is amended while it runs: tables come, go and take the places of others, settings change. Nobody waits for it.

use std::collections::HashSet;
use std::sync::Arc;

use millrace_apply::TableIndex;
use millrace_mapping::streams_as_binary;
use millrace_model::work::{Assignment, Report, StreamedTable, Swap, Work};
use millrace_model::{Problem, TableId};
use tokio::sync::watch;

use super::{Pump, Stream};
use crate::task::swap::swap_in;
use crate::task::tables::{self, PlannedTable};

/// Waits for the next amendment. Cancel by dropping: the newest is never lost.
pub(super) async fn amendment(amendments: &mut watch::Receiver<Option<Arc<Assignment>>>) -> Arc<Assignment> {
    loop {
        if amendments.changed().await.is_err() {
            // The desk that holds the other end stops this task when it lets go of it.
            std::future::pending::<()>().await;
        }
        if let Some(assignment) = amendments.borrow_and_update().clone() {
            return assignment;
        }
    }
}

impl Stream {
    /// What the tables look like once the swaps are done that a stream begins with.
    pub(super) fn swapped_tables(&self) -> Vec<StreamedTable> {
        let replaced = |streamed: &&StreamedTable| {
            let of = |swap: &Swap| swap.id != streamed.table.id && swap.source == streamed.table.spec.source;
            !self.swaps.iter().any(of)
        };
        let mut tables: Vec<StreamedTable> = self.tables.iter().filter(replaced).cloned().collect();
        for streamed in &mut tables {
            if let Some(swap) = self.swaps.iter().find(|swap| swap.id == streamed.table.id) {
                streamed.table.spec.target.clone_from(&swap.target);
            }
        }
        tables
    }
}

impl Pump<'_> {
    /// Goes on in another way.
    ///
    /// # Errors
    /// It takes a stream that is opened anew, or the destination refuses.
    pub(super) async fn amend(&mut self, assignment: &Assignment) -> Result<(), Vec<Problem>> {
        let Work::Stream { revision, tables, swaps, .. } = &assignment.work else { return Ok(()) };
        if *revision <= self.stream.revision {
            return Ok(());
        }
        // What was read by now goes to where it was read for.
        self.arrive_all().await?;
        let (spec, before) = (&assignment.spec, &self.stream.spec);
        if spec.source != before.source || spec.destination != before.destination {
            let message = "its connections were edited";
            return Err(vec![Problem::transient("STREAM_REOPENED", message, "it is opened again by itself")]);
        }
        let settings_changed = spec.settings != before.settings;
        self.stream.spec = spec.clone();
        self.take_settings();
        for swap in swaps {
            self.swap(swap).await?;
        }
        let named: HashSet<TableId> = tables.iter().map(|streamed| streamed.table.id).collect();
        for index in 0..self.planned.len() {
            if !named.contains(&self.planned[index].id) {
                self.applier.set_aside(TableIndex(index));
                self.struggling.remove(&index);
            }
        }
        for streamed in tables {
            match self.planned.iter().position(|planned| planned.id == streamed.table.id) {
                Some(index) => self.amend_table(index, streamed, settings_changed).await?,
                None => self.begin_table(streamed).await?,
            }
        }
        self.stream.revision = *revision;
        tracing::info!(revision, tables = tables.len(), "amended");
        Ok(())
    }

    /// Nothing is on its way to the tables; PostgreSQL hears of us while they are swapped.
    async fn swap(&mut self, swap: &Swap) -> Result<(), Vec<Problem>> {
        // One that this stream has left out, which is not recorded yet, must not be seen by anybody.
        let left_out = |(index, planned): (usize, &PlannedTable)| {
            planned.id == swap.id && !self.applier.is_active(TableIndex(index))
        };
        if self.planned.iter().enumerate().any(left_out) || !self.swapped.insert(swap.id) {
            return Ok(());
        }
        let (destination, pipe) = (self.destination.clone(), self.stream.pipe.clone());
        let swapped = self.meanwhile(swap_in(&destination, &pipe, swap)).await?;
        swapped.map_err(|problem| vec![problem])?;
        for (index, planned) in self.planned.iter_mut().enumerate() {
            if planned.id == swap.id {
                planned.target.table = self.destination.table(&swap.target);
                planned.spec.target.clone_from(&swap.target);
            } else if planned.definition.name == swap.source {
                self.applier.set_aside(TableIndex(index));
                self.struggling.remove(&index);
            }
        }
        self.say(swap.id, Report::TableSwapped(swap.id)).await;
        Ok(())
    }

    /// A table that is carried already.
    async fn amend_table(
        &mut self,
        index: usize,
        streamed: &StreamedTable,
        settings_changed: bool,
    ) -> Result<(), Vec<Problem>> {
        if !self.applier.is_active(TableIndex(index)) {
            // It was set aside, which the coordinator had not heard of, or is held.
            return Ok(());
        }
        let planned = &mut self.planned[index];
        planned.copying = streamed.copying;
        planned.begins = streamed.begins;
        let known = streamed.table.definition.distrusted_until;
        planned.definition.distrusted_until = planned.definition.distrusted_until.max(known);
        self.applier.trust_from(TableIndex(index), planned.distrusted_until());
        if settings_changed || planned.spec.out_of_range != streamed.table.spec.out_of_range {
            let spec = millrace_model::spec::TableSpec {
                out_of_range: streamed.table.spec.out_of_range.clone(),
                ..planned.spec.clone()
            };
            let facts = self.stream.destination;
            let anew = tables::plan(&self.stream.spec, &spec, &planned.definition, &self.destination, facts)?;
            let (id, copying, begins) = (planned.id, planned.copying, planned.begins);
            let (ignored, ahead) = (planned.ignored.clone(), planned.ahead.take());
            *planned = PlannedTable { id, copying, begins, ignored, ahead, ..anew };
            let stream_table = planned.stream_table();
            if let Err(problem) = self.applier.redefine(TableIndex(index), stream_table, &[]) {
                self.set_aside(vec![(TableIndex(index), *problem)]).await;
            }
        }
        Ok(())
    }

    /// A table that is carried from here on.
    async fn begin_table(&mut self, streamed: &StreamedTable) -> Result<(), Vec<Problem>> {
        let facts = self.stream.destination;
        let planned = tables::plan_streamed(&self.stream.spec, streamed, &self.destination, facts)?;
        if self.binary && !streams_as_binary(&planned.columns) {
            let message = "a new table needs the stream's values in text form";
            return Err(vec![Problem::transient("STREAM_REOPENED", message, "it is opened again by itself")]);
        }
        let (index, added) = self.applier.add(planned.stream_table());
        self.planned.push(planned);
        if let Err(problem) = added {
            self.set_aside(vec![(index, *problem)]).await;
        }
        Ok(())
    }

    /// A table was emptied while rows of it are copied: those that were read before would rise again. The copy begins anew elsewhere.
    pub(super) async fn void_copy(&mut self, table: TableIndex) {
        let message = "it was truncated while it was being copied, so the copy is void";
        let problem = Problem::transient("COPY_VOIDED", message, "it is copied anew by itself");
        let problem = problem.of_table(&self.planned[table.0].definition.name);
        self.applier.set_aside(table);
        self.set_aside(vec![(table, problem)]).await;
    }

    /// What the settings say of the stream.
    pub(super) fn take_settings(&mut self) {
        let settings = &self.stream.spec.settings;
        self.cadence.set_sync_interval(settings.sync_interval);
        self.batch_rows = settings.pull_batch_size as usize;
    }
}
