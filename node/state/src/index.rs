//! Where each live object is. In memory, rebuilt from the log at open.
//!
//! It owns the count of live bytes, which is what the quota bounds: nothing else adds or subtracts.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::AtomicU32;

use crate::format::put_cost;

/// One stored object.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Offset of the value in the file.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) fingerprint: u64,
    /// Number of the commit that wrote it.
    pub(crate) version: u64,
    /// On the heap of its own, so that it stays in place while the tree around it moves.
    pub(crate) validated: Box<AtomicU32>,
}

/// What an [`Index`] gave up; kept until nobody can hold a pointer to it.
pub(crate) type Retired = (Box<[u8]>, Entry);

#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: BTreeMap<Box<[u8]>, Entry>,
    live_bytes: u64,
}

impl Index {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that the live objects take in a log.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Puts an object in place; what was there comes back.
    pub(crate) fn put(&mut self, key: Box<[u8]>, entry: Entry) -> Option<Retired> {
        let old = self.remove(&key);
        self.live_bytes += cost(&key, &entry);
        self.entries.insert(key, entry);
        old
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Retired> {
        let (key, entry) = self.entries.remove_entry(key)?;
        self.live_bytes -= cost(&key, &entry);
        Some((key, entry))
    }

    /// All objects in the order of their keys, from the given bound on.
    pub(crate) fn range<'a>(&'a self, from: Bound<&'a [u8]>) -> impl Iterator<Item = (&'a [u8], &'a Entry)> {
        self.entries.range::<[u8], _>((from, Bound::Unbounded)).map(|(key, entry)| (&**key, entry))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(key, entry)| (&**key, entry))
    }

    /// Moves every object, in the order of keys, to the offsets of a new region.
    ///
    /// # Panics
    /// When there are not exactly as many offsets as objects.
    pub(crate) fn relocate(&mut self, offsets: &[u64]) {
        assert_eq!(offsets.len(), self.entries.len(), "a snapshot holds every live object");
        for (entry, offset) in self.entries.values_mut().zip(offsets) {
            entry.offset = *offset;
        }
    }
}

/// What an entry counts against the quota.
#[expect(clippy::cast_possible_truncation, reason = "a stored value is mapped, so its length fits a usize")]
pub(crate) fn cost(key: &[u8], entry: &Entry) -> u64 {
    put_cost(key.len(), entry.len as usize)
}
