//! A function's view of its invocation.
//!
//! Everything that the host hands out lives until the entry returns; in types, for the lifetime `'call`. A
//! function is generic over it, so nothing of the host can be put where it would outlive the call. The
//! context stays on its thread.

use crate::edit::Edit;
use crate::error::{Error, ErrorKind, Result};
use crate::input::FromInput;
use crate::layout::StateType;
use crate::record::{self, Entry, Record, show};
use crate::reply::{IntoReply, ReplyWriter};
use denizen_abi::{
    DZ_E_NOT_FOUND, DZ_NO_DEADLINE, DZ_OK, DzCall, DzCallInfo, DzHost, DzSlice, DzValue, LogLevel,
};
use std::cell::{OnceCell, RefCell};
use std::ffi::c_void;
use std::fmt;
use std::time::Duration;

/// One invocation as the SDK knows it. Lives on the stack of the entry.
pub(crate) struct Call {
    pub(crate) host: &'static DzHost,
    pub(crate) raw: *mut DzCall,
    info: OnceCell<DzCallInfo>,
    /// Keys that an [`Edit`] is alive for.
    open: RefCell<Vec<Box<[u8]>>>,
    /// What failed where no error could be returned, in a destructor.
    fault: RefCell<Option<Error>>,
}

impl Call {
    /// # Safety
    /// `raw` is an invocation of `host` on this thread, and lives longer than the `Call`.
    pub(crate) unsafe fn new(host: &'static DzHost, raw: *mut DzCall) -> Call {
        Call { host, raw, info: OnceCell::new(), open: RefCell::default(), fault: RefCell::default() }
    }

    fn read_info(&self) -> DzCallInfo {
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
        };
        // SAFETY: `raw` is alive (see `new`), and `info` is writable and says its size.
        unsafe { (self.host.call_info)(self.raw, &raw mut info) };
        info
    }

    pub(crate) fn info(&self) -> &DzCallInfo {
        self.info.get_or_init(|| self.read_info())
    }

    pub(crate) fn put(&self, key: &[u8], fingerprint: u64, value: &[u8]) -> Result<()> {
        // SAFETY: `raw` is alive, and the host copies key and value before it returns.
        let status =
            unsafe { (self.host.state_put)(self.raw, DzSlice::new(key), fingerprint, DzSlice::new(value)) };
        self.check(status, || format!("writing the record `{}`", show(key)))
    }

    pub(crate) fn find(&self, key: &[u8]) -> Result<Option<Record<'_>>> {
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

    fn refuse_if_open(&self, key: &[u8]) -> Result<()> {
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

    /// Fails if an edit was lost: on the way out of the function, or where it counts on what was edited.
    pub(crate) fn settle(&self) -> Result<()> {
        if let Some(fault) = &*self.fault.borrow() {
            return Err(fault.clone());
        }
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

/// What a function sees of its invocation: who calls, and the state of its process.
///
/// `&mut Context` makes the function exclusive, and lets it write; `&Context` makes it read-only. References
/// into the state and the input point to the host's memory, cost nothing, and stay valid until the function
/// returns, whatever is written meanwhile.
///
/// Keys are bytes, at least one of them; records lie and are scanned in the order of their keys' bytes.
pub struct Context<'call> {
    call: &'call Call,
}

impl<'call> Context<'call> {
    pub(crate) fn new(call: &'call Call) -> Context<'call> {
        Context { call }
    }

    pub(crate) fn call(&self) -> &'call Call {
        self.call
    }

    /// Name of the process.
    #[must_use]
    pub fn process(&self) -> &'call str {
        self.text(self.call.info().process)
    }

    /// Name of the application.
    #[must_use]
    pub fn app(&self) -> &'call str {
        self.text(self.call.info().app)
    }

    /// Id of this invocation; the log lines carry the same.
    #[must_use]
    pub fn invocation(&self) -> &'call str {
        self.text(self.call.info().invocation)
    }

    /// Name of the function, as the caller said it.
    #[must_use]
    pub fn function(&self) -> &'call str {
        self.text(self.call.info().function)
    }

    /// Content type of the input; empty if the caller gave none.
    #[must_use]
    pub fn content_type(&self) -> &'call str {
        self.text(self.call.info().content_type)
    }

    /// The ownership term that the process runs in.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.call.info().epoch
    }

    /// How much time is left; `None` if there is no deadline.
    #[must_use]
    pub fn deadline_remaining(&self) -> Option<Duration> {
        match self.call.read_info().deadline_ms {
            DZ_NO_DEADLINE => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    /// Whether the deadline has passed or the caller went away. Cheap; ask in long loops.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        // SAFETY: `raw` is alive for `'call`.
        unsafe { (self.call.host.cancelled)(self.call.raw) == 1 }
    }

    /// Writes a line to the log of the process. What the function prints goes there too, as it is.
    pub fn log(&self, level: LogLevel, line: impl fmt::Display) {
        let line = line.to_string();
        // SAFETY: `raw` is alive for `'call`, and the host copies the text.
        unsafe { (self.call.host.log)(self.call.raw, level.as_u32(), DzSlice::new(line.as_bytes())) };
    }

    /// The input, for functions that take none as a parameter. Waits until it is there.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] if it is no `T`; [`ErrorKind::TooLarge`]; [`ErrorKind::Closed`] if the caller
    /// broke it off.
    pub fn input<T: FromInput<'call>>(&self) -> Result<T> {
        T::from_input(self)
    }

    /// Gives the reply, for functions that do not return it. At most once.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`]; [`ErrorKind::Internal`] after another reply.
    pub fn reply(&self, reply: impl IntoReply) -> Result<()> {
        reply.into_reply(self)
    }

    /// Begins a reply that is sent piece by piece while the function runs. An error afterwards breaks it off.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] after another reply, or if `content_type` is no header value.
    pub fn reply_writer(&self, content_type: &str) -> Result<ReplyWriter<'call>> {
        ReplyWriter::begin(self.call, content_type)
    }

    /// Reads a record in place: the archived form of a `T`, in the host's memory. An [`Edit`] shows here once
    /// it is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::TypeChanged`] if it was written with another layout.
    pub fn get<T: StateType>(&self, key: impl AsRef<[u8]>) -> Result<Option<&'call T::Archived>> {
        let key = key.as_ref();
        self.call.find(key)?.map(|record| record.archived::<T>(key)).transpose()
    }

    /// The bytes of a record, whatever it was written as.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the node cannot read it.
    pub fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<&'call [u8]>> {
        Ok(self.call.find(key.as_ref())?.map(|record| record.bytes()))
    }

    /// The records whose keys begin with `prefix`, in the order of their keys. Copies the keys, not the
    /// records.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the node cannot read them.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<Entry<'call>>> {
        let prefix = prefix.as_ref();
        let mut found: Vec<Entry<'call>> = Vec::new();
        // SAFETY: `raw` is alive, the prefix and `found` outlive the call, and `collect` is what `ctx` is
        // meant for.
        let status = unsafe {
            let ctx = (&raw mut found).cast::<c_void>();
            (self.call.host.state_scan)(self.call.raw, DzSlice::new(prefix), collect, ctx)
        };
        self.call.check(status, || format!("scanning the records `{}…`", show(prefix)))?;
        Ok(found)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// [`ErrorKind::Quota`], [`ErrorKind::TooLarge`]; [`ErrorKind::InUse`] while an [`Edit`] of it is alive.
    pub fn put<T: StateType>(&mut self, key: impl AsRef<[u8]>, value: &T) -> Result<()> {
        self.call.refuse_if_open(key.as_ref())?;
        self.call.put(key.as_ref(), T::fingerprint(), &record::archive(value)?)
    }

    /// Writes a record of raw bytes.
    ///
    /// # Errors
    /// As for [`put`](Context::put).
    pub fn put_bytes(&mut self, key: impl AsRef<[u8]>, value: &[u8]) -> Result<()> {
        self.call.refuse_if_open(key.as_ref())?;
        self.call.put(key.as_ref(), 0, value)
    }

    /// Deletes a record, and says whether there was one.
    ///
    /// # Errors
    /// [`ErrorKind::Quota`]; [`ErrorKind::InUse`] while an [`Edit`] of it is alive.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> Result<bool> {
        let key = key.as_ref();
        self.call.refuse_if_open(key)?;
        // SAFETY: `raw` is alive, and the host copies what it needs of the key.
        let status = unsafe { (self.call.host.state_delete)(self.call.raw, DzSlice::new(key)) };
        if status == DZ_E_NOT_FOUND {
            return Ok(false);
        }
        self.call.check(status, || format!("deleting the record `{}`", show(key)))?;
        Ok(true)
    }

    /// A record as an ordinary value to change; it is written back when the guard is dropped. See [`Edit`].
    ///
    /// # Errors
    /// [`ErrorKind::TypeChanged`]; [`ErrorKind::InUse`] while another edit of the record is alive.
    pub fn edit<T: StateType>(&mut self, key: impl AsRef<[u8]>) -> Result<Option<Edit<'call, T>>> {
        let key = key.as_ref();
        self.get::<T>(key)?.map(|archived| Edit::open(self.call, key, record::restore(archived)?)).transpose()
    }

    /// As [`edit`](Context::edit), beginning with `T::default()` where there is no record. One that is not
    /// changed is not written.
    ///
    /// # Errors
    /// As for [`edit`](Context::edit).
    pub fn edit_or_default<T: StateType + Default>(
        &mut self,
        key: impl AsRef<[u8]>,
    ) -> Result<Edit<'call, T>> {
        let key = key.as_ref();
        match self.edit(key)? {
            Some(edit) => Ok(edit),
            None => Edit::open(self.call, key, T::default()),
        }
    }

    /// Commits what was written so far, for good, and begins the next transaction. Returns the number of the
    /// process's last commit. Exclusive functions only.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] while an [`Edit`] is alive; [`ErrorKind::Quota`]; [`ErrorKind::ReadOnly`].
    pub fn commit(&mut self) -> Result<u64> {
        self.call.settle()?;
        let mut seq = 0;
        // SAFETY: `raw` is alive and `seq` is writable.
        let status = unsafe { (self.call.host.commit)(self.call.raw, &raw mut seq) };
        self.call.check(status, || "committing".to_owned())?;
        Ok(seq)
    }

    fn text(&self, slice: DzSlice) -> &'call str {
        // SAFETY: the host promises these texts until the entry returns.
        std::str::from_utf8(unsafe { slice.as_bytes::<'call>() }).unwrap_or_default()
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (app, process) = (self.app(), self.process());
        write!(f, "{app}/{process} {} {}", self.function(), self.invocation())
    }
}

/// Adds a record to the vector of entries behind `ctx`.
unsafe extern "C" fn collect(ctx: *mut c_void, key: *const DzSlice, value: *const DzValue) -> i32 {
    // SAFETY: `scan` passes its vector, which nobody else touches meanwhile; the host passes a key that is
    // valid during the visit, and a value that is valid for the invocation.
    unsafe {
        let found = &mut *ctx.cast::<Vec<Entry<'_>>>();
        found.push(Entry::new((*key).as_bytes(), Record::new(*value)));
    }
    0
}
