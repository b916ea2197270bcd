//! Reading a whole table as its readers see it, row by row.

use bytes::{Buf, BytesMut};
use clickhouse::query::BytesCursor;
use millrace_mapping::ChType;
use millrace_mapping::row_binary::take_value;
use millrace_model::spec::MetadataColumns;
use millrace_model::work::KeyRange;

use crate::cluster::consistency;
use crate::quoting::quote_identifier;
use crate::{Destination, Error, Failure, TableRef};

/// The rows of one table, one after another.
pub struct Scan {
    table: TableRef,
    cursor: BytesCursor,
    columns: Vec<ChType>,
    /// What has come; rows before `at` were given away.
    buffer: BytesMut,
    at: usize,
    ends: Vec<usize>,
}

/// One row, lent until the next is asked for.
#[derive(Debug)]
pub struct ScannedRow<'a> {
    /// The columns' values in `RowBinary`, one after another.
    pub values: &'a [u8],
    /// Where each ends in `values`.
    pub ends: &'a [usize],
}

impl Destination {
    /// Begins to read these columns of all rows that a reader sees, or of those in which a column of the sorting key lies in a range: the newest version of each, without
    /// deleted ones. Sees every insert that was answered before.
    ///
    /// # Errors
    /// ClickHouse refuses, or does not answer.
    pub async fn scan(
        &self,
        table: &TableRef,
        metadata: &MetadataColumns,
        columns: &[(&str, &ChType)],
        range: Option<(&str, KeyRange)>,
    ) -> Result<Scan, Error> {
        self.synchronise(table).await?;
        let selected: Vec<String> = columns.iter().map(|(name, _)| quote_identifier(name)).collect();
        let mut conditions = vec![format!("{} = 0", quote_identifier(&metadata.is_deleted))];
        if let Some((column, range)) = range {
            let column = quote_identifier(column);
            conditions.extend(range.from.map(|from| format!("{column} >= {from}")));
            conditions.extend(range.until.map(|until| format!("{column} < {until}")));
        }
        let sql = format!(
            "SELECT {} FROM {table} FINAL WHERE {}{}",
            selected.join(", "),
            conditions.join(" AND "),
            consistency(self.cluster.as_ref())
        );
        let cursor = self.connection.stream(&sql, "RowBinary");
        Ok(Scan {
            table: table.clone(),
            cursor: cursor.map_err(|source| Error::LookUp { table: table.clone(), source })?,
            columns: columns.iter().map(|(_, column_type)| (*column_type).clone()).collect(),
            buffer: BytesMut::new(),
            at: 0,
            ends: Vec::new(),
        })
    }
}

impl Scan {
    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// The answer breaks off. A caller that waits has its own limit of time.
    pub async fn next(&mut self) -> Result<Option<ScannedRow<'_>>, Error> {
        let failed = |source| Error::LookUp { table: self.table.clone(), source };
        loop {
            if let Some(length) = whole_row(&self.columns, &self.buffer[self.at..], &mut self.ends) {
                let from = self.at;
                self.at += length;
                return Ok(Some(ScannedRow { values: &self.buffer[from..self.at], ends: &self.ends }));
            }
            self.buffer.advance(self.at);
            self.at = 0;
            match self.cursor.next().await.map_err(|error| failed(Failure::from(error)))? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(failed(Failure::Exchange("the answer is cut short".into()))),
            }
        }
    }
}

/// The length of the row at the front, if it is there as a whole.
fn whole_row(columns: &[ChType], bytes: &[u8], ends: &mut Vec<usize>) -> Option<usize> {
    ends.clear();
    if bytes.is_empty() {
        return None;
    }
    let mut rest = bytes;
    for column in columns {
        take_value(column, &mut rest)?;
        ends.push(bytes.len() - rest.len());
    }
    Some(bytes.len() - rest.len())
}
