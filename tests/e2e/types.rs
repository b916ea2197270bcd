//! Types that users choose, and values that ClickHouse cannot hold.

use crate::stack::Stack;

async fn rows(stack: &Stack, columns: &str) -> Vec<String> {
    let sql = format!("SELECT toString(tuple({columns})) FROM mirror.chosen FINAL ORDER BY id");
    stack.destination().query(&sql).fetch_all().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_types_hold_the_same_values_from_copy_and_stream() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    let insert = |id: u32| {
        format!(
            "INSERT INTO chosen VALUES ({id}, 12.3456, 7, 8, 'few', ARRAY[[1,2],[3,NULL]], '2024-02-29 01:02:03.5+00', '00112233-4455-6677-8899-aabbccddeeff', 1.5, true);
             INSERT INTO chosen (id) VALUES ({id} + 1);"
        )
    };
    source
        .batch_execute(
            "CREATE TABLE chosen (id int PRIMARY KEY, amount numeric, small int2, medium int4, word text, matrix int[], at timestamptz, u uuid, ratio float4, flag bool)",
        )
        .await
        .unwrap();
    source.batch_execute(&insert(1)).await.unwrap();
    let tables = "  - source: public.chosen
    target: chosen
    columnTypes: {amount: 'Decimal(18, 4)', small: Int64, medium: Int64, word: LowCardinality(String), matrix: String, at: String, u: String, ratio: Float64, flag: String}";
    stack.apply(&stack.write_pipe("chosen", tables, "")).await;
    stack.wait_for("chosen", "Running").await;
    source.batch_execute(&insert(11)).await.unwrap();
    stack.caught_up("chosen").await;
    let columns = "amount, small, medium, word, matrix, at, u, ratio, flag";
    let expected = "(12.3456,7,8,'few','{{1,2},{3,NULL}}','2024-02-29 01:02:03.5+00','00112233-4455-6677-8899-aabbccddeeff',1.5,'t')";
    let nothing = "(NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)";
    assert_eq!(rows(&stack, columns).await, [expected, nothing, expected, nothing]);
    let types = "SELECT groupArray(type) FROM (SELECT type FROM system.columns WHERE database = 'mirror' AND table = 'chosen' ORDER BY position LIMIT 3, 2)";
    let types: Vec<String> = stack.destination().query(types).fetch_one().await.unwrap();
    assert_eq!(types, ["Nullable(Int64)", "LowCardinality(Nullable(String))"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_without_a_way_is_refused_before_anything_is_made() {
    let stack = Stack::start().await;
    stack
        .source()
        .await
        .batch_execute("CREATE TABLE chosen (id int PRIMARY KEY, at date, note text)")
        .await
        .unwrap();
    let tables = "  - {source: public.chosen, target: chosen, columnTypes: {at: Int64, note: Strin, id: Nullable(Int64), gone: String}}";
    let path = stack.write_pipe("chosen", tables, "");
    let output = stack.run(&["pipe", "validate", "-f", path.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "there is no way to 'Int64'; possible: String, Date32",
        "'Strin' is not a ClickHouse type",
        "may hold NULL",
        "no such column",
    ] {
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_out_of_range_follow_the_policy() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE chosen (id int PRIMARY KEY, a date, b date NOT NULL, c numeric(10, 2)); INSERT INTO chosen VALUES (1, 'infinity', '-infinity', 'NaN');
             CREATE TABLE strict (id int PRIMARY KEY, a date); INSERT INTO strict VALUES (1, '2024-01-01');",
        )
        .await
        .unwrap();
    let tables = "  - {source: public.chosen, target: chosen, outOfRange: {b: clamp}}\n  - {source: public.strict, target: strict, outOfRange: {a: stop}}";
    stack.apply(&stack.write_pipe("chosen", tables, "settings: {outOfRange: null}")).await;
    stack.wait_for("chosen", "Running").await;
    source.batch_execute("INSERT INTO chosen VALUES (2, '20000-01-01', 'infinity', 1); INSERT INTO strict VALUES (2, 'infinity')").await.unwrap();
    stack
        .wait("the strict table to be set aside", async || {
            stack.get("chosen").await["tables"][1]["state"] == "TABLE_STATE_SET_ASIDE"
        })
        .await;
    stack.caught_up("chosen").await;
    assert_eq!(rows(&stack, "a, b, c").await, ["(NULL,'1900-01-01',NULL)", "(NULL,'2299-12-31',1)"]);
    let shown = stack.get("chosen").await;
    let message = shown["tables"][1]["problem"]["message"].as_str().unwrap();
    assert!(message.contains("outOfRange is stop") && message.contains("id = 2"), "{message}");
    assert_eq!(shown["tables"][0]["valuesAltered"], "5", "three of the copy, two of the stream: {shown:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn null_in_place_of_a_map_or_array_is_named_beforehand_and_kept_where_text_is_chosen() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    let insert = |id: u32| {
        format!(
            "INSERT INTO chosen VALUES ({id}, 'a=>1, b=>NULL', 'c=>2', '{{1,NULL}}', '{{{{1}},{{2}}}}'), ({id} + 1, NULL, NULL, NULL, NULL), ({id} + 2, '', '', '{{}}', '{{}}');"
        )
    };
    source
        .batch_execute(
            "CREATE EXTENSION hstore; CREATE TABLE chosen (id int PRIMARY KEY, map hstore, text_map hstore, list int[], text_list int[]);
             CREATE TABLE keyed (tags hstore PRIMARY KEY, x int); INSERT INTO keyed VALUES ('a=>1', 1), ('', 2);",
        )
        .await
        .unwrap();
    source.batch_execute(&insert(1)).await.unwrap();
    let tables = "  - {source: public.chosen, target: chosen, columnTypes: {text_map: String, text_list: String}}\n  - {source: public.keyed, target: keyed}";
    let path = stack.write_pipe("chosen", tables, "");
    let told = stack.ok(&["pipe", "validate", "-f", path.to_str().unwrap()]).await;
    assert!(told.contains("NULL becomes an empty array or map in: map, list"), "{told}");
    stack.apply(&path).await;
    stack.wait_for("chosen", "Running").await;
    source.batch_execute(&insert(11)).await.unwrap();
    source
        .batch_execute("DELETE FROM keyed WHERE tags = ''; UPDATE keyed SET tags = 'b=>NULL'")
        .await
        .unwrap();
    stack.caught_up("chosen").await;
    let values = r#"({'a':'1','b':NULL},'"c"=>"2"',[1,NULL],'{{1},{2}}')"#;
    let (nothing, empty) = ("({},NULL,[],NULL)", "({},'',[],'{}')");
    let expected = [values, nothing, empty, values, nothing, empty];
    assert_eq!(rows(&stack, "map, text_map, list, text_list").await, expected);
    stack.assert_equal("keyed", &["tags"]).await;
}
