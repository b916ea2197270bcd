//! A collector that is not there. One test, because the subscriber is the process's.

use std::time::Duration;

use millrace_telemetry::{Config, Error, init};
use tokio::net::TcpListener;
use tracing::info_span;

#[tokio::test]
async fn a_collector_that_is_away_neither_stops_the_set_up_nor_holds_the_end_for_long() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let guard = init(Config {
        otlp_endpoint: Some(format!("http://{closed}")),
        log_filter: "off".to_owned(),
        ..Config::new("millrace-test")
    })
    .unwrap();
    drop(info_span!(target: "millrace_test", "batch"));

    let shutdown = tokio::time::timeout(Duration::from_secs(30), guard.shutdown());
    let error = shutdown.await.expect("the flush ends").unwrap_err();
    assert!(matches!(error, Error::FlushSpans(_)), "{error:?}");
}
