//! A counter over HTTP: a function's, and one in Redis behind a hyper service, at two levels of durability.
//!
//! What a user would write instead of a counting function is a small service that calls `INCR`. At `process` it stands beside a Redis
//! that saves nothing; at `node` beside one that syncs its log before it answers. Redis comes from the machine; where it is not
//! installed, its rows are left out and that is said.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::figures::{Side, rates};
use crate::machine::{Pinned, Pinning, Programs};
use crate::node::{Client, Node, Rival};

/// Measures both levels with one and with many connections.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    for (level, sync) in [("process", false), ("node", true)] {
        for connections in [1, 64] {
            measure_level(programs, tiny, level, sync, connections);
        }
    }
}

fn measure_level(programs: &Programs, tiny: bool, level: &str, sync: bool, connections: usize) {
    let (rounds, calls) = match (tiny, sync) {
        (true, _) => (1, 2 * connections),
        (false, false) => (7, 4_000),
        (false, true) => (7, 1_000),
    };
    let pinned = Pinned::to_server_core();
    let node = Node::start(programs, 1);
    let redis = Redis::start(sync);
    let service = redis.as_ref().map(|redis| Rival::start(programs, &["counter", &redis.address]));
    pinned.become_client(Pinning::Same);
    let mut ours: Vec<Client> = (0..connections).map(|_| node.client()).collect();
    let mut theirs: Vec<Client> =
        service.iter().flat_map(|rival| (0..connections).map(|_| Client::connect(&rival.line))).collect();
    let header = format!("Denizen-Durability: {level}\r\n");
    let count = ours[0].request_with("/v1/apps/bench-echo/processes/counter/functions/count", &header, b"");
    let plain = theirs.first().map(|client| client.request("/", b""));
    let (mut redis_side, mut our_side) = (Side::default(), Side::default());
    let (mut redis_rates, mut our_rates) = (Vec::new(), Vec::new());
    closed_loop(&mut ours, &count, calls / 2);
    for _ in 0..rounds {
        if let Some(plain) = &plain {
            let (samples, rate) = closed_loop(&mut theirs, plain, calls);
            redis_side.push(samples);
            redis_rates.push(rate);
        }
        let (samples, rate) = closed_loop(&mut ours, &count, calls);
        our_side.push(samples);
        our_rates.push(rate);
    }
    let redis_name = if sync {
        "hyper service + Redis `INCR`, fsync always"
    } else {
        "hyper service + Redis `INCR`, no AOF"
    };
    let our_name = format!("function `count`, `{level}`");
    let mut rows = Vec::new();
    if plain.is_some() {
        rows.push((redis_name, &redis_side, redis_rates.as_slice()));
    } else {
        println!("redis-server is not installed: its row is missing\n");
    }
    rows.push((&our_name, &our_side, our_rates.as_slice()));
    let noun = if connections == 1 { "connection" } else { "connections" };
    rates(&format!("Counter over HTTP, `{level}`, {connections} {noun}, everything on one core"), &rows);
}

/// Calls on all connections at once, each again as soon as it is answered. The microseconds of each call, and calls a second.
fn closed_loop(clients: &mut [Client], request: &[u8], calls: usize) -> (Vec<f64>, f64) {
    let begun = Instant::now();
    let mut sent_at: Vec<Instant> = Vec::with_capacity(clients.len());
    let mut sent = 0;
    for client in clients.iter_mut() {
        sent_at.push(Instant::now());
        client.send(request);
        sent += 1;
    }
    let mut samples = Vec::with_capacity(calls);
    let mut waiting: Vec<usize> = (0..clients.len()).collect();
    while !waiting.is_empty() {
        for index in ready(clients, &waiting) {
            assert_eq!(clients[index].read_reply(), 200, "a call failed");
            samples.push(sent_at[index].elapsed().as_secs_f64() * 1e6);
            if sent < calls {
                sent_at[index] = Instant::now();
                clients[index].send(request);
                sent += 1;
            } else {
                waiting.retain(|waits| *waits != index);
            }
        }
    }
    let rate = samples.len() as f64 / begun.elapsed().as_secs_f64();
    (samples, rate)
}

/// Which of the waiting connections have something to read; waits for the first.
fn ready(clients: &[Client], waiting: &[usize]) -> Vec<usize> {
    let mut polled: Vec<PollFd<'_>> =
        waiting.iter().map(|&index| PollFd::new(clients[index].stream(), PollFlags::IN)).collect();
    poll(&mut polled, None).expect("poll");
    let readable = waiting.iter().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty());
    readable.map(|(&index, _)| index).collect()
}

/// A Redis of its own, on a free port of loopback. It ends with this value.
pub(crate) struct Redis {
    child: Child,
    pub(crate) address: String,
    _dir: tempfile::TempDir,
}

impl Redis {
    /// `None` where there is no `redis-server`.
    pub(crate) fn start(sync: bool) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--daemonize", "no"]);
        command.args(["--appendonly", if sync { "yes" } else { "no" }, "--appendfsync", "always"]);
        command.arg("--dir").arg(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().ok()?;
        let redis = Self { child, address: format!("127.0.0.1:{port}"), _dir: dir };
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(&redis.address).is_err() {
            assert!(Instant::now() < until, "redis-server did not come up within 10 s");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
