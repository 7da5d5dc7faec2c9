//! Images: what a process runs.
//!
//! An image is an immutable directory named by the digest of its own list of contents: the function plugin,
//! its manifest (`denizen.toml`), the shared libraries that the plugin needs, and the few files that it asked
//! for. This crate owns that format:
//!
//! - [`manifest`]: the policy that an author writes, checked so that every mistake names its line;
//! - [`store`]: images on disk, and archives of them that may come from anyone;
//! - [`elf`]: what a plugin binary says about itself, read without running a byte of it;
//! - [`libraries`]: which shared libraries travel with a plugin, and in which order they load;
//! - [`build`]: from a cargo package or a ready plugin to an image.
//!
//! What must hold: a digest names the same bytes for ever; a directory in the store is whole or absent;
//! nothing that an archive says is believed before it is checked; and no code of a tenant runs here.

#![forbid(unsafe_code)]

pub mod build;
pub mod elf;
#[cfg(test)]
mod fixture;
mod id;
pub mod libraries;
pub mod manifest;
pub mod names;
pub mod store;

pub use id::{IdError, ImageId};
pub use manifest::{
    ByteSize, Create, Declared, Durability, Files, FunctionPolicy, Isolation, Limits, Manifest,
    ManifestError, ProcessPolicy,
};
pub use store::{Image, ImageStore, ImportLimits, StoreError};
