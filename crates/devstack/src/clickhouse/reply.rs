//! The answer to a request, written by the thread that runs the query and sent by the connection's task.
//!
//! Nothing is sent before the first bytes are there, so an error before them gets a status of its own. After them it
//! becomes the tail that [`Exception::tail`] describes. The channel between the two sides is bounded: a client that
//! does not read holds up the query.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::{mpsc, oneshot};

use super::compression::{Encoder, Encoding};
use super::exception::Exception;
use crate::foreign::Counts;

/// How many pieces may wait for the client.
const WAITING: usize = 2;

/// What is known when the answer begins.
pub(crate) struct Head {
    pub(crate) format: String,
    pub(crate) counts: Counts,
}

enum Piece {
    Data(Bytes),
    End,
}

/// The client has gone; nobody waits for the rest.
#[derive(Debug)]
pub(crate) struct Gone;

/// The writing side.
pub(crate) struct Reply {
    head: Option<oneshot::Sender<Result<Head, Exception>>>,
    /// What `begin` was given, held back while everything is.
    begun: Option<Head>,
    /// Pieces held back until the end, if they are to be.
    held: Option<Vec<Bytes>>,
    body: mpsc::Sender<Piece>,
    encoder: Encoder,
    tag: String,
    version: String,
}

/// The reading side.
pub(crate) struct Answer {
    /// Resolves when the answer begins.
    pub(crate) head: oneshot::Receiver<Result<Head, Exception>>,
    /// What follows.
    pub(crate) body: ReplyBody,
}

impl Reply {
    /// Both sides. `tag` marks an exception after the beginning; `wait_end` holds everything back until the end.
    pub(crate) fn new(encoding: Encoding, wait_end: bool, tag: String, version: String) -> (Self, Answer) {
        let (head_sender, head) = oneshot::channel();
        let (sender, receiver) = mpsc::channel(WAITING);
        let reply = Self {
            head: Some(head_sender),
            begun: None,
            held: wait_end.then(Vec::new),
            body: sender,
            encoder: Encoder::new(encoding),
            tag,
            version,
        };
        (reply, Answer { head, body: ReplyBody { receiver, ended: false } })
    }

    /// Begins the answer.
    pub(crate) fn begin(&mut self, head: Head) -> Result<(), Gone> {
        self.begun = Some(head);
        if self.held.is_none() { self.release() } else { Ok(()) }
    }

    /// Goes on with it.
    pub(crate) fn write(&mut self, data: Bytes) -> Result<(), Gone> {
        match &mut self.held {
            Some(held) => {
                held.push(data);
                Ok(())
            }
            None => self.send(data),
        }
    }

    /// Ends it well.
    pub(crate) fn end(mut self) -> Result<(), Gone> {
        if let Some(held) = self.held.take() {
            self.release()?;
            held.into_iter().try_for_each(|data| self.send(data))?;
        }
        self.close()
    }

    /// Ends it with an error.
    pub(crate) fn fail(mut self, exception: Exception) -> Result<(), Gone> {
        match self.head.take() {
            Some(head) => head.send(Err(exception)).map_err(|_| Gone),
            None => {
                let tail = exception.tail(&self.version, &self.tag);
                self.send(tail.into())?;
                self.close()
            }
        }
    }

    fn release(&mut self) -> Result<(), Gone> {
        match (self.head.take(), self.begun.take()) {
            (Some(sender), Some(head)) => sender.send(Ok(head)).map_err(|_| Gone),
            _ => Ok(()),
        }
    }

    fn send(&mut self, data: Bytes) -> Result<(), Gone> {
        let encoded = self.encoder.encode(data);
        if encoded.is_empty() {
            return Ok(());
        }
        self.body.blocking_send(Piece::Data(encoded)).map_err(|_| Gone)
    }

    fn close(self) -> Result<(), Gone> {
        let rest = self.encoder.finish();
        if !rest.is_empty() {
            self.body.blocking_send(Piece::Data(rest)).map_err(|_| Gone)?;
        }
        self.body.blocking_send(Piece::End).map_err(|_| Gone)
    }
}

/// The body of a response.
pub(crate) struct ReplyBody {
    receiver: mpsc::Receiver<Piece>,
    ended: bool,
}

impl ReplyBody {
    /// Whether all of it was read.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.receiver.poll_recv(cx) {
            Poll::Ready(Some(Piece::Data(data))) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Poll::Ready(Some(Piece::End)) => {
                self.ended = true;
                Poll::Ready(None)
            }
            // Without its end an answer must not look complete: the error breaks the connection.
            Poll::Ready(None) => Poll::Ready(Some(Err(io::Error::other("the query's thread is gone")))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.poll_piece(cx)
    }
}
