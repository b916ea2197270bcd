//! Looks at the destination all the time: rows may only take legal steps, and it must get on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::workload::CYCLE;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// What was seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// What may never be.
    pub(crate) illegal: Vec<String>,
    /// The longest time in which nothing new became visible.
    pub(crate) longest_stall: Duration,
    /// Looks that were answered.
    pub(crate) looks: u64,
}

/// A watcher at work.
pub(crate) struct Watcher {
    goes_on: watch::Sender<bool>,
    watching: JoinHandle<Seen>,
}

impl Watcher {
    pub(crate) fn start(destination: clickhouse::Client) -> Self {
        let (goes_on, follow) = watch::channel(true);
        Self { goes_on, watching: tokio::spawn(watch_it(destination, follow)) }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<Seen> {
        self.goes_on.send_replace(false);
        Ok(self.watching.await?)
    }
}

async fn watch_it(destination: clickhouse::Client, goes_on: watch::Receiver<bool>) -> Seen {
    let mut seen = Seen::default();
    let mut steps: HashMap<i64, i64> = HashMap::new();
    let (mut beat, mut moved) = (-1, Instant::now());
    while *goes_on.borrow() {
        tokio::time::sleep(PAUSE).await;
        let sql = "SELECT max(beat) FROM mirror.pulse FINAL";
        let Ok(now) = destination.query(sql).fetch_one::<i64>().await else {
            seen.longest_stall = seen.longest_stall.max(moved.elapsed());
            continue;
        };
        seen.looks += 1;
        seen.longest_stall = seen.longest_stall.max(moved.elapsed());
        if now != beat {
            if now < beat {
                seen.illegal.push(format!("the pulse went back from {beat} to {now}"));
            }
            (beat, moved) = (now, Instant::now());
        }
        let sql = "SELECT id, step, state FROM mirror.walk FINAL WHERE _millrace_is_deleted = 0";
        let Ok(rows) = destination.query(sql).fetch_all::<(i64, i64, String)>().await else { continue };
        for (id, step, state) in rows {
            let legal = usize::try_from(step).ok().map(|step| CYCLE[step % CYCLE.len()]);
            if legal != Some(state.as_str()) {
                seen.illegal.push(format!("row {id} is {state} at step {step}"));
            }
            if let Some(before) = steps.insert(id, step)
                && before > step
            {
                seen.illegal.push(format!("row {id} went back from step {before} to {step}"));
            }
        }
        seen.illegal.truncate(100);
    }
    seen
}
