//! A disk that fails, and one that forgets what was not flushed.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::super::database::{Opener, builder};
use super::super::{Config, SchedError, Scheduler, SchedulerHandle};

/// A disk in memory, with the two files of a scheduler. What was not flushed is lost with [`Disk::cut_power`], and every access can be
/// made to fail.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) database: File,
    pub(super) journal: File,
}

#[derive(Debug, Clone, Default)]
pub(super) struct File {
    pub(super) platters: Arc<Mutex<Platters>>,
    /// How many more writes and flushes of the disk succeed; `None`: all.
    good_for: Arc<Mutex<Option<usize>>>,
}

#[derive(Debug, Default)]
pub(super) struct Platters {
    pub(super) written: Vec<u8>,
    flushed: Vec<u8>,
    flushes: usize,
}

impl Disk {
    pub(super) fn new() -> Self {
        let good_for = Arc::new(Mutex::new(None));
        let file = || File { good_for: Arc::clone(&good_for), ..File::default() };
        Self { database: file(), journal: file() }
    }

    pub(super) fn open(&self) -> Result<SchedulerHandle, SchedError> {
        let disk = self.clone();
        let open = move || {
            let database = builder(Config::default()).create_with_backend(disk.database.clone());
            (database, Ok(Box::new(disk.journal.clone()) as Box<dyn StorageBackend>))
        };
        Scheduler::open_with(Opener::new(std::path::Path::new("disk"), open))
    }

    pub(super) fn cut_power(&self) -> Self {
        let after = Self::new();
        for (file, before) in [(&after.database, &self.database), (&after.journal, &self.journal)] {
            let flushed = before.platters.lock().unwrap().flushed.clone();
            let mut platters = file.platters.lock().unwrap();
            (platters.written, platters.flushed) = (flushed.clone(), flushed);
        }
        after
    }

    /// The power goes while the journal is written: of what was not flushed, each page may be there or not.
    pub(super) fn cut_power_midway(&self, page_is_there: impl Fn(usize) -> bool) -> Self {
        let after = self.cut_power();
        let written = self.journal.platters.lock().unwrap().written.clone();
        let mut platters = after.journal.platters.lock().unwrap();
        for (page, bytes) in written.chunks(4096).enumerate().filter(|(page, _)| page_is_there(*page)) {
            platters.written[page * 4096..][..bytes.len()].copy_from_slice(bytes);
        }
        platters.flushed = platters.written.clone();
        drop(platters);
        after
    }

    pub(super) fn fail_after(&self, good_for: Option<usize>) {
        *self.database.good_for.lock().unwrap() = good_for;
    }

    pub(super) fn flushes(&self) -> usize {
        self.database.flushes() + self.journal.flushes()
    }
}

impl File {
    pub(super) fn flushes(&self) -> usize {
        self.platters.lock().unwrap().flushes
    }

    fn wear(&self) -> io::Result<()> {
        match &mut *self.good_for.lock().unwrap() {
            Some(0) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platters.lock().unwrap().written.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let platters = self.platters.lock().unwrap();
        let from = platters.written.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.wear()?;
        self.platters.lock().unwrap().written.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.wear()?;
        let mut platters = self.platters.lock().unwrap();
        platters.flushed = platters.written.clone();
        platters.flushes += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.wear()?;
        self.platters.lock().unwrap().written[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}
