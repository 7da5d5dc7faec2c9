//! What all executors share: the configuration, the ways to the other parts of the node, and to one another.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use denizen_image::ImageStore;
use denizen_sched::SchedulerHandle;
use futures_channel::mpsc;

use crate::dir::Dir;
use crate::front::Hosts;
use crate::home::{self, Job};
use crate::logs::Logs;
use crate::pool::Pool;
use crate::side::SideThread;
use crate::token::Token;

/// How an agent is to run.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The node's directory; made if it is not there.
    pub dir: PathBuf,
    /// Where to listen. Port 0: any free one.
    pub http: SocketAddr,
    /// Executor threads, each pinned to a processor. At least 1.
    pub executors: usize,
    /// Refuse to start where a layer of isolation is missing.
    pub require_isolation: bool,
    /// Sandboxes that wait before they are needed.
    pub pool: usize,
    /// Names, beside its address and `localhost`, under which the node may be addressed.
    pub allow_hosts: Vec<String>,
    /// Swap processes out after this time, whatever their images say.
    pub idle_override: Option<Duration>,
}

impl AgentConfig {
    /// One executor and two waiting sandboxes on the loopback.
    pub fn new(dir: PathBuf, http: SocketAddr) -> AgentConfig {
        AgentConfig {
            dir,
            http,
            executors: 1,
            require_isolation: false,
            pool: 2,
            allow_hosts: Vec::new(),
            idle_override: None,
        }
    }
}

/// The node, as every executor sees it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: AgentConfig,
    pub(crate) dir: Dir,
    pub(crate) address: SocketAddr,
    pub(crate) hosts: Hosts,
    pub(crate) token: Token,
    pub(crate) scheduler: SchedulerHandle,
    pub(crate) images: ImageStore,
    pub(crate) pool: Pool,
    pub(crate) logs: Logs,
    /// Opens state and sends assignments: quick things that block. Not behind the making of a sandbox, which can take long.
    pub(crate) assigning: SideThread,
    /// Copies state between the node and the swap store.
    pub(crate) copying: SideThread,
    /// Receives, checks and lists images.
    pub(crate) importing: SideThread,
    /// Random, so that invocations of different starts have different names.
    pub(crate) boot: String,
    pub(crate) started: Instant,
    pub(crate) jobs: Vec<mpsc::UnboundedSender<Job>>,
    pub(crate) stopping: AtomicBool,
    pub(crate) shutdown: Shutdown,
}

impl Node {
    pub(crate) fn executors(&self) -> usize {
        self.jobs.len()
    }

    /// The executor that a process lives on.
    pub(crate) fn home_of(&self, app: &str, process: &str) -> usize {
        home::home_of(app, process, self.executors())
    }

    /// Whether no new calls are taken.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// What the state of a process takes on this node's disk; a look at its file's size, which the kernel has in memory.
    pub(crate) fn state_bytes(&self, app: &str, process: &str) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(self.dir.process(app, process).local).ok()?;
        Some(metadata.blocks() * 512)
    }

    /// # Errors
    /// That executor has ended.
    pub(crate) fn send_job(&self, executor: usize, job: Job) -> Result<(), ()> {
        self.jobs.get(executor).ok_or(())?.unbounded_send(job).map_err(drop)
    }
}

/// Somebody asked for the node to end.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Shutdown {
    pub(crate) fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits at most `limit`; whether it was asked for.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(asked, limit, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
