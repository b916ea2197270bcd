//! Without a collector. One test, because the subscriber is the process's and alone decides which spans are made.

use millrace_telemetry::{Config, init, inject_current};
use tracing::{info_span, warn_span};

#[tokio::test]
async fn without_an_exporter_a_span_the_log_does_not_want_is_never_made() {
    let guard = init(Config { log_filter: "warn".to_owned(), ..Config::new("millrace-test") }).unwrap();
    assert!(info_span!("batch").is_disabled());
    let wanted = warn_span!("wanted");
    assert!(!wanted.is_disabled());
    assert!(wanted.in_scope(inject_current).is_empty());
    guard.shutdown().await.unwrap();
}
