//! One call in frames: its input is read, and its reply handed out, as they come.
//!
//! The connection is for any process of the application, so that the start of one is a part of the call, and counts towards its deadline.

use std::{
    fmt,
    io::{self, Cursor, Read},
    time::Duration,
};

use denizen_client::{ClientError, ReplyHead};
use denizen_framed::{CallStream, Connection, Durability, Error, Options, Reply, Request};

use super::{Answer, Asked, Data};
use crate::{
    cli::{self, Everywhere},
    commands::data_port,
    failure::Failure,
    place,
    target::Target,
};

/// Longer than any one call.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a call with a key is carried over a node that restarts.
const PATIENCE: Duration = Duration::from_secs(10);
/// Up to this size an input is kept, so that a call with a key can be made again by itself.
const KEPT_BYTES: u64 = 16 << 20;
const PIECE_BYTES: usize = 64 << 10;

/// A connection to the node's data port; `None` where there is none, or none that can be used: HTTP says what is wrong then.
pub(super) fn connect(
    everywhere: &Everywhere,
    typed: &cli::Invoke,
    target: &Target,
) -> Result<Option<Connection>, Failure> {
    let dir = place::node_directory(everywhere.dir.as_deref())?;
    let Some(address) = data_port::address(&dir)? else { return Ok(None) };
    let Ok(token) = data_port::own_token(&dir, &target.app, None, &typed.function, TOKEN_TTL) else {
        return Ok(None);
    };
    let options = Options::new(address, &target.app).token(token).patience(Duration::ZERO);
    if let Some(process) = &target.process
        && Connection::new(options.clone().process(process)).is_err()
    {
        // It is no name, and HTTP says more of why.
        return Ok(None);
    }
    match Connection::open(options) {
        Ok(mut connection) => {
            connection.set_patience(PATIENCE);
            Ok(Some(connection))
        }
        Err(Error::Unreachable { .. } | Error::Refused(_)) => Ok(None),
        Err(error) => Err(data_port::told(&error)),
    }
}

/// Makes the call, and shows its reply.
pub(super) fn call(mut connection: Connection, asked: &Asked<'_>, data: Data) -> Result<(), Failure> {
    let mut request = Request::new(&asked.typed.function);
    if let Some(process) = &asked.target.process {
        request = request.process(process);
    }
    if let Some(content_type) = asked.typed.content_type.as_deref().or(data.content_type()) {
        request = request.content_type(content_type);
    }
    if let Some(deadline) = asked.typed.deadline {
        request = request.deadline(deadline);
    }
    if let Some(durability) = asked.typed.durability {
        request = request.durability(match durability {
            cli::Durability::Process => Durability::Process,
            cli::Durability::Node => Durability::Node,
        });
    }
    if asked.typed.create == Some(cli::Create::Never) {
        request = request.create_never();
    }
    if let Some(traceparent) = asked.traceparent() {
        request = request.traceparent(traceparent);
    }
    let process = asked.target.process.clone();
    match (&asked.typed.key, data.len_bytes()) {
        (Some(key), Some(..=KEPT_BYTES)) => {
            let mut input = Vec::new();
            data.into_reader().read_to_end(&mut input).map_err(unreadable)?;
            let request = request.idempotency_key(key);
            let reply = connection.call(request, input).map_err(|error| data_port::told(&error))?;
            asked.show(&mut Whole::new(reply, process))
        }
        (key, length) => {
            if let Some(key) = key {
                request = request.idempotency_key(key);
            }
            let stream = connection.stream(request, length).map_err(|error| data_port::told(&error))?;
            let mut streamed = Streamed::new(stream, data.into_reader(), process);
            streamed.begin()?;
            asked.show(&mut streamed)
        }
    }
}

fn unreadable(source: io::Error) -> Failure {
    ClientError::Input { source }.into()
}

fn head_of(head: &denizen_framed::ReplyHead, process: Option<&String>) -> ReplyHead {
    ReplyHead {
        process: head.process.clone().or(process.cloned()),
        invocation: head.invocation.clone(),
        durability: Some(
            match head.durability {
                Durability::Process => "process",
                Durability::Node => "node",
                Durability::Store => "store",
            }
            .to_owned(),
        ),
        commit: Some(head.commit),
        epoch: Some(head.epoch),
        content_type: head.content_type.clone(),
        replayed: head.replayed,
    }
}

/// A reply that is all here.
struct Whole {
    head: ReplyHead,
    body: Cursor<Vec<u8>>,
}

impl Whole {
    fn new(reply: Reply, process: Option<String>) -> Whole {
        Whole { head: head_of(&reply.head, process.as_ref()), body: Cursor::new(reply.body) }
    }
}

impl Read for Whole {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.body.read(into)
    }
}

impl Answer for Whole {
    fn head(&self) -> ReplyHead {
        self.head.clone()
    }
}

/// A call that runs.
struct Streamed<'c> {
    stream: CallStream<'c>,
    /// Until its end.
    input: Option<Box<dyn Read>>,
    /// Input that waits for credit, from `at` on.
    piece: Vec<u8>,
    at: usize,
    /// What came of the reply before anybody asked.
    ahead: Cursor<Vec<u8>>,
    is_over: bool,
    process: Option<String>,
}

/// Why a call does not go on.
#[derive(Debug)]
enum Trouble {
    Input(io::Error),
    Call(Error),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Input(error) => write!(f, "the input cannot be read: {error}"),
            Trouble::Call(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Trouble {}

impl<'c> Streamed<'c> {
    fn new(stream: CallStream<'c>, input: Box<dyn Read>, process: Option<String>) -> Streamed<'c> {
        let ahead = Cursor::new(Vec::new());
        Streamed { stream, input: Some(input), piece: Vec::new(), at: 0, ahead, is_over: false, process }
    }

    /// Waits for the beginning of the reply: until then a failure is the call's, as if it had never begun.
    fn begin(&mut self) -> Result<(), Failure> {
        let mut buf = vec![0; PIECE_BYTES];
        while self.stream.known_head().is_none() && !self.is_over {
            match self.go_on(&mut buf) {
                Ok(len) => self.ahead.get_mut().extend_from_slice(&buf[..len]),
                Err(Trouble::Input(error)) => return Err(unreadable(error)),
                Err(Trouble::Call(error)) => return Err(data_port::told(&error)),
            }
        }
        Ok(())
    }

    /// Sends and receives until there is something of the reply, or it is over.
    fn go_on(&mut self, into: &mut [u8]) -> Result<usize, Trouble> {
        while !self.is_over {
            self.fetch()?;
            let done = self.stream.exchange(&self.piece[self.at..], into).map_err(Trouble::Call)?;
            self.at += done.written;
            self.is_over = done.is_over;
            if done.read > 0 {
                return Ok(done.read);
            }
        }
        Ok(0)
    }

    /// The next piece of the input, where the last one is sent.
    fn fetch(&mut self) -> Result<(), Trouble> {
        let Some(input) = &mut self.input else { return Ok(()) };
        if self.at < self.piece.len() {
            return Ok(());
        }
        self.piece.resize(PIECE_BYTES, 0);
        let len = loop {
            match input.read(&mut self.piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(Trouble::Input)?,
            }
        };
        self.piece.truncate(len);
        self.at = 0;
        if len == 0 {
            self.input = None;
            self.stream.finish().map_err(Trouble::Call)?;
        }
        Ok(())
    }
}

impl Read for Streamed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.ahead.read(into)? {
            0 => self.go_on(into).map_err(io::Error::other),
            len => Ok(len),
        }
    }
}

impl Answer for Streamed<'_> {
    fn head(&self) -> ReplyHead {
        self.stream.known_head().map(|head| head_of(head, self.process.as_ref())).unwrap_or_default()
    }
}
