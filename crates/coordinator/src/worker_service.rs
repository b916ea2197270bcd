//! The workers' side of the coordinator: one stream a worker, see `proto/millrace/worker/v1/worker_service.proto`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use millrace_api::proto::worker::v1 as wire;
use millrace_api::proto::worker::v1::worker_service_server::WorkerService;
use millrace_api::status;
use millrace_api::worker::{CoordinatorMessage, WorkerMessage};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::input::Input;
use crate::leadership::Offices;
use crate::refused::Refused;
use crate::release;
use crate::session::SessionId;

/// Messages to a worker that may wait; one that takes none is disconnected.
const OUTBOUND: usize = 1024;

/// Bytes of one worker's messages that may wait to be taken; one that floods waits for itself.
const INBOUND: u32 = 8 << 20;

/// A worker that has not introduced itself for so long is none.
const INTRODUCTION: Duration = Duration::from_secs(10);

pub(crate) struct Workers {
    offices: Offices,
    closing: CancellationToken,
}

impl Workers {
    pub(crate) fn new(offices: Offices, closing: CancellationToken) -> Self {
        Self { offices, closing }
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<wire::ConnectResponse, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<wire::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let lead = self.offices.lead()?;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(INTRODUCTION, inbound.message())
            .await
            .map_err(|_| Refused::OutOfTurn.status("nothing was said"))?
            .map_err(|error| Refused::Malformed.status(error.message()))?
            .ok_or_else(|| Refused::OutOfTurn.status("the stream began with nothing"))?;
        let hello = match WorkerMessage::try_from(first) {
            Ok(WorkerMessage::Hello(hello)) => hello,
            Ok(_) => {
                return Err(Refused::OutOfTurn.status("a worker introduces itself first: Hello was expected"));
            }
            Err(error) => return Err(Refused::Malformed.status(error.to_string())),
        };
        if !release::work_together(release::OURS, &hello.version) {
            return Err(Refused::Version.status(format!(
                "worker '{}' is of release '{}', the coordinator of {}",
                hello.worker,
                hello.version.escape_debug(),
                release::OURS
            )));
        }
        let (outbound, messages) = mpsc::channel::<CoordinatorMessage>(OUTBOUND);
        let (reply, answer) = oneshot::channel();
        let gone = status::no_leader;
        lead.inputs.send(Input::Connected { hello, outbound, reply }).await.map_err(|_| gone())?;
        let session = answer
            .await
            .map_err(|_| gone())?
            .map_err(|refusal| Refused::IdTaken.status(refusal.to_string()))?;
        // Ends when the worker hangs up, when it breaks the protocol, when another coordinator leads, or when this one stops.
        let closing = self.closing.child_token();
        tokio::spawn(listen(inbound, session, lead.inputs, lead.over.clone(), closing.clone()));
        let outbound = ReceiverStream::new(messages).map(|message| Ok(wire::ConnectResponse::from(&message)));
        let over = async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = lead.over.cancelled() => {}
            }
        };
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(outbound, Box::pin(over)))))
    }
}

/// Passes on what a worker says until it stops talking.
async fn listen(
    mut inbound: Streaming<wire::ConnectRequest>,
    session: SessionId,
    inputs: mpsc::Sender<Input>,
    over: CancellationToken,
    closing: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(INBOUND as usize));
    loop {
        let message = tokio::select! {
            () = closing.cancelled() => break,
            () = over.cancelled() => return,
            message = inbound.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(status) => {
                // Not one that ends with its connection.
                if matches!(status.code(), Code::Internal | Code::OutOfRange | Code::ResourceExhausted) {
                    Refused::Malformed.count();
                    tracing::warn!(
                        session = session.0,
                        error = status.message(),
                        "a worker sent what cannot be decoded; its session is closed"
                    );
                }
                break;
            }
        };
        let size = u32::try_from(message.encoded_len()).unwrap_or(INBOUND).min(INBOUND);
        let room = tokio::select! {
            () = closing.cancelled() => break,
            () = over.cancelled() => return,
            room = room.clone().acquire_many_owned(size) => room,
        };
        let Ok(room) = room else { break };
        match WorkerMessage::try_from(message) {
            Ok(message) => {
                let message = Box::new(message);
                if inputs.send(Input::Message { session, message, room }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                Refused::Malformed.count();
                tracing::warn!(session = session.0, %error, "a worker sent what is no message of this protocol; its session is closed");
                break;
            }
        }
    }
    // When nobody listens any more the coordinator is gone, and the session with it.
    let _ = inputs.send(Input::Disconnected { session }).await;
}
