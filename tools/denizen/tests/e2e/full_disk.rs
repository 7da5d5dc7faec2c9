//! A disk that is full: the caller is told so, nothing that was committed is lost, what needs no room works on, and with room
//! again everything does.

use crate::node::{DENIZEN, Node, PATIENCE, Start, await_within, faulty_image, text};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A small disk that only its nodes see: a tmpfs in a mount namespace, which a program that sleeps keeps alive.
pub(crate) struct Disk {
    holder: Child,
    mount_point: tempfile::TempDir,
}

impl Disk {
    /// `None` where this machine cannot have one.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let possible = denizen_testing::needs_root(test)
            && denizen_testing::needs_program(test, "unshare")
            && denizen_testing::needs_program(test, "nsenter");
        possible.then(Self::mounted)
    }

    fn mounted() -> Self {
        let mount_point = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=32m,mode=755 tmpfs \"$0\" && echo here > \"$0/mounted\" && exec sleep 600";
        let holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(mount_point.path())
            .spawn()
            .unwrap();
        let disk = Self { holder, mount_point };
        let is_mounted = || disk.path().join("mounted").exists();
        await_within(PATIENCE, is_mounted, || "no tmpfs can be mounted".to_owned());
        disk
    }

    /// The disk as seen from here.
    pub(crate) fn path(&self) -> PathBuf {
        let inside = self.mount_point.path().strip_prefix("/").unwrap();
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(inside)
    }

    pub(crate) fn start(&self) -> Start {
        self.start_in("")
    }

    /// A node in a folder of it.
    pub(crate) fn start_in(&self, folder: &str) -> Start {
        let holder = self.holder.id().to_string();
        let by = ["nsenter", "--mount", "--target", &holder];
        let (dir, seen) = (self.mount_point.path().join(folder), self.path().join(folder));
        Start::new().by(&by, Path::new(DENIZEN)).dir(&dir).seen_at(&seen).cwd(self.mount_point.path())
    }

    /// A node with the faulty plugin on it.
    fn node(&self) -> Node {
        let node = self.start().node();
        node.deploy(faulty_image());
        node
    }

    /// Leaves not a byte free, now.
    pub(crate) fn fill(&self) {
        let mut filler =
            std::fs::File::options().create(true).append(true).open(self.path().join("filler")).unwrap();
        for size in [64 << 10, 4096, 1] {
            while filler.write_all(&vec![7_u8; size]).is_ok() {}
        }
    }

    /// Runs a command in its mount namespace, where `{}` is its mount point.
    pub(crate) fn run(&self, script: &str) {
        self.try_run(script).unwrap();
    }

    /// The same where it may fail; what was said then.
    pub(crate) fn try_run(&self, script: &str) -> Result<(), String> {
        let script = script.replace("{}", &self.mount_point.path().display().to_string());
        let holder = self.holder.id().to_string();
        let mut command = Command::new("nsenter");
        let output = command.args(["--mount", "--target", &holder, "sh", "-ec", &script]).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(format!("{script}: {}", text(&output))) }
    }

    pub(crate) fn make_room(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn assert_count(node: &Node, process: &str, expected: &str) {
    let reply = node.call("faulty", process, "count", b"");
    assert_eq!((reply.status, reply.body().as_str()), (200, expected), "{process}\n{}", node.said());
}

const MEBIBYTE: &[u8] = &[7; 1 << 20];

#[test]
fn a_commit_that_finds_no_room_is_refused_and_nothing_is_lost() {
    let test = "a_commit_that_finds_no_room_is_refused_and_nothing_is_lost";
    let Some(disk) = Disk::new(test) else { return };
    let mut node = disk.node();
    assert_count(&node, "victim", "1");
    assert_count(&node, "bystander", "1");
    disk.fill();

    for _ in 0..2 {
        let problem = node.call("faulty", "victim", "keep", MEBIBYTE).problem(507, "no-space", "host");
        assert_eq!((&problem["retry"], &problem["process"]), (&"safe".into(), &"victim".into()), "{problem}");
    }
    std::fs::write(disk.mount_point.path().join("input"), MEBIBYTE).unwrap();
    let input = format!("@{}", disk.mount_point.path().join("input").display());
    let said = node.denizen(&["invoke", "faulty/victim", "keep", &input]);
    assert_eq!(said.status.code(), Some(3), "it is the host's fault: {}", text(&said));
    assert!(text(&said).contains("space"), "{}", text(&said));

    // What was committed is there, what fits into the room that the file has is committed, and others do not feel it.
    assert_eq!(node.call("faulty", "victim", "value", b"").body(), "1");
    assert_count(&node, "victim", "2");
    assert_count(&node, "bystander", "2");

    // The node dies on the full disk; with room again it is all there.
    node.kill();
    disk.make_room();
    let node = disk.start().node();
    assert_count(&node, "victim", "3");
    assert_count(&node, "bystander", "3");
    assert_eq!(node.call("faulty", "victim", "keep", MEBIBYTE).body(), "1048576");
}

#[test]
fn what_needs_room_is_refused_by_name_and_works_when_there_is_some() {
    let test = "what_needs_room_is_refused_by_name_and_works_when_there_is_some";
    let Some(disk) = Disk::new(test) else { return };
    let node = disk.node();
    assert_count(&node, "victim", "1");
    assert_count(&node, "bystander", "1");
    // The scheduler's database takes its journal over some time, and then sometimes needs less.
    let is_refused = |name: &String| {
        disk.fill();
        node.call("faulty", name, "count", b"").status != 200
    };
    let newcomer = (0..20).map(|number| format!("newcomer-{number}")).find(is_refused);
    let newcomer = newcomer.expect("the disk is full");

    // A process that is new, and a swap-out: each needs a file.
    for reply in [
        node.call("faulty", &newcomer, "count", b""),
        node.control("POST", "/v1/apps/faulty/processes/victim/swap-out"),
    ] {
        assert_eq!(reply.problem(507, "no-space", "host")["retry"], "safe");
    }
    // It was not ended for a copy that has no room.
    assert_eq!(node.process("faulty", "victim")["phase"], "active");
    assert_eq!(node.call("faulty", "victim", "value", b"").body(), "1");
    let deploy = node.denizen(&["image", "deploy", "--app", "second", faulty_image().to_str().unwrap()]);
    assert_eq!(deploy.status.code(), Some(3), "{}", text(&deploy));
    assert!(text(&deploy).contains("disk is full"), "{}", text(&deploy));
    assert_count(&node, "bystander", "2");

    disk.make_room();
    assert_count(&node, "victim", "2");
    assert_count(&node, &newcomer, "1");
    assert_count(&node, "bystander", "3");
    assert_eq!(
        node.control("POST", "/v1/apps/faulty/processes/victim/swap-out").status,
        200,
        "{}",
        node.said()
    );
    assert_count(&node, "victim", "3");
    node.ok(&["image", "deploy", "--app", "second", faulty_image().to_str().unwrap()]);
    assert!(!node.said().contains("panicked"), "{}", node.said());
}

#[test]
fn a_node_on_a_read_only_file_system_says_so() {
    let test = "a_node_on_a_read_only_file_system_says_so";
    let Some(disk) = Disk::new(test) else { return };
    let holder = disk.holder.id().to_string();
    let remounted = Command::new("nsenter")
        .args(["--mount", "--target", &holder, "mount", "-o", "remount,ro"])
        .arg(disk.mount_point.path())
        .status()
        .unwrap();
    assert!(remounted.success());
    let output = disk.start().refused(disk.mount_point.path());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    let path = disk.mount_point.path().display().to_string();
    for words in [path.as_str(), "read-only", "remedy", "--dir"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
}

#[test]
fn a_node_that_finds_no_room_at_its_start_says_so() {
    let test = "a_node_that_finds_no_room_at_its_start_says_so";
    let Some(disk) = Disk::new(test) else { return };
    disk.fill();
    let output = disk.start().refused(disk.mount_point.path());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("space") && said.contains("remedy") && !said.contains("panicked"), "{said}");
    disk.make_room();
    let node = disk.node();
    assert_count(&node, "p", "1");
}
