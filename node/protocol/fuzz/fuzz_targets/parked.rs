//! Any bytes as the record of a parked connection, or as changes to a good one, and a stream behind it. What can be read is written back
//! as it was, the connection goes on without a panic and within its memory, and can be parked again at any byte.
#![no_main]

use denizen_protocol::server::{Connection, Event, Parked, Terms};
use denizen_protocol::{Accepted, Hello};
use libfuzzer_sys::fuzz_target;

/// Whether the stream goes on.
fn serve(connection: &mut Connection, mut input: &[u8], out: &mut Vec<u8>) -> bool {
    loop {
        match connection.next(&mut input) {
            Ok(None) => break,
            Err(_) => return false,
            Ok(Some(Event::Call { id, part, .. } | Event::Body { id, part })) => {
                let len = part.bytes.len();
                connection.consumed(id, len);
            }
            Ok(Some(_)) => {}
        }
    }
    connection.control(out);
    assert!(connection.kept_bytes() < 256 << 10);
    true
}

fn resume(record: &[u8], mut rest: &[u8]) {
    let Ok(parked) = Parked::decode(record) else { return };
    assert!(record.len() <= Parked::MAX_LEN);
    assert_eq!(parked.encode(), record);
    let mut connection = Connection::resume(parked);
    let mut out = Vec::new();
    while let Some((dice, tail)) = rest.split_first() {
        let (piece, tail) = tail.split_at(usize::from(*dice).min(tail.len()));
        rest = tail;
        out.clear();
        if !serve(&mut connection, piece, &mut out) {
            return;
        }
        if let Some((parked, residue)) = connection.park(&mut out) {
            let again = Parked::decode(&parked.encode()).expect("what is written can be read");
            assert_eq!(again, parked);
            connection = Connection::resume(again);
            if !serve(&mut connection, &residue, &mut out) {
                return;
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((split, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (record, rest) = rest.split_at(usize::from(u16::from_le_bytes(*split)).min(rest.len()));
    resume(record, rest);
    let functions = Some(vec!["get".to_owned(), "put".to_owned()]);
    let terms = Terms::agreed(&Hello::new("app", Some("p")), &Accepted::new(1, 1 << 20), functions);
    let mut changed = Parked::fresh(terms).encode();
    for change in record.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % changed.len();
        changed[at] = change[2];
    }
    resume(&changed, rest);
});
