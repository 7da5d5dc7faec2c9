//! Both ends against each other, over a pipe that delivers at any pace, with every command in any order.
//!
//! What is checked: neither end ever finds the other in breach; every call has exactly one end at each end; bodies arrive
//! whole and in order, even where part of them is received elsewhere; windows are kept; and when everything is said and
//! done, nothing is left over. Bodies are a function of call, direction and offset, so that a byte in the wrong place is
//! seen.
#![expect(clippy::unwrap_used, reason = "a model that goes wrong shall stop where it does")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use denizen_protocol::client::{self, Call, Memory};
use denizen_protocol::server::{self, Handshake, Parked, Terms};
use denizen_protocol::{
    Accepted, Blame, CancelReason, CommandError, Drain, DrainReason, Durability, Final, FunctionRef, Hello,
    PADDING, Problem, ReplyHead, Retry, limits, padding,
};
use proptest::prelude::*;

const TABLE: u64 = 77;
const FUNCTIONS: [&str; 3] = ["get", "put", "list"];

/// xorshift: the interleaving is the test's input, so it has to be reproducible from one number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn len(&mut self, most: usize) -> usize {
        let shift = self.roll(u64::from(usize::BITS - most.leading_zeros()) + 1);
        usize::try_from(self.roll((1 << shift) + 1)).unwrap().min(most)
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

fn byte(call: u64, reply: bool, offset: usize) -> u8 {
    let mixed = call.wrapping_mul(31) ^ (offset as u64).wrapping_mul(7) ^ u64::from(reply) << 5;
    u8::try_from(mixed % 251).unwrap()
}

fn send_body(pipe: &mut VecDeque<u8>, call: u64, reply: bool, from: usize, len: usize) {
    pipe.extend((from..from + len).map(|offset| byte(call, reply, offset)));
    pipe.extend(&PADDING[..padding(len)]);
}

#[derive(Default)]
struct Body {
    sent: usize,
    total: usize,
    sent_end: bool,
    got: usize,
    got_end: bool,
    held: usize,
}

impl Body {
    fn take(&mut self, call: u64, reply: bool, bytes: &[u8], end: bool) {
        assert!(!self.got_end, "nothing follows the end");
        for (at, got) in bytes.iter().enumerate() {
            assert_eq!(
                *got,
                byte(call, reply, self.got + at),
                "call {call} reply {reply} offset {}",
                self.got + at
            );
        }
        self.got += bytes.len();
        self.held += bytes.len();
        self.got_end |= end;
    }
}

struct World {
    dice: Dice,
    client: client::Connection,
    server: Option<server::Connection>,
    handshake: Handshake,
    accepted: Option<Accepted>,
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    requests: BTreeMap<u64, Body>,
    replies: BTreeMap<u64, Body>,
    /// Calls that the server has seen, and not ended.
    running: BTreeMap<u64, bool>,
    /// How each call ended for the client, and for the server.
    ends: BTreeMap<u64, &'static str>,
    server_ends: BTreeMap<u64, &'static str>,
    refused: BTreeSet<u64>,
    drained: bool,
    pings: (u64, u64),
    /// What happened at all: a model that never does a thing proves nothing about it.
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed | 1);
        let mut out = Vec::new();
        let small = dice.one_in(2);
        let hello = Hello {
            call_window: if small { limits::MIN_WINDOW } else { limits::DEFAULT_CALL_WINDOW },
            ..Hello::new("app", Some("p"))
        };
        let client = client::Connection::open(&hello, Memory::default(), &mut out).unwrap();
        World {
            dice,
            client,
            server: None,
            handshake: Handshake::new(),
            accepted: None,
            to_server: out.into(),
            to_client: VecDeque::new(),
            requests: BTreeMap::new(),
            replies: BTreeMap::new(),
            running: BTreeMap::new(),
            ends: BTreeMap::new(),
            server_ends: BTreeMap::new(),
            refused: BTreeSet::new(),
            drained: false,
            pings: (0, 0),
            seen: BTreeSet::new(),
        }
    }

    fn step(&mut self) {
        match self.dice.roll(16) {
            0 => self.client_call(),
            1 | 2 => self.client_data(),
            3 => self.client_side(),
            4..6 => self.client_read(),
            6 => self.client_consume(),
            7..9 => self.server_read(),
            9 => self.server_consume(),
            10 | 11 => self.server_reply(),
            12 | 13 => self.server_data(),
            14 => self.server_side(),
            _ => self.park(),
        }
    }

    fn client_call(&mut self) {
        let room = self.client.room_for_new();
        let total = self.dice.len(400_000);
        let first = self.dice.len(total.min(room));
        let end = first == total;
        let length = self.dice.one_in(2).then_some(total as u64);
        let function = FUNCTIONS[usize::try_from(self.dice.roll(3)).unwrap()];
        let call = Call { length, idempotency_key: Some("k"), ..Call::new(function) };
        let has_room = self.client.has_room();
        let mut out = Vec::new();
        let id = match self.client.call(&call, first, end, &mut out) {
            Ok(id) => id,
            Err(CommandError::TooManyCalls { .. } | CommandError::Draining) => return assert!(!has_room),
            Err(error) => panic!("{error}"),
        };
        assert!(has_room);
        if self.accepted.is_none() {
            self.seen.insert("early call");
        }
        self.to_server.extend(out);
        send_body(&mut self.to_server, id, false, 0, first);
        self.requests.insert(id, Body { sent: first, total, sent_end: end, ..Body::default() });
        self.replies.insert(id, Body::default());
    }

    fn pick(&mut self, ids: Vec<u64>) -> Option<u64> {
        let sides = ids.len().max(1) as u64;
        ids.get(usize::try_from(self.dice.roll(sides)).unwrap()).copied()
    }

    fn client_data(&mut self) {
        let open = self.requests.iter().filter(|(_, body)| !body.sent_end);
        let Some(id) = self.pick(open.map(|(id, _)| *id).collect()) else { return };
        let most = self.client.sendable(id);
        let body = self.requests.get_mut(&id).unwrap();
        let len = self.dice.len(most.min(body.total - body.sent));
        let end = body.sent + len == body.total;
        let mut out = Vec::new();
        match self.client.data(id, len, end, &mut out) {
            Ok(()) => {}
            Err(CommandError::Empty { .. }) => return,
            Err(CommandError::UnknownCall { .. }) => {
                assert!(self.ends.contains_key(&id) || self.refused.contains(&id));
                body.sent_end = true;
                return;
            }
            Err(error) => panic!("{error}"),
        }
        let from = body.sent;
        body.sent += len;
        body.sent_end = end;
        self.to_server.extend(out);
        send_body(&mut self.to_server, id, false, from, len);
    }

    fn client_side(&mut self) {
        let mut out = Vec::new();
        if self.client.is_open() && self.dice.one_in(4) {
            self.pings.0 += 1;
            self.client.ping(self.pings.0, &mut out);
        }
        if self.dice.one_in(6) {
            let live =
                self.replies.keys().filter(|id| !self.ends.contains_key(id) && !self.refused.contains(id));
            if let Some(id) = self.pick(live.copied().collect())
                && self.client.cancel(id, CancelReason::Unwanted, &mut out).is_ok()
            {
                self.requests.get_mut(&id).unwrap().sent_end = true;
                self.seen.insert("cancel");
            }
        }
        if self.dice.one_in(5) {
            let live: Vec<u64> = self.replies.keys().copied().collect();
            if let Some(id) = self.pick(live) {
                let len = self.dice.len(1 << 20) as u64;
                self.client.grant(id, len);
            }
        }
        if self.accepted.is_some() {
            self.client.control(&mut out);
        }
        self.to_server.extend(out);
    }

    fn client_read(&mut self) {
        let count = self.dice.len(self.to_client.len().min(200_000));
        let bytes: Vec<u8> = self.to_client.drain(..count).collect();
        let mut input = &bytes[..];
        while let Some(event) = self.client.next(&mut input).expect("an honest server breaks no rule") {
            use client::Event;
            match event {
                Event::Accepted(accepted) => self.accepted = Some(accepted),
                Event::Reply { id, head, part, done } => {
                    assert_eq!(head.epoch, 3);
                    let body = self.replies.get_mut(&id).unwrap();
                    body.take(id, true, part.bytes, part.end);
                    assert_eq!(part.end, done.is_some());
                    if done.is_some() {
                        assert!(self.ends.insert(id, "reply").is_none());
                    }
                }
                Event::Body { id, part, done } => {
                    let body = self.replies.get_mut(&id).unwrap();
                    body.take(id, true, part.bytes, part.end);
                    assert_eq!(part.end, done.is_some());
                    if let Some(done) = done {
                        assert_eq!(done.commit, id + 1000);
                        assert!(self.ends.insert(id, "reply").is_none());
                    }
                }
                Event::Failed { id, problem } => {
                    assert_eq!(problem.kind, "function-failed");
                    assert!(self.ends.insert(id, "fail").is_none());
                }
                Event::Draining(_) => self.drained = true,
                Event::Pong { value } => {
                    assert!(value > self.pings.1 && value <= self.pings.0);
                    self.pings.1 = value;
                }
                Event::Credit { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if self.drained {
            let refused = self.client.refused();
            self.refused.extend(refused.iter().map(|call| call.id));
        }
        if let Some(rest) = self.client.rest().filter(|_| self.dice.one_in(2)) {
            let count = self.to_client.len().min(rest.body);
            let bytes: Vec<u8> = self.to_client.drain(..count).collect();
            let event = self.client.received(count);
            self.seen.insert("reply received elsewhere");
            if let Some(client::Event::Body { id, part, done }) = event {
                self.replies.get_mut(&id).unwrap().take(id, true, &bytes, part.end);
                if done.is_some() {
                    assert!(self.ends.insert(id, "reply").is_none());
                }
            }
        }
    }

    fn client_consume(&mut self) {
        for (id, body) in &mut self.replies {
            let count = self.dice.len(body.held);
            body.held -= count;
            self.client.consumed(*id, count);
        }
    }

    fn server_read(&mut self) {
        let Some(server) = &mut self.server else { return self.server_greet() };
        let count = self.dice.len(self.to_server.len().min(200_000));
        let bytes: Vec<u8> = self.to_server.drain(..count).collect();
        let mut input = &bytes[..];
        while let Some(event) = server.next(&mut input).expect("an honest client breaks no rule") {
            use server::Event;
            match event {
                Event::Call { id, head, part } => {
                    if let FunctionRef::Index { table, index } = head.function {
                        assert!(table == TABLE && (index as usize) < FUNCTIONS.len());
                    }
                    let body = self.requests.get_mut(&id).unwrap();
                    assert!(head.length.is_none_or(|length| length == body.total as u64));
                    body.take(id, false, part.bytes, part.end);
                    let named = matches!(head.function, FunctionRef::Name(_));
                    self.seen.insert(if named { "by name" } else { "by index" });
                    assert!(self.running.insert(id, named).is_none());
                }
                Event::Body { id, part } => {
                    assert!(self.running.contains_key(&id));
                    self.requests.get_mut(&id).unwrap().take(id, false, part.bytes, part.end);
                }
                Event::Cancel { id, .. } => assert!(self.running.contains_key(&id)),
                Event::Credit { .. } | Event::Pong { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if let Some(rest) = server.rest().filter(|_| self.dice.one_in(2)) {
            let count = self.to_server.len().min(rest.body);
            let bytes: Vec<u8> = self.to_server.drain(..count).collect();
            self.seen.insert("input received elsewhere");
            match server.received(count) {
                Some((id, part)) => self.requests.get_mut(&id).unwrap().take(id, false, &bytes, part.end),
                None => assert!(count == 0 || !rest.wanted),
            }
        }
        assert!(server.in_flight() <= limits::DEFAULT_CALLS as usize);
    }

    fn server_greet(&mut self) {
        let count = self.dice.len(self.handshake.wants()).min(self.to_server.len());
        let bytes: Vec<u8> = self.to_server.drain(..count).collect();
        let Some(hello) = self.handshake.push(&bytes).unwrap() else { return };
        let accepted = Accepted {
            table: TABLE,
            max_calls: limits::MIN_CALLS,
            call_window: limits::MIN_WINDOW,
            connection_window: limits::MIN_WINDOW * 2,
            functions: if self.dice.one_in(2) { FUNCTIONS.map(str::to_owned).to_vec() } else { Vec::new() },
            ..Accepted::new(3, 1 << 30)
        };
        let mut out = Vec::new();
        accepted.encode(&mut out).unwrap();
        self.to_client.extend(out);
        let parked = Parked::fresh(Terms::agreed(&hello, &accepted, None));
        self.server = Some(server::Connection::resume(parked));
    }

    fn server_consume(&mut self) {
        let Some(server) = &mut self.server else { return };
        for (id, body) in &mut self.requests {
            let count = self.dice.len(body.held);
            body.held -= count;
            server.consumed(*id, count);
        }
    }

    fn server_end(&mut self, id: u64, how: &'static str) {
        self.running.remove(&id);
        assert!(self.server_ends.insert(id, how).is_none());
    }

    fn server_reply(&mut self) {
        let ids: Vec<u64> = self.running.keys().copied().collect();
        let Some(id) = self.pick(ids) else { return };
        let Some(server) = &mut self.server else { return };
        let mut out = Vec::new();
        if self.dice.one_in(6) {
            server
                .fail(id, &Problem::new("function-failed", Blame::Function, Retry::Safe), &mut out)
                .unwrap();
            self.to_client.extend(out);
            return self.server_end(id, "fail");
        }
        let open = server.sendable(id);
        let total = self.dice.len(400_000);
        let first = self.dice.len(total.min(open));
        let named = self.running[&id];
        let rests_on = Final { commit: id + 1000, durability: Durability::Process };
        let head = ReplyHead {
            length: self.dice.one_in(2).then_some(total as u64),
            function: named.then_some((TABLE, 1)),
            ..ReplyHead::new(3, rests_on)
        };
        let end = first == total;
        match server.reply(id, &head, first, end, &mut out) {
            Ok(()) => {}
            Err(CommandError::OutOfOrder { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        self.to_client.extend(out);
        send_body(&mut self.to_client, id, true, 0, first);
        let body = self.replies.get_mut(&id).unwrap();
        (body.sent, body.total, body.sent_end) = (first, total, end);
        if end {
            self.server_end(id, "reply");
        }
    }

    fn server_data(&mut self) {
        let ids: Vec<u64> = self.running.keys().copied().collect();
        let Some(id) = self.pick(ids) else { return };
        let Some(server) = &mut self.server else { return };
        let body = self.replies.get_mut(&id).unwrap();
        let len = self.dice.len(server.sendable(id).min(body.total - body.sent));
        let end = body.sent + len == body.total;
        let done = end.then_some(Final { commit: id + 1000, durability: Durability::Node });
        let mut out = Vec::new();
        match server.data(id, len, done, &mut out) {
            Ok(()) => {}
            Err(CommandError::Empty { .. } | CommandError::OutOfOrder { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        self.to_client.extend(out);
        send_body(&mut self.to_client, id, true, body.sent, len);
        body.sent += len;
        if end {
            self.server_end(id, "reply");
        }
    }

    fn server_side(&mut self) {
        let Some(server) = &mut self.server else { return };
        let mut out = Vec::new();
        server.control(&mut out);
        if self.dice.one_in(5) {
            let ids: Vec<u64> = self.running.keys().copied().collect();
            let sides = ids.len().max(1) as u64;
            if let Some(id) = ids.get(usize::try_from(self.dice.roll(sides)).unwrap()) {
                server.grant(*id, self.dice.len(1 << 20) as u64);
            }
        }
        if self.dice.one_in(4) {
            server.ping(1, &mut out);
        }
        if self.dice.one_in(400) {
            let _ = server.drain(&Drain::new(DrainReason::Policy), &mut out);
        }
        self.to_client.extend(out);
    }

    /// A process is swapped out and comes back, or the connection goes to another.
    fn park(&mut self) {
        let Some(server) = &mut self.server else { return };
        let mut out = Vec::new();
        let parked = server.park(&mut out);
        self.to_client.extend(out);
        let Some((parked, leftover)) = parked else { return };
        self.seen.insert(if leftover.is_empty() { "parked" } else { "parked within a head" });
        let parked = Parked::decode(&parked.encode()).unwrap();
        // What was taken from the stream and not used goes back to its front.
        for byte in leftover.into_iter().rev() {
            self.to_server.push_front(byte);
        }
        for body in self.requests.values_mut() {
            // The record counts what was handed out as dealt with.
            body.held = 0;
        }
        self.server = Some(server::Connection::resume(parked));
    }

    /// Everything is read, consumed and answered, with no new calls.
    fn settle(&mut self) {
        for round in 0..20_000 {
            self.server_read();
            self.client_read();
            self.client_data();
            self.client_consume();
            self.server_consume();
            self.server_reply();
            self.server_data();
            let mut out = Vec::new();
            if let Some(server) = &mut self.server {
                server.control(&mut out);
            }
            self.to_client.extend(out.drain(..));
            if self.accepted.is_some() {
                self.client.control(&mut out);
            }
            self.to_server.extend(out);
            let quiet = self.to_server.is_empty() && self.to_client.is_empty() && self.running.is_empty();
            if quiet && self.client.in_flight() == 0 && self.accepted.is_some() {
                return;
            }
            assert!(round < 19_999, "the two ends wait for each other: {:?}", self.running.keys());
        }
    }

    fn check(&mut self) {
        self.seen.extend(self.ends.values());
        if !self.refused.is_empty() {
            self.seen.insert("refused");
        }
        for (id, request) in &self.requests {
            let refused = self.refused.contains(id);
            assert_eq!(refused, !self.ends.contains_key(id), "call {id} has one end, or was refused");
            assert_eq!(self.ends.get(id), self.server_ends.get(id), "both ends agree on call {id}");
            if request.got_end {
                assert!(request.got == request.total && request.sent == request.total, "request {id}");
            }
            let reply = &self.replies[id];
            if self.ends.get(id) == Some(&"reply") {
                assert!(reply.got_end && reply.got == reply.total, "reply {id}");
            }
        }
    }
}

fn play(seed: u64, steps: usize) -> BTreeSet<&'static str> {
    let mut world = World::new(seed);
    (0..steps).for_each(|_| world.step());
    world.settle();
    world.check();
    world.seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_agree_under_any_interleaving(seed in any::<u64>(), steps in 10..1500_usize) {
        play(seed, steps);
    }
}

#[test]
fn long_conversations_end_as_they_should_and_everything_happens_in_them() {
    let mut seen = BTreeSet::new();
    for seed in 1..=12 {
        seen.extend(play(seed * 0x9E37_79B9, 3_000));
    }
    let all = [
        "by index",
        "by name",
        "cancel",
        "early call",
        "fail",
        "input received elsewhere",
        "parked",
        "parked within a head",
        "refused",
        "reply",
        "reply received elsewhere",
    ];
    assert_eq!(seen, BTreeSet::from(all));
}
