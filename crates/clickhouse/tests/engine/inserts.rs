//! Blocks on their way into tables, and what readers then see.

use millrace_clickhouse::{Compression, ConnectionOptions, TargetTable, classify};
use millrace_mapping::{BlockBuilder, Cell, MappingOptions, plan_columns};
use millrace_model::{
    Lsn, PgType, Recovery, ReplicaIdentity, SourceColumn, TableDefinition, TableName, Timestamp,
};

use crate::support::{Engine, block, column, notes, owner};

/// A source column of each type that has a ClickHouse type of its own, with two values in PostgreSQL's text form and
/// what ClickHouse then writes. A third row is NULL in all of them.
const TYPES: &[(&str, PgType, [&str; 2], [&str; 2])] = &[
    ("bool", PgType::Bool, ["t", "f"], ["true", "false"]),
    ("int2", PgType::Int2, ["-32768", "32767"], ["-32768", "32767"]),
    ("int4", PgType::Int4, ["-2147483648", "2147483647"], ["-2147483648", "2147483647"]),
    (
        "int8",
        PgType::Int8,
        ["-9223372036854775808", "9223372036854775807"],
        ["-9223372036854775808", "9223372036854775807"],
    ),
    ("oid", PgType::Oid, ["0", "4294967295"], ["0", "4294967295"]),
    ("float4", PgType::Float4, ["-1.5", "NaN"], ["-1.5", "nan"]),
    ("float8", PgType::Float8, ["1e+300", "-Infinity"], ["1e300", "-inf"]),
    ("decimal32", PgType::Numeric(Some((9, 2))), ["-1234567.89", "0"], ["-1234567.89", "0"]),
    (
        "decimal64",
        PgType::Numeric(Some((18, 4))),
        ["12345678901234.5678", "-0.0001"],
        ["12345678901234.5678", "-0.0001"],
    ),
    (
        "decimal128",
        PgType::Numeric(Some((38, 10))),
        ["1234567890123456789012345678.0123456789", "-1"],
        ["1234567890123456789012345678.0123456789", "-1"],
    ),
    (
        "decimal256",
        PgType::Numeric(Some((76, 20))),
        ["-12345678901234567890123456789012345678901234567890123456.00000000000000000001", "1"],
        ["-12345678901234567890123456789012345678901234567890123456.00000000000000000001", "1"],
    ),
    ("numeric", PgType::Numeric(None), ["1e400", "NaN"], ["1e400", "NaN"]),
    ("text", PgType::Text, ["it's\ta \\ 'quote' ünï 🐘", ""], ["it\\'s\\ta \\\\ \\'quote\\' ünï 🐘", ""]),
    (
        "uuid",
        PgType::Uuid,
        ["00112233-4455-6677-8899-aabbccddeeff", "ffffffff-ffff-ffff-ffff-fffffffffff0"],
        ["00112233-4455-6677-8899-aabbccddeeff", "ffffffff-ffff-ffff-ffff-fffffffffff0"],
    ),
    ("date", PgType::Date, ["1969-12-31", "2299-12-31"], ["1969-12-31", "2299-12-31"]),
    (
        "timestamp",
        PgType::Timestamp,
        ["2024-03-31 02:30:00.123456", "1969-12-31 23:59:59.999999"],
        ["2024-03-31 02:30:00.123456", "1969-12-31 23:59:59.999999"],
    ),
    (
        "timestamptz",
        PgType::TimestampTz,
        ["2024-03-31 01:30:00.000001+00", "2299-12-31 23:59:59.999999+00"],
        ["2024-03-31 01:30:00.000001", "2299-12-31 23:59:59.999999"],
    ),
    ("time", PgType::Time, ["23:59:59.999999", "00:00:00"], ["23:59:59.999999", "00:00:00.000000"]),
    ("enum", PgType::Enum, ["happy", "it's"], ["happy", "it\\'s"]),
    ("bytea", PgType::Bytea, ["\\x00ff5c0a41", "\\x"], ["\\0\u{fffd}\\\\\\nA", ""]),
];

fn everything() -> (TableDefinition, Vec<[Option<String>; 3]>) {
    let mut columns = vec![("id".to_owned(), PgType::Int4, false)];
    let mut values = vec![["1", "2", "3"].map(|value| Some(value.to_owned()))];
    for (name, pg_type, texts, _) in TYPES {
        for nullable in [false, true] {
            let prefix = if nullable { "n_" } else { "" };
            columns.push((format!("{prefix}{name}"), pg_type.clone(), nullable));
            let third = if nullable { None } else { Some(texts[0].to_owned()) };
            values.push([Some(texts[0].to_owned()), Some(texts[1].to_owned()), third]);
        }
    }
    columns.push(("array".to_owned(), PgType::Array(Box::new(PgType::Int4)), false));
    values.push(["{1,NULL,-3}", "{}", "{2}"].map(|value| Some(value.to_owned())));
    columns.push(("enums".to_owned(), PgType::Array(Box::new(PgType::Enum)), false));
    values.push(["{a,NULL,b,a}", "{}", "{b}"].map(|value| Some(value.to_owned())));
    columns.push(("pairs".to_owned(), PgType::Hstore, true));
    values.push([Some(r#""a"=>"1", "b"=>NULL"#.to_owned()), Some(String::new()), None]);
    columns.push(("vector".to_owned(), PgType::Vector, true));
    values.push([Some("[1.5,-2]".to_owned()), Some("[0]".to_owned()), None]);
    columns.push(("maps".to_owned(), PgType::Array(Box::new(PgType::Hstore)), false));
    values.push(
        [r#"{"\"a\"=>\"1\"",NULL,"\"b\"=>NULL"}"#, "{}", r#"{""}"#].map(|value| Some(value.to_owned())),
    );
    columns.push(("vectors".to_owned(), PgType::Array(Box::new(PgType::HalfVec)), false));
    values.push([r#"{"[1.5,2]",NULL,[3]}"#, "{}", "{[4]}"].map(|value| Some(value.to_owned())));
    let definition = TableDefinition {
        name: TableName::new("public", "everything"),
        oid: 1,
        file_node: 1,
        columns: columns
            .into_iter()
            .zip(1..)
            .map(|((name, pg_type, nullable), attribute)| SourceColumn {
                name,
                attribute,
                type_oid: 0,
                type_modifier: -1,
                type_name: String::new(),
                pg_type,
                nullable,
                generated: false,
            })
            .collect(),
        key: vec!["id".to_owned()],
        replica_identity: ReplicaIdentity::Default,
        pages: 0,
        estimated_rows: 0,
        bytes: 0,
        retired: Vec::new(),
        partitions: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    };
    (definition, values)
}

#[tokio::test]
async fn every_type_reads_back_as_it_was_written() {
    let engine = Engine::start().await;
    let destination = engine.destination("types");
    let (definition, values) = everything();
    let options = MappingOptions { allow_nullable_columns: true, time64: true };
    let target = TargetTable {
        columns: plan_columns(&definition, &options),
        ..notes(destination.table("everything"))
    };
    destination.ensure_table(&target, &owner()).await.unwrap();
    let mut builder = BlockBuilder::new(&target.columns, &target.metadata);
    for row in 0..3 {
        for (index, column) in values.iter().enumerate() {
            let cell = column[row].as_deref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes()));
            builder.append_cell(index, cell).unwrap();
        }
        builder.end_row(0, false).unwrap();
    }
    destination.insert(&target.table, &builder.finish(Timestamp(1_700_000_000_123_456)), "t").await.unwrap();

    for (name, _, _, [first, second]) in TYPES {
        for (column, third) in [((*name).to_owned(), *first), (format!("n_{name}"), "\\N")] {
            let sql = format!("SELECT toString(`{column}`) FROM types.everything ORDER BY id");
            let expected = format!("{first}\n{second}\n{third}");
            assert_eq!(engine.read(&sql).await, expected.trim_end_matches('\n'), "{column}");
        }
    }
    let arrays = "SELECT array, enums FROM types.everything ORDER BY id";
    assert_eq!(engine.read(arrays).await, "[1,NULL,-3]\t['a',NULL,'b','a']\n[]\t[]\n[2]\t['b']");
    let maps = "SELECT pairs, vector, maps, vectors FROM types.everything ORDER BY id";
    let expected = [
        "{'a':'1','b':NULL}\t[1.5,-2]\t[{'a':'1'},{},{'b':NULL}]\t[[1.5,2],[],[3]]",
        "{}\t[0]\t[]\t[]",
        "{}\t[]\t[{}]\t[[4]]",
    ];
    assert_eq!(engine.read(maps).await, expected.join("\n"));
    let synced = "SELECT DISTINCT toTimeZone(_millrace_synced_at, 'UTC') FROM types.everything";
    assert_eq!(engine.read(synced).await, "2023-11-14 22:13:20.123456000");
}

#[tokio::test]
async fn a_repeated_insert_with_the_same_token_changes_nothing() {
    let engine = Engine::start().await;
    let destination = engine.destination("tokens");
    let target = notes(destination.table("notes"));
    destination.ensure_table(&target, &owner()).await.unwrap();
    let rows = block(&target, &[(&[Some("1"), Some("a")], 1, false)]);

    for token in ["first", "first", "it's ?", "it's ?", "first"] {
        destination.insert(&target.table, &rows, token).await.unwrap();
    }
    assert_eq!(engine.read("SELECT count() FROM tokens.notes").await, "2");
}

#[tokio::test]
async fn a_reader_sees_the_newest_version_and_no_deleted_rows() {
    let engine = Engine::start().await;
    let destination = engine.destination("versions");
    let target = notes(destination.table("notes"));
    destination.ensure_table(&target, &owner()).await.unwrap();
    let changes = block(
        &target,
        &[
            (&[Some("1"), Some("changed")], 20, false),
            (&[Some("2"), None], 21, true),
            (&[Some("3"), Some("deleted")], 22, true),
            (&[Some("3"), Some("back")], 23, false),
        ],
    );
    let copied = block(
        &target,
        &[
            (&[Some("1"), Some("old")], 0, false),
            (&[Some("2"), Some("old")], 0, false),
            (&[Some("4"), Some("copied")], 0, false),
        ],
    );
    // The copy comes late, and the changes are replayed after it.
    for (rows, token) in [(&changes, "a"), (&copied, "b"), (&changes, "c")] {
        destination.insert(&target.table, rows, token).await.unwrap();
    }
    let seen = "SELECT id, note FROM versions.notes FINAL ORDER BY id";
    assert_eq!(engine.read(seen).await, "1\tchanged\n3\tback\n4\tcopied");
    assert_eq!(destination.count(&target.table).await.unwrap(), 3);
}

#[tokio::test]
async fn a_truncation_removes_what_came_before_it_and_nothing_else() {
    let engine = Engine::start().await;
    let destination = engine.destination("truncation");
    let target = notes(destination.table("notes"));
    destination.ensure_table(&target, &owner()).await.unwrap();
    let before = block(
        &target,
        &[(&[Some("1"), None], 0, false), (&[Some("2"), None], 99, false), (&[Some("3"), None], 50, true)],
    );
    let after = block(&target, &[(&[Some("2"), Some("new")], 101, false)]);
    destination.insert(&target.table, &before, "before").await.unwrap();
    destination.insert(&target.table, &after, "after").await.unwrap();

    for _ in 0..2 {
        destination.delete_older_versions(&target.table, "_millrace_version", Lsn(100)).await.unwrap();
        assert_eq!(
            engine.read("SELECT id, note, _millrace_version FROM truncation.notes").await,
            "2\tnew\t101"
        );
    }
}

#[tokio::test]
async fn a_block_that_does_not_fit_is_refused_whole() {
    let engine = Engine::start().await;
    let destination = engine.destination("misfits");
    let target = notes(destination.table("notes"));
    destination.ensure_table(&target, &owner()).await.unwrap();
    let with = |name: &str, source: PgType, target_type: &str| TargetTable {
        columns: vec![column("id", PgType::Int8, "Int64"), column(name, source, target_type)],
        ..target.clone()
    };
    engine.run("ALTER TABLE misfits.notes ADD COLUMN small Int32, ADD COLUMN price Decimal(9, 2), ADD COLUMN day DateTime64(6, 'UTC')").await;

    let misfits = [
        (with("small", PgType::Int8, "Int64"), "5000000000"),
        (with("small", PgType::Int4, "Nullable(Int32)"), "1"),
        (with("price", PgType::Numeric(Some((9, 4))), "Decimal(9, 4)"), "1.2399"),
        (with("day", PgType::Text, "String"), "2024-01-01"),
        (with("note", PgType::Text, "String"), "not nullable"),
        (with("no such column", PgType::Text, "String"), "x"),
    ];
    for (number, (misfit, value)) in misfits.iter().enumerate() {
        let rows = block(misfit, &[(&[Some("1"), Some(value)], 0, false)]);
        let error = destination.insert(&target.table, &rows, &number.to_string()).await.unwrap_err();
        let problem = classify(&error);
        assert_eq!(
            (problem.code.as_str(), problem.recovery),
            ("DESTINATION_TABLE_DIFFERS", Recovery::Operator),
            "{problem}"
        );
    }
    assert_eq!(engine.read("SELECT count() FROM misfits.notes").await, "0");
}

#[tokio::test]
async fn a_table_that_went_away_is_the_operators() {
    let engine = Engine::start().await;
    let destination = engine.destination("gone");
    let target = notes(destination.table("notes"));
    let rows = block(&target, &[(&[Some("1"), None], 0, false)]);
    engine.run("CREATE DATABASE gone").await;
    let problem = classify(&destination.insert(&target.table, &rows, "t").await.unwrap_err());
    assert_eq!((problem.code.as_str(), problem.recovery), ("DESTINATION_TABLE_MISSING", Recovery::Operator));
}

#[tokio::test]
async fn a_failing_view_is_told_from_a_failing_table() {
    let engine = Engine::start().await;
    let destination = engine.destination("views");
    let target = notes(destination.table("notes"));
    destination.ensure_table(&target, &owner()).await.unwrap();
    engine
        .run("CREATE MATERIALIZED VIEW views.failing ENGINE = Log AS SELECT throwIf(id = 13) AS x FROM views.notes")
        .await;
    let rows = block(&target, &[(&[Some("13"), None], 0, false)]);
    let problem = classify(&destination.insert(&target.table, &rows, "t").await.unwrap_err());
    assert_eq!(problem.code, "DESTINATION_VIEW_FAILED", "{problem}");
}

/// Rows of about 100 bytes.
fn many(target: &TargetTable, rows: u32) -> millrace_mapping::EncodedBlock {
    let mut builder = BlockBuilder::new(&target.columns, &target.metadata);
    for id in 0..rows {
        builder.append_cell(0, Cell::Binary(&i64::from(id).to_be_bytes())).unwrap();
        let note = format!("note number {id} {}", "x".repeat(60));
        builder.append_cell(1, Cell::Text(note.as_bytes())).unwrap();
        builder.end_row(0, false).unwrap();
    }
    builder.finish(Timestamp(0))
}

#[tokio::test]
async fn a_large_block_becomes_one_part_compressed_or_not() {
    let engine = Engine::start().await;
    let wire = ConnectionOptions { compression: Compression::Lz4, ..ConnectionOptions::default() };
    for (name, destination) in
        [("plain", engine.destination("large")), ("lz4", engine.destination_with("large", wire))]
    {
        let target = notes(destination.table(name));
        destination.ensure_table(&target, &owner()).await.unwrap();
        let rows = many(&target, 100_000);
        assert!(rows.pieces.len() > 1);
        destination.insert(&target.table, &rows, "t").await.unwrap();
        let parts = format!(
            "SELECT count(), sum(rows) FROM system.parts WHERE database = 'large' AND table = '{name}'"
        );
        assert_eq!(engine.read(&parts).await, "1\t100000");
        assert_eq!(
            engine.read(&format!("SELECT sum(id), uniqExact(note) FROM large.{name}")).await,
            "4999950000\t100000"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_killed_takes_the_same_blocks_again_when_it_is_back() {
    let mut engine = Engine::start().await;
    let destination = engine.destination("default");
    let target = notes(destination.table("notes"));
    destination.ensure_table(&target, &owner()).await.unwrap();
    let blocks = || (0_u32..).map(|number| (format!("block {number}"), numbered(&target, number)));

    let (first_done, first_is_done) = tokio::sync::oneshot::channel();
    let until_it_fails = async {
        let mut first_done = Some(first_done);
        for (acknowledged, (token, rows)) in (0..).zip(blocks()) {
            if let Err(error) = destination.insert(&target.table, &rows, &token).await {
                return (acknowledged, error);
            }
            first_done.take().map(|done| done.send(()));
        }
        unreachable!("the numbers do not end")
    };
    let kill = async {
        first_is_done.await.unwrap();
        engine.kill().await;
    };
    let ((acknowledged, error), ()) = tokio::join!(until_it_fails, kill);
    let problem = classify(&error);
    assert_eq!(problem.recovery, Recovery::Retry, "{problem}");

    engine.restart().await;
    for (token, rows) in blocks().take(acknowledged + 1) {
        destination.insert(&target.table, &rows, &token).await.unwrap();
    }
    let expected = (acknowledged as u64 + 1) * u64::from(ROWS);
    assert_eq!(destination.count(&target.table).await.unwrap(), expected);
}

/// Rows of one block of [`numbered`].
const ROWS: u32 = 10_000;

/// The block of that number; no two hold the same row.
fn numbered(target: &TargetTable, number: u32) -> millrace_mapping::EncodedBlock {
    let mut builder = BlockBuilder::new(&target.columns, &target.metadata);
    for row in 0..ROWS {
        builder.append_cell(0, Cell::Binary(&i64::from(number * ROWS + row).to_be_bytes())).unwrap();
        builder.append_cell(1, Cell::Null).unwrap();
        builder.end_row(0, false).unwrap();
    }
    builder.finish(Timestamp(0))
}
