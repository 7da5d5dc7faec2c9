//! End to end: everything here drives the built `denizen` and nothing else, as its users do.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should fail on the spot")]

mod bad_images;
mod bad_requests;
mod calls;
mod command;
mod dev;
mod faults;
mod full_disk;
mod hostile;
mod isolation;
mod lifecycle;
mod node;
mod ordinary_user;
mod starts;
