//! The C contract between a function plugin and its host, as `no_std` types.
//!
//! A plugin is a shared library. It exports two symbols, and everything else travels through them:
//!
//! * [`ABI_SYMBOL`]: a `uint32_t` that holds [`ABI_VERSION`]. The host reads it from the file, before any
//!   code of the plugin runs, and refuses another version.
//! * [`INIT_SYMBOL`]: a function of type [`PluginInit`]. The host calls it once, on one thread, with its
//!   table of services ([`DzHost`]) and the facts of this start ([`DzInit`]). It declares functions and state
//!   types and returns [`DZ_OK`].
//!
//! `fn-abi/include/denizen.h` says the same in C; `tests/header.rs` compiles it and compares every size,
//! offset, type and number. The rules that hold for all of it:
//!
//! * **Who owns what.** Text and bytes that a plugin hands to the host are copied before the host returns.
//!   Pointers that the host hands to a function (input, names, state) stay valid, and what they point to
//!   stays unchanged, until the entry returns, whatever is put, deleted or committed meanwhile. The
//!   exceptions say so.
//! * **Threads.** An entry runs on any thread of the host, and entries of read-only and concurrent functions run in
//!   parallel. A [`DzCall`] is used only on the thread that its entry was called on, and not after the entry
//!   returned; [`DzHost::cancelled`] and [`DzHost::log`] alone may be called from the function's other
//!   threads too, while the entry has not returned.
//! * **Growth.** A struct that may grow begins with its `size` in bytes as its writer knows it. New fields
//!   come last; a reader looks at no field beyond `size`. Anything else is a new [`ABI_VERSION`].
//! * **No unwinding.** No exception and no panic crosses this border, in either direction.
//! * **Never unloaded.** A plugin stays loaded until its process ends; the host's table lives as long.
//! * **Trust.** Both sides share an address space, so these rules protect against accidents. What a plugin
//!   must not be able to do is the sandbox's business.
#![no_std]

use core::ffi::{CStr, c_void};
use core::marker::{PhantomData, PhantomPinned};

mod layout;

/// The version of this contract. A host loads plugins of exactly this version.
pub const ABI_VERSION: u32 = 1;

/// Name of the data symbol (`uint32_t`) that holds the version a plugin was built for.
pub const ABI_SYMBOL: &CStr = c"denizen_plugin_abi";

/// Name of the function symbol, of type [`PluginInit`].
pub const INIT_SYMBOL: &CStr = c"denizen_plugin_init";

/// Alignment in bytes of every input, value and reply buffer that the host hands out.
pub const BUFFER_ALIGN: usize = 16;

/// [`DzCallInfo::deadline_ms`] of an invocation that has no deadline.
pub const DZ_NO_DEADLINE: u64 = u64::MAX;

/// Done.
pub const DZ_OK: i32 = 0;
/// There is no such key.
pub const DZ_E_NOT_FOUND: i32 = -1;
/// The record was written with another layout than the one asked for.
pub const DZ_E_TYPE_CHANGED: i32 = -2;
/// The process's state quota is full.
pub const DZ_E_QUOTA: i32 = -3;
/// A read-only function asked for a write.
pub const DZ_E_READ_ONLY: i32 = -4;
/// The input, reply, key or value is over a limit of the image or of the host.
pub const DZ_E_TOO_LARGE: i32 = -5;
/// An argument is malformed, or this is not the moment for the call.
pub const DZ_E_INVALID: i32 = -6;
/// The deadline passed, or the invocation was cancelled.
pub const DZ_E_CANCELLED: i32 = -7;
/// The host's disk or its connection to the agent failed.
pub const DZ_E_IO: i32 = -8;
/// The caller went away.
pub const DZ_E_CLOSED: i32 = -9;
/// The thing is in use elsewhere; later it may work.
pub const DZ_E_BUSY: i32 = -10;
/// Another invocation changed what this one read or wrote: nothing was committed, and the call may be made again.
pub const DZ_E_CONFLICT: i32 = -11;
/// The node's disk is full.
pub const DZ_E_NO_SPACE: i32 = -12;
/// The record is damaged: it is no longer what was written. Others can be read, and putting it anew heals it.
pub const DZ_E_CORRUPT: i32 = -13;

/// A `u32` enumeration of the contract: stored as a plain `u32` in the structs, because the other side may
/// write any number.
macro_rules! abi_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// Every value, in the order of their numbers.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The value with this number, or `None`: the other side knows more than this build, or is
            /// broken.
            #[must_use]
            pub const fn from_u32(number: u32) -> Option<$name> {
                match number { $($value => Some($name::$variant),)* _ => None }
            }

            /// The number that stands for it in the structs.
            #[must_use]
            pub const fn as_u32(self) -> u32 {
                self as u32
            }
        }
    };
}

abi_enum! {
    /// How the invocations of a function may overlap with others of the same process.
    Concurrency {
        /// Alone among the exclusive ones. May write.
        Exclusive = 0,
        /// Beside any other, on the state as it was when it began. Cannot write.
        ReadOnly = 1,
        /// Beside any other, with a write set of its own that may conflict at commit.
        Concurrent = 2,
    }
}

abi_enum! {
    /// What a function takes or gives. Declared for people and clients; the host treats all but `Stream`
    /// alike.
    Payload {
        /// Any bytes.
        Bytes = 0,
        /// JSON text.
        Json = 1,
        /// An rkyv archive, whose layout text is declared beside it.
        Archived = 2,
        /// Bytes that are read or written piece by piece. Only for an input declared so does the host start
        /// the function before the whole input has arrived.
        Stream = 3,
    }
}

abi_enum! {
    /// Who is at fault for an error.
    Blame {
        /// The caller sent something wrong.
        Caller = 0,
        /// The function is wrong.
        Function = 1,
        /// The node is in trouble.
        Host = 2,
        /// The swap store is in trouble.
        Store = 3,
    }
}

abi_enum! {
    /// Whether the same call may be sent again.
    Retry {
        /// It would fail again.
        Never = 0,
        /// Nothing was committed.
        Safe = 1,
        /// It may have been committed.
        Unknown = 2,
    }
}

abi_enum! {
    /// What a reply's commit survives.
    Durability {
        /// The end of the sandbox and of the agent.
        Process = 0,
        /// A crash of the machine.
        Node = 1,
        /// The loss of the machine.
        Store = 2,
    }
}

abi_enum! {
    /// How grave a log line is.
    LogLevel {
        /// Something failed.
        Error = 0,
        /// Something is odd.
        Warn = 1,
        /// Something happened.
        Info = 2,
        /// For whoever looks for a fault.
        Debug = 3,
    }
}

abi_enum! {
    /// Why an invocation failed, as the function says it to [`DzHost::fail`].
    FailKind {
        /// The function's own error.
        Failed = 0,
        /// The caller's input cannot be used.
        BadInput = 1,
        /// The function panicked.
        Panicked = 2,
        /// A record has another layout than the plugin expects.
        TypeChanged = 3,
        /// The state quota is full.
        Quota = 4,
        /// The input or the reply is over a limit.
        TooLarge = 5,
        /// The deadline passed, or the caller went away.
        Cancelled = 6,
        /// The host or the SDK broke a rule of this contract.
        Internal = 7,
        /// Another invocation changed what this one read or wrote.
        Conflict = 8,
        /// A record is damaged.
        Corrupt = 9,
    }
}

/// Bytes that somebody else owns. `ptr` may be null where `len` is 0. Names and messages are UTF-8, not
/// terminated.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzSlice {
    /// First byte.
    pub ptr: *const u8,
    /// Number of bytes.
    pub len: usize,
}

impl DzSlice {
    /// No bytes.
    pub const EMPTY: DzSlice = DzSlice { ptr: core::ptr::null(), len: 0 };

    /// A view of `bytes`, for as long as the callee is allowed to look at them.
    #[must_use]
    pub const fn new(bytes: &[u8]) -> DzSlice {
        DzSlice { ptr: bytes.as_ptr(), len: bytes.len() }
    }

    /// The bytes. A null pointer gives no bytes.
    ///
    /// # Safety
    /// `ptr` is null, or points to `len` initialised bytes that nobody changes or frees during `'a`.
    #[must_use]
    pub const unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.ptr.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: not null, and the caller vouches for length, initialisation and lifetime.
        unsafe { core::slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// One invocation, as the host knows it. Opaque to the plugin; see the crate's header for its lifetime and
/// thread.
#[repr(C)]
#[allow(missing_debug_implementations, reason = "opaque: only its address means anything here")]
pub struct DzCall {
    _private: [u8; 0],
    _not_send_sync_unpin: PhantomData<(*mut u8, PhantomPinned)>,
}

/// Where a plugin's declarations go. Opaque to the plugin; valid only until `denizen_plugin_init` returns.
#[repr(C)]
#[allow(missing_debug_implementations, reason = "opaque: only its address means anything here")]
pub struct DzRegistry {
    _private: [u8; 0],
    _not_send_sync_unpin: PhantomData<(*mut u8, PhantomPinned)>,
}

/// The code of a function. `data` is what was declared beside it. Returns [`DZ_OK`] to commit and reply,
/// anything else to abort: then nothing of it is committed, and what [`DzHost::fail`] recorded is the error
/// (without a record: [`FailKind::Failed`], "function returned N"). A function that gave no reply has an
/// empty one.
pub type FunctionEntry = unsafe extern "C" fn(data: *mut c_void, call: *mut DzCall) -> i32;

/// Type of the symbol [`INIT_SYMBOL`]. Returns [`DZ_OK`], or anything else after [`DzHost::init_failed`]; the
/// plugin is then refused. `init` and what it points to are valid during the call, `host` until the process
/// ends.
pub type PluginInit = unsafe extern "C" fn(host: *const DzHost, init: *const DzInit) -> i32;

/// Sees one record of a [`DzHost::state_scan`]. Not zero ends the scan. It may call [`DzHost::state_get`] and
/// no other `state_` service.
pub type ScanVisit =
    unsafe extern "C" fn(ctx: *mut c_void, key: *const DzSlice, value: *const DzValue) -> i32;

/// Sees one key of a [`DzHost::state_keys`]. Not zero ends it. It may call the `state_` services that only read.
pub type KeysVisit =
    unsafe extern "C" fn(ctx: *mut c_void, key: *const DzSlice, info: *const DzKeyInfo) -> i32;

/// A function that a plugin offers. The plugin writes it, the host reads and copies it during
/// [`DzHost::declare_function`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzFunction {
    /// `sizeof(dz_function)`, in bytes.
    pub size: u32,
    /// A [`Concurrency`].
    pub concurrency: u32,
    /// A [`Payload`]: what the function takes.
    pub input: u32,
    /// A [`Payload`]: what the function gives.
    pub output: u32,
    /// Its name: 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`; once per plugin.
    pub name: DzSlice,
    /// Layout text of an archived input, for people. May be empty.
    pub input_layout: DzSlice,
    /// Layout text of an archived output, for people. May be empty.
    pub output_layout: DzSlice,
    /// What the function is for, for people. May be empty.
    pub doc: DzSlice,
    /// Handed to `entry` at each invocation; the host never looks at it. The plugin keeps it valid until the
    /// process ends, and safe to use from several threads where the function is read-only or concurrent. This
    /// is how one piece of code serves functions that were found at run time, in scripts for instance.
    pub data: *mut c_void,
    /// The code.
    pub entry: FunctionEntry,
}

/// A layout of records that a plugin keeps in state. The plugin writes it, the host reads and copies it
/// during [`DzHost::declare_type`], to tell before a new plugin serves whether it can read what the old one
/// wrote.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzType {
    /// `sizeof(dz_type)`, in bytes.
    pub size: u32,
    /// Always 0.
    pub _pad: u32,
    /// A hash of everything that decides how the records' bytes are read. Never 0.
    pub fingerprint: u64,
    /// The type's name, once per plugin. A type whose name stays and whose fingerprint differs has a changed
    /// layout.
    pub name: DzSlice,
    /// The layout as text for people, such as `struct Counter { count: u64 }`.
    pub layout: DzSlice,
    /// Fingerprints of older layouts whose records the plugin turns into this one when it meets them. May be null where
    /// `migrates_from_len` is 0. A host takes a new plugin over such records, and a plugin without them only over its own.
    pub migrates_from: *const u64,
    /// How many those are.
    pub migrates_from_len: usize,
}

/// A record of the state. The host writes it, the plugin reads it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzValue {
    /// First byte, aligned to [`BUFFER_ALIGN`]. Valid and unchanged until the entry returns, even if the key
    /// is put, deleted or committed again before that.
    pub ptr: *const u8,
    /// Number of bytes.
    pub len: usize,
    /// What [`DzHost::state_put`] was given; 0 for raw bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it; 0 for a write of this invocation that is not committed yet.
    pub version: u64,
    /// A cell that the host owns, one per stored version, valid until the process ends; or null. It starts at
    /// 0; the plugin sets it to 1, atomically, once it has found the bytes to be a valid archive of the type
    /// with this `fingerprint`.
    pub validated: *mut u32,
}

/// What is known of a record without reading it. The plugin writes `size` (or the host, for a visit), the host the
/// rest.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzKeyInfo {
    /// `sizeof(dz_key_info)` as the plugin knows it, in bytes. The host writes no field beyond it.
    pub size: u32,
    /// Always 0.
    pub _pad: u32,
    /// Length of the record in bytes.
    pub len: u64,
    /// What [`DzHost::state_put`] was given; 0 for raw bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it; 0 for a write of this invocation that is not committed yet.
    pub version: u64,
    /// When that was, in milliseconds since 1970; 0 for a write of this invocation.
    pub time_ms: u64,
}

/// The facts of an invocation. The plugin writes `size`, the host the rest; texts are valid until the entry
/// returns.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzCallInfo {
    /// `sizeof(dz_call_info)` as the plugin knows it, in bytes. The host writes no field beyond it.
    pub size: u32,
    /// A [`Concurrency`]: how this invocation runs.
    pub concurrency: u32,
    /// Name of the process.
    pub process: DzSlice,
    /// Name of the application.
    pub app: DzSlice,
    /// The invocation's id, as in `Denizen-Invocation` and in the logs.
    pub invocation: DzSlice,
    /// Content type of the input; empty if the caller gave none.
    pub content_type: DzSlice,
    /// Name of the function.
    pub function: DzSlice,
    /// The process's ownership term.
    pub epoch: u64,
    /// Milliseconds that were left when [`DzHost::call_info`] was called; 0 if it has passed,
    /// [`DZ_NO_DEADLINE`] if there is none.
    pub deadline_ms: u64,
    /// The trace that the call belongs to: `traceparent` of W3C Trace Context, version 00, 55 characters. Empty where the caller gave none,
    /// and from a host that does not know this field.
    pub traceparent: DzSlice,
}

/// The facts of this start. The host writes it, the plugin reads it during `denizen_plugin_init`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzInit {
    /// `sizeof(dz_init)` as the host knows it, in bytes.
    pub size: u32,
    /// The host's [`ABI_VERSION`].
    pub abi_version: u32,
    /// Goes into the `declare_` services.
    pub registry: *mut DzRegistry,
    /// The image's directory, read-only, as the plugin sees it (`/image`). Empty where the host gives none.
    pub image_dir: DzSlice,
    /// The image's manifest (`denizen.toml`) as JSON text.
    pub manifest: DzSlice,
}

/// The host's services. The host writes it once; it stays valid and unchanged until the process ends.
///
/// What a service does to a wrong argument that it can see (an unknown number, a name against the rules, a
/// service at a wrong moment): [`DZ_E_INVALID`], and nothing happens. Null or dangling pointers it cannot
/// see.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DzHost {
    /// `sizeof(dz_host)` as the host knows it, in bytes.
    pub size: u32,
    /// The host's [`ABI_VERSION`].
    pub abi_version: u32,

    /// During init: offers a function. [`DZ_E_INVALID`]: a bad name, or one that was declared before.
    pub declare_function: unsafe extern "C" fn(registry: *mut DzRegistry, function: *const DzFunction) -> i32,
    /// During init: names a layout of records. [`DZ_E_INVALID`]: fingerprint 0, or a name declared before
    /// with another.
    pub declare_type: unsafe extern "C" fn(registry: *mut DzRegistry, ty: *const DzType) -> i32,
    /// During init: says why it fails. Then return something other than [`DZ_OK`].
    pub init_failed: unsafe extern "C" fn(registry: *mut DzRegistry, message: DzSlice) -> i32,

    /// Fills in the facts of the invocation. Set `size` first.
    pub call_info: unsafe extern "C" fn(call: *mut DzCall, info: *mut DzCallInfo) -> i32,
    /// 1 if the deadline passed or the caller went away, else 0. Cheap; ask often in long loops. Any thread.
    pub cancelled: unsafe extern "C" fn(call: *mut DzCall) -> i32,
    /// Logs one line of UTF-8 at a [`LogLevel`]. `call` may be null: the line then belongs to no invocation.
    /// Any thread.
    pub log: unsafe extern "C" fn(call: *mut DzCall, level: u32, text: DzSlice),

    /// The whole input, contiguous and aligned to [`BUFFER_ALIGN`]; waits until all of it has arrived. Again:
    /// the same bytes. [`DZ_E_TOO_LARGE`]: over the image's `body` limit. [`DZ_E_CLOSED`]: the caller broke
    /// it off. [`DZ_E_INVALID`]: `input_read` has begun.
    pub input: unsafe extern "C" fn(call: *mut DzCall, bytes: *mut DzSlice) -> i32,
    /// The next bytes of the input, at most `capacity` of them, into `buffer`, their number into `*len`;
    /// waits until there is one. `*len == 0`: the end. Errors as for `input`.
    pub input_read:
        unsafe extern "C" fn(call: *mut DzCall, buffer: *mut u8, capacity: usize, len: *mut usize) -> i32,

    /// Content type of the reply; without it `application/octet-stream`. [`DZ_E_INVALID`] after the first
    /// byte of a streamed reply, or if it is no header value.
    pub reply_content_type: unsafe extern "C" fn(call: *mut DzCall, content_type: DzSlice) -> i32,
    /// A buffer of `len` bytes, aligned to [`BUFFER_ALIGN`] and zeroed, that is the whole reply. The function
    /// writes it before it returns. At most once, and not beside `reply_write`. [`DZ_E_TOO_LARGE`]: over the
    /// reply limit.
    pub reply_alloc: unsafe extern "C" fn(call: *mut DzCall, len: usize, buffer: *mut *mut u8) -> i32,
    /// Sends the next bytes of a streamed reply now; waits while the caller reads slower. Not beside
    /// `reply_alloc`. [`DZ_E_CLOSED`]: the caller went away. [`DZ_E_CANCELLED`]: the deadline passed while
    /// waiting.
    pub reply_write: unsafe extern "C" fn(call: *mut DzCall, bytes: DzSlice) -> i32,
    /// Records why the invocation fails: a [`FailKind`] and a message for the caller. The last one counts,
    /// and only if the entry then returns something other than [`DZ_OK`].
    pub fail: unsafe extern "C" fn(call: *mut DzCall, kind: u32, message: DzSlice) -> i32,

    /// The record under a key, this invocation's own writes included. [`DZ_E_NOT_FOUND`]: there is none.
    /// [`DZ_E_CORRUPT`]: it is damaged. [`DZ_E_TOO_LARGE`]: the key is too long to be one; [`DZ_E_INVALID`]: it is empty.
    pub state_get: unsafe extern "C" fn(call: *mut DzCall, key: DzSlice, value: *mut DzValue) -> i32,
    /// Writes a record as part of the invocation's transaction. [`DZ_E_QUOTA`], [`DZ_E_READ_ONLY`],
    /// [`DZ_E_TOO_LARGE`] (key or value), [`DZ_E_INVALID`] (an empty key).
    pub state_put:
        unsafe extern "C" fn(call: *mut DzCall, key: DzSlice, fingerprint: u64, value: DzSlice) -> i32,
    /// Deletes a record as part of the transaction. [`DZ_E_NOT_FOUND`]: there is none. [`DZ_E_READ_ONLY`].
    pub state_delete: unsafe extern "C" fn(call: *mut DzCall, key: DzSlice) -> i32,
    /// Shows every record whose key begins with `prefix` to `visit`, in the order of the keys' bytes, this
    /// invocation's own writes included. The key's bytes are valid during the visit only, the value's as
    /// after `state_get`. Returns [`DZ_OK`] also when `visit` ended it.
    pub state_scan:
        unsafe extern "C" fn(call: *mut DzCall, prefix: DzSlice, visit: ScanVisit, ctx: *mut c_void) -> i32,
    /// Commits what was written so far and begins the next transaction: an abort later does not take it back.
    /// Its number goes to `*seq` (the last commit's, if there was nothing to write). Exclusive and concurrent
    /// functions, else [`DZ_E_READ_ONLY`]. [`DZ_E_CONFLICT`], [`DZ_E_QUOTA`], [`DZ_E_NO_SPACE`]: nothing was
    /// committed and the writes are still there; [`DZ_E_IO`]: nobody knows. Savepoints end.
    pub commit: unsafe extern "C" fn(call: *mut DzCall, seq: *mut u64) -> i32,

    /// A part of a record: from `offset`, at most `len` bytes, as much of it as there is (none behind its end).
    /// Otherwise as `state_get`.
    pub state_get_range: unsafe extern "C" fn(
        call: *mut DzCall,
        key: DzSlice,
        offset: u64,
        len: u64,
        part: *mut DzSlice,
    ) -> i32,
    /// What is known of a record, without reading it. Set `size` first. [`DZ_E_NOT_FOUND`].
    pub state_info: unsafe extern "C" fn(call: *mut DzCall, key: DzSlice, info: *mut DzKeyInfo) -> i32,
    /// Shows every key that begins with `prefix` and comes after `after` (empty: from the first one) to `visit`, in the
    /// order of their bytes, without reading the records. Otherwise as `state_scan`.
    pub state_keys: unsafe extern "C" fn(
        call: *mut DzCall,
        prefix: DzSlice,
        after: DzSlice,
        visit: KeysVisit,
        ctx: *mut c_void,
    ) -> i32,
    /// A copy of a record, of the same length and fingerprint, that the function changes in place; what is in it when the
    /// transaction commits is committed. `*ptr` is aligned to [`BUFFER_ALIGN`] and may be written until the next
    /// `state_` service that writes the key, `savepoint`, `rollback` or `commit`: then call this again. Values that
    /// `state_get` handed out before do not change; it must not be called for the key while it is being changed.
    /// [`DZ_E_NOT_FOUND`], and what `state_put` and `state_get` return.
    pub state_update:
        unsafe extern "C" fn(call: *mut DzCall, key: DzSlice, ptr: *mut *mut u8, len: *mut usize) -> i32,
    /// Says that the outcome rests on a key, present or not: if another invocation changes it before this one commits,
    /// that is a conflict, as it is for every key that is written. [`DZ_E_READ_ONLY`] in a read-only function, which
    /// sees one commit anyway.
    pub state_watch: unsafe extern "C" fn(call: *mut DzCall, key: DzSlice) -> i32,
    /// Begins a piece of the transaction that can be taken back; `*id` stands for it. Savepoints nest, and end at
    /// `commit`. [`DZ_E_READ_ONLY`].
    pub savepoint: unsafe extern "C" fn(call: *mut DzCall, id: *mut u64) -> i32,
    /// Takes back what was written since a savepoint, and ends it and those begun in it. [`DZ_E_INVALID`]: it has ended.
    pub rollback: unsafe extern "C" fn(call: *mut DzCall, id: u64) -> i32,
    /// Ends a savepoint and those begun in it, and keeps what was written. [`DZ_E_INVALID`]: it has ended.
    pub release: unsafe extern "C" fn(call: *mut DzCall, id: u64) -> i32,
    /// As `commit`, and returns when the commit has a [`Durability`]. [`DZ_E_INVALID`] for [`Durability::Store`], which
    /// this host does not have; nothing was committed then.
    pub commit_at: unsafe extern "C" fn(call: *mut DzCall, durability: u32, seq: *mut u64) -> i32,
    /// Waits until a commit (or the last one, if that is less) has a [`Durability`]. Any function. [`DZ_E_IO`]: the disk
    /// failed. [`DZ_E_INVALID`] as for `commit_at`.
    pub wait_commit: unsafe extern "C" fn(call: *mut DzCall, seq: u64, durability: u32) -> i32,
    /// Keeps the files under `/state` as they are now. This is outside the transaction: an abort does not take it back.
    /// [`DZ_E_INVALID`]: the image has no such files. [`DZ_E_TOO_LARGE`]: a path is too long or too deep.
    /// [`DZ_E_BUSY`]: they changed all the time. [`DZ_E_READ_ONLY`], [`DZ_E_QUOTA`], [`DZ_E_NO_SPACE`], [`DZ_E_IO`].
    pub sync_files: unsafe extern "C" fn(call: *mut DzCall) -> i32,
    /// The whole reply at once, in place of `reply_alloc`. Bytes of the function's own input (`input`) may be sent from where they lie, so
    /// that an echo of any length costs no copy; others are copied. At most once, and not beside `reply_alloc` or `reply_write`.
    /// [`DZ_E_TOO_LARGE`]: over the reply limit.
    pub reply_bytes: unsafe extern "C" fn(call: *mut DzCall, bytes: DzSlice) -> i32,
}
