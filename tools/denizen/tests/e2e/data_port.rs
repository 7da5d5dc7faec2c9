//! The framed protocol against a node: what a client gets, what a stranger gets, and that neither can hold up the others. The same over
//! connections that are given away and over those that are relayed, but where it is said otherwise.

use std::io::{Read as _, Write as _};
use std::num::NonZeroU32;
use std::time::Duration;

use denizen_protocol::client::Call;
use denizen_protocol::limits::MIN_WINDOW;
use denizen_protocol::token::{self, Claims, SecretKey};
use denizen_protocol::{
    CallHead, DrainReason, Durability, Final, FunctionRef, Hello, PADDING, Retry, padding,
};

use crate::node::{Start, text};
use crate::peer::{
    Mode, Peer, call_by_index, claims, hello, in_both_modes, issue, now_s, raw, resident_bytes, rest,
};

in_both_modes! {
    a_function_is_named_once_and_a_reply_says_what_it_rests_on,
    calls_may_follow_the_hello_and_one_another,
    bodies_stream_both_ways_through_the_smallest_windows,
    tokens_open_only_what_they_say,
    a_token_is_issued_by_hand_and_its_key_can_be_revoked,
    a_connection_ends_with_its_token_and_is_told_before,
    calls_end_at_their_deadline_or_when_they_are_given_up,
    a_crash_is_told_and_the_connection_goes_on,
    a_process_is_swapped_out_under_a_connection_and_comes_back,
    an_unbound_connection_calls_any_process,
    an_index_of_another_table_is_not_read,
    strangers_are_let_go_and_others_are_served_meanwhile,
    rules_that_a_caller_breaks_end_its_connection_only,
    callers_who_take_nothing_cost_little_and_hold_nobody_up,
    connections_at_rest_cost_no_processor_time,
    a_node_that_stops_says_so_and_one_that_is_killed_is_gone,
}

fn a_function_is_named_once_and_a_reply_says_what_it_rests_on(mode: Mode) {
    let node = mode.with_faulty();
    let mut peer = Peer::open(&node, "alice");
    let accepted = peer.accepted.clone().unwrap();
    assert!(accepted.epoch > 0 && accepted.table != 0, "{accepted:?}");
    let window = if mode == Mode::Ring { accepted.connection_window } else { 256 << 10 };
    assert_eq!((accepted.call_window, accepted.connection_window), (window, 1 << 20));
    let first = peer.call("count", b"").unwrap();
    assert_eq!((first.text(), first.epoch, first.rests_on.commit), ("1", accepted.epoch, 1));
    let (table, index) = first.function.expect("a call by name is told the index");
    assert_eq!(table, accepted.table);
    let call = Call { durability: Some(Durability::Node), ..Call::new("count") };
    let id = peer.begin(&call, b"");
    let second = peer.end(id).unwrap();
    assert_eq!((second.text(), second.function), ("2", None), "it went by index {index}");
    assert_eq!(second.rests_on, Final { commit: 2, durability: Durability::Node });
    let over_http = node.call("faulty", "alice", "value", b"");
    assert_eq!(over_http.body(), "2", "both ports lead to the same process");
    let mut out = Vec::new();
    peer.protocol.ping(77, &mut out);
    peer.stream.write_all(&out).unwrap();
    peer.until(|peer| peer.pong == Some(77));
    mode.assert_served(&node, "alice");
}

fn calls_may_follow_the_hello_and_one_another(mode: Mode) {
    let node = mode.with_faulty();
    let mut peer = Peer::greet(&node, &hello(&node, Some("early")));
    let early: Vec<_> = (0..16).map(|_| peer.begin(&Call::new("count"), b"")).collect();
    peer.until(|peer| peer.accepted.is_some());
    let later: Vec<_> = (0..100).map(|_| peer.begin(&Call::new("count"), b"")).collect();
    let counts = early.iter().chain(&later).map(|id| peer.end(*id).unwrap().text().parse::<u64>().unwrap());
    let mut counts: Vec<_> = counts.collect();
    counts.sort_unstable();
    assert_eq!(counts, (1..=116).collect::<Vec<_>>());
    let listed = Hello {
        options: denizen_protocol::HelloOptions { want_functions: true, create_never: true },
        ..hello(&node, Some("early"))
    };
    assert!(Peer::with(&node, &listed).accepted.unwrap().functions.contains(&"count".to_owned()));
}

fn bodies_stream_both_ways_through_the_smallest_windows(mode: Mode) {
    let node = mode.with_faulty();
    let windows =
        Hello { call_window: MIN_WINDOW, connection_window: MIN_WINDOW, ..hello(&node, Some("streams")) };
    let mut peer = Peer::with(&node, &windows);
    let body: Vec<u8> = (0..1_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for (length, piece) in [(Some(body.len() as u64), 50_000), (None, 7_001)] {
        let id = peer.begin_in_pieces(&Call { length, ..Call::new("echo") }, &body, piece);
        assert!(peer.end(id).unwrap().body == body, "the echo differs");
    }
    let id = peer.begin_in_pieces(&Call::new("echo"), &vec![0; (1 << 20) + 1], 60_000);
    assert_eq!(peer.end(id).unwrap_err().kind, "body-too-large");
    // A reply without end: read some of it, and give it up.
    let id = peer.begin(&Call::new("stream_for_ever"), b"");
    peer.until(|peer| peer.begun.get(&id).is_some_and(|reply| reply.body.len() > 500_000));
    peer.cancel(id);
    assert_eq!(peer.end(id).unwrap_err().kind, "caller-gone");
    assert_eq!(peer.count(), "1", "the process is free again");
}

fn tokens_open_only_what_they_say(mode: Mode) {
    let node = mode.with_faulty();
    let with = |token: Vec<u8>, app: &str, process: Option<&str>| {
        let problem = Peer::refusal(&node, &Hello { token, ..Hello::new(app, process) });
        assert_eq!(problem.retry, Retry::Never, "{problem:?}");
        (problem.kind, problem.cause.unwrap_or_default())
    };
    let is = |kind: &str, cause: &str| (kind.to_owned(), cause.to_owned());
    assert_eq!(with(vec![], "faulty", Some("a")), is("bad-token", "token-missing"));
    assert_eq!(with(vec![9; 200], "faulty", Some("a")), is("bad-token", "token-version"));
    let mut forged = issue(&node, &claims());
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(with(forged, "faulty", Some("a")), is("bad-token", "token-bad-signature"));
    let strange = SecretKey::from_random(&[7; 32]).issue(&claims()).unwrap();
    assert_eq!(with(strange, "faulty", Some("a")), is("bad-token", "token-unknown-key"));
    let expired = issue(&node, &Claims { expires_s: now_s() - 1, ..claims() });
    assert_eq!(with(expired, "faulty", Some("a")), is("bad-token", "token-expired"));
    let later = issue(&node, &Claims { not_before_s: now_s() + 600, ..claims() });
    assert_eq!(with(later, "faulty", Some("a")), is("bad-token", "token-not-yet"));
    let bound = issue(&node, &Claims { process: Some("a".to_owned()), ..claims() });
    assert_eq!(with(bound.clone(), "faulty", Some("b")), is("not-permitted", "token-wrong-process"));
    assert_eq!(with(bound.clone(), "faulty", None), is("not-permitted", "token-wrong-process"));
    assert_eq!(with(bound.clone(), "other", Some("a")), is("not-permitted", "token-wrong-app"));
    let nowhere = issue(&node, &Claims { app: "nowhere".to_owned(), ..claims() });
    assert_eq!(with(nowhere, "nowhere", None).0, "unknown-app");
    assert_eq!(Peer::with(&node, &Hello { token: bound, ..Hello::new("faulty", Some("a")) }).count(), "1");
    let one = issue(&node, &Claims { functions: Some(vec!["value".to_owned()]), ..claims() });
    let mut peer = Peer::with(&node, &Hello { token: one, ..Hello::new("faulty", Some("a")) });
    let problem = peer.call("count", b"").unwrap_err();
    assert_eq!(
        (problem.kind.as_str(), problem.cause.as_deref()),
        ("not-permitted", Some("token-wrong-function"))
    );
    assert_eq!(peer.call("value", b"").unwrap().text(), "1");
}

fn a_token_is_issued_by_hand_and_its_key_can_be_revoked(mode: Mode) {
    let node = mode.with_faulty();
    let issue = |words: &[&str]| {
        let text = node.ok(&[&["token", "issue", "--app", "faulty"], words].concat());
        token::from_text(&text).unwrap()
    };
    let bound = issue(&["--process", "a", "--functions", "count,value", "--ttl", "5m"]);
    let hello = Hello { token: bound, ..Hello::new("faulty", Some("a")) };
    let mut open = Peer::with(&node, &hello);
    assert_eq!(open.count(), "1");
    assert_eq!(open.call("echo", b"").unwrap_err().kind, "not-permitted");
    node.ok(&["token", "rotate"]);
    assert_eq!(node.ok(&["token", "keys"]).lines().count(), 3, "two keys and a head");
    assert!(Peer::with(&node, &hello).count() == "2", "until it expires");
    node.ok(&["token", "rotate", "--revoke"]);
    let new = issue(&[]);
    assert_eq!(Peer::with(&node, &Hello { token: new, ..Hello::new("faulty", Some("a")) }).count(), "3");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(Peer::refusal(&node, &hello).cause.as_deref(), Some("token-unknown-key"));
    let wrong = node.denizen(&["token", "issue", "--app", "../x"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong));
}

fn a_connection_ends_with_its_token_and_is_told_before(mode: Mode) {
    let node = mode.with_faulty();
    assert_eq!(Peer::open(&node, "a").count(), "1");
    // Shorter than the deadline of the call that runs into it.
    let token = issue(&node, &Claims { expires_s: now_s() + 2, ..claims() });
    let mut peer = Peer::with(&node, &Hello { token, ..Hello::new("faulty", Some("a")) });
    let id = peer.begin(&Call::new("stream_for_ever"), b"");
    peer.until(|peer| peer.over);
    let drained = peer.drained.as_ref().map(|drain| (drain.reason, drain.last));
    assert_eq!(drained, Some((DrainReason::TokenExpires, id)));
    if mode == Mode::Relay {
        let problem = peer.refused.as_ref().expect("it is said why");
        assert_eq!(problem.cause.as_deref(), Some("token-expired"));
    }
    node.assert_others_work("faulty");
}

fn calls_end_at_their_deadline_or_when_they_are_given_up(mode: Mode) {
    let node = mode.with_faulty();
    let mut peer = Peer::open(&node, "slow");
    assert_eq!(peer.count(), "1");
    let call = Call { deadline_ms: NonZeroU32::new(100), ..Call::new("loop_for_ever") };
    let id = peer.begin(&call, b"");
    if mode == Mode::Ring {
        // The sandbox takes its connections along.
        peer.until(|peer| peer.over);
        assert_eq!(peer.protocol.lost().unfinished.len(), 1);
        peer = Peer::open(&node, "slow");
    } else {
        let problem = peer.end(id).unwrap_err();
        assert_eq!((problem.kind.as_str(), problem.retry), ("deadline-exceeded", Retry::Unknown));
        assert!(problem.process.is_some() && problem.invocation.is_some(), "{problem:?}");
    }
    assert_eq!(peer.count(), "2", "the process came back with its last commit");
    let id = peer.begin(&Call::new("sleep"), b"");
    peer.cancel(id);
    assert_eq!(peer.end(id).unwrap_err().kind, "caller-gone");
    // The sandbox that does not listen is ended; over its own connections nobody is told why a call behind it was not begun.
    let counted = loop {
        let mut waits = Peer::open(&node, "slow");
        let id = waits.begin(&Call::new("count"), b"");
        waits.until(|peer| peer.over || peer.ended.contains_key(&id));
        match waits.ended.remove(&id) {
            Some(Ok(done)) => break done.text().to_owned(),
            Some(Err(problem)) => assert!(mode == Mode::Ring && problem.retry == Retry::Safe, "{problem:?}"),
            None => assert_eq!(mode, Mode::Ring),
        }
    };
    assert_eq!(counted, "3");
}

fn a_crash_is_told_and_the_connection_goes_on(mode: Mode) {
    let node = mode.with_faulty();
    let mut peer = Peer::open(&node, "victim");
    assert_eq!(peer.count(), "1");
    let crash = peer.begin(&Call::new("abort"), b"");
    let beside = peer.begin(&Call::new("value"), b"");
    if mode == Mode::Ring {
        // Where its stream stands nobody knows. What had ended before is not taken back.
        peer.until(|peer| peer.over);
        assert!(peer.ended.remove(&beside).is_none_or(|ended| ended.is_ok()));
        peer = Peer::open(&node, "victim");
    } else {
        told_of_a_crash(&mut peer, crash, beside);
    }
    let after = peer.call("value", b"").unwrap();
    assert_eq!(after.text(), "1", "what was committed is there and the rest is not");
    assert!(after.epoch >= peer.accepted.as_ref().unwrap().epoch);
    assert_eq!(peer.call("fail", b"").unwrap_err().retry, Retry::Safe);
    assert_eq!(peer.call("nothing", b"").unwrap_err().kind, "unknown-function");
}

fn told_of_a_crash(peer: &mut Peer, crash: u64, beside: u64) {
    let problem = peer.end(crash).unwrap_err();
    assert_eq!((problem.kind.as_str(), problem.retry), ("function-aborted", Retry::Unknown), "{problem:?}");
    match peer.end(beside) {
        Ok(done) => assert_eq!(done.text(), "1"),
        Err(problem) => assert!(problem.retry != Retry::Never, "{problem:?}"),
    }
}

fn a_process_is_swapped_out_under_a_connection_and_comes_back(mode: Mode) {
    let node = mode.with_faulty();
    let mut peer = Peer::open(&node, "sleeper");
    let first = peer.call("count", b"").unwrap();
    node.ok(&["swap", "out", "faulty/sleeper"]);
    assert_eq!(node.process("faulty", "sleeper")["phase"], "swapped");
    let second = peer.call("count", b"").unwrap();
    assert_eq!(second.text(), "2");
    assert!(second.epoch > first.epoch, "another term");
    let stale = Peer::refusal(&node, &Hello { epoch: first.epoch, ..hello(&node, Some("sleeper")) });
    assert_eq!((stale.kind.as_str(), stale.epoch), ("epoch-mismatch", second.epoch));
    assert_eq!(
        Peer::with(&node, &Hello { epoch: second.epoch, ..hello(&node, Some("sleeper")) }).count(),
        "3"
    );
}

fn an_unbound_connection_calls_any_process(mode: Mode) {
    let node = mode.start().args(&["--executors", "3"]).node();
    node.deploy(crate::node::faulty_image());
    let mut peer = Peer::with(&node, &hello(&node, None));
    assert_eq!(peer.accepted.as_ref().unwrap().epoch, 0);
    for name in ["a", "b", "c", "d", "e", "f"] {
        let id = peer.begin(&Call { process: Some(name), ..Call::new("count") }, b"");
        let done = peer.end(id).unwrap();
        assert_eq!((done.text(), &done.process), ("1", &None));
        assert_eq!(Peer::open(&node, name).count(), "2", "the same, bound");
        let body = vec![3; 300_000];
        let id = peer.begin_in_pieces(&Call { process: Some(name), ..Call::new("echo") }, &body, 50_000);
        assert!(peer.end(id).unwrap().body == body);
    }
    let done = peer.call("count", b"").unwrap();
    assert!(done.process.is_some(), "who answered is said: {done:?}");
    let never = Call { process: Some("nobody"), create_never: true, ..Call::new("count") };
    let id = peer.begin(&never, b"");
    assert_eq!(peer.end(id).unwrap_err().kind, "unknown-process");
    let keyed = Call { idempotency_key: Some("once"), ..Call::new("count") };
    let id = peer.begin(&keyed, b"");
    assert_eq!(peer.end(id).unwrap_err().kind, "process-needed");
}

fn an_index_of_another_table_is_not_read(mode: Mode) {
    let node = mode.with_faulty();
    let mut peer = Peer::open(&node, "a");
    let table = peer.accepted.as_ref().unwrap().table;
    for (table, index, word) in [(table ^ 1, 0, "functions-changed"), (table, 4000, "unknown-function")] {
        let mut peer = Peer::open(&node, "a");
        peer.stream.write_all(&call_by_index(1, table, index)).unwrap();
        // The client's own ledger knows nothing of that call: look at the bytes.
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(word) {
            let mut some = [0; 256];
            let count = peer.stream.read(&mut some).unwrap();
            assert!(count > 0, "{word}: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&some[..count]);
        }
    }
    assert_eq!(peer.count(), "1");
}

fn strangers_are_let_go_and_others_are_served_meanwhile(mode: Mode) {
    let node = mode.with_faulty();
    // Half-open, more of them than there may be handshakes at once; some with half a HELLO.
    let mut whole = Vec::new();
    hello(&node, Some("a")).encode(&mut whole).unwrap();
    let mut idle: Vec<_> = (0..400).map(|_| raw(&node)).collect();
    for stream in idle.iter_mut().step_by(2) {
        // Those that came first had to make way.
        let _ = stream.write_all(&whole[..20]);
    }
    assert_eq!(Peer::open(&node, "a").count(), "1", "a caller who means it is served");
    for stream in &mut idle {
        assert_eq!(rest(stream), b"", "a stranger is not talked to");
    }
    // Others that are none of ours.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 64], &[255; 4096], b"x"] {
        let mut stream = raw(&node);
        let _ = stream.write_all(bytes);
        assert_eq!(rest(&mut stream), b"");
    }
    // A byte at a time, and cut short.
    let mut slow = raw(&node);
    for byte in &whole[..60] {
        slow.write_all(&[*byte]).unwrap();
    }
    slow.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut slow), b"");
    // Another version, and a head over its limit.
    let mut future = whole.clone();
    future[16..20].copy_from_slice(&[2, 0, 9, 0]);
    let mut long = whole.clone();
    long[6..8].copy_from_slice(&u16::MAX.to_le_bytes());
    for (bytes, word) in [(future, "unsupported-version"), (long, "protocol-error")] {
        let mut stream = raw(&node);
        stream.write_all(&bytes).unwrap();
        assert!(String::from_utf8_lossy(&rest(&mut stream)).contains(word), "{word}");
    }
    assert_eq!(Peer::open(&node, "a").count(), "2");
    node.assert_others_work("faulty");
}

fn rules_that_a_caller_breaks_end_its_connection_only(mode: Mode) {
    let node = mode.with_faulty();
    let header = |len: u32, kind: u8, head: u16, id: u64| {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[kind, 0]);
        bytes.extend_from_slice(&head.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.resize(32, 0);
        bytes
    };
    let mut many = Vec::new();
    for id in 1..200 {
        // Such that none of them ends meanwhile.
        CallHead::new(FunctionRef::Name("sleep")).encode(id, 0, true, &mut many).unwrap();
    }
    let mut again = Vec::new();
    Hello::new("faulty", None).encode(&mut again).unwrap();
    let cases = [
        (header(u32::MAX, 72, 16, 1), "body-too-long"),
        (header(0, 72, u16::MAX, 1), "bad-head-length"),
        (header(0, 99, 0, 0), "unknown-kind"),
        (header(0, 80, 16, 1), "wrong-direction"),
        (header(4, 73, 0, 7), "unknown-call"),
        (again, "unexpected-frame"),
        (many, "too-many-calls"),
    ];
    for (bytes, name) in cases {
        let mut peer = Peer::open(&node, "broken");
        peer.stream.write_all(&bytes).unwrap();
        let told = String::from_utf8_lossy(&rest(&mut peer.stream)).into_owned();
        assert!(told.contains("protocol-error") && told.contains(name), "{name}: {told}");
    }
    // What is random is nearly always broken, and never more than that.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for round in 0..50 {
        let mut peer = Peer::open(&node, "broken");
        let noise: Vec<u8> = (0..round * 20)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect();
        let _ = peer.stream.write_all(&noise);
        let _ = peer.stream.shutdown(std::net::Shutdown::Write);
        rest(&mut peer.stream);
    }
    node.assert_others_work("faulty");
}

fn callers_who_take_nothing_cost_little_and_hold_nobody_up(mode: Mode) {
    let node = mode.with_faulty();
    Peer::open(&node, "greedy").count();
    let before = resident_bytes(node.pid());
    let body = vec![1; 30_000];
    let mut greedy = Vec::new();
    for _ in 0..24 {
        let mut peer = Peer::open(&node, "greedy");
        peer.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut out = Vec::new();
        while let Ok(_id) = peer.protocol.call(&Call::new("echo"), body.len(), true, &mut out) {
            out.extend_from_slice(&body);
            out.extend_from_slice(&PADDING[..padding(body.len())]);
        }
        // As much as the node takes; not a byte is read.
        let _ = peer.stream.write_all(&out);
        greedy.push(peer);
    }
    assert_eq!(Peer::open(&node, "modest").count(), "1");
    let more = resident_bytes(node.pid()).saturating_sub(before);
    assert!(more < 128 << 20, "{more} bytes for those who read nothing");
    drop(greedy);
    node.assert_others_work("faulty");
}

fn connections_at_rest_cost_no_processor_time(mode: Mode) {
    let node = mode.with_faulty();
    let mut peers: Vec<_> = (0..100).map(|_| Peer::open(&node, "a")).collect();
    let used_ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = used_ticks();
    std::thread::sleep(Duration::from_secs(2));
    // In hundredths of a second; one that looks after each connection in turn has more.
    let used = used_ticks() - before;
    assert!(used <= 4, "{used} ticks in two seconds of nothing");
    assert!(peers.iter_mut().all(|peer| peer.call("value", b"").is_ok()));
}

fn a_node_that_stops_says_so_and_one_that_is_killed_is_gone(mode: Mode) {
    let mut node = mode.with_faulty();
    let mut peer = Peer::open(&node, "a");
    assert_eq!(peer.count(), "1");
    assert_eq!(node.stop(), Some(0));
    peer.until(|peer| peer.over);
    assert_eq!(peer.drained.map(|drain| drain.reason), Some(DrainReason::Shutdown));
    assert!(!node.dir().join("data-endpoint").exists());

    let dir = tempfile::tempdir().unwrap();
    let mut node = mode.start().dir(dir.path()).node();
    node.deploy(crate::node::faulty_image());
    let mut peer = Peer::open(&node, "a");
    let call = Call { durability: Some(Durability::Node), ..Call::new("count") };
    let id = peer.begin(&call, b"");
    peer.end(id).unwrap();
    let epoch = peer.accepted.as_ref().unwrap().epoch;
    peer.begin(&Call::new("sleep"), b"");
    node.kill();
    peer.until(|peer| peer.over);
    assert_eq!(peer.protocol.lost().unfinished.len(), 1, "nobody knows what became of it");
    let node = mode.start().dir(dir.path()).node();
    let mut again = Peer::open(&node, "a");
    assert_eq!(again.call("value", b"").unwrap().text(), "1");
    assert!(again.accepted.unwrap().epoch > epoch);
}

#[test]
fn the_data_port_can_be_left_out() {
    let node = Start::new().args(&["--data", "none"]).node();
    assert!(!node.dir().join("data-endpoint").exists());
    drop(node);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Start::new().args(&["--data", &address]).refused(dir.path());
    assert!(text(&output).contains("--data"), "{}", text(&output));
}

#[test]
fn a_congestion_control_that_the_machine_has_not_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = Start::new().args(&["--congestion", "hasty"]).refused(dir.path());
    let said = text(&output);
    assert!(said.contains("`hasty`") && said.contains("--congestion"), "{said}");
    let node = Start::new().args(&["--congestion", "reno"]).node();
    drop(node);
}
