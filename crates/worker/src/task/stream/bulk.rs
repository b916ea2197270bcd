//! Taking a backlog in bulk (decision 0005): many messages to a packet, call by call, the slot advanced behind what has arrived.

use millrace_apply::Step;
use millrace_model::Problem;
use millrace_postgres::{BacklogEvent, BacklogReader, classify};
use tokio::time::MissedTickBehavior;

use super::amend::amendment;
use super::{Caught, Pump, REPORT, broken_stream};
use crate::task::Signals;
use crate::task::source;

/// A backlog is taken in bulk while it is so large; less is quicker had from the stream.
const BULK_BYTES: u64 = 32 << 20;

/// Messages of one call. The server keeps a call's changes in a temporary file of a few hundred bytes each, and decodes its log anew for the next, so few and
/// large ones are best.
const BULK_MESSAGES: u32 = 4_000_000;

impl Pump<'_> {
    /// Takes a backlog in bulk while it is worth it, call by call, the slot advanced behind what has arrived.
    pub(super) async fn catch_up(&mut self, signals: &mut Signals) -> Result<Caught, Vec<Problem>> {
        let failed = |error: millrace_postgres::Error| vec![classify(&error)];
        let slot = self.stream.slot_name.clone();
        while !self.shared.streamed_only.contains(&self.stream.pipe) {
            let session = source::connect(&self.stream.spec).await?;
            self.log_end = session.log_end().await.map_err(failed)?;
            let behind = session.slot_state(&slot).await.map_err(failed)?;
            let behind = behind.map_or(0, |slot| self.log_end.0.saturating_sub(slot.confirmed_flush.0));
            drop(session);
            if behind < BULK_BYTES {
                return Ok(Caught::Up);
            }
            tracing::info!(slot, behind, "taking the backlog in bulk");
            self.goal.get_or_insert(self.log_end);
            let taken = self.applier.committed();
            let caught = self.take_bulk(signals).await?;
            self.arrive_all().await?;
            while !self.unacknowledged.is_empty() {
                tokio::select! {
                    () = signals.drain.cancelled() => return Ok(Caught::Drain),
                    recorded = signals.recorded.next() => self.acknowledged(&recorded),
                }
            }
            if caught == Caught::Drain {
                return Ok(Caught::Drain);
            }
            self.advance_slot().await?;
            if self.applier.committed() == taken {
                break;
            }
        }
        Ok(Caught::Up)
    }

    /// What the source refuses in bulk (its temporary files may be limited, for instance) may still be had from the stream.
    fn bulk_failed(&self, error: &millrace_postgres::Error) -> Vec<Problem> {
        let problem = classify(error);
        if problem.code != "SOURCE_REFUSED" && problem.code != "SOURCE_OUT_OF_RESOURCES" {
            return vec![problem];
        }
        self.shared.streamed_only.insert(self.stream.pipe.clone());
        let message = format!("the backlog cannot be taken in bulk: {}", problem.message);
        vec![Problem::transient("STREAM_REOPENED", message, "it is taken from the stream by itself")]
    }

    /// Takes one call's changes in.
    async fn take_bulk(&mut self, signals: &mut Signals) -> Result<Caught, Vec<Problem>> {
        let application = source::application_name(&self.stream.pipe, self.stream.epoch);
        let mut report = tokio::time::interval(REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reader = BacklogReader::start(
            &self.stream.spec.source,
            &application,
            &self.stream.slot_name,
            std::slice::from_ref(&self.stream.publication_name),
            self.binary,
            BULK_MESSAGES,
        )
        .await
        .map_err(|error| self.bulk_failed(&error))?;
        loop {
            match reader.next_message().map_err(|error| self.bulk_failed(&error))? {
                BacklogEvent::End => return Ok(Caught::Up),
                BacklogEvent::Message { lsn, payload } => {
                    self.source = self.source.max(lsn);
                    let mut step =
                        self.applier.apply(lsn, payload).map_err(|error| vec![broken_stream(&error)])?;
                    let mut followed = None;
                    while let Step::SchemaChanged { table, relation } = step {
                        self.follow_once(table, &relation, lsn, &mut followed).await?;
                        step =
                            self.applier.apply(lsn, payload).map_err(|error| vec![broken_stream(&error)])?;
                    }
                    self.step(step).await?;
                    continue;
                }
                BacklogEvent::NeedMore => {}
            }
            self.reserve_waiting().await?;
            if self.is_full() {
                self.make_room().await?;
            }
            tokio::select! {
                biased;
                () = signals.drain.cancelled() => return Ok(Caught::Drain),
                Some(arrived) = self.arriving.join_next() => {
                    self.arrived(arrived.map_err(|_| vec![crate::task::stopped()])?).await?;
                }
                recorded = signals.recorded.next() => self.acknowledged(&recorded),
                Some(tried) = self.trying.join_next() => {
                    self.tried(tried.map_err(|_| vec![crate::task::stopped()])?).await?;
                }
                amended = amendment(&mut signals.amendments) => self.amend(&amended).await?,
                _ = report.tick() => self.report(),
                read = reader.fill() => read.map_err(|error| self.bulk_failed(&error))?,
            }
        }
    }

    /// Tells an inactive slot what it may forget.
    pub(super) async fn advance_slot(&self) -> Result<(), Vec<Problem>> {
        let session = source::connect(&self.stream.spec).await?;
        session.release_slot(&self.stream.slot_name).await.map_err(|error| vec![classify(&error)])?;
        let advanced = session.advance_slot(&self.stream.slot_name, self.forgettable()).await;
        advanced.map_err(|error| vec![classify(&error)])
    }
}
