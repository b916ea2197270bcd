//! What a table looks like at this moment, as far as a running stream must know: the numbers of its columns, its file, and whether rows show what the stream does not tell.

use std::collections::BTreeMap;

use millrace_model::TableName;

use crate::error::Error;
use crate::quoting::{quote_identifier, quote_table};
use crate::session::{Session, column, get};

/// `query_canceled`: a statement took longer than it may.
const QUERY_CANCELED: &str = "57014";

/// A table's columns and file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// `pg_relation_filenode`, 0 where it has no storage of its own.
    pub file_node: u32,
    /// Name, type and type modifier of its columns, by number. Empty where the table is gone.
    pub columns: BTreeMap<i16, (String, u32, i32)>,
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
}
