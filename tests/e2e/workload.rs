//! A random workload: several clients change tables of many shapes while these are loaded and while they are streamed; in
//! the end both sides hold the same.
//!
//! A seed gives each client the same transactions again, in the same order. How those of different clients meet is up to
//! the source, so a replay need not end with the same rows; it mostly finds the same fault.
//!
//! `MILLRACE_WORKLOAD_SEED` chooses the seed, `MILLRACE_WORKLOAD_OPERATIONS` the number of transactions of all clients.

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::stack::Stack;

/// Whether rows with a large value that is stored out of line are updated without touching it.
const TOAST: bool = true;
/// Whether the tables' columns change too. Off: under load the source's catalog outruns the stream, and a table whose columns have changed again since is set
/// aside rather than guessed at (`evolution.rs` tries changes one by one).
const DDL: bool = false;

const CLIENTS: u64 = 4;
/// Keys that all clients fight over.
const HOT_KEYS: u64 = 300;
/// Rows that are there before the pipe, so that the load takes a while.
const LOADED_ROWS: u64 = 6000;
const SETTINGS: &str =
    "settings: {snapshotNumRowsPerPartition: 1000, snapshotNumberOfParallelTables: 1, syncInterval: 200ms}";

/// Every number follows from the seed, in every version of everything (SplitMix64).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn choose<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

/// What a column holds.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Text,
    Numeric,
    Time,
    Json,
    Array,
    /// 20 kB that do not compress.
    Large,
}

impl Kind {
    /// A literal.
    fn value(self, random: &mut Random) -> String {
        match self {
            Kind::Int => random.below(1000).to_string(),
            Kind::Text => {
                (*random.choose(&["NULL", "''", "'plain'", r"'é \ ''quoted'''", "repeat('long ', 100)"]))
                    .into()
            }
            Kind::Numeric => format!("{}.{:02}", random.below(1_000_000), random.below(100)),
            Kind::Time => {
                format!("timestamptz '2024-01-01 00:00:00+00' + {} * interval '1 ms'", random.next() >> 30)
            }
            Kind::Json => format!(r#"'{{"n": {}, "tags": ["a", null]}}'"#, random.below(1000)),
            Kind::Array => format!("ARRAY[{}, NULL, 3]", random.below(1000)),
            Kind::Large => {
                let words = (0..20_000 / 16).map(|_| format!("{:016x}", random.next()));
                format!("'{}'", words.collect::<String>())
            }
        }
    }
}

/// A table of one shape.
struct Table {
    name: &'static str,
    create: &'static str,
    key: &'static [&'static str],
    /// The key's literals of a number.
    key_values: fn(u64) -> Vec<String>,
    /// The other columns.
    columns: &'static [(&'static str, Kind)],
    /// A column that every update must set, as the stream does not carry it otherwise.
    always_set: Option<&'static str>,
    /// What the pipe's specification says besides source and target.
    options: &'static str,
    /// Part of [`LOADED_ROWS`] that it is given.
    share: u64,
}

fn one(number: u64) -> Vec<String> {
    vec![number.to_string()]
}

const TABLES: &[Table] = &[
    Table {
        name: "numbers",
        create: "CREATE TABLE numbers (id bigint PRIMARY KEY, amount int, note text, at timestamptz, tags int[])",
        key: &["id"],
        key_values: one,
        columns: &[("amount", Kind::Int), ("note", Kind::Text), ("at", Kind::Time), ("tags", Kind::Array)],
        always_set: None,
        options: "",
        share: 1,
    },
    Table {
        name: "pairs",
        create: "CREATE TABLE pairs (value numeric(12,2), a int, b text, note text, PRIMARY KEY (b, a))",
        key: &["a", "b"],
        key_values: |number| vec![(number % 20).to_string(), format!("'b {}'", number / 20)],
        columns: &[("value", Kind::Numeric), ("note", Kind::Text)],
        always_set: None,
        options: "",
        share: 1,
    },
    Table {
        name: "words",
        create: "CREATE TABLE words (word text PRIMARY KEY, detail jsonb, amount int)",
        key: &["word"],
        key_values: |number| vec![format!("'wörd {number}'")],
        columns: &[("detail", Kind::Json), ("amount", Kind::Int)],
        always_set: None,
        options: "",
        share: 2,
    },
    // No key: the user says that rows are told apart by the tag, and they are.
    Table {
        name: "keyless",
        create: "CREATE TABLE keyless (tag bigint NOT NULL, note text, amount int); CREATE UNIQUE INDEX ON keyless (tag); \
                 ALTER TABLE keyless REPLICA IDENTITY FULL",
        key: &["tag"],
        key_values: one,
        columns: &[("note", Kind::Text), ("amount", Kind::Int)],
        always_set: None,
        options: ", sortingKeys: [tag]",
        share: 4,
    },
    Table {
        name: "wide",
        create: "CREATE TABLE wide (id bigint PRIMARY KEY, amount int, large text, note text)",
        key: &["id"],
        key_values: one,
        columns: &[("amount", Kind::Int), ("large", Kind::Large), ("note", Kind::Text)],
        always_set: if TOAST { None } else { Some("large") },
        options: "",
        share: 100,
    },
    Table {
        name: "wide_full",
        create: "CREATE TABLE wide_full (id bigint PRIMARY KEY, amount int, large text); \
                 ALTER TABLE wide_full REPLICA IDENTITY FULL",
        key: &["id"],
        key_values: one,
        columns: &[("amount", Kind::Int), ("large", Kind::Large)],
        always_set: None,
        options: "",
        share: 100,
    },
    Table {
        name: "parted",
        create: "CREATE TABLE parted (id bigint PRIMARY KEY, amount int, note text) PARTITION BY HASH (id); \
                 CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 3, REMAINDER 0); \
                 CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 3, REMAINDER 1); \
                 CREATE TABLE parted_2 PARTITION OF parted FOR VALUES WITH (MODULUS 3, REMAINDER 2)",
        key: &["id"],
        key_values: one,
        columns: &[("amount", Kind::Int), ("note", Kind::Text)],
        always_set: None,
        options: "",
        share: 2,
    },
];

impl Table {
    fn is_wide(&self) -> bool {
        self.columns.iter().any(|(_, kind)| matches!(kind, Kind::Large))
    }

    fn key_columns(&self) -> String {
        self.key.join(", ")
    }

    fn at(&self, number: u64) -> String {
        self.at_all(&[number])
    }

    fn at_all(&self, numbers: &[u64]) -> String {
        let keys: Vec<_> =
            numbers.iter().map(|number| format!("({})", (self.key_values)(*number).join(", "))).collect();
        format!("({}) IN ({})", self.key_columns(), keys.join(", "))
    }

    fn insert(&self, numbers: &[u64], random: &mut Random) -> String {
        let columns: Vec<_> =
            self.key.iter().copied().chain(self.columns.iter().map(|(name, _)| *name)).collect();
        let row = |number: &u64| {
            let values = self.columns.iter().map(|(_, kind)| kind.value(random));
            let values: Vec<_> = (self.key_values)(*number).into_iter().chain(values).collect();
            format!("({})", values.join(", "))
        };
        let rows: Vec<_> = numbers.iter().map(row).collect();
        let table = self.name;
        format!(
            "INSERT INTO {table} ({}) VALUES {} ON CONFLICT DO NOTHING",
            columns.join(", "),
            rows.join(", ")
        )
    }

    fn upsert(&self, number: u64, random: &mut Random) -> String {
        let insert = self.insert(&[number], random);
        let set: Vec<_> = self.columns.iter().map(|(name, _)| format!("{name} = excluded.{name}")).collect();
        let update = format!("ON CONFLICT ({}) DO UPDATE SET {}", self.key_columns(), set.join(", "));
        insert.replace("ON CONFLICT DO NOTHING", &update)
    }

    fn delete(&self, numbers: &[u64]) -> String {
        format!("DELETE FROM {} WHERE {}", self.name, self.at_all(numbers))
    }

    /// Some columns, at least one.
    fn update(&self, numbers: &[u64], random: &mut Random) -> String {
        format!("UPDATE {} SET {} WHERE {}", self.name, self.assignments(random), self.at_all(numbers))
    }

    fn assignments(&self, random: &mut Random) -> String {
        let certain = random.choose(self.columns).0;
        let mut set = Vec::new();
        for (name, kind) in self.columns {
            if *name == certain || self.always_set == Some(name) || random.percent(25) {
                set.push(format!("{name} = {}", kind.value(random)));
            }
        }
        set.join(", ")
    }

    /// Gives a row another key, unless that is taken.
    fn change_key(&self, from: u64, to: u64, random: &mut Random) -> String {
        let values = (self.key_values)(to);
        let key: Vec<_> =
            self.key.iter().zip(values).map(|(name, value)| format!("{name} = {value}")).collect();
        let rest = if self.always_set.is_some() || random.percent(30) {
            format!(", {}", self.assignments(random))
        } else {
            String::new()
        };
        let (table, set) = (self.name, key.join(", "));
        format!(
            "UPDATE {table} SET {set}{rest} WHERE {} AND NOT EXISTS (SELECT FROM {table} WHERE {})",
            self.at(from),
            self.at(to)
        )
    }
}

/// Gives one client's transactions, each as its statements.
struct Generator {
    random: Random,
    client: u64,
    /// How many keys of its own it has used.
    own: u64,
    definitions: u64,
    /// Whether tables may be emptied.
    truncates: bool,
}

impl Generator {
    fn new(seed: u64, client: u64) -> Self {
        let mut random = Random(seed ^ (client + 1).wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        Self { random, client, own: 0, definitions: 0, truncates: false }
    }

    /// A key that nobody else uses.
    fn own_key(&mut self) -> u64 {
        self.own += 1;
        1_000_000 * (self.client + 1) + self.own
    }

    fn hot_key(&mut self) -> u64 {
        self.random.below(HOT_KEYS)
    }

    fn hot_keys(&mut self, most: u64) -> Vec<u64> {
        let (first, count) = (self.hot_key(), 1 + self.random.below(most));
        (first..first + count).collect()
    }

    fn table(&mut self) -> &'static Table {
        self.random.choose(TABLES)
    }

    fn transaction(&mut self) -> Vec<String> {
        if self.random.percent(2) {
            return self.large();
        }
        if self.random.percent(20) {
            let statements = self.statements();
            if statements.len() == 1 {
                return statements;
            }
            return enclosed(statements, "COMMIT");
        }
        let mut statements = Vec::new();
        for _ in 0..1 + self.random.below(5) {
            if self.random.percent(15) {
                statements.push("SAVEPOINT s".to_owned());
                statements.extend(self.statements());
                statements.extend(self.statements());
                let rolled_back = self.random.percent(70);
                statements.push(if rolled_back { "ROLLBACK TO s" } else { "RELEASE s" }.to_owned());
            }
            statements.extend(self.statements());
        }
        let end = if self.random.percent(15) { "ROLLBACK" } else { "COMMIT" };
        enclosed(statements, end)
    }

    /// One change, in one statement or in several that belong together.
    fn statements(&mut self) -> Vec<String> {
        let table = self.table();
        let most = if table.is_wide() { 2 } else { 30 };
        match self.random.below(100) {
            0..12 => vec![table.insert(&[self.hot_key()], &mut self.random)],
            12..20 => vec![table.insert(&self.hot_keys(most), &mut self.random)],
            20..30 => vec![table.upsert(self.hot_key(), &mut self.random)],
            30..48 => vec![table.update(&[self.hot_key()], &mut self.random)],
            48..56 => vec![table.update(&self.hot_keys(most), &mut self.random)],
            56..64 => vec![table.change_key(self.hot_key(), self.hot_key(), &mut self.random)],
            64..70 => self.swap(table),
            70..80 => vec![table.delete(&[self.hot_key()])],
            80..84 => vec![table.delete(&self.hot_keys(most))],
            84..91 => {
                let key = self.hot_key();
                let mut statements = vec![table.delete(&[key]), table.insert(&[key], &mut self.random)];
                if self.random.percent(30) {
                    statements.push(table.update(&[key], &mut self.random));
                    statements.push(table.delete(&[key]));
                }
                statements
            }
            91..98 => {
                // A row that comes, changes its key and goes in one transaction, or stays.
                let (first, second) = (self.own_key(), self.own_key());
                let mut statements = vec![
                    table.insert(&[first], &mut self.random),
                    table.change_key(first, second, &mut self.random),
                    table.insert(&[first], &mut self.random),
                ];
                if self.random.percent(50) {
                    statements.push(table.delete(&[second]));
                }
                statements
            }
            _ if !self.truncates => vec![table.upsert(self.hot_key(), &mut self.random)],
            98 => vec![format!("TRUNCATE {}", table.name)],
            _ => {
                let other = self.table();
                vec![
                    format!("TRUNCATE {}, {}", table.name, other.name),
                    table.insert(&self.hot_keys(most), &mut self.random),
                ]
            }
        }
    }

    /// Two rows change places by way of a third.
    fn swap(&mut self, table: &Table) -> Vec<String> {
        let (one, other, aside) = (self.hot_key(), self.hot_key(), self.own_key());
        [(one, aside), (other, one), (aside, other)]
            .map(|(from, to)| table.change_key(from, to, &mut self.random))
            .to_vec()
    }

    /// Many rows at once.
    fn large(&mut self) -> Vec<String> {
        let table = self.table();
        let count = if table.is_wide() { 20 } else { 1500 };
        let keys: Vec<u64> = (0..count).map(|_| self.own_key()).collect();
        let half = &keys[..keys.len() / 2];
        let statements = vec![
            table.insert(&keys, &mut self.random),
            table.update(&keys[keys.len() / 3..], &mut self.random),
            format!("UPDATE {} SET {}", table.name, table.assignments(&mut self.random)),
            table.delete(half),
            table.insert(&half[..half.len() / 2], &mut self.random),
        ];
        enclosed(statements, if self.random.percent(25) { "ROLLBACK" } else { "COMMIT" })
    }

    /// The next change of a table's columns, which must succeed as later ones build on it, or of what is in them.
    fn definition(&mut self) -> String {
        let steps = 8;
        let tables = TABLES.len() as u64;
        let (step, table) = (
            self.definitions % steps,
            TABLES[usize::try_from(self.definitions / steps % tables).unwrap()].name,
        );
        // Names are used once, so that a column is never another one's heir by chance.
        let round = self.definitions / steps;
        self.definitions += 1;
        match step {
            0 => format!("ALTER TABLE {table} ADD COLUMN x{round} int"),
            1 => format!("ALTER TABLE {table} ADD COLUMN y{round} text NOT NULL DEFAULT 'there''s one'"),
            2 => format!("UPDATE {table} SET x{round} = {}", self.random.below(1000)),
            3 => format!("ALTER TABLE {table} ALTER COLUMN x{round} TYPE bigint"),
            4 => format!("UPDATE {table} SET x{round} = 5000000000"),
            5 => format!("ALTER TABLE {table} RENAME COLUMN x{round} TO z{round}"),
            6 => format!("ALTER TABLE {table} DROP COLUMN y{round}"),
            _ => format!("ALTER TABLE {table} DROP COLUMN z{round}"),
        }
    }
}

fn enclosed(statements: Vec<String>, end: &str) -> Vec<String> {
    std::iter::once("BEGIN".to_owned()).chain(statements).chain([end.to_owned()]).collect()
}

/// How many transactions went through, and how many the source refused.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    done: u64,
    refused: u64,
}

/// Runs a transaction. Clients get into each other's way, which the source resolves by refusing one of them.
async fn run(client: &Client, statements: &[String], tally: &mut Tally) {
    for statement in statements {
        let Err(error) = client.batch_execute(statement).await else { continue };
        assert!(expected(&error), "{error}: {error:?}\n{}", &statement[..statement.len().min(500)]);
        client.batch_execute("ROLLBACK").await.unwrap();
        tally.refused += 1;
        return;
    }
    tally.done += 1;
}

fn expected(error: &tokio_postgres::Error) -> bool {
    let expected =
        [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE, SqlState::UNIQUE_VIOLATION];
    error.code().is_some_and(|code| expected.contains(code))
}

/// How far the pipe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Its slot may be in the making. Tables are not emptied meanwhile: PostgreSQL (14 to 18) forgets what transactions did
    /// to its catalogs that begin and commit while a slot is being made, and may then refuse to read that slot, whoever asks
    /// ("could not map filenumber"; its snapshot builder does not track transactions in the state BUILDING_SNAPSHOT).
    Beginning,
    Loading,
    Running,
}

/// One client: a quarter of its transactions before there is a slot, a quarter during the load, the others while the pipe
/// runs.
async fn client(
    connection: Client,
    mut generator: Generator,
    operations: u64,
    mut stage: watch::Receiver<Stage>,
) -> Tally {
    connection.batch_execute("SET deadlock_timeout = '50ms'").await.unwrap();
    let mut tally = Tally::default();
    for operation in 0..operations {
        if operation == operations / 4 {
            stage.wait_for(|stage| *stage >= Stage::Loading).await.unwrap();
            generator.truncates = true;
        }
        if operation == operations / 2 {
            stage.wait_for(|stage| *stage == Stage::Running).await.unwrap();
        }
        if operation == operations / 4 * 3 {
            // What an emptied table had wrong before, nobody sees: the last quarter keeps everything.
            generator.truncates = false;
        }
        run(&connection, &generator.transaction(), &mut tally).await;
        // A change of columns in the middle of a load is another matter: the table has to be copied anew then.
        if DDL && generator.client == 0 && operation > operations / 2 && operation % 4 == 0 {
            let statement = generator.definition();
            let mut tries = Tally::default();
            while tries.done == 0 {
                run(&connection, std::slice::from_ref(&statement), &mut tries).await;
            }
        }
    }
    tally
}

fn setting(name: &str, otherwise: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_workload_arrives_as_it_was() {
    let seed = setting("MILLRACE_WORKLOAD_SEED", 7);
    let operations = setting("MILLRACE_WORKLOAD_OPERATIONS", 800);
    println!(
        "MILLRACE_WORKLOAD_SEED={seed} MILLRACE_WORKLOAD_OPERATIONS={operations} runs the same transactions again"
    );
    let stack = Stack::start().await;
    let source = stack.source().await;
    let mut random = Random(seed);
    for table in TABLES {
        source.batch_execute(table.create).await.unwrap();
        let hot = (0..HOT_KEYS).step_by(2);
        let cold = (0..LOADED_ROWS / table.share).map(|number| 10_000 + number);
        let keys: Vec<u64> = hot.step_by(if table.is_wide() { 4 } else { 1 }).chain(cold).collect();
        source.batch_execute(&table.insert(&keys, &mut random)).await.unwrap();
    }
    source.batch_execute("ANALYZE").await.unwrap();

    let (stage, is_at) = watch::channel(Stage::Beginning);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let generator = Generator::new(seed, number);
        let connection = stack.source().await;
        clients.push(tokio::spawn(client(connection, generator, operations / CLIENTS, is_at.clone())));
    }
    let entry =
        |table: &Table| format!("  - {{source: public.{0}, target: {0}{1}}}", table.name, table.options);
    let tables: Vec<_> = TABLES.iter().map(entry).collect();
    stack.apply(&stack.write_pipe("workload", &tables.join("\n"), SETTINGS)).await;
    stack
        .wait("the slot", async || {
            let made = "SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL";
            !source.query(made, &[]).await.unwrap().is_empty()
        })
        .await;
    stage.send(Stage::Loading).unwrap();
    stack.wait_for("workload", "Running").await;
    stage.send(Stage::Running).unwrap();

    let mut tally = Tally::default();
    for client in clients {
        let of_client = client.await.unwrap();
        tally.done += of_client.done;
        tally.refused += of_client.refused;
    }
    println!("{tally:?}");
    assert!(tally.refused < tally.done, "the clients mostly got into each other's way: {tally:?}");

    stack.caught_up("workload").await;
    for table in stack.get("workload").await["tables"].as_array().unwrap() {
        assert_ne!(table["state"], "TABLE_STATE_SET_ASIDE", "{table:#}");
    }
    let mut differing = Vec::new();
    for table in TABLES {
        let differences = stack.compare(table.name, table.key, &[]).await;
        if !differences.is_empty() {
            differing.push(format!("{}: {differences}", table.name));
        }
    }
    assert!(differing.is_empty(), "seed {seed}:\n{}\n{}", differing.join("\n"), stack.logs());
}
