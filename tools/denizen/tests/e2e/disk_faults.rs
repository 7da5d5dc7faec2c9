//! A disk that fails under a node: what was promised is kept or its loss is said, nothing goes on in files that may have holes, and a
//! process whose files cannot be written does not begin.

use crate::full_disk::Disk;
use crate::node::{DENIZEN, Node, Reply, Start, compile_c, faulty_image, signal, text};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names in the folder of a process's segments.
fn names(dir: &Path, process: &str) -> BTreeSet<String> {
    let (app, process) = process.split_once('/').unwrap();
    let entries = std::fs::read_dir(dir.join("state").join(app).join(format!("{process}.state"))).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

const SUSPECT: &str = "suspect";

/// Whatever made its runner end so: nobody knows what of its files is on the disk.
#[test]
fn a_process_whose_runner_met_a_fault_goes_on_in_new_files() {
    let node = Start::new().node();
    node.deploy(crate::hostile::image());
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "1");
    let old = names(node.dir(), "hostile/victim");
    node.call("hostile", "victim", "fault", b"").problem(500, "function-exited", "function");
    node.await_phase("hostile", "victim", "failed");
    assert!(names(node.dir(), "hostile/victim").contains(SUSPECT), "{}", node.said());
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "2", "{}", node.said());
    let new = names(node.dir(), "hostile/victim");
    assert!(!new.contains(SUSPECT) && new.is_disjoint(&old), "{old:?}, then {new:?}");
    node.await_said(&["recovered into new files"]);
}

/// The mark that a file is suspect is on the disk before anything is begun with it, however long that takes; and a process that is new
/// needs its folder.
#[test]
fn a_state_directory_that_cannot_be_written_holds_up_what_needs_it() {
    let test = "a_state_directory_that_cannot_be_written_holds_up_what_needs_it";
    let Some(disk) = Disk::new(test) else { return };
    let node = disk.start().node();
    node.deploy(crate::hostile::image());
    for process in ["victim", "bystander"] {
        assert_eq!(node.call("hostile", process, "count", b"").body(), "1");
    }
    disk.run("mount --bind {}/state/hostile {}/state/hostile && mount -o remount,bind,ro {}/state/hostile");
    node.call("hostile", "victim", "fault", b"").problem(500, "function-exited", "function");
    for _ in 0..3 {
        let problem = node.call("hostile", "victim", "count", b"").problem(500, "host-fault", "host");
        let said = problem.to_string();
        assert!(said.contains("cannot be noted") && said.contains("Read-only"), "{problem}");
    }
    let problem = node.call("hostile", "newcomer", "count", b"").problem(500, "host-fault", "host");
    assert!(problem.to_string().contains("Read-only"), "{problem}");
    assert_eq!(node.call("hostile", "bystander", "count", b"").body(), "2", "it has its files open");

    disk.run("umount {}/state/hostile");
    let old = names(&disk.path(), "hostile/victim");
    assert_eq!(node.call("hostile", "victim", "count", b"").body(), "2", "{}", node.said());
    let new = names(&disk.path(), "hostile/victim");
    assert!(!new.contains(SUSPECT) && new.is_disjoint(&old), "{old:?}, then {new:?}");
    node.await_said(&["recovered into new files"]);
    assert_eq!(node.call("hostile", "newcomer", "count", b"").body(), "1");
}

/// A disk that loses what is written to it from some moment on: a file system on a file that is to grow on a full one.
struct FailingDisk(Disk);

impl FailingDisk {
    /// `None` where this machine cannot have one.
    fn new(test: &str) -> Option<Self> {
        let programs = ["mkfs.ext4", "truncate", "losetup"];
        if !programs.iter().all(|program| denizen_testing::needs_program(test, program)) {
            return None;
        }
        let disk = Disk::new(test)?;
        disk.run(
            "mount -o remount,size=256m {} && truncate -s 192m {}/disk && mkdir {}/fs && \
             mkfs.ext4 -q -F -O ^has_journal -E lazy_itable_init=0,nodiscard {}/disk",
        );
        // What is free is free below, too.
        if let Err(why) = disk.try_run("mount -o loop,discard {}/disk {}/fs") {
            eprintln!("SKIPPED {test}: no loop device can be mounted: {why}");
            return None;
        }
        Some(Self(disk))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("fs")
    }

    /// A node on it whose process `faulty/p` has counted once, durably, and the names of its files.
    fn node_that_counted(&self) -> (Node, BTreeSet<String>) {
        let node = self.0.start_in("fs").node();
        node.deploy(faulty_image());
        assert_eq!(count_durably(&node), "1", "{}", node.said());
        let names = names(&self.path(), "faulty/p");
        (node, names)
    }
}

/// Counts in `faulty/p`: what the reply says is on the disk.
fn count_durably(node: &Node) -> String {
    node.post("/v1/apps/faulty/processes/p/functions/count", &[("Denizen-Durability", "node")], b"").body()
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // Its device goes with it.
        let _ = self.0.try_run("umount -l {}/fs");
    }
}

/// The sync is the seal's, at the end of a swap-out: no call fails of it, and only the runner's exit tells.
#[test]
fn a_disk_that_fails_at_the_last_sync_makes_the_files_suspect() {
    let test = "a_disk_that_fails_at_the_last_sync_makes_the_files_suspect";
    let Some(disk) = FailingDisk::new(test) else { return };
    let (node, old) = disk.node_that_counted();
    // What is written now finds no room below when it is synced.
    disk.0.fill();
    assert_eq!(node.call("faulty", "p", "keep", &[7; 900_000]).status, 200, "{}", node.said());
    let out = node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
    // Where the disk below is full, some kernels call it so.
    assert!([500, 507].contains(&out.status), "{}\n{}", out.body(), node.said());
    let marked = names(&disk.path(), "faulty/p");
    assert!(marked.contains(SUSPECT), "{marked:?}\n{}", node.said());

    // With a disk that works again, what can be read is there, in files of its own.
    disk.0.make_room();
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "2", "{}", node.said());
    let new = names(&disk.path(), "faulty/p");
    assert!(!new.contains(SUSPECT) && new.is_disjoint(&old), "{old:?}, then {new:?}");
    assert_eq!(count_durably(&node), "3", "{}", node.said());
}

/// A caller who wants it durable is told that nobody knows, and no later sync makes a promise of it.
#[test]
fn a_disk_that_fails_under_a_call_fails_it() {
    let test = "a_disk_that_fails_under_a_call_fails_it";
    let Some(disk) = FailingDisk::new(test) else { return };
    let (node, old) = disk.node_that_counted();
    disk.0.fill();
    let keep = "/v1/apps/faulty/processes/p/functions/keep";
    let reply = node.post(keep, &[("Denizen-Durability", "node")], &[7; 900_000]);
    let problem = reply.problem(500, "state-failed", "store");
    assert_eq!(problem["retry"], "unknown", "{problem}");
    disk.0.make_room();
    // Before it counts, it is in new files.
    let counted = node.call("faulty", "p", "count", b"").body();
    assert!(["2", "3"].contains(&counted.as_str()), "{counted}: {}", node.said());
    assert!(names(&disk.path(), "faulty/p").is_disjoint(&old), "{}", node.said());
}

/// A caller who waits for a commit while nothing runs is not told that it is durable because the second sync finds nothing to do.
#[test]
fn a_disk_that_fails_under_a_sync_at_rest_makes_the_files_suspect() {
    let test = "a_disk_that_fails_under_a_sync_at_rest_makes_the_files_suspect";
    let Some(disk) = FailingDisk::new(test) else { return };
    let (node, old) = disk.node_that_counted();
    disk.0.fill();
    let kept = node.call("faulty", "p", "keep", &[7; 900_000]);
    let commit = kept.header("denizen-commit").expect("a commit");
    let pid = u32::try_from(node.process("faulty", "p")["pid"].as_u64().unwrap()).unwrap();
    signal(pid, rustix::process::Signal::KILL);
    node.await_phase("faulty", "p", "failed");
    let commits = format!("/v1/apps/faulty/processes/p/commits/{commit}");
    for _ in 0..3 {
        let durable = node.get(&commits);
        assert!([500, 507].contains(&durable.status), "{}\n{}", durable.body(), node.said());
    }
    disk.0.make_room();
    assert_eq!(node.get(&commits).status, 200, "{}", node.said());
    assert!(names(&disk.path(), "faulty/p").is_disjoint(&old), "{}", node.said());
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "2");
}

/// Tells, in a file that the environment names, of every folder that is synced.
const TELLS_OF_SYNCS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
int fsync(int fd) {
    char link[64], path[4096] = "";
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const char *list = getenv("LIST_OF_SYNCS");
    int done = ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
    if (list && fstat(fd, &about) == 0 && S_ISDIR(about.st_mode) && readlink(link, path, sizeof path - 2) > 0) {
        int to = open(list, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        strcat(path, "\n");
        if (to >= 0 && write(to, path, strlen(path)) > 0) close(to);
    }
    return done;
}
"#;

/// A commit that is called durable is found after a loss of power only if the names are on the disk that lead to it.
#[test]
fn the_names_of_a_new_processs_files_are_synced_before_its_first_durable_reply() {
    let (dir, lists) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let library = compile_c("tells-of-syncs", TELLS_OF_SYNCS, &["-ldl"]).display().to_string();
    let list = lists.path().join("list");
    let environment = [format!("LD_PRELOAD={library}"), format!("LIST_OF_SYNCS={}", list.display())];
    let by = ["env", &environment[0], &environment[1]];
    let node = Start::new().by(&by, Path::new(DENIZEN)).dir(dir.path()).node();
    node.deploy(faulty_image());
    let state = dir.path().canonicalize().unwrap().join("state");
    for process in ["p", "q"] {
        let _ = std::fs::remove_file(&list);
        let reply = durable(&node, process);
        assert_eq!((reply.status, reply.body().as_str()), (200, "1"), "{}", node.said());
        let synced = std::fs::read_to_string(&list).unwrap();
        let local = state.join("faulty").join(format!("{process}.state"));
        for folder in [state.clone(), state.join("faulty"), local] {
            assert!(synced.lines().any(|line| Path::new(line) == folder), "{} in {synced}", folder.display());
        }
    }
}

/// Counts, and wants it to be durable.
fn durable(node: &Node, process: &str) -> Reply {
    let path = format!("/v1/apps/faulty/processes/{process}/functions/count");
    node.post(&path, &[("Denizen-Durability", "node")], b"")
}

/// And where they cannot be, nothing of it is called durable.
#[test]
fn nothing_is_durable_in_files_whose_names_cannot_be_synced() {
    let test = "nothing_is_durable_in_files_whose_names_cannot_be_synced";
    let Some((_home, program, dir)) = crate::ordinary_user::as_nobody(test) else {
        return;
    };
    use std::os::unix::fs::PermissionsExt;
    let node = Start::new().by(crate::ordinary_user::NOBODY, &program).dir(&dir).node();
    crate::ordinary_user::deploy(&node, "faulty", faulty_image());
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "1");
    // Its owner can make things in it, and cannot open it to sync it.
    let app = dir.join("state/faulty");
    std::fs::set_permissions(&app, std::fs::Permissions::from_mode(0o300)).unwrap();
    let problem = durable(&node, "q").problem(500, "host-fault", "host");
    assert!(problem["detail"].as_str().unwrap().contains("made to last"), "{problem}");
    std::fs::set_permissions(&app, std::fs::Permissions::from_mode(0o700)).unwrap();
    let reply = durable(&node, "q");
    // Whether the first one counted is what nobody knows.
    assert!(reply.status == 200 && ["1", "2"].contains(&reply.body().as_str()), "{}", reply.body());
}

#[test]
fn what_is_no_file_is_written_to_and_not_replaced() {
    let node = Node::with_faulty();
    assert_eq!(node.call("faulty", "p", "count", b"").status, 200);
    let pipe = node.dir().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap())
    };
    let output = node.denizen(&["state", "export", "faulty/p", "-o", pipe.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!std::fs::metadata(&pipe).unwrap().is_file(), "the pipe was replaced");
    assert!(reader.join().unwrap().contains("count"));
}
