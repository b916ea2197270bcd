//! The two compressed forms of a body: HTTP's own (`Content-Encoding: lz4`, the LZ4 frame format) and ClickHouse's
//! blocks (`compress=1` and `decompress=1`).
//!
//! A block is: 16 bytes CityHash128 (version 1.0.2) of what follows, 1 byte method, 4 bytes size of what follows the
//! checksum, 4 bytes size of the data (both little-endian), the data.

use std::io::Write as _;

use bytes::{Buf as _, Bytes, BytesMut};
use lz4_flex::block;
use lz4_flex::frame::FrameEncoder;

use super::exception::Exception;

const CHECKSUM: usize = 16;
const HEADER: usize = 9;
const LZ4: u8 = 0x82;
const STORED: u8 = 0x02;
/// The most that one block may hold, in bytes (ClickHouse's `DBMS_MAX_COMPRESSED_SIZE`).
const LARGEST: usize = 0x4000_0000;
/// How much data goes into a block, in bytes.
const BLOCK: usize = 1 << 20;

/// How the body of a response is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    /// `Content-Encoding: lz4`.
    Frame,
    /// `compress=1`.
    Blocks,
}

/// Writes a body in one of the encodings, piece by piece.
pub(crate) enum Encoder {
    Plain,
    Frame(Box<FrameEncoder<Vec<u8>>>),
    Blocks,
}

impl Encoder {
    pub(crate) fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Plain => Self::Plain,
            Encoding::Frame => Self::Frame(Box::new(FrameEncoder::new(Vec::new()))),
            Encoding::Blocks => Self::Blocks,
        }
    }

    /// What to send for these bytes; a receiver that has it can decode all of them.
    pub(crate) fn encode(&mut self, data: Bytes) -> Bytes {
        match self {
            Self::Plain => data,
            Self::Frame(encoder) => {
                // Writing to memory cannot fail, and the data has no size that the format knows of beforehand.
                let _ = encoder.write_all(&data).and_then(|()| encoder.flush());
                std::mem::take(encoder.get_mut()).into()
            }
            Self::Blocks => {
                let mut encoded = BytesMut::new();
                data.chunks(BLOCK).for_each(|chunk| write_block(chunk, &mut encoded));
                encoded.freeze()
            }
        }
    }

    /// What to send at the end.
    pub(crate) fn finish(self) -> Bytes {
        match self {
            Self::Plain | Self::Blocks => Bytes::new(),
            Self::Frame(encoder) => encoder.finish().map(Bytes::from).unwrap_or_default(),
        }
    }
}

fn write_block(data: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.resize(start + CHECKSUM + HEADER + block::get_maximum_output_size(data.len()), 0);
    let body = &mut out[start + CHECKSUM..];
    // The output is as large as the library asks for.
    let size = HEADER + block::compress_into(data, &mut body[HEADER..]).unwrap_or(0);
    body[0] = LZ4;
    body[1..5].copy_from_slice(&little_endian(size));
    body[5..9].copy_from_slice(&little_endian(data.len()));
    let sum = checksum(&body[..size]);
    out[start..start + CHECKSUM].copy_from_slice(&sum);
    out.truncate(start + CHECKSUM + size);
}

fn little_endian(size: usize) -> [u8; 4] {
    u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes()
}

/// ClickHouse writes the low half of the hash first.
fn checksum(data: &[u8]) -> [u8; CHECKSUM] {
    cityhash_rs::cityhash_102_128(data).rotate_right(64).to_le_bytes()
}

/// Reads a body, which may come in pieces of any size.
pub(crate) enum Decoder {
    Plain,
    /// Bytes of a block that is not complete yet.
    Blocks(BytesMut),
}

impl Decoder {
    pub(crate) fn new(blocks: bool) -> Self {
        if blocks { Self::Blocks(BytesMut::new()) } else { Self::Plain }
    }

    /// Takes more of the body; gives what can be read now.
    pub(crate) fn decode(&mut self, piece: Bytes) -> Result<Bytes, Exception> {
        let Self::Blocks(pending) = self else { return Ok(piece) };
        pending.extend_from_slice(&piece);
        let mut decoded = Vec::new();
        while let Some(size) = complete_block(pending)? {
            let block = pending.split_to(size);
            read_block(&block, &mut decoded)?;
        }
        Ok(decoded.into())
    }

    /// Checks that the body did not end within a block.
    pub(crate) fn finish(&self) -> Result<(), Exception> {
        match self {
            Self::Blocks(pending) if !pending.is_empty() => Err(Exception::new(
                33,
                "CANNOT_READ_ALL_DATA",
                format!(
                    "Cannot read all data. The body ends within a compressed block of {} bytes",
                    pending.len()
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// The size of the block that `pending` begins with, if all of it is there.
fn complete_block(pending: &[u8]) -> Result<Option<usize>, Exception> {
    let Some(mut header) = pending.get(CHECKSUM + 1..CHECKSUM + HEADER) else { return Ok(None) };
    let (size, decoded) = (header.get_u32_le() as usize, header.get_u32_le() as usize);
    if size > LARGEST || decoded > LARGEST {
        let message =
            format!("Too large size_compressed_without_checksum: {size}. Most likely corrupted data");
        return Err(Exception::new(12, "PARAMETER_OUT_OF_BOUND", message));
    }
    if size < HEADER {
        return Err(corrupted(format!("a block of {size} bytes is smaller than its header")));
    }
    Ok((pending.len() >= CHECKSUM + size).then_some(CHECKSUM + size))
}

fn read_block(block: &[u8], out: &mut Vec<u8>) -> Result<(), Exception> {
    let (sum, body) = block.split_at(CHECKSUM);
    if sum != checksum(body) {
        return Err(Exception::new(40, "CHECKSUM_DOESNT_MATCH", "Checksum doesn't match: corrupted data"));
    }
    let (mut header, data) = body.split_at(HEADER);
    let method = header.get_u8();
    header.advance(4);
    let size = header.get_u32_le() as usize;
    let start = out.len();
    match method {
        LZ4 => {
            out.resize(start + size, 0);
            let read = block::decompress_into(data, &mut out[start..]).map_err(corrupted)?;
            if read != size {
                return Err(corrupted(format!("{read} bytes instead of {size}")));
            }
        }
        STORED => out.extend_from_slice(data),
        other => {
            let message = format!("Unknown compression method {other:#x} of a block");
            return Err(Exception::new(432, "UNKNOWN_CODEC", message));
        }
    }
    Ok(())
}

fn corrupted(reason: impl std::fmt::Display) -> Exception {
    Exception::new(271, "CANNOT_DECOMPRESS", format!("Cannot decompress: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(data: &[u8]) -> Bytes {
        Encoder::new(Encoding::Blocks).encode(Bytes::copy_from_slice(data))
    }

    fn sample() -> Vec<u8> {
        (0..3_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect()
    }

    #[test]
    fn blocks_come_back_whatever_the_pieces() {
        let (data, encoded) = (sample(), blocks(&sample()));
        for piece in [7, 4096, 100_000, encoded.len()] {
            let mut decoder = Decoder::new(true);
            let mut decoded = Vec::new();
            // Small pieces on a part only: each byte is looked at once per piece.
            for chunk in encoded.chunks(piece) {
                decoded.extend_from_slice(&decoder.decode(Bytes::copy_from_slice(chunk)).unwrap());
            }
            decoder.finish().unwrap();
            assert!(decoded == data, "pieces of {piece} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_is_a_wrong_checksum() {
        let mut encoded = blocks(b"some data").to_vec();
        *encoded.last_mut().unwrap() ^= 1;
        assert_eq!(Decoder::new(true).decode(encoded.into()).unwrap_err().code, 40);
    }

    #[test]
    fn a_body_that_ends_within_a_block_is_an_error() {
        let encoded = blocks(b"some data");
        let mut decoder = Decoder::new(true);
        assert_eq!(decoder.decode(encoded.slice(..encoded.len() - 1)).unwrap(), Bytes::new());
        assert_eq!(decoder.finish().unwrap_err().code, 33);
    }

    #[test]
    fn an_absurd_size_is_refused_before_memory_is_taken() {
        let encoded = [&[0; CHECKSUM][..], &[LZ4], &[0xff; 8]].concat();
        assert_eq!(Decoder::new(true).decode(encoded.into()).unwrap_err().code, 12);
    }

    #[test]
    fn a_frame_can_be_read_up_to_every_flush() {
        use std::io::Read as _;
        let mut encoder = Encoder::new(Encoding::Frame);
        let mut encoded = encoder.encode(Bytes::from_static(b"first ")).to_vec();
        encoded.extend_from_slice(&encoder.encode(Bytes::from_static(b"second")));
        encoded.extend_from_slice(&encoder.finish());
        let mut decoded = String::new();
        lz4_flex::frame::FrameDecoder::new(&encoded[..]).read_to_string(&mut decoded).unwrap();
        assert_eq!(decoded, "first second");
    }
}
