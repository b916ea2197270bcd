//! `cargo xtask test`: everything the tests need, then all tests.

use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::binary;

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Passed on to the runner, such as a part of a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The packages of PostgreSQL and ClickHouse are fetched by the first test that needs them. Runs cargo-nextest where it is installed, else cargo's own runner. Both print their closing line.
pub(crate) fn run(arguments: TestArgs) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let nextest = Command::new(&cargo).args(["nextest", "--version"]).output();
    let mut command = Command::new(&cargo);
    command.current_dir(binary::root());
    if nextest.is_ok_and(|output| output.status.success()) {
        let profile = if std::env::var_os("CI").is_some() { "ci" } else { "default" };
        command.args(["nextest", "run", "--workspace", "--profile", profile]);
        command.args(arguments.arguments);
    } else {
        command.args(["test", "--workspace", "--no-fail-fast", "--"]);
        command.args(["--test-threads", "2"]).args(arguments.arguments);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("tests failed");
    }
    Ok(())
}
