//! Calls of an unbound connection whose process lives at another node, as the node that was asked says: made there, by a machine of that
//! address, whose connections are moved along with the others'.
//!
//! What must hold: such a call was not executed where it was refused, so it may be made elsewhere whatever it is; it goes to no node
//! twice, and to no more than [`MAX_MOVES`]. A stream is not made again anywhere: what has gone through its caller's hands cannot be taken
//! back.

use std::{collections::HashMap, time::Instant};

use denizen_protocol::{Problem, limits::MAX_MOVES, problem::MOVED};

use super::{Input, Machine, earlier};
use crate::error::Error;

/// The keys of a branch's connections begin here, each branch in a space of its own.
const KEYS: u32 = 40;
/// Branches without calls are kept up to this many, for the next call that is moved there.
const KEPT: usize = 16;

/// The calls that were moved to one address.
#[derive(Debug)]
pub(super) struct Branch {
    number: u64,
    address: String,
    machine: Box<Machine>,
    /// What a call's ticket is here, by what it is there.
    tickets: HashMap<u64, u64>,
}

/// Where a call has been moved to.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// The nodes that said so or were asked, in their order.
    asked: Vec<String>,
    /// The branch that it is on, and its ticket there.
    on: Option<(u64, u64)>,
}

impl Machine {
    /// A call that ended with this is to be made elsewhere. Gives the end back where it is not.
    pub(super) fn moves(&mut self, ticket: u64, end: &Error) -> bool {
        let Error::Problem(problem) = end else { return false };
        let is_followed = problem.kind == MOVED && problem.address.is_some() && self.follows;
        let is_whole = self.calls.get(&ticket).is_some_and(super::Pending::is_whole);
        if is_followed && is_whole {
            self.moved.push((ticket, problem.clone()));
        }
        is_followed && is_whole
    }

    /// Makes the calls elsewhere that were moved.
    pub(super) fn follow_moved(&mut self, now: Instant) {
        while let Some((ticket, problem)) = self.moved.pop() {
            let home = self.session.address().to_owned();
            let Some(pending) = self.calls.get_mut(&ticket) else { continue };
            let address = problem.address.clone().unwrap_or_default();
            let moves = pending.moves.get_or_insert_default();
            if moves.asked.is_empty() {
                moves.asked.push(home);
            }
            let why = if moves.asked.contains(&address) {
                Some(format!("nodes send the call in a circle, to {address} again"))
            } else if moves.asked.len() > MAX_MOVES as usize {
                Some(format!("{MAX_MOVES} nodes in a row say that the process lives elsewhere"))
            } else {
                None
            };
            moves.asked.push(address.clone());
            if let Some(why) = why {
                self.calls.remove(&ticket);
                let problem = Problem { detail: Some(why), ..*problem };
                self.end(ticket, true, Error::Problem(Box::new(problem)));
                continue;
            }
            self.make_at(ticket, &address, now);
        }
    }

    fn make_at(&mut self, ticket: u64, address: &str, now: Instant) {
        let Some(pending) = self.calls.get(&ticket) else { return };
        let Input::Whole(input) = &pending.input else { return };
        let mut request = pending.request.clone();
        request.deadline = pending.until.map(|until| until.saturating_duration_since(now));
        let input = Input::Whole(input.clone());
        let branch = match self.branch_to(address) {
            Ok(branch) => branch,
            Err(error) => {
                self.calls.remove(&ticket);
                return self.end(ticket, true, error);
            }
        };
        let theirs = branch.machine.begin(request, input, now);
        branch.tickets.insert(theirs, ticket);
        let on = Some((branch.number, theirs));
        if let Some(pending) = self.calls.get_mut(&ticket) {
            pending.moves.get_or_insert_default().on = on;
        }
        self.news += 1;
    }

    fn branch_to(&mut self, address: &str) -> Result<&mut Branch, Error> {
        if let Some(at) = self.branches.iter().position(|branch| branch.address == address) {
            return Ok(&mut self.branches[at]);
        }
        if self.branches.len() >= KEPT
            && let Some(idle) = self.branches.iter().position(|branch| branch.machine.is_idle())
        {
            self.branches.remove(idle);
        }
        self.last_branch += 1;
        let mut machine = Box::new(Machine::new(self.options.clone().at(address))?);
        machine.follows = false;
        let (number, address) = (self.last_branch, address.to_owned());
        self.branches.push(Branch { number, address, machine, tickets: HashMap::new() });
        let last = self.branches.len() - 1;
        Ok(&mut self.branches[last])
    }

    /// The branch that has a connection, and what it calls it.
    pub(super) fn branch(&mut self, key: u64) -> Option<(&mut Machine, u64)> {
        let (number, own) = (key >> KEYS, key & ((1 << KEYS) - 1));
        let branch = self.branches.iter_mut().find(|branch| branch.number == number)?;
        Some((&mut *branch.machine, own))
    }

    pub(super) fn has_branch_link(&self, key: u64) -> bool {
        let (number, own) = (key >> KEYS, key & ((1 << KEYS) - 1));
        self.branches.iter().any(|branch| branch.number == number && branch.machine.has_link(own))
    }

    pub(super) fn dial_elsewhere(&mut self, now: Instant) -> Option<(u64, String)> {
        self.branches.iter_mut().find_map(|branch| {
            let (key, address) = branch.machine.dial(now)?;
            Some((branch.number << KEYS | key, address))
        })
    }

    pub(super) fn wake_branches_at(&self) -> Option<Instant> {
        self.branches.iter().filter_map(|branch| branch.machine.wake_at()).reduce(Instant::min)
    }

    pub(super) fn pump_branches(&mut self, now: Instant) {
        self.branches.iter_mut().for_each(|branch| branch.machine.pump(now));
        self.gather(now);
    }

    /// Takes over what has ended elsewhere.
    pub(super) fn gather(&mut self, now: Instant) {
        let mut ended = Vec::new();
        for branch in &mut self.branches {
            while let Some((theirs, end)) = branch.machine.pop_ended() {
                ended.extend(branch.tickets.remove(&theirs).map(|ticket| (ticket, end)));
            }
        }
        if ended.is_empty() && self.moved.is_empty() {
            return;
        }
        for (ticket, end) in ended {
            if let Err(error) = &end
                && self.moves(ticket, error)
            {
                continue;
            }
            if self.calls.remove(&ticket).is_some() {
                self.news += 1;
                self.given_ends += 1;
                self.ended.insert(ticket, end);
            }
        }
        self.follow_moved(now);
    }

    /// Nobody wants a call any more that was moved.
    pub(super) fn forget_elsewhere(&mut self, moves: &Moves, reason: denizen_protocol::CancelReason) {
        let Some((number, theirs)) = moves.on else { return };
        if let Some(branch) = self.branches.iter_mut().find(|branch| branch.number == number) {
            branch.tickets.remove(&theirs);
            branch.machine.forget(theirs, reason);
        }
    }

    /// When something is to be done, here or elsewhere.
    pub(super) fn or_elsewhere(&self, here: Option<Instant>) -> Option<Instant> {
        earlier(here, self.wake_branches_at())
    }
}
