//! A segment as the engine reads it: its map, and what is remembered of each stored version in it.
//!
//! One of the unsafe rooms, by the one rule it keeps: **a slice of the map is made only for an [`Item`] of a published index**, and an
//! index is published only after what it points into was written whole; nothing in a segment is written twice but values that nobody who
//! reads can see ([`crate::slots`]). So whoever holds a snapshot (which holds the segments, and its era) reads bytes that nobody writes.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::StateError;
use crate::error::{Damage, Operation};
use crate::format::checksum;
use crate::index::Item;
use crate::storage::{Map, Segment};

/// Every part takes at least this many bytes of its segment, so there are no more cells than that.
const PART_MIN: u64 = 64;
/// Cells that are made together, when the first of them is asked for.
const CELLS: usize = 1024;

/// One number for each stored version of a segment, as long as it is mapped: 0 at first. Close together, because a random `get` finds none
/// of them in a cache.
struct Cells(Box<[OnceLock<Box<[AtomicU32]>>]>);

impl Cells {
    fn of(capacity: u64) -> Cells {
        let chunks = capacity.div_ceil(PART_MIN * CELLS as u64);
        Cells((0..chunks).map(|_| OnceLock::new()).collect())
    }

    #[inline]
    fn get(&self, item: &Item) -> &AtomicU32 {
        static NONE: AtomicU32 = AtomicU32::new(0);
        let number = item.cell as usize;
        let Some(chunk) = self.0.get(number / CELLS) else { return &NONE };
        &chunk.get_or_init(|| (0..CELLS).map(|_| AtomicU32::new(0)).collect())[number % CELLS]
    }
}

pub(crate) struct Mapped {
    pub(crate) segment: Arc<dyn Segment>,
    /// `None` where the owner never maps: then values are not read through this.
    map: Option<Map>,
    /// The reader's: whether it has validated the value.
    validated: Cells,
    /// The engine's: whether the value fitted its checksum, for a value that recovery left unread.
    checked: Cells,
}

impl Mapped {
    pub(crate) fn new(segment: Arc<dyn Segment>) -> Result<Mapped, StateError> {
        let map = segment.map().map_err(StateError::io(Operation::Map, segment.id()))?;
        let (validated, checked) = (Cells::of(segment.capacity()), Cells::of(segment.capacity()));
        Ok(Mapped { segment, map: Some(map), validated, checked })
    }

    /// A segment that is only written and read by plain calls.
    pub(crate) fn unmapped(segment: Arc<dyn Segment>) -> Mapped {
        Mapped { segment, map: None, validated: Cells::of(0), checked: Cells::of(0) }
    }

    pub(crate) fn id(&self) -> u64 {
        self.segment.id()
    }

    /// The bytes that an item of a published index points to.
    pub(crate) fn bytes(&self, item: &Item) -> &[u8] {
        // SAFETY: `item` comes from a published index (the module's rule), so its bytes were written before it was published under
        // a lock that the reader took to get at the index, and they are not written again as long as the reader holds the state that
        // the index is of (`crate::slots`).
        let bytes = self.map.as_ref().and_then(|map| unsafe { map.bytes(item.offset(), item.len) });
        // Positions were checked against the segment's capacity when they were appended or recovered; a map that is shorter than
        // that would be the owner's mistake, and an empty value is what cannot hurt.
        bytes.unwrap_or_default()
    }

    /// Whether the reader has validated an item's value.
    #[inline]
    pub(crate) fn validated(&self, item: &Item) -> &AtomicU32 {
        self.validated.get(item)
    }

    /// Compares a value that recovery left unread with its checksum, once.
    #[cold]
    pub(crate) fn check(&self, item: &Item, key: &[u8]) -> Result<(), StateError> {
        let checked = self.checked.get(item);
        if checked.load(Ordering::Relaxed) == 1 {
            return Ok(());
        }
        // Read, not mapped, the first time: an error of the disk is an error here, and would be a signal there.
        let mut crc = ReadChecksum::new(&*self.segment);
        let found = crc.of(item.offset(), item.len)?;
        if found != item.value_crc {
            return Err(Damage::of_value(self.id(), item.offset(), key).into());
        }
        checked.store(1, Ordering::Relaxed);
        Ok(())
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapped({:?})", self.segment)
    }
}

/// Checksums of parts of a segment, by plain reads of bounded size.
pub(crate) struct ReadChecksum<'a> {
    segment: &'a dyn Segment,
    buffer: Vec<u8>,
}

impl<'a> ReadChecksum<'a> {
    const STEP: usize = 256 << 10;

    pub(crate) fn new(segment: &'a dyn Segment) -> ReadChecksum<'a> {
        ReadChecksum { segment, buffer: Vec::new() }
    }

    pub(crate) fn of(&mut self, mut at: u64, len: u64) -> Result<u64, StateError> {
        let end = at + len;
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        while at < end {
            let now = usize::try_from(end - at).unwrap_or(usize::MAX).min(Self::STEP);
            self.buffer.resize(now, 0);
            let read = self.segment.read_at(&mut self.buffer, at);
            read.map_err(StateError::io(Operation::Read, self.segment.id()))?;
            if now as u64 == len {
                return Ok(checksum(&self.buffer));
            }
            digest.update(&self.buffer);
            at += now as u64;
        }
        Ok(digest.finalize())
    }
}

/// Reads a value whole.
pub(crate) fn read_value(segment: &dyn Segment, at: u64, len: u64) -> Result<Vec<u8>, StateError> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut value = Vec::new();
    value.try_reserve_exact(len).map_err(|_| StateError::NoMemory { needed: len })?;
    value.resize(len, 0);
    let read = segment.read_at(&mut value, at);
    read.map_err(StateError::io(Operation::Read, segment.id()))?;
    Ok(value)
}

/// The mapped segments of one state of the log, by slot. Copied when a segment comes or goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segments(Vec<Option<Arc<Mapped>>>);

impl Segments {
    pub(crate) fn get(&self, slot: u32) -> Option<&Arc<Mapped>> {
        self.0.get(slot as usize)?.as_ref()
    }

    pub(crate) fn set(&mut self, slot: u32, segment: Arc<Mapped>) {
        let slot = slot as usize;
        if self.0.len() <= slot {
            self.0.resize(slot + 1, None);
        }
        self.0[slot] = Some(segment);
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        if let Some(place) = self.0.get_mut(slot as usize) {
            *place = None;
        }
    }
}
