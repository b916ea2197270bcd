//! Partitions that come and go while their table is followed. Their rows are published under the partitioned table's name; that a partition was attached, detached or emptied by
//! itself is not. Which ones came is recorded, so that those are noticed too that came while nobody streamed.

use std::collections::BTreeMap;

use millrace_model::{Lsn, Partition};
use millrace_postgres::partitions::Leaf;
use millrace_postgres::{Error, Session};

/// The partitions of one table.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    /// As of the last look, by oid.
    seen: BTreeMap<u32, Leaf>,
    /// The end of the source's log when something was found that the stream may yet explain, by a truncation of the whole table or a change of its columns.
    pub(crate) doubted_at: Option<Lsn>,
}

impl Partitions {
    /// Those that there are now have been seen.
    pub(crate) async fn look(session: &Session, oid: u32) -> Result<Self, Error> {
        Ok(Self { seen: session.unlocked_leaves(oid).await?, doubted_at: None })
    }

    /// Those of which the destination has every row, once a comparison has found nothing.
    pub(crate) fn complete(&self) -> Vec<Partition> {
        self.seen.values().map(|leaf| leaf.partition).collect()
    }

    /// The stream brought a truncation of the whole table.
    pub(crate) fn emptied(&mut self) {
        self.seen.values_mut().for_each(|leaf| leaf.has_rows = false);
        self.doubted_at = None;
    }

    /// Whether a partition with rows stands in another file than before.
    pub(crate) async fn is_rewritten(&self, session: &Session, oid: u32) -> Result<bool, Error> {
        let now = session.unlocked_leaves(oid).await?;
        Ok(self.seen.iter().any(|(oid, known)| {
            known.has_rows && now.get(oid).is_some_and(|leaf| leaf.file_node != known.file_node)
        }))
    }

    /// Whatever happened to partitions with rows that the stream does not tell, each as part of a sentence. `complete` are those of which the destination had every row before.
    /// `keeps_gone` is `truncate: ignore`: rows of partitions that are gone or emptied stay in the destination, as those of tables do that are truncated.
    pub(crate) async fn compare(
        &mut self,
        session: &Session,
        oid: u32,
        complete: &[Partition],
        keeps_gone: bool,
    ) -> Result<Vec<String>, Error> {
        let now = session.unlocked_leaves(oid).await?;
        let mut found = Vec::new();
        for (oid, known) in self.seen.iter().filter(|(_, known)| known.has_rows && !keeps_gone) {
            match now.get(oid) {
                None => {
                    found.push(format!("partition {}, which held rows, was detached or dropped", known.name));
                }
                Some(leaf) if leaf.file_node != known.file_node && !session.kept_rows(leaf).await? => {
                    found.push(format!("partition {} was emptied or rewritten by itself", leaf.name));
                }
                Some(_) => {}
            }
        }
        for leaf in now.values().filter(|leaf| !complete.contains(&leaf.partition)) {
            if session.came_with_rows(leaf).await? {
                found.push(format!("partition {} was attached with rows in it", leaf.name));
            }
        }
        if found.is_empty() {
            self.doubted_at = None;
        }
        if found.is_empty() || self.seen.is_empty() {
            self.seen = now;
        }
        Ok(found)
    }
}
