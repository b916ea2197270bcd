//! The command line as a person and as a script see it.

use crate::life::running;
use crate::load::{SETTINGS, TABLES};
use crate::stack::Stack;

#[tokio::test(flavor = "multi_thread")]
async fn applying_the_same_file_again_changes_nothing_and_an_edited_one_edits_the_pipe() {
    let stack = running(500).await;
    let id = stack.get("shop").await["id"].clone();
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    assert_eq!(stack.get("shop").await["id"], id);
    let other = stack.write_pipe_of("shop", &["orders"], SETTINGS);
    let other = other.to_str().unwrap();
    let said = stack.ok(&["pipe", "apply", "-f", other, "--dry-run"]).await;
    assert!(said.contains("removes public.items, public.nothing"), "{said}");
    assert_eq!(stack.get("shop").await["tables"].as_array().unwrap().len(), 3, "a dry run changes nothing");
    stack.apply(std::path::Path::new(other)).await;
    stack
        .wait("the tables to be taken out", async || {
            stack.get("shop").await["tables"].as_array().is_some_and(|tables| tables.len() == 1)
        })
        .await;
    assert_eq!(stack.get("shop").await["id"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_from_several_clients_at_once_is_one_pipe() {
    let stack = Stack::start().await;
    crate::load::sample_tables(&stack.source().await, 100).await;
    let path = stack.write_pipe_of("shop", &TABLES, SETTINGS);
    let apply = || async { stack.apply(&path).await };
    tokio::join!(apply(), apply(), apply(), apply());
    assert_eq!(stack.json(&["pipe", "list"]).await["pipes"].as_array().unwrap().len(), 1);
    stack.wait_for("shop", "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_command_speaks_to_people_and_to_scripts() {
    let stack = running(500).await;
    let path = stack.write_pipe_of("shop", &TABLES, SETTINGS).display().to_string();
    let list = stack.ok(&["pipe", "list"]).await;
    assert!(list.contains("shop") && list.contains("Running"), "{list}");
    let get = stack.ok(&["pipe", "get", "shop"]).await;
    assert!(get.contains("Running") && get.contains("millrace_"), "{get}");
    let tables = stack.ok(&["pipe", "tables", "shop"]).await;
    assert!(tables.contains("public.orders") && tables.contains("500"), "{tables}");
    let events = stack.ok(&["pipe", "events", "shop"]).await;
    assert!(events.contains("Snapshot") && events.contains("slot"), "{events}");
    let offered = stack.ok(&["source", "tables", "-f", &path]).await;
    assert!(offered.contains("public.items"), "{offered}");
    assert!(stack.ok(&["worker", "list"]).await.contains("one"));

    assert_eq!(stack.get("shop").await["status"]["state"], "PIPE_STATE_RUNNING");
    let yaml = stack.ok(&["pipe", "get", "shop", "-o", "yaml"]).await;
    assert!(yaml.contains("PIPE_STATE_RUNNING"), "{yaml}");
    let password = stack.postgres.password();
    for arguments in [&["pipe", "get", "shop", "-o", "json"][..], &["pipe", "list", "-o", "yaml"]] {
        assert!(!stack.ok(arguments).await.contains(password), "the password is shown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_tells_every_state_and_ends_where_it_was_told_to() {
    let stack = Stack::start().await;
    crate::load::sample_tables(&stack.source().await, 20_000).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    let told = stack.ok(&["pipe", "watch", "shop", "--until", "Running"]).await;
    let at = |state: &str| told.find(state).unwrap_or_else(|| panic!("{state} is not told:\n{told}"));
    assert!(at("Setup") < at("Snapshot") && at("Snapshot") < at("Running"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_why_and_what_to_do() {
    let stack = Stack::servers().await;
    let said = stack.fails(&["pipe", "list"]).await;
    assert!(said.contains("no coordinator answers") && said.contains(&stack.address()), "{said}");
    let usage = stack.run(&["pipe", "liist"]).await;
    assert_eq!(usage.status.code(), Some(2));
    let missing = stack.fails(&["pipe", "apply", "-f", "/no/such/file.yaml"]).await;
    assert!(missing.contains("/no/such/file.yaml"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_without_workers_waits_and_says_so() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    crate::load::sample_tables(&stack.source().await, 100).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
    let shown = stack.get("shop").await;
    assert_eq!(shown["status"]["state"], "PIPE_STATE_PROVISIONING");
    assert!(shown["status"]["next"].as_str().unwrap().contains("no worker"), "{shown}");
    assert_eq!(shown["status"]["health"], "HEALTH_DEGRADED");
    stack.start_worker("late").await;
    stack.wait_for("shop", "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_does_not_serve_other_machines_unasked_nor_share_its_catalog() {
    let mut stack = Stack::servers().await;
    let data = stack.folder.path().join("coordinator").display().to_string();
    let said = stack.fails(&["coordinator", "--listen", "0.0.0.0:0", "--data-dir", &data]).await;
    assert!(said.contains("--insecure"), "{said}");
    stack.start_coordinator(&[]).await;
    let said = stack.fails(&["coordinator", "--listen", "127.0.0.1:0", "--data-dir", &data]).await;
    assert!(said.contains("catalog"), "{said}");
    use std::os::unix::fs::PermissionsExt as _;
    let catalog = std::fs::metadata(stack.folder.path().join("coordinator/catalog.sqlite")).unwrap();
    assert_eq!(catalog.permissions().mode() & 0o777, 0o600, "only its owner may read the catalog");
}
