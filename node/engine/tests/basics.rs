//! The plain promises of the engine, one test each, on the disk in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::ops::ControlFlow;

use common::sim::Sim;
use common::{contents, open};
use denizen_engine::{Access, Consumption, Durability, Message, Reply, StateError, Timer};

#[test]
fn what_is_committed_is_there_after_reopening() {
    let sim = Sim::new();
    let (engine, recovery) = open(&sim).unwrap();
    assert_eq!(recovery.commit, 0);
    let mut tx = engine.begin(Access::Exclusive);
    tx.put(b"a", 7, b"one").unwrap();
    tx.put_bytes(b"b", &[9; 100_000]).unwrap();
    tx.put_bytes(b"empty", b"").unwrap();
    assert_eq!(tx.get(b"a").unwrap().unwrap().bytes, b"one");
    let seq = tx.commit().unwrap();
    assert!(!tx.delete(b"none").unwrap());
    tx.put_bytes(b"c", b"dropped").unwrap();
    drop(tx);
    engine.wait(seq, Durability::Node).unwrap();
    let before = contents(&engine.snapshot()).unwrap();
    assert_eq!(before.len(), 3);
    drop(engine);
    let (engine, recovery) = open(&sim).unwrap();
    assert_eq!((recovery.commit, recovery.torn), (seq, false));
    assert_eq!(contents(&engine.snapshot()).unwrap(), before);
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.get(b"a").unwrap().unwrap().fingerprint, 7);
    assert_eq!(snapshot.get_range(b"b", 99_990, 100).unwrap().unwrap().len(), 10);
    assert_eq!(snapshot.info(b"b").unwrap().len, 100_000);
}

#[test]
fn a_snapshot_does_not_change() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"a", b"1").unwrap();
    tx.commit().unwrap();
    let snapshot = engine.snapshot();
    tx.put_bytes(b"a", b"2").unwrap();
    tx.put_bytes(b"b", b"2").unwrap();
    tx.commit().unwrap();
    assert_eq!(snapshot.get(b"a").unwrap().unwrap().bytes, b"1");
    assert!(snapshot.get(b"b").unwrap().is_none());
    assert_eq!(engine.snapshot().get(b"a").unwrap().unwrap().bytes, b"2");
}

#[test]
fn the_first_to_commit_a_key_wins() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut one = engine.begin(Access::Concurrent);
    let mut two = engine.begin(Access::Concurrent);
    let mut three = engine.begin(Access::Concurrent);
    one.put_bytes(b"k", b"1").unwrap();
    two.put_bytes(b"k", b"2").unwrap();
    three.put_bytes(b"other", b"3").unwrap();
    assert!(three.get_for_update(b"k").unwrap().is_none());
    one.commit().unwrap();
    let StateError::Conflict { key } = two.commit().unwrap_err() else { panic!("no conflict") };
    assert_eq!(key.0, b"k");
    assert!(matches!(three.commit(), Err(StateError::Conflict { .. })), "read for update");
    assert_eq!(contents(&engine.snapshot()).unwrap().len(), 1);
    two.abort();
    two.put_bytes(b"k", b"2").unwrap();
    two.commit().unwrap();
}

#[test]
fn a_sole_transaction_holds_back_the_commits_of_others() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut sole = engine.begin(Access::Sole);
    let (looked, has_looked) = std::sync::mpsc::channel();
    let other = std::thread::spawn({
        let engine = engine.clone();
        move || {
            let mut tx = engine.begin(Access::Concurrent);
            tx.put_bytes(b"k", b"other").unwrap();
            looked.send(()).unwrap();
            tx.commit()
        }
    });
    has_looked.recv().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    sole.put_bytes(b"k", b"sole").unwrap();
    sole.commit().unwrap();
    drop(sole);
    // It looked at the key before, so it is the one that has to try again.
    assert!(matches!(other.join().unwrap(), Err(StateError::Conflict { .. })));
    assert_eq!(engine.snapshot().get(b"k").unwrap().unwrap().bytes, b"sole");
}

#[test]
fn savepoints_nest_and_are_taken_back() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"old", b"0").unwrap();
    tx.commit().unwrap();
    tx.put_bytes(b"a", b"1").unwrap();
    let outer = tx.begin_savepoint();
    tx.put_bytes(b"a", b"2").unwrap();
    tx.delete(b"old").unwrap();
    let inner = tx.begin_savepoint();
    tx.put_bytes(b"b", b"3").unwrap();
    tx.update(b"a").unwrap().unwrap().copy_from_slice(b"4");
    tx.release(inner).unwrap();
    assert_eq!(tx.get(b"a").unwrap().unwrap().bytes, b"4");
    assert!(matches!(tx.release(inner), Err(StateError::SavepointClosed)));
    tx.rollback(outer).unwrap();
    assert_eq!(tx.get(b"a").unwrap().unwrap().bytes, b"1");
    assert_eq!(tx.get(b"old").unwrap().unwrap().bytes, b"0");
    assert!(tx.get(b"b").unwrap().is_none());
    tx.commit().unwrap();
    assert_eq!(contents(&engine.snapshot()).unwrap().len(), 2);
}

#[test]
fn pointers_stay_good_until_the_transaction_ends() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"k", b"first").unwrap();
    let pending = tx.get(b"k").unwrap().unwrap().bytes.as_ptr();
    tx.commit().unwrap();
    let stored = tx.get(b"k").unwrap().unwrap();
    let (stored, cell) = (stored.bytes.as_ptr(), std::ptr::from_ref(stored.validated));
    for n in 0..3000_u32 {
        tx.put_bytes(b"k", &n.to_le_bytes()).unwrap();
        tx.commit().unwrap();
        engine.compact_step(1 << 20).unwrap();
    }
    tx.delete(b"k").unwrap();
    tx.commit().unwrap();
    // SAFETY: that these are still good is what is tested.
    let (pending, stored, cell) =
        unsafe { (std::slice::from_raw_parts(pending, 5), std::slice::from_raw_parts(stored, 5), &*cell) };
    assert_eq!((pending, stored), (b"first".as_slice(), b"first".as_slice()));
    assert_eq!(cell.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn validation_is_remembered_per_version_and_moves_with_it() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put(b"k", 1, b"value").unwrap();
    tx.get(b"k").unwrap().unwrap().validated.store(1, std::sync::atomic::Ordering::Relaxed);
    tx.commit().unwrap();
    drop(tx);
    let validated = || {
        let snapshot = engine.snapshot();
        let value = snapshot.get(b"k").unwrap().unwrap();
        value.validated.load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(validated(), 1, "lost at the commit");
    for n in 0..3000_u32 {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"churn", &n.to_le_bytes()).unwrap();
        tx.commit().unwrap();
        engine.compact_step(1 << 20).unwrap();
    }
    assert_eq!(validated(), 1, "lost when it was moved");
    let mut tx = engine.begin(Access::Exclusive);
    tx.put(b"k", 1, b"other").unwrap();
    tx.commit().unwrap();
    drop(tx);
    assert_eq!(validated(), 0, "a new version counts as validated");
}

#[test]
fn everything_of_one_commit_is_recovered() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"k", b"v").unwrap();
    tx.consume(b"app/a", b"q", Consumption { incarnation: 2, sequence: 40 }).unwrap();
    tx.send(Message { destination: b"app/b", key: b"q", payload: b"one" }).unwrap();
    tx.send(Message { destination: b"app/b", key: b"q", payload: b"two" }).unwrap();
    tx.set_timer(900, Timer { function: b"late", argument: b"" }).unwrap();
    tx.set_timer(100, Timer { function: b"soon", argument: b"x" }).unwrap();
    tx.remember_reply(b"id-1", Reply { expires_ms: 5, reply: b"done" }).unwrap();
    let seq = tx.commit().unwrap();
    drop((tx, engine));
    let (engine, _) = open(&sim).unwrap();
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.consumed(b"app/a", b"q").unwrap().unwrap().sequence, 40);
    assert_eq!(snapshot.all_consumed().unwrap().len(), 1);
    let sent = snapshot.sent().unwrap();
    let payloads: Vec<&[u8]> = sent.iter().map(|(_, message)| message.payload).collect();
    assert_eq!(payloads, [b"one", b"two"]);
    assert!(sent.iter().all(|(id, _)| id.commit == seq));
    let timers = snapshot.timers().unwrap();
    assert_eq!(timers[0].1.function, b"soon");
    assert_eq!(snapshot.next_timer().unwrap().due_ms, 100);
    assert_eq!(snapshot.reply(b"id-1").unwrap().unwrap().reply, b"done");
    assert_eq!(snapshot.replies().unwrap().len(), 1);
    let mut tx = engine.begin(Access::Exclusive);
    assert!(tx.acknowledge(sent[0].0));
    assert!(tx.clear_timer(timers[0].0));
    assert!(tx.forget_reply(b"id-1"));
    assert!(tx.forget_consumed(b"app/a", b"q").unwrap());
    tx.commit().unwrap();
    drop((tx, engine));
    let (engine, _) = open(&sim).unwrap();
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.sent().unwrap().len(), snapshot.timers().unwrap().len()), (1, 1));
    assert!(snapshot.replies().unwrap().is_empty() && snapshot.all_consumed().unwrap().is_empty());
}

#[test]
fn scans_are_ordered_and_show_own_writes() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    for key in [b"p/1", b"p/2", b"p/3", b"q/1"] {
        tx.put_bytes(key, key).unwrap();
    }
    tx.commit().unwrap();
    tx.delete(b"p/2").unwrap();
    tx.put_bytes(b"p/25", b"own").unwrap();
    tx.put_bytes(b"p/3", b"changed").unwrap();
    let mut seen = Vec::new();
    tx.scan(b"p/", None, |key, value| {
        seen.push((key.to_vec(), value.bytes.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    let expected: Vec<(Vec<u8>, Vec<u8>)> = [("p/1", "p/1"), ("p/25", "own"), ("p/3", "changed")]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
    assert_eq!(seen, expected);
    let mut after = Vec::new();
    tx.keys(b"p/", Some(b"p/1"), |key, info| {
        after.push((key.to_vec(), info.len));
        ControlFlow::Break(())
    });
    assert_eq!(after, [(b"p/25".to_vec(), 3)]);
}

#[test]
fn sealing_writes_down_that_everything_is_durable() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"k", b"v").unwrap();
    let seq = tx.commit().unwrap();
    drop(tx);
    let sealed = engine.seal().unwrap();
    assert_eq!((sealed, engine.seal().unwrap()), (seq + 1, seq + 1));
    assert_eq!(engine.durable(), sealed);
    drop(engine);
    assert_eq!(open(&sim).unwrap().1.commit, sealed);
}
