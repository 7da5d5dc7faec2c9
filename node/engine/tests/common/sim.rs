//! A disk in memory. It keeps what was written and what was synced apart, so that a test can rebuild it as it may have stood after a
//! loss of power at any instant, and it fails on command.
//!
//! Model of a loss of power: what a sync covered is there. Of everything written since, each sector (512 bytes) or page (4 KiB) may
//! hold any of the states that it went through, independently of all others: so later writes may survive earlier ones, and one write
//! may be torn.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Weak};

use denizen_engine::storage::{Map, Segment, Storage};

use super::Rng;

/// What happened to the disk, in order.
#[derive(Debug, Clone)]
pub enum Op {
    Create { segment: u64, capacity: u64 },
    Write { segment: u64, offset: u64, bytes: Vec<u8> },
    Sync { segment: u64 },
    Retire { segment: u64 },
}

/// What fails, and when.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The write with this number (from 1) fails after half of its bytes.
    pub write: Option<u64>,
    pub sync: Option<u64>,
    pub read: Option<u64>,
    /// No more spares after so many.
    pub spares: Option<u64>,
}

#[derive(Debug, Default)]
struct Disk {
    segments: BTreeMap<u64, Arc<SimSegment>>,
    spares: Vec<Arc<SimSegment>>,
    next_id: u64,
    journal: Vec<Op>,
    faults: Faults,
    writes: u64,
    syncs: u64,
    reads: u64,
    longest_read: usize,
    made: u64,
    /// Whether segments may be written through memory, too. Then what the journal knows of each is kept here.
    windows: bool,
    known: BTreeMap<u64, Vec<u8>>,
}

/// What is written through memory is noticed in pieces of this size.
const SECTOR: usize = 512;

impl Disk {
    /// Writes down what was written through memory since the last time.
    fn notice(&mut self) {
        if !self.windows {
            return;
        }
        for (id, segment) in &self.segments {
            let mut now = vec![0; segment.capacity as usize];
            segment.read_plain(&mut now, 0);
            let known = self.known.entry(*id).or_insert_with(|| vec![0; now.len()]);
            let sectors = now.chunks(SECTOR).zip(known.chunks(SECTOR)).enumerate();
            let other =
                sectors.filter(|(_, (now, known))| now != known).map(|(at, (now, _))| (at, now.to_vec()));
            self.journal.extend(other.map(|(at, bytes)| {
                let offset = (at * SECTOR) as u64;
                Op::Write { segment: *id, offset, bytes }
            }));
            *known = now;
        }
    }
}

/// The disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Sim(Arc<Mutex<Disk>>);

/// Bytes that are written through a pointer while others read elsewhere in them: a file in memory, so that it can be mapped again.
#[derive(Debug)]
struct Memory {
    base: NonNull<u8>,
    file: File,
    _owner: memmap2::MmapRaw,
}

// SAFETY: the engine never reads where it writes at the same time, and the test disk writes only for the engine.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

#[derive(Debug)]
struct SimSegment {
    id: u64,
    capacity: u64,
    memory: Arc<Memory>,
    /// Weak, so that the disk goes when the test is done with it.
    disk: Weak<Mutex<Disk>>,
}

impl SimSegment {
    fn new(disk: &Sim, id: u64, bytes: &[u8]) -> Arc<SimSegment> {
        let file = File::from(rustix::fs::memfd_create("segment", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        let owner = memmap2::MmapOptions::new().map_raw(&file).unwrap();
        let base = NonNull::new(owner.as_mut_ptr()).unwrap();
        let memory = Arc::new(Memory { base, file, _owner: owner });
        Arc::new(SimSegment { id, capacity: bytes.len() as u64, memory, disk: Arc::downgrade(&disk.0) })
    }

    fn disk(&self) -> Arc<Mutex<Disk>> {
        self.disk.upgrade().expect("the engine keeps its storage")
    }

    fn poke(&self, offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        assert!(offset + bytes.len() <= self.capacity as usize, "a write beyond the end");
        // SAFETY: inside the block; nobody reads bytes that were not written yet, and nobody writes others while the engine lives.
        unsafe { self.memory.base.as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

impl Sim {
    pub fn new() -> Sim {
        let sim = Sim::default();
        sim.0.lock().unwrap().next_id = 1;
        sim
    }

    /// Lets segments be written through memory, as files are.
    pub fn allow_windows(&self) {
        let mut disk = self.0.lock().unwrap();
        disk.windows = true;
        let segments: Vec<_> = disk.segments.values().cloned().collect();
        for segment in segments {
            let mut bytes = vec![0; segment.capacity as usize];
            segment.read_plain(&mut bytes, 0);
            disk.known.insert(segment.id, bytes);
        }
    }

    pub fn journal(&self) -> Vec<Op> {
        let mut disk = self.0.lock().unwrap();
        disk.notice();
        disk.journal.clone()
    }

    pub fn journal_len(&self) -> usize {
        let mut disk = self.0.lock().unwrap();
        disk.notice();
        disk.journal.len()
    }

    pub fn set_faults(&self, faults: Faults) {
        let mut disk = self.0.lock().unwrap();
        disk.faults = faults;
        (disk.writes, disk.syncs, disk.reads, disk.made) = (0, 0, 0, 0);
    }

    pub fn counts(&self) -> (u64, u64, u64) {
        let disk = self.0.lock().unwrap();
        (disk.writes, disk.syncs, disk.reads)
    }

    /// The most bytes that were asked for at once.
    pub fn longest_read(&self) -> usize {
        self.0.lock().unwrap().longest_read
    }

    /// The bytes of all segments, spares left out.
    pub fn images(&self) -> BTreeMap<u64, Vec<u8>> {
        let disk = self.0.lock().unwrap();
        let bytes = |segment: &SimSegment| {
            let mut bytes = vec![0; segment.capacity as usize];
            segment.read_plain(&mut bytes, 0);
            bytes
        };
        disk.segments.iter().map(|(id, segment)| (*id, bytes(segment))).collect()
    }

    /// A disk that holds these segments.
    pub fn from_images(images: &BTreeMap<u64, Vec<u8>>) -> Sim {
        let sim = Sim::new();
        for (id, bytes) in images {
            let segment = SimSegment::new(&sim, *id, bytes);
            let mut disk = sim.0.lock().unwrap();
            disk.next_id = disk.next_id.max(id + 1);
            disk.segments.insert(*id, segment);
        }
        sim
    }

    /// A disk with operations that are not synced: it is as they left it, and what was not synced may still be lost.
    pub fn resume(start: &BTreeMap<u64, Vec<u8>>, journal: &[Op]) -> Sim {
        let sim = Sim::from_images(&crash(start, journal, Crash::Process, &mut Rng(0)));
        let created = journal.iter().filter_map(|op| match op {
            Op::Create { segment, .. } => Some(*segment),
            _ => None,
        });
        let mut disk = sim.0.lock().unwrap();
        disk.next_id = disk.next_id.max(created.max().unwrap_or(0) + 1);
        disk.journal = journal.to_vec();
        drop(disk);
        sim
    }

    /// A handle on every segment, for offline functions.
    /// The disk has to outlive them.
    pub fn handles(&self) -> Vec<Arc<dyn Segment>> {
        let disk = self.0.lock().unwrap();
        disk.segments.values().map(|segment| segment.clone() as Arc<dyn Segment>).collect()
    }

    fn make(&self, wanted: u64) {
        let mut disk = self.0.lock().unwrap();
        if disk.faults.spares.is_some_and(|most| disk.made >= most) {
            return;
        }
        disk.made += 1;
        let id = disk.next_id;
        disk.next_id += 1;
        disk.journal.push(Op::Create { segment: id, capacity: wanted });
        drop(disk);
        let segment = SimSegment::new(self, id, &vec![0; wanted as usize]);
        let mut disk = self.0.lock().unwrap();
        disk.segments.insert(id, segment.clone());
        disk.spares.push(segment);
    }
}

impl SimSegment {
    fn read_plain(&self, bytes: &mut [u8], offset: u64) {
        let offset = usize::try_from(offset).unwrap();
        // SAFETY: inside the block, as callers have checked; writes go elsewhere.
        unsafe {
            bytes.as_mut_ptr().copy_from_nonoverlapping(self.memory.base.as_ptr().add(offset), bytes.len());
        }
    }
}

impl Segment for SimSegment {
    fn id(&self) -> u64 {
        self.id
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let disk = self.disk();
        let mut disk = disk.lock().unwrap();
        disk.writes += 1;
        let fails = disk.faults.write == Some(disk.writes);
        let bytes = if fails { &bytes[..bytes.len() / 2] } else { bytes };
        disk.notice();
        disk.journal.push(Op::Write { segment: self.id, offset, bytes: bytes.to_vec() });
        self.poke(offset, bytes);
        if let Some(known) = disk.known.get_mut(&self.id) {
            known[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        if fails { Err(io::Error::other("the test disk fails to write")) } else { Ok(()) }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.disk();
        let mut disk = disk.lock().unwrap();
        disk.reads += 1;
        disk.longest_read = disk.longest_read.max(bytes.len());
        if disk.faults.read == Some(disk.reads) {
            return Err(io::Error::other("the test disk fails to read"));
        }
        if offset + bytes.len() as u64 > self.capacity {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_plain(bytes, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let disk = self.disk();
        let mut disk = disk.lock().unwrap();
        disk.syncs += 1;
        if disk.faults.sync == Some(disk.syncs) {
            return Err(io::Error::other("the test disk fails to sync"));
        }
        disk.notice();
        disk.journal.push(Op::Sync { segment: self.id });
        Ok(())
    }

    fn map(&self) -> io::Result<Map> {
        let len = self.capacity as usize;
        // SAFETY: the block lives as long as `memory`, is 16-aligned, and the engine writes nothing that a reader sees.
        Ok(unsafe { Map::from_raw(self.memory.base, len, self.memory.clone()) })
    }

    fn writable_file(&self) -> Option<BorrowedFd<'_>> {
        let windows = self.disk().lock().unwrap().windows;
        windows.then(|| self.memory.file.as_fd())
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        let mut rest = vec![0; (self.capacity - offset.min(self.capacity)) as usize];
        self.read_plain(&mut rest, offset.min(self.capacity));
        rest.iter().position(|byte| *byte != 0).map(|at| offset + (at as u64 & !511))
    }
}

impl Storage for Sim {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        // What was a spare in an earlier life is a file like any other now.
        self.0.lock().unwrap().spares.clear();
        Ok(self.handles())
    }

    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        let mut disk = self.0.lock().unwrap();
        let at = disk.spares.iter().position(|spare| spare.capacity >= min_bytes);
        Ok(at.map(|at| disk.spares.remove(at) as Arc<dyn Segment>))
    }

    fn request_spare(&self, wanted_bytes: u64) {
        if !self.0.lock().unwrap().spares.iter().any(|spare| spare.capacity >= wanted_bytes) {
            self.make(wanted_bytes);
        }
    }

    fn retire(&self, id: u64) {
        let mut disk = self.0.lock().unwrap();
        disk.notice();
        disk.journal.push(Op::Retire { segment: id });
        disk.segments.remove(&id);
    }
}

/// How a disk is left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process ends; the kernel keeps what was written, and half of a write that it was in.
    Process,
    /// The power goes; sectors of 512 bytes survive or not.
    Sectors,
    /// The power goes; pages of 4 KiB survive or not.
    Pages,
}

/// The disk after these operations on top of `start`, and a crash.
pub fn crash(
    start: &BTreeMap<u64, Vec<u8>>,
    journal: &[Op],
    how: Crash,
    rng: &mut Rng,
) -> BTreeMap<u64, Vec<u8>> {
    let mut images = start.clone();
    // Chance of 16 that a piece that was not synced is there.
    let kept = [0, 5, 11, 15, 16][rng.below(5)];
    let piece = if how == Crash::Pages { 4096 } else { 512 };
    let mut synced: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, op) in journal.iter().enumerate() {
        if let Op::Sync { segment } = op {
            synced.insert(*segment, at);
        }
    }
    let mut stuck: HashSet<(u64, u64)> = HashSet::new();
    for (at, op) in journal.iter().enumerate() {
        match op {
            Op::Create { segment, capacity } => {
                images.insert(*segment, vec![0; *capacity as usize]);
            }
            Op::Retire { segment } => {
                // Deleting a file is durable only when its directory is: it may still be there.
                if how == Crash::Process || rng.below(2) == 0 {
                    images.remove(segment);
                }
            }
            Op::Sync { .. } => {}
            Op::Write { segment, offset, bytes } => {
                let Some(image) = images.get_mut(segment) else { continue };
                let whole = how == Crash::Process || synced.get(segment).is_some_and(|sync| *sync > at);
                let mut from = 0;
                while from < bytes.len() {
                    let place = offset + from as u64;
                    let len = ((piece - place % piece) as usize).min(bytes.len() - from);
                    let number = place / piece;
                    let gone = !whole && !stuck.contains(&(*segment, number)) && rng.below(16) >= kept;
                    if gone {
                        stuck.insert((*segment, number));
                    }
                    if whole || !stuck.contains(&(*segment, number)) {
                        image[place as usize..][..len].copy_from_slice(&bytes[from..from + len]);
                    }
                    from += len;
                }
            }
        }
    }
    images
}
