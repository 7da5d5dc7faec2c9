//! [`Epoch`]: the number of an ownership term. Pure: no clock, no I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of an ownership term of a process. Whatever leaves the node carries it, and the holder of a
/// lower one is refused.
///
/// Epochs come from one counter for the whole installation: they are unique, they only grow, and deleting a
/// process and creating it again cannot bring an old one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Below every epoch that is handed out: the term of nobody.
    pub const NONE: Self = Self(0);

    /// The epoch with this number, as read back from a file or a message.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next one, or `None` once 64 bits are used up.
    pub(crate) fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
