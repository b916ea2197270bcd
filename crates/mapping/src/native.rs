//! The framing of ClickHouse's `Native` format, and how large buffers get out without being copied.

use std::mem;

use bytes::Bytes;

/// A buffer at least this large leaves as a piece of its own; smaller ones are copied together, so that a block of a few
/// rows is one piece and is sent at once.
const OWN_PIECE: usize = 64 * 1024;

/// Collects an encoded block.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    done: Vec<Bytes>,
    current: Vec<u8>,
}

impl Pieces {
    /// Small things such as names and counts are written here.
    pub(crate) fn small(&mut self) -> &mut Vec<u8> {
        &mut self.current
    }

    /// Takes a buffer's content and leaves the buffer empty, with room for as much again.
    pub(crate) fn take(&mut self, buffer: &mut Vec<u8>) {
        if buffer.len() < OWN_PIECE {
            self.current.extend_from_slice(buffer);
            buffer.clear();
            return;
        }
        let room = buffer.len() + buffer.len() / 8;
        let full = mem::replace(buffer, Vec::with_capacity(room));
        self.flush();
        self.done.push(Bytes::from(full));
    }

    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        self.flush();
        self.done
    }

    fn flush(&mut self) {
        if !self.current.is_empty() {
            self.done.push(Bytes::from(mem::take(&mut self.current)));
        }
    }
}

/// Appends an unsigned number seven bits at a time, lowest first (LEB128).
pub(crate) fn put_varuint(out: &mut Vec<u8>, number: usize) {
    let mut rest = number;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Bytes that [`put_varuint`] appends.
pub(crate) fn varuint_len(number: usize) -> usize {
    let bits = (usize::BITS - number.leading_zeros()).max(1);
    bits.div_ceil(7) as usize
}

/// Appends a String value: its length, then its bytes.
#[inline]
pub(crate) fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    out.reserve(value.len() + 5);
    if value.len() < 0x80 {
        out.push(value.len() as u8);
    } else {
        put_varuint(out, value.len());
    }
    out.extend_from_slice(value);
}

/// Bytes that [`put_string`] appends for a value of this length.
pub(crate) fn string_len(value: usize) -> usize {
    varuint_len(value) + value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_length_of_a_varuint_is_known_beforehand(number: usize, shift in 0..64) {
            let number = number >> shift;
            let mut out = Vec::new();
            put_varuint(&mut out, number);
            prop_assert_eq!(out.len(), varuint_len(number));
        }
    }

    #[test]
    fn varuints_are_little_endian_groups_of_seven_bits() {
        for (number, bytes) in [(0, &[0][..]), (127, &[127]), (128, &[128, 1]), (300, &[0xac, 2])] {
            let mut out = Vec::new();
            put_varuint(&mut out, number);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn small_buffers_share_a_piece_and_large_ones_are_moved() {
        let mut pieces = Pieces::default();
        pieces.small().push(1);
        pieces.take(&mut vec![2; 10]);
        let mut large = vec![3; OWN_PIECE];
        let address = large.as_ptr();
        pieces.take(&mut large);
        pieces.take(&mut vec![4]);
        let pieces = pieces.finish();
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [11, OWN_PIECE, 1]);
        assert_eq!(pieces[1].as_ptr(), address);
        assert!(large.is_empty());
    }
}
