//! The agent's executors: one pinned thread per core, each with its own ring. The only module that names glommio.
//!
//! It owns threads, timers, sockets and the adapter to hyper, and must stay small enough to be replaced in a day: the agent is off
//! the data path, so what is behind this module decides only how fast the HTTP front is. Three habits of glommio shape it: it panics
//! where io_uring or locked memory is missing (so [`preflight`] looks first, by doing), a panic in a task can hang or abort it (so
//! [`spawn`] catches panics inside the task), and it cannot poll an arbitrary descriptor (so everything here is a socket).

mod net;

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use glommio::{LocalExecutorBuilder, Placement};
use rustix::process::{Resource, getrlimit};

pub(crate) use net::{Closer, ControlReader, ControlWriter, HttpStream, Listener, bind, control_pair};

/// What glommio asks of `RLIMIT_MEMLOCK` before it makes a ring.
const MIN_LOCKED_BYTES: u64 = 512 << 10;
/// Depth of each ring, in submissions.
const RING_DEPTH: usize = 256;

/// How long a task rests that has always been ready.
const REST: Duration = Duration::from_millis(1);

/// Why executors cannot run on this machine.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The kernel refuses to make an io_uring.
    #[error(
        "io_uring cannot be used here ({0}): the kernel may be older than 5.8, or `kernel.io_uring_disabled` or a container's \
         system call filter forbids it. Remedy: `sysctl kernel.io_uring_disabled=0`, or run outside of that container"
    )]
    NoIoUring(#[source] io::Error),
    /// Too little memory may be locked.
    #[error(
        "only {0} bytes of memory may be locked, and the node's rings need {MIN_LOCKED_BYTES}. Remedy: `ulimit -l 8192` in this \
         shell, or LimitMEMLOCK=8M in the service"
    )]
    LockedMemory(u64),
    /// No processor to pin to.
    #[error("the processors that this program may use cannot be read: {0}")]
    Affinity(#[source] io::Error),
    /// A thread or its ring could not be made.
    #[error("executor {index} does not start: {why}")]
    Start {
        /// Which executor, from 0.
        index: usize,
        /// What the system said.
        why: String,
    },
}

/// Checks, by doing, what glommio would panic about.
pub(crate) fn preflight() -> Result<(), ExecutorError> {
    // No current value means unlimited.
    if let Some(limit) = getrlimit(Resource::Memlock).current
        && limit < MIN_LOCKED_BYTES
    {
        return Err(ExecutorError::LockedMemory(limit));
    }
    io_uring::IoUring::new(8).map(drop).map_err(ExecutorError::NoIoUring)
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
        preflight()?;
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
    let run = move || {
        // Memory for direct file I/O is never used here: the least possible.
        let builder =
            LocalExecutorBuilder::new(Placement::Fixed(cpu)).io_memory(64 << 10).ring_depth(RING_DEPTH);
        match builder.make() {
            Ok(executor) => {
                let _ = started.send(Ok(()));
                executor.run(guarded(body(seed)));
            }
            Err(error) => {
                let _ = started.send(Err(error.to_string()));
            }
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

/// Runs `future` on this executor, beside everything else. A panic in it ends only itself.
///
/// It begins after the caller has yielded: glommio would run it up to its first wait inside this call, while the caller may hold
/// a borrow that it needs.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    let later = async {
        futures_lite::future::yield_now().await;
        future.await;
    };
    glommio::spawn_local(guarded(later)).detach();
}

async fn guarded(future: impl Future<Output = ()>) {
    if AssertUnwindSafe(future).catch_unwind().await.is_err() {
        tracing::error!("a task of the agent panicked; only its own request or process is affected");
    }
}

/// Waits.
pub(crate) async fn sleep(wait: Duration) {
    glommio::timer::sleep(wait).await;
}

/// A task whose work comes from a sandbox, which may never run out of it.
///
/// Yielding is not enough: glommio looks at sockets and timers only when no task is ready, or its preemption timer fires, after 100 ms.
/// (A shorter timer is no remedy: at 1 ms wakes between executors got lost.) So such a task sleeps, which slows the sandbox down, too.
#[derive(Debug)]
pub(crate) struct Pace {
    in_a_row: u32,
    limit: u32,
}

impl Pace {
    /// Rests after `limit` steps without a wait.
    pub(crate) const fn new(limit: u32) -> Pace {
        Pace { in_a_row: 0, limit }
    }

    /// To be called for each step, before the next.
    pub(crate) async fn step(&mut self) {
        self.in_a_row += 1;
        if self.in_a_row >= self.limit {
            self.in_a_row = 0;
            sleep(REST).await;
        }
    }

    /// Waits for more work; having waited is a rest.
    pub(crate) async fn wait<T>(&mut self, more: impl Future<Output = T>) -> T {
        let mut more = std::pin::pin!(more);
        if let Some(more) = futures_lite::future::poll_once(more.as_mut()).await {
            return more;
        }
        self.in_a_row = 0;
        more.await
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
mod tests {
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
