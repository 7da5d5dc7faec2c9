//! Threads for work that blocks: making sandboxes, reading and writing files. Executors only wait for their answers.

use std::sync::mpsc;

use futures_channel::oneshot;

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

    /// Does `job` there, some time.
    pub(crate) fn later(&self, job: impl FnOnce() + Send + 'static) {
        // It can only fail when the thread is gone; then the reply channel in the job is dropped, too.
        let _ = self.jobs.send(Box::new(job));
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
}
