//! A ring as a hostile holder uses it: submissions that nobody has checked, written into the shared memory by hand.
//!
//! Also part of the tests of the sandbox, where it is the tenant.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use denizen_ring::maker::{COMPLETION_BYTES, Layout, SUBMISSION_BYTES};
use io_uring::squeue::Entry;

/// `IOSQE_FIXED_FILE`: the number is a place in the table.
pub(crate) const FIXED: u8 = 1 << 0;

/// `IORING_ENTER_GETEVENTS`.
const WAIT: u32 = 1 << 0;

/// Where the map of submissions begins.
const SUBMISSIONS_AT: libc::off_t = 0x1000_0000;

/// A mapped ring. A map holds the ring, as a descriptor does.
pub(crate) struct Raw {
    fd: RawFd,
    layout: Layout,
    queues: *mut u8,
    submissions: *mut u8,
}

impl Drop for Raw {
    fn drop(&mut self) {
        for (map, bytes) in
            [(self.queues, self.layout.queues_bytes()), (self.submissions, self.layout.submissions_bytes())]
        {
            // SAFETY: made by `map`, and nothing points into it any more.
            unsafe { libc::munmap(map.cast(), bytes) };
        }
    }
}

/// What came of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    /// A result, or an error number, negative.
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

impl Raw {
    /// Maps the ring behind `fd`, which must stay open.
    pub(crate) fn map(fd: RawFd, layout: Layout) -> io::Result<Raw> {
        let map = |bytes, at| {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a fresh map at an address of the kernel's choice.
            let map =
                unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, at) };
            if map == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(map.cast::<u8>()) }
        };
        let queues = map(layout.queues_bytes(), 0)?;
        let submissions = map(layout.submissions_bytes(), SUBMISSIONS_AT)?;
        Ok(Raw { fd, layout, queues, submissions })
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel's own offset within the map; the word is shared with the kernel alone.
        unsafe { &*self.queues.add(offset as usize).cast::<AtomicU32>() }
    }

    /// Writes a submission; its flags are those of the entry and `flags`.
    pub(crate) fn push(&self, entry: &Entry, flags: u8) {
        let mut bytes = [0_u8; SUBMISSION_BYTES];
        // SAFETY: an entry is a submission as the kernel reads it: so many bytes, all initialised.
        unsafe {
            std::ptr::copy_nonoverlapping(std::ptr::from_ref(entry).cast(), bytes.as_mut_ptr(), bytes.len())
        };
        bytes[1] |= flags;
        self.push_bytes(&bytes);
    }

    /// Writes a submission, whatever it is.
    pub(crate) fn push_bytes(&self, bytes: &[u8; SUBMISSION_BYTES]) {
        let tail = self.word(self.layout.sq_tail);
        let now = tail.load(Ordering::Relaxed);
        let index = now & (self.layout.entries - 1);
        // SAFETY: the index is masked, so the place lies within the map.
        unsafe {
            let place = self.submissions.add(index as usize * SUBMISSION_BYTES);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
        }
        self.word(self.layout.sq_array + 4 * index).store(index, Ordering::Relaxed);
        tail.store(now.wrapping_add(1), Ordering::Release);
    }

    /// Lets the kernel take `submit` submissions, and waits for `wait_for` completions.
    pub(crate) fn enter(&self, submit: u32, wait_for: u32) -> io::Result<u32> {
        let flags = if wait_for > 0 { WAIT } else { 0 };
        // SAFETY: whatever was submitted points to live memory, or is refused.
        let done = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, self.fd, submit, wait_for, flags, 0_usize, 0_usize)
        };
        u32::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Takes one completion out.
    pub(crate) fn reap(&self) -> Option<Completion> {
        let head = self.word(self.layout.cq_head);
        let now = head.load(Ordering::Relaxed);
        if now == self.word(self.layout.cq_tail).load(Ordering::Acquire) {
            return None;
        }
        let at =
            self.layout.cqes as usize + (now & (self.layout.completions - 1)) as usize * COMPLETION_BYTES;
        // SAFETY: the index is masked, so the completion lies within the map, and the kernel has written it.
        let (user_data, result, flags) = unsafe {
            let at = self.queues.add(at);
            (at.cast::<u64>().read(), at.add(8).cast::<i32>().read(), at.add(12).cast::<u32>().read())
        };
        head.store(now.wrapping_add(1), Ordering::Release);
        Some(Completion { user_data, result, flags })
    }

    /// Submits one and waits for its completion: the result, or why it could not be submitted, as a negative number.
    pub(crate) fn run(&self, entry: &Entry, flags: u8) -> i32 {
        self.push(entry, flags);
        self.finish()
    }

    /// As [`Raw::run`], for any bytes.
    pub(crate) fn run_bytes(&self, bytes: &[u8; SUBMISSION_BYTES]) -> i32 {
        self.push_bytes(bytes);
        self.finish()
    }

    fn finish(&self) -> i32 {
        match self.enter(1, 1) {
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
            Ok(_) => self.reap().map_or(-libc::ENODATA, |completion| completion.result),
        }
    }
}

/// One io_uring_register(2), as a hostile holder makes it. Zero or more, or an error number, negative.
pub(crate) fn register(fd: RawFd, what: u32) -> i64 {
    let argument = [0_u64; 512];
    // SAFETY: the kernel reads a live block of zeros, longer than any argument, or writes to it.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, argument.as_ptr(), 1) };
    if done >= 0 { done } else { -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) }
}
