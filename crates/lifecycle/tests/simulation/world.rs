//! One pipe, its source, destination, workers and coordinator; what befalls them; and what must hold all the while.

use std::collections::{BTreeMap, BTreeSet};

use millrace_lifecycle::{PipeAggregate, PipeState, Refusal, TableState};
use millrace_model::spec::{ReplicationMode, TableEngine, TableSpec};
use millrace_model::work::{Assignment, Swap, Work};
use millrace_model::{Epoch, Lsn, PipeId, Recovery, TableId, TableName, Timestamp};

use crate::coordinator::Coordinator;
use crate::destination::Destination;
use crate::fixtures::{self, Store};
use crate::random::Random;
use crate::source::{KEYS, Source};
use crate::worker::Worker;

/// Ticks with faults and commands.
const TROUBLED: u64 = 500;

/// Ticks in which everything must come to rest without faults.
const PATIENCE: u64 = 1500;

const TABLES: [&str; 4] = ["a", "b", "c", "d"];

/// What a user was promised, by commands that were acknowledged.
#[derive(Debug, Default)]
struct Promised {
    paused: bool,
    deleted: bool,
    dropped: bool,
    /// Tables that must not be the pipe's any more when all is done.
    copied_anew: BTreeSet<TableId>,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: u64,
    pub(crate) lease: u64,
    /// Messages take up to so long.
    pub(crate) delay: u64,
    /// A step of a worker takes up to so long.
    pub(crate) pace: u64,
    /// So often in a thousand the source changes in a tick.
    changes: u64,
    pub(crate) faults: bool,
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) workers: Vec<Worker>,
    pub(crate) coordinator: Coordinator,
    pub(crate) store: Store,
    pub(crate) rights_withdrawn: u64,
    pub(crate) removed: bool,
    /// Partitions that were reported in this turn, and those whose report is stored.
    pub(crate) copied_now: BTreeSet<(TableId, u32)>,
    pub(crate) copied: BTreeSet<(TableId, u32)>,
    /// Tables that took the place of others.
    pub(crate) swapped_in: BTreeSet<String>,
    promised: Promised,
    last_told: Epoch,
    /// What happened, where somebody wants to read it.
    trace: Option<Vec<String>>,
}

fn table_spec(name: &str, engine: TableEngine) -> TableSpec {
    TableSpec { engine, ..TableSpec::new(TableName::new("public", name), name) }
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let mode = match random.below(10) {
            0 | 1 => ReplicationMode::Snapshot,
            2 => ReplicationMode::CdcOnly,
            _ => ReplicationMode::Cdc,
        };
        let mut source = Source::default();
        for table in TABLES {
            for key in 0..KEYS {
                if random.chance(700) {
                    source.set(&TableName::new("public", table), key, &mut random);
                }
            }
        }
        let first = 1 + random.below(3) as usize;
        let tables = TABLES[..first].iter().map(|name| table_spec(name, random_engine(&mut random)));
        let tables = tables.collect();
        let mut spec = fixtures::spec(mode, tables);
        spec.settings.snapshot_parallel_tables = 1 + u32::try_from(random.below(3)).unwrap();
        let pipe = PipeAggregate::create(PipeId::from_random(seed), spec, Timestamp(0));
        let worker = |number: u64| Worker {
            id: format!("w{number}").parse().unwrap(),
            alive: true,
            leaving: false,
            connection: None,
            connects_at: number * 3,
            heard: 0,
            hangs_until: 0,
            held: BTreeMap::new(),
        };
        let workers = 1 + random.below(3);
        let (delay, pace) = (2 + random.below(10), 2 + random.below(8));
        let changes = 200 + random.below(700);
        Self {
            random,
            now: 0,
            lease: 30,
            delay,
            pace,
            changes,
            faults: true,
            source,
            destination: Destination::default(),
            workers: (1..=workers).map(worker).collect(),
            coordinator: Coordinator::new(pipe),
            store: Store::default(),
            rights_withdrawn: 0,
            removed: false,
            copied_now: BTreeSet::new(),
            copied: BTreeSet::new(),
            swapped_in: BTreeSet::new(),
            promised: Promised::default(),
            last_told: Epoch(0),
            trace: traced.then(Vec::new),
        }
    }

    pub(crate) fn log(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!("{:>5} {}", self.now, line(self));
            self.trace.iter_mut().for_each(|trace| trace.push(line.clone()));
        }
    }

    /// The last lines of what happened.
    pub(crate) fn story(&self, lines: usize) -> String {
        let trace = self.trace.as_deref().unwrap_or_default();
        trace[trace.len().saturating_sub(lines)..].join("\n")
    }

    /// A whole life: trouble, then rest, then everything is looked at.
    pub(crate) fn live(&mut self) {
        // The pipe is made and acknowledged first.
        self.faults = false;
        self.commit();
        self.faults = true;
        while self.now < TROUBLED && !self.removed {
            self.befall();
            self.tick();
        }
        self.faults = false;
        self.log(|_| "all trouble ends".to_owned());
        for _ in 0..8 {
            if !self.removed {
                self.rest();
            }
            if self.removed || !self.mend() {
                break;
            }
        }
        self.check_end();
    }

    fn tick(&mut self) {
        self.now += 1;
        if self.random.chance(self.changes) {
            self.change();
        }
        self.coordinate();
        if !self.removed {
            self.workers();
        }
    }

    /// Goes on until nothing has happened for a while.
    fn rest(&mut self) {
        let until = self.now + PATIENCE;
        let mut quiet = 0;
        while self.now < until && quiet < 40 && !self.removed {
            self.now += 1;
            self.coordinate();
            if self.removed {
                return;
            }
            self.workers();
            let pipe = &self.coordinator.pipe;
            let idle = pipe
                .assignments()
                .all(|held| held.task == millrace_lifecycle::Task::Stream && !held.draining);
            let stands = pipe.wanted().len() == pipe.assignments().count();
            let state = pipe.pipe().state;
            let rests = matches!(state, PipeState::Failed | PipeState::Paused);
            // Nobody rests there.
            let works = matches!(
                state,
                PipeState::Provisioning
                    | PipeState::Setup
                    | PipeState::Pausing
                    | PipeState::Modifying
                    | PipeState::Resync
            );
            let caught_up = rests || pipe.tables().all(|table| table.record.state != TableState::CatchingUp);
            let swapped = state != PipeState::Running
                || pipe.tables().all(|table| table.record.state != TableState::Swapping);
            quiet = if self.coordinator.up && idle && stands && caught_up && swapped && !works {
                quiet + 1
            } else {
                0
            };
        }
        let pipe = &self.coordinator.pipe;
        assert!(
            quiet >= 40,
            "the pipe never comes to rest: {} with {}, calls for {:?}, rounds {:?}",
            pipe.pipe().state,
            tables(pipe),
            pipe.wanted(),
            pipe.pipe().rounds
        );
        let tables = tables(pipe);
        match pipe.pipe().state {
            PipeState::Running | PipeState::Paused | PipeState::Completed => {}
            PipeState::Failed => assert!(pipe.pipe().failure.is_some(), "nobody says why it failed"),
            PipeState::Snapshot if pipe.tables().any(|table| table.record.state == TableState::SetAside) => {}
            other => panic!("the pipe rests in {other} with {tables}"),
        }
        let promised = &self.promised;
        assert!(!promised.deleted, "a delete was acknowledged and not carried out");
        // Resynced from Paused, a snapshot-only pipe waits in Snapshot for what is set aside.
        let waits = pipe.pipe().state == PipeState::Snapshot && !pipe.pipe().spec.mode.follows();
        assert!(
            !promised.paused || waits || matches!(pipe.pipe().state, PipeState::Paused | PipeState::Failed),
            "a pause was acknowledged, yet the pipe rests in {}",
            pipe.pipe().state
        );
        if pipe.pipe().state != PipeState::Paused && pipe.pipe().state != PipeState::Failed {
            let left = pipe.tables().find(|table| {
                promised.copied_anew.contains(&table.record.id)
                    && pipe.tables().all(|other| other.record.replaces != Some(table.record.id))
            });
            let left = left.map(|table| table.record.source().to_string());
            assert_eq!(left, None, "a resync was acknowledged and not carried out");
        }
    }

    /// Does what a user would do about a pipe that rests; false where there is nothing to do.
    fn mend(&mut self) -> bool {
        self.rights_withdrawn = 0;
        let pipe = self.coordinator.pipe.clone();
        let never = |recovery| recovery == Recovery::Never;
        let slot_is_lost = pipe.pipe().failure.as_ref().is_some_and(|failure| never(failure.recovery));
        let aside = pipe
            .tables()
            .filter(|table| table.record.state == TableState::SetAside)
            .map(|table| table.record.source().clone())
            .find(|source| {
                pipe.tables().all(|table| {
                    table.record.source() != source
                        || !table.record.state.is_active()
                        || table.record.replaces.is_none()
                })
            });
        let copies = pipe.pipe().spec.mode.copies();
        let state = pipe.pipe().state;
        self.log(|_| format!("the pipe rests in {state}"));
        // Whatever mends it also lets it go on.
        self.promised.paused = false;
        match state {
            PipeState::Failed if slot_is_lost && copies => self.must(|pipe, now| pipe.resync(&[], now)),
            PipeState::Failed if slot_is_lost => {
                self.must(|pipe, now| pipe.delete(true, now));
                (self.promised.deleted, self.promised.dropped) = (true, true);
                self.rest_deleted();
            }
            PipeState::Failed if aside.is_some() && copies => {
                let failure = pipe.pipe().failure.clone();
                if failure.is_some_and(|failure| failure.table.is_none()) {
                    self.must(|pipe, now| pipe.resume(now));
                } else {
                    self.must(|pipe, now| pipe.retry(&aside.unwrap(), now));
                }
            }
            PipeState::Failed | PipeState::Paused => {
                self.must(|pipe, now| pipe.resume(now));
                self.promised.paused = false;
            }
            _ => {
                let Some(aside) = aside else { return false };
                if copies {
                    self.must(|pipe, now| pipe.retry(&aside, now));
                } else if pipe.pipe().spec.tables.len() > 1 {
                    let mut spec = pipe.pipe().spec.clone();
                    spec.tables.retain(|table| table.source != aside);
                    self.must(|pipe, now| pipe.edit(spec, false, now));
                } else {
                    return false;
                }
            }
        }
        true
    }

    fn rest_deleted(&mut self) {
        for _ in 0..PATIENCE {
            if self.removed {
                return;
            }
            self.tick();
        }
    }

    fn must<T>(&mut self, command: impl FnOnce(&mut PipeAggregate, Timestamp) -> Result<T, Refusal>) {
        let now = self.timestamp();
        if let Err(refusal) = command(&mut self.coordinator.pipe, now) {
            panic!("what should mend the pipe is refused: {refusal}; {}", refusal.remedy());
        }
        self.commit();
    }

    /// The source changes.
    fn change(&mut self) {
        let table = TableName::new("public", self.random.pick(&TABLES).unwrap());
        let key = u8::try_from(self.random.below(KEYS.into())).unwrap();
        let kept = self.coordinator.pipe.tables().any(|found| {
            found.record.source() == &table && found.record.spec.engine != TableEngine::ReplacingMergeTree
        });
        match self.random.below(100) {
            0..5 if !kept => self.source.truncate(&table),
            0..30 => self.source.delete(&table, key),
            30..40 => self.source.other(),
            _ => self.source.set(&table, key, &mut self.random),
        }
    }

    /// Something may befall somebody.
    fn befall(&mut self) {
        let index = self.random.below(self.workers.len() as u64) as usize;
        let alive = self.workers[index].alive;
        match self.random.below(1000) {
            0..6 if alive => self.kill(index),
            6..10 => {
                let length = self.random.below(80);
                self.workers[index].hangs_until = self.now + length;
                self.log(|world| format!("{} hangs for {length}", world.workers[index].id));
            }
            10..18 => {
                let length = self.random.below(60);
                let worker = &mut self.workers[index];
                if worker.alive && worker.connection.is_some() {
                    worker.connection = None;
                    worker.connects_at = self.now + length;
                    self.log(|world| format!("{} is away for {length}", world.workers[index].id));
                }
            }
            18..20 if alive => self.workers[index].leaving = true,
            20..22 if self.coordinator.up => self.crash(),
            22..24 => {
                self.log(|_| "the source restarts".to_owned());
                self.source.sessions.clear();
                if let Some(slot) = &mut self.source.slot {
                    slot.reader = None;
                }
            }
            24 if self.random.chance(300) => {
                self.log(|_| "the slot is lost".to_owned());
                self.source.slot = None;
            }
            25 if self.random.chance(500) => self.rights_withdrawn = self.now + 20,
            30..50 => self.command(),
            // While the first load lasts there is most to disturb.
            50..110 if self.now < 80 => self.command(),
            _ => {}
        }
    }

    /// A user wants something; an acknowledged command is remembered.
    fn command(&mut self) {
        if !self.coordinator.up {
            return;
        }
        // What is open is stored first, so that what the command does stands alone.
        self.commit();
        if !self.coordinator.up || self.removed {
            return;
        }
        let now = self.timestamp();
        let table = TableName::new("public", self.random.pick(&TABLES).unwrap());
        let failed = self.coordinator.pipe.pipe().state == PipeState::Failed;
        let choice = self.random.below(100);
        let engine = random_engine(&mut self.random);
        let World { coordinator, destination, .. } = self;
        let pipe = &mut coordinator.pipe;
        let spec = pipe.pipe().spec.clone();
        let known = spec.tables.iter().any(|known| known.source == table);
        let anew = |pipe: &PipeAggregate, picks: &dyn Fn(&TableName) -> bool| -> BTreeSet<TableId> {
            let tables = pipe.tables().map(|table| &table.record);
            tables.filter(|table| picks(table.source())).map(|table| table.id).collect()
        };
        let mut promised = BTreeSet::new();
        let (words, result) = match choice {
            0..12 => ("pause".to_owned(), pipe.pause(now)),
            12..30 => ("resume".to_owned(), pipe.resume(now)),
            30..37 => {
                promised = anew(pipe, &|_| true);
                ("resync".to_owned(), pipe.resync(&[], now))
            }
            37..48 => {
                promised = anew(pipe, &|source| source == &table);
                (format!("resync {table}"), pipe.resync(std::slice::from_ref(&table), now))
            }
            48..60 => {
                promised = anew(pipe, &|source| source == &table);
                (format!("retry {table}"), pipe.retry(&table, now))
            }
            60..80 if !known => {
                let mut edited = spec;
                edited.tables.push(table_spec(&table.name, engine));
                let result = pipe.edit(edited, false, now);
                if result.is_ok() {
                    // An addition needs an empty or absent target; what was left of one taken out before is dropped by its user.
                    destination.drop(&table.name);
                }
                (format!("add {table}"), result.map(drop))
            }
            60..95 if known && spec.tables.len() > 1 => {
                let mut edited = spec;
                edited.tables.retain(|kept| kept.source != table);
                (format!("remove {table}"), pipe.edit(edited, false, now).map(drop))
            }
            95..98 => {
                let mut edited = spec;
                edited.settings.pull_batch_size += 1;
                ("edit".to_owned(), pipe.edit(edited, false, now).map(drop))
            }
            98.. => ("delete".to_owned(), pipe.delete(self.now.is_multiple_of(2), now)),
            _ => return,
        };
        if let Err(refusal) = result {
            assert_eq!(pipe.take_changes(), None, "{words} was refused and changed something");
            self.log(|_| format!("{words} is refused: {refusal}"));
            return;
        }
        self.log(|_| format!("{words} is acknowledged"));
        let drop_tables = self.now.is_multiple_of(2);
        let faults = std::mem::take(&mut self.faults);
        self.commit();
        self.faults = faults;
        match words.as_str() {
            "pause" => self.promised.paused = true,
            // Whatever mends a failed pipe lets it go on, also one that failed before it had paused.
            _ if failed && words != "edit" => self.promised.paused = false,
            "resume" | "resync" => self.promised.paused = false,
            "delete" => {
                self.promised.deleted = true;
                self.promised.dropped |= drop_tables;
            }
            _ if words.starts_with("retry") => {
                self.promised.paused &= self.coordinator.pipe.pipe().state != PipeState::Running;
            }
            _ => {}
        }
        self.promised.copied_anew.append(&mut promised);
    }

    pub(crate) fn check_assignment(&mut self, assignment: &Assignment) {
        assert!(assignment.epoch > self.last_told, "epoch {} was given out before", assignment.epoch);
        self.last_told = assignment.epoch;
        if let Work::Copy { table, partition, .. } = &assignment.work
            && self.coordinator.pipe.pipe().spec.mode != ReplicationMode::Snapshot
        {
            let known = self.copied.contains(&(table.id, *partition));
            assert!(!known, "partition {partition} of table {} is copied again", table.id);
        }
    }

    /// Tables that are up to date hold what the source held at the stream's position, or later.
    pub(crate) fn check_tables(&mut self) {
        let durable = self.coordinator.pipe.pipe().durable;
        if self.coordinator.pipe.pipe().deleting {
            return;
        }
        let records: Vec<_> = self
            .store
            .tables
            .values()
            .filter(|table| table.state == TableState::Streaming)
            .map(|table| {
                (table.source().clone(), table.written.clone(), table.uuid.clone(), table.spec.engine)
            })
            .collect();
        let follows_from_start = self.coordinator.pipe.pipe().spec.mode == ReplicationMode::Cdc;
        for (source, written, uuid, engine) in records {
            let swapping = self
                .store
                .tables
                .values()
                .any(|table| table.source() == &source && table.state == TableState::Swapping);
            let Some(table) = self.destination.table(&written) else {
                panic!("{source} streams, yet there is no table {written}")
            };
            let rows = table.rows();
            let found = self.destination.names.get(&written).cloned();
            if !swapping {
                assert!(
                    // One that was swapped in and given up before anybody recorded it is as good.
                    found == uuid || found.is_some_and(|found| self.swapped_in.contains(&found)),
                    "{written} of {source} is another table than the one that was made"
                );
            }
            if follows_from_start
                && engine == TableEngine::ReplacingMergeTree
                && let Err(stale) = self.source.is_fresh(&source, &rows, durable)
            {
                panic!("a change was never applied: in {written}, {stale}, and the stream is past {durable}");
            }
        }
    }

    /// Nobody reads a table that is dropped or emptied.
    pub(crate) fn check_unread(&mut self, name: &str, what: &str) {
        let pipe = &self.coordinator.pipe;
        let deleting = pipe.pipe().deleting || self.store.pipe.as_ref().is_some_and(|pipe| pipe.deleting);
        let read =
            self.store.tables.values().find(|table| {
                table.spec.target == name && table.state.is_copied() && table.replaces.is_none()
            });
        if let Some(read) = read.filter(|_| !deleting) {
            panic!("{name} is {what} while readers have it: {} is {}", read.source(), read.state);
        }
        let target = self.store.tables.values().any(|table| table.spec.target == name);
        assert!(
            what != "dropped" || !target || deleting,
            "{name} is dropped, and its successor not in place"
        );
    }

    pub(crate) fn check_unneeded(&mut self, uuid: &str, name: &str) {
        let needed = self
            .store
            .tables
            .values()
            .find(|table| table.uuid.as_deref() == Some(uuid) && table.state.is_active());
        let supplanted = |table: &&millrace_lifecycle::TableRecord| {
            let found = self.destination.names.get(&table.written);
            found.is_some_and(|found| self.swapped_in.contains(found))
        };
        if let Some(needed) = needed.filter(|needed| !supplanted(needed)) {
            panic!("{name} is dropped, and is the table of {} which is {}", needed.source(), needed.state);
        }
    }

    /// A table that takes another's place must be complete and no older.
    pub(crate) fn check_complete(&mut self, swap: &Swap, position: Option<Lsn>) {
        let Some(record) = self.store.tables.get(&swap.id).cloned() else {
            panic!("a table is swapped in that the pipe does not know any more")
        };
        let Some(table) = self.destination.table(&swap.copied) else { panic!("there is no {}", swap.copied) };
        let rows = table.rows();
        let keeps_all = table.keeps_all;
        match position {
            Some(position) if !keeps_all => {
                // What the stream confirmed last is the least that readers had.
                if let Err(stale) = self.source.is_fresh(&swap.source, &rows, position.min(record.goal)) {
                    panic!("{} takes the place of {} and is not complete: {stale}", swap.copied, swap.target);
                }
                if let Err(stale) = self.source.is_fresh(&swap.source, &rows, position) {
                    panic!("{} takes the place of {} and is stale: {stale}", swap.copied, swap.target);
                }
            }
            Some(_) => {}
            None => {
                let points = self.source.points.clone();
                let whole = points.iter().any(|point| self.source.rows_at(&swap.source, *point) == rows);
                assert!(whole, "{} takes the place of {} and is not complete", swap.copied, swap.target);
            }
        }
    }

    /// All trouble is over and the pipe rests: everything is where it should be.
    fn check_end(&mut self) {
        let mode = self.coordinator.pipe.pipe().spec.mode;
        let targets: BTreeSet<String> = TABLES.iter().map(|table| (*table).to_owned()).collect();
        let left: Vec<&String> =
            self.destination.names.keys().filter(|name| !targets.contains(*name)).collect();
        if self.removed {
            assert!(!mode.follows() || self.source.slot.is_none(), "the slot is left behind");
            assert_eq!(self.source.publication, None, "the publication is left behind");
            assert!(left.is_empty(), "tables are left behind: {left:?}");
            return;
        }
        let pipe = self.coordinator.pipe.pipe().clone();
        assert!(!self.promised.deleted, "a delete was acknowledged and not carried out");
        assert!(left.is_empty(), "tables are left behind: {left:?}");
        assert!(pipe.garbage.is_empty() && pipe.rounds.is_empty(), "{:?} {:?}", pipe.garbage, pipe.rounds);
        let sources: BTreeSet<TableName> =
            pipe.spec.tables.iter().map(|table| table.source.clone()).collect();
        let known: Vec<TableName> =
            self.coordinator.pipe.tables().map(|table| table.record.source().clone()).collect();
        assert_eq!(known.len(), sources.len(), "the pipe's tables are {known:?}");
        assert_eq!(known.into_iter().collect::<BTreeSet<_>>(), sources, "an edit was not carried out");
        if mode.follows() {
            let aside =
                self.coordinator.pipe.tables().any(|table| table.record.state == TableState::SetAside);
            assert!(
                aside || self.source.publication.as_ref() == Some(&sources),
                "the publication has {:?} and the pipe {sources:?}",
                self.source.publication
            );
        }
        // A last change of every row; then all must be equal.
        if mode.follows() {
            for source in &sources {
                for key in 0..KEYS {
                    if mode == ReplicationMode::CdcOnly || self.random.chance(300) {
                        self.source.set(source, key, &mut self.random);
                    }
                }
            }
            for _ in 0..3000 {
                self.tick_quietly();
                if self.source.slot.as_ref().is_some_and(|slot| slot.confirmed >= self.source.lsn) {
                    break;
                }
            }
            self.rest();
        }
        let tables: Vec<_> = self.coordinator.pipe.tables().map(|table| table.record.clone()).collect();
        for record in tables.iter().filter(|table| table.state != TableState::SetAside) {
            let source = record.source();
            let Some(table) = self.destination.table(&record.written) else {
                panic!("{source} has no table")
            };
            let rows = table.rows();
            if mode == ReplicationMode::Snapshot {
                let points = self.source.points.clone();
                let whole = points.iter().any(|point| self.source.rows_at(source, *point) == rows);
                assert!(whole, "{source} is not what the source held at any one moment");
                continue;
            }
            if table.keeps_all {
                if mode == ReplicationMode::Cdc {
                    let inserted = table.inserted.clone();
                    self.check_every_row(source, record.begins, &inserted);
                }
            } else {
                assert_eq!(rows, self.source.rows(source), "{source} is not equal");
            }
        }
    }

    fn tick_quietly(&mut self) {
        self.now += 1;
        self.coordinate();
        self.workers();
    }

    /// Every initial row once, every change once.
    fn check_every_row(
        &self,
        source: &TableName,
        begins: Lsn,
        inserted: &BTreeMap<(u64, u8, Option<u64>), u32>,
    ) {
        let mut expected: BTreeMap<(u64, u8, Option<u64>), u32> = BTreeMap::new();
        for (key, value) in self.source.rows_at(source, begins) {
            expected.insert((0, key, Some(value)), 1);
        }
        for change in self.source.log.iter().filter(|change| &change.table == source && change.lsn > begins) {
            match change.key {
                Some(key) => drop(expected.insert((change.lsn.0, key, change.value), 1)),
                None => expected.clear(),
            }
        }
        assert_eq!(inserted, &expected, "{source} has not every row and change once (copied at {begins})");
    }
}

fn random_engine(random: &mut Random) -> TableEngine {
    if random.chance(200) { TableEngine::MergeTree } else { TableEngine::ReplacingMergeTree }
}

fn tables(pipe: &PipeAggregate) -> String {
    let tables = pipe.tables().map(|table| {
        let record = &table.record;
        format!(
            "{} {} {}{}",
            record.id,
            record.source(),
            record.state,
            match record.replaces {
                Some(id) => format!(" to replace {id}"),
                None => String::new(),
            }
        )
    });
    tables.collect::<Vec<_>>().join(", ")
}
