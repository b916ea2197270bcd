//! A coordinator as a component: configuration in, services out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_api::proto;
use millrace_api::proto::pipe::v1::fleet_service_server::FleetServiceServer;
use millrace_api::proto::pipe::v1::pipe_service_server::PipeServiceServer;
use millrace_api::proto::worker::v1::worker_service_server::WorkerServiceServer;
use millrace_catalog::{Candidate, Catalog, CatalogError};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::fleet_service::Fleet;
use crate::forward::ForwardLayer;
use crate::leadership::{self, Offices};
use crate::metrics;
use crate::pipe_service::Pipes;
use crate::reconciler::Rhythm;
use crate::worker_service::Workers;

/// How a coordinator behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often workers give a sign of life.
    pub heartbeat: Duration,
    /// Without a sign of life for so long a worker's work is given to others; several heartbeats.
    pub lease: Duration,
    /// How long a caller waits for a worker to look at source and destination.
    pub inspection: Duration,
    /// For how long a coordinator leads without renewing that: so long nobody leads after it was killed.
    pub leadership: Duration,
    /// Where other coordinators and workers reach this one, `http://host:port`; the address that it listens on where nothing is said.
    pub advertise: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            inspection: Duration::from_secs(30),
            leadership: Duration::from_secs(8),
            advertise: None,
        }
    }
}

/// Why a coordinator could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the catalog holds cannot be understood.
    #[error("cannot load the catalog")]
    Load(#[source] CatalogError),
    /// The reflection service cannot be built; a fault of the build.
    #[error("cannot build the reflection service")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The listener failed.
    #[error("cannot serve on {address}")]
    Serve {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The listener's address cannot be told.
    #[error("the listening socket is unusable")]
    Socket(#[source] std::io::Error),
}

/// A coordinator.
#[derive(Debug)]
pub struct Coordinator<C> {
    config: Config,
    catalog: C,
    listener: TcpListener,
}

impl<C: Catalog> Coordinator<C> {
    /// A coordinator on a catalog that serves on a listening socket.
    pub fn new(config: Config, catalog: C, listener: TcpListener) -> Self {
        Self { config, catalog, listener }
    }

    /// Serves until cancelled.
    ///
    /// # Errors
    /// The catalog cannot be loaded or the socket cannot be served.
    pub async fn run(self, cancelled: CancellationToken) -> Result<(), Error> {
        let address = self.listener.local_addr().map_err(Error::Socket)?;
        let catalog = Arc::new(self.catalog);
        let rhythm = Rhythm { heartbeat: self.config.heartbeat, lease: self.config.lease };
        let candidate = Candidate {
            id: format!("{:016x}", rand::random::<u64>()),
            address: self.config.advertise.unwrap_or_else(|| format!("http://{address}")),
        };
        let (office, offices) = Offices::new();
        metrics::measure(&offices);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<PipeServiceServer<Pipes<C>>>().await;
        health.set_serving::<FleetServiceServer<Fleet>>().await;
        health.set_serving::<WorkerServiceServer<Workers>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(Error::Reflection)?;

        // Open streams (watchers, workers) end with this token, or the server would wait for them for ever.
        let closing = cancelled.child_token();
        let pipes = Pipes::new(offices.clone(), catalog.clone(), self.config.inspection, closing.clone());
        let workers = Workers::new(offices.clone(), closing);
        let lease = self.config.leadership;
        let serving = async {
            // Callers wait in the listener's queue meanwhile, rather than be told that nobody leads; but not for ever.
            let mut settling = offices.clone();
            let _ = tokio::time::timeout(lease, settling.settled()).await;
            tonic::transport::Server::builder()
                .layer(millrace_telemetry::server_layer())
                .layer(ForwardLayer::new(offices.clone()))
                .http2_keepalive_interval(Some(Duration::from_secs(5)))
                .http2_keepalive_timeout(Some(Duration::from_secs(5)))
                .tcp_nodelay(true)
                .add_service(health_service)
                .add_service(reflection)
                .add_service(PipeServiceServer::new(pipes))
                .add_service(FleetServiceServer::new(Fleet::new(offices)))
                .add_service(WorkerServiceServer::new(workers))
                .serve_with_incoming_shutdown(
                    TcpListenerStream::new(self.listener),
                    cancelled.clone().cancelled_owned(),
                )
                .await
                .map_err(|source| Error::Serve { address, source })
        };
        let election = async {
            let campaigned =
                leadership::run(catalog, candidate, lease, rhythm, office, cancelled.clone()).await;
            campaigned.map_err(Error::Load)
        };
        tokio::try_join!(serving, election)?;
        Ok(())
    }
}
