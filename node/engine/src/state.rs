//! What a reader sees: the indexes and the segments that they point into, as of one commit.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::StateError;
use crate::index::page::encode_tree;
use crate::index::{Item, Tree};
use crate::ledger::Trees;
use crate::segment::Segments;
use crate::slots::Era;
use crate::tables::{
    Consumption, Message, MessageId, Reply, Table, Timer, TimerId, consumption_key, consumption_of,
};

/// A stored object, or an entry of a table of the host.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    /// Its bytes; the first lies at an address that is a multiple of 16.
    pub bytes: &'a [u8],
    /// The fingerprint that it was put with; 0 for plain bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it; 0 for an own write that is not committed yet.
    pub version: u64,
    /// When that was, in milliseconds since 1970; 0 for an own write.
    pub time_ms: u64,
    /// For whoever reads it: 0 at first, kept as long as this version is in memory.
    pub validated: &'a AtomicU32,
}

/// What is known of an object without touching it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo {
    /// Length of the value in bytes.
    pub len: u64,
    /// The fingerprint that it was put with; 0 for plain bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it; 0 for an own write.
    pub version: u64,
    /// When that was, in milliseconds since 1970; 0 for an own write.
    pub time_ms: u64,
}

impl KeyInfo {
    pub(crate) fn of(item: &Item) -> KeyInfo {
        let Item { len, fingerprint, version, time_ms, .. } = *item;
        KeyInfo { len, fingerprint, version, time_ms }
    }
}

/// How far messages are consumed: of which source, by which key, up to where.
pub type ConsumedUpTo<'a> = (&'a [u8], &'a [u8], Consumption);

/// One published state.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) trees: Trees,
    pub(crate) segments: Arc<Segments>,
    pub(crate) seq: u64,
    pub(crate) live: u64,
    /// Keeps what is live in it, and what dies later, from being written over.
    pub(crate) era: Arc<Era>,
}

impl State {
    pub(crate) fn tree(&self, table: Table) -> &Tree {
        &self.trees[table.index()]
    }

    #[inline]
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value<'_>>, StateError> {
        self.tree(table).get(key).map(|item| self.value(key, item)).transpose()
    }

    #[inline]
    pub(crate) fn value(&self, key: &[u8], item: &Item) -> Result<Value<'_>, StateError> {
        let Some(mapped) = self.segments.get(item.slot) else {
            return Err(StateError::damage(
                0,
                item.offset(),
                Some(key),
                "the index names a segment that is gone",
            ));
        };
        if item.unread {
            mapped.check(item, key)?;
        }
        Ok(Value {
            bytes: mapped.bytes(item),
            fingerprint: item.fingerprint,
            version: item.version,
            time_ms: item.time_ms,
            validated: mapped.validated(item),
        })
    }

    fn entries(&self, table: Table) -> impl Iterator<Item = Result<(&[u8], Value<'_>), StateError>> {
        let range = self.tree(table).range(Bound::Unbounded);
        range.map(|(key, item)| self.value(key, item).map(|value| (key, value)))
    }

    /// Keeps what differs in `now`.
    pub(crate) fn pin_if_other(&self, now: &State, pins: &mut Pins) {
        if !Arc::ptr_eq(&self.segments, &now.segments) {
            pins.segments.push(self.segments.clone());
        }
        if !Arc::ptr_eq(&self.era, &now.era) {
            pins.keep_era(self.era.clone());
        }
    }
}

/// What a transaction was begun over, and what its earlier pointers may point into.
#[derive(Debug)]
pub(crate) struct Base {
    /// Let go of only while a commit publishes, so that pages which nobody else sees are changed in place.
    pub(crate) state: Option<Arc<State>>,
    pub(crate) pins: Pins,
}

/// What pointers from before a commit need.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    segments: Vec<Arc<Segments>>,
    /// The first: whoever holds it holds all that came later.
    era: Option<Arc<Era>>,
}

impl Pins {
    /// Notes an era that the state of the transaction leaves.
    pub(crate) fn keep_era(&mut self, era: Arc<Era>) {
        self.era.get_or_insert(era);
    }
}

impl Base {
    pub(crate) fn new(state: Arc<State>) -> Base {
        Base { state: Some(state), pins: Pins::default() }
    }

    pub(crate) fn seq(&self) -> Option<u64> {
        self.state.as_ref().map(|state| state.seq)
    }

    /// Goes over to another state; what was handed out stays good.
    pub(crate) fn renew(&mut self, state: Arc<State>) {
        if let Some(old) = self.state.replace(state.clone()) {
            old.pin_if_other(&state, &mut self.pins);
        }
    }
}

/// The state as of one commit. It does not change, whatever is committed meanwhile, and everything that it hands out is good until it
/// is dropped. It holds on to the segments that it points into: they count as pinned until then.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) state: Arc<State>,
}

impl Snapshot {
    /// Number of the last commit that it shows; 0 before the first.
    pub fn commit_number(&self) -> u64 {
        self.state.seq
    }

    /// The object under `key`.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] if it is no longer what was written, [`StateError::Io`] if it cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value<'_>>, StateError> {
        self.state.get(Table::Objects, key)
    }

    /// A part of an object, from `offset`, of at most `len` bytes: as much of it as there is.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn get_range(&self, key: &[u8], offset: u64, len: u64) -> Result<Option<&[u8]>, StateError> {
        Ok(self.get(key)?.map(|value| slice(value.bytes, offset, len)))
    }

    /// What is known of the object under `key`, without touching it.
    pub fn info(&self, key: &[u8]) -> Option<KeyInfo> {
        self.state.tree(Table::Objects).get(key).map(KeyInfo::of)
    }

    /// Visits, in the order of keys, the objects whose key begins with `prefix` and comes after `after`.
    ///
    /// # Errors
    /// As [`Snapshot::get`]; what was visited before stays visited.
    pub fn scan<'s>(
        &'s self,
        prefix: &[u8],
        after: Option<&[u8]>,
        mut visit: impl FnMut(&'s [u8], Value<'s>) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for (key, item) in self.range(Table::Objects, prefix, after) {
            if visit(key, self.state.value(key, item)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// As [`Snapshot::scan`], without touching the objects: so it cannot fail.
    pub fn keys<'s>(
        &'s self,
        prefix: &[u8],
        after: Option<&[u8]>,
        mut visit: impl FnMut(&'s [u8], KeyInfo) -> ControlFlow<()>,
    ) {
        for (key, item) in self.range(Table::Objects, prefix, after) {
            if visit(key, KeyInfo::of(item)).is_break() {
                break;
            }
        }
    }

    fn range(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = (&[u8], &Item)> {
        let range = self.state.tree(table).range(begin_of(prefix, after));
        range.take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Encodes the index of a table page by page, children before parents. `emit` keeps a page and returns the number that it gives it.
    /// Returns the number of the root; `None` if the table is empty. No page is longer than [`crate::MAX_PAGE_LEN`].
    pub fn pages(&self, table: Table, mut emit: impl FnMut(&[u8]) -> u64) -> Option<u64> {
        let segment_of = |slot| self.state.segments.get(slot).map_or(0, |segment| segment.id());
        encode_tree(self.state.tree(table), &segment_of, &mut emit)
    }

    /// How many objects there are.
    pub fn len(&self) -> u64 {
        self.state.tree(Table::Objects).len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How far messages of a source and key are consumed.
    ///
    /// # Errors
    /// As [`Snapshot::get`], and [`StateError::KeyTooLong`].
    pub fn consumed(&self, source: &[u8], key: &[u8]) -> Result<Option<Consumption>, StateError> {
        let key = consumption_key(source, key)?;
        let value = self.state.get(Table::Consumed, &key)?;
        value.map(|value| whole(&key, Consumption::decode(value.bytes))).transpose()
    }

    /// All consumption watermarks: source, key, how far.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn all_consumed(&self) -> Result<Vec<ConsumedUpTo<'_>>, StateError> {
        self.table(Table::Consumed, |key, value| {
            let (source, name) = consumption_of(key)?;
            Some((source, name, Consumption::decode(value.bytes)?))
        })
    }

    /// Messages that were sent and not acknowledged, as they were sent.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn sent(&self) -> Result<Vec<(MessageId, Message<'_>)>, StateError> {
        self.table(Table::Sent, |key, value| Some((MessageId::from_key(key)?, Message::decode(value.bytes)?)))
    }

    /// Timers that are set, the first to be due first.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn timers(&self) -> Result<Vec<(TimerId, Timer<'_>)>, StateError> {
        self.table(Table::Timers, |key, value| Some((TimerId::from_key(key)?, Timer::decode(value.bytes)?)))
    }

    /// The timer that is due first.
    pub fn next_timer(&self) -> Option<TimerId> {
        let (key, _) = self.state.tree(Table::Timers).range(Bound::Unbounded).next()?;
        TimerId::from_key(key)
    }

    /// The reply that is remembered under an idempotency key, expired or not.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn reply(&self, key: &[u8]) -> Result<Option<Reply<'_>>, StateError> {
        let value = self.state.get(Table::Replies, key)?;
        value.map(|value| whole(key, Reply::decode(value.bytes))).transpose()
    }

    /// All remembered replies with their idempotency keys.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn replies(&self) -> Result<Vec<(&[u8], Reply<'_>)>, StateError> {
        self.table(Table::Replies, |key, value| Some((key, Reply::decode(value.bytes)?)))
    }

    fn table<'s, T>(
        &'s self,
        table: Table,
        decode: impl Fn(&'s [u8], Value<'s>) -> Option<T>,
    ) -> Result<Vec<T>, StateError> {
        self.state
            .entries(table)
            .map(|entry| entry.and_then(|(key, value)| whole(key, decode(key, value))))
            .collect()
    }
}

/// An entry of the host's tables that its checksum vouches for but that cannot be read was written by a sandbox that lied.
pub(crate) fn whole<T>(key: &[u8], decoded: Option<T>) -> Result<T, StateError> {
    decoded.ok_or_else(|| StateError::damage(0, 0, Some(key), "an entry of the host is malformed"))
}

pub(crate) fn slice(bytes: &[u8], offset: u64, len: u64) -> &[u8] {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len() - from);
    &bytes[from..from + len]
}

pub(crate) fn begin_of<'a>(prefix: &'a [u8], after: Option<&'a [u8]>) -> Bound<&'a [u8]> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}
