//! `millrace pipe verify`

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use millrace_api::proto::pipe::v1 as wire;
use millrace_model::TableName;

use crate::arguments::VerifyOptions;
use crate::console::Console;
use crate::failure::Failure;
use crate::grid::Grid;
use crate::wording::count;
use crate::{Session, view};

/// How often the pipe is looked at while it is compared.
const POLL: Duration = Duration::from_millis(300);

/// Keys that are shown to people of each table; `-o json` has up to 1,000.
const SHOWN: usize = 20;

/// Has tables compared with their sources and waits for the result.
pub(crate) async fn verify(
    options: &VerifyOptions,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let name = &options.name;
    let what = format!("pipe '{name}' was not compared with its source");
    let mut clients = session.connect(&what).await?;
    let tables = options.tables.iter().map(TableName::to_string).collect();
    let request = wire::VerifyRequest { name: name.clone(), tables };
    let response = clients.pipes.verify(request).await.map_err(|status| Failure::refused(&what, status))?;
    let mut pipe = response.into_inner().pipe.unwrap_or_default();
    let chosen: Vec<String> = pipe
        .tables
        .iter()
        .filter(|table| {
            table.verification.as_ref().is_some_and(|verification| verification.finished_at.is_none())
        })
        .filter(|table| {
            options.tables.is_empty() || options.tables.iter().any(|named| named.to_string() == table.source)
        })
        .map(|table| table.source.clone())
        .collect();
    if options.no_wait {
        let response = wire::VerifyResponse { pipe: Some(pipe) };
        return view::print(console, session.globals.output, &response, |_, _| {
            format!("{} compared; see it with 'millrace pipe tables {name} -o json'", they_are(&chosen))
        });
    }
    let bar = Bar::new(console.interactive());
    while chosen.iter().any(|source| is_open(&pipe, source)) {
        bar.show(&pipe, &chosen);
        tokio::time::sleep(POLL).await;
        let request = wire::GetRequest { name: name.clone() };
        match clients.pipes.get(request).await {
            Ok(response) => pipe = response.into_inner().pipe.unwrap_or_default(),
            // Another coordinator takes over; the comparison goes on meanwhile.
            Err(status) if status.code() == tonic::Code::Unavailable => {
                if let Ok(again) = session.connect(&what).await {
                    clients = again;
                }
            }
            Err(status) => return Err(Failure::refused(what, status)),
        }
    }
    bar.clear();
    let compared = |table: &&wire::TableStatus| chosen.contains(&table.source);
    let results: Vec<wire::TableStatus> = pipe.tables.iter().filter(compared).cloned().collect();
    let good = results.iter().all(is_good);
    let response = wire::VerifyResponse { pipe: Some(wire::Pipe { tables: results, ..pipe }) };
    view::print(console, session.globals.output, &response, |response, _| {
        result(response.pipe.as_ref().map(|pipe| pipe.tables.as_slice()).unwrap_or_default())
    })?;
    if good {
        return Ok(());
    }
    let remedy = format!(
        "copy what differs anew with 'millrace pipe resync {name} --table T'; -o json lists more keys"
    );
    Err(Failure::new(
        format!("pipe '{name}' was compared with its source"),
        "not all of its tables are found equal",
        remedy,
    ))
}

fn they_are(tables: &[String]) -> String {
    match tables {
        [table] => format!("{table} is"),
        tables => format!("{} tables are", tables.len()),
    }
}

fn is_open(pipe: &wire::Pipe, source: &str) -> bool {
    let table = pipe.tables.iter().find(|table| table.source == source);
    // One that was copied anew meanwhile has another record, and nothing to wait for.
    let verification = table.and_then(|table| table.verification.as_ref());
    verification.is_some_and(|verification| verification.finished_at.is_none())
}

fn is_good(table: &wire::TableStatus) -> bool {
    table.verification.as_ref().is_some_and(|found| found.differences == 0 && found.problem.is_none())
}

fn result(tables: &[wire::TableStatus]) -> String {
    let mut grid = Grid::new(&["TABLE", "ROWS", "RESULT"]);
    let mut keys = String::new();
    for table in tables {
        let Some(found) = &table.verification else {
            grid.row([
                table.source.clone(),
                String::new(),
                "not compared: it was copied anew meanwhile".to_owned(),
            ]);
            continue;
        };
        let at_least = if found.more { "at least " } else { "" };
        let said = match &found.problem {
            Some(problem) => format!("not compared: {}; {}", problem.message, problem.remedy),
            None if found.differences > 0 => format!("{at_least}{} rows differ", count(found.differences)),
            None if found.unsettled > 0 => {
                format!("equal; {} rows changed each time they were looked at", count(found.unsettled))
            }
            None => "equal".to_owned(),
        };
        grid.row([table.source.clone(), count(found.source_rows), said]);
        for row in found.samples.iter().take(SHOWN) {
            let what = match row.kind() {
                wire::RowDifferenceKind::Altered => format!("altered in {}", row.columns.join(", ")),
                wire::RowDifferenceKind::Missing => "missing in the destination".to_owned(),
                wire::RowDifferenceKind::Extra => "not in the source".to_owned(),
                wire::RowDifferenceKind::Unspecified => "different".to_owned(),
            };
            keys.push_str(&format!("\n  {} {}: {what}", table.source, row.key));
        }
        let rest = found.differences.saturating_sub(SHOWN as u64);
        if rest > 0 && found.samples.len() > SHOWN {
            keys.push_str(&format!("\n  {} and {at_least}{} more", table.source, count(rest)));
        }
    }
    format!("{}{keys}", grid.render().trim_end())
}

/// A progress bar, where somebody looks on.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(interactive: bool) -> Self {
        Self(interactive.then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        }))
    }

    fn show(&self, pipe: &wire::Pipe, chosen: &[String]) {
        let Some(bar) = &self.0 else { return };
        let open = chosen.iter().filter(|source| is_open(pipe, source)).count();
        let read: u64 = pipe
            .tables
            .iter()
            .filter(|table| chosen.contains(&table.source))
            .filter_map(|table| table.verification.as_ref())
            .map(|verification| verification.rows_read)
            .sum();
        bar.set_message(format!(
            "{} of {} tables compared, {} rows read",
            chosen.len() - open,
            chosen.len(),
            count(read)
        ));
        bar.tick();
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
