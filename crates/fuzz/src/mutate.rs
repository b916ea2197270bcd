//! Small changes to inputs, the same ones for the same seed.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::frames::Frames;

/// Inputs are kept below this many bytes; longer ones only take longer.
const LONGEST: usize = 8192;

/// How a target reads its input, hence how it is best changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As bytes.
    Bytes,
    /// As [`Frames`].
    Frames,
}

/// Integers near the edges of their types.
const INTERESTING: [i64; 18] = [
    0,
    1,
    -1,
    2,
    4,
    8,
    16,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX,
    i64::MIN,
];

/// Pieces that mean something to one of the readers.
const TOKENS: [&[u8]; 30] = [
    b"NULL",
    b"NaN",
    b"Infinity",
    b"-infinity",
    b" BC",
    b"+00",
    b"-08:30",
    b".",
    b"-",
    b"e",
    b"{",
    b"}",
    b"{}",
    b"\"",
    b"\\",
    b",",
    b";",
    b"[0:1]=",
    b"\\x",
    b"9999999999",
    b"0000",
    b":",
    b" ",
    b"t",
    b"n",
    b"u",
    b"b",
    b"\0",
    b"\xff\xff\xff\xff",
    "é".as_bytes(),
];

/// Changes an input in one to six places. `others` are inputs of the same target, to borrow from.
pub fn mutate(input: &[u8], others: &[Vec<u8>], shape: Shape, rng: &mut StdRng) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..rng.random_range(1..=6) {
        // Frames are also changed as bytes now and then: their lengths are read by the product's like in other places.
        if shape == Shape::Frames && rng.random_ratio(7, 8) {
            let mut frames = Frames::parse(&input);
            let other = others.choose(rng).map(|other| Frames::parse(other)).unwrap_or_default();
            mutate_frames(&mut frames, &other, rng);
            input = frames.write();
        } else {
            let other = others.choose(rng).map_or(&[][..], Vec::as_slice);
            mutate_bytes(&mut input, other, rng);
        }
    }
    input.truncate(LONGEST);
    input
}

fn mutate_frames(frames: &mut Frames, other: &Frames, rng: &mut StdRng) {
    let count = frames.frames.len();
    let borrowed = other.frames.choose(rng).cloned().unwrap_or_default();
    match rng.random_range(0..12) {
        0 => frames.options = rng.random(),
        1 => frames.frames.insert(rng.random_range(0..=count), borrowed),
        2 if count > 1 => {
            frames.frames.remove(rng.random_range(0..count));
        }
        3 if count > 1 => frames.frames.swap(rng.random_range(0..count), rng.random_range(0..count)),
        4 if count > 0 => {
            let repeated = frames.frames[rng.random_range(0..count)].clone();
            frames.frames.insert(rng.random_range(0..=count), repeated);
        }
        _ if count > 0 => mutate_bytes(&mut frames.frames[rng.random_range(0..count)], &borrowed, rng),
        _ => frames.frames.push(borrowed),
    }
}

fn mutate_bytes(bytes: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    let length = bytes.len();
    let at = rng.random_range(0..=length);
    let inside = at.min(length.saturating_sub(1));
    match rng.random_range(0..10) {
        // A flipped bit, a random byte, a byte a little larger or smaller.
        0 if length > 0 => bytes[inside] ^= 1 << rng.random_range(0..8),
        1 if length > 0 => bytes[inside] = rng.random(),
        2 if length > 0 => bytes[inside] = bytes[inside].wrapping_add_signed(rng.random_range(-3..=3)),
        // A big-endian integer of any width, which is what lengths and values are; also as decimal text.
        3 => {
            let value = INTERESTING.choose(rng).copied().unwrap_or(0).wrapping_add(rng.random_range(-2..=2));
            let width = [1, 2, 4, 8].choose(rng).copied().unwrap_or(4);
            let written = value.to_be_bytes();
            overwrite(bytes, at, &written[8 - width..]);
        }
        4 => {
            let text = INTERESTING.choose(rng).copied().unwrap_or(0).to_string();
            splice(bytes, at, 0, text.as_bytes());
        }
        5 => {
            let token = TOKENS.choose(rng).copied().unwrap_or(b"");
            splice(bytes, at, 0, token);
        }
        // Cut short, a range left out or repeated, a range of another input put in.
        6 => bytes.truncate(at),
        7 => {
            let gone = rng.random_range(0..=(length - at).min(8));
            splice(bytes, at, gone, &[]);
        }
        8 => {
            let end = rng.random_range(at..=length.min(at + 64));
            let repeated = bytes[at..end].to_vec();
            splice(bytes, at, 0, &repeated);
        }
        _ if !other.is_empty() => {
            let start = rng.random_range(0..other.len());
            let end = rng.random_range(start..=other.len().min(start + 64));
            let gone = rng.random_range(0..=(length - at).min(64));
            splice(bytes, at, gone, &other[start..end]);
        }
        _ => bytes.push(rng.random()),
    }
}

fn overwrite(bytes: &mut Vec<u8>, at: usize, written: &[u8]) {
    let gone = written.len().min(bytes.len() - at);
    splice(bytes, at, gone, written);
}

fn splice(bytes: &mut Vec<u8>, at: usize, gone: usize, written: &[u8]) {
    bytes.splice(at..at + gone, written.iter().copied());
}
