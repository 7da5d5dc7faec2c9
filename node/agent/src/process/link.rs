//! The way of frames to a sandbox. What the socket takes goes out at once, in one system call; the rest waits here, bounded.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use denizen_wire::{HEADER_LEN, Header};
use rustix::io::IoSlice;

use crate::executor::{self, ControlWriter};

/// Bytes that may wait for a sandbox that does not read. Credit bounds what one call can have here; this bounds all of them.
const BACKLOG_LIMIT: usize = 8 << 20;

/// Frames to one sandbox.
#[derive(Debug)]
pub(crate) struct Link {
    writer: ControlWriter,
    backlog: RefCell<Vec<u8>>,
    flushing: Cell<bool>,
    /// The sandbox closed its end; nothing more is sent. Its death is noticed by whoever reads.
    broken: Cell<bool>,
}

impl Link {
    pub(crate) fn new(writer: ControlWriter) -> Rc<Link> {
        let backlog = RefCell::default();
        Rc::new(Link { writer, backlog, flushing: Cell::new(false), broken: Cell::new(false) })
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
    loop {
        let bytes = link.backlog.take();
        if bytes.is_empty() {
            break;
        }
        if link.writer.send_all(&bytes).await.is_err() {
            link.broken.set(true);
            link.backlog.take();
            break;
        }
    }
    link.flushing.set(false);
}
