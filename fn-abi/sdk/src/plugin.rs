//! The border between a plugin and its host: what `export!` expands to, and the one entry that runs every
//! function.

use crate::call::{Call, size_of_u32};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::input::FromInput;
use crate::layout::DeclaredType;
use crate::migration::Ways;
use crate::panics;
use crate::reply::{IntoReply, Outcome, deliver};
use crate::submitted::Submitted;
use denizen_abi::{
    ABI_VERSION, Concurrency, DZ_E_INVALID, DZ_OK, DzCall, DzFunction, DzHost, DzInit, DzRegistry, DzSlice,
    DzType, FailKind, Payload,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What the entry returns for a failed invocation; the host has been told why.
const FAILED: i32 = 1;

/// A function marked with `#[function]`.
#[doc(hidden)]
pub trait Exported {
    const FUNCTION: FunctionDef;
}

/// What `#[function]` knows about a function.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct FunctionDef {
    pub name: &'static str,
    pub doc: &'static str,
    pub concurrency: Concurrency,
    pub input: fn() -> (Payload, String),
    pub output: fn() -> (Payload, String),
    pub run: fn(&mut Context<'_>) -> Result<()>,
}

#[doc(hidden)]
#[must_use]
pub fn input_declaration<'call, T: FromInput<'call>>() -> (Payload, String) {
    (T::PAYLOAD, T::layout())
}

#[doc(hidden)]
#[must_use]
pub fn output_declaration<T: Outcome>() -> (Payload, String) {
    (T::Reply::PAYLOAD, T::Reply::layout())
}

/// Runs `function` and gives its reply. The reply may borrow from the context, so it is given through a
/// second one.
#[doc(hidden)]
pub fn reply<'call, 'cx, O: Outcome>(
    cx: &'cx mut Context<'call>,
    function: impl FnOnce(&'cx mut Context<'call>) -> Result<O>,
) -> Result<()> {
    let replier = Context::new(cx.call());
    deliver(function(cx)?, &replier)
}

/// Refuses at compile time that two functions are exported under one name.
#[doc(hidden)]
pub const fn assert_distinct(functions: &[FunctionDef]) {
    let mut i = 0;
    while i < functions.len() {
        let mut j = 0;
        while j < i {
            assert!(
                !same(functions[i].name.as_bytes(), functions[j].name.as_bytes()),
                "export! names two functions that have the same name: rename one with #[function(name = \"...\")]"
            );
            j += 1;
        }
        i += 1;
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// A function that is declared while the plugin starts, with [`Init::declare`].
#[derive(Clone, Debug)]
pub struct Declaration {
    /// Its name: 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
    pub name: String,
    /// What it is for, for people.
    pub doc: String,
    /// Who may run beside it. A function that is not exclusive must not write.
    pub concurrency: Concurrency,
    /// What it takes. [`Payload::Stream`] starts it before all of the input is there.
    pub input: Payload,
    /// What it gives.
    pub output: Payload,
}

impl Declaration {
    /// An exclusive function of bytes to bytes.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Declaration {
        Declaration {
            name: name.into(),
            doc: String::new(),
            concurrency: Concurrency::Exclusive,
            input: Payload::Bytes,
            output: Payload::Bytes,
        }
    }
}

/// The start of a plugin, as the function behind `export!(…, init = f)` sees it: where to find the functions
/// of an image that are known only now, such as scripts, and how to offer them.
#[derive(Debug)]
pub struct Init {
    host: &'static DzHost,
    registry: *mut DzRegistry,
    image_dir: PathBuf,
    manifest: String,
}

impl Init {
    /// The image's files, read-only.
    #[must_use]
    pub fn image_dir(&self) -> &Path {
        &self.image_dir
    }

    /// The image's manifest as JSON text.
    #[must_use]
    pub fn manifest(&self) -> &str {
        &self.manifest
    }

    /// Offers a function that was found at run time. It gets its input with [`Context::input`] and replies
    /// with [`Context::reply`].
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the name is malformed or taken.
    pub fn declare(
        &mut self,
        declaration: &Declaration,
        run: impl Fn(&mut Context<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        let Declaration { name, doc, concurrency, input, output } = declaration;
        let layouts = (String::new(), String::new());
        self.offer(name, doc, *concurrency, (*input, layouts.0), (*output, layouts.1), Box::new(run))
    }

    fn declare_static(&mut self, function: &FunctionDef) -> Result<()> {
        let FunctionDef { name, doc, concurrency, input, output, run } = *function;
        self.offer(name, doc, concurrency, input(), output(), Box::new(run))
    }

    fn offer(
        &mut self,
        name: &str,
        doc: &str,
        concurrency: Concurrency,
        (input, input_layout): (Payload, String),
        (output, output_layout): (Payload, String),
        run: Box<Run>,
    ) -> Result<()> {
        // Never freed: the host may call it until the process ends.
        let registered: *const Registered = Box::leak(Box::new(Registered { host: self.host, run }));
        let function = DzFunction {
            size: size_of_u32::<DzFunction>(),
            concurrency: concurrency.as_u32(),
            input: input.as_u32(),
            output: output.as_u32(),
            name: text(name),
            input_layout: text(&input_layout),
            output_layout: text(&output_layout),
            doc: text(doc),
            data: registered.cast_mut().cast::<c_void>(),
            entry,
        };
        // SAFETY: the registry is valid while `Init` is lent out, and the host copies what `function` points
        // to.
        let status = unsafe { (self.host.declare_function)(self.registry, &raw const function) };
        if status == DZ_OK {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Internal,
            format!(
                "the node refuses the function `{name}` ({status}): a name that is malformed, or declared twice?"
            ),
        ))
    }

    /// Tells the host about every type that `#[state]` marks, and which layouts it is migrated from.
    fn declare_types(&mut self) -> Result<()> {
        let ways = Ways::check()?;
        for (name, declared) in submitted_types(ways)? {
            let (fingerprint, layout) = ((declared.fingerprint)(), (declared.layout)());
            let migrates_from = ways.sources(fingerprint);
            let ty = DzType {
                size: size_of_u32::<DzType>(),
                _pad: 0,
                fingerprint,
                name: text(name),
                layout: text(&layout),
                migrates_from: migrates_from.as_ptr(),
                migrates_from_len: migrates_from.len(),
            };
            // SAFETY: the registry is valid while `Init` is lent out, and the host copies what `ty` points
            // to.
            let status = unsafe { (self.host.declare_type)(self.registry, &raw const ty) };
            if status != DZ_OK {
                return Err(Error::from_status(status, format_args!("declaring the state type `{name}`")));
            }
        }
        Ok(())
    }
}

/// The submitted types by name. A layout change is told by the name, so a name must stand for one type: of
/// several, the one that all others are migrated to.
fn submitted_types(ways: &Ways) -> Result<BTreeMap<&'static str, &'static DeclaredType>> {
    let mut types: BTreeMap<&'static str, Vec<&'static DeclaredType>> = BTreeMap::new();
    for ty in DeclaredType::list().iter() {
        types.entry(ty.name).or_default().push(ty);
    }
    types.into_iter().map(|(name, namesakes)| Ok((name, newest(ways, name, &namesakes)?))).collect()
}

/// Which of the types of one name is the one that the plugin writes.
fn newest(ways: &Ways, name: &str, namesakes: &[&'static DeclaredType]) -> Result<&'static DeclaredType> {
    let leads = |from: &DeclaredType, to: &DeclaredType| {
        let (from, to) = ((from.fingerprint)(), (to.fingerprint)());
        from == to || ways.lead(from, to)
    };
    let newest = namesakes.iter().find(|one| namesakes.iter().all(|other| leads(other, one)));
    newest.copied().ok_or_else(|| {
        let layouts: BTreeSet<String> = namesakes.iter().map(|one| format!("`{}`", (one.layout)())).collect();
        let layouts = layouts.into_iter().collect::<Vec<_>>().join(" and ");
        Error::new(
            ErrorKind::Failed,
            format_args!(
                "two state types are called `{name}`: {layouts}; rename one, or give it another name with \
                 #[state(name = \"...\")]. If one is an older layout of the other, lead from it to the newer one with a \
                 #[migrate] function; if it is only a part of such records, mark it #[payload(name = \"...\")]"
            ),
        )
    })
}

type Run = dyn Fn(&mut Context<'_>) -> Result<()> + Send + Sync;

/// What a declared function's `data` points to.
struct Registered {
    host: &'static DzHost,
    run: Box<Run>,
}

/// Runs any function of the plugin.
unsafe extern "C" fn entry(data: *mut c_void, raw: *mut DzCall) -> i32 {
    // SAFETY: `offer` leaked it and handed it to the host as this entry's data.
    let function: &'static Registered = unsafe { &*data.cast::<Registered>() };
    // SAFETY: the host calls the entry with an invocation of its own, alive until the entry returns.
    let call = unsafe { Call::new(function.host, raw) };
    let outcome = panics::catch(|| {
        let ran = (function.run)(&mut Context::new(&call)).and_then(|()| call.settle());
        // A sandbox may be ended at any time after this, and half a line would go with it.
        let _nowhere_to_complain = std::io::stdout().flush();
        ran
    });
    let (kind, message) = match &outcome {
        Ok(Ok(())) => return DZ_OK,
        Ok(Err(error)) => (error.fail_kind(), error.message()),
        Err(panic) => (FailKind::Panicked, panic.as_str()),
    };
    // SAFETY: `raw` is alive, and the host copies the message. If it refuses it there is nobody else to tell.
    unsafe { (function.host.fail)(raw, kind.as_u32(), text(message)) };
    FAILED
}

/// The body of `denizen_plugin_init`.
///
/// # Safety
/// `host` and `init` are what a host passes to that function.
#[doc(hidden)]
pub unsafe fn init(
    host: *const DzHost,
    init: *const DzInit,
    functions: &[FunctionDef],
    setup: Option<fn(&mut Init) -> Result<()>>,
) -> i32 {
    // SAFETY: every version of both structs begins with these fields; no reference to the whole is made
    // before.
    let sizes = unsafe { ((*host).size, (*init).size, (*host).abi_version) };
    if sizes.0 < size_of_u32::<DzHost>() || sizes.1 < size_of_u32::<DzInit>() || sizes.2 != ABI_VERSION {
        // A host that this build does not know has no service that it could be told with.
        return DZ_E_INVALID;
    }
    // SAFETY: both are as large as this build knows them; the host's table lives as long as the process.
    let (host, init): (&'static DzHost, &DzInit) = unsafe { (&*host, &*init) };
    let outcome = panics::catch(|| start(host, init, functions, setup));
    let message = match outcome {
        Ok(Ok(())) => return DZ_OK,
        Ok(Err(error)) => error.message().to_owned(),
        Err(panic) => format!("a panic while the plugin started: {panic}"),
    };
    // SAFETY: the registry is the one of this start, and the host copies the message.
    unsafe { (host.init_failed)(init.registry, text(&message)) };
    FAILED
}

fn start(
    host: &'static DzHost,
    init: &DzInit,
    functions: &[FunctionDef],
    setup: Option<fn(&mut Init) -> Result<()>>,
) -> Result<()> {
    panics::remember_places();
    // SAFETY: the host promises both texts for the time of this call.
    let (dir, manifest) = unsafe { (init.image_dir.as_bytes(), init.manifest.as_bytes()) };
    let mut starting = Init {
        host,
        registry: init.registry,
        image_dir: PathBuf::from(String::from_utf8_lossy(dir).into_owned()),
        manifest: String::from_utf8_lossy(manifest).into_owned(),
    };
    starting.declare_types()?;
    for function in functions {
        starting.declare_static(function)?;
    }
    setup.map_or(Ok(()), |setup| setup(&mut starting))
}

fn text(text: &str) -> DzSlice {
    DzSlice::new(text.as_bytes())
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registered")
    }
}
