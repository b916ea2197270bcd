//! `millrace pipe`

use std::time::Duration;

use millrace_api::ApiError;
use millrace_api::proto::pipe::v1 as wire;
use millrace_api::spec::with_secrets;
use millrace_api::yaml::parse_pipe_yaml;
use millrace_model::PipeSpec;
use tonic::Status;

use crate::arguments::{Output, PipeCommand, SpecFile};
use crate::console::Console;
use crate::failure::Failure;
use crate::specification::SpecText;
use crate::view::{self, name_of, problem_text, state_text};
use crate::watcher::Watcher;
use crate::{Session, watch, wording};

pub(crate) async fn run(
    command: PipeCommand,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        PipeCommand::Validate { file } => validate(&file, session, console).await,
        PipeCommand::Apply { file, dry_run } => apply(&file, dry_run, session, console).await,
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
        PipeCommand::Delete { name, timeout } => delete(&name, timeout, session, console).await,
    }
}

/// `pipe shop: Pausing`
fn told(pipe: Option<&wire::Pipe>) -> String {
    pipe.map_or_else(String::new, |pipe| format!("pipe {}: {}", name_of(pipe), state_text(pipe)))
}

fn read(file: &SpecFile) -> Result<PipeSpec, Failure> {
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

async fn apply(
    file: &SpecFile,
    dry_run: bool,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let spec = read(file)?;
    let name = spec.name.to_string();
    let what = format!("pipe '{name}' {}", if dry_run { "could not be made" } else { "was not made" });
    let mut clients = session.connect(&what).await?;
    let request = wire::CreateRequest { spec: Some(with_secrets(&spec)), validate_only: dry_run };
    let response =
        clients.pipes.create(request).await.map_err(|status| Failure::refused(what, in_file(status)))?;
    let response = response.into_inner();
    if session.globals.output == Output::Table {
        for problem in &response.problems {
            console.complain(&problem_text(problem));
        }
    }
    view::print(console, session.globals.output, &response, |response, _| {
        let pipe = response.pipe.clone().unwrap_or_default();
        match (response.created, dry_run) {
            (true, false) => format!("pipe {name} made (id {}): {}", pipe.id, state_text(&pipe)),
            (true, true) => format!("pipe {name} would be made"),
            (false, _) => {
                format!("pipe {name} exists already with this specification: {}", state_text(&pipe))
            }
        }
    })
}

/// Fields of the request as the file names them: without the message around the specification.
fn in_file(status: Status) -> ApiError {
    let mut error = ApiError::from(status);
    for finding in &mut error.findings {
        if let Some(inner) = finding.subject.strip_prefix("spec.") {
            finding.subject = inner.to_owned();
        }
    }
    error
}

async fn list(session: &Session<'_>, console: &mut Console) -> Result<(), Failure> {
    let what = "the pipes could not be listed";
    let mut clients = session.connect(what).await?;
    let mut all = wire::ListResponse::default();
    loop {
        let request = wire::ListRequest { page_size: 0, page_token: all.next_page_token };
        let page =
            clients.pipes.list(request).await.map_err(|status| Failure::refused(what, status))?.into_inner();
        all.pipes.extend(page.pipes);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            break;
        }
    }
    view::print(console, session.globals.output, &all, view::pipes)
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

/// Deletes a pipe, waits until it is gone and tells what stayed behind at the source.
async fn delete(
    name: &str,
    timeout: Duration,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let what = format!("pipe '{name}' was not deleted");
    let mut clients = session.connect(&what).await?;
    let refused = |error: ApiError| Failure::refused(&what, error);
    // Watched from before on, so that nothing that happens on the way is missed.
    let mut watcher = Watcher::new(clients.clone(), name);
    watcher.next().await.map_err(refused)?;
    let request = wire::DeleteRequest { name: name.to_owned(), drop_tables: false };
    let response = clients.pipes.delete(request).await.map_err(|status| refused(status.into()))?.into_inner();
    let mut left_behind = Vec::new();
    let mut last = response.pipe.clone().unwrap_or_default();
    let gone = async {
        while let Some(update) = watcher.next().await? {
            left_behind.extend(update.events.into_iter().filter_map(|event| event.problem));
            last = update.pipe.unwrap_or(last.clone());
        }
        Ok::<(), ApiError>(())
    };
    match tokio::time::timeout(timeout, gone).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            return Err(Failure::refused(
                format!("deletion of pipe '{name}' was not seen to its end"),
                error,
            ));
        }
        Err(_) => {
            let status = last.status.unwrap_or_default();
            let why = match status.problem {
                Some(problem) => problem.message,
                None if status.next.is_empty() => "it is still there".to_owned(),
                None => format!("it is still there; next: {}", status.next),
            };
            let what = format!("pipe '{name}' was not gone within {}", wording::duration(timeout));
            let remedy = format!("deletion goes on; follow it with 'millrace pipe watch {name}'");
            return Err(Failure::new(what, why, remedy));
        }
    }
    for problem in &left_behind {
        console.complain(&problem_text(problem));
    }
    view::print(console, session.globals.output, &response, |_, _| {
        format!("pipe {name} deleted; its destination tables stay")
    })
}
