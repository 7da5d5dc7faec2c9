//! The way of frames to a sandbox. What the socket takes goes out at once, in one system call; the rest waits here, bounded.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use denizen_wire::{HEADER_LEN, Header};
use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::executor::{self, ControlWriter};
use crate::process::files::Handed;

/// Bytes that may wait for a sandbox that does not read. Credit bounds what one call can have here; this bounds all of them.
const BACKLOG_LIMIT: usize = 8 << 20;
/// How soon it is looked again whether a sandbox takes a segment, at first and at the latest.
const HAND_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));

/// Frames to one sandbox.
#[derive(Debug)]
pub(crate) struct Link {
    writer: ControlWriter,
    backlog: RefCell<Vec<u8>>,
    /// Segments that wait: at most as many as may be asked for at once.
    handing: RefCell<VecDeque<(Header, Handed)>>,
    flushing: Cell<bool>,
    /// The sandbox closed its end; nothing more is sent. Its death is noticed by whoever reads.
    broken: Cell<bool>,
}

impl Link {
    pub(crate) fn new(writer: ControlWriter) -> Rc<Link> {
        let (backlog, handing) = (RefCell::default(), RefCell::default());
        Rc::new(Link { writer, backlog, handing, flushing: Cell::new(false), broken: Cell::new(false) })
    }

    /// Whether so much waits that nothing new should be begun.
    pub(crate) fn is_congested(&self) -> bool {
        self.backlog.borrow().len() > BACKLOG_LIMIT
    }

    /// Whether the sandbox is known to read no more. What was sent last may not have arrived.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Sends a frame without payload.
    pub(crate) fn send_header(self: &Rc<Link>, header: &Header) {
        self.send(header, &[], &[]);
    }

    /// Sends a frame whose payload is `head` and then `body`; `header` counts both.
    pub(crate) fn send(self: &Rc<Link>, header: &Header, head: &[u8], body: &[u8]) {
        debug_assert_eq!(header.len(), head.len() + body.len());
        if self.broken.get() {
            return;
        }
        let header = header.encode();
        let pieces = [&header[..], head, body];
        let sent =
            if self.backlog.borrow().is_empty() && !self.flushing.get() { self.send_now(pieces) } else { 0 };
        if sent < HEADER_LEN + head.len() + body.len() && !self.broken.get() {
            self.keep(pieces, sent);
        }
    }

    /// Sends a frame with a segment.
    pub(crate) fn hand(self: &Rc<Link>, header: &Header, segment: Handed) {
        if self.broken.get() {
            return;
        }
        self.handing.borrow_mut().push_back((*header, segment));
        // Not into the middle of a frame that waits.
        if !self.flushing.get() && !self.hand_now() && !self.flushing.replace(true) {
            executor::spawn(flush(Rc::clone(self)));
        }
    }

    /// Hands over what the socket takes at once; whether nothing waits any more.
    fn hand_now(&self) -> bool {
        let mut handing = self.handing.borrow_mut();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while let Some((header, segment)) = handing.front() {
            match hand(self.writer.as_fd(), header, segment, flags) {
                Ok(()) => drop(handing.pop_front()),
                Err(Errno::AGAIN) => return false,
                Err(_) => {
                    self.broken.set(true);
                    handing.clear();
                }
            }
        }
        true
    }

    fn send_now(&self, pieces: [&[u8]; 3]) -> usize {
        match self.writer.try_send(&pieces.map(IoSlice::new)) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.broken.set(true);
                0
            }
        }
    }

    fn keep(self: &Rc<Link>, pieces: [&[u8]; 3], mut skip: usize) {
        let mut backlog = self.backlog.borrow_mut();
        for piece in pieces {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            backlog.extend_from_slice(piece.get(skipped..).unwrap_or_default());
        }
        if !self.flushing.replace(true) {
            executor::spawn(flush(Rc::clone(self)));
        }
    }
}

/// Sends what waits, until nothing does.
async fn flush(link: Rc<Link>) {
    let (mut pause, longest) = HAND_AGAIN;
    loop {
        let bytes = link.backlog.take();
        if bytes.is_empty() {
            if link.hand_now() {
                break;
            }
            executor::sleep(pause).await;
            pause = (pause * 2).min(longest);
            continue;
        }
        if link.writer.send_all(&bytes).await.is_err() {
            link.broken.set(true);
            link.backlog.take();
            link.handing.take();
            break;
        }
    }
    link.flushing.set(false);
}

/// Sends one frame without payload, and the two descriptors of a segment on its first byte: all of it or nothing, because a stream
/// socket takes whole what fits into one buffer.
pub(crate) fn hand(
    socket: BorrowedFd<'_>,
    header: &Header,
    segment: &Handed,
    flags: SendFlags,
) -> rustix::io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [segment.writable.as_fd(), segment.read_only.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(&header.encode())], &mut control, flags) {
            Ok(HEADER_LEN) => return Ok(()),
            Ok(_) => return Err(Errno::IO),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
