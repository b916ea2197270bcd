//! PostgreSQL of several versions: settings, authentication, restart, kill.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use millrace_devstack::{Authentication, Error, Postgres, PostgresOptions, temporary_dir};
use tokio_postgres::{Client, NoTls};

use crate::support::{launcher, runs, until};

async fn connect(settings: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(settings, NoTls).await?;
    // Ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

async fn value(client: &Client, sql: &str) -> Result<String> {
    Ok(client.query_one(sql, &[]).await.with_context(|| sql.to_owned())?.get(0))
}

async fn starts_and_keeps_its_data(major: u16) -> Result<()> {
    let folder = temporary_dir()?;
    let mut options = PostgresOptions::new(major, folder.path().join("pg"));
    options.settings =
        vec![("max_wal_senders".into(), "7".into()), ("search_path".into(), "'it''s', public".into())];
    let mut server = Postgres::start(launcher(), options).await?;
    let client = connect(&server.connection_string("postgres")).await?;
    let version = value(&client, "SHOW server_version").await?;
    assert!(version.starts_with(&format!("{major}.")), "{version}");
    for (setting, expected) in [
        ("wal_level", "logical"),
        ("max_wal_senders", "7"),
        ("max_prepared_transactions", "50"),
        ("listen_addresses", "127.0.0.1"),
        ("fsync", "off"),
        ("synchronous_commit", "on"),
        ("wal_sender_timeout", "1min"),
        ("server_encoding", "UTF8"),
        ("search_path", "'it''s', public"),
    ] {
        assert_eq!(value(&client, &format!("SHOW {setting}")).await?, expected, "{setting}");
    }
    client.batch_execute("CREATE TABLE public.t (n int)").await?;
    let slot = "SELECT slot_name::text FROM pg_create_logical_replication_slot('s', 'pgoutput')";
    assert_eq!(value(&client, slot).await?, "s");
    let port = server.port();
    for round in 0..3 {
        let client = connect(&server.connection_string("postgres")).await?;
        client.batch_execute("INSERT INTO public.t VALUES (1)").await?;
        let postmaster = server.pid();
        if round == 1 {
            server.kill().await?;
            assert!(!runs(postmaster));
        }
        server.restart().await?;
        assert_eq!(server.port(), port);
        let client = connect(&server.connection_string("postgres")).await?;
        assert_eq!(value(&client, "SELECT count(*)::text FROM public.t").await?, (round + 1).to_string());
        assert_eq!(value(&client, "SELECT slot_name::text FROM pg_replication_slots").await?, "s");
    }
    let postmaster = server.pid();
    server.stop().await?;
    assert!(!runs(postmaster));
    let log = std::fs::read_to_string(server.log())?;
    assert!(log.contains("database system is shut down"), "{log}");
    Ok(())
}

#[tokio::test]
async fn version_17_starts_and_keeps_its_data() -> Result<()> {
    starts_and_keeps_its_data(17).await
}

#[tokio::test]
async fn version_14_starts_and_keeps_its_data() -> Result<()> {
    starts_and_keeps_its_data(14).await
}

#[tokio::test]
async fn version_18_starts_and_keeps_its_data() -> Result<()> {
    starts_and_keeps_its_data(18).await
}

#[tokio::test]
async fn a_password_is_checked_by_scram_unless_everybody_is_trusted() -> Result<()> {
    for (authentication, refused) in [(Authentication::Scram, true), (Authentication::Trust, false)] {
        let folder = temporary_dir()?;
        let options = PostgresOptions {
            authentication,
            user: "the owner".into(),
            password: "it's \\ secret".into(),
            durable: true,
            ..PostgresOptions::new(17, folder.path())
        };
        let mut server = Postgres::start(launcher(), options).await?;
        let client = connect(&server.connection_string("postgres")).await?;
        let stored = "SELECT substr(rolpassword, 1, 13) FROM pg_authid WHERE rolname = current_user";
        assert_eq!(value(&client, stored).await?, "SCRAM-SHA-256");
        assert_eq!(value(&client, "SHOW fsync").await?, "on");
        let wrong = format!("{} password=wrong", server.connection_string("postgres"));
        let outcome = connect(&wrong).await;
        match outcome {
            Ok(_) => assert!(!refused, "a wrong password was accepted"),
            Err(error) => {
                let code = error.downcast_ref::<tokio_postgres::Error>().and_then(|e| e.code().cloned());
                assert_eq!(code, Some(tokio_postgres::error::SqlState::INVALID_PASSWORD), "{error:#}");
                assert!(refused, "{error:#}");
            }
        }
        server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_prepared_transaction_survives_a_kill() -> Result<()> {
    let folder = temporary_dir()?;
    let mut server = Postgres::start(launcher(), PostgresOptions::new(17, folder.path())).await?;
    let client = connect(&server.connection_string("postgres")).await?;
    client.batch_execute("CREATE TABLE t (n int)").await?;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'p'").await?;
    server.kill().await?;
    server.restart().await?;
    let client = connect(&server.connection_string("postgres")).await?;
    client.batch_execute("COMMIT PREPARED 'p'").await?;
    assert_eq!(value(&client, "SELECT count(*)::text FROM t").await?, "1");
    server.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_setting_is_reported_in_postgresqls_words() -> Result<()> {
    let folder = temporary_dir()?;
    let mut options = PostgresOptions::new(17, folder.path());
    options.settings = vec![("shared_buffers".into(), "a lot".into())];
    let error = Postgres::start(launcher(), options).await.err().context("it must not start")?;
    assert!(matches!(error, Error::Start { .. }));
    assert!(error.to_string().contains("invalid value for parameter \"shared_buffers\""), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_folder_that_the_server_cannot_reach_is_named() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        // The server runs as the caller, who can reach its own folders.
        return Ok(());
    }
    let closed = tempfile::tempdir()?;
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700))?;
    let options = PostgresOptions::new(17, closed.path().join("pg"));
    let error = Postgres::start(launcher(), options).await.err().context("it must not start")?.to_string();
    assert!(error.contains("refuses to run as root"), "{error}");
    assert!(error.contains(&format!("may not enter {}", closed.path().display())), "{error}");
    Ok(())
}

#[tokio::test]
async fn it_ends_when_its_guard_is_killed() -> Result<()> {
    let folder = temporary_dir()?;
    let server = Postgres::start(launcher(), PostgresOptions::new(17, folder.path())).await?;
    let postmaster = server.pid();
    let stat = std::fs::read_to_string(format!("/proc/{postmaster}/stat"))?;
    let guard =
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).context("a parent")?;
    let guard = nix::unistd::Pid::from_raw(guard.parse()?);
    nix::sys::signal::kill(guard, nix::sys::signal::Signal::SIGKILL)?;
    until("the postmaster has ended", || async { Ok(!runs(postmaster)) }).await
}
