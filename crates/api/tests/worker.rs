//! What coordinator and worker say to each other is read back as it was sent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use millrace_api::offer::OfferedTable;
use millrace_api::proto::worker::v1 as wire;
use millrace_api::worker::{CoordinatorMessage, Inspection, InspectionSubject, WorkerMessage};
use millrace_model::spec::{
    ClickHouseDestination, PipeSettings, PostgresSource, ReplicationMode, TableSpec, TlsMode,
};
use millrace_model::work::{
    Assignment, DestinationFacts, DifferenceKind, Hello, KeyRange, Outcome, Progress, Report, RowDifference,
    SlotHealth, SlotRequest, StreamProgress, StreamedTable, Swap, TableSize, TableWork, Verified, Work,
};
use millrace_model::{
    Epoch, Lsn, PageRange, Partition, PgType, PipeId, PipeSpec, Problem, ReplicaIdentity, Secret,
    SourceColumn, TableDefinition, TableId, TableName, Term,
};
use proptest::prelude::*;
use wire::assign::Work as WireWork;
use wire::connect_request::Message as Request;
use wire::connect_response::Message as Response;

fn orders() -> TableName {
    TableName::new("public", "Orders.2")
}

fn spec() -> PipeSpec {
    PipeSpec {
        name: "shop".parse().expect("a valid name"),
        mode: ReplicationMode::Cdc,
        source: PostgresSource {
            host: "localhost".to_owned(),
            port: 5432,
            database: "shop".to_owned(),
            username: "millrace".to_owned(),
            password: Secret::new("secret"),
            tls_mode: TlsMode::Prefer,
            tls_ca: None,
        },
        destination: ClickHouseDestination {
            url: "http://127.0.0.1:8123".to_owned(),
            database: "shop".to_owned(),
            username: "default".to_owned(),
            password: Secret::new("other"),
            cluster: None,
        },
        tables: vec![TableSpec::new(orders(), "orders")],
        settings: PipeSettings::default(),
    }
}

fn definition() -> TableDefinition {
    let types = [
        PgType::Bool,
        PgType::Int2,
        PgType::Int4,
        PgType::Int8,
        PgType::Oid,
        PgType::Float4,
        PgType::Float8,
        PgType::Numeric(None),
        PgType::Numeric(Some((1000, -1000))),
        PgType::Text,
        PgType::Json,
        PgType::Jsonb,
        PgType::Bytea,
        PgType::Uuid,
        PgType::Date,
        PgType::Timestamp,
        PgType::TimestampTz,
        PgType::Time,
        PgType::Enum,
        PgType::Array(Box::new(PgType::Numeric(Some((10, 2))))),
        PgType::Array(Box::new(PgType::Other("public.mood".to_owned()))),
        PgType::Other("int4range".to_owned()),
        PgType::Hstore,
        PgType::Vector,
        PgType::Array(Box::new(PgType::HalfVec)),
    ];
    let column = |(index, pg_type): (i16, PgType)| SourceColumn {
        name: format!("column {index}"),
        attribute: index,
        type_oid: 23,
        type_modifier: -1,
        type_name: format!("{pg_type:?}"),
        pg_type,
        nullable: index % 2 == 0,
        generated: index % 3 == 0,
    };
    TableDefinition {
        name: orders(),
        oid: u32::MAX,
        file_node: 7,
        columns: (1..).zip(types).map(column).collect(),
        key: vec!["column 2".to_owned(), "column 1".to_owned()],
        replica_identity: ReplicaIdentity::Index,
        pages: 9,
        estimated_rows: u64::MAX,
        bytes: 1,
        retired: Vec::new(),
        partitions: vec![Partition { oid: 16_400, linked_by: u32::MAX }],
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    }
}

fn problems() -> Vec<Problem> {
    vec![
        Problem::operator("A", "message", "remedy").of_table(&orders()),
        Problem::transient("B", "message", ""),
        Problem::permanent("C", "message", ""),
        Problem::warning("D", "message", ""),
    ]
}

/// The table as one that is copied anew: written under a name of its own.
fn table() -> TableWork {
    let spec = TableSpec { target: "orders_resync_5".to_owned(), ..TableSpec::new(orders(), "orders") };
    TableWork { id: TableId(5), spec, definition: definition() }
}

fn swap(replaces: Option<&str>) -> Swap {
    Swap {
        id: TableId(5),
        source: orders(),
        target: "orders".to_owned(),
        copied: "orders_resync_5".to_owned(),
        uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".to_owned(),
        replaces: replaces.map(str::to_owned),
    }
}

fn works() -> Vec<Work> {
    let definitions = vec![definition()];
    let destination = DestinationFacts { time64: true };
    let name = "slot".to_owned();
    let create = |failover| SlotRequest::Create { name: "slot".to_owned(), failover };
    let existing = SlotRequest::Existing { name: name.clone() };
    let snapshots =
        [create(false), create(true), SlotRequest::None, SlotRequest::Temporary, existing.clone()];
    let set_up = |slot, publication| Work::SetUp {
        tables: vec![table()],
        destination,
        clear: true,
        publication,
        slot,
    };
    let publication = Some(("publication".to_owned(), vec![orders(), TableName::new("a", "B")]));
    let copy = |partition, range| Work::Copy {
        table: table(),
        snapshot_name: "00000003-1".to_owned(),
        partition,
        range,
        destination,
    };
    let stream = |copying, begins, swaps| Work::Stream {
        timeline: 3,
        slot_name: "slot".to_owned(),
        publication_name: "publication".to_owned(),
        system_identifier: u64::MAX,
        consistent_point: Lsn(1),
        durable: Lsn(2),
        revision: u64::MAX,
        tables: vec![StreamedTable { table: table(), copying, begins }],
        swaps,
        destination,
    };
    let teardown = |slot_name, publication_name, tables: &[&str]| Work::Teardown {
        slot_name,
        publication_name,
        tables: tables.iter().map(|table| (*table).to_owned()).collect(),
    };
    let mut works = vec![
        copy(4, PageRange { first: 5, end: Some(6) }),
        copy(0, PageRange::ALL),
        Work::Provision { anew: false },
        Work::Provision { anew: true },
        set_up(None, None),
        set_up(None, publication.clone()),
        set_up(Some(create(false)), publication),
        set_up(Some(create(true)), Some(("publication".to_owned(), Vec::new()))),
        set_up(Some(existing), None),
        stream(false, Lsn::ZERO, vec![]),
        stream(true, Lsn(u64::MAX), vec![swap(None), swap(Some("9"))]),
        Work::Swap { swaps: vec![swap(None), swap(Some("9"))] },
        Work::Verify {
            table: table(),
            range: None,
            slot_name: name.clone(),
            shared_target: false,
            destination: DestinationFacts { time64: false },
        },
        Work::Verify {
            table: table(),
            range: Some(KeyRange { from: Some(i64::MIN), until: None }),
            slot_name: name.clone(),
            shared_target: true,
            destination: DestinationFacts { time64: true },
        },
        Work::Clean { tables: vec!["orders_resync_5".to_owned(), "a \"b\"".to_owned()] },
        Work::Release { slot_name: name.clone() },
        teardown(Some(name), None, &["orders"]),
        teardown(None, Some("publication".to_owned()), &[]),
    ];
    works.extend(snapshots.map(|slot| Work::Snapshot { slot, tables: definitions.clone() }));
    works
}

fn assignment(work: Work) -> Assignment {
    let trace = [("traceparent".to_owned(), "00-1-2-01".to_owned())].into();
    Assignment { epoch: Epoch(3), pipe: PipeId::from_random(5), trace, spec: spec(), work }
}

fn reports() -> Vec<Report> {
    let sizes = vec![TableSize { table: orders(), pages: 8, estimated_rows: 9, file_node: 7 }];
    let stream = StreamProgress {
        timeline: 4,
        durable: Lsn(1),
        source: Lsn(2),
        changes: 3,
        delay: Some(Duration::from_micros(4)),
        caught_up: true,
        tables: vec![(TableId(0), 5), (TableId(u32::MAX), 0)],
        revision: u64::MAX,
        held: vec![(TableId(0), problems().swap_remove(1))],
    };
    vec![
        Report::Progress(Progress::SnapshotReady {
            snapshot_name: "s".to_owned(),
            consistent_point: Lsn(u64::MAX),
            sizes,
        }),
        Report::Progress(Progress::Copy { rows: 1, bytes: 2 }),
        Report::Progress(Progress::Stream(stream)),
        Report::Progress(Progress::Stream(StreamProgress::default())),
        Report::Finished(Outcome::Provisioned {
            system_identifier: u64::MAX,
            server_version: 170_010,
            tables: vec![definition()],
            warnings: problems(),
            destination: DestinationFacts { time64: true },
        }),
        Report::Finished(Outcome::SetUp {
            tables: vec![(TableId(0), "uuid".to_owned()), (TableId(u32::MAX), "other".to_owned())],
            begins: Lsn(7),
        }),
        Report::Finished(Outcome::SetUp { tables: vec![], begins: Lsn::ZERO }),
        Report::Finished(Outcome::Swapped { tables: vec![TableId(0), TableId(3)] }),
        Report::Finished(Outcome::Cleaned { tables: vec!["orders_old".to_owned()] }),
        Report::Finished(Outcome::Copied { rows: 1, bytes: 2 }),
        Report::Finished(Outcome::Drained { durable: Lsn(6) }),
        Report::Finished(Outcome::Released),
        Report::Progress(Progress::Verify { rows: u64::MAX }),
        Report::Finished(Outcome::Verified(Verified::default())),
        Report::Finished(Outcome::Divided { bounds: vec![i64::MIN, -1, 0, i64::MAX] }),
        Report::Finished(Outcome::Verified(Verified {
            source_rows: 3,
            destination_rows: 4,
            differences: 2,
            more: true,
            unsettled: 1,
            samples: vec![
                RowDifference {
                    kind: DifferenceKind::Altered,
                    key: "(1, 'a')".to_owned(),
                    columns: vec!["note".to_owned()],
                },
                RowDifference { kind: DifferenceKind::Extra, key: "2".to_owned(), columns: vec![] },
                RowDifference { kind: DifferenceKind::Missing, key: "3".to_owned(), columns: vec![] },
            ],
            problem: Some(problems().swap_remove(0)),
        })),
        Report::Finished(Outcome::TornDown { left_behind: problems() }),
        Report::Failed(problems()),
        Report::TableChanged(TableId(0), Box::new(definition())),
        Report::TableSetAside(TableId(4), Problem::operator("A", "m", "r").of_table(&orders())),
        Report::TableSetAside(TableId(4), problems().swap_remove(1).of_table(&orders())),
        Report::TableSwapped(TableId(5)),
    ]
}

#[test]
fn every_message_of_a_worker_is_read_back() {
    let hello = Hello {
        drained: true,
        worker: "worker 1".parse().unwrap(),
        instance: "i".to_owned(),
        version: "0.1.0".to_owned(),
        max_tasks: 4,
        memory_budget: u64::MAX,
        held: vec![Epoch(1), Epoch(u64::MAX)],
        labels: "zone=a,pool=large".parse().unwrap(),
    };
    let tables = vec![OfferedTable::new(&definition(), problems())];
    let mut messages = vec![
        WorkerMessage::Hello(hello),
        WorkerMessage::Heartbeat { memory_used: 1, draining: true, number: 7 },
        WorkerMessage::InspectReply { request_id: 2, problems: problems(), tables, slot: None },
        WorkerMessage::InspectReply {
            request_id: 3,
            problems: vec![],
            tables: vec![],
            slot: Some(SlotHealth {
                wal_status: "extended".to_owned(),
                retained: u64::MAX,
                headroom: Some(0),
            }),
        },
    ];
    messages.extend(reports().into_iter().map(|report| WorkerMessage::Report { epoch: Epoch(9), report }));
    for message in messages {
        assert_eq!(WorkerMessage::try_from(wire::ConnectRequest::from(&message)), Ok(message));
    }
}

#[test]
fn every_message_of_a_coordinator_is_read_back() {
    let mut messages = vec![
        CoordinatorMessage::Welcome {
            heartbeat_interval: Duration::from_millis(500),
            lease: Duration::from_secs(10),
            keep: vec![Epoch(4)],
            term: Term(3),
        },
        CoordinatorMessage::Revoke(Epoch(1)),
        CoordinatorMessage::Drain(Epoch(2)),
        CoordinatorMessage::Recorded { epoch: Epoch(3), table: None },
        CoordinatorMessage::Recorded { epoch: Epoch(3), table: Some(TableId(0)) },
        CoordinatorMessage::Recorded { epoch: Epoch(3), table: Some(TableId(9)) },
    ];
    let of_slot = InspectionSubject::Slot(spec().source, "millrace_1".to_owned());
    for subject in
        [InspectionSubject::Pipe(Box::new(spec())), InspectionSubject::Source(spec().source), of_slot]
    {
        let trace = [("tracestate".to_owned(), "a=b".to_owned())].into();
        messages.push(CoordinatorMessage::Inspect(Box::new(Inspection { request_id: 7, subject, trace })));
    }
    messages.extend(works().into_iter().map(|work| CoordinatorMessage::Assign(Box::new(assignment(work)))));
    messages.extend(works().into_iter().map(|work| CoordinatorMessage::Amend(Box::new(assignment(work)))));
    for message in messages {
        assert_eq!(CoordinatorMessage::try_from(wire::ConnectResponse::from(&message)), Ok(message));
    }
}

#[test]
fn an_assignment_may_name_no_table_at_all() {
    let nothing = Work::Teardown { slot_name: None, publication_name: None, tables: vec![] };
    let mut teardown = assignment(nothing);
    teardown.spec.tables.clear();
    let message = CoordinatorMessage::Assign(Box::new(teardown));
    assert_eq!(CoordinatorMessage::try_from(wire::ConnectResponse::from(&message)), Ok(message));
}

proptest! {
    #[test]
    fn stream_progress_is_read_back(
        durable: u64,
        source: u64,
        changes: u64,
        revision: u64,
        delay in 0..u64::MAX,
        caught_up: bool,
    ) {
        let report = Report::Progress(Progress::Stream(StreamProgress {
            timeline: 0,
            durable: Lsn(durable),
            source: Lsn(source),
            changes,
            delay: (delay > 0).then(|| Duration::from_micros(delay)),
            caught_up,
            tables: Vec::new(),
            revision,
            held: Vec::new(),
        }));
        let message = WorkerMessage::Report { epoch: Epoch(1), report };
        prop_assert_eq!(WorkerMessage::try_from(wire::ConnectRequest::from(&message)), Ok(message));
    }
}

fn definition_of(copy: &mut wire::CopyWork) -> &mut wire::TableDefinition {
    copy.table.as_mut().unwrap().definition.as_mut().unwrap()
}

fn refusal_of_request(message: Request) -> String {
    WorkerMessage::try_from(wire::ConnectRequest { message: Some(message) }).expect_err("refused").to_string()
}

fn refusal_of_response(message: Response) -> String {
    CoordinatorMessage::try_from(wire::ConnectResponse { message: Some(message) })
        .expect_err("refused")
        .to_string()
}

#[test]
fn what_breaks_the_protocol_is_refused_with_its_path() {
    let Response::Assign(assign) = wire::ConnectResponse::from(&CoordinatorMessage::Assign(Box::new(
        assignment(works().swap_remove(0)),
    )))
    .message
    .unwrap() else {
        panic!("an assignment")
    };
    let with_copy = |edit: fn(&mut wire::CopyWork)| {
        let mut assign = assign.clone();
        if let Some(wire::assign::Work::Copy(copy)) = &mut assign.work {
            edit(copy);
        }
        refusal_of_response(Response::Assign(assign))
    };
    let with_work = |work| Response::Assign(wire::Assign { work: Some(work), ..assign.clone() });
    let column_type = |copy: &mut wire::CopyWork, edit: fn(&mut wire::TypeDefinition)| {
        edit(definition_of(copy).columns[1].r#type.as_mut().unwrap());
    };
    let told = [
        WorkerMessage::try_from(wire::ConnectRequest::default()).unwrap_err().to_string(),
        refusal_of_request(Request::Hello(wire::Hello::default())),
        refusal_of_request(Request::Hello(wire::Hello { worker_id: "w".to_owned(), ..Default::default() })),
        refusal_of_request(Request::Hello(wire::Hello {
            worker_id: "w".to_owned(),
            instance_id: "i".to_owned(),
            max_tasks: 1,
            held_epochs: vec![1, 0],
            ..Default::default()
        })),
        refusal_of_request(Request::Progress(wire::Progress::default())),
        refusal_of_request(Request::Finished(wire::Finished {
            epoch: 0,
            result: Some(wire::finished::Result::SetUp(wire::SetUpResult::default())),
        })),
        refusal_of_request(Request::Failed(wire::Failed { epoch: 1, problems: Vec::new() })),
        refusal_of_request(Request::Failed(wire::Failed { epoch: 1, problems: vec![Default::default()] })),
        refusal_of_request(Request::TableSetAside(wire::TableSetAside {
            epoch: 1,
            problem: Some((&problems()[1]).into()),
            ..Default::default()
        })),
        refusal_of_response(Response::Welcome(wire::Welcome::default())),
        refusal_of_response(Response::Revoke(wire::Revoke::default())),
        refusal_of_response(Response::Assign(wire::Assign::default())),
        refusal_of_response(Response::Inspect(wire::Inspect {
            spec: Some(Default::default()),
            list_source_tables: true,
            ..Default::default()
        })),
        with_copy(|copy| copy.table = None),
        with_copy(|copy| copy.end_page = Some(1)),
        with_copy(|copy| copy.snapshot_name.clear()),
        with_copy(|copy| definition_of(copy).key.push("absent".to_owned())),
        with_copy(|copy| definition_of(copy).columns[0].attribute = 40_000),
        with_copy(|copy| definition_of(copy).columns[0].r#type = None),
        with_copy(|copy| definition_of(copy).name = "orders".to_owned()),
        with_copy(|copy| copy.table.as_mut().unwrap().definition = None),
        with_copy(|copy| copy.table.as_mut().unwrap().mapping = None),
        refusal_of_response(Response::Amend(wire::Amend { assign: None })),
        refusal_of_response(with_work(WireWork::Clean(wire::CleanWork { tables: vec![String::new()] }))),
        refusal_of_response(with_work(WireWork::Swap(wire::SwapWork { swaps: vec![Default::default()] }))),
        refusal_of_response(with_work(WireWork::SetUp(wire::SetUpWork {
            publication_tables: vec!["orders".to_owned()],
            ..Default::default()
        }))),
        refusal_of_response(with_work(WireWork::Stream(wire::StreamWork {
            slot_name: "s".to_owned(),
            publication_name: "p".to_owned(),
            tables: vec![Default::default()],
            ..Default::default()
        }))),
        refusal_of_request(Request::TableChanged(wire::TableChanged { epoch: 1, ..Default::default() })),
        refusal_of_request(Request::TableSwapped(wire::TableSwapped { epoch: 0, table_id: 1 })),
        refusal_of_request(Request::Progress(wire::Progress {
            epoch: 1,
            progress: Some(wire::progress::Progress::Stream(wire::StreamProgress {
                held: vec![Default::default()],
                ..Default::default()
            })),
        })),
    ];
    let mut nested = assign.clone();
    if let Some(wire::assign::Work::Copy(copy)) = &mut nested.work {
        column_type(copy, |definition| {
            let array = wire::TypeKind::Array.into();
            let inner = wire::TypeDefinition { kind: array, ..Default::default() };
            *definition =
                wire::TypeDefinition { kind: array, element: Some(Box::new(inner)), ..Default::default() };
        });
    }
    insta::assert_snapshot!(format!(
        "{}\n{}",
        told.join("\n"),
        refusal_of_response(Response::Assign(nested))
    ));
}
