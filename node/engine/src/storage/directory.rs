//! Segments as files of one directory, for whoever may open files: the command line, tests, benchmarks, and the agent.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{FileSegment, Segment, Storage};

/// The segments `segment-<16 hex digits>.log` of a directory. Makes spares on a thread of its own; a commit that needs one while it is
/// being made waits for it, which is the one thing that an owner in another process does differently.
#[derive(Debug)]
pub struct Directory {
    files: Arc<Files>,
    spares: Arc<Spares>,
}

#[derive(Debug)]
struct Files {
    path: PathBuf,
    read_only: bool,
}

#[derive(Debug, Default)]
struct Spares {
    shelf: Mutex<Shelf>,
    made: Condvar,
}

#[derive(Debug, Default)]
struct Shelf {
    next_id: u64,
    ready: Vec<Arc<dyn Segment>>,
    /// Capacities of those that are being made.
    making: Vec<u64>,
    failed: Option<io::Error>,
}

impl Spares {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory {
    /// Opens the directory for a log that will be written.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Directory> {
        Directory::with(path.into(), false)
    }

    /// Opens the directory for reading only: it has no spares and deletes nothing.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open_read_only(path: impl Into<PathBuf>) -> io::Result<Directory> {
        Directory::with(path.into(), true)
    }

    fn with(path: PathBuf, read_only: bool) -> io::Result<Directory> {
        let next_id = segment_ids(&path)?.last().copied().unwrap_or(0) + 1;
        let shelf = Mutex::new(Shelf { next_id, ..Shelf::default() });
        let spares = Arc::new(Spares { shelf, made: Condvar::new() });
        Ok(Directory { files: Arc::new(Files { path, read_only }), spares })
    }

    /// The file of a segment.
    pub fn file(&self, id: u64) -> PathBuf {
        self.files.file(id)
    }
}

impl Files {
    fn file(&self, id: u64) -> PathBuf {
        segment_file(&self.path, id)
    }

    fn make(&self, id: u64, capacity: u64) -> io::Result<Arc<dyn Segment>> {
        let path = self.file(id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let made = FileSegment::allocate(&file, capacity).and_then(|()| File::open(&self.path)?.sync_all());
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Arc::new(FileSegment::new(id, Some(file), File::open(&path)?)?))
    }

    fn load(&self, id: u64) -> io::Result<Arc<dyn Segment>> {
        let path = self.file(id);
        let writable =
            if self.read_only { None } else { Some(OpenOptions::new().read(true).write(true).open(&path)?) };
        Ok(Arc::new(FileSegment::new(id, writable, File::open(&path)?)?))
    }
}

/// The file of a segment in `directory`.
pub fn segment_file(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("segment-{id:016x}.log"))
}

/// The numbers of the segments in a directory, in order. What has another name is none.
///
/// # Errors
/// The directory cannot be read.
pub fn segment_ids(directory: &Path) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("segment-")?.strip_suffix(".log"));
        ids.extend(id.filter(|id| id.len() == 16).and_then(|id| u64::from_str_radix(id, 16).ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

impl Storage for Directory {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        segment_ids(&self.files.path)?.into_iter().map(|id| self.files.load(id)).collect()
    }

    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        let mut shelf = self.spares.shelf();
        loop {
            let fitting = shelf.ready.iter().position(|spare| spare.capacity() >= min_bytes);
            if let Some(at) = fitting {
                return Ok(Some(shelf.ready.remove(at)));
            }
            match shelf.failed.take() {
                Some(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(None),
                Some(error) => return Err(error),
                None if !shelf.making.iter().any(|bytes| *bytes >= min_bytes) => return Ok(None),
                None => shelf = self.spares.made.wait(shelf).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn request_spare(&self, wanted_bytes: u64) {
        let mut shelf = self.spares.shelf();
        let enough = shelf.ready.iter().any(|spare| spare.capacity() >= wanted_bytes);
        let coming = shelf.making.iter().any(|bytes| *bytes >= wanted_bytes);
        if self.files.read_only || enough || coming {
            return;
        }
        let id = shelf.next_id;
        shelf.next_id += 1;
        shelf.making.push(wanted_bytes);
        let (files, spares) = (self.files.clone(), self.spares.clone());
        std::thread::spawn(move || {
            let made = files.make(id, wanted_bytes);
            let mut shelf = spares.shelf();
            match made {
                Ok(spare) => shelf.ready.push(spare),
                Err(error) => shelf.failed = Some(error),
            }
            if let Some(at) = shelf.making.iter().position(|bytes| *bytes == wanted_bytes) {
                shelf.making.swap_remove(at);
            }
            drop(shelf);
            spares.made.notify_all();
        });
    }

    fn retire(&self, id: u64) {
        // What cannot be deleted now is found, and retired again, at the next opening.
        let _ = fs::remove_file(self.file(id));
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let mut shelf = self.spares.shelf();
        while !shelf.making.is_empty() {
            shelf = self.spares.made.wait(shelf).unwrap_or_else(PoisonError::into_inner);
        }
        // Spares were never part of the log.
        for spare in shelf.ready.drain(..) {
            let _ = fs::remove_file(self.files.file(spare.id()));
        }
    }
}
