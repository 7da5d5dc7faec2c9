//! Birth, work and death of sandboxes and spawners; nothing of them stays.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use denizen_sandbox::{DemiseKind, ExitCause, Isolation, Phase, SandboxError, Spawner, SpawnerConfig};
use rustix::process::{Pid, Signal, kill_process};

use crate::agents;
use crate::node::{Dir, IMAGE, Node, Order, SOON, Talk, is_root, skip};

pub(crate) fn a_sandbox_waits_loads_seals_and_answers() {
    let node = Node::start();
    let mut talk = node.order(&Order::sealed("hello"));
    let (lines, cause) = talk.rest();
    assert_eq!(lines, ["hello from pid 1"]);
    assert_eq!(cause, ExitCause::Exited(0));
    assert_eq!(talk.printed(), "printed\n");
    assert_eq!(talk.life.last_words().read(), None);
}

/// A real shared library, with a dependency on a library that no image packs.
pub(crate) fn an_image_is_loaded_from_the_store() {
    let node = Node::start();
    let text = "#include <math.h>\nstatic volatile double one = 1;\nstatic int ready;\n\
                __attribute__((constructor)) static void begin(void) { ready = 41; }\n\
                int answer(void) { return ready + (int)cos(one - 1); }\n";
    if !compile_plugin(&node, text) {
        return skip("an_image_is_loaded_from_the_store", "no C compiler");
    }
    assert_eq!(node.order(&Order::loading("dlopen")).line(), "the plugin says 42");
    let mut sealed = node.order(&Order::sealed("dlopen"));
    assert!(sealed.line().starts_with("dlopen: /image/plugin.so: cannot open"));
}

pub(crate) fn a_constructor_is_confined_already() {
    let node = Node::start();
    let text = "#include <sys/socket.h>\n\
                __attribute__((constructor)) static void begin(void) { socket(AF_UNIX, SOCK_STREAM, 0); }\n\
                int answer(void) { return 0; }\n";
    if !compile_plugin(&node, text) {
        return skip("a_constructor_is_confined_already", "no C compiler");
    }
    let mut talk = node.order(&Order::loading("dlopen"));
    assert_eq!(talk.rest(), (vec![], ExitCause::Exited(128 + 31)));
    let demise = talk.life.last_words().read().unwrap();
    let kind = DemiseKind::ForbiddenSyscall { nr: libc::SYS_socket, name: "socket".into() };
    assert_eq!((demise.kind, demise.phase), (kind, Phase::Loading));
}

/// Puts a plugin into the image. False: there is no compiler.
fn compile_plugin(node: &Node, text: &str) -> bool {
    let (source, plugin) =
        (node.dir.0.join("plugin.c"), node.dir.0.join("images").join(IMAGE).join("plugin.so"));
    fs::write(&source, text).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&plugin).arg(&source).arg("-lm").status();
    compiled.is_ok_and(|status| status.success())
}

pub(crate) fn a_missing_image_and_a_bad_digest_are_named() {
    let node = Node::start();
    let refusal = |image: &str| {
        let mut order = Order::sealed("hello");
        order.admission.image = image.into();
        node.order(&order).rest()
    };
    let (lines, cause) = refusal(&"ab".repeat(32));
    assert!(lines[0].contains("is not in the image store"), "{lines:?}");
    assert_eq!(cause, ExitCause::Exited(3));
    for hostile in ["../..", "", IMAGE.to_uppercase().as_str()] {
        assert!(refusal(hostile).0[0].contains("is not an image digest"));
    }
}

pub(crate) fn two_hundred_spawns_leave_nothing_behind() {
    let node = Node::start();
    let spend = || {
        let mut talk = node.order(&Order::sealed("hello"));
        assert_eq!(talk.rest().1, ExitCause::Exited(0));
    };
    spend();
    let before = (open_descriptors("self"), open_descriptors(&node.spawner.pid().to_string()));
    for _ in 0..200 {
        spend();
    }
    let after = (open_descriptors("self"), open_descriptors(&node.spawner.pid().to_string()));
    assert_eq!(before, after, "descriptors leak (agent, spawner)");
    let groups = groups_of(std::process::id());
    for group in &groups {
        let left: Vec<_> = subdirectories(group);
        assert!(left.is_empty(), "control groups stay: {left:?}");
    }
    drop(node);
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "the parents stay: {left:?}");
}

/// A call must not cost its sandbox a switch of context for nothing.
pub(crate) fn who_waits_is_not_woken_when_its_answer_is_read() {
    let node = Node::start();
    let talk = node.order(&Order::sealed("answer"));
    rustix::net::recv(&talk.answers, &mut [0; 6], rustix::net::RecvFlags::PEEK).unwrap();
    let before = switches_at_rest(talk.life.pid());
    assert_eq!(rustix::io::read(&talk.answers, &mut [0; 64]), Ok(6));
    assert_eq!(switches_at_rest(talk.life.pid()), before, "it woke up, and nothing was there for it");
}

/// How often a process of one thread has begun to wait, once it waits and goes on waiting.
fn switches_at_rest(pid: u32) -> String {
    let look = || {
        std::thread::sleep(Duration::from_millis(100));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        (field("State:").to_owned(), field("voluntary_ctxt_switches:").to_owned())
    };
    let mut last = look();
    loop {
        let now = look();
        if now == last && now.0.starts_with('S') {
            return now.1;
        }
        last = now;
    }
}

/// How many descriptors a process holds; 0 where we may not look.
fn open_descriptors(pid: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The parent groups of an agent's spawners.
fn groups_of(agent: u32) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut look_in = vec![Path::new("/sys/fs/cgroup").to_owned()];
    let prefix = format!("denizen-{agent}-");
    while let Some(dir) = look_in.pop() {
        for sub in subdirectories(&dir) {
            if sub.file_name().unwrap().to_str().unwrap().starts_with(&prefix) {
                found.push(sub);
            } else {
                look_in.push(sub);
            }
        }
    }
    found
}

fn subdirectories(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

pub(crate) fn a_dropped_sandbox_dies_and_its_end_is_told() {
    let node = Node::start();
    let mut talk = node.order(&Order::sealed("idle"));
    assert_eq!(talk.line(), "idle");
    assert_eq!(talk.life.exit(), None);
    let (tell, told) = std::sync::mpsc::channel();
    talk.life.on_exit(move |cause| tell.send(cause).unwrap());
    // The connection stays open: its end alone would let the runner leave by itself, now and then before the signal comes.
    let Talk { life, control: _open, .. } = talk;
    drop(life);
    assert_eq!(told.recv_timeout(SOON), Ok(ExitCause::Signalled(9)));
}

pub(crate) fn a_stopped_sandbox_blocks_nobody() {
    let node = Node::start();
    let mut stopped = node.order(&Order::sealed("idle"));
    assert_eq!(stopped.line(), "idle");
    kill_process(pid(stopped.life.pid()), Signal::STOP).unwrap();
    assert_eq!(node.order(&Order::sealed("hello")).rest().0, ["hello from pid 1"]);
    assert_eq!(stopped.life.exit(), None, "it was still stopped when the other one was made, ran and ended");
    stopped.life.kill();
    assert_eq!(stopped.life.wait_exit(SOON), Some(ExitCause::Signalled(9)));
}

pub(crate) fn the_report_names_every_layer_and_require_refuses() {
    let node = Node::start();
    let report = node.spawner.report();
    let names: Vec<_> = report.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(
        names,
        ["namespaces", "seccomp", "uid-per-sandbox", "memory-cgroup", "cpu-cgroup", "pids-cgroup"]
    );
    for layer in &report.layers {
        assert_eq!(layer.active, layer.consequence.is_empty(), "{layer:?}");
        assert_eq!(layer.active, layer.remedy.is_empty(), "{layer:?}");
    }
    let dir = Dir::new();
    let required = Spawner::start(SpawnerConfig { isolation: Isolation { require: true }, ..dir.config() });
    let missing: Vec<_> = report.missing().map(|layer| layer.name.as_str()).collect();
    match (missing.as_slice(), required) {
        ([], Ok(_)) => assert!(is_root()),
        // Their remedies name folders that are each spawner's own.
        ([_, ..], Err(SandboxError::Isolation { missing: named })) => {
            assert_eq!(named.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), missing);
        }
        (missing, required) => panic!("missing {missing:?}, but {required:?}"),
    }
}

pub(crate) fn a_killed_agent_leaves_no_sandbox() {
    let dir = Dir::new();
    let (agent, pids) = agents::start(&dir.0);
    let groups = groups_of(agent.0.id());
    drop(agent);
    assert_dead_within(&pids, Duration::from_secs(3));
    // It could not remove its control groups itself; the next one on its directory does.
    drop(Spawner::start(dir.config()).unwrap());
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "the parents stay: {left:?}");
}

/// A stopped spawner does not see that its agent's sockets are closed: only the kernel can end it.
pub(crate) fn a_killed_agent_takes_a_stopped_spawner_along() {
    /// Should the kernel not do it, the next one on the directory does.
    struct Successor<'a>(&'a Dir);
    impl Drop for Successor<'_> {
        fn drop(&mut self) {
            drop(Spawner::start(self.0.config()));
        }
    }
    let dir = Dir::new();
    let (agent, pids) = agents::start(&dir.0);
    let _successor = Successor(&dir);
    kill_process(pid(pids[0]), Signal::STOP).unwrap();
    drop(agent);
    assert_dead_within(&pids, Duration::from_secs(3));
}

/// A stopped agent, with a stopped sandbox: nothing of it hears anything, and it must go.
pub(crate) fn a_predecessor_is_killed_at_start() {
    let dir = Dir::new();
    let (agent, pids) = agents::start(&dir.0);
    let agent_pid = pid(agent.0.id());
    kill_process(agent_pid, Signal::STOP).unwrap();
    kill_process(pid(pids[1]), Signal::STOP).unwrap();
    let successor = Spawner::start(dir.config()).unwrap();
    // At once: it waited.
    assert_dead_within(&pids, Duration::ZERO);
    assert_eq!(Talk::begin(successor.spawn().unwrap(), &Order::sealed("hello")).line(), "hello from pid 1");
}

pub(crate) fn a_lost_spawner_is_reported() {
    let node = Node::start();
    let mut talk = node.order(&Order::sealed("idle"));
    assert_eq!(talk.line(), "idle");
    kill_process(pid(node.spawner.pid()), Signal::KILL).unwrap();
    assert_eq!(talk.line(), "", "the sandbox outlives its spawner");
    assert_eq!(talk.life.wait_exit(SOON), Some(ExitCause::SpawnerGone));
    assert!(!node.spawner.is_alive());
    assert!(matches!(node.spawner.spawn(), Err(SandboxError::SpawnerGone)));
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

/// Dead, or a zombie that nobody has reaped yet.
fn assert_dead_within(pids: &[u32], limit: Duration) {
    let until = Instant::now() + limit;
    for pid in pids {
        loop {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            match stat.rsplit_once(") ") {
                Some((_, rest)) if !rest.starts_with(['Z', 'X']) => {}
                _ => break,
            }
            assert!(Instant::now() < until, "process {pid} lives: {stat}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
