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
    self as abi, DzCall, DzCallInfo, DzFunction, DzHost, DzRegistry, DzSlice, DzType, DzValue, ScanVisit,
};
use denizen_state::Value;
use denizen_wire::{Concurrency, FailKind, FunctionDecl, PayloadKind, TypeDecl};

use crate::call::Active;
use crate::declare::{Data, Declared, Function};
use crate::serve::{self, Runner};

/// So many records are looked up at once in a scan.
const SCAN_BATCH: usize = 64;

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
};

#[expect(clippy::cast_possible_truncation, reason = "the structs of the ABI have a few hundred bytes")]
const fn size_u32<T>() -> u32 {
    size_of::<T>() as u32
}

/// What this thread runs: the number that stands for the call, and where it is.
#[derive(Clone, Copy)]
struct Current {
    handle: usize,
    active: *const RefCell<Active<'static>>,
}

const NO_CALL: Current = Current { handle: 0, active: ptr::null() };

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(NO_CALL) };
    static REGISTRY: Cell<*const RefCell<Declared>> = const { Cell::new(ptr::null()) };
}

/// Runs the function of `active` on this thread and returns its status.
pub(crate) fn enter(active: &RefCell<Active<'_>>) -> i32 {
    let (handle, function) = {
        let active = active.borrow();
        (handle_of(active.id), active.function)
    };
    CURRENT.set(Current { handle, active: ptr::from_ref(active).cast() });
    // SAFETY: the plugin declared this entry for this data, and the ABI obliges it to be callable on any thread of the host.
    let status = unsafe { (function.entry)(function.data.0, ptr::without_provenance_mut(handle)) };
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
fn with_call(call: *mut DzCall, service: impl FnOnce(&mut Active<'static>) -> i32) -> i32 {
    guarded(|| {
        let current = CURRENT.get();
        if current.handle == 0 || current.handle != call.addr() {
            return abi::DZ_E_INVALID;
        }
        // SAFETY: set by `enter` on this thread, which is still in the entry (it clears it when the entry returns), so what it
        // points to is alive; the lifetime that was erased is longer than this borrow.
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
    Some(Function { decl, entry: function.entry, data: Data(function.data) })
}

unsafe extern "C" fn declare_type(registry: *mut DzRegistry, ty: *const DzType) -> i32 {
    with_registry(registry, |declared| {
        // SAFETY: as in `declare_function`.
        let Some(ty) = (unsafe { read_sized(ty, |t| (*t).size) }) else { return false };
        let (Some(name), Some(layout)) = (text(ty.name), text(ty.layout)) else { return false };
        declared.add_type(TypeDecl { name: name.into(), fingerprint: ty.fingerprint, layout: layout.into() })
    })
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

fn info_of(active: &Active<'_>, size: u32) -> DzCallInfo {
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
        let known = Runner::running().is_some_and(|runner| runner.inbox_of(id).is_some());
        if let Some(line) = bytes(line) {
            serve::log_line(if known { id } else { 0 }, level, &String::from_utf8_lossy(line));
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
        match active.access.get(key) {
            // SAFETY: the ABI's promise about `to`.
            Some(value) => unsafe { store(to, value_of(&value)) },
            None => abi::DZ_E_NOT_FOUND,
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
    let Some(prefix) = bytes(prefix) else { return abi::DZ_E_INVALID };
    let mut after: Option<Vec<u8>> = None;
    loop {
        let mut batch: Vec<(DzSlice, DzValue)> = Vec::with_capacity(SCAN_BATCH);
        let status = with_call(call, |active| {
            active.access.scan(prefix, after.as_deref(), |key, value| {
                batch.push((DzSlice::new(key), value_of(&value)));
                if batch.len() == SCAN_BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            abi::DZ_OK
        });
        if status != abi::DZ_OK {
            return status;
        }
        for (key, value) in &batch {
            // SAFETY: the plugin's own function with its own context; key and value stay in place until the transaction is dropped,
            // even if the visitor deletes them.
            if unsafe { visit(ctx, key, value) } != 0 {
                return abi::DZ_OK;
            }
        }
        match batch.last() {
            // SAFETY: as above: the key is still there.
            Some((key, _)) if batch.len() == SCAN_BATCH => after = Some(unsafe { key.as_bytes() }.to_vec()),
            _ => return abi::DZ_OK,
        }
    }
}

unsafe extern "C" fn commit(call: *mut DzCall, seq: *mut u64) -> i32 {
    with_call(call, |active| match active.commit() {
        Ok(_) if seq.is_null() => abi::DZ_OK,
        // SAFETY: the ABI's promise about `seq`.
        Ok(number) => unsafe { store(seq, number) },
        Err(status) => status,
    })
}

fn status_of(result: Result<(), i32>) -> i32 {
    result.err().unwrap_or(abi::DZ_OK)
}
