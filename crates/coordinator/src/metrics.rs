//! What can be measured of pipes, tables and workers: read from what the leader publishes, at the moment when somebody collects.
//!
//! A coordinator that follows measures nothing, so that each pipe is counted once in a fleet.

use std::sync::Arc;
use std::time::SystemTime;

use millrace_api::proto::pipe::v1 as pb;
use opentelemetry::{KeyValue, global};

use crate::directory::PipeView;
use crate::leadership::Offices;

/// One value with what tells it from others of its instrument.
type Measured = (f64, Vec<KeyValue>);

/// A gauge, and how its values are read off.
struct Gauge {
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    read: fn(&State) -> Vec<Measured>,
}

/// What is measured.
struct State {
    pipes: Vec<Arc<PipeView>>,
    workers: Vec<pb::Worker>,
    /// Seconds since 1970.
    now: f64,
}

const GAUGES: [Gauge; 16] = [
    Gauge {
        name: "millrace.pipe.state",
        unit: "1",
        description: "1 for the state that a pipe is in.",
        read: |state| {
            state.of_pipes(|pipe| {
                vec![(1.0, vec![KeyValue::new("state", word(pipe.state().as_str_name(), "PIPE_STATE_"))])]
            })
        },
    },
    Gauge {
        name: "millrace.pipe.health",
        unit: "1",
        description: "1 for how a pipe gets on: ok, degraded or stalled.",
        read: |state| {
            state.of_pipes(|pipe| {
                vec![(1.0, vec![KeyValue::new("health", word(pipe.health().as_str_name(), "HEALTH_"))])]
            })
        },
    },
    Gauge {
        name: "millrace.pipe.problem",
        unit: "1",
        description: "1 for the code of what is in a pipe's way; absent where nothing is.",
        read: |state| {
            state.of_pipes(|pipe| pipe.problem.iter().map(|problem| (1.0, vec![code(problem)])).collect())
        },
    },
    Gauge {
        name: "millrace.pipe.lag",
        unit: "By",
        description: "Log of the source that is not yet in the destination.",
        read: |state| {
            state.of_pipes(|pipe| {
                // Without a report nothing is known.
                let stream = pipe.stream.iter().filter(|stream| stream.reported_at.is_some());
                stream.map(|stream| (stream.lag_bytes as f64, Vec::new())).collect()
            })
        },
    },
    Gauge {
        name: "millrace.pipe.delay",
        unit: "s",
        description: "From commit to visible, of the newest batch.",
        read: |state| {
            state.of_pipes(|pipe| {
                let delay = pipe.stream.iter().filter_map(|stream| stream.delay.as_ref());
                delay.map(|delay| (seconds(delay.seconds, delay.nanos), Vec::new())).collect()
            })
        },
    },
    Gauge {
        name: "millrace.pipe.report.age",
        unit: "s",
        description: "Since the stream said last how far it is: what is said of lag and delay is so old.",
        read: |state| {
            state.of_pipes(|pipe| {
                let reported = pipe.stream.iter().filter_map(|stream| stream.reported_at.as_ref());
                reported.map(|at| (state.since(at), Vec::new())).collect()
            })
        },
    },
    Gauge {
        name: "millrace.slot.retained",
        unit: "By",
        description: "Log that the source keeps for a pipe's slot.",
        read: |state| state.of_slots(|_, slot| Some((slot.retained_bytes as f64, Vec::new()))),
    },
    Gauge {
        name: "millrace.slot.headroom",
        unit: "By",
        description: "Log that may be written before a pipe's slot is in danger of being lost; absent where the source sets no limit.",
        read: |state| state.of_slots(|_, slot| Some((slot.headroom_bytes? as f64, Vec::new()))),
    },
    Gauge {
        name: "millrace.slot.status",
        unit: "1",
        description: "1 for the wal_status that a pipe's slot has: reserved, extended, unreserved or lost.",
        read: |state| {
            state.of_slots(|_, slot| Some((1.0, vec![KeyValue::new("status", slot.wal_status.clone())])))
        },
    },
    Gauge {
        name: "millrace.slot.age",
        unit: "s",
        description: "Since a pipe's slot was last seen; grows while the source cannot be asked.",
        read: |state| {
            state.of_slots(|state, slot| Some((state.since(slot.measured_at.as_ref()?), Vec::new())))
        },
    },
    Gauge {
        name: "millrace.pipe.tables",
        unit: "{table}",
        description: "Tables of a pipe by their state.",
        read: |state| {
            state.of_each(|pipe| {
                let mut counts = std::collections::BTreeMap::<&str, u32>::new();
                for table in &pipe.tables {
                    *counts.entry(table.state().as_str_name()).or_default() += 1;
                }
                let counted = |(name, count): (&str, u32)| {
                    (f64::from(count), vec![KeyValue::new("state", word(name, "TABLE_STATE_"))])
                };
                counts.into_iter().map(counted).collect()
            })
        },
    },
    Gauge {
        name: "millrace.table.problem",
        unit: "1",
        description: "1 for the code of what keeps a table from being written; absent where nothing does.",
        read: |state| {
            state.of_tables(|table| {
                let problem = table.held.as_ref().or(table.problem.as_ref());
                problem.map(|problem| (1.0, vec![code(problem)]))
            })
        },
    },
    Gauge {
        name: "millrace.table.values_altered",
        unit: "{value}",
        description: "Values that were altered because the destination cannot hold them (outOfRange); absent where none was.",
        read: |state| {
            state.of_tables(|table| {
                (table.values_altered > 0).then(|| (table.values_altered as f64, Vec::new()))
            })
        },
    },
    Gauge {
        name: "millrace.verify.differences",
        unit: "{row}",
        description: "Rows that differed at a table's last comparison with its source; absent where it was never compared.",
        read: |state| {
            state.of_tables(|table| {
                let compared = compared(table)?;
                compared.problem.is_none().then(|| (compared.differences as f64, Vec::new()))
            })
        },
    },
    Gauge {
        name: "millrace.verify.age",
        unit: "s",
        description: "Since a table's last comparison with its source ended.",
        read: |state| {
            state.of_tables(|table| {
                let finished = compared(table)?.finished_at.as_ref()?;
                Some((state.since(finished), Vec::new()))
            })
        },
    },
    Gauge {
        name: "millrace.workers",
        unit: "{worker}",
        description: "Workers of the fleet by their state.",
        read: |state| {
            let mut counts = std::collections::BTreeMap::<&str, u32>::new();
            for worker in &state.workers {
                *counts.entry(worker.state().as_str_name()).or_default() += 1;
            }
            let counted = |(name, count): (&str, u32)| {
                (f64::from(count), vec![KeyValue::new("state", word(name, "WORKER_STATE_"))])
            };
            counts.into_iter().map(counted).collect()
        },
    },
];

/// Measures from now on, whenever this coordinator leads.
pub(crate) fn measure(offices: &Offices) {
    let meter = global::meter("millrace");
    for gauge in &GAUGES {
        let offices = offices.clone();
        meter
            .f64_observable_gauge(gauge.name)
            .with_unit(gauge.unit)
            .with_description(gauge.description)
            .with_callback(move |observer| {
                let Ok(lead) = offices.lead() else { return };
                let state = State {
                    pipes: lead.directory.page("", usize::MAX),
                    workers: lead.directory.workers(),
                    now: now(),
                };
                for (value, attributes) in (gauge.read)(&state) {
                    observer.observe(value, &attributes);
                }
            })
            .build();
    }
}

impl State {
    fn of_each(&self, read: impl Fn(&pb::Pipe) -> Vec<Measured>) -> Vec<Measured> {
        let of_pipe = |view: &Arc<PipeView>| {
            let name = view.pipe.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
            let named = move |(value, mut attributes): Measured| {
                attributes.push(KeyValue::new("pipe.name", name.clone()));
                (value, attributes)
            };
            read(&view.pipe).into_iter().map(named).collect::<Vec<_>>()
        };
        self.pipes.iter().flat_map(of_pipe).collect()
    }

    fn of_pipes(&self, read: impl Fn(&pb::PipeStatus) -> Vec<Measured>) -> Vec<Measured> {
        self.of_each(|pipe| pipe.status.as_ref().map(&read).unwrap_or_default())
    }

    fn of_slots(&self, read: impl Fn(&Self, &pb::SlotStatus) -> Option<Measured>) -> Vec<Measured> {
        self.of_pipes(|pipe| {
            let slot = pipe.stream.iter().filter_map(|stream| stream.slot.as_ref());
            slot.filter_map(|slot| read(self, slot)).collect()
        })
    }

    fn of_tables(&self, read: impl Fn(&pb::TableStatus) -> Option<Measured>) -> Vec<Measured> {
        self.of_each(|pipe| {
            let of_table = |table: &pb::TableStatus| {
                let (value, mut attributes) = read(table)?;
                attributes.push(KeyValue::new("table.name", table.source.clone()));
                Some((value, attributes))
            };
            pipe.tables.iter().filter_map(of_table).collect()
        })
    }

    /// Seconds since then; zero where clocks disagree.
    fn since(&self, at: &prost_types::Timestamp) -> f64 {
        (self.now - seconds(at.seconds, at.nanos)).max(0.0)
    }
}

fn compared(table: &pb::TableStatus) -> Option<&pb::Verification> {
    table.verification.as_ref().filter(|verification| verification.finished_at.is_some())
}

fn code(problem: &pb::Problem) -> KeyValue {
    KeyValue::new("code", problem.code.clone())
}

/// `running` of `PIPE_STATE_RUNNING`.
fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

fn seconds(seconds: i64, nanos: i32) -> f64 {
    seconds as f64 + f64::from(nanos) / 1e9
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gauge_is_in_the_manual() {
        let manual = include_str!("../../../docs/metrics.md");
        for gauge in &GAUGES {
            assert!(
                manual.contains(&format!("`{}`", gauge.name)),
                "{} is not in docs/metrics.md",
                gauge.name
            );
        }
    }
}
