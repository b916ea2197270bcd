//! A coordinator as a component: configuration in, services out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_api::proto;
use millrace_api::proto::pipe::v1::fleet_service_server::FleetServiceServer;
use millrace_api::proto::pipe::v1::pipe_service_server::PipeServiceServer;
use millrace_api::proto::worker::v1::worker_service_server::WorkerServiceServer;
use millrace_catalog::{Candidate, Catalog, CatalogError, Standing};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::fleet_service::Fleet;
use crate::pipe_service::Pipes;
use crate::reconciler::{Reconciler, Rhythm};
use crate::worker_service::Workers;

/// Inputs that may wait for the reconciler; whoever finds no room waits.
const QUEUE: usize = 4096;

/// How a coordinator behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often workers give a sign of life.
    pub heartbeat: Duration,
    /// Without a sign of life for so long a worker's work is given to others; several heartbeats.
    pub lease: Duration,
    /// How long a caller waits for a worker to look at source and destination.
    pub inspection: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            inspection: Duration::from_secs(30),
        }
    }
}

/// Why a coordinator could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog cannot be read.
    #[error("cannot load the catalog")]
    Load(#[source] CatalogError),
    /// Another coordinator leads.
    #[error("another coordinator leads on this catalog")]
    Follows,
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
        let directory = Directory::default();
        let rhythm = Rhythm { heartbeat: self.config.heartbeat, lease: self.config.lease };
        let candidate =
            Candidate { id: format!("{:016x}", rand::random::<u64>()), address: format!("http://{address}") };
        // The only catalog there is belongs to one coordinator for as long as that lives.
        let standing = catalog
            .campaign(&candidate, Duration::from_secs(10 * 365 * 86_400))
            .await
            .map_err(Error::Load)?;
        let Standing::Leads(term) = standing else { return Err(Error::Follows) };
        let reconciler =
            Reconciler::load(catalog.clone(), term, rhythm, directory.clone()).await.map_err(Error::Load)?;
        let (inputs, queue) = mpsc::channel(QUEUE);

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
        let pipes =
            Pipes::new(inputs.clone(), directory.clone(), catalog, self.config.inspection, closing.clone());
        let workers = Workers::new(inputs, closing);
        let serving = tonic::transport::Server::builder()
            .layer(millrace_telemetry::server_layer())
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .tcp_nodelay(true)
            .add_service(health_service)
            .add_service(reflection)
            .add_service(PipeServiceServer::new(pipes))
            .add_service(FleetServiceServer::new(Fleet::new(directory)))
            .add_service(WorkerServiceServer::new(workers))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(self.listener),
                cancelled.clone().cancelled_owned(),
            );
        let (served, ()) = tokio::join!(serving, reconciler.run(queue, cancelled.clone()));
        served.map_err(|source| Error::Serve { address, source })
    }
}
