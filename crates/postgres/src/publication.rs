//! Whether a publication that somebody else made fits a pipe (manual: "CREATE PUBLICATION").

use std::collections::BTreeMap;

use millrace_model::spec::TableSpec;
use millrace_model::{PipeSpec, Problem, TableName};

use crate::discovery::{Found, Kind};
use crate::error::Error;
use crate::quoting::{quote_identifier, quote_table};
use crate::session::{Session, get};

/// A publication, as far as it bears on a pipe.
#[derive(Debug)]
struct Publication {
    every_change: bool,
    via_root: bool,
    tables: BTreeMap<TableName, Published>,
}

/// What it publishes of one table. Filters exist from version 15 on.
#[derive(Debug, Default)]
struct Published {
    /// `None` where all columns are published.
    columns: Option<Vec<String>>,
    filtered: bool,
}

/// Everything that keeps the named publication from carrying the pipe's tables.
///
/// # Errors
/// A statement fails.
pub(crate) async fn problems(
    session: &Session,
    name: &str,
    spec: &PipeSpec,
    found: &[Found],
    server_version: u32,
) -> Result<Vec<Problem>, Error> {
    let publication = read(session, name, server_version).await?;
    let known = |table: &TableSpec| found.iter().find(|found| found.definition.name == table.source);
    let tables: Vec<(&TableSpec, &Found)> =
        spec.tables.iter().filter_map(|table| Some((table, known(table)?))).collect();
    Ok(differences(name, publication.as_ref(), &tables))
}

async fn read(session: &Session, name: &str, server_version: u32) -> Result<Option<Publication>, Error> {
    let what = "to tell about the publication";
    let sql = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_publication WHERE pubname = $1";
    let rows = session.rows(what, sql, &[&name]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    // Where no list was given attnames holds all columns.
    let filters = if server_version >= 150_000 {
        "CASE WHEN r.prattrs IS NOT NULL THEN t.attnames::text[] END, t.rowfilter IS NOT NULL"
    } else {
        "NULL::text[], false"
    };
    let sql = format!(
        "SELECT t.schemaname::text, t.tablename::text, {filters} FROM pg_publication_tables t \
         JOIN pg_publication p ON p.pubname = t.pubname \
         JOIN pg_namespace n ON n.nspname = t.schemaname \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename \
         LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
         WHERE t.pubname = $1"
    );
    let mut tables = BTreeMap::new();
    for row in session.rows(what, &sql, &[&name]).await? {
        let table = TableName::new(get::<String>(&row, 0, what)?, get::<String>(&row, 1, what)?);
        tables.insert(table, Published { columns: get(&row, 2, what)?, filtered: get(&row, 3, what)? });
    }
    Ok(Some(Publication { every_change: get(row, 0, what)?, via_root: get(row, 1, what)?, tables }))
}

fn differences(
    name: &str,
    publication: Option<&Publication>,
    tables: &[(&TableSpec, &Found)],
) -> Vec<Problem> {
    let quoted = quote_identifier(name);
    let Some(publication) = publication else {
        let list: Vec<String> = tables.iter().map(|(table, _)| quote_table(&table.source)).collect();
        let of_what = if list.is_empty() {
            "FOR ALL TABLES".to_owned()
        } else {
            format!("FOR TABLE {}", list.join(", "))
        };
        let remedy = format!(
            "run CREATE PUBLICATION {quoted} {of_what} WITH (publish_via_partition_root = true), or leave settings.publicationName out"
        );
        return vec![Problem::operator(
            "PUBLICATION_MISSING",
            format!("publication {name} does not exist"),
            remedy,
        )];
    };
    let incomplete =
        |message: String, remedy: String| Problem::operator("PUBLICATION_INCOMPLETE", message, remedy);
    let mut problems = Vec::new();
    if !publication.every_change {
        problems.push(incomplete(
            format!("publication {name} does not publish every kind of change"),
            format!("run ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')"),
        ));
    }
    for (table, found) in tables {
        let source = quote_table(&table.source);
        if found.kind == Kind::Partitioned && !publication.via_root {
            problems.push(
                incomplete(
                    format!("publication {name} publishes changes under the names of partitions"),
                    format!("run ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true)"),
                )
                .of_table(&table.source),
            );
            // What it will then publish shows once that is done.
            continue;
        }
        let Some(published) = publication.tables.get(&table.source) else {
            problems.push(
                incomplete(
                    format!("publication {name} does not publish it"),
                    format!("run ALTER PUBLICATION {quoted} ADD TABLE {source}"),
                )
                .of_table(&table.source),
            );
            continue;
        };
        let anew = format!(
            "run ALTER PUBLICATION {quoted} DROP TABLE {source}; ALTER PUBLICATION {quoted} ADD TABLE {source}"
        );
        if published.filtered {
            let message = format!("publication {name} leaves out rows of it (a WHERE clause)");
            problems.push(incomplete(message, anew.clone()).of_table(&table.source));
        }
        let wanted =
            found.definition.columns.iter().filter(|column| !column.generated).map(|column| &column.name);
        let wanted = wanted.filter(|name| !table.excluded_columns.contains(name));
        let lacking: Vec<String> = match &published.columns {
            None => Vec::new(),
            Some(columns) => {
                wanted.filter(|name| !columns.contains(name)).map(|name| format!("{name:?}")).collect()
            }
        };
        if !lacking.is_empty() {
            let message = format!("publication {name} leaves out columns of it: {}", lacking.join(", "));
            let remedy = format!("{anew}; or name the columns under excludedColumns");
            problems.push(incomplete(message, remedy).of_table(&table.source));
        }
    }
    problems
}
