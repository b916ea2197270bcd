//! The contract of [`Catalog`], over any implementation.

use std::sync::Arc;
use std::time::Duration;

use millrace_catalog::{Catalog, CatalogError, Leader, Standing};
use millrace_lifecycle::{EventKind, PipeAggregate, PipeChanges, PipeState, TableState, Task};
use millrace_model::spec::ReplicationMode::{Cdc, Snapshot};
use millrace_model::spec::TableSpec;
use millrace_model::work::{Outcome, Report};
use millrace_model::{Epoch, Lsn, PipeId, Problem, TableName};

use crate::story::{PASSWORD, Story, assert_same, candidate, lead};

/// Where a catalog of some kind lives, empty at first.
pub(crate) trait Place {
    type Catalog: Catalog;

    /// Opens the catalog; no other may be open on the place.
    async fn open(&self) -> Self::Catalog;
}

/// Gives the names of all parts of the contract to a macro, behind what it is given itself.
macro_rules! names {
    ($then:ident $($given:tt)*) => {
        $then! { $($given)*;
            a_new_catalog_is_empty,
            a_pipe_is_loaded_as_it_was_at_every_step_of_its_life,
            partitions_whose_copy_is_void_are_open_again_when_loaded,
            a_removed_table_takes_its_partitions_along,
            a_table_that_was_copied_anew_takes_the_place_of_the_one_before,
            passwords_come_back,
            a_reopened_catalog_holds_what_was_committed,
            an_old_version_is_refused_and_nothing_of_its_batch_is_stored,
            a_new_pipe_is_refused_where_its_id_is_stored,
            a_known_pipe_is_refused_where_it_is_not_stored,
            of_many_who_change_the_same_version_one_wins,
            a_name_is_taken_once,
            a_removed_pipes_name_is_free_at_once,
            changes_without_the_pipes_own_record_raise_its_version,
            changes_that_make_no_sense_are_refused,
            events_come_in_order_and_page_by_page,
            a_hundred_thousand_partitions_come_back,
            a_thousand_pipes_are_stored_together_or_not_at_all,
            a_removed_pipe_leaves_nothing_behind,
            a_pipe_that_never_was_can_be_removed,
            the_last_epoch_never_goes_down,
            one_leads_until_its_lease_ends,
            a_lease_that_was_given_back_is_free_at_once,
            nothing_is_stored_in_a_term_that_is_over,
        }
    };
}
pub(crate) use names;

/// Makes a test of each part, on a place that is made by an expression.
macro_rules! tests {
    ($place:expr; $($name:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $crate::suite::$name(&$place).await;
            }
        )*
    };
}
pub(crate) use tests;

pub(crate) async fn a_new_catalog_is_empty(place: &impl Place) {
    let catalog = place.open().await;
    let stored = catalog.load().await.unwrap();
    assert!(stored.pipes.is_empty());
    assert_eq!(stored.last_epoch, Epoch(0));
    assert!(catalog.load_pipe(&PipeId::from_random(1)).await.unwrap().is_none());
    assert_eq!(catalog.events(&PipeId::from_random(1), 0, 10).await.unwrap(), []);
}

pub(crate) async fn a_pipe_is_loaded_as_it_was_at_every_step_of_its_life(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::new(1, Cdc, &["orders", "items", "broken"]);
    story.save(&catalog).await;
    story.place();
    story.save(&catalog).await;
    story.provision();
    story.save(&catalog).await;
    story.set_up();
    story.open_snapshot();
    story.save(&catalog).await;
    story.place();
    story.save(&catalog).await;
    assert!(story.copy_one());
    story.save(&catalog).await;
    let lost = story.epoch_of(&story.task("snapshot"));
    let now = story.tick();
    story.pipe.withdraw(lost, now);
    story.save(&catalog).await;
    story.open_snapshot();
    story.save(&catalog).await;
    while let Some(task) = story.next_copy() {
        match &task {
            Task::Copy { source, .. } if source.name == "broken" => {
                story.place();
                let refused = Problem::operator("VALUE_REFUSED", "a value", "exclude it").of_table(source);
                story.report(&task, Report::Failed(vec![refused]));
            }
            _ => story.finish(&task, Outcome::Copied { rows: 0, bytes: 0 }),
        }
        story.save(&catalog).await;
    }
    story.stream();
    // The position alone would not be stored with every report.
    story.pipe.store_position();
    story.save(&catalog).await;
    assert_eq!(story.pipe.pipe().state, PipeState::Running);
    let states: Vec<_> = story.pipe.tables().map(|table| table.record.state).collect();
    assert_eq!(states, [TableState::Streaming, TableState::Streaming, TableState::SetAside]);
    story.command(|pipe, now| pipe.pause(now));
    assert!(story.pipe.assignments().any(|held| held.draining));
    story.save(&catalog).await;
    story.finish(&Task::Stream, Outcome::Drained { durable: Lsn(u64::MAX) });
    story.save(&catalog).await;
    story.command(|pipe, now| pipe.resume(now));
    story.place();
    let lost = Problem::permanent("SLOT_LOST", "the slot is lost", "copy anew");
    story.report(&Task::Stream, Report::Failed(vec![lost]));
    story.save(&catalog).await;
    assert_eq!(story.pipe.pipe().state, PipeState::Failed);
    let stored = catalog.load().await.unwrap();
    assert_eq!(stored.pipes.len(), 1);
    assert_same(&stored.pipes[0], &story.pipe);
}

pub(crate) async fn partitions_whose_copy_is_void_are_open_again_when_loaded(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::copying(&catalog, 1, Snapshot).await;
    assert!(story.copy_one());
    story.save(&catalog).await;
    let done = |pipe: &PipeAggregate| pipe.tables().map(|table| table.progress.done).sum::<u32>();
    assert_eq!(done(&catalog.load_pipe(&story.id()).await.unwrap().unwrap()), 1);
    let (epoch, now) = (story.epoch_of(&story.task("snapshot")), story.tick());
    story.pipe.withdraw(epoch, now);
    story.save(&catalog).await;
    assert_eq!(done(&catalog.load_pipe(&story.id()).await.unwrap().unwrap()), 0);
}

pub(crate) async fn a_removed_table_takes_its_partitions_along(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::copying(&catalog, 1, Cdc).await;
    let edit = async |story: &mut Story, edit: &dyn Fn(&mut Vec<TableSpec>)| {
        let mut spec = story.pipe.pipe().spec.clone();
        edit(&mut spec.tables);
        story.command(|pipe, now| pipe.edit(spec, false, now));
        story.save(&catalog).await;
    };
    edit(&mut story, &|tables| drop(tables.remove(0))).await;
    story.place();
    story.save(&catalog).await;
    let publish = story.task("publish");
    story.finish(&publish, Outcome::SetUp { tables: vec![], begins: Lsn::ZERO });
    story.save(&catalog).await;
    let tables = |pipe: &PipeAggregate| {
        let tables = pipe.tables().map(|table| (table.record.id.0, table.partitions.len()));
        tables.collect::<Vec<_>>()
    };
    assert_eq!(tables(&catalog.load_pipe(&story.id()).await.unwrap().unwrap()), [(1, 3)]);
    // One of the same name is another table, and meets nothing of the old one.
    while story.copy_one() {
        story.save(&catalog).await;
    }
    let orders = TableSpec::new(TableName::new("Odd \"schema\"", "orders"), "t_orders");
    edit(&mut story, &|tables| tables.push(orders.clone())).await;
    assert_eq!(tables(&catalog.load_pipe(&story.id()).await.unwrap().unwrap()), [(1, 3), (2, 0)]);
}

pub(crate) async fn a_table_that_was_copied_anew_takes_the_place_of_the_one_before(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::copying(&catalog, 1, Cdc).await;
    while story.copy_one() {}
    story.stream();
    story.pipe.store_position();
    story.save(&catalog).await;
    let orders = TableName::new("Odd \"schema\"", "orders");
    story.command(|pipe, now| pipe.resync(&[orders], now));
    story.save(&catalog).await;
    let replaced = |pipe: &PipeAggregate| {
        let tables = pipe.tables().map(|table| (table.record.id.0, table.record.replaces.map(|id| id.0)));
        tables.collect::<Vec<_>>()
    };
    let loaded = catalog.load_pipe(&story.id()).await.unwrap().unwrap();
    assert_eq!(replaced(&loaded), [(0, None), (1, None), (2, Some(0))]);
    story.provision();
    story.set_up();
    story.stream();
    story.open_snapshot();
    while story.copy_one() {
        story.save(&catalog).await;
    }
    story.stream();
    story.save(&catalog).await;
    let newest = story.pipe.tables().last().unwrap().record.clone();
    assert_eq!(newest.state, TableState::Swapping);
    story.report(&Task::Stream, Report::TableSwapped(newest.id));
    story.save(&catalog).await;
    let loaded = catalog.load_pipe(&story.id()).await.unwrap().unwrap();
    assert_eq!(replaced(&loaded), [(1, None), (2, None)]);
    assert_eq!(loaded.pipe().garbage, story.pipe.pipe().garbage);
    assert!(!loaded.pipe().garbage.is_empty(), "the one before is still to be dropped");
}

pub(crate) async fn passwords_come_back(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::new(1, Cdc, &["orders"]);
    story.save(&catalog).await;
    let loaded = catalog.load_pipe(&story.id()).await.unwrap().unwrap();
    assert_eq!(loaded.pipe().spec.source.password.expose(), PASSWORD);
}

pub(crate) async fn a_reopened_catalog_holds_what_was_committed(place: &impl Place) {
    let catalog = place.open().await;
    let stories = [Story::copying(&catalog, 1, Cdc).await, Story::copying(&catalog, 2, Snapshot).await];
    let events = catalog.events(&stories[0].id(), 0, usize::MAX).await.unwrap();
    drop(catalog);
    let catalog = place.open().await;
    let stored = catalog.load().await.unwrap();
    assert_eq!(stored.pipes.len(), 2);
    for (loaded, story) in stored.pipes.iter().zip(&stories) {
        assert_same(loaded, &story.pipe);
    }
    assert_eq!(stored.last_epoch, stories[1].epoch.max(stories[0].epoch));
    assert_eq!(catalog.events(&stories[0].id(), 0, usize::MAX).await.unwrap(), events);
}

pub(crate) async fn an_old_version_is_refused_and_nothing_of_its_batch_is_stored(place: &impl Place) {
    let catalog = place.open().await;
    let mut before = Story::copying(&catalog, 1, Cdc).await;
    let mut story = Story::copying(&catalog, 2, Cdc).await;
    let mut after = Story::copying(&catalog, 3, Cdc).await;
    let mut late = Story::of(story.pipe.clone());
    story.note("first");
    story.save(&catalog).await;
    let stored = catalog.load().await.unwrap();

    before.delete();
    before.finish(&Task::Teardown, Outcome::TornDown { left_behind: vec![] });
    assert!(before.pipe.is_removed());
    late.note("too late");
    after.copy_one();
    let mut new = Story::new(4, Cdc, &["orders"]);
    let batch = vec![before.changes(), new.changes(), late.changes(), after.changes()];
    let refused = catalog.commit(lead(&catalog).await, batch, Epoch(1_000_000)).await;
    let id = story.id();
    assert!(
        matches!(
            &refused,
            Err(CatalogError::Conflict { pipe, expected: 1, found: 2 }) if *pipe == id
        ),
        "{refused:?}"
    );
    let unchanged = catalog.load().await.unwrap();
    assert_eq!(unchanged.pipes.len(), 3);
    for (left, right) in unchanged.pipes.iter().zip(&stored.pipes) {
        assert_same(left, right);
    }
    assert_eq!(unchanged.last_epoch, stored.last_epoch);
    let events = catalog.events(&id, 0, usize::MAX).await.unwrap();
    assert_eq!(events.last().unwrap().message, "first");
    for untouched in [before, after] {
        let events = catalog.events(&untouched.id(), 0, usize::MAX).await.unwrap();
        let last = unchanged.pipes.iter().find(|pipe| pipe.pipe().id == untouched.id()).unwrap();
        assert_eq!(events.last().unwrap().id, last.pipe().last_event);
    }
}

pub(crate) async fn a_new_pipe_is_refused_where_its_id_is_stored(place: &impl Place) {
    let catalog = place.open().await;
    Story::copying(&catalog, 1, Cdc).await;
    let again = Story::new(1, Cdc, &["orders"]).try_save(&catalog).await;
    assert!(matches!(again, Err(CatalogError::Conflict { expected: 0, found: 1, .. })), "{again:?}");
}

pub(crate) async fn a_known_pipe_is_refused_where_it_is_not_stored(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::new(1, Cdc, &["orders"]);
    story.changes();
    story.note("the first changes were lost");
    let refused = story.try_save(&catalog).await;
    assert!(matches!(refused, Err(CatalogError::Conflict { expected: 1, found: 0, .. })), "{refused:?}");
    assert!(catalog.load().await.unwrap().pipes.is_empty());
}

pub(crate) async fn of_many_who_change_the_same_version_one_wins(place: &impl Place) {
    let catalog = Arc::new(place.open().await);
    let story = Story::copying(&catalog, 1, Cdc).await;
    let tries = (0..16).map(|number| {
        let (catalog, pipe) = (catalog.clone(), story.pipe.clone());
        tokio::spawn(async move {
            let mut story = Story::of(pipe);
            story.note(&format!("by {number}"));
            story.try_save(&catalog).await
        })
    });
    let tries: Vec<_> = tries.collect();
    let mut won = 0;
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(()) => won += 1,
            Err(error) => assert!(matches!(error, CatalogError::Conflict { .. }), "{error}"),
        }
    }
    assert_eq!(won, 1);
    let events = catalog.events(&story.id(), story.pipe.pipe().last_event, 100).await.unwrap();
    assert_eq!(events.len(), 1);
}

pub(crate) async fn a_name_is_taken_once(place: &impl Place) {
    let catalog = place.open().await;
    let mut first = Story::named(1, "shop");
    first.save(&catalog).await;
    let refused = Story::named(2, "shop").try_save(&catalog).await;
    assert!(
        matches!(&refused, Err(CatalogError::NameTaken { name, holder })
            if name == "shop" && *holder == first.id().to_string()),
        "{refused:?}"
    );
    first.note("its own name is no obstacle");
    first.save(&catalog).await;
    let (mut third, mut fourth) = (Story::named(3, "bar"), Story::named(4, "bar"));
    let both = catalog.commit(lead(&catalog).await, vec![third.changes(), fourth.changes()], Epoch(0)).await;
    assert!(matches!(both, Err(CatalogError::NameTaken { .. })), "within one batch: {both:?}");
    assert_eq!(catalog.load().await.unwrap().pipes.len(), 1);
}

pub(crate) async fn a_removed_pipes_name_is_free_at_once(place: &impl Place) {
    let catalog = place.open().await;
    let mut old = Story::named(1, "shop");
    old.save(&catalog).await;
    old.delete();
    old.finish(&Task::Teardown, Outcome::TornDown { left_behind: vec![] });
    let mut new = Story::named(2, "shop");
    catalog.commit(lead(&catalog).await, vec![new.changes(), old.changes()], Epoch(0)).await.unwrap();
    let stored = catalog.load().await.unwrap();
    assert_eq!(stored.pipes.len(), 1);
    assert_same(&stored.pipes[0], &new.pipe);
}

pub(crate) async fn changes_without_the_pipes_own_record_raise_its_version(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::copying(&catalog, 1, Cdc).await;
    assert!(story.copy_one());
    story.save(&catalog).await;
    // Everything is in hand by now: one more partition changes nothing of the pipe itself.
    assert!(story.copy_one());
    let (id, changes) = story.changes();
    assert!(changes.events.is_empty() && !changes.partitions.is_empty());
    catalog
        .commit(lead(&catalog).await, vec![(id.clone(), PipeChanges { pipe: None, ..changes })], story.epoch)
        .await
        .unwrap();
    assert_same(&catalog.load_pipe(&id).await.unwrap().unwrap(), &story.pipe);
}

pub(crate) async fn changes_that_make_no_sense_are_refused(place: &impl Place) {
    let catalog = place.open().await;
    let (id, changes) = Story::new(1, Cdc, &["orders"]).changes();
    let nameless = PipeChanges { pipe: None, ..changes.clone() };
    let without_record = catalog.commit(lead(&catalog).await, vec![(id.clone(), nameless)], Epoch(0)).await;
    assert!(matches!(without_record, Err(CatalogError::Malformed { .. })), "{without_record:?}");
    let foreign =
        catalog.commit(lead(&catalog).await, vec![(PipeId::from_random(2), changes)], Epoch(0)).await;
    assert!(matches!(foreign, Err(CatalogError::Malformed { .. })), "{foreign:?}");
    assert!(catalog.load().await.unwrap().pipes.is_empty());
}

pub(crate) async fn events_come_in_order_and_page_by_page(place: &impl Place) {
    let catalog = place.open().await;
    let (mut story, mut other) = (Story::new(1, Cdc, &["orders"]), Story::new(2, Cdc, &["orders"]));
    for number in 0..30 {
        story.note(&format!("note {number}"));
        other.note("another pipe's");
        if number % 7 == 0 {
            catalog
                .commit(lead(&catalog).await, vec![story.changes(), other.changes()], Epoch(0))
                .await
                .unwrap();
        }
    }
    story.save(&catalog).await;
    let (id, mut after, mut pages, mut all) = (story.id(), 0, Vec::new(), Vec::new());
    for _ in 0..4 {
        let page = catalog.events(&id, after, 12).await.unwrap();
        after = page.last().map_or(after, |last| last.id);
        pages.push(page.len());
        all.extend(page);
    }
    assert_eq!(pages, [12, 12, 7, 0]);
    assert_eq!(all.iter().map(|event| event.id).collect::<Vec<_>>(), (1..=31).collect::<Vec<_>>());
    assert_eq!(all[0].kind, EventKind::State { from: None, to: PipeState::Provisioning });
    assert_eq!(all[30].message, "note 29");
    assert_eq!(catalog.events(&id, 0, usize::MAX).await.unwrap(), all);
    assert_eq!(catalog.events(&id, 0, 0).await.unwrap(), []);
    assert_eq!(catalog.events(&id, u64::MAX, 1).await.unwrap(), []);
}

pub(crate) async fn a_hundred_thousand_partitions_come_back(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::new(1, Cdc, &["orders", "items"]);
    story.provision();
    story.set_up();
    story.open_snapshot_of(50_000 * 1_536, 5_000_000_000);
    assert_eq!(story.pipe.tables().map(|table| table.partitions.len()).sum::<usize>(), 100_000);
    story.save(&catalog).await;
    assert!(story.copy_one());
    story.save(&catalog).await;
}

pub(crate) async fn a_thousand_pipes_are_stored_together_or_not_at_all(place: &impl Place) {
    let catalog = place.open().await;
    Story::new(1000, Cdc, &["orders"]).save(&catalog).await;
    let batch =
        |last| (1..=last).map(|number| Story::new(number, Cdc, &["orders"]).changes()).collect::<Vec<_>>();
    let refused = catalog.commit(lead(&catalog).await, batch(1000), Epoch(5)).await;
    assert!(matches!(refused, Err(CatalogError::Conflict { .. })), "{refused:?}");
    assert_eq!(catalog.load().await.unwrap().pipes.len(), 1);
    catalog.commit(lead(&catalog).await, batch(999), Epoch(5)).await.unwrap();
    let stored = catalog.load().await.unwrap();
    assert_eq!(stored.pipes.len(), 1000);
    assert!(stored.pipes.is_sorted_by_key(|pipe| pipe.pipe().id.clone()));
}

pub(crate) async fn a_removed_pipe_leaves_nothing_behind(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::copying(&catalog, 1, Cdc).await;
    let other = Story::copying(&catalog, 2, Cdc).await;
    let id = story.id();
    story.delete();
    story.place();
    story.save(&catalog).await;
    story.finish(&Task::Teardown, Outcome::TornDown { left_behind: vec![] });
    story.try_save(&catalog).await.unwrap();
    assert!(catalog.load_pipe(&id).await.unwrap().is_none());
    assert_eq!(catalog.events(&id, 0, 10).await.unwrap(), []);
    let stored = catalog.load().await.unwrap();
    assert_eq!(stored.pipes.len(), 1);
    assert_same(&stored.pipes[0], &other.pipe);
    // A pipe under the same id meets nothing of the old one.
    let mut again = Story::new(1, Cdc, &["orders"]);
    again.save(&catalog).await;
    assert_eq!(catalog.events(&id, 0, 10).await.unwrap().len(), 1);
}

pub(crate) async fn a_pipe_that_never_was_can_be_removed(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::new(1, Cdc, &["orders"]);
    story.delete();
    story.finish(&Task::Teardown, Outcome::TornDown { left_behind: vec![] });
    story.try_save(&catalog).await.unwrap();
    assert!(catalog.load().await.unwrap().pipes.is_empty());
}

pub(crate) async fn the_last_epoch_never_goes_down(place: &impl Place) {
    let catalog = place.open().await;
    let stored = async |epoch| {
        catalog.commit(lead(&catalog).await, vec![], epoch).await.unwrap();
        catalog.load().await.unwrap().last_epoch
    };
    assert_eq!(stored(Epoch(7)).await, Epoch(7));
    assert_eq!(stored(Epoch(3)).await, Epoch(7));
    assert_eq!(stored(Epoch(u64::from(u32::MAX) + 8)).await, Epoch(u64::from(u32::MAX) + 8));
}

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) async fn one_leads_until_its_lease_ends(place: &impl Place) {
    let catalog = place.open().await;
    let (one, two) = (candidate("one"), candidate("two"));
    let Standing::Leads(first) = catalog.campaign(&one, HOUR).await.unwrap() else { panic!("nobody leads") };
    let leader = Leader { term: first, candidate: one.clone() };
    assert_eq!(catalog.campaign(&two, HOUR).await.unwrap(), Standing::Follows(leader));
    // Who leads goes on in its term, and says anew for how long: not at all, here.
    assert_eq!(catalog.campaign(&one, Duration::ZERO).await.unwrap(), Standing::Leads(first));
    let Standing::Leads(second) = catalog.campaign(&two, HOUR).await.unwrap() else {
        panic!("the lease has ended")
    };
    assert!(second > first);
    let leader = Leader { term: second, candidate: two };
    assert_eq!(catalog.campaign(&one, HOUR).await.unwrap(), Standing::Follows(leader));
}

pub(crate) async fn a_lease_that_was_given_back_is_free_at_once(place: &impl Place) {
    let catalog = place.open().await;
    let first = lead(&catalog).await;
    catalog.resign(first).await.unwrap();
    let Standing::Leads(second) = catalog.campaign(&candidate("two"), HOUR).await.unwrap() else {
        panic!("it was given back")
    };
    // The one before cannot give back what it no longer has.
    catalog.resign(first).await.unwrap();
    let standing = catalog.campaign(&candidate("three"), HOUR).await.unwrap();
    assert!(matches!(standing, Standing::Follows(leader) if leader.term == second));
    // Who gave it back and wants it again begins anew, too.
    catalog.resign(second).await.unwrap();
    let standing = catalog.campaign(&candidate("two"), HOUR).await.unwrap();
    assert!(matches!(standing, Standing::Leads(third) if third > second), "{standing:?}");
}

pub(crate) async fn nothing_is_stored_in_a_term_that_is_over(place: &impl Place) {
    let catalog = place.open().await;
    let mut story = Story::new(1, Cdc, &["orders"]);
    let Standing::Leads(first) = catalog.campaign(&candidate("one"), Duration::ZERO).await.unwrap() else {
        panic!("nobody leads")
    };
    // Its lease has ended, but nobody else has begun.
    catalog.commit(first, vec![story.changes()], Epoch(7)).await.unwrap();
    let second = lead(&catalog).await;
    story.provision();
    let late = catalog.commit(first, vec![story.changes()], Epoch(9)).await;
    assert!(
        matches!(late, Err(CatalogError::Deposed { term, present }) if term == first && present == second)
    );
    let stored = catalog.load().await.unwrap();
    assert_eq!(stored.last_epoch, Epoch(7));
    assert_eq!(stored.pipes[0].version(), 1);
}
