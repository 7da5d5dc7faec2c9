//! What builds up: amplification, recovery time, and the slowest commits beside compaction and syncs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use denizen_engine::{Durability, Engine};

use crate::Plan;
use crate::commits::put;
use crate::engines::{denizen, fill_denizen};
use crate::rounds::{Rng, key, quantiles};

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let fields: Vec<u64> = text.split_whitespace().map(|field| field.parse().unwrap()).collect();
    // Resident less what is shared with files.
    (fields[1] - fields[2]) * 4096
}

fn disk_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// Overwrites of 1,000 keys, compacted as they go; then commits beside compaction and beside syncs.
pub(crate) fn amplification(plan: &Plan) {
    let dir = plan.dir("amplification");
    let engine = denizen(&dir);
    let (keys, overwrites) = (1000, plan.pick(10_000_000, 20_000));
    fill_denizen(&engine, keys, &[7; 64]);
    let memory = resident_bytes();
    let mut rng = Rng(1);
    let begun = Instant::now();
    let mut peak = 0;
    for n in 0..overwrites {
        put(&engine, &key(rng.below(keys)), &[7; 64], Durability::Process);
        if n % 16 == 0 {
            engine.compact_step(64 << 10).unwrap();
        }
        if n % 65_536 == 0 {
            peak = peak.max(engine.summary().disk_bytes);
        }
    }
    let summary = engine.summary();
    println!(
        "{overwrites} overwrites of {keys} keys of 64 B: {:.0} ns each; live {} B, log {} B (peak {peak}), \
         on disk with the spare {} B, index {} B, private memory grew by {} KiB",
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(overwrites),
        summary.live_bytes,
        summary.disk_bytes,
        disk_bytes(&dir),
        summary.index_bytes,
        resident_bytes().saturating_sub(memory) >> 10,
    );
    drop(engine);
    slowest(plan);
}

/// What another thread does, by name.
type Work = (&'static str, fn(&Engine));

/// Times of single commits while another thread compacts or syncs without a pause.
fn slowest(plan: &Plan) {
    let works: [Work; 3] = [
        ("nothing beside", |_| std::thread::sleep(Duration::from_millis(1))),
        ("compaction beside", |engine| {
            if engine.compact_step(64 << 10).unwrap() == denizen_engine::Compaction::NotDue {
                std::thread::sleep(Duration::from_micros(200));
            }
        }),
        ("syncs beside", |engine| engine.wait(engine.snapshot().commit_number(), Durability::Node).unwrap()),
    ];
    for (name, work) in works {
        let engine = denizen(&plan.dir("slowest"));
        fill_denizen(&engine, 20_000, &[7; 64]);
        let stop = AtomicBool::new(false);
        let mut times = Vec::new();
        std::thread::scope(|scope| {
            let beside = engine.clone();
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    work(&beside);
                }
                drop(beside);
            });
            let mut rng = Rng(1);
            for _ in 0..plan.pick(200_000, 1000) {
                let begun = Instant::now();
                put(&engine, &key(rng.below(20_000)), &[7; 64], Durability::Process);
                times.push(begun.elapsed());
            }
            stop.store(true, Ordering::Relaxed);
        });
        quantiles("commit of 64 B, process", name, &mut times);
    }
}

/// Opening logs of growing length, page cache warm: sealed ones, and some that never were synced, which opening does.
pub(crate) fn recovery(plan: &Plan) {
    for (size, keys) in plan.pick(
        vec![(64, 1000), (64, 100_000), (64, 1_000_000), (4096, 60_000), (1 << 20, 1000)],
        vec![(64, 1000), (4096, 100)],
    ) {
        let dir = plan.dir("recovery");
        let engine = denizen(&dir);
        let value = vec![7; size];
        if size < 1 << 20 {
            fill_denizen(&engine, keys, &value);
        } else {
            (0..keys).for_each(|n| put(&engine, &key(n), &value, Durability::Process));
        }
        engine.seal().unwrap();
        opening(plan, &dir, engine, &format!("{keys:>8} keys of {size:>8} B"));
    }
    // Above the watermark of a process that was killed everything is looked at, as far as it is live.
    for size in [64, 4096] {
        let dir = plan.dir("recovery");
        let engine = denizen(&dir);
        let (commits, mut rng) = (plan.pick(1_000_000, 1000), Rng(3));
        for _ in 0..commits {
            put(&engine, &key(rng.below(1000)), &vec![7; size], Durability::Process);
            engine.compact_step(64 << 10).unwrap();
        }
        opening(plan, &dir, engine, &format!("never synced, {commits} commits of {size} B"));
    }
}

fn opening(plan: &Plan, dir: &std::path::Path, engine: Engine, title: &str) {
    let before = engine.summary();
    drop(engine);
    // A log that was opened is synced, so each time it is another.
    let copy = plan.dir("recovery-copy");
    let mut times: Vec<Duration> = (0..plan.pick(5, 2))
        .map(|_| {
            for file in std::fs::read_dir(dir).unwrap() {
                let file = file.unwrap();
                let to = copy.join(file.file_name());
                std::fs::copy(file.path(), &to).unwrap();
                if before.durable == before.commit {
                    std::fs::File::open(to).unwrap().sync_all().unwrap();
                }
            }
            let begun = Instant::now();
            let engine = denizen(&copy);
            let took = begun.elapsed();
            assert_eq!(engine.summary().keys, before.keys);
            drop(engine);
            std::fs::read_dir(&copy)
                .unwrap()
                .for_each(|file| std::fs::remove_file(file.unwrap().path()).unwrap());
            took
        })
        .collect();
    times.sort();
    println!(
        "{title}, log of {:>6} MiB: opened in {:>9.2} ms ({:.2} to {:.2})",
        before.disk_bytes >> 20,
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[0].as_secs_f64() * 1e3,
        times[times.len() - 1].as_secs_f64() * 1e3
    );
}
