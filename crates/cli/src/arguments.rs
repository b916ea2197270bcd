//! What can be written on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use millrace_api::client::DEFAULT_ADDRESS;
use millrace_api::proto::pipe::v1 as wire;
use millrace_api::spec::LEAST_ROWS_PER_PARTITION;
use millrace_api::yaml::parse_duration;
use millrace_model::TableName;

use crate::wording::state_word;

/// The commands that talk to a coordinator.
#[derive(Debug, Clone, Subcommand)]
pub enum ClientCommand {
    /// Make pipes, look at them, and change what they do
    #[command(subcommand)]
    Pipe(PipeCommand),
    /// Look at what a source offers
    #[command(subcommand)]
    Source(SourceCommand),
    /// Follow all pipes at a glance: rates, lag, health
    Top(TopOptions),
    /// Look at the fleet. The binary mounts it itself, because `worker` alone starts a worker.
    #[command(skip)]
    Worker(WorkerCommand),
}

/// What every client command takes.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Where the coordinator listens
    #[arg(long, global = true, env = "MILLRACE_ADDRESS", default_value = DEFAULT_ADDRESS, value_name = "URL")]
    pub address: String,
    /// Form of what is printed
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Form of what a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// Proto JSON; one line each where there is a stream of messages
    Json,
    /// Proto JSON written as YAML
    Yaml,
}

/// `millrace pipe`
#[derive(Debug, Clone, Subcommand)]
pub enum PipeCommand {
    /// Check source, destination and every table, and list all problems; changes nothing
    Validate {
        /// The file that says what the pipe is
        #[command(flatten)]
        file: SpecFile,
    },
    /// Make the pipe of a file, or edit it to be as the file says; the same file again changes nothing
    Apply(ApplyOptions),
    /// List all pipes
    List,
    /// Show a pipe: its state, why, and what comes next
    Get {
        /// Name of the pipe
        name: String,
    },
    /// Follow a pipe through its life until it is done, has failed or is gone
    Watch {
        /// Name of the pipe
        name: String,
        /// End once the pipe is in this state
        #[arg(long, value_parser = parse_state, value_name = "STATE")]
        until: Option<wire::PipeState>,
    },
    /// Wait until a pipe is in a state
    Wait {
        /// Name of the pipe
        name: String,
        /// The state, such as Running
        #[arg(long, value_parser = parse_state, value_name = "STATE")]
        state: wire::PipeState,
        /// How long to wait, such as 60s or 5m
        #[arg(long, default_value = "60s", value_parser = parse_timeout)]
        timeout: Duration,
    },
    /// Show what happened to a pipe, oldest first
    Events {
        /// Name of the pipe
        name: String,
    },
    /// Show each table of a pipe and how far it is
    Tables {
        /// Name of the pipe
        name: String,
    },
    /// Make durable what was read, then stop; the slot keeps its place
    Pause {
        /// Name of the pipe
        name: String,
    },
    /// Go on where the pipe was paused, or where it failed once the cause is mended
    Resume {
        /// Name of the pipe
        name: String,
    },
    /// Copy all tables, or some, anew; readers keep what they have until the new copies take its place
    Resync(ResyncOptions),
    /// Copy a table anew that was set aside, once the cause is mended
    Retry {
        /// Name of the pipe
        name: String,
        /// The source table, quoted as in SQL
        #[arg(long, value_parser = parse_table, value_name = "TABLE")]
        table: TableName,
    },
    /// Compare a running pipe's tables with their sources, row by row; exit 1 where they differ
    Verify(VerifyOptions),
    /// Delete a pipe with its slot and publication; the destination's tables stay
    Delete(DeleteOptions),
}

/// `millrace pipe verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyOptions {
    /// Name of the pipe
    pub name: String,
    /// A source table, quoted as in SQL; may be given several times [default: all that stream]
    #[arg(long = "table", value_parser = parse_table, value_name = "TABLE")]
    pub tables: Vec<TableName>,
    /// Begin and do not wait for the result
    #[arg(long)]
    pub no_wait: bool,
}

/// `millrace pipe apply`
#[derive(Debug, Clone, Args)]
pub struct ApplyOptions {
    /// The file that says what the pipe is
    #[command(flatten)]
    pub file: SpecFile,
    /// Check and say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Allow tables to be copied anew where an edit needs it
    #[arg(long)]
    pub resync: bool,
}

/// `millrace pipe resync`
#[derive(Debug, Clone, Args)]
pub struct ResyncOptions {
    /// Name of the pipe
    pub name: String,
    /// A source table, quoted as in SQL; may be given several times. Without it: all tables
    #[arg(long = "table", value_parser = parse_table, value_name = "TABLE")]
    pub tables: Vec<TableName>,
    /// Rows that a partition should hold, from now on
    #[arg(long, value_parser = clap::value_parser!(u32).range(i64::from(LEAST_ROWS_PER_PARTITION)..), value_name = "N")]
    pub rows_per_partition: Option<u32>,
    /// Tables copied at a time, from now on
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub parallel_tables: Option<u32>,
    /// Partitions of one table read at a time, from now on; 0: what fleet and source allow
    #[arg(long, value_name = "N")]
    pub parallelism: Option<u32>,
    /// Most connections that copies open to the source, from now on
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub max_source_connections: Option<u32>,
}

/// `millrace pipe delete`
#[derive(Debug, Clone, Args)]
pub struct DeleteOptions {
    /// Name of the pipe
    pub name: String,
    /// Drop the destination's tables, too
    #[arg(long)]
    pub drop_tables: bool,
    /// How long to wait until it is gone
    #[arg(long, default_value = "60s", value_parser = parse_timeout)]
    pub timeout: Duration,
}

/// `millrace top`
#[derive(Debug, Clone, Args)]
pub struct TopOptions {
    /// Print one table and end; as where the output is no terminal
    #[arg(long)]
    pub once: bool,
}

/// `millrace source`
#[derive(Debug, Clone, Subcommand)]
pub enum SourceCommand {
    /// List the tables of the source that a file names: sizes, keys, replica identity, problems
    Tables {
        /// The file that says what the pipe is
        #[command(flatten)]
        file: SpecFile,
    },
}

/// `millrace worker`, the part that is a client.
#[derive(Debug, Clone, Subcommand)]
pub enum WorkerCommand {
    /// List the workers and what they carry
    List,
    /// Let a worker have no more work; what it holds it finishes or hands to others
    Drain {
        /// Its id
        id: String,
        /// Let it have work again
        #[arg(long)]
        undo: bool,
        /// Begin and do not wait until it holds nothing
        #[arg(long)]
        no_wait: bool,
    },
}

/// Where the specification is.
#[derive(Debug, Clone, Args)]
pub struct SpecFile {
    /// The file; - reads standard input
    #[arg(short, long = "file", value_name = "PIPE.YAML")]
    pub file: PathBuf,
}

/// Every state that a pipe can be in.
const STATES: [wire::PipeState; 10] = [
    wire::PipeState::Provisioning,
    wire::PipeState::Setup,
    wire::PipeState::Snapshot,
    wire::PipeState::Running,
    wire::PipeState::Pausing,
    wire::PipeState::Paused,
    wire::PipeState::Modifying,
    wire::PipeState::Resync,
    wire::PipeState::Completed,
    wire::PipeState::Failed,
];

/// A state by the word that people use or by its name in the proto.
fn parse_state(text: &str) -> Result<wire::PipeState, String> {
    let named = |state: &wire::PipeState| {
        state_word(*state).eq_ignore_ascii_case(text) || state.as_str_name() == text
    };
    STATES
        .into_iter()
        .find(named)
        .ok_or_else(|| format!("expected one of {}", STATES.map(state_word).join(", ")))
}

fn parse_table(text: &str) -> Result<TableName, String> {
    text.parse::<TableName>().map_err(|error| error.to_string())
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration with its unit, such as 60s or 5m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_people_and_programs_write_them() {
        for text in ["Running", "running", "PIPE_STATE_RUNNING"] {
            assert_eq!(parse_state(text), Ok(wire::PipeState::Running));
        }
        assert!(parse_state("Unspecified").is_err());
        assert!(parse_state("up").unwrap_err().contains("Running"));
    }
}
