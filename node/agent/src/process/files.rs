//! The state file of a process: made, found, swapped out and in, deleted. Runs on a side thread; an executor never touches a disk.
//!
//! **Order is everything here**, so that a crash between any two steps loses nothing. The scheduler's record decides where the
//! state is; a file that it does not point to is a copy or a leftover.
//!
//! | | swap-out | swap-in |
//! |---|---|---|
//! | 1 | the sandbox is dead: nobody writes the local file | claim: the record still says `Swapped` |
//! | 2 | live objects → `swap/.../EPOCH.state.new`, synced | `swap` → `state/....state.new`, synced |
//! | 3 | renamed, folder synced | renamed over the local name, folder synced |
//! | 4 | record: `Swapped {epoch}`, durable | record: `Active`, durable; only then a reply leaves |
//! | 5 | local file removed | swapped file removed, at leisure |
//!
//! A new process's file is made, and has its name, before a sandbox gets it. That its record says so is written later than a reply may
//! leave, so a file that is there although no record points to it counts, if a term of this very process made it ([`Birth`]).
//!
//! A crash before 4 leaves the record pointing at the old place, which is whole; after 4, at the new one. A deleted process's record
//! goes first; what a crash leaves of its files is discarded when a namesake is created.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use denizen_sched::{Epoch, Origin};
use denizen_state::{Engine, StateError, Summary, offline};

use crate::dir::{self, ProcessPaths};
use crate::problem::{Kind, Problem};
use crate::process::lineage::Birth;

/// The two descriptors that a runner gets.
#[derive(Debug)]
pub(crate) struct StateFiles {
    pub(crate) writable: File,
    pub(crate) read_only: File,
}

/// Opens the state of a claimed process, from wherever the claim says that it is.
pub(crate) fn open(paths: &ProcessPaths, origin: Origin, birth: Birth<'_>) -> Result<StateFiles, Problem> {
    match origin {
        Origin::New { born } => {
            if !is_own(paths, birth, born)? {
                create(paths, birth)?;
            }
        }
        Origin::Local => {}
        Origin::Swapped { epoch } => swap_in(paths, epoch)?,
    }
    let writable = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&paths.local)
        .map_err(|error| lost(&paths.local, error))?;
    let read_only = File::open(&paths.local).map_err(|error| lost(&paths.local, error))?;
    Ok(StateFiles { writable, read_only })
}

/// Whether a file of the process itself is there: one that a dead node's record did not come to point to.
fn is_own(paths: &ProcessPaths, birth: Birth<'_>, born: Epoch) -> Result<bool, Problem> {
    let file = match File::open(&paths.local) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(|error| io_problem("state cannot be opened", &paths.local, &error))?,
    };
    match offline::lineage(&file) {
        Ok(lineage) => Ok(birth.made_since(born, lineage)),
        // The machine went down before the disk had it: nothing was promised.
        Err(StateError::NotFormatted) => Ok(false),
        Err(error) => Err(state_problem(&error, &paths.local)),
    }
}

fn create(paths: &ProcessPaths, birth: Birth<'_>) -> Result<(), Problem> {
    let failed = |error| io_problem("a state file cannot be made", &paths.local, &error);
    dir::make(&paths.state).map_err(failed)?;
    // What a deleted namesake left.
    remove_swapped(paths, None).map_err(failed)?;
    let temporary = paths.local.with_extension("state.new");
    let file = fresh(&temporary).map_err(failed)?;
    Engine::format(&file, birth.lineage()).map_err(|error| state_problem(&error, &paths.local))?;
    std::fs::rename(&temporary, &paths.local).map_err(failed)
}

fn swap_in(paths: &ProcessPaths, epoch: Epoch) -> Result<(), Problem> {
    let source = paths.swapped(epoch);
    let from = File::open(&source).map_err(|error| lost(&source, error))?;
    dir::make(&paths.state)
        .map_err(|error| io_problem("the state folder cannot be made", &paths.state, &error))?;
    copy(&from, &paths.local, &paths.state, &source).map(drop)
}

/// Copies the state of a stopped process to its swap folder. The local file stays until [`forget_local`].
pub(crate) fn swap_out(paths: &ProcessPaths, epoch: Epoch) -> Result<Summary, Problem> {
    let from = File::open(&paths.local).map_err(|error| lost(&paths.local, error))?;
    dir::make(&paths.swap)
        .map_err(|error| io_problem("the swap folder cannot be made", &paths.swap, &error))?;
    copy(&from, &paths.swapped(epoch), &paths.swap, &paths.local)
}

/// Whole or not at all: written beside, synced, renamed, folder synced.
fn copy(from: &File, to: &Path, folder: &Path, from_path: &Path) -> Result<Summary, Problem> {
    let failed = |error| io_problem("state cannot be copied", to, &error);
    let temporary = to.with_extension("state.new");
    let file = fresh(&temporary).map_err(failed)?;
    let copied = offline::copy_live(from, &file).map_err(|error| state_problem(&error, from_path));
    if copied.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    let summary = copied?;
    std::fs::rename(&temporary, to).map_err(failed)?;
    dir::sync(folder).map_err(failed)?;
    Ok(summary)
}

/// Removes the local file, once the record says that the state is elsewhere.
pub(crate) fn forget_local(paths: &ProcessPaths) {
    // A leftover costs space only: the record does not point to it.
    let _ = std::fs::remove_file(&paths.local);
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
            std::fs::remove_file(path)?;
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
    if let Err(error) = remove_swapped(paths, None) {
        tracing::warn!("files of a deleted process remain in {}: {error}", paths.swap.display());
    }
}

fn fresh(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Bytes that a swap-out wants free beside its copy, for the scheduler's record of it.
const RECORD_ROOM_BYTES: u64 = 256 << 10;

/// Whether the disk has room for a copy of the local state; a process without one needs none.
///
/// # Errors
/// `no-space`, with what is wanted and what there is.
pub(crate) fn room_for_copy(paths: &ProcessPaths) -> Result<(), Problem> {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::metadata(&paths.local) else { return Ok(()) };
    // Blocks of 512 bytes; the copy holds what is live of them, and is never larger.
    let wanted = metadata.blocks() * 512 + RECORD_ROOM_BYTES;
    let Ok(disk) = rustix::fs::statvfs(&paths.local) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
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

/// `no-space` for a full disk, else `host-fault`.
pub(crate) fn io_problem(what: &str, path: &Path, error: &io::Error) -> Problem {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let kind = if full { Kind::NoSpace } else { Kind::HostFault };
    Problem::new(kind, format!("{what}: {}", path.display())).cause(error)
}

fn state_problem(error: &StateError, path: &Path) -> Problem {
    let kind = match error {
        StateError::NoSpace { .. } => Kind::NoSpace,
        StateError::Corrupt { .. } | StateError::NotFormatted | StateError::OtherFormat { .. } => {
            Kind::StateCorrupt
        }
        _ => Kind::HostFault,
    };
    Problem::new(kind, format!("the state in {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use denizen_state::OpenOptions as StateOptions;

    use super::*;
    use crate::dir::Dir;

    const BORN: Epoch = Epoch::new(7);
    const NEW: Origin = Origin::New { born: BORN };

    fn birth(epoch: u64) -> Birth<'static> {
        Birth { app: "app", process: "process", epoch: Epoch::new(epoch) }
    }

    fn put(files: StateFiles, value: &[u8]) {
        let mut engine =
            Engine::open(files.writable, files.read_only, StateOptions::with_quota(1 << 20)).unwrap();
        let mut transaction = engine.begin();
        transaction.put(b"key", 0, value).unwrap();
        transaction.commit().unwrap();
    }

    fn value(files: StateFiles) -> Vec<u8> {
        let engine =
            Engine::open(files.writable, files.read_only, StateOptions::with_quota(1 << 20)).unwrap();
        let reader = engine.read();
        reader.get(b"key").map(|value| value.bytes.to_vec()).unwrap_or_default()
    }

    fn paths() -> (tempfile::TempDir, ProcessPaths) {
        let folder = tempfile::tempdir().unwrap();
        let paths = Dir::open(folder.path()).unwrap().process("app", "process");
        (folder, paths)
    }

    #[test]
    fn state_goes_out_and_comes_back() {
        let (_folder, paths) = paths();
        put(open(&paths, NEW, birth(7)).unwrap(), b"one");
        let epoch = Epoch::new(3);
        assert_eq!(swap_out(&paths, epoch).unwrap().commit, 1);
        forget_local(&paths);
        assert!(!paths.local.exists());
        let back = open(&paths, Origin::Swapped { epoch }, birth(7)).unwrap();
        assert_eq!(value(back), b"one");
        remove_swapped(&paths, None).unwrap();
        assert!(!paths.swap.exists());
        assert_eq!(value(open(&paths, Origin::Local, birth(7)).unwrap()), b"one");
    }

    #[test]
    fn what_the_record_points_to_counts_whatever_else_lies_there() {
        let (_folder, paths) = paths();
        put(open(&paths, NEW, birth(7)).unwrap(), b"one");
        let epoch = Epoch::new(3);
        swap_out(&paths, epoch).unwrap();
        // A crash here leaves both. The record says local: a commit made there since counts.
        put(open(&paths, Origin::Local, birth(7)).unwrap(), b"two");
        assert_eq!(value(open(&paths, Origin::Local, birth(7)).unwrap()), b"two");
        // The record says swapped: nobody can have had a reply from the local file.
        assert_eq!(value(open(&paths, Origin::Swapped { epoch }, birth(7)).unwrap()), b"one");
    }

    #[test]
    fn a_namesake_of_a_deleted_process_finds_nothing() {
        let (_folder, paths) = paths();
        put(open(&paths, NEW, birth(7)).unwrap(), b"old");
        swap_out(&paths, Epoch::new(7)).unwrap();
        let namesake = Origin::New { born: Epoch::new(8) };
        assert_eq!(value(open(&paths, namesake, birth(8)).unwrap()), b"");
        assert!(!paths.swap.exists());
    }

    /// The node died after a reply and before the record said that there is state; and once more while it started again.
    #[test]
    fn a_commit_that_the_record_does_not_know_of_counts() {
        let (_folder, paths) = paths();
        put(open(&paths, NEW, birth(7)).unwrap(), b"replied");
        assert_eq!(value(open(&paths, NEW, birth(8)).unwrap()), b"replied");
        assert_eq!(value(open(&paths, NEW, birth(9)).unwrap()), b"replied");
    }

    #[test]
    fn what_belongs_to_others_or_was_never_written_does_not_count() {
        let (_folder, paths) = paths();
        put(open(&paths, NEW, birth(7)).unwrap(), b"another's");
        let other = Birth { process: "other", ..birth(8) };
        assert_eq!(value(open(&paths, NEW, other).unwrap()), b"");
        // Power was cut before the disk had the file's content.
        std::fs::write(&paths.local, [0; 8192]).unwrap();
        assert_eq!(value(open(&paths, NEW, birth(9)).unwrap()), b"");
    }

    #[test]
    fn lost_state_is_said_and_never_made_anew() {
        let (_folder, paths) = paths();
        for origin in [Origin::Local, Origin::Swapped { epoch: Epoch::new(9) }] {
            let problem = open(&paths, origin, birth(7)).expect_err("there is no file");
            assert_eq!(problem.kind(), Kind::StateLost);
        }
        delete(&paths);
    }

    #[test]
    fn an_unfinished_copy_is_no_state() {
        let (_folder, paths) = paths();
        std::fs::create_dir_all(&paths.state).unwrap();
        std::fs::write(&paths.local, b"").unwrap();
        assert_eq!(swap_out(&paths, Epoch::new(1)).expect_err("not formatted").kind(), Kind::StateCorrupt);
        assert!(!paths.swapped(Epoch::new(1)).exists());
    }
}
