//! Comparing tables with their sources: asked for by a user, done by workers table by table, kept with the table.

use millrace_model::work::{KeyRange, Verified};
use millrace_model::{Problem, TableId, TableName, Timestamp};

use crate::aggregate::PipeAggregate;
use crate::command::{Command, Refusal};
use crate::record::{Actor, Task, Verification, VerificationPart};
use crate::table::TableState;

impl PipeAggregate {
    /// Has tables compared with their sources, all that stream where none is named. One that is catching up is compared once it streams; one whose comparison is under way is not begun
    /// anew.
    ///
    /// # Errors
    /// The state forbids it, a table that is named is not one of the pipe or does not stream, or none does.
    pub fn verify(&mut self, sources: &[TableName], now: Timestamp) -> Result<(), Refusal> {
        let command = Command::Verify;
        self.check(command)?;
        let unfit =
            |reason: String, remedy: &str| Refusal::Unfit { command, reason, remedy: remedy.to_owned() };
        if !self.pipe.spec.mode.copies() {
            let reason = "replicationMode cdc_only leaves out what was there before it began".to_owned();
            return Err(unfit(reason, "compare by queries of your own"));
        }
        let mut chosen = Vec::new();
        for source in sources {
            let Some(table) = self.original(source) else {
                let reason = format!("{source} is not a table of the pipe");
                return Err(unfit(reason, "`millrace pipe tables` lists them"));
            };
            if !will_stream(table.record.state) {
                let reason = format!("{source} is {}", table.record.state);
                return Err(unfit(reason, "only a table that streams can be compared; wait until it does"));
            }
            chosen.push(table.record.id);
        }
        if sources.is_empty() {
            chosen = self.ids(|table| will_stream(table.state) && table.replaces.is_none());
        }
        if chosen.is_empty() {
            return Err(unfit("no table streams".to_owned(), "wait until one does: `millrace pipe tables`"));
        }
        let mut begun = Vec::new();
        for id in chosen {
            let pending = self.pending_verification(id);
            if let (false, Some(table)) = (pending, self.table_mut(id)) {
                table.record.verification = Some(Verification::requested(now));
                begun.push(table.record.source().to_string());
            }
        }
        if !begun.is_empty() {
            self.requested(format!("comparison of {} requested", begun.join(", ")), now);
        }
        Ok(())
    }

    /// Has the tables compared whose last comparison, or whose stream, began longer ago than the pipe's settings want. Nothing happens where they ask for none or the pipe does not run. Gives
    /// whether there were any.
    pub fn verify_by_schedule(&mut self, now: Timestamp) -> bool {
        let Some(every) = self.pipe.spec.settings.verify_every else { return false };
        if self.check(Command::Verify).is_err() || !self.pipe.spec.mode.copies() {
            return false;
        }
        let due = |table: &crate::record::TableRecord| {
            let last = table.verification.as_ref().map_or(table.since, |verification| verification.requested);
            let pending =
                table.verification.as_ref().is_some_and(|verification| verification.finished.is_none());
            table.state == TableState::Streaming
                && !pending
                && u128::from(now.millis_since(last)) >= every.as_millis()
        };
        let due = self.ids(due);
        for id in &due {
            if let Some(table) = self.table_mut(*id) {
                table.record.verification = Some(Verification::requested(now));
            }
        }
        !due.is_empty()
    }

    fn pending_verification(&self, id: TableId) -> bool {
        let verification = self.table(id).and_then(|table| table.record.verification.as_ref());
        verification.is_some_and(|verification| verification.finished.is_none())
    }

    /// A table's parts are compared at the same time, except where the pipe's settings say how fast a table may be read.
    pub(crate) fn wanted_verifications(&self) -> impl Iterator<Item = Task> {
        let at_a_time = match self.pipe.spec.settings.verify_rows_per_second {
            0 => usize::MAX,
            _ => 1,
        };
        self.active()
            .filter(|table| table.state == TableState::Streaming && self.pending_verification(table.id))
            .flat_map(move |table| {
                let parts = table.verification.as_ref().map_or(&[][..], |verification| &verification.parts);
                let numbered = (0..).zip(parts).filter(|(_, part)| !part.done);
                let mut open: Vec<Option<u32>> =
                    numbered.map(|(number, _)| Some(number)).take(at_a_time).collect();
                if parts.is_empty() {
                    open.push(None);
                }
                let task = |part| Task::Verify { table: table.id, source: table.source().clone(), part };
                open.into_iter().map(task)
            })
    }

    /// A table is compared range by range from now on.
    pub(crate) fn divide_verification(&mut self, id: TableId, bounds: &[i64], actor: Actor, now: Timestamp) {
        let Some(table) = self.table_mut(id) else { return };
        let source = table.record.source().clone();
        let Some(verification) = &mut table.record.verification else { return };
        if verification.finished.is_some() {
            return;
        }
        let part = |range| VerificationPart { range, done: false };
        verification.parts = KeyRange::between(bounds).map(part).collect();
        let parts = verification.parts.len();
        self.note(format!("{source} is compared in {parts} parts"), actor, now);
    }

    /// Keeps what was found in one part, or in the whole table where it was not divided.
    pub(crate) fn verified_part(
        &mut self,
        id: TableId,
        part: Option<u32>,
        found: Verified,
        actor: Actor,
        now: Timestamp,
    ) {
        let Some(part) = part else { return self.verified(id, found, actor, now) };
        let Some(table) = self.table_mut(id) else { return };
        let Some(verification) = &mut table.record.verification else { return };
        match verification.parts.get_mut(part as usize) {
            Some(part) if !part.done => part.done = true,
            _ => return,
        }
        let mut sum = verification.so_far.take().unwrap_or_default();
        sum.merge(found);
        if sum.problem.is_some() || verification.parts.iter().all(|part| part.done) {
            self.verified(id, sum, actor, now);
        } else {
            verification.so_far = Some(sum);
        }
    }

    /// Whether the last comparison of a table found differences; then what to say of them.
    pub fn differing(&self) -> Option<(Timestamp, Problem)> {
        self.active().find_map(|table| {
            let (at, found) = table.verification.as_ref()?.finished.as_ref()?;
            (found.differences > 0).then(|| (*at, differing(table.source(), found)))
        })
    }

    /// Keeps what a comparison found.
    pub(crate) fn verified(&mut self, id: TableId, found: Verified, actor: Actor, now: Timestamp) {
        if !self.pending_verification(id) {
            return;
        }
        // Where one part cannot be compared, nobody needs the others.
        self.release_all(|task| matches!(task, Task::Verify { table, .. } if *table == id));
        let Some(table) = self.table_mut(id) else { return };
        let source = table.record.source().clone();
        if let Some(verification) = &mut table.record.verification {
            *verification = Verification {
                finished: Some((now, found.clone())),
                ..Verification::requested(verification.requested)
            };
        }
        match found.problem {
            Some(problem) => self.note_problem(problem, actor, now),
            None if found.differences > 0 => self.note_problem(differing(&source, &found), actor, now),
            None => {
                let unsettled = match found.unsettled {
                    0 => String::new(),
                    rows => format!("; {rows} rows changed each time they were looked at"),
                };
                self.note(
                    format!("{source} holds the {} rows of its source{unsettled}", found.source_rows),
                    actor,
                    now,
                );
            }
        }
    }

    /// A table that does not stream any more cannot be compared.
    pub(crate) fn abandon_verification(&mut self, id: TableId, state: TableState, now: Timestamp) {
        if will_stream(state) || !self.pending_verification(id) {
            return;
        }
        let message = format!("the comparison was given up, as the table is {state} now");
        let mut problem = Problem::operator("VERIFY_ABANDONED", message, "ask for it again once it streams");
        if let Some(table) = self.table(id) {
            problem = problem.of_table(table.record.source());
        }
        let found = Verified { problem: Some(problem), ..Verified::default() };
        self.verified(id, found, Actor::Coordinator, now);
    }
}

fn will_stream(state: TableState) -> bool {
    matches!(state, TableState::Streaming | TableState::CatchingUp)
}

fn differing(source: &TableName, found: &Verified) -> Problem {
    let at_least = if found.more { "at least " } else { "" };
    let message = format!("{at_least}{} rows differ between source and destination", found.differences);
    let remedy = format!(
        "see `millrace pipe tables -o json` for their keys; `millrace pipe resync --table {source}` copies the table anew"
    );
    Problem::operator("ROWS_DIFFER", message, remedy).of_table(source)
}
