//! What reaches the disk. A commit of 64 bytes that is synced must write about one page: a tail whose page cache came as one large folio
//! (written, or read ahead, at once) writes 1 to 2 MiB for each.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::LINEAGE;
use denizen_engine::storage::Directory;
use denizen_engine::{Access, Durability, Engine, Options};

/// Bytes of pages that this thread made dirty; the kernel counts whole folios.
fn dirtied_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.trim().parse().unwrap()
}

/// Bytes that reached the block device below `path` so far, from all programs; `None` where that cannot be known.
fn device_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(path).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    Some(text.split_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
}

/// A directory on a disk, and the right to write there: one test at a time, because they count what the disk writes. `/tmp` may be
/// memory.
fn on_disk() -> Option<(tempfile::TempDir, MutexGuard<'static, ()>)> {
    static ONE: Mutex<()> = Mutex::new(());
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir_in("/var/tmp").ok()?;
    if dirtied_bytes() == 0 && device_bytes(dir.path()).is_none() { None } else { Some((dir, turn)) }
}

fn engine_in(dir: &Path) -> Engine {
    let mut options = Options::new(LINEAGE, 256 << 20);
    options.segments.min_bytes = 16 << 20;
    Engine::open(Arc::new(Directory::open(dir).unwrap()), options).unwrap().0
}

fn commit(engine: &Engine, key: &[u8], value: &[u8]) {
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(key, value).unwrap();
    let seq = tx.commit().unwrap();
    drop(tx);
    engine.wait(seq, Durability::Node).unwrap();
}

fn bytes_per_commit(engine: &Engine, dir: &Path) -> (u64, Option<u64>) {
    let (before, device) = (dirtied_bytes(), device_bytes(dir));
    for n in 0..200_u64 {
        commit(engine, &n.to_le_bytes(), &[7; 64]);
    }
    let device = device_bytes(dir).zip(device).map(|(after, before)| (after - before) / 200);
    ((dirtied_bytes() - before) / 200, device)
}

#[test]
fn a_small_synced_commit_writes_about_a_page() {
    let Some((dir, _turn)) = on_disk() else {
        eprintln!("SKIPPED a_small_synced_commit_writes_about_a_page: /var/tmp is not on a disk that counts");
        return;
    };
    let engine = engine_in(dir.path());
    commit(&engine, b"first", b"");
    let check = |what: &str| {
        let (dirtied, device) = bytes_per_commit(&engine, dir.path());
        println!(
            "{what}: {dirtied} bytes dirtied per commit, {device:?} written by the device (with its journal, and by others)"
        );
        assert!(dirtied <= 5000, "{what}: {dirtied} bytes per commit of 64");
    };
    check("after small commits");
    commit(&engine, b"large", &vec![1; 3 << 20]);
    check("after a large one");
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.get(b"large").unwrap().unwrap().bytes[1 << 20], 1);
    check("after reading it through the map");
    drop((snapshot, engine));
    let engine = engine_in(dir.path());
    assert_eq!(engine.snapshot().get(b"large").unwrap().unwrap().bytes[5], 1);
    commit(&engine, b"first", b"");
    let (dirtied, _) = bytes_per_commit(&engine, dir.path());
    assert!(dirtied <= 5000, "after reopening: {dirtied} bytes per commit of 64");
}

/// What `step` makes the device write. Others write, too, so this is the least of several times.
fn least_device_bytes(dir: &Path, mut step: impl FnMut()) -> u64 {
    let mut once = || {
        let before = device_bytes(dir).unwrap();
        step();
        device_bytes(dir).unwrap() - before
    };
    (0..30).map(|_| once()).min().unwrap()
}

/// Pages that are made ready ahead of commits that nobody syncs are written by the sync that comes after all: that must stay in
/// proportion, and end there. Counted is what the device writes: a page cache in large pieces is dirtied by the piece, but what is
/// written with plain writes reaches the disk by the block.
#[test]
fn pages_made_ready_at_most_double_what_a_sync_writes() {
    let Some((dir, _turn)) = on_disk().filter(|(dir, _)| device_bytes(dir.path()).is_some()) else {
        eprintln!(
            "SKIPPED pages_made_ready_at_most_double_what_a_sync_writes: /var/tmp is not on a disk that counts"
        );
        return;
    };
    let engine = engine_in(dir.path());
    commit(&engine, b"first", b"");
    for (commits, len) in [(50_u64, 64_u64), (200, 64), (2000, 64), (50, 4096), (200, 4096), (2000, 4096)] {
        let value = vec![7; len as usize];
        let device = least_device_bytes(dir.path(), || {
            for n in 0..commits {
                let mut tx = engine.begin(Access::Exclusive);
                tx.put_bytes(&(n % 100).to_le_bytes(), &value).unwrap();
                tx.commit().unwrap();
                engine.prepare(1 << 20);
            }
            engine.wait(u64::MAX, Durability::Node).unwrap();
        });
        let written = commits * (128 + len);
        println!("{commits} commits of {len}, {written} bytes: {device} bytes written by the device");
        // Values that were written over dead ones reach the disk once, however often that was.
        let bound = if written > 2 << 20 { written * 3 / 4 } else { 2 * written + 16384 };
        assert!(device <= bound, "{device} bytes for {written}");
        let each = least_device_bytes(dir.path(), || {
            for n in 0..8_u64 {
                commit(&engine, &n.to_le_bytes(), &value);
            }
        }) / 8;
        // A whole piece would be 64 KiB.
        assert!(
            each <= 12_000 + len,
            "after a stretch without syncs: {each} bytes per synced commit of {len}"
        );
    }
}

#[test]
fn the_tenants_map_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine_in(dir.path());
    commit(&engine, b"k", b"value");
    let snapshot = engine.snapshot();
    let address = snapshot.get(b"k").unwrap().unwrap().bytes.as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        (usize::from_str_radix(from, 16).unwrap()..usize::from_str_radix(to, 16).unwrap()).contains(&address)
    });
    assert!(line.unwrap().contains(" r--s "), "{line:?}");
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let part = smaps.split(line.unwrap()).nth(1).unwrap();
    let flags = part.lines().find(|line| line.starts_with("VmFlags")).unwrap();
    assert!(!flags.contains(" mw "), "the map may be made writable: {flags}");
}
