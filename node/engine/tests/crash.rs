//! Crash consistency. A run on the disk in memory is cut at every operation, the disk is rebuilt as it may have stood then, opened, and
//! compared with what had been acknowledged: at level `process` for the end of the process, at level `node` for a loss of power.
//!
//! Symptom: a message with a seed, a cut and the kind of crash. Cause: recovery lost what was promised, or invented something. The seed
//! and the cut make it repeat. `DENIZEN_SOAK_SECONDS=600 cargo test --release --test crash -- --ignored --nocapture` goes on for longer.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::sim::{Crash, Faults, Op, Sim, crash};
use common::{Objects, Rng, contents, options};
use denizen_engine::{Access, Durability, Engine, Message, Recovery, SegmentSizes, Snapshot, StateError};

type Images = BTreeMap<u64, Vec<u8>>;

/// What was true after so many operations of the disk.
#[derive(Debug, Clone)]
struct Milestone {
    ops: usize,
    process: u64,
    node: u64,
}

/// How a life is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// With many syncs. Segments are so small that there are many and the compactor has work.
    Synced,
    /// Seldom with a sync, so that the tail is written through the window; with segments that have room for one.
    Windowed,
    /// As above, with values of some kilobytes under few keys, so that the places of dead ones are written over.
    Slotted,
}

/// A run of the engine from some disk on.
struct Life {
    habit: Habit,
    start: Images,
    journal: Vec<Op>,
    milestones: Vec<Milestone>,
    /// The objects after each commit that changed them.
    history: BTreeMap<u64, Objects>,
}

impl Life {
    /// What a commit number stands for: the compactor's commits change nothing.
    fn at(&self, commit: u64) -> &Objects {
        self.history.range(..=commit).next_back().unwrap().1
    }

    fn promised(&self, cut: usize, how: Crash) -> u64 {
        let reached = self.milestones.iter().filter(|milestone| milestone.ops <= cut);
        let level =
            |milestone: &Milestone| if how == Crash::Process { milestone.process } else { milestone.node };
        reached.map(level).max().unwrap()
    }

    /// The last commit that can have reached the disk.
    fn possible(&self, cut: usize) -> u64 {
        let after = self.milestones.iter().find(|milestone| milestone.ops > cut);
        after.or(self.milestones.last()).unwrap().process
    }
}

/// Where a life begins: a disk, what happened on it since it was last whole, and what that left.
struct Birth {
    habit: Habit,
    start: Images,
    journal: Vec<Op>,
    history: BTreeMap<u64, Objects>,
    /// The last commit that is known to have been durable.
    node: u64,
}

impl Birth {
    fn first(habit: Habit) -> Birth {
        let history = BTreeMap::from([(0, Objects::new())]);
        Birth { habit, start: Images::new(), journal: Vec::new(), history, node: 0 }
    }
}

fn open(sim: &Sim, habit: Habit) -> Result<(Engine, Recovery), StateError> {
    let mut options = options();
    options.segments = match habit {
        Habit::Synced => SegmentSizes { min_bytes: 8 << 10, max_bytes: 16 << 10 },
        Habit::Windowed => SegmentSizes { min_bytes: 40 << 10, max_bytes: 100 << 10 },
        Habit::Slotted => SegmentSizes { min_bytes: 60 << 10, max_bytes: 120 << 10 },
    };
    Engine::open(Arc::new(sim.clone()), options)
}

fn live(birth: Birth, steps: usize, rng: &mut Rng) -> Life {
    let sim = Sim::resume(&birth.start, &birth.journal);
    if birth.habit != Habit::Synced {
        sim.allow_windows();
    }
    let begun = Milestone { ops: 0, process: *birth.history.last_key_value().unwrap().0, node: birth.node };
    let (engine, recovery) = open(&sim, birth.habit).unwrap();
    let first = recovery.commit;
    let mut life = Life {
        habit: birth.habit,
        start: birth.start,
        journal: Vec::new(),
        milestones: vec![Milestone { process: first, ..begun }],
        history: birth.history,
    };
    let mut model = life.at(first).clone();
    life.history.retain(|commit, _| *commit <= first);
    mark(&mut life, &sim, first, first);
    let mut held: Option<(Snapshot, Objects)> = None;
    for _ in 0..steps {
        step(&engine, &mut model, &mut life, rng);
        mark(&mut life, &sim, engine.summary().commit, engine.durable());
        if life.habit == Habit::Slotted && rng.below(12) == 0 {
            // Whoever reads sees what was there, whatever is written meanwhile.
            if let Some((snapshot, objects)) = held.take() {
                assert!(contents(&snapshot).unwrap() == objects, "a snapshot has changed");
            } else {
                held = Some((engine.snapshot(), model.clone()));
            }
        }
    }
    life.journal = sim.journal();
    life
}

fn mark(life: &mut Life, sim: &Sim, process: u64, node: u64) {
    life.milestones.push(Milestone { ops: sim.journal_len(), process, node });
}

fn step(engine: &Engine, model: &mut Objects, life: &mut Life, rng: &mut Rng) {
    match rng.below(10) {
        0..=5 => {
            let mut tx = engine.begin(Access::Exclusive);
            for _ in 0..1 + rng.below(4) {
                let (names, lengths) = if life.habit == Habit::Slotted { (4, 2) } else { (12, 3) };
                let key = vec![b'a' + rng.below(names) as u8; 1 + rng.below(lengths)];
                if rng.below(4) == 0 {
                    assert_eq!(tx.delete(&key).unwrap(), model.remove(&key).is_some());
                } else {
                    let most = if rng.below(30) == 0 { 20_000 } else { 400 };
                    let slotted = life.habit == Habit::Slotted && rng.below(8) != 0;
                    let len = if slotted { 1000 + 80 * rng.below(8) } else { rng.below(most) };
                    let value = rng.bytes(len);
                    tx.put(&key, 1, &value).unwrap();
                    model.insert(key, (1, value));
                }
            }
            if rng.below(6) == 0 {
                tx.send(Message { destination: b"x", key: b"y", payload: b"z" }).unwrap();
            }
            let seq = tx.commit().unwrap();
            life.history.insert(seq, model.clone());
        }
        6..=7 if life.habit != Habit::Synced && rng.below(12) != 0 => engine.prepare(64 << 10),
        6..=7 => engine.wait(engine.summary().commit, Durability::Node).unwrap(),
        _ => {
            for _ in 0..6 {
                engine.compact_step(4000).unwrap();
            }
        }
    }
}

/// Rebuilds, opens, compares; returns what the next life begins with.
fn check(life: &Life, cut: usize, how: Crash, rng: &mut Rng, name: &str) -> Birth {
    let mut journal = life.journal[..cut].to_vec();
    if how == Crash::Process
        && let Some(Op::Write { segment, offset, bytes }) = life.journal.get(cut)
    {
        // It ended in the middle of a write.
        let bytes = bytes[..rng.below(bytes.len() + 1)].to_vec();
        journal.push(Op::Write { segment: *segment, offset: *offset, bytes });
    }
    let images = crash(&life.start, &journal, how, rng);
    let sim = Sim::from_images(&images);
    let (engine, recovery) = match open(&sim, life.habit) {
        Ok(opened) => opened,
        Err(error) => panic!("{name}, cut {cut}, {how:?}: it does not open: {error}"),
    };
    let (promised, possible) = (life.promised(cut, how), life.possible(cut));
    let commit = recovery.commit;
    assert!(
        commit >= promised,
        "{name}, cut {cut}, {how:?}: commit {promised} was acknowledged, {commit} is there"
    );
    assert!(
        commit <= possible,
        "{name}, cut {cut}, {how:?}: commit {commit} was invented, {possible} is the last"
    );
    let found = contents(&engine.snapshot()).unwrap();
    assert!(found == *life.at(commit), "{name}, cut {cut}, {how:?}: commit {commit} holds something else");
    let mut history = life.history.clone();
    history.retain(|number, _| *number <= commit);
    if how == Crash::Process {
        // The kernel still has what was not synced, and may still lose it.
        let node = life.promised(cut, Crash::Sectors);
        return Birth { habit: life.habit, start: life.start.clone(), journal, history, node };
    }
    Birth { habit: life.habit, start: images, journal: Vec::new(), history, node: commit }
}

fn every_cut(habit: Habit, seed: u64, steps: usize) {
    let mut rng = Rng(seed);
    let life = live(Birth::first(habit), steps, &mut rng);
    for cut in 0..=life.journal.len() {
        for how in [Crash::Process, Crash::Sectors, Crash::Pages] {
            check(&life, cut, how, &mut rng, &format!("seed {seed}"));
        }
    }
}

/// Several lives, each beginning with what the crash of the last one left.
fn lives(habit: Habit, seed: u64) {
    let mut rng = Rng(seed);
    let mut birth = Birth::first(habit);
    for number in 0..4 {
        let name = format!("lives of seed {seed}, life {number}");
        let steps = 5 + rng.below(if habit == Habit::Slotted { 150 } else { 60 });
        let born = birth.journal.len();
        let life = live(birth, steps, &mut rng);
        // Often near the end, where the newest segment is.
        let range = if rng.below(2) == 0 { 8 } else { 500 };
        let back = rng.below((life.journal.len() - born).min(range) + 1);
        let cut = life.journal.len() - back;
        let how = [Crash::Process, Crash::Sectors, Crash::Pages][rng.below(3)];
        birth = check(&life, cut, how, &mut rng, &name);
    }
}

#[test]
fn every_write_and_sync_boundary() {
    for seed in 0..6 {
        every_cut(Habit::Synced, seed, 60);
    }
}

#[test]
fn crash_after_crash() {
    for seed in 1000..1400 {
        lives(Habit::Synced, seed);
    }
}

/// What is stored through memory is noticed at the next operation of the disk, and lost or kept like what is written.
#[test]
fn every_boundary_while_the_tail_is_written_through_the_window() {
    for seed in 0..2 {
        every_cut(Habit::Windowed, seed, 60);
    }
    for seed in 1000..1100 {
        lives(Habit::Windowed, seed);
    }
}

/// What is written over is dead, and not needed by any commit that a crash may take the log back to.
#[test]
fn every_boundary_while_dead_values_are_written_over() {
    every_cut(Habit::Slotted, 0, 150);
    for seed in 1000..1150 {
        lives(Habit::Slotted, seed);
    }
}

/// Every life leaves a segment behind, and nobody compacts. What the next one reads must grow with the log and no faster.
#[test]
fn hundreds_of_crashes_leave_a_log_that_opens_in_bounded_work() {
    let sim = Sim::new();
    let mut model = Objects::new();
    let mut rng = Rng(3);
    for number in 0..300_u32 {
        let (engine, recovery) = open(&sim, Habit::Synced).unwrap();
        assert_eq!(recovery.commit, u64::from(number));
        let mut tx = engine.begin(Access::Exclusive);
        let (key, value) = (number.to_le_bytes().to_vec(), rng.bytes(200));
        tx.put(&key, 1, &value).unwrap();
        tx.commit().unwrap();
        model.insert(key, (1, value));
    }
    sim.set_faults(Faults::default());
    let (engine, _) = open(&sim, Habit::Synced).unwrap();
    let segments = engine.summary().segments;
    let (_, syncs, reads) = sim.counts();
    assert!(segments >= 300, "{segments} segments only");
    assert!(reads <= 6 * segments, "{reads} reads for {segments} segments");
    assert!(syncs <= 2, "{syncs} syncs: all but the last life's was durable");
    assert_eq!(contents(&engine.snapshot()).unwrap(), model);
    // And one life with as many segments, none of which was ever synced: whatever of them a loss of power leaves, the log opens.
    let (start, journal) = (sim.images(), sim.journal_len());
    for number in 0..1500_u32 {
        let mut tx = engine.begin(Access::Exclusive);
        let (key, value) = ((number % 1000).to_le_bytes().to_vec(), rng.bytes(900));
        tx.put(&key, 1, &value).unwrap();
        tx.commit().unwrap();
    }
    assert!(engine.summary().segments > segments + 40, "{}", engine.summary().segments);
    let journal = sim.journal().split_off(journal);
    for how in [Crash::Sectors, Crash::Pages] {
        let left = Sim::from_images(&crash(&start, &journal, how, &mut rng));
        let (engine, recovery) = open(&left, Habit::Synced).unwrap();
        let (_, _, reads) = left.counts();
        let present = left.handles().len() as u64;
        println!("{how:?}: {present} segments, commit {}, {reads} reads", recovery.commit);
        assert!(recovery.commit >= 300 && contents(&engine.snapshot()).unwrap().len() >= 300);
        assert!(reads <= 20 * present, "{reads} reads for {present} segments");
    }
}

/// Seeds that a soak found, each for a fault of its own.
#[test]
fn seeds_that_once_failed() {
    for seed in [1_795_444_078_246_951_453, 1_795_444_159_910_057_132] {
        lives(Habit::Synced, seed);
    }
}

#[test]
#[ignore = "a soak: set DENIZEN_SOAK_SECONDS"]
fn soak() {
    let seconds = std::env::var("DENIZEN_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let first = std::env::var("DENIZEN_SOAK_SEED").ok().and_then(|text| text.parse().ok());
    let first: u64 = first.unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    println!("first seed: {first}");
    let begun = Instant::now();
    let mut seed = first;
    while begun.elapsed() < Duration::from_secs(seconds) {
        if std::env::var_os("DENIZEN_SOAK_LOUD").is_some() {
            println!("seed {seed}");
        }
        let habit = match seed % 4 {
            0 => Habit::Windowed,
            1 => Habit::Slotted,
            _ => Habit::Synced,
        };
        lives(habit, seed);
        if seed.is_multiple_of(50) {
            every_cut(habit, seed, 60);
        }
        seed = seed.wrapping_add(1);
    }
    println!("seeds tried: {}", seed.wrapping_sub(first));
}
