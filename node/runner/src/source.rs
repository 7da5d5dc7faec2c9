//! The incoming bytes: what was read and not handled, and the descriptors that came with it.
//!
//! The leader's own. A large body is read past the buffer, straight to where it belongs; what comes behind it goes to the buffer.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use denizen_engine::storage::Segment;
use denizen_wire::{FrameReader, Header, Sender};

use crate::buffers::Body;
use crate::link::{Descriptors, Gone, Link};
use crate::spares;

#[derive(Debug)]
pub(crate) struct Source {
    link: &'static Link,
    pub(crate) frames: FrameReader,
    descriptors: Descriptors,
}

impl Source {
    pub(crate) fn new(link: &'static Link) -> Source {
        Source { link, frames: FrameReader::new(Sender::Agent), descriptors: Descriptors::new() }
    }

    /// Waits for more bytes.
    pub(crate) fn read(&mut self) -> Result<(), Gone> {
        let count = self.link.read(self.frames.space(), &mut self.descriptors)?;
        self.frames.filled(count);
        Ok(())
    }

    /// Takes more bytes if they are there; says whether they were.
    pub(crate) fn read_now(&mut self) -> Result<bool, Gone> {
        let count = self.link.read_now(self.frames.space(), &mut self.descriptors)?;
        self.frames.filled(count.unwrap_or(0));
        Ok(count.is_some())
    }

    /// Reads the rest of a payload straight to where it belongs.
    pub(crate) fn fill(&mut self, body: &mut Body, mut rest: usize) -> Result<(), Gone> {
        while rest > 0 {
            let room = &mut body.room()[..rest];
            let count = self.link.read_two(room, self.frames.space(), &mut self.descriptors)?;
            let here = count.min(rest);
            body.filled(here);
            self.frames.filled(count - here);
            rest -= here;
        }
        Ok(())
    }

    /// `bytes` and the rest of a payload.
    pub(crate) fn read_rest(&mut self, mut bytes: Vec<u8>, rest: usize) -> Result<Vec<u8>, Gone> {
        let mut have = bytes.len();
        bytes.resize(have + rest, 0);
        while have < bytes.len() {
            let room = &mut bytes[have..];
            let most = room.len();
            let count = self.link.read_two(room, self.frames.space(), &mut self.descriptors)?;
            let here = count.min(most);
            self.frames.filled(count - here);
            have += here;
        }
        Ok(bytes)
    }

    /// The segment of a `Segment` frame, from the descriptors that came with it. `None`: it is no such frame of a sane agent.
    pub(crate) fn segment(&mut self, header: &Header) -> Option<Arc<dyn Segment>> {
        let writable = self.descriptors.pop_front()?;
        let read_only: OwnedFd = self.descriptors.pop_front()?;
        spares::segment(header.c, writable, read_only).ok()
    }

    /// Descriptors that no frame has claimed.
    pub(crate) fn unclaimed(&self) -> usize {
        self.descriptors.len()
    }
}
