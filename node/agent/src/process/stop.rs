//! The ways out of being active: swapped out, moved to another image, deleted, stopped with the node. All of them drain first.
//!
//! Draining: new calls wait, those that run finish within their deadlines, the sandbox exits, and the kernel confirms that. Only then
//! is the state touched.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use denizen_image::ImageId;
use denizen_sched::idle::{Activity, Verdict, verdict};
use denizen_sched::{Create, Epoch, Home as Place, Settled};

use crate::executor;
use crate::home::Home;
use crate::local::Turn;
use crate::problem::{Kind, Problem};
use crate::process::active::Active;
use crate::process::end::Killing;
use crate::process::start::{Tell, bury, refused_claim};
use crate::process::{Process, Stage, files};

/// How long a sandbox may take to end beyond the deadlines of its calls.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Ends the sandbox in an orderly way, if there is one, and gives it. The caller has the turn.
async fn drain(
    home: &Rc<Home>,
    process: &Rc<Process>,
    limit: Option<Duration>,
    tell: Tell,
) -> Result<Option<Rc<Active>>, Problem> {
    let active = match process.stage() {
        Stage::Active(active) | Stage::Draining(active) => active,
        _ => return Ok(None),
    };
    process.set_stage(Stage::Draining(Rc::clone(&active)));
    active.drain();
    let now = Instant::now();
    let calls = active.last_deadline().map_or(Duration::ZERO, |last| last.saturating_duration_since(now));
    let patience = (calls + DRAIN_GRACE).min(limit.unwrap_or(Duration::MAX));
    let dead = active.changes.until(|| active.death.borrow().is_some().then_some(()));
    if executor::within(patience, dead).await.is_none() {
        active.kill(Killing::Stopping);
    }
    bury(home, process, &active, tell).await?;
    Ok(Some(active))
}

impl Process {
    /// Moves the state to the swap store. A process that is there already stays there.
    ///
    /// # Errors
    /// `unknown-process`, or why it could not be moved; its state is where it was then.
    pub(crate) async fn swap_out(self: &Rc<Process>, home: &Rc<Home>) -> Result<(), Problem> {
        self.transition(home, |home, process, _turn| async move { swap_out(&home, &process).await }).await
    }

    /// Ends a sandbox that runs another image than `image`. True if there was one.
    pub(crate) async fn move_to(
        self: &Rc<Process>,
        home: &Rc<Home>,
        image: ImageId,
    ) -> Result<bool, Problem> {
        let work = move |home: Rc<Home>, process: Rc<Process>, _turn: Turn| async move {
            process.forgive();
            match process.stage() {
                Stage::Active(active) if active.image.id != image => {
                    Ok(drain(&home, &process, None, Tell::Always).await?.is_some())
                }
                _ => Ok(false),
            }
        };
        self.transition(home, work).await
    }

    /// Removes the process and its state for good.
    ///
    /// # Errors
    /// `unknown-process`.
    pub(crate) async fn delete(self: &Rc<Process>, home: &Rc<Home>) -> Result<(), Problem> {
        self.transition(home, |home, process, _turn| async move { delete(&home, &process).await }).await
    }

    /// Ends the sandbox because the node stops; the state stays on the node.
    pub(crate) async fn stop(self: &Rc<Process>, home: &Rc<Home>, limit: Duration) -> Result<(), Problem> {
        let work = move |home: Rc<Home>, process: Rc<Process>, _turn: Turn| async move {
            drain(&home, &process, Some(limit), Tell::Always).await.map(drop)
        };
        self.transition(home, work).await
    }
}

async fn swap_out(home: &Rc<Home>, process: &Rc<Process>) -> Result<(), Problem> {
    // A process is not ended for a copy that has no room: on a full disk it would not start again either.
    let paths = home.node.dir.process(process.app.name.as_str(), process.name.as_str());
    let room = home.node.copying.run(move || files::room_for_copy(&paths)).await;
    room.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
        .inspect_err(|problem| process.log.host(format!("not swapped out: {problem}")))?;
    let drained = drain(home, process, None, Tell::Crashes).await?;
    if let Some(active) = drained.filter(|active| active.ended_orderly()) {
        // The term that just ended is the one that the copy is named by.
        let moved = move_out(home, process, active.epoch).await;
        if moved.is_err() {
            let settled = Settled::Stopped { bytes: active.state_bytes(), commit: active.commit() };
            process.settle(home, &active, settled).await;
        }
        return moved;
    }
    swap_out_resting(home, process).await
}

/// Swaps out a process that no sandbox runs: it needs a term of its own for that.
async fn swap_out_resting(home: &Rc<Home>, process: &Rc<Process>) -> Result<(), Problem> {
    let (app, name) = (&process.app.name, &process.name);
    let scheduler = &home.node.scheduler;
    let record = scheduler.get(app.clone(), name.clone()).await.map_err(|error| refused_claim(&error))?;
    if record.home != Place::Local {
        return Ok(());
    }
    let claim = scheduler
        .claim(app.clone(), name.clone(), Create::Never)
        .await
        .map_err(|error| refused_claim(&error))?;
    let moved = move_out(home, process, claim.epoch).await;
    if moved.is_err() {
        let settled = Settled::Stopped { bytes: record.state_bytes, commit: record.commit };
        let _ = scheduler.settled(app.clone(), name.clone(), claim.epoch, settled).await;
    }
    moved
}

/// Steps 2 to 5 of the table in [`files`].
async fn move_out(home: &Rc<Home>, process: &Rc<Process>, epoch: Epoch) -> Result<(), Problem> {
    let (app, name) = (&process.app.name, &process.name);
    let paths = home.node.dir.process(app.as_str(), name.as_str());
    let copied = {
        let paths = paths.clone();
        home.node.copying.run(move || files::swap_out(&paths, epoch)).await
    };
    let copied = copied.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())));
    let summary = copied.inspect_err(|problem| process.log.host(format!("not swapped out: {problem}")))?;
    let settled = Settled::Swapped { bytes: summary.live_bytes, commit: summary.commit };
    let told = home.node.scheduler.settled(app.clone(), name.clone(), epoch, settled).await;
    told.map_err(|error| refused_claim(&error))?;
    home.node.copying.later(move || {
        files::forget_local(&paths);
        drop(files::remove_swapped(&paths, Some(epoch)));
    });
    process
        .log
        .host(format!("swapped out: epoch {epoch}, commit {}, {} bytes", summary.commit, summary.live_bytes));
    Ok(())
}

async fn delete(home: &Rc<Home>, process: &Rc<Process>) -> Result<(), Problem> {
    let node = &home.node;
    let (app, name) = (&process.app.name, &process.name);
    drain(home, process, None, Tell::Always).await?;
    node.scheduler.delete(app.clone(), name.clone()).await.map_err(|error| refused_claim(&error))?;
    // From here on it does not exist; what a crash leaves of its files is discarded when a namesake is created.
    let paths = node.dir.process(app.as_str(), name.as_str());
    let _ = node.copying.run(move || files::delete(&paths)).await;
    process.set_stage(Stage::Deleted);
    process.app.forget(process);
    node.logs.forget(app.as_str(), name.as_str());
    Ok(())
}

/// Swaps a process out when it has been idle for as long as its image says.
pub(super) fn watch_idle(home: &Rc<Home>, process: &Rc<Process>, active: &Rc<Active>) {
    let idle = home.node.config.idle_override.unwrap_or(active.image.manifest.process.idle);
    executor::spawn(swap_when_idle(Rc::clone(home), Rc::downgrade(process), Rc::downgrade(active), idle));
}

async fn swap_when_idle(home: Rc<Home>, process: Weak<Process>, active: Weak<Active>, idle: Duration) {
    let mut wait = idle;
    loop {
        executor::sleep(wait).await;
        let (Some(process), Some(active)) = (process.upgrade(), active.upgrade()) else { break };
        if active.is_ending() {
            break;
        }
        match idle_verdict(&active, idle) {
            Verdict::Busy => wait = idle,
            Verdict::Wait(rest) => wait = rest,
            Verdict::Due => {
                let turn_taken = swap_if_still_idle(&home, &process, &active, idle).await;
                if turn_taken.unwrap_or(true) {
                    break;
                }
                wait = idle;
            }
        }
    }
}

fn idle_verdict(active: &Active, idle: Duration) -> Verdict {
    // Only the difference counts.
    let quiet_ms = u64::try_from(active.quiet_since().elapsed().as_millis()).unwrap_or(u64::MAX);
    verdict(Activity { in_flight: active.in_flight(), quiet_since_ms: 0 }, idle, quiet_ms)
}

/// False if a call came before the process had its turn.
async fn swap_if_still_idle(
    home: &Rc<Home>,
    process: &Rc<Process>,
    active: &Rc<Active>,
    idle: Duration,
) -> Result<bool, Problem> {
    let active = Rc::clone(active);
    let work = move |home: Rc<Home>, process: Rc<Process>, _turn: Turn| async move {
        let same = matches!(process.stage(), Stage::Active(current) if Rc::ptr_eq(&current, &active));
        if same && idle_verdict(&active, idle) == Verdict::Due {
            swap_out(&home, &process).await.map(|()| true)
        } else {
            Ok(!same)
        }
    };
    process.transition(home, work).await
}
