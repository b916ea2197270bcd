//! Dialling a coordinator.

use std::error::Error;
use std::time::Duration;

use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::proto::pipe::v1::fleet_service_client::FleetServiceClient;
use crate::proto::pipe::v1::pipe_service_client::PipeServiceClient;
use crate::proto::worker::v1::worker_service_client::WorkerServiceClient;

/// Where a coordinator listens unless it is told otherwise.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:7400";

/// Time for a connection to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a sign of life after which the connection is asked for one, and then given up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Sees every request before it is sent; where the trace context goes into the metadata.
pub type Interceptor = fn(Request<()>) -> Result<Request<()>, Status>;

/// A connection with its interceptor.
pub type Connection = InterceptedService<Channel, Interceptor>;

/// The services that users call, over one connection. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Pipes.
    pub pipes: PipeServiceClient<Connection>,
    /// Workers.
    pub fleet: FleetServiceClient<Connection>,
}

/// No connection to a coordinator could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one.
    #[error("'{address}' is not an address; expected http://host:port, as in {DEFAULT_ADDRESS}")]
    Address {
        /// As given.
        address: String,
    },
    /// HTTPS was asked for.
    #[error("'{address}' asks for TLS, which this release does not speak; use http://")]
    Tls {
        /// As given.
        address: String,
    },
    /// Nobody answers there.
    #[error("no coordinator answers at {address} ({reason})")]
    Unreachable {
        /// As given.
        address: String,
        /// The cause at the bottom, as the system tells it.
        reason: String,
        /// The error in full.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to a coordinator.
pub async fn connect(address: &str) -> Result<Clients, ConnectError> {
    connect_with(address, Ok).await
}

/// Connects to a coordinator; `interceptor` sees every request.
pub async fn connect_with(address: &str, interceptor: Interceptor) -> Result<Clients, ConnectError> {
    let connection = InterceptedService::new(dial(address).await?, interceptor);
    Ok(Clients {
        pipes: PipeServiceClient::new(connection.clone()),
        fleet: FleetServiceClient::new(connection),
    })
}

/// Connects a worker to its coordinator; `interceptor` sees the request that opens the stream.
pub async fn connect_worker(
    address: &str,
    interceptor: Interceptor,
) -> Result<WorkerServiceClient<Connection>, ConnectError> {
    Ok(WorkerServiceClient::new(InterceptedService::new(dial(address).await?, interceptor)))
}

/// Opens the connection, so that an unreachable coordinator is told at once and not by the first call.
pub async fn dial(address: &str) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(address)?;
    endpoint.connect().await.map_err(|source| ConnectError::Unreachable {
        address: address.to_owned(),
        reason: bottom(&source),
        source,
    })
}

fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    let refused = || ConnectError::Address { address: address.to_owned() };
    let url = url::Url::parse(address).map_err(|_| refused())?;
    match url.scheme() {
        "http" if url.has_host() => {}
        "https" => return Err(ConnectError::Tls { address: address.to_owned() }),
        _ => return Err(refused()),
    }
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| refused())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

/// The last cause of an error: `transport error` alone helps nobody.
fn bottom(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
