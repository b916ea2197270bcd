//! The hosts that share a destination's tables: how a statement reaches all of them, and what they must agree on.
//!
//! Without a cluster everything here comes down to the one host that answers.

use std::time::Duration;

use clickhouse::Row;
use millrace_model::Problem;
use millrace_model::spec::{Cluster, TableEngine};
use serde::Deserialize;

use crate::quoting::{quote_identifier, quote_string};
use crate::{Destination, Error, Failure, TableRef, TargetTable};

/// ClickHouse's code for a column that a table lacks.
const UNKNOWN_IDENTIFIER: u32 = 47;

/// How much sooner than we the server gives up a statement for all hosts, so that it can say which of them is missing.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Rights beyond those on the database that a pipe needs at a cluster.
pub(crate) const CLUSTER_RIGHTS: [&str; 2] = ["CLUSTER", "REMOTE"];

/// The right to wait until replicas have each other's rows.
pub(crate) const REPLICA_RIGHT: &str = "SYSTEM SYNC REPLICA";

/// How a statement that makes or changes tables is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    pub(crate) cluster: Option<Cluster>,
    /// The database's engine is `Replicated`: it carries statements to its hosts itself, and refuses `ON CLUSTER`.
    pub(crate) database_carries: bool,
}

impl Topology {
    /// ` ON CLUSTER …`, or nothing.
    pub(crate) fn on_cluster(&self) -> String {
        match &self.cluster {
            Some(cluster) if !self.database_carries => {
                format!(" ON CLUSTER {}", quote_identifier(&cluster.name))
            }
            _ => String::new(),
        }
    }

    /// Whether the replicas of a shard keep each other's rows.
    pub(crate) fn is_replicated(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.replicated)
    }
}

/// The tables that keep the rows: behind a sharded table one of this name on each host, otherwise the table itself.
pub(crate) fn local_table(cluster: Option<&Cluster>, table: &TableRef) -> TableRef {
    match cluster {
        Some(cluster) if cluster.sharded => TableRef::new(&table.database, format!("{}_local", table.name)),
        _ => table.clone(),
    }
}

/// The beginning of `Distributed(cluster, database, table, expression)` up to the expression, as `system.tables` has it.
pub(crate) fn distributed_engine(cluster: &Cluster, local: &TableRef) -> String {
    let arguments = [&cluster.name, &local.database, &local.name].map(|argument| quote_string(argument));
    format!("Distributed({}, ", arguments.join(", "))
}

/// Which shard keeps a row; `None` where nothing says so. An append-only table without key has no answer of its own:
/// a repeated insert has to be cut the same way, or its rows would be taken twice.
pub(crate) fn sharding_expression(target: &TargetTable) -> Option<String> {
    let by_key = || {
        let key: Vec<String> = target.sorting_key.iter().map(|name| quote_identifier(name)).collect();
        // As one tuple, since the hash of a NULL alone is NULL.
        (!key.is_empty()).then(|| format!("cityHash64(tuple({}))", key.join(", ")))
    };
    target.sharding.clone().or_else(by_key)
}

/// What the cluster's definition says against the layout that the pipe asks for.
pub(crate) fn layout_problems(cluster: &Cluster, hosts: &[Host], known: &[String]) -> Vec<Problem> {
    let Cluster { name, replicated, sharded, .. } = cluster;
    if hosts.is_empty() {
        let message = format!("the server knows no cluster '{name}'; it knows {}", known.join(", "));
        let remedy = "set destination.clickhouse.cluster.name to one of them, or define it in remote_servers";
        return vec![Problem::operator("DESTINATION_CLUSTER_UNKNOWN", message, remedy)];
    }
    let unfit = |message: String, remedy: &str| {
        Problem::operator("DESTINATION_CLUSTER_LAYOUT", format!("cluster '{name}' {message}"), remedy)
    };
    let mut problems = Vec::new();
    let shards = hosts.iter().map(|host| host.shard).max().unwrap_or_default();
    let replicas = hosts.iter().map(|host| host.replica).max().unwrap_or_default();
    if shards > 1 && !sharded {
        problems.push(unfit(
            format!("has {shards} shards, and the pipe keeps whole tables"),
            "set destination.clickhouse.cluster.sharded: true, or name a cluster of one shard",
        ));
    }
    if replicas > 1 && !replicated {
        problems.push(unfit(
            format!("has {replicas} replicas a shard, and the pipe's tables do not keep each other's rows"),
            "set destination.clickhouse.cluster.replicated: true, or name a cluster of one replica a shard",
        ));
    }
    if replicas > 1 && *replicated && *sharded && hosts.iter().any(|host| !host.internal_replication) {
        problems.push(unfit(
            "has a shard without internal_replication, so every insert would go to each replica besides"
                .to_owned(),
            "set internal_replication to true for its shards in remote_servers",
        ));
    }
    problems
}

/// One host of a cluster as `system.clusters` has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub(crate) shard: u32,
    pub(crate) replica: u32,
    pub(crate) internal_replication: bool,
}

impl Destination {
    pub(crate) fn local(&self, table: &TableRef) -> TableRef {
        local_table(self.cluster.as_ref(), table)
    }

    pub(crate) fn is_sharded(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.sharded)
    }

    /// A table of that name on all hosts together, in a FROM clause. Replicas that lag behind each other do not matter where
    /// the newest of all rows is looked for.
    pub(crate) fn on_all_hosts(&self, table: &str) -> String {
        match &self.cluster {
            Some(cluster) => format!("clusterAllReplicas({}, {table})", quote_string(&cluster.name)),
            None => table.to_owned(),
        }
    }

    /// How many hosts answer for the cluster; all must.
    pub(crate) async fn host_count(&self) -> Result<u64, Failure> {
        if self.cluster.is_none() {
            return Ok(1);
        }
        let sql = format!("SELECT count() FROM {}", self.on_all_hosts("system.one"));
        Ok(self
            .connection
            .rows::<u64>(&sql, self.connection.options.statement_timeout)
            .await?
            .into_iter()
            .sum())
    }

    /// How statements that make or change tables are written now.
    pub(crate) async fn topology(&self) -> Result<Topology, Failure> {
        let database_carries =
            self.cluster.is_some() && self.database_engine().await?.as_deref() == Some("Replicated");
        Ok(Topology { cluster: self.cluster.clone(), database_carries })
    }

    /// Runs a statement that makes or changes tables, and waits until all hosts have done it.
    pub(crate) async fn change(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<(), Failure> {
        if self.cluster.is_none() {
            return self.connection.execute(sql, settings, timeout).await;
        }
        let patience = timeout.saturating_sub(ANSWER_MARGIN).as_secs().max(1).to_string();
        // `none` throws where a host fails or does not come to it in time, and answers with no rows otherwise. Those that
        // leave out inactive hosts are no help: one that missed a swap would take inserts for the table before.
        let for_all =
            [("distributed_ddl_output_mode", "none"), ("distributed_ddl_task_timeout", patience.as_str())];
        self.connection.execute(sql, &[settings, &for_all].concat(), timeout).await
    }

    /// Waits until every replica has the rows of every insert that was answered before.
    pub(crate) async fn synchronise(&self, table: &TableRef) -> Result<(), Error> {
        let Some(cluster) = self.cluster.as_ref().filter(|cluster| cluster.replicated) else { return Ok(()) };
        let sql = synchronise_statement(cluster, &self.local(table));
        let waited = self.change(&sql, &[], self.connection.options.table_timeout).await;
        waited.map_err(|source| Error::LookUp { table: table.clone(), source })
    }

    /// What the cluster's definition says against the pipe.
    pub(crate) async fn cluster_problems(&self, cluster: &Cluster) -> Result<Vec<Problem>, Error> {
        #[derive(Row, Deserialize)]
        struct Found {
            shard: u32,
            replica: u32,
            internal_replication: u8,
        }
        let named = |internal: &str| {
            format!(
                "SELECT toUInt32(shard_num) AS shard, toUInt32(replica_num) AS replica, \
                 toUInt8({internal}) AS internal_replication FROM system.clusters WHERE cluster = {}",
                quote_string(&cluster.name)
            )
        };
        // Older servers do not show it.
        let found = match self.facts::<Found>(&named("internal_replication")).await {
            Err(Error::Facts { source, .. }) if source.code() == Some(UNKNOWN_IDENTIFIER) => {
                self.facts::<Found>(&named("1")).await?
            }
            found => found?,
        };
        let hosts: Vec<Host> = found
            .iter()
            .map(|host| Host {
                shard: host.shard,
                replica: host.replica,
                internal_replication: host.internal_replication != 0,
            })
            .collect();
        let known = if hosts.is_empty() {
            self.facts::<String>("SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster").await?
        } else {
            Vec::new()
        };
        Ok(layout_problems(cluster, &hosts, &known))
    }

    /// Has the server read the sharding expression. Versions of one row must meet on one shard, so where only the newest
    /// counts the expression may use columns of the sorting key alone; and a repeated insert has to be cut as before.
    pub(crate) async fn sharding_problem(&self, target: &TargetTable) -> Option<Problem> {
        if !self.is_sharded() {
            return None;
        }
        let invalid = |message: String, remedy: &str| {
            Some(Problem::operator("SHARDING_EXPRESSION_INVALID", message, remedy).of_table(&target.source))
        };
        let Some(expression) = sharding_expression(target) else {
            let message =
                "the table has no sorting key by which its rows could be spread over the shards".to_owned();
            return invalid(message, "name columns under sortingKeys, or give a shardingExpr");
        };
        let columns = target.defaults_of(|column| {
            target.engine != TableEngine::ReplacingMergeTree || target.sorting_key.contains(&column.name)
        });
        let sql = format!(
            "SELECT toTypeName(any(shard)), toUInt64(uniqExact(shard)) FROM \
             (SELECT {expression} AS shard FROM (SELECT {columns} FROM numbers(16)))"
        );
        let found =
            self.connection.rows::<(String, u64)>(&sql, self.connection.options.statement_timeout).await;
        let remedy = match target.engine {
            TableEngine::ReplacingMergeTree => {
                "correct it; it may only use columns of the sorting key, for which sortingKeys can be extended"
            }
            TableEngine::MergeTree | TableEngine::Null => "correct it",
        };
        match found {
            Ok(rows) => match rows.first() {
                Some((kind, _)) if !kind.starts_with("Int") && !kind.starts_with("UInt") => {
                    invalid(format!("shardingExpr '{expression}' gives {kind}, and not an integer"), remedy)
                }
                Some((_, 2..)) => {
                    invalid(format!("shardingExpr '{expression}' gives equal rows different shards"), remedy)
                }
                _ => None,
            },
            Err(source @ Failure::Refused { .. }) => {
                invalid(format!("shardingExpr '{expression}' cannot be used: {source}"), remedy)
            }
            Err(source) => Some(crate::classify(&self.no_facts(source))),
        }
    }
}

/// Settings of an insert for this layout.
pub(crate) fn insert_settings(cluster: Option<&Cluster>) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if let Some(cluster) = cluster {
        if cluster.sharded {
            // The answer then says that the rows are in the tables of the shards, and not in a queue before them.
            settings.push(("distributed_foreground_insert", "1".to_owned()));
        }
        if cluster.insert_quorum > 0 {
            settings.push(("insert_quorum", cluster.insert_quorum.to_string()));
        }
    }
    settings
}

/// The `ON CLUSTER` stands also for a database that is `Replicated`, which does not carry what is no change of a table.
pub(crate) fn synchronise_statement(cluster: &Cluster, local: &TableRef) -> String {
    format!("SYSTEM SYNC REPLICA ON CLUSTER {} {local} LIGHTWEIGHT", quote_identifier(&cluster.name))
}

/// Asks a read for everything that was answered before, where the server and not a cluster sees to that.
pub(crate) fn consistency(cluster: Option<&Cluster>) -> &'static str {
    if cluster.is_none() { " SETTINGS select_sequential_consistency = 1" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(replicated: bool, sharded: bool) -> Cluster {
        Cluster { name: "c".to_owned(), replicated, sharded, insert_quorum: 0 }
    }

    fn hosts(shards: u32, replicas: u32, internal_replication: bool) -> Vec<Host> {
        (1..=shards)
            .flat_map(|shard| {
                (1..=replicas).map(move |replica| Host { shard, replica, internal_replication })
            })
            .collect()
    }

    #[test]
    fn a_layout_that_would_lose_or_double_rows_is_refused() {
        let problems = |cluster: Cluster, hosts: Vec<Host>| {
            let problems = layout_problems(&cluster, &hosts, &["a".to_owned(), "b".to_owned()]);
            problems.into_iter().map(|problem| problem.to_string()).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(problems(cluster(true, false), hosts(1, 3, false)), "");
        assert_eq!(problems(cluster(true, true), hosts(2, 2, true)), "");
        assert_eq!(problems(cluster(false, true), hosts(2, 1, false)), "");
        insta::assert_snapshot!(
            [
                problems(cluster(true, false), hosts(2, 2, true)),
                problems(cluster(false, true), hosts(2, 2, true)),
                problems(cluster(true, true), hosts(2, 2, false)),
                problems(cluster(true, true), Vec::new()),
            ]
            .join("\n")
        );
    }

    #[test]
    fn an_insert_counts_once_the_shards_and_as_many_replicas_have_it() {
        let quorum = Cluster { insert_quorum: 2, ..cluster(true, true) };
        assert_eq!(
            insert_settings(Some(&quorum)),
            [("distributed_foreground_insert", "1".to_owned()), ("insert_quorum", "2".to_owned())]
        );
        assert_eq!(insert_settings(Some(&cluster(true, false))), []);
        assert_eq!(insert_settings(None), []);
    }

    #[test]
    fn replicas_are_waited_for_by_name() {
        let table = TableRef::new("shop", "orders");
        assert_eq!(
            synchronise_statement(&cluster(true, true), &local_table(Some(&cluster(true, true)), &table)),
            "SYSTEM SYNC REPLICA ON CLUSTER `c` `shop`.`orders_local` LIGHTWEIGHT"
        );
    }
}
