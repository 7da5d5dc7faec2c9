//! The node's directory: who owns it, and where each thing lies in it.
//!
//! | path | what |
//! |---|---|
//! | `agent.lock` | locked by the agent that owns the directory; holds its pid |
//! | `token` | the secret for changing calls, mode 0600 |
//! | `endpoint` | the HTTP address, for the command line |
//! | `data-endpoint` | the address of the data port, for clients |
//! | `keys/` | the keys that tokens for the data port are signed and verified with |
//! | `images/` | the image store |
//! | `state/APP/PROCESS.state/` | the segments of processes that are on this node; `suspect` in it: a sync has failed there |
//! | `swap/APP/PROCESS/EPOCH.state/` | those of swapped processes, by the term that wrote them; `swap` may be a link to another disk |
//! | `stock/` | blank segments that are nobody's yet; emptied at start |
//! | `incoming/` | archives that are being received; emptied at start |
//! | `spawner.json`, `sched.redb`, `sched.journal` | owned by the spawner and the scheduler |

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use denizen_sched::Epoch;
use rustix::fs::FlockOperation;

use crate::problem::is_out_of_descriptors;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Another agent owns it.
    #[error(
        "the directory {} is already used by another node, process {pid}. Remedy: stop that one, or give this one another --dir",
        dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other agent's process, as its lock file says.
        pid: String,
    },
    /// Others could put files into it, or have: a token that they know, a link to a file of its owner's.
    #[error(
        "the directory {} cannot be trusted: {why}. Remedy: choose another with --dir, or `chown` and `chmod go-w` it once its \
         content is known to be yours",
        dir.display()
    )]
    Exposed {
        /// The directory.
        dir: PathBuf,
        /// Who could.
        why: String,
    },
    /// It, or what must be in it, cannot be made, read or written.
    #[error("{} cannot be used: {} ({source}). Remedy: {}", path.display(), why(source).0, why(source).1)]
    Unusable {
        /// The path that was refused.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DirError {
    /// For what the system says of `path`.
    pub(crate) fn unusable(path: &Path) -> impl Fn(io::Error) -> DirError + use<> {
        let path = path.to_owned();
        move |source| DirError::Unusable { path: path.clone(), source }
    }
}

/// What a refusal means for somebody who chose a directory, and what to do.
fn why(error: &io::Error) -> (&'static str, &'static str) {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::PermissionDenied => (
            "the user that this program runs as may not",
            "choose another directory with --dir, or give this one to that user with `chown`",
        ),
        Kind::ReadOnlyFilesystem => (
            "it is on a file system that is read-only",
            "choose a directory on another with --dir, or mount it writable: `mount -o remount,rw`",
        ),
        Kind::StorageFull | Kind::QuotaExceeded => {
            ("its disk is full", "free some space there, or choose a directory on another disk with --dir")
        }
        Kind::NotADirectory | Kind::AlreadyExists => (
            "a file is where a directory must be",
            "choose another directory with --dir, or move that file away",
        ),
        Kind::IsADirectory => ("a directory is where a file must be", "move that directory away"),
        Kind::InvalidFilename => {
            ("the path, or a name in it, is too long", "choose a directory with a shorter path with --dir")
        }
        Kind::NotFound => (
            "a part of the path is gone, or cannot be made",
            "make its parent directory, or choose another with --dir",
        ),
        _ if is_out_of_descriptors(error) => (
            "too many files are open",
            "raise the limit: `ulimit -n` in the shell, LimitNOFILE in the service",
        ),
        _ => {
            ("the system refuses it", "choose another directory with --dir, or look after the disk under it")
        }
    }
}

/// The directory, owned for as long as this lives.
#[derive(Debug)]
pub(crate) struct Dir {
    root: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Dir {
    /// Makes the directory if it is not there, and takes it.
    pub(crate) fn open(root: &Path) -> Result<Dir, DirError> {
        make(root).map_err(DirError::unusable(root))?;
        let root = root.canonicalize().map_err(DirError::unusable(root))?;
        check_owner(&root)?;
        let lock = take_lock(&root)?;
        let dir = Dir { root, _lock: lock };
        for folder in ["images", "state", "swap", "stock", "incoming"] {
            let folder = dir.root.join(folder);
            make(&folder).map_err(DirError::unusable(&folder))?;
        }
        dir.clear_incoming().map_err(DirError::unusable(&dir.root.join("incoming")))?;
        Ok(dir)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn token(&self) -> PathBuf {
        self.root.join("token")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn stock(&self) -> PathBuf {
        self.root.join("stock")
    }

    /// Leaves the HTTP address for the command line; replaced whole.
    pub(crate) fn write_endpoint(&self, address: &str) -> Result<(), DirError> {
        self.write_address("endpoint", address)
    }

    /// The same for the data port.
    pub(crate) fn write_data_endpoint(&self, address: &str) -> Result<(), DirError> {
        self.write_address("data-endpoint", address)
    }

    fn write_address(&self, name: &str, address: &str) -> Result<(), DirError> {
        let temporary = self.root.join(format!("{name}.new"));
        let path = self.root.join(name);
        std::fs::write(&temporary, format!("{address}\n")).map_err(DirError::unusable(&temporary))?;
        std::fs::rename(temporary, &path).map_err(DirError::unusable(&path))
    }

    /// So that nobody talks to an address that no node has any more.
    pub(crate) fn remove_endpoint(&self) {
        let _ = std::fs::remove_file(self.root.join("endpoint"));
        let _ = std::fs::remove_file(self.root.join("data-endpoint"));
    }

    /// A fresh file for something that is being received; it has no name any more once it is open.
    pub(crate) fn incoming(&self) -> io::Result<File> {
        let path = self.root.join("incoming").join(crate::token::random_hex::<8>()?);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(path)?;
        Ok(file)
    }

    fn clear_incoming(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.root.join("incoming"))? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Where the files of a process are.
    pub(crate) fn process(&self, app: &str, process: &str) -> ProcessPaths {
        // Both are checked names: single path components that are neither hidden nor `..`.
        let state = self.root.join("state").join(app);
        let local = state.join(format!("{process}.state"));
        ProcessPaths { state, local, swap: self.root.join("swap").join(app).join(process) }
    }
}

/// Where the files of one process are.
#[derive(Debug, Clone)]
pub(crate) struct ProcessPaths {
    /// The folder that `local` is in.
    pub(crate) state: PathBuf,
    /// The folder of its segments while they are on this node.
    pub(crate) local: PathBuf,
    /// The folder of its swapped states, each a folder of segments.
    pub(crate) swap: PathBuf,
}

impl ProcessPaths {
    /// Its state as `epoch` swapped it out.
    pub(crate) fn swapped(&self, epoch: Epoch) -> PathBuf {
        self.swap.join(format!("{epoch}.state"))
    }
}

/// Makes a directory and its parents, for their owner only.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(path)
}

/// As [`make`], and makes the names of what it makes last: the folder's and its missing parents'. Also that of a folder that is there:
/// whoever made it may not have come to that.
pub(crate) fn make_to_last(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return make(path) };
    if !path.is_dir() {
        make_to_last(parent)?;
        make(path)?;
    }
    sync(parent)
}

/// Removes a folder and what is in it, or a file; what is not there is removed already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes what happened to the names in `folder` last.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    tests::SYNCED.with_borrow_mut(|synced| synced.push(folder.to_owned()));
    File::open(folder)?.sync_all()
}

/// Everything in the directory is followed and believed, so nobody else may have put it there. A group that may write is its
/// owner's wish; many systems give each user one of their own.
fn check_owner(root: &Path) -> Result<(), DirError> {
    let exposed = |why: String| DirError::Exposed { dir: root.to_owned(), why };
    let metadata = root.metadata().map_err(DirError::unusable(root))?;
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return Err(exposed(format!(
            "it belongs to user {}, and this program runs as user {us}",
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o002 != 0 {
        return Err(exposed("every user of this machine can write to it".to_owned()));
    }
    Ok(())
}

fn take_lock(root: &Path) -> Result<File, DirError> {
    let path = root.join("agent.lock");
    let unusable = DirError::unusable(&path);
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // Who can open it can lock it, and keep the node from starting.
        .mode(0o600)
        .open(&path)
        .map_err(&unusable)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
            return Err(DirError::Locked { dir: root.to_owned(), pid });
        }
        Err(error) => return Err(unusable(error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(unusable)?;
    Ok(file)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        /// The folders that this thread has synced.
        pub(crate) static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    #[test]
    fn the_name_of_a_folder_lasts_whoever_made_it() {
        let root = tempfile::tempdir().unwrap();
        let (state, app) = (root.path().join("state"), root.path().join("state/app"));
        let process = app.join("process");
        std::fs::create_dir(&state).unwrap();
        make_to_last(&process).unwrap();
        assert_eq!(SYNCED.take(), [root.path().to_owned(), state, app.clone()]);
        // Somebody made it, and was killed before the sync.
        make_to_last(&process).unwrap();
        assert_eq!(SYNCED.take(), [app]);
    }

    #[test]
    fn a_directory_has_one_owner_and_names_it() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("a/b");
        let dir = Dir::open(&root).unwrap();
        let error = Dir::open(&root).expect_err("it is taken").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(dir);
        Dir::open(&root).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_before_anything_in_it_is_touched() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (victim, root) = (dir.path().join("victim"), dir.path().join("root"));
        std::fs::write(&victim, "precious").unwrap();
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(&victim, root.join("agent.lock")).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o1777)).unwrap();
        let error = Dir::open(&root).expect_err("anybody may have planted that link").to_string();
        assert!(error.contains("every user") && error.contains("--dir"), "{error}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn the_lock_can_be_taken_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let _dir = Dir::open(root.path()).unwrap();
        let mode = std::fs::metadata(root.path().join("agent.lock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED a_directory_of_another_user_is_refused: only root can give a directory away");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(root.path(), Some(12345), None).unwrap();
        let error = Dir::open(root.path()).expect_err("its owner can put anything there").to_string();
        assert!(error.contains("12345"), "{error}");
    }

    #[test]
    fn what_cannot_be_a_directory_is_named_with_its_cause_and_remedy() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        let folder = parent.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("images"), "").unwrap();
        for (root, named, cause) in [
            (file.clone(), file.clone(), "a file is where"),
            (file.join("below"), file.join("below"), "a file is where"),
            (folder.clone(), folder.join("images"), "a file is where"),
            (parent.path().join("x".repeat(300)), parent.path().join("xxx"), "too long"),
            (parent.path().join("x/".repeat(3000)), parent.path().join("x/x"), "too long"),
        ] {
            let error = Dir::open(&root).expect_err("it cannot be").to_string();
            assert!(error.starts_with(&named.display().to_string()), "{error}");
            assert!(
                error.contains(cause) && error.contains("Remedy: ") && error.contains("--dir"),
                "{error}"
            );
        }
    }
}
