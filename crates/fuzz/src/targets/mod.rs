//! What is fuzzed. A target takes any bytes and panics only where a promise of the product is broken.

mod block;
pub mod copy;
pub mod forms;
pub mod pgoutput;
pub mod session;
pub mod text;
pub mod types;
pub mod values;

use crate::mutate::Shape;

/// One thing that reads bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, also of its folder of kept inputs.
    pub name: &'static str,
    /// How it reads its input.
    pub shape: Shape,
    /// Runs it once.
    pub run: fn(&[u8]),
}

/// All of them.
pub const ALL: &[Target] = &[
    Target { name: "pgoutput", shape: Shape::Bytes, run: pgoutput::run },
    Target { name: "copy", shape: Shape::Frames, run: copy::run },
    Target { name: "values", shape: Shape::Frames, run: values::run },
    Target { name: "text", shape: Shape::Bytes, run: text::run },
    Target { name: "session", shape: Shape::Frames, run: session::run },
];

/// The target of a name.
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
