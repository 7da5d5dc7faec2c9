//! Echo servers that do nothing else: the floors under a direct call.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

/// What one connection of [`ring`] may have under way, in bytes: enough for every pipeline that is measured.
const BUFFER_BYTES: usize = 64 << 10;
/// The user data of the accept.
const ACCEPT: u64 = u64::MAX;
/// Set in the user data of a send.
const SENT: u64 = 1 << 32;

/// A blocking thread for each connection, which reads `len` bytes and then writes them back, with that congestion control or the system's.
/// Until it is killed; prints its address.
pub(crate) fn threads(len: usize, congestion: Option<&str>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    if let Some(name) = congestion {
        rustix::net::sockopt::set_tcp_congestion(&listener, name).expect("a congestion control");
    }
    println!("{}", listener.local_addr().expect("an address"));
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        std::thread::spawn(move || {
            let mut buffer = vec![0; len];
            while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
        });
    }
}

/// One connection of [`ring`].
struct Line {
    stream: TcpStream,
    buffer: Box<[u8]>,
    /// Bytes that were received and are to be sent.
    filled: usize,
    sent: usize,
}

/// All connections on one io_uring, a receive or a send of each under way. Until it is killed; prints its address.
pub(crate) fn ring() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("an address"));
    let mut ring = IoUring::builder().setup_coop_taskrun().build(1024).expect("io_uring");
    let mut lines: HashMap<u64, Line> = HashMap::new();
    let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build().user_data(ACCEPT);
    push(&mut ring, &accept);
    loop {
        ring.submit_and_wait(1).expect("io_uring_enter");
        let done: Vec<(u64, i32)> =
            ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (data, result) in done {
            if data == ACCEPT {
                let number = u64::from(result.unsigned_abs());
                let line = lines.entry(number).insert_entry(accepted(result));
                let entry = receive(number, line.into_mut());
                push(&mut ring, &entry);
                continue;
            }
            let number = data & !SENT;
            let Some(line) = lines.get_mut(&number) else { continue };
            match usize::try_from(result) {
                Err(_) | Ok(0) => drop(lines.remove(&number)),
                Ok(len) => {
                    let entry = step(number, line, data & SENT != 0, len);
                    push(&mut ring, &entry);
                }
            }
        }
    }
}

fn accepted(descriptor: i32) -> Line {
    assert!(descriptor >= 0, "accept: {}", std::io::Error::from_raw_os_error(-descriptor));
    // SAFETY: the kernel has just given this descriptor, and nothing else owns it.
    let stream: TcpStream = unsafe { std::os::fd::FromRawFd::from_raw_fd(descriptor) };
    stream.set_nodelay(true).expect("TCP_NODELAY");
    Line { stream, buffer: vec![0; BUFFER_BYTES].into(), filled: 0, sent: 0 }
}

/// What follows `len` bytes that were sent or received.
fn step(number: u64, line: &mut Line, was_sent: bool, len: usize) -> io_uring::squeue::Entry {
    if was_sent {
        line.sent += len;
        if line.sent == line.filled {
            return receive(number, line);
        }
    } else {
        (line.filled, line.sent) = (len, 0);
    }
    let left = &line.buffer[line.sent..line.filled];
    let len = u32::try_from(left.len()).expect("a buffer is shorter");
    opcode::Send::new(types::Fd(line.stream.as_raw_fd()), left.as_ptr(), len).build().user_data(number | SENT)
}

fn receive(number: u64, line: &mut Line) -> io_uring::squeue::Entry {
    let len = u32::try_from(line.buffer.len()).expect("a buffer is shorter");
    opcode::Recv::new(types::Fd(line.stream.as_raw_fd()), line.buffer.as_mut_ptr(), len)
        .build()
        .user_data(number)
}

fn push(ring: &mut IoUring, entry: &io_uring::squeue::Entry) {
    // SAFETY: a connection has one operation under way, and its boxed buffer lives until that is done.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().expect("io_uring_enter");
    }
}
