//! A folder of segments: their names, their numbers, and the two descriptors of each that a sandbox gets.
//!
//! A number is never used twice for one process, because whoever reads a log tells segments by it. So it holds the term that made the
//! segment, and a count; copies, which are made in a term that may have made segments of its own, count from the middle.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use denizen_engine::storage::{FileSegment, Segment, Storage};
pub(super) use denizen_engine::storage::{segment_file as file, segment_ids as ids};
use denizen_sched::Epoch;
use rustix::fs::FlockOperation;

use crate::dir;
use crate::stock;

/// Bits of a number that count within a term: 70 TiB of the smallest segments.
const COUNT_BITS: u32 = 28;
/// Where the count of copies begins.
const COPIES: u64 = 1 << (COUNT_BITS - 1);
/// Where the count of recoveries begins: copies that take the place of what a term has left.
const RECOVERIES: u64 = COPIES + COPIES / 2;

/// The number before a term's first segment.
pub(super) const fn before_first(epoch: Epoch) -> u64 {
    epoch.get() << COUNT_BITS
}

/// The number before the first segment of a term's copy.
pub(super) const fn before_copies(epoch: Epoch) -> u64 {
    before_first(epoch) | COPIES
}

/// The number before the first segment of what is made of a folder with these: it is of the term that made the newest of them, and behind
/// all that was made of that term before.
pub(super) fn before_recovery(ids: &[u64]) -> u64 {
    let newest = ids.iter().copied().max().unwrap_or_default();
    let term = newest >> COUNT_BITS << COUNT_BITS;
    newest.max(term + RECOVERIES)
}

/// Whether `id` can still be one of the term's own segments.
pub(super) const fn is_own(epoch: Epoch, id: u64) -> bool {
    id > before_first(epoch) && id < before_copies(epoch)
}

/// All segments of a folder, to be read only.
pub(super) fn segments(folder: &Path) -> io::Result<Vec<Arc<dyn Segment>>> {
    let open = |id| {
        let segment = FileSegment::new(id, None, File::open(file(folder, id))?)?;
        Ok(Arc::new(segment) as Arc<dyn Segment>)
    };
    ids(folder)?.into_iter().map(open).collect()
}

/// A segment on its way to a sandbox.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    pub(crate) writable: File,
    pub(crate) read_only: File,
}

impl Handed {
    /// Opens a segment for a sandbox. Both descriptors carry a shared lock, which ends with the last copy and the last mapping of them:
    /// how [`super::Shelf`] learns whether a deleted segment still takes room.
    pub(super) fn open(folder: &Path, id: u64) -> io::Result<Handed> {
        let path = file(folder, id);
        let writable = OpenOptions::new().read(true).write(true).open(&path)?;
        let read_only = File::open(&path)?;
        for file in [&writable, &read_only] {
            rustix::fs::flock(file, FlockOperation::NonBlockingLockShared)?;
        }
        let bytes = read_only.metadata()?.len();
        Ok(Handed { id, bytes, writable, read_only })
    }
}

/// Where a copy goes: a folder of its own, in which segments are made as they are needed.
#[derive(Debug)]
pub(super) struct Copying {
    folder: PathBuf,
    /// Length of a segment, unless one part needs more.
    bytes: u64,
    last_id: AtomicU64,
}

impl Copying {
    /// Begins with an empty folder, and counts on from `before`.
    pub(super) fn into(folder: &Path, before: u64, bytes: u64) -> io::Result<Copying> {
        dir::remove(folder)?;
        dir::make(folder)?;
        let last_id = AtomicU64::new(before);
        Ok(Copying { folder: folder.to_owned(), bytes, last_id })
    }
}

impl Storage for Copying {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        Ok(Vec::new())
    }

    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let path = file(&self.folder, id);
        let writable = stock::create(&path)?;
        FileSegment::reserve(&writable, self.bytes.max(min_bytes).next_multiple_of(4096))?;
        Ok(Some(Arc::new(FileSegment::new(id, Some(writable), File::open(path)?)?)))
    }

    // Each is made when it is needed.
    fn request_spare(&self, _wanted_bytes: u64) {}

    // A copy retires nothing.
    fn retire(&self, _id: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_terms_and_of_their_copies_never_meet() {
        let (one, two) = (Epoch::new(1), Epoch::new(2));
        assert!(is_own(one, before_first(one) + 1) && is_own(one, before_copies(one) - 1));
        assert!(!is_own(one, before_copies(one)) && !is_own(one, before_first(two) + 1));
        assert!(before_copies(one) + 1 < before_first(two));
        let recovered = before_recovery(&[before_first(one) + 3, 7]);
        assert!(recovered > before_copies(one) + (1 << 26) - 1 && !is_own(one, recovered + 1));
        assert_eq!(
            before_recovery(&[recovered + 1, recovered + 2]),
            recovered + 2,
            "a number was used twice"
        );
        assert!(recovered + 1 < before_first(two));
    }

    #[test]
    fn only_segments_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "segment-00000000000000ff.log",
            "segment-0000000000000002.log",
            "segment-2.log",
            "segment-zz.log",
            "x",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(ids(dir.path()).unwrap(), [2, 255]);
    }

    #[test]
    fn a_lock_outlives_every_descriptor_of_ours_while_another_copy_is_open() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(file(dir.path(), 1), "").unwrap();
        let handed = Handed::open(dir.path(), 1).unwrap();
        let sandbox = handed.read_only.try_clone().unwrap();
        drop(handed);
        let ours = File::open(file(dir.path(), 1)).unwrap();
        let lock = || rustix::fs::flock(&ours, FlockOperation::NonBlockingLockExclusive);
        assert!(lock().is_err());
        drop(sandbox);
        assert!(lock().is_ok());
    }
}
