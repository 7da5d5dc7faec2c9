//! A blocking client of a node's HTTP interface.
//!
//! It owns the words of that interface on the caller's side: how a request is spelled, what each answer is called, and how a failure
//! is told apart — a node that is not there ([`ClientError::Unreachable`]), a node that refuses ([`ClientError::Problem`], which
//! carries the whole `application/problem+json` document with its `blame` and `retry`), and an answer that breaks off or makes no
//! sense. It retries nothing and hides nothing: whether a call may be repeated is the caller's decision, and `retry` is what to
//! decide it by.
//!
//! Plain HTTP only. A node listens on loopback; what stands before it ends TLS.

mod call;
mod error;
mod logs;
mod node;
mod path;
mod problem;
mod state;
mod types;

pub use call::{Call, Input, Reply, ReplyHead};
pub use error::ClientError;
pub use logs::{LogLines, LogQuery};
pub use node::Node;
pub use problem::{Blame, Problem, Retry};
pub use state::{Captured, CapturedFile, Export, Imported, Object, ObjectInfo, ObjectList};
pub use types::{
    AppSummary, Connections, DeployOptions, Deployed, Function, ImageInUse, ImageSummary, LogLine, NodeInfo,
    Process, RemovedImage, TypeLayout,
};
