//! Partitions that come to a table while its changes are followed.
//!
//! The change stream has every row that is written to a partition from the moment on that it is one. What a table held before it was attached is not in it.

use millrace_model::{Partition, TableDefinition, TableName};

use crate::error::Error;
use crate::quoting::quote_table;
use crate::session::{Session, get};

/// Rows that a partition had when it came were written first, so they stand in its first pages, unless these were emptied since.
const PAGES: u32 = 100;

/// Partitions of a table that hold rows, each with the transaction and command that attached it or, later than that, one of those that it is part of.
const LINKS: &str = "\
    WITH RECURSIVE tree AS ( \
      SELECT i.inhrelid AS relid, i.xmin AS linked_by, i.cmin AS linked_at FROM pg_inherits i WHERE i.inhparent = $1 \
      UNION ALL \
      SELECT i.inhrelid, CASE WHEN later THEN i.xmin ELSE tree.linked_by END, CASE WHEN later THEN i.cmin ELSE tree.linked_at END \
      FROM tree JOIN pg_inherits i ON i.inhparent = tree.relid, \
      LATERAL (SELECT age(i.xmin) < age(tree.linked_by) OR i.xmin = tree.linked_by AND i.cmin::text::bigint > tree.linked_at::text::bigint AS later) AS compared \
    ) \
    SELECT c.oid, n.nspname, c.relname, linked_by::text::bigint, linked_at::text::bigint \
    FROM tree JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' ORDER BY c.oid";

/// A partition that holds rows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) partition: Partition,
    name: TableName,
    /// The command of the transaction.
    linked_at: i64,
}

/// A table's partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partitions {
    /// Those of which the change stream has every row that the copy does not have.
    pub complete: Vec<Partition>,
    /// Those that came since, and had rows before.
    pub laden: Vec<TableName>,
}

impl Session {
    pub(crate) async fn linked_leaves(&self, oid: u32) -> Result<Vec<Leaf>, Error> {
        let what = "to tell which partitions there are";
        let mut leaves = Vec::new();
        for row in &self.rows(what, LINKS, &[&oid]).await? {
            let linked_by: i64 = get(row, 3, what)?;
            leaves.push(Leaf {
                partition: Partition {
                    oid: get(row, 0, what)?,
                    linked_by: u32::try_from(linked_by).unwrap_or_default(),
                },
                name: TableName::new(get::<String>(row, 1, what)?, get::<String>(row, 2, what)?),
                linked_at: get(row, 4, what)?,
            });
        }
        Ok(leaves)
    }

    /// Looks at the partitions of a table, closely at those that its definition does not know.
    ///
    /// # Errors
    /// A statement fails.
    pub async fn partitions(&self, table: &TableDefinition) -> Result<Partitions, Error> {
        let what = "to tell about new partitions";
        let mut partitions = Partitions::default();
        for Leaf { partition, name, linked_at } in self.linked_leaves(table.oid).await? {
            if table.partitions.contains(&partition) {
                partitions.complete.push(partition);
                continue;
            }
            // Through the partitioned table, whose rights suffice.
            let sql = format!(
                "SELECT EXISTS (SELECT FROM {} WHERE tableoid = $1 AND ctid < '({PAGES},0)'::tid \
                 AND (age(xmin) > age($2::text::xid) OR xmin = $2::text::xid AND cmin::text::bigint < $3))",
                quote_table(&table.name)
            );
            let linked_by = partition.linked_by.to_string();
            let rows = self.rows(what, &sql, &[&partition.oid, &linked_by, &linked_at]).await?;
            let laden = rows.first().map_or(Ok(false), |row| get(row, 0, what))?;
            if laden {
                partitions.laden.push(name);
            } else {
                partitions.complete.push(partition);
            }
        }
        Ok(partitions)
    }
}
