//! Any bytes, in any pieces, at the serving end: the handshake first, then a connection whose calls are ended, credited
//! and handed over as the bytes say. Nothing panics, memory stays bounded, and a parked connection goes through its
//! record.
#![no_main]

use denizen_protocol::server::{Connection, Event, Handshake, Parked, Terms};
use denizen_protocol::{Accepted, Blame, Hello, Problem, Retry};
use libfuzzer_sys::fuzz_target;

fn greet(mut bytes: &[u8]) {
    let mut handshake = Handshake::new();
    while handshake.wants() > 0 && !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(handshake.wants().min(bytes.len()));
        bytes = rest;
        if let Ok(Some(hello)) = handshake.push(piece) {
            hello.encode(&mut Vec::new()).expect("what is read can be written");
        }
    }
}

fn serve(connection: &mut Connection, piece: &[u8], dice: u8, out: &mut Vec<u8>) -> bool {
    let mut input = piece;
    loop {
        match connection.next(&mut input) {
            Ok(None) => return true,
            Err(violation) => {
                Problem::from(&violation).encode(0, out).expect("a violation can be told");
                return false;
            }
            Ok(Some(Event::Call { id, part, .. } | Event::Body { id, part })) => {
                let len = part.bytes.len();
                if dice & 1 != 0 {
                    connection.consumed(id, len);
                }
                if dice & 2 != 0 {
                    let _ = connection.fail(id, &Problem::new("function-failed", Blame::Function, Retry::Safe), out);
                }
            }
            Ok(Some(_)) => {}
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    greet(bytes);
    let terms = Terms::agreed(&Hello::new("app", Some("p")), &Accepted::new(1, 1 << 20), None);
    let mut connection = Connection::resume(Parked::fresh(terms));
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((dice, tail)) = rest.split_first() {
        let (piece, tail) = tail.split_at(usize::from(*dice).min(tail.len()));
        rest = tail;
        out.clear();
        if !serve(&mut connection, piece, *dice, &mut out) {
            return;
        }
        connection.control(&mut out);
        assert!(connection.kept_bytes() < 256 << 10);
        if dice & 4 != 0 && let Some((parked, leftover)) = connection.park(&mut out) {
            let record = Parked::decode(&parked.encode()).expect("a record can be read");
            assert_eq!(record, parked);
            connection = Connection::resume(record);
            if !serve(&mut connection, &leftover, *dice, &mut out) {
                return;
            }
        }
    }
});
