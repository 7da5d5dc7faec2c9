//! Cuts a byte stream into frames, without copying bodies.
//!
//! Bytes come in pieces of any size. What lies whole in a piece is read where it lies; only a header or head that a piece
//! cuts apart is kept, at most [`HEADER_LEN`] and [`crate::limits::MAX_HEAD`] bytes. Bodies are handed on as they come,
//! or left on the stream for the caller to receive where they belong.

use std::ops::Range;

use crate::header::{Header, Sender};
use crate::limits::HEADER_LEN;
use crate::violation::Violation;

/// What a kept header may leave allocated between frames.
const KEPT_CAPACITY: usize = 256;

/// Where a frame's head lies.
#[derive(Debug, Clone)]
pub(crate) enum HeadAt {
    /// In the piece that was given.
    Input(Range<usize>),
    /// In [`Intake::kept`].
    Kept(Range<usize>),
}

/// What the stream held next. Ranges are of the piece as it was given.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A header with its whole head, and what is there of its body.
    Frame { header: Header, head: HeadAt, body: Range<usize>, rest: usize },
    /// More of the body of the last frame.
    Body { header: Header, body: Range<usize>, rest: usize },
}

/// The rest of a body that is the next on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unread {
    header: Header,
    body: usize,
    padding: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Intake {
    from: Sender,
    kept: Vec<u8>,
    /// The kept bytes were handed out with the last frame.
    spent: bool,
    unread: Option<Unread>,
}

impl Intake {
    pub(crate) fn new(from: Sender) -> Intake {
        Intake { from, kept: Vec::new(), spent: false, unread: None }
    }

    /// One that begins with bytes to be dropped: the rest of a body that nobody wants.
    pub(crate) fn skipping(from: Sender, header: Header, body: usize, padding: usize) -> Intake {
        let unread = (body + padding > 0).then_some(Unread { header, body, padding });
        Intake { unread, ..Intake::new(from) }
    }

    /// Takes the next step from `input` and shortens it, or gives `None` until there is more.
    pub(crate) fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Step>, Violation> {
        self.drop_spent();
        let given = *input;
        if self.unread.is_some() {
            let (step, used) = self.body(given)?;
            *input = &given[used..];
            if step.is_some() || self.unread.is_some() {
                return Ok(step);
            }
            return self.frame(given, used, input);
        }
        self.frame(given, 0, input)
    }

    /// A head's bytes.
    pub(crate) fn head<'a>(&'a self, at: &HeadAt, given: &'a [u8]) -> &'a [u8] {
        match at {
            HeadAt::Input(range) => &given[range.clone()],
            HeadAt::Kept(range) => &self.kept[range.clone()],
        }
    }

    /// The header of the frame whose body is the next on the stream, with the bytes of body and of padding to come.
    pub(crate) fn unread(&self) -> Option<(Header, usize, usize)> {
        self.unread.map(|unread| (unread.header, unread.body, unread.padding))
    }

    /// `len` bytes of [`Intake::unread`] were taken from the stream elsewhere. Gives the frame, how much of it was body, and how
    /// much body is left.
    ///
    /// # Panics
    /// When that is more than was to come: the caller's own count is wrong.
    pub(crate) fn received(&mut self, len: usize) -> Option<(Header, usize, usize)> {
        let Some(mut unread) = self.unread else {
            assert!(len == 0, "bytes were received elsewhere where no body was to come");
            return None;
        };
        assert!(len <= unread.body + unread.padding, "more was received elsewhere than belongs to the frame");
        let body = len.min(unread.body);
        unread.body -= body;
        unread.padding -= len - body;
        self.put_back(unread);
        Some((unread.header, body, unread.body))
    }

    /// Whether the stream may end here.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.unread.is_none() && (self.spent || self.kept.is_empty())
    }

    /// Bytes that were taken from the stream and not used.
    pub(crate) fn leftover(&self) -> &[u8] {
        if self.spent { &[] } else { &self.kept }
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept.capacity()
    }

    fn drop_spent(&mut self) {
        if !self.spent {
            return;
        }
        self.spent = false;
        self.kept.clear();
        if self.kept.capacity() > KEPT_CAPACITY {
            self.kept = Vec::new();
        }
    }

    fn put_back(&mut self, unread: Unread) {
        self.unread = (unread.body + unread.padding > 0).then_some(unread);
    }

    /// Body bytes first, then padding. Gives also how many bytes were used.
    fn body(&mut self, given: &[u8]) -> Result<(Option<Step>, usize), Violation> {
        let Some(mut unread) = self.unread else { return Ok((None, 0)) };
        let body = given.len().min(unread.body);
        unread.body -= body;
        let used = body + take_padding(&mut unread, &given[body..])?;
        self.put_back(unread);
        let Unread { header, body: rest, .. } = unread;
        let step = (body > 0).then_some(Step::Body { header, body: 0..body, rest });
        Ok((step, used))
    }

    /// A frame that begins at `from` of `given`, or in the kept bytes.
    fn frame<'a>(
        &mut self,
        given: &'a [u8],
        from: usize,
        input: &mut &'a [u8],
    ) -> Result<Option<Step>, Violation> {
        let (header, head, at) = if self.kept.is_empty() {
            match self.whole_head(&given[from..])? {
                Some(header) => {
                    let head = from + HEADER_LEN;
                    let end = head + usize::from(header.head_len);
                    check_padding(&header, &given[end..head + header.padded_head()])?;
                    (header, HeadAt::Input(head..end), head + header.padded_head())
                }
                None => {
                    self.kept.extend_from_slice(&given[from..]);
                    *input = &[];
                    return Ok(None);
                }
            }
        } else {
            let Some((header, at)) = self.complete_kept(given, from)? else {
                *input = &[];
                return Ok(None);
            };
            let end = HEADER_LEN + usize::from(header.head_len);
            check_padding(&header, &self.kept[end..])?;
            self.spent = true;
            (header, HeadAt::Kept(HEADER_LEN..end), at)
        };
        let rest = given.len() - at;
        let body = rest.min(header.body());
        let mut unread = Unread { header, body: header.body() - body, padding: header.body_padding() };
        let used = at + body + take_padding(&mut unread, &given[at + body..])?;
        self.put_back(unread);
        *input = &given[used..];
        Ok(Some(Step::Frame { header, head, body: at..at + body, rest: unread.body }))
    }

    /// The header at the start of `bytes`, if its whole head lies there too. A header is checked as soon as it is there.
    fn whole_head(&self, bytes: &[u8]) -> Result<Option<Header>, Violation> {
        let Some(lead) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::decode(self.from, lead)?;
        Ok((bytes.len() >= HEADER_LEN + header.padded_head()).then_some(header))
    }

    /// Moves bytes behind the kept ones until they are a header with its head. Gives it and where the body begins in `given`.
    fn complete_kept(&mut self, given: &[u8], from: usize) -> Result<Option<(Header, usize)>, Violation> {
        let mut at = from;
        let mut fill = |kept: &mut Vec<u8>, len: usize| {
            let take = len.saturating_sub(kept.len()).min(given.len() - at);
            kept.extend_from_slice(&given[at..at + take]);
            at += take;
            kept.len() >= len
        };
        if !fill(&mut self.kept, HEADER_LEN) {
            return Ok(None);
        }
        let Some(lead) = self.kept.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::decode(self.from, lead)?;
        let whole = fill(&mut self.kept, HEADER_LEN + header.padded_head());
        Ok(whole.then_some((header, at)))
    }
}

fn check_padding(header: &Header, bytes: &[u8]) -> Result<(), Violation> {
    if bytes.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(Violation::BadPadding { kind: header.kind })
    }
}

/// Takes what is there of the padding once the body is through.
fn take_padding(unread: &mut Unread, bytes: &[u8]) -> Result<usize, Violation> {
    if unread.body > 0 {
        return Ok(0);
    }
    let take = bytes.len().min(unread.padding);
    check_padding(&unread.header, &bytes[..take])?;
    unread.padding -= take;
    Ok(take)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{FLAG_END, Kind, PADDING, padding};

    fn data(id: u64, body: &[u8]) -> Vec<u8> {
        let body_len = u32::try_from(body.len()).unwrap();
        let header = Header { body_len, flags: FLAG_END, ..Header::new(Kind::Data, id) };
        let mut out = header.encode().to_vec();
        out.extend_from_slice(body);
        out.extend_from_slice(&PADDING[..padding(body.len())]);
        out
    }

    fn with_head(id: u64, head: &[u8], body: &[u8]) -> Vec<u8> {
        let mut header = Header::new(Kind::Call, id);
        header.head_len = u16::try_from(head.len()).unwrap();
        header.body_len = u32::try_from(body.len()).unwrap();
        let mut out = header.encode().to_vec();
        for part in [head, body] {
            out.extend_from_slice(part);
            out.extend_from_slice(&PADDING[..padding(part.len())]);
        }
        out
    }

    /// Id, head and body.
    type Whole = (u64, Vec<u8>, Vec<u8>);

    /// Everything that comes out, joined.
    fn drink(stream: &[u8], step: usize) -> Result<Vec<Whole>, Violation> {
        let mut intake = Intake::new(Sender::Client);
        let mut out: Vec<Whole> = Vec::new();
        for piece in stream.chunks(step) {
            let mut input = piece;
            loop {
                let given = input;
                match intake.advance(&mut input)? {
                    None => break,
                    Some(Step::Frame { header, head, body, .. }) => {
                        let head = intake.head(&head, given).to_vec();
                        out.push((header.id, head, given[body].to_vec()));
                    }
                    Some(Step::Body { body, .. }) => {
                        out.last_mut().unwrap().2.extend_from_slice(&given[body])
                    }
                }
            }
            assert!(input.is_empty(), "what is not an event is kept");
            assert!(intake.kept.len() <= HEADER_LEN + crate::limits::MAX_HEAD);
        }
        assert!(intake.is_between_frames());
        Ok(out)
    }

    #[test]
    fn frames_come_out_the_same_however_the_stream_is_cut() {
        let bodies: Vec<Vec<u8>> = [0, 1, 15, 16, 17, 100, 5000].map(|len| vec![7; len]).to_vec();
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for (id, body) in (1..).zip(&bodies) {
            let head = vec![u8::try_from(id).unwrap(); 16 + body.len() % 40];
            stream.extend_from_slice(&data(id, body));
            expected.push((id, Vec::new(), body.clone()));
            stream.extend_from_slice(&with_head(id, &head, body));
            expected.push((id, head, body.clone()));
        }
        for step in [1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 100, 1000, stream.len()] {
            assert!(drink(&stream, step).as_ref() == Ok(&expected), "in steps of {step}");
        }
    }

    #[test]
    fn a_body_can_be_received_elsewhere() {
        let mut stream = data(1, &[5; 1000]);
        stream.extend_from_slice(&data(2, b"next"));
        for first in [32, 33, 500, 1031] {
            let mut intake = Intake::new(Sender::Client);
            let mut input = &stream[..first];
            let step = intake.advance(&mut input).unwrap();
            assert!(matches!(step, Some(Step::Frame { rest, .. }) if rest == 1032 - first));
            let (header, body, pad) = intake.unread().unwrap();
            assert_eq!((header.id, body, pad), (1, 1032 - first, 8));
            intake.received(10.min(body));
            let (_, left, pad) = intake.unread().unwrap();
            intake.received(left + pad);
            let mut input = &stream[1040..];
            assert!(
                matches!(intake.advance(&mut input), Ok(Some(Step::Frame { header, .. })) if header.id == 2)
            );
        }
    }

    #[test]
    fn padding_that_is_not_zero_is_refused_wherever_it_is_cut() {
        for (mut stream, at) in [(data(1, b"abc"), 36), (with_head(1, &[0; 17], b""), 60)] {
            stream[at] = 1;
            for step in [1, 5, 36, stream.len()] {
                assert!(matches!(drink(&stream, step), Err(Violation::BadPadding { .. })), "steps of {step}");
            }
        }
    }

    #[test]
    fn a_hostile_length_is_refused_with_the_header() {
        let mut stream = data(1, b"");
        stream[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(drink(&stream, 32), Err(Violation::BodyTooLong { .. })));
        assert!(matches!(drink(&stream, 1), Err(Violation::BodyTooLong { .. })));
    }

    #[test]
    fn an_idle_intake_keeps_next_to_nothing() {
        let stream = with_head(1, &[1; 8000], b"");
        let mut intake = Intake::new(Sender::Client);
        for piece in stream.chunks(100) {
            let mut input = piece;
            let _ = intake.advance(&mut input).unwrap();
        }
        assert!(intake.advance(&mut &[][..]).unwrap().is_none());
        assert!(intake.kept.capacity() <= KEPT_CAPACITY);
    }
}
