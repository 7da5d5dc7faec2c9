//! Buffers whose first byte is 16-aligned and which never move: stored values, whole inputs and whole replies live in them.
//!
//! One of the unsafe rooms. It owns the pairing of allocation and release. A buffer is always initialised over its whole length, so
//! every method but the allocation itself is plain.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer in bytes: what an archive may ask for at most.
pub(crate) const ALIGN: usize = 16;

/// A fixed block of bytes at an address that is a multiple of 16. It does not move when its owner does, so pointers into it stay good
/// until it is dropped.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the block is owned by this value alone, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads, like a `Box<[u8]>`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes, or `None` when there is no memory for them (a function may ask for anything).
    pub fn zeroed(len: usize) -> Option<AlignedBuf> {
        if len == 0 {
            return Some(AlignedBuf::empty());
        }
        let layout = layout(len)?;
        // SAFETY: `layout` has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        Some(AlignedBuf { start: NonNull::new(start)?, len })
    }

    /// A copy of `bytes`, or `None` when there is no memory for it.
    pub fn copy_of(bytes: &[u8]) -> Option<AlignedBuf> {
        if bytes.is_empty() {
            return Some(AlignedBuf::empty());
        }
        let layout = layout(bytes.len())?;
        // SAFETY: `layout` has a size above zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: a fresh block of that many bytes, which nothing else points into.
        unsafe { start.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(AlignedBuf { start, len: bytes.len() })
    }

    /// No bytes at all; takes no memory.
    pub const fn empty() -> AlignedBuf {
        AlignedBuf { start: NonNull::<Block>::dangling().cast(), len: 0 }
    }

    /// Where it begins; good until it is dropped.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Where it begins, to write to; good until it is dropped. Whoever writes through it makes sure that nobody holds a slice of it.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

#[repr(align(16))]
struct Block;

fn layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len, ALIGN).ok()
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is good for `len` initialised bytes (or dangling, aligned and `len` 0), owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let (1.., Some(layout)) = (self.len, layout(self.len)) {
            // SAFETY: allocated in `zeroed` or `copy_of` with this very layout, and released only here.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_aligned_zero_and_writable() {
        for len in [0, 1, 15, 16, 17, 4096, 1 << 20] {
            let mut buffer = AlignedBuf::zeroed(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % ALIGN, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
            let copy = AlignedBuf::copy_of(&buffer).unwrap();
            assert_eq!((copy.as_ptr().addr() % ALIGN, &copy[..]), (0, &buffer[..]));
        }
        assert_eq!(AlignedBuf::empty().as_ptr().addr() % ALIGN, 0);
    }

    #[test]
    fn an_impossible_length_is_refused() {
        assert!(AlignedBuf::zeroed(usize::MAX).is_none());
        assert!(AlignedBuf::zeroed(isize::MAX as usize - 64).is_none());
    }

    #[test]
    fn it_does_not_move_with_its_owner() {
        let buffer = AlignedBuf::zeroed(100).unwrap();
        let before = buffer.as_ptr();
        let boxed = Box::new(vec![buffer]);
        assert_eq!(boxed[0].as_ptr(), before);
    }
}
