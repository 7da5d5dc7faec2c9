//! What can go wrong with state, whose doing it is, and what to do about it.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::format::{FORMAT, MAX_KEY_LEN, MAX_VALUE_LEN, PartKind};

/// A key as an error shows it: readable if it is text, hexadecimal otherwise, cut after 64 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownKey(pub Vec<u8>);

impl fmt::Debug for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        match std::str::from_utf8(shown) {
            Ok(text) if !text.chars().any(char::is_control) => write!(f, "\"{text}\"")?,
            _ => shown.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?,
        }
        if shown.len() < self.0.len() { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

/// Bytes that are no longer what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Segment that holds them.
    pub segment: u64,
    /// Where in that segment the damaged header, record or value begins, in bytes.
    pub offset: u64,
    /// Whose value it is, where that is known.
    pub key: Option<ShownKey>,
    /// What does not fit.
    pub why: &'static str,
}

impl Damage {
    /// A value at `offset` that its checksum does not vouch for.
    pub(crate) fn of_value(segment: u64, offset: u64, key: &[u8]) -> Damage {
        let why = "a value does not fit its checksum";
        Damage { segment, offset, key: Some(ShownKey(key.to_vec())), why }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} is damaged at byte {} ({})", self.segment, self.offset, self.why)?;
        self.key.as_ref().map_or(Ok(()), |key| write!(f, ", under the key {key}"))
    }
}

/// Which operation on a segment failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reading bytes of a segment.
    Read,
    /// Writing bytes of a segment.
    Write,
    /// Making what was written durable.
    Sync,
    /// Mapping a segment into memory.
    Map,
    /// Getting a fresh segment from its owner.
    Spare,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Read => "read",
            Operation::Write => "written",
            Operation::Sync => "synced",
            Operation::Map => "mapped",
            Operation::Spare => "made",
        })
    }
}

/// Why state cannot be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The key has no bytes.
    #[error("the key is empty: a key has 1 to {MAX_KEY_LEN} bytes")]
    KeyEmpty,
    /// The key is too long.
    #[error(
        "the key has {len} bytes, {MAX_KEY_LEN} are allowed: store its hash, or put the rest into the value"
    )]
    KeyTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The value is longer than any segment can hold.
    #[error("the value has {len} bytes, {MAX_VALUE_LEN} are allowed: split it over several keys")]
    ValueTooLarge {
        /// Its length in bytes.
        len: u64,
    },
    /// One commit holds more than a record can.
    #[error("the commit takes {len} bytes in one record, {limit} are allowed: commit in several steps")]
    CommitTooLarge {
        /// What it takes, in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The live objects, or what an invocation and open snapshots hold on to (of the latter, what goes beyond two segments of the
    /// largest size), would take more than the process may have. Nothing
    /// was written.
    #[error(
        "state would take {needed} bytes, {quota} are allowed and {used} are in use: delete objects, \
         end long readers, or raise `state` under [limits]"
    )]
    QuotaExceeded {
        /// What it would take, in bytes.
        needed: u64,
        /// The limit in bytes.
        quota: u64,
        /// What is in use now, in bytes.
        used: u64,
    },
    /// No fresh segment was ready when the commit needed one. Nothing was written; one was asked for.
    #[error(
        "no spare segment of {needed} bytes is ready: the disk of the node is full or slow; the commit may be tried again"
    )]
    NoSpare {
        /// Capacity that is needed, in bytes.
        needed: u64,
    },
    /// Another transaction changed what this one wrote or read for update. Nothing was written.
    #[error("another invocation changed the key {key} meanwhile: run this one again")]
    Conflict {
        /// The first such key.
        key: ShownKey,
    },
    /// There is no memory for the change. Nothing was written.
    #[error("no memory for {needed} bytes of state: put smaller objects, or raise `memory` under [limits]")]
    NoMemory {
        /// What was asked for, in bytes.
        needed: usize,
    },
    /// Bytes that were durable, or should have been, are no longer what was written.
    #[error(
        "{0}: the disk or another program changed it; read what is left with salvage, or restore an earlier copy"
    )]
    Corrupt(Box<Damage>),
    /// A record has a part that this version does not know.
    #[error(
        "segment {segment} has a part of kind {kind} in the record at byte {offset}, unknown here \
         (the last known one is {last}): a newer version wrote it, run that one",
        last = PartKind::LAST
    )]
    UnknownPart {
        /// Segment that holds it.
        segment: u64,
        /// Where its record begins, in bytes.
        offset: u64,
        /// The kind as it is stored.
        kind: u8,
    },
    /// Another version wrote the segment.
    #[error(
        "segment {segment} has format {found}, this program reads {FORMAT}: run the version that wrote it"
    )]
    OtherFormat {
        /// Which segment.
        segment: u64,
        /// Its format number.
        found: u32,
    },
    /// The segment belongs to another process, another lineage, or another place.
    #[error("segment {segment} does not belong here ({why}): files of two processes were mixed up")]
    ForeignSegment {
        /// Which segment.
        segment: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// The log names a segment that was not handed in.
    #[error(
        "segment {segment} of the log is missing: it was deleted or not copied; restore it, or read what is left with salvage"
    )]
    MissingSegment {
        /// Which segment.
        segment: u64,
    },
    /// What the owner knows to have been durable is not in the log any more.
    #[error(
        "the log ends at commit {found}, commit {promised} had been durable: its end was damaged; restore an earlier copy"
    )]
    CommitsLost {
        /// Last commit in the log.
        found: u64,
        /// Last commit that was reported as durable.
        promised: u64,
    },
    /// The operating system refused.
    #[error("segment {segment} could not be {op}: {source}; the disk of the node may be failing or full")]
    Io {
        /// What was tried.
        op: Operation,
        /// On which segment; 0 for one that was to be made.
        segment: u64,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A write or a sync failed before, so nobody knows what the disk holds. Reads go on; commits need recovery into new files.
    #[error(
        "an earlier write or sync of this state failed ({cause}): it takes no more commits; recover it into new segments"
    )]
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// The savepoint was released or rolled back already.
    #[error("the savepoint is not open any more: savepoints end in the reverse order of their beginning")]
    SavepointClosed,
    /// The state was opened to be read only.
    #[error("the state is open for reading only")]
    ReadOnly,
}

impl StateError {
    pub(crate) fn io(op: Operation, segment: u64) -> impl FnOnce(io::Error) -> StateError {
        move |source| StateError::Io { op, segment, source: Arc::new(source) }
    }

    pub(crate) fn damage(segment: u64, offset: u64, key: Option<&[u8]>, why: &'static str) -> StateError {
        let key = key.map(|key| ShownKey(key.to_vec()));
        Damage { segment, offset, key, why }.into()
    }
}

impl From<Damage> for StateError {
    fn from(damage: Damage) -> StateError {
        StateError::Corrupt(Box::new(damage))
    }
}
