//! Figures: kept run by run, told as medians.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::binary;

/// Widest name of a line.
const NAME_WIDTH: usize = 46;

/// What a figure is.
#[derive(Debug)]
pub(super) struct Column {
    /// Its name in the file.
    pub(super) key: &'static str,
    /// Its heading.
    pub(super) head: &'static str,
    /// What it says, for the reader of the table.
    pub(super) meaning: &'static str,
    /// Digits after the point.
    pub(super) decimals: usize,
}

/// Figures of several ways of doing the same work.
#[derive(Debug)]
pub(super) struct Table {
    key: String,
    title: String,
    columns: &'static [&'static Column],
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    name: String,
    /// For each column of the table, the figure of each run.
    figures: Vec<Vec<f64>>,
}

impl Table {
    /// A table without lines. `key` is its name in the file.
    pub(super) fn new(key: &str, title: String, columns: &'static [&'static Column]) -> Self {
        Self { key: key.to_owned(), title, columns, lines: Vec::new() }
    }

    /// Adds one run's figures to a line, which is made with its first ones.
    pub(super) fn record<'a>(&mut self, line: &str, figures: impl IntoIterator<Item = (&'a Column, f64)>) {
        let at = self.lines.iter().position(|known| known.name == line).unwrap_or_else(|| {
            let figures = vec![Vec::new(); self.columns.len()];
            self.lines.push(Line { name: line.to_owned(), figures });
            self.lines.len() - 1
        });
        for (column, value) in figures {
            let place = self.columns.iter().position(|known| known.key == column.key);
            if let Some(place) = place.filter(|_| value.is_finite()) {
                self.lines[at].figures[place].push(value);
            }
        }
    }

    fn print(&self, runs: u32) {
        println!("\n{} (median of {runs})", self.title);
        let width = |column: &Column| column.head.len().max(9);
        let heads = self.columns.iter().map(|column| format!("  {:>1$}", column.head, width(column)));
        println!("{:<NAME_WIDTH$}{}", "", heads.collect::<String>());
        for line in &self.lines {
            let cells = self.columns.iter().zip(&line.figures).map(|(column, figures)| {
                let text = median(figures).map(|value| format!("{value:.0$}", column.decimals));
                format!("  {:>1$}", text.unwrap_or_default(), width(column))
            });
            println!("{:<NAME_WIDTH$}{}", line.name, cells.collect::<String>());
        }
    }

    /// Says what the columns are.
    fn explain(&self) {
        for column in self.columns {
            println!("  {}: {}", column.head, column.meaning);
        }
    }

    fn json(&self) -> Value {
        let lines = self.lines.iter().map(|line| {
            let figures = self.columns.iter().zip(&line.figures).filter(|(_, figures)| !figures.is_empty());
            let figures: Map<String, Value> = figures
                .map(|(column, figures)| {
                    (column.key.to_owned(), json!({"median": median(figures), "runs": figures}))
                })
                .collect();
            json!({"name": line.name, "figures": figures})
        });
        let meanings = self.columns.iter().map(|column| (column.key.to_owned(), column.meaning.into()));
        json!({
            "key": self.key,
            "title": self.title,
            "columns": Value::Object(meanings.collect()),
            "lines": lines.collect::<Vec<_>>(),
        })
    }
}

/// The tables of a case, shown and written as they come, so that what was measured is not lost with what fails later.
#[derive(Debug)]
pub(super) struct Report {
    case: String,
    /// Runs of each line.
    pub(super) runs: u32,
    tables: Vec<Value>,
}

impl Report {
    /// A report without tables.
    pub(super) fn new(case: String, runs: u32) -> Self {
        Self { case, runs, tables: Vec::new() }
    }

    /// Shows a table and adds it to `target/bench/<case>.json`.
    pub(super) fn add(&mut self, table: &Table) -> anyhow::Result<()> {
        table.print(self.runs);
        // The tables of a case have the same columns.
        if self.tables.is_empty() {
            table.explain();
        }
        self.tables.push(table.json());
        let folder = binary::target().join("bench");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{}.json", self.case));
        let content = json!({"case": self.case, "runs": self.runs, "tables": self.tables});
        let text = serde_json::to_string_pretty(&content)?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("in {}\n", file.display());
        Ok(())
    }
}

/// The middle one, or the mean of the two in the middle; of nothing there is none.
pub(super) fn median(figures: &[f64]) -> Option<f64> {
    let sorted = sorted(figures);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// The figure that so many of a hundred do not exceed; of nothing there is none.
pub(super) fn percentile(figures: &[f64], percent: usize) -> Option<f64> {
    let sorted = sorted(figures);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// A count as a number to calculate with; counts here are far below the 2^53 that it holds exactly.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

/// Microseconds of each of so many.
pub(super) fn micros_each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / number(count)
}

/// Bytes as MiB.
pub(super) fn mebibytes(bytes: u64) -> f64 {
    number(bytes) / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_figures_or_between_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&hundred, 50), percentile(&hundred, 99)), (Some(50.0), Some(99.0)));
        assert_eq!(percentile(&[7.0], 99), Some(7.0));
        assert_eq!(percentile(&[], 99), None);
    }

    #[test]
    fn a_line_takes_the_figures_of_its_runs() {
        const SECONDS: Column = Column { key: "seconds", head: "s", meaning: "time", decimals: 1 };
        let mut table = Table::new("t", "title".to_owned(), &[&SECONDS]);
        table.record("one", [(&SECONDS, 1.0)]);
        table.record("one", [(&SECONDS, 3.0)]);
        table.record("one", [(&SECONDS, f64::NAN)]);
        let json = table.json();
        assert_eq!(json["lines"][0]["figures"]["seconds"], json!({"median": 2.0, "runs": [1.0, 3.0]}));
    }
}
