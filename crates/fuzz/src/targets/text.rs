//! Text forms: arrays, numerics, dates and times, intervals.
//!
//! Promises: no text makes a reader panic or leaves something behind; a value that is read structurally out of the input
//! and written in both forms gives the same block from both.

use millrace_mapping::{BlockBuilder, Cell};
use millrace_model::spec::MetadataColumns;
use millrace_model::{PgType, Timestamp};

use super::block::{Pair, joined};
use super::forms::{
    DAY, array_binary, array_text, date_text, hstore_binary, hstore_text, numeric_binary, time_text,
    timestamp_text,
};
use super::types::{Planning, plan};

/// The input is a text, and the raw material of values.
pub fn run(input: &[u8]) {
    let mut pair = Pair::new(&plan(&read_as_text(), Planning::numbered(0)));
    for part in [input, input.get(1..).unwrap_or_default()] {
        pair.cell(Cell::Text(part));
        assert_eq!(pair.end_row(1, false), Ok(()));
    }
    pair.finish();

    integers(input);
    dates_and_times(input);
    numerics(input);
    arrays(input);
    maps(input);
    vectors(input);
}

fn read_as_text() -> Vec<PgType> {
    let array = |element| PgType::Array(Box::new(element));
    vec![
        PgType::Numeric(None),
        PgType::Numeric(Some((38, 9))),
        PgType::Numeric(Some((76, 76))),
        PgType::Numeric(Some((3, -2))),
        PgType::Date,
        PgType::Timestamp,
        PgType::TimestampTz,
        PgType::Time,
        PgType::Float8,
        PgType::Uuid,
        PgType::Bytea,
        PgType::Other("interval".to_owned()),
        array(PgType::Text),
        array(PgType::Int4),
        array(PgType::Enum),
        array(PgType::Numeric(Some((9, 4)))),
        array(PgType::Timestamp),
        array(PgType::Other("interval".to_owned())),
        array(PgType::Other("box".to_owned())),
        PgType::Hstore,
        PgType::Vector,
        PgType::HalfVec,
        array(PgType::Hstore),
        array(PgType::Vector),
    ]
}

/// Both forms of one value give the same block.
fn same(pg_type: &PgType, text: &[u8], binary: &[u8]) {
    let columns = plan(std::slice::from_ref(pg_type), Planning::numbered(0));
    let block = |cell| {
        let mut builder = BlockBuilder::new(&columns, &MetadataColumns::millrace());
        builder.append_cell(0, cell)?;
        assert_eq!(builder.end_row(1, false), Ok(()));
        let block = builder.finish(Timestamp(0));
        Ok::<_, millrace_mapping::ValueError>((joined(&block), block.altered))
    };
    let (from_text, from_binary) = (block(Cell::Text(text)), block(Cell::Binary(binary)));
    let shown = String::from_utf8_lossy(text);
    assert_eq!(from_text, from_binary, "{pg_type:?}: {shown:?} and its binary form {binary:02x?} differ");
}

fn integers(input: &[u8]) {
    let number = first_eight(input);
    same(&PgType::Int8, number.to_string().as_bytes(), &number.to_be_bytes());
    let bits = number.cast_unsigned();
    let double = f64::from_bits(bits);
    // `Display` of a float gives enough digits to read the same again, as PostgreSQL does.
    let text =
        if double.is_infinite() { double.to_string().replace("inf", "Infinity") } else { double.to_string() };
    same(&PgType::Float8, text.as_bytes(), &double.to_be_bytes());
}

fn dates_and_times(input: &[u8]) {
    let number = first_eight(input);
    // From 4713 BC on, to the end of 294276; a modulus also gives many values within the years that ClickHouse has.
    for span in [i64::MAX, DAY * 366, DAY * 366 * 400] {
        let micros = (number % span).clamp(-211_813_488_000_000_000, 9_223_371_331_199_999_999);
        same(&PgType::Timestamp, timestamp_text(micros, "").as_bytes(), &micros.to_be_bytes());
        same(&PgType::TimestampTz, timestamp_text(micros, "+00").as_bytes(), &micros.to_be_bytes());
        let days = i32::try_from(micros.div_euclid(DAY)).unwrap_or(0);
        same(&PgType::Date, date_text(i64::from(days)).as_bytes(), &days.to_be_bytes());
        let of_day = number.rem_euclid(DAY + 1);
        same(&PgType::Time, time_text(of_day).as_bytes(), &of_day.to_be_bytes());
    }
}

/// The input's bytes as decimal digits; the first two bytes say how many stand where.
fn numerics(input: &[u8]) {
    let [first, second, digits @ ..] = input else { return };
    let digit = |at: usize| digits.get(at).map_or('0', |byte| char::from(b'0' + byte % 10));
    for (precision, scale) in [(9u16, 4u16), (38, 9), (76, 38), (1, 0), (76, 76), (0, 0)] {
        let declared = (precision > 0).then_some((precision, scale.cast_signed()));
        let (most_whole, fraction) = match declared {
            Some(_) => (precision - scale, usize::from(scale)),
            None => (400, usize::from(*second)),
        };
        let whole = usize::from(u16::from(*first) % (most_whole + 1));
        let text: String = (0..whole).map(digit).collect();
        let text = text.trim_start_matches('0');
        let mut text = if text.is_empty() { "0".to_owned() } else { text.to_owned() };
        if fraction > 0 {
            text.push('.');
            text.extend((whole..whole + fraction).map(digit));
        }
        // PostgreSQL has no negative zero.
        if first & 0x80 != 0 && text.bytes().any(|byte| matches!(byte, b'1'..=b'9')) {
            text.insert(0, '-');
        }
        same(&PgType::Numeric(declared), text.as_bytes(), &numeric_binary(&text));
    }
}

/// The input cut at its zero bytes; a lone 1 stands for NULL.
fn arrays(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let parts = text.as_bytes().split(|byte| *byte == 0);
    let elements: Vec<Option<Vec<u8>>> = parts.map(|part| (part != [1]).then(|| part.to_vec())).collect();
    for element in [PgType::Text, PgType::Enum, PgType::Json] {
        let array = PgType::Array(Box::new(element));
        same(&array, &array_text(&elements, b','), &array_binary(&elements));
    }
    let numbers: Vec<i32> = input.as_chunks::<4>().0.iter().map(|bytes| i32::from_be_bytes(*bytes)).collect();
    let texts: Vec<_> = numbers.iter().map(|number| Some(number.to_string().into_bytes())).collect();
    let binaries: Vec<_> = numbers.iter().map(|number| Some(number.to_be_bytes().to_vec())).collect();
    let array = PgType::Array(Box::new(PgType::Int4));
    same(&array, &array_text(&texts, b','), &array_binary(&binaries));
    let days: Vec<i32> = numbers.iter().map(|number| number % 700_000).collect();
    let texts: Vec<_> = days.iter().map(|day| Some(date_text(i64::from(*day)).into_bytes())).collect();
    let binaries: Vec<_> = days.iter().map(|day| Some(day.to_be_bytes().to_vec())).collect();
    same(&PgType::Array(Box::new(PgType::Date)), &array_text(&texts, b','), &array_binary(&binaries));
}

/// The input cut at its zero bytes into keys and values; a lone 1 stands for NULL.
fn maps(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let parts: Vec<&str> = text.split('\0').collect();
    let value = |part: &&str| (*part != "\u{1}").then(|| (*part).to_owned());
    let pairs: Vec<_> =
        parts.as_chunks::<2>().0.iter().map(|[key, part]| ((*key).to_owned(), value(part))).collect();
    let (text, binary) = (hstore_text(&pairs), hstore_binary(&pairs));
    same(&PgType::Hstore, text.as_bytes(), &binary);
    let array = PgType::Array(Box::new(PgType::Hstore));
    let (texts, binaries) = ([Some(text.into_bytes()), None], [Some(binary), None]);
    same(&array, &array_text(&texts, b','), &array_binary(&binaries));
}

/// The input's bytes as floats.
fn vectors(input: &[u8]) {
    let numbers = input.as_chunks::<4>().0.iter().map(|bytes| f32::from_be_bytes(*bytes));
    let numbers: Vec<f32> = numbers.filter(|number| number.is_finite()).collect();
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let mut binary = u16::try_from(numbers.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    binary.extend([0, 0]);
    binary.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    if numbers.len() <= usize::from(u16::MAX) {
        same(&PgType::Vector, format!("[{}]", texts.join(",")).as_bytes(), &binary);
    }
}

fn first_eight(input: &[u8]) -> i64 {
    let mut bytes = [0; 8];
    let length = input.len().min(8);
    bytes[..length].copy_from_slice(&input[..length]);
    i64::from_be_bytes(bytes)
}
