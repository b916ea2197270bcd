//! Partitions of a table while its changes are followed.
//!
//! The change stream has every row that is written to a partition from the moment on that it is one. What a table held before it was attached is not in it, nor that a partition
//! was detached, or emptied by itself.

use std::collections::BTreeMap;

use millrace_model::Partition;

use crate::error::Error;
use crate::session::{Session, column, get};

/// `lock_not_available`: somebody alters what was asked for.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// Pages in which rows are looked for that are older than something: rows that stood in a table before others stand before them, unless they were deleted since.
const FIRST_PAGES: u32 = 100;

/// Leaves of a table, each with the transaction and command that attached it or, later than that, one of those that it is part of, and those that altered it last.
const LEAVES: &str = "\
    WITH RECURSIVE tree AS ( \
      SELECT i.inhrelid AS relid, i.xmin AS linked_by, i.cmin AS linked_at FROM pg_inherits i WHERE i.inhparent = $1 \
      UNION ALL \
      SELECT i.inhrelid, CASE WHEN later THEN i.xmin ELSE tree.linked_by END, CASE WHEN later THEN i.cmin ELSE tree.linked_at END \
      FROM tree JOIN pg_inherits i ON i.inhparent = tree.relid, \
      LATERAL (SELECT age(i.xmin) < age(tree.linked_by) OR i.xmin = tree.linked_by AND i.cmin::text::bigint > tree.linked_at::text::bigint AS later) AS compared \
    ) \
    SELECT c.oid, format('%I.%I', n.nspname, c.relname), coalesce(pg_relation_filenode(c.oid), 0), coalesce(pg_relation_size(c.oid) > 0, false), \
      linked_by::text::bigint, linked_at::text::bigint, c.xmin::text::bigint, c.cmin::text::bigint, \
      (SELECT format('%I.%I', m.nspname, r.relname) FROM pg_class r JOIN pg_namespace m ON m.oid = r.relnamespace WHERE r.oid = $1) \
    FROM tree JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' ORDER BY c.oid";

/// A partition that holds rows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// What of it is recorded.
    pub partition: Partition,
    /// Its name, quoted where SQL needs it.
    pub name: String,
    /// `pg_relation_filenode`
    pub file_node: u32,
    /// Whether its file holds anything.
    pub has_rows: bool,
    /// When it became part of the tree.
    linked: Moment,
    /// When it was last altered, truncated or rewritten.
    altered: Moment,
    /// The partitioned table's name, quoted where SQL needs it.
    root: String,
}

/// A statement of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    transaction: i64,
    command: i64,
}

impl Session {
    /// The partitions of a table that hold rows themselves, by their oids. Waits for those that somebody alters.
    ///
    /// # Errors
    /// The statement fails.
    pub(crate) async fn leaves(&self, oid: u32) -> Result<BTreeMap<u32, Leaf>, Error> {
        let what = "to tell a table's partitions";
        let mut leaves = BTreeMap::new();
        for row in &self.rows(what, LEAVES, &[&oid]).await? {
            let moment = |at| -> Result<Moment, Error> {
                Ok(Moment { transaction: get(row, at, what)?, command: get(row, at + 1, what)? })
            };
            let (oid, linked) = (get(row, 0, what)?, moment(4)?);
            let linked_by = u32::try_from(linked.transaction).unwrap_or_default();
            let leaf = Leaf {
                partition: Partition { oid, linked_by },
                name: get(row, 1, what)?,
                file_node: get(row, 2, what)?,
                has_rows: get(row, 3, what)?,
                linked,
                altered: moment(6)?,
                root: get(row, 8, what)?,
            };
            leaves.insert(oid, leaf);
        }
        Ok(leaves)
    }

    /// The partitions of a table that hold rows themselves, by their oids.
    ///
    /// # Errors
    /// The statement fails, also where somebody alters one of them for longer than a second (`SOURCE_LOCKED`).
    pub async fn unlocked_leaves(&self, oid: u32) -> Result<BTreeMap<u32, Leaf>, Error> {
        self.run("to limit waiting", "SET lock_timeout = '1s'").await?;
        let leaves = self.leaves(oid).await;
        self.run("to limit waiting", "RESET lock_timeout").await?;
        leaves
    }

    /// Whether a partition held rows when it became part of its tree. Yes where that cannot be told.
    ///
    /// # Errors
    /// The connection breaks, or somebody alters the table.
    pub async fn came_with_rows(&self, leaf: &Leaf) -> Result<bool, Error> {
        Ok(leaf.has_rows && self.older_rows(leaf, leaf.linked).await?.unwrap_or(true))
    }

    /// Whether a partition whose file is another one has kept its rows (`VACUUM FULL`, `CLUSTER`). No where that cannot be told.
    ///
    /// # Errors
    /// The connection breaks, or somebody alters the table.
    pub async fn kept_rows(&self, leaf: &Leaf) -> Result<bool, Error> {
        Ok(leaf.has_rows && self.older_rows(leaf, leaf.altered).await?.unwrap_or(false))
    }

    /// Whether a partition's first pages show rows that were written before a moment.
    async fn older_rows(&self, leaf: &Leaf, moment: Moment) -> Result<Option<bool>, Error> {
        let what = "to tell how old a partition's rows are";
        let Moment { transaction, command } = moment;
        // Through the partitioned table, whose rights suffice.
        let sql = format!(
            "SELECT EXISTS (SELECT FROM {} WHERE tableoid = {} AND ctid < '({FIRST_PAGES},0)'::tid \
             AND (age(xmin) > age('{transaction}'::xid) OR xmin = '{transaction}'::xid AND cmin::text::bigint < {command}))",
            leaf.root, leaf.partition.oid
        );
        self.run(what, "SET lock_timeout = '1s'").await?;
        let rows = self.rows(what, &sql, &[]).await;
        self.run(what, "RESET lock_timeout").await?;
        match rows {
            Ok(rows) => column(&rows, what).map(Some),
            Err(Error::Refused { source, .. }) if source.code != LOCK_NOT_AVAILABLE => Ok(None),
            Err(error) => Err(error),
        }
    }
}
