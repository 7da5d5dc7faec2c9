//! Any bytes, in any pieces, as what one end of the control socket sends. Nothing panics, a payload is never longer than its kind allows,
//! and a stream that lost its place stays lost.
#![no_main]

use denizen_wire::{AtRest, FrameReader, Header, Kind, Sender};
use libfuzzer_sys::fuzz_target;

fn hear(from: Sender, bytes: &[u8]) {
    let mut reader = FrameReader::new(from);
    let mut rest = bytes;
    while let Some((dice, tail)) = rest.split_first() {
        let (piece, tail) = tail.split_at(usize::from(*dice).min(tail.len()));
        rest = tail;
        reader.push(piece);
        loop {
            match reader.frame() {
                Ok(Some(frame)) => {
                    let Header { kind, .. } = frame.header;
                    assert!(frame.payload.len() <= kind.max_payload() && kind.may_come_from(from));
                    if matches!(kind, Kind::Caller | Kind::CallerParked) {
                        let _ = AtRest::decode(frame.payload);
                    }
                    assert_eq!(Header::decode(&frame.header.encode()).as_ref(), Ok(&frame.header));
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.frame().expect_err("it stays lost"), error);
                    return;
                }
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    hear(Sender::Agent, bytes);
    hear(Sender::Runner, bytes);
});
