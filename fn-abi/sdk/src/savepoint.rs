//! A piece of a transaction that can be taken back.

use crate::call::Call;
use crate::error::{Error, ErrorKind, Result};
use denizen_abi::DZ_OK;

/// An open savepoint. Unless it is released its writes are taken back, also when a panic drops it.
pub(crate) struct Savepoint<'call> {
    call: &'call Call,
    id: u64,
    open: bool,
}

impl<'call> Savepoint<'call> {
    pub(crate) fn begin(call: &'call Call) -> Result<Savepoint<'call>> {
        let mut id = 0;
        // SAFETY: `raw` is alive and `id` is writable.
        let status = unsafe { (call.host.savepoint)(call.raw, &raw mut id) };
        call.check(status, || "beginning a savepoint".to_owned())?;
        call.savepoints.set(call.savepoints.get() + 1);
        Ok(Savepoint { call, id, open: true })
    }

    /// Keeps what was written.
    pub(crate) fn release(mut self) -> Result<()> {
        self.end();
        // SAFETY: `raw` is alive.
        let status = unsafe { (self.call.host.release)(self.call.raw, self.id) };
        self.call.check(status, || "ending a savepoint".to_owned())
    }

    /// Takes back what was written.
    pub(crate) fn take_back(self) {
        drop(self);
    }

    fn end(&mut self) {
        self.open = false;
        self.call.savepoints.set(self.call.savepoints.get() - 1);
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        self.end();
        // SAFETY: `raw` is alive.
        let status = unsafe { (self.call.host.rollback)(self.call.raw, self.id) };
        if status != DZ_OK {
            self.call.set_fault(Error::from_status(status, "taking back a savepoint"));
        }
        // An edit that goes on would write what it read before everything was taken back.
        if let Err(error) = self.call.forget_lost() {
            self.call.set_fault(
                Error::new(ErrorKind::InUse, error.message()).context("a savepoint was taken back"),
            );
        }
    }
}
