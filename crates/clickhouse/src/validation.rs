//! Everything that stands in the way of a pipe at its destination, found without changing anything.

use millrace_model::spec::{Cluster, TableEngine};
use millrace_model::{PipeId, Problem};

use crate::cluster::{CLUSTER_RIGHTS, REPLICA_RIGHT, distributed_engine};
use crate::inspection::{NEEDED_RIGHTS, database_problem, rights_problem};
use crate::quoting::{quote_identifier, quote_string};
use crate::structure::{Found, fits, leads_to};
use crate::{Destination, Error, Failure, TableRef, TargetTable, classify};

/// ClickHouse's code for a statement that it cannot parse.
const SYNTAX_ERROR: u32 = 62;

impl Destination {
    /// Everything that stands in the way of making and filling the tables, found without changing anything. Tables that
    /// `owner` made in an earlier try are no hindrance.
    pub async fn inspect(&self, targets: &[TargetTable], owner: Option<&PipeId>) -> Vec<Problem> {
        let mut problems =
            targets.iter().flat_map(|target| target.problems(self.cluster.as_ref())).collect::<Vec<_>>();
        match self.server().await {
            Ok(facts) => problems.extend(facts.problems()),
            // Nobody to ask, so nothing further to learn.
            Err(error) => {
                problems.insert(0, classify(&error));
                return problems;
            }
        }
        if let Some(cluster) = &self.cluster {
            problems.extend(self.cluster_misfits(cluster).await);
            if problems.iter().any(|problem| problem.code == "DESTINATION_CLUSTER_UNKNOWN") {
                return problems;
            }
        }
        match self.database_engine().await.map_err(|source| self.no_facts(source)) {
            Ok(None) => match self.missing_rights(&["CREATE DATABASE"], &self.everything()).await {
                Ok(missing) => problems.extend(rights_problem(&self.user, &missing, &self.everything())),
                Err(error) => problems.push(classify(&error)),
            },
            Ok(Some(engine)) => {
                problems.extend(database_problem(&self.database, &engine));
                if engine == "Replicated" && self.cluster.is_none() {
                    problems.extend(self.unnamed_cluster().await);
                }
            }
            Err(error) => problems.push(classify(&error)),
        }
        match self.missing_rights(&NEEDED_RIGHTS, &self.everything()).await {
            Ok(missing) => problems.extend(rights_problem(&self.user, &missing, &self.everything())),
            Err(error) => problems.push(classify(&error)),
        }
        // Asked for before a stream into such a table begins.
        if let Some(target) = targets.iter().find(|target| target.engine == TableEngine::MergeTree)
            && let Err(source) = self.inserts_underway(&target.table).await
        {
            problems.push(classify(&self.no_facts(source)));
        }
        let names: Vec<TableRef> =
            targets.iter().flat_map(|target| [target.table.clone(), self.local(&target.table)]).collect();
        match self.find(&names).await {
            Ok(mut standing) => problems.extend(targets.iter().filter_map(|target| {
                let error = self.taken(target, &mut standing, owner).err()?;
                Some(classify(&error).of_table(&target.source))
            })),
            Err(source) => problems.push(classify(&self.no_facts(source))),
        }
        for target in targets {
            problems.extend(self.partition_problem(target).await);
            problems.extend(self.sharding_problem(target).await);
        }
        problems
    }

    /// Whether what stands under a target's name can be taken.
    fn taken(
        &self,
        target: &TargetTable,
        standing: &mut std::collections::BTreeMap<TableRef, Found>,
        owner: Option<&PipeId>,
    ) -> Result<(), Error> {
        let local = self.local(&target.table);
        if let Some(found) = standing.remove(&local) {
            fits(target, &found.agreed(&local)?, owner)?;
        }
        match (&self.cluster, standing.remove(&target.table)) {
            (Some(cluster), Some(found)) if cluster.sharded => {
                leads_to(target, &found.agreed(&target.table)?, &distributed_engine(cluster, &local))
            }
            _ => Ok(()),
        }
    }

    /// What stands in the way of the pipe at its cluster.
    async fn cluster_misfits(&self, cluster: &Cluster) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut rights = CLUSTER_RIGHTS.to_vec();
        if cluster.replicated {
            rights.push(REPLICA_RIGHT);
        }
        match self.missing_rights(&rights, "*.*").await {
            Ok(missing) => problems.extend(rights_problem(&self.user, &missing, "*.*")),
            Err(error) => problems.push(classify(&error)),
        }
        match self.cluster_problems(cluster).await {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(classify(&error)),
        }
        problems
    }

    /// A database that is `Replicated` has hosts whose tables would not keep each other's rows, unless its cluster is named.
    async fn unnamed_cluster(&self) -> Option<Problem> {
        let name = quote_string(&self.database);
        let sql = format!("SELECT count() FROM system.clusters WHERE cluster = {name}");
        match self.facts::<u64>(&sql).await {
            Ok(hosts) if hosts.iter().sum::<u64>() > 1 => Some(Problem::operator(
                "DESTINATION_CLUSTER_LAYOUT",
                format!(
                    "database {} is Replicated over several hosts, and the pipe names no cluster",
                    quote_identifier(&self.database)
                ),
                format!("set destination.clickhouse.cluster: {{name: {}}}", self.database),
            )),
            Ok(_) => None,
            Err(error) => Some(classify(&error)),
        }
    }

    /// Has the server read the partition expression, over columns of the sorting key alone where others would leave older versions of a row behind.
    async fn partition_problem(&self, target: &TargetTable) -> Option<Problem> {
        let expression = target.partition_by.as_ref()?;
        let columns = target.defaults_of(|column| {
            target.engine != TableEngine::ReplacingMergeTree || target.sorting_key.contains(&column.name)
        });
        let sql = format!("SELECT toTypeName(tuple({expression})) FROM (SELECT {columns})");
        let timeout = self.connection.options.statement_timeout;
        let source = self.connection.rows::<String>(&sql, timeout).await.err()?;
        if !matches!(source, Failure::Refused { .. }) {
            return Some(classify(&self.no_facts(source)));
        }
        let message = format!("partitionByExpr '{expression}' cannot be used: {source}");
        let remedy = match target.engine {
            TableEngine::ReplacingMergeTree => {
                "correct it; it may only use columns of the sorting key, for which sortingKeys can be extended"
            }
            TableEngine::MergeTree | TableEngine::Null => "correct it",
        };
        Some(Problem::operator("PARTITION_EXPRESSION_INVALID", message, remedy).of_table(&target.source))
    }

    fn everything(&self) -> String {
        format!("{}.*", quote_identifier(&self.database))
    }

    /// Which of the rights the user lacks. Servers before `CHECK GRANT` are taken at their word when they
    /// refuse something.
    async fn missing_rights<'a>(&self, rights: &[&'a str], on: &str) -> Result<Vec<&'a str>, Error> {
        let mut missing = Vec::new();
        for right in rights {
            let sql = format!("CHECK GRANT {right} ON {on}");
            match self.facts::<u8>(&sql).await {
                Ok(granted) if granted.contains(&0) => missing.push(*right),
                Ok(_) => {}
                Err(Error::Facts { source, .. }) if source.code() == Some(SYNTAX_ERROR) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }
}
