//! ClickHouse's types, as far as Millrace makes columns of them.

use std::fmt;
use std::str::FromStr;

/// A ClickHouse type. Written as ClickHouse writes it in `system.columns`, so that texts can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ChType {
    /// `Bool`, one byte, 0 or 1.
    Bool,
    /// `Int16`
    Int16,
    /// `Int32`
    Int32,
    /// `Int64`
    Int64,
    /// `UInt8`
    UInt8,
    /// `UInt32`
    UInt32,
    /// `UInt64`
    UInt64,
    /// `Float32`
    Float32,
    /// `Float64`
    Float64,
    /// `Decimal(precision, scale)`: 4, 8, 16 or 32 bytes for up to 9, 18, 38 and 76 digits.
    Decimal {
        /// Digits in all, 1 to 76.
        precision: u8,
        /// Digits after the point, 0 to `precision`.
        scale: u8,
    },
    /// `String`: any bytes.
    String,
    /// `UUID`
    Uuid,
    /// `Date32`: days since 1970-01-01 in four bytes.
    Date32,
    /// `DateTime64(precision)` or `DateTime64(precision, 'UTC')`: ticks since 1970-01-01 00:00:00 UTC in eight bytes.
    DateTime64 {
        /// Decimal digits of the fraction of a second, 0 to 9.
        precision: u8,
        /// Whether it reads as UTC; otherwise in the server's time zone.
        utc: bool,
    },
    /// `Time64(precision)`: ticks since midnight in eight bytes.
    Time64(u8),
    /// `LowCardinality(T)` of a plain or nullable type.
    LowCardinality(Box<ChType>),
    /// `Nullable(T)` of a plain type.
    Nullable(Box<ChType>),
    /// `Array(T)`
    Array(Box<ChType>),
    /// `Map(K, V)`
    Map(Box<ChType>, Box<ChType>),
}

impl ChType {
    /// `Nullable(inner)`.
    pub fn nullable(inner: ChType) -> Self {
        Self::Nullable(Box::new(inner))
    }

    /// `LowCardinality(inner)`.
    pub fn low_cardinality(inner: ChType) -> Self {
        Self::LowCardinality(Box::new(inner))
    }

    /// `Array(inner)`.
    pub fn array(inner: ChType) -> Self {
        Self::Array(Box::new(inner))
    }

    /// `Map(key, value)`.
    pub fn map(key: ChType, value: ChType) -> Self {
        Self::Map(Box::new(key), Box::new(value))
    }

    /// Whether a column of it can hold NULL itself; an array of nullable elements cannot.
    pub fn holds_null(&self) -> bool {
        match self {
            Self::Nullable(_) => true,
            Self::LowCardinality(inner) => inner.holds_null(),
            _ => false,
        }
    }
}

impl fmt::Display for ChType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("Bool"),
            Self::Int16 => f.write_str("Int16"),
            Self::Int32 => f.write_str("Int32"),
            Self::Int64 => f.write_str("Int64"),
            Self::UInt8 => f.write_str("UInt8"),
            Self::UInt32 => f.write_str("UInt32"),
            Self::UInt64 => f.write_str("UInt64"),
            Self::Float32 => f.write_str("Float32"),
            Self::Float64 => f.write_str("Float64"),
            Self::Decimal { precision, scale } => write!(f, "Decimal({precision}, {scale})"),
            Self::String => f.write_str("String"),
            Self::Uuid => f.write_str("UUID"),
            Self::Date32 => f.write_str("Date32"),
            Self::DateTime64 { precision, utc: false } => write!(f, "DateTime64({precision})"),
            Self::DateTime64 { precision, utc: true } => write!(f, "DateTime64({precision}, 'UTC')"),
            Self::Time64(precision) => write!(f, "Time64({precision})"),
            Self::LowCardinality(inner) => write!(f, "LowCardinality({inner})"),
            Self::Nullable(inner) => write!(f, "Nullable({inner})"),
            Self::Array(inner) => write!(f, "Array({inner})"),
            Self::Map(key, value) => write!(f, "Map({key}, {value})"),
        }
    }
}

/// The text is no type that Millrace makes columns of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a ClickHouse type that Millrace writes")]
pub struct UnknownType(String);

impl FromStr for ChType {
    type Err = UnknownType;

    fn from_str(text: &str) -> Result<Self, UnknownType> {
        parse(text.trim(), 0).ok_or_else(|| UnknownType(text.to_owned()))
    }
}

/// Deeper nesting than any legal type has ends the reading, whatever the text is.
const MAX_DEPTH: usize = 8;

fn parse(text: &str, depth: usize) -> Option<ChType> {
    if depth > MAX_DEPTH {
        return None;
    }
    let Some((name, rest)) = text.split_once('(') else {
        return Some(match text {
            "Bool" => ChType::Bool,
            "Int16" => ChType::Int16,
            "Int32" => ChType::Int32,
            "Int64" => ChType::Int64,
            "UInt8" => ChType::UInt8,
            "UInt32" => ChType::UInt32,
            "UInt64" => ChType::UInt64,
            "Float32" => ChType::Float32,
            "Float64" => ChType::Float64,
            "String" => ChType::String,
            "UUID" => ChType::Uuid,
            "Date32" => ChType::Date32,
            _ => return None,
        });
    };
    let arguments = rest.strip_suffix(')')?;
    let nested = || parse(arguments, depth + 1).map(Box::new);
    let fraction = |digits: &str| digits.trim().parse::<u8>().ok().filter(|digits| *digits <= 9);
    match name {
        "Nullable" => nested().map(ChType::Nullable),
        "LowCardinality" => nested().map(ChType::LowCardinality),
        "Array" => nested().map(ChType::Array),
        "Map" => {
            // No type that can be a key has a comma in it that matters here.
            let (key, value) = arguments.split_once(',')?;
            Some(ChType::map(parse(key.trim(), depth + 1)?, parse(value.trim(), depth + 1)?))
        }
        "Time64" => fraction(arguments).map(ChType::Time64),
        "DateTime64" => match arguments.split_once(',') {
            None => Some(ChType::DateTime64 { precision: fraction(arguments)?, utc: false }),
            Some((digits, zone)) if zone.trim() == "'UTC'" => {
                Some(ChType::DateTime64 { precision: fraction(digits)?, utc: true })
            }
            Some(_) => None,
        },
        "Decimal" => {
            let (precision, scale) = arguments.split_once(',')?;
            let precision = precision.trim().parse().ok()?;
            let scale = scale.trim().parse().ok()?;
            ((1..=76).contains(&precision) && scale <= precision)
                .then_some(ChType::Decimal { precision, scale })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "Bool",
            "Int16",
            "Int32",
            "Int64",
            "UInt8",
            "UInt32",
            "UInt64",
            "Float32",
            "Float64",
            "String",
            "UUID",
            "Date32",
            "Decimal(12, 2)",
            "Decimal(76, 76)",
            "DateTime64(9)",
            "DateTime64(6, 'UTC')",
            "Time64(6)",
            "Nullable(Decimal(38, 0))",
            "LowCardinality(Nullable(String))",
            "Array(LowCardinality(Nullable(String)))",
            "Map(String, Nullable(String))",
            "Array(Map(Int32, Decimal(12, 2)))",
        ] {
            assert_eq!(text.parse::<ChType>().map(|read| read.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn other_types_are_refused() {
        let deep = format!("{}Bool{}", "Array(".repeat(100), ")".repeat(100));
        for text in [
            "",
            "Int8",
            "Nullable",
            "Nullable(",
            "Nullable()",
            "Decimal(77, 0)",
            "Decimal(2, 3)",
            "Decimal(0, 0)",
            "Decimal(9)",
            "DateTime64(6, 'Europe/Berlin')",
            "DateTime64(10)",
            "Map(String)",
            "Map(String, )",
            "Map(, String)",
            &deep,
        ] {
            assert!(text.parse::<ChType>().is_err(), "{text}");
        }
    }
}
