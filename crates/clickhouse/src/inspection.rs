//! What is found at the destination, and whether it fits. Decisions are pure; [`crate::Destination`] does the asking.

use millrace_model::Problem;
use millrace_model::spec::TableEngine;

use crate::quoting::{parse_identifiers, quote_identifier};
use crate::table::TargetTable;

/// The oldest release whose behaviour is relied on.
const OLDEST_VERSION: (u32, u32) = (24, 8);

/// Engines of databases in which two tables can be exchanged in one step.
const EXCHANGING_ENGINES: [&str; 3] = ["Atomic", "Replicated", "Shared"];

/// Rights that a pipe needs on its database, as `GRANT` names them. Rows are deleted where the source is truncated, columns follow its own.
pub(crate) const NEEDED_RIGHTS: [&str; 6] =
    ["SELECT", "INSERT", "CREATE TABLE", "DROP TABLE", "ALTER DELETE", "ALTER COLUMN"];

/// What a server is and allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its release, such as `24.8.4.13`.
    pub version: String,
    /// The time zone in which it writes times that name none.
    pub timezone: String,
    /// Whether tables may have `Time64` columns.
    pub time64: bool,
    /// The setting that allows them, where it must be sent.
    pub(crate) time64_setting: Option<String>,
    /// `readonly` of the user's profile: 0 where it may write.
    pub(crate) readonly: u8,
}

impl ServerFacts {
    /// What about the server stands in the way of any table.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let release = release(&self.version);
        if release.is_none_or(|release| release < OLDEST_VERSION) {
            problems.push(Problem::operator(
                "DESTINATION_VERSION_TOO_OLD",
                format!("the ClickHouse server has version {}", self.version),
                "upgrade it to 24.8 or later",
            ));
        }
        if self.readonly != 0 {
            problems.push(Problem::operator(
                "DESTINATION_READ_ONLY",
                format!("the user's settings profile has readonly = {}", self.readonly),
                "give the destination's user a profile with readonly = 0",
            ));
        }
        problems
    }
}

/// Year and month of a release.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Whether the database's engine can exchange tables.
pub(crate) fn database_problem(database: &str, engine: &str) -> Option<Problem> {
    (!EXCHANGING_ENGINES.contains(&engine)).then(|| {
        let quoted = quote_identifier(database);
        Problem::operator(
            "DESTINATION_DATABASE_ENGINE",
            format!("database {quoted} has the engine {engine}, which cannot exchange tables"),
            "name another database, or one that does not exist yet: it is then made",
        )
    })
}

/// What to say where rights are missing.
pub(crate) fn rights_problem(user: &str, missing: &[&str], on: &str) -> Option<Problem> {
    (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        Problem::operator(
            "DESTINATION_ACCESS_DENIED",
            format!("user '{user}' lacks {missing} on {on}"),
            format!("GRANT {missing} ON {on} TO {}", quote_identifier(user)),
        )
    })
}

/// A table as it stands in the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExistingTable {
    pub(crate) uuid: String,
    /// `ReplacingMergeTree`
    pub(crate) engine: String,
    /// `ReplacingMergeTree(v, d) ORDER BY id SETTINGS …`
    pub(crate) engine_full: String,
    /// Expressions of ORDER BY, separated by commas.
    pub(crate) sorting_key: String,
    pub(crate) comment: String,
    /// Zero also where the engine does not count rows.
    pub(crate) rows: u64,
    pub(crate) columns: Vec<ExistingColumn>,
}

/// A column as it stands in the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExistingColumn {
    pub(crate) name: String,
    pub(crate) column_type: String,
    /// Empty, `DEFAULT`, `MATERIALIZED`, `ALIAS` or `EPHEMERAL`.
    pub(crate) default_kind: String,
    pub(crate) partitions: bool,
}

/// Why an existing table cannot be the target; empty where it can. Further columns are no hindrance, they get their
/// defaults; neither is the order of columns.
pub(crate) fn differences(target: &TargetTable, existing: &ExistingTable) -> Vec<String> {
    let mut differences = Vec::new();
    let family = existing.engine.trim_start_matches("Replicated").trim_start_matches("Shared");
    let wanted = match target.engine {
        TableEngine::ReplacingMergeTree => "ReplacingMergeTree",
        TableEngine::MergeTree => "MergeTree",
        TableEngine::Null => "Null",
    };
    if family != wanted {
        differences.push(format!("its engine is {}, not {wanted}", existing.engine));
    } else if target.engine == TableEngine::ReplacingMergeTree {
        let (version, flag) = (&target.metadata.version, &target.metadata.is_deleted);
        let arguments = engine_arguments(&existing.engine_full);
        let ends_with = |columns: &[&String]| {
            arguments.len() >= columns.len()
                && arguments[arguments.len() - columns.len()..].iter().eq(columns.iter().copied())
        };
        if target.delete_on_merge && !ends_with(&[version, flag]) {
            differences.push(format!(
                "its engine's last arguments are not the columns {} and {}",
                quote_identifier(version),
                quote_identifier(flag)
            ));
        } else if !target.delete_on_merge && !ends_with(&[version]) {
            differences
                .push(format!("its engine's last argument is not the column {}", quote_identifier(version)));
        }
    }
    // `ORDER BY (id)` is kept with its parentheses, `ORDER BY (a, b)` without.
    let in_parentheses = existing.sorting_key.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let sorting_key = in_parentheses.unwrap_or(&existing.sorting_key);
    let same_key = sorting_key.is_empty() && target.sorting_key.is_empty()
        || parse_identifiers(sorting_key).as_ref() == Some(&target.sorting_key);
    if target.engine != TableEngine::Null && !same_key {
        let wanted =
            target.sorting_key.iter().map(|name| quote_identifier(name)).collect::<Vec<_>>().join(", ");
        differences.push(format!("its sorting key is ({sorting_key}), not ({wanted})"));
    }
    differences.extend(missing_columns(target, existing));
    // A row that changes its partition would leave its older versions behind.
    let moving = |column: &&ExistingColumn| {
        target.engine == TableEngine::ReplacingMergeTree
            && column.partitions
            && !target.sorting_key.contains(&column.name)
    };
    for column in existing.columns.iter().filter(moving) {
        let quoted = quote_identifier(&column.name);
        differences.push(format!("its partition key uses {quoted}, which is not in the sorting key"));
    }
    differences
}

/// Which columns of the target the existing table lacks, or has otherwise.
pub(crate) fn missing_columns(target: &TargetTable, existing: &ExistingTable) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, column_type) in target.columns() {
        let column_type = column_type.to_string();
        let quoted = quote_identifier(name);
        match existing.columns.iter().find(|column| column.name == name) {
            None => differences.push(format!("it has no column {quoted} of type {column_type}")),
            Some(found) if found.column_type != column_type => {
                differences.push(format!("its column {quoted} is {}, not {column_type}", found.column_type));
            }
            Some(found) if !matches!(found.default_kind.as_str(), "" | "DEFAULT") => {
                differences.push(format!("its column {quoted} is {}", found.default_kind));
            }
            Some(_) => {}
        }
    }
    differences
}

/// The names among the arguments of `Engine(a, 'b', c) …`, in order.
fn engine_arguments(engine_full: &str) -> Vec<String> {
    let Some(open) = engine_full.find('(') else { return Vec::new() };
    // Without arguments the first parenthesis belongs to something else.
    if engine_full[..open].contains(' ') {
        return Vec::new();
    }
    let rest = &engine_full[open + 1..];
    let mut arguments = Vec::new();
    let mut start = 0;
    let mut quote = None;
    let mut characters = rest.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => {
                characters.next();
            }
            (Some(delimiter), _) if character == delimiter => quote = None,
            (Some(_), _) => {}
            (None, '`' | '\'') => quote = Some(character),
            (None, ',' | ')') => {
                arguments.extend(parse_identifiers(&rest[start..at]).unwrap_or_default());
                start = at + 1;
                if character == ')' {
                    break;
                }
            }
            (None, _) => {}
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TableRef;
    use millrace_mapping::ColumnPlan;
    use millrace_model::spec::MetadataColumns;
    use millrace_model::{PgType, TableName};

    fn target() -> TargetTable {
        let column =
            |name: &str, target: &str| ColumnPlan::new(name, PgType::Text, false, target.parse().unwrap());
        TargetTable {
            source: TableName::new("public", "orders"),
            table: TableRef::new("shop", "orders"),
            columns: vec![column("id", "Int64"), column("price", "Decimal(12, 2)")],
            metadata: MetadataColumns::millrace(),
            sorting_key: vec!["id".to_owned()],
            engine: TableEngine::ReplacingMergeTree,
            partition_by: None,
            sharding: None,
            delete_on_merge: true,
        }
    }

    fn existing() -> ExistingTable {
        let column = |name: &str, column_type: &str| ExistingColumn {
            name: name.to_owned(),
            column_type: column_type.to_owned(),
            default_kind: String::new(),
            partitions: false,
        };
        ExistingTable {
            uuid: String::new(),
            engine: "ReplacingMergeTree".to_owned(),
            engine_full: "ReplacingMergeTree(_millrace_version, _millrace_is_deleted) ORDER BY id".to_owned(),
            sorting_key: "id".to_owned(),
            comment: String::new(),
            rows: 0,
            columns: vec![
                column("id", "Int64"),
                column("price", "Decimal(12, 2)"),
                column("_millrace_version", "UInt64"),
                column("_millrace_is_deleted", "UInt8"),
                column("_millrace_synced_at", "DateTime64(9)"),
            ],
        }
    }

    #[test]
    fn a_table_like_the_wanted_one_fits() {
        assert_eq!(differences(&target(), &existing()), [""; 0]);
        let mut table = existing();
        table.sorting_key = "(`id`)".to_owned();
        table.columns.reverse();
        table.columns[0].default_kind = "DEFAULT".to_owned();
        table.columns.push(ExistingColumn { name: "further".to_owned(), ..table.columns[0].clone() });
        table.engine = "ReplicatedReplacingMergeTree".to_owned();
        table.engine_full =
            "ReplicatedReplacingMergeTree('/a(,`b', '{replica}', `_millrace_version`, _millrace_is_deleted)"
                .to_owned();
        assert_eq!(differences(&target(), &table), [""; 0]);
    }

    #[test]
    fn everything_that_does_not_fit_is_said_at_once() {
        let mut table = existing();
        table.engine = "MergeTree".to_owned();
        table.sorting_key = "price, id".to_owned();
        table.columns[0].default_kind = "ALIAS".to_owned();
        table.columns[1].column_type = "Decimal(9, 2)".to_owned();
        table.columns[1].partitions = true;
        table.columns.pop();
        insta::assert_snapshot!(differences(&target(), &table).join("\n"), @r"
        its engine is MergeTree, not ReplacingMergeTree
        its sorting key is (price, id), not (`id`)
        its column `id` is ALIAS
        its column `price` is Decimal(9, 2), not Decimal(12, 2)
        it has no column `_millrace_synced_at` of type DateTime64(9)
        its partition key uses `price`, which is not in the sorting key
        ");
    }

    #[test]
    fn the_engine_must_take_version_and_flag() {
        for engine_full in [
            "ReplacingMergeTree ORDER BY (_millrace_version, _millrace_is_deleted)",
            "ReplacingMergeTree(_millrace_version) ORDER BY id",
            "ReplacingMergeTree(_millrace_is_deleted, _millrace_version) ORDER BY id",
        ] {
            let table = ExistingTable { engine_full: engine_full.to_owned(), ..existing() };
            assert_eq!(differences(&target(), &table).len(), 1, "{engine_full}");
        }
    }

    #[test]
    fn releases_before_24_8_and_read_only_users_are_refused() {
        let facts = |version: &str, readonly| ServerFacts {
            version: version.to_owned(),
            timezone: "UTC".to_owned(),
            time64: false,
            time64_setting: None,
            readonly,
        };
        let codes = |facts: ServerFacts| facts.problems().into_iter().map(|p| p.code).collect::<Vec<_>>();
        assert_eq!(codes(facts("24.8.4.13", 0)), [""; 0]);
        assert_eq!(codes(facts("26.7.2.1", 0)), [""; 0]);
        assert_eq!(codes(facts("24.7.9.1", 0)), ["DESTINATION_VERSION_TOO_OLD"]);
        assert_eq!(codes(facts("23.12.1", 2)), ["DESTINATION_VERSION_TOO_OLD", "DESTINATION_READ_ONLY"]);
        assert_eq!(codes(facts("head", 0)), ["DESTINATION_VERSION_TOO_OLD"]);
    }

    #[test]
    fn a_database_must_be_able_to_exchange_tables() {
        assert_eq!(database_problem("d", "Atomic"), None);
        let problem = database_problem("d", "Ordinary").map(|problem| problem.code);
        assert_eq!(problem.as_deref(), Some("DESTINATION_DATABASE_ENGINE"));
    }

    #[test]
    fn missing_rights_come_with_the_statement_that_grants_them() {
        assert_eq!(rights_problem("me", &[], "`d`.*"), None);
        let problem =
            rights_problem("me", &["INSERT", "ALTER DELETE"], "`d`.*").map(|problem| problem.remedy);
        assert_eq!(problem.as_deref(), Some("GRANT INSERT, ALTER DELETE ON `d`.* TO `me`"));
    }
}
