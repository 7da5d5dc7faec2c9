//! What a first user does: deploy, call, look.

use crate::bad_images::c_plugin;
use crate::node::{
    DENIZEN, Node, PATIENCE, Start, build_image, c_image_with, compile_c, repository, scratch, text,
};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
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

/// It was the caller who wanted it so soon, and not the image.
#[test]
fn a_deadline_is_told_as_that_of_whoever_set_it() {
    let node = Node::with_faulty();
    let detail = |headers: &[(&str, &str)]| {
        for function in ["sleep", "loop_for_ever"] {
            let reply = node.post(&format!("/v1/apps/faulty/processes/p/functions/{function}"), headers, b"");
            let problem = reply.problem(504, "deadline-exceeded", "function");
            let detail = problem["detail"].as_str().unwrap();
            let callers = headers.iter().any(|(_, value)| *value == "300");
            assert_eq!(detail.contains("its caller gave it 300ms"), callers, "{detail}");
            assert_eq!(detail.contains("at most 2s in this image"), !callers, "{detail}");
        }
    };
    detail(&[("Denizen-Deadline-Ms", "300")]);
    detail(&[("Denizen-Deadline-Ms", "300000")]);
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
fn an_image_that_says_explicit_creates_processes_by_request_only() {
    let node = Start::new().node();
    let policy = "[process]\ncreate = \"explicit\"\n";
    node.deploy(&c_image_with("explicit", &c_plugin("", "DZ_ABI_VERSION"), &[], policy));
    node.call("explicit", "p", "count", b"").problem(404, "unknown-process", "caller");
    node.post("/v1/apps/explicit/functions/count", &[], b"").problem(404, "unknown-process", "caller");
    assert_eq!(node.control("POST", "/v1/apps/explicit/processes/p").status, 201);
    assert_eq!(node.call("explicit", "p", "count", b"").body(), "ok");
    let output = node.denizen(&["invoke", "explicit/q", "count"]);
    assert!(text(&output).contains("denizen create"), "{}", text(&output));
    assert!(node.ok(&["create", "explicit/q"]).starts_with("explicit/q is active: commit 0"));
    assert_eq!(node.call("explicit", "q", "count", b"").body(), "ok");
    let output = node.denizen(&["create", "explicit/q"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(
        text(&output).contains("has a process q already") && text(&output).contains("another name"),
        "{}",
        text(&output)
    );
    assert_eq!(node.post("/v1/apps/explicit/functions/count", &[], b"").body(), "ok", "there is one now");
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

/// Answers with what it gets, while it gets it.
const ECHO: &str = r#"
#include "denizen.h"
DENIZEN_PLUGIN;
static const dz_host *host;
static int32_t echo(void *data, dz_call *call) {
    static uint8_t bytes[64 << 10];
    size_t len;
    int32_t status = host->reply_content_type(call, dz_text("application/x-echo"));
    while (status == DZ_OK && (status = host->input_read(call, bytes, sizeof bytes, &len)) == DZ_OK && len > 0)
        status = host->reply_write(call, (dz_slice){bytes, len});
    return status;
}
int32_t denizen_plugin_init(const dz_host *given, const dz_init *init) {
    host = given;
    dz_function f = {0};
    f.size = sizeof f;
    f.input = DZ_STREAM;
    f.output = DZ_STREAM;
    f.name = dz_text("echo");
    f.entry = echo;
    return host->declare_function(init->registry, &f);
}
"#;

/// In a process that has half of the memory that the body would take, which the limit of its own allows.
#[test]
fn a_body_that_nobody_could_hold_streams_both_ways() {
    const TIMES: u64 = 64;
    let piece: Vec<u8> = (0..1_048_576_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let policy = "[limits]\nmemory = \"32MiB\"\ndeadline = \"1h\"\n[functions.echo]\nbody = \"64MiB\"\n";
    let node = Start::new().node();
    node.deploy(&c_image_with("echo", ECHO, &[], policy));
    let mut sending = TcpStream::connect(node.address()).unwrap();
    sending.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = TIMES * 1_048_576;
    let head = format!(
        "POST /v1/apps/echo/processes/p/functions/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    sending.write_all(head.as_bytes()).unwrap();
    let mut receiving = sending.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..TIMES).for_each(|_| sending.write_all(&piece).unwrap()));
        let mut all = vec![];
        receiving.read_to_end(&mut all).unwrap_or_else(|error| panic!("{error}: {}", node.said()));
        let answer = String::from_utf8_lossy(&all[..all.len().min(300)]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("application/x-echo"), "{answer}");
        assert!(all.ends_with(b"\r\n0\r\n\r\n"), "the body broke off after {} bytes", all.len());
        assert!(all.len() as u64 > length, "{} bytes came back", all.len());
    });
    let over = node.post("/v1/apps/echo/processes/p/functions/echo", &[], &vec![0; (64 << 20) + 1]);
    let problem = over.problem(413, "body-too-large", "caller");
    assert!(problem["detail"].as_str().unwrap().contains("64 MiB"), "{problem}");
}

/// A plugin and a library of its own, which is gone from this machine when the function runs.
#[test]
fn the_libraries_that_a_plugin_needs_travel_with_it() {
    let library = compile_c("libanswer", "int answer(void) { return 42; }", &["-Wl,-soname,libanswer.so"]);
    let source = c_plugin("int answer(void);", "DZ_ABI_VERSION").replace("'o'", "(uint8_t)answer()");
    let scratch = scratch().display().to_string();
    let flags = [&format!("-L{scratch}"), "-lanswer", &format!("-Wl,-rpath,{scratch}")];
    let archive = c_image_with("libraries", &source, &flags, "");
    std::fs::remove_file(&library).unwrap();
    let node = Start::new().node();
    node.deploy(&archive);
    assert_eq!(node.call("libraries", "p", "count", b"").body(), "*k", "{}", node.said());
    // Without it the image cannot be made, and the library is named.
    let plugin = Path::new(&scratch).join("libraries.so");
    let again = Command::new(DENIZEN).args(["image", "build", "--plugin"]).arg(plugin).output().unwrap();
    assert!(again.status.code() == Some(2) && text(&again).contains("libanswer.so"), "{}", text(&again));
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
