//! Remembered replies: they outlive everything that the log goes through, and go in bounded steps once they have expired.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::sim::{Crash, Sim, crash};
use common::{LINEAGE, Rng, open, options};
use denizen_engine::offline::{CopyOptions, Damaged, Edit, EditOptions, Offline};
use denizen_engine::{Access, Compaction, Durability, Engine, Reply, SegmentSizes, StateError};

const NOW_MS: u64 = 1_700_000_000_000;

fn remember(engine: &Engine, key: &str, expires_ms: u64, reply: &[u8]) -> u64 {
    let mut tx = engine.begin(Access::Concurrent);
    tx.remember_reply(key.as_bytes(), Reply { expires_ms, reply }).unwrap();
    tx.commit().unwrap()
}

fn assert_remembered(engine: &Engine, key: &str, commit: u64, reply: &[u8]) {
    let snapshot = engine.snapshot();
    let found = snapshot.remembered(key.as_bytes()).unwrap().unwrap_or_else(|| panic!("{key} is forgotten"));
    assert_eq!((found.commit, found.reply.reply), (commit, reply), "{key}");
}

#[test]
fn a_reply_keeps_its_commit_and_bytes_through_compaction_recovery_and_copies() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut kept = Vec::new();
    let mut rng = Rng(7);
    for round in 0..400_u32 {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"churn", &rng.bytes(2000)).unwrap();
        let (key, reply) = (format!("order-{round}"), rng.bytes(round as usize % 90));
        tx.remember_reply(key.as_bytes(), Reply { expires_ms: NOW_MS + 1, reply: &reply }).unwrap();
        kept.push((key, tx.commit().unwrap(), reply));
    }
    let mut retired = 0;
    loop {
        match engine.compact_step(64 << 10).unwrap() {
            Compaction::NotDue => break,
            Compaction::Retired(_) => retired += 1,
            Compaction::Copied(_) => {}
        }
    }
    assert!(retired > 3, "nothing was compacted: {retired}");
    let all = |engine: &Engine| {
        for (key, commit, reply) in &kept {
            assert_remembered(engine, key, *commit, reply);
        }
        assert_eq!(engine.snapshot().replies().unwrap().len(), kept.len());
        assert_eq!(
            engine.replies_bytes(),
            kept.iter().map(|(key, _, reply)| Engine::reply_cost(key.len(), reply.len())).sum::<u64>(),
        );
    };
    all(&engine);
    engine.wait(u64::MAX, Durability::Node).unwrap();
    drop(engine);
    all(&open(&sim).unwrap().0);

    // What a swap and a change at rest do.
    let offline = Offline::read(&sim.handles(), Some(LINEAGE)).unwrap();
    let copy = CopyOptions { lineage: LINEAGE, segments: SegmentSizes::default(), damaged: Damaged::Refuse };
    let (swapped, edited) = (Sim::new(), Sim::new());
    offline.copy_to(&swapped, &copy, |_, _| {}).unwrap();
    all(&open(&swapped).unwrap().0);
    let edit = EditOptions { copy, quota_bytes: 8 << 20, time_ms: NOW_MS };
    let put = [Edit { key: b"other".to_vec(), change: Some((0, b"v".to_vec())) }];
    offline.edit_to(&edited, &edit, &put, |_, _| {}).unwrap();
    all(&open(&edited).unwrap().0);
}

#[test]
fn a_crash_keeps_a_reply_exactly_with_what_was_written_beside_it() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    for number in 1..=60_u64 {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"count", &number.to_le_bytes()).unwrap();
        let key = number.to_le_bytes();
        tx.remember_reply(&key, Reply { expires_ms: NOW_MS + 1, reply: &key }).unwrap();
        tx.commit().unwrap();
        if number % 7 == 0 {
            engine.wait(u64::MAX, Durability::Node).unwrap();
        }
    }
    drop(engine);
    let journal = sim.journal();
    let mut rng = Rng(11);
    let mut opened = 0;
    for _ in 0..150 {
        let at = rng.below(journal.len() + 1);
        let how = [Crash::Process, Crash::Sectors, Crash::Pages][rng.below(3)];
        let images = crash(&BTreeMap::new(), &journal[..at], how, &mut rng);
        let Ok((engine, _)) = open(&Sim::from_images(&images)) else { continue };
        opened += 1;
        let snapshot = engine.snapshot();
        let count = snapshot.get(b"count").unwrap();
        let count = count.map_or(0, |value| u64::from_le_bytes(value.bytes.try_into().unwrap()));
        for number in 1..=60_u64 {
            let known = snapshot.remembered(&number.to_le_bytes()).unwrap().is_some();
            assert_eq!(known, number <= count, "reply {number}, count {count}");
        }
    }
    assert!(opened > 100, "{opened} of 150 were whole enough to look at");
}

static CLOCK_MS: AtomicU64 = AtomicU64::new(NOW_MS);

#[test]
fn expired_replies_go_in_steps_and_no_others() {
    let sim = Sim::new();
    let mut options = options();
    options.clock = || CLOCK_MS.load(Relaxed);
    let (engine, _) = Engine::open(Arc::new(sim), options).unwrap();
    for number in 0..100_u32 {
        // Odd ones expire at once, even ones later.
        remember(&engine, &format!("{number:03}"), NOW_MS + u64::from(number % 2 == 0) * 10, b"r");
    }
    let before = engine.snapshot();
    let mut after = Vec::new();
    let first = engine.expired_replies(&mut after, 10);
    let keys: Vec<&[u8]> = first.iter().map(|(key, _)| &**key).collect();
    assert_eq!(keys, [b"001", b"003", b"005", b"007", b"009"]);
    assert_eq!(after, b"009");
    assert_eq!(engine.snapshot().reply_expires_ms(b"000"), Some(NOW_MS + 10));
    // One of them was remembered anew meanwhile.
    let anew = remember(&engine, "003", NOW_MS + 10, b"new");
    let live = engine.replies_bytes();
    assert_eq!(engine.forget_replies(&first).unwrap(), 4);
    assert_eq!(engine.replies_bytes(), live - 4 * Engine::reply_cost(3, 1));
    assert_remembered(&engine, "003", anew, b"new");
    assert_eq!(engine.forget_replies(&first).unwrap(), 0, "twice");
    while !after.is_empty() {
        engine.forget_replies(&engine.expired_replies(&mut after, 10)).unwrap();
    }
    assert_eq!(engine.snapshot().replies().unwrap().len(), 51);
    CLOCK_MS.store(NOW_MS + 10, Relaxed);
    assert_eq!(engine.expired_replies(&mut after, 1000).len(), 51);
    assert!(after.is_empty());
    assert_eq!(before.replies().unwrap().len(), 100, "a reader lost what it saw");
}

#[test]
fn what_is_forgotten_under_a_transaction_is_its_conflict_only_if_it_wrote_there() {
    let (engine, _) = open(&Sim::new()).unwrap();
    let old = remember(&engine, "old", 1, b"r");
    let mut other = engine.begin(Access::Concurrent);
    other.remember_reply(b"other", Reply { expires_ms: NOW_MS + 1, reply: b"x" }).unwrap();
    let mut same = engine.begin(Access::Concurrent);
    same.remember_reply(b"old", Reply { expires_ms: NOW_MS + 1, reply: b"x" }).unwrap();
    assert_eq!(engine.forget_replies(&[(b"old".as_slice().into(), old)]).unwrap(), 1);
    other.commit().unwrap();
    assert!(matches!(same.commit(), Err(StateError::Conflict { .. })));
}
