//! What a table looks like at this moment, as far as a running stream must know: the numbers of its columns, the files of its partitions, and whether rows show what the stream
//! does not tell.

use std::collections::BTreeMap;

use millrace_model::TableName;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::error::Error;
use crate::quoting::{quote_identifier, quote_table};
use crate::session::{Session, column, get};

/// `query_canceled`: a statement took longer than it may.
const QUERY_CANCELED: &str = "57014";
/// Pages in which rows are looked for that are older than something: rows that stood in a table before others stand before them.
const FIRST_PAGES: u32 = 64;

/// A table's columns and file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// `pg_relation_filenode`, 0 where it has no storage of its own.
    pub file_node: u32,
    /// Name, type and type modifier of its columns, by number. Empty where the table is gone.
    pub columns: BTreeMap<i16, (String, u32, i32)>,
}

/// A partition that holds rows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its name, quoted where SQL needs it.
    pub name: String,
    /// `pg_relation_filenode`
    pub file_node: u32,
    /// Whether its file holds anything.
    pub has_rows: bool,
    /// When it became part of the tree.
    attached: Moment,
    /// When it was last altered, truncated or rewritten.
    altered: Moment,
}

/// A statement of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Moment {
    transaction: String,
    command: String,
}

impl Session {
    /// What the catalog says of a table's columns.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn shape(&self, oid: u32) -> Result<Shape, Error> {
        let what = "to tell a table's columns";
        let sql = "SELECT coalesce(pg_relation_filenode($1::oid), 0), attnum, attname, atttypid, atttypmod FROM pg_attribute \
                   WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped";
        let mut shape = Shape::default();
        for row in &self.rows(what, sql, &[&oid]).await? {
            shape.file_node = get(row, 0, what)?;
            let described = (get(row, 2, what)?, get(row, 3, what)?, get(row, 4, what)?);
            shape.columns.insert(get(row, 1, what)?, described);
        }
        Ok(shape)
    }

    /// Whether a row shows a value in the column. Looks for no longer than some seconds, after which the answer is yes.
    ///
    /// # Errors
    /// A statement fails.
    pub async fn shows_values(&self, table: &TableName, name: &str) -> Result<bool, Error> {
        let what = "to tell whether a column holds values";
        let (table, name) = (quote_table(table), quote_identifier(name));
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE num_nulls({name}) = 0)");
        self.run(what, "SET statement_timeout = '5s'").await?;
        let found = self.rows(what, &sql, &[]).await;
        self.run(what, "RESET statement_timeout").await?;
        match found {
            Ok(rows) => column(&rows, what),
            Err(Error::Refused { source, .. }) if source.code == QUERY_CANCELED => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether a table whose file is another one was truncated, rather than rewritten: all rows in it came after its last alteration. A statement that writes rows anew alters the
    /// table after that. In doubt the answer is no.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn was_truncated(&self, oid: u32, table: &TableName) -> Result<bool, Error> {
        let what = "to tell whether a table was truncated";
        let sql = format!(
            "SELECT count(*) = 1 AND NOT EXISTS (SELECT 1 FROM ONLY {} AS held CROSS JOIN \
               (SELECT xmin AS transaction, cmin::text::bigint AS command FROM pg_class WHERE oid = $1::oid) AS altered \
             WHERE age(held.xmin) > age(altered.transaction) \
               OR held.xmin = altered.transaction AND held.cmin::text::bigint <= altered.command) FROM pg_class WHERE oid = $1::oid",
            quote_table(table)
        );
        column(&self.rows(what, &sql, &[&oid]).await?, what)
    }

    /// The partitions of a partitioned table that hold rows themselves, by their oids.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn leaves(&self, oid: u32) -> Result<BTreeMap<u32, Leaf>, Error> {
        let what = "to tell a table's partitions";
        let sql = "SELECT c.oid, format('%I.%I', n.nspname, c.relname), coalesce(pg_relation_filenode(c.oid), 0), \
                     coalesce(pg_relation_size(c.oid) > 0, false), joined.xmin::text, joined.cmin::text, c.xmin::text, c.cmin::text \
                   FROM pg_partition_tree($1::oid) AS tree JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
                   CROSS JOIN LATERAL ( \
                     SELECT i.xmin, i.cmin FROM pg_partition_ancestors(c.oid) AS above JOIN pg_inherits i ON i.inhrelid = above.relid \
                     ORDER BY age(i.xmin), i.cmin::text::bigint DESC LIMIT 1 \
                   ) AS joined \
                   WHERE tree.isleaf AND c.relkind = 'r'";
        let mut leaves = BTreeMap::new();
        for row in &self.unlocked_rows(what, sql, &[&oid]).await? {
            let moment = |at| -> Result<Moment, Error> {
                Ok(Moment { transaction: get(row, at, what)?, command: get(row, at + 1, what)? })
            };
            let leaf = Leaf {
                name: get(row, 1, what)?,
                file_node: get(row, 2, what)?,
                has_rows: get(row, 3, what)?,
                attached: moment(4)?,
                altered: moment(6)?,
            };
            leaves.insert(get(row, 0, what)?, leaf);
        }
        Ok(leaves)
    }

    /// Rows of a statement that does not wait for whoever alters a table.
    async fn unlocked_rows(
        &self,
        what: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.run(what, "SET lock_timeout = '1s'").await?;
        let rows = self.rows(what, sql, parameters).await;
        self.run(what, "RESET lock_timeout").await?;
        rows
    }

    /// Whether a partition held rows when it became part of its tree. Yes where that cannot be told.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn came_with_rows(&self, leaf: &Leaf) -> Result<bool, Error> {
        Ok(leaf.has_rows && self.older_rows(leaf, &leaf.attached).await?.unwrap_or(true))
    }

    /// Whether a partition whose file is another one has kept its rows (`VACUUM FULL`, `CLUSTER`). No where that cannot be told.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn kept_rows(&self, leaf: &Leaf) -> Result<bool, Error> {
        Ok(leaf.has_rows && self.older_rows(leaf, &leaf.altered).await?.unwrap_or(false))
    }

    /// Whether a partition's first pages show rows that were written before a moment.
    async fn older_rows(&self, leaf: &Leaf, moment: &Moment) -> Result<Option<bool>, Error> {
        let what = "to tell how old a partition's rows are";
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM ONLY {} WHERE ctid < '({FIRST_PAGES},0)'::tid AND (age(xmin) > age('{transaction}'::xid) \
             OR xmin = '{transaction}'::xid AND cmin::text::bigint < {}))",
            leaf.name,
            moment.command,
            transaction = moment.transaction,
        );
        match self.unlocked_rows(what, &sql, &[]).await {
            Ok(rows) => column(&rows, what).map(Some),
            // No right to read it, or it went away meanwhile.
            Err(Error::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
