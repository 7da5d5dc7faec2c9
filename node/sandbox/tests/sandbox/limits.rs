//! What a function may use, and how its death by its own fault is told.

use std::fs;

use denizen_sandbox::{Demise, DemiseKind, ExitCause, Limits, Phase};

use crate::node::{Node, Order, SOON, Talk, has, skip};

const LIMITS: Limits = Limits { memory_bytes: 48 << 20, threads: 6, cpu_percent: Some(50) };

/// The demise of a sandbox that does `act`.
fn demise_of(node: &Node, order: &Order) -> (Demise, ExitCause) {
    let mut talk = node.order(order);
    let (lines, cause) = talk.rest();
    let demise = talk.life.last_words().read();
    (demise.unwrap_or_else(|| panic!("no last words: {lines:?} {cause:?} {}", talk.printed())), cause)
}

pub(crate) fn memory_without_end_is_stopped_by_rlimit() {
    let node = Node::start();
    let order = Order::sealed("allocate");
    let mut talk = node.order(&order);
    let (lines, cause) = talk.rest();
    let demise = talk.life.last_words().read().expect("last words");
    // Its limit, the runner's base, and what a fork has from the start.
    let most = (order.admission.limits.memory_bytes >> 20) + 32 + 16;
    let got: u64 = lines.last().and_then(|line| line.strip_suffix(" MiB")?.parse().ok()).expect("progress");
    assert!(got < most, "got {got} MiB of {most}");
    assert_eq!(demise.kind, DemiseKind::OutOfMemory, "{demise:?}");
    assert_eq!(cause, ExitCause::Exited(128 + 6));
    assert_eq!(node.order(&Order::sealed("hello")).line(), "hello from pid 1");
}

pub(crate) fn memory_without_end_is_stopped_by_the_control_group() {
    let node = Node::start();
    if !has(&node, "memory-cgroup") {
        return skip("memory_without_end_is_stopped_by_the_control_group", "no memory control group here");
    }
    let sandbox = node.spawner.spawn().unwrap();
    sandbox.limit(&LIMITS).unwrap();
    // From inside it may have much more: only the group can stop it.
    let mut order = Order::sealed("touch");
    order.admission.limits.memory_bytes = 4 << 30;
    let (lines, cause) = Talk::begin(sandbox, &order).rest();
    assert_eq!((lines, cause), (vec![], ExitCause::OutOfMemory));
    assert_eq!(node.order(&Order::sealed("hello")).line(), "hello from pid 1");
}

pub(crate) fn threads_without_end_are_stopped() {
    let node = Node::start();
    let mut order = Order::sealed("threads");
    order.admission.limits.threads = 6;
    let line = node.order(&order).line();
    assert!(line.starts_with("6 threads, then Resource temporarily unavailable"), "{line}");
    // Another sandbox's count is its own.
    assert!(node.order(&order).line().starts_with("6 threads"));
}

pub(crate) fn a_stack_overflow_is_named() {
    let node = Node::start();
    let (demise, cause) = demise_of(&node, &Order::sealed("overflow"));
    assert_eq!((demise.kind, demise.invocation), (DemiseKind::StackOverflow, 77), "{}", demise.message);
    assert_eq!(cause, ExitCause::Exited(128 + 11));
    let (demise, _) = demise_of(&node, &Order::sealed("overflow-in-thread"));
    assert_eq!((demise.kind, demise.invocation), (DemiseKind::StackOverflow, 4242), "{}", demise.message);
}

pub(crate) fn an_abort_a_fault_and_a_division_are_named() {
    let node = Node::start();
    for (act, kind, signal) in [
        ("abort", DemiseKind::Abort, 6),
        ("segfault", DemiseKind::Segfault, 11),
        ("divide", DemiseKind::ArithmeticFault, 8),
    ] {
        let (demise, cause) = demise_of(&node, &Order::sealed(act));
        assert_eq!((demise.kind, demise.signal, demise.invocation), (kind, signal, 77), "{}", demise.message);
        assert_eq!(cause, ExitCause::Exited(128 + signal));
    }
}

pub(crate) fn a_forbidden_call_is_named_with_its_invocation() {
    let node = Node::start();
    for (order, phase) in
        [(Order::loading("ptrace"), Phase::Loading), (Order::sealed("ptrace"), Phase::Sealed)]
    {
        let (demise, cause) = demise_of(&node, &order);
        let name = DemiseKind::ForbiddenSyscall { nr: libc::SYS_ptrace, name: "ptrace".into() };
        assert_eq!((&demise.kind, demise.phase, demise.invocation), (&name, phase, 77));
        assert!(demise.message.contains("`ptrace`"));
        assert_eq!(cause, ExitCause::Exited(128 + 31));
    }
}

pub(crate) fn a_call_of_another_architecture_is_killed() {
    if !cfg!(target_arch = "x86_64") {
        return skip("a_call_of_another_architecture_is_killed", "only x86_64 has such calls");
    }
    let node = Node::start();
    let mut talk = node.order(&Order::sealed("i386"));
    let (lines, cause) = talk.rest();
    assert!(lines.is_empty(), "{lines:?}");
    // Without 32-bit support in the kernel the instruction itself is a fault.
    assert!(matches!(cause, ExitCause::Signalled(31) | ExitCause::Exited(139)), "{cause:?}");
}

pub(crate) fn limits_reach_the_control_group() {
    let node = Node::start();
    if !has(&node, "pids-cgroup") {
        return skip("limits_reach_the_control_group", "no control groups here");
    }
    let sandbox = node.spawner.spawn().unwrap();
    sandbox.limit(&LIMITS).unwrap();
    let mut talk = Talk::begin(sandbox, &Order::sealed("idle"));
    assert_eq!(talk.line(), "idle");
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", talk.life.pid())).unwrap();
    for (file, value) in
        [("pids.max", "6"), ("cpu.cfs_quota_us", "50000"), ("memory.limit_in_bytes", "83886080")]
    {
        let controller = file.split('.').next().unwrap();
        let Some(path) = groups.lines().find_map(|line| line.split_once(&format!(":{controller}:"))) else {
            skip("limits_reach_the_control_group", "the controllers are not in version-1 hierarchies");
            continue;
        };
        let found = fs::read_to_string(format!("/sys/fs/cgroup/{controller}{}/{file}", path.1)).unwrap();
        assert_eq!(found.trim(), value, "{file}");
    }
    talk.life.kill();
    assert_eq!(talk.life.wait_exit(SOON), Some(ExitCause::Signalled(9)));
}
