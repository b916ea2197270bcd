//! A coordinator that follows another one passes users' calls on to it, so that users need not know who leads.
//!
//! Calls are passed on as they are, bodies as streams, trailers included. One hop only: a call that was passed on already is not passed on again, so that two coordinators
//! which take each other for the leader do not play ball. Workers are not served through a follower; they are told where to go ([`crate::worker_service`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::transport::{Channel, Endpoint};
use tower::{Layer, Service};

use crate::leadership::Offices;

/// Services that users call.
const USERS: &str = "/millrace.pipe.v1.";

/// Marks a call that a follower has passed on.
const HOP: &str = "millrace-forwarded";

/// How long a leader may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// Wraps the services of a coordinator.
#[derive(Clone)]
pub(crate) struct ForwardLayer {
    offices: Offices,
    /// To the leader that was followed last.
    channel: Arc<Mutex<Option<(String, Channel)>>>,
}

impl ForwardLayer {
    pub(crate) fn new(offices: Offices) -> Self {
        Self { offices, channel: Arc::default() }
    }

    fn channel(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let mut kept = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((known, channel)) if known == address => Ok(channel.clone()),
            _ => {
                let channel = Endpoint::from_shared(address.to_owned())?
                    .connect_timeout(CONNECT)
                    .http2_keep_alive_interval(Duration::from_secs(5))
                    .keep_alive_timeout(Duration::from_secs(5))
                    .tcp_nodelay(true)
                    .connect_lazy();
                *kept = Some((address.to_owned(), channel.clone()));
                Ok(channel)
            }
        }
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward { inner, layer: self.clone() }
    }
}

/// Answers a call here or at the leader.
#[derive(Clone)]
pub(crate) struct Forward<S> {
    inner: S,
    layer: ForwardLayer,
}

impl<S> Service<Request<Body>> for Forward<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(address) = self.layer.offices.followed().filter(|_| request.uri().path().starts_with(USERS))
        else {
            return Box::pin(self.inner.call(request));
        };
        let passed_on = request.headers_mut().insert(HOP, HeaderValue::from_static("1")).is_some();
        let channel = self.layer.channel(&address);
        Box::pin(async move {
            let nobody = || Ok(millrace_api::status::no_leader().into_http());
            let (Ok(mut channel), false) = (channel, passed_on) else { return nobody() };
            if std::future::poll_fn(|context| channel.poll_ready(context)).await.is_err() {
                return nobody();
            }
            match channel.call(request).await {
                Ok(response) => Ok(response),
                Err(error) => {
                    tracing::debug!(leader = %address, %error, "the leader does not answer");
                    nobody()
                }
            }
        })
    }
}
