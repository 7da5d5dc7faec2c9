//! Rings in real sandboxes: what a tenant can do with one, from a constructor's place and from a function's, and what
//! becomes of it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use denizen_ring::maker::{self, OPCODES, Ring};
use denizen_sandbox::{ExitCause, FileAccess, Rings, Spawner, SpawnerConfig};
use io_uring::{opcode, types};

use crate::node::{Dir, Node, Order, SOON, Talk, has, skip};
use crate::raw::{FIXED, Raw};
use crate::runner::Report;

/// The place at which the tests install a connection.
const SLOT: u32 = 1;

/// In the sandbox: serves one call through the ring, then tries what a ring could do elsewhere.
pub(crate) fn use_ring(report: &Report, ring: Ring) {
    let number = ring.fd.as_raw_fd();
    // A tenant would not close it.
    std::mem::forget(ring.fd);
    let raw = Raw::map(number, ring.layout).expect("mapped");
    report.line(format!("before: {}", raw.run(&opcode::Nop::new().build(), FIXED)));
    // The agent enables it, and sends a byte.
    assert_eq!(report.0.lock().expect("alone").read(&mut [0]).expect("told"), 1);
    raw.enter(1, 1).expect("enabled");
    report.line(format!("what was waiting: {:?}", raw.reap().map(|completion| completion.result)));
    let mut bytes = [0; 16];
    let socket = types::Fd(SLOT as i32);
    let poll = raw.run(&opcode::PollAdd::new(socket, libc::POLLIN as u32).build(), FIXED);
    let receive = opcode::Recv::new(socket, bytes.as_mut_ptr(), 16).flags(libc::MSG_DONTWAIT).build();
    let received = raw.run(&receive, FIXED);
    let answer = [b"answer to ", &bytes[..received.max(0) as usize]].concat();
    let sent = raw.run(&opcode::Send::new(socket, answer.as_ptr(), answer.len() as u32).build(), FIXED);
    report.line(format!("served: {poll} {received} {sent}"));
    let done = (0..=u8::MAX).filter(|&number| {
        let mut submission = [0; 64];
        (submission[0], submission[1], submission[4]) = (number, FIXED, SLOT as u8);
        // So that those which are taken do not wait.
        submission[28] = match number {
            opcode::PollAdd::CODE => libc::POLLOUT as u8,
            opcode::Recv::CODE => libc::MSG_DONTWAIT as u8,
            _ => 0,
        };
        ![-libc::EACCES, -libc::EINVAL].contains(&raw.run_bytes(&submission))
    });
    report.line(format!("opcodes: {:?}", done.collect::<Vec<_>>()));
    let send = |fd| opcode::Send::new(types::Fd(fd), b"!".as_ptr(), 1).build();
    let plain: Vec<_> = (0..8).map(|fd| raw.run(&send(fd), 0)).collect();
    report.line(format!("plain descriptors: {plain:?}"));
    let slots: Vec<_> = [2, 3, 1023, 1024, -1].into_iter().map(|slot| raw.run(&send(slot), FIXED)).collect();
    report.line(format!("other places: {slots:?}"));
    report.line("done");
}

/// In the sandbox: submissions without end, which take memory in the kernel.
pub(crate) fn flood(report: &Report, ring: Ring, what: &str) {
    /// `IOSQE_IO_DRAIN`: refused, and yet those behind it have to wait for those before it.
    const DRAIN: u8 = 1 << 1;
    let raw = Raw::map(ring.fd.as_raw_fd(), ring.layout).expect("mapped");
    report.line("ready");
    assert_eq!(report.0.lock().expect("alone").read(&mut [0]).expect("told"), 1);
    let poll = opcode::PollAdd::new(types::Fd(0), 0).build();
    let entry = match what {
        "polls" => poll,
        "completions" => opcode::Nop::new().build(),
        _ => {
            raw.push(&poll, FIXED);
            raw.push(&opcode::Nop::new().build(), FIXED | DRAIN);
            raw.enter(2, 0).expect("submitted");
            opcode::Nop::new().build()
        }
    };
    for thousands in 1_u64.. {
        for _ in 0..1000 / 50 {
            (0..50).for_each(|_| raw.push(&entry, FIXED));
            if let Err(error) = raw.enter(50, 0) {
                return report.line(format!("{thousands} thousand, then {error}"));
            }
        }
        if thousands.is_multiple_of(10) {
            report.line(format!("{thousands} thousand"));
        }
    }
}

/// A sandbox at work, and the agent's descriptor of its ring.
fn order(node: &Node, order: &Order) -> Option<(Talk, OwnedFd)> {
    let mut sandbox = node.spawner.spawn().unwrap();
    match (sandbox.ring.take(), node.spawner.rings()) {
        (Some(ring), Rings::Made) => Some((Talk::begin(sandbox, order), ring)),
        (None, Rings::Unavailable(why)) => {
            assert!(why.contains("limit") || why.contains("sysctl") || why.contains("Linux"), "{why}");
            skip("rings", why);
            None
        }
        (ring, rings) => panic!("{ring:?} where rings are {rings:?}"),
    }
}

pub(crate) fn a_ring_serves_the_connections_that_the_agent_installs_and_nothing_else() {
    let node = Node::start();
    for files in [FileAccess::None, FileAccess::Image, FileAccess::State] {
        for place in [Order::loading("ring"), Order::sealed("ring")] {
            let asked = place.with_ring().with_files(files);
            let Some((mut talk, ring)) = order(&node, &asked) else { return };
            assert_eq!(talk.line(), format!("before: {}", -libc::EBADFD));
            let (mut client, socket) = UnixStream::pair().unwrap();
            client.set_read_timeout(Some(SOON)).unwrap();
            maker::enable(ring.as_fd()).unwrap();
            maker::install(ring.as_fd(), SLOT, socket.as_fd()).unwrap();
            drop(socket);
            client.write_all(b"call").unwrap();
            talk.control.get_mut().write_all(b"!").unwrap();
            assert_eq!(talk.line(), "what was waiting: Some(0)");
            assert_eq!(talk.line(), "served: 1 4 14", "{}", talk.printed());
            let mut answer = [0; 14];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer to call");
            let mut opcodes = OPCODES;
            opcodes.sort_unstable();
            assert_eq!(talk.line(), format!("opcodes: {opcodes:?}"), "{asked:?}");
            assert_eq!(talk.line(), format!("plain descriptors: {:?}", [-libc::EACCES; 8]));
            assert_eq!(talk.line(), format!("other places: {:?}", [-libc::EBADF; 5]));
            assert_eq!(talk.line(), "done");
        }
    }
}

/// The sandbox was made with a ring; the process that it becomes may not use one.
pub(crate) fn a_ring_that_is_not_admitted_is_closed() {
    let node = Node::start();
    let Some((mut talk, ring)) = order(&node, &Order::sealed("idle")) else { return };
    assert_eq!(talk.line(), "idle");
    // Nobody has it any more but the agent.
    maker::enable(ring.as_fd()).unwrap();
    assert!(!holds_ring(talk.life.pid()));
    let Some((mut talk, _ring)) = order(&node, &Order::sealed("idle").with_ring()) else { return };
    assert_eq!(talk.line(), "idle");
    assert!(holds_ring(talk.life.pid()));
}

/// Whether a process has a descriptor of a ring. Only root may look; of others nothing is known.
fn holds_ring(pid: u32) -> bool {
    let target = |number: u32| std::fs::read_link(format!("/proc/{pid}/fd/{number}"));
    match target(4) {
        Ok(target) => target.to_string_lossy().contains("io_uring"),
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

pub(crate) fn a_spawner_without_rings_makes_none() {
    let dir = Dir::new();
    let config = SpawnerConfig { rings: false, ..dir.config() };
    let node = Node { spawner: Spawner::start(config).unwrap(), dir };
    assert_eq!(*node.spawner.rings(), Rings::Unwanted);
    assert!(node.spawner.spawn().unwrap().ring.is_none());
    // Its filters let nothing of rings through, whatever it was admitted with.
    let mut talk = node.order(&Order::sealed("evidence").with_ring());
    let (lines, _) = talk.rest();
    assert!(lines.contains(&"io_uring_enter 4\ttrapped".to_owned()), "{lines:?}");
}

/// What the agent must know: sockets in a ring outlive the sandbox, until the agent lets its own descriptor go.
pub(crate) fn a_dead_sandbox_lets_its_connections_go_with_the_agents_ring() {
    let node = Node::start();
    let Some((mut talk, ring)) = order(&node, &Order::sealed("idle").with_ring()) else { return };
    assert_eq!(talk.line(), "idle");
    let (mut client, socket) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    maker::enable(ring.as_fd()).unwrap();
    maker::install(ring.as_fd(), SLOT, socket.as_fd()).unwrap();
    drop(socket);
    talk.life.kill();
    assert_eq!(talk.life.wait_exit(SOON), Some(ExitCause::Signalled(libc::SIGKILL)));
    assert_eq!(talk.control.get_mut().read(&mut [0]).unwrap(), 0, "the control connection tells the death");
    assert!(client.read(&mut [0]).is_err(), "the connection is closed");
    // One by one they can be taken out at once; the rest goes with the ring, some milliseconds later.
    let (mut other, socket) = UnixStream::pair().unwrap();
    maker::install(ring.as_fd(), SLOT + 1, socket.as_fd()).unwrap();
    drop(socket);
    maker::remove(ring.as_fd(), SLOT + 1).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    drop(ring);
    let begun = Instant::now();
    while !matches!(client.read(&mut [0]), Ok(0)) {
        assert!(begun.elapsed() < SOON, "the connection stays open");
    }
}

pub(crate) fn requests_without_end_are_stopped_by_the_control_group() {
    const NAME: &str = "requests_without_end_are_stopped_by_the_control_group";
    let node = Node::start();
    if !has(&node, "memory-cgroup") {
        return skip(NAME, "no memory control group here");
    }
    for what in ["polls", "completions", "waiting"] {
        let asked = Order::sealed(&format!("ring-flood {what}")).with_ring();
        let mut sandbox = node.spawner.spawn().unwrap();
        let Some(ring) = sandbox.ring.take() else { return skip(NAME, "no rings here") };
        sandbox.limit(&asked.admission.limits).unwrap();
        let mut talk = Talk::begin(sandbox, &asked);
        assert_eq!(talk.line(), "ready", "{}", talk.printed());
        maker::enable(ring.as_fd()).unwrap();
        talk.control.get_mut().write_all(b"!").unwrap();
        let (lines, end) = talk.rest();
        assert_eq!(end, ExitCause::OutOfMemory, "{lines:?}");
        println!("  {what} without end: {}", lines.last().map_or("few", String::as_str));
    }
}
