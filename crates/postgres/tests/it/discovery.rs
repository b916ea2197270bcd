//! What tables look like.

use millrace_model::{PgType, ReplicaIdentity};
use millrace_postgres::discovery::{self, Kind};
use millrace_postgres::{Session, offered_tables};

use crate::support::{APPLICATION, Server, name};

#[tokio::test]
async fn every_kind_of_column_is_described() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TYPE pair AS (a int, b int);
             CREATE DOMAIN money_amount AS numeric(12, 2) NOT NULL; CREATE DOMAIN deeper AS money_amount CHECK (VALUE > 0);
             CREATE DOMAIN moods AS mood[]; CREATE DOMAIN spot AS point;
             CREATE TABLE every (
               c_bool bool, c_int2 smallint, c_int4 int NOT NULL, c_int8 bigint, c_oid oid, c_float4 real, c_float8 float8,
               c_numeric numeric, c_numeric_p numeric(10), c_numeric_ps numeric(38, 9), c_numeric_neg numeric(5, -3),
               c_text text, c_varchar varchar(10), c_char char(3), c_name name, c_char1 \"char\", c_xml xml,
               c_json json, c_jsonb jsonb, c_bytea bytea, c_uuid uuid, c_date date, c_ts timestamp(3), c_tstz timestamptz,
               c_time time, c_timetz timetz, c_interval interval, c_inet inet, c_point point, c_bit bit(3),
               c_enum mood, c_domain money_amount, c_deeper deeper, c_moods moods, c_spot spot, c_pair pair,
               c_ints int[], c_numerics numeric(7, 3)[], c_enums mood[], c_domains money_amount[], c_inets inet[][],
               c_vector int2vector, c_ranges int4range, dropped int,
               c_generated int GENERATED ALWAYS AS (c_int4 * 2) STORED, \"Odd \"\"column\" int DEFAULT 5);
             ALTER TABLE every DROP COLUMN dropped",
        )
        .await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let found = discovery::find(&session, &[name("public.every")]).await.unwrap().remove(0);
    let array = |element| PgType::Array(Box::new(element));
    let other = |name: &str| PgType::Other(name.to_owned());
    let numeric = |precision, scale| PgType::Numeric(Some((precision, scale)));
    let expected = [
        ("c_bool", PgType::Bool),
        ("c_int2", PgType::Int2),
        ("c_int4", PgType::Int4),
        ("c_int8", PgType::Int8),
        ("c_oid", PgType::Oid),
        ("c_float4", PgType::Float4),
        ("c_float8", PgType::Float8),
        ("c_numeric", PgType::Numeric(None)),
        ("c_numeric_p", numeric(10, 0)),
        ("c_numeric_ps", numeric(38, 9)),
        ("c_numeric_neg", numeric(5, -3)),
        ("c_text", PgType::Text),
        ("c_varchar", PgType::Text),
        ("c_char", PgType::Text),
        ("c_name", PgType::Text),
        ("c_char1", PgType::Text),
        ("c_xml", PgType::Text),
        ("c_json", PgType::Json),
        ("c_jsonb", PgType::Jsonb),
        ("c_bytea", PgType::Bytea),
        ("c_uuid", PgType::Uuid),
        ("c_date", PgType::Date),
        ("c_ts", PgType::Timestamp),
        ("c_tstz", PgType::TimestampTz),
        ("c_time", PgType::Time),
        ("c_timetz", other("time with time zone")),
        ("c_interval", other("interval")),
        ("c_inet", other("inet")),
        ("c_point", other("point")),
        ("c_bit", other("bit(3)")),
        ("c_enum", PgType::Enum),
        ("c_domain", numeric(12, 2)),
        ("c_deeper", numeric(12, 2)),
        ("c_moods", array(PgType::Enum)),
        ("c_spot", other("point")),
        ("c_pair", other("pair")),
        ("c_ints", array(PgType::Int4)),
        ("c_numerics", array(numeric(7, 3))),
        ("c_enums", array(PgType::Enum)),
        ("c_domains", array(numeric(12, 2))),
        ("c_inets", array(other("inet"))),
        ("c_vector", other("int2vector")),
        ("c_ranges", other("int4range")),
        ("c_generated", PgType::Int4),
        ("Odd \"column", PgType::Int4),
    ];
    let columns = &found.definition.columns;
    for (column, (name, pg_type)) in columns.iter().zip(&expected) {
        assert_eq!((column.name.as_str(), &column.pg_type), (*name, pg_type));
        assert_eq!(column.nullable, column.name != "c_int4", "{name}");
        assert_eq!(column.generated, column.name == "c_generated", "{name}");
    }
    assert_eq!(columns.len(), expected.len());
    let column = |name: &str| columns.iter().find(|column| column.name == name).unwrap();
    assert_eq!(column("c_deeper").type_name, "deeper");
    assert_eq!(column("c_varchar").type_name, "character varying(10)");
    assert_eq!(column("c_numeric_ps").type_modifier, ((38 << 16) | 9) + 4);
    // The dropped column keeps its number.
    assert_eq!(column("c_generated").attribute - column("c_ranges").attribute, 2);
    assert!(found.definition.key.is_empty());
    assert!(!found.hides_rows && found.owned && found.schema_usable && !found.unlogged);
    assert!(found.unreadable.is_empty());
}

#[tokio::test]
async fn types_of_extensions_are_told_from_others_of_their_names() {
    let server = Server::start().await;
    server
        .run(
            "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE SCHEMA own;
             CREATE TYPE own.hstore AS (a int); CREATE TYPE own.citext AS (a int); CREATE TYPE own.vector AS (a int);
             CREATE DOMAIN own.tags AS hstore; CREATE DOMAIN own.row_of AS int[];
             CREATE TABLE t (a hstore, b citext, c ltree, d hstore[], e own.tags, f own.hstore, g own.citext, h own.vector,
               i own.row_of, j own.row_of[])",
        )
        .await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let found = discovery::find(&session, &[name("public.t")]).await.unwrap().remove(0);
    let types: Vec<PgType> = found.definition.columns.into_iter().map(|column| column.pg_type).collect();
    let array = |element| PgType::Array(Box::new(element));
    let other = |name: &str| PgType::Other(name.to_owned());
    let expected = [
        PgType::Hstore,
        PgType::Text,
        other("ltree"),
        array(PgType::Hstore),
        PgType::Hstore,
        other("own.hstore"),
        other("own.citext"),
        other("own.vector"),
        array(PgType::Int4),
        other("own.row_of[]"),
    ];
    assert_eq!(types, expected);
}

#[tokio::test]
async fn a_domain_that_forbids_null_does_not_keep_null_out() {
    let server = Server::start().await;
    server
        .run(
            "CREATE DOMAIN always AS int NOT NULL; CREATE TABLE t (a always, b always NOT NULL);
             INSERT INTO t VALUES ((SELECT 1::always WHERE false), 1)",
        )
        .await;
    assert_eq!(server.value("SELECT count(*) FROM t WHERE a IS NULL").await, "1");
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let found = discovery::find(&session, &[name("public.t")]).await.unwrap().remove(0);
    let nullable: Vec<bool> = found.definition.columns.iter().map(|column| column.nullable).collect();
    assert_eq!(nullable, [true, false]);
}

#[tokio::test]
async fn keys_and_identities_are_those_that_the_stream_will_use() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE plain (b int, a int, c int, PRIMARY KEY (c, b) INCLUDE (a));
             CREATE TABLE chosen (id int PRIMARY KEY, x int NOT NULL, y int NOT NULL);
             CREATE UNIQUE INDEX by_y_x ON chosen (y, x); ALTER TABLE chosen REPLICA IDENTITY USING INDEX by_y_x;
             CREATE TABLE whole (id int PRIMARY KEY, v text); ALTER TABLE whole REPLICA IDENTITY FULL;
             CREATE TABLE whole_keyless (v text); ALTER TABLE whole_keyless REPLICA IDENTITY FULL;
             CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE keyless (id int UNIQUE);
             CREATE TABLE later (id int PRIMARY KEY DEFERRABLE);
             CREATE TABLE orphaned (id int NOT NULL); CREATE UNIQUE INDEX orphan ON orphaned (id);
             ALTER TABLE orphaned REPLICA IDENTITY USING INDEX orphan; DROP INDEX orphan;
             CREATE TABLE split (id int, at date, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
             CREATE TABLE split_1 PARTITION OF split DEFAULT",
        )
        .await;
    let expected: [(&str, &[&str], ReplicaIdentity); 9] = [
        ("plain", &["c", "b"], ReplicaIdentity::Default),
        ("chosen", &["y", "x"], ReplicaIdentity::Index),
        ("whole", &["id"], ReplicaIdentity::Full),
        ("whole_keyless", &[], ReplicaIdentity::Full),
        ("nothing", &["id"], ReplicaIdentity::Nothing),
        ("keyless", &[], ReplicaIdentity::Default),
        ("later", &[], ReplicaIdentity::Default),
        ("orphaned", &[], ReplicaIdentity::Index),
        ("split", &["at", "id"], ReplicaIdentity::Default),
    ];
    let names: Vec<_> = expected.iter().map(|(table, ..)| name(&format!("public.{table}"))).collect();
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let found = discovery::find(&session, &names).await.unwrap();
    for (table, key, identity) in expected {
        let found = found.iter().find(|found| found.definition.name.name == table).unwrap();
        assert_eq!(found.definition.key, key, "{table}");
        assert_eq!(found.definition.replica_identity, identity, "{table}");
        let partitioned = table == "split";
        assert_eq!(found.kind, if partitioned { Kind::Partitioned } else { Kind::Table });
        assert_eq!(found.definition.file_node == 0, partitioned, "{table}");
    }
}

#[tokio::test]
async fn what_a_source_offers_is_listed_with_what_stands_in_the_way() {
    let server = Server::start().await;
    server
        .run(
            "CREATE SCHEMA other; CREATE TABLE other.good (id int PRIMARY KEY, v text);
             INSERT INTO other.good SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n; ANALYZE other.good;
             CREATE TABLE keyless (v text); CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
             CREATE VIEW seen AS SELECT 1 AS id; CREATE TABLE \"Big.One\" (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE part PARTITION OF \"Big.One\" DEFAULT; INSERT INTO \"Big.One\" SELECT generate_series(1, 300); ANALYZE",
        )
        .await;
    let offered = offered_tables(&server.source()).await.unwrap();
    let lines: Vec<String> = offered
        .iter()
        .map(|(table, problems)| {
            let codes: Vec<&str> = problems.iter().map(|problem| problem.code.as_str()).collect();
            assert!(problems.iter().all(|problem| problem.table.as_ref() == Some(&table.name)));
            format!("{} {} {}", table.name, table.estimated_rows, codes.join(","))
        })
        .collect();
    assert_eq!(
        lines,
        [
            "other.good 1000 ",
            "public.\"Big.One\" 300 ",
            "public.fleeting 0 SOURCE_TABLE_UNLOGGED",
            "public.keyless 0 KEY_MISSING",
        ]
    );
    assert!(offered[0].0.bytes > 100_000 && offered[1].0.bytes >= 8192);
}

#[tokio::test]
async fn what_older_rows_show_in_added_columns_is_told_also_of_partitioned_tables() {
    let server = Server::start().await;
    server
        .run(
            "CREATE TABLE plain (id int); INSERT INTO plain VALUES (1);
             ALTER TABLE plain ADD COLUMN five int DEFAULT 5, ADD COLUMN nothing int, ADD COLUMN chance float8 DEFAULT random();
             ALTER TABLE plain ADD COLUMN word text DEFAULT 'it''s', ADD COLUMN later int; ALTER TABLE plain ALTER later SET DEFAULT 7;
             CREATE TABLE split (id int, at int) PARTITION BY LIST (id); CREATE TABLE one PARTITION OF split FOR VALUES IN (1);
             CREATE TABLE inner_split PARTITION OF split FOR VALUES IN (2) PARTITION BY LIST (at);
             CREATE TABLE two PARTITION OF inner_split DEFAULT;
             ALTER TABLE split ADD COLUMN five int DEFAULT 5, ADD COLUMN nothing int;
             CREATE TABLE three PARTITION OF split FOR VALUES IN (3);
             CREATE TABLE four (at int, id int, five int, nothing int); ALTER TABLE four ADD COLUMN six int DEFAULT 4;
             ALTER TABLE split ADD COLUMN six int DEFAULT 6; ALTER TABLE split ATTACH PARTITION four FOR VALUES IN (4)",
        )
        .await;
    let session = Session::connect(&server.source(), APPLICATION).await.unwrap();
    let names = [name("public.plain"), name("public.split")];
    let mut told = String::new();
    for name in &names {
        let found = discovery::find(&session, std::slice::from_ref(name)).await.unwrap().remove(0).definition;
        let backfills = session.backfills(found.oid).await.unwrap();
        for column in &found.columns {
            let kept = backfills.kept.get(&column.attribute);
            let differs = backfills.differing.contains(&column.attribute);
            let default = backfills.defaults.contains(&column.attribute);
            told.push_str(&format!("{} {} {kept:?} {differs} {default}\n", name.name, column.name));
        }
    }
    let expected = [
        "plain id None false false",
        // Kept no longer: the column after it has rewritten the table.
        "plain five None false true",
        "plain nothing None false false",
        "plain chance None false true",
        "plain word Some(Some(\"it's\")) false false",
        "plain later None false true",
        "split id None false false",
        "split at None false false",
        "split five Some(Some(\"5\")) false false",
        "split nothing None false false",
        "split six None true false",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
}
