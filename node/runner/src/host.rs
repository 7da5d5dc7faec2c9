//! The table of services that a plugin calls. One of the unsafe rooms.
//!
//! It owns the border: every pointer that a plugin hands over is checked for what can be checked, turned into a slice once, and
//! nothing behind it is kept. What must hold whatever a plugin does by mistake:
//!
//! - A `dz_call` is never followed: it is the invocation's number. A wrong, old or foreign one is looked up, not found, and
//!   `DZ_E_INVALID`.
//! - An invocation is used only on the thread that runs it, except `cancelled` and `log`.
//! - No panic of ours crosses the border, and no borrow of ours is held while the plugin's code runs.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use denizen_abi::{
    self as abi, DzCall, DzCallInfo, DzFunction, DzHost, DzKeyInfo, DzRegistry, DzSlice, DzType, DzValue,
    KeysVisit, ScanVisit,
};
use denizen_engine::{KeyInfo, Value};
use denizen_wire::{Concurrency, Durability, FailKind, FunctionDecl, PayloadKind, TypeDecl};

use crate::builtin;
use crate::call::{Active, status_of};
use crate::declare::{Code, Data, Declared, Function};
use crate::serve::{self, Runner};

/// So many records are looked up at once in a scan.
const SCAN_BATCH: usize = 64;

/// Size of a `dz_type` in the first headers, in bytes.
const TYPE_AT_FIRST: usize = std::mem::offset_of!(DzType, migrates_from);
/// The most fingerprints that a type migrates from.
const MOST_NUMBERS: usize = 1024;

/// The table itself.
pub(crate) static TABLE: DzHost = DzHost {
    size: size_u32::<DzHost>(),
    abi_version: abi::ABI_VERSION,
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

#[expect(clippy::cast_possible_truncation, reason = "the structs of the ABI have a few hundred bytes")]
const fn size_u32<T>() -> u32 {
    size_of::<T>() as u32
}

/// What this thread runs: the number that stands for the call, and where it is.
#[derive(Clone, Copy)]
struct Current {
    handle: usize,
    active: *const RefCell<Active>,
}

const NO_CALL: Current = Current { handle: 0, active: ptr::null() };

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(NO_CALL) };
    static REGISTRY: Cell<*const RefCell<Declared>> = const { Cell::new(ptr::null()) };
}

/// Runs the function of `active` on this thread and returns its status.
pub(crate) fn enter(active: &RefCell<Active>) -> i32 {
    let (handle, function) = {
        let active = active.borrow();
        (handle_of(active.id), active.function)
    };
    let (entry, data) = match function.code {
        Code::Plugin { entry, data } => (entry, data),
        Code::Builtin(builtin) => return builtin::run(builtin, &mut active.borrow_mut()),
    };
    CURRENT.set(Current { handle, active: ptr::from_ref(active) });
    // SAFETY: the plugin declared this entry for this data, and the ABI obliges it to be callable on any thread of the host.
    let status = unsafe { entry(data.0, ptr::without_provenance_mut(handle)) };
    CURRENT.set(NO_CALL);
    status
}

/// Gives `init` a registry, and back what was declared there.
pub(crate) fn collect_declarations(init: impl FnOnce(*mut DzRegistry) -> i32) -> (i32, Declared) {
    let declared = RefCell::new(Declared::default());
    REGISTRY.set(&raw const declared);
    let status = init((&raw const declared).cast_mut().cast());
    REGISTRY.set(ptr::null());
    (status, declared.into_inner())
}

/// The number that a plugin holds for an invocation: ids are not zero and never used twice.
fn handle_of(id: u64) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

/// Our own panics end here: said aloud, and an error for the function.
fn guarded(service: impl FnOnce() -> i32) -> i32 {
    catch_unwind(AssertUnwindSafe(service)).unwrap_or_else(|_| {
        serve::log_of_host(
            "a service of the host panicked; this is a bug of Denizen, see the line above in stderr",
        );
        abi::DZ_E_IO
    })
}

/// Finds the invocation that this thread runs, if `call` stands for it.
fn with_call(call: *mut DzCall, service: impl FnOnce(&mut Active) -> i32) -> i32 {
    guarded(|| {
        let current = CURRENT.get();
        if current.handle == 0 || current.handle != call.addr() {
            return abi::DZ_E_INVALID;
        }
        // SAFETY: set by `enter` on this thread, which is still in the entry (it clears it when the entry returns), so what it
        // points to is alive.
        let active = unsafe { &*current.active };
        match active.try_borrow_mut() {
            Ok(mut active) => service(&mut active),
            Err(_) => abi::DZ_E_INVALID,
        }
    })
}

/// Finds the registry, if `registry` is the one of the init that this thread runs.
fn with_registry(registry: *mut DzRegistry, service: impl FnOnce(&mut Declared) -> bool) -> i32 {
    guarded(|| {
        let current = REGISTRY.get();
        if current.is_null() || current.addr() != registry.addr() {
            return abi::DZ_E_INVALID;
        }
        // SAFETY: set by `collect_declarations` on this thread, which is still in the plugin's init.
        let declared = unsafe { &*current };
        let done = declared.try_borrow_mut().is_ok_and(|mut declared| service(&mut declared));
        if done { abi::DZ_OK } else { abi::DZ_E_INVALID }
    })
}

/// A plugin's bytes for as long as a service runs, unless they cannot be any.
fn bytes<'a>(slice: DzSlice) -> Option<&'a [u8]> {
    let impossible = (slice.ptr.is_null() && slice.len > 0) || slice.len > isize::MAX as usize;
    // SAFETY: the ABI obliges the plugin to hand over readable bytes that stay as they are while the service runs; the two
    // mistakes that can be seen were just excluded.
    (!impossible).then(|| unsafe { slice.as_bytes() })
}

fn text<'a>(slice: DzSlice) -> Option<&'a str> {
    std::str::from_utf8(bytes(slice)?).ok()
}

/// Writes a result where the plugin asked for it.
///
/// # Safety
/// `to` is null or good for a write of `T`, as the ABI obliges the plugin.
unsafe fn store<T>(to: *mut T, value: T) -> i32 {
    if to.is_null() || !to.is_aligned() {
        return abi::DZ_E_INVALID;
    }
    // SAFETY: not null, aligned, and the caller's promise.
    unsafe { to.write(value) };
    abi::DZ_OK
}

unsafe extern "C" fn declare_function(registry: *mut DzRegistry, function: *const DzFunction) -> i32 {
    with_registry(registry, |declared| {
        // SAFETY: the ABI gives the pointer this type; its size is checked before the rest is read.
        let function = unsafe { read_sized(function, |f| (*f).size) };
        function
            .and_then(|function| function_of(&function))
            .is_some_and(|function| declared.add_function(function))
    })
}

fn function_of(function: &DzFunction) -> Option<Function> {
    let decl = FunctionDecl {
        name: text(function.name)?.to_owned(),
        concurrency: Concurrency::from_abi(function.concurrency)?,
        input: PayloadKind::from_abi(function.input)?,
        output: PayloadKind::from_abi(function.output)?,
        doc: text(function.doc)?.to_owned(),
        input_layout: text(function.input_layout)?.to_owned(),
        output_layout: text(function.output_layout)?.to_owned(),
    };
    Some(Function { decl, code: Code::Plugin { entry: function.entry, data: Data(function.data) } })
}

unsafe extern "C" fn declare_type(registry: *mut DzRegistry, ty: *const DzType) -> i32 {
    with_registry(registry, |declared| {
        // SAFETY: the ABI gives the pointer this type, and its plugin may know less of it than we do.
        unsafe { read_type(ty) }.and_then(|ty| type_of(&ty)).is_some_and(|ty| declared.add_type(ty))
    })
}

fn type_of(ty: &DzType) -> Option<TypeDecl> {
    Some(TypeDecl {
        name: text(ty.name)?.into(),
        fingerprint: ty.fingerprint,
        layout: text(ty.layout)?.into(),
        migrates_from: numbers(ty.migrates_from, ty.migrates_from_len)?,
    })
}

/// A plugin's list of numbers.
fn numbers(from: *const u64, len: usize) -> Option<Vec<u64>> {
    if len == 0 {
        return Some(Vec::new());
    }
    if from.is_null() || !from.is_aligned() || len > MOST_NUMBERS {
        return None;
    }
    // SAFETY: not null, aligned, and the ABI obliges the plugin to hand over so many readable numbers.
    Some(unsafe { std::slice::from_raw_parts(from, len) }.to_vec())
}

/// Reads a type as a plugin of any age declares it: fields that it does not know are zero.
///
/// # Safety
/// `from` is null or points to a struct of a plugin that begins with its size; as many bytes as that says are readable.
unsafe fn read_type(from: *const DzType) -> Option<DzType> {
    if from.is_null() || !from.is_aligned() {
        return None;
    }
    // SAFETY: not null and aligned, and every version of it begins with this field.
    let size = unsafe { (*from).size } as usize;
    if size < TYPE_AT_FIRST {
        return None;
    }
    let mut whole = std::mem::MaybeUninit::<DzType>::zeroed();
    let len = size.min(size_of::<DzType>());
    // SAFETY: the plugin's struct has `size` bytes by its own word, ours at least `len`; all of its fields may be zero.
    unsafe {
        ptr::copy_nonoverlapping(from.cast::<u8>(), whole.as_mut_ptr().cast(), len);
        Some(whole.assume_init())
    }
}

/// Reads a struct that begins with its size, if that is at least the one known here.
///
/// # Safety
/// `from` is null or points to a `T` of a plugin, whose first field `size` reads; as many bytes as that says are readable.
unsafe fn read_sized<T: Copy>(from: *const T, size: impl FnOnce(*const T) -> u32) -> Option<T> {
    let known = from.is_aligned() && !from.is_null() && size(from) >= size_u32::<T>();
    // SAFETY: not null, aligned, and large enough by its own word.
    known.then(|| unsafe { from.read() })
}

unsafe extern "C" fn init_failed(registry: *mut DzRegistry, message: DzSlice) -> i32 {
    with_registry(registry, |declared| {
        let message = bytes(message).map(String::from_utf8_lossy);
        declared.failure = Some(message.map_or_else(|| "init failed".into(), |text| text.into_owned()));
        true
    })
}

unsafe extern "C" fn call_info(call: *mut DzCall, info: *mut DzCallInfo) -> i32 {
    with_call(call, |active| {
        if info.is_null() || !info.is_aligned() {
            return abi::DZ_E_INVALID;
        }
        // SAFETY: not null and aligned; the plugin has set this field, says the ABI.
        let size = unsafe { (*info).size };
        let whole = info_of(active, size);
        let len = size_of::<DzCallInfo>().min(size as usize);
        if len < size_of::<u32>() {
            return abi::DZ_E_INVALID;
        }
        // SAFETY: the plugin's struct has at least `size` bytes by its own word, ours has `len`; they do not overlap.
        unsafe { ptr::copy_nonoverlapping((&raw const whole).cast::<u8>(), info.cast::<u8>(), len) };
        abi::DZ_OK
    })
}

fn info_of(active: &Active, size: u32) -> DzCallInfo {
    let assignment = active.runner.assignment();
    DzCallInfo {
        size,
        concurrency: active.function.decl.concurrency as u32,
        process: DzSlice::new(assignment.process.as_bytes()),
        app: DzSlice::new(assignment.app.as_bytes()),
        invocation: DzSlice::new(active.invocation.as_bytes()),
        content_type: DzSlice::new(active.content_type.as_bytes()),
        function: DzSlice::new(active.function.decl.name.as_bytes()),
        epoch: assignment.epoch,
        deadline_ms: active.deadline_ms(),
        traceparent: DzSlice::new(active.traceparent.as_bytes()),
    }
}

unsafe extern "C" fn cancelled(call: *mut DzCall) -> i32 {
    guarded(|| {
        let own = CURRENT.get().handle == call.addr() && !call.is_null();
        if own {
            return with_call(call, |active| i32::from(active.inbox.cancelled().is_some()));
        }
        // Of a call that is not running any more nobody wants anything.
        let inbox = Runner::running().and_then(|runner| runner.inbox_of(call.addr() as u64));
        i32::from(inbox.is_none_or(|inbox| inbox.cancelled().is_some()))
    })
}

unsafe extern "C" fn log(call: *mut DzCall, level: u32, line: DzSlice) {
    guarded(|| {
        let id = call.addr() as u64;
        let inbox = Runner::running().and_then(|runner| runner.inbox_of(id));
        if let Some(line) = bytes(line) {
            let id = if inbox.is_some() { id } else { 0 };
            // The agent knows the others'.
            let trace = inbox.filter(|inbox| inbox.direct.is_some()).and_then(|inbox| inbox.trace);
            serve::log_line(id, trace, level, &String::from_utf8_lossy(line));
        }
        abi::DZ_OK
    });
}

unsafe extern "C" fn input(call: *mut DzCall, to: *mut DzSlice) -> i32 {
    with_call(call, |active| match active.input() {
        // SAFETY: the ABI's promise about `to`.
        Ok(bytes) => unsafe { store(to, DzSlice { ptr: bytes.as_ptr(), len: bytes.len() }) },
        Err(status) => status,
    })
}

unsafe extern "C" fn input_read(call: *mut DzCall, buffer: *mut u8, capacity: usize, len: *mut usize) -> i32 {
    with_call(call, |active| {
        if buffer.is_null() || len.is_null() || capacity > isize::MAX as usize {
            return abi::DZ_E_INVALID;
        }
        // SAFETY: not null, and the ABI obliges the plugin to hand over `capacity` writable bytes for the time of the service.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, capacity) };
        match active.input_read(buffer) {
            // SAFETY: the ABI's promise about `len`.
            Ok(count) => unsafe { store(len, count) },
            Err(status) => status,
        }
    })
}

unsafe extern "C" fn reply_content_type(call: *mut DzCall, content_type: DzSlice) -> i32 {
    with_call(call, |active| match text(content_type) {
        Some(text) => status_of(active.reply_content_type(text)),
        None => abi::DZ_E_INVALID,
    })
}

unsafe extern "C" fn reply_alloc(call: *mut DzCall, len: usize, buffer: *mut *mut u8) -> i32 {
    with_call(call, |active| {
        if buffer.is_null() {
            return abi::DZ_E_INVALID;
        }
        match active.reply_alloc(len) {
            // SAFETY: the ABI's promise about `buffer`.
            Ok(start) => unsafe { store(buffer, start) },
            Err(status) => status,
        }
    })
}

unsafe extern "C" fn reply_bytes(call: *mut DzCall, whole: DzSlice) -> i32 {
    with_call(call, |active| match bytes(whole) {
        Some(whole) => status_of(active.reply_bytes(whole)),
        None => abi::DZ_E_INVALID,
    })
}

unsafe extern "C" fn reply_write(call: *mut DzCall, chunk: DzSlice) -> i32 {
    with_call(call, |active| match bytes(chunk) {
        Some(chunk) => status_of(active.reply_write(chunk)),
        None => abi::DZ_E_INVALID,
    })
}

unsafe extern "C" fn fail(call: *mut DzCall, kind: u32, message: DzSlice) -> i32 {
    with_call(call, |active| {
        let (Some(kind), Some(message)) = (FailKind::from_abi(kind), bytes(message)) else {
            return abi::DZ_E_INVALID;
        };
        active.fail(kind, String::from_utf8_lossy(message).into_owned());
        abi::DZ_OK
    })
}

unsafe extern "C" fn state_get(call: *mut DzCall, key: DzSlice, to: *mut DzValue) -> i32 {
    with_call(call, |active| {
        let Some(key) = bytes(key) else { return abi::DZ_E_INVALID };
        match active.value(key) {
            // SAFETY: the ABI's promise about `to`.
            Ok(Some(value)) => unsafe { store(to, value_of(&value)) },
            Ok(None) => abi::DZ_E_NOT_FOUND,
            Err(status) => status,
        }
    })
}

/// The state keeps all of this in place until the invocation's transaction is dropped.
fn value_of(value: &Value<'_>) -> DzValue {
    DzValue {
        ptr: value.bytes.as_ptr(),
        len: value.bytes.len(),
        fingerprint: value.fingerprint,
        version: value.version,
        validated: value.validated.as_ptr(),
    }
}

unsafe extern "C" fn state_put(call: *mut DzCall, key: DzSlice, fingerprint: u64, value: DzSlice) -> i32 {
    with_call(call, |active| match (bytes(key), bytes(value)) {
        (Some(key), Some(value)) => active.put(key, fingerprint, value),
        _ => abi::DZ_E_INVALID,
    })
}

unsafe extern "C" fn state_delete(call: *mut DzCall, key: DzSlice) -> i32 {
    with_call(call, |active| bytes(key).map_or(abi::DZ_E_INVALID, |key| active.delete(key)))
}

/// Looks records up in batches and shows them with nothing borrowed, so that the visitor may use the call again.
unsafe extern "C" fn state_scan(
    call: *mut DzCall,
    prefix: DzSlice,
    visit: ScanVisit,
    ctx: *mut c_void,
) -> i32 {
    let collect = |active: &mut Active, prefix: &[u8], after: Option<&[u8]>| {
        let mut batch: Vec<(Vec<u8>, DzValue)> = Vec::with_capacity(SCAN_BATCH);
        let scanned = active.access.scan(prefix, after, |key, value| {
            batch.push((key.to_vec(), value_of(&value)));
            if batch.len() == SCAN_BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let status = scanned.map_err(|error| active.trouble.of_state(active.runner, &error));
        (batch, status_of(status))
    };
    // SAFETY: the plugin's own function with its own context; the value stays in place until the transaction is dropped, even if the
    // visitor deletes it.
    in_batches(call, prefix, None, collect, |key, value| unsafe { visit(ctx, key, value) })
}

/// Shows what a scan finds, batch by batch. `collect` fills one, with a status that ends the scan behind it; `show` gives it to the
/// plugin, with nothing of ours borrowed.
fn in_batches<T>(
    call: *mut DzCall,
    prefix: DzSlice,
    after: Option<Vec<u8>>,
    collect: impl Fn(&mut Active, &[u8], Option<&[u8]>) -> (Vec<(Vec<u8>, T)>, i32),
    show: impl Fn(&DzSlice, &T) -> i32,
) -> i32 {
    let Some(prefix) = bytes(prefix) else { return abi::DZ_E_INVALID };
    let mut after = after;
    loop {
        let mut batch = Vec::new();
        let status = with_call(call, |active| {
            let (found, status) = collect(active, prefix, after.as_deref());
            batch = found;
            status
        });
        for (key, found) in &batch {
            if show(&DzSlice::new(key), found) != 0 {
                return abi::DZ_OK;
            }
        }
        if status != abi::DZ_OK || batch.len() < SCAN_BATCH {
            return status;
        }
        after = batch.pop().map(|(key, _)| key);
    }
}

unsafe extern "C" fn state_keys(
    call: *mut DzCall,
    prefix: DzSlice,
    after: DzSlice,
    visit: KeysVisit,
    ctx: *mut c_void,
) -> i32 {
    let Some(after) = bytes(after) else { return abi::DZ_E_INVALID };
    let after = (!after.is_empty()).then(|| after.to_vec());
    let collect = |active: &mut Active, prefix: &[u8], after: Option<&[u8]>| {
        let mut batch: Vec<(Vec<u8>, DzKeyInfo)> = Vec::with_capacity(SCAN_BATCH);
        active.keys(prefix, after, |key, info| {
            batch.push((key.to_vec(), key_info_of(&info)));
            if batch.len() == SCAN_BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (batch, abi::DZ_OK)
    };
    // SAFETY: the plugin's own function with its own context.
    in_batches(call, prefix, after, collect, |key, info| unsafe { visit(ctx, key, info) })
}

fn key_info_of(info: &KeyInfo) -> DzKeyInfo {
    let KeyInfo { len, fingerprint, version, time_ms } = *info;
    DzKeyInfo { size: size_u32::<DzKeyInfo>(), _pad: 0, len, fingerprint, version, time_ms }
}

unsafe extern "C" fn state_info(call: *mut DzCall, key: DzSlice, to: *mut DzKeyInfo) -> i32 {
    with_call(call, |active| {
        let Some(key) = bytes(key) else { return abi::DZ_E_INVALID };
        match active.info(key) {
            // SAFETY: the ABI's promise about `to`.
            Ok(info) => unsafe { store_sized(to, key_info_of(&info)) },
            Err(status) => status,
        }
    })
}

/// Writes a struct that begins with its size where the plugin asked for it: as much of it as the plugin knows.
///
/// # Safety
/// `to` is null or points to a `T` of a plugin, whose first field is its size in bytes as a `u32`, and so many bytes can be written.
unsafe fn store_sized<T: Copy>(to: *mut T, value: T) -> i32 {
    if to.is_null() || !to.is_aligned() {
        return abi::DZ_E_INVALID;
    }
    // SAFETY: not null and aligned; the plugin has set this field, says the ABI.
    let size = unsafe { to.cast::<u32>().read() };
    let len = size_of::<T>().min(size as usize);
    if len < size_of::<u64>() {
        return abi::DZ_E_INVALID;
    }
    // SAFETY: the plugin's struct has at least `size` bytes by its own word, ours has `len`; they do not overlap. Its size stays its own.
    unsafe {
        ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to.cast::<u8>(), len);
        to.cast::<u32>().write(size);
    }
    abi::DZ_OK
}

unsafe extern "C" fn state_get_range(
    call: *mut DzCall,
    key: DzSlice,
    offset: u64,
    len: u64,
    to: *mut DzSlice,
) -> i32 {
    with_call(call, |active| {
        let Some(key) = bytes(key) else { return abi::DZ_E_INVALID };
        match active.range(key, offset, len) {
            // SAFETY: the ABI's promise about `to`.
            Ok(Some(part)) => unsafe { store(to, DzSlice::new(part)) },
            Ok(None) => abi::DZ_E_NOT_FOUND,
            Err(status) => status,
        }
    })
}

unsafe extern "C" fn state_update(call: *mut DzCall, key: DzSlice, to: *mut *mut u8, len: *mut usize) -> i32 {
    with_call(call, |active| {
        let Some(key) = bytes(key) else { return abi::DZ_E_INVALID };
        if to.is_null() || len.is_null() {
            return abi::DZ_E_INVALID;
        }
        let (start, count) = match active.update(key) {
            Ok(copy) => copy,
            Err(status) => return status,
        };
        // SAFETY: the ABI's promise about both.
        unsafe { store(to, start).min(store(len, count)) }
    })
}

unsafe extern "C" fn state_watch(call: *mut DzCall, key: DzSlice) -> i32 {
    with_call(call, |active| bytes(key).map_or(abi::DZ_E_INVALID, |key| active.watch(key)))
}

unsafe extern "C" fn savepoint(call: *mut DzCall, id: *mut u64) -> i32 {
    with_call(call, |active| {
        if id.is_null() || !id.is_aligned() {
            return abi::DZ_E_INVALID;
        }
        match active.begin_savepoint() {
            // SAFETY: the ABI's promise about `id`.
            Ok(number) => unsafe { store(id, number) },
            Err(status) => status,
        }
    })
}

unsafe extern "C" fn rollback(call: *mut DzCall, id: u64) -> i32 {
    with_call(call, |active| active.end_savepoint(id, false))
}

unsafe extern "C" fn release(call: *mut DzCall, id: u64) -> i32 {
    with_call(call, |active| active.end_savepoint(id, true))
}

unsafe extern "C" fn commit(call: *mut DzCall, seq: *mut u64) -> i32 {
    with_call(call, |active| {
        let committed = active.commit_and_go_on();
        // SAFETY: as our caller promises.
        unsafe { store_commit(seq, committed) }
    })
}

unsafe extern "C" fn commit_at(call: *mut DzCall, durability: u32, seq: *mut u64) -> i32 {
    with_call(call, |active| {
        let Some(level) = level_of(durability) else { return abi::DZ_E_INVALID };
        let committed =
            active.commit_and_go_on().and_then(|number| match active.wait_commit(number, level) {
                abi::DZ_OK => Ok(number),
                status => Err(status),
            });
        // SAFETY: as our caller promises.
        unsafe { store_commit(seq, committed) }
    })
}

unsafe extern "C" fn wait_commit(call: *mut DzCall, seq: u64, durability: u32) -> i32 {
    with_call(call, |active| match level_of(durability) {
        Some(level) => active.wait_commit(seq, level),
        None => abi::DZ_E_INVALID,
    })
}

fn level_of(durability: u32) -> Option<Durability> {
    Durability::from_code(u16::try_from(durability).ok()?)
}

/// Writes the number of a commit where the plugin asked for it, if it did.
///
/// # Safety
/// `to` is null or good for a write, as the ABI obliges the plugin.
unsafe fn store_commit(to: *mut u64, committed: Result<u64, i32>) -> i32 {
    match committed {
        Ok(_) if to.is_null() => abi::DZ_OK,
        // SAFETY: the caller's promise.
        Ok(number) => unsafe { store(to, number) },
        Err(status) => status,
    }
}

unsafe extern "C" fn sync_files(call: *mut DzCall) -> i32 {
    with_call(call, Active::sync_files)
}
