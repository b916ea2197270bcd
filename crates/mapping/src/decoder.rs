//! How the bytes of one value become the bytes of its column: chosen once per column, then one `match` per value.

use millrace_model::PgType;

use crate::ChType;
use crate::error::Fault;
use crate::native::put_string;
use crate::numeric::{Decimal, put_numeric_text};
use crate::{calendar, native};

/// The two forms in which PostgreSQL delivers a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Binary,
}

/// How well a value could be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// As it is.
    Exact,
    /// As the nearest value that the type holds.
    Altered,
    /// Not at all, and nothing was appended: the type has nothing like it.
    Impossible,
}

/// The conversion of one column's values. Both forms of a value give the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoder {
    Bool,
    Int16,
    Int32,
    Int64,
    UInt32,
    Float32,
    Float64,
    Decimal(Decimal),
    NumericText,
    /// Types whose binary form is their text.
    Text,
    Jsonb,
    Bytea,
    Uuid,
    Date,
    Timestamp,
    Time,
    TimeText,
    /// Types that are only read in text form.
    TextOnly,
    /// A pair that [`crate::plan_columns`] never makes.
    NoConversion,
}

impl Decoder {
    /// The conversion from a source type that is no array to a target that is neither Array, Nullable nor LowCardinality.
    pub(crate) fn choose(source: &PgType, target: &ChType) -> Self {
        match (source, target) {
            (PgType::Bool, ChType::Bool) => Self::Bool,
            (PgType::Int2, ChType::Int16) => Self::Int16,
            (PgType::Int4, ChType::Int32) => Self::Int32,
            (PgType::Int8, ChType::Int64) => Self::Int64,
            (PgType::Oid, ChType::UInt32) => Self::UInt32,
            (PgType::Float4, ChType::Float32) => Self::Float32,
            (PgType::Float8, ChType::Float64) => Self::Float64,
            (PgType::Numeric(_), ChType::Decimal { precision, scale }) => {
                Self::Decimal(Decimal { precision: *precision, scale: *scale })
            }
            (PgType::Numeric(_), ChType::String) => Self::NumericText,
            (PgType::Text | PgType::Json | PgType::Enum, ChType::String) => Self::Text,
            (PgType::Jsonb, ChType::String) => Self::Jsonb,
            (PgType::Bytea, ChType::String) => Self::Bytea,
            (PgType::Uuid, ChType::Uuid) => Self::Uuid,
            (PgType::Date, ChType::Date32) => Self::Date,
            (PgType::Timestamp | PgType::TimestampTz, ChType::DateTime64 { precision: 6, .. }) => {
                Self::Timestamp
            }
            (PgType::Time, ChType::Time64(6)) => Self::Time,
            (PgType::Time, ChType::String) => Self::TimeText,
            // Ways to other types than the default; values are asked for as text.
            (PgType::Int2, ChType::Int32) => Self::Int32,
            (PgType::Int2 | PgType::Int4 | PgType::Numeric(_), ChType::Int64) => Self::Int64,
            (PgType::Float4 | PgType::Numeric(_), ChType::Float64) => Self::Float64,
            (_, ChType::String) => Self::TextOnly,
            _ => Self::NoConversion,
        }
    }

    /// Whether what it writes is a String, with its length before it; everything else has [`Decoder::default_len`] bytes.
    pub(crate) fn writes_string(self) -> bool {
        matches!(
            self,
            Self::NumericText
                | Self::Text
                | Self::Jsonb
                | Self::Bytea
                | Self::TimeText
                | Self::TextOnly
                | Self::NoConversion
        )
    }

    /// Bytes of the target type's default value, all of which are zero in every type.
    pub(crate) fn default_len(self) -> usize {
        match self {
            Self::Bool
            | Self::NumericText
            | Self::Text
            | Self::Jsonb
            | Self::Bytea
            | Self::TimeText
            | Self::TextOnly
            | Self::NoConversion => 1,
            Self::Int16 => 2,
            Self::Int32 | Self::UInt32 | Self::Float32 | Self::Date => 4,
            Self::Int64 | Self::Float64 | Self::Timestamp | Self::Time => 8,
            Self::Uuid => 16,
            Self::Decimal(decimal) => decimal.width(),
        }
    }

    /// Appends a value. After a fault the tail of `out` is undefined and the caller cuts it off.
    #[inline]
    pub(crate) fn put(self, value: &[u8], form: Form, out: &mut Vec<u8>) -> Result<Fit, Fault> {
        match form {
            Form::Binary => self.put_binary(value, out),
            Form::Text => self.put_text(value, out),
        }
    }

    #[inline]
    fn put_binary(self, value: &[u8], out: &mut Vec<u8>) -> Result<Fit, Fault> {
        match self {
            Self::Bool => match value {
                [flag @ (0 | 1)] => out.push(*flag),
                _ => return Err(Fault::Malformed),
            },
            Self::Int16 => out.extend_from_slice(&i16::from_be_bytes(fixed(value)?).to_le_bytes()),
            Self::UInt32 => out.extend_from_slice(&u32::from_be_bytes(fixed(value)?).to_le_bytes()),
            // A column that was widened gets values of its narrower type when the stream is read again.
            Self::Int32 => {
                let number = match value.len() {
                    2 => i16::from_be_bytes(fixed(value)?).into(),
                    _ => i32::from_be_bytes(fixed(value)?),
                };
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Int64 => {
                let number = match value.len() {
                    2 => i16::from_be_bytes(fixed(value)?).into(),
                    4 => i32::from_be_bytes(fixed(value)?).into(),
                    _ => i64::from_be_bytes(fixed(value)?),
                };
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Float32 => put_float32(f32::from_be_bytes(fixed(value)?), out),
            Self::Float64 if value.len() == 4 => put_float64(f32::from_be_bytes(fixed(value)?).into(), out),
            Self::Float64 => put_float64(f64::from_be_bytes(fixed(value)?), out),
            Self::Decimal(decimal) => return decimal.put_binary(value, out),
            Self::NumericText => put_numeric_text(value, out)?,
            Self::Text => put_text(value, out),
            Self::Jsonb => match value {
                [1, text @ ..] => put_string(out, text),
                _ => return Err(Fault::Malformed),
            },
            Self::Bytea => put_string(out, value),
            Self::Uuid => put_uuid(fixed(value)?, out),
            Self::Date => {
                let (days, fit) = calendar::date_from_binary(i32::from_be_bytes(fixed(value)?));
                out.extend_from_slice(&days.to_le_bytes());
                return Ok(fit);
            }
            Self::Timestamp => {
                let (micros, fit) = calendar::timestamp_from_binary(i64::from_be_bytes(fixed(value)?));
                out.extend_from_slice(&micros.to_le_bytes());
                return Ok(fit);
            }
            Self::Time => {
                let micros = calendar::time_from_binary(i64::from_be_bytes(fixed(value)?))?;
                out.extend_from_slice(&micros.to_le_bytes());
            }
            Self::TimeText => {
                let micros = calendar::time_from_binary(i64::from_be_bytes(fixed(value)?))?;
                put_string(out, calendar::time_text(micros, &mut [0; 15]));
            }
            Self::TextOnly => return Err(Fault::NoBinaryForm),
            Self::NoConversion => return Err(Fault::NoConversion),
        }
        Ok(Fit::Exact)
    }

    fn put_text(self, value: &[u8], out: &mut Vec<u8>) -> Result<Fit, Fault> {
        match self {
            Self::Bool => match value {
                b"t" | b"true" => out.push(1),
                b"f" | b"false" => out.push(0),
                _ => return Err(Fault::Malformed),
            },
            Self::Int16 => out.extend_from_slice(&parse::<i16>(value)?.to_le_bytes()),
            Self::Int32 => out.extend_from_slice(&parse::<i32>(value)?.to_le_bytes()),
            Self::Int64 => out.extend_from_slice(&parse::<i64>(value)?.to_le_bytes()),
            Self::UInt32 => out.extend_from_slice(&parse::<u32>(value)?.to_le_bytes()),
            Self::Float32 => put_float32(parse(value)?, out),
            Self::Float64 => put_float64(parse(value)?, out),
            Self::Decimal(decimal) => return decimal.put_text(value, out),
            Self::NumericText | Self::Text | Self::Jsonb | Self::TimeText | Self::TextOnly => {
                put_string(out, value);
            }
            Self::Bytea => put_hex(value, out)?,
            Self::Uuid => put_uuid(uuid_from_text(value).ok_or(Fault::Malformed)?, out),
            Self::Date => {
                let (days, fit) = calendar::date_from_text(value)?;
                out.extend_from_slice(&days.to_le_bytes());
                return Ok(fit);
            }
            Self::Timestamp => {
                let (micros, fit) = calendar::timestamp_from_text(value)?;
                out.extend_from_slice(&micros.to_le_bytes());
                return Ok(fit);
            }
            Self::Time => out.extend_from_slice(&calendar::time_from_text(value)?.to_le_bytes()),
            Self::NoConversion => return Err(Fault::NoConversion),
        }
        Ok(Fit::Exact)
    }
}

#[inline]
fn fixed<const LENGTH: usize>(value: &[u8]) -> Result<[u8; LENGTH], Fault> {
    value.try_into().map_err(|_| Fault::Malformed)
}

fn parse<T: std::str::FromStr>(value: &[u8]) -> Result<T, Fault> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Fault::Malformed)
}

/// NaN has many bit patterns, of which text keeps none; one of them stands for all.
#[inline]
fn put_float32(value: f32, out: &mut Vec<u8>) {
    let value = if value.is_nan() { f32::NAN } else { value };
    out.extend_from_slice(&value.to_le_bytes());
}

#[inline]
fn put_float64(value: f64, out: &mut Vec<u8>) {
    let value = if value.is_nan() { f64::NAN } else { value };
    out.extend_from_slice(&value.to_le_bytes());
}

/// Text in binary form. A lone byte that is no UTF-8 text can only be of the type `"char"`, whose text form is empty for
/// zero and octal above ASCII.
#[inline]
fn put_text(value: &[u8], out: &mut Vec<u8>) {
    match value {
        [0] => put_string(out, b""),
        [byte @ 0x80..=0xff] => {
            let octal = |shift: u8| b'0' + (byte >> shift & 7);
            put_string(out, &[b'\\', octal(6), octal(3), octal(0)]);
        }
        _ => put_string(out, value),
    }
}

/// ClickHouse keeps a UUID as two 64-bit halves, each little-endian.
#[inline]
fn put_uuid(uuid: [u8; 16], out: &mut Vec<u8>) {
    let number = u128::from_be_bytes(uuid);
    out.extend_from_slice(&((number >> 64) as u64).to_le_bytes());
    out.extend_from_slice(&(number as u64).to_le_bytes());
}

fn uuid_from_text(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 {
        return None;
    }
    let mut number = 0u128;
    for (at, byte) in text.iter().enumerate() {
        match (at, byte) {
            (8 | 13 | 18 | 23, b'-') => {}
            (8 | 13 | 18 | 23, _) => return None,
            _ => number = number << 4 | u128::from(hex_digit(*byte)?),
        }
    }
    Some(number.to_be_bytes())
}

/// `bytea` in the hex format: `\x`, then two digits a byte.
fn put_hex(text: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let (pairs, odd) = text.strip_prefix(b"\\x").ok_or(Fault::Malformed)?.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(Fault::Malformed);
    }
    out.reserve(pairs.len() + 5);
    native::put_varuint(out, pairs.len());
    for [high, low] in pairs {
        let byte = hex_digit(*high).zip(hex_digit(*low)).map(|(high, low)| high << 4 | low);
        out.push(byte.ok_or(Fault::Malformed)?);
    }
    Ok(())
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}
