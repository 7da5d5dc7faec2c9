//! What `publish`, `group`, `turn` and `slots` synchronise with. `tests/loom.rs` puts loom's types in this place.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
