//! A warm call over HTTP: 64 bytes in, 64 bytes out, one kept connection.

use crate::figures::{Side, table};
use crate::machine::{Pinned, Pinning, Programs};
use crate::node::{Client, Node, Rival};
use std::time::Instant;

/// Measures both pinnings.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    for (pinning, title) in [
        (Pinning::Same, "HTTP call, 64 B, everything on one core"),
        (Pinning::Cross, "HTTP call, 64 B, client on another core"),
    ] {
        measure_pinned(programs, tiny, pinning, title);
    }
}

fn measure_pinned(programs: &Programs, tiny: bool, pinning: Pinning, title: &str) {
    let (rounds, calls) = if tiny { (1, 20) } else { (7, 5_000) };
    let pinned = Pinned::to_server_core();
    let node = Node::start(programs, 1);
    let rival = Rival::start(programs, &["http"]);
    if pinned.become_client(pinning).is_none() {
        println!("## {title}\n\nnot measured: one core only\n");
        return;
    }
    let mut ours = node.client();
    let mut theirs = Client::connect(&rival.line);
    let body = [b'x'; 64];
    let echo = ours.request("/v1/apps/bench-echo/processes/p/functions/echo", &body);
    let count = ours.request("/v1/apps/bench-echo/processes/p/functions/count", b"");
    let plain = theirs.request("/", &body);
    let (mut floor, mut call, mut commit) = (Side::default(), Side::default(), Side::default());
    for (client, request) in [(&mut ours, &echo), (&mut theirs, &plain)] {
        time_calls(client, request, calls / 2);
    }
    for _ in 0..rounds {
        floor.push(time_calls(&mut theirs, &plain, calls));
        call.push(time_calls(&mut ours, &echo, calls));
        commit.push(time_calls(&mut ours, &count, calls));
    }
    table(
        title,
        &[
            ("plain hyper echo", &floor),
            ("function `echo`", &call),
            ("function `count`, a commit each", &commit),
        ],
    );
}

/// The microseconds of each of `calls` calls.
fn time_calls(client: &mut Client, request: &[u8], calls: usize) -> Vec<f64> {
    (0..calls)
        .map(|_| {
            let begun = Instant::now();
            let status = client.exchange(request);
            let micros = begun.elapsed().as_secs_f64() * 1e6;
            assert_eq!(status, 200, "a call failed");
            micros
        })
        .collect()
}
