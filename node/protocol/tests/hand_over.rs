//! Connections that change hands: from the agent to a sandbox, and from one sandbox to the next while the client stays connected.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use denizen_protocol::server::{Connection, Event, Handshake, Parked, Terms};
use denizen_protocol::{
    Accepted, Blame, CallHead, Drain, DrainReason, Durability, FLAG_END, Final, FunctionRef, Header, Hello,
    Kind, PADDING, Problem, ReplyHead, Retry, Sender, limits, padding,
};

const WINDOW: usize = limits::MIN_WINDOW as usize;

fn accepted() -> Accepted {
    Accepted {
        call_window: limits::MIN_WINDOW,
        connection_window: limits::MIN_WINDOW,
        ..Accepted::new(1, 1 << 20)
    }
}

fn hello() -> Hello {
    Hello {
        call_window: limits::MIN_WINDOW,
        connection_window: limits::MIN_WINDOW,
        ..Hello::new("app", Some("p"))
    }
}

fn fresh() -> Connection {
    Connection::resume(Parked::fresh(Terms::agreed(&hello(), &accepted(), None)))
}

fn call(id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let len = u32::try_from(body.len()).unwrap();
    CallHead::new(FunctionRef::Name("f")).encode(id, len, true, &mut out).unwrap();
    out.extend_from_slice(body);
    out.extend_from_slice(&PADDING[..padding(body.len())]);
    out
}

/// Ids and bodies of the calls in `stream`.
fn calls(server: &mut Connection, stream: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut input = stream;
    let mut seen: Vec<(u64, Vec<u8>)> = Vec::new();
    while let Some(event) = server.next(&mut input).unwrap() {
        match event {
            Event::Call { id, part, .. } => seen.push((id, part.bytes.to_vec())),
            Event::Body { part, .. } => seen.last_mut().unwrap().1.extend_from_slice(part.bytes),
            other => panic!("{other:?}"),
        }
    }
    seen
}

fn fail(server: &mut Connection, id: u64) {
    let problem = Problem::new("function-failed", Blame::Function, Retry::Safe);
    server.fail(id, &problem, &mut Vec::new()).unwrap();
}

fn pass_on(server: &mut Connection, out: &mut Vec<u8>) -> (Connection, Vec<u8>) {
    let (parked, leftover) = server.park(out).expect("nothing is in flight");
    (Connection::resume(Parked::decode(&parked.encode()).unwrap()), leftover)
}

#[test]
fn what_the_client_sent_behind_its_hello_reaches_the_process() {
    let mut stream = Vec::new();
    hello().encode(&mut stream).unwrap();
    stream.extend_from_slice(&call(1, b"early"));
    let mut handshake = Handshake::new();
    let mut at = 0;
    let hello = loop {
        let end = at + handshake.wants();
        let said = handshake.push(&stream[at..end]).unwrap();
        at = end;
        if let Some(hello) = said {
            break hello;
        }
    };
    let functions = Some(vec!["f".to_owned()]);
    let mut server = Connection::resume(Parked::fresh(Terms::agreed(&hello, &accepted(), functions)));
    assert_eq!(calls(&mut server, &stream[at..]), [(1, b"early".to_vec())]);
    assert!(server.terms().permit("f") && !server.terms().permit("g"));
}

#[test]
fn a_connection_passed_on_at_any_byte_loses_and_repeats_nothing() {
    let stream = [call(3, b"first"), call(4, &[8; 100]), call(7, b"third")].concat();
    for cut in 0..=stream.len() {
        let mut server = fresh();
        let mut seen = calls(&mut server, &stream[..cut]);
        if server.rest().is_some() {
            // In the middle of an input nobody can take over, unless the call is ended first.
            assert!(server.park(&mut Vec::new()).is_none());
        }
        seen.iter().for_each(|(id, _)| fail(&mut server, *id));
        let dropped = server.rest().map(|rest| rest.id);
        let (mut next, mut rest) = pass_on(&mut server, &mut Vec::new());
        rest.extend_from_slice(&stream[cut..]);
        seen.extend(calls(&mut next, &rest));
        let ids: Vec<u64> = seen.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [3, 4, 7], "cut at {cut}");
        for (id, body) in &seen {
            let whole = match id {
                3 => b"first".to_vec(),
                4 => vec![8; 100],
                _ => b"third".to_vec(),
            };
            assert!(*body == whole || dropped == Some(*id), "call {id}, cut at {cut}");
        }
    }
}

#[test]
fn credit_is_neither_lost_nor_made_by_passing_on() {
    let mut server = fresh();
    let piece = vec![0; WINDOW / 4];
    let mut told = 0;
    for id in 1..=40 {
        assert_eq!(
            calls(&mut server, &call(id, &piece)).len(),
            1,
            "an honest client is never over its credit"
        );
        fail(&mut server, id);
        let mut out = Vec::new();
        // Nothing was counted as consumed: who held the bytes is gone, so passing on counts them.
        let (next, _) = pass_on(&mut server, &mut out);
        server = next;
        for frame in out.chunks(limits::HEADER_LEN) {
            let header = Header::decode(Sender::Server, frame.try_into().unwrap()).unwrap();
            assert_eq!((header.kind, header.id), (Kind::Credit, 0));
            told += header.a as usize;
        }
    }
    assert_eq!(told, 40 * piece.len());
}

#[test]
fn what_was_sent_of_the_reply_window_stays_sent() {
    let mut server = fresh();
    calls(&mut server, &call(1, b""));
    assert_eq!(server.sendable(1), WINDOW);
    let head = ReplyHead::new(1, Final { commit: 1, durability: Durability::Process });
    server.reply(1, &head, WINDOW - 10, true, &mut Vec::new()).unwrap();
    let (mut next, _) = pass_on(&mut server, &mut Vec::new());
    calls(&mut next, &call(2, b""));
    assert_eq!(next.sendable(2), 10);
    let credit = Header { a: 90, ..Header::new(Kind::Credit, 0) }.encode();
    let mut input = &credit[..];
    assert_eq!(next.next(&mut input), Ok(Some(Event::Credit { id: None })));
    assert_eq!(next.sendable(2), 100);
}

#[test]
fn ids_go_on_growing_in_other_hands() {
    let mut server = fresh();
    calls(&mut server, &call(9, b""));
    fail(&mut server, 9);
    let (mut next, _) = pass_on(&mut server, &mut Vec::new());
    let again = call(9, b"");
    assert_eq!(next.next(&mut &again[..]).unwrap_err().name(), "id-not-increasing");
}

#[test]
fn a_connection_that_cannot_be_passed_on_is_not() {
    let mut server = fresh();
    calls(&mut server, &call(1, b""));
    assert!(server.park(&mut Vec::new()).is_none(), "a call is in flight");
    fail(&mut server, 1);
    server.drain(&Drain::new(DrainReason::Shutdown), &mut Vec::new()).unwrap();
    assert!(server.park(&mut Vec::new()).is_none(), "its client was told that it ends");
    assert!(server.drain(&Drain::new(DrainReason::Shutdown), &mut Vec::new()).is_err());
    let late = [call(2, b"late"), Header { flags: FLAG_END, ..Header::new(Kind::Data, 2) }.encode().to_vec()]
        .concat();
    assert_eq!(calls(&mut server, &late), [], "what came after the notice is dropped");
}

#[test]
fn bodies_are_aligned_where_the_stream_is() {
    let stream: Vec<u8> = (1..20).flat_map(|id| call(id, &vec![1; usize::try_from(id).unwrap()])).collect();
    // The receiver's buffer begins at a multiple of 16 of the stream.
    let mut server = fresh();
    let start = stream.as_ptr() as usize;
    let mut input = &stream[..];
    while let Some(Event::Call { part, .. }) = server.next(&mut input).unwrap() {
        assert_eq!((part.bytes.as_ptr() as usize - start) % limits::ALIGN, 0);
    }
}
