//! Answering a question about a source and destination. Changes nothing.

use millrace_api::offer::OfferedTable;
use millrace_api::worker::{Inspection, InspectionSubject, WorkerMessage};
use millrace_postgres::{Session, offered_tables};
use tracing::Instrument;

use super::provision;

/// Looks and answers; trouble on the way is part of the answer.
pub(crate) async fn answer(question: Inspection) -> WorkerMessage {
    let span = tracing::info_span!("inspect", otel.name = "inspect");
    millrace_telemetry::set_parent(&span, &question.trace);
    let request_id = question.request_id;
    async move {
        match question.subject {
            InspectionSubject::Pipe(spec) => match provision::look(&spec, None).await {
                Ok(findings) => {
                    let of = |name: &millrace_model::TableName| {
                        let concerns =
                            findings.problems.iter().filter(|problem| problem.table.as_ref() == Some(name));
                        concerns.cloned().collect()
                    };
                    let tables = findings.source.tables.iter();
                    let tables = tables.map(|table| OfferedTable::new(table, of(&table.name))).collect();
                    WorkerMessage::InspectReply {
                        request_id,
                        problems: findings.problems,
                        tables,
                        slot: None,
                    }
                }
                Err(problems) => {
                    WorkerMessage::InspectReply { request_id, problems, tables: Vec::new(), slot: None }
                }
            },
            InspectionSubject::Slot(source, name) => {
                let health = match Session::connect(&source, "millrace").await {
                    Ok(session) => session.slot_health(&name).await,
                    Err(error) => Err(error),
                };
                let (slot, problems) = match health {
                    Ok(slot) => (slot, Vec::new()),
                    Err(error) => (None, vec![millrace_postgres::classify(&error)]),
                };
                WorkerMessage::InspectReply { request_id, problems, tables: Vec::new(), slot }
            }
            InspectionSubject::Source(source) => match offered_tables(&source).await {
                Ok(offered) => {
                    let tables =
                        offered.into_iter().map(|(table, problems)| OfferedTable::new(&table, problems));
                    WorkerMessage::InspectReply {
                        request_id,
                        problems: Vec::new(),
                        tables: tables.collect(),
                        slot: None,
                    }
                }
                Err(error) => {
                    let problems = vec![millrace_postgres::classify(&error)];
                    WorkerMessage::InspectReply { request_id, problems, tables: Vec::new(), slot: None }
                }
            },
        }
    }
    .instrument(span)
    .await
}
