//! Making, finding and dropping tables and their database.

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Row;
use millrace_model::PipeId;
use serde::Deserialize;

use crate::cluster::distributed_engine;
use crate::inspection::{ExistingColumn, ExistingTable, differences, missing_columns};
use crate::quoting::{quote_identifier, quote_string};
use crate::table::{
    create_database_statement, create_distributed_statement, create_table_statement, ownership_comment,
};
use crate::{Destination, EnsuredTable, Error, Failure, TableRef, TableUuid, TargetTable};

impl Destination {
    /// Sees to it that the table stands, and its database. An identical table is taken if it is empty, or if `owner` made
    /// it in an earlier try, whatever is in it. Repeating changes nothing.
    ///
    /// Where the destination is sharded, the tables that keep the rows stand behind it; identity and rows are theirs.
    pub async fn ensure_table(&self, target: &TargetTable, owner: &PipeId) -> Result<EnsuredTable, Error> {
        if let Some(problem) = target.problems(self.cluster.as_ref()).into_iter().next() {
            return Err(Error::Undeclarable { table: target.table.clone(), problem: Box::new(problem) });
        }
        let local = self.local(&target.table);
        let standing = self.existing(&local).await?;
        let created = standing.is_none();
        let existing = match standing {
            Some(existing) => existing,
            None => {
                self.ensure_database(owner).await?;
                self.create(target, owner).await?;
                // Read back, because somebody else may have been first.
                let vanished = || Error::Create { table: target.table.clone(), source: vanished() };
                self.existing(&local).await?.ok_or_else(vanished)?
            }
        };
        fits(target, &existing, Some(owner))?;
        self.ensure_distributed(target, owner).await?;
        Ok(EnsuredTable { uuid: TableUuid::new(existing.uuid), created })
    }

    /// Identity of the table that keeps the rows under this name now; `None` where there is none.
    pub async fn table_uuid(&self, table: &TableRef) -> Result<Option<TableUuid>, Error> {
        let existing = self.existing(&self.local(table)).await?;
        Ok(existing.map(|existing| TableUuid::new(existing.uuid)))
    }

    /// Drops a table that `owner` made, of any size; `false` where there is none.
    ///
    /// # Errors
    /// [`Error::NotOurs`] where the table was made by somebody else.
    pub async fn drop_table(&self, table: &TableRef, owner: &PipeId) -> Result<bool, Error> {
        let failed = |source| Error::Drop { table: table.clone(), source };
        let local = self.local(table);
        // What stands on some hosts only is dropped there.
        let mut standing = self.find([table, &local]).await.map_err(failed)?;
        let ours = |found: &Found| found.table.comment == ownership_comment(owner);
        let kept = standing.remove(&local);
        if kept.as_ref().is_some_and(|found| !ours(found)) {
            return Err(Error::NotOurs { table: table.clone() });
        }
        let before = standing.remove(table).filter(ours).map(|_| table);
        let dropped = before.into_iter().chain(kept.map(|_| &local)).collect::<Vec<_>>();
        for table in &dropped {
            self.drop_everywhere(table).await.map_err(failed)?;
        }
        Ok(!dropped.is_empty())
    }

    pub(crate) async fn drop_everywhere(&self, table: &TableRef) -> Result<(), Failure> {
        let sql = format!("DROP TABLE IF EXISTS {table}{} SYNC", self.topology().await?.on_cluster());
        let unlimited = [("max_table_size_to_drop", "0"), ("max_partition_size_to_drop", "0")];
        self.change(&sql, &unlimited, self.connection.options.table_timeout).await
    }

    /// Drops the destination's database where `owner` made it and nothing is in it any more; `false` where it stays.
    pub async fn drop_database_if_empty(&self, owner: &PipeId) -> Result<bool, Error> {
        let failed = |source| Error::DropDatabase { database: self.database.clone(), source };
        let timeout = self.connection.options.statement_timeout;
        let name = quote_string(&self.database);
        let sql = format!(
            "SELECT ifNull(count() > 0 AND countIf(comment != {comment}) = 0 AND \
             (SELECT count() FROM {tables} WHERE database = {name}) = 0, 0) FROM {databases} WHERE name = {name}",
            comment = quote_string(&ownership_comment(owner)),
            tables = self.on_all_hosts("system.tables"),
            databases = self.on_all_hosts("system.databases"),
        );
        let droppable = self.connection.rows::<u8>(&sql, timeout).await.map_err(failed)?;
        if droppable != [1] {
            return Ok(false);
        }
        // A database carries no statement about itself.
        let topology = crate::Topology { cluster: self.cluster.clone(), database_carries: false };
        let sql =
            format!("DROP DATABASE IF EXISTS {}{}", quote_identifier(&self.database), topology.on_cluster());
        self.change(&sql, &[], timeout).await.map_err(failed)?;
        Ok(true)
    }

    pub(crate) async fn database_engine(&self) -> Result<Option<String>, Failure> {
        let name = quote_string(&self.database);
        let sql = format!("SELECT engine FROM system.databases WHERE name = {name}");
        Ok(self.connection.rows::<String>(&sql, self.connection.options.statement_timeout).await?.pop())
    }

    async fn ensure_database(&self, owner: &PipeId) -> Result<(), Error> {
        let failed = |source| Error::CreateDatabase { database: self.database.clone(), source };
        let timeout = self.connection.options.statement_timeout;
        // Asked first, because CREATE DATABASE IF NOT EXISTS needs the right also where it does nothing.
        let databases = self.on_all_hosts("system.databases");
        let sql = format!("SELECT count() FROM {databases} WHERE name = {}", quote_string(&self.database));
        let standing: u64 =
            self.connection.rows::<u64>(&sql, timeout).await.map_err(failed)?.into_iter().sum();
        if standing >= self.host_count().await.map_err(failed)? {
            return Ok(());
        }
        let topology = self.topology().await.map_err(failed)?;
        let sql = create_database_statement(&self.database, owner, &topology);
        self.change(&sql, &[], timeout).await.map_err(failed)
    }

    async fn create(&self, target: &TargetTable, owner: &PipeId) -> Result<(), Error> {
        let failed = |source| Error::Create { table: target.table.clone(), source };
        let setting = if target.holds_time64() { self.server().await?.time64_setting } else { None };
        let settings = setting.iter().map(|name| (name.as_str(), "1")).collect::<Vec<_>>();
        let topology = self.topology().await.map_err(failed)?;
        let sql = create_table_statement(target, owner, &topology);
        self.change(&sql, &settings, self.connection.options.statement_timeout).await.map_err(failed)
    }

    /// Sees to it that a sharded table leads to the ones that keep its rows.
    async fn ensure_distributed(&self, target: &TargetTable, owner: &PipeId) -> Result<(), Error> {
        let Some(cluster) = self.cluster.as_ref().filter(|cluster| cluster.sharded) else { return Ok(()) };
        let failed = |source| Error::Create { table: target.table.clone(), source };
        if let Some(existing) = self.existing(&target.table).await? {
            return leads_to(target, &existing, &distributed_engine(cluster, &self.local(&target.table)));
        }
        // Without one the declaration was refused.
        let Some(expression) = crate::cluster::sharding_expression(target) else { return Ok(()) };
        self.lead(&target.table, &expression, owner).await.map_err(failed)
    }

    /// Makes the table that spreads rows over the ones of its name on the shards and reads them as one, with the columns
    /// that those have now; in place of one that stands.
    pub(crate) async fn lead(
        &self,
        table: &TableRef,
        expression: &str,
        owner: &PipeId,
    ) -> Result<(), Failure> {
        let topology = self.topology().await?;
        let Some(sql) = create_distributed_statement(table, expression, owner, &topology) else {
            return Ok(());
        };
        self.change(&sql, &[], self.connection.options.statement_timeout).await
    }

    /// The table as it stands, the same on all hosts.
    pub(crate) async fn existing(&self, table: &TableRef) -> Result<Option<ExistingTable>, Error> {
        let found = self.find([table]).await;
        let mut found = found.map_err(|source| Error::Describe { table: table.clone(), source })?;
        found.remove(table).map(|found| found.agreed(table)).transpose()
    }

    /// Those of the tables that stand on any host, in a few requests whatever their number.
    pub(crate) async fn find<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a TableRef>,
    ) -> Result<BTreeMap<TableRef, Found>, Failure> {
        #[derive(Row, Deserialize)]
        struct Table {
            host: String,
            database: String,
            name: String,
            uuid: String,
            engine: String,
            engine_full: String,
            sorting_key: String,
            comment: String,
            rows: u64,
        }
        #[derive(Row, Deserialize)]
        struct Column {
            database: String,
            table: String,
            name: String,
            column_type: String,
            default_kind: String,
            partitions: u8,
        }
        let (mut databases, mut names) = (BTreeSet::new(), BTreeSet::new());
        for table in tables {
            databases.insert(quote_string(&table.database));
            names.insert(format!("({}, {})", quote_string(&table.database), quote_string(&table.name)));
        }
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        // The first list spares the server from opening every database it has.
        let databases = databases.into_iter().collect::<Vec<_>>().join(", ");
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let timeout = self.connection.options.statement_timeout;
        let hosts = self.host_count().await?;
        let sql = format!(
            "SELECT hostName() AS host, database, name, toString(uuid) AS uuid, engine, engine_full, sorting_key, \
             comment, ifNull(total_rows, 0) AS rows FROM {} \
             WHERE database IN ({databases}) AND (database, name) IN ({names})",
            self.on_all_hosts("system.tables")
        );
        let mut found = BTreeMap::<TableRef, Found>::new();
        for table in self.connection.rows::<Table>(&sql, timeout).await? {
            let described = ExistingTable {
                uuid: table.uuid,
                engine: table.engine,
                engine_full: table.engine_full,
                sorting_key: table.sorting_key,
                comment: table.comment,
                rows: table.rows,
                columns: Vec::new(),
            };
            let name = TableRef::new(table.database, table.name);
            match found.get_mut(&name) {
                Some(found) => found.meet(&described, table.host),
                None => drop(found.insert(name, Found::first(described, table.host, hosts))),
            }
        }
        // Of all hosts the same, once they have done what they were told.
        let sql = format!(
            "SELECT DISTINCT database, table, name, type AS column_type, toString(default_kind) AS default_kind, \
             is_in_partition_key AS partitions FROM {} \
             WHERE database IN ({databases}) AND (database, table) IN ({names}) ORDER BY database, table, position",
            self.on_all_hosts("system.columns")
        );
        for column in self.connection.rows::<Column>(&sql, timeout).await? {
            if let Some(found) = found.get_mut(&TableRef::new(column.database, column.table)) {
                found.table.columns.push(ExistingColumn {
                    name: column.name,
                    column_type: column.column_type,
                    default_kind: column.default_kind,
                    partitions: column.partitions != 0,
                });
            }
        }
        Ok(found)
    }
}

/// A table as it was found on the hosts.
#[derive(Debug)]
pub(crate) struct Found {
    table: ExistingTable,
    on: Vec<String>,
    hosts: u64,
    /// Another than the first host has.
    another_on: Option<String>,
}

impl Found {
    fn first(table: ExistingTable, host: String, hosts: u64) -> Self {
        Self { table, on: vec![host], hosts, another_on: None }
    }

    fn meet(&mut self, table: &ExistingTable, host: String) {
        // What keeps no rows has no identity to lose: it is made anew where the tables behind it change.
        let same = match table.engine.as_str() {
            "Distributed" => table.engine_full == self.table.engine_full,
            _ => table.uuid == self.table.uuid,
        };
        if !same {
            self.another_on.get_or_insert(host.clone());
        }
        self.table.rows += table.rows;
        self.on.push(host);
    }

    /// The table, where all hosts have the same one.
    ///
    /// # Errors
    /// [`Error::Uneven`]: a statement for all hosts has not reached all of them yet, or one was added. Until then nothing may be
    /// decided from it: what one host does late would undo, or double, what is done now.
    pub(crate) fn agreed(self, table: &TableRef) -> Result<ExistingTable, Error> {
        let uneven = |reason: String| Err(Error::Uneven { table: table.clone(), reason });
        if let Some(host) = self.another_on {
            let first = self.on.first().map_or("", String::as_str);
            return uneven(format!("{host} has another table of that name than {first}"));
        }
        if (self.on.len() as u64) < self.hosts {
            return uneven(format!("of {} hosts only these have it: {}", self.hosts, self.on.join(", ")));
        }
        Ok(self.table)
    }
}

/// Whether an existing table can be taken.
pub(crate) fn fits(
    target: &TargetTable,
    existing: &ExistingTable,
    owner: Option<&PipeId>,
) -> Result<(), Error> {
    let differences = differences(target, existing);
    if !differences.is_empty() {
        return Err(Error::Differs { table: target.table.clone(), differences });
    }
    let ours = owner.is_some_and(|owner| existing.comment == ownership_comment(owner));
    if existing.rows > 0 && !ours {
        return Err(Error::NotEmpty { table: target.table.clone(), rows: existing.rows });
    }
    Ok(())
}

/// Whether an existing table is the one before the tables of its name that keep the rows.
pub(crate) fn leads_to(target: &TargetTable, existing: &ExistingTable, engine: &str) -> Result<(), Error> {
    let mut differences = missing_columns(target, existing);
    if !existing.engine_full.starts_with(engine) {
        differences.insert(0, format!("its engine is {}, not {engine}…)", existing.engine_full));
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(Error::Differs { table: target.table.clone(), differences })
    }
}

/// An answer without the row that must be in it.
pub(crate) fn vanished() -> Failure {
    Failure::Exchange("the answer holds no row".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(uuid: &str) -> ExistingTable {
        ExistingTable {
            uuid: uuid.to_owned(),
            engine: "ReplicatedReplacingMergeTree".to_owned(),
            engine_full: String::new(),
            sorting_key: "id".to_owned(),
            comment: String::new(),
            rows: 3,
            columns: Vec::new(),
        }
    }

    #[test]
    fn nothing_is_decided_while_hosts_disagree() {
        let table = TableRef::new("shop", "orders");
        let mut found = Found::first(standing("u"), "a".to_owned(), 2);
        found.meet(&standing("u"), "b".to_owned());
        assert_eq!(found.agreed(&table).unwrap().rows, 6);
        let lagging = Found::first(standing("u"), "a".to_owned(), 2);
        let mut swapped = Found::first(standing("u"), "a".to_owned(), 2);
        swapped.meet(&standing("v"), "b".to_owned());
        let said = [lagging, swapped].map(|found| {
            let problem = crate::classify(&found.agreed(&table).unwrap_err());
            assert_eq!(problem.recovery, millrace_model::Recovery::Retry);
            problem.message
        });
        insta::assert_snapshot!(said.join("\n"));
    }
}
