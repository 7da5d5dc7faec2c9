//! The segments of a process that a sandbox runs: what it gets more of, what it gives back, and how much it may have.
//!
//! Used on a side thread only. A spare is made to last before it is handed in: its bytes are allocated and its name is on the disk. A
//! segment that was given back is deleted at once, but its bytes count for as long as the sandbox keeps it open or mapped (an honest one
//! does so while a reader needs it): otherwise deleted segments would be room without an end.
//!
//! A sandbox can write to its segments, and so behind their ends, up to the length of its longest
//! ([`denizen_sandbox::Life::let_files_reach`]). Nothing forbids it in time, so it is looked for ([`Shelf::stretched`]) and ends the
//! sandbox; then the segment is cut to what was allotted ([`Shelf::trim`]). Where all are as long as the longest the system forbids it, and
//! there is nothing to look for ([`Shelf::can_be_stretched`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use denizen_engine::offline::{self, commits_possible};
use denizen_engine::storage::FileSegment;
use denizen_sched::Epoch;
use denizen_wire::SpareRefusal;
use rustix::fs::FlockOperation;

use super::folder::{self, Handed};
use crate::dir;
use crate::stock::{self, SEGMENT_BYTES, Stock};

/// Retired segments of about this many bytes wait inside the log for a sync that somebody wants, whatever the quota is.
const RETIRING_BYTES: u64 = 64 << 20;
/// A log in which segments are full soon asks for some of this size.
const HURRIED_BYTES: u64 = 16 << 20;
/// Smallest segments that restarts may leave behind before they are worth compacting.
const LEFT_OVER: u64 = 32;
/// The longest segment that is ever worth asking for, in bytes, unless one commit needs more.
const LONGEST_BYTES: u64 = 4 << 30;
/// Segments that a sandbox may have beside those that it begins with: small ones that wait for a sync, and a few dozen. Each may take
/// descriptors of ours, while it is on its way and when it was given back and is held.
const MOST_FURTHER: u64 = RETIRING_BYTES / SEGMENT_BYTES + 64;

/// How large the segments of a process are to be, and all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) min_bytes: u64,
    pub(crate) max_bytes: u64,
    total_bytes: u64,
}

impl Bounds {
    /// For a quota of live bytes: twice that, because compaction begins when half of it is garbage, and a few segments.
    pub(crate) fn of(quota_bytes: u64) -> Bounds {
        // At most some dozens of segments, and so of descriptors in a sandbox.
        let max_bytes = (quota_bytes / 16).next_power_of_two().clamp(SEGMENT_BYTES, LONGEST_BYTES);
        let few = 4 * max_bytes + LEFT_OVER * SEGMENT_BYTES + RETIRING_BYTES + 2 * HURRIED_BYTES;
        let total_bytes = quota_bytes.saturating_mul(2).saturating_add(few);
        Bounds { min_bytes: SEGMENT_BYTES, max_bytes, total_bytes }
    }
}

/// Why there is no spare.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) why: SpareRefusal,
    pub(crate) error: io::Error,
}

impl Refused {
    fn over(bytes: u64, limit: u64) -> Refused {
        let text = format!("{bytes} bytes of segments are wanted, {limit} are allowed");
        Refused { why: SpareRefusal::OverLimit, error: io::Error::other(text) }
    }

    fn too_many(most: u64) -> Refused {
        let text = format!("{most} segments are allowed, and it has as many");
        Refused { why: SpareRefusal::OverLimit, error: io::Error::other(text) }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let why = if full { SpareRefusal::DiskFull } else { SpareRefusal::Failed };
        Refused { why, error }
    }
}

/// The segments of one sandbox.
#[derive(Debug)]
pub(crate) struct Shelf {
    folder: PathBuf,
    epoch: Epoch,
    last_id: u64,
    limit_bytes: u64,
    most: u64,
    /// The highest number that a commit in these segments can have.
    last_commit: u64,
    /// Segments that it has, and their bytes.
    present: BTreeMap<u64, u64>,
    /// Deleted ones that it may still have open.
    held: Vec<(File, u64)>,
    /// No file that the sandbox writes to becomes longer than this, in bytes.
    reach_bytes: u64,
    stock: Stock,
}

impl Shelf {
    /// Begins with the segments of the log. A process that has more than its bound (its quota was larger once) may have a little more:
    /// it has to be able to delete. Numbers go on behind those of this very term: a claim that was lost in a crash, or on a full disk, is
    /// followed by one of the same number, and may have left a segment.
    pub(super) fn new(folder: PathBuf, epoch: Epoch, log: &[Handed], bounds: Bounds, stock: Stock) -> Shelf {
        let present: BTreeMap<u64, u64> = log.iter().map(|handed| (handed.id, handed.bytes)).collect();
        let has: u64 = present.values().sum();
        let limit_bytes = bounds.total_bytes.max(has.saturating_add(4 * bounds.max_bytes));
        let own = present.keys().copied().filter(|id| folder::is_own(epoch, *id));
        let last_id = own.max().unwrap_or(folder::before_first(epoch));
        let most = present.len() as u64 + MOST_FURTHER;
        let last_commit = log.iter().filter_map(last_commit_possible).max().unwrap_or(0);
        let held = Vec::new();
        Shelf { folder, epoch, last_id, limit_bytes, most, last_commit, present, held, reach_bytes: 0, stock }
    }

    /// The sandbox has files of its own, which it may make longer and shorter than any segment.
    pub(crate) fn beside_files(&mut self) {
        self.reach_bytes = u64::MAX;
    }

    /// Whether the sandbox could write behind the end of a segment. What it is handed is no longer than what it may reach, so one whose
    /// segments are all of one length could not, whatever it does.
    pub(crate) fn can_be_stretched(&self) -> bool {
        let held = self.held.iter().map(|(_, bytes)| bytes);
        self.present.values().chain(held).any(|bytes| *bytes < self.reach_bytes)
    }

    /// Bytes that are free on the disk under the segments.
    pub(crate) fn disk_free(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// The highest number that a commit can have that the sandbox has made: what it says of a later one is a lie.
    pub(crate) fn last_commit(&self) -> u64 {
        self.last_commit
    }

    /// Lets the segments take what these bounds allow, if that is more than before.
    pub(crate) fn allow(&mut self, bounds: &Bounds) {
        self.limit_bytes = self.limit_bytes.max(bounds.total_bytes);
    }

    /// A segment that is not as long as it was made, if there is one, and how long it is: the sandbox has written behind its end.
    pub(crate) fn stretched(&self) -> Option<(u64, u64)> {
        let present = self.present.iter().find_map(|(id, bytes)| {
            let found = std::fs::metadata(folder::file(&self.folder, *id)).ok()?.len();
            (found != *bytes).then_some((*id, found))
        });
        let held = || {
            self.held.iter().find_map(|(file, bytes)| {
                let found = file.metadata().ok()?.len();
                // One that was deleted has no number any more.
                (found > *bytes).then_some((0, found))
            })
        };
        present.or_else(held)
    }

    /// Cuts what a sandbox has written behind the ends of its segments. It is dead.
    pub(crate) fn trim(&self) -> io::Result<()> {
        for (id, bytes) in &self.present {
            let path = folder::file(&self.folder, *id);
            if std::fs::metadata(&path).is_ok_and(|found| found.len() > *bytes) {
                let file = File::options().write(true).open(&path)?;
                file.set_len(*bytes)?;
                file.sync_all()?;
            }
        }
        Ok(())
    }

    /// A blank segment of at least `min_bytes`, made to last.
    pub(crate) fn spare(&mut self, min_bytes: u64) -> Result<Handed, Refused> {
        let (handed, fresh) = self.blank(min_bytes)?;
        let allocated = if fresh { handed.writable.sync_all() } else { Ok(()) };
        match allocated.and_then(|()| dir::sync(&self.folder)) {
            Ok(()) => Ok(handed),
            Err(error) => {
                self.present.remove(&handed.id);
                let _ = std::fs::remove_file(folder::file(&self.folder, handed.id));
                Err(error.into())
            }
        }
    }

    /// A blank segment whose name is not on the disk yet, and whether its allocation is not either.
    pub(super) fn blank(&mut self, min_bytes: u64) -> Result<(Handed, bool), Refused> {
        let bytes = min_bytes.max(SEGMENT_BYTES).checked_next_multiple_of(4096).unwrap_or(u64::MAX);
        self.held.retain(|(file, _)| is_held(file));
        let has = self.present.values().sum::<u64>() + self.held.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let wanted = has.saturating_add(bytes);
        if wanted > self.limit_bytes {
            return Err(Refused::over(wanted, self.limit_bytes));
        }
        if (self.present.len() + self.held.len()) as u64 >= self.most {
            return Err(Refused::too_many(self.most));
        }
        let id = self.last_id + 1;
        if !folder::is_own(self.epoch, id) {
            return Err(io::Error::other("the numbers of this term's segments are used up").into());
        }
        self.last_id = id;
        let path = folder::file(&self.folder, id);
        let fresh = bytes > SEGMENT_BYTES || !self.stock.take(&path);
        if fresh {
            let made = stock::create(&path).and_then(|file| FileSegment::reserve(&file, bytes));
            made.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        }
        let opened = Handed::open(&self.folder, id);
        let handed = opened.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        self.present.insert(id, handed.bytes);
        self.reach_bytes = self.reach_bytes.max(handed.bytes);
        self.last_commit = self.last_commit.saturating_add(commits_possible(handed.bytes));
        Ok((handed, fresh))
    }

    /// Deletes a segment that the log does not need any more. What cannot be deleted is given back again by the next sandbox.
    pub(crate) fn retire(&mut self, id: u64) -> io::Result<()> {
        let Some(bytes) = self.present.remove(&id) else { return Ok(()) };
        let path = folder::file(&self.folder, id);
        let file = File::open(&path)?;
        std::fs::remove_file(&path)?;
        // Also what it has written behind its end takes room for as long as it has it.
        let bytes = file.metadata().map_or(bytes, |found| found.len().max(bytes));
        self.held.push((file, bytes));
        self.held.retain(|(file, _)| is_held(file));
        Ok(())
    }
}

/// As [`offline::last_commit_possible`]; nothing where it cannot be read: then its log cannot be opened either.
fn last_commit_possible(handed: &Handed) -> Option<u64> {
    let segment = FileSegment::new(handed.id, None, handed.read_only.try_clone().ok()?).ok()?;
    offline::last_commit_possible(&segment).ok().flatten()
}

/// Whether anybody but us has a file open or mapped, by the lock that [`Handed::open`] put on it.
fn is_held(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(quota: u64) -> (tempfile::TempDir, Shelf) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("stock")).unwrap();
        let stock = Stock::open(dir.path().join("stock"), 1).unwrap();
        let folder = dir.path().join("p.state");
        std::fs::create_dir(&folder).unwrap();
        let mut shelf = Shelf::new(folder, Epoch::new(3), &[], Bounds::of(0), stock);
        shelf.limit_bytes = quota;
        (dir, shelf)
    }

    #[test]
    fn spares_are_whole_and_have_numbers_of_their_own() {
        let (_dir, mut shelf) = shelf(u64::MAX);
        let (one, two) = (shelf.spare(1).unwrap(), shelf.spare(SEGMENT_BYTES + 1).unwrap());
        assert_eq!((one.bytes, two.bytes), (SEGMENT_BYTES, SEGMENT_BYTES + 4096));
        assert!(one.id < two.id && folder::is_own(Epoch::new(3), one.id));
        assert_eq!(folder::ids(&shelf.folder).unwrap(), [one.id, two.id]);
        shelf.retire(one.id).unwrap();
        let three = shelf.spare(1).unwrap();
        assert!(three.id > two.id, "a number was used twice");
    }

    /// Also one that was given back: it is open in the sandbox for as long as that likes.
    #[test]
    fn only_what_is_shorter_than_the_longest_can_be_stretched() {
        let (_dir, mut shelf) = shelf(u64::MAX);
        assert!(!shelf.can_be_stretched());
        let one = shelf.spare(1).unwrap();
        let _two = shelf.spare(1).unwrap();
        assert!(!shelf.can_be_stretched());
        let _long = shelf.spare(4 * SEGMENT_BYTES).unwrap();
        assert!(shelf.can_be_stretched());
        shelf.retire(one.id).unwrap();
        assert!(shelf.can_be_stretched());
    }

    #[test]
    fn who_has_files_of_its_own_can_stretch_any_segment() {
        let (_dir, mut shelf) = shelf(u64::MAX);
        let _one = shelf.spare(1).unwrap();
        shelf.beside_files();
        assert!(shelf.can_be_stretched());
    }

    /// What was copied may be shorter than the first segment that is handed in beside it.
    #[test]
    fn a_log_of_short_segments_can_be_stretched() {
        let (_dir, mut shelf) = shelf(u64::MAX);
        shelf.present.insert(1, SEGMENT_BYTES / 2);
        assert!(!shelf.can_be_stretched());
        let _spare = shelf.spare(1).unwrap();
        assert!(shelf.can_be_stretched());
    }

    #[test]
    fn there_are_no_more_commits_than_segments_can_hold() {
        let (_dir, mut shelf) = shelf(u64::MAX);
        assert_eq!(shelf.last_commit(), 0);
        let one = shelf.spare(1).unwrap();
        assert_eq!(shelf.last_commit(), SEGMENT_BYTES / 64);
        // Given back or not: it may have been full before.
        shelf.retire(one.id).unwrap();
        shelf.spare(1).unwrap();
        assert_eq!(shelf.last_commit(), 2 * SEGMENT_BYTES / 64);
    }

    #[test]
    fn a_deleted_segment_counts_as_long_as_the_sandbox_has_it() {
        let (_dir, mut shelf) = shelf(2 * SEGMENT_BYTES);
        let (one, _two) = (shelf.spare(1).unwrap(), shelf.spare(1).unwrap());
        assert_eq!(shelf.spare(1).unwrap_err().why, SpareRefusal::OverLimit);
        shelf.retire(one.id).unwrap();
        assert_eq!(shelf.spare(1).unwrap_err().why, SpareRefusal::OverLimit, "it is mapped, or may be");
        drop(one);
        shelf.spare(1).unwrap();
    }

    /// Each of them would take a descriptor of the agent.
    #[test]
    fn segments_that_a_sandbox_keeps_are_few_whatever_their_size() {
        let (_dir, mut shelf) = shelf(u64::MAX);
        shelf.most = 3;
        let kept: Vec<Handed> = (0..3).map(|_| shelf.spare(1).unwrap()).collect();
        for handed in &kept {
            shelf.retire(handed.id).unwrap();
        }
        assert_eq!(shelf.spare(1).unwrap_err().why, SpareRefusal::OverLimit);
        drop(kept);
        shelf.spare(1).unwrap();
    }

    /// As a sandbox does it, by the descriptor that it got.
    fn stretch(handed: &Handed, to: u64) {
        use std::os::unix::fs::FileExt;
        handed.writable.write_all_at(&[7], to - 1).unwrap();
    }

    #[test]
    fn a_segment_that_was_made_longer_is_found_and_cut_again() {
        let (_dir, mut shelf) = shelf(3 * SEGMENT_BYTES);
        let (one, two) = (shelf.spare(1).unwrap(), shelf.spare(1).unwrap());
        assert_eq!(shelf.stretched(), None);
        stretch(&one, SEGMENT_BYTES);
        assert_eq!(shelf.stretched(), None, "it may write to the end");
        stretch(&one, SEGMENT_BYTES + 1);
        assert_eq!(shelf.stretched(), Some((one.id, SEGMENT_BYTES + 1)));
        shelf.trim().unwrap();
        assert_eq!(shelf.stretched(), None);
        assert_eq!(one.writable.metadata().unwrap().len(), SEGMENT_BYTES);
        // One that was given back counts as what it takes, and is looked at for as long as the sandbox has it.
        stretch(&two, 2 * SEGMENT_BYTES);
        shelf.retire(two.id).unwrap();
        assert_eq!(shelf.spare(1).unwrap_err().why, SpareRefusal::OverLimit);
        stretch(&two, 3 * SEGMENT_BYTES);
        assert_eq!(shelf.stretched(), Some((0, 3 * SEGMENT_BYTES)));
        drop(two);
        shelf.spare(1).unwrap();
        assert_eq!(shelf.stretched(), None);
    }

    #[test]
    fn what_was_never_handed_in_is_not_deleted() {
        let (_dir, mut shelf) = shelf(u64::MAX);
        std::fs::write(folder::file(&shelf.folder, 7), "precious").unwrap();
        shelf.retire(7).unwrap();
        assert!(folder::file(&shelf.folder, 7).exists());
    }

    #[test]
    fn bounds_leave_room_for_a_full_quota_of_garbage() {
        for quota in [0, 1 << 10, 1 << 20, 1 << 30, 1 << 40] {
            let Bounds { min_bytes, max_bytes, total_bytes } = Bounds::of(quota);
            assert!(min_bytes <= max_bytes && total_bytes >= 2 * quota + 4 * max_bytes, "{quota}");
            assert!((2 * quota).div_ceil(max_bytes) <= 32 || max_bytes == LONGEST_BYTES, "{quota}");
        }
        assert!(Bounds::of(u64::MAX).total_bytes == u64::MAX);
    }
}
