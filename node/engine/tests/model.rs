//! The engine against a plain ordered map: commits, aborts, savepoints, concurrent transactions, snapshots, compaction and reopening in
//! any order. Symptom: proptest prints the shortest sequence that makes them disagree.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::ops::ControlFlow;

use common::sim::Sim;
use common::{Objects, contents, open};
use denizen_engine::offline::{CopyOptions, Damaged, Offline};
use denizen_engine::{Access, Durability, Engine, Snapshot, StateError, Table, Transaction, check_pages};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Change {
    Put(u8, u16),
    Delete(u8),
    Update(u8, u8),
    Savepoint,
    Rollback,
    Release,
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<Change>),
    Abort(Vec<Change>),
    /// Two concurrent transactions over the same state, committed one after the other.
    Race(Vec<Change>, Vec<Change>),
    Hold,
    Release,
    Compact(u16),
    Wait,
    Seal,
    Reopen,
    /// Goes on with an offline copy.
    Copy,
}

/// Short values, some that are written over dead ones, and some that take a few pages.
fn len() -> impl Strategy<Value = u16> {
    prop_oneof![9 => 0..400_u16, 4 => 1024..1100_u16, 1 => 0..40_000_u16]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<u8>(), len()).prop_map(|(key, len)| Change::Put(key, len)),
        2 => any::<u8>().prop_map(Change::Delete),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(key, byte)| Change::Update(key, byte)),
        1 => Just(Change::Savepoint),
        1 => Just(Change::Rollback),
        1 => Just(Change::Release),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let changes = || prop::collection::vec(change(), 0..12);
    prop_oneof![
        10 => changes().prop_map(Step::Commit),
        2 => changes().prop_map(Step::Abort),
        3 => (changes(), changes()).prop_map(|(one, two)| Step::Race(one, two)),
        2 => Just(Step::Hold),
        1 => Just(Step::Release),
        5 => (1..20_000_u16).prop_map(Step::Compact),
        1 => Just(Step::Wait),
        1 => Just(Step::Seal),
        1 => Just(Step::Reopen),
        1 => Just(Step::Copy),
    ]
}

/// Few keys, of which many share prefixes and some are long.
fn key(n: u8) -> Vec<u8> {
    let n = n % 60;
    let mut key = vec![b'a' + n / 20];
    key.resize(1 + usize::from(n % 5) * 7, b'-');
    key.push(n);
    if n == 59 {
        key.resize(denizen_engine::MAX_KEY_LEN, 1);
    }
    key
}

/// Makes the changes in both, and compares what the transaction shows.
fn change_both(tx: &mut Transaction, model: &mut Objects, changes: &[Change]) {
    let mut savepoints = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        match change {
            Change::Put(n, len) => {
                let value = vec![number as u8 ^ *n; usize::from(*len)];
                tx.put(&key(*n), u64::from(*len), &value).unwrap();
                model.insert(key(*n), (u64::from(*len), value));
            }
            Change::Delete(n) => {
                assert_eq!(tx.delete(&key(*n)).unwrap(), model.remove(&key(*n)).is_some());
            }
            Change::Update(n, byte) => {
                let edited = tx.update(&key(*n)).unwrap();
                let expected = model.get_mut(&key(*n));
                assert_eq!(edited.is_some(), expected.is_some());
                if let (Some(edited), Some((_, expected))) = (edited, expected) {
                    edited.fill(*byte);
                    expected.fill(*byte);
                }
            }
            Change::Savepoint => savepoints.push((tx.begin_savepoint(), model.clone())),
            Change::Rollback => {
                if let Some((savepoint, before)) = savepoints.pop() {
                    tx.rollback(savepoint).unwrap();
                    *model = before;
                }
            }
            Change::Release => {
                if let Some((savepoint, _)) = savepoints.pop() {
                    tx.release(savepoint).unwrap();
                }
            }
        }
    }
    assert_eq!(&shown(tx, b""), model);
    let part: Objects =
        model.iter().filter(|(key, _)| key.starts_with(b"b-")).map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(shown(tx, b"b-"), part);
}

fn shown(tx: &Transaction, prefix: &[u8]) -> Objects {
    let mut objects = Objects::new();
    let mut last = None;
    tx.scan(prefix, None, |key, value| {
        assert!(last.replace(key) < Some(key), "out of order");
        objects.insert(key.to_vec(), (value.fingerprint, value.bytes.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    let mut listed = 0;
    tx.keys(prefix, None, |key, info| {
        assert_eq!(objects[key].1.len() as u64, info.len);
        listed += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(listed, objects.len());
    objects
}

struct Run {
    sim: Sim,
    engine: Option<Engine>,
    model: Objects,
    held: Vec<(Snapshot, Objects)>,
}

impl Run {
    fn engine(&self) -> Engine {
        self.engine.clone().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Commit(changes) => {
                let mut tx = self.engine().begin(Access::Exclusive);
                change_both(&mut tx, &mut self.model, changes);
                tx.commit().unwrap();
            }
            Step::Abort(changes) => {
                let mut tx = self.engine().begin(Access::Exclusive);
                change_both(&mut tx, &mut self.model.clone(), changes);
                tx.abort();
                assert_eq!(shown(&tx, b""), self.model);
            }
            Step::Race(one, two) => self.race(one, two),
            Step::Hold => self.held.push((self.engine().snapshot(), self.model.clone())),
            Step::Release => drop(self.held.pop()),
            Step::Compact(bytes) => {
                for _ in 0..8 {
                    self.engine().compact_step(u64::from(*bytes)).unwrap();
                }
            }
            Step::Wait => {
                let engine = self.engine();
                engine.wait(engine.snapshot().commit_number(), Durability::Node).unwrap();
            }
            Step::Seal => drop(self.engine().seal().unwrap()),
            Step::Reopen => self.reopen(),
            Step::Copy => self.copy(),
        }
    }

    fn race(&mut self, one: &[Change], two: &[Change]) {
        let engine = self.engine();
        let (mut first, mut second) = (engine.begin(Access::Concurrent), engine.begin(Access::Concurrent));
        let (mut after_first, mut after_second) = (self.model.clone(), self.model.clone());
        change_both(&mut first, &mut after_first, one);
        change_both(&mut second, &mut after_second, two);
        let before = std::mem::replace(&mut self.model, after_first);
        first.commit().unwrap();
        match second.commit() {
            Err(StateError::Conflict { key }) => {
                let touched = |model: &Objects| model.get(&key.0) != before.get(&key.0);
                // Rewriting a value as it was counts too, so this is only a sanity check of the key.
                assert!(touched(&self.model) || one.len() + two.len() > 1);
            }
            Err(error) => panic!("{error}"),
            Ok(_) => {
                // No key was changed by both, so the second's changes apply over the first's.
                for (key, value) in &after_second {
                    if before.get(key) != Some(value) {
                        self.model.insert(key.clone(), value.clone());
                    }
                }
                for key in before.keys().filter(|key| !after_second.contains_key(*key)) {
                    self.model.remove(key);
                }
            }
        }
    }

    fn reopen(&mut self) {
        self.held.clear();
        let before = self.engine().snapshot().commit_number();
        self.engine = None;
        let (engine, recovery) = open(&self.sim).unwrap();
        assert_eq!(recovery.commit, before);
        self.engine = Some(engine);
    }

    fn copy(&mut self) {
        self.held.clear();
        let before = self.engine().snapshot().commit_number();
        self.engine = None;
        let target = Sim::new();
        target.allow_windows();
        let offline = Offline::read(&self.sim.handles(), Some(common::LINEAGE)).unwrap();
        let options = CopyOptions {
            lineage: common::LINEAGE,
            segments: common::options().segments,
            damaged: Damaged::Refuse,
        };
        let copied = offline.copy_to(&target, &options, |_, _| {}).unwrap();
        assert_eq!(copied.keys, self.model.len() as u64);
        assert!(copied.commit >= before);
        self.sim = target;
        self.engine = Some(open(&self.sim).unwrap().0);
    }

    fn check(&self) {
        let engine = self.engine();
        let snapshot = engine.snapshot();
        assert_eq!(contents(&snapshot).unwrap(), self.model);
        for (snapshot, expected) in &self.held {
            assert_eq!(&contents(snapshot).unwrap(), expected, "a snapshot changed");
        }
        let mut pages = Vec::new();
        let root = snapshot.pages(Table::Objects, |page| {
            pages.push(page.to_vec());
            pages.len() as u64 - 1
        });
        let listed = check_pages(root, |number| pages.get(number as usize).cloned()).unwrap();
        assert!(listed.iter().map(|(key, _)| key).eq(self.model.keys()));
        let cost =
            |key: &Vec<u8>, len: usize| (48 + key.len()).next_multiple_of(16) + len.next_multiple_of(16);
        let live: usize = self.model.iter().map(|(key, (_, value))| cost(key, value.len())).sum();
        assert_eq!(engine.summary().live_bytes, live as u64, "what the quota counts");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(150),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_engine_is_an_ordered_map(steps in prop::collection::vec(step(), 1..60)) {
        let sim = Sim::new();
        sim.allow_windows();
        let engine = Some(open(&sim).unwrap().0);
        let mut run = Run { sim, engine, model: Objects::new(), held: Vec::new() };
        for step in &steps {
            run.step(step);
            run.check();
        }
    }
}
