//! The shape of a destination table, and the statement that makes it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use millrace_mapping::{ChType, ColumnPlan, metadata_columns};
use millrace_model::spec::{Cluster, MetadataColumns, TableEngine};
use millrace_model::{PipeId, Problem, TableName};

use crate::Topology;
use crate::cluster::{distributed_engine, local_table};
use crate::quoting::{quote_identifier, quote_string};

/// Inserts whose tokens a table remembers, so that one that is repeated changes nothing. Only the newest are ever
/// repeated: those that were in flight when a worker or the connection died.
const DEDUPLICATION_WINDOW: u32 = 1_000;

/// How long a Replicated table remembers them, in seconds: longer than a pipe is down without anybody minding.
const DEDUPLICATION_SECONDS: u32 = 604_800;

/// A table of the destination by its database and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableRef {
    /// The database.
    pub database: String,
    /// The table in it.
    pub name: String,
}

impl TableRef {
    /// Joins a database and a table name.
    pub fn new(database: impl Into<String>, name: impl Into<String>) -> Self {
        Self { database: database.into(), name: name.into() }
    }
}

/// As statements write it: `` `database`.`table` ``.
impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quote_identifier(&self.database), quote_identifier(&self.name))
    }
}

/// A destination table as a pipe needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    /// The source table that feeds it; problems are reported of it.
    pub source: TableName,
    /// Where it is.
    pub table: TableRef,
    /// The source's columns in their order.
    pub columns: Vec<ColumnPlan>,
    /// Names of the three columns after them.
    pub metadata: MetadataColumns,
    /// Columns of ORDER BY; in a ReplacingMergeTree at least one, and rows that agree in all of them are versions of one row.
    pub sorting_key: Vec<String>,
    /// What keeps its rows.
    pub engine: TableEngine,
    /// PARTITION BY, as the user wrote it. In a ReplacingMergeTree a function of columns of the sorting key, since a row that changed its partition
    /// would leave its older versions behind.
    pub partition_by: Option<String>,
    /// Which shard keeps a row, as the user wrote it; `None` goes by the sorting key. Of no meaning where the destination is not sharded.
    pub sharding: Option<String>,
    /// Whether a ReplacingMergeTree takes the deleted flag, so that `FINAL` hides deleted rows.
    pub delete_on_merge: bool,
}

impl TargetTable {
    /// All columns in the order in which the table and every block hold them.
    pub fn columns(&self) -> impl Iterator<Item = (&str, ChType)> {
        let columns = self.columns.iter().map(|column| (column.name.as_str(), column.target.clone()));
        columns.chain(metadata_columns(&self.metadata))
    }

    /// What makes the table impossible in any ClickHouse, all of it at once.
    pub fn problems(&self, cluster: Option<&Cluster>) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(self.name_too_long(&local_table(cluster, &self.table)));
        problems.extend(self.column_clashes());
        problems.extend(self.sorting_key_problem());
        problems.into_iter().map(|problem| problem.of_table(&self.source)).collect()
    }

    /// ClickHouse keeps a dropped table's definition in a file `database.table.uuid.sql`, with every byte that is not a
    /// letter, a digit or an underscore written as three, and file names end at 255 bytes
    /// (`getMaxTableNameLengthForDatabase`).
    fn name_too_long(&self, table: &TableRef) -> Option<Problem> {
        const FILE_NAME: usize = 255;
        const DOTS_UUID_AND_SUFFIX: usize = 2 + 36 + 4;
        let room = (FILE_NAME - DOTS_UUID_AND_SUFFIX).saturating_sub(escaped_length(&table.database));
        let length = escaped_length(&table.name);
        (length > room).then(|| {
            Problem::operator(
                "DESTINATION_NAME_TOO_LONG",
                format!(
                    "the name of table {table} takes {length} bytes in a file name, where every byte but ASCII letters, \
                     digits and underscores counts three times; ClickHouse has room for {room}"
                ),
                "choose a shorter target name",
            )
        })
    }

    fn column_clashes(&self) -> Vec<Problem> {
        let clash = |message: String| {
            let remedy = "name the column under excludedColumns, or choose other metadataColumns";
            Problem::operator("DESTINATION_COLUMN_CLASH", message, remedy)
        };
        let metadata = metadata_columns(&self.metadata);
        let taken =
            self.columns.iter().filter(|column| metadata.iter().any(|(name, _)| *name == column.name));
        let mut problems = taken
            .map(|column| {
                clash(format!(
                    "source column '{}' has the name of one of Millrace's own columns",
                    column.name
                ))
            })
            .collect::<Vec<_>>();
        // ClickHouse takes array columns `a.b` and `a.c` for parts of one Nested column and demands equal sizes.
        let mut nested = BTreeMap::<&str, Vec<&str>>::new();
        for column in &self.columns {
            if let (ChType::Array(_), Some((prefix, _))) = (&column.target, column.name.split_once('.')) {
                nested.entry(prefix).or_default().push(&column.name);
            }
        }
        problems.extend(nested.into_values().filter(|columns| columns.len() > 1).map(|columns| {
            let names = columns.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(" and ");
            clash(format!(
                "array columns {names} share a name before the dot, so ClickHouse demands arrays of equal sizes"
            ))
        }));
        problems
    }

    fn sorting_key_problem(&self) -> Option<Problem> {
        if self.engine == TableEngine::Null {
            return None;
        }
        let invalid = |message: String, remedy: &str| {
            Some(Problem::operator("DESTINATION_SORTING_KEY_INVALID", message, remedy))
        };
        if self.sorting_key.is_empty() && self.engine == TableEngine::ReplacingMergeTree {
            return invalid(
                "the sorting key is empty, so all rows would be versions of one row".to_owned(),
                "give the source table a primary key, or name columns under sortingKeys",
            );
        }
        let unknown =
            self.sorting_key.iter().filter(|key| !self.columns.iter().any(|column| column.name == **key));
        let unknown = unknown.map(|key| format!("'{key}'")).collect::<Vec<_>>();
        if unknown.is_empty() {
            return None;
        }
        invalid(
            format!("the sorting key names columns that the table does not have: {}", unknown.join(", ")),
            "name columns of the source table that are not excluded under sortingKeys",
        )
    }

    /// `allow_nullable_key` is needed for a NULL anywhere in the key, also inside arrays.
    fn has_nullable_key(&self) -> bool {
        self.may_hold_null(&self.sorting_key)
    }

    /// Whether there may be a NULL anywhere in one of these columns.
    pub(crate) fn may_hold_null(&self, columns: &[String]) -> bool {
        let mut named = self.columns.iter().filter(|column| columns.contains(&column.name));
        named.any(|column| column.target.to_string().contains("Nullable("))
    }

    /// A select list that gives those of the columns that are asked for, by their names, each with its type's default.
    pub(crate) fn defaults_of(&self, asked: impl Fn(&ColumnPlan) -> bool) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .filter(|column| asked(column))
            .map(|column| {
                let column_type = quote_string(&column.target.to_string());
                format!("defaultValueOfTypeName({column_type}) AS {}", quote_identifier(&column.name))
            })
            .collect();
        if columns.is_empty() { "1".to_owned() } else { columns.join(", ") }
    }

    /// `Time64` has to be allowed by a setting on some servers.
    pub(crate) fn holds_time64(&self) -> bool {
        fn holds(column_type: &ChType) -> bool {
            match column_type {
                ChType::Time64(_) => true,
                ChType::Nullable(inner) | ChType::LowCardinality(inner) | ChType::Array(inner) => {
                    holds(inner)
                }
                _ => false,
            }
        }
        self.columns.iter().any(|column| holds(&column.target))
    }
}

/// Length of a name in ClickHouse's file names (`escapeForFileName`).
fn escaped_length(name: &str) -> usize {
    name.bytes().map(|byte| if byte.is_ascii_alphanumeric() || byte == b'_' { 1 } else { 3 }).sum()
}

/// The comment by which a database or table that a pipe made is known again.
pub(crate) fn ownership_comment(owner: &PipeId) -> String {
    format!("millrace pipe {owner}")
}

/// `CREATE DATABASE` in the server's default engine, which exchanges tables in every supported version.
pub fn create_database_statement(database: &str, owner: &PipeId, topology: &Topology) -> String {
    let (database, comment) = (quote_identifier(database), quote_string(&ownership_comment(owner)));
    format!("CREATE DATABASE IF NOT EXISTS {database}{} COMMENT {comment}", topology.on_cluster())
}

/// `CREATE TABLE` of the table that keeps the rows, for one without [`TargetTable::problems`].
pub fn create_table_statement(target: &TargetTable, owner: &PipeId, topology: &Topology) -> String {
    let columns = target
        .columns()
        .map(|(name, column_type)| format!("    {} {column_type}", quote_identifier(name)))
        .collect::<Vec<_>>()
        .join(",\n");
    let sorting_key =
        target.sorting_key.iter().map(|name| quote_identifier(name)).collect::<Vec<_>>().join(", ");
    // `ORDER BY ()` is no expression.
    let sorting_key = if sorting_key.is_empty() { "tuple()".to_owned() } else { sorting_key };
    let version = quote_identifier(&target.metadata.version);
    let is_deleted = quote_identifier(&target.metadata.is_deleted);
    // Without arguments the server's default path in the Keeper is taken, which holds the table's UUID: one that is dropped
    // and made anew shares nothing with the one before.
    let replicated = if topology.is_replicated() { "Replicated" } else { "" };
    let engine = match target.engine {
        TableEngine::ReplacingMergeTree if target.delete_on_merge => {
            format!("{replicated}ReplacingMergeTree({version}, {is_deleted})")
        }
        TableEngine::ReplacingMergeTree => format!("{replicated}ReplacingMergeTree({version})"),
        TableEngine::MergeTree => format!("{replicated}MergeTree"),
        TableEngine::Null => "Null".to_owned(),
    };
    let mut storage = String::new();
    if target.engine != TableEngine::Null {
        if let Some(expression) = &target.partition_by {
            let _ = writeln!(storage, "PARTITION BY {expression}");
        }
        let window = if topology.is_replicated() {
            format!(
                "replicated_deduplication_window = {DEDUPLICATION_WINDOW}, \
                 replicated_deduplication_window_seconds = {DEDUPLICATION_SECONDS}"
            )
        } else {
            format!("non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}")
        };
        let nullable = if target.has_nullable_key() { ", allow_nullable_key = 1" } else { "" };
        let _ = writeln!(storage, "ORDER BY ({sorting_key})\nSETTINGS {window}{nullable}");
    }
    let mut statement = String::new();
    // Writing into a String cannot fail.
    let _ = write!(
        statement,
        "CREATE TABLE IF NOT EXISTS {table}{on_cluster} (\n{columns}\n)\n\
         ENGINE = {engine}\n\
         {storage}COMMENT {comment}",
        table = local_table(topology.cluster.as_ref(), &target.table),
        on_cluster = topology.on_cluster(),
        comment = quote_string(&ownership_comment(owner)),
    );
    statement
}

/// The statement that makes the table before those that keep the rows, or gives it their columns as they are now; `None` where
/// the destination is not sharded. It keeps nothing itself, so it can be made anew at any time.
pub fn create_distributed_statement(
    table: &TableRef,
    expression: &str,
    owner: &PipeId,
    topology: &Topology,
) -> Option<String> {
    let cluster = topology.cluster.as_ref().filter(|cluster| cluster.sharded)?;
    let local = local_table(Some(cluster), table);
    Some(format!(
        "CREATE OR REPLACE TABLE {table}{on_cluster} AS {local} ENGINE = {engine}{expression}) COMMENT {comment}",
        on_cluster = topology.on_cluster(),
        engine = distributed_engine(cluster, &local),
        comment = quote_string(&ownership_comment(owner)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_model::PgType;

    fn column(name: &str, target: &str) -> ColumnPlan {
        ColumnPlan::new(name, PgType::Text, false, target.parse().unwrap())
    }

    fn orders() -> TargetTable {
        TargetTable {
            source: TableName::new("public", "orders"),
            table: TableRef::new("shop", "orders"),
            columns: vec![column("id", "Int64"), column("note", "Nullable(String)")],
            metadata: MetadataColumns::millrace(),
            sorting_key: vec!["id".to_owned()],
            engine: TableEngine::ReplacingMergeTree,
            partition_by: None,
            sharding: None,
            delete_on_merge: true,
        }
    }

    fn owner() -> PipeId {
        PipeId::from_random(0xab)
    }

    fn codes(target: &TargetTable) -> Vec<String> {
        target.problems(None).into_iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn a_table_is_declared_with_its_columns_key_and_owner() {
        insta::assert_snapshot!(create_table_statement(&orders(), &owner(), &Topology::default()), @r"
        CREATE TABLE IF NOT EXISTS `shop`.`orders` (
            `id` Int64,
            `note` Nullable(String),
            `_millrace_version` UInt64,
            `_millrace_is_deleted` UInt8,
            `_millrace_synced_at` DateTime64(9)
        )
        ENGINE = ReplacingMergeTree(`_millrace_version`, `_millrace_is_deleted`)
        ORDER BY (`id`)
        SETTINGS non_replicated_deduplication_window = 1000
        COMMENT 'millrace pipe 0000000000ab'
        ");
    }

    #[test]
    fn every_engine_is_declared_as_it_keeps_rows() {
        let engines = [
            TargetTable { delete_on_merge: false, partition_by: Some("id % 10".to_owned()), ..orders() },
            TargetTable { engine: TableEngine::MergeTree, sorting_key: Vec::new(), ..orders() },
            TargetTable { engine: TableEngine::Null, sorting_key: Vec::new(), ..orders() },
        ];
        let mut text = String::new();
        for target in &engines {
            assert_eq!(target.problems(None), []);
            let statement = create_table_statement(target, &owner(), &Topology::default());
            text.push_str(statement.split_once("ENGINE").map_or("", |(_, engine)| engine));
            text.push('\n');
        }
        insta::assert_snapshot!(text, @r"
         = ReplacingMergeTree(`_millrace_version`)
        PARTITION BY id % 10
        ORDER BY (`id`)
        SETTINGS non_replicated_deduplication_window = 1000
        COMMENT 'millrace pipe 0000000000ab'
         = MergeTree
        ORDER BY (tuple())
        SETTINGS non_replicated_deduplication_window = 1000
        COMMENT 'millrace pipe 0000000000ab'
         = Null
        COMMENT 'millrace pipe 0000000000ab'
        ");
    }

    #[test]
    fn odd_names_are_quoted_and_nullable_keys_allowed() {
        let target = TargetTable {
            table: TableRef::new("my db?", "a`b\\c'd.é"),
            columns: vec![
                column("Order No", "LowCardinality(Nullable(String))"),
                column("tags", "Array(Nullable(Int32))"),
                column("`", "Decimal(12, 2)"),
            ],
            metadata: MetadataColumns::peerdb(),
            sorting_key: vec!["Order No".to_owned(), "`".to_owned()],
            ..orders()
        };
        assert_eq!(target.problems(None), []);
        insta::assert_snapshot!(create_table_statement(&target, &owner(), &Topology::default()), @r"
        CREATE TABLE IF NOT EXISTS `my db?`.`a\`b\\c'd.é` (
            `Order No` LowCardinality(Nullable(String)),
            `tags` Array(Nullable(Int32)),
            `\`` Decimal(12, 2),
            `_peerdb_version` UInt64,
            `_peerdb_is_deleted` UInt8,
            `_peerdb_synced_at` DateTime64(9)
        )
        ENGINE = ReplacingMergeTree(`_peerdb_version`, `_peerdb_is_deleted`)
        ORDER BY (`Order No`, `\``)
        SETTINGS non_replicated_deduplication_window = 1000, allow_nullable_key = 1
        COMMENT 'millrace pipe 0000000000ab'
        ");
        insta::assert_snapshot!(
            create_database_statement(&target.table.database, &owner(), &Topology::default()),
            @"CREATE DATABASE IF NOT EXISTS `my db?` COMMENT 'millrace pipe 0000000000ab'"
        );
    }

    fn topology(replicated: bool, sharded: bool) -> Topology {
        let cluster = Cluster { name: "my`c".to_owned(), replicated, sharded, insert_quorum: 2 };
        Topology { cluster: Some(cluster), database_carries: false }
    }

    #[test]
    fn a_cluster_is_told_of_every_table_and_its_replicas_keep_each_others_rows() {
        let replicated = topology(true, false);
        insta::assert_snapshot!(create_table_statement(&orders(), &owner(), &replicated));
        insta::assert_snapshot!(create_database_statement("shop", &owner(), &replicated));
        assert_eq!(create_distributed_statement(&orders().table, "id", &owner(), &replicated), None);
        let append_only = TargetTable {
            engine: TableEngine::MergeTree,
            sorting_key: Vec::new(),
            partition_by: Some("id % 10".to_owned()),
            ..orders()
        };
        insta::assert_snapshot!(create_table_statement(&append_only, &owner(), &replicated));
    }

    #[test]
    fn a_sharded_table_stands_before_the_ones_that_keep_its_rows() {
        let sharded = topology(true, true);
        insta::assert_snapshot!(create_table_statement(&orders(), &owner(), &sharded));
        let lead = create_distributed_statement(&orders().table, "cityHash64(id)", &owner(), &sharded);
        insta::assert_snapshot!(lead.unwrap());
        let alone = create_table_statement(&orders(), &owner(), &topology(false, true));
        assert!(
            alone.contains("`orders_local` ON CLUSTER") && alone.contains("= ReplacingMergeTree("),
            "{alone}"
        );
    }

    #[test]
    fn a_replicated_database_carries_statements_itself() {
        let carried = Topology { database_carries: true, ..topology(true, true) };
        let statement = create_table_statement(&orders(), &owner(), &carried);
        assert!(!statement.contains("ON CLUSTER") && statement.contains("= ReplicatedReplacingMergeTree("));
        let lead = create_distributed_statement(&orders().table, "id", &owner(), &carried).unwrap();
        assert!(!lead.contains("ON CLUSTER"), "{lead}");
    }

    #[test]
    fn the_longest_name_depends_on_how_it_is_written_in_file_names() {
        let named =
            |database: &str, name: String| TargetTable { table: TableRef::new(database, name), ..orders() };
        assert_eq!(named("a", "t".repeat(212)).problems(None), []);
        assert_eq!(codes(&named("a", "t".repeat(213))), ["DESTINATION_NAME_TOO_LONG"]);
        assert_eq!(named("ü", "t".repeat(207)).problems(None), []);
        assert_eq!(codes(&named("ü", "t".repeat(208))), ["DESTINATION_NAME_TOO_LONG"]);
        assert_eq!(codes(&named("a", ".".repeat(71))), ["DESTINATION_NAME_TOO_LONG"]);
        assert_eq!(codes(&named(&"d".repeat(300), "t".to_owned())), ["DESTINATION_NAME_TOO_LONG"]);
    }

    #[test]
    fn columns_that_clickhouse_would_confuse_are_named() {
        let columns = vec![
            column("id", "Int64"),
            column("_millrace_version", "Int64"),
            column("a.b", "Array(Nullable(Int32))"),
            column("a.c", "Array(Nullable(String))"),
            column("a.d", "String"),
            column("e.f", "Array(Nullable(String))"),
        ];
        let problems = TargetTable { columns, ..orders() }.problems(None);
        let lines = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(lines, @r"
        public.orders: source column '_millrace_version' has the name of one of Millrace's own columns [DESTINATION_COLUMN_CLASH]; name the column under excludedColumns, or choose other metadataColumns
        public.orders: array columns 'a.b' and 'a.c' share a name before the dot, so ClickHouse demands arrays of equal sizes [DESTINATION_COLUMN_CLASH]; name the column under excludedColumns, or choose other metadataColumns
        ");
    }

    #[test]
    fn a_sorting_key_names_columns_of_the_table() {
        let keyed = |keys: &[&str]| TargetTable {
            sorting_key: keys.iter().map(|key| (*key).to_owned()).collect(),
            ..orders()
        };
        assert_eq!(codes(&keyed(&[])), ["DESTINATION_SORTING_KEY_INVALID"]);
        assert_eq!(codes(&keyed(&["id", "other"])), ["DESTINATION_SORTING_KEY_INVALID"]);
        assert_eq!(keyed(&["note", "id"]).problems(None), []);
    }
}
