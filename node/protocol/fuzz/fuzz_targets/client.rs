//! Any bytes, in any pieces, at the calling end, which makes calls and gives credit meanwhile. Nothing panics, no call
//! has two ends, and those without one are told when the connection is lost.
#![no_main]

use std::collections::BTreeSet;

use denizen_protocol::Hello;
use denizen_protocol::client::{Call, Connection, Event, Memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut out = Vec::new();
    let mut connection = Connection::open(&Hello::new("app", None), Memory::default(), &mut out).expect("a good HELLO");
    let mut open = BTreeSet::new();
    let mut rest = bytes;
    'stream: while let Some((dice, tail)) = rest.split_first() {
        out.clear();
        if let Ok(id) = connection.call(&Call::new("f"), 0, dice & 1 != 0, &mut out) {
            open.insert(id);
        }
        let (piece, tail) = tail.split_at(usize::from(*dice).min(tail.len()));
        rest = tail;
        let mut input = piece;
        loop {
            match connection.next(&mut input) {
                Ok(None) => break,
                Err(_) => break 'stream,
                Ok(Some(Event::Reply { id, part, done, .. } | Event::Body { id, part, done })) => {
                    let len = part.bytes.len();
                    assert!(done.is_none() || open.remove(&id));
                    connection.consumed(id, len);
                }
                Ok(Some(Event::Failed { id, .. })) => assert!(open.remove(&id)),
                Ok(Some(_)) => {}
            }
        }
        connection.control(&mut out);
    }
    let lost: BTreeSet<u64> = connection.lost().unfinished.into_iter().map(|call| call.id).collect();
    assert_eq!(lost, open);
});
