//! State without a process: looked at, verified, exported and copied by plain reads, for an agent that must never map or trust what a
//! sandbox could write. Segments that were once writable by a sandbox are to be handed in only when that sandbox is dead.
//!
//! Nothing here changes what it reads. Compaction of a log at rest, recovery into new files and a copy that goes its own way are one
//! thing, [`Offline::copy_to`]; a change to a log at rest is a copy too, of which some objects are others: [`Offline::edit`].

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::engine::SegmentSizes;
use crate::error::{Damage, Operation};
use crate::format::{Lineage, MAX_VALUE_LEN, PartKind, RECORD_LEN, check_key, checksum, cost_in_log};
use crate::index::{Item, Tree};
use crate::ledger::Ledger;
use crate::log::{Log, LogStart};
use crate::out::{Content, Out};
use crate::replay::{Replayed, replay};
use crate::segment::{ReadChecksum, read_value};
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
    /// What was copied as it is though it is damaged.
    pub kept: Vec<Damage>,
    /// Number of the one commit that all edits count as: the version of what they put. 0 for a plain copy.
    pub edited: u64,
}

/// What a copy does with values that are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// Fail.
    Refuse,
    /// Leave them out, and list them.
    LeaveOut,
    /// Copy them with their old checksum, and list them: reading them is the same error as before, and nobody takes them for deleted.
    Keep,
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

/// One change to a log at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Key of the object.
    pub key: Vec<u8>,
    /// Its new fingerprint (0 for plain bytes) and value; `None` deletes it.
    pub change: Option<(u64, Vec<u8>)>,
}

/// How a log at rest is changed.
#[derive(Debug, Clone, Copy)]
pub struct EditOptions {
    /// Where the result goes.
    pub copy: CopyOptions,
    /// The most bytes that live objects may take, as in [`crate::Options`].
    pub quota_bytes: u64,
    /// When it is changed, in milliseconds since 1970.
    pub time_ms: u64,
}

/// An object of [`Offline::objects`]: its key, what is known of it, and a copy of its value that fits its checksum.
pub type Object<'a> = (&'a [u8], KeyInfo, Result<Vec<u8>, StateError>);

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
        self.item(Table::Objects, key).map(KeyInfo::of)
    }

    /// A copy of an object, compared with its checksum.
    ///
    /// # Errors
    /// [`StateError::Corrupt`], [`StateError::Io`], [`StateError::NoMemory`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.item(Table::Objects, key).map(|item| self.load(key, item)).transpose()
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

    /// Reads, one by one and in order, the objects whose key begins with `prefix` and comes after `after`. Damage to one is an error
    /// of that one: the others follow.
    pub fn objects<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
    ) -> impl Iterator<Item = Object<'a>> {
        let range = self.replayed.trees[Table::Objects.index()].range(begin_of(prefix, after));
        let range = range.take_while(move |(key, _)| key.starts_with(prefix));
        range.map(|(key, item)| (key, KeyInfo::of(item), self.load(key, item)))
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
        self.copy_entries(&mut copy, options.damaged, |_, _| true, &mut progress)?;
        copy.finish()
    }

    /// Copies as [`Offline::copy_to`] does, with `edits` applied as one new commit; the last of several for one key holds. Everything is
    /// checked before a byte is written.
    ///
    /// # Errors
    /// [`StateError::KeyEmpty`], [`StateError::KeyTooLong`], [`StateError::ValueTooLarge`], [`StateError::QuotaExceeded`]; and those of
    /// [`Offline::copy_to`].
    pub fn edit_to(
        &self,
        storage: &dyn Storage,
        options: &EditOptions,
        edits: &[Edit],
        progress: impl FnMut(u64, u64),
    ) -> Result<Copied, StateError> {
        let mut sum = Edits::new(self, options.quota_bytes);
        for edit in edits {
            check_key(&edit.key)?;
            let put = edit.change.as_ref().map(|(_, value)| cost_of(&edit.key, value.len() as u64));
            sum.set(&edit.key, put.unwrap_or(Ok(0))?);
        }
        sum.check(sum.live)?;
        let mut editing = self.edit(storage, options);
        for edit in edits {
            match &edit.change {
                // Not compared with the quota one by one: something later may make room for it.
                Some((fingerprint, value)) => editing.write(&edit.key, *fingerprint, value.clone())?,
                None => editing.delete(&edit.key)?,
            }
        }
        editing.finish(progress)
    }

    /// Begins a copy with changes that come one by one and are many: their values are not kept in memory. All of them count as one
    /// commit. Until [`Editing::finish`] the copy is no log.
    pub fn edit<'a>(&'a self, storage: &'a dyn Storage, options: &EditOptions) -> Editing<'a> {
        let mut copy = Copy::begin(storage, &options.copy, self.replayed.seq, self.replayed.next_ordinal);
        copy.copied.edited = self.replayed.seq + 1;
        Editing { offline: self, copy, edits: Edits::new(self, options.quota_bytes), options: *options }
    }

    /// Copies the entries that `wanted` wants.
    fn copy_entries(
        &self,
        copy: &mut Copy<'_>,
        damaged: Damaged,
        wanted: impl Fn(Table, &[u8]) -> bool,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<(), StateError> {
        let entries = || self.entries().filter(|(table, key, _)| wanted(*table, key));
        let total = entries().map(|(_, _, item)| item.len).sum();
        let mut done = 0;
        for (table, key, item) in entries() {
            let segment = self.segment(item);
            let (value, fits) = fetch(segment, item)?;
            match damaged {
                Damaged::LeaveOut if !fits => copy.copied.left_out.push(damage(segment, key, item)),
                Damaged::Refuse if !fits => {
                    return Err(damage(segment, key, item).into());
                }
                Damaged::Refuse | Damaged::LeaveOut | Damaged::Keep => {
                    copy.copied.kept.extend((!fits).then(|| damage(segment, key, item)));
                    copy.put(table, key, item, value)?;
                }
            }
            done += item.len;
            progress(done, total);
        }
        Ok(())
    }

    pub(crate) fn item(&self, table: Table, key: &[u8]) -> Option<&Item> {
        self.replayed.trees[table.index()].get(key)
    }

    pub(crate) fn entries_of(&self, table: Table) -> impl Iterator<Item = (&[u8], &Item)> {
        self.replayed.trees[table.index()].range(Bound::Unbounded)
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

    pub(crate) fn load(&self, key: &[u8], item: &Item) -> Result<Vec<u8>, StateError> {
        load(self.segment(item), key, item)
    }
}

fn damage(segment: &dyn Segment, key: &[u8], item: &Item) -> Damage {
    Damage::of_value(segment.id(), item.offset(), key)
}

/// Reads a value and compares it with its checksum.
pub(crate) fn load(segment: &dyn Segment, key: &[u8], item: &Item) -> Result<Vec<u8>, StateError> {
    let value = read_value(segment, item.offset(), item.len)?;
    if checksum(&value) == item.value_crc { Ok(value) } else { Err(damage(segment, key, item).into()) }
}

/// A value on its way into a copy.
pub(crate) enum Fetched<'a> {
    Held(Vec<u8>),
    /// Too large to be held in memory: it is read from this segment when it is written.
    In(&'a dyn Segment),
}

/// Fetches a value for a copy, and says whether it fits its checksum.
pub(crate) fn fetch<'a>(segment: &'a dyn Segment, item: &Item) -> Result<(Fetched<'a>, bool), StateError> {
    if item.len > BATCH {
        let fits = ReadChecksum::new(segment).of(item.offset(), item.len)? == item.value_crc;
        return Ok((Fetched::In(segment), fits));
    }
    let value = read_value(segment, item.offset(), item.len)?;
    let fits = checksum(&value) == item.value_crc;
    Ok((Fetched::Held(value), fits))
}

/// A copy whose objects are being changed. Dropped before its end it leaves segments that are no log.
#[derive(Debug)]
pub struct Editing<'a> {
    offline: &'a Offline,
    copy: Copy<'a>,
    edits: Edits<'a>,
    options: EditOptions,
}

impl Editing<'_> {
    /// Puts an object, with the fingerprint of its type or 0.
    ///
    /// # Errors
    /// [`StateError::KeyEmpty`], [`StateError::KeyTooLong`], [`StateError::ValueTooLarge`], [`StateError::QuotaExceeded`]: it was not put,
    /// and others may be. Those of a commit: the copy cannot be finished.
    pub fn put(&mut self, key: &[u8], fingerprint: u64, value: impl Into<Vec<u8>>) -> Result<(), StateError> {
        let value = value.into();
        let cost = cost_of(key, value.len() as u64)?;
        self.edits.check(self.edits.live_with(key, cost))?;
        self.write(key, fingerprint, value)
    }

    fn write(&mut self, key: &[u8], fingerprint: u64, value: Vec<u8>) -> Result<(), StateError> {
        let len = value.len() as u64;
        self.edits.set(key, cost_of(key, len)?);
        let (version, time_ms) = (self.copy.copied.edited, self.options.time_ms);
        let item =
            Item { len, version, fingerprint, time_ms, value_crc: checksum(&value), ..Item::default() };
        self.copy.write(PartKind::Put, key, &item, value)
    }

    /// Deletes an object, if there is one.
    ///
    /// # Errors
    /// As [`Editing::put`].
    pub fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        check_key(key)?;
        let written = self.edits.changed.get(key).is_some_and(|cost| *cost > 0);
        self.edits.set(key, 0);
        if !written {
            // It is not copied, that is all.
            return Ok(());
        }
        self.copy.write(PartKind::Delete, key, &Item::default(), Vec::new())
    }

    /// Deletes every object of the original; what was put here stays.
    pub fn delete_others(&mut self) {
        self.edits.delete_others();
    }

    /// Number of the commit that the edits count as.
    pub fn edited(&self) -> u64 {
        self.copy.copied.edited
    }

    /// Copies what was not changed, and ends the copy. `progress` as in [`Offline::verify`], of what is copied.
    ///
    /// # Errors
    /// As [`Offline::copy_to`].
    pub fn finish(mut self, mut progress: impl FnMut(u64, u64)) -> Result<Copied, StateError> {
        let edits = &self.edits;
        let wanted = |table: Table, key: &[u8]| table != Table::Objects || edits.keeps(key);
        self.offline.copy_entries(&mut self.copy, self.options.copy.damaged, wanted, &mut progress)?;
        self.copy.copied.keys += edits.changed.values().filter(|cost| **cost > 0).count() as u64;
        self.copy.finish()
    }
}

/// What edits do to the live bytes.
#[derive(Debug)]
struct Edits<'a> {
    objects: &'a Tree,
    quota: u64,
    /// Live bytes of the original.
    used: u64,
    live: u64,
    /// Live bytes that each key that was changed takes now; 0 if it was deleted.
    changed: BTreeMap<Box<[u8]>, u64>,
    others_deleted: bool,
}

impl<'a> Edits<'a> {
    fn new(offline: &'a Offline, quota: u64) -> Edits<'a> {
        let used = offline.replayed.ledger.live();
        let objects = &offline.replayed.trees[Table::Objects.index()];
        Edits { objects, quota, used, live: used, changed: BTreeMap::new(), others_deleted: false }
    }

    /// Whether the original's object stays.
    fn keeps(&self, key: &[u8]) -> bool {
        !self.others_deleted && !self.changed.contains_key(key)
    }

    fn cost(&self, key: &[u8]) -> u64 {
        let original = || self.objects.get(key).map_or(0, |item| cost_in_log(key.len(), item.len));
        match self.changed.get(key) {
            Some(cost) => *cost,
            None if self.others_deleted => 0,
            None => original(),
        }
    }

    fn live_with(&self, key: &[u8], cost: u64) -> u64 {
        self.live - self.cost(key) + cost
    }

    fn set(&mut self, key: &[u8], cost: u64) {
        self.live = self.live_with(key, cost);
        self.changed.insert(key.into(), cost);
    }

    fn check(&self, needed: u64) -> Result<(), StateError> {
        let (quota, used) = (self.quota, self.used);
        // As in a commit: what makes less of too much is welcome.
        if needed > quota && needed > used {
            return Err(StateError::QuotaExceeded { needed, quota, used });
        }
        Ok(())
    }

    fn delete_others(&mut self) {
        let originals = self.objects.range(Bound::Unbounded).filter(|(key, _)| self.keeps(key));
        let gone: u64 = originals.map(|(key, item)| cost_in_log(key.len(), item.len)).sum();
        self.live -= gone;
        self.others_deleted = true;
    }
}

/// What an object takes of the quota, in bytes.
fn cost_of(key: &[u8], len: u64) -> Result<u64, StateError> {
    check_key(key)?;
    if len > MAX_VALUE_LEN {
        return Err(StateError::ValueTooLarge { len });
    }
    Ok(cost_in_log(key.len(), len))
}

/// A part with its value.
type Entry = (PartKind, Box<[u8]>, Item, Vec<u8>);

fn out<'a>(kind: PartKind, key: &'a [u8], item: &Item, value: Content<'a>) -> Out<'a> {
    let Item { fingerprint, version, time_ms, value_crc, .. } = *item;
    Out { kind, key: key.into(), value, fingerprint, version, time_ms, value_crc, validated: 0, place: None }
}

/// A log that is being written from the entries of another.
#[derive(Debug)]
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
        value: Fetched<'_>,
    ) -> Result<(), StateError> {
        self.copied.keys += u64::from(table == Table::Objects);
        let kind = PartKind::setting(table);
        match value {
            Fetched::Held(value) => self.write(kind, key, item, value),
            Fetched::In(segment) => {
                if !self.batch.is_empty() {
                    self.write_batch()?;
                }
                let value = Content::Stored { segment, at: item.offset(), len: item.len };
                self.append(&[out(kind, key, item, value)])
            }
        }
    }

    fn write(&mut self, kind: PartKind, key: &[u8], item: &Item, value: Vec<u8>) -> Result<(), StateError> {
        self.batched += cost_in_log(key.len(), item.len);
        self.batch.push((kind, key.into(), *item, value));
        if self.batched < BATCH { Ok(()) } else { self.write_batch() }
    }

    fn write_batch(&mut self) -> Result<(), StateError> {
        let batch = std::mem::take(&mut self.batch);
        let outs = batch.iter().map(|(kind, key, item, value)| out(*kind, key, item, Content::Bytes(value)));
        self.batched = 0;
        self.append(&outs.collect::<Vec<_>>())
    }

    fn append(&mut self, outs: &[Out<'_>]) -> Result<(), StateError> {
        let len = RECORD_LEN as u64 + outs.iter().map(Out::len).sum::<u64>();
        // Nothing is durable before the end; until then this is no log. The time of a copied part is its own.
        self.log.reserve(len, 0, 0, self.storage)?;
        self.log.append(outs, 0, 0).map(drop)
    }

    pub(crate) fn finish(mut self) -> Result<Copied, StateError> {
        // Also when there is nothing to copy: the log says how far its commits were numbered.
        self.write_batch()?;
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

/// Whose log a segment is of, as its header says; `None` if it has no readable header. Enough to tell a leftover from state, and no more:
/// [`Offline::read`] says whether a log is whole.
///
/// # Errors
/// [`StateError::OtherFormat`], [`StateError::Io`].
pub fn lineage_of(segment: &dyn Segment) -> Result<Option<Lineage>, StateError> {
    Ok(crate::replay::read_header(segment)?.ok().map(|header| header.lineage))
}

/// The highest number that a commit in a segment can have, by its header and its length; `None` if it has no readable header.
///
/// # Errors
/// As [`lineage_of`].
pub fn last_commit_possible(segment: &dyn Segment) -> Result<Option<u64>, StateError> {
    let header = crate::replay::read_header(segment)?.ok();
    Ok(header.map(|header| header.base_seq.saturating_add(commits_possible(segment.capacity()))))
}

/// The most commits that segments of so many bytes together can hold.
pub const fn commits_possible(bytes: u64) -> u64 {
    bytes / RECORD_LEN as u64
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
