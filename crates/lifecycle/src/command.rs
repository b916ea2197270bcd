//! Which command of a user is legal in which state.

use std::fmt;

use crate::pipe::PipeState;

/// What a user can ask of an existing pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// Stop reading, keep the place.
    Pause,
    /// Go on.
    Resume,
    /// Give the pipe up.
    Delete,
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 3] = [Self::Pause, Self::Resume, Self::Delete];
}

/// As it is typed.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
        })
    }
}

/// A command was refused and changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The state forbids it.
    #[error("a pipe in state {state} cannot {command}")]
    State {
        /// What was asked.
        command: Command,
        /// Where the pipe stands.
        state: PipeState,
    },
    /// The pipe is on its way out.
    #[error("the pipe is being deleted and cannot {command}")]
    Deleting {
        /// What was asked.
        command: Command,
    },
}

impl Refusal {
    /// What to do instead, in words.
    pub fn remedy(&self) -> String {
        match self {
            Self::Deleting { .. } => "wait until it is gone; then the name is free again".to_owned(),
            Self::State { state, .. } => {
                let legal: Vec<String> = legal_in(*state, false).iter().map(ToString::to_string).collect();
                format!("legal now: {}", legal.join(", "))
            }
        }
    }
}

/// The one table of commands: legal in this state or refused.
pub fn check(command: Command, state: PipeState, deleting: bool) -> Result<(), Refusal> {
    use PipeState as S;
    if deleting && command != Command::Delete {
        return Err(Refusal::Deleting { command });
    }
    match (command, state) {
        (Command::Delete, _) | (Command::Pause, S::Running) | (Command::Resume, S::Paused | S::Failed) => {
            Ok(())
        }
        (command, state) => Err(Refusal::State { command, state }),
    }
}

/// The commands that are legal now.
pub fn legal_in(state: PipeState, deleting: bool) -> Vec<Command> {
    Command::ALL.into_iter().filter(|command| check(*command, state, deleting).is_ok()).collect()
}
