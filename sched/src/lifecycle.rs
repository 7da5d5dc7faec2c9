//! The life of a process as a table: which event leads from which phase to which. Pure: no clock, no I/O.
//!
//! ```text
//!              claim           activate          drain
//!   placed ------------> starting -----> active <-----> draining
//!     ^                   |  |            |   activate     |
//!     |       stop        |  |            |                |
//!     +-------------------+--|------------+----------------+   stop: the sandbox is gone, the state lies on the node
//!     |                      |            |                |
//!     | swap-out             |  swap-out  |                |
//!     +-------> swapped <----+------------+----------------+   swap-out: the state lies in the swap store
//!                  |
//!                  +-- claim --> starting
//!
//!   any but deleted -- fail   --> failed   -- claim --> starting
//!   any             -- delete --> deleted
//! ```
//!
//! `claim` is legal everywhere but in `deleted`: it begins a new ownership term, and the epoch that comes
//! with it shuts out whoever held the process before. Every other event is said by the holder of the current
//! epoch. Saying the same thing twice is legal, because the answer to the first time may have been lost.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It exists, no sandbox runs it, and its state (if any) lies on the node.
    Placed,
    /// An owner has claimed it and is preparing its sandbox.
    Starting,
    /// A sandbox serves calls.
    Active,
    /// A sandbox finishes what it has; new calls wait.
    Draining,
    /// No sandbox runs it, and its state is in the swap store.
    Swapped,
    /// Its last start or run ended in an error that the next one will meet again unless something is done.
    Failed,
    /// It is gone, and its state with it.
    Deleted,
}

/// What can happen to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// An owner begins a term.
    Claim,
    /// Its sandbox serves; also when a drain is called off.
    Activate,
    /// Its sandbox takes no new calls.
    Drain,
    /// Its sandbox is gone; its state stays on the node.
    Stop,
    /// Its sandbox is gone; its state is in the swap store. Also: a start from there was given up.
    SwapOut,
    /// It cannot run.
    Fail,
    /// It and its state are removed.
    Delete,
}

impl Phase {
    /// All of them, for those who list or test.
    pub const ALL: [Self; 7] = [
        Self::Placed,
        Self::Starting,
        Self::Active,
        Self::Draining,
        Self::Swapped,
        Self::Failed,
        Self::Deleted,
    ];

    /// The phase that `event` leads to.
    ///
    /// # Errors
    /// [`Illegal`] where the table has no such step; nothing has happened then.
    pub fn after(self, event: Event) -> Result<Self, Illegal> {
        use Event as E;
        use Phase::{Active, Deleted, Draining, Failed, Placed, Starting, Swapped};
        let next = match (self, event) {
            (Deleted, E::Delete) => Deleted,
            (Deleted, _) => return Err(Illegal { phase: self, event }),
            (_, E::Claim) => Starting,
            (_, E::Fail) => Failed,
            (_, E::Delete) => Deleted,
            (Starting | Active | Draining, E::Activate) => Active,
            (Active | Draining, E::Drain) => Draining,
            (Placed | Starting | Active | Draining, E::Stop) => Placed,
            (Placed | Starting | Active | Draining | Swapped, E::SwapOut) => Swapped,
            _ => return Err(Illegal { phase: self, event }),
        };
        Ok(next)
    }

    /// Whether an owner has a sandbox for it, or prepares one. It is what the death of the owner ends.
    pub fn is_owned(self) -> bool {
        matches!(self, Self::Starting | Self::Active | Self::Draining)
    }

    /// As it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Swapped => "swapped",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Claim => "claim",
            Self::Activate => "activate",
            Self::Drain => "drain",
            Self::Stop => "stop",
            Self::SwapOut => "swap-out",
            Self::Fail => "fail",
            Self::Delete => "delete",
        })
    }
}

/// A step that the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a process that is {phase} has no step {event}")]
pub struct Illegal {
    /// The phase that it is in, and stays in.
    pub phase: Phase,
    /// What was said to have happened.
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 7] = [
        Event::Claim,
        Event::Activate,
        Event::Drain,
        Event::Stop,
        Event::SwapOut,
        Event::Fail,
        Event::Delete,
    ];

    /// The whole table, as readers of the documentation see it: a row per phase, a column per event, `-` for
    /// what is illegal.
    const DOCUMENT: &str = include_str!("../../docs/lifecycle.md");

    fn row(line: &str) -> Option<Vec<&str>> {
        let cells = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(cells.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
    }

    #[test]
    fn every_phase_with_every_event() {
        let mut rows = DOCUMENT.lines().filter_map(row).skip_while(|row| row[0] != "from");
        let head: Vec<String> = EVENTS.iter().map(ToString::to_string).collect();
        assert_eq!(rows.next().unwrap()[1..], head);
        assert!(rows.next().unwrap()[0].starts_with("---"));
        for (phase, row) in Phase::ALL.into_iter().zip(rows.by_ref()) {
            assert_eq!(row[0], phase.to_string());
            for (event, expected) in EVENTS.into_iter().zip(&row[1..]) {
                match phase.after(event) {
                    Ok(next) => assert_eq!(next.to_string(), *expected, "{phase} {event}"),
                    Err(illegal) => assert_eq!((illegal, *expected), (Illegal { phase, event }, "-")),
                }
            }
        }
        assert_eq!(rows.next(), None, "docs/lifecycle.md knows a phase too many");
    }

    #[test]
    fn whatever_may_be_said_once_may_be_said_twice() {
        for phase in Phase::ALL {
            for event in EVENTS {
                if let Ok(next) = phase.after(event) {
                    assert_eq!(next.after(event), Ok(next), "{phase} {event}");
                }
            }
        }
    }

    #[test]
    fn json_and_text_agree() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
    }
}
