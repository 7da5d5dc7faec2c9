//! What this machine offers, for `denizen doctor`: found by doing rather than by reading settings, because a setting that
//! allows something is one of several that could forbid it.
//!
//! Each finding that is not in order has exactly one consequence and one remedy.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Command;
use std::time::Duration;

use denizen_ring::maker::{self, RingError};
use rustix::process::{Resource, WaitId, WaitIdOptions, getrlimit, waitid};
use serde::Serialize;

use crate::cgroup::{Controller, Parents};
use crate::report::consequence_without;
use crate::spawner::{ALLOW_FETCHING, FIRST_UID, NO_FETCHING, PLACES, fetch};
use crate::sys::{self, Forked};

/// The oldest kernel that has everything: threads counted per user namespace (5.14), `mount_setattr` (5.12),
/// `close_range` (5.9); 5.15 is the oldest maintained one that does.
pub const MINIMUM_KERNEL: (u32, u32) = (5, 15);

/// Locked memory for the rings of the sandboxes, in bytes, below which a node is not much use. The kernel counts some 12 KiB for each.
const LOCKED_BYTES: u64 = 4 << 20;

/// Descriptors below which a node is not much use: the agent holds about five per active process.
const OPEN_FILES: u64 = 4096;

/// How long the trial child may take.
const TRIAL: Duration = Duration::from_secs(5);

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, with less protection or comfort.
    Warn,
    /// A node cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at (`io_uring`).
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was seen.
    pub found: String,
    /// What follows from it; empty when `Ok`.
    pub consequence: String,
    /// What to do; empty when `Ok`.
    pub remedy: String,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        let (consequence, remedy) = (String::new(), String::new());
        Finding { name, status: Status::Ok, found: found.into(), consequence, remedy }
    }

    fn bad(
        name: &'static str,
        status: Status,
        found: impl Into<String>,
        consequence: &str,
        remedy: &str,
    ) -> Finding {
        Finding { name, status, found: found.into(), consequence: consequence.into(), remedy: remedy.into() }
    }
}

/// Looks at everything. Takes well under a second; changes nothing that lasts, except that control groups of nodes that
/// are dead are removed. A list without [`Status::Fail`] means that a node can run.
pub fn examine() -> Vec<Finding> {
    let mut findings =
        vec![kernel(), io_uring(), locked_memory(), open_files(), seccomp(), user_namespaces(), uids()];
    findings.extend(control_groups());
    findings.extend(TOOLS.iter().map(tool));
    findings
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let (major, minor) = MINIMUM_KERNEL;
    match version_of(&release) {
        Some(version) if version < MINIMUM_KERNEL => Finding::bad(
            "kernel",
            Status::Fail,
            release,
            "sandboxes cannot be made",
            &format!("Use Linux {major}.{minor} or later"),
        ),
        _ => Finding::ok("kernel", release),
    }
}

/// The first two numbers of a kernel release.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    const CONSEQUENCE: &str = "sandboxes get no ring of their own: all their calls go through the agent";
    match try_rings() {
        Ok(()) => Finding::ok(NAME, "rings can be locked, and taken over from a sandbox"),
        Err(Ringless::Made(error)) => {
            Finding::bad(NAME, Status::Warn, error.to_string(), CONSEQUENCE, error.remedy())
        }
        Err(Ringless::Open) => Finding::bad(
            NAME,
            Status::Warn,
            "a locked ring did what it must not do",
            CONSEQUENCE,
            "Use another kernel: this one does not keep a ring's restrictions",
        ),
        Err(Ringless::Fetched(error)) => {
            Finding::bad(NAME, Status::Warn, format!("{NO_FETCHING}: {error}"), CONSEQUENCE, ALLOW_FETCHING)
        }
    }
}

/// Why sandboxes can have no rings.
enum Ringless {
    /// One cannot be made.
    Made(RingError),
    /// It is not locked.
    Open,
    /// The agent cannot have a descriptor of it.
    Fetched(io::Error),
}

/// Makes a locked ring, and gets a descriptor of it from a child.
fn try_rings() -> Result<(), Ringless> {
    let (control, _agent) = std::os::unix::net::UnixStream::pair()
        .map_err(|error| Ringless::Made(RingError::Other { step: "making a connection", source: error }))?;
    let ring = maker::make(control.as_fd()).map_err(Ringless::Made)?;
    maker::enable(ring.fd.as_fd()).map_err(Ringless::Made)?;
    // The restrictions hold for this too: it can be done once.
    if maker::enable(ring.fd.as_fd()).is_ok() {
        return Err(Ringless::Open);
    }
    fetch_from_a_child(ring.fd.as_fd())
}

fn fetch_from_a_child(ring: BorrowedFd<'_>) -> Result<(), Ringless> {
    // SAFETY: the child only makes raw system calls, until it is killed.
    let forked = unsafe { sys::fork_with(libc::CLONE_NEWUSER | libc::CLONE_NEWPID, None) };
    match forked {
        // Another finding is about that.
        Err(_) => Ok(()),
        Ok(Forked::Child) => loop {
            // SAFETY: no preconditions.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        },
        Ok(Forked::Parent { pidfd, .. }) => {
            let fetched = fetch(pidfd.as_fd(), ring.as_raw_fd());
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            fetched.map(drop).map_err(Ringless::Fetched)
        }
    }
}

fn locked_memory() -> Finding {
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        Some(bytes) if bytes < LOCKED_BYTES && !may_lock() => Finding::bad(
            "locked-memory",
            Status::Warn,
            format!("{} KiB", bytes >> 10),
            "few sandboxes get a ring of their own: calls to the others go through the agent",
            "Raise it: `ulimit -l unlimited`, or LimitMEMLOCK=infinity in the systemd unit",
        ),
        Some(bytes) => Finding::ok("locked-memory", format!("{} KiB", bytes >> 10)),
        None => Finding::ok("locked-memory", "unlimited"),
    }
}

/// Whether the limit does not count for this process.
fn may_lock() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK))
}

fn open_files() -> Finding {
    // The soft limit can be raised by the program itself.
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < OPEN_FILES => Finding::bad(
            "open-files",
            Status::Warn,
            most.to_string(),
            "only a few hundred processes can be active at once",
            "Raise the hard limit: LimitNOFILE=65536 in the systemd unit, or /etc/security/limits.conf",
        ),
        Some(most) => Finding::ok("open-files", most.to_string()),
        None => Finding::ok("open-files", "unlimited"),
    }
}

fn seccomp() -> Finding {
    if crate::seccomp::available() {
        return Finding::ok("seccomp", "filters can be installed");
    }
    Finding::bad(
        "seccomp",
        Status::Fail,
        "the kernel has no system-call filters",
        "tenant code cannot be confined",
        "Use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

/// What stopped the trial child.
#[derive(Debug, PartialEq, Eq)]
enum Obstacle {
    Clone(i32),
    Inside(i32),
}

fn user_namespaces() -> Finding {
    const NAME: &str = "user-namespaces";
    const CONSEQUENCE: &str = "sandboxes cannot be made";
    let text = |errno: &i32| io::Error::from_raw_os_error(*errno).to_string();
    match try_namespaces() {
        Ok(()) => Finding::ok(NAME, "user, pid, mount and network namespaces can be made, and mounted in"),
        Err(Obstacle::Inside(errno)) if restricted_by_apparmor() => Finding::bad(
            NAME,
            Status::Fail,
            format!("made, but powerless: {} (AppArmor restricts them)", text(&errno)),
            CONSEQUENCE,
            "Set the sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run the node as root",
        ),
        Err(Obstacle::Inside(errno)) => Finding::bad(
            NAME,
            Status::Fail,
            format!("made, but powerless: {}", text(&errno)),
            CONSEQUENCE,
            "Run the node as root; a security module (SELinux, AppArmor) or a container's profile forbids mounts",
        ),
        Err(Obstacle::Clone(errno @ (libc::ENOSPC | libc::EUSERS))) => Finding::bad(
            NAME,
            Status::Fail,
            text(&errno),
            CONSEQUENCE,
            "Raise the sysctls user.max_user_namespaces and user.max_pid_namespaces",
        ),
        Err(Obstacle::Clone(errno)) => Finding::bad(
            NAME,
            Status::Fail,
            text(&errno),
            CONSEQUENCE,
            "Set the sysctl kernel.unprivileged_userns_clone=1; in a container, allow clone3 with namespaces in its \
             seccomp profile (Docker: --security-opt seccomp=unconfined)",
        ),
    }
}

/// Ubuntu's restriction: namespaces can be made, and give no capabilities.
fn restricted_by_apparmor() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    setting.is_ok_and(|setting| setting.trim() == "1")
}

/// Makes a child in the namespaces of a sandbox and lets it mount something.
fn try_namespaces() -> Result<(), Obstacle> {
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC;
    // SAFETY: the child only makes the raw system calls of `mount_something`, and exits.
    let forked = unsafe { sys::fork_with(flags, None) };
    match forked.map_err(|error| Obstacle::Clone(error.raw_os_error().unwrap_or(libc::EIO)))? {
        Forked::Child => {
            let errno = mount_something();
            // SAFETY: ends the process.
            unsafe { libc::_exit(errno) }
        }
        Forked::Parent { pidfd, .. } => {
            let stuck = Obstacle::Inside(libc::ETIMEDOUT);
            if !sys::readable(&pidfd, TRIAL).unwrap_or(false) {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
            match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => match status.exit_status() {
                    Some(0) => Ok(()),
                    Some(errno) => Err(Obstacle::Inside(errno)),
                    None => Err(stuck),
                },
                _ => Err(stuck),
            }
        }
    }
}

/// In the trial child: mounts a tmpfs over its own root. Returns the error number.
fn mount_something() -> i32 {
    // SAFETY: raw system calls on constant strings.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let none = std::ptr::null();
        if libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
            && libc::mount(c"tmpfs".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, none.cast()) == 0
        {
            return 0;
        }
        *libc::__errno_location()
    }
}

/// Whether this process could give every sandbox a user id of its own.
fn uids() -> Finding {
    const NAME: &str = "uid-per-sandbox";
    const CONSEQUENCE: &str =
        "sandboxes share one user id; namespaces and system-call filters alone keep them apart";
    if !rustix::process::geteuid().is_root() {
        let remedy = "Run the node as root if tenants do not trust each other";
        return Finding::bad(NAME, Status::Warn, "not root", CONSEQUENCE, remedy);
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if maps_range(&map, u64::from(FIRST_UID), u64::from(PLACES)) {
        return Finding::ok(NAME, format!("{FIRST_UID:#x} to {:#x} can be used", FIRST_UID + PLACES - 1));
    }
    let remedy = "Run the node outside of the container's user namespace, or map the ids 0x70000000 to 0x70003fff into it";
    Finding::bad(NAME, Status::Warn, "root, but of a user namespace without these ids", CONSEQUENCE, remedy)
}

/// Whether one line of a uid_map (inner start, outer start, count) holds a whole range of inner ids.
fn maps_range(map: &str, first: u64, count: u64) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [inner, _, length] if inner <= first && first + count <= inner + length)
    })
}

fn control_groups() -> Vec<Finding> {
    let parents = Parents::establish();
    let name = |controller| match controller {
        Controller::Memory => "memory-cgroup",
        Controller::Cpu => "cpu-cgroup",
        Controller::Pids => "pids-cgroup",
    };
    let finding = |controller| match parents.missing.iter().find(|(missing, _)| *missing == controller) {
        None => Finding::ok(name(controller), "groups can be made"),
        Some((_, why)) => Finding::bad(
            name(controller),
            Status::Warn,
            why,
            consequence_without(controller),
            "Run the node as root, or as a systemd service with Delegate=yes",
        ),
    };
    Controller::ALL.map(finding).into()
}

/// A program that some commands run.
struct Tool {
    name: &'static str,
    consequence: &'static str,
    remedy: &'static str,
}

const TOOLS: [Tool; 3] = [
    Tool {
        name: "git",
        consequence: "Denizen cannot be built from source here; a node runs without",
        remedy: "Install git",
    },
    Tool {
        name: "cc",
        consequence: "function packages cannot be linked here; finished plugins can be deployed",
        remedy: "Install a C compiler (Debian: apt install gcc libc6-dev)",
    },
    Tool {
        name: "cargo",
        consequence: "`denizen image build` cannot build packages; finished plugins can be deployed",
        remedy: "Install Rust from https://rustup.rs",
    },
];

fn tool(tool: &Tool) -> Finding {
    let first_line = |output: std::process::Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().unwrap_or("").to_owned()
    };
    match Command::new(tool.name).arg("--version").output() {
        Ok(output) if output.status.success() => Finding::ok(tool.name, first_line(output)),
        Ok(output) => {
            Finding::bad(tool.name, Status::Warn, output.status.to_string(), tool.consequence, tool.remedy)
        }
        Err(error) => Finding::bad(tool.name, Status::Warn, error.to_string(), tool.consequence, tool.remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version_of("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version_of("5.4.0"), Some((5, 4)));
        assert_eq!(version_of("mystery"), None);
        assert!(version_of("5.4.0").unwrap() < MINIMUM_KERNEL);
    }

    #[test]
    fn ranges_of_ids_are_found_in_maps() {
        assert!(maps_range("         0          0 4294967295\n", 0x7000_0000, 16384));
        assert!(!maps_range("0 100000 65536\n", 0x7000_0000, 16384));
    }

    #[test]
    fn whatever_is_wrong_has_a_consequence_and_a_remedy() {
        let findings = examine();
        for finding in &findings {
            let ok = finding.status == Status::Ok;
            assert_eq!(ok, finding.consequence.is_empty(), "{finding:?}");
            assert_eq!(ok, finding.remedy.is_empty(), "{finding:?}");
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
        let mut names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), findings.len(), "one finding per name");
    }
}
