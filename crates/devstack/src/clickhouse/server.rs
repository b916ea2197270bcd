//! The HTTP side: connections, the head of an answer, and the way down.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::response::Builder;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use rand::distr::Alphabetic;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::PASSWORD_VARIABLE;
use super::compression::Encoding;
use super::engine::Engine;
use super::exception::Exception;
use super::execution::{BodyPiece, RequestBody, execute};
use super::reply::{Head, Reply, ReplyBody};
use super::request::Parameters;
use crate::command::end_asked_for;
use crate::foreign::exit_now;
use crate::guard::Event;
use crate::{Error, Result, cache, packages};

/// The engine's file in its package; loaders do not ask for another ending on macOS.
const LIBRARY: &str = "libchdb.so";
/// How many queries run at once; more wait. Each has a thread.
const CONCURRENT: usize = 100;
/// How long a client may be silent within a request: a server's default for `http_receive_timeout`.
const RECEIVE: Duration = Duration::from_secs(30);
/// How long a stop waits for queries that run.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a stop waits for the engine to close its tables.
const CLOSING: Duration = Duration::from_secs(15);

type ResponseBody = UnsyncBoxBody<Bytes, io::Error>;

/// Arguments of the guard that is a ClickHouse.
#[derive(Debug, clap::Args)]
pub struct ServeArguments {
    /// Where data is.
    #[arg(long)]
    data_dir: PathBuf,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

/// Runs a ClickHouse until stdin ends; then ends the process.
pub(crate) fn serve(arguments: &ServeArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Queries, and beside them stdin, locks and cancellations.
        .max_blocking_threads(CONCURRENT + 32)
        .enable_all()
        .build()
        .map_err(|source| Error::Spawn { program: "tokio".into(), source })?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let started = start(arguments);
        let server = tokio::select! {
            // Nothing to save while the engine only starts.
            () = end_asked_for() => exit_now(0),
            server = started => server?,
        };
        let (server, listener) = server;
        let watch = stop.clone();
        let (served, ()) = tokio::join!(server.run(listener, stop), async move {
            end_asked_for().await;
            watch.cancel();
        });
        Ok(served)
    });
    // The thread that reads stdin may never end.
    runtime.shutdown_background();
    result
}

async fn start(arguments: &ServeArguments) -> Result<(Server, TcpListener)> {
    let failed = |source| Error::Listen { address: arguments.listen.to_string(), source };
    let listener = TcpListener::bind(arguments.listen).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let announce = |package: &_| Event::Fetching { package: format!("{package}") }.say();
    let library = cache::fetch(packages::clickhouse()?, announce).await?.join(LIBRARY);
    let data = std::path::absolute(arguments.data_dir.join("data"));
    let data = data.map_err(|source| Error::Folder { path: arguments.data_dir.clone(), source })?;
    let started = tokio::task::spawn_blocking(move || Engine::start(&library, &data)).await;
    let crashed = |error: tokio::task::JoinError| Error::Engine {
        path: arguments.data_dir.clone(),
        reason: error.to_string(),
    };
    let engine = started.map_err(crashed)??;
    let password = std::env::var(PASSWORD_VARIABLE).unwrap_or_default();
    let server = Server(Arc::new(Shared {
        engine,
        password,
        slots: Arc::new(Semaphore::new(CONCURRENT)),
        tasks: TaskTracker::new(),
    }));
    Event::Ready { pid: std::process::id().cast_signed(), port }.say();
    Ok((server, listener))
}

struct Shared {
    engine: Engine,
    password: String,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Server(Arc<Shared>);

impl Server {
    /// Serves until told to stop, then lets running queries end for a while.
    async fn run(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let connection = self.clone().connection(stream, stop.clone());
                        self.0.tasks.spawn(connection);
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely; it passes when connections close.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(listener);
        self.0.tasks.close();
        if tokio::time::timeout(PATIENCE, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("queries still run after {PATIENCE:?}; they are lost");
            return;
        }
        if let Some(shared) = Arc::into_inner(self.0) {
            // Closing the last connection shuts the engine down.
            let closing = tokio::task::spawn_blocking(move || drop(shared));
            if tokio::time::timeout(CLOSING, closing).await.is_err() {
                tracing::warn!("the engine did not close within {CLOSING:?}");
            }
        }
    }

    async fn connection(self, stream: TcpStream, stop: CancellationToken) {
        // Answers are small and awaited.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        match (parts.uri.path(), &parts.method) {
            ("/ping" | "/replicas_status", &Method::GET | &Method::HEAD) => plain(StatusCode::OK, "Ok.\n"),
            ("/", &Method::GET) if parts.uri.query().is_none() => plain(StatusCode::OK, "Ok.\n"),
            ("/", &Method::GET | &Method::POST) => match self.prepare(&parts) {
                Ok(parameters) => self.run_query(parameters, body).await,
                Err(exception) => self.refuse(&exception, ""),
            },
            ("/", method) => self.refuse(&Exception::not_implemented(&format!("the method {method}")), ""),
            (path, _) => plain(StatusCode::NOT_FOUND, &format!("There is no handle {path}\n")),
        }
    }

    fn prepare(&self, parts: &http::request::Parts) -> Result<Parameters, Exception> {
        let parameters = Parameters::read(parts)?;
        parameters.authenticate(&self.0.password)?;
        Ok(parameters)
    }

    async fn run_query(self, parameters: Parameters, incoming: Incoming) -> Response<ResponseBody> {
        let Ok(slot) = Arc::clone(&self.0.slots).acquire_owned().await else {
            return self.refuse(&Exception::new(210, "NETWORK_ERROR", "the server is shutting down"), "");
        };
        let (query_id, encoding) = (parameters.query_id.clone(), parameters.encoding());
        let tag: String =
            rand::rng().sample_iter(Alphabetic).take(16).map(|b| b.to_ascii_lowercase() as char).collect();
        let (reply, answer) =
            Reply::new(encoding, parameters.wait_end, tag.clone(), self.0.engine.version.clone());
        let (pieces, receiver) = mpsc::channel(2);
        let body = RequestBody::new(receiver, parameters.decompress);
        let watch = Watch {
            server: self.clone(),
            query_id: query_id.clone(),
            reads_only: Arc::default(),
            over: false,
        };
        let (server, reads_only) = (self.clone(), Arc::clone(&watch.reads_only));
        // The thread ends by itself: when the client goes, both of its channels close.
        self.0.tasks.spawn_blocking(move || {
            execute(&server.0.engine, parameters, body, reply, &reads_only);
            drop(slot);
        });
        // The body is read to its end even if the query has failed: an answer that overtakes the request can be lost
        // when the connection is closed with bytes unread.
        let (head, ()) = tokio::join!(answer.head, forward(incoming, pieces));
        match head {
            Ok(Ok(head)) => {
                self.respond(&head, &query_id, encoding, &tag, WatchedBody { body: answer.body, watch })
            }
            Ok(Err(exception)) => {
                watch.disarm();
                self.refuse(&exception, &query_id)
            }
            Err(_) => {
                watch.disarm();
                let crashed =
                    Exception::new(49, "LOGICAL_ERROR", "the query's thread ended without an answer");
                self.refuse(&crashed, &query_id)
            }
        }
    }

    fn respond(
        &self,
        head: &Head,
        query_id: &str,
        encoding: Encoding,
        tag: &str,
        body: WatchedBody,
    ) -> Response<ResponseBody> {
        let mut response = self
            .headers(StatusCode::OK, query_id)
            .header(CONTENT_TYPE, content_type(&head.format))
            .header("X-ClickHouse-Format", &head.format)
            .header("X-ClickHouse-Timezone", &self.0.engine.timezone)
            .header("X-ClickHouse-Exception-Tag", tag)
            .header("X-ClickHouse-Summary", summary(head));
        if encoding == Encoding::Frame {
            response = response.header(CONTENT_ENCODING, "lz4");
        }
        finish(response, body.boxed_unsync())
    }

    fn refuse(&self, exception: &Exception, query_id: &str) -> Response<ResponseBody> {
        let response = self
            .headers(exception.status(), query_id)
            .header(CONTENT_TYPE, "text/plain; charset=UTF-8")
            .header("X-ClickHouse-Exception-Code", exception.code);
        finish(response, text(format!("{}\n", exception.line(&self.0.engine.version))))
    }

    fn headers(&self, status: StatusCode, query_id: &str) -> Builder {
        let response =
            Response::builder().status(status).header("X-ClickHouse-Server-Display-Name", "devstack");
        if query_id.is_empty() { response } else { response.header("X-ClickHouse-Query-Id", query_id) }
    }
}

/// Hands the body on, piece by piece, and says whether it came to its end; what nobody takes is read and dropped.
async fn forward(mut incoming: Incoming, pieces: mpsc::Sender<BodyPiece>) {
    loop {
        let frame = match tokio::time::timeout(RECEIVE, incoming.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(_))) | Err(_) => return,
        };
        if let Ok(data) = frame.into_data() {
            // Refused when the query has failed already.
            let _ = pieces.send(BodyPiece::Data(data)).await;
        }
    }
    let _ = pieces.send(BodyPiece::End).await;
}

/// Ends a query that only reads when its client goes away before the end of the answer.
struct Watch {
    server: Server,
    query_id: String,
    reads_only: Arc<AtomicBool>,
    over: bool,
}

impl Watch {
    fn disarm(mut self) {
        self.over = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.over && self.reads_only.load(Ordering::Acquire) {
            let (server, query_id) = (self.server.clone(), std::mem::take(&mut self.query_id));
            self.server.0.tasks.spawn_blocking(move || server.0.engine.cancel(&query_id));
        }
    }
}

/// A response's body that ends its query when it is dropped unread.
struct WatchedBody {
    body: ReplyBody,
    watch: Watch,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = self.body.poll_piece(cx);
        self.watch.over = self.body.ended();
        polled
    }
}

fn summary(head: &Head) -> String {
    let counts = &head.counts;
    serde_json::json!({
        "read_rows": counts.read_rows.to_string(),
        "read_bytes": counts.read_bytes.to_string(),
        "written_rows": counts.written_rows.to_string(),
        "written_bytes": counts.written_bytes.to_string(),
        "total_rows_to_read": "0",
        "result_rows": counts.result_rows.to_string(),
        "result_bytes": counts.result_bytes.to_string(),
    })
    .to_string()
}

fn content_type(format: &str) -> &'static str {
    let format = format.to_ascii_lowercase();
    if format.starts_with("json") && format.ends_with("eachrow") {
        "application/x-ndjson; charset=UTF-8"
    } else if format.starts_with("json") {
        "application/json; charset=UTF-8"
    } else if format.starts_with("csv") {
        "text/csv; charset=UTF-8; header=absent"
    } else if format.starts_with("tabseparated") || format.starts_with("tsv") {
        "text/tab-separated-values; charset=UTF-8"
    } else if format.starts_with("rowbinary") || format == "native" {
        "application/octet-stream"
    } else {
        "text/plain; charset=UTF-8"
    }
}

fn plain(status: StatusCode, message: &str) -> Response<ResponseBody> {
    finish(
        Response::builder().status(status).header(CONTENT_TYPE, "text/plain; charset=UTF-8"),
        text(message.into()),
    )
}

fn text(text: String) -> ResponseBody {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

/// Completes a response; a header that cannot be sent, such as a query id with a line break, makes it a plain error.
fn finish(response: Builder, body: ResponseBody) -> Response<ResponseBody> {
    response.body(body).unwrap_or_else(|error| {
        let mut response = Response::new(text(format!("{error}\n")));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    })
}
