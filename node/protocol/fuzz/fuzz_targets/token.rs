//! Any bytes as a token, as its text, as a key and as the record of a parked connection.
#![no_main]

use denizen_protocol::server::Parked;
use denizen_protocol::token::{KeyRing, PublicKey, SecretKey, from_text, to_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = SecretKey::from_random(&[1; 32]);
    let mut ring = KeyRing::new();
    ring.add(key.public()).expect("the ring is empty");
    assert!(ring.verify(bytes, 5).is_err(), "nobody signed this");
    let mut named = bytes.to_vec();
    if named.len() > 9 {
        named[0] = 1;
        named[1..9].copy_from_slice(&key.public().id().0);
        assert!(ring.verify(&named, 5).is_err(), "nobody signed this");
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = PublicKey::from_text(text);
        if let Ok(token) = from_text(text) {
            assert_eq!(to_text(&token), text.trim());
        }
    }
    if let Ok(parked) = Parked::decode(bytes) {
        assert_eq!(parked.encode(), bytes);
    }
});
