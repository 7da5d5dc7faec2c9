//! The end of a sandbox: made certain, explained, and told to every call that it took along.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use denizen_sandbox::{Demise, ExitCause, Life};
use denizen_wire::{EXIT_FAULT, Frame, FrameReader, Kind as FrameKind};
use futures_channel::oneshot;
use futures_lite::future;

use crate::data;
use crate::executor::{self, ControlReader, Pace};
use crate::problem::{Kind, Problem, Retry};
use crate::process::active::Active;
use crate::process::failure::{deadline_text, verdict};
use crate::process::invocation::Invocation;

/// How long a sandbox that was killed may take to be gone; the kernel needs milliseconds.
const DEATH_LIMIT: Duration = Duration::from_secs(20);
/// How long a sandbox without a connection may take to be gone by itself.
const LAST_MOMENT: Duration = Duration::from_secs(2);
/// What a sandbox did that lives without a connection.
const CUT_OFF: &str =
    "the plugin closed the connection to its host (descriptor 3 or 5), and nothing could reach it any more";
/// Frames and reads in a row before others get a turn: hundreds of microseconds of small ones, some megabytes of large ones.
const STEPS_IN_A_ROW: u32 = 256;
/// Printed lines that a problem quotes.
const QUOTED_LINES: usize = 5;

/// Why the agent ended a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Killing {
    /// These calls did not stop at their deadline.
    Deaf(Vec<u64>),
    /// A rule of the protocol was broken.
    Misbehaved(String),
    /// The process was to stop, and its sandbox did not.
    Stopping,
    /// It did not take a connection.
    Stuck(String),
    /// What is to be written down about it could not be.
    Unwritten(Kind, String),
}

/// How a sandbox ended.
#[derive(Debug, Clone)]
pub(crate) struct Death {
    /// The problem of a process that ended without being asked to; `None` for an orderly end.
    pub(crate) problem: Option<Problem>,
    /// The kernel confirmed it.
    pub(crate) confirmed: bool,
    /// A write or a sync of its state may have failed.
    pub(crate) suspect: bool,
}

/// Whether a sandbox ended by a fault, a disk that fails under its state among them. A tenant can say so, too; it costs it a copy of its
/// state.
pub(crate) fn is_fault(exit: Option<ExitCause>) -> bool {
    exit == Some(ExitCause::Exited(EXIT_FAULT))
}

/// Reads what a sandbox sends until it ends, then mourns it.
pub(crate) async fn attend(active: Rc<Active>, mut reader: ControlReader, mut frames: FrameReader) {
    let _told = Told(Rc::clone(&active));
    let mut exit = Exit::of(&active.life);
    match obey(&active, &mut reader, &mut frames, &mut exit).await {
        Err(broken) => active.kill(Killing::Misbehaved(broken)),
        // A dying sandbox closes its connection a moment before it is dead. One that lives on has cut itself off.
        Ok(()) if exit_within(LAST_MOMENT, &active.life).await.is_none() => {
            active.kill(Killing::Misbehaved(CUT_OFF.to_owned()));
        }
        Ok(()) => {}
    }
    active.life.kill();
    let exit = wait_exit(&active.life).await;
    active.output.finish();
    let demise = active.life.last_words().read();
    let death = explain(&active, exit, demise.as_ref());
    let confirmed = death.confirmed;
    let orderly = confirmed && active.has_drained() && active.killing.borrow().is_none();
    active.died(death);
    if let Some(direct) = &active.direct {
        data::left(direct.end(orderly), confirmed);
    }
    active.changes.announce();
}

/// The moment of a sandbox's death, for who reads from it: while the agent has a descriptor of its ring, its connection does not end with
/// it.
pub(crate) struct Exit {
    told: oneshot::Receiver<ExitCause>,
    is_dead: bool,
}

impl Exit {
    pub(crate) fn of(life: &Life) -> Exit {
        let (tell, told) = oneshot::channel();
        life.on_exit(move |exit| {
            let _ = tell.send(exit);
        });
        Exit { told, is_dead: false }
    }

    /// Reads what the sandbox sends, at least a byte; 0 once it is dead, or has closed the connection, and everything is read.
    pub(crate) async fn read(&mut self, reader: &mut ControlReader, to: &mut [u8]) -> io::Result<usize> {
        if !self.is_dead {
            let read = async { Some(reader.read(to).await) };
            let dead = async {
                // Told, or nobody is left to tell.
                let _ = (&mut self.told).await;
                None
            };
            if let Some(read) = future::or(read, dead).await {
                return read;
            }
            self.is_dead = true;
        }
        Ok(reader.read_left(to))
    }
}

/// Should the attendant itself panic, nobody waits in vain: the calls fail, and the process is not started again beside a sandbox
/// that may live.
struct Told(Rc<Active>);

impl Drop for Told {
    fn drop(&mut self) {
        let Told(active) = self;
        if active.death.borrow().is_some() {
            return;
        }
        active.life.kill();
        let problem =
            Problem::new(Kind::HostFault, "the agent lost track of the sandbox; see the node's log");
        for call in active.take_calls() {
            call.fail(problem.clone());
        }
        if let Some(direct) = &active.direct {
            data::left(direct.end(false), false);
        }
        active.died(Death { problem: Some(problem), confirmed: false, suspect: true });
        active.changes.announce();
    }
}

/// Takes frames until the end of the stream, or a broken rule.
async fn obey(
    active: &Rc<Active>,
    reader: &mut ControlReader,
    frames: &mut FrameReader,
    exit: &mut Exit,
) -> Result<(), String> {
    let mut pace = Pace::new(STEPS_IN_A_ROW);
    loop {
        pace.step().await;
        if let Some(frame) = frames.frame().map_err(|error| error.to_string())? {
            if is_unasked(&frame) {
                pace.unasked().await;
            }
            active.take(&frame)?;
            continue;
        }
        match pace.wait(exit.read(reader, frames.space())).await {
            // A read error is an end like any other: a killed sandbox can reset its socket.
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => frames.filled(count),
        }
    }
}

/// Whether no call, nor anything else that the agent asked for, is owed this frame: a sandbox can make as many of them as it likes.
fn is_unasked(frame: &Frame<'_>) -> bool {
    match frame.header.kind {
        FrameKind::Reply | FrameKind::Fail | FrameKind::Drained => false,
        // Credit bounds its bytes.
        FrameKind::ReplyData => frame.payload.is_empty() && !frame.header.is_end(),
        _ => true,
    }
}

/// Waits until the kernel says that a sandbox is gone.
pub(crate) async fn wait_exit(life: &Life) -> Option<ExitCause> {
    exit_within(DEATH_LIMIT, life).await
}

async fn exit_within(limit: Duration, life: &Life) -> Option<ExitCause> {
    if let Some(exit) = life.exit() {
        return Some(exit);
    }
    let (tell, told) = oneshot::channel();
    life.on_exit(move |exit| {
        let _ = tell.send(exit);
    });
    executor::within(limit, told).await.and_then(Result::ok)
}

fn explain(active: &Active, exit: Option<ExitCause>, demise: Option<&Demise>) -> Death {
    let calls = active.take_calls();
    let orderly = active.has_drained() && calls.is_empty();
    let killing = active.killing.borrow().clone();
    let (kind, text) = match &killing {
        Some(Killing::Deaf(_)) => (Kind::DeadlineExceeded, "a call did not stop at its deadline".to_owned()),
        Some(Killing::Misbehaved(broken)) => (Kind::SandboxMisbehaved, broken.clone()),
        Some(Killing::Stuck(why)) => (Kind::SandboxLost, format!("the sandbox is stuck: {why}")),
        Some(Killing::Unwritten(kind, why)) => (*kind, why.clone()),
        Some(Killing::Stopping) => {
            (Kind::SandboxLost, "the process was stopped, and this call did not end in time".to_owned())
        }
        None => verdict(exit, demise),
    };
    let errors = active.log.last_printed(QUOTED_LINES);
    let only = calls.len() == 1 && !active.has_callers();
    for call in &calls {
        let culprit = match &killing {
            Some(Killing::Deaf(ids)) => ids.contains(&call.id),
            Some(_) => true,
            None => only || demise.is_some_and(|demise| demise.invocation == call.id),
        };
        call.fail(told(active, call, culprit, kind, &text, &errors));
    }
    let problem =
        (!orderly && killing != Some(Killing::Stopping)).then(|| quoting(Problem::new(kind, text), &errors));
    let suspect = is_fault(exit) || active.state_failed.get();
    Death { problem, confirmed: exit.is_some(), suspect }
}

/// What a caller is told whose call a dead sandbox took along.
fn told(
    active: &Active,
    call: &Invocation,
    culprit: bool,
    kind: Kind,
    text: &str,
    errors: &[String],
) -> Problem {
    let problem = if !culprit {
        Problem::new(Kind::SandboxLost, "another call of the same process ended the sandbox").cause(text)
    } else if kind == Kind::DeadlineExceeded {
        Problem::new(kind, deadline_text(call, &active.image))
            .cause("it did not stop when told to, so its sandbox was ended")
    } else {
        quoting(Problem::new(kind, text), errors)
    };
    // Its commit may have been made just before the end.
    problem.retry(Retry::Unknown).invocation(&call.name)
}

fn quoting(problem: Problem, errors: &[String]) -> Problem {
    if errors.is_empty() {
        problem
    } else {
        problem.cause(format_args!("it last printed: {}", errors.join(" | ")))
    }
}
