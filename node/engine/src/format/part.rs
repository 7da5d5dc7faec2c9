//! The typed parts of a commit record.
//!
//! A part either sets an entry of one of the tables or removes one; that is all that recovery, the index and the compactor need
//! to know of it, so a new kind of part is a row in [`PartKind::effect`]. Kinds that are not known are refused, never skipped: a
//! part that is skipped is a commit that half happened.

use std::fmt;

use super::header::HEADER_STEP;
use super::{ALIGN, ALIGN_LEN, Fields, MAX_KEY_LEN, MAX_VALUE_LEN, RecordHead, aligned};
use crate::tables::Table;

/// Bytes of a part's head; the key follows.
pub(crate) const PART_LEN: usize = 48;

/// The number of a [`PartKind::Put`] whose value does not follow in its record: it lies at a place before it in the same segment.
const PUT_PLACED: u8 = 15;

/// Values of these lengths, rounded up to 16, may lie at a place. Shorter ones gain nothing; and the bound above bounds what a forged log
/// makes of few bytes.
pub(crate) const PLACED: std::ops::RangeInclusive<u64> = 1024..=32 << 10;

/// What a part of a commit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PartKind {
    /// An object is stored.
    Put = 1,
    /// An object is deleted.
    Delete = 2,
    /// Messages of a source and key are consumed up to a number.
    Consumed = 3,
    /// The watermark of a source and key is forgotten.
    ConsumedForgotten = 4,
    /// A message is sent.
    Sent = 5,
    /// A sent message was acknowledged.
    Acknowledged = 6,
    /// A timer is set.
    TimerSet = 7,
    /// A timer is cleared, or has fired.
    TimerCleared = 8,
    /// A reply is remembered.
    ReplyRemembered = 9,
    /// A remembered reply is forgotten.
    ReplyForgotten = 10,
    /// Nothing but the durable watermark in the record's head.
    Watermark = 11,
    /// A segment holds nothing that is needed any more; it may be gone.
    SegmentRetired = 12,
    /// A file, a directory or a part of a file is kept.
    FileKept = 13,
    /// A file, a directory or a part of a file is kept no longer.
    FileForgotten = 14,
}

/// What a part does to the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Set(Table),
    Remove(Table),
    /// Concerns the log itself.
    Log,
}

impl PartKind {
    /// The highest number that is known.
    pub(crate) const LAST: u8 = PUT_PLACED;

    pub(crate) fn from_number(number: u8) -> Option<PartKind> {
        use PartKind::{
            Acknowledged, Consumed, ConsumedForgotten, Delete, FileForgotten, FileKept, Put, ReplyForgotten,
            ReplyRemembered, SegmentRetired, Sent, TimerCleared, TimerSet, Watermark,
        };
        [
            Put,
            Delete,
            Consumed,
            ConsumedForgotten,
            Sent,
            Acknowledged,
            TimerSet,
            TimerCleared,
            ReplyRemembered,
            ReplyForgotten,
            Watermark,
            SegmentRetired,
            FileKept,
            FileForgotten,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }

    pub(crate) fn effect(self) -> Effect {
        match self {
            PartKind::Put => Effect::Set(Table::Objects),
            PartKind::Delete => Effect::Remove(Table::Objects),
            PartKind::Consumed => Effect::Set(Table::Consumed),
            PartKind::ConsumedForgotten => Effect::Remove(Table::Consumed),
            PartKind::Sent => Effect::Set(Table::Sent),
            PartKind::Acknowledged => Effect::Remove(Table::Sent),
            PartKind::TimerSet => Effect::Set(Table::Timers),
            PartKind::TimerCleared => Effect::Remove(Table::Timers),
            PartKind::ReplyRemembered => Effect::Set(Table::Replies),
            PartKind::ReplyForgotten => Effect::Remove(Table::Replies),
            PartKind::FileKept => Effect::Set(Table::Files),
            PartKind::FileForgotten => Effect::Remove(Table::Files),
            PartKind::Watermark | PartKind::SegmentRetired => Effect::Log,
        }
    }

    /// The part that sets an entry of this table.
    pub(crate) fn setting(table: Table) -> PartKind {
        match table {
            Table::Objects => PartKind::Put,
            Table::Consumed => PartKind::Consumed,
            Table::Sent => PartKind::Sent,
            Table::Timers => PartKind::TimerSet,
            Table::Replies => PartKind::ReplyRemembered,
            Table::Files => PartKind::FileKept,
        }
    }

    /// The part that removes an entry of this table.
    pub(crate) fn removing(table: Table) -> PartKind {
        match table {
            Table::Objects => PartKind::Delete,
            Table::Consumed => PartKind::ConsumedForgotten,
            Table::Sent => PartKind::Acknowledged,
            Table::Timers => PartKind::TimerCleared,
            Table::Replies => PartKind::ReplyForgotten,
            Table::Files => PartKind::FileForgotten,
        }
    }
}

impl fmt::Display for PartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartHead {
    pub(crate) kind: PartKind,
    pub(crate) key_len: u16,
    /// Where the value lies in the segment, in units of 16 bytes; 0: in the record.
    pub(crate) place: u32,
    pub(crate) value_len: u64,
    pub(crate) fingerprint: u64,
    /// Number of the commit that wrote it first; 0 is this record's (a part that the compactor moved keeps the old one).
    pub(crate) version: u64,
    /// When that was; 0 is this record's.
    pub(crate) time_ms: u64,
    pub(crate) value_crc: u64,
}

/// Bytes that a part takes in a record, its value included: what the quota counts.
pub(crate) fn cost_in_log(key_len: usize, value_len: u64) -> u64 {
    aligned((PART_LEN + key_len) as u64) + aligned(value_len)
}

impl PartHead {
    pub(crate) fn append_to(&self, record: &mut Vec<u8>, key: &[u8]) {
        let mut head = [0; PART_LEN];
        head[0] = if self.place == 0 { self.kind as u8 } else { PUT_PLACED };
        head[2..4].copy_from_slice(&self.key_len.to_le_bytes());
        head[4..8].copy_from_slice(&self.place.to_le_bytes());
        let numbers = [self.value_len, self.fingerprint, self.version, self.time_ms, self.value_crc];
        for (place, number) in head[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        record.extend_from_slice(&head);
        record.extend_from_slice(key);
        let padded = record.len().next_multiple_of(ALIGN_LEN);
        record.resize(padded, 0);
    }
}

/// A part of a record that was read: its head, its key, and where its value lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) head: PartHead,
    pub(crate) key: &'a [u8],
    /// Offset of its value in the segment, in bytes.
    pub(crate) value_at: u64,
}

/// Why parts cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartError {
    UnknownKind(u8),
    Malformed,
}

/// The parts of a record, in order. Ends with an error if they do not fill the record exactly.
pub(crate) struct Parts<'a> {
    meta: &'a [u8],
    left: u32,
    /// Where the record begins and ends in its segment, and where in it the next value lies.
    at: u64,
    value_at: u64,
    end: u64,
}

impl<'a> Parts<'a> {
    /// `meta` holds the parts of the record at `at`, whose head is `head`.
    pub(crate) fn new(meta: &'a [u8], at: u64, head: &RecordHead) -> Parts<'a> {
        Parts { meta, left: head.parts, at, value_at: at + head.values_at(), end: at + head.len }
    }

    fn part(&mut self) -> Result<Part<'a>, PartError> {
        let bytes = self.meta.get(..PART_LEN).ok_or(PartError::Malformed)?;
        let mut fields = Fields(bytes);
        let number = fields.u8();
        let placed = number == PUT_PLACED;
        let kind = PartKind::from_number(if placed { PartKind::Put as u8 } else { number });
        let kind = kind.ok_or(PartError::UnknownKind(number))?;
        let flags = fields.u8();
        let key_len = fields.u16();
        let place = fields.u32();
        let [value_len, fingerprint, version, time_ms, value_crc] = std::array::from_fn(|_| fields.u64());
        let key_end = PART_LEN + usize::from(key_len);
        let key = self.meta.get(PART_LEN..key_end).ok_or(PartError::Malformed)?;
        let next = key_end.next_multiple_of(ALIGN_LEN);
        let value_at = if placed { u64::from(place) * ALIGN } else { self.value_at };
        let fits = if placed {
            // A place is before the record: the bytes of another value, which was dead by then.
            let end = value_at + aligned(value_len.min(MAX_VALUE_LEN));
            value_at >= HEADER_STEP as u64 && end <= self.at && PLACED.contains(&aligned(value_len))
        } else {
            place == 0 && aligned(value_len.min(MAX_VALUE_LEN)) <= self.end - value_at
        };
        let possible = flags == 0
            && value_len <= MAX_VALUE_LEN
            && key.len() <= MAX_KEY_LEN
            && (!key.is_empty() || kind == PartKind::Watermark)
            && next <= self.meta.len()
            && fits;
        if !possible {
            return Err(PartError::Malformed);
        }
        self.meta = &self.meta[next..];
        if !placed {
            self.value_at += aligned(value_len);
        }
        let head = PartHead { kind, key_len, place, value_len, fingerprint, version, time_ms, value_crc };
        Ok(Part { head, key, value_at })
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<Part<'a>, PartError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let exact = self.meta.is_empty() && self.value_at == self.end;
            self.meta = &[];
            self.value_at = self.end;
            return if exact { None } else { Some(Err(PartError::Malformed)) };
        }
        self.left -= 1;
        let part = self.part();
        if part.is_err() {
            (self.left, self.meta, self.value_at) = (0, &[], self.end);
        }
        Some(part)
    }
}
