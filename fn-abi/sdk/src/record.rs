//! Records between Rust values and the bytes that the host keeps.

use crate::error::{Error, ErrorKind, Result};
use crate::layout::StateType;
use denizen_abi::DzValue;
use rkyv::rancor;
use rkyv::util::AlignedVec;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

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

    /// The record as an archived `T`, in place.
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
            Error::new(ErrorKind::Internal, format!("the record `{}` is damaged: {error}", show(key)))
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

fn type_changed<T: StateType>(key: &[u8], found: u64) -> Error {
    let key = show(key);
    let message = if found == 0 {
        format!("the record `{key}` holds raw bytes, not a `{}`; read it with `get_bytes`", T::layout())
    } else {
        format!(
            "the record `{key}` was written with another layout than `{}`; go back to the plugin that wrote it, or \
             delete or overwrite the record",
            T::layout()
        )
    };
    Error::new(ErrorKind::TypeChanged, message)
}

/// A key for people.
pub(crate) fn show(key: &[u8]) -> impl fmt::Display {
    String::from_utf8_lossy(key).into_owned()
}

/// One record of a [`Context::scan`](crate::Context::scan).
pub struct Entry<'call> {
    key: Box<[u8]>,
    record: Record<'call>,
}

impl<'call> Entry<'call> {
    pub(crate) fn new(key: &[u8], record: Record<'call>) -> Entry<'call> {
        Entry { key: key.into(), record }
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

    /// The record read in place.
    ///
    /// # Errors
    /// [`ErrorKind::TypeChanged`] if it was written as another type.
    pub fn get<T: StateType>(&self) -> Result<&'call T::Archived> {
        self.record.archived::<T>(&self.key)
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
