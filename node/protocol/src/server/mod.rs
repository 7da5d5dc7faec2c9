//! The end that is connected to: first a [`Handshake`], by the agent, then a [`Connection`], by whoever serves the calls.
//!
//! The two are apart because a connection changes hands between them. The agent reads exactly the HELLO and answers it; the socket, with
//! whatever the client has sent behind, and a [`Parked`] connection go to the process.

mod connection;
mod handshake;
mod parked;

pub use connection::{Connection, Event};
pub use handshake::Handshake;
pub use parked::{Parked, ParkedError, Terms};
