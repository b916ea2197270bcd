//! The assignments that a worker holds, and what it has still to say about them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use millrace_model::work::{Assignment, Progress, Report};
use millrace_model::{Epoch, TableId};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How a task talks to the desk.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    epoch: Epoch,
    reports: mpsc::Sender<(Epoch, Report)>,
}

impl Reporter {
    pub(crate) fn new(epoch: Epoch, reports: mpsc::Sender<(Epoch, Report)>) -> Self {
        Self { epoch, reports }
    }

    /// Says how far the work is. One that finds no room is left out: the next says more.
    pub(crate) fn progress(&self, progress: Progress) {
        let _ = self.reports.try_send((self.epoch, Report::Progress(progress)));
    }

    /// Says something that must arrive.
    pub(crate) async fn must_say(&self, report: Report) {
        // The desk outlives its tasks; when it is gone, so is the worker.
        let _ = self.reports.send((self.epoch, report)).await;
    }
}

/// What the coordinator has stored of what a stream said of its tables: how often, by table. Counted rather than queued, so that none is lost however long the
/// stream does not look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorded {
    times: Arc<Mutex<BTreeMap<TableId, usize>>>,
    news: Arc<Notify>,
}

impl Recorded {
    fn add(&self, table: TableId) {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner).entry(table).or_default() += 1;
        self.news.notify_one();
    }

    /// What came since this was last asked; waits for something. Cancel by dropping: nothing is lost.
    pub(crate) async fn next(&self) -> BTreeMap<TableId, usize> {
        loop {
            let times = std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner));
            if !times.is_empty() {
                return times;
            }
            self.news.notified().await;
        }
    }
}

/// One assignment in hand.
pub(crate) struct Held {
    /// Stops it at once.
    pub(crate) cancel: CancellationToken,
    /// Asks it to finish what it has read.
    pub(crate) drain: CancellationToken,
    /// Tells a stream that the coordinator has stored what it said of a table.
    pub(crate) recorded: Recorded,
    /// Tells a stream what it is to do from now on.
    pub(crate) amendments: watch::Sender<Option<Arc<Assignment>>>,
    /// Said again after a reconnect, since the coordinator may have missed it.
    progress: Option<Progress>,
    /// By table, in the order in which they were said.
    notices: HashMap<TableId, VecDeque<Report>>,
    /// How it ended; held until the coordinator has stored it.
    ended: Option<Report>,
}

/// All assignments in hand.
#[derive(Default)]
pub(crate) struct Desk {
    held: BTreeMap<Epoch, Held>,
}

impl Desk {
    /// Takes an assignment in; false where it is held already.
    pub(crate) fn take(&mut self, epoch: Epoch, held: Held) -> bool {
        if self.held.contains_key(&epoch) {
            return false;
        }
        self.held.insert(epoch, held);
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(crate) fn epochs(&self) -> Vec<Epoch> {
        self.held.keys().copied().collect()
    }

    /// Stops everything that is not named.
    pub(crate) fn keep_only(&mut self, keep: &[Epoch]) {
        let gone: Vec<Epoch> = self.held.keys().filter(|epoch| !keep.contains(epoch)).copied().collect();
        gone.into_iter().for_each(|epoch| self.revoke(epoch));
    }

    pub(crate) fn revoke(&mut self, epoch: Epoch) {
        if let Some(held) = self.held.remove(&epoch) {
            held.cancel.cancel();
        }
    }

    pub(crate) fn drain(&self, epoch: Epoch) {
        if let Some(held) = self.held.get(&epoch) {
            held.drain.cancel();
        }
    }

    pub(crate) fn cancel_all(&mut self) {
        self.keep_only(&[]);
    }

    /// Takes note of what a task says; false where its assignment is no longer held and nobody wants to hear it.
    pub(crate) fn said(&mut self, epoch: Epoch, report: &Report) -> bool {
        let Some(held) = self.held.get_mut(&epoch) else { return false };
        match report {
            Report::Progress(progress) => held.progress = Some(progress.clone()),
            Report::TableSetAside(table, _)
            | Report::TableChanged(table, _)
            | Report::TableSwapped(table)
            | Report::ValuesAltered(table, _) => {
                held.notices.entry(*table).or_default().push_back(report.clone());
            }
            Report::Finished(_) | Report::Failed(_) => held.ended = Some(report.clone()),
        }
        true
    }

    /// The coordinator has stored a report.
    pub(crate) fn recorded(&mut self, epoch: Epoch, table: Option<TableId>) {
        match table {
            None => {
                self.held.remove(&epoch);
            }
            Some(table) => {
                if let Some(held) = self.held.get_mut(&epoch)
                    && held.notices.get_mut(&table).and_then(VecDeque::pop_front).is_some()
                {
                    held.recorded.add(table);
                }
            }
        }
    }

    /// The stream of this epoch is to go on in another way; one that is not held is a stream that has ended or was never heard of, and hears of it when it begins.
    pub(crate) fn amend(&self, assignment: Assignment) {
        if let Some(held) = self.held.get(&assignment.epoch) {
            held.amendments.send_replace(Some(Arc::new(assignment)));
        }
    }

    /// What the coordinator may have missed while the connection was down, in the order in which it was said.
    pub(crate) fn to_repeat(&self) -> Vec<(Epoch, Report)> {
        let mut reports = Vec::new();
        for (epoch, held) in &self.held {
            reports
                .extend(held.progress.iter().cloned().map(|progress| (*epoch, Report::Progress(progress))));
            reports.extend(held.notices.values().flatten().cloned().map(|report| (*epoch, report)));
            reports.extend(held.ended.iter().cloned().map(|report| (*epoch, report)));
        }
        reports
    }
}

impl Held {
    pub(crate) fn new(
        cancel: CancellationToken,
        drain: CancellationToken,
        recorded: Recorded,
        amendments: watch::Sender<Option<Arc<Assignment>>>,
    ) -> Self {
        Self { cancel, drain, recorded, amendments, progress: None, notices: HashMap::new(), ended: None }
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::work::Outcome;

    use super::*;

    fn held() -> (Held, CancellationToken) {
        let cancel = CancellationToken::new();
        let held =
            Held::new(cancel.clone(), CancellationToken::new(), Recorded::default(), watch::channel(None).0);
        (held, cancel)
    }

    #[test]
    fn an_end_is_repeated_until_it_is_recorded() {
        let mut desk = Desk::default();
        desk.take(Epoch(1), held().0);
        let end = Report::Finished(Outcome::Copied { rows: 1, bytes: 2 });
        assert!(desk.said(Epoch(1), &end));
        assert_eq!(desk.to_repeat(), [(Epoch(1), end)]);
        assert_eq!(desk.epochs(), [Epoch(1)], "it is still named in Hello");
        desk.recorded(Epoch(1), None);
        assert!(desk.to_repeat().is_empty() && desk.is_empty());
    }

    #[test]
    fn what_a_welcome_does_not_name_is_stopped() {
        let mut desk = Desk::default();
        let (first, stays) = held();
        let (second, goes) = held();
        desk.take(Epoch(1), first);
        desk.take(Epoch(2), second);
        desk.keep_only(&[Epoch(1)]);
        assert!(!stays.is_cancelled() && goes.is_cancelled());
        assert!(
            !desk.said(Epoch(2), &Report::Finished(Outcome::Released)),
            "nobody wants to hear it any more"
        );
    }

    #[test]
    fn an_assignment_is_taken_once() {
        let mut desk = Desk::default();
        assert!(desk.take(Epoch(1), held().0));
        assert!(!desk.take(Epoch(1), held().0));
    }
}
