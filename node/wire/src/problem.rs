//! Every error that a node can answer with, and what a runner's failures are among them.
//!
//! A name here is a promise: it is never renamed and never means something else. `docs/errors.md` is printed from this table. It stands
//! here because both ends of the socket answer callers: the agent over HTTP and in frames, a runner in frames.

pub use self::said::{Deadline, Said, deadline_text, size};

mod said;

/// Whose doing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The caller's.
    Caller,
    /// The function's.
    Function,
    /// The node's.
    Host,
    /// The swap store's, or the disk's under the state.
    Store,
}

impl Blame {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Blame::Caller => "caller",
            Blame::Function => "function",
            Blame::Host => "host",
            Blame::Store => "store",
        }
    }

    /// As frames say it.
    pub const fn framed(self) -> denizen_abi::Blame {
        match self {
            Blame::Caller => denizen_abi::Blame::Caller,
            Blame::Function => denizen_abi::Blame::Function,
            Blame::Host => denizen_abi::Blame::Host,
            Blame::Store => denizen_abi::Blame::Store,
        }
    }
}

/// Whether the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again.
    Never,
    /// Nothing was committed.
    Safe,
    /// It may have been committed.
    Unknown,
}

impl Retry {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Retry::Never => "never",
            Retry::Safe => "safe",
            Retry::Unknown => "unknown",
        }
    }

    /// As frames say it.
    pub const fn framed(self) -> denizen_abi::Retry {
        match self {
            Retry::Never => denizen_abi::Retry::Never,
            Retry::Safe => denizen_abi::Retry::Safe,
            Retry::Unknown => denizen_abi::Retry::Unknown,
        }
    }
}

/// What is always true of one kind of problem.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The end of its URN.
    pub slug: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Whose doing it is.
    pub blame: Blame,
    /// What holds unless the problem says otherwise.
    pub retry: Retry,
    /// Short, for people.
    pub title: &'static str,
    /// When it is answered.
    pub meaning: &'static str,
    /// What to do, unless the problem knows better.
    pub remedy: &'static str,
}

macro_rules! kinds {
    ($($kind:ident $slug:literal $status:literal $blame:ident $retry:ident $title:literal $meaning:literal $remedy:literal;)*) => {
        /// The kinds of problems.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the table says what each is")]
        pub enum Kind { $($kind),* }

        /// One entry for each kind, in the order of the page.
        pub const ENTRIES: [Entry; [$(Kind::$kind),*].len()] = [$(Kind::$kind.entry()),*];

        impl Kind {
            /// All kinds, in the order of the page.
            pub const ALL: [Kind; ENTRIES.len()] = [$(Kind::$kind),*];

            /// What is always true of this kind.
            pub const fn entry(self) -> Entry {
                match self {
                    $(Kind::$kind => Entry {
                        slug: $slug, status: $status, blame: Blame::$blame, retry: Retry::$retry,
                        title: $title,
                        meaning: $meaning,
                        remedy: $remedy,
                    }),*
                }
            }
        }
    };
}

kinds! {
    BadRequest "bad-request" 400 Caller Never "the request cannot be understood"
        "The query cannot be read, or the body broke off before its end"
        "Correct the request; `detail` names the part";
    BadHeader "bad-header" 400 Caller Never "a header has a value that it cannot have"
        "A `Denizen-` header (or `Content-Type`) has a value that it cannot have, or two headers contradict each other"
        "Correct the header that `detail` names";
    BadName "bad-name" 400 Caller Never "this is not a name"
        "A name of an application, process or function has a byte that it cannot have, is empty, too long, or begins with `.` or `-`"
        "Use 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`";
    UnknownPath "unknown-path" 404 Caller Never "nothing is at this path"
        "The interface has no such path" "See docs/http-api.md for the paths";
    BadMethod "bad-method" 405 Caller Never "this path has no such method"
        "The path exists, the method does not; `Allow` names those that do" "Use one of the methods in `Allow`";
    UnknownApp "unknown-app" 404 Caller Never "no such application"
        "No image was deployed under this name" "Deploy it: `denizen image deploy`, or `denizen dev` in its package";
    UnknownProcess "unknown-process" 404 Caller Never "no such process"
        "The process does not exist, and the call or the image (`create = \"explicit\"`) says not to create it"
        "Create it with `POST /v1/apps/APP/processes/NAME`, or leave `Denizen-Create: never` out";
    UnknownFunction "unknown-function" 404 Caller Never "no such function"
        "The application's image does not declare this function" "`detail` lists the functions that there are";
    UnknownKey "unknown-key" 404 Caller Never "no such object"
        "The process's state has no object under this key" "`GET .../state` lists the keys that there are";
    UnknownFile "unknown-file" 404 Caller Never "no such file"
        "No file of this path was captured of the process's `/state`" "`GET .../files` lists those that were";
    UnknownCommit "unknown-commit" 404 Caller Never "no such commit"
        "The process has not made this commit, or lost it before it was durable" "Use a number from `Denizen-Commit`";
    ProcessExists "process-exists" 409 Caller Never "the process exists already"
        "A process was to be created under a name that is taken" "Take another name, or use the process that is there";
    TooManyProcesses "too-many-processes" 429 Caller Safe "the application has as many processes as it may"
        "`limits.processes` of the image is reached"
        "Delete processes that are no longer needed, or raise `limits.processes` in denizen.toml";
    KeyReused "key-reused" 422 Caller Never "the idempotency key stands for another call"
        "A call with this idempotency key was made before, of another function, with another content type or another body"
        "Use a new key for each call, and the same one only to make the same call again";
    InProgress "in-progress" 409 Caller Safe "the same call still runs"
        "An earlier call with this idempotency key runs, and this one has waited for it until its deadline. It has done nothing itself"
        "Make it again with the same key: it gets the reply of the earlier one, or runs if that failed";
    Interrupted "interrupted" 409 Host Unknown "the same call was cut off in the middle"
        "An earlier call with this idempotency key committed a part of its work, and its process ended before it did. It is not run again"
        "Look at what it has done; go on with a new key";
    ProcessNeeded "process-needed" 400 Caller Never "the call names no process"
        "An idempotency key is known to the process that ran the call, and this call leaves the choice of one to the node"
        "Name the process, or leave the key out";
    ForeignHost "foreign-host" 403 Caller Never "the request names another host"
        "The `Host` header is none of this node's names: a web page could be behind it"
        "Use the node's address or `localhost`, or start the node with `--allow-host NAME`";
    ForeignOrigin "foreign-origin" 403 Caller Never "the request comes from another site"
        "The `Origin` header is not this node: a web page elsewhere sent the request"
        "Call from a page that this node serves, or from a program";
    BadToken "bad-token" 401 Caller Never "the token is missing or wrong"
        "A changing call needs `Authorization: Bearer T`, and T must be the content of `DIR/token`"
        "Read the token from the node's directory; the `denizen` command does so by itself";
    NotSupported "not-supported" 501 Caller Never "this node does not do that yet"
        "The call asks for something that the protocol has and this node does not do yet"
        "Leave out what `detail` names";
    EpochMismatch "epoch-mismatch" 409 Caller Safe "the process has another epoch"
        "Over frames only: the connection wants an epoch that the process does not have (any more)"
        "Connect again for the epoch that `detail` names, or for any";
    FunctionsChanged "functions-changed" 409 Host Safe "the functions of the application have changed"
        "Over frames only: the call names its function by its place in a list that is no longer the application's"
        "Call by name again";
    BodyTooLarge "body-too-large" 413 Caller Never "the body is over its limit"
        "The request body is longer than the limit that `detail` names" "Send less, or raise the limit in denizen.toml";
    BadInput "bad-input" 400 Caller Never "the function refused its input"
        "The function says that the caller sent something wrong" "Correct the input; `detail` is the function's message";
    CallerGone "caller-gone" 499 Caller Unknown "the caller went away"
        "The connection closed before the reply (seen in logs only)" "None is needed";
    BadImage "bad-image" 400 Caller Never "the image archive is refused"
        "The archive is no image: cut short, with files that it must not have, or with checksums that do not match"
        "Build it again with `denizen image build`";
    LayoutChanged "layout-changed" 409 Caller Never "the layout of stored state changed"
        "A type in the new image has another layout than in the present one, and processes may hold objects of the old layout"
        "Add a `#[migrate]` function, keep the layout, rename the type, delete the processes, or deploy with `Denizen-Layout: replace`";
    UnknownImage "unknown-image" 404 Caller Never "no such image"
        "The node has no image of this id" "List them with `denizen image ls`";
    ImageInUse "image-in-use" 409 Caller Never "the image is in use"
        "An application runs the image, a process runs it, or it is being deployed"
        "Deploy another image to those that `detail` names, or wait until its last process has moved over";
    FunctionFailed "function-failed" 500 Function Safe "the function returned an error"
        "The function returned an error of its own; nothing was committed unless `retry` says otherwise"
        "`detail` is the function's message";
    FunctionPanicked "function-panicked" 500 Function Safe "the function panicked"
        "The function panicked; the process lives on with its last commit" "Mend the function; `detail` names the place";
    FunctionAborted "function-aborted" 500 Function Unknown "the function aborted its process"
        "The function called abort, or a library under it did; the sandbox ended"
        "Mend the function; the last lines of its log are in `cause`";
    FunctionExited "function-exited" 500 Function Unknown "the function ended its process"
        "The function called exit; the sandbox ended" "Return from the function instead";
    StackOverflow "stack-overflow" 500 Function Unknown "the function used up its stack"
        "The function overflowed its stack; the sandbox ended" "Look for endless recursion or very large local variables";
    SegmentationFault "segmentation-fault" 500 Function Unknown "the function read or wrote memory that is not there"
        "The function accessed memory that is not there or read-only (state is); the sandbox ended" "Mend the unsafe code in the function";
    FunctionCrashed "function-crashed" 500 Function Unknown "the function crashed"
        "A signal ended the sandbox while the function ran" "`detail` names the signal";
    RingSpoiled "ring-spoiled" 500 Function Unknown "the function spoiled the connections of its process"
        "The plugin closed or overwrote the io_uring (descriptor 4) over which its process serves its callers; the sandbox ended"
        "Touch no descriptors and no memory that are not the plugin's; look for stray `close` calls and writes beyond a buffer";
    ForbiddenSyscall "forbidden-syscall" 500 Function Unknown "the function made a system call that it may not make"
        "The sandbox allows few system calls; another one ends it"
        "Leave out the library call that needs it; `detail` names the system call";
    OutOfMemory "out-of-memory" 500 Function Unknown "the function used up its memory"
        "The sandbox reached its memory limit and was ended" "Use less, or raise `limits.memory` in denizen.toml";
    DeadlineExceeded "deadline-exceeded" 504 Function Unknown "the deadline of the call passed"
        "The function did not finish in time. If it did not stop when told to, its sandbox was ended too"
        "Raise `deadline` in denizen.toml, send a later `Denizen-Deadline-Ms`, or do less in one call";
    SandboxLost "sandbox-lost" 503 Function Unknown "the sandbox ended under this call"
        "Another call of the same process, or something outside, ended the sandbox while this call ran"
        "Look whether it took effect, then call again";
    SandboxMisbehaved "sandbox-misbehaved" 500 Function Unknown "the sandbox broke the protocol"
        "What came out of the sandbox is not what a runner sends: the plugin overwrote the runner's memory; the sandbox was ended"
        "Mend the unsafe code in the function";
    CrashLooping "crash-looping" 503 Function Safe "the process crashes each time it is started"
        "The process failed several times in a row and is started again only after a pause; `Retry-After` says when"
        "Look at `denizen logs`; deploy a mended image to start it at once";
    Conflict "conflict" 409 Function Safe "another call changed the same objects"
        "A concurrent function read or wrote an object that another call changed meanwhile; nothing of it was committed"
        "Call again; where it happens often, make the function exclusive";
    StateTypeChanged "state-type-changed" 409 Function Never "stored state has another layout than the function expects"
        "An object was stored by an image in which its type had another layout" "Deploy the older image, or delete or overwrite the object";
    StateQuota "state-quota" 507 Function Safe "the state quota is used up"
        "The process may not store more" "Delete objects, or raise `limits.state` in denizen.toml";
    ReplyTooLarge "reply-too-large" 500 Function Safe "the reply or an object is over its limit"
        "The function made something larger than its limit" "Stream the reply, or raise the limit in denizen.toml";
    PluginUnreadable "plugin-unreadable" 422 Function Never "the plugin cannot be read"
        "The plugin in the image is no shared library, or a damaged one" "Build the image again";
    WrongArchitecture "wrong-architecture" 422 Function Never "the plugin is for another processor"
        "The plugin was built for another processor architecture than this node's" "Build it for this node's architecture";
    MissingSymbol "missing-symbol" 422 Function Never "the plugin lacks a symbol"
        "The plugin does not export what a plugin must, or needs a symbol that nothing has"
        "End the plugin with `denizen::export!(...)`; `detail` names the symbol";
    AbiVersion "abi-version" 422 Function Never "the plugin is for another version of the function ABI"
        "The plugin was built against another version of the function ABI than this node has"
        "Build it with the SDK of this node's version";
    MissingLibrary "missing-library" 422 Function Never "the plugin needs a library that is not there"
        "A shared library that the plugin needs is neither in the image nor on the node"
        "Install it where the image is built and build the image again";
    InitFailed "init-failed" 422 Function Never "the plugin refused to start"
        "The plugin's own initialisation returned an error" "`detail` is its message";
    InitCrashed "init-crashed" 422 Function Never "the plugin died while it was loaded"
        "A constructor or the initialisation of the plugin crashed, or made a system call that it may not make" "`detail` says how it died";
    InitTimeout "init-timeout" 422 Function Safe "the plugin takes too long to load"
        "The plugin's constructors and initialisation did not finish in time" "Do less at load time; do it in the first call instead";
    Overloaded "overloaded" 503 Host Safe "too many calls wait"
        "As many calls run or wait in this process as may" "Call again later; `Retry-After` says when";
    Draining "draining" 503 Host Safe "the process was about to be moved"
        "The process was told to come to an end before it had the whole call, and did not begin it"
        "Call again: the process is started anew";
    NodeFull "node-full" 503 Host Safe "the node has no room for another process"
        "As many processes have a sandbox as `--max-active` allows, and none of them is idle and could make way"
        "Call again later; raise `--max-active` if the node has the memory";
    OutOfDescriptors "out-of-descriptors" 503 Host Safe "the node has no file descriptors left"
        "The kernel refused to open a file or a socket: this program, or the machine, has as many open as it may. Or a process was to be \
         started, and would leave too few for connections to those that run"
        "Call again later; raise the limit (`ulimit -n` in the shell, LimitNOFILE in the service), or lower `--max-active`";
    ShuttingDown "shutting-down" 503 Host Safe "the node is shutting down"
        "The node takes no more calls" "Call again when it is back";
    SandboxUnavailable "sandbox-unavailable" 503 Host Safe "no sandbox can be made"
        "The kernel refused to make a sandbox: out of processes, memory or descriptors, or a missing right"
        "Run `denizen doctor`; `cause` has the kernel's answer";
    NoSpace "no-space" 507 Host Safe "the node's disk is full"
        "State, an image or a swapped process cannot be written" "Free some space in the node's directory";
    HostFault "host-fault" 500 Host Unknown "a fault in the node"
        "Something failed that should not; it is not the function's doing" "`cause` has what the system said; please report it";
    StateCorrupt "state-corrupt" 500 Store Never "the stored state is damaged"
        "Segments of the process's state fail their checksums, are missing or belong to another process, or durable commits are gone; \
         nothing was cut off"
        "Restore its folder from a copy, or delete the process";
    ObjectDamaged "object-damaged" 500 Store Never "an object in the state is damaged"
        "The bytes of one object are no longer what was written; the others are served"
        "Put the object anew, or delete it; `detail` names it";
    StateFailed "state-failed" 500 Store Unknown "the state cannot be read or written"
        "The disk failed under the process's state. It is not tried again: before the next call what can be read is copied into new files, \
         and a commit that was promised and cannot be read is `state-corrupt`"
        "Look whether it took effect, then call again; look at the disk under the node's directory";
    StateLost "state-lost" 500 Store Never "the stored state is gone"
        "The records say that the process has state, and it is neither in `state` nor in `swap`"
        "Restore its folder from a copy, or delete the process";
    FilesNotKept "files-not-kept" 409 Function Safe "files of the process cannot be captured, so it was not ended"
        "The sandbox was to be swapped out, and what has changed in `/state` cannot be captured: the state is full, or a file cannot be \
         read (`cause`). It goes on with its files, and nothing is lost yet"
        "Delete objects or files, or deploy the image with a larger `limits.state`, and ask again. A process without calls is ended all \
         the same after 30 times its `idle`, and what was not captured is lost then";
    FilesLost "files-lost" 500 Host Safe "files of the process were not kept when it ended"
        "The sandbox has ended and did not keep what had changed in `/state`. What was captured before is kept, and the state is where it \
         was"
        "Look at the files: the next call finds them as they were last captured. The same request goes on with those";
    StoreFailed "store-failed" 500 Store Unknown "the node's own records cannot be read or written"
        "The scheduler's store failed" "`cause` has what the system said; look at the disk under the node's directory";
}
