//! Following a pipe, also over a coordinator that goes away for a while.

use std::time::Duration;

use millrace_api::ApiError;
use millrace_api::client::Clients;
use millrace_api::proto::pipe::v1 as wire;
use tokio::time::{Instant, sleep};
use tonic::{Code, Streaming};

/// Pause before the first new try; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a coordinator may be away.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pipe's updates, each event once and in order.
pub(crate) struct Watcher {
    clients: Clients,
    name: String,
    stream: Option<Streaming<wire::WatchPipeResponse>>,
    last_event: u64,
    seen: bool,
}

impl Watcher {
    pub(crate) fn new(clients: Clients, name: &str) -> Self {
        Self { clients, name: name.to_owned(), stream: None, last_event: 0, seen: false }
    }

    /// The next update, the first at once; `None` once the pipe is gone. A pipe that never was is an error.
    ///
    /// Dropping the future loses no update: the next call goes on behind the last event that was returned.
    pub(crate) async fn next(&mut self) -> Result<Option<wire::WatchPipeResponse>, ApiError> {
        let mut lost: Option<Instant> = None;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.attempt().await {
                Ok(Some(update)) => return Ok(Some(update)),
                // The stream ends when the pipe is gone, and when a coordinator stops: asking again tells which.
                Ok(None) => {}
                Err(error) if error.code == Code::NotFound && self.seen => return Ok(None),
                Err(error) if is_passing(error.code) && self.seen => {
                    if lost.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            self.stream = None;
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&mut self) -> Result<Option<wire::WatchPipeResponse>, ApiError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.open().await?;
                self.stream.insert(stream)
            }
        };
        let Some(mut update) = stream.message().await? else { return Ok(None) };
        update.events.retain(|event| event.id > self.last_event);
        self.last_event = update.events.last().map_or(self.last_event, |event| event.id);
        self.seen = true;
        Ok(Some(update))
    }

    async fn open(&mut self) -> Result<Streaming<wire::WatchPipeResponse>, ApiError> {
        let request = wire::WatchPipeRequest { name: self.name.clone(), after_event_id: self.last_event };
        Ok(self.clients.pipes.watch_pipe(request).await?.into_inner())
    }
}

/// Whether the connection failed rather than the call: the coordinator may be restarting.
fn is_passing(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}
