//! One connection that makes calls as they are due, over HTTP or in frames.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use denizen_agent::Keys;
use denizen_client::{Blame, Call, ClientError, Input, Node};
use denizen_framed::{Connection, Error, Options, Request, Ticket};
use denizen_protocol::token::{self, Claims};

use super::{schedule::Schedule, tally::Tally};
use crate::{
    cli::{self, Everywhere},
    commands::{node, token::holds_for},
    failure::{Failure, chain},
    place,
    target::Target,
};

/// How much longer than the run its own token holds.
const TOKEN_RESERVE_S: u64 = 3600;
/// How often one that sleeps looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(200);

/// What is called, the same for all callers.
#[derive(Debug)]
pub(super) struct What {
    target: Target,
    function: String,
    body: Vec<u8>,
    content_type: Option<String>,
    deadline: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub(super) enum Caller {
    Http { node: Node, what: Arc<What> },
    Framed { connection: Box<Connection>, what: Arc<What> },
}

/// As many as were asked for, all connected: what is wrong with the node or the token is told before anything is measured.
pub(super) fn open(
    everywhere: &Everywhere,
    typed: &cli::Load,
    target: &Target,
) -> Result<Vec<Caller>, Failure> {
    let what = Arc::new(What {
        target: target.clone(),
        function: typed.function.clone(),
        body: body(typed.body.as_deref())?,
        content_type: typed.content_type.clone(),
        deadline: typed.deadline,
    });
    let framed = typed.framed.then(|| framed_options(everywhere, typed, target)).transpose()?;
    (0..typed.connections)
        .map(|_| match &framed {
            Some(options) => {
                let connection = Connection::open(options.clone()).map_err(told)?;
                Ok(Caller::Framed { connection: Box::new(connection), what: Arc::clone(&what) })
            }
            None => {
                // Each has a transport of its own, which keeps one connection.
                let node = node(everywhere)?;
                node.info()?;
                Ok(Caller::Http { node, what: Arc::clone(&what) })
            }
        })
        .collect()
}

fn body(typed: Option<&str>) -> Result<Vec<u8>, Failure> {
    let Some(path) = typed.and_then(|text| text.strip_prefix('@')) else {
        return Ok(typed.unwrap_or_default().as_bytes().to_vec());
    };
    fs::read(path).map_err(|error| {
        Failure::usage(format!("the input {path} cannot be read"))
            .because(&error)
            .remedy("name a file after @")
    })
}

fn framed_options(everywhere: &Everywhere, typed: &cli::Load, target: &Target) -> Result<Options, Failure> {
    let dir = place::node_directory(everywhere.dir.as_deref())?;
    let address = match fs::read_to_string(dir.join("data-endpoint")) {
        Ok(address) => address,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::host(format!("no node with a data port runs on {}", dir.display()))
                .remedy("start one with `denizen dev`, or measure with --http"));
        }
        Err(error) => return Err(Failure::host("the data port's address cannot be read").because(&error)),
    };
    let token = match &typed.token {
        Some(token) => token.clone(),
        None => own_token(&Keys::open(&dir).map_err(keyless)?, typed, target)?,
    };
    let options = Options::new(address.trim(), &target.app).token(token);
    Ok(match &target.process {
        Some(process) => options.process(process),
        None => options,
    })
}

/// Whoever may read the node's keys needs no token from anybody.
fn own_token(keys: &Keys, typed: &cli::Load, target: &Target) -> Result<String, Failure> {
    let (not_before_s, expires_s) = holds_for(typed.duration.as_secs() + TOKEN_RESERVE_S);
    let claims = Claims {
        app: target.app.clone(),
        process: target.process.clone(),
        functions: Some(vec![typed.function.clone()]),
        not_before_s,
        expires_s,
    };
    Ok(token::to_text(&keys.issue(&claims).map_err(keyless)?))
}

fn keyless(error: denizen_agent::KeysError) -> Failure {
    Failure::usage("there is no token for the data port")
        .because(&error)
        .remedy("pass one with --token; `denizen token issue` makes them")
}

/// An error of the framed client as this program tells it.
fn told(error: Error) -> Failure {
    let failure = match error.blame() {
        denizen_framed::Blame::Caller => Failure::usage(error.to_string()),
        denizen_framed::Blame::Function => Failure::function(error.to_string()),
        denizen_framed::Blame::Host | denizen_framed::Blame::Store => Failure::host(error.to_string()),
    };
    let failure = match error.cause() {
        Some(cause) => failure.detail(cause),
        None => failure,
    };
    match error.remedy() {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}

impl Caller {
    /// Makes calls until there are no more, and waits for the last.
    pub(super) fn run(&mut self, schedule: &Schedule, tally: &Tally, depth: usize) -> Result<(), Failure> {
        match self {
            Caller::Http { node, what } => {
                while let Some(due) = schedule.take() {
                    if !sleep_until(due, schedule) {
                        return Ok(());
                    }
                    match call_over_http(node, what) {
                        Ok(()) => tally.succeeded(due),
                        Err(error) => tally.failed(&kind_of(&error), || chain(&error)),
                    }
                }
                Ok(())
            }
            Caller::Framed { connection, what } => call_in_frames(connection, what, schedule, tally, depth),
        }
    }
}

/// Sleeps in pieces, so that a stop is heard. Says whether the time has come.
fn sleep_until(due: Instant, schedule: &Schedule) -> bool {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() || schedule.is_stopped() {
            return !schedule.is_stopped();
        }
        thread::sleep(left.min(LOOK));
    }
}

fn call_over_http(node: &Node, what: &What) -> Result<(), ClientError> {
    let call = Call {
        app: &what.target.app,
        process: what.target.process.as_deref(),
        function: &what.function,
        content_type: what.content_type.as_deref(),
        deadline: what.deadline,
        never_create: false,
    };
    let mut reply = node.call(&call, Input::Bytes(&what.body))?;
    let mut rest = [0; 16 << 10];
    loop {
        match reply.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(node.broke_off("reading the reply", source)),
        }
    }
}

fn kind_of(error: &ClientError) -> String {
    match error {
        ClientError::Problem(problem) => problem.name().to_owned(),
        ClientError::Unreachable { .. } => "unreachable".to_owned(),
        ClientError::BrokeOff { .. } => "connection-lost".to_owned(),
        ClientError::Nonsense { .. } => "protocol-error".to_owned(),
        other if other.blame() == Blame::Caller => "refused-here".to_owned(),
        _ => "other".to_owned(),
    }
}

fn call_in_frames(
    connection: &mut Connection,
    what: &What,
    schedule: &Schedule,
    tally: &Tally,
    depth: usize,
) -> Result<(), Failure> {
    let mut running: HashMap<Ticket, Instant> = HashMap::with_capacity(depth);
    // Taken when there is room for it, and not before: in closed loop a call is due when it is taken.
    let mut next = None;
    loop {
        while running.len() < depth {
            next = next.or_else(|| schedule.take());
            let Some(due) = next.take_if(|due| *due <= Instant::now()) else { break };
            let ticket = connection.begin(what.request(), &what.body).map_err(told)?;
            running.insert(ticket, due);
        }
        if schedule.is_stopped() {
            next = None;
        }
        if running.is_empty() {
            match next {
                None => return Ok(()),
                Some(due) => {
                    sleep_until(due, schedule);
                    continue;
                }
            }
        }
        // With all hands full only an answer helps; else the next call may be due before one comes.
        let until = next.filter(|_| running.len() < depth);
        if let Some((ticket, end)) = connection.wait_any(until)
            && let Some(due) = running.remove(&ticket)
        {
            match end {
                Ok(_) => tally.succeeded(due),
                Err(error) => tally.failed(error.kind(), || chain(&error)),
            }
        }
    }
}

impl What {
    fn request(&self) -> Request {
        let mut request = Request::new(&self.function);
        if let Some(content_type) = &self.content_type {
            request = request.content_type(content_type);
        }
        match self.deadline {
            Some(deadline) => request.deadline(deadline),
            None => request,
        }
    }
}
