//! Control groups: memory, CPU and process ceilings that the kernel counts, where the node may make groups.
//!
//! Under the agent's own group, in every hierarchy that has one of the three controllers, lies one parent
//! `denizen-<agent pid>-<its start time>-<its pid namespace>-<n>`; under it one group per sandbox, `s<id>`. The agent makes and removes the
//! parent and sets limits; the spawner makes and removes the sandboxes' groups. Version 1 (a hierarchy per controller) and
//! version 2 (one for all) can be mixed, and are on some machines. What cannot be had is reported, never an error.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, openat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::inside::RUNNER_BASE_BYTES;
use crate::spawner::record::start_ticks;
use crate::{Limits, sys};

/// Period over which CPU time is shared out, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// What every parent group's name begins with.
const PREFIX: &str = "denizen-";

/// A kind of ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    pub(crate) const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    /// As the kernel calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }
}

/// How a hierarchy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Version {
    V1,
    V2,
}

/// One hierarchy in which sandboxes get groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    pub(crate) version: Version,
    pub(crate) controllers: Vec<Controller>,
    /// The parent group: ours.
    pub(crate) parent: PathBuf,
}

/// A hierarchy that this process lives in: where its own group is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    /// The mount's controllers (version 1); empty for version 2, which lists them in a file.
    controllers: Vec<String>,
    /// The directory of this process's group.
    own: PathBuf,
}

/// The parent groups of one spawner. Dropping them removes them, when their sandboxes are gone.
#[derive(Debug, Default)]
pub(crate) struct Parents {
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// What could not be had, and why.
    pub(crate) missing: Vec<(Controller, String)>,
}

impl Parents {
    /// Makes the parents as far as this machine lets us, after removing those of agents that are gone.
    pub(crate) fn establish() -> Parents {
        // A program may run several spawners, and look at the machine beside them.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let places = places();
        sweep(&places);
        let pid = std::process::id();
        let start = start_ticks(pid).unwrap_or(0);
        let name = format!("{PREFIX}{pid}-{start}-{}-{number}", pid_namespace());
        let mut parents = Parents::default();
        for controller in Controller::ALL {
            if let Err(why) = parents.add(&places, controller, &name) {
                parents.missing.push((controller, why));
            }
        }
        parents
    }

    /// Gets one controller, in a hierarchy that is used already or in a further one.
    fn add(&mut self, places: &[Place], controller: Controller, name: &str) -> Result<(), String> {
        let place = places.iter().find(|place| place.has(controller)).ok_or_else(|| {
            format!("no control-group hierarchy with the `{}` controller is mounted", controller.name())
        })?;
        let parent = place.own.join(name);
        match self.hierarchies.iter_mut().find(|hierarchy| hierarchy.parent == parent) {
            Some(hierarchy) => {
                place
                    .grant(&parent, controller)
                    .map_err(|error| format!("{}: {error}", place.own.display()))?;
                hierarchy.controllers.push(controller);
            }
            None => {
                fs::create_dir(&parent).map_err(|error| format!("{}: {error}", parent.display()))?;
                if let Err(error) = place.grant(&parent, controller) {
                    let _ = fs::remove_dir(&parent);
                    return Err(format!("{}: {error}", place.own.display()));
                }
                self.hierarchies.push(Hierarchy {
                    version: place.version,
                    controllers: vec![controller],
                    parent,
                });
            }
        }
        Ok(())
    }

    /// Directory descriptors of the parents, in order.
    pub(crate) fn open(&self) -> io::Result<Vec<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |hierarchy: &Hierarchy| open(&hierarchy.parent, flags, Mode::empty());
        self.hierarchies.iter().map(open).collect::<Result<_, _>>().map_err(io::Error::from)
    }

    /// The group of one sandbox, as the agent sees it.
    pub(crate) fn group(&self, id: u64) -> Group {
        let dirs = self.hierarchies.iter().map(|hierarchy| {
            (hierarchy.version, hierarchy.controllers.clone(), hierarchy.parent.join(group_name(id)))
        });
        Group { dirs: dirs.collect() }
    }
}

impl Parents {
    /// Removes them, and whatever still lives in them. Does nothing the second time.
    pub(crate) fn remove(&self) {
        for hierarchy in &self.hierarchies {
            remove_parent(&hierarchy.parent);
        }
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes parents that a predecessor noted, which may lie elsewhere than ours, if its agent is gone.
pub(crate) fn remove_abandoned(parents: &[PathBuf]) {
    let abandoned =
        |parent: &&PathBuf| parent.file_name().and_then(|name| name.to_str()).is_some_and(is_abandoned);
    for parent in parents.iter().filter(abandoned) {
        remove_parent(parent);
    }
}

impl Place {
    fn has(&self, controller: Controller) -> bool {
        match self.version {
            Version::V1 => self.controllers.iter().any(|name| name == controller.name()),
            Version::V2 => {
                let listed = fs::read_to_string(self.own.join("cgroup.controllers")).unwrap_or_default();
                listed.split_whitespace().any(|name| name == controller.name())
            }
        }
    }

    /// Version 2: lets our parent, and the sandboxes' groups under it, use a controller. A group that is not the
    /// machine's root may not both hold processes and share out controllers, so we may have to step aside into a leaf.
    fn grant(&self, parent: &Path, controller: Controller) -> io::Result<()> {
        if self.version == Version::V1 {
            return Ok(());
        }
        let enable = format!("+{}", controller.name());
        let control = self.own.join("cgroup.subtree_control");
        if let Err(error) = fs::write(&control, &enable) {
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error);
            }
            step_aside(&self.own)?;
            fs::write(&control, &enable)?;
        }
        fs::write(parent.join("cgroup.subtree_control"), enable)
    }
}

/// Moves this process, if it is alone in its group, into a leaf beside the parent of its sandboxes.
fn step_aside(own: &Path) -> io::Result<()> {
    let me = std::process::id().to_string();
    let inhabitants = fs::read_to_string(own.join("cgroup.procs"))?;
    if inhabitants.lines().any(|pid| pid != me) {
        return Err(io::Error::other(format!(
            "other processes live in {} (start the node as a service with Delegate=yes)",
            own.display()
        )));
    }
    let leaf = own.join("agent");
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::write(leaf.join("cgroup.procs"), me),
    }
}

/// The hierarchies that this process lives in and can see.
fn places() -> Vec<Place> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    parse_places(&mounts, &own)
}

/// See proc_pid_mountinfo(5) and cgroups(7) for the formats.
fn parse_places(mounts: &str, own: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<_> = left.split(' ').collect();
        let right: Vec<_> = right.split(' ').collect();
        let (Some(&mount_root), Some(&mount_point), Some(&kind)) = (left.get(3), left.get(4), right.first())
        else {
            continue;
        };
        let options: Vec<_> = right.get(2).unwrap_or(&"").split(',').map(str::to_owned).collect();
        let version = match kind {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => continue,
        };
        let Some(path) = own_path(own, version, &options) else { continue };
        // In a container the mount may show only a part of the hierarchy.
        let below = path.strip_prefix(mount_root).unwrap_or(path).trim_start_matches('/');
        let controllers = if version == Version::V1 { options } else { Vec::new() };
        places.push(Place {
            version,
            controllers,
            own: Path::new(mount_point).components().chain(Path::new(below).components()).collect(),
        });
    }
    places
}

/// This process's group in a hierarchy, from the lines `id:controllers:path` of /proc/self/cgroup.
fn own_path<'a>(own: &'a str, version: Version, options: &[String]) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let ours = match version {
            Version::V1 => controllers.split(',').any(|name| options.iter().any(|option| option == name)),
            Version::V2 => controllers.is_empty(),
        };
        ours.then_some(path)
    })
}

/// Removes the parents of agents that are gone, with whatever still runs in them.
fn sweep(places: &[Place]) {
    for place in places {
        let Ok(entries) = fs::read_dir(&place.own) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(is_abandoned) {
                remove_parent(&entry.path());
            }
        }
    }
}

/// Whether a directory is the parent group of an agent that is gone. Of one in another pid namespace we cannot know.
fn is_abandoned(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let numbers: Vec<u64> = rest.split('-').map_while(|number| number.parse().ok()).collect();
    let &[pid, start, namespace, _number] = numbers.as_slice() else { return false };
    namespace == pid_namespace() && u32::try_from(pid).ok().and_then(start_ticks) != Some(start)
}

/// This process's pid namespace, as a number; 0 if unknown.
fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Kills what runs in a parent's groups and removes them all. What will not go stays for the next sweep.
fn remove_parent(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        kill_inhabitants(&entry.path());
        let _ = remove_soon(&entry.path());
    }
    let _ = remove_soon(parent);
}

/// Kills whatever lives in a group.
fn kill_inhabitants(group: &Path) {
    let inhabitants = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in inhabitants.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Removes a group as soon as its last process has left it; gives up after a tenth of a second.
fn remove_soon(group: &Path) -> io::Result<()> {
    const TRIES: u32 = 100;
    let pause = std::time::Duration::from_millis(1);
    for _ in 1..TRIES {
        match fs::remove_dir(group) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(pause),
            removed => return removed,
        }
    }
    fs::remove_dir(group)
}

/// A sandbox's directory under each parent.
fn group_name(id: u64) -> String {
    format!("s{id}")
}

/// The agent's side of one sandbox's groups.
#[derive(Debug)]
pub(crate) struct Group {
    dirs: Vec<(Version, Vec<Controller>, PathBuf)>,
}

impl Group {
    /// Sets the ceilings.
    pub(crate) fn limit(&self, limits: &Limits) -> io::Result<()> {
        for (version, controllers, dir) in &self.dirs {
            for controller in controllers {
                for (file, value, optional) in settings(*version, *controller, limits) {
                    match fs::write(dir.join(file), value) {
                        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) if optional && error.kind() == io::ErrorKind::PermissionDenied => {}
                        written => written?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Files to write, what, and whether they exist only on some kernels (those that account for swap).
fn settings(version: Version, controller: Controller, limits: &Limits) -> Vec<(&'static str, String, bool)> {
    let memory = limits.memory_bytes.saturating_add(RUNNER_BASE_BYTES).to_string();
    let threads = limits.threads.max(1).to_string();
    let quota = limits.cpu_percent.map(|percent| (u64::from(percent) * CPU_PERIOD_US / 100).max(1000));
    match (version, controller) {
        (Version::V1, Controller::Memory) => vec![
            ("memory.limit_in_bytes", memory.clone(), false),
            ("memory.memsw.limit_in_bytes", memory, true),
        ],
        (Version::V2, Controller::Memory) => vec![
            ("memory.max", memory, false),
            ("memory.swap.max", "0".into(), true),
            ("memory.oom.group", "1".into(), true),
        ],
        (_, Controller::Pids) => vec![("pids.max", threads, false)],
        (Version::V1, Controller::Cpu) => vec![
            ("cpu.cfs_period_us", CPU_PERIOD_US.to_string(), false),
            ("cpu.cfs_quota_us", quota.map_or("-1".into(), |quota| quota.to_string()), false),
        ],
        (Version::V2, Controller::Cpu) => {
            let quota = quota.map_or("max".into(), |quota| quota.to_string());
            vec![("cpu.max", format!("{quota} {CPU_PERIOD_US}"), false)]
        }
    }
}

/// The spawner's side: it cannot see the hierarchies any more, but holds their parents.
#[derive(Debug)]
pub(crate) struct Nursery {
    parents: Vec<(Hierarchy, OwnedFd)>,
}

/// How a new process gets into its groups.
#[derive(Debug, Default)]
pub(crate) struct Entrance {
    /// Version 2: `clone3` puts it there.
    pub(crate) into: Option<OwnedFd>,
    /// Version 1: it writes `0` here. That can take ten milliseconds, so the spawner does not do it.
    pub(crate) doors: Vec<OwnedFd>,
}

impl Nursery {
    pub(crate) fn new(hierarchies: Vec<Hierarchy>, fds: Vec<OwnedFd>) -> Nursery {
        Nursery { parents: hierarchies.into_iter().zip(fds).collect() }
    }

    /// Makes the groups of a sandbox.
    pub(crate) fn create(&self, id: u64) -> io::Result<Entrance> {
        let made = self.try_create(&group_name(id));
        if made.is_err() {
            self.remove(id);
        }
        made
    }

    fn try_create(&self, name: &str) -> io::Result<Entrance> {
        let mut entrance = Entrance::default();
        for (hierarchy, parent) in &self.parents {
            mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            match hierarchy.version {
                Version::V1 => {
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    entrance.doors.push(openat(
                        parent,
                        format!("{name}/cgroup.procs"),
                        flags,
                        Mode::empty(),
                    )?);
                }
                Version::V2 => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    entrance.into = Some(openat(parent, name, flags, Mode::empty())?);
                }
            }
        }
        Ok(entrance)
    }

    /// Whether the kernel killed anything in the sandbox's memory group for want of memory.
    pub(crate) fn ran_out_of_memory(&self, id: u64) -> bool {
        let killed = |(hierarchy, parent): &(Hierarchy, OwnedFd)| {
            let file = match hierarchy.version {
                Version::V1 => "memory.oom_control",
                Version::V2 => "memory.events",
            };
            oom_kills(parent.as_fd(), &format!("{}/{file}", group_name(id))) > 0
        };
        self.parents
            .iter()
            .filter(|(hierarchy, _)| hierarchy.controllers.contains(&Controller::Memory))
            .any(killed)
    }

    /// Removes the groups of a dead sandbox. False: the kernel has not let go of it yet; try again.
    pub(crate) fn remove(&self, id: u64) -> bool {
        let removed = |parent: &OwnedFd| {
            !matches!(unlinkat(parent, group_name(id), AtFlags::REMOVEDIR), Err(rustix::io::Errno::BUSY))
        };
        // Every one is tried, also after a failure.
        self.parents.iter().filter(|(_, parent)| !removed(parent)).count() == 0
    }
}

/// The `oom_kill` line of a group's file.
fn oom_kills(parent: BorrowedFd<'_>, path: &str) -> u64 {
    let text = sys::read_at(parent, path).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_where_each_controller_is_mounted_apart() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/api/e8b\n2:cpu,cpuacct:/\n0::/x\n";
        let places = parse_places(mounts, own);
        let own: Vec<_> = places.iter().map(|place| (place.version, place.own.to_str().unwrap())).collect();
        assert_eq!(
            own,
            [
                (Version::V1, "/sys/fs/cgroup/cpu"),
                (Version::V1, "/sys/fs/cgroup/memory/api/e8b"),
                (Version::V2, "/sys/fs/cgroup/unified/x")
            ]
        );
        assert!(places[1].has(Controller::Memory) && !places[1].has(Controller::Cpu));
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        let mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";
        let places = parse_places(mounts, "0::/docker/abc\n");
        assert_eq!(places[0].own, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn only_the_groups_of_the_dead_are_abandoned() {
        let pid = std::process::id();
        let start = start_ticks(pid).unwrap();
        let here = pid_namespace();
        assert!(!is_abandoned(&format!("denizen-{pid}-{start}-{here}-0")));
        assert!(is_abandoned(&format!("denizen-{pid}-{}-{here}-0", start + 1)));
        assert!(!is_abandoned(&format!("denizen-{pid}-{}-{}-0", start + 1, here + 1)));
        assert!(!is_abandoned("denizen-test"));
        assert!(!is_abandoned("system.slice"));
    }

    #[test]
    fn a_ceiling_for_the_processor_is_a_share_of_a_period() {
        let limits = Limits { memory_bytes: 0, threads: 4, cpu_percent: Some(150) };
        assert_eq!(settings(Version::V2, Controller::Cpu, &limits)[0].1, "150000 100000");
        let free = Limits { cpu_percent: None, ..limits };
        assert_eq!(settings(Version::V1, Controller::Cpu, &free)[1].1, "-1");
    }

    /// The way of version 2, which this crate's other tests take only where the controllers are in it: straight from
    /// `clone3` into the group.
    #[test]
    fn version_2_groups_are_entered_by_the_fork() {
        let Some(place) = places().into_iter().find(|place| place.version == Version::V2) else {
            return denizen_testing::skip(
                "version_2_groups_are_entered_by_the_fork",
                "no version-2 hierarchy",
            );
        };
        let parent = place.own.join(format!("denizen-fork-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&parent) {
            let why = format!("{}: {error}", parent.display());
            return denizen_testing::skip("version_2_groups_are_entered_by_the_fork", &why);
        }
        let hierarchy =
            Hierarchy { version: Version::V2, controllers: vec![Controller::Memory], parent: parent.clone() };
        let parents = Parents { hierarchies: vec![hierarchy.clone()], missing: Vec::new() };
        let nursery = Nursery::new(vec![hierarchy], parents.open().unwrap());
        let entrance = nursery.create(7).unwrap();
        assert!(entrance.doors.is_empty());
        // SAFETY: the child only waits for its death.
        let forked = unsafe { sys::fork_with(0, entrance.into.as_ref().map(AsFd::as_fd)) };
        let sys::Forked::Parent { pid, pidfd } = forked.unwrap() else {
            loop {
                // SAFETY: async-signal-safe.
                unsafe { libc::pause() };
            }
        };
        let inhabitants = fs::read_to_string(parent.join("s7/cgroup.procs")).unwrap();
        assert!(!nursery.remove(7), "an inhabited group cannot be removed");
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
        let dead = rustix::process::WaitId::PidFd(pidfd.as_fd());
        rustix::process::waitid(dead, rustix::process::WaitIdOptions::EXITED).unwrap();
        assert_eq!(inhabitants.trim(), pid.to_string());
        assert!(!nursery.ran_out_of_memory(7));
        assert!(nursery.remove(7));
        drop(parents);
        assert!(!parent.exists());
    }
}
