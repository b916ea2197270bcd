//! The client commands of `millrace`: clients of `PipeService` and `FleetService`, nothing more.
//!
//! Owns: the arguments of these commands ([`arguments`]), what they print, and how a failure is told to a person ([`failure`]).
//!
//! Never contains: access to the catalog, to a source or to a destination; decisions about pipes.
//!
//! Start reading at [`run`]. Commands for a person print what [`view`] renders; with `-o json` or `-o yaml` they print the
//! response in proto JSON. What moves is followed by [`watcher::Watcher`] and
//! drawn by [`progress`]; [`top`] asks for all pipes once a second.

mod apply;
pub mod arguments;
mod completion;
pub mod console;
mod deletion;
pub mod failure;
mod fleet;
mod grid;
mod keyboard;
mod notices;
mod pipe;
mod progress;
mod rate;
mod resync;
mod source;
mod specification;
mod table_view;
mod top;
mod verify;
mod view;
mod watch;
mod watcher;
mod wording;

use std::process::ExitCode;

use millrace_api::client::{Clients, Interceptor, connect_with};

pub use arguments::{
    ApplyOptions, ClientCommand, DeleteOptions, Globals, Output, PipeCommand, ResyncOptions, SourceCommand,
    TopOptions, WorkerCommand,
};
pub use console::Console;
pub use failure::Failure;

/// Runs a client command on the terminal. Exit codes: 0 it worked, 1 it did not, 2 it was called wrongly.
///
/// `interceptor` sees every request before it is sent; the trace context goes in there.
pub async fn run(command: ClientCommand, globals: &Globals, interceptor: Interceptor) -> ExitCode {
    let mut console = Console::of_process();
    let result = execute(command, globals, interceptor, &mut console).await;
    conclude(result, &mut console)
}

/// Runs a client command on any console. Variables that a `pipe.yaml` refers to are those of the process.
pub async fn execute(
    command: ClientCommand,
    globals: &Globals,
    interceptor: Interceptor,
    console: &mut Console,
) -> Result<(), Failure> {
    let session = Session { globals, interceptor };
    match command {
        ClientCommand::Pipe(command) => pipe::run(command, &session, console).await,
        ClientCommand::Source(command) => source::run(command, &session, console).await,
        ClientCommand::Top(options) => top::run(&options, &session, console).await,
        ClientCommand::Worker(command) => fleet::run(command, &session, console).await,
    }
}

/// Tells a failure on the console and gives the exit code.
pub fn conclude(result: Result<(), Failure>, console: &mut Console) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe left, as `head` does: nobody is there to be told.
        Err(failure) if failure.is_closed_output() => ExitCode::SUCCESS,
        Err(failure) => {
            console.complain(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// How a command reaches its coordinator and in which form it answers.
struct Session<'a> {
    globals: &'a Globals,
    interceptor: Interceptor,
}

impl Session<'_> {
    async fn connect(&self, what: &str) -> Result<Clients, Failure> {
        connect_with(&self.globals.address, self.interceptor)
            .await
            .map_err(|error| Failure::unconnected(what, &error))
    }
}
