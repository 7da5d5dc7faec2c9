//! The window that commits are stored through while nobody syncs: what it shows, when it goes, and that nothing depends on it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use common::{LINEAGE, Objects, Rng, contents};
use denizen_engine::storage::{Directory, Map, Segment, Storage};
use denizen_engine::{Access, Durability, Engine, Options, StateError};

const MAX_SHOWN: usize = 3 * (128 << 10);
const GUARD: usize = 64 << 20;

fn options() -> Options {
    let mut options = Options::new(LINEAGE, 256 << 20);
    options.segments.min_bytes = 1 << 20;
    options
}

fn open(dir: &Path) -> Engine {
    Engine::open(Arc::new(Directory::open(dir).unwrap()), options()).unwrap().0
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

/// Segments of a directory whose file for the window is one that cannot be mapped for writing.
#[derive(Debug)]
struct Unmappable(Directory);

#[derive(Debug)]
struct Closed(Arc<dyn Segment>, std::fs::File);

impl Segment for Closed {
    fn id(&self) -> u64 {
        self.0.id()
    }
    fn capacity(&self) -> u64 {
        self.0.capacity()
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn map(&self) -> io::Result<Map> {
        self.0.map()
    }
    fn writable_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.1.as_fd())
    }
}

impl Unmappable {
    fn close(&self, segment: Arc<dyn Segment>) -> io::Result<Arc<dyn Segment>> {
        let file = std::fs::File::open(self.0.file(segment.id()))?;
        Ok(Arc::new(Closed(segment, file)))
    }
}

impl Storage for Unmappable {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        self.0.segments()?.into_iter().map(|segment| self.close(segment)).collect()
    }
    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        self.0.take_spare(min_bytes)?.map(|segment| self.close(segment)).transpose()
    }
    fn request_spare(&self, wanted_bytes: u64) {
        self.0.request_spare(wanted_bytes);
    }
    fn retire(&self, id: u64) {
        self.0.retire(id);
    }
}

#[test]
fn where_it_cannot_be_had_commits_are_written_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Unmappable(Directory::open(dir.path()).unwrap());
    let engine = Engine::open(Arc::new(storage), options()).unwrap().0;
    for n in 0..3000_u64 {
        put(&engine, &n.to_le_bytes(), &[7; 64]).unwrap();
        engine.prepare(1 << 20);
    }
    drop(engine);
    assert_eq!(open(dir.path()).summary().keys, 3000);
}
