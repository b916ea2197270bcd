//! The only unsafe code of this crate: the C interface of libchdb, and tying a child process to its parent.
//!
//! What is exported from here is safe: results free themselves, a stream borrows the connection it runs on, and
//! the library is never unloaded (unloading it at exit can crash), so function pointers stay valid for ever.
#![allow(unsafe_code, reason = "libchdb has a C interface, and prctl must be called between fork and exec")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};

use tokio::process::Command;

/// Lets a child get `signal` when the thread that starts it ends, however it ends.
///
/// Linux only; elsewhere a child outlives a parent that was killed until it notices by itself.
pub(crate) fn signal_on_parent_death(command: &mut Command, signal: nix::sys::signal::Signal) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: prctl and getppid are async-signal-safe, and nothing is allocated between fork and exec.
        unsafe {
            let parent = nix::unistd::getpid();
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(signal)?;
                // The parent may have died before the request was made; then nobody would send the signal.
                if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::Error::ESRCH.into()) }
            });
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (command, signal);
}

#[repr(C)]
struct RawConnection {
    internal: *mut c_void,
}
#[repr(C)]
struct RawResult {
    internal: *mut c_void,
}
#[repr(C)]
struct RawInsert {
    internal: *mut c_void,
}

/// `chdb_query_analysis_v1`.
#[repr(C)]
struct RawAnalysis {
    struct_size: u32,
    statement_count: u32,
    flags: u32,
    class: u32,
}

type ConnectionPtr = *mut RawConnection;
type ResultPtr = *mut RawResult;
type InsertPtr = *mut RawInsert;
type WithParams<T> = unsafe extern "C" fn(
    ConnectionPtr,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> T;
type Counter = unsafe extern "C" fn(ResultPtr) -> u64;

/// Declares the table of functions and how it is filled from the library.
macro_rules! api {
    ($($name:ident: $symbol:literal as $kind:ty;)*) => {
        struct Api { $($name: $kind,)* }

        impl Api {
            fn load(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: each signature is the one of chdb.h 26.7.3, the version that packages.rs names.
                unsafe { Ok(Self { $($name: *library.get::<$kind>($symbol)?,)* }) }
            }
        }
    };
}

api! {
    connect: b"chdb_connect\0" as unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut ConnectionPtr;
    close: b"chdb_close_conn\0" as unsafe extern "C" fn(*mut ConnectionPtr);
    query: b"chdb_query_with_params_n\0" as WithParams<ResultPtr>;
    stream: b"chdb_stream_query_with_params_n\0" as WithParams<ResultPtr>;
    fetch: b"chdb_stream_fetch_result\0" as unsafe extern "C" fn(ConnectionPtr, ResultPtr) -> ResultPtr;
    cancel: b"chdb_stream_cancel_query\0" as unsafe extern "C" fn(ConnectionPtr, ResultPtr);
    insert: b"chdb_stream_insert_with_params_n\0" as WithParams<InsertPtr>;
    append: b"chdb_stream_append\0" as unsafe extern "C" fn(InsertPtr, *const c_void, usize) -> c_int;
    done: b"chdb_stream_done\0" as unsafe extern "C" fn(InsertPtr) -> ResultPtr;
    insert_error: b"chdb_stream_insert_error\0" as unsafe extern "C" fn(InsertPtr) -> *const c_char;
    cancel_insert: b"chdb_stream_cancel_insert\0" as unsafe extern "C" fn(InsertPtr);
    destroy_insert: b"chdb_destroy_insert_stream\0" as unsafe extern "C" fn(InsertPtr);
    destroy: b"chdb_destroy_query_result\0" as unsafe extern "C" fn(ResultPtr);
    error: b"chdb_result_error\0" as unsafe extern "C" fn(ResultPtr) -> *const c_char;
    buffer: b"chdb_result_buffer\0" as unsafe extern "C" fn(ResultPtr) -> *mut c_char;
    length: b"chdb_result_length\0" as unsafe extern "C" fn(ResultPtr) -> usize;
    rows: b"chdb_result_rows_read\0" as Counter;
    bytes: b"chdb_result_bytes_read\0" as Counter;
    storage_rows: b"chdb_result_storage_rows_read\0" as Counter;
    storage_bytes: b"chdb_result_storage_bytes_read\0" as Counter;
    rows_written: b"chdb_result_rows_written\0" as Counter;
    bytes_written: b"chdb_result_bytes_written\0" as Counter;
    classify: b"chdb_classify_query_n\0" as unsafe extern "C" fn(
        ConnectionPtr, *const c_char, usize, *const c_char, usize, *mut RawAnalysis) -> c_int;
    handle_signals: b"chdb_set_signal_handlers_enabled\0" as unsafe extern "C" fn(c_int);
}

/// libchdb, loaded for the rest of the process.
#[derive(Clone, Copy)]
pub(crate) struct Library {
    api: &'static Api,
}

impl Library {
    /// Loads the library and keeps it from touching this process's signal handlers.
    pub(crate) fn load(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the file is ClickHouse's own library from a pinned package; its initialisers are meant to run.
        let library = unsafe { libloading::Library::new(path)? };
        let api: &'static Api = Box::leak(Box::new(Api::load(&library)?));
        std::mem::forget(library);
        // SAFETY: documented to be called before the first connection, with no other precondition.
        unsafe { (api.handle_signals)(0) };
        Ok(Self { api })
    }

    /// Opens a connection on a data folder; the first one starts the engine. `None` says that it was refused; the
    /// engine gives the reason on stderr only.
    pub(crate) fn connect(self, data: &str) -> Option<Connection> {
        let arguments = [CString::new("clickhouse").ok()?, CString::new(format!("--path={data}")).ok()?];
        let mut pointers = [arguments[0].as_ptr().cast_mut(), arguments[1].as_ptr().cast_mut()];
        // SAFETY: two valid strings that outlive the call, and their number.
        let slot = NonNull::new(unsafe { (self.api.connect)(2, pointers.as_mut_ptr()) })?;
        // SAFETY: a non-null answer points to the connection's own slot, valid until the connection is closed.
        let handle = unsafe { *slot.as_ptr() };
        (!handle.is_null()).then_some(Connection { api: self.api, slot, handle })
    }
}

/// One session of the engine, which runs one statement at a time. Closed when dropped.
pub(crate) struct Connection {
    api: &'static Api,
    slot: NonNull<ConnectionPtr>,
    handle: ConnectionPtr,
}

// SAFETY: the library guards every connection by a lock of its own and binds it to no thread.
unsafe impl Send for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the slot came from connect and is closed only here.
        unsafe { (self.api.close)(self.slot.as_ptr()) }
    }
}

/// Values for `{name:Type}` in a statement, in ClickHouse's escaped text form.
pub(crate) type Parameters = [(String, String)];

/// What the parser says about a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Analysis {
    /// How many statements; 0 when it does not parse.
    pub(crate) statements: u32,
    /// Whether nothing outlives it.
    pub(crate) read_only: bool,
}

impl Connection {
    /// Runs a statement and returns all that it gives.
    pub(crate) fn query(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &Parameters,
    ) -> Result<Output, String> {
        let result = with_parameters(self.api.query, self.handle, sql, format, parameters);
        Output::of(self.api, result)
    }

    /// Starts a SELECT whose result is fetched in pieces.
    pub(crate) fn stream(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &Parameters,
    ) -> Result<Rows<'_>, String> {
        let result = with_parameters(self.api.stream, self.handle, sql, format, parameters);
        let start = Output::of(self.api, result)?;
        Ok(Rows { connection: self, start })
    }

    /// Starts an INSERT whose data is appended in pieces. `sql` is without its FORMAT clause.
    pub(crate) fn insert(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &Parameters,
    ) -> Result<Insert<'_>, String> {
        let stream = with_parameters(self.api.insert, self.handle, sql, format, parameters);
        let insert = Insert { connection: self, stream };
        match insert.error() {
            Some(error) => Err(error),
            None => Ok(insert),
        }
    }

    /// Parses a text with this session's settings, without running it.
    pub(crate) fn classify(&mut self, sql: &[u8]) -> Analysis {
        let struct_size = u32::try_from(size_of::<RawAnalysis>()).unwrap_or(0);
        let mut analysis = RawAnalysis { struct_size, statement_count: 0, flags: 0, class: 4 };
        // SAFETY: the text and the struct are valid for the call, and the struct says its own size.
        unsafe {
            (self.api.classify)(self.handle, sql.as_ptr().cast(), sql.len(), null(), 0, &raw mut analysis);
        }
        Analysis { statements: analysis.statement_count, read_only: analysis.class == 0 }
    }
}

fn with_parameters<T>(
    function: WithParams<T>,
    connection: ConnectionPtr,
    sql: &[u8],
    format: &str,
    parameters: &Parameters,
) -> T {
    let pointers = |pick: fn(&(String, String)) -> &String| -> (Vec<*const c_char>, Vec<usize>) {
        parameters.iter().map(pick).map(|text| (text.as_ptr().cast::<c_char>(), text.len())).unzip()
    };
    let (names, name_lengths) = pointers(|(name, _)| name);
    let (values, value_lengths) = pointers(|(_, value)| value);
    // SAFETY: every pointer comes with its length and is valid for the call, after which the library keeps none.
    unsafe {
        function(
            connection,
            sql.as_ptr().cast(),
            sql.len(),
            format.as_ptr().cast(),
            format.len(),
            names.as_ptr(),
            name_lengths.as_ptr(),
            values.as_ptr(),
            value_lengths.as_ptr(),
            parameters.len(),
        )
    }
}

/// Copies a message of the library, if there is one.
fn message(text: *const c_char) -> Option<String> {
    // SAFETY: a non-null message is a C string that lives as long as its result, which the caller holds.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Bytes that a statement gave, and what it counted.
pub(crate) struct Output {
    api: &'static Api,
    result: ResultPtr,
}

// SAFETY: a result is plain memory of its own, without ties to a thread or to its connection.
unsafe impl Send for Output {}

impl Output {
    fn of(api: &'static Api, result: ResultPtr) -> Result<Self, String> {
        if result.is_null() {
            return Err("Code: 49. DB::Exception: the engine gave no result. (LOGICAL_ERROR)".into());
        }
        let output = Self { api, result };
        // SAFETY: the result is valid until the output is dropped.
        match message(unsafe { (api.error)(result) }) {
            Some(error) => Err(error),
            None => Ok(output),
        }
    }

    /// What was counted for this statement, or this piece of it.
    pub(crate) fn counts(&self) -> Counts {
        // SAFETY: the result is valid until the output is dropped.
        let read = |counter: Counter| unsafe { counter(self.result) };
        Counts {
            result_rows: read(self.api.rows),
            result_bytes: read(self.api.bytes),
            read_rows: read(self.api.storage_rows),
            read_bytes: read(self.api.storage_bytes),
            written_rows: read(self.api.rows_written),
            written_bytes: read(self.api.bytes_written),
        }
    }
}

impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: buffer and length describe memory of the result, which is valid as long as `self`.
        unsafe {
            let (buffer, length) = ((self.api.buffer)(self.result), (self.api.length)(self.result));
            if buffer.is_null() { &[] } else { std::slice::from_raw_parts(buffer.cast(), length) }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: the result came from the library and is freed only here.
        unsafe { (self.api.destroy)(self.result) }
    }
}

/// Rows and bytes of one statement.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) result_rows: u64,
    pub(crate) result_bytes: u64,
    pub(crate) read_rows: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_rows: u64,
    pub(crate) written_bytes: u64,
}

/// A running SELECT. Dropped before its end, it is cancelled.
pub(crate) struct Rows<'c> {
    connection: &'c mut Connection,
    start: Output,
}

impl Rows<'_> {
    /// The next piece, a document of its own in the statement's format; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Output>, String> {
        let Connection { api, handle, .. } = *self.connection;
        // SAFETY: the connection is borrowed, so the stream is the only thing that runs on it.
        let piece = Output::of(api, unsafe { (api.fetch)(handle, self.start.result) })?;
        Ok(if piece.as_ref().is_empty() { None } else { Some(piece) })
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        // SAFETY: as in `next`; cancelling a stream that has ended does nothing.
        unsafe { (self.connection.api.cancel)(self.connection.handle, self.start.result) }
    }
}

/// A running INSERT. Dropped before [`Insert::finish`], it is cancelled and commits nothing more.
pub(crate) struct Insert<'c> {
    connection: &'c mut Connection,
    stream: InsertPtr,
}

impl Insert<'_> {
    fn error(&self) -> Option<String> {
        // SAFETY: the stream is valid until it is dropped; the library accepts null.
        message(unsafe { (self.connection.api.insert_error)(self.stream) })
    }

    /// Hands over bytes; blocks while the engine is behind. `false` says that the insert has failed, and that
    /// [`Insert::finish`] knows why.
    pub(crate) fn append(&mut self, data: &[u8]) -> bool {
        // SAFETY: the bytes are copied by the library before it returns.
        let state = unsafe { (self.connection.api.append)(self.stream, data.as_ptr().cast(), data.len()) };
        state == 0
    }

    /// Ends the data and commits.
    pub(crate) fn finish(self) -> Result<Counts, String> {
        // SAFETY: the stream is valid until it is dropped.
        let result = unsafe { (self.connection.api.done)(self.stream) };
        Output::of(self.connection.api, result).map(|output| output.counts())
    }
}

impl Drop for Insert<'_> {
    fn drop(&mut self) {
        let stream = std::mem::replace(&mut self.stream, null_mut());
        if !stream.is_null() {
            // SAFETY: the stream is freed only here; cancelling does nothing after `finish`.
            unsafe {
                (self.connection.api.cancel_insert)(stream);
                (self.connection.api.destroy_insert)(stream);
            }
        }
    }
}

/// Ends the process at once, without the library's exit handlers, which can crash.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and runs no code of this process.
    unsafe { nix::libc::_exit(code) }
}
