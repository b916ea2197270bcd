//! The guard's own side: its arguments, and its end when its parent goes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use tokio::io::AsyncReadExt as _;

use crate::foreign::exit_now;
use crate::guard::{Event, split};
use crate::launcher::ARGUMENTS_VARIABLE;
use crate::{clickhouse, postgres};

/// What a guard can guard.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_subcommand = true)]
enum Guarded {
    /// ClickHouse, in this process.
    Clickhouse(clickhouse::ServeArguments),
    /// PostgreSQL, as a child of this process.
    Postgres(postgres::ServeArguments),
}

/// Runs a guard: `arguments` are those after the program's name (and after a hidden subcommand, if there is one).
///
/// Ends the process when the engine has stopped, which it does when stdin ends; returns only for wrong arguments.
pub fn guard_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let guarded = match Guarded::try_parse_from(arguments) {
        Ok(guarded) => guarded,
        Err(error) => {
            eprintln!("{error}");
            Event::Failed { reason: error.to_string() }.say();
            return ExitCode::from(2);
        }
    };
    // A program that brings its own subscriber keeps it.
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
    let result = match guarded {
        Guarded::Clickhouse(arguments) => clickhouse::serve(&arguments),
        Guarded::Postgres(arguments) => postgres::serve(&arguments),
    };
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            let reason = chain(&error);
            tracing::error!("{reason}");
            Event::Failed { reason }.say();
            1
        }
    };
    // Not by returning: the engine's exit handlers can crash, and a started one may have left threads.
    exit_now(code)
}

/// The body of the test that [`Launcher::this_test_binary`](crate::Launcher::this_test_binary) names.
///
/// Does nothing in an ordinary test run; in a process that was started as a guard it becomes the guard and ends the
/// process.
pub fn guard_test() {
    if let Some(arguments) = std::env::var_os(ARGUMENTS_VARIABLE) {
        let _ = guard_main(split(&arguments));
        exit_now(2);
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Returns when the parent is gone or asks for the end, which is the end of stdin, or on SIGTERM or SIGINT.
pub(crate) async fn end_asked_for() {
    let end_of_input = async {
        let mut stdin = tokio::io::stdin();
        let mut ignored = [0; 64];
        while matches!(stdin.read(&mut ignored).await, Ok(1..)) {}
    };
    tokio::select! {
        () = end_of_input => {}
        () = one(tokio::signal::unix::SignalKind::terminate()) => {}
        () = one(tokio::signal::unix::SignalKind::interrupt()) => {}
    }
}

async fn one(kind: tokio::signal::unix::SignalKind) {
    match tokio::signal::unix::signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        Err(error) => {
            tracing::warn!(%error, "this signal is not watched");
            std::future::pending::<()>().await;
        }
    }
}
