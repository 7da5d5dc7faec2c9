//! What a sandbox sees as `/`: an empty read-only directory with the image in it.
//!
//! The spawner leaves the host's file systems for good ([`leave_host`]) and keeps one tiny tmpfs and the image store. Each
//! sandbox takes a read-only clone of the tmpfs's empty directory as its root, with the store beside it ([`enter`]); on
//! admission it keeps one image and drops the store ([`take_image`]). There is no `/proc`, `/dev` or `/sys` anywhere.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::SandboxError;
use crate::inside::inside;
use crate::sys::mount_setattr;

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
    let top = new_tmpfs()?;
    for directory in [TEMPLATE, "template/image", "template/store", "store"] {
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

/// A tmpfs with room for a few directories and no file.
fn new_tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "16k"), ("nr_inodes", "8"), ("mode", "0755")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
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
