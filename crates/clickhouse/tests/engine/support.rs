//! An engine to test against, and tables and blocks to put into it.

use clickhouse::Client;
use millrace_clickhouse::{ConnectionOptions, Destination, TableRef, TargetTable};
use millrace_devstack::{ClickHouse, ClickHouseOptions, Launcher};
use millrace_mapping::{BlockBuilder, Cell, ColumnPlan, EncodedBlock};
use millrace_model::spec::{ClickHouseDestination, Cluster, MetadataColumns};
use millrace_model::{PgType, PipeId, Secret, TableName, Timestamp};

/// A running engine with nothing in it, gone when it is dropped.
pub(crate) struct Engine {
    server: ClickHouse,
    client: Client,
    _data: tempfile::TempDir,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        let data = millrace_devstack::temporary_dir().unwrap();
        let launcher = Launcher::this_test_binary("devstack_guard").unwrap();
        let server = ClickHouse::start(launcher, ClickHouseOptions::new(data.path().join("clickhouse")));
        let server = server.await.unwrap();
        let client = Client::default().with_url(server.url()).with_compression(clickhouse::Compression::None);
        Self { server, client, _data: data }
    }

    /// As `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        self.server.kill().await.unwrap();
    }

    /// On the same port and data.
    pub(crate) async fn restart(&mut self) {
        self.server.restart().await.unwrap();
    }

    pub(crate) fn settings(&self, database: &str) -> ClickHouseDestination {
        ClickHouseDestination {
            url: self.server.url(),
            database: database.to_owned(),
            username: "default".to_owned(),
            password: Secret::default(),
            cluster: None,
        }
    }

    pub(crate) fn destination(&self, database: &str) -> Destination {
        Destination::new(&self.settings(database)).unwrap()
    }

    /// Sharded over the cluster that the engine knows, which is this host alone.
    pub(crate) fn sharded(&self, database: &str) -> Destination {
        let cluster =
            Some(Cluster { name: "default".to_owned(), replicated: false, sharded: true, insert_quorum: 0 });
        Destination::new(&ClickHouseDestination { cluster, ..self.settings(database) }).unwrap()
    }

    pub(crate) fn destination_with(&self, database: &str, options: ConnectionOptions) -> Destination {
        Destination::with_options(&self.settings(database), options).unwrap()
    }

    /// The answer to a query, tab-separated; bytes that are no UTF-8 show as U+FFFD.
    pub(crate) async fn read(&self, sql: &str) -> String {
        let mut cursor = self.client.query_raw(sql).fetch_bytes("TabSeparated").unwrap();
        let bytes = cursor.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned()
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client.query_raw(sql).execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

pub(crate) fn owner() -> PipeId {
    PipeId::from_random(0xab)
}

pub(crate) fn stranger() -> PipeId {
    PipeId::from_random(0xcd)
}

pub(crate) fn column(name: &str, source: PgType, target: &str) -> ColumnPlan {
    let target = target.parse::<millrace_mapping::ChType>().unwrap();
    let nullable = target.holds_null() || matches!(target, millrace_mapping::ChType::Array(_));
    ColumnPlan::new(name, source, nullable, target)
}

/// `id Int64, note Nullable(String)`, sorted by id.
pub(crate) fn notes(table: TableRef) -> TargetTable {
    TargetTable {
        source: TableName::new("public", "notes"),
        table,
        columns: vec![column("id", PgType::Int8, "Int64"), column("note", PgType::Text, "Nullable(String)")],
        metadata: MetadataColumns::millrace(),
        sorting_key: vec!["id".to_owned()],
        engine: millrace_model::spec::TableEngine::ReplacingMergeTree,
        partition_by: None,
        sharding: None,
        delete_on_merge: true,
    }
}

/// A row as text values, with version and flag.
pub(crate) type Row<'a> = (&'a [Option<&'a str>], u64, bool);

/// A block of these rows for the table.
pub(crate) fn block(target: &TargetTable, rows: &[Row<'_>]) -> EncodedBlock {
    let mut builder = BlockBuilder::new(&target.columns, &target.metadata);
    for (values, version, is_deleted) in rows {
        for (index, value) in values.iter().enumerate() {
            let cell = value.map_or(Cell::Null, |text| Cell::Text(text.as_bytes()));
            builder.append_cell(index, cell).unwrap();
        }
        builder.end_row(*version, *is_deleted).unwrap();
    }
    builder.finish(Timestamp(1_700_000_000_000_000))
}
