//! Errors as callers see them: `application/problem+json` (RFC 9457), one stable `type` for each thing that can be told apart.
//!
//! The table in `denizen_wire::problem` is the only list of them; `docs/errors.md` is generated from it and a test keeps the two
//! equal. A problem says whose doing it is and whether the same request may be sent again: where nothing is known, it says `unknown`.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

pub(crate) use denizen_wire::problem::{Blame, Kind, Retry};

/// What every `type` begins with.
const URN: &str = "urn:denizen:problem:";

/// What a refusal of the operating system means for a caller. `host-fault` unless it is one that the host can be relieved of.
pub(crate) fn of_io(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        _ if is_out_of_descriptors(error) => Kind::OutOfDescriptors,
        _ => Kind::HostFault,
    }
}

/// The kind itself, unless a lack of descriptors is at the bottom of `error`.
pub(crate) fn unless_out_of_descriptors(kind: Kind, error: &(dyn Error + 'static)) -> Kind {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(is_out_of_descriptors) {
            return Kind::OutOfDescriptors;
        }
        next = error.source();
    }
    kind
}

/// Of this program, or of the machine.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let refusals = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}

/// One error, on its way to a caller. Boxed: most calls have none.
#[derive(Clone, PartialEq)]
pub(crate) struct Problem(Box<Inner>);

#[derive(Clone, PartialEq)]
struct Inner {
    kind: Kind,
    detail: String,
    cause: Option<String>,
    remedy: Option<Cow<'static, str>>,
    blame: Option<Blame>,
    retry: Option<Retry>,
    retry_after_s: Option<u64>,
    process: Option<String>,
    invocation: Option<String>,
    more: Map<String, Value>,
}

impl Problem {
    /// A problem of `kind`; `detail` says what happened this time.
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem(Box::new(Inner {
            kind,
            detail: detail.into(),
            cause: None,
            remedy: None,
            blame: None,
            retry: None,
            retry_after_s: None,
            process: None,
            invocation: None,
            more: Map::new(),
        }))
    }

    /// What led to it.
    #[must_use]
    pub(crate) fn cause(mut self, cause: impl fmt::Display) -> Problem {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// A remedy for this case, in place of the kind's own.
    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Problem {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Whose doing it is in this case, in place of what holds for the kind.
    #[must_use]
    pub(crate) fn blame(mut self, blame: Blame) -> Problem {
        self.0.blame = Some(blame);
        self
    }

    /// What is known about a retry in this case, in place of what holds for the kind.
    #[must_use]
    pub(crate) fn retry(mut self, retry: Retry) -> Problem {
        self.0.retry = Some(retry);
        self
    }

    /// When a retry has a chance.
    #[must_use]
    pub(crate) fn retry_after_s(mut self, seconds: u64) -> Problem {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// The process that it is about.
    #[must_use]
    pub(crate) fn process(mut self, process: &str) -> Problem {
        self.0.process = Some(process.to_owned());
        self
    }

    /// The invocation that it is about.
    #[must_use]
    pub(crate) fn invocation(mut self, invocation: &str) -> Problem {
        self.0.invocation = Some(invocation.to_owned());
        self
    }

    /// An extension member.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: Value) -> Problem {
        self.0.more.insert(name.to_owned(), value);
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.0.kind
    }

    pub(crate) fn status(&self) -> u16 {
        self.0.kind.entry().status
    }

    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.0.retry_after_s
    }

    pub(crate) fn invocation_name(&self) -> Option<&str> {
        self.0.invocation.as_deref()
    }

    /// Whether it is how an earlier call with the same idempotency key failed.
    pub(crate) fn is_replayed(&self) -> bool {
        self.0.more.get("replayed").is_some_and(|replayed| *replayed == true)
    }

    pub(crate) fn has_process(&self) -> bool {
        self.0.process.is_some()
    }

    /// The same in frames.
    pub(crate) fn framed(&self) -> denizen_protocol::Problem {
        let Inner { kind, detail, cause, remedy, blame, retry, retry_after_s, process, invocation, more: _ } =
            &*self.0;
        let entry = kind.entry();
        let (blame, retry) = (blame.unwrap_or(entry.blame).framed(), retry.unwrap_or(entry.retry).framed());
        let after_ms = retry_after_s.unwrap_or(0).saturating_mul(1000);
        denizen_protocol::Problem {
            retry_after_ms: u32::try_from(after_ms).unwrap_or(u32::MAX),
            detail: Some(detail.clone()),
            cause: cause.clone(),
            remedy: Some(remedy.as_deref().unwrap_or(entry.remedy).to_owned()),
            process: process.clone(),
            invocation: invocation.clone(),
            replayed: self.is_replayed(),
            ..denizen_protocol::Problem::new(entry.slug, blame, retry)
        }
    }

    /// The document.
    pub(crate) fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Inner { kind, detail, cause, remedy, blame, retry, process, invocation, more, .. } = &*self.0;
        let entry = kind.entry();
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("type", &format_args!("{URN}{}", entry.slug))?;
        map.serialize_entry("title", entry.title)?;
        map.serialize_entry("status", &entry.status)?;
        map.serialize_entry("detail", detail)?;
        map.serialize_entry("blame", blame.unwrap_or(entry.blame).as_str())?;
        map.serialize_entry("retry", retry.unwrap_or(entry.retry).as_str())?;
        if let Some(cause) = cause {
            map.serialize_entry("cause", cause)?;
        }
        map.serialize_entry("remedy", remedy.as_deref().unwrap_or(entry.remedy))?;
        if let Some(process) = process {
            map.serialize_entry("process", process)?;
        }
        if let Some(invocation) = invocation {
            map.serialize_entry("invocation", invocation)?;
        }
        for (name, value) in more {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl std::error::Error for Problem {}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind.entry().slug, self.0.detail)?;
        match &self.0.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use denizen_wire::problem::{ENTRIES, Entry};

    use super::*;

    /// Where the page is that the table below is printed to.
    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");

    const INTRODUCTION: &str = "\
# Errors

Every error of a node is an `application/problem+json` document (RFC 9457). Its `type` is `urn:denizen:problem:` and a name of this
table, which does not change its meaning between versions. `blame` says whose doing it is (`caller function host store`); `retry`
says whether the same request may be sent again: `never` (it would fail again), `safe` (nothing was committed), `unknown` (it may have
been committed: look before you repeat). A document may say more exactly than this table
whose doing it is, whether a retry is safe, and how to help.

This page is printed from the node's own table (`node/wire/src/problem.rs`); a test keeps the two equal.
`DENIZEN_BLESS=1 cargo test -p denizen-agent` prints it anew.

| type | status | blame | retry | meaning | remedy |
|---|---|---|---|---|---|
";

    fn page() -> String {
        use std::fmt::Write;
        let mut page = INTRODUCTION.to_owned();
        for Entry { slug, status, blame, retry, title: _, meaning, remedy } in &ENTRIES {
            let (blame, retry) = (blame.as_str(), retry.as_str());
            writeln!(page, "| `{slug}` | {status} | {blame} | {retry} | {meaning} | {remedy} |").unwrap();
        }
        page
    }

    #[test]
    fn the_page_lists_what_the_code_has() {
        if std::env::var_os("DENIZEN_BLESS").is_some() {
            std::fs::write(PAGE, page()).unwrap();
        }
        let written = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert!(
            written == page(),
            "docs/errors.md differs from the table in the code; DENIZEN_BLESS=1 prints it anew"
        );
    }

    #[test]
    fn every_kind_has_its_own_entry() {
        for (at, entry) in ENTRIES.iter().enumerate() {
            let same = ENTRIES.iter().filter(|other| other.slug == entry.slug).count();
            assert_eq!(same, 1, "{} is there twice", entry.slug);
            assert!((400..600).contains(&entry.status), "{} is no error status", entry.slug);
            assert!(
                !entry.meaning.contains('|') && !entry.remedy.contains('|'),
                "{} would break the page's table",
                entry.slug
            );
            assert_eq!(Kind::ALL[at].entry().slug, entry.slug);
        }
    }

    #[test]
    fn a_lack_of_descriptors_is_found_wherever_it_is() {
        #[derive(Debug, thiserror::Error)]
        #[error("a step")]
        struct Step(#[source] io::Error);
        let lack = || io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert_eq!(of_io(&lack()), Kind::OutOfDescriptors);
        assert_eq!(
            unless_out_of_descriptors(Kind::SandboxUnavailable, &Step(lack())),
            Kind::OutOfDescriptors
        );
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(of_io(&other), Kind::HostFault);
        assert_eq!(
            unless_out_of_descriptors(Kind::SandboxUnavailable, &Step(other)),
            Kind::SandboxUnavailable
        );
    }

    #[test]
    fn a_problem_is_written_as_the_interface_says() {
        let problem = Problem::new(Kind::FunctionPanicked, "increment panicked: count overflows")
            .process("alice")
            .invocation("1-2")
            .retry(Retry::Unknown)
            .cause("it counts too far")
            .with("layouts", serde_json::json!([]));
        let json = problem.to_json();
        assert_eq!(json["type"], "urn:denizen:problem:function-panicked");
        assert_eq!(json["status"], 500);
        assert_eq!(json["blame"], "function");
        assert_eq!(json["retry"], "unknown", "what is known in this case comes before the table");
        assert_eq!(json["process"], "alice");
        assert_eq!(json["layouts"], serde_json::json!([]));
        assert!(json["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    }
}
