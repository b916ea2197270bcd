//! Values as people know a row by them.

use std::fmt::Write as _;

use millrace_mapping::ChType;
use millrace_mapping::row_binary::take_value;

/// A key's values, `(1, 'a')` or `1`, from their `RowBinary`.
pub(super) fn key(columns: &[ChType], bytes: &[u8]) -> String {
    let mut rest = bytes;
    let values: Vec<String> = columns
        .iter()
        .map(|column| take_value(column, &mut rest).map_or_else(String::new, |bytes| value(column, bytes)))
        .collect();
    match values.as_slice() {
        [value] => value.clone(),
        values => format!("({})", values.join(", ")),
    }
}

/// The integer that a value holds, where its type is one.
pub(super) fn integer(column: &ChType, bytes: &[u8]) -> Option<i64> {
    match column {
        ChType::Nullable(inner) => match bytes.split_first()? {
            (0, rest) => integer(inner, rest),
            _ => None,
        },
        ChType::Int16 => Some(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        ChType::Int32 => Some(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        ChType::Int64 => Some(i64::from_le_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

fn value(column: &ChType, bytes: &[u8]) -> String {
    if let Some(number) = integer(column, bytes) {
        return number.to_string();
    }
    match column {
        ChType::Nullable(inner) => match bytes.split_first() {
            Some((0, rest)) => value(inner, rest),
            _ => "NULL".to_owned(),
        },
        ChType::LowCardinality(inner) => value(inner, bytes),
        ChType::Bool => if bytes == [1] { "true" } else { "false" }.to_owned(),
        ChType::UInt32 => {
            bytes.try_into().map(u32::from_le_bytes).map_or_else(|_| hex(bytes), |n| n.to_string())
        }
        ChType::String => {
            // Its length stands before it.
            let begin = bytes.iter().position(|byte| byte & 0x80 == 0).map_or(0, |at| at + 1);
            format!("{:?}", String::from_utf8_lossy(bytes.get(begin..).unwrap_or_default()))
        }
        ChType::Uuid => match bytes.first_chunk::<16>() {
            // Two halves, each with its lowest byte first.
            Some(halves) => {
                let mut digits = String::new();
                for (at, byte) in halves[..8].iter().rev().chain(halves[8..].iter().rev()).enumerate() {
                    if matches!(at, 4 | 6 | 8 | 10) {
                        digits.push('-');
                    }
                    let _ = write!(digits, "{byte:02x}");
                }
                digits
            }
            None => hex(bytes),
        },
        ChType::Date32 => match bytes.try_into().map(i32::from_le_bytes) {
            Ok(days) => date(days.into()),
            Err(_) => hex(bytes),
        },
        ChType::DateTime64 { precision, .. } => match bytes.try_into().map(i64::from_le_bytes) {
            Ok(ticks) => {
                let second = 10_i64.pow((*precision).min(9).into());
                let (seconds, fraction) = (ticks.div_euclid(second), ticks.rem_euclid(second));
                let of_day = seconds.rem_euclid(86_400);
                let (hour, minute) = (of_day / 3600, of_day / 60 % 60);
                let fraction = if *precision == 0 {
                    String::new()
                } else {
                    format!(".{fraction:0width$}", width = usize::from(*precision))
                };
                let day = date(seconds.div_euclid(86_400));
                format!("{day} {hour:02}:{minute:02}:{:02}{fraction}", of_day % 60)
            }
            Err(_) => hex(bytes),
        },
        ChType::Decimal { scale, .. } if bytes.len() <= 16 => {
            let mut wide =
                if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { [0xff; 16] } else { [0; 16] };
            wide[..bytes.len()].copy_from_slice(bytes);
            let number = i128::from_le_bytes(wide);
            let digits = format!("{:0width$}", number.unsigned_abs(), width = usize::from(*scale) + 1);
            let (whole, fraction) = digits.split_at(digits.len() - usize::from(*scale));
            let (sign, point) = (if number < 0 { "-" } else { "" }, if *scale > 0 { "." } else { "" });
            format!("{sign}{whole}{point}{fraction}")
        }
        _ => hex(bytes),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Days since 1970-01-01 in the Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn date(days: i64) -> String {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_as_they_are_written() {
        let cases: [(&[&str], &[u8], &str); 9] = [
            (&["Int64"], &(-5_i64).to_le_bytes(), "-5"),
            (&["Int32", "String"], &[7, 0, 0, 0, 2, b'o', b'k'], "(7, \"ok\")"),
            (&["Nullable(String)"], &[1], "NULL"),
            (&["Bool"], &[1], "true"),
            (&["Date32"], &20_000_i32.to_le_bytes(), "2024-10-04"),
            (&["Date32"], &(-1_i32).to_le_bytes(), "1969-12-31"),
            (&["DateTime64(6, 'UTC')"], &(-1_i64).to_le_bytes(), "1969-12-31 23:59:59.999999"),
            (&["Decimal(9, 2)"], &(-105_i32).to_le_bytes(), "-1.05"),
            (
                &["UUID"],
                &[
                    0xd4, 0x41, 0x9b, 0xe2, 0x00, 0x84, 0x0e, 0x55, 0x00, 0x00, 0x44, 0x55, 0x66, 0x44, 0x16,
                    0xa7,
                ],
                "550e8400-e29b-41d4-a716-446655440000",
            ),
        ];
        for (types, bytes, shown) in cases {
            let types: Vec<ChType> = types.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(key(&types, bytes), shown);
        }
    }
}
