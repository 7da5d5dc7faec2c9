//! The framed protocol between a caller and a process, and the tokens that admit a caller.
//!
//! `docs/protocol.md` is the specification; this crate is one implementation of both ends, without I/O and without a
//! clock. It must hold that every byte sequence, at any pace, comes out as events or as one typed [`Violation`], without
//! a panic and within bounded memory: the bytes come from strangers, and on the serving end they are read beside a
//! tenant's code.
//!
//! * [`server::Handshake`] reads exactly a HELLO; [`server::Connection`] serves the calls behind it, in a
//!   sandbox or in an agent that relays.
//! * [`client::Connection`] makes calls on one connection; [`client::Session`] says what to do when it ends.
//! * [`token`] issues and verifies tokens.
//!
//! Numbers are little-endian. Every frame is a 32-byte header, a head and a body, each padded with zero bytes to a
//! multiple of 16: a receiver whose buffer is aligned finds every body aligned, and one that reads a header first can
//! receive the body where it belongs.
#![forbid(unsafe_code)]

mod body;
pub mod client;
mod command;
mod credit;
mod fields;
mod frame;
mod header;
mod intake;
pub mod limits;
pub mod server;
mod text;
pub mod token;
mod trace;
mod violation;

#[cfg(test)]
mod document;

pub use body::{Part, Rest};
pub use command::CommandError;
pub use denizen_abi::{Blame, Durability, Retry};
pub use frame::{
    Accepted, CallHead, CancelReason, Drain, DrainReason, Final, FunctionRef, Hello, HelloOptions, Moved,
    Problem, ReplyHead, problem,
};
pub use header::{
    BY_NAME, FLAG_END, FLAG_REPLAYED, Header, Kind, LENGTH_UNKNOWN, MAGIC, PADDING, Sender, padding,
};
pub use trace::{TRACEPARENT_LEN, TraceParent};
pub use violation::Violation;
