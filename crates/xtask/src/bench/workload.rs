//! Bulk changes: how many tables, how large the transactions, what they do. Rounds of the same workload follow one another on the same tables.
//!
//! Every row that a round inserts or updates has the round's number in its column `n`, and no row is changed twice in a round, so that counting such rows shows what has arrived.
//! A row in a table of its own, written by the last transaction of a round, is the first thing to look for: it is cheap to find.

use std::time::{Duration, Instant};

use super::arrival;
use super::shape::{Shape, typical_values};
use super::testbed::Testbed;

/// Changes of a middle-sized transaction.
const MIDDLE: u32 = 1_000;
/// Tables that a middle-sized transaction touches, where there are so many.
const TABLES_OF_MIDDLE: u32 = 10;

/// What the changes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// New rows.
    Inserts,
    /// Of one column of rows that were there before.
    Updates,
    /// Half inserts, four tenths updates, one tenth deletes of what the round before inserted.
    Mixed,
}

/// How they are divided into transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transactions {
    /// One.
    Large,
    /// Of 1,000 changes each, spread over up to ten tables.
    Middle,
}

/// A workload over tables `t0`, `t1` and so on of a schema.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    schema: &'static str,
    tables: u32,
    transactions: u32,
    /// Tables that each transaction touches.
    spread: u32,
    /// What a transaction does to each of its tables.
    portion: Portion,
    /// How often a round comes to each table, at most.
    visits: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Portion {
    inserts: u32,
    updates: u32,
    deletes: u32,
}

impl Portion {
    fn new(kind: Kind, changes: u32) -> Self {
        match kind {
            Kind::Inserts => Self { inserts: changes, updates: 0, deletes: 0 },
            Kind::Updates => Self { inserts: 0, updates: changes, deletes: 0 },
            Kind::Mixed => {
                let (updates, deletes) = (changes * 2 / 5, changes / 10);
                Self { inserts: changes - updates - deletes, updates, deletes }
            }
        }
    }
}

impl Workload {
    /// A workload of about so many changes a round.
    pub(super) fn new(
        schema: &'static str,
        kind: Kind,
        transactions: Transactions,
        tables: u32,
        changes: u32,
    ) -> Self {
        let (transactions, spread, size) = match transactions {
            Transactions::Large => (1, tables, changes),
            Transactions::Middle => (changes.div_ceil(MIDDLE), tables.min(TABLES_OF_MIDDLE), MIDDLE),
        };
        Self {
            schema,
            tables,
            transactions,
            spread,
            portion: Portion::new(kind, (size / spread).max(1)),
            visits: (transactions * spread).div_ceil(tables),
        }
    }

    /// Makes the tables, with the rows that the first round updates and deletes.
    pub(super) async fn make_tables(&self, testbed: &Testbed) -> anyhow::Result<()> {
        let last = self.first_inserted(1, 0) - 1;
        for table in 0..self.tables {
            let name = format!("{}.t{table}", self.schema);
            let sql =
                format!("CREATE TABLE {name} ({}); {}", Shape::Typical.columns(), insert(&name, 1, last, 0));
            testbed.source.batch_execute(&sql).await?;
        }
        let sql = format!("CREATE TABLE {}.marker (id bigint PRIMARY KEY); ANALYZE", self.schema);
        Ok(testbed.source.batch_execute(&sql).await?)
    }

    /// The tables as a pipe's file lists them.
    pub(super) fn mappings(&self) -> Vec<String> {
        let tables = (0..self.tables).map(|table| format!("t{table}")).chain(["marker".to_owned()]);
        tables.map(|table| format!("{{source: {}.{table}, target: {table}}}", self.schema)).collect()
    }

    /// Changes of a round, the one of the marker included.
    pub(super) fn changes(&self) -> u64 {
        let Portion { inserts, updates, deletes } = self.portion;
        u64::from(self.transactions * self.spread) * u64::from(inserts + updates + deletes) + 1
    }

    /// The statements of a round; rounds count from 1.
    pub(super) fn round(&self, round: u32) -> String {
        let mut script = String::new();
        for transaction in 0..self.transactions {
            script.push_str("BEGIN;\n");
            for place in 0..self.spread {
                let turn = transaction * self.spread + place;
                self.portion(&mut script, round, turn % self.tables, turn / self.tables);
            }
            script.push_str("COMMIT;\n");
        }
        script + &format!("INSERT INTO {}.marker VALUES ({round});", self.schema)
    }

    fn portion(&self, script: &mut String, round: u32, table: u32, visit: u32) {
        let name = format!("{}.t{table}", self.schema);
        let Portion { inserts, updates, deletes } = self.portion;
        let mut add = |statement: String| {
            script.push_str(&statement);
            script.push_str(";\n");
        };
        if inserts > 0 {
            let first = self.first_inserted(round, visit);
            add(insert(&name, first, first + u64::from(inserts) - 1, round));
        }
        if updates > 0 {
            let first = u64::from(visit) * u64::from(updates) + 1;
            let last = first + u64::from(updates) - 1;
            add(format!("UPDATE {name} SET n = {round} WHERE id BETWEEN {first} AND {last}"));
        }
        if deletes > 0 {
            let first = self.first_inserted(round - 1, visit);
            let last = first + u64::from(deletes) - 1;
            add(format!("DELETE FROM {name} WHERE id BETWEEN {first} AND {last}"));
        }
    }

    /// The first id that a round inserts into a table when it comes to it: after the rows that are updated, and after those of earlier rounds. What would be inserted in round 0 is there from the
    /// beginning.
    fn first_inserted(&self, round: u32, visit: u32) -> u64 {
        let updated = u64::from(self.visits) * u64::from(self.portion.updates);
        let visits = u64::from(round) * u64::from(self.visits) + u64::from(visit);
        updated + visits * u64::from(self.portion.inserts) + 1
    }

    /// Waits until everything of a round can be seen in the database; gives since when.
    pub(super) async fn until_visible(
        &self,
        testbed: &Testbed,
        database: &str,
        round: u32,
    ) -> anyhow::Result<Instant> {
        let marker = format!("SELECT toUInt64(max(id)) FROM {database}.marker");
        arrival::until(testbed, &marker, round.into()).await?;
        let Portion { inserts, updates, deletes } = self.portion;
        let rows = u64::from(self.transactions * self.spread) * u64::from(inserts + updates);
        let tables = format!("merge('{database}', '^t[0-9]+$')");
        let written = format!("countIf(n = {round} AND _millrace_is_deleted = 0)");
        if deletes == 0 {
            return arrival::until(testbed, &format!("SELECT {written} FROM {tables}"), rows).await;
        }
        // Every round deletes rows of its own, and merges keep what tells of it.
        let gone = u64::from(round) * u64::from(self.transactions * self.spread) * u64::from(deletes);
        let sql = format!(
            "SELECT toUInt64({written} >= {rows} AND uniqExactIf((_table, id), _millrace_is_deleted = 1) >= {gone}) FROM {tables}"
        );
        arrival::until(testbed, &sql, 1).await
    }
}

/// Inserts typical rows with a given number in the column `n`.
fn insert(table: &str, first: u64, last: u64, n: u32) -> String {
    let values = typical_values(&n.to_string());
    format!("INSERT INTO {table} SELECT {values} FROM generate_series({first}::bigint, {last}::bigint) n")
}

/// Runs a round's statements and says how long that took.
pub(super) async fn write(testbed: &Testbed, script: &str) -> anyhow::Result<Duration> {
    let began = std::time::Instant::now();
    testbed.source.batch_execute(script).await?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_as_many_changes_as_it_says() {
        let large = Workload::new("s", Kind::Mixed, Transactions::Large, 10, 100_000);
        assert_eq!(large.changes(), 100_001);
        assert_eq!(large.portion, Portion { inserts: 5_000, updates: 4_000, deletes: 1_000 });
        assert_eq!(large.round(1).matches("BEGIN").count(), 1);
        let middle = Workload::new("s", Kind::Updates, Transactions::Middle, 200, 100_000);
        assert_eq!(middle.changes(), 100_001);
        let script = middle.round(1);
        assert_eq!((script.matches("BEGIN").count(), script.matches("UPDATE").count()), (100, 1_000));
        assert_eq!(script.matches("UPDATE s.t199 ").count(), 5);
    }

    #[test]
    fn what_a_round_deletes_was_inserted_in_the_round_before() {
        let workload = Workload::new("s", Kind::Mixed, Transactions::Middle, 1, 2_000);
        let (first, second) = (workload.round(1), workload.round(2));
        // Two visits of 400 updates come before the 2 times 500 rows of each round.
        assert!(first.contains("generate_series(1801::bigint, 2300::bigint)"), "{first}");
        assert!(first.contains("DELETE FROM s.t0 WHERE id BETWEEN 801 AND 900"), "{first}");
        assert!(second.contains("DELETE FROM s.t0 WHERE id BETWEEN 1801 AND 1900"), "{second}");
    }
}
