//! Reading single rows as they are now, for values that the change stream left out.

use std::error::Error as StdError;

use bytes::{BufMut, BytesMut};
use millrace_model::TableName;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use crate::error::Error;
use crate::quoting::{quote_identifier, quote_table};
use crate::session::{Session, get};

/// A key column's value as the change stream sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyValue<'a> {
    /// In text form.
    Text(&'a [u8]),
    /// In binary form.
    Binary(&'a [u8]),
}

/// Sent as it came; the server reads it as a value of the column's type.
impl ToSql for KeyValue<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        let (Self::Text(value) | Self::Binary(value)) = self;
        out.put_slice(value);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        column_type: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        self.to_sql(column_type, out)
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self {
            Self::Text(_) => Format::Text,
            Self::Binary(_) => Format::Binary,
        }
    }
}

impl Session {
    /// The columns of one row as they are now, in their text form, NULL as `None`; `None` where there is no such row.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn row_by_key(
        &self,
        table: &TableName,
        columns: &[&str],
        key: &[(&str, KeyValue<'_>)],
    ) -> Result<Option<Vec<Option<Vec<u8>>>>, Error> {
        let what = "to tell a row's values";
        let values: Vec<String> = columns
            .iter()
            .map(|column| {
                let column = quote_identifier(column);
                // A cast to text is not the output function for every type.
                format!("CASE WHEN num_nulls({column}) = 0 THEN format('%s', {column}) END")
            })
            .collect();
        let matched: Vec<String> =
            (1..).zip(key).map(|(at, (name, _))| format!("{} = ${at}", quote_identifier(name))).collect();
        let sql = format!(
            "SELECT {} FROM {} WHERE {} LIMIT 1",
            values.join(", "),
            quote_table(table),
            matched.join(" AND ")
        );
        let parameters: Vec<&(dyn ToSql + Sync)> =
            key.iter().map(|(_, value)| value as &(dyn ToSql + Sync)).collect();
        let rows = self.rows(what, &sql, &parameters).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let value = |at| Ok(get::<Option<String>>(row, at, what)?.map(String::into_bytes));
        (0..columns.len()).map(value).collect::<Result<_, _>>().map(Some)
    }
}
