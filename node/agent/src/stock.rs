//! Blank segments of the smallest size, made before it is known whose they will be: a first call then pays for a rename, and not for
//! an allocation and its flush.
//!
//! A file is in the stock only when it is whole: allocated, synced, never written and never seen by a sandbox. Where the stock is used
//! up, or its folder lies on another disk, whoever wants a segment makes it. The folder is emptied at start: what a dead node left may
//! be half made.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use denizen_engine::storage::FileSegment;

use crate::side::SideThread;

/// Length of a segment in the stock, and the smallest that any process gets, in bytes.
pub(crate) const SEGMENT_BYTES: u64 = 256 << 10;

/// The blank segments of a node. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Stock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    target: usize,
    ready: Mutex<Vec<PathBuf>>,
    made: AtomicU64,
}

impl Stock {
    /// Empties the folder, which must be there. The stock is empty until [`Stock::refill`].
    ///
    /// # Errors
    /// The folder cannot be read, or something in it cannot be removed.
    pub(crate) fn open(folder: PathBuf, target: usize) -> io::Result<Stock> {
        for entry in std::fs::read_dir(&folder)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(Stock(Arc::new(Shared { folder, target, ready: Mutex::default(), made: AtomicU64::new(0) })))
    }

    /// Moves a blank segment to `to`; false where there is none, or where something is at `to` already, which stays. The folder of `to` is
    /// not synced.
    pub(crate) fn take(&self, to: &Path) -> bool {
        // Nobody else makes files there, so nothing can come between.
        if to.symlink_metadata().is_ok() {
            return false;
        }
        let taken = self.ready().pop();
        taken.is_some_and(|from| {
            std::fs::rename(&from, to).inspect_err(|_| drop(std::fs::remove_file(&from))).is_ok()
        })
    }

    /// Makes what lacks, in the background, one after the other.
    pub(crate) fn refill(&self, side: &SideThread) {
        let (stock, again) = (self.clone(), side.clone());
        side.later(move || {
            match stock.add_one() {
                // What else is to be done there goes between.
                Ok(true) => stock.refill(&again),
                Ok(false) => {}
                // Whoever needs one will hear why there is none.
                Err(error) => tracing::debug!("no segment can be made in advance: {error}"),
            }
        });
    }

    /// Makes one if one lacks.
    fn add_one(&self) -> io::Result<bool> {
        if self.ready().len() >= self.0.target {
            return Ok(false);
        }
        let number = self.0.made.fetch_add(1, Ordering::Relaxed);
        let path = self.0.folder.join(format!("{number:x}.log"));
        let made = create(&path).and_then(|file| FileSegment::allocate(&file, SEGMENT_BYTES));
        made.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        self.ready().push(path);
        Ok(true)
    }

    fn ready(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new file for its owner only.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_taken_is_blank_and_allocated_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("stock");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("half made"), "").unwrap();
        let stock = Stock::open(folder.clone(), 2).unwrap();
        let to = dir.path().join("segment");
        assert!(!stock.take(&to), "what a dead node left does not count");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        while stock.add_one().unwrap() {}
        assert!(stock.take(&to));
        let metadata = to.metadata().unwrap();
        assert_eq!(metadata.len(), SEGMENT_BYTES);
        assert!(metadata.blocks() * 512 >= SEGMENT_BYTES, "it is sparse: a full disk would be a signal");
        assert!(stock.take(&dir.path().join("another")) && !stock.take(&dir.path().join("third")));
        assert!(stock.add_one().unwrap());
    }
}
