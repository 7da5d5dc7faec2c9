//! Receives what this sandbox is to be, and the two descriptors of its state.
//!
//! The descriptors ride on the first bytes of the frame, so this is the one place that reads with `recvmsg`; it does so before the
//! filters, which forbid that call.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use denizen_wire::{Assignment, FrameReader, Kind, WireError};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::link::Link;

/// An assignment and what came with it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) assignment: Assignment,
    /// Writable, read-only. None for a probe.
    pub(crate) state: Option<(File, File)>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReceived {
    #[error("the agent is gone")]
    Gone,
    #[error("the agent sent no assignment: {0}")]
    Broken(#[from] WireError),
    #[error("the agent sent a {0:?} frame where the assignment was due")]
    NotAnAssignment(Kind),
    #[error("{0} state descriptors came with the assignment, 2 were due")]
    Descriptors(usize),
}

/// Waits for the assignment. Frames behind it stay in `frames`.
pub(crate) fn receive(link: &Link, frames: &mut FrameReader) -> Result<Received, NotReceived> {
    let mut descriptors = Vec::new();
    loop {
        if let Some(frame) = frames.frame()? {
            if frame.header.kind != Kind::Assign {
                return Err(NotReceived::NotAnAssignment(frame.header.kind));
            }
            let assignment: Assignment = frame.document()?;
            let state = state_of(&assignment, descriptors)?;
            return Ok(Received { assignment, state });
        }
        let count = receive_some(link, frames.space(), &mut descriptors)?;
        frames.filled(count);
    }
}

fn state_of(assignment: &Assignment, descriptors: Vec<OwnedFd>) -> Result<Option<(File, File)>, NotReceived> {
    let count = descriptors.len();
    let mut descriptors = descriptors.into_iter().map(File::from);
    match (assignment.probe, descriptors.next(), descriptors.next(), count) {
        (true, None, None, 0) => Ok(None),
        (false, Some(writable), Some(read_only), 2) => Ok(Some((writable, read_only))),
        _ => Err(NotReceived::Descriptors(count)),
    }
}

fn receive_some(link: &Link, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, NotReceived> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(link.socket(), &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Err(NotReceived::Gone),
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(NotReceived::Gone),
        }
    };
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    Ok(message.bytes)
}
