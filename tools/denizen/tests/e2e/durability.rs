//! What replies promise of their commits, state seen and changed from outside, and what damage on the disk comes to.

use crate::node::{Node, PATIENCE, Reply, Start, Until, agent, c_image, faulty_image, signal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const COUNT: &str = "/v1/apps/faulty/processes/p/functions/count";
const STATE: &str = "/v1/apps/faulty/processes/p/state";

fn count_at(node: &Node, level: &str) -> Reply {
    node.post(COUNT, &[("Denizen-Durability", level)], b"")
}

fn commit_of(reply: &Reply) -> u64 {
    reply.header("denizen-commit").and_then(|text| text.parse().ok()).expect("a commit")
}

#[test]
fn a_reply_says_what_its_commit_has_survived() {
    let node = Node::with_faulty();
    let process = count_at(&node, "process");
    assert_eq!((process.status, process.header("denizen-durability")), (200, Some("process")));
    let synced = count_at(&node, "NODE");
    assert_eq!(
        (synced.status, synced.header("denizen-durability")),
        (200, Some("node")),
        "{}",
        synced.body()
    );
    assert!(commit_of(&synced) > commit_of(&process));
    assert_eq!(node.process("faulty", "p")["durable"], commit_of(&synced));
    for (level, word) in [("store", "yet"), ("disk", "node"), ("", "node")] {
        let problem = count_at(&node, level).problem(400, "bad-header", "caller");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "2", "a refused call counted");
}

/// Shared maps of segments that the sandbox of `faulty/p` can write to: where it stores its tail while nobody syncs.
fn windows(node: &Node) -> Vec<String> {
    let pid = node.process("faulty", "p")["pid"].as_u64().expect("the sandbox's pid");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let is_segment = |line: &&str| line.contains("/segment-") && line.contains(".log");
    let segments: Vec<_> = maps.lines().filter(is_segment).map(str::to_owned).collect();
    assert!(segments.iter().any(|line| line.contains(" r--s ")), "no segment is mapped: {maps}");
    segments.into_iter().filter(|line| line.contains(" rw-s ")).collect()
}

/// It is for sandboxes, and so it has to be in them: sealed, it may map what is writable.
#[test]
fn the_tail_is_written_through_a_window_while_nobody_syncs() {
    let test = "the_tail_is_written_through_a_window_while_nobody_syncs";
    if !denizen_testing::needs_root(test) {
        return;
    }
    let node = Node::with_faulty();
    for round in 0..2 {
        assert_eq!(count_at(&node, "node").status, 200);
        assert_eq!(windows(&node), [""; 0], "round {round}: every commit is synced");
        // 16 KiB and more.
        for _ in 0..40 {
            let reply = node.call("faulty", "p", "keep", &[7; 1000]);
            assert_eq!(reply.status, 200, "{}", reply.body());
        }
        assert_ne!(windows(&node), [""; 0], "round {round}: no commit is synced");
    }
    assert_eq!(count_at(&node, "node").status, 200);
    assert_eq!(windows(&node), [""; 0], "it stays over a sync");
}

#[test]
fn a_commit_can_be_waited_for() {
    let node = Node::with_faulty();
    let commit = commit_of(&count_at(&node, "process"));
    let commits =
        |number: u64, query: &str| node.get(&format!("/v1/apps/faulty/processes/p/commits/{number}{query}"));
    let at_process = commits(commit, "?level=process");
    assert_eq!((at_process.status, &at_process.json()["level"]), (200, &"process".into()));
    let durable = commits(commit, "?level=node");
    assert_eq!(durable.status, 200, "{}", durable.body());
    assert!(durable.json()["durable"].as_u64() >= Some(commit), "{}", durable.body());
    assert!(node.process("faulty", "p")["durable"].as_u64() >= Some(commit));
    commits(commit + 1000, "").problem(404, "unknown-commit", "caller");
    commits(commit, "?level=store").problem(400, "bad-request", "caller");

    // Where nothing runs it is durable once it has been synced from outside.
    let second = commit_of(&count_at(&node, "process"));
    kill_sandbox(&node);
    node.await_phase("faulty", "p", "failed");
    assert_eq!(commits(second, "").status, 200);
    assert_eq!(node.process("faulty", "p")["phase"], "failed", "it was started for that");
    node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
    assert_eq!(commits(second, "").status, 200);
    commits(second + 1000, "").problem(404, "unknown-commit", "caller");
    node.get("/v1/apps/faulty/processes/nobody/commits/1").problem(404, "unknown-process", "caller");
}

/// Its number is in what the call has sent already, in the log, or in another process: nobody waits for the end of the call.
#[test]
fn a_commit_of_a_call_that_still_runs_can_be_waited_for() {
    use std::io::{Read, Write};
    let node = Start::new().node();
    node.deploy(&c_image("commits", include_str!("commits.c")));
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    let call = "POST /v1/apps/commits/processes/p/functions/go HTTP/1.1";
    write!(stream, "{call}\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", node.address()).unwrap();
    let mut read = Vec::new();
    while !read.windows(5).any(|part| part == b"after") {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&some[..count]);
    }
    for level in ["process", "node"] {
        let reached = node.get(&format!("/v1/apps/commits/processes/p/commits/1?level={level}"));
        assert_eq!(reached.status, 200, "{}", reached.body());
    }
    // A refusal says which commit was the last, and the agent has heard of this one.
    let beyond = node.get("/v1/apps/commits/processes/p/commits/1000");
    beyond.problem(404, "unknown-commit", "caller");
    assert_eq!(node.process("commits", "p")["phase"], "active", "{}", node.said());
    // So does the end of a call that waited for its turn until its deadline.
    let late = node.post(
        "/v1/apps/commits/processes/p/functions/go",
        &[("Denizen-Deadline-Ms", "200"), ("Content-Type", "text/plain")],
        b"",
    );
    late.problem(504, "deadline-exceeded", "function");
    assert_eq!(node.process("commits", "p")["phase"], "active", "{}", node.said());
}

/// It has its turn meanwhile, and nobody else: not the calls that would start it, nor the end of the node.
#[test]
fn a_process_at_rest_waits_for_no_body_beyond_the_deadline() {
    use std::io::{Read, Write};
    let node = Node::with_faulty();
    assert_eq!(count_at(&node, "node").status, 200);
    node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    let (address, token) = (node.address(), node.token());
    let head = format!("PUT {STATE}/key HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n");
    write!(stream, "{head}Content-Length: 300000\r\nDenizen-Deadline-Ms: 200\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut some = [0; 4096];
    let count = stream.read(&mut some).expect("an answer");
    let answer = String::from_utf8_lossy(&some[..count]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("deadline-exceeded"), "{answer}");
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "1");
}

fn kill_sandbox(node: &Node) {
    let pid = node.process("faulty", "p")["pid"].as_u64().expect("it is active");
    signal(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
}

/// A request with the token.
fn state(node: &Node, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut request = ureq::http::Request::builder().method(method).uri(node.url(path));
    request = request.header("Authorization", format!("Bearer {}", node.token()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Reply::of(agent().run(request.body(body).unwrap()).expect("the node answers"))
}

fn keys(node: &Node, query: &str) -> Vec<String> {
    let reply = state(node, "GET", &format!("{STATE}{query}"), &[], b"");
    assert_eq!(reply.status, 200, "{}", reply.body());
    let list = reply.json();
    list["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap().to_owned()).collect()
}

/// Everything that can be asked, in a process that `before` puts to rest or not before each step.
fn look_and_change(node: &Node, before: impl Fn(&Node)) {
    let at = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
        before(node);
        state(node, method, path, headers, body)
    };
    let key = |key: &str| format!("{STATE}/{key}");
    let put = at("PUT", &key("a%2F1"), &[("Denizen-Fingerprint", "18446744073709551615")], b"one");
    assert_eq!(put.status, 204, "{}", put.body());
    assert_eq!(at("PUT", &key("a%2F2"), &[], b"").status, 204);
    assert_eq!(
        at("PUT", &key("b%00%FF"), &[], &[7; 300_000]).status,
        204,
        "one that does not fit into a frame"
    );
    before(node);
    assert_eq!(keys(node, ""), ["612f31", "612f32", "6200ff", "636f756e74"]);
    assert_eq!(keys(node, "?prefix=a%2F&after=a%2F1"), ["612f32"]);
    assert_eq!(keys(node, "?limit=1"), ["612f31"]);

    let one = at("GET", &key("a%2F1"), &[], b"");
    assert_eq!((one.status, one.bytes()), (200, &b"one"[..]));
    assert_eq!(one.header("denizen-fingerprint"), Some("18446744073709551615"));
    assert!(one.header("denizen-version").unwrap().parse::<u64>().unwrap() > 0);
    assert!(one.header("denizen-time-ms").unwrap().parse::<u64>().unwrap() > 1_600_000_000_000);
    assert_eq!(at("GET", &key("b%00%FF"), &[], b"").bytes(), [7; 300_000]);
    at("GET", &key("nothing"), &[], b"").problem(404, "unknown-key", "caller");

    let archive = at("GET", "/v1/apps/faulty/processes/p/export", &[], b"");
    assert_eq!((archive.status, &archive.bytes()[..8]), (200, &b"DZSTATE1"[..]));
    assert_eq!(at("DELETE", &key("a%2F1"), &[], b"").status, 204);
    at("DELETE", &key("a%2F1"), &[], b"").problem(404, "unknown-key", "caller");
    assert_eq!(at("PUT", &key("a%2F2"), &[], b"another").status, 204);

    let import = "/v1/apps/faulty/processes/p/import";
    for cut in [3, 60, archive.bytes().len() - 1] {
        let refused = at("POST", import, &[], &archive.bytes()[..cut]);
        assert_eq!(refused.status, 400, "cut at {cut}: {}", refused.body());
    }
    let imported = at("POST", import, &[], archive.bytes());
    assert_eq!((imported.status, &imported.json()["keys"]), (200, &4.into()), "{}", imported.body());
    assert_eq!(at("GET", &key("a%2F1"), &[], b"").bytes(), b"one");
    assert_eq!(at("GET", &key("a%2F2"), &[], b"").bytes(), b"");
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "2", "{}", node.said());
}

#[test]
fn the_state_of_an_active_process_is_looked_at_and_changed() {
    let node = Node::with_faulty();
    count_at(&node, "process");
    let pid = node.process("faulty", "p")["pid"].clone();
    look_and_change(&node, |_| {});
    assert_eq!(node.process("faulty", "p")["pid"], pid, "its sandbox was ended for that");
}

#[test]
fn the_state_of_a_swapped_process_is_looked_at_and_changed_without_a_sandbox() {
    let node = Node::with_faulty();
    count_at(&node, "process");
    assert_eq!(node.control("POST", "/v1/apps/faulty/processes/p/swap-out").status, 200);
    look_and_change(&node, |node| assert_eq!(node.process("faulty", "p")["phase"], "swapped"));
}

#[test]
fn the_state_of_a_resting_process_is_looked_at_and_changed_without_a_sandbox() {
    let node = Node::with_faulty();
    count_at(&node, "process");
    kill_sandbox(&node);
    node.await_phase("faulty", "p", "failed");
    look_and_change(&node, |node| assert_eq!(node.process("faulty", "p")["pid"], serde_json::Value::Null));
}

#[test]
fn state_is_shown_to_nobody_without_the_token() {
    let node = Node::with_faulty();
    count_at(&node, "process");
    for path in [STATE.to_owned(), format!("{STATE}/count"), "/v1/apps/faulty/processes/p/export".to_owned()]
    {
        node.get(&path).problem(401, "bad-token", "caller");
    }
    for bad in ["", "%", "%4", &"x".repeat(1025)] {
        state(&node, "GET", &format!("{STATE}/{bad}"), &[], b"").problem(400, "bad-request", "caller");
    }
    state(&node, "GET", "/v1/apps/faulty/processes/nobody/state", &[], b"").problem(
        404,
        "unknown-process",
        "caller",
    );
}

/// Callers count in a process until told to stop; what was replied last at each level.
fn under_load(node: &Node, during: impl FnOnce()) -> (u64, u64) {
    let (stop, at_process, at_node) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (stop, at_process, at_node, url) = (&stop, &at_process, &at_node, node.url(COUNT));
            scope.spawn(move || {
                let (level, highest) =
                    if number % 2 == 0 { ("process", at_process) } else { ("node", at_node) };
                let agent = agent();
                while !stop.load(Ordering::Relaxed) {
                    let sent = agent.post(&url).header("Denizen-Durability", level).send_empty();
                    let Ok(mut reply) = sent else { continue };
                    if reply.status() == 200
                        && let Ok(text) = reply.body_mut().read_to_string()
                    {
                        highest.fetch_max(text.parse().expect("a count"), Ordering::Relaxed);
                    }
                }
            });
        }
        let _calling = Until(&stop);
        during();
    });
    (at_process.into_inner(), at_node.into_inner())
}

/// `kill -9` of the sandbox loses nothing that a reply had reported, at whatever level.
#[test]
fn sandboxes_killed_under_load_lose_no_reported_commit() {
    let node = Node::with_faulty();
    let mut reported = 0;
    for round in 0..4_u64 {
        let (at_process, at_node) = under_load(&node, || {
            std::thread::sleep(Duration::from_millis(60 + 37 * round));
            if let Some(pid) = node.process("faulty", "p")["pid"].as_u64() {
                signal(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
            }
        });
        reported = reported.max(at_process).max(at_node);
        let reply = retried(&node, "value");
        let found: u64 = reply.body().parse().expect("a count");
        assert!(found >= reported, "{reported} was reported, {found} is there\n{}", node.said());
    }
    assert!(reported > 0, "nothing was called");
}

/// The same for the agent: what it takes along is in the kernel, or on the disk.
#[test]
fn nodes_killed_under_load_lose_no_reported_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut reported = 0;
    for round in 0..4_u64 {
        let mut node = Start::new().dir(dir.path()).node();
        if round == 0 {
            node.deploy(faulty_image());
        }
        let found: u64 = retried(&node, "value").body().parse().expect("a count");
        assert!(found >= reported, "{reported} was reported, {found} is there\n{}", node.said());
        let pid = node.pid();
        let (at_process, at_node) = under_load(&node, || {
            std::thread::sleep(Duration::from_millis(80 + 41 * round));
            signal(pid, rustix::process::Signal::KILL);
        });
        reported = reported.max(at_process).max(at_node);
        node.kill();
    }
    assert!(reported > 0, "nothing was called");
    let node = Start::new().dir(dir.path()).node();
    let found: u64 = retried(&node, "value").body().parse().expect("a count");
    assert!(found >= reported, "{reported} was reported, {found} is there");
}

/// A call that may meet the end of a sandbox, or the pause after several.
fn retried(node: &Node, function: &str) -> Reply {
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = node.call("faulty", "p", function, b"");
        if reply.status == 200 {
            return reply;
        }
        assert!(Instant::now() < until, "{}\n{}", reply.body(), node.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The segments of a process that rests, the one with the last commit last.
fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut written: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| std::fs::read(path).unwrap().iter().any(|byte| *byte != 0))
        .collect();
    written.sort();
    written
}

/// A node that was stopped, with a process of two segments and some objects.
struct Stopped {
    dir: tempfile::TempDir,
    folder: PathBuf,
}

impl Stopped {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..2 {
            let mut node = Start::new().dir(dir.path()).node();
            if round == 0 {
                node.deploy(faulty_image());
                assert_eq!(node.call("faulty", "p", "keep", &[0xAB; 1000]).body(), "1000");
            }
            assert_eq!(count_at(&node, "node").status, 200);
            assert_eq!(node.call("faulty", "bystander", "count", b"").status, 200);
            assert_eq!(node.stop(), Some(0), "{}", node.said());
        }
        let folder = dir.path().join("state/faulty/p.state");
        assert!(segments(&folder).len() >= 2, "a restart begins a segment");
        Stopped { dir, folder }
    }

    fn node(&self) -> Node {
        Start::new().dir(self.dir.path()).node()
    }

    /// Starts it again; the process answers with this problem, offline and online, and others do not feel it.
    fn assert_damaged(&self, kind: &str, word: &str) {
        let node = self.node();
        for reply in [state(&node, "GET", STATE, &[], b""), node.call("faulty", "p", "value", b"")] {
            let problem = reply.problem(500, kind, "store");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(word), "{problem}");
        }
        node.assert_others_work("faulty");
        let out = node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
        out.problem(500, kind, "store");
        assert_eq!(node.control("DELETE", "/v1/apps/faulty/processes/p").status, 204);
        assert_eq!(node.call("faulty", "p", "count", b"").body(), "1", "it begins anew once it is deleted");
        assert!(!node.said().contains("panicked"), "{}", node.said());
    }
}

#[test]
fn a_segment_that_is_missing_is_named() {
    let stopped = Stopped::new();
    std::fs::remove_file(&segments(&stopped.folder)[0]).unwrap();
    stopped.assert_damaged("state-corrupt", "missing");
}

#[test]
fn the_last_segment_cannot_go_unnoticed_either() {
    let stopped = Stopped::new();
    std::fs::remove_file(segments(&stopped.folder).last().unwrap()).unwrap();
    stopped.assert_damaged("state-corrupt", "durable");
}

#[test]
fn state_that_is_gone_is_said() {
    let stopped = Stopped::new();
    std::fs::remove_dir_all(&stopped.folder).unwrap();
    stopped.assert_damaged("state-lost", "gone");
}

#[test]
fn a_segment_of_another_process_is_named() {
    let stopped = Stopped::new();
    let other = stopped.dir.path().join("state/faulty/bystander.state");
    let ours = &segments(&stopped.folder)[0];
    std::fs::copy(&segments(&other)[0], ours).unwrap();
    stopped.assert_damaged("state-corrupt", "does not belong here");
}

#[test]
fn a_flipped_bit_in_a_commit_is_named() {
    let stopped = Stopped::new();
    let path = &segments(&stopped.folder)[0];
    let mut bytes = std::fs::read(path).unwrap();
    // The head of the first record.
    let at = bytes.windows(4).position(|part| part == b"DZcm").expect("a record");
    bytes[at + 20] ^= 4;
    std::fs::write(path, bytes).unwrap();
    stopped.assert_damaged("state-corrupt", "damaged at byte");
}

#[test]
fn a_flipped_bit_in_an_object_costs_no_other_object() {
    let stopped = Stopped::new();
    let path = &segments(&stopped.folder)[0];
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(1000).position(|part| part == [0xAB; 1000]).expect("the object");
    bytes[at + 500] ^= 4;
    std::fs::write(path, bytes).unwrap();
    let node = stopped.node();
    let kept = format!("{STATE}/kept");
    let look = || {
        let problem = state(&node, "GET", &kept, &[], b"").problem(500, "object-damaged", "store");
        assert!(problem["detail"].as_str().unwrap().contains("kept"), "{problem}");
    };
    look();
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "3", "{}", node.said());
    look();
    // It goes along wherever the state goes, and a new value heals it.
    assert_eq!(node.control("POST", "/v1/apps/faulty/processes/p/swap-out").status, 200);
    look();
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "3");
    look();
    assert_eq!(state(&node, "PUT", &kept, &[], b"new").status, 204);
    assert_eq!(state(&node, "GET", &kept, &[], b"").bytes(), b"new");
}

#[test]
fn a_torn_tail_is_cut_and_everything_durable_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(faulty_image());
    assert_eq!(count_at(&node, "node").body(), "1");
    assert_eq!(count_at(&node, "process").body(), "2");
    node.kill();
    let path = segments(&dir.path().join("state/faulty/p.state")).pop().expect("a segment");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.windows(4).rposition(|part| part == b"DZcm").expect("a record");
    // As if power had been cut in the middle of the last record, which nobody was told is durable.
    bytes[last + 40..].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let node = Start::new().dir(dir.path()).node();
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "1", "{}", node.said());
    let logs = node.ok(&["logs", "faulty/p"]);
    assert!(logs.contains("a tail that never was durable was cut"), "{logs}");
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "2");
}
