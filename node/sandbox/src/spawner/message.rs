//! What agent and spawner say to each other: one JSON message per SEQPACKET record. Both ends are the same build, so
//! there are no versions.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::{fmt, io};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ExitCause;
use crate::cgroup::Hierarchy;
use crate::sys;

/// Agent to spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// First, once. Carries one directory descriptor per hierarchy, in order.
    Setup {
        /// Absolute path.
        image_store: PathBuf,
        /// Where sandboxes get their control groups.
        hierarchies: Vec<Hierarchy>,
        /// Whether sandboxes shall have rings.
        rings: bool,
    },
    /// Make a sandbox.
    Spawn {
        /// The agent's number for it, never used twice.
        id: u64,
        /// Whether it shall have a ring.
        ring: bool,
    },
}

/// Spawner to agent, one per request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The spawner works: it has made a sandbox on trial.
    Ready {
        /// Each sandbox has a uid of its own.
        own_uids: bool,
        /// The kernel has the filter actions.
        seccomp: bool,
        /// Why no ring could be made, if one was wanted.
        ring_error: Option<String>,
    },
    /// Carries [control, answers, stdio, pidfd, page]. The sandbox then reports itself on its control connection.
    Spawned {
        /// From the request.
        id: u64,
        /// Process id as the agent sees it.
        pid: u32,
        /// Whether it has a ring.
        ring: bool,
    },
    /// It could not be made.
    Failed {
        /// From the request; 0 for the setup.
        id: u64,
        /// What went wrong.
        fault: Fault,
    },
    /// Every place is taken.
    Full {
        /// From the request.
        id: u64,
        /// How many there are.
        places: u32,
    },
}

/// Spawner to agent, unasked, on a socket of its own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Which sandbox.
    pub(crate) id: u64,
    /// How.
    pub(crate) cause: ExitCause,
}

/// A failed step, small enough to cross a process boundary from any place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// What was being done.
    pub(crate) step: Step,
    /// What the kernel said.
    pub(crate) errno: i32,
}

/// Turns an I/O error at a step into a fault.
pub(crate) fn at<E: Into<io::Error>>(step: Step) -> impl FnOnce(E) -> Fault {
    move |error| Fault { step, errno: error.into().raw_os_error().unwrap_or(libc::EIO) }
}

/// The steps between a request and a waiting sandbox.
macro_rules! steps {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// What was being done when it failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[repr(u32)]
        pub(crate) enum Step { $(#[doc = $text] $name = $number),* }

        impl Step {
            /// As sent over a connection that may carry nothing else.
            pub(crate) fn from_number(number: u32) -> Option<Step> {
                match number { $($number => Some(Step::$name),)* _ => None }
            }
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Step::$name => $text),* })
            }
        }
    };
}

steps! {
    Message = 1, "talking to the spawner";
    Proc = 2, "reading /proc in the spawner";
    LeaveHost = 3, "moving the spawner out of the host's file systems";
    Events = 4, "preparing the spawner's event queue";
    Sockets = 5, "making a sandbox's sockets";
    Page = 6, "making the page for last words";
    Group = 7, "making a control group";
    Clone = 8, "creating a sandbox's namespaces (clone3)";
    Map = 9, "mapping a sandbox's user id";
    Go = 10, "waiting for the spawner";
    Ids = 11, "taking the sandbox's user id";
    Name = 12, "naming the sandbox";
    Root = 13, "building the sandbox's root";
    Descriptors = 14, "closing what the sandbox must not hold";
    Signals = 15, "installing signal handlers";
    Trial = 16, "making a sandbox on trial";
    User = 17, "mapping the spawner's user id";
    Exec = 18, "executing this program as the spawner";
}

/// The first bytes on a sandbox's control connection: step and errno, both zero when it is ready.
pub(crate) const VERDICT_BYTES: usize = 8;

/// Encodes a sandbox's verdict on itself.
pub(crate) fn encode_verdict(fault: Option<Fault>) -> [u8; VERDICT_BYTES] {
    let (step, errno) = fault.map_or((0, 0), |fault| (fault.step as u32, fault.errno));
    let mut bytes = [0; VERDICT_BYTES];
    bytes[..4].copy_from_slice(&step.to_le_bytes());
    bytes[4..].copy_from_slice(&errno.to_le_bytes());
    bytes
}

/// Decodes it. No tenant code has run in the sender.
pub(crate) fn decode_verdict(bytes: [u8; VERDICT_BYTES]) -> Result<(), Fault> {
    let [a, b, c, d, e, f, g, h] = bytes;
    match u32::from_le_bytes([a, b, c, d]) {
        0 => Ok(()),
        number => Err(Fault {
            step: Step::from_number(number).unwrap_or(Step::Message),
            errno: i32::from_le_bytes([e, f, g, h]),
        }),
    }
}

/// Sends one message.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    sys::send(socket, &serde_json::to_vec(message)?, fds)
}

/// Receives one message. `None`: the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    match sys::receive(socket)? {
        None => Ok(None),
        Some((bytes, fds)) => Ok(Some((serde_json::from_slice(&bytes)?, fds))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_survive_the_connection() {
        assert_eq!(decode_verdict(encode_verdict(None)), Ok(()));
        let fault = Fault { step: Step::Root, errno: libc::EPERM };
        assert_eq!(decode_verdict(encode_verdict(Some(fault))), Err(fault));
    }
}
