//! What outlives a connection: whom to reach, where, what is remembered, and when to try again.
//!
//! Pure: it neither connects nor waits. A client asks it for the next step whenever a connection has ended, and does that step.

use crate::frame::{Drain, Hello, Moved, Problem, problem};
use crate::limits::{MAX_MOVES, RECONNECT_MAX_MS, RECONNECT_MIN_MS};
use crate::violation::Violation;

use denizen_abi::{Blame, Retry};

use super::connection::{Connection, Fate, Lost, Unfinished};
use super::memory::{Epochs, Memory};

/// Where a session begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port` to begin with, and to come back to when nothing else is known.
    pub address: String,
    /// The greeting; its `epoch` is kept as it is.
    pub hello: Hello,
}

/// What to do after a connection has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Wait, connect, and greet.
    Connect {
        /// `host:port`.
        address: String,
        /// Milliseconds to wait before.
        after_ms: u32,
    },
    /// Nothing will help.
    GiveUp(Problem),
}

/// What to do with a call that had no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Make it again on the next connection, with the same idempotency key if it had one.
    Again,
    /// Tell the caller, with what is known of whether it took effect.
    Report(Retry),
}

/// What to do with a call that had no end when its connection ended: only what cannot be executed twice is made again.
pub fn resume(call: &Unfinished) -> Resume {
    match call.fate {
        Fate::NotExecuted => Resume::Again,
        // The bytes that were handed out cannot be taken back, so a remembered reply is of use only where none were.
        Fate::Unknown if call.keyed && !call.reply_begun => Resume::Again,
        Fate::Unknown => Resume::Report(Retry::Unknown),
    }
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    target: Target,
    /// Where the process is, as far as is known.
    address: String,
    memory: Memory,
    /// MOVED answers in a row.
    moves: u32,
    /// Failures in a row.
    failures: u32,
}

impl Session {
    /// A session that has not connected yet.
    pub fn new(target: Target) -> Session {
        Session::sharing(target, &Epochs::default())
    }

    /// One of several that belong to one client, and share what was seen of epochs.
    pub fn sharing(target: Target, epochs: &Epochs) -> Session {
        let address = target.address.clone();
        Session { target, address, memory: Memory::sharing(epochs), moves: 0, failures: 0 }
    }

    /// Where to connect now.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What is remembered between connections.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The token has been renewed.
    pub fn set_token(&mut self, token: Vec<u8>) {
        self.target.hello.token = token;
    }

    /// Appends the HELLO of a new connection to [`Session::address`].
    ///
    /// # Errors
    /// [`Violation`] if a text of the HELLO breaks its rule.
    pub fn greet(&mut self, out: &mut Vec<u8>) -> Result<Connection, Violation> {
        Connection::open(&self.target.hello, self.memory.clone(), out)
    }

    /// The connection was accepted: what went wrong before is forgotten.
    pub fn accepted(&mut self) {
        self.moves = 0;
        self.failures = 0;
    }

    /// No connection could be made. `random` spreads the clients of a node that comes back; any number will do.
    pub fn unreachable(&mut self, random: u64) -> Next {
        // What was heard of another address may be out of date.
        self.address.clone_from(&self.target.address);
        self.again(random)
    }

    /// The connection ended without a word, or by a violation.
    pub fn broken(&mut self, lost: Lost, random: u64) -> (Next, Vec<Unfinished>) {
        self.memory = lost.memory;
        (self.again(random), lost.unfinished)
    }

    /// The answer was MOVED.
    pub fn moved(&mut self, moved: &Moved, lost: Lost, random: u64) -> (Next, Vec<Unfinished>) {
        self.memory = lost.memory;
        let next = self.follow(Some(&moved.address), moved.epoch, random);
        (next, lost.unfinished)
    }

    /// The server drains the connection: where new calls are made, while those that it has accepted end on the old one.
    pub fn draining(&mut self, notice: &Drain, random: u64) -> Next {
        self.follow(notice.address.as_deref(), notice.epoch, random)
    }

    /// A connection that was drained is closed. The next one stands already, or will be asked for.
    pub fn left(&mut self, lost: Lost) -> Vec<Unfinished> {
        lost.unfinished
    }

    /// The server refused the connection, or gave it up.
    pub fn refused(&mut self, problem: Problem, lost: Lost, random: u64) -> (Next, Vec<Unfinished>) {
        self.memory = lost.memory;
        // An accepted connection that is given up says nothing about the next one; a refusal does.
        let hopeless = !lost.accepted && problem.retry == Retry::Never;
        let next = if hopeless { Next::GiveUp(problem) } else { self.later(problem.retry_after_ms, random) };
        (next, lost.unfinished)
    }

    fn follow(&mut self, address: Option<&str>, epoch: u64, random: u64) -> Next {
        let Some(address) = address else { return self.again(random) };
        let known = self.target.hello.process.as_deref().map_or(0, |process| self.memory.epoch(process));
        self.moves += 1;
        if self.moves > MAX_MOVES {
            let detail = format!("{MAX_MOVES} nodes in a row say that the process lives elsewhere");
            return Next::GiveUp(Problem::new(problem::MOVED, Blame::Host, Retry::Safe).with_detail(detail));
        }
        if epoch != 0 && epoch < known {
            // It points to an owner whose term is over.
            return self.again(random);
        }
        address.clone_into(&mut self.address);
        Next::Connect { address: self.address.clone(), after_ms: 0 }
    }

    fn again(&mut self, random: u64) -> Next {
        self.later(0, random)
    }

    /// Waits twice as long each time, a random half of it more or less, and at least as long as the server asked for.
    fn later(&mut self, least_ms: u32, random: u64) -> Next {
        let longest = RECONNECT_MIN_MS.saturating_mul(1 << self.failures.min(16)).min(RECONNECT_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        let spread = u32::try_from(random % (u64::from(longest / 2) + 1)).unwrap_or(0);
        let after_ms = (longest / 2 + spread).max(least_ms);
        Next::Connect { address: self.address.clone(), after_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let target = Target { address: "a:1".to_owned(), hello: Hello::new("app", Some("p")) };
        Session::new(target)
    }

    fn nothing() -> Lost {
        Lost { memory: Memory::default(), unfinished: Vec::new(), accepted: false }
    }

    fn to(address: &str, epoch: u64) -> Moved {
        Moved { address: address.to_owned(), epoch }
    }

    #[test]
    fn moves_are_followed_at_once_and_not_for_ever() {
        let mut session = session();
        for hop in 0..MAX_MOVES {
            let address = format!("b:{hop}");
            let (next, _) = session.moved(&to(&address, 0), nothing(), 0);
            assert_eq!(next, Next::Connect { address, after_ms: 0 });
        }
        let (next, _) = session.moved(&to("b:9", 0), nothing(), 0);
        assert!(matches!(next, Next::GiveUp(problem) if problem.kind == problem::MOVED));
        session.accepted();
        assert!(matches!(session.moved(&to("b:9", 0), nothing(), 0).0, Next::Connect { .. }));
    }

    #[test]
    fn a_move_to_an_owner_of_the_past_is_not_followed() {
        let mut session = session();
        session.memory().saw("p", 7).unwrap();
        let memory = session.memory().clone();
        let (next, _) = session.moved(&to("old:1", 6), Lost { memory, ..nothing() }, 0);
        assert!(matches!(next, Next::Connect { address, after_ms } if address == "a:1" && after_ms > 0));
        assert_eq!(session.memory().epoch("p"), 7, "what was known stays known");
    }

    #[test]
    fn a_drain_sends_new_calls_elsewhere_while_the_old_ones_end() {
        let mut session = session();
        let notice = |address: Option<&str>, epoch| Drain {
            address: address.map(str::to_owned),
            epoch,
            ..Drain::new(crate::frame::DrainReason::Moved)
        };
        let next = session.draining(&notice(Some("b:2"), 0), 0);
        assert_eq!(next, Next::Connect { address: "b:2".to_owned(), after_ms: 0 });
        let next = session.draining(&notice(None, 0), 0);
        assert!(matches!(next, Next::Connect { address, after_ms } if address == "b:2" && after_ms > 0));
        session.memory().saw("p", 7).unwrap();
        let next = session.draining(&notice(Some("old:1"), 6), 0);
        assert!(matches!(next, Next::Connect { address, .. } if address == "b:2"), "an owner of the past");
        let call = Unfinished { id: 3, fate: Fate::Unknown, keyed: false, reply_begun: false };
        assert_eq!(session.left(Lost { unfinished: vec![call.clone()], ..nothing() }), [call]);
    }

    #[test]
    fn pauses_grow_to_their_limit_and_keep_to_what_the_server_asked() {
        let mut session = session();
        let mut last = 0;
        for _ in 0..40 {
            let Next::Connect { after_ms, .. } = session.unreachable(u64::MAX) else { panic!("it goes on") };
            assert!(after_ms <= RECONNECT_MAX_MS);
            last = after_ms;
        }
        assert!(last >= RECONNECT_MAX_MS / 2);
        session.accepted();
        let busy = Problem { retry_after_ms: 9000, ..Problem::new("overloaded", Blame::Host, Retry::Safe) };
        let (next, _) = session.refused(busy, nothing(), 3);
        assert!(matches!(next, Next::Connect { after_ms: 9000, .. }));
    }

    #[test]
    fn a_refusal_that_will_not_change_ends_the_session() {
        let refusal = Problem::new(problem::BAD_TOKEN, Blame::Caller, Retry::Never);
        let (next, _) = session().refused(refusal.clone(), nothing(), 0);
        assert_eq!(next, Next::GiveUp(refusal));
    }

    #[test]
    fn only_what_cannot_run_twice_is_made_again() {
        let call = |fate, keyed, reply_begun| resume(&Unfinished { id: 1, fate, keyed, reply_begun });
        assert_eq!(call(Fate::NotExecuted, false, false), Resume::Again);
        assert_eq!(call(Fate::Unknown, true, false), Resume::Again);
        assert_eq!(call(Fate::Unknown, true, true), Resume::Report(Retry::Unknown));
        assert_eq!(call(Fate::Unknown, false, false), Resume::Report(Retry::Unknown));
    }
}
