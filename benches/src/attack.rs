//! What a caller notices of others who misbehave: direct calls of one process, alone and beside each attack, on the core of the node.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use denizen_protocol::{Durability, Hello};

use crate::figures::{Side, table};
use crate::machine::{Pinned, Pinning, Programs};
use crate::node::Node;

/// Between two steps of an attack: 200 a second.
const PACE: Duration = Duration::from_millis(5);
/// Connections that are begun and never say whom they want.
const HALF_OPEN: usize = 200;

/// What somebody else does meanwhile.
type Attack = fn(&Node, &AtomicBool);

const ATTACKS: [(&str, Attack); 5] = [
    ("alone", |_, _| {}),
    ("200 forged tokens a second", forged_tokens),
    ("200 half-open connections, a byte at a time", half_open),
    ("another process prints as fast as it can", printing),
    ("four other processes burn the processor", burning),
];

/// Measures with everything on one core.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    let (rounds, calls) = if tiny { (1, 20) } else { (5, 10_000) };
    let pinned = Pinned::to_server_core();
    let node = Node::start(programs, 1);
    pinned.become_client(Pinning::Same);
    let mut victim = node.framed("victim");
    let mut sides: [Side; ATTACKS.len()] = Default::default();
    for _ in 0..calls / 2 {
        victim.call("echo", &[b'x'; 64], Durability::Process);
    }
    for _ in 0..rounds {
        for (side, (_, attack)) in sides.iter_mut().zip(ATTACKS) {
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| attack(&node, &is_over));
                // It has begun.
                thread::sleep(Duration::from_millis(if tiny { 1 } else { 100 }));
                side.push(
                    (0..calls).map(|_| victim.call("echo", &[b'x'; 64], Durability::Process)).collect(),
                );
                is_over.store(true, Ordering::Relaxed);
            });
        }
    }
    let rows: Vec<(&str, &Side)> = ATTACKS.iter().map(|(name, _)| *name).zip(&sides).collect();
    table("Direct call, 64 B, beside others who misbehave, everything on one core", &rows);
}

fn forged_tokens(node: &Node, is_over: &AtomicBool) {
    let hello = Hello { token: node.forged_token(), ..Hello::new("bench-echo", Some("victim")) };
    let mut bytes = Vec::new();
    hello.encode(&mut bytes).expect("a HELLO");
    while !is_over.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(node.data_address()).expect("the node accepts");
        let _ = stream.write_all(&bytes);
        thread::sleep(PACE);
    }
}

fn half_open(node: &Node, is_over: &AtomicBool) {
    let mut hello = Vec::new();
    Hello::new("bench-echo", Some("victim")).encode(&mut hello).expect("a HELLO");
    let connect = || TcpStream::connect(node.data_address()).expect("the node accepts");
    let mut streams: Vec<(TcpStream, usize)> = (0..HALF_OPEN).map(|_| (connect(), 0)).collect();
    let mut next = 0;
    while !is_over.load(Ordering::Relaxed) {
        let (stream, sent) = &mut streams[next % HALF_OPEN];
        if *sent + 1 >= hello.len() || stream.write_all(&hello[*sent..=*sent]).is_err() {
            (*stream, *sent) = (connect(), 0);
        }
        *sent += 1;
        next += 1;
        thread::sleep(PACE);
    }
}

fn printing(node: &Node, is_over: &AtomicBool) {
    let mut noisy = node.framed("noisy");
    while !is_over.load(Ordering::Relaxed) {
        noisy.call("print", b"20", Durability::Process);
    }
}

fn burning(node: &Node, is_over: &AtomicBool) {
    thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let mut burner = node.framed(&format!("burner{number}"));
                while !is_over.load(Ordering::Relaxed) {
                    burner.call("burn", b"20", Durability::Process);
                }
            });
        }
    });
}
