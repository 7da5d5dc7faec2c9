//! What a dying sandbox managed to say: one page that the sandbox writes and the agent reads.
//!
//! The page is a memfd sealed against resizing, mapped by the sandbox alone; the agent *reads* it with `pread`, so that it
//! holds a copy before it looks, and has no map that could fault. Everything on it is an allegation: the tenant shares
//! the sandbox's memory. It chooses words in a message, and nothing else. The fields are numbers; the sentences are made
//! on the agent's side.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use serde::{Deserialize, Serialize};

use crate::seccomp::name_of;

/// Size of the page, in bytes.
const PAGE_BYTES: usize = 4096;

/// Threads whose invocation can be named.
const PLACES: usize = 256;

/// The page. Written by the sandbox, read by the agent; little-endian like everything here.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Page {
    /// 0: nothing said. [`WRITING`], then [`SAID`].
    pub(crate) state: AtomicU32,
    /// A [`Phase`] as a number; kept up to date while the sandbox lives.
    pub(crate) phase: AtomicU32,
    /// The signal.
    pub(crate) signal: AtomicI32,
    /// Non-zero: the fault's address lies at the end of the thread's stack.
    pub(crate) at_stack_end: AtomicU32,
    /// For SIGSYS: the number of the system call.
    pub(crate) nr: AtomicI64,
    /// For faults: the address.
    pub(crate) address: AtomicU64,
    /// What the dying thread was running.
    pub(crate) invocation: AtomicU64,
    /// A lower bound of the memory that could still be allocated, in bytes, to a power of two.
    pub(crate) left_bytes: AtomicU64,
    /// The memory limit in force, in bytes; 0 before admission.
    pub(crate) limit_bytes: AtomicU64,
    /// Room to grow.
    reserved: [u64; 249],
    /// The invocation that each thread is running, 0 for none.
    pub(crate) places: [AtomicU64; PLACES],
}

const _: () = assert!(size_of::<Page>() == PAGE_BYTES, "adjust `reserved` until the page is one page");
const _: () = assert!(offset_of!(Page, places) == 2048, "the places fill the upper half of the page");

/// A thread is writing its last words.
pub(crate) const WRITING: u32 = 1;
/// The last words are whole.
pub(crate) const SAID: u32 = 2;

/// Why a sandbox says that it ended. Written by the sandbox: an allegation, useful for a message, never for a decision
/// about trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demise {
    /// Number of the signal that ended it (11 for SIGSEGV).
    pub signal: i32,
    /// What happened.
    pub kind: DemiseKind,
    /// How far the sandbox had come.
    pub phase: Phase,
    /// Wire identity of the invocation that the dying thread was running; 0 if none.
    pub invocation: u64,
    /// One line for a person; printable text.
    pub message: String,
}

/// What ended a sandbox, as far as it could tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DemiseKind {
    /// A thread ran out of stack.
    StackOverflow,
    /// An address that is not mapped, or not for this.
    Segfault,
    /// A mapped file that could not be read.
    BusError,
    /// An instruction that does not exist.
    IllegalInstruction,
    /// A division by zero or the like.
    ArithmeticFault,
    /// The function called `abort` (a panic across a boundary, a failed assertion in C).
    Abort,
    /// It aborted with less than an eighth of its memory limit left.
    OutOfMemory,
    /// It made a system call that no sandbox may make.
    ForbiddenSyscall {
        /// The call's number.
        nr: i64,
        /// The call's name, `?` if unknown.
        name: String,
    },
}

/// How far a sandbox had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No image yet: no tenant code has run.
    Waiting,
    /// Constructors and the plugin's init.
    Loading,
    /// Serving.
    Sealed,
}

impl Phase {
    /// As it stands on the page.
    fn number(self) -> u32 {
        match self {
            Phase::Waiting => 0,
            Phase::Loading => 1,
            Phase::Sealed => 2,
        }
    }

    /// From the page; an unknown number is the last phase, in which tenants write what they like.
    fn from_number(number: u32) -> Phase {
        match number {
            0 => Phase::Waiting,
            1 => Phase::Loading,
            _ => Phase::Sealed,
        }
    }
}

/// Makes the page's file, sealed so that nobody can make it shorter under a reader.
pub(crate) fn new_page() -> rustix::io::Result<OwnedFd> {
    let page = rustix::fs::memfd_create(
        "last-words",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL,
    )
    .or_else(|_| rustix::fs::memfd_create("last-words", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING))?;
    rustix::fs::ftruncate(&page, PAGE_BYTES as u64)?;
    rustix::fs::fcntl_add_seals(&page, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(page)
}

/// The agent's view of the page on which a sandbox writes its last words.
#[derive(Debug)]
pub struct LastWords {
    page: std::fs::File,
}

impl LastWords {
    pub(crate) fn new(page: OwnedFd) -> LastWords {
        LastWords { page: page.into() }
    }

    /// Copies the page, then checks it. `None`: nothing (sensible) was written.
    pub fn read(&self) -> Option<Demise> {
        let mut copy = [0; PAGE_BYTES];
        self.page.read_exact_at(&mut copy, 0).ok()?;
        Allegation(&copy).demise()
    }
}

/// A private copy of a page that a tenant may have written.
struct Allegation<'a>(&'a [u8; PAGE_BYTES]);

impl Allegation<'_> {
    fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|index| self.0[offset + index]))
    }

    fn long(&self, offset: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|index| self.0[offset + index]))
    }

    fn demise(&self) -> Option<Demise> {
        if self.word(offset_of!(Page, state)) != SAID {
            return None;
        }
        let signal = self.word(offset_of!(Page, signal)).cast_signed();
        let kind = self.kind(signal)?;
        let message = self.message(&kind);
        let phase = Phase::from_number(self.word(offset_of!(Page, phase)));
        Some(Demise { signal, kind, phase, invocation: self.long(offset_of!(Page, invocation)), message })
    }

    fn kind(&self, signal: i32) -> Option<DemiseKind> {
        Some(match signal {
            libc::SIGSEGV | libc::SIGBUS if self.word(offset_of!(Page, at_stack_end)) != 0 => {
                DemiseKind::StackOverflow
            }
            libc::SIGSEGV => DemiseKind::Segfault,
            libc::SIGBUS => DemiseKind::BusError,
            libc::SIGILL => DemiseKind::IllegalInstruction,
            libc::SIGFPE => DemiseKind::ArithmeticFault,
            libc::SIGABRT if self.memory_is_used_up() => DemiseKind::OutOfMemory,
            libc::SIGABRT => DemiseKind::Abort,
            libc::SIGSYS => {
                let nr = self.long(offset_of!(Page, nr)).cast_signed();
                DemiseKind::ForbiddenSyscall { nr, name: name_of(nr).unwrap_or("?").to_owned() }
            }
            _ => return None,
        })
    }

    fn memory_is_used_up(&self) -> bool {
        let limit = self.long(offset_of!(Page, limit_bytes));
        limit != 0 && self.long(offset_of!(Page, left_bytes)) < limit / 8
    }

    fn message(&self, kind: &DemiseKind) -> String {
        let address = self.long(offset_of!(Page, address));
        match kind {
            DemiseKind::StackOverflow => {
                "a thread ran out of stack (endless recursion, or a very large local variable)".into()
            }
            DemiseKind::Segfault => {
                format!("the function used the invalid address {address:#x}{}", self.memory_note())
            }
            DemiseKind::BusError => format!("a mapped file could not be read at address {address:#x}"),
            DemiseKind::IllegalInstruction => format!("illegal instruction at {address:#x}"),
            DemiseKind::ArithmeticFault => format!("arithmetic fault at {address:#x} (a division by zero)"),
            DemiseKind::Abort => format!("the function aborted{}; its log says why", self.memory_note()),
            DemiseKind::OutOfMemory => {
                format!("the function ran out of memory and aborted{}", self.memory_note())
            }
            DemiseKind::ForbiddenSyscall { nr, name } => {
                format!("the function made the system call `{name}` ({nr}), which no sandbox may make")
            }
        }
    }

    /// How much memory was left, if little enough to be the cause.
    fn memory_note(&self) -> String {
        let (left, limit) =
            (self.long(offset_of!(Page, left_bytes)), self.long(offset_of!(Page, limit_bytes)));
        if limit == 0 || left > limit / 2 {
            return String::new();
        }
        format!(" with about {} MiB of its {} MiB of memory left", left >> 20, limit >> 20)
    }
}

thread_local! {
    /// This thread's place on the page; [`PLACES`] or more: none. No destructor, so a signal handler may read it.
    static PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The next free place.
static NEXT_PLACE: AtomicUsize = AtomicUsize::new(0);

/// The sandbox's own side of the page.
#[derive(Clone, Copy, Debug)]
pub struct Testament {
    pub(crate) page: &'static Page,
}

impl Testament {
    /// Maps the page for the life of the process.
    pub(crate) fn map(file: BorrowedFd<'_>) -> rustix::io::Result<Testament> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh map, at an address of the kernel's choice, of a file that is sealed at this very size.
        let page = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), PAGE_BYTES, prot, MapFlags::SHARED, file.as_fd(), 0)?
        };
        // SAFETY: the map is never undone; it is page-aligned, zeroed, as large as `Page`, and all its fields that change
        // are atomics, for which every bit pattern is valid.
        Ok(Testament { page: unsafe { &*page.cast::<Page>() } })
    }

    /// Notes that the calling thread runs `invocation` until the guard is dropped. Costs two stores. At most 256
    /// threads of a sandbox have a place; further ones are not named.
    pub fn running(self, invocation: u64) -> Running {
        let place = self.place();
        let before = place.map_or(0, |place| place.swap(invocation, Ordering::Relaxed));
        Running { place, before, not_send: PhantomData }
    }

    /// What the calling thread is running. Async-signal-safe.
    pub(crate) fn current(self) -> u64 {
        self.page.places.get(PLACE.get()).map_or(0, |place| place.load(Ordering::Relaxed))
    }

    /// Notes how far the sandbox has come.
    pub(crate) fn enter(self, phase: Phase) {
        self.page.phase.store(phase.number(), Ordering::Relaxed);
    }

    /// This thread's place, taken on first use.
    fn place(self) -> Option<&'static AtomicU64> {
        if PLACE.get() == usize::MAX {
            PLACE.set(NEXT_PLACE.fetch_add(1, Ordering::Relaxed));
        }
        self.page.places.get(PLACE.get())
    }
}

/// While it lives, the calling thread's death names its invocation.
#[derive(Debug)]
pub struct Running {
    place: Option<&'static AtomicU64>,
    before: u64,
    not_send: PhantomData<*const ()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.store(self.before, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_with(fields: &[(usize, &[u8])]) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        for (offset, bytes) in fields {
            page[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        page
    }

    #[test]
    fn an_unfinished_page_says_nothing() {
        let page = page_with(&[(offset_of!(Page, state), &[1]), (offset_of!(Page, signal), &[11])]);
        assert_eq!(Allegation(&page).demise(), None);
    }

    #[test]
    fn nonsense_says_nothing_and_harms_nobody() {
        assert_eq!(Allegation(&[0xFF; PAGE_BYTES]).demise(), None);
        let page = page_with(&[(offset_of!(Page, state), &[2]), (offset_of!(Page, signal), &[99])]);
        assert_eq!(Allegation(&page).demise(), None);
    }

    #[test]
    fn a_forbidden_call_is_named() {
        let nr = libc::SYS_ptrace.to_le_bytes();
        let page = page_with(&[
            (offset_of!(Page, state), &[2]),
            (offset_of!(Page, signal), &[31]),
            (offset_of!(Page, nr), &nr),
        ]);
        let demise = Allegation(&page).demise().unwrap();
        assert_eq!(demise.kind, DemiseKind::ForbiddenSyscall { nr: libc::SYS_ptrace, name: "ptrace".into() });
        assert!(demise.message.contains("`ptrace`"), "{}", demise.message);
    }

    #[test]
    fn an_abort_with_no_memory_left_is_told_as_such() {
        let abort = |left: u64| {
            let page = page_with(&[
                (offset_of!(Page, state), &[2]),
                (offset_of!(Page, signal), &[6]),
                (offset_of!(Page, limit_bytes), &(64_u64 << 20).to_le_bytes()),
                (offset_of!(Page, left_bytes), &left.to_le_bytes()),
            ]);
            Allegation(&page).demise().unwrap().kind
        };
        assert_eq!(abort(1 << 20), DemiseKind::OutOfMemory);
        assert_eq!(abort(32 << 20), DemiseKind::Abort);
    }

    #[test]
    fn running_nests_and_ends() {
        let testament = Testament::map(new_page().unwrap().as_fd()).unwrap();
        let outer = testament.running(7);
        {
            let _inner = testament.running(8);
            assert_eq!(testament.current(), 8);
        }
        assert_eq!(testament.current(), 7);
        drop(outer);
        assert_eq!(testament.current(), 0);
    }

    #[test]
    fn the_page_cannot_be_made_shorter() {
        let page = new_page().unwrap();
        assert!(rustix::fs::ftruncate(&page, 0).is_err());
    }
}
