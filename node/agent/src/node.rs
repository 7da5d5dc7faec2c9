//! What all executors share: the configuration, the ways to the other parts of the node, and to one another.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use denizen_image::{ImageStore, Isolation, Manifest};
use denizen_sched::SchedulerHandle;
use futures_channel::mpsc;

use crate::capacity::Seats;
use crate::data::keys::Believed;
use crate::dir::Dir;
use crate::executor;
use crate::front::Hosts;
use crate::home::{self, Job};
use crate::images::Holds;
use crate::logs::Logs;
use crate::pool::Pool;
use crate::side::{SideThread, SideThreads};
use crate::stock::Stock;
use crate::token::Token;

/// How long after a start the stock is filled up: longer than a first call takes.
const RESTOCK_PAUSE: Duration = Duration::from_millis(8);

/// How an agent is to run.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The node's directory; made if it is not there.
    pub dir: PathBuf,
    /// Where to listen. Port 0: any free one.
    pub http: SocketAddr,
    /// Where to listen for the framed protocol. `None`: nowhere.
    pub data: Option<SocketAddr>,
    /// Any free port where another program has that one.
    pub data_elsewhere: bool,
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
    /// Processes that may have a sandbox at once. `None`: one for each 8 MiB of memory and each 16 descriptors that this program may
    /// have. When all have one, the process that has been quiet longest is swapped out for the next; when all are busy, calls that need
    /// another are answered `node-full`.
    pub max_active: Option<usize>,
    /// How callers of the framed protocol reach processes at least, whatever their images say.
    pub isolation: Isolation,
    /// The congestion control of callers' connections, as the kernel names it (`cubic`). `None`: the system's.
    pub congestion: Option<String>,
}

impl AgentConfig {
    /// One executor and two waiting sandboxes on the loopback.
    pub fn new(dir: PathBuf, http: SocketAddr) -> AgentConfig {
        AgentConfig {
            dir,
            http,
            data: None,
            data_elsewhere: false,
            executors: 1,
            require_isolation: false,
            pool: 2,
            allow_hosts: Vec::new(),
            idle_override: None,
            max_active: None,
            isolation: Isolation::default(),
            congestion: None,
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
    /// The keys whose tokens open the data port.
    pub(crate) believed: Believed,
    pub(crate) scheduler: SchedulerHandle,
    pub(crate) images: ImageStore,
    pub(crate) held_images: Holds,
    pub(crate) pool: Pool,
    pub(crate) seats: Arc<Seats>,
    pub(crate) logs: Logs,
    /// Opens state and sends assignments: quick things that block. Not behind the making of a sandbox, which can take long.
    pub(crate) assigning: SideThread,
    /// Put connections into rings and take them out: calls that wait for a lock that a sandbox may hold.
    pub(crate) rings: SideThreads,
    /// Copy state between the node and the swap store, and remove it.
    pub(crate) copying: SideThreads,
    /// Reads state that no sandbox has.
    pub(crate) reading: SideThread,
    /// Makes segments, ahead and when they are wanted, and deletes those that are not.
    pub(crate) segments: SideThread,
    /// Makes what was made last, while plugins load.
    pub(crate) syncing: SideThread,
    pub(crate) stock: Stock,
    /// Receives, checks, lists and removes images: one at a time, which `images` counts on.
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

    /// How callers reach processes of an image: the stronger of its own wish and the node's, and `relay` where there are no rings.
    pub(crate) fn isolation_of(&self, manifest: &Manifest) -> Isolation {
        let can = if self.pool.has_rings() { Isolation::Ring } else { Isolation::Relay };
        self.config.isolation.max(manifest.isolation).max(can)
    }

    /// Makes the segments that lack in the stock, a little later: whoever took the last one needs the processor first.
    pub(crate) fn restock_soon(&self) {
        let (stock, side) = (self.stock.clone(), self.segments.clone());
        executor::spawn(async move {
            executor::sleep(RESTOCK_PAUSE).await;
            stock.refill(&side);
        });
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
