//! `millrace pipe apply`

use millrace_api::ApiError;
use millrace_api::client::Clients;
use millrace_api::proto::pipe::v1 as wire;
use millrace_api::spec::with_secrets;
use millrace_api::status::reason;
use millrace_model::PipeSpec;
use millrace_model::spec::ReplicationMode;
use tonic::{Code, Status};

use crate::Session;
use crate::arguments::{ApplyOptions, Output};
use crate::console::Console;
use crate::failure::Failure;
use crate::pipe::read;
use crate::view::{self, problem_text, state_text};
use crate::wording::severity_word;

/// What the coordinator answered.
enum Answer {
    Created(wire::CreateResponse),
    Updated(wire::UpdateResponse),
}

/// Makes the pipe of a file, or edits the one that stands to be as the file says.
pub(crate) async fn apply(
    options: &ApplyOptions,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let spec = read(&options.file)?;
    let mut clients = session.connect(&format!("pipe '{}' was not applied", spec.name)).await?;
    let (answer, hindrance) = if options.dry_run {
        rehearse(&mut clients, &spec, options).await?
    } else {
        (carry_out(&mut clients, &spec, options).await?, None)
    };
    let output = session.globals.output;
    let problems = match &answer {
        Answer::Created(response) => &response.problems,
        Answer::Updated(response) => &response.problems,
    };
    if output == Output::Table {
        for problem in problems {
            console.complain(&problem_text(severity_word(problem.severity()), problem));
        }
    }
    match &answer {
        Answer::Created(response) => {
            view::print(console, output, response, |response, _| made(response, &spec, options))?;
        }
        Answer::Updated(response) => {
            view::print(console, output, response, |response, _| edited(response, &spec, options))?;
        }
    }
    hindrance.map_or(Ok(()), Err)
}

async fn carry_out(
    clients: &mut Clients,
    spec: &PipeSpec,
    options: &ApplyOptions,
) -> Result<Answer, Failure> {
    match create(clients, spec, false).await {
        Ok(response) => Ok(Answer::Created(response)),
        Err(error) if error.code == Code::AlreadyExists => {
            match update(clients, spec, options, options.resync).await {
                Ok(response) => Ok(Answer::Updated(response)),
                Err(error) => Err(Failure::refused(format!("pipe '{}' was not edited", spec.name), error)),
            }
        }
        Err(error) => Err(Failure::refused(format!("pipe '{}' was not made", spec.name), error)),
    }
}

/// Asks the other way round: a pipe that stands must not be checked as if it were to be made, for its tables are there.
/// With the answer comes what would keep it from being carried out.
async fn rehearse(
    clients: &mut Clients,
    spec: &PipeSpec,
    options: &ApplyOptions,
) -> Result<(Answer, Option<Failure>), Failure> {
    let name = &spec.name;
    match update(clients, spec, options, options.resync).await {
        Ok(response) => return Ok((Answer::Updated(response), None)),
        Err(error) if error.code == Code::NotFound => {}
        Err(error) => {
            let unfit = error.reason.as_deref() == Some(reason::UNFIT_COMMAND);
            let refused = Failure::refused(format!("pipe '{name}' could not be edited"), error);
            if !unfit || options.resync {
                return Err(refused);
            }
            // Perhaps only --resync is missing; what would change is told all the same.
            return match update(clients, spec, options, true).await {
                Ok(response) => Ok((Answer::Updated(response), Some(refused))),
                Err(_) => Err(refused),
            };
        }
    }
    let what = format!("pipe '{name}' could not be made");
    match create(clients, spec, true).await {
        Ok(response) if response.created => Ok((Answer::Created(response), None)),
        Ok(_) => Err(Failure::new(what, "somebody else made it meanwhile", "try again")),
        Err(error) => Err(Failure::refused(what, error)),
    }
}

async fn create(
    clients: &mut Clients,
    spec: &PipeSpec,
    validate_only: bool,
) -> Result<wire::CreateResponse, ApiError> {
    let request = wire::CreateRequest { spec: Some(with_secrets(spec)), validate_only };
    Ok(clients.pipes.create(request).await.map_err(in_file)?.into_inner())
}

async fn update(
    clients: &mut Clients,
    spec: &PipeSpec,
    options: &ApplyOptions,
    allow_resync: bool,
) -> Result<wire::UpdateResponse, ApiError> {
    let request = wire::UpdateRequest {
        spec: Some(with_secrets(spec)),
        // The file says all of what the pipe is to be, whoever edited it before.
        update_mask: None,
        etag: String::new(),
        validate_only: options.dry_run,
        allow_resync,
    };
    Ok(clients.pipes.update(request).await.map_err(in_file)?.into_inner())
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

fn made(response: &wire::CreateResponse, spec: &PipeSpec, options: &ApplyOptions) -> String {
    let name = &spec.name;
    let pipe = response.pipe.clone().unwrap_or_default();
    match (response.created, options.dry_run) {
        (true, false) => format!("pipe {name} made (id {}): {}", pipe.id, state_text(&pipe)),
        (true, true) => listed(format!("pipe {name} would be made"), &parts(spec)),
        (false, _) => format!("pipe {name} unchanged: {}", state_text(&pipe)),
    }
}

fn edited(response: &wire::UpdateResponse, spec: &PipeSpec, options: &ApplyOptions) -> String {
    let name = &spec.name;
    let state = response.pipe.as_ref().map(state_text).unwrap_or_default();
    match (response.differences.as_slice(), options.dry_run) {
        ([], true) => format!("pipe {name} would stay unchanged: {state}"),
        ([], false) => format!("pipe {name} unchanged: {state}"),
        (differences, true) => listed(format!("pipe {name} would be edited"), differences),
        (differences, false) => listed(format!("pipe {name} edited: {state}"), differences),
    }
}

fn listed(heading: String, lines: &[String]) -> String {
    lines.iter().fold(heading, |text, line| format!("{text}\n  {line}"))
}

/// What a new pipe is about, in words.
fn parts(spec: &PipeSpec) -> Vec<String> {
    let (source, destination) = (&spec.source, &spec.destination);
    let mut parts = vec![
        format!("reads database {} at {}:{}", source.database, source.host, source.port),
        format!("writes database {} at {}", destination.database, destination.url),
    ];
    parts.extend(spec.tables.iter().map(|table| match spec.mode {
        ReplicationMode::Cdc => {
            format!("copies {} into {}, then follows its changes", table.source, table.target)
        }
        ReplicationMode::Snapshot => format!("copies {} into {} once", table.source, table.target),
        ReplicationMode::CdcOnly => format!("follows the changes of {} into {}", table.source, table.target),
    }));
    parts
}
