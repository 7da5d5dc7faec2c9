//! Threads for work that blocks: making sandboxes, reading and writing files. Executors only wait for their answers.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_channel::oneshot;

use crate::executor;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that does one job after the other. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct SideThread {
    jobs: mpsc::Sender<Job>,
}

/// The thread is gone: the node is stopping, or the job panicked.
#[derive(Debug, thiserror::Error)]
#[error(
    "a job on a side thread gave no answer: the node is stopping, or the job panicked (see the node's log)"
)]
pub(crate) struct NoAnswer;

impl SideThread {
    /// Starts a thread of this name (at most 15 bytes are shown by the kernel).
    pub(crate) fn start(name: &str) -> std::io::Result<SideThread> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            for job in queue {
                // A panicking job drops its reply channel, which its caller sees; the thread goes on.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a job on a side thread panicked");
                }
            }
        })?;
        Ok(SideThread { jobs })
    }

    /// Does `job` there and waits for its answer. The job is done even if nobody waits any more.
    pub(crate) fn run<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        job: F,
    ) -> impl Future<Output = Result<T, NoAnswer>> + use<T, F> {
        let (reply, answer) = oneshot::channel();
        self.later(move || {
            // Without a receiver the answer is dropped here.
            let _ = reply.send(job());
        });
        async { answer.await.map_err(|_| NoAnswer) }
    }

    /// As [`run`](Self::run), but `None` once the job has begun and is not done after `limit` (at most twice that). The time that it waits
    /// for its turn is not counted: who is before it is to blame for that, and may be another tenant.
    pub(crate) async fn run_within<T: Send + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Result<T, NoAnswer>> {
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let mut answer = pin!(self.run(move || {
            begins.store(true, Ordering::Relaxed);
            job()
        }));
        let mut had_begun = false;
        loop {
            match executor::within(limit, answer.as_mut()).await {
                Some(answer) => return Some(answer),
                None if had_begun => return None,
                None => had_begun = begun.load(Ordering::Relaxed),
            }
        }
    }

    /// Does `job` there, some time.
    pub(crate) fn later(&self, job: impl FnOnce() + Send + 'static) {
        // It can only fail when the thread is gone; then the reply channel in the job is dropped, too.
        let _ = self.jobs.send(Box::new(job));
    }
}

/// A few threads. What concerns one thing is done by one of them, one job after the other, in order; beside it, others do the rest.
#[derive(Debug)]
pub(crate) struct SideThreads {
    threads: Vec<SideThread>,
}

impl SideThreads {
    /// Starts `count` of them, at least 1, all of this name.
    pub(crate) fn start(name: &str, count: usize) -> std::io::Result<SideThreads> {
        let threads = (0..count.max(1)).map(|_| SideThread::start(name)).collect::<Result<_, _>>()?;
        Ok(SideThreads { threads })
    }

    /// The one for `key`, always the same.
    pub(crate) fn of(&self, key: impl Hash) -> &SideThread {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let at = usize::try_from(hash % self.threads.len() as u64).unwrap_or(0);
        // There is one at least, and none is ever taken out.
        &self.threads[at]
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn a_panicking_job_is_answered_and_the_thread_goes_on() {
        let side = SideThread::start("side-test").unwrap();
        assert!(
            block_on(side.run(|| panic!("on purpose: this test shows that the thread survives it"))).is_err()
        );
        assert_eq!(block_on(side.run(|| 7)).unwrap(), 7);
    }

    #[test]
    fn a_long_job_holds_up_what_concerns_the_same_and_little_else() {
        let threads = SideThreads::start("sides-test", 3).unwrap();
        let (release, held) = mpsc::channel::<()>();
        let long = threads.of("long").run(move || held.recv().is_ok());
        let is_other = |key: &usize| !std::ptr::eq(threads.of(key), threads.of("long"));
        let others: Vec<_> = (0..64).filter(is_other).collect();
        assert!(others.len() > 20, "{} of 64", others.len());
        for key in others {
            assert_eq!(block_on(threads.of(key).run(move || key)).unwrap(), key);
        }
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        for number in 0..100 {
            let order = std::sync::Arc::clone(&order);
            threads.of("long").later(move || order.lock().unwrap().push(number));
        }
        release.send(()).unwrap();
        assert!(block_on(long).unwrap());
        block_on(threads.of("long").run(|| ())).unwrap();
        assert!(order.lock().unwrap().iter().copied().eq(0..100));
    }

    #[test]
    fn who_waits_for_the_turn_of_another_is_not_late() {
        const LIMIT: Duration = Duration::from_millis(20);
        executor::tests::on_executor(|()| async {
            let side = SideThread::start("side-test").unwrap();
            let (go, wait) = mpsc::channel::<()>();
            let stuck = side.run_within(LIMIT, move || wait.recv());
            assert!(stuck.await.is_none(), "it has begun and does not end");
            let behind = executor::within(10 * LIMIT, side.run_within(LIMIT, || 7));
            assert!(behind.await.is_none(), "it waits on");
            let (behind, ()) = futures_lite::future::zip(side.run_within(LIMIT, || 8), async {
                executor::sleep(5 * LIMIT).await;
                go.send(()).unwrap();
            })
            .await;
            assert_eq!(behind.unwrap().unwrap(), 8);
        });
    }
}
