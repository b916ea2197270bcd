//! `millrace pipe`

use millrace_api::ApiError;
use millrace_api::client::Clients;
use millrace_api::proto::pipe::v1 as wire;
use millrace_api::spec::with_secrets;
use millrace_api::yaml::parse_pipe_yaml;
use millrace_model::PipeSpec;

use crate::arguments::{PipeCommand, SpecFile};
use crate::console::Console;
use crate::failure::Failure;
use crate::specification::SpecText;
use crate::view::{self, name_of, state_text};
use crate::{Session, apply, deletion, resync, verify, watch};

pub(crate) async fn run(
    command: PipeCommand,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        PipeCommand::Validate { file } => validate(&file, session, console).await,
        PipeCommand::Apply(options) => apply::apply(&options, session, console).await,
        PipeCommand::List => list(session, console).await,
        PipeCommand::Get { name } => {
            let response = get(&name, session).await?;
            view::print(console, session.globals.output, &response, view::pipe)
        }
        PipeCommand::Tables { name } => {
            let response = get(&name, session).await?;
            view::print(console, session.globals.output, &response, view::tables)
        }
        PipeCommand::Events { name } => events(&name, session, console).await,
        PipeCommand::Watch { name, until } => watch::watch(&name, until, session, console).await,
        PipeCommand::Wait { name, state, timeout } => {
            watch::wait(&name, state, timeout, session, console).await
        }
        PipeCommand::Pause { name } => {
            let what = format!("pipe '{name}' was not paused");
            let mut clients = session.connect(&what).await?;
            let response = clients.pipes.pause(wire::PauseRequest { name }).await;
            let response = response.map_err(|status| Failure::refused(what, status))?.into_inner();
            view::print(console, session.globals.output, &response, |response, _| {
                told(response.pipe.as_ref())
            })
        }
        PipeCommand::Resume { name } => {
            let what = format!("pipe '{name}' was not resumed");
            let mut clients = session.connect(&what).await?;
            let response = clients.pipes.resume(wire::ResumeRequest { name }).await;
            let response = response.map_err(|status| Failure::refused(what, status))?.into_inner();
            view::print(console, session.globals.output, &response, |response, _| {
                told(response.pipe.as_ref())
            })
        }
        PipeCommand::Resync(options) => resync::resync(&options, session, console).await,
        PipeCommand::Verify(options) => verify::verify(&options, session, console).await,
        PipeCommand::Retry { name, table } => resync::retry(&name, &table, session, console).await,
        PipeCommand::Delete(options) => deletion::delete(&options, session, console).await,
    }
}

/// `pipe shop: Pausing`
pub(crate) fn told(pipe: Option<&wire::Pipe>) -> String {
    pipe.map_or_else(String::new, |pipe| format!("pipe {}: {}", name_of(pipe), state_text(pipe)))
}

/// The pipe that a file describes.
pub(crate) fn read(file: &SpecFile) -> Result<PipeSpec, Failure> {
    SpecText::read(file)?.parse(parse_pipe_yaml)
}

async fn validate(file: &SpecFile, session: &Session<'_>, console: &mut Console) -> Result<(), Failure> {
    let spec = read(file)?;
    let what = format!("pipe '{}' could not be checked", spec.name);
    let mut clients = session.connect(&what).await?;
    let request = wire::ValidateRequest { spec: Some(with_secrets(&spec)) };
    let response = clients.pipes.validate(request).await.map_err(|status| Failure::refused(what, status))?;
    let response = response.into_inner();
    let errors = error_count(&response.problems);
    view::print(console, session.globals.output, &response, |response, _| {
        let found = view::source_tables(&response.tables, &response.problems);
        match errors {
            0 => format!("{found}\npipe {} can be applied", spec.name),
            _ => found,
        }
    })?;
    match errors {
        0 => Ok(()),
        errors => Err(Failure::new(
            format!("pipe '{}' cannot be applied", spec.name),
            if errors == 1 {
                "one problem stands in the way".to_owned()
            } else {
                format!("{errors} problems stand in the way")
            },
            "mend each as it says, then check again",
        )),
    }
}

fn error_count(problems: &[wire::Problem]) -> usize {
    problems.iter().filter(|problem| problem.severity() != wire::Severity::Warning).count()
}

async fn list(session: &Session<'_>, console: &mut Console) -> Result<(), Failure> {
    let what = "the pipes could not be listed";
    let mut clients = session.connect(what).await?;
    let all = all_pipes(&mut clients).await.map_err(|error| Failure::refused(what, error))?;
    view::print(console, session.globals.output, &all, view::pipes)
}

/// Every page of the list as one answer.
pub(crate) async fn all_pipes(clients: &mut Clients) -> Result<wire::ListResponse, ApiError> {
    let mut all = wire::ListResponse::default();
    loop {
        let request = wire::ListRequest { page_size: 0, page_token: all.next_page_token };
        let page = clients.pipes.list(request).await?.into_inner();
        all.pipes.extend(page.pipes);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            return Ok(all);
        }
    }
}

async fn get(name: &str, session: &Session<'_>) -> Result<wire::GetResponse, Failure> {
    let what = format!("pipe '{name}' could not be shown");
    let mut clients = session.connect(&what).await?;
    let request = wire::GetRequest { name: name.to_owned() };
    Ok(clients.pipes.get(request).await.map_err(|status| Failure::refused(what, status))?.into_inner())
}

async fn events(name: &str, session: &Session<'_>, console: &mut Console) -> Result<(), Failure> {
    let what = format!("the events of pipe '{name}' could not be shown");
    let mut clients = session.connect(&what).await?;
    let mut all = wire::ListEventsResponse::default();
    loop {
        let request = wire::ListEventsRequest {
            name: name.to_owned(),
            page_size: 1000,
            page_token: all.next_page_token,
        };
        let page =
            clients.pipes.list_events(request).await.map_err(|status| Failure::refused(&what, status))?;
        let page = page.into_inner();
        all.events.extend(page.events);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            break;
        }
    }
    view::print(console, session.globals.output, &all, view::events)
}
