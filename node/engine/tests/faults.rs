//! A disk that fails: full at any instant, errors on any read, write and sync. What must hold: typed errors, nothing half done, nothing
//! tried again, and what was acknowledged can be recovered into new segments.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::sync::Arc;

use common::sim::{Faults, Sim};
use common::{LINEAGE, Objects, contents, open, options};
use denizen_engine::offline::{CopyOptions, Damaged, Offline};
use denizen_engine::{Access, Durability, Engine, Operation, StateError};

/// Commits until something fails; returns what was acknowledged, with its level, and the error.
fn commit_until_error(engine: &Engine, steps: u32) -> (u64, u64, Objects, Option<StateError>) {
    let mut model = Objects::new();
    let (mut process, mut node) = (engine.snapshot().commit_number(), engine.durable());
    for n in 0..steps {
        let key = format!("key {}", n % 30).into_bytes();
        let value = vec![n as u8; 1 + (n as usize * 37) % 900];
        let mut tx = engine.begin(Access::Exclusive);
        let outcome = tx.put(&key, 1, &value).and_then(|()| tx.commit());
        match outcome {
            Ok(seq) => process = seq,
            Err(error) => return (process, node, model, Some(error)),
        }
        model.insert(key, (1, value));
        if n % 5 == 0 {
            match engine.wait(process, Durability::Node) {
                Ok(()) => node = process,
                Err(error) => return (process, node, model, Some(error)),
            }
        }
        if n % 3 == 0
            && let Err(error) = engine.compact_step(8000)
        {
            return (process, node, model, Some(error));
        }
    }
    (process, node, model, None)
}

#[test]
fn a_full_disk_at_any_instant_is_an_error_that_passes() {
    for spares in 0..12 {
        let sim = Sim::new();
        sim.set_faults(Faults { spares: Some(spares), ..Faults::default() });
        let (engine, _) = open(&sim).unwrap();
        let (process, _, model, error) = commit_until_error(&engine, 2000);
        let Some(StateError::NoSpare { .. }) = error else { panic!("{error:?}") };
        assert_eq!(contents(&engine.snapshot()).unwrap(), model, "half a commit is there");
        // Reading goes on, and so does writing once there is room.
        sim.set_faults(Faults::default());
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"later", b"x").unwrap();
        assert!(tx.commit().unwrap() > process);
        drop((tx, engine));
        let (engine, _) = open(&sim).unwrap();
        assert_eq!(contents(&engine.snapshot()).unwrap().len(), model.len() + 1);
    }
}

#[test]
fn state_opens_on_a_full_disk() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let (_, _, model, _) = commit_until_error(&engine, 50);
    drop(engine);
    sim.set_faults(Faults { spares: Some(0), ..Faults::default() });
    let (engine, _) = open(&sim).unwrap();
    assert_eq!(contents(&engine.snapshot()).unwrap(), model);
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"k", b"v").unwrap();
    assert!(matches!(tx.commit(), Err(StateError::NoSpare { .. })));
    // The same transaction may try again.
    sim.set_faults(Faults::default());
    tx.commit().unwrap();
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_tried_again() {
    for number in 1..60 {
        for write in [true, false] {
            let sim = Sim::new();
            let (engine, _) = open(&sim).unwrap();
            let fault = Some(number);
            sim.set_faults(if write {
                Faults { write: fault, ..Faults::default() }
            } else {
                Faults { sync: fault, ..Faults::default() }
            });
            let (process, node, mut model, error) = commit_until_error(&engine, 400);
            let Some(StateError::Io { op, .. }) = &error else { panic!("fault {number}: {error:?}") };
            assert_eq!(*op, if write { Operation::Write } else { Operation::Sync });
            let counts = sim.counts();
            let mut tx = engine.begin(Access::Exclusive);
            tx.put_bytes(b"k", b"v").unwrap();
            assert!(matches!(tx.commit(), Err(StateError::Poisoned { .. })));
            drop(tx);
            if !write {
                let durable = engine.wait(u64::MAX, Durability::Node).is_ok();
                assert_eq!(durable, engine.durable() >= engine.snapshot().commit_number(), "a lie");
                assert_eq!(
                    (sim.counts().0, sim.counts().1),
                    (counts.0, counts.1),
                    "something was tried again"
                );
            }
            assert!(engine.durable() >= node);
            drop(engine);
            recover_into_new_segments(&sim, process, &mut model);
        }
    }
}

fn recover_into_new_segments(sim: &Sim, process: u64, model: &mut Objects) {
    let offline = Offline::read(&sim.handles(), Some(LINEAGE)).unwrap();
    assert!(offline.inspect().commit >= process, "an acknowledged commit is gone");
    let target = Sim::new();
    let copy = CopyOptions { lineage: LINEAGE, segments: options().segments, damaged: Damaged::LeaveOut };
    let copied = offline.copy_to(&target, &copy, |_, _| {}).unwrap();
    assert!(copied.left_out.is_empty());
    let (engine, recovery) = open(&target).unwrap();
    assert_eq!(recovery.commit, copied.commit);
    assert_eq!(contents(&engine.snapshot()).unwrap(), *model);
}

#[test]
fn an_error_of_any_read_is_reported() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let (_, _, mut model, _) = commit_until_error(&engine, 120);
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"large", &vec![5; 60_000]).unwrap();
    tx.commit().unwrap();
    model.insert(b"large".to_vec(), (0, vec![5; 60_000]));
    drop(tx);
    engine.seal().unwrap();
    drop(engine);
    sim.set_faults(Faults::default());
    let (engine, _) = open(&sim).unwrap();
    contents(&engine.snapshot()).unwrap();
    drop(engine);
    let (_, _, reads) = sim.counts();
    assert!(reads > 5);
    for number in 1..=reads {
        sim.set_faults(Faults { read: Some(number), ..Faults::default() });
        let outcome = open(&sim).and_then(|(engine, _)| contents(&engine.snapshot()));
        assert!(
            matches!(outcome, Err(StateError::Io { op: Operation::Read, .. })),
            "read {number}: {outcome:?}"
        );
    }
    sim.set_faults(Faults::default());
    let (engine, _) = open(&sim).unwrap();
    assert_eq!(contents(&engine.snapshot()).unwrap(), model);
}

#[test]
fn an_abandoned_sync_counts_as_failed() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"k", b"v").unwrap();
    let seq = tx.commit().unwrap();
    let job = engine.sync_job(seq).unwrap().unwrap();
    assert!(engine.sync_job(seq).unwrap().is_none(), "two syncs in flight");
    job.segments().iter().for_each(|segment| segment.sync().unwrap());
    job.finish(Ok(())).unwrap();
    assert!(engine.durable() >= seq);
    tx.put_bytes(b"k", b"w").unwrap();
    let seq = tx.commit().unwrap();
    drop(engine.sync_job(seq).unwrap().unwrap());
    assert!(matches!(engine.wait(seq, Durability::Node), Err(StateError::Io { op: Operation::Sync, .. })));
    tx.put_bytes(b"k", b"x").unwrap();
    assert!(matches!(tx.commit(), Err(StateError::Poisoned { .. })));
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    std::fs::create_dir(&path).unwrap();
    let storage = denizen_engine::storage::Directory::open(&path).unwrap();
    std::fs::remove_dir(&path).unwrap();
    let outcome = Engine::open(Arc::new(storage), options());
    let error = match outcome {
        Err(error) => error,
        Ok((engine, _)) => {
            let mut tx = engine.begin(Access::Exclusive);
            tx.put_bytes(b"k", b"v").unwrap();
            tx.commit().unwrap_err()
        }
    };
    assert!(matches!(error, StateError::Io { .. }), "{error:?}");
}
