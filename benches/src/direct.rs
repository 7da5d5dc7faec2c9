//! Direct calls: the framed protocol, in which nobody is between a caller and a function but the kernel, beside servers that do
//! nothing but echo or count.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use denizen_protocol::Durability;
use rustix::event::{PollFd, PollFlags, poll};

use crate::counter::Redis;
use crate::figures::{Side, rates, table};
use crate::framed::{Bare, Framed};
use crate::large;
use crate::machine::{Pinned, Pinning, Programs};
use crate::node::{Node, Rival};

const BODY: [u8; 64] = [b'x'; 64];
const INCREMENT: &[u8] = b"*2\r\n$4\r\nINCR\r\n$7\r\ncounter\r\n";
const CONNECTIONS: usize = 64;
const DEPTH: usize = 16;

/// Measures everything.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    latency(programs, tiny, Pinning::Same, "Direct call, 64 B, everything on one core");
    latency(programs, tiny, Pinning::Cross, "Direct call, 64 B, client on another core");
    count(programs, tiny);
    for connections in [1, CONNECTIONS] {
        count_synced(programs, tiny, connections);
    }
    for (connections, depth) in [(CONNECTIONS, 1), (1, DEPTH), (CONNECTIONS, DEPTH)] {
        throughput(programs, tiny, connections, depth);
    }
    large::measure(programs, tiny);
    wake(programs, tiny);
}

fn latency(programs: &Programs, tiny: bool, pinning: Pinning, title: &str) {
    let (rounds, calls) = if tiny { (1, 20) } else { (7, 5_000) };
    let pinned = Pinned::to_server_core();
    let (node, relay) = (Node::start(programs, 1), Node::relay(programs, 1));
    let (thread, ring) = (Rival::start(programs, &["echo", "64"]), Rival::start(programs, &["ring"]));
    if pinned.become_client(pinning).is_none() {
        println!("## {title}\n\nnot measured: one core only\n");
        return;
    }
    let (mut thread, mut ring) = (Bare::connect(&thread.line), Bare::connect(&ring.line));
    let (mut direct, mut relayed) = (node.framed("p"), relay.framed("p"));
    let mut sides: [Side; 5] = Default::default();
    for round in 0..=rounds {
        let calls = if round == 0 { calls / 2 } else { calls };
        let samples = [
            repeat(calls, || thread.echo(&BODY)),
            repeat(calls, || ring.echo(&BODY)),
            repeat(calls, || direct.call("echo", &BODY, Durability::Process)),
            repeat(calls, || direct.call("count", b"", Durability::Process)),
            repeat(calls, || relayed.call("echo", &BODY, Durability::Process)),
        ];
        // The first round only warms.
        if round > 0 {
            sides.iter_mut().zip(samples).for_each(|(side, samples)| side.push(samples));
        }
    }
    let names = [
        "blocking TCP echo, a thread for each connection",
        "io_uring TCP echo",
        "function `echo`",
        "function `count`, a commit each",
        "function `echo`, relayed",
    ];
    let rows: Vec<(&str, &Side)> = names.into_iter().zip(&sides).collect();
    table(title, &rows);
}

pub(crate) fn repeat(times: usize, mut call: impl FnMut() -> f64) -> Vec<f64> {
    (0..times).map(|_| call()).collect()
}

fn count(programs: &Programs, tiny: bool) {
    let (rounds, calls) = if tiny { (1, 20) } else { (7, 5_000) };
    let pinned = Pinned::to_server_core();
    let (node, redis) = (Node::start(programs, 1), Redis::start(false));
    pinned.become_client(Pinning::Same);
    let Some(redis) = redis else { return without_redis() };
    let (mut ours, mut theirs) = (node.framed("counter"), Bare::connect(&redis.address));
    let (mut floor, mut side) = (Side::default(), Side::default());
    repeat(calls / 2, || ours.call("count", b"", Durability::Process));
    for _ in 0..rounds {
        floor.push(repeat(calls, || theirs.line(INCREMENT)));
        side.push(repeat(calls, || ours.call("count", b"", Durability::Process)));
    }
    table(
        "Direct counter, `process`, 1 connection, everything on one core",
        &[("Redis `INCR`, no AOF", &floor), ("function `count`, `process`", &side)],
    );
}

fn without_redis() {
    println!("redis-server is not installed: its rows are missing\n");
}

fn count_synced(programs: &Programs, tiny: bool, connections: usize) {
    let (rounds, calls) = if tiny { (1, 2 * connections) } else { (7, 1_000) };
    let pinned = Pinned::to_server_core();
    let (node, redis) = (Node::start(programs, 1), Redis::start(true));
    pinned.become_client(Pinning::Same);
    let file = Preallocated::new();
    let mut theirs: Vec<Wired> = redis.iter().flat_map(|redis| wired(&redis.address, connections)).collect();
    let mut ours: Vec<Calling> = (0..connections)
        .map(|_| Calling { framed: node.framed("counter"), function: "count", durability: Durability::Node })
        .collect();
    let (mut sync, mut floor, mut side) = (Side::default(), Side::default(), Side::default());
    let (mut sync_rates, mut floor_rates, mut our_rates) = (Vec::new(), Vec::new(), Vec::new());
    closed_loop(&mut ours, calls / 2, 1);
    for round in 0..rounds {
        let begun = Instant::now();
        sync.push(repeat(calls / connections, || file.append(round)));
        sync_rates.push((calls / connections) as f64 / begun.elapsed().as_secs_f64());
        for (samples, rates, result) in [
            (&mut floor, &mut floor_rates, (!theirs.is_empty()).then(|| closed_loop(&mut theirs, calls, 1))),
            (&mut side, &mut our_rates, Some(closed_loop(&mut ours, calls, 1))),
        ] {
            if let Some((round, rate)) = result {
                samples.push(round);
                rates.push(rate);
            }
        }
    }
    let mut rows = vec![("`pwrite` + fdatasync, preallocated, one at a time", &sync, sync_rates.as_slice())];
    if theirs.is_empty() {
        without_redis();
    } else {
        rows.push(("Redis `INCR`, fsync always", &floor, floor_rates.as_slice()));
    }
    rows.push(("function `count`, `node`", &side, our_rates.as_slice()));
    rates(&format!("Direct counter, `node`, {}, everything on one core", connections_of(connections)), &rows);
}

fn connections_of(count: usize) -> String {
    if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") }
}

/// A file in which every byte was written once, as a log that reuses its files has them.
struct Preallocated {
    file: File,
    _dir: tempfile::TempDir,
}

impl Preallocated {
    const LEN: u64 = 4 << 20;

    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = File::create(dir.path().join("log")).expect("a file");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, Self::LEN).expect("room");
        file.sync_all().expect("a sync");
        Self { file, _dir: dir }
    }

    /// Writes 192 bytes, as much as a commit of a counter, and syncs them. Microseconds.
    fn append(&self, round: usize) -> f64 {
        let begun = Instant::now();
        self.file.write_all_at(&[1; 192], (round as u64 * 192) % Self::LEN).expect("a write");
        self.file.sync_data().expect("a sync");
        begun.elapsed().as_secs_f64() * 1e6
    }
}

/// A connection on which calls can be under way.
trait Line {
    fn stream(&self) -> &TcpStream;
    /// Sends so many calls.
    fn send(&mut self, count: usize);
    /// Reads once. How many calls have ended.
    fn receive(&mut self) -> usize;
}

struct Calling {
    framed: Framed,
    function: &'static str,
    durability: Durability,
}

impl Line for Calling {
    fn stream(&self) -> &TcpStream {
        self.framed.stream()
    }

    fn send(&mut self, count: usize) {
        for _ in 0..count {
            self.framed.begin(
                self.function,
                if self.function == "echo" { &BODY } else { b"" },
                self.durability,
            );
        }
        self.framed.flush();
    }

    fn receive(&mut self) -> usize {
        let ended = self.framed.receive();
        self.framed.ended();
        ended
    }
}

/// One that sends the same bytes again and again, and gets as many back.
struct Echoed {
    bare: Bare,
    request: Vec<u8>,
}

impl Line for Echoed {
    fn stream(&self) -> &TcpStream {
        self.bare.stream()
    }

    fn send(&mut self, count: usize) {
        self.bare.send(&self.request.repeat(count));
    }

    fn receive(&mut self) -> usize {
        let len = self.request.len();
        let before = self.bare.due().div_ceil(len);
        before - self.bare.receive().div_ceil(len)
    }
}

/// One that increments in Redis.
struct Wired(Bare);

fn wired(address: &str, connections: usize) -> Vec<Wired> {
    (0..connections).map(|_| Wired(Bare::connect(address))).collect()
}

impl Line for Wired {
    fn stream(&self) -> &TcpStream {
        self.0.stream()
    }

    fn send(&mut self, count: usize) {
        assert_eq!(count, 1, "Redis is asked one at a time");
        self.0.write(INCREMENT);
    }

    fn receive(&mut self) -> usize {
        self.0.read_line();
        1
    }
}

/// Keeps `depth` calls under way on every connection until `calls` have ended. The microseconds of each batch, and calls a second.
fn closed_loop<L: Line>(lines: &mut [L], calls: usize, depth: usize) -> (Vec<f64>, f64) {
    let begun = Instant::now();
    let mut under_way = vec![depth; lines.len()];
    let mut sent_at = vec![begun; lines.len()];
    let mut sent = depth * lines.len();
    lines.iter_mut().for_each(|line| line.send(depth));
    let (mut samples, mut ended) = (Vec::with_capacity(calls), 0);
    while under_way.iter().any(|count| *count > 0) {
        for index in ready(lines, &under_way) {
            let count = lines[index].receive();
            ended += count;
            under_way[index] -= count;
            if count > 0 {
                samples.push(sent_at[index].elapsed().as_secs_f64() * 1e6);
            }
            let more = count.min(calls.saturating_sub(sent));
            if more > 0 {
                sent_at[index] = Instant::now();
                lines[index].send(more);
                (sent, under_way[index]) = (sent + more, under_way[index] + more);
            }
        }
    }
    (samples, ended as f64 / begun.elapsed().as_secs_f64())
}

/// Which of the connections that wait have something to read; waits for the first.
fn ready<L: Line>(lines: &[L], under_way: &[usize]) -> Vec<usize> {
    let waiting: Vec<usize> = (0..lines.len()).filter(|index| under_way[*index] > 0).collect();
    if let [one] = waiting.as_slice() {
        return vec![*one];
    }
    let mut polled: Vec<PollFd<'_>> =
        waiting.iter().map(|index| PollFd::new(lines[*index].stream(), PollFlags::IN)).collect();
    poll(&mut polled, None).expect("poll");
    waiting.iter().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty()).map(|(index, _)| *index).collect()
}

fn throughput(programs: &Programs, tiny: bool, connections: usize, depth: usize) {
    let (rounds, calls) = if tiny { (1, 2 * connections * depth) } else { (7, 50_000) };
    let title = format!(
        "Direct calls, 64 B, {}, {depth} under way on each, client on another core",
        connections_of(connections)
    );
    let pinned = Pinned::to_server_core();
    let node = Node::start(programs, 1);
    let ring = Rival::start(programs, &["ring"]);
    if pinned.become_client(Pinning::Cross).is_none() {
        println!("## {title}\n\nnot measured: one core only\n");
        return;
    }
    let mut ours: Vec<Calling> = (0..connections)
        .map(|_| Calling { framed: node.framed("p"), function: "echo", durability: Durability::Process })
        .collect();
    // As many bytes as a CALL of 64 bytes takes, so that both sides move the same.
    let request = vec![b'x'; 32 + 32 + BODY.len()];
    let mut theirs: Vec<Echoed> = (0..connections)
        .map(|_| Echoed { bare: Bare::connect(&ring.line), request: request.clone() })
        .collect();
    let (mut floor, mut side) = (Side::default(), Side::default());
    let (mut floor_rates, mut our_rates) = (Vec::new(), Vec::new());
    closed_loop(&mut ours, calls / 2, depth);
    for _ in 0..rounds {
        let (samples, rate) = closed_loop(&mut theirs, calls, depth);
        floor.push(samples);
        floor_rates.push(rate);
        let (samples, rate) = closed_loop(&mut ours, calls, depth);
        side.push(samples);
        our_rates.push(rate);
    }
    rates(&title, &[("io_uring TCP echo", &floor, &floor_rates), ("function `echo`", &side, &our_rates)]);
}

/// A byte on an open connection wakes a swapped process; beside it the first call of a new one, from the pool.
fn wake(programs: &Programs, tiny: bool) {
    let (rounds, wakes) = if tiny { (1, 2) } else { (5, 40) };
    let pinned = Pinned::to_server_core();
    let node = Node::start(programs, 4);
    pinned.become_client(Pinning::Same);
    let (mut floor, mut side) = (Side::default(), Side::default());
    let mut sleeper = node.framed("sleeper");
    sleeper.call("count", b"", Durability::Process);
    for round in 0..rounds {
        let first_call = |number: usize| {
            let mut new = node.framed(&format!("r{round}-{number}"));
            pause();
            new.call("count", b"", Durability::Process)
        };
        floor.push((0..wakes).map(first_call).collect());
        let woken = || {
            node.swap_out("sleeper");
            pause();
            sleeper.call("count", b"", Durability::Process)
        };
        side.push(repeat(wakes, woken));
    }
    table(
        "Wake of a swapped process by a call on its open connection, everything on one core",
        &[("first call of a new process, from the pool", &floor), ("wake", &side)],
    );
}

/// Lets the pool fill up.
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
