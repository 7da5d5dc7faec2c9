//! The daemon of a node: it answers HTTP, keeps processes alive in sandboxes, and swaps them out when nobody calls them.
//!
//! What must hold: an executor never blocks and never waits for a disk; at most one sandbox acts for a process; no reply leaves before the
//! claim behind it is durable; nothing that a caller or a sandbox sends can end the agent; an idle agent uses no processor.
//!
//! | module | owns |
//! |---|---|
//! | `executor` | pinned threads, sockets, timers; the only place that names tokio |
//! | `front` | HTTP: routes, who may speak, calls, the control interface |
//! | `data` | the framed protocol: connections, their tokens, and the calls on them |
//! | `calls` | a call's way to a process, wherever that lives |
//! | `process` | a process's life, and the frames to and from its sandbox |
//! | `home` | what lives on one executor |
//! | `node` | what all executors share |
//! | `capacity` | how many processes may have a sandbox, and who makes way |
//! | `pool`, `stock`, `side` | waiting sandboxes; blank segments; threads for what blocks |
//! | `deployed`, `images` | an image in use; which may be removed |
//! | `logs` | what processes print |
//! | `process::rest` | the state of processes on a node that does not run |
//! | `problem` | every error that a caller can see |
//! | `dir`, `token` | the node's directory and its secret |

mod agent;
mod calls;
mod capacity;
mod data;
mod deployed;
mod descriptors;
mod dir;
mod executor;
mod front;
mod home;
mod images;
mod local;
mod logs;
mod node;
mod pool;
mod problem;
mod process;
mod side;
mod stock;
mod token;
mod warm;

pub use agent::{Agent, AgentError, NodeDir};
pub use data::keys::{Keys, KeysError};
pub use dir::DirError;
pub use executor::ExecutorError;
pub use node::AgentConfig;
pub use process::rest::{NextEdit, NodeAtRest, Refusal};
