//! Changing a record as if it were an ordinary variable.

use crate::call::Call;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::StateType;
use crate::record::{archive, show};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// A record taken out for a change; [`Context::edit`](crate::Context::edit) gives it. It is written back when
/// it is dropped, if it was touched. If that fails (the quota is full, say) the invocation fails;
/// [`save`](Edit::save) lets the function see why.
///
/// While it is alive the record cannot be edited again, put or deleted, and nothing can be committed. A panic
/// discards it.
#[must_use = "it is written back when it is dropped"]
pub struct Edit<'call, T: StateType> {
    call: &'call Call,
    key: Box<[u8]>,
    value: T,
    touched: bool,
}

impl<'call, T: StateType> Edit<'call, T> {
    pub(crate) fn open(call: &'call Call, key: &[u8], value: T) -> Result<Edit<'call, T>> {
        call.open_edit(key)?;
        Ok(Edit { call, key: key.into(), value, touched: false })
    }

    /// Writes the record now.
    ///
    /// # Errors
    /// [`ErrorKind::Quota`], [`ErrorKind::TooLarge`]. The record is then as it was before the edit.
    pub fn save(mut self) -> Result<()> {
        let saved = self.write_back();
        self.touched = false;
        saved
    }

    /// Forgets the change.
    pub fn discard(mut self) {
        self.touched = false;
    }

    fn write_back(&self) -> Result<()> {
        if !self.touched {
            return Ok(());
        }
        let bytes =
            archive(&self.value).map_err(|e| e.context(format_args!("the record `{}`", show(&self.key))))?;
        self.call.put(&self.key, T::fingerprint(), &bytes)
    }
}

impl<T: StateType> Deref for Edit<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: StateType> DerefMut for Edit<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.touched = true;
        &mut self.value
    }
}

impl<T: StateType> Drop for Edit<'_, T> {
    fn drop(&mut self) {
        self.call.close_edit(&self.key);
        if self.touched && std::thread::panicking() {
            // The value may be half changed. If the function catches the panic it must not commit as if
            // nothing were lost.
            let message = format!("a panic interrupted the edit of the record `{}`", show(&self.key));
            self.call.lose(Error::new(ErrorKind::Failed, message));
        } else if let Err(error) = self.write_back() {
            self.call.lose(error);
        }
    }
}

impl<T: StateType + fmt::Debug> fmt::Debug for Edit<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
