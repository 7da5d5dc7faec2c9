//! What sandboxes cost: `cargo run --release -p denizen-sandbox --example measure`.
//!
//! Time from `spawn()` to a waiting sandbox; beside it, in the same run and on the same machine, a bare `clone3` into the
//! same namespaces and `exec` of a small dynamic program, until its first byte. Then memory of the whole machine per
//! waiting sandbox, and beside it per such program.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use denizen_sandbox::{Admission, FileAccess, Isolation, Limits, Sandbox, Spawner, SpawnerConfig, Waiting};

const ROUNDS: usize = 300;
const CROWD: usize = 200;

/// The digest of an empty image.
const IMAGE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The sandbox's part: waits for one byte, is admitted and sealed, tells both times, waits for its end.
fn wait(mut waiting: Waiting) -> ExitCode {
    let mut control = fs::File::from(waiting.take_control());
    if !matches!(control.read(&mut [0]), Ok(1)) {
        return ExitCode::SUCCESS;
    }
    let limits = Limits { memory_bytes: 64 << 20, threads: 8, cpu_percent: None };
    let admission = Admission {
        image: IMAGE.into(),
        limits,
        files: FileAccess::None,
        files_bytes: 0,
        mapped_bytes: 1 << 30,
        file_bytes: 1 << 30,
        first_file_bytes: 1 << 30,
        segments: 4,
        ring: true,
    };
    let begun = Instant::now();
    let loading = waiting.admit(&admission).expect("admitted");
    let admitted = begun.elapsed();
    let begun = Instant::now();
    loading.seal().expect("sealed");
    let times = [admitted, begun.elapsed()].map(|time| u64::try_from(time.as_nanos()).expect("a short time"));
    let _ = control.write_all(times.map(u64::to_le_bytes).as_flattened());
    let _ = control.read(&mut [0]);
    ExitCode::SUCCESS
}

fn main() {
    denizen_sandbox::run_if_spawner(wait);
    if std::env::args().nth(1).as_deref() == Some("--bare") {
        return bare_child();
    }
    let dir = std::env::temp_dir().join(format!("denizen-measure-{}", std::process::id()));
    fs::create_dir_all(dir.join("images")).expect("a directory");
    let config = SpawnerConfig {
        image_store: dir.join("images"),
        lock_dir: dir.clone(),
        isolation: Isolation::default(),
        rings: std::env::var_os("NO_RINGS").is_none(),
    };
    let begun = Instant::now();
    let spawner = Spawner::start(config).expect("a spawner");
    println!("spawner started in {:?}", begun.elapsed());
    crowds(&spawner);
    spawns(&spawner);
    admissions(&spawner, &dir);
    bares();
    let _ = fs::remove_dir_all(dir);
}

fn spawns(spawner: &Spawner) {
    let one = || {
        let begun = Instant::now();
        let sandbox = spawner.spawn().expect("a sandbox");
        (begun.elapsed(), sandbox)
    };
    let kept: Vec<_> = (0..ROUNDS).map(|_| one()).collect();
    tell("spawn, each kept", kept.iter().map(|(took, _)| *took).collect());
    drop(kept);
    std::thread::sleep(Duration::from_millis(500));
    let spaced = (0..50).map(|_| {
        let (took, sandbox) = one();
        drop(sandbox);
        std::thread::sleep(Duration::from_millis(20));
        took
    });
    tell("spawn, one each 20 ms", spaced.collect());
    let killed = (0..ROUNDS).map(|_| {
        let Sandbox { life, .. } = spawner.spawn().expect("a sandbox");
        let begun = Instant::now();
        life.kill();
        life.wait_exit(Duration::from_secs(5)).expect("dead");
        begun.elapsed()
    });
    tell("kill, until the end is told", killed.collect());
}

fn admissions(spawner: &Spawner, dir: &Path) {
    fs::create_dir(dir.join("images").join(IMAGE)).expect("an image");
    let one = || {
        let (control, _answers, _stdio, _life) = spawner.spawn().expect("a sandbox").into_parts();
        let mut control = fs::File::from(control);
        control.write_all(&[1]).expect("sent");
        let mut times = [0; 16];
        control.read_exact(&mut times).expect("its times");
        let nanos = |at: usize| u64::from_le_bytes(times[at..at + 8].try_into().expect("eight bytes"));
        (Duration::from_nanos(nanos(0)), Duration::from_nanos(nanos(8)))
    };
    let (admitted, sealed): (Vec<_>, Vec<_>) = (0..100).map(|_| one()).unzip();
    tell("admit", admitted);
    tell("seal", sealed);
}

fn bares() {
    let took = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        let child = Bare::start();
        let took = begun.elapsed();
        drop(child);
        took
    });
    tell("bare clone3 + exec of a dynamic program", took.collect());
}

fn crowds(spawner: &Spawner) {
    let sandbox = || spawner.spawn().expect("a sandbox");
    tell_memory("waiting sandbox", sandbox);
    tell_memory("bare process", Bare::start);
}

/// Memory per member of a crowd: of the whole machine (noisy while others work), and as charged to this group.
fn tell_memory<T>(what: &str, one: impl Fn() -> T) {
    // Once before, so that what the kernel keeps for the next time is not counted.
    drop((0..CROWD).map(|_| one()).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_secs(1));
    let (machine, group) = (used_kib(), charged_kib());
    let crowd: Vec<_> = (0..CROWD).map(|_| one()).collect();
    std::thread::sleep(Duration::from_secs(1));
    let each = |before: i64, after: i64| (after - before) / i64::try_from(CROWD).expect("a small crowd");
    let (machine, group) = (each(machine, used_kib()), each(group, charged_kib()));
    println!("memory per {what}: {machine} KiB of the machine's, {group} KiB charged");
    drop(crowd);
}

/// What the kernel charges to this process's memory group and those below it; 0 without version 1.
fn charged_kib() -> i64 {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.split_once(":memory:")).map_or("", |(_, path)| path);
    let usage = fs::read_to_string(format!("/sys/fs/cgroup/memory{path}/memory.usage_in_bytes"));
    usage.ok().and_then(|bytes| bytes.trim().parse::<i64>().ok()).unwrap_or(0) / 1024
}

/// What the whole machine has in use and could not give back.
fn used_kib() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let field = |name: &str| -> i64 {
        let line = text.lines().find(|line| line.starts_with(name)).expect("a field");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    };
    field("MemTotal:") - field("MemFree:") - field("Cached:") - field("Buffers:")
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{what}: p50 {:?}, p99 {:?} ({} rounds)", at(50), at(99), times.len());
}

/// A process in the same namespaces, executed afresh.
struct Bare {
    pid: i32,
    _control: UnixStream,
}

impl Bare {
    fn start() -> Bare {
        let (mut mine, theirs) = UnixStream::pair().expect("a pair");
        let theirs = OwnedFd::from(theirs);
        let program = fs::read_link("/proc/self/exe").expect("this program");
        let program = std::ffi::CString::new(program.into_os_string().into_encoded_bytes()).expect("a path");
        let arguments = [program.as_ptr(), c"--bare".as_ptr(), std::ptr::null()];
        let flags = libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP
            | libc::SIGCHLD;
        // SAFETY: this program has one thread; the child makes three raw system calls.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
            if pid == 0 {
                libc::dup2(theirs.as_raw_fd(), 0);
                libc::execve(program.as_ptr(), arguments.as_ptr(), arguments[2..].as_ptr());
                libc::_exit(1);
            }
            i32::try_from(pid).expect("a pid")
        };
        drop(theirs);
        mine.read_exact(&mut [0]).expect("its first byte");
        Bare { pid, _control: mine }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: system calls on a child of this process.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// Says that it runs, and waits for its end.
fn bare_child() {
    // SAFETY: the parent placed a socket there.
    let mut socket = unsafe { <UnixStream as std::os::fd::FromRawFd>::from_raw_fd(0) };
    socket.write_all(&[1]).expect("a byte");
    let _ = socket.read(&mut [0]);
}
