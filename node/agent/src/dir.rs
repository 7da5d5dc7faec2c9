//! The node's directory: who owns it, and where each thing lies in it.
//!
//! | path | what |
//! |---|---|
//! | `agent.lock` | locked by the agent that owns the directory; holds its pid |
//! | `token` | the secret for changing calls, mode 0600 |
//! | `endpoint` | the HTTP address, for the command line |
//! | `images/` | the image store |
//! | `state/APP/PROCESS.state` | state of processes that are on this node |
//! | `swap/APP/PROCESS/EPOCH.state` | state of swapped processes, by the term that wrote it |
//! | `incoming/` | archives that are being received; emptied at start |
//! | `spawner.json`, `sched.redb` | owned by the spawner and the scheduler |

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use denizen_sched::Epoch;
use rustix::fs::FlockOperation;

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
    /// It cannot be made or written.
    #[error(
        "the directory {} cannot be used: {path}: {source}. Remedy: choose another with --dir, or mend its owner and mode",
        dir.display()
    )]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What in it.
        path: String,
        /// What the system said.
        source: io::Error,
    },
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
        let unusable =
            |path: &str, source| DirError::Unusable { dir: root.to_owned(), path: path.to_owned(), source };
        make(root).map_err(|error| unusable("the directory itself", error))?;
        let root = root.canonicalize().map_err(|error| unusable("the directory itself", error))?;
        check_owner(&root)?;
        let lock = take_lock(&root)?;
        let dir = Dir { root, _lock: lock };
        for folder in ["images", "state", "swap", "incoming"] {
            make(&dir.root.join(folder)).map_err(|error| unusable(folder, error))?;
        }
        dir.clear_incoming().map_err(|error| unusable("incoming", error))?;
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

    /// Leaves the HTTP address for the command line; replaced whole.
    pub(crate) fn write_endpoint(&self, address: &str) -> io::Result<()> {
        let temporary = self.root.join("endpoint.new");
        std::fs::write(&temporary, format!("{address}\n"))?;
        std::fs::rename(temporary, self.root.join("endpoint"))
    }

    /// So that nobody talks to an address that no node has any more.
    pub(crate) fn remove_endpoint(&self) {
        let _ = std::fs::remove_file(self.root.join("endpoint"));
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
    /// The folder of `local`.
    pub(crate) state: PathBuf,
    /// Its state while it is on this node.
    pub(crate) local: PathBuf,
    /// The folder of its swapped states.
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

/// Makes what happened to the names in `folder` last.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Everything in the directory is followed and believed, so nobody else may have put it there. A group that may write is its
/// owner's wish; many systems give each user one of their own.
fn check_owner(root: &Path) -> Result<(), DirError> {
    let exposed = |why: String| DirError::Exposed { dir: root.to_owned(), why };
    let metadata = root.metadata().map_err(|source| DirError::Unusable {
        dir: root.to_owned(),
        path: "the directory itself".to_owned(),
        source,
    })?;
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
    let unusable =
        |source| DirError::Unusable { dir: root.to_owned(), path: "agent.lock".to_owned(), source };
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // Who can open it can lock it, and keep the node from starting.
        .mode(0o600)
        .open(root.join("agent.lock"))
        .map_err(unusable)?;
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
mod tests {
    use super::*;

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
    fn a_file_in_its_place_is_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Dir::open(file.path()).expect_err("it is no directory").to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
