//! The start of a process: claimed, given a sandbox and its state, loaded, and told about.
//!
//! The claim and the making of a sandbox overlap, and so do the loading of the plugin and the writing of the claim. No call is begun
//! before the claim is durable. That the process is active, and the names of its segments, are written while it serves
//! ([`super::lasting`]): a crash of the node takes none of it back, and what a loss of power may take is nothing that anybody was
//! promised. Only where the state is a copy of what still lies in the swap store must the record point to the copy before a call begins.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use denizen_image::Isolation;
use denizen_sched::{Claim, Create, Durable, Epoch, Origin, SchedError, Settled};
use denizen_wire::{MOST_SEGMENTS_OF_PREPARED, Recovery, StateSummary};
use futures_lite::future::zip;

use crate::capacity::{self, Seat};
use crate::deployed::Deployed;
use crate::descriptors;
use crate::executor;
use crate::home::Home;
use crate::logs::STARTED;
use crate::pool::Taken;
use crate::problem::{Kind, Problem};
use crate::process::active::{Active, Parts};
use crate::process::end::{Death, Killing, attend};
use crate::process::failure::short;
use crate::process::files::{Bounds, Names, Shelf};
use crate::process::load::{self, Loaded, Loading, NotLoaded};
use crate::process::segments::Segments;
use crate::process::{Process, Stage, Suspicion, files, keep, stop};

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
    descriptors::room_for_start()?;
    process.mark_if_owed(home).await?;
    process.set_stage(Stage::Starting);
    let result = claim_and_load(home, process, create).await;
    match &result {
        Ok(active) => {
            process.set_stage(Stage::Active(Rc::clone(active)));
            stop::watch_idle(home, process, active);
            keep::watch_quiet(home, process, active);
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
    let image = process.app.image();
    let sandbox = node.pool.take_for(&process.app.name, &image);
    let (claim, sandbox) = zip(capacity::claim(home, process, create), sandbox).await;
    let (claim, durable, seat) = match claim {
        Ok(claimed) => claimed,
        Err(problem) => {
            sandbox.map(|sandbox| node.pool.give_back(sandbox)).unwrap_or_default();
            return Err(problem);
        }
    };
    let epoch = claim.epoch;
    let sandbox = match sandbox {
        // It was given another image at this very moment.
        Ok(Taken { prepared: Some(_), .. }) if claim.image.image != image.id => {
            node.pool.take().await.map(|sandbox| Taken { sandbox, prepared: None })
        }
        taken => taken,
    };
    let loaded = match sandbox {
        Ok(sandbox) => load(home, process, claim, durable, sandbox, seat).await,
        Err(problem) => Err(problem),
    };
    // Whatever became of it, the pool is filled behind its back.
    node.restock_soon();
    match &loaded {
        Ok(_) => {
            let image = process.app.image();
            let ring = node.isolation_of(&image.manifest) == Isolation::Ring;
            node.pool.warm_soon(&process.app.name, image, ring);
        }
        Err(problem) => {
            node.pool.refill_soon();
            failed(home, process, epoch, problem).await;
        }
    }
    loaded
}

async fn load(
    home: &Rc<Home>,
    process: &Rc<Process>,
    claim: Claim,
    durable: Durable,
    sandbox: Taken,
    seat: Seat,
) -> Result<Rc<Active>, Problem> {
    let node = &home.node;
    let image = image_of(process, &claim)?;
    let durable_at_least = claim.durable.max(process.durable.get());
    let given = give_state(home, process, &claim, &image, durable_at_least, sandbox).await?;
    let Given { sandbox, ring, shelf, present, names, copied } = given;
    let loading = Loading::adopt(sandbox, &process.log)?;
    let written = write_down(home, process, claim.epoch, names);
    // First the record points away from what was copied.
    let (now, later) = if copied { (Some(written), None) } else { (None, Some(written)) };
    let now = async {
        match now {
            Some(written) => written.await,
            None => Ok(()),
        }
    };
    let (loaded, (durable, written)) = zip(loading.ready(), zip(durable.wait(), now)).await;
    let loaded = match loaded {
        Ok(loaded) => Loaded { ring: ring.filter(|_| loaded.declarations.connections), ..loaded },
        Err(NotLoaded { problem, suspect }) => {
            if suspect {
                process.suspect(home).await?;
            }
            return Err(problem);
        }
    };
    durable.map_err(|error| refused_claim(&error))?;
    written?;
    if loaded.declarations.state.commit < durable_at_least {
        let found = loaded.declarations.state.commit;
        let text =
            format!("the sandbox says that its last commit is {found}, and {durable_at_least} was durable");
        return Err(Problem::new(Kind::SandboxMisbehaved, text));
    }
    if matches!(claim.origin, Origin::Swapped { .. }) {
        // What counts is not there any more: it was moved, or the record points to its copy.
        let paths = node.dir.process(process.app.name.as_str(), process.name.as_str());
        process.copying(home).later(move || drop(files::remove_swapped(&paths, None)));
    }
    process.suspicion.set(Suspicion::None);
    let life = Arc::clone(&loaded.life);
    let reach = Box::new(move |bytes| life.let_files_reach(bytes));
    let segments = Segments::new(Rc::clone(&loaded.link), reach, present, shelf, node.segments.clone());
    let said = segments.can_have(loaded.declarations.state.commit);
    said.map_err(|broken| Problem::new(Kind::SandboxMisbehaved, broken))?;
    let active = serve(home, process, &claim, image, loaded, segments, seat);
    match later {
        Some(written) => executor::spawn(write_later(Rc::clone(&active), written)),
        None => active.lasting.reached(),
    }
    Ok(active)
}

/// Puts the names of the segments on the disk, and tells the scheduler that the process is active.
fn write_down(
    home: &Home,
    process: &Process,
    epoch: Epoch,
    names: Names,
) -> impl Future<Output = Result<(), Problem>> + use<> {
    let (syncing, scheduler) = (home.node.syncing.clone(), home.node.scheduler.clone());
    let (app, process) = (process.app.name.clone(), process.name.clone());
    async move {
        // In this order: a record that points here must find something.
        let synced = syncing.run(move || names.sync()).await;
        synced.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))?;
        scheduler.settled(app, process, epoch, Settled::Active).await.map_err(|error| refused_claim(&error))
    }
}

/// The same for a process that serves already.
async fn write_later(active: Rc<Active>, written: impl Future<Output = Result<(), Problem>>) {
    if let Err(problem) = active.lasting.write(written).await {
        active.kill(Killing::Unwritten(problem.kind(), problem.to_string()));
    }
}

/// What the claim says to run; mostly what calls are checked against already.
fn image_of(process: &Process, claim: &Claim) -> Result<Arc<Deployed>, Problem> {
    let current = process.app.image();
    if current.id == claim.image.image {
        return Ok(current);
    }
    Deployed::from_record(&claim.image).map(Arc::new)
}

/// A sandbox with its assignment, and what the node keeps of its segments.
struct Given {
    sandbox: Taken,
    /// Where connections go that it is given. `None`: it takes none.
    ring: Option<OwnedFd>,
    shelf: Shelf,
    present: BTreeSet<u64>,
    names: Names,
    /// See [`files::Opened::copied`].
    copied: bool,
}

/// Opens the state and sends the assignment, on a side thread: a copy, from the swap store or of suspect files, takes long, and gets
/// one of its own.
async fn give_state(
    home: &Rc<Home>,
    process: &Process,
    claim: &Claim,
    image: &Deployed,
    durable_at_least: u64,
    mut sandbox: Taken,
) -> Result<Given, Problem> {
    let node = &home.node;
    let whose = process.whose(claim.born);
    let paths = node.dir.process(&whose.app, &whose.process);
    let bounds = Bounds::of(image.manifest.limits.state.bytes());
    let mut assignment = load::assignment(&whose.app, &whose.process, claim.epoch.get(), image);
    assignment.lineage = denizen_wire::to_hex(&whose.lineage().0);
    (assignment.segment_min_bytes, assignment.segment_max_bytes) = (bounds.min_bytes, bounds.max_bytes);
    assignment.durable_at_least = durable_at_least;
    let wanted = node.isolation_of(&image.manifest) == Isolation::Ring;
    let (origin, epoch, cpu) = (claim.origin, claim.epoch, image.manifest.limits.cpu);
    let copies = matches!(origin, Origin::Swapped { .. }) || process.suspicion.get() == Suspicion::Marked;
    let side = if copies { process.copying(home) } else { &node.assigning };
    let (stock, pool) = (node.stock.clone(), node.pool.clone());
    let has_files = image.files_bytes() > 0;
    let work = move || {
        let mut opened = files::open(&paths, &whose, epoch, origin, durable_at_least, bounds, &stock)?;
        if has_files {
            opened.shelf.beside_files();
        }
        assignment.segments = u32::try_from(opened.log.len()).unwrap_or(u32::MAX);
        let spares = [opened.spare];
        assignment.spares = 1;
        if sandbox.prepared.is_some() && assignment.segments > MOST_SEGMENTS_OF_PREPARED {
            sandbox = Taken { sandbox: pool.take_here()?, prepared: None };
        }
        let ring = sandbox.sandbox.ring.take().filter(|_| wanted);
        assignment.ring = ring.is_some();
        match &sandbox.prepared {
            Some(_) => load::assign_prepared(&sandbox.sandbox, assignment, &opened.log, &spares)?,
            None => load::assign(&sandbox.sandbox, &assignment, cpu, &opened.log, &spares)?,
        }
        let present = opened.log.iter().chain(&spares).map(|segment| segment.id).collect();
        Ok(Given { sandbox, ring, shelf: opened.shelf, present, names: opened.names, copied: opened.copied })
    };
    side.run(work).await.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
}

fn serve(
    home: &Rc<Home>,
    process: &Rc<Process>,
    claim: &Claim,
    image: Arc<Deployed>,
    loaded: Loaded,
    segments: Rc<Segments>,
    seat: Seat,
) -> Rc<Active> {
    let Loaded { life, reader, frames, link, output, mut declarations, early, ring } = loaded;
    let StateSummary { commit, durable, live_bytes: state_bytes, .. } = declarations.state;
    let (epoch, born) = (claim.epoch, claim.born);
    process.log.host(format!("{STARTED}: image {}, epoch {epoch}, commit {commit}", image.id.short()));
    if let Some(recovery) = declarations.recovery.take() {
        tell_recovery(process, recovery);
    }
    let image = image.redeclared(declarations).map_or(image, Arc::new);
    let log = Arc::clone(&process.log);
    let durable = durable.min(commit);
    let parts =
        Parts { image, epoch, born, link, life, log, output, segments, ring, commit, durable, state_bytes };
    let active = Active::new(parts);
    if let Some(broken) = early.iter().find_map(|header| active.about_segments(header).err()) {
        active.kill(Killing::Misbehaved(broken));
    }
    active.output.belongs_to(&active);
    active.segments.belongs_to(&active);
    executor::spawn(attend(Rc::clone(&active), reader, frames));
    executor::spawn(watch(Rc::clone(home), Rc::clone(process), Rc::clone(&active), seat));
    active
}

/// What a sandbox says that it found in its state, in as many lines as fit to be read.
fn tell_recovery(process: &Process, recovery: Recovery) {
    if recovery.torn {
        process.log.host("recovered: a tail that never was durable was cut".to_owned());
    }
    for damaged in recovery.damaged.into_iter().take(Recovery::MAX_DAMAGED) {
        process.log.host(format!("damaged: {}", short(damaged)));
    }
}

/// Buries a sandbox that dies while nobody waits for that.
async fn watch(home: Rc<Home>, process: Rc<Process>, active: Rc<Active>, seat: Seat) {
    let death = active.changes.until(|| active.death.borrow().clone()).await;
    if death.confirmed {
        drop(seat);
    } else {
        // What does not die still takes what a process takes.
        std::mem::forget(seat);
    }
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
    let Death { problem, confirmed, suspect } = active.changes.until(|| active.death.borrow().clone()).await;
    if !confirmed {
        let text = format!(
            "the sandbox of {} (pid {}) was killed and does not die",
            process.name,
            active.life.pid()
        );
        return Err(Problem::new(Kind::HostFault, text)
            .remedy("See `ps` for that pid; restart the node, or the machine"));
    }
    active.segments.settle().await;
    // Why it could not be written down is why the sandbox was ended.
    let _ = active.lasting.wait().await;
    if suspect {
        // Not at rest before it is on the disk: whoever comes next tries again.
        process.suspect(home).await?;
    }
    process.durable.set(process.durable.get().max(active.durable()));
    let durable = process.durable.get();
    if let Some(problem) = problem {
        process.log.host(format!("ended: {problem}"));
        let document = problem.to_json();
        process.crashed(problem);
        process.settle(home, active, Settled::Failed { problem: document, durable }).await;
    } else if tell == Tell::Always {
        let settled = Settled::Stopped { bytes: active.state_bytes(), commit: active.commit(), durable };
        process.settle(home, active, settled).await;
    }
    process.set_stage(Stage::Resting);
    Ok(())
}

/// Tells about a start that did not succeed.
async fn failed(home: &Home, process: &Process, epoch: Epoch, problem: &Problem) {
    process.log.host(format!("not started: {problem}"));
    // What the host lacks is not held against the process.
    if !matches!(
        problem.kind(),
        Kind::SandboxUnavailable | Kind::NoSpace | Kind::OutOfDescriptors | Kind::ShuttingDown
    ) {
        process.crashed(problem.clone());
    }
    let settled = Settled::Failed { problem: problem.to_json(), durable: process.durable.get() };
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
        SchedError::NoRoom(_) => Kind::NodeFull,
        SchedError::Stopped => Kind::ShuttingDown,
        SchedError::Store { .. } => Kind::StoreFailed,
        SchedError::NoSpace { .. } => Kind::NoSpace,
        _ => Kind::HostFault,
    };
    Problem::new(kind, error.to_string())
}
