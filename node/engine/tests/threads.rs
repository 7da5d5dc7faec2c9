//! Many threads at once, on real files: readers on snapshots, an exclusive writer, concurrent writers, a compactor, waiters.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{LINEAGE, Rng};
use denizen_engine::storage::Directory;
use denizen_engine::{Access, Durability, Engine, Options, SegmentSizes, StateError};

fn engine_in(dir: &std::path::Path) -> Engine {
    let mut options = Options::new(LINEAGE, 64 << 20);
    options.segments = SegmentSizes { min_bytes: 64 << 10, max_bytes: 256 << 10 };
    Engine::open(Arc::new(Directory::open(dir).unwrap()), options).unwrap().0
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Accounts whose sum never changes, moved between by concurrent transactions, summed up by readers.
#[test]
fn the_sum_of_all_accounts_never_changes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine_in(dir.path());
    let accounts = 20_u8;
    let mut tx = engine.begin(Access::Exclusive);
    (0..accounts).for_each(|n| tx.put_bytes(&[n], &100_u64.to_le_bytes()).unwrap());
    tx.commit().unwrap();
    drop(tx);
    let stop = AtomicBool::new(false);
    let (moved, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (engine, stop, moved, refused) = (&engine, &stop, &moved, &refused);
            scope.spawn(move || {
                let mut rng = Rng(seed);
                while moved.load(Ordering::Relaxed) < 6000 {
                    let access = [Access::Concurrent, Access::Concurrent, Access::Exclusive, Access::Sole]
                        [rng.below(4)];
                    let mut tx = engine.begin(access);
                    let (from, to) = ([rng.below(20) as u8], [rng.below(20) as u8]);
                    if from == to {
                        continue;
                    }
                    let have = number(tx.get(&from).unwrap().unwrap().bytes);
                    let amount = have.min(rng.below(30) as u64);
                    tx.put_bytes(&from, &(have - amount).to_le_bytes()).unwrap();
                    let other = number(tx.get(&to).unwrap().unwrap().bytes);
                    tx.put_bytes(&to, &(other + amount).to_le_bytes()).unwrap();
                    match tx.commit() {
                        Ok(seq) => {
                            if moved.fetch_add(1, Ordering::Relaxed) % 50 == 0 {
                                engine.wait(seq, Durability::Node).unwrap();
                            }
                        }
                        Err(StateError::Conflict { .. }) => {
                            assert_ne!(access, Access::Sole, "a sole transaction met a conflict");
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        let (engine, stop) = (&engine, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                engine.compact_step(4000).unwrap();
                std::thread::yield_now();
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let snapshot = engine.snapshot();
                let sum: u64 =
                    (0..accounts).map(|n| number(snapshot.get(&[n]).unwrap().unwrap().bytes)).sum();
                assert_eq!(sum, 2000, "a snapshot shows half a commit");
            }
        });
    });
    println!("{} moved, {} refused", moved.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    drop(engine);
    let engine = engine_in(dir.path());
    let snapshot = engine.snapshot();
    let sum: u64 = (0..accounts).map(|n| number(snapshot.get(&[n]).unwrap().unwrap().bytes)).sum();
    assert_eq!(sum, 2000);
}

/// A counter that concurrent transactions increment loses nothing.
#[test]
fn no_increment_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine_in(dir.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let mut tx = engine.begin(Access::Concurrent);
                    loop {
                        let value = tx.get_for_update(b"n").unwrap().map_or(0, |value| number(value.bytes));
                        tx.put_bytes(b"n", &(value + 1).to_le_bytes()).unwrap();
                        match tx.commit() {
                            Ok(seq) => break engine.wait(seq, Durability::Node).unwrap(),
                            Err(StateError::Conflict { .. }) => tx.abort(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(number(engine.snapshot().get(b"n").unwrap().unwrap().bytes), 1200);
}

/// An exclusive transaction that takes its time holds up other exclusive ones and nothing else.
#[test]
fn a_slow_exclusive_transaction_holds_up_only_its_like() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine_in(dir.path());
    let slow = engine.begin(Access::Exclusive);
    let mut tx = engine.begin(Access::Concurrent);
    tx.put_bytes(b"k", b"v").unwrap();
    let seq = tx.commit().unwrap();
    engine.wait(seq, Durability::Node).unwrap();
    assert_eq!(engine.snapshot().get(b"k").unwrap().unwrap().bytes, b"v");
    assert!(slow.get(b"k").unwrap().is_none(), "it looks at the state as it was when it began");
    let begun = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drop(engine.begin(Access::Exclusive));
            begun.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!begun.load(Ordering::SeqCst), "two exclusive transactions at once");
        drop(slow);
    });
    assert!(begun.load(Ordering::SeqCst));
}
