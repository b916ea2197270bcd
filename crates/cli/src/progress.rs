//! A pipe's progress: in words, and as bars on a terminal.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use millrace_api::proto::pipe::v1 as wire;

use crate::rate::Rate;
use crate::view::{name_of, rounded, state_of, state_text, stream_text};
use crate::wording::{bytes, count, duration, table_state_word};

/// Steps of a bar: tenths of a percent.
const STEPS: u64 = 1000;

/// Remembers enough of a pipe's past to tell rates.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    tables: HashMap<String, Rate>,
    rows: Rate,
    changes: Rate,
}

impl Meter {
    /// Takes notice of a pipe as it is now.
    pub(crate) fn record(&mut self, now: Instant, pipe: &wire::Pipe) {
        for table in &pipe.tables {
            self.tables.entry(table.source.clone()).or_default().record(now, table.rows_copied);
        }
        self.rows.record(now, pipe.tables.iter().map(|table| table.rows_copied).sum());
        if let Some(stream) = pipe.status.as_ref().and_then(|status| status.stream.as_ref()) {
            self.changes.record(now, stream.changes_applied);
        }
    }

    /// One line about the pipe as a whole; `None` in states in which nothing is counted.
    pub(crate) fn line(&self, pipe: &wire::Pipe) -> Option<String> {
        let text = match state_of(pipe) {
            wire::PipeState::Snapshot => self.copy_text(&pipe.tables, &self.rows),
            wire::PipeState::Running | wire::PipeState::Pausing => {
                stream_text(pipe.status.as_ref()?.stream.as_ref()?, self.changes.per_second())
            }
            _ => return None,
        };
        Some(format!("{}  {text}", state_text(pipe)))
    }

    /// One line about one table.
    fn table_line(&self, table: &wire::TableStatus) -> String {
        match (table.state(), self.tables.get(&table.source)) {
            (wire::TableState::Copying, Some(rate)) => self.copy_text(std::slice::from_ref(table), rate),
            _ => format!(
                "{}, {} rows, {}",
                table_state_word(table.state()),
                count(table.rows_copied),
                bytes(table.bytes_copied)
            ),
        }
    }

    fn copy_text(&self, tables: &[wire::TableStatus], rate: &Rate) -> String {
        let sum = |of: fn(&wire::TableStatus) -> u64| tables.iter().map(of).sum::<u64>();
        let rows = sum(|table| table.rows_copied);
        let (done, total) =
            (sum(|table| table.partitions_done.into()), sum(|table| table.partitions_total.into()));
        let mut text = format!(
            "{} rows, {}, {done}/{total} partitions",
            count(rows),
            bytes(sum(|table| table.bytes_copied))
        );
        if let Some(rate) = rate.per_second().filter(|rate| *rate >= 1.0) {
            text.push_str(&format!(", {} rows/s", rounded(rate)));
            if let Some(left) = time_left(sum(expected_rows), rows, rate) {
                text.push_str(&format!(", {} left", duration(left)));
            }
        }
        text
    }
}

/// Rows that a table is going to have copied, as far as that can be told.
fn expected_rows(table: &wire::TableStatus) -> u64 {
    if is_copied(table) { table.rows_copied } else { table.rows_estimated.max(table.rows_copied) }
}

/// Rounded to seconds, as more would flicker.
fn time_left(expected: u64, rows: u64, rate: f64) -> Option<Duration> {
    // Row counts are far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let seconds = expected.checked_sub(rows).filter(|left| *left > 0)? as f64 / rate;
    Duration::try_from_secs_f64(seconds.ceil()).ok()
}

fn is_copied(table: &wire::TableStatus) -> bool {
    !matches!(
        table.state(),
        wire::TableState::Unspecified | wire::TableState::Waiting | wire::TableState::Copying
    )
}

/// How much of a table is copied, in [`STEPS`]. Full only when it is.
fn steps_done(table: &wire::TableStatus) -> u64 {
    if is_copied(table) {
        return STEPS;
    }
    let (done, total) = match table.rows_estimated {
        0 => (u64::from(table.partitions_done), u64::from(table.partitions_total)),
        estimated => (table.rows_copied, estimated),
    };
    match total {
        0 => 0,
        total => (done.saturating_mul(STEPS) / total).min(STEPS - 1),
    }
}

/// Bars on a terminal: one for each table during the copy, then one line for the stream.
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
        if state_of(pipe) == wire::PipeState::Snapshot {
            let width = pipe.tables.iter().map(|table| table.source.chars().count()).max().unwrap_or(0);
            for table in &pipe.tables {
                let bar = self.tables.entry(table.source.clone()).or_insert_with(|| {
                    let bar = self.bars.add(ProgressBar::new(STEPS));
                    let prefix = format!("{:width$}", table.source);
                    bar.with_style(table_style()).with_prefix(prefix)
                });
                bar.set_position(steps_done(table));
                bar.set_message(meter.table_line(table));
            }
        } else {
            for (_, bar) in self.tables.drain() {
                bar.finish_and_clear();
            }
        }
        let text = meter.line(pipe).unwrap_or_else(|| {
            let cause = pipe.status.as_ref().map(|status| status.cause.as_str()).unwrap_or_default();
            format!("{}  {cause}", state_text(pipe))
        });
        let line = self.line.get_or_insert_with(|| {
            let line = self.bars.add(ProgressBar::new_spinner());
            line.enable_steady_tick(Duration::from_millis(200));
            line
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
        assert_eq!(meter.line(&at(1000)).unwrap(), "Snapshot  1,000 rows, 97.66 KiB, 1/4 partitions");
        meter.record(begin + Duration::from_secs(2), &at(5000));
        assert_eq!(
            meter.line(&at(5000)).unwrap(),
            "Snapshot  5,000 rows, 488.28 KiB, 1/4 partitions, 2,000 rows/s, 3.0 s left"
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
    fn a_bar_is_full_only_when_its_table_is_copied() {
        assert_eq!(steps_done(&copying(500, 1000)), 500);
        assert_eq!(steps_done(&copying(2000, 1000)), STEPS - 1);
        assert_eq!(steps_done(&copying(2000, 0)), 250);
        let streaming = wire::TableStatus { state: wire::TableState::Streaming.into(), ..Default::default() };
        assert_eq!(steps_done(&streaming), STEPS);
    }
}
