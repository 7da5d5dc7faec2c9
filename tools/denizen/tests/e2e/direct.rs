//! Connections that a process was given: taken back when it ends, woken by a byte, reset when nobody knows where their stream stands. What
//! callers get over them is in `data_port`, as over those that are relayed.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use denizen_framed::{Connection, Options, Request};
use denizen_protocol::client::Call;
use denizen_protocol::token::Claims;
use denizen_protocol::{DrainReason, Hello, PADDING, Retry, padding};
use rustix::process::Signal;

use crate::node::{Node, PATIENCE, Start, await_within, c_image_with, is_alive, signal};
use crate::peer::{Mode, Peer, address, claims, hello, issue, now_s, resident_bytes};

fn with_faulty() -> Node {
    Mode::Ring.with_faulty()
}

/// Connections of a process: those that its sandbox has, and those at rest.
fn connections(node: &Node, process: &str) -> (u64, u64) {
    let told = node.process("faulty", process);
    let count = |which: &str| told["connections"][which].as_u64().unwrap();
    (count("given"), count("parked"))
}

fn await_connections(node: &Node, process: &str, wanted: (u64, u64)) {
    let there = || connections(node, process) == wanted;
    let otherwise = || format!("{:?}, not {wanted:?}\n{}", connections(node, process), node.said());
    await_within(PATIENCE, there, otherwise);
}

fn swap_out(node: &Node, process: &str) {
    let path = format!("/v1/apps/faulty/processes/{process}/swap-out");
    let reply = node.control("POST", &path);
    assert_eq!(reply.status, 200, "{}\n{}", reply.body(), node.said());
}

fn pid(node: &Node, process: &str) -> u32 {
    u32::try_from(node.process("faulty", process)["pid"].as_u64().expect("it has a sandbox")).unwrap()
}

/// The bytes of a whole call, for who sends them in pieces.
fn call_bytes(peer: &mut Peer, call: &Call<'_>, body: &[u8]) -> (u64, Vec<u8>) {
    let mut out = Vec::new();
    let id = peer.protocol.call(call, body.len(), true, &mut out).unwrap();
    out.extend_from_slice(body);
    out.extend_from_slice(&PADDING[..padding(body.len())]);
    (id, out)
}

#[test]
fn a_connection_is_given_with_its_first_byte_and_goes_with_its_client() {
    let node = with_faulty();
    let mut peer = Peer::open(&node, "a");
    assert_eq!(connections(&node, "a"), (0, 1), "it has said nothing yet");
    for count in 1..=5 {
        assert_eq!(peer.count(), count.to_string());
    }
    assert_eq!(connections(&node, "a"), (1, 0));
    let told = node.process("faulty", "a");
    assert_eq!((&told["direct_calls"], &told["invocations"]), (&5.into(), &5.into()), "{told}");
    let mut others: Vec<_> = (0..20).map(|_| Peer::open(&node, "a")).collect();
    assert!(others.iter_mut().all(|other| other.call("value", b"").unwrap().text() == "5"));
    assert_eq!(connections(&node, "a"), (21, 0));
    drop(others);
    await_connections(&node, "a", (1, 0));
    assert_eq!(node.call("faulty", "a", "value", b"").body(), "5", "the node's own calls go beside");
    assert_eq!(peer.count(), "6");
    drop(peer);
    await_connections(&node, "a", (0, 0));
}

#[test]
fn half_a_call_survives_a_drain_and_its_other_half_wakes_the_process() {
    let node = with_faulty();
    let mut peer = Peer::open(&node, "sleeper");
    let mut expected = 0;
    let whole = call_bytes(&mut Peer::open(&node, "sleeper"), &Call::new("echo"), &[b'x'; 40]).1.len();
    for cut in [1, 16, 31, 32, 33, 47, 60, whole - 41, whole - 8, whole - 1] {
        let (id, bytes) = call_bytes(&mut peer, &Call::new("echo"), &[b'x'; 40]);
        let cut = cut.min(bytes.len() - 1);
        peer.stream.write_all(&bytes[..cut]).unwrap();
        await_connections(&node, "sleeper", (1, 0));
        // The sandbox has read it, or not; both must do.
        if cut % 2 == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        swap_out(&node, "sleeper");
        assert_eq!(node.process("faulty", "sleeper")["phase"], "swapped", "half a call wakes nobody");
        assert_eq!(connections(&node, "sleeper"), (0, 1));
        peer.stream.write_all(&bytes[cut..]).unwrap();
        match peer.end(id) {
            Ok(done) => assert_eq!(done.body, [b'x'; 40]),
            // Its body was not all there: it was refused, and the rest of the body is skipped.
            Err(problem) => assert_eq!(problem.retry, Retry::Safe, "{problem:?}"),
        }
        expected += 1;
        assert_eq!(peer.count(), expected.to_string(), "after a cut at {cut}");
    }
}

#[test]
fn a_token_ends_its_connection_under_a_sandbox_that_is_stopped() {
    let node = with_faulty();
    let token = issue(&node, &Claims { expires_s: now_s() + 4, ..claims() });
    let mut peer = Peer::with(&node, &Hello { token, ..Hello::new("faulty", Some("p")) });
    assert_eq!(peer.count(), "1");
    signal(pid(&node, "p"), Signal::STOP);
    peer.until(|peer| peer.over);
    assert!(peer.drained.is_none(), "a sandbox that is stopped has told it");
    signal(pid(&node, "p"), Signal::CONT);
    node.assert_others_work("faulty");
}

#[test]
fn a_call_that_runs_when_a_token_is_about_to_expire_has_its_end() {
    let node = with_faulty();
    let token = issue(&node, &Claims { expires_s: now_s() + 3, ..claims() });
    let mut peer = Peer::with(&node, &Hello { token, ..Hello::new("faulty", Some("p")) });
    let mut out = Vec::new();
    let id = peer.protocol.call(&Call::new("echo"), 0, false, &mut out).unwrap();
    peer.stream.write_all(&out).unwrap();
    peer.until(|peer| peer.drained.is_some());
    assert_eq!(connections(&node, "p"), (1, 0), "{:?}", peer.ended);
    out.clear();
    peer.protocol.data(id, 16, true, &mut out).unwrap();
    out.extend_from_slice(&[b'x'; 16]);
    peer.stream.write_all(&out).unwrap();
    assert_eq!(peer.end(id).unwrap().body, [b'x'; 16]);
    peer.until(|peer| peer.over);
    assert!(peer.refused.is_none(), "{:?}", peer.refused);
    await_connections(&node, "p", (0, 0));
}

#[test]
fn half_a_frame_at_rest_ends_its_connection_in_time_and_wakes_nobody() {
    let node = with_faulty();
    let mut quiet = Peer::open(&node, "sleeper");
    let mut late: Vec<Peer> = (0..4).map(|_| Peer::open(&node, "sleeper")).collect();
    for (peer, cut) in late.iter_mut().zip([1, 31, 40, 1000]) {
        let bytes = call_bytes(peer, &Call::new("echo"), &[b'x'; 4000]).1;
        peer.stream.write_all(&bytes[..cut]).unwrap();
    }
    await_connections(&node, "sleeper", (late.len() as u64, 1));
    swap_out(&node, "sleeper");
    await_connections(&node, "sleeper", (0, 1 + late.len() as u64));
    let epoch = node.process("faulty", "sleeper")["epoch"].clone();
    for peer in &mut late {
        peer.until(|peer| peer.over);
    }
    await_connections(&node, "sleeper", (0, 1));
    let told = node.process("faulty", "sleeper");
    assert_eq!((&told["phase"], &told["epoch"]), (&"swapped".into(), &epoch), "somebody woke it: {told}");
    assert_eq!(quiet.count(), "1", "who owes nothing stays");
}

#[test]
fn drains_at_any_moment_lose_no_call_and_double_none() {
    drains(300, Duration::from_secs(30), 0x2545_F491_4F6C_DD1D);
}

#[test]
#[ignore = "ten minutes"]
fn soak_thousands_of_drains() {
    for seed in 1..=8 {
        drains(400, Duration::from_secs(120), 0x2545_F491_4F6C_DD1D_u64.wrapping_mul(seed));
    }
}

/// Swaps a process out at random instants, while calls pour in over a connection of its own, at most so often and for about so long.
fn drains(most: u32, time: Duration, seed: u64) {
    let node = with_faulty();
    let done = AtomicBool::new(false);
    /// Whatever happens, the traffic ends.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (made, refused) = std::thread::scope(|scope| {
        let ends = Ends(&done);
        let peer = Peer::open(&node, "busy");
        let traffic = scope.spawn(|| pipelined(peer, &done));
        let begun = Instant::now();
        let (mut drains, mut instants) = (0, Instants(seed));
        while drains < most && begun.elapsed() < time {
            std::thread::sleep(Duration::from_micros(instants.next() % 20_000));
            swap_out(&node, "busy");
            drains += 1;
        }
        println!("{drains} drains");
        assert!(drains > 30, "{drains} drains");
        drop(ends);
        traffic.join().unwrap()
    });
    println!("{made} calls, {refused} refused");
    assert!(made > 1000 && refused < made, "{made} calls, {refused} refused");
    assert_eq!(node.call("faulty", "busy", "value", b"").body(), made.to_string());
}

/// Numbers that decide when something happens (xorshift).
struct Instants(u64);

impl Instants {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn a_node_killed_at_any_moment_loses_no_answered_call() {
    kills(4, 0x9E37_79B9_7F4A_7C15);
}

#[test]
#[ignore = "five minutes"]
fn soak_hundreds_of_killed_nodes() {
    kills(300, 0xD1B5_4A32_D192_ED03);
}

/// Kills the node at random instants while calls come over a connection that a sandbox has, every other time with the sandbox stopped.
fn kills(rounds: u32, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let start = || Mode::Ring.start().dir(dir.path()).node();
    let mut node = start();
    node.deploy(crate::node::faulty_image());
    let mut instants = Instants(seed);
    let (mut answered, mut sent) = (0, 0);
    for round in 0..rounds {
        let peer = Peer::open(&node, "busy");
        let traffic = std::thread::spawn(move || until_it_breaks(peer));
        await_connections(&node, "busy", (1, 0));
        let sandbox = pid(&node, "busy");
        std::thread::sleep(Duration::from_micros(instants.next() % 50_000));
        if instants.next() & 1 == 0 {
            signal(sandbox, Signal::STOP);
        }
        std::thread::sleep(Duration::from_micros(instants.next() % 2_000));
        node.kill();
        let (last, made) = traffic.join().unwrap();
        (answered, sent) = (last.max(answered), sent + made);
        let gone = || !is_alive(u64::from(sandbox));
        await_within(Duration::from_secs(10), gone, || {
            format!("round {round}: the sandbox outlives its node")
        });
        node = start();
        let value: u64 = Peer::open(&node, "busy").call("value", b"").unwrap().text().parse().unwrap();
        let range = answered..=sent;
        assert!(range.contains(&value), "round {round}: {value}, and {answered} were answered of {sent}");
        (answered, sent) = (value, value);
    }
    assert!(answered > 0);
}

/// Calls, eight at a time, until the connection is lost: gives the last count that was answered, and how many calls were sent.
fn until_it_breaks(mut peer: Peer) -> (u64, u64) {
    let (mut last, mut sent) = (0, 0);
    while !peer.over {
        let mut out = Vec::new();
        for _ in 0..8 {
            out.extend_from_slice(&call_bytes(&mut peer, &Call::new("count"), b"").1);
            sent += 1;
        }
        if peer.stream.write_all(&out).is_err() {
            break;
        }
        while !peer.over && peer.ended.len() < 8 {
            peer.read();
        }
        for (_, ended) in std::mem::take(&mut peer.ended) {
            last = last.max(ended.unwrap().text().parse().unwrap());
        }
    }
    (last, sent)
}

/// Calls over a connection as fast as they end, sixteen at a time, until it is `done`: gives how many were executed, and how many were not.
fn pipelined(mut peer: Peer, done: &AtomicBool) -> (u64, u64) {
    let (mut under_way, mut seen, mut refused) = (Vec::new(), Vec::new(), 0);
    while !done.load(Ordering::Relaxed) || !under_way.is_empty() {
        while under_way.len() < 16 && !done.load(Ordering::Relaxed) {
            under_way.push(peer.begin(&Call::new("count"), &[7; 100]));
        }
        peer.until(|peer| !peer.ended.is_empty());
        for (id, ended) in std::mem::take(&mut peer.ended) {
            under_way.retain(|one| *one != id);
            match ended {
                Ok(done) => seen.push(done.text().parse::<u64>().unwrap()),
                Err(problem) => {
                    assert_eq!(problem.retry, Retry::Safe, "{problem:?}");
                    refused += 1;
                    assert!(refused < 10_000, "{} calls were made; the last: {problem:?}", seen.len());
                }
            }
        }
    }
    seen.sort_unstable();
    let count = seen.len() as u64;
    assert!(seen.iter().copied().eq(1..=count), "a count came twice, or never");
    (count, refused)
}

#[test]
fn a_crash_resets_and_the_client_resumes() {
    let node = with_faulty();
    let token = node.ok(&["token", "issue", "--app", "faulty"]);
    let options = Options::new(address(&node).to_string(), "faulty").process("victim").token(token.trim());
    let mut client = Connection::open(options).unwrap();
    let text = |reply: denizen_framed::Reply| String::from_utf8(reply.body.to_vec()).unwrap();
    assert_eq!(text(client.call("count", b"").unwrap()), "1");
    let error = client.call("abort", b"").unwrap_err();
    assert_eq!(error.retry(), Retry::Unknown, "{error}");
    assert_eq!(text(client.call("count", b"").unwrap()), "2", "the same client, on another connection");
    Mode::Ring.assert_served(&node, "victim");
    // Out of nowhere, with calls under way that may be made again.
    for round in 0..5 {
        let before = client.call(Request::new("value"), b"").unwrap();
        let before: u64 = text(before).parse().unwrap();
        signal(pid(&node, "victim"), Signal::KILL);
        let after = client.call("count", b"").or_else(|_| client.call("count", b"")).unwrap();
        let after: u64 = text(after).parse().unwrap();
        assert!((before + 1..=before + 2).contains(&after), "round {round}: {before}, then {after}");
    }
    node.assert_others_work("faulty");
}

#[test]
fn a_reset_comes_at_once() {
    let node = with_faulty();
    let mut peer = Peer::open(&node, "a");
    assert_eq!(peer.count(), "1");
    let pid = pid(&node, "a");
    signal(pid, Signal::KILL);
    let begun = Instant::now();
    let error = peer.stream.read(&mut [0; 1]).expect_err("a reset, and no end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(1), "after {:?}", begun.elapsed());
    await_connections(&node, "a", (0, 0));
    assert_eq!(Peer::open(&node, "a").count(), "2");
}

#[test]
fn a_token_that_expires_ends_its_connection_wherever_it_is() {
    let node = with_faulty();
    let short = |process: &str, ttl_s: u64| {
        let token = issue(&node, &Claims { expires_s: now_s() + ttl_s, ..claims() });
        Peer::with(&node, &Hello { token, ..Hello::new("faulty", Some(process)) })
    };
    let mut long = Peer::open(&node, "given");
    assert_eq!(long.count(), "1");
    let (mut given, mut parked) = (short("given", 6), short("parked", 6));
    assert_eq!(given.count(), "2");
    assert_eq!((connections(&node, "given"), connections(&node, "parked")), ((2, 0), (0, 1)));
    // Told before, and let go at once where nothing runs.
    for peer in [&mut given, &mut parked] {
        peer.until(|peer| peer.over);
        assert_eq!(peer.drained.as_ref().map(|drain| drain.reason), Some(DrainReason::TokenExpires));
        assert!(peer.refused.is_none(), "its token has not expired yet: {:?}", peer.refused);
    }
    await_connections(&node, "given", (1, 0));
    assert_eq!(connections(&node, "parked"), (0, 0));
    assert_eq!(long.count(), "3", "others go on");
}

#[test]
fn a_sandbox_that_is_stopped_when_it_gets_a_connection_is_ended() {
    let node = with_faulty();
    assert_eq!(Peer::open(&node, "stopped").count(), "1");
    let mut peer = Peer::open(&node, "stopped");
    let stopped = pid(&node, "stopped");
    signal(stopped, Signal::STOP);
    let begun = Instant::now();
    peer.begin(&Call::new("count"), b"");
    node.assert_others_work("faulty");
    peer.until(|peer| peer.over);
    assert!(begun.elapsed() < Duration::from_secs(15), "after {:?}", begun.elapsed());
    assert_eq!(peer.protocol.lost().unfinished.len(), 1, "nobody knows what became of it");
    assert!(!is_alive(u64::from(stopped)));
    assert_eq!(Peer::open(&node, "stopped").count(), "2");
    // One that has a connection and is stopped then does not keep the node from stopping.
    let mut peer = Peer::open(&node, "stopped");
    assert_eq!(peer.count(), "3");
    signal(pid(&node, "stopped"), Signal::STOP);
    let mut node = node;
    let begun = Instant::now();
    node.stop();
    assert!(begun.elapsed() < Duration::from_secs(30), "after {:?}", begun.elapsed());
}

#[test]
fn a_node_that_is_killed_beside_a_stopped_sandbox_takes_it_along() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Mode::Ring.start().dir(dir.path()).node();
    let mut node = start();
    node.deploy(crate::node::faulty_image());
    let mut peer = Peer::open(&node, "a");
    assert_eq!(peer.count(), "1");
    let stopped = pid(&node, "a");
    signal(stopped, Signal::STOP);
    peer.begin(&Call::new("count"), b"");
    node.kill();
    let gone = || !is_alive(u64::from(stopped));
    await_within(Duration::from_secs(10), gone, || "the sandbox outlives its agent".to_owned());
    peer.until(|peer| peer.over);
    let node = start();
    assert_eq!(Peer::open(&node, "a").count(), "2");
}

#[test]
fn a_direct_call_that_is_deaf_is_ended_at_its_deadline() {
    let node = with_faulty();
    let mut peer = Peer::open(&node, "deaf");
    assert_eq!(peer.count(), "1");
    let call = Call { deadline_ms: NonZeroU32::new(300), ..Call::new("loop_for_ever") };
    peer.begin(&call, b"");
    let begun = Instant::now();
    peer.until(|peer| peer.over);
    let after = begun.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&after), "after {after:?}");
    assert_eq!(Peer::open(&node, "deaf").count(), "2");
}

#[test]
fn an_idle_process_is_swapped_out_and_a_busy_one_is_not() {
    let node = Mode::Ring.start().args(&["--idle", "700ms"]).node();
    node.deploy(crate::node::faulty_image());
    let mut idle = Peer::open(&node, "idle");
    assert_eq!(idle.count(), "1");
    let mut busy = Peer::open(&node, "busy");
    let epoch = busy.call("count", b"").unwrap().epoch;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(busy.call("value", b"").unwrap().epoch, epoch, "it was swapped out between two calls");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(node.process("faulty", "idle")["phase"], "swapped");
    assert_eq!(connections(&node, "idle"), (0, 1));
    assert_eq!(idle.count(), "2");
    node.await_phase("faulty", "busy", "swapped");
}

#[test]
fn a_process_that_is_deleted_says_goodbye() {
    let node = with_faulty();
    let mut peers: Vec<_> = (0..3).map(|_| Peer::open(&node, "doomed")).collect();
    assert_eq!(peers[0].count(), "1");
    assert_eq!(node.control("DELETE", "/v1/apps/faulty/processes/doomed").status, 204);
    for mut peer in peers {
        peer.until(|peer| peer.over);
        assert!(peer.drained.is_some());
        assert_eq!(peer.refused.map(|problem| problem.kind), Some("unknown-process".to_owned()));
    }
}

#[test]
fn a_connection_outlives_new_images_whatever_they_want() {
    let flags = ["-Wno-unused-result", "-pthread"];
    let image = |policy| c_image_with("moving", include_str!("hostile.c"), &flags, policy);
    let node = Mode::Ring.start().node();
    node.deploy(&image(""));
    let token = issue(&node, &Claims { app: "moving".to_owned(), ..claims() });
    let hello = Hello { token, ..Hello::new("moving", Some("a")) };
    let (mut used, mut unused) = (Peer::with(&node, &hello), Peer::with(&node, &hello));
    assert_eq!(used.count(), "1");
    let seen = || {
        let told = node.process("moving", "a");
        ["given", "parked"].map(|which| told["connections"][which].as_u64().unwrap())
    };
    assert_eq!(seen(), [1, 1]);
    node.deploy(&image("[limits]\ndeadline = \"3s\"\n"));
    assert_eq!(seen(), [0, 2], "they rest until somebody says something");
    assert_eq!(used.count(), "2");
    assert_eq!(seen(), [1, 1]);
    node.deploy(&image("isolation = \"relay\"\n"));
    assert_eq!((used.count().as_str(), unused.count().as_str()), ("3", "4"));
    assert_eq!(seen(), [0, 0], "they are relayed");
    node.deploy(&image(""));
    assert_eq!(used.count(), "5");
    let mut new = Peer::with(&node, &hello);
    assert_eq!((new.count().as_str(), seen()), ("6", [1, 0]));
}

#[test]
fn a_connection_waits_out_a_process_that_crashes() {
    let node = with_faulty();
    let mut peer = Peer::open(&node, "crashes");
    // After some crashes in a row it is not started at once any more; after six of them not for a second.
    let mut crashes = 0;
    while crashes < 6 {
        crashes += u32::from(node.call("faulty", "crashes", "abort", b"").status == 500);
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut problems = Vec::new();
    let begun = Instant::now();
    let count = loop {
        match peer.call("count", b"") {
            Ok(done) => break done.text().to_owned(),
            Err(problem) => problems.push(problem),
        }
        assert!(begun.elapsed() < PATIENCE, "{problems:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(count, "1");
    assert!(!problems.is_empty(), "it was started at once");
    for problem in problems {
        assert_eq!((problem.kind.as_str(), problem.retry), ("crash-looping", Retry::Safe), "{problem:?}");
    }
    assert_eq!(peer.count(), "2");
    assert_eq!(peer.count(), "3");
    Mode::Ring.assert_served(&node, "crashes");
}

#[test]
fn a_thousand_connections_at_rest_cost_little_memory_and_no_time() {
    const COUNT: usize = 1000;
    let node = Start::new().args(&["--isolation", "ring", "--executors", "1"]).node();
    node.deploy(crate::node::faulty_image());
    let greet = || Peer::with(&node, &hello(&node, Some("many"))).stream;
    let mut streams: Vec<TcpStream> = (0..50).map(|_| greet()).collect();
    let before = resident_bytes(node.pid());
    streams.extend((0..COUNT).map(|_| greet()));
    let each = resident_bytes(node.pid()).saturating_sub(before) / COUNT as u64;
    println!("{each} bytes for each connection at rest");
    assert!(each < 2048, "{each} bytes for each connection at rest");
    assert_eq!(connections(&node, "many"), (0, COUNT as u64 + 50));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks() - before;
    assert!(used <= 2, "{used} ticks in two seconds of nothing");
}
