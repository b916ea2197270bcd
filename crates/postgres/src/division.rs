//! Dividing a table by ranges of an integer column, so that several readers take about as much each.

use millrace_model::TableDefinition;

use crate::error::Error;
use crate::quoting::{quote_identifier, quote_table};
use crate::session::{Session, get};

/// How the values of an integer column are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread {
    /// Rows of the table, as the planner believes (`reltuples`, kept by VACUUM and ANALYZE).
    pub estimated_rows: u64,
    /// Ascending values with about as many rows between each and the next; the least and the greatest where the planner has no statistics, none where the table is empty.
    pub quantiles: Vec<i64>,
}

impl Session {
    /// How a column of `smallint`, `integer` or `bigint` is spread: `histogram_bounds` of `pg_stats`, or else its extremes, which an index tells.
    ///
    /// # Errors
    /// A statement fails.
    pub async fn spread(&self, table: &TableDefinition, column: &str) -> Result<Spread, Error> {
        let what = "to tell how a key is spread";
        let oid = table.oid;
        let sql = "SELECT greatest(class.reltuples, 0)::bigint, \
                     (SELECT histogram_bounds::text::bigint[] FROM pg_stats \
                       WHERE schemaname = $2 AND tablename = $3 AND attname = $4 ORDER BY inherited DESC LIMIT 1) \
                   FROM pg_class class WHERE class.oid = $1";
        let rows = self.rows(what, sql, &[&oid, &table.name.schema, &table.name.name, &column]).await?;
        let Some(row) = rows.first() else {
            return Ok(Spread { estimated_rows: 0, quantiles: Vec::new() });
        };
        let estimated_rows = u64::try_from(get::<i64>(row, 0, what)?).unwrap_or(0);
        if let Some(quantiles) = get::<Option<Vec<i64>>>(row, 1, what)? {
            return Ok(Spread { estimated_rows, quantiles });
        }
        let (name, column) = (quote_table(&table.name), quote_identifier(column));
        let sql = format!("SELECT min({column})::bigint, max({column})::bigint FROM {name}");
        let rows = self.rows(what, &sql, &[]).await?;
        let Some(row) = rows.first() else { return Ok(Spread { estimated_rows, quantiles: Vec::new() }) };
        let extremes = [get::<Option<i64>>(row, 0, what)?, get::<Option<i64>>(row, 1, what)?];
        Ok(Spread { estimated_rows, quantiles: extremes.into_iter().flatten().collect() })
    }
}

impl Spread {
    /// Where to cut into `parts` ranges of about as many rows: ascending, none twice, at most `parts - 1`.
    pub fn cut(&self, parts: usize) -> Vec<i64> {
        let Some(last) = self.quantiles.len().checked_sub(1).filter(|last| *last > 0) else {
            return Vec::new();
        };
        let mut bounds: Vec<i64> = (1..parts).map(|part| self.at(part, parts, last)).collect();
        bounds.dedup();
        // The least value begins the first range anyway.
        bounds.retain(|bound| *bound > self.quantiles[0]);
        bounds
    }

    /// The value below which `part` of `parts` of the rows are, between the quantiles by proportion.
    fn at(&self, part: usize, parts: usize, last: usize) -> i64 {
        let (whole, rest) = (part * last / parts, part * last % parts);
        let low = self.quantiles[whole];
        let high = self.quantiles[(whole + 1).min(last)];
        let step = (i128::from(high) - i128::from(low)) * rest as i128 / parts as i128;
        // It lies between two values of i64.
        i64::try_from(i128::from(low) + step).unwrap_or(high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(quantiles: &[i64]) -> Spread {
        Spread { estimated_rows: 0, quantiles: quantiles.to_vec() }
    }

    #[test]
    fn a_histogram_is_cut_where_as_many_rows_lie_between() {
        let skewed = spread(&[0, 10, 20, 1_000, 1_000_000]);
        assert_eq!(skewed.cut(4), [10, 20, 1_000]);
        assert_eq!(skewed.cut(2), [20]);
        assert_eq!(skewed.cut(8), [5, 10, 15, 20, 510, 1_000, 500_500]);
    }

    #[test]
    fn extremes_are_cut_evenly_even_the_widest() {
        assert_eq!(spread(&[0, 100]).cut(4), [25, 50, 75]);
        assert_eq!(spread(&[i64::MIN, i64::MAX]).cut(2), [-1]);
    }

    #[test]
    fn values_too_few_to_cut_are_not_cut() {
        assert!(spread(&[]).cut(4).is_empty());
        assert!(spread(&[7]).cut(4).is_empty());
        assert!(spread(&[7, 7]).cut(4).is_empty());
        assert_eq!(spread(&[7, 9]).cut(8), [8]);
        assert!(spread(&[1, 9]).cut(1).is_empty());
    }
}
