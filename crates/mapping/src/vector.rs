//! The two forms of a value of the extension vector, taken apart into its elements.

use crate::error::Fault;

/// How an element stands in the binary form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// `vector`: 32 bits.
    Single,
    /// `halfvec`: 16 bits.
    Half,
}

/// Gives each element of a value in binary form, as the bytes of a `real` in binary form. A value is a 16-bit count, 16 bits of nothing, and the elements.
pub(crate) fn elements_of_binary(
    value: &[u8],
    precision: Precision,
    mut element: impl FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (header, elements) = value.split_first_chunk::<4>().ok_or(Fault::Malformed)?;
    let [count_high, count_low, 0, 0] = *header else { return Err(Fault::Malformed) };
    let count = usize::from(u16::from_be_bytes([count_high, count_low]));
    let width = match precision {
        Precision::Single => 4,
        Precision::Half => 2,
    };
    if elements.len() != count * width {
        return Err(Fault::Malformed);
    }
    match precision {
        Precision::Single => elements.as_chunks::<4>().0.iter().try_for_each(|bytes| element(bytes)),
        Precision::Half => {
            let halves = elements.as_chunks::<2>().0.iter();
            let mut singles = halves.map(|bytes| single(u16::from_be_bytes(*bytes)).to_be_bytes());
            singles.try_for_each(|bytes| element(&bytes))
        }
    }
}

/// Gives each element of a value in text form, `[1,-2.5,3e-07]`.
pub(crate) fn elements_of_text(
    value: &[u8],
    element: impl FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let inner = value.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).ok_or(Fault::Malformed)?;
    if inner.is_empty() {
        return Ok(());
    }
    inner.split(|byte| *byte == b',').try_for_each(element)
}

/// The number of a 16-bit float (IEEE 754 binary16), all of which are exact in 32 bits.
fn single(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15), u32::from(bits >> 10 & 0x1f), bits & 0x3ff);
    match exponent {
        // Zero, and what is too small for a leading one: multiples of 2^-24.
        0 => {
            let magnitude = f32::from(fraction) / 16_777_216.0;
            if sign == 1 { -magnitude } else { magnitude }
        }
        // Infinity and NaN.
        0x1f => f32::from_bits(sign << 31 | 0xff << 23 | u32::from(fraction) << 13),
        _ => f32::from_bits(sign << 31 | (exponent + 127 - 15) << 23 | u32::from(fraction) << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_binary(value: &[u8], precision: Precision) -> Result<Vec<f32>, Fault> {
        let mut elements = Vec::new();
        elements_of_binary(value, precision, |bytes| {
            elements.push(f32::from_be_bytes(bytes.try_into().map_err(|_| Fault::Malformed)?));
            Ok(())
        })?;
        Ok(elements)
    }

    #[test]
    fn elements_are_floats_of_either_width() {
        let value = [&b"\0\x02\0\0"[..], &1.5f32.to_be_bytes(), &(-0.1f32).to_be_bytes()].concat();
        assert_eq!(of_binary(&value, Precision::Single), Ok(vec![1.5, -0.1]));
        assert_eq!(of_binary(b"\0\x02\0\0\x3e\x00\xae\x66", Precision::Half), Ok(vec![1.5, -0.099_975_586]));
        assert_eq!(of_binary(b"\0\0\0\0", Precision::Half), Ok(vec![]));
        for end in 0..value.len() {
            assert_eq!(of_binary(&value[..end], Precision::Single), Err(Fault::Malformed), "{end}");
        }
        assert_eq!(of_binary(&[&value[..], &[0]].concat(), Precision::Single), Err(Fault::Malformed));
        assert_eq!(of_binary(b"\0\0\0\x01", Precision::Single), Err(Fault::Malformed));
    }

    #[test]
    fn a_text_is_taken_apart_at_its_commas() {
        let read = |text: &str| {
            let mut elements = Vec::new();
            elements_of_text(text.as_bytes(), |element| {
                elements.push(String::from_utf8_lossy(element).into_owned());
                Ok(())
            })?;
            Ok::<_, Fault>(elements)
        };
        assert_eq!(read("[1,-2.5,3e-07]"), Ok(vec!["1".into(), "-2.5".into(), "3e-07".into()]));
        assert_eq!(read("[]"), Ok(vec![]));
        for text in ["", "[", "1,2", "[1,2", "{1}"] {
            assert_eq!(read(text), Err(Fault::Malformed), "{text}");
        }
    }

    #[test]
    fn every_half_is_its_number() {
        for (bits, number) in [
            (0x0000, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3555, 0.333_251_95),
            (0x3c00, 1.0),
            (0x7bff, 65_504.0),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(single(bits).to_bits(), f32::to_bits(number), "{bits:04x}");
            assert_eq!(single(bits | 0x8000).to_bits(), f32::to_bits(-number), "{bits:04x}");
        }
        assert!(single(0x7e00).is_nan());
        // By the definition: sign, 2^(exponent - 15), 1 + fraction / 1024.
        for bits in 0x0400..0x7c00u16 {
            let scale = 2f32.powi(i32::from(bits >> 10) - 15);
            assert_eq!(single(bits), scale * (1.0 + f32::from(bits & 0x3ff) / 1024.0), "{bits:04x}");
        }
    }
}
