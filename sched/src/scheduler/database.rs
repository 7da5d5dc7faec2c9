//! Opening the database and its journal, and what their errors mean.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageBackend};

use super::journal::Journal;
use super::ledger::{Apps, Ledger};
use super::{Config, SchedError};

/// The database, and what is to be read on top of it.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) database: Database,
    pub(super) journal: Journal,
    pub(super) apps: Apps,
}

/// The files of a store, as they are opened.
pub(super) type Files = (Result<Database, DatabaseError>, io::Result<Box<dyn StorageBackend>>);

/// Opens the store again and again: when a disk has failed, what is open cannot be trusted any more.
pub(super) struct Opener {
    path: PathBuf,
    open: Box<dyn Fn() -> Files + Send>,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Opener {
    pub(super) fn file(path: &Path, config: Config) -> Self {
        let (file, journal) = (path.to_owned(), journal_of(path));
        Self::new(path, move || {
            // First the database, whose lock is that of both.
            let database = open_private(&file)
                .map_err(DatabaseError::from)
                .and_then(|file| builder(config).create_with_backend(FileBackend::new(file)?));
            let journal = if database.is_ok() { open_to_last(&journal) } else { Err(io::Error::other("")) };
            (database, journal)
        })
    }

    /// `path` is only named in errors.
    pub(super) fn new(path: &Path, open: impl Fn() -> Files + Send + 'static) -> Self {
        Self { path: path.to_owned(), open: Box::new(open) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For the first time in this program: the owners of all processes are gone.
    pub(super) fn open_and_recover(&self) -> Result<Store, SchedError> {
        self.open_and(|ledger| ledger.recover())
    }

    /// After a failure: the owners are alive.
    pub(super) fn open(&self) -> Result<Store, SchedError> {
        self.open_and(|_| Ok(()))
    }

    fn open_and(
        &self,
        work: impl FnOnce(&mut Ledger<'_>) -> Result<(), SchedError>,
    ) -> Result<Store, SchedError> {
        let path = &self.path;
        guard(path, || {
            let (database, file) = (self.open)();
            let database = database.map_err(|error| self.open_error(error))?;
            let mut apps = Apps::default();
            let mut generation = None;
            Ledger::once(&database, path, &mut apps, |ledger| {
                ledger.check_format()?;
                generation = ledger.generation()?;
                Ok(())
            })?;
            let journal_path = journal_of(path);
            let file = file.map_err(|error| store_error(&journal_path, error))?;
            let (mut journal, records) = Journal::open(&journal_path, file, generation)?;
            Ledger::once(&database, path, &mut apps, |ledger| {
                ledger.replay(records)?;
                work(ledger)?;
                ledger.set_generation(journal.next_generation())
            })?;
            journal.begin();
            Ok(Store { database, journal, apps })
        })
    }

    fn open_error(&self, error: DatabaseError) -> SchedError {
        let path = self.path.clone();
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                SchedError::InUse { path }
            }
            DatabaseError::Storage(error) => store_error(&self.path, error),
            other => SchedError::Corrupt { path, why: other.to_string() },
        }
    }
}

fn journal_of(path: &Path) -> PathBuf {
    path.with_extension("journal")
}

/// Names and manifests are nobody else's business, and who can open it can lock it.
fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A file whose name is on the disk: what is synced in it is found after a loss of power.
fn open_to_last(path: &Path) -> io::Result<Box<dyn StorageBackend>> {
    let file = open_private(path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
}

/// The check on opening reads the whole file: an epoch that a flipped bit has lowered would let two owners
/// act for one process.
pub(super) fn builder(config: Config) -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(config.cache_bytes).set_check_integrity_on_open(true);
    builder
}

/// What an error of the database means for those who asked.
pub(super) fn store_error(path: &Path, error: impl Into<redb::Error>) -> SchedError {
    let error = error.into();
    let path = path.to_owned();
    let why = error.to_string();
    match error {
        redb::Error::Corrupted(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. } => SchedError::Corrupt { path, why },
        redb::Error::Io(source)
            if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            SchedError::Corrupt { path, why }
        }
        redb::Error::Io(source)
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            SchedError::NoSpace { path }
        }
        _ => SchedError::Store { path, why },
    }
}

/// Runs `work`; a panic in it, which a file that was changed behind the database's back can cause, becomes an
/// error.
pub(super) fn guard<T>(path: &Path, work: impl FnOnce() -> Result<T, SchedError>) -> Result<T, SchedError> {
    // Whatever the panic left half-done is in a transaction or a database that is dropped next.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(SchedError::Corrupt {
            path: path.to_owned(),
            why: text.unwrap_or("the database gave up").to_owned(),
        })
    })
}

/// So that `?` works on every error of redb where the path is known.
pub(super) trait StoreResult<T> {
    fn at(self, path: &Path) -> Result<T, SchedError>;
}

impl<T, E: Into<redb::Error>> StoreResult<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, SchedError> {
        self.map_err(|error| store_error(path, error))
    }
}

/// The same for what is stored in it.
pub(super) fn undecodable(path: &Path, what: impl fmt::Display, error: &serde_json::Error) -> SchedError {
    SchedError::Corrupt {
        path: path.to_owned(),
        why: format!("the record of {what} cannot be read ({error})"),
    }
}
