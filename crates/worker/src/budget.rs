//! The memory that data may take, shared by all tasks of a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory is given out in pieces of this size, since a semaphore counts at most `2^29` permits on a 32-bit machine.
const PIECE: u64 = 4096;

/// A ceiling for all memory that grows with data. Cheap to clone; all clones share the ceiling.
///
/// A task that waits for more must first have given to the destination what it holds (and so gives back), or two such tasks could wait for each other.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    pieces: Arc<Semaphore>,
    total: u32,
    used: Arc<AtomicU64>,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    permit: OwnedSemaphorePermit,
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Budget {
    /// A budget of so many bytes, at least one piece.
    pub(crate) fn new(bytes: u64) -> Self {
        let total =
            u32::try_from((bytes / PIECE).clamp(1, u64::from(u32::MAX >> 3))).unwrap_or(u32::MAX >> 3);
        Self { pieces: Arc::new(Semaphore::new(total as usize)), total, used: Arc::new(AtomicU64::new(0)) }
    }

    /// Bytes that there are.
    pub(crate) fn total(&self) -> u64 {
        u64::from(self.total) * PIECE
    }

    /// Bytes that are given out.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Nothing yet, to grow from.
    pub(crate) fn empty(&self) -> Reservation {
        self.try_reserve(0).unwrap_or_else(|| unreachable!("no permits are always to be had"))
    }

    /// So many bytes if they are free now.
    pub(crate) fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let permit = self.pieces.clone().try_acquire_many_owned(self.pieces_of(bytes)).ok()?;
        Some(self.reservation(permit))
    }

    /// So many bytes, waiting until they are free. More than the whole budget counts as the whole: one value larger than it still passes, alone.
    pub(crate) async fn reserve(&self, bytes: u64) -> Reservation {
        match self.pieces.clone().acquire_many_owned(self.pieces_of(bytes)).await {
            Ok(permit) => self.reservation(permit),
            // The semaphore is never closed.
            Err(_) => self.empty(),
        }
    }

    fn pieces_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX).min(self.total)
    }

    fn reservation(&self, permit: OwnedSemaphorePermit) -> Reservation {
        let bytes = permit.num_permits() as u64 * PIECE;
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Reservation { permit, used: self.used.clone(), bytes }
    }
}

impl Reservation {
    /// How many bytes it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds another to this one.
    pub(crate) fn merge(&mut self, mut other: Reservation) {
        let permits = other.permit.num_permits();
        if let Some(permit) = other.permit.split(permits) {
            self.permit.merge(permit);
            self.bytes += other.bytes;
            other.bytes = 0;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_given_out_comes_back() {
        let budget = Budget::new(10 * PIECE);
        let mut held = budget.reserve(6 * PIECE).await;
        assert!(budget.try_reserve(5 * PIECE).is_none());
        held.merge(budget.reserve(PIECE * 4).await);
        assert_eq!((budget.used(), held.bytes()), (10 * PIECE, 10 * PIECE));
        drop(held);
        assert_eq!(budget.used(), 0);
        assert!(budget.try_reserve(10 * PIECE).is_some());
    }

    #[tokio::test]
    async fn more_than_there_is_counts_as_all_there_is() {
        let budget = Budget::new(3 * PIECE);
        assert_eq!(budget.reserve(1 << 40).await.bytes(), 3 * PIECE);
    }
}
