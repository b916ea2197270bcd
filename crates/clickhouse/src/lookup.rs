//! Reading back the rows that stand in a table for some keys: for values that a change does not carry.

use std::fmt::Write as _;

use millrace_mapping::row_binary::take_value;
use millrace_mapping::{ChType, EncodedBlock};
use millrace_model::spec::Cluster;

use crate::cluster::consistency;
use crate::quoting::quote_identifier;
use crate::{Destination, Error, Failure, TargetTable};

/// The newest version of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentRow {
    /// What stood in the version column of the key's row.
    pub ordinal: u64,
    /// The row's version.
    pub version: u64,
    /// Whether that version is a tombstone.
    pub is_deleted: bool,
    /// Values of the columns that were asked for, each in `RowBinary`.
    pub values: Vec<Vec<u8>>,
}

/// The keys whose rows are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// One row a key, with the columns below and the metadata columns; its version column numbers the keys.
    pub block: &'a EncodedBlock,
    /// Names of the columns that tell rows apart.
    pub columns: &'a [String],
}

impl Destination {
    /// The newest version of each key's row, tombstones included; keys without a row are absent.
    ///
    /// The keys travel inside of the statement, twice as long as they are: give at most some MiB. The answer is held in memory as a whole; one larger than `limit` bytes is given
    /// up, which is `None`.
    ///
    /// Sees every insert that was answered before: all replicas of a cluster are asked, and otherwise the server for that.
    pub async fn current_rows(
        &self,
        target: &TargetTable,
        keys: Keys<'_>,
        columns: &[(&str, &ChType)],
        limit: usize,
    ) -> Result<Option<Vec<CurrentRow>>, Error> {
        if keys.block.rows == 0 {
            return Ok(Some(Vec::new()));
        }
        let failed = |source| Error::LookUp { table: target.table.clone(), source };
        let values: Vec<String> = columns.iter().map(|(name, _)| quote_identifier(name)).collect();
        let sql = self.newest_statement(target, keys, &values);
        let timeout = self.connection.options.table_timeout;
        let answer = self.connection.bytes_within(&sql, "RowBinary", timeout, limit).await.map_err(failed)?;
        let Some(answer) = answer else { return Ok(None) };
        let mut rest = &answer[..];
        let mut rows = Vec::new();
        while !rest.is_empty() {
            rows.push(
                row(&mut rest, columns)
                    .ok_or_else(|| failed(Failure::Exchange("the answer is cut short".into())))?,
            );
        }
        Ok(Some(rows))
    }

    /// How many bytes of memory the columns of each key's newest row take, by the key's number; of the same keys as [`Destination::current_rows`].
    pub async fn current_sizes(
        &self,
        target: &TargetTable,
        keys: Keys<'_>,
        columns: &[&str],
    ) -> Result<Vec<(u64, u64)>, Error> {
        if keys.block.rows == 0 {
            return Ok(Vec::new());
        }
        let failed = |source| Error::LookUp { table: target.table.clone(), source };
        let columns: Vec<String> = columns.iter().map(|name| quote_identifier(name)).collect();
        let size = format!(
            "toUInt64({})",
            if columns.is_empty() { "0".to_owned() } else { format!("byteSize({})", columns.join(", ")) }
        );
        let sql = self.newest_statement(target, keys, &[size]);
        let timeout = self.connection.options.table_timeout;
        let answer = self.connection.bytes(&sql, "RowBinary", timeout).await.map_err(failed)?;
        let mut rest = &answer[..];
        let mut sizes = Vec::new();
        while !rest.is_empty() {
            let found = row(&mut rest, &[("", &ChType::UInt64)]);
            let size = found.as_ref().and_then(|found| number(&mut found.values.first()?.as_slice()));
            let (Some(found), Some(size)) = (found, size) else {
                return Err(failed(Failure::Exchange("the answer is cut short".into())));
            };
            sizes.push((found.ordinal, size));
        }
        Ok(sizes)
    }
}

impl Destination {
    fn newest_statement(&self, target: &TargetTable, keys: Keys<'_>, values: &[String]) -> String {
        let rows = self.on_all_hosts(&self.local(&target.table).to_string());
        statement(self.cluster.as_ref(), &rows, target, keys, values)
    }
}

fn row(bytes: &mut &[u8], columns: &[(&str, &ChType)]) -> Option<CurrentRow> {
    let ordinal = number(bytes)?;
    let version = number(bytes)?;
    let (flag, rest) = bytes.split_first()?;
    *bytes = rest;
    let values = columns.iter().map(|(_, column_type)| Some(take_value(column_type, bytes)?.to_vec()));
    Some(CurrentRow { ordinal, version, is_deleted: *flag != 0, values: values.collect::<Option<_>>()? })
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

/// The keys are joined, not only looked for, so that each found row says which key it is of. They stand in the statement once. `values` are expressions over the table's columns.
fn statement(
    cluster: Option<&Cluster>,
    rows: &str,
    target: &TargetTable,
    keys: Keys<'_>,
    values: &[String],
) -> String {
    let Keys { block, columns: key } = keys;
    let metadata = &target.metadata;
    let hex = block.pieces.iter().flat_map(|piece| piece.iter()).fold(String::new(), |mut hex, byte| {
        // Writing into a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let quoted: Vec<String> = key.iter().map(|name| quote_identifier(name)).collect();
    let renamed = |side: &str| {
        let columns = quoted.iter().enumerate();
        columns.map(|(at, name)| format!("{name} AS {side}_{at}")).collect::<Vec<_>>().join(", ")
    };
    // Where none can be NULL the plain comparison is kept, which goes by the index.
    let nulls = target.may_hold_null(key);
    let equals = if nulls { "IS NOT DISTINCT FROM" } else { "=" };
    let matched: Vec<String> = (0..key.len()).map(|at| format!("row_{at} {equals} key_{at}")).collect();
    let selected: String =
        values.iter().enumerate().map(|(at, value)| format!(", {value} AS value_{at}")).collect();
    let taken: String = (0..values.len()).map(|at| format!(", value_{at}")).collect();
    let key = quoted.join(", ");
    let version = quote_identifier(&metadata.version);
    let is_deleted = quote_identifier(&metadata.is_deleted);
    format!(
        "WITH given AS (SELECT * FROM format(Native, unhex('{hex}'))) \
         SELECT key_ordinal, row_version, row_deleted{taken} FROM \
         (SELECT {found}, {version} AS row_version, {is_deleted} AS row_deleted{selected} FROM {rows} \
         WHERE ({key}) {within} (SELECT {key} FROM given) ORDER BY {version} DESC LIMIT 1 BY {key}) AS found \
         INNER JOIN (SELECT {keys}, {version} AS key_ordinal FROM given) AS sought ON {matched}{settings}",
        settings = match (consistency(cluster), nulls) {
            (settings, false) => settings.to_owned(),
            ("", true) => " SETTINGS transform_null_in = 1".to_owned(),
            (settings, true) => format!("{settings}, transform_null_in = 1"),
        },
        found = renamed("row"),
        keys = renamed("key"),
        within = if cluster.is_some() { "GLOBAL IN" } else { "IN" },
        matched = matched.join(" AND "),
    )
}
