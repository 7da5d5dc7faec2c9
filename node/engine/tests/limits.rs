//! Limits, each met exactly and passed by one; many keys; a reader that stays for ever.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::sim::Sim;
use common::{LINEAGE, contents, open, options};
use denizen_engine::storage::Directory;
use denizen_engine::{Access, Engine, MAX_KEY_LEN, Options, StateError};

#[test]
fn keys_have_1_to_1024_bytes() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    assert!(matches!(tx.put_bytes(b"", b"v"), Err(StateError::KeyEmpty)));
    assert!(matches!(tx.delete(b""), Err(StateError::KeyEmpty)));
    let long = vec![b'k'; MAX_KEY_LEN + 1];
    assert!(matches!(tx.put_bytes(&long, b"v"), Err(StateError::KeyTooLong { len }) if len == 1025));
    assert!(matches!(tx.put_bytes(&vec![1; 64 << 10], b"v"), Err(StateError::KeyTooLong { .. })));
    assert!(tx.get(b"").unwrap().is_none() && tx.get(&long).unwrap().is_none());
    for n in 0..100_u8 {
        let mut key = long[..MAX_KEY_LEN].to_vec();
        key[MAX_KEY_LEN - 1] = n;
        tx.put_bytes(&key, &[n]).unwrap();
        tx.put_bytes(&[n], b"").unwrap();
    }
    tx.commit().unwrap();
    let before = contents(&engine.snapshot()).unwrap();
    assert_eq!(before.len(), 200);
    drop((tx, engine));
    assert_eq!(contents(&open(&sim).unwrap().0.snapshot()).unwrap(), before);
}

#[test]
fn the_quota_is_checked_before_anything_is_kept() {
    let sim = Sim::new();
    let mut tight = options();
    tight.quota_bytes = 64 + 1024;
    let (engine, _) = Engine::open(Arc::new(sim.clone()), tight).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    let written = sim.counts().0;
    let over = tx.put_bytes(b"k", &[0; 1025]).unwrap_err();
    assert!(matches!(over, StateError::QuotaExceeded { needed: 1104, quota: 1088, used: 0 }), "{over:?}");
    assert_eq!(sim.counts().0, written);
    // What a commit left behind and nobody points to is no burden; what somebody does point to is one until the transaction ends.
    for _ in 0..5 {
        tx.put_bytes(b"k", &[0; 1024]).unwrap();
        tx.commit().unwrap();
    }
    tx.put_bytes(b"k", &[0; 1024]).unwrap();
    assert_eq!(tx.get(b"k").unwrap().unwrap().bytes.len(), 1024);
    tx.commit().unwrap();
    assert_eq!(engine.summary().live_bytes, 1088);
    assert!(matches!(tx.put_bytes(b"l", b""), Err(StateError::QuotaExceeded { .. })));
    // What is pinned by one transaction counts too.
    assert!(matches!(tx.put_bytes(b"k", &[1; 100]), Err(StateError::QuotaExceeded { .. })));
    drop(tx);
    let mut tx = engine.begin(Access::Exclusive);
    tx.delete(b"k").unwrap();
    tx.put_bytes(b"l", &[2; 1024]).unwrap();
    tx.commit().unwrap();
}

#[test]
fn two_that_fit_alone_but_not_together() {
    let sim = Sim::new();
    let mut tight = options();
    tight.quota_bytes = 2000;
    let (engine, _) = Engine::open(Arc::new(sim), tight).unwrap();
    let (mut one, mut two) = (engine.begin(Access::Concurrent), engine.begin(Access::Concurrent));
    one.put_bytes(b"a", &[1; 1024]).unwrap();
    two.put_bytes(b"b", &[2; 1024]).unwrap();
    one.commit().unwrap();
    assert!(matches!(two.commit(), Err(StateError::QuotaExceeded { .. })));
    assert_eq!(contents(&engine.snapshot()).unwrap().len(), 1);
}

#[test]
fn a_value_larger_than_any_segment_gets_one_of_its_size() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    tx.put_bytes(b"small", b"1").unwrap();
    tx.put_bytes(b"large", &large).unwrap();
    tx.put_bytes(b"zero", b"").unwrap();
    tx.commit().unwrap();
    drop((tx, engine));
    let (engine, _) = open(&sim).unwrap();
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.get(b"large").unwrap().unwrap().bytes, large);
    assert_eq!(snapshot.get_range(b"large", 999_990, 20).unwrap().unwrap(), &large[999_990..]);
    assert_eq!(snapshot.get_range(b"large", u64::MAX, u64::MAX).unwrap().unwrap(), b"");
    assert_eq!(snapshot.get(b"zero").unwrap().unwrap().bytes, b"");
}

#[test]
#[ignore = "writes 5 GiB: for a machine that has them"]
fn a_value_beyond_4_gib() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let storage = || Arc::new(Directory::open(dir.path()).unwrap());
    let (engine, _) = Engine::open(storage(), Options::new(LINEAGE, 8 << 30)).unwrap();
    let len = (4_u64 << 30) + 5;
    let mut value = vec![3_u8; len as usize];
    value[len as usize - 1] = 9;
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"huge", &value).unwrap();
    drop(value);
    tx.commit().unwrap();
    drop((tx, engine));
    let (engine, _) = Engine::open(storage(), Options::new(LINEAGE, 8 << 30)).unwrap();
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.info(b"huge").unwrap().len, len);
    assert_eq!(snapshot.get_range(b"huge", len - 2, 9).unwrap().unwrap(), [3, 9]);
}

#[test]
fn a_million_keys() {
    let count = if cfg!(debug_assertions) { 100_000 } else { 1_000_000_u32 };
    let dir = tempfile::tempdir().unwrap();
    let storage = || Arc::new(Directory::open(dir.path()).unwrap());
    let (engine, _) = Engine::open(storage(), Options::new(LINEAGE, 1 << 30)).unwrap();
    let key = |n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes();
    let mut tx = engine.begin(Access::Exclusive);
    for n in 0..count {
        tx.put_bytes(&key(n), &n.to_le_bytes()).unwrap();
    }
    tx.commit().unwrap();
    drop((tx, engine));
    let (engine, _) = Engine::open(storage(), Options::new(LINEAGE, 1 << 30)).unwrap();
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.len(), u64::from(count));
    for n in (0..count).step_by(7) {
        assert_eq!(snapshot.get(&key(n)).unwrap().unwrap().bytes, n.to_le_bytes());
    }
    let mut last = None;
    let mut seen = 0;
    snapshot.keys(b"", None, |key, _| {
        assert!(last.replace(key.to_vec()) < Some(key.to_vec()));
        seen += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(seen, count);
    // Deleting all but a few leaves a small index.
    drop(snapshot);
    let mut tx = engine.begin(Access::Exclusive);
    for n in 10..count {
        assert!(tx.delete(&key(n)).unwrap());
    }
    tx.commit().unwrap();
    drop(tx);
    let summary = engine.summary();
    assert!(summary.keys == 10 && summary.index_bytes < 100_000, "{summary:?}");
}

#[test]
fn a_reader_that_stays_for_ever_pins_a_bounded_amount() {
    let sim = Sim::new();
    let mut tight = options();
    tight.quota_bytes = 300_000;
    let (engine, _) = Engine::open(Arc::new(sim), tight.clone()).unwrap();
    let put = |n: u32| {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(&(n % 10).to_le_bytes(), &vec![n as u8; 1000])?;
        tx.commit()
    };
    for n in 0..10 {
        put(n).unwrap();
    }
    // A new snapshot in every segment: together they pin all that was ever written.
    let mut held = Vec::new();
    let mut refused = None;
    for n in 0..5000 {
        held.push((n, engine.snapshot()));
        if let Err(error) = put(n) {
            refused = Some(error);
            break;
        }
        engine.compact_step(1 << 20).unwrap();
    }
    let Some(StateError::QuotaExceeded { needed, .. }) = refused else { panic!("never refused") };
    let free = 2 * tight.segments.max_bytes;
    assert!(needed > 300_000 && engine.summary().pinned_bytes == needed + free);
    let (number, oldest) = &held[20];
    assert_eq!(
        oldest.get(&((number - 1) % 10_u32).to_le_bytes()).unwrap().unwrap().bytes[0],
        (number - 1) as u8
    );
    // Once readers go, writing goes on.
    drop(held);
    assert_eq!(engine.summary().pinned_bytes, 0);
    put(1).unwrap();
}

#[test]
fn a_reader_that_pins_a_segment_of_the_size_of_the_quota_stops_no_writer() {
    let sim = Sim::new();
    let mut tight = options();
    tight.quota_bytes = tight.segments.min_bytes / 2;
    let (engine, _) = Engine::open(Arc::new(sim), tight.clone()).unwrap();
    let put = |n: u32| {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"key", &vec![n as u8; 1000])?;
        tx.commit()
    };
    put(0).unwrap();
    let reader = engine.snapshot();
    let mut n = 1;
    while engine.summary().pinned_bytes <= tight.quota_bytes {
        put(n).unwrap();
        engine.compact_step(1 << 20).unwrap();
        n += 1;
        assert!(n < 100_000, "nothing is pinned");
    }
    put(n).unwrap();
    assert_eq!(reader.get(b"key").unwrap().unwrap().bytes[0], 0);
}

#[test]
fn keys_that_come_and_go_leave_nothing_behind() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    // It fills a segment of its own, which is never worth compacting for what is dead in it.
    tx.put_bytes(b"stays", &[1; 30_000]).unwrap();
    tx.commit().unwrap();
    drop(tx);
    let mut most = 0;
    for n in 0..20_000_u32 {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(&n.to_be_bytes(), &[2; 20]).unwrap();
        if n > 5 {
            assert!(tx.delete(&(n - 5).to_be_bytes()).unwrap());
        }
        let seq = tx.commit().unwrap();
        drop(tx);
        engine.compact_step(16 << 10).unwrap();
        if n % 64 == 0 {
            engine.wait(seq, denizen_engine::Durability::Node).unwrap();
        }
        most = most.max(engine.summary().disk_bytes);
    }
    assert!(most < 600_000, "{most} bytes of log for 30 KiB of objects");
    let before = contents(&engine.snapshot()).unwrap();
    drop(engine);
    assert_eq!(contents(&open(&sim).unwrap().0.snapshot()).unwrap(), before);
}
