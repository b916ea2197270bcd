//! What the tables of a pipe look like to a person.

use millrace_api::proto::pipe::v1 as wire;

use crate::completion::percent_text;
use crate::grid::Grid;
use crate::view::{problem_of, problem_text};
use crate::wording::{bytes, count, severity_word, table_state_word};

/// A line for each table, one below it for the copy that is to take its place, then everything that is in the way.
pub(crate) fn table_grid(tables: &[wire::TableStatus]) -> String {
    let mut grid = Grid::new(&[
        "TABLE",
        "TARGET",
        "STATE",
        "ROWS",
        "OF ABOUT",
        "COPIED",
        "SIZE",
        "PARTITIONS",
        "CHANGES",
    ]);
    let mut troubles = String::new();
    for table in tables {
        grid.row(cells(table.source.clone(), table));
        troubles.push_str(&troubles_of(table, ""));
        if let Some(successor) = &table.successor {
            grid.row(cells("  new copy".to_owned(), successor));
            troubles.push_str(&troubles_of(successor, " in the new copy"));
        }
    }
    grid.render() + &troubles
}

fn cells(name: String, table: &wire::TableStatus) -> [String; 9] {
    [
        name,
        table.target.clone(),
        state_text(table),
        count(table.rows_copied),
        count(table.rows_estimated),
        percent_text(table),
        bytes(table.bytes_copied),
        format!("{}/{}", table.partitions_done, table.partitions_total),
        count(table.changes_applied),
    ]
}

/// `streaming`, or `streaming, held` while it cannot be written.
pub(crate) fn state_text(table: &wire::TableStatus) -> String {
    let held = if table.held.is_some() { ", held" } else { "" };
    format!("{}{held}", table_state_word(table.state()))
}

fn troubles_of(table: &wire::TableStatus, place: &str) -> String {
    let mut text = String::new();
    if let Some(problem) = &table.problem {
        let label = format!("{}{place}", severity_word(problem.severity()));
        text.push_str(&format!("\n{}", problem_text(&label, &problem_of(problem, &table.source))));
    }
    if let Some(held) = &table.held {
        text.push_str(&format!(
            "\n{}",
            problem_text(&format!("held{place}"), &problem_of(held, &table.source))
        ));
    }
    text
}
