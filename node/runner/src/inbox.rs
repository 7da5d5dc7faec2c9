//! What frames bring to one call while it runs: streamed input, credit for its reply, and the news that nobody waits any more.
//!
//! The leader puts in, the call's own thread takes out. It owns the flow-control counts of the call, in both directions.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use denizen_protocol::TraceParent;
use denizen_wire::{CancelReason, WINDOW};

use crate::direct::Ours;
use crate::locked;

/// Credit is returned when this many bytes were taken: half the window, so that the sender always has the other half.
const RETURN_AT: usize = WINDOW / 2;

#[derive(Debug)]
pub(crate) struct Inbox {
    cancelled: AtomicU8,
    deadline: Option<Instant>,
    /// The most bytes of input.
    body_limit: u64,
    /// Whose it is, if its caller is connected to this process.
    pub(crate) direct: Option<Ours>,
    /// The trace that the call belongs to.
    pub(crate) trace: Option<TraceParent>,
    mail: Mutex<Mail>,
    news: Condvar,
}

#[derive(Debug)]
pub(crate) struct Mail {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were taken already.
    used: usize,
    received: u64,
    /// Taken and not yet returned as credit.
    taken: usize,
    input: InputEnd,
    /// Reply bytes that may be sent.
    pub(crate) credit: usize,
}

/// How the input stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputEnd {
    /// More may come.
    Open,
    /// All has come.
    Complete,
    /// It broke off.
    Broken,
    /// It is over the body limit.
    TooLarge,
}

/// What taking input gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many bytes; return this much credit.
    Bytes { count: usize, credit: usize },
    /// There are no more.
    End(InputEnd),
    /// Wait.
    Nothing,
}

const NOT_CANCELLED: u8 = 0;
const DEADLINE: u8 = 1;
const CALLER_GONE: u8 = 2;

impl Inbox {
    pub(crate) fn new(deadline: Option<Instant>, body_limit: u64) -> Inbox {
        let mail = Mail {
            chunks: VecDeque::new(),
            used: 0,
            received: 0,
            taken: 0,
            input: InputEnd::Open,
            credit: WINDOW,
        };
        Inbox {
            cancelled: AtomicU8::new(NOT_CANCELLED),
            deadline,
            body_limit,
            direct: None,
            trace: None,
            mail: Mutex::new(mail),
            news: Condvar::new(),
        }
    }

    /// Of a call of a direct connection.
    pub(crate) fn of_direct(deadline: Option<Instant>, body_limit: u64, ours: Ours) -> Inbox {
        Inbox { direct: Some(ours), ..Inbox::new(deadline, body_limit) }
    }

    /// The same of a call that belongs to a trace.
    pub(crate) fn of_trace(self, trace: Option<TraceParent>) -> Inbox {
        Inbox { trace, ..self }
    }

    /// Whether it was told that nobody wants the reply any more.
    pub(crate) fn is_told(&self) -> bool {
        self.cancelled.load(Relaxed) != NOT_CANCELLED
    }

    /// Why nobody wants the reply any more, if so.
    pub(crate) fn cancelled(&self) -> Option<CancelReason> {
        match self.cancelled.load(Relaxed) {
            DEADLINE => Some(CancelReason::Deadline),
            CALLER_GONE => Some(CancelReason::CallerGone),
            _ => self.deadline.filter(|at| *at <= Instant::now()).map(|_| CancelReason::Deadline),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn body_limit(&self) -> u64 {
        self.body_limit
    }

    /// More input has come.
    pub(crate) fn arrived(&self, bytes: Vec<u8>, end: bool) {
        self.tell(|mail| mail.arrived(bytes, end, self.body_limit));
    }

    pub(crate) fn cancel(&self, reason: CancelReason) {
        let code = if reason == CancelReason::Deadline { DEADLINE } else { CALLER_GONE };
        self.cancelled.store(code, Relaxed);
        self.tell(|_| {});
    }

    /// Changes the mail and wakes who waits for it.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut locked(&self.mail));
        self.news.notify_all();
    }

    /// Looks once.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Mail) -> T) -> T {
        look(&mut locked(&self.mail))
    }

    /// Looks until there is what is wanted, woken by another thread that leads.
    pub(crate) fn wait<T>(&self, mut look: impl FnMut(&mut Mail) -> Option<T>) -> T {
        let mut mail = locked(&self.mail);
        loop {
            if let Some(found) = look(&mut mail) {
                return found;
            }
            mail = self.news.wait(mail).unwrap_or_else(|broken| broken.into_inner());
        }
    }
}

impl Mail {
    /// More input has come; `limit` bounds all of it.
    fn arrived(&mut self, bytes: Vec<u8>, end: bool, limit: u64) {
        if self.input != InputEnd::Open {
            return;
        }
        self.received += bytes.len() as u64;
        if self.received > limit {
            self.input = InputEnd::TooLarge;
            return;
        }
        if !bytes.is_empty() {
            self.chunks.push_back(bytes);
        }
        if end {
            self.input = InputEnd::Complete;
        }
    }

    /// Nothing more will come.
    pub(crate) fn broke_off(&mut self) {
        if self.input == InputEnd::Open {
            self.input = InputEnd::Broken;
        }
    }

    /// Moves input to `into`, which is not empty.
    pub(crate) fn take(&mut self, into: &mut [u8]) -> Taken {
        if self.input == InputEnd::TooLarge {
            return Taken::End(self.input);
        }
        let mut count = 0;
        while count < into.len()
            && let Some(chunk) = self.chunks.front()
        {
            let piece = &chunk[self.used..];
            let len = piece.len().min(into.len() - count);
            into[count..count + len].copy_from_slice(&piece[..len]);
            count += len;
            self.used += len;
            if self.used == chunk.len() {
                self.chunks.pop_front();
                self.used = 0;
            }
        }
        match (count, self.input) {
            (0, InputEnd::Open) => Taken::Nothing,
            (0, end) => Taken::End(end),
            _ => Taken::Bytes { count, credit: self.credit_to_return(count) },
        }
    }

    fn credit_to_return(&mut self, count: usize) -> usize {
        self.taken += count;
        if self.taken < RETURN_AT || self.input != InputEnd::Open {
            return 0;
        }
        std::mem::take(&mut self.taken)
    }

    /// Takes credit for up to `most` reply bytes.
    pub(crate) fn spend(&mut self, most: usize) -> usize {
        let count = most.min(self.credit);
        self.credit -= count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_comes_out_in_order_and_then_ends() {
        let inbox = Inbox::new(None, u64::MAX);
        let mut buffer = [0; 4];
        assert_eq!(inbox.look(|mail| mail.take(&mut buffer)), Taken::Nothing);
        inbox.tell(|mail| mail.arrived(b"abc".to_vec(), false, 100));
        inbox.tell(|mail| mail.arrived(b"defgh".to_vec(), true, 100));
        assert_eq!(inbox.look(|mail| mail.take(&mut buffer)), Taken::Bytes { count: 4, credit: 0 });
        assert_eq!(&buffer, b"abcd");
        assert_eq!(inbox.look(|mail| mail.take(&mut buffer)), Taken::Bytes { count: 4, credit: 0 });
        assert_eq!(&buffer, b"efgh");
        assert_eq!(inbox.look(|mail| mail.take(&mut buffer)), Taken::End(InputEnd::Complete));
    }

    #[test]
    fn credit_comes_back_by_halves_of_the_window() {
        let inbox = Inbox::new(None, u64::MAX);
        let mut buffer = vec![0; RETURN_AT];
        inbox.tell(|mail| mail.arrived(vec![1; RETURN_AT - 1], false, u64::MAX));
        assert_eq!(
            inbox.look(|mail| mail.take(&mut buffer)),
            Taken::Bytes { count: RETURN_AT - 1, credit: 0 }
        );
        inbox.tell(|mail| mail.arrived(vec![1; 10], false, u64::MAX));
        assert_eq!(
            inbox.look(|mail| mail.take(&mut buffer)),
            Taken::Bytes { count: 10, credit: RETURN_AT + 9 }
        );
    }

    #[test]
    fn what_is_over_the_limit_or_broken_off_is_said() {
        let mut buffer = [0; 100];
        let large = Inbox::new(None, u64::MAX);
        large.tell(|mail| mail.arrived(vec![0; 10], false, 9));
        assert_eq!(large.look(|mail| mail.take(&mut buffer)), Taken::End(InputEnd::TooLarge));
        let broken = Inbox::new(None, u64::MAX);
        broken.tell(|mail| mail.arrived(vec![0; 10], false, 10));
        broken.tell(Mail::broke_off);
        assert_eq!(broken.look(|mail| mail.take(&mut buffer)), Taken::Bytes { count: 10, credit: 0 });
        assert_eq!(broken.look(|mail| mail.take(&mut buffer)), Taken::End(InputEnd::Broken));
    }

    #[test]
    fn a_deadline_that_passed_counts_without_being_told() {
        assert_eq!(Inbox::new(Some(Instant::now()), 0).cancelled(), Some(CancelReason::Deadline));
        let inbox = Inbox::new(None, u64::MAX);
        assert_eq!(inbox.cancelled(), None);
        inbox.cancel(CancelReason::CallerGone);
        assert_eq!(inbox.cancelled(), Some(CancelReason::CallerGone));
    }

    #[test]
    fn credit_is_spent_once() {
        let inbox = Inbox::new(None, u64::MAX);
        assert_eq!(inbox.look(|mail| mail.spend(WINDOW + 1)), WINDOW);
        assert_eq!(inbox.look(|mail| mail.spend(1)), 0);
        inbox.tell(|mail| mail.credit += 5);
        assert_eq!(inbox.look(|mail| mail.spend(9)), 5);
    }
}
