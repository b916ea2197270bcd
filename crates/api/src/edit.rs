//! Edits of a pipe: what an update takes from its request and what stays as it is.

use millrace_model::{PipeSpec, Secret};

use crate::proto::pipe::v1 as wire;
use crate::violation::ProtocolError;

/// The specification after an edit: of `asked` the fields that `mask` names (all where it names none), of `current` the rest. A password that is
/// empty stays as it is: nobody who reads a pipe gets to see it.
///
/// # Errors
/// The mask names a field that does not exist or cannot be edited alone.
pub fn merge(current: &PipeSpec, asked: &PipeSpec, mask: &[String]) -> Result<PipeSpec, ProtocolError> {
    let mut merged = if mask.is_empty() { asked.clone() } else { current.clone() };
    for path in mask {
        take(&mut merged, asked, path)?;
    }
    merged.name = current.name.clone();
    keep_empty(&mut merged.source.password, &current.source.password);
    keep_empty(&mut merged.destination.password, &current.destination.password);
    Ok(merged)
}

fn keep_empty(password: &mut Secret, current: &Secret) {
    if password.expose().is_empty() {
        password.clone_from(current);
    }
}

fn take(merged: &mut PipeSpec, asked: &PipeSpec, path: &str) -> Result<(), ProtocolError> {
    let (settings, from) = (&mut merged.settings, &asked.settings);
    match path {
        "replication_mode" => merged.mode = asked.mode,
        "source" => merged.source = asked.source.clone(),
        "destination" => merged.destination = asked.destination.clone(),
        "tables" => merged.tables = asked.tables.clone(),
        "settings" => *settings = from.clone(),
        "settings.sync_interval" => settings.sync_interval = from.sync_interval,
        "settings.pull_batch_size" => settings.pull_batch_size = from.pull_batch_size,
        "settings.initial_load_parallelism" => {
            settings.initial_load_parallelism = from.initial_load_parallelism;
        }
        "settings.max_source_connections" => settings.max_source_connections = from.max_source_connections,
        "settings.snapshot_num_rows_per_partition" => {
            settings.snapshot_rows_per_partition = from.snapshot_rows_per_partition;
        }
        "settings.snapshot_number_of_parallel_tables" => {
            settings.snapshot_parallel_tables = from.snapshot_parallel_tables;
        }
        "settings.schema_changes" => settings.schema_changes = from.schema_changes,
        "settings.truncate" => settings.truncate = from.truncate,
        "settings.out_of_range" => settings.out_of_range = from.out_of_range,
        "settings.max_held_wal_bytes" => settings.max_held_wal = from.max_held_wal,
        "settings.worker_selector" => settings.worker_selector = from.worker_selector.clone(),
        "settings.verify_every" => settings.verify_every = from.verify_every,
        "settings.verify_rows_per_second" => settings.verify_rows_per_second = from.verify_rows_per_second,
        "settings.allow_nullable_columns" => settings.allow_nullable_columns = from.allow_nullable_columns,
        "settings.metadata_columns" => settings.metadata_columns = from.metadata_columns.clone(),
        "settings.delete_on_merge" => settings.delete_on_merge = from.delete_on_merge,
        _ => {
            let message = format!("'{path}' is not a field that can be edited alone");
            return Err(ProtocolError::at("updateMask", message));
        }
    }
    Ok(())
}

/// The specification with other snapshot settings.
///
/// # Errors
/// A value is out of range.
pub fn with_snapshot_settings(
    current: &PipeSpec,
    asked: &wire::SnapshotSettings,
) -> Result<PipeSpec, ProtocolError> {
    let mut spec = current.clone();
    let settings = &mut spec.settings;
    let at_least = |field: &str, value: u32, least: u32| {
        let message = || format!("{value} is out of range; expected at least {least}");
        if value < least { Err(ProtocolError::at(format!("settings.{field}"), message())) } else { Ok(value) }
    };
    if let Some(parallelism) = asked.initial_load_parallelism {
        settings.initial_load_parallelism = parallelism;
    }
    if let Some(connections) = asked.max_source_connections {
        settings.max_source_connections = at_least("maxSourceConnections", connections, 1)?;
    }
    if let Some(rows) = asked.snapshot_num_rows_per_partition {
        let least = crate::spec::LEAST_ROWS_PER_PARTITION;
        settings.snapshot_rows_per_partition = at_least("snapshotNumRowsPerPartition", rows, least)?;
    }
    if let Some(tables) = asked.snapshot_number_of_parallel_tables {
        settings.snapshot_parallel_tables = at_least("snapshotNumberOfParallelTables", tables, 1)?;
    }
    Ok(spec)
}
