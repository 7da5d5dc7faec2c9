//! One call as a pair of streams: its input is written, its reply read, in any order.

use std::io::{self, Read, Write};

use crate::{
    connection::{Connection, Ticket},
    error::Error,
    exchange::End,
    request::ReplyHead,
};

/// A call whose input is written and whose reply is read. Reading ends the input, if [`CallStream::finish`] has not; use
/// [`CallStream::read_some`] where a function answers while it is still being told.
///
/// I/O errors carry an [`Error`]: [`io::Error::get_ref`] and a downcast bring it back. Dropped before its end, the call is cancelled.
#[derive(Debug)]
pub struct CallStream<'c> {
    connection: &'c mut Connection,
    ticket: Ticket,
    head: Option<ReplyHead>,
    input_ended: bool,
    failed: Option<Error>,
    over: bool,
}

impl<'c> CallStream<'c> {
    pub(crate) fn new(connection: &'c mut Connection, ticket: Ticket) -> CallStream<'c> {
        CallStream { connection, ticket, head: None, input_ended: false, failed: None, over: false }
    }

    /// Ends the input.
    ///
    /// # Errors
    /// Any [`Error`]: how the call ended, if it did.
    pub fn finish(&mut self) -> Result<(), Error> {
        if self.input_ended || self.over {
            return Ok(());
        }
        let (exchange, id) = self.connection.on_wire(&self.ticket)?;
        self.input_ended = true;
        if exchange.incoming(id).is_some_and(|incoming| incoming.end.is_some()) {
            return Ok(());
        }
        exchange.write(id, &[], true).map_err(Error::Refused)?;
        self.connection.flush();
        Ok(())
    }

    /// What the node says of the call; waits for the beginning of the reply. After the last byte it has the final commit.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn head(&mut self) -> Result<&ReplyHead, Error> {
        loop {
            self.look()?;
            // Not `if let`: the borrow checker would hold `self.head` over the loop.
            if self.head.is_some() || self.over {
                return self.head.as_ref().ok_or(Error::NoSuchCall);
            }
            self.connection.step(None);
        }
    }

    /// Reads what is there, waiting for at least a byte, without ending the input. 0: the reply is over.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn read_some(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        loop {
            if self.over || into.is_empty() {
                return Ok(0);
            }
            let ended = self.look()?;
            let (exchange, id) = self.connection.on_wire(&self.ticket)?;
            let len = exchange.read(id, into);
            if len > 0 {
                return Ok(len);
            }
            if ended {
                self.over = true;
                self.connection.close(&self.ticket);
                return Ok(0);
            }
            self.connection.step(None);
        }
    }

    /// Takes note of what has come of the call: whether its last byte is here.
    fn look(&mut self) -> Result<bool, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.over {
            return Ok(true);
        }
        let found = self.examine();
        if let Err(error) = &found {
            self.failed = Some(error.clone());
        }
        found
    }

    fn examine(&mut self) -> Result<bool, Error> {
        let (exchange, id) = self.connection.on_wire(&self.ticket)?;
        let incoming = exchange.incoming(id).ok_or(Error::NoSuchCall)?;
        if incoming.head.is_some() {
            self.head.clone_from(&incoming.head);
        }
        // What came before a failure is handed out before it.
        match &incoming.end {
            Some(End::Failed(problem)) if incoming.body.len() == incoming.at => {
                Err(Error::Problem(problem.clone()))
            }
            Some(End::Done) => Ok(true),
            _ => Ok(false),
        }
    }

    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        loop {
            self.look()?;
            if self.over {
                return Ok(0);
            }
            let (exchange, id) = self.connection.on_wire(&self.ticket)?;
            if exchange.incoming(id).is_some_and(|incoming| incoming.end.is_some()) {
                // The function has answered without reading on. What it left is of no use to anybody.
                return Ok(bytes.len());
            }
            let len = exchange.write(id, bytes, false).map_err(Error::Refused)?;
            if len > 0 {
                self.connection.flush();
                return Ok(len);
            }
            self.connection.step(None);
        }
    }
}

impl Read for CallStream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.finish().and_then(|()| self.read_some(into)).map_err(io::Error::other)
    }
}

impl Write for CallStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.write_some(bytes).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush();
        Ok(())
    }
}

impl Drop for CallStream<'_> {
    fn drop(&mut self) {
        self.connection.close(&self.ticket);
        self.connection.flush();
    }
}
