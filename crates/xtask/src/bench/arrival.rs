//! Waiting until rows can be seen in ClickHouse.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::testbed::Testbed;

/// How often it is looked: often enough for times of seconds, seldom enough to cost ClickHouse little.
const LOOK: Duration = Duration::from_millis(20);
/// How long nothing may move.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until the query answers at least `goal`; gives when the look that found it began, since everything was visible by then: how long that look itself took is no time that anybody
/// waited for.
///
/// # Errors
/// The number has not grown for five minutes.
pub(super) async fn until(testbed: &Testbed, sql: &str, goal: u64) -> anyhow::Result<Instant> {
    let (mut last, mut moved) = (None, Instant::now());
    loop {
        let began = Instant::now();
        let seen = match testbed.number(sql).await {
            Ok(seen) if seen >= goal => return Ok(began),
            Ok(seen) => Some(seen),
            // A table that is still being made cannot be read yet.
            Err(_) if moved.elapsed() < PATIENCE => None,
            Err(error) => return Err(error),
        };
        if seen != last {
            (last, moved) = (seen, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            bail!("{seen:?} of {goal} arrived, and nothing moved for five minutes: {sql}");
        }
        tokio::time::sleep(LOOK).await;
    }
}
