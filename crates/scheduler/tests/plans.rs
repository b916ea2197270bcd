//! Planner scenarios: facts in, the plan as text out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;

use millrace_model::{Epoch, Labels, PipeId};
use millrace_scheduler::plan::{Action, HeldTask, Holder, OnLeave, PipeFacts, WantedTask, WorkerFacts, plan};
use proptest::prelude::*;

fn worker(id: &str, tasks: u32) -> WorkerFacts {
    WorkerFacts {
        id: id.parse().unwrap(),
        max_tasks: 4,
        tasks,
        lasting: 0,
        draining: false,
        labels: Labels::default(),
    }
}

fn copy(number: u32) -> WantedTask<String> {
    WantedTask {
        task: format!("copy {number}"),
        takes_slot: true,
        counts_against_source: true,
        due: true,
        prefers: None,
    }
}

fn stream(prefers: Option<&str>) -> WantedTask<String> {
    WantedTask {
        task: "stream".into(),
        takes_slot: true,
        counts_against_source: false,
        due: true,
        prefers: prefers.map(|id| id.parse().unwrap()),
    }
}

fn held(epoch: u64, task: &str, holder: Holder) -> HeldTask<String> {
    HeldTask {
        epoch: Epoch(epoch),
        task: task.into(),
        holder,
        draining: false,
        on_leave: match task {
            "stream" => OnLeave::Drain,
            "snapshot" => OnLeave::HandBack,
            _ => OnLeave::Finish,
        },
        counts_against_source: task.starts_with("copy"),
    }
}

fn pipe(id: u64, wanted: Vec<WantedTask<String>>, held: Vec<HeldTask<String>>) -> PipeFacts<String> {
    PipeFacts {
        pipe: PipeId::from_random(id),
        source: "db:5432".into(),
        source_connections: 8,
        selector: Labels::default(),
        wanted,
        held,
    }
}

fn planned(pipes: &[PipeFacts<String>], workers: &[WorkerFacts]) -> String {
    plan(pipes, workers, &BTreeMap::new()).to_string()
}

#[test]
fn partitions_of_one_table_spread_over_the_workers() {
    let pipe = pipe(1, (0..4).map(copy).collect(), vec![]);
    insta::assert_snapshot!(planned(&[pipe], &[worker("a", 0), worker("b", 0)]));
}

#[test]
fn a_busy_worker_gets_less() {
    let pipe = pipe(1, (0..3).map(copy).collect(), vec![]);
    insta::assert_snapshot!(planned(&[pipe], &[worker("a", 3), worker("b", 1)]));
}

#[test]
fn without_workers_work_waits_and_says_so() {
    insta::assert_snapshot!(planned(&[pipe(1, vec![stream(None)], vec![])], &[]));
}

#[test]
fn full_workers_leave_work_waiting() {
    insta::assert_snapshot!(planned(&[pipe(1, vec![copy(1)], vec![])], &[worker("a", 4)]));
}

#[test]
fn a_stream_stays_where_it_was_even_if_others_are_idle() {
    let pipe = pipe(1, vec![stream(Some("b"))], vec![]);
    insta::assert_snapshot!(planned(&[pipe], &[worker("a", 0), worker("b", 3)]));
}

#[test]
fn a_lost_workers_work_goes_elsewhere() {
    let pipe = pipe(1, vec![stream(Some("a"))], vec![held(7, "stream", Holder::Lost)]);
    insta::assert_snapshot!(planned(&[pipe], &[worker("b", 0)]));
}

#[test]
fn what_stands_is_left_alone() {
    let pipe = pipe(
        1,
        vec![stream(None), copy(1)],
        vec![held(7, "stream", Holder::Present), held(8, "copy 1", Holder::Present)],
    );
    assert_eq!(planned(&[pipe], &[worker("a", 2)]), "");
}

#[test]
fn what_is_no_longer_wanted_is_withdrawn() {
    let pipe = pipe(1, vec![], vec![held(7, "copy 1", Holder::Present)]);
    insta::assert_snapshot!(planned(&[pipe], &[worker("a", 1)]));
}

#[test]
fn a_leaving_worker_drains_its_streams_and_gets_nothing_new() {
    let leaving = WorkerFacts { draining: true, ..worker("a", 1) };
    let snapshot = WantedTask { task: "snapshot".into(), takes_slot: false, ..stream(None) };
    let pipe = pipe(
        1,
        vec![stream(None), snapshot, copy(1)],
        vec![held(7, "stream", Holder::Leaving), held(8, "snapshot", Holder::Leaving)],
    );
    insta::assert_snapshot!(planned(&[pipe], &[leaving]));
}

#[test]
fn work_goes_to_workers_with_the_labels_that_the_pipe_selects() {
    let labelled = |id, labels: &str| WorkerFacts { labels: labels.parse().unwrap(), ..worker(id, 0) };
    let selecting = |labels: &str, held| PipeFacts {
        selector: labels.parse().unwrap(),
        ..pipe(1, vec![stream(None), copy(1)], held)
    };
    let workers = [worker("a", 0), labelled("b", "zone=b,pool=small"), labelled("c", "zone=b,pool=large")];
    let chosen = planned(&[selecting("zone=b,pool=large", vec![])], &workers);
    let nobody = planned(&[selecting("zone=d", vec![])], &workers);
    // The selector was changed while a worker outside it has the work.
    let held = vec![held(7, "stream", Holder::Unselected), held(8, "copy 1", Holder::Unselected)];
    let moved = planned(&[selecting("zone=b", held)], &workers);
    insta::assert_snapshot!(format!("{chosen}--\n{nobody}--\n{moved}"));
}

#[test]
fn pipes_on_one_source_share_its_connections() {
    let first = pipe(1, (0..6).map(copy).collect(), vec![]);
    let second = pipe(2, (0..6).map(copy).collect(), vec![]);
    let workers = ["a", "b", "c"].map(|id| worker(id, 0));
    let plan = plan(&[first, second], &workers, &BTreeMap::new());
    let assigned = plan.actions.iter().filter(|action| matches!(action, Action::Assign { .. })).count();
    assert_eq!(assigned, 8);
}

#[test]
fn a_task_that_failed_waits_until_it_is_due() {
    let pipe = pipe(1, vec![WantedTask { due: false, ..stream(None) }], vec![]);
    assert_eq!(planned(&[pipe], &[worker("a", 0)]), "");
}

#[test]
fn a_plan_for_everybody_uses_everybody() {
    let workers: Vec<WorkerFacts> = (0..1_000).map(|id| worker(&format!("w{id}"), 0)).collect();
    let wanted = WantedTask { takes_slot: false, ..stream(None) };
    let pipes: Vec<_> = (0..10_000).map(|id| pipe(id, vec![wanted.clone()], vec![])).collect();
    let mut given = BTreeMap::new();
    for action in plan(&pipes, &workers, &BTreeMap::new()).actions {
        let Action::Assign { worker, .. } = action else { panic!("{action}") };
        *given.entry(worker).or_insert(0) += 1;
    }
    assert_eq!(given.len(), 1_000);
    assert!(given.values().all(|streams| *streams == 10), "{given:?}");
}

proptest! {
    /// Whatever the facts: no task goes to two workers, no worker beyond its slots, and planning again after doing what was planned changes nothing.
    #[test]
    fn plans_are_sound_and_settle(
        counts in prop::collection::vec(0u32..12, 1..5),
        slots in prop::collection::vec(1u32..5, 0..4),
    ) {
        let ids = ["a", "b", "c", "d"];
        let mut workers: Vec<WorkerFacts> = slots.iter().zip(ids).map(|(max_tasks, id)| WorkerFacts {
            max_tasks: *max_tasks, ..worker(id, 0)
        }).collect();
        let mut pipes: Vec<PipeFacts<String>> = counts.iter().zip(1..)
            .map(|(count, id)| pipe(id, (0..*count).map(copy).collect(), vec![])).collect();
        let first = plan(&pipes, &workers, &BTreeMap::new());
        let mut epoch = 0;
        for action in &first.actions {
            if let Action::Assign { pipe, task, worker, .. } = action {
                epoch += 1;
                let facts = pipes.iter_mut().find(|facts| &facts.pipe == pipe).unwrap();
                prop_assert!(facts.held.iter().all(|held| &held.task != task), "{} twice", task);
                facts.held.push(held(epoch, task, Holder::Present));
                let holder: &mut WorkerFacts = workers.iter_mut().find(|facts: &&mut WorkerFacts| &facts.id == worker).unwrap();
                holder.tasks += 1;
                prop_assert!(holder.tasks <= holder.max_tasks);
            }
        }
        let again = plan(&pipes, &workers, &BTreeMap::new());
        let settled = again.actions.iter().all(|action| matches!(action, Action::Wait { .. }));
        prop_assert!(settled, "{}", again);
    }
}
