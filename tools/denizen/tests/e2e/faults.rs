//! Functions that do wrong. Each test shows the error that a caller sees, that what was committed before is there and
//! what the failed call wrote is not, and that another process works on.

use crate::node::{Node, Reply};

/// Calls `function` on a process that has committed a count of 1, and returns the reply; then asserts that the count is
/// still 1 and that another process works.
fn fault(function: &str) -> Reply {
    let node = Node::with_faulty();
    let before = node.call("faulty", "victim", "count", b"");
    assert_eq!((before.status, before.body().as_str()), (200, "1"), "{}", before.body());
    let reply = node.call("faulty", "victim", function, b"");
    node.assert_others_work("faulty");
    let after = node.call("faulty", "victim", "value", b"");
    assert_eq!((after.status, after.body().as_str()), (200, "1"), "after {function}: {}", after.body());
    reply
}

#[test]
fn an_error_is_the_functions_and_commits_nothing() {
    let problem = fault("fail").problem(500, "function-failed", "function");
    assert!(problem["detail"].as_str().unwrap().contains("this function always fails"), "{problem}");
    assert_eq!(problem["retry"], "safe");
    assert_eq!(problem["process"], "victim");
}

#[test]
fn a_panic_is_reported_with_its_message_and_place() {
    let problem = fault("panic").problem(500, "function-panicked", "function");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("as it was told to") && detail.contains("lib.rs:"), "{problem}");
}

#[test]
fn an_abort_is_named() {
    fault("abort").problem(500, "function-aborted", "function");
}

#[test]
fn a_stack_overflow_is_named() {
    fault("overflow_stack").problem(500, "stack-overflow", "function");
}

#[test]
fn a_segmentation_fault_is_named() {
    fault("segfault").problem(500, "segmentation-fault", "function");
}

#[test]
fn a_loop_without_end_is_stopped_at_its_deadline() {
    // A node that does not stop it never answers: the test need not wait as long as for others.
    let node = Node::with_faulty();
    let limit = std::time::Duration::from_secs(20);
    let client =
        ureq::Agent::config_builder().timeout_global(Some(limit)).http_status_as_error(false).build();
    let url = node.url("/v1/apps/faulty/processes/looping/functions/loop_for_ever");
    let answered = client.new_agent().post(url).send_empty();
    assert!(answered.is_ok_and(|reply| reply.status() == 504), "it was not stopped:\n{}", node.said());
    drop(node);
    fault("loop_for_ever").problem(504, "deadline-exceeded", "function");
}

#[test]
fn a_function_deaf_to_its_deadline_is_stopped_and_its_process_comes_back() {
    fault("sleep").problem(504, "deadline-exceeded", "function");
}

#[test]
fn memory_without_end_is_refused_and_named() {
    fault("allocate").problem(500, "out-of-memory", "function");
}

#[test]
fn threads_without_end_are_refused_to_the_function() {
    let problem = fault("start_threads").problem(500, "function-failed", "function");
    assert!(problem["detail"].as_str().unwrap().contains("was refused"), "{problem}");
}

#[test]
fn a_forbidden_system_call_is_named() {
    let problem = fault("open_socket").problem(500, "forbidden-syscall", "function");
    assert!(problem["detail"].as_str().unwrap().contains("socket"), "{problem}");
}

#[test]
fn opening_a_file_is_an_ordinary_error_of_the_function() {
    let problem = fault("open_file").problem(500, "function-failed", "function");
    assert!(problem["detail"].as_str().unwrap().contains("ermission denied"), "{problem}");
}

#[test]
fn state_over_its_quota_is_refused_and_nothing_of_the_call_is_kept() {
    let problem = fault("fill_state").problem(507, "state-quota", "function");
    assert!(problem["detail"].as_str().unwrap().contains("4 MiB"), "the quota is named: {problem}");
}

#[test]
fn writing_to_a_caller_that_is_gone_ends_the_function() {
    use std::io::{Read, Write};
    let node = Node::with_faulty();
    assert_eq!(node.call("faulty", "victim", "count", b"").status, 200);
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    let request = format!(
        "POST /v1/apps/faulty/processes/victim/functions/stream_for_ever HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n",
        node.address()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut some = [0; 100_000];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    // An exclusive call gets its turn only once the other has ended.
    let reply = node.call("faulty", "victim", "count", b"");
    assert_eq!((reply.status, reply.body().as_str()), (200, "2"), "{}", node.said());
    // Not by its deadline.
    let lines = node.ok(&["logs", "faulty/victim"]);
    assert!(lines.contains("the stream ended") && lines.contains("the caller went away"), "{lines}");
    node.assert_others_work("faulty");
}

#[test]
fn a_process_that_dies_again_and_again_is_held_back_and_says_so() {
    let node = Node::with_faulty();
    let mut seen = vec![];
    for _ in 0..40 {
        let reply = node.call("faulty", "victim", "abort", b"");
        let kind = reply.json()["type"].as_str().unwrap_or_default().to_owned();
        if kind.ends_with("crash-looping") {
            assert!(reply.header("retry-after").is_some(), "when to come back: {}", reply.body());
            reply.problem(503, "crash-looping", "function");
            node.assert_others_work("faulty");
            return;
        }
        seen.push(kind);
    }
    panic!("40 crashes in a row, and none was held back: {seen:?}");
}

#[test]
fn what_was_printed_before_a_crash_is_in_the_log() {
    let node = Node::with_faulty();
    let reply = node.call("faulty", "victim", "speak", b"");
    assert_eq!(reply.status, 200);
    let invocation = reply.header("denizen-invocation").unwrap().to_owned();
    let lines = node.ok(&["logs", "faulty/victim", "--json"]);
    for text in ["said on stdout", "said on stderr"] {
        let line = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|line| line["text"] == text)
            .unwrap_or_else(|| panic!("no line {text:?} in {lines}"));
        assert_eq!((&line["stream"], &line["process"]), (&"output".into(), &"victim".into()));
        assert_eq!(line["invocation"], invocation.as_str(), "{line}");
    }
}
