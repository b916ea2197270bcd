//! `millrace worker`, the part that is a client.

use std::time::Duration;

use millrace_api::Clients;
use millrace_api::proto::pipe::v1 as wire;

use crate::arguments::WorkerCommand;
use crate::console::Console;
use crate::failure::Failure;
use crate::{Session, view};

/// How often a worker is looked at that drains.
const POLL: Duration = Duration::from_millis(300);

pub(crate) async fn run(
    command: WorkerCommand,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        WorkerCommand::List => list(session, console).await,
        WorkerCommand::Drain { id, undo, no_wait } => drain(&id, undo, no_wait, session, console).await,
    }
}

async fn list(session: &Session<'_>, console: &mut Console) -> Result<(), Failure> {
    let what = "the workers could not be listed";
    let mut clients = session.connect(what).await?;
    let all = workers(&mut clients, what).await?;
    view::print(console, session.globals.output, &all, view::workers)
}

async fn workers(clients: &mut Clients, what: &str) -> Result<wire::ListWorkersResponse, Failure> {
    let mut all = wire::ListWorkersResponse::default();
    loop {
        let request = wire::ListWorkersRequest { page_size: 0, page_token: all.next_page_token };
        let page =
            clients.fleet.list_workers(request).await.map_err(|status| Failure::refused(what, status))?;
        let page = page.into_inner();
        all.workers.extend(page.workers);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            return Ok(all);
        }
    }
}

async fn drain(
    id: &str,
    undo: bool,
    no_wait: bool,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let what = format!("worker '{id}' was not drained");
    let mut clients = session.connect(&what).await?;
    let request = wire::DrainWorkerRequest { worker_id: id.to_owned(), undo };
    let response =
        clients.fleet.drain_worker(request).await.map_err(|status| Failure::refused(&what, status))?;
    let mut worker = response.into_inner().worker;
    while !undo && !no_wait && worker.as_ref().is_some_and(|worker| worker.tasks > 0) {
        tokio::time::sleep(POLL).await;
        let all = workers(&mut clients, &what).await?.workers;
        worker = all.into_iter().find(|worker| worker.id == id);
    }
    let response = wire::DrainWorkerResponse { worker };
    view::print(console, session.globals.output, &response, |response, _| {
        match response.worker.as_ref().map_or(0, |worker| worker.tasks) {
            _ if undo => format!("worker {id} gets work again"),
            0 => format!("worker {id} holds nothing and gets nothing; it can be stopped"),
            tasks => format!(
                "worker {id} gets no more work and still holds {tasks}; see it with 'millrace worker list'"
            ),
        }
    })
}
