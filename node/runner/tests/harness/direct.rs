//! Direct connections: a runner with a ring, the agent's side of it, and clients on real sockets.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use denizen_protocol::client::{Call, Connection, Event, Memory};
use denizen_protocol::server::{Parked, Terms};
use denizen_protocol::{Accepted, Final, Hello, PADDING, Part, Problem, padding};
use denizen_ring::maker::{self, Layout, Ring};
use denizen_wire::{Assignment, AtRest, CallerEnd, Header, Kind};

use super::{Agent, PATIENCE, Said, State, assignment, plugin, runner_command};

/// The descriptor of the ring, and its layout, for the process that is to be a runner.
const RING: &str = "DENIZEN_TEST_RING";

/// A layout as numbers and back.
macro_rules! carried {
    ($($field:ident),*) => {
        fn numbers_of(layout: &Layout) -> Vec<u32> {
            let Layout { $($field),* } = *layout;
            vec![$($field),*]
        }

        fn layout_of(numbers: &[u32]) -> Layout {
            let [$($field),*] = *numbers else { panic!("{numbers:?}") };
            Layout { $($field),* }
        }
    };
}

carried!(
    entries,
    completions,
    features,
    sq_head,
    sq_tail,
    sq_flags,
    sq_dropped,
    sq_array,
    cq_head,
    cq_tail,
    cq_overflow,
    cqes
);

/// The ring that this process was given.
pub(crate) fn inherited() -> Option<Ring> {
    let text = std::env::var(RING).ok()?;
    let numbers: Vec<u32> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    let (fd, layout) = numbers.split_first().unwrap();
    // SAFETY: it was inherited for this, and nobody else in this process knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(*fd).unwrap()) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).unwrap();
    Some(Ring { fd, layout: layout_of(layout) })
}

fn as_text(ring: &Ring) -> String {
    let fd = ring.fd.as_raw_fd().to_string();
    let layout = numbers_of(&ring.layout).into_iter().map(|number| number.to_string());
    std::iter::once(fd).chain(layout).collect::<Vec<_>>().join(" ")
}

/// A runner with a ring, and its agent.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    ring: OwnedFd,
    enabled: bool,
    next: u64,
    free: Vec<u32>,
    /// The agent's duplicates, by the number of the connection.
    sockets: BTreeMap<u64, (u32, TcpStream)>,
}

/// A connection that came back.
#[derive(Debug)]
pub(crate) struct Back {
    pub(crate) parked: Vec<u8>,
    pub(crate) residue: Vec<u8>,
    /// Bytes that were taken off the socket.
    pub(crate) taken: u64,
    pub(crate) socket: TcpStream,
}

pub(crate) fn ringed(plugin: &std::path::Path) -> Assignment {
    // Room enough that nobody waits for an agent that looks at its callers meanwhile.
    Assignment { ring: true, segment_min_bytes: 16 << 20, segment_max_bytes: 16 << 20, ..assignment(plugin) }
}

impl Node {
    pub(crate) fn serving(state: &State) -> Node {
        Node::assigned(state, &ringed(&plugin()))
    }

    pub(crate) fn assigned(state: &State, assignment: &Assignment) -> Node {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ring = maker::make(theirs.as_fd()).unwrap();
        let mut command = runner_command(theirs);
        command.env(RING, as_text(&ring));
        let fd = ring.fd.as_raw_fd();
        // SAFETY: the closure only makes a system call.
        unsafe {
            command.pre_exec(move || {
                let kept = std::os::fd::BorrowedFd::borrow_raw(fd);
                Ok(rustix::io::fcntl_setfd(kept, rustix::io::FdFlags::empty())?)
            });
        }
        let mut agent = Agent::of(ours, command.spawn().unwrap());
        agent.assign(assignment, Some(state));
        agent.ready();
        Node::over(agent, ring.fd)
    }

    /// Of a runner that serves, and the agent's descriptor of its ring.
    pub(crate) fn over(agent: Agent, ring: OwnedFd) -> Node {
        Node {
            agent,
            ring,
            enabled: false,
            next: 1,
            free: (1..maker::SLOTS).rev().collect(),
            sockets: BTreeMap::new(),
        }
    }

    /// A client on a fresh connection.
    pub(crate) fn connect(&mut self) -> Client {
        self.connect_with(&Hello::new("app", Some("process")), &accepted(), None)
    }

    pub(crate) fn connect_with(
        &mut self,
        hello: &Hello,
        accepted: &Accepted,
        functions: Option<Vec<String>>,
    ) -> Client {
        let (client, server) = pair();
        let terms = Terms::agreed(hello, accepted, functions);
        let number = self.give(server, &Parked::fresh(terms).encode(), &[]);
        Client {
            number,
            socket: client,
            protocol: Connection::established(hello, accepted, Memory::default()).unwrap(),
            partial: BTreeMap::new(),
            ended: BTreeMap::new(),
            unread: Vec::new(),
            drained: false,
        }
    }

    /// Gives a connection to the runner.
    pub(crate) fn give(&mut self, socket: TcpStream, record: &[u8], residue: &[u8]) -> u64 {
        if !self.enabled {
            maker::enable(self.ring.as_fd()).unwrap();
            self.enabled = true;
        }
        let slot = self.free.pop().unwrap();
        maker::install(self.ring.as_fd(), slot, socket.as_fd()).unwrap();
        let number = self.next;
        self.next += 1;
        let mut payload = Vec::new();
        AtRest { record, residue }.encode(&mut payload).unwrap();
        self.agent.send(Header { a: slot, ..Header::new(Kind::Caller, number) }, &payload);
        self.sockets.insert(number, (slot, socket));
        number
    }

    /// Waits until the runner is done with a connection.
    pub(crate) fn done(&mut self, client: &Client) -> CallerEnd {
        let number = client.number;
        let said =
            self.agent.next_of(|said| said.header.kind == Kind::CallerDone && said.header.id == number);
        let (slot, socket) = self.sockets.remove(&number).unwrap();
        assert_eq!(said.header.a, slot);
        maker::remove(self.ring.as_fd(), slot).unwrap();
        self.free.push(slot);
        let _ = socket.shutdown(Shutdown::Both);
        CallerEnd::from_code(said.header.code)
    }

    pub(crate) fn drain(&mut self) {
        self.agent.send(Header::new(Kind::Drain, 0), &[]);
    }

    /// Takes everything back from a runner that drains.
    pub(crate) fn drained(mut self) -> BTreeMap<u64, Back> {
        let mut back = BTreeMap::new();
        loop {
            let said = self.agent.next_of(|said| {
                matches!(said.header.kind, Kind::CallerParked | Kind::Drained | Kind::CallerDone)
            });
            match said.header.kind {
                Kind::Drained => break,
                Kind::CallerDone => drop(self.sockets.remove(&said.header.id)),
                _ => drop(back.insert(said.header.id, self.parked(&said))),
            }
        }
        assert!(self.sockets.is_empty(), "a connection was neither given back nor ended");
        assert_eq!(self.agent.exit().code(), Some(0));
        back
    }

    fn parked(&mut self, said: &Said) -> Back {
        let at_rest = AtRest::decode(&said.payload).unwrap();
        let (_, socket) = self.sockets.remove(&said.header.id).unwrap();
        Back {
            parked: at_rest.record.to_vec(),
            residue: at_rest.residue.to_vec(),
            taken: said.header.c,
            socket,
        }
    }

    /// In flight, connections, accepted.
    pub(crate) fn census(&mut self) -> (u32, u32, u64) {
        self.agent.send(Header::new(Kind::AskCensus, 0), &[]);
        let said = self.agent.next_of(|said| said.header.kind == Kind::Census);
        (said.header.a, said.header.b, said.header.c)
    }
}

/// What an agent of this test grants.
pub(crate) fn accepted() -> Accepted {
    Accepted {
        max_calls: 128,
        call_window: 256 << 10,
        connection_window: 1 << 20,
        ..Accepted::new(42, super::BODY_LIMIT)
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (client, server)
}

/// The other end of a connection.
pub(crate) struct Client {
    pub(crate) number: u64,
    pub(crate) socket: TcpStream,
    pub(crate) protocol: Connection,
    partial: BTreeMap<u64, Answer>,
    ended: BTreeMap<u64, Result<Answer, Box<Problem>>>,
    unread: Vec<u8>,
    pub(crate) drained: bool,
}

/// A reply.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    pub(crate) content_type: Option<String>,
    pub(crate) invocation: Option<String>,
    pub(crate) epoch: u64,
    pub(crate) rests_on: Option<Final>,
    pub(crate) replayed: bool,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

impl Client {
    /// Appends a call with a whole small input to `out`.
    pub(crate) fn write(&mut self, call: &Call<'_>, input: &[u8], out: &mut Vec<u8>) -> u64 {
        let id = self.protocol.call(call, input.len(), true, out).unwrap();
        out.extend_from_slice(input);
        out.extend_from_slice(&PADDING[..padding(input.len())]);
        id
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub(crate) fn start_with(&mut self, call: &Call<'_>, input: &[u8]) -> u64 {
        let mut out = Vec::new();
        let id = self.write(call, input, &mut out);
        self.send(&out);
        id
    }

    pub(crate) fn start(&mut self, function: &str, input: &str) -> u64 {
        self.start_with(&Call::new(function), input.as_bytes())
    }

    pub(crate) fn call(&mut self, function: &str, input: &str) -> Answer {
        let id = self.start(function, input);
        self.finish(id).unwrap()
    }

    pub(crate) fn fails(&mut self, function: &str, input: &str) -> Box<Problem> {
        let id = self.start(function, input);
        self.finish(id).unwrap_err()
    }

    /// Begins a call whose input follows.
    pub(crate) fn begin(&mut self, call: &Call<'_>) -> u64 {
        let mut out = Vec::new();
        let id = self.protocol.call(call, 0, false, &mut out).unwrap();
        self.send(&out);
        id
    }

    /// Sends more of an input, as the credit allows.
    pub(crate) fn feed(&mut self, id: u64, mut body: &[u8], end: bool) {
        loop {
            let count = body.len().min(self.protocol.sendable(id));
            if count > 0 || (body.is_empty() && end) {
                let (now, later) = body.split_at(count);
                let mut out = Vec::new();
                if self.protocol.data(id, count, end && later.is_empty(), &mut out).is_err() {
                    return;
                }
                self.socket.write_all(&out).unwrap();
                self.socket.write_all(now).unwrap();
                self.socket.write_all(&PADDING[..padding(count)]).unwrap();
                body = later;
            }
            if body.is_empty() || self.ended.contains_key(&id) {
                return;
            }
            assert!(self.read(), "the connection was closed");
        }
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        let mut out = Vec::new();
        self.protocol.cancel(id, denizen_protocol::CancelReason::Unwanted, &mut out).unwrap();
        self.send(&out);
    }

    /// Reads until a call has ended.
    pub(crate) fn finish(&mut self, id: u64) -> Result<Answer, Box<Problem>> {
        let until = Instant::now() + PATIENCE;
        while !self.ended.contains_key(&id) {
            assert!(self.read(), "the connection was closed");
            assert!(Instant::now() < until, "call {id} does not end");
        }
        self.ended.remove(&id).unwrap()
    }

    /// What has come of the reply of a call that goes on.
    pub(crate) fn so_far(&self, id: u64) -> usize {
        self.partial.get(&id).map_or(0, |answer| answer.body.len())
    }

    /// Reads what comes next, and gives credit for it. False at the end of the stream.
    pub(crate) fn read(&mut self) -> bool {
        let mut buffer = vec![0; 256 << 10];
        let count = match self.socket.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return true,
            Err(error) => panic!("nothing from the runner: {error}"),
        };
        if count == 0 {
            return false;
        }
        self.unread.extend_from_slice(&buffer[..count]);
        let unread = std::mem::take(&mut self.unread);
        let mut input = &unread[..];
        loop {
            let mut took = None;
            match self.protocol.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Event::Reply { id, head, part, done })) => {
                    let answer = Answer {
                        content_type: head.content_type.map(str::to_owned),
                        invocation: head.invocation.map(str::to_owned),
                        epoch: head.epoch,
                        replayed: head.replayed,
                        ..Answer::default()
                    };
                    assert!(self.partial.insert(id, answer).is_none(), "a second reply");
                    took = Some(take(&mut self.partial, &mut self.ended, id, part, done));
                }
                Ok(Some(Event::Body { id, part, done })) => {
                    took = Some(take(&mut self.partial, &mut self.ended, id, part, done));
                }
                Ok(Some(Event::Failed { id, problem })) => {
                    self.partial.remove(&id);
                    assert!(self.ended.insert(id, Err(Box::new(problem))).is_none(), "a second end");
                }
                Ok(Some(Event::Draining(_))) => self.drained = true,
                Ok(Some(Event::Refused(problem))) => {
                    self.ended.insert(0, Err(Box::new(problem)));
                }
                Ok(Some(_)) => {}
                Err(violation) => panic!("the runner broke a rule: {violation}"),
            }
            if let Some((id, len)) = took {
                self.protocol.consumed(id, len);
            }
        }
        let mut out = Vec::new();
        self.protocol.control(&mut out);
        // Who is gone does not want it.
        let _ = self.socket.write_all(&out);
        true
    }

    /// How the runner said that the connection is over.
    pub(crate) fn refusal(&mut self) -> Box<Problem> {
        while !self.ended.contains_key(&0) {
            assert!(self.read(), "the connection was closed without a word");
        }
        self.ended.remove(&0).unwrap().unwrap_err()
    }

    /// Waits for nothing.
    pub(crate) fn has_something(&mut self) -> bool {
        self.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let there = self.socket.peek(&mut [0; 1]).is_ok();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        there
    }
}

fn take(
    partial: &mut BTreeMap<u64, Answer>,
    ended: &mut BTreeMap<u64, Result<Answer, Box<Problem>>>,
    id: u64,
    part: Part<'_>,
    done: Option<Final>,
) -> (u64, usize) {
    let answer = partial.get_mut(&id).expect("a body belongs to a reply");
    answer.body.extend_from_slice(part.bytes);
    if let Some(done) = done {
        let mut answer = partial.remove(&id).unwrap();
        answer.rests_on = Some(done);
        assert!(ended.insert(id, Ok(answer)).is_none(), "a second end");
    }
    (id, part.bytes.len())
}
