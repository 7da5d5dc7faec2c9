//! State without a process: looked at, verified, exported and copied by plain reads, for an agent that must never map or trust what a
//! sandbox could write. Segments that were once writable by a sandbox are to be handed in only when that sandbox is dead.
//!
//! Nothing here changes what it reads. Compaction of a log at rest, recovery into new files and a copy that goes its own way are one
//! thing, [`Offline::copy_to`].

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::engine::SegmentSizes;
use crate::error::{Damage, Operation, ShownKey};
use crate::format::{Lineage, PartKind, RECORD_LEN, checksum};
use crate::index::Item;
use crate::ledger::Ledger;
use crate::log::{Log, LogStart, Out};
use crate::replay::{Replayed, replay};
use crate::segment::ReadChecksum;
use crate::state::{KeyInfo, begin_of};
use crate::storage::{Segment, Storage};
use crate::{StateError, Table};

/// Copied at once, about, unless one object is larger.
const BATCH: u64 = 1 << 20;

/// Where a segment stands in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub id: u64,
    /// Its length in bytes.
    pub capacity: u64,
    /// Where its first record begins and its last one ends, in bytes.
    pub records: (u64, u64),
    /// Number of the commit before its first, and of its last.
    pub commits: (u64, u64),
    /// Bytes in it that are live.
    pub live_bytes: u64,
}

/// What is in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Whose it is; `None` for no log at all.
    pub lineage: Option<Lineage>,
    /// Number of the last commit.
    pub commit: u64,
    /// The log itself says that everything up to this commit was durable.
    pub durable: u64,
    /// How many objects there are.
    pub keys: u64,
    /// Bytes that are live, as a quota counts them.
    pub live_bytes: u64,
    /// Its segments, in order.
    pub segments: Vec<SegmentInfo>,
    /// Segments that were handed in and are not part of it.
    pub unlisted: Vec<u64>,
    /// Whether it ends in something that was never durable.
    pub torn: bool,
    /// Values of at most 16 KiB that are damaged. [`Offline::verify`] finds the others.
    pub damaged: Vec<Damage>,
}

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copied {
    /// Number of its last commit: at least that of the original.
    pub commit: u64,
    /// How many objects were copied.
    pub keys: u64,
    /// What was left out because it is damaged.
    pub left_out: Vec<Damage>,
}

/// What a copy does with values that are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// Fail.
    Refuse,
    /// Leave them out, and list them.
    LeaveOut,
}

/// Where a copy goes.
#[derive(Debug, Clone, Copy)]
pub struct CopyOptions {
    /// Lineage of the copy: the same for a log that takes the place of the old one, a new one for one that goes its own way.
    pub lineage: Lineage,
    /// Sizes of the new segments.
    pub segments: SegmentSizes,
    /// What to do with damage.
    pub damaged: Damaged,
}

/// A log that was read.
#[derive(Debug)]
pub struct Offline {
    replayed: Replayed,
}

impl Offline {
    /// Reads a log: all of its segments, in any order. `lineage` is checked if it is known.
    ///
    /// # Errors
    /// As [`crate::Engine::open`]; nothing is written or synced.
    pub fn read(segments: &[Arc<dyn Segment>], lineage: Option<Lineage>) -> Result<Offline, StateError> {
        replay(segments, lineage).map(|replayed| Offline { replayed })
    }

    /// What is in it.
    pub fn inspect(&self) -> Inspection {
        let replayed = &self.replayed;
        let info = |(slot, source): (u32, &crate::replay::Source)| SegmentInfo {
            id: source.listed.id,
            capacity: source.segment.capacity(),
            records: (source.begin, source.listed.end),
            commits: (source.listed.base_seq, source.listed.last_seq),
            live_bytes: replayed.ledger.account(slot).live,
        };
        Inspection {
            lineage: replayed.lineage,
            commit: replayed.seq,
            durable: replayed.durable,
            keys: replayed.trees[Table::Objects.index()].len(),
            live_bytes: replayed.ledger.live(),
            segments: (0..).zip(&replayed.sources).map(info).collect(),
            unlisted: replayed.unlisted.clone(),
            torn: replayed.torn,
            damaged: replayed.damaged.clone(),
        }
    }

    /// What is known of an object.
    pub fn info(&self, key: &[u8]) -> Option<KeyInfo> {
        self.replayed.trees[Table::Objects.index()].get(key).map(KeyInfo::of)
    }

    /// A copy of an object, compared with its checksum.
    ///
    /// # Errors
    /// [`StateError::Corrupt`], [`StateError::Io`], [`StateError::NoMemory`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let item = self.replayed.trees[Table::Objects.index()].get(key);
        item.map(|item| self.load(key, item)).transpose()
    }

    /// Visits, in order, the keys of a table that begin with `prefix` and come after `after`.
    pub fn keys(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], KeyInfo) -> ControlFlow<()>,
    ) {
        let range = self.replayed.trees[table.index()].range(begin_of(prefix, after));
        for (key, item) in range.take_while(|(key, _)| key.starts_with(prefix)) {
            if visit(key, KeyInfo::of(item)).is_break() {
                return;
            }
        }
    }

    /// Compares every value of every table with its checksum. `progress` is told the bytes read so far and in all.
    ///
    /// # Errors
    /// [`StateError::Io`]; damage is what is returned.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<Vec<Damage>, StateError> {
        let mut damaged = Vec::new();
        let total = self.entries().map(|(_, _, item)| item.len).sum();
        let mut done = 0;
        for (_, key, item) in self.entries() {
            let segment = self.segment(item);
            if ReadChecksum::new(segment).of(item.offset(), item.len)? != item.value_crc {
                damaged.push(damage(segment, key, item));
            }
            done += item.len;
            progress(done, total);
        }
        Ok(damaged)
    }

    /// Copies what is live, with its commit numbers and times, into new segments, and syncs them. `storage` has to be one of its own: a
    /// copy that breaks off halfway is no log. `progress` as in [`Offline::verify`].
    ///
    /// # Errors
    /// Those of reading and of a commit.
    pub fn copy_to(
        &self,
        storage: &dyn Storage,
        options: &CopyOptions,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Copied, StateError> {
        let mut copy = Copy::begin(storage, options, self.replayed.seq, self.replayed.next_ordinal);
        let total = self.entries().map(|(_, _, item)| item.len).sum();
        let mut done = 0;
        for (table, key, item) in self.entries() {
            let loaded = self.load(key, item);
            match loaded {
                Ok(value) => copy.put(table, key, item, value)?,
                Err(StateError::Corrupt(damage)) if options.damaged == Damaged::LeaveOut => {
                    copy.copied.left_out.push(*damage);
                }
                Err(error) => return Err(error),
            }
            done += item.len;
            progress(done, total);
        }
        copy.finish()
    }

    fn entries(&self) -> impl Iterator<Item = (Table, &[u8], &Item)> {
        Table::ALL.into_iter().flat_map(|table| {
            let range = self.replayed.trees[table.index()].range(Bound::Unbounded);
            range.map(move |(key, item)| (table, key, item))
        })
    }

    fn segment(&self, item: &Item) -> &dyn Segment {
        &*self.replayed.sources[item.slot as usize].segment
    }

    fn load(&self, key: &[u8], item: &Item) -> Result<Vec<u8>, StateError> {
        load(self.segment(item), key, item)
    }
}

fn damage(segment: &dyn Segment, key: &[u8], item: &Item) -> Damage {
    let why = "a value does not fit its checksum";
    Damage { segment: segment.id(), offset: item.offset(), key: Some(ShownKey(key.to_vec())), why }
}

/// Reads a value and compares it with its checksum.
pub(crate) fn load(segment: &dyn Segment, key: &[u8], item: &Item) -> Result<Vec<u8>, StateError> {
    let len = usize::try_from(item.len).unwrap_or(usize::MAX);
    let mut value = Vec::new();
    value.try_reserve_exact(len).map_err(|_| StateError::NoMemory { needed: len })?;
    value.resize(len, 0);
    let read = segment.read_at(&mut value, item.offset());
    read.map_err(StateError::io(Operation::Read, segment.id()))?;
    if checksum(&value) == item.value_crc {
        return Ok(value);
    }
    Err(StateError::Corrupt(Box::new(damage(segment, key, item))))
}

/// An entry with its value.
type Entry = (Table, Box<[u8]>, Item, Vec<u8>);

/// A log that is being written from the entries of another.
pub(crate) struct Copy<'a> {
    storage: &'a dyn Storage,
    log: Log,
    batch: Vec<Entry>,
    batched: u64,
    pub(crate) copied: Copied,
}

impl<'a> Copy<'a> {
    pub(crate) fn begin(storage: &'a dyn Storage, options: &CopyOptions, seq: u64, ordinal: u64) -> Copy<'a> {
        let log = Log::new(LogStart {
            lineage: options.lineage,
            segments: Vec::new(),
            ledger: Ledger::default(),
            seq,
            chain: 0,
            next_ordinal: ordinal,
            sizes: options.segments,
            maps: false,
        });
        Copy { storage, log, batch: Vec::new(), batched: 0, copied: Copied::default() }
    }

    pub(crate) fn put(
        &mut self,
        table: Table,
        key: &[u8],
        item: &Item,
        value: Vec<u8>,
    ) -> Result<(), StateError> {
        self.batched += crate::format::cost_in_log(key.len(), item.len);
        self.batch.push((table, key.into(), *item, value));
        self.copied.keys += u64::from(table == Table::Objects);
        if self.batched < BATCH { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), StateError> {
        let outs: Vec<Out<'_>> = self
            .batch
            .iter()
            .map(|(table, key, item, value)| Out {
                kind: PartKind::setting(*table),
                key: (&**key).into(),
                value,
                fingerprint: item.fingerprint,
                version: item.version,
                time_ms: item.time_ms,
                value_crc: item.value_crc,
                validated: 0,
            })
            .collect();
        let len = RECORD_LEN as u64 + outs.iter().map(Out::len).sum::<u64>();
        // Nothing is durable before the end; until then this is no log. The time of a copied part is its own.
        self.log.reserve(len, 0, 0, self.storage)?;
        self.log.append(&outs, 0, 0)?;
        self.batch.clear();
        self.batched = 0;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Copied, StateError> {
        // Also when there is nothing to copy: the log says how far its commits were numbered.
        self.write()?;
        let (seq, segments) = self.log.take_unsynced();
        for segment in segments {
            segment.sync().map_err(StateError::io(Operation::Sync, segment.id()))?;
        }
        let marks = [Out::of(PartKind::Watermark)];
        self.log.reserve(RECORD_LEN as u64 + marks[0].len(), seq, 0, self.storage)?;
        let placed = self.log.append(&marks, seq, 0)?;
        for segment in self.log.take_unsynced().1 {
            segment.sync().map_err(StateError::io(Operation::Sync, segment.id()))?;
        }
        self.copied.commit = placed.seq;
        Ok(self.copied)
    }
}

/// The segments of a directory by number, to be handed to [`Offline::read`].
///
/// # Errors
/// [`StateError::Io`].
pub fn segments_of(storage: &dyn Storage) -> Result<Vec<Arc<dyn Segment>>, StateError> {
    let segments = storage.segments().map_err(StateError::io(Operation::Read, 0))?;
    let by_id: BTreeMap<u64, _> = segments.into_iter().map(|segment| (segment.id(), segment)).collect();
    Ok(by_id.into_values().collect())
}
