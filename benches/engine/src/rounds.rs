//! Alternating rounds: every contender does a piece, then every one the next piece, so that what disturbs the machine disturbs all.

use std::time::{Duration, Instant};

/// One contender: a name, and what does `n` operations and says how long they took.
pub(crate) struct Contender<'a> {
    pub(crate) name: String,
    pub(crate) run: Box<dyn FnMut(usize) -> Duration + 'a>,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(name: impl Into<String>, run: impl FnMut(usize) -> Duration + 'a) -> Contender<'a> {
        Contender { name: name.into(), run: Box::new(run) }
    }

    /// One whose every operation is alike and never waits: timed by what the thread was on the core, so that others who share the core
    /// are left out.
    pub(crate) fn busy(name: impl Into<String>, mut operation: impl FnMut() + 'a) -> Contender<'a> {
        Contender::new(name, move |n| {
            let begun = on_core();
            for _ in 0..n {
                operation();
            }
            on_core() - begun
        })
    }

    /// One whose every operation is alike.
    pub(crate) fn each(name: impl Into<String>, mut operation: impl FnMut() + 'a) -> Contender<'a> {
        Contender::new(name, move |n| {
            let begun = Instant::now();
            for _ in 0..n {
                operation();
            }
            begun.elapsed()
        })
    }
}

/// How long this thread has been on a core, in the kernel or not.
pub(crate) fn on_core() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

/// Runs `rounds` rounds of `n` operations and prints nanoseconds per operation. Returns the medians.
pub(crate) fn compare(title: &str, rounds: usize, n: usize, mut contenders: Vec<Contender<'_>>) -> Vec<f64> {
    let mut times = vec![Vec::new(); contenders.len()];
    for contender in &mut contenders {
        (contender.run)(n.div_ceil(10));
    }
    for _ in 0..rounds {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            times.push((contender.run)(n).as_secs_f64() * 1e9 / n as f64);
        }
    }
    let ours = contenders.iter().position(|contender| contender.name == "denizen");
    let ours = ours.map(|at| times[at].clone());
    let mut medians = Vec::new();
    for (contender, times) in contenders.iter().zip(&mut times) {
        let ratios = ours.as_ref().map_or(String::new(), |ours| quartiles_of_ratios(times, ours));
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        println!(
            "{title:<26} {:<28} {median:>12.1} ns   ({:.1} to {:.1}, {rounds} rounds of {n}{ratios})",
            contender.name,
            times[0],
            times[times.len() - 1]
        );
        medians.push(median);
    }
    medians
}

/// How many times as long as ours, round by round: median, and between which values the middle half lies. Rounds that stand next to each
/// other are disturbed alike, so this says more than the times where there is much else to do.
fn quartiles_of_ratios(times: &[f64], ours: &[f64]) -> String {
    let mut ratios: Vec<f64> = times.iter().zip(ours).map(|(time, ours)| time / ours).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
    format!("; {:.2} x ours, half of the rounds {:.2} to {:.2}", at(2), at(1), at(3))
}

/// A few quantiles of single times, in microseconds.
pub(crate) fn quantiles(title: &str, name: &str, times: &mut [Duration]) {
    times.sort();
    let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000].as_secs_f64() * 1e6;
    println!(
        "{title:<26} {name:<28} p50 {:>9.1} µs   p99 {:>9.1}   p99.9 {:>9.1}   max {:>9.1}   ({} times)",
        at(500),
        at(990),
        at(999),
        at(1000),
        times.len()
    );
}

/// Splitmix64.
#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A key of 16 bytes that scatters: the same for every contender.
pub(crate) fn key(n: u64) -> [u8; 16] {
    let mut rng = Rng(n);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&rng.next().to_be_bytes());
    key[8..].copy_from_slice(&rng.next().to_be_bytes());
    key
}
