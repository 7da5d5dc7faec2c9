//! The state engine beside LMDB (heed), redb, an ordered map, Redis, and bare system calls.
//!
//! Every comparison is made in alternating rounds of one run on one core; printed are the median of the rounds and their spread (lowest
//! and highest). Figures of different runs are not to be compared. `--tiny` runs everything small, for tests; a word runs only the
//! benchmarks whose name contains it; `--dir DIR` says where files go.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on may stop")]

mod commits;
mod engines;
mod lifetime;
mod reads;
mod rounds;
mod snapshots;
mod tail;

use std::path::PathBuf;

/// A benchmark by name.
type Bench = (&'static str, fn(&Plan));

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) tiny: bool,
    dir: PathBuf,
}

impl Plan {
    /// An empty directory for one contender.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// `full`, or `tiny` for a tiny run.
    pub(crate) fn pick<T>(&self, full: T, tiny: T) -> T {
        if self.tiny { tiny } else { full }
    }
}

/// Touches as much memory as the benchmarks fill with pages, and gives it back. What the host of a virtual machine has taken away costs
/// some ten microseconds a page when it is touched again, whoever is measured then.
fn touch_memory(plan: &Plan) {
    drop(std::hint::black_box(vec![1_u8; plan.pick(3 << 30, 1 << 20)]));
}

fn main() {
    let mut words = Vec::new();
    let mut tiny = false;
    let mut dir = PathBuf::from("/var/tmp");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--tiny" => tiny = true,
            "--dir" => dir = arguments.next().map(PathBuf::from).unwrap(),
            _ => words.push(argument),
        }
    }
    let scratch = tempfile::Builder::new().prefix("denizen-bench-engine-").tempdir_in(dir).unwrap();
    let plan = Plan { tiny, dir: scratch.path().to_owned() };
    let benches: [Bench; 11] = [
        ("hot", reads::hot),
        ("random", reads::random),
        ("first", reads::first_touch),
        ("redis", reads::redis),
        ("process", commits::process),
        ("node", commits::node),
        ("group", commits::group),
        ("snapshots", snapshots::cost),
        ("tail", tail::ways_to_write),
        ("amplification", lifetime::amplification),
        ("recovery", lifetime::recovery),
    ];
    for (name, bench) in benches {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            println!("\n== {name}");
            touch_memory(&plan);
            bench(&plan);
        }
    }
}
