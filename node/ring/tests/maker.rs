//! What a locked ring does for a holder that means harm, on the real kernel: nothing but its few operations, on the sockets
//! that were put in its table.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod raw;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use denizen_ring::maker::{self, ALLOWED_FLAGS, OPCODES, REQUIRED_FLAGS, Ring, RingError, SLOTS};
use io_uring::{opcode, types};
use raw::{FIXED, Raw, register};

const REFUSED: i32 = -libc::EACCES;
const SOON: Duration = Duration::from_secs(10);

/// The sandbox's and the agent's end.
type Control = (UnixStream, UnixStream);

/// A ring and its control connection.
fn ring() -> Option<(Ring, Control, Raw)> {
    let (control, agent) = UnixStream::pair().unwrap();
    match maker::make(control.as_fd()) {
        Ok(ring) => {
            let raw = Raw::map(ring.fd.as_raw_fd(), ring.layout).unwrap();
            Some((ring, (control, agent), raw))
        }
        Err(error) => {
            eprintln!("SKIPPED {}: {error}", std::thread::current().name().unwrap_or("a test"));
            None
        }
    }
}

/// As above, and enabled.
fn enabled() -> Option<(Ring, Control, Raw)> {
    let made = ring()?;
    maker::enable(made.0.fd.as_fd()).unwrap();
    Some(made)
}

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(SOON)).unwrap();
    (ours, theirs)
}

fn receive(slot: u32, into: &mut [u8]) -> io_uring::squeue::Entry {
    let len = u32::try_from(into.len()).unwrap();
    opcode::Recv::new(types::Fd(slot.cast_signed()), into.as_mut_ptr(), len).flags(libc::MSG_DONTWAIT).build()
}

fn send(fd: i32, bytes: &[u8]) -> io_uring::squeue::Entry {
    let len = u32::try_from(bytes.len()).unwrap();
    opcode::Send::new(types::Fd(fd), bytes.as_ptr(), len)
        .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        .build()
}

#[test]
fn it_serves_the_sockets_in_its_table_and_no_others() {
    let Some((ring, (_control, mut agent), raw)) = enabled() else { return };
    let (mut client, socket) = pair();
    maker::install(ring.fd.as_fd(), 7, socket.as_fd()).unwrap();
    let plain = socket.as_raw_fd();
    client.write_all(b"ask").unwrap();
    let mut bytes = [0; 8];
    assert_eq!(raw.run(&opcode::PollAdd::new(types::Fd(7), 1).build(), FIXED), 1);
    assert_eq!(raw.run(&receive(7, &mut bytes), FIXED), 3);
    assert_eq!(&bytes[..3], b"ask");
    assert_eq!(raw.run(&receive(7, &mut bytes), FIXED), -libc::EAGAIN);
    assert_eq!(raw.run(&send(7, b"tell"), FIXED), 4);
    client.read_exact(&mut bytes[..4]).unwrap();
    assert_eq!(&bytes[..4], b"tell");
    // The control connection can be waited for from the start, and not be read or written.
    let poll = opcode::PollAdd::new(types::Fd(0), 1).build();
    agent.write_all(b"!").unwrap();
    assert_eq!(raw.run(&poll, FIXED), 1);
    assert_eq!(raw.run(&receive(0, &mut bytes), FIXED), -libc::ENOTSOCK);
    assert_eq!(raw.run(&send(0, b"x"), FIXED), -libc::ENOTSOCK);
    // The same socket by its descriptor, places that are empty, and places that do not exist.
    assert_eq!(raw.run(&send(plain, b"x"), 0), REFUSED);
    for slot in [1, 6, 8, SLOTS - 1, SLOTS, SLOTS + 7, u32::MAX] {
        assert_eq!(raw.run(&receive(slot, &mut bytes), FIXED), -libc::EBADF, "slot {slot}");
    }
}

#[test]
fn nothing_is_submitted_before_it_is_enabled() {
    let Some((ring, _control, raw)) = ring() else { return };
    let mut bytes = [0; 8];
    assert_eq!(raw.run(&receive(0, &mut bytes), FIXED), -libc::EBADFD);
    maker::enable(ring.fd.as_fd()).unwrap();
    // What had been written before is taken now, and is under the same restrictions.
    raw.push(&opcode::Nop::new().build(), 0);
    assert_eq!(raw.enter(2, 2).unwrap(), 2);
    assert_eq!([(); 2].map(|()| raw.reap().unwrap().result), [-libc::ENOTSOCK, REFUSED]);
    // And once it is enabled nobody enables it again.
    assert!(matches!(maker::enable(ring.fd.as_fd()), Err(RingError::Forbidden { .. })));
}

/// The list of what a sandbox can ask its kernel for. A change here needs thought.
#[test]
fn the_opcodes_are_these_and_no_others() {
    const NOP: u8 = 0;
    const POLL_ADD: u8 = 6;
    const POLL_REMOVE: u8 = 7;
    const SEND: u8 = 26;
    const RECV: u8 = 27;
    let mut listed = OPCODES;
    listed.sort_unstable();
    assert_eq!(listed, [NOP, POLL_ADD, POLL_REMOVE, SEND, RECV]);
    let Some((ring, _control, raw)) = enabled() else { return };
    let (mut client, socket) = pair();
    maker::install(ring.fd.as_fd(), 0, socket.as_fd()).unwrap();
    // So that nothing has to wait.
    client.write_all(b"!").unwrap();
    for number in 0..=u8::MAX {
        let mut submission = [0; 64];
        submission[0] = number;
        let plain = raw.run_bytes(&submission);
        submission[1] = FIXED;
        // For bytes.
        submission[28] = u8::from(number == POLL_ADD);
        let fixed = raw.run_bytes(&submission);
        let refused = |result| [REFUSED, -libc::EINVAL].contains(&result);
        assert!(refused(plain), "opcode {number} on a plain descriptor: {plain}");
        assert_eq!(refused(fixed), !listed.contains(&number), "opcode {number}: {fixed}");
    }
}

#[test]
fn the_flags_are_these_and_no_others() {
    const FIXED_FILE: u8 = 1 << 0;
    const SKIP_SUCCESS: u8 = 1 << 6;
    assert_eq!((REQUIRED_FLAGS, ALLOWED_FLAGS), (FIXED_FILE, FIXED_FILE | SKIP_SUCCESS));
    for flags in 0..=u8::MAX {
        // A ring each: some flags change what the ring does with those that follow.
        let Some((_ring, _control, raw)) = enabled() else { return };
        raw.push(&opcode::Nop::new().build(), flags);
        // Chains end here, so that each submission has its completion.
        raw.push(&send(1000, b"x"), FIXED);
        raw.enter(2, 1).unwrap();
        let first = raw.reap().unwrap().result;
        match flags {
            FIXED_FILE => assert_eq!(first, 0),
            // It has no completion: the first one is of its successor.
            _ if flags == FIXED_FILE | SKIP_SUCCESS => assert_eq!(first, -libc::EBADF),
            _ => assert!([REFUSED, -libc::EINVAL, -libc::EOPNOTSUPP].contains(&first), "{flags:#x}: {first}"),
        }
    }
}

#[test]
fn nothing_is_registered_but_sockets_in_the_table() {
    const FILES_UPDATE: u32 = 6;
    const KNOWN_HERE: u32 = 36;
    let Some((ring, _control, raw)) = enabled() else { return };
    for what in 0..256 {
        let done = register(ring.fd.as_raw_fd(), what);
        let refused = match what {
            // It gets as far as its argument, which is nonsense. In a sandbox the filter stands before it.
            FILES_UPDATE => -i64::from(libc::EFAULT),
            _ if what >= KNOWN_HERE && done == -i64::from(libc::EINVAL) => done,
            _ => -i64::from(libc::EACCES),
        };
        assert_eq!(done, refused, "registering {what}");
    }
    assert_eq!(raw.run(&opcode::Nop::new().build(), FIXED), 0, "it works all the same");
}

/// `MSG_FASTOPEN` makes a send connect. On a socket that is or was connected it does not.
#[test]
fn a_connection_leads_nowhere_else() {
    let Some((ring, _control, raw)) = enabled() else { return };
    let (here, elsewhere) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let client = TcpStream::connect(here.local_addr().unwrap()).unwrap();
    let (socket, _) = here.accept().unwrap();
    maker::install(ring.fd.as_fd(), 1, socket.as_fd()).unwrap();
    let address = |family: i32| libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(family).unwrap(),
        sin_port: elsewhere.local_addr().unwrap().port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    let connect = |family| {
        let address = address(family);
        let send = opcode::Send::new(types::Fd(1), b"x".as_ptr(), 1)
            .flags(libc::MSG_FASTOPEN | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .dest_addr(std::ptr::from_ref(&address).cast())
            .dest_addr_len(u32::try_from(size_of_val(&address)).unwrap());
        raw.run(&send.build(), FIXED)
    };
    let attempts = || [libc::AF_INET, libc::AF_UNSPEC, libc::AF_INET].map(connect);
    let nothing = [-libc::EISCONN, -libc::EOPNOTSUPP, -libc::EISCONN];
    assert_eq!(attempts(), nothing, "connected");
    // As the agent ends one whose token is over.
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(attempts(), nothing, "shut down");
    client.shutdown(std::net::Shutdown::Both).unwrap();
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(attempts(), nothing, "at its end");
    elsewhere.set_nonblocking(true).unwrap();
    assert!(elsewhere.accept().is_err(), "somebody was connected to");
    // This is why a socket is removed before it is disconnected.
    rustix::net::connect_unspec(&socket).unwrap();
    maker::remove(ring.fd.as_fd(), 1).unwrap();
    assert_eq!(attempts(), [-libc::EBADF; 3], "removed");
    assert!(elsewhere.accept().is_err(), "somebody was connected to");
}

/// The control connection says when it ends, whoever holds the ring.
#[test]
fn the_end_of_the_control_connection_is_news_to_both_sides() {
    let (control, agent) = pair();
    let Ok(ring) = maker::make(control.as_fd()) else { return };
    maker::enable(ring.fd.as_fd()).unwrap();
    let raw = Raw::map(ring.fd.as_raw_fd(), ring.layout).unwrap();
    let poll = opcode::PollAdd::new(types::Fd(0), 1).multi(true).build();
    // Each frame is news, also when nobody asks in between, and nothing is once all are read.
    raw.push(&poll, FIXED);
    raw.enter(1, 0).unwrap();
    for _ in 0..3 {
        assert!(raw.reap().is_none(), "news of nothing");
        (&agent).write_all(b"!").unwrap();
        raw.enter(0, 1).unwrap();
        assert_eq!(raw.reap().map(|news| news.result), Some(1));
        (&control).read_exact(&mut [0]).unwrap();
        raw.enter(0, 0).unwrap();
    }
    agent.shutdown(std::net::Shutdown::Both).unwrap();
    raw.enter(0, 1).unwrap();
    assert_eq!(raw.reap().map(|news| news.result), Some(1));
    assert_eq!((&control).read(&mut [0]).unwrap(), 0);
    drop(agent);
    // A sandbox's death closes its end.
    let (control, mut agent) = pair();
    agent.set_read_timeout(Some(SOON)).unwrap();
    let _ring = maker::make(control.as_fd()).unwrap();
    drop(control);
    assert_eq!(agent.read(&mut [0]).unwrap(), 0);
}

/// Descriptors ride on messages. An operation that receives without a place for them drops them.
#[test]
fn no_descriptor_arrives_through_it() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let Some((ring, _control, raw)) = enabled() else { return };
    let (agent, socket) = pair();
    maker::install(ring.fd.as_fd(), 1, socket.as_fd()).unwrap();
    let (kept, sent) = pair();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let one = [sent.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&one)));
    sendmsg(&agent, &[std::io::IoSlice::new(b"d")], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    drop(sent);
    let mut bytes = [0; 8];
    assert_eq!(raw.run(&receive(1, &mut bytes), FIXED), 1);
    assert_eq!((&kept).read(&mut bytes).unwrap(), 0, "somebody holds the other end");
}

#[test]
fn a_removed_socket_is_let_go_and_a_replaced_one_too() {
    let Some((ring, _control, raw)) = enabled() else { return };
    let ((mut first, one), (mut second, two)) = (pair(), pair());
    maker::install(ring.fd.as_fd(), 1, one.as_fd()).unwrap();
    drop(one);
    // A poll is under way on it.
    raw.push(&opcode::PollAdd::new(types::Fd(1), 1).multi(true).build().user_data(9), FIXED);
    raw.enter(1, 0).unwrap();
    maker::install(ring.fd.as_fd(), 1, two.as_fd()).unwrap();
    drop(two);
    // The poll still holds the first one, and its end ends that too.
    assert_eq!(raw.run(&opcode::PollRemove::new(9).build(), FIXED), 0);
    raw.enter(0, 1).unwrap();
    assert_eq!(raw.reap().map(|completion| completion.result), Some(-libc::ECANCELED));
    let mut byte = [0];
    assert_eq!(first.read(&mut byte).unwrap(), 0);
    assert_eq!(raw.run(&send(1, b"2"), FIXED), 1);
    second.read_exact(&mut byte).unwrap();
    maker::remove(ring.fd.as_fd(), 1).unwrap();
    maker::remove(ring.fd.as_fd(), 1).unwrap();
    assert_eq!(second.read(&mut byte).unwrap(), 0);
    let outside = maker::install(ring.fd.as_fd(), SLOTS, first.as_fd());
    assert!(matches!(outside, Err(RingError::NoSuchSlot { slot: SLOTS })), "{outside:?}");
}

#[test]
fn a_ring_that_is_let_go_lets_its_sockets_go() {
    let Some((ring, _control, raw)) = enabled() else { return };
    let (mut client, socket) = pair();
    maker::install(ring.fd.as_fd(), 1, socket.as_fd()).unwrap();
    drop(socket);
    let copy = ring.fd.try_clone().unwrap();
    drop(ring);
    let mut byte = [0];
    assert_eq!(raw.run(&send(1, b"x"), FIXED), -libc::EBADF, "its descriptor is closed");
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(client.read(&mut byte).is_err(), "there is another descriptor");
    drop(copy);
    assert!(client.read(&mut byte).is_err(), "there is a map");
    drop(raw);
    // The kernel does it some milliseconds later.
    let begun = Instant::now();
    while !matches!(client.read(&mut [0]), Ok(0)) {
        assert!(begun.elapsed() < SOON, "it stays open");
    }
}

/// The agent installs sockets in rings whose holders are stopped, or spin. It must not be held up.
#[test]
fn a_holder_cannot_hold_up_the_agent() {
    let Some((ring, _control, raw)) = enabled() else { return };
    let (_client, socket) = pair();
    maker::install(ring.fd.as_fd(), 1, socket.as_fd()).unwrap();
    for spins in [false, true] {
        // SAFETY: the child makes raw system calls on memory that is there, and is killed.
        let child = unsafe { libc::fork() };
        if child == 0 {
            raw.push(&opcode::PollAdd::new(types::Fd(1), 1).multi(true).build(), FIXED);
            let _ = raw.enter(1, if spins { 0 } else { 100 });
            loop {
                for _ in 0..32 {
                    raw.push(&opcode::Nop::new().build(), FIXED);
                }
                let _ = raw.enter(32, 0);
                while raw.reap().is_some() {}
            }
        }
        assert!(child > 0);
        std::thread::sleep(Duration::from_millis(20));
        let install = |what: &str| {
            let begun = Instant::now();
            for _ in 0..100 {
                maker::install(ring.fd.as_fd(), 2, socket.as_fd()).unwrap();
                maker::remove(ring.fd.as_fd(), 2).unwrap();
            }
            assert!(begun.elapsed() < SOON / 2, "{what}, spins: {spins}: {:?}", begun.elapsed());
        };
        install("running");
        // SAFETY: signals to our own child, and its funeral.
        unsafe {
            libc::kill(child, libc::SIGSTOP);
            install("stopped");
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }
}
