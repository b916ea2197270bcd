//! Tables to copy: their columns, and rows that are the same in every run.

use clap::ValueEnum;

/// What a row is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shape {
    /// 4 columns of fixed length.
    Narrow,
    /// 7 columns, about 120 bytes.
    Typical,
    /// 30 columns with text and jsonb, about 600 bytes.
    Wide,
    /// A text of 1 to 20 MB, and a bytea of a quarter of that.
    Huge,
}

impl Shape {
    /// Its name in tables and files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Shape::Narrow => "narrow",
            Shape::Typical => "typical",
            Shape::Wide => "wide",
            Shape::Huge => "huge",
        }
    }

    /// The columns, as CREATE TABLE has them. The first is `id`, the key.
    pub(super) fn columns(self) -> String {
        match self {
            Shape::Narrow => {
                "id bigint PRIMARY KEY, n int NOT NULL, at timestamptz NOT NULL, ratio float8 NOT NULL".to_owned()
            }
            Shape::Typical => "id bigint PRIMARY KEY, n int NOT NULL, at timestamptz NOT NULL, name text NOT NULL, \
                               amount numeric(12,2) NOT NULL, detail jsonb NOT NULL, flag bool NOT NULL"
                .to_owned(),
            Shape::Wide => {
                let declared = WIDE.iter().map(|(name, declared, _)| format!("{name} {declared}"));
                format!("id bigint PRIMARY KEY, {}", declared.collect::<Vec<_>>().join(", "))
            }
            // Not compressed by PostgreSQL: what is measured is the carrying of long values.
            Shape::Huge => "id bigint PRIMARY KEY, body text STORAGE EXTERNAL NOT NULL, raw bytea STORAGE EXTERNAL NOT NULL"
                .to_owned(),
        }
    }

    /// A query of the rows whose ids are `first` to `last`. Both may be expressions.
    pub(super) fn rows(self, first: &str, last: &str) -> String {
        let values = match self {
            Shape::Narrow => {
                "n, n % 1000, timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second', n / 7.0::float8"
                    .to_owned()
            }
            Shape::Typical => typical_values("n % 1000"),
            Shape::Wide => {
                let values = WIDE.iter().map(|(_, _, value)| *value);
                format!("n, {}", values.collect::<Vec<_>>().join(", "))
            }
            Shape::Huge => {
                // Mostly 1 to 4 MB, one in twenty of 20 MB; a line of 32 characters is repeated.
                let size = "(CASE WHEN n % 20 = 0 THEN 20 ELSE 1 + n % 4 END)";
                format!(
                    "n, repeat(md5(n::text), ({size} * 32768)::int), decode(repeat(md5((-n)::text), ({size} * 16384)::int), 'hex')"
                )
            }
        };
        format!("SELECT {values} FROM generate_series({first}::bigint, {last}::bigint) n")
    }
}

/// Values of the typical table for the id `n`, with an expression for its column `n`.
pub(super) fn typical_values(column_n: &str) -> String {
    format!(
        "n, {column_n}, timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second', 'name of the row ' || n, \
         n % 99991 * 1.01, jsonb_build_object('k', n, 'v', 'value'), n % 2 = 0"
    )
}

/// The wide table's columns after `id`: name, declaration, and value for the id `n`.
const WIDE: [(&str, &str, &str); 29] = [
    ("customer_id", "bigint NOT NULL", "n % 100003"),
    ("account_id", "bigint NOT NULL", "n % 50021"),
    ("parent_id", "bigint", "nullif(n % 7, 0)"),
    ("sequence", "int NOT NULL", "n % 1000"),
    ("quantity", "int NOT NULL", "n % 17"),
    ("status", "smallint NOT NULL", "n % 5"),
    ("priority", "smallint NOT NULL", "n % 3"),
    ("latitude", "float8", "n % 180 - 90.5"),
    ("longitude", "float8", "n % 360 - 180.5"),
    ("score", "float4", "n % 100 / 3.0"),
    ("price", "numeric(12,2) NOT NULL", "n % 99991 * 1.01"),
    ("discount", "numeric(6,4) NOT NULL", "n % 100 * 0.0101"),
    ("tax", "numeric(12,2) NOT NULL", "n % 9973 * 0.19"),
    ("total", "numeric(16,4) NOT NULL", "n % 999983 * 1.0001"),
    ("created_at", "timestamptz NOT NULL", "timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second'"),
    ("updated_at", "timestamptz NOT NULL", "timestamptz '2024-06-01 00:00:00+00' + n * interval '2 seconds'"),
    ("local_time", "timestamp", "timestamp '2024-01-01' + n * interval '1 minute'"),
    ("due_on", "date", "date '2024-01-01' + (n % 1000)::int"),
    ("token", "uuid NOT NULL", "md5(n::text)::uuid"),
    ("active", "bool NOT NULL", "n % 2 = 0"),
    ("archived", "bool NOT NULL", "n % 11 = 0"),
    ("name", "text NOT NULL", "'name of the row ' || n"),
    ("email", "text NOT NULL", "'person-' || n || '@example.org'"),
    ("country", "text NOT NULL", "(array['DE', 'FR', 'NL', 'PT', 'SE'])[1 + n % 5]"),
    ("address", "text NOT NULL", "n || ' Long Street, 12345 Some City'"),
    ("note", "text", "CASE WHEN n % 3 = 0 THEN repeat('a remark. ', (n % 20)::int) END"),
    ("description", "text NOT NULL", "md5(n::text) || ' ' || md5((n + 1)::text)"),
    (
        "detail",
        "jsonb NOT NULL",
        "jsonb_build_object('k', n, 'v', 'value', 'list', jsonb_build_array(n, n + 1))",
    ),
    (
        "attributes",
        "jsonb",
        "CASE WHEN n % 4 > 0 THEN jsonb_build_object('colour', 'blue', 'size', n % 50) END",
    ),
];
