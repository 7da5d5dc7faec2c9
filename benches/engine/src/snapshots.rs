//! What a snapshot costs the writer: pages that a reader can see are copied before they are changed.

use std::time::Instant;

use denizen_engine::{Access, Durability};

use crate::Plan;
use crate::commits::put;
use crate::engines::{denizen, fill_denizen};
use crate::rounds::{Contender, Rng, compare, key};

/// Commits with no reader, with a reader that holds one snapshot for ever, and with a new snapshot at every commit.
pub(crate) fn cost(plan: &Plan) {
    for keys in [1000, plan.pick(1_000_000, 5000)] {
        let engine = denizen(&plan.dir("snapshots"));
        fill_denizen(&engine, keys, &[7; 64]);
        let mut rng = Rng(3);
        let mut next = move || key(rng.below(keys));
        let engine = &engine;
        let n = plan.pick(20_000, 100);
        let mut times = [Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..7 {
            let begun = Instant::now();
            (0..n).for_each(|_| put(engine, &next(), &[7; 64], Durability::Process));
            times[0].push(begun.elapsed());
            let held = engine.snapshot();
            let begun = Instant::now();
            (0..n).for_each(|_| put(engine, &next(), &[7; 64], Durability::Process));
            times[1].push(begun.elapsed());
            drop(held);
            let begun = Instant::now();
            let mut held = engine.snapshot();
            for _ in 0..n {
                put(engine, &next(), &[7; 64], Durability::Process);
                held = engine.snapshot();
            }
            times[2].push(begun.elapsed());
            drop(held);
            let begun = Instant::now();
            (0..n).for_each(|_| drop(engine.snapshot()));
            times[3].push(begun.elapsed());
            let begun = Instant::now();
            (0..n).for_each(|_| drop(engine.begin(Access::Exclusive)));
            times[4].push(begun.elapsed());
        }
        let names =
            ["no reader", "one snapshot held", "a new snapshot each", "taking a snapshot", "begin and drop"];
        let rounds = times.into_iter().zip(names).map(|(times, name)| {
            let mut times = times.into_iter().cycle();
            Contender::new(name, move |_| times.next().unwrap())
        });
        compare(&format!("commit, {keys} keys"), 6, n, rounds.collect());
    }
}
