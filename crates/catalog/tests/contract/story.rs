//! Pipes that live through something, so that what is stored is what a coordinator stores.

use std::collections::BTreeMap;

use millrace_catalog::{Catalog, CatalogError};
use millrace_lifecycle::{Actor, Command, PipeAggregate, PipeChanges, Task};
use millrace_model::spec::{
    ClickHouseDestination, PipeSettings, PostgresSource, ReplicationMode, TableSpec, TlsMode,
};
use millrace_model::work::{DestinationFacts, Outcome, Progress, Report, TableSize};
use millrace_model::{
    Epoch, Lsn, PgType, PipeId, PipeSpec, ReplicaIdentity, Secret, SourceColumn, TableDefinition, TableName,
    Timestamp, WorkerId,
};

pub(crate) const PASSWORD: &str = "pass'word \"with\" everything\n\u{1f511}";

fn spec(name: &str, mode: ReplicationMode, tables: &[&str]) -> PipeSpec {
    PipeSpec {
        name: name.parse().unwrap(),
        mode,
        source: PostgresSource {
            host: "localhost".into(),
            port: 5432,
            database: "shop".into(),
            username: "millrace".into(),
            password: Secret::new(PASSWORD),
            tls_mode: TlsMode::VerifyFull,
            tls_ca: Some("-----BEGIN CERTIFICATE-----\n".into()),
        },
        destination: ClickHouseDestination {
            url: "http://localhost:8123".into(),
            database: "shop".into(),
            username: "default".into(),
            password: Secret::default(),
        },
        tables: tables
            .iter()
            .map(|name| TableSpec {
                excluded_columns: vec!["secret".into()],
                ..TableSpec::new(TableName::new("Odd \"schema\"", *name), format!("t_{name}"))
            })
            .collect(),
        settings: PipeSettings { snapshot_rows_per_partition: 1000, ..PipeSettings::default() },
    }
}

fn definition(name: &TableName) -> TableDefinition {
    let column = |name: &str, pg_type: PgType| SourceColumn {
        name: name.into(),
        attribute: 1,
        type_oid: u32::MAX,
        type_modifier: -1,
        type_name: "numeric(12,2)[]".into(),
        pg_type,
        nullable: true,
        generated: false,
    };
    TableDefinition {
        name: name.clone(),
        oid: u32::MAX,
        file_node: 1,
        columns: vec![
            column("id", PgType::Int8),
            column("prices", PgType::Array(Box::new(PgType::Numeric(Some((12, -2)))))),
            column("place", PgType::Other("geometry(Point)".into())),
        ],
        key: vec!["id".into()],
        replica_identity: ReplicaIdentity::Default,
        pages: 384,
        estimated_rows: 3000,
        bytes: u64::MAX,
        retired: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    }
}

pub(crate) fn worker() -> WorkerId {
    "w1".parse().unwrap()
}

/// A pipe with somebody who does whatever it calls for.
pub(crate) struct Story {
    pub(crate) pipe: PipeAggregate,
    pub(crate) epoch: Epoch,
    clock: Timestamp,
}

impl Story {
    pub(crate) fn new(number: u64, mode: ReplicationMode, tables: &[&str]) -> Self {
        let spec = spec(&format!("pipe {number}"), mode, tables);
        Self::of(PipeAggregate::create(PipeId::from_random(number), spec, Timestamp(0)))
    }

    /// A new pipe under a name that need not be its own.
    pub(crate) fn named(number: u64, name: &str) -> Self {
        let spec = spec(name, ReplicationMode::Cdc, &["orders"]);
        Self::of(PipeAggregate::create(PipeId::from_random(number), spec, Timestamp(0)))
    }

    /// A pipe that is there already.
    pub(crate) fn of(pipe: PipeAggregate) -> Self {
        let epoch = pipe.assignments().map(|held| held.epoch).max().unwrap_or_default();
        Self { pipe, epoch, clock: Timestamp(0) }
    }

    pub(crate) fn id(&self) -> PipeId {
        self.pipe.pipe().id.clone()
    }

    pub(crate) fn tick(&mut self) -> Timestamp {
        self.clock.0 += 1_000_000;
        self.clock
    }

    pub(crate) fn note(&mut self, message: &str) {
        let now = self.tick();
        self.pipe.note(message, Actor::Coordinator, now);
    }

    pub(crate) fn command(&mut self, command: Command) {
        let now = self.tick();
        self.pipe.command(command, now).unwrap();
    }

    /// Gives out everything that is wanted and not in hand.
    pub(crate) fn place(&mut self) {
        for task in self.pipe.wanted() {
            if !self.pipe.assignments().any(|held| held.task == task) {
                self.epoch = self.epoch.next();
                let now = self.tick();
                self.pipe.assign(self.epoch, task, worker(), BTreeMap::new(), now).unwrap();
            }
        }
    }

    pub(crate) fn epoch_of(&self, wanted: &Task) -> Epoch {
        self.pipe.assignments().find(|held| &held.task == wanted).map(|held| held.epoch).unwrap()
    }

    pub(crate) fn report(&mut self, task: &Task, report: Report) {
        let (epoch, now) = (self.epoch_of(task), self.tick());
        self.pipe.report(&worker(), epoch, report, now).unwrap();
    }

    pub(crate) fn finish(&mut self, task: &Task, outcome: Outcome) {
        self.place();
        self.report(task, Report::Finished(outcome));
    }

    pub(crate) fn provision(&mut self) {
        let tables = self.pipe.tables().map(|(table, _, _)| definition(&table.source)).collect();
        self.finish(
            &Task::Provision,
            Outcome::Provisioned {
                system_identifier: u64::MAX,
                server_version: 170_010,
                tables,
                warnings: vec![],
                destination: DestinationFacts { time64: true },
            },
        );
    }

    /// Opens a snapshot under which every table has 384 pages and 3,000 rows: three partitions.
    pub(crate) fn open_snapshot(&mut self) {
        self.open_snapshot_of(384, 3000);
    }

    pub(crate) fn open_snapshot_of(&mut self, pages: u32, estimated_rows: u64) {
        self.place();
        let sizes = self.pipe.tables().map(|(table, _, _)| TableSize {
            table: table.source.clone(),
            pages,
            estimated_rows,
            file_node: 2,
        });
        let sizes = sizes.collect();
        let ready =
            Progress::SnapshotReady { snapshot_name: "s-1".into(), consistent_point: Lsn(u64::MAX), sizes };
        self.report(&Task::Snapshot, Report::Progress(ready));
    }

    pub(crate) fn next_copy(&self) -> Option<Task> {
        self.pipe.wanted().into_iter().find(|task| matches!(task, Task::Copy { .. }))
    }

    pub(crate) fn copy_one(&mut self) -> bool {
        let Some(task) = self.next_copy() else { return false };
        self.finish(&task, Outcome::Copied { rows: 1000, bytes: u64::from(u32::MAX) + 1 });
        true
    }

    /// What is to be stored, with the orders forgotten that go with it.
    pub(crate) fn changes(&mut self) -> (PipeId, PipeChanges) {
        self.pipe.take_orders();
        (self.id(), self.pipe.take_changes().unwrap())
    }

    pub(crate) async fn try_save(&mut self, catalog: &impl Catalog) -> Result<(), CatalogError> {
        catalog.commit(vec![self.changes()], self.epoch).await
    }

    /// Stores what changed and sees that it comes back the same.
    pub(crate) async fn save(&mut self, catalog: &impl Catalog) {
        self.try_save(catalog).await.unwrap();
        let loaded = catalog.load_pipe(&self.id()).await.unwrap().unwrap();
        assert_same(&loaded, &self.pipe);
    }

    /// Through Provisioning and Setup into Snapshot, all of it stored.
    pub(crate) async fn copying(catalog: &impl Catalog, number: u64, mode: ReplicationMode) -> Self {
        let mut story = Self::new(number, mode, &["orders", "items"]);
        story.provision();
        story.finish(&Task::SetUp, Outcome::SetUp);
        story.open_snapshot();
        story.place();
        story.save(catalog).await;
        story
    }
}

/// Same in every field, those included that nobody can ask for. Tells the first line that differs: whole pipes are too long to read.
pub(crate) fn assert_same(left: &PipeAggregate, right: &PipeAggregate) {
    let (left_text, right_text) = (format!("{left:#?}"), format!("{right:#?}"));
    for (number, (left, right)) in left_text.lines().zip(right_text.lines()).enumerate() {
        assert_eq!(left, right, "line {number} of the pipe");
    }
    assert_eq!(left_text.len(), right_text.len());
    // Debug does not show secrets.
    assert_eq!(left.pipe(), right.pipe());
}
