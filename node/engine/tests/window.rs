//! The window that commits are stored through while nobody syncs: what it shows, when it goes, and that nothing depends on it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{LINEAGE, Objects, Rng, contents};
use denizen_engine::storage::{Directory, Map, Segment, Storage};
use denizen_engine::{Access, Durability, Engine, Operation, Options, StateError};

const MAX_SHOWN: usize = 3 * (128 << 10);
/// As much more while values are written over.
const BEHIND: usize = 8 << 20;
const GUARD: usize = 64 << 20;

fn options(segment_bytes: u64) -> Options {
    let mut options = Options::new(LINEAGE, 256 << 20);
    options.segments.min_bytes = segment_bytes;
    options
}

fn open(dir: &Path) -> Engine {
    open_with(dir, options(1 << 20))
}

fn open_with(dir: &Path, options: Options) -> Engine {
    Engine::open(Arc::new(Directory::open(dir).unwrap()), options).unwrap().0
}

fn put(engine: &Engine, key: &[u8], value: &[u8]) -> Result<u64, StateError> {
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(key, value)?;
    tx.commit()
}

/// A line of the list of maps: from, to, permissions, offset in the file, file.
type Line = (usize, usize, String, usize, String);

fn maps() -> Vec<Line> {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| usize::from_str_radix(text, 16).unwrap();
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next().unwrap().split_once('-').unwrap();
        let (permissions, offset) = (fields.next().unwrap().to_owned(), hex(fields.next().unwrap()));
        (hex(from), hex(to), permissions, offset, fields.nth(2).unwrap_or_default().to_owned())
    };
    text.lines().map(line).collect()
}

/// Where writable maps of files in `dir` are among all maps.
fn windows(dir: &Path, maps: &[Line]) -> Vec<usize> {
    let ours = |line: &Line| line.2.contains('w') && line.4.starts_with(dir.to_str().unwrap());
    (0..maps.len()).filter(|at| ours(&maps[*at])).collect()
}

fn bytes(line: &Line) -> usize {
    line.1 - line.0
}

#[test]
fn it_shows_little_lies_alone_and_goes_with_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let path = std::fs::canonicalize(dir.path()).unwrap();
    let engine = open(&path);
    let mut shown = 0;
    let mut written = 0;
    for n in 0..30_000_u64 {
        put(&engine, &n.to_le_bytes(), &[7; 64]).unwrap();
        written += 192;
        if n % 50 == 0 {
            engine.prepare(1 << 20);
        }
        if n % 700 != 0 {
            continue;
        }
        let maps = maps();
        let windows = windows(&path, &maps);
        let Some(first) = windows.first() else { continue };
        shown += 1;
        let total: usize = windows.iter().map(|at| bytes(&maps[*at])).sum();
        assert!(total <= MAX_SHOWN, "{total} bytes can be written");
        let last = windows[windows.len() - 1];
        assert_eq!(last - first + 1, windows.len(), "it is in several places: {maps:?}");
        for (at, side) in [(first - 1, "below"), (last + 1, "above")] {
            let none = &maps[at];
            assert!(none.2.starts_with("---p") && bytes(none) >= GUARD, "{side} it: {none:?}");
        }
        assert!(maps[first - 1].1 == maps[*first].0 && maps[last].1 == maps[last + 1].0, "a gap beside it");
    }
    assert!(written > 4 << 20, "several segments were full");
    assert!(shown > 20, "it was there {shown} times only");
    engine.wait(u64::MAX, Durability::Node).unwrap();
    assert_eq!(windows(&path, &maps()), [0; 0], "it is there after a sync");
    for n in 0..200_u64 {
        let seq = put(&engine, &n.to_le_bytes(), &[8; 64]).unwrap();
        engine.wait(seq, Durability::Node).unwrap();
        engine.prepare(1 << 20);
    }
    assert_eq!(windows(&path, &maps()), [0; 0], "it is there between synced commits");
    drop(engine);
    assert_eq!(windows(&path, &maps()), [0; 0], "it is left behind");
}

/// Bytes of the window, once it is known to be in one piece.
fn shown(dir: &Path) -> usize {
    let maps = maps();
    let windows = windows(dir, &maps);
    let (Some(first), Some(last)) = (windows.first(), windows.last()) else { return 0 };
    assert_eq!(last - first + 1, windows.len(), "it is in several places: {maps:?}");
    maps[*last].1 - maps[*first].0
}

/// While values are written over, it reaches as far back as that needs, and no farther; then it is what it was.
#[test]
fn it_is_wide_only_while_values_are_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = std::fs::canonicalize(dir.path()).unwrap();
    let engine = open_with(&path, options(64 << 20));
    let mut rng = Rng(12);
    let commits = |keys: u64, len: usize, rng: &mut Rng| {
        let most = (0..6000_u64).map(|n| {
            put(&engine, &rng.below(keys as usize).to_le_bytes(), &vec![n as u8; len]).unwrap();
            if n % 20 == 0 { shown(&path) } else { 0 }
        });
        most.max().unwrap()
    };
    for len in [64, 1000] {
        assert!(commits(100, len, &mut rng) <= MAX_SHOWN, "values of {len} bytes");
    }
    let few = commits(50, 4096, &mut rng);
    assert!((MAX_SHOWN..=BEHIND + MAX_SHOWN).contains(&few), "{few} bytes can be written");
    let many = commits(3000, 4096, &mut rng);
    assert!((BEHIND / 2..=BEHIND + MAX_SHOWN).contains(&many), "{many} bytes can be written");
    commits(50, 64, &mut rng);
    assert!(shown(&path) <= MAX_SHOWN, "{} bytes can be written behind small values", shown(&path));
    commits(3000, 4096, &mut rng);
    assert!(shown(&path) > MAX_SHOWN);
    engine.wait(u64::MAX, Durability::Node).unwrap();
    assert_eq!(shown(&path), 0, "it is there after a sync");
}

/// Random commits of all sizes, with and without syncs, against a plain map; then what a new opening finds.
#[test]
fn what_is_stored_through_it_is_what_is_recovered() {
    let mut rng = Rng(11);
    let dir = tempfile::tempdir().unwrap();
    let mut model = Objects::new();
    for _ in 0..4 {
        let engine = open(dir.path());
        for _ in 0..6000 {
            let key = format!("key {}", rng.below(400)).into_bytes();
            let len = if rng.below(50) == 0 { rng.below(100_000) } else { rng.below(6000) };
            let value = rng.bytes(len);
            let seq = put(&engine, &key, &value).unwrap();
            model.insert(key, (0, value));
            match rng.below(400) {
                0 => engine.wait(seq, Durability::Node).unwrap(),
                1..100 => engine.prepare(64 << 10),
                100..130 => drop(engine.compact_step(64 << 10).unwrap()),
                _ => {}
            }
        }
        assert_eq!(contents(&engine.snapshot()).unwrap(), model);
        drop(engine);
    }
    assert_eq!(contents(&open(dir.path()).snapshot()).unwrap(), model);
}

/// What a window gets in place of the file of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// The file.
    Whole,
    /// One that cannot be mapped for writing.
    ReadOnly,
    /// One without bytes: to populate its pages fails as it does on a disk that fails, where a store would be a signal.
    Empty,
}

/// Segments of a directory, seen through windows as the test says, on a disk that can fail to write.
#[derive(Debug, Clone)]
struct Odd {
    directory: Arc<Directory>,
    view: Arc<Mutex<View>>,
    fails: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct OddSegment {
    whole: Arc<dyn Segment>,
    read_only: File,
    empty: File,
    storage: Odd,
}

impl Segment for OddSegment {
    fn id(&self) -> u64 {
        self.whole.id()
    }
    fn capacity(&self) -> u64 {
        self.whole.capacity()
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.storage.writes.fetch_add(1, Ordering::Relaxed);
        if self.storage.fails.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.whole.write_at(bytes, offset)
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.whole.read_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.whole.sync()
    }
    fn map(&self) -> io::Result<Map> {
        self.whole.map()
    }
    fn writable_file(&self) -> Option<BorrowedFd<'_>> {
        match *self.storage.view.lock().unwrap() {
            View::Whole => self.whole.writable_file(),
            View::ReadOnly => Some(self.read_only.as_fd()),
            View::Empty => Some(self.empty.as_fd()),
        }
    }
}

impl Odd {
    fn open(dir: &Path, view: View) -> (Engine, Odd) {
        let directory = Arc::new(Directory::open(dir).unwrap());
        let view = Arc::new(Mutex::new(view));
        let odd = Odd { directory, view, fails: Arc::default(), writes: Arc::default() };
        (Engine::open(Arc::new(odd.clone()), options(1 << 20)).unwrap().0, odd)
    }

    fn show(&self, view: View) {
        *self.view.lock().unwrap() = view;
    }

    fn around(&self, whole: Arc<dyn Segment>) -> io::Result<Arc<dyn Segment>> {
        let read_only = File::open(self.directory.file(whole.id()))?;
        Ok(Arc::new(OddSegment { whole, read_only, empty: tempfile::tempfile()?, storage: self.clone() }))
    }
}

impl Storage for Odd {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        self.directory.segments()?.into_iter().map(|segment| self.around(segment)).collect()
    }
    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        self.directory.take_spare(min_bytes)?.map(|segment| self.around(segment)).transpose()
    }
    fn request_spare(&self, wanted_bytes: u64) {
        self.directory.request_spare(wanted_bytes);
    }
    fn retire(&self, id: u64) {
        self.directory.retire(id);
    }
}

#[test]
fn where_it_cannot_be_had_commits_are_written_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = Odd::open(dir.path(), View::ReadOnly);
    for n in 0..3000_u64 {
        put(&engine, &n.to_le_bytes(), &[7; 64]).unwrap();
        engine.prepare(1 << 20);
    }
    drop(engine);
    assert_eq!(open(dir.path()).summary().keys, 3000);
}

/// Small commits take no system call each, also behind large ones, which are written plainly.
#[test]
fn it_is_in_use_between_large_records_too() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, disk) = Odd::open(dir.path(), View::Whole);
    for n in 0..4000_u64 {
        put(&engine, &n.to_le_bytes(), if n % 400 == 0 { &[7; 100_000] } else { &[7; 64] }).unwrap();
    }
    let writes = disk.writes.load(Ordering::Relaxed);
    assert!(writes < 400, "{writes} writes for 4000 commits");
}

const DIR: &str = "DENIZEN_TEST_FAILING_DIR";

/// The disk fails while pages are made ready, with the window in use: commits are written plainly, and say what is wrong once that fails,
/// too.
#[test]
#[ignore = "run by the other test in a process of its own, which a signal would end"]
fn child() {
    let Some(path) = std::env::var_os(DIR) else { return };
    let path = Path::new(&path);
    for prepares in [false, true] {
        let (engine, disk) = Odd::open(path, View::Whole);
        let commit = |n: u64| {
            if prepares {
                engine.prepare(1 << 20);
            }
            put(&engine, &n.to_le_bytes(), &[7; 64])
        };
        let commits =
            |mut numbers: std::ops::Range<u64>| numbers.try_for_each(|n| commit(n).map(drop)).unwrap();
        commits(0..2000);
        assert_ne!(windows(path, &maps()), [0; 0], "it is not in use");
        disk.show(View::Empty);
        commits(2000..6000);
        assert_eq!(windows(path, &maps()), [0; 0], "it is in use on a disk that fails");
        disk.show(View::Whole);
        commits(6000..8000);
        assert_ne!(windows(path, &maps()), [0; 0], "it is not tried again");
        disk.show(View::Empty);
        disk.fails.store(true, Ordering::Relaxed);
        let failed = (8000..16_000).find_map(|n| Some((n, commit(n).err()?)));
        let Some((acknowledged, StateError::Io { op: Operation::Write, .. })) = failed else {
            panic!("{failed:?}");
        };
        assert!(matches!(commit(0), Err(StateError::Poisoned { .. })));
        drop(engine);
        assert_eq!(open(path).summary().keys, acknowledged);
        std::fs::read_dir(path).unwrap().for_each(|file| std::fs::remove_file(file.unwrap().path()).unwrap());
    }
}

#[test]
fn a_disk_that_fails_while_pages_are_made_ready_is_an_error_and_never_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(DIR, std::fs::canonicalize(dir.path()).unwrap())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
