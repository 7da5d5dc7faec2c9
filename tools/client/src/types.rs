//! The answers of the interface. Each keeps members that this version does not know, so that printing one loses nothing.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::problem::Problem;

/// `GET /v1/node`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Version of the node's program.
    pub version: String,
    /// Version of the function ABI that it loads.
    pub abi_version: u32,
    /// Its directory.
    pub dir: String,
    /// Its OS process.
    pub pid: u32,
    /// Executor threads.
    pub executors: u32,
    /// Which layers of isolation are active; see `denizen doctor`.
    #[serde(default)]
    pub isolation: Value,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Members of a newer node.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One application.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppSummary {
    /// Its name.
    pub app: String,
    /// The image in use: 64 hex digits.
    pub image: String,
    /// How many processes it has, swapped ones included.
    pub processes: u64,
    /// Members of a newer node.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A function that an image declares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The author's description, perhaps empty.
    #[serde(default)]
    pub doc: String,
    /// Concurrency, payload kinds and whatever else the node says of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A type of state that an image declares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TypeLayout {
    /// The type's name.
    pub name: String,
    /// Its layout as readable text.
    #[serde(default)]
    pub layout: String,
    /// Fingerprint and whatever else the node says of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// How to deploy.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeployOptions {
    /// Accept changed state layouts: records of the old layout then answer `state-type-changed`.
    pub replace_layout: bool,
}

/// `PUT /v1/apps/{app}/image`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deployed {
    /// The application.
    pub app: String,
    /// The image: 64 hex digits.
    pub image: String,
    /// What can be called.
    #[serde(default)]
    pub functions: Vec<Function>,
    /// What it keeps.
    #[serde(default)]
    pub types: Vec<TypeLayout>,
    /// How many active processes changed over to it.
    #[serde(default)]
    pub moved: u64,
    /// Members of a newer node.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// `GET /v1/apps/{app}/image`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageInUse {
    /// The application.
    pub app: String,
    /// The image: 64 hex digits.
    pub image: String,
    /// What can be called.
    #[serde(default)]
    pub functions: Vec<Function>,
    /// What it keeps.
    #[serde(default)]
    pub types: Vec<TypeLayout>,
    /// The manifest in full.
    #[serde(default)]
    pub manifest: Value,
    /// Members of a newer node.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl From<ImageInUse> for Deployed {
    fn from(image: ImageInUse) -> Deployed {
        let ImageInUse { app, image, functions, types, .. } = image;
        Deployed { app, image, functions, types, moved: 0, more: Map::new() }
    }
}

/// One image in the node's store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageSummary {
    /// The image: 64 hex digits.
    pub image: String,
    /// The name in its manifest.
    #[serde(default)]
    pub name: String,
    /// Its size on disk.
    #[serde(default)]
    pub bytes: u64,
    /// The applications that use it now.
    #[serde(default)]
    pub apps: Vec<String>,
    /// The applications that used it before the image that they use now.
    #[serde(default)]
    pub previous_of: Vec<String>,
    /// Processes that were last started with it.
    #[serde(default)]
    pub processes: u64,
    /// Members of a newer node.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// Its application.
    pub app: String,
    /// Its name.
    pub process: String,
    /// `placed starting active draining swapped deleted failed`.
    pub phase: String,
    /// The image it runs: 64 hex digits.
    #[serde(default)]
    pub image: Option<String>,
    /// Its ownership term.
    #[serde(default)]
    pub epoch: u64,
    /// Its last commit.
    #[serde(default)]
    pub commit: u64,
    /// What its state takes.
    #[serde(default)]
    pub state_bytes: u64,
    /// The sandbox's pid on the host, while active.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Milliseconds since its last call ended, while active.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// Calls since it became active.
    #[serde(default)]
    pub invocations: u64,
    /// Of them those over connections that its sandbox was given, as that says.
    #[serde(default)]
    pub direct_calls: u64,
    /// Its connections.
    #[serde(default)]
    pub connections: Connections,
    /// How it is isolated.
    #[serde(default)]
    pub isolation: Value,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Problem>,
    /// Members of a newer node.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Connections to a process that are given to its sandboxes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Its sandbox has these.
    pub given: u64,
    /// These rest: their clients say nothing.
    pub parked: u64,
}

/// One line of a process's output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLine {
    /// RFC 3339, UTC, milliseconds.
    pub at: String,
    /// The application.
    pub app: String,
    /// The process.
    pub process: String,
    /// The invocation, where it can be known.
    #[serde(default)]
    pub invocation: Option<String>,
    /// The trace that the invocation belongs to: `traceparent` of W3C Trace Context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// `stdout stderr log host`.
    pub stream: String,
    /// The line, without its end.
    pub text: String,
    /// Members of a newer node.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An image that was removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovedImage {
    /// The image: 64 hex digits.
    pub image: String,
    /// What it took on disk.
    #[serde(default)]
    pub bytes: u64,
}

#[derive(Deserialize)]
pub(crate) struct Pruned {
    pub(crate) removed: Vec<RemovedImage>,
}

#[derive(Deserialize)]
pub(crate) struct Apps {
    pub(crate) apps: Vec<AppSummary>,
}

#[derive(Deserialize)]
pub(crate) struct Images {
    pub(crate) images: Vec<ImageSummary>,
}

#[derive(Deserialize)]
pub(crate) struct Processes {
    pub(crate) processes: Vec<Process>,
}
