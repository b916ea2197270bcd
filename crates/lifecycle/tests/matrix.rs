//! Every (state, event) and (state, command) pair, as text: a change of the life cycle shows as a change of these files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fmt::Write as _;

use millrace_lifecycle::command::{Command, check};
use millrace_lifecycle::pipe::{PipeEvent, PipeState, transition};
use millrace_lifecycle::table::{self, TableEvent, TableState};

/// An event that says where it leads, and its name.
type Leading = (&'static str, fn(PipeState) -> PipeEvent);

#[test]
fn every_pipe_state_meets_every_event() {
    let events = [
        PipeEvent::Provisioned,
        PipeEvent::SetUp,
        PipeEvent::SetUpForChanges,
        PipeEvent::CopiedBeforeStream,
        PipeEvent::CopiedForGood,
        PipeEvent::ReadyToSwap,
        PipeEvent::PauseRequested,
        PipeEvent::Drained,
        PipeEvent::ResyncRequested,
        PipeEvent::TablesAdded,
        PipeEvent::TablesRemoved,
        PipeEvent::Broke,
    ];
    // Those that say where they lead; each is tried with every state.
    let leading: [Leading; 3] = [
        ("Swapped", |back_to| PipeEvent::Swapped { back_to }),
        ("ResumeRequested", |to| PipeEvent::ResumeRequested { to }),
        ("Modified", |back_to| PipeEvent::Modified { back_to }),
    ];
    let mut text = String::new();
    let mut line = |state: PipeState, event: &str, outcome: &str| {
        writeln!(text, "{:<13} {event:<20} {outcome}", state.to_string()).unwrap();
    };
    for state in PipeState::ALL {
        for event in events {
            let outcome = match transition(state, event) {
                Ok(step) => format!("{} {:?}", step.next, step.effects),
                Err(_) => "illegal".to_owned(),
            };
            line(state, &format!("{event:?}"), &outcome);
        }
        for (name, event) in leading {
            let to = |to: PipeState| {
                let step = transition(state, event(to)).ok()?;
                assert_eq!((step.next, step.effects), (to, &[][..]), "it leads where it says");
                Some(to.to_string())
            };
            let legal: Vec<String> = PipeState::ALL.into_iter().filter_map(to).collect();
            line(state, name, &if legal.is_empty() { "illegal".to_owned() } else { legal.join(" or ") });
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
        TableEvent::NothingToCopy,
        TableEvent::CaughtUp,
        TableEvent::SwapBegun,
        TableEvent::SwappedBeforeStream,
        TableEvent::SwappedForGood,
        TableEvent::CopyVoided,
        TableEvent::Broke,
        TableEvent::Removed,
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
                writeln!(text, "{state:<24} {:<15} {outcome}", command.to_string()).unwrap();
            }
        }
    }
    insta::assert_snapshot!(text);
}

/// The one way into each state that its words promise, and out of it: nothing that people are told can be missing from the table.
#[test]
fn every_state_can_be_left_or_is_a_place_to_rest() {
    for state in PipeState::ALL {
        let words = millrace_lifecycle::pipe::next_in_words(state);
        let rests = words.starts_with("nothing") || state == PipeState::Running;
        let goes_on = [
            PipeEvent::Provisioned,
            PipeEvent::SetUp,
            PipeEvent::CopiedBeforeStream,
            PipeEvent::Drained,
            PipeEvent::Swapped { back_to: PipeState::Running },
            PipeEvent::Modified { back_to: PipeState::Running },
        ];
        assert_eq!(goes_on.iter().any(|event| transition(state, *event).is_ok()), !rests, "{state}: {words}");
    }
}
