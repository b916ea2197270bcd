//! Workers in the order in which they are to be given work.
//!
//! A plan for every pipe asks for a place ten thousand times, so that the order is kept, not looked for: a place costs what a look into an ordered set does.

use std::collections::{BTreeMap, BTreeSet};

use millrace_model::{Labels, WorkerId};

use crate::plan::WorkerFacts;

/// How good a place is; the field order is the policy, the least value wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Thousandths of the worker's slots that are taken.
    load: u64,
    /// Light tasks of this plan, so that they spread too.
    light: u32,
    /// Settles ties the same way every time: the place among the workers, by id.
    at: usize,
}

/// What a worker carries once this plan is done.
#[derive(Debug, Clone, Copy)]
struct Load {
    tasks: u32,
    light: u32,
}

/// The workers that a selector fits.
#[derive(Debug, Default)]
struct Pool {
    order: BTreeSet<Score>,
    /// How many of them have a free slot.
    with_slot: usize,
}

/// Workers and what this plan has given them.
#[derive(Debug)]
pub(crate) struct Fleet<'a> {
    /// By id.
    workers: Vec<&'a WorkerFacts>,
    loads: Vec<Load>,
    pools: BTreeMap<&'a Labels, Pool>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(workers: &'a [WorkerFacts]) -> Self {
        let mut workers: Vec<_> = workers.iter().collect();
        workers.sort_by_key(|worker| &worker.id);
        let loads = workers.iter().map(|worker| Load { tasks: worker.tasks, light: 0 }).collect();
        Self { workers, loads, pools: BTreeMap::new() }
    }

    /// Finds the best place and takes it, or says why there is none. Who did it last has it again where possible: staying put spares a reconnect to the source.
    pub(crate) fn place(
        &mut self,
        selector: &'a Labels,
        prefers: Option<&WorkerId>,
        takes_slot: bool,
    ) -> Result<&'a WorkerFacts, &'static str> {
        if self.workers.is_empty() {
            return Err("no worker is connected");
        }
        let preferred = prefers
            .and_then(|id| self.workers.binary_search_by_key(&id, |worker| &worker.id).ok())
            .filter(|at| self.fits(*at, selector) && (!takes_slot || self.has_slot(*at)));
        let pool = self.pool(selector);
        let best = match preferred {
            Some(at) => Some(at),
            None if takes_slot && pool.with_slot == 0 => None,
            None => {
                let order = &self.pools[selector].order;
                order.iter().map(|score| score.at).find(|at| !takes_slot || self.has_slot(*at))
            }
        };
        let Some(at) = best else {
            return Err(if self.workers.iter().any(|worker| worker.labels.satisfy(selector)) {
                "every worker is busy or leaving"
            } else {
                "no worker is connected that has the labels of workerSelector"
            });
        };
        self.take(at, takes_slot);
        Ok(self.workers[at])
    }

    fn take(&mut self, at: usize, takes_slot: bool) {
        let (before, had_slot) = (self.score(at), self.has_slot(at));
        let load = &mut self.loads[at];
        load.tasks += u32::from(takes_slot);
        load.light += u32::from(!takes_slot);
        let (after, has_slot) = (self.score(at), self.has_slot(at));
        for pool in self.pools.values_mut() {
            if pool.order.remove(&before) {
                pool.order.insert(after);
                pool.with_slot -= usize::from(had_slot && !has_slot);
            }
        }
    }

    fn pool(&mut self, selector: &'a Labels) -> &Pool {
        if !self.pools.contains_key(selector) {
            let mut pool = Pool::default();
            for at in (0..self.workers.len()).filter(|at| self.fits(*at, selector)) {
                pool.order.insert(self.score(at));
                pool.with_slot += usize::from(self.has_slot(at));
            }
            self.pools.insert(selector, pool);
        }
        &self.pools[selector]
    }

    fn fits(&self, at: usize, selector: &Labels) -> bool {
        let worker = self.workers[at];
        !worker.draining && worker.labels.satisfy(selector)
    }

    fn has_slot(&self, at: usize) -> bool {
        self.loads[at].tasks < self.workers[at].max_tasks
    }

    fn score(&self, at: usize) -> Score {
        let (worker, load) = (self.workers[at], self.loads[at]);
        let taken = u64::from(load.tasks) + u64::from(worker.lasting);
        Score { load: taken * 1000 / u64::from(worker.max_tasks.max(1)), light: load.light, at }
    }
}
