//! Direct calls with large bodies, beside a server that reads all of them and then writes them back, under the system's congestion
//! control and, where that is another, under `cubic`: it decides more than either server.

use crate::direct::repeat;
use crate::figures::{Side, table};
use crate::framed::Bare;
use crate::machine::{Pinned, Pinning, Programs};
use crate::node::{Node, Rival};

/// Measures echoes of 1 and of 16 MiB.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    let system = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let allowed =
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").unwrap_or_default();
    for mib in [1, 16] {
        echo(programs, tiny, mib, None, system.trim());
        if system.trim() != "cubic" && allowed.split_whitespace().any(|name| name == "cubic") {
            echo(programs, tiny, mib, Some("cubic"), "cubic");
        }
    }
}

fn echo(programs: &Programs, tiny: bool, mib: usize, congestion: Option<&str>, called: &str) {
    let (rounds, calls) = if tiny { (1, 2) } else { (7, 160 / mib.max(2)) };
    let body = vec![b'x'; mib << 20];
    let pinned = Pinned::to_server_core();
    let node = Node::with_congestion(programs, congestion);
    let len = body.len().to_string();
    let words: Vec<&str> = ["echo", &len].into_iter().chain(congestion).collect();
    let echo = Rival::start(programs, &words);
    pinned.become_client(Pinning::Same);
    let (mut theirs, mut ours) =
        (Bare::connect_with(&echo.line, congestion), node.framed_with("p", congestion));
    let (mut floor, mut side) = (Side::default(), Side::default());
    repeat(2, || theirs.echo(&body));
    repeat(2, || ours.echo(&body));
    for _ in 0..rounds {
        floor.push(repeat(calls, || theirs.echo(&body)));
        side.push(repeat(calls, || ours.echo(&body)));
    }
    table(
        &format!("Echo of {mib} MiB under {called}, everything on one core"),
        &[("TCP echo that reads all, then writes", &floor), ("function `echo`", &side)],
    );
}
