//! The clients against a small node over real sockets: every way in which a call, a stream or a connection can end.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should fail on the spot")]

mod asynchronous;
mod blocking;
mod fake;
mod python;
