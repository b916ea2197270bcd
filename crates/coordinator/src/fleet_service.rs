//! `FleetService`: the workers as users see them.

use millrace_api::proto::pipe::v1 as pb;
use millrace_api::proto::pipe::v1::fleet_service_server::FleetService;
use millrace_api::{ProtocolError, status};
use millrace_model::WorkerId;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use crate::input::Input;
use crate::leadership::Offices;
use crate::pipe_service::page_size;

pub(crate) struct Fleet {
    offices: Offices,
}

impl Fleet {
    pub(crate) fn new(offices: Offices) -> Self {
        Self { offices }
    }
}

#[tonic::async_trait]
impl FleetService for Fleet {
    async fn drain_worker(
        &self,
        request: Request<pb::DrainWorkerRequest>,
    ) -> Result<Response<pb::DrainWorkerResponse>, Status> {
        let pb::DrainWorkerRequest { worker_id, undo } = request.into_inner();
        let worker = worker_id
            .parse::<WorkerId>()
            .map_err(|error| status::invalid(&ProtocolError::at("workerId", error.to_string())))?;
        let (reply, answer) = oneshot::channel();
        let lead = self.offices.lead()?;
        lead.inputs
            .send(Input::DrainWorker { worker, undo, reply })
            .await
            .map_err(|_| status::no_leader())?;
        let worker = answer.await.map_err(|_| status::no_leader())?;
        let worker = worker.ok_or_else(|| status::worker_not_found(&worker_id))?;
        Ok(Response::new(pb::DrainWorkerResponse { worker: Some(worker) }))
    }

    async fn list_workers(
        &self,
        request: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersResponse>, Status> {
        let request = request.into_inner();
        let limit = page_size(request.page_size);
        let mut workers: Vec<pb::Worker> = self
            .offices
            .lead()?
            .directory
            .workers()
            .into_iter()
            .filter(|worker| worker.id > request.page_token)
            .take(limit + 1)
            .collect();
        let more = workers.len() > limit;
        workers.truncate(limit);
        let next_page_token =
            workers.last().filter(|_| more).map(|worker| worker.id.clone()).unwrap_or_default();
        Ok(Response::new(pb::ListWorkersResponse { workers, next_page_token }))
    }
}
