//! The manifest, `denizen.toml`: the policy that an author sets for an image.
//!
//! The plugin declares its functions and how they may run side by side; the manifest only bounds them. It is
//! written by people, so a mistake names its line, says what to write instead, and all mistakes are told at
//! once. What this release cannot keep (a base image, egress, durability beyond the node) is
//! refused by name rather than accepted and not honoured.
//!
//! Machines read the JSON form ([`serde::Serialize`]): the same tree with units in the field names
//! (`memory_bytes`, `deadline_ms`) and every default filled in. The reference for authors is
//! `docs/manifest.md`.

mod parse;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use units::{ByteSize, UnitError};

/// The file name of a manifest, in a package and in an image.
pub const FILE_NAME: &str = "denizen.toml";

/// A checked manifest with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The image's name, and the application that it is deployed to where no other is given. Obeys
    /// [`crate::names::check`].
    pub name: String,
    /// Which files a function may open.
    #[serde(default)]
    pub files: Files,
    /// How callers reach a process.
    #[serde(default)]
    pub isolation: Isolation,
    /// What one process of this image may use.
    #[serde(default)]
    pub limits: Limits,
    /// How processes come and go.
    #[serde(default)]
    pub process: ProcessPolicy,
    /// Policy of single functions, by name. Names are checked against the plugin by
    /// [`Manifest::check_functions`].
    #[serde(default)]
    pub functions: BTreeMap<String, FunctionPolicy>,
    #[serde(skip)]
    origin: Origin,
}

/// Where the manifest was read from, so that a check at deploy time still names a line. Two manifests with
/// the same policy are equal whatever file they came from.
#[derive(Debug, Clone, Default)]
struct Origin {
    path: PathBuf,
    /// Of each `[functions.NAME]`.
    lines: BTreeMap<String, Position>,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A place in a manifest; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// Which files a function may open. The plugin itself and its libraries are always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Files {
    /// None.
    #[default]
    None,
    /// Those of the image, read-only, under `/image/files`.
    Image,
    /// Those of the image, and files of the process's own under `/state`, which are kept with its state.
    State,
}

/// How callers of the framed protocol reach a process. Ordered: the later one keeps more from the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Their connections are given to it: it has an io_uring that can do nothing but serve them.
    #[default]
    Ring,
    /// The node passes each frame on: it has no io_uring.
    Relay,
}

impl std::str::FromStr for Isolation {
    type Err = String;

    /// From the word in a manifest.
    fn from_str(word: &str) -> Result<Isolation, String> {
        match word {
            "ring" => Ok(Isolation::Ring),
            "relay" => Ok(Isolation::Relay),
            other => Err(format!("{other:?} is neither \"ring\" nor \"relay\"")),
        }
    }
}

/// What one process may use, and how many there may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of the process's sandbox, in bytes. Default 256 MiB.
    #[serde(rename = "memory_bytes")]
    pub memory: ByteSize,
    /// State of the process, garbage not yet collected included, in bytes. Default 1 GiB.
    #[serde(rename = "state_bytes")]
    pub state: ByteSize,
    /// Files under `/state`, in bytes of memory. `None` without [`Files::State`]; with it, by default 64 MiB, or a quarter of
    /// the memory limit or half of the state limit if that is less. At most half of the memory limit, and the state limit.
    #[serde(rename = "files_bytes", default, skip_serializing_if = "Option::is_none")]
    pub files: Option<ByteSize>,
    /// The longest request body, in bytes. Default 64 MiB.
    #[serde(rename = "body_bytes")]
    pub body: ByteSize,
    /// The longest reply that a function hands over whole, in bytes; streamed replies are not bounded by it.
    /// Default 64 MiB.
    #[serde(rename = "reply_bytes")]
    pub reply: ByteSize,
    /// The longest that one call may take. Default 30 s.
    #[serde(rename = "deadline_ms", with = "units::millis")]
    pub deadline: Duration,
    /// Threads of the sandbox, the runner's own included. Default 16.
    pub threads: u32,
    /// Processor time, in hundredths of one core: 150 is one and a half. `None`: as much as there is.
    #[serde(rename = "cpu_percent", default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Processes of the application, swapped ones included. Default 10,000.
    pub processes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(256),
            state: ByteSize::mib(1024),
            files: None,
            body: ByteSize::mib(64),
            reply: ByteSize::mib(64),
            deadline: Duration::from_secs(30),
            threads: 16,
            cpu: None,
            processes: 10_000,
        }
    }
}

/// How processes come and go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPolicy {
    /// What a call to a process that does not exist does.
    pub create: Create,
    /// A process is swapped out once it has been idle for this long. Default 60 s.
    #[serde(rename = "idle_ms", with = "units::millis")]
    pub idle: Duration,
    /// What a reply promises about what the call wrote.
    pub durability: Durability,
    /// How long the reply of a call with an idempotency key is remembered. Default a day.
    #[serde(rename = "remember_ms", default = "a_day", with = "units::millis")]
    pub remember: Duration,
}

/// Also of an image that was built before there was a choice.
const fn a_day() -> Duration {
    Duration::from_secs(86_400)
}

impl Default for ProcessPolicy {
    fn default() -> Self {
        Self {
            create: Create::OnCall,
            idle: Duration::from_secs(60),
            durability: Durability::Process,
            remember: a_day(),
        }
    }
}

/// What a call to a process that does not exist does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Create {
    /// It creates the process.
    #[default]
    OnCall,
    /// It is refused; processes are created by the control interface only.
    Explicit,
}

/// What a reply promises about what the call wrote. Ordered: a later one promises more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// It survives the sandbox and the agent.
    #[default]
    Process,
    /// It survives a power cut of the node: it is on its disk.
    Node,
    /// It is in the swap store. Reserved: a manifest that asks for it is refused.
    Store,
}

/// Policy of one function; what is absent is the image's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FunctionPolicy {
    /// At most the image's.
    #[serde(
        rename = "deadline_ms",
        default,
        with = "units::optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub deadline: Option<Duration>,
    /// In place of the process's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// In place of the image's. It may be larger than memory only for a function that streams its input.
    #[serde(rename = "body_bytes", default, skip_serializing_if = "Option::is_none")]
    pub body: Option<ByteSize>,
}

/// What [`Manifest::check_functions`] needs to know of a function that the plugin declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared<'a> {
    /// The function's name.
    pub name: &'a str,
    /// Whether it reads its input as a stream, so that the body need not fit in memory.
    pub streams_input: bool,
}

/// Everything that is wrong with a manifest, in the order of its lines. Displays one problem per line, each
/// as `path:line:column: what; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// The file, as the caller named it.
    pub path: PathBuf,
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One mistake in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub at: Position,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl std::error::Error for ManifestError {}

impl std::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, Problem { at, message }) in self.problems.iter().enumerate() {
            let line_break = if index == 0 { "" } else { "\n" };
            write!(f, "{line_break}{}:{}:{}: {message}", self.path.display(), at.line, at.column)?;
        }
        Ok(())
    }
}

impl Manifest {
    /// The manifest of an image whose author wrote none: only defaults.
    pub fn default_for(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            files: Files::default(),
            isolation: Isolation::default(),
            limits: Limits::default(),
            process: ProcessPolicy::default(),
            functions: BTreeMap::new(),
            origin: Origin::default(),
        }
    }

    /// The deadline of a call to `function`.
    pub fn deadline_of(&self, function: &str) -> Duration {
        self.functions.get(function).and_then(|policy| policy.deadline).unwrap_or(self.limits.deadline)
    }

    /// The longest body of a call to `function`.
    pub fn body_of(&self, function: &str) -> ByteSize {
        self.functions.get(function).and_then(|policy| policy.body).unwrap_or(self.limits.body)
    }

    /// Size of the file system at `/state`, in bytes; 0 if there is none.
    pub fn files_bytes(&self) -> u64 {
        self.limits.files.map_or(0, ByteSize::bytes)
    }

    /// What a reply of `function` promises.
    pub fn durability_of(&self, function: &str) -> Durability {
        self.functions.get(function).and_then(|policy| policy.durability).unwrap_or(self.process.durability)
    }
}
