//! One invocation as the SDK knows it, below what functions see of it.
//!
//! It owns what lasts as long as the invocation: which records are being edited, what failed where no error could be
//! returned, and records that were migrated without being written. Records are read as a type only here, so that
//! the rule is in one place: with the fingerprint that they were written with, or after a migration from it.

use crate::error::{Error, ErrorKind, Result};
use crate::layout::StateType;
use crate::migration::Ways;
use crate::record::{KeyInfo, Record, show, type_changed};
use denizen_abi::{
    Concurrency, DZ_E_NOT_FOUND, DZ_NO_DEADLINE, DZ_OK, DzCall, DzCallInfo, DzHost, DzKeyInfo, DzSlice,
    DzValue,
};
use rkyv::util::AlignedVec;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;

/// The longest key, in bytes. The shortest has one.
pub const MAX_KEY_BYTES: usize = 1024;

/// Records in a newer layout than they have in the state, by key, address and new fingerprint.
type Migrated = BTreeMap<(Box<[u8]>, usize, u64), AlignedVec>;

/// An invocation. Lives on the stack of the entry.
pub(crate) struct Call {
    pub(crate) host: &'static DzHost,
    pub(crate) raw: *mut DzCall,
    info: OnceCell<DzCallInfo>,
    /// Keys that an [`Edit`] is alive for, or that an update is at.
    open: RefCell<Vec<Box<[u8]>>>,
    /// What failed where no error could be returned, in a destructor.
    fault: RefCell<Option<Error>>,
    /// Likewise for a write, which a savepoint can take back.
    lost: RefCell<Option<Error>>,
    /// How many savepoints are open.
    pub(crate) savepoints: Cell<usize>,
    /// Nothing is ever taken out.
    migrated: RefCell<Migrated>,
}

impl Call {
    /// # Safety
    /// `raw` is an invocation of `host` on this thread, and lives longer than the `Call`.
    pub(crate) unsafe fn new(host: &'static DzHost, raw: *mut DzCall) -> Call {
        Call {
            host,
            raw,
            info: OnceCell::new(),
            open: RefCell::default(),
            fault: RefCell::default(),
            lost: RefCell::default(),
            savepoints: Cell::new(0),
            migrated: RefCell::default(),
        }
    }

    pub(crate) fn read_info(&self) -> DzCallInfo {
        let mut info = DzCallInfo {
            size: size_of_u32::<DzCallInfo>(),
            concurrency: 0,
            process: DzSlice::EMPTY,
            app: DzSlice::EMPTY,
            invocation: DzSlice::EMPTY,
            content_type: DzSlice::EMPTY,
            function: DzSlice::EMPTY,
            epoch: 0,
            deadline_ms: DZ_NO_DEADLINE,
            traceparent: DzSlice::EMPTY,
        };
        // SAFETY: `raw` is alive (see `new`), and `info` is writable and says its size.
        unsafe { (self.host.call_info)(self.raw, &raw mut info) };
        info
    }

    pub(crate) fn info(&self) -> &DzCallInfo {
        self.info.get_or_init(|| self.read_info())
    }

    pub(crate) fn put(&self, key: &[u8], fingerprint: u64, value: &[u8]) -> Result<()> {
        check_key(key)?;
        // SAFETY: `raw` is alive, and the host copies key and value before it returns.
        let status =
            unsafe { (self.host.state_put)(self.raw, DzSlice::new(key), fingerprint, DzSlice::new(value)) };
        self.check(status, || format!("writing the record `{}`", show(key)))
    }

    pub(crate) fn find(&self, key: &[u8]) -> Result<Option<Record<'_>>> {
        check_key(key)?;
        let mut value = EMPTY_VALUE;
        // SAFETY: `raw` is alive, the host copies what it needs of the key, and `value` is writable.
        let status = unsafe { (self.host.state_get)(self.raw, DzSlice::new(key), &raw mut value) };
        if status == DZ_E_NOT_FOUND {
            return Ok(None);
        }
        self.check(status, || format!("reading the record `{}`", show(key)))?;
        // SAFETY: the host has just filled it in, for this invocation.
        Ok(Some(unsafe { Record::new(value) }))
    }

    /// A record as an archived `T`, migrated if it is of an older layout.
    pub(crate) fn read<'call, T: StateType>(
        &'call self,
        key: &[u8],
        record: Record<'call>,
    ) -> Result<&'call T::Archived> {
        let (found, wanted) = (record.fingerprint(), T::fingerprint());
        if found == wanted {
            return record.archived::<T>(key);
        }
        if !Ways::known().lead(found, wanted) {
            return Err(type_changed::<T>(key, found));
        }
        self.migrate::<T>(key, record)
    }

    fn migrate<T: StateType>(&self, key: &[u8], old: Record<'_>) -> Result<&T::Archived> {
        let (from, to) = (old.fingerprint(), T::fingerprint());
        // Only what is there now may be replaced: a scan may have shown what has been written since.
        if self.may_write(key) && self.find(key)?.is_some_and(|now| now.is(&old)) {
            self.put(key, to, &Ways::known().run(key, old.bytes(), from, to)?)?;
            let now = self.find(key)?.ok_or_else(|| type_changed::<T>(key, from))?;
            return now.archived::<T>(key);
        }
        let place = (Box::from(key), old.bytes().as_ptr().addr(), to);
        if !self.migrated.borrow().contains_key(&place) {
            let new = Ways::known().run(key, old.bytes(), from, to)?;
            self.migrated.borrow_mut().insert(place.clone(), new);
        }
        let migrated = self.migrated.borrow();
        let bytes = migrated.get(&place).map_or(&[][..], |bytes| bytes);
        // SAFETY: the bytes are on the heap, aligned to 16, and stay there unchanged as long as this call: nothing is taken
        // out of the map.
        let record = unsafe { Record::of(std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()), to) };
        record.archived::<T>(key)
    }

    /// Whether this invocation may write, and no edit of the record is alive.
    fn may_write(&self, key: &[u8]) -> bool {
        self.info().concurrency != Concurrency::ReadOnly.as_u32() && self.refuse_if_open(key).is_ok()
    }

    pub(crate) fn key_info(&self, key: &[u8]) -> Result<Option<KeyInfo>> {
        check_key(key)?;
        let size = size_of_u32::<DzKeyInfo>();
        let mut info = DzKeyInfo { size, _pad: 0, len: 0, fingerprint: 0, version: 0, time_ms: 0 };
        // SAFETY: `raw` is alive, the host copies what it needs of the key, and `info` is writable and says its size.
        let status = unsafe { (self.host.state_info)(self.raw, DzSlice::new(key), &raw mut info) };
        if status == DZ_E_NOT_FOUND {
            return Ok(None);
        }
        self.check(status, || format!("looking at the record `{}`", show(key)))?;
        Ok(Some(KeyInfo::of(&info)))
    }

    pub(crate) fn check(&self, status: i32, what: impl FnOnce() -> String) -> Result<()> {
        if status == DZ_OK { Ok(()) } else { Err(Error::from_status(status, what())) }
    }

    /// Notes that `key` is being edited, unless it is already.
    pub(crate) fn open_edit(&self, key: &[u8]) -> Result<()> {
        self.refuse_if_open(key)?;
        self.open.borrow_mut().push(key.into());
        Ok(())
    }

    pub(crate) fn close_edit(&self, key: &[u8]) {
        self.open.borrow_mut().retain(|open| **open != *key);
    }

    pub(crate) fn refuse_if_open(&self, key: &[u8]) -> Result<()> {
        if self.open.borrow().iter().any(|open| **open == *key) {
            let message = format!("the record `{}` is being edited: drop that edit first", show(key));
            return Err(Error::new(ErrorKind::InUse, message));
        }
        Ok(())
    }

    /// Remembers a failure that no result could carry; the first one counts.
    pub(crate) fn set_fault(&self, error: Error) {
        self.fault.borrow_mut().get_or_insert(error);
    }

    /// As [`set_fault`](Call::set_fault), for a write that did not happen: a savepoint around it takes that back.
    pub(crate) fn lose(&self, error: Error) {
        self.lost.borrow_mut().get_or_insert(error);
    }

    /// Says that what was lost since a savepoint has been taken back, and whether anything is still being edited.
    pub(crate) fn forget_lost(&self) -> Result<()> {
        self.lost.take();
        self.nothing_open()
    }

    /// Fails if a write was lost: on the way out of the function, or where it counts on what was written.
    pub(crate) fn settle(&self) -> Result<()> {
        for failed in [&self.fault, &self.lost] {
            if let Some(error) = &*failed.borrow() {
                return Err(error.clone());
            }
        }
        self.nothing_open()
    }

    fn nothing_open(&self) -> Result<()> {
        match self.open.borrow().first() {
            None => Ok(()),
            Some(key) => {
                let message =
                    format!("the record `{}` is still being edited; drop the edit first", show(key));
                Err(Error::new(ErrorKind::InUse, message))
            }
        }
    }
}

/// The host would refuse the key too, but cannot say so clearly.
pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    match key.len() {
        1..=MAX_KEY_BYTES => Ok(()),
        0 => Err(Error::new(ErrorKind::BadKey, "the key is empty: a key has at least one byte")),
        len => Err(Error::new(
            ErrorKind::BadKey,
            format_args!(
                "the key `{}` has {len} bytes, and {MAX_KEY_BYTES} are allowed: use a hash of it, or put the rest into the record",
                show(key)
            ),
        )),
    }
}

const EMPTY_VALUE: DzValue =
    DzValue { ptr: std::ptr::null(), len: 0, fingerprint: 0, version: 0, validated: std::ptr::null_mut() };

/// The size of a struct of the contract, for its `size` field.
pub(crate) const fn size_of_u32<T>() -> u32 {
    assert!(size_of::<T>() < 4096);
    #[expect(clippy::cast_possible_truncation, reason = "the line above bounds it")]
    {
        size_of::<T>() as u32
    }
}
