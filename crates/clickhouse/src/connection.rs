//! Exchanges with the server: one HTTP request each, bounded in time, over pooled connections.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clickhouse::query::BytesCursor;
use clickhouse::{Client, RowOwned, RowRead};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use millrace_model::spec::ClickHouseDestination;
use url::{Host, Url};

use crate::{Error, Failure};

/// Idle connections are closed before servers and most proxies do, which would cost a retry.
const POOL_IDLE: Duration = Duration::from_secs(2);

/// How soon a peer that vanished without a word is noticed on an open connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// What the server has not acknowledged for so long is given up by the kernel, with the connection, even while this process is stopped. So an insert that lay in a cut network
/// does not arrive once others had the time to take the work over (a lease lasts 10 s): it could bring back rows from before a TRUNCATE that they have carried.
/// Linux alone has it (tcp(7), `TCP_USER_TIMEOUT`).
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(6);

/// A piece of this size is compressed at a time, so that no call keeps a thread for long.
const COMPRESSION_PIECE: usize = 1 << 20;

/// Most bytes of a statement that the server parses; the default would not take a table of 1,600 columns.
const MAX_STATEMENT_BYTES: &str = "16777216";

/// How the server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// Longest time to make a connection.
    pub connect_timeout: Duration,
    /// Longest time of a statement that touches no rows.
    pub statement_timeout: Duration,
    /// Longest time to send an insert, and again to wait for its answer.
    pub insert_timeout: Duration,
    /// Longest time of a statement that rewrites or reads a whole table.
    pub table_timeout: Duration,
    /// Whether blocks are compressed on their way.
    pub compression: Compression,
}

/// Whether blocks are compressed on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Where the server is not on this machine.
    Auto,
    /// Never: cheapest where the network is no limit.
    Never,
    /// LZ4, always.
    Lz4,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(60),
            insert_timeout: Duration::from_secs(300),
            table_timeout: Duration::from_secs(3_600),
            compression: Compression::Auto,
        }
    }
}

/// Statements and inserts of one user at one server. Clones share connections.
#[derive(Clone)]
pub(crate) struct Connection {
    /// For statements and reads.
    client: Client,
    /// The same with what every insert sets.
    inserting: Client,
    compresses: bool,
    pub(crate) options: ConnectionOptions,
    /// For people: without credentials and parameters.
    pub(crate) url: String,
}

impl Connection {
    /// Checks the address; connects to nobody yet.
    pub(crate) fn new(
        destination: &ClickHouseDestination,
        options: ConnectionOptions,
    ) -> Result<Self, Error> {
        let url = server_url(&destination.url)?;
        let compresses = match options.compression {
            Compression::Auto => !is_loopback(&url),
            Compression::Never => false,
            Compression::Lz4 => true,
        };
        let address_error = |reason: String| Error::Address { url: url.to_string(), reason };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(options.connect_timeout));
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        tcp.set_keepalive_interval(Some(TCP_KEEPALIVE));
        tcp.set_keepalive_retries(Some(3));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| address_error(error.to_string()))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector);
        let client = Client::with_http_client(http)
            .with_url(url.as_str())
            .with_user(&destination.username)
            .with_password(destination.password.expose())
            .with_product_info("millrace", env!("CARGO_PKG_VERSION"))
            .with_compression(clickhouse::Compression::None)
            // The server then answers when all is done, so that an error is the answer and not a part of one.
            .with_setting("wait_end_of_query", "1")
            .with_setting("max_query_size", MAX_STATEMENT_BYTES);
        let inserting = client
            .clone()
            .with_compression(if compresses {
                clickhouse::Compression::Lz4
            } else {
                clickhouse::Compression::None
            })
            // The answer then says that the rows are in the table; the default since 26.2 is another.
            .with_setting("async_insert", "0")
            .with_setting("insert_deduplicate", "1")
            // By default these three turn values into others without a word.
            .with_setting("input_format_native_allow_types_conversion", "0")
            .with_setting("input_format_null_as_default", "0")
            .with_setting("input_format_skip_unknown_fields", "0");
        Ok(Self { client, inserting, compresses, options, url: url.to_string() })
    }

    /// Runs a statement that returns no rows.
    pub(crate) async fn execute(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<(), Failure> {
        // `query` would take a question mark in a name for a placeholder.
        let mut query = self.client.query_raw(sql);
        for (name, value) in settings {
            query = query.with_setting(*name, *value);
        }
        within(timeout, query.execute()).await
    }

    /// Runs a statement and reads all its rows.
    pub(crate) async fn rows<T>(&self, sql: &str, timeout: Duration) -> Result<Vec<T>, Failure>
    where
        T: RowOwned + RowRead,
    {
        within(timeout, self.client.query_raw(sql).fetch_all::<T>()).await
    }

    /// Runs a statement and gives its answer in the format, whole.
    pub(crate) async fn bytes(&self, sql: &str, format: &str, timeout: Duration) -> Result<Bytes, Failure> {
        let exchange = async { self.client.query_raw(sql).fetch_bytes(format)?.collect().await };
        within(timeout, exchange).await
    }

    /// Runs a statement and gives its answer in the format, piece by piece.
    pub(crate) fn stream(&self, sql: &str, format: &str) -> Result<BytesCursor, Failure> {
        self.client.query_raw(sql).fetch_bytes(format).map_err(Failure::from)
    }

    /// As [`Connection::bytes`], but gives up an answer that grows beyond a limit: `None`.
    pub(crate) async fn bytes_within(
        &self,
        sql: &str,
        format: &str,
        timeout: Duration,
        limit: usize,
    ) -> Result<Option<Bytes>, Failure> {
        let exchange = async {
            let mut cursor = self.client.query_raw(sql).fetch_bytes(format)?;
            let mut answer = BytesMut::new();
            while let Some(piece) = cursor.next().await? {
                if answer.len() + piece.len() > limit {
                    return Ok(None);
                }
                answer.extend_from_slice(&piece);
            }
            Ok(Some(answer.freeze()))
        };
        within(timeout, exchange).await
    }

    /// Sends one insert whole and waits for its answer. Dropped before everything is sent, nothing is applied.
    pub(crate) async fn insert(
        &self,
        sql: String,
        settings: &[(&str, &str)],
        pieces: &[Bytes],
    ) -> Result<(), Failure> {
        let timeout = self.options.insert_timeout;
        let mut insert = self.inserting.insert_formatted_with(sql).with_timeouts(None, Some(timeout));
        for (name, value) in settings {
            insert = insert.with_setting(*name, *value);
        }
        let send = async {
            for piece in pieces {
                if self.compresses {
                    for start in (0..piece.len()).step_by(COMPRESSION_PIECE) {
                        let end = piece.len().min(start + COMPRESSION_PIECE);
                        insert.send(piece.slice(start..end)).await?;
                        tokio::task::yield_now().await;
                    }
                } else {
                    insert.send(piece.clone()).await?;
                }
            }
            Ok(())
        };
        within(timeout, send).await?;
        // The timeout lives in `end`, which then stops the exchange; one around it would leave it running unowned.
        match insert.end().await {
            Err(clickhouse::error::Error::TimedOut) => Err(Failure::TimedOut { after: timeout }),
            result => result.map_err(Failure::from),
        }
    }
}

async fn within<T>(
    timeout: Duration,
    exchange: impl Future<Output = clickhouse::error::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(timeout, exchange).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::TimedOut { after: timeout }),
    }
}

/// The address as given, if it is one of an HTTP server; credentials and parameters have fields of their own.
fn server_url(text: &str) -> Result<Url, Error> {
    let refused =
        |shown: &str, reason: &str| Error::Address { url: shown.to_owned(), reason: reason.to_owned() };
    // What cannot be parsed cannot be cleaned of a password, so it is not repeated.
    let url = Url::parse(text).map_err(|error| refused("(the url)", &error.to_string()))?;
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    // Both fail only where there is no host, hence no credentials.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused(shown.as_str(), "its scheme is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused(shown.as_str(), "user and password have fields of their own"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused(shown.as_str(), "it has parameters"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_http_servers_are_taken() {
        for url in ["http://localhost:8123", "https://ch.example:8443/", "http://[::1]:8123/behind/proxy"] {
            assert!(server_url(url).is_ok(), "{url}");
        }
        for url in ["", "localhost:8123", "clickhouse://h:9000", "http://h/?database=x", "http://", "h"] {
            assert!(matches!(server_url(url), Err(Error::Address { .. })), "{url}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        for url in [
            "http://me:hunter2@h:8123",
            "ftp://me:hunter2@h",
            "http://h/?password=hunter2",
            "http://me:hunter2@",
        ] {
            let error = server_url(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn blocks_are_compressed_on_their_way_to_other_machines_only() {
        let loopback = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(
            loopback("http://localhost:8123") && loopback("http://127.0.0.9") && loopback("http://[::1]:1")
        );
        assert!(!loopback("http://192.168.0.1:8123") && !loopback("http://localhost.example"));
    }
}
