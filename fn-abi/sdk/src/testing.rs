//! A process in memory, to test functions without a node.
//!
//! ```
//! use denizen::prelude::*;
//!
//! #[function]
//! fn shout(_: &Context, text: &str) -> String {
//!     text.to_uppercase()
//! }
//!
//! denizen::export!(shout);
//!
//! # fn main() {
//! let mut process = denizen::testing::process!();
//! assert_eq!(process.call("shout", "hello").unwrap().text(), "HELLO");
//! # }
//! ```
//!
//! It is a host like any other: it loads the plugin through `denizen_plugin_init` and keeps the rules of the
//! contract (one transaction per call, pointers that stay until the call ends, read-only functions that
//! cannot write). It has no sandbox, no deadline that ends a call, and runs one call at a time.

use denizen_abi::{
    ABI_VERSION, Concurrency, DZ_E_CLOSED, DZ_E_INVALID, DZ_E_NOT_FOUND, DZ_E_QUOTA, DZ_E_READ_ONLY,
    DZ_NO_DEADLINE, DZ_OK, DzCall, DzCallInfo, DzFunction, DzHost, DzInit, DzRegistry, DzSlice, DzType,
    DzValue, FailKind, FunctionEntry, Payload, PluginInit, ScanVisit,
};
use rkyv::util::AlignedVec;
use serde::de::DeserializeOwned;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;

/// Starts a process of the plugin that the enclosing package exports with [`export!`](crate::export). Panics
/// if the plugin refuses to start.
#[doc(hidden)]
#[macro_export]
macro_rules! __testing_process {
    () => {{
        unsafe extern "C" {
            fn denizen_plugin_init(
                host: *const $crate::__private::DzHost,
                init: *const $crate::__private::DzInit,
            ) -> i32;
        }
        // SAFETY: `export!` defines this symbol, once per program.
        match unsafe { $crate::testing::Process::start(denizen_plugin_init) } {
            Ok(process) => process,
            Err(message) => panic!("the plugin does not start: {message}"),
        }
    }};
}
pub use crate::__testing_process as process;

/// A process: the functions of a plugin, and a state that its calls share.
pub struct Process {
    functions: BTreeMap<String, Function>,
    types: BTreeMap<String, Type>,
    state: State,
    commits: u64,
    state_limit_bytes: usize,
    name: String,
}

/// What a plugin declared about a function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Who may run beside it.
    pub concurrency: Concurrency,
    /// What it takes.
    pub input: Payload,
    /// What it gives.
    pub output: Payload,
    /// The layout text of an archived input.
    pub input_layout: String,
    /// The layout text of an archived output.
    pub output_layout: String,
    /// What it is for.
    pub doc: String,
    data: *mut c_void,
    entry: FunctionEntry,
}

/// What a plugin declared about a state type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// Its fingerprint.
    pub fingerprint: u64,
    /// Its layout as text.
    pub layout: String,
}

/// What a caller sends: a body, converted from bytes or text, and what goes with it.
#[derive(Clone, Debug, Default)]
pub struct Input {
    body: Vec<u8>,
    content_type: String,
    caller_left: bool,
    deadline_ms: Option<u64>,
}

/// What a caller gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The content type.
    pub content_type: String,
    /// The bytes.
    pub body: Vec<u8>,
    /// Number of the commit that the answer rests on.
    pub commit: u64,
    /// In how many pieces it was sent; 0 if whole.
    pub pieces: usize,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub kind: FailKind,
    /// The message.
    pub message: String,
}

impl Process {
    /// Starts a process of a plugin. [`process!`] does it for the enclosing package.
    ///
    /// # Errors
    /// What the plugin says when it refuses to start.
    ///
    /// # Safety
    /// `init` keeps the contract of `denizen_plugin_init`, and its library stays loaded.
    pub unsafe fn start(init: PluginInit) -> Result<Process, String> {
        let registry = RefCell::new(Registry::default());
        let start = DzInit {
            size: crate::context::size_of_u32::<DzInit>(),
            abi_version: ABI_VERSION,
            registry: (&raw const registry).cast_mut().cast::<DzRegistry>(),
            image_dir: DzSlice::new(b"/image"),
            manifest: DzSlice::new(br#"{"name":"test"}"#),
        };
        // SAFETY: the caller vouches for `init`; the table is static, the rest lives during the call.
        let status = unsafe { init(&raw const HOST, &raw const start) };
        let registry = registry.into_inner();
        match registry.failure {
            Some(message) => Err(message),
            None if status != DZ_OK => Err(format!("denizen_plugin_init returned {status}")),
            None => Ok(Process {
                functions: registry.functions,
                types: registry.types,
                state: State::new(),
                commits: 0,
                state_limit_bytes: usize::MAX,
                name: "test".to_owned(),
            }),
        }
    }

    /// Gives the process a name; without it, it is called `test`.
    pub fn set_name(&mut self, name: &str) {
        self.name = name.to_owned();
    }

    /// Limits the keys and values of the state to this many bytes together.
    pub fn limit_state(&mut self, bytes: usize) {
        self.state_limit_bytes = bytes;
    }

    /// Calls a function and waits for its answer.
    ///
    /// # Errors
    /// How the function failed; nothing was committed then, unless it committed early.
    ///
    /// # Panics
    /// If there is no such function.
    pub fn call(&mut self, function: &str, input: impl Into<Input>) -> Result<Answer, Failure> {
        let Some(declared) = self.functions.get(function).cloned() else {
            panic!("the plugin has no function `{function}`: it has {:?}", self.functions.keys());
        };
        let call = Invocation::new(self, function, declared.concurrency, input.into());
        // SAFETY: the entry and its data come from this plugin; the invocation lives until after the entry
        // returns.
        let status =
            unsafe { (declared.entry)(declared.data, (&raw const call).cast_mut().cast::<DzCall>()) };
        if status == DZ_OK {
            call.commit();
        }
        self.state = call.committed.take();
        self.commits = call.commits.get();
        if status == DZ_OK { Ok(call.answer()) } else { Err(call.failure(status)) }
    }

    /// The functions by name.
    #[must_use]
    pub fn functions(&self) -> &BTreeMap<String, Function> {
        &self.functions
    }

    /// The state types by name.
    #[must_use]
    pub fn types(&self) -> &BTreeMap<String, Type> {
        &self.types
    }

    /// The keys of the committed state, as text.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    /// Bytes in the committed state, keys included.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        bytes_of(&self.state)
    }

    /// Moves this process's state under another plugin, as a node does when an image is replaced.
    #[must_use]
    pub fn hand_over_to(self, mut successor: Process) -> Process {
        successor.state = self.state;
        successor.commits = self.commits;
        successor
    }
}

impl Input {
    /// A body.
    #[must_use]
    pub fn new(body: impl Into<Vec<u8>>) -> Input {
        Input { body: body.into(), ..Input::default() }
    }

    /// With a content type.
    #[must_use]
    pub fn content_type(self, content_type: &str) -> Input {
        Input { content_type: content_type.to_owned(), ..self }
    }

    /// From a caller that goes away before it reads any of the answer.
    #[must_use]
    pub fn caller_left(self) -> Input {
        Input { caller_left: true, ..self }
    }

    /// With this much time.
    #[must_use]
    pub fn deadline_ms(self, deadline_ms: u64) -> Input {
        Input { deadline_ms: Some(deadline_ms), ..self }
    }
}

macro_rules! input_from {
    ($($type:ty),*) => { $(
        impl From<$type> for Input {
            fn from(body: $type) -> Input {
                Input::new(body)
            }
        }
    )* };
}
input_from!(&str, String, &[u8], Vec<u8>);

impl Answer {
    /// The body as text. Panics if it is not UTF-8.
    #[must_use]
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the answer is UTF-8")
    }

    /// The body as JSON. Panics if it is not.
    #[must_use]
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).expect("the answer is the JSON that is wanted")
    }
}

/// A version of a record. What was handed out stays where it is, because the `Rc` is kept until the call
/// ends.
#[derive(Clone)]
struct Stored {
    bytes: Rc<AlignedVec>,
    fingerprint: u64,
    version: u64,
    validated: Option<&'static Cell<u32>>,
}

type State = BTreeMap<Vec<u8>, Stored>;

fn bytes_of(state: &State) -> usize {
    state.iter().map(|(key, value)| key.len() + value.bytes.len()).sum()
}

/// What a [`DzRegistry`] is here.
#[derive(Default)]
struct Registry {
    functions: BTreeMap<String, Function>,
    types: BTreeMap<String, Type>,
    failure: Option<String>,
}

/// What a [`DzCall`] is here.
struct Invocation {
    process: String,
    function: String,
    concurrency: Concurrency,
    input: AlignedVec,
    /// How far `input_read` has come.
    read: Cell<usize>,
    content_type: String,
    caller_left: bool,
    deadline_ms: u64,
    committed: RefCell<State>,
    /// The write set: `None` deletes.
    writes: RefCell<BTreeMap<Vec<u8>, Option<Stored>>>,
    /// Keeps what the function was handed, whatever happens to its key.
    handed_out: RefCell<Vec<Rc<AlignedVec>>>,
    state_limit_bytes: usize,
    commits: Cell<u64>,
    reply_type: RefCell<String>,
    reply: RefCell<Option<AlignedVec>>,
    streamed: RefCell<Vec<u8>>,
    pieces: Cell<usize>,
    failure: RefCell<Option<Failure>>,
}

impl Invocation {
    fn new(process: &mut Process, function: &str, concurrency: Concurrency, input: Input) -> Invocation {
        let mut body = AlignedVec::new();
        body.extend_from_slice(&input.body);
        Invocation {
            process: process.name.clone(),
            function: function.to_owned(),
            concurrency,
            input: body,
            read: Cell::new(0),
            content_type: input.content_type,
            caller_left: input.caller_left,
            deadline_ms: input.deadline_ms.unwrap_or(DZ_NO_DEADLINE),
            committed: RefCell::new(std::mem::take(&mut process.state)),
            writes: RefCell::default(),
            handed_out: RefCell::default(),
            state_limit_bytes: process.state_limit_bytes,
            commits: Cell::new(process.commits),
            reply_type: RefCell::new("application/octet-stream".to_owned()),
            reply: RefCell::default(),
            streamed: RefCell::default(),
            pieces: Cell::new(0),
            failure: RefCell::default(),
        }
    }

    /// The state with this invocation's writes.
    fn seen(&self) -> State {
        let mut state = self.committed.borrow().clone();
        for (key, value) in &*self.writes.borrow() {
            match value {
                Some(value) => state.insert(key.clone(), value.clone()),
                None => state.remove(key),
            };
        }
        state
    }

    fn find(&self, key: &[u8]) -> Option<Stored> {
        match self.writes.borrow().get(key) {
            Some(written) => written.clone(),
            None => self.committed.borrow().get(key).cloned(),
        }
    }

    fn hand_out(&self, stored: &Stored) -> DzValue {
        self.handed_out.borrow_mut().push(Rc::clone(&stored.bytes));
        DzValue {
            ptr: stored.bytes.as_ptr(),
            len: stored.bytes.len(),
            fingerprint: stored.fingerprint,
            version: stored.version,
            validated: stored.validated.map_or(std::ptr::null_mut(), Cell::as_ptr),
        }
    }

    fn write(&self, key: &[u8], value: Option<Stored>) -> i32 {
        if self.concurrency == Concurrency::ReadOnly {
            return DZ_E_READ_ONLY;
        }
        if key.is_empty() {
            return DZ_E_INVALID;
        }
        let before = self.writes.borrow_mut().insert(key.to_vec(), value);
        if bytes_of(&self.seen()) <= self.state_limit_bytes {
            return DZ_OK;
        }
        match before {
            Some(before) => self.writes.borrow_mut().insert(key.to_vec(), before),
            None => self.writes.borrow_mut().remove(key),
        };
        DZ_E_QUOTA
    }

    fn commit(&self) {
        let mut committed = self.seen();
        let writes = std::mem::take(&mut *self.writes.borrow_mut());
        if writes.is_empty() {
            return;
        }
        self.commits.set(self.commits.get() + 1);
        for key in writes.keys() {
            if let Some(stored) = committed.get_mut(key) {
                stored.version = self.commits.get();
                // One cell per version, for as long as the program runs, as the contract says.
                stored.validated = Some(Box::leak(Box::new(Cell::new(0))));
            }
        }
        self.committed.replace(committed);
    }

    fn answer(&self) -> Answer {
        let whole = self.reply.borrow_mut().take().map(AlignedVec::into_vec);
        Answer {
            content_type: self.reply_type.take(),
            body: whole.unwrap_or_else(|| self.streamed.take()),
            commit: self.commits.get(),
            pieces: self.pieces.get(),
        }
    }

    fn failure(&self, status: i32) -> Failure {
        let unsaid = || Failure { kind: FailKind::Failed, message: format!("function returned {status}") };
        self.failure.take().unwrap_or_else(unsaid)
    }
}

static HOST: DzHost = DzHost {
    size: crate::context::size_of_u32::<DzHost>(),
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
    let ty = Type { fingerprint: declared.fingerprint, layout };
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

unsafe extern "C" fn state_get(raw: *mut DzCall, key: DzSlice, value: *mut DzValue) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    let Some(stored) = call.find(key) else { return DZ_E_NOT_FOUND };
    // SAFETY: a plugin's variable.
    unsafe { *value = call.hand_out(&stored) };
    DZ_OK
}

unsafe extern "C" fn state_put(raw: *mut DzCall, key: DzSlice, fingerprint: u64, value: DzSlice) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key, value) = unsafe { (invocation(raw), bytes(key), bytes(value)) };
    let mut copy = AlignedVec::new();
    copy.extend_from_slice(value);
    call.write(key, Some(Stored { bytes: Rc::new(copy), fingerprint, version: 0, validated: None }))
}

unsafe extern "C" fn state_delete(raw: *mut DzCall, key: DzSlice) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, key) = unsafe { (invocation(raw), bytes(key)) };
    if call.find(key).is_none() {
        return DZ_E_NOT_FOUND;
    }
    call.write(key, None)
}

unsafe extern "C" fn state_scan(
    raw: *mut DzCall,
    prefix: DzSlice,
    visit: ScanVisit,
    ctx: *mut c_void,
) -> i32 {
    // SAFETY: a plugin's call and bytes.
    let (call, prefix) = unsafe { (invocation(raw), bytes(prefix)) };
    for (key, stored) in call.seen().range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix)) {
        let (key, value) = (DzSlice::new(key), call.hand_out(stored));
        // SAFETY: the plugin's own code and data; the key lives during the visit.
        if unsafe { visit(ctx, &raw const key, &raw const value) } != 0 {
            break;
        }
    }
    DZ_OK
}

unsafe extern "C" fn commit(raw: *mut DzCall, seq: *mut u64) -> i32 {
    // SAFETY: a plugin's call.
    let call = unsafe { invocation(raw) };
    if call.concurrency != Concurrency::Exclusive {
        return DZ_E_READ_ONLY;
    }
    call.commit();
    // SAFETY: a plugin's variable.
    unsafe { *seq = call.commits.get() };
    DZ_OK
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<_> = self.functions.keys().collect();
        f.debug_struct("Process").field("functions", &functions).field("keys", &self.keys()).finish()
    }
}
