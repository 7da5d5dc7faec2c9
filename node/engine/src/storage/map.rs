//! A read-only view of a segment's bytes.
//!
//! One of the unsafe rooms. It owns the address range, and the rule that no slice of it is made but over bytes that were written
//! before and are not written again while the slice lives; [`crate::segment`] keeps that rule.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapRaw;

/// A readable address range, alive as long as this.
pub struct Map {
    base: NonNull<u8>,
    len: usize,
    /// What keeps the range alive; dropped last.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the range is only read through `Map`, its owner is Send and Sync, and the address means the same in every thread.
unsafe impl Send for Map {}
// SAFETY: as above; reads through a shared `Map` are governed by the contract of `Map::bytes`.
unsafe impl Sync for Map {}

impl Map {
    /// A mapping made with `memmap2`.
    ///
    /// # Errors
    /// The mapping is at address 0.
    pub fn from_mmap(map: MmapRaw) -> std::io::Result<Map> {
        let len = map.len();
        let base = NonNull::new(map.as_mut_ptr())
            .ok_or_else(|| std::io::Error::other("a file was mapped at address 0"))?;
        Ok(Map { base, len, _owner: Arc::new(map) })
    }

    /// Any other memory that shows a segment's bytes.
    ///
    /// # Safety
    /// `base` is 16-aligned and good for reads of `len` bytes as long as `owner` lives, and bytes that the engine wrote are written again
    /// by nobody else.
    pub unsafe fn from_raw(base: NonNull<u8>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Map {
        Map { base, len, _owner: owner }
    }

    /// Length of the range in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `at`; `None` if they are not all inside.
    ///
    /// # Safety
    /// The bytes were written before (and this thread knows so by a lock or an atomic), and nobody writes them while the slice lives.
    pub(crate) unsafe fn bytes(&self, at: u64, len: u64) -> Option<&[u8]> {
        let at = usize::try_from(at).ok()?;
        let len = usize::try_from(len).ok()?;
        let end = at.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `at..at + len` lies inside the range, which lives as long as `self`; the caller vouches that nobody writes there.
        Some(unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), len) })
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({} bytes)", self.len)
    }
}
