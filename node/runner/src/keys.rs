//! Idempotency keys that stand for a call that has begun and not ended: at most one call of each, the others wait for it.
//!
//! Pure. Nobody waits inside, as in the gate: a call whose key is taken is kept here, and comes back from the [`Keys::leave`] of the one
//! before it.

use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub(crate) struct Keys<T> {
    /// Each key that is taken, and who waits for it.
    taken: BTreeMap<Box<str>, VecDeque<T>>,
}

impl<T> Keys<T> {
    pub(crate) const fn new() -> Keys<T> {
        Keys { taken: BTreeMap::new() }
    }

    /// Gives the call back if nobody has its key, which it has now; keeps it otherwise.
    pub(crate) fn enter(&mut self, key: &str, call: T) -> Option<T> {
        if let Some(waiting) = self.taken.get_mut(key) {
            waiting.push_back(call);
            return None;
        }
        self.taken.insert(key.into(), VecDeque::new());
        Some(call)
    }

    /// The call that has the key is done with it. The next one comes back, and has it now.
    pub(crate) fn leave(&mut self, key: &str) -> Option<T> {
        let next = self.taken.get_mut(key)?.pop_front();
        if next.is_none() {
            self.taken.remove(key);
        }
        next
    }

    /// Whether a call has this key.
    pub(crate) fn is_taken(&self, key: &[u8]) -> bool {
        std::str::from_utf8(key).is_ok_and(|key| self.taken.contains_key(key))
    }

    /// Takes a waiting call out, if there is one like this.
    pub(crate) fn remove(&mut self, mut is_it: impl FnMut(&T) -> bool) -> Option<T> {
        self.taken.values_mut().find_map(|waiting| {
            let at = waiting.iter().position(&mut is_it)?;
            waiting.remove(at)
        })
    }

    /// Takes all waiting calls out.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.taken.values_mut().flat_map(std::mem::take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_one_key_go_one_at_a_time_and_others_beside_them() {
        let mut keys = Keys::new();
        assert_eq!(keys.enter("a", 1), Some(1));
        assert_eq!(keys.enter("b", 2), Some(2));
        assert_eq!((keys.enter("a", 3), keys.enter("a", 4)), (None, None));
        assert_eq!(keys.leave("b"), None);
        assert_eq!(keys.leave("a"), Some(3));
        assert_eq!(keys.enter("a", 5), None, "the next one has it");
        assert!(keys.is_taken(b"a") && !keys.is_taken(b"b"));
        assert_eq!((keys.leave("a"), keys.leave("a"), keys.leave("a")), (Some(4), Some(5), None));
        assert!(!keys.is_taken(b"a"));
        assert_eq!(keys.enter("a", 6), Some(6));
    }

    #[test]
    fn who_was_taken_out_does_not_come_back_and_the_key_stays_taken() {
        let mut keys = Keys::new();
        assert_eq!(keys.enter("a", 1), Some(1));
        assert_eq!((keys.enter("a", 2), keys.enter("a", 3)), (None, None));
        assert_eq!(keys.remove(|call| *call == 2), Some(2));
        assert_eq!(keys.remove(|call| *call == 1), None, "it does not wait");
        assert_eq!(keys.clear(), [3]);
        assert_eq!(keys.enter("a", 4), None);
        assert_eq!((keys.leave("a"), keys.leave("a")), (Some(4), None));
    }
}
