//! The end that connects: one [`Connection`], and the [`Session`] that outlives it.

mod connection;
mod memory;
mod session;

pub use connection::{Call, Connection, Event, Fate, Lost, Unfinished};
pub use memory::{Epochs, Memory};
pub use session::{Next, Resume, Session, Target, resume};
