//! Room: which process a call gets that names none, and what happens when as many have a sandbox as may.

use crate::node::{DENIZEN, Node, PATIENCE, Start, await_within, c_image, faulty_image};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| c_image("room", include_str!("room.c")))
}

fn node(arguments: &[&str]) -> Node {
    let node = Start::new().args(arguments).node();
    node.deploy(image());
    node
}

/// A call that goes on for as long as this lives.
struct Busy(#[allow(dead_code, reason = "it is there to be dropped")] TcpStream);

impl Busy {
    fn at(node: &Node, path: &str) -> Busy {
        let mut stream = TcpStream::connect(node.address()).unwrap();
        let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        Busy(stream)
    }

    /// In this process; begun when this returns.
    fn in_process(node: &Node, process: &str) -> Busy {
        let busy = Busy::at(node, &format!("/v1/apps/room/processes/{process}/functions/wait"));
        await_that(node, || node.process("room", process)["idle_ms"].is_null() && is_active(node, process));
        busy
    }
}

fn is_active(node: &Node, process: &str) -> bool {
    node.process("room", process)["phase"] == "active"
}

fn await_that(node: &Node, is_so: impl Fn() -> bool) {
    await_within(PATIENCE, is_so, || format!("it does not come about:\n{}", node.said()));
}

fn quick(node: &Node, process: &str) -> u16 {
    node.call("room", process, "quick", b"").status
}

/// The process that answered a call which named none.
fn anywhere(node: &Node, app: &str, function: &str, body: &[u8]) -> String {
    let reply = node.post(&format!("/v1/apps/{app}/functions/{function}"), &[], body);
    assert_eq!(reply.status, 200, "{}", reply.body());
    reply.header("Denizen-Process").expect("it says who answered").to_owned()
}

fn processes(node: &Node, app: &str) -> Vec<String> {
    let all = node.get(&format!("/v1/apps/{app}/processes")).json();
    let all = all["processes"].as_array().expect("a list");
    all.iter().map(|process| process["process"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_process_that_is_free_answers_a_call_that_names_none() {
    // Each request comes on a connection of its own, and those are spread over executors.
    let node = node(&["--executors", "3"]);
    node.control("POST", "/v1/apps/room/processes/created");
    for _ in 0..12 {
        assert_eq!(anywhere(&node, "room", "quick", b""), "created");
    }
    assert_eq!(processes(&node, "room"), ["created"]);
}

#[test]
fn a_process_that_rests_answers_before_another_is_made() {
    let node = node(&["--executors", "2"]);
    quick(&node, "resting");
    node.control("POST", "/v1/apps/room/processes/resting/swap-out");
    assert_eq!(anywhere(&node, "room", "quick", b""), "resting");
    assert_eq!(processes(&node, "room"), ["resting"]);
}

#[test]
fn a_process_whose_reply_was_streamed_is_free_again() {
    let node = Start::new().node();
    node.deploy(faulty_image());
    let body = vec![b'x'; 900 << 10];
    let first = anywhere(&node, "faulty", "echo", &body);
    for _ in 0..4 {
        assert_eq!(anywhere(&node, "faulty", "echo", &body), first);
    }
}

#[test]
fn calls_that_come_together_do_not_wait_for_one_another() {
    let node = node(&["--executors", "2"]);
    node.control("POST", "/v1/apps/room/processes/created");
    let busy: Vec<_> = (0..3).map(|_| Busy::at(&node, "/v1/apps/room/functions/wait")).collect();
    let in_a_call = || {
        let all = node.get("/v1/apps/room/processes").json();
        let all = all["processes"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|one| one["phase"] == "active" && one["idle_ms"].is_null()).count()
    };
    await_that(&node, || in_a_call() == 3);
    assert!(processes(&node, "room").contains(&"created".to_owned()));
    drop(busy);
}

#[test]
fn the_one_that_was_quiet_longest_makes_way() {
    let node = node(&["--max-active", "2"]);
    for process in ["first", "second"] {
        assert_eq!(quick(&node, process), 200);
    }
    assert_eq!(quick(&node, "first"), 200);
    assert_eq!(quick(&node, "third"), 200, "{}", node.said());
    assert_eq!(node.process("room", "second")["phase"], "swapped");
    assert!(is_active(&node, "first") && is_active(&node, "third"));
    let info = node.get("/v1/node").json();
    assert_eq!((&info["active"], &info["max_active"]), (&2.into(), &2.into()), "{info}");
    // It comes back when it is called, and another makes way.
    assert_eq!(quick(&node, "second"), 200, "{}", node.said());
    assert_eq!(node.process("room", "first")["phase"], "swapped");
}

#[test]
fn a_node_whose_processes_are_all_busy_says_so_until_one_is_not() {
    let node = node(&["--max-active", "2"]);
    let busy = Busy::in_process(&node, "first");
    let other = Busy::in_process(&node, "second");
    let refused = node.call("room", "third", "quick", b"");
    assert_eq!(refused.problem(503, "node-full", "host")["retry"], "safe");
    assert_eq!(refused.header("Retry-After"), Some("1"));
    assert_eq!(node.get("/v1/apps/room/processes/third").status, 404, "a refused process was never created");
    // What cannot be at all is not said to lack room.
    let never =
        node.post("/v1/apps/room/processes/third/functions/quick", &[("Denizen-Create", "never")], b"");
    never.problem(404, "unknown-process", "caller");
    // A call that names none takes one of those that there are.
    let unnamed = Busy::at(&node, "/v1/apps/room/functions/quick");
    let calls = |process| node.process("room", process)["invocations"].as_u64().unwrap();
    await_that(&node, || calls("first") + calls("second") == 3);
    drop((busy, other));
    let unused = || format!("there is room, and it is not used:\n{}", node.said());
    await_within(PATIENCE, || quick(&node, "third") == 200, unused);
    drop(unnamed);
    let expected = BTreeSet::from(["first", "second", "third"].map(str::to_owned));
    assert_eq!(BTreeSet::from_iter(processes(&node, "room")), expected);
}

#[test]
fn many_processes_share_few_seats_and_lose_nothing() {
    let node = Start::new().args(&["--max-active", "2", "--executors", "2"]).node();
    node.deploy(faulty_image());
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let url = node.url(&format!("/v1/apps/faulty/processes/p{caller}/functions/count"));
            std::thread::spawn(move || {
                let (mut done, until) = (0, Instant::now() + PATIENCE);
                while done < 5 {
                    let reply = crate::node::agent().post(&url).send_empty().unwrap();
                    match reply.status().as_u16() {
                        200 => done += 1,
                        503 => std::thread::sleep(Duration::from_millis(20)),
                        other => panic!("{other}"),
                    }
                    assert!(Instant::now() < until, "{done} of 5 calls");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    for caller in 0..4 {
        assert_eq!(node.call("faulty", &format!("p{caller}"), "value", b"").body(), "5", "{}", node.said());
    }
    let active = node.get("/v1/node").json()["active"].as_u64();
    assert!(active <= Some(2), "{active:?}");
}

/// Descriptors run out long before seats do. That is said by name, what is there works on, and with fewer processes others start again.
#[test]
fn a_node_without_descriptors_says_so_and_lives() {
    let test = "a_node_without_descriptors_says_so_and_lives";
    if !denizen_testing::needs_program(test, "prlimit") {
        return;
    }
    let limited = Start::new().by(&["prlimit", "--nofile=160:160"], Path::new(DENIZEN));
    let node = limited.args(&["--max-active", "1000", "--executors", "1", "--pool", "0"]).node();
    node.deploy(faulty_image());
    let count = |process: &str| node.call("faulty", process, "count", b"");
    let refused = (0..60).map(|number| count(&format!("p{number}"))).find(|reply| reply.status != 200);
    let refused = refused.expect("160 descriptors are enough for 60 processes");
    assert_eq!(refused.problem(503, "out-of-descriptors", "host")["retry"], "safe");
    let until = Instant::now() + PATIENCE;
    let persevere = |what: &str, attempt: &dyn Fn() -> u16| {
        while !(200..300).contains(&attempt()) {
            assert!(Instant::now() < until, "{what}:\n{}", node.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    persevere("one that is there works on", &|| count("p0").status);
    for process in ["p1", "p2", "p3"] {
        let path = format!("/v1/apps/faulty/processes/{process}");
        persevere("one is deleted", &|| node.control("DELETE", &path).status);
    }
    persevere("there is room for another", &|| count("newcomer").status);
    assert!(!node.said().contains("panicked"), "{}", node.said());
}
