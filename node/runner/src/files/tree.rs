//! The files of a process: restored into `/state` before its plugin is loaded, captured from there into the log.
//!
//! They lie in memory, in a file system of the sandbox's own, so that functions use them as any files; what outlives the sandbox is what
//! was captured. What must hold:
//!
//! - **A capture is one commit.** Bytes of changed files are written first, in parts that nothing names; one commit then switches every
//!   file, directory, deletion and rename at once. A capture that fails leaves the one before.
//! - **A capture is a checkpoint**, no part of any invocation: it takes what is there, also what a function that is running has half done.
//!   Only [`Files::capture`] inside an exclusive function that nobody writes beside is exact.
//! - **What was captured can be restored**: it has no more pages than the file system has room for, and holes stay holes.
//! - **Damage is told, never served.** A file whose bytes are damaged is restored as an empty one that nobody may open, and its entry
//!   stays in the log until the file is replaced or removed.
//!
//! Absent on purpose: links, devices, owners and extended attributes, which the sandbox refuses. A change is seen by a file's times, length
//! or number; what is written through a map that is older than the last capture is not, until the file is touched in another way.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::trouble::NotCommitted;
use denizen_engine::{
    Engine, FILE_MODE, FileEntry, FileKind, FilesWriter, HOLE, MAX_FILE_PATH_LEN, Snapshot, StateError,
    is_file_path,
};

/// Where the files of a process are.
pub(crate) const STATE_DIR: &str = "/state";

/// Directories within directories, at most.
const MAX_DEPTH: usize = 32;

/// Length of a part of a file in bytes. What changes of a file is written anew in pieces of this size.
const PART_LEN: u32 = 64 << 10;
const PART: usize = PART_LEN as usize;

/// So many bytes of parts make a commit.
const BATCH: usize = 1 << 20;

/// Captures that nobody asked for come at most this often.
const INTERVAL: Duration = Duration::from_secs(5);

/// And take at most one part in so many of the time.
const SHARE: u32 = 50;

/// A file that changed so shortly before it was looked at may change again without a new time: the kernel's clock for files is coarse.
const TICK: Duration = Duration::from_millis(20);

/// So often a walk is begun anew because directories changed during it.
const WALKS: usize = 5;

/// Why files cannot be captured or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// The log refused: the quota above all.
    #[error("files in {STATE_DIR} could not be kept: {0}")]
    Log(NotCommitted),
    /// A file or directory cannot be read.
    #[error(
        "{} cannot be read to be kept ({source}): its permissions have to let its owner read it",
        show(path)
    )]
    Read { path: Vec<u8>, source: io::Error },
    /// A path is longer or deeper than what is kept.
    #[error(
        "{} cannot be kept: a path has at most {MAX_FILE_PATH_LEN} bytes and {MAX_DEPTH} levels below {STATE_DIR}",
        show(path)
    )]
    Path { path: Vec<u8> },
    /// It never held still.
    #[error(
        "files in {STATE_DIR} changed all the time while they were captured: capture them when nobody moves or replaces them"
    )]
    Moving,
    /// A file cannot be restored.
    #[error("{} cannot be restored ({source}){}", show(path), remedy_for(source))]
    Restore { path: Vec<u8>, source: io::Error },
}

impl From<StateError> for FilesError {
    fn from(error: StateError) -> FilesError {
        FilesError::Log(NotCommitted::State(error))
    }
}

/// Commits for a capture; may wait until there is room in the log.
pub(crate) type Commit<'a> = &'a dyn Fn(&mut FilesWriter) -> Result<u64, NotCommitted>;

fn remedy_for(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge => ": raise `files` under [limits]",
        _ => "",
    }
}

/// A path as a message shows it: one line, whatever is in it.
fn show(path: &[u8]) -> String {
    format!("{STATE_DIR}/{}", String::from_utf8_lossy(path).escape_debug())
}

/// What a capture came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Captured {
    /// Number of the commit that holds it: an earlier one if nothing had changed; 0 if nothing was ever captured.
    pub(crate) commit: u64,
    /// Entries that were written or removed.
    pub(crate) changed: usize,
    /// Bytes of files that were written.
    pub(crate) bytes: u64,
}

/// The files of this process, and what is in the log of them.
pub(crate) struct Files {
    root: PathBuf,
    most_bytes: u64,
    catalog: Mutex<Catalog>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("root", &self.root)
            .field("most_bytes", &self.most_bytes)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Catalog {
    known: BTreeMap<Vec<u8>, Known>,
    /// Above every number that was ever given to a part.
    next_part: u64,
    /// Parts in the log that nothing names.
    garbage: Vec<u64>,
    last: u64,
    due: Instant,
}

/// What the log has of a file, and how the file looked then.
#[derive(Debug, Clone)]
struct Known {
    /// `None` for an entry that is damaged itself.
    entry: Option<FileEntry>,
    look: Look,
    /// Bytes of pages that are not all zeros.
    occupied: u64,
}

/// How a file looks from outside. While it looks the same it is the same.
#[derive(Debug, Clone, Copy)]
struct Look {
    inode: u64,
    len: u64,
    mode: u32,
    modified: (i64, u32),
    changed: (i64, u32),
    /// False if a later change might look the same.
    settled: bool,
}

impl Look {
    fn of(metadata: &Metadata) -> Look {
        let time = |seconds, nanos| (seconds, u32::try_from(nanos).unwrap_or(0));
        let changed = time(metadata.ctime(), metadata.ctime_nsec());
        let since = u64::try_from(changed.0).map(|seconds| UNIX_EPOCH + Duration::new(seconds, changed.1));
        let age = since.ok().and_then(|since| SystemTime::now().duration_since(since).ok());
        Look {
            inode: metadata.ino(),
            len: metadata.len(),
            mode: metadata.mode() & FILE_MODE,
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed,
            settled: age.is_some_and(|age| age > TICK),
        }
    }

    fn same_as(&self, now: &Look) -> bool {
        let all = |look: &Look| (look.inode, look.len, look.mode, look.modified, look.changed);
        self.settled && all(self) == all(now)
    }
}

impl Files {
    /// Makes the files that the log holds, below `root`, which is empty. No code of the tenant has run yet. The messages say what is
    /// damaged.
    pub(crate) fn restore(
        engine: &Engine,
        root: &Path,
        most_bytes: u64,
    ) -> Result<(Files, Vec<String>), FilesError> {
        let snapshot = engine.snapshot();
        let mut restoring = Restoring { root, snapshot: &snapshot, damaged: Vec::new() };
        let known = restoring.all()?;
        let damaged = restoring.damaged;
        let named: HashSet<u64> = known.values().flat_map(Known::parts).collect();
        let present = snapshot.file_parts();
        let next_part = present.iter().chain(&named).max().map_or(1, |last| last.saturating_add(1));
        // With an entry unread nobody knows which parts it names.
        let whole = known.values().all(|known| known.entry.is_some());
        let garbage = present.into_iter().filter(|part| whole && !named.contains(part)).collect();
        let last = if known.is_empty() { 0 } else { snapshot.commit_number() };
        let catalog = Catalog { known, next_part, garbage, last, due: Instant::now() + INTERVAL };
        let files = Files { root: root.to_owned(), most_bytes, catalog: Mutex::new(catalog) };
        Ok((files, damaged))
    }

    /// Captures what has changed. Returns when it is committed, at level `process`.
    pub(crate) fn capture(&self, engine: &Engine, commit: Commit<'_>) -> Result<Captured, FilesError> {
        let catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        self.capture_into(catalog, engine, commit)
    }

    /// Captures if some time has passed since the last capture, and nobody captures now.
    pub(crate) fn capture_if_due(
        &self,
        engine: &Engine,
        commit: Commit<'_>,
    ) -> Option<Result<Captured, FilesError>> {
        let catalog = match self.catalog.try_lock() {
            Ok(catalog) => catalog,
            Err(TryLockError::Poisoned(broken)) => broken.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (catalog.due <= Instant::now()).then(|| self.capture_into(catalog, engine, commit))
    }

    fn capture_into(
        &self,
        mut catalog: MutexGuard<'_, Catalog>,
        engine: &Engine,
        commit: Commit<'_>,
    ) -> Result<Captured, FilesError> {
        let begun = Instant::now();
        let capture = Capture {
            root: &self.root,
            most_bytes: self.most_bytes,
            snapshot: engine.snapshot(),
            parts: Parts {
                engine,
                commit,
                next: catalog.next_part,
                batch: None,
                pending: 0,
                written: Vec::new(),
                bytes: 0,
            },
        };
        let captured = capture.run(&mut catalog);
        let ended = Instant::now();
        catalog.due = ended + INTERVAL.max((ended - begun) * SHARE);
        captured
    }
}

impl Known {
    fn parts(&self) -> impl Iterator<Item = u64> {
        self.entry.iter().flat_map(FileEntry::parts)
    }
}

/// Where a path of the log is.
fn place(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// A restore under way.
struct Restoring<'a> {
    root: &'a Path,
    snapshot: &'a Snapshot,
    damaged: Vec<String>,
}

impl Restoring<'_> {
    fn all(&mut self) -> Result<BTreeMap<Vec<u8>, Known>, FilesError> {
        let snapshot = self.snapshot;
        let entries = snapshot.files()?;
        let mut known = BTreeMap::new();
        for (path, entry) in &entries {
            let failed = |source| FilesError::Restore { path: path.to_vec(), source };
            let restored = match entry {
                Ok(entry) => self.one(path, entry),
                Err(error) => self.unreadable(path, &entries, error),
            };
            known.insert(path.to_vec(), restored.map_err(failed)?);
        }
        // Last: a directory that may not be written could not be filled.
        for (path, known) in known.iter_mut().rev() {
            let failed = |source| FilesError::Restore { path: path.clone(), source };
            self.finish_directory(path, known).map_err(failed)?;
        }
        Ok(known)
    }

    fn one(&mut self, path: &[u8], entry: &FileEntry) -> io::Result<Known> {
        let at = place(self.root, path);
        self.make_parents(&at)?;
        let FileKind::File { len, part_len, parts } = &entry.kind else {
            make_directory(&at)?;
            let look = Look::of(&fs::symlink_metadata(&at)?);
            return Ok(Known { entry: Some(entry.clone()), look, occupied: 0 });
        };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at)?;
        file.set_len(*len)?;
        let mut occupied = 0;
        let mut offset = 0;
        for part in parts {
            match self.part(*part, (len - offset).min(u64::from(*part_len))) {
                Ok(None) => {}
                Ok(Some(bytes)) => occupied += write_pages(&file, bytes, offset)?,
                Err(error) => {
                    file.set_len(0)?;
                    return self.closed(&file, path, entry.clone(), &error);
                }
            }
            offset += u64::from(*part_len);
        }
        file.set_permissions(Permissions::from_mode(entry.mode))?;
        if let Some(modified) = time_of(entry.modified) {
            file.set_times(FileTimes::new().set_modified(modified))?;
        }
        Ok(Known { entry: Some(entry.clone()), look: Look::of(&file.metadata()?), occupied })
    }

    /// The bytes of a part, which are as many as they should be; `None` for a hole.
    fn part(&self, number: u64, len: u64) -> Result<Option<&[u8]>, StateError> {
        if number == HOLE {
            return Ok(None);
        }
        let part = self.snapshot.file_part(number)?.filter(|part| part.len() as u64 == len);
        part.map(Some).ok_or_else(|| missing_part(number))
    }

    /// A file whose bytes are damaged: there, empty, and closed to everybody, so that nobody takes it for another.
    fn closed(&mut self, file: &File, path: &[u8], entry: FileEntry, why: &StateError) -> io::Result<Known> {
        self.damaged.push(format!(
            "{} is damaged ({why}): it stands there empty and cannot be opened until it is replaced or removed",
            show(path)
        ));
        file.set_permissions(Permissions::from_mode(0o000))?;
        Ok(Known { entry: Some(entry), look: untouched(&file.metadata()?), occupied: 0 })
    }

    /// What stands here cannot be told, but for a directory by what is in it.
    fn unreadable(
        &mut self,
        path: &[u8],
        entries: &[denizen_engine::FileAt<'_>],
        why: &StateError,
    ) -> io::Result<Known> {
        let inside = [path, b"/"].concat();
        let at = place(self.root, path);
        self.make_parents(&at)?;
        if entries.iter().any(|(other, _)| other.starts_with(&inside)) {
            self.damaged.push(format!("{} is damaged ({why}): its permissions are lost", show(path)));
            make_directory(&at)?;
            let entry = FileEntry { mode: 0o755, modified: (0, 0), kind: FileKind::Directory };
            return Ok(Known {
                entry: Some(entry),
                look: Look::of(&fs::symlink_metadata(&at)?),
                occupied: 0,
            });
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o000).open(&at)?;
        let nothing = FileEntry { mode: 0, modified: (0, 0), kind: FileKind::Directory };
        let known = self.closed(&file, path, nothing, why)?;
        Ok(Known { entry: None, ..known })
    }

    /// Parents come first, unless their own entry is missing.
    fn make_parents(&self, at: &Path) -> io::Result<()> {
        match at.parent() {
            Some(parent) if !parent.is_dir() => DirBuilder::new().recursive(true).mode(0o755).create(parent),
            _ => Ok(()),
        }
    }

    fn finish_directory(&self, path: &[u8], known: &mut Known) -> io::Result<()> {
        let Some(FileEntry { mode, kind: FileKind::Directory, .. }) = &known.entry else { return Ok(()) };
        let at = place(self.root, path);
        fs::set_permissions(&at, Permissions::from_mode(*mode))?;
        known.look = Look::of(&fs::symlink_metadata(&at)?);
        Ok(())
    }
}

fn make_directory(at: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && at.is_dir() => Ok(()),
        made => made,
    }
}

/// What stands for a damaged file is what nobody has touched, however shortly ago it was made: nobody was there.
fn untouched(metadata: &Metadata) -> Look {
    Look { settled: true, ..Look::of(metadata) }
}

fn missing_part(number: u64) -> StateError {
    let damage =
        denizen_engine::Damage { segment: 0, offset: number, key: None, why: "a part of a file is missing" };
    StateError::Corrupt(Box::new(damage))
}

fn time_of((seconds, nanos): (i64, u32)) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    at?.checked_add(Duration::new(0, nanos))
}

/// The pages of `bytes` that are not all zeros, with their offsets.
fn pages(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let size = rustix::param::page_size();
    let numbered = bytes.chunks(size).enumerate().map(move |(number, page)| (number * size, page));
    numbered.filter(|(_, page)| page.iter().any(|byte| *byte != 0))
}

/// Bytes that these pages take in memory.
fn occupied_by(bytes: &[u8]) -> u64 {
    (pages(bytes).count() * rustix::param::page_size()) as u64
}

/// Writes what is not zeros, and says how much memory that took.
fn write_pages(file: &File, bytes: &[u8], offset: u64) -> io::Result<u64> {
    for (at, page) in pages(bytes) {
        file.write_all_at(page, offset + at as u64)?;
    }
    Ok(occupied_by(bytes))
}

/// A capture under way.
struct Capture<'a> {
    root: &'a Path,
    most_bytes: u64,
    snapshot: Snapshot,
    parts: Parts<'a>,
}

/// Writes parts that nothing names yet.
struct Parts<'a> {
    engine: &'a Engine,
    commit: Commit<'a>,
    next: u64,
    batch: Option<FilesWriter>,
    pending: usize,
    written: Vec<u64>,
    bytes: u64,
}

impl Capture<'_> {
    fn run(mut self, catalog: &mut Catalog) -> Result<Captured, FilesError> {
        let captured = self.look_at_all(catalog).and_then(|found| self.switch(catalog, found));
        // Whatever happened, these numbers were used.
        catalog.next_part = self.parts.next;
        if captured.is_err() {
            let written = self.parts.discard();
            catalog.garbage.extend(written);
        }
        captured
    }

    /// What is there now, with the bytes of what has changed written.
    fn look_at_all(&mut self, catalog: &Catalog) -> Result<BTreeMap<Vec<u8>, Known>, FilesError> {
        let by_inode: HashMap<u64, &Known> =
            catalog.known.values().map(|known| (known.look.inode, known)).collect();
        let mut now = BTreeMap::new();
        for (path, metadata) in walk(self.root)? {
            let before = catalog.known.get(&path);
            // By its number first: under the same path there may be another one, and this one may have been renamed.
            let old = by_inode.get(&metadata.ino()).copied().or(before);
            let known = match old {
                Some(known) if known.look.same_as(&Look::of(&metadata)) => Some(known.clone()),
                _ if metadata.is_dir() => Some(directory(&metadata)),
                _ => self.read(&path, old.and_then(|known| known.entry.as_ref()))?,
            };
            now.extend(known.map(|known| (path, known)));
        }
        self.parts.flush()?;
        let occupied: u64 = now.values().map(|known| known.occupied).sum();
        // Files that moved room among them while they were read one after the other.
        if occupied > self.most_bytes.next_multiple_of(rustix::param::page_size() as u64) {
            return Err(FilesError::Moving);
        }
        Ok(now)
    }

    /// Writes what is new of a file. `None`: it is gone.
    fn read(&mut self, path: &[u8], old: Option<&FileEntry>) -> Result<Option<Known>, FilesError> {
        let failed = |source| FilesError::Read { path: path.to_vec(), source };
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(place(self.root, path));
        let file = match open {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let look = Look::of(&file.metadata().map_err(failed)?);
        let old: &[u64] = match old.map(|entry| &entry.kind) {
            Some(FileKind::File { part_len: PART_LEN, parts, .. }) => parts,
            _ => &[],
        };
        let mut parts = Vec::new();
        let (mut len, mut occupied) = (0, 0);
        let mut buffer = vec![0; PART];
        // No further than it was long: a file that grows is read again next time.
        while len < look.len {
            if len + u64::from(PART_LEN) <= next_data(&file, len).unwrap_or(look.len) {
                parts.push(HOLE);
                len += u64::from(PART_LEN);
                continue;
            }
            let want = usize::try_from(look.len - len).unwrap_or(PART).min(PART);
            let count = read_full(&file, &mut buffer[..want], len).map_err(failed)?;
            let bytes = &buffer[..count];
            if count > 0 {
                parts.push(self.part(bytes, old.get(parts.len()).copied())?);
                occupied += occupied_by(bytes);
                len += count as u64;
            }
            if count < want {
                break;
            }
        }
        let after = Look::of(&file.metadata().map_err(failed)?);
        let settled = look.same_as(&after);
        let kind = FileKind::File { len, part_len: PART_LEN, parts };
        let entry = FileEntry { mode: look.mode, modified: look.modified, kind };
        Ok(Some(Known { entry: Some(entry), look: Look { settled, ..look }, occupied }))
    }

    /// The number of a part with these bytes: the old one if they are the same.
    fn part(&mut self, bytes: &[u8], old: Option<u64>) -> Result<u64, FilesError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(HOLE);
        }
        if let Some(number) = old.filter(|number| *number != HOLE)
            // A part that is damaged is not the same.
            && let Ok(Some(stored)) = self.snapshot.file_part(number)
            && stored == bytes
        {
            return Ok(number);
        }
        self.parts.write(bytes)
    }

    /// The one commit after which the log has what is there now.
    fn switch(
        &mut self,
        catalog: &mut Catalog,
        now: BTreeMap<Vec<u8>, Known>,
    ) -> Result<Captured, FilesError> {
        let mut writer = self.parts.engine.write_files();
        let mut changed = 0;
        let live: HashSet<u64> = now.values().flat_map(Known::parts).collect();
        // What goes makes room for what comes.
        let before = catalog.known.values().flat_map(Known::parts);
        let dead = before.chain(catalog.garbage.iter().copied()).filter(|part| !live.contains(part));
        for part in dead {
            writer.remove_part(part);
        }
        for path in catalog.known.keys().filter(|path| !now.contains_key(*path)) {
            writer.remove(path);
            changed += 1;
        }
        for (path, known) in &now {
            let Some(entry) = &known.entry else { continue };
            let old = catalog.known.get(path).and_then(|known| known.entry.as_ref());
            if old != Some(entry) {
                writer.put(path, entry)?;
                changed += 1;
            }
        }
        if changed > 0 || !catalog.garbage.is_empty() {
            catalog.last = (self.parts.commit)(&mut writer).map_err(FilesError::Log)?;
        }
        catalog.garbage.clear();
        catalog.known = now;
        Ok(Captured { commit: catalog.last, changed, bytes: self.parts.bytes })
    }
}

impl Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<u64, FilesError> {
        let number = self.next;
        self.next += 1;
        let batch = self.batch.get_or_insert_with(|| self.engine.write_files());
        batch.put_part(number, bytes)?;
        self.written.push(number);
        self.bytes += bytes.len() as u64;
        self.pending += bytes.len();
        if self.pending >= BATCH {
            self.flush()?;
        }
        Ok(number)
    }

    fn flush(&mut self) -> Result<(), FilesError> {
        self.pending = 0;
        match self.batch.take() {
            Some(mut batch) => (self.commit)(&mut batch).map(drop).map_err(FilesError::Log),
            None => Ok(()),
        }
    }

    /// Takes back what was written; returns what could not be.
    fn discard(&mut self) -> Vec<u64> {
        self.batch = None;
        let written = std::mem::take(&mut self.written);
        let mut writer = self.engine.write_files();
        let some = written.iter().filter(|part| writer.remove_part(**part)).count() > 0;
        match some.then(|| (self.commit)(&mut writer)) {
            Some(Err(_)) => written,
            _ => Vec::new(),
        }
    }
}

fn directory(metadata: &Metadata) -> Known {
    let look = Look::of(metadata);
    let entry = FileEntry { mode: look.mode, modified: (0, 0), kind: FileKind::Directory };
    Known { entry: Some(entry), look, occupied: 0 }
}

/// Where something was written at or after `offset`; `None` if nothing was.
fn next_data(file: &File, offset: u64) -> Option<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(at) => Some(at),
        Err(rustix::io::Errno::NXIO) => None,
        Err(_) => Some(offset),
    }
}

/// As much as there is, up to the length of `into`.
fn read_full(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < into.len() {
        match file.read_at(&mut into[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

type Found = Vec<(Vec<u8>, Metadata)>;

/// Every file and directory below `root`. Where something was renamed meanwhile it might be missed in the place that it came from and in
/// the one that it went to: then the walk begins anew.
fn walk(root: &Path) -> Result<Found, FilesError> {
    for _ in 0..WALKS {
        let (mut found, mut directories) = (Vec::new(), Vec::new());
        walk_into(root, &mut Vec::new(), 0, &mut found, &mut directories)?;
        let still = |(path, look): &(Vec<u8>, Look)| {
            let now = fs::symlink_metadata(place(root, path)).map(|metadata| Look::of(&metadata));
            now.is_ok_and(|now| (now.inode, now.changed) == (look.inode, look.changed))
        };
        if directories.iter().all(still) {
            return Ok(found);
        }
    }
    Err(FilesError::Moving)
}

fn walk_into(
    root: &Path,
    path: &mut Vec<u8>,
    depth: usize,
    found: &mut Found,
    directories: &mut Vec<(Vec<u8>, Look)>,
) -> Result<(), FilesError> {
    let failed = |path: &[u8], source| FilesError::Read { path: path.to_vec(), source };
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let at = place(root, path);
    let opened = fs::symlink_metadata(&at).and_then(|metadata| Ok((metadata, fs::read_dir(&at)?)));
    let entries = match opened {
        Err(error) if gone(&error) && depth > 0 => return Ok(()),
        Err(error) => return Err(failed(path, error)),
        Ok((metadata, entries)) => {
            directories.push((path.clone(), Look::of(&metadata)));
            entries
        }
    };
    for entry in entries {
        let entry = entry.map_err(|error| failed(path, error))?;
        let len = path.len();
        if len > 0 {
            path.push(b'/');
        }
        path.extend(entry.file_name().into_vec());
        match entry.metadata() {
            Err(error) if gone(&error) => {}
            Err(error) => return Err(failed(path, error)),
            Ok(metadata) if metadata.is_dir() || metadata.is_file() => {
                if depth == MAX_DEPTH || !is_file_path(path) {
                    return Err(FilesError::Path { path: path.clone() });
                }
                let inside = metadata.is_dir();
                found.push((path.clone(), metadata));
                if inside {
                    walk_into(root, path, depth + 1, found, directories)?;
                }
            }
            // Nothing else can be made in a sandbox.
            Ok(_) => {}
        }
        path.truncate(len);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
