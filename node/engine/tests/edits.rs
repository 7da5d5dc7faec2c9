//! A log at rest that is changed: what it holds afterwards, what it is called, and that limits come before the first byte.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use common::sim::{Faults, Sim};
use common::{LINEAGE, Objects, Rng, contents, open, options};
use denizen_engine::offline::{CopyOptions, Damaged, Edit, EditOptions, Offline};
use denizen_engine::{Access, Consumption, Salvage, StateError};

const THEN: u64 = 1_700_000_000_000;
const NOW: u64 = 1_800_000_000_000;

fn edit_options(quota_bytes: u64) -> EditOptions {
    let copy = CopyOptions { lineage: LINEAGE, segments: options().segments, damaged: Damaged::Refuse };
    EditOptions { copy, quota_bytes, time_ms: NOW }
}

fn put(key: &[u8], fingerprint: u64, value: &[u8]) -> Edit {
    Edit { key: key.to_vec(), change: Some((fingerprint, value.to_vec())) }
}

fn delete(key: &[u8]) -> Edit {
    Edit { key: key.to_vec(), change: None }
}

/// A log with some keys, an entry of another table, and the number of its last commit.
fn written() -> (Sim, u64) {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put(b"a", 7, b"one").unwrap();
    tx.put_bytes(b"b", &[9; 100_000]).unwrap();
    tx.put_bytes(b"c", b"three").unwrap();
    tx.consume(b"app/x", b"q", Consumption { incarnation: 1, sequence: 5 }).unwrap();
    tx.commit().unwrap();
    drop(tx);
    let commit = engine.seal().unwrap();
    drop(engine);
    (sim, commit)
}

fn read(sim: &Sim) -> Offline {
    Offline::read(&sim.handles(), Some(LINEAGE)).unwrap()
}

#[test]
fn edits_are_one_commit_over_a_copy() {
    let (sim, commit) = written();
    let target = Sim::new();
    let edits =
        [put(b"a", 8, b"first"), put(b"d", 0, b"new"), delete(b"c"), delete(b"none"), put(b"a", 9, b"last")];
    let mut told = Vec::new();
    let progress = |done, total| told.push((done, total));
    let copied = read(&sim).edit_to(&target, &edit_options(8 << 20), &edits, progress).unwrap();
    assert_eq!((copied.edited, copied.keys), (commit + 1, 3));
    assert!(copied.commit > copied.edited);
    assert_eq!(told.last().unwrap().0, told.last().unwrap().1);

    let (engine, recovery) = open(&target).unwrap();
    assert_eq!((recovery.commit, recovery.torn), (copied.commit, false));
    let snapshot = engine.snapshot();
    let expected: Objects =
        [("a", 9, b"last".to_vec()), ("b", 0, vec![9; 100_000]), ("d", 0, b"new".to_vec())]
            .map(|(key, fingerprint, value)| (key.into(), (fingerprint, value)))
            .into();
    assert_eq!(contents(&snapshot).unwrap(), expected);
    let of = |key: &[u8]| snapshot.info(key).map(|info| (info.version, info.time_ms)).unwrap();
    assert_eq!((of(b"a"), of(b"d")), ((commit + 1, NOW), (commit + 1, NOW)));
    assert_eq!(of(b"b"), (1, THEN), "what was not edited stays as old as it was");
    assert_eq!(snapshot.consumed(b"app/x", b"q").unwrap().unwrap().sequence, 5);
    // And the log goes on from there.
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"a", b"more").unwrap();
    assert_eq!(tx.commit().unwrap(), copied.commit + 1);
}

#[test]
fn new_state_can_be_edited() {
    let target = Sim::new();
    let nothing = Offline::read(&[], None).unwrap();
    let copied = nothing.edit_to(&target, &edit_options(1 << 20), &[put(b"k", 3, b"v")], |_, _| {}).unwrap();
    assert_eq!(copied.edited, 1);
    assert_eq!(open(&target).unwrap().0.snapshot().get(b"k").unwrap().unwrap().version, 1);
}

#[test]
fn limits_come_before_the_first_byte() {
    let (sim, _) = written();
    let offline = read(&sim);
    let live = offline.inspect().live_bytes;
    let refused = |quota: u64, edits: &[Edit]| {
        let target = Sim::new();
        let error = offline.edit_to(&target, &edit_options(quota), edits, |_, _| {}).unwrap_err();
        assert_eq!(target.journal_len(), 0, "something was written");
        error
    };
    assert!(matches!(refused(1 << 20, &[put(b"", 0, b"v")]), StateError::KeyEmpty));
    assert!(matches!(refused(1 << 20, &[delete(&[1; 1025])]), StateError::KeyTooLong { len: 1025 }));
    let error = refused(live + 63, &[put(b"d", 0, b"")]);
    assert!(
        matches!(error, StateError::QuotaExceeded { needed, used, .. } if (needed, used) == (live + 64, live)),
        "{error:?}"
    );
    let fits =
        |quota: u64, edits: &[Edit]| offline.edit_to(&Sim::new(), &edit_options(quota), edits, |_, _| {});
    fits(live + 64, &[put(b"d", 0, b"")]).unwrap();
    // In any order, and also when there was too much before.
    fits(live, &[put(b"d", 0, &[0; 1000]), delete(b"b")]).unwrap();
    fits(100, &[delete(b"b")]).unwrap();
}

#[test]
fn many_edits_stream_through() {
    let (sim, _) = written();
    let offline = read(&sim);
    let target = Sim::new();
    let mut editing = offline.edit(&target, &edit_options(4 << 20));
    for n in 0..3000_u32 {
        editing.put(&n.to_be_bytes(), u64::from(n), vec![n as u8; 1000]).unwrap();
    }
    let over = editing.put(b"large", 0, vec![0; 4 << 20]).unwrap_err();
    assert!(matches!(over, StateError::QuotaExceeded { .. }));
    // One that was written before and one that was not.
    editing.delete(&7_u32.to_be_bytes()).unwrap();
    editing.delete(b"a").unwrap();
    editing.put(b"b", 0, b"short").unwrap();
    let copied = editing.finish(|_, _| {}).unwrap();
    assert_eq!(copied.keys, 2999 + 2);
    let (engine, _) = open(&target).unwrap();
    let found = contents(&engine.snapshot()).unwrap();
    assert_eq!(found.len(), 3001);
    assert_eq!(found[b"b".as_slice()].1, b"short");
    assert!(!found.contains_key(b"a".as_slice()) && found.contains_key(b"c".as_slice()));
    let replayed = read(&target).inspect().live_bytes;
    assert_eq!(replayed, engine.summary().live_bytes);
}

#[test]
fn what_is_replaced_whole_keeps_nothing_of_its_objects() {
    let (sim, commit) = written();
    let offline = read(&sim);
    let target = Sim::new();
    // The old objects take more than this: they go first, so it is enough.
    let mut editing = offline.edit(&target, &edit_options(4096));
    editing.put(b"x", 0, b"1").unwrap_err();
    editing.delete_others();
    editing.put(b"x", 0, b"1").unwrap();
    assert_eq!(editing.edited(), commit + 1);
    assert_eq!(editing.finish(|_, _| {}).unwrap().keys, 1);
    let (engine, _) = open(&target).unwrap();
    assert_eq!(contents(&engine.snapshot()).unwrap().len(), 1);
    assert!(engine.snapshot().consumed(b"app/x", b"q").unwrap().is_some(), "only objects are replaced");
}

#[test]
fn edits_agree_with_a_plain_map() {
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let (sim, _) = written();
        let (engine, _) = open(&sim).unwrap();
        let mut model = contents(&engine.snapshot()).unwrap();
        drop(engine);
        let offline = read(&sim);
        let target = Sim::new();
        let mut editing = offline.edit(&target, &edit_options(8 << 20));
        for _ in 0..rng.below(60) {
            let key = vec![b'a' + rng.below(6) as u8];
            let len = rng.below(40_000);
            match rng.below(12) {
                0 => {
                    editing.delete_others();
                    model.retain(|_, (fingerprint, _)| *fingerprint >= 1000);
                }
                1..4 => {
                    editing.delete(&key).unwrap();
                    model.remove(&key);
                }
                _ => {
                    let (fingerprint, value) = (1000 + rng.next() % 1000, rng.bytes(len));
                    editing.put(&key, fingerprint, value.clone()).unwrap();
                    model.insert(key, (fingerprint, value));
                }
            }
        }
        let copied = editing.finish(|_, _| {}).unwrap();
        let (engine, _) = open(&target).unwrap();
        assert_eq!(contents(&engine.snapshot()).unwrap(), model, "seed {seed}");
        assert_eq!(copied.keys, model.len() as u64, "seed {seed}");
    }
}

#[test]
fn objects_come_in_order_and_each_is_checked() {
    let (sim, _) = written();
    let mut images = sim.images();
    for image in images.values_mut() {
        if let Some(at) = image.windows(32).position(|window| window == [9; 32]) {
            image[at + 7] ^= 1;
        }
    }
    let sim = Sim::from_images(&images);
    let offline = read(&sim);
    let seen: Vec<(Vec<u8>, u64, Option<usize>)> = offline
        .objects(b"", None)
        .map(|(key, info, value)| (key.to_vec(), info.fingerprint, value.ok().map(|value| value.len())))
        .collect();
    assert_eq!(seen, [(b"a".to_vec(), 7, Some(3)), (b"b".to_vec(), 0, None), (b"c".to_vec(), 0, Some(5))]);
    assert_eq!(offline.objects(b"", Some(b"b")).count(), 1);
    assert_eq!(offline.objects(b"a", None).count(), 1);
    let salvage = Salvage::open(&sim.handles(), LINEAGE, 0).unwrap();
    assert_eq!(salvage.objects().filter(|(_, _, value)| value.is_ok()).count(), 2);

    // An edit does not heal by forgetting: it refuses, or the error stays where it was.
    let mut how = edit_options(1 << 20);
    assert!(matches!(
        offline.edit_to(&Sim::new(), &how, &[delete(b"a")], |_, _| {}),
        Err(StateError::Corrupt(_))
    ));
    how.copy.damaged = Damaged::Keep;
    let target = Sim::new();
    let copied = offline.edit_to(&target, &how, &[delete(b"a")], |_, _| {}).unwrap();
    assert_eq!((copied.kept.len(), copied.left_out.len()), (1, 0));
    let (engine, _) = open(&target).unwrap();
    assert!(matches!(engine.snapshot().get(b"b"), Err(StateError::Corrupt(_))));
    assert!(engine.snapshot().get(b"c").unwrap().is_some());
    // A damaged object that is itself replaced is no obstacle.
    how.copy.damaged = Damaged::Refuse;
    offline.edit_to(&Sim::new(), &how, &[put(b"b", 0, b"healed")], |_, _| {}).unwrap();
}

#[test]
fn a_full_disk_is_an_error_and_no_log() {
    let (sim, _) = written();
    let target = Sim::new();
    target.set_faults(Faults { spares: Some(1), ..Faults::default() });
    let edits = [put(b"k", 0, &[1; 1_500_000]), put(b"l", 0, &[1; 1_500_000])];
    let error = read(&sim).edit_to(&target, &edit_options(8 << 20), &edits, |_, _| {}).unwrap_err();
    assert!(matches!(error, StateError::NoSpare { .. }), "{error:?}");
}
