//! The heads of the frames, one file for each purpose: what is in them, what they may hold, and their bytes.
//!
//! Reading and writing check the same rules, so no end can send what the other would refuse. A head that is read borrows its texts.

mod call;
mod drain;
mod handshake;
pub mod problem;
mod reply;

pub use call::{CallHead, CancelReason, FunctionRef};
pub use drain::{Drain, DrainReason};
pub use handshake::{Accepted, Hello, HelloOptions, Moved};
pub use problem::Problem;
pub use reply::{Final, ReplyHead};

pub(crate) use drain::DrainHead;
pub(crate) use handshake::read_table;

use denizen_abi::Durability;

use crate::header::Kind;
use crate::violation::Violation;

/// Reads a durability that travels as a number.
pub(crate) fn durability(kind: Kind, number: u32) -> Result<Durability, Violation> {
    let bad = Violation::BadValue { kind, what: "durability", value: u64::from(number) };
    Durability::from_u32(number).ok_or(bad)
}

#[cfg(test)]
mod tests;
