//! `millrace worker`, the part that is a client.

use millrace_api::proto::pipe::v1 as wire;

use crate::arguments::WorkerCommand;
use crate::console::Console;
use crate::failure::Failure;
use crate::{Session, view};

pub(crate) async fn run(
    command: WorkerCommand,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let WorkerCommand::List = command;
    let what = "the workers could not be listed";
    let mut clients = session.connect(what).await?;
    let mut all = wire::ListWorkersResponse::default();
    loop {
        let request = wire::ListWorkersRequest { page_size: 0, page_token: all.next_page_token };
        let page =
            clients.fleet.list_workers(request).await.map_err(|status| Failure::refused(what, status))?;
        let page = page.into_inner();
        all.workers.extend(page.workers);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            break;
        }
    }
    view::print(console, session.globals.output, &all, view::workers)
}
