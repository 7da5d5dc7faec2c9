//! Ctrl-C and SIGTERM as bytes on a pipe, so that stopping is an event like any other.

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::Failure;

/// One wish often arrives twice: from the terminal to all of its programs, and from the one that started this one.
const ONE_WISH: Duration = Duration::from_millis(300);

/// Calls `stop` each time a signal asks this program to end; the argument counts them from 1.
pub(crate) fn on_stop(mut stop: impl FnMut(u32) + Send + 'static) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::host("signals cannot be received").because(&error);
    let (mut reader, writer) = UnixStream::pair().map_err(failed)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let writer = writer.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, writer).map_err(failed)?;
    }
    let wait = move || {
        let mut times = 0;
        let mut last: Option<Instant> = None;
        let mut byte = [0];
        while matches!(reader.read(&mut byte), Ok(1)) {
            if last.is_none_or(|last| last.elapsed() > ONE_WISH) {
                times += 1;
                stop(times);
            }
            last = Some(Instant::now());
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop).map_err(failed)
}
