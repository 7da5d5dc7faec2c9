//! The machine under the figures: its cores, and the programs that are measured.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the measured programs lie, built.
#[derive(Debug)]
pub(crate) struct Programs {
    /// `denizen` itself.
    pub(crate) denizen: PathBuf,
    /// What it is compared with.
    pub(crate) rivals: PathBuf,
    /// The package of the echo function.
    pub(crate) echo: PathBuf,
    /// The echo plugin, as a shared object.
    pub(crate) plugin: PathBuf,
    /// Whether this is the release build.
    pub(crate) release: bool,
}

impl Programs {
    /// Those of the profile that this program is of. Unless told otherwise it builds them, so that no figure is of yesterday's build.
    pub(crate) fn find(debug: bool, build: bool) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        if build {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.current_dir(root).args(["build", "--locked", "--quiet"]);
            cargo.args(["-p", "denizen-cli", "-p", "denizen-rivals", "-p", "bench-echo"]);
            if !debug {
                cargo.arg("--release");
            }
            assert!(cargo.status().expect("cargo runs").success(), "the build failed");
        }
        let this = std::env::current_exe().expect("this program has a path");
        let target = this.ancestors().nth(2).expect("target/PROFILE/denizen-benches");
        let built = target.join(if debug { "debug" } else { "release" });
        Self {
            denizen: built.join("denizen"),
            rivals: built.join("rivals"),
            echo: root.join("benches/echo"),
            plugin: built.join("libbench_echo.so"),
            release: !debug,
        }
    }
}

/// The cores that this program may use, in order.
fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("the affinity of this thread");
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Which cores the two sides of a call run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinning {
    /// Everything on one core: the software's own cost.
    Same,
    /// Servers on one core, the client on another: waking a core counts too.
    Cross,
}

/// Restores this thread's cores when it goes.
#[derive(Debug)]
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    /// Pins this thread, and what it spawns from now on, to the core of the servers.
    pub(crate) fn to_server_core() -> Self {
        let before = sched_getaffinity(None).expect("the affinity of this thread");
        pin(cores()[0]);
        Self(before)
    }

    /// Moves this thread to where the client belongs. `None` where there is no second core.
    pub(crate) fn become_client(&self, pinning: Pinning) -> Option<()> {
        let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| self.0.is_set(core)).collect();
        match pinning {
            Pinning::Same => pin(*all.first()?),
            Pinning::Cross => pin(*all.get(1)?),
        }
        Some(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.0).expect("the cores that this thread had");
    }
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("a core of this thread's set");
}

/// One line about the machine, to stand above the figures.
pub(crate) fn describe() -> String {
    let model = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?.to_owned();
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    format!("{model}, {} cores used, kernel {kernel}", cores().len())
}

/// Memory of the whole machine that is in use and cannot be given back, in KiB: what starting a program really takes shows
/// here, page tables and kernel structures included, and the page cache of files does not.
pub(crate) fn used_kib() -> u64 {
    let text = meminfo();
    let field = |name| meminfo_field(&text, name);
    let given_back = ["MemFree", "Buffers", "Cached", "SReclaimable"].map(field).iter().sum::<u64>();
    (field("MemTotal") + field("Shmem")).saturating_sub(given_back)
}

/// What the kernel's own structures take that cannot be given back, in KiB, sockets among them; what is queued in sockets besides.
pub(crate) fn kernel_kib() -> u64 {
    const PAGE_KIB: u64 = 4;
    let sockets = std::fs::read_to_string("/proc/net/sockstat").expect("/proc/net/sockstat");
    let queued =
        sockets.lines().find_map(|line| line.strip_prefix("TCP:")?.rsplit_once(" mem ")?.1.parse().ok());
    meminfo_field(&meminfo(), "SUnreclaim") + queued.unwrap_or(0) * PAGE_KIB
}

fn meminfo() -> String {
    std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo")
}

fn meminfo_field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.split(':').next() == Some(name)).expect(name);
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number of KiB")
}
