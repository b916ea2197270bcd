//! What the reconciler publishes for everybody to read: reads never wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use millrace_api::proto::pipe::v1 as pb;
use millrace_lifecycle::EventRecord;
use millrace_model::PipeId;
use tokio::sync::watch;

/// A pipe as it was after the last turn.
#[derive(Debug)]
pub(crate) struct PipeView {
    pub(crate) id: PipeId,
    pub(crate) pipe: pb::Pipe,
    /// Id of the last event.
    pub(crate) last_event: u64,
    /// Set once the pipe is gone: its last events, which the catalog no longer has.
    pub(crate) farewell: Option<Vec<EventRecord>>,
}

/// Pipes by name, and the workers.
#[derive(Clone, Default)]
pub(crate) struct Directory {
    pipes: Arc<RwLock<BTreeMap<String, watch::Sender<Arc<PipeView>>>>>,
    workers: Arc<RwLock<Vec<pb::Worker>>>,
}

impl Directory {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<PipeView>> {
        let pipes = self.pipes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        pipes.get(name).map(|sender| sender.borrow().clone())
    }

    /// Follows one pipe.
    pub(crate) fn watch(&self, name: &str) -> Option<watch::Receiver<Arc<PipeView>>> {
        let pipes = self.pipes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        pipes.get(name).map(watch::Sender::subscribe)
    }

    /// Up to `limit` pipes whose names come after `after`.
    pub(crate) fn page(&self, after: &str, limit: usize) -> Vec<Arc<PipeView>> {
        let pipes = self.pipes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let after = (std::ops::Bound::Excluded(after.to_owned()), std::ops::Bound::Unbounded);
        pipes.range(after).take(limit).map(|(_, sender)| sender.borrow().clone()).collect()
    }

    pub(crate) fn publish(&self, name: &str, view: Arc<PipeView>) {
        let mut pipes = self.pipes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let gone = view.farewell.is_some();
        match pipes.get(name) {
            Some(sender) => {
                sender.send_replace(view);
            }
            None if gone => {}
            None => {
                pipes.insert(name.to_owned(), watch::Sender::new(view));
            }
        }
        if gone {
            pipes.remove(name);
        }
    }

    pub(crate) fn workers(&self) -> Vec<pb::Worker> {
        self.workers.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(crate) fn publish_workers(&self, workers: Vec<pb::Worker>) {
        *self.workers.write().unwrap_or_else(std::sync::PoisonError::into_inner) = workers;
    }
}
