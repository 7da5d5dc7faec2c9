//! Values that are written over dead ones while nobody syncs: that it happens, and that nobody who may still need a value loses it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::sim::Sim;
use common::{LINEAGE, Objects, Rng, contents};
use denizen_engine::offline::{CopyOptions, Damaged, Offline};
use denizen_engine::storage::Directory;
use denizen_engine::{Access, Compaction, Durability, Engine, Options, Salvage, SegmentSizes};

const LEN: usize = 4096;

fn options(min_bytes: u64) -> Options {
    let mut options = Options::new(LINEAGE, 256 << 20);
    options.segments.min_bytes = min_bytes;
    options.clock = || 1_700_000_000_000;
    options
}

fn open(dir: &Path) -> Engine {
    Engine::open(Arc::new(Directory::open(dir).unwrap()), options(1 << 20)).unwrap().0
}

fn put(engine: &Engine, model: &mut Objects, key: u8, value: Vec<u8>) -> u64 {
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(&[key], &value).unwrap();
    model.insert(vec![key], (0, value));
    tx.commit().unwrap()
}

/// Bytes of records and values in a log at rest.
fn used(dir: &Path) -> u64 {
    let segments = denizen_engine::offline::segments_of(&Directory::open(dir).unwrap()).unwrap();
    let inspection = Offline::read(&segments, Some(LINEAGE)).unwrap().inspect();
    inspection.segments.iter().map(|segment| segment.records.1 - segment.records.0).sum()
}

#[test]
fn dead_values_are_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(1);
    let mut model = Objects::new();
    let engine = open(dir.path());
    for n in 0..1500_usize {
        // What is a little shorter fits, too.
        let value = rng.bytes(LEN - n % 100);
        put(&engine, &mut model, rng.below(10) as u8, value);
    }
    assert_eq!(contents(&engine.snapshot()).unwrap(), model);
    drop(engine);
    let bytes = used(dir.path());
    assert!(bytes < 1500 * 192 + 100 * 4224, "{bytes} bytes for 1500 commits under 10 keys");
    assert_eq!(contents(&open(dir.path()).snapshot()).unwrap(), model);
}

#[test]
fn a_log_that_is_synced_writes_nothing_over() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rng, mut model) = (Rng(2), Objects::new());
    let engine = open(dir.path());
    for _ in 0..300 {
        let seq = put(&engine, &mut model, rng.below(10) as u8, rng.clone().bytes(LEN));
        engine.wait(seq, Durability::Node).unwrap();
    }
    drop(engine);
    assert!(used(dir.path()) >= 300 * 4224);
}

/// A transaction sees what it began with, and whoever holds it keeps everything that it could have seen, whatever it commits itself.
#[test]
fn whoever_reads_keeps_what_he_sees() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rng, mut model) = (Rng(3), Objects::new());
    let engine = open(dir.path());
    for key in 0..10 {
        put(&engine, &mut model, key, rng.bytes(LEN));
    }
    for n in 0..200 {
        put(&engine, &mut model, n % 10, rng.bytes(LEN));
    }
    let (snapshot, seen) = (engine.snapshot(), model.clone());
    let mut open_one = engine.begin(Access::Concurrent);
    let addresses: Vec<usize> =
        (0..10).map(|key| open_one.get(&[key]).unwrap().unwrap().bytes.as_ptr().addr()).collect();
    drop(snapshot);
    let mut reached = Vec::new();
    for round in 0..4 {
        // It goes over to other states, and has pointers into the first.
        open_one.put_bytes(b"other", &[round]).unwrap();
        open_one.commit().unwrap();
        model.insert(b"other".to_vec(), (0, vec![round]));
        for n in 0..50 {
            put(&engine, &mut model, n % 10, rng.bytes(LEN));
            reached.push(engine.snapshot().get(&[n % 10]).unwrap().unwrap().bytes.as_ptr().addr());
        }
    }
    assert!(
        reached.iter().all(|at| !addresses.contains(at)),
        "what the transaction handed out was written over"
    );
    drop(open_one);
    let held = engine.snapshot();
    let now = model.clone();
    for n in 0..200 {
        put(&engine, &mut model, n % 10, rng.bytes(LEN));
    }
    assert_eq!(contents(&held).unwrap(), now, "a snapshot has changed");
    assert_ne!(seen, now);
}

/// The places of one key are used again and again, by itself too: what is moved is the value that is live, and no other.
#[test]
fn compaction_moves_what_is_live_and_nothing_that_lay_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rng, mut model) = (Rng(4), Objects::new());
    let mut options = options(1 << 20);
    options.segments.max_bytes = 1 << 20;
    let (engine, _) = Engine::open(Arc::new(Directory::open(dir.path()).unwrap()), options).unwrap();
    // Written over and over, and then left alone while other segments fill up.
    for (puts, keys) in [(200, 3), (200, 1)] {
        for n in 0..puts {
            put(&engine, &mut model, n % keys, rng.bytes(LEN));
        }
    }
    let segments = || denizen_engine::offline::segments_of(&Directory::open(dir.path()).unwrap()).unwrap();
    let first = segments()[0].id();
    assert_eq!(engine.summary().segments, 1);
    while engine.summary().segments == 1 {
        put(&engine, &mut model, 50, rng.bytes(900));
    }
    let mut retired = Vec::new();
    for n in 0..6000_u32 {
        // Each later segment keeps more that is live than the first one does.
        let key = if n % 40 == 0 { 100 + (n / 40) as u8 } else { 50 };
        put(&engine, &mut model, key, rng.bytes(900));
        loop {
            match engine.compact_step(8 << 10).unwrap() {
                Compaction::Copied(_) => {}
                Compaction::Retired(id) => retired.push(id),
                Compaction::NotDue => break,
            }
        }
    }
    assert!(retired.contains(&first), "{first} is not among those that went: {retired:?}");
    assert_eq!(contents(&engine.snapshot()).unwrap(), model);
    drop(engine);
    assert_eq!(contents(&open(dir.path()).snapshot()).unwrap(), model);
}

static NOW: AtomicU64 = AtomicU64::new(1_700_000_000_000);

/// The disk after a loss of power: `then` up to where `before` ends, and nothing behind it.
fn without_tail(before: &BTreeMap<u64, Vec<u8>>, then: &BTreeMap<u64, Vec<u8>>) -> BTreeMap<u64, Vec<u8>> {
    let cut = |(id, bytes): (&u64, &Vec<u8>)| {
        let end = before.get(id)?.iter().rposition(|byte| *byte != 0)? + 1;
        let mut bytes = bytes.clone();
        bytes[end..].fill(0);
        Some((*id, bytes))
    };
    then.iter().filter_map(cut).collect()
}

/// Whatever is written over later, the log can go back to where a sync began, and to about every second without one.
#[test]
fn a_loss_of_power_goes_back_to_a_sync_or_a_second() {
    let sim = Sim::new();
    sim.allow_windows();
    let mut options = options(0);
    options.segments = SegmentSizes { min_bytes: 2 << 20, max_bytes: 2 << 20 };
    options.clock = || NOW.load(Ordering::Relaxed);
    let (engine, _) = Engine::open(Arc::new(sim.clone()), options.clone()).unwrap();
    let (mut rng, mut model) = (Rng(5), Objects::new());
    let mut some = |model: &mut Objects| (0..60).fold(0, |_, n| put(&engine, model, n % 5, rng.bytes(1024)));
    let mut points = Vec::new();
    for synced in [true, false, false, true, false] {
        let seq = some(&mut model);
        if synced {
            engine.wait(seq, Durability::Node).unwrap();
        } else {
            NOW.fetch_add(1000, Ordering::Relaxed);
        }
        points.push((seq, sim.images(), model.clone()));
    }
    some(&mut model);
    assert_eq!(engine.summary().segments, 1);
    let (then, last) = (sim.images(), engine.summary().commit);
    let mut back = 0;
    for (seq, before, objects) in &points {
        let left = Sim::from_images(&without_tail(before, &then));
        let (engine, recovery) = Engine::open(Arc::new(left.clone()), options.clone()).unwrap();
        assert_eq!((recovery.commit, recovery.damaged), (*seq, Vec::new()));
        assert_eq!(contents(&engine.snapshot()).unwrap(), *objects);
    }
    // And if the last value of all is gone, it does not go back farther than it must.
    for (key, (_, value)) in &model {
        let mut images = then.clone();
        let image = images.values_mut().next().unwrap();
        let at = image.windows(value.len()).position(|bytes| bytes == value).unwrap();
        image[at + 7] ^= 1;
        let left = Sim::from_images(&images);
        let salvage = Salvage::open(&left.handles(), LINEAGE, 0).unwrap();
        let (engine, recovery) = Engine::open(Arc::new(left.clone()), options.clone()).unwrap();
        assert!(recovery.torn && recovery.commit < last && recovery.commit >= points[4].0, "{recovery:?}");
        let found = contents(&engine.snapshot()).unwrap();
        assert!(found.contains_key(key) && found != model);
        for (key, (_, value)) in &found {
            assert_eq!(salvage.get(key).unwrap().as_ref(), Some(value), "salvage says something else");
        }
        back += 1;
    }
    assert_eq!(back, 5);
}

/// What is done with a log at rest sees the same.
#[test]
fn a_copy_holds_what_is_live() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rng, mut model) = (Rng(6), Objects::new());
    let engine = open(dir.path());
    for n in 0..500_u32 {
        put(&engine, &mut model, n as u8 % 7, rng.bytes(LEN));
    }
    engine.seal().unwrap();
    drop(engine);
    let source = Directory::open(dir.path()).unwrap();
    let segments = denizen_engine::offline::segments_of(&source).unwrap();
    let target = Sim::new();
    let options =
        CopyOptions { lineage: LINEAGE, segments: SegmentSizes::default(), damaged: Damaged::Refuse };
    let copied = Offline::read(&segments, None).unwrap().copy_to(&target, &options, |_, _| {}).unwrap();
    assert_eq!((copied.keys, copied.left_out), (7, Vec::new()));
    assert_eq!(contents(&common::open(&target).unwrap().0.snapshot()).unwrap(), model);
}
