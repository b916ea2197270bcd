//! The source fails over to a standby, behind the same address.

use millrace_devstack::{Launcher, Postgres, PostgresOptions};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::{Stack, millrace};

const SLOT: &str = "standby";
const NOWHERE: &str = "host=127.0.0.1 port=1";

fn launcher() -> Launcher {
    Launcher::new(millrace(), ["devstack"])
}

async fn connect(postgres: &Postgres) -> Client {
    let config: tokio_postgres::Config = postgres.connection_string("postgres").parse().unwrap();
    let (client, connection) = config.connect(NoTls).await.unwrap();
    // Ends with its client.
    tokio::spawn(connection);
    client
}

fn options(stack: &Stack, folder: &str, port: Option<u16>) -> PostgresOptions {
    PostgresOptions {
        password: stack.postgres.password().to_owned(),
        port,
        ..PostgresOptions::new(17, stack.folder.path().join(folder))
    }
}

/// A standby of the stack's source, made from a copy of its files while it rests; `awaited` where nothing is to be carried that
/// it lacks.
async fn standby(stack: &mut Stack, awaited: bool) -> Postgres {
    let source = stack.source().await;
    source.execute("SELECT pg_create_physical_replication_slot('standby', true)", &[]).await.unwrap();
    stack.postgres.stop().await.unwrap();
    let (from, to) = (stack.postgres.data_dir().to_owned(), stack.folder.path().join("second"));
    // Keeps owner and rights, which PostgreSQL insists on.
    assert!(Command::new("cp").arg("-a").arg(&from).arg(&to).status().await.unwrap().success());
    std::fs::write(to.join("cluster/standby.signal"), "").unwrap();
    if awaited {
        stack.postgres.settings_mut().push(("synchronized_standby_slots".to_owned(), SLOT.to_owned()));
    }
    stack.postgres.restart().await.unwrap();
    let mut options = options(stack, "second", None);
    options.settings = [
        ("primary_conninfo", stack.postgres.connection_string("postgres")),
        ("primary_slot_name", SLOT.to_owned()),
        ("hot_standby_feedback", "on".to_owned()),
        ("sync_replication_slots", "on".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    Postgres::start(launcher(), options).await.unwrap()
}

/// Waits until the standby has the pipe's slot, ready to be used.
async fn synchronised(stack: &Stack, standby: &Client) {
    let source = stack.source().await;
    let ready =
        "SELECT 1 FROM pg_replication_slots WHERE slot_name LIKE 'millrace%' AND synced AND NOT temporary";
    stack
        .wait("the slot to be synchronised", async || {
            // Nothing is synchronised while the log stands still.
            source.execute("SELECT pg_log_standby_snapshot()", &[]).await.unwrap();
            !standby.query(ready, &[]).await.unwrap().is_empty()
        })
        .await;
}

/// Promotes the standby once the primary is dead, and gives it the primary's address.
async fn promote(stack: &mut Stack, mut standby: Postgres) {
    let port = stack.postgres.port();
    connect(&standby).await.execute("SELECT pg_promote(true)", &[]).await.unwrap();
    standby.stop().await.unwrap();
    stack.postgres = Postgres::start(launcher(), options(stack, "second", Some(port))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streaming_goes_on_from_a_promoted_standby_without_loss() {
    let mut stack = Stack::start().await;
    sample_tables(&stack.source().await, 20_000).await;
    let mut standby = standby(&mut stack, true).await;
    let settings = SETTINGS.replace("settings: {", "settings: {enableFailoverSlots: true, ");
    let file = stack.write_pipe_of("shop", &TABLES, &settings);
    let said = stack.run(&["pipe", "validate", "-f", file.to_str().unwrap()]).await;
    let said = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    assert!(!said.contains("SOURCE_OUTRUNS_STANDBYS"), "{said}");
    stack.apply(&file).await;
    stack.wait_for("shop", "Running").await;
    let churn = Churn::start(&stack, 20_000).await;
    synchronised(&stack, &connect(&standby).await).await;
    assert!(churn.stop().await > 0);
    // Some of it may not have arrived when the primary dies.
    stack.postgres.kill().await.unwrap();

    // The address leads to the standby before it is promoted: nobody gives up on it.
    standby.stop().await.unwrap();
    let mut early = options(&stack, "second", Some(stack.postgres.port()));
    early.settings = vec![("primary_conninfo".to_owned(), NOWHERE.to_owned())];
    let standby = Postgres::start(launcher(), early).await.unwrap();
    stack.wait("the standby to be noticed", async || stack.logs().contains("SOURCE_IS_STANDBY")).await;
    promote(&mut stack, standby).await;
    let churn = Churn::start(&stack, 320_000).await;
    stack.caught_up("shop").await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
    assert_eq!(stack.states("shop").await, ["PROVISIONING", "SETUP", "SNAPSHOT", "RUNNING"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_lacks_what_was_carried_is_noticed() {
    let mut stack = Stack::start().await;
    sample_tables(&stack.source().await, 2_000).await;
    let standby = standby(&mut stack, false).await;
    let settings = SETTINGS.replace("settings: {", "settings: {enableFailoverSlots: true, ");
    let file = stack.write_pipe_of("shop", &TABLES, &settings);
    let said = stack.run(&["pipe", "validate", "-f", file.to_str().unwrap()]).await;
    let said = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    assert!(said.contains("SOURCE_OUTRUNS_STANDBYS"), "{said}");
    stack.apply(&file).await;
    stack.wait_for("shop", "Running").await;
    let mirror = connect(&standby).await;
    synchronised(&stack, &mirror).await;
    // The standby falls behind, and what it lacks is carried.
    mirror.batch_execute(&format!("ALTER SYSTEM SET primary_conninfo = '{NOWHERE}'")).await.unwrap();
    mirror.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let source = stack.source().await;
    let attached = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'standby' AND active";
    stack
        .wait("the standby to be cut off", async || source.query(attached, &[]).await.unwrap().is_empty())
        .await;
    source.batch_execute("UPDATE items SET sku = 'never was'").await.unwrap();
    stack.caught_up("shop").await;
    stack.postgres.kill().await.unwrap();
    promote(&mut stack, standby).await;
    // What is written since takes the same positions in the log.
    let after = "INSERT INTO orders SELECT 100000 + n, 1, now(), 'after', 1, '{}', true FROM generate_series(1, 2000) n";
    stack.source().await.batch_execute(after).await.unwrap();
    stack.wait_for("shop", "Failed").await;
    let shown = stack.get("shop").await.to_string();
    assert!(shown.contains("SOURCE_LOST_CHANGES"), "{shown}");
    stack.ok(&["pipe", "resync", "shop"]).await;
    stack.wait_for("shop", "Running").await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;
}
