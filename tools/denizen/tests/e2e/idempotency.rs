//! Idempotency keys: the same key runs once, over HTTP and in frames, whatever becomes of the process meanwhile.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use denizen_protocol::client::Call;
use denizen_protocol::token::Claims;
use denizen_protocol::{Durability, Hello, Retry};
use rustix::process::Signal;

use crate::node::{Node, PATIENCE, Reply, Start, agent, await_within, c_image, c_image_with, signal};
use crate::peer::{Done, Mode, Peer, claims, in_both_modes, issue};

in_both_modes! {
    frames_and_http_share_their_keys,
    a_swap_under_a_connection_forgets_nothing,
    crashes_under_load_run_nothing_twice_and_lose_nothing,
}

fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| c_image("keys", include_str!("keys.c")))
}

fn node_with_keys() -> Node {
    let node = Start::new().node();
    node.deploy(image());
    node
}

fn deploy_as_keys(node: &Node, image: &Path) {
    node.ok(&["image", "deploy", "--app", "keys", image.to_str().unwrap()]);
}

fn path(function: &str) -> String {
    format!("/v1/apps/keys/processes/p/functions/{function}")
}

fn keyed(node: &Node, key: &str, function: &str, body: &[u8]) -> Reply {
    node.post(&path(function), &[("Idempotency-Key", key)], body)
}

fn is_replayed(reply: &Reply) -> bool {
    reply.header("denizen-replayed").inspect(|word| assert_eq!(*word, "true")).is_some()
}

fn commit_of(reply: &Reply) -> u64 {
    reply.header("denizen-commit").and_then(|text| text.parse().ok()).expect("a commit")
}

fn count(node: &Node) -> String {
    let reply = node.call("keys", "p", "count", b"");
    assert_eq!(reply.status, 200, "{}\n{}", reply.body(), node.said());
    reply.body()
}

fn kill_sandbox(node: &Node) {
    let pid = node.process("keys", "p")["pid"].as_u64().expect("it is active");
    signal(u32::try_from(pid).unwrap(), Signal::KILL);
}

#[test]
fn the_same_key_is_executed_once_and_its_reply_comes_back() {
    let node = node_with_keys();
    let first = keyed(&node, "\"order-7\"", "add", b"x");
    assert_eq!((first.status, first.body().as_str(), is_replayed(&first)), (200, "1", false));
    assert_eq!(keyed(&node, "order-8", "add", b"x").body(), "2");
    for key in ["\"order-7\"", "order-7", "\"order-7\";v=1"] {
        let again = keyed(&node, key, "add", b"x");
        assert_eq!((again.status, again.body().as_str(), is_replayed(&again)), (200, "1", true), "{key}");
        assert_eq!(commit_of(&again), commit_of(&first));
        assert_eq!(again.header("content-type"), Some("text/x-count"));
        assert_eq!(again.header("denizen-epoch"), first.header("denizen-epoch"));
        assert_ne!(again.header("denizen-invocation"), first.header("denizen-invocation"));
    }
    let synced =
        node.post(&path("add"), &[("Idempotency-Key", "order-7"), ("Denizen-Durability", "node")], b"x");
    assert_eq!((synced.header("denizen-durability"), is_replayed(&synced)), (Some("node"), true));
    assert!(node.process("keys", "p")["durable"].as_u64() >= Some(commit_of(&first)));
    // Another call under the same key.
    for (function, body, content_type) in [("add", "y", ""), ("count", "x", ""), ("add", "x", "text/plain")] {
        let headers = [("Idempotency-Key", "order-7"), ("Content-Type", content_type)];
        let headers = if content_type.is_empty() { &headers[..1] } else { &headers[..] };
        let problem =
            node.post(&path(function), headers, body.as_bytes()).problem(422, "key-reused", "caller");
        assert_eq!(problem["retry"], "never");
    }
    // What is no key, and a call whose process the node would choose.
    for key in ["", "\"\"", "two words", "\"open", &"k".repeat(129)] {
        let problem = keyed(&node, key, "add", b"x").problem(400, "bad-header", "caller");
        assert!(problem["detail"].as_str().unwrap().contains("Idempotency-Key"), "{problem}");
    }
    let anywhere = node.post("/v1/apps/keys/functions/add", &[("Idempotency-Key", "k")], b"x");
    anywhere.problem(400, "process-needed", "caller");
    assert_eq!(count(&node), "2");
    // Other processes know nothing of it.
    let other = node.post(
        "/v1/apps/keys/processes/other/functions/add",
        &[("Idempotency-Key", "order-7")],
        b"another input",
    );
    assert_eq!((other.body().as_str(), is_replayed(&other)), ("1", false));

    let invoke = |words: &[&str]| node.ok(&[&["--json", "invoke", "keys/p", "add", "x"], words].concat());
    let replayed =
        |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap()["replayed"].clone();
    assert_eq!(replayed(invoke(&["--key", "by \"hand\""])), false);
    assert_eq!(replayed(invoke(&["--key", "by \"hand\""])), true);
    assert!(!node.denizen(&["invoke", "keys/p", "add", "--key", ""]).status.success());
    assert_eq!(count(&node), "3");
}

#[test]
fn functions_of_every_kind_and_bodies_of_every_length() {
    let node = node_with_keys();
    assert_eq!(keyed(&node, "read", "count", b"").body(), "0");
    assert_eq!(keyed(&node, "beside", "add_beside", b"x").body(), "1");
    assert_eq!(keyed(&node, "a", "add", b"x").body(), "1");
    let read = keyed(&node, "read", "count", b"");
    assert_eq!((read.body().as_str(), is_replayed(&read)), ("0", true), "what it read then");
    assert_eq!(keyed(&node, "beside", "add_beside", b"x").body(), "1");
    let large: Vec<u8> = (0..900_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for again in [false, true] {
        let reply = keyed(&node, "stream", "stream", &large);
        assert!(reply.bytes() == large, "{} bytes: {}", reply.bytes().len(), reply.status);
        assert_eq!(is_replayed(&reply), again);
    }
    let mut other = large.clone();
    other[899_999] ^= 1;
    keyed(&node, "stream", "stream", &other).problem(422, "key-reused", "caller");
    keyed(&node, "stream", "stream", &large[..1000]).problem(422, "key-reused", "caller");
    assert_eq!(count(&node), "2");

    // It is not run again after its own commit, and its failure says so.
    for again in [false, true] {
        let failed = keyed(&node, "half", "half", b"");
        let problem = failed.problem(500, "function-failed", "function");
        assert_eq!((&problem["retry"], &problem["detail"]), (&"unknown".into(), &"only half of it".into()));
        assert_eq!((problem["replayed"] == true, is_replayed(&failed)), (again, again), "{problem}");
    }
    assert_eq!(count(&node), "3");
}

#[test]
fn a_call_that_a_kill_cut_off_after_a_commit_is_not_run_twice() {
    let node = node_with_keys();
    std::thread::scope(|scope| {
        let cut_off = scope.spawn(|| keyed(&node, "once", "half_nap", b"20000"));
        await_within(PATIENCE, || count(&node) == "1", || node.said());
        kill_sandbox(&node);
        assert_eq!(cut_off.join().unwrap().problem(503, "sandbox-lost", "function")["retry"], "unknown");
    });
    for _ in 0..2 {
        let again = keyed(&node, "once", "half_nap", b"20000");
        let problem = again.problem(409, "interrupted", "host");
        assert_eq!((&problem["retry"], is_replayed(&again)), (&"unknown".into(), true), "{problem}");
    }
    assert_eq!(count(&node), "1", "it was run again over what it had committed");
    assert_eq!(keyed(&node, "another", "half_nap", b"1").body(), "3");
    assert!(
        is_replayed(&keyed(&node, "another", "half_nap", b"1")),
        "one that ends well is remembered by its end"
    );
}

#[test]
fn a_repeat_waits_for_the_first_and_is_told_if_it_cannot() {
    let node = node_with_keys();
    assert_eq!(count(&node), "0");
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let first = scope.spawn(|| keyed(&node, "k", "nap", b"1500"));
        std::thread::sleep(Duration::from_millis(300));
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| keyed(&node, "k", "nap", b"1500"))).collect();
        let headers = [("Idempotency-Key", "k"), ("Denizen-Deadline-Ms", "200")];
        let begun = Instant::now();
        let problem = node.post(&path("nap"), &headers, b"1500").problem(409, "in-progress", "caller");
        assert_eq!(problem["retry"], "safe");
        assert!(begun.elapsed() < Duration::from_millis(1000), "it waited beyond its deadline");
        std::iter::once(first).chain(waiting).map(|call| call.join().unwrap()).collect()
    });
    let told: Vec<_> = replies.iter().map(|reply| (reply.status, reply.body(), is_replayed(reply))).collect();
    let expected = [false, true, true, true].map(|again| (200, "1".to_owned(), again));
    assert_eq!(told, expected);
    assert_eq!(count(&node), "1");
}

#[test]
fn a_reply_outlives_swaps_crashes_restarts_and_changes_at_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(image());
    let first = keyed(&node, "k", "add", b"x");
    assert_eq!((first.status, first.body().as_str()), (200, "1"), "{}", first.body());
    let again = |node: &Node, after: &str| {
        // A call may meet the corpse of a sandbox before its successor.
        let one = || keyed(node, "k", "add", b"x");
        let reply = (0..100).map(|_| one()).find(|reply| reply.status == 200).expect("an answer");
        assert_eq!(reply.body(), "1", "{after}: {}", node.said());
        assert_eq!((is_replayed(&reply), commit_of(&reply)), (true, commit_of(&first)), "{after}");
        assert_eq!(count(node), "1", "{after}");
    };
    kill_sandbox(&node);
    again(&node, "the sandbox was killed");
    let swapped = node.control("POST", "/v1/apps/keys/processes/p/swap-out");
    assert_eq!(swapped.status, 200, "{}", swapped.body());
    again(&node, "it was swapped out");
    node.kill();
    node = Start::new().dir(dir.path()).node();
    again(&node, "the node was killed");
    assert_eq!(node.stop(), Some(0));
    node = Start::new().dir(dir.path()).node();
    again(&node, "the node was stopped");
    node.control("POST", "/v1/apps/keys/processes/p/swap-out");
    node.ok(&["state", "put", "keys/p", "by-hand", "--raw", "value"]);
    again(&node, "its state was changed at rest");
    let keys = node.ok(&["--json", "state", "ls", "keys/p"]);
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 3, "a remembered reply is no object: {keys}");
    // Objects go along with an export, remembered replies do not.
    let archive = dir.path().join("p.archive");
    node.ok(&["state", "export", "keys/p", "--output", archive.to_str().unwrap()]);
    assert_eq!(node.control("POST", "/v1/apps/keys/processes/copy").status, 201);
    node.ok(&["state", "import", "keys/copy", archive.to_str().unwrap()]);
    let copy = "/v1/apps/keys/processes/copy/functions/add";
    let reply = node.post(copy, &[("Idempotency-Key", "k")], b"x");
    assert_eq!((reply.body().as_str(), is_replayed(&reply)), ("2", false));
    // Another image of the same functions, and the end.
    deploy_as_keys(&node, &c_image_with("keys-anew", include_str!("keys.c"), &["-O2"], ""));
    again(&node, "another image was deployed");
    node.control("DELETE", "/v1/apps/keys/processes/p");
    assert!(!is_replayed(&keyed(&node, "k", "add", b"x")), "the process of this name is another now");
}

#[test]
fn a_reply_is_forgotten_when_its_time_is_over() {
    let node = Start::new().node();
    let policy = "[process]\nremember = \"2s\"\n";
    deploy_as_keys(&node, &c_image_with("keys-brief", include_str!("keys.c"), &[], policy));
    assert_eq!(keyed(&node, "k", "add", b"x").body(), "1");
    assert!(is_replayed(&keyed(&node, "k", "add", b"x")));
    std::thread::sleep(Duration::from_millis(2100));
    let anew = keyed(&node, "k", "add", b"y");
    assert_eq!((anew.body().as_str(), is_replayed(&anew)), ("2", false), "also for another input");
    assert!(is_replayed(&keyed(&node, "k", "add", b"y")));
}

fn hello(node: &Node) -> Hello {
    let token = issue(node, &Claims { app: "keys".to_owned(), ..claims() });
    Hello { token, ..Hello::new("keys", Some("p")) }
}

fn framed(peer: &mut Peer, key: &str, function: &str, body: &[u8]) -> Done {
    let id = peer.begin(&Call { idempotency_key: Some(key), ..Call::new(function) }, body);
    peer.end(id).unwrap_or_else(|problem| panic!("{problem:?}"))
}

fn frames_and_http_share_their_keys(mode: Mode) {
    let node = mode.start().node();
    node.deploy(image());
    let mut peer = Peer::with(&node, &hello(&node));
    let first = framed(&mut peer, "a key", "add", b"x");
    assert_eq!((first.text(), first.replayed), ("1", false));
    let again = framed(&mut peer, "a key", "add", b"x");
    assert_eq!((again.text(), again.replayed, again.rests_on.commit), ("1", true, first.rests_on.commit));
    let http = keyed(&node, "\"a key\"", "add", b"x");
    assert_eq!(
        (http.body().as_str(), is_replayed(&http), commit_of(&http)),
        ("1", true, first.rests_on.commit)
    );
    keyed(&node, "from-http", "add", b"x");
    let call =
        Call { idempotency_key: Some("from-http"), durability: Some(Durability::Node), ..Call::new("add") };
    let id = peer.begin(&call, b"x");
    let again = peer.end(id).unwrap();
    assert_eq!((again.text(), again.replayed, again.rests_on.durability), ("2", true, Durability::Node));
    let id = peer.begin(&Call { idempotency_key: Some("a key"), ..Call::new("add") }, b"y");
    let problem = peer.end(id).unwrap_err();
    assert_eq!((problem.kind.as_str(), problem.retry), ("key-reused", Retry::Never));
    // A failure that is remembered says so, too.
    let half = Call { idempotency_key: Some("half"), ..Call::new("half") };
    for again in [false, true] {
        let id = peer.begin(&half, b"");
        let problem = peer.end(id).unwrap_err();
        assert_eq!((problem.kind.as_str(), problem.replayed), ("function-failed", again));
    }
    // Together on one connection, and beside another.
    let mut other = Peer::with(&node, &hello(&node));
    let nap = Call { idempotency_key: Some("nap"), ..Call::new("nap") };
    let ids: Vec<u64> = (0..4).map(|_| peer.begin(&nap, b"300")).collect();
    let beside = other.begin(&nap, b"300");
    let late = other.begin(&Call { deadline_ms: std::num::NonZeroU32::new(100), ..nap }, b"300");
    let problem = other.end(late).unwrap_err();
    assert_eq!((problem.kind.as_str(), problem.retry), ("in-progress", Retry::Safe));
    let mut replayed = vec![other.end(beside).unwrap().replayed];
    replayed.extend(ids.into_iter().map(|id| peer.end(id).unwrap().replayed));
    assert_eq!(replayed.iter().filter(|replayed| !**replayed).count(), 1, "{replayed:?}");
    let body: Vec<u8> = (0..500_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for again in [false, true] {
        let call = Call { idempotency_key: Some("stream"), length: None, ..Call::new("stream") };
        let id = peer.begin_in_pieces(&call, &body, 60_000);
        let done = peer.end(id).unwrap();
        assert!(done.body == body && done.replayed == again, "{} bytes, {}", done.body.len(), done.replayed);
    }
    assert_eq!(count(&node), "5");
    let unbound = Hello { process: None, ..hello(&node) };
    let mut unbound = Peer::with(&node, &unbound);
    let id = unbound.begin(&Call { idempotency_key: Some("a key"), ..Call::new("add") }, b"x");
    assert_eq!(unbound.end(id).unwrap_err().kind, "process-needed");
    let id =
        unbound.begin(&Call { idempotency_key: Some("a key"), process: Some("p"), ..Call::new("add") }, b"x");
    assert!(unbound.end(id).unwrap().replayed);
}

fn a_swap_under_a_connection_forgets_nothing(mode: Mode) {
    let node = mode.start().node();
    node.deploy(image());
    let mut peer = Peer::with(&node, &hello(&node));
    let first = framed(&mut peer, "k", "add", b"x");
    for _ in 0..2 {
        assert_eq!(node.control("POST", "/v1/apps/keys/processes/p/swap-out").status, 200, "{}", node.said());
        let again = framed(&mut peer, "k", "add", b"x");
        assert_eq!((again.text(), again.replayed), ("1", true));
        assert_eq!(again.rests_on.commit, first.rests_on.commit);
    }
    // What waits for a key or for its turn when the process is drained, with a key or without one yet: nothing hangs, nothing runs twice.
    let nap = |key| Call { idempotency_key: Some(key), ..Call::new("nap") };
    let ids: Vec<u64> =
        ["nap", "nap", "other", "other", "nap"].map(|key| peer.begin(&nap(key), b"400")).to_vec();
    std::thread::sleep(Duration::from_millis(100));
    node.control("POST", "/v1/apps/keys/processes/p/swap-out");
    let mut executed = 0;
    for id in ids {
        match peer.end(id) {
            Ok(done) => executed += usize::from(!done.replayed),
            // Over a connection of its own the client is told to make it again.
            Err(problem) => assert_eq!(problem.retry, Retry::Safe, "{problem:?}"),
        }
    }
    assert_eq!(executed, 2);
    assert!(framed(&mut peer, "other", "nap", b"400").replayed);
    assert!(framed(&mut peer, "nap", "nap", b"400").replayed);
    assert_eq!(count(&node), "3");
}

/// What clients and the one who kills share.
struct Storm {
    dir: PathBuf,
    over: AtomicBool,
    /// Keys whose reply has come.
    done: AtomicU64,
    replayed: AtomicU64,
}

impl Storm {
    fn url(&self, path: &str) -> Option<String> {
        let endpoint = std::fs::read_to_string(self.dir.join("endpoint")).ok()?;
        Some(format!("http://{}{path}", endpoint.trim().trim_start_matches("http://")))
    }

    /// Makes calls, each until its reply comes.
    fn client(&self, name: usize, http: &ureq::Agent) {
        let functions = ["add", "add_beside"];
        for number in 0.. {
            if self.over.load(SeqCst) {
                return;
            }
            let (key, function) = (format!("{name}-{number}"), functions[number % 2]);
            while !self.attempt(http, &key, function) {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.done.fetch_add(1, SeqCst);
        }
    }

    fn attempt(&self, http: &ureq::Agent, key: &str, function: &str) -> bool {
        let Some(url) = self.url(&path(function)) else { return false };
        let sent = http.post(url).header("Idempotency-Key", key).send(format!("{function}-{key}").as_bytes());
        let Ok(response) = sent else { return false };
        let status = response.status().as_u16();
        let replayed = response.headers().contains_key("denizen-replayed");
        let Ok(body) = response.into_body().read_to_string() else { return false };
        if status != 200 {
            // Nothing is wrong with the call: it may be made again.
            assert!(status >= 500 || status == 409, "{status} {body}");
            return false;
        }
        assert!(function == "add" || body == "1", "{key} was run {body} times");
        self.replayed.fetch_add(u64::from(replayed), SeqCst);
        true
    }

    /// The same over a connection of frames, which is opened anew when it is lost.
    fn framed_client(&self, token: &[u8]) {
        let hello = Hello { token: token.to_vec(), ..Hello::new("keys", Some("p")) };
        let mut connection = None;
        for number in 0.. {
            if self.over.load(SeqCst) {
                return;
            }
            let (key, body) = (format!("framed-{number}"), format!("add-framed-{number}"));
            let call = Call { idempotency_key: Some(&key), ..Call::new("add") };
            loop {
                let peer: Option<&mut Peer> = match &mut connection {
                    Some(peer) => Some(peer),
                    none => Peer::try_open(&self.dir, &hello).map(|peer| none.insert(peer)),
                };
                match peer.and_then(|peer| peer.try_call(&call, body.as_bytes())) {
                    Some(Ok(done)) => {
                        self.replayed.fetch_add(u64::from(done.replayed), SeqCst);
                        break;
                    }
                    Some(Err(problem)) => assert_ne!(problem.retry, Retry::Never, "{problem:?}"),
                    None => connection = None,
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            self.done.fetch_add(1, SeqCst);
        }
    }
}

/// A pause of pseudo-random length.
fn pause(seed: &mut u64, most_ms: u64) {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    std::thread::sleep(Duration::from_millis((*seed >> 33) % most_ms));
}

fn crashes_under_load_run_nothing_twice_and_lose_nothing(mode: Mode) {
    let dir = tempfile::tempdir().unwrap();
    let mut node = mode.start().dir(dir.path()).node();
    node.deploy(image());
    let token = issue(&node, &Claims { app: "keys".to_owned(), ..claims() });
    let storm = Storm {
        dir: dir.path().to_owned(),
        over: AtomicBool::new(false),
        done: AtomicU64::new(0),
        replayed: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for name in 0..4 {
            let storm = &storm;
            scope.spawn(move || storm.client(name, &agent()));
        }
        scope.spawn(|| storm.framed_client(&token));
        let mut seed = 4242;
        for round in 0..24 {
            pause(&mut seed, 250);
            match round % 8 {
                3 => drop(node.control("POST", "/v1/apps/keys/processes/p/swap-out")),
                7 => {
                    node.kill();
                    node = mode.start().dir(dir.path()).node();
                }
                // The sandbox, wherever it is; there may be none at the moment.
                _ => {
                    if let Some(pid) = node.process("keys", "p")["pid"].as_u64() {
                        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                        let _ = rustix::process::kill_process(pid, Signal::KILL);
                    }
                }
            }
        }
        storm.over.store(true, SeqCst);
    });
    let (done, replayed) = (storm.done.load(SeqCst), storm.replayed.load(SeqCst));
    eprintln!("{mode:?}: {done} keys, {replayed} replies came from memory");
    assert!(done > 100, "only {done} calls were made");
    // What came through all that is still known.
    for (name, number) in (0..4).flat_map(|name| (0..5).map(move |number| (name, number))) {
        let (key, function) = (format!("{name}-{number}"), ["add", "add_beside"][number % 2]);
        let again = keyed(&node, &key, function, format!("{function}-{key}").as_bytes());
        assert!(again.status == 200 && is_replayed(&again), "{key}: {} {}", again.status, again.body());
    }
    // Each input was seen once; the counter counts those of `add`.
    let keys = node.ok(&["--json", "state", "ls", "keys/p", "input/"]);
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    let keys = keys["keys"].as_array().unwrap();
    assert_eq!(keys.len() as u64, done, "calls were made and are not there, or the other way round");
    let adds = keys.iter().filter(|key| key["key"].as_str().unwrap().contains("input/add-")).count();
    assert_eq!(count(&node), adds.to_string(), "calls were run twice, or lost");
}
