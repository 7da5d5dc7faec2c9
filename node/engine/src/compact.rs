//! Compaction: copies what is live in the emptiest segment to the tail, and retires the segment.
//!
//! It works in steps of bounded size, each one an ordinary record: parts with their old version and time, which readers cannot tell
//! from the ones they replace. What is read is read without the log's lock, and under it only what is still live is written. A
//! retired segment is deleted by its owner once the record that retires it is durable; until the last snapshot that can point into it
//! is dropped it stays mapped. Nothing is ever written into an old segment.
//!
//! A part that removes a key is kept as long as a segment may hold an older part that set it. Where such parts pile up, the oldest
//! segment is compacted whatever it holds, because it is what keeps them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::StateError;
use crate::engine::{Durability, Engine};
use crate::error::Operation;
use crate::format::{Effect, PartKind, RECORD_LEN, checksum};
use crate::index::Item;
use crate::ledger::Trees;
use crate::log::{Log, Tracked};
use crate::out::{Content, Out};
use crate::replay::{Found, Records};
use crate::segment::{Mapped, read_value};

/// Disk up to this many segments of the smallest size, or two as large as the newest, is never compacted.
const FREE_SEGMENTS: u64 = 4;

/// Retired segments are deleted after the next sync that somebody asks for; or, when there are so many bytes of them, after one that the
/// compactor asks for.
const RETIRING_BYTES: u64 = 64 << 20;

/// Where the compactor is.
#[derive(Debug, Default)]
pub(crate) struct Compactor {
    victim: Option<Victim>,
    /// Segments that could not be read: they are left alone.
    unreadable: BTreeSet<u64>,
}

#[derive(Debug)]
struct Victim {
    slot: u32,
    mapped: Arc<Mapped>,
    /// The next record.
    at: u64,
    /// The next part in it.
    part: usize,
    end: u64,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    /// There is too little garbage to bother.
    NotDue,
    /// So many bytes were copied; there is more to do.
    Copied(u64),
    /// A segment was retired: it is deleted when that is durable.
    Retired(u64),
}

/// A part that was read to be moved.
struct Loaded {
    part: Found,
    version: u64,
    value: Vec<u8>,
    /// Whether the value fits its checksum.
    fits: bool,
}

impl Engine {
    /// One step of compaction: copies at most about `max_bytes` (at least one object). Readers and transactions go on; commits wait for
    /// the write of one step. Also prepares the tail, as [`Engine::prepare`] does. To be called from time to time, on any thread.
    ///
    /// # Errors
    /// As a commit. [`StateError::Corrupt`]: the segment is left alone from then on.
    pub fn compact_step(&self, max_bytes: u64) -> Result<Compaction, StateError> {
        self.prepare(max_bytes);
        let mut compactor = self.compactor();
        let victim = match compactor.victim.take() {
            Some(victim) => victim,
            None => match self.choose(&compactor.unreadable) {
                Some(victim) => victim,
                None => return Ok(Compaction::NotDue),
            },
        };
        if victim.at == victim.end {
            return self.retire(&victim).map(Compaction::Retired).inspect_err(|_| {
                // Nothing in it is live, so trying again begins at its end.
                compactor.victim = Some(victim);
            });
        }
        let id = victim.mapped.id();
        match self.move_some(&victim, max_bytes) {
            Ok((at, part, copied)) => {
                compactor.victim = Some(Victim { at, part, ..victim });
                Ok(Compaction::Copied(copied))
            }
            Err(error @ (StateError::Corrupt(_) | StateError::Io { op: Operation::Read, .. })) => {
                compactor.unreadable.insert(id);
                Err(error)
            }
            Err(error) => {
                compactor.victim = Some(victim);
                Err(error)
            }
        }
    }

    /// Whether there is enough garbage to call [`Engine::compact_step`].
    pub fn compaction_due(&self) -> bool {
        let compactor = self.compactor();
        compactor.victim.is_some() || self.choose(&compactor.unreadable).is_some()
    }

    fn choose(&self, unreadable: &BTreeSet<u64>) -> Option<Victim> {
        let log = self.log();
        let capacity = |segment: &Tracked| segment.mapped.segment.capacity();
        let disk: u64 = log.segments.iter().map(capacity).sum();
        let live = log.ledger.live();
        // What was written a moment ago dies by itself where it is overwritten quickly: copying it early is in vain.
        let recent = 2 * log.segments.last().map_or(0, capacity);
        let free = recent.max(FREE_SEGMENTS * self.segment_sizes().min_bytes);
        if disk <= 2 * live + free {
            return None;
        }
        let tail = log.tail().map(|tail| tail.listed.id);
        let sealed = log
            .segments
            .iter()
            .filter(|segment| Some(segment.listed.id) != tail && !unreadable.contains(&segment.listed.id));
        let oldest = log.segments.first().map(|segment| segment.listed.id);
        let tombstones: u64 = log.segments.iter().map(|one| log.ledger.account(one.slot).tombstones).sum();
        let needed = |segment: &Tracked| {
            let account = log.ledger.account(segment.slot);
            let kept = if oldest == Some(segment.listed.id) { 0 } else { account.tombstones };
            account.live + kept
        };
        let forced = sealed.clone().next().filter(|_| tombstones > live + free);
        let emptiest = sealed
            .filter(|segment| needed(segment) * 4 <= capacity(segment) * 3)
            .min_by_key(|segment| u128::from(needed(segment)) * 1000 / u128::from(capacity(segment).max(1)));
        let chosen = forced.or(emptiest)?;
        Some(Victim {
            slot: chosen.slot,
            mapped: chosen.mapped.clone(),
            at: chosen.begin,
            part: 0,
            end: chosen.listed.end,
        })
    }

    /// Moves what is live from the victim's next parts; returns where it got and how many bytes it wrote.
    fn move_some(&self, victim: &Victim, max_bytes: u64) -> Result<(u64, usize, u64), StateError> {
        let lineage = self.log().lineage;
        let mut records = Records::new(&*victim.mapped.segment, lineage);
        let state = self.published();
        let mut loaded = Vec::new();
        let mut bytes = 0;
        let (mut at, mut next) = (victim.at, victim.part);
        while at < victim.end && bytes < max_bytes {
            let head = records.valid_at(at)?.ok_or_else(|| {
                StateError::damage(victim.mapped.id(), at, None, "a record does not fit its checksum")
            })?;
            let parts = records.parts(at, &head)?;
            let count = parts.len();
            for (number, part) in parts.into_iter().enumerate().skip(next) {
                if bytes >= max_bytes {
                    break;
                }
                next = number + 1;
                let version = if part.head.version == 0 { head.seq } else { part.head.version };
                if may_be_needed(&state.trees, victim.slot, &part, version) {
                    bytes += crate::format::cost_in_log(part.key.len(), part.head.value_len);
                    loaded.push(load(victim, part, version)?);
                }
            }
            if next == count {
                (at, next) = (at + head.len, 0);
            }
        }
        drop(state);
        let copied = self.write_moved(victim, &loaded)?;
        Ok((at, next, copied))
    }

    fn write_moved(&self, victim: &Victim, loaded: &[Loaded]) -> Result<u64, StateError> {
        let mut log = self.log();
        log.check_usable()?;
        let current = self.published();
        let mut outs = Vec::new();
        let mut fits = Vec::new();
        for one in loaded {
            if let Some(out) = still_needed(&log, &current.trees, victim, one) {
                outs.push(out);
                fits.push(one.fits);
            }
        }
        drop(current);
        if outs.is_empty() {
            return Ok(0);
        }
        let copied = RECORD_LEN as u64 + outs.iter().map(Out::len).sum::<u64>();
        let placed = self.write(&mut log, &mut outs)?;
        // A value that was moved damaged stays damaged: its first reader finds out.
        self.publish(&mut log, &outs, placed, None, |at, item| item.unread = !fits[at]);
        Ok(copied)
    }

    fn retire(&self, victim: &Victim) -> Result<u64, StateError> {
        let id = victim.mapped.id();
        let mut log = self.log();
        log.check_usable()?;
        let key = id.to_le_bytes();
        let mark = Out { key: key.as_slice().into(), ..Out::of(PartKind::SegmentRetired) };
        let mut marks = [mark];
        let placed = self.write(&mut log, &mut marks)?;
        self.publish(&mut log, &marks, placed, None, |_, _| {});
        self.unseat(&mut log, victim.slot);
        let enough = log.retiring_bytes() > (2 * log.ledger.live()).max(RETIRING_BYTES);
        drop(log);
        if enough {
            self.wait(placed.seq, Durability::Node)?;
        }
        Ok(id)
    }
}

fn may_be_needed(trees: &Trees, slot: u32, part: &Found, version: u64) -> bool {
    match part.head.kind.effect() {
        Effect::Set(table) => {
            trees[table.index()].get(&part.key).is_some_and(|item| is(item, slot, part, version))
        }
        Effect::Remove(table) => trees[table.index()].get(&part.key).is_none(),
        // Newer headers know what was retired.
        Effect::Log => false,
    }
}

/// Whether an item is this part, and not another that lay in the same place.
fn is(item: &Item, slot: u32, part: &Found, version: u64) -> bool {
    item.slot == slot && item.offset() == part.value_at && item.version == version
}

fn load(victim: &Victim, part: Found, version: u64) -> Result<Loaded, StateError> {
    let value = read_value(&*victim.mapped.segment, part.value_at, part.head.value_len)?;
    let fits = checksum(&value) == part.head.value_crc;
    Ok(Loaded { part, version, value, fits })
}

fn still_needed<'a>(log: &Log, trees: &Trees, victim: &Victim, loaded: &'a Loaded) -> Option<Out<'a>> {
    let part = &loaded.part;
    let out = |time_ms: u64, validated: u32| Out {
        kind: part.head.kind,
        key: (&*part.key).into(),
        value: Content::Bytes(&loaded.value),
        fingerprint: part.head.fingerprint,
        version: loaded.version,
        time_ms,
        value_crc: part.head.value_crc,
        validated,
        place: None,
    };
    match part.head.kind.effect() {
        Effect::Set(table) => {
            let item = trees[table.index()]
                .get(&part.key)
                .filter(|item| is(item, victim.slot, part, loaded.version))?;
            Some(out(item.time_ms, victim.mapped.validated(item).load(Ordering::Relaxed)))
        }
        Effect::Remove(table) => {
            // Something older than this may be set in any other segment that began before.
            let hides = log
                .segments
                .iter()
                .any(|segment| segment.slot != victim.slot && segment.listed.base_seq < loaded.version);
            let gone = trees[table.index()].get(&part.key).is_none();
            (hides && gone).then(|| out(part.head.time_ms, 0))
        }
        Effect::Log => None,
    }
}
