//! PostgreSQL's two forms of some values, written here independently of the product's readers.

/// Days from 1970-01-01 to 2000-01-01.
const POSTGRES_EPOCH_DAYS: i64 = 10_957;
/// Microseconds of a day.
pub const DAY: i64 = 86_400_000_000;

/// A numeric's binary form out of its decimal text: digits of base 10,000 grouped from the decimal point.
pub fn numeric_binary(text: &str) -> Vec<u8> {
    let special = match text {
        "NaN" => Some(0xc000u16),
        "Infinity" => Some(0xd000),
        "-Infinity" => Some(0xf000),
        _ => None,
    };
    if let Some(sign) = special {
        return [0, 0, sign, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    // `1e3` is not what PostgreSQL writes; its plain form is meant.
    let plain = digits.strip_suffix("e3").map(|digits| format!("{digits}000"));
    let digits = plain.as_deref().unwrap_or(digits);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let padded_whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let padded_fraction = format!("{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let mut weight = i16::try_from(padded_whole.len() / 4).unwrap_or(i16::MAX) - 1;
    let all = padded_whole + &padded_fraction;
    let group = |at: usize| all[4 * at..4 * at + 4].parse::<u16>().unwrap_or(0);
    let mut groups: Vec<u16> = (0..all.len() / 4).map(group).collect();
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let leading = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..leading);
    weight -= i16::try_from(leading).unwrap_or(0);
    if groups.is_empty() {
        weight = 0;
    }
    let sign = if negative && !groups.is_empty() { 0x4000 } else { 0 };
    let count = u16::try_from(groups.len()).unwrap_or(u16::MAX);
    let scale = u16::try_from(fraction.len()).unwrap_or(u16::MAX);
    [count, weight.cast_unsigned(), sign, scale]
        .into_iter()
        .chain(groups)
        .flat_map(u16::to_be_bytes)
        .collect()
}

/// A one-dimensional array in binary form; the element type's oid is not looked at by anybody.
pub fn array_binary(elements: &[Option<Vec<u8>>]) -> Vec<u8> {
    let holds_null = i32::from(elements.iter().any(Option::is_none));
    let mut out = Vec::new();
    let mut put = |number: i32| out.extend(number.to_be_bytes());
    put(i32::from(!elements.is_empty()));
    put(holds_null);
    put(25);
    if elements.is_empty() {
        return out;
    }
    put(i32::try_from(elements.len()).unwrap_or(i32::MAX));
    put(1);
    for element in elements {
        match element {
            None => out.extend((-1i32).to_be_bytes()),
            Some(value) => {
                out.extend(i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
                out.extend_from_slice(value);
            }
        }
    }
    out
}

/// A one-dimensional array in text form, quoted where PostgreSQL quotes.
pub fn array_text(elements: &[Option<Vec<u8>>], delimiter: u8) -> Vec<u8> {
    let mut out = vec![b'{'];
    for (at, element) in elements.iter().enumerate() {
        if at > 0 {
            out.push(delimiter);
        }
        let Some(value) = element else {
            out.extend_from_slice(b"NULL");
            continue;
        };
        let special = |byte: &u8| b"\"\\{} \t\n\r\x0b\x0c".contains(byte) || *byte == delimiter;
        if value.is_empty() || value.eq_ignore_ascii_case(b"null") || value.iter().any(special) {
            out.push(b'"');
            for byte in value {
                if matches!(byte, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(*byte);
            }
            out.push(b'"');
        } else {
            out.extend_from_slice(value);
        }
    }
    out.push(b'}');
    out
}

/// Pairs of an hstore, in the order in which they are given.
pub type Pairs = [(String, Option<String>)];

/// An hstore in binary form.
pub fn hstore_binary(pairs: &Pairs) -> Vec<u8> {
    let length = |length: usize| i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes();
    let mut out = length(pairs.len()).to_vec();
    for (key, value) in pairs {
        for field in [Some(key), value.as_ref()] {
            out.extend(field.map_or((-1i32).to_be_bytes(), |field| length(field.len())));
            out.extend(field.map_or(&[][..], |field| field.as_bytes()));
        }
    }
    out
}

/// An hstore in text form.
pub fn hstore_text(pairs: &Pairs) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let written = pairs.iter().map(|(key, value)| {
        let value = value.as_ref().map_or("NULL".to_owned(), |value| quoted(value));
        format!("{}=>{value}", quoted(key))
    });
    written.collect::<Vec<_>>().join(", ")
}

/// A day as PostgreSQL counts them (from 2000-01-01), in text form; the caller keeps to PostgreSQL's range.
pub fn date_text(days: i64) -> String {
    let (date, before_christ) = civil(days);
    format!("{date}{}", if before_christ { " BC" } else { "" })
}

/// Microseconds from 2000-01-01 in text form, with `zone` (empty or `+00`) behind the time.
pub fn timestamp_text(micros: i64, zone: &str) -> String {
    let (date, before_christ) = civil(micros.div_euclid(DAY));
    let time = time_text(micros.rem_euclid(DAY));
    format!("{date} {time}{zone}{}", if before_christ { " BC" } else { "" })
}

/// Microseconds from midnight in text form.
pub fn time_text(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if micros % 1_000_000 != 0 {
        text.push_str(format!(".{:06}", micros % 1_000_000).trim_end_matches('0'));
    }
    text
}

/// The proleptic Gregorian date, and whether its year is one before Christ.
fn civil(days: i64) -> (String, bool) {
    // Counted in eras of 400 years from 0000-03-01.
    let days = days + POSTGRES_EPOCH_DAYS + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let shown = if year > 0 { year } else { 1 - year };
    (format!("{shown:04}-{month:02}-{day:02}"), year <= 0)
}
