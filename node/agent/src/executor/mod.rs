//! The agent's executors: one pinned thread per core, each with its own poll loop. The only module that names tokio.
//!
//! It owns threads, timers, sockets and the adapter to hyper, and must stay small enough to be replaced in a day: the agent is off
//! the data path, so what is behind this module decides only how fast the HTTP front is. Nothing here moves between threads: a task
//! ends on the executor that it began on, and a wake from the same thread is no system call.

mod net;
mod resting;
mod taken;

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

pub(crate) use net::{Closer, ControlReader, ControlWriter, HttpStream, Listener, bind, try_congestion};
pub(crate) use resting::RestingSockets;
pub(crate) use taken::Taken;

/// How long a task rests that has always been ready.
const REST: Duration = Duration::from_millis(1);

/// How far the moments lie apart at which many wake at once.
const TOGETHER: Duration = Duration::from_secs(1);

/// The longest such rest: its sandbox may have something to say that a caller waits for.
const LONGEST_REST: Duration = Duration::from_millis(20);
/// Steps that a sandbox may cause without being asked, in a second and at once: a log that is written in earnest has fewer.
const UNASKED_PER_SECOND: u64 = 40_000;
const UNASKED_AT_ONCE: u64 = 4_000;
/// What a step costs for which the task had to be woken, in steps.
const WAKE_COST: u64 = 8;

/// Why executors cannot run on this machine.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// No processor to pin to.
    #[error("the processors that this program may use cannot be read: {0}")]
    Affinity(#[source] io::Error),
    /// A thread or its poll loop could not be made.
    #[error("executor {index} does not start: {why}")]
    Start {
        /// Which executor, from 0.
        index: usize,
        /// What the system said.
        why: String,
    },
}

/// The processors that this thread may run on, in order.
pub(crate) fn processors() -> Result<Vec<usize>, ExecutorError> {
    let set =
        rustix::thread::sched_getaffinity(None).map_err(|error| ExecutorError::Affinity(error.into()))?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// The threads of all executors.
#[derive(Debug)]
pub(crate) struct Executors {
    threads: Vec<JoinHandle<()>>,
}

impl Executors {
    /// Starts one pinned executor for each of `seeds` and runs `body(seed)` on it until that ends.
    ///
    /// More executors than processors share them in turn.
    ///
    /// # Errors
    /// [`ExecutorError`]; executors that had started then end as soon as their seed's owner tells them to.
    pub(crate) fn start<S, F, R>(seeds: Vec<S>, body: F) -> Result<Executors, ExecutorError>
    where
        S: Send + 'static,
        F: Fn(S) -> R + Clone + Send + 'static,
        R: Future<Output = ()> + 'static,
    {
        let cpus = processors()?;
        let mut threads = Vec::new();
        for (index, seed) in seeds.into_iter().enumerate() {
            let cpu = cpus.get(index % cpus.len().max(1)).copied().unwrap_or(0);
            threads.push(start_one(index, cpu, seed, body.clone())?);
        }
        Ok(Executors { threads })
    }

    /// Waits until every body has ended, at most until `until`. False where one is still running.
    pub(crate) fn join(self, until: Instant) -> bool {
        let mut all = true;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            // A thread that does not end is left behind: the program is about to exit anyway.
            all &= thread.is_finished() && thread.join().is_ok();
        }
        all
    }
}

fn start_one<S, F, R>(index: usize, cpu: usize, seed: S, body: F) -> Result<JoinHandle<()>, ExecutorError>
where
    S: Send + 'static,
    F: Fn(S) -> R + Send + 'static,
    R: Future<Output = ()> + 'static,
{
    let failed = |why: String| ExecutorError::Start { index, why };
    let (started, starts) = mpsc::channel();
    let run = move || match pinned_runtime(cpu) {
        Ok(runtime) => {
            let _ = started.send(Ok(()));
            runtime.block_on(guarded(body(seed)));
        }
        Err(error) => {
            let _ = started.send(Err(error.to_string()));
        }
    };
    let name = format!("executor-{index}");
    let thread =
        std::thread::Builder::new().name(name).spawn(run).map_err(|error| failed(error.to_string()))?;
    match starts.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(why)) => Err(failed(why)),
        Err(_) => Err(failed("its thread panicked".to_owned())),
    }
}

/// Pins this thread and makes its poll loop.
fn pinned_runtime(cpu: usize) -> io::Result<LocalRuntime> {
    let mut only = rustix::thread::CpuSet::new();
    only.set(cpu);
    rustix::thread::sched_setaffinity(None, &only)?;
    // Not a `LocalSet`: that is a second scheduler inside the first, and each wake goes through both.
    Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())
}

/// Runs `future` on this executor, beside everything else, from the caller's next wait on. A panic in it ends only itself.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(guarded(future));
}

async fn guarded(future: impl Future<Output = ()>) {
    if AssertUnwindSafe(future).catch_unwind().await.is_err() {
        tracing::error!("a task of the agent panicked; only its own request or process is affected");
    }
}

/// Waits.
pub(crate) async fn sleep(wait: Duration) {
    tokio::time::sleep(wait).await;
}

/// Waits until `when`, or until a moment before it at which everybody wakes who waits like this. Whoever finds that there is nothing to
/// do any more has cost next to nothing then: a thousand tasks that end in one second are one wake-up. A wait of less than
/// [`TOGETHER`] ends at `when`.
pub(crate) async fn sleep_together(when: Instant) {
    tokio::time::sleep_until(together(when, Instant::now()).into()).await;
}

/// When to wake who waits for `when`.
fn together(when: Instant, now: Instant) -> Instant {
    // Any moment will do that is the same for all.
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(|| now);
    let since = when.saturating_duration_since(origin);
    let common = origin + TOGETHER * u32::try_from(since.as_secs() / TOGETHER.as_secs()).unwrap_or(u32::MAX);
    if common > now && common < when { common } else { when }
}

/// A task whose work comes from a sandbox, which may never run out of it.
///
/// Yielding would be fair to the other tasks, and give the flood all the rest of the core. So such a task sleeps, which slows the
/// sandbox down, too: after many steps in a row, nine times as long as they took; and when there is more of what nobody asked for than
/// there may be, however it is spread. A sandbox that sends a little each time that it was heard would never be in a row.
#[derive(Debug)]
pub(crate) struct Pace {
    in_a_row: u32,
    limit: u32,
    /// When the present row began.
    begun: Instant,
    /// The task was woken for the next step.
    woken: bool,
    unasked: Bucket,
}

impl Pace {
    /// Rests after `limit` steps without a wait.
    pub(crate) fn new(limit: u32) -> Pace {
        let now = Instant::now();
        Pace { in_a_row: 0, limit, begun: now, woken: false, unasked: Bucket { level: 0, since: now } }
    }

    /// To be called for each step, before the next.
    pub(crate) async fn step(&mut self) {
        self.in_a_row += 1;
        if self.in_a_row == 2 {
            // Mostly there is no second one, and the clock costs as much as a step.
            self.begun = Instant::now();
        }
        if self.in_a_row >= self.limit {
            self.in_a_row = 0;
            sleep(rest_after(self.begun.elapsed())).await;
        }
    }

    /// To be called for each step that is owed to the sandbox alone: no call asked for it.
    pub(crate) async fn unasked(&mut self) {
        let cost = if std::mem::take(&mut self.woken) { WAKE_COST } else { 1 };
        if let Some(rest) = self.unasked.add(cost, Instant::now()) {
            self.in_a_row = 0;
            sleep(rest).await;
        }
    }

    /// Waits for more work; having waited is a rest.
    pub(crate) async fn wait<T>(&mut self, more: impl Future<Output = T>) -> T {
        let mut more = std::pin::pin!(more);
        if let Some(more) = futures_lite::future::poll_once(more.as_mut()).await {
            return more;
        }
        self.in_a_row = 0;
        let more = more.await;
        self.woken = true;
        more
    }
}

/// So that work takes a tenth of the time.
fn rest_after(work: Duration) -> Duration {
    (work * 9).clamp(REST, LONGEST_REST)
}

/// Lets through so much at once, and so much in each second.
#[derive(Debug)]
struct Bucket {
    level: u64,
    /// As of when.
    since: Instant,
}

impl Bucket {
    /// How long to wait, if at all, until so much may come.
    fn add(&mut self, cost: u64, now: Instant) -> Option<Duration> {
        let drained = now.saturating_duration_since(self.since).as_micros() * u128::from(UNASKED_PER_SECOND)
            / 1_000_000;
        if drained > 0 {
            self.level = self.level.saturating_sub(u64::try_from(drained).unwrap_or(u64::MAX));
            self.since = now;
        }
        self.level += cost;
        let over = self.level.checked_sub(UNASKED_AT_ONCE).filter(|over| *over > 0)?;
        Some(Duration::from_micros(over * 1_000_000 / UNASKED_PER_SECOND).max(REST))
    }
}

/// The result of `future`, or `None` when it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    async { Some(future.await) }
        .or(async {
            sleep(limit).await;
            None
        })
        .await
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Runs `body` on one executor of its own.
    pub(crate) fn on_executor<R: Future<Output = ()> + 'static>(
        body: impl Fn(()) -> R + Clone + Send + 'static,
    ) {
        let ended = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&ended);
        let whole = move |()| {
            let (work, tell) = (body(()), Arc::clone(&tell));
            async move {
                work.await;
                tell.store(true, Ordering::Relaxed);
            }
        };
        let executors = Executors::start(vec![()], whole).unwrap();
        assert!(executors.join(Instant::now() + Duration::from_secs(20)));
        // The executor itself outlives a panic.
        assert!(ended.load(Ordering::Relaxed), "the body panicked");
    }

    /// The processor time of one thread of this program: other tests run beside it.
    fn cpu_time(thread: rustix::thread::Pid) -> Duration {
        let stat = format!("/proc/self/task/{}/schedstat", thread.as_raw_nonzero());
        let text = std::fs::read_to_string(stat).unwrap();
        Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
    }

    #[test]
    fn wakes_across_executors_and_from_plain_threads_arrive() {
        let (to_b, at_b) = futures_channel::mpsc::unbounded::<u32>();
        let (to_a, at_a) = futures_channel::mpsc::unbounded::<u32>();
        let seeds = vec![(to_b.clone(), Some(at_a)), (to_a, Some(at_b))];
        let seeds: Vec<_> = seeds.into_iter().map(|(to, at)| Mutex::new(Some((to, at.unwrap())))).collect();
        to_b.unbounded_send(0).unwrap();
        drop(to_b);
        let executors = Executors::start(seeds, |seed: Mutex<Option<_>>| async move {
            let (to, mut at): (futures_channel::mpsc::UnboundedSender<u32>, _) =
                seed.lock().unwrap().take().unwrap();
            while let Some(n) = futures_lite::StreamExt::next(&mut at).await {
                if n >= 1000 || to.unbounded_send(n + 1).is_err() {
                    break;
                }
            }
        })
        .unwrap();
        assert!(executors.join(Instant::now() + Duration::from_secs(20)));
    }

    #[test]
    fn a_reply_from_a_plain_thread_wakes_a_parked_executor() {
        on_executor(|()| async {
            let (reply, waiting) = futures_channel::oneshot::channel();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                let _ = reply.send(7);
            });
            assert_eq!(within(Duration::from_secs(5), waiting).await, Some(Ok(7)));
        });
    }

    #[test]
    fn a_panicking_task_leaves_the_executor_running() {
        on_executor(|()| async {
            spawn(async { panic!("on purpose: this test shows that the executor survives it") });
            sleep(Duration::from_millis(20)).await;
        });
    }

    #[test]
    fn a_spawned_task_begins_after_its_spawner_has_yielded() {
        on_executor(|()| async {
            let held = std::rc::Rc::new(std::cell::RefCell::new(0));
            let theirs = std::rc::Rc::clone(&held);
            {
                let mut ours = held.borrow_mut();
                spawn(async move { *theirs.borrow_mut() += 1 });
                *ours += 1;
            }
            sleep(Duration::from_millis(20)).await;
            assert_eq!(*held.borrow(), 2);
        });
    }

    #[test]
    fn who_waits_long_wakes_with_others_and_never_late() {
        let now = Instant::now();
        together(now, now);
        let whens: Vec<_> = (0..400).map(|step| now + Duration::from_millis(30_000 + 5 * step)).collect();
        let wakes: std::collections::BTreeSet<_> = whens.iter().map(|when| together(*when, now)).collect();
        assert!(wakes.len() <= 4, "{} wakes for tasks of two seconds", wakes.len());
        for when in whens {
            let wakes = together(when, now);
            assert!(wakes <= when && when - wakes <= TOGETHER);
            // From there on it is the very moment.
            assert_eq!(together(when, wakes), when);
        }
        let soon = now + Duration::from_millis(1);
        assert!(together(soon, now) <= soon);
    }

    #[test]
    fn work_that_never_ends_gets_a_tenth_of_the_time() {
        assert_eq!(rest_after(Duration::from_micros(500)), Duration::from_micros(4500));
        assert_eq!(rest_after(Duration::ZERO), REST);
        assert_eq!(rest_after(Duration::from_secs(1)), LONGEST_REST);
    }

    /// On a clock that is an argument: whoever sends one thing each time that it was heard gets a fifth of a core and no more.
    #[test]
    fn what_nobody_asked_for_is_limited_however_it_is_spread() {
        for (cost, each_us) in [(1, 2), (WAKE_COST, 15)] {
            let begun = Instant::now();
            let (mut bucket, mut now) = (Bucket { level: 0, since: begun }, begun);
            let mut steps = 0;
            while now < begun + Duration::from_secs(10) {
                now += Duration::from_micros(each_us);
                steps += 1;
                now += bucket.add(cost, now).unwrap_or_default();
            }
            let may = (UNASKED_AT_ONCE + 10 * UNASKED_PER_SECOND) / cost;
            assert!((may * 9 / 10..=may + 1).contains(&steps), "{steps} steps of {cost}, {may} may be");
        }
        // What is written in earnest is never held up.
        let begun = Instant::now();
        let mut bucket = Bucket { level: 0, since: begun };
        assert!((0..100_000).all(|step| bucket.add(1, begun + Duration::from_micros(30 * step)).is_none()));
    }

    #[test]
    fn an_idle_executor_uses_no_processor() {
        let (stop, stopped) = futures_channel::oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let seed = Mutex::new(Some((stopped, tell)));
        let executors = Executors::start(vec![seed], |seed: Mutex<Option<_>>| async move {
            let (stopped, tell): (_, std::sync::mpsc::Sender<_>) = seed.lock().unwrap().take().unwrap();
            tell.send(rustix::thread::gettid()).unwrap();
            let _: Result<(), _> = stopped.await;
        })
        .unwrap();
        let thread = told.recv().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let before = cpu_time(thread);
        std::thread::sleep(Duration::from_millis(500));
        let used = cpu_time(thread) - before;
        // One that spins uses all of it, or, on a busy machine, its share; a parked one nothing.
        assert!(used < Duration::from_millis(20), "an idle executor used {used:?} in 500 ms");
        stop.send(()).unwrap();
        assert!(executors.join(Instant::now() + Duration::from_secs(20)));
    }
}
