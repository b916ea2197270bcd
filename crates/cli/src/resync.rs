//! `millrace pipe resync` and `millrace pipe retry`

use millrace_api::proto::pipe::v1 as wire;
use millrace_model::TableName;

use crate::arguments::ResyncOptions;
use crate::console::Console;
use crate::failure::Failure;
use crate::pipe::told;
use crate::{Session, view};

/// Has tables copied anew, all where none is named.
pub(crate) async fn resync(
    options: &ResyncOptions,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let name = &options.name;
    let what = format!("the resync of pipe '{name}' was not begun");
    let mut clients = session.connect(&what).await?;
    let request = wire::ResyncRequest {
        name: name.clone(),
        tables: options.tables.iter().map(ToString::to_string).collect(),
        settings: Some(wire::SnapshotSettings {
            initial_load_parallelism: options.parallelism,
            max_source_connections: options.max_source_connections,
            snapshot_num_rows_per_partition: options.rows_per_partition,
            snapshot_number_of_parallel_tables: options.parallel_tables,
        }),
    };
    let response = clients.pipes.resync(request).await.map_err(|status| Failure::refused(what, status))?;
    view::print(console, session.globals.output, &response.into_inner(), |response, _| {
        let pipe = told(response.pipe.as_ref());
        match options.tables.as_slice() {
            [] => begun(&pipe, "all tables are copied anew", name),
            [table] => begun(&pipe, &format!("{table} is copied anew"), name),
            tables => {
                let tables: Vec<String> = tables.iter().map(ToString::to_string).collect();
                begun(&pipe, &format!("{} are copied anew", tables.join(", ")), name)
            }
        }
    })
}

/// Has a table copied anew that was set aside.
pub(crate) async fn retry(
    name: &str,
    table: &TableName,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let what = format!("{table} of pipe '{name}' was not retried");
    let mut clients = session.connect(&what).await?;
    let request = wire::RetryTableRequest { name: name.to_owned(), table: table.to_string() };
    let response = clients.pipes.retry_table(request).await;
    let response = response.map_err(|status| Failure::refused(what, status))?;
    view::print(console, session.globals.output, &response.into_inner(), |response, _| {
        begun(&told(response.pipe.as_ref()), &format!("{table} is copied anew"), name)
    })
}

fn begun(pipe: &str, copied: &str, name: &str) -> String {
    format!(
        "{pipe}\n  {copied}; readers keep what is there until the copy is complete and up to date\n  \
         follow it with 'millrace pipe watch {name}'"
    )
}
