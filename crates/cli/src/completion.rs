//! How far the copy of a table is.

use std::time::Duration;

use millrace_api::proto::pipe::v1 as wire;

/// Steps of a whole copy: tenths of a percent.
pub(crate) const STEPS: u64 = 1000;

/// How much of a table is copied, in [`STEPS`]. Whole only when it is.
pub(crate) fn steps_done(table: &wire::TableStatus) -> u64 {
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

/// `50%`, or `-` where nothing is to be copied.
pub(crate) fn percent_text(table: &wire::TableStatus) -> String {
    let given_up = matches!(table.state(), wire::TableState::SetAside | wire::TableState::Removed);
    let never_copied = is_copied(table) && table.partitions_total == 0 && table.rows_copied == 0;
    if given_up || never_copied { "-".to_owned() } else { format!("{}%", steps_done(table) * 100 / STEPS) }
}

/// How much of several tables is copied, in percent; `None` where their size is not known. 100 only when all of it is.
pub(crate) fn percent_of_all(tables: &[&wire::TableStatus]) -> Option<u64> {
    let rows: u64 = tables.iter().map(|table| table.rows_copied).sum();
    let expected: u64 = tables.iter().map(|table| expected_rows(table)).sum();
    let percent = rows.saturating_mul(100).checked_div(expected)?;
    Some(if tables.iter().any(|table| is_to_be_copied(table)) { percent.min(99) } else { percent })
}

/// Rows that a table is going to have copied, as far as that can be told.
pub(crate) fn expected_rows(table: &wire::TableStatus) -> u64 {
    if is_to_be_copied(table) { table.rows_estimated.max(table.rows_copied) } else { table.rows_copied }
}

/// Rounded to seconds, as more would flicker.
pub(crate) fn time_left(expected: u64, rows: u64, rate: f64) -> Option<Duration> {
    // Row counts are far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let seconds = expected.checked_sub(rows).filter(|left| *left > 0)? as f64 / rate;
    Duration::try_from_secs_f64(seconds.ceil()).ok()
}

/// The copies that a pipe is at, each with what people call it: during the load every table, later those that are copied anew.
pub(crate) fn copies(pipe: &wire::Pipe) -> Vec<(String, &wire::TableStatus)> {
    let loading = pipe.status.as_ref().is_some_and(|status| status.state() == wire::PipeState::Snapshot);
    let copy = |table: &'_ wire::TableStatus| table.state() == wire::TableState::Copying;
    let mut copies = Vec::new();
    for table in &pipe.tables {
        match table.successor.as_deref() {
            Some(successor) => copies.push((format!("{} (new copy)", table.source), successor)),
            None if loading || copy(table) => copies.push((table.source.clone(), table)),
            None => {}
        }
    }
    copies
}

fn is_to_be_copied(table: &wire::TableStatus) -> bool {
    use wire::TableState::{Copying, Unspecified, Waiting};
    matches!(table.state(), Unspecified | Waiting | Copying)
}

fn is_copied(table: &wire::TableStatus) -> bool {
    use wire::TableState::{CatchingUp, Completed, Streaming, Swapping};
    matches!(table.state(), CatchingUp | Streaming | Completed | Swapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(state: wire::TableState, rows: u64, estimated: u64) -> wire::TableStatus {
        wire::TableStatus {
            source: "public.orders".to_owned(),
            state: state.into(),
            rows_copied: rows,
            rows_estimated: estimated,
            partitions_done: 1,
            partitions_total: 4,
            ..Default::default()
        }
    }

    #[test]
    fn a_copy_is_whole_only_when_all_of_it_is_there() {
        use wire::TableState::{Copying, Streaming};
        assert_eq!(steps_done(&table(Copying, 500, 1000)), 500);
        assert_eq!(steps_done(&table(Copying, 2000, 1000)), STEPS - 1);
        assert_eq!(steps_done(&table(Copying, 2000, 0)), 250);
        assert_eq!(steps_done(&table(Streaming, 0, 0)), STEPS);
        let (whole, part) = (table(Streaming, 900, 1000), table(Copying, 500, 500));
        assert_eq!(percent_of_all(&[&whole, &part]), Some(99));
        assert_eq!(percent_of_all(&[&whole]), Some(100));
        assert_eq!(percent_of_all(&[]), None);
    }

    #[test]
    fn a_table_of_which_nothing_is_copied_has_no_percentage() {
        use wire::TableState::{SetAside, Streaming, Waiting};
        let follows_only = wire::TableStatus { partitions_total: 0, ..table(Streaming, 0, 0) };
        let texts = [table(Waiting, 0, 10), table(SetAside, 5, 10), follows_only, table(Streaming, 9, 10)];
        assert_eq!(texts.map(|table| percent_text(&table)), ["0%", "-", "-", "100%"]);
    }

    #[test]
    fn a_table_that_is_copied_anew_counts_by_its_new_copy() {
        use wire::TableState::{Copying, Streaming};
        let successor = table(Copying, 1, 2);
        let anew = wire::TableStatus { successor: Some(Box::new(successor)), ..table(Streaming, 2, 2) };
        let status = |state: wire::PipeState| wire::PipeStatus { state: state.into(), ..Default::default() };
        let mut pipe = wire::Pipe {
            tables: vec![anew, table(Streaming, 2, 2)],
            status: Some(status(wire::PipeState::Running)),
            ..Default::default()
        };
        let labels = |pipe: &wire::Pipe| copies(pipe).into_iter().map(|(label, _)| label).collect::<Vec<_>>();
        assert_eq!(labels(&pipe), ["public.orders (new copy)"]);
        pipe.status = Some(status(wire::PipeState::Snapshot));
        assert_eq!(labels(&pipe), ["public.orders (new copy)", "public.orders"]);
    }
}
