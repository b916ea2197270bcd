//! Start, stop, restart, kill.

use anyhow::Result;
use clickhouse::Client;
use millrace_devstack::{ClickHouse, ClickHouseOptions, Error};

use crate::support::{Fresh, launcher, number, runs};

async fn fill(client: &Client, database: &str) -> Result<()> {
    let client = client.clone().with_database(database);
    client.query("CREATE TABLE t (n UInt64) ENGINE = ReplacingMergeTree ORDER BY n").execute().await?;
    client.query("INSERT INTO t SELECT number FROM numbers(1000)").execute().await?;
    Ok(())
}

#[tokio::test]
async fn data_survives_a_restart_and_being_killed() -> Result<()> {
    let mut ch = Fresh::start().await?;
    let client = ch.client();
    client.query("CREATE DATABASE d").execute().await?;
    fill(&client, "default").await?;
    fill(&client, "d").await?;
    client.query("CREATE VIEW d.v AS SELECT count() AS n FROM default.t").execute().await?;
    let url = ch.server.url();
    for round in 0..3 {
        let before = ch.server.pid();
        if round == 1 {
            ch.server.kill().await?;
            assert!(!runs(before));
        }
        ch.server.restart().await?;
        assert_eq!(ch.server.url(), url);
        assert_ne!(ch.server.pid(), before);
        for table in ["default.t", "d.t"] {
            assert_eq!(number(&client, &format!("SELECT count() FROM {table}")).await?, 1000, "{table}");
        }
        assert_eq!(number(&client, "SELECT n FROM d.v").await?, 1000);
        let engine = "SELECT engine FROM system.databases WHERE name = 'default'";
        assert_eq!(client.query(engine).fetch_one::<String>().await?, "Atomic");
        client.query("CREATE TABLE u AS t").execute().await?;
        client.query("EXCHANGE TABLES t AND u").execute().await?;
        client.query("EXCHANGE TABLES t AND u").execute().await?;
        client.query("DROP TABLE u SYNC").execute().await?;
    }
    ch.stop().await
}

#[tokio::test]
async fn killing_it_in_the_middle_of_inserts_keeps_every_acknowledged_one() -> Result<()> {
    let mut ch = Fresh::start().await?;
    let client = ch.client();
    client.query("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n").execute().await?;
    let mut acknowledged = 0_u64;
    let inserting = async {
        loop {
            let sql = format!("INSERT INTO t SELECT {acknowledged}");
            if client.query(&sql).execute().await.is_err() {
                return acknowledged;
            }
            acknowledged += 1;
        }
    };
    let killing = async {
        tokio::time::timeout(std::time::Duration::from_secs(30), async {
            while number(&client, "SELECT count() FROM t").await? < 50 {}
            anyhow::Ok(())
        })
        .await??;
        ch.server.kill().await?;
        anyhow::Ok(())
    };
    let (acknowledged, killed) = tokio::join!(inserting, killing);
    killed?;
    ch.server.restart().await?;
    let found = number(&client, "SELECT count() FROM t").await?;
    // The last one may have been done without its answer.
    assert!(found == acknowledged || found == acknowledged + 1, "{found} of {acknowledged}");
    ch.stop().await
}

#[tokio::test]
async fn a_second_one_on_the_same_data_is_refused_with_the_engines_words() -> Result<()> {
    let ch = Fresh::start().await?;
    let second = ClickHouse::start(launcher(), ClickHouseOptions::new(ch.folder.path())).await;
    let error = second.err().expect("two processes on one folder");
    assert!(matches!(error, Error::Start { .. }), "{error}");
    assert!(error.to_string().contains("another process uses the same data"), "{error}");
    ch.stop().await
}

#[tokio::test]
async fn a_password_is_asked_for_when_there_is_one() -> Result<()> {
    let folder = millrace_devstack::temporary_dir()?;
    let options = ClickHouseOptions { password: "secret".into(), ..ClickHouseOptions::new(folder.path()) };
    let mut server = ClickHouse::start(launcher(), options).await?;
    let client = Client::default().with_url(server.url()).with_user("default");
    assert!(
        client.query("SELECT 1").execute().await.expect_err("no password").to_string().contains("Code: 516.")
    );
    client.with_password("secret").query("SELECT 1").execute().await?;
    server.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let folder = millrace_devstack::temporary_dir()?;
    let options = ClickHouseOptions { listen: taken.local_addr()?, ..ClickHouseOptions::new(folder.path()) };
    let error = ClickHouse::start(launcher(), options).await.err().expect("the port is taken").to_string();
    assert!(error.contains("cannot be listened on"), "{error}");
    Ok(())
}

#[tokio::test]
async fn one_that_never_held_a_table_can_be_restarted() -> Result<()> {
    let mut ch = Fresh::start().await?;
    for round in 0..3 {
        if round == 1 {
            ch.server.kill().await?;
        }
        ch.server.restart().await?;
        let engine = "SELECT engine FROM system.databases WHERE name = 'default'";
        assert_eq!(ch.client().query(engine).fetch_one::<String>().await?, "Atomic", "round {round}");
    }
    fill(&ch.client(), "default").await?;
    ch.server.restart().await?;
    assert_eq!(number(&ch.client(), "SELECT count() FROM t").await?, 1000);
    ch.stop().await
}
