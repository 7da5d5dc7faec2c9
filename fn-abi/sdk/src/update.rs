//! Changing a record where it lies, without making a value of it.

use crate::call::Call;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::StateType;
use crate::record::{KeyInfo, show};
use denizen_abi::{BUFFER_ALIGN, DZ_E_NOT_FOUND, DzSlice};
use rkyv::rancor;
use rkyv::seal::Seal;

/// What [`Context::update`] does.
pub(crate) fn run<T: StateType, R>(
    cx: &Context<'_>,
    key: &[u8],
    change: impl FnOnce(Seal<'_, T::Archived>) -> R,
) -> Result<Option<R>> {
    let call = cx.call();
    call.refuse_if_open(key)?;
    // A committed record is validated where it lies, once for all who read it, and the copy is as valid. One that this
    // invocation has written is not looked at before: then the host would have to copy it.
    let own = is_now::<T>(call, key, |info| info.version == 0)?;
    if !own && cx.get::<T>(key)?.is_some() && !is_now::<T>(call, key, |_| true)? {
        return Err(Error::new(
            ErrorKind::InUse,
            format_args!("the record `{}` changed meanwhile", show(key)),
        ));
    }
    let Some(bytes) = private_copy(call, key)? else { return Ok(None) };
    // SAFETY: the host gives these bytes to this invocation alone, until it next writes the key or ends the transaction; it
    // does neither before `change` has returned, because that has no context and the key counts as being edited.
    let bytes = unsafe { &mut *bytes };
    let sealed = if own {
        rkyv::access_mut::<T::Archived, rancor::Error>(bytes).map_err(|error| damaged(key, &error))?
    } else {
        // SAFETY: `get` has found the record to be a valid `T`, or made it one, it still is, and this is a copy of it.
        unsafe { rkyv::access_unchecked_mut::<T::Archived>(bytes) }
    };
    let changing = Changing::begin(call, key)?;
    let result = change(sealed);
    drop(changing);
    Ok(Some(result))
}

/// Whether the state has a `T` under `key` of which `so` is true.
fn is_now<T: StateType>(call: &Call, key: &[u8], so: impl FnOnce(KeyInfo) -> bool) -> Result<bool> {
    Ok(call.key_info(key)?.is_some_and(|info| info.is::<T>() && so(info)))
}

/// The host's copy of a record for this invocation; `None` if there is no record.
fn private_copy(call: &Call, key: &[u8]) -> Result<Option<*mut [u8]>> {
    let (mut start, mut len) = (std::ptr::null_mut(), 0);
    let name = DzSlice::new(key);
    // SAFETY: `raw` is alive, the host copies what it needs of the key, and both variables are writable.
    let status = unsafe { (call.host.state_update)(call.raw, name, &raw mut start, &raw mut len) };
    if status == DZ_E_NOT_FOUND {
        return Ok(None);
    }
    call.check(status, || format!("changing the record `{}`", show(key)))?;
    if len == 0 {
        // Not null, and aligned for any type of size 0.
        start = std::ptr::without_provenance_mut(BUFFER_ALIGN);
    }
    Ok(Some(std::ptr::slice_from_raw_parts_mut(start, len)))
}

fn damaged(key: &[u8], error: &rancor::Error) -> Error {
    Error::new(ErrorKind::Corrupt, format_args!("the record `{}` is damaged: {error}", show(key)))
}

/// A record while it is being changed: nobody else may look at it.
struct Changing<'a> {
    call: &'a Call,
    key: &'a [u8],
}

impl<'a> Changing<'a> {
    fn begin(call: &'a Call, key: &'a [u8]) -> Result<Changing<'a>> {
        call.open_edit(key)?;
        Ok(Changing { call, key })
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.call.close_edit(self.key);
        if std::thread::panicking() {
            let message = format!("a panic interrupted the update of the record `{}`", show(self.key));
            self.call.lose(Error::new(ErrorKind::Failed, message));
        }
    }
}
