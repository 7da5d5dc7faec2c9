//! Records between Rust values and the bytes that the host keeps.

use crate::call::Call;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::StateType;
use denizen_abi::{DzKeyInfo, DzValue};
use rkyv::rancor;
use rkyv::util::AlignedVec;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An empty archive needs an aligned address all the same, because a type of size 0 can have any alignment.
#[repr(align(16))]
struct AlignedNothing;
static NOTHING: AlignedNothing = AlignedNothing;

/// A record as the host handed it out, during the invocation `'call`.
#[derive(Clone, Copy)]
pub(crate) struct Record<'call> {
    value: DzValue,
    _call: PhantomData<&'call [u8]>,
}

impl<'call> Record<'call> {
    /// # Safety
    /// `value` was filled in by the host during the invocation `'call`.
    pub(crate) unsafe fn new(value: DzValue) -> Record<'call> {
        Record { value, _call: PhantomData }
    }

    /// # Safety
    /// `bytes` lie at a multiple of 16, unless there are none.
    pub(crate) unsafe fn of(bytes: &'call [u8], fingerprint: u64) -> Record<'call> {
        let (ptr, len, validated) = (bytes.as_ptr(), bytes.len(), std::ptr::null_mut());
        Record { value: DzValue { ptr, len, fingerprint, version: 0, validated }, _call: PhantomData }
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.value.fingerprint
    }

    /// Whether these are the very same bytes.
    pub(crate) fn is(&self, other: &Record<'_>) -> bool {
        let place = |record: &Record<'_>| (record.value.ptr, record.value.len, record.value.fingerprint);
        place(self) == place(other)
    }

    pub(crate) fn bytes(&self) -> &'call [u8] {
        if self.value.len == 0 {
            let nothing = std::ptr::from_ref(&NOTHING).cast::<u8>();
            // SAFETY: no bytes, at an address that is not null.
            return unsafe { std::slice::from_raw_parts(nothing, 0) };
        }
        // SAFETY: the host promises these bytes, unchanged, until the entry returns, and `'call` ends before
        // that.
        unsafe { std::slice::from_raw_parts(self.value.ptr, self.value.len) }
    }

    /// The record as an archived `T`, in place. It is never read as a type with another fingerprint.
    pub(crate) fn archived<T: StateType>(&self, key: &[u8]) -> Result<&'call T::Archived> {
        if self.value.fingerprint != T::fingerprint() {
            return Err(type_changed::<T>(key, self.value.fingerprint));
        }
        // SAFETY: the cell is null or the host's, 4-byte aligned, for as long as the process runs.
        let validated = unsafe { self.value.validated.as_ref() }.map(|_| {
            // SAFETY: as above, and all access to it is atomic.
            unsafe { AtomicU32::from_ptr(self.value.validated) }
        });
        if validated.is_some_and(|cell| cell.load(Ordering::Acquire) == 1) {
            // SAFETY: these very bytes were found valid as a type with this fingerprint, and committed bytes
            // never change.
            return Ok(unsafe { rkyv::access_unchecked::<T::Archived>(self.bytes()) });
        }
        let archived = rkyv::access::<T::Archived, rancor::Error>(self.bytes()).map_err(|error| {
            Error::new(ErrorKind::Corrupt, format!("the record `{}` is damaged: {error}", show(key)))
        })?;
        if let Some(cell) = validated {
            cell.store(1, Ordering::Release);
        }
        Ok(archived)
    }
}

/// The bytes of a record.
pub(crate) fn archive<T: StateType>(value: &T) -> Result<AlignedVec> {
    rkyv::to_bytes::<rancor::Error>(value).map_err(|error| Error::new(ErrorKind::Failed, error))
}

/// A value from its archived form.
pub(crate) fn restore<T: StateType>(archived: &T::Archived) -> Result<T> {
    rkyv::deserialize::<T, rancor::Error>(archived).map_err(|error| Error::new(ErrorKind::Failed, error))
}

pub(crate) fn type_changed<T: StateType>(key: &[u8], found: u64) -> Error {
    let key = show(key);
    let message = if found == 0 {
        format!("the record `{key}` holds raw bytes, not a `{}`; read it with `get_bytes`", T::layout())
    } else {
        format!(
            "the record `{key}` was written with another layout than `{}`, and no #[migrate] function leads from that one \
             to this; add one, go back to the plugin that wrote it, or delete or overwrite the record",
            T::layout()
        )
    };
    Error::new(ErrorKind::TypeChanged, message)
}

/// Bytes of a key that messages show.
const SHOWN_BYTES: usize = 64;

/// A key for people.
pub(crate) fn show(key: &[u8]) -> impl fmt::Display {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match key.get(..SHOWN_BYTES) {
        Some(begin) if key.len() > SHOWN_BYTES => format!("{}… ({} bytes)", text(begin), key.len()),
        _ => text(key),
    }
}

/// One record of a [`Context::scan`](crate::Context::scan), as it was then.
pub struct Entry<'call> {
    call: &'call Call,
    key: Box<[u8]>,
    record: Record<'call>,
}

impl<'call> Entry<'call> {
    pub(crate) fn new(call: &'call Call, key: &[u8], record: Record<'call>) -> Entry<'call> {
        Entry { call, key: key.into(), record }
    }

    /// The record's key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The record's key as text, if it is UTF-8.
    #[must_use]
    pub fn key_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.key).ok()
    }

    /// The record read in place; one of an older layout is migrated first, as for
    /// [`Context::get`](crate::Context::get).
    ///
    /// # Errors
    /// [`ErrorKind::TypeChanged`] if it was written as another type, or cannot be migrated.
    pub fn get<T: StateType>(&self) -> Result<&'call T::Archived> {
        self.call.read::<T>(&self.key, self.record)
    }

    /// The record's bytes, whatever it was written as.
    #[must_use]
    pub fn bytes(&self) -> &'call [u8] {
        self.record.bytes()
    }
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", show(&self.key), self.record.bytes().len())
    }
}

/// What is known of a record without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Its length in bytes.
    pub len: u64,
    /// Fingerprint of the layout that it was written with; 0 for raw bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it; 0 if it was this invocation, which has not committed it yet.
    pub version: u64,
    /// When that commit was, to the millisecond; `None` as long as it is not committed.
    pub written: Option<SystemTime>,
}

impl KeyInfo {
    pub(crate) fn of(info: &DzKeyInfo) -> KeyInfo {
        let DzKeyInfo { len, fingerprint, version, time_ms, .. } = *info;
        let written = (time_ms != 0).then(|| UNIX_EPOCH + Duration::from_millis(time_ms));
        KeyInfo { len, fingerprint, version, written }
    }

    /// Whether the record has the layout of `T` as it is in this plugin.
    #[must_use]
    pub fn is<T: StateType>(&self) -> bool {
        self.fingerprint == T::fingerprint()
    }
}

/// One key of [`Context::keys`](crate::Context::keys).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    key: Box<[u8]>,
    info: KeyInfo,
}

impl Key {
    pub(crate) fn new(key: &[u8], info: KeyInfo) -> Key {
        Key { key: key.into(), info }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key as text, if it is UTF-8.
    #[must_use]
    pub fn key_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.key).ok()
    }

    /// What is known of its record.
    #[must_use]
    pub fn info(&self) -> KeyInfo {
        self.info
    }
}
