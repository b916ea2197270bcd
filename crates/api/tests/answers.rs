//! What callers get back: errors with their details, and JSON.

use millrace_api::json::{to_json, to_json_text, to_yaml};
use millrace_api::proto::pipe::v1 as wire;
use millrace_api::{ApiError, ConnectError, ProtocolError, connect, status};
use millrace_model::{PipeSpec, Problem, TableName, Timestamp};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

#[test]
fn every_status_tells_why_and_what_to_do() {
    let table = TableName::new("public", "orders");
    let problems = [
        Problem::operator("MISSING_TABLE", "there is no table public.orders", "create it, or take it out")
            .of_table(&table),
        Problem::operator(
            "WAL_LEVEL",
            "wal_level is replica",
            "ALTER SYSTEM SET wal_level = logical; then restart",
        ),
    ];
    let invalid = PipeSpec::try_from(wire::PipeSpec::default()).unwrap_err().within("spec");
    let statuses = [
        status::invalid(&invalid),
        status::invalid(&ProtocolError::at("name", "missing")),
        status::pipe_not_found("shop"),
        status::pipe_exists("shop", &["tables", "settings"]),
        status::illegal_command("shop", "resume", "Snapshot", &["pause", "delete"]),
        status::unfit_command(
            "shop",
            "change settings",
            "sortingKeys of public.orders needs a resync",
            "apply it with --resync",
        ),
        status::edited_meanwhile("shop"),
        status::checks_failed(&problems),
        status::no_worker(),
        status::worker_silent(),
        status::internal("the catalog cannot be read"),
        Status::unavailable("tcp connect error"),
        Status::new(Code::Unimplemented, ""),
    ];
    insta::assert_debug_snapshot!(statuses.map(ApiError::from));
}

#[test]
fn details_are_those_of_google_rpc() {
    let details = status::illegal_command("shop", "resume", "Snapshot", &[]).get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("ILLEGAL_COMMAND", "millrace"));
    let violation = &details.precondition_failure().unwrap().violations[0];
    assert_eq!((violation.subject.as_str(), violation.description.as_str()), ("shop", "Snapshot"));
}

#[tokio::test]
async fn an_unreachable_coordinator_is_told_with_its_address() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("http://127.0.0.1:{port}");
    let error = connect(&address).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Unreachable { .. }));
    assert_eq!(
        error.to_string(),
        format!("no coordinator answers at {address} (Connection refused (os error 111))")
    );
    assert!(matches!(connect("127.0.0.1:7400").await, Err(ConnectError::Address { .. })));
    assert!(matches!(connect("localhost").await, Err(ConnectError::Address { .. })));
    assert!(matches!(connect("https://h:7400").await, Err(ConnectError::Tls { .. })));
}

fn pipe() -> wire::Pipe {
    let at = millrace_api::time::timestamp(Timestamp(1_750_000_000_123_456));
    wire::Pipe {
        id: "00000000000a".to_owned(),
        etag: "1".to_owned(),
        spec: Some(wire::PipeSpec {
            name: "shop".to_owned(),
            replication_mode: wire::ReplicationMode::Cdc.into(),
            source: Some(wire::PostgresSource {
                host: "localhost".to_owned(),
                port: 5432,
                ..Default::default()
            }),
            settings: Some(wire::PipeSettings {
                sync_interval: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        status: Some(wire::PipeStatus {
            state: wire::PipeState::Running.into(),
            state_since: Some(at),
            stream: Some(wire::StreamStatus { lag_bytes: u64::MAX, ..Default::default() }),
            ..Default::default()
        }),
        tables: vec![wire::TableStatus {
            source: "public.orders".to_owned(),
            rows_copied: 12,
            partitions_done: 1,
            ..Default::default()
        }],
        created_at: Some(at),
    }
}

#[test]
fn json_is_proto_json_with_defaults_written() {
    insta::assert_snapshot!(to_json_text(&pipe()).unwrap());
}

#[test]
fn yaml_says_the_same_as_json() {
    let read: serde_json::Value = serde_saphyr::from_str(&to_yaml(&pipe()).unwrap()).unwrap();
    assert_eq!(read, to_json(&pipe()).unwrap());
}
