//! `PipeService`: records what users want and shows what became of it. It never does the work.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use millrace_api::offer::OfferedTable;
use millrace_api::problem::problems_out;
use millrace_api::proto::pipe::v1 as pb;
use millrace_api::proto::pipe::v1::pipe_service_server::PipeService;
use millrace_api::worker::InspectionSubject;
use millrace_api::{ProtocolError, status};
use millrace_catalog::Catalog;
use millrace_lifecycle::Refusal;
use millrace_model::spec::PostgresSource;
use millrace_model::{PipeSpec, Problem, Severity, TableName};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::directory::PipeView;
use crate::input::{Edit, Input, Inspected, Inspection, Rejection, Wish};
use crate::leadership::Offices;
use crate::view;

/// A watcher hears of progress at most so often; of states and events at once.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// Events of one page of a watch.
const EVENTS: usize = 500;

pub(crate) struct Pipes<C> {
    offices: Offices,
    catalog: Arc<C>,
    /// How long a worker may look at source and destination.
    inspection: Duration,
    closing: CancellationToken,
}

/// How many entries a page holds: 0 asks for 100, and nobody gets more than 1,000.
pub(crate) fn page_size(asked: u32) -> usize {
    match asked {
        0 => 100,
        asked => asked.min(1000) as usize,
    }
}

impl<C: Catalog> Pipes<C> {
    pub(crate) fn new(
        offices: Offices,
        catalog: Arc<C>,
        inspection: Duration,
        closing: CancellationToken,
    ) -> Self {
        Self { offices, catalog, inspection, closing }
    }

    async fn ask<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<T, Rejection>>) -> Input,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let lead = self.offices.lead()?;
        // Nobody takes or answers it where the term is over.
        lead.inputs.send(input(reply)).await.map_err(|_| status::no_leader())?;
        answer.await.map_err(|_| status::no_leader())?.map_err(rejected)
    }

    async fn command(&self, name: String, wish: Wish) -> Result<Option<pb::Pipe>, Status> {
        let trace = millrace_telemetry::inject_current();
        let view = self.ask(|reply| Input::Command { name, wish, trace, reply }).await?;
        Ok(Some(view.pipe.clone()))
    }

    /// Has a worker look at the tables that an edit adds. Without a worker they wait, and say so.
    async fn inspect_added(&self, edit: &Edit) -> Result<Vec<Problem>, Status> {
        // With what the request leaves out, passwords above all.
        let edit = Box::new(edit.clone());
        let (mut added, present) = self.ask(|reply| Input::Merge { edit, reply }).await?;
        let known = || present.tables.iter();
        let sources: BTreeSet<&TableName> = known().map(|table| &table.source).collect();
        // What feeds a table that the pipe has is looked at when it is described: to others that table is not empty.
        let targets: BTreeSet<&String> = known().map(|table| &table.target).collect();
        added.tables.retain(|table| !sources.contains(&table.source) && !targets.contains(&table.target));
        // The pipe has its slot.
        added.settings.replication_slot_name = None;
        if added.tables.is_empty() {
            return Ok(Vec::new());
        }
        match self.inspect(InspectionSubject::Pipe(Box::new(added))).await? {
            Some(inspected) if errors(&inspected.problems).is_empty() => Ok(inspected.problems),
            Some(inspected) => Err(status::checks_failed(&errors(&inspected.problems))),
            None => Ok(Vec::new()),
        }
    }

    /// Lets a worker look. `None` where there is none.
    async fn inspect(&self, subject: InspectionSubject) -> Result<Option<Inspected>, Status> {
        let (reply, answer) = oneshot::channel();
        let request = Inspection { subject, trace: millrace_telemetry::inject_current() };
        let lead = self.offices.lead()?;
        lead.inputs.send(Input::Inspect { request, reply }).await.map_err(|_| status::no_leader())?;
        match tokio::time::timeout(self.inspection, answer).await {
            Err(_) => Err(status::worker_silent()),
            Ok(Err(_)) => Err(status::no_leader()),
            Ok(Ok(inspected)) => Ok(inspected.ok()),
        }
    }

    fn view(&self, name: &str) -> Result<Arc<PipeView>, Status> {
        self.offices.lead()?.directory.get(name).ok_or_else(|| status::pipe_not_found(name))
    }

    async fn events(&self, view: &PipeView, after: u64, limit: usize) -> Result<Vec<pb::Event>, Status> {
        if let Some(farewell) = &view.farewell {
            return Ok(farewell.iter().filter(|event| event.id > after).map(view::event).collect());
        }
        if view.last_event <= after {
            return Ok(Vec::new());
        }
        let events = self.catalog.events(&view.id, after, limit).await;
        let events =
            events.map_err(|error| status::internal(format!("the history cannot be read: {error}")))?;
        Ok(events.iter().map(view::event).collect())
    }
}

fn rejected(rejection: Rejection) -> Status {
    match rejection {
        Rejection::NotFound(name) => status::pipe_not_found(&name),
        Rejection::Differs(name) => status::pipe_exists(&name, &[]),
        Rejection::Refused { name, refusal } => refused(&name, &refusal),
        Rejection::EditedMeanwhile(name) => status::edited_meanwhile(&name),
        Rejection::Invalid(error) => status::invalid(&error),
        Rejection::Storage(error) => status::status(
            tonic::Code::Unavailable,
            "CATALOG_UNAVAILABLE",
            format!("the decision could not be stored: {error}"),
            "see the coordinator's log and whether it took effect, then try again: the answer of the catalog may have been lost",
        ),
        Rejection::Deposed => status::no_leader(),
    }
}

fn refused(name: &str, refusal: &Refusal) -> Status {
    let (command, state, legal) = match refusal {
        Refusal::State { command, state } => {
            let legal = millrace_lifecycle::command::legal_in(*state, false);
            (command, state.to_string(), legal.iter().map(ToString::to_string).collect())
        }
        Refusal::Deleting { command } => (command, "being deleted".to_owned(), Vec::<String>::new()),
        Refusal::Unfit { command, reason, remedy } => {
            return status::unfit_command(name, &command.to_string(), reason, remedy);
        }
    };
    let legal: Vec<&str> = legal.iter().map(String::as_str).collect();
    status::illegal_command(name, &command.to_string(), &state, &legal)
}

fn spec(spec: Option<pb::PipeSpec>) -> Result<PipeSpec, Status> {
    let spec = spec.ok_or_else(|| status::invalid(&ProtocolError::at("spec", "missing")))?;
    PipeSpec::try_from(spec).map_err(|error| status::invalid(&error.within("spec")))
}

fn table_name(field: &str, text: &str) -> Result<TableName, Status> {
    let parsed = text.parse::<TableName>();
    parsed.map_err(|error| status::invalid(&ProtocolError::at(field, error.to_string())))
}

fn table_names(tables: &[String]) -> Result<Vec<TableName>, Status> {
    let named = |(index, table): (usize, &String)| table_name(&format!("tables[{index}]"), table);
    tables.iter().enumerate().map(named).collect()
}

fn errors(problems: &[Problem]) -> Vec<Problem> {
    problems.iter().filter(|problem| problem.severity == Severity::Error).cloned().collect()
}

fn tables_out(tables: &[OfferedTable]) -> Vec<pb::SourceTable> {
    tables.iter().map(pb::SourceTable::from).collect()
}

#[tonic::async_trait]
impl<C: Catalog> PipeService for Pipes<C> {
    async fn validate(
        &self,
        request: Request<pb::ValidateRequest>,
    ) -> Result<Response<pb::ValidateResponse>, Status> {
        let spec = spec(request.into_inner().spec)?;
        let inspected =
            self.inspect(InspectionSubject::Pipe(Box::new(spec))).await?.ok_or_else(status::no_worker)?;
        Ok(Response::new(pb::ValidateResponse {
            problems: problems_out(&inspected.problems),
            tables: tables_out(&inspected.tables),
        }))
    }

    async fn create(
        &self,
        request: Request<pb::CreateRequest>,
    ) -> Result<Response<pb::CreateResponse>, Status> {
        let request = request.into_inner();
        let spec = spec(request.spec)?;
        let name = spec.name.as_str().to_owned();
        let directory = self.offices.lead()?.directory;
        let mut problems = Vec::new();
        // What exists with this name was checked when it was made, and is answered for by the reconciler.
        if request.validate_only || directory.get(&name).is_none() {
            // Without a worker a pipe waits in Provisioning and says so.
            match self.inspect(InspectionSubject::Pipe(Box::new(spec.clone()))).await? {
                Some(inspected) if errors(&inspected.problems).is_empty() => problems = inspected.problems,
                Some(inspected) => return Err(status::checks_failed(&errors(&inspected.problems))),
                None if request.validate_only => return Err(status::no_worker()),
                None => {}
            }
        }
        if request.validate_only {
            let existing = directory.get(&name).map(|view| view.pipe.clone());
            let created = existing.is_none();
            let problems = problems_out(&problems);
            return Ok(Response::new(pb::CreateResponse { pipe: existing, created, problems }));
        }
        let trace = millrace_telemetry::inject_current();
        let made = self.ask(|reply| Input::Create { spec: Box::new(spec), trace, reply }).await?;
        Ok(Response::new(pb::CreateResponse {
            pipe: Some(made.pipe.pipe.clone()),
            created: made.created,
            problems: problems_out(&problems),
        }))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let view = self.view(&request.into_inner().name)?;
        Ok(Response::new(pb::GetResponse { pipe: Some(view.pipe.clone()) }))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListResponse>, Status> {
        let request = request.into_inner();
        let limit = page_size(request.page_size);
        let mut pipes: Vec<pb::Pipe> = self
            .offices
            .lead()?
            .directory
            .page(&request.page_token, limit + 1)
            .iter()
            .map(|view| view.pipe.clone())
            .collect();
        let more = pipes.len() > limit;
        pipes.truncate(limit);
        let last = pipes.last().and_then(|pipe| pipe.spec.as_ref()).map(|spec| spec.name.clone());
        let next_page_token = last.filter(|_| more).unwrap_or_default();
        Ok(Response::new(pb::ListResponse { pipes, next_page_token }))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let pb::DeleteRequest { name, drop_tables } = request.into_inner();
        let pipe = self.command(name, Wish::Delete { drop_tables }).await?;
        Ok(Response::new(pb::DeleteResponse { pipe }))
    }

    async fn pause(&self, request: Request<pb::PauseRequest>) -> Result<Response<pb::PauseResponse>, Status> {
        let pipe = self.command(request.into_inner().name, Wish::Pause).await?;
        Ok(Response::new(pb::PauseResponse { pipe }))
    }

    async fn resume(
        &self,
        request: Request<pb::ResumeRequest>,
    ) -> Result<Response<pb::ResumeResponse>, Status> {
        let pipe = self.command(request.into_inner().name, Wish::Resume).await?;
        Ok(Response::new(pb::ResumeResponse { pipe }))
    }

    async fn update(
        &self,
        request: Request<pb::UpdateRequest>,
    ) -> Result<Response<pb::UpdateResponse>, Status> {
        let request = request.into_inner();
        let spec = spec(request.spec)?;
        let mask = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let edit = Edit {
            spec,
            mask,
            etag: request.etag,
            resync: request.allow_resync,
            dry_run: request.validate_only,
        };
        let problems = self.inspect_added(&edit).await?;
        let trace = millrace_telemetry::inject_current();
        let edited = self.ask(|reply| Input::Edit { edit: Box::new(edit), trace, reply }).await?;
        Ok(Response::new(pb::UpdateResponse {
            pipe: Some(edited.pipe.pipe.clone()),
            differences: edited.differences,
            problems: problems_out(&problems),
        }))
    }

    async fn resync(
        &self,
        request: Request<pb::ResyncRequest>,
    ) -> Result<Response<pb::ResyncResponse>, Status> {
        let request = request.into_inner();
        let tables = table_names(&request.tables)?;
        let pipe = self.command(request.name, Wish::Resync { tables, settings: request.settings }).await?;
        Ok(Response::new(pb::ResyncResponse { pipe }))
    }

    async fn retry_table(
        &self,
        request: Request<pb::RetryTableRequest>,
    ) -> Result<Response<pb::RetryTableResponse>, Status> {
        let request = request.into_inner();
        let table = table_name("table", &request.table)?;
        let pipe = self.command(request.name, Wish::Retry(table)).await?;
        Ok(Response::new(pb::RetryTableResponse { pipe }))
    }

    async fn verify(
        &self,
        request: Request<pb::VerifyRequest>,
    ) -> Result<Response<pb::VerifyResponse>, Status> {
        let request = request.into_inner();
        let pipe = self.command(request.name, Wish::Verify(table_names(&request.tables)?)).await?;
        Ok(Response::new(pb::VerifyResponse { pipe }))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let request = request.into_inner();
        let limit = page_size(request.page_size);
        let after = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| {
                status::invalid(&ProtocolError::at("pageToken", "not a token of an earlier response"))
            })?,
        };
        let view = self.view(&request.name)?;
        let mut events = self.events(&view, after, limit + 1).await?;
        let more = events.len() > limit;
        events.truncate(limit);
        let last = events.last().map(|event| event.id.to_string());
        let next_page_token = last.filter(|_| more).unwrap_or_default();
        Ok(Response::new(pb::ListEventsResponse { events, next_page_token }))
    }

    async fn list_source_tables(
        &self,
        request: Request<pb::ListSourceTablesRequest>,
    ) -> Result<Response<pb::ListSourceTablesResponse>, Status> {
        let missing = || status::invalid(&ProtocolError::at("source", "missing"));
        let source = request.into_inner().source.ok_or_else(missing)?;
        let source =
            PostgresSource::try_from(source).map_err(|error| status::invalid(&error.within("source")))?;
        let inspected =
            self.inspect(InspectionSubject::Source(source)).await?.ok_or_else(status::no_worker)?;
        Ok(Response::new(pb::ListSourceTablesResponse {
            tables: tables_out(&inspected.tables),
            problems: problems_out(&inspected.problems),
        }))
    }

    type WatchPipeStream = Pin<Box<dyn Stream<Item = Result<pb::WatchPipeResponse, Status>> + Send>>;

    async fn watch_pipe(
        &self,
        request: Request<pb::WatchPipeRequest>,
    ) -> Result<Response<Self::WatchPipeStream>, Status> {
        let request = request.into_inner();
        let lead = self.offices.lead()?;
        let mut views =
            lead.directory.watch(&request.name).ok_or_else(|| status::pipe_not_found(&request.name))?;
        let (responses, stream) = mpsc::channel(4);
        let pipes = Self {
            offices: self.offices.clone(),
            catalog: self.catalog.clone(),
            inspection: self.inspection,
            closing: self.closing.clone(),
        };
        let mut last = request.after_event_id;
        // Ends with the pipe, with its watcher, with the term, or with the coordinator.
        tokio::spawn(async move {
            loop {
                let view = views.borrow_and_update().clone();
                let response = pipes.events(&view, last, EVENTS).await.map(|events| {
                    last = events.last().map_or(last, |event| event.id);
                    pb::WatchPipeResponse { pipe: Some(view.pipe.clone()), events }
                });
                let failed = response.is_err();
                if responses.send(response).await.is_err() || failed || view.farewell.is_some() {
                    return;
                }
                if last < view.last_event {
                    continue;
                }
                tokio::select! {
                    () = pipes.closing.cancelled() => {
                        let _ = responses.send(Err(status::shutting_down())).await;
                        return;
                    }
                    () = lead.over.cancelled() => {
                        // The watcher begins again after the last event that it has, with whoever leads then.
                        let _ = responses.send(Err(status::no_leader())).await;
                        return;
                    }
                    () = responses.closed() => return,
                    changed = views.changed() => if changed.is_err() { return },
                }
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
