//! Which calls may run now: one exclusive one, or any number of shared ones.
//!
//! Pure. It owns the order: first come, first admitted, so that neither kind can starve the other. Nobody waits inside: a call that
//! may not run yet is kept here, and comes back from whichever [`Gate::leave`] lets it in.

use std::collections::VecDeque;

/// How a call goes beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Exclusive,
    Shared,
}

#[derive(Debug)]
pub(crate) struct Gate<T> {
    exclusive: bool,
    shared: usize,
    waiting: VecDeque<(Mode, T)>,
}

impl<T> Gate<T> {
    pub(crate) fn new() -> Gate<T> {
        Gate { exclusive: false, shared: 0, waiting: VecDeque::new() }
    }

    /// Gives the call back if it may run now, and keeps it otherwise.
    pub(crate) fn enter(&mut self, mode: Mode, call: T) -> Option<T> {
        if self.waiting.is_empty() && self.has_room(mode) {
            self.admit(mode);
            return Some(call);
        }
        self.waiting.push_back((mode, call));
        None
    }

    /// A call that was let in is done. Those that may run now come back, admitted.
    pub(crate) fn leave(&mut self, mode: Mode) -> VecDeque<T> {
        match mode {
            Mode::Exclusive => self.exclusive = false,
            Mode::Shared => self.shared -= 1,
        }
        let mut admitted = VecDeque::new();
        while let Some((mode, _)) = self.waiting.front()
            && self.has_room(*mode)
        {
            let mode = *mode;
            self.admit(mode);
            admitted.extend(self.waiting.pop_front().map(|(_, call)| call));
        }
        admitted
    }

    /// Takes a waiting call out, if there is one like this. What it held up stays until the next call leaves.
    pub(crate) fn remove(&mut self, mut is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let at = self.waiting.iter().position(|(_, call)| is_it(call))?;
        self.waiting.remove(at).map(|(_, call)| call)
    }

    /// Takes all waiting calls out.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.waiting.drain(..).map(|(_, call)| call).collect()
    }

    fn has_room(&self, mode: Mode) -> bool {
        !self.exclusive && (mode == Mode::Shared || self.shared == 0)
    }

    fn admit(&mut self, mode: Mode) {
        match mode {
            Mode::Exclusive => self.exclusive = true,
            Mode::Shared => self.shared += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_ones_run_one_at_a_time_in_their_order() {
        let mut gate = Gate::new();
        assert_eq!(gate.enter(Mode::Exclusive, 1), Some(1));
        assert_eq!(gate.enter(Mode::Exclusive, 2), None);
        assert_eq!(gate.enter(Mode::Exclusive, 3), None);
        assert_eq!(gate.leave(Mode::Exclusive), [2]);
        assert_eq!(gate.leave(Mode::Exclusive), [3]);
        assert!(gate.leave(Mode::Exclusive).is_empty());
    }

    #[test]
    fn shared_ones_run_together_and_do_not_overtake_an_exclusive_one() {
        let mut gate = Gate::new();
        assert_eq!(gate.enter(Mode::Shared, 1), Some(1));
        assert_eq!(gate.enter(Mode::Shared, 2), Some(2));
        assert_eq!(gate.enter(Mode::Exclusive, 3), None);
        assert_eq!(gate.enter(Mode::Shared, 4), None, "it would starve the exclusive one");
        assert_eq!(gate.enter(Mode::Shared, 5), None);
        assert!(gate.leave(Mode::Shared).is_empty());
        assert_eq!(gate.leave(Mode::Shared), [3]);
        assert_eq!(gate.enter(Mode::Exclusive, 6), None);
        assert_eq!(gate.leave(Mode::Exclusive), [4, 5]);
        assert!(gate.leave(Mode::Shared).is_empty());
        assert_eq!(gate.leave(Mode::Shared), [6]);
    }

    #[test]
    fn what_was_taken_out_is_not_let_in() {
        let mut gate = Gate::new();
        assert_eq!(gate.enter(Mode::Exclusive, 1), Some(1));
        assert_eq!(gate.enter(Mode::Exclusive, 2), None);
        assert_eq!(gate.enter(Mode::Shared, 3), None);
        assert_eq!(gate.enter(Mode::Shared, 4), None);
        assert_eq!(gate.remove(|call| *call == 2), Some(2));
        assert_eq!(gate.remove(|call| *call == 2), None);
        assert_eq!(gate.leave(Mode::Exclusive), [3, 4]);
        assert_eq!(gate.enter(Mode::Exclusive, 5), None);
        assert_eq!(gate.clear(), [5]);
    }

    /// Whatever happens in whatever order: never an exclusive call beside another, and everything is let in at last.
    #[test]
    fn random_arrivals_and_departures() {
        let mut seed = 3_u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed >> 20
        };
        let mut gate = Gate::new();
        let mut running: Vec<(Mode, u64)> = Vec::new();
        let mut arrived = 0;
        let mut started = 0;
        for step in 0..100_000_u64 {
            let modes = |number: u64| if number.is_multiple_of(3) { Mode::Exclusive } else { Mode::Shared };
            if step < 90_000 && next() % 2 == 0 {
                arrived += 1;
                running.extend(gate.enter(modes(arrived), arrived).map(|call| (modes(call), call)));
            } else if !running.is_empty() {
                let at = usize::try_from(next()).unwrap() % running.len();
                let (mode, _) = running.swap_remove(at);
                running.extend(gate.leave(mode).into_iter().map(|call| (modes(call), call)));
            }
            let exclusive = running.iter().filter(|(mode, _)| *mode == Mode::Exclusive).count();
            assert!(exclusive == 0 || running.len() == 1, "{running:?}");
            started = started.max(running.iter().map(|(_, call)| *call).max().unwrap_or(0));
        }
        while let Some((mode, _)) = running.pop() {
            running.extend(gate.leave(mode).into_iter().map(|call| (modes_of(call), call)));
            started = started.max(running.iter().map(|(_, call)| *call).max().unwrap_or(0));
        }
        assert_eq!(started, arrived);
    }

    fn modes_of(number: u64) -> Mode {
        if number.is_multiple_of(3) { Mode::Exclusive } else { Mode::Shared }
    }
}
