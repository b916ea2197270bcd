//! Dates and times: PostgreSQL counts from 2000-01-01, ClickHouse from 1970-01-01.
//!
//! ClickHouse's `Date32` and `DateTime64` hold the years 0000 to 9999 exactly, so those go through unchanged, although
//! its manual promises only 1900 to 2299 and dates that it reads from text stop there. What lies outside 0000 to 9999,
//! and `-infinity` and `infinity`, becomes the nearest end of the promised range: 1900-01-01 00:00:00 or
//! 2299-12-31 23:59:59.999999, which every server reads back as written and queries can name. Such values are counted.
//! So `infinity` stands below the rare values of the years 2300 to 9999.

use std::ops::RangeInclusive;

use crate::decoder::Fit;
use crate::error::Fault;

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Microseconds from 1970-01-01 to 2000-01-01.
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * MICROS_PER_DAY;

/// 0000-01-01 to 9999-12-31 in days since 1970-01-01: goes through unchanged.
const EXACT_DAYS: RangeInclusive<i32> = -719_528..=2_932_896;
/// 1900-01-01, in place of what lies before [`EXACT_DAYS`].
const LOWEST_DAY: i32 = -25_567;
/// 2299-12-31, in place of what lies after [`EXACT_DAYS`].
const HIGHEST_DAY: i32 = 120_529;

/// 0000-01-01 00:00:00 to 9999-12-31 23:59:59.999999 in microseconds since 1970-01-01.
const EXACT_MICROS: RangeInclusive<i64> =
    (*EXACT_DAYS.start() as i64 * MICROS_PER_DAY)..=((*EXACT_DAYS.end() as i64 + 1) * MICROS_PER_DAY - 1);
const LOWEST_MICROS: i64 = LOWEST_DAY as i64 * MICROS_PER_DAY;
const HIGHEST_MICROS: i64 = (HIGHEST_DAY as i64 + 1) * MICROS_PER_DAY - 1;

/// `date`, binary: days since 2000-01-01; the extremes of the integer are the infinities.
#[inline]
pub(crate) fn date_from_binary(days: i32) -> (i32, Fit) {
    fit_days(i64::from(days) + i64::from(EPOCH_DAYS))
}

fn fit_days(days: i64) -> (i32, Fit) {
    match i32::try_from(days) {
        Ok(days) if EXACT_DAYS.contains(&days) => (days, Fit::Exact),
        _ if days < 0 => (LOWEST_DAY, Fit::Altered),
        _ => (HIGHEST_DAY, Fit::Altered),
    }
}

/// `timestamp` and `timestamptz`, binary: microseconds since 2000-01-01 00:00:00 (UTC); the extremes are the infinities.
#[inline]
pub(crate) fn timestamp_from_binary(micros: i64) -> (i64, Fit) {
    fit_micros(micros.saturating_add(EPOCH_MICROS))
}

#[inline]
fn fit_micros(micros: i64) -> (i64, Fit) {
    if EXACT_MICROS.contains(&micros) {
        (micros, Fit::Exact)
    } else if micros < 0 {
        (LOWEST_MICROS, Fit::Altered)
    } else {
        (HIGHEST_MICROS, Fit::Altered)
    }
}

/// `date`, text: `2024-02-29`, `0044-03-15 BC`, `infinity`.
pub(crate) fn date_from_text(text: &[u8]) -> Result<(i32, Fit), Fault> {
    match text {
        b"infinity" => return Ok((HIGHEST_DAY, Fit::Altered)),
        b"-infinity" => return Ok((LOWEST_DAY, Fit::Altered)),
        _ => {}
    }
    let (text, before_christ) = strip_era(text);
    let mut reader = Reader(text);
    let days = reader.date(before_christ).filter(|_| reader.0.is_empty()).ok_or(Fault::Malformed)?;
    Ok(fit_days(days))
}

/// `timestamp` and `timestamptz`, text: `2024-02-29 12:00:00.5+00`, `0044-03-15 00:00:00 BC`, `infinity`. Without an offset it is UTC.
pub(crate) fn timestamp_from_text(text: &[u8]) -> Result<(i64, Fit), Fault> {
    match text {
        b"infinity" => return Ok((HIGHEST_MICROS, Fit::Altered)),
        b"-infinity" => return Ok((LOWEST_MICROS, Fit::Altered)),
        _ => {}
    }
    let (text, before_christ) = strip_era(text);
    let mut reader = Reader(text);
    let micros = reader.timestamp(before_christ).filter(|_| reader.0.is_empty()).ok_or(Fault::Malformed)?;
    Ok(fit_micros(micros))
}

/// `time`, binary: microseconds since midnight, up to 24:00:00.
pub(crate) fn time_from_binary(micros: i64) -> Result<i64, Fault> {
    if (0..=MICROS_PER_DAY).contains(&micros) { Ok(micros) } else { Err(Fault::Malformed) }
}

/// `time`, text: `12:34:56.789`.
pub(crate) fn time_from_text(text: &[u8]) -> Result<i64, Fault> {
    let mut reader = Reader(text);
    let micros = reader.time().filter(|_| reader.0.is_empty()).ok_or(Fault::Malformed)?;
    time_from_binary(micros)
}

/// `time` as PostgreSQL writes it: no fraction where it is zero, else without trailing zeros. Takes at most 15 bytes.
pub(crate) fn time_text(micros: i64, buffer: &mut [u8; 15]) -> &[u8] {
    let mut put = |at: usize, digits: usize, number: i64| {
        let mut rest = number;
        for place in buffer.iter_mut().skip(at).take(digits).rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    };
    let seconds = micros / 1_000_000;
    put(0, 2, seconds / 3600);
    put(3, 2, seconds / 60 % 60);
    put(6, 2, seconds % 60);
    put(9, 6, micros % 1_000_000);
    buffer[2] = b':';
    buffer[5] = b':';
    buffer[8] = b'.';
    let mut text = &buffer[..];
    if micros % 1_000_000 == 0 {
        return &text[..8];
    }
    while let [rest @ .., b'0'] = text {
        text = rest;
    }
    text
}

fn strip_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar; the year 0 is 1 BC.
/// Counts years from March, so that the leap day is a year's last, and in eras of 400 years (146,097 days).
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// What is left to read of a text.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// A number of `least` to `most` digits.
    fn number(&mut self, least: usize, most: usize) -> Option<i64> {
        let mut number = 0;
        let mut digits = 0;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0
            && digits < most
        {
            number = number * 10 + i64::from(digit - b'0');
            digits += 1;
            self.0 = rest;
        }
        (digits >= least).then_some(number)
    }

    fn number_up_to(&mut self, limit: i64) -> Option<i64> {
        self.number(2, 2).filter(|number| *number <= limit)
    }

    fn skip(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        (*first == byte).then(|| self.0 = rest)
    }

    /// Days since 1970-01-01. PostgreSQL's years have at most seven digits, so nothing here overflows.
    fn date(&mut self, before_christ: bool) -> Option<i64> {
        let year = self.number(4, 7)?;
        self.skip(b'-')?;
        let month = self.number_up_to(12).filter(|month| *month > 0)?;
        self.skip(b'-')?;
        let day = self.number_up_to(31).filter(|day| *day > 0)?;
        let year = if before_christ { 1 - year } else { year };
        Some(days_from_civil(year, month, day))
    }

    /// Microseconds since midnight.
    fn time(&mut self) -> Option<i64> {
        let hours = self.number_up_to(24)?;
        self.skip(b':')?;
        let minutes = self.number_up_to(59)?;
        self.skip(b':')?;
        let seconds = self.number_up_to(59)?;
        let mut micros = 0;
        if self.skip(b'.').is_some() {
            let before = self.0.len();
            let fraction = self.number(1, 6)?;
            let digits = before - self.0.len();
            micros = fraction * [0, 100_000, 10_000, 1_000, 100, 10, 1].get(digits)?;
        }
        Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros)
    }

    /// Seconds east of Greenwich: `+00`, `-03:30`, `+00:19:32`; none is UTC.
    fn offset(&mut self) -> Option<i64> {
        let sign = match self.0 {
            [] => return Some(0),
            [b'+', rest @ ..] => {
                self.0 = rest;
                1
            }
            [b'-', rest @ ..] => {
                self.0 = rest;
                -1
            }
            _ => return None,
        };
        let mut seconds = self.number(2, 2)? * 3600;
        for unit in [60, 1] {
            if self.skip(b':').is_some() {
                seconds += self.number_up_to(59)? * unit;
            }
        }
        Some(sign * seconds)
    }

    /// Microseconds since 1970-01-01 00:00:00 UTC; saturates where 64 bits do not reach, which lies outside the exact range.
    fn timestamp(&mut self, before_christ: bool) -> Option<i64> {
        let days = self.date(before_christ)?;
        self.skip(b' ')?;
        let time = self.time()?;
        let offset = self.offset()?;
        Some(days.saturating_mul(MICROS_PER_DAY).saturating_add(time - offset * 1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_the_dates_that_they_are_said_to_be() {
        assert_eq!(days_from_civil(1970, 1, 1), 0);
        assert_eq!(days_from_civil(2000, 1, 1), i64::from(EPOCH_DAYS));
        assert_eq!(days_from_civil(0, 1, 1), i64::from(*EXACT_DAYS.start()));
        assert_eq!(days_from_civil(9999, 12, 31), i64::from(*EXACT_DAYS.end()));
        assert_eq!(days_from_civil(1900, 1, 1), i64::from(LOWEST_DAY));
        assert_eq!(days_from_civil(2299, 12, 31), i64::from(HIGHEST_DAY));
    }

    #[test]
    fn dates_outside_the_years_0000_to_9999_are_clamped_and_said_so() {
        assert_eq!(date_from_text(b"0001-12-31 BC"), Ok((*EXACT_DAYS.start() + 365, Fit::Exact)));
        assert_eq!(date_from_text(b"0002-12-31 BC"), Ok((LOWEST_DAY, Fit::Altered)));
        assert_eq!(date_from_text(b"9999-12-31"), Ok((*EXACT_DAYS.end(), Fit::Exact)));
        assert_eq!(date_from_text(b"10000-01-01"), Ok((HIGHEST_DAY, Fit::Altered)));
        assert_eq!(date_from_text(b"5874897-12-31"), Ok((HIGHEST_DAY, Fit::Altered)));
        assert_eq!(date_from_binary(i32::MAX), (HIGHEST_DAY, Fit::Altered));
        assert_eq!(date_from_binary(i32::MIN), (LOWEST_DAY, Fit::Altered));
        assert_eq!(date_from_binary(0), (EPOCH_DAYS, Fit::Exact));
    }

    #[test]
    fn timestamps_outside_the_years_0000_to_9999_are_clamped_and_said_so() {
        let last = EXACT_MICROS.end();
        assert_eq!(timestamp_from_text(b"9999-12-31 23:59:59.999999+00"), Ok((*last, Fit::Exact)));
        assert_eq!(timestamp_from_text(b"9999-12-31 23:59:59.999999-01"), Ok((HIGHEST_MICROS, Fit::Altered)));
        assert_eq!(
            timestamp_from_text(b"294276-12-31 23:59:59.999999+00"),
            Ok((HIGHEST_MICROS, Fit::Altered))
        );
        assert_eq!(timestamp_from_text(b"4713-01-01 00:00:00 BC"), Ok((LOWEST_MICROS, Fit::Altered)));
        assert_eq!(
            timestamp_from_text(b"0001-01-01 00:00:00+00 BC"),
            Ok((*EXACT_MICROS.start(), Fit::Exact))
        );
        assert_eq!(timestamp_from_binary(i64::MAX), (HIGHEST_MICROS, Fit::Altered));
        assert_eq!(timestamp_from_binary(i64::MIN), (LOWEST_MICROS, Fit::Altered));
        assert_eq!(timestamp_from_text(b"-infinity"), Ok((LOWEST_MICROS, Fit::Altered)));
    }

    #[test]
    fn offsets_may_have_minutes_and_seconds() {
        let noon = timestamp_from_text(b"1970-01-01 12:00:00").unwrap().0;
        for text in ["1970-01-01 13:30:00+01:30", "1970-01-01 12:19:32+00:19:32", "1970-01-01 09:00:00-03"] {
            assert_eq!(timestamp_from_text(text.as_bytes()), Ok((noon, Fit::Exact)), "{text}");
        }
    }

    #[test]
    fn times_are_written_as_postgresql_writes_them() {
        let mut buffer = [0; 15];
        for (micros, text) in [
            (0, "00:00:00"),
            (MICROS_PER_DAY, "24:00:00"),
            (45_296_789_000, "12:34:56.789"),
            (1, "00:00:00.000001"),
            (500_000, "00:00:00.5"),
        ] {
            assert_eq!(std::str::from_utf8(time_text(micros, &mut buffer)), Ok(text));
            assert_eq!(time_from_text(text.as_bytes()), Ok(micros));
        }
        assert_eq!(time_from_text(b"24:00:01"), Err(Fault::Malformed));
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "2024",
            "2024-13-01",
            "2024-00-01",
            "2024-01-32",
            "24-01-01",
            "2024-01-01x",
            "12345678-01-01",
        ] {
            assert_eq!(date_from_text(text.as_bytes()), Err(Fault::Malformed), "{text}");
        }
        for text in
            ["2024-01-01", "2024-01-01 1:00:00", "2024-01-01 01:00:00.", "2024-01-01 01:00:00.1234567"]
        {
            assert_eq!(timestamp_from_text(text.as_bytes()), Err(Fault::Malformed), "{text}");
        }
    }
}
