//! Transactions in progress, kept until they commit or are rolled back.
//!
//! pgoutput sends large transactions in blocks while they are still being written (manual: "Logical Streaming Replication Protocol"). What a transaction says is
//! kept in memory as far as the budget has room, and in a file of its own beyond that. The file has no name, so that nothing is left of it
//! when the process dies. Nobody sees anything of a transaction before its commit.
//!
//! An entry is the subtransaction (4 bytes), the position (8), the length (4) and the message.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use millrace_model::Lsn;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::budget::{Budget, Reservation};

/// Memory is taken from the budget in steps of this size, and goes to the file when there is none.
const STEP: usize = 1 << 20;
/// Most memory that one transaction takes.
const MOST_IN_MEMORY: usize = 8 << 20;
/// What each transaction has without asking, so that the file is written in pieces of some size.
const LEAST_IN_MEMORY: u64 = 64 << 10;
const HEADER: usize = 16;

/// All transactions in progress of one stream.
pub(crate) struct Spool {
    budget: Budget,
    folder: PathBuf,
    transactions: HashMap<u32, Transaction>,
}

/// One transaction in progress, or one that has committed and is being read back.
pub(crate) struct Transaction {
    /// Entries that are not in the file.
    memory: Vec<u8>,
    reserved: Reservation,
    file: Option<File>,
    /// Bytes of the file.
    written: u64,
    aborted: HashSet<u32>,
}

impl Spool {
    /// Nothing yet. Files are made in `folder`.
    pub(crate) fn new(budget: Budget, folder: PathBuf) -> Self {
        Self { budget, folder, transactions: HashMap::new() }
    }

    /// Keeps a message.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub(crate) async fn append(
        &mut self,
        transaction: u32,
        subtransaction: u32,
        lsn: Lsn,
        message: &[u8],
    ) -> io::Result<()> {
        let kept = self.transactions.entry(transaction).or_insert_with(|| Transaction {
            memory: Vec::new(),
            reserved: self.budget.empty(),
            file: None,
            written: 0,
            aborted: HashSet::new(),
        });
        let length = u32::try_from(message.len()).map_err(|_| io::Error::other("a message of 4 GiB"))?;
        let needed = kept.memory.len() + HEADER + message.len();
        if needed as u64 > kept.reserved.bytes().max(LEAST_IN_MEMORY) {
            let more = (needed as u64).saturating_sub(kept.reserved.bytes()).max(STEP as u64);
            // Three quarters stay for batches, which could never be sent if transactions in progress held everything.
            let room = needed <= MOST_IN_MEMORY && self.budget.used() + more <= self.budget.total() / 4;
            match self.budget.try_reserve(more).filter(|_| room) {
                Some(more) => kept.reserved.merge(more),
                None => kept.spill(&self.folder).await?,
            }
        }
        kept.memory.extend_from_slice(&subtransaction.to_be_bytes());
        kept.memory.extend_from_slice(&lsn.0.to_be_bytes());
        kept.memory.extend_from_slice(&length.to_be_bytes());
        kept.memory.extend_from_slice(message);
        Ok(())
    }

    /// Forgets a transaction that was rolled back, or what one of its subtransactions said.
    pub(crate) fn forget(&mut self, transaction: u32, subtransaction: u32) {
        if transaction == subtransaction {
            self.transactions.remove(&transaction);
        } else if let Some(kept) = self.transactions.get_mut(&transaction) {
            kept.aborted.insert(subtransaction);
        }
    }

    /// Takes a transaction out to be read back; `None` where nothing of it was kept.
    pub(crate) fn take(&mut self, transaction: u32) -> Option<Transaction> {
        self.transactions.remove(&transaction)
    }
}

impl Transaction {
    async fn spill(&mut self, folder: &Path) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let folder = folder.to_path_buf();
                let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder)).await;
                self.file.insert(File::from_std(file.map_err(io::Error::other)??))
            }
        };
        file.write_all(&self.memory).await?;
        file.flush().await?;
        self.written += self.memory.len() as u64;
        self.memory.clear();
        if self.memory.capacity() > 2 * STEP {
            self.memory.shrink_to(STEP);
        }
        Ok(())
    }

    /// Begins to read the transaction back.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) async fn read_back(mut self) -> io::Result<ReadBack> {
        if let Some(file) = &mut self.file {
            file.rewind().await?;
        }
        Ok(ReadBack { unread: self.written, chunk: Vec::new(), at: 0, transaction: self })
    }
}

/// A committed transaction's messages in their order.
pub(crate) struct ReadBack {
    transaction: Transaction,
    /// Bytes of the file that were not read yet.
    unread: u64,
    chunk: Vec<u8>,
    at: usize,
}

impl ReadBack {
    /// The next message, its position before it; lent until the next call. What belongs to subtransactions that were rolled back is left out, save
    /// descriptions of tables and types: the source does not repeat them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) async fn next(&mut self) -> io::Result<Option<(Lsn, &[u8])>> {
        loop {
            let Some(header) = self.bytes(0, HEADER).await? else { return Ok(None) };
            let (Some(subtransaction), Some(lsn), Some(length)) = (
                header.first_chunk::<4>().copied(),
                header.get(4..).and_then(|rest| rest.first_chunk::<8>()).copied(),
                header.last_chunk::<4>().copied(),
            ) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let length = u32::from_be_bytes(length) as usize;
            let Some(entry) = self.bytes(HEADER, length).await? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let describes = matches!(entry.first(), Some(b'R' | b'Y'));
            let start = self.at + HEADER;
            self.at = start + length;
            if describes || !self.transaction.aborted.contains(&u32::from_be_bytes(subtransaction)) {
                return Ok(Some((Lsn(u64::from_be_bytes(lsn)), &self.chunk[start..start + length])));
            }
        }
    }

    /// Bytes ahead of the place that was read to, read from the file where they are not in memory yet.
    async fn bytes(&mut self, skip: usize, length: usize) -> io::Result<Option<&[u8]>> {
        let end = self.at + skip + length;
        if end > self.chunk.len() {
            self.chunk.drain(..self.at);
            self.at = 0;
        }
        let end = self.at + skip + length;
        while end > self.chunk.len() {
            if self.unread == 0 {
                if self.transaction.memory.is_empty() {
                    return Ok(None);
                }
                self.chunk.append(&mut self.transaction.memory);
                continue;
            }
            let Some(file) = &mut self.transaction.file else { return Ok(None) };
            let wanted = self.unread.min(STEP.max(end - self.chunk.len()) as u64);
            let read = file.take(wanted).read_to_end(&mut self.chunk).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.unread -= read as u64;
        }
        Ok(self.chunk.get(self.at + skip..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(spool: &mut Spool, transaction: u32) -> Vec<(u64, Vec<u8>)> {
        let mut back = spool.take(transaction).unwrap().read_back().await.unwrap();
        let mut messages = Vec::new();
        while let Some((lsn, message)) = back.next().await.unwrap() {
            messages.push((lsn.0, message.to_vec()));
        }
        messages
    }

    #[tokio::test]
    async fn what_is_kept_comes_back_in_its_order_also_out_of_the_file() {
        let budget = Budget::new(4 << 20);
        let mut spool = Spool::new(budget.clone(), std::env::temp_dir());
        let mut expected: Vec<Vec<(u64, Vec<u8>)>> = vec![Vec::new(); 3];
        for number in 0..30_000u64 {
            let transaction = u32::try_from(number % 3).unwrap();
            let size = if number == 20_000 { 9 << 20 } else { usize::try_from(number % 700).unwrap() };
            let message = vec![b'I' + u8::try_from(number % 7).unwrap(); size];
            spool.append(transaction, transaction, Lsn(number), &message).await.unwrap();
            expected[transaction as usize].push((number, message));
        }
        assert!(budget.used() <= 1 << 20);
        for transaction in 0..3 {
            assert!(read(&mut spool, transaction).await == expected[transaction as usize]);
        }
        assert_eq!(budget.used(), 0);
        assert!(spool.take(0).is_none());
    }

    #[tokio::test]
    async fn what_was_rolled_back_is_left_out_but_descriptions_stay() {
        let mut spool = Spool::new(Budget::new(1 << 20), std::env::temp_dir());
        for (subtransaction, message) in
            [(1, "Ione"), (2, "Itwo"), (2, "Rtable"), (3, "Ithree"), (1, "Ifour")]
        {
            spool.append(1, subtransaction, Lsn(7), message.as_bytes()).await.unwrap();
        }
        spool.append(9, 9, Lsn(8), b"I").await.unwrap();
        spool.forget(1, 2);
        spool.forget(9, 9);
        let texts: Vec<String> =
            read(&mut spool, 1).await.into_iter().map(|(_, text)| String::from_utf8(text).unwrap()).collect();
        assert_eq!(texts, ["Ione", "Rtable", "Ithree", "Ifour"]);
        assert!(spool.take(9).is_none());
    }
}
