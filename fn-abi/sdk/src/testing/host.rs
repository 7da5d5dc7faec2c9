//! The services of the host in memory: what a plugin calls, in the terms of [`Transaction`].

use super::state::{Found, Transaction, check_key};
use super::{Failure, Function, Input, Process, Type};
use denizen_abi::{
    ABI_VERSION, Concurrency, DZ_E_CLOSED, DZ_E_INVALID, DZ_E_NOT_FOUND, DZ_E_READ_ONLY, DZ_NO_DEADLINE,
    DZ_OK, Durability, DzCall, DzCallInfo, DzFunction, DzHost, DzKeyInfo, DzRegistry, DzSlice, DzType,
    DzValue, FailKind, KeysVisit, Payload, ScanVisit,
};
use rkyv::util::AlignedVec;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::ffi::c_void;

/// What a [`DzRegistry`] is here.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) functions: BTreeMap<String, Function>,
    pub(super) types: BTreeMap<String, Type>,
    pub(super) failure: Option<String>,
}

/// What a [`DzCall`] is here.
pub(super) struct Invocation {
    process: String,
    function: String,
    concurrency: Concurrency,
    input: AlignedVec,
    /// How far `input_read` has come.
    read: Cell<usize>,
    content_type: String,
    caller_left: bool,
    deadline_ms: u64,
    traceparent: String,
    transaction: RefCell<Transaction>,
    /// Whether the function committed by itself: then it is not run again.
    pub(super) committed: Cell<bool>,
    pub(super) reply_type: RefCell<String>,
    pub(super) reply: RefCell<Option<AlignedVec>>,
    pub(super) streamed: RefCell<Vec<u8>>,
    pub(super) pieces: Cell<usize>,
    pub(super) failure: RefCell<Option<Failure>>,
}

impl Invocation {
    pub(super) fn new(
        process: &Process,
        function: &str,
        concurrency: Concurrency,
        input: &Input,
    ) -> Invocation {
        let mut body = AlignedVec::new();
        body.extend_from_slice(&input.body);
        Invocation {
            process: process.name.clone(),
            function: function.to_owned(),
            concurrency,
            input: body,
            read: Cell::new(0),
            content_type: input.content_type.clone(),
            caller_left: input.caller_left,
            deadline_ms: input.deadline_ms.unwrap_or(DZ_NO_DEADLINE),
            traceparent: input.traceparent.clone(),
            transaction: RefCell::new(Transaction::new(&process.store)),
            committed: Cell::new(false),
            reply_type: RefCell::new("application/octet-stream".to_owned()),
            reply: RefCell::default(),
            streamed: RefCell::default(),
            pieces: Cell::new(0),
            failure: RefCell::default(),
        }
    }

    /// Commits, or says why not.
    pub(super) fn commit(&self) -> Result<u64, i32> {
        self.transaction.borrow_mut().commit()
    }

    /// The transaction, for a service that writes.
    fn writable(&self) -> Result<RefMut<'_, Transaction>, i32> {
        match self.concurrency {
            Concurrency::ReadOnly => Err(DZ_E_READ_ONLY),
            Concurrency::Exclusive | Concurrency::Concurrent => Ok(self.transaction.borrow_mut()),
        }
    }
}

pub(super) static HOST: DzHost = DzHost {
    size: crate::call::size_of_u32::<DzHost>(),
    abi_version: ABI_VERSION,
    declare_function,
    declare_type,
    init_failed,
    call_info,
    cancelled,
    log,
    input,
    input_read,
    reply_content_type,
    reply_alloc,
    reply_write,
    fail,
    state_get,
    state_put,
    state_delete,
    state_scan,
    commit,
    state_get_range,
    state_info,
    state_keys,
    state_update,
    state_watch,
    savepoint,
    rollback,
    release,
    commit_at,
    wait_commit,
    sync_files,
    reply_bytes,
};

/// The registry behind a plugin's pointer.
///
/// # Safety
/// A plugin passes the pointer that [`Process::start`] gave it, during its init.
unsafe fn registry<'a>(raw: *mut DzRegistry) -> &'a RefCell<Registry> {
    // SAFETY: see above; `RefCell` guards what is in it.
    unsafe { &*raw.cast_const().cast::<RefCell<Registry>>() }
}

/// The invocation behind a plugin's pointer.
///
/// # Safety
/// A plugin passes the pointer that [`Process::call`] gave it, on that thread and before its entry returns.
unsafe fn invocation<'a>(raw: *mut DzCall) -> &'a Invocation {
    // SAFETY: see above; cells guard what changes.
    unsafe { &*raw.cast_const().cast::<Invocation>() }
}

/// Bytes that a plugin passed, while the service runs.
///
/// # Safety
/// The slice is valid, as the contract says.
unsafe fn bytes<'a>(slice: DzSlice) -> &'a [u8] {
    // SAFETY: the caller's.
    unsafe { slice.as_bytes() }
}

/// Text that a plugin passed.
///
/// # Safety
/// The slice is valid, as the contract says.
unsafe fn string(slice: DzSlice) -> String {
    // SAFETY: the caller's.
    String::from_utf8_lossy(unsafe { slice.as_bytes() }).into_owned()
}

unsafe extern "C" fn declare_function(raw: *mut DzRegistry, function: *const DzFunction) -> i32 {
    // SAFETY: a plugin's declaration, valid during the call.
    let (registry, declared) = unsafe { (registry(raw), &*function) };
    let numbers = (
        Concurrency::from_u32(declared.concurrency),
        Payload::from_u32(declared.input),
        Payload::from_u32(declared.output),
    );
    let (Some(concurrency), Some(input), Some(output)) = numbers else { return DZ_E_INVALID };
    // SAFETY: texts of the declaration.
    let (name, input_layout, output_layout, doc) = unsafe {
        (
            string(declared.name),
            string(declared.input_layout),
            string(declared.output_layout),
            string(declared.doc),
        )
    };
    let (data, entry) = (declared.data, declared.entry);
    let function = Function { concurrency, input, output, input_layout, output_layout, doc, data, entry };
    match registry.borrow_mut().functions.insert(name, function) {
        Some(_) => DZ_E_INVALID,
        None => DZ_OK,
    }
}

unsafe extern "C" fn declare_type(raw: *mut DzRegistry, ty: *const DzType) -> i32 {
    // SAFETY: a plugin's declaration, valid during the call.
    let (registry, declared) = unsafe { (registry(raw), &*ty) };
    // SAFETY: texts of the declaration.
    let (name, layout) = unsafe { (string(declared.name), string(declared.layout)) };
    let migrates_from = match declared.migrates_from_len {
        0 => Vec::new(),
        // SAFETY: so many numbers of the declaration.
        len => unsafe { std::slice::from_raw_parts(declared.migrates_from, len) }.to_vec(),
    };
    let ty = Type { fingerprint: declared.fingerprint, layout, migrates_from };
    match registry.borrow_mut().types.insert(name, ty) {
        Some(_) => DZ_E_INVALID,
        None => DZ_OK,
    }
}

unsafe extern "C" fn init_failed(raw: *mut DzRegistry, message: DzSlice) -> i32 {
    // SAFETY: a plugin's registry and text.
    let (registry, message) = unsafe { (registry(raw), string(message)) };
    registry.borrow_mut().failure = Some(message);
    DZ_OK
}

unsafe extern "C" fn call_info(raw: *mut DzCall, info: *mut DzCallInfo) -> i32 {
    // SAFETY: a plugin's call, and its own struct.
    let (call, info) = unsafe { (invocation(raw), &mut *info) };
    let text = |text: &str| DzSlice::new(text.as_bytes());
    *info = DzCallInfo {
        size: info.size,
        concurrency: call.concurrency.as_u32(),
        process: text(&call.process),
        app: text("test"),
        invocation: text("test-1"),
        content_type: text(&call.content_type),
        function: text(&call.function),
        epoch: 1,
        deadline_ms: call.deadline_ms,
        traceparent: text(&call.traceparent),
    };
    DZ_OK
}

unsafe extern "C" fn cancelled(raw: *mut DzCall) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    i32::from(call.caller_left || call.deadline_ms == 0)
}

unsafe extern "C" fn log(_: *mut DzCall, level: u32, text: DzSlice) {
    // SAFETY: a plugin's text.
    eprintln!("log {level}: {}", unsafe { string(text) });
}

unsafe extern "C" fn input(raw: *mut DzCall, out: *mut DzSlice) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    if call.read.get() > 0 {
        return DZ_E_INVALID;
    }
    // SAFETY: a plugin's variable.
    unsafe { *out = DzSlice::new(&call.input) };
    DZ_OK
}

unsafe extern "C" fn input_read(raw: *mut DzCall, buffer: *mut u8, capacity: usize, len: *mut usize) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    let rest = &call.input[call.read.get()..];
    let count = rest.len().min(capacity);
    // SAFETY: a plugin's buffer of this capacity, and its variable.
    unsafe {
        std::ptr::copy_nonoverlapping(rest.as_ptr(), buffer, count);
        *len = count;
    }
    call.read.set(call.read.get() + count);
    DZ_OK
}

unsafe extern "C" fn reply_content_type(raw: *mut DzCall, content_type: DzSlice) -> i32 {
    // SAFETY: a plugin's call and text.
    let (call, content_type) = unsafe { (invocation(raw), string(content_type)) };
    if call.pieces.get() > 0 || call.reply.borrow().is_some() || content_type.contains(['\r', '\n', '\0']) {
        return DZ_E_INVALID;
    }
    call.reply_type.replace(content_type);
    DZ_OK
}

unsafe extern "C" fn reply_alloc(raw: *mut DzCall, len: usize, buffer: *mut *mut u8) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    if call.pieces.get() > 0 || call.reply.borrow().is_some() {
        return DZ_E_INVALID;
    }
    let mut reply = AlignedVec::new();
    reply.resize(len, 0);
    // SAFETY: a plugin's variable. The buffer does not move when the vector does.
    unsafe { *buffer = reply.as_mut_ptr() };
    call.reply.replace(Some(reply));
    DZ_OK
}

unsafe extern "C" fn reply_bytes(raw: *mut DzCall, whole: DzSlice) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, whole) = unsafe { (invocation(raw), bytes(whole)) };
    if call.pieces.get() > 0 || call.reply.borrow().is_some() {
        return DZ_E_INVALID;
    }
    let mut reply = AlignedVec::new();
    reply.extend_from_slice(whole);
    call.reply.replace(Some(reply));
    DZ_OK
}

unsafe extern "C" fn reply_write(raw: *mut DzCall, piece: DzSlice) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, piece) = unsafe { (invocation(raw), bytes(piece)) };
    if call.reply.borrow().is_some() {
        return DZ_E_INVALID;
    }
    if call.caller_left {
        return DZ_E_CLOSED;
    }
    call.streamed.borrow_mut().extend_from_slice(piece);
    call.pieces.set(call.pieces.get() + 1);
    DZ_OK
}

unsafe extern "C" fn fail(raw: *mut DzCall, kind: u32, message: DzSlice) -> i32 {
    // SAFETY: a plugin's call and text.
    let (call, message) = unsafe { (invocation(raw), string(message)) };
    let Some(kind) = FailKind::from_u32(kind) else { return DZ_E_INVALID };
    call.failure.replace(Some(Failure { kind, message }));
    DZ_OK
}

/// The status of an outcome; `done` is told of what came out.
fn status<T>(outcome: Result<T, i32>, done: impl FnOnce(T)) -> i32 {
    match outcome {
        Ok(value) => {
            done(value);
            DZ_OK
        }
        Err(status) => status,
    }
}

fn value_of(found: &Found) -> DzValue {
    DzValue {
        ptr: found.bytes.as_ptr(),
        len: found.bytes.len(),
        fingerprint: found.fingerprint,
        version: found.version,
        validated: found.validated.map_or(std::ptr::null_mut(), Cell::as_ptr),
    }
}

fn info_of(found: &Found) -> DzKeyInfo {
    DzKeyInfo {
        size: crate::call::size_of_u32::<DzKeyInfo>(),
        _pad: 0,
        len: found.bytes.len() as u64,
        fingerprint: found.fingerprint,
        version: found.version,
        time_ms: found.time_ms,
    }
}

unsafe extern "C" fn state_get(raw: *mut DzCall, key: DzSlice, value: *mut DzValue) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    // SAFETY: a plugin's variable.
    status(call.transaction.borrow_mut().read(key), |found| unsafe { *value = value_of(&found) })
}

unsafe extern "C" fn state_get_range(
    raw: *mut DzCall,
    key: DzSlice,
    offset: u64,
    len: u64,
    part: *mut DzSlice,
) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    status(call.transaction.borrow_mut().read(key), |found| {
        let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(found.bytes.len());
        let cut = &found.bytes[clamp(offset)..clamp(offset.saturating_add(len))];
        // SAFETY: a plugin's variable.
        unsafe { *part = DzSlice::new(cut) };
    })
}

unsafe extern "C" fn state_info(raw: *mut DzCall, key: DzSlice, info: *mut DzKeyInfo) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    let found = check_key(key).and_then(|()| call.transaction.borrow().find(key).ok_or(DZ_E_NOT_FOUND));
    // SAFETY: a plugin's variable.
    status(found, |found| unsafe { *info = info_of(&found) })
}

unsafe extern "C" fn state_put(raw: *mut DzCall, key: DzSlice, fingerprint: u64, value: DzSlice) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key, value) = unsafe { (invocation(raw), bytes(key), bytes(value)) };
    status(call.writable().and_then(|mut transaction| transaction.put(key, fingerprint, value)), |()| ())
}

unsafe extern "C" fn state_delete(raw: *mut DzCall, key: DzSlice) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    status(call.writable().and_then(|mut transaction| transaction.delete(key)), |()| ())
}

unsafe extern "C" fn state_update(raw: *mut DzCall, key: DzSlice, ptr: *mut *mut u8, len: *mut usize) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    status(call.writable().and_then(|mut transaction| transaction.update(key)), |(start, size)| {
        // SAFETY: a plugin's variables.
        unsafe {
            *ptr = start;
            *len = size;
        }
    })
}

unsafe extern "C" fn state_watch(raw: *mut DzCall, key: DzSlice) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    status(call.writable().and_then(|mut transaction| transaction.watch(key)), |()| ())
}

unsafe extern "C" fn state_scan(
    raw: *mut DzCall,
    prefix: DzSlice,
    visit: ScanVisit,
    ctx: *mut c_void,
) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, prefix) = unsafe { (invocation(raw), bytes(prefix)) };
    let keys = call.transaction.borrow().keys(prefix, &[]);
    for key in keys {
        let found = match call.transaction.borrow_mut().read(&key) {
            Ok(found) => found,
            Err(status) => return status,
        };
        let (key, value) = (DzSlice::new(&key), value_of(&found));
        // SAFETY: the plugin's own code and data; the key lives during the visit.
        if unsafe { visit(ctx, &raw const key, &raw const value) } != 0 {
            break;
        }
    }
    DZ_OK
}

unsafe extern "C" fn state_keys(
    raw: *mut DzCall,
    prefix: DzSlice,
    after: DzSlice,
    visit: KeysVisit,
    ctx: *mut c_void,
) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, prefix, after) = unsafe { (invocation(raw), bytes(prefix), bytes(after)) };
    let keys = call.transaction.borrow().keys(prefix, after);
    for key in keys {
        let Some(found) = call.transaction.borrow().find(&key) else { continue };
        let (key, info) = (DzSlice::new(&key), info_of(&found));
        // SAFETY: as for `state_scan`.
        if unsafe { visit(ctx, &raw const key, &raw const info) } != 0 {
            break;
        }
    }
    DZ_OK
}

unsafe extern "C" fn savepoint(raw: *mut DzCall, id: *mut u64) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    // SAFETY: a plugin's variable.
    status(call.writable().map(|mut transaction| transaction.savepoint()), |begun| unsafe { *id = begun })
}

unsafe extern "C" fn rollback(raw: *mut DzCall, id: u64) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    status(call.writable().and_then(|mut transaction| transaction.roll_back(id)), |()| ())
}

unsafe extern "C" fn release(raw: *mut DzCall, id: u64) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    status(call.writable().and_then(|mut transaction| transaction.release(id)), |()| ())
}

unsafe extern "C" fn commit(raw: *mut DzCall, seq: *mut u64) -> i32 {
    // SAFETY: passed on.
    unsafe { commit_at(raw, Durability::Process.as_u32(), seq) }
}

unsafe extern "C" fn commit_at(raw: *mut DzCall, durability: u32, seq: *mut u64) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    let Some(durability) = reachable(durability) else { return DZ_E_INVALID };
    let committed = call.writable().and_then(|mut transaction| transaction.commit());
    status(committed, |committed| {
        call.committed.set(true);
        call.transaction.borrow().make_durable(committed, durability);
        // SAFETY: a plugin's variable.
        unsafe { *seq = committed };
    })
}

unsafe extern "C" fn wait_commit(raw: *mut DzCall, seq: u64, durability: u32) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    let Some(durability) = reachable(durability) else { return DZ_E_INVALID };
    call.transaction.borrow().make_durable(seq, durability);
    DZ_OK
}

/// A level that this host has; like a node, it has no swap store.
fn reachable(durability: u32) -> Option<Durability> {
    Durability::from_u32(durability).filter(|level| *level != Durability::Store)
}

unsafe extern "C" fn sync_files(raw: *mut DzCall) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    status(call.writable().and_then(|transaction| transaction.sync_files()), |()| ())
}
