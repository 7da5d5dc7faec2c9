//! The threads that serve: one *leads* (reads the socket), the others run functions or are *spare*.
//!
//! The leader runs the call that it has read itself: no other thread is woken for it. While it runs, a spare *watches*: it looks
//! every millisecond, and if the leader is still in the same function it takes the lead over. The old leader then only finishes.
//! Each look is an interrupt and two changes of threads, which a call feels that they hit. So a leader that was quick at each of some looks
//! is looked at every fourth millisecond only, until one finds it in a function.
//!
//! What must hold:
//! - At any time at most one thread leads. `lead` is even while the leader reads and odd while it runs a function; it only grows, and
//!   whoever moves it from odd to even is the leader: the old one, or the spare that was faster.
//! - A leader runs a function only if a spare is there to watch, unless no second thread can be had at all.
//! - When nothing has run for [`QUIET_TICKS`] looks, the watcher sleeps without a timeout, and the next function wakes it: an idle
//!   process makes no wake-ups. The first time it gives back what the process no longer needs of its heap.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::locked;
use crate::plugin::give_back_free_memory;

/// How long a function may run before another thread takes over the reading.
const PATIENCE: Duration = Duration::from_millis(1);
/// And at a leader that was quick so far: how often that has to be seen, and how long it is trusted then.
const QUICK_LOOKS: u32 = 8;
const TRUST: Duration = Duration::from_millis(4);
/// After so many looks at a leader that only waits, the watcher sleeps.
const QUIET_TICKS: u32 = 16;

thread_local! {
    /// The value of `lead` that this thread set, 0 if it does not lead.
    static LEADING: Cell<u64> = const { Cell::new(0) };
}

/// What a thread without work is to do next.
#[derive(Debug)]
pub(crate) enum Duty<W> {
    /// Read the socket.
    Lead,
    /// Run this. If `hire`, no spare is left: start a thread first, its place is taken already.
    Run { work: W, hire: bool },
}

#[derive(Debug)]
pub(crate) struct Crew<W> {
    lead: AtomicU64,
    watcher_sleeps: AtomicBool,
    /// It was quiet once.
    rested: AtomicBool,
    /// Threads without work. Changed under the lock; read without it.
    spares: AtomicUsize,
    state: Mutex<State<W>>,
    watch_bell: Condvar,
    spare_bell: Condvar,
}

#[derive(Debug)]
struct State<W> {
    ready: VecDeque<W>,
    threads: usize,
    most_threads: usize,
    watching: bool,
}

impl<W> Crew<W> {
    /// A crew of one thread, the caller, which leads.
    pub(crate) fn led_by_this_thread(most_threads: usize) -> Crew<W> {
        LEADING.set(2);
        Crew {
            lead: AtomicU64::new(2),
            watcher_sleeps: AtomicBool::new(false),
            rested: AtomicBool::new(false),
            spares: AtomicUsize::new(0),
            state: Mutex::new(State { ready: VecDeque::new(), threads: 1, most_threads, watching: false }),
            watch_bell: Condvar::new(),
            spare_bell: Condvar::new(),
        }
    }

    /// The leader begins (or goes on) to run a function. Nothing for a thread that does not lead.
    pub(crate) fn begin_running(&self) {
        let lead = LEADING.get();
        if lead == 0 {
            return;
        }
        LEADING.set(lead + 1);
        self.lead.store(lead + 1, SeqCst);
        if self.watcher_sleeps.load(SeqCst) {
            // Once the lock could be had the watcher waits; rung without it, it does not wake up only to wait for the lock.
            drop(locked(&self.state));
            self.watch_bell.notify_one();
        }
    }

    /// The function returned, or waits for something that only frames can bring. Whether this thread leads (again).
    pub(crate) fn stop_running(&self) -> bool {
        let lead = LEADING.get();
        if lead == 0 {
            return false;
        }
        let kept = self.lead.compare_exchange(lead, lead + 1, SeqCst, SeqCst).is_ok();
        LEADING.set(if kept { lead + 1 } else { 0 });
        kept
    }

    /// Whether this thread still leads.
    pub(crate) fn leads(&self) -> bool {
        let lead = LEADING.get();
        lead != 0 && self.lead.load(SeqCst) == lead
    }

    /// Whether a spare is there (or on its way) for the leader to run a function beside.
    pub(crate) fn has_spare(&self) -> bool {
        self.spares.load(SeqCst) > 0
    }

    /// Takes a place for another thread, which the caller then starts with [`Crew::wait_as_new`], or gives back with
    /// [`Crew::not_hired`].
    pub(crate) fn hire(&self) -> bool {
        let mut state = locked(&self.state);
        self.hire_locked(&mut state)
    }

    fn hire_locked(&self, state: &mut State<W>) -> bool {
        let room = state.threads < state.most_threads;
        if room {
            state.threads += 1;
            self.spares.fetch_add(1, SeqCst);
        }
        room
    }

    /// The thread could not be started.
    pub(crate) fn not_hired(&self) {
        let mut state = locked(&self.state);
        state.threads -= 1;
        self.spares.fetch_sub(1, SeqCst);
    }

    /// Whether the caller is the only thread.
    pub(crate) fn is_alone(&self) -> bool {
        locked(&self.state).threads == 1
    }

    /// Work for whoever is free, or becomes free.
    pub(crate) fn offer(&self, work: W) {
        let mut state = locked(&self.state);
        state.ready.push_back(work);
        if self.spares.load(SeqCst) > usize::from(state.watching) {
            self.spare_bell.notify_one();
        } else {
            self.watch_bell.notify_one();
        }
    }

    /// Work that was offered and nobody has begun.
    pub(crate) fn take(&self) -> Option<W> {
        locked(&self.state).ready.pop_front()
    }

    /// Waits as a thread that was just hired.
    pub(crate) fn wait_as_new(&self) -> Duty<W> {
        self.wait_counted(locked(&self.state))
    }

    /// Waits for something to do.
    pub(crate) fn wait(&self) -> Duty<W> {
        let state = locked(&self.state);
        self.spares.fetch_add(1, SeqCst);
        self.wait_counted(state)
    }

    fn wait_counted<'a>(&'a self, mut state: MutexGuard<'a, State<W>>) -> Duty<W> {
        loop {
            if let Some(duty) = self.work_for_a_spare(&mut state) {
                return duty;
            }
            if state.watching {
                state = self.spare_bell.wait(state).unwrap_or_else(|broken| broken.into_inner());
                continue;
            }
            state.watching = true;
            let (after, took_over) = self.watch(state);
            state = after;
            state.watching = false;
            // Whatever this thread does now, another spare should watch.
            self.spare_bell.notify_one();
            if took_over {
                self.spares.fetch_sub(1, SeqCst);
                return Duty::Lead;
            }
        }
    }

    /// Takes offered work, but not as the last spare beside a running leader: somebody must stay to take over the reading.
    fn work_for_a_spare(&self, state: &mut State<W>) -> Option<Duty<W>> {
        if state.ready.is_empty() {
            return None;
        }
        let needed = self.spares.load(SeqCst) == 1 && self.lead.load(SeqCst) % 2 == 1;
        let hire = needed && self.hire_locked(state);
        if needed && !hire {
            return None;
        }
        let work = state.ready.pop_front()?;
        self.spares.fetch_sub(1, SeqCst);
        Some(Duty::Run { work, hire })
    }

    /// Looks at the leader until it can be replaced (true) or there is work (false).
    fn watch<'a>(&'a self, mut state: MutexGuard<'a, State<W>>) -> (MutexGuard<'a, State<W>>, bool) {
        let mut seen = self.lead.load(SeqCst);
        let (mut quiet, mut quick) = (0, 0);
        loop {
            let stays = self.spares.load(SeqCst) == 1 && seen % 2 == 1 && state.threads >= state.most_threads;
            if !state.ready.is_empty() && !stays {
                return (state, false);
            }
            if quiet >= QUIET_TICKS {
                if !self.rested.swap(true, SeqCst) {
                    // Now nobody waits for it.
                    drop(state);
                    give_back_free_memory();
                    state = locked(&self.state);
                    continue;
                }
                state = self.sleep_until_something_runs(state, seen);
                seen = self.lead.load(SeqCst);
                quiet = 0;
                continue;
            }
            let (after, timeout) = self
                .watch_bell
                .wait_timeout(state, time_to_look(quick, seen))
                .unwrap_or_else(|broken| broken.into_inner());
            state = after;
            if !timeout.timed_out() {
                continue;
            }
            let now = self.lead.load(SeqCst);
            if now == seen && now % 2 == 1 && self.lead.compare_exchange(now, now + 1, SeqCst, SeqCst).is_ok()
            {
                LEADING.set(now + 1);
                return (state, true);
            }
            (quiet, quick) = if now == seen { (quiet + 1, quick) } else { (0, quick.saturating_add(1)) };
            seen = now;
        }
    }

    /// No timeout: this is what an idle process costs. The leader rings after it has changed `lead`; either it sees that the
    /// watcher sleeps, or the watcher sees that `lead` has changed.
    fn sleep_until_something_runs<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<W>>,
        seen: u64,
    ) -> MutexGuard<'a, State<W>> {
        self.watcher_sleeps.store(true, SeqCst);
        if self.lead.load(SeqCst) == seen {
            state = self.watch_bell.wait(state).unwrap_or_else(|broken| broken.into_inner());
        }
        self.watcher_sleeps.store(false, SeqCst);
        state
    }
}

/// How long until the next look at a leader that was quick so often, and stood there at the last one.
fn time_to_look(quick: u32, lead: u64) -> Duration {
    if quick >= QUICK_LOOKS && lead.is_multiple_of(2) { TRUST } else { PATIENCE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn a_spare_takes_over_from_a_leader_that_runs_too_long() {
        let crew = Arc::new(Crew::<()>::led_by_this_thread(2));
        assert!(crew.hire());
        assert!(!crew.hire(), "two are the most");
        let spare = std::thread::spawn({
            let crew = crew.clone();
            move || {
                let duty = crew.wait_as_new();
                (matches!(duty, Duty::Lead), Instant::now())
            }
        });
        crew.begin_running();
        let begun = Instant::now();
        let (leads, at) = spare.join().unwrap();
        assert!(leads);
        assert!(at - begun >= Duration::from_micros(900), "too early: {:?}", at - begun);
        assert!(!crew.stop_running(), "the old leader must not lead any more");
    }

    #[test]
    fn only_a_leader_that_was_quick_and_runs_nothing_is_trusted() {
        assert_eq!(time_to_look(QUICK_LOOKS - 1, 2), PATIENCE);
        assert_eq!(time_to_look(QUICK_LOOKS, 2), TRUST);
        assert_eq!(time_to_look(QUICK_LOOKS, 3), PATIENCE);
    }

    #[test]
    fn a_leader_that_was_quick_for_long_is_replaced_all_the_same() {
        let crew = Arc::new(Crew::<()>::led_by_this_thread(2));
        assert!(crew.hire());
        let spare = std::thread::spawn({
            let crew = crew.clone();
            move || matches!(crew.wait_as_new(), Duty::Lead)
        });
        let until = Instant::now() + PATIENCE * 4 * QUICK_LOOKS;
        while Instant::now() < until {
            crew.begin_running();
            if !crew.stop_running() {
                // Somebody kept this thread from its processor: then it was not quick.
                assert!(spare.join().unwrap());
                return;
            }
        }
        crew.begin_running();
        assert!(spare.join().unwrap(), "it is trusted for ever");
        assert!(!crew.stop_running());
    }

    #[test]
    fn a_leader_that_is_quick_keeps_the_lead() {
        let crew = Arc::new(Crew::<()>::led_by_this_thread(2));
        assert!(crew.hire());
        let spare = std::thread::spawn({
            let crew = crew.clone();
            move || matches!(crew.wait_as_new(), Duty::Run { .. })
        });
        for _ in 0..2_000 {
            crew.begin_running();
            assert!(crew.stop_running());
        }
        let until = Instant::now() + Duration::from_secs(10);
        while !crew.watcher_sleeps.load(SeqCst) {
            assert!(Instant::now() < until, "an idle watcher must sleep");
            std::thread::sleep(PATIENCE * QUIET_TICKS);
        }
        crew.begin_running();
        assert!(crew.stop_running());
        std::thread::sleep(PATIENCE * 4);
        crew.offer(());
        assert!(spare.join().unwrap());
    }

    #[test]
    fn the_last_spare_stays_with_a_running_leader() {
        let crew = Arc::new(Crew::<u8>::led_by_this_thread(2));
        assert!(crew.hire());
        crew.begin_running();
        crew.offer(7);
        let spare = std::thread::spawn({
            let crew = crew.clone();
            move || matches!(crew.wait_as_new(), Duty::Lead)
        });
        assert!(spare.join().unwrap(), "it took the work, and nobody reads");
        assert_eq!(crew.take(), Some(7));
    }

    #[test]
    fn with_room_for_another_thread_the_last_spare_hires_it() {
        let crew = Arc::new(Crew::<u8>::led_by_this_thread(3));
        assert!(crew.hire());
        crew.begin_running();
        crew.offer(7);
        let spare = std::thread::spawn({
            let crew = crew.clone();
            move || matches!(crew.wait_as_new(), Duty::Run { work: 7, hire: true })
        });
        assert!(spare.join().unwrap());
        assert!(crew.has_spare());
    }
}
