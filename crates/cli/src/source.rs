//! `millrace source`

use millrace_api::proto::pipe::v1 as wire;
use millrace_api::spec::source_with_secrets;
use millrace_api::yaml::parse_source_yaml;

use crate::arguments::SourceCommand;
use crate::console::Console;
use crate::failure::Failure;
use crate::specification::SpecText;
use crate::{Session, view};

pub(crate) async fn run(
    command: SourceCommand,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let SourceCommand::Tables { file } = command;
    let source = SpecText::read(&file)?.parse(parse_source_yaml)?;
    let what =
        format!("the tables of {} at {}:{} could not be listed", source.database, source.host, source.port);
    let mut clients = session.connect(&what).await?;
    let request = wire::ListSourceTablesRequest { source: Some(source_with_secrets(&source)) };
    let response =
        clients.pipes.list_source_tables(request).await.map_err(|status| Failure::refused(&what, status))?;
    let response = response.into_inner();
    view::print(console, session.globals.output, &response, |response, _| {
        if response.tables.is_empty() && response.problems.is_empty() {
            return "The source offers no tables to this role.".to_owned();
        }
        view::source_tables(&response.tables, &response.problems)
    })?;
    // What ails a table is part of the answer; without any table there is none.
    let error = response.problems.iter().find(|problem| problem.severity() == wire::Severity::Error);
    match error {
        Some(problem) if response.tables.is_empty() => {
            Err(Failure::new(what, problem.message.clone(), problem.remedy.clone()))
        }
        _ => Ok(()),
    }
}
