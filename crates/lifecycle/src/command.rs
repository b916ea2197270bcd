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
    /// Copy everything, or some tables, anew while readers keep what they have.
    Resync,
    /// Copy a table anew that was set aside.
    Retry,
    /// Compare tables with their sources.
    Verify,
    /// Copy further tables and follow them.
    AddTables,
    /// Take tables out.
    RemoveTables,
    /// Go about the work in another way.
    ChangeSettings,
    /// Give the pipe up.
    Delete,
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 9] = [
        Self::Pause,
        Self::Resume,
        Self::Resync,
        Self::Retry,
        Self::Verify,
        Self::AddTables,
        Self::RemoveTables,
        Self::ChangeSettings,
        Self::Delete,
    ];
}

/// As people say it.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Resync => "resync",
            Self::Retry => "retry",
            Self::Verify => "verify",
            Self::AddTables => "add tables",
            Self::RemoveTables => "remove tables",
            Self::ChangeSettings => "change settings",
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
    /// The state allows it, but not for what it was asked for.
    #[error("cannot {command}: {reason}")]
    Unfit {
        /// What was asked.
        command: Command,
        /// Why not.
        reason: String,
        /// What to do instead.
        remedy: String,
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
            Self::Unfit { remedy, .. } => remedy.clone(),
        }
    }
}

/// The one table of commands: legal in this state or refused.
pub fn check(command: Command, state: PipeState, deleting: bool) -> Result<(), Refusal> {
    use Command as C;
    use PipeState as S;
    if deleting && command != C::Delete {
        return Err(Refusal::Deleting { command });
    }
    match (command, state) {
        (C::Delete | C::ChangeSettings, _)
        | (C::Pause, S::Snapshot | S::Running)
        | (C::Verify, S::Running)
        | (C::Resume, S::Paused | S::Failed)
        | (C::Resync, S::Running | S::Paused | S::Completed | S::Failed)
        | (C::Retry, S::Snapshot | S::Running | S::Paused | S::Completed | S::Failed)
        | (C::AddTables, S::Snapshot | S::Running | S::Paused | S::Completed)
        | (C::RemoveTables, S::Snapshot | S::Running | S::Paused | S::Completed | S::Failed) => Ok(()),
        (command, state) => Err(Refusal::State { command, state }),
    }
}

/// The commands that are legal now.
pub fn legal_in(state: PipeState, deleting: bool) -> Vec<Command> {
    Command::ALL.into_iter().filter(|command| check(*command, state, deleting).is_ok()).collect()
}
