//! Who may write into tables that keep every row: the stream whose session at the source still stands.
//!
//! A worker that is cut off from its coordinator, or was stopped and wakes up, has rows in hand that its successor reads from the slot as well. In a ReplacingMergeTree that does no harm. In a table
//! that keeps every row it must not insert them any more once the successor has looked which rows are there. So a stream into such tables holds a session at the source, its **claim**; the successor
//! ends all claims before its own, gives what had passed them a moment to reach the destination, waits until ClickHouse is done with it, and only then looks. And each insert asks by its claim first,
//! within a moment. See decision 0010.

use std::time::Duration;

use millrace_model::{Epoch, PipeId, Problem};
use millrace_postgres::{Session, classify};
use tokio::time::{Instant, sleep, timeout};

/// From asking to sending; a process that was stopped in between asks again.
const MOMENT: Duration = Duration::from_millis(500);
/// What had asked before its claim was ended has been sent by then, and is seen at the destination.
const GRACE: Duration = Duration::from_millis(1_500);
/// How long the source may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The code of a claim that was ended.
pub(super) const CLAIM_LOST: &str = "STREAM_CLAIM_LOST";

/// A session that a successor ends.
pub(super) struct Claim {
    session: Session,
}

impl Claim {
    /// Ends the claims of all streams of this pipe before and takes one of its own.
    ///
    /// # Errors
    /// The source does not answer, or the role may not end its own sessions.
    pub(super) async fn take(
        source: &millrace_model::spec::PostgresSource,
        pipe: &PipeId,
        epoch: Epoch,
    ) -> Result<Self, Vec<Problem>> {
        let failed = |error: millrace_postgres::Error| vec![classify(&error)];
        let prefix = format!("millrace-claim {pipe} ");
        let session = Session::connect(source, &format!("{prefix}{epoch}")).await.map_err(failed)?;
        session.end_sessions_named(&prefix).await.map_err(failed)?;
        sleep(GRACE).await;
        Ok(Self { session })
    }

    /// Answers within a moment before the caller goes on that the claim stood.
    ///
    /// # Errors
    /// It was ended, or the source does not say.
    pub(super) async fn stands(&self) -> Result<(), Problem> {
        loop {
            let asked = Instant::now();
            match timeout(ANSWER, self.session.ping()).await {
                Ok(Ok(())) if asked.elapsed() < MOMENT => return Ok(()),
                // It was long ago that it stood, by the time that this is read.
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(lost(&classify(&error).message)),
                Err(_) => return Err(lost("the source does not answer")),
            }
        }
    }
}

fn lost(reason: &str) -> Problem {
    let message = format!(
        "the stream cannot be sure that it is still the one to write ({reason}), and a table that keeps every row must not be written twice"
    );
    Problem::transient(CLAIM_LOST, message, "it is opened again by itself")
}
