//! A pipe's progress: in words, and as bars on a terminal.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use millrace_api::proto::pipe::v1 as wire;

use crate::completion::{STEPS, copies, expected_rows, percent_of_all, percent_text, steps_done, time_left};
use crate::rate::Rate;
use crate::table_view;
use crate::view::{name_of, rounded, state_of, state_text, stream_text};
use crate::wording::{bytes, count, duration};

/// Remembers enough of a pipe's past to tell rates.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    copies: HashMap<String, Rate>,
    rows: Rate,
    changes: Rate,
}

impl Meter {
    /// Takes notice of a pipe as it is now.
    pub(crate) fn record(&mut self, now: Instant, pipe: &wire::Pipe) {
        let copies = copies(pipe);
        let known = |label: &String| copies.iter().any(|(other, _)| other == label);
        // The rows of other copies say nothing about the rate.
        if self.copies.len() != copies.len() || !self.copies.keys().all(known) {
            self.rows = Rate::default();
        }
        self.copies.retain(|label, _| known(label));
        self.rows.record(now, copies.iter().map(|(_, table)| table.rows_copied).sum());
        for (label, table) in copies {
            self.copies.entry(label).or_default().record(now, table.rows_copied);
        }
        if let Some(stream) = pipe.status.as_ref().and_then(|status| status.stream.as_ref()) {
            self.changes.record(now, stream.changes_applied);
        }
    }

    /// Changes a second, once two reports are there.
    pub(crate) fn changes_per_second(&self) -> Option<f64> {
        self.changes.per_second()
    }

    /// Rows copied a second, once two reports are there.
    pub(crate) fn rows_per_second(&self) -> Option<f64> {
        self.rows.per_second()
    }

    /// One line about the pipe as a whole; `None` in states in which nothing is counted.
    pub(crate) fn line(&self, pipe: &wire::Pipe) -> Option<String> {
        let text = match state_of(pipe) {
            wire::PipeState::Snapshot => {
                let copies: Vec<_> = copies(pipe).into_iter().map(|(_, table)| table).collect();
                self.copy_text(&copies, &self.rows, percent_of_all(&copies))
            }
            wire::PipeState::Running | wire::PipeState::Pausing => {
                stream_text(pipe.status.as_ref()?.stream.as_ref()?, self.changes.per_second())
            }
            _ => return None,
        };
        Some(format!("{}  {text}", state_text(pipe)))
    }

    /// A line about each table that is copied while the pipe as a whole is at something else.
    pub(crate) fn copy_lines(&self, pipe: &wire::Pipe) -> Vec<String> {
        if state_of(pipe) == wire::PipeState::Snapshot {
            return Vec::new();
        }
        let line = |(label, table): (String, &wire::TableStatus)| {
            format!("  {label}  {} {}", percent_text(table), self.table_line(&label, table))
        };
        copies(pipe).into_iter().map(line).collect()
    }

    /// One line about one table, without what a bar shows.
    fn table_line(&self, label: &str, table: &wire::TableStatus) -> String {
        match (table.state(), self.copies.get(label)) {
            (wire::TableState::Copying, Some(rate)) => {
                format!("{}, {}", table_view::state_text(table), self.copy_text(&[table], rate, None))
            }
            _ => format!(
                "{}, {} rows, {}",
                table_view::state_text(table),
                count(table.rows_copied),
                bytes(table.bytes_copied)
            ),
        }
    }

    fn copy_text(&self, tables: &[&wire::TableStatus], rate: &Rate, percent: Option<u64>) -> String {
        let sum = |of: fn(&wire::TableStatus) -> u64| tables.iter().map(|table| of(table)).sum::<u64>();
        let rows = sum(|table| table.rows_copied);
        let (done, total) =
            (sum(|table| table.partitions_done.into()), sum(|table| table.partitions_total.into()));
        let mut text = format!(
            "{} rows, {}, {done}/{total} partitions",
            count(rows),
            bytes(sum(|table| table.bytes_copied))
        );
        if let Some(percent) = percent {
            text.push_str(&format!(", {percent}%"));
        }
        if let Some(rate) = rate.per_second().filter(|rate| *rate >= 1.0) {
            text.push_str(&format!(", {} rows/s", rounded(rate)));
            if let Some(left) = time_left(sum(expected_rows), rows, rate) {
                text.push_str(&format!(", {} left", duration(left)));
            }
        }
        text
    }
}

/// Bars on a terminal: one for each table that is being copied, and below them a line about the pipe.
pub(crate) struct Board {
    bars: MultiProgress,
    tables: HashMap<String, ProgressBar>,
    line: Option<ProgressBar>,
}

impl Board {
    pub(crate) fn new() -> Self {
        Self { bars: MultiProgress::new(), tables: HashMap::new(), line: None }
    }

    /// Prints a line above the bars.
    pub(crate) fn print(&self, text: &str) {
        // Nobody can be told that the terminal is gone.
        let _unread = self.bars.println(text);
    }

    /// Draws the pipe as it is now.
    pub(crate) fn draw(&mut self, pipe: &wire::Pipe, meter: &Meter) {
        let line = self.line.get_or_insert_with(|| {
            let line = self.bars.add(ProgressBar::new_spinner());
            line.enable_steady_tick(Duration::from_millis(200));
            line
        });
        let copies = copies(pipe);
        self.tables.retain(|label, bar| {
            let goes_on = copies.iter().any(|(other, _)| other == label);
            if !goes_on {
                bar.finish_and_clear();
            }
            goes_on
        });
        let width = copies.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        for (label, table) in &copies {
            let bar = self.tables.entry(label.clone()).or_insert_with(|| {
                self.bars.insert_before(line, ProgressBar::new(STEPS)).with_style(table_style())
            });
            bar.set_prefix(format!("{label:width$}"));
            bar.set_position(steps_done(table));
            bar.set_message(meter.table_line(label, table));
        }
        let text = meter.line(pipe).unwrap_or_else(|| {
            let cause = pipe.status.as_ref().map(|status| status.cause.as_str()).unwrap_or_default();
            format!("{}  {cause}", state_text(pipe))
        });
        line.set_message(format!("{}  {text}", name_of(pipe)));
    }

    /// Takes the bars away.
    pub(crate) fn clear(&mut self) {
        for (_, bar) in self.tables.drain() {
            bar.finish_and_clear();
        }
        if let Some(line) = self.line.take() {
            line.finish_and_clear();
        }
    }
}

fn table_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {bar:30} {percent:>3}% {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copying(rows: u64, estimated: u64) -> wire::TableStatus {
        wire::TableStatus {
            source: "public.orders".to_owned(),
            state: wire::TableState::Copying.into(),
            rows_copied: rows,
            bytes_copied: rows * 100,
            rows_estimated: estimated,
            partitions_done: 1,
            partitions_total: 4,
            ..Default::default()
        }
    }

    fn pipe(state: wire::PipeState, tables: Vec<wire::TableStatus>, changes: u64) -> wire::Pipe {
        let stream = wire::StreamStatus {
            changes_applied: changes,
            lag_bytes: 2048,
            delay: Some(prost_types::Duration { seconds: 0, nanos: 35_000_000 }),
            ..Default::default()
        };
        let status = wire::PipeStatus { state: state.into(), stream: Some(stream), ..Default::default() };
        wire::Pipe { tables, status: Some(status), ..Default::default() }
    }

    #[test]
    fn a_copy_tells_rate_and_time_left_once_two_reports_are_there() {
        let begin = Instant::now();
        let mut meter = Meter::default();
        let at = |rows| pipe(wire::PipeState::Snapshot, vec![copying(rows, 10_000)], 0);
        meter.record(begin, &at(1000));
        assert_eq!(meter.line(&at(1000)).unwrap(), "Snapshot  1,000 rows, 97.66 KiB, 1/4 partitions, 10%");
        meter.record(begin + Duration::from_secs(2), &at(5000));
        assert_eq!(
            meter.line(&at(5000)).unwrap(),
            "Snapshot  5,000 rows, 488.28 KiB, 1/4 partitions, 50%, 2,000 rows/s, 3.0 s left"
        );
    }

    #[test]
    fn a_stream_tells_rate_lag_and_delay() {
        let begin = Instant::now();
        let mut meter = Meter::default();
        meter.record(begin, &pipe(wire::PipeState::Running, Vec::new(), 0));
        let now = pipe(wire::PipeState::Running, Vec::new(), 3000);
        meter.record(begin + Duration::from_secs(3), &now);
        assert_eq!(
            meter.line(&now).unwrap(),
            "Running  1,000 changes/s, lag 2.00 KiB, delay 35 ms, 3,000 changes"
        );
        assert_eq!(meter.line(&pipe(wire::PipeState::Paused, Vec::new(), 0)), None);
    }

    #[test]
    fn a_copy_that_begins_with_rows_is_no_rate() {
        let begin = Instant::now();
        let mut meter = Meter::default();
        meter.record(begin, &pipe(wire::PipeState::Setup, Vec::new(), 0));
        let copying = pipe(wire::PipeState::Snapshot, vec![copying(5000, 10_000)], 0);
        meter.record(begin + Duration::from_secs(1), &copying);
        assert_eq!(meter.rows_per_second(), None);
    }

    #[test]
    fn a_table_that_is_copied_anew_has_a_line_of_its_own() {
        let begin = Instant::now();
        let mut meter = Meter::default();
        let at = |rows| {
            let table = wire::TableStatus {
                source: "public.orders".to_owned(),
                state: wire::TableState::Streaming.into(),
                successor: Some(Box::new(copying(rows, 10_000))),
                ..Default::default()
            };
            pipe(wire::PipeState::Running, vec![table], 0)
        };
        meter.record(begin, &at(1000));
        meter.record(begin + Duration::from_secs(2), &at(5000));
        let told = "  public.orders (new copy)  50% copying, 5,000 rows, 488.28 KiB, 1/4 partitions, 2,000 rows/s, 3.0 s left";
        assert_eq!(meter.copy_lines(&at(5000)), [told]);
    }
}
