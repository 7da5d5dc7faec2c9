//! Sandboxes that wait before it is known whom they will serve: what makes a first call quick.
//!
//! Most have nothing but their walls and can become anything. For each application that was started lately one more has loaded its image
//! ([`Warm`]), as many as there are of the others. None of either where the node is to keep no pool.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use denizen_sandbox::{IsolationReport, Rings, Sandbox, SandboxError, Spawner, SpawnerConfig};
use denizen_sched::AppName;

use crate::deployed::Deployed;
use crate::descriptors;
use crate::executor;
use crate::problem::{Kind, Problem, unless_out_of_descriptors};
use crate::side::SideThread;
use crate::warm::{Prepared, Warm};

/// How long after a start the pool is filled up: longer than a first call takes.
const REFILL_PAUSE: Duration = Duration::from_millis(4);

/// Waiting sandboxes, and the spawner that makes them. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    side: SideThread,
    /// Where images are loaded, which takes as long as their authors like: nobody waits for it.
    warming: SideThread,
}

#[derive(Debug)]
struct Shared {
    /// The oldest first: its groups have been entered long since.
    waiting: Mutex<VecDeque<Sandbox>>,
    /// The one of the application that was started last is the last.
    warm: Mutex<Vec<Warm>>,
    /// Applications that got another image, counted: what was begun before is not kept.
    replaced: AtomicU64,
    target: usize,
    spawner: Mutex<Option<Spawner>>,
    config: SpawnerConfig,
    report: IsolationReport,
    has_rings: bool,
}

/// A sandbox from the pool.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) sandbox: Sandbox,
    /// It has loaded the image that was asked for.
    pub(crate) prepared: Option<Prepared>,
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
        warming: SideThread,
    ) -> Result<Pool, SandboxError> {
        let spawner = Spawner::start(config.clone())?;
        let report = spawner.report().clone();
        let has_rings = match spawner.rings() {
            Rings::Made => true,
            Rings::Unwanted => false,
            Rings::Unavailable(why) => {
                tracing::warn!("callers are relayed, for want of rings: {why}");
                false
            }
        };
        let shared = Shared {
            waiting: Mutex::default(),
            warm: Mutex::default(),
            replaced: AtomicU64::new(0),
            target,
            spawner: Mutex::new(Some(spawner)),
            config,
            report,
            has_rings,
        };
        let pool = Pool { shared: Arc::new(shared), side, warming };
        pool.refill();
        Ok(pool)
    }

    pub(crate) fn report(&self) -> &IsolationReport {
        &self.shared.report
    }

    /// Whether sandboxes get rings.
    pub(crate) fn has_rings(&self) -> bool {
        self.shared.has_rings
    }

    /// A sandbox that waits and can become anything, or a new one where none waits. Call [`Pool::refill_soon`] once it has begun to work.
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

    /// The same, or one that has loaded this image.
    pub(crate) async fn take_for(&self, app: &AppName, image: &Deployed) -> Result<Taken, Problem> {
        match self.pop_warm(app, image) {
            Some(Warm { sandbox, prepared, .. }) => Ok(Taken { sandbox, prepared: Some(prepared) }),
            None => Ok(Taken { sandbox: self.take().await?, prepared: None }),
        }
    }

    /// One that can become anything, without an executor to wait on. Blocks.
    pub(crate) fn take_here(&self) -> Result<Sandbox, Problem> {
        let waiting = self.pop().filter(|sandbox| sandbox.life.exit().is_none());
        waiting.map_or_else(|| self.shared.spawn().map_err(|error| unavailable(&error)), Ok)
    }

    /// Takes back a sandbox that got no assignment.
    pub(crate) fn give_back(&self, taken: Taken) {
        let Taken { sandbox, prepared } = taken;
        match prepared {
            Some(prepared) => lock(&self.shared.warm).push(Warm { sandbox, prepared }),
            None => lock(&self.shared.waiting).push_back(sandbox),
        }
    }

    /// Ends all waiting sandboxes and the spawner. Blocks for some milliseconds.
    pub(crate) fn stop(&self) {
        lock(&self.shared.waiting).clear();
        // First this: what is loaded now finds nowhere to wait.
        lock(&self.shared.spawner).take();
        lock(&self.shared.warm).clear();
    }

    fn pop(&self) -> Option<Sandbox> {
        lock(&self.shared.waiting).pop_front()
    }

    fn pop_warm(&self, app: &AppName, image: &Deployed) -> Option<Warm> {
        let mut warm = lock(&self.shared.warm);
        let at = warm.iter().position(|warm| warm.is_of(app, image.id))?;
        let found = warm.remove(at);
        found.sandbox.life.exit().is_none().then_some(found)
    }

    /// Ends those that have loaded an image of this application: it has another one now.
    pub(crate) fn replaced(&self, app: &AppName) {
        self.shared.replaced.fetch_add(1, Ordering::SeqCst);
        let mut warm = lock(&self.shared.warm);
        let (old, kept) = std::mem::take(&mut *warm).into_iter().partition(|warm| warm.app() == app);
        *warm = kept;
        drop(warm);
        // Ended without the lock.
        drop::<Vec<Warm>>(old);
    }

    /// Makes what lacks, a little later: whoever took the last one needs the processor first.
    pub(crate) fn refill_soon(&self) {
        let pool = self.clone();
        executor::spawn(async move {
            executor::sleep(REFILL_PAUSE).await;
            pool.refill();
        });
    }

    /// The same, and one that has loaded this image, of which a process was just started. `ring`: its processes take connections.
    pub(crate) fn warm_soon(&self, app: &AppName, image: Arc<Deployed>, ring: bool) {
        if self.shared.target == 0 || !Warm::suits(&image) {
            return self.refill_soon();
        }
        let (pool, app) = (self.clone(), app.clone());
        let replaced = self.shared.replaced.load(Ordering::SeqCst);
        executor::spawn(async move {
            executor::sleep(REFILL_PAUSE).await;
            pool.refill();
            let shared = Arc::clone(&pool.shared);
            pool.warming.later(move || shared.warm_up(&app, &image, ring, replaced));
        });
    }

    /// Makes what lacks, in the background.
    fn refill(&self) {
        let pool = self.clone();
        self.side.later(move || {
            let shared = &pool.shared;
            if lock(&shared.waiting).len() >= shared.target || descriptors::room_for_start().is_err() {
                return;
            }
            match shared.spawn() {
                Ok(sandbox) => {
                    lock(&shared.waiting).push_back(sandbox);
                    // One at a time, so that a call that needs a sandbox now waits for one at most.
                    pool.refill();
                }
                Err(error) => tracing::warn!("no sandbox can be made in advance: {error}"),
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
                lock(&self.warm).clear();
                let fresh = Spawner::start(self.config.clone())?;
                spawner.insert(fresh).spawn()
            }
            Some(made) => made,
            None => Err(SandboxError::SpawnerGone),
        }
    }

    /// Has a sandbox load an image, unless one waits that has.
    fn warm_up(&self, app: &AppName, image: &Deployed, ring: bool, replaced: u64) {
        {
            let mut warm = lock(&self.warm);
            if let Some(at) = warm.iter().position(|warm| warm.is_of(app, image.id)) {
                let latest = warm.remove(at);
                return warm.push(latest);
            }
        }
        if descriptors::room_for_start().is_err() {
            return;
        }
        if descriptors::room_for_start().is_err() {
            return;
        }
        let loaded = self.spawn().map_err(|error| unavailable(&error));
        match loaded.and_then(|sandbox| Warm::load(sandbox, app, image, ring)) {
            Ok(loaded) => self.keep(loaded, replaced),
            // Whoever calls it next hears what is wrong.
            Err(problem) => tracing::debug!("{app} cannot be loaded in advance: {problem}"),
        }
    }

    fn keep(&self, loaded: Warm, replaced: u64) {
        let spawner = lock(&self.spawner);
        let mut warm = lock(&self.warm);
        // Stopped, or its application may have another image.
        if spawner.is_none() || self.replaced.load(Ordering::SeqCst) != replaced {
            return;
        }
        let too_many = (warm.len() + 1).saturating_sub(self.target.max(1));
        let given_up: Vec<Warm> = warm.drain(..too_many).collect();
        warm.push(loaded);
        drop((warm, spawner));
        drop(given_up);
    }
}

fn unavailable(error: &SandboxError) -> Problem {
    let kind = unless_out_of_descriptors(Kind::SandboxUnavailable, error);
    Problem::new(kind, "no sandbox can be made now").cause(error)
}
