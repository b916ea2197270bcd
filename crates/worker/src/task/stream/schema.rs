//! Tables that change their form on the way: what the stream describes, what the source's catalog says of it, and what the destination is made to be.

use std::time::Duration;

use millrace_apply::TableIndex;
use millrace_apply::problem::{partitions_changed, source_schema_changed};
use millrace_mapping::evolution::{CurrentColumn, StreamColumn, earlier_form, evolve};
use millrace_mapping::streams_as_binary;
use millrace_model::spec::TruncatePolicy;
use millrace_model::work::Report;
use millrace_model::{Lsn, Problem, Recovery, SourceColumn, TableDefinition};
use millrace_pgoutput::Relation;
use millrace_postgres::{Session, classify};
use tokio::time::Instant;

use super::{Pump, STATUS, unless_locked};
use crate::delivery::Patience;
use crate::task::partitions::Partitions;
use crate::task::source;
use crate::task::tables;
use crate::task::tables::PlannedTable;

/// How often partitions are looked at, at least.
const PARTITIONS: Duration = Duration::from_secs(30);

impl Pump<'_> {
    /// Asks the source whether a table that is described as it is known is still the same: a column that went and came again under its name is another one. A stream that is behind
    /// the catalog may show this too early, but never without a cause.
    pub(super) async fn recognise(&mut self, table: TableIndex) -> Result<(), Vec<Problem>> {
        let definition = self.planned[table.0].definition.clone();
        let session = self.take_catalog().await?;
        let shape =
            self.meanwhile(session.shape(definition.oid)).await?.map_err(|error| vec![classify(&error)])?;
        self.catalog = Some(session);
        // Columns come in the order of their numbers: in front of one that stayed the stream itself shows it.
        let is_alive = |column: &SourceColumn| shape.columns.contains_key(&column.attribute);
        let last = definition.columns.iter().rev().take_while(|column| !is_alive(column));
        let is_same = |column: &SourceColumn, (name, oid, modifier): &(String, u32, i32)| {
            (&column.name, column.type_oid, column.type_modifier) == (name, *oid, *modifier)
        };
        let again = last.filter(|column| shape.columns.values().any(|now| is_same(column, now)));
        let reasons: Vec<String> = again
            .map(|column| format!("column {:?} was dropped and added again under its name", column.name))
            .collect();
        if !reasons.is_empty() {
            return self.give_up(table, source_schema_changed(&definition.name, &reasons)).await;
        }
        let planned = &mut self.planned[table.0];
        let known = |(number, (name, oid, modifier)): (&i16, &(String, u32, i32))| {
            planned.spec.excluded_columns.contains(name)
                || planned.ignored.contains(name)
                || definition.columns.iter().any(|column| {
                    (column.attribute, column.type_oid, column.type_modifier) == (*number, *oid, *modifier)
                })
        };
        // As it is known, it may have been rewritten; only the file of a later form tells how its columns came.
        if definition.columns.iter().all(is_alive) && shape.columns.iter().all(known) {
            planned.definition.file_node = shape.file_node;
        }
        if definition.is_partitioned() { self.look_at_partitions_of(table).await } else { Ok(()) }
    }

    /// Looks at the partitions of every partitioned table that is due.
    pub(super) async fn look_at_partitions(&mut self) -> Result<(), Vec<Problem>> {
        let is_due = Instant::now() >= self.next_look;
        if is_due {
            self.next_look = Instant::now() + PARTITIONS;
        }
        for index in 0..self.planned.len() {
            let doubted = self.partitions.get(&index).and_then(|partitions| partitions.doubted_at);
            if self.planned[index].definition.is_partitioned()
                && self.applier.is_active(TableIndex(index))
                && (is_due || doubted.is_some_and(|lsn| self.source >= lsn))
            {
                self.look_at_partitions_of(TableIndex(index)).await?;
            }
        }
        Ok(())
    }

    /// Looks whether something happened to a table's partitions that the stream does not tell. The stream is given the time to explain it.
    async fn look_at_partitions_of(&mut self, table: TableIndex) -> Result<(), Vec<Problem>> {
        let failed = |error: millrace_postgres::Error| vec![classify(&error)];
        let definition = self.planned[table.0].definition.clone();
        let session = match self.take_catalog().await {
            Ok(session) => session,
            // The next look may be luckier, and the stream itself needs no further connection.
            Err(problems) if problems.iter().all(|problem| problem.recovery == Recovery::Retry) => {
                tracing::debug!(?problems, "partitions could not be looked at");
                return Ok(());
            }
            Err(problems) => return Err(problems),
        };
        let mut partitions = self.partitions.remove(&table.0).unwrap_or_default();
        let keeps_gone = self.stream.spec.settings.truncate == TruncatePolicy::Ignore;
        let compared = partitions.compare(&session, definition.oid, &definition.partitions, keeps_gone);
        let found = unless_locked(self.meanwhile(compared).await?)?;
        match (found, partitions.doubted_at) {
            (None, _) => {}
            (Some(found), _) if found.is_empty() => {
                let complete = partitions.complete();
                if definition.partitions != complete {
                    let planned = &mut self.planned[table.0];
                    planned.definition.partitions.clone_from(&complete);
                    // What is recorded may be ahead of what the stream sends.
                    let recorded = planned.ahead.as_deref_mut().unwrap_or(&mut planned.definition);
                    recorded.partitions = complete;
                    let (id, recorded) = (planned.id, Box::new(recorded.clone()));
                    self.say(id, Report::TableChanged(id, recorded)).await;
                }
            }
            (Some(found), Some(lsn)) if self.source >= lsn => {
                return self.give_up(table, partitions_changed(&definition.name, &found)).await;
            }
            (Some(_), doubted_at) => {
                if doubted_at.is_none() {
                    partitions.doubted_at = Some(session.log_end().await.map_err(failed)?);
                }
                // Where an idle log ends is only said when it is asked for.
                self.acknowledge(true).await?;
            }
        }
        self.partitions.insert(table.0, partitions);
        self.catalog = Some(session);
        Ok(())
    }

    /// A session for questions, to be put back after use.
    async fn take_catalog(&mut self) -> Result<Session, Vec<Problem>> {
        match self.catalog.take().filter(|session| !session.is_closed()) {
            Some(session) => Ok(session),
            None => source::connect(&self.stream.spec).await,
        }
    }

    /// Waits for something that may take long. PostgreSQL hears of us meanwhile.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Vec<Problem>> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(STATUS) => self.acknowledge(false).await?,
            }
        }
    }

    /// Lets a destination table follow its source, whose columns changed by the change at `lsn`. Where it cannot, it is set aside.
    pub(super) async fn follow(
        &mut self,
        table: TableIndex,
        relation: &Relation,
        lsn: Lsn,
    ) -> Result<(), Vec<Problem>> {
        self.arrive_all().await?;
        let planned = &mut self.planned[table.0];
        let recorded = planned.ahead.take().map_or_else(|| planned.definition.clone(), |ahead| *ahead);
        let name = recorded.name.clone();
        let cannot = |reasons: &[String]| source_schema_changed(&name, reasons);
        let columns: Vec<StreamColumn> = relation
            .columns
            .iter()
            .map(|column| StreamColumn {
                name: column.name.clone(),
                type_oid: column.type_oid,
                type_modifier: column.type_modifier,
            })
            .collect();
        if lsn < recorded.holds_from
            && let Some((earlier, gone)) =
                earlier_form(&recorded, &columns, &self.planned[table.0].spec.excluded_columns)
        {
            return self.go_back(table, recorded, &earlier, &gone).await;
        }
        let session = self.take_catalog().await?;
        let partitions = self.partitions.remove(&table.0);
        let current = source::current_table(&session, &recorded, partitions.as_ref());
        let current = self.meanwhile(current).await??;
        if partitions.is_some() {
            let partitions = Partitions::look(&session, recorded.oid).await;
            self.partitions.extend(unless_locked(partitions)?.map(|partitions| (table.0, partitions)));
        }
        self.catalog = Some(session);
        let Some(source::CurrentTable { columns: current, file_node }) = current else {
            return self.give_up(table, cannot(&["it is gone".to_owned()])).await;
        };
        let table_spec = &self.planned[table.0].spec;
        let (excluded, sorting_key) = (table_spec.excluded_columns.clone(), table_spec.sorting_keys.clone());
        let policy = self.stream.spec.settings.schema_changes;
        let mut evolution = match evolve(&recorded, &columns, &current, &excluded, &sorting_key, policy) {
            Ok(evolution) => evolution,
            Err(reasons) => return self.give_up(table, cannot(&reasons)).await,
        };
        if evolution.definition.columns != recorded.columns {
            evolution.definition.holds_from = lsn;
        }
        // A catalog that is ahead has the file of a form that is yet to come.
        let is_sent = |now: &CurrentColumn| {
            let now = &now.column;
            let same = |sent: &StreamColumn| {
                sent.name == now.name
                    && (sent.type_oid, sent.type_modifier) == (now.type_oid, now.type_modifier)
            };
            now.generated || excluded.contains(&now.name) || columns.iter().any(same)
        };
        if current.iter().all(is_sent) {
            evolution.definition.file_node = file_node;
        }
        let facts = self.stream.destination;
        let held = &self.planned[table.0];
        let (id, copying, begins) = (held.id, held.copying, held.begins);
        let planned =
            tables::plan(&self.stream.spec, &held.spec, &evolution.definition, &self.destination, facts)?;
        let planned = PlannedTable { id, copying, begins, ignored: evolution.ignored, ..planned };
        let mut patience = Patience::new(&name);
        let (destination, pipe) = (self.destination.clone(), self.stream.pipe.clone());
        loop {
            let altered = destination.alter_columns(&planned.target, &evolution.alterations, &pipe);
            let Err(error) = self.meanwhile(altered).await? else { break };
            if let Err(problem) = self.meanwhile(patience.wait(&error)).await? {
                return match problem.recovery {
                    Recovery::Retry => Err(vec![problem]),
                    _ => self.give_up(table, problem).await,
                };
            }
        }
        tracing::info!(table.name = %name, alterations = ?evolution.alterations, "the destination follows its source");
        let reopen = self.binary && !streams_as_binary(&planned.columns);
        let definition = planned.definition.clone();
        let redefined = self.applier.redefine(table, planned.stream_table(), &evolution.gone);
        self.planned[table.0] = planned;
        self.say(id, Report::TableChanged(id, Box::new(definition))).await;
        if let Err(problem) = redefined {
            self.set_aside(vec![(table, *problem)]).await;
        }
        if reopen {
            let message = "a new column needs the stream's values in text form";
            return Err(vec![Problem::transient("STREAM_REOPENED", message, "it is opened again by itself")]);
        }
        Ok(())
    }

    /// Takes in changes from before the form that is recorded, as after a crash: the destination has that form already.
    async fn go_back(
        &mut self,
        table: TableIndex,
        recorded: TableDefinition,
        earlier: &TableDefinition,
        gone: &[String],
    ) -> Result<(), Vec<Problem>> {
        let (spec, facts) = (&self.stream.spec, self.stream.destination);
        let held = &self.planned[table.0];
        let (id, copying, begins) = (held.id, held.copying, held.begins);
        let target = tables::plan(spec, &held.spec, &recorded, &self.destination, facts)?;
        let planned = tables::plan(spec, &held.spec, earlier, &self.destination, facts)?;
        let mut planned = PlannedTable { id, copying, begins, ..planned };
        for column in &mut planned.columns {
            if let Some(now) = target.columns.iter().find(|now| now.name == column.name) {
                column.target = now.target.clone();
            }
        }
        planned.target.columns.clone_from(&planned.columns);
        planned.ignored.clone_from(&self.planned[table.0].ignored);
        planned.ahead = Some(Box::new(recorded));
        tracing::info!(table.name = %earlier.name, "the stream sends changes from before the table's form");
        let redefined = self.applier.redefine(table, planned.stream_table(), gone);
        self.planned[table.0] = planned;
        if let Err(problem) = redefined {
            self.set_aside(vec![(table, *problem)]).await;
        }
        Ok(())
    }

    pub(super) async fn give_up(&mut self, table: TableIndex, problem: Problem) -> Result<(), Vec<Problem>> {
        self.applier.set_aside(table);
        self.set_aside(vec![(table, problem)]).await;
        Ok(())
    }
}
