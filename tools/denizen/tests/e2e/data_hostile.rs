//! Bad input on the data port: callers who are slow, silent, many, forged or wrong, on purpose or not. After each of them the node answers
//! others, and ends when it is told to. The same over connections that are given away and over those that are relayed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use denizen_protocol::client::Call;
use denizen_protocol::limits::{HANDSHAKE_MS, MAX_FRAME_BODY, MAX_HEAD, MIN_WINDOW, STALL_MS};
use denizen_protocol::token::{Claims, SecretKey};
use denizen_protocol::{Hello, PADDING, padding};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size, set_socket_send_buffer_size};

use crate::isolation::has_rings;
use crate::node::{DENIZEN, Node, PATIENCE, Start, await_within, c_image_with, faulty_image};
use crate::peer::{Mode, Peer, claims, hello, in_both_modes, issue, now_s, raw, resident_bytes, rest};

in_both_modes! {
    slow_hellos_are_closed_in_time,
    half_open_connections_make_way_for_those_who_mean_it,
    floods_of_bad_tokens_open_nothing_and_hold_nobody_up,
    what_is_begun_or_not_taken_ends_in_time,
    hellos_of_every_wrong_kind_are_refused,
    numbers_at_their_limits_do_what_is_written,
    a_call_that_is_cut_short_anywhere_is_not_executed,
    random_bytes_end_their_connection_only,
    changed_conversations_end_their_connection_only,
    who_never_reads_is_read_no_further,
    an_application_has_its_share_of_connections_and_gets_it_back,
    resets_in_the_middle_of_bodies_give_everything_back,
    connections_that_come_and_go_leave_nothing_behind,
}

const HANDSHAKE: Duration = Duration::from_millis(HANDSHAKE_MS as u64);
const STALL: Duration = Duration::from_millis(STALL_MS as u64);
/// The most body in a frame, as a header has it.
const MOST_BODY: u32 = 1 << 20;
/// The longest head, as a header has it.
const MOST_HEAD: u16 = 8 << 10;
const _: () = assert!(MOST_BODY as usize == MAX_FRAME_BODY && MOST_HEAD as usize == MAX_HEAD);
/// What a busy machine may add to a limit.
const SLACK: Duration = Duration::from_secs(10);
/// How long a node may take to stop.
const STOP: Duration = Duration::from_secs(20);

/// The end of each test: others are served, and the node stops.
fn ends_well(mut node: Node) {
    node.assert_others_work("faulty");
    assert!(Peer::open(&node, "bystander").call("value", b"").is_ok());
    let begun = Instant::now();
    assert_eq!(node.stop(), Some(0), "{}", node.said());
    assert!(begun.elapsed() < STOP, "it took {:?} to stop\n{}", begun.elapsed(), node.said());
}

/// Does something while another caller makes calls, each of which must be answered soon.
fn beside<T>(node: &Node, attack: impl FnOnce() -> T) -> T {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Ends(&done);
        let other = scope.spawn(|| {
            let (mut peer, mut slowest) = (Peer::open(node, "beside"), Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                peer.call("value", b"").unwrap();
                slowest = slowest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            slowest
        });
        let result = attack();
        drop(ends);
        let slowest = other.join().expect("another caller is served");
        assert!(slowest < SLACK, "another caller waited {slowest:?}");
        result
    })
}

fn hello_bytes(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    hello.encode(&mut bytes).unwrap();
    bytes
}

/// A call with its whole input.
fn call_bytes(peer: &mut Peer, call: &Call<'_>, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    peer.protocol.call(call, body.len(), true, &mut out).unwrap();
    out.extend_from_slice(body);
    out.extend_from_slice(&PADDING[..padding(body.len())]);
    out
}

/// Whether it was closed, without a word.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => panic!("a stranger is talked to"),
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// Closes it so that the other end meets an error.
fn reset(stream: &TcpStream) {
    set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

/// Connections that a process has, wherever they are.
fn connections(node: &Node, process: &str) -> u64 {
    let told = node.process("faulty", process);
    ["given", "parked"].iter().map(|which| told["connections"][which].as_u64().unwrap()).sum()
}

fn sandbox(node: &Node, process: &str) -> u32 {
    u32::try_from(node.process("faulty", process)["pid"].as_u64().expect("it has a sandbox")).unwrap()
}

/// Numbers that nobody chose, from a seed that a failed test prints.
struct Dice(u64);

impl Dice {
    /// `DENIZEN_TEST_SEED`, or one of the moment.
    fn new() -> Dice {
        let of_now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
        let given = std::env::var("DENIZEN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = given.unwrap_or_else(of_now);
        println!("DENIZEN_TEST_SEED={seed}");
        Dice(seed ^ 0x9E37_79B9_7F4A_7C15)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() >> 16).unwrap() % bound
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll().to_le_bytes()[3]).collect()
    }
}

/// A header, and what it says of itself.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    body: u32,
    kind: u8,
    flags: u8,
    head: u16,
    id: u64,
    a: u32,
    b: u32,
    c: u64,
}

impl Head {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = self.body.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(&self.head.to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.a.to_le_bytes());
        bytes.extend_from_slice(&self.b.to_le_bytes());
        bytes.extend_from_slice(&self.c.to_le_bytes());
        bytes
    }

    /// A CALL of `echo` by name that goes on in DATA.
    fn call(self) -> Vec<u8> {
        let head = Head { kind: 72, head: 24, a: u32::MAX, id: 1, ..self };
        let fixed = [0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0];
        [&head.bytes()[..], &fixed, &[3, 0, 4, 0], b"echo", &[0; 8]].concat()
    }
}

fn slow_hellos_are_closed_in_time(mode: Mode) {
    let node = mode.with_faulty();
    let whole = hello_bytes(&hello(&node, Some("slow")));
    let first = beside(&node, || {
        let begun = Instant::now();
        let mut slow: Vec<_> = (0..20).map(|_| raw(&node)).collect();
        let mut first = None;
        for byte in &whole[..whole.len() - 1] {
            slow.retain_mut(|stream| {
                let _ = stream.write(&[*byte]);
                !is_closed(stream)
            });
            if slow.len() < 20 {
                first.get_or_insert(begun.elapsed());
            }
            if slow.is_empty() || begun.elapsed() > HANDSHAKE + SLACK {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(slow.is_empty(), "{} are listened to after {:?}", slow.len(), begun.elapsed());
        first.unwrap()
    });
    assert!(first + Duration::from_millis(500) > HANDSHAKE, "closed after {first:?}");
    assert_eq!(Peer::open(&node, "slow").count(), "1");
    ends_well(node);
}

fn half_open_connections_make_way_for_those_who_mean_it(mode: Mode) {
    let node = mode.start().args(&["--executors", "1"]).node();
    node.deploy(faulty_image());
    Peer::open(&node, "a").count();
    // A machine that is busy may be too slow to show which came first.
    let shown = (0..3).any(|_| {
        let begun = Instant::now();
        let mut idle: Vec<_> = (0..300).map(|_| raw(&node)).collect();
        let before = Instant::now();
        assert!(Peer::open(&node, "a").call("value", b"").is_ok(), "a caller who means it is served");
        assert!(before.elapsed() < Duration::from_secs(2), "after {:?}", before.elapsed());
        let (old, new) = idle.split_at_mut(45);
        let until = begun + HANDSHAKE - Duration::from_millis(800);
        let mut open = old.len();
        while open > 0 && Instant::now() < until {
            open = old.iter_mut().filter_map(|stream| (!is_closed(stream)).then_some(())).count();
            std::thread::sleep(Duration::from_millis(20));
        }
        let stay = new.iter_mut().all(|stream| !is_closed(stream));
        let in_time = Instant::now() < begun + HANDSHAKE - Duration::from_millis(500);
        for stream in &mut idle {
            stream.set_nonblocking(false).unwrap();
            assert_eq!(rest(stream), b"", "a stranger is not talked to");
        }
        assert!(!in_time || stay, "more were closed than had to make way");
        open == 0 && in_time
    });
    assert!(shown, "the oldest did not make way");
    ends_well(node);
}

fn floods_of_bad_tokens_open_nothing_and_hold_nobody_up(mode: Mode) {
    let node = mode.with_faulty();
    let good = issue(&node, &claims());
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let for_process = |process: &str| Claims { process: Some(process.to_owned()), ..claims() };
    let tokens = [
        (forged, "token-bad-signature"),
        (SecretKey::from_random(&[9; 32]).issue(&claims()).unwrap(), "token-unknown-key"),
        (issue(&node, &Claims { expires_s: now_s() - 1, ..claims() }), "token-expired"),
        (issue(&node, &for_process("other")), "token-wrong-process"),
        (issue(&node, &Claims { app: "other".to_owned(), ..claims() }), "token-wrong-app"),
    ];
    let refused = beside(&node, || {
        let flood = |seed: usize| {
            let begun = Instant::now();
            let mut count = 0;
            while begun.elapsed() < Duration::from_secs(3) {
                let (token, cause) = &tokens[(seed + count) % tokens.len()];
                // One in three closes before it hears the answer.
                let hello = Hello { token: token.clone(), ..Hello::new("faulty", Some("flooded")) };
                let mut peer = Peer::greet(&node, &hello);
                if count % 3 != 2 {
                    peer.until(|peer| peer.refused.is_some() || peer.accepted.is_some());
                    let refused = peer.refused.unwrap_or_else(|| panic!("not refused: {cause}"));
                    assert_eq!(refused.cause.as_deref(), Some(*cause));
                }
                count += 1;
            }
            count
        };
        std::thread::scope(|scope| {
            let floods: Vec<_> = (0..4).map(|seed| scope.spawn(move || flood(seed))).collect();
            floods.into_iter().map(|one| one.join().unwrap()).sum::<usize>()
        })
    });
    assert!(refused > 50, "{refused} were refused");
    let told = node.get("/v1/apps/faulty/processes/flooded");
    assert_eq!(told.status, 404, "a process was made for a stranger: {}", told.body());
    ends_well(node);
}

fn what_is_begun_or_not_taken_ends_in_time(mode: Mode) {
    // One that is at rest, because its process was swapped out, may stay so.
    let node = mode.start().args(&["--idle", "10m"]).node();
    node.deploy(faulty_image());
    let call = call_bytes(&mut Peer::open(&node, "a"), &Call::new("count"), &[7; 40]);
    let part = call.len() - 20;
    let mut stuck = Vec::new();
    // Some in a process of their own, where nobody else makes it look; "" for none.
    for (process, cut) in [
        ("f", 1),
        ("a", 1),
        ("b", 40),
        ("c", part),
        ("d", 1),
        ("d", 40),
        ("d", part),
        ("", 1),
        ("", 40),
        ("", part),
    ] {
        let named = Some(process).filter(|name| !name.is_empty());
        let mut peer = Peer::with(&node, &hello(&node, named));
        peer.stream.write_all(&call[..cut]).unwrap();
        stuck.push((process, cut, Instant::now(), peer.stream));
    }
    // A reply that waits for credit, which never comes.
    for process in ["e", ""] {
        let named = Some(process).filter(|name| !name.is_empty());
        let windows = Hello { call_window: MIN_WINDOW, connection_window: MIN_WINDOW, ..hello(&node, named) };
        let mut peer = Peer::with(&node, &windows);
        peer.begin_in_pieces(&Call::new("echo"), &[5; 200_000], 50_000);
        stuck.push((process, usize::MAX, Instant::now(), peer.stream));
    }
    // One that goes on for a while, and stops then.
    std::thread::sleep(Duration::from_secs(3));
    for (process, cut, begun, stream) in &mut stuck {
        if (*process, *cut) == ("f", 1) {
            stream.write_all(&call[1..40]).unwrap();
            *begun = Instant::now();
        }
    }
    let begun = Instant::now();
    beside(&node, || {
        let mut heard = vec![Vec::new(); stuck.len()];
        let mut open: Vec<_> = stuck.iter_mut().zip(&mut heard).collect();
        while !open.is_empty() {
            open.retain_mut(|((process, cut, begun, stream), heard)| {
                let over = reads_until_over(stream, heard);
                let after = begun.elapsed();
                if over {
                    println!("{process:?}, {cut}: over after {after:?}");
                    assert!(after + Duration::from_secs(1) > STALL, "too soon");
                }
                !over
            });
            let left: Vec<_> = open
                .iter()
                .map(|((process, cut, ..), heard)| (process, cut, String::from_utf8_lossy(heard)))
                .collect();
            assert!(begun.elapsed() < STALL + SLACK, "{left:?} go on for ever");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    for process in ["a", "b", "c"] {
        assert_eq!(Peer::open(&node, process).count(), "1", "what was cut short was executed");
    }
    ends_well(node);
}

/// Whether it was closed, or its one call was ended.
fn reads_until_over(stream: &mut TcpStream, heard: &mut Vec<u8>) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut some = [0; 8192];
    let over = loop {
        match stream.read(&mut some) {
            Ok(0) => break true,
            Ok(count) => heard.extend_from_slice(&some[..count]),
            Err(error) => break error.kind() != ErrorKind::WouldBlock,
        }
    };
    let most = MIN_WINDOW as usize + 8192;
    assert!(heard.len() < most, "{} bytes came without credit", heard.len());
    over || String::from_utf8_lossy(heard).contains("caller-gone")
}

fn hellos_of_every_wrong_kind_are_refused(mode: Mode) {
    let node = mode.with_faulty();
    let good = hello_bytes(&hello(&node, Some("a")));
    let changed = |at: usize, bytes: &[u8]| {
        let mut hello = good.clone();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        hello
    };
    let cases = [
        (changed(16, &[0, 0, 0, 0]), "unsupported-version"),
        (changed(16, &[2, 0, 255, 255]), "unsupported-version"),
        (changed(16, &[255, 255, 255, 255]), "unsupported-version"),
        (changed(0, &[1, 0, 0, 0]), "body-too-long"),
        (changed(0, &[255; 4]), "body-too-long"),
        (changed(5, &[1]), "bad-flags"),
        (changed(6, &[0, 0]), "bad-head-length"),
        (changed(6, &[15, 0]), "bad-head-length"),
        (changed(6, &[255, 255]), "bad-head-length"),
        (changed(20, &[255; 4]), "bad-value"),
        (changed(32, &[0; 4]), "bad-value"),
        (changed(32, &[255; 4]), "bad-value"),
        (changed(40, &[1]), "reserved-not-zero"),
        (changed(48, &[255, 127]), "unknown-field"),
        (changed(50, &[255, 255]), "field-cut-short"),
        (changed(50, &[0, 0]), "bad-field"),
    ];
    for (bytes, name) in cases {
        let mut stream = raw(&node);
        stream.write_all(&bytes).unwrap();
        let told = String::from_utf8_lossy(&rest(&mut stream)).into_owned();
        assert!(told.contains(name), "{name}: {told:?}");
    }
    for at in [4, 8, 15] {
        let mut stream = raw(&node);
        stream.write_all(&changed(at, &[99])).unwrap();
        assert_eq!(rest(&mut stream), b"", "who greets otherwise is none of ours");
    }
    // The longest head that there may be, full of fields that nobody knows.
    let mut long = good[..32].to_vec();
    long[6..8].copy_from_slice(&4096_u16.to_le_bytes());
    long.extend_from_slice(&good[32..48]);
    long.extend_from_slice(&[255; 4080]);
    let mut stream = raw(&node);
    stream.write_all(&long).unwrap();
    assert!(String::from_utf8_lossy(&rest(&mut stream)).contains("protocol-error"));
    assert_eq!(Peer::open(&node, "a").count(), "1");
    ends_well(node);
}

fn numbers_at_their_limits_do_what_is_written(mode: Mode) {
    let node = mode.with_faulty();
    let data = |body, flags| Head { kind: 73, id: 1, body, flags, ..Head::default() }.bytes();
    let said = |c| Head { c, ..Head::default() };
    let credit = |id, a| Head { kind: 75, id, a, ..Head::default() }.bytes();
    // A byte of body, and its padding.
    let byte = [0; 16];
    let cases = [
        ("an unknown length", [said(u64::MAX).call(), data(0, 1)].concat(), ""),
        ("no length", [said(0).call(), data(1, 1), byte.to_vec()].concat(), "length-mismatch"),
        (
            "a length that is not kept",
            [said(9).call(), data(1, 1), byte.to_vec()].concat(),
            "length-mismatch",
        ),
        ("a huge length", said(u64::MAX - 1).call(), "body-too-large"),
        ("half of all", said(u64::MAX / 2).call(), "body-too-large"),
        ("a whole body of another length", Head { flags: 1, ..said(5) }.call(), "length-mismatch"),
        ("a frame over its limit", Head { body: MOST_BODY + 1, ..said(u64::MAX) }.call(), "body-too-long"),
        ("the longest", Head { body: u32::MAX, ..said(u64::MAX) }.call(), "body-too-long"),
        (
            "more than the window",
            [Head { body: 1, ..said(u64::MAX) }.call(), byte.to_vec(), data(MOST_BODY, 0)].concat(),
            "window-exceeded",
        ),
        ("nothing and no end", [said(u64::MAX).call(), data(0, 0)].concat(), "empty-data"),
        ("data about nothing", data(0, 1), "unknown-call"),
        ("no credit", credit(0, 0), "bad-value"),
        ("all credit", credit(0, u32::MAX), "credit-overflow"),
        ("credit about nothing", credit(77, 1), "unknown-call"),
        (
            "a head over its limit",
            Head { kind: 72, head: MOST_HEAD + 1, id: 1, ..Head::default() }.bytes(),
            "bad-head-length",
        ),
        (
            "a head that is too short",
            Head { kind: 72, head: 15, id: 1, ..Head::default() }.bytes(),
            "bad-head-length",
        ),
        ("call 0", Head { kind: 72, head: 16, a: 0, ..Head::default() }.bytes(), "bad-id"),
        (
            "every flag",
            Head { kind: 72, head: 16, id: 1, flags: 255, ..Head::default() }.bytes(),
            "bad-flags",
        ),
        ("a ping with a head", Head { kind: 76, head: 1, ..Head::default() }.bytes(), "bad-head-length"),
        ("a ping with an id", Head { kind: 76, id: 1, ..Head::default() }.bytes(), "bad-id"),
    ];
    for (what, bytes, name) in cases {
        for process in [Some("a"), None] {
            let mut peer = Peer::with(&node, &hello(&node, process));
            peer.stream.write_all(&bytes).unwrap();
            let told = told_until(&mut peer.stream, name);
            assert!(told.contains(name), "{what}, {process:?}: {name}: {told:?}");
            let ended = ["", "body-too-large"].contains(&name);
            assert!(told.contains("protocol-error") != ended, "{what}: {told:?}");
        }
    }
    the_longest_head_is_read(&node);
    ends_well(node);
}

/// What comes until there is this word, or the end.
fn told_until(stream: &mut TcpStream, word: &str) -> String {
    let mut told = String::new();
    while told.is_empty() || !told.contains(word) {
        let mut some = [0; 4096];
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(count) => told.push_str(&String::from_utf8_lossy(&some[..count])),
            Err(error) => panic!("{word}: {error}, after {told:?}"),
        }
    }
    told
}

/// The longest head, filled with a field that nobody knows and that may be skipped; and the highest id, after which there is none.
fn the_longest_head_is_read(node: &Node) {
    let fixed = [0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0];
    let filler = MAX_HEAD - 16 - 9 - 4;
    let header = Head { kind: 72, flags: 1, head: MOST_HEAD, a: u32::MAX, id: u64::MAX, ..Head::default() };
    let length = u16::try_from(filler).unwrap().to_le_bytes();
    let call =
        [&header.bytes()[..], &fixed, &[3, 0, 5, 0], b"count", &[1, 128], &length, &vec![7; filler]].concat();
    for process in ["a", "long"] {
        let mut peer = Peer::open(node, process);
        peer.stream.write_all(&call).unwrap();
        let mut reply = [0; 32];
        peer.stream.read_exact(&mut reply).unwrap();
        assert_eq!((reply[4], reply[5] & 1, reply[8..16] == [255; 8]), (80, 1, true), "a reply, and whole");
        peer.stream.write_all(&call).unwrap();
        assert!(String::from_utf8_lossy(&rest(&mut peer.stream)).contains("id-not-increasing"));
    }
}

fn a_call_that_is_cut_short_anywhere_is_not_executed(mode: Mode) {
    let node = mode.with_faulty();
    let greeting = hello_bytes(&hello(&node, Some("cut")));
    // Without padding behind it: a call is whole with its last byte.
    let call = call_bytes(&mut Peer::open(&node, "cut"), &Call::new("count"), &[7; 16]);
    let whole = [&greeting[..], &call].concat();
    let early = (1..greeting.len()).step_by(7);
    for (round, cut) in early.chain(greeting.len()..whole.len()).enumerate() {
        let mut stream = raw(&node);
        stream.write_all(&whole[..cut]).unwrap();
        match round % 3 {
            0 => stream.shutdown(Shutdown::Write).unwrap(),
            1 => {
                reset(&stream);
                continue;
            }
            _ => {
                // It was read before the rest does not come.
                std::thread::sleep(Duration::from_millis(3));
                stream.shutdown(Shutdown::Write).unwrap();
            }
        }
        rest(&mut stream);
    }
    assert_eq!(Peer::open(&node, "cut").call("value", b"").unwrap().text(), "0");
    await_within(
        PATIENCE,
        || connections(&node, "cut") == 0,
        || format!("{}", node.process("faulty", "cut")),
    );
    ends_well(node);
}

fn random_bytes_end_their_connection_only(mode: Mode) {
    let node = mode.with_faulty();
    let mut dice = Dice::new();
    let mut other = Peer::open(&node, "noise");
    for round in 0..200 {
        let process = [Some("noise"), None][round % 2];
        let mut bytes = hello_bytes(&hello(&node, process));
        for _ in 0..dice.below(6) {
            if dice.below(3) == 0 {
                let len = dice.below(600);
                bytes.extend(dice.bytes(len));
                continue;
            }
            // Nearly a frame.
            let kind = [72, 72, 73, 74, 75, 76, 77, 80, 81, 82, 64][dice.below(11)];
            let len = [0, 0, 16, 24, 40][dice.below(5)];
            let small = |dice: &mut Dice| [0, 1, 2, u64::MAX, 1 << 40][dice.below(5)];
            let head = Head {
                body: u32::try_from(dice.below(40)).unwrap(),
                kind,
                flags: u8::try_from(dice.below(3)).unwrap(),
                head: len,
                id: small(&mut dice),
                a: u32::try_from(small(&mut dice) & u64::from(u32::MAX)).unwrap(),
                b: u32::try_from(dice.below(3)).unwrap(),
                c: small(&mut dice),
            };
            bytes.extend(head.bytes());
            let len = dice.below(100);
            bytes.extend(dice.bytes(len));
        }
        let mut stream = raw(&node);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        rest(&mut stream);
    }
    assert!(other.call("value", b"").is_ok(), "one that behaves goes on");
    ends_well(node);
}

fn changed_conversations_end_their_connection_only(mode: Mode) {
    let node = mode.with_faulty();
    let mut dice = Dice::new();
    let mut peer = Peer::open(&node, "changed");
    let mut talk = Vec::new();
    for round in 0..24_usize {
        let body = dice.bytes(round * round * 5);
        let function = ["echo", "count", "value", "keep"][round % 4];
        talk.extend(call_bytes(&mut peer, &Call::new(function), &body));
        if round % 5 == 4 {
            peer.protocol.ping(round as u64, &mut talk);
            talk.extend(Head { kind: 75, a: 1000, ..Head::default() }.bytes());
            talk.extend(Head { kind: 74, id: round as u64, ..Head::default() }.bytes());
        }
    }
    drop(peer);
    let mut other = Peer::open(&node, "changed");
    for _ in 0..100 {
        let mut talk = talk.clone();
        for _ in 0..=dice.below(4) {
            let (at, to) = (dice.below(talk.len()), dice.below(talk.len()));
            match dice.below(5) {
                0 => talk[at] ^= 1 << dice.below(8),
                1 => talk[at] = dice.roll().to_le_bytes()[5],
                2 => talk.swap(at, to),
                3 => drop(talk.drain(at.min(to)..at.max(to).min(at.min(to) + 48))),
                _ => {
                    let piece = talk[at.min(to)..at.max(to).min(at.min(to) + 200)].to_vec();
                    drop(talk.splice(at..at, piece));
                }
            }
        }
        let mut peer = Peer::open(&node, "changed");
        let _ = peer.stream.write_all(&talk);
        let _ = peer.stream.shutdown(Shutdown::Write);
        rest(&mut peer.stream);
    }
    assert!(other.call("value", b"").is_ok(), "one that behaves goes on");
    ends_well(node);
}

fn who_never_reads_is_read_no_further(mode: Mode) {
    let node = mode.with_faulty();
    Peer::open(&node, "greedy").count();
    let programs = [node.pid(), sandbox(&node, "greedy")];
    let before = programs.map(resident_bytes);
    let greedy: Vec<TcpStream> = beside(&node, || {
        std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|number| (&node, [Some("greedy"), None][number % 2]))
                .map(|(node, process)| scope.spawn(move || takes_nothing(node, process)))
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        })
    });
    for (pid, before) in programs.into_iter().zip(before) {
        let more = resident_bytes(pid).saturating_sub(before);
        assert!(more < 32 << 20, "{more} bytes of memory for those who read nothing");
    }
    // They are still there when the node stops.
    ends_well(node);
    drop(greedy);
}

/// Makes calls without reading an answer until nobody reads them, either. Each is answered with a failure, which needs no credit and is
/// longer than the call.
fn takes_nothing(node: &Node, process: Option<&str>) -> TcpStream {
    const MOST: usize = 8 << 20;
    let name = vec![b'x'; 128];
    let fixed = [0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0];
    for pace_ms in [2, 10, 50] {
        let stream = &mut Peer::with(node, &hello(node, process)).stream;
        stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
        set_socket_send_buffer_size(&*stream, 32 << 10).unwrap();
        set_socket_recv_buffer_size(&*stream, 32 << 10).unwrap();
        let (mut id, mut written) = (0, 0);
        loop {
            assert!(written < MOST, "{written} bytes were read of one who reads nothing");
            let mut calls = Vec::new();
            for _ in 0..16 {
                id += 1;
                let head = Head { kind: 72, flags: 1, head: 148, a: u32::MAX, id, ..Head::default() };
                calls.extend([&head.bytes()[..], &fixed, &[3, 0, 128, 0], &name, &[0; 12]].concat());
            }
            match stream.write_all(&calls) {
                Ok(()) => written += calls.len(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    println!("{written} bytes were read");
                    return stream.try_clone().unwrap();
                }
                // More calls than may be in flight: it was too fast.
                Err(_) => break,
            }
            std::thread::sleep(Duration::from_millis(pace_ms));
        }
    }
    panic!("it was ended before it had made many calls");
}

fn an_application_has_its_share_of_connections_and_gets_it_back(mode: Mode) {
    const SHARE: usize = 50;
    let limited = ["prlimit", "--nofile=400:400"];
    let node = mode.start().args(&["--executors", "1"]).by(&limited, Path::new(DENIZEN)).node();
    node.deploy(faulty_image());
    let mut peers: Vec<Peer> = (0..SHARE).map(|_| Peer::open(&node, "many")).collect();
    // Some have been given away, some rest.
    peers.iter_mut().step_by(2).for_each(|peer| drop(peer.call("value", b"").unwrap()));
    for process in [Some("many"), Some("other"), None] {
        assert_eq!(Peer::refusal(&node, &hello(&node, process)).kind, "overloaded");
    }
    assert_eq!(node.call("faulty", "many", "count", b"").body(), "1", "over HTTP it is served");
    for round in 0..3 {
        peers.truncate(SHARE - 10);
        let begun = Instant::now();
        while peers.len() < SHARE {
            let mut peer = Peer::greet(&node, &hello(&node, Some("many")));
            peer.until(|peer| peer.accepted.is_some() || peer.refused.is_some());
            if peer.accepted.is_some() {
                peers.push(peer);
            }
            assert!(begun.elapsed() < SLACK, "round {round}: {} of {SHARE}", peers.len());
        }
        assert_eq!(Peer::refusal(&node, &hello(&node, Some("many"))).kind, "overloaded");
    }
    assert!(peers.iter_mut().all(|peer| peer.call("value", b"").is_ok()));
    drop(peers);
    await_within(PATIENCE, || connections(&node, "many") == 0, || node.said());
    ends_well(node);
}

fn resets_in_the_middle_of_bodies_give_everything_back(mode: Mode) {
    let node = mode.with_faulty();
    assert_eq!(Peer::open(&node, "reset").count(), "1");
    beside(&node, || {
        for round in 0..320_usize {
            let mut peer = Peer::open(&node, "reset");
            // An upload; more of it each time.
            let call = Call { length: Some(1 << 20), ..Call::new("echo") };
            let mut out = Vec::new();
            let id = peer.protocol.call(&call, 0, false, &mut out).unwrap();
            let len = round * 800 + 1;
            peer.protocol.data(id, len, false, &mut out).unwrap();
            out.resize(out.len() + len, 7);
            let _ = peer.stream.write_all(&out);
            reset(&peer.stream);
        }
        for _ in 0..10 {
            let mut peer = Peer::open(&node, "reset");
            let id = peer.begin(&Call::new("stream_for_ever"), b"");
            peer.until(|peer| peer.begun.get(&id).is_some_and(|reply| reply.body.len() > 200_000));
            reset(&peer.stream);
        }
    });
    let there = || connections(&node, "reset") == 0;
    await_within(PATIENCE, there, || node.process("faulty", "reset").to_string());
    let body = vec![3; 1 << 20];
    let mut peers: Vec<_> = (0..4).map(|_| Peer::open(&node, "reset")).collect();
    for peer in &mut peers {
        let id = peer.begin_in_pieces(&Call { length: Some(1 << 20), ..Call::new("echo") }, &body, 60_000);
        assert!(peer.end(id).unwrap().body == body, "the memory is there again");
    }
    assert_eq!(peers[0].count(), "2");
    mode.assert_served(&node, "reset");
    ends_well(node);
}

fn connections_that_come_and_go_leave_nothing_behind(mode: Mode) {
    let node = mode.with_faulty();
    let mut resident = Peer::open(&node, "busy");
    assert_eq!(resident.count(), "1");
    // What is made once is there.
    let (mut peer, mut unbound) = (Peer::open(&node, "busy"), Peer::with(&node, &hello(&node, None)));
    assert!(peer.call("value", b"").is_ok() && unbound.call("value", b"").is_ok());
    drop((peer, unbound));
    await_within(PATIENCE, || connections(&node, "busy") == u64::from(mode == Mode::Ring), || node.said());
    let programs = [node.pid(), sandbox(&node, "busy")];
    // Who may not look into the sandbox sees none, before and after.
    let descriptors =
        || programs.map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count));
    let before = descriptors();
    let greeting = hello_bytes(&hello(&node, Some("busy")));
    beside(&node, || {
        for round in 0..2000 {
            let mut stream = raw(&node);
            match round % 5 {
                0 => {}
                1 => stream.write_all(&greeting[..round % greeting.len()]).unwrap(),
                2 => stream.write_all(&greeting).unwrap(),
                3 => {
                    stream.write_all(&greeting).unwrap();
                    reset(&stream);
                }
                _ => {
                    let mut peer = Peer::open(&node, "busy");
                    assert!(peer.call("value", b"").is_ok());
                    if round % 2 == 0 {
                        reset(&peer.stream);
                    }
                }
            }
        }
    });
    // The caller beside had a sandbox of its own, and one may wait that has loaded the image meanwhile: a few descriptors are theirs. Of
    // each kind of connection there were 400.
    let there = || descriptors().into_iter().zip(before).all(|(now, before)| now <= before + 40);
    await_within(PATIENCE, there, || format!("{before:?} descriptors, and then {:?}", descriptors()));
    assert_eq!(resident.count(), "2");
    ends_well(node);
}

/// A sandbox chooses the deadlines of the direct calls that it tells of: an earlier one each time costs the agent nothing that stays.
#[test]
fn deadlines_that_come_ever_earlier_cost_no_memory() {
    if !has_rings() {
        return denizen_testing::skip("deadlines_that_come_ever_earlier_cost_no_memory", "no rings here");
    }
    let node = Start::new().args(&["--executors", "1", "--isolation", "ring"]).node();
    let policy = "[limits]\ndeadline = \"24h\"\n";
    node.deploy(&c_image_with("overrun", include_str!("overrun.c"), &[], policy));
    node.call("overrun", "first", "flood", b"");
    let before = resident_bytes(node.pid());
    assert_eq!(node.call("overrun", "second", "flood", b"").status, 200, "{}", node.said());
    let more = resident_bytes(node.pid()).saturating_sub(before);
    assert!(more < 8 << 20, "{more} bytes more");
}
