//! The spawner process: pid 1 of the outer pid namespace, one thread, forks every sandbox from itself and buries it.
//!
//! It never waits for a sandbox, only for the agent: what a sandbox has to report it reports to the agent. It ends when
//! the agent closes the request socket, and the kernel then kills every sandbox.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use denizen_ring::maker;
use rustix::event::epoll;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::child::{self, Newborn, Trial};
use super::launch::{EVENTS_FD, REQUESTS_FD};
use super::message::{self, Ended, Fault, Reply, Request, Step, VERDICT_BYTES, at};
use crate::cgroup::{Hierarchy, Nursery};
use crate::inside::Footprint;
use crate::{ExitCause, Waiting, last_words, root, seccomp, signals, sys};

/// Sandboxes that live at once. Also the size of the uid range, 0x7000_0000 to 0x7000_3fff.
pub(crate) const PLACES: u32 = 16 * 1024;

/// The first of the outer user ids; one per place.
pub(crate) const FIRST_UID: u32 = 0x7000_0000;

/// Libraries that plugins need and no image packs: loaded before the host's file systems are left.
const HOST_LIBRARIES: [&std::ffi::CStr; 5] =
    [c"libm.so.6", c"libgcc_s.so.1", c"libpthread.so.0", c"libdl.so.2", c"librt.so.1"];

/// How long the sandbox on trial may take; there is nothing to do before it has ended.
const TRIAL: Duration = Duration::from_secs(5);

/// Mark of the request socket in the event queue. Sandboxes have their place number.
const REQUESTS: u64 = u64::MAX;

/// Everything that a fork needs to know.
#[derive(Debug)]
pub(crate) struct Nest {
    /// The host's `/proc`, without its path.
    pub(crate) proc: OwnedFd,
    /// Each sandbox gets a uid of its own.
    pub(crate) own_uids: bool,
    pub(crate) nursery: Nursery,
    pub(crate) footprint: Footprint,
    pub(crate) runner: fn(Waiting) -> ExitCode,
}

/// A living sandbox.
#[derive(Debug)]
struct Ward {
    id: u64,
    pidfd: OwnedFd,
}

/// The spawner's state.
struct Spawner {
    nest: Nest,
    requests: OwnedFd,
    events: OwnedFd,
    epoll: OwnedFd,
    wards: HashMap<u32, Ward>,
    /// Where the search for a free place goes on: places are reused late.
    next_place: u32,
    /// Sandboxes whose groups could not be removed yet.
    unburied: Vec<u64>,
}

/// Runs the spawner for the life of the process.
pub(crate) fn run(runner: fn(Waiting) -> ExitCode) -> ! {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // SAFETY: the launcher placed these two, and nothing else in this fresh process owns them.
    let (requests, events) = unsafe { (OwnedFd::from_raw_fd(REQUESTS_FD), OwnedFd::from_raw_fd(EVENTS_FD)) };
    let _ = rustix::io::fcntl_setfd(&requests, rustix::io::FdFlags::CLOEXEC);
    let _ = rustix::io::fcntl_setfd(&events, rustix::io::FdFlags::CLOEXEC);
    let code = match Spawner::set_up(requests, events, runner).and_then(|mut spawner| spawner.serve()) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    std::process::exit(code)
}

impl Spawner {
    /// Takes the setup message, prepares everything that forks inherit, and makes a sandbox on trial.
    fn set_up(requests: OwnedFd, events: OwnedFd, runner: fn(Waiting) -> ExitCode) -> io::Result<Spawner> {
        let Some((Request::Setup { image_store, hierarchies, rings }, fds)) =
            message::receive(requests.as_fd())?
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match prepare(&image_store, hierarchies, fds, runner) {
            Ok((nest, epoll)) => {
                let add = epoll::EventData::new_u64(REQUESTS);
                epoll::add(&epoll, &requests, add, epoll::EventFlags::IN)?;
                let ring_error = if rings { try_ring().err() } else { None };
                let (own_uids, seccomp) = (nest.own_uids, seccomp::available());
                let ready = Reply::Ready { own_uids, seccomp, ring_error };
                message::send(requests.as_fd(), &ready, &[])?;
                let wards = HashMap::new();
                Ok(Spawner { nest, requests, events, epoll, wards, next_place: 0, unburied: Vec::new() })
            }
            Err(fault) => {
                message::send(requests.as_fd(), &Reply::Failed { id: 0, fault }, &[])?;
                Err(io::Error::from_raw_os_error(fault.errno))
            }
        }
    }

    /// Until the agent is gone.
    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Err(rustix::io::Errno::INTR) => continue,
                waited => waited?,
            };
            for event in events.drain(..) {
                match event.data.u64() {
                    REQUESTS => match message::receive(self.requests.as_fd())? {
                        Some((Request::Spawn { id, ring }, _)) => self.spawn(id, ring)?,
                        Some((Request::Setup { .. }, _)) => return Err(io::ErrorKind::InvalidData.into()),
                        None => return Ok(()),
                    },
                    place => self.bury(u32::try_from(place).unwrap_or(u32::MAX))?,
                }
            }
        }
    }

    /// Answers one request.
    fn spawn(&mut self, id: u64, ring: bool) -> io::Result<()> {
        let Some(place) = self.free_place() else {
            return message::send(self.requests.as_fd(), &Reply::Full { id, places: PLACES }, &[]);
        };
        match birth(&self.nest, id, place, Trial::No, ring) {
            Ok(newborn) => self.hand_over(id, place, newborn),
            Err(fault) => {
                self.remove_groups(id);
                message::send(self.requests.as_fd(), &Reply::Failed { id, fault }, &[])
            }
        }
    }

    /// Sends a newborn sandbox to the agent and keeps what is needed to bury it.
    fn hand_over(&mut self, id: u64, place: u32, newborn: Newborn) -> io::Result<()> {
        let Newborn { pid, control, answers, stdio, page, pidfd, ring } = newborn;
        let data = epoll::EventData::new_u64(u64::from(place));
        epoll::add(&self.epoll, &pidfd, data, epoll::EventFlags::IN)?;
        let fds = [control.as_fd(), answers.as_fd(), stdio.as_fd(), pidfd.as_fd(), page.as_fd()];
        let sent = message::send(self.requests.as_fd(), &Reply::Spawned { id, pid, ring }, &fds);
        self.wards.insert(place, Ward { id, pidfd });
        sent
    }

    fn free_place(&mut self) -> Option<u32> {
        let place = (0..PLACES)
            .map(|step| (self.next_place + step) % PLACES)
            .find(|place| !self.wards.contains_key(place))?;
        self.next_place = (place + 1) % PLACES;
        Some(place)
    }

    /// Reaps a dead sandbox, removes its groups, tells the agent.
    fn bury(&mut self, place: u32) -> io::Result<()> {
        let Some(ward) = self.wards.get(&place) else { return Ok(()) };
        let Some(cause) = reap(ward.pidfd.as_fd())? else { return Ok(()) };
        let id = ward.id;
        let killed = cause == ExitCause::Signalled(libc::SIGKILL);
        let cause =
            if killed && self.nest.nursery.ran_out_of_memory(id) { ExitCause::OutOfMemory } else { cause };
        epoll::delete(&self.epoll, &ward.pidfd)?;
        self.wards.remove(&place);
        self.remove_groups(id);
        message::send(self.events.as_fd(), &Ended { id, cause }, &[])
    }

    /// Removes a dead sandbox's groups, and those that were left over.
    fn remove_groups(&mut self, id: u64) {
        self.unburied.push(id);
        let nursery = &self.nest.nursery;
        self.unburied.retain(|&id| !nursery.remove(id));
    }
}

/// Everything before the first request, in the order in which it must happen.
fn prepare(
    image_store: &Path,
    hierarchies: Vec<Hierarchy>,
    fds: Vec<OwnedFd>,
    runner: fn(Waiting) -> ExitCode,
) -> Result<(Nest, OwnedFd), Fault> {
    preload();
    know_the_processor();
    seccomp::prepare();
    signals::note_main_stack();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, PathBuf::from("/proc"), flags, Mode::empty()).map_err(at(Step::Proc))?;
    let footprint = footprint(proc.as_fd()).map_err(at(Step::Proc))?;
    // The kernel, short of memory, should take a sandbox and not the agent. Inherited by every fork.
    let _ = sys::write_at(proc.as_fd(), "self/oom_score_adj", "500");
    let _ = rustix::process::setsid();
    raise_descriptor_limit();
    root::leave_host(image_store).map_err(at(Step::LeaveHost))?;
    let nursery = Nursery::new(hierarchies, fds);
    let mut nest = Nest { proc, own_uids: true, nursery, footprint, runner };
    trial(&mut nest)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(at(Step::Events))?;
    use_up_free_chunks();
    Ok((nest, epoll))
}

/// Loads what plugins take for granted. What is missing here is missing to the plugin, which then says so.
fn preload() {
    for library in HOST_LIBRARIES {
        // SAFETY: the platform's own libraries, whose constructors are those of any program.
        unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    }
}

/// Has whatever is allocated from now on lie together, behind what is there: what a fork allocates is its own copy of a page, and would
/// otherwise lie in the gaps that the setup has left, on as many pages as there are gaps.
fn use_up_free_chunks() {
    const LARGEST: usize = 32 << 10;
    const SMALLEST: usize = 16;
    /// The allocator keeps so many chunks of each small size for the next who asks, and does not count them. It takes further ones from
    /// where they are counted.
    const KEPT: usize = 8;
    const KEPT_BYTES: usize = 1040;
    let free = || {
        // SAFETY: it only counts.
        let info = unsafe { libc::mallinfo2() };
        info.fordblks.saturating_sub(info.keepcost)
    };
    let leak = |bytes: usize| std::mem::forget(std::hint::black_box(Vec::<u8>::with_capacity(bytes)));
    // SAFETY: it gives back what nobody has allocated.
    unsafe { libc::malloc_trim(0) };
    let mut bytes = LARGEST;
    while bytes >= SMALLEST {
        let at_once = if bytes <= KEPT_BYTES { KEPT } else { 1 };
        let mut before = usize::MAX;
        while free() < before {
            before = free();
            (0..at_once).for_each(|_| leak(bytes));
        }
        bytes -= if bytes <= KEPT_BYTES { SMALLEST } else { bytes / 8 };
    }
}

/// Has the standard library ask once what the processor can do, and remember it for every fork. Each such question leaves a virtual
/// machine, which takes several microseconds, and there are dozens.
fn know_the_processor() {
    #[cfg(target_arch = "x86_64")]
    let _ = std::arch::is_x86_feature_detected!("avx2");
    #[cfg(target_arch = "aarch64")]
    let _ = std::arch::is_aarch64_feature_detected!("crc");
}

/// What this process weighs, in the terms of its rlimits. See proc_pid_statm(5).
fn footprint(proc: BorrowedFd<'_>) -> io::Result<Footprint> {
    let page_bytes = rustix::param::page_size() as u64;
    let text = sys::read_at(proc, "self/statm")?;
    let pages: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let bytes = |field: usize| pages.get(field).map_or(0, |pages| pages * page_bytes);
    Ok(Footprint { data_bytes: bytes(5), space_bytes: bytes(0) })
}

/// One descriptor per sandbox is needed here.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Makes one sandbox and lets it end: with a uid of its own if that can be had, else with the spawner's.
fn trial(nest: &mut Nest) -> Result<(), Fault> {
    match try_once(nest) {
        Err(Fault { step: Step::Map, .. }) => {
            nest.own_uids = false;
            try_once(nest)
        }
        tried => tried,
    }
}

fn try_once(nest: &Nest) -> Result<(), Fault> {
    const ID: u64 = 0;
    let tried = birth(nest, ID, 0, Trial::Yes, false).and_then(|newborn| {
        let verdict = verdict_within(newborn.control.as_fd());
        // Whatever it said, it is reaped before anything goes on.
        let _ = pidfd_send_signal(&newborn.pidfd, Signal::KILL);
        let _ = sys::readable(&newborn.pidfd, TRIAL);
        let _ = reap(newborn.pidfd.as_fd());
        verdict
    });
    nest.nursery.remove(ID);
    tried
}

/// What the sandbox on trial says about itself.
fn verdict_within(control: BorrowedFd<'_>) -> Result<(), Fault> {
    let mut bytes = [0; VERDICT_BYTES];
    let late = || Fault { step: Step::Trial, errno: libc::ETIMEDOUT };
    if !sys::readable(control, TRIAL).map_err(at(Step::Trial))? {
        return Err(late());
    }
    match rustix::io::read(control, &mut bytes).map_err(at(Step::Trial))? {
        VERDICT_BYTES => message::decode_verdict(bytes),
        _ => Err(late()),
    }
}

/// Makes a ring and drops it. The text says why not.
fn try_ring() -> Result<(), String> {
    let (end, _other) = child::socket_pair().map_err(|fault| fault.step.to_string())?;
    maker::make(end.as_fd()).map(drop).map_err(|error| error.to_string())
}

/// Makes a sandbox: its sockets, its page, its groups, its ring, its process. Where a ring cannot be had any more (there may be a limit
/// on the memory for them) the sandbox works without.
fn birth(nest: &Nest, id: u64, place: u32, trial: Trial, ring: bool) -> Result<Newborn, Fault> {
    let entrance = nest.nursery.create(id).map_err(at(Step::Group))?;
    let page = last_words::new_page().map_err(at(Step::Page))?;
    let (control, their_control) = child::socket_pair()?;
    let (answers, their_answers) = child::one_way()?;
    let (stdio, their_stdio) = child::socket_pair()?;
    let made = if ring { maker::make(their_control.as_fd()).ok() } else { None };
    let ring = made.is_some();
    let cradle = child::Cradle {
        control: their_control,
        answers: their_answers,
        stdio: their_stdio,
        ring: made,
        entrance,
        trial,
    };
    // The spawner's own descriptors of what is in the cradle are closed by this.
    let (pid, pidfd) = child::fork_sandbox(nest, place, cradle, &page, control.as_fd())?;
    Ok(Newborn { pid, control, answers, stdio, page, pidfd, ring })
}

/// How a sandbox ended. `None`: it has not.
fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitCause>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let Some(status) = waitid(WaitId::PidFd(pidfd), options)? else { return Ok(None) };
    let cause = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitCause::Exited(code),
        (None, signal) => ExitCause::Signalled(signal.unwrap_or(0)),
    };
    Ok(Some(cause))
}
