//! Letting a table's columns follow those of its source.

use millrace_mapping::evolution::Alteration;
use millrace_model::PipeId;

use crate::cluster::sharding_expression;
use crate::quoting::{quote_identifier, quote_string};
use crate::{Destination, Error, TargetTable};

impl Destination {
    /// Changes the columns of a table, one after another, and waits until each change is done on all replicas. `target` is the table as it
    /// is to be. What was done before is recognised, so that all of it can be repeated after a crash.
    ///
    /// # Errors
    /// The table is gone, or ClickHouse refuses a change: columns of the sorting key cannot be changed, for instance.
    pub async fn alter_columns(
        &self,
        target: &TargetTable,
        alterations: &[Alteration],
        owner: &PipeId,
    ) -> Result<(), Error> {
        let table = &target.table;
        let failed = |source| Error::Alter { table: table.clone(), source };
        let (local, on_cluster) = (self.local(table), self.topology().await.map_err(failed)?.on_cluster());
        let time64 = if target.holds_time64() { self.server().await?.time64_setting } else { None };
        let mut settings = vec![("mutations_sync", "2"), ("alter_sync", "2")];
        settings.extend(time64.iter().map(|name| (name.as_str(), "1")));
        for alteration in alterations {
            let sql = format!("ALTER TABLE {local}{on_cluster} {}", clause(target, alteration));
            let timeout = self.connection.options.table_timeout;
            self.change(&sql, &settings, timeout).await.map_err(failed)?;
        }
        match sharding_expression(target) {
            Some(expression) if !alterations.is_empty() => {
                self.lead(table, &expression, owner).await.map_err(failed)
            }
            _ => Ok(()),
        }
    }
}

fn clause(target: &TargetTable, alteration: &Alteration) -> String {
    let planned = |name: &str| {
        let column = target.columns.iter().find(|column| column.name == name);
        column.map_or(String::new(), |column| column.target.to_string())
    };
    match alteration {
        Alteration::Add { name, backfill } => {
            let column_type = planned(name);
            let default = backfill.as_ref().map(|value| {
                format!(" DEFAULT CAST({}, {})", quote_string(value), quote_string(&column_type))
            });
            // Before the metadata columns, where a new table would have it.
            let before = target.columns.iter().take_while(|column| column.name != *name).last();
            let place = before
                .map_or(" FIRST".to_owned(), |before| format!(" AFTER {}", quote_identifier(&before.name)));
            let name = quote_identifier(name);
            format!("ADD COLUMN IF NOT EXISTS {name} {column_type}{}{place}", default.unwrap_or_default())
        }
        Alteration::Drop { name } => format!("DROP COLUMN IF EXISTS {}", quote_identifier(name)),
        Alteration::Rename { from, to } => {
            format!("RENAME COLUMN IF EXISTS {} TO {}", quote_identifier(from), quote_identifier(to))
        }
        Alteration::Retype { name } => {
            format!("MODIFY COLUMN {} {}", quote_identifier(name), planned(name))
        }
    }
}
