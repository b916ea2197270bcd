//! Tuples of binary COPY into a table with a column of every type.
//!
//! Promises: after an error the block is as before, and what it becomes is what it would have become without the bad tuple.

use super::block::Pair;
use super::types::{Planning, all, plan};
use crate::frames::Frames;

/// The options choose how columns are planned; each frame is a tuple. An option also has the block finished after each.
pub fn run(input: &[u8]) {
    let input = Frames::parse(input);
    let mut pair = Pair::new(&plan(&all(), Planning::numbered(input.options)));
    for tuple in &input.frames {
        pair.copy(tuple);
        if input.options & 0x80 != 0 {
            pair.finish();
        }
    }
    pair.finish();
    pair.finish();
}
