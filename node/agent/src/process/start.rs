//! The start of a process: claimed, given a sandbox and its state, loaded, and told about.
//!
//! The claim and the making of a sandbox overlap, and so do the loading of the plugin and the writing of the claim and of the record
//! that the process is active. No call is begun before the claim is durable and the record is answered: durable where the state comes
//! from the swap store; where it lies on the node, a crash may take the record back, and the next start finds the state all the same
//! (`files`).

use std::rc::Rc;
use std::sync::Arc;

use denizen_sandbox::Sandbox;
use denizen_sched::{Claim, Create, Durable, Epoch, Origin, SchedError, Settled};
use futures_lite::future::zip;

use crate::deployed::Deployed;
use crate::executor;
use crate::home::Home;
use crate::logs::STARTED;
use crate::problem::{Kind, Problem};
use crate::process::active::{Active, Parts};
use crate::process::end::{Death, attend};
use crate::process::lineage::Birth;
use crate::process::load::{self, Loaded, Loading};
use crate::process::{Process, Stage, files, stop};

/// Starts a process. The caller has its turn.
///
/// # Errors
/// Why it cannot be started. It rests then, and a later call tries again.
pub(super) async fn start(
    home: &Rc<Home>,
    process: &Rc<Process>,
    create: Create,
) -> Result<Rc<Active>, Problem> {
    match process.stage() {
        Stage::Active(dead) | Stage::Draining(dead) => bury(home, process, &dead, Tell::Always).await?,
        Stage::Deleted => return Err(Problem::new(Kind::UnknownProcess, "the process was just deleted")),
        Stage::Resting | Stage::Starting => {}
    }
    if home.node.is_stopping() {
        return Err(Problem::new(Kind::ShuttingDown, "the node is shutting down"));
    }
    process.may_start()?;
    process.set_stage(Stage::Starting);
    let result = claim_and_load(home, process, create).await;
    match &result {
        Ok(active) => {
            process.set_stage(Stage::Active(Rc::clone(active)));
            stop::watch_idle(home, process, active);
        }
        Err(_) => process.set_stage(Stage::Resting),
    }
    result
}

async fn claim_and_load(
    home: &Rc<Home>,
    process: &Rc<Process>,
    create: Create,
) -> Result<Rc<Active>, Problem> {
    let node = &home.node;
    let claim = node.scheduler.claim_ahead(process.app.name.clone(), process.name.clone(), create);
    let (claim, sandbox) = zip(claim, node.pool.take()).await;
    let (claim, durable) = match claim {
        Ok(claimed) => claimed,
        Err(error) => {
            sandbox.map(|sandbox| node.pool.give_back(sandbox)).unwrap_or_default();
            return Err(refused_claim(&error));
        }
    };
    let epoch = claim.epoch;
    let loaded = match sandbox {
        Ok(sandbox) => load(home, process, claim, durable, sandbox).await,
        Err(problem) => Err(problem),
    };
    // Whatever became of it, the pool is filled behind its back.
    node.pool.refill_soon();
    if let Err(problem) = &loaded {
        failed(home, process, epoch, problem).await;
    }
    loaded
}

async fn load(
    home: &Rc<Home>,
    process: &Rc<Process>,
    claim: Claim,
    durable: Durable,
    sandbox: Sandbox,
) -> Result<Rc<Active>, Problem> {
    let node = &home.node;
    let image = image_of(process, &claim)?;
    let sandbox = give_state(home, process, &claim, &image, sandbox).await?;
    let loading = Loading::adopt(sandbox, &process.log)?;
    let settled =
        node.scheduler.settled(process.app.name.clone(), process.name.clone(), claim.epoch, Settled::Active);
    let (loaded, (durable, settled)) = zip(loading.ready(), zip(durable.wait(), settled)).await;
    let loaded = loaded?;
    durable.map_err(|error| refused_claim(&error))?;
    settled.map_err(|error| refused_claim(&error))?;
    if matches!(claim.origin, Origin::Swapped { .. }) {
        // The record points to the local file now.
        let paths = node.dir.process(process.app.name.as_str(), process.name.as_str());
        node.copying.later(move || drop(files::remove_swapped(&paths, None)));
    }
    Ok(serve(home, process, claim.epoch, image, loaded))
}

/// What the claim says to run; mostly what calls are checked against already.
fn image_of(process: &Process, claim: &Claim) -> Result<Arc<Deployed>, Problem> {
    let current = process.app.image();
    if current.id == claim.image.image {
        return Ok(current);
    }
    Deployed::from_record(&claim.image).map(Arc::new)
}

/// Opens the state and sends the assignment, on a side thread: a copy from the swap store takes long, and gets one of its own.
async fn give_state(
    home: &Rc<Home>,
    process: &Process,
    claim: &Claim,
    image: &Deployed,
    sandbox: Sandbox,
) -> Result<Sandbox, Problem> {
    let (app, name) = (process.app.name.as_str(), process.name.as_str());
    let paths = home.node.dir.process(app, name);
    let assignment = load::assignment(app, name, claim.epoch.get(), image);
    let (origin, epoch) = (claim.origin, claim.epoch);
    let names = (app.to_owned(), name.to_owned());
    let side =
        if matches!(origin, Origin::Swapped { .. }) { &home.node.copying } else { &home.node.assigning };
    let work = move || {
        let birth = Birth { app: &names.0, process: &names.1, epoch };
        let state = files::open(&paths, origin, birth)?;
        load::assign(&sandbox, &assignment, Some(&state))?;
        Ok(sandbox)
    };
    side.run(work).await.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
}

fn serve(
    home: &Rc<Home>,
    process: &Rc<Process>,
    epoch: Epoch,
    image: Arc<Deployed>,
    loaded: Loaded,
) -> Rc<Active> {
    let Loaded { life, reader, frames, link, output, declarations } = loaded;
    let (commit, state_bytes) = (declarations.state.commit, declarations.state.live_bytes);
    let image = image.redeclared(declarations).map_or(image, Arc::new);
    process.log.host(format!("{STARTED}: image {}, epoch {epoch}, commit {commit}", image.id.short()));
    let log = Arc::clone(&process.log);
    let active = Active::new(Parts { image, epoch, link, life, log, output, commit, state_bytes });
    active.output.belongs_to(&active);
    executor::spawn(attend(Rc::clone(&active), reader, frames));
    executor::spawn(watch(Rc::clone(home), Rc::clone(process), Rc::clone(&active)));
    active
}

/// Buries a sandbox that dies while nobody waits for that.
async fn watch(home: Rc<Home>, process: Rc<Process>, active: Rc<Active>) {
    active.changes.until(|| active.death.borrow().is_some().then_some(())).await;
    let _turn = process.turns.take().await;
    let ours = matches!(process.stage(), Stage::Active(current) if Rc::ptr_eq(&current, &active));
    if ours && let Err(problem) = bury(&home, &process, &active, Tell::Always).await {
        tracing::error!("{}/{}: {problem}", process.app.name, process.name);
    }
}

/// Whether the scheduler is told of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Always,
    /// Not of an orderly one: the caller settles the term in another way.
    Crashes,
}

/// Waits until a sandbox is dead and tells about it; the process rests then. The caller has the turn.
///
/// # Errors
/// `host-fault` where the kernel does not confirm the death: no other sandbox may act for the process then.
pub(super) async fn bury(
    home: &Rc<Home>,
    process: &Rc<Process>,
    active: &Rc<Active>,
    tell: Tell,
) -> Result<(), Problem> {
    let Death { problem, confirmed } = active.changes.until(|| active.death.borrow().clone()).await;
    if !confirmed {
        let text = format!(
            "the sandbox of {} (pid {}) was killed and does not die",
            process.name,
            active.life.pid()
        );
        return Err(Problem::new(Kind::HostFault, text)
            .remedy("See `ps` for that pid; restart the node, or the machine"));
    }
    if let Some(problem) = problem {
        process.log.host(format!("ended: {problem}"));
        let document = problem.to_json();
        process.crashed(problem);
        process.settle(home, active, Settled::Failed { problem: document }).await;
    } else if tell == Tell::Always {
        let settled = Settled::Stopped { bytes: active.state_bytes(), commit: active.commit() };
        process.settle(home, active, settled).await;
    }
    process.set_stage(Stage::Resting);
    Ok(())
}

/// Tells about a start that did not succeed.
async fn failed(home: &Home, process: &Process, epoch: Epoch, problem: &Problem) {
    process.log.host(format!("not started: {problem}"));
    // What the host lacks is not held against the process.
    if !matches!(problem.kind(), Kind::SandboxUnavailable | Kind::NoSpace | Kind::ShuttingDown) {
        process.crashed(problem.clone());
    }
    let settled = Settled::Failed { problem: problem.to_json() };
    let told =
        home.node.scheduler.settled(process.app.name.clone(), process.name.clone(), epoch, settled).await;
    if let Err(error) = told {
        tracing::warn!(
            "the scheduler was not told that {}/{} failed: {error}",
            process.app.name,
            process.name
        );
    }
}

/// What the scheduler says, as callers hear it.
pub(crate) fn refused_claim(error: &SchedError) -> Problem {
    let kind = match error {
        SchedError::UnknownApp { .. } => Kind::UnknownApp,
        SchedError::UnknownProcess { .. } => Kind::UnknownProcess,
        SchedError::ProcessExists { .. } => Kind::ProcessExists,
        SchedError::TooManyProcesses { .. } => Kind::TooManyProcesses,
        SchedError::Stopped => Kind::ShuttingDown,
        SchedError::Store { .. } => Kind::StoreFailed,
        SchedError::NoSpace { .. } => Kind::NoSpace,
        _ => Kind::HostFault,
    };
    Problem::new(kind, error.to_string())
}
