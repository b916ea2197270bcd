//! Every (state, event) and (state, command) pair, as text: a change of the life cycle shows as a change of these files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fmt::Write as _;

use millrace_lifecycle::command::{Command, check};
use millrace_lifecycle::pipe::{PipeEvent, PipeState, transition};
use millrace_lifecycle::table::{self, TableEvent, TableState};

#[test]
fn every_pipe_state_meets_every_event() {
    let events = [
        PipeEvent::Provisioned,
        PipeEvent::SetUp,
        PipeEvent::CopiedBeforeStream,
        PipeEvent::CopiedForGood,
        PipeEvent::PauseRequested,
        PipeEvent::Drained,
        PipeEvent::ResumeRequested { failed_in: None },
        PipeEvent::ResumeRequested { failed_in: Some(PipeState::Snapshot) },
        PipeEvent::ResumeRequested { failed_in: Some(PipeState::Pausing) },
        PipeEvent::Broke,
    ];
    let mut text = String::new();
    for state in PipeState::ALL {
        for event in events {
            let outcome = match transition(state, event) {
                Ok(step) => format!("{} {:?}", step.next, step.effects),
                Err(_) => "illegal".to_owned(),
            };
            writeln!(text, "{:<13} {:<50} {outcome}", state.to_string(), format!("{event:?}")).unwrap();
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn every_table_state_meets_every_event() {
    let events = [
        TableEvent::CopyStarted,
        TableEvent::CopiedBeforeStream,
        TableEvent::CopiedForGood,
        TableEvent::CaughtUp,
        TableEvent::CopyVoided,
        TableEvent::Broke,
    ];
    let mut text = String::new();
    for state in TableState::ALL {
        for event in events {
            let outcome =
                table::transition(state, event).map_or("illegal".to_owned(), |next| next.to_string());
            writeln!(text, "{:<12} {:<20} {outcome}", state.to_string(), format!("{event:?}")).unwrap();
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn every_state_meets_every_command() {
    let mut text = String::new();
    for deleting in [false, true] {
        for state in PipeState::ALL {
            for command in Command::ALL {
                let outcome = match check(command, state, deleting) {
                    Ok(()) => "legal".to_owned(),
                    Err(refusal) => format!("{refusal}; {}", refusal.remedy()),
                };
                let state = format!("{state}{}", if deleting { " (deleting)" } else { "" });
                writeln!(text, "{state:<24} {:<7} {outcome}", command.to_string()).unwrap();
            }
        }
    }
    insta::assert_snapshot!(text);
}
