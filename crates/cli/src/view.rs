//! What responses look like to a person.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::tz::TimeZone;
use millrace_api::json::{to_json_text, to_yaml};
use millrace_api::proto::pipe::v1 as wire;
use millrace_api::time::read_duration;
use prost::{Message, Name};

use crate::arguments::Output;
use crate::console::Console;
use crate::failure::Failure;
use crate::grid::Grid;
use crate::table_view::table_grid;
use crate::wording::{
    bytes, count, duration, health_word, mode_word, severity_word, state_word, time, worker_state_word,
};

/// Prints a response in the form that was asked for; `text` makes the one for people.
pub(crate) fn print<M: Message + Name>(
    console: &mut Console,
    output: Output,
    response: &M,
    text: impl FnOnce(&M, &TimeZone) -> String,
) -> Result<(), Failure> {
    let text = match output {
        Output::Table => text(response, console.time_zone()),
        Output::Json => to_json_text(response)?,
        Output::Yaml => to_yaml(response)?,
    };
    console.print(&text)
}

/// The pipe's name, state and health, which may all be absent from what came in.
pub(crate) fn name_of(pipe: &wire::Pipe) -> &str {
    pipe.spec.as_ref().map_or("-", |spec| spec.name.as_str())
}

/// The state of a pipe; unspecified where it is absent.
pub(crate) fn state_of(pipe: &wire::Pipe) -> wire::PipeState {
    pipe.status.as_ref().map_or(wire::PipeState::Unspecified, wire::PipeStatus::state)
}

/// `Running`, or `Running, deleting`.
pub(crate) fn state_text(pipe: &wire::Pipe) -> String {
    let deleting = pipe.status.as_ref().is_some_and(|status| status.deleting);
    format!("{}{}", state_word(state_of(pipe)), if deleting { ", deleting" } else { "" })
}

/// All pipes, a line each.
pub(crate) fn pipes(response: &wire::ListResponse, zone: &TimeZone) -> String {
    if response.pipes.is_empty() {
        return "There are no pipes; 'millrace pipe apply -f pipe.yaml' makes one.".to_owned();
    }
    let mut grid = Grid::new(&["NAME", "STATE", "HEALTH", "MODE", "TABLES", "LAG", "DELAY", "SINCE"]);
    for pipe in &response.pipes {
        let status = pipe.status.clone().unwrap_or_default();
        let tables = pipe.spec.as_ref().map_or(0, |spec| spec.tables.len());
        let tables = match status.tables_set_aside {
            0 => tables.to_string(),
            aside => format!("{tables}, {aside} set aside"),
        };
        grid.row([
            name_of(pipe).to_owned(),
            state_text(pipe),
            health_word(status.health()).to_owned(),
            pipe.spec.as_ref().map_or("-", |spec| mode_word(spec.replication_mode())).to_owned(),
            tables,
            status.stream.as_ref().map_or("-".to_owned(), |stream| bytes(stream.lag_bytes)),
            delay(status.stream.as_ref()),
            time(status.state_since.as_ref(), zone),
        ]);
    }
    grid.render()
}

/// The delay of a stream; `-` where it has none yet.
pub(crate) fn delay(stream: Option<&wire::StreamStatus>) -> String {
    let delay = stream.and_then(|stream| stream.delay.as_ref()).and_then(read_duration);
    delay.map_or("-".to_owned(), duration)
}

/// How a stream does, on one line.
pub(crate) fn stream_text(stream: &wire::StreamStatus, per_second: Option<f64>) -> String {
    let rate = per_second.map(|rate| format!("{} changes/s, ", rounded(rate))).unwrap_or_default();
    let (lag, delay) = (bytes(stream.lag_bytes), delay(Some(stream)));
    format!("{rate}lag {lag}, delay {delay}, {} changes", count(stream.changes_applied))
}

/// How full a slot is, on one line.
fn slot_text(slot: &wire::SlotStatus, zone: &TimeZone) -> String {
    let room = slot.headroom_bytes.map_or_else(
        || "no limit at the source".to_owned(),
        |headroom| format!("room for {}", bytes(headroom)),
    );
    let (retained, at) = (bytes(slot.retained_bytes), time(slot.measured_at.as_ref(), zone));
    format!("{retained} for the slot ({}), {room}, seen {at}", slot.wal_status)
}

/// A rate as a whole number.
pub(crate) fn rounded(rate: f64) -> String {
    // A float is cut to what fits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    count(rate.max(0.0).round() as u64)
}

/// Everything about one pipe.
pub(crate) fn pipe(response: &wire::GetResponse, zone: &TimeZone) -> String {
    let pipe = response.pipe.clone().unwrap_or_default();
    let status = pipe.status.clone().unwrap_or_default();
    let spec = pipe.spec.clone().unwrap_or_default();
    let mut grid = Grid::new(&["pipe", name_of(&pipe)]);
    let mut line = |label: &str, text: String| {
        if !text.is_empty() {
            grid.row([label.to_owned(), text]);
        }
    };
    line("state", format!("{} since {}", state_text(&pipe), time(status.state_since.as_ref(), zone)));
    line("why", status.cause.clone());
    line("next", status.next.clone());
    line("you can", status.commands.join(", "));
    line(
        "health",
        match &status.health_since {
            Some(since) => format!("{} since {}", health_word(status.health()), time(Some(since), zone)),
            None => health_word(status.health()).to_owned(),
        },
    );
    if let Some(problem) = &status.problem {
        let mut lines = problem_lines(problem).into_iter();
        line("problem", lines.next().unwrap_or_default());
        for text in lines {
            line("", text);
        }
    }
    if status.tables_set_aside > 0 {
        let of = pipe.tables.len();
        line(
            "set aside",
            format!("{} of {of} tables; what is wrong with each stands below", status.tables_set_aside),
        );
    }
    if let Some(stream) = &status.stream {
        line("stream", stream_text(stream, None));
        line("durable", format!("{} of {}", stream.durable_lsn, stream.source_lsn));
        line("log kept", stream.slot.as_ref().map(|slot| slot_text(slot, zone)).unwrap_or_default());
    }
    let source = spec.source.unwrap_or_default();
    line("source", format!("{}@{}:{}/{}", source.username, source.host, source.port, source.database));
    let destination = spec.destination.unwrap_or_default();
    line("destination", format!("{} {}", destination.url, destination.database));
    line(
        "mode",
        mode_word(wire::ReplicationMode::try_from(spec.replication_mode).unwrap_or_default()).to_owned(),
    );
    line("slot", status.slot_name.clone());
    line("publication", status.publication_name.clone());
    line("began at", status.consistent_point.clone());
    for work in &status.assignments {
        let detail = if work.detail.is_empty() { String::new() } else { format!(" {}", work.detail) };
        line("work", format!("{}{detail} on {} (epoch {})", work.work, work.worker_id, work.epoch));
    }
    line("created", time(pipe.created_at.as_ref(), zone));
    line("id", pipe.id.clone());
    if pipe.tables.is_empty() {
        return grid.render();
    }
    format!("{}\n{}", grid.render(), table_grid(&pipe.tables))
}

/// The tables of a pipe, a line each, then their problems.
pub(crate) fn tables(response: &wire::GetResponse, _: &TimeZone) -> String {
    let tables = response.pipe.as_ref().map(|pipe| pipe.tables.as_slice()).unwrap_or_default();
    table_grid(tables)
}

/// What happened, a line each.
pub(crate) fn events(response: &wire::ListEventsResponse, zone: &TimeZone) -> String {
    let mut grid = Grid::new(&["TIME", "KIND", "ACTOR", "WHAT HAPPENED"]);
    for event in &response.events {
        let at = time(event.time.as_ref(), zone);
        grid.row([at, event.kind.clone(), event.actor.clone(), happening(event)]);
    }
    grid.render()
}

/// An event without time and actor.
pub(crate) fn happening(event: &wire::Event) -> String {
    let mut text = match (event.from_state(), event.to_state()) {
        (_, wire::PipeState::Unspecified) => String::new(),
        (wire::PipeState::Unspecified, to) => format!("{}: ", state_word(to)),
        (from, to) => format!("{} -> {}: ", state_word(from), state_word(to)),
    };
    // A problem's message names its table and code already.
    if !event.table.is_empty() && !event.message.starts_with(&event.table) {
        let _infallible = write!(text, "{}: ", event.table);
    }
    text.push_str(&event.message);
    if let Some(problem) = &event.problem {
        if !event.message.contains(&problem.message) {
            let _infallible = write!(text, " ({})", problem.message);
        }
        if !event.message.contains(&problem.code) {
            let _infallible = write!(text, " [{}]", problem.code);
        }
    }
    text
}

/// A problem behind a label, such as its severity, and, on a line of its own, its remedy.
pub(crate) fn problem_text(label: &str, problem: &wire::Problem) -> String {
    let mut lines = problem_lines(problem).into_iter();
    let mut text = format!("{label}: {}\n", lines.next().unwrap_or_default());
    for line in lines {
        let _infallible = writeln!(text, "  {line}");
    }
    text
}

/// A table's problem, with the table named.
pub(crate) fn problem_of(problem: &wire::Problem, table: &str) -> wire::Problem {
    wire::Problem { table: table.to_owned(), ..problem.clone() }
}

/// What is wrong, then what to do.
pub(crate) fn problem_lines(problem: &wire::Problem) -> Vec<String> {
    let subject = if problem.table.is_empty() { String::new() } else { format!("{}: ", problem.table) };
    let mut lines = vec![format!("{subject}{} [{}]", problem.message, problem.code)];
    lines.extend(problem.remedy.lines().map(|line| format!("-> {line}")));
    lines
}

/// The tables that a source offers, then what is wrong.
pub(crate) fn source_tables(tables: &[wire::SourceTable], problems: &[wire::Problem]) -> String {
    let mut text = String::new();
    if !tables.is_empty() {
        let mut grid = Grid::new(&["TABLE", "ROWS ABOUT", "SIZE", "KEY", "IDENTITY", "COLUMNS"]);
        for table in tables {
            let key = if table.key.is_empty() { "-".to_owned() } else { table.key.join(", ") };
            grid.row([
                table.name.clone(),
                count(table.rows_estimated),
                bytes(table.bytes),
                key,
                table.replica_identity.clone(),
                table.columns.len().to_string(),
            ]);
        }
        text.push_str(&grid.render());
    }
    let of_tables = tables.iter().flat_map(|table| &table.problems);
    // A problem may be told both of its table and in all.
    let in_all =
        problems.iter().filter(|problem| !tables.iter().any(|table| table.problems.contains(problem)));
    for (index, problem) in in_all.chain(of_tables).enumerate() {
        if index == 0 && !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&problem_text(severity_word(problem.severity()), problem));
    }
    text
}

/// `zone=a,pool=large`, by name.
fn labels(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if pairs.is_empty() { "-".to_owned() } else { pairs.join(",") }
}

/// The fleet, a line each.
pub(crate) fn workers(response: &wire::ListWorkersResponse, zone: &TimeZone) -> String {
    if response.workers.is_empty() {
        return "No worker is connected; 'millrace worker' starts one.".to_owned();
    }
    let mut grid =
        Grid::new(&["WORKER", "STATE", "TASKS", "MEMORY", "LABELS", "VERSION", "CONNECTED", "HEARD"]);
    for worker in &response.workers {
        grid.row([
            worker.id.clone(),
            worker_state_word(worker.state()),
            format!("{}/{}", worker.tasks, worker.max_tasks),
            format!("{} of {}", bytes(worker.memory_used_bytes), bytes(worker.memory_budget_bytes)),
            labels(&worker.labels),
            worker.version.clone(),
            time(worker.connected_at.as_ref(), zone),
            time(worker.heard_at.as_ref(), zone),
        ]);
    }
    grid.render()
}
