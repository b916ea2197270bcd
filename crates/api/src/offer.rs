//! A table as a source offers it: what `validate` and `source tables` show.

use millrace_model::{Problem, ReplicaIdentity, TableDefinition, TableName};

use crate::problem::{problems_in, problems_out, table};
use crate::proto::pipe::v1 as wire;
use crate::violation::ProtocolError;

/// A table of a source and what stands in the way of copying it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedTable {
    /// Its name.
    pub name: TableName,
    /// Rows as the planner believes; 0 where unknown.
    pub rows_estimated: u64,
    /// Size with TOAST, without indexes.
    pub bytes: u64,
    /// Columns by which rows are told apart; empty where there are none.
    pub key: Vec<String>,
    /// What old values the change stream carries.
    pub replica_identity: ReplicaIdentity,
    /// Its columns in order.
    pub columns: Vec<OfferedColumn>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A column of an [`OfferedTable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedColumn {
    /// Its name.
    pub name: String,
    /// Its type as SQL writes it.
    pub type_name: String,
    /// Whether NULL can occur.
    pub nullable: bool,
}

impl OfferedTable {
    /// A table as it was found, with its problems.
    pub fn new(definition: &TableDefinition, problems: Vec<Problem>) -> Self {
        let column = |column: &millrace_model::SourceColumn| OfferedColumn {
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            nullable: column.nullable,
        };
        Self {
            name: definition.name.clone(),
            rows_estimated: definition.estimated_rows,
            bytes: definition.bytes,
            key: definition.key.clone(),
            replica_identity: definition.replica_identity,
            columns: definition.columns.iter().map(column).collect(),
            problems,
        }
    }
}

impl From<&OfferedTable> for wire::SourceTable {
    fn from(offered: &OfferedTable) -> Self {
        let column = |column: &OfferedColumn| wire::SourceColumn {
            name: column.name.clone(),
            r#type: column.type_name.clone(),
            nullable: column.nullable,
        };
        let replica_identity = match offered.replica_identity {
            ReplicaIdentity::Default => "default",
            ReplicaIdentity::Index => "index",
            ReplicaIdentity::Full => "full",
            ReplicaIdentity::Nothing => "nothing",
        };
        Self {
            name: offered.name.to_string(),
            rows_estimated: offered.rows_estimated,
            bytes: offered.bytes,
            key: offered.key.clone(),
            replica_identity: replica_identity.to_owned(),
            columns: offered.columns.iter().map(column).collect(),
            problems: problems_out(&offered.problems),
        }
    }
}

impl TryFrom<wire::SourceTable> for OfferedTable {
    type Error = ProtocolError;

    fn try_from(offered: wire::SourceTable) -> Result<Self, ProtocolError> {
        let replica_identity = match offered.replica_identity.as_str() {
            "default" => ReplicaIdentity::Default,
            "index" => ReplicaIdentity::Index,
            "full" => ReplicaIdentity::Full,
            "nothing" => ReplicaIdentity::Nothing,
            other => return Err(ProtocolError::at("replicaIdentity", format!("'{other}' is not known"))),
        };
        let column = |column: wire::SourceColumn| OfferedColumn {
            name: column.name,
            type_name: column.r#type,
            nullable: column.nullable,
        };
        Ok(Self {
            name: table("name", &offered.name)?,
            rows_estimated: offered.rows_estimated,
            bytes: offered.bytes,
            key: offered.key,
            replica_identity,
            columns: offered.columns.into_iter().map(column).collect(),
            problems: problems_in("problems", offered.problems)?,
        })
    }
}
