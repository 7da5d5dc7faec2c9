//! What an invocation sees and changes: a snapshot, and over it its own writes until it commits or drops them.
//!
//! It owns the lifetime of everything that it hands out: values that are overwritten, taken back or committed are kept until the
//! transaction is dropped, and so are the segments that it has read. What is kept counts against the quota, so that a loop of puts
//! cannot grow without end.

mod entries;
mod scan;
mod writes;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::StateError;
use crate::engine::Engine;
use crate::format::{MAX_VALUE_LEN, check_key, cost_in_log};
use crate::state::{Base, KeyInfo, Snapshot, State, Value, begin_of, slice, whole};
use crate::tables::{
    Consumption, Message, MessageId, Reply, Table, Timer, TimerId, UNSTAMPED, consumption_key,
};
use crate::turn::{Access, Held};

use scan::{Merged, merge};
pub(crate) use writes::Writes;
use writes::{Change, Pending, Seen};

/// A piece of a transaction that can be taken back: begun with [`Transaction::begin_savepoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Savepoint(usize);

/// Reads and writes, committed as a whole or not at all. Dropping it without [`Transaction::commit`] leaves nothing.
#[derive(Debug)]
pub struct Transaction {
    engine: Engine,
    access: Access,
    base: Base,
    writes: Writes,
    turn: Option<Held>,
}

impl Transaction {
    pub(crate) fn new(engine: Engine, access: Access, turn: Option<Held>) -> Transaction {
        let base = Base::new(engine.published());
        Transaction { engine, access, base, writes: Writes::default(), turn }
    }

    fn base(&self) -> &State {
        // A commit takes it out only while it publishes, and puts the next one in.
        self.base.state.as_ref().expect("a transaction has a base between calls")
    }

    /// The object under `key`, own writes included.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] if it is no longer what was written, [`StateError::Io`] if it cannot be read.
    #[inline]
    pub fn get(&self, key: &[u8]) -> Result<Option<Value<'_>>, StateError> {
        self.lookup(Table::Objects, key)
    }

    #[inline]
    fn lookup(&self, table: Table, key: &[u8]) -> Result<Option<Value<'_>>, StateError> {
        match self.writes.get(table, key).map(|write| &write.change) {
            Some(Change::Set(pending)) => Ok(Some(pending.value())),
            Some(Change::Remove) => Ok(None),
            Some(Change::Keep) | None => self.base().get(table, key),
        }
    }

    /// As [`Transaction::get`], and if somebody else changes the key before this transaction commits, that is a conflict.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub fn get_for_update(&mut self, key: &[u8]) -> Result<Option<Value<'_>>, StateError> {
        self.note(Table::Objects, key);
        self.get(key)
    }

    /// A part of an object, from `offset`, of at most `len` bytes: as much of it as there is.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub fn get_range(&self, key: &[u8], offset: u64, len: u64) -> Result<Option<&[u8]>, StateError> {
        Ok(self.get(key)?.map(|value| slice(value.bytes, offset, len)))
    }

    /// What is known of the object under `key`, without touching it.
    pub fn info(&self, key: &[u8]) -> Option<KeyInfo> {
        self.info_in(Table::Objects, key)
    }

    fn info_in(&self, table: Table, key: &[u8]) -> Option<KeyInfo> {
        match self.writes.get(table, key).map(|write| &write.change) {
            Some(Change::Set(pending)) => Some(pending.info()),
            Some(Change::Remove) => None,
            Some(Change::Keep) | None => self.base().tree(table).get(key).map(KeyInfo::of),
        }
    }

    /// Puts an object; `fingerprint` 0 says plain bytes.
    ///
    /// # Errors
    /// [`StateError::KeyEmpty`], [`StateError::KeyTooLong`], [`StateError::ValueTooLarge`], [`StateError::QuotaExceeded`],
    /// [`StateError::NoMemory`]; nothing has changed then.
    pub fn put(&mut self, key: &[u8], fingerprint: u64, value: &[u8]) -> Result<(), StateError> {
        self.set(Table::Objects, key, fingerprint, value)
    }

    /// Puts plain bytes.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn put_bytes(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.put(key, 0, value)
    }

    /// A private copy of an object to be edited in place; what is in it when the transaction commits is committed. `None` if there is no
    /// such object. Later reads see the edits; earlier pointers do not.
    ///
    /// # Errors
    /// As [`Transaction::put`] and [`Transaction::get`].
    pub fn update(&mut self, key: &[u8]) -> Result<Option<&mut [u8]>, StateError> {
        if self.writes.editable(key).is_none() {
            let Some(value) = self.get(key)? else {
                self.note(Table::Objects, key);
                return Ok(None);
            };
            let seen = self.seen(Table::Objects, key);
            self.check_quota(Table::Objects, key, seen, value.bytes.len())?;
            let pending = Pending::new(value.fingerprint, value.bytes)?;
            self.writes.change(Table::Objects, key, || seen, Change::Set(Arc::new(pending)));
        }
        Ok(self.writes.pending_mut(key))
    }

    /// Deletes an object; says whether there was one.
    ///
    /// # Errors
    /// [`StateError::KeyEmpty`], [`StateError::KeyTooLong`].
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, StateError> {
        check_key(key)?;
        Ok(self.remove(Table::Objects, key))
    }

    /// Visits, in the order of keys, the objects whose key begins with `prefix` and comes after `after`, own writes included.
    ///
    /// # Errors
    /// As [`Transaction::get`]; what was visited before stays visited.
    pub fn scan<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        mut visit: impl FnMut(&'s [u8], Value<'s>) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for (key, entry) in self.merged(prefix, after) {
            let value = match entry {
                Merged::Own(pending) => pending.value(),
                Merged::Stored(item) => self.base().value(key, item)?,
            };
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// As [`Transaction::scan`], without touching the objects: so it cannot fail.
    pub fn keys<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        mut visit: impl FnMut(&'s [u8], KeyInfo) -> ControlFlow<()>,
    ) {
        for (key, entry) in self.merged(prefix, after) {
            let info = match entry {
                Merged::Own(pending) => pending.info(),
                Merged::Stored(item) => KeyInfo::of(item),
            };
            if visit(key, info).is_break() {
                break;
            }
        }
    }

    fn merged<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
    ) -> impl Iterator<Item = (&'s [u8], Merged<'s>)> {
        let from = begin_of(prefix, after);
        let own = self.writes.table(Table::Objects).from(from);
        let stored = self.base().tree(Table::Objects).range(from);
        merge(own.map(|(key, write)| (key, &write.change)), stored)
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// How far messages of a source and key are consumed, own writes included.
    ///
    /// # Errors
    /// As [`Transaction::get`], and [`StateError::KeyTooLong`].
    pub fn consumed(&self, source: &[u8], key: &[u8]) -> Result<Option<Consumption>, StateError> {
        let key = consumption_key(source, key)?;
        let value = self.lookup(Table::Consumed, &key)?;
        value.map(|value| whole(&key, Consumption::decode(value.bytes))).transpose()
    }

    /// Says how far messages of a source and key are consumed.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn consume(&mut self, source: &[u8], key: &[u8], upto: Consumption) -> Result<(), StateError> {
        self.set(Table::Consumed, &consumption_key(source, key)?, 0, &upto.encode())
    }

    /// Forgets how far messages of a source and key are consumed; says whether it was known.
    ///
    /// # Errors
    /// [`StateError::KeyTooLong`].
    pub fn forget_consumed(&mut self, source: &[u8], key: &[u8]) -> Result<bool, StateError> {
        Ok(self.remove(Table::Consumed, &consumption_key(source, key)?))
    }

    /// Sends a message when this commits. The commit in its identity is filled in then.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn send(&mut self, message: Message<'_>) -> Result<MessageId, StateError> {
        let id = MessageId { commit: UNSTAMPED, index: self.writes.next_stamp() };
        self.set(Table::Sent, &id.key(), 0, &message.encode())?;
        Ok(id)
    }

    /// Forgets a message that was acknowledged; says whether it was known.
    pub fn acknowledge(&mut self, id: MessageId) -> bool {
        self.remove(Table::Sent, &id.key())
    }

    /// Sets a timer when this commits. The commit in its identity is filled in then.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn set_timer(&mut self, due_ms: u64, timer: Timer<'_>) -> Result<TimerId, StateError> {
        let id = TimerId { due_ms, commit: UNSTAMPED, index: self.writes.next_stamp() };
        self.set(Table::Timers, &id.key(), 0, &timer.encode())?;
        Ok(id)
    }

    /// Clears a timer; says whether it was set.
    pub fn clear_timer(&mut self, id: TimerId) -> bool {
        self.remove(Table::Timers, &id.key())
    }

    /// Remembers a reply under an idempotency key.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn remember_reply(&mut self, key: &[u8], reply: Reply<'_>) -> Result<(), StateError> {
        // Where the index has it, too.
        self.set(Table::Replies, key, reply.expires_ms, &reply.encode())
    }

    /// The reply that is remembered under an idempotency key, expired or not, own writes included.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub fn reply(&self, key: &[u8]) -> Result<Option<Reply<'_>>, StateError> {
        let value = self.lookup(Table::Replies, key)?;
        value.map(|value| whole(key, Reply::decode(value.bytes))).transpose()
    }

    /// Forgets a remembered reply; says whether there was one.
    pub fn forget_reply(&mut self, key: &[u8]) -> bool {
        self.remove(Table::Replies, key)
    }

    /// Begins a piece that can be taken back. Savepoints nest.
    pub fn begin_savepoint(&mut self) -> Savepoint {
        Savepoint(self.writes.begin_savepoint())
    }

    /// Ends a savepoint, and those begun in it, keeping what was written.
    ///
    /// # Errors
    /// [`StateError::SavepointClosed`].
    pub fn release(&mut self, savepoint: Savepoint) -> Result<(), StateError> {
        self.writes.release(savepoint.0)
    }

    /// Ends a savepoint, and those begun in it, taking back what was written since.
    ///
    /// # Errors
    /// [`StateError::SavepointClosed`].
    pub fn rollback(&mut self, savepoint: Savepoint) -> Result<(), StateError> {
        self.writes.rollback(savepoint.0)
    }

    /// Whether there is nothing to commit.
    pub fn is_unchanged(&self) -> bool {
        Table::ALL.into_iter().all(|table| self.writes.table(table).is_empty())
    }

    /// Makes all changes so far permanent, as one record, and begins anew; open savepoints end. Returns the number of the commit, which is
    /// a new one only if there was a change. What was handed out before stays good. It is at level `process` then; wait for more with
    /// [`Engine::wait`].
    ///
    /// # Errors
    /// [`StateError::Conflict`], [`StateError::QuotaExceeded`], [`StateError::NoSpare`], [`StateError::CommitTooLarge`]: nothing was
    /// written, and the changes are still there. [`StateError::Io`], and then for ever [`StateError::Poisoned`]: nobody knows.
    pub fn commit(&mut self) -> Result<u64, StateError> {
        let _passing = match self.access {
            Access::Concurrent => Some(self.engine.pass()),
            Access::Exclusive | Access::Sole => None,
        };
        let outcome = self.engine.commit(&self.writes, &mut self.base);
        if outcome.is_ok() {
            self.writes.clear();
        }
        outcome
    }

    /// Forgets all changes since the last commit and looks at the state anew. What was handed out before stays good.
    pub fn abort(&mut self) {
        self.writes.clear();
        self.base.renew(self.engine.published());
    }

    /// Number of the commit that this transaction sees, besides its own writes; 0 before the first.
    pub fn commit_number(&self) -> u64 {
        self.base().seq
    }

    /// What is committed, as this transaction sees it without its own writes.
    pub fn committed(&self) -> Snapshot {
        Snapshot { state: self.base.state.clone().unwrap_or_else(|| self.engine.published()) }
    }

    fn seen(&self, table: Table, key: &[u8]) -> Seen {
        Seen::of(key, self.base().tree(table).get(key))
    }

    fn keep(&mut self, table: Table, key: &[u8], change: Change) {
        let seen = self.seen(table, key);
        self.writes.change(table, key, || seen, change);
    }

    fn note(&mut self, table: Table, key: &[u8]) {
        if self.writes.get(table, key).is_none() {
            self.keep(table, key, Change::Keep);
        }
    }

    pub(crate) fn set(
        &mut self,
        table: Table,
        key: &[u8],
        fingerprint: u64,
        value: &[u8],
    ) -> Result<(), StateError> {
        check_key(key)?;
        if value.len() as u64 > MAX_VALUE_LEN {
            return Err(StateError::ValueTooLarge { len: value.len() as u64 });
        }
        let seen = self.seen(table, key);
        self.check_quota(table, key, seen, value.len())?;
        let pending = Pending::new(fingerprint, value)?;
        self.writes.change(table, key, || seen, Change::Set(Arc::new(pending)));
        Ok(())
    }

    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) -> bool {
        let present = self.info_in(table, key).is_some();
        if present {
            self.keep(table, key, Change::Remove);
        } else {
            self.note(table, key);
        }
        present
    }

    /// Both the state after this transaction and the memory that it pins must fit.
    fn check_quota(&self, table: Table, key: &[u8], seen: Seen, len: usize) -> Result<(), StateError> {
        let quota = self.engine.quota();
        let used = self.base().live;
        let replaced = self.writes.get(table, key).map_or(seen.cost, |write| write.change.cost(key, seen));
        let live = self.writes.live_over(used).saturating_sub(replaced) + cost_in_log(key.len(), len as u64);
        let needed = live.max(self.writes.pinned() + len as u64);
        if needed > quota { Err(StateError::QuotaExceeded { needed, quota, used }) } else { Ok(()) }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // First, so that the next writer does not find the pages shared.
        self.base.state = None;
        self.turn.take().into_iter().for_each(|turn| self.engine.end_turn(turn));
    }
}
