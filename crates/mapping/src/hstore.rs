//! The two forms of a value of the extension hstore, taken apart into its pairs.
//!
//! Both give the pairs in the order in which hstore keeps them (shorter keys first), each key once.

use crate::array::take_i32;
use crate::error::Fault;

/// Gives each pair of a value in binary form: a count, then length and bytes of key and value, -1 for NULL.
pub(crate) fn pairs_of_binary(
    value: &[u8],
    mut pair: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut rest = value;
    let count = take_i32(&mut rest)?;
    if count < 0 {
        return Err(Fault::Malformed);
    }
    for _ in 0..count {
        let key = take_field(&mut rest)?.ok_or(Fault::Malformed)?;
        pair(key, take_field(&mut rest)?)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(Fault::Malformed) }
}

/// A length and as many bytes; `None` for the length -1.
fn take_field<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Fault> {
    let length = take_i32(rest)?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| Fault::Malformed)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(Fault::Malformed)?;
    *rest = after;
    Ok(Some(bytes))
}

/// Gives each pair of a value in the text form that hstore writes: `"a"=>"1", "b c"=>NULL`, everything but NULL quoted. `key_scratch` and
/// `value_scratch` are scratch space.
pub(crate) fn pairs_of_text(
    value: &[u8],
    key_scratch: &mut Vec<u8>,
    value_scratch: &mut Vec<u8>,
    mut pair: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut rest = value;
    while !rest.is_empty() {
        take_quoted(&mut rest, key_scratch)?;
        rest = rest.strip_prefix(b"=>").ok_or(Fault::Malformed)?;
        if let Some(after) = rest.strip_prefix(b"NULL") {
            rest = after;
            pair(key_scratch, None)?;
        } else {
            take_quoted(&mut rest, value_scratch)?;
            pair(key_scratch, Some(value_scratch))?;
        }
        if rest.is_empty() {
            break;
        }
        rest = rest.strip_prefix(b", ").filter(|rest| !rest.is_empty()).ok_or(Fault::Malformed)?;
    }
    Ok(())
}

/// Takes a quoted text off the front, its backslashes undone.
fn take_quoted(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    out.clear();
    let mut bytes = rest.strip_prefix(b"\"").ok_or(Fault::Malformed)?.iter();
    loop {
        match bytes.next().ok_or(Fault::Malformed)? {
            b'"' => break,
            b'\\' => out.push(*bytes.next().ok_or(Fault::Malformed)?),
            byte => out.push(*byte),
        }
    }
    *rest = bytes.as_slice();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = Vec<(String, Option<String>)>;

    fn collect(
        read: impl FnOnce(&mut dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), Fault>) -> Result<(), Fault>,
    ) -> Result<Pairs, Fault> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut pairs = Pairs::new();
        read(&mut |key, value| {
            pairs.push((text(key), value.map(text)));
            Ok(())
        })?;
        Ok(pairs)
    }

    fn of_text(value: &str) -> Result<Pairs, Fault> {
        collect(|pair| pairs_of_text(value.as_bytes(), &mut Vec::new(), &mut Vec::new(), pair))
    }

    fn of_binary(value: &[u8]) -> Result<Pairs, Fault> {
        collect(|pair| pairs_of_binary(value, pair))
    }

    fn pair(key: &str, value: Option<&str>) -> (String, Option<String>) {
        (key.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn quoting_escapes_and_nulls_are_understood() {
        assert_eq!(of_text(""), Ok(vec![]));
        assert_eq!(
            of_text(
                r#""a"=>"1", "b c"=>NULL, "null"=>"NULL", ""=>"", "say \"hi\""=>"back\\slash", "=>"=>", ""#
            ),
            Ok(vec![
                pair("a", Some("1")),
                pair("b c", None),
                pair("null", Some("NULL")),
                pair("", Some("")),
                pair("say \"hi\"", Some("back\\slash")),
                pair("=>", Some(", ")),
            ])
        );
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "a=>1",
            "\"a\"",
            "\"a\"=>",
            "\"a\"=>null",
            "\"a\"=>\"1",
            "\"a\"=>\"1\\",
            "\"a\"=>\"1\",\"b\"=>\"2\"",
            "\"a\"=>\"1\", ",
            "\"a\"=>NULLx",
            " ",
        ] {
            assert_eq!(of_text(text), Err(Fault::Malformed), "{text}");
        }
    }

    #[test]
    fn a_binary_value_ends_where_its_pairs_do() {
        let value = b"\0\0\0\x02\0\0\0\x01a\0\0\0\x011\0\0\0\x02bc\xff\xff\xff\xff";
        assert_eq!(of_binary(value), Ok(vec![pair("a", Some("1")), pair("bc", None)]));
        assert_eq!(of_binary(&[0; 4]), Ok(vec![]));
        for end in 0..value.len() {
            assert_eq!(of_binary(&value[..end]), Err(Fault::Malformed), "{end}");
        }
        assert_eq!(of_binary(&[&value[..], &[0]].concat()), Err(Fault::Malformed));
        assert_eq!(of_binary(b"\xff\xff\xff\xff"), Err(Fault::Malformed));
        assert_eq!(
            of_binary(b"\0\0\0\x01\xff\xff\xff\xff\0\0\0\0"),
            Err(Fault::Malformed),
            "a key is never NULL"
        );
    }
}
