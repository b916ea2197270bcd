//! Tables that cannot be written for now, told once when it begins and once when it ends.

use std::collections::BTreeMap;

use millrace_api::proto::pipe::v1 as wire;

use crate::view::{problem_of, problem_text};

/// Remembers which tables are known to be held.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// The code of what holds each.
    held: BTreeMap<String, String>,
}

impl Notices {
    /// What is new to be told about a pipe.
    pub(crate) fn of(&mut self, pipe: &wire::Pipe) -> Vec<String> {
        let mut notices = Vec::new();
        let mut held_now = BTreeMap::new();
        for table in &pipe.tables {
            let Some(held) = &table.held else {
                let was_held = self.held.contains_key(&table.source);
                if was_held && !matches!(table.state(), wire::TableState::SetAside) {
                    notices.push(format!("{} is written again", table.source));
                }
                continue;
            };
            if self.held.get(&table.source) != Some(&held.code) {
                notices.push(problem_text("held", &problem_of(held, &table.source)).trim_end().to_owned());
            }
            held_now.insert(table.source.clone(), held.code.clone());
        }
        self.held = held_now;
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(held: Option<&str>) -> wire::Pipe {
        let problem = |code: &str| wire::Problem {
            code: code.to_owned(),
            message: "it is read-only".to_owned(),
            remedy: "make it writable".to_owned(),
            ..Default::default()
        };
        let table = wire::TableStatus {
            source: "public.orders".to_owned(),
            state: wire::TableState::Streaming.into(),
            held: held.map(problem),
            ..Default::default()
        };
        wire::Pipe { tables: vec![table], ..Default::default() }
    }

    #[test]
    fn a_held_table_is_told_when_it_begins_and_when_it_ends() {
        let mut notices = Notices::default();
        assert!(notices.of(&pipe(None)).is_empty());
        let told = notices.of(&pipe(Some("READ_ONLY")));
        assert_eq!(told, ["held: public.orders: it is read-only [READ_ONLY]\n  -> make it writable"]);
        assert!(notices.of(&pipe(Some("READ_ONLY"))).is_empty(), "it was told already");
        assert_eq!(notices.of(&pipe(Some("NO_SPACE"))).len(), 1, "another reason is news");
        assert_eq!(notices.of(&pipe(None)), ["public.orders is written again"]);
    }
}
