//! What an invocation sees of the state: the committed objects, and over them its own writes until it commits or drops them.
//!
//! It owns the lifetime of everything it hands out: a value that is overwritten, deleted or committed is *retired*, not freed, and
//! goes when the transaction does. What is retired counts against the quota, so that a loop of puts cannot grow without end.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::AtomicU32;

use crate::format::{PART_LEN, PartHead, PartKind, check_key, put_cost};
use crate::index::{Entry, Index, Retired, cost};
use crate::{AlignedBuf, Engine, StateError};

/// A stored object.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    /// Its bytes, the first at an address that is a multiple of 16.
    pub bytes: &'a [u8],
    /// The fingerprint that it was put with; 0 for plain bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it; 0 for an own write that is not committed yet.
    pub version: u64,
    /// For whoever reads it: 0 at first, kept as long as this version is.
    pub validated: &'a AtomicU32,
}

/// A change that is not committed yet: the part of the record that it will be.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) part: AlignedBuf,
    head: PartHead,
    validated: Option<Box<AtomicU32>>,
}

impl Pending {
    fn new(kind: PartKind, key: &[u8], fingerprint: u64, value: &[u8]) -> Result<Pending, StateError> {
        let head = PartHead {
            kind,
            key_len: u32::try_from(key.len()).unwrap_or(u32::MAX),
            value_len: value.len() as u64,
            fingerprint,
            version: 0,
        };
        let len = head.whole_len().and_then(|len| usize::try_from(len).ok());
        let no_memory = StateError::NoMemory { needed: value.len() };
        let Some(mut part) = len.and_then(AlignedBuf::zeroed) else { return Err(no_memory) };
        part[..PART_LEN].copy_from_slice(&head.encode());
        part[PART_LEN..PART_LEN + key.len()].copy_from_slice(key);
        let at = Pending::value_at(&head);
        part[at..at + value.len()].copy_from_slice(value);
        let validated = (kind == PartKind::Put).then(|| Box::new(AtomicU32::new(0)));
        Ok(Pending { part, head, validated })
    }

    fn value_at(head: &PartHead) -> usize {
        usize::try_from(head.value_offset()).unwrap_or(usize::MAX)
    }

    /// `None` for a delete.
    fn value(&self) -> Option<Value<'_>> {
        let at = Pending::value_at(&self.head);
        let len = usize::try_from(self.head.value_len).unwrap_or(usize::MAX);
        let validated = self.validated.as_deref()?;
        Some(Value {
            bytes: &self.part[at..at + len],
            fingerprint: self.head.fingerprint,
            version: 0,
            validated,
        })
    }

    fn cost(&self) -> u64 {
        if self.validated.is_some() { self.part.len() as u64 } else { 0 }
    }

    /// The entry for this change once its part lies at `offset` in the file; `None` for a delete. What was found valid stays valid.
    pub(crate) fn committed_at(&mut self, offset: u64, seq: u64) -> Option<Entry> {
        Some(Entry {
            validated: self.validated.take()?,
            offset: offset + self.head.value_offset(),
            len: self.head.value_len,
            fingerprint: self.head.fingerprint,
            version: seq,
        })
    }
}

/// What nobody can find any more but somebody may still point to.
#[derive(Debug, Default)]
pub(crate) struct Retirement {
    pub(crate) entries: Vec<Retired>,
    pub(crate) parts: Vec<AlignedBuf>,
    overwritten: Vec<Pending>,
}

/// Reads and writes, committed as a whole or not at all. Dropping it without [`Transaction::commit`] leaves nothing.
#[derive(Debug)]
pub struct Transaction<'e> {
    engine: &'e mut Engine,
    writes: BTreeMap<Box<[u8]>, Pending>,
    retirement: Retirement,
    /// Bytes of all parts made so far, retired ones included.
    pinned: u64,
    /// Live bytes that `writes` hide and add.
    hidden: u64,
    added: u64,
}

impl<'e> Transaction<'e> {
    pub(crate) fn new(engine: &'e mut Engine) -> Transaction<'e> {
        Transaction {
            engine,
            writes: BTreeMap::new(),
            retirement: Retirement::default(),
            pinned: 0,
            hidden: 0,
            added: 0,
        }
    }

    /// The object under `key`, own writes included.
    pub fn get(&self, key: &[u8]) -> Option<Value<'_>> {
        match self.writes.get(key) {
            Some(pending) => pending.value(),
            None => self.engine.index().get(key).map(|entry| self.engine.value(entry)),
        }
    }

    /// Puts an object; `fingerprint` 0 says plain bytes.
    ///
    /// # Errors
    /// [`StateError::KeyEmpty`], [`StateError::KeyTooLong`], [`StateError::QuotaExceeded`], [`StateError::NoMemory`]; nothing has
    /// changed then.
    pub fn put(&mut self, key: &[u8], fingerprint: u64, value: &[u8]) -> Result<(), StateError> {
        check_key(key)?;
        self.check_quota(key, put_cost(key.len(), value.len()))?;
        let pending = Pending::new(PartKind::Put, key, fingerprint, value)?;
        self.keep(key, pending);
        Ok(())
    }

    /// Deletes an object; says whether there was one.
    ///
    /// # Errors
    /// [`StateError::KeyEmpty`], [`StateError::KeyTooLong`], [`StateError::NoMemory`].
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, StateError> {
        check_key(key)?;
        if self.get(key).is_none() {
            return Ok(false);
        }
        let pending = Pending::new(PartKind::Delete, key, 0, &[])?;
        self.keep(key, pending);
        Ok(true)
    }

    /// Visits, in the order of keys, the objects whose key begins with `prefix` and comes after `after`, own writes included.
    pub fn scan<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        visit: impl FnMut(&'s [u8], Value<'s>) -> ControlFlow<()>,
    ) {
        let from = begin_of(prefix, after);
        let own = self.writes.range::<[u8], _>((from, Bound::Unbounded));
        let own = own.map(|(key, pending)| (&**key, pending.value()));
        let stored =
            self.engine.index().range(from).map(|(key, entry)| (key, Some(self.engine.value(entry))));
        visit_while(prefix, Merge { over: own.peekable(), under: stored.peekable() }, visit);
    }

    /// Makes all changes so far permanent, as one record, and begins anew. Returns the number of the last commit, which is a new one only
    /// if there was a change. What was handed out before stays good.
    ///
    /// # Errors
    /// [`StateError::NoSpace`], [`StateError::LogFull`] (nothing was written), [`StateError::Io`] and then for ever
    /// [`StateError::Poisoned`].
    pub fn commit(&mut self) -> Result<u64, StateError> {
        let seq = self.engine.append(&mut self.writes, &mut self.retirement)?;
        self.hidden = 0;
        self.added = 0;
        Ok(seq)
    }

    /// Forgets all changes since the last commit. What was handed out before stays good.
    pub fn abort(&mut self) {
        self.retirement.overwritten.extend(std::mem::take(&mut self.writes).into_values());
        self.hidden = 0;
        self.added = 0;
    }

    /// Number of the last commit; 0 before the first.
    pub fn commit_number(&self) -> u64 {
        self.engine.commit_number()
    }

    fn keep(&mut self, key: &[u8], pending: Pending) {
        self.pinned += pending.part.len() as u64;
        self.added += pending.cost();
        match self.writes.get_mut(key) {
            Some(place) => {
                let old = std::mem::replace(place, pending);
                self.added -= old.cost();
                self.retirement.overwritten.push(old);
            }
            None => {
                self.hidden += self.stored_cost(key);
                self.writes.insert(key.into(), pending);
            }
        }
    }

    fn stored_cost(&self, key: &[u8]) -> u64 {
        self.engine.index().get(key).map_or(0, |entry| cost(key, entry))
    }

    /// Both the state after this transaction and the memory that it pins must fit.
    fn check_quota(&self, key: &[u8], more: u64) -> Result<(), StateError> {
        let replaced = self.writes.get(key).map(Pending::cost);
        let hidden = self.hidden + if replaced.is_none() { self.stored_cost(key) } else { 0 };
        let added = self.added - replaced.unwrap_or(0);
        let live = (self.engine.index().live_bytes() - hidden).saturating_add(added).saturating_add(more);
        let needed = live.max(self.pinned.saturating_add(more));
        let quota = self.engine.quota();
        if needed > quota { Err(StateError::QuotaExceeded { needed, quota }) } else { Ok(()) }
    }
}

/// Reads of what is committed. Any number at once; the engine does not change while one lives.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'e> {
    engine: &'e Engine,
}

impl<'e> Reader<'e> {
    pub(crate) fn new(engine: &'e Engine) -> Reader<'e> {
        Reader { engine }
    }

    /// The object under `key`.
    pub fn get(&self, key: &[u8]) -> Option<Value<'e>> {
        self.engine.index().get(key).map(|entry| self.engine.value(entry))
    }

    /// As [`Transaction::scan`].
    pub fn scan<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        visit: impl FnMut(&'s [u8], Value<'s>) -> ControlFlow<()>,
    ) {
        let index: &'s Index = self.engine.index();
        let stored =
            index.range(begin_of(prefix, after)).map(|(key, entry)| (key, Some(self.engine.value(entry))));
        visit_while(prefix, stored, visit);
    }

    /// Number of the last commit; 0 before the first.
    pub fn commit_number(&self) -> u64 {
        self.engine.commit_number()
    }
}

fn begin_of<'a>(prefix: &'a [u8], after: Option<&'a [u8]>) -> Bound<&'a [u8]> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}

fn visit_while<'s>(
    prefix: &[u8],
    objects: impl Iterator<Item = (&'s [u8], Option<Value<'s>>)>,
    mut visit: impl FnMut(&'s [u8], Value<'s>) -> ControlFlow<()>,
) {
    for (key, value) in objects.take_while(|(key, _)| key.starts_with(prefix)) {
        if let Some(value) = value
            && visit(key, value).is_break()
        {
            return;
        }
    }
}

/// Two ordered sequences as one; where both have a key, `over` counts.
struct Merge<O: Iterator, U: Iterator> {
    over: std::iter::Peekable<O>,
    under: std::iter::Peekable<U>,
}

impl<'s, V, O, U> Iterator for Merge<O, U>
where
    O: Iterator<Item = (&'s [u8], V)>,
    U: Iterator<Item = (&'s [u8], V)>,
{
    type Item = (&'s [u8], V);

    fn next(&mut self) -> Option<(&'s [u8], V)> {
        let (Some((over, _)), Some((under, _))) = (self.over.peek(), self.under.peek()) else {
            return self.over.next().or_else(|| self.under.next());
        };
        if over == under {
            self.under.next();
            return self.over.next();
        }
        if over < under { self.over.next() } else { self.under.next() }
    }
}
