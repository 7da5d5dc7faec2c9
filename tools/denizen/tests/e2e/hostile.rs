//! A plugin that means harm, and callers who do. Each test shows what comes of it, and that another process works meanwhile or
//! afterwards. The plugin is `hostile.c`: what it does, any tenant's native code can do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use denizen_protocol::Hello;
use denizen_protocol::client::Call;
use denizen_protocol::token::Claims;

use crate::node::{DENIZEN, Node, PATIENCE, Start, await_within, compile_c, scratch, text};
use crate::peer::{Peer, claims, issue};

/// Its quota is 1 MiB, which lets none of its segments be 3 MiB long, and its deadline 2 seconds.
const MANIFEST: &str = "name = \"hostile\"\n[limits]\nstate = \"1MiB\"\ndeadline = \"2s\"\n";

pub(crate) fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let plugin = compile_c("hostile", include_str!("hostile.c"), &["-Wno-unused-result", "-pthread"]);
        let (manifest, archive) = (scratch().join("hostile.toml"), scratch().join("hostile.dzi"));
        std::fs::write(&manifest, MANIFEST).unwrap();
        let built = Command::new(DENIZEN)
            .args(["image", "build", "-o"])
            .arg(&archive)
            .arg("--plugin")
            .arg(plugin)
            .arg("--manifest")
            .arg(manifest)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", text(&built));
        archive
    })
}

/// A node with the hostile plugin, whose process `victim` has counted to 1.
fn node() -> Node {
    let node = Start::new().node();
    node.deploy(image());
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "1");
    node
}

fn assert_still_counts(node: &Node, before: &str) {
    let after = node.call("hostile", "victim", "count", b"");
    assert_eq!((after.status, after.body().as_str()), (200, "2"), "after {before}: {}", node.said());
    node.assert_others_work("hostile");
}

/// A frame of a runner: its kind, flags, id, `a`, `c` and payload.
fn frame(kind: u8, end: u8, id: u64, a: u32, c: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend([kind, end, 0, 0]);
    frame.extend(id.to_le_bytes());
    frame.extend(a.to_le_bytes());
    frame.extend([0; 4]);
    frame.extend(c.to_le_bytes());
    frame.extend(payload);
    frame
}

const CREDIT: u8 = 6;
const READY: u8 = 32;
const REPLY: u8 = 34;
const REPLY_DATA: u8 = 35;
const FAIL: u8 = 36;
const LOG_LINE: u8 = 37;
const DRAINED: u8 = 38;
const WANT_SPARE: u8 = 39;
const RETIRED: u8 = 40;
const DURABLE: u8 = 41;
const CALLER_DONE: u8 = 43;
const CALLER_PARKED: u8 = 44;
const CENSUS: u8 = 45;
const OVERRUN: u8 = 46;
const FINISHED: u8 = 47;
/// What the numbers of direct calls have.
const DIRECT: u64 = 1 << 63;

/// Calls `frames` with these bytes, as the second call of a new sandbox.
fn send_to_agent(bytes: &[u8]) -> (Node, serde_json::Value) {
    let node = node();
    let reply = node.call("hostile", "victim", "frames", bytes);
    let problem = reply.problem(500, "sandbox-misbehaved", "function");
    assert_still_counts(&node, &problem.to_string());
    (node, problem)
}

#[test]
fn bytes_that_are_no_frame_end_the_sandbox() {
    send_to_agent(&[0xff; 100]);
}

#[test]
fn a_frame_of_any_length_is_not_waited_for() {
    let mut endless = frame(REPLY, 1, 2, 0, 1, b"\0\0");
    endless[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let (_, problem) = send_to_agent(&endless);
    assert!(problem["detail"].as_str().unwrap().contains("4294967295"), "{problem}");
}

#[test]
fn replies_to_calls_that_are_not_end_the_sandbox() {
    send_to_agent(&frame(REPLY, 1, 999, 0, 1, b"\0\0"));
    send_to_agent(&frame(REPLY, 1, 1, 0, 1, b"\0\0"));
    send_to_agent(&frame(LOG_LINE, 0, 999, 0, 0, b"who says that"));
}

#[test]
fn a_commit_that_goes_back_ends_the_sandbox() {
    send_to_agent(&frame(REPLY, 1, 2, 0, 0, b"\0\0"));
}

#[test]
fn a_header_in_a_content_type_ends_the_sandbox() {
    let injected = b"text/a\r\nSet-Cookie: b";
    let payload = [&u16::try_from(injected.len()).unwrap().to_le_bytes()[..], injected].concat();
    send_to_agent(&frame(REPLY, 1, 2, 0, 1, &payload));
}

#[test]
fn credit_that_was_never_lent_ends_the_sandbox() {
    send_to_agent(&frame(CREDIT, 0, 2, u32::MAX, 0, b""));
}

#[test]
fn a_second_declaration_ends_the_sandbox() {
    let other =
        br#"{"abi_version":1,"functions":[],"types":[],"state":{"commit":0,"live_bytes":0,"keys":0}}"#;
    send_to_agent(&frame(READY, 0, 0, 0, 0, other));
}

#[test]
fn a_document_of_brackets_ends_the_sandbox() {
    let brackets = "[".repeat(100_000);
    let deep =
        format!(r#"{{"kind":"failed","message":"","started":true,"committed":false,"detail":{brackets}"#);
    // Its own limit in the frame is no protection: it is parsed.
    send_to_agent(&frame(FAIL, 0, 2, 0, 1, deep.as_bytes()));
}

#[test]
fn a_sandbox_that_claims_to_drain_is_not_asked_again_and_again() {
    let refusal = br#"{"kind":"draining","message":"","started":false,"committed":false}"#;
    let (_, problem) = send_to_agent(&frame(FAIL, 0, 2, 0, 1, refusal));
    assert!(problem["detail"].as_str().unwrap().contains("not asked to drain"), "{problem}");
    // An end that looks orderly would not count as a crash, and a process that ends at once could be started for ever.
    let (node, problem) = send_to_agent(&frame(DRAINED, 0, 0, 0, 1, b""));
    assert!(problem["detail"].as_str().unwrap().contains("not asked"), "{problem}");
    assert_eq!(node.process("hostile", "victim")["epoch"], 2, "one new sandbox, for the call after");
}

#[test]
fn a_sandbox_that_lies_about_what_is_remembered_is_ended() {
    let said = |bytes: &[u8]| send_to_agent(bytes).1["detail"].as_str().unwrap().to_owned();
    const END_AND_REPLAYED: u8 = 3;
    let reply = frame(REPLY, END_AND_REPLAYED, 2, 0, 1, b"\0\0");
    let failure = br#"{"kind":"failed","message":"","started":true,"committed":false,"replayed":true}"#;
    for lie in [reply, frame(FAIL, 0, 2, 0, 1, failure)] {
        let detail = said(&lie);
        assert!(detail.contains("has no idempotency key"), "{detail}");
    }
}

#[test]
fn nonsense_about_connections_ends_the_sandbox() {
    let said = |bytes: &[u8]| send_to_agent(bytes).1["detail"].as_str().unwrap().to_owned();
    let detail = said(&frame(CALLER_DONE, 0, 1, 1, 0, b""));
    assert!(detail.contains("is not one that it has"), "{detail}");
    let detail = said(&frame(CALLER_PARKED, 0, 1, 1, 0, &[0; 4]));
    assert!(detail.contains("was not asked to"), "{detail}");
    let detail = said(&frame(CENSUS, 0, 0, 0, 7, b""));
    assert!(detail.contains("was not asked"), "{detail}");
    let detail = said(&frame(FINISHED, 0, DIRECT | 1, 0, 0, b""));
    assert!(detail.contains("had not overrun"), "{detail}");
    let detail = said(&frame(OVERRUN, 0, DIRECT | 1, 0, 0, b"").repeat(2));
    assert!(detail.contains("overran twice"), "{detail}");
    let detail = said(&frame(LOG_LINE, 0, DIRECT | 5, 25, 0, b"half a trace"));
    assert!(detail.contains("a trace is cut short"), "{detail}");
    // A log line of a direct call names one that may be.
    let said = send_to_agent_and_go_on(&frame(LOG_LINE, 0, DIRECT | 5, 0, 0, b"who says that"));
    assert!(said.contains("who says that"), "{said}");
}

/// Has the victim send these bytes, which break no rule; gives its log.
fn send_to_agent_and_go_on(bytes: &[u8]) -> String {
    let node = node();
    assert_eq!(node.call("hostile", "victim", "frames", bytes).status, 200);
    let log = node.ok(&["logs", "hostile/victim"]);
    assert_still_counts(&node, "a harmless frame");
    log
}

/// Connections to the victim, each given to its sandbox.
fn given(node: &Node, count: usize) -> Vec<Peer> {
    let hello = || {
        let claims = Claims { app: "hostile".to_owned(), ..claims() };
        Hello { token: issue(node, &claims), ..Hello::new("hostile", Some("victim")) }
    };
    let mut peers: Vec<_> = (0..count).map(|_| Peer::with(node, &hello())).collect();
    for peer in &mut peers {
        assert!(peer.call("escape", b"").is_err_and(|problem| problem.kind == "function-failed"));
    }
    peers
}

/// Frames about connections that it has, from a sandbox that has them: whatever they say, only its own connections suffer.
#[test]
fn lies_about_connections_hurt_only_those_who_tell_them() {
    let node = Start::new().args(&["--executors", "1", "--isolation", "ring"]).node();
    node.deploy(image());
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "1");
    let path = "/v1/apps/hostile/processes/victim/functions/frames";
    // Numbers and slots count up, so some of these are right.
    let all = |kind: u8, c: u64, payload: &[u8]| -> Vec<u8> {
        let about = (1..=64_u64).flat_map(|id| (1..=4_u32).map(move |slot| (id, slot)));
        about.flat_map(|(id, slot)| frame(kind, 0, id, slot, c, payload)).collect()
    };
    let overrun: Vec<u8> = (1..=1000).flat_map(|id| frame(OVERRUN, 0, DIRECT | id, 1, 0, b"")).collect();
    for bytes in [
        all(CALLER_DONE, 0, b""),
        all(CALLER_PARKED, 0, &[0; 4]),
        frame(CENSUS, 0, 0, u32::MAX, u64::MAX, b""),
        // Each has 0 ms left: it is over at once, and none of them ever ends.
        overrun,
    ] {
        let mut peers = given(&node, 4);
        node.post(path, &[], &bytes);
        node.assert_others_work("hostile");
        for peer in &mut peers {
            peer.until(|peer| peer.over);
        }
    }
    let mut peers = given(&node, 4);
    assert!(peers.iter_mut().all(|peer| peer.call("count", b"").is_ok()));
    assert_eq!(node.process("hostile", "victim")["connections"]["given"], 4);
}

#[test]
fn a_caller_whose_reply_begins_twice_is_not_left_waiting() {
    let node = node();
    // The runner's own reply is the second.
    let bytes = [frame(REPLY, 0, 2, 0, 1, b"\0\0"), frame(REPLY_DATA, 0, 2, 0, 0, b"some")].concat();
    let mut stream = request(&node, "victim", "frames", &format!("Content-Length: {}\r\n", bytes.len()));
    stream.write_all(&bytes).unwrap();
    let answer = read_all(stream);
    // Whether the first was on its way when the second came is a race.
    assert!(!answer.ends_with("0\r\n\r\n"), "a body that was broken off looks whole: {answer}");
    assert_still_counts(&node, "a second reply");
}

/// The lengths of all segments of the victim, and the room that they take, in bytes.
fn segments(node: &Node) -> (u64, u64) {
    let folder = node.dir().join("state/hostile/victim.state");
    let about = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    about.fold((0, 0), |(length, room), about| {
        (length + about.len(), room + std::os::unix::fs::MetadataExt::blocks(&about) * 512)
    })
}

#[test]
fn a_segment_cannot_take_the_disk() {
    let node = node();
    assert_eq!(node.call("hostile", "victim", "grow", b"").body(), "1 -1 -1 -1");
    let (length, room) = segments(&node);
    assert!(length < 16 << 20 && room < 16 << 20, "{length} long, {room} bytes");
    assert_still_counts(&node, "taking the disk");
}

/// A file cannot become longer than the longest segment, and what is too much is cut when the sandbox has ended: the state is whole.
#[test]
fn a_segment_as_long_as_it_can_be_is_soon_refused() {
    let node = node();
    let length: u64 = node.call("hostile", "victim", "stretch", b"").body().parse().unwrap();
    assert!(length < 1 << 20, "it is {length} bytes long, and no segment is");
    assert_eq!(node.control("POST", "/v1/apps/hostile/processes/victim/swap-out").status, 200);
    assert_still_counts(&node, "stretching a segment");
}

/// A node in whose only process every segment but one could be made longer.
fn with_segments_to_stretch(disk: &crate::full_disk::Disk) -> Node {
    let node = disk.start().args(&["--idle", "10m"]).node();
    node.deploy(image());
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "1");
    // Who wants another is looked at, so it has them all before; one that is long lets the others become as long.
    let spares = [2 << 20, 1].map(|bytes| frame(WANT_SPARE, 0, 0, 0, bytes, b""));
    let asked = node.call("hostile", "victim", "frames", &spares.concat());
    assert_eq!(asked.status, 200, "{}", asked.body());
    let folder = disk.path().join("state/hostile/victim.state");
    let has_all = || std::fs::read_dir(&folder).unwrap().count() >= 4;
    await_within(PATIENCE, has_all, || node.said());
    node
}

fn await_found(node: &Node) {
    let is_over = || node.process("hostile", "victim")["phase"] == "failed";
    await_within(Duration::from_secs(20), is_over, || node.said());
    let failure = node.process("hostile", "victim")["failure"].to_string();
    assert!(failure.contains("behind the end"), "{failure}");
    assert_still_counts(node, "taking the disk");
}

#[test]
fn a_sandbox_that_takes_the_disk_by_its_segments_is_soon_found() {
    let test = "a_sandbox_that_takes_the_disk_by_its_segments_is_soon_found";
    let Some(disk) = crate::full_disk::Disk::new(test) else { return };
    let node = with_segments_to_stretch(&disk);
    let longer: u32 = node.call("hostile", "victim", "hoard", b"").body().parse().unwrap();
    assert!(longer >= 3, "{longer} segments could be made longer");
    await_found(&node);
}

/// Nothing is heard of it: no call, no frame, no wish for another segment.
#[test]
fn a_sandbox_that_takes_the_disk_while_it_is_idle_is_soon_found() {
    let test = "a_sandbox_that_takes_the_disk_while_it_is_idle_is_soon_found";
    let Some(disk) = crate::full_disk::Disk::new(test) else { return };
    let node = with_segments_to_stretch(&disk);
    assert_eq!(node.call("hostile", "victim", "hoard-alone", b"").status, 200);
    await_found(&node);
}

#[test]
fn nonsense_about_segments_ends_the_sandbox() {
    let said = |bytes: &[u8]| send_to_agent(bytes).1["detail"].as_str().unwrap().to_owned();
    let detail = said(&frame(RETIRED, 0, 0, 0, 999, b""));
    assert!(detail.contains("does not have"), "{detail}");
    let detail = said(&frame(WANT_SPARE, 0, 0, 0, 1 << 50, b""));
    assert!(detail.contains("no log can have"), "{detail}");
    let detail = said(&frame(WANT_SPARE, 0, 0, 0, 1, b"").repeat(3));
    assert!(detail.contains("on their way"), "{detail}");
}

#[test]
fn an_answer_about_a_commit_that_nobody_asked_for_ends_the_sandbox() {
    let (_, problem) = send_to_agent(&frame(DURABLE, 0, 2, 0, 1, b""));
    assert!(problem["detail"].as_str().unwrap().contains("not asked how durable"), "{problem}");
}

#[test]
fn a_reply_before_its_commit_is_durable_ends_the_sandbox() {
    let node = node();
    let bytes = frame(REPLY, 1, 2, 0, 1, b"\0\0");
    let path = "/v1/apps/hostile/processes/victim/functions/frames";
    let reply = node.post(path, &[("Denizen-Durability", "node")], &bytes);
    let problem = reply.problem(500, "sandbox-misbehaved", "function");
    assert!(problem["detail"].as_str().unwrap().contains("does before"), "{problem}");
    assert_still_counts(&node, "a reply too early");
}

/// A reply of the second call that rests on a commit which it calls durable.
fn durable_reply(commit: u64) -> Vec<u8> {
    let mut frame = frame(REPLY, 1, 2, 0, commit, b"\0\0");
    frame[20] = 1;
    frame
}

/// What cannot be is not written down: nothing of it is left when the sandbox is gone.
#[test]
fn a_sandbox_that_tells_of_commits_which_cannot_be_is_ended() {
    for commit in [1_000_000, u64::MAX] {
        let (node, problem) = send_to_agent(&durable_reply(commit));
        assert!(problem["detail"].as_str().unwrap().contains("have room for"), "{problem}");
        assert!(node.process("hostile", "victim")["durable"].as_u64().unwrap() < 1000);
        assert_eq!(node.control("POST", "/v1/apps/hostile/processes/victim/swap-out").status, 200);
        assert_eq!(node.call("hostile", "victim", "count", b"").body(), "3");
    }
}

/// It hurts nobody but itself: what it said had been durable is not there.
#[test]
fn a_sandbox_that_lies_about_its_commits_has_lost_them() {
    let node = node();
    let lie = durable_reply(1000);
    assert_eq!(node.call("hostile", "victim", "frames", &lie).header("denizen-commit"), Some("1000"));
    // The runner's own reply is one too many, and ends the sandbox.
    let is_over = || node.process("hostile", "victim")["phase"] != "active";
    await_within(Duration::from_secs(20), is_over, || node.said());
    let problem = node.call("hostile", "victim", "count", b"").problem(500, "state-corrupt", "store");
    assert!(problem["detail"].as_str().unwrap().contains("1000"), "{problem}");
    node.assert_others_work("hostile");
    assert_eq!(node.control("DELETE", "/v1/apps/hostile/processes/victim").status, 204);
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "1");
}

#[test]
fn state_that_was_overwritten_is_corrupt_and_nothing_else_is() {
    for (offset, damage) in
        [(0_u64, &[0xff_u8; 4096][..]), (4096, &[0xff; 4096]), (4100, b"\xff\xff\xff\xff\xff")]
    {
        let node = node();
        let input = [&offset.to_le_bytes()[..], damage].concat();
        assert_eq!(node.call("hostile", "victim", "overwrite", &input).status, 200);
        let swapped = node.control("POST", "/v1/apps/hostile/processes/victim/swap-out");
        // What has become of the only commit is damage, or a tail that was cut: both only hurt the process itself.
        assert!(matches!(swapped.status, 200 | 500), "{}", swapped.body());
        node.assert_others_work("hostile");
        assert_eq!(node.control("DELETE", "/v1/apps/hostile/processes/victim").status, 204);
        assert_eq!(node.call("hostile", "victim", "count", b"").body(), "1", "its successor starts anew");
    }
}

#[test]
fn a_sandbox_that_leaves_the_agent_does_not_go_on() {
    let node = node();
    let pid = node.process("hostile", "victim")["pid"].as_u64().unwrap();
    let reply = node.call("hostile", "victim", "leave", b"");
    // Where another of its threads finds the connection gone, the sandbox ends by itself.
    let problem = reply.json();
    let told = ["closed the connection to its host", "the sandbox exited"];
    let detail = problem["detail"].as_str().unwrap();
    assert!(problem["blame"] == "function" && told.iter().any(|told| detail.contains(told)), "{problem}");
    assert!(!crate::node::is_alive(pid), "it lives on without its agent");
    assert_still_counts(&node, "leaving");
}

#[test]
fn a_sandbox_cannot_stop_itself() {
    let node = node();
    assert_eq!(node.call("hostile", "victim", "stop", b"").body(), "goes on");
    assert_still_counts(&node, "stopping");
}

/// The processor time that the node's only executor has had.
fn executor_time(node: &Node) -> Duration {
    let mut tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap().flatten();
    let is_executor = |task: &Path| std::fs::read_to_string(task.join("comm")).unwrap() == "executor-0\n";
    let task = tasks.find(|task| is_executor(&task.path())).expect("the executor's thread").path();
    let schedstat = std::fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(schedstat.split_whitespace().next().unwrap().parse().unwrap())
}

/// Others are answered, and the flood has a part of the executor's time and not all that it can get. Processor time is compared with
/// the time that passed: on a busy machine there is less of the one and more of the other.
fn others_are_served_beside(flood: &str) {
    // Where it may go before others (root's may), a busy machine cannot hide what it would take.
    let first = ["nice", "-n", "-20"];
    let node = Start::new().by(&first, Path::new(DENIZEN)).args(&["--executors", "1"]).node();
    node.deploy(image());
    node.assert_others_work("hostile");
    assert_eq!(node.call("hostile", "victim", flood, b"").status, 200);
    for _ in 0..15 {
        node.assert_others_work("hostile");
    }
    let (begun, before) = (Instant::now(), executor_time(&node));
    std::thread::sleep(Duration::from_secs(3));
    let used = executor_time(&node) - before;
    let passed = begun.elapsed();
    println!("a flood of {flood} took {used:?} of {passed:?}");
    assert!(used < passed / 2, "a flood of {flood} took {used:?} of {passed:?}");
    assert_eq!(node.process("hostile", "victim")["phase"], "active", "it floods on: {}", node.said());
}

#[test]
fn a_flood_of_printed_lines_holds_nobody_up() {
    others_are_served_beside("newlines");
}

#[test]
fn a_flood_of_log_lines_holds_nobody_up() {
    others_are_served_beside("log-lines");
}

#[test]
fn a_flood_of_credit_holds_nobody_up() {
    others_are_served_beside("credits");
}

#[test]
fn a_functions_words_do_not_steer_a_terminal() {
    let node = node();
    let output = node.denizen(&["invoke", "hostile/victim", "escape"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("all is well"), "{said:?}");
    assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
}

/// The head of a call; `more` is header lines.
fn request(node: &Node, process: &str, function: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let path = format!("/v1/apps/hostile/processes/{process}/functions/{function}");
    let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{more}\r\n", node.address());
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// What comes until the end of the connection, or its reset.
fn read_all(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    if let Err(error) = stream.read_to_end(&mut all) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "after {} bytes", all.len());
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn a_caller_who_never_sends_the_body_is_answered_at_the_deadline() {
    let node = node();
    for begun in ["", "1"] {
        let mut stream = request(&node, "victim", "count", "Content-Length: 5\r\n");
        stream.write_all(begun.as_bytes()).unwrap();
        let answer = read_all(stream);
        assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("did not arrive"), "{answer}");
    }
    assert_still_counts(&node, "waiting for a body");
}

#[test]
fn a_node_with_few_descriptors_says_what_lacks_and_goes_on() {
    let node = Start::new().by(&["prlimit", "--nofile=96"], Path::new(DENIZEN)).node();
    node.deploy(image());
    node.assert_others_work("hostile");
    let crowd: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(node.address()).ok()).collect();
    drop(crowd);
    let others_work = || node.call("hostile", "bystander", "count", b"").status == 200;
    await_within(PATIENCE, others_work, || node.said());
    let mut started = vec![];
    for number in 0..40 {
        let reply = node.call("hostile", &format!("p{number}"), "count", b"");
        if reply.status == 200 {
            started.push(number);
        } else {
            let problem = reply.problem(503, "out-of-descriptors", "host");
            assert_eq!(
                (&problem["retry"], reply.header("retry-after")),
                (&"safe".into(), Some("1")),
                "{problem}"
            );
            assert!(node.get(&format!("/v1/apps/hostile/processes/p{number}")).status == 404, "it exists");
        }
    }
    assert!(!started.is_empty() && !started.contains(&39), "{started:?} were started");
    // What a start would have taken is there for those who serve, however many of them call at once.
    for _ in 0..3 {
        node.assert_others_work("hostile");
        let together: Vec<_> =
            (0..8).map(|_| request(&node, "bystander", "count", "Content-Length: 0\r\n")).collect();
        for stream in together {
            let answer = read_all(stream);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}\n{}", node.said());
        }
    }
    // And with one less that serves there is room for another.
    assert_eq!(node.control("DELETE", &format!("/v1/apps/hostile/processes/p{}", started[0])).status, 204);
    let fits = || node.call("hostile", "newcomer", "count", b"").status == 200;
    await_within(PATIENCE, fits, || node.said());
}

/// What it breaks is its own, and the disk had no part in it.
#[test]
fn a_plugin_that_spoils_its_ring_is_blamed_and_backed_off_from() {
    let node = node();
    let names = || {
        let folder = node.dir().join("state/hostile/victim.state");
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name == "suspect").count()
    };
    let token = issue(&node, &Claims { app: "hostile".to_owned(), ..claims() });
    let hello = Hello { token, ..Hello::new("hostile", Some("victim")) };
    for round in 0..8 {
        let Some(mut peer) = Peer::try_open(node.dir(), &hello) else { break };
        let _ = peer.try_call(&Call::new("spoil"), b"");
        assert!(peer.over || peer.refused.is_some() || round > 3, "its connection goes with it");
        node.await_phase("hostile", "victim", "failed");
        let told = node.process("hostile", "victim");
        let failure = &told["failure"];
        let kind = failure["type"].as_str().unwrap();
        assert!(kind.ends_with("ring-spoiled") || kind.ends_with("crash-looping"), "{failure}");
        assert_eq!(failure["blame"], "function", "{failure}");
        assert_eq!(names(), 0, "its files are not suspect");
    }
    let problem = node.call("hostile", "victim", "count", b"").problem(503, "crash-looping", "function");
    assert!(problem["cause"].as_str().unwrap().contains("ring"), "{problem}");
    let logs = node.ok(&["logs", "hostile/victim"]);
    assert!(logs.contains("took the ring of its host away") && logs.contains("ended: "), "{logs}");
    assert!(!logs.contains("the disk failed") && !node.said().contains("recovered into new files"), "{logs}");
    let works = || node.call("hostile", "victim", "count", b"").status == 200;
    await_within(PATIENCE, works, || node.said());
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "3", "nothing is lost");
}
