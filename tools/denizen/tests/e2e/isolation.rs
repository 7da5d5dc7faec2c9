//! THE evidence, through the built binary: what a plugin sees and can do in its sandbox, from an ELF constructor and from a
//! function. Nothing, but for the short list that each test spells out. `node/sandbox/tests` has the same for the crate alone.

use crate::node::{Node, Start, compile_c, image_of_plugin, repository, scratch, text};
use std::collections::BTreeMap;

/// A node with the hostile plugin deployed as `isolation`.
fn node() -> Node {
    let node = Start::new().node();
    let host_file = format!("-DHOST_FILE=\"{}\"", repository().join("Cargo.toml").display());
    let host_pid = format!("-DHOST_PID={}", node.pid());
    // Each test's plugin names its own node, so that they do not compile over one another.
    let name = format!("isolation-{}", node.pid());
    let plugin = compile_c(&name, include_str!("isolation.c"), &[&host_file, &host_pid]);
    let output = image_of_plugin(&name, &plugin);
    assert!(output.status.success(), "{}", text(&output));
    let archive = scratch().join(format!("{name}.dzi"));
    node.ok(&["image", "deploy", "--app", "isolation", archive.to_str().unwrap()]);
    node
}

/// What one place reported: the attempts with their outcomes, and what it is meant to have.
struct Table {
    attempts: BTreeMap<String, String>,
    has: Vec<String>,
}

fn table(node: &Node, function: &str) -> Table {
    let reply = node.call("isolation", "p", function, b"");
    assert_eq!(reply.status, 200, "{}\n{}", reply.body(), node.said());
    let body = reply.body();
    assert!(body.ends_with("done\n"), "{function} did not come to its end: {body}");
    let attempts = body.lines().filter_map(|line| line.split_once('\t'));
    let has = body.lines().filter_map(|line| line.strip_prefix("has "));
    Table {
        attempts: attempts.map(|(what, outcome)| (what.to_owned(), outcome.to_owned())).collect(),
        has: has.map(str::to_owned).collect(),
    }
}

/// Trapped, rather than answered by the kernel: whoever tries these is told so by name in ordinary plugins.
const TRAPPED: [&str; 16] = [
    "socket 1 1",
    "socket 2 1",
    "socketpair",
    "recvmsg 3",
    "sendmsg 3",
    "io_uring_setup",
    "io_uring_enter 3",
    "ptrace me",
    "ptrace 2",
    "kill -1",
    "pidfd_open 2",
    "process_vm_readv 2",
    "execve",
    "clone like fork",
    "unshare 10000000",
    "mount tmpfs",
];

fn assert_nothing_was_got(place: &str, table: &Table) {
    assert!(table.attempts.len() > 400, "only {} attempts from {place}", table.attempts.len());
    let got: Vec<_> = table.attempts.iter().filter(|(_, outcome)| outcome.starts_with("GOT")).collect();
    assert!(got.is_empty(), "from {place} a plugin got: {got:?}");
    for what in TRAPPED {
        assert_eq!(table.attempts.get(what).map(String::as_str), Some("trapped"), "{what} from {place}");
    }
}

#[test]
fn a_constructor_sees_its_image_and_can_do_nothing() {
    let node = node();
    let table = table(&node, "as-constructor");
    assert_nothing_was_got("a constructor", &table);
    let mut files: Vec<_> =
        table.has.iter().filter(|line| line.starts_with("in ")).map(String::as_str).collect();
    files.sort_unstable();
    // Its own image, read-only, and the empty place that the image came from.
    assert_eq!(
        files,
        [
            "in /: image",
            "in /: store",
            "in /image: denizen.toml",
            "in /image: image.json",
            "in /image: plugin.so"
        ]
    );
    assert_holds_only_its_own(&table);
}

#[test]
fn a_function_sees_nothing_and_can_do_nothing() {
    let node = node();
    let table = table(&node, "as-function");
    assert_nothing_was_got("a function", &table);
    assert!(!table.has.iter().any(|line| line.starts_with("in ")), "it sees files: {:?}", table.has);
    assert_holds_only_its_own(&table);
    // It lives: all of that is refused without harm to it, and nobody else felt it.
    let process = node.process("isolation", "p");
    assert_eq!((&process["phase"], &process["invocations"]), (&"active".into(), &1.into()), "{process}");
    assert_eq!(node.call("isolation", "bystander", "count", b"").status, 200, "{}", node.said());
    look_from_outside(process["pid"].as_u64().expect("the sandbox's pid"));
}

/// Sockets to the node, and the file of its own state.
fn assert_holds_only_its_own(table: &Table) {
    let held: Vec<_> = table.has.iter().filter(|line| !line.starts_with("in ")).map(String::as_str).collect();
    assert_eq!(
        held,
        [
            "pid 1, parent 0, uid 1000, gid 1000, 0 environment variables",
            "fd 0: socket",
            "fd 1: socket",
            "fd 2: socket",
            "fd 3: socket",
            "fd 4: writable",
        ]
    );
}

/// What the host's kernel says about the sandbox, which a plugin cannot fake.
fn look_from_outside(pid: u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(
        (field("NoNewPrivs"), field("Seccomp"), field("Seccomp_filters")),
        ("1".into(), "2".into(), "2".into())
    );
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    assert_eq!(children, "", "it made processes");
    if !denizen_testing::needs_root("look_from_outside (mounts)") {
        return;
    }
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(mounts.iter().map(|fields| fields[4]).collect::<Vec<_>>(), ["/", "/image"]);
    assert!(mounts.iter().all(|fields| fields[5].contains("ro,nosuid,nodev")), "{mounts:?}");
}

/// `int $0x80` and x32 reach the same kernel under other numbers; both end the sandbox on the spot, whatever its handlers.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_doors_of_other_architectures_are_closed() {
    let node = node();
    for function in ["through-x32", "through-i386"] {
        node.call("isolation", "p", function, b"").problem(500, "forbidden-syscall", "function");
        assert_eq!(node.call("isolation", "bystander", "count", b"").status, 200, "{}", node.said());
    }
}
