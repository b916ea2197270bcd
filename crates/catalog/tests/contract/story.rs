//! Pipes that live through something, so that what is stored is what a coordinator stores.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_catalog::{Candidate, Catalog, CatalogError, Standing};
use millrace_lifecycle::{Actor, PipeAggregate, PipeChanges, Refusal, Task};
use millrace_model::spec::{
    ClickHouseDestination, PipeSettings, PostgresSource, ReplicationMode, TableSpec, TlsMode,
};
use millrace_model::work::{DestinationFacts, Outcome, Progress, Report, StreamProgress, TableSize};
use millrace_model::{
    Epoch, Lsn, PgType, PipeId, PipeSpec, ReplicaIdentity, Secret, SourceColumn, TableDefinition, TableName,
    Term, Timestamp, WorkerId,
};

pub(crate) const PASSWORD: &str = "pass'word \"with\" everything\n\u{1f511}";

pub(crate) fn candidate(id: &str) -> Candidate {
    Candidate { id: id.to_owned(), address: format!("http://{id}:7400") }
}

/// Leads, as the same coordinator each time.
pub(crate) async fn lead(catalog: &impl Catalog) -> Term {
    match catalog.campaign(&candidate("coordinator"), Duration::from_secs(3600)).await.unwrap() {
        Standing::Leads(term) => term,
        Standing::Follows(leader) => panic!("{leader:?} leads"),
    }
}

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
            cluster: None,
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
        partitions: Vec::new(),
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

    pub(crate) fn command<T>(
        &mut self,
        command: impl FnOnce(&mut PipeAggregate, Timestamp) -> Result<T, Refusal>,
    ) {
        let now = self.tick();
        command(&mut self.pipe, now).unwrap();
    }

    pub(crate) fn delete(&mut self) {
        self.command(|pipe, now| pipe.delete(false, now));
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

    /// The task of a kind that is called for.
    pub(crate) fn task(&self, kind: &str) -> Task {
        self.pipe.wanted().into_iter().find(|task| task.kind() == kind).unwrap()
    }

    /// Sources of the tables that the round with a task is about.
    fn sources(&self, task: &Task) -> Vec<TableName> {
        let tables = self.pipe.tables().map(|table| &table.record);
        tables.filter(|table| table.round == task.round()).map(|table| table.source().clone()).collect()
    }

    pub(crate) fn provision(&mut self) {
        let task = self.task("provision");
        let tables = self.sources(&task).iter().map(definition).collect();
        self.finish(
            &task,
            Outcome::Provisioned {
                system_identifier: u64::MAX,
                server_version: 170_010,
                tables,
                warnings: vec![],
                destination: DestinationFacts { time64: true },
            },
        );
    }

    pub(crate) fn set_up(&mut self) {
        let task = self.task("setup");
        let of_round = |table: &&millrace_lifecycle::PipeTable| table.record.round == task.round();
        let tables = self.pipe.tables().filter(of_round).map(|table| table.record.id);
        let tables = tables.map(|id| (id, format!("uuid of {id}"))).collect();
        self.finish(&task, Outcome::SetUp { tables, begins: Lsn::ZERO });
    }

    /// The stream does what it was told last, and has carried everything.
    pub(crate) fn stream(&mut self) {
        self.place();
        let revision = self.pipe.pipe().revision;
        let progress =
            StreamProgress { durable: Lsn(u64::MAX), caught_up: true, revision, ..StreamProgress::default() };
        self.report(&Task::Stream, Report::Progress(Progress::Stream(progress)));
    }

    /// Opens a snapshot under which every table has 384 pages and 3,000 rows: three partitions.
    pub(crate) fn open_snapshot(&mut self) {
        self.open_snapshot_of(384, 3000);
    }

    pub(crate) fn open_snapshot_of(&mut self, pages: u32, estimated_rows: u64) {
        self.place();
        let task = self.task("snapshot");
        let sizes = self.sources(&task).into_iter().map(|table| TableSize {
            table,
            pages,
            estimated_rows,
            file_node: 2,
        });
        let sizes = sizes.collect();
        let ready =
            Progress::SnapshotReady { snapshot_name: "s-1".into(), consistent_point: Lsn(u64::MAX), sizes };
        self.report(&task, Report::Progress(ready));
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
        catalog.commit(lead(catalog).await, vec![self.changes()], self.epoch).await
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
        story.set_up();
        story.open_snapshot();
        story.place();
        story.save(catalog).await;
        story
    }
}

/// Save what a coordinator learns anew: what the stream says it follows, and whether it must hear what was decided.
fn in_full(pipe: &PipeAggregate) -> String {
    let mut pipe = pipe.clone();
    pipe.take_orders();
    let text = format!("{pipe:#?}");
    let learnt = text.find("\n    followed: ").unwrap()..text.find("\n    version: ").unwrap();
    let mut lines: Vec<&str> = text[..learnt.start].lines().chain(text[learnt.end..].lines()).collect();
    lines.retain(|line| !line.starts_with("    amendment_due: "));
    lines.join("\n")
}

/// Same in every field, those included that nobody can ask for. Tells the first line that differs: whole pipes are too long to read.
pub(crate) fn assert_same(left: &PipeAggregate, right: &PipeAggregate) {
    let (left_text, right_text) = (in_full(left), in_full(right));
    for (number, (left, right)) in left_text.lines().zip(right_text.lines()).enumerate() {
        assert_eq!(left, right, "line {number} of the pipe");
    }
    assert_eq!(left_text.len(), right_text.len());
    // Debug does not show secrets.
    assert_eq!(left.pipe(), right.pipe());
}
