//! Connections for many threads: lent one at a time, kept for the next.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

use crate::{connection::Connection, error::Error, options::Options};

/// Connections to one application or process. Shared by reference or in an `Arc`.
#[derive(Debug)]
pub struct Pool {
    options: Options,
    idle: Mutex<Vec<Connection>>,
    keep: usize,
}

impl Pool {
    /// One that keeps at most `keep` connections while nobody uses them. Nothing is connected yet.
    pub fn new(options: Options, keep: usize) -> Pool {
        Pool { options, idle: Mutex::new(Vec::new()), keep }
    }

    /// A connection: one that was used before, or a new one, which connects with its first call. It comes back when
    /// what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::Token`] and [`Error::Refused`] for options that cannot be.
    pub fn get(&self) -> Result<Lent<'_>, Error> {
        // The one that was used last: the others may be let go of by the node.
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => Connection::new(self.options.clone())?,
        };
        Ok(Lent { pool: self, connection: Some(connection) })
    }

    /// Connections that nobody uses.
    pub fn idle(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A connection of a [`Pool`].
#[derive(Debug)]
pub struct Lent<'p> {
    pool: &'p Pool,
    /// There until the drop.
    connection: Option<Connection>,
}

impl Deref for Lent<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("there until the drop")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("there until the drop")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // One with calls that nobody will wait for is closed, which cancels them.
        let Some(connection) = self.connection.take().filter(Connection::is_reusable) else { return };
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.pool.keep {
            idle.push(connection);
        }
    }
}
