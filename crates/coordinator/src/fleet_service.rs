//! `FleetService`: the workers as users see them.

use millrace_api::proto::pipe::v1 as pb;
use millrace_api::proto::pipe::v1::fleet_service_server::FleetService;
use tonic::{Request, Response, Status};

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
