//! The first call of a new process: from the pool, with the pool empty, and beside the bare cost of starting something
//! isolated at all.

use crate::figures::{Side, table};
use crate::machine::{Pinned, Pinning, Programs};
use crate::node::Node;
use std::process::Command;
use std::time::{Duration, Instant};

/// Measures with everything on one core.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    let (rounds, starts) = if tiny { (1, 3) } else { (5, 60) };
    let pinned = Pinned::to_server_core();
    let pooled_node = Node::start(programs, 4);
    let bare_node = Node::start(programs, 0);
    let _ = pinned.become_client(Pinning::Same);
    let (mut floor, mut pooled, mut unpooled) = (Side::default(), Side::default(), Side::default());
    for round in 0..rounds {
        floor.push(bare_starts(programs, starts));
        pooled.push(first_calls(&pooled_node, round, starts));
        unpooled.push(first_calls(&bare_node, round, starts));
    }
    table(
        "First call of a new process, everything on one core",
        &[
            ("clone3 + namespaces + exec + dlopen", &floor),
            ("first call, from the pool", &pooled),
            ("first call, pool empty", &unpooled),
        ],
    );
}

/// Calls new processes one after another. The pause lets the pool fill again: refilling is not part of the call.
fn first_calls(node: &Node, round: usize, starts: usize) -> Vec<f64> {
    let mut client = node.client();
    (0..starts)
        .map(|number| {
            std::thread::sleep(Duration::from_millis(20));
            let path = format!("/v1/apps/bench-echo/processes/r{round}-{number}/functions/echo");
            let request = client.request(&path, &[b'x'; 64]);
            let begun = Instant::now();
            let status = client.exchange(&request);
            let micros = begun.elapsed().as_secs_f64() * 1e6;
            assert_eq!(status, 200, "a first call failed");
            micros
        })
        .collect()
}

fn bare_starts(programs: &Programs, starts: usize) -> Vec<f64> {
    let output = Command::new(&programs.rivals)
        .arg("start")
        .arg(&programs.plugin)
        .arg(starts.to_string())
        .output()
        .expect("a rival runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().expect("microseconds")).collect()
}
