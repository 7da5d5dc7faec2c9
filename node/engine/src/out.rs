//! Parts on their way into a record, and how the bytes of a record get into a segment: by plain writes, or stored through a window.

use std::borrow::Cow;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::StateError;
use crate::error::Operation;
use crate::format::{ALIGN_LEN, PartKind, RecordHead, aligned, cost_in_log};
use crate::storage::Segment;
use crate::window::Window;

/// Values of at least this many bytes are written by themselves, smaller ones together with the rest of their record.
const WRITE_TOGETHER: usize = 64 << 10;
/// A value that is copied from another segment is held in memory in pieces of this size.
const COPIED_AT_ONCE: usize = 1 << 20;

/// A value to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    /// One that lies in another segment and is copied from there piece by piece: too large to be held in memory.
    Stored {
        segment: &'a dyn Segment,
        at: u64,
        len: u64,
    },
}

impl Content<'_> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Stored { len, .. } => *len,
        }
    }
}

/// A part to be written.
#[derive(Debug)]
pub(crate) struct Out<'a> {
    pub(crate) kind: PartKind,
    pub(crate) key: Cow<'a, [u8]>,
    pub(crate) value: Content<'a>,
    pub(crate) fingerprint: u64,
    /// 0: this commit's.
    pub(crate) version: u64,
    /// 0: this commit's.
    pub(crate) time_ms: u64,
    pub(crate) value_crc: u64,
    /// What the cell of the new version begins with.
    pub(crate) validated: u32,
    /// Where the value goes, if that is not into the record: an offset in the segment.
    pub(crate) place: Option<u64>,
}

impl Out<'_> {
    /// A part with neither key nor value.
    pub(crate) fn of(kind: PartKind) -> Out<'static> {
        let key = Cow::Borrowed([].as_slice());
        let value = Content::Bytes(&[]);
        Out {
            kind,
            key,
            value,
            fingerprint: 0,
            version: 0,
            time_ms: 0,
            value_crc: 0,
            validated: 0,
            place: None,
        }
    }

    /// Bytes that it takes at most in a record.
    pub(crate) fn len(&self) -> u64 {
        cost_in_log(self.key.len(), self.value.len())
    }

    /// Bytes that its value takes in the record.
    pub(crate) fn value_in_record(&self) -> u64 {
        if self.place.is_some() { 0 } else { aligned(self.value.len()) }
    }
}

/// Stores the values that go to places of their own.
pub(crate) fn store_placed(window: &mut Window, parts: &[Out<'_>]) {
    for part in parts {
        if let (Some(place), Content::Bytes(value)) = (part.place, part.value) {
            window.store_over(place, value);
        }
    }
    // A process that is killed leaves its stores as far as it got: nothing of the record may be among them before all of the values are.
    compiler_fence(Ordering::SeqCst);
}

/// Stores a record whose head and parts are in `record` and whose values follow. The head comes last, and what pads is zero already: the
/// segment is fresh.
pub(crate) fn store(window: &mut Window, record: &[u8], parts: &[Out<'_>], at: u64, head: &RecordHead) {
    let mut value_at = at + head.values_at();
    for part in parts.iter().filter(|part| part.place.is_none()) {
        let Content::Bytes(value) = part.value else { unreachable!("no window has room for a stored value") };
        window.store(value_at, value);
        value_at += aligned(value.len() as u64);
    }
    window.store(at, record);
    window.advance(at + head.len);
}

/// Writes a record whose head and parts are in `record` and whose values follow; uses up `record`.
pub(crate) fn write(
    segment: &dyn Segment,
    record: &mut Vec<u8>,
    parts: &[Out<'_>],
    at: u64,
    len: u64,
) -> Result<(), StateError> {
    let mut writer = Writer { segment, at, pending: record };
    for part in parts.iter().filter(|part| part.place.is_none()) {
        match part.value {
            Content::Bytes(value) if value.len() < WRITE_TOGETHER => writer.gather(value)?,
            Content::Bytes(value) => {
                writer.flush()?;
                writer.put(value)?;
            }
            Content::Stored { segment, at, len } => {
                writer.flush()?;
                writer.copy(segment, at, len)?;
            }
        }
        // What pads a large value is zero already: the segment is fresh.
        writer.at = aligned(writer.at);
    }
    writer.flush()?;
    debug_assert_eq!(writer.at, at + len, "a record was not written whole");
    Ok(())
}

/// Writes one thing behind the other by plain writes.
struct Writer<'a> {
    segment: &'a dyn Segment,
    /// Where `pending` goes.
    at: u64,
    pending: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let written = self.segment.write_at(bytes, self.at);
        written.map_err(StateError::io(Operation::Write, self.segment.id()))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StateError> {
        if !self.pending.is_empty() {
            let mut pending = std::mem::take(self.pending);
            self.put(&pending)?;
            pending.clear();
            *self.pending = pending;
        }
        Ok(())
    }

    /// Puts a value and what pads it with what is pending.
    fn gather(&mut self, value: &[u8]) -> Result<(), StateError> {
        self.pending.extend_from_slice(value);
        self.pending.resize(self.pending.len().next_multiple_of(ALIGN_LEN), 0);
        if self.pending.len() < 4 * WRITE_TOGETHER { Ok(()) } else { self.flush() }
    }

    /// Copies a value from another segment.
    fn copy(&mut self, from: &dyn Segment, mut at: u64, len: u64) -> Result<(), StateError> {
        let end = at + len;
        let mut piece = vec![0; COPIED_AT_ONCE];
        while at < end {
            let now = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPIED_AT_ONCE);
            let read = from.read_at(&mut piece[..now], at);
            read.map_err(StateError::io(Operation::Read, from.id()))?;
            self.put(&piece[..now])?;
            at += now as u64;
        }
        Ok(())
    }
}
