//! What clients do to the source: all kinds of statements, in transactions that commit, roll back, or last.
//!
//! Every row of `walk` goes round a fixed cycle of states, one step at a time, and `trail`, which is append-only at the destination, gets a row for each step: so a step that is lost, doubled or
//! out of order shows at the destination by itself. `plain` has the rest: long values that updates leave out, changed keys, deletes.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::fleet::connect;

/// Takes a while. (A `pg_sleep` ends by the wall clock: put back by a fault, it would end after a day.)
const LONG: &str = "SELECT count(*) FROM generate_series(1, 1000000)";

/// Clients at a time.
const CLIENTS: u64 = 4;

/// A client whose connection broke waits so long.
const PAUSE: Duration = Duration::from_millis(200);

/// The cycle of states.
pub(crate) const CYCLE: [&str; 5] = ["ordered", "paid", "packed", "sent", "received"];

/// Rows to begin with.
pub(crate) const ROWS: i64 = 5_000;

pub(crate) const TABLES: &str = "  - {source: public.walk, target: walk}\n\
                                 \x20 - {source: public.plain, target: plain}\n\
                                 \x20 - {source: public.pulse, target: pulse}\n\
                                 \x20 - {source: public.trail, target: trail, tableEngine: MergeTree}\n";

/// Makes the tables and their first rows.
pub(crate) async fn prepare(client: &Client) -> anyhow::Result<()> {
    let first = CYCLE[0];
    let sql = format!(
        "CREATE TABLE walk (id bigint PRIMARY KEY, step bigint NOT NULL, state text NOT NULL);
         CREATE TABLE trail (id bigint, step bigint, PRIMARY KEY (id, step));
         CREATE TABLE plain (id bigint PRIMARY KEY, number int NOT NULL, short text, long text);
         CREATE TABLE pulse (id int PRIMARY KEY, beat bigint NOT NULL);
         CREATE SEQUENCE keys START {};
         INSERT INTO pulse VALUES (1, 0);
         INSERT INTO walk SELECT n, 0, '{first}' FROM generate_series(1, {ROWS}) n;
         INSERT INTO trail SELECT n, 0 FROM generate_series(1, {ROWS}) n;
         INSERT INTO plain SELECT n, n % 100, 'short', (SELECT string_agg(md5((n * m)::text), '') FROM generate_series(1, 100) m)
           FROM generate_series(1, {ROWS}) n;
         ANALYZE;",
        ROWS + 1
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Clients at work.
pub(crate) struct Workload {
    goes_on: watch::Sender<bool>,
    clients: JoinSet<u64>,
    committed: u64,
}

impl Workload {
    /// Begins; `round` makes the clients of each round do other things.
    pub(crate) fn start(source: &str, seed: u64, round: u64) -> Self {
        let (goes_on, follow) = watch::channel(true);
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let random =
                StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(round * CLIENTS + client));
            clients.spawn(work(source.to_owned(), random, follow.clone()));
        }
        clients.spawn(beat(source.to_owned(), follow));
        Self { goes_on, clients, committed: 0 }
    }

    /// Ends all clients between two transactions; gives how many were committed.
    pub(crate) async fn stop(mut self) -> u64 {
        self.goes_on.send_replace(false);
        while let Some(client) = self.clients.join_next().await {
            self.committed += client.unwrap_or(0);
        }
        self.committed
    }
}

/// One client; one whose connection breaks, also in the middle of a COMMIT, goes on with another.
async fn work(source: String, mut random: StdRng, goes_on: watch::Receiver<bool>) -> u64 {
    let mut committed = 0;
    while *goes_on.borrow() {
        let Ok(mut client) = connect(&source).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while *goes_on.borrow() {
            match transaction(&mut client, &mut random).await {
                Ok(done) => committed += u64::from(done),
                // A conflict with another client, or the connection is gone.
                Err(_) if client.is_closed() => break,
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
        }
    }
    committed
}

/// Something that changes all the time, by which it is seen how far the destination is.
async fn beat(source: String, goes_on: watch::Receiver<bool>) -> u64 {
    while *goes_on.borrow() {
        if let Ok(client) = connect(&source).await {
            while *goes_on.borrow() {
                if client.execute("UPDATE pulse SET beat = beat + 1", &[]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    0
}

/// Whether it was committed.
async fn transaction(client: &mut Client, random: &mut StdRng) -> Result<bool, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    for _ in 0..random.random_range(1..6) {
        let id = random.random_range(1..=ROWS);
        let statement = match random.random_range(0..20) {
            0..=8 => step(&format!("id = {id}")),
            9 => step(&format!("id BETWEEN {id} AND {}", id + 20)),
            10 => format!(
                "WITH fresh AS (INSERT INTO walk SELECT nextval('keys'), 0, '{}' RETURNING id) INSERT INTO trail SELECT id, 0 FROM fresh",
                CYCLE[0]
            ),
            11 => format!("DELETE FROM walk WHERE id = {id} AND id % 7 = 0"),
            12..=13 => format!("UPDATE plain SET number = number + 1 WHERE id BETWEEN {id} AND {}", id + 5),
            14 => format!("UPDATE plain SET long = long || 'x' WHERE id = {id}"),
            15 => format!("UPDATE plain SET id = -id WHERE id = {id}"),
            16 => format!("DELETE FROM plain WHERE id = {id}"),
            17 => format!(
                "INSERT INTO plain VALUES ({id}, 1, 'again', repeat('l', 3000)) ON CONFLICT (id) DO UPDATE SET short = 'once more'"
            ),
            18 => format!(
                "SAVEPOINT s; {}; UPDATE plain SET short = 'never' WHERE id = {id}; ROLLBACK TO s",
                step(&format!("id = {id}"))
            ),
            _ => LONG.to_owned(),
        };
        transaction.batch_execute(&statement).await?;
    }
    if random.random_range(0..8) == 0 {
        transaction.rollback().await?;
        return Ok(false);
    }
    transaction.commit().await?;
    Ok(true)
}

/// The rows go one step on.
fn step(which: &str) -> String {
    let states = CYCLE.map(|state| format!("'{state}'")).join(", ");
    format!(
        "WITH moved AS (UPDATE walk SET step = step + 1, state = (ARRAY[{states}])[(step + 1) % {} + 1] \
         WHERE {which} RETURNING id, step) INSERT INTO trail SELECT id, step FROM moved",
        CYCLE.len()
    )
}
