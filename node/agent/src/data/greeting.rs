//! A connection from its beginning to the OK: its HELLO, its token, and the process that it is for.
//!
//! Exactly the HELLO is read. Nothing is looked up before the token was verified, and nothing is started before it is known to be for this
//! application and process. The connection then moves to the executor on which its process lives.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use denizen_protocol::limits::{HANDSHAKE_MS, MAX_FUNCTIONS};
use denizen_protocol::server::{Connection, Handshake, Parked, Terms};
use denizen_protocol::token::{Claims, Refusal};
use denizen_protocol::{Accepted, Hello, Problem as Framed, Violation};
use hyper::rt::{Read as _, ReadBuf, Write as _};

use super::bound::{Bound, Relayed};
use super::connection::{self, Caller};
use super::{Greeting, Open, Seat, parked};
use crate::executor::{self, HttpStream};
use crate::home::{App, Home};
use crate::problem::{Kind, Problem};
use crate::process::Process;

/// Calls that may be in flight on a connection.
const CALLS: u32 = 128;
/// Request bytes that a caller may send unasked, per call that is relayed: they wait in the agent's memory.
pub(super) const CALL_WINDOW: u32 = 256 << 10;
/// The same for the connection. On one that is given away a single call may have all of it: it waits in its process's own memory, and a
/// body that comes at once saves a wait for credit.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of a HELLO that are read at once.
const AT_ONCE: usize = 1 << 10;
/// How long a connection that is refused is read on, and how many bytes: a close over what was not read would take the answer with it.
const PARTING: Duration = Duration::from_secs(1);
const PARTING_BYTES: usize = 256 << 10;
/// After what quiet the kernel looks whether the caller is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Why there will be no OK.
enum Refused {
    /// It is no caller of ours, or it is gone.
    Quietly,
    With(Box<Framed>),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Refused {
        Refused::With(Box::new(problem.framed()))
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused::With(Box::new(Framed::from(&refusal)))
    }
}

impl From<Violation> for Refused {
    fn from(violation: Violation) -> Refused {
        match violation {
            Violation::NotDenizen => Refused::Quietly,
            violation => Refused::With(Box::new(Framed::from(&violation))),
        }
    }
}

/// Takes a connection in, and gives it to the executor that serves it.
pub(super) async fn greet(home: Rc<Home>, mut stream: HttpStream, open: Open, place: Greeting) {
    let limit = Duration::from_millis(u64::from(HANDSHAKE_MS));
    let admitted = executor::within(limit, admit(&home, &mut stream)).await;
    match admitted.unwrap_or(Err(Refused::Quietly)) {
        Ok((hello, claims)) => {
            drop(place);
            give(&home, stream, open, hello, claims);
        }
        Err(refused) => refuse(stream, refused).await,
    }
}

/// Reads the HELLO, and looks whether its token is for what it wants.
async fn admit(home: &Rc<Home>, stream: &mut HttpStream) -> Result<(Hello, Claims), Refused> {
    let hello = read_hello(stream).await?;
    let claims = home.node.believed.verify(&hello.token, &home.node.assigning).await?;
    claims.permit_app(&hello.app)?;
    match (&hello.process, &claims.process) {
        (Some(process), _) => claims.permit_process(process)?,
        // Its calls may name any.
        (None, Some(_)) => return Err(Refusal::WrongProcess.into()),
        (None, None) => {}
    }
    Ok((hello, claims))
}

async fn read_hello(stream: &mut HttpStream) -> Result<Hello, Refused> {
    let mut handshake = Handshake::new();
    let mut bytes = [0; AT_ONCE];
    loop {
        let wanted = handshake.wants().min(AT_ONCE);
        let room = bytes.get_mut(..wanted).unwrap_or_default();
        let count = poll_fn(|cx| poll_read(stream, cx, room)).await.map_err(|_| Refused::Quietly)?;
        if count == 0 {
            return Err(Refused::Quietly);
        }
        if let Some(hello) = handshake.push(room.get(..count).unwrap_or_default())? {
            return Ok(hello);
        }
    }
}

/// Has the executor serve the connection on which its process lives, or this one, if it is bound to none.
fn give(home: &Rc<Home>, stream: HttpStream, open: Open, hello: Hello, claims: Claims) {
    let bound = hello.process.as_deref().map(|process| home.node.home_of(&hello.app, process));
    let executor = bound.filter(|executor| *executor != home.index);
    let Some(executor) = executor else {
        executor::spawn(serve(Rc::clone(home), stream, open, hello, claims));
        return;
    };
    match stream.give_up() {
        Ok(socket) => {
            let job = move |home: Rc<Home>| adopt(&home, socket, open, hello, claims);
            // An executor that is gone drops the job, and the connection with it: the node stops.
            let _ = home.node.send_job(executor, Box::new(job));
        }
        Err(error) => tracing::warn!("a connection cannot be moved to its executor: {error}"),
    }
}

/// `came`: counts it where it came from.
fn adopt(home: &Rc<Home>, socket: OwnedFd, came: Open, hello: Hello, claims: Claims) {
    let open = Open::new(home);
    drop(came);
    match HttpStream::adopt(socket) {
        Ok(stream) => executor::spawn(serve(Rc::clone(home), stream, open, hello, claims)),
        Err(error) => tracing::warn!("a connection cannot be taken over: {error}"),
    }
}

async fn serve(home: Rc<Home>, mut stream: HttpStream, open: Open, hello: Hello, claims: Claims) {
    // Without it a caller that vanished stays until its token expires.
    let _ = stream.keep_alive(KEEP_ALIVE);
    // Not the seat's alone: a connection that gets none counts until it is closed, too.
    let open = Rc::new(open);
    let Answer { seat, process, parked, accepted } = match answer(&home, &open, &hello, &claims).await {
        Ok(answer) => answer,
        Err(refused) => return refuse(stream, refused).await,
    };
    if let Some(process) = process {
        let sent = executor::within(connection::STALL, send(&mut stream, &accepted)).await;
        if let Some(Ok(())) = sent {
            rest(&process, seat, stream, &parked, Vec::new(), claims.expires_s);
        }
        return;
    }
    let create_never = hello.options.create_never;
    let (caller, taken) =
        Caller::new(&home, &seat.app, Connection::resume(parked), create_never, accepted, None);
    connection::serve(&home, stream, caller, taken, claims.expires_s, false).await;
    drop(seat);
}

/// Puts a bound connection to rest.
fn rest(
    process: &Rc<Process>,
    seat: Seat,
    stream: HttpStream,
    parked: &Parked,
    residue: Vec<u8>,
    expires_s: u64,
) {
    let bound =
        stream.give_up().and_then(|socket| Bound::new(process, seat, socket, parked, residue, expires_s));
    match bound {
        Ok(bound) => parked::park(bound),
        Err(error) => tracing::warn!("a connection cannot be kept: {error}"),
    }
}

/// Serves a bound connection that no sandbox has, until it rests again. `problem`: why none has it, which each call is told.
pub(super) async fn relay(bound: Bound, problem: Option<Problem>) {
    let (home, process) = (Rc::clone(bound.home()), Rc::clone(bound.process()));
    let Relayed { stream, seat, protocol, residue, expires_s } = match bound.into_relayed() {
        Ok(relayed) => relayed,
        Err(error) => return tracing::warn!("a connection cannot be served: {error}"),
    };
    // The process was there when the connection was accepted: a call on it creates none.
    let (caller, taken) = Caller::new(&home, &seat.app, protocol, true, Vec::new(), problem);
    let begun = caller.begin_with(&residue);
    let may_rest = process.wants_ring(&home);
    let left = connection::serve(&home, stream, caller, taken, expires_s, may_rest).await;
    if let (Ok(()), Some((stream, parked, residue))) = (begun, left) {
        rest(&process, seat, stream, &parked, residue, expires_s);
    }
}

/// What was answered to a HELLO, and who serves the connection.
struct Answer {
    seat: Seat,
    /// The process that it is given to; `None`: it is relayed.
    process: Option<Rc<Process>>,
    parked: Parked,
    /// The OK.
    accepted: Vec<u8>,
}

/// Starts or finds the process, and makes the OK.
async fn answer(home: &Rc<Home>, open: &Rc<Open>, hello: &Hello, claims: &Claims) -> Result<Answer, Refused> {
    if home.node.is_stopping() {
        return Err(Problem::new(Kind::ShuttingDown, "the node is shutting down").into());
    }
    let app = home.app(&hello.app)?;
    let seat = Seat::take(home, &app, open)?;
    let (epoch, process) = match &hello.process {
        Some(process) => find(home, &app, process, hello).await?,
        None => (0, None),
    };
    let image = app.image();
    let mut accepted = Accepted {
        max_calls: CALLS,
        call_window: if process.is_some() { CONNECTION_WINDOW } else { CALL_WINDOW },
        connection_window: CONNECTION_WINDOW,
        table: image.table,
        ..Accepted::new(epoch, image.longest_input())
    };
    if hello.options.want_functions {
        let names = image.declarations.functions.iter().map(|function| function.name.clone());
        accepted.functions = names.take(MAX_FUNCTIONS as usize).collect();
    }
    let mut bytes = Vec::new();
    accepted.encode(&mut bytes)?;
    let terms = Terms::agreed(hello, &accepted, claims.functions.clone());
    Ok(Answer { seat, process, parked: Parked::fresh(terms), accepted: bytes })
}

/// The epoch of a process that serves; it is started if it does not. And the process, if it takes connections.
async fn find(
    home: &Rc<Home>,
    app: &Rc<App>,
    name: &str,
    hello: &Hello,
) -> Result<(u64, Option<Rc<Process>>), Refused> {
    let process = home.process(app, name)?;
    let create = app.image().creates(hello.options.create_never);
    let active = process.active(home, create).await;
    if active.as_ref().is_err_and(|problem| {
        matches!(problem.kind(), Kind::UnknownProcess | Kind::TooManyProcesses | Kind::NodeFull)
    }) {
        home.let_go(&process);
    }
    let active = active?;
    let epoch = active.epoch.get();
    if hello.epoch != 0 && hello.epoch != epoch {
        let text = format!("epoch {} is wanted, and {name} is in epoch {epoch}", hello.epoch);
        let problem = Problem::new(Kind::EpochMismatch, text).framed();
        return Err(Refused::With(Box::new(Framed { epoch, ..problem })));
    }
    Ok((epoch, active.direct.is_some().then_some(process)))
}

async fn refuse(mut stream: HttpStream, refused: Refused) {
    let Refused::With(problem) = refused else { return };
    let mut bytes = Vec::new();
    if problem.encode(0, &mut bytes).is_ok() {
        part(&mut stream, &bytes).await;
    }
}

/// A FAIL about the connection.
pub(super) fn refusal(problem: &Problem) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What it says comes from here, and is a sentence.
    let _ = problem.framed().encode(0, &mut bytes);
    bytes
}

/// Sends the last bytes and closes so that they arrive.
pub(super) async fn part(stream: &mut HttpStream, bytes: &[u8]) {
    let parting = async {
        send(stream, bytes).await?;
        poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await?;
        let (mut left, mut bytes) = (PARTING_BYTES, [0; AT_ONCE]);
        while left > 0 {
            match poll_fn(|cx| poll_read(stream, cx, &mut bytes)).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    // Whoever does not take it does not.
    let _ = executor::within(PARTING, parting).await;
}

async fn send(stream: &mut HttpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Reads at least a byte, and at most as many as there is room for; 0 is the end.
pub(super) fn poll_read(
    stream: &mut HttpStream,
    cx: &mut Context<'_>,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(room);
    ready!(Pin::new(stream).poll_read(cx, buffer.unfilled()))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
