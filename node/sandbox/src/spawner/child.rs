//! A sandbox's first steps, from the fork to the runner: its user, its root, its descriptors, its page.
//!
//! The spawner has one thread and is pid 1, as the sandbox is in its own namespace, so the fork is a full process and may
//! do what any process may. It holds a copy of the spawner's memory, which holds no secret.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use denizen_ring::maker;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};

use super::message::{Fault, Step, at, encode_verdict};
use super::serve::{FIRST_UID, Nest};
use crate::cgroup::Entrance;
use crate::last_words::Testament;
use crate::sys::{Forked, fork_with};
use crate::{Waiting, root, signals, sys};

/// The user and group id inside every sandbox.
const INNER_ID: u32 = 1000;

/// Where a sandbox holds its connection to the agent.
pub(crate) const CONTROL_FD: RawFd = 3;

/// Where a sandbox holds its ring, if it has one.
pub(crate) const RING_FD: RawFd = 4;

/// Where a sandbox answers the agent.
pub(crate) const ANSWERS_FD: RawFd = 5;

/// Namespaces of each sandbox. The network is the spawner's empty one.
const INNER: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Exit code of a sandbox whose runner panicked, as of any Rust program.
const PANICKED: i32 = 101;

/// Exit code of a sandbox that could not be prepared.
const UNPREPARED: i32 = 125;

/// Sent to a sandbox when its user id is mapped.
const GO: u8 = 1;

/// What the agent gets.
#[derive(Debug)]
pub(crate) struct Newborn {
    pub(crate) pid: u32,
    pub(crate) control: OwnedFd,
    pub(crate) answers: OwnedFd,
    pub(crate) stdio: OwnedFd,
    pub(crate) page: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    /// Whether it has a ring.
    pub(crate) ring: bool,
}

/// Whether the sandbox only shows that it can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    Yes,
    No,
}

/// What the sandbox gets.
#[derive(Debug)]
pub(crate) struct Cradle {
    pub(crate) control: OwnedFd,
    pub(crate) answers: OwnedFd,
    pub(crate) stdio: OwnedFd,
    pub(crate) ring: Option<maker::Ring>,
    pub(crate) entrance: Entrance,
    pub(crate) trial: Trial,
}

/// The two ends of a connection.
pub(crate) fn socket_pair() -> Result<(OwnedFd, OwnedFd), Fault> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(at(Step::Sockets))
}

/// The agent's end and the sandbox's of a connection on which only the sandbox says something. A socket and not a pipe: what is written
/// when the agent is gone is an error and no signal, and frames of tens of kilobytes fit.
///
/// On the connection on which it waits for the agent a sandbox could answer, too. But there the kernel wakes a thread that waits in
/// `recvmsg` whenever the peer has read something, as if there were room to wait for: two switches of context for nothing in each call.
pub(crate) fn one_way() -> Result<(OwnedFd, OwnedFd), Fault> {
    let (agent, sandbox) = socket_pair()?;
    shutdown(&sandbox, Shutdown::Read).map_err(at(Step::Sockets))?;
    Ok((agent, sandbox))
}

/// Forks a sandbox and gives it its user id. Returns its pid as the agent sees it.
pub(crate) fn fork_sandbox(
    nest: &Nest,
    place: u32,
    cradle: Cradle,
    page: &OwnedFd,
    agent_end: BorrowedFd<'_>,
) -> Result<(u32, OwnedFd), Fault> {
    // SAFETY: the spawner has one thread, and both it and the child are pid 1 of their namespaces.
    match unsafe { fork_with(INNER, cradle.entrance.into.as_ref().map(AsFd::as_fd)) }
        .map_err(at(Step::Clone))?
    {
        Forked::Child => live(nest, cradle, page),
        Forked::Parent { pidfd, .. } => {
            let named = adopt(nest, place, pidfd.as_fd(), agent_end);
            if named.is_err() {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                let _ = rustix::process::waitid(
                    rustix::process::WaitId::PidFd(pidfd.as_fd()),
                    rustix::process::WaitIdOptions::EXITED,
                );
            }
            Ok((named?, pidfd))
        }
    }
}

/// The spawner's part after the fork: maps the user and lets the child go on. Does not wait for it.
fn adopt(nest: &Nest, place: u32, pidfd: BorrowedFd<'_>, agent_end: BorrowedFd<'_>) -> Result<u32, Fault> {
    let pid = sys::pid_shown_by(nest.proc.as_fd(), pidfd).map_err(at(Step::Proc))?;
    if nest.own_uids {
        let line = format!("{INNER_ID} {} 1", FIRST_UID + place);
        for file in ["uid_map", "gid_map"] {
            sys::write_at(nest.proc.as_fd(), &format!("{pid}/{file}"), &line).map_err(at(Step::Map))?;
        }
        // Through the agent's end, so that it arrives at the child's: no descriptor of its own for one byte.
        rustix::io::write(agent_end, &[GO]).map_err(at(Step::Go))?;
    }
    Ok(pid)
}

/// The sandbox's life.
fn live(nest: &Nest, cradle: Cradle, page: &OwnedFd) -> ! {
    // Descriptors are closed by number here; an owner that closed one again would close another's.
    let cradle = ManuallyDrop::new(cradle);
    let testament = match settle(nest, &cradle, page) {
        Ok(testament) => testament,
        Err(fault) => {
            let _ = rustix::io::write(&cradle.control, &encode_verdict(Some(fault)));
            std::process::exit(UNPREPARED)
        }
    };
    // SAFETY: placed there by `settle`; nothing else owns it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    let _ = rustix::io::write(&control, &encode_verdict(None));
    if cradle.trial == Trial::Yes {
        std::process::exit(0);
    }
    if let Err(error) = enter_groups(&cradle.entrance.doors) {
        let _ = writeln!(io::stderr(), "denizen: this sandbox cannot enter its control group: {error}");
        std::process::exit(UNPREPARED);
    }
    // SAFETY: as before.
    let answers = unsafe { OwnedFd::from_raw_fd(ANSWERS_FD) };
    let (control, answers) = (Some(control), Some(answers));
    let ring = cradle.ring.as_ref().map(|ring| {
        // SAFETY: placed there by `settle`; nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(RING_FD) };
        maker::Ring { fd, layout: ring.layout }
    });
    let has_ring = ring.is_some();
    let waiting = Waiting { control, answers, ring, has_ring, testament, footprint: nest.footprint };
    // A panic must not unwind into the spawner's frames below.
    let code = catch_unwind(AssertUnwindSafe(|| (nest.runner)(waiting)));
    std::process::exit(code.map_or(PANICKED, number_of))
}

/// User, name, root, descriptors, page, handlers: in this order.
fn settle(nest: &Nest, cradle: &Cradle, page: &OwnedFd) -> Result<Testament, Fault> {
    take_identity(nest, cradle.control.as_fd())?;
    rustix::system::sethostname(b"sandbox").map_err(at(Step::Name))?;
    let _ = rustix::thread::set_name(c"denizen-sandbox");
    root::enter().map_err(at(Step::Root))?;
    let testament = Testament::map(page.as_fd()).map_err(at(Step::Page))?;
    signals::install(testament).map_err(at(Step::Signals))?;
    place_descriptors(cradle).map_err(at(Step::Descriptors))?;
    Ok(testament)
}

/// Becomes the sandbox's user.
fn take_identity(nest: &Nest, control: BorrowedFd<'_>) -> Result<(), Fault> {
    if nest.own_uids {
        let mut go = [0];
        match rustix::io::read(control, &mut go).map_err(at(Step::Go))? {
            1 => rustix::thread::set_thread_groups(&[]).map_err(at(Step::Ids))?,
            _ => return Err(Fault { step: Step::Go, errno: libc::ECANCELED }),
        }
    } else {
        map_own_user(nest.proc.as_fd()).map_err(at(Step::Map))?;
    }
    let (uid, gid) = (Uid::from_raw(INNER_ID), Gid::from_raw(INNER_ID));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(Step::Ids))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(Step::Ids))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at(Step::Ids))
}

/// Maps the spawner's own user to the inner one: all that an ordinary user may do.
fn map_own_user(proc: BorrowedFd<'_>) -> io::Result<()> {
    let line = |outer: u32| format!("{INNER_ID} {outer} 1");
    // Read before the map exists, these are what the spawner is in its own namespace.
    sys::write_at(proc, "self/setgroups", "deny")?;
    sys::write_at(proc, "self/uid_map", &line(0))?;
    sys::write_at(proc, "self/gid_map", &line(0))
}

/// Standard input, output and error: the stdio socket, of which input is at its end. Control at 3, the ring at 4, answers at 5. Of
/// the rest only the doors to the control groups stay, for the moment.
fn place_descriptors(cradle: &Cradle) -> io::Result<()> {
    shutdown(&cradle.stdio, Shutdown::Read)?;
    let ring = cradle.ring.as_ref().map(|ring| (ring.fd.as_fd(), RING_FD));
    let others = [
        (cradle.stdio.as_fd(), 0),
        (cradle.stdio.as_fd(), 1),
        (cradle.stdio.as_fd(), 2),
        (cradle.control.as_fd(), CONTROL_FD),
        (cradle.answers.as_fd(), ANSWERS_FD),
    ];
    for (from, to) in others.into_iter().chain(ring) {
        // SAFETY: a system call on numbers. The spawner holds its own descriptors at 0 to 5, so no source is a target,
        // and this fork uses none of them any more.
        if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let mut keep: Vec<RawFd> = cradle.entrance.doors.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    if cradle.ring.is_none() {
        close_between(RING_FD, RING_FD)?;
    }
    let mut first = ANSWERS_FD + 1;
    for door in keep {
        close_between(first, door - 1)?;
        first = door + 1;
    }
    close_between(first, RawFd::MAX)
}

/// Closes descriptors by number.
fn close_between(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: a system call on numbers; the owners of these descriptors in this fork are neither used nor dropped again.
    match unsafe { libc::close_range(first.unsigned_abs(), last.unsigned_abs(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Goes through the doors of its version-1 groups and closes them.
fn enter_groups(doors: &[OwnedFd]) -> io::Result<()> {
    for door in doors {
        rustix::io::write(door, b"0")?;
        close_between(door.as_raw_fd(), door.as_raw_fd())?;
    }
    Ok(())
}

/// The number in an exit code, which the standard library does not show.
fn number_of(code: ExitCode) -> i32 {
    (0..=u8::MAX).find(|&number| ExitCode::from(number) == code).map_or(1, i32::from)
}
