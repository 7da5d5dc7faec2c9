//! The agent's handle on the spawner process.
//!
//! Two sockets: on one the agent asks and the spawner answers, one at a time; on the other the spawner reports deaths
//! unasked, and a watcher thread hears them. The same thread started the spawner, because the kernel ties the spawner's
//! life to it. No wait here is without a limit.

mod child;
mod launch;
mod message;
pub(crate) mod record;
mod serve;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::cgroup::Parents;
use crate::life::{Life, Obituary, Sandbox};
use crate::report::{IsolationReport, report};
use crate::{ExitCause, LastWords, SandboxError, Waiting, sys};
pub(crate) use child::{CONTROL_FD, RING_FD};
use launch::Launched;
use message::{Ended, Fault, Reply, Request, VERDICT_BYTES};
use record::{Identity, Note};
pub(crate) use serve::{FIRST_UID, PLACES};

/// How long the spawner may take to set itself up, its sandbox on trial included.
const SETUP_LIMIT: Duration = Duration::from_secs(10);

/// How long one sandbox may take to be made, on an overloaded machine.
const SPAWN_LIMIT: Duration = Duration::from_secs(5);

/// How long dropping the last handle waits for the spawner's end, to leave nothing behind.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What a spawner must know.
#[derive(Clone, Debug)]
pub struct SpawnerConfig {
    /// The image store: a directory with one directory per image digest. Must exist. It is made searchable for others
    /// (mode `o+x`), because a sandbox looks its image up with a user id of its own; the directories above it need not be.
    pub image_store: PathBuf,
    /// Where `spawner.json` names the running spawner, so that a successor kills it. Must exist; the caller holds a lock
    /// on it.
    pub lock_dir: PathBuf,
    /// What to do where a layer of isolation is missing.
    pub isolation: Isolation,
    /// Whether sandboxes get rings, where they can be had ([`Spawner::rings`]). Without, nothing of io_uring is used.
    pub rings: bool,
}

/// Whether a spawner's sandboxes get rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rings {
    /// Each gets one, as long as there is memory for it.
    Made,
    /// [`SpawnerConfig::rings`] is false.
    Unwanted,
    /// They cannot be had here. The text says why, and what to do.
    Unavailable(String),
}

/// Policy for missing layers of isolation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Refuse to start when any layer is missing.
    pub require: bool,
}

/// The process from which all sandboxes of a node are forked. Clones share it; it ends, and every sandbox with it, when
/// the last clone is dropped (which waits for that, at most two seconds) or the agent dies.
#[derive(Clone, Debug)]
pub struct Spawner {
    shared: Arc<Shared>,
}

/// What the clones share.
#[derive(Debug)]
struct Shared {
    pid: u32,
    requests: Mutex<OwnedFd>,
    next_id: AtomicU64,
    roster: Arc<Roster>,
    report: IsolationReport,
    rings: Rings,
}

/// The sandboxes whose death is awaited. Shared with the watcher thread.
#[derive(Debug)]
struct Roster {
    alive: AtomicBool,
    awaited: Mutex<HashMap<u64, Arc<Obituary>>>,
    parents: Parents,
    pidfd: OwnedFd,
}

/// A spawner that was started and has not been spoken to.
struct Started {
    pid: u32,
    requests: OwnedFd,
    roster: Arc<Roster>,
}

impl Spawner {
    /// Kills a predecessor, then starts the spawner. The program must call [`run_if_spawner`] first thing in `main`.
    /// Blocks some milliseconds; at most twenty seconds.
    pub fn start(config: SpawnerConfig) -> Result<Spawner, SandboxError> {
        record::kill_predecessor(&config.lock_dir)?;
        let image_store = open_way(&config.image_store)?;
        let Started { pid, requests, roster } = start_watched()?;
        if let Some(spawner) = Identity::of(pid) {
            let groups =
                roster.parents.hierarchies.iter().map(|hierarchy| hierarchy.parent.clone()).collect();
            record::write(&config.lock_dir, &Note { spawner, groups }).map_err(|source| {
                SandboxError::Step {
                    step: format!("noting the spawner in {}", config.lock_dir.display()),
                    remedy: "The node's directory must be writable and have room",
                    source,
                }
            })?;
        }
        let (report, rings) = set_up(requests.as_fd(), image_store, &roster, config.rings)?;
        if config.isolation.require {
            refuse_missing(&report)?;
        }
        let shared =
            Shared { pid, requests: Mutex::new(requests), next_id: AtomicU64::new(1), roster, report, rings };
        Ok(Spawner { shared: Arc::new(shared) })
    }

    /// Makes a sandbox that waits for its assignment. Blocks for some hundred microseconds; at most ten seconds.
    pub fn spawn(&self) -> Result<Sandbox, SandboxError> {
        let shared = &self.shared;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let obituary = shared.roster.expect_end(id);
        let spawned = self.ask(id).and_then(|(pid, has_ring, fds)| {
            let mut sandbox = assemble(pid, fds, shared.roster.parents.group(id), obituary)?;
            await_verdict(&sandbox)?;
            if has_ring {
                sandbox.ring = fetch(sandbox.life.pidfd(), child::RING_FD).ok();
            }
            Ok(sandbox)
        });
        if spawned.is_err() {
            shared.roster.forget(id);
        }
        spawned
    }

    /// Which layers of isolation the sandboxes have.
    pub fn report(&self) -> &IsolationReport {
        &self.shared.report
    }

    /// Whether the sandboxes get rings.
    pub fn rings(&self) -> &Rings {
        &self.shared.rings
    }

    /// Process id of the spawner on this machine.
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// False once the spawner process is gone.
    pub fn is_alive(&self) -> bool {
        self.shared.roster.alive.load(Ordering::Acquire)
    }

    /// One request and its answer.
    fn ask(&self, id: u64) -> Result<(u32, bool, Vec<OwnedFd>), SandboxError> {
        let ring = self.shared.rings == Rings::Made;
        let requests = lock(&self.shared.requests);
        message::send(requests.as_fd(), &Request::Spawn { id, ring }, &[])
            .map_err(|_| SandboxError::SpawnerGone)?;
        let until = Instant::now() + SPAWN_LIMIT;
        loop {
            let (reply, fds) = answer(requests.as_fd(), until, "make a sandbox", SPAWN_LIMIT)?;
            match reply {
                Reply::Spawned { id: of, pid, ring } if of == id => return Ok((pid, ring, fds)),
                Reply::Failed { id: of, fault } if of == id => return Err(failed(fault)),
                Reply::Full { id: of, places } if of == id => {
                    return Err(SandboxError::Full { limit: places });
                }
                // The late answer to a request that was given up: its descriptors close here, and the control connection
                // with them, upon which a waiting sandbox ends.
                _ => {}
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The watcher thread reaps it; but the program may end before that, and leave control groups behind.
        let _ = pidfd_send_signal(&self.roster.pidfd, Signal::KILL);
        if let Ok(true) = sys::readable(&self.roster.pidfd, END_LIMIT) {
            self.roster.parents.remove();
        }
    }
}

impl Roster {
    /// Registers a sandbox before it exists, so that no death goes unheard.
    fn expect_end(&self, id: u64) -> Arc<Obituary> {
        let obituary = Arc::new(Obituary::default());
        lock(&self.awaited).insert(id, Arc::clone(&obituary));
        // The watcher may have ended before the line above.
        if !self.alive.load(Ordering::Acquire) {
            self.end_all();
        }
        obituary
    }

    fn forget(&self, id: u64) {
        lock(&self.awaited).remove(&id);
    }

    /// Tells one death.
    fn end(&self, id: u64, cause: ExitCause) {
        let obituary = lock(&self.awaited).remove(&id);
        if let Some(obituary) = obituary {
            obituary.publish(cause);
        }
    }

    /// The spawner is gone, and all with it.
    fn end_all(&self) {
        let all: Vec<_> = lock(&self.awaited).drain().collect();
        for (_, obituary) in all {
            obituary.publish(ExitCause::SpawnerGone);
        }
    }
}

/// Starts the watcher thread, which starts the spawner and stays with it.
fn start_watched() -> Result<Started, SandboxError> {
    let (tell, told) = mpsc::channel();
    let watch = move || {
        let started = launch::launch().map_err(|source| SandboxError::Step {
            step: "creating the spawner's namespaces (clone3)".into(),
            remedy: "Allow unprivileged user namespaces, or run as root; `denizen doctor` names what forbids them",
            source,
        });
        let Launched { pid, pidfd, requests, events } = match started {
            Ok(launched) => launched,
            Err(error) => return drop(tell.send(Err(error))),
        };
        let parents = Parents::establish();
        let awaited = Mutex::default();
        let roster = Arc::new(Roster { alive: AtomicBool::new(true), awaited, parents, pidfd });
        let _ = tell.send(Ok(Started { pid, requests, roster: Arc::clone(&roster) }));
        hear(&events, &roster);
        mourn(&roster);
    };
    thread::Builder::new().name("denizen-spawner".into()).spawn(watch).map_err(|source| {
        SandboxError::Step {
            step: "starting the spawner's watcher thread".into(),
            remedy: "Raise the limit on processes (ulimit -u)",
            source,
        }
    })?;
    told.recv().map_err(|_| SandboxError::SpawnerGone)?
}

/// Hears deaths until the spawner's own.
fn hear(events: &OwnedFd, roster: &Roster) {
    while let Ok(Some((Ended { id, cause }, _))) = message::receive(events.as_fd()) {
        roster.end(id, cause);
    }
}

/// The spawner has closed its socket: sees it, and so every sandbox, to its end.
fn mourn(roster: &Roster) {
    let _ = pidfd_send_signal(&roster.pidfd, Signal::KILL);
    // The kernel lets go of pid 1 only when every process of its namespace is gone.
    let _ = waitid(WaitId::PidFd(roster.pidfd.as_fd()), WaitIdOptions::EXITED);
    roster.alive.store(false, Ordering::Release);
    roster.end_all();
}

/// Sends the setup and turns the answer into a report.
fn set_up(
    requests: BorrowedFd<'_>,
    image_store: PathBuf,
    roster: &Roster,
    rings: bool,
) -> Result<(IsolationReport, Rings), SandboxError> {
    let Roster { parents, pidfd, .. } = roster;
    let fds = parents.open().map_err(|source| SandboxError::Step {
        step: "opening the control groups".into(),
        remedy: "Is something else removing them?",
        source,
    })?;
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let setup = Request::Setup { image_store, hierarchies: parents.hierarchies.clone(), rings };
    message::send(requests, &setup, &borrowed).map_err(|_| SandboxError::SpawnerGone)?;
    match answer(requests, Instant::now() + SETUP_LIMIT, "start", SETUP_LIMIT)? {
        (Reply::Ready { own_uids, seccomp, ring_error }, _) => {
            let rings = match (rings, ring_error) {
                (false, _) => Rings::Unwanted,
                (true, Some(why)) => Rings::Unavailable(why),
                (true, None) => can_be_fetched(pidfd.as_fd()),
            };
            Ok((report(own_uids, seccomp, parents), rings))
        }
        (Reply::Failed { fault, .. }, _) => Err(failed(fault)),
        _ => Err(SandboxError::SpawnerGone),
    }
}

/// A descriptor of another process: the only way to get one of a ring, which the kernel does not let into messages.
pub(crate) fn fetch(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    let flags = rustix::process::PidfdGetfdFlags::empty();
    rustix::process::pidfd_getfd(pidfd, fd, flags).map_err(io::Error::from)
}

/// What it means when [`fetch`] fails.
pub(crate) const NO_FETCHING: &str = "the agent may not have descriptors of its sandboxes";

/// What to do then.
pub(crate) const ALLOW_FETCHING: &str = "Set the sysctl kernel.yama.ptrace_scope below 3; in a container, allow pidfd_getfd in its \
                                         seccomp profile";

/// Whether this machine lets the agent have descriptors of processes below it: asked of the spawner, for one that it surely holds.
fn can_be_fetched(spawner: BorrowedFd<'_>) -> Rings {
    match fetch(spawner, launch::REQUESTS_FD) {
        Ok(_) => Rings::Made,
        Err(error) => Rings::Unavailable(format!("{NO_FETCHING} ({error}). {ALLOW_FETCHING}")),
    }
}

/// The next answer.
fn answer(
    requests: BorrowedFd<'_>,
    until: Instant,
    what: &'static str,
    limit: Duration,
) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
    let left = until.saturating_duration_since(Instant::now());
    let gone = |_| SandboxError::SpawnerGone;
    if !sys::readable(requests, left).map_err(gone)? {
        return Err(SandboxError::Timeout { what, limit });
    }
    let received = sys::receive(requests).map_err(gone)?;
    let (bytes, fds) = received.ok_or(SandboxError::SpawnerGone)?;
    // Before the exec, a failure comes as raw bytes.
    if let Ok(verdict) = <[u8; VERDICT_BYTES]>::try_from(bytes.as_slice())
        && let Err(fault) = message::decode_verdict(verdict)
    {
        return Err(failed(fault));
    }
    let reply = serde_json::from_slice(&bytes).map_err(|_| SandboxError::SpawnerGone)?;
    Ok((reply, fds))
}

/// Puts a sandbox together from the descriptors of an answer.
fn assemble(
    pid: u32,
    fds: Vec<OwnedFd>,
    group: crate::cgroup::Group,
    obituary: Arc<Obituary>,
) -> Result<Sandbox, SandboxError> {
    let [control, answers, stdio, pidfd, page] =
        <[OwnedFd; 5]>::try_from(fds).map_err(|_| SandboxError::Step {
            step: "receiving a sandbox's descriptors".into(),
            remedy: "Raise the limit on open files (ulimit -n); each sandbox takes five",
            source: io::Error::from_raw_os_error(libc::EMFILE),
        })?;
    let life = Life { pid, pidfd, last_words: LastWords::new(page), group, obituary };
    Ok(Sandbox { control, answers, stdio, ring: None, life })
}

/// Waits until the sandbox says that it is prepared, which leaves its control connection clean.
fn await_verdict(sandbox: &Sandbox) -> Result<(), SandboxError> {
    let step = |source| SandboxError::Step {
        step: "waiting for a new sandbox".into(),
        remedy: "It died while it was prepared: is the machine out of memory?",
        source,
    };
    if !sys::readable(&sandbox.control, SPAWN_LIMIT).map_err(step)? {
        return Err(SandboxError::Timeout { what: "prepare a sandbox", limit: SPAWN_LIMIT });
    }
    let mut bytes = [0; VERDICT_BYTES];
    match rustix::io::read(&sandbox.control, &mut bytes) {
        Ok(VERDICT_BYTES) => message::decode_verdict(bytes).map_err(failed),
        Ok(_) => Err(step(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Err(step(error.into())),
    }
}

/// A fault as an error.
fn failed(fault: Fault) -> SandboxError {
    SandboxError::Step {
        step: fault.step.to_string(),
        remedy: "Run `denizen doctor`; it tries what a sandbox needs",
        source: io::Error::from_raw_os_error(fault.errno),
    }
}

/// `--require-isolation`.
fn refuse_missing(report: &IsolationReport) -> Result<(), SandboxError> {
    let missing: Vec<_> = report.missing().cloned().collect();
    if missing.is_empty() { Ok(()) } else { Err(SandboxError::Isolation { missing }) }
}

/// Checks the image store and lets others search it.
fn open_way(image_store: &Path) -> Result<PathBuf, SandboxError> {
    const SEARCH_OTHERS: u32 = 0o001;
    let open = || {
        let path = fs::canonicalize(image_store)?;
        let metadata = fs::metadata(&path)?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let mode = metadata.permissions().mode();
        if mode & SEARCH_OTHERS == 0 {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | SEARCH_OTHERS))?;
        }
        Ok(path)
    };
    open().map_err(|source| SandboxError::ImageStore { path: image_store.to_owned(), source })
}

/// A lock whose holder panicked still guards what it guards: nothing here is left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the spawner that is noted in `lock_dir`, and with it every sandbox, if it is still there; when this returns they are gone. For
/// whoever owns the node's directory and starts no spawner: dying agents take theirs along, but not before they are dead themselves.
///
/// # Errors
/// [`SandboxError::PredecessorStays`].
pub fn end_predecessor(lock_dir: &Path) -> Result<(), SandboxError> {
    record::kill_predecessor(lock_dir)
}

/// Returns at once in an ordinary process. In the spawner process (and in every sandbox, where it calls `runner`) it
/// never returns. Must be the first thing in `main`, before any thread, secret or signal handler exists.
pub fn run_if_spawner(runner: fn(Waiting) -> ExitCode) {
    let name = std::env::args_os().next();
    if name.is_some_and(|name| name.as_bytes() == launch::SPAWNER_NAME.to_bytes()) {
        serve::run(runner)
    }
}
