//! An incremental decoder: bytes in as they come, whole frames out. Pure, so both ends and the tests use the same one.
//!
//! It owns one buffer. That is small while only small frames come, grows to one frame (at most [`crate::MAX_CONTROL_PAYLOAD`] and a
//! header) when a header that was *already checked* asks for more, and shrinks again. After an error it stays in that error: a
//! stream that lost its place cannot find it again.
//!
//! Two ways out. [`FrameReader::frame`] waits until a frame is whole in the buffer. [`FrameReader::split`] hands over the header and
//! what has arrived of the payload, and leaves the rest to the caller, who can then read it straight to where it belongs.

use serde::de::DeserializeOwned;

use crate::{HEADER_LEN, Header, Sender, WireError, control};

/// Enough for many small frames in one read, little enough that most of a large body never passes through it.
const SMALL: usize = 16 << 10;

/// A frame that lies whole in a [`FrameReader`]'s buffer.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Checked.
    pub header: Header,
    /// Exactly as many bytes as the header says.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Reads the payload as one of the JSON documents.
    ///
    /// # Errors
    /// [`WireError::BadDocument`].
    pub fn document<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        control::read_document(self.header.kind, self.payload)
    }
}

/// Turns a byte stream from one end into frames.
#[derive(Debug)]
pub struct FrameReader {
    from: Sender,
    /// Always fully initialised; `start..end` are bytes not yet handed out.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    broken: Option<WireError>,
}

impl FrameReader {
    /// A reader of what `from` sends.
    pub fn new(from: Sender) -> FrameReader {
        FrameReader { from, buffer: vec![0; SMALL], start: 0, end: 0, broken: None }
    }

    /// Where to read into: never empty. Tell what was read with [`FrameReader::filled`].
    pub fn space(&mut self) -> &mut [u8] {
        self.make_room();
        &mut self.buffer[self.end..]
    }

    /// `count` bytes were read into [`FrameReader::space`].
    ///
    /// # Panics
    /// When that is more than there was space.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.end, "more bytes were read than there was space");
        self.end += count;
    }

    /// Copies bytes in, where they cannot be read in place. The buffer grows by what does not fit, so take the frames out
    /// between two pushes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        self.make_room();
        if self.end + bytes.len() > self.buffer.len() {
            self.buffer.resize(self.end + bytes.len(), 0);
        }
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`WireError`], and the same one for ever after.
    pub fn frame(&mut self) -> Result<Option<Frame<'_>>, WireError> {
        let Some(header) = self.peek()? else { return Ok(None) };
        let whole = HEADER_LEN + header.len();
        if self.unread() < whole {
            return Ok(None);
        }
        let payload = self.start + HEADER_LEN..self.start + whole;
        self.start += whole;
        Ok(Some(Frame { header, payload: &self.buffer[payload] }))
    }

    /// The next header, checked, without taking it.
    ///
    /// # Errors
    /// As [`FrameReader::frame`].
    pub fn peek(&mut self) -> Result<Option<Header>, WireError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let Some(bytes) = self.buffer[self.start..self.end].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        Header::decode_from(self.from, bytes).map(Some).inspect_err(|error| self.broken = Some(error.clone()))
    }

    /// Takes the next header and what has arrived of its payload (possibly nothing). The rest of the payload,
    /// `header.len() - part.len()` bytes, is the next on the stream: the caller must take exactly it before it uses the reader again.
    ///
    /// # Errors
    /// As [`FrameReader::frame`].
    pub fn split(&mut self) -> Result<Option<Frame<'_>>, WireError> {
        self.split_after(0)
    }

    /// [`FrameReader::split`], but `None` until `least` bytes of the payload, or all of it if it is shorter, have arrived: enough
    /// to hold a head.
    ///
    /// # Errors
    /// As [`FrameReader::frame`].
    pub fn split_after(&mut self, least: usize) -> Result<Option<Frame<'_>>, WireError> {
        let Some(header) = self.peek()? else { return Ok(None) };
        let from = self.start + HEADER_LEN;
        let to = self.end.min(from + header.len());
        if to - from < least.min(header.len()) {
            return Ok(None);
        }
        self.start = to;
        Ok(Some(Frame { header, payload: &self.buffer[from..to] }))
    }

    /// Bytes that arrived and were not handed out.
    pub fn unread(&self) -> usize {
        self.end - self.start
    }

    /// How many bytes must be unread for the next frame to be whole, as far as is known. A bad header asks for nothing more.
    fn needed(&self) -> usize {
        match self.buffer[self.start..self.end].first_chunk::<HEADER_LEN>() {
            Some(bytes) => {
                Header::decode_from(self.from, bytes).map_or(HEADER_LEN, |header| HEADER_LEN + header.len())
            }
            None => HEADER_LEN,
        }
    }

    /// Afterwards the next frame fits behind `start`, and at least one byte can be read in.
    fn make_room(&mut self) {
        if self.start == self.end || self.broken.is_some() {
            self.start = 0;
            self.end = 0;
            self.buffer.resize(SMALL, 0);
            self.buffer.shrink_to(SMALL);
        }
        let needed = self.needed().max(self.unread() + 1);
        if self.start + needed > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if needed > self.buffer.len() {
            self.buffer.resize(needed, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, MAX_CONTROL_PAYLOAD, MAX_FRAME_PAYLOAD};

    fn data_frame(id: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Header::new(Kind::Data, id).with_payload(payload.len()).encode().to_vec();
        out.extend_from_slice(payload);
        out
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn no_truncation_of_a_frame_is_taken_for_a_frame() {
        let bytes = data_frame(3, b"some bytes");
        for cut in 0..bytes.len() {
            let mut reader = FrameReader::new(Sender::Agent);
            reader.push(&bytes[..cut]);
            assert!(reader.frame().unwrap().is_none(), "cut at {cut}");
            reader.push(&bytes[cut..]);
            assert_eq!(reader.frame().unwrap().unwrap().payload, b"some bytes", "continued at {cut}");
        }
    }

    #[test]
    fn frames_come_out_the_same_however_the_stream_is_cut() {
        let bodies = [
            pattern(0),
            pattern(1),
            pattern(MAX_FRAME_PAYLOAD),
            pattern(100),
            pattern(SMALL),
            pattern(SMALL + 1),
        ];
        let stream: Vec<u8> = bodies.iter().flat_map(|body| data_frame(5, body)).collect();
        for step in [1, 7, 31, 32, 33, 1000, SMALL, 100_000] {
            let mut reader = FrameReader::new(Sender::Agent);
            let mut seen = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let room = reader.space();
                let count = step.min(room.len()).min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                reader.filled(count);
                rest = &rest[count..];
                while let Some(frame) = reader.frame().unwrap() {
                    seen.push(frame.payload.to_vec());
                }
            }
            assert!(seen == bodies, "in steps of {step}");
        }
    }

    #[test]
    fn a_split_frame_leaves_exactly_its_rest_on_the_stream() {
        let body = pattern(50_000);
        let mut stream = data_frame(1, &body);
        stream.extend_from_slice(&data_frame(2, b"next"));
        for first in [HEADER_LEN, HEADER_LEN + 1, SMALL] {
            let mut reader = FrameReader::new(Sender::Agent);
            reader.push(&stream[..first]);
            let frame = reader.split().unwrap().unwrap();
            let mut got = frame.payload.to_vec();
            let rest = frame.header.len() - got.len();
            got.extend_from_slice(&stream[first..first + rest]);
            assert!(got == body);
            reader.push(&stream[first + rest..]);
            assert_eq!(reader.frame().unwrap().unwrap().payload, b"next");
        }
    }

    #[test]
    fn a_split_waits_for_the_bytes_of_a_head() {
        let stream = data_frame(1, &pattern(100));
        let mut reader = FrameReader::new(Sender::Agent);
        reader.push(&stream[..HEADER_LEN + 9]);
        assert!(reader.split_after(10).unwrap().is_none());
        reader.push(&stream[HEADER_LEN + 9..HEADER_LEN + 12]);
        assert_eq!(reader.split_after(10).unwrap().unwrap().payload, &pattern(12)[..]);
        let mut short = FrameReader::new(Sender::Agent);
        short.push(&data_frame(1, b"abc"));
        assert_eq!(short.split_after(10).unwrap().unwrap().payload, b"abc");
    }

    #[test]
    fn a_hostile_length_costs_no_memory_and_an_error_is_final() {
        let mut bytes = Header::new(Kind::Data, 1).encode();
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut reader = FrameReader::new(Sender::Agent);
        reader.push(&bytes);
        assert!(reader.space().len() <= SMALL);
        let error = reader.frame().unwrap_err();
        assert!(matches!(error, WireError::TooLong { .. }));
        reader.push(&data_frame(1, b"fine"));
        assert_eq!(reader.frame().unwrap_err(), error);
        assert_eq!(reader.split().unwrap_err(), error);
        for _ in 0..100 {
            let count = reader.space().len();
            assert!(count > 0 && count <= SMALL);
            reader.filled(count);
        }
    }

    #[test]
    fn a_frame_of_the_wrong_end_is_refused() {
        let mut reader = FrameReader::new(Sender::Runner);
        reader.push(&data_frame(1, b"x"));
        assert_eq!(reader.frame().unwrap_err(), WireError::WrongDirection(Kind::Data));
    }

    #[test]
    fn the_buffer_shrinks_after_a_large_document() {
        let mut reader = FrameReader::new(Sender::Agent);
        let header = Header::new(Kind::Assign, 0).with_payload(MAX_CONTROL_PAYLOAD);
        reader.push(&header.encode());
        assert!(reader.frame().unwrap().is_none());
        let mut missing = MAX_CONTROL_PAYLOAD;
        while missing > 0 {
            let count = reader.space().len().min(missing);
            reader.filled(count);
            missing -= count;
        }
        assert_eq!(reader.frame().unwrap().unwrap().payload.len(), MAX_CONTROL_PAYLOAD);
        reader.space();
        assert!(reader.buffer.capacity() <= 2 * SMALL, "{} bytes kept", reader.buffer.capacity());
    }

    #[test]
    fn random_streams_never_panic() {
        let mut seed = 1_u64;
        for round in 0..2_000_u64 {
            let mut reader = FrameReader::new(if round % 2 == 0 { Sender::Agent } else { Sender::Runner });
            for _ in 0..40 {
                let mut bytes = [0u8; 40];
                for byte in &mut bytes {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    *byte = u8::try_from(seed >> 32 & 0xFF).unwrap() % if seed & 7 == 0 { 255 } else { 4 };
                }
                reader.push(&bytes);
                while let Ok(Some(frame)) = reader.frame() {
                    assert_eq!(frame.payload.len(), frame.header.len());
                }
            }
        }
    }
}
