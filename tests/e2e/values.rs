//! Every type, in the copy and in the stream: the same value on both sides.

use crate::stack::Stack;

/// Column, type, and values that are worth trying.
type Typed = (&'static str, &'static str, &'static [&'static str]);

const TYPES: &[Typed] = &[
    ("c_int2", "int2", &["-32768", "32767", "0"]),
    ("c_int4", "int4", &["-2147483648", "2147483647", "7"]),
    ("c_int8", "int8", &["-9223372036854775808", "9223372036854775807", "1"]),
    ("c_float4", "float4", &["'NaN'", "'-Infinity'", "1.1754944e-38", "-0.0"]),
    ("c_float8", "float8", &["'Infinity'", "5e-324", "1.7976931348623157e308", "0.1"]),
    ("c_bool", "bool", &["true", "false"]),
    (
        "c_text",
        "text",
        &["''", "'plain'", "E'tab\\t newline\\n back\\\\slash quote'' \u{1F600}'", "repeat('long', 5000)"],
    ),
    ("c_varchar", "varchar(10)", &["'abc'", "'äöü'"]),
    ("c_char", "char(5)", &["'ab'", "''"]),
    ("c_name", "name", &["'a_name'"]),
    ("c_numeric_p", "numeric(12,2)", &["-9999999999.99", "0", "12.30"]),
    ("c_numeric_76", "numeric(76,20)", &["12345678901234567890.12345678901234567890", "-1"]),
    ("c_numeric", "numeric", &["'NaN'", "1e-50", "123456789012345678901234567890.5", "100"]),
    ("c_date", "date", &["'1970-01-01'", "'1900-01-01'", "'2299-12-31'", "'2024-02-29'"]),
    (
        "c_timestamp",
        "timestamp",
        &["'2024-06-01 12:34:56.789012'", "'1900-01-01'", "'2299-12-31 23:59:59.999999'"],
    ),
    ("c_timestamptz", "timestamptz", &["'2024-06-01 12:34:56.789012+05:30'", "'1969-12-31 23:59:59.5+00'"]),
    ("c_time", "time", &["'00:00:00'", "'23:59:59.999999'"]),
    ("c_uuid", "uuid", &["'00112233-4455-6677-8899-aabbccddeeff'"]),
    ("c_json", "json", &["'{\"b\": 1,   \"a\": [1, 2.50, null]}'", "'null'", "'12345678901234567890123'"]),
    ("c_jsonb", "jsonb", &["'{\"b\": 1, \"a\": \"x\"}'", "'[]'"]),
    ("c_bytea", "bytea", &["'\\x00010203ff7f80'", "''"]),
    ("c_enum", "mood", &["'happy'", "'sad with spaces'"]),
    ("c_int4s", "int4[]", &["'{1,NULL,3}'", "'{}'"]),
    ("c_texts", "text[]", &["array['a','with \"quotes\"','with,comma',NULL,'']", "'{}'"]),
    ("c_floats", "float8[]", &["'{1.5,NaN,-Infinity}'"]),
    ("c_times", "timestamptz[]", &["array['2024-06-01 12:00:00+00'::timestamptz]"]),
    ("c_uuids", "uuid[]", &["array['00112233-4455-6677-8899-aabbccddeeff'::uuid]"]),
    ("c_moods", "mood[]", &["array['happy','sad with spaces',NULL]::mood[]"]),
    ("c_domain", "positive", &["5"]),
    ("c_citext", "citext", &["'MiXed'"]),
    ("c_xml", "xml", &["'<a>1</a>'"]),
    ("c_quoted_char", "\"char\"", &["'x'"]),
    ("c_domains", "positive[]", &["array[1, 2]::positive[]"]),
    ("c_booleans", "bool[]", &["array[true, false, NULL]"]),
    (
        "c_all_bytes",
        "bytea",
        &[
            "(SELECT string_agg(decode(lpad(to_hex(n), 2, '0'), 'hex'), ''::bytea) FROM generate_series(0, 255) n)",
        ],
    ),
    (
        "c_hstore",
        "hstore",
        &[
            "'a=>1, \"b c\"=>NULL'",
            "''",
            r#"hstore(ARRAY['say "hi"', 'back\slash', '', 'ä', 'null', 'comma, =>'], ARRAY['"', '\', '', '€', 'NULL', NULL])"#,
            "(SELECT hstore(array_agg('key ' || n), array_agg(md5(n::text))) FROM generate_series(1, 300) n)",
        ],
    ),
    ("c_hstores", "hstore[]", &["ARRAY['a=>1'::hstore, NULL, 'b=>NULL', '']", "'{}'"]),
    ("c_hstore_not_null", "hstore NOT NULL DEFAULT 'd=>1'", &["'x=>y'"]),
    ("c_huge_numeric", "numeric", &["repeat('9', 131072)::numeric", "('0.' || repeat('3', 16383))::numeric"]),
];

/// Types without a decoder of their own: they travel in PostgreSQL's text form. A stream that has one is text for all.
const TEXT_TYPES: &[Typed] = &[
    ("c_inet", "inet", &["'192.168.1.1'", "'::1'"]),
    ("c_cidr", "cidr", &["'10.0.0.0/8'"]),
    ("c_interval", "interval", &["'1 year 2 mons 3 days 04:05:06.789'", "'-1 day'"]),
    ("c_money", "money", &["'12.34'"]),
    ("c_bit", "bit varying(12)", &["B'10110'"]),
    ("c_point", "point", &["'(1.5,-2)'"]),
    ("c_range", "int4range", &["'[1,10)'", "'empty'"]),
    ("c_tsvector", "tsvector", &["'a fat cat'"]),
    ("c_timetz", "timetz", &["'12:34:56.5+02'"]),
    ("c_composite", "pair", &["ROW(1, 'two, three')"]),
    ("c_macaddr", "macaddr", &["'08:00:2b:01:02:03'"]),
    ("c_ltree", "ltree", &["'top.science.astronomy'"]),
    ("c_multirange", "int4multirange", &["'{[1,3), [5,9)}'", "'{}'"]),
    ("c_pg_lsn", "pg_lsn", &["'16/B374D848'"]),
    ("c_xid8", "xid8", &["'18446744073709551615'"]),
    ("c_box", "box[]", &["'{(1,1),(0,0);(2,2),(1,1)}'"]),
    ("c_ranges", "tstzrange[]", &["array['[2024-01-01 00:00:00+00,2024-02-01 00:00:00+00)'::tstzrange]"]),
    ("c_jsonpath", "jsonpath", &["'$.a[*] ? (@ > 1)'"]),
];

fn create(table: &str, types: &[Typed]) -> String {
    let columns: Vec<String> = types.iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
    format!("CREATE TABLE {table} (id int PRIMARY KEY, {});", columns.join(", "))
}

/// One row for each position of the longest list of values; then a row of NULLs.
fn rows(table: &str, types: &[Typed], first: usize) -> String {
    let most = types.iter().map(|(_, _, values)| values.len()).max().unwrap();
    let mut text = String::new();
    for position in 0..most {
        let values: Vec<&str> = types.iter().map(|(_, _, values)| values[position % values.len()]).collect();
        text.push_str(&format!("INSERT INTO {table} VALUES ({}, {});", first + position, values.join(", ")));
    }
    text.push_str(&format!("INSERT INTO {table} (id) VALUES ({});", first + most));
    text
}

async fn moves_equally(tables: &[(&str, &[Typed])], binary: bool) {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('happy', 'sad with spaces'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
             CREATE TYPE pair AS (a int, b text); CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;",
        )
        .await
        .unwrap();
    for (table, types) in tables {
        source.batch_execute(&create(table, types)).await.unwrap();
        source.batch_execute(&rows(table, types, 100)).await.unwrap();
    }
    let names: Vec<&str> = tables.iter().map(|(table, _)| *table).collect();
    stack.apply(&stack.write_pipe_of("values", &names, "")).await;
    stack.wait_for("values", "Running").await;
    for name in &names {
        stack.assert_equal(name, &["id"]).await;
    }
    for (table, types) in tables {
        source.batch_execute(&rows(table, types, 200)).await.unwrap();
        // Values of one row in another: updates carry whole rows. Long values stay as they are and where they are.
        let moved: Vec<String> = types
            .iter()
            .filter(|(name, _, _)| !["c_text", "c_huge_numeric"].contains(name))
            .map(|(name, _, _)| format!("{name} = o.{name}"))
            .collect();
        let update = format!(
            "UPDATE {table} t SET {} FROM {table} o WHERE o.id = t.id + 1 AND t.id IN (100, 201) AND length(t::text) < 2000",
            moved.join(", ")
        );
        source.batch_execute(&update).await.unwrap();
    }
    stack.caught_up("values").await;
    for name in &names {
        stack.assert_equal(name, &["id"]).await;
    }
    let shown = stack.get("values").await;
    assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown}");
    let told = ["one", "two"].map(|worker| {
        std::fs::read_to_string(stack.folder.path().join(format!("worker-{worker}.log"))).unwrap()
    });
    let form = format!("binary={binary}");
    assert!(told.concat().contains(&form), "the stream was not of the form that this test is for");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_as_it_was_with_a_binary_stream() {
    moves_equally(&[("every_type", TYPES)], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_as_it_was_with_a_text_stream() {
    moves_equally(&[("every_type", TYPES), ("text_types", TEXT_TYPES)], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_arrive_as_they_are() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            r#"CREATE SCHEMA "Odd ""Schema"; CREATE TABLE "Odd ""Schema"."my.table?" ("Select" int PRIMARY KEY, "a`b" text, "ä?" int);
               INSERT INTO "Odd ""Schema"."my.table?" VALUES (1, 'one', 1);"#,
        )
        .await
        .unwrap();
    let tables = r#"  - {source: '"Odd ""Schema"."my.table?"', target: 'odd ` target?'}"#;
    let pipe = stack.write_pipe("Odd pipe ü", tables, "");
    stack.apply(&pipe).await;
    stack.wait_for("Odd pipe ü", "Running").await;
    source.batch_execute(r#"INSERT INTO "Odd ""Schema"."my.table?" VALUES (2, 'two', NULL)"#).await.unwrap();
    stack.caught_up("Odd pipe ü").await;
    let sql = "SELECT toString(`Select`), assumeNotNull(`a\\`b`), ifNull(`ä??`, -1)::Int32 FROM mirror.`odd \\` target??` FINAL ORDER BY 1";
    let rows: Vec<(String, String, i32)> = stack.destination().query(sql).fetch_all().await.unwrap();
    assert_eq!(rows, [("1".into(), "one".into(), 1), ("2".into(), "two".into(), -1)]);
}
