//! The writing end of the log: where the next record goes, which segments there are, and what has not been synced.
//!
//! Its lock is the commit lock: who holds it is the one writer. A record is written at the tail, with plain writes or, while nobody asks
//! for syncs, through a [`Window`]; until the index that points to it is published nobody reads there. A write that fails leaves the
//! tail unknown, so the log is poisoned and takes nothing any more.

use std::sync::{Arc, Weak};

use crate::StateError;
use crate::engine::SegmentSizes;
use crate::error::Operation;
use crate::format::{
    Header, Lineage, Listed, MAX_SEGMENT_LEN, PartHead, PartKind, Place, RECORD_LEN, RecordHead, header_len,
};
use crate::index::Item;
use crate::ledger::Ledger;
use crate::out::{Content, Out, store, store_placed, write};
use crate::segment::Mapped;
use crate::slots::Slots;
use crate::storage::{Segment, Storage};
use crate::window::{BEHIND, Unready, Window};

/// After so many bytes without a sync the tail is written through a window. Before, a page that is populated and synced would be
/// written to the disk twice.
const UNSYNCED: u64 = 16 << 10;
/// Pages are made ready in steps that end at multiples of this, by one write of zeros: it brings them into the page cache as one piece, and
/// so in half the time of single pages. That is some 20 microseconds, for which one small commit of three hundred waits if nobody has
/// prepared.
const STEP: usize = 64 << 10;
/// What is written there. The segment is fresh, so it changes nothing but where the pages are.
static ZEROS: [u8; STEP] = [0; STEP];
/// Records longer than this are written by a plain write where no page is ready: that is one call for many pages, too.
const READIED_ALONG: u64 = 32 << 10;

/// A segment that is full within this time calls for a larger one.
const HURRY_MS: u64 = 500;
/// How large that gets.
const HURRIED_MAX: u64 = 16 << 20;

/// A segment of the log.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    pub(crate) slot: u32,
    /// Where its first record begins.
    pub(crate) begin: u64,
    pub(crate) listed: Listed,
    pub(crate) mapped: Arc<Mapped>,
}

/// A segment that the index may point into from now on.
#[derive(Debug)]
pub(crate) struct Seated {
    pub(crate) slot: u32,
    pub(crate) mapped: Arc<Mapped>,
}

/// Where a record was put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) slot: u32,
    pub(crate) seq: u64,
    pub(crate) time_ms: u64,
    /// Offset of its first value in the segment.
    pub(crate) values_at: u64,
}

impl Placed {
    /// What an index says of a part whose value lies at `value_at`.
    pub(crate) fn item(&self, out: &Out<'_>, value_at: u64, cell: u32) -> Item {
        let own = |own: u64, commit: u64| if own == 0 { commit } else { own };
        Item {
            slot: self.slot,
            at: Item::position(value_at),
            cell,
            unread: false,
            len: out.value.len(),
            version: own(out.version, self.seq),
            fingerprint: out.fingerprint,
            time_ms: own(out.time_ms, self.time_ms),
            value_crc: out.value_crc,
        }
    }
}

/// A segment that may be deleted when a commit is durable.
#[derive(Debug)]
struct Retiring {
    after: u64,
    id: u64,
    bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) lineage: Lineage,
    /// In the order of the log.
    pub(crate) segments: Vec<Tracked>,
    /// Whether records go into the last segment. Not so after recovery, which writes to no old segment: until the first commit.
    open: bool,
    pub(crate) ledger: Ledger,
    pub(crate) seq: u64,
    chain: u64,
    next_ordinal: u64,
    sizes: SegmentSizes,
    maps: bool,
    /// When the segment in use began, and whether the one before was full soon.
    begun_ms: u64,
    hurry: bool,
    /// Segments with bytes that no sync has covered.
    unsynced: Vec<Arc<dyn Segment>>,
    /// Whether the last record says that everything before it is durable, and nothing else.
    sealed: bool,
    /// Segments that may be deleted when a commit is durable.
    retiring: Vec<Retiring>,
    /// Retired segments that snapshots may still hold.
    pinned: Vec<(Weak<Mapped>, u64)>,
    scratch: Vec<u8>,
    /// Bytes written since the last sync.
    since_sync: u64,
    window: Option<Window>,
    pub(crate) slots: Slots,
    poisoned: Option<Arc<str>>,
}

/// The state of a log before its first new segment.
#[derive(Debug)]
pub(crate) struct LogStart {
    pub(crate) lineage: Lineage,
    pub(crate) segments: Vec<Tracked>,
    pub(crate) ledger: Ledger,
    pub(crate) seq: u64,
    pub(crate) chain: u64,
    pub(crate) next_ordinal: u64,
    pub(crate) sizes: SegmentSizes,
    /// Whether new segments are mapped.
    pub(crate) maps: bool,
}

impl Log {
    pub(crate) fn new(start: LogStart) -> Log {
        Log {
            lineage: start.lineage,
            segments: start.segments,
            open: false,
            ledger: start.ledger,
            seq: start.seq,
            chain: start.chain,
            next_ordinal: start.next_ordinal,
            sizes: start.sizes,
            maps: start.maps,
            begun_ms: 0,
            hurry: false,
            unsynced: Vec::new(),
            sealed: false,
            retiring: Vec::new(),
            pinned: Vec::new(),
            scratch: Vec::new(),
            since_sync: 0,
            window: None,
            slots: Slots::new(start.seq),
            poisoned: None,
        }
    }

    pub(crate) fn check_usable(&self) -> Result<(), StateError> {
        let cause = self.poisoned.clone();
        cause.map_or(Ok(()), |cause| Err(StateError::Poisoned { cause }))
    }

    pub(crate) fn poison(&mut self, error: &StateError) {
        self.window = None;
        self.poisoned.get_or_insert_with(|| error.to_string().into());
    }

    /// The segment that is written to, if one is.
    pub(crate) fn tail(&self) -> Option<&Tracked> {
        self.segments.last().filter(|_| self.open)
    }

    /// Makes room for a record of `len` bytes; a new segment that was begun for it is for the caller to publish.
    ///
    /// # Errors
    /// `NoSpare` (nothing has changed), `CommitTooLarge`, and `Io`, after which the log is poisoned.
    pub(crate) fn reserve(
        &mut self,
        len: u64,
        durable: u64,
        time_ms: u64,
        storage: &dyn Storage,
    ) -> Result<Option<Seated>, StateError> {
        let limit = MAX_SEGMENT_LEN - header_len(self.segments.len()) as u64;
        if len > limit {
            return Err(StateError::CommitTooLarge { len, limit });
        }
        let fits = |tail: &Tracked| tail.listed.end + len <= tail.mapped.segment.capacity();
        if self.tail().is_some_and(fits) {
            return Ok(None);
        }
        self.begin_segment(len, durable, time_ms, storage).map(Some)
    }

    /// Begins a new segment with room for `len` bytes behind its header.
    fn begin_segment(
        &mut self,
        len: u64,
        durable: u64,
        time_ms: u64,
        storage: &dyn Storage,
    ) -> Result<Seated, StateError> {
        let listed: Vec<Listed> = self.segments.iter().map(|segment| segment.listed).collect();
        let needed = header_len(listed.len()) as u64 + len;
        let segment = self.take_spare(needed, storage)?;
        let header = Header {
            lineage: self.lineage,
            id: segment.id(),
            ordinal: self.next_ordinal,
            base_seq: self.seq,
            base_chain: self.chain,
            durable,
            capacity: segment.capacity(),
            created_ms: time_ms,
            listed,
        };
        self.window = None;
        self.slots.forget();
        let mapped = Arc::new(if self.maps { Mapped::new(segment)? } else { Mapped::unmapped(segment) });
        self.write_header(&*mapped.segment, &header).inspect_err(|error| self.poison(error))?;
        self.next_ordinal += 1;
        self.hurry = self.open && time_ms.saturating_sub(self.begun_ms) < HURRY_MS;
        self.begun_ms = time_ms;
        let listed = Listed {
            id: header.id,
            base_seq: self.seq,
            last_seq: self.seq,
            end: header.len(),
            end_chain: self.chain,
        };
        let slot = self.free_slot();
        self.segments.push(Tracked { slot, begin: listed.end, listed, mapped: mapped.clone() });
        self.open = true;
        self.ledger.open(slot);
        self.unsynced.push(mapped.segment.clone());
        storage.request_spare(self.spare_bytes());
        Ok(Seated { slot, mapped })
    }

    fn write_header(&self, segment: &dyn Segment, header: &Header) -> Result<(), StateError> {
        segment.write_at(&header.encode(), 0).map_err(StateError::io(Operation::Write, header.id))?;
        if self.segments.is_empty() {
            // Recovery relies on it: records without any readable header are damage, not new state.
            segment.sync().map_err(StateError::io(Operation::Sync, header.id))?;
        }
        Ok(())
    }

    fn free_slot(&self) -> u32 {
        let taken = |slot: &u32| self.segments.iter().any(|segment| segment.slot == *slot);
        (0..u32::MAX).find(|slot| !taken(slot)).unwrap_or(u32::MAX)
    }

    fn take_spare(&self, needed: u64, storage: &dyn Storage) -> Result<Arc<dyn Segment>, StateError> {
        let take = || storage.take_spare(needed).map_err(StateError::io(Operation::Spare, 0));
        if let Some(spare) = take()? {
            return Ok(spare);
        }
        // An owner in this process may make one at once.
        storage.request_spare(self.spare_bytes().max(needed.next_multiple_of(4096)));
        take()?.ok_or(StateError::NoSpare { needed })
    }

    /// A size for the next segment: small for small state, so that what a restart leaves unused is small too; larger and larger, up to a
    /// bound, while segments fill up quickly, because making one takes a few milliseconds.
    pub(crate) fn spare_bytes(&self) -> u64 {
        let half = (self.ledger.live() / 2).next_power_of_two();
        let hurried = if self.hurry { (self.last_capacity() * 2).min(HURRIED_MAX) } else { 0 };
        // A header that lists many segments leaves as much room for records.
        let listing = 2 * header_len(self.segments.len()) as u64;
        let SegmentSizes { min_bytes, max_bytes } = self.sizes;
        half.max(hurried).clamp(min_bytes, max_bytes.max(min_bytes)).max(listing)
    }

    fn last_capacity(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.mapped.segment.capacity())
    }

    /// Gives values places where dead ones lie, while there is a window.
    pub(crate) fn place(&mut self, parts: &mut [Out<'_>], time_ms: u64) {
        let Some(window) = &self.window else { return };
        self.slots.keep_at_times(self.seq, time_ms);
        let placeable = |part: &Out<'_>| {
            // What was moved is cold: it stays for long.
            part.kind == PartKind::Put && part.version == 0 && matches!(part.value, Content::Bytes(_))
        };
        for part in parts.iter_mut().filter(|part| placeable(part)) {
            part.place = self.slots.take(part.value.len(), |at, len| window.reaches(at, len));
        }
    }

    /// Writes one record at the tail, where [`Log::reserve`] made room for it.
    pub(crate) fn append(
        &mut self,
        parts: &[Out<'_>],
        durable: u64,
        time_ms: u64,
    ) -> Result<Placed, StateError> {
        let Some(tail) = self.tail() else { return Err(StateError::ReadOnly) };
        let (slot, at, id) = (tail.slot, tail.listed.end, tail.listed.id);
        let mut record = std::mem::take(&mut self.scratch);
        let head = self.encode(&mut record, parts, durable, time_ms)?;
        let crc = head.seal(Place { lineage: self.lineage, segment: id, at }, &mut record);
        if let Some(window) = &mut self.window {
            store_placed(window, parts);
        }
        if let Some(window) = self.window_for(at, head.len, time_ms) {
            store(window, &record, parts, at, &head);
        } else {
            let written = self
                .tail()
                .map_or(Ok(()), |tail| write(&*tail.mapped.segment, &mut record, parts, at, head.len));
            written.inspect_err(|error| self.poison(error))?;
        }
        self.scratch = record;
        if let Some(tail) = self.segments.last_mut() {
            tail.listed.last_seq = head.seq;
            tail.listed.end += head.len;
            tail.listed.end_chain = crc;
            if self.unsynced.last().is_none_or(|last| last.id() != id) {
                self.unsynced.push(tail.mapped.segment.clone());
            }
        }
        self.since_sync += head.len;
        self.seq = head.seq;
        self.chain = crc;
        self.sealed = durable + 1 == head.seq && parts.iter().all(|part| part.kind == PartKind::Watermark);
        Ok(Placed { slot, seq: head.seq, time_ms, values_at: at + head.values_at() })
    }

    /// The window, if a record of `len` bytes at the tail can be stored through it now.
    fn window_for(&mut self, at: u64, len: u64, time_ms: u64) -> Option<&mut Window> {
        if self.since_sync < UNSYNCED {
            return None;
        }
        if !self.window.as_ref().is_some_and(|window| window.is_ready(at, len, time_ms)) {
            if len > READIED_ALONG {
                return None;
            }
            let unready = self.show(at, at + len, STEP as u64, time_ms)?;
            if unready.populate().is_err() {
                self.close_window();
                return None;
            }
            self.populated(&unready);
        }
        self.window.as_mut().filter(|window| window.is_ready(at, len, time_ms))
    }

    /// Shows the next pages in the window that are not ready: one step of at most `max_bytes`, and up to `needed` at least. They are to
    /// be populated.
    fn show(&mut self, at: u64, needed: u64, max_bytes: u64, time_ms: u64) -> Option<Unready> {
        let segment = self.tail()?.mapped.segment.clone();
        if self.window.is_none() {
            self.window = Window::new(segment.capacity(), at).ok();
        }
        let window = self.window.as_mut()?;
        let from = window.ready_to(at, time_ms);
        // No further ahead than was written since the last sync, so that it at most doubles what the next one writes.
        let step_end = (from / STEP as u64 + 1) * STEP as u64;
        let to = step_end.min(from + max_bytes).min(at + self.since_sync).max(needed);
        let behind = if self.slots.are_wanted() { BEHIND } else { 0 };
        let shown = window.show(segment.writable_file()?, (at, to), behind, time_ms);
        let shown = shown.and_then(|pages| pages.map(|pages| bring_in(&*segment, at, pages)).transpose());
        shown.unwrap_or_else(|_| {
            self.close_window();
            None
        })
    }

    /// Goes back to plain writes, which say what is wrong, for a while.
    fn close_window(&mut self) {
        self.window = None;
        self.since_sync = 0;
    }

    /// Pages behind the tail that are worth populating before the next commit, at most about `max_bytes` of them. To be populated without
    /// the lock, and then told to [`Log::populated`].
    pub(crate) fn unready(&mut self, max_bytes: u64, time_ms: u64) -> Option<Unready> {
        if self.since_sync < UNSYNCED || self.poisoned.is_some() {
            return None;
        }
        let tail = self.tail()?;
        let (at, capacity) = (tail.listed.end, tail.mapped.segment.capacity());
        // Half of a step is enough for now: few large steps cost less than many small ones.
        let enough = (STEP as u64).min(self.since_sync).min(capacity - at) / 2;
        if self.window.as_ref().is_some_and(|window| window.is_ready(at, enough, time_ms)) {
            return None;
        }
        self.show(at, at, max_bytes, time_ms)
    }

    /// Notes that pages were populated.
    pub(crate) fn populated(&mut self, pages: &Unready) {
        if let Some(window) = &mut self.window {
            window.populated(pages);
        }
    }

    /// Fills `record` with the free bytes of a head and the parts.
    fn encode(
        &self,
        record: &mut Vec<u8>,
        parts: &[Out<'_>],
        durable: u64,
        time_ms: u64,
    ) -> Result<RecordHead, StateError> {
        record.clear();
        record.resize(RECORD_LEN, 0);
        for part in parts {
            let head = PartHead {
                kind: part.kind,
                key_len: u16::try_from(part.key.len()).unwrap_or(u16::MAX),
                place: part.place.map_or(0, Item::position),
                value_len: part.value.len(),
                fingerprint: part.fingerprint,
                version: part.version,
                time_ms: part.time_ms,
                value_crc: part.value_crc,
            };
            head.append_to(record, &part.key);
        }
        let values: u64 = parts.iter().map(Out::value_in_record).sum();
        let len = record.len() as u64 + values;
        let too_large = StateError::CommitTooLarge { len, limit: u64::from(u32::MAX) };
        let meta_len = u32::try_from(record.len() - RECORD_LEN).map_err(|_| too_large.clone())?;
        let parts = u32::try_from(parts.len()).map_err(|_| too_large)?;
        let (seq, prev) = (self.seq + 1, self.chain);
        Ok(RecordHead { parts, len, seq, durable, prev, time_ms, meta_len, crc: 0 })
    }

    /// Whether the log itself says that all its commits are durable.
    pub(crate) fn is_sealed(&self) -> bool {
        self.seq == 0 || self.sealed
    }

    /// What a sync has to cover now: the last commit, and the segments it and those before lie in.
    pub(crate) fn take_unsynced(&mut self) -> (u64, Vec<Arc<dyn Segment>>) {
        // Clean pages may be taken away at any time, and who syncs once will again: plain writes until it is clear that he does not.
        self.close_window();
        // The sync may be the last: then the log goes back to this commit, so what is live in it stays as it is.
        self.slots.keep(self.seq);
        (self.seq, std::mem::take(&mut self.unsynced))
    }

    /// Takes a segment out of the log; it may be deleted when the last commit so far is durable.
    pub(crate) fn retire(&mut self, slot: u32) {
        let Some(at) = self.segments.iter().position(|segment| segment.slot == slot) else { return };
        let retired = self.segments.remove(at);
        let bytes = retired.mapped.segment.capacity();
        self.pinned.push((Arc::downgrade(&retired.mapped), bytes));
        self.retiring.push(Retiring { after: self.seq, id: retired.listed.id, bytes });
    }

    /// A segment that is not part of the log: it may be deleted when a commit is durable.
    pub(crate) fn retire_after(&mut self, after: u64, id: u64) {
        self.retiring.push(Retiring { after, id, bytes: 0 });
    }

    /// Segments that may be deleted now that everything up to `durable` is.
    pub(crate) fn take_retired(&mut self, durable: u64) -> Vec<u64> {
        let (now, later): (Vec<Retiring>, _) = self.retiring.drain(..).partition(|one| one.after <= durable);
        self.retiring = later;
        now.into_iter().map(|one| one.id).collect()
    }

    /// Bytes of segments that wait to be deleted.
    pub(crate) fn retiring_bytes(&self) -> u64 {
        self.retiring.iter().map(|retiring| retiring.bytes).sum()
    }

    /// Bytes of retired segments that snapshots still hold.
    pub(crate) fn pinned_bytes(&mut self) -> u64 {
        self.pinned.retain(|(segment, _)| segment.strong_count() > 0);
        self.pinned.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Brings pages into the page cache, and returns them. To be called by whoever writes at the tail, which is at `at`: what is behind it is
/// zeros, and only that is written.
fn bring_in(segment: &dyn Segment, at: u64, pages: Unready) -> std::io::Result<Unready> {
    let (from, to) = pages.behind(at);
    let len = usize::try_from(to.min(segment.capacity()).saturating_sub(from)).unwrap_or(usize::MAX);
    segment.write_at(&ZEROS[..len.min(STEP)], from)?;
    Ok(pages)
}
