//! A short array in place: what a `Vec` would be without a second allocation, so that copying a page is one copy.

use super::FANOUT;

#[derive(Debug, Clone)]
pub(super) struct Items<T> {
    len: usize,
    slots: [T; FANOUT],
}

impl<T: Copy + Default> Items<T> {
    pub(super) fn new() -> Items<T> {
        Items { len: 0, slots: [T::default(); FANOUT] }
    }

    pub(super) fn insert(&mut self, at: usize, item: T) {
        self.slots.copy_within(at..self.len, at + 1);
        self.slots[at] = item;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, at: usize) -> T {
        let removed = self.slots[at];
        self.slots.copy_within(at + 1..self.len, at);
        self.len -= 1;
        removed
    }

    pub(super) fn split_off(&mut self, at: usize) -> Items<T> {
        let mut right = Items::new();
        right.append(&self.slots[at..self.len]);
        self.len = at;
        right
    }

    pub(super) fn append(&mut self, others: &[T]) {
        self.slots[self.len..self.len + others.len()].copy_from_slice(others);
        self.len += others.len();
    }

    pub(super) fn as_slice(&self) -> &[T] {
        &self.slots[..self.len]
    }

    pub(super) fn get_mut(&mut self, at: usize) -> &mut T {
        &mut self.slots[at]
    }
}
