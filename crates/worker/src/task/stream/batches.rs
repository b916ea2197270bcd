//! Batches on their way to the destination, and the position that is durable once they have arrived.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use millrace_apply::{Batch, TableIndex};
use millrace_mapping::EncodedBlock;
use millrace_model::work::Report;
use millrace_model::{Lsn, Problem, Timestamp};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::claim::Claim;
use super::hold::{HeldInsert, Refused};
use super::{Arrived, Pump, STATUS, Sent, deliver_claimed, keeps_every_row, now};
use crate::budget::Reservation;

/// Inserts of one batch at a time: more only make ClickHouse's parts compete.
const INSERTS: usize = 4;

impl Pump<'_> {
    /// Sends everything that waits as one batch, rows that lacked values completed.
    pub(super) async fn send(&mut self) -> Result<(), Vec<Problem>> {
        if self.applier.is_incomplete() {
            self.find_values().await?;
        }
        let broken = self.applier.complete();
        if !broken.is_empty() {
            self.set_aside(broken).await;
        }
        self.dispatch();
        Ok(())
    }

    /// Sends the blocks that wait.
    fn dispatch(&mut self) {
        let Batch { blocks, committed, commits, .. } = self.applier.take(now());
        if blocks.is_empty() {
            return;
        }
        let reserved = std::mem::replace(&mut self.reserved, self.shared.budget.empty());
        self.send_blocks(blocks, committed, commits.map(|commits| commits.newest), reserved);
    }

    /// Sends blocks as one batch.
    pub(super) fn send_blocks(
        &mut self,
        blocks: Vec<(TableIndex, EncodedBlock)>,
        committed: Lsn,
        newest_commit: Option<Timestamp>,
        reserved: Reservation,
    ) {
        let number = self.next_batch;
        self.next_batch += 1;
        self.cadence.has_sent(Instant::now());
        let rows: usize = blocks.iter().map(|(_, block)| block.rows).sum();
        let inserts: Vec<_> = blocks
            .into_iter()
            .map(|(TableIndex(index), block)| {
                *self.table_changes.entry(index).or_default() += block.rows as u64;
                let altered = block.altered.iter().map(|(_, values)| values).sum::<u64>();
                if altered > 0 {
                    *self.altered.entry(index).or_default() += altered;
                }
                let target = &self.planned[index].target;
                let (destination, table, source) =
                    (self.destination.clone(), target.table.clone(), target.source.clone());
                // The epoch is never used again, so no other content ever has this token.
                let token = format!("{}-{}-{number}-{index}", self.stream.pipe, self.stream.epoch);
                let (claim, watch) = (self.claim_on(index), self.watch.clone());
                async move {
                    let claim = claim.as_deref();
                    let delivered =
                        deliver_claimed(&destination, &source, &table, &block, &token, claim, &watch).await;
                    let insert = HeldInsert { block, token, reserved: None };
                    delivered.err().map(|problem| Refused { index, problem, insert })
                }
            })
            .collect();
        let tables = u32::try_from(inserts.len()).unwrap_or(u32::MAX);
        let span = tracing::info_span!("insert", rows, tables);
        let began = Instant::now();
        self.arriving.spawn(
            async move {
                let mut inserts = inserts.into_iter();
                let mut running: FuturesUnordered<_> = inserts.by_ref().take(INSERTS).collect();
                let mut refused: Vec<Refused> = Vec::new();
                while let Some(inserted) = running.next().await {
                    refused.extend(inserted);
                    running.extend(inserts.next());
                }
                // What is tried again keeps the memory.
                if let Some(first) = refused.first_mut() {
                    first.insert.reserved = Some(reserved);
                }
                Arrived { number, tables, took: began.elapsed(), refused }
            }
            .instrument(span),
        );
        self.batches.push_back(Sent { number, committed, newest_commit, arrived: false });
    }

    /// What an insert into the table has to ask first.
    pub(super) fn claim_on(&self, index: usize) -> Option<Arc<Claim>> {
        self.claim.clone().filter(|_| keeps_every_row(&self.planned[index]))
    }

    pub(super) async fn arrived(&mut self, arrived: Arrived) -> Result<(), Vec<Problem>> {
        self.hold(arrived.refused)?;
        self.cadence.has_arrived(arrived.took, arrived.tables);
        if let Some(batch) = self.batches.iter_mut().find(|batch| batch.number == arrived.number) {
            batch.arrived = true;
            let age = batch.newest_commit.map(|commit| now().0.saturating_sub(commit.0));
            self.delay =
                age.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))).or(self.delay);
        }
        while self.batches.front().is_some_and(|batch| batch.arrived) {
            if let Some(batch) = self.batches.pop_front() {
                self.durable = self.durable.max(batch.committed);
            }
        }
        for (index, values) in std::mem::take(&mut self.altered) {
            let id = self.planned[index].id;
            self.say(id, Report::ValuesAltered(id, values)).await;
        }
        self.pass_quiet_log();
        self.acknowledge(false).await
    }

    /// Waits until everything that was read is in the destination. PostgreSQL hears of us meanwhile.
    pub(super) async fn arrive_all(&mut self) -> Result<(), Vec<Problem>> {
        if self.applier.buffered_rows() > 0 {
            self.send().await?;
        }
        self.arrive_sent().await
    }

    /// Waits until everything that was sent is in the destination.
    pub(super) async fn arrive_sent(&mut self) -> Result<(), Vec<Problem>> {
        while !self.batches.is_empty() {
            tokio::select! {
                Some(arrived) = self.arriving.join_next() => {
                    self.arrived(arrived.map_err(|_| vec![crate::task::stopped()])?).await?;
                }
                () = tokio::time::sleep(STATUS) => self.acknowledge(false).await?,
            }
        }
        Ok(())
    }
}
