//! Workers with labels, and pipes that choose among them.

use crate::load::{Churn, TABLES, assert_all_equal, sample_tables};
use crate::stack::Stack;

const ROWS: u32 = 2_000;

fn settings(selector: &str) -> String {
    format!("settings: {{syncInterval: 200ms, workerSelector: {selector}}}")
}

/// Those that hold work of the pipe.
async fn holders(stack: &Stack) -> Vec<String> {
    let assignments = stack.get("shop").await["status"]["assignments"].clone();
    let workers = assignments.as_array().into_iter().flatten().map(|held| held["workerId"].as_str());
    workers.flatten().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_worked_at_by_the_workers_that_it_selects_also_when_that_changes() {
    let mut stack = Stack::servers().await;
    stack.start_coordinator(&[]).await;
    stack.start_worker_with("plain", &[]).await;
    stack.start_worker_with("near", &["--labels", "zone=a,pool=large"]).await;
    let listed = stack.ok(&["worker", "list"]).await;
    assert!(listed.contains("pool=large,zone=a"), "{listed}");
    let source = stack.source().await;
    sample_tables(&source, ROWS).await;

    // Nobody has them: nobody can look either, and the pipe says why it waits.
    stack.apply(&stack.write_pipe_of("shop", &TABLES, &settings("{zone: b}"))).await;
    stack
        .wait("the pipe to say that nobody has the labels", async || {
            let shown = stack.get("shop").await;
            shown["status"]["next"].as_str().unwrap_or_default().contains("workerSelector")
        })
        .await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, &settings("{zone: a}"))).await;
    stack.wait_for("shop", "Running").await;
    stack.wait("the stream to be near", async || holders(&stack).await == ["near"]).await;

    // It moves, and loses nothing on the way.
    let churn = Churn::start(&stack, ROWS).await;
    stack.start_worker_with("far", &["--labels", "zone=b"]).await;
    stack.apply(&stack.write_pipe_of("shop", &TABLES, &settings("{zone: b}"))).await;
    stack.wait("the stream to move", async || holders(&stack).await == ["far"]).await;
    churn.stop().await;
    stack.caught_up("shop").await;
    assert_all_equal(&stack).await;

    let refused = stack.run(&["worker", "--labels", "zone", "--id", "odd"]).await;
    assert_eq!(refused.status.code(), Some(2));
    let refused = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.contains("'zone' is not a label"), "{refused}");
}
