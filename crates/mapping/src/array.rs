//! PostgreSQL's two forms of an array, taken apart into its elements.
//!
//! One dimension only: a value of several would have to be flattened. Lower bounds other than 1 are dropped, as
//! ClickHouse's arrays have none.

use crate::error::Fault;

/// Gives each element of an array in binary form: dimensions, flags, element type, per dimension size and lower bound,
/// then length and bytes of each element, -1 for NULL.
pub(crate) fn elements_of_binary(
    value: &[u8],
    mut element: impl FnMut(Option<&[u8]>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (header, mut rest) = value.split_first_chunk::<12>().ok_or(Fault::Malformed)?;
    let dimensions = i32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let count = match dimensions {
        0 => 0,
        1 => {
            let size = take_i32(&mut rest)?;
            let _lower_bound = take_i32(&mut rest)?;
            size
        }
        2.. => return Err(Fault::Dimensions),
        _ => return Err(Fault::Malformed),
    };
    if count < 0 {
        return Err(Fault::Malformed);
    }
    for _ in 0..count {
        let length = take_i32(&mut rest)?;
        if length == -1 {
            element(None)?;
            continue;
        }
        let length = usize::try_from(length).map_err(|_| Fault::Malformed)?;
        let (bytes, after) = rest.split_at_checked(length).ok_or(Fault::Malformed)?;
        element(Some(bytes))?;
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(Fault::Malformed) }
}

/// Takes a number off the front.
pub(crate) fn take_i32(bytes: &mut &[u8]) -> Result<i32, Fault> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(Fault::Malformed)?;
    *bytes = rest;
    Ok(i32::from_be_bytes(*number))
}

/// Gives each element of an array in text form: `{1,NULL,"with \"quotes\""}`, perhaps after bounds as in `[0:1]={1,2}`
/// (manual: "Array Input and Output Syntax"). `unescaped` is scratch space.
pub(crate) fn elements_of_text(
    value: &[u8],
    delimiter: u8,
    unescaped: &mut Vec<u8>,
    mut element: impl FnMut(Option<&[u8]>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut rest = after_bounds(value)?.strip_prefix(b"{").ok_or(Fault::Malformed)?;
    if rest == b"}" {
        return Ok(());
    }
    loop {
        match rest {
            [b'"', quoted @ ..] => {
                let (end, escaped) = closing_quote(quoted).ok_or(Fault::Malformed)?;
                let (text, after) = quoted.split_at_checked(end).ok_or(Fault::Malformed)?;
                if escaped {
                    unescape(text, unescaped);
                    element(Some(unescaped))?;
                } else {
                    element(Some(text))?;
                }
                rest = after.get(1..).ok_or(Fault::Malformed)?;
            }
            [b'{', ..] => return Err(Fault::Dimensions),
            _ => {
                let end = rest.iter().position(|byte| *byte == delimiter || b"{}\"\\".contains(byte));
                let (text, after) = end.and_then(|end| rest.split_at_checked(end)).ok_or(Fault::Malformed)?;
                match text {
                    [] => return Err(Fault::Malformed),
                    _ if text.eq_ignore_ascii_case(b"null") => element(None)?,
                    _ => element(Some(text))?,
                }
                rest = after;
            }
        }
        match rest {
            b"}" => return Ok(()),
            [next, after @ ..] if *next == delimiter => rest = after,
            _ => return Err(Fault::Malformed),
        }
    }
}

/// What follows the bounds, where there are some.
fn after_bounds(value: &[u8]) -> Result<&[u8], Fault> {
    if !value.starts_with(b"[") {
        return Ok(value);
    }
    let end = value.iter().position(|byte| *byte == b'=').ok_or(Fault::Malformed)?;
    let (bounds, rest) = value.split_at_checked(end).ok_or(Fault::Malformed)?;
    if bounds.iter().filter(|byte| **byte == b'[').count() > 1 {
        return Err(Fault::Dimensions);
    }
    rest.strip_prefix(b"=").ok_or(Fault::Malformed)
}

/// Where the closing quote is, and whether a backslash comes before it.
fn closing_quote(text: &[u8]) -> Option<(usize, bool)> {
    let mut escaped = false;
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some((at, escaped)),
            b'\\' => {
                escaped = true;
                bytes.next();
            }
            _ => {}
        }
    }
    None
}

fn unescape(text: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.extend(bytes.next()),
            _ => out.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, delimiter: u8) -> Result<Vec<Option<String>>, Fault> {
        let mut elements = Vec::new();
        elements_of_text(text.as_bytes(), delimiter, &mut Vec::new(), |element| {
            elements.push(element.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
            Ok(())
        })?;
        Ok(elements)
    }

    #[test]
    fn quoting_escapes_nulls_and_bounds_are_understood() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("{}", b','), Ok(vec![]));
        assert_eq!(read("{1,NULL,-3}", b','), Ok(vec![some("1"), None, some("-3")]));
        assert_eq!(
            read(r#"{"",plain,"NULL","a,b","{x}","say \"hi\"","back\\slash"}"#, b','),
            Ok(["", "plain", "NULL", "a,b", "{x}", "say \"hi\"", "back\\slash"].map(some).to_vec())
        );
        assert_eq!(read("[0:1]={7,8}", b','), Ok(vec![some("7"), some("8")]));
        assert_eq!(
            read("{(1,1),(0,0);(2,2),(1,1)}", b';'),
            Ok(vec![some("(1,1),(0,0)"), some("(2,2),(1,1)")])
        );
    }

    #[test]
    fn several_dimensions_are_named_as_such() {
        for text in ["{{1,2},{3,4}}", "[1:1][0:1]={{1,2}}", "{{NULL}}"] {
            assert_eq!(read(text, b','), Err(Fault::Dimensions), "{text}");
        }
        let mut binary = vec![0, 0, 0, 2];
        binary.extend([0; 40]);
        assert_eq!(elements_of_binary(&binary, |_| Ok(())), Err(Fault::Dimensions));
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "{", "{1", "{1,}", "{,}", "{1}x", "{\"a}", "{\"a\\\"}", "{a\"b\"}", "[0:1]", "1,2"] {
            assert_eq!(read(text, b','), Err(Fault::Malformed), "{text}");
        }
    }

    #[test]
    fn a_binary_array_ends_where_its_elements_do() {
        let one = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 9];
        let mut elements = Vec::new();
        let mut read = |value: &[u8]| {
            elements.clear();
            elements_of_binary(value, |element| {
                elements.push(element.map(<[u8]>::to_vec));
                Ok(())
            })
        };
        assert_eq!(read(&one[..24]), Err(Fault::Malformed));
        assert_eq!(read(&[&one[..], &[0]].concat()), Err(Fault::Malformed));
        assert_eq!(read(&one), Ok(()));
        assert_eq!(elements, [Some(vec![9])]);
    }
}
