//! One thread that makes calls as they are due: over an HTTP connection, or in frames over as many connections as it is given.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::{self, Read as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use denizen_client::{Blame, Call, ClientError, Input, Node};
use denizen_framed::{Connection, Group, Options, Request, Ticket};

use super::{schedule::Schedule, tally::Tally};
use crate::{
    cli::{self, Everywhere},
    commands::{data_port, node},
    failure::{Failure, chain},
    place,
    target::Target,
};

/// How much longer than the run its own token holds.
const TOKEN_RESERVE: Duration = Duration::from_secs(3600);
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
    Framed { connections: Box<Group>, what: Arc<What>, depth: usize, is_busy: bool },
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
    if typed.framed {
        return open_framed(&framed_options(everywhere, typed, target)?, typed, &what);
    }
    (0..typed.connections)
        .map(|_| {
            // Each has a transport of its own, which keeps one connection.
            let node = node(everywhere)?;
            node.info()?;
            Ok(Caller::Http { node, what: Arc::clone(&what) })
        })
        .collect()
}

/// The connections, dealt out to threads.
fn open_framed(options: &Options, typed: &cli::Load, what: &Arc<What>) -> Result<Vec<Caller>, Failure> {
    let cores = thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
    let threads = typed.threads.unwrap_or(cores).min(typed.connections);
    let mut hands: Vec<Vec<Connection>> = (0..threads).map(|_| Vec::new()).collect();
    for (_, hand) in (0..typed.connections).zip((0..hands.len()).cycle()) {
        let connection = Connection::open(options.clone()).map_err(|error| data_port::told(&error))?;
        hands[hand].push(connection);
    }
    let caller = |hand| {
        let group = Group::new(hand).map_err(|error| unwatched(&error))?;
        let connections = Box::new(if typed.busy { group.spinning() } else { group });
        Ok(Caller::Framed { connections, what: Arc::clone(what), depth: typed.depth, is_busy: typed.busy })
    };
    hands.into_iter().map(caller).collect()
}

fn unwatched(error: &io::Error) -> Failure {
    Failure::host("the connections cannot be watched").because(error).remedy("ask for fewer --connections")
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
    let Some(address) = data_port::address(&dir)? else {
        return Err(Failure::host(format!("no node with a data port runs on {}", dir.display()))
            .remedy("start one with `denizen dev`, or measure with --http"));
    };
    let token = match &typed.token {
        Some(token) => token.clone(),
        None => {
            let ttl = typed.duration + TOKEN_RESERVE;
            data_port::own_token(&dir, &target.app, target.process.as_deref(), &typed.function, ttl)
                .map_err(keyless)?
        }
    };
    let options = Options::new(address, &target.app).token(token);
    Ok(match &target.process {
        Some(process) => options.process(process),
        None => options,
    })
}

fn keyless(error: denizen_agent::KeysError) -> Failure {
    Failure::usage("there is no token for the data port")
        .because(&error)
        .remedy("pass one with --token; `denizen token issue` makes them")
}

impl Caller {
    /// Makes calls until there are no more, and waits for the last.
    pub(super) fn run(&mut self, schedule: &Schedule, tally: &Tally) -> Result<(), Failure> {
        match self {
            Caller::Http { node, what } => {
                while let Some(due) = schedule.take() {
                    if !sleep_until(due, schedule, false) {
                        return Ok(());
                    }
                    match call_over_http(node, what) {
                        Ok(()) => tally.succeeded(due),
                        Err(error) => tally.failed(&kind_of(&error), || chain(&error)),
                    }
                }
                Ok(())
            }
            Caller::Framed { connections, what, depth, is_busy } => {
                call_in_frames(connections, what, schedule, tally, *depth, *is_busy)
            }
        }
    }
}

/// Sleeps in pieces, so that a stop is heard. Says whether the time has come.
fn sleep_until(due: Instant, schedule: &Schedule, is_busy: bool) -> bool {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() || schedule.is_stopped() {
            return !schedule.is_stopped();
        }
        if is_busy {
            std::hint::spin_loop();
        } else {
            thread::sleep(left.min(LOOK));
        }
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
        ..Call::default()
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
    connections: &mut Group,
    what: &What,
    schedule: &Schedule,
    tally: &Tally,
    depth: usize,
    is_busy: bool,
) -> Result<(), Failure> {
    // A place for each call that may be in flight, by its connection; the one that was free for longest is taken.
    let mut free: VecDeque<usize> = (0..depth).flat_map(|_| 0..connections.len()).collect();
    let mut running: HashMap<(usize, Ticket), Instant> = HashMap::with_capacity(free.len());
    // Taken when there is room for it, and not before: in closed loop a call is due when it is taken.
    let mut next = None;
    loop {
        while let Some(&at) = free.front() {
            next = next.or_else(|| schedule.take());
            let Some(due) = next.take_if(|due| *due <= Instant::now()) else { break };
            let begun = connections.begin(at, what.request(), &what.body);
            running.insert((at, begun.map_err(|error| data_port::told(&error))?), due);
            free.pop_front();
        }
        if schedule.is_stopped() {
            next = None;
        }
        if running.is_empty() {
            match next {
                None => return Ok(()),
                Some(due) => {
                    sleep_until(due, schedule, is_busy);
                    continue;
                }
            }
        }
        // With all hands full only an answer helps; else the next call may be due before one comes.
        let until = next.filter(|_| !free.is_empty());
        if let Some((at, ticket, end)) = connections.wait_any(until).map_err(|error| unwatched(&error))?
            && let Some(due) = running.remove(&(at, ticket))
        {
            free.push_back(at);
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
