//! How a guard process is started.

use std::ffi::OsString;
use std::path::PathBuf;

/// The environment variable that carries a guard's arguments where the command line cannot.
pub(crate) const ARGUMENTS_VARIABLE: &str = "MILLRACE_DEVSTACK_GUARD";

/// The program that becomes a guard: it must hand what follows `args` to [`guard_main`](crate::guard_main).
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program to start.
    pub program: PathBuf,
    /// Its first arguments, for example the hidden subcommand `devstack` of `millrace`.
    pub args: Vec<OsString>,
    /// Whether the guard's own arguments go by the environment, see [`Launcher::this_test_binary`].
    pub arguments_by_environment: bool,
    /// Variables beside the ones that it has from this process; the engine gets what the dynamic loader reads of them, and what libfaketime does.
    pub environment: Vec<(OsString, OsString)>,
}

impl Launcher {
    /// A program whose arguments after `args` are the guard's.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            arguments_by_environment: false,
            environment: Vec::new(),
        }
    }

    /// The running test binary, which becomes the guard by running only its test `name`.
    ///
    /// For crates that cannot know where the program `millrace-devstack` was built. The test is one line:
    ///
    /// ```
    /// # fn main() {
    /// // #[test]
    /// // fn devstack_guard() { millrace_devstack::guard_test(); }
    /// let launcher = millrace_devstack::Launcher::this_test_binary("devstack_guard");
    /// # }
    /// ```
    ///
    /// `name` is the test's full path as the test harness prints it.
    pub fn this_test_binary(name: &str) -> std::io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            args: [name, "--exact", "--nocapture", "--test-threads=1"].map(OsString::from).to_vec(),
            arguments_by_environment: true,
            environment: Vec::new(),
        })
    }
}
