//! The catalog in a PostgreSQL database, for several coordinators.
//!
//! Everything is in the schema `millrace` of the database that the URL names. A call takes a session to itself; sessions are kept between calls. Each has limits of its own on statements, on locks and,
//! above all, on transactions that wait for their client: a coordinator that is stopped in the middle of a commit must not hold up the one that takes over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_lifecycle::{EventRecord, PipeAggregate, PipeChanges};
use millrace_model::{Epoch, PipeId, Term};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls};

use crate::{Candidate, Catalog, CatalogError, Leader, Standing, Stored};

mod read;
mod schema;
mod session;
mod write;

use session::Session;

/// Sessions that are kept while nobody uses them.
const KEPT: usize = 4;

/// Time for a session to stand.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest time of a call. Loading a million partitions takes some seconds.
const CALL: Duration = Duration::from_secs(60);

/// Settings of every session. Commits are on disk when they are answered, whatever the server's default; a transaction whose client says nothing for five seconds is rolled back.
const SETTINGS: &str = "-c search_path=millrace -c synchronous_commit=on -c idle_in_transaction_session_timeout=5s \
                        -c lock_timeout=15s -c statement_timeout=50s -c client_min_messages=warning -c jit=off";

/// A catalog in a PostgreSQL database. Clones share sessions.
#[derive(Clone)]
pub struct PostgresCatalog {
    config: Arc<Config>,
    /// Where it is, for people.
    place: Arc<str>,
    idle: Arc<Mutex<Vec<Session>>>,
}

impl std::fmt::Debug for PostgresCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresCatalog").field("place", &self.place).finish_non_exhaustive()
    }
}

impl PostgresCatalog {
    /// The catalog at `postgresql://user:password@host:port/database`, brought to the present schema. (PostgreSQL manual: "Connection URIs".)
    ///
    /// # Errors
    /// The URL is none or asks for TLS, which is not spoken yet; nobody answers; the schema is of a newer release or of another program, or a migration fails.
    pub async fn open(url: &str) -> Result<Self, CatalogError> {
        let catalog = Self::at(url)?;
        let mut session = catalog.session().await?;
        schema::migrate(&mut session, &catalog.place).await?;
        catalog.give_back(session);
        Ok(catalog)
    }

    /// As [`PostgresCatalog::open`], but looks at nothing yet.
    fn at(url: &str) -> Result<Self, CatalogError> {
        let refused = |reason: String| CatalogError::Address { reason };
        // The parser's errors name keys and values of the URL's parameters, never the password.
        let mut config: Config =
            url.parse().map_err(|error: tokio_postgres::Error| refused(error.to_string()))?;
        match config.get_ssl_mode() {
            SslMode::Disable | SslMode::Prefer => {}
            _ => return Err(refused("it asks for TLS, which the catalog's connection does not speak yet; use sslmode=disable in a network that is trusted".to_owned())),
        }
        let place = place(&config).ok_or_else(|| refused("it names no host".to_owned()))?;
        let options = [config.get_options().unwrap_or_default(), SETTINGS].join(" ");
        config
            .ssl_mode(SslMode::Disable)
            .options(options.trim())
            .connect_timeout(CONNECT)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(30));
        if config.get_application_name().is_none() {
            config.application_name("millrace-coordinator");
        }
        Ok(Self { config: Arc::new(config), place: place.into(), idle: Arc::default() })
    }

    /// `postgresql://host:port/database` of a URL, without credentials; `None` where it is none.
    pub(crate) fn place_of(url: &str) -> Option<String> {
        place(&url.parse().ok()?)
    }

    async fn session(&self) -> Result<Session, CatalogError> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match kept {
                Some(session) if session.is_open() => return Ok(session),
                Some(_) => {}
                None => break,
            }
        }
        let failed = |source| CatalogError::Open { place: self.place.to_string(), source };
        let connecting = tokio::time::timeout(CONNECT, self.config.connect(NoTls)).await;
        let (client, connection) = connecting
            .map_err(|_| failed(format!("no answer within {} s", CONNECT.as_secs()).into()))?
            .map_err(|error| failed(session::cause(error)))?;
        Ok(Session::new(client, connection))
    }

    fn give_back(&self, session: Session) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(session);
        }
    }

    /// Runs a call on a session of its own. After a failure, or when the caller goes away in the middle, the session is closed: what it was doing is rolled back by the server.
    async fn call<T>(
        &self,
        what: &'static str,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let late =
            || CatalogError::Read { what, source: format!("no answer within {} s", CALL.as_secs()).into() };
        let call = async {
            let mut session = self.session().await?;
            let result = work(&mut session).await?;
            self.give_back(session);
            Ok(result)
        };
        tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| Err(late()))
    }
}

/// `postgresql://host:port/database`.
fn place(config: &Config) -> Option<String> {
    use tokio_postgres::config::Host;
    let host = match config.get_hosts().first()? {
        Host::Tcp(host) => host.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let database = config.get_dbname().or(config.get_user()).unwrap_or("postgres");
    Some(format!("postgresql://{host}:{port}/{database}"))
}

impl Catalog for PostgresCatalog {
    async fn campaign(&self, candidate: &Candidate, lease: Duration) -> Result<Standing, CatalogError> {
        self.call("who leads", async |session| {
            let milliseconds = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
            let given: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                [&candidate.id, &candidate.address, &milliseconds];
            // Waits for commits of the present leader that are under way.
            let sql = "UPDATE leadership SET term = CASE WHEN holder = $1 THEN term ELSE term + 1 END, holder = $1, address = $2, \
                       expires = clock_timestamp() + $3::bigint::float8 * interval '1 millisecond' \
                       WHERE holder = $1 OR expires <= clock_timestamp() RETURNING term";
            let granted = session.rows("a term", sql, &given).await.map_err(session::writing)?;
            if let Some(row) = granted.first() {
                return Ok(Standing::Leads(Term(read::unsigned(row, 0, "a term")?)));
            }
            let sql = "SELECT term, holder, address FROM leadership";
            let rows = session.rows("who leads", sql, &[]).await?;
            let row = rows.first().ok_or_else(|| read::absent("leadership"))?;
            Ok(Standing::Follows(Leader {
                term: Term(read::unsigned(row, 0, "a term")?),
                candidate: Candidate { id: read::get(row, 1)?, address: read::get(row, 2)? },
            }))
        })
        .await
    }

    async fn resign(&self, term: Term) -> Result<(), CatalogError> {
        self.call("a term", async |session| {
            let sql = "UPDATE leadership SET holder = '', expires = '-infinity' WHERE term = $1";
            session.rows("a term", sql, &[&write::signed(term.0)]).await.map_err(session::writing).map(drop)
        })
        .await
    }

    async fn outdo(&self, term: Term) -> Result<(), CatalogError> {
        self.call("a term", async |session| {
            let sql = "UPDATE leadership SET term = greatest(term, $1)";
            session.rows("a term", sql, &[&write::signed(term.0)]).await.map_err(session::writing).map(drop)
        })
        .await
    }

    async fn load(&self) -> Result<Stored, CatalogError> {
        self.call("pipes", async |session| read::everything(session).await).await
    }

    async fn load_pipe(&self, id: &PipeId) -> Result<Option<PipeAggregate>, CatalogError> {
        self.call("a pipe", async |session| read::one_pipe(session, id).await).await
    }

    async fn commit(
        &self,
        term: Term,
        batch: Vec<(PipeId, PipeChanges)>,
        last_epoch: Epoch,
    ) -> Result<(), CatalogError> {
        self.call("changes", async |session| write::commit(session, term, &batch, last_epoch).await).await
    }

    async fn events(
        &self,
        pipe: &PipeId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<EventRecord>, CatalogError> {
        self.call("events", async |session| read::events(session, pipe, after, limit).await).await
    }
}
