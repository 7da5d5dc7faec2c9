//! When calls are due: at fixed times (open loop), or as soon as somebody is free (closed loop).

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::CATCH_UP;

/// Shared by all callers: each takes the next call that is due.
#[derive(Debug)]
pub(super) struct Schedule {
    start: Instant,
    end: Instant,
    /// Calls per second in all; `None` is the closed loop.
    rate: Option<f64>,
    /// How many are due in all, in open loop.
    due: u64,
    taken: AtomicU64,
    stopped: AtomicBool,
}

impl Schedule {
    pub(super) fn new(start: Instant, duration: Duration, rate: Option<f64>) -> Schedule {
        let due = rate.map_or(0, |rate| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count, and saturating"
            )]
            let due = (rate * duration.as_secs_f64()).ceil() as u64;
            due.max(1)
        });
        let end = start + duration;
        Schedule { start, end, rate, due, taken: AtomicU64::new(0), stopped: AtomicBool::new(false) }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// The time at which the next call is due, which may be past; `None` when there are no more.
    pub(super) fn take(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let Some(rate) = self.rate else { return (now < self.end).then_some(now) };
        if now > self.end + CATCH_UP {
            return None;
        }
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 calls")]
        let after = Duration::from_secs_f64(number as f64 / rate);
        (number < self.due).then(|| self.start + after)
    }

    /// No more calls.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Calls that were due and that nobody began.
    pub(super) fn unsent(&self) -> u64 {
        self.due.saturating_sub(self.taken.load(Ordering::Relaxed))
    }
}

/// Lets this thread's sleeps end when they should: by default the kernel may make them 50 µs longer, which would be measured.
pub(super) fn sharpen_timers() {
    // Without it the figures are a little worse, and still true.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_is_due_at_fixed_times_whoever_is_late() {
        let start = Instant::now();
        let schedule = Schedule::new(start, Duration::from_secs(1), Some(4.0));
        let due: Vec<_> = std::iter::from_fn(|| schedule.take()).map(|at| at.duration_since(start)).collect();
        assert_eq!(due, [0, 250, 500, 750].map(Duration::from_millis));
        assert_eq!(schedule.unsent(), 0);
    }

    #[test]
    fn what_nobody_began_is_counted() {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let schedule = Schedule::new(long_ago, Duration::from_secs(10), Some(2.5));
        assert_eq!(schedule.take(), None, "it is too late for all of them");
        assert_eq!(schedule.unsent(), 25);
        let late = Schedule::new(long_ago + Duration::from_secs(48), Duration::from_secs(10), Some(2.5));
        assert_eq!(
            late.take(),
            Some(long_ago + Duration::from_secs(48)),
            "late, and measured from when it was due"
        );
        assert_eq!(late.unsent(), 24);
    }

    #[test]
    fn a_closed_loop_is_due_at_once_until_its_end() {
        let schedule = Schedule::new(Instant::now(), Duration::from_secs(600), None);
        assert!(schedule.take().is_some_and(|at| at <= Instant::now()));
        schedule.stop();
        assert_eq!((schedule.take(), schedule.unsent()), (None, 0));
        let over = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        assert_eq!(Schedule::new(over, Duration::from_secs(1), None).take(), None);
    }
}
