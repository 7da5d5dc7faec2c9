//! When a quiet process is due to be swapped out, and which goes first where room is scarce. Pure: no clock,
//! no I/O; the time is an argument.

use std::time::Duration;

/// What a process has been doing, on the clock of whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Calls that have begun and not ended.
    pub in_flight: usize,
    /// When the last call ended, or the process became active, in milliseconds.
    pub quiet_since_ms: u64,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: calls are running. Ask again when the last one ends.
    Busy,
    /// Nothing yet. Unless a call comes, ask again after this long; earlier is useless.
    Wait(Duration),
    /// Swap it out.
    Due,
}

/// Judges `activity` at `now_ms`, for an image whose processes are swapped out after `idle`.
///
/// A clock that has stepped back makes a process wait longer, never shorter.
pub fn verdict(activity: Activity, idle: Duration, now_ms: u64) -> Verdict {
    if activity.in_flight > 0 {
        return Verdict::Busy;
    }
    let quiet = Duration::from_millis(now_ms.saturating_sub(activity.quiet_since_ms));
    match idle.checked_sub(quiet) {
        None | Some(Duration::ZERO) => Verdict::Due,
        Some(rest) => Verdict::Wait(rest),
    }
}

/// Which of `processes` is swapped out before its time when another needs its room: of those without calls the one that has been quiet
/// longest. Of equals, the first. `None`: all are busy.
pub fn first_out<K>(processes: impl IntoIterator<Item = (K, Activity)>) -> Option<K> {
    let quiet = processes.into_iter().filter(|(_, activity)| activity.in_flight == 0);
    quiet.min_by_key(|(_, activity)| activity.quiet_since_ms).map(|(process, _)| process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_waits_its_time_and_no_longer() {
        let idle = Duration::from_secs(60);
        let at = |in_flight, now_ms| verdict(Activity { in_flight, quiet_since_ms: 1000 }, idle, now_ms);
        assert_eq!(at(0, 1000), Verdict::Wait(idle));
        assert_eq!(at(0, 60_999), Verdict::Wait(Duration::from_millis(1)));
        assert_eq!(at(0, 61_000), Verdict::Due);
        assert_eq!(at(0, u64::MAX), Verdict::Due);
        assert_eq!(at(1, u64::MAX), Verdict::Busy);
        assert_eq!(at(0, 0), Verdict::Wait(idle));
    }

    #[test]
    fn asking_again_when_told_finds_it_due() {
        let activity = Activity { in_flight: 0, quiet_since_ms: 77 };
        let idle = Duration::from_millis(500);
        let Verdict::Wait(rest) = verdict(activity, idle, 200) else { panic!("it should wait") };
        assert_eq!(verdict(activity, idle, 200 + u64::try_from(rest.as_millis()).unwrap()), Verdict::Due);
    }

    #[test]
    fn the_longest_quiet_goes_first_and_a_busy_one_never() {
        let with = |in_flight, quiet_since_ms| Activity { in_flight, quiet_since_ms };
        let processes =
            [("busy", with(1, 0)), ("late", with(0, 9)), ("early", with(0, 3)), ("equal", with(0, 3))];
        assert_eq!(first_out(processes), Some("early"));
        assert_eq!(first_out([("busy", with(2, 0))]), None);
        assert_eq!(first_out::<()>([]), None);
    }
}
