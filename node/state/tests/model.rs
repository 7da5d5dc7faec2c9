//! Random transactions against a `BTreeMap`, with reopening, copying and moving to new regions in between.
//! Symptom: an assertion names the seed and the step. Cause: the engine and the model disagree. The seed makes it repeat.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::{Disk, Rng};
use denizen_state::{Engine, Transaction, offline};

type Objects = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

fn seen(tx: &Transaction<'_>, prefix: &[u8]) -> Objects {
    let mut found = Objects::new();
    let mut last: Option<Vec<u8>> = None;
    tx.scan(prefix, None, |key, value| {
        assert!(last.as_deref().is_none_or(|last| last < key), "not in order");
        assert_eq!(value.bytes.as_ptr().addr() % 16, 0, "not aligned");
        last = Some(key.to_vec());
        found.insert(key.to_vec(), (value.fingerprint, value.bytes.to_vec()));
        ControlFlow::Continue(())
    });
    found
}

fn expected(model: &Objects, prefix: &[u8]) -> Objects {
    model
        .iter()
        .filter(|(key, _)| key.starts_with(prefix))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn random_key(rng: &mut Rng) -> Vec<u8> {
    let alphabet = [0_u8, 1, b'a', b'b', 0xFF];
    (0..1 + rng.below(3)).map(|_| alphabet[rng.below(5)]).collect()
}

fn change(rng: &mut Rng, tx: &mut Transaction<'_>, model: &mut Objects) {
    let key = random_key(rng);
    if rng.below(4) == 0 {
        assert_eq!(tx.delete(&key).unwrap(), model.remove(&key).is_some());
    } else {
        let len = if rng.below(30) == 0 { rng.below(200_000) } else { rng.below(100) };
        let value = rng.bytes(len);
        let fingerprint = rng.next();
        tx.put(&key, fingerprint, &value).unwrap();
        model.insert(key, (fingerprint, value));
    }
    let key = random_key(rng);
    let got = tx.get(&key).map(|value| (value.fingerprint, value.bytes.to_vec()));
    assert_eq!(got.as_ref(), model.get(&key));
}

/// One transaction; returns the model if it was committed.
fn transaction(rng: &mut Rng, engine: &mut Engine, committed: &Objects) -> Option<Objects> {
    let mut model = committed.clone();
    let mut tx = engine.begin();
    let mut held: Vec<(*const u8, Vec<u8>)> = Vec::new();
    for _ in 0..rng.below(8) {
        change(rng, &mut tx, &mut model);
        if let Some(value) = tx.get(&random_key(rng)) {
            held.push((value.bytes.as_ptr(), value.bytes.to_vec()));
        }
    }
    let prefix = if rng.below(2) == 0 { Vec::new() } else { random_key(rng) };
    assert_eq!(seen(&tx, &prefix), expected(&model, &prefix));
    let kept = rng.below(5) != 0;
    if kept {
        tx.commit().unwrap();
        assert_eq!(seen(&tx, &prefix), expected(&model, &prefix));
    }
    for (pointer, bytes) in held {
        // SAFETY: values stay where they are until the transaction is dropped; that is what is being tested.
        let now = unsafe { std::slice::from_raw_parts(pointer, bytes.len()) };
        assert!(now == bytes, "a value that was handed out has changed");
    }
    kept.then_some(model)
}

fn run(seed: u64) {
    let mut rng = Rng(seed);
    let mut disk = Disk::formatted();
    let mut engine = Some(disk.open_with(64 << 20, 100_000));
    let mut model = Objects::new();
    for step in 0..120 {
        let mut open = engine.take().unwrap();
        if let Some(after) = transaction(&mut rng, &mut open, &model) {
            model = after;
        }
        let before = open.summary();
        match rng.below(12) {
            0 => {
                drop(open);
                open = disk.open_with(64 << 20, 100_000);
            }
            1 => {
                drop(open);
                let copy = Disk::empty();
                assert_eq!(
                    offline::copy_live(&disk.file(), &copy.file()).unwrap(),
                    before,
                    "seed {seed} step {step}"
                );
                disk = copy;
                open = disk.open_with(64 << 20, 100_000);
            }
            _ => {}
        }
        assert_eq!(open.summary(), before, "seed {seed} step {step}");
        assert_eq!(seen(&open.begin(), b""), model, "seed {seed} step {step}");
        engine = Some(open);
    }
}

#[test]
fn the_engine_does_what_a_map_does() {
    for seed in 1..=25 {
        run(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
    }
}

#[test]
fn garbage_is_left_behind_and_the_file_does_not_grow_without_end() {
    let disk = Disk::formatted();
    let mut engine = disk.open_with(1 << 20, 256 << 10);
    for round in 0..20_000_u64 {
        let mut tx = engine.begin();
        tx.put(b"counter", 1, &round.to_le_bytes()).unwrap();
        tx.put(format!("key {}", round % 50).as_bytes(), 2, &[7; 200]).unwrap();
        assert_eq!(tx.commit().unwrap(), round + 1);
    }
    let blocks = disk.blocks_bytes();
    assert!(blocks < 3 << 20, "{blocks} bytes on the disk for {} live ones", engine.summary().live_bytes);
    let summary = engine.summary();
    drop(engine);
    let engine = disk.open_with(1 << 20, 256 << 10);
    assert_eq!(engine.summary(), summary);
    assert_eq!(engine.read().get(b"counter").unwrap().bytes, 19_999_u64.to_le_bytes());
    assert_eq!(engine.read().get(b"counter").unwrap().version, 20_000);
}

#[test]
fn versions_survive_reopening_copying_and_moving() {
    let disk = Disk::formatted();
    let mut engine = disk.open_with(1 << 20, 1000);
    for round in 0..100_u8 {
        let mut tx = engine.begin();
        tx.put(&[round % 7], 0, &[round]).unwrap();
        tx.commit().unwrap();
    }
    let versions = |engine: &Engine| -> Vec<u64> {
        (0..7).map(|key| engine.read().get(&[key]).unwrap().version).collect()
    };
    let expected = vec![99, 100, 94, 95, 96, 97, 98];
    assert_eq!(versions(&engine), expected);
    drop(engine);
    assert_eq!(versions(&disk.open()), expected);
    let copy = Disk::empty();
    offline::copy_live(&disk.file(), &copy.file()).unwrap();
    assert_eq!(versions(&copy.open()), expected);
}
