//! What a first user does: deploy, call, look.

use crate::node::{Node, Start, build_image, repository};
use std::path::Path;
use std::sync::OnceLock;

fn counter_image() -> &'static Path {
    static IMAGE: OnceLock<std::path::PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| build_image(&repository().join("images/examples/counter"), "counter"))
}

fn with_counter() -> Node {
    let node = Start::new().node();
    node.deploy(counter_image());
    node
}

#[test]
fn the_counter_counts_per_process() {
    let node = with_counter();
    let by_two = br#"{"by":2}"#;
    for (process, expected) in [("alice", 2), ("alice", 4), ("bob", 2)] {
        let reply = node.call("counter", process, "increment", by_two);
        assert_eq!((reply.status, reply.body()), (200, format!("{{\"count\":{expected}}}")));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("denizen-process"), Some(process));
        assert_eq!(reply.header("denizen-durability"), Some("process"));
        assert!(reply.header("denizen-invocation").is_some_and(|id| !id.is_empty()));
        assert!(reply.header("denizen-commit").is_some_and(|commit| commit.parse::<u64>().is_ok()));
    }
}

#[test]
fn commits_are_numbered_upwards_and_reads_do_not_commit() {
    let node = with_counter();
    let commit = |function: &str, body: &[u8]| -> u64 {
        let reply = node.call("counter", "alice", function, body);
        assert_eq!(reply.status, 200, "{}", reply.body());
        reply.header("denizen-commit").unwrap().parse().unwrap()
    };
    let first = commit("increment", br#"{"by":1}"#);
    let second = commit("increment", br#"{"by":1}"#);
    let read = commit("value", b"");
    assert!(second > first, "{first} then {second}");
    assert_eq!(read, second);
}

#[test]
fn a_process_is_named_by_path_or_header_or_not_at_all() {
    let node = with_counter();
    let path = "/v1/apps/counter/functions/increment";
    let by_one = br#"{"by":1}"#;
    for header in ["Denizen-Process", "X-Process-Id"] {
        let reply = node.post(path, &[(header, "carol")], by_one);
        assert_eq!((reply.status, reply.header("denizen-process")), (200, Some("carol")), "{}", reply.body());
    }
    let both = node.post(path, &[("Denizen-Process", "carol"), ("X-Process-Id", "dave")], by_one);
    assert_eq!(both.status, 400);
    let unnamed = node.post(path, &[], by_one);
    assert_eq!(unnamed.status, 200);
    assert!(unnamed.header("denizen-process").is_some_and(|name| !name.is_empty()));
}

#[test]
fn create_never_refuses_an_unknown_process() {
    let node = with_counter();
    let path = "/v1/apps/counter/processes/erin/functions/increment";
    node.post(path, &[("Denizen-Create", "never")], br#"{"by":1}"#).problem(404, "unknown-process", "caller");
    assert_eq!(node.call("counter", "erin", "increment", br#"{"by":1}"#).status, 200);
    assert_eq!(node.post(path, &[("Denizen-Create", "never")], br#"{"by":1}"#).status, 200);
}

#[test]
fn overflow_is_the_callers_fault_and_changes_nothing() {
    let node = with_counter();
    let most = format!("{{\"by\":{}}}", u64::MAX);
    assert_eq!(node.call("counter", "alice", "increment", most.as_bytes()).status, 200);
    let problem =
        node.call("counter", "alice", "increment", br#"{"by":1}"#).problem(400, "bad-input", "caller");
    assert!(problem["detail"].as_str().unwrap().contains("overflows"), "{problem}");
    assert_eq!(node.call("counter", "alice", "value", b"").body(), format!("{{\"count\":{}}}", u64::MAX));
}

#[test]
fn text_is_found_in_a_book() {
    let node = Start::new().node();
    node.deploy(&build_image(&repository().join("images/examples/search"), "search"));
    let text = "The whale is the largest of mammals.\n\nA ship sails the sea.\n\nThe sea is home of the whale, and the whale sings.";
    let ingested = node.call("search", "library", "ingest", text.as_bytes());
    assert_eq!(ingested.status, 200, "{}", ingested.body());
    let answer = node.call("search", "library", "query", b"whale sings");
    assert_eq!(answer.status, 200, "{}", answer.body());
    assert!(answer.body().contains("sings"), "{}", answer.body());
}

#[test]
fn a_picture_becomes_smaller() {
    let package = repository().join("images/examples/thumbnail");
    let node = Start::new().node();
    node.deploy(&build_image(&package, "thumbnail"));
    let mut pictures = 0;
    for file in std::fs::read_dir(package.join("tests")).expect("fixtures").flatten() {
        let path = file.path();
        let Some("png" | "jpg" | "jpeg") = path.extension().and_then(|extension| extension.to_str()) else {
            continue;
        };
        pictures += 1;
        let reply = node.call("thumbnail", "pictures", "thumbnail", &std::fs::read(&path).unwrap());
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("image/png")),
            "{}",
            reply.body()
        );
        assert!(reply.bytes().starts_with(b"\x89PNG\r\n\x1a\n"), "{} did not become a PNG", path.display());
    }
    assert!(pictures >= 2, "a PNG and a JPEG");
    node.call("thumbnail", "pictures", "thumbnail", b"not a picture").problem(400, "bad-input", "caller");
}

#[test]
fn a_plugin_in_plain_c_works() {
    let node = Start::new().node();
    let source = std::fs::read_to_string(repository().join("images/examples/hello-c/hello.c")).unwrap();
    node.deploy(&crate::node::c_image("hello-c", &source));
    let reply = node.call("hello-c", "p", "hello", b"world");
    assert_eq!(reply.status, 200, "{}", reply.body());
    assert!(reply.body().contains("world"), "{}", reply.body());
}

#[test]
fn large_bodies_go_both_ways() {
    let node = Node::with_faulty();
    let body: Vec<u8> = (0..1_000_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let reply = node.call("faulty", "p", "echo", &body);
    assert_eq!(reply.status, 200, "{}", reply.body());
    assert!(reply.bytes() == body, "the echo of {} bytes differs", body.len());
}

#[test]
fn calls_at_once_are_all_counted() {
    let node = Node::with_faulty();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(node.call("faulty", "p", "count", b"").status, 200);
                }
            });
        }
    });
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "400");
}

#[test]
fn several_executors_serve_the_same_processes() {
    let node = Start::new().args(&["--executors", "2"]).node();
    node.deploy(crate::node::faulty_image());
    for number in 0..40 {
        // A connection each, so that the kernel deals them out to both listeners.
        let process = format!("p{}", number % 4);
        assert_eq!(node.call("faulty", &process, "count", b"").status, 200);
    }
    for process in 0..4 {
        assert_eq!(node.call("faulty", &format!("p{process}"), "value", b"").body(), "10");
    }
}
