//! Values of one type, in both forms, into columns planned in every way.
//!
//! Promises: after an error a column is as before and takes another value; a row taken back leaves nothing behind.

use millrace_mapping::Cell;

use super::block::Pair;
use super::types::{Planning, all, plan};
use crate::frames::Frames;

/// The options choose the type. Each frame is a row: the first byte says what its cell is, the others are the value.
pub fn run(input: &[u8]) {
    let input = Frames::parse(input);
    let types = all();
    let chosen = types[usize::from(input.options) % types.len()].clone();
    let columns: Vec<_> = Planning::all()
        .into_iter()
        .flat_map(|planning| plan(std::slice::from_ref(&chosen), planning))
        .collect();
    let mut pair = Pair::new(&columns);
    for (at, frame) in input.frames.iter().enumerate() {
        let Some((operation, value)) = frame.split_first() else { continue };
        let cell = match operation % 8 {
            0 => Cell::Null,
            1 => Cell::Unchanged,
            2..=4 => Cell::Text(value),
            _ => Cell::Binary(value),
        };
        match operation / 8 % 8 {
            0 => pair.abandoned(cell),
            1 => {
                pair.cell(cell);
                // The next frame's row begins while this one is at hand: the block drops it.
                pair.finish();
            }
            version => {
                pair.cell(cell);
                assert_eq!(pair.end_row((at as u64) << version, version == 2), Ok(()));
            }
        }
    }
    pair.finish();
    pair.finish();
}
