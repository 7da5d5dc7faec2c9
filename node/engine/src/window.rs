//! A writable view of the end of the segment that is being written, for commits that nobody has asked to be durable: storing into a page
//! that is there costs a tenth of a system call. Records are stored at the tail, values also where dead ones lie (`crate::slots`).
//!
//! One of the unsafe rooms. What keeps accidents of the tenant, who shares the address space, away from committed records:
//!
//! - it lies at a random address, between regions that nothing can touch, and no pointer into it is ever given to anybody. Values are
//!   read through the other map, which cannot write;
//! - of what is committed it shows at most two [`CHUNK`]s, the newest, and of what follows no more than that; and [`BEHIND`] more while
//!   values are written over. The rest of its address range cannot be touched. It goes when the segment is full, and with every sync;
//! - it is only stored into at the end, over bytes that were never shown to a reader, and over values that no reader can see any more.
//!
//! And what keeps a failing disk from being a signal: pages are **populated** first, by a call that returns errors. The segment is
//! allocated, so a full disk is none; and a page counts as populated for a second only, because later it may have been written back and
//! taken away, and a store would have to read it; a value is written over within a second of its own commit, too. Whoever gets an error
//! here writes with a plain call instead, which reports it.

use std::collections::hash_map::RandomState;
use std::ffi::c_void;
use std::fmt;
use std::hash::BuildHasher;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

const PAGE: u64 = 4096;
/// Mapped and taken away in steps of this many bytes.
pub(crate) const CHUNK: u64 = 192 << 10;
/// As much more of what is committed can be written while values are written over: so many bytes of them can be in use at a time.
pub(crate) const BEHIND: u64 = 8 << 20;
/// Untouchable bytes on both sides.
const GUARD: usize = 64 << 20;
/// Longer segments have no window: address space is limited too.
const LONGEST: u64 = 1 << 30;
/// How long a page counts as populated.
const FRESH_MS: u64 = 1000;

/// The address range of one segment: all of it untouchable, but for what is opened.
pub(crate) struct Room {
    /// Where the segment's first byte would be.
    base: NonNull<c_void>,
    len: usize,
}

// SAFETY: the range belongs to this value and means the same in every thread; who may store into it is `Window`'s to say.
unsafe impl Send for Room {}
// SAFETY: as above. Shared methods only map and populate, which the kernel orders.
unsafe impl Sync for Room {}

impl Room {
    fn reserve(len: usize) -> io::Result<Room> {
        let all = len + 2 * GUARD;
        let none = |at: *mut c_void, flags: MapFlags| {
            // SAFETY: a new mapping, over nothing that is there: the address is a hint, or taken only if it is free.
            unsafe {
                mmap_anonymous(at, all, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE | flags)
            }
        };
        // Anywhere in the lower half of the address space, so that nothing tells where; where that is taken or too low, the kernel
        // chooses. The time is in it because forks of one process may share the keys of the hash.
        let random =
            usize::try_from(RandomState::new().hash_one(Instant::now()) >> 18).unwrap_or(0) & !0xFFFF;
        let start = none(std::ptr::without_provenance_mut(random), MapFlags::FIXED_NOREPLACE)
            .or_else(|_| none(std::ptr::null_mut(), MapFlags::empty()))?;
        // SAFETY: inside the mapping that was just made.
        let base = NonNull::new(unsafe { start.byte_add(GUARD) });
        base.map(|base| Room { base, len }).ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    /// The address of a range, which lies inside the segment.
    fn range(&self, from: u64, to: u64) -> io::Result<(*mut c_void, usize)> {
        match (usize::try_from(from), usize::try_from(to)) {
            (Ok(from), Ok(to)) if from <= to && to <= self.len => {
                // SAFETY: inside the range that this value owns.
                Ok((unsafe { self.base.as_ptr().byte_add(from) }, to - from))
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn open(&self, file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
        let (at, len) = self.range(from, to)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: over a part of our own range, which nobody has a pointer into.
        unsafe { mmap(at, len, ProtFlags::READ | ProtFlags::WRITE, flags, file, from)? };
        Ok(())
    }

    fn close(&self, from: u64, to: u64) -> io::Result<()> {
        let (at, len) = self.range(from, to)?;
        if len > 0 {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // SAFETY: as in `open`; stores into it end before it is closed, because both need `&mut Window`.
            unsafe { mmap_anonymous(at, len, ProtFlags::empty(), flags)? };
        }
        Ok(())
    }

    /// Makes pages ready to be stored into, or says why they cannot be.
    pub(crate) fn populate(&self, from: u64, to: u64) -> io::Result<()> {
        let (at, len) = self.range(from, to)?;
        loop {
            // SAFETY: populating changes no byte. A part that is not open any more is an error.
            match unsafe { madvise(at, len, Advice::LinuxPopulateWrite) } {
                Err(Errno::INTR | Errno::AGAIN) => {}
                outcome => return Ok(outcome?),
            }
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the range that `reserve` mapped, unmapped once; no pointer into it is left, because none is ever given out.
        let _ = unsafe { munmap(self.base.as_ptr().byte_sub(GUARD), self.len + 2 * GUARD) };
    }
}

impl fmt::Debug for Room {
    /// Without the address, which nobody should learn.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({} bytes)", self.len)
    }
}

/// The open part of a [`Room`].
#[derive(Debug)]
pub(crate) struct Window {
    room: Arc<Room>,
    /// What is open.
    from: u64,
    to: u64,
    capacity: u64,
    /// Pages up to here are populated, since then.
    ready: u64,
    ready_ms: u64,
    /// Nothing before this is stored into.
    tail: u64,
}

/// Pages to be populated: by anybody, without a lock.
#[derive(Debug)]
pub(crate) struct Unready {
    room: Arc<Room>,
    from: u64,
    to: u64,
}

impl Unready {
    pub(crate) fn populate(&self) -> io::Result<()> {
        self.room.populate(self.from, self.to)
    }

    /// Where those of the pages begin and end that lie behind `tail`, the page of `tail` left out.
    pub(crate) fn behind(&self, tail: u64) -> (u64, u64) {
        (self.from.max(tail.next_multiple_of(PAGE)), self.to)
    }
}

impl Window {
    /// A window of a segment of `capacity` bytes that is written up to `tail`.
    pub(crate) fn new(capacity: u64, tail: u64) -> io::Result<Window> {
        let len = usize::try_from(capacity.next_multiple_of(PAGE)).ok().filter(|_| capacity <= LONGEST);
        let room = Room::reserve(len.ok_or(io::ErrorKind::Unsupported)?)?;
        let from = tail & !(PAGE - 1);
        Ok(Window { room: Arc::new(room), from, to: from, capacity, ready: from, ready_ms: 0, tail })
    }

    /// Whether `len` bytes at `at` can be stored without a fault.
    pub(crate) fn is_ready(&self, at: u64, len: u64, now_ms: u64) -> bool {
        at >= self.tail && at >= self.from && at + len <= self.ready && self.is_fresh(now_ms)
    }

    /// Up to where pages are ready from `at` on.
    pub(crate) fn ready_to(&self, at: u64, now_ms: u64) -> u64 {
        let page = at & !(PAGE - 1);
        if self.is_fresh(now_ms) { self.ready.max(page) } else { page }
    }

    fn is_fresh(&self, now_ms: u64) -> bool {
        now_ms.wrapping_sub(self.ready_ms) < FRESH_MS
    }

    /// Opens what lies before `to`, closes what lies a chunk and `behind` bytes behind the tail, which is at `at`, and says which pages are
    /// not ready.
    pub(crate) fn show(
        &mut self,
        file: BorrowedFd<'_>,
        (at, to): (u64, u64),
        behind: u64,
        now_ms: u64,
    ) -> io::Result<Option<Unready>> {
        let to = to.next_multiple_of(PAGE).min(self.capacity.next_multiple_of(PAGE));
        while self.to < to {
            let end = (self.to / CHUNK + 1) * CHUNK;
            let end = end.min(self.capacity.next_multiple_of(PAGE));
            self.room.open(file, self.to, end)?;
            self.to = end;
        }
        // Records were written by other ways, too.
        self.tail = at;
        let behind = at.saturating_sub(behind) / CHUNK * CHUNK;
        if behind > self.from {
            self.room.close(self.from, behind)?;
            self.from = behind;
        }
        if !self.is_fresh(now_ms) {
            (self.ready, self.ready_ms) = (0, now_ms);
        }
        let from = self.ready_to(at, now_ms);
        Ok((from < to).then(|| Unready { room: self.room.clone(), from, to }))
    }

    /// Notes that pages were populated that [`Window::show`] named.
    pub(crate) fn populated(&mut self, pages: &Unready) {
        let joins = self.ready >= pages.from || self.tail >= pages.from;
        if Arc::ptr_eq(&self.room, &pages.room) && joins {
            self.ready = self.ready.max(pages.to);
        }
    }

    /// Stores bytes that [`Window::is_ready`] has room for.
    pub(crate) fn store(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        assert!(
            at >= self.tail && at >= self.from && end <= self.ready && end <= self.to,
            "a store outside of the window"
        );
        if let Ok((place, _)) = self.room.range(at, end) {
            // SAFETY: the place is open for writing (`from` and `to` say so) and inside the segment. Nobody reads it: it is not before
            // the tail, so no index points to it yet, and slices are only made of what one points to.
            unsafe { place.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        }
    }

    /// Whether a value of `len` bytes at `at`, which is committed, can be stored over.
    pub(crate) fn reaches(&self, at: u64, len: u64) -> bool {
        at >= self.from && at + len <= self.tail.min(self.to)
    }

    /// Stores a value over one that is dead and that [`Window::reaches`].
    pub(crate) fn store_over(&mut self, at: u64, bytes: &[u8]) {
        assert!(self.reaches(at, bytes.len() as u64), "a store outside of the window");
        if let Ok((place, _)) = self.room.range(at, at + bytes.len() as u64) {
            // SAFETY: the place is open for writing and inside the segment. Nobody reads it: `crate::slots` says that whoever could have
            // seen the value that was there is gone.
            unsafe { place.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        }
    }

    /// Says that what lies before `tail` is committed.
    pub(crate) fn advance(&mut self, tail: u64) {
        self.tail = tail;
    }
}
