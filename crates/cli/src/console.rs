//! Where a command prints and how times are written there.

use std::io::{self, IsTerminal as _, Write};

use jiff::tz::TimeZone;

use crate::failure::Failure;

/// Standard output, standard error, and what is known about who reads them.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    interactive: bool,
    on_terminal: bool,
    time_zone: TimeZone,
}

impl Console {
    /// The console of this process, in the time zone of the system.
    pub fn of_process() -> Self {
        let on_terminal = io::stdout().is_terminal();
        let interactive = on_terminal && io::stderr().is_terminal();
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            interactive,
            on_terminal,
            time_zone: TimeZone::system(),
        }
    }

    /// A console that nobody sits at.
    pub fn new(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>, time_zone: TimeZone) -> Self {
        Self { out, err, interactive: false, on_terminal: false, time_zone }
    }

    /// Whether a person looks on, so that progress bars have a use.
    pub fn interactive(&self) -> bool {
        self.interactive
    }

    /// Whether the answer goes to a terminal, so that it can be drawn over.
    pub fn on_terminal(&self) -> bool {
        self.on_terminal
    }

    /// The time zone in which times are written.
    pub fn time_zone(&self) -> &TimeZone {
        &self.time_zone
    }

    /// Prints text that is the answer; a line end is added.
    pub fn print(&mut self, text: &str) -> Result<(), Failure> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        writeln!(self.out, "{text}").and_then(|()| self.out.flush()).map_err(Failure::unprinted)
    }

    /// Sends text to the terminal as it is, such as sequences that move the cursor.
    pub(crate) fn draw(&mut self, text: &str) -> Result<(), Failure> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(Failure::unprinted)
    }

    /// Prints a remark beside the answer. That it could not be printed can be told to nobody.
    pub fn complain(&mut self, text: &str) {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let _unread = writeln!(self.err, "{text}").and_then(|()| self.err.flush());
    }
}
