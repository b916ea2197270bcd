//! A span for every RPC that a server answers.
//!
//! The span follows OpenTelemetry's conventions for RPC and gRPC: named `package.Service/Method`, of kind server, with
//! `rpc.system`, `rpc.service`, `rpc.method` and in the end `rpc.grpc.status_code`. It lasts until the last message
//! has left, so a stream's span is as long as the stream. Where a gRPC status stands depends on when it is known: in
//! the headers of an answer without a body, else in the trailers after it; a caller who leaves first gets neither.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::trace::Status as SpanStatus;
use pin_project_lite::pin_project;
use tonic::Code;
use tower::{Layer, Service};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::propagation::set_parent_from_headers;

/// Asked every few seconds by whoever watches the process; its spans are of level debug and so not exported.
const HEALTH_SERVICE: &str = "grpc.health.v1.Health";

/// For `tonic::transport::Server::builder().layer(..)`: gives every RPC its span, continuing the caller's trace.
pub fn server_layer() -> TracingLayer {
    TracingLayer(())
}

/// Made by [`server_layer`].
#[derive(Debug, Clone, Copy)]
pub struct TracingLayer(());

impl<S> Layer<S> for TracingLayer {
    type Service = TracedServer<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TracedServer { inner }
    }
}

/// A server within [`server_layer`].
#[derive(Debug, Clone)]
pub struct TracedServer<S> {
    inner: S,
}

impl<S, RequestBody, ResponseBody> Service<Request<RequestBody>> for TracedServer<S>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>>,
{
    type Response = Response<TracedBody<ResponseBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let span = server_span(request.uri().path());
        set_parent_from_headers(&span, request.headers());
        span.set_attribute("rpc.system", "grpc");
        let inner = span.in_scope(|| self.inner.call(request));
        ResponseFuture { inner, outcome: Outcome::awaited(span) }
    }
}

fn server_span(path: &str) -> Span {
    let name = path.trim_start_matches('/');
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    if service == HEALTH_SERVICE {
        tracing::debug_span!(
            "rpc",
            otel.name = name,
            otel.kind = "server",
            rpc.service = service,
            rpc.method = method
        )
    } else {
        tracing::info_span!(
            "rpc",
            otel.name = name,
            otel.kind = "server",
            rpc.service = service,
            rpc.method = method
        )
    }
}

/// The span of one RPC, and whether its status is known yet.
#[derive(Debug)]
struct Outcome {
    span: Span,
    known: bool,
}

impl Outcome {
    fn awaited(span: Span) -> Self {
        Self { span, known: false }
    }

    /// Takes the status from headers or trailers, if they have one.
    fn read(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.record(Code::from_bytes(code.as_bytes()));
        }
    }

    fn record(&mut self, code: Code) {
        if !self.known {
            self.known = true;
            self.span.set_attribute("rpc.grpc.status_code", i64::from(code as i32));
            if is_server_error(code) {
                self.span.set_status(SpanStatus::error(code.description()));
            }
        }
    }

    /// Hands the rest of the RPC over to another owner; what stays behind says nothing more.
    fn pass_on(&mut self) -> Self {
        let passed = Self { span: self.span.clone(), known: self.known };
        self.known = true;
        passed
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        // Dropped before its status was known: the caller went away, or its deadline did.
        self.record(Code::Cancelled);
    }
}

/// Which statuses say that the server failed, rather than answered; from OpenTelemetry's conventions for gRPC.
fn is_server_error(code: Code) -> bool {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    }
}

pin_project! {
    /// The answer of a [`TracedServer`] on its way.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        outcome: Outcome,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<TracedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.outcome.span.enter();
        let answer = ready!(this.inner.poll(cx));
        drop(entered);
        Poll::Ready(match answer {
            Ok(response) => {
                this.outcome.read(response.headers());
                let outcome = this.outcome.pass_on();
                Ok(response.map(|inner| TracedBody { inner, outcome }))
            }
            Err(error) => {
                this.outcome.record(Code::Unknown);
                Err(error)
            }
        })
    }
}

pin_project! {
    /// The messages of an answer; its span ends with them.
    #[derive(Debug)]
    pub struct TracedBody<B> {
        #[pin]
        inner: B,
        outcome: Outcome,
    }
}

impl<B: Body> Body for TracedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let entered = this.outcome.span.enter();
        let frame = ready!(this.inner.poll_frame(cx));
        drop(entered);
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.outcome.read(trailers);
                }
            }
            Some(Err(_)) => this.outcome.record(Code::Unknown),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
