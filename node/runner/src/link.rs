//! The socket to the agent. Reading is the leader's alone; writing is anybody's, one whole message at a time.
//!
//! It owns the rule that frames of two threads never mix. Errors are not told apart: whatever goes wrong on this socket, the agent is gone
//! and this process has nothing left to do.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::locked;

/// The agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    writing: Mutex<()>,
}

impl Link {
    /// Takes the socket over; all its reads and writes block from now on.
    pub(crate) fn new(socket: OwnedFd) -> Link {
        if let Ok(flags) = rustix::fs::fcntl_getfl(&socket)
            && flags.contains(OFlags::NONBLOCK)
        {
            // If it stays as it was, the first read finds nothing and counts as the end: seen at once, not later.
            let _ = rustix::fs::fcntl_setfl(&socket, flags - OFlags::NONBLOCK);
        }
        Link { socket, writing: Mutex::new(()) }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads at least a byte.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<usize, Gone> {
        self.read_two(into, &mut [])
    }

    /// Reads at least a byte, into the second buffer what the first has no room for.
    pub(crate) fn read_two(&self, first: &mut [u8], second: &mut [u8]) -> Result<usize, Gone> {
        loop {
            let result = if second.is_empty() {
                rustix::io::read(&self.socket, &mut *first)
            } else {
                rustix::io::readv(&self.socket, &mut [IoSliceMut::new(first), IoSliceMut::new(second)])
            };
            match result {
                Ok(0) => return Err(Gone),
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Writes all pieces, in one system call if the socket takes them.
    pub(crate) fn send(&self, mut pieces: &mut [IoSlice<'_>]) -> Result<(), Gone> {
        let _alone = locked(&self.writing);
        while pieces.iter().any(|piece| !piece.is_empty()) {
            match rustix::io::writev(&self.socket, pieces) {
                Ok(0) => return Err(Gone),
                Ok(count) => IoSlice::advance_slices(&mut pieces, count),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Writes one frame that is whole already.
    pub(crate) fn send_frame(&self, frame: &[u8]) -> Result<(), Gone> {
        self.send(&mut [IoSlice::new(frame)])
    }
}
