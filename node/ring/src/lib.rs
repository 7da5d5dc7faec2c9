//! The locked io_uring through which a sandbox speaks with its callers.
//!
//! Two sides that trust each other differently. [`maker`] is called by the spawner, before the sandbox exists, and by the
//! agent: it makes the ring, restricts it for good, puts sockets into its table and takes them out. [`locked`] is what the
//! sandbox does with the ring that it inherited.
//!
//! What must hold: whatever the holder of the ring submits, the ring does nothing but wait for, read from and write to the
//! sockets that the agent has put in its table; and nobody but the agent can change the table. The kernel sees to both: the
//! restrictions are registered before the ring can be used at all, and registering anything is trapped in a sandbox.

pub mod locked;
pub mod maker;
mod map;
