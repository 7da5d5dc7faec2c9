//! The fields of a head: tag, length and bytes, in the order of their tags.
//!
//! One form for one content: a field comes at most once and tags only grow, so that what was read and written again is the same bytes.
//! A tag with its highest bit set may be skipped by an end that does not know it; any other unknown one is refused, so that nothing that
//! matters is overlooked.

use crate::header::{Header, Kind, padding};
use crate::limits::HEADER_LEN;
use crate::text::Wrong;
use crate::violation::Violation;

/// A field with this bit in its tag may be skipped.
pub(crate) const SKIPPABLE: u16 = 0x8000;

macro_rules! tags {
    ($($(#[$doc:meta])* $name:ident = $tag:literal;)*) => {
        $($(#[$doc])* pub(crate) const $name: u16 = $tag;)*

        /// Name and number of each, for the comparison with the document.
        #[cfg(test)]
        pub(crate) const TAGS: &[(&str, u16)] = &[$((stringify!($name), $tag),)*];
    };
}

tags! {
    /// Application name.
    APP = 1;
    /// Process name.
    PROCESS = 2;
    /// Function name.
    FUNCTION = 3;
    /// Content type of a body.
    CONTENT_TYPE = 4;
    /// Idempotency key.
    IDEMPOTENCY_KEY = 5;
    /// W3C trace context in 25 bytes.
    TRACEPARENT = 6;
    /// Invocation id.
    INVOCATION = 7;
    /// Where to connect instead.
    ADDRESS = 8;
    /// Signed token.
    TOKEN = 9;
    /// Name of the client software.
    CLIENT = 10;
    /// Table and index of a function that was called by name.
    FUNCTION_REF = 11;
    /// Problem type.
    PROBLEM = 12;
    /// What happened.
    DETAIL = 13;
    /// What was behind it.
    CAUSE = 14;
    /// What to do.
    REMEDY = 15;
}

/// Writes one frame up to its body: header, head and the head's padding.
#[derive(Debug)]
pub(crate) struct FrameWriter<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    kind: Kind,
    wrong: Option<Violation>,
}

impl<'o> FrameWriter<'o> {
    pub(crate) fn new(kind: Kind, out: &'o mut Vec<u8>) -> FrameWriter<'o> {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        FrameWriter { out, start, kind, wrong: None }
    }

    /// A part of the fixed head.
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A field that is there if `value` is, checked by `rule` as the reader will.
    pub(crate) fn field<'v, T: ?Sized + AsRef<[u8]>>(
        &mut self,
        (tag, field): (u16, &'static str),
        value: Option<&'v T>,
        rule: impl Fn(&'v [u8]) -> Result<&'v str, Wrong>,
    ) {
        let Some(value) = value.map(AsRef::as_ref) else { return };
        match rule(value) {
            Ok(_) => self.raw(tag, value),
            Err(why) => self.refuse(Violation::BadField { kind: self.kind, field, why }),
        }
    }

    /// A field whose content needs no check.
    pub(crate) fn raw(&mut self, tag: u16, value: &[u8]) {
        #[expect(clippy::cast_possible_truncation, reason = "every field's own limit is far below 65536")]
        let len = value.len() as u16;
        self.out.extend_from_slice(&tag.to_le_bytes());
        self.out.extend_from_slice(&len.to_le_bytes());
        self.out.extend_from_slice(value);
    }

    pub(crate) fn refuse(&mut self, why: Violation) {
        self.wrong.get_or_insert(why);
    }

    /// Completes the header and pads the head. After an error `out` is as it was.
    pub(crate) fn finish(self, header: Header) -> Result<(), Violation> {
        debug_assert_eq!(header.kind, self.kind);
        let len = self.out.len() - self.start - HEADER_LEN;
        let head_len = u16::try_from(len).ok().filter(|_| len <= self.kind.max_head());
        let wrong = match (self.wrong, head_len) {
            (None, Some(head_len)) => {
                let header = Header { head_len, ..header };
                self.out[self.start..self.start + HEADER_LEN].copy_from_slice(&header.encode());
                self.out.resize(self.out.len() + padding(len), 0);
                return Ok(());
            }
            (Some(wrong), _) => wrong,
            (None, None) => Violation::BadHeadLength { kind: self.kind, len },
        };
        self.out.truncate(self.start);
        Err(wrong)
    }
}

/// A frame without a head.
pub(crate) fn bare(header: Header, out: &mut Vec<u8>) {
    out.extend_from_slice(&header.encode());
}

/// Reads a head: first its fixed part, then its fields.
#[derive(Debug)]
pub(crate) struct FieldReader<'a> {
    kind: Kind,
    rest: &'a [u8],
    last: Option<u16>,
}

impl<'a> FieldReader<'a> {
    /// Splits the fixed part off. `head` is as long as the header said, and that was checked.
    pub(crate) fn new(kind: Kind, head: &'a [u8]) -> Result<(&'a [u8], FieldReader<'a>), Violation> {
        let (fixed, rest) = head
            .split_at_checked(kind.fixed_head())
            .ok_or(Violation::BadHeadLength { kind, len: head.len() })?;
        Ok((fixed, FieldReader { kind, rest, last: None }))
    }

    /// The next field, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u16, &'a [u8])>, Violation> {
        let kind = self.kind;
        if self.rest.is_empty() {
            return Ok(None);
        }
        let cut = || Violation::FieldCutShort { kind };
        let (lead, rest) = self.rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let tag = u16::from_le_bytes([lead[0], lead[1]]);
        let len = usize::from(u16::from_le_bytes([lead[2], lead[3]]));
        let (value, rest) = rest.split_at_checked(len).ok_or_else(cut)?;
        if self.last.is_some_and(|last| tag <= last) {
            return Err(Violation::FieldOrder { kind, tag });
        }
        self.last = Some(tag);
        self.rest = rest;
        Ok(Some((tag, value)))
    }

    /// What to do with a field that this kind does not have.
    pub(crate) fn unknown(&self, tag: u16) -> Result<(), Violation> {
        if tag & SKIPPABLE != 0 { Ok(()) } else { Err(Violation::UnknownField { kind: self.kind, tag }) }
    }

    /// Turns what a text rule said into what it is called here.
    pub(crate) fn text(
        &self,
        field: &'static str,
        checked: Result<&'a str, Wrong>,
    ) -> Result<Option<&'a str>, Violation> {
        checked.map(Some).map_err(|why| Violation::BadField { kind: self.kind, field, why })
    }
}

/// Eight bytes of a fixed head that was split off at its checked length.
pub(crate) fn u64_in(fixed: &[u8], at: usize) -> u64 {
    fixed[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Four bytes of a fixed head.
pub(crate) fn u32_in(fixed: &[u8], at: usize) -> u32 {
    fixed[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// That the rest of a fixed head from `at` on is zero.
pub(crate) fn zero_from(kind: Kind, fixed: &[u8], at: usize) -> Result<(), Violation> {
    if fixed[at..].iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Violation::ReservedNotZero { kind }) }
}
