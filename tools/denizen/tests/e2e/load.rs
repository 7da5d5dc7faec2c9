//! `denizen load`: what it counts is what the function saw, over both transports and in both loops.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use crate::node::{Node, Start, build_image, repository, text};

fn with_counter() -> Node {
    static IMAGE: OnceLock<std::path::PathBuf> = OnceLock::new();
    let build = || build_image(&repository().join("images/examples/counter"), "counter-for-load");
    let image: &Path = IMAGE.get_or_init(build);
    let node = Start::new().args(&["--data", "127.0.0.1:0"]).node();
    node.deploy(image);
    node
}

/// `denizen load TARGET increment` with these words; its document.
fn load(node: &Node, target: &str, words: &[&str]) -> Value {
    let increment = ["load", target, "increment", "--json", "--body", r#"{"by":1}"#, "-d", "300ms"];
    serde_json::from_str(&node.ok(&[&increment, words].concat())).unwrap()
}

fn count(node: &Node, process: &str) -> u64 {
    node.call("counter", process, "value", b"").json()["count"].as_u64().unwrap()
}

#[test]
fn every_call_that_is_counted_was_made_once() {
    let node = with_counter();
    let ways: [(&str, &[&str]); 7] = [
        ("a", &[]),
        ("b", &["--http", "-c", "2", "--rate", "50"]),
        ("c", &["--framed"]),
        ("d", &["--framed", "-c", "2", "--depth", "8"]),
        ("e", &["--framed", "--rate", "50"]),
        ("f", &["--framed", "-c", "50", "--threads", "2", "--pipeline", "2"]),
        ("g", &["--framed", "--busy"]),
    ];
    for (process, words) in ways {
        let sum = load(&node, &format!("counter/{process}"), words);
        assert_eq!((&sum["failed"], &sum["errors"]), (&0.into(), &serde_json::json!({})), "{sum}");
        assert_eq!(sum["calls"].as_u64(), Some(count(&node, process)), "{words:?}: {sum}");
        if words.contains(&"--rate") {
            // All that was due in 300 ms, however late the machine was.
            assert_eq!((sum["calls"].as_u64(), &sum["loop"]), (Some(15), &"open".into()), "{sum}");
        }
        assert!(sum["own_cpu_us_per_call"].as_f64().is_some_and(|own| own > 0.0), "{sum}");
        let latency = |name: &str| sum["latency_us"][name].as_f64().unwrap();
        assert!(latency("p50") > 1.0 && latency("p50") <= latency("p99"), "{sum}");
        assert!(latency("p99") <= latency("p99_9") && latency("p99_9") <= latency("max"), "{sum}");
    }
}

#[test]
fn failures_are_counted_by_type_and_are_the_exit_status() {
    let node = with_counter();
    for transport in ["--http", "--framed"] {
        let words = ["load", "counter/a", "no-such", "--json", "-d", "100ms", transport];
        let output = node.denizen(&words);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let sum: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(sum["calls"], 0, "{sum}");
        assert!(sum["errors"]["unknown-function"].as_u64().is_some_and(|count| count > 0), "{sum}");
        assert_eq!(sum["errors"]["unknown-function"], sum["failed"], "{sum}");
        assert_eq!(sum["latency_us"]["p50"], Value::Null, "none succeeded: {sum}");
    }
    // A node that refuses all of it says so before anything is measured.
    let output = node.denizen(&["load", "no-such-app/a", "f", "--framed", "-d", "100ms"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no such application"), "{}", text(&output));
    let output = node.denizen(&["load", "counter/a", "value", "--framed", "--token", "none"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn a_table_for_people() {
    let node = with_counter();
    let said = node.ok(&["load", "counter/a", "increment", "--body", r#"{"by":1}"#, "-d", "100ms"]);
    let (head, row) = said.split_once('\n').unwrap();
    for column in ["CALLS", "CALLS/S", "P50", "P90", "P99", "P99.9", "MAX", "FAILED"] {
        assert!(head.contains(column), "{said}");
    }
    assert!(row.trim().starts_with(&count(&node, "a").to_string()) && row.trim().ends_with('0'), "{said}");
}

#[test]
fn a_table_of_failures_shows_no_latencies_and_names_each_type_once() {
    let node = with_counter();
    for transport in ["--http", "--framed"] {
        let output = node.denizen(&["load", "counter/a", "no-such", "-d", "100ms", transport]);
        let table = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][2..7], ["-"; 5], "{table}");
        assert_eq!(table.matches("unknown-function").count(), 1, "{table}");
    }
}
