//! Values read back from ClickHouse in its `RowBinary` format: where one ends and the next begins.

use crate::ChType;

/// Takes the bytes of one value of the type off the front. `None` where they are cut short or the type has another form.
pub fn take_value<'a>(column_type: &ChType, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let whole = *bytes;
    skip(column_type, bytes)?;
    whole.get(..whole.len() - bytes.len())
}

fn skip(column_type: &ChType, bytes: &mut &[u8]) -> Option<()> {
    match column_type {
        ChType::Nullable(inner) => match take(bytes, 1)? {
            [0] => skip(inner, bytes),
            _ => Some(()),
        },
        ChType::LowCardinality(inner) => skip(inner, bytes),
        ChType::Array(inner) => {
            for _ in 0..take_varint(bytes)? {
                skip(inner, bytes)?;
            }
            Some(())
        }
        ChType::Map(key, value) => {
            for _ in 0..take_varint(bytes)? {
                skip(key, bytes)?;
                skip(value, bytes)?;
            }
            Some(())
        }
        ChType::String => {
            let length = take_varint(bytes)?;
            take(bytes, length).map(drop)
        }
        ChType::Bool | ChType::UInt8 => take(bytes, 1).map(drop),
        ChType::Int16 => take(bytes, 2).map(drop),
        ChType::Int32 | ChType::UInt32 | ChType::Float32 | ChType::Date32 => take(bytes, 4).map(drop),
        ChType::Int64 | ChType::UInt64 | ChType::Float64 | ChType::DateTime64 { .. } | ChType::Time64(_) => {
            take(bytes, 8).map(drop)
        }
        ChType::Uuid => take(bytes, 16).map(drop),
        ChType::Decimal { precision, .. } => {
            let width = match precision {
                0..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                _ => 32,
            };
            take(bytes, width).map(drop)
        }
    }
}

/// Takes bytes off the front.
pub(crate) fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// Takes a LEB128 number off the front.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take(bytes, 1)? else { return None };
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return usize::try_from(number).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_their_type_says() {
        let cases: [(&str, &[u8]); 7] = [
            ("Nullable(String)", &[0, 3, b'a', b'b', b'c']),
            ("Nullable(String)", &[1]),
            ("Array(Nullable(Int16))", &[2, 0, 7, 0, 1]),
            ("LowCardinality(Nullable(String))", &[0, 1, b'x']),
            ("Decimal(12, 2)", &[1, 0, 0, 0, 0, 0, 0, 0]),
            ("Array(Array(String))", &[1, 2, 0, 1, b'y']),
            ("Map(String, Nullable(String))", &[2, 1, b'a', 0, 1, b'b', 1, b'c', 1]),
        ];
        for (text, value) in cases {
            let column_type: ChType = text.parse().unwrap();
            let bytes = [value, &[9, 9]].concat();
            let mut rest = &bytes[..];
            assert_eq!(take_value(&column_type, &mut rest), Some(value), "{text}");
            assert_eq!(rest, [9, 9]);
            for short in 0..value.len() {
                assert_eq!(take_value(&column_type, &mut &value[..short]), None, "{text}");
            }
        }
    }
}
