//! The private write set of a transaction: what it will commit, and how to take a piece of it back.

use std::borrow::Cow;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::entries::Entries;
use crate::error::ShownKey;
use crate::format::{PartKind, checksum, cost_in_log};
use crate::index::Item;
use crate::ledger::Trees;
use crate::out::{Content, Out};
use crate::state::{KeyInfo, Value};
use crate::tables::{STAMP_LEN, TABLES, Table, UNSTAMPED};
use crate::{AlignedBuf, StateError};

/// A value that is not committed yet. It stays where it is until the transaction is dropped, because pointers to it were handed out.
#[derive(Debug)]
pub(crate) struct Pending {
    bytes: Bytes,
    fingerprint: u64,
    pub(crate) validated: AtomicU32,
    /// Somebody may hold a pointer to it: it must not be edited any more.
    seen: AtomicBool,
    /// Somebody was given it to edit, and may still write to it.
    lent: bool,
}

/// Short values lie in the `Arc` of their `Pending`, which does not move either: one allocation less for each.
#[derive(Debug)]
enum Bytes {
    Short(Short),
    Long(AlignedBuf),
}

const SHORT_LEN: usize = 128;

#[derive(Debug)]
#[repr(align(16))]
struct Short {
    bytes: [u8; SHORT_LEN],
    len: u8,
}

impl Bytes {
    fn new(value: &[u8]) -> Result<Bytes, StateError> {
        if let (..=SHORT_LEN, Ok(len)) = (value.len(), u8::try_from(value.len())) {
            let mut bytes = [0; SHORT_LEN];
            bytes[..value.len()].copy_from_slice(value);
            return Ok(Bytes::Short(Short { bytes, len }));
        }
        let bytes = AlignedBuf::copy_of(value).ok_or(StateError::NoMemory { needed: value.len() })?;
        Ok(Bytes::Long(bytes))
    }

    fn get_mut(&mut self) -> &mut [u8] {
        match self {
            Bytes::Short(short) => &mut short.bytes[..usize::from(short.len)],
            Bytes::Long(long) => long,
        }
    }
}

impl Pending {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Short(short) => &short.bytes[..usize::from(short.len)],
            Bytes::Long(long) => long,
        }
    }

    pub(super) fn new(fingerprint: u64, value: &[u8]) -> Result<Pending, StateError> {
        let bytes = Bytes::new(value)?;
        let (validated, seen) = (AtomicU32::new(0), AtomicBool::new(false));
        Ok(Pending { bytes, fingerprint, validated, seen, lent: false })
    }

    /// Whether somebody may hold a pointer to it.
    fn is_pointed_to(&self) -> bool {
        self.lent || self.seen.load(Ordering::Relaxed)
    }

    pub(super) fn value(&self) -> Value<'_> {
        self.seen.store(true, Ordering::Relaxed);
        Value {
            bytes: self.bytes(),
            fingerprint: self.fingerprint,
            version: 0,
            time_ms: 0,
            validated: &self.validated,
        }
    }

    pub(super) fn info(&self) -> KeyInfo {
        KeyInfo { len: self.bytes().len() as u64, fingerprint: self.fingerprint, version: 0, time_ms: 0 }
    }
}

/// What was committed under a key when this transaction first looked at it for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// 0 if there was nothing.
    pub(crate) version: u64,
    pub(crate) cost: u64,
}

impl Seen {
    pub(crate) fn of(key: &[u8], item: Option<&Item>) -> Seen {
        item.map_or(Seen::default(), |item| Seen {
            version: item.version,
            cost: cost_in_log(key.len(), item.len),
        })
    }
}

/// A key that the transaction has changed, or read in order to change it.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) seen: Seen,
    pub(crate) change: Change,
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Only read so far.
    Keep,
    Set(Arc<Pending>),
    Remove,
}

impl Change {
    /// Live bytes under the key if this is committed.
    pub(super) fn cost(&self, key: &[u8], seen: Seen) -> u64 {
        match self {
            Change::Keep => seen.cost,
            Change::Set(pending) => cost_in_log(key.len(), pending.bytes().len() as u64),
            Change::Remove => 0,
        }
    }
}

/// An entry as it was before a change under an open savepoint.
type Undo = (Table, Box<[u8]>, Option<Write>);

/// All changes of a transaction.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    tables: [Entries; TABLES],
    /// Grows while a savepoint is open.
    undo: Vec<Undo>,
    /// Lengths of `undo` at which savepoints began.
    savepoints: Vec<usize>,
    /// Values that were replaced, taken back or committed, and that somebody may still point to.
    retired: Vec<Arc<Pending>>,
    /// Bytes of all values that are here, retired ones included.
    pinned: u64,
    /// Bytes by which this would change the live bytes.
    added: u64,
    hidden: u64,
    /// Numbers messages and timers.
    stamps: u32,
}

impl Writes {
    pub(crate) fn table(&self, table: Table) -> &Entries {
        &self.tables[table.index()]
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Option<&Write> {
        self.table(table).get(key)
    }

    pub(crate) fn pinned(&self) -> u64 {
        self.pinned
    }

    /// Live bytes if this were committed over `live` bytes.
    pub(crate) fn live_over(&self, live: u64) -> u64 {
        (live + self.added).saturating_sub(self.hidden)
    }

    pub(crate) fn next_stamp(&mut self) -> u32 {
        self.stamps += 1;
        self.stamps - 1
    }

    /// Sets what happens to a key. `seen` is used if this is the first that happens to it.
    pub(crate) fn change(&mut self, table: Table, key: &[u8], seen: impl FnOnce() -> Seen, change: Change) {
        if let Change::Set(pending) = &change {
            self.pinned += pending.bytes().len() as u64;
        }
        let seen = self.get(table, key).map_or_else(seen, |before| before.seen);
        self.added += change.cost(key, seen);
        let before = self.tables[table.index()].insert(key, Write { seen, change });
        match &before {
            Some(before) => self.added -= before.change.cost(key, before.seen),
            None => self.hidden += seen.cost,
        }
        self.retired.extend(before.as_ref().and_then(|before| match &before.change {
            Change::Set(pending) => Some(pending.clone()),
            Change::Keep | Change::Remove => None,
        }));
        if !self.savepoints.is_empty() {
            self.undo.push((table, key.into(), before));
        }
    }

    /// The pending value of a key, if it may be edited in place: nobody points to it and no savepoint would need it as it was.
    pub(crate) fn editable(&mut self, key: &[u8]) -> Option<&mut [u8]> {
        if !self.savepoints.is_empty() {
            return None;
        }
        let write = self.tables[Table::Objects.index()].get_mut(key)?;
        let Change::Set(pending) = &mut write.change else { return None };
        let pending = Arc::get_mut(pending)?;
        if *pending.seen.get_mut() {
            return None;
        }
        pending.lent = true;
        Some(pending.bytes.get_mut())
    }

    /// The pending value of a key that was just made.
    pub(crate) fn pending_mut(&mut self, key: &[u8]) -> Option<&mut [u8]> {
        let write = self.tables[Table::Objects.index()].get_mut(key)?;
        let Change::Set(pending) = &mut write.change else { return None };
        let pending = Arc::get_mut(pending)?;
        pending.lent = true;
        Some(pending.bytes.get_mut())
    }

    pub(crate) fn begin_savepoint(&mut self) -> usize {
        self.savepoints.push(self.undo.len());
        self.savepoints.len()
    }

    pub(crate) fn release(&mut self, depth: usize) -> Result<(), StateError> {
        if depth == 0 || depth > self.savepoints.len() {
            return Err(StateError::SavepointClosed);
        }
        self.savepoints.truncate(depth - 1);
        if self.savepoints.is_empty() {
            self.undo.clear();
        }
        Ok(())
    }

    pub(crate) fn rollback(&mut self, depth: usize) -> Result<(), StateError> {
        let to = *depth
            .checked_sub(1)
            .and_then(|at| self.savepoints.get(at))
            .ok_or(StateError::SavepointClosed)?;
        while self.undo.len() > to {
            let Some((table, key, before)) = self.undo.pop() else { break };
            self.restore(table, key, before);
        }
        self.savepoints.truncate(depth - 1);
        Ok(())
    }

    fn restore(&mut self, table: Table, key: Box<[u8]>, before: Option<Write>) {
        let writes = &mut self.tables[table.index()];
        if let Some(now) = writes.get(&key) {
            self.added -= now.change.cost(&key, now.seen);
            if let Change::Set(pending) = &now.change {
                self.retired.push(pending.clone());
            }
        }
        match before {
            Some(before) => {
                self.added += before.change.cost(&key, before.seen);
                writes.insert(&key, before);
            }
            // That it was looked at stays known: the caller may have decided by what it saw.
            None => {
                if let Some(write) = writes.get_mut(&key) {
                    write.change = Change::Keep;
                    self.added += write.seen.cost;
                }
            }
        }
    }

    /// The first key that was changed by somebody else since this transaction looked at it.
    pub(crate) fn conflict(&self, current: &Trees) -> Option<ShownKey> {
        let changed = |table: Table, key: &[u8], write: &Write| {
            current[table.index()].get(key).map_or(0, |item| item.version) != write.seen.version
        };
        Table::ALL.iter().find_map(|table| {
            let found = self.table(*table).iter().find(|(key, write)| changed(*table, key, write));
            found.map(|(key, _)| ShownKey(key.to_vec()))
        })
    }

    /// The parts of the record that this will be, as commit `seq`.
    pub(crate) fn parts(&self, seq: u64) -> Parts<'_> {
        let mut parts = Parts::None;
        for table in Table::ALL.into_iter().filter(|table| !self.table(*table).is_empty()) {
            for (key, write) in self.table(table).iter() {
                match &write.change {
                    Change::Set(pending) => parts.push(set(table, stamped(table, key, seq), pending)),
                    Change::Remove if write.seen.version != 0 => {
                        parts.push(remove(table, stamped(table, key, seq)));
                    }
                    Change::Remove | Change::Keep => {}
                }
            }
        }
        parts
    }

    /// Forgets all changes but keeps what somebody may point to.
    pub(crate) fn clear(&mut self) {
        for entries in &mut self.tables {
            entries.drain(|write| match write.change {
                Change::Set(pending) if pending.is_pointed_to() => self.retired.push(pending),
                Change::Set(pending) => self.pinned -= pending.bytes().len() as u64,
                Change::Remove | Change::Keep => {}
            });
        }
        self.undo.clear();
        self.savepoints.clear();
        (self.added, self.hidden, self.stamps) = (0, 0, 0);
    }
}

/// The parts of a record. Most have one, which takes no memory of its own.
#[derive(Debug)]
pub(crate) enum Parts<'a> {
    None,
    One([Out<'a>; 1]),
    Many(Vec<Out<'a>>),
}

impl<'a> Parts<'a> {
    fn push(&mut self, part: Out<'a>) {
        *self = match std::mem::replace(self, Parts::None) {
            Parts::None => Parts::One([part]),
            Parts::One([one]) => Parts::Many(vec![one, part]),
            Parts::Many(mut many) => {
                many.push(part);
                Parts::Many(many)
            }
        };
    }
}

impl<'a> Deref for Parts<'a> {
    type Target = [Out<'a>];

    fn deref(&self) -> &[Out<'a>] {
        match self {
            Parts::None => &[],
            Parts::One(one) => one,
            Parts::Many(many) => many,
        }
    }
}

impl<'a> DerefMut for Parts<'a> {
    fn deref_mut(&mut self) -> &mut [Out<'a>] {
        match self {
            Parts::None => &mut [],
            Parts::One(one) => one,
            Parts::Many(many) => many,
        }
    }
}

/// Fills the commit into keys that wait for it.
fn stamped(table: Table, key: &[u8], seq: u64) -> Cow<'_, [u8]> {
    let waits = matches!(table, Table::Sent | Table::Timers)
        && key.len() >= STAMP_LEN
        && key[key.len() - STAMP_LEN..][..8] == UNSTAMPED.to_be_bytes();
    if !waits {
        return Cow::Borrowed(key);
    }
    let mut key = key.to_vec();
    let at = key.len() - STAMP_LEN;
    key[at..at + 8].copy_from_slice(&seq.to_be_bytes());
    Cow::Owned(key)
}

fn set<'a>(table: Table, key: Cow<'a, [u8]>, pending: &'a Pending) -> Out<'a> {
    Out {
        kind: PartKind::setting(table),
        key,
        value: Content::Bytes(pending.bytes()),
        fingerprint: pending.fingerprint,
        version: 0,
        time_ms: 0,
        value_crc: checksum(pending.bytes()),
        validated: pending.validated.load(Ordering::Relaxed),
        place: None,
    }
}

fn remove(table: Table, key: Cow<'_, [u8]>) -> Out<'_> {
    let kind = PartKind::removing(table);
    Out { key, ..Out::of(kind) }
}
