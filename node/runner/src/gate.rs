//! The order of exclusive calls: one at a time, first come, first served. Others do not come by here.
//!
//! Pure. Nobody waits inside: a call that may not run yet is kept here, and comes back from whichever [`Gate::leave`] lets it in.

use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Gate<T> {
    taken: bool,
    waiting: VecDeque<T>,
}

impl<T> Gate<T> {
    pub(crate) fn new() -> Gate<T> {
        Gate { taken: false, waiting: VecDeque::new() }
    }

    /// Gives the call back if it may run now, and keeps it otherwise.
    pub(crate) fn enter(&mut self, call: T) -> Option<T> {
        if self.taken {
            self.waiting.push_back(call);
            return None;
        }
        self.taken = true;
        Some(call)
    }

    /// The call that was let in is done. The next one comes back, let in.
    pub(crate) fn leave(&mut self) -> Option<T> {
        let next = self.waiting.pop_front();
        self.taken = next.is_some();
        next
    }

    /// Takes a waiting call out, if there is one like this.
    pub(crate) fn remove(&mut self, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let at = self.waiting.iter().position(is_it)?;
        self.waiting.remove(at)
    }

    /// Takes all waiting calls out.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_run_one_at_a_time_in_their_order() {
        let mut gate = Gate::new();
        assert_eq!(gate.enter(1), Some(1));
        assert_eq!(gate.enter(2), None);
        assert_eq!(gate.enter(3), None);
        assert_eq!(gate.leave(), Some(2));
        assert_eq!(gate.enter(4), None, "it is not empty while a call is inside");
        assert_eq!(gate.leave(), Some(3));
        assert_eq!(gate.leave(), Some(4));
        assert_eq!(gate.leave(), None);
        assert_eq!(gate.enter(5), Some(5));
    }

    #[test]
    fn what_was_taken_out_is_not_let_in() {
        let mut gate = Gate::new();
        assert_eq!(gate.enter(1), Some(1));
        assert_eq!((gate.enter(2), gate.enter(3), gate.enter(4)), (None, None, None));
        assert_eq!(gate.remove(|call| *call == 2), Some(2));
        assert_eq!(gate.remove(|call| *call == 2), None);
        assert_eq!(gate.leave(), Some(3));
        assert_eq!(gate.clear(), [4]);
        assert_eq!(gate.leave(), None);
    }
}
