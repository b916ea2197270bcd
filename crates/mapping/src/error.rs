//! What can be wrong with values, in words for the people who must deal with it.

/// Why a value cannot be written to its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An unchanged TOAST value, which the change stream does not carry; whoever builds the row must find it elsewhere.
    #[error("the change stream does not carry this unchanged value")]
    Unchanged,
    /// NULL out of a column that was planned as NOT NULL.
    #[error("the value is NULL, but the column was NOT NULL when the pipe last looked")]
    Null,
    /// The block has no such column.
    #[error("the block has no such column")]
    NoColumn,
    /// The row has a value for this column already.
    #[error("the row has a value for this column already")]
    Repeated,
    /// No conversion between these two types is known.
    #[error("there is no conversion between these types")]
    NoConversion,
    /// The type is only read in its text form.
    #[error("the value came in binary form, but this type is only read as text")]
    NoBinaryForm,
    /// Not the form that values of the source type have.
    #[error("the value's bytes are not of the form that its source type has")]
    Malformed,
    /// A numeric with more digits than its declaration has.
    #[error("the numeric has more digits than the column's type")]
    Digits,
    /// A value beyond what the type holds, where the policy is to stop.
    #[error("the value is beyond what the column's type holds, and outOfRange is stop")]
    OutOfRange,
    /// A multi-dimensional array, which the column's type would flatten.
    #[error("the value is a multi-dimensional array, which the column's type cannot hold")]
    Dimensions,
}

/// A value that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column '{column}', on its way to {target}: {fault}")]
pub struct ValueError {
    /// The column's name, or its number where the block has none such.
    pub column: String,
    /// The destination type's text; empty where there is no such column.
    pub target: String,
    /// What is wrong.
    pub fault: Fault,
}

impl ValueError {
    /// What to do about it, for people; empty where only a new look at the source's schema or a report of the fault helps.
    pub fn remedy(&self) -> &'static str {
        match self.fault {
            Fault::Dimensions => "set columnTypes for the column to String, or name it under excludedColumns",
            Fault::OutOfRange => {
                "choose outOfRange: clamp or null for the column (for one by which rows are told apart: columnTypes: String), or mend the row"
            }
            Fault::Unchanged => "set REPLICA IDENTITY FULL on the table",
            Fault::Null => "the column's definition has changed; copy the table anew",
            Fault::Digits => "choose a Decimal with more digits, or String, under columnTypes",
            Fault::NoColumn
            | Fault::Repeated
            | Fault::NoConversion
            | Fault::NoBinaryForm
            | Fault::Malformed => "",
        }
    }
}

/// A row that cannot be written. The block is as it was before the row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Not as many fields as columns.
    #[error("the row has {found} fields, but {expected} columns were planned")]
    FieldCount {
        /// Columns of the block.
        expected: usize,
        /// Fields of the row.
        found: usize,
    },
    /// The tuple ends within a field, or goes on after the last one.
    #[error("the tuple's length does not agree with the lengths of its fields")]
    TupleLength,
    /// A value.
    #[error(transparent)]
    Value(#[from] ValueError),
}
