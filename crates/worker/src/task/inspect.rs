//! Answering a question about a source and destination. Changes nothing.

use std::time::Duration;

use millrace_api::offer::OfferedTable;
use millrace_api::worker::{Inspection, InspectionSubject, WorkerMessage};
use millrace_model::Problem;
use millrace_postgres::{Session, offered_tables};
use tracing::Instrument;

use super::provision;

/// A slot is asked for again and again, so each question ends before the next one comes.
const SLOT_DEADLINE: Duration = Duration::from_secs(12);

fn no_answer() -> Problem {
    let message = format!("the source did not say within {} s how full the slot is", SLOT_DEADLINE.as_secs());
    Problem::transient("SOURCE_UNREACHABLE", message, "it is asked again by itself")
}

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
                let look = async { Session::connect(&source, "millrace").await?.slot_health(&name).await };
                let (slot, problems) = match tokio::time::timeout(SLOT_DEADLINE, look).await {
                    Ok(Ok(slot)) => (slot, Vec::new()),
                    Ok(Err(error)) => (None, vec![millrace_postgres::classify(&error)]),
                    Err(_) => (None, vec![no_answer()]),
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
