//! The engine of one process's state: opens the log, appends commits, and moves to a new region when garbage outweighs the rest.
//!
//! It owns the file and the map, and the rule that ties them: a byte of the map is read only if this engine wrote it, below `tail`,
//! in the current region. Exclusive access is the borrow checker's business: [`Engine::begin`] takes `&mut self`, [`Engine::read`]
//! takes `&self`, and moving to another region happens only in `begin`, when no pointer into the map can be alive.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use crate::format::{Lineage, PAGE, RECORD_LEN, RecordHead, SLOTS, Slot};
use crate::index::{Entry, Index};
use crate::map::Map;
use crate::replay::replay;
use crate::transaction::{Pending, Reader, Retirement, Transaction, Value};
use crate::{StateError, snapshot};

/// The file is allocated ahead by at least this many bytes.
const STEP_MIN: u64 = 256 << 10;
/// And by at most this many, unless one commit needs more.
const STEP_MAX: u64 = 8 << 20;
/// Pieces of at least this many bytes are written by themselves, smaller ones together.
const WRITE_TOGETHER: usize = 64 << 10;
/// Addresses beyond six times the quota: room for garbage that waits to be left behind.
const MAP_EXTRA: u64 = 256 << 20;

/// How to open state.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// The most bytes that live objects may take: keys and values, each rounded up to 16 bytes, and 32 per object. The file may
    /// take up to three times as much and [`OpenOptions::garbage_bytes`] beside.
    pub quota_bytes: u64,
    /// Garbage is left behind when it takes this many bytes more than what is live.
    pub garbage_bytes: u64,
}

impl OpenOptions {
    /// A quota, and 32 MiB of garbage.
    pub fn with_quota(quota_bytes: u64) -> OpenOptions {
        OpenOptions { quota_bytes, garbage_bytes: 32 << 20 }
    }

    /// Addresses, in bytes, that the map of a state file reserves; most of them are never backed by memory.
    pub fn address_bytes(&self) -> u64 {
        self.quota_bytes.saturating_mul(6).saturating_add(MAP_EXTRA)
    }
}

/// What is in a state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Number of the last commit; 0 before the first.
    pub commit: u64,
    /// Bytes that the live objects take in the log, as the quota counts them.
    pub live_bytes: u64,
    /// How many objects there are.
    pub keys: u64,
}

/// Open state.
#[derive(Debug)]
pub struct Engine {
    file: File,
    map: Map,
    index: Index,
    slot: Slot,
    /// Number of the last commit.
    seq: u64,
    /// Checksum of the last record.
    chain: u64,
    /// Where the next record goes.
    tail: u64,
    /// Up to here the file has blocks on the disk.
    allocated: u64,
    options: OpenOptions,
    /// No new region is tried before the tail is here.
    next_compaction: u64,
    /// A write failed, so what lies behind `tail` is unknown.
    poisoned: bool,
    scratch: Vec<u8>,
}

impl Engine {
    /// Makes an empty state of a new file.
    ///
    /// # Errors
    /// [`StateError::NoSpace`], [`StateError::Io`].
    pub fn format(file: &File, lineage: Lineage) -> Result<(), StateError> {
        let slot = Slot { lineage, generation: 0, start: PAGE, base_seq: 0, base_end: PAGE };
        file.set_len(0).map_err(StateError::io("written", PAGE))?;
        allocate(file, 0, PAGE)?;
        write_slot(file, &slot)
    }

    /// Opens state: `writable` is used for plain reads and writes, `read_only`, a descriptor of the same file that cannot write, for
    /// the map. Clears what a commit that was cut short has left.
    ///
    /// # Errors
    /// [`StateError::NotFormatted`], [`StateError::OtherFormat`], [`StateError::Corrupt`], [`StateError::Io`]. A full disk is none.
    pub fn open(writable: File, read_only: File, options: OpenOptions) -> Result<Engine, StateError> {
        let found = replay(&writable)?;
        clear(&writable, found.tail, found.torn_end)?;
        let addresses =
            options.quota_bytes.saturating_mul(6).saturating_add(MAP_EXTRA).saturating_add(found.tail);
        let addresses = usize::try_from(addresses & !(PAGE - 1)).unwrap_or(usize::MAX);
        Ok(Engine {
            file: writable,
            map: Map::over(&read_only, addresses)?,
            index: found.index,
            slot: found.slot,
            seq: found.seq,
            chain: found.chain,
            tail: found.tail,
            allocated: found.tail,
            options,
            next_compaction: 0,
            poisoned: false,
            scratch: Vec::new(),
        })
    }

    /// Begins a transaction; leaves garbage behind first if there is too much.
    pub fn begin(&mut self) -> Transaction<'_> {
        let log = self.tail - self.slot.start;
        let garbage = log.saturating_sub(self.index.live_bytes());
        let much = garbage > self.index.live_bytes().saturating_add(self.options.garbage_bytes);
        if much && self.tail >= self.next_compaction && !self.poisoned && self.compact().is_err() {
            // The old region is whole and in use; on a full disk this would only fail again at once.
            self.next_compaction = self.tail + self.options.garbage_bytes;
        }
        Transaction::new(self)
    }

    /// For reading only; any number at once.
    pub fn read(&self) -> Reader<'_> {
        Reader::new(self)
    }

    /// What there is now.
    pub fn summary(&self) -> Summary {
        summary_of(self.seq, &self.index)
    }

    /// Number of the last commit; 0 before the first.
    pub fn commit_number(&self) -> u64 {
        self.seq
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn quota(&self) -> u64 {
        self.options.quota_bytes
    }

    /// The value of an entry of this engine's own index.
    pub(crate) fn value<'a>(&'a self, entry: &'a Entry) -> Value<'a> {
        Value {
            bytes: self.map.bytes(entry.offset, entry.len),
            fingerprint: entry.fingerprint,
            version: entry.version,
            validated: &entry.validated,
        }
    }

    /// Appends one record with these changes and applies them. On an error nothing has changed.
    pub(crate) fn append(
        &mut self,
        writes: &mut std::collections::BTreeMap<Box<[u8]>, Pending>,
        retirement: &mut Retirement,
    ) -> Result<u64, StateError> {
        if self.poisoned {
            return Err(StateError::Poisoned);
        }
        if writes.is_empty() {
            return Ok(self.seq);
        }
        let mut head = RecordHead {
            parts: u32::try_from(writes.len()).map_err(|_| StateError::LogFull)?,
            len: RECORD_LEN as u64 + writes.values().map(|write| write.part.len() as u64).sum::<u64>(),
            seq: self.seq + 1,
            prev: self.chain,
            root: self.slot.root(),
            crc: 0,
        };
        self.reserve(head.len)?;
        let mut digest = head.digest();
        writes.values().for_each(|write| digest.update(&write.part));
        head.crc = digest.finalize();
        self.write_record(&head, writes.values().map(|write| &*write.part))
            .inspect_err(|_| self.poisoned = true)?;
        self.apply(&head, writes, retirement);
        Ok(self.seq)
    }

    /// Makes sure that `len` bytes at the tail have addresses and blocks.
    fn reserve(&mut self, len: u64) -> Result<(), StateError> {
        let end =
            self.tail.checked_add(len).filter(|end| *end <= self.map.len()).ok_or(StateError::LogFull)?;
        if end <= self.allocated {
            return Ok(());
        }
        let step = (self.index.live_bytes() / 4).clamp(STEP_MIN, STEP_MAX);
        let ahead = end.saturating_add(step).next_multiple_of(PAGE).min(self.map.len());
        let exact = end.next_multiple_of(PAGE);
        for goal in [ahead, exact] {
            match allocate(&self.file, self.tail, goal - self.tail) {
                Ok(()) => {
                    self.allocated = goal;
                    return Ok(());
                }
                Err(StateError::NoSpace { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StateError::NoSpace { needed: exact - self.tail })
    }

    fn write_record<'a>(
        &mut self,
        head: &RecordHead,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), StateError> {
        let failed = || StateError::io("written", head.len);
        let mut at = self.tail;
        self.scratch.clear();
        self.scratch.extend_from_slice(&head.encode());
        for part in parts {
            let large = part.len() >= WRITE_TOGETHER;
            if !large {
                self.scratch.extend_from_slice(part);
            }
            if large || self.scratch.len() >= WRITE_TOGETHER {
                self.file.write_all_at(&self.scratch, at).map_err(failed())?;
                at += self.scratch.len() as u64;
                self.scratch.clear();
            }
            if large {
                self.file.write_all_at(part, at).map_err(failed())?;
                at += part.len() as u64;
            }
        }
        self.file.write_all_at(&self.scratch, at).map_err(failed())
    }

    /// The record is in the file: now it is true.
    fn apply(
        &mut self,
        head: &RecordHead,
        writes: &mut std::collections::BTreeMap<Box<[u8]>, Pending>,
        retirement: &mut Retirement,
    ) {
        let mut at = self.tail + RECORD_LEN as u64;
        for (key, mut pending) in std::mem::take(writes) {
            let old = match pending.committed_at(at, head.seq) {
                Some(entry) => self.index.put(key, entry),
                None => self.index.remove(&key),
            };
            at += pending.part.len() as u64;
            retirement.entries.extend(old);
            retirement.parts.push(pending.part);
        }
        self.tail += head.len;
        self.seq = head.seq;
        self.chain = head.crc;
    }

    /// Writes what is live to a free region and makes that the current one.
    fn compact(&mut self) -> Result<(), StateError> {
        let need = snapshot::bound(self.index.live_bytes()).next_multiple_of(PAGE);
        let behind = self.tail.next_multiple_of(PAGE);
        let start = if self.slot.start - PAGE >= need { PAGE } else { behind };
        if start + need > self.map.len() {
            return Err(StateError::LogFull);
        }
        allocate(&self.file, start, need)?;
        let mut slot = Slot {
            generation: self.slot.generation + 1,
            start,
            base_seq: self.seq,
            base_end: start,
            ..self.slot
        };
        let written = snapshot::write(&self.index, &self.file, &self.file, &slot)?;
        slot.base_end = written.end;
        self.file.sync_data().map_err(StateError::io("written", 0))?;
        // From here on the file may say either; an error would leave that open.
        write_slot(&self.file, &slot).inspect_err(|_| self.poisoned = true)?;
        self.file.sync_data().map_err(StateError::io("written", 0)).inspect_err(|_| self.poisoned = true)?;
        let (old_start, old_end) = (self.slot.start, self.allocated.max(self.tail));
        self.index.relocate(&written.offsets);
        self.tail = written.end;
        self.chain = written.chain;
        self.allocated = start + need;
        self.slot = slot;
        self.next_compaction = 0;
        // Gives the old region's blocks back. The new one may lie inside the tail of blocks that were allocated ahead.
        let old_end = if start == PAGE { old_end } else { old_end.min(start) };
        let _ = punch(&self.file, old_start, old_end - old_start);
        Ok(())
    }
}

/// Makes `slot` the current one of `file`.
pub(crate) fn write_slot(file: &File, slot: &Slot) -> Result<(), StateError> {
    let at = SLOTS[usize::from(slot.generation % 2 == 1)];
    file.write_all_at(&slot.encode(), at).map_err(StateError::io("written", PAGE))
}

/// Gives `len` bytes at `offset` blocks on the disk.
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> Result<(), StateError> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(StateError::io("written", len)(error.into())),
        }
    }
}

pub(crate) fn summary_of(seq: u64, index: &Index) -> Summary {
    Summary { commit: seq, live_bytes: index.live_bytes(), keys: index.len() as u64 }
}

fn punch(file: &File, offset: u64, len: u64) -> rustix::io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// Makes `from..to` read as zeros, so that nothing there can ever be taken for a record.
fn clear(file: &File, from: u64, to: u64) -> Result<(), StateError> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    if to <= from || punch(file, from, to - from).is_ok() {
        return Ok(());
    }
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(&ZEROS[..len], at).map_err(StateError::io("written", len as u64))?;
        at += len as u64;
    }
    Ok(())
}
