//! What users' commands do to a pipe.

use millrace_model::{PipeSpec, Recovery, TableId, TableName, Timestamp};

use crate::aggregate::PipeAggregate;
use crate::command::{Command, Refusal, check};
use crate::difference::Difference;
use crate::pipe::{PipeEvent, PipeState};
use crate::record::{Actor, EventKind, Purpose};
use crate::table::{TableEvent, TableState};

impl PipeAggregate {
    pub(crate) fn check(&self, command: Command) -> Result<(), Refusal> {
        check(command, self.pipe.state, self.pipe.deleting)
    }

    pub(crate) fn requested(&mut self, command: impl Into<String>, now: Timestamp) {
        self.event(EventKind::Command, command.into(), Actor::User, now);
    }

    /// Nothing is read any more; the place is kept.
    ///
    /// # Errors
    /// The state forbids it.
    pub fn pause(&mut self, now: Timestamp) -> Result<(), Refusal> {
        self.check(Command::Pause)?;
        let _ = self.advance(PipeEvent::PauseRequested, "pause requested".to_owned(), Actor::User, now);
        self.conclude(&Actor::Coordinator, now);
        Ok(())
    }

    /// Goes on where it was paused, or where it failed.
    ///
    /// # Errors
    /// The state forbids it.
    pub fn resume(&mut self, now: Timestamp) -> Result<(), Refusal> {
        self.check(Command::Resume)?;
        let mut to = self.resumes_at();
        if self.active().next().is_none() && self.pipe.spec.mode.copies() {
            // It failed because its last table was set aside: to go on is to copy them anew.
            let originals = self.originals(&[]);
            let purpose = if to == PipeState::Running { Purpose::Tables } else { Purpose::Resync };
            self.begin_resync(&originals, purpose, now);
            to = self.resumes_at();
        }
        let _ =
            self.advance(PipeEvent::ResumeRequested { to }, "resume requested".to_owned(), Actor::User, now);
        self.conclude(&Actor::Coordinator, now);
        Ok(())
    }

    fn resumes_at(&self) -> PipeState {
        let working = if self.shows_snapshot() { PipeState::Snapshot } else { PipeState::Running };
        match self.pipe.failed_in {
            // A pause that failed half-way is over once somebody asks to go on.
            None | Some(PipeState::Pausing) => working,
            Some(failed_in) => failed_in,
        }
    }

    /// Gives the pipe up; wins over everything. Its destination tables go with it where that is asked for, also when asked again.
    ///
    /// # Errors
    /// None; the signature is that of every command.
    pub fn delete(&mut self, drop_tables: bool, now: Timestamp) -> Result<(), Refusal> {
        self.check(Command::Delete)?;
        if self.pipe.deleting && (self.pipe.drop_tables || !drop_tables) {
            return Ok(());
        }
        self.requested(
            if drop_tables { "delete with its tables requested" } else { "delete requested" },
            now,
        );
        self.pipe.deleting = true;
        self.pipe.drop_tables |= drop_tables;
        self.withdraw_all(now);
        Ok(())
    }

    /// Copies the named tables, or all where none is named, anew into others, which take their places when they are complete and up to date.
    ///
    /// # Errors
    /// The state or the mode forbids it, a table is not the pipe's, or some cannot be copied without the others.
    pub fn resync(&mut self, tables: &[TableName], now: Timestamp) -> Result<(), Refusal> {
        let slot_is_gone = self.check_resync(tables)?;
        let originals = self.originals(tables);
        let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
        let what = if names.is_empty() {
            "resync requested".to_owned()
        } else {
            format!("resync of {} requested", names.join(", "))
        };
        self.requested(what.clone(), now);
        if slot_is_gone {
            self.give_up_slot(now);
        }
        let quiet = self.pipe.state == PipeState::Running && !tables.is_empty();
        self.begin_resync(&originals, if quiet { Purpose::Tables } else { Purpose::Resync }, now);
        if !quiet {
            self.pipe.after_resync = Some(match self.pipe.state {
                PipeState::Failed if self.pipe.spec.mode.follows() => PipeState::Running,
                PipeState::Failed => PipeState::Completed,
                state => state,
            });
            let _ = self.advance(PipeEvent::ResyncRequested, what, Actor::User, now);
        }
        self.conclude(&Actor::Coordinator, now);
        Ok(())
    }

    /// Whether the tables can be copied anew; tells whether what all of them rest on is lost.
    fn check_resync(&self, tables: &[TableName]) -> Result<bool, Refusal> {
        let command = Command::Resync;
        self.check(command)?;
        let unfit =
            |reason: String, remedy: &str| Err(Refusal::Unfit { command, reason, remedy: remedy.to_owned() });
        if !self.pipe.spec.mode.copies() {
            let reason = "replicationMode cdc_only copies nothing".to_owned();
            return unfit(reason, "make a pipe with replicationMode: cdc");
        }
        if let Some(missing) = tables.iter().find(|table| self.original(table).is_none()) {
            return unfit(
                format!("{missing} is not a table of the pipe"),
                "`millrace pipe tables` lists them",
            );
        }
        let slot_is_gone = self.pipe.state == PipeState::Failed
            && self.pipe.failure.as_ref().is_some_and(|failure| failure.recovery == Recovery::Never);
        let all = self.originals(tables).len() == self.originals(&[]).len();
        if slot_is_gone && !all {
            let reason = "what all tables rest on is lost, so none of them can go on as it is".to_owned();
            return unfit(reason, "resync the whole pipe");
        }
        Ok(slot_is_gone)
    }

    /// As [`PipeAggregate::resync`], with other snapshot settings from now on.
    ///
    /// # Errors
    /// As [`PipeAggregate::resync`]; the settings stay as they were then.
    pub fn resync_with(
        &mut self,
        spec: PipeSpec,
        tables: &[TableName],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let before = std::mem::replace(&mut self.pipe.spec, spec);
        let done = self.resync(tables, now);
        if done.is_err() {
            self.pipe.spec = before;
        } else if self.pipe.spec != before {
            self.pipe.generation += 1;
        }
        done
    }

    /// Tables that readers have, by their sources; all where none is named.
    fn originals(&self, sources: &[TableName]) -> Vec<TableId> {
        self.ids(|table| {
            table.replaces.is_none()
                && table.state != TableState::Removed
                && (sources.is_empty() || sources.contains(table.source()))
        })
    }

    /// The stream's place is lost: a new slot is made, and nothing that stands in the destination is carried on.
    fn give_up_slot(&mut self, now: Timestamp) {
        let failure = self.pipe.failure.clone();
        self.pipe.slot = None;
        self.pipe.streams = false;
        self.pipe.rounds.clear();
        for original in self.originals(&[]) {
            self.give_up_successor(original);
            if let Some(table) = self.table_mut(original) {
                table.record.problem.clone_from(&failure);
                table.record.round = None;
            }
            self.advance_table(original, TableEvent::Broke, Actor::Coordinator, now);
        }
    }

    /// Copies a table anew that was set aside.
    ///
    /// # Errors
    /// The state forbids it, or the table is not one that was set aside.
    pub fn retry(&mut self, source: &TableName, now: Timestamp) -> Result<(), Refusal> {
        let command = Command::Retry;
        self.check(command)?;
        let unfit =
            |reason: String, remedy: &str| Err(Refusal::Unfit { command, reason, remedy: remedy.to_owned() });
        let Some(original) = self.original(source).map(|table| table.record.clone()) else {
            let reason = format!("{source} is not a table of the pipe");
            return unfit(reason, "`millrace pipe tables` lists them");
        };
        let successor = self.successor(original.id).map(|table| table.record.state);
        let failed = original.state == TableState::SetAside
            && successor.is_none_or(|state| !state.is_active())
            || successor == Some(TableState::SetAside);
        if !failed {
            let reason = format!("{source} is {}", successor.unwrap_or(original.state));
            return unfit(
                reason,
                "only a table that is set aside can be retried; resync copies any table anew",
            );
        }
        if !self.pipe.spec.mode.copies() {
            let reason = "replicationMode cdc_only copies nothing".to_owned();
            return unfit(reason, "take the table out of the pipe and add it again");
        }
        if let Some(failure) = self.pipe.failure.as_ref().filter(|failure| failure.table.is_none()) {
            let reason = format!("the pipe failed for another reason: {}", failure.message);
            return unfit(reason, "mend that, then resume or resync the pipe");
        }
        self.requested(format!("retry of {source} requested"), now);
        let cause = format!("retry of {source} requested");
        let completed = self.pipe.state == PipeState::Completed;
        let purpose = if completed { Purpose::Resync } else { Purpose::Tables };
        self.begin_resync(&[original.id], purpose, now);
        if completed {
            self.pipe.after_resync = Some(PipeState::Completed);
            let _ = self.advance(PipeEvent::ResyncRequested, cause, Actor::User, now);
        } else if self.pipe.state == PipeState::Failed {
            let to = self.resumes_at();
            let _ = self.advance(PipeEvent::ResumeRequested { to }, cause, Actor::User, now);
        }
        Ok(())
    }

    /// Takes over an edited specification. What needs a resync of tables begins one where that is allowed.
    ///
    /// # Errors
    /// The state forbids it, something cannot be edited, or a resync is needed and not allowed. Nothing is changed then.
    pub fn edit(&mut self, spec: PipeSpec, resync: bool, now: Timestamp) -> Result<Difference, Refusal> {
        let difference = Difference::between(&self.pipe.spec, &spec);
        if difference.is_empty() {
            return Ok(difference);
        }
        if let Some((command, reason, remedy)) = difference
            .refused
            .first()
            .map(|(what, remedy)| (Command::ChangeSettings, what.clone(), (*remedy).to_owned()))
        {
            return Err(Refusal::Unfit { command, reason, remedy });
        }
        self.check(Command::ChangeSettings)?;
        if !difference.added.is_empty() {
            self.check(Command::AddTables)?;
        }
        if !difference.removed.is_empty() {
            self.check(Command::RemoveTables)?;
            let early = [Some(PipeState::Provisioning), Some(PipeState::Setup)];
            if early.contains(&self.pipe.failed_in) {
                return Err(Refusal::Unfit {
                    command: Command::RemoveTables,
                    reason: "it failed before its tables were made".to_owned(),
                    remedy: "delete the pipe and make it anew".to_owned(),
                });
            }
        }
        let anew: Vec<TableName> = match (difference.all_anew.is_empty(), resync) {
            (true, _) => difference.changed.iter().map(|(table, _)| table.clone()).collect(),
            (false, _) => spec
                .tables
                .iter()
                .map(|table| table.source.clone())
                .filter(|source| self.original(source).is_some())
                .collect(),
        };
        if !anew.is_empty() {
            self.check(Command::Resync)?;
            if !resync {
                let reasons: Vec<String> = difference.needing_resync();
                return Err(Refusal::Unfit {
                    command: Command::ChangeSettings,
                    reason: format!("{} needs a resync", reasons.join(", ")),
                    remedy:
                        "apply it with --resync: the tables are copied anew while readers keep what they have"
                            .to_owned(),
                });
            }
        }
        if !self.pipe.spec.mode.follows() {
            let target = |source: &TableName| {
                spec.tables.iter().find(|table| &table.source == source).map(|table| &table.target)
            };
            let known = |added: &&TableName| {
                self.tables().any(|table| Some(&table.record.spec.target) == target(added))
            };
            if let Some(added) = difference.added.iter().find(known) {
                return Err(Refusal::Unfit {
                    command: Command::AddTables,
                    reason: format!(
                        "{added} would share a destination table that is copied already, and a copy that begins anew empties it"
                    ),
                    remedy: "give it a target of its own, or make another pipe of both".to_owned(),
                });
            }
        }
        if !anew.is_empty() {
            self.check_resync(&anew)?;
            let others = !difference.added.is_empty() || !difference.removed.is_empty();
            if others && self.pipe.state != PipeState::Running {
                return Err(Refusal::Unfit {
                    command: Command::ChangeSettings,
                    reason: format!(
                        "tables come or go and others are copied anew, in state {}",
                        self.pipe.state
                    ),
                    remedy: "apply one after the other".to_owned(),
                });
            }
        }
        self.requested(format!("edit requested: {difference}"), now);
        self.pipe.spec = spec;
        self.pipe.generation += 1;
        for id in self.ids(|_| true) {
            let source = self.table(id).map(|table| table.record.source().clone());
            let policies = self.pipe.spec.tables.iter().find(|table| Some(&table.source) == source.as_ref());
            let policies = policies.map(|table| table.out_of_range.clone());
            if let (Some(policies), Some(table)) = (policies, self.table_mut(id)) {
                table.record.spec.out_of_range = policies;
            }
        }
        self.revise();
        let cause = difference.to_string();
        // First: a running pipe goes on running meanwhile, so that tables may come and go.
        if !anew.is_empty() {
            self.resync(&anew, now)?;
        }
        if !difference.added.is_empty() {
            self.begin_additions(&difference.added, &cause, now);
        }
        if !difference.removed.is_empty() {
            self.begin_removal(&difference.removed, &cause, now);
        }
        self.conclude(&Actor::Coordinator, now);
        Ok(difference)
    }

    fn begin_additions(&mut self, added: &[TableName], cause: &str, now: Timestamp) {
        let specs = self.pipe.spec.tables.iter().filter(|table| added.contains(&table.source));
        let specs: Vec<_> = specs.cloned().collect();
        let tables: Vec<TableId> = specs.into_iter().map(|table| self.add_table(table, None, now)).collect();
        self.begin_round(Purpose::Addition, &tables);
        if matches!(self.pipe.state, PipeState::Running | PipeState::Completed) {
            let _ = self.advance(PipeEvent::TablesAdded, cause.to_owned(), Actor::User, now);
        }
    }

    fn begin_removal(&mut self, removed: &[TableName], cause: &str, now: Timestamp) {
        for id in self.ids(|table| removed.contains(table.source())) {
            self.release_all(|task| matches!(task, crate::record::Task::Copy { table, .. } if *table == id));
            self.advance_table(id, TableEvent::Removed, Actor::User, now);
        }
        self.pipe.publication_due = self.owns_publication();
        match (self.pipe.state, self.pipe.failed_in) {
            // It goes back to where it was before it failed to take the first tables out.
            (PipeState::Failed, Some(PipeState::Modifying)) => {}
            // What remains is swapped in from there.
            (PipeState::Failed, Some(PipeState::Resync)) => self.pipe.back_to = Some(PipeState::Snapshot),
            (PipeState::Failed, _) => self.pipe.back_to = Some(self.resumes_at()),
            (state, _) => self.pipe.back_to = Some(state),
        }
        let _ = self.advance(PipeEvent::TablesRemoved, cause.to_owned(), Actor::User, now);
    }
}
