//! Direct calls with large bodies, beside a server that reads all of them and then writes them back.

use crate::direct::repeat;
use crate::figures::{Side, table};
use crate::framed::Bare;
use crate::machine::{Pinned, Pinning, Programs};
use crate::node::{Node, Rival};

/// Measures echoes of 1 and of 16 MiB.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    for mib in [1, 16] {
        echo(programs, tiny, mib);
    }
}

fn echo(programs: &Programs, tiny: bool, mib: usize) {
    let (rounds, calls) = if tiny { (1, 2) } else { (7, 160 / mib.max(2)) };
    let body = vec![b'x'; mib << 20];
    let pinned = Pinned::to_server_core();
    let node = Node::start(programs, 1);
    let echo = Rival::start(programs, &["echo", &body.len().to_string()]);
    pinned.become_client(Pinning::Same);
    let (mut theirs, mut ours) = (Bare::connect(&echo.line), node.framed("p"));
    let (mut floor, mut side) = (Side::default(), Side::default());
    repeat(2, || theirs.echo(&body));
    repeat(2, || ours.echo(&body));
    for _ in 0..rounds {
        floor.push(repeat(calls, || theirs.echo(&body)));
        side.push(repeat(calls, || ours.echo(&body)));
    }
    table(
        &format!("Echo of {mib} MiB, everything on one core"),
        &[("TCP echo that reads all, then writes", &floor), ("function `echo`", &side)],
    );
}
