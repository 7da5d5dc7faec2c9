//! The calls of one client, the connections that they are on, and what becomes of them when one ends: without a socket and without a
//! clock, so that the blocking and the asynchronous client do the same, and a test can play any node.
//!
//! A client here calls *whom*, not *where*: it outlives its connections. At most one of them takes new calls; others may stand beside it
//! whose node drains them, until what they run has ended. What must hold: every call that was begun ends once, in a reply or an [`Error`];
//! it is made again only as [`denizen_protocol::client::resume`] allows, and at most [`MAX_TRIES`] times.
//!
//! Whoever moves the bytes calls [`Machine::pump`], connects what [`Machine::dial`] gives, moves what [`Machine::fill`] gives and what
//! comes back, until [`Machine::has_link`] says that a connection is of no more use, and waits no longer than [`Machine::wake_at`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use denizen_protocol::{
    CancelReason, Problem, Retry, Violation,
    client::{Fate, Next, Resume, Session, Unfinished, resume},
    problem::{DRAINING, FUNCTIONS_CHANGED},
};

use crate::{
    error::Error,
    exchange::{End, Exchange, Incoming, Turn},
    options::Options,
    request::{Reply, Request},
};

mod elsewhere;
#[cfg(test)]
mod tests;

/// How often one call is sent, at most: one that ends its process each time shall not do so for ever.
pub(crate) const MAX_TRIES: u32 = 8;
/// A node that is well tells by itself that a deadline has passed, and says more of it; so the client waits a little
/// longer: this part of it,
const GRACE_PART: u32 = 10;
/// and not less,
const GRACE_MIN: Duration = Duration::from_millis(50);
/// nor more than this.
const GRACE_MAX: Duration = Duration::from_secs(1);

/// How a connection ended, as far as its bytes tell.
#[derive(Debug)]
enum Cut {
    /// The socket failed, or was closed.
    Io(io::Error),
    /// The other end broke a rule.
    Violation(Violation),
}

/// What is given to a call.
#[derive(Debug)]
pub(crate) enum Input {
    /// All of it.
    Whole(Arc<[u8]>),
    /// Piece by piece, so many bytes if that is known. Such a call cannot be made again once anything of it is sent.
    Stream { length: Option<u64> },
}

/// A call that has not ended, or whose reply was not read to its end.
#[derive(Debug)]
struct Pending {
    request: Request,
    input: Input,
    /// When its time is over, for the node.
    until: Option<Instant>,
    /// The connection that it is on, and its id there.
    at: Option<(u64, u64)>,
    /// What is left of a stream whose connection is gone.
    rest: Option<Box<Incoming>>,
    tries: u32,
    /// Where it was moved to, if it was.
    moves: Option<Box<elsewhere::Moves>>,
}

/// One connection.
#[derive(Debug)]
struct Link {
    key: u64,
    address: String,
    exchange: Exchange,
    /// The ticket of each call that was begun here, by its id on the wire.
    tickets: HashMap<u64, u64>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being connected, until then.
    Dialing(Instant),
    /// The HELLO is on its way; the answer must be here by then.
    Greeting(Instant),
    Open,
    /// A DRAIN is here: no new calls.
    Leaving,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    options: Options,
    session: Session,
    /// At most one that is not leaving, and it is the last.
    links: Vec<Link>,
    last_key: u64,
    calls: BTreeMap<u64, Pending>,
    /// Begun, not on the wire yet, in their order. May name calls that were given up.
    waiting: VecDeque<u64>,
    ended: BTreeMap<u64, Result<Reply, Error>>,
    /// Streams that ended before they were on the wire, or whose time is over.
    over: HashMap<u64, Error>,
    last_ticket: u64,
    /// The earliest time at which a call is given up.
    expires: Option<Instant>,
    /// Not to connect before.
    connect_at: Option<Instant>,
    /// Since when no connection was accepted.
    failing_since: Option<Instant>,
    given_up: Option<Error>,
    /// A connection is asked for, whether or not there is a call for it.
    is_wanted: bool,
    /// Counts what has happened that somebody may be waiting for.
    news: u64,
    /// Calls that have ended by something else than their own answer.
    given_ends: u64,
    salt: RandomState,
    /// Calls that are moved are made elsewhere from here. One that is for one process is told by a MOVED where that lives; and what is
    /// moved again goes back to where it began.
    follows: bool,
    /// Machines of other addresses, for calls that were moved there.
    branches: Vec<elsewhere::Branch>,
    last_branch: u64,
    /// Calls that are to be made elsewhere, and what their nodes said.
    moved: Vec<(u64, Box<Problem>)>,
}

impl Machine {
    pub(crate) fn new(options: Options) -> Result<Machine, Error> {
        Ok(Machine {
            session: Session::sharing(options.target()?, &options.epochs),
            follows: !options.is_bound(),
            options,
            links: Vec::new(),
            last_key: 0,
            calls: BTreeMap::new(),
            waiting: VecDeque::new(),
            ended: BTreeMap::new(),
            over: HashMap::new(),
            last_ticket: 0,
            expires: None,
            connect_at: None,
            failing_since: None,
            given_up: None,
            is_wanted: false,
            news: 0,
            given_ends: 0,
            salt: RandomState::new(),
            branches: Vec::new(),
            last_branch: 0,
            moved: Vec::new(),
        })
    }

    // What a caller does.

    /// Begins a call. It is sent when there is room for it.
    pub(crate) fn begin(&mut self, request: Request, input: Input, now: Instant) -> u64 {
        self.try_anew();
        self.last_ticket += 1;
        let until = request.deadline.and_then(|deadline| now.checked_add(deadline));
        let pending = Pending { request, input, until, at: None, rest: None, tries: 0, moves: None };
        self.expires = earlier(self.expires, pending.expires());
        self.waiting.push_back(self.last_ticket);
        self.calls.insert(self.last_ticket, pending);
        self.send_begun(now);
        self.last_ticket
    }

    /// Asks for a connection without a call.
    pub(crate) fn want(&mut self) {
        if !self.is_wanted {
            self.try_anew();
            self.is_wanted = true;
        }
    }

    /// Why no connection could be had, once.
    pub(crate) fn take_given_up(&mut self) -> Option<Error> {
        self.given_up.take()
    }

    /// A new call is a new attempt; and where nobody has tried for a while, what went wrong before says nothing of now.
    fn try_anew(&mut self) {
        self.given_up = None;
        if !self.is_waited_for() {
            self.failing_since = None;
        }
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.options.patience = patience;
    }

    /// How a call has ended. It is forgotten then.
    pub(crate) fn take_ended(&mut self, ticket: u64) -> Option<Result<Reply, Error>> {
        self.ended.remove(&ticket)
    }

    /// Why a call could not be made as it was asked for, if it has ended with that.
    pub(crate) fn take_refusal(&mut self, ticket: u64) -> Option<Error> {
        match self.ended.get(&ticket) {
            Some(Err(Error::Refused(_))) => self.ended.remove(&ticket).and_then(Result::err),
            _ => None,
        }
    }

    /// Any call that has ended.
    pub(crate) fn pop_ended(&mut self) -> Option<(u64, Result<Reply, Error>)> {
        self.ended.pop_first()
    }

    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Whether a call has not ended.
    pub(crate) fn runs(&self, ticket: u64) -> bool {
        self.calls.contains_key(&ticket)
    }

    /// Calls that have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.calls.len()
    }

    /// Whether nothing is left of any call.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.ended.is_empty()
    }

    /// Grows when a call has ended by something else than its own answer.
    pub(crate) fn given_ends(&self) -> u64 {
        self.given_ends
    }

    /// Grows when something has happened that a stream, or one who wants a connection, may be waiting for.
    pub(crate) fn news(&self) -> u64 {
        self.news
    }

    /// Whether a node has accepted a connection and takes calls on it.
    pub(crate) fn is_connected(&self) -> bool {
        self.links.last().is_some_and(|link| link.stage == Stage::Open)
    }

    /// The highest epoch seen of a process; 0 if none was.
    pub(crate) fn epoch(&self, process: &str) -> u64 {
        self.options.epochs.of(process)
    }

    /// Nobody wants this call any more.
    pub(crate) fn forget(&mut self, ticket: u64, reason: CancelReason) {
        self.ended.remove(&ticket);
        self.over.remove(&ticket);
        let Some(pending) = self.calls.remove(&ticket) else { return };
        if let Some(moves) = &pending.moves {
            self.forget_elsewhere(moves, reason);
        }
        if let Some((key, id)) = pending.at
            && let Some(link) = self.links.iter_mut().find(|link| link.key == key)
        {
            link.tickets.remove(&id);
            link.exchange.abandon(id, reason);
        }
    }

    /// Everything ends: whoever moves the bytes does so no more.
    pub(crate) fn close(&mut self, source: io::Error) {
        let source = Arc::new(source);
        for (ticket, pending) in std::mem::take(&mut self.calls) {
            let retry = if pending.tries == 0 { Retry::Safe } else { Retry::Unknown };
            let address = self.session.address().to_owned();
            let error = Error::Lost { address, retry, source: Arc::clone(&source) };
            self.end(ticket, pending.is_whole(), error);
        }
        self.links.clear();
        self.branches.clear();
        self.moved.clear();
        self.waiting.clear();
        self.is_wanted = false;
    }

    /// A call that was taken out ends without a reply.
    fn end(&mut self, ticket: u64, is_whole: bool, error: Error) {
        self.news += 1;
        self.given_ends += 1;
        if is_whole {
            self.ended.insert(ticket, Err(error));
        } else {
            self.over.insert(ticket, error);
        }
    }

    // What a stream does.

    /// What has come of a stream: `None` while it is not on the wire.
    pub(crate) fn incoming(&self, ticket: u64) -> Result<Option<&Incoming>, Error> {
        let Some(pending) = self.calls.get(&ticket) else {
            return Err(self.over.get(&ticket).cloned().unwrap_or(Error::NoSuchCall));
        };
        match (&pending.rest, pending.at) {
            (Some(rest), _) => Ok(Some(rest)),
            (None, Some((key, id))) => {
                let link = self.links.iter().find(|link| link.key == key);
                Ok(link.and_then(|link| link.exchange.incoming(id)))
            }
            (None, None) => Ok(None),
        }
    }

    /// Reads from a stream's reply; 0 while nothing is there.
    pub(crate) fn read(&mut self, ticket: u64, into: &mut [u8]) -> usize {
        let Some(pending) = self.calls.get_mut(&ticket) else { return 0 };
        if let Some(rest) = &mut pending.rest {
            return rest.read(into);
        }
        let Some((key, id)) = pending.at else { return 0 };
        let link = self.links.iter_mut().find(|link| link.key == key);
        link.map_or(0, |link| link.exchange.read(id, into))
    }

    /// Sends as much of a stream's input as there is credit for; with `end` and nothing left over, its end. `None`: it is not on the wire.
    pub(crate) fn write(&mut self, ticket: u64, bytes: &[u8], end: bool) -> Result<Option<usize>, Error> {
        let Some((key, id)) = self.calls.get(&ticket).and_then(|pending| pending.at) else { return Ok(None) };
        let Some(link) = self.links.iter_mut().find(|link| link.key == key) else { return Ok(None) };
        link.exchange.write(id, bytes, end).map(Some).map_err(Error::Refused)
    }

    // What moves the bytes.

    /// Does what is to be done at this time.
    pub(crate) fn pump(&mut self, now: Instant) {
        self.expire(now);
        let late = |link: &Link| match link.stage {
            Stage::Dialing(until) | Stage::Greeting(until) => until <= now,
            Stage::Open | Stage::Leaving => false,
        };
        if let Some(link) = self.links.last()
            && late(link)
        {
            let why = match link.stage {
                Stage::Dialing(_) => "it does not accept the connection",
                _ => "it accepted the connection and said nothing",
            };
            self.cut(link.key, io::Error::new(io::ErrorKind::TimedOut, why), now);
        }
        self.send_begun(now);
        self.pump_branches(now);
    }

    /// Until when nothing is to be done unless bytes come.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let link = self.links.last().filter(|link| link.stage != Stage::Leaving);
        let other = match link.map(|link| link.stage) {
            Some(Stage::Dialing(until) | Stage::Greeting(until)) => Some(until),
            Some(_) => None,
            None => self.connect_at.filter(|_| self.is_waited_for()),
        };
        self.or_elsewhere(earlier(self.expires, other))
    }

    /// A connection that is to be made now: its key, and where to.
    pub(crate) fn dial(&mut self, now: Instant) -> Option<(u64, String)> {
        self.dial_here(now).or_else(|| self.dial_elsewhere(now))
    }

    fn dial_here(&mut self, now: Instant) -> Option<(u64, String)> {
        let has_link = self.links.last().is_some_and(|link| link.stage != Stage::Leaving);
        if has_link || !self.is_waited_for() || self.connect_at.is_some_and(|at| now < at) {
            return None;
        }
        let mut out = Vec::new();
        let protocol = match self.session.greet(&mut out) {
            Ok(protocol) => protocol,
            Err(violation) => {
                self.give_up(&Error::Refused(violation.into()));
                return None;
            }
        };
        self.last_key += 1;
        let (key, address) = (self.last_key, self.session.address().to_owned());
        let exchange = Exchange::new(protocol, out, self.options.reply_limit);
        let stage = Stage::Dialing(now + self.options.connect_timeout);
        self.links.push(Link { key, address: address.clone(), exchange, tickets: HashMap::new(), stage });
        Some((key, address))
    }

    /// It is connected.
    pub(crate) fn connected(&mut self, key: u64, now: Instant) {
        let until = now + self.options.connect_timeout;
        self.news += 1;
        if let Some((machine, key)) = self.branch(key) {
            return machine.connected(key, now);
        }
        if let Some(link) = self.link(key) {
            link.stage = Stage::Greeting(until);
        }
        self.send_begun(now);
    }

    /// Whether this connection is of any use.
    pub(crate) fn has_link(&self, key: u64) -> bool {
        self.links.iter().any(|link| link.key == key) || self.has_branch_link(key)
    }

    /// What is to be sent on a connection now.
    pub(crate) fn fill(&mut self, key: u64) -> &[u8] {
        if self.has_branch_link(key) {
            return self.branch(key).map_or(&[], |(machine, key)| machine.fill(key));
        }
        let link = self.links.iter_mut().find(|link| link.key == key);
        match link {
            Some(link) if !matches!(link.stage, Stage::Dialing(_)) => link.exchange.fill(),
            _ => &[],
        }
    }

    /// So much of it was sent.
    pub(crate) fn was_sent(&mut self, key: u64, len: usize) {
        self.news += 1;
        if let Some((machine, key)) = self.branch(key) {
            return machine.was_sent(key, len);
        }
        if let Some(link) = self.link(key) {
            link.exchange.was_sent(len);
        }
    }

    /// Takes in what was received.
    pub(crate) fn received(&mut self, key: u64, bytes: &[u8], now: Instant) {
        self.news += 1;
        if let Some((machine, key)) = self.branch(key) {
            machine.received(key, bytes, now);
            return self.gather(now);
        }
        let Some(link) = self.link(key) else { return };
        let received = link.exchange.receive(bytes);
        self.collect(key);
        let Some(link) = self.link(key) else { return };
        if let Some(turn) = link.exchange.turn() {
            return self.turn(key, turn, now);
        }
        if matches!(link.stage, Stage::Greeting(_)) && link.exchange.is_accepted() {
            link.stage = Stage::Open;
            self.failing_since = None;
            self.is_wanted = false;
            self.session.accepted();
        }
        self.leave(key, now);
        match received {
            Err(violation) => self.end_link(key, Cut::Violation(violation), now),
            Ok(()) if self.link(key).is_some_and(|link| link.exchange.is_drained()) => {
                self.cut(key, io::ErrorKind::ConnectionAborted.into(), now);
            }
            Ok(()) => {}
        }
        self.follow_moved(now);
        self.send_begun(now);
    }

    /// The connection could not be made, or is gone.
    pub(crate) fn cut(&mut self, key: u64, error: io::Error, now: Instant) {
        self.news += 1;
        if let Some((machine, key)) = self.branch(key) {
            machine.cut(key, error, now);
            return self.gather(now);
        }
        let Some(link) = self.link(key) else { return };
        if !matches!(link.stage, Stage::Dialing(_)) {
            return self.end_link(key, Cut::Io(error), now);
        }
        let address = link.address.clone();
        self.links.retain(|link| link.key != key);
        let next = self.session.unreachable(self.random(now));
        self.follow(next, &Error::Unreachable { address, source: Arc::new(error) }, now);
    }

    fn link(&mut self, key: u64) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.key == key)
    }

    /// Whether a connection would be of use, if there were one.
    fn is_waited_for(&self) -> bool {
        self.is_wanted || self.waiting.iter().any(|ticket| self.calls.contains_key(ticket))
    }

    /// Sends calls that were begun, as many as there is room for.
    fn send_begun(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let Some(link) = self.links.last_mut() else { return };
        let is_open = match link.stage {
            Stage::Open => true,
            Stage::Greeting(_) => false,
            Stage::Dialing(_) | Stage::Leaving => return,
        };
        let (mut held, mut refused) = (VecDeque::new(), Vec::new());
        while link.exchange.has_room()
            && let Some(ticket) = self.waiting.pop_front()
        {
            let Some(pending) = self.calls.get_mut(&ticket) else { continue };
            // Sent behind the HELLO it would be quicker, and nobody would know what became of it if the node closes without a word.
            if !is_open && !pending.may_be_repeated() {
                held.push_back(ticket);
                continue;
            }
            let left = pending.until.map(|until| until.saturating_duration_since(now));
            let begun = match &pending.input {
                Input::Whole(input) => link.exchange.begin(&pending.request, left, input),
                Input::Stream { length } => link.exchange.begin_stream(&pending.request, left, *length),
            };
            match begun {
                Ok(id) => {
                    pending.at = Some((link.key, id));
                    pending.tries += 1;
                    link.tickets.insert(id, ticket);
                }
                Err(error) => refused.push((ticket, error)),
            }
        }
        for (ticket, error) in refused {
            if let Some(pending) = self.calls.remove(&ticket) {
                self.end(ticket, pending.is_whole(), Error::Refused(error));
            }
        }
        held.append(&mut self.waiting);
        self.waiting = held;
    }

    /// Calls that have ended on the wire.
    fn collect(&mut self, key: u64) {
        let limit = self.options.reply_limit;
        let Some(link) = self.links.iter_mut().find(|link| link.key == key) else { return };
        for id in link.exchange.take_ended() {
            let Some(link) = self.links.iter_mut().find(|link| link.key == key) else { return };
            let Some(&ticket) = link.tickets.get(&id) else { continue };
            let Some(pending) = self.calls.get_mut(&ticket) else { continue };
            if !pending.is_whole() {
                // Its reader is on its way to the end.
                continue;
            }
            link.tickets.remove(&id);
            let Some(incoming) = link.exchange.take(id) else { continue };
            let end = end_of(incoming, limit);
            if end.as_ref().is_err_and(nothing_was_done) && pending.tries < MAX_TRIES {
                pending.at = None;
                self.waiting.push_back(ticket);
                continue;
            }
            if let Err(error) = &end
                && self.moves(ticket, error)
            {
                if let Some(pending) = self.calls.get_mut(&ticket) {
                    pending.at = None;
                }
                continue;
            }
            self.calls.remove(&ticket);
            self.ended.insert(ticket, end);
        }
    }

    /// After a DRAIN: what it refused is made on the next connection, which is asked for at once, and this one ends what it runs.
    fn leave(&mut self, key: u64, now: Instant) {
        let Some(link) = self.link(key) else { return };
        let Some(notice) = link.exchange.drain().cloned().filter(|_| link.stage == Stage::Open) else {
            return;
        };
        link.stage = Stage::Leaving;
        let refused = link.exchange.refused();
        let source = io::Error::new(io::ErrorKind::ConnectionAborted, "the node drains the connection");
        let why = Error::Lost { address: link.address.clone(), retry: Retry::Safe, source: Arc::new(source) };
        let tickets = refused.iter().filter_map(|call| Some((call.id, link.tickets.remove(&call.id)?)));
        let tickets: HashMap<u64, u64> = tickets.collect();
        // What came before the DRAIN of a reply is of no use, and nothing more comes.
        tickets.keys().for_each(|id| drop(link.exchange.take(*id)));
        self.settle(refused, &tickets, HashMap::new(), &why);
        match self.session.draining(&notice, self.random(now)) {
            // Nothing has failed so far.
            Next::Connect { after_ms, .. } => self.connect_at = Some(now + in_ms(after_ms)),
            next @ Next::GiveUp(_) => self.follow(next, &why, now),
        }
    }

    /// The connection is to be left, as the server says.
    fn turn(&mut self, key: u64, turn: Turn, now: Instant) {
        let Some(at) = self.links.iter().position(|link| link.key == key) else { return };
        let Link { exchange, tickets, address, stage, .. } = self.links.remove(at);
        let (lost, rest) = exchange.lost();
        let random = self.random(now);
        let (next, unfinished, why) = match turn {
            Turn::Moved(moved) => {
                let (next, unfinished) = self.session.moved(&moved, lost, random);
                let elsewhere =
                    io::Error::new(io::ErrorKind::AddrNotAvailable, "the process lives elsewhere");
                (Some(next), unfinished, Error::Unreachable { address, source: Arc::new(elsewhere) })
            }
            Turn::Refused(problem) => {
                let why = Error::Problem(Box::new(problem.clone()));
                if stage == Stage::Leaving {
                    (None, self.session.left(lost), why)
                } else {
                    let (next, unfinished) = self.session.refused(problem, lost, random);
                    (Some(next), unfinished, why)
                }
            }
        };
        self.settle(unfinished, &tickets, rest, &why);
        if let Some(next) = next {
            self.follow(next, &why, now);
        }
    }

    /// The connection is gone.
    fn end_link(&mut self, key: u64, cut: Cut, now: Instant) {
        self.collect(key);
        if let Some(turn) = self.link(key).and_then(|link| link.exchange.turn()) {
            return self.turn(key, turn, now);
        }
        let Some(at) = self.links.iter().position(|link| link.key == key) else { return };
        let Link { exchange, tickets, address, stage, .. } = self.links.remove(at);
        let why = match cut {
            Cut::Io(error) => Error::Lost { address, retry: Retry::Unknown, source: Arc::new(error) },
            Cut::Violation(source) => Error::Broken { address, retry: Retry::Unknown, source },
        };
        let (lost, rest) = exchange.lost();
        let was_accepted = lost.accepted;
        if stage == Stage::Leaving {
            let unfinished = self.session.left(lost);
            return self.settle(unfinished, &tickets, rest, &why);
        }
        let (next, unfinished) = self.session.broken(lost, self.random(now));
        self.settle(unfinished, &tickets, rest, &why);
        let why = match why {
            // For those that wait for the next connection the place is what matters.
            Error::Lost { address, source, .. } if !was_accepted => Error::Unreachable { address, source },
            other => other,
        };
        self.follow(next, &why, now);
    }

    fn follow(&mut self, next: Next, why: &Error, now: Instant) {
        match next {
            Next::GiveUp(problem) => self.give_up(&Error::Problem(Box::new(problem))),
            Next::Connect { after_ms, .. } => {
                let since = *self.failing_since.get_or_insert(now);
                let at = now + in_ms(after_ms);
                self.connect_at = Some(at);
                if at.duration_since(since) > self.options.patience {
                    self.give_up(why);
                }
            }
        }
    }

    /// Nothing that has not been sent will be.
    fn give_up(&mut self, why: &Error) {
        let error = why.for_unsent();
        for ticket in std::mem::take(&mut self.waiting) {
            if let Some(pending) = self.calls.remove(&ticket) {
                self.end(ticket, pending.is_whole(), error.clone());
            }
        }
        self.expires = self.calls.values().filter_map(Pending::expires).min();
        self.is_wanted = false;
        // The next call is a new attempt.
        self.failing_since = None;
        self.connect_at = None;
        self.session.accepted();
        self.news += 1;
        self.given_up = Some(why.clone());
    }

    /// What becomes of calls whose connection ended. `rest` is what came of replies.
    fn settle(
        &mut self,
        unfinished: Vec<Unfinished>,
        tickets: &HashMap<u64, u64>,
        rest: HashMap<u64, Incoming>,
        why: &Error,
    ) {
        let mut again = VecDeque::new();
        let mut reports = HashMap::new();
        for call in unfinished {
            let Some(ticket) = tickets.get(&call.id) else { continue };
            let Some(pending) = self.calls.get_mut(ticket) else { continue };
            let whole = pending.is_whole();
            let keyed = call.keyed || pending.may_be_repeated();
            // Of a reply that is taken whole nothing has been handed out yet.
            let reply_begun = call.reply_begun && !whole;
            let report = match resume(&Unfinished { reply_begun, keyed, ..call }) {
                Resume::Again if whole && pending.tries < MAX_TRIES => {
                    pending.at = None;
                    again.push_back(*ticket);
                    continue;
                }
                Resume::Again if call.fate == Fate::NotExecuted => Retry::Safe,
                Resume::Again => Retry::Unknown,
                Resume::Report(retry) => retry,
            };
            if whole {
                self.calls.remove(ticket);
                self.ended.insert(*ticket, Err(why.for_call(report)));
            } else {
                reports.insert(call.id, report);
            }
        }
        // Before those that were begun later.
        again.append(&mut self.waiting);
        self.waiting = again;
        self.keep_streams(tickets, rest, &reports, why);
    }

    /// What streams have received stays theirs to read.
    fn keep_streams(
        &mut self,
        tickets: &HashMap<u64, u64>,
        mut rest: HashMap<u64, Incoming>,
        reports: &HashMap<u64, Retry>,
        why: &Error,
    ) {
        for (id, ticket) in tickets {
            let Some(pending) = self.calls.get_mut(ticket).filter(|pending| !pending.is_whole()) else {
                continue;
            };
            let mut incoming = rest.remove(id).unwrap_or_default();
            let retry = reports.get(id).copied().unwrap_or(Retry::Unknown);
            incoming.end.get_or_insert_with(|| End::Over(why.for_call(retry)));
            pending.at = None;
            pending.rest = Some(Box::new(incoming));
        }
    }

    /// Gives up the calls whose time is over.
    fn expire(&mut self, now: Instant) {
        if self.expires.is_none_or(|expires| now < expires) {
            return;
        }
        let over = |pending: &Pending| pending.expires().is_some_and(|expires| expires <= now);
        let tickets: Vec<u64> =
            self.calls.iter().filter(|(_, pending)| over(pending)).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            let Some(pending) = self.calls.get(&ticket) else { continue };
            let retry = if pending.tries == 0 { Retry::Safe } else { Retry::Unknown };
            let after = pending.request.deadline.unwrap_or_default();
            let is_whole = pending.is_whole();
            self.forget(ticket, CancelReason::Deadline);
            self.end(ticket, is_whole, Error::Deadline { after, retry });
        }
        self.expires = self.calls.values().filter_map(Pending::expires).min();
    }

    fn random(&self, now: Instant) -> u64 {
        self.salt.hash_one((self.last_ticket, self.last_key, now))
    }
}

impl Pending {
    fn is_whole(&self) -> bool {
        matches!(self.input, Input::Whole(_))
    }

    /// Whether it may be made again although nobody knows what became of it.
    fn may_be_repeated(&self) -> bool {
        self.is_whole() && self.request.may_be_repeated()
    }

    /// When the client stops waiting by itself.
    fn expires(&self) -> Option<Instant> {
        let grace = (self.request.deadline? / GRACE_PART).clamp(GRACE_MIN, GRACE_MAX);
        self.until?.checked_add(grace)
    }
}

/// Whether a failure says that the call was not looked at, and would be if it were made again now: the index was of an older image, which
/// is forgotten, and the name is sent this time; or the process was about to be given up.
fn nothing_was_done(error: &Error) -> bool {
    let Error::Problem(problem) = error else { return false };
    problem.kind == FUNCTIONS_CHANGED || (problem.kind == DRAINING && problem.retry == Retry::Safe)
}

fn in_ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn end_of(incoming: Incoming, limit: usize) -> Result<Reply, Error> {
    match (incoming.end, incoming.head) {
        (Some(End::Done), Some(head)) => Ok(Reply { head, body: incoming.body }),
        (Some(End::Failed(problem)), _) => Err(Error::Problem(problem)),
        (Some(End::TooLong), _) => Err(Error::ReplyTooLong { limit }),
        (Some(End::Over(error)), _) => Err(error),
        (Some(End::Done) | None, _) => Err(Error::NoSuchCall),
    }
}

pub(crate) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
