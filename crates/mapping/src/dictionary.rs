//! `LowCardinality(String)`, the columns of enumerations: each distinct label once, and a number per row.
//!
//! In `Native` such a column is: a version (1), then, if there are rows, the flags with the width of the numbers, the
//! count of keys, the keys, the count of rows, the numbers. Key 0 is the default; in a nullable column it is NULL and its
//! text is ignored.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::native::{Pieces, put_string};
use crate::row_binary::take_varint;

/// The only version that ClickHouse knows ("shared dictionaries with additional keys").
const VERSION: u64 = 1;
/// Keys come with the block, and replace those of any block before it.
const FLAGS: u64 = 1 << 9 | 1 << 10;

/// The dictionary and the rows of one block.
#[derive(Debug)]
pub(crate) struct Dictionary {
    numbers: HashMap<Box<[u8]>, u32, BuildHasherDefault<LabelHasher>>,
    nullable: bool,
    key_count: u32,
    keys: Vec<u8>,
    rows: Vec<u32>,
    encoded: Vec<u8>,
}

/// How much of a dictionary there was at some moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DictionaryMark {
    key_count: u32,
    key_bytes: usize,
    rows: usize,
}

impl Dictionary {
    pub(crate) fn new(nullable: bool) -> Self {
        let mut dictionary = Self {
            numbers: HashMap::default(),
            nullable,
            key_count: 0,
            keys: Vec::new(),
            rows: Vec::new(),
            encoded: Vec::new(),
        };
        dictionary.clear();
        dictionary
    }

    pub(crate) fn is_nullable(&self) -> bool {
        self.nullable
    }

    pub(crate) fn push(&mut self, label: &[u8]) {
        let number = match self.numbers.get(label) {
            Some(number) => *number,
            None => self.add(label),
        };
        self.rows.push(number);
    }

    /// Writes one row's label as ClickHouse does in `RowBinary`.
    pub(crate) fn write_row_binary(&self, row: usize, out: &mut Vec<u8>) {
        let number = self.rows[row];
        if self.nullable {
            out.push(u8::from(number == 0));
            if number == 0 {
                return;
            }
        }
        let mut keys = &self.keys[..];
        for _ in 0..number {
            let length = take_varint(&mut keys).unwrap_or(0);
            keys = &keys[length..];
        }
        let length = take_varint(&mut keys).unwrap_or(0);
        put_string(out, &keys[..length]);
    }

    /// NULL where the column is nullable, else the empty label.
    pub(crate) fn push_default(&mut self) {
        self.rows.push(0);
    }

    #[cold]
    fn add(&mut self, label: &[u8]) -> u32 {
        let number = self.key_count;
        self.numbers.insert(label.into(), number);
        put_string(&mut self.keys, label);
        self.key_count += 1;
        number
    }

    pub(crate) fn mark(&self) -> DictionaryMark {
        DictionaryMark { key_count: self.key_count, key_bytes: self.keys.len(), rows: self.rows.len() }
    }

    pub(crate) fn restore(&mut self, mark: DictionaryMark) {
        if self.key_count > mark.key_count {
            self.numbers.retain(|_, number| *number < mark.key_count);
            self.key_count = mark.key_count;
            self.keys.truncate(mark.key_bytes);
        }
        self.rows.truncate(mark.rows);
    }

    /// Bytes of the column, its prefix left out.
    pub(crate) fn encoded_len(&self) -> usize {
        if self.rows.is_empty() { 0 } else { 24 + self.keys.len() + self.rows.len() * self.width() }
    }

    pub(crate) const PREFIX_LEN: usize = 8;

    pub(crate) fn write_prefix(out: &mut Pieces) {
        out.small().extend_from_slice(&VERSION.to_le_bytes());
    }

    /// Writes the column and forgets it.
    pub(crate) fn write(&mut self, out: &mut Pieces) {
        if self.rows.is_empty() {
            return;
        }
        let width = self.width();
        let flags = FLAGS | u64::from(width.trailing_zeros());
        out.small().extend_from_slice(&flags.to_le_bytes());
        out.small().extend_from_slice(&u64::from(self.key_count).to_le_bytes());
        out.take(&mut self.keys);
        out.small().extend_from_slice(&(self.rows.len() as u64).to_le_bytes());
        self.encoded.reserve(self.rows.len() * width);
        match width {
            1 => self.encoded.extend(self.rows.iter().map(|number| *number as u8)),
            2 => self.encoded.extend(self.rows.iter().flat_map(|number| (*number as u16).to_le_bytes())),
            _ => self.encoded.extend(self.rows.iter().flat_map(|number| number.to_le_bytes())),
        }
        out.take(&mut self.encoded);
        self.clear();
    }

    fn clear(&mut self) {
        self.numbers.clear();
        self.keys.clear();
        self.rows.clear();
        put_string(&mut self.keys, b"");
        self.key_count = 1;
        if !self.nullable {
            self.numbers.insert([].into(), 0);
        }
    }

    /// Bytes of a number that counts the keys.
    fn width(&self) -> usize {
        match self.key_count {
            ..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        }
    }
}

/// Labels are few, short and come from the source's schema: a multiplication per eight bytes spreads them well enough.
#[derive(Debug, Default)]
struct LabelHasher(u64);

impl Hasher for LabelHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut tail = [0; 8];
        for (place, byte) in tail.iter_mut().zip(rest) {
            *place = *byte;
        }
        for word in words.iter().chain([&tail]) {
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dictionary: &mut Dictionary) -> Vec<u8> {
        let mut pieces = Pieces::default();
        let expected = dictionary.encoded_len();
        dictionary.write(&mut pieces);
        let bytes = pieces.finish().concat();
        assert_eq!(bytes.len(), expected);
        bytes
    }

    #[test]
    fn each_label_is_written_once_and_null_is_key_zero() {
        let mut dictionary = Dictionary::new(true);
        for label in ["up", "down", "", "up"] {
            dictionary.push(label.as_bytes());
        }
        dictionary.push_default();
        let mut expected = vec![0, 6, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        expected.extend(b"\x00\x02up\x04down\x00");
        expected.extend([5, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 0]);
        assert_eq!(written(&mut dictionary), expected);
        assert_eq!(dictionary.encoded_len(), 0);
    }

    #[test]
    fn without_null_key_zero_is_the_empty_label() {
        let mut dictionary = Dictionary::new(false);
        dictionary.push(b"");
        dictionary.push(b"a");
        assert!(written(&mut dictionary).ends_with(&[0, 1]));
    }

    #[test]
    fn numbers_grow_wider_with_the_count_of_keys() {
        for (labels, width) in [(255u32, 0), (256, 1), (65_535, 1), (65_536, 2)] {
            let mut dictionary = Dictionary::new(true);
            for label in 0..labels {
                dictionary.push(label.to_string().as_bytes());
            }
            let bytes = written(&mut dictionary);
            assert_eq!(bytes[0], width, "{labels} labels");
            let last = &labels.to_le_bytes()[..1 << width];
            assert!(bytes.ends_with(last), "{labels} labels");
        }
    }

    #[test]
    fn restoring_forgets_the_labels_that_came_since() {
        let mut dictionary = Dictionary::new(true);
        dictionary.push(b"a");
        let mark = dictionary.mark();
        dictionary.push(b"b");
        dictionary.restore(mark);
        dictionary.push(b"c");
        let mut other = Dictionary::new(true);
        other.push(b"a");
        other.push(b"c");
        assert_eq!(written(&mut dictionary), written(&mut other));
    }
}
