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
//! cannot write, conflicts, savepoints). It has no sandbox, no deadline that ends a call, and no threads:
//! [`Process::call_beside`] makes calls while another is under way, so that a conflict can be tested.

use denizen_abi::{
    ABI_VERSION, Concurrency, DZ_E_CONFLICT, DZ_E_NO_SPACE, DZ_OK, DzCall, DzInit, DzRegistry, DzSlice,
    FailKind, FunctionEntry, Payload, PluginInit,
};
use host::{HOST, Invocation, Registry};
use rkyv::util::AlignedVec;
use serde::de::DeserializeOwned;
use state::{Store, bytes_of};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;

mod host;
mod state;

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
    store: Rc<RefCell<Store>>,
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
    /// Fingerprints of the older layouts that the plugin migrates to it.
    pub migrates_from: Vec<u64>,
}

/// What a caller sends: a body, converted from bytes or text, and what goes with it.
#[derive(Clone, Debug, Default)]
pub struct Input {
    body: Vec<u8>,
    content_type: String,
    caller_left: bool,
    deadline_ms: Option<u64>,
    traceparent: String,
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
            size: crate::call::size_of_u32::<DzInit>(),
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
                store: Rc::default(),
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
        self.store.borrow_mut().limit_bytes = bytes;
    }

    /// Damages a record, as a disk might: it cannot be read any more until it is written anew.
    pub fn damage(&mut self, key: impl AsRef<[u8]>) {
        self.store.borrow_mut().damaged.insert(key.as_ref().to_vec());
    }

    /// Fills the disk, or makes room on it: without room, nothing can be committed.
    pub fn fill_disk(&mut self, full: bool) {
        self.store.borrow_mut().disk_full = full;
    }

    /// Gives the process files under `/state`, as `files = "state"` in the manifest does. There is no such folder here: what
    /// counts is how often they were [kept](Process::files_synced).
    pub fn keep_files(&mut self) {
        self.store.borrow_mut().files.get_or_insert(0);
    }

    /// How often functions kept their files.
    #[must_use]
    pub fn files_synced(&self) -> u64 {
        self.store.borrow().files.unwrap_or(0)
    }

    /// The last commit that a function asked to survive a crash of the machine; 0 if none.
    #[must_use]
    pub fn durable_commit(&self) -> u64 {
        self.store.borrow().durable
    }

    /// Calls a function and waits for its answer.
    ///
    /// # Errors
    /// How the function failed; nothing was committed then, unless it committed early.
    ///
    /// # Panics
    /// If there is no such function.
    pub fn call(&mut self, function: &str, input: impl Into<Input>) -> Result<Answer, Failure> {
        self.call_beside(function, input, |_| ())
    }

    /// Calls a function, and makes the calls of `others` while it is under way: it sees the state as it was
    /// before them, and commits after them. An exclusive function that meets a conflict is run again, as on a node.
    ///
    /// # Errors
    /// As for [`call`](Process::call).
    ///
    /// # Panics
    /// If there is no such function.
    pub fn call_beside(
        &mut self,
        function: &str,
        input: impl Into<Input>,
        others: impl FnOnce(&mut Process),
    ) -> Result<Answer, Failure> {
        let input = input.into();
        let begun = self.begin(function, &input);
        others(self);
        match self.run(function, &begun) {
            Err(failure) if self.may_run_again(function, &begun, &failure) => {
                self.run(function, &self.begin(function, &input))
            }
            outcome => outcome,
        }
    }

    fn declared(&self, function: &str) -> &Function {
        match self.functions.get(function) {
            Some(declared) => declared,
            None => {
                panic!("the plugin has no function `{function}`: it has {:?}", self.functions.keys())
            }
        }
    }

    fn begin(&self, function: &str, input: &Input) -> Invocation {
        Invocation::new(self, function, self.declared(function).concurrency, input)
    }

    fn run(&self, function: &str, call: &Invocation) -> Result<Answer, Failure> {
        let declared = self.declared(function);
        let raw = std::ptr::from_ref(call).cast_mut().cast::<DzCall>();
        // SAFETY: the entry and its data come from this plugin; the invocation lives until after the entry
        // returns.
        let status = unsafe { (declared.entry)(declared.data, raw) };
        if status != DZ_OK {
            let unsaid =
                || Failure { kind: FailKind::Failed, message: format!("function returned {status}") };
            return Err(call.failure.take().unwrap_or_else(unsaid));
        }
        let commit = call.commit().map_err(not_committed)?;
        let whole = call.reply.borrow_mut().take().map(AlignedVec::into_vec);
        Ok(Answer {
            content_type: call.reply_type.take(),
            body: whole.unwrap_or_else(|| call.streamed.take()),
            commit,
            pieces: call.pieces.get(),
        })
    }

    fn may_run_again(&self, function: &str, call: &Invocation, failure: &Failure) -> bool {
        failure.kind == FailKind::Conflict
            && self.declared(function).concurrency == Concurrency::Exclusive
            && !call.committed.get()
            && call.pieces.get() == 0
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
        self.store.borrow().records.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    /// Bytes in the committed state, keys included.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        bytes_of(&self.store.borrow().records)
    }

    /// Moves this process's state under another plugin, as a node does when an image is replaced.
    #[must_use]
    pub fn hand_over_to(self, mut successor: Process) -> Process {
        successor.store = self.store;
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

    /// The same, as a part of a trace: a `traceparent` of W3C Trace Context.
    #[must_use]
    pub fn traceparent(self, traceparent: impl Into<String>) -> Input {
        Input { traceparent: traceparent.into(), ..self }
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

/// What a commit that was refused means for the caller.
fn not_committed(status: i32) -> Failure {
    let (kind, message) = match status {
        DZ_E_CONFLICT => {
            (FailKind::Conflict, "another invocation changed first what this one wrote or watches")
        }
        DZ_E_NO_SPACE => (FailKind::Quota, "the disk is full"),
        _ => (FailKind::Internal, "the commit failed"),
    };
    Failure { kind, message: message.to_owned() }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<_> = self.functions.keys().collect();
        f.debug_struct("Process").field("functions", &functions).field("keys", &self.keys()).finish()
    }
}
