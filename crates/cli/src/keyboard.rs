//! Keys that are pressed while a command draws on the terminal.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

/// How often the keys are looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// Standard input of which each key counts at once and is not shown. Dropping it gives the terminal back as it was.
pub(crate) struct Keyboard {
    /// `None` where standard input is no terminal.
    before: Option<Termios>,
}

impl Keyboard {
    pub(crate) fn new() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else { return Self { before: None } };
        let mut raw = before.clone();
        // Ctrl-C stays a signal.
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        let changed = tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).is_ok();
        Self { before: changed.then_some(before) }
    }

    /// Returns once somebody wants to leave: q, Ctrl-C, or a signal that ends programs.
    pub(crate) async fn leave(&self) {
        let ended = async {
            match signal(SignalKind::terminate()) {
                Ok(mut signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.quit_key() => {}
            _ = tokio::signal::ctrl_c() => {}
            _ = ended => {}
        }
    }

    async fn quit_key(&self) {
        loop {
            tokio::time::sleep(GLANCE).await;
            while let Some(key) = self.pressed() {
                if matches!(key, b'q' | b'Q') {
                    return;
                }
            }
        }
    }

    /// A key that waits to be read.
    fn pressed(&self) -> Option<u8> {
        self.before.as_ref()?;
        let input = io::stdin();
        let mut waiting = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, PollTimeout::ZERO).ok().filter(|ready| *ready > 0)?;
        let mut key = [0];
        let read = nix::unistd::read(input.as_fd(), &mut key).ok()?;
        (read == 1).then_some(key[0])
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nobody can be told that the terminal is gone.
            let _gone = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}
