//! Sandboxes that wait before it is known whom they will serve: what makes a first call quick.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use denizen_sandbox::{IsolationReport, Sandbox, SandboxError, Spawner, SpawnerConfig};

use crate::executor;
use crate::problem::{Kind, Problem};
use crate::side::SideThread;

/// How long after a start the pool is filled up: longer than a first call takes.
const REFILL_PAUSE: Duration = Duration::from_millis(4);

/// Waiting sandboxes, and the spawner that makes them. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    side: SideThread,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Vec<Sandbox>>,
    target: usize,
    spawner: Mutex<Option<Spawner>>,
    config: SpawnerConfig,
    report: IsolationReport,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts the spawner, killing a predecessor's first, and keeps `target` sandboxes waiting from now on. Blocks.
    pub(crate) fn start(
        config: SpawnerConfig,
        target: usize,
        side: SideThread,
    ) -> Result<Pool, SandboxError> {
        let spawner = Spawner::start(config.clone())?;
        let report = spawner.report().clone();
        let shared =
            Shared { waiting: Mutex::default(), target, spawner: Mutex::new(Some(spawner)), config, report };
        let pool = Pool { shared: Arc::new(shared), side };
        pool.refill();
        Ok(pool)
    }

    pub(crate) fn report(&self) -> &IsolationReport {
        &self.shared.report
    }

    /// A waiting sandbox, or a new one where none waits. Call [`Pool::refill_soon`] once it has begun to work.
    pub(crate) async fn take(&self) -> Result<Sandbox, Problem> {
        while let Some(sandbox) = self.pop() {
            // One that somebody killed while it waited is dropped.
            if sandbox.life.exit().is_none() {
                return Ok(sandbox);
            }
        }
        let shared = Arc::clone(&self.shared);
        let made = self.side.run(move || shared.spawn()).await;
        made.map_err(|error| Problem::new(Kind::ShuttingDown, error.to_string()))?
            .map_err(|error| unavailable(&error))
    }

    /// Takes back a sandbox that got no assignment.
    pub(crate) fn give_back(&self, sandbox: Sandbox) {
        lock(&self.shared.waiting).push(sandbox);
    }

    /// Ends all waiting sandboxes and the spawner. Blocks for some milliseconds.
    pub(crate) fn stop(&self) {
        lock(&self.shared.waiting).clear();
        lock(&self.shared.spawner).take();
    }

    fn pop(&self) -> Option<Sandbox> {
        lock(&self.shared.waiting).pop()
    }

    /// Makes what lacks, a little later: whoever took the last one needs the processor first.
    pub(crate) fn refill_soon(&self) {
        let pool = self.clone();
        executor::spawn(async move {
            executor::sleep(REFILL_PAUSE).await;
            pool.refill();
        });
    }

    /// Makes what lacks, in the background.
    fn refill(&self) {
        let shared = Arc::clone(&self.shared);
        self.side.later(move || {
            // One at a time, so that a call that needs a sandbox now waits for one at most.
            if lock(&shared.waiting).len() < shared.target {
                match shared.spawn() {
                    Ok(sandbox) => lock(&shared.waiting).push(sandbox),
                    Err(error) => tracing::warn!("no sandbox can be made in advance: {error}"),
                }
            }
        });
    }
}

impl Shared {
    /// Makes a sandbox; starts another spawner where the last one is gone.
    fn spawn(&self) -> Result<Sandbox, SandboxError> {
        let mut spawner = lock(&self.spawner);
        match spawner.as_ref().map(Spawner::spawn) {
            Some(Err(SandboxError::SpawnerGone)) => {
                tracing::error!("the spawner is gone; starting another");
                // All that waited died with it.
                lock(&self.waiting).clear();
                let fresh = Spawner::start(self.config.clone())?;
                spawner.insert(fresh).spawn()
            }
            Some(made) => made,
            None => Err(SandboxError::SpawnerGone),
        }
    }
}

fn unavailable(error: &SandboxError) -> Problem {
    let kind = Kind::SandboxUnavailable.unless_out_of_descriptors(error);
    Problem::new(kind, "no sandbox can be made now").cause(error)
}
