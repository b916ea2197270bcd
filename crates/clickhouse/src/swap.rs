//! A table that was copied anew takes the place of the one before.

use millrace_model::PipeId;
use millrace_model::work::Swap;

use crate::cluster::distributed_engine;
use crate::inspection::ExistingTable;
use crate::table::ownership_comment;
use crate::{Destination, Error, Failure, TableRef};

impl Destination {
    /// Gives the new table the name, so that readers see the old one until it is complete and the new one from then on; the old one goes under another name,
    /// to be dropped. Nothing may be on its way to the old table.
    ///
    /// EXCHANGE a second time would swap back. So both tables are told by their UUIDs: what was done already, by whomever, shows and is not
    /// done again, and the old table's leaving its name at once makes an EXCHANGE that comes late fail. In a cluster, whose hosts
    /// do it each in its time, two renames take the place of the exchange: for a moment a reader may find no table.
    ///
    /// # Errors
    /// [`Error::NotOurs`] where another table has taken the name meanwhile, [`Error::Swap`] where a statement fails or a table is gone. Repeating is harmless.
    pub async fn swap(&self, swap: &Swap, owner: &PipeId) -> Result<(), Error> {
        let (target, copied) = (self.table(&swap.target), self.table(&swap.copied));
        let retired = self.table(&Swap::retired_name(&swap.copied));
        // What keeps the rows is swapped.
        let [kept, kept_copy, kept_retired] = [&target, &copied, &retired].map(|table| self.local(table));
        let failed = |source| Error::Swap { table: target.clone(), source };
        let known = |table: &ExistingTable| {
            table.comment == ownership_comment(owner) || swap.replaces.as_ref() == Some(&table.uuid)
        };
        let on_cluster = self.topology().await.map_err(failed)?.on_cluster();
        match self.existing(&kept).await? {
            Some(standing) if standing.uuid == swap.uuid => {}
            Some(standing) if !known(&standing) => return Err(Error::NotOurs { table: target }),
            standing => {
                self.require(&kept_copy, &swap.uuid).await?;
                let sql = match standing {
                    None => format!("RENAME TABLE {kept_copy} TO {kept}{on_cluster}"),
                    Some(_) if on_cluster.is_empty() => format!("EXCHANGE TABLES {kept} AND {kept_copy}"),
                    // A host that comes to it late, or twice, would undo an exchange; these names fit only once.
                    Some(_) => {
                        format!("RENAME TABLE {kept} TO {kept_retired}, {kept_copy} TO {kept}{on_cluster}")
                    }
                };
                self.structural(&sql).await.map_err(failed)?;
            }
        }
        if let Some(left) = self.existing(&kept_copy).await?
            && left.uuid != swap.uuid
        {
            let sql = format!("RENAME TABLE {kept_copy} TO {kept_retired}{on_cluster}");
            self.structural(&sql).await.map_err(failed)?;
        }
        self.require(&kept, &swap.uuid).await?;
        self.swap_lead(&target, &copied, owner).await
    }

    /// The table before those that keep the rows follows them: it spreads rows as the one before the copy did.
    async fn swap_lead(&self, target: &TableRef, copied: &TableRef, owner: &PipeId) -> Result<(), Error> {
        let Some(cluster) = self.cluster.as_ref().filter(|cluster| cluster.sharded) else { return Ok(()) };
        let failed = |source| Error::Swap { table: target.clone(), source };
        // Where it is gone, this was done before.
        let Some(lead) = self.existing(copied).await? else { return Ok(()) };
        let leads_to_copy = distributed_engine(cluster, &self.local(copied));
        let expression =
            lead.engine_full.strip_prefix(&leads_to_copy).and_then(|rest| rest.strip_suffix(')'));
        let Some(expression) = expression else {
            let what = format!("the engine of {copied} is {}, not {leads_to_copy}…)", lead.engine_full);
            return Err(failed(Failure::Exchange(what.into())));
        };
        self.lead(target, expression, owner).await.map_err(failed)?;
        self.drop_everywhere(copied).await.map_err(failed)
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

    async fn structural(&self, sql: &str) -> Result<(), Failure> {
        self.change(sql, &[], self.connection.options.table_timeout).await
    }
}
