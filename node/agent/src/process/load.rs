//! From a waiting sandbox to one that serves: the assignment goes out with the segments of the state, and what the plugin declares comes
//! back. The same for a process and for the probe of an image that is being deployed.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use denizen_sandbox::{Life, Limits, Sandbox};
use denizen_wire::{
    Assignment, Declarations, FrameReader, Header, Kind as Frame, LoadFailure, LoadFailureKind, SegmentUse,
    Sender,
};
use rustix::net::SendFlags;

use crate::deployed::Deployed;
use crate::executor::{self, ControlReader, ControlWriter};
use crate::logs::{Log, Stream};
use crate::node::Node;
use crate::pool::Taken;
use crate::problem::{Kind, Problem, unless_out_of_descriptors};
use crate::process::end::{Exit, is_fault, wait_exit};
use crate::process::failure::{died_loading, refused};
use crate::process::files::Handed;
use crate::process::link::{Link, hand};
use crate::process::output::Output;
use crate::warm::Prepared;

/// How long a plugin's constructors and initialisation may take.
pub(crate) const LOAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a sandbox may take to read its assignment before it counts as stuck.
const ASSIGN_LIMIT: Duration = Duration::from_secs(5);
/// Where a sandbox sees the plugin.
const PLUGIN: &str = "/image/plugin.so";
/// Words about segments that may come before the plugin is loaded.
const EARLY_LIMIT: usize = 4096;

/// A sandbox with its assignment, which loads the plugin now. Dropping it kills the sandbox.
pub(crate) struct Loading {
    life: Arc<Life>,
    reader: ControlReader,
    link: Rc<Link>,
    output: Rc<Output>,
    log: Arc<Log>,
    prepared: Option<Prepared>,
}

/// A sandbox that is ready to serve.
pub(crate) struct Loaded {
    pub(crate) life: Arc<Life>,
    pub(crate) reader: ControlReader,
    pub(crate) frames: FrameReader,
    pub(crate) link: Rc<Link>,
    pub(crate) output: Rc<Output>,
    pub(crate) declarations: Declarations,
    /// What it said about segments before it was loaded.
    pub(crate) early: Vec<Header>,
    /// Where connections go that it is given; for who has taken it out of the sandbox to fill in.
    pub(crate) ring: Option<OwnedFd>,
}

/// Why a plugin is not loaded.
pub(crate) struct NotLoaded {
    pub(crate) problem: Problem,
    /// A sync of the state may have failed.
    pub(crate) suspect: bool,
}

/// What a runner is told. `epoch` 0 and no process: a probe. What concerns state is for the caller to fill in.
pub(crate) fn assignment(app: &str, process: &str, epoch: u64, image: &Deployed) -> Assignment {
    Assignment {
        app: app.to_owned(),
        process: process.to_owned(),
        epoch,
        image: image.id.to_string(),
        manifest: image.manifest_json.clone(),
        plugin: PLUGIN.to_owned(),
        limits: image.runner_limits(),
        probe: process.is_empty(),
        prepare: false,
        lineage: String::new(),
        segments: 0,
        spares: 0,
        segment_min_bytes: 0,
        segment_max_bytes: 0,
        durable_at_least: 0,
        files_bytes: image.files_bytes(),
        ring: false,
        remember_ms: image.remember_ms(),
    }
}

/// Tells a sandbox that has loaded its image which process it becomes. Blocks; for a side thread.
pub(crate) fn assign_prepared(
    sandbox: &Sandbox,
    mut assignment: Assignment,
    log: &[Handed],
    spares: &[Handed],
) -> Result<(), Problem> {
    // It has this, and its limits.
    assignment.manifest = serde_json::Value::Null;
    let longest = spares.iter().map(|spare| spare.bytes).max().unwrap_or_default();
    sandbox.life.let_files_reach(longest).map_err(|error| unusable(&error))?;
    send(sandbox, &assignment, log, spares)
}

/// Limits the sandbox and sends it the assignment, and the segments that it announces. Blocks; for a side thread.
pub(crate) fn assign(
    sandbox: &Sandbox,
    assignment: &Assignment,
    cpu_percent: Option<u32>,
    log: &[Handed],
    spares: &[Handed],
) -> Result<(), Problem> {
    let limits = Limits {
        memory_bytes: assignment.limits.memory_bytes,
        threads: assignment.limits.threads,
        cpu_percent,
    };
    sandbox.limit(&limits).map_err(|error| unusable(&error))?;
    send(sandbox, assignment, log, spares)
}

fn send(
    sandbox: &Sandbox,
    assignment: &Assignment,
    log: &[Handed],
    spares: &[Handed],
) -> Result<(), Problem> {
    let frame = assignment.frame().map_err(|error| unusable(&error))?;
    send_with_segments(&sandbox.control, &frame, log, spares).map_err(|error| unusable(&error))
}

fn unusable(error: &(dyn std::error::Error + 'static)) -> Problem {
    let kind = unless_out_of_descriptors(Kind::SandboxUnavailable, error);
    Problem::new(kind, "a sandbox takes no assignment").cause(error)
}

fn send_with_segments(
    socket: &OwnedFd,
    frame: &[u8],
    log: &[Handed],
    spares: &[Handed],
) -> rustix::io::Result<()> {
    rustix::net::sockopt::set_socket_timeout(
        socket,
        rustix::net::sockopt::Timeout::Send,
        Some(ASSIGN_LIMIT),
    )?;
    let mut sent = 0;
    while let Some(rest) = frame.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += rustix::net::send(socket, rest, SendFlags::NOSIGNAL)?;
    }
    let log = log.iter().map(|segment| (segment, SegmentUse::Log));
    let spares = spares.iter().map(|segment| (segment, SegmentUse::Spare));
    for (segment, what_for) in log.chain(spares) {
        let header = Header { a: what_for as u32, c: segment.id, ..Header::new(Frame::Segment, 0) };
        hand(socket.as_fd(), &header, segment, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

impl Loading {
    /// Takes an assigned sandbox to this executor. Its ring is closed, unless it was taken out before.
    pub(crate) fn adopt(taken: Taken, log: &Arc<Log>) -> Result<Loading, Problem> {
        let failed = |error: std::io::Error| {
            let kind = unless_out_of_descriptors(Kind::SandboxUnavailable, &error);
            Problem::new(kind, "a sandbox's sockets cannot be used").cause(error)
        };
        let Taken { sandbox, mut prepared } = taken;
        // What it logged when nobody knew whose it would be.
        for line in prepared.as_mut().map(|prepared| std::mem::take(&mut prepared.lines)).unwrap_or_default()
        {
            log.add(Stream::Log, None, line);
        }
        let (control, answers, stdio, life) = sandbox.into_parts();
        let (reader, writer) = (ControlReader::adopt(answers).map_err(failed)?, ControlWriter::new(control));
        let output = Output::start(log, stdio).map_err(failed)?;
        let (life, link, log) = (Arc::new(life), Link::new(writer), Arc::clone(log));
        Ok(Loading { life, reader, link, output, log, prepared })
    }

    /// Waits until the plugin is loaded.
    ///
    /// # Errors
    /// Why it is not; the sandbox is gone then.
    pub(crate) async fn ready(self) -> Result<Loaded, NotLoaded> {
        let Loading { life, mut reader, link, output, log, prepared } = self;
        let (declared, mut frames) = match prepared {
            Some(Prepared { declarations, frames, .. }) => (Some(declarations), frames),
            None => (None, FrameReader::new(Sender::Runner)),
        };
        let mut suspect = false;
        let words = first_words(&mut reader, &mut frames, &log, Exit::of(&life));
        let problem = match executor::within(LOAD_LIMIT, words).await {
            Some(First::Ready(found, early)) => {
                // What it has declared before it does not say again.
                let declarations = match declared {
                    Some(Declarations { abi_version, functions, types, .. }) => {
                        Declarations { abi_version, functions, types, ..found }
                    }
                    None => found,
                };
                return Ok(Loaded { life, reader, frames, link, output, declarations, early, ring: None });
            }
            Some(First::Refused(failure)) => {
                // A disk that fails while the state is opened is the host's fault.
                suspect = failure.kind == LoadFailureKind::Host;
                refused(failure)
            }
            Some(First::Broken(broken)) => Problem::new(Kind::SandboxMisbehaved, broken),
            Some(First::Nothing) => {
                life.kill();
                let exit = wait_exit(&life).await;
                suspect = is_fault(exit);
                died_loading(exit, life.last_words().read().as_ref())
            }
            None => Problem::new(
                Kind::InitTimeout,
                format!("the plugin was not loaded within {} seconds", LOAD_LIMIT.as_secs()),
            ),
        };
        life.kill();
        let confirmed = wait_exit(&life).await.is_some();
        output.finish();
        if !confirmed {
            let problem =
                Problem::new(Kind::HostFault, "a sandbox was killed and does not die").cause(problem);
            return Err(NotLoaded { problem, suspect });
        }
        let errors = log.last_printed(5);
        let problem = if errors.is_empty() {
            problem
        } else {
            problem.cause(format_args!("it last printed: {}", errors.join(" | ")))
        };
        Err(NotLoaded { problem, suspect })
    }
}

/// What a sandbox says after its assignment.
enum First {
    Ready(Declarations, Vec<Header>),
    Refused(LoadFailure),
    Broken(String),
    Nothing,
}

async fn first_words(
    reader: &mut ControlReader,
    frames: &mut FrameReader,
    log: &Log,
    mut exit: Exit,
) -> First {
    let mut early = Vec::new();
    loop {
        match frames.frame() {
            Err(error) => return First::Broken(error.to_string()),
            Ok(Some(frame)) => match frame.header.kind {
                Frame::Ready => {
                    let ready = |declarations| First::Ready(declarations, early);
                    return frame.document().map_or_else(|error| First::Broken(error.to_string()), ready);
                }
                Frame::Refused => {
                    return frame
                        .document()
                        .map_or_else(|error| First::Broken(error.to_string()), First::Refused);
                }
                Frame::LogLine => {
                    log.add(Stream::Log, None, String::from_utf8_lossy(frame.payload).into_owned())
                }
                // Opening the state is part of loading.
                Frame::WantSpare | Frame::Retired | Frame::StateNews if early.len() < EARLY_LIMIT => {
                    early.push(frame.header);
                }
                other => {
                    return First::Broken(format!("a {other:?} frame came before the plugin was loaded"));
                }
            },
            Ok(None) => match exit.read(reader, frames.space()).await {
                Ok(count) if count > 0 => frames.filled(count),
                _ => return First::Nothing,
            },
        }
    }
}

/// Loads an image once, without state, to learn what it declares. Runs on any executor.
///
/// # Errors
/// What is wrong with its plugin.
pub(crate) async fn probe(node: &Node, app: &str, image: &Deployed) -> Result<Declarations, Problem> {
    let sandbox = node.pool.take().await?;
    let (assignment, cpu) = (assignment(app, "", 0, image), image.manifest.limits.cpu);
    node.pool.refill_soon();
    let assigned =
        node.assigning.run(move || assign(&sandbox, &assignment, cpu, &[], &[]).map(|()| sandbox)).await;
    let sandbox = assigned.map_err(|error| Problem::new(Kind::ShuttingDown, error.to_string()))??;
    let log = node.logs.unlisted(app, "");
    let loaded =
        Loading::adopt(Taken { sandbox, prepared: None }, &log)?.ready().await.map_err(|not| not.problem)?;
    loaded.life.kill();
    wait_exit(&loaded.life).await;
    Ok(loaded.declarations)
}
