//! Swap, restart, crash: where a process's state is at each moment, and that it is never lost.

use crate::node::{DENIZEN, Node, PATIENCE, Start, agent, await_within, compile_c, faulty_image, is_alive};
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

#[test]
fn swapped_out_and_back_by_hand() {
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    let active = node.process("faulty", "p");
    assert_eq!(active["phase"], "active");
    let out = node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
    assert_eq!((out.status, &out.json()["phase"]), (200, &"swapped".into()), "{}", out.body());
    assert!(!is_alive(active["pid"].as_u64().expect("the sandbox's pid")), "its sandbox is gone");
    let reply = node.call("faulty", "p", "count", b"");
    assert_eq!((reply.status, reply.body().as_str()), (200, "2"));
    node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
    let back = node.control("POST", "/v1/apps/faulty/processes/p/swap-in");
    assert_eq!((back.status, &back.json()["phase"]), (200, &"active".into()), "{}", back.body());
    assert!(back.json()["epoch"].as_u64() > active["epoch"].as_u64(), "each term has a higher epoch");
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "2");
}

#[test]
fn idle_processes_are_swapped_out_and_come_back_when_called() {
    let node = Start::new().args(&["--idle", "200ms"]).node();
    node.deploy(faulty_image());
    node.call("faulty", "p", "count", b"");
    node.await_phase("faulty", "p", "swapped");
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "2");
}

#[test]
fn a_deleted_process_is_gone_with_its_state() {
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    assert_eq!(node.control("DELETE", "/v1/apps/faulty/processes/p").status, 204);
    node.get("/v1/apps/faulty/processes/p").problem(404, "unknown-process", "caller");
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "1", "a new one begins at nothing");
    let first = node.process("faulty", "p")["epoch"].as_u64();
    assert!(first > Some(1), "the epoch goes on over a delete: {first:?}");
}

#[test]
fn created_once() {
    let node = Node::with_faulty();
    assert_eq!(node.control("POST", "/v1/apps/faulty/processes/p").status, 201);
    node.control("POST", "/v1/apps/faulty/processes/p").problem(409, "process-exists", "caller");
    let list = node.get("/v1/apps/faulty/processes").json();
    assert_eq!(list["processes"].as_array().map(Vec::len), Some(1), "{list}");
}

#[test]
fn a_stopped_node_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(faulty_image());
    node.call("faulty", "p", "count", b"");
    node.call("faulty", "swapped", "count", b"");
    node.control("POST", "/v1/apps/faulty/processes/swapped/swap-out");
    let pid = node.process("faulty", "p")["pid"].as_u64().unwrap();
    assert_eq!(node.stop(), Some(0), "{}", node.said());
    assert!(!is_alive(pid), "no sandbox outlives a node that stopped");
    let node = Start::new().dir(dir.path()).node();
    for process in ["p", "swapped"] {
        assert_eq!(node.call("faulty", process, "count", b"").body(), "2", "{process}");
    }
}

#[test]
fn a_killed_node_leaves_no_sandbox_and_loses_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let mut node = Start::new().dir(dir.path()).node();
        if round == 1 {
            node.deploy(faulty_image());
        }
        let reply = node.call("faulty", "p", "count", b"");
        assert_eq!((reply.status, reply.body()), (200, round.to_string()));
        let pid = node.process("faulty", "p")["pid"].as_u64().unwrap();
        assert!(is_alive(pid));
        node.kill();
        let outlives = || "the sandbox outlives its killed node".to_owned();
        await_within(Duration::from_secs(5), || !is_alive(pid), outlives);
    }
}

/// That it was active is on no disk yet, but its state is.
#[test]
fn a_process_whose_record_was_lost_in_a_crash_is_swapped_out_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(faulty_image());
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "1");
    node.kill();
    let node = Start::new().dir(dir.path()).node();
    for _ in 0..2 {
        let out = node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
        assert_eq!((out.status, &out.json()["phase"]), (200, &"swapped".into()), "{}", out.body());
    }
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "2");
}

/// What a process takes is told soon, and not only once it is much.
#[test]
fn a_young_process_says_what_it_keeps() {
    // Not at its end, when all is told.
    let node = Start::new().args(&["--idle", "10m"]).node();
    node.deploy(faulty_image());
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "1");
    let told = || node.process("faulty", "p")["state_bytes"].as_u64() > Some(0);
    await_within(PATIENCE, told, || node.process("faulty", "p").to_string());
}

/// A disk that takes its time for each page of the scheduler's database, and for each batch of its journal:
/// what is on its way there is lost by a kill.
/// Slow syncs would not do, since a kill takes nothing back that the kernel has.
const SLOW_DISK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) > 0) {
        if (strstr(path, ".redb")) usleep(25000);
        if (strstr(path, ".journal")) usleep(100000);
    }
    return ((ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64"))(fd, bytes, len, at);
}
"#;

fn with_slow_disk(dir: &Path) -> Start {
    static LIBRARY: LazyLock<String> =
        LazyLock::new(|| compile_c("slow-disk", SLOW_DISK, &["-ldl"]).display().to_string());
    Start::new().dir(dir).by(&["env", &format!("LD_PRELOAD={}", *LIBRARY)], Path::new(DENIZEN))
}

/// The swapped copy is there, and the record of it is on its way: the local file still counts.
#[test]
fn a_kill_in_the_middle_of_a_swap_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = with_slow_disk(dir.path()).node();
    node.deploy(faulty_image());
    node.call("faulty", "p", "count", b"");
    let swapping = agent()
        .post(node.url("/v1/apps/faulty/processes/p/swap-out"))
        .header("Authorization", format!("Bearer {}", node.token()));
    let caller = std::thread::spawn(move || swapping.send_empty().is_ok());
    let (copies, until) = (dir.path().join("swap/faulty/p"), Instant::now() + PATIENCE);
    let is_whole = |path: &Path| path.extension().is_some_and(|extension| extension == "state");
    while !std::fs::read_dir(&copies).is_ok_and(|all| all.flatten().any(|copy| is_whole(&copy.path()))) {
        assert!(Instant::now() < until, "nothing is swapped out:\n{}", node.said());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    node.kill();
    assert!(!caller.join().expect("the caller"), "the swap was over: this test tried nothing");
    let node = Start::new().dir(dir.path()).node();
    let reply = node.call("faulty", "p", "count", b"");
    assert_eq!((reply.status, reply.body().as_str()), (200, "2"));
}

/// The state was moved, and its record may still say that it is swapped: it is found where it lies.
#[test]
fn the_first_reply_after_a_swap_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    first_replies_after_swaps_survive_kills(dir.path());
}

/// It was copied: from that reply on the copy is the state, and the swapped one is old. The record must say so first.
#[test]
fn the_first_reply_after_a_swap_from_another_disk_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED the_first_reply_after_a_swap_from_another_disk_survives_a_kill: no /dev/shm");
        return;
    };
    std::os::unix::fs::symlink(other.path(), dir.path().join("swap")).unwrap();
    first_replies_after_swaps_survive_kills(dir.path());
}

fn first_replies_after_swaps_survive_kills(dir: &Path) {
    for round in 1..=3 {
        let mut node = with_slow_disk(dir).node();
        if round == 1 {
            node.deploy(faulty_image());
            node.control("POST", "/v1/apps/faulty/processes/p");
        }
        assert_eq!(node.control("POST", "/v1/apps/faulty/processes/p/swap-out").status, 200);
        let reply = node.call("faulty", "p", "count", b"");
        node.kill();
        assert_eq!(
            (reply.status, reply.body()),
            (200, round.to_string()),
            "a call that was answered is lost"
        );
    }
}

/// Its record may not say yet that there is state: the file does.
#[test]
fn the_first_reply_of_a_new_process_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let mut node = with_slow_disk(dir.path()).node();
        if round == 1 {
            node.deploy(faulty_image());
        }
        for earlier in 1..round {
            let reply = node.call("faulty", &format!("p{earlier}"), "count", b"");
            let expected = round - earlier + 1;
            assert_eq!((reply.status, reply.body()), (200, expected.to_string()), "an answered call is lost");
        }
        let reply = node.call("faulty", &format!("p{round}"), "count", b"");
        node.kill();
        assert_eq!((reply.status, reply.body().as_str()), (200, "1"));
    }
}

#[test]
fn commits_survive_kills_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0_u64;
    for round in 0..4 {
        let mut node = Start::new().dir(dir.path()).node();
        if round == 0 {
            node.deploy(faulty_image());
        }
        let (url, until) =
            (node.url("/v1/apps/faulty/processes/p/functions/count"), Instant::now() + PATIENCE);
        let caller = std::thread::spawn(move || {
            let agent = crate::node::agent();
            let mut last = 0;
            while Instant::now() < until {
                let Ok(mut response) = agent.post(&url).send_empty() else { break };
                if response.status() != 200 {
                    break;
                }
                let Ok(body) = response.body_mut().read_to_string() else { break };
                last = body.parse::<u64>().expect("a count");
            }
            last
        });
        std::thread::sleep(Duration::from_millis(150 + 40 * round));
        node.kill();
        acknowledged = acknowledged.max(caller.join().expect("the caller"));
        assert!(acknowledged > 0, "no call was answered before the kill");
    }
    let node = Start::new().dir(dir.path()).node();
    let count: u64 = node.call("faulty", "p", "value", b"").body().parse().unwrap();
    // One call a round may have committed without its reply having arrived.
    assert!((acknowledged..=acknowledged + 4).contains(&count), "{count} kept, {acknowledged} acknowledged");
}

#[test]
fn a_killed_sandbox_comes_back_with_its_last_commit() {
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    let pid = node.process("faulty", "p")["pid"].as_u64().unwrap();
    crate::node::signal(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
    await_within(PATIENCE, || !is_alive(pid), || "the killed sandbox lives on".to_owned());
    // The call may meet the corpse or the successor; what it may not do is lose the count.
    let reply = (0..100)
        .map(|_| node.call("faulty", "p", "count", b""))
        .find(|reply| reply.status == 200)
        .expect("it comes back");
    assert_eq!(reply.body(), "2");
}
