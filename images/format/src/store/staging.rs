//! A directory in which an image grows until it is whole.
//!
//! It lies where the caller says, under a name that is never an image's, and vanishes with its owner. An
//! owner that is killed leaves it behind; since every live owner holds a lock on its directory, [`sweep`] can
//! tell the two apart.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::contents::{CONTENTS, Contents, FileRecord, Mode, Sha256Hex};
use super::{StoreError, io_error};
use crate::ImageId;

/// What unfinished and half-removed directories begin with; an image's name begins with a digit of its
/// digest.
const PREFIX: &str = ".unfinished-";
const DIR_MODE: u32 = 0o755;

/// An image in the making. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: TempDir,
    _lock: File,
}

/// What can go wrong while a file is copied in: the two ends have different owners, and so the blame differs.
#[derive(Debug)]
pub(crate) enum CopyError {
    Source(std::io::Error),
    Target(StoreError),
}

impl Staging {
    /// A new, empty directory in `parent`.
    pub(crate) fn create(parent: &Path) -> Result<Self, StoreError> {
        // A sweep may take the directory away between its creation and its lock.
        for _ in 0..100 {
            let dir = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(parent)
                .map_err(io_error("make a directory in", parent))?;
            let Ok(lock) = File::open(dir.path()) else { continue };
            lock.lock().map_err(io_error("lock", dir.path()))?;
            if dir.path().exists() {
                return Ok(Self { dir, _lock: lock });
            }
        }
        Err(io_error("make a directory in", parent)(std::io::ErrorKind::ResourceBusy.into()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Copies `content` to `path`, which the caller has checked, and tells what was written. It reads at most
    /// one byte over `limit`, and then fails with `FileTooLarge` on the source's side.
    pub(crate) fn add(
        &self,
        path: &str,
        mode: Mode,
        content: &mut dyn Read,
        limit: u64,
    ) -> Result<FileRecord, CopyError> {
        let target = self.dir.path().join(path);
        let mut file = self.create_file(&target).map_err(CopyError::Target)?;
        let failed = |error| CopyError::Target(io_error("write", &target)(error));
        let (bytes, sha256) = copy(content, &mut file, limit, &failed)?;
        file.set_permissions(Permissions::from_mode(mode.bits())).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(FileRecord { path: path.to_owned(), bytes, mode, sha256 })
    }

    fn create_file(&self, target: &Path) -> Result<File, StoreError> {
        if let Some(parent) = target.parent() {
            self.create_dirs(parent)?;
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target)
            .map_err(io_error("create", target))
    }

    /// With permissions that do not depend on the umask.
    fn create_dirs(&self, dir: &Path) -> Result<(), StoreError> {
        if dir == self.dir.path() || dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent() {
            self.create_dirs(parent)?;
        }
        fs::create_dir(dir).map_err(io_error("create", dir))?;
        fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))
            .map_err(io_error("set permissions of", dir))
    }

    /// Writes the list of contents, which names the image.
    pub(crate) fn add_contents(&self, bytes: &[u8]) -> Result<ImageId, StoreError> {
        let limit = bytes.len() as u64;
        match self.add(CONTENTS, Mode::Plain, &mut &bytes[..], limit) {
            Ok(_) => Ok(ImageId::of(bytes)),
            Err(CopyError::Target(error)) => Err(error),
            Err(CopyError::Source(error)) => Err(io_error("write", self.path())(error)),
        }
    }

    /// Gives the whole directory its final name, durably. `false`: there is something of that name already,
    /// and this one is dropped.
    pub(crate) fn publish(self, target: &Path, contents: &Contents) -> Result<bool, StoreError> {
        fs::set_permissions(self.path(), Permissions::from_mode(DIR_MODE))
            .map_err(io_error("set permissions of", self.path()))?;
        for dir in directories(contents) {
            sync_dir(&self.path().join(dir))?;
        }
        sync_dir(self.path())?;
        match fs::rename(self.path(), target) {
            Ok(()) => {
                // Its old name is gone, so there is nothing left to remove.
                let _ = self.dir.keep();
                sync_dir(target.parent().unwrap_or(Path::new("/")))?;
                Ok(true)
            }
            Err(error) if is_taken(&error) => Ok(false),
            Err(error) => Err(io_error("rename to", target)(error)),
        }
    }
}

fn copy(
    content: &mut dyn Read,
    file: &mut File,
    limit: u64,
    failed: &dyn Fn(std::io::Error) -> CopyError,
) -> Result<(u64, Sha256Hex), CopyError> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let read = match content.read(&mut buffer) {
            Ok(0) => return Ok((total, Sha256Hex(digest.finalize().into()))),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Source(error)),
        };
        total += read as u64;
        if total > limit {
            return Err(CopyError::Source(std::io::ErrorKind::FileTooLarge.into()));
        }
        digest.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(failed)?;
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

/// Every directory that holds a file, below the image's own.
fn directories(contents: &Contents) -> std::collections::BTreeSet<&str> {
    let parents = |path: &'_ str| path.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
    contents
        .files
        .iter()
        .flat_map(|file| parents(&file.path).into_iter().map(|at| &file.path[..at]))
        .collect()
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

/// Takes a directory out of sight at once, so that nobody finds half of it, and then removes it.
pub(crate) fn discard(dir: &Path, parent: &Path) -> Result<(), StoreError> {
    let grave = Staging::create(parent)?;
    fs::rename(dir, grave.path().join("image")).map_err(io_error("remove", dir))?;
    sync_dir(parent)?;
    let path = grave.path().to_owned();
    grave.dir.close().map_err(io_error("remove", &path))
}

/// Removes what killed owners left in `parent`. It is a service: what cannot be removed stays for the next
/// time.
pub(crate) fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            sweep_one(entry.path());
        }
    }
}

fn sweep_one(dir: PathBuf) {
    let Ok(lock) = File::open(&dir) else { return };
    if lock.try_lock().is_ok() {
        let _ = fs::remove_dir_all(dir);
    }
}
