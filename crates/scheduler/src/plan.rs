//! Comparing the work that pipes call for with what workers hold, and placing the difference.
//!
//! A plan is data with reasons. The same facts always give the same plan, so a lost message, a crash or a new leader are repaired by planning again.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;

use millrace_model::{Epoch, Labels, PipeId, WorkerId};

use crate::fleet::Fleet;

/// A worker that takes work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerFacts {
    /// Who.
    pub id: WorkerId,
    /// Most slot-taking tasks at a time.
    pub max_tasks: u32,
    /// Slot-taking tasks that it holds already.
    pub tasks: u32,
    /// Lasting tasks that it holds and that take no slot: streams. They spread over the workers like any other load.
    pub lasting: u32,
    /// Leaves: gets no work, hands back what it holds.
    pub draining: bool,
    /// Where it is and whom it serves.
    pub labels: Labels,
}

/// What is known about the worker behind an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// It is connected, or its lease has not ended: it may well be working.
    Present,
    /// It is connected and leaves.
    Leaving,
    /// It is connected, and not one that the pipe selects any more.
    Unselected,
    /// Its lease has ended.
    Lost,
}

/// A task that a pipe calls for. `T` names the task within its pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedTask<T> {
    /// Which.
    pub task: T,
    /// Whether it takes one of a worker's slots.
    pub takes_slot: bool,
    /// Whether it opens connections that count against the source's limit.
    pub counts_against_source: bool,
    /// False while it waits for its next try after a failure.
    pub due: bool,
    /// Who did it last: a stream stays where it was.
    pub prefers: Option<WorkerId>,
}

/// What becomes of an assignment whose worker wants to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnLeave {
    /// The worker finishes it first: it is short, or nobody else can go on with it.
    Finish,
    /// It is asked to drain; another worker goes on from there.
    Drain,
    /// It is taken back at once; another worker can begin it anew at little cost.
    HandBack,
}

/// A task in a worker's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTask<T> {
    /// Under which epoch.
    pub epoch: Epoch,
    /// Which.
    pub task: T,
    /// What is known about its worker.
    pub holder: Holder,
    /// Whether it was asked to drain already.
    pub draining: bool,
    /// What becomes of it when its worker leaves, or is not selected any more.
    pub on_leave: OnLeave,
    /// Whether it opens connections that count against the source's limit.
    pub counts_against_source: bool,
}

/// One pipe's side of the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeFacts<T> {
    /// Which pipe.
    pub pipe: PipeId,
    /// Names the source cluster, so that pipes on one source share its limit.
    pub source: String,
    /// Most connections for copies to that source.
    pub source_connections: u32,
    /// Labels of the workers that may have its work.
    pub selector: Labels,
    /// What it calls for, most urgent first.
    pub wanted: Vec<WantedTask<T>>,
    /// What is in workers' hands.
    pub held: Vec<HeldTask<T>>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<T> {
    /// Give a task to a worker.
    Assign {
        /// Of this pipe.
        pipe: PipeId,
        /// Which task.
        task: T,
        /// To whom.
        worker: WorkerId,
        /// Why.
        reason: &'static str,
    },
    /// Take an assignment back at once.
    Withdraw {
        /// Of this pipe.
        pipe: PipeId,
        /// Which assignment.
        epoch: Epoch,
        /// Why.
        reason: &'static str,
    },
    /// Ask for what was read to be finished.
    Drain {
        /// Of this pipe.
        pipe: PipeId,
        /// Which assignment.
        epoch: Epoch,
        /// Why.
        reason: &'static str,
    },
    /// Nobody can take it now.
    Wait {
        /// Of this pipe.
        pipe: PipeId,
        /// Which task.
        task: T,
        /// Why.
        reason: &'static str,
    },
}

/// What to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<T> {
    /// The actions.
    pub actions: Vec<Action<T>>,
}

/// Plans for all pipes at once.
///
/// `source_usage` counts connections per source that pipes outside this plan hold; pass an empty map when `pipes` are all there are.
pub fn plan<T: Clone + Eq + Hash + Ord>(
    pipes: &[PipeFacts<T>],
    workers: &[WorkerFacts],
    source_usage: &BTreeMap<String, u32>,
) -> Plan<T> {
    let mut actions = Vec::new();
    let mut usage = source_usage.clone();
    let mut fleet = Fleet::new(workers);

    for pipe in pipes {
        for held in &pipe.held {
            match correction(pipe, held) {
                Some(action) => actions.push(action),
                None if held.counts_against_source => *usage.entry(pipe.source.clone()).or_default() += 1,
                None => {}
            }
        }
    }
    for pipe in pipes {
        for wanted in &pipe.wanted {
            let stands = pipe.held.iter().any(|held| {
                held.task == wanted.task && !matches!(correction(pipe, held), Some(Action::Withdraw { .. }))
            });
            if stands || !wanted.due {
                continue;
            }
            let used = usage.get(&pipe.source).copied().unwrap_or(0);
            if wanted.counts_against_source && used >= pipe.source_connections {
                actions.push(wait(pipe, wanted, "the source's connection limit is reached"));
                continue;
            }
            let worker = match fleet.place(&pipe.selector, wanted.prefers.as_ref(), wanted.takes_slot) {
                Ok(worker) => worker,
                Err(reason) => {
                    actions.push(wait(pipe, wanted, reason));
                    continue;
                }
            };
            if wanted.counts_against_source {
                *usage.entry(pipe.source.clone()).or_default() += 1;
            }
            let reason = match &wanted.prefers {
                Some(last) if last == &worker.id => "it did this before",
                Some(_) => "who did this before is not available; least loaded",
                None => "least loaded",
            };
            let (pipe, task, worker) = (pipe.pipe.clone(), wanted.task.clone(), worker.id.clone());
            actions.push(Action::Assign { pipe, task, worker, reason });
        }
    }
    Plan { actions }
}

/// What is wrong with an assignment that stands, if anything.
fn correction<T: Clone + Eq>(pipe: &PipeFacts<T>, held: &HeldTask<T>) -> Option<Action<T>> {
    let withdraw = |reason| Action::Withdraw { pipe: pipe.pipe.clone(), epoch: held.epoch, reason };
    let wanted = pipe.wanted.iter().any(|wanted| wanted.task == held.task);
    match held.holder {
        Holder::Lost => Some(withdraw("its worker's lease has ended")),
        _ if !wanted => Some(withdraw("the pipe no longer calls for it")),
        Holder::Leaving => moved_away(pipe, held, "its worker leaves"),
        Holder::Unselected => moved_away(pipe, held, "its worker has not the labels of workerSelector"),
        Holder::Present => None,
    }
}

/// What becomes of an assignment that is to go to somebody else in good order.
fn moved_away<T: Clone>(pipe: &PipeFacts<T>, held: &HeldTask<T>, reason: &'static str) -> Option<Action<T>> {
    let (pipe, epoch) = (pipe.pipe.clone(), held.epoch);
    match held.on_leave {
        OnLeave::Drain if !held.draining => Some(Action::Drain { pipe, epoch, reason }),
        OnLeave::HandBack => Some(Action::Withdraw { pipe, epoch, reason }),
        OnLeave::Drain | OnLeave::Finish => None,
    }
}

fn wait<T: Clone>(pipe: &PipeFacts<T>, wanted: &WantedTask<T>, reason: &'static str) -> Action<T> {
    Action::Wait { pipe: pipe.pipe.clone(), task: wanted.task.clone(), reason }
}

/// One line an action.
impl<T: fmt::Display> fmt::Display for Plan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "{action}")?;
        }
        Ok(())
    }
}

/// What, for which pipe, why.
impl<T: fmt::Display> fmt::Display for Action<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Assign { pipe, task, worker, reason } => {
                write!(f, "assign {task} of pipe {pipe} to {worker}: {reason}")
            }
            Action::Withdraw { pipe, epoch, reason } => {
                write!(f, "withdraw assignment {epoch} of pipe {pipe}: {reason}")
            }
            Action::Drain { pipe, epoch, reason } => {
                write!(f, "drain assignment {epoch} of pipe {pipe}: {reason}")
            }
            Action::Wait { pipe, task, reason } => write!(f, "leave {task} of pipe {pipe} waiting: {reason}"),
        }
    }
}
