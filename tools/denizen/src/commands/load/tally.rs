//! What came of the calls: a histogram of those that succeeded, and the others by type.
//!
//! Callers write into a few shared tallies; the meter moves what is new from them into the sum.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// Three digits are more than a measurement of this kind repeats.
const DIGITS: u8 = 3;
/// Enough that callers seldom meet.
const MOST_TALLIES: usize = 16;

/// Calls of one type that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) count: u64,
    /// What the first of them said.
    pub(super) first: String,
}

/// Calls that have ended.
#[derive(Debug)]
pub(super) struct Sum {
    /// Nanoseconds.
    latency: Histogram<u64>,
    errors: BTreeMap<String, Failed>,
}

/// Where one caller, or a few, write.
#[derive(Debug)]
pub(super) struct Tally(Mutex<Sum>);

/// All of them.
#[derive(Debug)]
pub(super) struct Tallies {
    parts: Vec<Tally>,
    sum: Mutex<Sum>,
}

impl Sum {
    fn new() -> Sum {
        let latency = Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!("3 digits are within 0 to 5"));
        Sum { latency, errors: BTreeMap::new() }
    }

    fn add_failed(&mut self, kind: &str, count: u64, first: &str) {
        match self.errors.get_mut(kind) {
            Some(failed) => failed.count += count,
            None => {
                self.errors.insert(kind.to_owned(), Failed { count, first: first.to_owned() });
            }
        }
    }

    fn take_in(&mut self, other: &Sum) {
        // A histogram that grows takes in any other.
        let _ = self.latency.add(&other.latency);
        for (kind, failed) in &other.errors {
            self.add_failed(kind, failed.count, &failed.first);
        }
    }

    pub(super) fn succeeded(&self) -> u64 {
        self.latency.len()
    }

    pub(super) fn failed(&self) -> u64 {
        self.errors.values().map(|failed| failed.count).sum()
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = (&str, &Failed)> {
        self.errors.iter().map(|(kind, failed)| (kind.as_str(), failed))
    }

    /// The time within which so many of a hundred calls had succeeded.
    pub(super) fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.latency.value_at_percentile(percent))
    }

    pub(super) fn percentiles(&self) -> [(&'static str, Duration); 5] {
        [
            ("p50", self.percentile(50.0)),
            ("p90", self.percentile(90.0)),
            ("p99", self.percentile(99.0)),
            ("p99_9", self.percentile(99.9)),
            ("max", Duration::from_nanos(self.latency.max())),
        ]
    }
}

impl Tally {
    /// A call that was due at `due` has succeeded now.
    pub(super) fn succeeded(&self, due: Instant) {
        let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // It grows as it must; a time that no histogram holds is longer than any run.
        let _ = lock(&self.0).latency.record(nanos);
    }

    /// A call has failed. `what` is only asked for the first of its kind.
    pub(super) fn failed(&self, kind: &str, what: impl FnOnce() -> String) {
        let mut sum = lock(&self.0);
        let first = if sum.errors.contains_key(kind) { String::new() } else { what() };
        sum.add_failed(kind, 1, &first);
    }
}

impl Tallies {
    pub(super) fn for_workers(workers: usize) -> Tallies {
        let parts = (0..workers.clamp(1, MOST_TALLIES)).map(|_| Tally(Mutex::new(Sum::new()))).collect();
        Tallies { parts, sum: Mutex::new(Sum::new()) }
    }

    pub(super) fn of_worker(&self, index: usize) -> &Tally {
        &self.parts[index % self.parts.len()]
    }

    /// Calls that were due and that nobody began.
    pub(super) fn add_unsent(&self, count: u64) {
        if count > 0 {
            let why = "due, and not begun: more --connections, or a lower --rate";
            lock(&self.sum).add_failed("not-sent", count, why);
        }
    }

    /// What has come since the last time. It is in the sum from now on.
    pub(super) fn since(&self) -> Sum {
        let mut news = Sum::new();
        for part in &self.parts {
            let mut part = lock(&part.0);
            news.take_in(&part);
            part.latency.reset();
            part.errors.values_mut().for_each(|failed| failed.count = 0);
        }
        lock(&self.sum).take_in(&news);
        news
    }

    /// All that has come.
    pub(super) fn sum(&self) -> Sum {
        self.since();
        let mut all = Sum::new();
        all.take_in(&lock(&self.sum));
        all.errors.retain(|_, failed| failed.count > 0);
        all
    }
}

fn lock(sum: &Mutex<Sum>) -> MutexGuard<'_, Sum> {
    // A caller that panicked has not left half a record.
    sum.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_or_counted_twice_between_part_and_sum() {
        let tallies = Tallies::for_workers(3);
        for worker in 0..3 {
            let tally = tallies.of_worker(worker);
            tally.succeeded(Instant::now().checked_sub(Duration::from_secs(1)).unwrap());
            tally.failed("a", || format!("first of {worker}"));
        }
        assert_eq!((tallies.since().succeeded(), tallies.since().succeeded()), (3, 0));
        tallies.of_worker(0).failed("a", || unreachable!("only the first is asked"));
        tallies.of_worker(1).failed("b", || "another".to_owned());
        tallies.add_unsent(7);
        let sum = tallies.sum();
        assert_eq!((sum.succeeded(), sum.failed()), (3, 12));
        let counts: Vec<_> = sum.errors().map(|(kind, failed)| (kind, failed.count)).collect();
        assert_eq!(counts, [("a", 4), ("b", 1), ("not-sent", 7)]);
        assert_eq!(sum.errors().next().unwrap().1.first, "first of 0");
        assert!(sum.percentile(50.0) >= Duration::from_secs(1));
        assert_eq!(tallies.sum().succeeded(), 3, "asking changes nothing");
    }
}
