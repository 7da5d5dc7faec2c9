//! What was read of several connections together and nobody has looked at yet: one buffer, and a portion of it for each.
//!
//! A connection has at most one portion, and none is read again before all of them are dealt with or put back. So what is here comes
//! directly before what is still on its socket.

use std::collections::VecDeque;
use std::sync::Arc;

use super::caller::{Caller, Talk};

/// The buffer, in bytes. Only what is used of it becomes memory.
const BUFFER: usize = 128 << 10;

#[derive(Debug, Default)]
pub(super) struct Portions {
    buffer: Vec<u8>,
    waiting: VecDeque<Portion>,
}

/// What was read of one connection.
#[derive(Debug)]
struct Portion {
    caller: Arc<Caller>,
    start: usize,
    end: usize,
}

impl Portions {
    /// Makes the buffer, if there is none.
    pub(super) fn prepare(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER];
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<&Arc<Caller>> {
        self.waiting.front().map(|portion| &portion.caller)
    }

    /// What is left of its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.waiting.front().map_or(&[], |portion| &self.buffer[portion.start..portion.end])
    }

    /// So many of them are left.
    pub(super) fn leave(&mut self, left: usize) {
        if let Some(portion) = self.waiting.front_mut() {
            portion.start = portion.end - left;
        }
    }

    /// The first one is dealt with.
    pub(super) fn finish(&mut self) {
        self.waiting.pop_front();
    }

    /// Bytes that were kept for a connection are its portion now. Nothing else may be here.
    pub(super) fn load(&mut self, caller: &Arc<Caller>, bytes: &[u8]) {
        debug_assert!(self.is_empty(), "the buffer belongs to others");
        if self.buffer.len() < bytes.len() {
            self.buffer.resize(bytes.len(), 0);
        }
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        self.waiting.push_back(Portion { caller: caller.clone(), start: 0, end: bytes.len() });
    }

    /// Cuts the empty buffer into so many equal pieces.
    pub(super) fn pieces(&mut self, count: usize) -> impl Iterator<Item = &mut [u8]> {
        debug_assert!(self.is_empty(), "the buffer belongs to others");
        let len = self.buffer.len() / count.max(1);
        self.buffer.chunks_exact_mut(len.max(1)).take(count)
    }

    /// So many bytes of a connection were received to the piece of this number, of so many.
    pub(super) fn push(&mut self, caller: Arc<Caller>, piece: usize, of: usize, count: usize) {
        let start = piece * (self.buffer.len() / of.max(1));
        self.waiting.push_back(Portion { caller, start, end: start + count });
    }

    /// The rest of the first portion goes back to its connection.
    pub(super) fn put_back_first(&mut self) {
        let Some(Portion { caller, start, end }) = self.waiting.pop_front() else { return };
        let mut talk = caller.talk();
        put_back(&mut talk, &self.buffer[start..end]);
    }

    /// Everything goes back.
    pub(super) fn put_back(&mut self) {
        while !self.is_empty() {
            self.put_back_first();
        }
    }
}

fn put_back(talk: &mut Talk, rest: &[u8]) {
    if !talk.gone && !rest.is_empty() {
        debug_assert!(talk.kept.is_empty(), "what is kept comes first");
        talk.kept = rest.to_vec();
    }
}
