//! What a sandbox sees as `/`: an empty read-only directory with the image in it.
//!
//! The spawner leaves the host's file systems for good ([`leave_host`]) and keeps one tiny tmpfs and the image store. Each
//! sandbox takes a read-only clone of the tmpfs's empty directory as its root, with the store beside it ([`enter`]); on
//! admission it keeps one image and drops the store ([`take_image`]), and gets a file system for its files if its image asks
//! for it ([`mount_state`]): the one place that can be written. There is no `/proc`, `/dev` or `/sys` anywhere.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::inside::inside;
use crate::sys::mount_setattr;
use crate::{MOST_STATE_FILES, SandboxError};

/// Attributes of everything that a sandbox sees.
const HARMLESS: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | NOSYMFOLLOW;

/// `MOUNT_ATTR_NOSYMFOLLOW` of linux/mount.h: images have no links, and none is followed.
const NOSYMFOLLOW: u64 = 0x0020_0000;

/// The template of a sandbox's root, in the spawner's root.
const TEMPLATE: &str = "template";

/// Moves the spawner out of the host's file systems, into a tmpfs of a few directories. The process must be in a mount
/// namespace of its own.
pub(crate) fn leave_host(image_store: &Path) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let store = clone_tree(image_store)?;
    mount_setattr(store.as_fd(), HARMLESS, false)?;
    // Room for the directories and for no file.
    let top = new_tmpfs(&[("size", "16k"), ("nr_inodes", "8"), ("mode", "0755")], TOP)?;
    for directory in [TEMPLATE, "template/image", "template/state", "template/store", "store"] {
        mkdirat(&top, directory, Mode::from_raw_mode(0o755))?;
    }
    // Any directory will do to hang it on; this one exists.
    attach(top.as_fd(), CWD, image_store)?;
    attach(store.as_fd(), top.as_fd(), "store")?;
    become_root(top.as_fd())
}

/// Moves a fresh sandbox into its own root: a clone of the template, and the store at `/store`.
pub(crate) fn enter() -> io::Result<()> {
    let root = clone_tree(TEMPLATE)?;
    mount_setattr(root.as_fd(), HARMLESS | libc::MOUNT_ATTR_NOEXEC, false)?;
    let store = clone_tree("store")?;
    attach(root.as_fd(), CWD, TEMPLATE)?;
    attach(store.as_fd(), root.as_fd(), "store")?;
    become_root(root.as_fd())
}

/// Keeps one image, at `/image`, and drops the store. The image is read-only because the spawner's store is, and a user
/// namespace below it cannot change that.
pub(crate) fn take_image(digest: &str) -> Result<(), SandboxError> {
    let image = match clone_tree(format!("store/{digest}").as_str()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SandboxError::NoImage { image: digest.to_owned() });
        }
        image => image.map_err(inside("opening the image"))?,
    };
    attach(image.as_fd(), CWD, "image").map_err(inside("binding the image"))?;
    unmount("store", UnmountFlags::DETACH).map_err(inside("dropping the image store"))
}

/// A private copy of one mount, from `path` down, not yet attached anywhere.
fn clone_tree(path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).map_err(io::Error::from)
}

/// Gives the sandbox a file system of its own at `/state`, in its own memory. Its user owns it.
pub(crate) fn mount_state(bytes: u64) -> io::Result<()> {
    // 0 would mean no limit to the kernel.
    let size = bytes.max(1).to_string();
    // The top directory is one of the inodes.
    let inodes = (MOST_STATE_FILES + 1).to_string();
    let options = [("size", size.as_str()), ("nr_inodes", inodes.as_str()), ("mode", "0755")];
    let state = new_tmpfs(&options, TOP | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    mount_setattr(state.as_fd(), NOSYMFOLLOW, false)?;
    attach(state.as_fd(), CWD, "state")?;
    // What a function creates without saying more.
    let _ = rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// Attributes of every tmpfs here.
const TOP: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// A tmpfs, not yet attached anywhere.
fn new_tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(io::Error::from)
}

/// Attaches a detached mount.
fn attach(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: impl rustix::path::Arg) -> io::Result<()> {
    move_mount(mount, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(io::Error::from)
}

/// Makes an attached mount the root, and lets go of the old one and all that hangs on it.
fn become_root(mount: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(mount)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root now lies over the new one.
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/").map_err(io::Error::from)
}
