//! The sandbox's own steps: waiting → loading → sealed. Each is a type, and none has a way back.
//!
//! The order is the security argument: image, then capabilities, `no_new_privs`, rlimits, filter 1; only then does tenant
//! code run (the constructors that `dlopen` calls); filter 2 last. A step that fails leaves nothing usable: the process
//! must exit.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use denizen_ring::maker::Ring;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::last_words::Testament;
use crate::limits::is_digest;
use crate::seccomp::{self, Filter, Stage};
use crate::{Admission, FileAccess, Limits, Phase, SandboxError, root, signals};

/// What the runner itself may use of memory, beyond the function's limit: its heap, its threads' first pages.
pub(crate) const RUNNER_BASE_BYTES: u64 = 32 << 20;

/// Stack of the main thread, in bytes.
const MAIN_STACK_BYTES: u64 = 8 << 20;

/// Address space of a thread: its stack, and the arena that the allocator reserves for it.
const THREAD_SPACE_BYTES: u64 = 144 << 20;

/// Address space that is nobody's in particular: libraries, alignment.
const SPARE_SPACE_BYTES: u64 = 4 << 30;

/// Descriptors: the standard three, control, the ring, answers, and a few while the plugin loads.
const DESCRIPTORS: u64 = 32;

/// Descriptors of a segment: one that writes and one that cannot.
const SEGMENT_DESCRIPTORS: u64 = 2;

/// Descriptors for files that functions have open.
const FILE_DESCRIPTORS: u64 = 256;

/// What the spawner measured of itself, and its forks therefore have: counted by rlimits before the function is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Footprint {
    /// Private writable memory.
    pub(crate) data_bytes: u64,
    /// Address space.
    pub(crate) space_bytes: u64,
}

/// A sandbox without an image: in its namespaces, in its root, capable in them, unfiltered. No tenant code has run.
#[derive(Debug)]
pub struct Waiting {
    pub(crate) control: Option<OwnedFd>,
    pub(crate) answers: Option<OwnedFd>,
    pub(crate) ring: Option<Ring>,
    /// Whether it was made with a ring, taken out by now or not.
    pub(crate) has_ring: bool,
    pub(crate) testament: Testament,
    pub(crate) footprint: Footprint,
}

impl Waiting {
    /// The framed connection to the agent.
    ///
    /// # Panics
    /// After [`Waiting::take_control`].
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_ref().expect("the connection was taken").as_fd()
    }

    /// Takes the connection to the agent out (file descriptor 3).
    ///
    /// # Panics
    /// On the second call.
    pub fn take_control(&mut self) -> OwnedFd {
        self.control.take().expect("the connection was taken")
    }

    /// Takes the connection out on which the agent reads what this sandbox has to say (file descriptor 5).
    ///
    /// # Panics
    /// On the second call.
    pub fn take_answers(&mut self) -> OwnedFd {
        self.answers.take().expect("the connection was taken")
    }

    /// Takes the ring out (file descriptor 4). `None`: this sandbox has none, or it was taken already. It can be mapped at once, and
    /// used once the agent has enabled it.
    pub fn take_ring(&mut self) -> Option<Ring> {
        self.ring.take()
    }

    /// The page for last words.
    pub fn last_words(&self) -> Testament {
        self.testament
    }

    /// Binds the image at `/image`, mounts `/state` if it is granted, drops the store, capabilities and privileges, sets
    /// rlimits and filter 1. From here on descriptors are received on the connection to the agent (descriptor 3) and nowhere
    /// else, and none is sent. The process must have one thread. The main thread
    /// gets its alternate signal stack. After an error the process must exit. Dropping the connection that was not taken
    /// closes it.
    pub fn admit(self, admission: &Admission) -> Result<Loading, SandboxError> {
        if !is_digest(&admission.image) {
            return Err(SandboxError::BadDigest(admission.image.clone()));
        }
        root::take_image(&admission.image)?;
        if admission.files == FileAccess::State {
            root::mount_state(admission.files_bytes).map_err(inside("mounting /state"))?;
        }
        drop_capabilities().map_err(inside("dropping capabilities"))?;
        rustix::thread::set_no_new_privs(true).map_err(inside("setting no_new_privs"))?;
        signals::give_signal_stack().map_err(inside("making a signal stack"))?;
        self.limit(admission).map_err(inside("setting rlimits"))?;
        self.testament.page.limit_bytes.store(admission.limits.memory_bytes, Ordering::Relaxed);
        self.testament.enter(Phase::Loading);
        let ring = self.has_ring && admission.ring;
        let kept = self.ring.filter(|_| ring);
        let filter = Filter { stage: Stage::Loading, files: admission.files, ring };
        seccomp::install(filter).map_err(inside("installing the system-call filter"))?;
        let connections = (self.control, self.answers);
        Ok(Loading { connections, ring: kept, testament: self.testament, filter })
    }

    /// The ceilings that hold without a control group. `RLIMIT_NPROC` counts per user namespace, so each sandbox has its own.
    fn limit(&self, admission: &Admission) -> io::Result<()> {
        let Limits { memory_bytes, threads, .. } = admission.limits;
        let threads = u64::from(threads.max(1));
        let data = memory_bytes.saturating_add(self.footprint.data_bytes).saturating_add(RUNNER_BASE_BYTES);
        let space = memory_bytes
            .saturating_mul(2)
            .saturating_add(admission.mapped_bytes)
            .saturating_add(threads.saturating_mul(THREAD_SPACE_BYTES))
            .saturating_add(self.footprint.space_bytes)
            .saturating_add(SPARE_SPACE_BYTES);
        let (open_files, own_files) = match admission.files {
            FileAccess::None => (0, 0),
            FileAccess::Image => (FILE_DESCRIPTORS, 0),
            FileAccess::State => (FILE_DESCRIPTORS, admission.files_bytes),
        };
        let descriptors = DESCRIPTORS + SEGMENT_DESCRIPTORS * u64::from(admission.segments) + open_files;
        let limits = [
            (Resource::Data, data),
            (Resource::As, space),
            (Resource::Nproc, threads),
            (Resource::Nofile, descriptors),
            (Resource::Core, 0),
            (Resource::Memlock, 0),
            (Resource::Msgqueue, 0),
            (Resource::Nice, 0),
            (Resource::Rtprio, 0),
            (Resource::Stack, MAIN_STACK_BYTES),
        ];
        for (resource, most) in limits {
            lower(resource, most, most)?;
        }
        // What it can write is its segments, which the agent reads back to their ends, and its own `/state`. Only the agent can raise the
        // first limit, as it hands in longer ones: the filters refuse it to the sandbox. The signal that comes with the error is ignored: a
        // sandbox is pid 1 of its namespace.
        let longest = [admission.first_file_bytes, admission.file_bytes].map(|bytes| bytes.max(own_files));
        lower(Resource::Fsize, longest[0], longest[1])?;
        signals::limit_main_stack(usize::try_from(MAIN_STACK_BYTES).unwrap_or(usize::MAX));
        Ok(())
    }
}

/// Sets the limit of a resource that counts and the one that it can be raised to, never above what is inherited.
fn lower(resource: Resource, first: u64, most: u64) -> io::Result<()> {
    let inherited = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let most = most.min(inherited);
    let limit = Rlimit { current: Some(first.min(most)), maximum: Some(most) };
    setrlimit(resource, limit).map_err(io::Error::from)
}

/// Gives up every capability in the sandbox's own namespaces, and every way to have one again.
fn drop_capabilities() -> io::Result<()> {
    let mut every = CapabilitySet::empty();
    // Beyond those known by name: the kernel says where its list ends.
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => every |= one,
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )?;
    Ok(())
}

/// Names a failed step inside the sandbox.
pub(crate) fn inside<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError::Step {
        step: format!("{step} in the sandbox"),
        remedy: "Run `denizen doctor`; it tries what a sandbox needs",
        source: source.into(),
    }
}

/// Behind filter 1: the plugin may be loaded from `/image`, which is tenant code.
pub struct Loading {
    connections: (Option<OwnedFd>, Option<OwnedFd>),
    ring: Option<Ring>,
    testament: Testament,
    /// The one that is on.
    filter: Filter,
}

impl fmt::Debug for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loading").field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Loading {
    /// The page for last words.
    pub fn last_words(&self) -> Testament {
        self.testament
    }

    /// See [`Sealed::thread_start`]; for threads that start before the seal.
    pub fn thread_start(&self) {
        start_thread();
    }

    /// Puts filter 2 on every thread. Fails if a thread cannot be brought under it (a constructor gave it a filter of its
    /// own): the process must then exit.
    pub fn seal(self) -> Result<Sealed, SandboxError> {
        seccomp::install(Filter { stage: Stage::Sealed, ..self.filter })
            .map_err(inside("installing the second system-call filter"))?;
        self.testament.enter(Phase::Sealed);
        // The connections and the ring, if the runner left them here, stay open for the life of the process.
        std::mem::forget((self.connections, self.ring));
        Ok(Sealed { testament: self.testament })
    }
}

/// Behind filter 2: functions may run.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    testament: Testament,
}

impl Sealed {
    /// To be called first on every thread that runs functions (the main thread is prepared already): gives it a signal
    /// stack, so that a stack overflow can be reported. The stack is never freed. Where memory is lacking the thread works
    /// without one, and its stack overflow ends the sandbox without last words.
    pub fn thread_start(&self) {
        start_thread();
    }

    /// The page for last words.
    pub fn last_words(&self) -> Testament {
        self.testament
    }
}

/// See [`Sealed::thread_start`].
fn start_thread() {
    // Nothing to tell anybody: the thread works without.
    let _ = signals::prepare_thread();
}
