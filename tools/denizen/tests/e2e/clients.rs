//! `denizen invoke` in frames and over HTTP: nobody can tell which by what it says; and a client against a node that dies.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use denizen_framed::{Connection, Durability, Options, Request, Retry};
use serde_json::Value;

use crate::node::{DENIZEN, Node, Start, faulty_image};

fn node() -> Node {
    let node = Start::new().args(&["--data", "127.0.0.1:0"]).node();
    node.deploy(faulty_image());
    node
}

fn options(node: &Node) -> Options {
    let address = std::fs::read_to_string(node.dir().join("data-endpoint")).unwrap();
    let token = node.ok(&["token", "issue", "--app", "faulty"]);
    Options::new(address.trim(), "faulty").token(token.trim())
}

/// What is the same every time, of what was said.
fn lasting(output: &Output) -> (Option<i32>, Vec<u8>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = match serde_json::from_str::<Value>(&said) {
        Ok(mut document) => {
            document["error"]["invocation"] = Value::Null;
            document.to_string()
        }
        Err(_) => said,
    };
    (output.status.code(), output.stdout.clone(), said)
}

#[test]
fn frames_and_http_say_the_same() {
    let node = node();
    // The whole document of a reply, but for what differs from call to call.
    let reply = |words: &[&str]| -> Value {
        let said = node.ok(&[&["invoke", "--json"], words].concat());
        let mut document: Value = serde_json::from_str(&said).unwrap();
        document["invocation"].take();
        document
    };
    assert_eq!(reply(&["faulty/p", "count"])["reply"], 1);
    let framed = reply(&["faulty/p", "value", "--deadline", "20s", "--durability", "process"]);
    assert_eq!(framed, reply(&["faulty/p", "value", "--http"]));
    assert_eq!((&framed["reply"], &framed["process"]), (&1.into(), &"p".into()));
    let node_level = reply(&["faulty/p", "count", "--durability", "node"]);
    assert_eq!(node_level["durability"], "node", "{node_level}");

    // One key is one call, whichever way it comes.
    let keyed = reply(&["faulty/p", "count", "--key", "once"]);
    let again = reply(&["faulty/p", "count", "--key", "once", "--http"]);
    assert_eq!((&keyed["reply"], &again["reply"]), (&3.into(), &3.into()));
    assert_eq!((&keyed["replayed"], &again["replayed"]), (&false.into(), &true.into()));

    for words in [
        &["faulty/p", "nothing"][..],
        &["nobody/p", "count"],
        &["faulty/..", "count"],
        &["faulty/p", "no function"],
        &["faulty/p", "fail"],
        &["faulty/p", "panic"],
        &["faulty/new", "count", "--create", "never"],
    ] {
        for form in [&["invoke"][..], &["invoke", "--json"]] {
            let framed = node.denizen(&[form, words].concat());
            let http = node.denizen(&[form, words, &["--http"]].concat());
            assert_ne!(framed.status.code(), Some(0), "{words:?}");
            assert_eq!(lasting(&framed), lasting(&http), "{words:?}");
        }
    }
    let url = format!("--http=http://{}", node.address());
    assert_eq!(reply(&["faulty/p", "value", &url])["reply"], 3);
}

#[test]
fn frames_are_what_is_used_where_they_can_be() {
    let node = node();
    let endpoint = node.dir().join("endpoint");
    let http = std::fs::read(&endpoint).unwrap();
    std::fs::remove_file(&endpoint).unwrap();
    assert_eq!(node.ok(&["invoke", "faulty/p", "echo", "in frames"]), "in frames");
    assert_eq!(node.denizen(&["invoke", "faulty/p", "echo", "x", "--http"]).status.code(), Some(3));
    std::fs::write(&endpoint, http).unwrap();
    // And where they cannot, nobody hears of it.
    for lacking in ["keys", "data-endpoint"] {
        let (there, away) = (node.dir().join(lacking), node.dir().join("away"));
        std::fs::rename(&there, &away).unwrap();
        assert_eq!(node.ok(&["invoke", "faulty/p", "echo", "over HTTP"]), "over HTTP");
        std::fs::rename(&away, &there).unwrap();
    }
    std::fs::write(node.dir().join("data-endpoint"), "127.0.0.1:1\n").unwrap();
    assert_eq!(node.ok(&["invoke", "faulty/p", "echo", "over HTTP"]), "over HTTP");
}

#[test]
fn large_bodies_stream_through() {
    let node = node();
    let large: Vec<u8> = (0..1_000_000).map(|at| u8::try_from(at % 251).unwrap()).collect();
    assert!(node.ok(&["invoke", "faulty/p", "echo", &"x".repeat(100_000)]) == "x".repeat(100_000));
    let mut child = Command::new(DENIZEN)
        .args(["invoke", "faulty/p", "echo", "-"])
        .env("DENIZEN_DIR", node.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = large.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == large, "{} bytes", output.stdout.len());

    // A reader that has seen enough ends a reply that never would.
    let mut child = Command::new(DENIZEN)
        .args(["invoke", "faulty/p", "stream_for_ever"])
        .env("DENIZEN_DIR", node.dir())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 100_000];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut some).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_sandbox_that_dies_leaves_a_call_unknown_and_the_client_goes_on() {
    for mode in ["ring", "relay"] {
        let node = Start::new().args(&["--data", "127.0.0.1:0", "--isolation", mode]).node();
        node.deploy(faulty_image());
        let patient = options(&node).process("p").patience(Duration::from_secs(60));
        let mut connection = Connection::open(patient).unwrap();
        assert_eq!(connection.call("count", b"").unwrap().body, b"1");
        // Its connection is reset, or it is told what happened.
        let error = connection.call("abort", b"").unwrap_err();
        assert!(["connection-lost", "function-aborted"].contains(&error.kind()), "{mode}: {error}");
        assert_eq!(error.retry(), Retry::Unknown, "{mode}: {error}");
        assert_eq!(connection.call("count", b"").unwrap().body, b"2", "{mode}");
    }
}

#[test]
fn a_client_outlives_its_node() {
    let scratch = tempfile::tempdir().unwrap();
    let start = |data: &str| Start::new().dir(scratch.path()).args(&["--data", data]).node();
    let mut node = start("127.0.0.1:0");
    node.deploy(faulty_image());
    let address = std::fs::read_to_string(node.dir().join("data-endpoint")).unwrap();
    let patient = options(&node).process("p").patience(Duration::from_secs(60));
    let mut connection = Connection::open(patient).unwrap();
    let keyed = |key| Request::new("count").idempotency_key(key).durability(Durability::Node);
    assert_eq!(connection.call(keyed("one"), b"").unwrap().body, b"1");
    let epoch = connection.epoch("p");
    node.kill();
    drop(node);
    // Begun while nobody is there, and on a connection that nobody has told that.
    let tickets = [connection.begin(keyed("one"), b""), connection.begin(keyed("two"), b"")];
    let _node = start(address.trim());
    let [again, next] = tickets.map(|ticket| connection.wait(ticket.unwrap()).unwrap());
    assert_eq!((again.body, again.head.replayed), (b"1".to_vec(), true), "it was executed once");
    assert_eq!((next.body, next.head.replayed), (b"2".to_vec(), false));
    assert!(connection.epoch("p") > epoch, "another term");
    assert_eq!(connection.call(Request::new("value").repeatable(), b"").unwrap().body, b"2");
}

#[test]
fn a_call_whose_node_dies_is_unknown_and_the_next_one_waits_for_it() {
    let mut node = node();
    let patient = options(&node).process("p").patience(Duration::from_secs(60));
    let mut connection = Connection::open(patient).unwrap();
    connection.call("count", b"").unwrap();
    let sleeping = connection.begin("sleep", b"").unwrap();
    assert_eq!(
        connection.call("value", b"").map(|reply| reply.body).ok(),
        Some(b"1".to_vec()),
        "it runs beside"
    );
    node.kill();
    let error = connection.wait(sleeping).unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("connection-lost", Retry::Unknown));
    let reads = connection.begin(Request::new("value").deadline(Duration::from_millis(300)), b"").unwrap();
    assert_eq!(connection.wait(reads).unwrap_err().retry(), Retry::Safe, "it was never sent");
}
