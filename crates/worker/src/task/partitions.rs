//! Partitions that come and go while their table is streamed. Their rows are published under the partitioned table's name; that a partition was attached, detached or emptied by
//! itself is not.

use std::collections::BTreeMap;

use millrace_model::Lsn;
use millrace_postgres::{Error, Leaf, Session};

/// The partitions of one table.
#[derive(Debug)]
pub(crate) struct Partitions {
    seen: BTreeMap<u32, Leaf>,
    /// The end of the source's log when something was found that the stream may yet explain, by a truncation of the whole table or a change of its columns.
    pub(crate) doubted_at: Option<Lsn>,
}

impl Partitions {
    /// Those that there are now count as known.
    pub(crate) async fn look(session: &Session, oid: u32) -> Result<Self, Error> {
        Ok(Self { seen: session.leaves(oid).await?, doubted_at: None })
    }

    /// The stream brought a truncation of the whole table.
    pub(crate) fn emptied(&mut self) {
        self.seen.values_mut().for_each(|leaf| leaf.has_rows = false);
        self.doubted_at = None;
    }

    /// Whether a partition with rows stands in another file than before.
    pub(crate) async fn is_rewritten(&self, session: &Session, oid: u32) -> Result<bool, Error> {
        let now = session.leaves(oid).await?;
        Ok(self.seen.iter().any(|(oid, known)| {
            known.has_rows && now.get(oid).is_some_and(|leaf| leaf.file_node != known.file_node)
        }))
    }

    /// Whatever happened to partitions with rows that the stream does not tell, each as part of a sentence. Where nothing did, those that there are now count as known.
    /// `keeps_gone` is `truncate: ignore`: rows of partitions that are gone or emptied stay in the destination, as those of tables do that are truncated.
    pub(crate) async fn compare(
        &mut self,
        session: &Session,
        oid: u32,
        keeps_gone: bool,
    ) -> Result<Vec<String>, Error> {
        let now = session.leaves(oid).await?;
        let mut found = Vec::new();
        for (oid, known) in &self.seen {
            let Some(leaf) = now.get(oid) else {
                if known.has_rows && !keeps_gone {
                    found.push(format!("partition {}, which held rows, was detached or dropped", known.name));
                }
                continue;
            };
            if known.has_rows
                && leaf.file_node != known.file_node
                && !keeps_gone
                && !session.kept_rows(leaf).await?
            {
                found.push(format!("partition {} was emptied or rewritten by itself", leaf.name));
            }
        }
        for (oid, leaf) in &now {
            if !self.seen.contains_key(oid) && session.came_with_rows(leaf).await? {
                found.push(format!("partition {} was attached with rows in it", leaf.name));
            }
        }
        if found.is_empty() {
            self.seen = now;
            self.doubted_at = None;
        }
        Ok(found)
    }
}
