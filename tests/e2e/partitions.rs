//! Partitioned tables, and tables that inherit from one another.

use crate::stack::Stack;

/// Several levels, children with another order of columns, some of which were dropped, in a schema of their own.
const SALES: &str = "
    CREATE SCHEMA parts;
    CREATE TABLE sales (gone int, at date, id int, region text, amount numeric(12, 2), note text, PRIMARY KEY (at, region, id)) PARTITION BY RANGE (at);
    CREATE TABLE parts.sales_2023 PARTITION OF sales FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    CREATE TABLE parts.sales_2024 (note text, region text NOT NULL, extra int, amount numeric(12, 2), id int NOT NULL, gone int, at date NOT NULL) PARTITION BY LIST (region);
    ALTER TABLE parts.sales_2024 DROP COLUMN extra;
    CREATE TABLE parts.sales_2024_north (id int NOT NULL, gone int, at date NOT NULL, note text, amount numeric(12, 2), region text NOT NULL);
    ALTER TABLE parts.sales_2024 ATTACH PARTITION parts.sales_2024_north FOR VALUES IN ('north');
    CREATE TABLE parts.sales_2024_rest PARTITION OF parts.sales_2024 DEFAULT PARTITION BY HASH (id);
    CREATE TABLE parts.sales_2024_a PARTITION OF parts.sales_2024_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parts.sales_2024_b PARTITION OF parts.sales_2024_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    ALTER TABLE sales ATTACH PARTITION parts.sales_2024 FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
    ALTER TABLE sales DROP COLUMN gone;
    INSERT INTO sales SELECT date '2023-01-01' + n % 730, n, CASE n % 3 WHEN 0 THEN 'north' WHEN 1 THEN 'south' ELSE 'east' END, n, repeat('n', n % 50)
      FROM generate_series(1, 3000) n;
    ANALYZE;";

/// Changes in every leaf: rows stay, move between partitions of all levels, go and come again.
const CHANGES: &str = "
    UPDATE sales SET amount = amount + 1 WHERE id % 7 = 0; UPDATE sales SET at = at + 365 WHERE id <= 100 AND at < '2024-01-01';
    UPDATE sales SET region = 'north' WHERE id BETWEEN 200 AND 300 AND region = 'south'; UPDATE sales SET id = id + 10001 WHERE id BETWEEN 400 AND 450;
    DELETE FROM sales WHERE id BETWEEN 500 AND 520; INSERT INTO parts.sales_2024_north (id, at, region, amount) VALUES (20001, '2024-05-05', 'north', 1);
    BEGIN; DELETE FROM sales WHERE id = 600; INSERT INTO sales SELECT '2024-02-02', 600, 'west', 6, 'again'; UPDATE sales SET at = '2023-02-02' WHERE id = 600; COMMIT;";

const KEY: [&str; 3] = ["at", "region", "id"];

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_several_levels_are_one_table_whatever_comes_and_goes_among_them() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source.batch_execute(SALES).await.unwrap();
    let settings = "settings: {snapshotNumRowsPerPartition: 1000, truncate: ignore}";
    stack.apply(&stack.write_pipe_of("parts", &["sales"], settings)).await;
    stack.wait_for("parts", "Running").await;
    stack.assert_equal("sales", &KEY).await;
    source.batch_execute(CHANGES).await.unwrap();
    stack.caught_up("parts").await;
    stack.assert_equal("sales", &KEY).await;
    // One that is made, with rows in the same transaction; one that is attached empty, with another order of columns; and rows that move into both.
    source
        .batch_execute(
            "BEGIN; CREATE TABLE parts.sales_2025 PARTITION OF sales FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (region);
             CREATE TABLE parts.sales_2025_all PARTITION OF parts.sales_2025 DEFAULT; INSERT INTO sales SELECT '2025-03-03', n, 'south', n FROM generate_series(30001, 30100) n; COMMIT;
             CREATE TABLE parts.sales_2026 (region text NOT NULL, note text, amount numeric(12, 2), at date NOT NULL, id int NOT NULL);
             ALTER TABLE sales ATTACH PARTITION parts.sales_2026 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
             INSERT INTO sales SELECT '2026-03-03', n, 'south', n FROM generate_series(30101, 30200) n;
             UPDATE sales SET at = '2026-04-04' WHERE id BETWEEN 30001 AND 30010; UPDATE sales SET at = '2025-05-05', region = 'north' WHERE id BETWEEN 700 AND 720;",
        )
        .await
        .unwrap();
    stack.caught_up("parts").await;
    stack.assert_equal("sales", &KEY).await;
    // A column that is added to all of them, with what older rows show.
    source
        .batch_execute("ALTER TABLE sales ADD COLUMN paid bool NOT NULL DEFAULT true, ADD COLUMN tags text[] DEFAULT '{}'; UPDATE sales SET paid = false, tags = '{a,b}' WHERE id % 11 = 0")
        .await
        .unwrap();
    stack.caught_up("parts").await;
    stack.assert_equal("sales", &KEY).await;
    // Rows of a partition that is detached or dropped stay where they are, as was asked for: the log has no deletions of them. What happens to it from then on is no
    // concern of the table.
    source
        .batch_execute(
            "ALTER TABLE sales DETACH PARTITION parts.sales_2026; UPDATE parts.sales_2026 SET amount = -1; DROP TABLE parts.sales_2025;
             UPDATE sales SET amount = amount + 1 WHERE id % 5 = 0;",
        )
        .await
        .unwrap();
    stack.caught_up("parts").await;
    let differences = stack.compare("sales", &KEY, &[]).await;
    assert_eq!((differences.missing.len(), differences.altered.len()), (0, 0), "{differences}");
    assert!(differences.extra.len() > 200, "{differences}");
    let kept = "SELECT countIf(at >= '2025-01-01'), countIf(amount = -1) FROM mirror.sales FINAL";
    let (kept, foreign): (u64, u64) = stack.destination().query(kept).fetch_one().await.unwrap();
    assert_eq!((kept, foreign), (differences.extra.len() as u64, 0));
    // Emptied as a whole, now that this is to be carried.
    stack.ok(&["pipe", "pause", "parts"]).await;
    stack.wait_for("parts", "Paused").await;
    let settings = "settings: {snapshotNumRowsPerPartition: 1000}";
    stack.apply(&stack.write_pipe_of("parts", &["sales"], settings)).await;
    stack.ok(&["pipe", "resume", "parts"]).await;
    source
        .batch_execute("TRUNCATE sales; INSERT INTO sales (at, id, region) VALUES ('2023-01-01', 1, 'last')")
        .await
        .unwrap();
    stack.caught_up("parts").await;
    stack.assert_equal("sales", &KEY).await;
    assert_eq!(stack.get("parts").await["status"]["tablesSetAside"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_ones_own_publishes_partitions_as_one_table_or_each_under_its_name() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source.batch_execute(SALES).await.unwrap();
    source
        .batch_execute(
            "CREATE PUBLICATION as_one FOR TABLE sales WITH (publish_via_partition_root = true); CREATE PUBLICATION each FOR TABLE sales;",
        )
        .await
        .unwrap();
    let settings = "settings: {publicationName: as_one, truncate: ignore}";
    let one = stack.write_pipe_of("one", &["sales"], settings);
    stack.apply(&one).await;
    stack.wait_for("one", "Running").await;
    // Under the names of its partitions the table cannot be followed, and that is told beforehand with what mends it.
    let refused = stack.write_pipe(
        "refused",
        "  - {source: public.sales, target: other}",
        "settings: {publicationName: each}",
    );
    let output = stack.run(&["pipe", "validate", "-f", refused.to_str().unwrap()]).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.contains("PUBLICATION_INCOMPLETE") && told.contains("SET (publish_via_partition_root = true)"),
        "{told}"
    );
    // The partitions can, each as a table, with either kind of publication.
    let leaves = ["sales_2023", "sales_2024_north", "sales_2024_a", "sales_2024_b"];
    let tables = |prefix: &str| {
        let entries = leaves.map(|leaf| format!("  - {{source: parts.{leaf}, target: {prefix}_{leaf}}}"));
        entries.join("\n")
    };
    stack.apply(&stack.write_pipe("each", &tables("each"), "settings: {publicationName: each}")).await;
    stack.apply(&stack.write_pipe("leaves", &tables("leaves"), "")).await;
    stack.wait_for("each", "Running").await;
    stack.wait_for("leaves", "Running").await;
    source.batch_execute(CHANGES).await.unwrap();
    stack.caught_up("one").await;
    stack.assert_equal("sales", &KEY).await;
    // Only under its own name is a partition emptied alone.
    let truncate = "TRUNCATE parts.sales_2024_a; INSERT INTO parts.sales_2024_a (at, id, region) VALUES ('2024-01-01', 2, 'west')";
    source.batch_execute(truncate).await.unwrap();
    stack.caught_up("one").await;
    let differences = stack.compare("sales", &KEY, &[]).await;
    assert_eq!((differences.missing.len(), differences.altered.len()), (0, 0), "{differences}");
    assert!(!differences.extra.is_empty(), "the partitioned table's stream has no truncation of a partition");
    for pipe in ["one", "each", "leaves"] {
        stack.caught_up(pipe).await;
        assert_eq!(stack.get(pipe).await["status"]["tablesSetAside"], 0);
    }
    for prefix in ["each", "leaves"] {
        for leaf in leaves {
            stack.assert_same("parts", leaf, &format!("{prefix}_{leaf}"), &KEY).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_and_those_that_inherit_from_it_are_carried_each_for_itself() {
    let stack = Stack::start().await;
    let source = stack.source().await;
    source
        .batch_execute(
            "CREATE TABLE animals (id int PRIMARY KEY, name text); CREATE TABLE dogs (breed text, PRIMARY KEY (id)) INHERITS (animals);
             CREATE TABLE cats (lives int DEFAULT 9, PRIMARY KEY (id)) INHERITS (animals); CREATE TABLE puppies (age int, PRIMARY KEY (id)) INHERITS (dogs);
             INSERT INTO animals SELECT n, 'animal' FROM generate_series(1, 10) n; INSERT INTO dogs SELECT n, 'dog', 'mixed' FROM generate_series(11, 20) n;
             INSERT INTO cats SELECT n, 'cat' FROM generate_series(21, 30) n; INSERT INTO puppies SELECT n, 'puppy', 'mixed', 1 FROM generate_series(31, 40) n;",
        )
        .await
        .unwrap();
    // The cats are not part of the pipe.
    stack.apply(&stack.write_pipe_of("family", &["animals", "dogs", "puppies"], "")).await;
    stack.wait_for("family", "Running").await;
    source
        .batch_execute(
            "UPDATE animals SET name = name || '!' WHERE id % 2 = 0; DELETE FROM animals WHERE id % 5 = 0; INSERT INTO animals VALUES (41, 'new');
             INSERT INTO cats VALUES (42, 'new'); INSERT INTO puppies VALUES (43, 'new', 'x', 0); UPDATE dogs SET breed = 'known' WHERE id > 15;
             ALTER TABLE animals ADD COLUMN legs int DEFAULT 4; UPDATE animals SET legs = 3 WHERE id % 3 = 0;
             TRUNCATE ONLY dogs; INSERT INTO dogs VALUES (44, 'last', 'y', 4);",
        )
        .await
        .unwrap();
    stack.caught_up("family").await;
    assert_eq!(stack.get("family").await["status"]["tablesSetAside"], 0, "{}", stack.logs());
    for (table, columns) in [
        ("animals", "id, name, legs"),
        ("dogs", "id, name, breed, legs"),
        ("puppies", "id, name, breed, age, legs"),
    ] {
        let sql = format!(
            "SELECT coalesce(string_agg(t::text, ' ' ORDER BY id), '') FROM (SELECT {columns} FROM ONLY {table}) t"
        );
        let expected: String = source.query_one(&sql, &[]).await.unwrap().get(0);
        let texts: Vec<String> =
            columns.split(", ").map(|column| format!("toString(assumeNotNull({column}))")).collect();
        let sql = format!(
            "SELECT arrayStringConcat(groupArray(concat('(', concatWithSeparator(',', {}), ')')), ' ') FROM (SELECT * FROM mirror.{table} FINAL ORDER BY id)",
            texts.join(", ")
        );
        let found: String = stack.destination().query(&sql).fetch_one().await.unwrap();
        assert_eq!(found, expected, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_attached_with_rows_is_not_passed_over_in_silence() {
    let mut stack = Stack::start().await;
    let source = stack.source().await;
    let tables = ["later", "at_once", "again", "fine"];
    for table in tables {
        source
            .batch_execute(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, x int) PARTITION BY RANGE (id); CREATE TABLE {table}_1 PARTITION OF {table} FOR VALUES FROM (0) TO (100);
                 INSERT INTO {table} SELECT n, n FROM generate_series(1, 50) n;"
            ))
            .await
            .unwrap();
    }
    stack.apply(&stack.write_pipe_of("parts", &tables, "")).await;
    stack.wait_for("parts", "Running").await;
    // Nobody looks meanwhile.
    for worker in &mut stack.fleet.workers {
        worker.kill().await;
    }
    source
        .batch_execute(
            "CREATE TABLE later_2 (x int, id int NOT NULL); INSERT INTO later_2 VALUES (1, 101); ALTER TABLE later ATTACH PARTITION later_2 FOR VALUES FROM (100) TO (200);
             BEGIN; CREATE TABLE at_once_2 (x int, id int NOT NULL); INSERT INTO at_once_2 VALUES (1, 101); ALTER TABLE at_once ATTACH PARTITION at_once_2 FOR VALUES FROM (100) TO (200); COMMIT;
             ALTER TABLE again DETACH PARTITION again_1; UPDATE again_1 SET x = -1; ALTER TABLE again ATTACH PARTITION again_1 FOR VALUES FROM (0) TO (100);
             BEGIN; CREATE TABLE fine_2 PARTITION OF fine FOR VALUES FROM (100) TO (200) PARTITION BY HASH (id); CREATE TABLE fine_2_all PARTITION OF fine_2 FOR VALUES WITH (MODULUS 1, REMAINDER 0); INSERT INTO fine VALUES (101, 1); COMMIT;
             CREATE TABLE fine_3 (x int, id int NOT NULL); ALTER TABLE fine ATTACH PARTITION fine_3 FOR VALUES FROM (200) TO (300); INSERT INTO fine VALUES (201, 1);",
        )
        .await
        .unwrap();
    for worker in &mut stack.fleet.workers {
        worker.start_again().await;
    }
    stack
        .wait("the tables to be set aside", async || {
            stack.get("parts").await["status"]["tablesSetAside"] == 3
        })
        .await;
    let shown = stack.get("parts").await;
    for (at, partition) in [(0, "public.later_2"), (1, "public.at_once_2"), (2, "public.again_1")] {
        let message = shown["tables"][at]["problem"]["message"].as_str().unwrap();
        assert!(message.contains("was attached with rows") && message.contains(partition), "{message}");
    }
    source.batch_execute("UPDATE fine SET x = x + 1").await.unwrap();
    stack.caught_up("parts").await;
    stack.assert_equal("fine", &["id"]).await;
}
