//! One put and its commit, at both levels.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use denizen_engine::storage::FileSegment;
use denizen_engine::{Access, Durability, Engine};

use crate::Plan;
use crate::engines::{denizen, fill_denizen, fill_redb, lmdb, put_redb, redb};
use crate::rounds::{Contender, Rng, compare, key, on_core, quantiles};

/// Puts and commits; garbage is compacted as a host would, between calls.
pub(crate) fn put(engine: &Engine, key: &[u8], value: &[u8], level: Durability) {
    let mut tx = engine.begin(Access::Exclusive);
    tx.put_bytes(key, value).unwrap();
    let seq = tx.commit().unwrap();
    drop(tx);
    engine.wait(seq, level).unwrap();
}

/// A preallocated file that is appended to, and begun anew when it is full.
struct Bare {
    file: File,
    at: u64,
    capacity: u64,
    path: std::path::PathBuf,
}

impl Bare {
    fn new(plan: &Plan, name: &str) -> Bare {
        let path = plan.dir(name).join("bare");
        let mut bare = Bare { file: File::create(&path).unwrap(), at: 0, capacity: 64 << 20, path };
        bare.renew();
        bare
    }

    fn renew(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.file = File::create_new(&self.path).unwrap();
        FileSegment::allocate(&self.file, self.capacity).unwrap();
        self.at = 0;
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.at + bytes.len() as u64 > self.capacity {
            self.renew();
        }
        self.file.write_all_at(bytes, self.at).unwrap();
        self.at += bytes.len() as u64;
    }
}

/// What a record adds to a value with a key of 16 bytes.
const AROUND: usize = 64 + 48 + 16;

/// Calls between two moments of idleness.
const BURST: usize = 4;

/// Level `process`: survives the process.
pub(crate) fn process(plan: &Plan) {
    for (size, keys) in
        plan.pick(vec![(64, 1000), (4096, 1000), (64, 1_000_000)], vec![(64, 100), (4096, 100)])
    {
        let value = vec![7; size];
        let engine = denizen(&plan.dir("process-denizen"));
        fill_denizen(&engine, keys, &value);
        let rival = lmdb(&plan.dir("process-lmdb"), false);
        rival.fill(keys, &value);
        let red = redb(&plan.dir("process-redb"));
        fill_redb(&red, keys, &value);
        let mut bare = Bare::new(plan, "process-bare");
        let written = vec![7; size + AROUND];
        let rng = || {
            let mut rng = Rng(5);
            move || key(rng.below(keys))
        };
        let (mut a, mut b, mut c, mut d, mut e) = (rng(), rng(), rng(), rng(), rng());
        let contenders = vec![
            Contender::busy("denizen", || put(&engine, &a(), &value, Durability::Process)),
            Contender::new("denizen, prepared between", |n| {
                // What the host does while it waits for the next call is not part of one.
                let mut took = Duration::ZERO;
                for _ in 0..n / BURST {
                    engine.prepare(64 << 10);
                    let begun = Instant::now();
                    for _ in 0..BURST {
                        put(&engine, &e(), &value, Durability::Process);
                    }
                    took += begun.elapsed();
                }
                took
            }),
            Contender::new("denizen, compacting", |n| {
                let begun = on_core();
                for at in 0..n {
                    put(&engine, &d(), &value, Durability::Process);
                    if at % 16 == 0 {
                        engine.compact_step(64 << 10).unwrap();
                    }
                }
                on_core() - begun
            }),
            Contender::busy("LMDB NOSYNC WRITEMAP", || rival.put(&b(), &value)),
            Contender::new("redb, Durability::None", |n| {
                let begun = on_core();
                for _ in 0..n / 10 {
                    put_redb(&red, &c(), &value, false);
                }
                (on_core() - begun) * 10
            }),
            Contender::busy("bare pwrite of a record", || bare.append(&written)),
        ];
        let title = format!("process, {size} B, {keys} keys");
        compare(&title, plan.pick(101, 3), plan.pick(1000, 200), contenders);
    }
}

/// Level `node`: survives the loss of power.
pub(crate) fn node(plan: &Plan) {
    for size in [64, 4096] {
        let keys = 1000;
        let value = vec![7; size];
        let engine = denizen(&plan.dir("node-denizen"));
        fill_denizen(&engine, keys, &value);
        let rival = lmdb(&plan.dir("node-lmdb"), true);
        rival.fill(keys, &value);
        let red = redb(&plan.dir("node-redb"));
        fill_redb(&red, keys, &value);
        let mut bare = Bare::new(plan, "node-bare");
        let written = vec![7; size + AROUND];
        let rng = || {
            let mut rng = Rng(5);
            move || key(rng.below(keys))
        };
        let (mut a, mut b, mut c) = (rng(), rng(), rng());
        let contenders = vec![
            Contender::each("bare pwrite + fdatasync", || {
                bare.append(&written);
                bare.file.sync_data().unwrap();
            }),
            Contender::each("denizen", || put(&engine, &a(), &value, Durability::Node)),
            Contender::each("LMDB synced", || rival.put(&b(), &value)),
            Contender::each("redb synced", || put_redb(&red, &c(), &value, true)),
        ];
        let medians = compare(
            &format!("node, {size} B, {keys} keys"),
            plan.pick(201, 3),
            plan.pick(20, 10),
            contenders,
        );
        println!("{:<26} {:.3} × the bare sync", "", medians[1] / medians[0]);
    }
}

/// Many committers at level `node` share syncs.
pub(crate) fn group(plan: &Plan) {
    for threads in [1, 4, 16] {
        let engine = denizen(&plan.dir("group"));
        let each = plan.pick(1500, 20);
        let begun = Instant::now();
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|worker| {
                    let engine = engine.clone();
                    scope.spawn(move || {
                        let mut times = Vec::new();
                        for n in 0..each {
                            let begun = Instant::now();
                            put(&engine, &key(worker * each + n), &[7; 64], Durability::Node);
                            times.push(begun.elapsed());
                        }
                        times
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
        quantiles("node commits", &format!("{threads} committers, {rate:.0}/s"), &mut times);
    }
}
