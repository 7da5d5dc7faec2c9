//! A runner with connections of its own: real sockets on a real ring, and the agent's end of both.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use denizen_protocol::client::Call;
use denizen_protocol::server::Parked;
use denizen_protocol::{Blame, Durability, Hello, Retry};
use denizen_wire::{CallerEnd, Header, Kind, direct_id, direct_name};
use harness::direct::{Node, accepted, ringed};
use harness::{Agent, BODY_LIMIT, Ended, State, pattern, plugin};

#[test]
fn a_call_is_answered_with_everything_that_a_caller_wants_to_know() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    for number in 1..=50_u64 {
        let answer = client.call("add", "");
        assert_eq!(answer.text(), number.to_string());
        assert_eq!(answer.content_type.as_deref(), Some("text/plain"));
        assert_eq!(answer.invocation, Some(direct_name(42, direct_id(number))));
        assert_eq!((answer.epoch, answer.rests_on.unwrap().commit), (42, number));
    }
    assert_eq!(node.census(), (0, 1, 50));
    // Calls of the agent are served beside.
    assert_eq!(node.agent.call("add", "").body(), "51");
    assert_eq!(client.call("count", "").text(), "51");
    let asked = Call { deadline_ms: std::num::NonZeroU32::new(5000), ..Call::new("info") };
    let asked = Call { content_type: Some("text/x-test"), ..asked };
    let id = client.start_with(&asked, b"");
    let name = direct_name(42, direct_id(52));
    assert_eq!(client.finish(id).unwrap().text(), format!("app/process info {name} text/x-test 42 1"));
    let logged = node.agent.next_of(|said| said.header.kind == Kind::LogLine);
    assert_eq!((logged.header.id, logged.payload.as_slice()), (direct_id(52), &b"asked for its facts"[..]));
    drop(client.socket.shutdown(Shutdown::Both));
    assert_eq!(node.done(&client), CallerEnd::Closed);
    assert_eq!(node.census(), (0, 0, 52));
}

#[test]
fn bodies_of_every_size_come_back_whole() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    for len in [0, 1, 15, 16, 17, 4000, 16_000, 16_384, 16_385, 60_000, 200_000] {
        let body = pattern(len);
        let id = client.start_with(&Call::new("echo"), &body);
        assert!(client.finish(id).unwrap().body == body, "{len} bytes in one frame");
    }
    for len in [1, 70_000, 256 << 10, (256 << 10) + 1, 3 << 20, 5_000_001, 8 << 20] {
        let body = pattern(len);
        for length in [Some(len as u64), None] {
            let id = client.begin(&Call { length, ..Call::new("echo") });
            client.feed(id, &body, true);
            assert!(client.finish(id).unwrap().body == body, "{len} bytes, declared {length:?}");
        }
    }
    assert_eq!(node.census().0, 0);
}

#[test]
fn a_reply_that_lies_in_the_input_is_that_part_of_it() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    // Most of a small input and of a large one, and little of one: sent from where it lies, and copied.
    for (len, cut) in [(100, 0), (20_000, 3), (3 << 20, 0), (3 << 20, 200), (300_000, 250)] {
        let mut body = pattern(len);
        body[0] = cut;
        let wanted = &body[1..len - usize::from(cut) * 1000];
        // With a key it is also remembered, and comes from there the second time.
        for key in [None, Some("k"), Some("k")].into_iter().take(if len < 1 << 20 { 3 } else { 1 }) {
            let name = key.map(|key| format!("{key} {len} {cut}"));
            let id = client.begin(&Call {
                idempotency_key: name.as_deref(),
                length: Some(len as u64),
                ..Call::new("inner")
            });
            client.feed(id, &body, true);
            let answer = client.finish(id).unwrap();
            assert!(answer.body == wanted, "{len} bytes without {cut} kB");
            assert_eq!(answer.content_type.as_deref(), Some("text/x-inner"));
        }
    }
    // The agent's calls go the same way.
    let mut body = pattern(50_000);
    body[0] = 1;
    let id = node.agent.begin("inner", body.len() as u64, 0, b"", false);
    let Ended::Reply { body: answer, .. } = node.agent.feed(id, &body) else { panic!("no reply") };
    assert!(answer == body[1..49_000]);
}

#[test]
fn a_block_that_is_used_again_shows_nothing_of_the_call_before() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    let long = vec![0xEE; 3 << 20];
    for len in [3 << 20, (3 << 20) - 1, (3 << 20) - 300_000] {
        for function in ["echo", "inner"] {
            let id = client.begin(&Call { length: Some(long.len() as u64), ..Call::new("echo") });
            client.feed(id, &long, true);
            assert!(client.finish(id).unwrap().body == long);
            let mut body = pattern(len);
            body[0] = 0;
            let id = client.begin(&Call { length: Some(len as u64), ..Call::new(function) });
            client.feed(id, &body, true);
            let answer = client.finish(id).unwrap();
            assert!(answer.body == body[usize::from(function == "inner")..], "{len} bytes by {function}");
        }
        // A function is promised zeros, and looks.
        assert_eq!(client.call("large", &len.to_string()).body.len(), len);
    }
    // An input that says more than it brings ends without a reply, and so with nothing of another's.
    let id = client.begin(&Call { length: Some(3 << 20), ..Call::new("echo") });
    client.feed(id, b"short", false);
    client.cancel(id);
    assert!(client.finish(id).is_err());
    assert_eq!(client.call("echo", "mine").text(), "mine");
}

#[test]
fn pipelined_calls_are_answered_in_few_pieces() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    client.call("add", "");
    let mut out = Vec::new();
    let ids: Vec<u64> = (0..100).map(|_| client.write(&Call::new("add"), b"", &mut out)).collect();
    client.send(&out);
    for (id, number) in ids.iter().zip(2_u64..) {
        assert_eq!(client.finish(*id).unwrap().text(), number.to_string());
    }
    // Byte by byte.
    out.clear();
    let ids: Vec<u64> = (0..3).map(|_| client.write(&Call::new("echo"), b"slowly", &mut out)).collect();
    for byte in &out {
        client.send(&[*byte]);
    }
    for id in ids {
        assert_eq!(client.finish(id).unwrap().text(), "slowly");
    }
}

#[test]
fn many_connections_are_served_side_by_side() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut clients: Vec<_> = (0..200).map(|_| node.connect()).collect();
    for round in 0..5_u64 {
        let ids: Vec<u64> = clients.iter_mut().map(|client| client.start("add", "")).collect();
        let mut seen = Vec::new();
        for (client, id) in clients.iter_mut().zip(ids) {
            seen.push(client.finish(id).unwrap().text().parse::<u64>().unwrap());
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(round * 200 + 1..=round * 200 + 200));
    }
    // A slot is used again, and its new connection hears nothing of the old one.
    for _ in 0..50 {
        let old = clients.remove(0);
        old.socket.shutdown(Shutdown::Both).unwrap();
        assert_eq!(node.done(&old), CallerEnd::Closed);
        let mut new = node.connect();
        new.call("add", "");
        clients.push(new);
    }
}

#[test]
fn streams_go_both_ways_beyond_every_window() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    let body = pattern(6 << 20);
    for _ in 0..2 {
        let id = client.begin(&Call::new("stream_echo"));
        client.feed(id, &body, true);
        let answer = client.finish(id).unwrap();
        assert_eq!(answer.content_type.as_deref(), Some("application/x-echo"));
        assert!(answer.body == body);
    }
    let id = client.begin(&Call::new("stream_whole"));
    client.feed(id, &body, true);
    assert_eq!(client.finish(id).unwrap().text(), body.len().to_string());
    let poured = client.call("pour", "5000000");
    assert_eq!(poured.body.len(), 5_000_000);
    assert_eq!(client.call("stream_add", "").text(), "streamed");
    let problem = client.fails("pour_and_fail", "");
    assert_eq!((problem.kind.as_str(), problem.blame), ("function-panicked", Blame::Function));
}

#[test]
fn a_function_that_does_not_read_its_input_costs_no_credit() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    for _ in 0..40 {
        // A stream that nobody takes: its function returns at once.
        let mut out = Vec::new();
        let part = pattern(64_000);
        let id = client.protocol.call(&Call::new("stream_nothing"), part.len(), false, &mut out).unwrap();
        client.send(&[out, part].concat());
        client.feed(id, &pattern(1_000), true);
        assert_eq!(client.finish(id).unwrap().text(), "nothing");
    }
    assert_eq!(client.call("echo", "still").text(), "still");
}

#[test]
fn what_cannot_be_is_refused_as_the_agent_would() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    let unknown = client.fails("nonsense", "");
    assert_eq!(
        (unknown.kind.as_str(), unknown.blame, unknown.retry),
        ("unknown-function", Blame::Caller, Retry::Never)
    );
    assert!(unknown.detail.unwrap().starts_with("app has no function nonsense; it has echo, add"));
    assert_eq!(unknown.epoch, 42);
    let call = Call { durability: Some(Durability::Store), ..Call::new("add") };
    let id = client.start_with(&call, b"");
    assert_eq!(client.finish(id).unwrap_err().kind, "not-supported");
    let mut generous = node.connect_with(
        &Hello::new("app", Some("process")),
        &denizen_protocol::Accepted { max_body_bytes: 2 * BODY_LIMIT, ..accepted() },
        None,
    );
    std::mem::swap(&mut client, &mut generous);
    let id = client.begin(&Call { length: Some(BODY_LIMIT + 1), ..Call::new("echo") });
    assert_eq!(client.finish(id).unwrap_err().kind, "body-too-large");
    let id = client.begin(&Call::new("echo"));
    client.feed(id, &pattern(usize::try_from(BODY_LIMIT).unwrap() + 100_000), true);
    assert_eq!(client.finish(id).unwrap_err().kind, "body-too-large");
    let refused = client.fails("refuse", "");
    assert_eq!((refused.kind.as_str(), refused.detail.as_deref()), ("bad-input", Some("not like this")));
    assert!(refused.invocation.is_some() && refused.remedy.is_some());
    assert_eq!(client.call("has", "lost").text(), "no");
    let mut limited =
        node.connect_with(&Hello::new("app", Some("process")), &accepted(), Some(vec!["add".to_owned()]));
    assert_eq!(limited.call("add", "").text(), "1");
    let problem = limited.fails("count", "");
    assert_eq!(
        (problem.kind.as_str(), problem.cause.as_deref()),
        ("not-permitted", Some("token-wrong-function"))
    );
}

#[test]
fn an_index_of_another_table_is_not_read_against_this_one() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    assert_eq!(client.call("add", "").text(), "1");
    // Learned from the reply: the next goes by index.
    assert_eq!(client.call("add", "").text(), "2");
    let mut out = Vec::new();
    client.write(&Call::new("add"), b"", &mut out);
    // The tag of the table stands first in the head.
    out[32] ^= 1;
    client.send(&out);
    let problem = client.finish(3).unwrap_err();
    assert_eq!((problem.kind.as_str(), problem.retry), ("functions-changed", Retry::Safe));
    assert_eq!(client.call("add", "").text(), "3");
}

#[test]
fn a_slow_exclusive_function_holds_up_exclusive_calls_and_nothing_else() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let (mut first, mut second) = (node.connect(), node.connect());
    second.call("count", "");
    for round in 0..3 {
        let begun = Instant::now();
        let burning = first.start("burn", "300");
        let behind = first.start("add", "");
        std::thread::sleep(Duration::from_millis(3));
        for _ in 0..20 {
            second.call("count", "");
        }
        let beside = begun.elapsed();
        assert!(beside < Duration::from_millis(150), "round {round}: held up for {beside:?}");
        let overrun = node.agent.next_of(|said| said.header.kind == Kind::Overrun);
        assert_eq!(u64::from(overrun.header.a), first.number);
        assert!(overrun.header.b > 25_000 && overrun.header.b <= 30_000, "{}", overrun.header.b);
        assert_eq!(first.finish(burning).unwrap().text(), "burnt");
        assert_eq!(first.finish(behind).unwrap().text(), (round + 1).to_string());
        assert!(begun.elapsed() >= Duration::from_millis(290));
        let number = overrun.header.id;
        assert_eq!(overrun.payload, direct_name(42, number).into_bytes());
        node.agent.next_of(|said| said.header.kind == Kind::Finished && said.header.id == number);
    }
}

#[test]
fn read_only_calls_run_in_parallel() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut clients: Vec<_> = (0..4).map(|_| node.connect()).collect();
    let ids: Vec<u64> = clients.iter_mut().map(|client| client.start("meet", "4")).collect();
    for (client, id) in clients.iter_mut().zip(ids) {
        assert_eq!(client.finish(id).unwrap().text(), "met");
    }
}

#[test]
fn a_cancelled_call_ends_at_once_wherever_it_is() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    let running = client.start("until_cancelled", "");
    let waiting = client.start("add", "");
    let assembling = client.begin(&Call { length: Some(5), ..Call::new("echo") });
    std::thread::sleep(Duration::from_millis(20));
    for id in [waiting, assembling, running] {
        client.cancel(id);
        let problem = client.finish(id).unwrap_err();
        assert_eq!((problem.kind.as_str(), problem.blame), ("caller-gone", Blame::Caller));
    }
    assert_eq!(client.call("add", "").text(), "1", "what was cancelled has run");
    assert_eq!(client.call("has", "mark").text(), "no");
    let pouring = client.start("pour", "50000000");
    while client.so_far(pouring) < 1_000_000 {
        assert!(client.read());
    }
    client.cancel(pouring);
    assert_eq!(client.finish(pouring).unwrap_err().kind, "caller-gone");
    assert_eq!(client.call("add", "").text(), "2");
}

#[test]
fn a_deadline_is_the_lowest_of_all_and_kept_wherever_the_call_is() {
    let state = State::new();
    let mut assignment = ringed(&plugin());
    assignment.manifest = serde_json::json!({
        "name": "app",
        "limits": {"deadline_ms": 10_000},
        "functions": {"until_cancelled": {"deadline_ms": 150}},
    });
    let mut node = Node::assigned(&state, &assignment);
    let mut client = node.connect();
    let within = |ms| Call { deadline_ms: std::num::NonZeroU32::new(ms), ..Call::new("until_cancelled") };
    for (asked, expected) in [(60_000, 150), (50, 50)] {
        let begun = Instant::now();
        let id = client.start_with(&within(asked), b"");
        assert_eq!(client.finish(id).unwrap_err().kind, "deadline-exceeded");
        let took = begun.elapsed().as_millis();
        assert!((expected..expected + 140).contains(&took), "{took} ms");
    }
    // One that waits for its turn, one whose input never comes, and one that waits for its input.
    let burning = client.start("burn", "400");
    let begun = Instant::now();
    let soon = |function| Call { deadline_ms: std::num::NonZeroU32::new(60), ..Call::new(function) };
    let waiting = client.start_with(&soon("add"), b"");
    let assembling = client.begin(&Call { length: Some(5), ..soon("echo") });
    for id in [waiting, assembling] {
        let problem = client.finish(id).unwrap_err();
        assert_eq!((problem.kind.as_str(), problem.retry), ("deadline-exceeded", Retry::Safe));
    }
    assert!(begun.elapsed() < Duration::from_millis(250), "{:?}", begun.elapsed());
    assert_eq!(client.finish(burning).unwrap().text(), "burnt");
    let streaming = client.begin(&soon("stream_whole"));
    assert_eq!(client.finish(streaming).unwrap_err().kind, "deadline-exceeded");
    assert_eq!(client.call("add", "").text(), "1");
    assert_eq!(node.census().0, 0);
}

#[test]
fn replies_are_as_durable_as_is_asked_for() {
    let state = State::new();
    let mut assignment = ringed(&plugin());
    assignment.manifest = serde_json::json!({
        "name": "app",
        "functions": {"add": {"durability": "node"}},
    });
    let mut node = Node::assigned(&state, &assignment);
    let mut client = node.connect();
    assert_eq!(client.call("add", "").rests_on.unwrap().durability, Durability::Node);
    let mut out = Vec::new();
    let ids: Vec<u64> = (0..60).map(|_| client.write(&Call::new("add"), b"", &mut out)).collect();
    client.send(&out);
    for id in ids {
        assert_eq!(client.finish(id).unwrap().rests_on.unwrap().durability, Durability::Node);
    }
    let asked = Call { durability: Some(Durability::Node), ..Call::new("append") };
    let id = client.start_with(&asked, b"x");
    assert_eq!(client.finish(id).unwrap().rests_on.unwrap().durability, Durability::Node);
    let streamed = Call { durability: Some(Durability::Node), ..Call::new("stream_add") };
    let id = client.start_with(&streamed, b"x");
    assert_eq!(client.finish(id).unwrap().rests_on.unwrap().durability, Durability::Node);
}

#[test]
fn a_key_stands_for_one_call() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let (mut client, mut other) = (node.connect(), node.connect());
    let keyed = Call { idempotency_key: Some("once"), ..Call::new("add") };
    let id = client.start_with(&keyed, b"");
    assert_eq!(client.finish(id).unwrap().text(), "1");
    let id = other.start_with(&keyed, b"");
    let again = other.finish(id).unwrap();
    assert_eq!((again.text().as_str(), again.replayed), ("1", true));
    assert_eq!(client.call("count", "").text(), "1");
}

#[test]
fn a_broken_rule_is_told_and_ends_the_connection_and_no_other() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let (mut bad, mut good) = (node.connect(), node.connect());
    bad.call("add", "");
    let running = bad.start("until_cancelled", "");
    std::thread::sleep(Duration::from_millis(10));
    let mut frame = [0; 32];
    frame[4] = 200;
    bad.send(&frame);
    let problem = bad.refusal();
    assert_eq!((problem.kind.as_str(), problem.cause.as_deref()), ("protocol-error", Some("unknown-kind")));
    assert_eq!(node.done(&bad), CallerEnd::Violation);
    let _ = running;
    assert_eq!(good.call("add", "").text(), "2");
    // A CALL that names a process on a bound connection.
    let mut bound = node.connect();
    let mut out = Vec::new();
    bound
        .protocol
        .call(&Call { process: Some("other"), ..Call::new("add") }, 0, true, &mut out)
        .unwrap_or_default();
    if !out.is_empty() {
        bound.send(&out);
        assert_eq!(bound.refusal().cause.as_deref(), Some("bad-field"));
        assert_eq!(node.done(&bound), CallerEnd::Violation);
    }
    assert_eq!(good.call("add", "").text(), "3");
}

#[test]
fn a_client_that_leaves_takes_its_calls_along() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut other = node.connect();
    for cut in [false, true] {
        let mut client = node.connect();
        let running = client.start("until_cancelled", "");
        let waiting = client.start("add", "");
        let half = client.begin(&Call { length: Some(100), ..Call::new("echo") });
        if cut {
            client.send(&[0; 7]);
        }
        std::thread::sleep(Duration::from_millis(20));
        client.socket.shutdown(Shutdown::Write).unwrap();
        let end = node.done(&client);
        assert_eq!(end, if cut { CallerEnd::Broken } else { CallerEnd::Closed });
        let _ = (running, waiting, half);
    }
    assert_eq!(other.call("has", "mark").text(), "no");
    assert_eq!(other.call("add", "").text(), "1", "a call without a caller has run");
    let until = Instant::now() + Duration::from_secs(5);
    while node.census().0 > 0 {
        assert!(Instant::now() < until, "a call of nobody is kept");
    }
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_and_is_not_read() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let generous =
        Hello { call_window: 64 << 20, connection_window: 64 << 20, ..Hello::new("app", Some("process")) };
    let mut deaf = node.connect_with(&generous, &accepted(), None);
    let mut other = node.connect();
    deaf.call("add", "");
    let mut ids = Vec::new();
    let mut out = Vec::new();
    for _ in 0..100 {
        ids.push(deaf.write(&Call::new("large"), b"400000", &mut out));
    }
    deaf.send(&out);
    deaf.socket.set_nonblocking(true).unwrap();
    // More frames than all buffers hold.
    let ping = {
        let mut ping = Vec::new();
        deaf.protocol.ping(7, &mut ping);
        ping
    };
    let ping = ping.repeat(1000);
    let mut sent = 0;
    let mut moved = Instant::now();
    while sent < 24 << 20 && moved.elapsed() < Duration::from_millis(400) {
        match deaf.socket.write(&ping[sent % ping.len()..]) {
            Ok(count) => (sent, moved) = (sent + count, Instant::now()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    deaf.socket.set_nonblocking(false).unwrap();
    assert!(sent < 24 << 20, "a client that does not read is read");
    let begun = Instant::now();
    for number in 2..100 {
        assert_eq!(other.call("add", "").text(), number.to_string());
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // The rest of a frame that was begun, as soon as it is read again.
    let at = sent % ping.len();
    let rest = ping[at..at.next_multiple_of(32)].to_vec();
    let mut writer = deaf.socket.try_clone().unwrap();
    let rest = std::thread::spawn(move || writer.write_all(&rest).unwrap());
    let expected = pattern(400_000);
    for id in ids {
        assert!(deaf.finish(id).unwrap().body == expected);
    }
    rest.join().unwrap();
}

#[test]
fn slow_readers_of_large_replies_keep_no_thread() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut readers: Vec<_> = (0..20).map(|_| node.connect()).collect();
    let ids: Vec<u64> = readers.iter_mut().map(|reader| reader.start("large", "4000000")).collect();
    let mut other = node.connect();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(node.census().0, 20, "a reply that is being taken is in flight");
    let begun = Instant::now();
    for number in 1..50 {
        assert_eq!(other.call("add", "").text(), number.to_string());
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let expected = pattern(4_000_000);
    for (reader, id) in readers.iter_mut().zip(ids) {
        assert!(reader.finish(id).unwrap().body == expected);
    }
}

/// Voluntary switches of all threads.
fn switches(pid: u32) -> u64 {
    let mut switches = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary")).unwrap();
        switches += line.split_whitespace().last().unwrap().parse::<u64>().unwrap();
    }
    switches
}

#[test]
fn idle_connections_cost_nothing() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut clients: Vec<_> = (0..10).map(|_| node.connect()).collect();
    for client in &mut clients {
        client.call("add", "");
    }
    clients[0].call("burn", "20");
    std::thread::sleep(Duration::from_millis(300));
    let before = switches(node.agent.pid());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(switches(node.agent.pid()), before, "an idle process woke up");
    assert_eq!(clients[3].call("add", "").text(), "11");
}

#[test]
fn a_drain_runs_what_came_whole_and_gives_every_connection_back() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let (mut busy, mut idle) = (node.connect(), node.connect());
    assert_eq!(idle.call("append", "a").text(), "a");
    let running = busy.start("append", "sleep");
    let waiting = busy.start("append", "w");
    let half = busy.begin(&Call { length: Some(10), ..Call::new("echo") });
    let streaming = busy.begin(&Call::new("stream_whole"));
    std::thread::sleep(Duration::from_millis(30));
    // The beginning of a header.
    let mut cut = Vec::new();
    let late = idle.write(&Call::new("append"), b"later", &mut cut);
    idle.send(&cut[..20]);
    std::thread::sleep(Duration::from_millis(10));
    node.drain();
    let (busy_number, idle_number) = (busy.number, idle.number);
    let reader = std::thread::spawn(move || {
        assert_eq!(busy.finish(running).unwrap().text(), "asleep");
        assert_eq!(busy.finish(waiting).unwrap().text(), "asleepw");
        for id in [half, streaming] {
            let problem = busy.finish(id).unwrap_err();
            assert_eq!((problem.kind.as_str(), problem.retry), ("draining", Retry::Safe));
        }
        busy
    });
    let mut back = node.drained();
    let mut busy = reader.join().unwrap();
    assert_eq!(back.len(), 2);
    assert_eq!(back[&idle_number].residue, cut[..20]);
    idle.send(&cut[20..]);
    let mut next = Node::serving(&state);
    for (client, number) in [(&mut busy, busy_number), (&mut idle, idle_number)] {
        let back = back.remove(&number).unwrap();
        client.number = next.give(back.socket, &back.parked, &back.residue);
    }
    assert_eq!(idle.finish(late).unwrap().text(), "asleepwlater");
    assert_eq!(busy.call("append", "!").text(), "asleepwlater!");
    assert_eq!(busy.call("echo", "alive").text(), "alive");
    // What was told of the half inputs is skipped by the next life.
    let data = denizen_protocol::Header {
        body_len: 10,
        flags: denizen_protocol::FLAG_END,
        ..denizen_protocol::Header::new(denizen_protocol::Kind::Data, half)
    };
    busy.send(&data.encode());
    busy.send(b"0123456789\0\0\0\0\0\0");
    assert_eq!(busy.call("echo", "still").text(), "still");
}

#[test]
fn a_drain_waits_two_seconds_for_who_does_not_read() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut deaf = node.connect();
    let mut other = node.connect();
    other.call("add", "");
    deaf.start("large", "8000000");
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    node.drain();
    assert_eq!(node.done(&deaf), CallerEnd::Unsent);
    let took = begun.elapsed();
    assert!((1_900..4_000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(node.drained().len(), 1);
}

#[test]
fn a_drain_lets_a_reader_have_the_whole_of_a_long_reply() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    let (whole, streamed) = (client.start("large", "8000000"), client.start("pour", "8000000"));
    while client.so_far(streamed) == 0 {
        assert!(client.read());
    }
    node.drain();
    let reader = std::thread::spawn(move || {
        assert!(client.finish(whole).unwrap().body == pattern(8_000_000));
        assert_eq!(client.finish(streamed).unwrap().body.len(), 8_000_000);
        client
    });
    let mut back = node.drained();
    let mut client = reader.join().unwrap();
    let back = back.remove(&client.number).unwrap();
    let mut next = Node::serving(&state);
    next.give(back.socket, &back.parked, &back.residue);
    assert_eq!(client.call("add", "").text(), "1");
}

#[test]
fn a_connection_that_comes_while_a_process_drains_goes_back() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut busy = node.connect();
    let running = busy.start("append", "sleep");
    std::thread::sleep(Duration::from_millis(20));
    node.drain();
    let mut late = node.connect();
    let id = late.start("echo", "x");
    let reader = std::thread::spawn(move || busy.finish(running).map(|answer| answer.text()));
    let back = node.drained();
    assert_eq!(reader.join().unwrap(), Ok("sleep".to_owned()));
    assert_eq!(back.len(), 2);
    let mut next = Node::serving(&state);
    for (number, back) in back {
        let number_now = next.give(back.socket, &back.parked, &back.residue);
        if number == late.number {
            late.number = number_now;
        }
    }
    assert_eq!(late.finish(id).unwrap().text(), "x");
}

/// One connection over many lives of the process, drained at random instants while calls pour in.
fn lives(rounds: u32, seed: u64) {
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut client = node.connect();
    let mut number = client.number;
    let socket = client.socket.try_clone().unwrap();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let caller = std::thread::spawn(move || {
        let mut next = 1_u64;
        let mut refused = 0_u64;
        let mut seed = seed;
        while told.try_recv().is_err() {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut out = Vec::new();
            let count = 1 + seed % 7;
            let ids: Vec<u64> = (0..count)
                .map(|at| {
                    if (seed >> at) & 3 == 0 {
                        let body = pattern(usize::try_from(seed % 3_000).unwrap());
                        client.write(&Call::new("echo"), &body, &mut out)
                    } else {
                        client.write(&Call::new("add"), b"", &mut out)
                    }
                })
                .collect();
            let cut = usize::try_from(seed >> 20).unwrap() % out.len();
            client.send(&out[..cut]);
            if seed & 0x100 == 0 {
                std::thread::sleep(Duration::from_micros(seed % 400));
            }
            client.send(&out[cut..]);
            for (at, id) in ids.into_iter().enumerate() {
                match client.finish(id) {
                    Ok(answer) if (seed >> at) & 3 == 0 => {
                        assert!(answer.body == pattern(usize::try_from(seed % 3_000).unwrap()));
                    }
                    Ok(answer) => {
                        assert_eq!(answer.text(), next.to_string(), "a call was lost or run twice");
                        next += 1;
                    }
                    Err(problem) => {
                        assert_eq!(problem.kind, "draining", "{problem:?}");
                        refused += 1;
                    }
                }
            }
        }
        (next - 1, refused)
    });
    let mut seed = seed | 1;
    let mut given = 0;
    for _ in 0..rounds {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        std::thread::sleep(Duration::from_micros(seed % 3_000));
        node.drain();
        let mut back = node.drained();
        let back = back.remove(&number).expect("the connection is given back");
        given += back.taken;
        Parked::decode(&back.parked).unwrap();
        node = Node::serving(&state);
        number = node.give(back.socket, &back.parked, &back.residue);
    }
    tell.send(()).unwrap();
    let (added, _refused) = caller.join().unwrap();
    assert!(given > 0 && added > 0);
    let mut last = node.connect();
    assert_eq!(last.call("count", "").text(), added.to_string());
    // To here, so that no end of the client's is among what is given back.
    drop(socket);
}

#[test]
fn a_connection_survives_the_ends_of_its_processes() {
    lives(25, 0x9E37_79B9_7F4A_7C15);
}

#[test]
#[ignore = "a minute and more"]
fn soak_a_connection_survives_thousands_of_ends() {
    for seed in 1..=8 {
        lives(250, 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
    }
}

#[test]
fn a_process_without_connections_ends_and_serves_as_ever() {
    let state = State::new();
    let mut node = Node::serving(&state);
    assert_eq!(node.agent.call("add", "").body(), "1");
    node.drain();
    assert!(node.drained().is_empty());
    let mut plain = Agent::serving(&state);
    assert_eq!(plain.call("add", "").body(), "2");
    plain.send(Header::new(Kind::AskCensus, 0), &[]);
    let said = plain.next_of(|said| said.header.kind == Kind::Census);
    assert_eq!((said.header.a, said.header.b, said.header.c), (0, 0, 0));
}

#[test]
#[ignore = "half a minute"]
fn a_client_that_stops_within_a_frame_or_takes_nothing_is_given_up() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let (mut cut, mut idle) = (node.connect(), node.connect());
    idle.call("add", "");
    let begun = Instant::now();
    cut.send(&[0; 3]);
    let generous =
        Hello { call_window: 64 << 20, connection_window: 64 << 20, ..Hello::new("app", Some("process")) };
    let mut deaf = node.connect_with(&generous, &accepted(), None);
    for _ in 0..5 {
        deaf.start("large", "8000000");
    }
    node.agent.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(node.done(&cut), CallerEnd::Stalled);
    assert!((29_000..40_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(node.done(&deaf), CallerEnd::Stalled);
    assert_eq!(idle.call("add", "").text(), "2");
}

#[test]
fn who_sends_without_end_keeps_nobody_from_being_heard() {
    let state = State::new();
    let mut node = Node::serving(&state);
    let (mut flood, mut other) = (node.connect(), node.connect());
    flood.call("echo", "");
    other.call("echo", "");
    // Calls could be too many at once; what says that a call is over which is over is no call.
    let over = denizen_protocol::Header::new(denizen_protocol::Kind::Cancel, 1).encode();
    let many = over.repeat(2_000);
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut replies = flood.socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut replies, &mut std::io::sink()));
    let writer = std::thread::spawn({
        let (ended, mut socket) = (ended.clone(), flood.socket.try_clone().unwrap());
        move || {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                socket.write_all(&many).unwrap();
            }
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..20 {
        assert_eq!(other.call("add", "").text().len().min(1), 1);
    }
    // Nor the agent.
    assert_eq!(node.agent.call("count", "").body(), "20");
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    flood.socket.shutdown(Shutdown::Both).unwrap();
    let _ = reader.join().unwrap();
}

#[test]
fn a_drain_in_the_middle_of_what_was_read_of_several_loses_nothing_and_doubles_nothing() {
    const CALLS: u64 = 100;
    let state = State::new();
    let mut node = Node::serving(&state);
    let mut clients: Vec<_> = (0..6).map(|_| node.connect()).collect();
    let mut numbers = Vec::new();
    let mut begun = 0;
    for round in 0..6_u64 {
        let mut ids = Vec::new();
        for client in &mut clients {
            let mut out = Vec::new();
            let of_this: Vec<u64> =
                (0..CALLS).map(|_| client.write(&Call::new("add"), b"", &mut out)).collect();
            client.send(&out);
            begun += CALLS;
            ids.push(of_this);
        }
        std::thread::sleep(Duration::from_millis(round));
        node.drain();
        let mut back = node.drained();
        let mut next = Node::serving(&state);
        for client in &mut clients {
            let back = back.remove(&client.number).unwrap();
            client.number = next.give(back.socket, &back.parked, &back.residue);
        }
        node = next;
        for (client, ids) in clients.iter_mut().zip(ids) {
            for id in ids {
                numbers.push(client.finish(id).unwrap().text().parse::<u64>().unwrap());
            }
        }
    }
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=begun), "a call is lost or was made twice");
}
