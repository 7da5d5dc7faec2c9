//! The machine against nodes that do everything that a node may do, and some that do what none may: cut connections anywhere, drain, move,
//! refuse, answer late, answer for an owner of the past, and send damaged bytes. Time is a number here.

use std::collections::{BTreeMap, HashMap, HashSet};

use denizen_protocol::server::{Connection, Event, Handshake, Parked, Terms};
use denizen_protocol::{
    Accepted, Blame, Drain, DrainReason, Durability, Final, Moved, Problem, ReplyHead, padding,
};
use proptest::prelude::*;

use super::*;

/// Numbers from a seed: the same game each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn len(&mut self, most: usize) -> usize {
        usize::try_from(self.roll(most as u64 + 1)).unwrap()
    }
}

/// The node's end of a connection.
struct Peer {
    handshake: Handshake,
    serving: Option<Connection>,
    /// On its way to the client.
    out: Vec<u8>,
    /// Inputs as far as they have come.
    inputs: BTreeMap<u64, Vec<u8>>,
    /// Calls that were executed and not answered.
    executed: BTreeMap<u64, String>,
    epoch: u64,
    is_closing: bool,
}

/// A call as the game knows it.
#[derive(Clone, Copy)]
struct Known {
    may_be_repeated: bool,
    executions: u32,
}

struct World {
    machine: Machine,
    now: Instant,
    dice: Dice,
    peers: BTreeMap<u64, Peer>,
    calls: HashMap<String, Known>,
    names: HashMap<u64, String>,
    ended: HashSet<u64>,
    epoch: u64,
    /// Nodes that damage what they send.
    is_hostile: bool,
    /// From now on all is well.
    is_calm: bool,
    seen: HashSet<&'static str>,
}

impl World {
    fn new(seed: u64, is_hostile: bool) -> World {
        let options = Options::new("a:1", "app").process("p").patience(Duration::from_secs(3600));
        World {
            machine: Machine::new(options).unwrap(),
            now: Instant::now(),
            dice: Dice(seed),
            peers: BTreeMap::new(),
            calls: HashMap::new(),
            names: HashMap::new(),
            ended: HashSet::new(),
            epoch: 5,
            is_hostile,
            is_calm: false,
            seen: HashSet::new(),
        }
    }

    fn step(&mut self) {
        // A damaged pause may be an hour.
        self.now += Duration::from_millis(self.dice.roll(if self.is_calm { 1000 } else { 20 }));
        self.machine.pump(self.now);
        if let Some((key, _)) = self.machine.dial(self.now) {
            self.dialed(key);
        }
        match self.dice.roll(12) {
            0..=2 if !self.is_calm => self.begin(),
            3 if !self.is_calm && self.dice.roll(8) == 0 => self.cut(),
            4 if !self.is_calm && self.dice.roll(8) == 0 => self.drain(),
            5 if !self.is_calm && self.dice.roll(10) == 0 => self.epoch += 1,
            _ => {}
        }
        for key in self.peers.keys().copied().collect::<Vec<_>>() {
            self.client_to_node(key);
            self.answer(key);
            self.node_to_client(key);
        }
        let machine = &self.machine;
        self.peers.retain(|key, _| machine.has_link(*key));
        self.note_ends();
    }

    fn note_ends(&mut self) {
        while let Some((ticket, end)) = self.machine.pop_ended() {
            self.note_end(ticket, &end);
        }
    }

    fn begin(&mut self) {
        let name = format!("call-{}", self.calls.len());
        let kind = self.dice.roll(3);
        let request = match kind {
            0 => Request::new("f").idempotency_key(&name),
            1 => Request::new("f").repeatable(),
            _ => Request::new("f"),
        };
        let request =
            if self.dice.roll(10) == 0 { request.deadline(Duration::from_millis(200)) } else { request };
        let ticket = self.machine.begin(request, Input::Whole(Arc::from(name.as_bytes())), self.now);
        self.calls.insert(name.clone(), Known { may_be_repeated: kind < 2, executions: 0 });
        self.names.insert(ticket, name);
    }

    fn dialed(&mut self, key: u64) {
        if !self.is_calm && self.dice.roll(6) == 0 {
            self.seen.insert("unreachable");
            return self.machine.cut(key, io::ErrorKind::ConnectionRefused.into(), self.now);
        }
        self.machine.connected(key, self.now);
        let peer = Peer {
            handshake: Handshake::new(),
            serving: None,
            out: Vec::new(),
            inputs: BTreeMap::new(),
            executed: BTreeMap::new(),
            // Some answer for an owner that has lost the process.
            epoch: if !self.is_calm && self.dice.roll(8) == 0 { self.epoch - 1 } else { self.epoch },
            is_closing: false,
        };
        self.peers.insert(key, peer);
    }

    fn cut(&mut self) {
        let Some(key) = self.any_peer() else { return };
        self.seen.insert("cut");
        self.peers.remove(&key);
        self.machine.cut(key, io::ErrorKind::ConnectionReset.into(), self.now);
    }

    fn any_peer(&mut self) -> Option<u64> {
        let at = self.dice.len(self.peers.len().checked_sub(1)?);
        self.peers.keys().nth(at).copied()
    }

    fn drain(&mut self) {
        let Some(key) = self.any_peer() else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(serving) = peer.serving.as_mut().filter(|_| !peer.is_closing) else { return };
        serving.drain(&Drain::new(DrainReason::Policy), &mut peer.out).unwrap();
        peer.is_closing = true;
        self.seen.insert("drain");
    }

    fn client_to_node(&mut self, key: u64) {
        let sent = self.machine.fill(key);
        let len = self.dice.len(sent.len());
        let mut bytes = &sent[..len].to_vec()[..];
        self.machine.was_sent(key, len);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        while peer.serving.is_none() && !peer.is_closing && !bytes.is_empty() {
            let some = bytes.len().min(peer.handshake.wants());
            let (head, rest) = bytes.split_at(some);
            bytes = rest;
            let Some(hello) = peer.handshake.push(head).unwrap() else { continue };
            match if self.is_calm { 9 } else { self.dice.roll(10) } {
                0 => {
                    self.seen.insert("moved");
                    Moved { address: "b:2".to_owned(), epoch: 0 }.encode(&mut peer.out).unwrap();
                    peer.is_closing = true;
                    return;
                }
                1 => {
                    self.seen.insert("refused");
                    let busy = Problem::new("overloaded", Blame::Host, Retry::Safe);
                    busy.encode(0, &mut peer.out).unwrap();
                    peer.is_closing = true;
                    return;
                }
                _ => {
                    let accepted = Accepted { max_calls: 16, ..Accepted::new(peer.epoch, 1 << 20) };
                    accepted.encode(&mut peer.out).unwrap();
                    let terms = Terms::agreed(&hello, &accepted, None);
                    peer.serving = Some(Connection::resume(Parked::fresh(terms)));
                }
            }
        }
        let Some(serving) = &mut peer.serving else { return };
        loop {
            let event = match serving.next(&mut bytes) {
                Ok(event) => event,
                Err(violation) => {
                    // It was told nonsense of its credit.
                    assert!(self.is_hostile, "{violation}");
                    self.machine.cut(key, io::ErrorKind::ConnectionReset.into(), self.now);
                    return;
                }
            };
            match event {
                None => break,
                Some(Event::Call { id, part, .. } | Event::Body { id, part }) => {
                    let input = peer.inputs.entry(id).or_default();
                    input.extend_from_slice(part.bytes);
                    let (len, is_whole) = (part.bytes.len(), part.end);
                    serving.consumed(id, len);
                    if !is_whole {
                        continue;
                    }
                    let name = String::from_utf8(peer.inputs.remove(&id).unwrap()).unwrap();
                    if !self.is_calm && self.dice.roll(8) == 0 {
                        self.seen.insert("parting");
                        let parting = Problem::new(DRAINING, Blame::Host, Retry::Safe);
                        serving.fail(id, &parting, &mut peer.out).unwrap();
                        continue;
                    }
                    let known = self.calls.get_mut(&name).unwrap();
                    known.executions += 1;
                    let again = known.executions > 1;
                    if !self.is_hostile {
                        assert!(known.may_be_repeated || !again, "{name} was executed twice");
                    }
                    if again {
                        self.seen.insert("repeated");
                    }
                    peer.executed.insert(id, name);
                }
                Some(Event::Cancel { id, .. }) => {
                    if peer.executed.remove(&id).is_some() {
                        let gone = Problem::new("caller-gone", Blame::Caller, Retry::Unknown);
                        serving.fail(id, &gone, &mut peer.out).unwrap();
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn answer(&mut self, key: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(serving) = &mut peer.serving else { return };
        if self.dice.roll(3) > 0
            && let Some((id, name)) = peer.executed.pop_last()
        {
            let done = Final { commit: 1, durability: Durability::Process };
            let head = ReplyHead::new(peer.epoch, done);
            serving.reply(id, &head, name.len(), true, &mut peer.out).unwrap();
            peer.out.extend_from_slice(name.as_bytes());
            peer.out.resize(peer.out.len() + padding(name.len()), 0);
        }
        serving.control(&mut peer.out);
    }

    fn node_to_client(&mut self, key: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let len = self.dice.len(peer.out.len());
        let mut bytes: Vec<u8> = peer.out.drain(..len).collect();
        if self.is_hostile && !self.is_calm && !bytes.is_empty() && self.dice.roll(20) == 0 {
            self.seen.insert("damaged");
            let at = self.dice.len(bytes.len() - 1);
            bytes[at] ^= 1 << self.dice.roll(8);
        }
        let is_over = peer.is_closing && peer.executed.is_empty() && peer.out.is_empty();
        self.machine.received(key, &bytes, self.now);
        if is_over {
            self.machine.cut(key, io::ErrorKind::UnexpectedEof.into(), self.now);
        }
    }

    fn note_end(&mut self, ticket: u64, end: &Result<Reply, Error>) {
        assert!(self.ended.insert(ticket), "a call has ended twice");
        let name = &self.names[&ticket];
        let known = self.calls[name];
        match end {
            _ if self.is_hostile => {}
            Ok(reply) => {
                assert_eq!(reply.body, name.as_bytes(), "an answer to another call");
                assert!(known.executions > 0);
            }
            Err(error) => {
                self.seen.insert("failed");
                let is_safe = error.retry() == Retry::Safe;
                assert!(!is_safe || known.executions == 0 || known.may_be_repeated, "{name}: {error:?}");
            }
        }
    }

    fn play(mut self, steps: usize) -> HashSet<&'static str> {
        for _ in 0..steps {
            self.step();
        }
        self.is_calm = true;
        // What was damaged may have left either end with credit or frames that never come: its connections are given up.
        if self.is_hostile {
            for key in std::mem::take(&mut self.peers).into_keys() {
                self.machine.cut(key, io::ErrorKind::ConnectionReset.into(), self.now);
            }
            // Nor may an epoch be believed that was made up.
            self.epoch = u64::MAX;
        }
        for _ in 0..20_000 {
            if self.machine.in_flight() == 0 {
                break;
            }
            self.step();
        }
        assert_eq!(self.machine.in_flight(), 0, "a call does not end");
        self.note_ends();
        assert_eq!(self.ended.len(), self.names.len());
        self.seen
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_call_ends_once_and_none_runs_twice_that_may_not(seed in any::<u64>(), steps in 10..1500_usize) {
        World::new(seed, false).play(steps);
    }

    #[test]
    fn damaged_bytes_end_connections_and_nothing_else(seed in any::<u64>(), steps in 10..1500_usize) {
        World::new(seed, true).play(steps);
    }

    #[test]
    fn bytes_of_a_stranger_do_no_harm(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8),
    ) {
        let mut world = World::new(1, true);
        world.begin();
        for piece in pieces {
            let key = world.machine.dial(world.now).map(|(key, _)| key);
            if let Some(key) = key {
                world.machine.connected(key, world.now);
                world.machine.received(key, &piece, world.now);
                world.machine.cut(key, io::ErrorKind::UnexpectedEof.into(), world.now);
            }
            world.now += Duration::from_secs(10);
            world.machine.pump(world.now);
        }
    }
}

#[test]
fn everything_happens_in_the_game() {
    let mut seen = HashSet::new();
    for seed in 0..40 {
        seen.extend(World::new(seed, seed % 4 == 0).play(1500));
    }
    for what in
        ["unreachable", "cut", "drain", "moved", "refused", "parting", "repeated", "damaged", "failed"]
    {
        assert!(seen.contains(what), "{what} does not happen");
    }
}
