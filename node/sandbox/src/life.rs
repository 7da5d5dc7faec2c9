//! A sandbox as the agent holds it: its ends of the sockets, and the power to limit, kill and mourn it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::{LastWords, Limits, SandboxError};

/// A sandbox that waits for its assignment, or works. Dropping it kills it.
#[derive(Debug)]
pub struct Sandbox {
    /// The agent's end of the connection on which the sandbox waits (a UNIX stream socket). Reads end-of-file when the sandbox is dead.
    pub control: OwnedFd,
    /// Where it answers (a UNIX stream socket, to be read only): apart from the other, so that the agent's reading wakes nobody who
    /// waits there. Reads end-of-file when the sandbox is dead.
    pub answers: OwnedFd,
    /// Where the sandbox's standard output and error arrive (a UNIX stream socket). Must be read, or `println!` in a
    /// function blocks.
    pub stdio: OwnedFd,
    /// The agent's descriptor of the sandbox's ring, locked and not yet enabled. `None`: it has none ([`crate::Spawner::rings`] says
    /// why, or there was no memory for this one). It keeps open whatever was installed in it, also when the sandbox is dead: close it
    /// then. The kernel lets the sockets go some milliseconds after that.
    pub ring: Option<OwnedFd>,
    /// Everything else; what outlives the sockets.
    pub life: Life,
}

impl Sandbox {
    /// Sets the ceilings of the control groups, as far as there are any ([`crate::Spawner::report`] says which).
    /// To be called before the assignment is sent.
    pub fn limit(&self, limits: &Limits) -> Result<(), SandboxError> {
        self.life.limit(limits)
    }

    /// Kills it. Returns at once; [`Life::wait_exit`] tells when it is gone.
    pub fn kill(&self) {
        self.life.kill();
    }

    /// Process id on this machine, for messages.
    pub fn pid(&self) -> u32 {
        self.life.pid()
    }

    /// Splits it into control, answers, stdio and the rest; the ring, if it was not taken out before, is closed. The sandbox is killed when
    /// the [`Life`] is dropped.
    pub fn into_parts(self) -> (OwnedFd, OwnedFd, OwnedFd, Life) {
        (self.control, self.answers, self.stdio, self.life)
    }
}

/// Holds a sandbox alive: dropping it kills the sandbox. `Send` and `Sync`; share it in an `Arc`.
#[derive(Debug)]
pub struct Life {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) last_words: LastWords,
    pub(crate) group: Group,
    pub(crate) obituary: Arc<Obituary>,
}

impl Life {
    /// Process id on this machine, for messages.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Becomes readable when the sandbox is dead.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// See [`Sandbox::limit`].
    pub fn limit(&self, limits: &Limits) -> Result<(), SandboxError> {
        self.group.limit(limits).map_err(|source| SandboxError::Step {
            step: format!("setting the control-group limits of sandbox {}", self.pid),
            remedy: "The sandbox may have died just now; otherwise is another program changing the control groups?",
            source,
        })
    }

    /// Lets the files that it writes become as long as `bytes`: for a segment that is longer than those that it had. Never more than
    /// [`crate::Admission::file_bytes`].
    ///
    /// # Errors
    /// Whatever the system says; the limit is as it was. A sandbox that is dead needs none.
    pub fn let_files_reach(&self, bytes: u64) -> std::io::Result<()> {
        if self.exit().is_some() {
            return Ok(());
        }
        crate::sys::let_files_reach(self.pid, bytes)
    }

    /// See [`Sandbox::kill`].
    pub fn kill(&self) {
        // It fails only when there is nothing left to kill.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// What the sandbox said when it died: an allegation.
    pub fn last_words(&self) -> &LastWords {
        &self.last_words
    }

    /// How it ended; `None` while it lives, or for the moment that the report takes. Never blocks.
    pub fn exit(&self) -> Option<ExitCause> {
        self.obituary.state().cause
    }

    /// Waits for the end, at most `limit`. Blocks the thread.
    pub fn wait_exit(&self, limit: Duration) -> Option<ExitCause> {
        let state = self.obituary.state();
        let waited = self.obituary.told.wait_timeout_while(state, limit, |state| state.cause.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.cause
    }

    /// Calls `then` once with the cause, on the spawner's watcher thread, or at once if it has ended already. `then`
    /// must not block (it may complete a one-shot channel).
    pub fn on_exit(&self, then: impl FnOnce(ExitCause) + Send + 'static) {
        let mut state = self.obituary.state();
        match state.cause {
            None => state.waiting.push(Box::new(then)),
            Some(cause) => {
                drop(state);
                then(cause);
            }
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a sandbox ended, as the kernel says: not an allegation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExitCause {
    /// It returned with this code. After last words were written the code is 128 + signal.
    Exited(i32),
    /// A signal ended it. 9 is SIGKILL: the agent, an operator, or the machine being out of memory. 31 is SIGSYS: a
    /// system call of another architecture, or a forbidden one with its handler gone.
    Signalled(i32),
    /// The kernel killed it because its control group was over its memory limit.
    OutOfMemory,
    /// The spawner died, and every sandbox with it.
    SpawnerGone,
}

/// Where a sandbox's end will be told, once.
#[derive(Default)]
pub(crate) struct Obituary {
    state: Mutex<State>,
    told: Condvar,
}

#[derive(Default)]
struct State {
    cause: Option<ExitCause>,
    waiting: Vec<Box<dyn FnOnce(ExitCause) + Send>>,
}

impl fmt::Debug for Obituary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Obituary").field("cause", &self.state().cause).finish_non_exhaustive()
    }
}

impl Obituary {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the end to all who wait. The first report counts.
    pub(crate) fn publish(&self, cause: ExitCause) {
        let waiting = {
            let mut state = self.state();
            if state.cause.is_some() {
                return;
            }
            state.cause = Some(cause);
            std::mem::take(&mut state.waiting)
        };
        self.told.notify_all();
        for then in waiting {
            then(cause);
        }
    }
}
