//! State in memory: what is committed, and a transaction over it. It keeps the rules of a node's engine, as far as a
//! function can tell: a snapshot, own writes over it, conflicts by version, savepoints, a quota that comes first.

use denizen_abi::{
    DZ_E_CONFLICT, DZ_E_CORRUPT, DZ_E_INVALID, DZ_E_NO_SPACE, DZ_E_NOT_FOUND, DZ_E_QUOTA, DZ_E_TOO_LARGE,
    Durability,
};
use rkyv::util::AlignedVec;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A version of a record.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) bytes: Rc<AlignedVec>,
    pub(super) fingerprint: u64,
    /// 0 as long as it is not committed.
    pub(super) version: u64,
    pub(super) time_ms: u64,
    pub(super) validated: Option<&'static Cell<u32>>,
}

pub(super) type Records = BTreeMap<Vec<u8>, Found>;

pub(super) fn bytes_of(records: &Records) -> usize {
    records.iter().map(|(key, found)| key.len() + found.bytes.len()).sum()
}

/// What a process keeps.
pub(super) struct Store {
    pub(super) records: Records,
    pub(super) commits: u64,
    /// The last commit that was asked to survive a crash of the machine.
    pub(super) durable: u64,
    pub(super) limit_bytes: usize,
    pub(super) damaged: BTreeSet<Vec<u8>>,
    pub(super) disk_full: bool,
    /// How often files were kept; `None` if there are none.
    pub(super) files: Option<u64>,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            records: Records::new(),
            commits: 0,
            durable: 0,
            limit_bytes: usize::MAX,
            damaged: BTreeSet::new(),
            disk_full: false,
            files: None,
        }
    }
}

/// What a transaction does to a key.
#[derive(Clone)]
enum Change {
    /// Nothing; but another change of it is a conflict.
    Watch,
    Set(Found),
    Remove,
}

type Changes = BTreeMap<Vec<u8>, Change>;

/// A snapshot with changes of its own.
pub(super) struct Transaction {
    store: Rc<RefCell<Store>>,
    snapshot: Records,
    changes: Changes,
    /// The changes as they were when each savepoint began.
    savepoints: Vec<Changes>,
    /// Keeps what the function was handed, whatever happens to its key.
    handed_out: Vec<Rc<AlignedVec>>,
}

/// # Errors
/// The status for a key that cannot be one.
pub(super) fn check_key(key: &[u8]) -> Result<(), i32> {
    match key.len() {
        0 => Err(DZ_E_INVALID),
        1..=crate::MAX_KEY_BYTES => Ok(()),
        _ => Err(DZ_E_TOO_LARGE),
    }
}

impl Transaction {
    pub(super) fn new(store: &Rc<RefCell<Store>>) -> Transaction {
        Transaction {
            store: Rc::clone(store),
            snapshot: store.borrow().records.clone(),
            changes: Changes::new(),
            savepoints: Vec::new(),
            handed_out: Vec::new(),
        }
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<Found> {
        match self.changes.get(key) {
            Some(Change::Set(found)) => Some(found.clone()),
            Some(Change::Remove) => None,
            Some(Change::Watch) | None => self.snapshot.get(key).cloned(),
        }
    }

    /// A record to hand out.
    pub(super) fn read(&mut self, key: &[u8]) -> Result<Found, i32> {
        check_key(key)?;
        let found = self.find(key).ok_or(DZ_E_NOT_FOUND)?;
        if found.version != 0 && self.store.borrow().damaged.contains(key) {
            return Err(DZ_E_CORRUPT);
        }
        self.handed_out.push(Rc::clone(&found.bytes));
        Ok(found)
    }

    /// The keys with `prefix` that come after `after`.
    pub(super) fn keys(&self, prefix: &[u8], after: &[u8]) -> Vec<Vec<u8>> {
        let from = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let seen = self.seen();
        let keys = seen.range::<[u8], _>((from, Bound::Unbounded)).map(|(key, _)| key.clone());
        keys.take_while(|key| key.starts_with(prefix))
            .filter(|key| after.is_empty() || **key > *after)
            .collect()
    }

    /// The snapshot with the changes.
    fn seen(&self) -> Records {
        let mut records = self.snapshot.clone();
        for (key, change) in &self.changes {
            match change {
                Change::Set(found) => records.insert(key.clone(), found.clone()),
                Change::Remove => records.remove(key),
                Change::Watch => continue,
            };
        }
        records
    }

    pub(super) fn put(&mut self, key: &[u8], fingerprint: u64, value: &[u8]) -> Result<(), i32> {
        check_key(key)?;
        let mut bytes = AlignedVec::new();
        bytes.extend_from_slice(value);
        let found = Found { bytes: Rc::new(bytes), fingerprint, version: 0, time_ms: 0, validated: None };
        self.change(key, Change::Set(found))
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> Result<(), i32> {
        check_key(key)?;
        if self.find(key).is_none() {
            self.watch(key)?;
            return Err(DZ_E_NOT_FOUND);
        }
        self.change(key, Change::Remove)
    }

    pub(super) fn watch(&mut self, key: &[u8]) -> Result<(), i32> {
        check_key(key)?;
        self.changes.entry(key.to_vec()).or_insert(Change::Watch);
        Ok(())
    }

    /// A copy of a record to be changed in place: where, and how long.
    pub(super) fn update(&mut self, key: &[u8]) -> Result<(*mut u8, usize), i32> {
        if self.own(key).is_none() {
            self.watch(key)?;
            let found = self.read(key)?;
            self.put(key, found.fingerprint, &found.bytes)?;
        }
        let own = self.own(key).ok_or(DZ_E_NOT_FOUND)?;
        Ok((own.as_mut_ptr(), own.len()))
    }

    /// The bytes of a record that this transaction has written, if nobody was handed them and no savepoint needs them.
    fn own(&mut self, key: &[u8]) -> Option<&mut AlignedVec> {
        match self.changes.get_mut(key) {
            Some(Change::Set(found)) => Rc::get_mut(&mut found.bytes),
            Some(Change::Remove | Change::Watch) | None => None,
        }
    }

    fn change(&mut self, key: &[u8], change: Change) -> Result<(), i32> {
        let before = self.changes.insert(key.to_vec(), change);
        if bytes_of(&self.seen()) <= self.store.borrow().limit_bytes {
            return Ok(());
        }
        match before {
            Some(before) => self.changes.insert(key.to_vec(), before),
            None => self.changes.remove(key),
        };
        Err(DZ_E_QUOTA)
    }

    pub(super) fn savepoint(&mut self) -> u64 {
        self.savepoints.push(self.changes.clone());
        self.savepoints.len() as u64
    }

    pub(super) fn roll_back(&mut self, id: u64) -> Result<(), i32> {
        let mut before = self.end_savepoint(id)?;
        for key in std::mem::take(&mut self.changes).into_keys() {
            // That it was looked at stays known: the function may have decided by what it saw.
            before.entry(key).or_insert(Change::Watch);
        }
        self.changes = before;
        Ok(())
    }

    pub(super) fn release(&mut self, id: u64) -> Result<(), i32> {
        self.end_savepoint(id).map(drop)
    }

    fn end_savepoint(&mut self, id: u64) -> Result<Changes, i32> {
        let at = usize::try_from(id).ok().and_then(|id| id.checked_sub(1)).ok_or(DZ_E_INVALID)?;
        let before = self.savepoints.get(at).cloned().ok_or(DZ_E_INVALID)?;
        self.savepoints.truncate(at);
        Ok(before)
    }

    /// Makes the changes permanent and begins anew. If it fails they are still there.
    pub(super) fn commit(&mut self) -> Result<u64, i32> {
        let mut store = self.store.borrow_mut();
        let version = |records: &Records, key| records.get(key).map(|found| found.version);
        if self.changes.keys().any(|key| version(&store.records, key) != version(&self.snapshot, key)) {
            return Err(DZ_E_CONFLICT);
        }
        if self.changes.values().any(|change| !matches!(change, Change::Watch)) {
            if store.disk_full {
                return Err(DZ_E_NO_SPACE);
            }
            store.publish(std::mem::take(&mut self.changes));
        }
        self.snapshot = store.records.clone();
        let commits = store.commits;
        drop(store);
        self.changes.clear();
        self.savepoints.clear();
        Ok(commits)
    }

    pub(super) fn make_durable(&self, commit: u64, durability: Durability) {
        if durability == Durability::Node {
            let mut store = self.store.borrow_mut();
            store.durable = store.durable.max(commit.min(store.commits));
        }
    }

    pub(super) fn sync_files(&self) -> Result<(), i32> {
        let mut store = self.store.borrow_mut();
        store.files = Some(store.files.ok_or(DZ_E_INVALID)? + 1);
        Ok(())
    }
}

impl Store {
    fn publish(&mut self, changes: Changes) {
        self.commits += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for (key, change) in changes {
            self.damaged.remove(&key);
            match change {
                Change::Set(found) => {
                    let committed = Found {
                        version: self.commits,
                        time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
                        // One cell per version, for as long as the program runs, as the contract says.
                        validated: Some(Box::leak(Box::new(Cell::new(0)))),
                        ..found
                    };
                    self.records.insert(key, committed);
                }
                Change::Remove => drop(self.records.remove(&key)),
                Change::Watch => {}
            }
        }
    }
}
