//! The one place that says what can be done about a failure at the destination.
//!
//! What passes by itself is tried again; everything that is not known to pass by itself waits for an operator.

use std::error::Error as StdError;
use std::io;

use millrace_model::Problem;

use crate::{Error, Failure};

/// Every code that this crate gives to a problem, with what it means.
pub const ERROR_CODES: &[(&str, &str)] = &[
    ("DESTINATION_ACCESS_DENIED", "The ClickHouse user lacks a right, or may not connect from this address."),
    (
        "DESTINATION_ADDRESS_INVALID",
        "The destination's url is not an http or https address, or its user or password cannot be sent.",
    ),
    ("DESTINATION_AUTHENTICATION_FAILED", "ClickHouse does not accept the user and password."),
    (
        "DESTINATION_BUSY",
        "ClickHouse lacks memory, threads, quota or query slots at the moment; tried again.",
    ),
    (
        "DESTINATION_CLUSTER_LAYOUT",
        "The cluster's shards and replicas are not what the pipe says it has; see destination.clickhouse.cluster.",
    ),
    (
        "DESTINATION_CLUSTER_UNEVEN",
        "The hosts of the cluster do not have the same table, for example because one is behind with statements; tried again.",
    ),
    ("DESTINATION_CLUSTER_UNKNOWN", "ClickHouse knows no cluster of that name."),
    (
        "DESTINATION_COLUMN_CLASH",
        "A source column has the name of a metadata column, or array columns share a name before a dot.",
    ),
    (
        "DESTINATION_DATABASE_ENGINE",
        "The database's engine cannot exchange tables; Atomic, Replicated or Shared is needed.",
    ),
    ("DESTINATION_DATABASE_MISSING", "The database does not exist (any more)."),
    ("DESTINATION_DISK_FULL", "ClickHouse has no room on its disk; tried again until there is."),
    ("DESTINATION_NAME_TOO_LONG", "The table's name is longer than ClickHouse can store."),
    (
        "DESTINATION_NOT_CLICKHOUSE",
        "Something answers at the destination's address, but it is not ClickHouse's HTTP interface.",
    ),
    ("DESTINATION_PROTOCOL", "A request could not be made, or ClickHouse's answer not be understood."),
    ("DESTINATION_READ_ONLY", "The user's settings profile forbids to write or to change settings."),
    (
        "DESTINATION_REFUSED",
        "ClickHouse refused a statement for a reason that is not known to pass by itself.",
    ),
    ("DESTINATION_SETTING_REFUSED", "ClickHouse does not know or not allow a setting that inserts need."),
    (
        "DESTINATION_SORTING_KEY_INVALID",
        "The sorting key is empty or names a column that the table does not have.",
    ),
    (
        "DESTINATION_TABLE_DIFFERS",
        "The destination table exists with other columns, another engine or another sorting key.",
    ),
    ("DESTINATION_TABLE_MISSING", "The destination table does not exist (any more)."),
    (
        "DESTINATION_TABLE_NOT_EMPTY",
        "The destination table exists and holds rows that the pipe did not write.",
    ),
    ("DESTINATION_TABLE_NOT_OURS", "A destination table that should be dropped was not made by the pipe."),
    ("DESTINATION_TIMEOUT", "ClickHouse did not answer in time; tried again."),
    ("DESTINATION_TLS_FAILED", "No trusted encrypted connection to ClickHouse could be made."),
    ("DESTINATION_TOO_MANY_PARTITIONS", "One insert touches more partitions than the server allows."),
    (
        "DESTINATION_TOO_MANY_PARTS",
        "ClickHouse has more parts than it can merge at the moment; inserts wait.",
    ),
    (
        "DESTINATION_UNAVAILABLE",
        "ClickHouse, a replica, its Keeper or a proxy before it is not ready; tried again.",
    ),
    ("DESTINATION_UNREACHABLE", "No connection to ClickHouse, or it broke; tried again."),
    ("DESTINATION_VERSION_TOO_OLD", "The ClickHouse server is older than 24.8."),
    ("DESTINATION_VIEW_FAILED", "A materialized view on the destination table fails the insert."),
    (
        "PARTITION_EXPRESSION_INVALID",
        "partitionByExpr cannot be used; in a ReplacingMergeTree it may only use columns of the sorting key.",
    ),
    (
        "SHARDING_EXPRESSION_INVALID",
        "shardingExpr cannot be used: it gives no integer, gives equal rows different shards, or uses columns beyond the sorting key; or a table without key has none.",
    ),
];

/// What a failure means and what can be done about it. Unknown failures are the operator's.
pub fn classify(error: &Error) -> Problem {
    let (failure, message) = match error {
        Error::Facts { source, .. }
        | Error::CreateDatabase { source, .. }
        | Error::DropDatabase { source, .. }
        | Error::Swap { source, .. }
        | Error::Describe { source, .. }
        | Error::Create { source, .. }
        | Error::Insert { source, .. }
        | Error::DeleteOlder { source, .. }
        | Error::Count { source, .. }
        | Error::LookUp { source, .. }
        | Error::Alter { source, .. }
        | Error::Drop { source, .. } => (source, format!("{error}: {}", explained(source))),
        Error::Address { .. } => {
            let remedy = "set destination.clickhouse.url to http://host:8123 or https://host:8443";
            return Problem::operator("DESTINATION_ADDRESS_INVALID", error.to_string(), remedy);
        }
        Error::Undeclarable { problem, .. } => return (**problem).clone(),
        Error::Differs { .. } => {
            let remedy = "choose another target name, or drop or rename the table";
            return Problem::operator("DESTINATION_TABLE_DIFFERS", error.to_string(), remedy);
        }
        Error::NotEmpty { .. } => {
            let remedy = "choose another target name, or empty, drop or rename the table";
            return Problem::operator("DESTINATION_TABLE_NOT_EMPTY", error.to_string(), remedy);
        }
        Error::Uneven { .. } => {
            let remedy = "if it persists, look at system.distributed_ddl_queue, and make the table on hosts that were added";
            return Problem::transient("DESTINATION_CLUSTER_UNEVEN", error.to_string(), remedy);
        }
        Error::NotOurs { .. } => {
            let remedy = "drop it by hand if it is not needed";
            return Problem::operator("DESTINATION_TABLE_NOT_OURS", error.to_string(), remedy);
        }
    };
    match failure {
        Failure::Refused { code, text } => refused(*code, text, message),
        Failure::Foreign { text } => foreign(text, message),
        Failure::TimedOut { .. } => Problem::transient(
            "DESTINATION_TIMEOUT",
            message,
            "if it persists, look at the server's load and at system.processes",
        ),
        Failure::Connection(source) => connection(source.as_ref(), message),
        Failure::Exchange(_) => Problem::operator("DESTINATION_PROTOCOL", message, ""),
    }
}

/// A failure in one sentence, with the root cause, which libraries bury under repetitions.
fn explained(failure: &Failure) -> String {
    let root = chain(failure).last().map(ToString::to_string);
    match (failure, root) {
        (Failure::Connection(_) | Failure::Exchange(_), Some(root)) => format!("{failure}: {root}"),
        _ => failure.to_string(),
    }
}

/// An exception by its code (`src/Common/ErrorCodes.cpp`; `SELECT errorCodeToName(n)`).
fn refused(code: u32, text: &str, message: String) -> Problem {
    if text.contains("No space left on device") {
        return disk_full(message);
    }
    match code {
        // TIMEOUT_EXCEEDED, TOO_SLOW, SOCKET_TIMEOUT
        159 | 160 | 209 => Problem::transient(
            "DESTINATION_TIMEOUT",
            message,
            "if it persists, look at the server's load and at the user's max_execution_time",
        ),
        // QUOTA_EXCEEDED, TOO_MANY_SIMULTANEOUS_QUERIES, NO_FREE_CONNECTION, QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
        // MEMORY_LIMIT_EXCEEDED, QUERY_WAS_CANCELLED, SYSTEM_ERROR, CANNOT_SCHEDULE_TASK, DEADLOCK_AVOIDED,
        // DISTRIBUTED_TOO_MANY_PENDING_BYTES, TOO_MANY_MUTATIONS, USER_SESSION_LIMIT_EXCEEDED,
        // QUERY_WAS_CANCELLED_BY_CLIENT, SERVER_OVERLOADED
        201 | 202 | 203 | 216 | 241 | 394 | 425 | 439 | 473 | 574 | 692 | 700 | 735 | 745 => {
            Problem::transient(
                "DESTINATION_BUSY",
                message,
                "if it persists, give the server or the user more room",
            )
        }
        // DNS_ERROR, NETWORK_ERROR, NO_ZOOKEEPER, NO_REPLICA_HAS_PART, ABORTED, TABLE_IS_READ_ONLY,
        // UNEXPECTED_ZOOKEEPER_ERROR, NO_ACTIVE_REPLICAS, ALL_CONNECTION_TRIES_FAILED, TOO_FEW_LIVE_REPLICAS,
        // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE, UNKNOWN_STATUS_OF_INSERT, UNFINISHED, PART_IS_TEMPORARILY_LOCKED,
        // EXTERNAL_SERVER_IS_NOT_RESPONDING, REPLICA_STATUS_CHANGED, S3_ERROR, CANNOT_ASSIGN_ALTER,
        // NO_REMOTE_SHARD_AVAILABLE, NOT_A_LEADER, DATABASE_REPLICATION_FAILED, KEEPER_EXCEPTION
        198 | 210 | 225 | 234 | 236 | 242 | 244 | 254 | 279 | 285 | 286 | 319 | 341 | 384 | 410 | 416
        | 499 | 517 | 519 | 529 | 571 | 999 => Problem::transient(
            "DESTINATION_UNAVAILABLE",
            message,
            "if it persists, look at the server's log, its replicas and its Keeper",
        ),
        243 => disk_full(message),
        // TOO_MANY_PARTS stands for a state that merges mend, and for an insert that never fits.
        252 if text.contains("single INSERT block") => Problem::operator(
            "DESTINATION_TOO_MANY_PARTITIONS",
            message,
            "use a coarser partition expression, or raise max_partitions_per_insert_block in the user's profile",
        ),
        252 => Problem::transient(
            "DESTINATION_TOO_MANY_PARTS",
            message,
            "if it persists, raise syncInterval for fewer, larger inserts",
        ),
        _ if text.contains("while pushing to view") => Problem::operator(
            "DESTINATION_VIEW_FAILED",
            message,
            "mend or drop the materialized view; rows reached the table before it failed",
        ),
        // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, AUTHENTICATION_FAILED
        192 | 193 | 194 | 516 => Problem::operator(
            "DESTINATION_AUTHENTICATION_FAILED",
            message,
            "check destination.clickhouse.username and password",
        ),
        // IP_ADDRESS_NOT_ALLOWED, DATABASE_ACCESS_DENIED, ACCESS_DENIED
        195 | 291 | 497 => Problem::operator(
            "DESTINATION_ACCESS_DENIED",
            message,
            "grant the right that ClickHouse names to the destination's user",
        ),
        164 => Problem::operator(
            "DESTINATION_READ_ONLY",
            message,
            "give the destination's user a profile without readonly",
        ),
        // UNKNOWN_SETTING, SETTING_CONSTRAINT_VIOLATION
        115 | 452 => Problem::operator(
            "DESTINATION_SETTING_REFUSED",
            message,
            "allow the setting in the constraints of the user's profile",
        ),
        81 => {
            Problem::operator("DESTINATION_DATABASE_MISSING", message, "restore the database, or copy anew")
        }
        // UNKNOWN_TABLE, TABLE_IS_DROPPED
        60 | 218 => {
            Problem::operator("DESTINATION_TABLE_MISSING", message, "restore the table, or copy it anew")
        }
        // NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER, TYPE_MISMATCH, CANNOT_CONVERT_TYPE, INCORRECT_DATA (a column
        // that the table lacks, said of a Native block)
        16 | 47 | 53 | 70 | 117 => Problem::operator(
            "DESTINATION_TABLE_DIFFERS",
            message,
            "give the table the columns and types that the pipe made, or copy it anew",
        ),
        _ => Problem::operator("DESTINATION_REFUSED", message, ""),
    }
}

fn disk_full(message: String) -> Problem {
    Problem::transient("DESTINATION_DISK_FULL", message, "free or add disk space at the server")
}

/// An answer that is not ClickHouse's. The status is lost, but every common proxy repeats it in the text.
fn foreign(text: &str, message: String) -> Problem {
    let passing = [
        "502",
        "503",
        "504",
        "429",
        "Bad Gateway",
        "Service Unavailable",
        "Gateway Time",
        "upstream connect error",
    ];
    if passing.iter().any(|word| text.contains(word)) {
        return Problem::transient(
            "DESTINATION_UNAVAILABLE",
            message,
            "if it persists, look at the proxy in front of ClickHouse",
        );
    }
    Problem::operator(
        "DESTINATION_NOT_CLICKHOUSE",
        message,
        "set destination.clickhouse.url to ClickHouse's HTTP interface, http://host:8123 or https://host:8443",
    )
}

/// A connection that could not be made or broke.
fn connection(source: &(dyn StdError + 'static), message: String) -> Problem {
    if chain(source).any(|cause| cause.is::<rustls::Error>()) {
        return Problem::operator(
            "DESTINATION_TLS_FAILED",
            message,
            "check that the url has the https port and that its certificate is valid for the host",
        );
    }
    // An address that speaks something else than HTTP.
    if chain(source).any(|cause| cause.to_string().contains("invalid HTTP")) {
        return foreign("", message);
    }
    Problem::transient(
        "DESTINATION_UNREACHABLE",
        message,
        "check destination.clickhouse.url, and that the server runs and can be reached from the workers",
    )
}

/// An error and everything below it; `io::Error` hides what it wraps from `source`.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let error: &'a (dyn StdError + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use millrace_model::Recovery;

    use super::*;
    use crate::TableRef;

    fn insert(source: Failure) -> Error {
        Error::Insert { table: TableRef::new("shop", "orders"), source }
    }

    fn answered(text: &str) -> Problem {
        classify(&insert(clickhouse::error::Error::BadResponse(text.to_owned()).into()))
    }

    /// As servers of several releases wrote them.
    #[test]
    fn what_servers_answer_is_told_apart() {
        let cases = [
            "Code: 252. DB::Exception: Too many parts (3000 with average size of 18.41 KiB) in table 'shop.orders (6a2f1c3e-0000-4000-8000-000000000000)'. Merges are processing significantly slower than inserts. (TOO_MANY_PARTS) (version 24.8.4.13 (official build))",
            "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 100). The limit is controlled by 'max_partitions_per_insert_block' setting. Large number of partitions is a common misconception. (TOO_MANY_PARTS) (version 24.8.4.13 (official build))",
            "Code: 252. DB::Exception: Too many parts (100001) in all partitions in total in table 'shop.orders'. This indicates wrong choice of partition key. (TOO_MANY_PARTS) (version 24.8.4.13 (official build))",
            "Code: 241. DB::Exception: Memory limit (total) exceeded: would use 7.21 GiB (attempt to allocate chunk of 4360040 bytes), maximum: 7.20 GiB. (MEMORY_LIMIT_EXCEEDED) (version 24.8.4.13 (official build))",
            "Code: 202. DB::Exception: Too many simultaneous queries. Maximum: 100. (TOO_MANY_SIMULTANEOUS_QUERIES) (version 23.8.8.20 (official build))",
            "Code: 242. DB::Exception: Table is in readonly mode (replica path: /clickhouse/tables/1/orders/replicas/a). (TABLE_IS_READ_ONLY) (version 24.8.4.13 (official build))",
            "Code: 319. DB::Exception: Unknown status, client must retry. Reason: Session expired. (UNKNOWN_STATUS_OF_INSERT) (version 24.8.4.13 (official build))",
            "Code: 999. Coordination::Exception: Session expired. (KEEPER_EXCEPTION) (version 24.8.4.13 (official build))",
            "Code: 159. DB::Exception: Timeout exceeded: elapsed 1.2 seconds, maximum: 0.1. (TIMEOUT_EXCEEDED) (version 24.10.1.2812 (official build))",
            "Code: 210. DB::NetException: I/O error: Broken pipe, while writing to socket (127.0.0.1:9000 -> 127.0.0.1:54646). (NETWORK_ERROR) (version 23.8.8.20 (official build))",
            "Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE) (version 24.8.4.13 (official build))",
            "Code: 75. DB::ErrnoException: Cannot write to file /var/lib/clickhouse/store/a: , errno: 28, strerror: No space left on device. (CANNOT_WRITE_TO_FILE_DESCRIPTOR) (version 24.8.4.13 (official build))",
            "Code: 216. DB::Exception: Query with id = abc is already running. (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING) (version 24.8.4.13 (official build))",
            "Code: 516. DB::Exception: default: Authentication failed: password is incorrect, or there is no user with such name. (AUTHENTICATION_FAILED) (version 24.8.4.13 (official build))",
            "Code: 497. DB::Exception: me: Not enough privileges. To execute this query, it's necessary to have the grant INSERT(id) ON shop.orders. (ACCESS_DENIED) (version 24.8.4.13 (official build))",
            "Code: 164. DB::Exception: Cannot modify 'async_insert' setting in readonly mode. (READONLY) (version 24.8.4.13 (official build))",
            "Code: 115. DB::Exception: Unknown setting 'insert_deduplication_token'. (UNKNOWN_SETTING) (version 22.1.1.1 (official build))",
            "Code: 81. DB::Exception: Database shop does not exist. (UNKNOWN_DATABASE) (version 24.8.4.13 (official build))",
            "Code: 60. DB::Exception: Table shop.orders does not exist. (UNKNOWN_TABLE) (version 24.8.4.13 (official build))",
            "Code: 117. DB::Exception: Unknown column found in input data: extra. (INCORRECT_DATA) (version 24.8.4.13 (official build))",
            "Code: 53. DB::Exception: Type mismatch for column a. Column has type Int32, got type Int64. (TYPE_MISMATCH) (version 24.8.4.13 (official build))",
            "Code: 395. DB::Exception: Value passed to 'throwIf' function is non-zero: while executing 'FUNCTION throwIf(x)': while pushing to view shop.mv (6a2f1c3e-0000-4000-8000-000000000000). (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO) (version 24.8.4.13 (official build))",
            "Code: 241. DB::Exception: Memory limit (for query) exceeded: while pushing to view shop.mv. (MEMORY_LIMIT_EXCEEDED) (version 24.8.4.13 (official build))",
            "Code: 999999. DB::Exception: Something new. (NEW) (version 30.1.1.1)",
            "Code: 241",
            "<html><head><title>502 Bad Gateway</title></head></html>",
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            "503 Service Unavailable",
            "<html><head><title>404 Not Found</title></head></html>",
            "Port 9000 is for clickhouse-client program",
        ];
        let lines = cases.map(|text| {
            let problem = answered(text);
            let end = text.char_indices().nth(60).map_or(text.len(), |(at, _)| at);
            format!("{:<32} {:?}  {}", problem.code, problem.recovery, &text[..end])
        });
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_problem_says_what_failed_and_why() {
        let problem = answered(
            "Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE) (version 24.8.4.13)",
        );
        assert_eq!(
            problem.message,
            "cannot insert into table `shop`.`orders`: ClickHouse answered with code 60: Table a.b does not exist. (UNKNOWN_TABLE)"
        );
    }

    #[test]
    fn broken_connections_and_silence_pass_by_themselves() {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "tcp connect error");
        let problem = classify(&insert(Failure::Connection(Box::new(refused))));
        assert_eq!((problem.code.as_str(), problem.recovery), ("DESTINATION_UNREACHABLE", Recovery::Retry));
        let problem = classify(&insert(Failure::TimedOut { after: Duration::from_secs(3) }));
        assert_eq!((problem.code.as_str(), problem.recovery), ("DESTINATION_TIMEOUT", Recovery::Retry));
        assert!(problem.message.ends_with("no answer within 3s"), "{}", problem.message);
    }

    #[test]
    fn an_untrusted_certificate_is_the_operators() {
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, untrusted);
        let problem = classify(&insert(Failure::Connection(Box::new(io::Error::other(wrapped)))));
        assert_eq!((problem.code.as_str(), problem.recovery), ("DESTINATION_TLS_FAILED", Recovery::Operator));
    }

    #[test]
    fn every_code_is_listed_and_every_listed_code_is_used() {
        let sources = [
            include_str!("classification.rs"),
            include_str!("cluster.rs"),
            include_str!("inspection.rs"),
            include_str!("table.rs"),
            include_str!("validation.rs"),
        ];
        let used = sources.iter().flat_map(|source| source.split('"')).filter(|text| {
            (text.strip_prefix("DESTINATION_").is_some_and(|rest| !rest.is_empty())
                || text.strip_suffix("_EXPRESSION_INVALID").is_some_and(|rest| !rest.is_empty()))
                && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        });
        let counted = used.fold(std::collections::BTreeMap::<&str, usize>::new(), |mut counts, code| {
            *counts.entry(code).or_default() += 1;
            counts
        });
        let listed = ERROR_CODES.iter().map(|(code, _)| *code).collect::<BTreeSet<_>>();
        assert_eq!(counted.keys().copied().collect::<BTreeSet<_>>(), listed);
        let unused = counted.iter().filter(|(_, count)| **count < 2).collect::<Vec<_>>();
        assert!(unused.is_empty(), "{unused:?}");
        assert!(ERROR_CODES.is_sorted());
    }
}
