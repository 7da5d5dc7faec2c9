//! Flow control: how many body bytes may be under way, seen from each end.
//!
//! A sender holds a [`Sending`], a receiver a [`Receiving`] for the same bytes. What holds between them: bytes that may
//! still be sent, bytes under way and bytes received but not yet consumed are together what the receiver has granted, and
//! never over [`MAX_WINDOW`]. So an honest pair never breaks a rule, and a dishonest sender is caught with the first byte
//! too many.

use std::collections::BTreeMap;

use crate::fields::bare;
use crate::header::{Header, Kind};
use crate::limits::MAX_WINDOW;
use crate::violation::Violation;

/// Credit that a sender may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sending {
    open: u64,
}

impl Sending {
    pub(crate) fn new(open: u64) -> Sending {
        Sending { open }
    }

    pub(crate) fn open(self) -> u64 {
        self.open
    }

    /// Uses credit up. The caller looked before.
    pub(crate) fn spend(&mut self, len: u64) {
        debug_assert!(len <= self.open);
        self.open = self.open.saturating_sub(len);
    }

    /// The receiver granted more. `id` is the call, or 0.
    pub(crate) fn add(&mut self, id: u64, bytes: u32) -> Result<(), Violation> {
        let open = self.open + u64::from(bytes);
        if open > u64::from(MAX_WINDOW) {
            return Err(Violation::CreditOverflow { id });
        }
        self.open = open;
        Ok(())
    }
}

/// Credit that a receiver has granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receiving {
    /// What the peer may still send.
    open: u64,
    /// Received, and not consumed yet.
    held: u64,
    /// Consumed or granted, and not yet told to the peer.
    untold: u64,
    /// What is consumed is told when it is at least this much: half of the window, so that a sender seldom waits and seldom reads.
    worth_telling: u64,
    urgent: bool,
}

impl Receiving {
    pub(crate) fn new(window: u32) -> Receiving {
        let open = u64::from(window);
        Receiving { open, held: 0, untold: 0, worth_telling: open / 2, urgent: false }
    }

    /// As it was when a connection was parked; `None` for numbers that cannot be.
    pub(crate) fn restore(window: u32, open: u64, untold: u64) -> Option<Receiving> {
        let fits = open.checked_add(untold).is_some_and(|sum| sum <= u64::from(MAX_WINDOW));
        fits.then(|| Receiving { open, untold, ..Receiving::new(window) })
    }

    pub(crate) fn open(&self) -> u64 {
        self.open
    }

    pub(crate) fn untold(&self) -> u64 {
        self.untold
    }

    /// Body bytes were announced by a header. `id` is the call, or 0.
    pub(crate) fn charge(&mut self, id: u64, len: u64) -> Result<(), Violation> {
        let open =
            self.open.checked_sub(len).ok_or(Violation::WindowExceeded { id, len, open: self.open })?;
        self.open = open;
        self.held += len;
        Ok(())
    }

    /// Bytes that were charged are consumed. More than that is not believed.
    pub(crate) fn release(&mut self, len: u64) {
        let len = len.min(self.held);
        self.held -= len;
        self.untold += len;
    }

    /// Opens the window further, as far as its limit allows. Says by how much.
    pub(crate) fn grant(&mut self, len: u64) -> u64 {
        let room = u64::from(MAX_WINDOW) - self.open - self.held - self.untold;
        let len = len.min(room);
        self.untold += len;
        self.urgent |= len > 0;
        len
    }

    /// Whether the peer should be told now.
    pub(crate) fn is_due(&self) -> bool {
        self.untold > 0 && (self.urgent || self.untold >= self.worth_telling)
    }

    /// What to tell the peer, which may then send as much more.
    pub(crate) fn tell(&mut self) -> u32 {
        let told = u32::try_from(self.untold).unwrap_or(MAX_WINDOW);
        self.untold = 0;
        self.urgent = false;
        self.open += u64::from(told);
        told
    }
}

/// A call in flight, as far as the body goes that comes in for it.
pub(crate) trait Incoming {
    fn receiving(&mut self) -> &mut Receiving;

    /// Whether more of the body may come: credit for one that is whole would be of no use.
    fn is_incomplete(&self) -> bool;

    fn wants_credit(&mut self) -> bool {
        self.is_incomplete() && self.receiving().is_due()
    }
}

/// What one end has granted in all, and what of it is to be told: how bodies are consumed at either end.
#[derive(Debug)]
pub(crate) struct Granted {
    /// The window of the connection.
    pub(crate) connection: Receiving,
    /// Calls whose credit is to be told.
    due: Vec<u64>,
}

impl Granted {
    pub(crate) fn new(connection: Receiving) -> Granted {
        Granted { connection, due: Vec::new() }
    }

    /// Bytes of a call, which may have ended, are consumed.
    pub(crate) fn consumed<C: Incoming>(&mut self, calls: &mut BTreeMap<u64, C>, id: u64, len: usize) {
        let len = len as u64;
        self.connection.release(len);
        if let Some(call) = calls.get_mut(&id) {
            call.receiving().release(len);
            self.note_due(id, call);
        }
    }

    /// Opens both windows further for a call, as far as the limits allow.
    pub(crate) fn grant<C: Incoming>(&mut self, calls: &mut BTreeMap<u64, C>, id: u64, len: u64) {
        let Some(call) = calls.get_mut(&id) else { return };
        let granted = call.receiving().grant(len);
        self.connection.grant(granted);
        self.note_due(id, call);
    }

    fn note_due(&mut self, id: u64, call: &mut impl Incoming) {
        if call.wants_credit() && !self.due.contains(&id) {
            self.due.push(id);
        }
    }

    /// Appends all credit that the peer should be told of now.
    pub(crate) fn tell<C: Incoming>(&mut self, calls: &mut BTreeMap<u64, C>, out: &mut Vec<u8>) {
        if self.connection.is_due() {
            bare(Header { a: self.connection.tell(), ..Header::new(Kind::Credit, 0) }, out);
        }
        for id in self.due.drain(..) {
            if let Some(call) = calls.get_mut(&id)
                && call.wants_credit()
            {
                bare(Header { a: call.receiving().tell(), ..Header::new(Kind::Credit, id) }, out);
            }
        }
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        self.due.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::MIN_WINDOW;

    proptest! {
        /// The sum that both ends rely on, under any order of steps.
        #[test]
        fn nothing_is_lost_and_nothing_is_made(
            steps in prop::collection::vec((0..4_u8, 0..3_000_000_u64), 0..200),
        ) {
            let mut receiving = Receiving::new(MIN_WINDOW);
            let mut sending = Sending::new(u64::from(MIN_WINDOW));
            let (mut granted, mut held) = (u64::from(MIN_WINDOW), 0);
            for (step, amount) in steps {
                match step {
                    0 => {
                        let len = amount.min(sending.open());
                        sending.spend(len);
                        receiving.charge(1, len).unwrap();
                        held += len;
                    }
                    1 => {
                        let len = amount.min(held);
                        receiving.release(len);
                        held -= len;
                    }
                    2 => granted += receiving.grant(amount * 1000),
                    _ => sending.add(1, receiving.tell()).unwrap(),
                }
                prop_assert_eq!(sending.open() + held + receiving.untold(), granted);
                prop_assert_eq!(sending.open(), receiving.open());
                prop_assert!(granted <= u64::from(MAX_WINDOW));
            }
        }
    }

    #[test]
    fn one_byte_too_many_is_caught() {
        let mut receiving = Receiving::new(MIN_WINDOW);
        receiving.charge(3, u64::from(MIN_WINDOW)).unwrap();
        assert_eq!(receiving.charge(3, 1), Err(Violation::WindowExceeded { id: 3, len: 1, open: 0 }));
    }

    #[test]
    fn credit_is_told_by_the_half_window_or_at_once_when_granted() {
        let mut receiving = Receiving::new(MIN_WINDOW);
        let half = u64::from(MIN_WINDOW / 2);
        receiving.charge(1, 2 * half).unwrap();
        receiving.release(half - 1);
        assert!(!receiving.is_due());
        receiving.release(1);
        assert!(receiving.is_due());
        assert_eq!(u64::from(receiving.tell()), half);
        assert!(!receiving.is_due());
        assert_eq!(receiving.grant(5), 5);
        assert!(receiving.is_due());
    }

    #[test]
    fn consuming_more_than_came_makes_no_credit() {
        let mut receiving = Receiving::new(MIN_WINDOW);
        receiving.release(100);
        assert_eq!(receiving.untold(), 0);
    }

    #[test]
    fn credit_beyond_the_limit_is_refused() {
        let mut sending = Sending::new(0);
        sending.add(0, MAX_WINDOW).unwrap();
        assert_eq!(sending.add(0, 1), Err(Violation::CreditOverflow { id: 0 }));
    }
}
