//! A table that was copied anew takes the place of the one before.

use millrace_model::PipeId;
use millrace_model::work::Swap;

use crate::inspection::ExistingTable;
use crate::table::ownership_comment;
use crate::{Destination, Error, Failure, TableRef};

impl Destination {
    /// Gives the new table the name, so that readers see the old one until it is complete and the new one from then on; the old one goes under another name,
    /// to be dropped. Nothing may be on its way to the old table.
    ///
    /// EXCHANGE a second time would swap back. So both tables are told by their UUIDs: what was done already, by whomever, shows and is not
    /// done again, and the old table's leaving its name at once makes an EXCHANGE that comes late fail.
    ///
    /// # Errors
    /// [`Error::NotOurs`] where another table has taken the name meanwhile, [`Error::Swap`] where a statement fails or a table is gone. Repeating is harmless.
    pub async fn swap(&self, swap: &Swap, owner: &PipeId) -> Result<(), Error> {
        let (target, copied) = (self.table(&swap.target), self.table(&swap.copied));
        let failed = |source| Error::Swap { table: target.clone(), source };
        let known = |table: &ExistingTable| {
            table.comment == ownership_comment(owner) || swap.replaces.as_ref() == Some(&table.uuid)
        };
        match self.existing(&target).await? {
            Some(standing) if standing.uuid == swap.uuid => {}
            Some(standing) if !known(&standing) => return Err(Error::NotOurs { table: target }),
            standing => {
                self.require(&copied, &swap.uuid).await?;
                let sql = match standing {
                    Some(_) => format!("EXCHANGE TABLES {target} AND {copied}"),
                    None => format!("RENAME TABLE {copied} TO {target}"),
                };
                self.statement(&sql).await.map_err(failed)?;
            }
        }
        if let Some(left) = self.existing(&copied).await?
            && left.uuid != swap.uuid
        {
            let retired = self.table(&Swap::retired_name(&swap.copied));
            self.statement(&format!("RENAME TABLE {copied} TO {retired}")).await.map_err(failed)?;
        }
        self.require(&target, &swap.uuid).await
    }

    async fn require(&self, table: &TableRef, uuid: &str) -> Result<(), Error> {
        match self.existing(table).await? {
            Some(standing) if standing.uuid == uuid => Ok(()),
            _ => {
                let gone = format!("the table with the UUID {uuid} is not there");
                Err(Error::Swap { table: table.clone(), source: Failure::Exchange(gone.into()) })
            }
        }
    }

    async fn statement(&self, sql: &str) -> Result<(), Failure> {
        self.connection.execute(sql, &[], self.connection.options.table_timeout).await
    }
}
