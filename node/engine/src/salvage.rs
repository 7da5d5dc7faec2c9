//! What can still be read of a damaged log, and nothing else: a wrong or outdated value is never among it.
//!
//! Records are looked for one by one. One with a single flipped bit is read as it was before. One that cannot be read is a **gap**: it may
//! have changed any key, so of a key only what was written *after* the last gap is known; for any other, and for keys that are not
//! found at all, the answer is an error and not a guess. Everything is done by plain reads, so an agent may do it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::StateError;
use crate::error::Damage;
use crate::format::{Effect, Lineage, Listed, PartKind, RecordHead};
use crate::index::Item;
use crate::offline::{Copied, Copy, CopyOptions, Object, fetch, load};
use crate::replay::{Cursor, Doubts, Found, Headed, Records, Stop, read_header, retired_id};
use crate::state::KeyInfo;
use crate::storage::{Segment, Storage};
use crate::tables::{TABLES, Table};

/// What the last readable record about a key said.
#[derive(Debug, Clone, Copy)]
struct Last {
    /// Number of the record.
    seq: u64,
    /// `None`: it was removed.
    item: Option<Item>,
}

/// What is left of a damaged log.
#[derive(Debug)]
pub struct Salvage {
    segments: Vec<Arc<dyn Segment>>,
    tables: [BTreeMap<Box<[u8]>, Last>; TABLES],
    damage: Vec<Damage>,
    /// Number of the last commit that cannot be read; 0 if all can.
    gap: u64,
    seq: u64,
    next_ordinal: u64,
}

/// A record that was found.
struct Record {
    slot: u32,
    head: RecordHead,
    parts: Vec<Found>,
}

/// A segment to look into.
struct Member {
    slot: u32,
    /// Where to begin, and after what, if its header or the newest one says so.
    cursor: Option<Cursor>,
    /// Where to end, and with which commit.
    listed: Option<Listed>,
}

impl Salvage {
    /// Looks for everything that is still readable. `durable_at_least` is the last commit that the owner knows to have been durable, 0 if
    /// it knows of none: should the end of the log be gone with every trace of it, nothing else can tell.
    ///
    /// # Errors
    /// [`StateError::UnknownPart`], [`StateError::OtherFormat`], [`StateError::ForeignSegment`], [`StateError::Io`];
    /// [`StateError::Corrupt`] where so much looks like a
    /// record and is none that nothing can be said of the newest commits, and so of any object.
    pub fn open(
        segments: &[Arc<dyn Segment>],
        lineage: Lineage,
        durable_at_least: u64,
    ) -> Result<Salvage, StateError> {
        let mut salvage = Salvage {
            segments: segments.to_vec(),
            tables: Default::default(),
            damage: Vec::new(),
            gap: 0,
            seq: 0,
            next_ordinal: 1,
        };
        let mut found = Vec::new();
        for member in salvage.members(lineage)? {
            salvage.member(lineage, &member, &mut found)?;
        }
        salvage.take(lineage, &found, durable_at_least)?;
        Ok(salvage)
    }

    /// Applies what was found, up to a commit that never was durable and is not whole.
    fn take(&mut self, lineage: Lineage, found: &[Record], durable: u64) -> Result<(), StateError> {
        let durable = found.iter().map(|record| record.head.durable).max().unwrap_or(0).max(durable);
        let end = self.end(lineage, found, durable)?;
        for record in found.iter().filter(|record| record.head.seq <= end) {
            self.seq = self.seq.max(record.head.seq);
            record.parts.iter().for_each(|part| self.apply(record.slot, &record.head, part));
        }
        if durable > self.seq {
            self.gap = self.gap.max(durable);
        }
        Ok(())
    }

    /// The last commit that counts.
    fn end(&self, lineage: Lineage, found: &[Record], durable: u64) -> Result<u64, StateError> {
        let mut doubts = Doubts::default();
        let mut last = 0;
        for record in found {
            last = last.max(record.head.seq);
            if record.head.seq > durable {
                let mut records = self.records(lineage, record.slot);
                for part in &record.parts {
                    let fits = if part.is_placed() { None } else { Some(records.value_fits(part)?) };
                    doubts.note(record.slot, &record.head, part, fits);
                }
            }
        }
        doubts.end(durable, last, |slot| self.records(lineage, slot))
    }

    fn records(&self, lineage: Lineage, slot: u32) -> Records<'_> {
        Records::new(&*self.segments[slot as usize], lineage)
    }

    /// What is damaged, in the order in which it was found.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Number of the last commit that cannot be read; 0 if all can. Only what was written after it is known.
    pub fn gap(&self) -> u64 {
        self.gap
    }

    /// An object, compared with its checksum. `None` is certain.
    ///
    /// # Errors
    /// [`StateError::Corrupt`]: it is damaged, or a commit that cannot be read may have changed it. [`StateError::Io`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let item = self.certain(Table::Objects, key)?;
        item.map(|item| load(self.segment(item), key, item)).transpose()
    }

    /// What is known for certain to be stored under a key.
    fn certain(&self, table: Table, key: &[u8]) -> Result<Option<&Item>, StateError> {
        match self.tables[table.index()].get(key) {
            Some(last) if last.seq > self.gap => Ok(last.item.as_ref()),
            None if self.gap == 0 => Ok(None),
            last => {
                let item = last.and_then(|last| last.item);
                let (segment, offset) = item.map_or((0, 0), |item| (self.segment(&item).id(), item.offset()));
                let why = "a commit that cannot be read may have changed it";
                Err(StateError::damage(segment, offset, Some(key), why))
            }
        }
    }

    /// The keys of objects that were found, in order; whether each can be read only [`Salvage::get`] tells.
    pub fn keys(&self) -> impl Iterator<Item = (&[u8], KeyInfo)> {
        let entries = self.tables[Table::Objects.index()].iter();
        entries.filter_map(|(key, last)| Some((&**key, KeyInfo::of(last.item.as_ref()?))))
    }

    /// Reads, one by one and in order, the objects that were found, each with what [`Salvage::get`] says of it.
    pub fn objects(&self) -> impl Iterator<Item = Object<'_>> {
        let read = |(key, info)| Some((key, info, self.get(key).transpose()?));
        self.keys().filter_map(read)
    }

    /// Copies everything that can be read, of all tables, into new segments, as [`crate::offline::Offline::copy_to`] does.
    ///
    /// # Errors
    /// Those of writing, and of reading but damage, which is left out.
    pub fn copy_to(&self, storage: &dyn Storage, options: &CopyOptions) -> Result<Copied, StateError> {
        let mut copy = Copy::begin(storage, options, self.seq.max(self.gap), self.next_ordinal);
        copy.copied.left_out.extend(self.damage.iter().cloned());
        for table in Table::ALL {
            for (key, last) in &self.tables[table.index()] {
                let Some(item) = &last.item else { continue };
                match self.certain(table, key) {
                    Err(StateError::Corrupt(damage)) => {
                        copy.copied.left_out.push(*damage);
                        continue;
                    }
                    certain => certain?,
                };
                let segment = self.segment(item);
                match fetch(segment, item)? {
                    (value, true) => copy.put(table, key, item, value)?,
                    (_, false) => {
                        copy.copied.left_out.push(Damage::of_value(segment.id(), item.offset(), key))
                    }
                }
            }
        }
        copy.finish()
    }

    fn segment(&self, item: &Item) -> &dyn Segment {
        &*self.segments[item.slot as usize]
    }

    fn note(&mut self, segment: u64, offset: u64, why: &'static str) {
        self.damage.push(Damage { segment, offset, key: None, why });
    }

    /// The segments of the log in the order of their commits, as far as headers tell.
    fn members(&mut self, lineage: Lineage) -> Result<Vec<Member>, StateError> {
        let headers = self.headers(lineage)?;
        let newest = headers.iter().max_by_key(|(_, one)| one.header.ordinal);
        self.next_ordinal = newest.map_or(1, |(_, one)| one.header.ordinal.saturating_add(2));
        let mut members = Vec::new();
        if let Some((slot, newest)) = newest {
            let retired = retired_by(newest)?;
            let listed = newest.header.listed.iter().filter(|listed| !retired.contains(&listed.id));
            members.extend(listed.filter_map(|listed| self.listed(*listed, &headers)));
            members.push(Member { slot: *slot, cursor: Some(Cursor::first(&newest.header)), listed: None });
        }
        // A segment without a readable header that nobody lists may be the newest of all.
        let known: BTreeSet<u32> =
            members.iter().map(|member| member.slot).chain(headers.into_keys()).collect();
        for (slot, segment) in (0..).zip(self.segments.clone()) {
            if !known.contains(&slot) && Records::new(&*segment, lineage).scan(0)?.is_some() {
                self.note(segment.id(), 0, "the header does not fit its checksum");
                members.push(Member { slot, cursor: None, listed: None });
            }
        }
        Ok(members)
    }

    /// Segments whose header can be read, by slot.
    fn headers(&self, lineage: Lineage) -> Result<BTreeMap<u32, Headed>, StateError> {
        let mut headers = BTreeMap::new();
        for (slot, segment) in (0..).zip(&self.segments) {
            let Ok(header) = read_header(&**segment)? else { continue };
            if header.lineage != lineage || header.id != segment.id() {
                let why = "its header names another lineage or number";
                return Err(StateError::ForeignSegment { segment: segment.id(), why });
            }
            headers.insert(slot, Headed { segment: segment.clone(), header });
        }
        Ok(headers)
    }

    /// A segment that the newest header lists, if it is there.
    fn listed(&mut self, listed: Listed, headers: &BTreeMap<u32, Headed>) -> Option<Member> {
        let Some(slot) = self.segments.iter().position(|segment| segment.id() == listed.id) else {
            self.note(listed.id, 0, "the segment is missing");
            self.gap = self.gap.max(listed.last_seq);
            return None;
        };
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        let header = headers.get(&slot).map(|one| &one.header);
        if header.is_none() {
            self.note(listed.id, 0, "the header does not fit its checksum");
        }
        Some(Member { slot, cursor: header.map(Cursor::first), listed: Some(listed) })
    }

    fn member(&mut self, lineage: Lineage, member: &Member, all: &mut Vec<Record>) -> Result<(), StateError> {
        let segment = self.segments[member.slot as usize].clone();
        let mut records = Records::new(&*segment, lineage);
        let end = member.listed.map_or(segment.capacity(), |listed| listed.end);
        let last = all.last().map_or(0, |record| record.head.seq);
        let base = member.listed.map_or(last, |listed| listed.base_seq);
        let mut cursor = member.cursor;
        let mut expected = cursor.map_or(base, |cursor| cursor.seq) + 1;
        loop {
            let one = self.one(&mut records, cursor, end);
            if let (Err(StateError::Corrupt(damage)), Some(_), true) =
                (&one, member.listed, records.is_flooded())
            {
                // How far the commits of this segment go is known, so what cannot be found in it is a gap like any other.
                self.damage.push((**damage).clone());
                break;
            }
            let Some((at, head, parts)) = one? else { break };
            if head.seq > expected {
                self.gap = self.gap.max(head.seq - 1);
            }
            expected = head.seq + 1;
            all.push(Record { slot: member.slot, head, parts });
            cursor = Some(Cursor::behind(at, &head));
        }
        if let Some(listed) = member.listed.filter(|listed| listed.last_seq >= expected) {
            self.gap = self.gap.max(listed.last_seq);
        }
        Ok(())
    }

    /// The next record from `cursor` on, and where it is: the one that follows, the same repaired, or the next that is whole.
    fn one(
        &mut self,
        records: &mut Records<'_>,
        cursor: Option<Cursor>,
        end: u64,
    ) -> Result<Option<(u64, RecordHead, Vec<Found>)>, StateError> {
        let id = records.segment.id();
        let mut from = 0;
        if let Some(cursor) = cursor {
            if cursor.at >= end {
                return Ok(None);
            }
            match records.next(&cursor) {
                Ok(head) => return Ok(Some((cursor.at, head, records.parts(cursor.at, &head)?))),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Broken(_)) => {}
            }
            if let Some((head, parts)) = records.repaired(&cursor)? {
                self.note(id, cursor.at, "a bit of a record was flipped; it was put back");
                return Ok(Some((cursor.at, head, parts)));
            }
            from = cursor.at;
        }
        let Some((at, head)) = records.scan(from)?.filter(|(at, _)| *at < end) else {
            // Blank, torn and never durable, or damaged: the watermarks of what was found decide.
            return Ok(None);
        };
        if cursor.is_some() {
            self.note(id, from, "a record cannot be read");
        }
        Ok(Some((at, head, records.parts(at, &head)?)))
    }

    fn apply(&mut self, slot: u32, head: &RecordHead, part: &Found) {
        let (table, sets) = match part.head.kind.effect() {
            Effect::Set(table) => (table, true),
            Effect::Remove(table) => (table, false),
            Effect::Log => return,
        };
        let item = sets.then(|| part.item(slot, 0, head, true));
        let last = Last { seq: head.seq, item };
        let place = self.tables[table.index()].entry(part.key.clone()).or_insert(last);
        if place.seq <= head.seq {
            *place = last;
        }
    }
}

/// Segments that records of the newest one retire.
fn retired_by(newest: &Headed) -> Result<BTreeSet<u64>, StateError> {
    let mut retired = BTreeSet::new();
    let mut records = Records::new(&*newest.segment, newest.header.lineage);
    let mut at = newest.header.len();
    while let Some((found, head)) = records.scan(at)? {
        for part in records.parts(found, &head)? {
            if part.head.kind == PartKind::SegmentRetired {
                retired.extend(retired_id(&part));
            }
        }
        at = found + head.len;
    }
    Ok(retired)
}
