//! `numeric`: PostgreSQL's groups of four decimal digits, ClickHouse's scaled integers, and PostgreSQL's text.

use crate::decoder::Fit;
use crate::error::Fault;
use crate::native::{put_string, put_varuint};

/// The largest display scale (manual: "Arbitrary Precision Numbers").
const MAX_SCALE: u16 = 0x3fff;
const POWERS: [u64; 5] = [1, 10, 100, 1_000, 10_000];

/// A Decimal's digits: 1 to 76 in all, of which `scale` after the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decimal {
    pub(crate) precision: u8,
    pub(crate) scale: u8,
}

impl Decimal {
    /// Bytes that a value takes.
    pub(crate) fn width(self) -> usize {
        match self.precision {
            ..=9 => 4,
            10..=18 => 8,
            19..=38 => 16,
            39.. => 32,
        }
    }

    /// Appends a value of binary form. NaN leaves nothing behind, the infinities the type's extremes.
    #[inline]
    pub(crate) fn put_binary(self, value: &[u8], out: &mut Vec<u8>) -> Result<Fit, Fault> {
        let numeric = Numeric::parse(value)?;
        match numeric.sign {
            Sign::NaN => return Ok(Fit::Impossible),
            Sign::Infinite { negative } => return Ok(self.put_extreme(negative, out)),
            Sign::Finite { negative } => match self.precision {
                ..=9 => out.extend_from_slice(&signed_32(numeric.scaled::<u64>(self)?, negative)),
                10..=18 => out.extend_from_slice(&signed_64(numeric.scaled::<u64>(self)?, negative)),
                19..=38 => out.extend_from_slice(&signed_128(numeric.scaled::<u128>(self)?, negative)),
                39.. => out.extend_from_slice(&numeric.scaled::<Wide>(self)?.signed(negative)),
            },
        }
        Ok(Fit::Exact)
    }

    /// Appends a value of text form, likewise.
    pub(crate) fn put_text(self, text: &[u8], out: &mut Vec<u8>) -> Result<Fit, Fault> {
        match text {
            b"NaN" => return Ok(Fit::Impossible),
            b"Infinity" => return Ok(self.put_extreme(false, out)),
            b"-Infinity" => return Ok(self.put_extreme(true, out)),
            _ => {}
        }
        let (digits, negative) = match text.strip_prefix(b"-") {
            Some(digits) => (digits, true),
            None => (text, false),
        };
        self.put_digits(digits, negative, out)?;
        Ok(Fit::Exact)
    }

    fn put_extreme(self, negative: bool, out: &mut Vec<u8>) -> Fit {
        let whole = Decimal { scale: 0, ..self };
        // As many nines as the type has digits always fit.
        let nines = [b'9'; 76];
        match whole.put_digits(nines.get(..usize::from(self.precision)).unwrap_or(&nines), negative, out) {
            Ok(()) => Fit::Altered,
            Err(_) => Fit::Impossible,
        }
    }

    fn put_digits(self, digits: &[u8], negative: bool, out: &mut Vec<u8>) -> Result<(), Fault> {
        match self.precision {
            ..=9 => out.extend_from_slice(&signed_32(self.scaled_text::<u64>(digits)?, negative)),
            10..=18 => out.extend_from_slice(&signed_64(self.scaled_text::<u64>(digits)?, negative)),
            19..=38 => out.extend_from_slice(&signed_128(self.scaled_text::<u128>(digits)?, negative)),
            39.. => out.extend_from_slice(&self.scaled_text::<Wide>(digits)?.signed(negative)),
        }
        Ok(())
    }

    /// `12.5` as the integer 1250, where the scale is 2.
    fn scaled_text<M: Magnitude>(self, text: &[u8]) -> Result<M, Fault> {
        let point = text.iter().position(|byte| *byte == b'.');
        let (mut whole, fraction) = match point.and_then(|at| text.split_at_checked(at)) {
            Some((whole, [_, fraction @ ..])) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(Fault::Malformed),
            None => (text, &[][..]),
        };
        if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
            return Err(Fault::Malformed);
        }
        while let [b'0', rest @ ..] = whole {
            whole = rest;
        }
        let scale = usize::from(self.scale);
        let (fraction, beyond) = fraction.split_at_checked(scale).unwrap_or((fraction, &[]));
        if whole.len() + scale > usize::from(self.precision) || beyond.iter().any(|digit| *digit != b'0') {
            return Err(Fault::Digits);
        }
        let mut magnitude = M::ZERO;
        for digit in whole.iter().chain(fraction) {
            magnitude = magnitude.then(10, u64::from(digit - b'0'));
        }
        for _ in fraction.len()..scale {
            magnitude = magnitude.then(10, 0);
        }
        Ok(magnitude)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Finite { negative: bool },
    Infinite { negative: bool },
    NaN,
}

/// A numeric in the binary form of `numeric_send`: counts of groups, weight of the first, sign, display scale, groups.
#[derive(Debug, Clone, Copy)]
struct Numeric<'a> {
    sign: Sign,
    /// The first group counts ten thousand to this power.
    weight: i32,
    /// Decimal digits that are shown after the point.
    display_scale: u16,
    /// Groups of four decimal digits, each below 10,000, big-endian.
    groups: &'a [[u8; 2]],
}

impl<'a> Numeric<'a> {
    #[inline]
    fn parse(value: &'a [u8]) -> Result<Self, Fault> {
        let (header, rest) = value.split_first_chunk::<8>().ok_or(Fault::Malformed)?;
        let [n0, n1, w0, w1, s0, s1, d0, d1] = *header;
        let (groups, odd) = rest.as_chunks::<2>();
        let display_scale = u16::from_be_bytes([d0, d1]);
        let sound = groups.len() == usize::from(u16::from_be_bytes([n0, n1]))
            && odd.is_empty()
            && display_scale <= MAX_SCALE
            && groups.iter().all(|group| u16::from_be_bytes(*group) < 10_000);
        let sign = match u16::from_be_bytes([s0, s1]) {
            _ if !sound => return Err(Fault::Malformed),
            0x0000 => Sign::Finite { negative: false },
            0x4000 => Sign::Finite { negative: true },
            0xc000 => Sign::NaN,
            0xd000 => Sign::Infinite { negative: false },
            0xf000 => Sign::Infinite { negative: true },
            _ => return Err(Fault::Malformed),
        };
        Ok(Self { sign, weight: i32::from(i16::from_be_bytes([w0, w1])), display_scale, groups })
    }

    /// The absolute value times ten to the scale.
    #[inline]
    fn scaled<M: Magnitude>(self, decimal: Decimal) -> Result<M, Fault> {
        let Numeric { mut weight, mut groups, .. } = self;
        while let [[0, 0], rest @ ..] = groups {
            groups = rest;
            weight -= 1;
        }
        let Some(first) = groups.first() else {
            return Ok(M::ZERO);
        };
        let scale = i32::from(decimal.scale);
        let first_digits = decimal_digits(u16::from_be_bytes(*first)) as i32;
        // This check also bounds the loop below and keeps the magnitude within its width.
        if weight >= 0 && weight * 4 + first_digits + scale > i32::from(decimal.precision) {
            return Err(Fault::Digits);
        }
        let mut rest = groups.iter().map(|group| u64::from(u16::from_be_bytes(*group)));
        let mut magnitude = M::ZERO;
        let complete = weight + 1 + scale / 4;
        for _ in 0..complete {
            magnitude = magnitude.then(10_000, rest.next().unwrap_or(0));
        }
        let partial = (scale % 4) as usize;
        if partial > 0 && complete >= 0 {
            let group = rest.next().unwrap_or(0);
            let beyond = POWERS[4 - partial];
            if !group.is_multiple_of(beyond) {
                return Err(Fault::Digits);
            }
            magnitude = magnitude.then(POWERS[partial], group / beyond);
        }
        if rest.any(|group| group != 0) {
            return Err(Fault::Digits);
        }
        Ok(magnitude)
    }

    /// Appends the digits of a finite numeric, with its sign, as a String value.
    fn put_digits(self, negative: bool, out: &mut Vec<u8>) {
        let group = |exponent: i32| -> u16 {
            let at = usize::try_from(self.weight - exponent).ok();
            at.and_then(|at| self.groups.get(at)).map_or(0, |group| u16::from_be_bytes(*group))
        };
        // Zero has the weight 0 and no groups; below one, a single zero stands before the point.
        let first = if self.weight >= 0 { group(self.weight) } else { 0 };
        let highest = self.weight.max(0);
        let scale = usize::from(self.display_scale);
        let whole_digits = decimal_digits(first) + highest as usize * 4;
        let length = usize::from(negative) + whole_digits + if scale > 0 { scale + 1 } else { 0 };

        out.reserve(length + 5);
        put_varuint(out, length);
        let end = out.len() + length;
        if negative {
            out.push(b'-');
        }
        out.extend_from_slice(&four_digits(first)[4 - decimal_digits(first)..]);
        for exponent in (0..highest).rev() {
            out.extend_from_slice(&four_digits(group(exponent)));
        }
        if scale > 0 {
            out.push(b'.');
            for exponent in 1..=scale.div_ceil(4) as i32 {
                out.extend_from_slice(&four_digits(group(-exponent)));
            }
            out.truncate(end);
        }
    }
}

fn decimal_digits(group: u16) -> usize {
    match group {
        ..10 => 1,
        10..100 => 2,
        100..1_000 => 3,
        1_000.. => 4,
    }
}

/// Appends a String value that holds the numeric as `numeric_out` writes it.
pub(crate) fn put_numeric_text(value: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let numeric = Numeric::parse(value)?;
    match numeric.sign {
        Sign::NaN => put_string(out, b"NaN"),
        Sign::Infinite { negative: false } => put_string(out, b"Infinity"),
        Sign::Infinite { negative: true } => put_string(out, b"-Infinity"),
        Sign::Finite { negative } => numeric.put_digits(negative, out),
    }
    Ok(())
}

fn four_digits(group: u16) -> [u8; 4] {
    let digit = |power: u16| b'0' + (group / power % 10) as u8;
    [digit(1_000), digit(100), digit(10), digit(1)]
}

/// An unsigned number that is wide enough for the digits that its caller has counted.
trait Magnitude: Copy {
    const ZERO: Self;
    /// `self * factor + digits`.
    fn then(self, factor: u64, digits: u64) -> Self;
}

impl Magnitude for u64 {
    const ZERO: Self = 0;
    #[inline]
    fn then(self, factor: u64, digits: u64) -> Self {
        self.wrapping_mul(factor).wrapping_add(digits)
    }
}

impl Magnitude for u128 {
    const ZERO: Self = 0;
    #[inline]
    fn then(self, factor: u64, digits: u64) -> Self {
        self.wrapping_mul(u128::from(factor)).wrapping_add(u128::from(digits))
    }
}

/// 256 bits, lowest limb first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wide([u64; 4]);

impl Magnitude for Wide {
    const ZERO: Self = Wide([0; 4]);
    fn then(self, factor: u64, digits: u64) -> Self {
        let mut carry = u128::from(digits);
        Wide(self.0.map(|limb| {
            let sum = u128::from(limb) * u128::from(factor) + carry;
            carry = sum >> 64;
            sum as u64
        }))
    }
}

impl Wide {
    /// Two's complement, little-endian.
    fn signed(self, negative: bool) -> [u8; 32] {
        let mut bytes = [0; 32];
        let mut carry = negative;
        for (limb, place) in self.0.into_iter().zip(bytes.as_chunks_mut::<8>().0) {
            let limb = if negative {
                let (limb, overflow) = (!limb).overflowing_add(u64::from(carry));
                carry = overflow;
                limb
            } else {
                limb
            };
            *place = limb.to_le_bytes();
        }
        bytes
    }
}

#[inline]
fn signed_32(magnitude: u64, negative: bool) -> [u8; 4] {
    let value = magnitude as i32;
    if negative { value.wrapping_neg() } else { value }.to_le_bytes()
}

#[inline]
fn signed_64(magnitude: u64, negative: bool) -> [u8; 8] {
    let value = magnitude as i64;
    if negative { value.wrapping_neg() } else { value }.to_le_bytes()
}

#[inline]
fn signed_128(magnitude: u128, negative: bool) -> [u8; 16] {
    let value = magnitude as i128;
    if negative { value.wrapping_neg() } else { value }.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(precision: u8, scale: u8, text: &str) -> Result<(Vec<u8>, Fit), Fault> {
        let mut out = Vec::new();
        let fit = Decimal { precision, scale }.put_text(text.as_bytes(), &mut out)?;
        Ok((out, fit))
    }

    #[test]
    fn a_decimal_is_a_scaled_integer_of_the_width_that_its_precision_asks_for() {
        assert_eq!(decimal(9, 2, "-1.5"), Ok((vec![0x6a, 0xff, 0xff, 0xff], Fit::Exact)));
        assert_eq!(decimal(18, 0, "7"), Ok((7i64.to_le_bytes().to_vec(), Fit::Exact)));
        assert_eq!(decimal(38, 38, "0.1"), Ok((10i128.pow(37).to_le_bytes().to_vec(), Fit::Exact)));
        let mut minus_one = vec![0xff; 32];
        assert_eq!(decimal(76, 0, "-1"), Ok((minus_one.clone(), Fit::Exact)));
        // -2^64 in 256 bits: eight zero bytes, then ones.
        minus_one[..8].fill(0);
        assert_eq!(decimal(39, 0, "-18446744073709551616"), Ok((minus_one, Fit::Exact)));
    }

    #[test]
    fn nan_fits_no_decimal_and_the_infinities_become_the_extremes() {
        assert_eq!(decimal(9, 2, "NaN"), Ok((vec![], Fit::Impossible)));
        assert_eq!(decimal(4, 2, "Infinity"), Ok((9_999i32.to_le_bytes().to_vec(), Fit::Altered)));
        assert_eq!(
            decimal(18, 18, "-Infinity"),
            Ok(((1 - 10i64.pow(18)).to_le_bytes().to_vec(), Fit::Altered))
        );
    }

    #[test]
    fn digits_beyond_the_declaration_are_refused_and_never_cut() {
        for (text, fault) in [
            ("1.239", Fault::Digits),
            ("1000.00", Fault::Digits),
            ("", Fault::Malformed),
            ("-", Fault::Malformed),
            (".5", Fault::Malformed),
            ("1.", Fault::Malformed),
            ("1e3", Fault::Malformed),
            ("1.2.3", Fault::Malformed),
        ] {
            assert_eq!(decimal(5, 2, text), Err(fault), "{text}");
        }
        assert_eq!(decimal(5, 2, "0001.2300"), decimal(5, 2, "1.23"));
    }
}
