//! Getting in, and not getting in.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use millrace_model::spec::{PostgresSource, TlsMode};
use millrace_model::{Recovery, Secret};
use millrace_postgres::error::Step;
use millrace_postgres::wire::{Purpose, Wire};
use millrace_postgres::{Error, Session, classify, identify_system};

use crate::support::{APPLICATION, Server};

/// By our own client in both uses, and by the one for statements.
async fn connect_all(source: &PostgresSource) -> [Result<(), Error>; 3] {
    [
        Wire::connect(source, Purpose::Session, APPLICATION).await.map(drop),
        Wire::connect(source, Purpose::Replication, APPLICATION).await.map(drop),
        Session::connect(source, APPLICATION).await.map(drop),
    ]
}

async fn gets_in(source: &PostgresSource) {
    for result in connect_all(source).await {
        result.unwrap();
    }
}

/// The code, which is the same for all, and one of the messages.
async fn is_refused(source: &PostgresSource) -> (String, Recovery, String) {
    let problems = connect_all(source).await.map(|result| classify(&result.unwrap_err()));
    let [first, ..] = &problems;
    for problem in &problems {
        assert_eq!((&problem.code, problem.recovery), (&first.code, first.recovery), "{problem}");
    }
    (first.code.clone(), first.recovery, first.message.clone())
}

#[tokio::test]
async fn scram_lets_in_with_the_right_password_only() {
    let server = Server::start().await;
    gets_in(&server.source()).await;
    for password in ["wrong", ""] {
        let (code, recovery, message) = is_refused(&server.source_as("postgres", password)).await;
        assert_eq!(
            (code.as_str(), recovery),
            ("SOURCE_AUTHENTICATION_FAILED", Recovery::Operator),
            "{message}"
        );
    }
    assert_eq!(is_refused(&server.source_as("nobody", "x")).await.0, "SOURCE_AUTHENTICATION_FAILED");
    let elsewhere = PostgresSource { database: "no such".to_owned(), ..server.source() };
    assert_eq!(is_refused(&elsewhere).await.0, "SOURCE_DATABASE_MISSING");
}

#[tokio::test]
async fn every_other_method_of_authentication_works() {
    let server = Server::start().await;
    server
        .run(
            "SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN SUPERUSER PASSWORD 'sesame';
             SET password_encryption = 'scram-sha-256'; CREATE ROLE plain LOGIN SUPERUSER PASSWORD 'sesame';
             CREATE ROLE trusted LOGIN SUPERUSER; CREATE ROLE shut LOGIN SUPERUSER PASSWORD 'sesame'",
        )
        .await;
    let rules = ["hashed md5", "plain password", "trusted trust", "postgres scram-sha-256"].map(|rule| {
        let (role, method) = rule.split_once(' ').unwrap();
        format!("host all {role} 127.0.0.1/32 {method}\n")
    });
    std::fs::write(server.cluster().join("pg_hba.conf"), rules.concat()).unwrap();
    server.run("SELECT pg_reload_conf()").await;
    // New connections see the new rules once the postmaster has read them.
    server.until("(SELECT count(*) FROM pg_hba_file_rules) = 4").await;
    let began = Instant::now();
    while Wire::connect(&server.source_as("trusted", ""), Purpose::Session, APPLICATION).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    gets_in(&server.source_as("trusted", "")).await;
    for role in ["hashed", "plain"] {
        gets_in(&server.source_as(role, "sesame")).await;
        let (code, _, message) = is_refused(&server.source_as(role, "wrong")).await;
        assert_eq!(code, "SOURCE_AUTHENTICATION_FAILED", "{message}");
    }
    let (code, _, message) = is_refused(&server.source_as("shut", "sesame")).await;
    assert_eq!(code, "SOURCE_AUTHENTICATION_FAILED");
    assert!(message.contains("pg_hba.conf"), "{message}");
}

#[tokio::test]
async fn what_the_role_has_set_does_not_change_how_values_look_or_how_long_things_may_take() {
    let server = Server::start().await;
    server
        .run(
            "ALTER ROLE postgres SET DateStyle = 'German'; ALTER ROLE postgres SET IntervalStyle = 'iso_8601';
             ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo'; ALTER ROLE postgres SET extra_float_digits = 0;
             ALTER ROLE postgres SET bytea_output = 'escape'; ALTER ROLE postgres SET client_encoding = 'LATIN1';
             ALTER ROLE postgres SET statement_timeout = '1h'; ALTER ROLE postgres SET lock_timeout = '1h';
             ALTER ROLE postgres SET idle_in_transaction_session_timeout = '1h';
             ALTER ROLE postgres SET idle_session_timeout = '1h'; ALTER ROLE postgres SET transaction_timeout = '1h'",
        )
        .await;
    let expected = [
        ("DateStyle", "ISO, DMY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("client_encoding", "UTF8"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("transaction_timeout", "0"),
        ("row_security", "off"),
    ];
    for purpose in [Purpose::Session, Purpose::Replication] {
        let mut wire = Wire::connect(&server.source(), purpose, APPLICATION).await.unwrap();
        for (setting, value) in expected {
            let rows = wire.simple_query(Step::Session, &format!("SHOW {setting}")).await.unwrap();
            let shown = rows[0][0].clone().unwrap();
            // The order of day and month matters for input only.
            let same = shown == value || setting == "DateStyle" && shown.starts_with("ISO");
            assert!(same, "{setting} is {shown} for {purpose:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_tried_again() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Accepts, by the system's doing, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_port = deaf.local_addr().unwrap().port();
    let closing = std::thread::spawn(move || deaf.incoming().take(3).for_each(drop));
    let source = |host: &str, port| PostgresSource {
        host: host.to_owned(),
        port,
        database: "postgres".to_owned(),
        username: "postgres".to_owned(),
        password: Secret::new("secret word"),
        tls_mode: TlsMode::Disable,
        tls_ca: None,
    };
    let (refused, unknown) = (source("127.0.0.1", unused), source("no-such-host.invalid", 5432));
    let (silent_source, closing_source) =
        (source("127.0.0.1", silent.local_addr().unwrap().port()), source("127.0.0.1", deaf_port));
    let (refused, unknown, silent, closed) = tokio::join!(
        is_refused(&refused),
        is_refused(&unknown),
        async {
            let result = Wire::connect(&silent_source, Purpose::Session, APPLICATION).await;
            let problem = classify(&result.unwrap_err());
            (problem.code, problem.recovery, problem.message)
        },
        is_refused(&closing_source),
    );
    for (found, code, says) in [
        (refused, "SOURCE_UNREACHABLE", "refused"),
        (unknown, "SOURCE_UNREACHABLE", "no-such-host.invalid"),
        (silent, "SOURCE_UNREACHABLE", "no answer"),
        (closed, "SOURCE_CONNECTION_LOST", ""),
    ] {
        assert_eq!((found.0.as_str(), found.1), (code, Recovery::Retry), "{}", found.2);
        assert!(found.2.contains(says) && !found.2.contains("secret word"), "{}", found.2);
    }
    closing.join().unwrap();
}

#[tokio::test]
async fn something_else_than_postgresql_is_not_understood() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let web = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let source = PostgresSource {
        host: "127.0.0.1".to_owned(),
        port,
        database: "x".to_owned(),
        username: "x".to_owned(),
        password: Secret::default(),
        tls_mode: TlsMode::Disable,
        tls_ca: None,
    };
    let error = Wire::connect(&source, Purpose::Session, APPLICATION).await.unwrap_err();
    let problem = classify(&error);
    assert_eq!(
        (problem.code.as_str(), problem.recovery),
        ("SOURCE_PROTOCOL", Recovery::Operator),
        "{problem}"
    );
    web.join().unwrap();
}

#[tokio::test]
async fn each_tls_mode_does_what_it_promises() {
    let mut server = Server::start().await;
    let with = |server: &Server, mode, ca: Option<&str>, host: &str| PostgresSource {
        tls_mode: mode,
        tls_ca: ca.map(str::to_owned),
        host: host.to_owned(),
        ..server.source()
    };
    // The server has no certificate yet.
    gets_in(&with(&server, TlsMode::Prefer, None, "127.0.0.1")).await;
    let (code, recovery, message) = is_refused(&with(&server, TlsMode::Require, None, "127.0.0.1")).await;
    assert_eq!((code.as_str(), recovery), ("SOURCE_TLS_FAILED", Recovery::Operator), "{message}");

    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let cluster = server.cluster();
    for (name, text) in [("server.crt", certificate), ("server.key", key)] {
        // PostgreSQL wants the key to be its own or root's, and closed to everybody else.
        let path = cluster.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        let owner = std::fs::metadata(&cluster).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    server.postgres.settings_mut().push(("ssl".to_owned(), "on".to_owned()));
    server.postgres.restart().await.unwrap();

    let other = Authority::new();
    let ours = Some(authority.certificate.as_str());
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (mode, ca, host, yes) in [
        (TlsMode::Disable, None, "127.0.0.1", "f"),
        (TlsMode::Prefer, None, "127.0.0.1", "t"),
        (TlsMode::Require, None, "127.0.0.1", "t"),
        (TlsMode::VerifyCa, ours, "127.0.0.1", "t"),
        (TlsMode::VerifyFull, ours, "localhost", "t"),
    ] {
        let source = with(&server, mode, ca, host);
        gets_in(&source).await;
        let mut wire = Wire::connect(&source, Purpose::Session, APPLICATION).await.unwrap();
        let rows = wire.simple_query(Step::Session, encrypted).await.unwrap();
        assert_eq!(rows[0][0].as_deref(), Some(yes), "{mode:?}");
        identify_system(&source, APPLICATION).await.unwrap();
    }
    for (mode, ca, host) in [
        // Another authority; the public ones; another name; nothing that could be read.
        (TlsMode::VerifyCa, Some(other.certificate.as_str()), "127.0.0.1"),
        (TlsMode::VerifyFull, None, "localhost"),
        (TlsMode::VerifyFull, ours, "127.0.0.1"),
        (TlsMode::VerifyFull, Some("no certificate"), "localhost"),
    ] {
        let (code, recovery, message) = is_refused(&with(&server, mode, ca, host)).await;
        assert_eq!(
            (code.as_str(), recovery),
            ("SOURCE_TLS_FAILED", Recovery::Operator),
            "{mode:?} {message}"
        );
    }
}

struct Authority {
    certificate: String,
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        Self { certificate: issuer.pem(), issuer }
    }

    /// Certificate and key of a server.
    fn issue(&self, host: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}
