//! The agent as a program sees it: started, asked for its address, stopped.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use denizen_image::{ImageStore, StoreError};
use denizen_sandbox::{Isolation, IsolationReport, SandboxError, SpawnerConfig};
use denizen_sched::{AppName, SchedError, SchedulerHandle};
use futures_channel::{mpsc, oneshot};
use futures_lite::{StreamExt, future};

use crate::capacity::Seats;
use crate::data;
use crate::deployed::Deployed;
use crate::dir::{Dir, DirError};
use crate::executor::{self, ExecutorError, Executors, Listener};
use crate::front::{self, Hosts};
use crate::home::{Home, Job};
use crate::images::Holds;
use crate::logs::Logs;
use crate::node::{AgentConfig, Node, Shutdown};
use crate::pool::Pool;
use crate::process::MOST_WRITING;
use crate::side::{SideThread, SideThreads};
use crate::stock::Stock;
use crate::token::{Token, random_hex};

/// Threads that copy state to the swap store and back: one long copy holds up one part of the processes only. More would only fight
/// over the disk.
const COPYING_THREADS: usize = 3;
/// Threads that put connections into rings: one stuck ring holds up a part of the processes, for two seconds.
const RING_THREADS: usize = 2;
/// How long running calls may take when the agent stops; what processes have to write comes on top.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Blank segments that wait, beside two for each sandbox that does: a process takes one to start, and one at its first commit.
const STOCK: usize = 4;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The directory is taken or cannot be used.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// This machine cannot run executors.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// Another program listens on the address.
    #[error(
        "the address {0} is in use by another program. Remedy: stop that one, or choose another with --http (port 0 is any free one)"
    )]
    AddressInUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("the address {address} cannot be listened on: {source}. Remedy: choose another with --http")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Callers' connections cannot have the congestion control that is wanted.
    #[error(
        "sockets cannot have the congestion control `{name}`: {source}. Remedy: choose one of \
         /proc/sys/net/ipv4/tcp_available_congestion_control (without root, of tcp_allowed_congestion_control) with --congestion"
    )]
    Congestion {
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another program listens on the address of the data port.
    #[error(
        "the address {0} is in use by another program. Remedy: stop that one, or choose another with --data (port 0 is any free one, \
         `none` is no data port)"
    )]
    DataAddressInUse(SocketAddr),
    /// The keys of the data port cannot be used.
    #[error(transparent)]
    Keys(#[from] data::keys::KeysError),
    /// The spawner does not start, or a required layer of isolation is missing.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The image store cannot be opened.
    #[error(transparent)]
    Images(#[from] StoreError),
    /// The scheduler does not answer.
    #[error("the scheduler does not answer: {0}")]
    Scheduler(#[from] SchedError),
    /// What an application runs cannot be read back.
    #[error(
        "application {app}: {why}. Remedy: start the version of this program that was used before, or deploy to it again"
    )]
    Application {
        /// Its name.
        app: AppName,
        /// What is wrong.
        why: String,
    },
    /// A thread, or random numbers.
    #[error("{what}: {source}. Remedy: `ulimit -u` and `ulimit -n` must allow a few more")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A node's directory, locked by this program. Open the scheduler's store in it before [`Agent::start_in`].
#[derive(Debug)]
pub struct NodeDir(pub(crate) Dir);

impl NodeDir {
    /// Makes the directory if it is not there, and locks it.
    ///
    /// # Errors
    /// [`DirError::Locked`] where another agent has it; [`DirError::Unusable`].
    pub fn open(path: &Path) -> Result<NodeDir, DirError> {
        Dir::open(path).map(NodeDir)
    }

    /// Where the scheduler's store is.
    pub fn scheduler_store(&self) -> PathBuf {
        self.0.root().join("sched.redb")
    }
}

/// A running agent. [`Agent::stop`] ends it in order; when it is dropped without, its sandboxes die with the program.
#[derive(Debug)]
pub struct Agent {
    node: Arc<Node>,
    executors: Option<Executors>,
}

impl Agent {
    /// [`NodeDir::open`] and [`Agent::start_in`], for a scheduler whose store is elsewhere or already open.
    ///
    /// # Errors
    /// As both.
    pub fn start(config: AgentConfig, scheduler: SchedulerHandle) -> Result<Agent, AgentError> {
        let dir = NodeDir::open(&config.dir)?;
        Agent::start_in(dir, config, scheduler)
    }

    /// Starts an agent; when this returns, it serves. Blocks for some tens of milliseconds. `config.dir` is not looked at.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left running then.
    pub fn start_in(
        dir: NodeDir,
        config: AgentConfig,
        scheduler: SchedulerHandle,
    ) -> Result<Agent, AgentError> {
        raise_descriptor_limit();
        let NodeDir(dir) = dir;
        let count = config.executors.max(1);
        let congestion = config.congestion.as_deref();
        if let Some(name) = congestion {
            executor::try_congestion(name)
                .map_err(|source| AgentError::Congestion { name: name.to_owned(), source })?;
        }
        let (address, sockets) = executor::bind(config.http, count, congestion)
            .map_err(|source| address_error(config.http, source))?;
        let (data_address, data_sockets) = bind_data(&config, count)?;
        let apps = future::block_on(applications(&scheduler))?;
        let (jobs, queues): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded::<Job>()).unzip();
        let node = Arc::new(make_node(dir, config, address, scheduler, jobs)?);
        let mut data_sockets = data_sockets.into_iter();
        let seeds = sockets.into_iter().zip(queues).enumerate().map(|(index, (socket, queue))| {
            let home = HomeSeed { node: Arc::clone(&node), index, apps: apps.clone() };
            (home, (socket, data_sockets.next()), queue)
        });
        let executors = Executors::start(seeds.collect(), |(seed, (socket, data), queue)| async move {
            let home = seed.grow();
            match Listener::adopt(socket) {
                Ok(listener) => executor::spawn(front::accept(Rc::clone(&home), listener)),
                Err(error) => tracing::error!("executor {} takes no connections: {error}", home.index),
            }
            match data.map(Listener::adopt) {
                Some(Ok(listener)) => executor::spawn(data::accept(Rc::clone(&home), listener)),
                Some(Err(error)) => tracing::error!("executor {} takes no frames: {error}", home.index),
                None => {}
            }
            work(home, queue).await;
        })?;
        let agent = Agent { node, executors: Some(executors) };
        agent.node.dir.remove_endpoint();
        if let Some(address) = data_address {
            agent.node.dir.write_data_endpoint(&address.to_string())?;
        }
        // The last of all: whoever waits for it finds the rest.
        agent.node.dir.write_endpoint(&address.to_string())?;
        Ok(agent)
    }

    /// The address that it listens on.
    pub fn http_addr(&self) -> SocketAddr {
        self.node.address
    }

    /// Its directory, absolute.
    pub fn dir(&self) -> &Path {
        self.node.dir.root()
    }

    /// Which layers of isolation its sandboxes have.
    pub fn isolation(&self) -> &IsolationReport {
        self.node.pool.report()
    }

    /// Waits at most `limit` for a `POST /v1/shutdown`; whether one came.
    pub fn wait_for_shutdown(&self, limit: Duration) -> bool {
        self.node.shutdown.wait(limit)
    }

    /// Lets calls finish, at most for some seconds, and ends every sandbox. State stays where it is: nothing is swapped out.
    /// False where something had to be broken off.
    pub fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        let Some(executors) = self.executors.take() else { return true };
        self.node.stopping.store(true, Ordering::Relaxed);
        self.node.dir.remove_endpoint();
        let begun = Instant::now();
        let told: Vec<_> =
            (0..self.node.executors()).filter_map(|executor| stop_home(&self.node, executor)).collect();
        let orderly = told.into_iter().all(|told| future::block_on(told).is_ok());
        for jobs in &self.node.jobs {
            jobs.close_channel();
        }
        let joined = executors.join(begun + 2 * STOP_LIMIT + MOST_WRITING + Duration::from_secs(1));
        self.node.pool.stop();
        orderly && joined
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

/// An active process takes about eight descriptors, and shells allow 1024 for the sake of programs that use select(2). As many as may
/// be had; what programs started from here inherit is theirs to lower.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it is refused, calls say what lacks.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Drains all processes of an executor; resolves when they have ended.
fn stop_home(node: &Node, executor: usize) -> Option<oneshot::Receiver<()>> {
    let (tell, told) = oneshot::channel();
    let job = |home: Rc<Home>| {
        home.callers.drain(2 * STOP_LIMIT);
        executor::spawn(async move {
            let stops: Vec<_> = home
                .apps()
                .into_iter()
                .flat_map(|app| app.processes())
                .map(|process| {
                    let (tell, told) = oneshot::channel();
                    let home = Rc::clone(&home);
                    executor::spawn(async move {
                        let _ = process.stop(&home, STOP_LIMIT).await;
                        let _ = tell.send(());
                    });
                    told
                })
                .collect();
            let all = async {
                for stopped in stops {
                    let _ = stopped.await;
                }
            };
            executor::within(2 * STOP_LIMIT + MOST_WRITING, all).await;
            let _ = tell.send(());
        });
    };
    node.send_job(executor, Box::new(job)).ok()?;
    Some(told)
}

/// What an executor's home is made from, in its own thread.
struct HomeSeed {
    node: Arc<Node>,
    index: usize,
    apps: Vec<(AppName, Arc<Deployed>)>,
}

impl HomeSeed {
    fn grow(self) -> Rc<Home> {
        let home = Home::new(self.node, self.index);
        for (name, image) in self.apps {
            home.deploy(&name, image);
        }
        home
    }
}

/// Does what other executors want done here, until the node stops.
async fn work(home: Rc<Home>, mut queue: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = queue.next().await {
        job(Rc::clone(&home));
    }
}

async fn applications(scheduler: &SchedulerHandle) -> Result<Vec<(AppName, Arc<Deployed>)>, AgentError> {
    let mut apps = Vec::new();
    for record in scheduler.apps().await? {
        let image = scheduler.image_of(record.app.clone()).await?;
        let broken = |why: crate::problem::Problem| AgentError::Application {
            app: record.app.clone(),
            why: why.to_string(),
        };
        apps.push((record.app.clone(), Arc::new(Deployed::from_record(&image).map_err(broken)?)));
    }
    Ok(apps)
}

fn make_node(
    dir: Dir,
    config: AgentConfig,
    address: SocketAddr,
    scheduler: SchedulerHandle,
    jobs: Vec<mpsc::UnboundedSender<Job>>,
) -> Result<Node, AgentError> {
    let system = |what: &str| {
        let what = what.to_owned();
        move |source| AgentError::System { what, source }
    };
    let side = |name: &str| SideThread::start(name).map_err(system("a thread cannot be started"));
    let images = ImageStore::open(&dir.images())?;
    let stock = Stock::open(dir.stock(), STOCK + 2 * config.pool);
    let stock = stock.map_err(DirError::unusable(&dir.stock()))?;
    let segments = side("segments")?;
    stock.refill(&segments);
    let spawner = SpawnerConfig {
        image_store: dir.images(),
        lock_dir: dir.root().to_owned(),
        isolation: Isolation { require: config.require_isolation },
        rings: config.isolation == denizen_image::Isolation::Ring,
    };
    let pool = Pool::start(spawner, config.pool, side("spawning")?, side("warming")?)?;
    Ok(Node {
        hosts: Hosts::new(address, &config.allow_hosts),
        believed: data::keys::Believed::open(dir.root())?,
        token: Token::open(&dir.token()).map_err(DirError::unusable(&dir.token()))?,
        boot: random_hex::<4>().map_err(system("no random numbers can be had"))?,
        seats: Seats::new(config.max_active),
        copying: SideThreads::start("copying", COPYING_THREADS)
            .map_err(system("a thread cannot be started"))?,
        reading: side("reading")?,
        rings: SideThreads::start("rings", RING_THREADS).map_err(system("a thread cannot be started"))?,
        segments,
        syncing: side("syncing")?,
        stock,
        importing: side("importing")?,
        config,
        dir,
        address,
        scheduler,
        images,
        held_images: Holds::default(),
        pool,
        logs: Logs::default(),
        assigning: side("assigning")?,
        started: Instant::now(),
        jobs,
        stopping: AtomicBool::new(false),
        shutdown: Shutdown::default(),
    })
}

/// Binds the data port, if there is to be one.
fn bind_data(
    config: &AgentConfig,
    count: usize,
) -> Result<(Option<SocketAddr>, Vec<std::os::fd::OwnedFd>), AgentError> {
    let Some(wanted) = config.data else { return Ok((None, Vec::new())) };
    let congestion = config.congestion.as_deref();
    let bound = match executor::bind(wanted, count, congestion) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && config.data_elsewhere => {
            executor::bind(SocketAddr::new(wanted.ip(), 0), count, congestion)
        }
        bound => bound,
    };
    let bound = bound.map_err(|source| match address_error(wanted, source) {
        AgentError::AddressInUse(address) => AgentError::DataAddressInUse(address),
        error => error,
    });
    bound.map(|(address, sockets)| (Some(address), sockets))
}

fn address_error(address: SocketAddr, source: io::Error) -> AgentError {
    if source.kind() == io::ErrorKind::AddrInUse {
        return AgentError::AddressInUse(address);
    }
    AgentError::Address { address, source }
}
