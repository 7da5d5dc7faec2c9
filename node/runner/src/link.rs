//! The connections to the agent: one that is read, by the leader alone, and one that is written, by anybody, one whole message at a time.
//!
//! It owns the rule that frames of two threads never mix, and what an error means. Mostly the agent is gone, and this process has nothing
//! left to do. But the plugin shares this process: it can close the socket or use all descriptors up, and then the agent is there and asks
//! what has happened. Such a [`Fault`] ends the process with words, and never as if all were well.

use std::collections::VecDeque;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use denizen_wire::{EXIT_FAULT, Header};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::locked;
use crate::plugin::end_process;

/// The agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// The connection is of no use any more, and not because the agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// What has the socket's number is closed, or is another file.
    NoSocket,
    /// Descriptors came, and the kernel had no place for them in this process.
    DescriptorsLost,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::NoSocket => {
                "the plugin closed the connection to its host (descriptor 3 or 5), so this process ends: close only \
                 descriptors that are yours"
            }
            Fault::DescriptorsLost => {
                "the host gave this process room for its state, and it has no descriptor left to take it with, so it ends: close files, or \
                 open fewer at a time"
            }
        })
    }
}

impl Fault {
    /// Says so, and ends the process. Not through the log: that is at the other end of this connection.
    fn end(self) -> ! {
        eprintln!("{self}");
        end_process(EXIT_FAULT)
    }
}

/// Why nothing was received or sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Gone,
    Fault(Fault),
}

impl From<Errno> for Broken {
    fn from(error: Errno) -> Broken {
        match error {
            Errno::BADF | Errno::NOTSOCK => Broken::Fault(Fault::NoSocket),
            _ => Broken::Gone,
        }
    }
}

/// Comes back only if the agent is gone.
fn gone(broken: Broken) -> Gone {
    match broken {
        Broken::Gone => Gone,
        Broken::Fault(fault) => fault.end(),
    }
}

/// Descriptors that came and belong to frames not yet handled, in their order.
pub(crate) type Descriptors = VecDeque<OwnedFd>;

#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    /// Where frames go out. Not where they come in: a thread that waits there would be woken whenever the agent takes a frame.
    answers: OwnedFd,
    writing: Mutex<()>,
    /// Frames that go out before the next one. Its lock is never held while something is written.
    later: Mutex<Vec<u8>>,
    has_later: AtomicBool,
    /// Whether the first frame is sent: nothing that was put off comes before it.
    begun: AtomicBool,
}

impl Link {
    /// Takes the sockets over, the one that is read first; reads and writes block from now on, unless said otherwise.
    pub(crate) fn new(socket: OwnedFd, answers: OwnedFd) -> Link {
        if let Ok(flags) = rustix::fs::fcntl_getfl(&socket)
            && flags.contains(OFlags::NONBLOCK)
        {
            // If it stays as it was, the first read finds nothing and counts as the end: seen at once, not later.
            let _ = rustix::fs::fcntl_setfl(&socket, flags - OFlags::NONBLOCK);
        }
        Link {
            socket,
            answers,
            writing: Mutex::new(()),
            later: Mutex::new(Vec::new()),
            has_later: AtomicBool::new(false),
            begun: AtomicBool::new(false),
        }
    }

    /// Reads at least a byte.
    pub(crate) fn read(&self, into: &mut [u8], descriptors: &mut Descriptors) -> Result<usize, Gone> {
        self.receive(&mut [IoSliceMut::new(into)], descriptors, RecvFlags::empty())
            .and_then(|count| count.ok_or(Gone))
    }

    /// Reads what is there; `None` if there is nothing.
    pub(crate) fn read_now(
        &self,
        into: &mut [u8],
        descriptors: &mut Descriptors,
    ) -> Result<Option<usize>, Gone> {
        self.receive(&mut [IoSliceMut::new(into)], descriptors, RecvFlags::DONTWAIT)
    }

    /// Reads at least a byte, into the second buffer what the first has no room for.
    pub(crate) fn read_two(
        &self,
        first: &mut [u8],
        second: &mut [u8],
        descriptors: &mut Descriptors,
    ) -> Result<usize, Gone> {
        let mut pieces = [IoSliceMut::new(first), IoSliceMut::new(second)];
        self.receive(&mut pieces, descriptors, RecvFlags::empty()).and_then(|count| count.ok_or(Gone))
    }

    fn receive(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Descriptors,
        flags: RecvFlags,
    ) -> Result<Option<usize>, Gone> {
        self.try_receive(into, descriptors, flags).map_err(gone)
    }

    /// Always with room for descriptors: read otherwise, those that ride on the bytes would be lost. The kernel gives those of one
    /// message at a time, and a frame has two.
    fn try_receive(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Descriptors,
        flags: RecvFlags,
    ) -> Result<Option<usize>, Broken> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            match recvmsg(&self.socket, into, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        if message.bytes == 0 {
            return Err(Broken::Gone);
        }
        // Descriptors that the kernel had to drop (there may be no more of them in this process) are segments that are lost.
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Broken::Fault(Fault::DescriptorsLost));
        }
        for item in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = item {
                descriptors.extend(rights);
            }
        }
        Ok(Some(message.bytes))
    }

    /// Writes all pieces, in one system call if the socket takes them.
    pub(crate) fn send(&self, pieces: &mut [IoSlice<'_>]) -> Result<(), Gone> {
        let _alone = locked(&self.writing);
        if self.has_later() {
            let later = self.take_later();
            self.write(&mut [IoSlice::new(&later)]).map_err(gone)?;
        }
        self.write(pieces).map_err(gone)
    }

    fn write(&self, mut pieces: &mut [IoSlice<'_>]) -> Result<(), Broken> {
        while pieces.iter().any(|piece| !piece.is_empty()) {
            match rustix::io::writev(&self.answers, pieces) {
                Ok(0) => return Err(Broken::Gone),
                Ok(count) => IoSlice::advance_slices(&mut pieces, count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes one frame that is whole already.
    pub(crate) fn send_frame(&self, frame: &[u8]) -> Result<(), Gone> {
        self.send(&mut [IoSlice::new(frame)])
    }

    /// The same for the frame that says that this process serves.
    pub(crate) fn send_ready(&self, frame: &[u8]) -> Result<(), Gone> {
        let sent = self.send_frame(frame);
        self.begun.store(true, Relaxed);
        sent
    }

    /// Sends a frame without payload before the next one, or when the leader finds nothing more to read. Never waits.
    pub(crate) fn send_later(&self, header: Header) {
        locked(&self.later).extend_from_slice(&header.encode());
        self.has_later.store(true, Relaxed);
    }

    /// Sends what was put off.
    pub(crate) fn flush(&self) -> Result<(), Gone> {
        if self.has_later() { self.send(&mut []) } else { Ok(()) }
    }

    /// Whether something was put off.
    pub(crate) fn has_later(&self) -> bool {
        self.has_later.load(Relaxed) && self.begun.load(Relaxed)
    }

    fn take_later(&self) -> Vec<u8> {
        let mut later = locked(&self.later);
        self.has_later.store(false, Relaxed);
        std::mem::take(&mut later)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answers = ours.try_clone().unwrap();
        (Link::new(ours.into(), answers.into()), theirs)
    }

    fn receive(link: &Link) -> Result<Option<usize>, Broken> {
        let mut bytes = [0; 16];
        let mut descriptors = Descriptors::new();
        link.try_receive(&mut [IoSliceMut::new(&mut bytes)], &mut descriptors, RecvFlags::DONTWAIT)
    }

    #[test]
    fn an_agent_that_is_gone_is_no_fault() {
        let (link, theirs) = pair();
        assert_eq!(receive(&link), Ok(None));
        drop(theirs);
        assert_eq!(receive(&link), Err(Broken::Gone));
        assert_eq!(link.write(&mut [IoSlice::new(b"frame")]), Err(Broken::Gone));
    }

    #[test]
    fn a_number_that_is_no_socket_any_more_is_a_fault_of_this_process() {
        let (mut link, _theirs) = pair();
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        rustix::io::dup2(null, &mut link.socket).unwrap();
        assert_eq!(receive(&link), Err(Broken::Fault(Fault::NoSocket)));
        // Whichever of the two it is.
        let (_ours, theirs) = UnixStream::pair().unwrap();
        drop(std::mem::replace(&mut link.answers, theirs.into()));
        assert_eq!(link.write(&mut [IoSlice::new(b"frame")]), Ok(()));
        assert_eq!(Broken::from(Errno::BADF), Broken::Fault(Fault::NoSocket));
    }

    #[test]
    fn descriptors_that_found_no_place_are_a_fault_of_this_process() {
        let (link, theirs) = pair();
        let many = [theirs.as_fd(); 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&theirs, &[IoSlice::new(b"frame")], &mut ancillary, SendFlags::empty()).unwrap();
        assert_eq!(receive(&link), Err(Broken::Fault(Fault::DescriptorsLost)));
    }
}
