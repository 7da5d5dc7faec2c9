//! The state of a process on disk: folders of segments, made, found, swapped out and in, edited, deleted. Runs on side threads; an
//! executor never touches a disk.
//!
//! **Order is everything here**, so that a crash between any two steps loses nothing. The scheduler's record decides where the
//! state is; a folder that it does not point to is a copy or a leftover.
//!
//! | | swap-out | swap-in |
//! |---|---|---|
//! | 1 | the sandbox is dead: nobody writes the local segments | claim: the record still says `Swapped` |
//! | 2 | what is live → `swap/.../EPOCH.state.new/`, synced | an old local one is removed |
//! | 3 | renamed, parent synced | the swapped folder gets the local name, in one step; calls may be answered |
//! | 4 | record: `Swapped {epoch}`, durable | names synced, then the record: `Active`, durable, while it serves |
//! | 5 | local folder removed | what else lies in the swap store removed, at leisure |
//!
//! A crash before 4 of a swap-out leaves the record pointing at the old place, which is whole; after 4, at the new one. An **edit** of a
//! process that nothing runs is a swap-out that changes something on the way, also where the old place is in the swap store itself.
//!
//! A swap-in **moves** the folder, with all that is in it and all that will be: there is one folder throughout, and what a record that
//! says `Swapped {epoch}` means is *that folder, wherever it lies*. Where it lies in the swap store, it counts, and a local one is a
//! leftover of the swap-out; where it does not, it was moved, and the local one counts if it is this very process's. A loss of power may
//! take the move back, but nothing of what is in the folder. The record may follow later than a reply, as with new processes; before a
//! commit is called durable it has ([`Names::sync`], [`super::lasting`]).
//!
//! Where the swap store is **another file system**, a folder cannot be moved into this one. Then it is copied, there are two, and the
//! record alone tells which counts: `swap` → `state/....state.new/`, synced; renamed, parent synced; record `Active`, durable; only then
//! a reply leaves, and the swapped folder is removed.
//!
//! A **new** process's folder has a blank segment before a sandbox gets it. That its record says so is written later than a reply may
//! leave, so segments that are there although no record points to them count if they are of this very process ([`Whose`]), which the
//! header of its first segment says, synced by the log before its first commit. Where none has a header, nothing was ever committed.
//!
//! What a **sandbox writes into is on the disk before anything of it is called durable**: the allocation of its segments, their names, and
//! the names of their folders ([`Names::sync`], which nobody waits for who is content with `process`; what the stock gave was allocated
//! long before). So when the log syncs a segment and somebody hears of it, the commits in it are there after a loss of power. What was
//! durable is known here, too (`durable`): a log that ends before it is damaged, and never passed on as if it were whole.
//!
//! **A sync that failed is not tried again**: the system takes the pages that it could not write for written, and the next sync of the
//! same file succeeds without them. So a folder in which one failed is *marked* ([`mark`]), and before anything more of it is called
//! durable, or a sandbox gets it, what can be read is copied:
//!
//! | | recovery of a marked folder |
//! |---|---|
//! | 1 | the sandbox is dead; `X.state/suspect` is made and synced, before the process rests: no start goes by without it |
//! | 2 | the log is read, and must reach what was promised as durable: if not, that is the error, and the mark stays |
//! | 3 | what is live → `X.state.new/`, new files, synced |
//! | 4 | the two folders change names in one step, parent synced: the mark has gone along with the old files |
//! | 5 | `X.state.new/`, which is the old one now, is removed |
//!
//! A crash before 4 leaves the marked folder, of which another copy is made; after 4, the new files, and a leftover that no record points
//! to. A swap-out reads and copies in any case, and so recovers, too.
//!
//! A **deleted** process's record goes first; what a crash leaves of its folders is discarded when a namesake is created. A folder that
//! was removed halfway is always one that no record points to.

mod folder;
mod shelf;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use denizen_engine::offline::{CopyOptions, Damaged, Edit, EditOptions, Offline, lineage_of};
use denizen_engine::{Salvage, SegmentSizes, StateError};
use denizen_sched::{Epoch, Origin};

use crate::dir::{self, ProcessPaths};
use crate::problem::{Kind, Problem, of_io};
use crate::process::lineage::Whose;
use crate::stock::Stock;

use folder::Copying;
pub(crate) use folder::Handed;
pub(crate) use shelf::{Bounds, Refused, Shelf};

/// What a sandbox begins with.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The log that there is; nothing for new state.
    pub(crate) log: Vec<Handed>,
    /// A blank segment for its first commit.
    pub(crate) spare: Handed,
    pub(crate) shelf: Shelf,
    pub(crate) names: Names,
    /// It is a copy of what still lies in the swap store: the record has to point here before a reply leaves.
    pub(crate) copied: bool,
}

/// What has to be on the disk before anything of the state is called durable.
#[derive(Debug)]
pub(crate) struct Names {
    folders: Vec<PathBuf>,
    /// A segment whose allocation is not there yet.
    fresh: Option<File>,
}

impl Names {
    /// Writes it there.
    ///
    /// # Errors
    /// `no-space`, `host-fault`.
    pub(crate) fn sync(self) -> Result<(), Problem> {
        let failed = |error: io::Error| {
            let shown = self.folders.first().cloned().unwrap_or_default();
            mark_after(&shown);
            io_problem("a new segment cannot be made to last", &shown, &error)
        };
        self.fresh.as_ref().map_or(Ok(()), File::sync_all).map_err(failed)?;
        self.folders.iter().try_for_each(|folder| dir::sync(folder)).map_err(failed)
    }
}

/// Opens the state of a claimed process, from wherever the claim says that it is, and gives it a blank segment. `durable`: the last commit
/// that is known to have been durable.
///
/// # Errors
/// `state-lost`, `state-corrupt`, `no-space`, `host-fault`.
pub(crate) fn open(
    paths: &ProcessPaths,
    whose: &Whose,
    epoch: Epoch,
    origin: Origin,
    durable: u64,
    bounds: Bounds,
    stock: &Stock,
) -> Result<Opened, Problem> {
    let mut folders = vec![paths.local.clone()];
    let mut copied = false;
    match origin {
        // In its first term nothing can be its own, and what cannot be read is not in its way.
        Origin::New { born } if born != epoch && is_own(paths, whose)? => above(paths, &mut folders),
        Origin::New { .. } => create(paths, &mut folders)?,
        // Its last term may have ended with a loss of power, before they were there for good.
        Origin::Local => above(paths, &mut folders),
        Origin::Swapped { epoch } => {
            copied = swap_in(paths, whose, epoch)? == Came::Copied;
            above(paths, &mut folders);
        }
    }
    if is_marked(&paths.local) {
        recover(&paths.local, whose, durable)?;
    }
    let failed = |error| lost(&paths.local, error);
    let ids = folder::ids(&paths.local).map_err(failed)?;
    if ids.is_empty() && !matches!(origin, Origin::New { .. }) {
        return Err(no_segments(&paths.local));
    }
    let log = ids.into_iter().map(|id| Handed::open(&paths.local, id));
    let log = log.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let mut shelf = Shelf::new(paths.local.clone(), epoch, &log, bounds, stock.clone());
    let (spare, fresh) = shelf.blank(bounds.min_bytes).map_err(|refused| {
        io_problem("a segment for the state cannot be made", &paths.local, &refused.error)
    })?;
    let fresh = fresh.then(|| spare.writable.try_clone()).transpose().map_err(failed)?;
    Ok(Opened { log, spare, shelf, names: Names { folders, fresh }, copied })
}

/// Whether segments of the process itself are there: those that a dead node's record did not come to point to.
fn is_own(paths: &ProcessPaths, whose: &Whose) -> Result<bool, Problem> {
    let segments = match folder::segments(&paths.local) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        opened => opened.map_err(|error| io_problem("state cannot be opened", &paths.local, &error))?,
    };
    let mut unreadable = None;
    for segment in &segments {
        match lineage_of(&**segment).map_err(|error| state_problem(&error, &paths.local))? {
            Some(lineage) if lineage == whose.lineage() => return Ok(true),
            Some(_) => {}
            // The log has not begun it.
            None if is_blank(&**segment) => {}
            None => unreadable = Some(segment.id()),
        }
    }
    let Some(id) = unreadable else { return Ok(false) };
    // The log syncs its first header before it writes behind it: with no commit of this process there, that header was cut short.
    match Offline::read(&segments, Some(whose.lineage())) {
        Ok(log) if log.inspect().commit == 0 => Ok(false),
        _ => {
            let text = format!("the header of segment {id} in {} cannot be read", paths.local.display());
            Err(Problem::new(Kind::StateCorrupt, text))
        }
    }
}

/// Whether a segment begins as it was allocated. Its header would be there.
fn is_blank(segment: &dyn denizen_engine::storage::Segment) -> bool {
    let mut start = [0; 16];
    // One that is too short was never allocated to its end.
    segment.read_at(&mut start, 0).is_err() || start == [0; 16]
}

fn create(paths: &ProcessPaths, folders: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let failed = |error| io_problem("the folder for state cannot be made", &paths.local, &error);
    // What a deleted namesake left.
    dir::remove(&paths.local).and_then(|()| dir::remove(&unfinished(&paths.local))).map_err(failed)?;
    remove_swapped(paths, None).map_err(failed)?;
    above(paths, folders);
    dir::make(&paths.local).map_err(failed)
}

/// The folders above a process's own. All of them, also those that are there: whoever made one may not have come to that yet, or never
/// will.
fn above(paths: &ProcessPaths, folders: &mut Vec<PathBuf>) {
    folders.push(paths.state.clone());
    folders.extend(paths.state.parent().map(Path::to_owned));
}

/// How swapped state has come to its process's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// As it is: it is in the swap store no more.
    Moved,
    /// There are two of it.
    Copied,
}

/// Brings swapped state back, byte for byte: damage that it has is found by its reader, and costs one object and not all of them.
fn swap_in(paths: &ProcessPaths, whose: &Whose, epoch: Epoch) -> Result<Came, Problem> {
    let source = paths.swapped(epoch);
    let ids = match folder::ids(&source) {
        // A term before this one has moved it here, and its record did not come to the disk.
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_own(paths, whose)? => {
            return Ok(Came::Moved);
        }
        ids => ids.map_err(|error| lost(&source, error))?,
    };
    if ids.is_empty() {
        return Err(no_segments(&source));
    }
    let failed = |error| io_problem("state cannot be brought back", &paths.local, &error);
    dir::make(&paths.state)
        // Copies that were left: the record says that the one in the swap store counts.
        .and_then(|()| dir::remove(&paths.local))
        .and_then(|()| dir::remove(&unfinished(&paths.local)))
        .map_err(failed)?;
    match std::fs::rename(&source, &paths.local) {
        Ok(()) => Ok(Came::Moved),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy_in(paths, &source, ids).map_err(failed)?;
            Ok(Came::Copied)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The same from another file system.
fn copy_in(paths: &ProcessPaths, source: &Path, ids: Vec<u64>) -> io::Result<()> {
    let temporary = unfinished(&paths.local);
    let copy = || {
        dir::make_to_last(&paths.state)?;
        dir::make(&temporary)?;
        for id in ids {
            let (from, to) = (folder::file(source, id), folder::file(&temporary, id));
            let mut copied = crate::stock::create(&to)?;
            io::copy(&mut File::open(from)?, &mut copied)?;
            copied.sync_all()?;
        }
        dir::sync(&temporary)
    };
    copy().inspect_err(|_| drop(dir::remove(&temporary)))?;
    std::fs::rename(&temporary, &paths.local)?;
    dir::sync(&paths.state)
}

/// Where the state is that `epoch` has swapped out: in the swap store, or moved from there by a term whose record is not on the disk.
fn swapped_or_moved(paths: &ProcessPaths, epoch: Epoch) -> PathBuf {
    let swapped = paths.swapped(epoch);
    let is_gone =
        |path: &Path| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if is_gone(&swapped) && !is_gone(&paths.local) { paths.local.clone() } else { swapped }
}

/// The name of the mark.
const SUSPECT: &str = "suspect";

/// Notes that a sync of the state in a folder has failed, or may have. A folder that is not there needs no mark.
///
/// # Errors
/// The mark is not on the disk: nothing is to be begun with the folder.
pub(crate) fn mark(folder: &Path) -> Result<(), Problem> {
    let make = || File::create(folder.join(SUSPECT))?.sync_all().and_then(|()| dir::sync(folder));
    match make() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_problem(
            "a sync of state has failed, and that cannot be noted on the disk either",
            folder,
            &error,
        )),
        _ => Ok(()),
    }
}

/// The same where a sync of our own has failed, for whatever reason: that there is no room can also be said of a disk below this one,
/// which has dropped what it was given.
fn mark_after(folder: &Path) {
    if let Err(problem) = mark(folder) {
        tracing::error!("{problem}");
    }
}

/// Whether [`mark`] was called for a folder and it was not recovered since.
fn is_marked(folder: &Path) -> bool {
    // What cannot be looked at is looked at more closely by whoever reads it.
    folder.join(SUSPECT).symlink_metadata().is_ok()
}

/// Steps 2 to 5 of a recovery; the last commit that was read.
fn recover(folder: &Path, whose: &Whose, durable: u64) -> Result<u64, Problem> {
    let log = read_log(folder, whose, durable)?;
    let ids = folder::ids(folder).map_err(|error| lost(folder, error))?;
    let temporary = unfinished(folder);
    let failed = |error: io::Error| io_problem("state cannot be recovered into new files", folder, &error);
    let copied = copy(&log, whose, folder::before_recovery(&ids), &temporary, None)
        .and_then(|_| dir::sync(&temporary).map_err(failed))
        .and_then(|()| exchange(&temporary, folder).map_err(failed));
    copied.inspect_err(|_| drop(dir::remove(&temporary)))?;
    folder.parent().map_or(Ok(()), dir::sync).map_err(failed)?;
    // A leftover costs space only.
    let _ = dir::remove(&temporary);
    let commit = log.inspect().commit;
    tracing::warn!("a sync had failed under {}: recovered into new files, commit {commit}", folder.display());
    Ok(commit)
}

/// Lets two folders change names in one step.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// Reads the log in a folder, which has to reach `durable`.
fn read_log(folder: &Path, whose: &Whose, durable: u64) -> Result<Offline, Problem> {
    let segments = folder::segments(folder).map_err(|error| lost(folder, error))?;
    if segments.is_empty() {
        return Err(no_segments(folder));
    }
    read_segments(&segments, folder, whose, durable)
}

fn read_segments(
    segments: &[std::sync::Arc<dyn denizen_engine::storage::Segment>],
    folder: &Path,
    whose: &Whose,
    durable: u64,
) -> Result<Offline, Problem> {
    let read = Offline::read(segments, Some(whose.lineage()));
    let log = read.map_err(|error| state_problem(&error, folder))?;
    let found = log.inspect().commit;
    if found < durable {
        let error = StateError::CommitsLost { found, promised: durable };
        return Err(state_problem(&error, folder));
    }
    Ok(log)
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("state.new")
}

/// Where the state of a process that nothing runs lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lies {
    Here,
    /// On the node, if there is any: no record points to it yet.
    Perhaps,
    Swapped(Epoch),
}

/// State that is read without a sandbox.
#[derive(Debug)]
pub(crate) struct AtRest<'a> {
    pub(crate) paths: &'a ProcessPaths,
    pub(crate) whose: &'a Whose,
    pub(crate) lies: Lies,
    /// The last commit that is known to have been durable.
    pub(crate) durable: u64,
}

impl AtRest<'_> {
    fn folder(&self) -> PathBuf {
        match self.lies {
            Lies::Here | Lies::Perhaps => self.paths.local.clone(),
            Lies::Swapped(epoch) => swapped_or_moved(self.paths, epoch),
        }
    }

    /// Whether there is any state.
    ///
    /// # Errors
    /// It cannot be told.
    pub(crate) fn is_there(&self) -> Result<bool, Problem> {
        Ok(self.lies != Lies::Perhaps || is_own(self.paths, self.whose)?)
    }

    /// Reads the log.
    ///
    /// # Errors
    /// `state-lost`, `state-corrupt`, `host-fault`.
    pub(crate) fn read(&self) -> Result<Offline, Problem> {
        let folder = self.folder();
        if !self.is_there()? {
            return read_segments(&[], &folder, self.whose, self.durable);
        }
        read_log(&folder, self.whose, self.durable)
    }

    /// Reads what can still be read of a damaged log.
    ///
    /// # Errors
    /// `state-lost`, `host-fault`, and `state-corrupt` where it is another process's.
    pub(crate) fn salvage(&self) -> Result<Salvage, Problem> {
        let folder = self.folder();
        let segments = folder::segments(&folder).map_err(|error| lost(&folder, error))?;
        let salvaged = Salvage::open(&segments, self.whose.lineage(), self.durable);
        salvaged.map_err(|error| state_problem(&error, &folder))
    }

    /// Makes everything durable that can be read, and says up to which commit that is. Where a sync has failed, by a copy.
    ///
    /// # Errors
    /// As [`AtRest::read`], and `no-space` for a copy.
    pub(crate) fn sync(&self) -> Result<u64, Problem> {
        let folder = self.folder();
        if !self.is_there()? {
            return Ok(0);
        }
        if is_marked(&folder) {
            return recover(&folder, self.whose, self.durable);
        }
        let failed = |error: io::Error| {
            mark_after(&folder);
            io_problem("state cannot be synced", &folder, &error)
        };
        for id in folder::ids(&folder).map_err(|error| lost(&folder, error))? {
            let file = File::options().write(true).open(folder::file(&folder, id));
            file.and_then(|file| file.sync_all()).map_err(failed)?;
        }
        dir::sync(&folder).map_err(failed)?;
        Ok(self.read()?.inspect().commit)
    }

    /// Copies what is live to the swap folder of `epoch`, with `edits` applied as one commit. The old place stays as it is, until
    /// [`forget_local`] or [`remove_swapped`]. Damaged objects stay damaged objects.
    ///
    /// # Errors
    /// As [`AtRest::read`], `no-space`, and for edits `state-quota` and `bad-request`.
    pub(crate) fn swap_out(&self, epoch: Epoch, edits: Option<&mut Edits<'_>>) -> Result<Summary, Problem> {
        let log = self.read()?;
        if let Some(key) = edits.as_ref().and_then(|edits| edits.must_have.as_deref())
            && log.info(key).is_none()
        {
            return Err(no_such_object());
        }
        let (swap, to) = (&self.paths.swap, self.paths.swapped(epoch));
        let failed = |error| io_problem("state cannot be copied", &to, &error);
        dir::make_to_last(swap).map_err(failed)?;
        let temporary = unfinished(&to);
        let copied = copy(&log, self.whose, folder::before_copies(epoch), &temporary, edits);
        let summary = copied.inspect_err(|_| drop(dir::remove(&temporary)))?;
        dir::sync(&temporary).map_err(failed)?;
        dir::remove(&to).map_err(failed)?;
        std::fs::rename(&temporary, &to).map_err(failed)?;
        dir::sync(swap).map_err(failed)?;
        Ok(summary)
    }
}

/// Changes to state at rest.
pub(crate) struct Edits<'a> {
    pub(crate) quota_bytes: u64,
    /// An object without which there is nothing to change.
    pub(crate) must_have: Option<Vec<u8>>,
    /// The next one, or the end. An error gives all of them up.
    pub(crate) next: &'a mut dyn FnMut() -> Result<Option<Edit>, Problem>,
}

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) commit: u64,
    pub(crate) live_bytes: u64,
}

/// Bytes of a copy beside its objects: headers, the heads of some records.
const COPY_OVERHEAD: u64 = 16 << 10;
/// The longest segment of a copy, unless an object needs more.
const COPY_BYTES: u64 = 64 << 20;

fn copy(
    log: &Offline,
    whose: &Whose,
    before: u64,
    to: &Path,
    edits: Option<&mut Edits<'_>>,
) -> Result<Summary, Problem> {
    let live = log.inspect().live_bytes;
    // An edit may need a second one.
    let bytes = (live + live / 64 + COPY_OVERHEAD).min(COPY_BYTES);
    let storage = Copying::into(to, before, bytes)
        .map_err(|error| io_problem("the folder for a copy cannot be made", to, &error))?;
    let segments = SegmentSizes { min_bytes: bytes, max_bytes: bytes };
    let options = CopyOptions { lineage: whose.lineage(), segments, damaged: Damaged::Keep };
    let failed = |error: StateError| state_problem(&error, to);
    let Some(edits) = edits else {
        let copied = log.copy_to(&storage, &options, |_, _| {}).map_err(failed)?;
        return Ok(Summary { commit: copied.commit, live_bytes: live });
    };
    let options = EditOptions { copy: options, quota_bytes: edits.quota_bytes, time_ms: now_ms() };
    let mut editing = log.edit(&storage, &options);
    while let Some(Edit { key, change }) = (edits.next)()? {
        match change {
            Some((fingerprint, value)) => editing.put(&key, fingerprint, value).map_err(failed)?,
            None => editing.delete(&key).map_err(failed)?,
        }
    }
    editing.finish(|_, _| {}).map_err(failed)?;
    // What it is to hold is read back: nobody else has looked at it yet.
    let segments = folder::segments(to).map_err(|error| lost(to, error))?;
    let inspection = Offline::read(&segments, Some(whose.lineage())).map_err(failed)?.inspect();
    Ok(Summary { commit: inspection.commit, live_bytes: inspection.live_bytes })
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Removes the local segments, once the record says that the state is elsewhere.
pub(crate) fn forget_local(paths: &ProcessPaths) {
    // A leftover costs space only: the record does not point to it.
    if let Err(error) = dir::remove(&paths.local) {
        tracing::warn!("state that has moved remains in {}: {error}", paths.local.display());
    }
}

/// Removes swapped states other than `kept`'s, once the record does not point to them.
pub(crate) fn remove_swapped(paths: &ProcessPaths, kept: Option<Epoch>) -> io::Result<()> {
    let kept = kept.map(|epoch| paths.swapped(epoch));
    let entries = match std::fs::read_dir(&paths.swap) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if Some(&path) != kept.as_ref() {
            dir::remove(&path)?;
        }
    }
    if kept.is_none() {
        std::fs::remove_dir(&paths.swap)?;
    }
    Ok(())
}

/// Removes everything of a deleted process.
pub(crate) fn delete(paths: &ProcessPaths) {
    forget_local(paths);
    // A swap-in that broke off.
    let _ = dir::remove(&unfinished(&paths.local));
    if let Err(error) = remove_swapped(paths, None) {
        tracing::warn!("files of a deleted process remain in {}: {error}", paths.swap.display());
    }
}

/// Bytes that a swap-out wants free beside its copy, for the scheduler's record of it.
const RECORD_ROOM_BYTES: u64 = 256 << 10;

/// Whether the disk has room for a copy of the local state; a process without one needs none. `live_bytes`: what it holds, if known.
///
/// # Errors
/// `no-space`, with what is wanted and what there is.
pub(crate) fn room_for_copy(paths: &ProcessPaths, live_bytes: Option<u64>) -> Result<(), Problem> {
    let Ok(ids) = folder::ids(&paths.local) else { return Ok(()) };
    let length = |id| folder::file(&paths.local, id).metadata().map_or(0, |metadata| metadata.len());
    let all: u64 = ids.into_iter().map(length).sum();
    let copy = live_bytes.map_or(all, |live| all.min(live.saturating_add(live / 64 + COPY_OVERHEAD)));
    let wanted = copy.saturating_add(RECORD_ROOM_BYTES);
    let disk = rustix::fs::statvfs(&paths.local).map_err(io::Error::from);
    copy_fits(wanted, disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)), &paths.local)
}

/// A disk that does not tell what is free is not trusted with a copy: the process goes on, and it is tried again.
fn copy_fits(wanted: u64, free: io::Result<u64>, folder: &Path) -> Result<(), Problem> {
    let free =
        free.map_err(|error| io_problem("the disk does not tell how much room it has", folder, &error))?;
    if free >= wanted {
        return Ok(());
    }
    let text = format!("swapping out wants {wanted} bytes free on the disk, and there are {free}");
    Err(Problem::new(Kind::NoSpace, text))
}

fn lost(path: &Path, error: io::Error) -> Problem {
    if error.kind() == io::ErrorKind::NotFound {
        return Problem::new(Kind::StateLost, format!("{} is gone", path.display()));
    }
    io_problem("state cannot be opened", path, &error)
}

/// What a caller is told who asks for a key that there is not.
pub(crate) fn no_such_object() -> Problem {
    Problem::new(Kind::UnknownKey, "the state has no object under this key")
}

fn no_segments(folder: &Path) -> Problem {
    Problem::new(Kind::StateLost, format!("{} has no segments", folder.display()))
}

/// As [`of_io`].
pub(crate) fn io_problem(what: &str, path: &Path, error: &io::Error) -> Problem {
    Problem::new(of_io(error), format!("{what}: {}", path.display())).cause(error)
}

/// What is wrong with state that the node itself read or wrote.
pub(crate) fn state_problem(error: &StateError, path: &Path) -> Problem {
    let kind = match error {
        StateError::Io { source, .. } => return io_problem(&error.to_string(), path, source),
        StateError::KeyEmpty
        | StateError::KeyTooLong { .. }
        | StateError::ValueTooLarge { .. }
        | StateError::CommitTooLarge { .. } => return Problem::new(Kind::BadRequest, error.to_string()),
        StateError::QuotaExceeded { .. } => return Problem::new(Kind::StateQuota, error.to_string()),
        StateError::NoSpare { .. } => Kind::NoSpace,
        StateError::NoMemory { .. } => Kind::HostFault,
        _ => Kind::StateCorrupt,
    };
    Problem::new(kind, format!("the state in {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
