//! THE evidence, through the built binary: what a plugin sees and can do in its sandbox, from an ELF constructor and from a
//! function. Nothing, but for the short list that each test spells out. `node/sandbox/tests` has the same for the crate alone.

use crate::node::{DENIZEN, Node, Start, compile_c, repository, scratch, text};
use std::collections::BTreeMap;
use std::process::Command;

/// What a manifest may say of files.
const FILES: [&str; 3] = ["none", "image", "state"];

/// A node with the hostile plugin deployed as `isolation`, in an image with these files.
fn node(files: &str) -> Node {
    node_with(files, "ring")
}

/// As above, reached this way.
fn node_with(files: &str, isolation: &str) -> Node {
    let node = Start::new().node();
    let host_file = format!("-DHOST_FILE=\"{}\"", repository().join("Cargo.toml").display());
    let host_pid = format!("-DHOST_PID={}", node.pid());
    // Each test's plugin names its own node, so that they do not compile over one another.
    let name = format!("isolation-{}", node.pid());
    let plugin = compile_c(&name, include_str!("isolation.c"), &[&host_file, &host_pid]);
    let dir = scratch().join(&name);
    std::fs::create_dir_all(dir.join("files")).unwrap();
    std::fs::write(dir.join("files/packed"), "in the image").unwrap();
    let (manifest, archive) = (dir.join("denizen.toml"), dir.join("image.dzi"));
    std::fs::write(
        &manifest,
        format!("name = \"{name}\"\nfiles = \"{files}\"\nisolation = \"{isolation}\"\n"),
    )
    .unwrap();
    let mut build = Command::new(DENIZEN);
    build
        .args(["image", "build", "-o"])
        .arg(&archive)
        .arg("--plugin")
        .arg(plugin)
        .arg("--manifest")
        .arg(manifest);
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
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
const TRAPPED: [&str; 23] = [
    "socket 1 1",
    "socket 2 1",
    "socketpair",
    "recvmsg 1",
    "sendmsg 3",
    "io_uring_setup",
    "io_uring_enter 3",
    "io_uring_enter 5",
    "io_uring_enter 4 with flags 2",
    "io_uring_enter 4 with flags 10",
    // Another table, sockets for the table, restrictions, an end of the lock.
    "io_uring_register 2 on the ring",
    "io_uring_register 6 on the ring",
    "io_uring_register 11 on the ring",
    "io_uring_register 12 on the ring",
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

/// What an image with files of its own gets by them, and no other.
const OWN: [&str; 7] = [
    "own: create",
    "own: make a directory",
    "own: make it longer",
    "own: make it set-user-id",
    "own: remove",
    "own: remove a directory",
    "own: rename",
];

/// What even such an image does not get: the number of the error.
const NOT_EVEN_OWN: [(&str, &str); 8] = [
    ("own: give away", "refused 13"),
    ("own: link", "refused 13"),
    ("own: link symbolically", "refused 13"),
    ("own: make a device", "refused 13"),
    ("own: make a pipe", "refused 13"),
    ("own: make it a terabyte long", "refused 27"),
    ("own: map executable", "refused 1"),
    ("own: set an attribute", "refused 13"),
];

fn assert_nothing_was_got(place: &str, files: &str, table: &Table) {
    let place = format!("{place} with files = {files:?}");
    assert!(table.attempts.len() > 400, "only {} attempts from {place}", table.attempts.len());
    let got = table.attempts.iter().filter(|(_, outcome)| outcome.starts_with("GOT"));
    let got: Vec<_> = got.map(|(what, _)| what.as_str()).collect();
    if files == "state" {
        assert_eq!(got, OWN, "from {place}");
        for (what, outcome) in NOT_EVEN_OWN {
            assert_eq!(table.attempts.get(what).map(String::as_str), Some(outcome), "{what} from {place}");
        }
    } else {
        assert!(got.is_empty(), "from {place} a plugin got: {got:?}");
    }
    // It may receive what the agent sends, where the agent sends it; there is nothing.
    assert_eq!(table.attempts.get("recvmsg 3").map(String::as_str), Some("refused 11"), "from {place}");
    for what in TRAPPED {
        assert_eq!(table.attempts.get(what).map(String::as_str), Some("trapped"), "{what} from {place}");
    }
}

#[test]
fn a_constructor_sees_its_image_and_can_do_nothing() {
    for files in FILES {
        let node = node(files);
        let table = table(&node, "as-constructor");
        assert_nothing_was_got("a constructor", files, &table);
        assert_sees_only_its_image(files, &table);
        assert_holds_only_its_own(&table, has_rings());
    }
}

/// Whether sandboxes have rings on this machine, unless somebody asks for none.
pub(crate) fn has_rings() -> bool {
    let output = Command::new(DENIZEN).args(["doctor", "--json"]).output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = findings.to_string();
    assert!(text.contains("io_uring"), "{text}");
    text.contains("rings can be locked")
}

/// `relay` keeps io_uring from a sandbox as if there were none.
#[test]
fn a_relayed_image_has_no_ring() {
    let node = node_with("none", "relay");
    for (place, function) in [("a constructor", "as-constructor"), ("a function", "as-function")] {
        let table = table(&node, function);
        assert_nothing_was_got(place, "none", &table);
        assert_holds_only_its_own(&table, false);
    }
}

/// Its own image, read-only, and the empty places where the image came from and where files of its own would be.
fn assert_sees_only_its_image(files: &str, table: &Table) {
    let seen = table.has.iter().filter(|line| line.starts_with("in "));
    let mut seen: Vec<_> = seen.map(String::as_str).collect();
    seen.sort_unstable();
    let packed = "in /image: files";
    let expected = [
        "in /: image",
        "in /: state",
        "in /: store",
        "in /image: denizen.toml",
        packed,
        "in /image: image.json",
        "in /image: plugin.so",
    ];
    let expected: Vec<_> = expected.into_iter().filter(|line| files != "none" || *line != packed).collect();
    assert_eq!(seen, expected, "with files = {files:?}");
}

#[test]
fn a_function_sees_nothing_and_can_do_nothing() {
    for files in FILES {
        assert_a_function_sees_nothing(files);
    }
}

fn assert_a_function_sees_nothing(files: &str) {
    let node = node(files);
    let table = table(&node, "as-function");
    assert_nothing_was_got("a function", files, &table);
    match files {
        "none" => assert!(!table.has.iter().any(|line| line.starts_with("in ")), "it sees {:?}", table.has),
        _ => assert_sees_only_its_image(files, &table),
    }
    assert_holds_only_its_own(&table, has_rings());
    // It lives: all of that is refused without harm to it, and nobody else felt it.
    let process = node.process("isolation", "p");
    assert_eq!((&process["phase"], &process["invocations"]), (&"active".into(), &1.into()), "{process}");
    assert_eq!(node.call("isolation", "bystander", "count", b"").status, 200, "{}", node.said());
    look_from_outside(process["pid"].as_u64().expect("the sandbox's pid"), files);
}

/// Sockets to the node, a ring if there is one, and segments of its own state: each to write, and to read only.
fn assert_holds_only_its_own(table: &Table, ring: bool) {
    let held: Vec<_> = table.has.iter().filter(|line| !line.starts_with("in ")).map(String::as_str).collect();
    let sockets = [
        "pid 1, parent 0, uid 1000, gid 1000, 0 environment variables",
        "fd 0: socket",
        "fd 1: socket",
        "fd 2: socket",
        "fd 3: socket",
    ];
    let expected: Vec<_> =
        sockets.into_iter().chain(ring.then_some("fd 4: other")).chain(["fd 5: socket"]).collect();
    let (own, segments) = held.split_at(expected.len());
    assert_eq!(own, expected);
    // Without a connection it is not enabled, and the kernel says so.
    let entered = if ring { "refused 77" } else { "trapped" };
    assert_eq!(table.attempts.get("io_uring_enter 4").map(String::as_str), Some(entered));
    let kinds: Vec<_> = segments.iter().map(|line| line.rsplit(' ').next().unwrap_or_default()).collect();
    let pairs = kinds.chunks(2).all(|pair| pair == ["writable", "read-only"]);
    assert!(pairs && !kinds.is_empty() && kinds.len() <= 6, "{held:?}");
}

/// What the host's kernel says about the sandbox, which a plugin cannot fake.
fn look_from_outside(pid: u64, files: &str) {
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
    let (fixed, own) = mounts.split_at(2);
    assert_eq!(fixed.iter().map(|fields| fields[4]).collect::<Vec<_>>(), ["/", "/image"]);
    assert!(fixed.iter().all(|fields| fields[5].contains("ro,nosuid,nodev")), "{mounts:?}");
    let own: Vec<_> = own.iter().map(|fields| (fields[4], fields[5])).collect();
    match files {
        "state" => assert_eq!(own, [("/state", "rw,nosuid,nodev,noexec,relatime,nosymfollow")]),
        _ => assert!(own.is_empty(), "{own:?}"),
    }
}

/// `int $0x80` and x32 reach the same kernel under other numbers; both end the sandbox on the spot, whatever its handlers.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_doors_of_other_architectures_are_closed() {
    let node = node("none");
    for function in ["through-x32", "through-i386"] {
        node.call("isolation", "p", function, b"").problem(500, "forbidden-syscall", "function");
        assert_eq!(node.call("isolation", "bystander", "count", b"").status, 200, "{}", node.said());
    }
}
