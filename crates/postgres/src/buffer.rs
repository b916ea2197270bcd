//! Where a connection reads into, and where messages are found in place (manual: "Message Formats").

use crate::error::Error;

/// The buffer's usual size: what a busy socket holds.
const USUAL: usize = 256 << 10;
/// With less room than this the buffer is tidied before the next read.
const LEAST_ROOM: usize = 64 << 10;
/// PostgreSQL makes no message larger than its largest allocation, 1 GiB, and a little.
const LARGEST_MESSAGE: usize = (1 << 30) + (1 << 16);
/// Nobody who has not yet authenticated us may make us take memory.
const LARGEST_GREETING: usize = LEAST_ROOM;

/// A message that is read whole: where it stands in the buffer, until the next read. A place rather than a slice, so that a loop may go on after a
/// message that it did not lend further.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Kind of message, as in the manual's list of formats.
    pub tag: u8,
    start: usize,
    end: usize,
}

/// Bytes that were read, and room for more.
#[derive(Debug)]
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    /// What is read and not yet taken: `bytes[start..end]`.
    start: usize,
    end: usize,
    largest: usize,
}

impl ReadBuffer {
    /// For a server that is not yet trusted: messages have to be small.
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; USUAL], start: 0, end: 0, largest: LARGEST_GREETING }
    }

    /// From now on messages may be as large as PostgreSQL makes them.
    pub(crate) fn trust(&mut self) {
        self.largest = LARGEST_MESSAGE;
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// The next message if it is there whole.
    #[inline]
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let waiting = &self.bytes[self.start..self.end];
        let Some(&[tag, ref length @ ..]) = waiting.first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if !(4..=self.largest).contains(&length) {
            return Err(Error::Protocol(format!("a message of {length} bytes")));
        }
        if waiting.len() <= length {
            return Ok(None);
        }
        let frame = Frame { tag, start: self.start + 5, end: self.start + 1 + length };
        self.start = frame.end;
        Ok(Some(frame))
    }

    /// What follows a message's length.
    #[inline]
    pub(crate) fn body(&self, frame: Frame) -> &[u8] {
        &self.bytes[frame.start..frame.end]
    }

    /// Where to read the next bytes to; never empty. Frames that were given out end here.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let waiting = self.end - self.start;
        if waiting == 0 {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > 4 * USUAL {
                // One large value must not keep its memory for ever.
                self.bytes = vec![0; USUAL];
            }
        }
        if self.bytes.len() - self.end < LEAST_ROOM {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, waiting);
            // A message that is larger than the buffer says so in its header.
            let header = self.bytes[..waiting].first_chunk::<5>();
            let length = header.map_or(0, |&[_, ref length @ ..]| u32::from_be_bytes(*length) as usize);
            let wanted = (length.min(self.largest) + 1).max(waiting + LEAST_ROOM);
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted.next_multiple_of(USUAL), 0);
            }
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes of the room were read.
    pub(crate) fn filled(&mut self, read: usize) {
        self.end = (self.end + read).min(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(buffer: &mut ReadBuffer, bytes: &[u8]) -> usize {
        let room = buffer.room();
        let read = room.len().min(bytes.len());
        room[..read].copy_from_slice(&bytes[..read]);
        buffer.filled(read);
        read
    }

    /// Feeds the bytes in pieces, takes messages in between; gives them and whether the bytes were refused.
    fn read(bytes: &[u8], pieces: &[usize], trusted: bool) -> (Vec<(u8, Vec<u8>)>, bool) {
        let mut buffer = ReadBuffer::new();
        if trusted {
            buffer.trust();
        }
        let (mut rest, mut messages) = (bytes, Vec::new());
        let mut pieces = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let piece = pieces.next().unwrap_or(1).clamp(1, rest.len());
            rest = &rest[feed(&mut buffer, &rest[..piece])..];
            loop {
                match buffer.next_frame() {
                    Ok(Some(frame)) => messages.push((frame.tag, buffer.body(frame).to_vec())),
                    Ok(None) => break,
                    Err(_) => return (messages, true),
                }
            }
        }
        (messages, false)
    }

    fn encode(messages: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (tag, body) in messages {
            bytes.push(*tag);
            bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            bytes.extend(body);
        }
        bytes
    }

    fn messages() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        let size = prop_oneof![8 => 0..300usize, 1 => 60_000..70_000usize, 1 => 200_000..600_000usize];
        prop::collection::vec((any::<u8>(), size, any::<u8>()), 0..12).prop_map(|messages| {
            messages.into_iter().map(|(tag, size, byte)| (tag, vec![byte; size])).collect()
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, pieces in prop::collection::vec(1..40usize, 1..5)) {
            read(&bytes, &pieces, false);
        }

        #[test]
        fn what_was_sent_is_read_whatever_the_pieces(
            messages in messages(),
            pieces in prop::collection::vec(prop_oneof![1..10usize, 1_000..400_000usize], 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = encode(&messages);
            prop_assert_eq!(read(&bytes, &pieces, true), (messages.clone(), false));
            // Cut short, what is whole is read and nothing else.
            let end = cut.index(bytes.len() + 1);
            let (whole, refused) = read(&bytes[..end], &pieces, true);
            prop_assert!(!refused);
            prop_assert!(whole.len() <= messages.len() && whole[..] == messages[..whole.len()]);
            prop_assert!(end < bytes.len() || whole.len() == messages.len());
        }
    }

    #[test]
    fn a_large_message_gets_room_and_gives_it_back() {
        let large = vec![7u8; 20 << 20];
        let mut buffer = ReadBuffer::new();
        buffer.trust();
        let bytes = encode(&[(b'd', large.clone())]);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            rest = &rest[feed(&mut buffer, rest)..];
        }
        assert!(buffer.capacity() < large.len() + 2 * USUAL);
        let frame = buffer.next_frame().unwrap().unwrap();
        assert_eq!(buffer.body(frame), large);
        assert!(!buffer.room().is_empty());
        assert_eq!(buffer.capacity(), USUAL);
    }

    #[test]
    fn a_server_that_is_not_trusted_cannot_ask_for_memory() {
        let mut buffer = ReadBuffer::new();
        feed(&mut buffer, &[b'R', 0x3f, 0xff, 0xff, 0xff, 0]);
        assert!(buffer.next_frame().is_err());
        assert!(!buffer.room().is_empty());
        assert_eq!(buffer.capacity(), USUAL);
    }
}
