//! Peers that do not keep the rules: every rule broken once at each end, streams cut and changed anywhere, and floods.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use denizen_protocol::client::{self, Call, Memory};
use denizen_protocol::server::{self, Parked, Terms};
use denizen_protocol::{
    Accepted, BY_NAME, Blame, CallHead, CancelReason, Drain, DrainReason, Durability, FLAG_END, Final,
    FunctionRef, Header, Hello, Kind, MAGIC, Moved, PADDING, Problem, ReplyHead, Retry, Sender, Violation,
    limits, padding, problem,
};
use proptest::prelude::*;

fn terms() -> Terms {
    let hello = Hello {
        call_window: limits::MIN_WINDOW,
        connection_window: limits::MIN_WINDOW,
        ..Hello::new("app", Some("p"))
    };
    let accepted = Accepted {
        max_calls: limits::MIN_CALLS,
        call_window: limits::MIN_WINDOW,
        connection_window: 2 * limits::MIN_WINDOW,
        ..Accepted::new(1, 1 << 20)
    };
    Terms::agreed(&hello, &accepted, None)
}

fn serving() -> server::Connection {
    server::Connection::resume(Parked::fresh(terms()))
}

fn with_body(mut frame: Vec<u8>, body: &[u8]) -> Vec<u8> {
    frame.extend_from_slice(body);
    frame.extend_from_slice(&PADDING[..padding(body.len())]);
    frame
}

fn len(body: &[u8]) -> u32 {
    u32::try_from(body.len()).unwrap()
}

/// A whole CALL, its body included.
fn call(id: u64, body: &[u8], end: bool) -> Vec<u8> {
    let mut out = Vec::new();
    CallHead::new(FunctionRef::Name("f")).encode(id, len(body), end, &mut out).unwrap();
    with_body(out, body)
}

fn header(kind: Kind, id: u64) -> Header {
    let head_len = u16::try_from(kind.fixed_head()).unwrap();
    Header { head_len, ..Header::new(kind, id) }
}

fn data(id: u64, body: &[u8], end: bool) -> Vec<u8> {
    let flags = if end { FLAG_END } else { 0 };
    with_body(Header { body_len: len(body), flags, ..header(Kind::Data, id) }.encode().to_vec(), body)
}

fn serve(stream: &[u8]) -> Result<usize, Violation> {
    serve_with(&mut serving(), stream)
}

/// How many events there are, or how the stream breaks the rules. An error is final.
fn serve_with(server: &mut server::Connection, stream: &[u8]) -> Result<usize, Violation> {
    let mut input = stream;
    let mut events = 0;
    loop {
        match server.next(&mut input) {
            Ok(Some(_)) => events += 1,
            Ok(None) => return Ok(events),
            Err(violation) => {
                let mut fine = &call(1 << 40, b"", true)[..];
                assert_eq!(server.next(&mut fine), Err(violation.clone()), "a broken stream stays broken");
                assert!(server.park(&mut Vec::new()).is_none());
                return Err(violation);
            }
        }
    }
}

fn changed(mut stream: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    stream[at] = byte;
    stream
}

/// Every rule that a client can break after its HELLO.
fn broken_by_a_client() -> Vec<(Vec<u8>, &'static str)> {
    let window = limits::MIN_WINDOW as usize;
    let credit = |id, a| Header { a, ..header(Kind::Credit, id) }.encode().to_vec();
    let declared = |c, body: &[u8], end: bool| {
        let mut stream = call(1, body, end);
        stream[24..32].copy_from_slice(&u64::to_le_bytes(c));
        stream
    };
    let late_field = {
        let mut out = Vec::new();
        let call = CallHead { content_type: Some("text/plain"), ..CallHead::new(FunctionRef::Name("f")) };
        call.encode(1, 0, true, &mut out).unwrap();
        out
    };
    let process = {
        let mut out = Vec::new();
        let call = CallHead { process: Some("q"), ..CallHead::new(FunctionRef::Name("f")) };
        call.encode(1, 0, true, &mut out).unwrap();
        out
    };
    let many: Vec<u8> = (1..=u64::from(limits::MIN_CALLS) + 1).flat_map(|id| call(id, b"", true)).collect();
    vec![
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), "unknown-kind"),
        (vec![0; 32], "unknown-kind"),
        (vec![255; 32], "unknown-kind"),
        (changed(call(1, b"", true), 4, 1), "unknown-kind"),
        (header(Kind::Reply, 1).encode().to_vec(), "wrong-direction"),
        (header(Kind::Drain, 1).encode().to_vec(), "wrong-direction"),
        (header(Kind::Accepted, MAGIC).encode().to_vec(), "wrong-direction"),
        (hello(), "unexpected-frame"),
        (changed(call(1, b"", true), 5, 4), "bad-flags"),
        (changed(data(1, b"", true), 5, 2), "bad-flags"),
        (call_with_id_zero(), "bad-id"),
        (header(Kind::Ping, 3).encode().to_vec(), "bad-id"),
        (header(Kind::Fail, 3).encode().to_vec(), "bad-id"),
        (Header { a: 1, ..header(Kind::Ping, 0) }.encode().to_vec(), "reserved-not-zero"),
        (Header { c: 1, flags: FLAG_END, ..header(Kind::Data, 1) }.encode().to_vec(), "reserved-not-zero"),
        (changed(call(1, b"", true), 32 + 12, 1), "reserved-not-zero"),
        (Header { head_len: 15, ..header(Kind::Call, 1) }.encode().to_vec(), "bad-head-length"),
        (Header { head_len: u16::MAX, ..header(Kind::Call, 1) }.encode().to_vec(), "bad-head-length"),
        (Header { head_len: 1, ..header(Kind::Ping, 0) }.encode().to_vec(), "bad-head-length"),
        (Header { body_len: u32::MAX, ..header(Kind::Call, 1) }.encode().to_vec(), "body-too-long"),
        (Header { body_len: (1 << 20) + 1, ..header(Kind::Data, 1) }.encode().to_vec(), "body-too-long"),
        (Header { body_len: 1, ..header(Kind::Cancel, 1) }.encode().to_vec(), "body-too-long"),
        (changed(call(1, b"abc", true), 32 + 32 + 3, 1), "bad-padding"),
        (changed(call(1, b"abc", true), 32 + 22, 1), "bad-padding"),
        (changed(call(1, b"", true), 32 + 18, 2), "field-cut-short"),
        (changed(late_field.clone(), 32 + 21, 3), "field-order"),
        (changed(late_field, 32 + 21, 12), "unknown-field"),
        ([&header(Kind::Call, 1).encode()[..], &[0; 16]].concat(), "bad-value"),
        (no_function(), "missing-field"),
        (changed(call(1, b"", true), 32 + 20, b'/'), "bad-field"),
        (process, "bad-field"),
        (changed(call(1, b"", true), 32 + 8, 7), "bad-value"),
        (changed(call(1, b"", true), 16, 0), "bad-value"),
        (
            [call(1, b"", true), Header { a: 9, ..header(Kind::Cancel, 1) }.encode().to_vec()].concat(),
            "bad-value",
        ),
        (credit(0, 0), "bad-value"),
        ([call(5, b"", true), call(5, b"", true)].concat(), "id-not-increasing"),
        ([call(5, b"", true), call(4, b"", true)].concat(), "id-not-increasing"),
        (data(1, b"x", true), "unknown-call"),
        (header(Kind::Cancel, 1).encode().to_vec(), "unknown-call"),
        (credit(1, 1), "unknown-call"),
        (many, "too-many-calls"),
        ([call(1, b"", false), data(1, &vec![0; window + 1], false)].concat(), "window-exceeded"),
        (call(1, &vec![0; window + 1], true), "window-exceeded"),
        ((1..4).flat_map(|id| call(id, &vec![0; window], true)).collect(), "window-exceeded"),
        (credit(0, u32::MAX), "credit-overflow"),
        ([call(1, b"", true), credit(1, limits::MAX_WINDOW)].concat(), "credit-overflow"),
        (declared(9, b"0123456789", true), "length-mismatch"),
        (declared(11, b"0123456789", true), "length-mismatch"),
        (
            [declared(11, b"0123456789", false), data(1, b"x", false), data(1, b"y", true)].concat(),
            "length-mismatch",
        ),
        ([call(1, b"", false), data(1, b"", false)].concat(), "empty-data"),
        ([call(1, b"", true), data(1, b"x", true)].concat(), "outside-body"),
        ([call(1, b"", false), data(1, b"", true), data(1, b"", true)].concat(), "outside-body"),
    ]
}

fn hello() -> Vec<u8> {
    let mut out = Vec::new();
    Hello::new("app", Some("p")).encode(&mut out).unwrap();
    out
}

fn call_with_id_zero() -> Vec<u8> {
    let mut stream = call(1, b"", true);
    stream[8..16].fill(0);
    stream
}

fn no_function() -> Vec<u8> {
    let mut stream = call(1, b"", true);
    stream[6] = 16;
    stream.truncate(48);
    stream
}

#[test]
fn every_rule_that_a_client_breaks_has_its_name() {
    for (at, (stream, name)) in broken_by_a_client().into_iter().enumerate() {
        let violation = serve(&stream).expect_err(name);
        assert_eq!(violation.name(), name, "case {at}: {violation}");
        for step in [1, 3, 31, 33] {
            let mut server = serving();
            let result = stream.chunks(step).try_for_each(|piece| serve_with(&mut server, piece).map(drop));
            assert_eq!(result.unwrap_err().name(), name, "case {at} in steps of {step}");
        }
        let told = Problem::from(&violation);
        assert_eq!((told.kind.as_str(), told.cause.as_deref()), (problem::PROTOCOL_ERROR, Some(name)));
        let mut out = Vec::new();
        told.encode(0, &mut out).unwrap();
    }
}

fn greeted() -> client::Connection {
    let hello = Hello {
        call_window: limits::MIN_WINDOW,
        connection_window: 2 * limits::MIN_WINDOW,
        ..Hello::new("app", Some("p"))
    };
    let mut client = client::Connection::open(&hello, Memory::default(), &mut Vec::new()).unwrap();
    assert!(matches!(hear(&mut client, &ok(5)), Ok(1)));
    client
}

fn ok(epoch: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Accepted { table: 1, functions: vec!["f".to_owned()], ..Accepted::new(epoch, 1 << 20) }
        .encode(&mut out)
        .unwrap();
    out
}

/// A client with one call under way, by the id 1.
fn calling() -> client::Connection {
    let mut client = greeted();
    assert_eq!(client.call(&Call::new("f"), 0, true, &mut Vec::new()), Ok(1));
    client
}

fn hear(client: &mut client::Connection, stream: &[u8]) -> Result<usize, Violation> {
    let mut input = stream;
    let mut events = 0;
    loop {
        match client.next(&mut input) {
            Ok(Some(_)) => events += 1,
            Ok(None) => return Ok(events),
            Err(violation) => {
                assert_eq!(
                    client.next(&mut &ok(9)[..]),
                    Err(violation.clone()),
                    "a broken stream stays broken"
                );
                assert!(client.call(&Call::new("f"), 0, true, &mut Vec::new()).is_err());
                return Err(violation);
            }
        }
    }
}

fn reply(id: u64, epoch: u64, body: &[u8], end: bool) -> Vec<u8> {
    let rests_on = Final { commit: 1, durability: Durability::Process };
    let mut out = Vec::new();
    ReplyHead::new(epoch, rests_on).encode(id, len(body), end, &mut out).unwrap();
    with_body(out, body)
}

fn fail(id: u64, epoch: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let problem = Problem { epoch, ..Problem::new("function-failed", Blame::Function, Retry::Safe) };
    problem.encode(id, &mut out).unwrap();
    out
}

fn drain(last: u64) -> Vec<u8> {
    let mut out = Drain { last, ..Drain::new(DrainReason::Shutdown) };
    out.address = Some("b:1".to_owned());
    let mut bytes = Header { body_len: 0, ..Header::new(Kind::Drain, last) }.encode().to_vec();
    bytes[16] = out.reason as u8;
    bytes
}

fn broken_by_a_server() -> Vec<(Vec<u8>, &'static str)> {
    let window = limits::MIN_WINDOW as usize;
    let credit = |id, a| Header { a, ..header(Kind::Credit, id) }.encode().to_vec();
    let moved = {
        let mut out = Vec::new();
        Moved { address: "a:1".to_owned(), epoch: 9 }.encode(&mut out).unwrap();
        out
    };
    let declared = {
        let rests_on = Final { commit: 1, durability: Durability::Process };
        let mut out = Vec::new();
        ReplyHead { length: Some(3), ..ReplyHead::new(5, rests_on) }.encode(1, 0, false, &mut out).unwrap();
        out
    };
    vec![
        (ok(5), "unexpected-frame"),
        (moved, "unexpected-frame"),
        ([drain(0), drain(0)].concat(), "unexpected-frame"),
        (call(1, b"", true), "wrong-direction"),
        (drain(2), "unknown-call"),
        (reply(2, 5, b"", true), "unknown-call"),
        (fail(2, 5), "unknown-call"),
        ([reply(1, 5, b"x", true), reply(1, 5, b"x", true)].concat(), "unknown-call"),
        ([fail(1, 5), fail(1, 5)].concat(), "unknown-call"),
        ([fail(1, 5), data(1, b"x", true)].concat(), "unknown-call"),
        (credit(2, 1), "unknown-call"),
        ([reply(1, 5, b"x", true), credit(1, 1)].concat(), "unknown-call"),
        (data(1, b"x", true), "outside-body"),
        ([reply(1, 5, b"", false), reply(1, 5, b"", true)].concat(), "outside-body"),
        ([reply(1, 5, b"", false), data(1, b"", false)].concat(), "empty-data"),
        (reply(1, 4, b"", true), "stale-epoch"),
        (fail(1, 4), "stale-epoch"),
        (reply(1, 5, &vec![0; window + 1], true), "window-exceeded"),
        ([declared.clone(), data(1, b"four", false)].concat(), "length-mismatch"),
        ([declared, data(1, b"2b", true)].concat(), "length-mismatch"),
        (changed(reply(1, 5, b"", true), 32 + 8, 1), "length-mismatch"),
        (changed(reply(1, 5, b"", true), 20, 3), "bad-value"),
        (credit(0, 0), "bad-value"),
        (credit(1, limits::MAX_WINDOW), "credit-overflow"),
        (changed(fail(1, 5), 17, 3), "bad-value"),
        (Header { flags: 8, ..header(Kind::Reply, 1) }.encode().to_vec(), "bad-flags"),
    ]
}

#[test]
fn every_rule_that_a_server_breaks_has_its_name() {
    for (at, (stream, name)) in broken_by_a_server().into_iter().enumerate() {
        for step in [1, 17, stream.len()] {
            let mut client = calling();
            let result = stream.chunks(step).try_for_each(|piece| hear(&mut client, piece).map(drop));
            let violation = result.expect_err(name);
            assert_eq!(violation.name(), name, "case {at} in steps of {step}: {violation}");
            let lost = client.lost();
            assert!(lost.unfinished.iter().all(|call| call.id == 1));
        }
    }
}

#[test]
fn the_answer_to_a_hello_is_the_only_first_frame() {
    for stream in [
        reply(1, 5, b"", true),
        fail(1, 5),
        data(1, b"x", true),
        drain(0),
        header(Kind::Pong, 0).encode().to_vec(),
    ] {
        let mut client =
            client::Connection::open(&Hello::new("app", Some("p")), Memory::default(), &mut Vec::new())
                .unwrap();
        client.call(&Call::new("f"), 0, true, &mut Vec::new()).unwrap();
        assert_eq!(hear(&mut client, &stream).unwrap_err().name(), "unexpected-frame");
    }
    for (at, byte, name) in
        [(4, 99, "unknown-kind"), (8, 0, "not-denizen"), (16, 9, "bad-value"), (21, 0, "bad-value")]
    {
        let mut client =
            client::Connection::open(&Hello::new("app", None), Memory::default(), &mut Vec::new()).unwrap();
        assert_eq!(hear(&mut client, &changed(ok(5), at, byte)).unwrap_err().name(), name, "byte {at}");
    }
}

#[test]
fn an_owner_of_the_past_is_refused_at_the_greeting_and_after_a_reconnect() {
    let memory = greeted().lost().memory;
    assert_eq!(memory.epoch("p"), 5);
    let hello = Hello::new("app", Some("p"));
    let mut again = client::Connection::open(&hello, memory.clone(), &mut Vec::new()).unwrap();
    assert_eq!(hear(&mut again, &ok(4)), Err(Violation::StaleEpoch { got: 4, seen: 5 }));
    let mut newer = client::Connection::open(&hello, memory, &mut Vec::new()).unwrap();
    assert_eq!(hear(&mut newer, &ok(6)), Ok(1));
    newer.call(&Call::new("f"), 0, true, &mut Vec::new()).unwrap();
    assert_eq!(hear(&mut newer, &reply(1, 5, b"", true)), Err(Violation::StaleEpoch { got: 5, seen: 6 }));
}

#[test]
fn a_connection_within_a_node_needs_no_greeting() {
    let hello = Hello::new("app", Some("p"));
    let accepted = Accepted { table: 1, functions: vec!["f".to_owned()], ..Accepted::new(5, 10) };
    let mut client = client::Connection::established(&hello, &accepted, Memory::default()).unwrap();
    assert!(client.is_open() && client.has_room());
    assert_eq!(client.call(&Call::new("f"), 0, true, &mut Vec::new()), Ok(1));
    assert!(client.call(&Call::new("f"), 11, true, &mut Vec::new()).is_err(), "the limits of the OK hold");
    assert_eq!(hear(&mut client, &reply(1, 5, b"ok", true)), Ok(1));
    let memory = client.lost().memory;
    let stale = Accepted { epoch: 4, ..accepted };
    assert!(client::Connection::established(&hello, &stale, memory).is_err());
}

#[test]
fn epochs_of_an_unbound_connection_are_kept_for_each_process() {
    let mut client =
        client::Connection::open(&Hello::new("app", None), Memory::default(), &mut Vec::new()).unwrap();
    hear(&mut client, &ok(0)).unwrap();
    let mut out = Vec::new();
    for process in ["a", "b", "a", "b"] {
        client.call(&Call { process: Some(process), ..Call::new("f") }, 0, true, &mut out).unwrap();
    }
    assert!(
        hear(&mut client, &[reply(1, 9, b"", true), reply(2, 3, b"", true), reply(4, 3, b"", true)].concat())
            .is_ok()
    );
    assert_eq!(hear(&mut client, &reply(3, 8, b"", true)), Err(Violation::StaleEpoch { got: 8, seen: 9 }));
}

#[test]
fn what_was_not_executed_is_told_apart_from_what_may_have_been() {
    use client::Fate::{NotExecuted, Unknown};
    let fates = |client: client::Connection| -> Vec<_> {
        client.lost().unfinished.into_iter().map(|call| (call.id, call.fate)).collect()
    };
    let early = || {
        let mut client =
            client::Connection::open(&Hello::new("app", Some("p")), Memory::default(), &mut Vec::new())
                .unwrap();
        client.call(&Call::new("f"), 0, true, &mut Vec::new()).unwrap();
        client
    };
    assert_eq!(fates(early()), [(1, Unknown)], "the connection may have been accepted");
    let mut moved = early();
    let mut answer = Vec::new();
    Moved { address: "b:1".to_owned(), epoch: 2 }.encode(&mut answer).unwrap();
    hear(&mut moved, &answer).unwrap();
    assert_eq!(fates(moved), [(1, NotExecuted)]);
    let mut refused = early();
    hear(&mut refused, &fail(0, 0)).unwrap();
    assert_eq!(fates(refused), [(1, NotExecuted)]);
    let mut drained = calling();
    drained.call(&Call::new("f"), 0, true, &mut Vec::new()).unwrap();
    hear(&mut drained, &drain(1)).unwrap();
    assert_eq!(fates(drained), [(1, Unknown), (2, NotExecuted)]);
    let mut given_up = calling();
    hear(&mut given_up, &fail(0, 0)).unwrap();
    assert_eq!(fates(given_up), [(1, Unknown)]);
}

#[test]
fn a_function_that_changed_its_place_is_called_by_name_again() {
    let mut client = calling();
    assert_eq!(client.memory().function("f"), Some((1, 0)));
    let mut out = Vec::new();
    Problem::new(problem::FUNCTIONS_CHANGED, Blame::Host, Retry::Safe).encode(1, &mut out).unwrap();
    hear(&mut client, &out).unwrap();
    assert_eq!(client.memory().function("f"), None);
    out.clear();
    client.call(&Call::new("f"), 0, true, &mut out).unwrap();
    let header = Header::decode(Sender::Client, out.first_chunk().unwrap()).unwrap();
    assert_eq!(header.a, BY_NAME);
    let rests_on = Final { commit: 1, durability: Durability::Process };
    let mut answer = Vec::new();
    ReplyHead { function: Some((2, 7)), ..ReplyHead::new(5, rests_on) }
        .encode(2, 0, true, &mut answer)
        .unwrap();
    hear(&mut client, &answer).unwrap();
    assert_eq!(client.memory().function("f"), Some((2, 7)));
}

#[test]
fn late_frames_of_an_ended_call_are_dropped_and_their_credit_comes_back() {
    let mut server = serving();
    serve_with(&mut server, &call(1, b"", false)).unwrap();
    let mut out = Vec::new();
    server.fail(1, &Problem::new("function-failed", Blame::Function, Retry::Safe), &mut out).unwrap();
    out.clear();
    let piece = vec![0; limits::MIN_WINDOW as usize / 2];
    for _ in 0..100 {
        assert_eq!(serve_with(&mut server, &data(1, &piece, false)), Ok(0));
        server.control(&mut out);
    }
    let told: u64 = out
        .chunks(32)
        .map(|frame| {
            let header = Header::decode(Sender::Server, frame.try_into().unwrap()).unwrap();
            assert_eq!((header.kind, header.id), (Kind::Credit, 0));
            u64::from(header.a)
        })
        .sum();
    assert_eq!(told, 100 * piece.len() as u64);
    let late =
        [header(Kind::Cancel, 1).encode(), Header { a: 5, ..header(Kind::Credit, 1) }.encode()].concat();
    assert_eq!(serve_with(&mut server, &late), Ok(0));
}

#[test]
fn floods_cost_no_memory() {
    let mut server = serving();
    let ping = |value| Header { c: value, ..header(Kind::Ping, 0) }.encode().to_vec();
    let pings: Vec<u8> = (0..10_000).flat_map(ping).collect();
    assert_eq!(serve_with(&mut server, &pings), Ok(0));
    let mut out = Vec::new();
    server.control(&mut out);
    assert_eq!(out, Header { c: 9_999, ..header(Kind::Pong, 0) }.encode(), "the newest is answered, once");
    for id in 1..20_000 {
        serve_with(&mut server, &call(id, b"", false)).unwrap();
        out.clear();
        server.fail(id, &Problem::new("overloaded", Blame::Host, Retry::Safe), &mut out).unwrap();
        serve_with(
            &mut server,
            &[data(id, b"late", true), Header { a: 1, ..header(Kind::Credit, id) }.encode().to_vec()]
                .concat(),
        )
        .unwrap();
    }
    assert!(server.kept_bytes() < 1024, "{} bytes kept", server.kept_bytes());
    for id in 20_000..20_000 + u64::from(limits::MIN_CALLS) {
        serve_with(&mut server, &call(id, b"", false)).unwrap();
        server.consumed(id, usize::MAX);
    }
    let longest = Header { head_len: 8192, ..header(Kind::Call, 30_000) }.encode();
    serve_with(&mut server, &[&longest[..], &[0; 8191]].concat()).unwrap();
    assert!(server.kept_bytes() < 40_000, "{} bytes kept", server.kept_bytes());
}

#[test]
fn a_stream_that_ends_within_a_frame_is_told_from_one_that_ends_between_frames() {
    let stream = [call(1, b"abc", false), data(1, b"d", false)].concat();
    for cut in 0..=stream.len() {
        let mut server = serving();
        serve_with(&mut server, &stream[..cut]).unwrap();
        let between = [0, 96 - 16, stream.len()].contains(&cut);
        assert_eq!(server.is_within_frame(), !between, "cut at {cut}");
        let calls = if cut == 0 { vec![] } else { vec![1] };
        assert_eq!(
            server.ended(),
            if between { Ok(calls) } else { Err(Violation::CutShort) },
            "cut at {cut}"
        );
    }
}

/// What events say, apart from how bodies are cut.
fn retell(stream: &[u8], cuts: impl Iterator<Item = usize>) -> (Vec<String>, Vec<u8>) {
    let mut server = serving();
    let (mut said, mut bodies) = (Vec::new(), Vec::new());
    let mut from = 0;
    for to in cuts.chain([stream.len()]) {
        let mut input = &stream[from..to];
        from = to;
        while let Some(event) = server.next(&mut input).unwrap() {
            use server::Event;
            match event {
                Event::Call { id, head, part } => {
                    said.push(format!("call {id} {head:?}"));
                    bodies.extend_from_slice(part.bytes);
                    said.extend(part.end.then(|| format!("end {id}")));
                }
                Event::Body { id, part } => {
                    bodies.extend_from_slice(part.bytes);
                    said.extend(part.end.then(|| format!("end {id}")));
                }
                other => said.push(format!("{other:?}")),
            }
        }
    }
    (said, bodies)
}

fn conversation() -> Vec<u8> {
    let mut out = Vec::new();
    let full = CallHead {
        content_type: Some("text/plain"),
        idempotency_key: Some("key-1"),
        ..CallHead::new(FunctionRef::Index { table: 8, index: 2 })
    };
    full.encode(2, 0, false, &mut out).unwrap();
    [
        call(1, b"seventeen bytes..", true),
        out,
        data(2, b"some", false),
        header(Kind::Ping, 0).encode().to_vec(),
        data(2, &[7; 100], true),
        Header { a: CancelReason::Deadline as u32, ..header(Kind::Cancel, 1) }.encode().to_vec(),
        Header { a: 77, ..header(Kind::Credit, 2) }.encode().to_vec(),
        call(9, b"", true),
        Header { c: 5, ..header(Kind::Pong, 0) }.encode().to_vec(),
        fail(0, 0),
    ]
    .concat()
}

#[test]
fn a_conversation_is_the_same_cut_at_any_byte() {
    let stream = conversation();
    let whole = retell(&stream, std::iter::empty());
    assert_eq!(whole.0.len(), 10, "{:?}", whole.0);
    for cut in 0..=stream.len() {
        assert_eq!(retell(&stream, std::iter::once(cut)), whole, "cut at {cut}");
    }
    assert_eq!(retell(&stream, 1..stream.len()), whole, "byte by byte");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_get_an_answer(stream in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = serve(&stream);
        let _ = hear(&mut calling(), &stream);
        let mut handshake = server::Handshake::new();
        let mut rest = &stream[..];
        while handshake.wants() > 0 && !rest.is_empty() {
            let (piece, tail) = rest.split_at(handshake.wants().min(rest.len()));
            rest = tail;
            let _ = handshake.push(piece);
        }
    }

    #[test]
    fn a_changed_conversation_gets_an_answer(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), step in 1..200_usize,
    ) {
        let mut stream = conversation();
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let mut server = serving();
        let result = stream.chunks(step).try_for_each(|piece| serve_with(&mut server, piece).map(drop));
        // At any pace. Which of two broken rules is found first may depend on it.
        prop_assert_eq!(result.is_err(), serve(&stream).is_err());
        prop_assert!(server.kept_bytes() < 16_000);
    }

    #[test]
    fn a_changed_hello_is_refused_or_read_with_its_limits(at in 0..200_usize, byte in any::<u8>()) {
        let mut stream = Vec::new();
        let hello = Hello { token: vec![9; 40], client: Some("c/1".to_owned()), ..Hello::new("app", Some("p")) };
        hello.encode(&mut stream).unwrap();
        let at = at % stream.len();
        stream[at] = byte;
        let mut handshake = server::Handshake::new();
        let mut rest = &stream[..];
        while handshake.wants() > 0 && !rest.is_empty() {
            let (piece, tail) = rest.split_at(handshake.wants().min(rest.len()));
            rest = tail;
            if let Ok(Some(hello)) = handshake.push(piece) {
                let mut again = Vec::new();
                hello.encode(&mut again).unwrap();
                // Where the change made a field one that is skipped, it is gone.
                prop_assert!(again == stream || hello.client.is_none(), "one form for one content");
            }
        }
    }
}

/// The names that these tests, those of the handshake and the end of a stream bring about.
#[test]
fn every_violation_is_brought_about() {
    let mut names: BTreeSet<&str> = broken_by_a_client().into_iter().map(|(_, name)| name).collect();
    names.extend(broken_by_a_server().into_iter().map(|(_, name)| name));
    names.extend(["not-denizen", "unsupported-version", "cut-short"]);
    let page = include_str!("../../../docs/protocol.md");
    let section = page.split("## Violations").nth(1).expect("the page lists the violations");
    let listed: BTreeSet<&str> = section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(names, listed);
}
