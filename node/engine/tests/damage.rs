//! Damage: a flipped bit anywhere, a tail torn at every byte, segments that are missing or of somebody else. What must hold: a named
//! error or the right value, never a wrong one; and what is not hit can still be read.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::sim::Sim;
use common::{LINEAGE, Objects, Rng, contents, open, options};
use denizen_engine::offline::{CopyOptions, Damaged, Offline};
use denizen_engine::{Access, Durability, Engine, Lineage, Salvage, StateError};

type Images = BTreeMap<u64, Vec<u8>>;

/// Several segments, overwritten and deleted keys, a value that recovery does not read, everything durable and sealed.
fn written() -> (Images, Objects, u64) {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut rng = Rng(1);
    let mut model = Objects::new();
    for n in 0..40_u8 {
        let mut tx = engine.begin(Access::Exclusive);
        for _ in 0..2 {
            let key = vec![b'k', rng.below(20) as u8];
            let len = rng.below(200);
            let value = rng.bytes(len);
            tx.put(&key, 3, &value).unwrap();
            model.insert(key, (3, value));
        }
        if n == 20 {
            let value = rng.bytes(18_000);
            tx.put(b"large", 3, &value).unwrap();
            model.insert(b"large".to_vec(), (3, value));
        }
        let gone = vec![b'k', rng.below(20) as u8];
        tx.delete(&gone).unwrap();
        model.remove(&gone);
        let seq = tx.commit().unwrap();
        if n % 4 == 0 {
            engine.wait(seq, Durability::Node).unwrap();
        }
    }
    let sealed = engine.seal().unwrap();
    let images = sim.images();
    drop(engine);
    (images, model, sealed)
}

fn used_bits(images: &Images) -> Vec<(u64, usize)> {
    let mut bits = Vec::new();
    for (id, image) in images {
        let end = image.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 64);
        bits.extend((0..end.min(image.len()) * 8).map(|bit| (*id, bit)));
    }
    bits
}

fn flipped(images: &Images, segment: u64, bit: usize) -> Images {
    let mut images = images.clone();
    images.get_mut(&segment).unwrap()[bit / 8] ^= 1 << (bit % 8);
    images
}

/// Every key reads as it was, or as an error that names it. Returns how many read well.
fn right_or_refused(engine: &Engine, model: &Objects) -> usize {
    let snapshot = engine.snapshot();
    let mut right = 0;
    for (key, (_, value)) in model {
        match snapshot.get(key) {
            Ok(found) => {
                assert_eq!(found.unwrap().bytes, value, "a wrong value");
                right += 1;
            }
            Err(StateError::Corrupt(damage)) => assert_eq!(damage.key.unwrap().0, *key),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(snapshot.len(), model.len() as u64);
    right
}

#[test]
fn a_flipped_bit_is_an_error_and_never_a_wrong_value() {
    let (images, model, sealed) = written();
    let bits = used_bits(&images);
    let mut rng = Rng(7);
    let (mut opened, mut refused, mut salvaged) = (0, 0, 0);
    for _ in 0..1500 {
        let (segment, bit) = bits[rng.below(bits.len())];
        let sim = Sim::from_images(&flipped(&images, segment, bit));
        match open(&sim) {
            Ok((engine, _)) => {
                opened += 1;
                assert!(right_or_refused(&engine, &model) + 1 >= model.len(), "more than one key was hit");
            }
            Err(StateError::Corrupt(damage)) => {
                refused += 1;
                assert_eq!(damage.segment, segment, "the wrong segment is named");
                let salvage = Salvage::open(&sim.handles(), LINEAGE, sealed).unwrap();
                for (key, (_, value)) in &model {
                    assert_eq!(
                        salvage.get(key).unwrap().as_ref(),
                        Some(value),
                        "bit {bit} of segment {segment}"
                    );
                }
                assert_eq!(salvage.get(b"never there").unwrap(), None);
                assert_eq!(salvage.keys().count(), model.len());
                assert!(!salvage.damage().is_empty());
                salvaged += 1;
            }
            Err(error) => panic!("bit {bit} of segment {segment}: {error}"),
        }
    }
    assert!(opened > 100 && refused > 100, "opened {opened}, refused {refused}, salvaged {salvaged}");
}

#[test]
fn more_damage_hides_keys_but_invents_nothing() {
    let (images, model, sealed) = written();
    let mut rng = Rng(9);
    let mut known = 0;
    for round in 0..200 {
        let mut hit = images.clone();
        let ids: Vec<u64> = hit.keys().copied().collect();
        let image = hit.get_mut(&ids[rng.below(ids.len())]).unwrap();
        let end = image.iter().rposition(|byte| *byte != 0).unwrap_or(1);
        let (from, len) = (rng.below(end), 1 + rng.below(3000));
        let to = (from + len).min(image.len());
        let junk = rng.bytes(to - from);
        image[from..to].copy_from_slice(&junk);
        // All that the owner has to remember is how far the log was durable.
        let mut told = options();
        told.durable_at_least = sealed;
        if let Ok((engine, _)) = Engine::open(Arc::new(Sim::from_images(&hit)), told) {
            right_or_refused(&engine, &model);
        }
        let sim = Sim::from_images(&hit);
        let salvage = match Salvage::open(&sim.handles(), LINEAGE, sealed) {
            Ok(salvage) => salvage,
            Err(error) => panic!("round {round}: {error}"),
        };
        for n in 0..20 {
            let key = vec![b'k', n];
            if let Ok(value) = salvage.get(&key) {
                known += 1;
                assert_eq!(
                    value.as_ref(),
                    model.get(&key).map(|(_, value)| value),
                    "round {round}: a wrong value"
                );
            }
        }
    }
    assert!(known > 500, "only {known} of 4000 reads were answered");
}

#[test]
fn every_byte_of_a_torn_tail_can_be_the_last() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"first", &[1; 100]).unwrap();
    let first = tx.commit().unwrap();
    drop(tx);
    engine.wait(first, Durability::Node).unwrap();
    let before = sim.images();
    let kept = contents(&engine.snapshot()).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"second", &[2; 300]).unwrap();
    tx.delete(b"first").unwrap();
    let second = tx.commit().unwrap();
    let after = sim.images();
    drop((tx, engine));
    let id = *after.keys().next().unwrap();
    let (old, new) = (&before[&id], &after[&id]);
    let from = (0..new.len()).find(|at| old[*at] != new[*at]).unwrap();
    let to = new.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for end in from..=to {
        let mut image = old.clone();
        image[from..end].copy_from_slice(&new[from..end]);
        let sim = Sim::from_images(&BTreeMap::from([(id, image)]));
        let (engine, recovery) = open(&sim).unwrap();
        let found = contents(&engine.snapshot()).unwrap();
        if end == to {
            assert_eq!(recovery.commit, second);
        } else {
            assert_eq!((recovery.commit, &found), (first, &kept), "cut after byte {end}");
            assert_eq!(recovery.torn, end > from);
        }
        // The log goes on behind a torn tail, and stays readable.
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"third", b"3").unwrap();
        let third = tx.commit().unwrap();
        drop((tx, engine));
        assert_eq!(open(&sim).unwrap().1.commit, third);
    }
}

#[test]
fn the_owner_may_know_better_than_a_torn_tail() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    for n in 0..3_u8 {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(&[b'k', n], &[n; 50]).unwrap();
        let seq = tx.commit().unwrap();
        engine.wait(seq, Durability::Node).unwrap();
    }
    drop(engine);
    let mut images = sim.images();
    let image = images.values_mut().next().unwrap();
    let last = image.iter().rposition(|byte| *byte != 0).unwrap();
    image[last] ^= 1;
    let mut told = options();
    told.durable_at_least = 3;
    let outcome = Engine::open(Arc::new(Sim::from_images(&images)), told);
    assert!(matches!(outcome, Err(StateError::CommitsLost { found: 2, promised: 3 })));
}

#[test]
fn a_missing_segment_is_named() {
    let (mut images, model, sealed) = written();
    let oldest = *images.keys().next().unwrap();
    images.remove(&oldest);
    let sim = Sim::from_images(&images);
    assert!(matches!(open(&sim), Err(StateError::MissingSegment { segment }) if segment == oldest));
    let salvage = Salvage::open(&sim.handles(), LINEAGE, sealed).unwrap();
    for (key, (_, value)) in &model {
        assert!(salvage.get(key).map_or(true, |found| found.as_ref() == Some(value)));
    }
}

#[test]
fn segments_of_others_are_refused() {
    let (images, _, _) = written();
    let mut other = options();
    other.lineage = Lineage([1; 16]);
    let outcome = Engine::open(Arc::new(Sim::from_images(&images)), other.clone());
    assert!(matches!(outcome, Err(StateError::ForeignSegment { .. })));

    let sim = Sim::new();
    let (engine, _) = Engine::open(Arc::new(sim.clone()), other).unwrap();
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(b"k", b"foreign").unwrap();
    tx.commit().unwrap();
    let foreign = sim.images().into_values().next().unwrap();
    let mut mixed = images.clone();
    mixed.insert(99, foreign);
    assert!(matches!(open(&Sim::from_images(&mixed)), Err(StateError::ForeignSegment { segment: 99, .. })));

    let mut renamed = images.clone();
    let (id, image) = renamed.pop_first().unwrap();
    renamed.insert(id + 70, image);
    let outcome = open(&Sim::from_images(&renamed));
    assert!(matches!(outcome, Err(StateError::ForeignSegment { segment, .. }) if segment == id + 70));
}

#[test]
fn a_damaged_value_is_left_out_or_refused_by_copies_and_healed_by_a_put() {
    let (images, model, _) = written();
    let (key, value) = model.iter().max_by_key(|(_, (_, value))| value.len()).unwrap();
    let needle = &value.1[..32];
    let mut hit = images.clone();
    for image in hit.values_mut() {
        let places: Vec<usize> =
            (0..image.len() - 32).step_by(16).filter(|at| &image[*at..at + 32] == needle).collect();
        places.into_iter().for_each(|at| image[at + 5] ^= 4);
    }
    let sim = Sim::from_images(&hit);
    let (engine, recovery) = open(&sim).unwrap();
    assert!(recovery.damaged.is_empty(), "recovery does not read large values");
    assert!(matches!(engine.snapshot().get(key), Err(StateError::Corrupt(_))));
    drop(engine);
    let offline = Offline::read(&sim.handles(), Some(LINEAGE)).unwrap();
    assert_eq!(offline.verify(|_, _| {}).unwrap().len(), 1);
    let mut copy = CopyOptions { lineage: LINEAGE, segments: options().segments, damaged: Damaged::Refuse };
    assert!(matches!(offline.copy_to(&Sim::new(), &copy, |_, _| {}), Err(StateError::Corrupt(_))));
    copy.damaged = Damaged::LeaveOut;
    let target = Sim::new();
    let copied = offline.copy_to(&target, &copy, |_, _| {}).unwrap();
    assert_eq!((copied.left_out.len(), copied.keys), (1, model.len() as u64 - 1));
    assert_eq!(contents(&open(&target).unwrap().0.snapshot()).unwrap().len(), model.len() - 1);

    let (engine, _) = open(&sim).unwrap();
    let segment_of = |engine: &Engine| match engine.snapshot().get(key) {
        Err(StateError::Corrupt(damage)) => damage.segment,
        other => panic!("{other:?}"),
    };
    let before = segment_of(&engine);
    // Keys that come and go make the compactor move everything, the oldest first.
    for n in 0..6000_u32 {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(&n.to_be_bytes(), b"").unwrap();
        tx.delete(&n.saturating_sub(1).to_be_bytes()).unwrap();
        tx.commit().unwrap();
        drop(tx);
        engine.compact_step(1 << 20).unwrap();
    }
    assert_ne!(segment_of(&engine), before, "it was not moved");
    drop(engine);
    let (engine, _) = open(&sim).unwrap();
    segment_of(&engine);
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(key, b"new").unwrap();
    tx.commit().unwrap();
    assert_eq!(engine.snapshot().get(key).unwrap().unwrap().bytes, b"new");
}

/// A value whose bytes look like the heads of long records, in the way of whoever looks for what comes behind.
#[test]
fn what_lies_behind_forged_records_is_not_taken_for_nothing() {
    const META: u32 = 48 << 10;
    let mut forged = vec![0; 96 << 10];
    for head in forged[..32 << 10].chunks_mut(64) {
        head[..4].copy_from_slice(b"DZcm");
        head[8..16].copy_from_slice(&(64 + u64::from(META)).to_le_bytes());
        head[16..24].copy_from_slice(&2_u64.to_le_bytes());
        head[48..52].copy_from_slice(&META.to_le_bytes());
    }
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    for value in [&b"before"[..], &forged, b"behind"] {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"key", value).unwrap();
        let commit = tx.commit().unwrap();
        drop(tx);
        engine.wait(commit, Durability::Node).unwrap();
    }
    let mut images = sim.images();
    drop(engine);
    let image =
        images.values_mut().find(|image| image.windows(64).any(|part| *part == forged[..64])).unwrap();
    let at = image.windows(64).position(|part| *part == forged[..64]).unwrap();
    // The head of the record that it is the value of, beyond repair.
    let head = image[..at].windows(4).rposition(|part| part == b"DZcm").unwrap();
    image[head + 16..head + 48].fill(0xEE);
    let sim = Sim::from_images(&images);
    assert!(matches!(open(&sim), Err(StateError::Corrupt(_))), "commits that had been durable were cut");
    match Salvage::open(&sim.handles(), LINEAGE, 0) {
        Ok(salvage) => assert!(salvage.get(b"key").map_or(true, |value| value.as_deref() == Some(b"behind"))),
        Err(error) => assert!(matches!(error, StateError::Corrupt(_)), "{error}"),
    }
}

/// Copies hold no more than a piece of a large value in memory, and treat damage to it as to any other.
#[test]
fn large_values_are_copied_in_pieces() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    let large = Rng(5).bytes((3 << 20) + 5);
    for (key, value) in [(b"a".as_slice(), b"small".as_slice()), (b"b", &large), (b"c", b"small, too")] {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put(key, 7, value).unwrap();
        tx.commit().unwrap();
    }
    let model = contents(&engine.snapshot()).unwrap();
    engine.seal().unwrap();
    drop(engine);
    let copy = |from: &Sim, damaged: Damaged| {
        let target = Sim::new();
        let options = CopyOptions { lineage: LINEAGE, segments: options().segments, damaged };
        let offline = Offline::read(&from.handles(), Some(LINEAGE)).unwrap();
        offline.copy_to(&target, &options, |_, _| {}).map(|copied| (copied, target))
    };
    let (copied, target) = copy(&sim, Damaged::Refuse).unwrap();
    assert_eq!((copied.keys, copied.left_out.len()), (3, 0));
    assert_eq!(contents(&open(&target).unwrap().0.snapshot()).unwrap(), model);
    let salvage = Salvage::open(&sim.handles(), LINEAGE, 0).unwrap();
    let target = Sim::new();
    let options = CopyOptions { lineage: LINEAGE, segments: options().segments, damaged: Damaged::LeaveOut };
    assert_eq!(salvage.copy_to(&target, &options).unwrap().keys, 3);
    assert_eq!(contents(&open(&target).unwrap().0.snapshot()).unwrap(), model);
    assert!(sim.longest_read() <= 1 << 20, "{} bytes at once", sim.longest_read());

    let mut images = sim.images();
    let place = |bytes: &Vec<u8>| bytes.windows(64).position(|some| some == &large[2 << 20..][..64]);
    let (at, bytes) = images.values_mut().find_map(|bytes| Some((place(bytes)?, bytes))).unwrap();
    bytes[at] ^= 1;
    let spoiled = Sim::from_images(&images);
    assert!(matches!(copy(&spoiled, Damaged::Refuse), Err(StateError::Corrupt(_))));
    let (copied, target) = copy(&spoiled, Damaged::LeaveOut).unwrap();
    assert_eq!((copied.keys, copied.left_out.len(), copied.kept.len()), (2, 1, 0));
    assert!(open(&target).unwrap().0.snapshot().get(b"b").unwrap().is_none());
    let (copied, target) = copy(&spoiled, Damaged::Keep).unwrap();
    assert_eq!((copied.keys, copied.left_out.len(), copied.kept.len()), (3, 0, 1));
    let (engine, _) = open(&target).unwrap();
    assert!(
        matches!(engine.snapshot().get(b"b"), Err(StateError::Corrupt(_))),
        "it reads as if it were whole"
    );
    assert_eq!(engine.snapshot().get(b"c").unwrap().unwrap().bytes, b"small, too");
}
