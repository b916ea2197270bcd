//! `millrace top`

use std::collections::HashMap;
use std::time::{Duration, Instant};

use millrace_api::ApiError;
use millrace_api::client::Clients;
use millrace_api::proto::pipe::v1 as wire;
use tokio::time::MissedTickBehavior;
use tonic::Status;

use crate::arguments::{Output, TopOptions};
use crate::completion::copies;
use crate::console::Console;
use crate::failure::Failure;
use crate::grid::Grid;
use crate::keyboard::Keyboard;
use crate::pipe::all_pipes;
use crate::progress::Meter;
use crate::view::{self, delay, name_of, problem_lines, rounded, state_text};
use crate::wording::{bytes, health_word};
use crate::{Session, wording};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take before that is told.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time between the two looks that a single table takes, for rates.
const LOOK: Duration = Duration::from_secs(2);
const WHAT: &str = "the pipes could not be listed";

/// Another screen that takes the place of what is on the terminal; no cursor, and long lines are cut.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const TO_START: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows all pipes: once, or over and over on a terminal.
pub(crate) async fn run(
    options: &TopOptions,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let mut clients = session.connect(WHAT).await?;
    // Rates are of two looks; programs get what they need to tell them.
    if session.globals.output != Output::Table {
        let all = all_pipes(&mut clients).await.map_err(|error| Failure::refused(WHAT, error))?;
        return view::print(console, session.globals.output, &all, view::pipes);
    }
    let mut top = Top { clients, meters: HashMap::new(), pipes: Vec::new() };
    if options.once || !console.on_terminal() {
        return top.print(console).await;
    }
    console.draw(ENTER)?;
    let keyboard = Keyboard::new();
    let ended = tokio::select! {
        () = keyboard.leave() => Ok(()),
        failed = top.draw_on(console) => failed,
    };
    console.draw(LEAVE)?;
    ended
}

/// All pipes as they were seen last, and how fast they are.
struct Top {
    clients: Clients,
    meters: HashMap<String, Meter>,
    pipes: Vec<wire::Pipe>,
}

impl Top {
    async fn print(&mut self, console: &mut Console) -> Result<(), Failure> {
        let refused = |error| Failure::refused(WHAT, error);
        self.look().await.map_err(refused)?;
        if self.pipes.iter().any(|pipe| has_stream(pipe) || is_copying(pipe)) {
            tokio::time::sleep(LOOK).await;
            self.look().await.map_err(refused)?;
        }
        console.print(&table(&self.pipes, &self.meters))
    }

    /// Draws until nothing can be drawn any more. A coordinator that goes away is waited for.
    async fn draw_on(&mut self, console: &mut Console) -> Result<(), Failure> {
        let mut due = tokio::time::interval(INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answered: Option<Instant> = None;
        loop {
            due.tick().await;
            let looked = tokio::time::timeout(PATIENCE, self.look())
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("the coordinator takes too long").into()));
            let remark = match (looked, answered) {
                (Ok(()), _) => {
                    answered = Some(Instant::now());
                    "q or Ctrl-C ends this".to_owned()
                }
                (Err(error), None) => return Err(Failure::refused(WHAT, error)),
                (Err(error), Some(at)) => {
                    format!("no answer for {}: {}", wording::duration(at.elapsed()), error.message)
                }
            };
            let text = format!("{}\n{remark}", table(&self.pipes, &self.meters));
            let height = ::console::Term::stdout().size_checked().map_or(24, |(rows, _)| rows.into());
            console.draw(&frame(&text, height))?;
        }
    }

    async fn look(&mut self) -> Result<(), ApiError> {
        let all = all_pipes(&mut self.clients).await?;
        let now = Instant::now();
        self.meters.retain(|name, _| all.pipes.iter().any(|pipe| name_of(pipe) == name));
        for pipe in &all.pipes {
            self.meters.entry(name_of(pipe).to_owned()).or_default().record(now, pipe);
        }
        self.pipes = all.pipes;
        Ok(())
    }
}

fn has_stream(pipe: &wire::Pipe) -> bool {
    pipe.status.as_ref().is_some_and(|status| status.stream.is_some())
}

fn is_copying(pipe: &wire::Pipe) -> bool {
    copies(pipe).iter().any(|(_, table)| table.state() == wire::TableState::Copying)
}

/// All pipes, a line each, then what is in their way.
fn table(pipes: &[wire::Pipe], meters: &HashMap<String, Meter>) -> String {
    if pipes.is_empty() {
        return "There are no pipes; 'millrace pipe apply -f pipe.yaml' makes one.\n".to_owned();
    }
    let mut grid = Grid::new(&["NAME", "STATE", "HEALTH", "CHANGES/S", "ROWS/S", "LAG", "DELAY"]);
    let mut troubles = String::new();
    for pipe in pipes {
        let name = name_of(pipe);
        let status = pipe.status.clone().unwrap_or_default();
        let stream = status.stream.as_ref();
        let meter = meters.get(name);
        let rate =
            |shown: bool, rate: Option<f64>| rate.filter(|_| shown).map_or_else(|| "-".to_owned(), rounded);
        grid.row([
            name.to_owned(),
            state_text(pipe),
            health_word(status.health()).to_owned(),
            rate(stream.is_some(), meter.and_then(Meter::changes_per_second)),
            rate(is_copying(pipe), meter.and_then(Meter::rows_per_second)),
            stream.map_or_else(|| "-".to_owned(), |stream| bytes(stream.lag_bytes)),
            delay(stream),
        ]);
        let well = matches!(status.health(), wire::Health::Ok | wire::Health::Unspecified);
        if let Some(problem) = status.problem.filter(|_| !well) {
            let what = problem_lines(&problem).into_iter().next().unwrap_or_default();
            troubles.push_str(&format!("{name}: {what}\n"));
        }
    }
    let gap = if troubles.is_empty() { "" } else { "\n" };
    grid.render() + gap + &troubles
}

/// What draws a text over the one before, as much of it as there is room for.
fn frame(text: &str, height: usize) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    if lines.len() > height {
        let last = lines.pop();
        lines.truncate(height.saturating_sub(1));
        lines.extend(last);
    }
    let drawn: Vec<String> = lines.iter().map(|line| format!("{line}{CLEAR_LINE}")).collect();
    format!("{TO_START}{}{CLEAR_BELOW}", drawn.join("\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(name: &str, state: wire::PipeState) -> wire::Pipe {
        wire::Pipe {
            spec: Some(wire::PipeSpec { name: name.to_owned(), ..Default::default() }),
            status: Some(wire::PipeStatus {
                state: state.into(),
                health: wire::Health::Ok.into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn streaming(changes: u64) -> wire::Pipe {
        let mut pipe = pipe("shop", wire::PipeState::Running);
        if let Some(status) = &mut pipe.status {
            status.health = wire::Health::Degraded.into();
            status.problem = Some(wire::Problem {
                code: "READ_ONLY".to_owned(),
                message: "it is read-only".to_owned(),
                remedy: "make it writable".to_owned(),
                table: "public.orders".to_owned(),
                ..Default::default()
            });
            status.stream = Some(wire::StreamStatus {
                changes_applied: changes,
                lag_bytes: 2048,
                delay: Some(prost_types::Duration { seconds: 0, nanos: 35_000_000 }),
                ..Default::default()
            });
        }
        pipe
    }

    fn copying(rows: u64) -> wire::Pipe {
        let table = wire::TableStatus {
            source: "public.orders".to_owned(),
            state: wire::TableState::Copying.into(),
            rows_copied: rows,
            ..Default::default()
        };
        wire::Pipe { tables: vec![table], ..pipe("archive", wire::PipeState::Snapshot) }
    }

    #[test]
    fn every_pipe_tells_how_fast_it_is_and_what_is_in_its_way() {
        let begin = Instant::now();
        let mut meters: HashMap<String, Meter> = HashMap::new();
        let mut seen = Vec::new();
        for second in 0..=2 {
            seen =
                vec![copying(second * 500), streaming(second * 1200), pipe("still", wire::PipeState::Paused)];
            for pipe in &seen {
                let meter = meters.entry(name_of(pipe).to_owned()).or_default();
                meter.record(begin + Duration::from_secs(second), pipe);
            }
        }
        insta::assert_snapshot!(table(&seen, &meters));
        assert!(table(&[], &HashMap::new()).starts_with("There are no pipes"));
    }

    #[test]
    fn a_frame_fits_the_terminal_and_keeps_its_last_line() {
        let text = "one\ntwo\nthree\nfour\n";
        assert_eq!(frame(text, 3), "\x1b[Hone\x1b[K\r\ntwo\x1b[K\r\nfour\x1b[K\x1b[J");
        assert_eq!(frame("one", 3), "\x1b[Hone\x1b[K\x1b[J");
    }
}
