//! Several coordinators on one catalog in PostgreSQL.

use serde_json::Value;

use crate::load::{Churn, SETTINGS, TABLES, assert_all_equal, sample_tables};
use crate::stack::{Process, Stack, free_port, signal};

const ROWS: u32 = 5_000;

/// Two coordinators, of which the first leads; commands go to the second. A pipe is running, and its source is changing.
struct Pair {
    stack: Stack,
    /// The one that leads at first, and where it is reached.
    first: Process,
    first_address: String,
    second: Process,
    churn: Churn,
}

impl Pair {
    async fn running() -> Self {
        let mut stack = Stack::servers().await;
        let source = stack.source().await;
        source.batch_execute("CREATE DATABASE catalog").await.unwrap();
        let first_address = format!("http://127.0.0.1:{}", free_port());
        let first = coordinator(&stack, "first", &first_address).await;
        let second = coordinator(&stack, "second", &stack.address()).await;
        // Dialled in turn; the second one tells them who leads.
        let both = format!("{},{first_address}", stack.address());
        for id in ["one", "two"] {
            stack.start_worker_with(id, &["--coordinator", &both]).await;
        }
        sample_tables(&source, ROWS).await;
        // Through the one that follows.
        stack.apply(&stack.write_pipe_of("shop", &TABLES, SETTINGS)).await;
        stack.wait_for("shop", "Running").await;
        let churn = Churn::start(&stack, ROWS).await;
        stack.caught_up("shop").await;
        Self { stack, first, first_address, second, churn }
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.stack.folder.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    async fn second_leads(&self) {
        self.stack
            .wait("the second one to lead", async || self.log("coordinator-second").contains("leads term="))
            .await;
        self.stack
            .wait("the workers to come over", async || {
                let workers = self.stack.json(&["worker", "list"]).await;
                let workers = workers["workers"].as_array().cloned().unwrap_or_default();
                workers.iter().filter(|worker| worker["state"] == "WORKER_STATE_CONNECTED").count() == 2
            })
            .await;
    }

    /// How often a worker has begun to stream.
    fn streams_begun(&self) -> usize {
        ["worker-one", "worker-two"]
            .iter()
            .map(|worker| self.log(worker).matches("streaming slot=").count())
            .sum()
    }

    /// What the first coordinator says about the pipe; null while it says nothing.
    async fn at_first(&self) -> Value {
        let arguments = ["pipe", "get", "shop", "--address", &self.first_address];
        self.stack.json(&arguments).await["pipe"].clone()
    }

    async fn ends_equal(self) {
        self.stack.wait_for("shop", "Running").await;
        self.churn.stop().await;
        self.stack.caught_up("shop").await;
        assert_all_equal(&self.stack).await;
    }
}

async fn coordinator(stack: &Stack, name: &str, address: &str) -> Process {
    let catalog = format!(
        "postgresql://{}:{}@{}:{}/catalog",
        stack.postgres.user(),
        stack.postgres.password(),
        stack.postgres.host(),
        stack.postgres.port()
    );
    let listen = address.trim_start_matches("http://");
    stack
        .start_process(
            &format!("coordinator-{name}"),
            &["coordinator", "--listen", listen, "--catalog", &catalog],
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_and_streams_do_not_notice() {
    let mut pair = Pair::running().await;
    assert!(pair.log("coordinator-second").contains("another coordinator leads"));
    let assignments = pair.stack.get("shop").await["status"]["assignments"].clone();
    assert_eq!(pair.streams_begun(), 1);
    pair.first.kill().await;
    pair.second_leads().await;
    pair.stack.caught_up("shop").await;
    assert_eq!(pair.stack.get("shop").await["status"]["assignments"], assignments);
    assert_eq!(pair.streams_begun(), 1, "the stream went on under its assignment");

    // The life cycle goes on where it was, and the one that comes back follows.
    pair.stack.ok(&["pipe", "pause", "shop"]).await;
    pair.stack.wait_for("shop", "Paused").await;
    pair.first.start_again().await;
    pair.stack
        .wait("the first one to follow", async || {
            pair.at_first().await["status"]["state"] == "PIPE_STATE_PAUSED"
        })
        .await;
    pair.stack.ok(&["pipe", "resume", "shop", "--address", &pair.first_address]).await;
    // Both are replaced one after the other, as a rollout does.
    assert!(pair.second.leave().await);
    pair.second.start_again().await;
    pair.stack.wait("it to answer again", async || pair.stack.get("shop").await.is_object()).await;
    assert!(pair.first.leave().await);
    pair.first.start_again().await;
    pair.ends_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_beyond_its_lease_can_do_no_harm() {
    let pair = Pair::running().await;
    signal("-STOP", &pair.first.id()).await;
    pair.second_leads().await;
    // Decided without it.
    pair.stack.ok(&["pipe", "pause", "shop"]).await;
    pair.stack.wait_for("shop", "Paused").await;
    let before = pair.stack.json(&["pipe", "events", "shop"]).await;
    signal("-CONT", &pair.first.id()).await;
    // It still believes in a pipe that runs, but says so to nobody: its first answer is the new leader's.
    let answered = std::cell::RefCell::new(Value::Null);
    pair.stack
        .wait("the first one to answer", async || {
            let answer = pair.at_first().await;
            let is_one = answer.is_object();
            *answered.borrow_mut() = answer;
            is_one
        })
        .await;
    assert_eq!(answered.borrow()["status"]["state"], "PIPE_STATE_PAUSED");
    assert_eq!(pair.stack.json(&["pipe", "events", "shop"]).await, before, "it stored nothing");
    pair.stack.ok(&["pipe", "resume", "shop", "--address", &pair.first_address]).await;
    pair.ends_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_drained_stays_so_under_the_next_leader() {
    let mut pair = Pair::running().await;
    pair.stack.ok(&["worker", "drain", "one"]).await;
    let state = async |pair: &Pair| {
        let workers = pair.stack.json(&["worker", "list"]).await;
        let workers = workers["workers"].as_array().cloned().unwrap_or_default();
        let one = workers.iter().find(|worker| worker["id"] == "one").cloned().unwrap_or_default();
        one["state"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(state(&pair).await, "WORKER_STATE_DRAINING");
    pair.first.kill().await;
    pair.stack.wait("it to be drained still", async || state(&pair).await == "WORKER_STATE_DRAINING").await;
    assert!(pair.log("coordinator-second").contains("leads term="));
    // Nobody takes what the other one held.
    pair.stack.fleet.workers[1].kill().await;
    pair.stack
        .wait("the pipe to say that nobody takes its stream", async || {
            let shown = pair.stack.get("shop").await;
            shown["status"]["next"].as_str().unwrap_or_default().contains("busy or leaving")
        })
        .await;
    pair.stack.ok(&["worker", "drain", "one", "--undo"]).await;
    pair.stack.wait("it to take work", async || state(&pair).await == "WORKER_STATE_CONNECTED").await;
    pair.ends_equal().await;
}
