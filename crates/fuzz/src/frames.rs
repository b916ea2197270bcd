//! Inputs that hold several things: a byte of options, then frames of a 16-bit length and as many bytes.
//!
//! Any bytes are a valid input, so that mutation need not respect the form: a length beyond the end means the rest.

/// An input taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frames {
    /// What the target makes of it.
    pub options: u8,
    /// The things, in order.
    pub frames: Vec<Vec<u8>>,
}

impl Frames {
    /// Takes any bytes apart.
    pub fn parse(input: &[u8]) -> Self {
        let Some((&options, mut rest)) = input.split_first() else { return Self::default() };
        let mut frames = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
            let (frame, after) = after.split_at(length);
            frames.push(frame.to_vec());
            rest = after;
        }
        Self { options, frames }
    }

    /// Puts them together again. A frame is cut at 65,535 bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut input = vec![self.options];
        for frame in &self.frames {
            let length = u16::try_from(frame.len()).unwrap_or(u16::MAX);
            input.extend(length.to_be_bytes());
            input.extend_from_slice(&frame[..usize::from(length)]);
        }
        input
    }
}
