//! Two coordinators on one catalog, with their services.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millrace_api::proto::pipe::v1 as pb;
use millrace_api::spec::with_secrets;
use millrace_api::yaml::parse_pipe_yaml;
use millrace_api::{ApiError, Clients};
use millrace_catalog::SqliteCatalog;
use millrace_coordinator::{Config, Coordinator, Error};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Running {
    clients: Clients,
    stop: CancellationToken,
    served: JoinHandle<Result<(), Error>>,
}

async fn start(catalog: &Arc<SqliteCatalog>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let config = Config { leadership: Duration::from_secs(2), ..Config::default() };
    let served = tokio::spawn(Coordinator::new(config, catalog.clone(), listener).run(stop.clone()));
    Running { clients: millrace_api::connect(&address).await.unwrap(), stop, served }
}

fn spec(name: &str) -> pb::PipeSpec {
    let yaml = format!(
        "name: {name}\n\
         source: {{postgres: {{host: 127.0.0.1, database: shop, username: millrace}}}}\n\
         destination: {{clickhouse: {{url: \"http://127.0.0.1:8123\", database: shop}}}}\n\
         tables: [{{source: public.orders}}]\n"
    );
    with_secrets(&parse_pipe_yaml(&yaml, Path::new("."), &|_| None).unwrap())
}

impl Running {
    async fn create(&mut self, name: &str) -> Result<pb::CreateResponse, ApiError> {
        let request = pb::CreateRequest { spec: Some(spec(name)), ..Default::default() };
        Ok(self.clients.pipes.create(request).await?.into_inner())
    }

    async fn names(&mut self) -> Result<Vec<String>, ApiError> {
        let pipes = self.clients.pipes.list(pb::ListRequest::default()).await?.into_inner().pipes;
        Ok(pipes.into_iter().filter_map(|pipe| Some(pipe.spec?.name)).collect())
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_follower_answers_for_the_leader_and_takes_over_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Arc::new(SqliteCatalog::open(&folder.path().join("catalog.sqlite")).unwrap());
    let mut leader = start(&catalog).await;
    assert_eq!(leader.names().await.unwrap(), [""; 0]);
    let mut follower = start(&catalog).await;

    // Writes and reads, at either.
    assert!(follower.create("shop").await.unwrap().created);
    assert!(!leader.create("shop").await.unwrap().created);
    assert_eq!(follower.names().await.unwrap(), ["shop"]);
    // Errors come with their details.
    let refused = follower.clients.pipes.get(pb::GetRequest { name: "nowhere".to_owned() }).await;
    assert_eq!(ApiError::from(refused.unwrap_err()).reason.as_deref(), Some("PIPE_NOT_FOUND"));
    // A stream is passed on message by message, and says why it ends.
    let watch = pb::WatchPipeRequest { name: "shop".to_owned(), ..Default::default() };
    let mut watched = follower.clients.pipes.watch_pipe(watch).await.unwrap().into_inner();
    let seen = watched.message().await.unwrap().unwrap();
    assert_eq!(seen.events.len(), 1);

    leader.stop().await;
    let ended = loop {
        match watched.message().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert_eq!(ended.unwrap_err().code(), tonic::Code::Unavailable);
    // Nobody leads for a moment, then it does.
    let names = loop {
        match follower.names().await {
            Ok(names) => break names,
            Err(error) => assert_eq!(error.reason.as_deref(), Some("NO_LEADER"), "{error:?}"),
        }
    };
    assert_eq!(names, ["shop"]);
    follower.stop().await;
}

#[tokio::test]
async fn a_call_is_passed_on_once() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Arc::new(SqliteCatalog::open(&folder.path().join("catalog.sqlite")).unwrap());
    let mut leader = start(&catalog).await;
    leader.names().await.unwrap();
    let mut follower = start(&catalog).await;
    follower.names().await.unwrap();
    let mut request = tonic::Request::new(pb::ListRequest::default());
    request.metadata_mut().insert("millrace-forwarded", "1".parse().unwrap());
    let refused = follower.clients.pipes.list(request).await.unwrap_err();
    assert_eq!(ApiError::from(refused).reason.as_deref(), Some("NO_LEADER"));
}
