//! A function's view of its invocation.
//!
//! Everything that the host hands out lives until the entry returns; in types, for the lifetime `'call`. A
//! function is generic over it, so nothing of the host can be put where it would outlive the call. The
//! context stays on its thread.

use crate::call::{Call, check_key};
use crate::edit::Edit;
use crate::error::{Error, ErrorKind, Result};
use crate::input::FromInput;
use crate::layout::StateType;
use crate::record::{self, Entry, Key, KeyInfo, Record, show};
use crate::reply::{IntoReply, ReplyWriter};
use crate::savepoint::Savepoint;
use crate::update;
use denizen_abi::{DZ_E_NOT_FOUND, DZ_NO_DEADLINE, Durability, DzKeyInfo, DzSlice, DzValue, LogLevel};
use rkyv::seal::Seal;
use std::ffi::c_void;
use std::fmt;
use std::time::Duration;

/// What a function sees of its invocation: who calls, and the state of its process.
///
/// `&mut Context` makes the function exclusive, and lets it write; `&Context` makes it read-only. References
/// into the state and the input point to the host's memory, cost nothing, and stay valid until the function
/// returns, whatever is written meanwhile.
///
/// Keys are bytes, 1 to [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES) of them; records lie and are scanned in the order of their
/// keys' bytes. Every service that takes a key answers another one with [`ErrorKind::BadKey`], and one whose record is damaged with
/// [`ErrorKind::Corrupt`]. A record of an older layout is [migrated](macro@crate::migrate) where it is read as a type.
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

    /// The trace that this call belongs to: the `traceparent` of W3C Trace Context that its caller sent, to be passed on with whatever
    /// is called from here. `None` where it sent none, or what is none.
    #[must_use]
    pub fn traceparent(&self) -> Option<&'call str> {
        Some(self.text(self.call.info().traceparent)).filter(|text| !text.is_empty())
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
    /// [`ErrorKind::TypeChanged`] if it was written with another layout that nothing migrates, or whose
    /// migration failed. Where a migrated record is written: as for [`put`](Context::put).
    pub fn get<T: StateType>(&self, key: impl AsRef<[u8]>) -> Result<Option<&'call T::Archived>> {
        let key = key.as_ref();
        self.call.find(key)?.map(|record| self.call.read::<T>(key, record)).transpose()
    }

    /// The bytes of a record, whatever it was written as.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the node cannot read it.
    pub fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<&'call [u8]>> {
        Ok(self.call.find(key.as_ref())?.map(|record| record.bytes()))
    }

    /// A part of a record's bytes: from `offset`, at most `len` of them, as much as there is. Meant for large
    /// records of raw bytes.
    ///
    /// # Errors
    /// As for [`get_bytes`](Context::get_bytes).
    pub fn get_range(&self, key: impl AsRef<[u8]>, offset: u64, len: u64) -> Result<Option<&'call [u8]>> {
        let key = key.as_ref();
        check_key(key)?;
        let (mut part, name) = (DzSlice::EMPTY, DzSlice::new(key));
        // SAFETY: `raw` is alive, the host copies what it needs of the key, and `part` is writable.
        let status =
            unsafe { (self.call.host.state_get_range)(self.call.raw, name, offset, len, &raw mut part) };
        if status == DZ_E_NOT_FOUND {
            return Ok(None);
        }
        self.call.check(status, || format!("reading a part of the record `{}`", show(key)))?;
        // SAFETY: the host promises these bytes until the entry returns.
        Ok(Some(unsafe { part.as_bytes::<'call>() }))
    }

    /// What is known of a record, without reading it.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the node cannot tell.
    pub fn info(&self, key: impl AsRef<[u8]>) -> Result<Option<KeyInfo>> {
        self.call.key_info(key.as_ref())
    }

    /// The records whose keys begin with `prefix`, in the order of their keys. Copies the keys, not the
    /// records.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the node cannot read them.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<Entry<'call>>> {
        let prefix = prefix.as_ref();
        let mut scan = Scan { call: self.call, found: Vec::new() };
        // SAFETY: `raw` is alive, the prefix and `scan` outlive the call, and `collect` is what `ctx` is
        // meant for.
        let status = unsafe {
            let ctx = (&raw mut scan).cast::<c_void>();
            (self.call.host.state_scan)(self.call.raw, DzSlice::new(prefix), collect, ctx)
        };
        self.call.check(status, || format!("scanning the records `{}…`", show(prefix)))?;
        Ok(scan.found)
    }

    /// The keys that begin with `prefix`, in their order, with what is known of their records, which are not
    /// read.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the node cannot tell.
    pub fn keys(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<Key>> {
        self.keys_after(prefix, "", usize::MAX)
    }

    /// As [`keys`](Context::keys): at most `limit` of those that come after `after`. To go through many keys
    /// piece by piece, pass the last one of each piece; an empty `after` is before the first.
    ///
    /// # Errors
    /// As for [`keys`](Context::keys).
    pub fn keys_after(
        &self,
        prefix: impl AsRef<[u8]>,
        after: impl AsRef<[u8]>,
        limit: usize,
    ) -> Result<Vec<Key>> {
        let (prefix, after) = (prefix.as_ref(), after.as_ref());
        let mut list = Keys { found: Vec::new(), limit };
        if limit == 0 {
            return Ok(list.found);
        }
        let (from, to) = (DzSlice::new(after), DzSlice::new(prefix));
        // SAFETY: `raw` is alive, the slices and `list` outlive the call, and `collect_key` is what `ctx` is
        // meant for.
        let status = unsafe {
            let ctx = (&raw mut list).cast::<c_void>();
            (self.call.host.state_keys)(self.call.raw, to, from, collect_key, ctx)
        };
        self.call.check(status, || format!("listing the keys `{}…`", show(prefix)))?;
        Ok(list.found)
    }

    /// Says that the outcome of this invocation rests on a record, present or not: if another invocation
    /// changes it before this one commits, that is a conflict, as it is for every record that is written. For
    /// [concurrent](macro@crate::function) functions; elsewhere nobody changes it meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] where nothing can be written.
    pub fn watch(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        let key = key.as_ref();
        check_key(key)?;
        // SAFETY: `raw` is alive, and the host copies what it needs of the key.
        let status = unsafe { (self.call.host.state_watch)(self.call.raw, DzSlice::new(key)) };
        self.call.check(status, || format!("watching the record `{}`", show(key)))
    }

    /// [Watches](Context::watch) a record and reads it.
    ///
    /// # Errors
    /// As for [`get`](Context::get) and [`watch`](Context::watch).
    pub fn get_for_update<T: StateType>(
        &mut self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<&'call T::Archived>> {
        self.watch(key.as_ref())?;
        self.get::<T>(key)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// [`ErrorKind::Quota`], [`ErrorKind::TooLarge`]; [`ErrorKind::InUse`] while an [`Edit`] of it is alive;
    /// [`ErrorKind::ReadOnly`].
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
        check_key(key)?;
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

    /// Changes a record where it lies, in a copy of its own that is committed with the rest; `None` if there is none. The
    /// archived form can be changed as far as its size stays: numbers, the parts of arrays and vectors, not the length of
    /// a string. Much cheaper than [`edit`](Context::edit) for a large record of which little changes.
    ///
    /// What is handed to `change` is *sealed*: [`munge!`](crate::munge) takes a struct apart into its fields.
    ///
    /// ```
    /// # use denizen::prelude::*;
    /// #[state]
    /// struct Grid { cells: Vec<u32>, changes: u64 }
    ///
    /// #[function]
    /// fn paint(cx: &mut Context, Json((at, colour)): Json<(usize, u32)>) -> Result<Json<bool>> {
    ///     let painted = cx.update::<Grid, _>("grid", |grid| {
    ///         munge!(let ArchivedGrid { cells, mut changes } = grid);
    ///         if at >= cells.len() {
    ///             return false;
    ///         }
    ///         *denizen::rkyv::vec::ArchivedVec::as_slice_seal(cells).index(at) = colour.into();
    ///         *changes += 1;
    ///         true
    ///     })?;
    ///     Ok(Json(painted.unwrap_or(false)))
    /// }
    /// ```
    ///
    /// If `change` panics the invocation cannot commit, unless in a [`savepoint`](Context::savepoint).
    ///
    /// # Errors
    /// As for [`get`](Context::get) and [`put`](Context::put).
    pub fn update<T: StateType, R>(
        &mut self,
        key: impl AsRef<[u8]>,
        change: impl FnOnce(Seal<'_, T::Archived>) -> R,
    ) -> Result<Option<R>> {
        update::run::<T, R>(self, key.as_ref(), change)
    }

    /// Runs `body`, and takes back everything that it wrote if it returns an error; the error is handed on.
    /// Savepoints nest. A panic in it takes its writes back too, and goes on.
    ///
    /// # Errors
    /// Those of `body`; [`ErrorKind::InUse`] if an [`Edit`] is alive before it, or outlives it.
    pub fn savepoint<R>(&mut self, body: impl FnOnce(&mut Context<'call>) -> Result<R>) -> Result<R> {
        self.call.settle()?;
        let savepoint = Savepoint::begin(self.call)?;
        let outcome = body(self).and_then(|value| self.call.settle().map(|()| value));
        match outcome {
            Ok(value) => savepoint.release().map(|()| value),
            Err(error) => {
                savepoint.take_back();
                Err(error)
            }
        }
    }

    /// Commits what was written so far, for good, and begins the next transaction. Returns the number of the
    /// process's last commit.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] while an [`Edit`] or a [`savepoint`](Context::savepoint) is alive;
    /// [`ErrorKind::Conflict`], [`ErrorKind::Quota`], [`ErrorKind::NoSpace`]: nothing was committed, and what was
    /// written is still waiting for the next commit. [`ErrorKind::ReadOnly`].
    pub fn commit(&mut self) -> Result<u64> {
        self.commit_by(|call, seq| {
            // SAFETY: `raw` is alive and `seq` is writable.
            unsafe { (call.host.commit)(call.raw, seq) }
        })
    }

    /// As [`commit`](Context::commit), and waits until the commit has this durability.
    ///
    /// # Errors
    /// As for [`commit`](Context::commit); [`ErrorKind::Internal`] if the node's disk fails, or does not have this
    /// durability.
    pub fn commit_at(&mut self, durability: Durability) -> Result<u64> {
        self.commit_by(|call, seq| {
            // SAFETY: as above.
            unsafe { (call.host.commit_at)(call.raw, durability.as_u32(), seq) }
        })
    }

    fn commit_by(&mut self, commit: impl FnOnce(&Call, *mut u64) -> i32) -> Result<u64> {
        self.call.settle()?;
        if self.call.savepoints.get() > 0 {
            let message = "a savepoint is open, and a commit could not be taken back; commit after it";
            return Err(Error::new(ErrorKind::InUse, message));
        }
        let mut seq = 0;
        let status = commit(self.call, &raw mut seq);
        self.call.check(status, || "committing".to_owned())?;
        Ok(seq)
    }

    /// Waits until a commit has this durability: one that [`commit`](Context::commit) has given, or the last one before
    /// this invocation.
    ///
    /// # Errors
    /// As for [`commit_at`](Context::commit_at).
    pub fn wait_commit(&self, seq: u64, durability: Durability) -> Result<()> {
        // SAFETY: `raw` is alive.
        let status = unsafe { (self.call.host.wait_commit)(self.call.raw, seq, durability.as_u32()) };
        self.call.check(status, || format!("waiting for commit {seq}"))
    }

    /// Keeps the files under `/state` as they are now, for an image with `files = "state"`. Files are outside the
    /// transaction: an error afterwards does not take this back.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the image has no such files, or the disk fails; [`ErrorKind::Quota`],
    /// [`ErrorKind::NoSpace`], [`ErrorKind::ReadOnly`].
    pub fn sync_files(&mut self) -> Result<()> {
        // SAFETY: `raw` is alive.
        let status = unsafe { (self.call.host.sync_files)(self.call.raw) };
        self.call.check(status, || "keeping the files under /state".to_owned())
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

/// A scan that is under way.
struct Scan<'call> {
    call: &'call Call,
    found: Vec<Entry<'call>>,
}

/// Adds a record to the [`Scan`] behind `ctx`.
unsafe extern "C" fn collect(ctx: *mut c_void, key: *const DzSlice, value: *const DzValue) -> i32 {
    // SAFETY: `scan` passes its own, which nobody else touches meanwhile; the host passes a key that is
    // valid during the visit, and a value that is valid for the invocation.
    unsafe {
        let scan = &mut *ctx.cast::<Scan<'_>>();
        scan.found.push(Entry::new(scan.call, (*key).as_bytes(), Record::new(*value)));
    }
    0
}

/// A list of keys that is under way.
struct Keys {
    found: Vec<Key>,
    limit: usize,
}

/// Adds a key to the [`Keys`] behind `ctx`, and ends when there are enough.
unsafe extern "C" fn collect_key(ctx: *mut c_void, key: *const DzSlice, info: *const DzKeyInfo) -> i32 {
    // SAFETY: `keys_after` passes its own, which nobody else touches meanwhile; the host passes a key and what is known of
    // it, valid during the visit.
    unsafe {
        let keys = &mut *ctx.cast::<Keys>();
        keys.found.push(Key::new((*key).as_bytes(), KeyInfo::of(&*info)));
        i32::from(keys.found.len() >= keys.limit)
    }
}
