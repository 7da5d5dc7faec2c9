//! End to end: everything here drives the built `denizen` and nothing else, as its users do.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should fail on the spot")]

mod bad_images;
mod bad_requests;
mod calls;
mod clients;
mod command;
mod data_hostile;
mod data_port;
mod dev;
mod direct;
mod disk_faults;
mod durability;
mod escape;
mod faults;
mod files;
mod full_disk;
mod hostile;
mod idempotency;
mod images;
mod isolation;
mod lifecycle;
mod load;
mod node;
mod ordinary_user;
mod peer;
mod python_client;
mod room;
mod starts;
mod state_command;
mod trace;
mod types;
mod warm;
