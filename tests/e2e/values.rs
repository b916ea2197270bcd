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
    (
        "c_date",
        "date",
        &["'1970-01-01'", "'1900-01-01'", "'2299-12-31'", "'2024-02-29'", "'0001-12-31 BC'", "'9999-12-31'"],
    ),
    (
        "c_timestamp",
        "timestamp",
        &[
            "'2024-06-01 12:34:56.789012'",
            "'1900-01-01'",
            "'2299-12-31 23:59:59.999999'",
            "'0001-01-01 00:00:00.000001'",
            "'9999-12-31 23:59:59.999999'",
        ],
    ),
    (
        "c_timestamptz",
        "timestamptz",
        &[
            "'2024-06-01 12:34:56.789012+05:30'",
            "'1969-12-31 23:59:59.5+00'",
            "'1890-02-03 04:05:06.7+00:19:32'",
            "'2024-06-01 12:00:00.000001-15:59:59'",
        ],
    ),
    ("c_time", "time", &["'00:00:00'", "'23:59:59.999999'", "'24:00:00'"]),
    ("c_uuid", "uuid", &["'00112233-4455-6677-8899-aabbccddeeff'"]),
    (
        "c_json",
        "json",
        &[
            "'{\"b\": 1,   \"a\": [1, 2.50, null]}'",
            "'null'",
            "'12345678901234567890123'",
            "'[1e400, -0.0, 1.10]'",
        ],
    ),
    (
        "c_jsonb",
        "jsonb",
        &[
            "'{\"b\": 1, \"a\": \"x\"}'",
            "'[]'",
            "'null'",
            "'12345678901234567890.12345678901234567890'",
            "'[1e400, -0.0, 1.10, \"\\u00e9 \\\" \\\\\"]'",
        ],
    ),
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
    ("c_quoted_char", "\"char\"", &["'x'", "''"]),
    ("c_oid", "oid", &["0", "4294967295"]),
    ("c_numeric_0", "numeric(38,0)", &["99999999999999999999999999999999999999", "-1", "0"]),
    ("c_numeric_small", "numeric(3,5)", &["0.00999", "-0.00001"]),
    ("c_numeric_rounded", "numeric(5,-2)", &["1234500", "-100", "0"]),
    ("c_numeric_wide", "numeric(100,20)", &["1e79", "-1.00000000000000000001", "'NaN'"]),
    ("c_amount", "amount", &["-9.99", "0"]),
    ("c_amounts", "amount[]", &["array[1.10, -2, NULL]::amount[]"]),
    (
        "c_numerics",
        "numeric[]",
        &["'{1e-50,NaN,-Infinity,NULL,12345678901234567890123456789012345678901234567890}'"],
    ),
    ("c_decimals", "numeric(10,2)[]", &["'{1.50,NULL,-99999999.99}'", "'[0:1]={1,2}'"]),
    ("c_byteas", "bytea[]", &[r#"array['\x00ff'::bytea, '', NULL]"#]),
    ("c_dates", "date[]", &["'{1970-01-01,NULL,9999-12-31}'"]),
    ("c_clocks", "time[]", &["'{00:00:00,23:59:59.5}'"]),
    ("c_jsons", "jsonb[]", &[r#"array['{"a": [1, "x"]}'::jsonb, 'null', NULL]"#]),
    ("c_citexts", "citext[]", &["'{MiXed,NULL}'"]),
    ("c_chars", "char(3)[]", &["'{a,abc}'"]),
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
    (
        "c_odd_interval",
        "interval",
        &["'-178000000 years'", "'00:00:00.000001'", "'1 year -2 mons +3 days -04:05:06.789'"],
    ),
    ("c_odd_timetz", "timetz", &["'12:34:56.5+02:30:15'", "'24:00:00-15:59:59'"]),
    ("c_odd_money", "money", &["'-92233720368547758.08'"]),
    ("c_bits", "bit(3)[]", &["'{101,NULL}'"]),
    ("c_lines", "line", &["'{1,-2.5,3}'"]),
    ("c_lseg", "lseg", &["'[(0,0),(1e300,1)]'"]),
    ("c_path", "path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("c_polygon", "polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("c_circle", "circle", &["'<(1,2),3.5>'"]),
    ("c_macaddr8", "macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("c_inets", "inet[]", &["'{::1/64,10.0.0.1,NULL}'"]),
    ("c_tsquery", "tsquery", &["'fat & (rat | !cat)'::tsquery", "''"]),
    ("c_regclass", "regclass", &["'pg_class'"]),
    ("c_tid", "tid", &["'(42,7)'"]),
    ("c_xid", "xid", &["'4294967295'"]),
    ("c_snapshot", "pg_snapshot", &["'10:20:10,14,15'"]),
    ("c_int2vector", "int2vector", &["'1 2 3'"]),
    ("c_oidvector", "oidvector", &["'1 2 4294967295'"]),
    ("c_refcursor", "refcursor", &["'a cursor'"]),
    ("c_int8range", "int8range", &["'(,5]'"]),
    ("c_numrange", "numrange", &["'[1.10,1e50)'", "'(,)'"]),
    ("c_tsrange", "tsrange", &["'[\"0044-03-15 00:00:00 BC\",infinity)'"]),
    ("c_daterange", "daterange", &["'[2024-01-01,20000-01-01)'"]),
    ("c_datemultirange", "datemultirange", &["'{[2024-01-01,2024-02-01),[2025-01-01,infinity)}'"]),
    ("c_own_range", "floats", &["'[1.5,NaN]'"]),
    ("c_pairs", "pair[]", &[r#"array[ROW(1, 'two, "three"'), ROW(NULL, ''), NULL]::pair[]"#]),
    ("c_nested", "nested", &[r#"ROW(ROW(1, 'a"b\c'), array[1, NULL])"#]),
    ("c_ltrees", "ltree[]", &["'{a.b,NULL,c}'"]),
    ("c_lquery", "lquery", &["'top.*{1,2}.a|b'"]),
    ("c_span", "spans", &["'1 day'"]),
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

/// Both sides hold the same; otherwise the columns are named that differ.
async fn assert_equal(stack: &Stack, table: &str, types: &[Typed]) {
    if stack.compare(table, &["id"], &[]).await.is_empty() {
        return;
    }
    let mut differing = Vec::new();
    for (name, ..) in types {
        let others: Vec<&str> =
            types.iter().map(|(other, ..)| *other).filter(|other| other != name).collect();
        let differences = stack.compare(table, &["id"], &others).await;
        if !differences.is_empty() {
            differing.push(format!("{name}: {differences}"));
        }
    }
    panic!("{table}: {}", differing.join("\n"));
}

async fn moves_equally(tables: &[(&str, &[Typed])], binary: bool) {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('happy', 'sad with spaces'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
             CREATE TYPE pair AS (a int, b text); CREATE TYPE nested AS (p pair, list int[]); \
             CREATE DOMAIN amount AS numeric(10,2); CREATE DOMAIN spans AS interval; CREATE TYPE floats AS RANGE (subtype = float8); CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;",
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
    for (table, types) in tables {
        assert_equal(&stack, table, types).await;
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
    for (table, types) in tables {
        assert_equal(&stack, table, types).await;
    }
    let shown = stack.get("values").await;
    assert_eq!(shown["status"]["tablesSetAside"], 0, "{shown}");
    // The comparison encodes what it reads at the source, and finds the same bytes at the destination.
    stack.ok(&["pipe", "verify", "values"]).await;
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

/// Values that the default type does not hold, kept as text by choice; each as PostgreSQL writes it.
const KEPT_AS_TEXT: &[Typed] = &[
    ("c_matrix", "int[]", &["'{{1,2},{3,NULL}}'", "'{1}'", "'{}'", "'[0:1][2:2]={{1},{2}}'"]),
    (
        "c_cube",
        "text[]",
        &[
            r#"array[array[array['a"b', 'c,d'], array['', 'NULL']], array[array['{', '}'], array[E'back\\\\', NULL]]]"#,
        ],
    ),
    ("c_date", "date", &["'10000-01-01'", "'5874897-12-31'", "'4713-01-01 BC'", "'infinity'", "'-infinity'"]),
    ("c_dates", "date[]", &["'{infinity,10000-01-01,\"0044-03-15 BC\"}'"]),
    (
        "c_timestamp",
        "timestamp",
        &[
            "'294276-12-31 23:59:59.999999'",
            "'4713-01-01 00:00:00 BC'",
            "'-infinity'",
            "'0044-03-15 01:02:03.5 BC'",
        ],
    ),
    (
        "c_timestamptz",
        "timestamptz",
        &["'10000-01-01 00:00:00-00:00:01'", "'infinity'", "'0044-03-15 23:59:59+15:59:59 BC'"],
    ),
    ("c_decimal", "numeric(10,2)", &["'NaN'", "1.50"]),
    ("c_map", "hstore", &["'a=>NULL'", "''"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_default_types_do_not_hold_is_kept_as_text_where_that_is_chosen() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source.batch_execute("CREATE EXTENSION hstore; SET TimeZone = 'UTC'").await.unwrap();
    source.batch_execute(&create("kept", KEPT_AS_TEXT)).await.unwrap();
    source.batch_execute(&rows("kept", KEPT_AS_TEXT, 100)).await.unwrap();
    let types: Vec<String> = KEPT_AS_TEXT.iter().map(|(name, ..)| format!("{name}: String")).collect();
    let tables = format!("  - {{source: public.kept, target: kept, columnTypes: {{{}}}}}", types.join(", "));
    stack.apply(&stack.write_pipe("kept", &tables, "")).await;
    stack.wait_for("kept", "Running").await;
    source.batch_execute(&rows("kept", KEPT_AS_TEXT, 200)).await.unwrap();
    stack.caught_up("kept").await;
    for (name, ..) in KEPT_AS_TEXT {
        // NULL is no text.
        let sql = format!(
            "SELECT id || ': ' || coalesce(format('value %s', CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END), '') || CASE WHEN num_nulls({name}) > 0 THEN 'NULL' ELSE '' END FROM kept ORDER BY id"
        );
        let expected: Vec<String> =
            source.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let sql = format!(
            "SELECT concat(toString(id), ': value ', ifNull({name}, 'NULL')) FROM mirror.kept FINAL ORDER BY id"
        );
        let found: Vec<String> = stack.destination().query(&sql).fetch_all().await.unwrap();
        assert_eq!(found, expected, "{name}");
        assert!(found.len() >= 12, "{found:?}");
    }
    assert_eq!(stack.get("kept").await["status"]["tablesSetAside"], 0);
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
