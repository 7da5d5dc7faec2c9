//! A client of the framed protocol (`docs/protocol.md`): many calls at a time over one connection that mends itself.
//!
//! * [`Connection`] blocks, and needs no thread of its own: whoever waits for a reply moves the bytes of all calls. It connects
//!   again when it is cut off, follows the process to where it moved, and makes anew what can be made anew without harm.
//! * [`Pool`] lends connections to threads, and keeps them for the next.
//! * [`Group`] has one thread use many connections.
//! * [`asynchronous`] is the same for asynchronous programs, on any runtime.
//!
//! What must hold: **no call is executed twice by this crate's doing**. A call is made again only if the server said that it was not
//! executed, if it carries an idempotency key, or if its caller says that it may be ([`Request::repeatable`]). In every other
//! case the caller gets an [`Error`] whose [`Error::retry`] says what is known. And no answer of an owner that has lost its process
//! is believed: the highest epoch seen counts, over reconnections and over all connections of a client.
//!
//! ```no_run
//! use denizen_framed::{Connection, Options, Request};
//!
//! let options = Options::new("127.0.0.1:7071", "counter").process("alice").token("dzt1_…");
//! let mut connection = Connection::open(options)?;
//! let reply = connection.call("increment", br#"{"by":2}"#)?;
//! println!("{} after commit {}", String::from_utf8_lossy(&reply.body), reply.head.commit);
//!
//! // Ten at a time, each safe to repeat.
//! let requests = (0..10).map(|n| Request::new("increment").idempotency_key(&format!("order-{n}")));
//! let tickets: Vec<_> = requests.map(|request| connection.begin(request, br#"{"by":1}"#)).collect::<Result<_, _>>()?;
//! for ticket in tickets {
//!     connection.wait(ticket)?;
//! }
//! # Ok::<(), denizen_framed::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod asynchronous;
mod connection;
mod error;
mod exchange;
mod group;
mod machine;
mod options;
mod pool;
mod request;
mod socket;
mod stream;

pub use connection::{Connection, Ticket};
pub use denizen_protocol::{Blame, Durability, Problem, Retry, TraceParent};
pub use error::Error;
pub use group::Group;
pub use options::Options;
pub use pool::{Lent, Pool};
pub use request::{Reply, ReplyHead, Request};
pub use stream::{CallStream, Exchanged};
