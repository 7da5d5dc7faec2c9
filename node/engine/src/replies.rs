//! Remembered replies as the one who serves calls needs them: with the commit that they came with, how much they take together, and in
//! steps of bounded size those that have expired.
//!
//! Nothing is forgotten by itself: whoever remembers replies calls [`Engine::expired_replies`] and [`Engine::forget_replies`] now and
//! then. When a reply expires is in the index, so that looking for expired ones touches no value, and reads nothing from the disk.

use std::ops::Bound;

use crate::StateError;
use crate::engine::Engine;
use crate::format::{PartKind, cost_in_log};
use crate::out::Out;
use crate::state::{Snapshot, whole};
use crate::tables::{Reply, Table};

/// A remembered reply, and the commit that it is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered<'a> {
    /// The reply.
    pub reply: Reply<'a>,
    /// Number of the commit that remembered it.
    pub commit: u64,
}

/// An expired reply: its key, and the commit that remembered it.
pub type Expired = (Box<[u8]>, u64);

impl Snapshot {
    /// The reply that is remembered under an idempotency key, expired or not, with its commit.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn remembered(&self, key: &[u8]) -> Result<Option<Remembered<'_>>, StateError> {
        let Some(value) = self.state.get(Table::Replies, key)? else { return Ok(None) };
        let reply = whole(key, Reply::decode(value.bytes))?;
        Ok(Some(Remembered { reply, commit: value.version }))
    }

    /// When the reply that is remembered under an idempotency key expires, in milliseconds since 1970. Touches no value.
    pub fn reply_expires_ms(&self, key: &[u8]) -> Option<u64> {
        self.state.tree(Table::Replies).get(key).map(|item| item.fingerprint)
    }
}

impl Engine {
    /// What the clock of this state says, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.clock_ms()
    }

    /// Bytes that remembered replies take of the quota.
    pub fn replies_bytes(&self) -> u64 {
        self.log().ledger.replies()
    }

    /// Bytes that a reply takes of the quota, with a key and an encoded reply of these lengths.
    pub fn reply_cost(key_len: usize, reply_len: usize) -> u64 {
        cost_in_log(key_len, Reply::encoded_len(reply_len))
    }

    /// Looks at the next `most` remembered replies after the key `after`, in the order of keys, and returns those that have expired.
    /// `after` moves on, and is empty when the last one was looked at: the next step begins with the first.
    pub fn expired_replies(&self, after: &mut Vec<u8>, most: usize) -> Vec<Expired> {
        let now_ms = self.now_ms();
        let state = self.published();
        let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after.as_slice()) };
        let (mut expired, mut last, mut looked) = (Vec::new(), None, 0);
        for (key, item) in state.tree(Table::Replies).range(from).take(most) {
            if item.fingerprint <= now_ms {
                expired.push((key.into(), item.version));
            }
            (last, looked) = (Some(key), looked + 1);
        }
        let next = last.filter(|_| looked == most).unwrap_or_default().to_vec();
        *after = next;
        expired
    }

    /// Forgets replies, with one commit, unless they were replaced meanwhile. Returns how many. No transaction is waited for; one that
    /// remembers a reply under one of the keys at this moment meets a conflict.
    ///
    /// # Errors
    /// As a commit.
    pub fn forget_replies(&self, replies: &[Expired]) -> Result<usize, StateError> {
        if replies.is_empty() {
            return Ok(0);
        }
        let mut log = self.log();
        log.check_usable()?;
        let current = self.published();
        let tree = current.tree(Table::Replies);
        let mut outs: Vec<Out<'_>> = replies
            .iter()
            .filter(|(key, commit)| tree.get(key).is_some_and(|item| item.version == *commit))
            .map(|(key, _)| Out { key: (&**key).into(), ..Out::of(PartKind::ReplyForgotten) })
            .collect();
        // Whoever holds it would have the pages copied.
        drop(current);
        if !outs.is_empty() {
            let placed = self.write(&mut log, &mut outs)?;
            self.publish(&mut log, &outs, placed, None, |_, _| {});
        }
        Ok(outs.len())
    }
}
