//! The daemon of a node: it answers HTTP, keeps processes alive in sandboxes, and swaps them out when nobody calls them.
//!
//! What must hold: an executor never blocks and never waits for a disk; at most one sandbox acts for a process; no reply leaves before the
//! claim behind it is durable; nothing that a caller or a sandbox sends can end the agent; an idle agent uses no processor.
//!
//! | module | owns |
//! |---|---|
//! | `executor` | pinned threads, sockets, timers; the only place that names glommio |
//! | `front` | HTTP: routes, who may speak, calls, the control interface |
//! | `process` | a process's life, and the frames to and from its sandbox |
//! | `home` | what lives on one executor |
//! | `node` | what all executors share |
//! | `pool`, `side` | waiting sandboxes; threads for what blocks |
//! | `deployed` | an image in use |
//! | `logs` | what processes print |
//! | `problem` | every error that a caller can see |
//! | `dir`, `token` | the node's directory and its secret |

mod agent;
mod deployed;
mod dir;
mod executor;
mod front;
mod home;
mod local;
mod logs;
mod node;
mod pool;
mod problem;
mod process;
mod side;
mod token;

pub use agent::{Agent, AgentError, NodeDir};
pub use dir::DirError;
pub use executor::ExecutorError;
pub use node::AgentConfig;
