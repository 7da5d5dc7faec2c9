//! Any bytes as the payload of a frame that carries a connection at rest, read as the two ends read it: the payload, the record in it, and
//! the connection that goes on from there with the residue. Nothing panics, and what can be read is written back as it was.
#![no_main]

use denizen_protocol::server::{Connection, Event, Parked};
use denizen_wire::{
    AtRest, CallerEnd, DrainCause, MAX_PARKED_RECORD, MAX_RESIDUE, direct_id, direct_name, is_direct,
};
use libfuzzer_sys::fuzz_target;

fn read(payload: &[u8]) {
    let Ok(at_rest) = AtRest::decode(payload) else { return };
    assert!(at_rest.record.len() <= MAX_PARKED_RECORD && at_rest.residue.len() <= MAX_RESIDUE);
    let mut back = vec![1];
    at_rest.encode(&mut back).expect("what was read can be written");
    assert_eq!(&back[1..], payload);
    assert_eq!(at_rest.encoded_len(), payload.len());
    let Ok(parked) = Parked::decode(at_rest.record) else { return };
    let mut protocol = Connection::resume(parked);
    let (mut input, mut out) = (at_rest.residue, Vec::new());
    while let Ok(Some(event)) = protocol.next(&mut input) {
        if let Event::Call { id, part, .. } | Event::Body { id, part } = event {
            let len = part.bytes.len();
            protocol.consumed(id, len);
        }
        protocol.control(&mut out);
    }
    assert!(protocol.kept_bytes() < 256 << 10);
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    // The length is told as it is, so that the record and the residue are reached.
    if let Some((split, rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*split)).min(rest.len());
        let length = u32::try_from(len).expect("of two bytes").to_le_bytes();
        read(&[&length[..], rest].concat());
        let code = u16::from_le_bytes(*split);
        let end = CallerEnd::from_code(code);
        assert!(end as u16 == code || end == CallerEnd::Broken);
        let cause = DrainCause::from_code(code);
        assert!(cause as u16 == code || cause == DrainCause::Swap);
    }
    if let Some((number, _)) = bytes.split_first_chunk::<8>() {
        let id = direct_id(u64::from_le_bytes(*number));
        assert!(is_direct(id) && direct_name(u64::MAX, id).len() <= 41);
    }
});
