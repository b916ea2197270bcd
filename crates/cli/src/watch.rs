//! `millrace pipe watch` and `millrace pipe wait`

use std::pin::pin;
use std::time::{Duration, Instant};

use millrace_api::json::{to_json_line, to_yaml};
use millrace_api::proto::pipe::v1 as wire;

use crate::Session;
use crate::arguments::Output;
use crate::console::Console;
use crate::failure::Failure;
use crate::notices::Notices;
use crate::progress::{Board, Meter};
use crate::view::{happening, name_of, state_of, state_text};
use crate::watcher::Watcher;
use crate::wording::{duration, state_word, time};

/// Least time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Shows a pipe's life as it goes on.
pub(crate) async fn watch(
    name: &str,
    until: Option<wire::PipeState>,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let what = format!("pipe '{name}' could not be watched");
    let mut watcher = Watcher::new(session.connect(&what).await?, name);
    let mut display = Display::new(session.globals.output, console);
    let mut goal = Goal::new(until);
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    loop {
        let update = tokio::select! {
            update = watcher.next() => update,
            _ = &mut interrupt => {
                display.clear();
                return Ok(());
            }
        };
        let Some(update) = update.map_err(|error| Failure::refused(&what, error))? else {
            display.remark(console, &format!("pipe {name} is gone"))?;
            return match until {
                None => Ok(()),
                Some(state) => Err(gone(name, state)),
            };
        };
        display.show(console, &update)?;
        match goal.judge(&update) {
            Verdict::Open => {}
            Verdict::Reached => {
                let state = update.pipe.as_ref().map(state_text).unwrap_or_default();
                return display.remark(console, &format!("pipe {name}: {state}"));
            }
            Verdict::Unreachable => {
                display.clear();
                return Err(unreachable(&update, until));
            }
        }
    }
}

/// Waits until a pipe is in a state.
pub(crate) async fn wait(
    name: &str,
    state: wire::PipeState,
    timeout: Duration,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let what = format!("pipe '{name}' did not reach {}", state_word(state));
    let mut watcher = Watcher::new(session.connect(&what).await?, name);
    let mut goal = Goal::new(Some(state));
    let mut last = None;
    let reached = async {
        while let Some(update) = watcher.next().await.map_err(|error| Failure::refused(&what, error))? {
            match goal.judge(&update) {
                Verdict::Open => last = Some(update),
                Verdict::Reached => return Ok(update),
                Verdict::Unreachable => return Err(unreachable(&update, Some(state))),
            }
        }
        Err(gone(name, state))
    };
    let reached = tokio::time::timeout(timeout, reached).await;
    match reached {
        Ok(Ok(update)) => {
            let get = wire::GetResponse { pipe: update.pipe };
            crate::view::print(console, session.globals.output, &get, |_, _| {
                format!("pipe {name}: {}", state_word(state))
            })
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(late(name, state, timeout, last.and_then(|update| update.pipe))),
    }
}

/// Where a pipe should get to.
struct Goal {
    state: Option<wire::PipeState>,
    begun: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Not there yet.
    Open,
    Reached,
    /// By itself it never gets there.
    Unreachable,
}

impl Goal {
    fn new(state: Option<wire::PipeState>) -> Self {
        Self { state, begun: false }
    }

    /// Judges the next update. A state that was passed between two updates counts as reached; one that was passed before the
    /// first does not.
    fn judge(&mut self, update: &wire::WatchPipeResponse) -> Verdict {
        let now = update.pipe.as_ref().map_or(wire::PipeState::Unspecified, state_of);
        let passed = |goal| self.begun && update.events.iter().any(|event| event.to_state() == goal);
        let reached = self.state.is_some_and(|goal| now == goal || passed(goal));
        self.begun = true;
        match now {
            _ if reached => Verdict::Reached,
            wire::PipeState::Failed => Verdict::Unreachable,
            wire::PipeState::Completed if self.state.is_none() => Verdict::Reached,
            wire::PipeState::Completed => Verdict::Unreachable,
            _ => Verdict::Open,
        }
    }
}

fn gone(name: &str, state: wire::PipeState) -> Failure {
    Failure::new(
        format!("pipe '{name}' did not reach {}", state_word(state)),
        "it was deleted meanwhile",
        format!("apply it again, or see who deleted '{name}'"),
    )
}

fn unreachable(update: &wire::WatchPipeResponse, goal: Option<wire::PipeState>) -> Failure {
    let pipe = update.pipe.clone().unwrap_or_default();
    let name = name_of(&pipe);
    let state = state_of(&pipe);
    let what = match goal {
        Some(goal) => format!("pipe '{name}' did not reach {}", state_word(goal)),
        None => format!("pipe '{name}' has failed"),
    };
    let status = pipe.status.clone().unwrap_or_default();
    let why = match &status.problem {
        Some(problem) if state == wire::PipeState::Failed => {
            let table = if problem.table.is_empty() { String::new() } else { format!("{}: ", problem.table) };
            format!("{table}{} [{}]", problem.message, problem.code)
        }
        _ if status.cause.is_empty() => format!("it is {}", state_word(state)),
        _ => format!("it is {}: {}", state_word(state), status.cause),
    };
    let remedy = match status.problem {
        Some(problem) if !problem.remedy.is_empty() => problem.remedy,
        _ => format!("see 'millrace pipe events {name}'"),
    };
    Failure::new(what, why, remedy)
}

fn late(name: &str, goal: wire::PipeState, timeout: Duration, pipe: Option<wire::Pipe>) -> Failure {
    let what = format!("pipe '{name}' did not reach {} within {}", state_word(goal), duration(timeout));
    let Some(pipe) = pipe else {
        return Failure::new(
            what,
            "the coordinator did not answer",
            "see whether it runs and answers, then try again",
        );
    };
    let status = pipe.status.clone().unwrap_or_default();
    let mut why = format!("it is {}", state_text(&pipe));
    if !status.cause.is_empty() {
        why.push_str(&format!(": {}", status.cause));
    }
    let remedy = match &status.problem {
        Some(problem) => {
            why.push_str(&format!("; {} [{}]", problem.message, problem.code));
            problem.remedy.clone()
        }
        None => format!("wait longer with --timeout, or follow it with 'millrace pipe watch {name}'"),
    };
    Failure::new(what, why, remedy)
}

/// How updates are shown.
struct Display {
    form: Form,
    meter: Meter,
    notices: Notices,
}

enum Form {
    /// Bars that move, on a terminal.
    Live(Box<Board>),
    /// Lines, where nobody looks on; with what was printed last.
    Plain(Option<(Instant, String)>),
    /// Every update as it came.
    Raw(Output),
}

impl Display {
    fn new(output: Output, console: &Console) -> Self {
        let form = match output {
            Output::Table if console.interactive() => Form::Live(Box::new(Board::new())),
            Output::Table => Form::Plain(None),
            Output::Json | Output::Yaml => Form::Raw(output),
        };
        Self { form, meter: Meter::default(), notices: Notices::default() }
    }

    fn show(&mut self, console: &mut Console, update: &wire::WatchPipeResponse) -> Result<(), Failure> {
        let now = Instant::now();
        let pipe = update.pipe.clone().unwrap_or_default();
        self.meter.record(now, &pipe);
        let mut news: Vec<String> = update.events.iter().map(|event| event_line(event, console)).collect();
        news.extend(self.notices.of(&pipe));
        match &mut self.form {
            Form::Raw(Output::Yaml) => console.print(&format!("---\n{}", to_yaml(update)?)),
            Form::Raw(_) => console.print(&to_json_line(update)?),
            Form::Live(board) => {
                news.iter().for_each(|text| board.print(text));
                board.draw(&pipe, &self.meter);
                Ok(())
            }
            Form::Plain(printed) => {
                for text in &news {
                    console.print(text)?;
                }
                let lines: Vec<String> =
                    self.meter.line(&pipe).into_iter().chain(self.meter.copy_lines(&pipe)).collect();
                let text = lines.join("\n");
                let due = printed
                    .as_ref()
                    .is_none_or(|(at, last)| now.duration_since(*at) >= LINE_INTERVAL && *last != text);
                if due && !text.is_empty() {
                    console.print(&text)?;
                    *printed = Some((now, text));
                }
                Ok(())
            }
        }
    }

    /// A last word for people.
    fn remark(&mut self, console: &mut Console, text: &str) -> Result<(), Failure> {
        self.clear();
        match self.form {
            Form::Raw(_) => Ok(()),
            Form::Live(_) | Form::Plain(_) => console.print(text),
        }
    }

    fn clear(&mut self) {
        if let Form::Live(board) = &mut self.form {
            board.clear();
        }
    }
}

fn event_line(event: &wire::Event, console: &Console) -> String {
    format!("{}  {} ({})", time(event.time.as_ref(), console.time_zone()), happening(event), event.actor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(state: wire::PipeState, passed: &[wire::PipeState]) -> wire::WatchPipeResponse {
        let status = wire::PipeStatus { state: state.into(), ..Default::default() };
        let event = |state: &wire::PipeState| wire::Event { to_state: (*state).into(), ..Default::default() };
        wire::WatchPipeResponse {
            pipe: Some(wire::Pipe { status: Some(status), ..Default::default() }),
            events: passed.iter().map(event).collect(),
        }
    }

    #[test]
    fn a_state_that_was_passed_between_two_updates_is_reached() {
        use wire::PipeState::{Provisioning, Running, Snapshot};
        let mut goal = Goal::new(Some(Snapshot));
        assert_eq!(goal.judge(&update(Provisioning, &[])), Verdict::Open);
        assert_eq!(goal.judge(&update(Running, &[Snapshot, Running])), Verdict::Reached);
    }

    #[test]
    fn a_state_of_the_past_is_not_reached() {
        use wire::PipeState::{Paused, Running, Snapshot};
        let mut goal = Goal::new(Some(Running));
        assert_eq!(goal.judge(&update(Paused, &[Snapshot, Running, Paused])), Verdict::Open);
    }

    #[test]
    fn a_failed_or_completed_pipe_reaches_nothing_else() {
        use wire::PipeState::{Completed, Failed, Running};
        assert_eq!(Goal::new(Some(Running)).judge(&update(Failed, &[])), Verdict::Unreachable);
        assert_eq!(Goal::new(Some(Running)).judge(&update(Completed, &[])), Verdict::Unreachable);
        assert_eq!(Goal::new(Some(Failed)).judge(&update(Failed, &[])), Verdict::Reached);
        assert_eq!(Goal::new(None).judge(&update(Completed, &[])), Verdict::Reached);
        assert_eq!(Goal::new(None).judge(&update(Failed, &[])), Verdict::Unreachable);
        assert_eq!(Goal::new(None).judge(&update(Running, &[])), Verdict::Open);
    }
}
