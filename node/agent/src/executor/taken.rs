//! How much of a connection's stream has been taken off its socket, by whomever: what the kernel says, not what a sandbox says.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where `struct tcp_info` (linux/tcp.h) has `tcpi_bytes_received`. It only ever grows at its end.
const RECEIVED_AT: usize = 128;
/// As much of it as is asked for.
const INFO_BYTES: usize = RECEIVED_AT + 8;
/// How often it is looked again while bytes arrive between two looks. Each takes a microsecond.
const LOOKS: u32 = 1000;
/// `TCP_ESTABLISHED`: the first byte of `struct tcp_info`. In every other state a FIN has come, or the connection is gone.
const ESTABLISHED: u8 = 1;

/// What was taken off a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes since the connection began. The end of the stream counts as one.
    bytes: u64,
    /// The peer may have closed its side.
    ended: bool,
}

impl Taken {
    /// Of a TCP socket, now.
    ///
    /// # Errors
    /// It is none, or it never stood still.
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Taken> {
        let mut info = tcp_info(socket)?;
        for _ in 0..LOOKS {
            let unread = rustix::io::ioctl_fionread(socket)?;
            let again = tcp_info(socket)?;
            if again.bytes == info.bytes {
                return Ok(Taken { bytes: info.bytes.saturating_sub(unread), ended: again.ended });
            }
            info = again;
        }
        Err(io::Error::other("bytes arrive faster than they can be counted"))
    }

    /// Whether exactly `bytes` have been taken between then and now. The kernel counts the end of the stream when it comes, read or not.
    pub(crate) fn is_more_by(self, then: Taken, bytes: u64) -> bool {
        let more = self.bytes.wrapping_sub(then.bytes);
        more == bytes || (self.ended && more == bytes.wrapping_add(1))
    }
}

/// What has arrived.
fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<Taken> {
    let mut info = [0_u8; INFO_BYTES];
    let mut len = libc::socklen_t::try_from(INFO_BYTES).unwrap_or(0);
    // SAFETY: a live buffer of the length given; the kernel writes at most that much.
    let told = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    let received = info.last_chunk::<8>().filter(|_| len as usize == INFO_BYTES);
    let bytes = received.map(|bytes| u64::from_ne_bytes(*bytes)).ok_or(io::ErrorKind::Unsupported)?;
    Ok(Taken { bytes, ended: info[0] != ESTABLISHED })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, theirs)
    }

    fn of(stream: &TcpStream) -> Taken {
        Taken::of(stream.as_fd()).unwrap()
    }

    #[test]
    fn the_kernel_counts_what_was_read_and_nothing_else() {
        let (mut ours, mut theirs) = pair();
        let begun = of(&ours);
        theirs.write_all(&[7; 1000]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(of(&ours).is_more_by(begun, 0), "bytes that wait are not taken");
        ours.read_exact(&mut [0; 300]).unwrap();
        let some = of(&ours);
        assert!(some.is_more_by(begun, 300));
        assert!(!some.is_more_by(begun, 299) && !some.is_more_by(begun, 301));
        ours.write_all(b"what is sent does not count").unwrap();
        assert!(of(&ours).is_more_by(begun, 300));
        theirs.shutdown(Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(of(&ours).is_more_by(begun, 300), "an end that nobody read");
        assert!(!of(&ours).is_more_by(begun, 302));
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 700);
        assert!(of(&ours).is_more_by(begun, 1000));
        drop(theirs);
        assert!(of(&ours).is_more_by(begun, 1000));
    }

    #[test]
    fn counting_goes_on_while_bytes_pour_in() {
        let (mut ours, mut theirs) = pair();
        let begun = of(&ours);
        let pouring = std::thread::spawn(move || {
            for _ in 0..2000 {
                theirs.write_all(&[7; 4096]).unwrap();
            }
        });
        let (mut read, mut buffer) = (0, vec![0; 1000]);
        while read < 2000 * 4096 {
            read += ours.read(&mut buffer).unwrap();
            assert!(of(&ours).is_more_by(begun, read as u64), "after {read} bytes");
        }
        pouring.join().unwrap();
    }

    #[test]
    fn what_is_no_tcp_socket_is_said_to_be_none() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Taken::of(ours.as_fd()).is_err());
    }
}
