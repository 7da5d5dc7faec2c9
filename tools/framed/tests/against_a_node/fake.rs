//! A small node for tests: threads, no sandbox, built on the serving end of the protocol crate. What a function does follows from its
//! name, so that a test can ask for every end that a call can have.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use denizen_protocol::server::{Connection, Event, Handshake, Parked, Terms};
use denizen_protocol::{
    Accepted, Blame, Drain, DrainReason, Durability, Final, FunctionRef, Hello, Moved, PADDING, Problem,
    ReplyHead, Retry, padding,
};
use rustix::net::sockopt;

/// In the order of their indices.
pub(crate) const FUNCTIONS: [&str; 12] = [
    "echo", "count", "slow", "generate", "length", "fail", "cut", "leave", "old", "parrot", "reset",
    "parting",
];

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) count: AtomicU64,
    /// Replies by idempotency key.
    remembered: Mutex<HashMap<String, Vec<u8>>>,
    pub(crate) accepted: AtomicUsize,
    /// So many calls of `parting` are not looked at.
    pub(crate) parting: AtomicUsize,
    /// HELLOs that came, whatever their answer.
    pub(crate) greeted: AtomicUsize,
    table: AtomicU64,
    epoch: AtomicU64,
    /// The next so many connections are closed instead of answered.
    pub(crate) closed_at_once: AtomicUsize,
    /// Where `elsewhere` is sent to.
    pub(crate) address: SocketAddr,
}

/// A running node. Its threads end with the test program.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    pub(crate) shared: Arc<Shared>,
}

impl Shared {
    /// Where a process of the name `via-PORT-PORT-...` has moved to from here; the last of them has it.
    fn next_of(&self, process: &str) -> Option<String> {
        let here = self.address.port().to_string();
        let mut ports = process.strip_prefix("via-")?.split('-').skip_while(|port| **port != here);
        ports.next();
        ports.next().map(|port| format!("127.0.0.1:{port}"))
    }
}

/// The name of a process that is at the last of these, each of which sends its callers to the next.
pub(crate) fn via(fakes: &[&Fake]) -> String {
    let ports: Vec<_> = fakes.iter().map(|fake| fake.shared.address.port().to_string()).collect();
    format!("via-{}", ports.join("-"))
}

impl Fake {
    pub(crate) fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            count: AtomicU64::new(0),
            remembered: Mutex::default(),
            accepted: AtomicUsize::new(0),
            parting: AtomicUsize::new(0),
            greeted: AtomicUsize::new(0),
            table: AtomicU64::new(100),
            epoch: AtomicU64::new(7),
            closed_at_once: AtomicUsize::new(0),
            address: listener.local_addr().unwrap(),
        });
        let fake = Fake { shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || Peer::serve(stream, shared));
            }
        });
        fake
    }

    pub(crate) fn address(&self) -> String {
        self.shared.address.to_string()
    }

    /// Another image: what was learned of indices is void.
    pub(crate) fn change_functions(&self) {
        self.shared.table.fetch_add(1, Ordering::SeqCst);
    }

    /// What the following connections and replies answer with.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.shared.epoch.store(epoch, Ordering::SeqCst);
    }
}

/// A call as far as it has come.
struct Running {
    function: String,
    key: Option<String>,
    deadline_ms: u64,
    content_type: Option<String>,
    named: bool,
    process: Option<String>,
    input: Vec<u8>,
}

/// A reply on its way.
struct Outgoing {
    id: u64,
    not_before: Instant,
    body: Vec<u8>,
    at: usize,
    begun: bool,
    /// Nothing more is added to it.
    whole: bool,
    replayed: bool,
    fail: Option<Problem>,
    epoch: u64,
    content_type: Option<String>,
    function: Option<(u64, u32)>,
    process: Option<String>,
}

struct Peer {
    stream: TcpStream,
    shared: Arc<Shared>,
    connection: Connection,
    app: String,
    table: u64,
    running: HashMap<u64, Running>,
    outgoing: VecDeque<Outgoing>,
    out: Vec<u8>,
    closing: bool,
}

impl Peer {
    fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
        let mut handshake = Handshake::new();
        let hello = loop {
            let mut buf = vec![0; handshake.wants()];
            let len = stream.read(&mut buf).unwrap_or(0);
            if len == 0 {
                return;
            }
            match handshake.push(&buf[..len]) {
                Ok(None) => {}
                Ok(Some(hello)) => break hello,
                Err(_) => return,
            }
        };
        shared.greeted.fetch_add(1, Ordering::SeqCst);
        if shared
            .closed_at_once
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
        {
            return;
        }
        if let Some(mut peer) = Peer::greet(stream, shared, &hello) {
            peer.run();
        }
    }

    fn greet(mut stream: TcpStream, shared: Arc<Shared>, hello: &Hello) -> Option<Peer> {
        let mut out = Vec::new();
        let epoch = shared.epoch.load(Ordering::SeqCst);
        let refuse = |mut stream: TcpStream, out: &[u8]| {
            let _ = stream.write_all(out);
            // What the client sent early is read, so that closing does not reset the answer away.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = stream.read(&mut [0; 4096]);
        };
        match (hello.app.as_str(), hello.process.as_deref()) {
            ("guarded", _) if hello.token.is_empty() => {
                let mut problem = Problem::new("bad-token", Blame::Caller, Retry::Never);
                problem.cause = Some("token-missing".to_owned());
                problem.encode(0, &mut out).unwrap();
                refuse(stream, &out);
                return None;
            }
            ("busy", _) => {
                let mut problem = Problem::new("overloaded", Blame::Host, Retry::Safe);
                problem.retry_after_ms = 10;
                problem.encode(0, &mut out).unwrap();
                refuse(stream, &out);
                return None;
            }
            ("loop", _) => {
                let here = shared.address.to_string();
                Moved { address: here, epoch: 0 }.encode(&mut out).unwrap();
                refuse(stream, &out);
                return None;
            }
            (app, _)
                if app.starts_with("once-to-port-") && !app.ends_with(&shared.address.port().to_string()) =>
            {
                let port = app.rsplit('-').next().unwrap();
                Moved { address: format!("127.0.0.1:{port}"), epoch: 9 }.encode(&mut out).unwrap();
                refuse(stream, &out);
                return None;
            }
            (app, _) if app.starts_with("moved-to-port-") => {
                let port = app.rsplit('-').next().unwrap();
                Moved { address: format!("127.0.0.1:{port}"), epoch: 9 }.encode(&mut out).unwrap();
                refuse(stream, &out);
                return None;
            }
            _ => {}
        }
        let table = shared.table.load(Ordering::SeqCst);
        let bound = if hello.process.is_some() { epoch } else { 0 };
        let mut accepted = Accepted::new(bound, 32 << 20);
        accepted.call_window = 128 << 10;
        accepted.connection_window = 256 << 10;
        accepted.max_calls = 32;
        if hello.options.want_functions && hello.app != "nameless" {
            accepted.table = table;
            accepted.functions = FUNCTIONS.map(str::to_owned).to_vec();
        }
        accepted.encode(&mut out).unwrap();
        stream.write_all(&out).ok()?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let connection = Connection::resume(Parked::fresh(Terms::agreed(hello, &accepted, None)));
        Some(Peer {
            stream,
            shared,
            connection,
            app: hello.app.clone(),
            table,
            running: HashMap::new(),
            outgoing: VecDeque::new(),
            out: Vec::new(),
            closing: false,
        })
    }

    fn run(&mut self) {
        let mut buf = vec![0; 64 << 10];
        loop {
            self.pump();
            self.connection.control(&mut self.out);
            if self.stream.write_all(&self.out).is_err() {
                return;
            }
            self.out.clear();
            if self.closing && self.connection.in_flight() == 0 {
                return;
            }
            match self.stream.read(&mut buf) {
                Ok(0) => return,
                Ok(len) => {
                    let input = buf[..len].to_vec();
                    if self.take(&input).is_none() {
                        return;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }

    /// `None`: the connection is to be cut.
    fn take(&mut self, bytes: &[u8]) -> Option<()> {
        let mut input = bytes;
        loop {
            let (id, part, end) = match self.connection.next(&mut input) {
                Ok(None) => return Some(()),
                Err(violation) => {
                    let mut problem = Problem::new("protocol-error", Blame::Caller, Retry::Unknown);
                    problem.cause = Some(violation.name().to_owned());
                    problem.encode(0, &mut self.out).unwrap();
                    let _ = self.stream.write_all(&self.out);
                    return None;
                }
                Ok(Some(Event::Call { id, head, part })) => {
                    let (function, named) = match head.function {
                        FunctionRef::Name(name) => (name.to_owned(), true),
                        FunctionRef::Index { table, index } => {
                            let now = self.shared.table.load(Ordering::SeqCst);
                            if table != now {
                                self.table = now;
                                (String::new(), false)
                            } else {
                                (FUNCTIONS[usize::try_from(index).unwrap()].to_owned(), false)
                            }
                        }
                    };
                    let running = Running {
                        function,
                        named,
                        key: head.idempotency_key.map(str::to_owned),
                        deadline_ms: head.deadline_ms.map_or(u64::MAX, |ms| u64::from(ms.get())),
                        content_type: head.content_type.map(str::to_owned),
                        process: head.process.map(str::to_owned),
                        input: Vec::new(),
                    };
                    self.running.insert(id, running);
                    (id, part.bytes.to_vec(), part.end)
                }
                Ok(Some(Event::Body { id, part })) => (id, part.bytes.to_vec(), part.end),
                Ok(Some(Event::Cancel { id, .. })) => {
                    self.running.remove(&id);
                    self.outgoing.retain(|outgoing| outgoing.id != id);
                    let problem = Problem::new("caller-gone", Blame::Caller, Retry::Unknown);
                    let _ = self.connection.fail(id, &problem, &mut self.out);
                    continue;
                }
                Ok(Some(_)) => continue,
            };
            self.connection.consumed(id, part.len());
            self.feed(id, part, end)?;
        }
    }

    fn feed(&mut self, id: u64, part: Vec<u8>, end: bool) -> Option<()> {
        let Some(running) = self.running.get_mut(&id) else { return Some(()) };
        if running.function == "parrot" {
            // Says everything at once, while it is still being told.
            if let Some(outgoing) = self.outgoing.iter_mut().find(|outgoing| outgoing.id == id) {
                outgoing.body.extend_from_slice(&part);
                outgoing.whole = end;
            } else {
                let mut outgoing = self.answer(id, part);
                outgoing.whole = end;
                self.outgoing.push_back(outgoing);
            }
            return Some(());
        }
        running.input.extend_from_slice(&part);
        if !end {
            return Some(());
        }
        self.perform(id)
    }

    fn answer(&self, id: u64, body: Vec<u8>) -> Outgoing {
        let running = &self.running[&id];
        let index = FUNCTIONS.iter().position(|name| *name == running.function);
        let index =
            index.map(|index| (self.shared.table.load(Ordering::SeqCst), u32::try_from(index).unwrap()));
        let process = running
            .process
            .clone()
            .or((self.connection.terms().process.is_none()).then(|| "any-1".to_owned()));
        Outgoing {
            id,
            not_before: Instant::now(),
            body,
            at: 0,
            begun: false,
            whole: true,
            replayed: false,
            fail: None,
            epoch: self.shared.epoch.load(Ordering::SeqCst),
            content_type: running.content_type.clone(),
            function: index.filter(|_| running.named && self.app != "nameless"),
            process,
        }
    }

    fn perform(&mut self, id: u64) -> Option<()> {
        let (function, input, key, deadline_ms) = {
            let running = self.running.get_mut(&id)?;
            let input = std::mem::take(&mut running.input);
            (running.function.clone(), input, running.key.clone(), running.deadline_ms)
        };
        let moved =
            self.running.get(&id).and_then(|running| self.shared.next_of(running.process.as_deref()?));
        let mut outgoing = self.answer(id, Vec::new());
        if moved.is_some() {
            let elsewhere = Problem::new("moved", Blame::Host, Retry::Safe);
            outgoing.fail = Some(Problem { address: moved, ..elsewhere });
            outgoing.whole = true;
            self.outgoing.push_back(outgoing);
            return Some(());
        }
        let number =
            || std::str::from_utf8(&input).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        match function.as_str() {
            "echo" => outgoing.body = input,
            "length" => outgoing.body = input.len().to_string().into_bytes(),
            "count" | "cut" | "reset" => {
                let known =
                    key.as_ref().and_then(|key| self.shared.remembered.lock().unwrap().get(key).cloned());
                outgoing.replayed = known.is_some();
                outgoing.body = known.clone().unwrap_or_else(|| {
                    (self.shared.count.fetch_add(1, Ordering::SeqCst) + 1).to_string().into_bytes()
                });
                if let Some(key) = key {
                    self.shared.remembered.lock().unwrap().insert(key, outgoing.body.clone());
                }
                if function != "count" && known.is_none() {
                    // It was executed, and nobody hears of it.
                    if function == "reset" {
                        sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
                    }
                    return None;
                }
            }
            "slow" => {
                let ms = number();
                outgoing.not_before += Duration::from_millis(ms.min(deadline_ms));
                if ms > deadline_ms {
                    outgoing.fail = Some(Problem::new("deadline-exceeded", Blame::Function, Retry::Unknown));
                }
            }
            "generate" => {
                let len = usize::try_from(number()).unwrap();
                outgoing.body = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
            }
            "fail" => outgoing.fail = Some(failure()),
            "leave" => {
                // It takes no call behind this one, and closes when all have ended.
                outgoing.body = b"left".to_vec();
                self.connection.drain(&Drain::new(DrainReason::Shutdown), &mut self.out).ok()?;
                self.closing = true;
            }
            "old" => outgoing.epoch -= 1,
            "parting" => {
                let left = &self.shared.parting;
                if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                    outgoing.fail = Some(Problem::new("draining", Blame::Host, Retry::Safe));
                }
                outgoing.body = b"stayed".to_vec();
            }
            "" => {
                outgoing.fail = Some(Problem::new("functions-changed", Blame::Host, Retry::Safe));
            }
            _ => outgoing.fail = Some(Problem::new("unknown-function", Blame::Caller, Retry::Never)),
        }
        self.outgoing.push_back(outgoing);
        Some(())
    }

    fn pump(&mut self) {
        let now = Instant::now();
        for mut outgoing in std::mem::take(&mut self.outgoing) {
            if outgoing.not_before > now || !self.send(&mut outgoing) {
                self.outgoing.push_back(outgoing);
            } else {
                self.running.remove(&outgoing.id);
            }
        }
    }

    /// Sends what there is credit for. Says whether the call has ended.
    fn send(&mut self, outgoing: &mut Outgoing) -> bool {
        let (id, out) = (outgoing.id, &mut self.out);
        if let Some(problem) = &outgoing.fail {
            let mut problem = problem.clone();
            problem.epoch = outgoing.epoch;
            self.connection.fail(id, &problem, out).unwrap();
            return true;
        }
        let done = Final { commit: 42, durability: Durability::Node };
        loop {
            let len = self.connection.sendable(id).min(outgoing.body.len() - outgoing.at);
            let end = outgoing.whole && outgoing.at + len == outgoing.body.len();
            if outgoing.begun && len == 0 && !end {
                return false;
            }
            if outgoing.begun {
                self.connection.data(id, len, end.then_some(done), out).unwrap();
            } else {
                let rests_on = Final { commit: 41, durability: Durability::Process };
                let head = ReplyHead {
                    content_type: outgoing.content_type.as_deref(),
                    invocation: Some("inv-1"),
                    replayed: outgoing.replayed,
                    function: outgoing.function,
                    process: outgoing.process.as_deref(),
                    ..ReplyHead::new(outgoing.epoch, if end { done } else { rests_on })
                };
                self.connection.reply(id, &head, len, end, out).unwrap();
                outgoing.begun = true;
            }
            out.extend_from_slice(&outgoing.body[outgoing.at..outgoing.at + len]);
            out.extend_from_slice(&PADDING[..padding(len)]);
            outgoing.at += len;
            if end {
                return true;
            }
        }
    }
}

fn failure() -> Problem {
    Problem {
        commit: 42,
        detail: Some("it does not want to".to_owned()),
        cause: Some("a whim".to_owned()),
        remedy: Some("ask nicely".to_owned()),
        invocation: Some("inv-2".to_owned()),
        ..Problem::new("function-failed", Blame::Function, Retry::Safe)
    }
}
