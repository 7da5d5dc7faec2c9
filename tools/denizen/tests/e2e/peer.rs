//! A client of the framed protocol for tests, close enough to the bytes to do what a client should not; and how callers are served: over a
//! connection that their process was given, or relayed.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use denizen_protocol::client::{Call, Connection, Event, Memory};
use denizen_protocol::token::{Claims, SecretKey};
use denizen_protocol::{Accepted, CancelReason, Drain, Final, Hello, PADDING, Problem, padding};

use crate::node::{Node, PATIENCE, Start, faulty_image};

/// How callers are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Bound connections are given to the sandbox of their process.
    Ring,
    /// The node passes each frame on.
    Relay,
}

impl Mode {
    pub(crate) fn start(self) -> Start {
        let word = if self == Mode::Ring { "ring" } else { "relay" };
        Start::new().args(&["--isolation", word])
    }

    /// A node with the faulty plugin deployed.
    pub(crate) fn with_faulty(self) -> Node {
        let node = self.start().node();
        node.deploy(faulty_image());
        node
    }

    /// Asserts that calls of the present sandbox of a process came this way.
    pub(crate) fn assert_served(self, node: &Node, process: &str) {
        let told = node.process("faulty", process);
        let direct = told["direct_calls"].as_u64().unwrap();
        assert_eq!(direct > 0, self == Mode::Ring, "{told}\n{}", node.said());
    }
}

/// Makes a test for each way in which callers are served.
macro_rules! in_both_modes {
    ($($name:ident),* $(,)?) => {
        mod ring {
            $(#[test] fn $name() { super::$name(crate::peer::Mode::Ring); })*
        }
        mod relay {
            $(#[test] fn $name() { super::$name(crate::peer::Mode::Relay); })*
        }
    };
}
pub(crate) use in_both_modes;

pub(crate) fn address(node: &Node) -> SocketAddr {
    std::fs::read_to_string(node.dir().join("data-endpoint")).unwrap().trim().parse().unwrap()
}

pub(crate) fn raw(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(address(node)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads to the end, however it comes.
pub(crate) fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    if let Err(error) = stream.read_to_end(&mut all) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it is not closed");
    }
    all
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) fn claims() -> Claims {
    let (not_before_s, expires_s) = (now_s() - 60, now_s() + 3600);
    Claims { app: "faulty".to_owned(), process: None, functions: None, not_before_s, expires_s }
}

/// A token of the node's own key.
pub(crate) fn issue(node: &Node, claims: &Claims) -> Vec<u8> {
    let secret = std::fs::read_to_string(node.dir().join("keys/secret")).unwrap();
    SecretKey::from_secret_text(&secret).unwrap().issue(claims).unwrap()
}

pub(crate) fn hello(node: &Node, process: Option<&str>) -> Hello {
    Hello { token: issue(node, &claims()), ..Hello::new("faulty", process) }
}

/// A finished call.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) body: Vec<u8>,
    pub(crate) rests_on: Final,
    pub(crate) epoch: u64,
    pub(crate) process: Option<String>,
    pub(crate) function: Option<(u64, u32)>,
    pub(crate) replayed: bool,
}

impl Done {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A client with one connection.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    pub(crate) protocol: Connection,
    pub(crate) accepted: Option<Accepted>,
    pub(crate) begun: BTreeMap<u64, Done>,
    pub(crate) ended: BTreeMap<u64, Result<Done, Box<Problem>>>,
    pub(crate) drained: Option<Drain>,
    pub(crate) refused: Option<Problem>,
    pub(crate) pong: Option<u64>,
    /// The stream has ended.
    pub(crate) over: bool,
}

impl Peer {
    /// Sends a HELLO, and does not wait.
    pub(crate) fn greet(node: &Node, hello: &Hello) -> Peer {
        Peer::greet_on(raw(node), hello).unwrap()
    }

    fn greet_on(mut stream: TcpStream, hello: &Hello) -> std::io::Result<Peer> {
        let mut out = Vec::new();
        let protocol = Connection::open(hello, Memory::default(), &mut out).unwrap();
        stream.write_all(&out)?;
        Ok(Peer {
            stream,
            protocol,
            accepted: None,
            begun: BTreeMap::new(),
            ended: BTreeMap::new(),
            drained: None,
            refused: None,
            pong: None,
            over: false,
        })
    }

    /// A connection to whatever node runs on this directory, if one does and takes it.
    pub(crate) fn try_open(dir: &Path, hello: &Hello) -> Option<Peer> {
        let address: SocketAddr =
            std::fs::read_to_string(dir.join("data-endpoint")).ok()?.trim().parse().ok()?;
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut peer = Peer::greet_on(stream, hello).ok()?;
        while peer.accepted.is_none() && peer.refused.is_none() && !peer.over {
            peer.read();
        }
        peer.accepted.is_some().then_some(peer)
    }

    /// A call on a connection that may be lost meanwhile: `None` if it was.
    pub(crate) fn try_call(&mut self, call: &Call<'_>, body: &[u8]) -> Option<Result<Done, Box<Problem>>> {
        let mut out = Vec::new();
        let id = self.protocol.call(call, body.len(), true, &mut out).ok()?;
        out.extend_from_slice(body);
        out.extend_from_slice(&PADDING[..padding(body.len())]);
        self.stream.write_all(&out).ok()?;
        while !self.ended.contains_key(&id) {
            if self.over || self.refused.is_some() || self.drained.is_some() {
                return None;
            }
            self.read();
        }
        self.ended.remove(&id)
    }

    pub(crate) fn open(node: &Node, process: &str) -> Peer {
        Peer::with(node, &hello(node, Some(process)))
    }

    pub(crate) fn with(node: &Node, hello: &Hello) -> Peer {
        let mut peer = Peer::greet(node, hello);
        peer.until(|peer| peer.accepted.is_some());
        peer
    }

    /// Why a HELLO is refused.
    pub(crate) fn refusal(node: &Node, hello: &Hello) -> Problem {
        let mut peer = Peer::greet(node, hello);
        peer.until(|peer| peer.refused.is_some());
        peer.refused.unwrap()
    }

    /// Reads until something is there.
    pub(crate) fn until(&mut self, there: impl Fn(&Peer) -> bool) {
        while !there(self) {
            assert!(!self.over, "the stream ended; refused: {:?}, drained: {:?}", self.refused, self.drained);
            self.read();
        }
    }

    pub(crate) fn read(&mut self) {
        let mut chunk = [0; 20_000];
        let count = match self.stream.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("nothing came: {error}"),
        };
        self.over = count == 0;
        let mut input = &chunk[..count];
        loop {
            let mut consumed = None;
            match self.protocol.next(&mut input).unwrap() {
                None => break,
                Some(Event::Accepted(accepted)) => self.accepted = Some(accepted),
                Some(Event::Reply { id, head, part, done }) => {
                    consumed = Some((id, part.bytes.len()));
                    let reply = Done {
                        body: part.bytes.to_vec(),
                        rests_on: done.unwrap_or(head.rests_on),
                        epoch: head.epoch,
                        process: head.process.map(str::to_owned),
                        function: head.function,
                        replayed: head.replayed,
                    };
                    match done {
                        Some(_) => drop(self.ended.insert(id, Ok(reply))),
                        None => drop(self.begun.insert(id, reply)),
                    }
                }
                Some(Event::Body { id, part, done }) => {
                    consumed = Some((id, part.bytes.len()));
                    let reply = self.begun.get_mut(&id).unwrap();
                    reply.body.extend_from_slice(part.bytes);
                    if let Some(done) = done {
                        reply.rests_on = done;
                        let reply = self.begun.remove(&id).unwrap();
                        self.ended.insert(id, Ok(reply));
                    }
                }
                Some(Event::Failed { id, problem }) => drop(self.ended.insert(id, Err(Box::new(problem)))),
                Some(Event::Draining(drain)) => self.drained = Some(drain),
                Some(Event::Pong { value }) => self.pong = Some(value),
                Some(Event::Refused(problem)) => self.refused = Some(problem),
                Some(_) => {}
            }
            if let Some((id, len)) = consumed {
                self.protocol.consumed(id, len);
            }
        }
        let mut out = Vec::new();
        self.protocol.control(&mut out);
        if !self.over {
            // A server that is about to close need not take it.
            let _ = self.stream.write_all(&out);
        }
    }

    /// Begins a call with its whole input.
    pub(crate) fn begin(&mut self, call: &Call<'_>, body: &[u8]) -> u64 {
        let mut out = Vec::new();
        let id = self.protocol.call(call, body.len(), true, &mut out).unwrap();
        out.extend_from_slice(body);
        out.extend_from_slice(&PADDING[..padding(body.len())]);
        self.stream.write_all(&out).unwrap();
        id
    }

    /// Begins a call whose input is sent in pieces of `piece` bytes, as credit comes.
    pub(crate) fn begin_in_pieces(&mut self, call: &Call<'_>, body: &[u8], piece: usize) -> u64 {
        let mut out = Vec::new();
        let id = self.protocol.call(call, 0, false, &mut out).unwrap();
        let mut left = body;
        loop {
            self.stream.write_all(&out).unwrap();
            out.clear();
            if left.is_empty() || self.ended.contains_key(&id) {
                return id;
            }
            let len = self.protocol.sendable(id).min(piece).min(left.len());
            if len == 0 {
                self.read();
                continue;
            }
            let (now, later) = left.split_at(len);
            self.protocol.data(id, len, later.is_empty(), &mut out).unwrap();
            out.extend_from_slice(now);
            out.extend_from_slice(&PADDING[..padding(len)]);
            left = later;
        }
    }

    pub(crate) fn end(&mut self, id: u64) -> Result<Done, Box<Problem>> {
        self.until(|peer| peer.ended.contains_key(&id));
        self.ended.remove(&id).unwrap()
    }

    pub(crate) fn call(&mut self, function: &str, body: &[u8]) -> Result<Done, Box<Problem>> {
        let id = self.begin(&Call::new(function), body);
        self.end(id)
    }

    pub(crate) fn count(&mut self) -> String {
        self.call("count", b"").unwrap().text().to_owned()
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        let mut out = Vec::new();
        self.protocol.cancel(id, CancelReason::Unwanted, &mut out).unwrap();
        self.stream.write_all(&out).unwrap();
    }
}

/// The bytes of a CALL of the function at `index` of `table`.
pub(crate) fn call_by_index(id: u64, table: u64, index: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 0, 0, 72, 1, 16, 0];
    frame.extend_from_slice(&id.to_le_bytes());
    frame.extend_from_slice(&index.to_le_bytes());
    frame.extend_from_slice(&[0; 12]);
    frame.extend_from_slice(&table.to_le_bytes());
    frame.extend_from_slice(&[255, 0, 0, 0, 0, 0, 0, 0]);
    frame
}

/// Bytes of memory that a program has.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
