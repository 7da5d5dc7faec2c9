//! A lean blocking client of the framed protocol, and one of bare bytes: one write and, for what is small, one read a call, so that what
//! they add is the same small amount on both sides.

use std::collections::HashMap;
use std::io::{IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use denizen_protocol::client::{Call, Connection, Event, Memory};
use denizen_protocol::limits::MAX_WINDOW;
use denizen_protocol::{Durability, Hello, PADDING, padding};

/// Received at once, in bytes.
const READ_BYTES: usize = 64 << 10;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `congestion`: its congestion control, or the system's.
fn connect(address: &str, congestion: Option<&str>) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    if let Some(name) = congestion {
        rustix::net::sockopt::set_tcp_congestion(&stream, name).expect("a congestion control");
    }
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// One connection to one process.
#[derive(Debug)]
pub(crate) struct Framed {
    stream: TcpStream,
    protocol: Connection,
    out: Vec<u8>,
    read: Vec<u8>,
    /// When each call that has not ended was begun.
    begun: HashMap<u64, Instant>,
    /// Microseconds of the calls that have.
    ended: Vec<f64>,
    body: Vec<u8>,
}

impl Framed {
    pub(crate) fn connect(address: &str, token: &[u8], process: &str, congestion: Option<&str>) -> Self {
        let hello = Hello {
            token: token.to_vec(),
            call_window: MAX_WINDOW,
            connection_window: MAX_WINDOW,
            ..Hello::new("bench-echo", Some(process))
        };
        let mut out = Vec::new();
        let protocol = Connection::open(&hello, Memory::default(), &mut out).expect("a HELLO");
        let mut framed = Self {
            stream: connect(address, congestion),
            protocol,
            out,
            read: vec![0; READ_BYTES],
            begun: HashMap::new(),
            ended: Vec::new(),
            body: Vec::new(),
        };
        framed.flush();
        while !framed.protocol.is_open() {
            framed.receive();
        }
        framed
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Appends a call with a small input, and sends nothing.
    pub(crate) fn begin(&mut self, function: &str, body: &[u8], durability: Durability) {
        let call = Call { durability: Some(durability), ..Call::new(function) };
        let id = self.protocol.call(&call, body.len(), true, &mut self.out).expect("room for a call");
        self.push_body(body);
        self.begun.insert(id, Instant::now());
    }

    fn push_body(&mut self, body: &[u8]) {
        self.out.extend_from_slice(body);
        self.out.extend_from_slice(&PADDING[..padding(body.len())]);
    }

    /// Sends everything.
    pub(crate) fn flush(&mut self) {
        self.stream.write_all(&self.out).expect("the server reads");
        self.out.clear();
    }

    /// Reads once, and takes in what has come. How many calls have ended by it.
    pub(crate) fn receive(&mut self) -> usize {
        let got = self.stream.read(&mut self.read).expect("an answer within 30 s");
        assert!(got > 0, "the server closed the connection");
        let before = self.ended.len();
        let mut input = &self.read[..got];
        let mut consumed = Vec::new();
        while let Some(event) = self.protocol.next(&mut input).expect("the server keeps the rules") {
            let (id, part, done) = match event {
                Event::Reply { id, part, done, .. } | Event::Body { id, part, done } => (id, part, done),
                Event::Failed { problem, .. } | Event::Refused(problem) => panic!("{problem:?}"),
                _ => continue,
            };
            self.body.extend_from_slice(part.bytes);
            consumed.push((id, part.bytes.len()));
            if done.is_some()
                && let Some(begun) = self.begun.remove(&id)
            {
                self.ended.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
        for (id, len) in consumed {
            self.protocol.consumed(id, len);
        }
        self.protocol.control(&mut self.out);
        self.ended.len() - before
    }

    /// The microseconds of the calls that have ended since this was asked last. What they replied is forgotten.
    pub(crate) fn ended(&mut self) -> Vec<f64> {
        self.body.clear();
        std::mem::take(&mut self.ended)
    }

    /// One small call, and its microseconds.
    pub(crate) fn call(&mut self, function: &str, body: &[u8], durability: Durability) -> f64 {
        self.begin(function, body, durability);
        self.flush();
        while self.receive() == 0 {}
        self.ended()[0]
    }

    /// Echoes an input of any size: sends it as credit allows, then reads the reply to where it belongs. Microseconds of all of it.
    pub(crate) fn echo(&mut self, body: &[u8]) -> f64 {
        let begun = Instant::now();
        let call = Call { length: Some(body.len() as u64), ..Call::new("echo") };
        let first = self.protocol.room_for_new().min(body.len());
        let end = first == body.len();
        let id = self.protocol.call(&call, first, end, &mut self.out).expect("room for a call");
        self.send_body(&body[..first]);
        let mut at = first;
        while at < body.len() {
            let len = self.protocol.sendable(id).min(body.len() - at);
            if len == 0 {
                self.receive();
                continue;
            }
            self.protocol.data(id, len, at + len == body.len(), &mut self.out).expect("credit");
            self.send_body(&body[at..at + len]);
            at += len;
        }
        self.body.resize(body.len(), 0);
        let mut filled = 0;
        let mut is_over = false;
        while !is_over {
            (filled, is_over) = self.receive_into_body(id, filled);
        }
        assert_eq!(filled, body.len(), "the reply is as long as the input");
        let micros = begun.elapsed().as_secs_f64() * 1e6;
        assert!(self.body == body, "the reply is the input");
        micros
    }

    /// What waits and the frame's beginning leave with the body, which goes from where it lies.
    fn send_body(&mut self, body: &[u8]) {
        let mut sent = 0;
        while sent < self.out.len() {
            let pieces = [IoSlice::new(&self.out[sent..]), IoSlice::new(body)];
            sent += self.stream.write_vectored(&pieces).expect("the server reads");
        }
        self.stream.write_all(&body[sent - self.out.len()..]).expect("the server reads");
        self.out.clear();
        self.out.extend_from_slice(&PADDING[..padding(body.len())]);
    }

    /// Receives more of one reply: through the buffer where a frame begins, from there on into the body itself.
    fn receive_into_body(&mut self, id: u64, mut filled: usize) -> (usize, bool) {
        self.protocol.control(&mut self.out);
        self.flush();
        if let Some(rest) = self.protocol.rest() {
            let got = self.stream.read(&mut self.body[filled..filled + rest.body]).expect("more of it");
            assert!(got > 0, "the server closed the connection");
            let done = matches!(self.protocol.received(got), Some(Event::Body { done: Some(_), .. }));
            self.protocol.consumed(id, got);
            return (filled + got, done);
        }
        // Little more than a header: the rest can be read to where it belongs.
        let got = self.stream.read(&mut self.read[..256]).expect("an answer within 30 s");
        assert!(got > 0, "the server closed the connection");
        let mut input = &self.read[..got];
        let mut taken = 0;
        let mut is_over = false;
        while let Some(event) = self.protocol.next(&mut input).expect("the server keeps the rules") {
            let (part, done) = match event {
                Event::Reply { part, done, .. } | Event::Body { part, done, .. } => (part, done),
                Event::Failed { problem, .. } | Event::Refused(problem) => panic!("{problem:?}"),
                _ => continue,
            };
            self.body[filled..filled + part.bytes.len()].copy_from_slice(part.bytes);
            filled += part.bytes.len();
            taken += part.bytes.len();
            is_over |= done.is_some();
        }
        self.protocol.consumed(id, taken);
        (filled, is_over)
    }
}

/// A connection on which as many bytes come back as were sent.
#[derive(Debug)]
pub(crate) struct Bare {
    stream: TcpStream,
    read: Vec<u8>,
    /// Bytes that have not come back yet.
    due: usize,
}

impl Bare {
    pub(crate) fn connect(address: &str) -> Self {
        Self::connect_with(address, None)
    }

    /// The same with a congestion control, or the system's.
    pub(crate) fn connect_with(address: &str, congestion: Option<&str>) -> Self {
        Self { stream: connect(address, congestion), read: vec![0; READ_BYTES], due: 0 }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
        self.due += bytes.len();
    }

    /// Sends what is not echoed.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Bytes that have not come back yet.
    pub(crate) fn due(&self) -> usize {
        self.due
    }

    /// Reads once. Bytes that are still to come.
    pub(crate) fn receive(&mut self) -> usize {
        let got = self.stream.read(&mut self.read).expect("an answer within 30 s");
        assert!(got > 0, "the server closed the connection");
        self.due -= got;
        self.due
    }

    /// Sends, and waits until as much is back, which is kept whole. Microseconds.
    pub(crate) fn echo(&mut self, bytes: &[u8]) -> f64 {
        if self.read.len() < bytes.len() {
            self.read.resize(bytes.len(), 0);
        }
        let begun = Instant::now();
        self.write(bytes);
        let mut filled = 0;
        while filled < bytes.len() {
            let got = self.stream.read(&mut self.read[filled..bytes.len()]).expect("an answer within 30 s");
            assert!(got > 0, "the server closed the connection");
            filled += got;
        }
        let micros = begun.elapsed().as_secs_f64() * 1e6;
        assert!(self.read[..filled] == *bytes, "what came back is what was sent");
        micros
    }

    /// Sends a request and reads one line. Microseconds.
    pub(crate) fn line(&mut self, bytes: &[u8]) -> f64 {
        let begun = Instant::now();
        self.write(bytes);
        self.read_line();
        begun.elapsed().as_secs_f64() * 1e6
    }

    /// Reads one line, which is all that comes.
    pub(crate) fn read_line(&mut self) {
        let mut last = 0;
        while last != b'\n' {
            let got = self.stream.read(&mut self.read).expect("an answer within 30 s");
            assert!(got > 0, "the server closed the connection");
            last = self.read[got - 1];
        }
    }
}
