//! One call as a pair of streams: its input is written, its reply read, in any order. [`Flow`] knows what may be done now, and waits for
//! nothing; [`CallStream`] waits by blocking, and the asynchronous client in its own way.

use std::io::{self, Read, Write};

use crate::{
    connection::Connection,
    error::Error,
    exchange::{End, Incoming},
    machine::Machine,
    request::ReplyHead,
};

/// See the module. In what it gives, `None` says that it is to be asked again when something has happened.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) ticket: u64,
    head: Option<ReplyHead>,
    input_ended: bool,
    failed: Option<Error>,
    is_over: bool,
}

impl Flow {
    pub(crate) fn new(ticket: u64) -> Flow {
        Flow { ticket, head: None, input_ended: false, failed: None, is_over: false }
    }

    /// What the node says of the call.
    pub(crate) fn head(&self) -> Option<&ReplyHead> {
        self.head.as_ref()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether the call is on the wire, or was.
    pub(crate) fn is_begun(&mut self, machine: &Machine) -> Result<bool, Error> {
        self.look(machine)?;
        Ok(machine.incoming(self.ticket)?.is_some())
    }

    /// Ends the input. False: not yet.
    pub(crate) fn finish(&mut self, machine: &mut Machine) -> Result<bool, Error> {
        if self.input_ended || self.is_over {
            return Ok(true);
        }
        let Some(incoming) = machine.incoming(self.ticket)? else { return Ok(false) };
        // One that has ended takes no more input, and needs none.
        self.input_ended = incoming.end.is_some() || machine.write(self.ticket, &[], true)?.is_some();
        Ok(self.input_ended)
    }

    /// Reads what is there, at least a byte. 0: the reply is over.
    pub(crate) fn read(&mut self, machine: &mut Machine, into: &mut [u8]) -> Result<Option<usize>, Error> {
        if self.is_over || into.is_empty() {
            return Ok(Some(0));
        }
        let is_last = self.look(machine)?;
        let len = machine.read(self.ticket, into);
        if len == 0 && !is_last {
            return Ok(None);
        }
        self.is_over = len == 0;
        Ok(Some(len))
    }

    /// Sends what there is credit for, at least a byte.
    pub(crate) fn write(&mut self, machine: &mut Machine, bytes: &[u8]) -> Result<Option<usize>, Error> {
        self.look(machine)?;
        if self.is_over || bytes.is_empty() {
            return Ok(Some(0));
        }
        if machine.incoming(self.ticket)?.is_some_and(|incoming| incoming.end.is_some()) {
            // The function has answered without reading on. What it left is of no use to anybody.
            return Ok(Some(bytes.len()));
        }
        Ok(machine.write(self.ticket, bytes, false)?.filter(|len| *len > 0))
    }

    /// Takes note of what has come of the call: whether its last byte is here.
    pub(crate) fn look(&mut self, machine: &Machine) -> Result<bool, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.is_over {
            return Ok(true);
        }
        let found = machine.incoming(self.ticket).and_then(|incoming| match incoming {
            Some(incoming) => self.examine(incoming),
            None => Ok(false),
        });
        found.inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn examine(&mut self, incoming: &Incoming) -> Result<bool, Error> {
        if incoming.head.is_some() {
            self.head.clone_from(&incoming.head);
        }
        // What came before a failure is handed out before it.
        match &incoming.end {
            Some(End::Failed(problem)) if incoming.unread() == 0 => Err(Error::Problem(problem.clone())),
            Some(End::Over(error)) if incoming.unread() == 0 => Err(error.clone()),
            Some(End::Done) => Ok(true),
            _ => Ok(false),
        }
    }
}

/// A call whose input is written and whose reply is read. Reading ends the input, if [`CallStream::finish`] has not; use
/// [`CallStream::read_some`] where a function answers while it is still being told.
///
/// I/O errors carry an [`Error`]: [`io::Error::get_ref`] and a downcast bring it back. Dropped before its end, the call is cancelled.
#[derive(Debug)]
pub struct CallStream<'c> {
    connection: &'c mut Connection,
    flow: Flow,
}

impl<'c> CallStream<'c> {
    pub(crate) fn new(connection: &'c mut Connection, flow: Flow) -> CallStream<'c> {
        CallStream { connection, flow }
    }

    /// Does something as soon as it can be done.
    fn wait<T>(
        &mut self,
        mut what: impl FnMut(&mut Flow, &mut Machine) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            if let Some(done) = what(&mut self.flow, &mut self.connection.machine)? {
                return Ok(done);
            }
            self.connection.step(None);
        }
    }

    /// Ends the input.
    ///
    /// # Errors
    /// Any [`Error`]: how the call ended, if it did.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.wait(|flow, machine| flow.finish(machine).map(|done| done.then_some(())))?;
        self.connection.flush();
        Ok(())
    }

    /// What the node says of the call; waits for the beginning of the reply. After the last byte it has the final commit.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn head(&mut self) -> Result<&ReplyHead, Error> {
        self.wait(|flow, machine| {
            flow.look(machine)?;
            Ok((flow.head().is_some() || flow.is_over()).then_some(()))
        })?;
        self.flow.head().ok_or(Error::NoSuchCall)
    }

    /// What [`CallStream::head`] gives, if it was seen while reading.
    pub fn known_head(&self) -> Option<&ReplyHead> {
        self.flow.head()
    }

    /// Reads what is there, waiting for at least a byte, without ending the input. 0: the reply is over.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn read_some(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let len = self.wait(|flow, machine| flow.read(machine, into))?;
        if self.flow.is_over() {
            self.connection.close(self.flow.ticket);
        }
        Ok(len)
    }
}

/// What [`CallStream::exchange`] has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Bytes of the input that were taken.
    pub written: usize,
    /// Bytes of the reply that are there.
    pub read: usize,
    /// The reply is over: nothing more is read, and no input wanted.
    pub is_over: bool,
}

impl CallStream<'_> {
    /// Writes and reads, whichever can be done; waits until one of them can. For a function that answers while it is still being told:
    /// who only writes, while it waits for its reply to be read, would wait for ever.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn exchange(&mut self, input: &[u8], into: &mut [u8]) -> Result<Exchanged, Error> {
        let done = self.wait(|flow, machine| {
            let read = flow.read(machine, into)?;
            let written = if flow.is_over() { None } else { flow.write(machine, input)? };
            let is_over = flow.is_over();
            let done = Exchanged { written: written.unwrap_or(0), read: read.unwrap_or(0), is_over };
            Ok((is_over || done.written + done.read > 0).then_some(done))
        })?;
        self.connection.flush();
        if done.is_over {
            self.connection.close(self.flow.ticket);
        }
        Ok(done)
    }
}

impl Read for CallStream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.finish().and_then(|()| self.read_some(into)).map_err(io::Error::other)
    }
}

impl Write for CallStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.wait(|flow, machine| flow.write(machine, bytes));
        self.connection.flush();
        written.map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush();
        Ok(())
    }
}

impl Drop for CallStream<'_> {
    fn drop(&mut self) {
        self.connection.close(self.flow.ticket);
        self.connection.flush();
    }
}
