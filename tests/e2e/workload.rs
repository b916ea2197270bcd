//! A random workload: several clients change tables of many shapes while these are loaded and while they are streamed, and one
//! changes the tables' columns under them; in the end both sides hold the same.
//!
//! The columns of a table change once the stream has passed their change before: where the source's catalog has gone on by then, a table is set aside
//! rather than guessed at (`evolution.rs` tries that).
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
const CLIENTS: u64 = 4;
/// Keys that all clients fight over.
const HOT_KEYS: u64 = 300;
/// Rows that are there before the pipe, so that the load takes a while.
const LOADED_ROWS: u64 = 6000;
const SETTINGS: &str =
    "snapshotNumRowsPerPartition: 1000, snapshotNumberOfParallelTables: 1, syncInterval: 200ms";

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
    /// Whether tables may be emptied.
    truncates: bool,
}

impl Generator {
    fn new(seed: u64, client: u64) -> Self {
        let mut random = Random(seed ^ (client + 1).wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        Self { random, client, own: 0, truncates: false }
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
}

/// What a column may be that is added.
struct Addable {
    sql: &'static str,
    /// The type that it may be widened to.
    wider: Option<&'static str>,
    /// What rows show that are older, if not NULL.
    default: Option<&'static str>,
    values: &'static [&'static str],
}

const ADDABLE: &[Addable] = &[
    Addable { sql: "smallint", wider: Some("int"), default: None, values: &["-32768", "7", "NULL"] },
    Addable { sql: "int", wider: Some("bigint"), default: Some("5"), values: &["-1", "2147483647", "NULL"] },
    Addable {
        sql: "text NOT NULL",
        wider: None,
        default: Some("'there''s \\one'"),
        values: &["''", "'é'", "repeat('x', 3000)"],
    },
    Addable {
        sql: "varchar(10)",
        wider: Some("varchar(20)"),
        default: Some("'ten'"),
        values: &["'a'", "NULL"],
    },
    Addable {
        sql: "numeric(10,2)",
        wider: Some("numeric(14,4)"),
        default: Some("1.50"),
        values: &["-0.01", "99999999.99", "NULL"],
    },
    Addable {
        sql: "real",
        wider: Some("double precision"),
        default: Some("0.1"),
        values: &["'-Infinity'", "1.1754944e-38"],
    },
    Addable {
        sql: "double precision",
        wider: None,
        default: Some("2.2250738585072014e-308"),
        values: &["0.3", "'NaN'"],
    },
    Addable { sql: "bool NOT NULL", wider: None, default: Some("true"), values: &["false", "true"] },
    Addable {
        sql: "timestamptz",
        wider: None,
        default: Some("'2024-05-06 07:08:09.5+02'"),
        values: &["'1999-12-31 23:59:59.999999+00'", "NULL"],
    },
    Addable { sql: "date", wider: None, default: Some("'2024-02-29'"), values: &["'1970-01-01'"] },
    Addable { sql: "int[]", wider: None, default: Some("'{}'"), values: &["'{1,NULL,3}'", "'{}'"] },
    Addable { sql: "jsonb", wider: None, default: Some("'{\"a\": [1]}'"), values: &["'null'", "NULL"] },
    Addable {
        sql: "uuid",
        wider: None,
        default: None,
        values: &["'00112233-4455-6677-8899-aabbccddeeff'", "NULL"],
    },
];

/// A column that was added.
#[derive(Clone)]
struct AddedColumn {
    name: String,
    addable: &'static Addable,
    widened: bool,
}

/// What the columns' client has made of one table.
#[derive(Clone, Default)]
struct Shape {
    added: Vec<AddedColumn>,
    names: u64,
    own: u64,
    /// The end of the source's log behind the last change of its columns.
    changed: String,
}

/// Gives the changes of the tables' columns, each with some changes of rows before and behind it.
struct Reshaper {
    random: Random,
    shapes: Vec<Shape>,
    /// Names of columns that were dropped may come again, where the destination drops them too.
    reuses: bool,
}

impl Reshaper {
    const MOST_ADDED: u64 = 4;

    fn new(seed: u64, reuses: bool) -> Self {
        let random = Random(seed ^ 0x5851_f42d_4c95_7f2d);
        Self { random, shapes: vec![Shape::default(); TABLES.len()], reuses }
    }

    /// A table by its place, and the statements. They must succeed, for later ones build on them.
    fn next(&mut self) -> (usize, Vec<String>) {
        let at = usize::try_from(self.random.below(TABLES.len() as u64)).unwrap();
        let before = self.random.percent(30).then(|| self.rows(at));
        let mut statements: Vec<String> = Vec::new();
        let rolled_back = self.random.percent(20);
        if rolled_back {
            // What it does is seen by nobody, but the source describes the table in that shape.
            let shape = self.shapes[at].clone();
            statements.push("SAVEPOINT s".to_owned());
            statements.push(self.change(at));
            statements.extend(self.rows(at));
            statements.push("ROLLBACK TO s".to_owned());
            self.shapes[at] = Shape { own: self.shapes[at].own, ..shape };
        }
        statements.extend(before.into_iter().flatten());
        statements.push(self.change(at));
        let apart = !rolled_back && statements.len() == 1 && self.random.percent(50);
        let behind = self.rows(at);
        if apart {
            statements.extend(behind);
            return (at, statements);
        }
        statements.extend(behind);
        (at, enclosed(statements, "COMMIT"))
    }

    fn change(&mut self, at: usize) -> String {
        let added = self.shapes[at].added.len() as u64;
        let table = TABLES[at].name;
        let actions = match self.random.below(100) {
            _ if added == 0 => self.add(at),
            0..45 if added < Self::MOST_ADDED => {
                let more = self.random.percent(30).then(|| self.add(at));
                [Some(self.add(at)), more].into_iter().flatten().collect::<Vec<_>>().join(", ")
            }
            45..60 => {
                let name = self.name(at);
                let column = self.any(at);
                let was = std::mem::replace(&mut column.name, name.clone());
                return format!("ALTER TABLE {table} RENAME COLUMN {was} TO {name}");
            }
            60..80 => {
                let column = self.any(at);
                match column.addable.wider.filter(|_| !column.widened) {
                    Some(wider) => {
                        column.widened = true;
                        format!("ALTER COLUMN {} TYPE {wider}", column.name)
                    }
                    None => self.add(at),
                }
            }
            80..90 => {
                let dropped = self.drop(at);
                format!("{dropped}, {}", self.add(at))
            }
            _ => self.drop(at),
        };
        format!("ALTER TABLE {table} {actions}")
    }

    fn name(&mut self, at: usize) -> String {
        let shape = &mut self.shapes[at];
        shape.names += 1;
        if !self.reuses {
            return format!("x{}", shape.names);
        }
        let taken = |name: &String| shape.added.iter().any(|column| column.name == *name);
        (0..).map(|number| format!("x{number}")).find(|name| !taken(name)).unwrap()
    }

    fn any(&mut self, at: usize) -> &mut AddedColumn {
        let chosen = self.random.below(self.shapes[at].added.len() as u64);
        &mut self.shapes[at].added[usize::try_from(chosen).unwrap()]
    }

    fn add(&mut self, at: usize) -> String {
        let name = self.name(at);
        let addable = self.random.choose(ADDABLE);
        let default = addable.default.map_or(String::new(), |default| format!(" DEFAULT {default}"));
        let clause = format!("ADD COLUMN {name} {}{default}", addable.sql);
        self.shapes[at].added.push(AddedColumn { name, addable, widened: false });
        clause
    }

    fn drop(&mut self, at: usize) -> String {
        let chosen = self.random.below(self.shapes[at].added.len() as u64);
        let column = self.shapes[at].added.remove(usize::try_from(chosen).unwrap());
        format!("DROP COLUMN {}", column.name)
    }

    /// A new row, and updates of others, in the shape that the table has now.
    fn rows(&mut self, at: usize) -> Vec<String> {
        let (table, shape) = (&TABLES[at], &mut self.shapes[at]);
        shape.own += 1;
        let own = 100_000_000 + shape.own;
        let mut random = Random(self.random.next());
        let sets = |random: &mut Random| -> Vec<(String, String)> {
            let value = |column: &AddedColumn| {
                (column.name.clone(), (*random.choose(column.addable.values)).to_owned())
            };
            shape.added.iter().map(value).collect()
        };
        let (names, values): (Vec<_>, Vec<_>) = sets(&mut random).into_iter().unzip();
        let mut insert = table.insert(&[own], &mut random);
        if !names.is_empty() {
            insert = insert.replacen(") VALUES", &format!(", {}) VALUES", names.join(", ")), 1);
            insert = insert.replacen(") ON CONFLICT", &format!(", {}) ON CONFLICT", values.join(", ")), 1);
        }
        let mut statements = vec![insert];
        let set: Vec<_> =
            sets(&mut random).into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
        if !set.is_empty() {
            let first = random.below(HOT_KEYS);
            let numbers: Vec<u64> = (first..first + 5).collect();
            let (set, rows) = (set.join(", "), table.at_all(&numbers));
            statements.push(format!("UPDATE {} SET {set} WHERE {rows}", table.name));
        }
        statements
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
    reshapes: u64,
    mut reshaped: watch::Receiver<u64>,
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
        if let Some(beyond) = operation.checked_sub(operations / 2) {
            // Spread over the changes of columns, so that these happen while others write, to the last.
            let due = beyond * reshapes / (operations - operations / 2);
            reshaped.wait_for(|done| *done >= due).await.unwrap();
        }
        if operation == operations / 4 * 3 {
            // What an emptied table had wrong before, nobody sees: the last quarter keeps everything.
            generator.truncates = false;
        }
        run(&connection, &generator.transaction(), &mut tally).await;
    }
    tally
}

/// Changes the tables' columns, each table's once the stream has passed the change before.
async fn reshape(stack: &Stack, mut reshaper: Reshaper, changes: u64, done: &watch::Sender<u64>) {
    let connection = stack.source().await;
    connection.batch_execute("SET deadlock_timeout = '50ms'").await.unwrap();
    for number in 0..changes {
        let (at, statements) = reshaper.next();
        let changed = reshaper.shapes[at].changed.clone();
        if !changed.is_empty() {
            let passed = format!(
                "SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn >= '{changed}'::pg_lsn"
            );
            let what = format!("the stream to pass the change of {}", TABLES[at].name);
            stack.wait(&what, async || !connection.query(&passed, &[]).await.unwrap().is_empty()).await;
        }
        let parts =
            if statements[0] == "BEGIN" { vec![&statements[..]] } else { statements.chunks(1).collect() };
        // For whoever looks into a failure.
        for statement in statements.iter().filter(|statement| !statement.starts_with(['I', 'U'])) {
            println!("{}: {statement}", TABLES[at].name);
        }
        for part in parts {
            let mut tries = Tally::default();
            while tries.done == 0 {
                run(&connection, part, &mut tries).await;
            }
        }
        let end = connection.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
        reshaper.shapes[at].changed = end.get(0);
        done.send(number + 1).unwrap();
    }
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
    let reshapes = operations / 16;
    let (reshaped, is_reshaped) = watch::channel(0);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let generator = Generator::new(seed, number);
        let connection = stack.source().await;
        let (operations, is_at, is_reshaped) = (operations / CLIENTS, is_at.clone(), is_reshaped.clone());
        clients.push(tokio::spawn(client(connection, generator, operations, is_at, reshapes, is_reshaped)));
    }
    let entry =
        |table: &Table| format!("  - {{source: public.{0}, target: {0}{1}}}", table.name, table.options);
    let tables: Vec<_> = TABLES.iter().map(entry).collect();
    let drops = seed.is_multiple_of(2);
    let settings = if drops { ", schemaChanges: propagate_all" } else { "" };
    let settings = format!("settings: {{{SETTINGS}{settings}}}");
    stack.apply(&stack.write_pipe("workload", &tables.join("\n"), &settings)).await;
    stack
        .wait("the slot", async || {
            let made = "SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL";
            !source.query(made, &[]).await.unwrap().is_empty()
        })
        .await;
    stage.send(Stage::Loading).unwrap();
    stack.wait_for("workload", "Running").await;
    stage.send(Stage::Running).unwrap();
    // A change of columns in the middle of a load is another matter: the table has to be copied anew then. So is a truncation of which nobody can tell whether it was one.
    stack
        .wait("every table to stream", async || {
            let shown = stack.get("workload").await;
            let tables = shown["tables"].as_array().cloned().unwrap_or_default();
            let streams = |table: &serde_json::Value| {
                table["state"] == "TABLE_STATE_STREAMING" && table["successor"].is_null()
            };
            tables.iter().all(streams)
        })
        .await;
    reshape(&stack, Reshaper::new(seed, drops), reshapes, &reshaped).await;

    let mut tally = Tally::default();
    for client in clients {
        let of_client = client.await.unwrap();
        tally.done += of_client.done;
        tally.refused += of_client.refused;
    }
    println!("{tally:?}");
    assert!(tally.refused < tally.done, "the clients mostly got into each other's way: {tally:?}");

    stack.caught_up("workload").await;
    let mut differing = Vec::new();
    let shown = stack.get("workload").await;
    for (table, shown) in TABLES.iter().zip(shown["tables"].as_array().unwrap()) {
        if shown["state"] == "TABLE_STATE_SET_ASIDE" {
            differing.push(format!("{} is set aside: {}", table.name, shown["problem"]["message"]));
            continue;
        }
        let differences = stack.compare(table.name, table.key, &[]).await;
        if !differences.is_empty() {
            differing.push(format!("{}: {differences}", table.name));
        }
    }
    let events = stack.ok(&["pipe", "events", "workload"]).await;
    assert!(differing.is_empty(), "seed {seed}:\n{}\n{events}\n{}", differing.join("\n"), stack.logs());
}
