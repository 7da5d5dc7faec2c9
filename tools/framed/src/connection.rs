//! The blocking client: begun calls, the connection that they are on, and what becomes of them when it ends.
//!
//! A connection here is one to *whom*, not one to *where*: it outlives its socket. What must hold: every call that
//! was begun ends once, in a reply or an [`Error`]; it is made again only as [`denizen_protocol::client::resume`]
//! allows, and at most [`MAX_TRIES`] times.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use denizen_protocol::{
    CancelReason, Retry, Violation,
    client::{Fate, Next, Resume, Session, Unfinished, resume},
    problem::FUNCTIONS_CHANGED,
};

use crate::{
    error::Error,
    exchange::{End, Exchange, Incoming, Turn},
    link::{Cut, Link, connect},
    options::Options,
    request::{Reply, Request},
    stream::CallStream,
};

/// How often one call is sent, at most: one that ends its process each time shall not do so for ever.
pub(crate) const MAX_TRIES: u32 = 8;
/// A node that is well tells by itself that a deadline has passed, and says more of it; so the client waits a little
/// longer: this part of it,
const GRACE_PART: u32 = 10;
/// and not less,
const GRACE_MIN: Duration = Duration::from_millis(50);
/// nor more than this.
const GRACE_MAX: Duration = Duration::from_secs(1);
/// A connection that nothing was done on for longer is looked at before it is used.
const A_PAUSE: Duration = Duration::from_millis(20);

/// A call that was begun. Wait for it once, on the connection that gave it.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[must_use = "a call that nobody waits for keeps its reply in memory"]
pub struct Ticket(pub(crate) u64);

/// A call that has not ended.
#[derive(Debug)]
struct Pending {
    request: Request,
    /// `None`: a stream, which cannot be made again once anything of it is sent.
    input: Option<Arc<[u8]>>,
    /// When its time is over, for the node.
    until: Option<Instant>,
    /// Its id on the present connection, once it is sent.
    wire: Option<u64>,
    tries: u32,
}

/// Calls of one application, or of one process of it. See the crate.
///
/// One thread at a time uses it; [`crate::Pool`] has more of them.
#[derive(Debug)]
pub struct Connection {
    options: Options,
    session: Session,
    link: Option<Link>,
    calls: BTreeMap<u64, Pending>,
    /// Begun, not on the wire yet, in their order. May name calls that were given up.
    waiting: VecDeque<u64>,
    ended: BTreeMap<u64, Result<Reply, Error>>,
    last_ticket: u64,
    /// The earliest time at which a call is given up.
    expires: Option<Instant>,
    /// When to connect again.
    connect_at: Instant,
    /// Since when no connection was accepted.
    failing_since: Option<Instant>,
    given_up: Option<Error>,
    last_step: Instant,
    salt: RandomState,
}

impl Connection {
    /// Connects, and waits until the node has accepted the connection.
    ///
    /// # Errors
    /// [`Error::Token`] and [`Error::Refused`] for options that cannot be; [`Error::Unreachable`] when the patience is over;
    /// [`Error::Problem`] when the node refuses, as with `bad-token`.
    pub fn open(options: Options) -> Result<Connection, Error> {
        let mut connection = Connection::new(options)?;
        connection.connect()?;
        Ok(connection)
    }

    /// One that connects with its first call.
    ///
    /// # Errors
    /// [`Error::Token`] and [`Error::Refused`] for options that cannot be.
    pub fn new(options: Options) -> Result<Connection, Error> {
        Ok(Connection {
            session: Session::new(options.target()?),
            options,
            link: None,
            calls: BTreeMap::new(),
            waiting: VecDeque::new(),
            ended: BTreeMap::new(),
            last_ticket: 0,
            expires: None,
            connect_at: Instant::now(),
            failing_since: None,
            given_up: None,
            last_step: Instant::now(),
            salt: RandomState::new(),
        })
    }

    /// Calls a function and waits for its whole reply.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn call(&mut self, request: impl Into<Request>, input: impl AsRef<[u8]>) -> Result<Reply, Error> {
        let ticket = self.begin(request, input)?;
        self.wait(ticket)
    }

    /// Begins a call and does not wait. It is sent as soon as the connection has room for it.
    ///
    /// # Errors
    /// [`Error::Refused`] for a call that cannot be made like this; everything else comes from [`Connection::wait`].
    pub fn begin(&mut self, request: impl Into<Request>, input: impl AsRef<[u8]>) -> Result<Ticket, Error> {
        let ticket = self.note(request.into(), Some(Arc::from(input.as_ref())));
        self.send_begun();
        if let Some(link) = &mut self.link
            && let Err(cut) = link.flush()
        {
            self.cut(cut);
        }
        match self.ended.remove(&ticket) {
            Some(Err(error @ Error::Refused(_))) => Err(error),
            Some(end) => {
                self.ended.insert(ticket, end);
                Ok(Ticket(ticket))
            }
            None => Ok(Ticket(ticket)),
        }
    }

    /// Waits for the whole reply of a call.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn wait(&mut self, ticket: Ticket) -> Result<Reply, Error> {
        loop {
            if let Some(end) = self.ended.remove(&ticket.0) {
                return end;
            }
            if !self.calls.contains_key(&ticket.0) {
                return Err(Error::NoSuchCall);
            }
            self.step(None);
        }
    }

    /// Waits for the end of any call, at most until `until`. `None`: none has ended by then, or none is begun.
    pub fn wait_any(&mut self, until: Option<Instant>) -> Option<(Ticket, Result<Reply, Error>)> {
        loop {
            if let Some((ticket, end)) = self.ended.pop_first() {
                return Some((Ticket(ticket), end));
            }
            if self.calls.is_empty() || until.is_some_and(|until| until <= Instant::now()) {
                return None;
            }
            self.step(until);
        }
    }

    /// Gives a call up: its reply is not wanted any more. Whether it was executed is unknown.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.ended.remove(&ticket.0);
        self.forget(ticket.0, CancelReason::Unwanted);
    }

    /// Begins a call whose input is written and whose reply is read piece by piece. `length` is that of the whole
    /// input, if known. It is never made again: what has gone through the caller's hands cannot be taken back.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn stream(
        &mut self,
        request: impl Into<Request>,
        length: Option<u64>,
    ) -> Result<CallStream<'_>, Error> {
        let ticket = self.note(request.into(), None);
        loop {
            let ready = |link: &Link| link.exchange.is_accepted() && link.exchange.has_room();
            if self.link.as_ref().is_some_and(ready) {
                break;
            }
            if let Some(end) = self.ended.remove(&ticket) {
                return Err(end.err().unwrap_or(Error::NoSuchCall));
            }
            self.step(None);
        }
        let begun = self.send_stream(ticket, length);
        begun.inspect_err(|_| self.forget(ticket, CancelReason::Unwanted))?;
        Ok(CallStream::new(self, Ticket(ticket)))
    }

    /// Calls that have not ended.
    pub fn in_flight(&self) -> usize {
        self.calls.len()
    }

    /// Whether the node has accepted this connection and not ended it.
    pub fn is_connected(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.exchange.is_accepted() && link.exchange.drain().is_none())
    }

    /// Whether nobody would notice that another uses it now.
    pub(crate) fn is_reusable(&self) -> bool {
        self.is_connected() && self.calls.is_empty() && self.ended.is_empty()
    }

    /// The highest epoch seen of a process; 0 if none was.
    pub fn epoch(&self, process: &str) -> u64 {
        self.link.as_ref().map_or(self.session.memory(), |link| link.exchange.memory()).epoch(process)
    }

    fn connect(&mut self) -> Result<(), Error> {
        while !self.is_connected() {
            self.step(None);
            if let Some(error) = self.given_up.take() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Notes a call to be sent.
    fn note(&mut self, request: Request, input: Option<Arc<[u8]>>) -> u64 {
        if self.given_up.take().is_some() {
            // A new call is a new attempt.
            self.session.accepted();
            self.failing_since = None;
        }
        if self.calls.is_empty() {
            // Nobody has tried since; what went wrong before says nothing of now.
            self.failing_since = None;
            self.look_after_a_pause();
        }
        self.last_ticket += 1;
        let until = request.deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        let pending = Pending { request, input, until, wire: None, tries: 0 };
        self.expires = earlier(self.expires, pending.expires());
        if pending.input.is_some() {
            self.waiting.push_back(self.last_ticket);
        }
        self.calls.insert(self.last_ticket, pending);
        self.last_ticket
    }

    /// A connection that was left alone may have ended meanwhile. To find that out before a call is on it costs less than a call of which
    /// nobody knows what became.
    fn look_after_a_pause(&mut self) {
        if self.link.is_some() && self.last_step.elapsed() > A_PAUSE {
            self.step(Some(Instant::now()));
        }
    }

    /// Does a piece of whatever is to be done, waiting at most until `until`.
    pub(crate) fn step(&mut self, until: Option<Instant>) {
        self.step_within(until);
        self.last_step = Instant::now();
    }

    fn step_within(&mut self, until: Option<Instant>) {
        self.expire();
        if self.link.is_none() && !self.reconnect(until) {
            return;
        }
        self.send_begun();
        let until = earlier(until, self.expires);
        let Some(link) = &mut self.link else { return };
        let greet = (!link.exchange.is_accepted()).then_some(link.greet_until);
        let stepped = link.step(earlier(until, greet));
        self.look(stepped);
    }

    /// What the last step brought.
    fn look(&mut self, stepped: Result<(), Cut>) {
        self.collect();
        let Some(link) = &mut self.link else { return };
        match link.exchange.turn() {
            Some(turn) => return self.turn(turn),
            None if link.exchange.is_accepted() => {
                self.failing_since = None;
                self.session.accepted();
            }
            None if link.greet_until <= Instant::now() => {
                let late =
                    io::Error::new(io::ErrorKind::TimedOut, "it accepted the connection and said nothing");
                return self.cut(Cut::Io(late));
            }
            None => {}
        }
        match stepped {
            Err(cut) => self.cut(cut),
            Ok(()) if link.exchange.is_drained() => {
                self.cut(Cut::Io(io::ErrorKind::ConnectionAborted.into()))
            }
            Ok(()) => {}
        }
    }

    /// Connects if it is time. Says whether there is a connection.
    fn reconnect(&mut self, until: Option<Instant>) -> bool {
        let now = Instant::now();
        let wake = earlier(until, self.expires).map_or(self.connect_at, |until| until.min(self.connect_at));
        if now < self.connect_at {
            thread::sleep(wake.saturating_duration_since(now));
            return false;
        }
        let address = self.session.address().to_owned();
        match connect(&address, &self.options) {
            Ok(stream) => {
                let mut out = Vec::new();
                match self.session.greet(&mut out) {
                    Ok(protocol) => {
                        let exchange = Exchange::new(protocol, out, self.options.reply_limit);
                        self.link = Some(Link::new(stream, exchange, address, &self.options));
                    }
                    Err(violation) => self.give_up(&Error::Refused(violation.into())),
                }
            }
            Err(error) => {
                let next = self.session.unreachable(self.random());
                self.follow(next, &Error::Unreachable { address, source: Arc::new(error) });
            }
        }
        self.link.is_some()
    }

    fn follow(&mut self, next: Next, why: &Error) {
        let now = Instant::now();
        match next {
            Next::GiveUp(problem) => self.give_up(&Error::Problem(Box::new(problem))),
            Next::Connect { after_ms, .. } => {
                let since = *self.failing_since.get_or_insert(now);
                self.connect_at = now + Duration::from_millis(u64::from(after_ms));
                if self.connect_at.duration_since(since) > self.options.patience {
                    self.give_up(why);
                }
            }
        }
    }

    /// Nothing that has not been sent will be.
    fn give_up(&mut self, why: &Error) {
        let error = why.for_unsent();
        for ticket in std::mem::take(&mut self.calls).into_keys() {
            self.ended.insert(ticket, Err(error.clone()));
        }
        self.waiting.clear();
        self.expires = None;
        self.connect_at = Instant::now();
        self.given_up = Some(why.clone());
    }

    /// Sends calls that were begun, as many as there is room for.
    fn send_begun(&mut self) {
        let Some(link) = &mut self.link else { return };
        let mut held = VecDeque::new();
        while link.exchange.has_room()
            && let Some(ticket) = self.waiting.pop_front()
        {
            let Some(pending) = self.calls.get_mut(&ticket) else { continue };
            let Some(input) = &pending.input else { continue };
            // Sent behind the HELLO it would be quicker, and nobody would know what became of it if the node closes without a word.
            if !link.exchange.is_accepted() && !pending.request.is_keyed() {
                held.push_back(ticket);
                continue;
            }
            let left = pending.until.map(|until| until.saturating_duration_since(Instant::now()));
            match link.exchange.begin(&pending.request, left, input) {
                Ok(id) => {
                    pending.wire = Some(id);
                    pending.tries += 1;
                    link.tickets.insert(id, ticket);
                }
                Err(error) => {
                    self.calls.remove(&ticket);
                    self.ended.insert(ticket, Err(Error::Refused(error)));
                }
            }
        }
        held.append(&mut self.waiting);
        self.waiting = held;
    }

    fn send_stream(&mut self, ticket: u64, length: Option<u64>) -> Result<(), Error> {
        let (Some(link), Some(pending)) = (&mut self.link, self.calls.get_mut(&ticket)) else {
            return Err(Error::NoSuchCall);
        };
        let left = pending.until.map(|until| until.saturating_duration_since(Instant::now()));
        let id = link.exchange.begin_stream(&pending.request, left, length).map_err(Error::Refused)?;
        pending.wire = Some(id);
        link.tickets.insert(id, ticket);
        Ok(())
    }

    /// Calls that have ended on the wire.
    fn collect(&mut self) {
        let Some(link) = &mut self.link else { return };
        for id in link.exchange.take_ended() {
            let Some(&ticket) = link.tickets.get(&id) else { continue };
            let Some(pending) = self.calls.get_mut(&ticket) else { continue };
            if pending.input.is_none() {
                // Its reader is on its way to the end.
                continue;
            }
            link.tickets.remove(&id);
            let Some(incoming) = link.exchange.take(id) else { continue };
            let end = end_of(incoming, self.options.reply_limit);
            let made_void = matches!(&end, Err(Error::Problem(problem)) if problem.kind == FUNCTIONS_CHANGED);
            if made_void && pending.tries < MAX_TRIES {
                // The index was of an older image; it is forgotten, and the name is sent this time.
                pending.wire = None;
                self.waiting.push_back(ticket);
                continue;
            }
            self.calls.remove(&ticket);
            self.ended.insert(ticket, end);
        }
    }

    /// The connection is to be left, as the server says.
    fn turn(&mut self, turn: Turn) {
        let Some(link) = self.link.take() else { return };
        let Link { exchange, tickets, address, .. } = link;
        let (lost, _) = exchange.lost();
        let random = self.random();
        let (next, unfinished, why) = match turn {
            Turn::Moved(moved) => {
                let (next, unfinished) = self.session.moved(&moved, lost, random);
                let elsewhere =
                    io::Error::new(io::ErrorKind::AddrNotAvailable, "the process lives elsewhere");
                (next, unfinished, Error::Unreachable { address, source: Arc::new(elsewhere) })
            }
            Turn::Refused(problem) => {
                let why = Error::Problem(Box::new(problem.clone()));
                let (next, unfinished) = self.session.refused(problem, lost, random);
                (next, unfinished, why)
            }
        };
        self.settle(unfinished, &tickets, &why);
        self.follow(next, &why);
    }

    /// The connection is gone.
    fn cut(&mut self, cut: Cut) {
        self.collect();
        if let Some(turn) = self.link.as_mut().and_then(|link| link.exchange.turn()) {
            return self.turn(turn);
        }
        let Some(Link { exchange, tickets, address, .. }) = self.link.take() else { return };
        let why = match cut {
            Cut::Io(error) => Error::Lost { address, retry: Retry::Unknown, source: Arc::new(error) },
            Cut::Violation(source) => Error::Broken { address, retry: Retry::Unknown, source },
        };
        let stale = matches!(&why, Error::Broken { source: Violation::StaleEpoch { .. }, .. });
        let random = self.random();
        let (lost, drain) = exchange.lost();
        let was_accepted = lost.accepted;
        let (next, unfinished) = match drain.filter(|_| !stale) {
            Some(notice) => self.session.drained(&notice, lost, random),
            None => self.session.broken(lost, random),
        };
        self.settle(unfinished, &tickets, &why);
        let why = match why {
            // For those that wait for the next connection the place is what matters.
            Error::Lost { address, source, .. } if !was_accepted => Error::Unreachable { address, source },
            other => other,
        };
        self.follow(next, &why);
    }

    /// What becomes of calls whose connection ended.
    fn settle(&mut self, unfinished: Vec<Unfinished>, tickets: &HashMap<u64, u64>, why: &Error) {
        let mut again = VecDeque::new();
        for call in unfinished {
            let Some(ticket) = tickets.get(&call.id) else { continue };
            let Some(pending) = self.calls.get_mut(ticket) else { continue };
            let whole = pending.input.is_some();
            // Of a reply that is taken whole nothing has been handed out yet.
            let begun = call.reply_begun && !whole;
            let report = match resume(&Unfinished { reply_begun: begun, ..call }) {
                Resume::Again if whole && pending.tries < MAX_TRIES => {
                    pending.wire = None;
                    again.push_back(*ticket);
                    continue;
                }
                Resume::Again if call.fate == Fate::NotExecuted => Retry::Safe,
                Resume::Again => Retry::Unknown,
                Resume::Report(retry) => retry,
            };
            self.calls.remove(ticket);
            self.ended.insert(*ticket, Err(why.for_call(report)));
        }
        // Before those that were begun later.
        again.append(&mut self.waiting);
        self.waiting = again;
        // A stream that had ended on the wire, and was not read to its end.
        for ticket in tickets.values() {
            if self.calls.get(ticket).is_some_and(|pending| pending.wire.is_some()) {
                self.calls.remove(ticket);
                self.ended.insert(*ticket, Err(why.for_call(Retry::Unknown)));
            }
        }
    }

    /// Gives up the calls whose time is over.
    fn expire(&mut self) {
        let now = Instant::now();
        if self.expires.is_none_or(|expires| now < expires) {
            return;
        }
        let over = |pending: &Pending| pending.expires().is_some_and(|expires| expires <= now);
        let tickets: Vec<u64> =
            self.calls.iter().filter(|(_, pending)| over(pending)).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            let Some(pending) = self.calls.get(&ticket) else { continue };
            let retry =
                if pending.tries == 0 && pending.wire.is_none() { Retry::Safe } else { Retry::Unknown };
            let after = pending.request.deadline.unwrap_or_default();
            self.forget(ticket, CancelReason::Deadline);
            self.ended.insert(ticket, Err(Error::Deadline { after, retry }));
        }
        self.expires = self.calls.values().filter_map(Pending::expires).min();
    }

    fn forget(&mut self, ticket: u64, reason: CancelReason) {
        let Some(pending) = self.calls.remove(&ticket) else { return };
        if let (Some(link), Some(id)) = (&mut self.link, pending.wire) {
            link.tickets.remove(&id);
            link.exchange.abandon(id, reason);
        }
    }

    /// What a stream needs: the exchange and the id of its call, or why there is none.
    pub(crate) fn on_wire(&mut self, ticket: &Ticket) -> Result<(&mut Exchange, u64), Error> {
        if let Some(end) = self.ended.get(&ticket.0) {
            return Err(end.as_ref().err().cloned().unwrap_or(Error::NoSuchCall));
        }
        let id = self.calls.get(&ticket.0).and_then(|pending| pending.wire);
        match (&mut self.link, id) {
            (Some(link), Some(id)) => Ok((&mut link.exchange, id)),
            _ => Err(Error::NoSuchCall),
        }
    }

    /// Sends what a stream has written.
    pub(crate) fn flush(&mut self) {
        if let Some(link) = &mut self.link
            && let Err(cut) = link.flush()
        {
            self.cut(cut);
        }
    }

    /// A stream was read to its end.
    pub(crate) fn close(&mut self, ticket: &Ticket) {
        self.ended.remove(&ticket.0);
        self.forget(ticket.0, CancelReason::Unwanted);
    }

    fn random(&self) -> u64 {
        self.salt.hash_one((self.last_ticket, Instant::now()))
    }
}

impl Pending {
    /// When the client stops waiting by itself.
    fn expires(&self) -> Option<Instant> {
        let grace = (self.request.deadline? / GRACE_PART).clamp(GRACE_MIN, GRACE_MAX);
        self.until?.checked_add(grace)
    }
}

pub(crate) fn end_of(incoming: Incoming, limit: usize) -> Result<Reply, Error> {
    match (incoming.end, incoming.head) {
        (Some(End::Done), Some(head)) => Ok(Reply { head, body: incoming.body }),
        (Some(End::Failed(problem)), _) => Err(Error::Problem(problem)),
        (Some(End::TooLong), _) => Err(Error::ReplyTooLong { limit }),
        (Some(End::Done) | None, _) => Err(Error::NoSuchCall),
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
