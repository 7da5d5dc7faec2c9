//! Memory that is shared with the kernel, and with whoever else is in this process: read word by word, and never as more than numbers.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use io_uring::squeue::Entry;

use crate::maker::{COMPLETION_BYTES, SUBMISSION_BYTES};

/// A completion, copied out.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    pub(crate) tag: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

const _: () =
    assert!(size_of::<Completion>() == COMPLETION_BYTES, "a completion of linux/io_uring.h has 16 bytes");
const _: () =
    assert!(size_of::<Entry>() == SUBMISSION_BYTES, "a submission of linux/io_uring.h has 64 bytes");

/// Memory that is shared with the kernel.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: it is memory like any other; words of it are used as atomics, the rest under the lock.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub(crate) fn new(fd: &OwnedFd, at: u64, len: usize) -> io::Result<Map> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh map at a place that the kernel chooses.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, fd, at)? };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Map { start, len })
    }

    fn at(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "outside of the map");
        // SAFETY: within the map, as was just checked.
        unsafe { self.start.as_ptr().cast::<u8>().add(at) }
    }

    /// A number that both sides read and write.
    pub(crate) fn word(&self, at: u32) -> &AtomicU32 {
        let word = self.at(at as usize, size_of::<u32>()).cast::<u32>();
        // SAFETY: within the map, which lives as long as `self`; aligned, as `check` has seen; only used as an atomic.
        unsafe { AtomicU32::from_ptr(word) }
    }

    pub(crate) fn completion(&self, cqes: u32, index: u32) -> Completion {
        let at = cqes as usize + index as usize * COMPLETION_BYTES;
        let completion = self.at(at, COMPLETION_BYTES).cast::<Completion>();
        // SAFETY: within the map and aligned; any bytes are a completion. Volatile: somebody else may write it meanwhile.
        unsafe { completion.read_volatile() }
    }

    pub(crate) fn write(&self, index: u32, entry: Entry) {
        let place = self.at(index as usize * SUBMISSION_BYTES, SUBMISSION_BYTES).cast::<Entry>();
        // SAFETY: within the map and aligned; the kernel reads it only after `sq_tail` says that it is there.
        unsafe { place.write_volatile(entry) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing points into it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.len) };
    }
}
