//! What a sandbox prints, cut into lines and put down to the call that printed them.
//!
//! Printed bytes and replies come on different sockets. So that a line is not put down to the call after, what was printed is read
//! whenever a call ends, before the call is taken off the table. A process that has printed nothing for a while is spared that
//! system call; its next lines are then put down to the only call that runs, or the one that has just ended.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;

use crate::executor::{self, ControlReader, Pace};
use crate::logs::{Log, Speaker, Splitter, Stream};
use crate::process::active::Active;

/// Calls in a row that printed nothing before a process counts as silent.
const SILENT_AFTER: u32 = 256;
/// How long after its end a line may still be a silent process's last call's.
const JUST_ENDED: Duration = Duration::from_millis(20);
/// What one read takes.
const CHUNK: usize = 4 << 10;
/// Bytes that are cut into lines at once.
const PIECE: usize = 1 << 10;
/// Pieces in a row before others get a turn. More than the log takes in a second is so not even read.
const PIECES_IN_A_ROW: u32 = 4;
/// What is read at once when a call ends: about what the socket holds of a process that prints in earnest.
const READS_IN_A_ROW: u32 = 16;
/// And no more once there were this many lines: they are put down to the wrong call rather than hold others up.
const LINES_IN_A_ROW: usize = 512;

/// The printed output of one sandbox.
#[derive(Debug)]
pub(crate) struct Output {
    log: Arc<Log>,
    socket: OwnedFd,
    lines: RefCell<Splitter>,
    /// Whose calls they are; nobody's while the plugin is loaded.
    active: RefCell<Weak<Active>>,
    silent_calls: Cell<u32>,
    last_ended: RefCell<Option<(Speaker, Instant)>>,
}

impl Output {
    /// Begins to read.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn start(log: &Arc<Log>, socket: OwnedFd) -> std::io::Result<Rc<Output>> {
        let reader = ControlReader::adopt(rustix::io::fcntl_dupfd_cloexec(&socket, 0)?)?;
        let output = Rc::new(Output {
            log: Arc::clone(log),
            socket,
            lines: RefCell::default(),
            active: RefCell::default(),
            silent_calls: Cell::new(0),
            last_ended: RefCell::default(),
        });
        executor::spawn(read(Rc::clone(&output), reader));
        Ok(output)
    }

    /// From now on lines belong to calls of `active`.
    pub(crate) fn belongs_to(&self, active: &Rc<Active>) {
        *self.active.borrow_mut() = Rc::downgrade(active);
    }

    /// Reads what was printed until now, while the call that ends is still on the table.
    pub(crate) fn call_ends(&self, speaker: Speaker) {
        if self.silent_calls.get() < SILENT_AFTER {
            self.silent_calls.set(self.silent_calls.get() + 1);
            self.catch_up();
        }
        *self.last_ended.borrow_mut() = Some((speaker, Instant::now()));
    }

    /// Reads what was printed until now.
    fn catch_up(&self) {
        let mut chunk = [0; CHUNK];
        let mut lines = 0;
        for _ in 0..READS_IN_A_ROW {
            match rustix::net::recv(&self.socket, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((count, _)) if count > 0 => lines += self.take(chunk.get(..count).unwrap_or_default()),
                _ => break,
            }
            if lines > LINES_IN_A_ROW {
                break;
            }
        }
    }

    /// Whatever line was begun is over: nothing more will come.
    pub(crate) fn finish(&self) {
        self.catch_up();
        if let Some(rest) = self.lines.borrow_mut().finish() {
            self.log.add(Stream::Output, self.speaker(), rest);
        }
    }

    /// How many lines there were.
    fn take(&self, bytes: &[u8]) -> usize {
        self.silent_calls.set(0);
        let (speaker, mut lines) = (self.speaker(), 0);
        self.lines.borrow_mut().push(bytes, |line| {
            lines += 1;
            self.log.add(Stream::Output, speaker.clone(), line);
        });
        lines
    }

    /// The call that must have printed what comes now.
    fn speaker(&self) -> Option<Speaker> {
        let active = self.active.borrow().upgrade()?;
        if active.has_callers() {
            return None;
        }
        match active.in_flight() {
            0 => {
                let last = self.last_ended.borrow();
                last.as_ref().filter(|(_, at)| at.elapsed() < JUST_ENDED).map(|(speaker, _)| speaker.clone())
            }
            1 => active.only_call(),
            _ => None,
        }
    }
}

async fn read(output: Rc<Output>, mut reader: ControlReader) {
    let mut chunk = vec![0; CHUNK];
    let mut pace = Pace::new(PIECES_IN_A_ROW);
    while let Ok(count @ 1..) = pace.wait(reader.read(&mut chunk)).await {
        // Each byte can be a line.
        for piece in chunk.get(..count).unwrap_or_default().chunks(PIECE) {
            output.take(piece);
            pace.unasked().await;
            pace.step().await;
        }
    }
}
